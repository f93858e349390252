//! The metrics of a run: kept for Burn's checkpointing, written to `metrics.csv`, told on standard error.

use std::{
    collections::{BTreeMap, HashMap},
    fs::OpenOptions,
    io::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

use burn_train::{
    logger::MetricLogger,
    metric::{
        MetricDefinition, MetricId, NumericEntry,
        store::{EpochSummary, MetricsUpdate, Split},
    },
};
use runtime::progress::human_duration;

/// The names under which Burn's metrics are logged.
pub const LOSS: &str = "Loss";
pub const ACCURACY: &str = "Accuracy";
pub const LEARNING_RATE: &str = "Learning Rate";

/// Collects what the Learner measures.
pub struct History {
    csv: PathBuf,
    epochs: usize,
    images: usize,
    /// Whether a line an epoch is printed.
    lines: bool,
    started: Instant,
    epoch_started: Instant,
    training: Duration,
    names: HashMap<MetricId, String>,
    /// By metric, split and epoch.
    entries: BTreeMap<(String, String, usize), Vec<NumericEntry>>,
    /// The mean over the epoch so far, likewise.
    means: BTreeMap<(String, String, usize), f64>,
}

impl History {
    /// For a run of so many epochs over so many training images.
    pub fn new(csv: PathBuf, epochs: usize, images: usize, lines: bool) -> Self {
        let now = Instant::now();
        Self {
            csv,
            epochs,
            images,
            lines,
            started: now,
            epoch_started: now,
            training: Duration::ZERO,
            names: HashMap::new(),
            entries: BTreeMap::new(),
            means: BTreeMap::new(),
        }
    }

    fn mean(&self, name: &str, split: &Split, epoch: usize) -> Option<f64> {
        self.means.get(&(name.to_string(), split.to_string(), epoch)).copied()
    }

    /// One row of `metrics.csv` and one line of progress.
    fn end_epoch(&mut self, epoch: usize) -> std::io::Result<()> {
        let value = |name: &str, split: Split| self.mean(name, &split, epoch).unwrap_or(f64::NAN);
        let (train_loss, train_accuracy) = (value(LOSS, Split::Train), value(ACCURACY, Split::Train));
        let (valid_loss, valid_accuracy) = (value(LOSS, Split::Valid), value(ACCURACY, Split::Valid));
        let entries = self.entries.get(&(LEARNING_RATE.to_string(), Split::Train.to_string(), epoch));
        // The epoch's own entry is a mean; the rate told is that of the last step.
        let of_a_step = |entry: &&NumericEntry| !matches!(entry, NumericEntry::Final(_));
        let rate = entries.and_then(|entries| entries.iter().rev().find(of_a_step));
        let rate = rate.map_or(f64::NAN, NumericEntry::current);
        let images_per_second = self.images as f64 / self.training.as_secs_f64();
        let seconds = self.epoch_started.elapsed().as_secs_f64();

        let new = !self.csv.exists();
        let mut csv = OpenOptions::new().create(true).append(true).open(&self.csv)?;
        if new {
            writeln!(csv, "epoch,learning_rate,train_loss,train_top1,valid_loss,valid_top1,images_per_second,seconds")?;
        }
        writeln!(
            csv,
            "{epoch},{rate:.6},{train_loss:.5},{train_accuracy:.3},{valid_loss:.5},{valid_accuracy:.3},\
             {images_per_second:.1},{seconds:.2}"
        )?;

        if self.lines {
            let left =
                self.started.elapsed().div_f64(epoch as f64).mul_f64((self.epochs - epoch.min(self.epochs)) as f64);
            let width = self.epochs.to_string().len();
            eprintln!(
                "epoch {epoch:>width$}/{}  loss {train_loss:.4}  top-1 {train_accuracy:6.2} %  valid loss \
                 {valid_loss:.4}  valid top-1 {valid_accuracy:6.2} %  {images_per_second:5.0} images/s  {} left",
                self.epochs,
                human_duration(left),
            );
        }
        Ok(())
    }
}

impl MetricLogger for History {
    fn log(&mut self, update: MetricsUpdate, epoch: usize, split: &Split) {
        for numeric in update.entries_numeric {
            let Some(name) = self.names.get(&numeric.entry.metric_id) else { continue };
            let key = (name.clone(), split.to_string(), epoch);
            if let Some(running) = &numeric.running_entry {
                self.means.insert(key.clone(), running.current());
            }
            if let Some(entry) = numeric.numeric_entry {
                self.entries.entry(key).or_default().push(entry);
            }
        }
    }

    fn read_numeric(&mut self, name: &str, epoch: usize, split: &Split) -> Result<Vec<NumericEntry>, String> {
        Ok(self.entries.get(&(name.to_string(), split.to_string(), epoch)).cloned().unwrap_or_default())
    }

    fn log_metric_definition(&mut self, definition: MetricDefinition) {
        self.names.insert(definition.metric_id.clone(), definition.name.to_string());
    }

    fn log_epoch_summary(&mut self, summary: EpochSummary) {
        match summary.split {
            Split::Train => self.training = self.epoch_started.elapsed(),
            _ => {
                if let Err(error) = self.end_epoch(summary.epoch_number) {
                    log::warn!("cannot write {}: {error}", self.csv.display());
                }
                self.epoch_started = Instant::now();
            }
        }
    }
}
