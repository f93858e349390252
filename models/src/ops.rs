//! The leaf operations every network calls: convolution and linear map. One place, so that they can be counted here
//! and accelerated here.

use std::cell::Cell;

use burn::{
    module::Param,
    nn::{Linear, conv::Conv2d},
    tensor::{FloatDType, Tensor},
};

thread_local! {
    static MULTIPLY_ADDS: Cell<u64> = const { Cell::new(0) };
    static COMPUTE: Cell<Option<FloatDType>> = const { Cell::new(None) };
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
    let [_, channels_in, kernel_h, kernel_w] = conv.weight.dims();
    count(y.shape().num_elements(), channels_in * kernel_h * kernel_w);
    y
}

/// `[n, d_in]` → `[n, d_out]`.
pub(crate) fn linear(linear: &Linear, x: Tensor<2>) -> Tensor<2> {
    let [_, d_in] = x.dims();
    let y = match COMPUTE.get() {
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
        nn::LinearConfig,
        optim::GradientsParams,
        tensor::{Device, Distribution},
    };

    use super::*;

    #[test]
    fn half_precision_rounds_and_its_gradients_reach_the_weights() {
        let device = Device::flex().autodiff();
        let map = LinearConfig::new(32, 8).init(&device);
        let x = Tensor::<2>::random([4, 32], Distribution::Default, &device);
        let run = || {
            let y = linear(&map, x.clone());
            let gradients = GradientsParams::from_grads(y.clone().powf_scalar(2.0).sum().backward(), &map);
            let gradient = gradients.get::<2>(map.weight.id).expect("the weight has a gradient");
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
