//! AlexNet.
//!
//! Papers: [ImageNet Classification with Deep Convolutional Neural Networks] (Krizhevsky et al., 2012) and, for the
//! variant here, [One weird trick for parallelizing convolutional neural networks] (Krizhevsky, 2014).
//!
//! **NOTE** As in torchvision this is the one-tower network of 2014: 64–192–384–256–256 channels, no local response
//! normalisation, no groups.
//!
//! [ImageNet Classification with Deep Convolutional Neural Networks]: https://papers.nips.cc/paper/4824
//! [One weird trick for parallelizing convolutional neural networks]: https://arxiv.org/abs/1404.5997

use burn::{
    config::Config,
    module::Module,
    nn::{Dropout, DropoutConfig, Linear, LinearConfig, Relu, conv::Conv2dConfig},
    tensor::{Device, Tensor},
};

use crate::{
    FeatureInfo, ImageClassifier, NetworkConfig, Variant,
    blocks::{
        Layer, column, column_info, dense_classifier, dropout_relu_features, fresh_linear, last_relu, max_pool, padding,
    },
    ops,
    pass::Pass,
    registry::variants,
};

/// Configuration of [`AlexNet`].
#[derive(Config, Debug)]
pub struct AlexNetConfig {
    /// The number of classes.
    #[config(default = 1000)]
    pub num_classes: usize,
    /// The probability of dropping a unit before each of the two hidden linear layers.
    #[config(default = 0.5)]
    pub dropout: f64,
}

const HEAD_KEY: &str = "classifier.6";

const fn facts(variant: Variant) -> Variant {
    Variant { min_size: 63, head_key: HEAD_KEY, last_map: "features.11", ..variant }
}

variants! {
    AlexNet, facts;
    AlexNet, alexnet = AlexNetConfig::new();
}

/// AlexNet: five convolutions, three linear layers. Input at least 63 × 63.
#[derive(Module, Debug)]
pub struct AlexNet {
    /// Convolutions, ReLUs and poolings.
    pub features: Vec<Layer>,
    /// Dropout, linear, ReLU, dropout, linear, ReLU, linear.
    pub classifier: (Dropout, Linear, Relu, Dropout, Linear, Relu, Linear),
}

/// What comes before each convolution, and the convolution: `(pool first, channels out, kernel, stride, padding)`.
const CONVOLUTIONS: [(bool, usize, usize, usize, usize); 5] =
    [(false, 64, 11, 4, 2), (true, 192, 5, 1, 2), (true, 384, 3, 1, 1), (false, 256, 3, 1, 1), (false, 256, 3, 1, 1)];

impl AlexNetConfig {
    fn with_options(mut self, options: &NetworkConfig) -> Self {
        self.num_classes = options.num_classes;
        self.dropout = options.dropout.unwrap_or(self.dropout);
        self
    }

    /// Weights drawn as PyTorch does by default: uniform ±1/√fan_in, biases too.
    pub fn init(&self, device: &Device) -> AlexNet {
        let mut features = Vec::new();
        let mut channels = 3;
        for (pool, out, kernel, stride, pad) in CONVOLUTIONS {
            if pool {
                features.push(Layer::MaxPool(max_pool(3, 2, 0, false)));
            }
            let conv = Conv2dConfig::new([channels, out], [kernel, kernel])
                .with_stride([stride, stride])
                .with_padding(padding([pad, pad]));
            features.extend([Layer::Conv(conv.init(device)), Layer::Relu(Relu::new())]);
            channels = out;
        }
        features.push(Layer::MaxPool(max_pool(3, 2, 0, false)));

        let dropout = || DropoutConfig::new(self.dropout).init();
        let classifier = (
            dropout(),
            LinearConfig::new(256 * 6 * 6, 4096).init(device),
            Relu::new(),
            dropout(),
            LinearConfig::new(4096, 4096).init(device),
            Relu::new(),
            LinearConfig::new(4096, self.num_classes).init(device),
        );
        AlexNet { features, classifier }
    }
}

impl ImageClassifier for AlexNet {
    /// 256 channels, 6 × 6 for 224 × 224 pixels.
    fn features(&self, images: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
        column(&self.features, images, pass)
    }

    fn pre_logits(&self, features: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<2> {
        let x = pass.stage("avgpool", ops::adaptive_avg_pool2d(features, [6, 6]));
        let x = self.classifier.0.forward(x.flatten(1, 3)); // [n, 256 · 6 · 6]
        dropout_relu_features(x, &self.classifier.1, &self.classifier.3, &self.classifier.4)
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

    fn forward_dense(&self, images: Tensor<4>) -> Tensor<2> {
        let (_, first, _, _, second, _, last) = &self.classifier;
        ops::in_type_of(images, |images| {
            dense_classifier(self.features(images, &mut Pass::new(&mut ())), 6, [first, second, last])
        })
    }
}
