//! `--dry-run`: a few steps, batches of the validation and a checkpoint, and an estimate of the whole run from them.

use std::time::Duration;

use anyhow::{Context, Result};
use runtime::{exit::ExitCode, progress::human_duration, warmup::autotunes};

use crate::{
    trainer::{End, RunLimits},
    training::{self, Options, Prepared},
};

/// Steps that are timed, after a warm-up.
const STEPS: u64 = 4;
/// Batches of the validation that are timed, after a warm-up.
const VALID_BATCHES: usize = 2;

pub fn run(prepared: Prepared, options: &Options) -> Result<ExitCode> {
    let folder = tempfile::tempdir().context("cannot make a folder for the trial")?;
    let recipe = prepared.recipe.clone();
    let (train_images, valid_images) = (prepared.data.train.len(), prepared.data.valid.len());
    for note in &prepared.data.notes {
        eprintln!("warning: {note}");
    }
    let limits =
        RunLimits { steps: Some(STEPS), valid_batches: Some(VALID_BATCHES), warm_up: true, ..RunLimits::default() };
    let mut short = prepared;
    // One epoch, whatever the schedule of the whole.
    let rates = crate::schedule::Rates::new(&recipe.schedule, recipe.epochs, STEPS);
    short.recipe.epochs = 1;
    let trial = training::trial(short, folder.path(), limits, Some(rates), options)?;
    match trial.outcome.end {
        End::Failed(error) => return Err(error.context("the trial failed")),
        End::Interrupted => return Ok(ExitCode::Interrupted),
        End::Finished => {}
    }
    let state = &trial.outcome.state;
    let times = state.history.first().context("the trial has no epoch")?.times;
    let step = state.pace.seconds_per_step().context("the trial has no step")?;
    let warmups = [("steps", &state.pace), ("batches of the validation", &state.valid_pace)];
    let backend = options.devices.first().context("no device is named")?.backend();
    for (what, pace) in warmups {
        // On a CPU the few steps of a small data set need not settle to be a measure.
        if (pace.counted() > 0 || autotunes(backend))
            && let Some(warning) = pace.warmup().warning(backend)
        {
            eprintln!("warning: {what}: {warning}");
        }
    }
    let epochs = recipe.epochs as f64;
    let training = step * trial.steps_per_epoch as f64 * epochs;
    let validation = state.valid_pace.seconds_per_step().unwrap_or(0.0) * trial.num_valid_batches as f64 * epochs;
    let checkpoint = state.times.checkpointing;
    let between = training / (60.0 * recipe.checkpoints.every_minutes);
    let checkpoints = checkpoint * (epochs + between);
    let span = |seconds: f64| human_duration(Duration::from_secs_f64(seconds));
    println!(
        "{} on {train_images} images, {valid_images} held out: {} epochs of {} steps of {} images",
        recipe.architecture,
        recipe.epochs,
        trial.steps_per_epoch,
        recipe.batch_size * recipe.accumulate,
    );
    println!("a step            {:.3} s ({:.0} % of it waiting for images)", step, {
        100.0 * times.waiting / times.training().max(1e-9)
    });
    println!("training          {}", span(training));
    println!("validation        {}", span(validation));
    println!("checkpoints       {} ({:.2} s each)", span(checkpoints), checkpoint);
    println!("the whole run     {}", span(training + validation + checkpoints));
    match peak_memory() {
        Some(bytes) => println!("memory            {:.2} GB at the most so far, on the host", bytes as f64 / 1e9),
        None => println!("memory            not known on this system"),
    }
    Ok(ExitCode::Success)
}

/// The most memory that this process has held, in bytes.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
