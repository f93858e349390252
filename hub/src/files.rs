//! Files that are whole or not there.

use std::{
    fs,
    fs::File,
    io::{self, Read},
    path::Path,
};

use crate::{Error, Result};

/// Lets `write` fill a temporary file beside `path`, syncs it to the disk and renames it to `path`.
pub(crate) fn write_whole(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    let io = |source| Error::Io { action: "write", path: path.to_path_buf(), source };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder).map_err(io)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".hearth-");
    // Temporary files are private by default; a result is as readable as the umask lets any other file be.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let temporary = builder.tempfile_in(folder).map_err(io)?.into_temp_path();
    write(&temporary).map_err(io)?;
    File::open(&temporary).and_then(|file| file.sync_all()).map_err(io)?;
    temporary.persist(path).map_err(|error| io(error.error))?;
    #[cfg(unix)]
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
    Ok(())
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
