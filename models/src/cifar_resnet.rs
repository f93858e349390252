//! The small ResNets of the paper's section 4.2, for 32 × 32 images, and the plain networks beside them.
//!
//! Paper: [Deep Residual Learning for Image Recognition](https://arxiv.org/abs/1512.03385) (He et al., 2015):
//! 6n + 2 layers with weights, 16 – 32 – 64 channels, shortcuts without parameters ("option A").
//!
//! **NOTE** The paper does not say where option A puts its zero channels; half go before and half behind, as the
//! published weights of the community (named `linear`, as here) were trained.

use burn::{
    config::Config,
    module::Module,
    nn::{
        BatchNorm, BatchNormConfig, Initializer, Linear, LinearConfig,
        conv::{Conv2d, Conv2dConfig},
    },
    tensor::{Device, Tensor, s},
};

use crate::{
    FeatureInfo, ImageClassifier, NetworkConfig, Variant,
    blocks::{ConvNormMut, fresh_linear, padding},
    nn::{conv_norm, fan_out, stem},
    ops,
    pass::Pass,
    registry::variants,
};

/// Configuration of [`CifarResNet`].
#[derive(Config, Debug)]
pub struct CifarResNetConfig {
    /// Blocks in each of the three layers: the paper's n. The depth is 6n + 2.
    pub blocks: usize,
    /// Shortcuts; without them this is the paper's plain network.
    #[config(default = true)]
    pub shortcuts: bool,
    /// The number of classes.
    #[config(default = 10)]
    pub num_classes: usize,
}

const HEAD_KEY: &str = "linear";

const fn facts(variant: Variant) -> Variant {
    Variant { default_size: 32, default_classes: 10, head_key: HEAD_KEY, last_map: "layer3", ..variant }
}

/// The paper's names count layers with weights: 6n + 2.
const fn blocks(depth: usize) -> usize {
    (depth - 2) / 6
}

variants! {
    CifarResNet, facts;
    /// The paper's ResNet for CIFAR-10 with 20 layers.
    ResNet20, resnet20 = CifarResNetConfig::new(blocks(20));
    /// The paper's ResNet for CIFAR-10 with 32 layers.
    ResNet32, resnet32 = CifarResNetConfig::new(blocks(32));
    /// The paper's ResNet for CIFAR-10 with 44 layers.
    ResNet44, resnet44 = CifarResNetConfig::new(blocks(44));
    /// The paper's ResNet for CIFAR-10 with 56 layers.
    ResNet56, resnet56 = CifarResNetConfig::new(blocks(56));
    /// The paper's ResNet for CIFAR-10 with 110 layers.
    ResNet110, resnet110 = CifarResNetConfig::new(blocks(110));
    /// The paper's plain network with 20 layers.
    Plain20, plain20 = CifarResNetConfig::new(blocks(20)).with_shortcuts(false);
    /// The paper's plain network with 56 layers.
    Plain56, plain56 = CifarResNetConfig::new(blocks(56)).with_shortcuts(false);
}

/// A ResNet for small images. Input at least 4 × 4; the paper's is 32 × 32.
#[derive(Module, Debug)]
#[allow(missing_docs)] // In order of the forward pass.
pub struct CifarResNet {
    pub conv1: Conv2d,
    pub bn1: Option<BatchNorm>,
    pub layer1: Vec<CifarBlock>,
    pub layer2: Vec<CifarBlock>,
    pub layer3: Vec<CifarBlock>,
    pub linear: Linear,
}

impl CifarResNetConfig {
    fn with_options(mut self, options: &NetworkConfig) -> Self {
        self.num_classes = options.num_classes;
        self
    }

    /// Weights drawn as the paper does: convolutions normal with variance 2/fan_in; the linear layer PyTorch's default.
    pub fn init(&self, device: &Device) -> CifarResNet {
        let layer = |[input, output]: [usize; 2], stride: usize| {
            (0..self.blocks)
                .map(|i| {
                    let (input, stride) = if i == 0 { (input, stride) } else { (output, 1) };
                    let config = CifarBlockConfig::new(input, output).with_stride(stride);
                    config.with_shortcut(self.shortcuts).init(device)
                })
                .collect()
        };
        CifarResNet {
            conv1: conv3x3([3, 16], 1, device),
            bn1: Some(BatchNormConfig::new(16).init(device)),
            layer1: layer([16, 16], 1),
            layer2: layer([16, 32], 2),
            layer3: layer([32, 64], 2),
            linear: LinearConfig::new(64, self.num_classes).init(device),
        }
    }
}

/// Configuration of a [`CifarBlock`].
#[derive(Config, Debug)]
pub struct CifarBlockConfig {
    /// Channels of the input.
    pub channels: usize,
    /// Channels of the output.
    pub planes: usize,
    /// The stride of the first convolution.
    #[config(default = 1)]
    pub stride: usize,
    /// Whether the input is added to the output.
    #[config(default = true)]
    pub shortcut: bool,
}

impl CifarBlockConfig {
    /// Builds a block with random weights.
    pub fn init(&self, device: &Device) -> CifarBlock {
        let Self { channels, planes, stride, shortcut } = *self;
        CifarBlock {
            conv1: conv3x3([channels, planes], stride, device),
            bn1: Some(BatchNormConfig::new(planes).init(device)),
            conv2: conv3x3([planes, planes], 1, device),
            bn2: Some(BatchNormConfig::new(planes).init(device)),
            shortcut,
        }
    }
}

fn conv3x3(channels: [usize; 2], stride: usize, device: &Device) -> Conv2d {
    Conv2dConfig::new(channels, [3, 3])
        .with_stride([stride, stride])
        .with_padding(padding([1, 1]))
        .with_bias(false)
        .with_initializer(Initializer::KaimingNormal { gain: 2f64.sqrt(), fan_out_only: false })
        .init(device)
}

impl ImageClassifier for CifarResNet {
    fn features(&self, images: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
        let x = pass.segment(images, |x, pass| stem(&self.conv1, &self.bn1, x, pass)); // [n, 16, h, w]
        let x = forward_blocks("layer1", &self.layer1, x, pass);
        let x = forward_blocks("layer2", &self.layer2, x, pass); // [n, 32, h/2, w/2]
        forward_blocks("layer3", &self.layer3, x, pass) // [n, 64, h/4, w/4]
    }

    fn pre_logits(&self, features: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<2> {
        pass.stage("avgpool", ops::adaptive_avg_pool2d(features, [1, 1])).flatten(1, 3)
    }

    fn classifier(&self) -> &Linear {
        &self.linear
    }

    fn reset_classifier(mut self, num_classes: usize, device: &Device) -> Self {
        self.linear = fresh_linear(&self.linear, num_classes, device);
        self
    }

    fn head_key(&self) -> &'static str {
        HEAD_KEY
    }

    fn feature_info(&self) -> Vec<FeatureInfo> {
        [("layer1", 16, 1), ("layer2", 32, 2), ("layer3", 64, 4)]
            .map(|(stage, channels, stride)| FeatureInfo::new(stage, channels, stride))
            .to_vec()
    }

    fn conv_norms_mut(&mut self) -> Vec<ConvNormMut<'_>> {
        let mut all = vec![(&mut self.conv1, &mut self.bn1)];
        for block in [&mut self.layer1, &mut self.layer2, &mut self.layer3].into_iter().flatten() {
            all.extend([(&mut block.conv1, &mut block.bn1), (&mut block.conv2, &mut block.bn2)]);
        }
        all
    }
}

fn forward_blocks(name: &str, blocks: &[CifarBlock], x: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
    let x = blocks.iter().fold(x, |x, block| pass.segment(x, |x, _| block.forward(x)));
    pass.stage(name, x)
}

/// Two 3×3 convolutions, with or without a shortcut.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct CifarBlock {
    pub conv1: Conv2d,
    pub bn1: Option<BatchNorm>,
    pub conv2: Conv2d,
    pub bn2: Option<BatchNorm>,
    /// Whether the input is added to the output.
    pub shortcut: bool,
}

impl CifarBlock {
    /// Runs the block.
    ///
    /// # Shapes
    ///
    /// - x: `[n, c, h, w]`
    /// - output: `[n, planes, h/stride, w/stride]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [planes, ..] = self.conv2.weight.dims();
        let (x, identity) = if self.shortcut {
            let [x, identity] = fan_out(x);
            (x, Some(option_a(identity, planes)))
        } else {
            (x, None)
        };
        let out = conv_norm(&self.conv1, &self.bn1).relu().forward(x);
        let layer = conv_norm(&self.conv2, &self.bn2);
        match identity {
            Some(identity) => layer.add(identity).relu().forward(out),
            None => layer.relu().forward(out),
        }
    }
}

/// The shortcut without parameters: where the planes grow, every other pixel and zeros for the new channels.
/// `[n, c, h, w]` → `[n, planes, ⌈h/2⌉, ⌈w/2⌉]`.
fn option_a(x: Tensor<4>, planes: usize) -> Tensor<4> {
    let [n, channels, ..] = x.dims();
    if channels == planes {
        return x;
    }
    let x = x.slice(s![.., .., ..;2, ..;2]);
    let [_, _, h, w] = x.dims();
    let zeros = Tensor::zeros([n, (planes - channels) / 2, h, w], (&x.device(), x.dtype()));
    Tensor::cat(vec![zeros.clone(), x, zeros], 1)
}
