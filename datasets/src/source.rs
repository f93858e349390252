//! Where samples come from: an index of a sample's bytes and its label.

use std::{borrow::Cow, fmt, sync::Arc};

use crate::Result;

/// One class of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// The stable identifier: a folder's name, a wnid (`n02085620`), a number.
    pub id: String,
    /// The name for people (`Chihuahua`); equals `id` where no better one is known.
    pub name: String,
}

/// Where a sample's bytes lie, for error messages and reports: `archive → member @ offset`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The file, archive or URL that holds the sample.
    pub container: String,
    /// The member inside an archive, the row of a table; `None` for a plain file.
    pub member: Option<String>,
    /// The first byte of the sample inside the container.
    pub offset: Option<u64>,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.container)?;
        if let Some(member) = &self.member {
            write!(f, " → {member}")?;
        }
        if let Some(offset) = self.offset {
            write!(f, " @ {offset}")?;
        }
        Ok(())
    }
}

/// A data set's samples, by index: their encoded bytes, labels and stable keys.
///
/// A source decodes nothing and shuffles nothing; the order of its indices is fixed for given files.
pub trait Source: Send + Sync {
    /// The number of samples.
    fn len(&self) -> usize;

    /// Whether there is no sample at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The classes, in label order.
    fn classes(&self) -> &[Class];

    /// The label of sample `index`: an index into [`classes`](Source::classes); `None` where the data has none.
    fn label(&self, index: usize) -> Option<u32>;

    /// A stable key: the same sample has the same key in every process and on every machine.
    fn key(&self, index: usize) -> Cow<'_, str>;

    /// Where the bytes lie, for messages.
    fn location(&self, index: usize) -> Location;

    /// Replaces the content of `buffer` by the encoded bytes of sample `index`.
    fn read(&self, index: usize, buffer: &mut Vec<u8>) -> Result<()>;
}

impl<S: Source + ?Sized> Source for Arc<S> {
    fn len(&self) -> usize {
        (**self).len()
    }
    fn classes(&self) -> &[Class] {
        (**self).classes()
    }
    fn label(&self, index: usize) -> Option<u32> {
        (**self).label(index)
    }
    fn key(&self, index: usize) -> Cow<'_, str> {
        (**self).key(index)
    }
    fn location(&self, index: usize) -> Location {
        (**self).location(index)
    }
    fn read(&self, index: usize, buffer: &mut Vec<u8>) -> Result<()> {
        (**self).read(index, buffer)
    }
}
