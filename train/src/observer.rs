//! Reporting progress while a run trains.

use std::time::Duration;

use crate::progress::EpochRecord;

/// Receives what a run reports. The methods are called from the thread that trains, and the run waits for them.
///
/// A run is stopped from here by setting [`Options::stop`](crate::Options::stop), of which the observer keeps a clone.
pub trait Observer: Send + Sync {
    /// Receives a fact about the run, for instance the number of parameters.
    fn on_note(&self, text: &str) {
        let _ = text;
    }

    /// Receives a warning: the run continues, but its user should know.
    fn on_warning(&self, text: &str) {
        let _ = text;
    }

    /// Receives a step of the optimizer. On GPUs several steps are read back at once and then arrive together.
    fn on_step(&self, step: &StepReport) {
        let _ = step;
    }

    /// Receives a validated epoch, before its checkpoint is written.
    fn on_epoch(&self, epoch: &EpochReport<'_>) {
        let _ = epoch;
    }
}

/// The state of a run after a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// The epoch, from 1.
    pub epoch: usize,
    /// The epochs of the run.
    pub epochs: usize,
    /// The steps of the run so far.
    pub step: u64,
    /// The step within the epoch, from 1.
    pub step_in_epoch: u64,
    /// The steps of an epoch.
    pub steps_per_epoch: u64,
    /// The mean training loss of the epoch so far.
    pub loss: f64,
    /// The training accuracy of the epoch so far, in percent.
    pub top1: f64,
    /// The learning rate of the step.
    pub learning_rate: f64,
    /// The training speed of the epoch so far.
    pub images_per_second: f64,
    /// The estimated time until the end of the run.
    pub time_left: Option<Duration>,
}

/// A validated epoch.
#[derive(Debug, Clone, Copy)]
pub struct EpochReport<'a> {
    /// Its metrics and times.
    pub record: &'a EpochRecord,
    /// The epochs of the run.
    pub epochs: usize,
    /// The estimated time until the end of the run.
    pub time_left: Option<Duration>,
}

/// Discards all reports.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {}

/// Passes on warnings alone: a dashboard shows the rest.
pub(crate) struct WarningsOnly(pub(crate) std::sync::Arc<dyn Observer>);

impl Observer for WarningsOnly {
    fn on_warning(&self, text: &str) {
        self.0.on_warning(text);
    }
}
