//! The leaf operations every network calls: convolution and linear map. One place, so that they can be counted here
//! and accelerated here.

use std::cell::Cell;

use burn::{
    nn::{Linear, conv::Conv2d},
    tensor::Tensor,
};

thread_local! {
    static MULTIPLY_ADDS: Cell<u64> = const { Cell::new(0) };
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
    let y = conv.forward(x);
    let [_, channels_in, kernel_h, kernel_w] = conv.weight.dims();
    count(y.shape().num_elements(), channels_in * kernel_h * kernel_w);
    y
}

/// `[n, d_in]` → `[n, d_out]`.
pub(crate) fn linear(linear: &Linear, x: Tensor<2>) -> Tensor<2> {
    let [_, d_in] = x.dims();
    let y = linear.forward(x);
    count(y.shape().num_elements(), d_in);
    y
}
