//! The training loop: Burn's learner and events, our loader, checkpoints inside an epoch, an exponential moving average
//! of the weights, and a guard against values that are not finite.
//!
//! - [`learner`]: what Burn's `SupervisedTraining` calls
//! - `epoch`: the steps of one epoch
//! - `step`: forward and backward passes, and the update that they lead to
//! - [`guard`]: which steps count
//! - [`optimizer`], [`ema`]: new parameters, and the average of them; [`flat`]: both in few kernels
//! - `upload`: batches on their way to the device
//! - `validate`: the validation at the end of an epoch

pub mod ema;
mod epoch;
pub mod flat;
pub mod guard;
pub mod learner;
mod metric;
pub mod optimizer;
mod renderer;
mod share;
pub mod slot;
mod step;
mod upload;
mod validate;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use burn::{
    module::Module,
    optim::lr_scheduler::module_lr_scheduler::{ModuleLearningRate, ModuleLrScheduler},
    tensor::Device,
};
use burn_train::Interrupter;
use datasets::Source;
use hub::{Card, weights};
use models::{ImageClassifier, Network};
use runtime::{
    backend::{Backend, BackendSpec},
    communicator::Communicator,
    exit::chain,
};

use self::{
    ema::Ema, epoch::Agreed, guard::LossScale, learner::Events, optimizer::Optimizer, share::BatchShare, slot::Slot,
    step::SubmittedStep, upload::Copies, validate::Validation,
};
use crate::{
    Error, Result,
    classifier::Classifier,
    data::Loaders,
    evaluation::{MetricSums, Metrics},
    parallel::{self, DataParallel},
    progress::{EpochRecord, State, StepTimes, lap},
    recipe::{BatchNormMode, Dtype, HeadStart, Recipe},
    run::{
        checkpoint::{Checkpoint, Store},
        logger::RunLogger,
        results::{self, BadSampleRow},
    },
    transfer,
};

/// A run, ready to start.
pub struct Session {
    pub recipe: Recipe,
    pub card: Card,
    pub run: PathBuf,
    pub loaders: Loaders,
    /// The bad samples that earlier processes of the run listed.
    pub earlier_bad: Vec<BadSampleRow>,
    pub device: Device,
    /// The devices of this process, where they are several.
    pub devices: Option<parallel::Plan>,
    pub state: State,
    pub optimizer: Optimizer,
    /// The learning rates of the steps that follow.
    pub scheduler: ModuleLrScheduler,
    pub ema: Option<Ema>,
    pub logger: RunLogger,
    pub readback: Readback,
    /// Whether the device accepts work before it has done what came earlier.
    pub is_asynchronous: bool,
    /// Whether the device compiles and tunes its kernels during the first steps.
    pub warms_up: bool,
    /// Set from outside to end the run after the current step.
    pub stop: Arc<AtomicBool>,
    /// Set from outside to write a checkpoint after the current step; cleared when it is written.
    pub save: Arc<AtomicBool>,
    pub limits: RunLimits,
    pub steps_per_epoch: u64,
    /// The processes that share the work.
    pub world: &'static Communicator,
}

/// How often the host waits for the device to learn what steps came to. Results do not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readback {
    /// In each step: on the CPU nothing else would be faster, and errors are reported at once.
    Step,
    /// When a row or a line of the log is due; until then the device goes on by itself.
    Log,
}

impl Readback {
    /// What fits the backend, or what `HEARTH_READBACK` says: `step` to learn of a loss that is not finite in its own step.
    pub fn new(backend: &BackendSpec) -> Result<Self> {
        match std::env::var("HEARTH_READBACK").as_deref() {
            Ok("step") => Ok(Self::Step),
            Ok("log") => Ok(Self::Log),
            Ok(other) => Err(Error::Settings(format!("HEARTH_READBACK is `{other}`; it can be `step` or `log`"))),
            Err(_) if is_asynchronous(backend) => Ok(Self::Log),
            Err(_) => Ok(Self::Step),
        }
    }
}

/// Whether a backend accepts operations before those that came earlier are done. Each of its kernels has to be launched.
pub fn is_asynchronous(backend: &BackendSpec) -> bool {
    !matches!(backend.backend(), Backend::Flex | Backend::NdArray)
}

/// What makes a run shorter than its recipe.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunLimits {
    /// Steps, after which an epoch is ended as if its data were.
    pub steps: Option<u64>,
    /// Batches of the validation.
    pub valid_batches: Option<usize>,
    /// Whether the steps and batches of a warm-up come before those, and their times do not count.
    pub warm_up: bool,
    /// Neither validation, checkpoints nor weights: the range test of the rate finder.
    pub steps_only: bool,
    /// Seconds of steps, after which the run ends likewise.
    pub seconds: Option<f64>,
    /// A row of `metrics.csv` for each step, and an end once the smoothed loss is so many times its lowest.
    pub every_step_until: Option<f64>,
}

/// How a run ended.
pub struct Outcome {
    pub state: State,
    /// The raw weights, in evaluation mode.
    pub network: Network,
    pub ema: Option<Network>,
    pub logger: RunLogger,
    pub end: End,
}

/// The reason why a run ended.
#[derive(Debug)]
pub enum End {
    /// After its last epoch, or early because no epoch was better.
    Finished,
    /// On request.
    Interrupted,
    /// By an error.
    Failed(Error),
}

/// A session that runs.
struct Trainer {
    session: Session,
    model: Slot<Classifier>,
    /// The learning rates of the last step.
    rates: ModuleLearningRate,
    /// The loss scale of f16.
    loss_scale: Option<LossScale>,
    /// Steps of which the host does not know yet what they came to.
    submitted: Vec<SubmittedStep>,
    copies: Copies,
    /// When the host last read back.
    read: Instant,
    /// Since when time is not yet charged, and the seconds since the last step that was recorded.
    clock: Instant,
    seconds: f64,
    parallel: Box<dyn DataParallel>,
    events: Events,
    interrupter: Interrupter,
    store: Store,
    /// When the last checkpoint was written, and at which step.
    saved: Instant,
    saved_step: u64,
    /// The smoothed loss of the range test, its lowest value, and whether it left that far behind.
    smooth: Option<f64>,
    lowest: f64,
    diverged: bool,
    agreed: Agreed,
}

impl Trainer {
    fn train(&mut self) -> Result<End> {
        self.saved_step = self.session.state.step;
        if self.session.recipe.network.dtype == Dtype::F16 {
            let first = self.session.recipe.network.loss_scale.unwrap_or(guard::LOSS_SCALE);
            let scale = *self.session.state.loss_scale.get_or_insert((first, 0));
            self.loss_scale = Some(LossScale::new(scale, &self.session.device));
        }
        if self.starts_with_validation() {
            let predictions = self.validate_epoch()?;
            self.end_epoch_zero(predictions);
        }
        while self.session.state.epoch < self.session.recipe.epochs {
            let epoch = self.session.state.epoch;
            self.unfreeze(epoch)?;
            if self.train_epoch()? {
                return Ok(End::Interrupted);
            }
            if self.session.limits.steps_only {
                if self.is_at_limit() {
                    return Ok(End::Finished);
                }
                self.session.state.epoch += 1;
                self.session.state.batch = 0;
                continue;
            }
            let predictions = self.validate_epoch()?;
            self.end_epoch(predictions)?;
            self.agree(BatchShare::default());
            if self.is_stopped() {
                return Ok(End::Interrupted);
            }
            if self.is_out_of_patience() {
                break;
            }
        }
        Ok(End::Finished)
    }

    /// Whether the network is validated before its first step: with a classifier that was trained already, this may be
    /// its best.
    fn starts_with_validation(&self) -> bool {
        let Session { recipe, state, limits, .. } = &self.session;
        let is_fresh = state.step == 0 && state.batch == 0 && state.history.is_empty() && limits.steps.is_none();
        is_fresh && recipe.transfer.as_ref().is_some_and(|transfer| transfer.head == HeadStart::Probe)
    }

    /// Writes down the network before its first step as epoch 0, and makes a checkpoint.
    fn end_epoch_zero(&mut self, validation: Validation) {
        let state = &mut self.session.state;
        let record = EpochRecord {
            epoch: 0,
            step: 0,
            learning_rate: 0.0,
            train: Metrics::default(),
            valid: MetricSums::of(&validation.raw).score(),
            // It begins as the network is.
            average: None,
            images_per_second: 0.0,
            times: state.times,
        };
        state.history.push(record.clone());
        state.times = StepTimes::default();
        self.session.logger.epoch(&self.session.state, &record);
        if self.session.world.is_root() {
            self.keep_best(&record, validation);
        }
        self.checkpoint();
    }

    /// Trains the stages that an epoch begins to train.
    fn unfreeze(&mut self, epoch: usize) -> Result<()> {
        let Some(transfer) = &self.session.recipe.transfer else { return Ok(()) };
        let network = &self.model.network;
        let stages = network.stages();
        // A session is built as its first epoch wants it.
        let before = transfer::num_frozen(&stages, transfer, epoch.saturating_sub(1))?;
        let now = transfer::num_frozen(&stages, transfer, epoch)?;
        if now < before {
            let still = network.frozen_group(now);
            let mut group = network.frozen_group(before).exclude(still);
            if transfer.batchnorm == BatchNormMode::Freeze {
                group = group.exclude(transfer::batch_norm_flags(network));
            }
            self.model.update(|model| model.unfreeze(group.clone()));
            self.parallel.unfreeze(&group)?;
        }
        Ok(())
    }

    fn is_at_limit(&self) -> bool {
        let Session { state, limits, .. } = &self.session;
        let done = if limits.warm_up { state.pace.counted() } else { state.step };
        limits.steps.is_some_and(|most| done + self.submitted.len() as u64 >= most)
            || limits.seconds.is_some_and(|most| state.seconds >= most)
            || self.diverged
    }

    /// Steps so far, with those of which the host does not know yet what they came to.
    fn step(&self) -> u64 {
        self.session.state.step + self.submitted.len() as u64
    }

    /// Writes down an epoch, keeps the best weights, and makes a checkpoint.
    fn end_epoch(&mut self, validation: Validation) -> Result<()> {
        let metric = self.session.recipe.checkpoints.best;
        let state = &mut self.session.state;
        let record = EpochRecord {
            epoch: state.epoch + 1,
            step: state.step,
            // Not the scheduler's: a run that resumes at an epoch's end has made no step yet.
            learning_rate: state.learning_rate,
            train: state.sums.score(),
            valid: MetricSums::of(&validation.raw).score(),
            average: validation.ema.as_ref().map(|predictions| MetricSums::of(predictions).score()),
            images_per_second: state.sums.images as f64 / state.times.training().max(1e-9),
            times: state.times,
        };
        state.history.push(record.clone());
        let is_best = state.best(metric).is_some_and(|best| best.epoch == record.epoch);
        state.epoch += 1;
        state.batch = 0;
        state.sums = MetricSums::default();
        state.times = StepTimes::default();
        self.session.logger.epoch(&self.session.state, &record);
        if self.session.world.is_root() && is_best {
            self.keep_best(&record, validation);
        }
        self.checkpoint();
        Ok(())
    }

    /// The root's work: it alone writes.
    fn keep_best(&mut self, record: &EpochRecord, validation: Validation) {
        let (_, of_average) = record.better(self.session.recipe.checkpoints.best);
        let (network, predictions) = match (&self.session.ema, validation.ema) {
            (Some(ema), Some(predictions)) if of_average => (ema.network().clone(), predictions),
            _ => (self.model.network.valid(), validation.raw),
        };
        let run = &self.session.run;
        let source: &Arc<dyn Source> = self.session.loaders.valid.source();
        let kept = weights::save(&network, &self.session.card, run.join(hub::RUN_WEIGHTS))
            .map_err(Error::from)
            .and_then(|()| results::write_predictions(run, &predictions, source));
        if let Err(error) = kept {
            self.session.logger.warn(&format!("cannot keep the best weights: {}; training goes on", chain(&error)));
        }
    }

    fn write_bad_samples(&self) {
        let bad = self.session.loaders.bad_samples();
        if let Err(error) = results::write_bad_samples(&self.session.run, &self.session.earlier_bad, &bad) {
            self.session.logger.warn(&chain(&error));
        }
    }

    /// Whether it is time, by the root's clock or on request.
    fn is_checkpoint_agreed(&self) -> bool {
        if self.session.world.is_alone() {
            self.checkpoint_is_due() || self.checkpoint_is_wanted()
        } else {
            self.agreed.checkpoint
        }
    }

    /// Whether a checkpoint was asked for from outside. Trials write none.
    fn checkpoint_is_wanted(&self) -> bool {
        self.session.limits.steps.is_none() && self.session.save.load(Ordering::Relaxed)
    }

    fn checkpoint_is_due(&self) -> bool {
        let checkpoints = &self.session.recipe.checkpoints;
        if self.session.limits.steps.is_some() {
            return false;
        }
        let by_steps = checkpoints.every_steps.is_some_and(|steps| self.step() - self.saved_step >= steps);
        by_steps || self.saved.elapsed().as_secs_f64() >= 60.0 * checkpoints.every_minutes
    }

    /// Writes a checkpoint. Where that fails the run goes on: the last one is whole, and there will be another.
    fn checkpoint(&mut self) {
        let mut mark = Instant::now();
        let is_wanted = self.session.save.swap(false, Ordering::Relaxed);
        self.sync_running_statistics();
        if !self.session.world.is_root() {
            (self.saved, self.saved_step) = (Instant::now(), self.session.state.step);
            return;
        }
        self.write_bad_samples();
        // Running statistics lag by one step until they are asked for.
        drop(self.model.network.valid());
        let session = &mut self.session;
        session.state.file_lengths = session.logger.lengths();
        let checkpoint = Checkpoint {
            state: session.state.clone(),
            network: self.model.network.clone().into_record(),
            average: session.ema.as_ref().map(|ema| ema.network().clone().into_record()),
            optimizer: session.optimizer.record(),
        };
        match self.store.save(checkpoint, session.recipe.checkpoints.keep) {
            Ok(path) if is_wanted => session.logger.info(&format!("saved on request: {}", path.display())),
            Ok(_) => {}
            Err(error) => {
                let rest = match self.store.has_any() {
                    true => "the checkpoint before it is whole",
                    false => "the run has no checkpoint yet",
                };
                session.logger.warn(&format!("{}; training goes on, {rest}", chain(&error)));
            }
        }
        (self.saved, self.saved_step) = (Instant::now(), session.state.step);
        let seconds = lap(&mut mark);
        session.state.times.checkpointing += seconds;
        session.state.seconds += seconds;
        self.clock = mark;
    }

    fn is_stopped(&self) -> bool {
        if !self.session.world.is_alone() {
            return self.agreed.stop;
        }
        self.session.stop.load(Ordering::Relaxed) || self.interrupter.should_stop()
    }

    fn is_out_of_patience(&self) -> bool {
        let Session { recipe, state, logger, .. } = &self.session;
        let Some(patience) = recipe.checkpoints.patience else { return false };
        let best = state.best(recipe.checkpoints.best).map_or(0, |best| best.epoch);
        let waited = state.epoch.saturating_sub(best);
        if waited >= patience {
            logger.info(&format!(
                "no better epoch than {best} in the last {waited}: stopping early; epoch {best} is kept"
            ));
        }
        waited >= patience
    }
}
