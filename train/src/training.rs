//! Running a recipe: from its data and weights to a run folder, by Burn's Learner.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, atomic::AtomicBool},
};

use anyhow::{Context, bail, ensure};
use burn::{
    module::{Module, ParamGroup},
    optim::{SgdConfig, lr_scheduler::module_lr_scheduler::ModuleLrScheduler},
    tensor::Device,
};
use burn_train::{Interrupter, Learner, SupervisedTraining, TrainingStrategy, metric::LearningRateMetric};
use hub::{Card, LoadOptions, weights};
use models::ImageClassifier;
use report::format::{DataInfo, EXPERIMENT_LOG, RunChange, RunInfo, RunKind, RunResult, RunStatus};
use runtime::{
    backend::BackendSpec,
    environment,
    files::{self, write_atomic_bytes},
    logging::LogFile,
    progress::{Download, Output},
    warmup::{Pace, Warmup, autotunes},
    world::world,
};

pub use crate::trainer::End;
use crate::{
    changes::{self, Change},
    checkpoint::{Checkpoint, Parted, Store},
    classifier::{Classifier, Task},
    data::{self, DataSet, Loaders},
    evaluation::TOP,
    journal::Journal,
    metric::{Kind as MetricKind, Mean},
    observer::{Observer, Silent, WarningsOnly},
    parallel,
    progress::State,
    recipe::{self, Overrides, Recipe},
    renderer::{NoFiles, renderer},
    results,
    run::{self, RECIPE, RunFolder},
    schedule::Rates,
    trainer::{
        Outcome, Readback, RunLimits, Session, ema::Ema, flat, is_asynchronous, learner::Strategy, optimizer::Optimizer,
    },
    transfer,
    warm::{self, Warm},
};

/// A run is resumed that has nothing left to do.
#[derive(Debug, thiserror::Error)]
#[error(
    "the run {} is finished, after {epochs} epochs: more epochs continue it, fine-tuning its weights starts another",
    run.display()
)]
pub struct RunFinished {
    run: PathBuf,
    epochs: usize,
}

/// The options of a run that do not change its result.
#[derive(Clone)]
pub struct Options {
    /// The folder in which run folders are created.
    pub artifacts: PathBuf,
    /// The folder of this run, in place of a new one in `artifacts`.
    pub out: Option<PathBuf>,
    /// The number of threads that decode and augment; by default the number of cores.
    pub workers: Option<usize>,
    /// Receives progress and warnings.
    pub observer: Arc<dyn Observer>,
    /// Where downloads and the computation of features show their progress.
    pub progress: Output,
    /// Whether Burn's dashboard takes over the terminal. The observer then receives warnings only.
    pub dashboard: bool,
    /// Ends the run after the current step, with a checkpoint, once it is set.
    pub stop: Arc<AtomicBool>,
    /// Makes the run write a checkpoint after the current step and go on, once it is set; the run clears it then.
    pub save: Arc<AtomicBool>,
    /// The arguments of the program, for `run.json`.
    pub command: Vec<String>,
    /// The devices of this process, at least one.
    pub devices: Vec<BackendSpec>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { artifacts, out, workers, devices, .. } = self;
        f.debug_struct("Options")
            .field("artifacts", artifacts)
            .field("out", out)
            .field("workers", workers)
            .field("devices", devices)
            .finish_non_exhaustive()
    }
}

impl Options {
    /// Returns options for a run on `device` in a new folder in `artifacts`, which reports nothing.
    pub fn new(device: BackendSpec) -> Self {
        Self {
            artifacts: "artifacts".into(),
            out: None,
            workers: None,
            observer: Arc::new(Silent),
            progress: Output::Quiet,
            dashboard: false,
            stop: Arc::default(),
            save: Arc::default(),
            command: Vec::new(),
            devices: vec![device],
        }
    }

    /// Returns the first device, which holds the network.
    ///
    /// # Errors
    /// Fails if there is no device.
    pub fn main_device(&self) -> anyhow::Result<&BackendSpec> {
        self.devices.first().context("no device is named")
    }

    /// Opens the first device.
    ///
    /// # Errors
    /// Fails if there is no device, or if it cannot be opened.
    pub fn device(&self) -> anyhow::Result<Device> {
        self.main_device()?.device()
    }

    /// Returns the names of all devices, separated by commas.
    pub fn device_names(&self) -> String {
        let names: Vec<_> = self.devices.iter().map(ToString::to_string).collect();
        names.join(", ")
    }
}

/// A recipe with its data and weights, which have been opened and checked against each other.
pub struct Prepared {
    /// The effective recipe.
    pub recipe: Recipe,
    pub(crate) data: DataSet,
    pub(crate) start: Option<Arc<hub::Opened>>,
    pub(crate) device: Device,
    /// All devices of this process, where they are several.
    pub(crate) devices: Option<parallel::Plan>,
    /// What is promised of a run that is resumed.
    pub(crate) resumed: Option<String>,
    /// What is done and decided before the first step of a transfer.
    pub(crate) warm: Warm,
}

impl Prepared {
    /// The same for another run, such as a trial.
    pub(crate) fn share(&self) -> Self {
        let Self { recipe, data, start, device, devices, resumed, warm } = self;
        Self {
            recipe: recipe.clone(),
            data: data.clone(),
            start: start.clone(),
            device: device.clone(),
            devices: devices.clone(),
            resumed: resumed.clone(),
            warm: warm.clone(),
        }
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").field("recipe", &self.recipe).finish_non_exhaustive()
    }
}

/// Opens the weights and data of a recipe.
///
/// # Errors
/// Fails if the recipe is not valid, or if the weights, the data or the device cannot be opened.
pub fn prepare(recipe: Recipe, load: &LoadOptions, options: &Options) -> anyhow::Result<Prepared> {
    let device = options.device()?;
    let start = match &recipe.transfer {
        Some(transfer) => {
            // A recipe in a file names the network of a file of weights that has no card.
            // It also says how images are prepared.
            let architecture = load.architecture.or(Some(recipe.architecture));
            let load = LoadOptions { architecture, ignore_preprocess: true, ..load.clone() };
            Some(open_weights(&transfer.weights, &load, &device, options)?)
        }
        None => None,
    };
    complete(recipe, None, start, device, options)
}

/// Opens the weights and data of a recipe with a `[transfer]` section, and replaces the architecture and the
/// preprocessing of the recipe by those of the weights' model card. Images have the side `size` if it is given.
///
/// # Errors
/// Fails like [`prepare`], and if the recipe has no `[transfer]` section or the card's preprocessing cannot be trained
/// with.
pub fn follow_weights(
    mut recipe: Recipe,
    load: &LoadOptions,
    size: Option<u32>,
    options: &Options,
) -> anyhow::Result<Prepared> {
    let device = options.device()?;
    let transfer = recipe.transfer.as_ref().context("the recipe has no [transfer]")?;
    let start = open_weights(&transfer.weights, load, &device, options)?;
    recipe.architecture = start.card.architecture;
    recipe.images.follow(&start.card.preprocess)?;
    if let Some(size) = size {
        recipe.images.set_size(size)?;
    }
    complete(recipe, None, Some(start), device, options)
}

/// Checks the recipe and opens its data, or `data` in its place.
fn complete(
    mut recipe: Recipe,
    data: Option<&recipe::Data>,
    start: Option<hub::Opened>,
    device: Device,
    options: &Options,
) -> anyhow::Result<Prepared> {
    recipe.check()?;
    if let Some(dtype) = recipe.network.dtype.half() {
        runtime::dtype::check(options.device_names(), &device, dtype)?;
    }
    if recipe.ranks.sync_bn {
        ensure!(
            recipe.data.bad_samples != datasets::BadSamples::Skip,
            "ranks.sync_bn with data.bad_samples = \"skip\" could leave a process without images; use \"substitute\""
        );
    }
    let devices = parallel::Plan::new(&options.devices, &device, &recipe, world())?;
    let mut data = data::open(data.unwrap_or(&recipe.data), recipe.seed)?;
    data.notes.extend(data.small_images(&recipe));
    let warm = Warm::new(&mut recipe, &data, options.devices.len(), &device);
    Ok(Prepared { recipe, data, start: start.map(Arc::new), device, devices, resumed: None, warm })
}

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
    pub fn history(&self) -> &[crate::progress::EpochRecord] {
        &self.state.history
    }
}

fn open_weights(name: &str, load: &LoadOptions, device: &Device, options: &Options) -> anyhow::Result<hub::Opened> {
    let mut download = Download::new(options.progress);
    let opened = hub::open_with_progress(name, load, device, &mut |published, progress| {
        download.report(published.file(), progress.done, progress.total, progress.resumed);
    });
    let opened = opened.with_context(|| format!("cannot start from the weights {name}"))?;
    download.finish();
    Ok(opened)
}

/// Returns the number of stages of the network that a recipe trains.
///
/// # Errors
/// Fails if the weights do not match the network.
pub fn num_stages(prepared: &Prepared) -> anyhow::Result<usize> {
    let classes = prepared.data.class_names();
    let network = transfer::network(&prepared.recipe, prepared.start.as_deref(), &classes, &prepared.device)?;
    Ok(network.stages().len())
}

/// Trains a network in a new run folder. A training that fails after its first step is not an error here: see
/// [`Finished::end`].
///
/// # Errors
/// Fails if the run folder cannot be written, or if the weights do not match the network.
pub fn start(prepared: Prepared, kind: RunKind, options: &Options) -> anyhow::Result<Finished> {
    let loaders = prepared.data.loaders(&prepared.recipe, options.workers)?;
    let (folder, card, info) = new_run(&prepared, kind, options)?;
    let resume = Resume { state: first_state(&prepared)?, checkpoint: None };
    train(prepared, loaders, folder, card, info, resume, options)
}

/// The state of a run before its first step.
///
/// # Errors
/// Where the weights that it starts from do not fit the architecture.
pub(crate) fn first_state(prepared: &Prepared) -> anyhow::Result<State> {
    let Prepared { recipe, data, start, device, .. } = prepared;
    let data_fingerprint = data.fingerprint();
    Ok(State {
        recipe: recipe.to_toml(),
        unfiltered_fingerprint: data.unfiltered.clone().unwrap_or_else(|| data_fingerprint.clone()),
        data_fingerprint,
        data_contents: data.sample_contents(),
        aux_logits: start.as_ref().map(|start| transfer::aux_logits(recipe, start, device)).transpose()?,
        ..State::default()
    })
}

/// Makes a run's folder and writes what is known before it starts.
pub(crate) fn new_run(
    prepared: &Prepared,
    kind: RunKind,
    options: &Options,
) -> anyhow::Result<(RunFolder, Card, RunInfo)> {
    let name = match kind {
        RunKind::Probe => format!("{}-probe", run_name(&prepared.recipe)),
        _ => run_name(&prepared.recipe),
    };
    let world = world();
    if !world.is_root() {
        let of_root = |bytes| Ok(PathBuf::from(String::from_utf8(bytes)?));
        let path = world.on_root(|| bail!("the root alone makes folders"), |_| Vec::new(), of_root)?;
        let (card, info) = describe(prepared, &path, kind, options);
        return Ok((RunFolder::of_another(&path), card, info));
    }
    let make = || match &options.out {
        Some(out) => RunFolder::create_at(out),
        None => RunFolder::create_in(&options.artifacts, &name),
    };
    let path = |folder: &RunFolder| folder.path.to_string_lossy().into_owned().into_bytes();
    let folder = world.on_root(make, path, |_| bail!("the root alone makes folders"))?;
    match begin(prepared, &folder, kind, options) {
        Ok((card, info)) => Ok((folder, card, info)),
        Err(error) => {
            folder.discard();
            Err(error)
        }
    }
}

/// Writes what is known of a run before it starts.
fn begin(prepared: &Prepared, folder: &RunFolder, kind: RunKind, options: &Options) -> anyhow::Result<(Card, RunInfo)> {
    let run = &folder.path;
    let (card, info) = describe(prepared, run, kind, options);
    write_atomic_bytes(&run.join(RECIPE), prepared.recipe.to_toml().as_bytes())?;
    card.write(run.join("card.json"))?;
    run::write_info(&info, run)?;
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
    let mut info = run::describe(run, kind, options.command.clone(), options.device_names());
    info.dtype = recipe.network.dtype.name().to_string();
    info.data = data_info(recipe, data);
    info.paths = changes::paths(recipe);
    info.decisions.clone_from(&prepared.warm.decisions);
    (card, info)
}

fn data_info(recipe: &Recipe, data: &DataSet) -> DataInfo {
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
    let last = if last == "train" { data.rsplit(['/', '\\']).nth(1).unwrap_or(last) } else { last };
    let plain: String = last
        .chars()
        .take_while(|c| *c != '{' && *c != '*')
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' })
        .collect();
    let plain = plain.trim_matches('-');
    format!("{}-{}", if plain.is_empty() { "data" } else { plain }, recipe.architecture)
}

/// Where a run goes on.
struct Resume {
    state: State,
    checkpoint: Option<Checkpoint>,
}

/// Continues the run in a folder from its last checkpoint. `overrides` may change where its data is, which images are left
/// out (`data.train`, `data.valid`, `data.quarantine`, `data.bad_samples`), and `epochs`, which continues a finished run
/// too. Changes are recorded in `run.json`; where results may depend on them, a warning says so.
///
/// # Errors
/// Fails if the folder has no run, if another process trains in it, if the run is finished, if anything else in its recipe
/// was changed, or if its data has other images or labels.
pub fn resume(run: &Path, overrides: &Overrides, load: &LoadOptions, options: &Options) -> anyhow::Result<Finished> {
    let world = world();
    let folder = if world.is_root() { RunFolder::open(run)? } else { RunFolder::of_another(run) };
    // The others need not see the root's files.
    let read = || {
        let shown = run.join(RECIPE).display().to_string();
        let text = files::read_to_string(&run.join(RECIPE)).with_context(|| format!("cannot read {shown}"))?;
        let card = run.join("card.json");
        files::check_regular(&card).with_context(|| format!("cannot read {}", card.display()))?;
        Ok((run::read_info(run)?, Card::read(card)?, text))
    };
    let (mut info, card, text) = world.on_root(
        read,
        |read| serde_json::to_vec(read).unwrap_or_default(),
        |bytes| Ok(serde_json::from_slice(&bytes)?),
    )?;
    ensure!(
        info.kind != RunKind::Probe,
        "{} is a linear probe, which takes seconds: start it again (its features are kept)",
        run.display()
    );
    let load_last = || {
        let (checkpoint, warnings) = Store::new(run).load()?;
        for warning in warnings {
            options.observer.on_warning(&warning);
        }
        checkpoint.map(Checkpoint::into_parts).transpose()
    };
    let checkpoint = world.on_root(load_last, Parted::to_bytes, Parted::from_bytes)?;
    let checkpoint = checkpoint.map(Checkpoint::from_parts).transpose()?;

    let shown = run.join(RECIPE).display().to_string();
    let mut recipe = recipe::parse(&text, &shown, overrides)?;
    let mut before = match &checkpoint {
        Some(checkpoint) => {
            recipe::parse(&checkpoint.state.recipe, "the last checkpoint's recipe", &Overrides::default())
        }
        None => recipe::parse(&text, &shown, &Overrides::default()),
    }?;
    [&mut recipe, &mut before].into_iter().for_each(warm::settle);
    let changes = changes::between(&before, &recipe).map_err(|difference| {
        anyhow::anyhow!(
            "the recipe in {shown} is not the one that this run began with; put it back, or start another run:\n{difference}"
        )
    })?;
    if let Some(Checkpoint { state, .. }) = &checkpoint {
        refuse_end(run, info.status, state, before.epochs, recipe.epochs)?;
    }

    let located = changes::located(&recipe, &info.paths, &changes);
    let device = options.device()?;
    let start = match (&located.transfer, &checkpoint) {
        // The checkpoint has all weights.
        (Some(_), Some(Checkpoint { state: State { aux_logits: Some(_), .. }, .. })) | (None, _) => None,
        (Some(transfer), _) => {
            let load = LoadOptions { architecture: load.architecture.or(Some(recipe.architecture)), ..load.clone() };
            Some(open_weights(&transfer.weights, &load, &device, options)?)
        }
    };
    let opened = complete(recipe, Some(&located.data), start, device, options);
    let mut prepared = opened.with_context(|| {
        let is_known = located.data.train == "digits" || changes::exists(&located.data.train);
        let hint = if is_known { "" } else { "; if the data was moved, give data.train anew" };
        format!("cannot resume {}{hint}", run.display())
    })?;

    let (step, epoch) = checkpoint.as_ref().map_or((0, 0), |last| (last.state.step, last.state.epoch));
    let mut effects = changes::effects(&changes, &prepared.recipe);
    let mut records: Vec<RunChange> = changes.iter().map(|change| change.clone().at(step, epoch + 1)).collect();
    let mut record = |key, from: String, to: String| records.push(Change { key, from, to }.at(step, epoch + 1));
    let devices = options.device_names();
    if let Some(last) = run::continue_on(&mut info, &devices) {
        effects.push(format!("it was trained on {last} and continues on {devices}"));
        record("device", last, devices);
    }
    let (cpu, program) = (environment::cpu(), env!("CARGO_PKG_VERSION").to_string());
    if info.cpu != cpu {
        effects.push(format!("it was trained on the processor {} and continues on {cpu}", info.cpu));
        record("cpu", std::mem::replace(&mut info.cpu, cpu.clone()), cpu);
    }
    if info.hearth != program {
        effects.push(format!("it was trained by Hearth {} and continues by {program}", info.hearth));
        record("program", std::mem::replace(&mut info.hearth, program.clone()), program);
    }
    let first = first_state(&prepared)?;
    let state = match &checkpoint {
        Some(checkpoint) => {
            let known = &checkpoint.state;
            refuse_other_data(known, &first, &changes, &located.data.train)?;
            let is_same_set = known.data_fingerprint == first.data_fingerprint;
            if !is_same_set && changes.iter().all(|change| change.key != changes::QUARANTINE) {
                effects.push("the list of images that are left out has other entries".into());
                record(changes::QUARANTINE, known.data_fingerprint.clone(), first.data_fingerprint.clone());
            }
            if is_same_set && known.data_contents.len() == first.data_contents.len() {
                let pairs = known.data_contents.iter().zip(&first.data_contents);
                let (differ, of) = (pairs.filter(|(then, now)| then != now).count(), known.data_contents.len());
                if differ > 0 {
                    effects.push(format!("{differ} of {of} images that were compared have other contents"));
                    record("images", format!("{of} compared"), format!("{differ} have other contents"));
                }
            }
            let State { recipe, data_fingerprint, unfiltered_fingerprint, data_contents, .. } = first;
            State { recipe, data_fingerprint, unfiltered_fingerprint, data_contents, ..known.clone() }
        }
        None => {
            if world.is_root() {
                let note = format!("{} has no checkpoint yet: it starts from its beginning", run.display());
                options.observer.on_note(&note);
            }
            first
        }
    };
    ensure!(
        card.classes == prepared.data.class_names(),
        "the data in {} has other classes than this run began with",
        located.data.train
    );
    if checkpoint.is_some() {
        match effects.is_empty() {
            true => prepared.resumed = Some("the run ends with the same bits as without the interruption".into()),
            false => prepared.data.notes.push(format!(
                "the run continues with changes, so its results are not bit for bit those of a run without them: {}",
                effects.join("; ")
            )),
        }
    }
    if checkpoint.is_none() {
        warm::start(&mut prepared, options)?;
    }
    let loaders = prepared.data.loaders(&prepared.recipe, options.workers)?;
    (info.status, info.finished) = (Some(RunStatus::Running), None);
    run::record_changes(&mut info, step, records);
    info.data = data_info(&prepared.recipe, &prepared.data);
    info.paths.extend(changes::paths(&located));
    if world.is_root() {
        run::write_info(&info, run)?;
        if !changes.is_empty() {
            write_atomic_bytes(&run.join(RECIPE), prepared.recipe.to_toml().as_bytes())?;
        }
    }
    train(prepared, loaders, folder, card, info, Resume { state, checkpoint }, options)
}

/// Refuses to resume a run that has nothing left to do.
fn refuse_end(
    run: &Path,
    status: Option<RunStatus>,
    state: &State,
    epochs_before: usize,
    epochs: usize,
) -> anyhow::Result<()> {
    let (done, shown) = (state.epoch, run.display());
    let is_finished = status == Some(RunStatus::Finished);
    if is_finished && epochs == epochs_before {
        return Err(RunFinished { run: run.to_path_buf(), epochs: done }.into());
    }
    let least = if is_finished || state.batch > 0 { done + 1 } else { done };
    ensure!(
        epochs >= least,
        "the run {shown} has trained {done} epochs{}: epochs is {epochs}, and has to be at least {least}",
        if state.batch > 0 { " and a part of the next" } else { "" }
    );
    Ok(())
}

/// A run resumes on the images that it began with, apart from those that are left out.
fn refuse_other_data(known: &State, now: &State, changes: &[Change], place: &str) -> anyhow::Result<()> {
    let leaves_out_others = changes.iter().any(|change| change.key == changes::QUARANTINE);
    let is_known = known.data_fingerprint == now.data_fingerprint
        || (!known.unfiltered_fingerprint.is_empty() && known.unfiltered_fingerprint == now.unfiltered_fingerprint);
    ensure!(
        is_known,
        "the data in {place} is not what this run began with (fingerprint {}, now {}): images were added, removed \
         or given other labels. Put it back, or start another run from this one's weights{}",
        known.data_fingerprint,
        now.data_fingerprint,
        if leaves_out_others { "; an older checkpoint cannot tell whether only data.quarantine changed" } else { "" }
    );
    Ok(())
}

/// Runs Burn's learner from where `resume` says to the end.
fn train(
    prepared: Prepared,
    loaders: Loaders,
    folder: RunFolder,
    card: Card,
    mut info: RunInfo,
    resume: Resume,
    options: &Options,
) -> anyhow::Result<Finished> {
    let run = folder.path.clone();
    let notes = prepared.data.notes.clone();
    let parts = match Parts::new(&prepared, &loaders, &card, resume, None, options) {
        Ok(parts) => parts,
        Err(error) => {
            folder.discard();
            return Err(error);
        }
    };
    info.parameters = parts.classifier.network.num_parameters();
    let world = world();
    let is_root = world.is_root();
    let dashboard = is_root && options.dashboard;
    let observer = if dashboard { Arc::new(WarningsOnly(options.observer.clone())) } else { options.observer.clone() };
    let (epochs, steps_per_epoch) = (prepared.recipe.epochs, parts.steps_per_epoch);
    let journal = match is_root {
        true => Journal::open(&run, &parts.state, observer, epochs, steps_per_epoch),
        false => Ok(Journal::silent(epochs, steps_per_epoch)),
    };
    let journal = match journal {
        Ok(journal) => journal,
        Err(error) => {
            folder.discard();
            return Err(error);
        }
    };
    for note in notes.iter().filter(|_| is_root) {
        journal.warn(note);
    }
    journal.say(&format!(
        "{} with {} parameters on {} images of {} classes, {} held out; {} epochs of {} steps; {}",
        prepared.recipe.architecture,
        info.parameters,
        info.data.train_images,
        info.data.classes,
        info.data.valid_images,
        prepared.recipe.epochs,
        parts.steps_per_epoch,
        run.display(),
    ));
    for decision in prepared.warm.decisions.iter().filter(|_| parts.state.step == 0) {
        journal.say(decision);
    }
    if parts.state.step > 0 {
        let promise = prepared.resumed.as_ref().map_or(String::new(), |promise| format!("; {promise}"));
        journal.say(&format!("going on from step {}, epoch {}{promise}", parts.state.step, parts.state.epoch + 1));
    }
    if let Some(devices) = &prepared.devices {
        let (count, names) = (options.devices.len(), options.device_names());
        journal.say(&format!("{count} devices ({names}): {}", devices.how()));
    }
    if !world.is_alone() {
        journal.say(&format!(
            "{} processes, {} on this host; {} images a forward pass of each; {:.1} MB of gradients a step",
            world.size(),
            world.local_size(),
            prepared.recipe.batch_size / world.size(),
            4e-6 * info.parameters as f64,
        ));
    }
    if is_root {
        run::write_info(&info, &run)?;
    }
    let steps_before = parts.state.step;
    let recipe = prepared.recipe.clone();
    let outcome =
        launch(parts, prepared, loaders, card.clone(), &run, journal, RunLimits::default(), dashboard, options)?;
    let steps = outcome.state.step - steps_before;
    if !world.is_alone() && steps > 0 {
        outcome.journal.say(&format!(
            "each process gave {:.2} MB a step into collectives ({:.1} MB in all), for {:.2} MB of gradients a step",
            1e-6 * world.bytes() as f64 / steps as f64,
            1e-6 * world.bytes() as f64,
            4e-6 * info.parameters as f64,
        ));
        if let Some(record) = outcome.state.history.last() {
            outcome.journal.say(&format!("the last epoch: {}", record.times.verdict()));
        }
    }
    finish(outcome, &run, &recipe, &card, info, options)
}

/// What a session is made of, before it is launched.
struct Parts {
    classifier: Classifier,
    optimizer: Optimizer,
    scheduler: ModuleLrScheduler,
    ema: Option<Ema>,
    readback: Readback,
    is_asynchronous: bool,
    warms_up: bool,
    state: State,
    steps_per_epoch: u64,
}

impl Parts {
    fn new(
        prepared: &Prepared,
        loaders: &Loaders,
        card: &Card,
        resume: Resume,
        rates: Option<Rates>,
        options: &Options,
    ) -> anyhow::Result<Self> {
        let Prepared { recipe, data, start, device, .. } = prepared;
        let main = options.main_device()?;
        let (buffer, readback) = (flat::buffer(main), Readback::new(main)?);
        let Resume { state, checkpoint } = resume;
        let steps_per_epoch = loaders.first().num_batches().div_ceil(recipe.accumulate) as u64;
        let mut network = match (&checkpoint, &recipe.transfer, start, state.aux_logits) {
            (Some(_), Some(_), None, Some(aux)) => {
                transfer::network_of_checkpoint(recipe, aux, card.transform_input, &card.classes, device)
            }
            _ => transfer::network(recipe, start.as_deref(), &card.classes, device)?,
        };
        if let (None, Some(record)) = (&checkpoint, &prepared.warm.network) {
            network = network.load_record(record.clone());
        }
        let mut rate_groups = Vec::new();
        if let Some(transfer) = &recipe.transfer {
            network = transfer::frozen(network, transfer, state.epoch)?;
            rate_groups = transfer::rate_groups(&network, transfer);
        }
        if checkpoint.is_none() {
            // A record gives parameters the identity that the root's have; groups are built on it.
            network = parallel::broadcast_network(world(), network)?;
            rate_groups = recipe.transfer.as_ref().map_or(Vec::new(), |t| transfer::rate_groups(&network, t));
        }
        let mut ema = recipe.ema.as_ref().map(|ema| Ema::new(ema, &network, buffer));
        let weights = data.class_weights(recipe.loss.class_weights);
        let task = Arc::new(Task::new(recipe, card.classes.len(), weights));
        let mut optimizer_record = None;
        if let Some(checkpoint) = checkpoint {
            network = network.load_record(checkpoint.network);
            optimizer_record = Some(checkpoint.optimizer);
            rate_groups = recipe.transfer.as_ref().map_or(Vec::new(), |t| transfer::rate_groups(&network, t));
            if let (Some(ema), Some(record)) = (&mut ema, checkpoint.average) {
                ema.load(|network| network.load_record(record), state.average_started);
            }
        }
        // Of the network's parameters, which a record gives their identity.
        let mut optimizer = Optimizer::new(&recipe.optimizer, &network, buffer);
        if let Some(record) = optimizer_record {
            optimizer.load(record, device);
        }
        let of_recipe = || Rates::new(&recipe.schedule, recipe.epochs, steps_per_epoch).scaled(recipe.rate_factor());
        let rates = rates.unwrap_or_else(of_recipe);
        let rates = rates.starting_at(state.step);
        let mut scheduler = ModuleLrScheduler::new(rates.clone());
        if prepared.warm.holds_head {
            let head = network.stage_params(network.head_key());
            rate_groups.push((ParamGroup::from_ids(head), 0.0));
        }
        for (group, factor) in rate_groups {
            scheduler = scheduler.with_group(group, rates.scaled(factor));
        }
        let classifier = Classifier::new(network, task);
        let (is_asynchronous, warms_up) = (is_asynchronous(main), autotunes(main.backend()));
        Ok(Self { classifier, optimizer, scheduler, ema, readback, is_asynchronous, warms_up, state, steps_per_epoch })
    }
}

/// Hands a session to Burn's `SupervisedTraining`.
#[allow(clippy::too_many_arguments)]
fn launch(
    parts: Parts,
    prepared: Prepared,
    loaders: Loaders,
    card: Card,
    run: &Path,
    journal: Journal,
    limits: RunLimits,
    dashboard: bool,
    options: &Options,
) -> anyhow::Result<Outcome> {
    let Parts { classifier, optimizer, scheduler, ema, readback, is_asynchronous, warms_up, state, steps_per_epoch } =
        parts;
    // What would be printed waits until the dashboard gives the terminal back.
    let hold = dashboard.then(runtime::output::hold_stderr);
    let interrupter = Interrupter::new();
    let (train, valid) = (Arc::new(loaders.first().clone()), Arc::new(loaders.valid.clone()));
    let (epochs, classes) = (prepared.recipe.epochs, card.classes.len());
    let starting_after = state.epoch;
    let session = Session {
        recipe: prepared.recipe,
        card,
        run: run.to_path_buf(),
        loaders,
        device: prepared.device.autodiff(),
        devices: prepared.devices,
        state,
        optimizer,
        scheduler: scheduler.clone(),
        ema,
        journal,
        readback,
        is_asynchronous,
        warms_up,
        stop: options.stop.clone(),
        save: options.save.clone(),
        limits,
        steps_per_epoch,
        world: world(),
    };
    let (strategy, outcome) = Strategy::new(session);
    let mut training = SupervisedTraining::new(run, train, valid)
        .metrics((Mean::new(MetricKind::Loss), Mean::new(MetricKind::Top1)))
        .metric_train_numeric(LearningRateMetric::new())
        .with_metric_logger(NoFiles)
        .renderer(renderer(dashboard, interrupter.clone()))
        .with_interrupter(interrupter)
        .with_training_strategy(TrainingStrategy::Custom(Arc::new(strategy)))
        // The journal writes `experiment.log`; Burn's would take over the logger and the panic hook of the process.
        .with_application_logger(None)
        .num_epochs(epochs);
    if classes > TOP {
        training = training.metrics((Mean::new(MetricKind::Top5),));
    }
    if starting_after > 0 {
        training = training.checkpoint(starting_after);
    }
    // The strategy steps by an optimizer of its own.
    let unused = SgdConfig::new().init();
    let result = training.launch(Learner::new(classifier, unused, scheduler));
    // The dashboard gives the terminal back when it is dropped.
    drop(result.renderer);
    drop(hold);
    let mut outcome =
        outcome.lock().unwrap_or_else(PoisonError::into_inner).take().context("training ended without an outcome")?;
    if let (Some(error), End::Finished | End::Interrupted) = (result.error, &outcome.end) {
        outcome.end = End::Failed(anyhow::anyhow!("{error}"));
    }
    Ok(outcome)
}

/// Saves the last weights, writes the report, and notes the result.
pub(crate) fn finish(
    outcome: Outcome,
    run: &Path,
    recipe: &Recipe,
    card: &Card,
    mut info: RunInfo,
    options: &Options,
) -> anyhow::Result<Finished> {
    let Outcome { state, network, ema, journal, end } = outcome;
    if !world().is_root() {
        return Ok(Finished { run: run.to_path_buf(), info, end, state });
    }
    info.status = Some(match &end {
        End::Finished => RunStatus::Finished,
        End::Interrupted => RunStatus::Interrupted,
        End::Failed(_) => RunStatus::Failed,
    });
    info.finished = Some(crate::run::now());
    info.result = result(&state, recipe);
    if let (End::Finished, Some(warning)) = (&end, before_the_body(&state, recipe, &network)) {
        journal.warn(&warning);
    }
    if matches!(end, End::Finished) {
        let networks = [(Some(&network), "last.safetensors"), (ema.as_ref(), "last-ema.safetensors")];
        for (network, name) in networks {
            let Some(network) = network else { continue };
            weights::save(network, card, run.join(name)).with_context(|| {
                let shown = run.display();
                format!("the training is done, but its last weights could not be saved; then: train resume {shown}")
            })?;
        }
    }
    run::write_info(&info, run)?;
    if let Err(error) = report::write(run) {
        journal.warn(&format!("the report could not be written: {error:#}"));
    }
    if let (End::Finished, Some(result)) = (&end, &info.result) {
        append_result(run, recipe, &info, result, options)?;
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

/// One line in `results.csv`, beside the run's folder.
fn append_result(
    run: &Path,
    recipe: &Recipe,
    info: &RunInfo,
    result: &RunResult,
    options: &Options,
) -> anyhow::Result<()> {
    let table = match &options.out {
        Some(_) => run.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")),
        None => &options.artifacts,
    };
    let header = [
        "run",
        "kind",
        "architecture",
        "data",
        "classes",
        "train_images",
        "valid_images",
        "epochs",
        "best_epoch",
        "best_top1",
        "best_top5",
        "last_top1",
        "last_loss",
        "images_per_second",
        "seconds",
        "backend",
        "finished",
    ];
    let last = result.last.unwrap_or(result.best);
    let row = [
        info.name.clone(),
        info.kind.name().to_string(),
        recipe.architecture.to_string(),
        recipe.data.train.clone(),
        info.data.classes.to_string(),
        info.data.train_images.to_string(),
        info.data.valid_images.to_string(),
        recipe.epochs.to_string(),
        result.best_epoch.map_or(String::new(), |epoch| epoch.to_string()),
        format!("{:.2}", result.best.top1),
        format!("{:.2}", result.best.top5),
        format!("{:.2}", last.top1),
        format!("{:.4}", last.loss),
        format!("{:.1}", result.images_per_second),
        format!("{:.0}", result.seconds),
        info.backend.clone(),
        info.finished.clone().unwrap_or_default(),
    ];
    results::append_result(table, &header, &row)
}

/// Steps of the warm-up of a trial that several processes share.
const SHARED_WARMUP: usize = 5;

/// What a short trial of a whole run came to.
pub(crate) struct Trial {
    pub outcome: Outcome,
    pub steps_per_epoch: u64,
    pub num_valid_batches: usize,
}

/// Runs a few steps of a recipe in a folder of its own, which is left to the caller; `rates` replace its schedule.
pub(crate) fn trial(
    prepared: Prepared,
    folder: &Path,
    limits: RunLimits,
    rates: Option<Rates>,
    options: &Options,
) -> anyhow::Result<Trial> {
    let loaders = prepared.data.loaders(&prepared.recipe, options.workers)?;
    let num_valid_batches = loaders.valid.num_batches();
    let card = Card {
        classes: prepared.data.class_names(),
        preprocess: prepared.recipe.images.preprocess(),
        ..Card::of(prepared.recipe.architecture, 1, "a trial")
    };
    // Processes that share the work make as many steps each, so their clocks may not decide.
    let warmup = if world().is_alone() { Warmup::default() } else { Warmup::new(SHARED_WARMUP, SHARED_WARMUP) };
    let state = State { pace: Pace::after(warmup), ..State::default() };
    let resume = Resume { state, checkpoint: None };
    let parts = Parts::new(&prepared, &loaders, &card, resume, rates, options)?;
    let steps_per_epoch = parts.steps_per_epoch;
    let journal = Journal::open(
        folder,
        &parts.state,
        Arc::new(WarningsOnly(options.observer.clone())),
        prepared.recipe.epochs,
        steps_per_epoch,
    )?;
    let outcome = launch(parts, prepared, loaders, card, folder, journal, limits, false, options)?;
    Ok(Trial { outcome, steps_per_epoch, num_valid_batches })
}
