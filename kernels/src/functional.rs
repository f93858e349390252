//! The operations on Burn's tensors: the safe boundary of this crate.
//!
//! Everything below trusts its arguments, so each function here checks the shape, stride, length, group count and data
//! type of every argument, at a cost that does not depend on their sizes. Operands are never broadcast.

use std::{sync::OnceLock, time::Duration};

#[cfg(feature = "flex")]
use std::time::Instant;

use burn::{
    backend::Dispatch,
    tensor::{DType, Gradients, Tensor, ops::ConvOptions},
};
#[cfg(feature = "flex")]
use burn::{backend::DispatchTensorKind, tensor::Device};

use crate::{
    AllReduce, cpu,
    ops::{
        OptionalTensor, TensorList,
        batch_norm::BatchNorm,
        cat::Cat,
        conv2d::Conv2d,
        cross_entropy::CrossEntropy,
        epilogue::EpilogueFlags,
        fan_out::{FanOut, GradAccumulator},
        linear::LinearLayer,
        local_response_norm::LocalResponseNormalization,
        pool2d::Pooling2d,
        seed_gradient::SeedGradient,
        sgd::SgdStep,
        sync_batch_norm::AllReduceSum,
    },
};

pub use crate::ops::{local_response_norm::LocalResponseNorm, pool2d::Pool2d, sgd::Sgd};

/// Whether the optimized operations support this tensor: it is on `flex`, in single precision (or
/// [bf16 activations](has_bf16_activations)).
pub fn accelerates<const D: usize>(x: &Tensor<D>) -> bool {
    let supported = x.dtype() == DType::F32 || x.dtype() == DType::BF16 && has_bf16_activations();
    supported && runs_on_device_of(x)
}

/// Whether the optimized operations run where this tensor is stored, whatever its type: on `flex`.
pub fn runs_on_device_of<const D: usize>(x: &Tensor<D>) -> bool {
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

fn optional<const D: usize>(tensor: Option<Tensor<D>>) -> OptionalTensor<Dispatch> {
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
    cpu::bf16::is_available()
}

/// Whether networks are faster in bf16 than in f32 on this CPU, by a measurement of some milliseconds that is made once per
/// process: a convolution that Winograd's algorithm takes over in f32, and one of single pixels.
pub fn is_faster_in_bf16() -> bool {
    static FASTER: OnceLock<bool> = OnceLock::new();
    *FASTER.get_or_init(|| {
        has_bf16_dot() && time_convolutions(Precision::Bf16Activations) < time_convolutions(Precision::F32)
    })
}

/// The time of two convolutions that networks are made of, the shortest of several.
#[cfg(feature = "flex")]
fn time_convolutions(precision: Precision) -> Duration {
    let device = Device::flex();
    let layer = |channels: [usize; 2], side: usize, kernel: usize| {
        let x = Tensor::<4>::ones([2, channels[0], side, side], &device);
        let weight = Tensor::<4>::ones([channels[1], channels[0], kernel, kernel], &device);
        let padding = kernel / 2;
        move || {
            let options = ConvOptions::new([1, 1], [padding; 2], [1, 1], 1);
            conv2d(x.clone(), weight.clone(), options, Epilogue::default(), precision)
        }
    };
    let layers = [layer([128, 128], 28, 3), layer([512, 128], 28, 1)];
    let time = || {
        let began = Instant::now();
        layers.iter().for_each(|layer| drop(layer()));
        began.elapsed()
    };
    // The first pass packs the weights.
    time();
    (0..5).map(|_| time()).min().unwrap_or_default()
}

#[cfg(not(feature = "flex"))]
fn time_convolutions(_: Precision) -> Duration {
    Duration::ZERO
}

/// Whether convolutions outside of training can write activations in bf16 (AMX). All operations here that a network
/// needs for inference accept them; average pooling and local response normalization return f32.
pub fn has_bf16_activations() -> bool {
    cpu::amx::is_available()
}

/// Applies a 2D convolution and an epilogue: `relu(conv(x, weight) · scale + bias + residual)`. Outside of training the
/// packed weights are cached for the next call.
///
/// # Shapes
///
/// - x: `[n, c_in, h, w]`
/// - weight: `[c_out, c_in / groups, kh, kw]`
/// - scale and bias: `[c_out]`
/// - residual and output: `[n, c_out, h', w']`
///
/// # Panics
///
/// If the shapes do not match, the groups do not divide the channels, a size other than the batch size is zero, the kernel
/// does not fit into the padded input, or the data types differ (x and the residual may be bf16 activations).
pub fn conv2d(
    x: Tensor<4>,
    weight: Tensor<4>,
    options: ConvOptions<2>,
    epilogue: Epilogue,
    precision: Precision,
) -> Tensor<4> {
    const NAME: &str = "conv2d";
    let shape @ [n, c_in, h, w] = x.dims();
    let [c_out, per_group, kh, kw] = weight.dims();
    check_nonzero(NAME, "x", &shape[1..]);
    check_nonzero(NAME, "the weight", &weight.dims());
    check_nonzero(NAME, "the stride", &options.stride);
    check_nonzero(NAME, "the dilation", &options.dilation);
    let groups = options.groups;
    assert!(groups > 0, "{NAME}: the number of groups is zero");
    assert!(
        c_out.is_multiple_of(groups) && c_in.is_multiple_of(groups),
        "{NAME}: {groups} groups do not divide {c_in} input and {c_out} output channels"
    );
    assert!(
        per_group == c_in / groups,
        "{NAME}: the weight has {per_group} input channels per group, but x has {c_in} channels in {groups} groups"
    );
    let along = |axis: usize, size: usize, kernel: usize| {
        let (before, after) = options.padding[axis];
        let padded = size.checked_add(before)?.checked_add(after)?;
        let reach = (kernel - 1).checked_mul(options.dilation[axis])?.checked_add(1)?;
        Some(padded.checked_sub(reach)? / options.stride[axis] + 1)
    };
    let (Some(height), Some(width)) = (along(0, h, kh), along(1, w, kw)) else {
        panic!("{NAME}: a kernel of [{kh}, {kw}] does not fit into an input of [{h}, {w}] with {options:?}")
    };
    let output = [n, c_out, height, width];
    check_elements(NAME, &output);
    let padded = [0, 1].map(|axis| shape[2 + axis] + options.padding[axis].0 + options.padding[axis].1);
    check_elements(NAME, &[n, c_in, padded[0], padded[1]]);
    let Epilogue { scale, bias, residual, relu } = epilogue;
    let dtype = weight.dtype();
    check_activation(NAME, "x", x.dtype(), dtype);
    for (what, vector) in [("the scale", &scale), ("the bias", &bias)] {
        if let Some(vector) = vector {
            check_shape(NAME, what, vector.dims(), [c_out]);
            check_dtype(NAME, what, vector.dtype(), dtype);
        }
    }
    if let Some(residual) = &residual {
        check_shape(NAME, "the residual", residual.dims(), output);
        check_activation(NAME, "the residual", residual.dtype(), dtype);
    }
    let flags = EpilogueFlags {
        relu,
        keep_weights: true,
        bf16: precision != Precision::F32,
        bf16_output: precision == Precision::Bf16Activations,
    };
    Tensor::from_dispatch(<Dispatch as Conv2d>::fused_conv2d(
        x.into_dispatch(),
        weight.into_dispatch(),
        optional(scale),
        optional(bias),
        optional(residual),
        options,
        flags,
    ))
}

/// Normalizes by the statistics of the batch: `relu(norm(x) · gamma + beta + residual)`. Returns the output and the mean
/// and biased variance of each channel, through which no gradient flows.
///
/// With `sync`, the statistics are those of the batches of all processes, and so are the sums in the gradient of x: this is
/// synchronized batch normalization. Results then do not depend on the number of processes that share a batch, to the bit in
/// all but rare cases. The gradients of gamma and beta are those of the process's own images.
///
/// # Shapes
///
/// - x, residual and output: `[n, c, h, w]`
/// - gamma, beta, mean and variance: `[c]`
///
/// # Panics
///
/// If the shapes or data types do not match, a channel has no values, or epsilon is negative or not finite; with `sync`, if
/// the optimized operations do [not support](accelerates) x: others can be built from [`all_reduce_sum`].
pub fn batch_norm(
    x: Tensor<4>,
    [gamma, beta]: [Tensor<1>; 2],
    epsilon: f64,
    residual: Option<Tensor<4>>,
    relu: bool,
    sync: Option<&AllReduce>,
) -> (Tensor<4>, Tensor<1>, Tensor<1>) {
    const NAME: &str = "batch_norm";
    check_nonzero(NAME, "x", &x.dims());
    check_affine(NAME, &x, [("gamma", &gamma), ("beta", &beta)], residual.as_ref());
    check_dtype(NAME, "x", x.dtype(), gamma.dtype());
    if let Some(residual) = &residual {
        check_dtype(NAME, "the residual", residual.dtype(), gamma.dtype());
    }
    assert!(epsilon >= 0.0 && epsilon.is_finite(), "{NAME}: epsilon is {epsilon}; it must be finite and not negative");
    assert!(
        sync.is_none() || accelerates(&x) && x.dtype() == DType::F32,
        "{NAME}: the optimized operations do not support {:?} on {:?}, and no others synchronize",
        x.dtype(),
        x.device()
    );
    let flags = EpilogueFlags { relu, ..EpilogueFlags::default() };
    let (y, mean, variance) = <Dispatch as BatchNorm>::fused_batch_norm(
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        optional(residual),
        epsilon,
        flags,
        sync.cloned(),
    );
    (Tensor::from_dispatch(y), Tensor::from_dispatch(mean), Tensor::from_dispatch(variance))
}

/// Sums each element over the tensors of all processes; the gradient is summed likewise. All processes call it equally
/// often and in the same order. Works on every backend, through host memory.
pub fn all_reduce_sum(x: Tensor<1>, sum: &AllReduce) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as AllReduceSum>::all_reduce_sum(x.into_dispatch(), sum.clone()))
}

/// Scales and shifts each channel: `relu(x · scale + shift + residual)`, which is batch normalization in evaluation.
///
/// # Shapes
///
/// - x, residual and output: `[n, c, h, w]`
/// - scale and shift: `[c]`
///
/// # Panics
///
/// If the shapes or data types do not match (x and the residual may be bf16 activations).
pub fn channel_affine(
    x: Tensor<4>,
    [scale, shift]: [Tensor<1>; 2],
    residual: Option<Tensor<4>>,
    relu: bool,
) -> Tensor<4> {
    const NAME: &str = "channel_affine";
    check_affine(NAME, &x, [("the scale", &scale), ("the shift", &shift)], residual.as_ref());
    let flags = EpilogueFlags { relu, ..EpilogueFlags::default() };
    Tensor::from_dispatch(<Dispatch as BatchNorm>::channel_affine(
        x.into_dispatch(),
        scale.into_dispatch(),
        shift.into_dispatch(),
        optional(residual),
        flags,
    ))
}

fn check_affine(name: &str, x: &Tensor<4>, vectors: [(&str, &Tensor<1>); 2], residual: Option<&Tensor<4>>) {
    let [_, c, _, _] = x.dims();
    let dtype = vectors[0].1.dtype();
    for (what, vector) in vectors {
        check_shape(name, what, vector.dims(), [c]);
        check_dtype(name, what, vector.dtype(), dtype);
    }
    check_activation(name, "x", x.dtype(), dtype);
    if let Some(residual) = residual {
        check_shape(name, "the residual", residual.dims(), x.dims());
        check_activation(name, "the residual", residual.dtype(), dtype);
    }
}

/// Returns `x` as `N` branches, whose gradients are accumulated in one buffer: Burn would add up the gradients of `N` uses
/// of a tensor in passes of their own. A branch that does not reach the loss contributes nothing, as with a clone.
pub fn fan_out<const N: usize>(x: Tensor<4>) -> [Tensor<4>; N] {
    let accumulator = GradAccumulator::default();
    let root = <Dispatch as FanOut>::fan_out_root(x.into_dispatch(), accumulator.clone());
    std::array::from_fn(|_| {
        Tensor::from_dispatch(<Dispatch as FanOut>::fan_out_branch(root.clone(), accumulator.clone()))
    })
}

/// Computes gradients by backpropagating `gradient` from `output`: those of `(output * gradient).sum().backward()`, without
/// the tensors of the output's size that the product, the sum and their backward passes allocate.
///
/// # Panics
///
/// If the shapes or data types differ, or the output is not part of an autodiff graph.
pub fn backward_from<const D: usize>(output: Tensor<D>, gradient: Tensor<D>) -> Gradients {
    const NAME: &str = "backward_from";
    check_shape(NAME, "the gradient", gradient.dims(), output.dims());
    check_dtype(NAME, "the gradient", gradient.dtype(), output.dtype());
    assert!(output.is_tracked(), "{NAME}: the output is not part of an autodiff graph");
    let gradient = Tensor::from_inner(gradient);
    let seed = <Dispatch as SeedGradient>::seed_gradient(output.into_dispatch(), gradient.into_dispatch());
    Tensor::<1>::from_dispatch(seed).backward()
}

/// Applies 2D max pooling. NaN is larger than any number.
///
/// # Shapes
///
/// - x: `[n, c, h, w]`
/// - output: `[n, c, h', w']`
///
/// # Panics
///
/// If a size of x other than the batch size, of the kernel or of the stride is zero, the padding is not smaller than the
/// kernel, or the kernel does not fit into the padded input.
pub fn max_pool2d(x: Tensor<4>, pool: Pool2d) -> Tensor<4> {
    check_pool("max_pool2d", x.dims(), &pool);
    Tensor::from_dispatch(<Dispatch as Pooling2d>::fused_max_pool2d(x.into_dispatch(), pool))
}

/// Applies 2D average pooling.
///
/// # Shapes
///
/// - x: `[n, c, h, w]`
/// - output: `[n, c, h', w']`
///
/// # Panics
///
/// If a size of x other than the batch size, of the kernel or of the stride is zero, the padding is not smaller than the
/// kernel, or the kernel does not fit into the padded input.
pub fn avg_pool2d(x: Tensor<4>, pool: Pool2d) -> Tensor<4> {
    check_pool("avg_pool2d", x.dims(), &pool);
    Tensor::from_dispatch(<Dispatch as Pooling2d>::fused_avg_pool2d(x.into_dispatch(), pool))
}

fn check_pool(name: &str, shape: [usize; 4], pool: &Pool2d) {
    let [n, c, h, w] = shape;
    check_nonzero(name, "x", &shape[1..]);
    check_nonzero(name, "the kernel", &pool.kernel);
    check_nonzero(name, "the stride", &pool.stride);
    assert!(
        pool.padding[0] < pool.kernel[0] && pool.padding[1] < pool.kernel[1],
        "{name}: a padding of {:?} is not smaller than the kernel of {:?}, so windows would be empty",
        pool.padding,
        pool.kernel
    );
    let Some([height, width]) = pool.output_size([h, w]) else {
        panic!("{name}: a kernel of {:?} does not fit into an input of [{h}, {w}] with {pool:?}", pool.kernel)
    };
    check_elements(name, &[n, c, height, width]);
}

/// Averages over `size` nearly equal windows.
///
/// # Shapes
///
/// - x: `[n, c, h, w]`
/// - output: `[n, c, size[0], size[1]]`
///
/// # Panics
///
/// If a size of x other than the batch size, or of the output, is zero.
pub fn adaptive_avg_pool2d(x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    const NAME: &str = "adaptive_avg_pool2d";
    let shape @ [n, c, h, w] = x.dims();
    check_nonzero(NAME, "x", &shape[1..]);
    check_nonzero(NAME, "the output", &size);
    check_elements(NAME, &[n, c, size[0], size[1]]);
    // The borders of the windows are `index · input / output`.
    check_elements(NAME, &[size[0], h]);
    check_elements(NAME, &[size[1], w]);
    Tensor::from_dispatch(<Dispatch as Pooling2d>::fused_adaptive_avg_pool2d(x.into_dispatch(), size))
}

/// Applies local response normalization across channels.
///
/// # Shapes
///
/// - x and output: `[n, c, h, w]`
///
/// # Panics
///
/// If the window has no channels, or a parameter is not finite.
pub fn local_response_norm(x: Tensor<4>, norm: LocalResponseNorm) -> Tensor<4> {
    const NAME: &str = "local_response_norm";
    assert!(norm.size > 0, "{NAME}: the window has no channels");
    check_elements(NAME, &[norm.size, 64]);
    for (what, value) in [("alpha", norm.alpha), ("beta", norm.beta), ("k", norm.k)] {
        assert!(value.is_finite(), "{NAME}: {what} is {value}; it must be finite");
    }
    Tensor::from_dispatch(<Dispatch as LocalResponseNormalization>::local_response_norm(x.into_dispatch(), norm))
}

/// Concatenates tensors along their channels.
///
/// # Shapes
///
/// - tensors: `[n, c_i, h, w]`
/// - output: `[n, Σ c_i, h, w]`
///
/// # Panics
///
/// If there are no tensors, or if their shapes differ in more than the channels or their data types differ (some may be
/// bf16 activations beside f32).
pub fn cat(tensors: impl IntoIterator<Item = Tensor<4>>) -> Tensor<4> {
    const NAME: &str = "cat";
    let tensors: Vec<Tensor<4>> = tensors.into_iter().collect();
    let Some(first) = tensors.first() else { panic!("{NAME}: there are no tensors") };
    let [n, _, h, w] = first.dims();
    let dtype = tensors.iter().map(|x| x.dtype()).find(|&dtype| dtype != DType::BF16).unwrap_or(DType::BF16);
    for (index, x) in tensors.iter().enumerate() {
        let shape @ [_, c, _, _] = x.dims();
        check_shape(NAME, &format!("tensor {index}"), shape, [n, c, h, w]);
        check_activation(NAME, &format!("tensor {index}"), x.dtype(), dtype);
    }
    let mut tensors: Vec<_> = tensors.into_iter().map(Tensor::into_dispatch).collect();
    loop {
        let rest = tensors.split_off(tensors.len().min(TensorList::<Dispatch>::CAPACITY));
        let Some(some) = TensorList::new(tensors) else { unreachable!("their number was checked") };
        let joined = <Dispatch as Cat>::concat_channels(some);
        if rest.is_empty() {
            return Tensor::from_dispatch(joined);
        }
        tensors = std::iter::once(joined).chain(rest).collect();
    }
}

/// Applies a linear layer: `x · weight + bias`.
///
/// # Shapes
///
/// - x: `[n, d_in]`
/// - weight: `[d_in, d_out]`
/// - bias: `[d_out]`
/// - output: `[n, d_out]`
///
/// # Panics
///
/// If the shapes or data types do not match.
pub fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>, precision: Precision) -> Tensor<2> {
    const NAME: &str = "linear";
    let ([n, d_in], [inputs, d_out]) = (x.dims(), weight.dims());
    assert!(d_in == inputs, "{NAME}: x has {d_in} columns, but the weight has {inputs} rows");
    check_elements(NAME, &[n, d_out]);
    check_dtype(NAME, "x", x.dtype(), weight.dtype());
    if let Some(bias) = &bias {
        check_shape(NAME, "the bias", bias.dims(), [d_out]);
        check_dtype(NAME, "the bias", bias.dtype(), weight.dtype());
    }
    let flags = EpilogueFlags { keep_weights: true, bf16: precision != Precision::F32, ..EpilogueFlags::default() };
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(<Dispatch as LinearLayer>::fused_linear(x, weight, optional(bias), flags))
}

/// Returns the cross entropy of each row with soft targets: `−Σ targets · log softmax(logits)`. No gradient flows to the
/// targets.
///
/// # Shapes
///
/// - logits and targets: `[n, classes]`
/// - output: `[n]`
///
/// # Panics
///
/// If the shapes or data types do not match, or there are no classes.
pub fn cross_entropy(logits: Tensor<2>, targets: Tensor<2>) -> Tensor<1> {
    const NAME: &str = "cross_entropy";
    let [_, classes] = logits.dims();
    check_shape(NAME, "the targets", targets.dims(), logits.dims());
    check_dtype(NAME, "the targets", targets.dtype(), logits.dtype());
    check_nonzero(NAME, "the classes", &[classes]);
    Tensor::from_dispatch(<Dispatch as CrossEntropy>::cross_entropy(logits.into_dispatch(), targets.into_dispatch()))
}

/// Takes a step of stochastic gradient descent and returns the parameter and, with momentum, its velocity. Both are updated
/// in place where no other tensor shares their memory. No gradient flows through it.
///
/// # Panics
///
/// If the shapes or data types do not match.
pub fn sgd_step<const D: usize>(
    param: Tensor<D>,
    gradient: Tensor<D>,
    velocity: Option<Tensor<D>>,
    sgd: Sgd,
) -> (Tensor<D>, Option<Tensor<D>>) {
    const NAME: &str = "sgd_step";
    let others = [("the gradient", Some(&gradient)), ("the velocity", velocity.as_ref())];
    for (what, other) in others {
        if let Some(other) = other {
            check_shape(NAME, what, other.dims(), param.dims());
            check_dtype(NAME, what, other.dtype(), param.dtype());
        }
    }
    let (param, velocity) =
        <Dispatch as SgdStep>::sgd_step(param.into_dispatch(), gradient.into_dispatch(), optional(velocity), sgd);
    (Tensor::from_dispatch(param), (sgd.momentum != 0.0).then(|| Tensor::from_dispatch(velocity)))
}

#[track_caller]
fn check_shape<const D: usize>(name: &str, what: &str, found: [usize; D], expected: [usize; D]) {
    assert!(found == expected, "{name}: {what} has the shape {found:?}, expected {expected:?}");
}

#[track_caller]
fn check_nonzero(name: &str, what: &str, sizes: &[usize]) {
    assert!(sizes.iter().all(|&size| size > 0), "{name}: {what} has a size of zero: {sizes:?}");
}

/// Checks that a tensor of this shape can be addressed, so that no size computed below overflows.
#[track_caller]
fn check_elements(name: &str, shape: &[usize]) {
    const LARGEST: usize = isize::MAX as usize / 16;
    let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size.max(1)));
    assert!(
        elements.is_some_and(|elements| elements <= LARGEST),
        "{name}: {shape:?} elements exceed the address space"
    );
}

#[track_caller]
fn check_dtype(name: &str, what: &str, found: DType, expected: DType) {
    assert!(found == expected, "{name}: {what} has the type {found:?}, expected {expected:?}");
}

/// Activations may be in bf16 beside parameters in f32.
#[track_caller]
fn check_activation(name: &str, what: &str, found: DType, expected: DType) {
    let matches = found == expected || (found, expected) == (DType::BF16, DType::F32);
    assert!(matches, "{name}: {what} has the type {found:?}, expected {expected:?}");
}
