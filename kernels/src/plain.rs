//! The plain bodies of the operations, in Burn's own: what every other backend runs, and what the fast ones are tested
//! against.

use burn::{
    backend::{Backend, TensorMetadata, tensor::FloatTensor},
    tensor::{Shape, ops::ConvOptions},
};

use crate::ops::Then;

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
