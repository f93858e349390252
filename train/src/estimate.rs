//! Estimating the time and memory of a run from a few steps, validation batches and a checkpoint.

use models::Architecture;
use runtime::warmup::autotunes;

use crate::{
    Error, Result,
    run::{self, Options, Prepared},
    schedule::Rates,
    trainer::{End, RunLimits},
};

/// Steps that are timed, after a warm-up.
const STEPS: u64 = 4;
/// Batches of the validation that are timed, after a warm-up.
const VALID_BATCHES: usize = 2;

/// The estimated cost of a run. Times are in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    /// The network.
    pub architecture: Architecture,
    /// The number of training images.
    pub train_images: usize,
    /// The number of validation images.
    pub valid_images: usize,
    /// The number of epochs.
    pub epochs: usize,
    /// The number of steps of an epoch.
    pub steps_per_epoch: u64,
    /// The number of images of a step.
    pub images_per_step: usize,
    /// The time of a step.
    pub step: f64,
    /// The percentage of a step that is spent waiting for images.
    pub waiting_percent: f64,
    /// The time of all steps.
    pub training: f64,
    /// The time of all validations.
    pub validation: f64,
    /// The time of all checkpoints.
    pub checkpoints: f64,
    /// The time of one checkpoint.
    pub checkpoint: f64,
    /// The highest memory use of this process so far, in bytes; `None` where the system does not report it.
    pub peak_memory: Option<u64>,
}

impl Estimate {
    /// Returns the time of the whole run.
    pub fn total(&self) -> f64 {
        self.training + self.validation + self.checkpoints
    }
}

/// Trains a few steps in a temporary folder and estimates the whole run. Returns `None` if the trial was stopped.
///
/// # Errors
/// Fails if the trial fails.
pub fn estimate(prepared: Prepared, options: &Options) -> Result<Option<Estimate>> {
    let folder = run::trial_folder()?;
    let recipe = prepared.recipe.clone();
    let (train_images, valid_images) = (prepared.data.train.len(), prepared.data.valid.len());
    for note in &prepared.data.notes {
        options.observer.on_warning(note);
    }
    let limits =
        RunLimits { steps: Some(STEPS), valid_batches: Some(VALID_BATCHES), warm_up: true, ..RunLimits::default() };
    let mut short = prepared;
    // The learning rates of the whole schedule, in one epoch.
    let rates = Rates::new(&recipe.schedule, recipe.epochs, STEPS);
    short.recipe.epochs = 1;
    let trial = run::trial(short, folder.path(), limits, Some(rates), options)?;
    match trial.outcome.end {
        End::Failed(error) => return Err(Error::Part { what: "the trial".into(), source: Box::new(error) }),
        End::Interrupted => return Ok(None),
        End::Finished => {}
    }
    let state = &trial.outcome.state;
    let times = state.history.first().ok_or(Error::Bug("the trial has no epoch"))?.times;
    let step = state.pace.seconds_per_step().ok_or(Error::Bug("the trial has no step"))?;
    let warmups = [("steps", &state.pace), ("batches of the validation", &state.valid_pace)];
    let backend = options.main_device()?.backend();
    for (what, pace) in warmups {
        // On a CPU the few steps of a small data set need not settle to be a measure.
        if (pace.counted() > 0 || autotunes(backend))
            && let Some(warning) = pace.warmup().warning(backend)
        {
            options.observer.on_warning(&format!("{what}: {warning}"));
        }
    }
    let epochs = recipe.epochs as f64;
    let training = step * trial.steps_per_epoch as f64 * epochs;
    let checkpoint = state.times.checkpointing;
    let between = training / (60.0 * recipe.checkpoints.every_minutes);
    Ok(Some(Estimate {
        architecture: recipe.architecture,
        train_images,
        valid_images,
        epochs: recipe.epochs,
        steps_per_epoch: trial.steps_per_epoch,
        images_per_step: recipe.batch_size * recipe.accumulate,
        step,
        waiting_percent: 100.0 * times.waiting / times.training().max(1e-9),
        training,
        validation: state.valid_pace.seconds_per_step().unwrap_or(0.0) * trial.num_valid_batches as f64 * epochs,
        checkpoints: checkpoint * (epochs + between),
        checkpoint,
        peak_memory: peak_memory(),
    }))
}

/// The highest memory use of this process so far, in bytes.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
