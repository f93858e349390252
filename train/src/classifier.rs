//! A network with its loss: what Burn's Learner trains.

use std::sync::Arc;

use burn::{
    module::{Module, ParamGroup},
    optim::GradientsParams,
    tensor::{
        Device, FloatDType, Int, Tensor,
        activation::{log_sigmoid, log_softmax},
    },
};
use burn_train::{InferenceStep, TrainOutput, TrainStep};
use datasets::{ImageBatch, UploadedBatch};
use hub::ChannelOrder;
use kernels::KernelMode;
use models::{Execution, ImageClassifier, Network, Output};

use crate::{
    evaluation::{self, BatchScalars, MetricSums, Prediction},
    recipe::{LossName, Recipe},
};

/// The exponent of the focal loss by default, the paper's.
const FOCAL_GAMMA: f32 = 2.0;

/// The least `1 - p` in the focal loss: its power has no finite derivative at 0 for exponents below 1.
const FOCAL_FLOOR: f32 = 1e-7;

/// A network and its task.
#[derive(Module, Debug)]
pub struct Classifier {
    pub network: Network,
    #[module(skip)]
    pub task: Arc<Objective>,
}

/// How training sees images and targets.
#[derive(Debug)]
pub struct Objective {
    /// Mean and deviation of each channel, RGB from 0 to 1.
    statistics: [[f32; 3]; 2],
    bgr: bool,
    classes: usize,
    loss: LossName,
    /// Of the focal loss.
    gamma: f32,
    label_smoothing: f32,
    /// With binary cross entropy: soft targets above it become 1, others 0.
    target_threshold: Option<f32>,
    /// Of the classes.
    weights: Option<Vec<f32>>,
    aux_weight: f32,
    /// What the network computes in, where it is not f32.
    compute: Option<FloatDType>,
    /// Whether activations are computed again in the backward pass.
    checkpoints_gradients: bool,
    /// How the network runs.
    execution: Execution,
}

impl Objective {
    /// The recipe's task for so many classes, weighted where there are `weights`.
    pub fn new(recipe: &Recipe, classes: usize, weights: Option<Vec<f32>>, execution: Execution) -> Self {
        let bgr = recipe.images.channel_order == ChannelOrder::Bgr;
        let mut statistics = [recipe.images.mean, recipe.images.std];
        if bgr {
            // The recipe's are in the order of the network's channels, a batch's bytes are RGB.
            statistics.iter_mut().for_each(|channels| channels.reverse());
        }
        Self {
            statistics,
            bgr,
            classes,
            loss: recipe.loss.name,
            gamma: recipe.loss.gamma.unwrap_or(FOCAL_GAMMA),
            label_smoothing: recipe.loss.label_smoothing,
            target_threshold: recipe.loss.target_threshold,
            weights,
            aux_weight: recipe.aux_weight(),
            compute: recipe.network.dtype.half(),
            checkpoints_gradients: recipe.network.gradient_checkpointing,
            execution,
        }
    }

    /// Runs passes of the network.
    pub fn run<T>(&self, passes: impl FnOnce() -> T) -> T {
        self.execution.run(passes)
    }

    /// Returns the operations.
    pub fn kernels(&self) -> KernelMode {
        self.execution.kernels()
    }

    /// What a part of a batch counts in the mean over all: its images, or the sum of their classes' weights.
    pub fn weight(&self, batch: &ImageBatch) -> f64 {
        let own = batch.mixed_len();
        match &self.weights {
            None => own as f64,
            Some(weights) => {
                let labels = batch.labels.as_deref().unwrap_or_default();
                labels.iter().take(own).map(|&label| f64::from(weights[label as usize])).sum()
            }
        }
    }

    /// A batch as the network's input `[n, 3, h, w]`, in the type that the network computes in.
    pub fn images(&self, batch: &ImageBatch, device: &Device) -> Tensor<4> {
        self.input(batch.clone().upload(self.statistics[0], self.statistics[1], device))
    }

    /// An uploaded batch as the network's input.
    fn input(&self, batch: UploadedBatch) -> Tensor<4> {
        let images = batch.normalize();
        let images = if self.bgr { images.flip([1]) } else { images };
        match self.compute {
            Some(dtype) => images.cast(dtype),
            None => images,
        }
    }

    /// Copies to a device what a pass needs of a batch, before the pass.
    pub fn upload(&self, batch: ImageBatch, device: &Device) -> TrainingBatch {
        let [mean, std] = self.statistics;
        TrainingBatch {
            targets: self.targets(&batch, device),
            class_weights: self.class_weights(&batch, device),
            labels: batch.targets(device),
            images: batch.upload(mean, std, device),
        }
    }

    /// The targets `[n, classes]`: mixed as the images are, smoothed.
    fn targets(&self, batch: &ImageBatch, device: &Device) -> Tensor<2> {
        let mut targets = batch.soft_targets(self.classes, device);
        if self.label_smoothing > 0.0 {
            targets = targets * (1.0 - self.label_smoothing) + self.label_smoothing / self.classes as f32;
        }
        match self.target_threshold {
            Some(threshold) => targets.greater_elem(threshold).float(),
            None => targets,
        }
    }

    /// The weight of each class `[1, classes]`, and the sum of those of the batch's labels: PyTorch divides by it.
    fn class_weights(&self, batch: &ImageBatch, device: &Device) -> Option<(Tensor<2>, f32)> {
        let weights = self.weights.as_ref()?;
        let labels = batch.labels.as_deref().unwrap_or_default();
        let sum = labels.iter().take(batch.mixed_len()).map(|&label| weights[label as usize]).sum();
        Some((Tensor::<1>::from_floats(weights.as_slice(), device).unsqueeze(), sum))
    }

    /// The mean loss of logits `[n, classes]` for the labels of a batch.
    pub fn loss_of(&self, logits: Tensor<2>, batch: &ImageBatch, device: &Device) -> Tensor<1> {
        self.loss(logits, &self.targets(batch, device), &self.class_weights(batch, device))
    }

    /// The mean loss of logits `[n, classes]`.
    fn loss(&self, logits: Tensor<2>, targets: &Tensor<2>, weights: &Option<(Tensor<2>, f32)>) -> Tensor<1> {
        let [n, classes] = logits.dims();
        if self.loss == LossName::CrossEntropy && self.execution.accelerates(&logits) {
            let (targets, divisor) = match weights {
                None => (targets.clone(), n as f32),
                Some((weights, sum)) => (targets.clone() * weights.clone(), *sum),
            };
            return kernels::cross_entropy(logits, targets).sum() / divisor;
        }
        let (losses, divisor) = match self.loss {
            LossName::CrossEntropy => (targets.clone() * log_softmax(logits, 1), n as f32),
            LossName::Focal => {
                let log_p = log_softmax(logits, 1);
                let unsure = (-log_p.clone().exp() + 1.0).clamp_min(FOCAL_FLOOR);
                (targets.clone() * unsure.powf_scalar(self.gamma) * log_p, n as f32)
            }
            LossName::Bce => {
                let positive = targets.clone() * log_sigmoid(logits.clone());
                let negative = (-targets.clone() + 1.0) * log_sigmoid(-logits);
                (positive + negative, (n * classes) as f32)
            }
        };
        match weights {
            None => -losses.sum() / divisor,
            Some((weights, sum)) => -(losses * weights.clone()).sum() / (divisor / n as f32 * sum),
        }
    }
}

/// What a forward and a backward pass need of a batch, on the network's device.
pub struct TrainingBatch {
    images: UploadedBatch,
    targets: Tensor<2>,
    labels: Tensor<1, Int>,
    /// See [`Objective::class_weights`].
    class_weights: Option<(Tensor<2>, f32)>,
}

/// What a forward and a backward pass give.
pub struct Pass {
    pub gradients: GradientsParams,
    pub scalars: BatchScalars,
}

impl Classifier {
    pub fn new(network: Network, task: Arc<Objective>) -> Self {
        Self { network, task }
    }

    /// The same with the group's parameters trained from now on.
    pub fn unfreeze(self, group: ParamGroup) -> Self {
        Self { network: self.network.unfreeze_group(group), ..self }
    }

    /// A forward and a backward pass. The gradients are those of the batch's mean loss times `share`, which is what the
    /// batch is of a larger one, and times the loss scale.
    pub fn pass(&self, batch: TrainingBatch, share: f32, loss_scale: Option<&Tensor<1>>) -> Pass {
        let task = &self.task;
        let TrainingBatch { images, targets, labels, class_weights: weights } = batch;
        let images = task.input(images);
        let mut result = None;
        let mut objective = |Output { logits, aux }: Output| {
            let mut loss = task.loss(logits.clone(), &targets, &weights);
            for (_, aux) in aux {
                loss = loss + task.loss(aux, &targets, &weights) * task.aux_weight;
            }
            result = Some((loss.clone().inner(), logits.inner()));
            match loss_scale {
                // A constant: it has no autodiff.
                Some(scale) => loss * (scale.clone() * share),
                None if share == 1.0 => loss,
                None => loss * share,
            }
        };
        let gradients = task.run(|| match task.checkpoints_gradients {
            true => self.network.checkpointed_gradients(images, objective),
            false => GradientsParams::from_grads(objective(self.network.forward_aux(images)).backward(), self),
        });
        let (loss, logits) = result.expect("the objective was computed");
        Pass { gradients, scalars: BatchScalars::new(loss, logits, labels) }
    }

    /// The device of the network's parameters, with or without autodiff.
    fn device(&self, autodiff: bool) -> Device {
        let device = self.network.devices().swap_remove(0);
        match (autodiff, device.is_autodiff()) {
            (true, false) => device.autodiff(),
            (false, true) => device.without_autodiff(),
            _ => device,
        }
    }
}

/// Returns the prediction of a network in evaluation mode for each image of a batch.
pub fn predict(network: &Network, task: &Objective, batch: &ImageBatch, device: &Device) -> Vec<Prediction> {
    // A process may have no part of a small batch.
    if batch.is_empty() {
        return Vec::new();
    }
    let images = task.images(batch, device);
    let logits = task.run(|| network.forward(images));
    let [_, classes] = logits.dims();
    let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
    evaluation::predictions(&logits, classes, batch.labels.as_deref().unwrap_or_default(), &batch.indices)
}

impl TrainStep for Classifier {
    type Input = ImageBatch;
    type Output = MetricSums;

    fn step(&self, batch: ImageBatch) -> TrainOutput<MetricSums> {
        let Pass { gradients, scalars } = self.pass(self.task.upload(batch, &self.device(true)), 1.0, None);
        TrainOutput { grads: gradients, item: scalars.read() }
    }
}

impl InferenceStep for Classifier {
    type Input = ImageBatch;
    type Output = MetricSums;

    fn step(&self, batch: ImageBatch) -> MetricSums {
        let device = self.device(false);
        MetricSums::of(&predict(&self.network, &self.task, &batch, &device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{Overrides, load};

    fn task(changes: &[&str], weights: Option<Vec<f32>>) -> Objective {
        let mut overrides = Overrides::default();
        changes.iter().for_each(|change| overrides.parse(change).unwrap());
        Objective::new(&load("digits", &overrides).unwrap(), 3, weights, Execution::default())
    }

    fn batch() -> ImageBatch {
        ImageBatch {
            images: vec![0; 6],
            shape: [2, 3, 1, 1],
            labels: Some(vec![2, 0]),
            mix: None,
            indices: vec![0, 1],
            epoch: 0,
            number: 0,
        }
    }

    fn loss(task: &Objective) -> f32 {
        let device = Device::flex();
        let logits = Tensor::<2>::from_floats([[1.0, 2.0, 0.5], [-1.0, 0.0, 3.0]], &device);
        let targets = task.targets(&batch(), &device);
        task.loss(logits, &targets, &task.class_weights(&batch(), &device)).into_scalar::<f32>()
    }

    /// Expected: torch.nn.functional.cross_entropy and binary_cross_entropy_with_logits of PyTorch 2.15.
    #[test]
    fn losses_are_pytorch_s() {
        let close = |loss: f32, expected: f64| assert!((f64::from(loss) - expected).abs() < 1e-5, "{loss} {expected}");
        close(loss(&task(&[], None)), 3.0151265);
        close(loss(&task(&["loss.label_smoothing=0.1"], None)), 2.8984597);
        close(loss(&task(&[], Some(vec![1.0, 2.0, 3.0]))), 2.4897475);
        close(loss(&task(&["loss.label_smoothing=0.1"], Some(vec![1.0, 2.0, 3.0]))), 2.3964520);
        close(loss(&task(&["loss.name=bce"], None)), 1.4948773);
    }

    /// Of the two images in the tests of losses, computed in f64 from the formula: the probability of the label, its cross
    /// entropy, and its focal loss with the exponent 2.
    const FIRST: (f64, f64, f64) = (0.140_244_383, 1.964_368_784, 1.452_021_569);
    const SECOND: (f64, f64, f64) = (0.017_147_826, 4.065_883_904, 3.927_637_333);

    #[test]
    fn the_focal_loss_is_that_of_its_formula() {
        let close = |loss: f32, expected: f64| assert!((f64::from(loss) - expected).abs() < 1e-5, "{loss} {expected}");
        let focal = |changes: &[&str], weights| loss(&task(&[&["loss.name=focal"], changes].concat(), weights));
        let (first, second) = (FIRST.2, SECOND.2);
        close(focal(&[], None), (first + second) / 2.0);
        // Class 2 has the weight 3, class 0 the weight 1.
        close(focal(&[], Some(vec![1.0, 2.0, 3.0])), (3.0 * first + second) / 4.0);
        close(focal(&["loss.gamma=0"], None), f64::from(loss(&task(&[], None))));
        let smoothed = ["loss.gamma=0", "loss.label_smoothing=0.1"];
        close(focal(&smoothed, None), f64::from(loss(&task(&["loss.label_smoothing=0.1"], None))));
        let half = |(p, entropy, _): (f64, f64, f64)| (1.0 - p).sqrt() * entropy;
        close(focal(&["loss.gamma=0.5"], None), (half(FIRST) + half(SECOND)) / 2.0);
    }

    #[test]
    fn the_focal_loss_has_finite_gradients_where_an_image_is_certain() {
        let device = Device::flex().autodiff();
        for gamma in ["loss.gamma=0", "loss.gamma=0.5", "loss.gamma=1", "loss.gamma=2"] {
            let task = task(&["loss.name=focal", gamma], None);
            let logits = Tensor::<2>::from_floats([[0.0, -90.0, 90.0], [90.0, 0.0, -90.0]], &device).require_grad();
            let loss = task.loss_of(logits.clone(), &batch(), &device);
            let gradient = logits.grad(&loss.backward()).unwrap();
            assert!(gradient.into_data().iter::<f32>().all(|value| value.is_finite()), "{gamma}");
        }
    }

    #[test]
    fn a_threshold_makes_mixed_targets_hard() {
        let task = task(&["loss.name=bce", "loss.target_threshold=0.2", "loss.label_smoothing=0.3"], None);
        let targets: Vec<f32> = task.targets(&batch(), &Device::flex()).into_data().iter::<f32>().collect();
        assert_eq!(targets, [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
    }
}
