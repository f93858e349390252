//! The leaf operations every network calls: convolution and linear map. One place, so that they can be counted here
//! and accelerated here.

use std::cell::Cell;

use burn::{
    module::Param,
    nn::{BatchNorm, Linear, LocalResponseNormConfig, PaddingConfig2d, conv::Conv2d, pool::MaxPool2d},
    tensor::{
        Device, FloatDType, Tensor, activation, module,
        ops::{AvgPoolOptions, ConvOptions},
    },
};
use kernels::{Epilogue, LocalResponseNorm, Pool2d, Precision};

thread_local! {
    static MULTIPLY_ADDS: Cell<u64> = const { Cell::new(0) };
    static COMPUTE: Cell<Option<FloatDType>> = const { Cell::new(None) };
    static UNSEEN: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` with the convolutions and linear maps of this thread computed in `dtype`, between casts of their inputs
/// and weights to it and of their outputs back; weights, norms, activations and gradients stay what they are. This is
/// mixed precision as PyTorch's `autocast` has it.
pub fn with_compute_dtype<T>(dtype: FloatDType, work: impl FnOnce() -> T) -> T {
    struct Reset(Option<FloatDType>);
    impl Drop for Reset {
        fn drop(&mut self) {
            COMPUTE.set(self.0);
        }
    }
    let _reset = Reset(COMPUTE.replace(Some(dtype)));
    work()
}

/// Runs `work`, whose maps nobody else sees: in bf16 they may be of such values, where the operations are faster so.
pub(crate) fn unseen<T>(work: impl FnOnce() -> T) -> T {
    struct Reset(bool);
    impl Drop for Reset {
        fn drop(&mut self) {
            UNSEEN.set(self.0);
        }
    }
    let _reset = Reset(UNSEEN.replace(true));
    work()
}

/// A parameter's value in another type, in place of the parameter; gradients flow back to it.
fn cast<const D: usize>(param: &Param<Tensor<D>>, dtype: FloatDType) -> Param<Tensor<D>> {
    Param::initialized(param.id, param.val().cast(dtype))
}

/// The multiply-adds of the convolutions and linear maps that this thread has run so far.
///
/// The difference of two readings is the cost of what ran between them; biases, norms, activations and pooling are
/// not counted, as is the custom of the field (torchvision's `_ops`, fvcore).
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
    let y = match COMPUTE.get() {
        None => conv.forward(x),
        Some(dtype) => {
            let own: FloatDType = x.dtype().into();
            let mut conv = conv.clone();
            conv.weight = cast(&conv.weight, dtype);
            conv.bias = conv.bias.as_ref().map(|bias| cast(bias, dtype));
            conv.forward(x.cast(dtype)).cast(own)
        }
    };
    count_conv2d(conv, &y);
    y
}

fn count_conv2d(conv: &Conv2d, y: &Tensor<4>) {
    let [_, channels_in, kernel_h, kernel_w] = conv.weight.dims();
    count(y.shape().num_elements(), channels_in * kernel_h * kernel_w);
}

/// Whether the operations of `kernels` take this tensor.
pub(crate) fn is_fast<const D: usize>(x: &Tensor<D>) -> bool {
    let takes_dtype = match COMPUTE.get() {
        None => true,
        Some(dtype) => dtype == FloatDType::BF16 && kernels::has_bf16_dot(),
    };
    takes_dtype && kernels::accelerates(x)
}

/// Whether products may round what they multiply to bf16.
fn in_bf16() -> bool {
    COMPUTE.get() == Some(FloatDType::BF16)
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
    let precision = match in_bf16() {
        true if UNSEEN.get() => Precision::Bf16Activations,
        true => Precision::Bf16,
        false => Precision::F32,
    };
    let y = kernels::conv2d(x, weight, options, epilogue, precision);
    count_conv2d(conv, &y);
    y
}

/// What a convolution does before the next: normalises, adds a shortcut, takes the ReLU.
#[derive(Default)]
pub(crate) struct Then<'a> {
    pub norm: Option<&'a BatchNorm>,
    /// As the output.
    pub residual: Option<Tensor<4>>,
    pub relu: bool,
}

/// `relu(norm(conv(x)) + residual)`: `[n, c_in, h, w]` → `[n, c_out, h', w']`.
pub(crate) fn conv2d_then(conv: &Conv2d, x: Tensor<4>, then: Then<'_>) -> Tensor<4> {
    let Some(padding) = pads(conv).filter(|_| is_fast(&x)) else {
        return self::then(conv2d(conv, x), then);
    };
    let Then { norm, residual, relu } = then;
    match norm {
        None => fast_conv2d(conv, padding, x, Epilogue { residual, relu, ..Epilogue::default() }),
        Some(norm) if !x.device().is_autodiff() => {
            let [scale, shift] = affine(norm, &x.device());
            fast_conv2d(conv, padding, x, Epilogue { scale: Some(scale), bias: Some(shift), residual, relu })
        }
        norm => self::then(conv2d(conv, x), Then { norm, residual, relu }),
    }
}

/// `relu(norm(x) + residual)`: `[n, c, h, w]` → `[n, c, h, w]`.
pub(crate) fn then(x: Tensor<4>, then: Then<'_>) -> Tensor<4> {
    let Then { norm, residual, relu } = then;
    if !is_fast(&x) {
        // Moved from step to step, so that backends may work in place.
        let trains = |norm: &BatchNorm| x.device().is_autodiff() && norm.training.is_enabled();
        let x = match norm {
            Some(norm) if kernels::sync_batch_norm() && trains(norm) => synchronised(norm, x),
            Some(norm) => norm.forward(x),
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
            let (y, mean, variance) = kernels::batch_norm(x, weights, norm.epsilon, residual, relu);
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

/// Blends a batch's statistics `[c]` into the running ones, as Burn's module does.
fn keep_statistics(norm: &BatchNorm, mean: Tensor<1>, variance: Tensor<1>) {
    let blend = |old: Tensor<1>, new: Tensor<1>| {
        old.to_device(&new.device()).mul_scalar(1.0 - norm.momentum).add(new.mul_scalar(norm.momentum)).detach()
    };
    norm.running_mean.update(blend(norm.running_mean.value_sync(), mean));
    norm.running_var.update(blend(norm.running_var.value_sync(), variance));
}

/// A norm in training by the statistics of all processes' images, of ordinary operations.
fn synchronised(norm: &BatchNorm, x: Tensor<4>) -> Tensor<4> {
    let [n, c, h, w] = x.dims();
    let sums = |x: Tensor<4>| -> Tensor<1> { x.sum_dims(&[0, 2, 3]).reshape([c]) };
    let along = |x: Tensor<1>| -> Tensor<4> { x.reshape([1, c, 1, 1]) };
    let own_pixels = Tensor::from_floats([(n * h * w) as f32], &x.device());
    let shared = kernels::all_reduce_sum(Tensor::cat(vec![sums(x.clone()), own_pixels], 0));
    let pixels = shared.clone().narrow(0, c, 1).detach();
    let mean = shared.narrow(0, 0, c) / pixels.clone();
    let centred = x - along(mean.clone());
    let variance = kernels::all_reduce_sum(sums(centred.clone().square())) / pixels;
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
pub(crate) fn fork<const N: usize>(x: Tensor<4>) -> [Tensor<4>; N] {
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
        return norm.init().forward(x);
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
    let y = match COMPUTE.get() {
        _ if is_fast(&x) => {
            // In the order in which Burn's module draws them.
            let (weight, bias) = (linear.weight.val(), linear.bias.as_ref().map(|bias| bias.val()));
            kernels::linear(x, weight, bias, if in_bf16() { Precision::Bf16 } else { Precision::F32 })
        }
        None => linear.forward(x),
        Some(dtype) => {
            let own: FloatDType = x.dtype().into();
            let mut linear = linear.clone();
            linear.weight = cast(&linear.weight, dtype);
            linear.bias = linear.bias.as_ref().map(|bias| cast(bias, dtype));
            linear.forward(x.cast(dtype)).cast(own)
        }
    };
    count(y.shape().num_elements(), d_in);
    y
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
    fn half_precision_rounds_and_its_gradients_reach_the_weights() {
        let device = Device::flex().autodiff();
        let map = Conv2dConfig::new([32, 8], [1, 1]).init(&device);
        let x = Tensor::<4>::random([4, 32, 1, 1], Distribution::Default, &device);
        let run = || {
            let y = conv2d(&map, x.clone());
            let gradients = GradientsParams::from_grads(y.clone().powf_scalar(2.0).sum().backward(), &map);
            let gradient = gradients.get::<4>(map.weight.id).expect("the weight has a gradient");
            [y.into_data(), gradient.into_data()].map(|data| data.iter::<f32>().collect::<Vec<_>>())
        };
        let whole = run();
        let half = with_compute_dtype(FloatDType::BF16, run);
        for (whole, half) in whole.iter().zip(&half) {
            let largest = whole.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            let difference = whole.iter().zip(half).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(difference > 0.0 && difference < 0.02 * largest, "{difference} of {largest}");
        }
        assert_eq!(run(), whole, "only inside");
    }
}
