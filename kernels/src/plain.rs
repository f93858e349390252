//! The plain bodies of the operations, in Burn's own: what every other backend runs, and what the fast ones are tested
//! against.

use burn::{
    backend::{
        Backend, Scalar, TensorMetadata,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{IntDType, Shape, Slice, ops::ConvOptions},
};

use crate::ops::{LocalResponseNorm, Pool2d, Sgd, Then};

pub(crate) fn fused_conv2d<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    scale: Option<FloatTensor<B>>,
    bias: Option<FloatTensor<B>>,
    residual: Option<FloatTensor<B>>,
    options: ConvOptions<2>,
    then: Then,
) -> FloatTensor<B> {
    let y = match scale {
        None => B::conv2d(x, weight, bias, options),
        Some(scale) => {
            let y = B::float_mul(B::conv2d(x, weight, None, options), by_channel::<B>(scale));
            match bias {
                Some(bias) => B::float_add(y, by_channel::<B>(bias)),
                None => y,
            }
        }
    };
    finish::<B>(y, residual, then)
}

pub(crate) fn fused_conv2d_x_backward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    dy: FloatTensor<B>,
    options: ConvOptions<2>,
) -> FloatTensor<B> {
    B::conv2d_x_backward(x, weight, dy, options)
}

pub(crate) fn fused_conv2d_weight_backward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    dy: FloatTensor<B>,
    options: ConvOptions<2>,
) -> FloatTensor<B> {
    B::conv2d_weight_backward(x, weight, dy, options)
}

pub(crate) fn masked<B: Backend>(y: FloatTensor<B>, dy: FloatTensor<B>) -> FloatTensor<B> {
    B::relu_backward(y, dy)
}

pub(crate) fn channel_sums<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let [n, c, h, w] = x.shape().dims();
    let x = B::float_swap_dims(x, 0, 1);
    let sums = B::float_sum_dim(B::float_reshape(x, Shape::new([c, n * h * w])), 1);
    B::float_reshape(sums, Shape::new([c]))
}

pub(crate) fn fused_batch_norm<B: Backend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    residual: Option<FloatTensor<B>>,
    epsilon: f64,
    then: Then,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let result = B::batch_norm_train(x, gamma, beta, epsilon);
    (finish::<B>(result.output, residual, then), result.mean, result.variance)
}

#[allow(clippy::too_many_arguments)] // What the forward pass kept, and the gradient.
pub(crate) fn fused_batch_norm_backward<B: Backend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    mean: FloatTensor<B>,
    variance: FloatTensor<B>,
    y: Option<FloatTensor<B>>,
    dy: FloatTensor<B>,
    epsilon: f64,
    then: Then,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let y = match (then.relu, y) {
        (false, _) => None,
        (true, Some(y)) => Some(y),
        (true, None) => {
            let (x, gamma, beta) = (x.clone(), gamma.clone(), beta);
            Some(B::batch_norm(x, gamma, beta, mean.clone(), variance.clone(), epsilon))
        }
    };
    let dy = match y {
        Some(y) => B::relu_backward(B::relu(y), dy),
        None => dy,
    };
    let gradients = B::batch_norm_train_backward(x, gamma, mean, variance, epsilon, dy.clone());
    (gradients.x_grad, gradients.gamma_grad, gradients.beta_grad, dy)
}

pub(crate) fn channel_affine<B: Backend>(
    x: FloatTensor<B>,
    scale: FloatTensor<B>,
    shift: FloatTensor<B>,
    residual: Option<FloatTensor<B>>,
    then: Then,
) -> FloatTensor<B> {
    let y = B::float_mul(x, by_channel::<B>(scale));
    finish::<B>(B::float_add(y, by_channel::<B>(shift)), residual, then)
}

pub(crate) fn sum_in_place<B: Backend>(x: FloatTensor<B>, y: FloatTensor<B>) -> FloatTensor<B> {
    B::float_add(x, y)
}

/// `[c]` → `[1, c, 1, 1]`.
pub(crate) fn by_channel<B: Backend>(values: FloatTensor<B>) -> FloatTensor<B> {
    let [channels] = values.shape().dims();
    B::float_reshape(values, Shape::new([1, channels, 1, 1]))
}

fn finish<B: Backend>(y: FloatTensor<B>, residual: Option<FloatTensor<B>>, then: Then) -> FloatTensor<B> {
    let y = match residual {
        Some(residual) => B::float_add(y, residual),
        None => y,
    };
    if then.relu { B::relu(y) } else { y }
}

pub(crate) fn fused_max_pool2d<B: Backend>(x: FloatTensor<B>, pool: Pool2d) -> FloatTensor<B> {
    B::max_pool2d(x, pool.kernel, pool.stride, pool.padding, [1, 1], pool.ceil_mode)
}

pub(crate) fn max_pool2d_with_places<B: Backend>(x: FloatTensor<B>, pool: Pool2d) -> (FloatTensor<B>, IntTensor<B>) {
    let dtype = IntDType::I64;
    let pooled = B::max_pool2d_with_indices(x, pool.kernel, pool.stride, pool.padding, [1, 1], pool.ceil_mode, dtype);
    (pooled.output, pooled.indices)
}

pub(crate) fn max_pool2d_backward<B: Backend>(
    x: FloatTensor<B>,
    places: IntTensor<B>,
    dy: FloatTensor<B>,
    pool: Pool2d,
) -> FloatTensor<B> {
    let Pool2d { kernel, stride, padding, ceil_mode, .. } = pool;
    B::max_pool2d_with_indices_backward(x, kernel, stride, padding, [1, 1], ceil_mode, dy, places).x_grad
}

pub(crate) fn fused_avg_pool2d<B: Backend>(x: FloatTensor<B>, pool: Pool2d) -> FloatTensor<B> {
    B::avg_pool2d(x, pool.kernel, pool.stride, pool.padding, pool.count_include_pad, pool.ceil_mode)
}

pub(crate) fn fused_avg_pool2d_backward<B: Backend>(
    x: FloatTensor<B>,
    dy: FloatTensor<B>,
    pool: Pool2d,
) -> FloatTensor<B> {
    B::avg_pool2d_backward(x, dy, pool.kernel, pool.stride, pool.padding, pool.count_include_pad, pool.ceil_mode)
}

pub(crate) fn response_norm<B: Backend>(x: FloatTensor<B>, norm: LocalResponseNorm) -> FloatTensor<B> {
    B::float_mul(x.clone(), B::float_powf_scalar(response_base::<B>(x, norm), Scalar::Float(-norm.beta)))
}

/// `k + alpha · mean(x²)` over the channels around each.
fn response_base<B: Backend>(x: FloatTensor<B>, norm: LocalResponseNorm) -> FloatTensor<B> {
    let means = B::float_div_scalar(window_sums::<B>(B::float_mul(x.clone(), x), norm.size, false), norm.size.into());
    B::float_add_scalar(B::float_mul_scalar(means, Scalar::Float(norm.alpha)), Scalar::Float(norm.k))
}

/// Sums over the channels from `(size − 1) / 2` before to `size / 2` after each, or, reversed, over those whose window
/// it is in.
fn window_sums<B: Backend>(x: FloatTensor<B>, size: usize, reversed: bool) -> FloatTensor<B> {
    let [n, c, h, w] = x.shape().dims();
    let device = x.device();
    let [before, after] = [(size - 1) / 2, size / 2];
    let [before, after] = if reversed { [after, before] } else { [before, after] };
    let zeros = |channels| B::float_zeros(Shape::new([n, channels, h, w]), &device, x.dtype().into());
    let padded = B::float_cat(vec![zeros(before), x.clone(), zeros(after)], 1);
    let shifted = |offset: usize| {
        let all = Slice::new(0, None, 1);
        B::float_slice(padded.clone(), &[all, Slice::new(offset as isize, Some((offset + c) as isize), 1), all, all])
    };
    (1..size).fold(shifted(0), |sum, offset| B::float_add(sum, shifted(offset)))
}

pub(crate) fn response_norm_backward<B: Backend>(
    x: FloatTensor<B>,
    dy: FloatTensor<B>,
    norm: LocalResponseNorm,
) -> FloatTensor<B> {
    let base = response_base::<B>(x.clone(), norm);
    let direct = B::float_mul(dy.clone(), B::float_powf_scalar(base.clone(), Scalar::Float(-norm.beta)));
    let through =
        B::float_mul(B::float_mul(dy, x.clone()), B::float_powf_scalar(base, Scalar::Float(-norm.beta - 1.0)));
    let through = B::float_mul(window_sums::<B>(through, norm.size, true), x);
    let factor = -2.0 * norm.alpha * norm.beta / norm.size as f64;
    B::float_add(direct, B::float_mul_scalar(through, Scalar::Float(factor)))
}

pub(crate) fn channel_slice<B: Backend>(x: FloatTensor<B>, first: usize, channels: usize) -> FloatTensor<B> {
    let all = Slice::new(0, None, 1);
    let part = Slice::new(first as isize, Some((first + channels) as isize), 1);
    B::float_slice(x, &[all, part, all, all])
}

pub(crate) fn fused_linear<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
) -> FloatTensor<B> {
    let y = B::float_matmul(x, weight);
    match bias {
        Some(bias) => {
            let [outputs] = bias.shape().dims();
            B::float_add(y, B::float_reshape(bias, Shape::new([1, outputs])))
        }
        None => y,
    }
}

pub(crate) fn fused_linear_x_backward<B: Backend>(weight: FloatTensor<B>, dy: FloatTensor<B>) -> FloatTensor<B> {
    B::float_matmul(dy, B::float_transpose(weight))
}

pub(crate) fn fused_linear_weight_backward<B: Backend>(x: FloatTensor<B>, dy: FloatTensor<B>) -> FloatTensor<B> {
    B::float_matmul(B::float_transpose(x), dy)
}

pub(crate) fn row_sums<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let [_, columns] = x.shape().dims();
    B::float_reshape(B::float_sum_dim(x, 0), Shape::new([columns]))
}

pub(crate) fn sgd_step<B: Backend>(
    param: FloatTensor<B>,
    mut gradient: FloatTensor<B>,
    velocity: Option<FloatTensor<B>>,
    sgd: Sgd,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let times = |x: FloatTensor<B>, factor: f32| B::float_mul_scalar(x, Scalar::Float(f64::from(factor)));
    if sgd.weight_decay != 0.0 {
        gradient = B::float_add(times(param.clone(), sgd.weight_decay), gradient);
    }
    let mut velocity = velocity
        .map(|velocity| B::float_add(times(gradient.clone(), 1.0 - sgd.dampening), times(velocity, sgd.momentum)));
    if sgd.momentum != 0.0 {
        let new = velocity.unwrap_or_else(|| gradient.clone());
        gradient = if sgd.nesterov { B::float_add(times(new.clone(), sgd.momentum), gradient) } else { new.clone() };
        velocity = Some(new);
    }
    let step = times(gradient.clone(), sgd.learning_rate);
    (B::float_sub(param, step), velocity.unwrap_or(gradient))
}

pub(crate) fn cross_entropy<B: Backend>(logits: FloatTensor<B>, targets: FloatTensor<B>) -> FloatTensor<B> {
    let [n, _] = logits.shape().dims();
    let products = B::float_mul(B::log_softmax(logits, 1), targets);
    B::float_neg(B::float_reshape(B::float_sum_dim(products, 1), Shape::new([n])))
}

pub(crate) fn cross_entropy_backward<B: Backend>(
    logits: FloatTensor<B>,
    targets: FloatTensor<B>,
    dy: FloatTensor<B>,
) -> FloatTensor<B> {
    let [n, _] = logits.shape().dims();
    let totals = B::float_sum_dim(targets.clone(), 1);
    let difference = B::float_sub(B::float_mul(B::softmax(logits, 1), totals), targets);
    B::float_mul(difference, B::float_reshape(dy, Shape::new([n, 1])))
}
