//! A short trial of a whole run: for estimates and the learning rate range test.

use std::{env, path::Path, sync::Arc};

use hub::Card;
use runtime::{
    communicator::communicator,
    warmup::{Pace, Warmup},
};
use tempfile::TempDir;

use super::{
    logger::RunLogger,
    options::Options,
    prepare::Prepared,
    session::{Parts, Position},
};
use crate::{
    Error, Result,
    observer::WarningsOnly,
    progress::State,
    schedule::Rates,
    trainer::{Outcome, RunLimits, learner},
};

/// Steps of the warm-up of a trial that several processes share.
const SHARED_WARMUP: usize = 5;

/// What a short trial of a whole run came to.
pub struct Trial {
    pub outcome: Outcome,
    pub steps_per_epoch: u64,
    pub num_valid_batches: usize,
}

/// Makes the temporary folder of a trial.
pub fn trial_folder() -> Result<TempDir> {
    tempfile::tempdir().map_err(Error::io("make a folder for the trial in", env::temp_dir()))
}

/// Runs a few steps of a recipe in a folder of its own, which is left to the caller; `rates` replace its schedule.
pub fn trial(
    prepared: Prepared,
    folder: &Path,
    limits: RunLimits,
    rates: Option<Rates>,
    options: &Options,
) -> Result<Trial> {
    let loaders = prepared.data.loaders(&prepared.recipe, options.workers)?;
    let num_valid_batches = loaders.valid.num_batches();
    let card = Card {
        classes: prepared.data.class_names(),
        preprocess: prepared.recipe.images.preprocess(),
        ..Card::of(prepared.recipe.architecture, 1, "a trial")
    };
    // Processes that share the work make as many steps each, so their clocks may not decide.
    let warmup = if communicator().is_alone() { Warmup::default() } else { Warmup::new(SHARED_WARMUP, SHARED_WARMUP) };
    let state = State { pace: Pace::after(warmup), ..State::default() };
    let parts = Parts::new(&prepared, &loaders, &card, Position { state, checkpoint: None }, rates, options)?;
    let steps_per_epoch = parts.steps_per_epoch;
    let observer = Arc::new(WarningsOnly(options.observer.clone()));
    let logger = RunLogger::open(folder, &parts.state, observer, prepared.recipe.epochs, steps_per_epoch)?;
    let (session, model) = parts.into_session(prepared, loaders, card, folder, logger, limits, options);
    let outcome = learner::run(session, model, false)?;
    Ok(Trial { outcome, steps_per_epoch, num_valid_batches })
}
