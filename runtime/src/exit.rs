//! Exit codes, and the frame around every binary's `main`.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed; standard error says why |
//! | 2 | the command line is wrong (clap's code) |
//! | 3 | some inputs failed; the results of the others were given |
//! | 101 | a bug: Hearth panicked |
//! | 130 | interrupted by Ctrl-C or a request to terminate; what was begun was saved where that makes sense |
//!
//! A reader that closes the pipe (`infer classify … | head -1`) ends a command at its next result, as it ends any Unix
//! tool: quietly, by the signal SIGPIPE (141 in a shell). Results that cannot be written otherwise, for instance because
//! the disk is full, are an error: 1. Trainings end as if their output had been written: their results are in the run
//! folder, whose `experiment.log` notes the failure. A standard error that is closed or full changes nothing.

use std::io::Write;

use crate::{output::StdoutError, signals, text::printable_lines};

/// How a binary ends.
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
///     exit::run(|cli: Cli| {
///         outln!("{} images", cli.images.len())?;
///         Ok(ExitCode::Success)
///     })
/// }
/// ```
pub fn run<C: clap::Parser>(main: impl FnOnce(C) -> anyhow::Result<ExitCode>) -> ExitCode {
    signals::ignore_file_size_limit();
    let result = match C::try_parse() {
        Ok(cli) => main(cli),
        Err(message) => show(&message),
    };
    report(result, &mut std::io::stderr())
}

/// Prints what the parser has to say: help and versions are results, the rest is an error.
fn show(message: &clap::Error) -> anyhow::Result<ExitCode> {
    let printed = message.print();
    if message.use_stderr() {
        return Ok(ExitCode::Usage);
    }
    printed.and_then(|()| std::io::stdout().flush()).map_err(StdoutError::from)?;
    Ok(ExitCode::Success)
}

/// The exit code of a result; an error goes to `stderr` first.
fn report(result: anyhow::Result<ExitCode>, stderr: &mut impl Write) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) => {
            let stdout = error.chain().find_map(|cause| cause.downcast_ref::<StdoutError>());
            if stdout.is_some_and(StdoutError::is_closed_pipe) {
                end_by_closed_pipe();
            }
            // Nobody is left to tell if this fails.
            let _ = writeln!(stderr, "error: {}", printable_lines(&chain(&error)));
            ExitCode::Failure
        }
    }
}

/// Joins an error and its causes on one line, without those that the error before them tells already: some libraries print their cause
/// and return it as well.
pub fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
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
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn an_error_is_printed_as_one_chain_and_ends_with_1() {
        let mut printed = Vec::new();
        let failed = Err(anyhow!("No such file or directory")).context("cannot read a.pth");
        assert_eq!(report(failed, &mut printed), ExitCode::Failure);
        assert_eq!(String::from_utf8_lossy(&printed), "error: cannot read a.pth: No such file or directory\n");
    }

    #[test]
    fn a_cause_that_was_told_is_not_repeated() {
        #[derive(Debug)]
        struct Telling(std::io::Error);
        impl std::fmt::Display for Telling {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "cannot read data: {}", self.0)
            }
        }
        impl std::error::Error for Telling {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        let error = anyhow::Error::new(Telling(std::io::Error::other("it is gone"))).context("no images");
        assert_eq!(chain(&error), "no images: cannot read data: it is gone");
    }

    #[test]
    fn a_code_is_passed_on_in_silence() {
        let mut printed = Vec::new();
        assert_eq!(report(Ok(ExitCode::SomeInputsFailed), &mut printed), ExitCode::SomeInputsFailed);
        assert_eq!(ExitCode::SomeInputsFailed.code(), 3);
        assert!(printed.is_empty());
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
            let result = || -> anyhow::Result<ExitCode> {
                crate::noteln!("ready");
                loop {
                    crate::outln!("a result")?;
                }
            };
            report(result(), &mut std::io::stderr());
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
