//! VGG.
//!
//! Paper: [Very Deep Convolutional Networks for Large-Scale Image Recognition](https://arxiv.org/abs/1409.1556)
//! (Simonyan & Zisserman, 2014): configurations A (11 layers), B (13), D (16) and E (19), each also with batch
//! normalisation after every convolution (`_bn`, which the paper does not have).

use burn::{
    config::Config,
    module::Module,
    nn::{
        BatchNorm, BatchNormConfig, Dropout, DropoutConfig, Initializer, Linear, LinearConfig, Relu,
        conv::{Conv2d, Conv2dConfig},
    },
    tensor::{Device, Tensor},
};

use crate::{
    blocks::{
        Layer, column, dense_classifier, dropout_relu_features, fold, fresh_linear, kaiming_fan_out, max_pool, padding,
    },
    ops,
    pass::Pass,
};

/// Channels of each convolution of the column; `M` is a max pooling.
const M: usize = 0;
const A: &[usize] = &[64, M, 128, M, 256, 256, M, 512, 512, M, 512, 512, M];
const B: &[usize] = &[64, 64, M, 128, 128, M, 256, 256, M, 512, 512, M, 512, 512, M];
const D: &[usize] = &[64, 64, M, 128, 128, M, 256, 256, 256, M, 512, 512, 512, M, 512, 512, 512, M];
const E: &[usize] = &[64, 64, M, 128, 128, M, 256, 256, 256, 256, M, 512, 512, 512, 512, M, 512, 512, 512, 512, M];

/// The depth of the network: its convolutions and linear maps.
#[derive(Config, Debug, Copy, PartialEq, Eq)]
pub enum VggDepth {
    /// Configuration A.
    Eleven,
    /// Configuration B.
    Thirteen,
    /// Configuration D.
    Sixteen,
    /// Configuration E.
    Nineteen,
}

impl VggDepth {
    fn channels(self) -> &'static [usize] {
        match self {
            VggDepth::Eleven => A,
            VggDepth::Thirteen => B,
            VggDepth::Sixteen => D,
            VggDepth::Nineteen => E,
        }
    }
}

/// Configuration of [`Vgg`].
#[derive(Config, Debug)]
pub struct VggConfig {
    /// How many layers with weights.
    pub depth: VggDepth,
    /// Batch normalisation after each convolution.
    pub batch_norm: bool,
    /// The number of classes.
    #[config(default = 1000)]
    pub num_classes: usize,
    /// The probability of dropping a unit after each of the two hidden linear maps.
    #[config(default = 0.5)]
    pub dropout: f64,
}

/// VGG: a column of 3 × 3 convolutions, three linear maps. Input at least 32 × 32.
#[derive(Module, Debug)]
pub struct Vgg {
    /// Convolutions, norms, ReLUs and poolings.
    pub features: Vec<Layer>,
    /// Linear, ReLU, dropout, linear, ReLU, dropout, linear.
    pub classifier: (Linear, Relu, Dropout, Linear, Relu, Dropout, Linear),
}

impl VggConfig {
    /// Weights drawn as torchvision does: convolutions Kaiming-normal by fan-out, linear maps normal with deviation
    /// 0.01, biases zero.
    ///
    /// **NOTE** The paper drew all weights with deviation 0.1 and started deep networks from trained shallow ones.
    pub fn init(&self, device: &Device) -> Vgg {
        let mut features = Vec::new();
        let mut channels = 3;
        for &out in self.depth.channels() {
            if out == M {
                features.push(Layer::MaxPool(max_pool(2, 2, 0, false)));
                continue;
            }
            features.push(Layer::Conv(conv3x3([channels, out], device)));
            if self.batch_norm {
                features.push(Layer::BatchNorm(BatchNormConfig::new(out).init(device)));
            }
            features.push(Layer::Relu(Relu::new()));
            channels = out;
        }

        let linear = |inputs, outputs| {
            let initializer = Initializer::Normal { mean: 0.0, std: 0.01 };
            let config = LinearConfig::new(inputs, outputs).with_bias(false).with_initializer(initializer);
            Linear { bias: Some(Initializer::Zeros.init([outputs], device)), ..config.init(device) }
        };
        let dropout = || DropoutConfig::new(self.dropout).init();
        let classifier = (
            linear(512 * 7 * 7, 4096),
            Relu::new(),
            dropout(),
            linear(4096, 4096),
            Relu::new(),
            dropout(),
            linear(4096, self.num_classes),
        );
        Vgg { features, classifier }
    }
}

fn conv3x3(channels: [usize; 2], device: &Device) -> Conv2d {
    let conv = Conv2dConfig::new(channels, [3, 3])
        .with_padding(padding([1, 1]))
        .with_bias(false)
        .with_initializer(kaiming_fan_out(channels[1], [3, 3]))
        .init(device);
    Conv2d { bias: Some(Initializer::Zeros.init([channels[1]], device)), ..conv }
}

impl Vgg {
    /// Images `[n, 3, h, w]` → the last feature map `[n, 512, h/32, w/32]`.
    pub(crate) fn forward_features(&self, x: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
        column(&self.features, x, pass)
    }

    /// Images `[n, 3, h, w]` of at least 224 × 224 → logits `[n, classes]`, averaged over all places at which the
    /// classifier fits: the paper's dense evaluation (section 3.2), of an image that was not cropped.
    pub fn forward_dense(&self, x: Tensor<4>) -> Tensor<2> {
        let (first, _, _, second, _, _, last) = &self.classifier;
        dense_classifier(self.forward_features(x, &mut Pass::new(&mut ())), 7, [first, second, last])
    }

    /// The last feature map → the vector before the last linear layer `[n, 4096]`.
    pub(crate) fn pre_logits(&self, x: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<2> {
        let x = pass.stage("avgpool", ops::adaptive_avg_pool2d(x, [7, 7]));
        let x = x.flatten(1, 3); // [n, 512 · 7 · 7]
        let x = dropout_relu_features(x, &self.classifier.0, &self.classifier.2, &self.classifier.3);
        self.classifier.5.forward(x)
    }

    /// The vector before the last linear layer `[n, 4096]` → logits `[n, classes]`.
    pub fn head(&self, x: Tensor<2>) -> Tensor<2> {
        ops::logits(&self.classifier.6, x)
    }

    /// The same network with a fresh last layer for `num_classes`.
    pub fn with_classes(mut self, num_classes: usize, device: &Device) -> Self {
        self.classifier.6 = fresh_linear(&self.classifier.6, num_classes, device);
        self
    }

    /// Its norms.
    pub(crate) fn norms_mut(&mut self) -> Vec<&mut BatchNorm> {
        let norms = self.features.iter_mut().filter_map(|layer| match layer {
            Layer::BatchNorm(norm) => Some(norm),
            _ => None,
        });
        norms.collect()
    }

    /// The same function in evaluation, with every norm folded into the convolution before it: `vgg16_bn` becomes a
    /// `vgg16`, names of layers included.
    pub fn fold_batch_norm(mut self) -> Self {
        let mut features = Vec::with_capacity(self.features.len());
        for layer in self.features {
            match (layer, features.last_mut()) {
                (Layer::BatchNorm(bn), Some(Layer::Conv(conv))) => fold(conv, &mut Some(bn)),
                (layer, _) => features.push(layer),
            }
        }
        self.features = features;
        self
    }
}
