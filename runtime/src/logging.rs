//! The binaries' logger, on standard error, and the flags `-v` and `-q` that steer it.
//!
//! | flags | Hearth's own crates | everything else |
//! |---|---|---|
//! | `-qq` | nothing | nothing |
//! | `-q` | warnings | errors |
//! | none | info | errors |
//! | `-v` | debug | warnings |
//! | `-vv` | trace | info |
//! | `-vvv` | trace | trace |
//!
//! Results go to standard output and are no part of this. Progress bars step aside while a line is printed.

use std::io::Write;
use std::sync::OnceLock;

use log::{Level, LevelFilter, Log, Metadata, Record};

/// The flags `-v` and `-q`: put `#[command(flatten)] verbosity: Verbosity` into a binary's arguments.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Verbosity {
    /// Say more on standard error (repeat for still more)
    #[arg(short, long, action = clap::ArgAction::Count, global = true, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Say less on standard error: no progress, only warnings (twice: nothing)
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub quiet: u8,
}

impl Verbosity {
    /// Whether progress is unwanted.
    pub fn is_quiet(self) -> bool {
        self.quiet > 0
    }

    /// The levels for Hearth's crates and for all others.
    fn levels(self) -> (LevelFilter, LevelFilter) {
        match i32::from(self.verbose) - i32::from(self.quiet) {
            ..=-2 => (LevelFilter::Off, LevelFilter::Off),
            -1 => (LevelFilter::Warn, LevelFilter::Error),
            0 => (LevelFilter::Info, LevelFilter::Error),
            1 => (LevelFilter::Debug, LevelFilter::Warn),
            2 => (LevelFilter::Trace, LevelFilter::Info),
            3.. => (LevelFilter::Trace, LevelFilter::Trace),
        }
    }
}

/// The installed logger; `log` wants it to live for ever.
static LOGGER: OnceLock<StderrLogger> = OnceLock::new();

/// Installs the logger. A second call, or one after another logger was installed, changes nothing.
pub fn init(verbosity: Verbosity) {
    let (own, others) = verbosity.levels();
    let logger = LOGGER.get_or_init(|| StderrLogger { own, others });
    if log::set_logger(logger).is_ok() {
        log::set_max_level(own.max(others));
    }
}

/// One line a record.
struct StderrLogger {
    own: LevelFilter,
    others: LevelFilter,
}

/// The crates whose records count as Hearth's own.
const OWN_CRATES: [&str; 8] = ["models", "datasets", "runtime", "zoo", "report", "train", "infer", "serve"];

impl Log for StderrLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let crate_name = metadata.target().split("::").next().unwrap_or_default();
        let limit = if OWN_CRATES.contains(&crate_name) { self.own } else { self.others };
        metadata.level() <= limit
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // Where standard error is closed, a log line is not worth ending the run.
            crate::progress::suspend(|| {
                let _ = writeln!(std::io::stderr(), "{}", line(record));
            });
        }
    }

    fn flush(&self) {}
}

/// `text`, `warning: text`, or `debug (datasets::loader): text`.
fn line(record: &Record<'_>) -> String {
    match record.level() {
        Level::Error => format!("error: {}", record.args()),
        Level::Warn => format!("warning: {}", record.args()),
        Level::Info => record.args().to_string(),
        Level::Debug => format!("debug ({}): {}", record.target(), record.args()),
        Level::Trace => format!("trace ({}): {}", record.target(), record.args()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled(verbosity: Verbosity, target: &str, level: Level) -> bool {
        let (own, others) = verbosity.levels();
        StderrLogger { own, others }.enabled(&Metadata::builder().target(target).level(level).build())
    }

    #[test]
    fn our_crates_say_more_than_others() {
        let plain = Verbosity::default();
        assert!(enabled(plain, "train::recipe", Level::Info));
        assert!(!enabled(plain, "models::hub", Level::Debug));
        assert!(!enabled(plain, "wgpu_hal::vulkan", Level::Warn));
        assert!(!enabled(plain, "trainer", Level::Info), "a prefix is not a crate");
        let verbose = Verbosity { verbose: 1, quiet: 0 };
        assert!(enabled(verbose, "models::hub", Level::Debug));
        assert!(enabled(verbose, "wgpu_hal::vulkan", Level::Warn));
    }

    #[test]
    fn quiet_leaves_warnings_and_very_quiet_nothing() {
        let quiet = Verbosity { verbose: 0, quiet: 1 };
        assert!(quiet.is_quiet());
        assert!(enabled(quiet, "infer", Level::Warn) && !enabled(quiet, "infer", Level::Info));
        assert!(!enabled(Verbosity { verbose: 0, quiet: 2 }, "infer", Level::Error));
    }

    #[test]
    fn lines_name_the_level_and_where_it_matters_the_module() {
        let text = |level| {
            line(&Record::builder().level(level).target("models::hub").args(format_args!("resumed at 5")).build())
        };
        assert_eq!(text(Level::Info), "resumed at 5");
        assert_eq!(text(Level::Warn), "warning: resumed at 5");
        assert_eq!(text(Level::Debug), "debug (models::hub): resumed at 5");
    }
}
