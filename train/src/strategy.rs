//! The training loop: Burn's learner and events, our loader, checkpoints inside an epoch, an average of the weights,
//! and a guard against what is not finite.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use anyhow::{Result, anyhow, ensure};
use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    optim::{GradientsAccumulator, GradientsParams},
    tensor::{Device, Tensor},
};
use burn_train::{
    EventProcessorTraining, Interrupter, Learner, LearnerEvent, SupervisedLearningStrategy,
    SupervisedTrainingEventProcessor, TrainLoader, TrainingComponents, TrainingItem, ValidLoader,
};
use datasets::{ImageBatch, SampleRng, Source};
use models::{Card, Network, weights};
use runtime::world::World;

use crate::{
    average::Average,
    checkpoint::{Checkpoint, Store},
    classifier::{self, Classifier},
    data::Loaders,
    evaluation::{self, Prediction, Reading},
    journal::Journal,
    optimizer,
    progress::{EpochRecord, State, Times, lap},
    ranks,
    recipe::{DistBn, Dtype, Recipe},
    replicas::{self, Replicas},
    results, transfer,
};

/// Rows of `metrics.csv` an epoch, at most.
const ROWS: u64 = 50;

/// f16: the loss scale at the beginning, and the steps after which a larger one is tried, as PyTorch's `GradScaler` has
/// them.
const LOSS_SCALE: f32 = 65536.0;
const LOSS_SCALE_STEPS: u64 = 2000;

/// Set apart from the random streams of samples and of mixed batches.
const STEP_STREAM: u64 = 1 << 62;

/// A run, ready to go.
pub struct Session {
    pub recipe: Recipe,
    pub card: Card,
    pub run: PathBuf,
    pub loaders: Loaders,
    pub device: Device,
    /// The devices of this process, where they are several.
    pub devices: Option<replicas::Plan>,
    pub state: State,
    pub average: Option<Average>,
    pub journal: Journal,
    /// Set from outside to end the run after the current step.
    pub stop: Arc<AtomicBool>,
    pub limits: RunLimits,
    pub steps_per_epoch: u64,
    /// The processes that share the work.
    pub world: &'static World,
}

/// What makes a run shorter than its recipe.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunLimits {
    /// Steps, after which an epoch is ended as if its data were.
    pub steps: Option<u64>,
    /// Batches of the validation.
    pub valid_batches: Option<usize>,
    /// Neither validation, checkpoints nor weights: the range test of the rate finder.
    pub steps_only: bool,
    /// A row of `metrics.csv` for each step, and an end once the smoothed loss is so many times its lowest.
    pub every_step_until: Option<f64>,
}

/// How a run ended.
pub struct Outcome {
    pub state: State,
    /// The raw weights, in evaluation mode.
    pub network: Network,
    pub average: Option<Network>,
    pub journal: Journal,
    pub end: End,
}

/// Why a run ended.
#[derive(Debug)]
pub enum End {
    /// After its last epoch, or early because no epoch was better.
    Finished,
    /// On request.
    Interrupted,
    Failed(anyhow::Error),
}

/// The strategy that Burn's `SupervisedTraining` runs. It runs once.
pub struct Strategy {
    session: Mutex<Option<Session>>,
    outcome: Arc<Mutex<Option<Outcome>>>,
}

impl Strategy {
    /// The strategy, and where it leaves its outcome.
    pub fn new(session: Session) -> (Self, Arc<Mutex<Option<Outcome>>>) {
        let outcome = Arc::new(Mutex::new(None));
        (Self { session: Mutex::new(Some(session)), outcome: outcome.clone() }, outcome)
    }
}

type Events = SupervisedTrainingEventProcessor<Classifier>;

impl SupervisedLearningStrategy<Classifier> for Strategy {
    /// Burn's own loaders are passed over: the session's know how to start inside an epoch.
    fn fit(
        &self,
        components: TrainingComponents<Classifier>,
        learner: Learner<Classifier>,
        _train: TrainLoader<Classifier>,
        _valid: ValidLoader<Classifier>,
        _starting_epoch: usize,
    ) -> (Classifier, Events) {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).take();
        let session = session.expect("a strategy runs once");
        let replicas = session.devices.as_ref().map(|plan| Replicas::start(plan, &learner));
        let mut run = Run {
            store: Store::new(&session.run),
            session,
            learner,
            replicas,
            events: components.event_processor,
            interrupter: components.interrupter,
            saved: Instant::now(),
            saved_step: 0,
            smooth: None,
            lowest: f64::INFINITY,
            diverged: false,
            agreed: Agreed::default(),
        };
        // One process alone too, so that it has the results of several.
        let sync_bn = run.session.recipe.ranks.sync_bn;
        if sync_bn {
            let world = run.session.world;
            kernels::set_sync_batch_norm(Some(Arc::new(|values: &mut [f64]| world.sum(values))));
        }
        let end = run.train().unwrap_or_else(End::Failed);
        if sync_bn {
            kernels::set_sync_batch_norm(None);
        }
        let model = run.learner.model();
        let Session { state, average, journal, .. } = run.session;
        let (network, average) = (model.network.valid(), average.map(|average| average.network));
        let outcome = Outcome { state, network, average, journal, end };
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        (model, run.events)
    }
}

/// A session that runs.
struct Run {
    session: Session,
    learner: Learner<Classifier>,
    replicas: Option<Replicas>,
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

/// What a rank has of a batch, or all ranks together.
#[derive(Debug, Clone, Copy, Default)]
struct Part {
    /// What it counts in the mean: its images, or the sum of their classes' weights.
    weight: f64,
    images: f64,
}

/// What all ranks know alike, because one of them said it.
#[derive(Debug, Clone, Copy, Default)]
struct Agreed {
    /// Some rank was asked to stop.
    stop: bool,
    /// The root wants a checkpoint.
    checkpoint: bool,
}

impl Run {
    fn train(&mut self) -> Result<End> {
        self.saved_step = self.session.state.step;
        if self.session.recipe.network.dtype == Dtype::F16 {
            let scale = self.session.state.loss_scale.get_or_insert((LOSS_SCALE, 0)).0;
            self.learner.model().task.set_loss_scale(scale);
        }
        while self.session.state.epoch < self.session.recipe.epochs {
            let epoch = self.session.state.epoch;
            self.thaw(epoch)?;
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
            self.agree(Part::default());
            if self.is_stopped() {
                return Ok(End::Interrupted);
            }
            if self.is_out_of_patience() {
                break;
            }
        }
        Ok(End::Finished)
    }

    /// Trains the stages that an epoch begins to train.
    fn thaw(&mut self, epoch: usize) -> Result<()> {
        let Some(transfer) = &self.session.recipe.transfer else { return Ok(()) };
        let network = self.learner.model().network;
        let stages = transfer::stages(&network);
        // A session is built as its first epoch wants it.
        let before = transfer::num_frozen(&stages, transfer, epoch.saturating_sub(1))?;
        let now = transfer::num_frozen(&stages, transfer, epoch)?;
        if now < before {
            let still = transfer::group(&network, &stages, now);
            let group = transfer::group(&network, &stages, before).exclude(still);
            classifier::thaw(&mut self.learner, group.clone());
            if let Some(replicas) = &self.replicas {
                replicas.thaw(&group)?;
            }
        }
        Ok(())
    }

    fn is_at_limit(&self) -> bool {
        let state = &self.session.state;
        self.session.limits.steps.is_some_and(|steps| state.step >= steps) || self.diverged
    }

    /// The rest of the current epoch's training images; whether a stop was asked for before their end.
    fn train_epoch(&mut self) -> Result<bool> {
        let Session { recipe, loaders, state, steps_per_epoch, .. } = &self.session;
        let (epoch, accumulate, steps_per_epoch) = (state.epoch, recipe.accumulate, *steps_per_epoch);
        let loader = loaders.train(epoch).clone();
        let total = loader.num_batches();
        let event = LearnerEvent::StartSplit { epoch_number: epoch + 1, total_items: total * loader.batch_size() };
        self.interrupter.fail_on_error(self.events.process_train(event));
        // One past the last batch would mean the next epoch's first.
        if state.batch < total {
            loader.start_at(epoch as u64, state.batch)?;
            let mut batches = loader.batches();
            let mut group = Group::default();
            let mut mark = Instant::now();
            loop {
                let batch = batches.next().transpose()?;
                let state = &mut self.session.state;
                let waited = lap(&mut mark);
                state.times.waiting += waited;
                state.seconds += waited;
                group.seconds += waited;
                let Some(batch) = batch else { break };
                if group.count == 0 {
                    group.statistics = running_statistics(&self.learner.model());
                }
                let last = batch.number + 1 == total;
                state.batch = batch.number + 1;
                let own = Part { weight: self.learner.model().task.weight(&batch), images: batch.mixed_len() as f64 };
                let all = self.agree(own);
                group.seconds += self.communicated(&mut mark, |times| &mut times.ranks);
                self.forward_backward(batch, all, &mut group)?;
                group.seconds += self.computed(&mut mark);
                if group.count < accumulate && !last {
                    continue;
                }
                let model = self.learner.model();
                let gradients = std::mem::take(&mut group.gradients);
                group.reading = self.sum_readings(&group, &mut mark);
                group.gradients = ranks::sum_gradients(self.session.world, &model, gradients, &self.session.device);
                drop(model);
                group.seconds += self.communicated(&mut mark, |times| &mut times.all_reduce);
                self.optimise(&mut group)?;
                group.seconds += self.computed(&mut mark);
                let progress = batches.progress();
                self.after_step(std::mem::take(&mut group), progress, steps_per_epoch);
                if self.is_stopped() {
                    drop(batches);
                    self.session.state.times.add_loader(&loader.meters());
                    if !self.session.limits.steps_only {
                        self.checkpoint();
                    }
                    return Ok(true);
                }
                if self.is_at_limit() {
                    break;
                }
                if self.is_checkpoint_agreed() {
                    self.checkpoint();
                }
                mark = Instant::now();
            }
            drop(batches);
            self.session.state.times.add_loader(&loader.meters());
        }
        self.interrupter.fail_on_error(self.events.process_train(LearnerEvent::EndSplit(epoch + 1)));
        Ok(false)
    }

    /// Charges the time since the mark to a part of what several processes say to each other; nothing for one alone.
    fn communicated(&mut self, mark: &mut Instant, part: impl Fn(&mut Times) -> &mut f64) -> f64 {
        if self.session.world.is_alone() {
            return 0.0;
        }
        let seconds = lap(mark);
        *part(&mut self.session.state.times) += seconds;
        self.session.state.seconds += seconds;
        seconds
    }

    /// Waits until all ranks are here, and takes down what they agree on. Returns the sum of their parts.
    fn agree(&mut self, own: Part) -> Part {
        let world = self.session.world;
        let stop = self.session.stop.load(Ordering::Relaxed) || self.interrupter.should_stop();
        let checkpoint = world.is_root() && self.checkpoint_is_due();
        let mut message = [own.weight, own.images, f64::from(u8::from(stop)), f64::from(u8::from(checkpoint))];
        world.sum(&mut message);
        let [weight, images, stop, checkpoint] = message;
        self.agreed = Agreed { stop: stop > 0.0, checkpoint: checkpoint > 0.0 };
        Part { weight, images }
    }

    /// The group's reading over all ranks; waiting for the slowest is counted apart.
    fn sum_readings(&mut self, group: &Group, mark: &mut Instant) -> Reading {
        let world = self.session.world;
        if world.is_alone() {
            return group.reading;
        }
        let Reading { loss, top1, top5, images } = group.reading;
        let mut sums = [loss, top1 as f64, top5 as f64, images as f64];
        world.sum(&mut sums);
        self.communicated(mark, |times| &mut times.ranks);
        let [loss, rest @ ..] = sums;
        let [top1, top5, images] = rest.map(|count| count as u64);
        Reading { loss, top1, top5, images }
    }

    /// Charges the time since the mark to computing.
    fn computed(&mut self, mark: &mut Instant) -> f64 {
        let seconds = lap(mark);
        self.session.state.times.compute += seconds;
        self.session.state.seconds += seconds;
        seconds
    }

    /// Adds the gradients of this rank's part of a batch, out of `all`.
    fn forward_backward(&mut self, batch: ImageBatch, all: Part, group: &mut Group) -> Result<()> {
        group.samples.extend(&batch.indices[..batch.mixed_len()]);
        group.count += 1;
        let world = self.session.world;
        if batch.mixed_len() == 0 {
            ensure!(
                !self.session.recipe.ranks.sync_bn,
                "batch {} has no image for process {}, and --sync-bn waits for all of them: take batches of more images",
                batch.number,
                world.rank()
            );
            return Ok(());
        }
        let model = self.learner.model();
        let devices = self.replicas.as_ref().map_or(1, Replicas::len);
        let mut parts = Vec::with_capacity(devices);
        for (place, batch) in batch.split(devices).into_iter().enumerate() {
            // Dropout's draws depend on the place in the data alone; each device has draws of its own.
            let number = world.rank() * devices + place;
            let stream = STEP_STREAM | (number as u64) << 40 | batch.number as u64;
            let seed = SampleRng::new(self.session.recipe.seed, batch.epoch, stream).below(u64::MAX);
            let own = Part { weight: model.task.weight(&batch), images: batch.mixed_len() as f64 };
            let is_all = own.images == all.images;
            let share = if is_all { 1.0 } else { own.weight / all.weight };
            // So that the sum over parts is that of the whole batch's mean, whatever its images weigh.
            let loss_factor = if is_all { 1.0 } else { share * all.images / own.images };
            parts.push(replicas::Part { batch, share, loss_factor, seed });
        }
        let output = match &self.replicas {
            Some(replicas) => replicas.pass(&mut self.learner, parts)?,
            None => parts.remove(0).pass(&model, &self.session.device),
        };
        group.reading.add(&output.item);
        if self.session.recipe.accumulate == 1 {
            group.gradients = output.grads;
        } else {
            let mut accumulator = GradientsAccumulator::new();
            accumulator.accumulate(&model, std::mem::take(&mut group.gradients));
            accumulator.accumulate(&model, output.grads);
            group.gradients = accumulator.grads();
        }
        Ok(())
    }

    /// One step of the optimizer with the mean of the group's gradients, or none where something is not finite.
    fn optimise(&mut self, group: &mut Group) -> Result<()> {
        let model = self.learner.model();
        let gradients = std::mem::take(&mut group.gradients);
        let scale = self.session.state.loss_scale.map_or(1.0, |(scale, _)| f64::from(scale));
        let mean = 1.0 / (group.count as f64 * scale);
        group.norm = optimizer::gradient_norm(&model, &gradients) * mean;
        self.learner.lr_step();
        let state = &mut self.session.state;
        state.step += 1;
        let finite = group.norm.is_finite() && group.reading.loss.is_finite();
        if let Some((scale, steps)) = &mut state.loss_scale {
            *steps += 1;
            if !finite || *steps >= LOSS_SCALE_STEPS {
                *scale *= if finite { 2.0 } else { 0.5 };
                *steps = 0;
                model.task.set_loss_scale(*scale);
            }
        }
        if !finite {
            state.skipped_steps += 1;
            state.times.skipped_steps += 1;
            state.bad_in_a_row += 1;
            restore(model, std::mem::take(&mut group.statistics));
            if let Some(replicas) = &self.replicas {
                replicas.step(None, || ())?;
            }
            let what = if group.reading.loss.is_finite() { "gradient" } else { "loss" };
            let samples = self.name_samples(&group.samples);
            let (step, row) = (self.session.state.step, self.session.state.bad_in_a_row);
            log::warn!("step {step} skipped: the {what} is not finite; samples: {samples}");
            if row >= self.session.recipe.max_bad_steps {
                return Err(anyhow!(
                    "stopped at step {step}: the {what} was not finite {row} times in a row. A lower --lr, a warm-up \
                     or optimizer.clip_norm usually helps. The last batch held {samples}"
                ));
            }
            return Ok(());
        }
        state.bad_in_a_row = 0;
        let clip = match self.session.recipe.optimizer.clip_norm {
            Some(most) if group.norm > most => most / group.norm,
            _ => 1.0,
        };
        let factor = mean * clip;
        let gradients = if factor == 1.0 { gradients } else { optimizer::scale(&model, gradients, factor) };
        drop(model);
        match &self.replicas {
            None => self.learner.optimizer_step(gradients),
            Some(replicas) => {
                replicas.step(Some(factor), || self.learner.optimizer_step(gradients))?;
                // They are where they were last used.
                let model = self.learner.model();
                let statistics = running_statistics(&model).to_device(&self.session.device, &model);
                restore(model, statistics);
            }
        }
        let step = self.session.state.step;
        if let Some(average) = &mut self.session.average {
            average.update(&self.learner.model().network, step);
            self.session.state.average_started = average.started;
        }
        Ok(())
    }

    /// The keys of samples, for messages.
    fn name_samples(&self, indices: &[usize]) -> String {
        let source = self.session.loaders.first().source();
        let shown: Vec<_> = indices.iter().take(8).map(|&index| source.key(index).into_owned()).collect();
        let more = indices.len() - shown.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{}{more}", shown.join(", "))
    }

    /// Counts, tells and shows a step.
    fn after_step(&mut self, group: Group, progress: burn::data::dataloader::Progress, steps_per_epoch: u64) {
        let Session { state, journal, limits, .. } = &mut self.session;
        let finite = group.norm.is_finite() && group.reading.loss.is_finite();
        state.interval.seconds += group.seconds;
        if finite {
            state.sums.add(&group.reading);
            state.interval.reading.add(&group.reading);
            state.interval.norms += group.norm;
            state.interval.steps += 1;
        }
        let rate = self.learner.lr_current();
        state.learning_rate = rate.base();
        let every = if limits.every_step_until.is_some() { 1 } else { (steps_per_epoch / ROWS).max(1) };
        if let Some(factor) = limits.every_step_until {
            let loss = group.reading.score().loss;
            let smooth = self.smooth.map_or(loss, |smooth| 0.9 * smooth + 0.1 * loss);
            self.smooth = Some(smooth);
            self.lowest = self.lowest.min(smooth);
            self.diverged = !finite || smooth > factor * self.lowest;
        }
        let full = state.step.is_multiple_of(every) && state.interval.steps > 0;
        let row = full.then(|| std::mem::take(&mut state.interval));
        journal.step(state, rate.base(), row);
        let step = state.step as usize;
        let item = TrainingItem::new(group.reading, progress, Some(step), Some(rate));
        self.interrupter.fail_on_error(self.events.process_train(LearnerEvent::ProcessedItem(item)));
    }

    /// Brings the ranks' running statistics together, as the recipe says.
    fn share_running_statistics(&mut self) -> Result<()> {
        let world = self.session.world;
        if world.is_alone() {
            return Ok(());
        }
        let model = self.learner.model();
        let own = running_statistics(&model);
        let statistics = match self.session.recipe.ranks.dist_bn {
            DistBn::None => return Ok(()),
            DistBn::Reduce => ranks::mean_statistics(world, &model, own, &self.session.device),
            DistBn::Broadcast => ranks::root_statistics(world, &model, own, &self.session.device),
        };
        restore(model, statistics);
        Ok(())
    }

    /// What the better of the raw weights and their average says of each validation image.
    fn validate_epoch(&mut self) -> Result<Validation> {
        let mut mark = Instant::now();
        self.share_running_statistics()?;
        ensure!(
            ranks::weights_agree(self.session.world, &self.learner.model()),
            "the processes' weights are not the same any more: a device computes wrongly, or Hearth has a defect"
        );
        if let Some(replicas) = &self.replicas {
            replicas.check_weights(&self.learner.model())?;
        }
        let epoch = self.session.state.epoch;
        let loader = self.session.loaders.valid.clone();
        let event = LearnerEvent::StartSplit { epoch_number: epoch + 1, total_items: loader.source().len() };
        self.interrupter.fail_on_error(self.events.process_valid(event));
        let model = self.learner.model();
        let (network, task) = (model.network.valid(), model.task);
        let device = self.session.device.clone().without_autodiff();
        let average = self.session.average.as_ref().map(|average| average.network.clone());
        let mut validation = Validation { raw: Vec::new(), average: average.as_ref().map(|_| Vec::new()) };
        let copies = |network: Network| match &self.replicas {
            Some(replicas) => replicas.copies(&network),
            None => vec![network],
        };
        let (raw, average) = (copies(network), average.map(copies));
        let predict = |copies: &[Network], batches: &[ImageBatch]| match &self.replicas {
            Some(replicas) => replicas.predict(copies, &task, batches),
            None => Ok(batches.iter().map(|batch| evaluation::predict(&copies[0], &task, batch, &device)).collect()),
        };
        loader.start_at(epoch as u64, 0)?;
        let mut batches = loader.batches();
        let limit = self.session.limits.valid_batches.unwrap_or(usize::MAX);
        let mut number = 0;
        loop {
            // One for each device.
            let most = raw.len().min(limit - number);
            let round = batches.by_ref().take(most).collect::<Result<Vec<_>, _>>()?;
            if round.is_empty() {
                break;
            }
            let of_raw = predict(&raw, &round)?;
            let of_average = average.as_ref().map(|average| predict(average, &round)).transpose()?;
            for place in 0..round.len() {
                number += 1;
                let shown = of_average.as_ref().map_or(&of_raw[place], |average| &average[place]);
                let item = TrainingItem::new(Reading::of(shown), batches.progress(), Some(number), None);
                self.interrupter.fail_on_error(self.events.process_valid(LearnerEvent::ProcessedItem(item)));
            }
            validation.raw.extend(of_raw.into_iter().flatten());
            if let (Some(all), Some(own)) = (&mut validation.average, of_average) {
                all.extend(own.into_iter().flatten());
            }
        }
        drop(batches);
        let world = self.session.world;
        validation.raw = ranks::gather_predictions(world, validation.raw)?;
        validation.average = validation.average.map(|own| ranks::gather_predictions(world, own)).transpose()?;
        self.interrupter.fail_on_error(self.events.process_valid(LearnerEvent::EndSplit(epoch + 1)));
        self.interrupter.fail_on_error(self.events.process_train(LearnerEvent::EndEpoch(epoch + 1)));
        let state = &mut self.session.state;
        state.times.bad_samples += loader.meters().bad;
        if !world.is_alone() {
            let mut bad = [state.times.bad_samples as f64];
            world.sum(&mut bad);
            state.times.bad_samples = bad[0] as u64;
        }
        let seconds = lap(&mut mark);
        state.times.validation += seconds;
        state.seconds += seconds;
        Ok(validation)
    }

    /// Writes down an epoch, keeps the best weights, and makes a checkpoint.
    fn end_epoch(&mut self, validation: Validation) -> Result<()> {
        let metric = self.session.recipe.checkpoints.best;
        let state = &mut self.session.state;
        let record = EpochRecord {
            epoch: state.epoch + 1,
            step: state.step,
            // Not the learner's: a run that resumes at an epoch's end has made no step yet.
            learning_rate: state.learning_rate,
            train: state.sums.score(),
            valid: Reading::of(&validation.raw).score(),
            average: validation.average.as_ref().map(|predictions| Reading::of(predictions).score()),
            images_per_second: state.sums.images as f64 / state.times.training().max(1e-9),
            times: state.times,
        };
        state.history.push(record.clone());
        let is_best = state.best(metric).is_some_and(|best| best.epoch == record.epoch);
        state.epoch += 1;
        state.batch = 0;
        state.sums = Reading::default();
        state.times = Times::default();
        self.session.journal.epoch(&self.session.state, &record);
        if self.session.world.is_root() {
            self.write_bad_samples();
            if is_best {
                self.keep_best(&record, validation);
            }
        }
        self.checkpoint();
        Ok(())
    }

    /// The root's work: it alone writes.
    fn keep_best(&mut self, record: &EpochRecord, validation: Validation) {
        let (_, of_average) = record.better(self.session.recipe.checkpoints.best);
        let (network, predictions) = match (&self.session.average, validation.average) {
            (Some(average), Some(predictions)) if of_average => (average.network.clone(), predictions),
            _ => (self.learner.model().network.valid(), validation.raw),
        };
        let run = &self.session.run;
        let source: &Arc<dyn Source> = self.session.loaders.valid.source();
        let kept = weights::save(&network, &self.session.card, run.join(zoo::weights::RUN_WEIGHTS))
            .map_err(anyhow::Error::from)
            .and_then(|()| results::write_predictions(run, &predictions, source));
        if let Err(error) = kept {
            self.session.journal.warn(&format!("cannot keep the best weights: {error:#}; training goes on"));
        }
    }

    fn write_bad_samples(&self) {
        let bad = self.session.loaders.bad_samples();
        if let Err(error) = results::write_bad_samples(&self.session.run, &bad) {
            self.session.journal.warn(&format!("{error:#}"));
        }
    }

    /// Whether it is time, by the root's clock.
    fn is_checkpoint_agreed(&self) -> bool {
        if self.session.world.is_alone() { self.checkpoint_is_due() } else { self.agreed.checkpoint }
    }

    fn checkpoint_is_due(&self) -> bool {
        let checkpoints = &self.session.recipe.checkpoints;
        if self.session.limits.steps.is_some() {
            return false;
        }
        let by_steps = checkpoints.every_steps.is_some_and(|steps| self.session.state.step - self.saved_step >= steps);
        by_steps || self.saved.elapsed().as_secs_f64() >= 60.0 * checkpoints.every_minutes
    }

    /// Writes a checkpoint. Where that fails the run goes on: the last one is whole, and there will be another.
    fn checkpoint(&mut self) {
        let mut mark = Instant::now();
        if let Err(error) = self.share_running_statistics() {
            self.session.journal.warn(&format!("{error:#}"));
        }
        if !self.session.world.is_root() {
            (self.saved, self.saved_step) = (Instant::now(), self.session.state.step);
            return;
        }
        let optimizer = classifier::optimizer_record(&mut self.learner);
        let model = self.learner.model();
        // Running statistics lag by one step until they are asked for.
        drop(model.network.valid());
        let session = &mut self.session;
        session.state.file_lengths = session.journal.lengths();
        let checkpoint = Checkpoint {
            state: session.state.clone(),
            network: model.network.into_record(),
            average: session.average.as_ref().map(|average| average.network.clone().into_record()),
            optimizer,
        };
        if let Err(error) = self.store.save(checkpoint, session.recipe.checkpoints.keep) {
            session.journal.warn(&format!("{error:#}; training goes on, the checkpoint before it is whole"));
        }
        (self.saved, self.saved_step) = (Instant::now(), session.state.step);
        let seconds = lap(&mut mark);
        session.state.times.checkpointing += seconds;
        session.state.seconds += seconds;
    }

    fn is_stopped(&self) -> bool {
        if !self.session.world.is_alone() {
            return self.agreed.stop;
        }
        self.session.stop.load(Ordering::Relaxed) || self.interrupter.should_stop()
    }

    fn is_out_of_patience(&self) -> bool {
        let Session { recipe, state, journal, .. } = &self.session;
        let Some(patience) = recipe.checkpoints.patience else { return false };
        let best = state.best(recipe.checkpoints.best).map_or(0, |best| best.epoch);
        let waited = state.epoch.saturating_sub(best);
        if waited >= patience {
            journal.say(&format!("no better epoch than {best} in the last {waited}: stopping early"));
        }
        waited >= patience
    }
}

/// What networks say of the validation images.
struct Validation {
    raw: Vec<Prediction>,
    average: Option<Vec<Prediction>>,
}

/// Forward passes that make one step.
#[derive(Default)]
struct Group {
    reading: Reading,
    gradients: GradientsParams,
    count: usize,
    samples: Vec<usize>,
    /// BatchNorm's running statistics before the first of them.
    statistics: GradientsParams,
    /// Of the mean gradient.
    norm: f64,
    seconds: f64,
}

/// BatchNorm's running statistics.
fn running_statistics(model: &Classifier) -> GradientsParams {
    #[derive(Default)]
    struct Statistics {
        name: String,
        found: GradientsParams,
    }
    impl ModuleVisitor for Statistics {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.name = name.to_string();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.name.starts_with("running_") {
                self.found.register(param.id, param.val());
            }
        }
    }
    // They lag by one step until a snapshot is taken.
    drop(model.network.valid());
    let mut statistics = Statistics::default();
    model.network.visit(&mut statistics);
    statistics.found
}

/// Sets the running statistics back. All copies of a network share them.
fn restore(model: Classifier, statistics: GradientsParams) {
    struct Restore(GradientsParams);
    impl ModuleMapper for Restore {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            match self.0.remove::<D>(param.id) {
                Some(tensor) => param.map(|_| tensor),
                None => param,
            }
        }
    }
    drop(model.network.valid());
    let _ = model.network.map(&mut Restore(statistics));
}
