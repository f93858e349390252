use burn::{
    nn::{BatchNorm, conv::Conv2d},
    tensor::Tensor,
};

use crate::{
    ops::{self, PostOps},
    pass::Pass,
};

/// A convolution and what follows it, run in one step where the backend can.
#[derive(Debug)]
#[must_use = "nothing is computed before `forward`"]
pub struct FusedConv<'a> {
    conv: &'a Conv2d,
    post_ops: PostOps<'a>,
}

/// Starts with a convolution and the batch normalization after it, which is none where it was folded into the convolution.
///
/// # Example
///
/// ```
/// use burn::{
///     nn::{BatchNormConfig, PaddingConfig2d, conv::Conv2dConfig},
///     tensor::{Device, Tensor},
/// };
/// use models::nn::conv_norm;
///
/// let device = Device::flex();
/// let padding = PaddingConfig2d::Explicit(1, 1, 1, 1);
/// let conv = Conv2dConfig::new([8, 8], [3, 3]).with_padding(padding).with_bias(false).init(&device);
/// let bn = Some(BatchNormConfig::new(8).init(&device));
/// let identity = Tensor::ones([1, 8, 5, 5], &device);
/// let out = conv_norm(&conv, &bn).add(identity.clone()).relu().forward(identity);
/// assert_eq!(out.dims(), [1, 8, 5, 5]);
/// ```
pub fn conv_norm<'a>(conv: &'a Conv2d, norm: &'a Option<BatchNorm>) -> FusedConv<'a> {
    FusedConv { conv, post_ops: PostOps { norm: norm.as_ref(), ..PostOps::default() } }
}

impl FusedConv<'_> {
    /// Adds a tensor of the output's shape, before the ReLU.
    #[allow(clippy::should_implement_trait)] // A step of the builder, which `+` would hide.
    pub fn add(mut self, residual: Tensor<4>) -> Self {
        self.post_ops.residual = Some(residual);
        self
    }

    /// Applies a ReLU last.
    pub fn relu(mut self) -> Self {
        self.post_ops.relu = true;
        self
    }

    /// Runs it.
    ///
    /// # Shapes
    ///
    /// - x: `[n, c_in, h, w]`
    /// - output: `[n, c_out, h', w']`
    pub fn forward(self, x: Tensor<4>) -> Tensor<4> {
        ops::conv2d_with(self.conv, x, self.post_ops)
    }
}

/// Runs the stages `conv1`, `bn1` and `relu`, fused unless a hook observes the outputs between them.
pub(crate) fn stem(conv: &Conv2d, norm: &Option<BatchNorm>, x: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
    if !pass.observes("conv1") && !pass.observes("bn1") {
        return pass.stage("relu", conv_norm(conv, norm).relu().forward(x));
    }
    let x = pass.stage("conv1", ops::conv2d(conv, x));
    let x = pass.stage("bn1", ops::post_ops(x, PostOps { norm: norm.as_ref(), ..PostOps::default() }));
    pass.stage("relu", ops::post_ops(x, PostOps { relu: true, ..PostOps::default() }))
}
