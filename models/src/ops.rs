//! The leaf operations of every network, counted here and accelerated here.
//!
//! Each computes in the type of its input. In bf16 and f16 this is mixed precision as PyTorch's `autocast` has it:
//! weights are cast to the input's type, norms compute in f32, and all activations stay in the input's type.

use std::cell::Cell;

use burn::{
    module::Param,
    nn::{BatchNorm, Linear, LocalResponseNormConfig, PaddingConfig2d, conv::Conv2d, pool::MaxPool2d},
    tensor::{
        DType, Device, FloatDType, Tensor, activation, module,
        ops::{AvgPoolOptions, ConvOptions},
    },
};
use kernels::{AllReduce, Epilogue, LocalResponseNorm, Pool2d};

use crate::execution;
pub(crate) use crate::execution::{in_type_of, is_fast, unseen};

thread_local! {
    /// A meter, which changes no result.
    static MULTIPLY_ADDS: Cell<u64> = const { Cell::new(0) };
}

/// A parameter's value in `dtype`; gradients flow back to the parameter in the parameter's own type.
pub(crate) fn value<const D: usize>(param: &Param<Tensor<D>>, dtype: DType) -> Tensor<D> {
    param.val().cast(dtype)
}

/// Has `work` compute in f32 at least; returns its result in the type of `x`.
pub(crate) fn in_f32<const D: usize>(x: Tensor<D>, work: impl FnOnce(Tensor<D>) -> Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        dtype @ (DType::F16 | DType::BF16) => work(x.cast(FloatDType::F32)).cast(dtype),
        _ => work(x),
    }
}

/// The multiply-adds of the convolutions and linear layers that this thread has run so far.
///
/// The difference of two readings is the cost of what ran between them. Biases, norms, activations and pooling are not
/// counted, as is the custom of the field (torchvision's `_ops`, fvcore).
pub(crate) fn multiply_adds() -> u64 {
    MULTIPLY_ADDS.get()
}

fn count(output_elements: usize, fan_in: usize) {
    MULTIPLY_ADDS.set(MULTIPLY_ADDS.get() + output_elements as u64 * fan_in as u64);
}

/// `[n, c_in, h, w]` → `[n, c_out, h', w']`.
pub(crate) fn conv2d(conv: &Conv2d, x: Tensor<4>) -> Tensor<4> {
    if is_fast(&x)
        && let Some(padding) = pads(conv)
    {
        return fast_conv2d(conv, padding, x, Epilogue::default());
    }
    let dtype = x.dtype();
    let typed = Conv2d {
        weight: Param::initialized(conv.weight.id, value(&conv.weight, dtype)),
        bias: conv.bias.as_ref().map(|bias| Param::initialized(bias.id, value(bias, dtype))),
        padding: conv.padding.clone(),
        ..*conv
    };
    let y = typed.forward(x);
    count_conv2d(conv, &y);
    y
}

fn count_conv2d(conv: &Conv2d, y: &Tensor<4>) {
    let [_, channels_in, kernel_h, kernel_w] = conv.weight.dims();
    count(y.shape().num_elements(), channels_in * kernel_h * kernel_w);
}

/// Zeros before and after each axis, where they do not follow from the size of the input.
fn pads(conv: &Conv2d) -> Option<[(usize, usize); 2]> {
    match conv.padding {
        PaddingConfig2d::Valid => Some([(0, 0); 2]),
        PaddingConfig2d::Explicit(top, left, bottom, right) => Some([(top, bottom), (left, right)]),
        _ => None,
    }
}

fn fast_conv2d(conv: &Conv2d, padding: [(usize, usize); 2], x: Tensor<4>, mut epilogue: Epilogue) -> Tensor<4> {
    let options = ConvOptions::new_with_padding(conv.stride, padding, conv.dilation, conv.groups);
    // In the order in which Burn's module draws them.
    let (weight, bias) = (conv.weight.val(), conv.bias.as_ref().map(|bias| bias.val()));
    epilogue.bias = match (bias, epilogue.bias, &epilogue.scale) {
        (Some(bias), Some(shift), Some(scale)) => Some(bias * scale.clone() + shift),
        (bias, shift, _) => bias.or(shift),
    };
    let y = kernels::conv2d(x, weight, options, epilogue, execution::conv2d_precision());
    count_conv2d(conv, &y);
    y
}

/// Operations after a convolution, in this order: normalization, residual sum, ReLU.
#[derive(Debug, Default)]
pub(crate) struct PostOps<'a> {
    pub norm: Option<&'a BatchNorm>,
    /// As the output.
    pub residual: Option<Tensor<4>>,
    pub relu: bool,
}

/// `relu(norm(conv(x)) + residual)`: `[n, c_in, h, w]` → `[n, c_out, h', w']`.
pub(crate) fn conv2d_with(conv: &Conv2d, x: Tensor<4>, ops: PostOps<'_>) -> Tensor<4> {
    let Some(padding) = pads(conv).filter(|_| is_fast(&x)) else {
        return post_ops(conv2d(conv, x), ops);
    };
    let PostOps { norm, residual, relu } = ops;
    match norm {
        None => fast_conv2d(conv, padding, x, Epilogue { residual, relu, ..Epilogue::default() }),
        Some(norm) if !x.device().is_autodiff() => {
            let [scale, shift] = affine(norm, &x.device());
            fast_conv2d(conv, padding, x, Epilogue { scale: Some(scale), bias: Some(shift), residual, relu })
        }
        norm => post_ops(conv2d(conv, x), PostOps { norm, residual, relu }),
    }
}

/// `relu(norm(x) + residual)`: `[n, c, h, w]` → `[n, c, h, w]`.
pub(crate) fn post_ops(x: Tensor<4>, ops: PostOps<'_>) -> Tensor<4> {
    let PostOps { norm, residual, relu } = ops;
    if !is_fast(&x) {
        // Moved from step to step, so that backends may work in place.
        let x = match norm {
            Some(norm) => in_f32(x, |x| batch_norm(norm, x)),
            None => x,
        };
        let x = match residual {
            Some(residual) => x + residual,
            None => x,
        };
        return if relu { activation::relu(x) } else { x };
    }
    let device = x.device();
    match norm {
        Some(norm) if device.is_autodiff() && norm.training.is_enabled() => {
            let weights = [norm.gamma.val(), norm.beta.val()];
            let sync = execution::all_reduce();
            let (y, mean, variance) = kernels::batch_norm(x, weights, norm.epsilon, residual, relu, sync.as_ref());
            keep_statistics(norm, mean, variance);
            y
        }
        Some(norm) => kernels::channel_affine(x, affine(norm, &device), residual, relu),
        None if residual.is_none() && !relu => x,
        None => {
            let [_, channels, _, _] = x.dims();
            let unit = [Tensor::ones([channels], &device), Tensor::zeros([channels], &device)];
            kernels::channel_affine(x, unit, residual, relu)
        }
    }
}

/// A norm of ordinary operations.
fn batch_norm(norm: &BatchNorm, x: Tensor<4>) -> Tensor<4> {
    if !x.device().is_autodiff() || !norm.training.is_enabled() {
        return norm.forward(x);
    }
    if let Some(sum) = execution::all_reduce() {
        return synchronized(norm, x, &sum);
    }
    let normalized = module::batch_norm_train(x, norm.gamma.val(), norm.beta.val(), norm.epsilon);
    keep_statistics(norm, normalized.mean, normalized.variance);
    normalized.output
}

/// Blends a batch's statistics `[c]` into the running ones, as Burn's module does. A momentum of 0 keeps those.
fn keep_statistics(norm: &BatchNorm, mean: Tensor<1>, variance: Tensor<1>) {
    if norm.momentum == 0.0 {
        return;
    }
    let blend = |old: Tensor<1>, new: Tensor<1>| {
        old.to_device(&new.device()).mul_scalar(1.0 - norm.momentum).add(new.mul_scalar(norm.momentum)).detach()
    };
    norm.running_mean.update(blend(norm.running_mean.value_sync(), mean));
    norm.running_var.update(blend(norm.running_var.value_sync(), variance));
}

/// A norm in training by the statistics of all processes' images, of ordinary operations.
fn synchronized(norm: &BatchNorm, x: Tensor<4>, sum: &AllReduce) -> Tensor<4> {
    let [n, c, h, w] = x.dims();
    let sums = |x: Tensor<4>| -> Tensor<1> { x.sum_dims(&[0, 2, 3]).reshape([c]) };
    let along = |x: Tensor<1>| -> Tensor<4> { x.reshape([1, c, 1, 1]) };
    let own_pixels = Tensor::from_floats([(n * h * w) as f32], &x.device());
    let shared = kernels::all_reduce_sum(Tensor::cat(vec![sums(x.clone()), own_pixels], 0), sum);
    let pixels = shared.clone().narrow(0, c, 1).detach();
    let mean = shared.narrow(0, 0, c) / pixels.clone();
    let centred = x - along(mean.clone());
    let variance = kernels::all_reduce_sum(sums(centred.clone().square()), sum) / pixels;
    keep_statistics(norm, mean.detach(), variance.clone().detach());
    let scale = norm.gamma.val() / variance.add_scalar(norm.epsilon).sqrt();
    centred * along(scale) + along(norm.beta.val())
}

/// A norm in evaluation as `x · scale + shift`, both `[c]`.
fn affine(norm: &BatchNorm, device: &Device) -> [Tensor<1>; 2] {
    let deviation = norm.running_var.value().to_device(device).add_scalar(norm.epsilon).sqrt();
    let scale = norm.gamma.val() / deviation;
    let shift = norm.beta.val() - norm.running_mean.value().to_device(device) * scale.clone();
    [scale, shift]
}

/// `x` for `N` branches that join again; their gradients meet in one sum.
pub(crate) fn fan_out<const N: usize>(x: Tensor<4>) -> [Tensor<4>; N] {
    if is_fast(&x) && x.device().is_autodiff() { kernels::fan_out(x) } else { std::array::from_fn(|_| x.clone()) }
}

/// `[n, c, h, w]` → `[n, c, h', w']`.
pub(crate) fn max_pool2d(pool: &MaxPool2d, x: Tensor<4>) -> Tensor<4> {
    match pool.padding {
        PaddingConfig2d::Valid if is_fast(&x) => fast_max_pool2d(pool, [0, 0], x),
        PaddingConfig2d::Explicit(top, left, bottom, right) if is_fast(&x) && top == bottom && left == right => {
            fast_max_pool2d(pool, [top, left], x)
        }
        _ => pool.forward(x),
    }
}

fn fast_max_pool2d(pool: &MaxPool2d, padding: [usize; 2], x: Tensor<4>) -> Tensor<4> {
    if pool.dilation != [1, 1] {
        return pool.forward(x);
    }
    let (kernel, stride, ceil_mode) = (pool.kernel_size, pool.stride, pool.ceil_mode);
    kernels::max_pool2d(x, Pool2d { kernel, stride, padding, ceil_mode, count_include_pad: false })
}

/// `[n, c, h, w]` → `[n, c, h', w']`.
pub(crate) fn avg_pool2d(x: Tensor<4>, options: AvgPoolOptions<2>) -> Tensor<4> {
    let [(top, bottom), (left, right)] = options.padding;
    if !is_fast(&x) || top != bottom || left != right {
        return module::avg_pool2d(x, options);
    }
    let pool = Pool2d {
        kernel: options.kernel_size,
        stride: options.stride,
        padding: [top, left],
        ceil_mode: options.ceil_mode,
        count_include_pad: options.count_include_pad,
    };
    kernels::avg_pool2d(x, pool)
}

/// `[n, c, h, w]` → `[n, c, size…]`.
pub(crate) fn adaptive_avg_pool2d(x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    if is_fast(&x) { kernels::adaptive_avg_pool2d(x, size) } else { module::adaptive_avg_pool2d(x, size) }
}

/// `[n, c, h, w]` → `[n, c, h, w]`.
pub(crate) fn local_response_norm(norm: &LocalResponseNormConfig, x: Tensor<4>) -> Tensor<4> {
    if !is_fast(&x) {
        return in_f32(x, |x| norm.init().forward(x));
    }
    let LocalResponseNormConfig { size, alpha, beta, k } = *norm;
    kernels::local_response_norm(x, LocalResponseNorm { size, alpha, beta, k })
}

/// Joins maps along their channels.
pub(crate) fn cat<const N: usize>(maps: [Tensor<4>; N]) -> Tensor<4> {
    if N <= 6 && maps.iter().all(is_fast) { kernels::cat(maps) } else { Tensor::cat(maps.to_vec(), 1) }
}

/// `[n, d_in]` → `[n, d_out]`.
pub(crate) fn linear(linear: &Linear, x: Tensor<2>) -> Tensor<2> {
    let [_, d_in] = x.dims();
    let y = if is_fast(&x) {
        // In the order in which Burn's module draws them.
        let (weight, bias) = (linear.weight.val(), linear.bias.as_ref().map(|bias| bias.val()));
        kernels::linear(x, weight, bias, execution::linear_precision())
    } else {
        let weight = value(&linear.weight, x.dtype());
        let bias = linear.bias.as_ref().map(|bias| value(bias, x.dtype()));
        module::linear(x, weight, bias)
    };
    count(y.shape().num_elements(), d_in);
    y
}

/// The last linear layer of a classifier: logits leave in f32 whatever the network computes in. `[n, d_in]` →
/// `[n, classes]`.
pub(crate) fn logits(classifier: &Linear, x: Tensor<2>) -> Tensor<2> {
    linear(classifier, x).cast(FloatDType::F32)
}

#[cfg(test)]
mod tests {
    use burn::{
        nn::conv::Conv2dConfig,
        optim::GradientsParams,
        tensor::{Device, Distribution},
    };

    use super::*;

    #[test]
    fn a_convolution_computes_in_the_type_of_its_input_and_its_weights_gradient_is_f32() {
        let device = Device::flex().autodiff();
        let conv = Conv2dConfig::new([32, 8], [1, 1]).init(&device);
        let x = Tensor::<4>::random([4, 32, 1, 1], Distribution::Default, &device);
        let run = |dtype: FloatDType| {
            let y = conv2d(&conv, x.clone().cast(dtype));
            assert_eq!(y.dtype(), dtype.into());
            let gradients = GradientsParams::from_grads(y.clone().square().sum().backward(), &conv);
            let gradient = gradients.get::<4>(conv.weight.id).expect("the weight has a gradient");
            assert_eq!(gradient.dtype(), DType::F32);
            [y.into_data(), gradient.into_data()].map(|data| data.iter::<f32>().collect::<Vec<_>>())
        };
        let exact = run(FloatDType::F32);
        for dtype in [FloatDType::BF16, FloatDType::F16] {
            for (exact, rounded) in exact.iter().zip(&run(dtype)) {
                let largest = exact.iter().fold(0f32, |largest, value| largest.max(value.abs()));
                let difference = exact.iter().zip(rounded).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
                assert!(difference > 0.0 && difference < 0.02 * largest, "{dtype:?}: {difference} of {largest}");
            }
        }
    }
}
