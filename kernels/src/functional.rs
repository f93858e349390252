//! The operations on Burn's tensors.

#[cfg(feature = "flex")]
use burn::backend::DispatchTensorKind;
use burn::{
    backend::Dispatch,
    tensor::{DType, Tensor, ops::ConvOptions},
};

use crate::{
    KernelMode,
    autodiff::Meeting,
    cpu, kernel_mode,
    ops::{Kernels, Maps, Maybe, Then},
    shared::Shared,
};

pub use crate::ops::{Pool as Pool2d, ResponseNorm as LocalResponseNorm, Sgd};

/// Whether the fast operations take this tensor: on `flex`, single precision (or [bf16 activations](has_bf16_activations)), and
/// [chosen](crate::set_kernel_mode).
pub fn accelerates<const D: usize>(x: &Tensor<D>) -> bool {
    let takes = x.dtype() == DType::F32 || x.dtype() == DType::BF16 && has_bf16_activations();
    takes && runs_on_device_of(x)
}

/// Whether the optimized operations run where this tensor is stored, whatever its type: on `flex`, and
/// [chosen](crate::set_kernel_mode).
pub fn runs_on_device_of<const D: usize>(x: &Tensor<D>) -> bool {
    if kernel_mode() == KernelMode::Reference {
        return false;
    }
    #[cfg(feature = "flex")]
    {
        let kind = x.clone().into_dispatch().kind;
        let kind = match &kind {
            DispatchTensorKind::Autodiff(inner) => inner,
            kind => kind,
        };
        matches!(kind, DispatchTensorKind::Flex(_))
    }
    #[cfg(not(feature = "flex"))]
    {
        let _ = x;
        false
    }
}

fn maybe<const D: usize>(tensor: Option<Tensor<D>>) -> Maybe<Dispatch> {
    tensor.map(Tensor::into_dispatch).into()
}

/// Operations fused into the output of a convolution. Default: none.
#[derive(Debug, Clone, Default)]
pub struct Epilogue {
    /// `[c]`: multiplies each channel; has no gradient of its own.
    pub scale: Option<Tensor<1>>,
    /// `[c]`: added to each channel.
    pub bias: Option<Tensor<1>>,
    /// A tensor of the output's shape that is added to it.
    pub residual: Option<Tensor<4>>,
    /// Whether negative values become zero.
    pub relu: bool,
}

/// The arithmetic of a convolution or a linear layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// Operands are rounded to bf16 where [the processor is faster with them](has_bf16_dot), and accumulated in single
    /// precision. Training uses it for the forward pass of convolutions alone.
    Bf16,
    /// As [`Bf16`](Self::Bf16), and outside of training a convolution may also write its output in bf16, where
    /// [the processor is faster with such activations](has_bf16_activations).
    Bf16Activations,
}

/// Whether the CPU has bf16 dot products with f32 accumulation (AVX512-BF16).
pub fn has_bf16_dot() -> bool {
    cpu::half::is_available()
}

/// Whether convolutions outside of training can write activations in bf16 (AMX). All operations here that a network
/// needs for inference accept them; average pooling and local response normalization return f32.
pub fn has_bf16_activations() -> bool {
    cpu::amx::is_available()
}

/// `relu(conv(x, weight) · scale + bias + residual)`: `[n, c_in, h, w]` → `[n, c_out, h', w']`. Outside of training
/// what is made of the weights is kept for the next call.
pub fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    options: ConvOptions<2>,
    epilogue: Epilogue,
    precision: Precision,
) -> Tensor<4> {
    let then = Then {
        relu: epilogue.relu,
        keep_weights: true,
        bf16: precision != Precision::F32,
        bf16_map: precision == Precision::Bf16Activations && !x.device().is_autodiff(),
    };
    Tensor::from_dispatch(<Dispatch as Kernels>::fused_conv2d(
        x.into_dispatch(),
        weight.into_dispatch(),
        maybe(epilogue.scale),
        maybe(epilogue.bias),
        maybe(epilogue.residual),
        options,
        then,
    ))
}

/// `relu(norm(x) + residual)` by the statistics of the batch: `[n, c, h, w]`, and the mean and biased variance `[c]`.
pub fn batch_norm(
    x: Tensor<4>,
    [gamma, beta]: [Tensor<1>; 2],
    epsilon: f64,
    residual: Option<Tensor<4>>,
    relu: bool,
) -> (Tensor<4>, Tensor<1>, Tensor<1>) {
    let then = Then { relu, ..Then::default() };
    let (y, mean, variance) = <Dispatch as Kernels>::fused_batch_norm(
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        maybe(residual),
        epsilon,
        then,
    );
    (Tensor::from_dispatch(y), Tensor::from_dispatch(mean), Tensor::from_dispatch(variance))
}

/// Each element's sum over the tensors of all processes, which call it as often and in the same order; so is its
/// gradient. On any backend; the tensor itself where nothing is [shared](crate::set_sync_batch_norm).
pub fn all_reduce_sum(x: Tensor<1>) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as Shared>::shared_sum(x.into_dispatch()))
}

/// `relu(x · scale + shift + residual)`, `scale` and `shift` `[c]`: `[n, c, h, w]`.
pub fn channel_affine(
    x: Tensor<4>,
    [scale, shift]: [Tensor<1>; 2],
    residual: Option<Tensor<4>>,
    relu: bool,
) -> Tensor<4> {
    let then = Then { relu, ..Then::default() };
    Tensor::from_dispatch(<Dispatch as Kernels>::channel_affine(
        x.into_dispatch(),
        scale.into_dispatch(),
        shift.into_dispatch(),
        maybe(residual),
        then,
    ))
}

/// `x` as `N` branches, whose gradients meet in one sum. Each must flow into what is differentiated.
pub fn fan_out<const N: usize>(x: Tensor<4>) -> [Tensor<4>; N] {
    let meeting = Meeting::new(N);
    std::array::from_fn(|_| {
        Tensor::from_dispatch(<Dispatch as Kernels>::branch(x.clone().into_dispatch(), meeting.clone()))
    })
}

/// Max pooling: `[n, c, h, w]` → `[n, c, h', w']`.
pub fn max_pool2d(x: Tensor<4>, pool: Pool2d) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Kernels>::fused_max_pool2d(x.into_dispatch(), pool))
}

/// Average pooling: `[n, c, h, w]` → `[n, c, h', w']`.
pub fn avg_pool2d(x: Tensor<4>, pool: Pool2d) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Kernels>::fused_avg_pool2d(x.into_dispatch(), pool))
}

/// Averages of nearly equal parts: `[n, c, h, w]` → `[n, c, size…]`.
pub fn adaptive_avg_pool2d(x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Kernels>::fused_adaptive_avg_pool2d(x.into_dispatch(), size))
}

/// Local response normalisation across channels: `[n, c, h, w]`.
pub fn local_response_norm(x: Tensor<4>, norm: LocalResponseNorm) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Kernels>::response_norm(x.into_dispatch(), norm))
}

/// One to six maps side by side along their channels.
///
/// # Panics
/// With any other number of maps.
pub fn cat(maps: impl IntoIterator<Item = Tensor<4>>) -> Tensor<4> {
    let maps = Maps::new(maps.into_iter().map(Tensor::into_dispatch)).expect("one to six maps");
    Tensor::from_dispatch(<Dispatch as Kernels>::join_channels(maps))
}

/// `x · weight + bias`: `[n, d_in]` → `[n, d_out]`, `weight: [d_in, d_out]`.
pub fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>, precision: Precision) -> Tensor<2> {
    let then = Then { keep_weights: true, bf16: precision != Precision::F32, ..Then::default() };
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(<Dispatch as Kernels>::fused_linear(x, weight, maybe(bias), then))
}

/// `−Σ targets · log softmax(logits)` of each row: `[n, classes]` → `[n]`. No gradient flows to the targets.
pub fn cross_entropy(logits: Tensor<2>, targets: Tensor<2>) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as Kernels>::cross_entropy(logits.into_dispatch(), targets.into_dispatch()))
}

/// A step of stochastic gradient descent: the parameter and, with momentum, its velocity; both are overwritten where
/// nobody else has them. No gradient flows through it.
pub fn sgd_step<const D: usize>(
    param: Tensor<D>,
    gradient: Tensor<D>,
    velocity: Option<Tensor<D>>,
    sgd: Sgd,
) -> (Tensor<D>, Option<Tensor<D>>) {
    let (param, velocity) =
        <Dispatch as Kernels>::sgd_step(param.into_dispatch(), gradient.into_dispatch(), maybe(velocity), sgd);
    (Tensor::from_dispatch(param), (sgd.momentum != 0.0).then(|| Tensor::from_dispatch(velocity)))
}
