//! Layers that networks are written in: Burn's modules, run by the fastest operations that the backend has.

mod conv_norm;

use burn::{
    nn::{Linear, pool::MaxPool2d},
    tensor::Tensor,
};

pub(crate) use conv_norm::stem;
pub use conv_norm::{FusedConv, conv_norm};

/// Pools the average of windows that cover the input, so that the output has the given height and width.
///
/// # Shapes
///
/// - x: `[n, c, h, w]`
/// - output: `[n, c, size[0], size[1]]`
pub fn adaptive_avg_pool2d(x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    crate::ops::adaptive_avg_pool2d(x, size)
}

/// Pools the maximum of windows.
///
/// # Shapes
///
/// - x: `[n, c, h, w]`
/// - output: `[n, c, h', w']`
pub fn max_pool2d(pool: &MaxPool2d, x: Tensor<4>) -> Tensor<4> {
    crate::ops::max_pool2d(pool, x)
}

/// Concatenates feature maps along their channels.
///
/// # Shapes
///
/// - maps: `[n, c, h, w]` each
/// - output: `[n, the sum of c, h, w]`
pub fn cat<const N: usize>(maps: [Tensor<4>; N]) -> Tensor<4> {
    crate::ops::cat(maps)
}

/// Runs a linear layer.
///
/// # Shapes
///
/// - x: `[n, d_in]`
/// - output: `[n, d_out]`
pub fn linear(linear: &Linear, x: Tensor<2>) -> Tensor<2> {
    crate::ops::linear(linear, x)
}

/// Returns `x` as `N` branches. Their gradients are accumulated in one buffer where the backend's operations can.
///
/// # Shapes
///
/// - x: `[n, c, h, w]`
/// - outputs: `[n, c, h, w]`
pub fn fan_out<const N: usize>(x: Tensor<4>) -> [Tensor<4>; N] {
    crate::ops::fan_out(x)
}
