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
    Architecture, FeatureInfo, ImageClassifier, NetworkConfig, Variant,
    blocks::{
        Layer, column, column_info, dense_classifier, dropout_relu_features, fold, fresh_linear, kaiming_fan_out,
        last_relu, max_pool, padding,
    },
    ops,
    pass::Pass,
    registry::variants,
};

/// Channels of each convolution of the column; `M` is a max pooling.
const M: usize = 0;
const A: &[usize] = &[64, M, 128, M, 256, 256, M, 512, 512, M, 512, 512, M];
const B: &[usize] = &[64, 64, M, 128, 128, M, 256, 256, M, 512, 512, M, 512, 512, M];
const D: &[usize] = &[64, 64, M, 128, 128, M, 256, 256, 256, M, 512, 512, 512, M, 512, 512, 512, M];
const E: &[usize] = &[64, 64, M, 128, 128, M, 256, 256, 256, 256, M, 512, 512, 512, 512, M, 512, 512, 512, 512, M];

/// The depth of the network: its convolutions and linear layers.
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
    /// The probability of dropping a unit after each of the two hidden linear layers.
    #[config(default = 0.5)]
    pub dropout: f64,
}

const HEAD_KEY: &str = "classifier.6";

const fn facts(variant: Variant) -> Variant {
    Variant { min_size: 32, head_key: HEAD_KEY, ..variant }
}

variants! {
    Vgg, facts;
    Vgg11, vgg11 = VggConfig::new(VggDepth::Eleven, false), last_map: "features.19";
    Vgg11Bn, vgg11_bn = VggConfig::new(VggDepth::Eleven, true),
        last_map: "features.27", folded: Some(Architecture::Vgg11);
    Vgg13, vgg13 = VggConfig::new(VggDepth::Thirteen, false), last_map: "features.23";
    Vgg13Bn, vgg13_bn = VggConfig::new(VggDepth::Thirteen, true),
        last_map: "features.33", folded: Some(Architecture::Vgg13);
    Vgg16, vgg16 = VggConfig::new(VggDepth::Sixteen, false), last_map: "features.29";
    Vgg16Bn, vgg16_bn = VggConfig::new(VggDepth::Sixteen, true),
        last_map: "features.42", folded: Some(Architecture::Vgg16);
    Vgg19, vgg19 = VggConfig::new(VggDepth::Nineteen, false), last_map: "features.35";
    Vgg19Bn, vgg19_bn = VggConfig::new(VggDepth::Nineteen, true),
        last_map: "features.51", folded: Some(Architecture::Vgg19);
}

/// VGG: a column of 3 × 3 convolutions, three linear layers. Input at least 32 × 32.
#[derive(Module, Debug)]
pub struct Vgg {
    /// Convolutions, norms, ReLUs and poolings.
    pub features: Vec<Layer>,
    /// Linear, ReLU, dropout, linear, ReLU, dropout, linear.
    pub classifier: (Linear, Relu, Dropout, Linear, Relu, Dropout, Linear),
}

impl VggConfig {
    fn with_options(mut self, options: &NetworkConfig) -> Self {
        self.num_classes = options.num_classes;
        self.dropout = options.dropout.unwrap_or(self.dropout);
        self
    }

    /// Weights drawn as torchvision does: convolutions Kaiming-normal by fan-out, linear layers normal with deviation
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

impl ImageClassifier for Vgg {
    /// 512 channels, stride 32.
    fn features(&self, images: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
        column(&self.features, images, pass)
    }

    fn pre_logits(&self, features: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<2> {
        let x = pass.stage("avgpool", ops::adaptive_avg_pool2d(features, [7, 7]));
        let x = x.flatten(1, 3); // [n, 512 · 7 · 7]
        let x = dropout_relu_features(x, &self.classifier.0, &self.classifier.2, &self.classifier.3);
        self.classifier.5.forward(x)
    }

    fn classifier(&self) -> &Linear {
        &self.classifier.6
    }

    fn reset_classifier(mut self, num_classes: usize, device: &Device) -> Self {
        self.classifier.6 = fresh_linear(&self.classifier.6, num_classes, device);
        self
    }

    fn head_key(&self) -> &'static str {
        HEAD_KEY
    }

    fn feature_info(&self) -> Vec<FeatureInfo> {
        column_info(&self.features)
    }

    fn last_map(&self) -> String {
        last_relu(&self.features)
    }

    /// The paper's dense evaluation (section 3.2).
    fn forward_dense(&self, images: Tensor<4>) -> Tensor<2> {
        let (first, _, _, second, _, _, last) = &self.classifier;
        ops::in_type_of(images, |images| {
            dense_classifier(self.features(images, &mut Pass::new(&mut ())), 7, [first, second, last])
        })
    }

    fn norms_mut(&mut self) -> Vec<&mut BatchNorm> {
        let norms = self.features.iter_mut().filter_map(|layer| match layer {
            Layer::BatchNorm(norm) => Some(norm),
            _ => None,
        });
        norms.collect()
    }

    /// `vgg16_bn` becomes a `vgg16`, names of layers included.
    fn fold_batch_norm(mut self) -> Self {
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
