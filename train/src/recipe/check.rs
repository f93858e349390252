//! Whether a recipe's numbers make sense, each with the key's name in the message.

use super::{Decay, Error, OptimizerName, Recipe};

/// Returns [`Error::Invalid`] with a message unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        let holds: bool = $condition;
        if !holds {
            return Err(Error::Invalid(format!($($message)+)));
        }
    };
}

/// Above these numbers a value is a slip, and sums and products of several would not fit.
const MOST_EPOCHS: usize = 1_000_000;
const MOST_IMAGES: usize = 1_000_000;
const MOST_REPEATS: usize = 1000;
const MOST_PIXELS: usize = 16_384;

fn at_most(key: &str, value: usize, most: usize) -> Result<(), Error> {
    ensure!(value <= most, "{key} is {value}; the most is {most}");
    Ok(())
}

impl Recipe {
    /// Checks that the values are valid and fit each other.
    ///
    /// # Errors
    /// Fails at the first value that is not valid.
    pub fn check(&self) -> Result<(), Error> {
        let Self { epochs, batch_size, accumulate, max_bad_steps, .. } = self;
        ensure!(*epochs > 0, "epochs is 0: nothing to train");
        ensure!(*batch_size > 0, "batch_size is 0: a batch needs at least one image");
        ensure!(*accumulate > 0, "accumulate is 0: a step needs at least one forward pass");
        at_most("epochs", *epochs, MOST_EPOCHS)?;
        at_most("batch_size", *batch_size, MOST_IMAGES)?;
        at_most("accumulate", *accumulate, MOST_IMAGES)?;
        at_most("schedule.per_images", self.schedule.per_images.unwrap_or(0), MOST_IMAGES)?;
        ensure!(*max_bad_steps > 0, "max_bad_steps is 0: write 1 to stop at the first");
        self.check_data()?;
        self.check_images()?;
        self.check_loss()?;
        self.check_optimizer()?;
        self.check_schedule()?;
        self.check_rest()
    }

    fn check_data(&self) -> Result<(), Error> {
        let data = &self.data;
        ensure!(
            !data.train.is_empty(),
            "data.train is empty: name the images, for instance a folder with one folder per class"
        );
        ensure!(data.repeats > 0, "data.repeats is 0; 1 means no repetition");
        at_most("data.repeats", data.repeats, MOST_REPEATS)?;
        ensure!(
            (0.0..=1.0).contains(&data.balance),
            "data.balance is {}; it goes from 0 (each image once) to 1 (each class equally often)",
            data.balance
        );
        ensure!(
            !data.balanced || data.balance == 0.0 || data.balance == 1.0,
            "data.balanced is a data.balance of 1, not {}; leave one of them out",
            data.balance
        );
        ensure!(
            data.order == super::DataOrder::Shuffled || (data.repeats == 1 && data.balance() == 0.0),
            "data.order is \"windowed\", which goes with neither data.repeats nor data.balance"
        );
        if let Some(fraction) = data.val_fraction {
            ensure!(
                fraction > 0.0 && fraction < 1.0,
                "data.val_fraction is {fraction}; it is above 0 and below 1, because the best epoch is selected on \
                 validation images: name others in data.valid to train on all of data.train"
            );
        }
        Ok(())
    }

    fn check_images(&self) -> Result<(), Error> {
        let images = &self.images;
        let Some(size) = images.size() else {
            let cause = "images.train leaves images of different sizes, which make no batch; add a crop";
            return Err(Error::Invalid(cause.into()));
        };
        let crop = images.eval.crop as usize;
        ensure!(crop > 0 && images.eval.resize > 0, "images.eval has a size of 0 pixels");
        ensure!(
            images.eval.crop <= images.eval.resize,
            "images.eval crops {} pixels of images resized to {}: give a crop that fits",
            images.eval.crop,
            images.eval.resize
        );
        ensure!(
            crop <= MOST_PIXELS && images.eval.resize as usize <= MOST_PIXELS,
            "images.eval goes up to {MOST_PIXELS} pixels"
        );
        ensure!(size <= MOST_PIXELS, "images.train makes images of {size} pixels; the most are {MOST_PIXELS}");
        for phase in &images.sizes {
            ensure!(
                (1..=MOST_PIXELS).contains(&(phase.size as usize)),
                "images.sizes has a size of {} pixels; it goes from 1 to {MOST_PIXELS}",
                phase.size
            );
        }
        for side in [size, crop].into_iter().chain(images.sizes.iter().map(|phase| phase.size as usize)) {
            self.architecture.check_input([side, side]).map_err(|error| Error::Invalid(error.to_string()))?;
        }
        let positive = images.std.iter().all(|std| std.is_finite() && *std > 0.0);
        ensure!(positive, "images.std is {:?}; deviations are positive", images.std);
        ensure!(images.mean.iter().all(|mean| mean.is_finite()), "images.mean is {:?}", images.mean);
        let epochs: Vec<usize> = images.sizes.iter().map(|phase| phase.epoch).collect();
        ensure!(epochs.iter().all(|&epoch| epoch > 0), "images.sizes counts epochs from 1");
        ensure!(epochs.windows(2).all(|pair| pair[0] < pair[1]), "images.sizes must be in the order of its epochs");
        Ok(())
    }

    fn check_loss(&self) -> Result<(), Error> {
        let loss = &self.loss;
        let smoothing = loss.label_smoothing;
        ensure!((0.0..1.0).contains(&smoothing), "loss.label_smoothing is {smoothing}; it goes from 0 to below 1");
        if let Some(gamma) = loss.gamma {
            ensure!(loss.name == super::LossName::Focal, "loss.gamma goes with loss.name = \"focal\" alone");
            ensure!((0.0..=100.0).contains(&gamma), "loss.gamma is {gamma}; it goes from 0 to 100");
        }
        for weight in loss.class_weights.given() {
            ensure!(weight.is_finite() && weight > 0.0, "loss.class_weights has {weight}; weights are positive");
        }
        if let Some(weight) = loss.aux_weight {
            ensure!(weight.is_finite() && weight >= 0.0, "loss.aux_weight is {weight}; it is not negative");
        }
        if let Some(threshold) = loss.target_threshold {
            ensure!(loss.name == super::LossName::Bce, "loss.target_threshold goes with loss.name = \"bce\" alone");
            ensure!((0.0..1.0).contains(&threshold), "loss.target_threshold is {threshold}; it goes from 0 to below 1");
        }
        if let Some(dropout) = self.network.dropout {
            ensure!((0.0..1.0).contains(&dropout), "network.dropout is {dropout}; it goes from 0 to below 1");
        }
        if let Some(scale) = self.network.loss_scale {
            ensure!(
                self.network.dtype == super::Dtype::F16,
                "network.loss_scale goes with network.dtype = \"f16\" alone"
            );
            ensure!(scale.is_finite() && scale > 0.0, "network.loss_scale is {scale}; it is positive");
        }
        Ok(())
    }

    fn check_optimizer(&self) -> Result<(), Error> {
        use OptimizerName::*;
        let optimizer = &self.optimizer;
        let fits = |given: bool, names: &[OptimizerName], key: &str| {
            ensure!(
                !given || names.contains(&optimizer.name),
                "optimizer.{key} means nothing to {:?}; leave it out",
                optimizer.name
            );
            Ok(())
        };
        fits(optimizer.momentum.is_some(), &[Sgd, RmsProp], "momentum")?;
        fits(optimizer.nesterov.is_some(), &[Sgd], "nesterov")?;
        fits(optimizer.betas.is_some(), &[AdamW, Lamb], "betas")?;
        fits(optimizer.alpha.is_some(), &[RmsProp], "alpha")?;
        fits(optimizer.epsilon.is_some(), &[AdamW, Lamb, RmsProp], "epsilon")?;
        if let Some(momentum) = optimizer.momentum {
            ensure!((0.0..1.0).contains(&momentum), "optimizer.momentum is {momentum}; it goes from 0 to below 1");
        }
        ensure!(
            optimizer.nesterov != Some(true) || optimizer.momentum.is_some_and(|momentum| momentum > 0.0),
            "optimizer.nesterov needs a momentum"
        );
        for beta in optimizer.betas.iter().flatten().chain(&optimizer.alpha) {
            ensure!((0.0..1.0).contains(beta), "optimizer.betas and alpha go from 0 to below 1; {beta} does not");
        }
        if let Some(epsilon) = optimizer.epsilon {
            ensure!(epsilon > 0.0 && epsilon.is_finite(), "optimizer.epsilon is {epsilon}; it is positive");
        }
        let decay = optimizer.weight_decay;
        ensure!(decay.is_finite() && decay >= 0.0, "optimizer.weight_decay is {decay}; it is not negative");
        if let Some(norm) = optimizer.clip_norm {
            ensure!(norm > 0.0 && norm.is_finite(), "optimizer.clip_norm is {norm}; it is positive");
        }
        Ok(())
    }

    fn check_schedule(&self) -> Result<(), Error> {
        let schedule = &self.schedule;
        let rate = schedule.learning_rate;
        ensure!(rate.is_finite() && rate > 0.0, "schedule.learning_rate is {rate}; it is positive");
        ensure!(schedule.per_images != Some(0), "schedule.per_images is 0; it is the images that the rate is for");
        let warmup = schedule.warmup_epochs;
        ensure!(
            warmup.is_finite() && warmup >= 0.0 && warmup <= self.epochs as f64,
            "schedule.warmup_epochs is {warmup}; it goes from 0 to epochs ({})",
            self.epochs
        );
        ensure!(
            (0.0..=1.0).contains(&schedule.warmup_start),
            "schedule.warmup_start is {}; it goes from 0 to 1",
            schedule.warmup_start
        );
        let fits = |given: bool, decays: &[Decay], key: &str| {
            ensure!(
                !given || decays.contains(&schedule.decay),
                "schedule.{key} means nothing to this decay; leave it out"
            );
            Ok(())
        };
        fits(schedule.end.is_some(), &[Decay::Cosine, Decay::Polynomial], "end")?;
        fits(!schedule.milestones.is_empty(), &[Decay::Steps], "milestones")?;
        fits(schedule.gamma.is_some(), &[Decay::Steps], "gamma")?;
        fits(schedule.power.is_some(), &[Decay::Polynomial], "power")?;
        ensure!(
            schedule.decay != Decay::Steps || !schedule.milestones.is_empty(),
            "schedule.milestones is empty: name the epochs at which the rate falls"
        );
        ensure!(
            schedule.decay != Decay::OneCycle || warmup == 0.0,
            "schedule.warmup_epochs: one_cycle has a warm-up of its own; leave it out"
        );
        if let Some(end) = schedule.end {
            ensure!((0.0..=1.0).contains(&end), "schedule.end is {end}; it goes from 0 to 1");
        }
        for value in [schedule.gamma, schedule.power].into_iter().flatten() {
            ensure!(value.is_finite() && value > 0.0, "schedule.gamma and power are positive; {value} is not");
        }
        let milestones = &schedule.milestones;
        ensure!(milestones.iter().all(|m| m.is_finite() && *m >= 0.0), "schedule.milestones are epochs, not negative");
        ensure!(milestones.is_sorted(), "schedule.milestones must ascend");
        Ok(())
    }

    fn check_rest(&self) -> Result<(), Error> {
        if let Some(ema) = &self.ema {
            ensure!((0.0..1.0).contains(&ema.decay), "ema.decay is {}; it goes from 0 to below 1", ema.decay);
            ensure!(ema.every > 0, "ema.every is 0; 1 averages after each step");
        }
        if let Some(transfer) = &self.transfer {
            let decay = transfer.layer_decay;
            ensure!(decay > 0.0 && decay <= 1.0, "transfer.layer_decay is {decay}; it lies between 0 and 1");
            let body = transfer.body_rate;
            ensure!(body > 0.0 && body <= 1.0, "transfer.body_rate is {body}; it lies between 0 and 1");
            ensure!(
                !transfer.weights.is_empty(),
                "transfer.weights is empty: name a run folder, a weight file or published weights"
            );
            ensure!(transfer.unfreeze_at != Some(0), "transfer.unfreeze_at counts epochs from 1");
            ensure!(
                transfer.freeze != super::Freeze::None || transfer.unfreeze_at.is_none(),
                "transfer.unfreeze_at unfreezes nothing, since transfer.freeze is \"none\": leave it out, or name the stages \
                 to freeze"
            );
            ensure!(
                transfer.unfreeze_per_epoch.is_none_or(|stages| stages > 0 && transfer.unfreeze_at.is_some()),
                "transfer.unfreeze_per_epoch is a number of stages above 0, and needs transfer.unfreeze_at"
            );
        }
        let checkpoints = &self.checkpoints;
        ensure!(checkpoints.keep > 0, "checkpoints.keep is 0: a run could not be resumed");
        ensure!(
            checkpoints.every_minutes.is_finite() && checkpoints.every_minutes > 0.0,
            "checkpoints.every_minutes is {}; it is positive",
            checkpoints.every_minutes
        );
        ensure!(checkpoints.every_steps != Some(0), "checkpoints.every_steps is 0; leave it out");
        ensure!(checkpoints.patience != Some(0), "checkpoints.patience is 0: give the epochs to wait for a better one");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use models::Architecture;

    use super::super::{Ema, read::shipped};
    use super::*;

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        type Break = fn(&mut Recipe);
        let broken: [(&str, Break); 26] = [
            ("epochs is 9223372036854775807", |recipe| recipe.epochs = i64::MAX as usize),
            ("batch_size is 9223372036854775807", |recipe| recipe.batch_size = i64::MAX as usize),
            ("accumulate", |recipe| recipe.accumulate = usize::MAX),
            ("data.repeats", |recipe| recipe.data.repeats = usize::MAX),
            ("images.sizes", |recipe| recipe.images.sizes = vec![super::super::Phase { epoch: 1, size: u32::MAX }]),
            ("windowed", |recipe| {
                recipe.data.order = super::super::DataOrder::Windowed;
                recipe.data.balanced = true;
            }),
            ("epochs", |recipe| recipe.epochs = 0),
            ("batch_size", |recipe| recipe.batch_size = 0),
            ("accumulate", |recipe| recipe.accumulate = 0),
            ("learning_rate", |recipe| recipe.schedule.learning_rate = -0.1),
            ("warmup_epochs", |recipe| recipe.schedule.warmup_epochs = 12.5),
            ("std", |recipe| recipe.images.std[1] = 0.0),
            ("alexnet", |recipe| recipe.architecture = Architecture::AlexNet),
            ("betas", |recipe| recipe.optimizer.betas = Some([0.9, 0.999])),
            ("nesterov", |recipe| {
                recipe.optimizer.nesterov = Some(true);
                recipe.optimizer.momentum = None;
            }),
            ("gamma", |recipe| recipe.schedule.gamma = Some(0.1)),
            ("milestones", |recipe| recipe.schedule.decay = Decay::Steps),
            ("ema.decay", |recipe| recipe.ema = Some(Ema { decay: 1.0, every: 1 })),
            ("label_smoothing", |recipe| recipe.loss.label_smoothing = 1.0),
            ("data.balance is 1.5", |recipe| recipe.data.balance = 1.5),
            ("leave one of them out", |recipe| {
                (recipe.data.balance, recipe.data.balanced) = (0.5, true);
            }),
            ("windowed", |recipe| {
                (recipe.data.balance, recipe.data.order) = (0.5, super::super::DataOrder::Windowed);
            }),
            ("loss.gamma goes with", |recipe| recipe.loss.gamma = Some(2.0)),
            ("loss.gamma is -1", |recipe| {
                (recipe.loss.name, recipe.loss.gamma) = (super::super::LossName::Focal, Some(-1.0));
            }),
            ("weights are positive", |recipe| {
                recipe.loss.class_weights = super::super::ClassWeights::List(vec![1.0, 0.0]);
            }),
            ("keep", |recipe| recipe.checkpoints.keep = 0),
        ];
        for (named, break_it) in broken {
            let mut recipe = shipped("digits").unwrap();
            break_it(&mut recipe);
            let error = recipe.check().unwrap_err().to_string();
            assert!(error.contains(named), "{named}: {error}");
        }
    }
}
