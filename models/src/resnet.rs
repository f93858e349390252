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
    FeatureInfo, ImageClassifier, NetworkConfig, Variant,
    blocks::{ConvNormMut, fresh_linear, kaiming_fan_out, max_pool, padding},
    nn::{conv_norm, fan_out, stem},
    ops,
    pass::Pass,
    registry::variants,
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

const fn facts(variant: Variant) -> Variant {
    Variant { last_map: "layer4", ..variant }
}

variants! {
    ResNet, facts;
    ResNet18, resnet18 = ResNetConfig::new([2, 2, 2, 2], false);
    ResNet34, resnet34 = ResNetConfig::new([3, 4, 6, 3], false);
    ResNet50, resnet50 = ResNetConfig::new([3, 4, 6, 3], true);
    ResNet101, resnet101 = ResNetConfig::new([3, 4, 23, 3], true);
    ResNet152, resnet152 = ResNetConfig::new([3, 8, 36, 3], true);
    ResNeXt50, resnext50_32x4d = ResNetConfig::new([3, 4, 6, 3], true).with_groups(32).with_width_per_group(4);
    ResNeXt101, resnext101_32x8d = ResNetConfig::new([3, 4, 23, 3], true).with_groups(32).with_width_per_group(8);
    ResNeXt101x64, resnext101_64x4d = ResNetConfig::new([3, 4, 23, 3], true).with_groups(64).with_width_per_group(4);
    WideResNet50, wide_resnet50_2 = ResNetConfig::new([3, 4, 6, 3], true).with_width_per_group(128);
    WideResNet101, wide_resnet101_2 = ResNetConfig::new([3, 4, 23, 3], true).with_width_per_group(128);
}

/// ResNet: a stem, four layers of residual blocks, one linear layer. Any input size.
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
    fn with_options(mut self, options: &NetworkConfig) -> Self {
        self.num_classes = options.num_classes;
        self
    }

    /// Weights drawn as torchvision does: convolutions Kaiming-normal by fan-out, the linear layer PyTorch's default.
    pub fn init(&self, device: &Device) -> ResNet {
        let expansion = if self.bottleneck { 4 } else { 1 };
        let mut channels = 64;
        let mut layer = |planes: usize, blocks: usize, stride: usize| {
            let mut block = |stride| {
                let out = planes * expansion;
                let config = BlockConfig::new(channels, planes).with_stride(stride);
                channels = out;
                match self.bottleneck {
                    true => {
                        let config = config.with_groups(self.groups).with_width_per_group(self.width_per_group);
                        Block::Bottleneck(config.init_bottleneck(device))
                    }
                    false => Block::Basic(config.init_basic(device)),
                }
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
}

/// Configuration of a residual block: a [`BasicBlock`] or a [`Bottleneck`].
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use models::resnet::BlockConfig;
///
/// let device = Device::flex();
/// let block = BlockConfig::new(64, 32).with_stride(2).init_bottleneck(&device);
/// assert_eq!(block.forward(Tensor::zeros([1, 64, 8, 8], &device)).dims(), [1, 4 * 32, 4, 4]);
/// ```
#[derive(Config, Debug)]
pub struct BlockConfig {
    /// Channels of the input.
    pub channels: usize,
    /// Channels of the 3×3 convolution, before groups; a bottleneck has four times as many at its output.
    pub planes: usize,
    /// The stride of the (first) 3×3 convolution.
    #[config(default = 1)]
    pub stride: usize,
    /// Groups of a bottleneck's 3×3 convolution.
    #[config(default = 1)]
    pub groups: usize,
    /// Channels per group of a bottleneck's 3×3 convolution, where `planes` is 64.
    #[config(default = 64)]
    pub width_per_group: usize,
}

impl BlockConfig {
    /// Builds a basic block with random weights. Its output has `planes` channels.
    pub fn init_basic(&self, device: &Device) -> BasicBlock {
        let Self { channels, planes, stride, .. } = *self;
        let downsample = self.downsample(planes, device);
        BasicBlock {
            conv1: conv([channels, planes], 3, stride, 1, device),
            bn1: norm(planes, device),
            conv2: conv([planes, planes], 3, 1, 1, device),
            bn2: norm(planes, device),
            downsample,
        }
    }

    /// Builds a bottleneck with random weights. Its output has `4 · planes` channels.
    pub fn init_bottleneck(&self, device: &Device) -> Bottleneck {
        let Self { channels, planes, stride, groups, width_per_group } = *self;
        let (width, output) = (planes * width_per_group / 64 * groups, 4 * planes);
        let downsample = self.downsample(output, device);
        Bottleneck {
            conv1: conv([channels, width], 1, 1, 1, device),
            bn1: norm(width, device),
            conv2: conv([width, width], 3, stride, groups, device),
            bn2: norm(width, device),
            conv3: conv([width, output], 1, 1, 1, device),
            bn3: norm(output, device),
            downsample,
        }
    }

    fn downsample(&self, output: usize, device: &Device) -> Downsample {
        let Self { channels, stride, .. } = *self;
        (stride != 1 || channels != output)
            .then(|| (conv([channels, output], 1, stride, 1, device), norm(output, device)))
    }
}

fn norm(channels: usize, device: &Device) -> Option<BatchNorm> {
    Some(BatchNormConfig::new(channels).init(device))
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

impl ImageClassifier for ResNet {
    fn features(&self, images: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
        let x = pass.segment(images, |x, pass| {
            let x = stem(&self.conv1, &self.bn1, x, pass); // [n, 64, h/2, w/2]
            pass.stage("maxpool", ops::max_pool2d(&max_pool(3, 2, 1, false), x)) // [n, 64, h/4, w/4]
        });
        let x = forward_blocks("layer1", &self.layer1, x, pass);
        let x = forward_blocks("layer2", &self.layer2, x, pass); // [n, ·, h/8, w/8]
        let x = forward_blocks("layer3", &self.layer3, x, pass); // [n, ·, h/16, w/16]
        forward_blocks("layer4", &self.layer4, x, pass) // [n, ·, h/32, w/32]
    }

    fn pre_logits(&self, features: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<2> {
        pass.stage("avgpool", ops::adaptive_avg_pool2d(features, [1, 1])).flatten(1, 3)
    }

    fn classifier(&self) -> &Linear {
        &self.fc
    }

    fn reset_classifier(mut self, num_classes: usize, device: &Device) -> Self {
        self.fc = fresh_linear(&self.fc, num_classes, device);
        self
    }

    fn head_key(&self) -> &'static str {
        "fc"
    }

    fn feature_info(&self) -> Vec<FeatureInfo> {
        let layers = [(&self.layer1, 4), (&self.layer2, 8), (&self.layer3, 16), (&self.layer4, 32)];
        let mut info = vec![FeatureInfo::new("relu", self.conv1.weight.lazy_shape()[0], 2)];
        for (index, (blocks, stride)) in layers.into_iter().enumerate() {
            let channels = blocks.last().map_or(0, Block::channels);
            info.push(FeatureInfo::new(format!("layer{}", index + 1), channels, stride));
        }
        info
    }

    fn conv_norms_mut(&mut self) -> Vec<ConvNormMut<'_>> {
        let mut all = vec![(&mut self.conv1, &mut self.bn1)];
        let layers = [&mut self.layer1, &mut self.layer2, &mut self.layer3, &mut self.layer4];
        layers.into_iter().flatten().for_each(|block| all.extend(block.conv_norms_mut()));
        all
    }
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
    /// Runs the block.
    ///
    /// # Shapes
    ///
    /// - x: `[n, c, h, w]`
    /// - output: `[n, c', h/stride, w/stride]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Block::Basic(block) => block.forward(x),
            Block::Bottleneck(block) => block.forward(x),
        }
    }

    /// Returns the number of channels of the output.
    pub fn channels(&self) -> usize {
        let last = match self {
            Block::Basic(block) => &block.conv2,
            Block::Bottleneck(block) => &block.conv3,
        };
        last.weight.lazy_shape()[0]
    }

    /// Returns each convolution with the batch normalization after it.
    pub fn conv_norms_mut(&mut self) -> Vec<ConvNormMut<'_>> {
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
pub type Downsample = Option<(Conv2d, Option<BatchNorm>)>;

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
    /// Runs the block.
    ///
    /// # Shapes
    ///
    /// - x: `[n, c, h, w]`
    /// - output: `[n, planes, h/stride, w/stride]`
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
    /// Runs the block.
    ///
    /// # Shapes
    ///
    /// - x: `[n, c, h, w]`
    /// - output: `[n, 4 · planes, h/stride, w/stride]`
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
