//! `--dry-run`: a few steps, batches of the validation and a checkpoint, and an estimate of the whole run from them.

use std::time::Duration;

use anyhow::Result;
use runtime::{exit::ExitCode, outln, progress::human_duration};
use train::{
    estimate::estimate,
    run::{Options, Prepared},
};

pub fn run(prepared: Prepared, options: &Options) -> Result<ExitCode> {
    let Some(estimate) = estimate(prepared, options)? else { return Ok(ExitCode::Interrupted) };
    let span = |seconds: f64| human_duration(Duration::from_secs_f64(seconds));
    outln!(
        "{} on {} images, {} held out: {} epochs of {} steps of {} images",
        estimate.architecture,
        estimate.train_images,
        estimate.valid_images,
        estimate.epochs,
        estimate.steps_per_epoch,
        estimate.images_per_step,
    )?;
    outln!("a step            {:.3} s ({:.0} % of it waiting for images)", estimate.step, estimate.waiting_percent)?;
    outln!("training          {}", span(estimate.training))?;
    outln!("validation        {}", span(estimate.validation))?;
    outln!("checkpoints       {} ({:.2} s each)", span(estimate.checkpoints), estimate.checkpoint)?;
    outln!("the whole run     {}", span(estimate.total()))?;
    match estimate.peak_memory {
        Some(bytes) => outln!("memory            {:.2} GB at most so far, on the host", bytes as f64 / 1e9)?,
        None => outln!("memory            not known on this system")?,
    }
    Ok(ExitCode::Success)
}
