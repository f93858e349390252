//! The epilogue of a convolution, a norm or a linear layer, and its gradients.

use super::prelude::*;

/// Options of the epilogue, the operations fused into the output of a convolution, a norm or a linear layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EpilogueFlags {
    /// Applies ReLU last.
    pub relu: bool,
    /// The weights will be used again unchanged, so their packed form is cached.
    pub keep_weights: bool,
    /// GEMMs may round their operands to bf16 where the processor is faster so; accumulation stays in f32.
    pub bf16: bool,
    /// A convolution whose GEMM runs in bf16 may return a feature map in bf16, which every operation here accepts.
    pub bf16_output: bool,
}

/// The gradients of the ReLU and the bias of an epilogue.
pub trait EpilogueGrad: Backend {
    /// Returns `dy` where `y` is above zero, otherwise 0.
    fn relu_backward(y: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::relu_backward::<Self>(y, dy)
    }

    /// Sums `x: [n, c, h, w]` over all dimensions but the channels: `[c]`.
    fn channel_sums(x: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::channel_sums::<Self>(x)
    }
}

impl EpilogueGrad for Dispatch {}
impl<B: Backend, C: CheckpointStrategy> EpilogueGrad for Autodiff<B, C> {}
#[cfg(feature = "ndarray")]
impl EpilogueGrad for burn::backend::NdArray {}
#[cfg(feature = "tch")]
impl EpilogueGrad for burn::backend::LibTorch {}
#[cfg(feature = "cube")]
impl EpilogueGrad for burn::backend::Cube {}

/// `[c]` → `[1, c, 1, 1]`.
pub(crate) fn by_channel<B: Backend>(values: FloatTensor<B>) -> FloatTensor<B> {
    let [channels] = values.shape().dims();
    B::float_reshape(values, Shape::new([1, channels, 1, 1]))
}

pub(crate) fn finish<B: Backend>(
    y: FloatTensor<B>,
    residual: Option<FloatTensor<B>>,
    flags: EpilogueFlags,
) -> FloatTensor<B> {
    let y = match residual {
        Some(residual) => B::float_add(y, residual),
        None => y,
    };
    if flags.relu { B::relu(y) } else { y }
}

/// Reference bodies in Burn's operations.
mod reference {
    use super::*;

    pub fn relu_backward<B: Backend>(y: FloatTensor<B>, dy: FloatTensor<B>) -> FloatTensor<B> {
        B::relu_backward(y, dy)
    }

    pub fn channel_sums<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
        let [n, c, h, w] = x.shape().dims();
        let x = B::float_swap_dims(x, 0, 1);
        let sums = B::float_sum_dim(B::float_reshape(x, Shape::new([c, n * h * w])), 1);
        B::float_reshape(sums, Shape::new([c]))
    }
}

#[cfg(feature = "flex")]
mod optimized {
    use super::*;
    use crate::{
        cpu::norm::{self, Pass},
        flex::{channels_last, dims, floats, map, single, vector},
    };

    impl EpilogueGrad for Flex {
        fn relu_backward(y: FlexTensor, dy: FlexTensor) -> FlexTensor {
            if !single(&[&y, &dy]) || y.rank() != 4 {
                return reference::relu_backward::<Self>(y, dy);
            }
            let (y, dy) = (channels_last(y), channels_last(dy));
            let shape @ [_, c, _, _] = dims(&y);
            map(norm::pass(floats(&y), c, Pass::Relu { dy: floats(&dy) }), shape)
        }

        fn channel_sums(x: FlexTensor) -> FlexTensor {
            if !single(&[&x]) {
                return reference::channel_sums::<Self>(x);
            }
            let x = channels_last(x);
            let [_, c, _, _] = dims(&x);
            vector(&norm::channel_sums(floats(&x), c))
        }
    }
}
