//! The shipped recipes for transfer follow the data: what fits a thousand images of a class does not fit ten.
//!
//! [`sizes`] needs the number of images alone; [`rates`] trains the classifier and tests learning rates on the network.
//! Keys that were given explicitly stay as they are. The values that were chosen are in the effective recipe, so that a run
//! that is resumed or repeated chooses nothing again.

use std::collections::BTreeSet;

use datasets::transforms::{Pipeline, Transform};
use runtime::communicator::communicator;
use toml::Value;

use crate::{
    Error, Result, head, lr_finder, probe,
    recipe::{Freeze, Overrides, Recipe},
    run::{Options, Prepared},
    warm,
};

/// Steps of a fine-tuning, at least.
const STEPS: usize = 240;
/// Steps of its warm-up, at least.
const WARMUP_STEPS: f64 = 20.0;
/// Images of a class below which they are few: crops are mild then.
const FEW_OF_A_CLASS: usize = 200;
/// The part of an image's area that a mild crop has, at least.
const MILD_CROP: f64 = 0.6;
/// The learning rate before the classifier, at least and at most, whatever the range test says; and as a part of the
/// classifier's.
const BODY: (f64, f64) = (3e-4, 3e-3);
const BODY_PART: f64 = 0.3;

/// The keys of a recipe that were given explicitly.
#[derive(Debug, Clone, Default)]
pub struct Explicit {
    overrides: Overrides,
    keys: BTreeSet<String>,
}

impl Explicit {
    /// Adds a key.
    pub fn add(&mut self, key: &str) {
        self.keys.insert(key.to_string());
    }

    /// Adds the keys in which two recipes differ.
    pub fn add_changes(&mut self, before: &Recipe, after: &Recipe) {
        fn differences(path: &str, before: Option<&Value>, after: &Value, keys: &mut BTreeSet<String>) {
            match after {
                Value::Table(table) => table.iter().for_each(|(key, value)| {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    differences(&path, before.and_then(|before| before.get(key)), value, keys);
                }),
                _ if before != Some(after) => {
                    keys.insert(path.to_string());
                }
                _ => {}
            }
        }
        let table = |recipe: &Recipe| Value::try_from(recipe).unwrap_or(Value::Boolean(false));
        let (before, after) = (table(before), table(after));
        differences("", Some(&before), &after, &mut self.keys);
        // What was there and is not.
        differences("", Some(&after), &before, &mut self.keys);
    }

    fn has(&self, key: &str) -> bool {
        self.overrides.names(key) || self.keys.contains(key)
    }
}

impl From<Overrides> for Explicit {
    /// The keys that overrides set or remove.
    fn from(overrides: Overrides) -> Self {
        Self { overrides, keys: BTreeSet::new() }
    }
}

/// Adapts batch size, number of epochs, warm-up, patience and augmentation to the number of images.
///
/// # Errors
/// Fails if the recipe is not valid then.
pub fn sizes(prepared: &mut Prepared, explicit: &Explicit) -> Result<()> {
    let is_probe = probe::is_probe(&prepared.recipe);
    let images = prepared.data.train.len();
    let classes = prepared.data.train.classes().len().max(1);
    let devices = prepared.devices.is_some() || !communicator().is_alone();
    let recipe = &mut prepared.recipe;
    let warm = &mut prepared.warm;
    // Batches that several devices share stay as they are.
    let fits_batch = !devices && !explicit.has("batch_size");
    if is_probe {
        let (batch, passes) = head::sizes(images, recipe.batch_size);
        if fits_batch {
            recipe.batch_size = batch;
        }
        if !explicit.has("epochs") {
            recipe.epochs = passes;
        }
        warm.chooses_rate = !explicit.has("schedule.learning_rate");
        warm.chooses_decay = !explicit.has("optimizer.weight_decay");
        return Ok(recipe.check()?);
    }
    if fits_batch {
        recipe.batch_size = head::batch_size(images / 8, 8, recipe.batch_size).min(images.max(1));
    }
    let steps_per_epoch = (images / recipe.batch_size).div_ceil(recipe.accumulate).max(1);
    if !explicit.has("epochs") {
        recipe.epochs = recipe.epochs.max(STEPS.div_ceil(steps_per_epoch));
    }
    if !explicit.has("schedule.warmup_epochs") {
        let warmup = recipe.schedule.warmup_epochs.max(WARMUP_STEPS / steps_per_epoch as f64);
        // Rounded: the recipe is read by people.
        recipe.schedule.warmup_epochs = (100.0 * warmup.min(0.25 * recipe.epochs as f64)).round() / 100.0;
    }
    if !explicit.has("checkpoints.patience")
        && let Some(patience) = &mut recipe.checkpoints.patience
    {
        *patience = recipe.epochs.div_ceil(3).max(*patience);
    }
    let mut crops = "";
    if !explicit.has("images.train") && images / classes < FEW_OF_A_CLASS {
        let mut transforms: Vec<Transform> = recipe.images.train.clone().into();
        for transform in &mut transforms {
            if let Transform::RandomResizedCrop(crop) = transform {
                crop.scale[0] = crop.scale[0].max(MILD_CROP as _);
                crops = ", mild crops";
            }
        }
        recipe.images.train = Pipeline::new(transforms)?;
    }
    warm.decisions.push(format!(
        "{images} images of {classes} classes: batches of {}, {} epochs of {steps_per_epoch} steps{crops}",
        recipe.batch_size, recipe.epochs
    ));
    Ok(recipe.check()?)
}

/// Trains the classifier as the recipe says, and chooses the learning rate before it by a range test. Does nothing for a
/// linear probe, which chooses its own.
///
/// # Errors
/// [`Error::Stopped`] where a stop was asked for. Where the weights do not fit the network, or training fails.
pub fn rates(prepared: &mut Prepared, explicit: &Explicit, options: &Options) -> Result<()> {
    let is_frozen = prepared.recipe.transfer.as_ref().is_none_or(|transfer| {
        // Nothing but the classifier is ever trained.
        transfer.freeze == Freeze::Backbone && transfer.unfreeze_at.is_none()
    });
    if probe::is_probe(&prepared.recipe) {
        return Ok(());
    }
    warm::start(prepared, options)?;
    if is_frozen || explicit.has("transfer.body_rate") || explicit.has("schedule.learning_rate") {
        return Ok(());
    }
    options.observer.on_note("testing learning rates of the stages before the classifier");
    let test = lr_finder::test_body(prepared.clone(), options)?.ok_or(Error::Stopped)?;
    let recipe = &mut prepared.recipe;
    let body = test.rate.clamp(BODY.0, BODY.1);
    // Two digits: the recipe is read by people.
    let head: f64 = format!("{:.1e}", body / BODY_PART).parse().unwrap_or(body / BODY_PART);
    recipe.schedule.learning_rate = head / recipe.rate_factor();
    if let Some(transfer) = &mut recipe.transfer {
        transfer.body_rate = BODY_PART;
    }
    prepared.warm.decisions.push(format!(
        "learning rates: {head:.1e} for the classifier, {:.1e} for the stages before it, a tenth of where training breaks down \
         (at least {:.0e}, at most {:.0e}): {} {:.1e} in a range test of {} steps",
        BODY_PART * head,
        BODY.0,
        BODY.1,
        if test.has_diverged { "the loss broke away at" } else { "the loss stayed low up to" },
        test.edge,
        test.steps
    ));
    Ok(recipe.check()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::load;

    #[test]
    fn changed_added_and_removed_keys_are_explicit() {
        let before = load("finetune", &Overrides::default()).unwrap();
        let mut after = before.clone();
        after.epochs = 7;
        after.checkpoints.patience = None;
        after.loss.aux_weight = Some(0.1);
        let mut explicit = Explicit::default();
        explicit.add_changes(&before, &after);
        explicit.add("batch_size");
        let keys = ["epochs", "checkpoints.patience", "loss.aux_weight", "batch_size", "seed", "schedule.decay"];
        assert_eq!(keys.map(|key| explicit.has(key)), [true, true, true, true, false, false]);
    }
}
