//! The validation at the end of an epoch.

use std::time::Instant;

use burn::module::Module;
use burn_train::{EventProcessorTraining, LearnerEvent, TrainingItem};
use runtime::warmup::Pace;

use super::Trainer;
use crate::{
    Result,
    evaluation::{MetricSums, Prediction},
    progress::lap,
};

/// The predictions of the validation images.
pub(super) struct Validation {
    pub raw: Vec<Prediction>,
    pub ema: Option<Vec<Prediction>>,
}

impl Trainer {
    /// Brings the running statistics of all processes together, as the recipe says.
    pub(super) fn sync_running_statistics(&self) {
        self.parallel.sync_running_statistics(&self.model, self.session.recipe.ranks.dist_bn);
    }

    /// Predicts each validation image with the raw weights, and with their EMA where there is one.
    pub(super) fn validate_epoch(&mut self) -> Result<Validation> {
        let mut mark = Instant::now();
        self.sync_running_statistics();
        self.parallel.check_weights(&self.model)?;
        let epoch = self.session.state.epoch;
        let loader = self.session.loaders.valid.clone();
        let event = LearnerEvent::StartSplit { epoch_number: epoch + 1, total_items: loader.source().len() };
        self.interrupter.fail_on_error(self.events.process_valid(event));
        let (network, task) = (self.model.network.valid(), self.model.task.clone());
        let ema = self.session.ema.as_ref().map(|ema| ema.network().clone());
        let mut validation = Validation { raw: Vec::new(), ema: ema.as_ref().map(|_| Vec::new()) };
        let raw = self.parallel.copies(network);
        let ema = ema.map(|network| self.parallel.copies(network));
        loader.start_at(epoch as u64, 0)?;
        let mut batches = loader.batches();
        let limit = self.session.limits.valid_batches.unwrap_or(usize::MAX);
        let warm_up = self.session.limits.warm_up;
        let mut pace = Pace::after(self.session.state.pace.warmup().anew());
        let mut round_mark = Instant::now();
        let mut number = 0;
        loop {
            // One for each device.
            let counted = if warm_up { pace.counted() as usize } else { number };
            let most = raw.len().min(limit.saturating_sub(counted));
            let round = batches.by_ref().take(most).collect::<Result<Vec<_>, _>>()?;
            if round.is_empty() {
                break;
            }
            let of_raw = self.parallel.predict(&raw, &task, &round)?;
            let of_ema = ema.as_ref().map(|copies| self.parallel.predict(copies, &task, &round)).transpose()?;
            for index in 0..round.len() {
                number += 1;
                let shown = of_ema.as_ref().map_or(&of_raw[index], |of_ema| &of_ema[index]);
                let item = TrainingItem::new(MetricSums::of(shown), batches.progress(), Some(number), None);
                self.interrupter.fail_on_error(self.events.process_valid(LearnerEvent::ProcessedItem(item)));
            }
            validation.raw.extend(of_raw.into_iter().flatten());
            if let (Some(all), Some(own)) = (&mut validation.ema, of_ema) {
                all.extend(own.into_iter().flatten());
            }
            let seconds = lap(&mut round_mark) / round.len() as f64;
            round.iter().for_each(|_| pace.record(seconds));
        }
        drop(batches);
        self.session.state.valid_pace = pace;
        let world = self.session.world;
        validation.raw = self.parallel.gather(validation.raw)?;
        validation.ema = validation.ema.map(|own| self.parallel.gather(own)).transpose()?;
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
}
