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
    blocks::{ConvNormMut, fold, fresh_linear, padding},
    nn::{conv_norm, fan_out},
    ops,
    pass::Pass,
    resnet::stem,
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
    /// Weights drawn as the paper does: convolutions normal with variance 2/fan_in; the linear map PyTorch's default.
    pub fn init(&self, device: &Device) -> CifarResNet {
        let layer = |[input, output]: [usize; 2], stride: usize| {
            (0..self.blocks)
                .map(|i| {
                    let (input, stride) = if i == 0 { (input, stride) } else { (output, 1) };
                    CifarBlock {
                        conv1: conv3x3([input, output], stride, device),
                        bn1: Some(BatchNormConfig::new(output).init(device)),
                        conv2: conv3x3([output, output], 1, device),
                        bn2: Some(BatchNormConfig::new(output).init(device)),
                        shortcut: self.shortcuts,
                    }
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

fn conv3x3(channels: [usize; 2], stride: usize, device: &Device) -> Conv2d {
    Conv2dConfig::new(channels, [3, 3])
        .with_stride([stride, stride])
        .with_padding(padding([1, 1]))
        .with_bias(false)
        .with_initializer(Initializer::KaimingNormal { gain: 2f64.sqrt(), fan_out_only: false })
        .init(device)
}

impl CifarResNet {
    /// Images `[n, 3, h, w]` → the last feature map `[n, 64, h/4, w/4]`.
    pub(crate) fn forward_features(&self, x: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
        let x = pass.segment(x, |x, pass| stem(&self.conv1, &self.bn1, x, pass)); // [n, 16, h, w]
        let x = forward_blocks("layer1", &self.layer1, x, pass);
        let x = forward_blocks("layer2", &self.layer2, x, pass); // [n, 32, h/2, w/2]
        forward_blocks("layer3", &self.layer3, x, pass) // [n, 64, h/4, w/4]
    }

    /// The last feature map → the vector before the classifier `[n, 64]`.
    pub(crate) fn pre_logits(&self, x: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<2> {
        pass.stage("avgpool", ops::adaptive_avg_pool2d(x, [1, 1])).flatten(1, 3)
    }

    /// The pooled vector `[n, 64]` → logits `[n, classes]`.
    pub fn head(&self, x: Tensor<2>) -> Tensor<2> {
        ops::logits(&self.linear, x)
    }

    /// The same network with a fresh last layer for `num_classes`.
    pub fn with_classes(mut self, num_classes: usize, device: &Device) -> Self {
        self.linear = fresh_linear(&self.linear, num_classes, device);
        self
    }

    /// The same function in evaluation, with every norm folded into the convolution before it.
    pub fn fold_batch_norm(mut self) -> Self {
        self.conv_norms_mut().into_iter().for_each(|(conv, norm)| fold(conv, norm));
        self
    }

    /// Each convolution with the norm after it.
    pub(crate) fn conv_norms_mut(&mut self) -> Vec<ConvNormMut<'_>> {
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
    /// `[n, c, h, w]` → `[n, planes, h/stride, w/stride]`.
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
