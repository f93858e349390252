//! The fast implementation, on Burn's CPU backend `flex`, for `f32`; other types take the plain one.

mod conv;
mod tensor;
mod weights;

use burn::{
    backend::{
        Flex, TensorMetadata,
        flex::FlexTensor,
        ops::{FloatTensorOps, ModuleOps},
    },
    tensor::{DType, ops::ConvOptions},
};

use crate::{
    cpu::{
        memory::Buffer,
        norm::{self, Mask, Pass},
        parallel::{Shared, part, tasks},
    },
    ops::{Gradients, Kernels, Maybe, Then},
    plain,
};
use tensor::{channels_last, dims, floats, map, own_floats, vector};

/// Whether all of them are single precision.
fn single(tensors: &[&FlexTensor]) -> bool {
    tensors.iter().all(|tensor| tensor.dtype() == DType::F32)
}

/// The floats of a vector, in order.
fn values(x: &FlexTensor) -> Vec<f32> {
    floats(&x.to_contiguous()).to_vec()
}

impl Gradients for Flex {
    fn fused_conv2d_x_backward(
        x: FlexTensor,
        weight: FlexTensor,
        dy: FlexTensor,
        options: ConvOptions<2>,
    ) -> FlexTensor {
        if !single(&[&x, &weight, &dy]) {
            return Self::conv2d_x_backward(x, weight, dy, options);
        }
        conv::x_backward(&x, weight, dy, &options)
    }

    fn fused_conv2d_weight_backward(
        x: FlexTensor,
        weight: FlexTensor,
        dy: FlexTensor,
        options: ConvOptions<2>,
    ) -> FlexTensor {
        if !single(&[&x, &weight, &dy]) {
            return Self::conv2d_weight_backward(x, weight, dy, options);
        }
        conv::weight_backward(x, &weight, dy, &options)
    }

    fn masked(y: FlexTensor, dy: FlexTensor) -> FlexTensor {
        if !single(&[&y, &dy]) || y.rank() != 4 {
            return plain::masked::<Self>(y, dy);
        }
        let (y, dy) = (channels_last(y), channels_last(dy));
        let shape @ [_, c, _, _] = dims(&y);
        map(norm::pass(floats(&y), c, Pass::Relu { dy: floats(&dy) }), shape)
    }

    fn channel_sums(x: FlexTensor) -> FlexTensor {
        if !single(&[&x]) {
            return plain::channel_sums::<Self>(x);
        }
        let x = channels_last(x);
        let [_, c, _, _] = dims(&x);
        vector(&norm::channel_sums(floats(&x), c))
    }

    fn fused_batch_norm_backward(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        mean: FlexTensor,
        variance: FlexTensor,
        y: Option<FlexTensor>,
        dy: FlexTensor,
        epsilon: f64,
        then: Then,
    ) -> (FlexTensor, FlexTensor, FlexTensor, FlexTensor) {
        if !single(&[&x, &gamma, &beta, &dy]) {
            return plain::fused_batch_norm_backward::<Self>(x, gamma, beta, mean, variance, y, dy, epsilon, then);
        }
        let (x, dy) = (channels_last(x), channels_last(dy));
        let y = y.map(channels_last);
        let shape @ [n, c, h, w] = dims(&x);
        let [gamma, beta, mean, variance] = [&gamma, &beta, &mean, &variance].map(values);
        let [scale, shift] = affine(&gamma, &beta, &mean, &variance, epsilon);
        let mask = match (&y, then.relu) {
            (_, false) => Mask::None,
            (Some(y), true) => Mask::Output(floats(y)),
            (None, true) => Mask::Input(&scale, &shift),
        };
        let mut dy = dy;
        let [sums, products] = match own_floats(&mut dy) {
            Some(dy) => norm::gradient_sums(floats(&x), dy, mask, &mean),
            None => {
                let mut copy = Buffer::new(n * c * h * w);
                copy_all(floats(&dy), &mut copy);
                dy = map(copy, shape);
                let Some(own) = own_floats(&mut dy) else { unreachable!("a new tensor has one owner") };
                norm::gradient_sums(floats(&x), own, mask, &mean)
            }
        };
        // With the output's mask the sums have masked the gradient in place.
        let mask = match mask {
            Mask::Output(_) => Mask::None,
            mask => mask,
        };
        let pixels = (n * h * w) as f64;
        let mut by_input = vec![0.0; c];
        let mut constant = vec![0.0; c];
        let mut gamma_gradient = vec![0.0; c];
        for channel in 0..c {
            let deviation = (f64::from(variance[channel]) + epsilon).sqrt();
            let by_gradient = f64::from(gamma[channel]) / deviation;
            by_input[channel] = (-by_gradient * products[channel] / (deviation * deviation * pixels)) as f32;
            constant[channel] = (-by_gradient * sums[channel] / pixels) as f32;
            gamma_gradient[channel] = (products[channel] / deviation) as f32;
        }
        let beta_gradient: Vec<f32> = sums.iter().map(|&sum| sum as f32).collect();
        let pass = Pass::Backward {
            dy: floats(&dy),
            mask,
            mean: &mean,
            by_gradient: &scale,
            by_input: &by_input,
            constant: &constant,
        };
        let dx = map(norm::pass(floats(&x), c, pass), shape);
        (dx, vector(&gamma_gradient), vector(&beta_gradient), dy)
    }

    fn sum_in_place(x: FlexTensor, y: FlexTensor) -> FlexTensor {
        if !single(&[&x, &y]) || x.rank() != 4 {
            return Self::float_add(x, y);
        }
        let (mut x, y) = (channels_last(x), channels_last(y));
        if own_floats(&mut x).is_none() {
            let mut copy = Buffer::new(x.layout().num_elements());
            copy_all(floats(&x), &mut copy);
            x = map(copy, dims(&x));
        }
        let source = floats(&y);
        let Some(out) = own_floats(&mut x) else { unreachable!("a new tensor has one owner") };
        in_parts(out, |start, out| out.iter_mut().zip(&source[start..]).for_each(|(x, y)| *x += y));
        x
    }
}

impl Kernels for Flex {
    fn fused_conv2d(
        x: FlexTensor,
        weight: FlexTensor,
        scale: Maybe<Self>,
        bias: Maybe<Self>,
        residual: Maybe<Self>,
        options: ConvOptions<2>,
        then: Then,
    ) -> FlexTensor {
        let scale = scale.into_option();
        let bias = bias.into_option();
        let residual = residual.into_option();
        if !single(&[&x, &weight]) {
            return plain::fused_conv2d::<Self>(x, weight, scale, bias, residual, options, then);
        }
        conv::forward(x, weight, scale, bias, residual, &options, then)
    }

    fn fused_batch_norm(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        residual: Maybe<Self>,
        epsilon: f64,
        then: Then,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let residual = residual.into_option();
        if !single(&[&x, &gamma, &beta]) {
            return plain::fused_batch_norm::<Self>(x, gamma, beta, residual, epsilon, then);
        }
        let x = channels_last(x);
        let shape @ [_, c, _, _] = dims(&x);
        let [mean, variance] = norm::statistics(floats(&x), c);
        let [scale, shift] = affine(&values(&gamma), &values(&beta), &mean, &variance, epsilon);
        let residual = residual.map(channels_last);
        let residual = residual.as_ref().map(floats);
        let pass = Pass::Forward { scale: &scale, shift: &shift, residual, relu: then.relu };
        let y = norm::pass(floats(&x), c, pass);
        (map(y, shape), vector(&mean), vector(&variance))
    }

    fn channel_affine(
        x: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        residual: Maybe<Self>,
        then: Then,
    ) -> FlexTensor {
        let residual = residual.into_option();
        if !single(&[&x, &scale, &shift]) {
            return plain::channel_affine::<Self>(x, scale, shift, residual, then);
        }
        let x = channels_last(x);
        let shape @ [_, c, _, _] = dims(&x);
        let (scale, shift) = (values(&scale), values(&shift));
        let residual = residual.map(channels_last);
        let residual = residual.as_ref().map(floats);
        let pass = Pass::Forward { scale: &scale, shift: &shift, residual, relu: then.relu };
        map(norm::pass(floats(&x), c, pass), shape)
    }
}

/// The scale and the shift of a norm.
fn affine(gamma: &[f32], beta: &[f32], mean: &[f32], variance: &[f32], epsilon: f64) -> [Vec<f32>; 2] {
    let scale: Vec<f32> = gamma
        .iter()
        .zip(variance)
        .map(|(&gamma, &variance)| (f64::from(gamma) / (f64::from(variance) + epsilon).sqrt()) as f32)
        .collect();
    let shift = beta
        .iter()
        .zip(mean)
        .zip(&scale)
        .map(|((&beta, &mean), &scale)| (f64::from(beta) - f64::from(mean) * f64::from(scale)) as f32)
        .collect();
    [scale, shift]
}

/// Works on parts of a slice on all threads: `work(start, part)`.
fn in_parts(out: &mut [f32], work: impl Fn(usize, &mut [f32]) + Sync + Send) {
    let len = out.len();
    let parts = len.div_ceil(1 << 16).max(1);
    let shared = Shared::new(out);
    tasks(parts, |index| {
        let range = part(len, parts, index, 16);
        // SAFETY: each task has its own part.
        work(range.start, unsafe { shared.range(range) });
    });
}

fn copy_all(from: &[f32], to: &mut [f32]) {
    in_parts(to, |start, to| to.copy_from_slice(&from[start..start + to.len()]));
}
