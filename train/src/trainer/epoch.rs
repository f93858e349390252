//! The steps of one epoch.

use std::{sync::atomic::Ordering, time::Instant};

use burn_train::{EventProcessorTraining, LearnerEvent};
use datasets::loader::Batches;

use super::{Trainer, share::BatchShare, step::AccumulatedStep};
use crate::{
    Result,
    progress::{StepTimes, lap},
};

/// What all ranks know alike, because one of them said it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Agreed {
    /// Some rank was asked to stop.
    pub stop: bool,
    /// The root wants a checkpoint, or some rank was asked for one.
    pub checkpoint: bool,
}

impl Trainer {
    /// The rest of the current epoch's training images; whether a stop was asked for before their end.
    pub(super) fn train_epoch(&mut self) -> Result<bool> {
        let epoch = self.session.state.epoch;
        let loader = self.session.loaders.train(epoch).clone();
        let total = loader.num_batches();
        let event = LearnerEvent::StartSplit { epoch_number: epoch + 1, total_items: total * loader.batch_size() };
        self.interrupter.fail_on_error(self.events.process_train(event));
        let mut is_stopped = false;
        // One past the last batch would mean the next epoch's first.
        if self.session.state.batch < total {
            loader.start_at(epoch as u64, self.session.state.batch)?;
            is_stopped = self.train_batches(loader.batches(), total)?;
            self.session.state.times.add_loader(&loader.meters());
        }
        if is_stopped {
            if !self.session.limits.steps_only {
                self.checkpoint();
            }
            return Ok(true);
        }
        self.interrupter.fail_on_error(self.events.process_train(LearnerEvent::EndSplit(epoch + 1)));
        Ok(false)
    }

    /// The training loop: load → forward, backward → all-reduce → guard → step → EMA → log. `total` are the batches of an
    /// epoch.
    fn train_batches(&mut self, mut batches: Batches, total: usize) -> Result<bool> {
        let accumulate = self.session.recipe.accumulate;
        let mut step = AccumulatedStep::default();
        let mut is_stopped = false;
        (self.clock, self.seconds) = (Instant::now(), 0.0);
        self.copies.measure_next();
        let mut next = self.fetch(&mut batches);
        while let Some(batch) = next.take().transpose()? {
            let last = batch.number + 1 == total;
            self.session.state.batch = batch.number + 1;
            let all = self.agree(batch.share);
            self.exchanged(|times| &mut times.ranks);
            self.forward_backward(batch, all, &mut step)?;
            if step.count < accumulate && !last {
                next = self.fetch(&mut batches);
                continue;
            }
            self.update(std::mem::take(&mut step))?;
            next = self.fetch(&mut batches);
            if self.is_readback_due() {
                self.read_back()?;
            }
            is_stopped = self.is_stopped();
            if is_stopped || self.is_at_limit() {
                break;
            }
            if self.is_checkpoint_agreed() {
                self.read_back()?;
                self.checkpoint();
            }
        }
        self.read_back()?;
        Ok(is_stopped)
    }

    /// Charges the time since the last charge to a part of the epoch's.
    pub(super) fn charge(&mut self, part: impl FnOnce(&mut StepTimes) -> &mut f64) {
        let seconds = lap(&mut self.clock);
        let state = &mut self.session.state;
        *part(&mut state.times) += seconds;
        state.seconds += seconds;
        self.seconds += seconds;
    }

    /// The same for what several processes send each other; nothing for one alone.
    pub(super) fn exchanged(&mut self, part: impl FnOnce(&mut StepTimes) -> &mut f64) {
        if !self.session.world.is_alone() {
            self.charge(part);
        }
    }

    /// Waits until all ranks are here, and takes down what they agree on. Returns the sum of their parts.
    pub(super) fn agree(&mut self, own: BatchShare) -> BatchShare {
        let world = self.session.world;
        let stop = self.session.stop.load(Ordering::Relaxed) || self.interrupter.should_stop();
        let checkpoint = (world.is_root() && self.checkpoint_is_due()) || self.checkpoint_is_wanted();
        let mut message = [own.weight, own.images, f64::from(u8::from(stop)), f64::from(u8::from(checkpoint))];
        world.sum(&mut message);
        let [weight, images, stop, checkpoint] = message;
        self.agreed = Agreed { stop: stop > 0.0, checkpoint: checkpoint > 0.0 };
        BatchShare { weight, images }
    }
}
