//! A run from its folder to its result.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use datasets::source::is_table_name;
use hub::{Card, weights};
use models::ImageClassifier;
use report::format::{DataInfo, EXPERIMENT_LOG, RECIPE, RunInfo, RunKind, RunResult, RunStatus};
use runtime::{communicator::communicator, exit::chain, files::write_atomic_bytes, logging::LogFile};

use super::{
    changes,
    folder::RunFolder,
    info,
    logger::RunLogger,
    options::Options,
    prepare::{Prepared, first_state},
    results,
    session::{Parts, Position},
};
use crate::{
    Error, Result,
    data::{DataSet, Loaders},
    observer::WarningsOnly,
    progress::{EpochRecord, State},
    recipe::Recipe,
    trainer::{End, Outcome, RunLimits, learner},
    transfer,
};

/// A run that ended.
#[derive(Debug)]
pub struct Finished {
    /// The run folder.
    pub run: PathBuf,
    /// The content of its `run.json`.
    pub info: RunInfo,
    /// The reason why it ended.
    pub end: End,
    pub(crate) state: State,
}

impl Finished {
    /// Returns the number of steps of the run.
    pub fn steps(&self) -> u64 {
        self.state.step
    }

    /// Returns the time of the run in seconds, without pauses.
    pub fn seconds(&self) -> f64 {
        self.state.seconds
    }

    /// Adds a warning to `experiment.log`.
    pub fn warn(&self, text: &str) {
        if let Ok(log) = LogFile::for_lines(&self.run.join(EXPERIMENT_LOG)) {
            log.write(log::Level::Warn, "train", text);
        }
    }

    /// Returns the metrics of each epoch.
    pub fn history(&self) -> &[EpochRecord] {
        &self.state.history
    }
}

/// Trains a network in a new run folder. A training that fails after its first step is not an error here: see
/// [`Finished::end`].
///
/// # Errors
/// Fails if the run folder cannot be written, or if the weights do not match the network.
pub fn start(prepared: Prepared, kind: RunKind, options: &Options) -> Result<Finished> {
    let loaders = prepared.data.loaders(&prepared.recipe, options.workers)?;
    let (folder, card, info) = new_run(&prepared, kind, options)?;
    let position = Position { state: first_state(&prepared)?, checkpoint: None };
    train(prepared, loaders, folder, card, info, position, options)
}

/// Makes a run's folder and writes what is known before it starts.
pub fn new_run(prepared: &Prepared, kind: RunKind, options: &Options) -> Result<(RunFolder, Card, RunInfo)> {
    let name = match kind {
        RunKind::Probe => format!("{}-probe", run_name(&prepared.recipe)),
        _ => run_name(&prepared.recipe),
    };
    let world = communicator();
    let not_root = || Error::Bug("the root alone makes folders");
    if !world.is_root() {
        let of_root = |bytes: Vec<u8>| Ok(PathBuf::from(String::from_utf8_lossy(&bytes).into_owned()));
        let path = world.on_root(|| Err(not_root()), |_: &PathBuf| Vec::new(), of_root)?;
        let (card, info) = describe(prepared, &path, kind, options);
        return Ok((RunFolder::of_another(&path), card, info));
    }
    let make = || match &options.out {
        Some(out) => RunFolder::create_at(out),
        None => RunFolder::create_in(&options.artifacts, &name),
    };
    let path = |folder: &RunFolder| folder.path.to_string_lossy().into_owned().into_bytes();
    let folder = world.on_root(make, path, |_| Err(not_root()))?;
    match begin(prepared, &folder, kind, options) {
        Ok((card, info)) => Ok((folder, card, info)),
        Err(error) => {
            folder.discard();
            Err(error)
        }
    }
}

/// Writes what is known of a run before it starts.
fn begin(prepared: &Prepared, folder: &RunFolder, kind: RunKind, options: &Options) -> Result<(Card, RunInfo)> {
    let run = &folder.path;
    let (card, info) = describe(prepared, run, kind, options);
    write_atomic_bytes(&run.join(RECIPE), prepared.recipe.to_toml().as_bytes())?;
    card.write(run.join("card.json"))?;
    info::write(&info, run)?;
    Ok((card, info))
}

/// A run's card, and what is known of it before it starts.
fn describe(prepared: &Prepared, run: &Path, kind: RunKind, options: &Options) -> (Card, RunInfo) {
    let Prepared { recipe, data, start, .. } = prepared;
    let card = Card {
        classes: data.class_names(),
        preprocess: recipe.images.preprocess(),
        transform_input: start.as_ref().is_some_and(|start| start.card.transform_input),
        ..Card::of(recipe.architecture, 1, origin(recipe, run))
    };
    let mut info = info::describe(run, kind, options.command.clone(), options.device_names(), options.kernels);
    info.dtype = recipe.network.dtype.name().to_string();
    info.data = data_info(recipe, data);
    info.paths = changes::paths(recipe);
    info.decisions.clone_from(&prepared.warm.decisions);
    (card, info)
}

/// The facts of a run's data.
pub fn data_info(recipe: &Recipe, data: &DataSet) -> DataInfo {
    DataInfo {
        train: Some(recipe.data.train.clone()),
        valid: Some(recipe.data.valid.clone().unwrap_or_else(|| recipe.data.train.clone())),
        kind: data.kind.to_string(),
        train_images: data.train.len(),
        valid_images: data.valid.len(),
        classes: data.train.classes().len(),
        fingerprint: data.fingerprint(),
    }
}

fn origin(recipe: &Recipe, run: &Path) -> String {
    let name = run.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
    match &recipe.transfer {
        Some(transfer) => format!("trained by Hearth, run {name}, from {}", transfer.weights),
        None => format!("trained by Hearth, run {name}"),
    }
}

/// `digits-resnet20`, `tiny10-resnet18`.
fn run_name(recipe: &Recipe) -> String {
    let data = recipe.data.train.trim_end_matches(['/', '\\']);
    let last = data.rsplit(['/', '\\']).next().unwrap_or(data);
    // `pets/train` and `pets/labels.csv` are about pets.
    let (last, is_table) = match last.rsplit_once('.') {
        Some((stem, _)) if is_table_name(last) => (stem, true),
        _ => (last, false),
    };
    let says_nothing = last == "train" || (is_table && ["labels", "data", "metadata", "annotations"].contains(&last));
    let above = data.rsplit(['/', '\\']).nth(1).filter(|above| says_nothing && !matches!(*above, "" | "." | ".."));
    let last = above.unwrap_or(last);
    let plain: String = last
        .chars()
        .take_while(|c| *c != '{' && *c != '*')
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' })
        .collect();
    let plain = plain.trim_matches('-');
    format!("{}-{}", if plain.is_empty() { "data" } else { plain }, recipe.architecture)
}

/// Runs Burn's learner from `position` to the end.
pub fn train(
    prepared: Prepared,
    loaders: Loaders,
    folder: RunFolder,
    card: Card,
    mut info: RunInfo,
    position: Position,
    options: &Options,
) -> Result<Finished> {
    let run = folder.path.clone();
    let (world, recipe) = (communicator(), prepared.recipe.clone());
    let dashboard = world.is_root() && options.dashboard;
    let opened = Parts::new(&prepared, &loaders, &card, position, None, options)
        .and_then(|parts| Ok((open_log(&run, &parts, &recipe, dashboard, options)?, parts)));
    let (logger, parts) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            folder.discard();
            return Err(error);
        }
    };
    info.parameters = parts.classifier.network.num_parameters();
    log_start(&logger, &prepared, &parts, &info, &run, options);
    if world.is_root() {
        info::write(&info, &run)?;
    }
    let steps_before = parts.state.step;
    let limits = RunLimits::default();
    let (session, model) = parts.into_session(prepared, loaders, card.clone(), &run, logger, limits, options);
    let outcome = learner::run(session, model, dashboard)?;
    log_messages(&outcome, steps_before, &info);
    finish(outcome, &run, &recipe, &card, info, options)
}

/// Opens a run's log; that of a process that is not the root writes nothing.
fn open_log(run: &Path, parts: &Parts, recipe: &Recipe, dashboard: bool, options: &Options) -> Result<RunLogger> {
    let (epochs, steps_per_epoch) = (recipe.epochs, parts.steps_per_epoch);
    if !communicator().is_root() {
        return Ok(RunLogger::silent(epochs, steps_per_epoch));
    }
    let observer = if dashboard { Arc::new(WarningsOnly(options.observer.clone())) } else { options.observer.clone() };
    RunLogger::open(run, &parts.state, observer, epochs, steps_per_epoch)
}

/// Logs what is trained, on what, and from where on.
fn log_start(logger: &RunLogger, prepared: &Prepared, parts: &Parts, info: &RunInfo, run: &Path, options: &Options) {
    let world = communicator();
    let Prepared { recipe, data, devices, resumed, .. } = prepared;
    for note in data.notes.iter().filter(|_| world.is_root()) {
        logger.warn(note);
    }
    logger.info(&format!(
        "{} with {} parameters on {} images of {} classes, {} held out; {} epochs of {} steps; {}",
        recipe.architecture,
        info.parameters,
        info.data.train_images,
        info.data.classes,
        info.data.valid_images,
        recipe.epochs,
        parts.steps_per_epoch,
        run.display(),
    ));
    for decision in prepared.warm.decisions.iter().filter(|_| parts.state.step == 0) {
        logger.info(decision);
    }
    if parts.state.step > 0 {
        let promise = resumed.as_ref().map_or(String::new(), |promise| format!("; {promise}"));
        logger.info(&format!("going on from step {}, epoch {}{promise}", parts.state.step, parts.state.epoch + 1));
    }
    if let Some(devices) = devices {
        let (count, names) = (options.devices.len(), options.device_names());
        logger.info(&format!("{count} devices ({names}): {}", devices.how()));
    }
    if !world.is_alone() {
        logger.info(&format!(
            "{} processes, {} on this host; {} images a forward pass of each; {:.1} MB of gradients a step",
            world.size(),
            world.local_size(),
            recipe.batch_size / world.size(),
            4e-6 * info.parameters as f64,
        ));
    }
}

/// Logs what several processes sent each other.
fn log_messages(outcome: &Outcome, steps_before: u64, info: &RunInfo) {
    let (world, steps) = (communicator(), outcome.state.step - steps_before);
    if world.is_alone() || steps == 0 {
        return;
    }
    outcome.logger.info(&format!(
        "each process gave {:.2} MB a step into collectives ({:.1} MB in all), for {:.2} MB of gradients a step",
        1e-6 * world.bytes() as f64 / steps as f64,
        1e-6 * world.bytes() as f64,
        4e-6 * info.parameters as f64,
    ));
    if let Some(record) = outcome.state.history.last() {
        outcome.logger.info(&format!("the last epoch: {}", record.times.verdict()));
    }
}

/// Saves the last weights, writes the report, and notes the result.
pub fn finish(
    outcome: Outcome,
    run: &Path,
    recipe: &Recipe,
    card: &Card,
    mut info: RunInfo,
    options: &Options,
) -> Result<Finished> {
    let Outcome { state, network, ema, logger, end } = outcome;
    if !communicator().is_root() {
        return Ok(Finished { run: run.to_path_buf(), info, end, state });
    }
    info.status = Some(match &end {
        End::Finished => RunStatus::Finished,
        End::Interrupted => RunStatus::Interrupted,
        End::Failed(_) => RunStatus::Failed,
    });
    info.finished = Some(info::now());
    info.result = result(&state, recipe);
    if let (End::Finished, Some(warning)) = (&end, before_the_body(&state, recipe, &network)) {
        logger.warn(&warning);
    }
    if matches!(end, End::Finished) {
        let networks = [(Some(&network), "last.safetensors"), (ema.as_ref(), "last-ema.safetensors")];
        for (network, name) in networks {
            let Some(network) = network else { continue };
            let failed = |source| Error::LastWeights { run: run.into(), source };
            weights::save(network, card, run.join(name)).map_err(failed)?;
        }
    }
    info::write(&info, run)?;
    if let Err(error) = report::write(run) {
        logger.warn(&format!("the report could not be written: {}", chain(&error)));
    }
    if let (End::Finished, Some(result)) = (&end, &info.result) {
        results::append(run, recipe, &info, result, options)?;
    }
    Ok(Finished { run: run.to_path_buf(), info, end, state })
}

/// A warning where the best epoch is one before the stages before the classifier were trained.
fn before_the_body(state: &State, recipe: &Recipe, network: &impl ImageClassifier) -> Option<String> {
    let (transfer, stages) = (recipe.transfer.as_ref()?, network.stages());
    let best = state.best(recipe.checkpoints.best)?.epoch;
    // The epochs, from 1, in which the classifier alone is trained.
    let is_frozen = |epoch: usize| {
        transfer::num_frozen(&stages, transfer, epoch - 1).is_ok_and(|frozen| frozen + 1 == stages.len())
    };
    let later = state.history.iter().map(|record| record.epoch).filter(|&epoch| epoch > 0 && !is_frozen(epoch)).count();
    let is_early = best == 0 || is_frozen(best);
    (is_early && later > 0).then(|| {
        format!(
            "the best epoch, {best}, is one before the stages before the classifier were trained: training them for {later} \
             epochs made nothing better. The weights that are kept are those of a linear probe; a lower transfer.body_rate, \
             more images or a stronger augmentation (images.train) may help"
        )
    })
}

fn result(state: &State, recipe: &Recipe) -> Option<RunResult> {
    let metric = recipe.checkpoints.best;
    let (best, last) = (state.best(metric)?, state.history.last()?);
    let images: f64 = state.history.iter().map(|record| record.images_per_second * record.times.training()).sum();
    let training: f64 = state.history.iter().map(|record| record.times.training()).sum();
    Some(RunResult {
        best_epoch: Some(best.epoch),
        best: best.better(metric).0,
        last: Some(last.valid),
        ema: last.average,
        images_per_second: images / training.max(1e-9),
        seconds: state.seconds,
        bad_samples: state.history.iter().map(|record| record.times.bad_samples).sum(),
        skipped_steps: state.skipped_steps,
    })
}
