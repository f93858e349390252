//! Sources of samples: where a sample's bytes are, and its label.
//!
//! [`open`] recognizes what a path, a pattern or a URL holds; one module a kind does the reading.

mod alike;
mod archive;
mod codec;
mod folder;
mod foreign;
mod index;
mod layout;
mod left_out;
mod names;
mod open;
mod options;
mod packed;
#[cfg(feature = "parquet")]
mod parquet;
mod pattern;
mod read_at;
#[cfg(feature = "remote")]
mod remote;
mod subset;
mod table;
mod tar;
mod walk;
mod webdataset;

pub use folder::Folder;
pub use layout::split_beside;
pub use left_out::{LeftOut, LeftOutGroup, LeftOutReason};
pub use names::natural_order;
pub use open::open;
pub use options::{OpenOptions, Opened, RemoteOptions, SourceKind, Split, TableOptions};
pub use packed::Packed;
#[cfg(feature = "parquet")]
pub use parquet::Table as ParquetTable;
pub use pattern::{is_pattern, local_files as files_of_pattern};
pub use read_at::{LocalFile, ReadAt};
#[cfg(feature = "remote")]
pub use remote::RemoteFile;
pub(crate) use subset::draw;
pub use subset::{Relabeled, Subset};
pub use table::{TableSource, is_table_name};
pub(crate) use tar::seal as seal_tar_header;
pub use tar::tar_header;
pub use walk::{ImagesInFolder, images_in_folder};

use std::{
    borrow::Cow,
    fmt,
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use runtime::text::printable;

use crate::Result;

/// One class of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// The stable identifier: a folder's name, a wnid (`n02085620`), a number.
    pub id: String,
    /// The name for people (`Chihuahua`); equals `id` where no better one is known.
    pub name: String,
}

/// The location of a sample's bytes, for error messages and reports: `archive → member @ offset`.
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
        f.write_str(&printable(&self.container))?;
        if let Some(member) = &self.member {
            write!(f, " → {}", printable(member))?;
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

    /// Returns the location of the bytes, for messages.
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

/// The largest encoded sample that is read: beyond it a size is an error rather than an allocation.
pub const MAX_SAMPLE_BYTES: u64 = 512 << 20;

/// `work(0)`, …, `work(count - 1)` on several threads, in order; of several errors the first by number counts.
pub(crate) fn parallel<T: Send>(
    count: usize,
    threads: usize,
    work: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let worker = || {
        let mut done = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            let result = work(index);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            done.push((index, result));
        }
        done
    };
    let mut results: Vec<(usize, Result<T>)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.min(count)).map(|_| scope.spawn(worker)).collect();
        let join = |worker: thread::ScopedJoinHandle<'_, _>| worker.join().unwrap_or_else(|panic| resume_unwind(panic));
        workers.into_iter().flat_map(join).collect()
    });
    results.sort_unstable_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Checks an index that a caller passed to a [`Source`].
pub(crate) fn check_index(index: usize, len: usize) -> Result<()> {
    if index < len { Ok(()) } else { Err(crate::Error::OutOfRange { index, len }) }
}

/// The file extensions of images, in lower case.
pub const IMAGE_EXTENSIONS: [&str; 21] = [
    "jpg", "jpeg", "jpe", "jfif", "jif", "jfi", "pjpeg", "pjp", "mpo", "png", "apng", "webp", "bmp", "dib", "gif",
    "tif", "tiff", "ppm", "pgm", "pbm", "pnm",
];

/// Whether a file name ends like an image's, in any case.
pub fn is_image_name(name: &str) -> bool {
    name.rsplit_once('.')
        .is_some_and(|(_, extension)| IMAGE_EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}
