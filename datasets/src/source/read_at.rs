//! Random access to bytes, the interface that archives, shards and tables need of a local or remote file.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::UNIX_EPOCH,
};

use runtime::files::open_regular;

use super::MAX_SAMPLE_BYTES;
use crate::{Error, Result};

/// A file of fixed length that many threads read at any offset.
#[allow(clippy::len_without_is_empty, reason = "no caller treats an empty file specially")]
pub trait ReadAt: Send + Sync + fmt::Debug {
    /// The path or URL as the user gave it, for messages.
    fn name(&self) -> &str;

    /// A unique identifier of the file: an absolute path, a URL.
    fn identity(&self) -> &str;

    /// Identifies the version of the content: size and modification time, or an entity tag.
    fn version(&self) -> &str;

    /// The length in bytes.
    fn len(&self) -> u64;

    /// The number of concurrent reads that pay off.
    fn parallel_reads(&self) -> usize {
        thread::available_parallelism().map_or(1, usize::from).min(8)
    }

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if the file ends before, and any error of the system.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl<R: ReadAt + ?Sized> ReadAt for Arc<R> {
    fn name(&self) -> &str {
        (**self).name()
    }
    fn identity(&self) -> &str {
        (**self).identity()
    }
    fn version(&self) -> &str {
        (**self).version()
    }
    fn len(&self) -> u64 {
        (**self).len()
    }
    fn parallel_reads(&self) -> usize {
        (**self).parallel_reads()
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buffer, offset)
    }
}

/// A file on this machine, read by `pread`.
#[derive(Debug)]
pub struct LocalFile {
    path: PathBuf,
    name: String,
    identity: String,
    version: String,
    len: u64,
    /// `None` if there are more files than a process may hold open; then each read opens the file.
    file: Option<File>,
}

impl LocalFile {
    /// Opens a file and keeps it open.
    ///
    /// # Errors
    /// [`Error::Io`] for a path that is not a readable file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_regular(path).map_err(|source| Error::io(path, source))?;
        Self::describe(path, Some(file))
    }

    /// A file that each read opens and closes: for shards by the thousand.
    ///
    /// # Errors
    /// [`Error::Io`] for a path that is not a file.
    pub fn reopened(path: &Path) -> Result<Self> {
        Self::describe(path, None)
    }

    fn describe(path: &Path, file: Option<File>) -> Result<Self> {
        let failed = |source| Error::io(path, source);
        let metadata = match &file {
            Some(file) => file.metadata(),
            None => fs::metadata(path),
        }
        .map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(io::Error::other("it is not a regular file")));
        }
        let modified = metadata.modified().map_err(failed)?;
        // A time before 1970 counts backwards.
        let nanoseconds = match modified.duration_since(UNIX_EPOCH) {
            Ok(after) => after.as_nanos() as i128,
            Err(before) => -(before.duration().as_nanos() as i128),
        };
        let identity = fs::canonicalize(path).map_err(failed)?.to_string_lossy().into_owned();
        let len = metadata.len();
        let name = path.display().to_string();
        Ok(Self { path: path.to_owned(), name, identity, version: format!("{len} bytes, {nanoseconds} ns"), len, file })
    }
}

impl ReadAt for LocalFile {
    fn name(&self) -> &str {
        &self.name
    }
    fn identity(&self) -> &str {
        &self.identity
    }
    fn version(&self) -> &str {
        &self.version
    }
    fn len(&self) -> u64 {
        self.len
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.file {
            Some(file) => read_exact_at(file, buffer, offset),
            None => read_exact_at(&open_regular(&self.path)?, buffer, offset),
        }
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    // `seek_read` moves the cursor but reads at the offset it is given, so threads do not disturb each other.
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                buffer = &mut buffer[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
/// Replaces the content of `buffer` by a file's, up to [`MAX_SAMPLE_BYTES`] of it.
pub(super) fn read_file(path: &Path, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.clear();
    let file = open_regular(path)?;
    let size = file.metadata()?.len();
    if size > MAX_SAMPLE_BYTES {
        return Err(io::Error::other(format!("{size} bytes are more than an image may have ({MAX_SAMPLE_BYTES})")));
    }
    // One byte beyond the size lets the end be found without growing the buffer.
    buffer.reserve(size as usize + 1);
    file.take(MAX_SAMPLE_BYTES).read_to_end(buffer)?;
    Ok(())
}
