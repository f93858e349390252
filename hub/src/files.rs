//! Files that are whole or not there.

use std::{fs, fs::File, io, path::Path};

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
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Temporary files are private by default; a result is readable as the umask says, like any other file.
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
