//! The validation at the end of an epoch.

use std::time::Instant;

use anyhow::{Result, ensure};
use burn::module::Module;
use burn_train::{EventProcessorTraining, LearnerEvent, TrainingItem};
use datasets::ImageBatch;
use models::Network;
use runtime::warmup::Pace;

use super::{
    Trainer,
    guard::{running_statistics, set_running_statistics},
};
use crate::{
    classifier::predict,
    evaluation::{Prediction, Reading},
    progress::lap,
    ranks,
    recipe::DistBn,
};

/// What networks say of the validation images.
pub(super) struct Validation {
    pub raw: Vec<Prediction>,
    pub ema: Option<Vec<Prediction>>,
}

impl Trainer {
    /// Brings the ranks' running statistics together, as the recipe says.
    pub(super) fn share_running_statistics(&mut self) -> Result<()> {
        let world = self.session.world;
        if world.is_alone() {
            return Ok(());
        }
        let model = &*self.model;
        let own = running_statistics(model);
        let statistics = match self.session.recipe.ranks.dist_bn {
            DistBn::None => return Ok(()),
            DistBn::Reduce => ranks::mean_statistics(world, model, own, &self.session.device),
            DistBn::Broadcast => ranks::root_statistics(world, model, own, &self.session.device),
        };
        set_running_statistics(model, statistics);
        Ok(())
    }

    /// What the better of the raw weights and their average says of each validation image.
    pub(super) fn validate_epoch(&mut self) -> Result<Validation> {
        let mut mark = Instant::now();
        self.share_running_statistics()?;
        ensure!(
            ranks::weights_agree(self.session.world, &self.model),
            "the processes' weights are not the same any more: a device computes wrongly, or Hearth has a defect"
        );
        if let Some(replicas) = &self.replicas {
            replicas.check_weights(&self.model)?;
        }
        let epoch = self.session.state.epoch;
        let loader = self.session.loaders.valid.clone();
        let event = LearnerEvent::StartSplit { epoch_number: epoch + 1, total_items: loader.source().len() };
        self.interrupter.fail_on_error(self.events.process_valid(event));
        let (network, task) = (self.model.network.valid(), self.model.task.clone());
        let device = self.session.device.clone().without_autodiff();
        let average = self.session.ema.as_ref().map(|ema| ema.network().clone());
        let mut validation = Validation { raw: Vec::new(), ema: average.as_ref().map(|_| Vec::new()) };
        let copies = |network: Network| match &self.replicas {
            Some(replicas) => replicas.copies(&network),
            None => vec![network],
        };
        let (raw, average) = (copies(network), average.map(copies));
        let predict = |copies: &[Network], batches: &[ImageBatch]| match &self.replicas {
            Some(replicas) => replicas.predict(copies, &task, batches),
            None => Ok(batches.iter().map(|batch| predict(&copies[0], &task, batch, &device)).collect()),
        };
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
            let of_raw = predict(&raw, &round)?;
            let of_average = average.as_ref().map(|average| predict(average, &round)).transpose()?;
            for place in 0..round.len() {
                number += 1;
                let shown = of_average.as_ref().map_or(&of_raw[place], |average| &average[place]);
                let item = TrainingItem::new(Reading::of(shown), batches.progress(), Some(number), None);
                self.interrupter.fail_on_error(self.events.process_valid(LearnerEvent::ProcessedItem(item)));
            }
            validation.raw.extend(of_raw.into_iter().flatten());
            if let (Some(all), Some(own)) = (&mut validation.ema, of_average) {
                all.extend(own.into_iter().flatten());
            }
            let seconds = lap(&mut round_mark) / round.len() as f64;
            round.iter().for_each(|_| pace.record(seconds));
        }
        drop(batches);
        self.session.state.valid_pace = pace;
        let world = self.session.world;
        validation.raw = ranks::gather_predictions(world, validation.raw)?;
        validation.ema = validation.ema.map(|own| ranks::gather_predictions(world, own)).transpose()?;
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
