//! One step: forward and backward passes, and the update that they lead to.

use std::time::{Duration, Instant};

use burn::{
    data::dataloader::Progress,
    optim::{GradientsAccumulator, GradientsParams, lr_scheduler::module_lr_scheduler::ModuleLearningRate},
};
use burn_train::{EventProcessorTraining, LearnerEvent, TrainingItem};
use datasets::SampleRng;

use super::{
    Readback, Session, Trainer,
    ema::Ema,
    guard::{
        LossScale, StepCheck, StepResult, guard_running_statistics, next_loss_scale, running_statistics,
        set_running_statistics,
    },
    optimizer::Update,
    share::BatchShare,
    upload::{FetchedBatch, FetchedShard},
};
use crate::{
    Error, Result,
    evaluation::{BatchScalars, MetricSums},
    parallel::Shard,
    progress::StepTimes,
};

/// Rows of `metrics.csv` per epoch, at most.
const ROWS: u64 = 50;

/// Steps that the host submits, at most, and the time after which it reads back, whatever the rows: a log that shows
/// nothing looks like a run that hangs.
const MOST_SUBMITTED: usize = 256;
const MOST_UNREAD: Duration = Duration::from_secs(10);

/// Distinguishes the random streams of steps from those of samples and of mixed batches.
const STEP_STREAM: u64 = 1 << 62;

/// Forward and backward passes that make one step.
#[derive(Default)]
pub(super) struct AccumulatedStep {
    passes: Vec<BatchScalars>,
    gradients: GradientsParams,
    pub count: usize,
    samples: Vec<usize>,
    /// The epoch's, up to the last of them.
    progress: Option<Progress>,
    /// BatchNorm's running statistics before the first of them.
    statistics: GradientsParams,
}

/// A step that was made, or discarded.
pub(super) struct SubmittedStep {
    number: u64,
    rate: ModuleLearningRate,
    progress: Option<Progress>,
    count: usize,
    /// The images of its passes, to be named where something is not finite.
    samples: Vec<usize>,
    check: StepCheck,
    /// `None` where the device alone knows.
    result: Option<StepResult>,
}

impl Trainer {
    /// Adds the gradients of this rank's part of a batch, out of `all`.
    pub(super) fn forward_backward(
        &mut self,
        batch: FetchedBatch,
        all: BatchShare,
        step: &mut AccumulatedStep,
    ) -> Result<()> {
        if step.count == 0 {
            step.statistics = running_statistics(&self.model);
        }
        step.count += 1;
        step.progress = Some(batch.progress);
        let world = self.session.world;
        if batch.samples.is_empty() {
            if !self.session.recipe.ranks.sync_bn {
                return Ok(());
            }
            return Err(Error::Settings(format!(
                "batch {} has no image for process {}, and ranks.sync_bn waits for all of them: take batches of more \
                 images",
                batch.number,
                world.rank()
            )));
        }
        step.samples.extend(batch.samples);
        let devices = batch.shards.len();
        let mut shards = Vec::with_capacity(devices);
        for (index, FetchedShard { images, share: own }) in batch.shards.into_iter().enumerate() {
            // Dropout's draws depend on the position in the data alone; each device has draws of its own.
            let number = world.rank() * devices + index;
            let stream = STEP_STREAM | (number as u64) << 40 | batch.number as u64;
            let seed = SampleRng::new(self.session.recipe.seed, batch.epoch, stream).below(u64::MAX);
            let is_all = own.images == all.images;
            let weight = if is_all { 1.0 } else { own.weight / all.weight };
            // So that the sum over shards is that of the whole batch's mean, whatever its images weigh.
            let loss_factor = if is_all { 1.0 } else { weight * all.images / own.images };
            shards.push(Shard { images, weight, loss_factor, seed });
        }
        let scale = self.loss_scale.as_ref().map(LossScale::value);
        let (gradients, scalars) = self.parallel.forward_backward(&self.model, shards, scale)?;
        step.passes.extend(scalars);
        if self.session.recipe.accumulate == 1 {
            step.gradients = gradients;
        } else {
            let mut accumulator = GradientsAccumulator::new();
            accumulator.accumulate(&*self.model, std::mem::take(&mut step.gradients));
            accumulator.accumulate(&*self.model, gradients);
            step.gradients = accumulator.grads();
        }
        Ok(())
    }

    /// One step of the optimizer with the mean of the gradients, or none where something is not finite.
    pub(super) fn update(&mut self, mut step: AccumulatedStep) -> Result<()> {
        let world = self.session.world;
        let device = self.session.device.clone().without_autodiff();
        let all = (!world.is_alone()).then(|| self.sum_readings(std::mem::take(&mut step.passes)));
        let gradients = self.parallel.all_reduce(&self.model, step.gradients);
        self.exchanged(|times| &mut times.all_reduce);

        let number = self.step() + 1;
        let Session { optimizer, scheduler, recipe, .. } = &mut self.session;
        self.rates = scheduler.step();
        let gradients = optimizer.pack(&*self.model, gradients, &self.rates);
        let (squares, clip) = (gradients.square_sums(&device), recipe.optimizer.clip_norm);
        let check = StepCheck::new(step.passes, squares, step.count, self.loss_scale.as_ref(), clip);
        let result = self.read_now(&check, all);
        let update = match result {
            Some(StepResult { finite: false, .. }) => None,
            Some(StepResult { factor, .. }) => Some(Update::Apply { factor }),
            None => Some(check.update()),
        };
        if let Some(update) = update {
            let Self { model, parallel, session, rates, .. } = self;
            let mut gradients = Some(gradients);
            parallel.step(model, rates, &update, &mut |model| {
                let Some(gradients) = gradients.take() else { return };
                model.update(|model| session.optimizer.step(model, gradients, &update));
            })?;
            let finite = result.is_none().then_some(&check.verdict.finite);
            if let Some(finite) = finite {
                guard_running_statistics(model, step.statistics, finite);
            }
            if let Some(ema) = session.ema.as_mut().filter(|ema| ema.is_due(number)) {
                ema.update(&model.network, finite);
            }
        } else {
            set_running_statistics(&self.model, step.statistics);
            self.parallel.discard()?;
        }
        if let Some(scale) = &mut self.loss_scale {
            match (result, self.session.state.loss_scale) {
                (Some(result), Some(known)) => *scale = LossScale::new(next_loss_scale(known, result.finite), &device),
                _ => scale.update(&check.verdict.finite),
            }
        }
        let rate = self.rates.clone();
        let AccumulatedStep { samples, count, progress, .. } = step;
        self.submitted.push(SubmittedStep { number, rate, progress, count, samples, check, result });
        Ok(())
    }

    /// What a step comes to, where the host waits for that. `all` is what all processes together know of its losses.
    fn read_now(&self, check: &StepCheck, all: Option<MetricSums>) -> Option<StepResult> {
        // Processes' gradients meet on the host, which has waited for the device already; and the losses of all decide
        // whether a step counts, which no device knows.
        let Some(reading) = all else {
            return (self.session.readback == Readback::Step).then(|| check.read());
        };
        let own = check.read();
        Some(StepResult { reading, finite: own.finite && reading.loss.is_finite(), ..own })
    }

    /// What the passes of all ranks come to; waiting for the slowest is charged apart.
    fn sum_readings(&mut self, passes: Vec<BatchScalars>) -> MetricSums {
        let mut own = MetricSums::default();
        passes.iter().for_each(|pass| own.add(&pass.read()));
        self.charge(|times| &mut times.compute);
        let MetricSums { loss, top1, top5, images } = own;
        let mut sums = [loss, top1 as f64, top5 as f64, images as f64];
        self.session.world.sum(&mut sums);
        self.charge(|times| &mut times.ranks);
        let [loss, rest @ ..] = sums;
        let [top1, top5, images] = rest.map(|count| count as u64);
        MetricSums { loss, top1, top5, images }
    }

    /// Waits for the device and records what the steps so far came to.
    pub(super) fn read_back(&mut self) -> Result<()> {
        if self.submitted.is_empty() {
            return Ok(());
        }
        let submitted = std::mem::take(&mut self.submitted);
        let unknown: Vec<_> = submitted.iter().filter(|step| step.result.is_none()).map(|step| &step.check).collect();
        let mut read = StepCheck::read_all(&unknown).into_iter();
        let copied = self.copies.take(self.clock.elapsed().as_secs_f64());
        self.charge(|times| &mut times.compute);
        let times = &mut self.session.state.times;
        times.compute -= copied;
        times.transfer += copied;
        self.read = Instant::now();
        // The device's own pace is not known.
        let seconds = std::mem::take(&mut self.seconds) / submitted.len() as f64;
        for step in submitted {
            let Some(result) = step.result.or_else(|| read.next()) else { break };
            self.record(step, result, seconds)?;
        }
        Ok(())
    }

    /// Whether it is time to read back.
    pub(super) fn is_readback_due(&self) -> bool {
        let step = self.step();
        let first_average = |ema: &Ema| ema.is_due(step) && !ema.has_started();
        let Session { state, limits, warms_up, .. } = &self.session;
        // Only single steps tell when their times settle.
        (*warms_up || limits.warm_up) && !state.pace.warmup().is_over()
            || self.submitted.iter().any(|step| step.result.is_some())
            || step.is_multiple_of(self.row_interval())
            || self.submitted.len() >= MOST_SUBMITTED
            || self.read.elapsed() >= MOST_UNREAD
            || self.session.ema.as_ref().is_some_and(first_average)
    }

    /// Counts, logs and shows a step.
    fn record(&mut self, step: SubmittedStep, result: StepResult, seconds: f64) -> Result<()> {
        let StepResult { reading, finite, squares, .. } = result;
        let Session { state, ema, limits, .. } = &mut self.session;
        state.step = step.number;
        state.learning_rate = step.rate.base();
        state.pace.record(seconds);
        if limits.warm_up && state.pace.counted() == 0 {
            state.times = StepTimes::default();
        }
        state.interval.seconds += seconds;
        let scale = state.loss_scale.map_or(1.0, |(scale, _)| f64::from(scale));
        state.loss_scale = state.loss_scale.map(|scale| next_loss_scale(scale, finite));
        if finite {
            state.bad_in_a_row = 0;
            state.sums.add(&reading);
            state.interval.reading.add(&reading);
            state.interval.norms += squares.sqrt() / (step.count as f64 * scale);
            state.interval.steps += 1;
            if let Some(ema) = ema.as_mut().filter(|ema| ema.is_due(step.number)) {
                ema.confirm();
                state.average_started = true;
            }
        } else {
            state.skipped_steps += 1;
            state.times.skipped_steps += 1;
            state.bad_in_a_row += 1;
            self.warn_of_bad_step(&step, &reading)?;
        }
        let row_interval = self.row_interval();
        let Session { state, logger, limits, .. } = &mut self.session;
        if let Some(factor) = limits.every_step_until {
            let loss = reading.score().loss;
            let smooth = self.smooth.map_or(loss, |smooth| 0.9 * smooth + 0.1 * loss);
            self.smooth = Some(smooth);
            self.lowest = self.lowest.min(smooth);
            self.diverged = !finite || smooth > factor * self.lowest;
        }
        let full = state.step.is_multiple_of(row_interval) && state.interval.steps > 0;
        let row = full.then(|| std::mem::take(&mut state.interval));
        logger.step(state, state.learning_rate, row);
        let progress = step.progress.unwrap_or_else(|| Progress::new(0, 0, None));
        let item = TrainingItem::new(reading, progress, Some(state.step as usize), Some(step.rate));
        self.interrupter.fail_on_error(self.events.process_train(LearnerEvent::ProcessedItem(item)));
        Ok(())
    }

    /// Logs a step that was discarded.
    ///
    /// # Errors
    /// Where too many were in a row.
    fn warn_of_bad_step(&self, step: &SubmittedStep, reading: &MetricSums) -> Result<()> {
        let row = self.session.state.bad_in_a_row;
        let what = if reading.loss.is_finite() { "gradient" } else { "loss" };
        let (number, samples) = (step.number, self.name_samples(&step.samples));
        log::warn!("step {number} skipped: the {what} is not finite; samples: {samples}");
        if row < self.session.recipe.max_bad_steps {
            return Ok(());
        }
        Err(Error::NotFinite(format!(
            "stopped at step {number}: the {what} was not finite {row} times in a row. A lower schedule.learning_rate, a \
             warm-up or optimizer.clip_norm usually helps. The last batch held {samples}"
        )))
    }

    /// Steps between rows of `metrics.csv`.
    fn row_interval(&self) -> u64 {
        let Session { limits, steps_per_epoch, .. } = &self.session;
        if limits.every_step_until.is_some() { 1 } else { (steps_per_epoch / ROWS).max(1) }
    }

    /// The keys of samples, for messages.
    fn name_samples(&self, indices: &[usize]) -> String {
        let source = self.session.loaders.first().source();
        let shown: Vec<_> = indices.iter().take(8).map(|&index| source.key(index).into_owned()).collect();
        let more = indices.len() - shown.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{}{more}", shown.join(", "))
    }
}
