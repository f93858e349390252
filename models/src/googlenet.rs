//! GoogLeNet as torchvision has it.
//!
//! Paper: [Going Deeper with Convolutions](https://arxiv.org/abs/1409.4842) (Szegedy et al., 2014). The network of the
//! paper itself is [`googlenet_2014`](crate::googlenet_2014).
//!
//! **NOTE** torchvision's network came from TensorFlow and differs from the paper: batch normalisation (eps 1e-3)
//! instead of biases and local response normalisation, and the branch that the paper calls "5×5" is a 3×3.

use burn::{
    config::Config,
    module::Module,
    nn::{Dropout, DropoutConfig, Initializer, Linear, LinearConfig, pool::MaxPool2d},
    tensor::{Device, Tensor, activation::relu},
};

use crate::{
    AuxClassifier, FeatureInfo, ImageClassifier, NetworkConfig, Variant,
    blocks::{ConvNorm, ConvNormConfig, ConvNormMut, fresh_linear, max_pool, to_plus_minus_one},
    ops,
    pass::Pass,
    registry::variants,
};

/// Configuration of [`GoogLeNet`].
#[derive(Config, Debug)]
pub struct GoogLeNetConfig {
    /// The number of classes.
    #[config(default = 1000)]
    pub num_classes: usize,
    /// Build the two auxiliary classifiers of training.
    #[config(default = true)]
    pub aux_logits: bool,
    /// Map inputs that were normalised with ImageNet's statistics to ±1; the published weights want it.
    #[config(default = false)]
    pub transform_input: bool,
    /// The probability of dropping a unit of the feature vector.
    #[config(default = 0.2)]
    pub dropout: f64,
    /// The same in the auxiliary classifiers.
    #[config(default = 0.7)]
    pub dropout_aux: f64,
}

/// torchvision's names of the auxiliary classifiers.
pub(crate) const AUX: &[AuxClassifier] = &[
    AuxClassifier { name: "aux1", stage: "inception4a", head_key: "aux1.fc2" },
    AuxClassifier { name: "aux2", stage: "inception4d", head_key: "aux2.fc2" },
];

const fn facts(variant: Variant) -> Variant {
    Variant { min_size: 15, last_map: "inception5b", aux: AUX, ..variant }
}

variants! {
    GoogLeNet, facts;
    /// torchvision's GoogLeNet, with batch normalization.
    GoogLeNet, googlenet = GoogLeNetConfig::new();
}

/// GoogLeNet: a stem, nine Inception modules, two auxiliary classifiers. Input at least 15 × 15.
#[derive(Module, Debug)]
#[allow(missing_docs)] // The fields are torchvision's module names, in order of the forward pass.
pub struct GoogLeNet {
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
    /// Whether the input is mapped to ±1 first.
    #[module(skip)]
    pub transform_input: bool,
}

/// Channels of each Inception module: in, 1×1, 3×3 reduce, 3×3, "5×5" reduce, "5×5", pool projection (paper, table 1).
pub(crate) const INCEPTION: [[usize; 7]; 9] = [
    [192, 64, 96, 128, 16, 32, 32],     // 3a
    [256, 128, 128, 192, 32, 96, 64],   // 3b
    [480, 192, 96, 208, 16, 48, 64],    // 4a
    [512, 160, 112, 224, 24, 64, 64],   // 4b
    [512, 128, 128, 256, 24, 64, 64],   // 4c
    [512, 112, 144, 288, 32, 64, 64],   // 4d
    [528, 256, 160, 320, 32, 128, 128], // 4e
    [832, 256, 160, 320, 32, 128, 128], // 5a
    [832, 384, 192, 384, 48, 128, 128], // 5b
];

impl GoogLeNetConfig {
    fn with_options(mut self, options: &NetworkConfig) -> Self {
        self.num_classes = options.num_classes;
        self.aux_logits = options.aux_logits;
        self.transform_input = options.transform_input;
        if options.dropout == Some(0.0) {
            self.dropout_aux = 0.0;
        }
        self.dropout = options.dropout.unwrap_or(self.dropout);
        self
    }

    /// Weights drawn as torchvision does: normal with deviation 0.01 (its truncation at ±2 is 200 deviations away);
    /// linear layers too, their biases PyTorch's default.
    pub fn init(&self, device: &Device) -> GoogLeNet {
        let inception = |i: usize| InceptionConfig::new(INCEPTION[i]).init(device);
        let aux = |channels| {
            self.aux_logits.then(|| {
                let conv = ConvNormConfig::new([channels, 128], 1);
                InceptionAuxConfig { conv, num_classes: self.num_classes, dropout: self.dropout_aux }.init(device)
            })
        };
        GoogLeNet {
            conv1: ConvNormConfig::new([3, 64], 7).with_stride(2).with_padding(3).init(device),
            conv2: ConvNormConfig::new([64, 64], 1).init(device),
            conv3: ConvNormConfig::new([64, 192], 3).with_padding(1).init(device),
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
            fc: normal_linear(1024, self.num_classes, 0.01, device),
            transform_input: self.transform_input,
        }
    }
}

/// A linear layer with normal weights of deviation `std` and PyTorch's default biases.
pub(crate) fn normal_linear(inputs: usize, outputs: usize, std: f64, device: &Device) -> Linear {
    let weight = Initializer::Normal { mean: 0.0, std }.init([inputs, outputs], device);
    Linear { weight, ..LinearConfig::new(inputs, outputs).init(device) }
}

impl ImageClassifier for GoogLeNet {
    fn features(&self, images: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
        let x = pass.segment(images, |x, pass| {
            let x = if self.transform_input { to_plus_minus_one(x) } else { x };
            let x = pass.stage("conv1", self.conv1.forward(x)); // [n, 64, h/2, w/2]
            pass.stage("maxpool1", ops::max_pool2d(&max_pool(3, 2, 0, true), x)) // [n, 64, h/4, w/4]
        });
        let x = pass.segment(x, |x, pass| {
            let x = pass.stage("conv2", self.conv2.forward(x));
            let x = pass.stage("conv3", self.conv3.forward(x));
            pass.stage("maxpool2", ops::max_pool2d(&max_pool(3, 2, 0, true), x)) // [n, 192, h/8, w/8]
        });
        let x = pass.block("inception3a", x, |x| self.inception3a.forward(x));
        let x = pass.block("inception3b", x, |x| self.inception3b.forward(x));
        let x = pass.block("maxpool3", x, |x| ops::max_pool2d(&max_pool(3, 2, 0, true), x)); // [n, 480, h/16, w/16]
        let x = pass.block("inception4a", x, |x| self.inception4a.forward(x));
        let x = pass.block("inception4b", x, |x| self.inception4b.forward(x));
        let x = pass.block("inception4c", x, |x| self.inception4c.forward(x));
        let x = pass.block("inception4d", x, |x| self.inception4d.forward(x));
        let x = pass.block("inception4e", x, |x| self.inception4e.forward(x));
        let x = pass.block("maxpool4", x, |x| ops::max_pool2d(&max_pool(2, 2, 0, true), x)); // [n, 832, h/32, w/32]
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
        heads
            .filter_map(|((name, head), x)| Some((name, head.as_ref()?.forward(ops::adaptive_avg_pool2d(x, [4, 4])))))
            .collect()
    }

    fn conv_norms_mut(&mut self) -> Vec<ConvNormMut<'_>> {
        let mut all = vec![self.conv1.as_mut(), self.conv2.as_mut(), self.conv3.as_mut()];
        for inception in [
            &mut self.inception3a,
            &mut self.inception3b,
            &mut self.inception4a,
            &mut self.inception4b,
            &mut self.inception4c,
            &mut self.inception4d,
            &mut self.inception4e,
            &mut self.inception5a,
            &mut self.inception5b,
        ] {
            let Inception { branch1, branch2, branch3, branch4 } = inception;
            let layers = [branch1, &mut branch2.0, &mut branch2.1, &mut branch3.0, &mut branch3.1, &mut branch4.1];
            all.extend(layers.into_iter().map(ConvNorm::as_mut));
        }
        all.extend([&mut self.aux1, &mut self.aux2].into_iter().flatten().map(|aux| aux.conv.as_mut()));
        all
    }
}

/// Configuration of an [`Inception`] module.
#[derive(Debug, Clone)]
pub struct InceptionConfig {
    channels: [usize; 7],
    /// Kernel of the third branch: 3 in torchvision, 5 in the paper.
    third_kernel: usize,
    norm: bool,
    initializer: Initializer,
}

impl InceptionConfig {
    /// torchvision's module: batch normalization, a 3 × 3 third branch. `channels` are those of the input, of the 1×1
    /// branch, of the 3×3 branch (before and after), of the third branch (before and after), and of the pooling branch.
    pub fn new(channels: [usize; 7]) -> Self {
        let initializer = Initializer::Normal { mean: 0.0, std: 0.01 };
        Self { channels, third_kernel: 3, norm: true, initializer }
    }

    /// The paper's module: biases, a true 5 × 5 third branch; `channels` as for [`new`](Self::new).
    pub fn paper(channels: [usize; 7], initializer: Initializer) -> Self {
        Self { channels, third_kernel: 5, norm: false, initializer }
    }

    /// Builds the module.
    pub fn init(&self, device: &Device) -> Inception {
        let conv = |channels, kernel: usize| {
            ConvNormConfig::new(channels, kernel)
                .with_padding(kernel / 2)
                .with_norm(self.norm)
                .with_initializer(self.initializer.clone())
                .init(device)
        };
        let [input, c1, c3_reduce, c3, c5_reduce, c5, pool] = self.channels;
        Inception {
            branch1: conv([input, c1], 1),
            branch2: (conv([input, c3_reduce], 1), conv([c3_reduce, c3], 3)),
            branch3: (conv([input, c5_reduce], 1), conv([c5_reduce, c5], self.third_kernel)),
            branch4: (max_pool(3, 1, 1, true), conv([input, pool], 1)),
        }
    }
}

/// An Inception module: four branches side by side, joined along the channels.
#[derive(Module, Debug)]
pub struct Inception {
    /// 1×1.
    pub branch1: ConvNorm,
    /// 1×1 → 3×3.
    pub branch2: (ConvNorm, ConvNorm),
    /// 1×1 → 3×3 (torchvision) or 5×5 (paper).
    pub branch3: (ConvNorm, ConvNorm),
    /// 3×3 max pooling → 1×1.
    pub branch4: (MaxPool2d, ConvNorm),
}

impl Inception {
    /// Runs the block.
    ///
    /// # Shapes
    ///
    /// - x: `[n, c, h, w]`
    /// - output: `[n, c1 + c3 + c5 + pool, h, w]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [x1, x2, x3, x4] = ops::fan_out(x);
        let branch1 = self.branch1.forward(x1);
        let branch2 = self.branch2.1.forward(self.branch2.0.forward(x2));
        let branch3 = self.branch3.1.forward(self.branch3.0.forward(x3));
        let branch4 = self.branch4.1.forward(ops::max_pool2d(&self.branch4.0, x4));
        ops::cat([branch1, branch2, branch3, branch4])
    }
}

/// Configuration of an [`InceptionAux`] classifier.
#[derive(Debug, Clone)]
pub struct InceptionAuxConfig {
    /// The 1×1 convolution to 128 channels.
    pub conv: ConvNormConfig,
    /// The number of classes.
    pub num_classes: usize,
    /// The probability of dropping a unit between the two linear layers.
    pub dropout: f64,
}

impl InceptionAuxConfig {
    /// Builds the classifier.
    pub fn init(&self, device: &Device) -> InceptionAux {
        InceptionAux {
            conv: self.conv.init(device),
            fc1: normal_linear(128 * 4 * 4, 1024, 0.01, device),
            fc2: normal_linear(1024, self.num_classes, 0.01, device),
            dropout: DropoutConfig::new(self.dropout).init(),
        }
    }
}

/// An auxiliary classifier: 1×1 convolution and two linear layers over a 4 × 4 map.
#[derive(Module, Debug)]
pub struct InceptionAux {
    /// 1×1 to 128 channels.
    pub conv: ConvNorm,
    /// 2048 → 1024.
    pub fc1: Linear,
    /// 1024 → classes.
    pub fc2: Linear,
    /// Between the two.
    pub dropout: Dropout,
}

impl InceptionAux {
    /// Runs the block.
    ///
    /// # Shapes
    ///
    /// - x: `[n, c, 4, 4]`
    /// - output: `[n, classes]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let x = self.conv.forward(x).flatten(1, 3); // [n, 128 · 4 · 4]
        let x = self.dropout.forward(relu(ops::linear(&self.fc1, x)));
        ops::logits(&self.fc2, x)
    }
}
