//! The steps of one epoch.

use std::{sync::atomic::Ordering, time::Instant};

use anyhow::Result;
use burn_train::{EventProcessorTraining, LearnerEvent, TrainingItem};

use super::{Session, Trainer, guard::running_statistics, step::AccumulatedStep};
use crate::{
    evaluation::Reading,
    progress::{Times, lap},
    ranks,
};

/// Rows of `metrics.csv` per epoch, at most.
const ROWS: u64 = 50;

/// What a rank has of a batch, or all ranks together.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BatchShare {
    /// What it counts in the mean: its images, or the sum of their classes' weights.
    pub weight: f64,
    pub images: f64,
}

/// What all ranks know alike, because one of them said it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Agreed {
    /// Some rank was asked to stop.
    pub stop: bool,
    /// The root wants a checkpoint.
    pub checkpoint: bool,
}

impl Trainer {
    /// The rest of the current epoch's training images; whether a stop was asked for before their end.
    pub(super) fn train_epoch(&mut self) -> Result<bool> {
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
            let mut group = AccumulatedStep::default();
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
                let own =
                    BatchShare { weight: self.learner.model().task.weight(&batch), images: batch.mixed_len() as f64 };
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
                self.optimize(&mut group)?;
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
    pub(super) fn agree(&mut self, own: BatchShare) -> BatchShare {
        let world = self.session.world;
        let stop = self.session.stop.load(Ordering::Relaxed) || self.interrupter.should_stop();
        let checkpoint = world.is_root() && self.checkpoint_is_due();
        let mut message = [own.weight, own.images, f64::from(u8::from(stop)), f64::from(u8::from(checkpoint))];
        world.sum(&mut message);
        let [weight, images, stop, checkpoint] = message;
        self.agreed = Agreed { stop: stop > 0.0, checkpoint: checkpoint > 0.0 };
        BatchShare { weight, images }
    }

    /// The group's reading over all ranks; waiting for the slowest is counted apart.
    fn sum_readings(&mut self, group: &AccumulatedStep, mark: &mut Instant) -> Reading {
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

    /// Counts, tells and shows a step.
    fn after_step(&mut self, group: AccumulatedStep, progress: burn::data::dataloader::Progress, steps_per_epoch: u64) {
        let Session { state, journal, limits, .. } = &mut self.session;
        let finite = group.norm.is_finite() && group.reading.loss.is_finite();
        state.pace.record(group.seconds);
        if limits.warm_up && state.pace.counted() == 0 {
            state.times = Times::default();
        }
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
}
