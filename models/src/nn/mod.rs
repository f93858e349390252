//! Layers that networks are written in: Burn's modules, run by the fastest operations that the backend has.

mod conv_norm;

use burn::tensor::Tensor;

pub use conv_norm::{FusedConv, conv_norm};

/// Returns `x` as `N` branches. Their gradients are accumulated in one buffer where the backend's operations can.
///
/// # Shapes
///
/// - x: `[n, c, h, w]`
/// - outputs: `[n, c, h, w]`
pub fn fan_out<const N: usize>(x: Tensor<4>) -> [Tensor<4>; N] {
    crate::ops::fan_out(x)
}
