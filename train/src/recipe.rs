//! What a training does, as a typed TOML file. Unknown keys are errors.

use std::{fs, path::Path};

use anyhow::{Context, ensure};
use burn::optim::{
    ModuleOptimizer, SgdConfig,
    decay::WeightDecayConfig,
    lr_scheduler::{
        LrSchedulerConfig, cosine::CosineAnnealingLrSchedulerConfig, linear::LinearLrSchedulerConfig,
        module_lr_scheduler::ModuleLrScheduler, sequential::SequentialLrSchedulerConfig,
    },
    momentum::MomentumConfig,
};
use datasets::transforms::{Interpolation, Pipeline, RandomCrop, Resize, ResizeRule, Transform};
use models::{Architecture, ChannelOrder, Preprocess};
use serde::{Deserialize, Serialize};

/// The effective recipe of a run; it alone repeats the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    pub architecture: Architecture,
    pub epochs: usize,
    pub batch_size: usize,
    pub seed: u64,
    /// The part of the target that is spread over all classes.
    pub label_smoothing: f32,
    pub images: Images,
    pub optimizer: Optimizer,
    pub schedule: Schedule,
}

/// How images become the network's input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Images {
    /// Side in pixels; images are resized to a square.
    pub size: u32,
    /// In training, pixels of black around the image before a random crop back to its size.
    pub padding: u32,
    /// Mean and deviation of each channel, RGB from 0 to 1.
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

/// SGD.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimizer {
    /// Dampening is 0, as PyTorch has it.
    pub momentum: f64,
    pub weight_decay: f32,
}

/// A linear warm-up, then half a cosine down to 0, step by step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    pub learning_rate: f64,
    pub warmup_epochs: f64,
}

impl Recipe {
    /// The built-in recipe of `cargo run -p train`.
    pub fn digits() -> Self {
        toml::from_str(include_str!("../recipes/digits.toml")).expect("the built-in recipe is valid")
    }

    /// Reads a recipe.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read the recipe {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("the recipe {} is not valid", path.display()))
    }

    /// The recipe as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a recipe has only plain fields")
    }

    /// Whether the numbers make sense.
    pub fn check(&self) -> anyhow::Result<()> {
        let Self { epochs, batch_size, label_smoothing, images, optimizer, schedule, .. } = self;
        ensure!(*epochs > 0, "epochs is 0: nothing to train");
        ensure!(*batch_size > 0, "batch_size is 0: a batch needs at least one image");
        ensure!(
            (0.0..1.0).contains(label_smoothing),
            "label_smoothing is {label_smoothing}; it goes from 0 to below 1"
        );
        ensure!((1..=4096).contains(&images.size), "images.size is {}; it goes from 1 to 4096 pixels", images.size);
        ensure!(images.padding <= images.size, "images.padding is {}, more than the image", images.padding);
        let positive = images.std.iter().all(|std| std.is_finite() && *std > 0.0);
        ensure!(positive, "images.std is {:?}; deviations are positive", images.std);
        ensure!(images.mean.iter().all(|mean| mean.is_finite()), "images.mean is {:?}", images.mean);
        let Optimizer { momentum, weight_decay } = optimizer;
        ensure!((0.0..1.0).contains(momentum), "optimizer.momentum is {momentum}; it goes from 0 to below 1");
        ensure!(
            (0.0..1.0).contains(weight_decay),
            "optimizer.weight_decay is {weight_decay}; it goes from 0 to below 1"
        );
        let rate = schedule.learning_rate;
        ensure!(rate > 0.0 && rate <= 1.0, "schedule.learning_rate is {rate}; it goes from above 0 to 1");
        let warmup = schedule.warmup_epochs;
        let bound = *epochs as f64;
        ensure!(
            (0.0..bound).contains(&warmup),
            "schedule.warmup_epochs is {warmup}; it goes from 0 to below epochs ({epochs})"
        );
        self.architecture.check_input([images.size as usize; 2])?;
        Ok(())
    }

    /// From a decoded image to a training sample.
    pub fn train_pipeline(&self) -> anyhow::Result<Pipeline> {
        let Images { size, padding, .. } = self.images;
        let mut transforms = vec![Transform::Resize(squash(size))];
        if padding > 0 {
            transforms.push(Transform::RandomCrop(RandomCrop { size, padding }));
        }
        Ok(Pipeline::new(transforms)?)
    }

    /// From a decoded image to a sample to evaluate; what [`preprocess`](Self::preprocess) says.
    pub fn eval_pipeline(&self) -> anyhow::Result<Pipeline> {
        Ok(Pipeline::new(vec![Transform::Resize(squash(self.images.size))])?)
    }

    /// The card's part about images.
    pub fn preprocess(&self) -> Preprocess {
        let size = [self.images.size as usize; 2];
        Preprocess {
            resize: models::Resize::Squash(size),
            input_size: size,
            interpolation: models::Interpolation::Bilinear,
            antialias: true,
            channel_order: ChannelOrder::Rgb,
            mean: self.images.mean,
            std: self.images.std,
        }
    }

    pub fn optimizer(&self) -> ModuleOptimizer {
        let Optimizer { momentum, weight_decay } = self.optimizer;
        SgdConfig::new()
            .with_momentum(Some(MomentumConfig::new().with_momentum(momentum).with_dampening(0.0)))
            .with_weight_decay(Some(WeightDecayConfig::new(weight_decay)))
            .init()
    }

    /// The learning rate of each step, for epochs of so many steps.
    pub fn scheduler(&self, steps_per_epoch: usize) -> anyhow::Result<ModuleLrScheduler> {
        let Schedule { learning_rate, warmup_epochs } = self.schedule;
        let steps = self.epochs * steps_per_epoch;
        let warmup = ((warmup_epochs * steps_per_epoch as f64).round() as usize).min(steps.saturating_sub(1));
        let cosine = CosineAnnealingLrSchedulerConfig::new(learning_rate, steps - warmup);
        let scheduler = if warmup == 0 {
            cosine.init()
        } else {
            // From a hundredth: a rate of exactly 0 would waste the first step.
            let linear = LinearLrSchedulerConfig::new(learning_rate / 100.0, learning_rate, warmup);
            let schedulers = vec![LrSchedulerConfig::Linear(linear), LrSchedulerConfig::Cosine(cosine)];
            SequentialLrSchedulerConfig::new(schedulers, vec![warmup]).init()
        };
        scheduler.map_err(|error| anyhow::anyhow!("the schedule is not valid: {error}"))
    }
}

fn squash(size: u32) -> Resize {
    Resize { size, rule: ResizeRule::Squash, interpolation: Interpolation::Bilinear, antialias: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_survives_being_written_and_read() {
        let recipe = Recipe::digits();
        recipe.check().unwrap();
        assert_eq!(toml::from_str::<Recipe>(&recipe.to_toml()).unwrap(), recipe);
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it() {
        let text = include_str!("../recipes/digits.toml").replace("momentum =", "momentun =");
        let error = toml::from_str::<Recipe>(&text).unwrap_err().to_string();
        assert!(error.contains("momentun") && error.contains("momentum"), "{error}");
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        type Break = fn(&mut Recipe);
        let broken: [(&str, Break); 6] = [
            ("epochs", |recipe| recipe.epochs = 0),
            ("batch_size", |recipe| recipe.batch_size = 0),
            ("learning_rate", |recipe| recipe.schedule.learning_rate = -0.1),
            ("warmup_epochs", |recipe| recipe.schedule.warmup_epochs = 12.0),
            ("std", |recipe| recipe.images.std[1] = 0.0),
            ("alexnet", |recipe| recipe.architecture = Architecture::AlexNet),
        ];
        for (named, break_it) in broken {
            let mut recipe = Recipe::digits();
            break_it(&mut recipe);
            let error = recipe.check().unwrap_err().to_string();
            assert!(error.contains(named), "{named}: {error}");
        }
    }

    #[test]
    fn the_rate_warms_up_and_comes_down() {
        let mut scheduler = Recipe::digits().scheduler(10).unwrap();
        let rates: Vec<f64> = (0..120).map(|_| scheduler.step().base()).collect();
        assert!((rates[0] - 0.001).abs() < 1e-9);
        assert!((rates[10] - 0.1).abs() < 1e-9);
        assert!(rates[..10].is_sorted() && rates[10..].iter().rev().is_sorted());
        assert!(rates[119] < 0.0001);
    }
}
