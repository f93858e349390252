//! A part of a source, and the seeded split of one.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use super::{Class, Location, Source, alike, check_index};
use crate::{Error, Result};

/// Some of a source's samples, under its classes. Costs four bytes a sample.
pub struct Subset {
    source: Arc<dyn Source>,
    indices: Vec<u32>,
}

impl Subset {
    /// The samples `indices` of `source`, in that order.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for an index out of range.
    pub fn new(source: Arc<dyn Source>, indices: Vec<u32>) -> Result<Self> {
        indices.iter().try_for_each(|&index| check_index(index as usize, source.len()))?;
        Ok(Self { source, indices })
    }

    /// Splits a source that has no split of its own into (train, val), the same way on every machine.
    ///
    /// Of each class's samples the share `val_fraction` goes to val, rounded, but at least one and not all where the
    /// class has two or more; a class's only sample goes to train. Samples without labels count as one class. Which
    /// ones go is drawn from the seed and their keys, so adding files moves few of the others.
    ///
    /// # Errors
    /// [`Error::Layout`] for a fraction that is not between 0 and 1.
    pub fn split(source: Arc<dyn Source>, val_fraction: f64, seed: u64) -> Result<(Self, Self)> {
        if !(val_fraction > 0.0 && val_fraction < 1.0) {
            return Err(Error::layout("val fraction", format!("{val_fraction} does not lie between 0 and 1")));
        }
        let len = u32::try_from(source.len())
            .map_err(|_| Error::layout("split", "more than 4 billion samples; split the data set yourself"))?;
        let mut classes: Vec<Vec<(u64, u32)>> = vec![Vec::new(); source.classes().len() + 1];
        for index in 0..len {
            // Samples without a label share the last list.
            let class = source.label(index as usize).map_or(classes.len() - 1, |label| label as usize);
            classes[class].push((draw(seed, &source.key(index as usize)), index));
        }
        let (mut train, mut val) = (Vec::new(), Vec::new());
        for mut samples in classes {
            samples.sort_unstable();
            let share = (samples.len() as f64 * val_fraction).round() as usize;
            let share = if samples.len() < 2 { 0 } else { share.clamp(1, samples.len() - 1) };
            val.extend(samples[..share].iter().map(|&(_, index)| index));
            train.extend(samples[share..].iter().map(|&(_, index)| index));
        }
        train.sort_unstable();
        val.sort_unstable();
        Ok((Self { source: source.clone(), indices: train }, Self { source, indices: val }))
    }
}

/// A number drawn for a key: FNV-1a over its bytes, then SplitMix64's finalizer so that all bits count.
pub(crate) fn draw(seed: u64, key: &str) -> u64 {
    let hash = key
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mut mixed = hash ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl Source for Subset {
    fn len(&self) -> usize {
        self.indices.len()
    }
    fn classes(&self) -> &[Class] {
        self.source.classes()
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.source.label(*self.indices.get(index)? as usize)
    }
    fn key(&self, index: usize) -> Cow<'_, str> {
        self.source.key(self.indices[index] as usize)
    }
    fn location(&self, index: usize) -> Location {
        self.source.location(self.indices[index] as usize)
    }
    fn read(&self, index: usize, buffer: &mut Vec<u8>) -> Result<()> {
        check_index(index, self.len())?;
        self.source.read(self.indices[index] as usize, buffer)
    }
}

/// A source under the classes of another, which has all of its own: a validation split that lacks some classes.
pub struct Relabeled {
    source: Arc<dyn Source>,
    classes: Vec<Class>,
    /// The new label of each class of `source`.
    labels: Vec<u32>,
}

impl Relabeled {
    /// Returns the source with labels that count in `classes`, by the identifiers of the classes, in whatever Unicode
    /// form; `None` if one of its classes is not among them.
    pub fn new(source: Arc<dyn Source>, classes: &[Class]) -> Option<Self> {
        let ids = source.classes().iter().map(|class| class.id.clone()).collect();
        let (ids, _) = alike::as_known(ids, HashMap::<_, ()>::new(), classes);
        let by_id: HashMap<&str, u32> = classes.iter().map(|class| class.id.as_str()).zip(0..).collect();
        let labels = ids.iter().map(|id| by_id.get(id.as_str()).copied()).collect::<Option<_>>()?;
        Some(Self { source, classes: classes.to_vec(), labels })
    }
}

impl Source for Relabeled {
    fn len(&self) -> usize {
        self.source.len()
    }
    fn classes(&self) -> &[Class] {
        &self.classes
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.labels.get(self.source.label(index)? as usize).copied()
    }
    fn key(&self, index: usize) -> Cow<'_, str> {
        self.source.key(index)
    }
    fn location(&self, index: usize) -> Location {
        self.source.location(index)
    }
    fn read(&self, index: usize, buffer: &mut Vec<u8>) -> Result<()> {
        self.source.read(index, buffer)
    }
}

/// Sources one after the other, under the same classes.
pub(crate) struct Chain {
    sources: Vec<Arc<dyn Source>>,
    /// The first index of each source, and the length of all.
    starts: Vec<usize>,
}

impl Chain {
    /// `sources` must not be empty and must share their classes.
    pub(crate) fn new(sources: Vec<Arc<dyn Source>>) -> Self {
        let mut starts = vec![0];
        for source in &sources {
            starts.push(starts[starts.len() - 1] + source.len());
        }
        Self { sources, starts }
    }

    fn at(&self, index: usize) -> (&dyn Source, usize) {
        let source = self.starts.partition_point(|&start| start <= index) - 1;
        (&*self.sources[source], index - self.starts[source])
    }
}

impl Source for Chain {
    fn len(&self) -> usize {
        self.starts[self.sources.len()]
    }
    fn classes(&self) -> &[Class] {
        self.sources[0].classes()
    }
    fn label(&self, index: usize) -> Option<u32> {
        check_index(index, self.len()).ok()?;
        let (source, index) = self.at(index);
        source.label(index)
    }
    fn key(&self, index: usize) -> Cow<'_, str> {
        let (source, index) = self.at(index);
        source.key(index)
    }
    fn location(&self, index: usize) -> Location {
        let (source, index) = self.at(index);
        source.location(index)
    }
    fn read(&self, index: usize, buffer: &mut Vec<u8>) -> Result<()> {
        check_index(index, self.len())?;
        let (source, index) = self.at(index);
        source.read(index, buffer)
    }
}
