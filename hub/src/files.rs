//! Files that are whole or not there.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use runtime::files::write_atomic_at;

use crate::{Error, Result};

/// Lets `write` fill a temporary file, which then replaces `path`.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn write_whole(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    write_atomic_at(path, write).map_err(|source| Error::Io { action: "write", path: path.to_path_buf(), source })
}

/// Reads a whole file of at most `limit` bytes. A file that does not fit into memory is an error.
///
/// # Errors
/// The system's error, [`io::ErrorKind::FileTooLarge`], or [`io::ErrorKind::OutOfMemory`].
pub(crate) fn read_whole(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    if len > limit {
        let cause = format!("it is {len} bytes long, and at most {limit} are read");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, cause));
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len as usize).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    // No more than was reserved, should the file grow meanwhile.
    file.take(len).read_to_end(&mut bytes)?;
    Ok(bytes)
}
