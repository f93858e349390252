//! Samples in archives, each at an offset.

use std::{borrow::Cow, sync::Arc};

use super::{
    Class, Location, MAX_SAMPLE_BYTES, ReadAt, Source, check_index,
    index::Table,
    names::{Labels, Names},
};
use crate::{Error, Result};

/// The samples of one archive or of many shards, read in place.
///
/// A sample needs 16 bytes of memory, 4 more if samples have individual labels, and the part of its name that it shares
/// with no neighbor: about 21 bytes for ImageNet's training archive, 28 for its validation archive.
#[derive(Debug)]
pub struct Packed {
    files: Vec<Arc<dyn ReadAt>>,
    /// The file of each group of names.
    group_files: Vec<u32>,
    classes: Vec<Class>,
    names: Names,
    labels: Labels,
    offsets: Vec<u64>,
    sizes: Vec<u32>,
}

impl Packed {
    /// The samples of all tables, in order; `labels` covers them all. Only names, offsets and sizes are taken from
    /// the tables.
    pub(super) fn new(tables: Vec<(Arc<dyn ReadAt>, Table)>, classes: Vec<Class>, labels: Labels) -> Result<Self> {
        let mut packed = Self {
            files: Vec::with_capacity(tables.len()),
            group_files: Vec::new(),
            classes,
            names: Names::default(),
            labels,
            offsets: Vec::new(),
            sizes: Vec::new(),
        };
        let count = tables.iter().map(|(_, table)| table.names.len()).sum();
        packed.offsets.reserve_exact(count);
        packed.sizes.reserve_exact(count);
        for (file, table) in tables {
            packed.group_files.extend(std::iter::repeat_n(packed.files.len() as u32, table.names.groups()));
            packed.names.append(&table.names)?;
            packed.offsets.extend(table.offsets);
            packed.sizes.extend(table.sizes);
            packed.files.push(file);
        }
        packed.names.shrink_to_fit();
        Ok(packed)
    }

    /// The bytes of memory that the index occupies.
    pub fn index_memory(&self) -> usize {
        let labels = match &self.labels {
            Labels::Absent => 0,
            Labels::PerGroup(labels) | Labels::PerSample(labels) => labels.capacity() * size_of::<u32>(),
        };
        self.names.memory()
            + labels
            + self.offsets.capacity() * size_of::<u64>()
            + self.sizes.capacity() * size_of::<u32>()
            + self.group_files.capacity() * size_of::<u32>()
    }

    /// The length of sample `index` in bytes.
    pub fn size(&self, index: usize) -> u64 {
        u64::from(self.sizes[index])
    }

    fn file(&self, index: usize) -> &dyn ReadAt {
        &*self.files[self.group_files[self.names.group(index)] as usize]
    }
}

impl Source for Packed {
    fn len(&self) -> usize {
        self.names.len()
    }
    fn classes(&self) -> &[Class] {
        &self.classes
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.labels.get(&self.names, index)
    }
    fn key(&self, index: usize) -> Cow<'_, str> {
        Cow::Owned(self.names.get(index))
    }
    fn location(&self, index: usize) -> Location {
        Location {
            container: self.file(index).name().to_owned(),
            member: Some(self.names.get(index)),
            offset: Some(self.offsets[index]),
        }
    }
    fn read(&self, index: usize, buffer: &mut Vec<u8>) -> Result<()> {
        check_index(index, self.len())?;
        let file = self.file(index);
        // What is left of an earlier sample is overwritten, so only growth costs a fill.
        buffer.resize(self.sizes[index] as usize, 0);
        file.read_exact_at(buffer, self.offsets[index]).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::Corrupt {
                location: self.location(index),
                cause: "the archive ends before the sample does: it became shorter since it was opened".to_owned(),
            },
            _ => Error::io(file.name(), source),
        })
    }
}

/// A sample's length, or what is wrong with it.
pub(super) fn sample_size(size: u64) -> Result<u32, String> {
    match u32::try_from(size) {
        Ok(size) if u64::from(size) <= MAX_SAMPLE_BYTES => Ok(size),
        _ => Err(format!("has {size} bytes; an image may have {MAX_SAMPLE_BYTES}")),
    }
}
