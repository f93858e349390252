//! Training by a recipe.

use std::{
    env, io,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use hub::LoadOptions;
use models::Architecture;
use report::format::{Metrics, RunKind};
use runtime::progress::Output;
use train::{
    EpochRecord, Options, Recipe,
    adapt::{self, Explicit},
    observer::{EpochReport, Observer, StepReport},
    probe,
    recipe::{self, Freeze, Overrides},
    run::{self, End, Finished, Prepared},
};

use crate::{
    Classifier, DeviceSpec,
    classifier::{check_path, check_published},
    error::{Error, Result, cause},
};

/// The stack of the thread that trains.
const STACK: usize = 32 << 20;

/// What a callback asks of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Train on.
    Continue,
    /// Stop after the current step, with a checkpoint from which the run can be resumed.
    Stop,
}

/// Trains a network by a recipe into a run folder, as the `train` program does: with checkpoints, metrics, a log and a
/// report. Log records of other modules stay with the logger of the process; `experiment.log` has them too if that is the
/// one of `runtime::logging`.
///
/// ```
/// use hearth::{Flow, Trainer, models::Architecture};
///
/// let artifacts = tempfile::tempdir()?;
/// let run = Trainer::pretrain(Architecture::ResNet20, "digits")
///     .epochs(1)
///     .artifacts(artifacts.path())
///     .on_epoch(|epoch| if epoch.record.valid.top1 > 99.0 { Flow::Stop } else { Flow::Continue })
///     .run()?;
/// println!("{:.1} %, {}", run.best().unwrap().top1, run.folder().display());
/// let classifier = run.classifier()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Trainer {
    start: Start,
    explicit: Explicit,
    size: Option<u32>,
    device: DeviceSpec,
    artifacts: PathBuf,
    folder: Option<PathBuf>,
    workers: Option<usize>,
    callbacks: Callbacks,
}

/// What the run starts from.
enum Start {
    /// A recipe whose network and preprocessing are those of the weights' card.
    Card(Result<Box<Recipe>>),
    /// A recipe as it is written.
    Recipe(Result<Box<Recipe>>),
    /// The last checkpoint of a run.
    Checkpoint(PathBuf),
}

type Callback<T> = Box<dyn FnMut(&T) -> Flow + Send>;
type EpochCallback = Box<dyn FnMut(&EpochReport<'_>) -> Flow + Send>;
type Warning = Box<dyn FnMut(&str) + Send>;

#[derive(Default)]
struct Callbacks {
    step: Mutex<Option<Callback<StepReport>>>,
    epoch: Mutex<Option<EpochCallback>>,
    warning: Mutex<Option<Warning>>,
    stop: Arc<AtomicBool>,
}

impl Callbacks {
    fn obey(&self, flow: Flow) {
        if flow == Flow::Stop {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

impl Observer for Callbacks {
    fn on_step(&self, step: &StepReport) {
        if let Some(callback) = &mut *self.step.lock().unwrap_or_else(PoisonError::into_inner) {
            self.obey(callback(step));
        }
    }

    fn on_epoch(&self, epoch: &EpochReport<'_>) {
        if let Some(callback) = &mut *self.epoch.lock().unwrap_or_else(PoisonError::into_inner) {
            self.obey(callback(epoch));
        }
    }

    fn on_warning(&self, text: &str) {
        if let Some(callback) = &mut *self.warning.lock().unwrap_or_else(PoisonError::into_inner) {
            callback(text);
        }
    }
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { size, device, artifacts, folder, .. } = self;
        f.debug_struct("Trainer")
            .field("size", size)
            .field("device", device)
            .field("artifacts", artifacts)
            .field("folder", folder)
            .finish_non_exhaustive()
    }
}

impl Trainer {
    /// Fine-tunes trained weights on new images: first the classifier alone, then the whole network, by the shipped
    /// recipe `finetune`. `weights` is a published name, a run folder or a weight file.
    ///
    /// What is not set follows the data: batch size, epochs, warm-up, patience, augmentation, and, by a range test, the
    /// learning rate before the classifier.
    pub fn finetune(weights: impl Into<String>, data: impl AsRef<Path>) -> Self {
        let mut trainer = Self::new(Start::Card(shipped("finetune"))).data(data);
        trainer.edit(|recipe| {
            if let Some(transfer) = &mut recipe.transfer {
                transfer.weights = weights.into();
            }
        });
        trainer
    }

    /// Trains a network from random weights: by the shipped recipe `digits` for the data set of this name, and by
    /// `imagenet-classic` for others.
    pub fn pretrain(architecture: Architecture, data: impl AsRef<Path>) -> Self {
        let name = if data.as_ref() == Path::new("digits") { "digits" } else { "imagenet-classic" };
        let mut trainer = Self::new(Start::Recipe(shipped(name))).data(data);
        trainer.edit(|recipe| recipe.architecture = architecture);
        trainer
    }

    /// Trains by a recipe.
    pub fn from_recipe(recipe: Recipe) -> Self {
        Self::new(Start::Recipe(Ok(Box::new(recipe))))
    }

    /// Trains by a recipe in TOML, for instance the `recipe.toml` of a run folder.
    ///
    /// # Errors
    /// Fails if the text is not a recipe; the message has the line.
    pub fn from_toml(text: &str) -> Result<Self> {
        let recipe = recipe::parse(text, "the text", &Overrides::default());
        Ok(Self::from_recipe(recipe.map_err(|error| Error::Recipe { cause: cause(error) })?))
    }

    /// Continues the run in a folder from its last checkpoint, to the same bits as if it had not been stopped. The run
    /// keeps its recipe: methods that change a recipe are ignored.
    pub fn resume(run: impl Into<PathBuf>) -> Self {
        Self::new(Start::Checkpoint(run.into()))
    }

    fn new(start: Start) -> Self {
        Self {
            start,
            explicit: Explicit::default(),
            size: None,
            device: DeviceSpec::default(),
            artifacts: "artifacts".into(),
            folder: None,
            workers: None,
            callbacks: Callbacks::default(),
        }
    }

    fn edit(&mut self, edit: impl FnOnce(&mut Recipe)) {
        if let Start::Card(Ok(recipe)) | Start::Recipe(Ok(recipe)) = &mut self.start {
            let before = recipe.clone();
            edit(recipe);
            self.explicit.add_changes(&before, recipe);
        }
    }

    /// Sets a key of the recipe, which stays as it is even if that is the recipe's own value.
    fn set(&mut self, key: &str, edit: impl FnOnce(&mut Recipe)) {
        self.edit(edit);
        self.explicit.add(key);
    }

    /// Changes the recipe: every key of a recipe is a field.
    ///
    /// ```
    /// use hearth::{Trainer, models::Architecture, recipe::Ema};
    ///
    /// let trainer = Trainer::pretrain(Architecture::ResNet20, "digits")
    ///     .recipe(|recipe| recipe.ema = Some(Ema { decay: 0.99, every: 1 }));
    /// ```
    pub fn recipe(mut self, edit: impl FnOnce(&mut Recipe)) -> Self {
        self.edit(edit);
        self
    }

    /// Sets the images: a folder with one folder per class, or another data set that [`datasets`](crate::datasets)
    /// opens.
    pub fn data(mut self, data: impl AsRef<Path>) -> Self {
        self.edit(|recipe| recipe.data.train = data.as_ref().to_string_lossy().into_owned());
        self
    }

    /// Selects one of several networks of a weight file by its key, such as `state_dict_ema` or `encoder_q`, for
    /// fine-tuning.
    pub fn weights_key(mut self, key: impl Into<String>) -> Self {
        self.edit(|recipe| {
            if let Some(transfer) = &mut recipe.transfer {
                transfer.weights_key = Some(key.into());
            }
        });
        self
    }

    /// Sets the validation images; by default the `val` split of the images, or a part of them.
    pub fn validation(mut self, data: impl AsRef<Path>) -> Self {
        self.edit(|recipe| recipe.data.valid = Some(data.as_ref().to_string_lossy().into_owned()));
        self
    }

    /// Holds a fraction of each class out for validation, if the data has no `val` split; 0.2 by default.
    pub fn validation_fraction(mut self, fraction: f64) -> Self {
        self.edit(|recipe| recipe.data.val_fraction = Some(fraction));
        self
    }

    /// Sets the number of epochs.
    pub fn epochs(mut self, epochs: usize) -> Self {
        self.set("epochs", |recipe| recipe.epochs = epochs);
        self
    }

    /// Sets the number of images of a forward pass.
    pub fn batch_size(mut self, batch_size: usize) -> Self {
        self.set("batch_size", |recipe| recipe.batch_size = batch_size);
        self
    }

    /// Sets the learning rate after the warm-up.
    pub fn learning_rate(mut self, learning_rate: f64) -> Self {
        self.set("schedule.learning_rate", |recipe| recipe.schedule.learning_rate = learning_rate);
        self
    }

    /// Sets the side of the images in pixels, in training and validation; all sizes of the transforms change in
    /// proportion.
    pub fn image_size(mut self, size: u32) -> Self {
        self.size = Some(size);
        self
    }

    /// Sets the seed of the initial weights, the order, the augmentation and dropout.
    pub fn seed(mut self, seed: u64) -> Self {
        self.edit(|recipe| recipe.seed = seed);
        self
    }

    /// Sets which stages of trained weights stay frozen, and the epoch, from 1, with which they are trained after all.
    pub fn freeze(mut self, freeze: Freeze, unfreeze_at: Option<usize>) -> Self {
        self.edit(|recipe| {
            if let Some(transfer) = &mut recipe.transfer {
                (transfer.freeze, transfer.unfreeze_at) = (freeze, unfreeze_at);
            }
        });
        self
    }

    /// Selects the device; by default the CPU.
    pub fn device(mut self, device: DeviceSpec) -> Self {
        self.device = device;
        self
    }

    /// Sets the folder in which the run folder is created; `artifacts` by default.
    pub fn artifacts(mut self, folder: impl Into<PathBuf>) -> Self {
        self.artifacts = folder.into();
        self
    }

    /// Sets the run folder itself, which must be empty or absent.
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// Sets the number of threads that decode and transform; by default the number of cores.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Calls `callback` after each step of the optimizer. On GPUs the results of several steps arrive together.
    pub fn on_step(self, callback: impl FnMut(&StepReport) -> Flow + Send + 'static) -> Self {
        *self.callbacks.step.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(callback));
        self
    }

    /// Calls `callback` after the validation of each epoch.
    pub fn on_epoch(self, callback: impl FnMut(&EpochReport<'_>) -> Flow + Send + 'static) -> Self {
        *self.callbacks.epoch.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(callback));
        self
    }

    /// Calls `callback` with each warning. Warnings also go to the logger of the program, if it has one.
    pub fn on_warning(self, callback: impl FnMut(&str) + Send + 'static) -> Self {
        *self.callbacks.warning.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(callback));
        self
    }

    /// Trains until the last epoch, or until a callback stops the run.
    ///
    /// Runs of one process wait for each other, since Burn's random generators belong to the process; so a callback must not
    /// start another run. Results are bit-identical if no other thread initializes a network or applies dropout meanwhile.
    ///
    /// # Errors
    /// Fails if the recipe is not valid, if data, weights or device cannot be opened, if the run folder cannot be
    /// written, or if the loss is not finite in many steps in a row. What a failed training wrote stays in its run
    /// folder.
    pub fn run(self) -> Result<TrainedRun> {
        // Threads have 2 MiB by default, too little for training.
        let failed = |error: io::Error| Error::Start { cause: format!("cannot start a thread: {error}") };
        let thread = thread::Builder::new().name("hearth-train".into()).stack_size(STACK);
        let run = thread.spawn(|| self.train()).map_err(failed)?;
        run.join().unwrap_or_else(|panic| resume_unwind(panic))
    }

    fn train(self) -> Result<TrainedRun> {
        // Burn's random generators belong to the process: a second run would draw from the same sequence.
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let Self { start, explicit, size, device, artifacts, folder, workers, callbacks } = self;
        device.open()?;
        let stop = callbacks.stop.clone();
        // The table of results is beside the run folder.
        let artifacts = match &start {
            Start::Checkpoint(run) => run.parent().map(Path::to_path_buf).unwrap_or_default(),
            _ => artifacts,
        };
        let options = Options {
            artifacts,
            out: folder,
            workers,
            observer: Arc::new(callbacks),
            progress: Output::Quiet,
            stop,
            command: env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect(),
            ..Options::new(device.backend())
        };
        let failed = |error| Error::Start { cause: cause(error) };
        let finished = match start {
            Start::Checkpoint(folder) => {
                run::resume(&folder, &Overrides::default(), &LoadOptions::default(), &options).map_err(failed)?
            }
            Start::Card(recipe) => {
                let recipe = *recipe?;
                check_start(&recipe)?;
                let prepared = run::follow_weights(recipe, &LoadOptions::default(), size, &options);
                let mut prepared = prepared.map_err(failed)?;
                adapt::sizes(&mut prepared, &explicit).map_err(failed)?;
                adapt::rates(&mut prepared, &explicit, &options).map_err(failed)?;
                fit(prepared, &options)?
            }
            Start::Recipe(recipe) => {
                let mut recipe = *recipe?;
                if let Some(size) = size {
                    recipe.images.set_size(size).map_err(|error| Error::Recipe { cause: cause(error) })?;
                }
                check_start(&recipe)?;
                fit(run::prepare(recipe, &LoadOptions::default(), &options).map_err(failed)?, &options)?
            }
        };
        TrainedRun::of(finished)
    }
}

/// Starts a run from random or trained weights.
fn fit(prepared: Prepared, options: &Options) -> Result<Finished> {
    let finished = match &prepared.recipe.transfer {
        Some(_) => probe::finetune(prepared, options),
        None => run::start(prepared, RunKind::Pretrain, options),
    };
    finished.map_err(|error| Error::Start { cause: cause(error) })
}

/// Checks the recipe, and that its weights exist.
fn check_start(recipe: &Recipe) -> Result<()> {
    let Some(transfer) = &recipe.transfer else {
        return recipe.check().map_err(|error| Error::Recipe { cause: cause(error) });
    };
    let path = Path::new(&transfer.weights);
    if path.exists() || transfer.weights.contains(['/', '\\', '.']) {
        check_path(path)
    } else {
        check_published(&transfer.weights)
    }
}

/// Returns a shipped recipe.
fn shipped(name: &str) -> Result<Box<Recipe>> {
    let recipe = recipe::load(name, &Overrides::default());
    Ok(Box::new(recipe.map_err(|error| Error::Recipe { cause: cause(error) })?))
}

/// A run that reached its end, or was stopped by a callback.
#[derive(Debug)]
pub struct TrainedRun(Finished);

impl TrainedRun {
    fn of(finished: Finished) -> Result<Self> {
        match finished.end {
            End::Failed(error) => Err(Error::Training { folder: finished.run, cause: cause(error) }),
            End::Finished | End::Interrupted => Ok(Self(finished)),
        }
    }

    /// Returns the run folder: recipe, model card, weights, checkpoints, metrics and `report.html`.
    pub fn folder(&self) -> &Path {
        &self.0.run
    }

    /// Returns whether a callback stopped the run, which [`Trainer::resume`] then continues.
    pub fn is_stopped(&self) -> bool {
        matches!(self.0.end, End::Interrupted)
    }

    /// Returns the validation metrics of the best epoch, whose weights are in the run folder; `None` if the run was
    /// stopped in its first epoch.
    pub fn best(&self) -> Option<Metrics> {
        self.0.info.result.as_ref().map(|result| result.best)
    }

    /// Returns the best epoch, from 1; 0 for a fine-tuning that made nothing better than the classifier before it did.
    pub fn best_epoch(&self) -> Option<usize> {
        self.0.info.result.as_ref().and_then(|result| result.best_epoch)
    }

    /// Returns the metrics of each epoch; first those of epoch 0, if the classifier was trained before the first step.
    pub fn history(&self) -> &[EpochRecord] {
        self.0.history()
    }

    /// Returns the number of steps of the optimizer.
    pub fn steps(&self) -> u64 {
        self.0.steps()
    }

    /// Opens the best weights on the CPU.
    ///
    /// # Errors
    /// Fails if the run was stopped in its first epoch, or if its weights cannot be read.
    pub fn classifier(&self) -> Result<Classifier> {
        Classifier::open(self.folder())
    }
}
