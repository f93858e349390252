//! Where a run stands: everything besides tensors that a checkpoint holds.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use runtime::warmup::Pace;
use serde::{Deserialize, Serialize};

use crate::{
    evaluation::{MetricSums, Metrics},
    recipe::Metric,
};

/// Seconds since the mark, which moves to now.
pub fn lap(mark: &mut Instant) -> f64 {
    let now = Instant::now();
    let seconds = (now - *mark).as_secs_f64();
    *mark = now;
    seconds
}

/// The place of a run in its data and its schedule, its counters and its history.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The effective recipe, as TOML.
    pub recipe: String,
    /// Of the images and their labels.
    pub data_fingerprint: String,
    /// The same with the images that are left out; empty in older checkpoints.
    #[serde(default)]
    pub unfiltered_fingerprint: String,
    /// Checksums of some images; empty in older checkpoints.
    #[serde(default)]
    pub data_contents: Vec<u32>,
    /// Whether a network from trained weights has auxiliary classifiers; `None` in older checkpoints.
    #[serde(default)]
    pub aux_logits: Option<bool>,
    /// Steps of the optimizer so far.
    pub step: u64,
    /// Epochs that are behind.
    pub epoch: usize,
    /// Batches of the current epoch that are behind.
    pub batch: usize,
    /// The learning rate of the last step.
    pub learning_rate: f64,
    /// The training images of the current epoch so far.
    pub sums: MetricSums,
    /// The training images since the last row of `metrics.csv`.
    pub interval: Interval,
    /// Where the current epoch's time went.
    pub times: StepTimes,
    /// Steps in a row that were skipped because something was not finite.
    pub bad_in_a_row: usize,
    /// All steps that were skipped.
    pub skipped_steps: u64,
    /// The factor of the loss in f16, and the steps since it last changed.
    pub loss_scale: Option<(f32, u64)>,
    /// Whether the moving average has begun.
    pub average_started: bool,
    /// Wall-clock seconds of training so far, pauses left out.
    pub seconds: f64,
    pub history: Vec<EpochRecord>,
    /// Of the steps since this process started.
    #[serde(skip)]
    pub pace: Pace,
    /// Of the batches of the last validation.
    #[serde(skip)]
    pub valid_pace: Pace,
    /// The lengths of the files that grow line by line: what was written after the checkpoint is cut off.
    pub file_lengths: BTreeMap<String, u64>,
}

/// Steps since the last row of `metrics.csv`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Interval {
    pub reading: MetricSums,
    /// The sum of the gradients' norms, of steps where it is finite.
    pub norms: f64,
    pub steps: u64,
    pub seconds: f64,
}

/// The time that the parts of an epoch took, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct StepTimes {
    /// Waiting for the loader.
    pub waiting: f64,
    /// Copying batches to the device, where compute had to wait for that.
    #[serde(default)]
    pub transfer: f64,
    /// Forward, backward and the optimizer.
    pub compute: f64,
    /// Several processes: waiting until the slowest of them is there.
    #[serde(default)]
    pub ranks: f64,
    /// Several processes: summing their gradients.
    #[serde(default)]
    pub all_reduce: f64,
    /// The validation.
    pub validation: f64,
    /// Writing checkpoints.
    pub checkpointing: f64,
    /// The loader's threads, summed over them: reading.
    pub reading: f64,
    /// The loader's threads: decoding.
    pub decoding: f64,
    /// The loader's threads: transforming.
    pub transforming: f64,
    /// The loader's threads: writing images into batches.
    pub collating: f64,
    /// The loader's threads: waiting for the batches before to be consumed.
    pub idle: f64,
    /// The number of images that could not be read or decoded.
    pub bad_samples: u64,
    /// The number of steps that were skipped because the loss or a gradient was not finite.
    pub skipped_steps: u64,
}

impl StepTimes {
    /// Returns the time of the epoch.
    pub fn total(&self) -> f64 {
        self.training() + self.validation + self.checkpointing
    }

    /// Returns the time of training alone.
    pub fn training(&self) -> f64 {
        self.waiting + self.transfer + self.compute + self.ranks + self.all_reduce
    }

    /// The share of a part of the time, in percent.
    fn percent(&self, part: f64) -> f64 {
        100.0 * part / self.total().max(f64::MIN_POSITIVE)
    }

    /// Returns the parts in percent: `waiting for images 3 %, compute 88 %, validation 8 %, checkpoints 1 %`
    pub fn verdict(&self) -> String {
        let mut verdict = format!(
            "waiting for images {:.0} %, compute {:.0} %, validation {:.0} %, checkpoints {:.0} %",
            self.percent(self.waiting),
            self.percent(self.compute),
            self.percent(self.validation),
            self.percent(self.checkpointing),
        );
        if self.transfer > 0.0 {
            verdict += &format!(", transfer to the device {:.0} %", self.percent(self.transfer));
        }
        if self.all_reduce > 0.0 {
            let (ranks, all_reduce) = (self.percent(self.ranks), self.percent(self.all_reduce));
            verdict += &format!(", waiting for processes {ranks:.0} %, all-reduce {all_reduce:.0} %");
        }
        verdict
    }

    /// What to do where something starves.
    pub fn advice(&self) -> Option<String> {
        let busy = self.reading + self.decoding + self.transforming + self.collating;
        let share = |part: f64| 100.0 * part / busy.max(f64::MIN_POSITIVE);
        if self.percent(self.waiting) > 20.0 && self.waiting > 0.5 {
            let waiting = self.percent(self.waiting);
            return Some(if share(self.reading) > 40.0 {
                format!(
                    "the network waits {waiting:.0} % of the time, and reading files takes {:.0} % of the loader's: put \
                     the data on a faster disk, or pack it with `datasets shard`",
                    share(self.reading)
                )
            } else if share(self.decoding) >= share(self.transforming) {
                format!(
                    "the network waits {waiting:.0} % of the time, and decoding takes {:.0} % of the loader's: give \
                     more workers, or shrink the images once with `datasets shard --resize 320`",
                    share(self.decoding)
                )
            } else {
                format!(
                    "the network waits {waiting:.0} % of the time, and transforms take {:.0} % of the loader's: give \
                     more workers, or a cheaper augmentation",
                    share(self.transforming)
                )
            });
        }
        if self.percent(self.transfer) > 20.0 && self.transfer > 0.5 {
            return Some(format!(
                "copying images to the device takes {:.0} % of the time: check the GPU's link to the host (`nvidia-smi \
                 -q` shows its PCIe generation and width), or train on smaller images",
                self.percent(self.transfer)
            ));
        }
        if self.percent(self.checkpointing) > 10.0 && self.checkpointing > 1.0 {
            return Some(format!(
                "checkpoints take {:.0} % of the time: raise checkpoints.every_minutes, or write to a faster disk",
                self.percent(self.checkpointing)
            ));
        }
        None
    }

    pub(crate) fn add_loader(&mut self, meters: &datasets::meters::MeterReading) {
        self.reading += meters.reading.as_secs_f64();
        self.decoding += meters.decoding.as_secs_f64();
        self.transforming += meters.transforming.as_secs_f64();
        self.collating += meters.collating.as_secs_f64();
        self.idle += meters.idle.as_secs_f64();
        self.bad_samples += meters.bad;
    }
}

/// The metrics of an epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// The epoch, from 1; 0 for a network with a trained classifier before its first step (`transfer.head = "probe"`).
    pub epoch: usize,
    /// The steps of the run so far.
    pub step: u64,
    /// The learning rate of the last step.
    pub learning_rate: f64,
    /// The mean metrics over the training images, as they were trained on; zeros in epoch 0.
    pub train: Metrics,
    /// The metrics of the weights on the validation images.
    pub valid: Metrics,
    /// The metrics of the EMA of the weights on the validation images.
    pub average: Option<Metrics>,
    /// The training speed.
    pub images_per_second: f64,
    /// The time that the parts of the epoch took.
    pub times: StepTimes,
}

impl EpochRecord {
    /// Returns the better of the metrics of the weights and of their EMA, and whether it is that of the EMA.
    pub fn better(&self, metric: Metric) -> (Metrics, bool) {
        match self.average {
            Some(average) if metric.value(&average) > metric.value(&self.valid) => (average, true),
            _ => (self.valid, false),
        }
    }
}

impl Metric {
    /// Returns the value of a score; larger is better.
    pub fn value(self, score: &Metrics) -> f64 {
        match self {
            Metric::Top1 => score.top1,
            Metric::Top5 => score.top5,
            Metric::Loss if score.loss.is_nan() => f64::NEG_INFINITY,
            Metric::Loss => -score.loss,
        }
    }
}

impl State {
    /// The best epoch so far, the first of equals.
    pub fn best(&self, metric: Metric) -> Option<&EpochRecord> {
        let mut best: Option<&EpochRecord> = None;
        for record in &self.history {
            let value = |record: &EpochRecord| metric.value(&record.better(metric).0);
            if best.is_none_or(|best| value(record) > value(best)) {
                best = Some(record);
            }
        }
        best
    }

    /// The time until the run's end: that of the steps at their present pace, and of the validations and checkpoints as
    /// in past epochs. `None` before the first step of this process.
    pub fn time_left(&self, epochs: usize, steps_per_epoch: u64) -> Option<Duration> {
        let steps = (epochs as u64 * steps_per_epoch).saturating_sub(self.step);
        let training = self.pace.seconds_per_step()? * steps as f64;
        // On a GPU the first validation compiles and tunes its kernels.
        let past = if self.history.len() > 1 { &self.history[1..] } else { &self.history };
        let seconds = past.iter().map(|record| record.times.validation + record.times.checkpointing).sum::<f64>();
        let between = seconds / past.len().max(1) as f64 * epochs.saturating_sub(self.epoch) as f64;
        Duration::try_from_secs_f64(training + between).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(epoch: usize, top1: f64, average: Option<f64>) -> EpochRecord {
        let score = |top1| Metrics { loss: 1.0 / top1, top1, top5: 100.0 };
        EpochRecord {
            epoch,
            step: 0,
            learning_rate: 0.1,
            train: score(50.0),
            valid: score(top1),
            average: average.map(score),
            images_per_second: 1.0,
            times: StepTimes::default(),
        }
    }

    #[test]
    fn the_best_epoch_is_the_first_of_equals_and_may_be_the_average_s() {
        let mut state = State::default();
        assert!(state.best(Metric::Top1).is_none());
        state.history = vec![record(1, 60.0, None), record(2, 70.0, None), record(3, 70.0, None)];
        assert_eq!(state.best(Metric::Top1).unwrap().epoch, 2);
        state.history.push(record(4, 65.0, Some(71.0)));
        let best = state.best(Metric::Top1).unwrap();
        assert_eq!((best.epoch, best.better(Metric::Top1).1), (4, true));
        assert_eq!(state.best(Metric::Loss).unwrap().epoch, 4);
        assert_eq!(state.best(Metric::Top5).unwrap().epoch, 1);
    }

    #[test]
    fn the_time_left_does_not_count_the_first_steps_and_the_first_validation() {
        let mut state = State { step: 20, epoch: 2, ..State::default() };
        assert_eq!(state.time_left(5, 10), None);
        state.history = vec![record(1, 60.0, None), record(2, 60.0, None)];
        state.history[0].times =
            StepTimes { compute: 100.0, validation: 40.0, checkpointing: 1.0, ..StepTimes::default() };
        state.history[1].times =
            StepTimes { compute: 5.0, validation: 2.0, checkpointing: 1.0, ..StepTimes::default() };
        // As autotune has it: the first steps take most of the time so far.
        state.seconds = 149.0;
        [90.0, 9.0, 0.5, 0.5, 0.5, 0.5, 0.5].into_iter().for_each(|seconds| state.pace.record(seconds));
        // 30 steps, 3 validations, 3 checkpoints.
        assert_eq!(state.time_left(5, 10), Some(Duration::from_secs(15 + 9)));
        (state.step, state.epoch) = (50, 5);
        assert_eq!(state.time_left(5, 10), Some(Duration::ZERO));
    }

    #[test]
    fn advice_names_what_starves_and_is_silent_otherwise() {
        let times =
            StepTimes { waiting: 30.0, compute: 60.0, decoding: 50.0, transforming: 20.0, ..StepTimes::default() };
        let advice = times.advice().unwrap();
        assert!(advice.contains("33 %") && advice.contains("decoding takes 71 %"), "{advice}");
        assert!(StepTimes { reading: 90.0, ..times }.advice().unwrap().contains("reading"));
        assert!(StepTimes { transforming: 90.0, ..times }.advice().unwrap().contains("transforms"));
        assert_eq!(StepTimes { waiting: 3.0, ..times }.advice(), None);
        let slow_disk = StepTimes { compute: 8.0, checkpointing: 2.0, ..StepTimes::default() };
        assert!(slow_disk.advice().unwrap().contains("every_minutes"));
        let slow_link = StepTimes { compute: 3.0, transfer: 1.0, ..StepTimes::default() };
        assert!(slow_link.advice().unwrap().contains("25 % of the time") && slow_link.training() == 4.0);
        assert!(slow_link.verdict().contains("transfer to the device 25 %"), "{}", slow_link.verdict());
        assert!(!times.verdict().contains("transfer"), "the CPU copies nothing");
    }
}
