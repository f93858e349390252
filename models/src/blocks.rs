//! What several architectures are made of.

use burn::{
    module::{Module, Param},
    nn::{
        BatchNorm, BatchNormConfig, Dropout, Initializer, Linear, LinearConfig, PaddingConfig2d, Relu,
        conv::{Conv2d, Conv2dConfig},
        pool::{MaxPool2d, MaxPool2dConfig},
    },
    tensor::{DType, Device, Tensor, TensorData, activation::relu, module::conv2d, ops::ConvOptions},
};

use crate::{
    FeatureInfo,
    ops::{self, PostOps},
    pass::Pass,
};

/// A convolution and the norm after it, unless that is folded.
pub type ConvNormMut<'a> = (&'a mut Conv2d, &'a mut Option<BatchNorm>);

/// Puts a norm, as it is in evaluation, into the convolution before it: weights times γ/σ, and a bias of β − μγ/σ.
pub(crate) fn fold(conv: &mut Conv2d, norm: &mut Option<BatchNorm>) {
    let Some(norm) = norm.take() else { return };
    let scale = norm.gamma.val() / norm.running_var.value().add_scalar(norm.epsilon).sqrt(); // [c]
    let shift = norm.beta.val() - norm.running_mean.value() * scale.clone();
    let bias = match &conv.bias {
        Some(bias) => bias.val() * scale.clone() + shift,
        None => shift,
    };
    let [channels, ..] = conv.weight.dims();
    conv.weight = Param::from_tensor(conv.weight.val() * scale.reshape([channels, 1, 1, 1]));
    conv.bias = Some(Param::from_tensor(bias));
}

/// Same number of pixels on all four sides, by axis: `[vertical, horizontal]`.
pub(crate) fn padding([vertical, horizontal]: [usize; 2]) -> PaddingConfig2d {
    match (vertical, horizontal) {
        (0, 0) => PaddingConfig2d::Valid,
        _ => PaddingConfig2d::Explicit(vertical, horizontal, vertical, horizontal),
    }
}

/// A square max pooling.
pub(crate) fn max_pool(kernel: usize, stride: usize, pad: usize, ceil_mode: bool) -> MaxPool2d {
    MaxPool2dConfig::new([kernel, kernel])
        .with_strides([stride, stride])
        .with_padding(padding([pad, pad]))
        .with_ceil_mode(ceil_mode)
        .init()
}

/// PyTorch's `kaiming_normal_(mode="fan_out", nonlinearity="relu")` for a convolution.
///
/// **NOTE** PyTorch counts `channels_out · kh · kw` as fan-out whatever the number of groups; Burn's `KaimingNormal`
/// divides by the groups. ResNeXt is initialised as torchvision does it, so the deviation is spelled out here.
pub(crate) fn kaiming_fan_out(channels_out: usize, kernel: [usize; 2]) -> Initializer {
    let fan_out = channels_out * kernel[0] * kernel[1];
    Initializer::Normal { mean: 0.0, std: (2.0 / fan_out as f64).sqrt() }
}

/// A copy of `linear` for `outputs` classes with fresh weights and biases, PyTorch's default (uniform ±1/√fan_in).
pub(crate) fn fresh_linear(linear: &Linear, outputs: usize, device: &Device) -> Linear {
    let inputs = linear.weight.lazy_shape()[0];
    LinearConfig::new(inputs, outputs).init(device)
}

/// One step of a plain column of layers; its index in the column is its name, as in torchvision's `Sequential`.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // A column has tens of layers, not millions.
pub enum Layer {
    /// 2-D convolution.
    Conv(Conv2d),
    /// Batch normalisation over `[n, h, w]`.
    BatchNorm(BatchNorm),
    /// max(0, x).
    Relu(Relu),
    /// Max pooling.
    MaxPool(MaxPool2d),
}

impl Layer {
    /// Runs the block.
    ///
    /// # Shapes
    ///
    /// - x: `[n, c, h, w]`
    /// - output: `[n, c', h', w']`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match self {
            Layer::Conv(conv) => ops::conv2d(conv, x),
            Layer::BatchNorm(bn) => ops::post_ops(x, PostOps { norm: Some(bn), ..PostOps::default() }),
            Layer::Relu(_) => ops::post_ops(x, PostOps { relu: true, ..PostOps::default() }),
            Layer::MaxPool(pool) => ops::max_pool2d(pool, x),
        }
    }
}

/// Images `[n, 3, h, w]` → the last feature map of a column, whose stages are `features.0`, `features.1` …
///
/// A convolution, its norm and its ReLU are one step, unless the hook observes the tensors between them. A segment goes
/// from one pooling to the next.
pub(crate) fn column(layers: &[Layer], mut x: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
    let mut first = 0;
    for segment in layers.split_inclusive(|layer| matches!(layer, Layer::MaxPool(_))) {
        x = pass.segment(x, |x, pass| column_segment(segment, first, x, pass));
        first += segment.len();
    }
    x
}

/// Layers of a column, the first of which has index `first` in it.
fn column_segment(layers: &[Layer], first: usize, mut x: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
    let name = |index: usize| format!("features.{}", first + index);
    let mut index = 0;
    while let Some(layer) = layers.get(index) {
        let mut last = index;
        x = match layer {
            Layer::Conv(conv) => {
                let mut post_ops = PostOps::default();
                while !pass.observes(&name(last)) {
                    match layers.get(last + 1) {
                        Some(Layer::BatchNorm(bn)) if !post_ops.relu => post_ops.norm = Some(bn),
                        Some(Layer::Relu(_)) if !post_ops.relu => post_ops.relu = true,
                        _ => break,
                    }
                    last += 1;
                }
                ops::conv2d_with(conv, x, post_ops)
            }
            layer => layer.forward(x),
        };
        x = pass.stage(&name(last), x);
        index = last + 1;
    }
    x
}

/// The feature maps of a column: what enters each pooling, and the output of the last one.
pub(crate) fn column_info(layers: &[Layer]) -> Vec<FeatureInfo> {
    let (mut channels, mut stride) = (3, 1);
    let mut info = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        match layer {
            Layer::Conv(conv) => {
                channels = conv.weight.lazy_shape()[0];
                stride *= conv.stride[0];
            }
            Layer::MaxPool(pool) => {
                info.push(FeatureInfo::new(format!("features.{}", index.saturating_sub(1)), channels, stride));
                stride *= pool.stride[0];
            }
            Layer::BatchNorm(_) | Layer::Relu(_) => {}
        }
    }
    info.push(FeatureInfo::new(format!("features.{}", layers.len().saturating_sub(1)), channels, stride));
    info
}

/// The last of a column's ReLUs.
pub(crate) fn last_relu(layers: &[Layer]) -> String {
    let last = layers.iter().rposition(|layer| matches!(layer, Layer::Relu(_)));
    format!("features.{}", last.unwrap_or_default())
}

/// The classifier of AlexNet and VGG: three linear layers with dropout and ReLU between them. The tuples' indices are
/// torchvision's names (`classifier.0` to `classifier.6`).
pub(crate) fn dropout_relu_features(x: Tensor<2>, first: &Linear, dropout: &Dropout, second: &Linear) -> Tensor<2> {
    let x = relu(ops::linear(first, x));
    relu(ops::linear(second, dropout.forward(x)))
}

/// The classifier of AlexNet and VGG at every position of a map `[n, c, h, w]` of at least `window × window`, its scores
/// averaged: `[n, classes]`. The first linear layer becomes a convolution of the window, the others of 1 × 1.
pub(crate) fn dense_classifier(map: Tensor<4>, window: usize, [first, second, last]: [&Linear; 3]) -> Tensor<2> {
    let [n, channels, _, _] = map.dims();
    let weight = ops::value(&first.weight, map.dtype()).transpose();
    let [outputs, _] = weight.dims();
    let weight = weight.reshape([outputs, channels, window, window]);
    let bias = first.bias.as_ref().map(|bias| ops::value(bias, map.dtype()));
    let x = relu(conv2d(map, weight, bias, ConvOptions::new([1, 1], [0, 0], [1, 1], 1))); // [n, outputs, h', w']
    let [_, _, height, width] = x.dims();
    let positions = x.permute([0, 2, 3, 1]).reshape([n * height * width, outputs]);
    let scores = ops::logits(last, relu(ops::linear(second, positions))); // [n · h' · w', classes]
    let [_, classes] = scores.dims();
    scores.reshape([n, height * width, classes]).mean_dim(1).reshape([n, classes])
}

/// Configuration of a [`ConvNorm`] block.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use models::ConvNormConfig;
///
/// let device = Device::flex();
/// let layer = ConvNormConfig::new([3, 16], 3).with_stride(2).with_padding(1).init(&device);
/// assert_eq!(layer.forward(Tensor::zeros([1, 3, 8, 8], &device)).dims(), [1, 16, 4, 4]);
/// ```
#[derive(Debug, Clone)]
pub struct ConvNormConfig {
    /// Channels of the input and of the output.
    pub channels: [usize; 2],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// The stride along both axes.
    pub stride: usize,
    /// Pixels of padding on both sides of each axis: `[vertical, horizontal]`.
    pub padding: [usize; 2],
    /// Batch normalization after the convolution, instead of a bias in it.
    pub norm: bool,
    /// How the weights are drawn.
    pub initializer: Initializer,
}

impl ConvNormConfig {
    /// A `kernel × kernel` convolution with stride 1 and without padding, followed by batch normalization and ReLU.
    /// Weights are normal with deviation 0.01.
    pub fn new(channels: [usize; 2], kernel: usize) -> Self {
        Self {
            channels,
            kernel: [kernel, kernel],
            stride: 1,
            padding: [0, 0],
            norm: true,
            initializer: Initializer::Normal { mean: 0.0, std: 0.01 },
        }
    }

    /// Sets the kernel and its padding, by axis.
    pub fn with_kernel(mut self, kernel: [usize; 2], padding: [usize; 2]) -> Self {
        (self.kernel, self.padding) = (kernel, padding);
        self
    }

    /// Sets the stride along both axes.
    pub fn with_stride(mut self, stride: usize) -> Self {
        self.stride = stride;
        self
    }

    /// Sets the padding of all four sides.
    pub fn with_padding(mut self, pad: usize) -> Self {
        self.padding = [pad, pad];
        self
    }

    /// Sets whether there is a batch normalization, instead of a bias.
    pub fn with_norm(mut self, norm: bool) -> Self {
        self.norm = norm;
        self
    }

    /// Sets how the weights are drawn.
    pub fn with_initializer(mut self, initializer: Initializer) -> Self {
        self.initializer = initializer;
        self
    }

    /// Builds the block.
    pub fn init(&self, device: &Device) -> ConvNorm {
        let mut conv = Conv2dConfig::new(self.channels, self.kernel)
            .with_stride([self.stride, self.stride])
            .with_padding(padding(self.padding))
            .with_bias(false)
            .with_initializer(self.initializer.clone())
            .init(device);
        if !self.norm {
            // The 2014 network starts its biases at 0.2.
            conv.bias = Some(Initializer::Constant { value: 0.2 }.init([self.channels[1]], device));
        }
        // torchvision's GoogLeNet and Inception v3 both use 1e-3 here, not PyTorch's 1e-5.
        let bn = self.norm.then(|| BatchNormConfig::new(self.channels[1]).with_epsilon(1e-3).init(device));
        ConvNorm { conv, bn }
    }
}

/// Convolution → normalisation → ReLU (torchvision's `BasicConv2d`); without a norm the convolution has a bias.
#[derive(Module, Debug)]
pub struct ConvNorm {
    /// The convolution.
    pub conv: Conv2d,
    /// Batch normalisation, eps 1e-3; none in the network of 2014, nor once folded into the convolution.
    pub bn: Option<BatchNorm>,
}

impl ConvNorm {
    /// Runs the block.
    ///
    /// # Shapes
    ///
    /// - x: `[n, c_in, h, w]`
    /// - output: `[n, c_out, h', w']`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        ops::conv2d_with(&self.conv, x, PostOps { norm: self.bn.as_ref(), residual: None, relu: true })
    }

    pub(crate) fn as_mut(&mut self) -> ConvNormMut<'_> {
        (&mut self.conv, &mut self.bn)
    }
}

/// Moves an input that was normalised with ImageNet's mean and deviation to ±1 (mean 0.5, deviation 0.5), which is
/// what networks ported from TensorFlow were trained on (torchvision's `transform_input`). `[n, 3, h, w]`, RGB.
pub(crate) fn to_plus_minus_one(x: Tensor<4>) -> Tensor<4> {
    let [mean, std] = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]];
    let scale: [f32; 3] = std.map(|s: f64| (s / 0.5) as f32);
    let shift: [f32; 3] = mean.map(|m: f64| ((m - 0.5) / 0.5) as f32);
    let device = x.device();
    let channel = |values: [f32; 3]| {
        Tensor::<1>::from_data(TensorData::from(values), (&device, DType::F32)).reshape([1, 3, 1, 1])
    };
    ops::in_f32(x, |x| x * channel(scale) + channel(shift))
}
