//! A network of your own from the blocks of this crate: it has the interface of all others, with feature maps, freezing
//! and gradient checkpointing.

use burn::{
    module::Module,
    nn::{Linear, LinearConfig},
    tensor::{Device, Tensor},
};
use models::{
    ConvNorm, ConvNormConfig, FeatureInfo, ImageClassifier, Pass,
    nn::adaptive_avg_pool2d,
    resnet::{BasicBlock, BlockConfig},
};

/// A stem and two residual blocks.
#[derive(Module, Debug)]
struct TinyResNet {
    stem: ConvNorm,
    layer1: BasicBlock,
    layer2: BasicBlock,
    fc: Linear,
}

impl TinyResNet {
    fn new(num_classes: usize, device: &Device) -> Self {
        Self {
            stem: ConvNormConfig::new([3, 16], 3).with_stride(2).with_padding(1).init(device),
            layer1: BlockConfig::new(16, 16).init_basic(device),
            layer2: BlockConfig::new(16, 32).with_stride(2).init_basic(device),
            fc: LinearConfig::new(32, num_classes).init(device),
        }
    }
}

impl ImageClassifier for TinyResNet {
    fn features(&self, images: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
        let x = pass.block("stem", images, |x| self.stem.forward(x));
        let x = pass.block("layer1", x, |x| self.layer1.forward(x));
        pass.block("layer2", x, |x| self.layer2.forward(x))
    }

    fn pre_logits(&self, features: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<2> {
        pass.stage("avgpool", adaptive_avg_pool2d(features, [1, 1])).flatten(1, 3)
    }

    fn classifier(&self) -> &Linear {
        &self.fc
    }

    fn reset_classifier(mut self, num_classes: usize, device: &Device) -> Self {
        self.fc = LinearConfig::new(32, num_classes).init(device);
        self
    }

    fn head_key(&self) -> &'static str {
        "fc"
    }

    fn feature_info(&self) -> Vec<FeatureInfo> {
        vec![FeatureInfo::new("layer1", 16, 2), FeatureInfo::new("layer2", 32, 4)]
    }
}

fn main() -> models::Result<()> {
    let device = Device::flex().autodiff();
    let network = TinyResNet::new(10, &device);
    let images = Tensor::zeros([2, 3, 32, 32], &device);
    println!("logits {:?}", network.forward(images.clone()).dims());
    for (info, map) in network.feature_info().iter().zip(network.forward_intermediates(images, &["layer1", "layer2"])?)
    {
        println!("{} {:?}, stride {}", info.stage, map.dims(), info.stride);
    }
    let network = network.freeze_until("layer1")?;
    println!("stages {}", network.stages().join(", "));
    Ok(())
}
