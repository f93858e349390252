//! Progress of long operations, on standard error.
//!
//! On a terminal it is a bar with rate and time left; elsewhere (a file, a pipe, CI) a line every ten seconds.
//! Both end with one line that sums up.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    output::{BARS, Stderr},
    units::human_bytes,
};

/// The interval between lines where there is no terminal.
pub const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Lines over which the present rate is measured.
const RECENT_LINES: usize = 6;

/// The output of progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Output {
    /// A bar if standard error is a terminal, lines otherwise.
    #[default]
    Auto,
    /// Lines, whatever standard error is.
    Lines,
    /// Nothing.
    Quiet,
}

impl Output {
    /// [`Output::Quiet`] or [`Output::Auto`].
    pub fn from_quiet(quiet: bool) -> Self {
        if quiet { Self::Quiet } else { Self::Auto }
    }
}

/// The unit of progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things with a regular plural name: `Unit::Items("images")`.
    Items(&'static str),
    /// Bytes, printed as KiB, MiB, ….
    Bytes,
}

impl Unit {
    fn amount(self, n: u64) -> String {
        match self {
            Self::Items(name) if n == 1 => format!("1 {}", name.strip_suffix('s').unwrap_or(name)),
            Self::Items(name) => format!("{n} {name}"),
            Self::Bytes => human_bytes(n),
        }
    }

    /// `done` of `total`, the unit named once.
    fn fraction(self, done: u64, total: u64) -> String {
        match self {
            Self::Items(name) => format!("{done}/{total} {name}"),
            Self::Bytes => format!("{} of {}", human_bytes(done), human_bytes(total)),
        }
    }

    fn rate(self, per_second: f64) -> String {
        match self {
            Self::Items(name) if per_second < 10.0 => format!("{per_second:.1} {name}/s"),
            Self::Items(name) => format!("{per_second:.0} {name}/s"),
            // A rate of bytes is never near 2^53.
            Self::Bytes => format!("{}/s", human_bytes(per_second as u64)),
        }
    }
}

/// The progress of an operation. It can be shared between threads.
///
/// ```
/// use runtime::progress::{Output, Progress, Unit};
///
/// let progress = Progress::new("scan", Unit::Items("images"), Some(3), Output::Quiet);
/// for _ in 0..3 {
///     progress.inc(1);
/// }
/// progress.finish();
/// ```
pub struct Progress {
    label: String,
    unit: Unit,
    state: Mutex<State>,
    view: View,
}

/// The count so far.
struct State {
    done: u64,
    /// The initial count: bytes that a resumed download already had are excluded from the rate.
    initial: u64,
    total: Option<u64>,
    started: Instant,
    last_line: Instant,
    /// When the last lines were printed, and what was done then: the present rate is since the first of them, so that a
    /// slow start (on a GPU, kernels that are compiled and tuned) does not count for long.
    lines: VecDeque<(Instant, u64)>,
}

/// The presentation.
enum View {
    Bar(ProgressBar),
    Lines { interval: Duration, writer: Mutex<Box<dyn Write + Send>> },
    Hidden,
}

/// Whether the environment says that the terminal only shows lines of text: `TERM=dumb`, as editors and logs have it.
pub fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

impl Progress {
    /// Starts to count from 0 to `total`, if that is known. `label` names the operation: `scan`, `download`.
    pub fn new(label: impl Into<String>, unit: Unit, total: Option<u64>, output: Output) -> Self {
        let view = match output {
            Output::Quiet => View::Hidden,
            Output::Auto if std::io::stderr().is_terminal() && !is_dumb() => View::Bar(BARS.add(bar(unit, total))),
            Output::Auto | Output::Lines => {
                View::Lines { interval: LINE_INTERVAL, writer: Mutex::new(Box::new(Stderr)) }
            }
        };
        Self::with_view(label.into(), unit, total, view)
    }

    fn with_view(label: String, unit: Unit, total: Option<u64>, view: View) -> Self {
        if let View::Bar(bar) = &view {
            bar.set_prefix(label.clone());
        }
        let now = Instant::now();
        let state =
            Mutex::new(State { done: 0, initial: 0, total, started: now, last_line: now, lines: VecDeque::new() });
        Self { label, unit, state, view }
    }

    /// Adds `n`.
    pub fn inc(&self, n: u64) {
        self.update(|state| state.done += n);
    }

    /// Sets the number done.
    pub fn set_done(&self, done: u64) {
        self.update(|state| state.done = done);
    }

    /// Sets the number done before the work began (a resumed download), which does not count for the rate.
    pub fn set_initial(&self, done: u64) {
        self.update(|state| {
            state.done = done;
            state.initial = done;
            state.started = Instant::now();
            state.lines.clear();
        });
        if let View::Bar(bar) = &self.view {
            bar.reset_eta();
        }
    }

    /// Sets the total.
    pub fn set_total(&self, total: Option<u64>) {
        self.update(|state| state.total = total);
    }

    /// Ends with a line that sums up: `scan: 5000 images in 16 s, 312 images/s`. Without this call (an error came)
    /// the bar vanishes and nothing more is printed.
    pub fn finish(self) {
        let line = self.summary(Instant::now());
        match &self.view {
            View::Bar(bar) => {
                bar.finish_and_clear();
                crate::noteln!("{line}");
            }
            View::Lines { writer, .. } => print(writer, &line),
            View::Hidden => {}
        }
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        match &self.view {
            View::Bar(bar) => {
                if bar.length() != state.total {
                    match state.total {
                        Some(total) => bar.set_length(total),
                        None => bar.unset_length(),
                    }
                    bar.set_style(style(self.unit, state.total.is_some()));
                }
                bar.set_position(state.done);
            }
            View::Lines { interval, writer } => {
                let now = Instant::now();
                if now.duration_since(state.last_line) >= *interval {
                    state.last_line = now;
                    if state.lines.len() == RECENT_LINES {
                        state.lines.pop_front();
                    }
                    let done = state.done;
                    state.lines.push_back((now, done));
                    print(writer, &line(&self.label, self.unit, &state, now));
                }
            }
            View::Hidden => {}
        }
    }

    fn summary(&self, now: Instant) -> String {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = now.duration_since(state.started);
        let mut line = format!("{}: {} in {}", self.label, self.unit.amount(state.done), human_duration(elapsed));
        if let Some(rate) = rate_since((state.started, state.initial), state.done, now) {
            line += &format!(", {}", self.unit.rate(rate));
        }
        line
    }
}

/// The progress of a download, shown from the first report on.
pub struct Download {
    output: Output,
    shown: Option<Progress>,
}

impl Download {
    /// Creates the progress of a download that has not begun.
    pub fn new(output: Output) -> Self {
        Self { output, shown: None }
    }

    /// Shows that `done` of `total` bytes of `file` are on disk; `resumed` of them came from an earlier download.
    pub fn report(&mut self, file: &str, done: u64, total: Option<u64>, resumed: u64) {
        let bar = self.shown.get_or_insert_with(|| {
            let bar = Progress::new(format!("download {file}"), Unit::Bytes, total, self.output);
            bar.set_initial(resumed);
            bar
        });
        bar.set_total(total);
        bar.set_done(done);
    }

    /// Ends with a summary, as [`Progress::finish`] does, if there was a download.
    pub fn finish(self) {
        if let Some(bar) = self.shown {
            bar.finish();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let View::Bar(bar) = &self.view {
            bar.finish_and_clear();
        }
    }
}

impl State {
    /// Returns the recent rate; the mean rate if nothing was done recently.
    fn rate(&self, now: Instant) -> Option<f64> {
        let start = (self.started, self.initial);
        let recent = if self.lines.len() == RECENT_LINES { self.lines.front() } else { None };
        recent.and_then(|&recent| rate_since(recent, self.done, now)).or_else(|| rate_since(start, self.done, now))
    }
}

/// Things per second since a moment when `before` were done, if any was and any time has passed.
fn rate_since((moment, before): (Instant, u64), done: u64, now: Instant) -> Option<f64> {
    let seconds = now.duration_since(moment).as_secs_f64();
    (seconds > 0.0 && done > before).then(|| (done - before) as f64 / seconds)
}

/// `scan: 1200/5000 images (24 %), 310 images/s, 12 s left`
fn line(label: &str, unit: Unit, state: &State, now: Instant) -> String {
    let mut line = match state.total {
        Some(total) if total > 0 => {
            let percent = 100.0 * state.done as f64 / total as f64;
            format!("{label}: {} ({percent:.0} %)", unit.fraction(state.done, total))
        }
        _ => format!("{label}: {}", unit.amount(state.done)),
    };
    if let Some(rate) = state.rate(now) {
        line += &format!(", {}", unit.rate(rate));
        let left = state.total.map_or(0, |total| total.saturating_sub(state.done));
        if left > 0 {
            line += &format!(", {} left", human_duration(Duration::from_secs_f64(left as f64 / rate)));
        }
    }
    line
}

fn print(writer: &Mutex<Box<dyn Write + Send>>, line: &str) {
    let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
    // One write, so that lines of several processes do not mix; a failure is no reason to stop the work.
    let _ = writer.write_all(format!("{line}\n").as_bytes());
}

fn bar(unit: Unit, total: Option<u64>) -> ProgressBar {
    let bar = match total {
        Some(total) => ProgressBar::new(total),
        None => ProgressBar::no_length(),
    };
    bar.with_style(style(unit, total.is_some()))
}

fn style(unit: Unit, has_total: bool) -> ProgressStyle {
    // The name of a unit could hold a brace; the bar is then a plain one.
    ProgressStyle::with_template(&template(unit, has_total)).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn template(unit: Unit, has_total: bool) -> String {
    match (unit, has_total) {
        (Unit::Items(name), true) => {
            format!("{{prefix}} {{wide_bar}} {{pos}}/{{len}} {name}, {{per_sec}}, {{eta}} left")
        }
        (Unit::Items(name), false) => format!("{{prefix}} {{spinner}} {{pos}} {name}, {{per_sec}}"),
        (Unit::Bytes, true) => "{prefix} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left".to_string(),
        (Unit::Bytes, false) => "{prefix} {spinner} {bytes}, {bytes_per_sec}".to_string(),
    }
}

/// Formats a duration in its two largest units: `0.4 s`, `12 s`, `3 min 05 s`, `1 h 02 min`, `2 d 07 h`.
///
/// ```
/// use std::time::Duration;
/// assert_eq!(runtime::progress::human_duration(Duration::from_secs(185)), "3 min 05 s");
/// ```
pub fn human_duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match whole {
        ..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
        86_400.. => format!("{} d {:02} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// Formats a count with thousands separators: `1,281,167`.
pub fn thousands(count: u64) -> String {
    indicatif::HumanCount(count).to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// A writer whose text can be read afterwards.
    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Captured {
        fn lines(&self) -> Vec<String> {
            let bytes = self.0.lock().expect("not poisoned");
            String::from_utf8_lossy(&bytes).lines().map(str::to_string).collect()
        }
    }

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn lines_every(interval: Duration, total: Option<u64>) -> (Progress, Captured) {
        let captured = Captured::default();
        let view = View::Lines { interval, writer: Mutex::new(Box::new(captured.clone())) };
        (Progress::with_view("scan".into(), Unit::Items("images"), total, view), captured)
    }

    fn state_after(seconds: u64, done: u64, total: Option<u64>) -> (State, Instant) {
        let started = Instant::now();
        (
            State { done, initial: 0, total, started, last_line: started, lines: VecDeque::new() },
            started + Duration::from_secs(seconds),
        )
    }

    #[test]
    fn long_numbers_are_grouped() {
        assert_eq!([0, 999, 1000, 25_557_032].map(thousands), ["0", "999", "1,000", "25,557,032"]);
    }

    #[test]
    fn a_line_has_share_rate_and_time_left() {
        let (state, now) = state_after(4, 1200, Some(5000));
        let text = line("scan", Unit::Items("images"), &state, now);
        assert_eq!(text, "scan: 1200/5000 images (24 %), 300 images/s, 13 s left");
        let (state, now) = state_after(2, 3 << 20, Some(12 << 20));
        let text = line("download", Unit::Bytes, &state, now);
        assert_eq!(text, "download: 3.00 MiB of 12.00 MiB (25 %), 1.50 MiB/s, 6.0 s left");
        let (state, now) = state_after(2, 3, None);
        assert_eq!(line("scan", Unit::Items("images"), &state, now), "scan: 3 images, 1.5 images/s");
        assert_eq!(Unit::Items("images").amount(1), "1 image");
    }

    #[test]
    fn bytes_that_were_there_before_do_not_count_for_the_rate() {
        let (mut state, now) = state_after(10, 1500, Some(2000));
        state.initial = 1000;
        assert_eq!(state.rate(now), Some(50.0));
    }

    #[test]
    fn the_time_left_follows_the_present_rate() {
        let (mut state, started) = state_after(0, 0, Some(1000));
        // The first image took a minute; ten a second followed.
        state.lines = (0..RECENT_LINES as u64)
            .map(|line| (started + Duration::from_secs(60 + 10 * line), 1 + 100 * line))
            .collect();
        state.done = 601;
        let text = line("evaluate", Unit::Items("images"), &state, started + Duration::from_secs(120));
        assert_eq!(text, "evaluate: 601/1000 images (60 %), 10 images/s, 40 s left");
    }

    #[test]
    fn lines_keep_their_interval_and_the_end_sums_up() {
        let (progress, captured) = lines_every(Duration::from_secs(3600), Some(100));
        (0..100).for_each(|_| progress.inc(1));
        assert!(captured.lines().is_empty(), "the interval is not over");
        progress.finish();
        let lines = captured.lines();
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("scan: 100 images in "), "{lines:?}");

        let (progress, captured) = lines_every(Duration::ZERO, None);
        progress.inc(2);
        progress.set_total(Some(8));
        assert_eq!(captured.lines().len(), 2);
        assert!(captured.lines()[1].starts_with("scan: 2/8 images (25 %)"), "{:?}", captured.lines());
    }

    #[test]
    fn work_that_is_dropped_says_nothing() {
        let (progress, captured) = lines_every(Duration::from_secs(3600), Some(100));
        progress.inc(5);
        drop(progress);
        assert!(captured.lines().is_empty());
    }

    #[test]
    fn every_template_of_a_bar_is_valid() {
        for unit in [Unit::Items("images"), Unit::Bytes] {
            for total in [Some(10), None] {
                assert!(ProgressStyle::with_template(&template(unit, total.is_some())).is_ok());
                let hidden = bar(unit, total);
                hidden.set_draw_target(indicatif::ProgressDrawTarget::hidden());
                let progress = Progress::with_view("scan".into(), unit, total, View::Bar(hidden.clone()));
                progress.inc(4);
                progress.set_total(Some(20));
                assert_eq!((hidden.position(), hidden.length()), (4, Some(20)));
                progress.finish();
            }
        }
    }

    #[test]
    fn durations_read_well() {
        let text = |seconds: f64| human_duration(Duration::from_secs_f64(seconds));
        let expected = [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3725.0, "1 h 02 min")];
        assert_eq!(text(200_000.0), "2 d 07 h");
        for (seconds, words) in expected {
            assert_eq!(text(seconds), words);
        }
    }
}
