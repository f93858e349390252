//! Log files of runs, which also record failures of standard error.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError},
    time::{Duration, SystemTime},
};

use log::{Level, LevelFilter};

/// The log files that are open.
static FILES: Mutex<Vec<Arc<LogFile>>> = Mutex::new(Vec::new());

/// The level of the logger without log files; `None` if it is not installed.
static MAX_LEVEL: Mutex<Option<LevelFilter>> = Mutex::new(None);

/// The first failure of standard error.
static STDERR_FAILURE: Mutex<Option<String>> = Mutex::new(None);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets the level of the logger, above which it still receives records for log files.
pub(crate) fn set_max_level(level: LevelFilter) {
    *lock(&MAX_LEVEL) = Some(level);
    log::set_max_level(level);
}

/// Whether a log file receives records.
pub(crate) fn any_is_open() -> bool {
    !lock(&FILES).is_empty()
}

/// Appends a line to the open log files.
pub(crate) fn append(line: &str) {
    // A panic, which is logged too, may come while the list is locked.
    let files = match FILES.try_lock() {
        Ok(files) => files.clone(),
        Err(TryLockError::Poisoned(files)) => files.into_inner().clone(),
        Err(TryLockError::WouldBlock) if std::thread::panicking() => return,
        Err(TryLockError::WouldBlock) => lock(&FILES).clone(),
    };
    files.iter().for_each(|file| file.append(line));
}

/// Writes a line to the open log files though no record carries it.
pub(crate) fn write(level: Level, target: &str, text: &str) {
    append(&line(level, target, text));
}

/// Notes that standard error cannot be written: the first time, in the log files that are open or will be.
pub(crate) fn note_stderr_failure(error: &io::Error) {
    let mut failure = lock(&STDERR_FAILURE);
    if failure.is_none() {
        let text = format!("cannot write to standard error: {error}; its messages are lost, the work continues");
        *failure = Some(text.clone());
        drop(failure);
        write(Level::Warn, "runtime::output", &text);
    }
}

fn line(level: Level, target: &str, text: &str) -> String {
    format!("{} {level:<5} {target}: {text}", time(SystemTime::now()))
}

/// Returns the time in UTC by RFC 3339, in milliseconds.
pub(crate) fn time(now: SystemTime) -> String {
    let millis = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    let whole = SystemTime::UNIX_EPOCH + Duration::from_millis(millis.try_into().unwrap_or(u64::MAX));
    humantime::format_rfc3339_millis(whole).to_string()
}

/// The log file of a run, to which lines are appended. A file that cannot be written loses lines, and nothing else.
#[derive(Debug)]
pub struct LogFile(Mutex<File>);

impl LogFile {
    /// Opens the file, or creates it, and copies log records to it until the result is dropped.
    ///
    /// # Errors
    /// Fails if the file cannot be opened, or is no regular file.
    pub fn open(path: &Path) -> io::Result<OpenLogFile> {
        let file = Arc::new(Self::for_lines(path)?);
        if let Some(failure) = &*lock(&STDERR_FAILURE) {
            file.write(Level::Warn, "runtime::output", failure);
        }
        lock(&FILES).push(file.clone());
        if let Some(level) = *lock(&MAX_LEVEL) {
            log::set_max_level(level.max(LevelFilter::Info));
        }
        Ok(OpenLogFile(file))
    }

    /// Opens the file, or creates it, for lines alone: it receives no log records.
    ///
    /// # Errors
    /// Fails if the file cannot be opened, or is no regular file.
    pub fn for_lines(path: &Path) -> io::Result<Self> {
        crate::files::check_regular(path)?;
        Ok(Self(Mutex::new(OpenOptions::new().create(true).append(true).open(path)?)))
    }

    /// Appends a line with the time, the level and the target.
    pub fn write(&self, level: Level, target: &str, text: &str) {
        self.append(&line(level, target, text));
    }

    fn append(&self, line: &str) {
        let mut file = match self.0.try_lock() {
            Ok(file) => file,
            Err(TryLockError::Poisoned(file)) => file.into_inner(),
            Err(TryLockError::WouldBlock) if std::thread::panicking() => return,
            Err(TryLockError::WouldBlock) => lock(&self.0),
        };
        let _ = file.write_all(format!("{line}\n").as_bytes());
    }
}

/// A log file that receives a copy of the log records until it is dropped.
#[derive(Debug)]
pub struct OpenLogFile(Arc<LogFile>);

impl std::ops::Deref for OpenLogFile {
    type Target = LogFile;

    fn deref(&self) -> &LogFile {
        &self.0
    }
}

impl Drop for OpenLogFile {
    fn drop(&mut self) {
        let mut files = lock(&FILES);
        files.retain(|file| !Arc::ptr_eq(file, &self.0));
        if let (true, Some(level)) = (files.is_empty(), *lock(&MAX_LEVEL)) {
            log::set_max_level(level);
        }
    }
}
