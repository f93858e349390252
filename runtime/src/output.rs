//! Standard output and standard error, either of which may be closed or full.
//!
//! `println!` and `eprintln!` panic if they cannot write, which would end a training because its log is on a full disk
//! or because Ctrl-C ended the `tee` that reads it. Programs write with these macros instead:
//!
//! | macro | for | if it cannot write |
//! |---|---|---|
//! | [`out!`](crate::out), [`outln!`](crate::outln) | results, on standard output | returns [`StdoutError`] |
//! | [`noteln!`](crate::noteln) | everything else, on standard error | the first failure is written to the log files of runs |
//!
//! Progress bars are hidden while text is printed.

#[cfg(unix)]
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::{
    io::{self, IsTerminal, Write},
    sync::{LazyLock, Mutex, PoisonError},
};

use indicatif::{MultiProgress, ProgressDrawTarget};

use crate::log_file;

/// Writes a result to standard output.
///
/// ```
/// runtime::out!("{} images\n", 3)?;
/// # Ok::<(), runtime::output::StdoutError>(())
/// ```
#[macro_export]
macro_rules! out {
    ($($text:tt)*) => { $crate::output::write_result(::std::format!($($text)*)) };
}

/// Writes a result and a line break to standard output.
#[macro_export]
macro_rules! outln {
    ($($text:tt)*) => { $crate::output::write_result(::std::format!($($text)*) + "\n") };
}

/// Writes a line to standard error; it never fails.
#[macro_export]
macro_rules! noteln {
    ($($text:tt)*) => { $crate::output::write_note(::std::format!($($text)*) + "\n") };
}

/// A failure to write a result. [`exit::run`](crate::exit::run) ends the program quietly if the reader closed the pipe.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub struct StdoutError(#[from] io::Error);

impl StdoutError {
    /// Whether the reader of a pipe closed it.
    pub fn is_closed_pipe(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

/// Writes text to standard output; [`out!`](crate::out) formats it.
///
/// # Errors
/// Fails if standard output is closed, or the disk that it goes to is full.
pub fn write_result(text: impl AsRef<[u8]>) -> Result<(), StdoutError> {
    suspend(|| {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_ref())?;
        Ok(stdout.flush()?)
    })
}

/// Writes text to standard error; [`noteln!`](crate::noteln) formats it.
pub fn write_note(text: impl AsRef<str>) {
    let text = text.as_ref();
    if let Some(held) = &mut *HELD.lock().unwrap_or_else(PoisonError::into_inner) {
        return held.push(text);
    }
    suspend(|| soften(io::stderr().lock().write_all(text.as_bytes())));
}

/// Drops a failure of standard error, which is noted once in the log files of runs.
fn soften(result: io::Result<()>) {
    if let Err(error) = result {
        log_file::note_stderr_failure(&error);
    }
}

/// All bars of the process, so that lines can be printed between them.
pub(crate) static BARS: LazyLock<MultiProgress> = LazyLock::new(|| {
    MultiProgress::with_draw_target(match io::stderr().is_terminal() {
        true => {
            let terminal = SoftTerm(console::Term::buffered_stderr());
            ProgressDrawTarget::term_like_with_hz(Box::new(terminal), BARS_PER_SECOND)
        }
        false => ProgressDrawTarget::hidden(),
    })
});

/// The interval between redraws of a bar.
const BARS_PER_SECOND: u8 = 20;

/// Runs `print`, which may write to the terminal, while the bars step aside. It must not call this function again.
fn suspend<T>(print: impl FnOnce() -> T) -> T {
    BARS.suspend(print)
}

/// Standard error as a writer that never fails.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        soften(io::stderr().lock().write_all(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Adds text to what waits; returns whether anything does.
pub(crate) fn push_if_held(text: &str) -> bool {
    // A panic may come while it is locked.
    let Ok(mut held) = HELD.try_lock() else { return false };
    let held = held.as_mut();
    held.map(|held| held.push(text)).is_some()
}

/// Text for standard error that waits while a dashboard has the terminal.
static HELD: Mutex<Option<Held>> = Mutex::new(None);

/// The most bytes that wait.
const MOST_HELD: usize = 1 << 20;

#[derive(Default)]
struct Held {
    text: String,
    lines_dropped: usize,
}

impl Held {
    const fn new() -> Self {
        Self { text: String::new(), lines_dropped: 0 }
    }

    fn push(&mut self, text: &str) {
        if self.text.len() + text.len() <= MOST_HELD {
            self.text += text;
        } else {
            self.lines_dropped += 1;
        }
    }
}

/// Holds back standard error until it is dropped, for a dashboard that occupies the terminal.
#[derive(Debug)]
pub struct Hold {
    #[cfg(unix)]
    stderr: Option<OwnedFd>,
}

/// Holds back standard error: text that [`noteln!`](crate::noteln) writes, and panics, appear when the result is dropped.
///
/// Output of libraries to standard error is lost meanwhile on Unix. A dashboard's library reports a terminal that is gone by `eprintln!` in a
/// destructor; were standard error that terminal, the failure would abort the process.
pub fn hold_stderr() -> Hold {
    HELD.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Held::new);
    Hold {
        #[cfg(unix)]
        stderr: stderr_to_null().ok(),
    }
}

/// Makes standard error the null device; returns what it was.
#[cfg(unix)]
fn stderr_to_null() -> io::Result<OwnedFd> {
    let stderr = io::stderr().as_fd().try_clone_to_owned()?;
    let null: OwnedFd = std::fs::File::options().write(true).open("/dev/null")?.into();
    replace_stderr(&null)?;
    Ok(stderr)
}

#[cfg(unix)]
fn replace_stderr(by: &OwnedFd) -> io::Result<()> {
    // SAFETY: `dup2` takes no pointer, `by` is open, and descriptor 2 stays open throughout: it is replaced atomically.
    match unsafe { libc::dup2(by.as_raw_fd(), libc::STDERR_FILENO) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        #[cfg(unix)]
        if let Some(stderr) = self.stderr.take() {
            soften(replace_stderr(&stderr));
        }
        let held = HELD.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Held { text, lines_dropped }) = held else { return };
        if !text.is_empty() {
            write_note(text);
        }
        if lines_dropped > 0 {
            crate::noteln!("{lines_dropped} more lines were left out");
        }
    }
}

/// A terminal on standard error that never fails: progress bars panic if theirs does, for instance after a hang-up.
#[derive(Debug)]
struct SoftTerm(console::Term);

impl SoftTerm {
    fn soft(result: io::Result<()>) -> io::Result<()> {
        soften(result);
        Ok(())
    }
}

impl indicatif::TermLike for SoftTerm {
    fn width(&self) -> u16 {
        self.0.size().1
    }

    fn height(&self) -> u16 {
        self.0.size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        Self::soft(self.0.move_cursor_up(n))
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        Self::soft(self.0.move_cursor_down(n))
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        Self::soft(self.0.move_cursor_right(n))
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        Self::soft(self.0.move_cursor_left(n))
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        Self::soft(self.0.write_line(text))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        Self::soft(self.0.write_str(text))
    }

    fn clear_line(&self) -> io::Result<()> {
        Self::soft(self.0.clear_line())
    }

    fn flush(&self) -> io::Result<()> {
        Self::soft(self.0.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_text_is_bounded_and_what_is_left_out_is_counted() {
        let mut held = Held::default();
        held.push("first\n");
        held.push(&"x".repeat(MOST_HELD));
        held.push("last\n");
        assert_eq!((held.text.as_str(), held.lines_dropped), ("first\nlast\n", 1));
    }

    #[test]
    fn a_full_disk_is_no_closed_pipe() {
        let full = StdoutError::from(io::Error::from(io::ErrorKind::StorageFull));
        let closed = StdoutError::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(!full.is_closed_pipe() && closed.is_closed_pipe());
        let shown = crate::exit::chain(&full);
        assert!(shown.starts_with("cannot write to standard output: "), "{shown}");
    }
}
