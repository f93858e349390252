//! A linear classifier on fixed features: sizes, the choice of its learning rate and weight decay, its training.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
};

use burn::{
    module::{Module, ModuleMapper, Param, ParamId},
    nn::Linear,
    optim::GradientsParams,
    tensor::{Int, Tensor, TensorData},
};
use datasets::{ImageBatch, SampleRng};
use models::{ImageClassifier, Network};

use crate::{
    classifier::Objective,
    evaluation::{self, MetricSums},
    recipe::{self, OptimizerName},
    trainer::{
        flat,
        optimizer::{Optimizer, Update},
        slot::Slot,
    },
};

/// Steps of a classifier's training, at least.
const STEPS: usize = 400;
/// Passes over the features, at least.
const PASSES: usize = 10;

/// More features than these are split once, into a part to train on and a part that is held out.
const MANY: usize = 2000;
/// The folds of the cross-validation of fewer features.
const FOLDS: usize = 5;

/// The settings that are tried.
const RATES: [f64; 3] = [1e-3, 3e-3, 1e-2];
const DECAYS: [f32; 2] = [1e-2, 1.0];

/// A learning rate, after which a cosine falls, and a weight decay of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Setting {
    pub rate: f64,
    pub decay: f32,
}

/// All settings of which `rate` and `decay`, where they are given, are a part.
pub fn settings(rate: Option<f64>, decay: Option<f32>) -> Vec<Setting> {
    let rates = rate.map_or(RATES.to_vec(), |rate| vec![rate]);
    let decays = decay.map_or(DECAYS.to_vec(), |decay| vec![decay]);
    rates.iter().flat_map(|&rate| decays.iter().map(move |&decay| Setting { rate, decay })).collect()
}

/// Features of a batch, and the number of passes over all: small sets have small batches, so that they have steps.
pub fn sizes(images: usize, most: usize) -> (usize, usize) {
    let batch = batch_size(images / 4, 16, most).min(images.max(1));
    let steps = (images / batch).max(1);
    (batch, STEPS.div_ceil(steps).max(PASSES))
}

/// The power of two at or below `images`, within limits.
pub fn batch_size(images: usize, least: usize, most: usize) -> usize {
    let power = 1 << images.max(1).ilog2();
    power.clamp(least.min(most), most)
}

/// The optimizer of a classifier that comes before the training of a network.
pub fn optimizer() -> recipe::Optimizer {
    recipe::Optimizer {
        name: OptimizerName::AdamW,
        momentum: None,
        nesterov: None,
        betas: None,
        alpha: None,
        epsilon: None,
        weight_decay: 0.0,
        decay_norms_and_biases: true,
        clip_norm: None,
    }
}

/// Features and how a classifier is trained on them.
pub struct Fit<'a> {
    /// `[n, d]`, on an autodiff device.
    pub features: Tensor<2>,
    pub labels: &'a [u32],
    pub task: &'a Objective,
    /// What it begins as.
    pub start: Linear,
    pub optimizer: recipe::Optimizer,
    pub batch: usize,
    pub passes: usize,
    pub seed: u64,
}

/// The setting that was best on features that were held out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    pub setting: Setting,
    /// Settings that were tried.
    pub tried: usize,
    /// What it came to.
    pub right: u64,
    pub of: u64,
    /// The mean loss.
    pub loss: f64,
}

impl Choice {
    /// A sentence about it.
    pub fn describe(&self) -> String {
        let Self { setting: Setting { rate, decay }, tried, right, of, loss } = self;
        format!(
            "the classifier is trained on the features with the learning rate {rate} and the weight decay {decay}: of \
             {tried} settings the best on training images that were held out ({right} of {of}, loss {loss:.3})"
        )
    }
}

impl Fit<'_> {
    /// Trains on the rows.
    pub fn train(&self, rows: &[u32], setting: Setting) -> Linear {
        let recipe = recipe::Optimizer { weight_decay: setting.decay, ..self.optimizer.clone() };
        let device = self.features.device();
        let mut optimizer = Optimizer::new(&recipe, &self.start, 0, self.task.kernels());
        let mut head = Slot::new(self.start.clone());
        let batch = self.batch.min(rows.len()).max(1);
        let steps = self.passes * (rows.len() / batch);
        let mut step = 0;
        for pass in 0..self.passes {
            let mut order = rows.to_vec();
            SampleRng::new(self.seed, pass as u64, 0).shuffle(&mut order);
            for chosen in order.chunks_exact(batch) {
                let rate = setting.rate * 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps as f64).cos());
                step += 1;
                let labels: Vec<u32> = chosen.iter().map(|&row| self.labels[row as usize]).collect();
                let logits = head.forward(self.select(chosen));
                let loss = self.task.loss_of(logits, &ImageBatch::of_labels(&labels), &device);
                let gradients = GradientsParams::from_grads(loss.backward(), &*head);
                let gradients = optimizer.pack(&*head, gradients, &rate.into());
                head.update(|head| optimizer.step(head, gradients, &Update::Apply { factor: 1.0 }));
            }
        }
        head.into_inner()
    }

    fn select(&self, rows: &[u32]) -> Tensor<2> {
        let indices: Vec<i64> = rows.iter().map(|&row| i64::from(row)).collect();
        let indices = Tensor::<1, Int>::from_data(TensorData::new(indices, [rows.len()]), &self.features.device());
        self.features.clone().select(0, indices)
    }

    /// How a classifier does on the rows.
    fn read(&self, head: &Linear, rows: &[u32]) -> MetricSums {
        let logits = head.valid().forward(self.select(rows).inner());
        let [_, classes] = logits.dims();
        let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
        let labels: Vec<u32> = rows.iter().map(|&row| self.labels[row as usize]).collect();
        let indices: Vec<usize> = rows.iter().map(|&row| row as usize).collect();
        MetricSums::of(&evaluation::predictions(&logits, classes, &labels, &indices))
    }

    /// Tries the settings on a seeded split of each class and chooses the one with the most images right, of equals the one
    /// with the lowest loss. `None` if it was stopped, or if there is nothing to choose.
    pub fn choose(&self, settings: &[Setting], stop: &AtomicBool) -> Option<Choice> {
        if settings.len() < 2 {
            return None;
        }
        let folds = folds(self.labels, self.seed);
        // Of many features one part is enough.
        let held_out = if self.labels.len() > MANY { 1 } else { FOLDS };
        let mut best: Option<Choice> = None;
        for &setting in settings {
            let mut sum = MetricSums::default();
            for fold in 0..held_out {
                if stop.load(Ordering::Relaxed) {
                    return None;
                }
                let rows = |of_fold: bool| -> Vec<u32> {
                    let all = folds.iter().enumerate();
                    all.filter(|(_, own)| (**own == fold) == of_fold).map(|(row, _)| row as u32).collect()
                };
                let (train, valid) = (rows(false), rows(true));
                if !train.is_empty() && !valid.is_empty() {
                    sum.add(&self.read(&self.train(&train, setting), &valid));
                }
            }
            let choice = Choice {
                setting,
                tried: settings.len(),
                right: sum.top1,
                of: sum.images,
                loss: sum.loss / sum.images.max(1) as f64,
            };
            let is_better = |best: &Choice| {
                choice.right > best.right || (choice.right == best.right && choice.loss.total_cmp(&best.loss).is_lt())
            };
            if best.as_ref().is_none_or(is_better) {
                best = Some(choice);
            }
        }
        best
    }
}

/// The part of each row: the rows of a class are shuffled and dealt out in turn.
fn folds(labels: &[u32], seed: u64) -> Vec<usize> {
    let mut classes: HashMap<u32, Vec<usize>> = HashMap::new();
    labels.iter().enumerate().for_each(|(row, &label)| classes.entry(label).or_default().push(row));
    let mut folds = vec![0; labels.len()];
    for (label, mut rows) in classes {
        SampleRng::new(seed, u64::MAX, u64::from(label)).shuffle(&mut rows);
        // Of classes of a few rows not all begin with the first part.
        rows.into_iter().enumerate().for_each(|(nth, row)| folds[row] = (nth + label as usize) % FOLDS);
    }
    folds
}

/// A network's classifier with zeros in place of its values: the loss has one minimum, and nothing drawn is in the way.
pub fn zeroed(head: Linear) -> Linear {
    struct Zero;
    impl ModuleMapper for Zero {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|value| {
                let requires_grad = value.is_require_grad();
                value.zeros_like().set_require_grad(requires_grad)
            })
        }
    }
    head.map(&mut Zero)
}

/// The network with a classifier that was made of its own.
pub fn put(network: Network, head: &Linear) -> Network {
    let (_, mut values) = flat::tensors(head);
    let ids: Vec<ParamId> = values.keys().copied().collect();
    debug_assert!(ids.contains(&network.classifier().weight.id));
    flat::update(network, |id| ids.contains(&id), |id, value| values.remove(&id).unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use models::{Architecture, NetworkConfig};

    use super::*;
    use crate::recipe::{Overrides, load};

    #[test]
    fn small_sets_have_steps() {
        for images in [1, 7, 40, 100, 244, 1000, 50_000] {
            let (batch, passes) = sizes(images, 256);
            assert!(batch <= images && passes * (images / batch) >= STEPS && passes >= PASSES, "{images}: {batch}");
        }
        assert_eq!((sizes(100, 256), sizes(50_000, 256)), ((16, 67), (256, 10)));
        assert_eq!(sizes(100, 8).0, 8);
    }

    #[test]
    fn each_part_has_its_share_of_each_class_and_the_seed_decides() {
        let labels: Vec<u32> = (0..60).map(|row| row % 3).collect();
        let dealt = folds(&labels, 7);
        for fold in 0..FOLDS {
            for class in 0..3 {
                let own = |&row: &usize| dealt[row] == fold && labels[row] == class;
                assert_eq!((0..60).filter(own).count(), 4);
            }
        }
        assert_eq!(folds(&labels, 7), dealt);
        assert_ne!(folds(&labels, 8), dealt);
    }

    /// Two classes that a line separates.
    fn clouds() -> (Vec<f32>, Vec<u32>) {
        let mut rng = SampleRng::new(3, 0, 0);
        let labels: Vec<u32> = (0..80).map(|row| row % 2).collect();
        let at = |label: u32| if label == 0 { -1.0 } else { 1.0 };
        let features = labels.iter().flat_map(|&label| {
            (0..4).map(|axis| (rng.unit() as f32 - 0.5) + if axis == 0 { at(label) } else { 0.0 }).collect::<Vec<_>>()
        });
        let features = features.collect();
        (features, labels)
    }

    #[test]
    fn a_setting_is_chosen_by_images_held_out_and_the_classifier_is_that_of_the_network() {
        let recipe = load("linear-probe", &Overrides::default()).unwrap();
        let task = Objective::new(&recipe, 2, None, models::Execution::default());
        let device = Device::flex().autodiff();
        let network = NetworkConfig::new(Architecture::ResNet20).with_num_classes(2).init(&device);
        let network = crate::transfer::draw_all(network.reset_classifier(2, &device));
        let width = network.classifier().weight.dims()[0];
        let (values, labels) = clouds();
        let mut wide = vec![0.0; labels.len() * width];
        for (row, values) in values.chunks(4).enumerate() {
            wide[row * width..row * width + 4].copy_from_slice(values);
        }
        let fit = Fit {
            features: Tensor::from_data(TensorData::new(wide, [labels.len(), width]), &device),
            labels: &labels,
            task: &task,
            start: zeroed(network.classifier().clone()),
            optimizer: optimizer(),
            batch: 16,
            passes: 40,
            seed: 1,
        };
        let rows: Vec<u32> = (0..80).collect();
        assert_eq!(fit.read(&fit.start, &rows).top1, 40, "zeros take the first class");
        let choice = fit.choose(&settings(None, None), &AtomicBool::new(false)).unwrap();
        assert!(choice.right >= 78 && choice.of == 80 && choice.tried == 6, "{choice:?}");
        assert!(fit.choose(&settings(Some(1e-3), Some(0.0)), &AtomicBool::new(false)).is_none());
        assert!(fit.choose(&settings(None, None), &AtomicBool::new(true)).is_none());
        let head = fit.train(&rows, choice.setting);
        let network = put(network, &head);
        let logits = network.valid().classify(fit.features.clone().inner());
        let difference = (logits - head.valid().forward(fit.features.clone().inner())).abs().max();
        assert!(difference.into_scalar::<f32>() < 1e-4);
    }
}
