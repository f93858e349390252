//! The binaries' logger on standard error, controlled by `-v`, `-q`, `--log-format` and `RUST_LOG`.
//!
//! | flags | Hearth's crates | other crates |
//! |---|---|---|
//! | `-qq` | off | off |
//! | `-q` | warn | error |
//! | none | info | error |
//! | `-v` | debug | warn |
//! | `-vv` | trace | info |
//! | `-vvv` | trace | trace |
//!
//! `RUST_LOG`, if set, replaces this table: `RUST_LOG=debug`, `RUST_LOG=warn,datasets=trace`.
//!
//! Results go to standard output and are not logged. Progress bars are hidden while a line is printed.
//!
//! A [`LogFile`] of a run receives a copy of the records while it is open: those of Hearth's crates from `info` on and of
//! other crates from `warn` on, regardless of the flags.

use std::{sync::OnceLock, time::SystemTime};

use env_filter::Filter;
use log::{
    Level, LevelFilter, Log, Metadata, Record,
    kv::{self, VisitSource},
};

pub use crate::log_file::{LogFile, OpenLogFile};
use crate::{
    Error, Result,
    log_file::{self, time},
    output,
    text::printable_lines,
};

/// The flags `-v` and `-q`; flatten it into the arguments of a binary.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Verbosity {
    /// Log more on standard error (repeat for more; RUST_LOG overrides)
    #[arg(short, long, action = clap::ArgAction::Count, global = true, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Log less on standard error: no progress, only warnings (twice: nothing)
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub quiet: u8,
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// Plain lines for a terminal
    #[default]
    Plain,
    /// Lines with a time stamp and a level
    Text,
    /// One JSON object per line
    Json,
}

impl Verbosity {
    /// Returns whether progress is hidden.
    pub fn is_quiet(self) -> bool {
        self.quiet > 0
    }

    /// Returns whether nothing is logged.
    pub fn is_silent(self) -> bool {
        self.quiet > 1
    }

    /// Returns the same without progress and notes.
    pub fn at_most_warnings(self) -> Self {
        Self { verbose: 0, quiet: self.quiet.max(1) }
    }

    /// Returns the levels of Hearth's crates and of all others.
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

/// The installed logger, which `log` requires to be `'static`.
static LOGGER: OnceLock<StderrLogger> = OnceLock::new();

/// The target of records that a run's logger writes to its [`LogFile`] and reports to its observer itself. They are for
/// loggers of other programs; this one leaves them out.
pub const RUN_LOG_TARGET: &str = "train::run::logger";

/// Installs the logger, and a panic hook that writes panics to the open [`LogFile`]s. Has no effect if a logger is
/// installed already.
///
/// # Errors
/// Fails if `RUST_LOG` cannot be parsed.
pub fn init(verbosity: Verbosity, format: LogFormat) -> Result<()> {
    let spec = std::env::var("RUST_LOG").ok().filter(|spec| !spec.trim().is_empty());
    let levels = Levels::new(verbosity, spec.as_deref())?;
    let logger = LOGGER.get_or_init(|| StderrLogger { levels, format });
    if log::set_logger(logger).is_ok() {
        log_file::set_max_level(logger.levels.max());
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let text = panic.to_string();
            log_file::write(Level::Error, "panic", &text);
            output::push_if_held(&format!("{text}\n"));
            hook(panic);
        }));
    }
    Ok(())
}

/// The crates of Hearth.
const OWN_CRATES: [&str; 10] =
    ["hearth", "kernels", "models", "hub", "datasets", "runtime", "report", "train", "infer", "serve"];

/// Decides which records are logged.
enum Levels {
    /// The table of flags.
    Flags { own: LevelFilter, others: LevelFilter },
    /// `RUST_LOG`.
    Variable(Filter),
}

impl Levels {
    fn new(verbosity: Verbosity, variable: Option<&str>) -> Result<Self> {
        let Some(spec) = variable else {
            let (own, others) = verbosity.levels();
            return Ok(Self::Flags { own, others });
        };
        let mut builder = env_filter::Builder::new();
        builder.try_parse(spec).map_err(|error| {
            let text =
                format!("the environment variable RUST_LOG is `{spec}`: {error}; an example is `warn,train=debug`");
            Error::Setting(text)
        })?;
        Ok(Self::Variable(builder.build()))
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        match self {
            Self::Flags { own, others } => {
                let crate_name = metadata.target().split("::").next().unwrap_or_default();
                metadata.level() <= if OWN_CRATES.contains(&crate_name) { *own } else { *others }
            }
            Self::Variable(filter) => filter.enabled(metadata),
        }
    }

    fn max(&self) -> LevelFilter {
        match self {
            Self::Flags { own, others } => *own.max(others),
            Self::Variable(filter) => filter.filter(),
        }
    }
}

struct StderrLogger {
    levels: Levels,
    format: LogFormat,
}

impl Log for StderrLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.levels.enabled(metadata) || (is_for_files(metadata) && log_file::any_is_open())
    }

    fn log(&self, record: &Record<'_>) {
        let metadata = record.metadata();
        if metadata.target() == RUN_LOG_TARGET {
            return;
        }
        if self.levels.enabled(metadata) {
            crate::noteln!("{}", line(record, self.format, SystemTime::now()));
        }
        if is_for_files(metadata) {
            log_file::append(&line(record, LogFormat::Text, SystemTime::now()));
        }
    }

    fn flush(&self) {}
}

/// Whether log files receive a record.
fn is_for_files(metadata: &Metadata<'_>) -> bool {
    let crate_name = metadata.target().split("::").next().unwrap_or_default();
    // Burn's dashboard warns at each event if its terminal is gone.
    let is_flood = metadata.target().starts_with("burn_train::renderer");
    let least = if OWN_CRATES.contains(&crate_name) { Level::Info } else { Level::Warn };
    metadata.level() <= least && !is_flood
}

/// Collects the key-value pairs of a record.
struct Pairs(Vec<(String, serde_json::Value)>);

impl<'kvs> VisitSource<'kvs> for Pairs {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        let value = value
            .to_u64()
            .map(Into::into)
            .or_else(|| value.to_f64().map(Into::into))
            .unwrap_or_else(|| serde_json::Value::String(value.to_string()));
        self.0.push((key.as_str().to_string(), value));
        Ok(())
    }
}

/// Formats a record, in [`LogFormat::Plain`] as `text`, `warning: text`, or `debug (datasets::loader): text`.
fn line(record: &Record<'_>, format: LogFormat, now: SystemTime) -> String {
    let mut pairs = Pairs(Vec::new());
    // `visit_pair` never fails.
    let _ = record.key_values().visit(&mut pairs);
    if format == LogFormat::Json {
        let mut object = serde_json::Map::new();
        object.insert("time".into(), time(now).into());
        object.insert("level".into(), record.level().as_str().to_lowercase().into());
        object.insert("target".into(), record.target().into());
        object.insert("message".into(), record.args().to_string().into());
        // The fields above cannot be replaced.
        pairs.0.into_iter().for_each(|(key, value)| {
            object.entry(key).or_insert(value);
        });
        return serde_json::Value::Object(object).to_string();
    }
    let mut text = printable_lines(&record.args().to_string()).into_owned();
    for (key, value) in pairs.0 {
        let value = match value {
            serde_json::Value::String(value) => quoted(&value),
            value => value.to_string(),
        };
        text += &format!("{}{key}={value}", if text.is_empty() { "" } else { " " });
    }
    match (format, record.level()) {
        (LogFormat::Text, level) => format!("{} {level:<5} {}: {text}", time(now), record.target()),
        (_, Level::Error) => format!("error: {text}"),
        (_, Level::Warn) => format!("warning: {text}"),
        (_, Level::Info) => text,
        (_, Level::Debug) => format!("debug ({}): {text}", record.target()),
        (_, Level::Trace) => format!("trace ({}): {text}", record.target()),
    }
}

/// Quotes a value of a log line unless it is plain.
fn quoted(value: &str) -> String {
    let plain = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'='));
    if plain { value.to_string() } else { format!("{value:?}") }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_log_file_receives_records_of_a_run_whatever_the_flags_say() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("experiment.log");
        let logger = StderrLogger {
            levels: Levels::new(Verbosity { verbose: 0, quiet: 2 }, None).unwrap(),
            format: LogFormat::Plain,
        };
        let log = |level, target: &str, text: &str| {
            let args = format_args!("{text}");
            logger.log(&Record::builder().level(level).target(target).args(args).build());
        };
        for name in ["first", "second"] {
            let file = LogFile::open(&path).unwrap();
            assert!(logger.enabled(&Metadata::builder().target("hub::card").level(Level::Info).build()));
            file.write(Level::Info, RUN_LOG_TARGET, name);
            log(Level::Warn, "hub::card", "no card");
            log(Level::Debug, "hub::card", "too detailed");
            log(Level::Info, "wgpu_hal::vulkan", "of another crate");
            log(Level::Info, RUN_LOG_TARGET, "written by the run's logger already");
        }
        log(Level::Warn, "hub::card", "after the run");
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().map(|line| line.split_once("Z ").unwrap().1).collect();
        let expected = ["INFO  train::run::logger: first", "WARN  hub::card: no card"];
        assert_eq!(lines, [&expected[..], &["INFO  train::run::logger: second", expected[1]]].concat());
    }

    fn enabled(verbosity: Verbosity, spec: Option<&str>, target: &str, level: Level) -> bool {
        let metadata = Metadata::builder().target(target).level(level).build();
        Levels::new(verbosity, spec).unwrap().enabled(&metadata)
    }

    #[test]
    fn own_crates_log_more_than_others() {
        let plain = Verbosity::default();
        assert!(enabled(plain, None, "train::recipe", Level::Info));
        assert!(!enabled(plain, None, "models::graph", Level::Debug));
        assert!(!enabled(plain, None, "wgpu_hal::vulkan", Level::Warn));
        assert!(!enabled(plain, None, "trainer", Level::Info), "a prefix is not a crate");
        let verbose = Verbosity { verbose: 1, quiet: 0 };
        assert!(enabled(verbose, None, "models::graph", Level::Debug));
        assert!(enabled(verbose, None, "wgpu_hal::vulkan", Level::Warn));
    }

    #[test]
    fn quiet_keeps_warnings_and_very_quiet_nothing() {
        let quiet = Verbosity { verbose: 0, quiet: 1 };
        assert!(quiet.is_quiet());
        assert!(enabled(quiet, None, "infer", Level::Warn) && !enabled(quiet, None, "infer", Level::Info));
        assert!(!enabled(Verbosity { verbose: 0, quiet: 2 }, None, "infer", Level::Error));
    }

    #[test]
    fn rust_log_replaces_the_flags() {
        let quiet = Verbosity { verbose: 0, quiet: 2 };
        assert!(enabled(quiet, Some("warn,datasets=trace"), "datasets::loader", Level::Trace));
        assert!(!enabled(quiet, Some("warn,datasets=trace"), "train", Level::Info));
        let error = Levels::new(quiet, Some("train=loud")).map(drop).unwrap_err().to_string();
        assert!(error.contains("RUST_LOG") && error.contains("train=loud"), "{error}");
    }

    #[test]
    fn plain_lines_name_the_level_and_where_it_matters_the_module() {
        let text = |level| {
            let args = format_args!("resumed at 5");
            line(
                &Record::builder().level(level).target("hub::download").args(args).build(),
                LogFormat::Plain,
                SystemTime::UNIX_EPOCH,
            )
        };
        assert_eq!(text(Level::Info), "resumed at 5");
        assert_eq!(text(Level::Warn), "warning: resumed at 5");
        assert_eq!(text(Level::Debug), "debug (hub::download): resumed at 5");
    }

    #[test]
    fn text_and_json_lines_have_a_time_and_the_pairs() {
        let pairs = [("path", kv::Value::from("/a b\n")), ("status", kv::Value::from(200u64))];
        let now = SystemTime::UNIX_EPOCH + Duration::from_micros(1_500_250_000);
        let text = |format| {
            let args = format_args!("request");
            let mut record = Record::builder();
            line(&record.level(Level::Info).target("serve").args(args).key_values(&pairs).build(), format, now)
        };
        assert_eq!(text(LogFormat::Text), r#"1970-01-01T00:25:00.250Z INFO  serve: request path="/a b\n" status=200"#);
        let json: serde_json::Value = serde_json::from_str(&text(LogFormat::Json)).unwrap();
        let expected = serde_json::json!({
            "time": "1970-01-01T00:25:00.250Z", "level": "info", "target": "serve",
            "message": "request", "path": "/a b\n", "status": 200
        });
        assert_eq!(json, expected);
    }
}
