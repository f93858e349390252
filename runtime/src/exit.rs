//! Exit codes, and the wrapper of every binary's `main`.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed; the error is on standard error |
//! | 2 | the command line is wrong (clap's code) |
//! | 3 | some inputs failed; the results of the others were given |
//! | 101 | a bug: Hearth panicked |
//! | 130 | interrupted by Ctrl-C or a request to terminate; what was begun was saved where that makes sense |
//!
//! A reader that closes the pipe (`infer classify … | head -1`) ends a command at its next result, as it ends any Unix
//! tool: quietly, by the signal SIGPIPE (141 in a shell). Results that cannot be written otherwise, for instance because
//! the disk is full, are an error: 1. Trainings end as if their output had been written: their results are in the run
//! folder, whose `experiment.log` notes the failure. A standard error that is closed or full changes nothing.

use std::{error::Error, io::Write};

use crate::{noteln, output::StdoutError, signals, text::printable_lines};

/// The exit code of a binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExitCode {
    /// Done: 0.
    Success,
    /// Failed: 1.
    Failure,
    /// The command line is wrong: 2, as clap has it.
    Usage,
    /// Some inputs failed, and the results of the others were given: 3.
    SomeInputsFailed,
    /// Stopped by Ctrl-C or a request to terminate: 130, as shells have it.
    Interrupted,
}

impl ExitCode {
    /// The number that the operating system gets.
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::SomeInputsFailed => 3,
            Self::Interrupted => 130,
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        code.code().into()
    }
}

impl std::process::Termination for ExitCode {
    fn report(self) -> std::process::ExitCode {
        self.into()
    }
}

/// A section for `--help` (`#[command(after_long_help = runtime::exit::HELP)]`).
pub const HELP: &str = "Exit codes: 0 done; 1 failed; 2 wrong command line; 3 some inputs failed, results for the \
                        others were given; 130 interrupted.";

/// Runs a binary: parses its command line and calls `main`. Prints an error as one line, `error: what: cause: cause`, on
/// standard error.
///
/// ```no_run
/// use runtime::{exit::{self, ExitCode}, outln};
///
/// #[derive(clap::Parser)]
/// struct Cli {
///     images: Vec<std::path::PathBuf>,
/// }
///
/// fn main() -> ExitCode {
///     exit::run(|cli: Cli| -> Result<ExitCode, Box<dyn std::error::Error + Send + Sync>> {
///         outln!("{} images", cli.images.len())?;
///         Ok(ExitCode::Success)
///     })
/// }
/// ```
pub fn run<C, E>(main: impl FnOnce(C) -> Result<ExitCode, E>) -> ExitCode
where
    C: clap::Parser,
    E: AsRef<dyn Error + Send + Sync>,
{
    signals::ignore_file_size_limit();
    limit_threads();
    let stderr = &mut std::io::stderr();
    match C::try_parse() {
        Ok(cli) => main(cli).unwrap_or_else(|error| report(error.as_ref(), stderr)),
        Err(message) => show(&message).unwrap_or_else(|error| report(&error, stderr)),
    }
}

/// Keeps a `RAYON_NUM_THREADS` that is far too large from slowing everything down: threads that outnumber the cores many
/// times mostly wait for each other.
fn limit_threads() {
    const MOST_PER_CORE: usize = 4;
    let most = MOST_PER_CORE * std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = std::env::var("RAYON_NUM_THREADS").ok().and_then(|threads| threads.parse::<usize>().ok());
    let Some(wanted) = wanted.filter(|&wanted| wanted > most) else { return };
    if rayon::ThreadPoolBuilder::new().num_threads(most).build_global().is_ok() {
        noteln!("warning: RAYON_NUM_THREADS={wanted}: {most} threads are used, {MOST_PER_CORE} per core at most");
    }
}

/// Prints the parser's output: help and versions are results, the rest is an error.
fn show(message: &clap::Error) -> Result<ExitCode, StdoutError> {
    let printed = message.print();
    if message.use_stderr() {
        return Ok(ExitCode::Usage);
    }
    printed.and_then(|()| std::io::stdout().flush()).map_err(StdoutError::from)?;
    Ok(ExitCode::Success)
}

/// Writes an error to `stderr` and returns its exit code.
fn report(error: &(dyn Error + 'static), stderr: &mut impl Write) -> ExitCode {
    let stdout = causes(error).find_map(|cause| cause.downcast_ref::<StdoutError>());
    if stdout.is_some_and(StdoutError::is_closed_pipe) {
        end_by_closed_pipe();
    }
    // Nobody is left to tell if this fails.
    let _ = writeln!(stderr, "error: {}", printable_lines(&chain(error)));
    ExitCode::Failure
}

/// Yields an error, its cause, the cause of that, and so on.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// Joins an error and its causes on one line. A cause that the error's own message contains is left out: some libraries
/// print their cause and return it as well.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in causes(error) {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Ends the process as a closed pipe ends other tools. Rust ignores SIGPIPE, so that a write to a pipe or a socket
/// whose reader is gone is an error; the signal is raised only here, when all other work is done.
fn end_by_closed_pipe() {
    #[cfg(unix)]
    // SAFETY: `signal` with SIG_DFL installs no handler of ours, and `raise` takes no pointer.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::raise(libc::SIGPIPE);
    }
}

#[cfg(test)]
mod tests {
    use std::{fmt, io};

    use super::*;

    #[derive(Debug)]
    struct Failed(&'static str, io::Error);

    impl fmt::Display for Failed {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Failed {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.1)
        }
    }

    #[test]
    fn an_error_is_printed_as_one_chain_and_ends_with_1() {
        let mut printed = Vec::new();
        let failed = Failed("cannot read a.pth", io::Error::other("No such file or directory"));
        assert_eq!(report(&failed, &mut printed), ExitCode::Failure);
        assert_eq!(String::from_utf8_lossy(&printed), "error: cannot read a.pth: No such file or directory\n");
    }

    #[test]
    fn a_cause_that_was_told_is_not_repeated() {
        let told = Failed("cannot read data: it is gone", io::Error::other("it is gone"));
        let error = Failed("no images", io::Error::other(told));
        assert_eq!(chain(&error), "no images: cannot read data: it is gone");
    }

    #[test]
    fn codes_are_those_that_help_texts_name() {
        use ExitCode::*;
        for code in [Success, Failure, Usage, SomeInputsFailed, Interrupted] {
            assert!(HELP.contains(&format!(" {} ", code.code())), "{code:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_closed_pipe_ends_the_program_by_its_signal_and_without_a_panic() {
        use std::io::{BufRead, BufReader, Read};
        use std::os::unix::process::ExitStatusExt;
        use std::process::{Command, Stdio};

        const CHILD: &str = "RUNTIME_TEST_CLOSED_PIPE";
        // The child prints for ever, which only the closed pipe can end.
        if std::env::var_os(CHILD).is_some() {
            let print = || -> Result<(), StdoutError> {
                crate::noteln!("ready");
                loop {
                    crate::outln!("a result")?;
                }
            };
            report(&print().unwrap_err(), &mut io::stderr());
        }
        let name = "exit::tests::a_closed_pipe_ends_the_program_by_its_signal_and_without_a_panic";
        let mut child = Command::new(std::env::current_exe().expect("the test's own file"))
            .args(["--exact", "--nocapture", name])
            .env(CHILD, "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the test runs itself");
        let mut stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut line = String::new();
        stderr.read_line(&mut line).expect("readable");
        assert_eq!(line, "ready\n");
        drop(child.stdout.take());
        let status = child.wait().expect("it ends");
        assert_eq!(status.signal(), Some(libc::SIGPIPE), "{status}");
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).expect("readable");
        assert_eq!(rest, "");
    }
}
