//! A network of one's own, made faster by calling this crate in its forward pass:
//!
//! ```text
//! cargo run -p kernels --example custom_cnn --features flex
//! ```
//!
//! The modules stay Burn's, so parameters, optimizers and records are unaffected. [`Cnn::forward`] calls the modules;
//! [`Cnn::forward_optimized`] replaces each call by one of this crate. The program checks that both give the same logits and
//! gradients, and prints the time that a training step takes with each.

use std::time::Instant;

use burn::{
    module::Module,
    nn::{
        BatchNorm, BatchNormConfig, Linear, LinearConfig, PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
        pool::{MaxPool2d, MaxPool2dConfig},
    },
    tensor::{Device, Distribution, Tensor, activation::relu, ops::ConvOptions},
};
use kernels::{Epilogue, Pool2d, Precision};

#[derive(Module, Debug)]
struct Cnn {
    conv1: Conv2d,
    bn1: BatchNorm,
    pool: MaxPool2d,
    conv2: Conv2d,
    bn2: BatchNorm,
    fc: Linear,
}

impl Cnn {
    fn new(device: &Device) -> Self {
        let conv = |channels| {
            let padding = PaddingConfig2d::Explicit(1, 1, 1, 1);
            Conv2dConfig::new(channels, [3, 3]).with_padding(padding).with_bias(false).init(device)
        };
        Self {
            conv1: conv([3, 64]),
            bn1: BatchNormConfig::new(64).init(device),
            pool: MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init(),
            conv2: conv([64, 64]),
            bn2: BatchNormConfig::new(64).init(device),
            fc: LinearConfig::new(64, 10).init(device),
        }
    }

    /// `[n, 3, h, w]` → `[n, 10]`
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let x = relu(self.bn1.forward(self.conv1.forward(images)));
        let identity = self.pool.forward(x);
        let x = relu(self.bn2.forward(self.conv2.forward(identity.clone())) + identity);
        let x: Tensor<2> = x.mean_dims(&[2, 3]).flatten(1, 3);
        self.fc.forward(x)
    }

    /// The same by this crate, where it supports the tensor.
    fn forward_optimized(&self, images: Tensor<4>) -> Tensor<2> {
        if !kernels::accelerates(&images) {
            return self.forward(images);
        }
        let x = conv_norm_relu(&self.conv1, &self.bn1, images, None);
        let pool =
            Pool2d { kernel: [2, 2], stride: [2, 2], padding: [0, 0], ceil_mode: false, count_include_pad: false };
        // Both uses of the tensor accumulate their gradients in one buffer.
        let [x, identity] = kernels::fan_out(kernels::max_pool2d(x, pool));
        let x = conv_norm_relu(&self.conv2, &self.bn2, x, Some(identity));
        let x: Tensor<2> = kernels::adaptive_avg_pool2d(x, [1, 1]).flatten(1, 3);
        let bias = self.fc.bias.as_ref().map(|bias| bias.val());
        kernels::linear(x, self.fc.weight.val(), bias, Precision::F32)
    }
}

/// `relu(norm(conv(x)) + residual)`. In evaluation this is one pass: the norm is the scale and bias of the epilogue.
fn conv_norm_relu(conv: &Conv2d, norm: &BatchNorm, x: Tensor<4>, residual: Option<Tensor<4>>) -> Tensor<4> {
    let options = ConvOptions::new(conv.stride, [1, 1], conv.dilation, conv.groups);
    let weight = conv.weight.val();
    if x.device().is_autodiff() {
        let y = kernels::conv2d(x, weight, options, Epilogue::default(), Precision::F32);
        let weights = [norm.gamma.val(), norm.beta.val()];
        let (y, mean, variance) = kernels::batch_norm(y, weights, norm.epsilon, residual, true, None);
        for (running, batch) in [(&norm.running_mean, mean), (&norm.running_var, variance)] {
            let kept = running.value_sync() * (1.0 - norm.momentum);
            running.update((kept + batch * norm.momentum).detach());
        }
        return y;
    }
    let scale = norm.gamma.val() / (norm.running_var.value() + norm.epsilon).sqrt();
    let bias = norm.beta.val() - norm.running_mean.value() * scale.clone();
    let epilogue = Epilogue { scale: Some(scale), bias: Some(bias), residual, relu: true };
    kernels::conv2d(x, weight, options, epilogue, Precision::F32)
}

/// The largest difference, relative to the largest value.
fn difference<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
    let largest = b.clone().abs().max().into_scalar::<f32>();
    (a - b).abs().max().into_scalar::<f32>() / largest
}

/// Logits and the gradient of the first convolution, and the seconds of the fastest of some steps.
fn train(cnn: &Cnn, forward: impl Fn(&Cnn, Tensor<4>) -> Tensor<2>, images: &Tensor<4>) -> (Tensor<2>, Tensor<4>, f64) {
    let step = || {
        let start = Instant::now();
        let logits = forward(cnn, images.clone());
        let gradients = logits.clone().powi_scalar(2).mean().backward();
        let seconds = start.elapsed().as_secs_f64();
        (logits, gradients, seconds)
    };
    // The first steps are slower: memory and threads are new.
    let fastest = (0..5).map(|_| step().2).fold(f64::INFINITY, f64::min);
    let (logits, gradients, _) = step();
    let gradient = cnn.conv1.weight.val().grad(&gradients).expect("the loss depends on the weight");
    (logits.inner(), gradient, fastest)
}

fn main() {
    let device = Device::flex().autodiff();
    device.seed(1);
    let images = Tensor::<4>::random([4, 3, 32, 32], Distribution::Default, &device);
    let cnn = Cnn::new(&device);

    let (expected, expected_gradient, burn) = train(&cnn, Cnn::forward, &images);
    let (logits, gradient, ours) = train(&cnn, Cnn::forward_optimized, &images);
    assert!(difference(logits, expected) < 1e-4, "the logits differ");
    assert!(difference(gradient, expected_gradient) < 1e-3, "the gradients differ");
    println!("a training step: {:.1} ms by Burn's operations, {:.1} ms by the kernels", 1e3 * burn, 1e3 * ours);

    let (cnn, images) = (cnn.valid(), images.inner());
    assert!(difference(cnn.forward_optimized(images.clone()), cnn.forward(images)) < 1e-4, "the logits differ");
    println!("inference agrees as well");
}

#[test]
fn the_kernels_agree_with_burn() {
    main();
}
