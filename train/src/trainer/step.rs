//! One step: forward and backward passes, and the update that they lead to.

use anyhow::{Result, anyhow, ensure};
use burn::optim::{GradientsAccumulator, GradientsParams};
use datasets::{ImageBatch, SampleRng};

use super::{
    Trainer,
    epoch::BatchShare,
    guard::{restore, running_statistics},
};
use crate::{
    evaluation::Reading,
    optimizer,
    replicas::{self, Replicas},
};

/// f16: the steps after which a larger loss scale is tried, as in PyTorch's `GradScaler`.
const LOSS_SCALE_STEPS: u64 = 2000;

/// Distinguishes the random streams of steps from those of samples and of mixed batches.
const STEP_STREAM: u64 = 1 << 62;

/// Forward passes that make one step.
#[derive(Default)]
pub(super) struct AccumulatedStep {
    pub reading: Reading,
    pub gradients: GradientsParams,
    pub count: usize,
    pub samples: Vec<usize>,
    /// BatchNorm's running statistics before the first of them.
    pub statistics: GradientsParams,
    /// Of the mean gradient.
    pub norm: f64,
    pub seconds: f64,
}

impl Trainer {
    /// Adds the gradients of this rank's part of a batch, out of `all`.
    pub(super) fn forward_backward(
        &mut self,
        batch: ImageBatch,
        all: BatchShare,
        group: &mut AccumulatedStep,
    ) -> Result<()> {
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
            let own = BatchShare { weight: model.task.weight(&batch), images: batch.mixed_len() as f64 };
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
    pub(super) fn optimize(&mut self, group: &mut AccumulatedStep) -> Result<()> {
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
}
