//! Progress on standard error: lines of text or of JSON.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use runtime::{noteln, progress::human_duration};
use serde_json::json;
use train::observer::{EpochReport, Observer, StepReport};

/// The time between lines within an epoch.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// The format of progress on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lines {
    /// Nothing.
    Silent,
    /// Warnings only.
    Quiet,
    Text,
    /// One JSON object per line.
    Json,
}

/// Prints the reports of a run.
pub struct Printer {
    lines: Lines,
    last_line: Mutex<Instant>,
}

impl Printer {
    pub fn new(lines: Lines) -> Self {
        Self { lines, last_line: Mutex::new(Instant::now()) }
    }

    fn step_line(&self, step: &StepReport) {
        let StepReport { epoch, epochs, step_in_epoch, steps_per_epoch, loss, top1, .. } = *step;
        let (rate, speed) = (step.learning_rate, step.images_per_second);
        match self.lines {
            Lines::Quiet | Lines::Silent => {}
            Lines::Text => noteln!(
                "epoch {epoch}/{epochs}  step {step_in_epoch}/{steps_per_epoch}  loss {loss:.4}  top-1 {top1:6.2} %  \
                 rate {rate:.3e}  {speed:.0} images/s{}",
                step.time_left.map_or(String::new(), |left| format!("  {} left", human_duration(left))),
            ),
            Lines::Json => noteln!(
                "{}",
                json!({
                    "event": "step", "epoch": epoch, "step": step.step, "loss": loss, "top1": top1,
                    "learning_rate": rate, "images_per_second": speed,
                    "seconds_left": step.time_left.map(|left| left.as_secs_f64()),
                })
            ),
        }
    }
}

impl Observer for Printer {
    fn on_note(&self, text: &str) {
        match self.lines {
            Lines::Quiet | Lines::Silent => {}
            Lines::Text => noteln!("{text}"),
            Lines::Json => noteln!("{}", json!({ "event": "note", "text": text })),
        }
    }

    fn on_warning(&self, text: &str) {
        match self.lines {
            Lines::Silent => {}
            Lines::Json => noteln!("{}", json!({ "event": "warning", "text": text })),
            _ => noteln!("warning: {text}"),
        }
    }

    fn on_step(&self, step: &StepReport) {
        let mut last_line = self.last_line.lock().unwrap_or_else(PoisonError::into_inner);
        if last_line.elapsed() >= LINE_INTERVAL {
            *last_line = Instant::now();
            self.step_line(step);
        }
    }

    fn on_epoch(&self, epoch: &EpochReport<'_>) {
        *self.last_line.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let EpochReport { record, epochs, time_left } = *epoch;
        let times = &record.times;
        let advice = times.advice();
        match self.lines {
            Lines::Quiet | Lines::Silent => {}
            Lines::Text if record.epoch == 0 => {
                noteln!(
                    "epoch {:>width$}/{epochs}  before the first step  valid loss {:.4}  valid top-1 {:6.2} %",
                    0,
                    record.valid.loss,
                    record.valid.top1,
                    width = epochs.to_string().len()
                );
            }
            Lines::Text => {
                let width = epochs.to_string().len();
                let average = record.average.map_or(String::new(), |a| format!("  average's {:.2} %", a.top1));
                let left = time_left.map_or(String::new(), |left| format!("  {} left", human_duration(left)));
                noteln!(
                    "epoch {:>width$}/{epochs}  loss {:.4}  top-1 {:6.2} %  valid loss {:.4}  valid top-1 {:6.2} \
                     %{average}  {:.0} images/s{left}",
                    record.epoch,
                    record.train.loss,
                    record.train.top1,
                    record.valid.loss,
                    record.valid.top1,
                    record.images_per_second,
                );
                // The times of an epoch of a few seconds are of no use.
                if times.total() > 5.0 {
                    noteln!("      time: {}", times.verdict());
                }
                if times.bad_samples > 0 {
                    noteln!("      {} images could not be read or decoded (bad_samples.csv)", times.bad_samples);
                }
                if times.skipped_steps > 0 {
                    noteln!("      {} steps were skipped: loss or gradient not finite", times.skipped_steps);
                }
                if let Some(advice) = advice {
                    noteln!("      {advice}");
                }
            }
            Lines::Json => noteln!(
                "{}",
                json!({
                    "event": "epoch", "epoch": record.epoch, "step": record.step,
                    "train": (record.epoch > 0).then_some(record.train),
                    "valid": record.valid, "average": record.average, "learning_rate": record.learning_rate,
                    "images_per_second": record.images_per_second, "times": times, "advice": advice,
                    "seconds_left": time_left.map(|left| left.as_secs_f64()),
                })
            ),
        }
    }
}
