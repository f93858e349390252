//! Atomic writes: a temporary file is written, synced and renamed. Reads that accept regular files only.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

use crate::{Error, Result};

/// A file that is written under a temporary name in its folder. [`commit`](Self::commit) gives it its own name, so that
/// this holds either its old content or all of the new one, even after a crash or a loss of power. Nothing is left
/// behind of a file that is not committed.
#[derive(Debug)]
pub struct AtomicFile {
    writer: BufWriter<File>,
    temporary: TempPath,
    path: PathBuf,
}

impl AtomicFile {
    /// Creates the temporary file, and missing folders.
    ///
    /// # Errors
    /// [`Error::Write`] if the folder or the file cannot be created.
    pub fn create(path: &Path) -> Result<Self> {
        let folder = parent(path);
        std::fs::create_dir_all(&folder).map_err(Error::write("create folder", &folder))?;
        let (file, temporary) = temporary(path).map_err(Error::write("write", path))?.into_parts();
        Ok(Self { writer: BufWriter::new(file), temporary, path: path.to_path_buf() })
    }

    /// Syncs the file, renames it and syncs its folder.
    ///
    /// # Errors
    /// [`Error::Write`] with the system's error.
    pub fn commit(self) -> Result<()> {
        let Self { writer, temporary, path } = self;
        let finish = || {
            let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.sync_all()?;
            drop(file);
            persist(temporary, &path)
        };
        finish().map_err(Error::write("write", &path))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.writer.seek(position)
    }
}

/// Writes an [`AtomicFile`] through `write`, which is committed if that succeeds.
///
/// # Errors
/// [`Error::Write`] with the system's error or that of `write`.
pub fn write_atomic<T>(path: &Path, write: impl FnOnce(&mut AtomicFile) -> io::Result<T>) -> Result<T> {
    let mut file = AtomicFile::create(path)?;
    let value = write(&mut file).map_err(Error::write("write", path))?;
    file.commit()?;
    Ok(value)
}

/// [`write_atomic`] for a writer that opens its file by itself: `write` receives the path of an empty temporary file.
///
/// # Errors
/// The writer's, and the system's.
pub fn write_atomic_at<T, E: From<io::Error>>(path: &Path, write: impl FnOnce(&Path) -> Result<T, E>) -> Result<T, E> {
    std::fs::create_dir_all(parent(path))?;
    let temporary = temporary(path)?.into_temp_path();
    let value = write(&temporary)?;
    // The writer may have put another file in its place. Windows syncs only what is open for writing.
    OpenOptions::new().write(true).open(&temporary)?.sync_all()?;
    persist(temporary, path)?;
    Ok(value)
}

/// Creates an empty file with a temporary name in the folder of `path`.
fn temporary(path: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".").suffix(".part");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Temporary files are private by default; a result is readable as the umask says, like any other file.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(parent(path))
}

/// Gives a synced file its own name, and syncs the folder.
fn persist(temporary: TempPath, path: &Path) -> io::Result<()> {
    temporary.persist(path).map_err(|failed| failed.error)?;
    sync_folder(&parent(path))
}

/// [`write_atomic`] of bytes that are already there.
///
/// # Errors
/// [`Error::Write`] with the system's error.
pub fn write_atomic_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |writer| writer.write_all(bytes))
}

/// Checks that nothing but a regular file has this name: opening a FIFO would wait for ever, and a symbolic link would
/// lead a writer elsewhere.
///
/// # Errors
/// Fails if there is a FIFO, a device, a folder or a symbolic link.
pub fn check_regular(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) => check_kind(found.file_type()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads a whole file, as [`std::fs::read`] does. Anything but a regular file, such as a FIFO, is an error at once.
///
/// # Errors
/// Fails if the file cannot be read, or is no regular file.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// [`read`] for text in UTF-8.
///
/// # Errors
/// Fails if the file cannot be read, is no regular file, or is not UTF-8.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))
}

/// Opens a regular file for reading, through links. Anything else is an error at once: opening a named pipe waits for a
/// writer, and a device may have no end.
///
/// # Errors
/// The system's, and [`io::ErrorKind::InvalidInput`] for a folder, pipe, socket or device.
pub fn open_regular(path: &Path) -> io::Result<File> {
    // Before opening, because opening alone can have effects on a device.
    check_kind(std::fs::metadata(path)?.file_type())?;
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // Another process may put a pipe in the file's place: opening it must not wait.
        options.custom_flags(libc::O_NONBLOCK);
    }
    let file = options.open(path)?;
    check_kind(file.metadata()?.file_type())?;
    Ok(file)
}

fn check_kind(kind: FileType) -> io::Result<()> {
    if kind.is_file() {
        return Ok(());
    }
    let what = match kind {
        kind if kind.is_dir() => "a folder",
        kind if kind.is_symlink() => "a symbolic link",
        _ => "a pipe, socket or device",
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}, not a regular file")))
}

/// Creates a file for writing in place of whatever has its name. A link of that name is replaced and not followed.
///
/// # Errors
/// The system's, also where another process creates the same file at this moment.
pub fn create_unlinked(path: &Path) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).open(path)
}

/// Returns the parent folder of `path`, `.` for a bare name.
fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Syncs a folder, which makes a rename in it durable. Does nothing where folders cannot be opened (not on Unix).
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::exit::chain;

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
            assert_eq!(error.to_string(), "it is a pipe, socket or device, not a regular file");
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
        let error = write_atomic(&path, |writer| -> io::Result<()> {
            writer.write_all(b"half of the n")?;
            Err(io::Error::other("the disk is on fire"))
        })
        .unwrap_err();
        assert!(chain(&error).ends_with("card.json: the disk is on fire"), "{error:?}");
        assert_eq!(std::fs::read(&path).expect("read"), b"old");
        assert_eq!(names(folder.path()), ["card.json"]);
    }

    #[cfg(unix)]
    #[test]
    fn only_regular_files_are_opened_and_nothing_is_waited_for() {
        use std::os::unix::{ffi::OsStrExt, fs::symlink};
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), b"bytes").expect("written");
        symlink(at("file"), at("link")).expect("linked");
        assert!(open_regular(&at("link")).is_ok());
        let pipe = std::ffi::CString::new(at("pipe").as_os_str().as_bytes()).expect("no zero");
        // SAFETY: the path is a string that ends with a zero.
        assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
        for (path, cause) in
            [(at("pipe"), "a pipe"), (folder.path().to_owned(), "a folder"), ("/dev/null".into(), "device")]
        {
            let error = open_regular(&path).unwrap_err();
            assert!(error.to_string().contains(cause), "{}: {error}", path.display());
        }
        assert_eq!(open_regular(&at("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[cfg(unix)]
    #[test]
    fn the_umask_decides_who_may_read_a_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let mode = |name: &str| std::fs::metadata(folder.path().join(name)).expect("there").permissions().mode();
        write_atomic_bytes(&folder.path().join("atomic"), b"x").expect("written");
        std::fs::write(folder.path().join("plain"), b"x").expect("written");
        assert_eq!(mode("atomic"), mode("plain"));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_replaced_and_what_it_leads_to_is_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let (victim, part) = (folder.path().join("victim"), folder.path().join("x.part"));
        std::fs::write(&victim, b"precious").expect("written");
        std::os::unix::fs::symlink(&victim, &part).expect("linked");
        create_unlinked(&part).expect("created").write_all(b"new").expect("written");
        assert_eq!(std::fs::read(&victim).expect("read"), b"precious");
        assert_eq!(std::fs::read(&part).expect("read"), b"new");
        assert!(create_unlinked(folder.path()).is_err(), "a folder is not removed");
    }
}
