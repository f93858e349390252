//! A network of one's own, a neck and a head on the features of ResNet-18, in a training loop of Burn alone:
//! `cargo run -p hearth-vision --example custom_network`.

use std::error::Error;

use burn::{
    module::Module,
    nn::{Linear, LinearConfig, loss::CrossEntropyLossConfig},
    optim::{AdamWConfig, GradientsParams},
    tensor::{Device, Tensor, activation::relu},
};
use hearth::{
    ImageDataset,
    datasets::Split,
    models::{Architecture, ImageClassifier, Network, NetworkConfig},
};

#[derive(Module, Debug)]
struct Custom {
    backbone: Network,
    neck: Linear,
    head: Linear,
}

impl Custom {
    fn new(classes: usize, device: &Device) -> Self {
        Self {
            backbone: NetworkConfig::new(Architecture::ResNet18).init(device),
            neck: LinearConfig::new(512, 64).init(device),
            head: LinearConfig::new(64, classes).init(device),
        }
    }

    /// Images `[n, 3, h, w]` to logits `[n, classes]`.
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        self.head.forward(relu(self.neck.forward(self.backbone.forward_pre_logits(images))))
    }
}

/// Trains for a few steps.
pub fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::flex().autodiff();
    device.seed(0);
    let digits = ImageDataset::open("digits", Split::Train)?.resize(32).batch_size(32).shuffle(0);
    let mut network = Custom::new(digits.classes().len(), &device);
    let mut optimizer = AdamWConfig::new().init();
    let loss = CrossEntropyLossConfig::new().init(&device);
    let mut losses = Vec::new();
    for batch in digits.loader()?.batches().take(12) {
        let batch = batch?;
        let logits = network.forward(batch.normalize([0.3; 3], [0.37; 3], &device));
        let value = loss.forward(logits, batch.targets(&device));
        losses.push(value.clone().into_scalar::<f32>());
        let gradients = GradientsParams::from_grads(value.backward(), &network);
        network = optimizer.step(1e-3, network, gradients);
    }
    println!("loss by step: {losses:.2?}");
    assert!(losses[losses.len() - 1] < losses[0], "the loss did not fall");
    Ok(())
}
