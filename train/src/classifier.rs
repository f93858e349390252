//! A network with its loss: what Burn's Learner trains.

use burn::{
    module::Module,
    nn::loss::CrossEntropyLossConfig,
    tensor::{Device, Tensor},
};
use burn_train::{ClassificationOutput, InferenceStep, TrainOutput, TrainStep};
use datasets::ImageBatch;
use models::{Network, Output};

/// A network and how its training sees images and targets.
#[derive(Module, Debug)]
pub struct Classifier {
    pub network: Network,
    /// Mean and deviation of each channel, RGB from 0 to 1.
    #[module(skip)]
    pub statistics: [[f32; 3]; 2],
    #[module(skip)]
    pub label_smoothing: f32,
    /// The weight of each auxiliary classifier's loss: 0.3 in GoogLeNet's paper, 0.4 in torchvision's Inception v3.
    #[module(skip)]
    pub aux_weight: f32,
}

impl Classifier {
    /// The device of the network's parameters, with or without autodiff.
    fn device(&self, autodiff: bool) -> Device {
        let device = self.network.devices().swap_remove(0);
        match (autodiff, device.is_autodiff()) {
            (true, false) => device.autodiff(),
            (false, true) => device.without_autodiff(),
            _ => device,
        }
    }

    fn images(&self, batch: &ImageBatch, device: &Device) -> Tensor<4> {
        let [mean, std] = self.statistics;
        batch.normalise(mean, std, device)
    }
}

impl TrainStep for Classifier {
    type Input = ImageBatch;
    type Output = ClassificationOutput;

    fn step(&self, batch: ImageBatch) -> TrainOutput<ClassificationOutput> {
        let device = self.device(true);
        let targets = batch.targets(&device);
        let smoothing = (self.label_smoothing > 0.0).then_some(self.label_smoothing);
        let cross_entropy = CrossEntropyLossConfig::new().with_smoothing(smoothing).init(&device);
        let Output { logits, aux } = self.network.forward_aux(self.images(&batch, &device));
        let mut loss = cross_entropy.forward(logits.clone(), targets.clone());
        for (_, aux) in aux {
            loss = loss + cross_entropy.forward(aux, targets.clone()) * self.aux_weight;
        }
        let gradients = loss.backward();
        TrainOutput::new(self, gradients, ClassificationOutput::new(loss, logits, targets))
    }
}

impl InferenceStep for Classifier {
    type Input = ImageBatch;
    type Output = ClassificationOutput;

    fn step(&self, batch: ImageBatch) -> ClassificationOutput {
        let device = self.device(false);
        let targets = batch.targets(&device);
        let logits = self.network.forward(self.images(&batch, &device));
        let loss = CrossEntropyLossConfig::new().init(&device).forward(logits.clone(), targets.clone());
        ClassificationOutput::new(loss, logits, targets)
    }
}
