//! GoogLeNet as the paper describes it and BVLC trained it.
//!
//! Paper: [Going Deeper with Convolutions](https://arxiv.org/abs/1409.4842) (Szegedy et al., 2014). Biases, local
//! response normalisation, true 5×5 branches, two auxiliary classifiers.
//!
//! **NOTE** Where the paper is silent this follows BVLC's Caffe model, whose weights it takes: poolings round their
//! output size up, the first three poolings and `pool4` are 3×3 with stride 2, LRN has size 5, alpha 1e-4, beta 0.75.
//! Those weights want BGR pixels from 0 to 255 minus (104, 117, 123); their model card says so.

use burn::{
    config::Config,
    module::Module,
    nn::{Dropout, DropoutConfig, Initializer, Linear, LinearConfig, LocalResponseNormConfig},
    tensor::{Device, Tensor, ops::AvgPoolOptions},
};

use crate::{
    AuxClassifier, FeatureInfo, ImageClassifier, NetworkConfig, Variant,
    blocks::{ConvNorm, ConvNormConfig, fresh_linear, max_pool},
    googlenet::{AUX, INCEPTION, Inception, InceptionAux, InceptionConfig},
    ops,
    pass::Pass,
    registry::variants,
};

/// Configuration of [`GoogLeNet2014`].
#[derive(Config, Debug)]
pub struct GoogLeNet2014Config {
    /// The number of classes.
    #[config(default = 1000)]
    pub num_classes: usize,
    /// Build the two auxiliary classifiers of training.
    #[config(default = true)]
    pub aux_logits: bool,
    /// The probability of dropping a unit of the feature vector.
    #[config(default = 0.4)]
    pub dropout: f64,
    /// The same in the auxiliary classifiers.
    #[config(default = 0.7)]
    pub dropout_aux: f64,
}

const fn facts(variant: Variant) -> Variant {
    Variant { min_size: 15, last_map: "inception5b", aux: AUX, ..variant }
}

variants! {
    GoogLeNet2014, facts;
    /// The GoogLeNet of the 2014 paper.
    GoogLeNet2014, googlenet_2014 = GoogLeNet2014Config::new();
}

/// The GoogLeNet of 2014. Input at least 15 × 15; the paper's is 224 × 224.
#[derive(Module, Debug)]
#[allow(missing_docs)] // The same names as [`GoogLeNet`](crate::googlenet::GoogLeNet), in order of the forward pass.
pub struct GoogLeNet2014 {
    pub conv1: ConvNorm,
    pub conv2: ConvNorm,
    pub conv3: ConvNorm,
    pub inception3a: Inception,
    pub inception3b: Inception,
    pub inception4a: Inception,
    pub inception4b: Inception,
    pub inception4c: Inception,
    pub inception4d: Inception,
    pub inception4e: Inception,
    pub inception5a: Inception,
    pub inception5b: Inception,
    pub aux1: Option<InceptionAux>,
    pub aux2: Option<InceptionAux>,
    pub dropout: Dropout,
    pub fc: Linear,
}

impl GoogLeNet2014Config {
    fn with_options(mut self, options: &NetworkConfig) -> Self {
        self.num_classes = options.num_classes;
        self.aux_logits = options.aux_logits;
        if options.dropout == Some(0.0) {
            self.dropout_aux = 0.0;
        }
        self.dropout = options.dropout.unwrap_or(self.dropout);
        self
    }

    /// Weights drawn as BVLC's Caffe model does (the paper does not say): uniform ±√(3/fan_in); the biases of
    /// convolutions and hidden linear layers 0.2, those of classifiers 0.
    pub fn init(&self, device: &Device) -> GoogLeNet2014 {
        let conv = |channels, kernel| {
            ConvNormConfig::new(channels, kernel)
                .with_padding(kernel / 2)
                .with_norm(false)
                .with_initializer(caffe_xavier())
        };
        let inception = |i: usize| InceptionConfig::paper(INCEPTION[i], caffe_xavier()).init(device);
        let aux = |channels| {
            self.aux_logits.then(|| InceptionAux {
                conv: conv([channels, 128], 1).init(device),
                fc1: caffe_linear(128 * 4 * 4, 1024, 0.2, device),
                fc2: caffe_linear(1024, self.num_classes, 0.0, device),
                dropout: DropoutConfig::new(self.dropout_aux).init(),
            })
        };
        GoogLeNet2014 {
            conv1: conv([3, 64], 7).with_stride(2).init(device),
            conv2: conv([64, 64], 1).init(device),
            conv3: conv([64, 192], 3).init(device),
            inception3a: inception(0),
            inception3b: inception(1),
            inception4a: inception(2),
            inception4b: inception(3),
            inception4c: inception(4),
            inception4d: inception(5),
            inception4e: inception(6),
            inception5a: inception(7),
            inception5b: inception(8),
            aux1: aux(512),
            aux2: aux(528),
            dropout: DropoutConfig::new(self.dropout).init(),
            fc: caffe_linear(1024, self.num_classes, 0.0, device),
        }
    }
}

/// Caffe's "xavier" filler: uniform ±√(3/fan_in).
fn caffe_xavier() -> Initializer {
    Initializer::KaimingUniform { gain: 1.0, fan_out_only: false }
}

fn caffe_linear(inputs: usize, outputs: usize, bias: f64, device: &Device) -> Linear {
    let config = LinearConfig::new(inputs, outputs).with_bias(false).with_initializer(caffe_xavier());
    Linear { bias: Some(Initializer::Constant { value: bias }.init([outputs], device)), ..config.init(device) }
}

impl ImageClassifier for GoogLeNet2014 {
    fn features(&self, images: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
        let pool = max_pool(3, 2, 0, true);
        let norm = LocalResponseNormConfig::new(5).with_alpha(1e-4).with_beta(0.75);

        let x = pass.segment(images, |x, pass| {
            let x = pass.stage("conv1", self.conv1.forward(x)); // [n, 64, h/2, w/2]
            pass.stage("maxpool1", ops::max_pool2d(&pool, x)) // [n, 64, h/4, w/4]
        });
        let x = pass.segment(x, |x, pass| {
            let x = pass.stage("norm1", ops::local_response_norm(&norm, x));
            let x = pass.stage("conv2", self.conv2.forward(x));
            let x = pass.stage("conv3", self.conv3.forward(x));
            let x = pass.stage("norm2", ops::local_response_norm(&norm, x));
            pass.stage("maxpool2", ops::max_pool2d(&pool, x)) // [n, 192, h/8, w/8]
        });
        let x = pass.block("inception3a", x, |x| self.inception3a.forward(x));
        let x = pass.block("inception3b", x, |x| self.inception3b.forward(x));
        let x = pass.block("maxpool3", x, |x| ops::max_pool2d(&pool, x)); // [n, 480, h/16, w/16]
        let x = pass.block("inception4a", x, |x| self.inception4a.forward(x));
        let x = pass.block("inception4b", x, |x| self.inception4b.forward(x));
        let x = pass.block("inception4c", x, |x| self.inception4c.forward(x));
        let x = pass.block("inception4d", x, |x| self.inception4d.forward(x));
        let x = pass.block("inception4e", x, |x| self.inception4e.forward(x));
        let x = pass.block("maxpool4", x, |x| ops::max_pool2d(&pool, x)); // [n, 832, h/32, w/32]
        let x = pass.block("inception5a", x, |x| self.inception5a.forward(x));
        pass.block("inception5b", x, |x| self.inception5b.forward(x))
    }

    fn pre_logits(&self, features: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<2> {
        let x = pass.stage("avgpool", ops::adaptive_avg_pool2d(features, [1, 1]));
        self.dropout.forward(x.flatten(1, 3)) // [n, 1024]
    }

    fn classifier(&self) -> &Linear {
        &self.fc
    }

    fn reset_classifier(mut self, num_classes: usize, device: &Device) -> Self {
        self.fc = fresh_linear(&self.fc, num_classes, device);
        for aux in [&mut self.aux1, &mut self.aux2].into_iter().flatten() {
            aux.fc2 = fresh_linear(&aux.fc2, num_classes, device);
        }
        self
    }

    fn head_key(&self) -> &'static str {
        "fc"
    }

    fn feature_info(&self) -> Vec<FeatureInfo> {
        [
            ("conv1", 64, 2),
            ("conv3", 192, 4),
            ("inception3b", 480, 8),
            ("inception4e", 832, 16),
            ("inception5b", 1024, 32),
        ]
        .map(|(stage, channels, stride)| FeatureInfo::new(stage, channels, stride))
        .to_vec()
    }

    fn aux_classifiers(&self) -> &'static [AuxClassifier] {
        if self.aux1.is_some() { AUX } else { &[] }
    }

    fn classify_aux(&self, outputs: Vec<Tensor<4>>) -> Vec<(&'static str, Tensor<2>)> {
        let heads = [("aux1", &self.aux1), ("aux2", &self.aux2)].into_iter().zip(outputs);
        heads.filter_map(|((name, head), x)| Some((name, head.as_ref()?.forward(aux_pool(x))))).collect()
    }
}

/// The 4 × 4 map that the auxiliary classifiers of the paper see: 5 × 5 average pooling with stride 3 of a 14 × 14 map.
///
/// **NOTE** The paper's heads exist for 224 × 224 inputs only; another size of map is pooled adaptively to 4 × 4.
fn aux_pool(x: Tensor<4>) -> Tensor<4> {
    match x.dims() {
        [_, _, 14, 14] => ops::avg_pool2d(x, AvgPoolOptions::new([5, 5]).with_stride([3, 3])),
        _ => ops::adaptive_avg_pool2d(x, [4, 4]),
    }
}
