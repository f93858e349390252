//! ResNet, ResNeXt and Wide ResNet.
//!
//! Papers: [Deep Residual Learning for Image Recognition](https://arxiv.org/abs/1512.03385) (He et al., 2015),
//! [Aggregated Residual Transformations for Deep Neural Networks](https://arxiv.org/abs/1611.05431) (Xie et al., 2016),
//! [Wide Residual Networks](https://arxiv.org/abs/1605.07146) (Zagoruyko & Komodakis, 2016).
//!
//! **NOTE** As in torchvision a bottleneck strides in its 3×3 convolution, not in the first 1×1 as the paper has it
//! ("ResNet v1.5").

use burn::{
    config::Config,
    module::Module,
    nn::{
        BatchNorm, BatchNormConfig, Linear, LinearConfig,
        conv::{Conv2d, Conv2dConfig},
    },
    tensor::{Device, Tensor},
};

use crate::{
    blocks::{ConvNormMut, fold, fresh_linear, kaiming_fan_out, max_pool, padding},
    nn::{conv_norm, fan_out},
    ops::{self, Then},
    pass::Pass,
};

/// Configuration of [`ResNet`].
#[derive(Config, Debug)]
pub struct ResNetConfig {
    /// Residual blocks in each of the four layers.
    pub layers: [usize; 4],
    /// Bottleneck blocks (1×1, 3×3, 1×1) instead of basic ones (3×3, 3×3).
    pub bottleneck: bool,
    /// Groups of the 3×3 convolution (ResNeXt's cardinality).
    #[config(default = 1)]
    pub groups: usize,
    /// Channels per group of the first layer's 3×3 convolution.
    #[config(default = 64)]
    pub width_per_group: usize,
    /// The number of classes.
    #[config(default = 1000)]
    pub num_classes: usize,
}

/// ResNet: a stem, four layers of residual blocks, one linear map. Any input size.
#[derive(Module, Debug)]
#[allow(missing_docs)] // The fields are torchvision's module names, in order of the forward pass.
pub struct ResNet {
    pub conv1: Conv2d,
    pub bn1: Option<BatchNorm>,
    pub layer1: Vec<Block>,
    pub layer2: Vec<Block>,
    pub layer3: Vec<Block>,
    pub layer4: Vec<Block>,
    pub fc: Linear,
}

impl ResNetConfig {
    /// Weights drawn as torchvision does: convolutions Kaiming-normal by fan-out, the linear map PyTorch's default.
    pub fn init(&self, device: &Device) -> ResNet {
        let expansion = if self.bottleneck { 4 } else { 1 };
        let mut channels = 64;
        let mut layer = |planes: usize, blocks: usize, stride: usize| {
            let mut block = |stride| {
                let out = planes * expansion;
                let config = BlockConfig { channels: [channels, out], planes, stride };
                channels = out;
                self.block(&config, device)
            };
            let mut layer = vec![block(stride)];
            layer.extend((1..blocks).map(|_| block(1)));
            layer
        };
        ResNet {
            conv1: conv([3, 64], 7, 2, 1, device),
            bn1: Some(BatchNormConfig::new(64).init(device)),
            layer1: layer(64, self.layers[0], 1),
            layer2: layer(128, self.layers[1], 2),
            layer3: layer(256, self.layers[2], 2),
            layer4: layer(512, self.layers[3], 2),
            fc: LinearConfig::new(512 * expansion, self.num_classes).init(device),
        }
    }

    fn block(&self, config: &BlockConfig, device: &Device) -> Block {
        let BlockConfig { channels: [input, output], planes, stride } = *config;
        let norm = |channels| Some(BatchNormConfig::new(channels).init(device));
        let downsample =
            (stride != 1 || input != output).then(|| (conv([input, output], 1, stride, 1, device), norm(output)));
        if !self.bottleneck {
            return Block::Basic(BasicBlock {
                conv1: conv([input, planes], 3, stride, 1, device),
                bn1: norm(planes),
                conv2: conv([planes, planes], 3, 1, 1, device),
                bn2: norm(planes),
                downsample,
            });
        }
        let width = planes * self.width_per_group / 64 * self.groups;
        Block::Bottleneck(Bottleneck {
            conv1: conv([input, width], 1, 1, 1, device),
            bn1: norm(width),
            conv2: conv([width, width], 3, stride, self.groups, device),
            bn2: norm(width),
            conv3: conv([width, output], 1, 1, 1, device),
            bn3: norm(output),
            downsample,
        })
    }
}

struct BlockConfig {
    channels: [usize; 2],
    planes: usize,
    stride: usize,
}

/// A convolution without bias that keeps the size of the map (before its stride).
fn conv(channels: [usize; 2], kernel: usize, stride: usize, groups: usize, device: &Device) -> Conv2d {
    Conv2dConfig::new(channels, [kernel, kernel])
        .with_stride([stride, stride])
        .with_padding(padding([kernel / 2, kernel / 2]))
        .with_groups(groups)
        .with_bias(false)
        .with_initializer(kaiming_fan_out(channels[1], [kernel, kernel]))
        .init(device)
}

impl ResNet {
    /// Images `[n, 3, h, w]` → the last feature map `[n, 512, h/32, w/32]` (2048 channels with bottlenecks).
    pub(crate) fn forward_features(&self, x: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
        let x = pass.segment(x, |x, pass| {
            let x = stem(&self.conv1, &self.bn1, x, pass); // [n, 64, h/2, w/2]
            pass.stage("maxpool", ops::max_pool2d(&max_pool(3, 2, 1, false), x)) // [n, 64, h/4, w/4]
        });
        let x = forward_blocks("layer1", &self.layer1, x, pass);
        let x = forward_blocks("layer2", &self.layer2, x, pass); // [n, ·, h/8, w/8]
        let x = forward_blocks("layer3", &self.layer3, x, pass); // [n, ·, h/16, w/16]
        forward_blocks("layer4", &self.layer4, x, pass) // [n, ·, h/32, w/32]
    }

    /// The last feature map → the vector before the classifier `[n, 512]` (`[n, 2048]` with bottlenecks).
    pub(crate) fn pre_logits(&self, x: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<2> {
        pass.stage("avgpool", ops::adaptive_avg_pool2d(x, [1, 1])).flatten(1, 3)
    }

    /// The vector before the classifier → logits `[n, classes]`.
    pub fn head(&self, x: Tensor<2>) -> Tensor<2> {
        ops::logits(&self.fc, x)
    }

    /// The same network with a fresh last layer for `num_classes`.
    pub fn with_classes(mut self, num_classes: usize, device: &Device) -> Self {
        self.fc = fresh_linear(&self.fc, num_classes, device);
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
        let layers = [&mut self.layer1, &mut self.layer2, &mut self.layer3, &mut self.layer4];
        layers.into_iter().flatten().for_each(|block| all.extend(block.conv_norms_mut()));
        all
    }
}

/// The stages `conv1`, `bn1` and `relu`: one step, unless the hook observes what lies between them.
pub(crate) fn stem(conv: &Conv2d, norm: &Option<BatchNorm>, x: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
    if !pass.observes("conv1") && !pass.observes("bn1") {
        return pass.stage("relu", conv_norm(conv, norm).relu().forward(x));
    }
    let x = pass.stage("conv1", ops::conv2d(conv, x));
    let x = pass.stage("bn1", ops::then(x, Then { norm: norm.as_ref(), ..Then::default() }));
    pass.stage("relu", ops::then(x, Then { relu: true, ..Then::default() }))
}

fn forward_blocks(name: &str, blocks: &[Block], x: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
    let x = blocks.iter().fold(x, |x, block| pass.segment(x, |x, _| block.forward(x)));
    pass.stage(name, x)
}

/// A residual block.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // At most 50 to a network.
pub enum Block {
    /// 3×3, 3×3.
    Basic(BasicBlock),
    /// 1×1, 3×3, 1×1.
    Bottleneck(Bottleneck),
}

impl Block {
    /// `[n, c, h, w]` → `[n, c', h/stride, w/stride]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Block::Basic(block) => block.forward(x),
            Block::Bottleneck(block) => block.forward(x),
        }
    }

    fn conv_norms_mut(&mut self) -> Vec<ConvNormMut<'_>> {
        let (mut all, downsample) = match self {
            Block::Basic(BasicBlock { conv1, bn1, conv2, bn2, downsample }) => {
                (vec![(conv1, bn1), (conv2, bn2)], downsample)
            }
            Block::Bottleneck(Bottleneck { conv1, bn1, conv2, bn2, conv3, bn3, downsample }) => {
                (vec![(conv1, bn1), (conv2, bn2), (conv3, bn3)], downsample)
            }
        };
        all.extend(downsample.as_mut().map(|(conv, bn)| (conv, bn)));
        all
    }
}

/// The projection of a shortcut whose ends differ: 1×1 convolution and norm.
type Downsample = Option<(Conv2d, Option<BatchNorm>)>;

/// Two 3×3 convolutions and a shortcut.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct BasicBlock {
    pub conv1: Conv2d,
    pub bn1: Option<BatchNorm>,
    pub conv2: Conv2d,
    pub bn2: Option<BatchNorm>,
    pub downsample: Downsample,
}

impl BasicBlock {
    /// `[n, c, h, w]` → `[n, planes, h/stride, w/stride]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [x, identity] = fan_out(x);
        let identity = match &self.downsample {
            Some((conv, bn)) => conv_norm(conv, bn).forward(identity),
            None => identity,
        };
        let out = conv_norm(&self.conv1, &self.bn1).relu().forward(x);
        conv_norm(&self.conv2, &self.bn2).add(identity).relu().forward(out)
    }
}

/// A 1×1 convolution down, a 3×3, a 1×1 up to four times the planes, and a shortcut.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Bottleneck {
    pub conv1: Conv2d,
    pub bn1: Option<BatchNorm>,
    pub conv2: Conv2d,
    pub bn2: Option<BatchNorm>,
    pub conv3: Conv2d,
    pub bn3: Option<BatchNorm>,
    pub downsample: Downsample,
}

impl Bottleneck {
    /// `[n, c, h, w]` → `[n, 4 · planes, h/stride, w/stride]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [x, identity] = fan_out(x);
        let identity = match &self.downsample {
            Some((conv, bn)) => conv_norm(conv, bn).forward(identity),
            None => identity,
        };
        let out = conv_norm(&self.conv1, &self.bn1).relu().forward(x);
        let out = conv_norm(&self.conv2, &self.bn2).relu().forward(out);
        conv_norm(&self.conv3, &self.bn3).add(identity).relu().forward(out)
    }
}
