//! Inception v3.
//!
//! Paper: [Rethinking the Inception Architecture for Computer Vision](https://arxiv.org/abs/1512.00567)
//! (Szegedy et al., 2015).
//!
//! **NOTE** Fields are spelt as torchvision spells its modules, capitals and all, so that keys need no map.

#![allow(non_snake_case)]

use burn::{
    config::Config,
    module::Module,
    nn::{Dropout, DropoutConfig, Initializer, Linear},
    tensor::{Device, Tensor, ops::AvgPoolOptions},
};

use crate::{
    AuxClassifier, FeatureInfo, ImageClassifier, NetworkConfig, Variant,
    blocks::{ConvNorm, ConvNormConfig, ConvNormMut, fresh_linear, max_pool, to_plus_minus_one},
    googlenet::normal_linear,
    ops,
    pass::Pass,
    registry::variants,
};

/// Configuration of [`InceptionV3`].
#[derive(Config, Debug)]
pub struct InceptionV3Config {
    /// The number of classes.
    #[config(default = 1000)]
    pub num_classes: usize,
    /// Build the auxiliary classifier of training.
    #[config(default = true)]
    pub aux_logits: bool,
    /// Map inputs that were normalised with ImageNet's statistics to ±1; the published weights want it.
    #[config(default = false)]
    pub transform_input: bool,
    /// The probability of dropping a unit of the feature vector.
    #[config(default = 0.5)]
    pub dropout: f64,
}

const AUX: &[AuxClassifier] = &[AuxClassifier { name: "AuxLogits", stage: "Mixed_6e", head_key: "AuxLogits.fc" }];

const fn facts(variant: Variant) -> Variant {
    Variant { min_size: 75, default_size: 299, last_map: "Mixed_7c", aux: AUX, ..variant }
}

variants! {
    InceptionV3, facts;
    InceptionV3, inception_v3 = InceptionV3Config::new();
}

/// Inception v3: a stem, eleven Inception modules, an auxiliary classifier. Input at least 75 × 75; the paper's is
/// 299 × 299.
#[derive(Module, Debug)]
#[allow(missing_docs)] // In order of the forward pass.
pub struct InceptionV3 {
    pub Conv2d_1a_3x3: ConvNorm,
    pub Conv2d_2a_3x3: ConvNorm,
    pub Conv2d_2b_3x3: ConvNorm,
    pub Conv2d_3b_1x1: ConvNorm,
    pub Conv2d_4a_3x3: ConvNorm,
    pub Mixed_5b: InceptionA,
    pub Mixed_5c: InceptionA,
    pub Mixed_5d: InceptionA,
    pub Mixed_6a: InceptionB,
    pub Mixed_6b: InceptionC,
    pub Mixed_6c: InceptionC,
    pub Mixed_6d: InceptionC,
    pub Mixed_6e: InceptionC,
    pub AuxLogits: Option<InceptionAux>,
    pub Mixed_7a: InceptionD,
    pub Mixed_7b: InceptionE,
    pub Mixed_7c: InceptionE,
    pub dropout: Dropout,
    pub fc: Linear,
    /// Whether the input is mapped to ±1 first.
    #[module(skip)]
    pub transform_input: bool,
}

/// A `kernel × kernel` convolution with norm and ReLU; weights normal with deviation 0.1.
fn conv(channels: [usize; 2], kernel: usize) -> ConvNormConfig {
    ConvNormConfig::new(channels, kernel).with_initializer(Initializer::Normal { mean: 0.0, std: 0.1 })
}

/// 1 × k, padded to keep the map's size.
fn row(channels: [usize; 2], k: usize) -> ConvNormConfig {
    conv(channels, 1).with_kernel([1, k], [0, k / 2])
}

/// k × 1, padded to keep the map's size.
fn column(channels: [usize; 2], k: usize) -> ConvNormConfig {
    conv(channels, 1).with_kernel([k, 1], [k / 2, 0])
}

/// 3 × 3 average pooling that keeps the map's size; zeros of the border count.
fn average(x: Tensor<4>) -> Tensor<4> {
    ops::avg_pool2d(
        x,
        AvgPoolOptions::new([3, 3]).with_stride([1, 1]).with_padding([1, 1]).with_count_include_pad(true),
    )
}

impl InceptionV3Config {
    fn with_options(mut self, options: &NetworkConfig) -> Self {
        self.num_classes = options.num_classes;
        self.aux_logits = options.aux_logits;
        self.transform_input = options.transform_input;
        self.dropout = options.dropout.unwrap_or(self.dropout);
        self
    }

    /// Weights drawn as torchvision does: normal with deviation 0.1, 0.001 in the auxiliary classifier's linear layer
    /// (truncated at ±2, which is 20 deviations away); biases PyTorch's default.
    pub fn init(&self, device: &Device) -> InceptionV3 {
        InceptionV3 {
            Conv2d_1a_3x3: conv([3, 32], 3).with_stride(2).init(device),
            Conv2d_2a_3x3: conv([32, 32], 3).init(device),
            Conv2d_2b_3x3: conv([32, 64], 3).with_padding(1).init(device),
            Conv2d_3b_1x1: conv([64, 80], 1).init(device),
            Conv2d_4a_3x3: conv([80, 192], 3).init(device),
            Mixed_5b: InceptionA::new(192, 32, device),
            Mixed_5c: InceptionA::new(256, 64, device),
            Mixed_5d: InceptionA::new(288, 64, device),
            Mixed_6a: InceptionB::new(288, device),
            Mixed_6b: InceptionC::new(128, device),
            Mixed_6c: InceptionC::new(160, device),
            Mixed_6d: InceptionC::new(160, device),
            Mixed_6e: InceptionC::new(192, device),
            AuxLogits: self.aux_logits.then(|| InceptionAux::new(768, self.num_classes, device)),
            Mixed_7a: InceptionD::new(768, device),
            Mixed_7b: InceptionE::new(1280, device),
            Mixed_7c: InceptionE::new(2048, device),
            dropout: DropoutConfig::new(self.dropout).init(),
            fc: normal_linear(2048, self.num_classes, 0.1, device),
            transform_input: self.transform_input,
        }
    }
}

impl ImageClassifier for InceptionV3 {
    fn features(&self, images: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
        // Shapes for 299 × 299.
        let x = pass.segment(images, |x, pass| {
            let x = if self.transform_input { to_plus_minus_one(x) } else { x };
            let x = pass.stage("Conv2d_1a_3x3", self.Conv2d_1a_3x3.forward(x)); // [n, 32, 149, 149]
            let x = pass.stage("Conv2d_2a_3x3", self.Conv2d_2a_3x3.forward(x)); // [n, 32, 147, 147]
            let x = pass.stage("Conv2d_2b_3x3", self.Conv2d_2b_3x3.forward(x)); // [n, 64, 147, 147]
            pass.stage("maxpool1", ops::max_pool2d(&max_pool(3, 2, 0, false), x)) // [n, 64, 73, 73]
        });
        let x = pass.segment(x, |x, pass| {
            let x = pass.stage("Conv2d_3b_1x1", self.Conv2d_3b_1x1.forward(x)); // [n, 80, 73, 73]
            let x = pass.stage("Conv2d_4a_3x3", self.Conv2d_4a_3x3.forward(x)); // [n, 192, 71, 71]
            pass.stage("maxpool2", ops::max_pool2d(&max_pool(3, 2, 0, false), x)) // [n, 192, 35, 35]
        });
        let x = pass.block("Mixed_5b", x, |x| self.Mixed_5b.forward(x)); // [n, 256, 35, 35]
        let x = pass.block("Mixed_5c", x, |x| self.Mixed_5c.forward(x)); // [n, 288, 35, 35]
        let x = pass.block("Mixed_5d", x, |x| self.Mixed_5d.forward(x)); // [n, 288, 35, 35]
        let x = pass.block("Mixed_6a", x, |x| self.Mixed_6a.forward(x)); // [n, 768, 17, 17]
        let x = pass.block("Mixed_6b", x, |x| self.Mixed_6b.forward(x));
        let x = pass.block("Mixed_6c", x, |x| self.Mixed_6c.forward(x));
        let x = pass.block("Mixed_6d", x, |x| self.Mixed_6d.forward(x));
        let x = pass.block("Mixed_6e", x, |x| self.Mixed_6e.forward(x));
        let x = pass.block("Mixed_7a", x, |x| self.Mixed_7a.forward(x)); // [n, 1280, 8, 8]
        let x = pass.block("Mixed_7b", x, |x| self.Mixed_7b.forward(x)); // [n, 2048, 8, 8]
        pass.block("Mixed_7c", x, |x| self.Mixed_7c.forward(x))
    }

    fn pre_logits(&self, features: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<2> {
        let x = pass.stage("avgpool", ops::adaptive_avg_pool2d(features, [1, 1]));
        self.dropout.forward(x.flatten(1, 3)) // [n, 2048]
    }

    fn classifier(&self) -> &Linear {
        &self.fc
    }

    fn reset_classifier(mut self, num_classes: usize, device: &Device) -> Self {
        self.fc = fresh_linear(&self.fc, num_classes, device);
        if let Some(aux) = &mut self.AuxLogits {
            aux.fc = fresh_linear(&aux.fc, num_classes, device);
        }
        self
    }

    fn head_key(&self) -> &'static str {
        "fc"
    }

    fn feature_info(&self) -> Vec<FeatureInfo> {
        [
            ("Conv2d_2b_3x3", 64, 2),
            ("Conv2d_4a_3x3", 192, 4),
            ("Mixed_5d", 288, 8),
            ("Mixed_6e", 768, 16),
            ("Mixed_7c", 2048, 32),
        ]
        .map(|(stage, channels, stride)| FeatureInfo::new(stage, channels, stride))
        .to_vec()
    }

    fn aux_classifiers(&self) -> &'static [AuxClassifier] {
        if self.AuxLogits.is_some() { AUX } else { &[] }
    }

    fn classify_aux(&self, outputs: Vec<Tensor<4>>) -> Vec<(&'static str, Tensor<2>)> {
        let heads = self.AuxLogits.iter().zip(outputs);
        heads.map(|(head, x)| ("AuxLogits", head.forward(x))).collect()
    }

    fn conv_norms_mut(&mut self) -> Vec<ConvNormMut<'_>> {
        let mut all = vec![
            &mut self.Conv2d_1a_3x3,
            &mut self.Conv2d_2a_3x3,
            &mut self.Conv2d_2b_3x3,
            &mut self.Conv2d_3b_1x1,
            &mut self.Conv2d_4a_3x3,
        ];
        for module in [&mut self.Mixed_5b, &mut self.Mixed_5c, &mut self.Mixed_5d] {
            all.extend(module.layers_mut());
        }
        all.extend(self.Mixed_6a.layers_mut());
        for module in [&mut self.Mixed_6b, &mut self.Mixed_6c, &mut self.Mixed_6d, &mut self.Mixed_6e] {
            all.extend(module.layers_mut());
        }
        all.extend(self.AuxLogits.iter_mut().flat_map(InceptionAux::layers_mut));
        all.extend(self.Mixed_7a.layers_mut());
        for module in [&mut self.Mixed_7b, &mut self.Mixed_7c] {
            all.extend(module.layers_mut());
        }
        all.into_iter().map(ConvNorm::as_mut).collect()
    }
}

/// 1×1, 5×5, double 3×3 and average pooling (figure 5 of the paper).
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct InceptionA {
    pub branch1x1: ConvNorm,
    pub branch5x5_1: ConvNorm,
    pub branch5x5_2: ConvNorm,
    pub branch3x3dbl_1: ConvNorm,
    pub branch3x3dbl_2: ConvNorm,
    pub branch3x3dbl_3: ConvNorm,
    pub branch_pool: ConvNorm,
}

impl InceptionA {
    fn new(channels: usize, pool_features: usize, device: &Device) -> Self {
        Self {
            branch1x1: conv([channels, 64], 1).init(device),
            branch5x5_1: conv([channels, 48], 1).init(device),
            branch5x5_2: conv([48, 64], 5).with_padding(2).init(device),
            branch3x3dbl_1: conv([channels, 64], 1).init(device),
            branch3x3dbl_2: conv([64, 96], 3).with_padding(1).init(device),
            branch3x3dbl_3: conv([96, 96], 3).with_padding(1).init(device),
            branch_pool: conv([channels, pool_features], 1).init(device),
        }
    }

    /// Runs the block.
    ///
    /// # Shapes
    ///
    /// - x: `[n, c, h, w]`
    /// - output: `[n, 224 + pool features, h, w]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [x1, x2, x3, x4] = ops::fan_out(x);
        let branch1x1 = self.branch1x1.forward(x1);
        let branch5x5 = self.branch5x5_2.forward(self.branch5x5_1.forward(x2));
        let branch3x3dbl = self.branch3x3dbl_2.forward(self.branch3x3dbl_1.forward(x3));
        let branch3x3dbl = self.branch3x3dbl_3.forward(branch3x3dbl);
        let branch_pool = self.branch_pool.forward(average(x4));
        ops::cat([branch1x1, branch5x5, branch3x3dbl, branch_pool])
    }

    fn layers_mut(&mut self) -> [&mut ConvNorm; 7] {
        let Self { branch1x1, branch5x5_1, branch5x5_2, branch3x3dbl_1, branch3x3dbl_2, branch3x3dbl_3, branch_pool } =
            self;
        [branch1x1, branch5x5_1, branch5x5_2, branch3x3dbl_1, branch3x3dbl_2, branch3x3dbl_3, branch_pool]
    }
}

/// 3×3, double 3×3 and max pooling, all with stride 2 (figure 10).
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct InceptionB {
    pub branch3x3: ConvNorm,
    pub branch3x3dbl_1: ConvNorm,
    pub branch3x3dbl_2: ConvNorm,
    pub branch3x3dbl_3: ConvNorm,
}

impl InceptionB {
    fn new(channels: usize, device: &Device) -> Self {
        Self {
            branch3x3: conv([channels, 384], 3).with_stride(2).init(device),
            branch3x3dbl_1: conv([channels, 64], 1).init(device),
            branch3x3dbl_2: conv([64, 96], 3).with_padding(1).init(device),
            branch3x3dbl_3: conv([96, 96], 3).with_stride(2).init(device),
        }
    }

    /// Runs the block.
    ///
    /// # Shapes
    ///
    /// - x: `[n, c, h, w]`
    /// - output: `[n, 480 + c, (h − 1)/2, (w − 1)/2]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [x1, x2, x3] = ops::fan_out(x);
        let branch3x3 = self.branch3x3.forward(x1);
        let branch3x3dbl = self.branch3x3dbl_2.forward(self.branch3x3dbl_1.forward(x2));
        let branch3x3dbl = self.branch3x3dbl_3.forward(branch3x3dbl);
        let branch_pool = ops::max_pool2d(&max_pool(3, 2, 0, false), x3);
        ops::cat([branch3x3, branch3x3dbl, branch_pool])
    }

    fn layers_mut(&mut self) -> [&mut ConvNorm; 4] {
        let Self { branch3x3, branch3x3dbl_1, branch3x3dbl_2, branch3x3dbl_3 } = self;
        [branch3x3, branch3x3dbl_1, branch3x3dbl_2, branch3x3dbl_3]
    }
}

/// 1×1, factored 7×7, double factored 7×7 and average pooling (figure 6).
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct InceptionC {
    pub branch1x1: ConvNorm,
    pub branch7x7_1: ConvNorm,
    pub branch7x7_2: ConvNorm,
    pub branch7x7_3: ConvNorm,
    pub branch7x7dbl_1: ConvNorm,
    pub branch7x7dbl_2: ConvNorm,
    pub branch7x7dbl_3: ConvNorm,
    pub branch7x7dbl_4: ConvNorm,
    pub branch7x7dbl_5: ConvNorm,
    pub branch_pool: ConvNorm,
}

impl InceptionC {
    fn new(c7: usize, device: &Device) -> Self {
        Self {
            branch1x1: conv([768, 192], 1).init(device),
            branch7x7_1: conv([768, c7], 1).init(device),
            branch7x7_2: row([c7, c7], 7).init(device),
            branch7x7_3: column([c7, 192], 7).init(device),
            branch7x7dbl_1: conv([768, c7], 1).init(device),
            branch7x7dbl_2: column([c7, c7], 7).init(device),
            branch7x7dbl_3: row([c7, c7], 7).init(device),
            branch7x7dbl_4: column([c7, c7], 7).init(device),
            branch7x7dbl_5: row([c7, 192], 7).init(device),
            branch_pool: conv([768, 192], 1).init(device),
        }
    }

    /// Runs the block.
    ///
    /// # Shapes
    ///
    /// - x: `[n, 768, h, w]`
    /// - output: `[n, 768, h, w]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [x1, x2, x3, x4] = ops::fan_out(x);
        let branch1x1 = self.branch1x1.forward(x1);
        let branch7x7 = self.branch7x7_2.forward(self.branch7x7_1.forward(x2));
        let branch7x7 = self.branch7x7_3.forward(branch7x7);
        let branch7x7dbl = self.branch7x7dbl_2.forward(self.branch7x7dbl_1.forward(x3));
        let branch7x7dbl = self.branch7x7dbl_4.forward(self.branch7x7dbl_3.forward(branch7x7dbl));
        let branch7x7dbl = self.branch7x7dbl_5.forward(branch7x7dbl);
        let branch_pool = self.branch_pool.forward(average(x4));
        ops::cat([branch1x1, branch7x7, branch7x7dbl, branch_pool])
    }

    fn layers_mut(&mut self) -> [&mut ConvNorm; 10] {
        let Self {
            branch1x1,
            branch7x7_1,
            branch7x7_2,
            branch7x7_3,
            branch7x7dbl_1,
            branch7x7dbl_2,
            branch7x7dbl_3,
            branch7x7dbl_4,
            branch7x7dbl_5,
            branch_pool,
        } = self;
        [
            branch1x1,
            branch7x7_1,
            branch7x7_2,
            branch7x7_3,
            branch7x7dbl_1,
            branch7x7dbl_2,
            branch7x7dbl_3,
            branch7x7dbl_4,
            branch7x7dbl_5,
            branch_pool,
        ]
    }
}

/// 3×3, factored 7×7 with 3×3 and max pooling, all with stride 2.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct InceptionD {
    pub branch3x3_1: ConvNorm,
    pub branch3x3_2: ConvNorm,
    pub branch7x7x3_1: ConvNorm,
    pub branch7x7x3_2: ConvNorm,
    pub branch7x7x3_3: ConvNorm,
    pub branch7x7x3_4: ConvNorm,
}

impl InceptionD {
    fn new(channels: usize, device: &Device) -> Self {
        Self {
            branch3x3_1: conv([channels, 192], 1).init(device),
            branch3x3_2: conv([192, 320], 3).with_stride(2).init(device),
            branch7x7x3_1: conv([channels, 192], 1).init(device),
            branch7x7x3_2: row([192, 192], 7).init(device),
            branch7x7x3_3: column([192, 192], 7).init(device),
            branch7x7x3_4: conv([192, 192], 3).with_stride(2).init(device),
        }
    }

    /// Runs the block.
    ///
    /// # Shapes
    ///
    /// - x: `[n, c, h, w]`
    /// - output: `[n, 512 + c, (h − 1)/2, (w − 1)/2]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [x1, x2, x3] = ops::fan_out(x);
        let branch3x3 = self.branch3x3_2.forward(self.branch3x3_1.forward(x1));
        let branch7x7x3 = self.branch7x7x3_2.forward(self.branch7x7x3_1.forward(x2));
        let branch7x7x3 = self.branch7x7x3_4.forward(self.branch7x7x3_3.forward(branch7x7x3));
        let branch_pool = ops::max_pool2d(&max_pool(3, 2, 0, false), x3);
        ops::cat([branch3x3, branch7x7x3, branch_pool])
    }

    fn layers_mut(&mut self) -> [&mut ConvNorm; 6] {
        let Self { branch3x3_1, branch3x3_2, branch7x7x3_1, branch7x7x3_2, branch7x7x3_3, branch7x7x3_4 } = self;
        [branch3x3_1, branch3x3_2, branch7x7x3_1, branch7x7x3_2, branch7x7x3_3, branch7x7x3_4]
    }
}

/// 1×1, 3×3 and double 3×3 that fork into 1×3 and 3×1, and average pooling (figure 7).
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct InceptionE {
    pub branch1x1: ConvNorm,
    pub branch3x3_1: ConvNorm,
    pub branch3x3_2a: ConvNorm,
    pub branch3x3_2b: ConvNorm,
    pub branch3x3dbl_1: ConvNorm,
    pub branch3x3dbl_2: ConvNorm,
    pub branch3x3dbl_3a: ConvNorm,
    pub branch3x3dbl_3b: ConvNorm,
    pub branch_pool: ConvNorm,
}

impl InceptionE {
    fn new(channels: usize, device: &Device) -> Self {
        Self {
            branch1x1: conv([channels, 320], 1).init(device),
            branch3x3_1: conv([channels, 384], 1).init(device),
            branch3x3_2a: row([384, 384], 3).init(device),
            branch3x3_2b: column([384, 384], 3).init(device),
            branch3x3dbl_1: conv([channels, 448], 1).init(device),
            branch3x3dbl_2: conv([448, 384], 3).with_padding(1).init(device),
            branch3x3dbl_3a: row([384, 384], 3).init(device),
            branch3x3dbl_3b: column([384, 384], 3).init(device),
            branch_pool: conv([channels, 192], 1).init(device),
        }
    }

    /// Runs the block.
    ///
    /// # Shapes
    ///
    /// - x: `[n, c, h, w]`
    /// - output: `[n, 2048, h, w]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [x1, x2, x3, x4] = ops::fan_out(x);
        let branch1x1 = self.branch1x1.forward(x1);
        let branch3x3 = self.branch3x3_1.forward(x2);
        let branch3x3a = self.branch3x3_2a.forward(branch3x3.clone());
        let branch3x3b = self.branch3x3_2b.forward(branch3x3);
        let branch3x3dbl = self.branch3x3dbl_2.forward(self.branch3x3dbl_1.forward(x3));
        let branch3x3dbl_a = self.branch3x3dbl_3a.forward(branch3x3dbl.clone());
        let branch3x3dbl_b = self.branch3x3dbl_3b.forward(branch3x3dbl);
        let branch_pool = self.branch_pool.forward(average(x4));
        ops::cat([branch1x1, branch3x3a, branch3x3b, branch3x3dbl_a, branch3x3dbl_b, branch_pool])
    }

    fn layers_mut(&mut self) -> [&mut ConvNorm; 9] {
        let Self {
            branch1x1,
            branch3x3_1,
            branch3x3_2a,
            branch3x3_2b,
            branch3x3dbl_1,
            branch3x3dbl_2,
            branch3x3dbl_3a,
            branch3x3dbl_3b,
            branch_pool,
        } = self;
        [
            branch1x1,
            branch3x3_1,
            branch3x3_2a,
            branch3x3_2b,
            branch3x3dbl_1,
            branch3x3dbl_2,
            branch3x3dbl_3a,
            branch3x3dbl_3b,
            branch_pool,
        ]
    }
}

/// The auxiliary classifier over a 17 × 17 map.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct InceptionAux {
    pub conv0: ConvNorm,
    pub conv1: ConvNorm,
    pub fc: Linear,
}

impl InceptionAux {
    fn new(channels: usize, num_classes: usize, device: &Device) -> Self {
        Self {
            conv0: conv([channels, 128], 1).init(device),
            conv1: conv([128, 768], 5).init(device),
            fc: normal_linear(768, num_classes, 0.001, device),
        }
    }

    /// `[n, 768, h, w]`, at least 17 × 17 → `[n, classes]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let x = ops::avg_pool2d(x, AvgPoolOptions::new([5, 5]).with_stride([3, 3])); // [n, 768, 5, 5]
        let x = self.conv1.forward(self.conv0.forward(x)); // [n, 768, 1, 1]
        let x = ops::adaptive_avg_pool2d(x, [1, 1]);
        ops::logits(&self.fc, x.flatten(1, 3))
    }

    fn layers_mut(&mut self) -> [&mut ConvNorm; 2] {
        let Self { conv0, conv1, .. } = self;
        [conv0, conv1]
    }
}
