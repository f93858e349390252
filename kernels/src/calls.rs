//! The operations on Burn's tensors.

#[cfg(feature = "flex")]
use burn::backend::DispatchTensorKind;
use burn::{
    backend::Dispatch,
    tensor::{DType, Tensor, ops::ConvOptions},
};

use crate::{
    Choice,
    autodiff::Meeting,
    choice, cpu,
    ops::{Kernels, Maps, Maybe, Then},
    shared::Shared,
};

pub use crate::ops::{Pool, ResponseNorm, Sgd};

/// Whether the fast operations take this tensor: on `flex`, single precision (or a [map of theirs](makes_bf16_maps)), and
/// [chosen](crate::choose).
pub fn accelerates<const D: usize>(x: &Tensor<D>) -> bool {
    let takes = x.dtype() == DType::F32 || x.dtype() == DType::BF16 && makes_bf16_maps();
    if choice() == Choice::Plain || !takes {
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
    false
}

fn maybe<const D: usize>(tensor: Option<Tensor<D>>) -> Maybe<Dispatch> {
    tensor.map(Tensor::into_dispatch).into()
}

/// What a convolution does besides; nothing by default.
#[derive(Debug, Clone, Default)]
pub struct After {
    /// `[c]`: multiplies each channel; has no gradient of its own.
    pub scale: Option<Tensor<1>>,
    /// `[c]`: added to each channel.
    pub bias: Option<Tensor<1>>,
    /// As the output: added.
    pub residual: Option<Tensor<4>>,
    /// Negative values become zero.
    pub relu: bool,
    /// See [`multiplies_bf16`].
    pub bf16: bool,
    /// With `bf16`, see [`makes_bf16_maps`].
    pub bf16_map: bool,
}

/// Whether products whose operands are rounded to bf16, and whose sums are not, are faster here than others. Of
/// training, the forward pass of convolutions has them; Winograd's products never do.
pub fn multiplies_bf16() -> bool {
    cpu::half::is_available()
}

/// Whether convolutions outside of training may put out maps of bf16 values. All operations here that a network needs for
/// inference take them; averages and response norms put out floats.
pub fn makes_bf16_maps() -> bool {
    cpu::amx::is_available()
}

/// `relu(conv(x, weight) · scale + bias + residual)`: `[n, c_in, h, w]` → `[n, c_out, h', w']`. Outside of training
/// what is made of the weights is kept for the next call.
pub fn conv2d(x: Tensor<4>, weight: Tensor<4>, options: ConvOptions<2>, after: After) -> Tensor<4> {
    let then = Then { relu: after.relu, keep_weights: true, bf16: after.bf16, bf16_map: after.bf16_map };
    Tensor::from_dispatch(<Dispatch as Kernels>::fused_conv2d(
        x.into_dispatch(),
        weight.into_dispatch(),
        maybe(after.scale),
        maybe(after.bias),
        maybe(after.residual),
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
/// gradient. On any backend; the tensor itself where nothing is [shared](crate::share_statistics).
pub fn shared_sum(x: Tensor<1>) -> Tensor<1> {
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
pub fn fork<const N: usize>(x: Tensor<4>) -> [Tensor<4>; N] {
    let meeting = Meeting::new(N);
    std::array::from_fn(|_| {
        Tensor::from_dispatch(<Dispatch as Kernels>::branch(x.clone().into_dispatch(), meeting.clone()))
    })
}

/// Max pooling: `[n, c, h, w]` → `[n, c, h', w']`.
pub fn max_pool2d(x: Tensor<4>, pool: Pool) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Kernels>::fused_max_pool2d(x.into_dispatch(), pool))
}

/// Average pooling: `[n, c, h, w]` → `[n, c, h', w']`.
pub fn avg_pool2d(x: Tensor<4>, pool: Pool) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Kernels>::fused_avg_pool2d(x.into_dispatch(), pool))
}

/// Averages of nearly equal parts: `[n, c, h, w]` → `[n, c, size…]`.
pub fn adaptive_avg_pool2d(x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Kernels>::fused_adaptive_avg_pool2d(x.into_dispatch(), size))
}

/// Local response normalisation across channels: `[n, c, h, w]`.
pub fn response_norm(x: Tensor<4>, norm: ResponseNorm) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Kernels>::response_norm(x.into_dispatch(), norm))
}

/// One to six maps side by side along their channels.
///
/// # Panics
/// With any other number of maps.
pub fn join_channels(maps: impl IntoIterator<Item = Tensor<4>>) -> Tensor<4> {
    let maps = Maps::new(maps.into_iter().map(Tensor::into_dispatch)).expect("one to six maps");
    Tensor::from_dispatch(<Dispatch as Kernels>::join_channels(maps))
}

/// `x · weight + bias`: `[n, d_in]` → `[n, d_out]`, `weight: [d_in, d_out]`; for `bf16` see [`multiplies_bf16`].
pub fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>, bf16: bool) -> Tensor<2> {
    let then = Then { keep_weights: true, bf16, ..Then::default() };
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
