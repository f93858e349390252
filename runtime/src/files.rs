//! Files that are whole or not there: written beside, synced, renamed.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Writes a file through `write` such that `path` holds either its old content or all of the new one, even after a
/// crash or a loss of power: a temporary file in the same folder is written, synced and renamed, then the folder is
/// synced. Missing parent folders are created. Nothing is left behind on an error.
pub fn write_atomic<T>(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<T>) -> Result<T> {
    let folder = parent(path);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create folder {}", folder.display()))?;
    let context = || format!("cannot write {}", path.display());

    let temporary = tempfile::Builder::new().prefix(".").suffix(".part").tempfile_in(&folder).with_context(context)?;
    let (file, temporary) = temporary.into_parts();
    let mut writer = BufWriter::new(file);
    let value = write(&mut writer).with_context(context)?;
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error).with_context(context)?;
    set_default_mode(&file).with_context(context)?;
    file.sync_all().with_context(context)?;
    drop(file);
    temporary.persist(path).map_err(|failed| failed.error).with_context(context)?;
    sync_folder(&folder).with_context(context)?;
    Ok(value)
}

/// [`write_atomic`] of bytes that are already there.
pub fn write_atomic_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |writer| Ok(writer.write_all(bytes)?))
}

/// Checks that nothing but a regular file has this name: opening a FIFO would wait for ever, and a symbolic link would
/// lead a writer elsewhere.
///
/// # Errors
/// If there is a FIFO, a device, a folder or a symbolic link.
pub fn check_regular(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads a whole file, as [`std::fs::read`] does. What is no file, for instance a FIFO, is an error and not waited for.
///
/// # Errors
/// If the file cannot be read, or is no regular file.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Links may be followed for reading.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    std::fs::read(path)
}

/// [`read`] for text in UTF-8.
///
/// # Errors
/// If the file cannot be read, is no regular file, or is not UTF-8.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))
}

/// The folder that holds `path`, `.` for a bare name.
fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Temporary files are private to their owner; a result is readable like any other file.
fn set_default_mode(file: &File) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    #[cfg(not(unix))]
    let _ = file;
    Ok(())
}

/// Makes a rename in the folder last. Only Unix can open a folder for that.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).expect("the folder is there");
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("new/metrics.json");
        write_atomic_bytes(&path, b"one").expect("written");
        write_atomic_bytes(&path, b"three").expect("replaced");
        assert_eq!(std::fs::read(&path).expect("read"), b"three");
        assert_eq!(names(&folder.path().join("new")), ["metrics.json"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_fifo_is_an_error_and_is_not_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run.json");
        assert!(check_regular(&path).is_ok() && read(&path).is_err(), "nothing is there");
        let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo runs");
        assert!(made.success());
        for error in [check_regular(&path).unwrap_err(), read(&path).unwrap_err(), read_to_string(&path).unwrap_err()] {
            assert_eq!(error.to_string(), "not a regular file");
        }
        let link = folder.path().join("link");
        std::fs::write(folder.path().join("file"), "text").expect("written");
        std::os::unix::fs::symlink("file", &link).expect("linked");
        assert!(check_regular(&link).is_err(), "a writer follows no link");
        assert_eq!(read_to_string(&link).expect("a reader does"), "text");
    }

    #[test]
    fn a_failed_write_keeps_the_old_content_and_names_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("card.json");
        write_atomic_bytes(&path, b"old").expect("written");
        let error = write_atomic(&path, |writer| -> Result<()> {
            writer.write_all(b"half of the n")?;
            bail!("the disk is on fire")
        })
        .unwrap_err();
        assert!(format!("{error:#}").contains("card.json: the disk is on fire"), "{error:#}");
        assert_eq!(std::fs::read(&path).expect("read"), b"old");
        assert_eq!(names(folder.path()), ["card.json"]);
    }
}
