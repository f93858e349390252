//! The fast implementation, on Burn's CPU backend `flex`, for `f32`; other types take the plain one.

mod conv;
mod tensor;
mod weights;

use ::half::bf16;
use burn::{
    backend::{
        Flex, TensorMetadata,
        flex::FlexTensor,
        ops::{FloatTensorOps, ModuleOps},
    },
    tensor::{DType, TensorData, ops::ConvOptions},
};

use crate::{
    cpu::{
        half, join,
        linear::Linear,
        loss,
        lrn::{self, Lrn},
        memory::Buffer,
        norm::{self, Mask, Pass},
        parallel::{Shared, part, tasks},
        pool::{self, Window},
        sgd,
    },
    ops::{Gradients, Kernels, LocalResponseNorm, Maps, Maybe, Pool2d, Sgd, Then},
    plain,
    shared::{self, NormSums},
};
use tensor::{
    buffer_of_halves, channels_last, dims, floats, halves, halves_mut, map, map_of_halves, own_floats, shaped, tensor,
    vector, widened,
};

/// Whether all of them are single precision.
fn single(tensors: &[&FlexTensor]) -> bool {
    tensors.iter().all(|tensor| tensor.dtype() == DType::F32)
}

/// The floats of a vector, in order.
fn values(x: &FlexTensor) -> Vec<f32> {
    floats(&x.to_contiguous()).to_vec()
}

/// A map of bf16 values as floats, where what it meets is of floats.
fn beside(x: FlexTensor, other: &FlexTensor) -> FlexTensor {
    if other.dtype() == DType::F32 { widened(x) } else { x }
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
        let NormSums { own: [sums, products], all: [all_sums, all_products], pixels } = match own_floats(&mut dy) {
            Some(dy) => shared::gradient_sums(floats(&x), dy, n, mask, &mean),
            None => {
                let mut copy = Buffer::new(n * c * h * w);
                copy_all(floats(&dy), &mut copy);
                dy = map(copy, shape);
                let Some(own) = own_floats(&mut dy) else { unreachable!("a new tensor has one owner") };
                shared::gradient_sums(floats(&x), own, n, mask, &mean)
            }
        };
        // With the output's mask the sums have masked the gradient in place.
        let mask = match mask {
            Mask::Output(_) => Mask::None,
            mask => mask,
        };
        let mut by_input = vec![0.0; c];
        let mut constant = vec![0.0; c];
        let mut gamma_gradient = vec![0.0; c];
        for channel in 0..c {
            let deviation = (f64::from(variance[channel]) + epsilon).sqrt();
            let by_gradient = f64::from(gamma[channel]) / deviation;
            by_input[channel] = (-by_gradient * all_products[channel] / (deviation * deviation * pixels)) as f32;
            constant[channel] = (-by_gradient * all_sums[channel] / pixels) as f32;
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
        let Some(out) = own_floats(&mut x) else { unreachable!("a new tensor has one owner") };
        join::add(floats(&y), out);
        x
    }

    fn max_pool2d_with_places(x: FlexTensor, pool: Pool2d) -> (FlexTensor, FlexTensor) {
        if !takes(&x, &pool) {
            return plain::max_pool2d_with_places::<Self>(x, pool);
        }
        let x = channels_last(x);
        let window = window(&x, &pool);
        let mut y = output(&window);
        let mut places = vec![0u8; y.len()];
        pool::max_pool_with_places(floats(&x), &window, &mut y, &mut places);
        let places = FlexTensor::from_data(TensorData::new(places, [y.len()]));
        (map(y, shape_of(&window)), places)
    }

    fn max_pool2d_backward(x: FlexTensor, places: FlexTensor, dy: FlexTensor, pool: Pool2d) -> FlexTensor {
        if places.dtype() != DType::U8 {
            return plain::max_pool2d_backward::<Self>(x, places, dy, pool);
        }
        let dy = channels_last(dy);
        let window = window(&x, &pool);
        let mut dx = Buffer::new(x.layout().num_elements());
        pool::max_pool_backward(floats(&dy), places.storage::<u8>(), &window, &mut dx);
        map(dx, dims(&x))
    }

    fn fused_avg_pool2d_backward(x: FlexTensor, dy: FlexTensor, pool: Pool2d) -> FlexTensor {
        if !takes(&x, &pool) || !single(&[&dy]) {
            return plain::fused_avg_pool2d_backward::<Self>(x, dy, pool);
        }
        let dy = channels_last(dy);
        let window = window(&x, &pool);
        let mut dx = Buffer::new(x.layout().num_elements());
        pool::avg_pool_backward(floats(&dy), &window, pool.count_include_pad, &mut dx);
        map(dx, dims(&x))
    }

    fn fused_adaptive_avg_pool2d_backward(x: FlexTensor, dy: FlexTensor) -> FlexTensor {
        if !single(&[&x, &dy]) {
            return Self::adaptive_avg_pool2d_backward(x, dy);
        }
        let dy = channels_last(dy);
        let shape @ [n, c, h, w] = dims(&x);
        let [_, _, height, width] = dims(&dy);
        let mut dx = Buffer::new(n * c * h * w);
        pool::adaptive_avg_pool_backward(floats(&dy), n, c, [h, w], [height, width], &mut dx);
        map(dx, shape)
    }

    fn response_norm_backward(x: FlexTensor, dy: FlexTensor, norm: LocalResponseNorm) -> FlexTensor {
        if !single(&[&x, &dy]) || norm.size.is_multiple_of(2) {
            return plain::response_norm_backward::<Self>(x, dy, norm);
        }
        let (x, dy) = (channels_last(x), channels_last(dy));
        let shape @ [_, c, _, _] = dims(&x);
        let mut dx = Buffer::new(x.layout().num_elements());
        lrn::lrn_backward(floats(&x), floats(&dy), c, &lrn_of(&norm), &mut dx);
        map(dx, shape)
    }

    fn channel_slice(x: FlexTensor, first: usize, channels: usize) -> FlexTensor {
        if !single(&[&x]) {
            return plain::channel_slice::<Self>(x, first, channels);
        }
        let x = channels_last(x);
        let [n, c, h, w] = dims(&x);
        let mut out = Buffer::new(n * channels * h * w);
        join::take(floats(&x), c, first, channels, &mut out);
        map(out, [n, channels, h, w])
    }

    fn fused_linear_x_backward(weight: FlexTensor, dy: FlexTensor) -> FlexTensor {
        if !single(&[&weight, &dy]) {
            return plain::fused_linear_x_backward::<Self>(weight, dy);
        }
        let (weight, dy) = (weight.to_contiguous(), dy.to_contiguous());
        let job = linear_of(&weight, &dy);
        let mut dx = Buffer::new(job.rows * job.inputs);
        job.x_backward(floats(&dy), floats(&weight), &mut dx);
        tensor(dx, [job.rows, job.inputs])
    }

    fn fused_linear_weight_backward(x: FlexTensor, dy: FlexTensor) -> FlexTensor {
        if !single(&[&x, &dy]) {
            return plain::fused_linear_weight_backward::<Self>(x, dy);
        }
        let (x, dy) = (x.to_contiguous(), dy.to_contiguous());
        let ([rows, inputs], [_, outputs]) = (x.layout().shape().dims(), dy.layout().shape().dims());
        let mut dw = Buffer::new(inputs * outputs);
        Linear { rows, inputs, outputs }.weight_backward(floats(&x), floats(&dy), &mut dw);
        tensor(dw, [inputs, outputs])
    }

    fn cross_entropy_backward(logits: FlexTensor, targets: FlexTensor, dy: FlexTensor) -> FlexTensor {
        if !single(&[&logits, &targets, &dy]) {
            return plain::cross_entropy_backward::<Self>(logits, targets, dy);
        }
        let [logits, targets, dy] = [logits, targets, dy].map(|tensor| tensor.to_contiguous());
        let [n, classes] = logits.layout().shape().dims();
        let mut out = Buffer::new(n * classes);
        loss::cross_entropy_backward(floats(&logits), floats(&targets), floats(&dy), &mut out);
        tensor(out, [n, classes])
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
        let mixed = weight.dtype() == DType::F32 && x.dtype() == DType::BF16;
        if !single(&[&x, &weight]) && !mixed {
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
        let shape @ [n, c, _, _] = dims(&x);
        let [mean, variance] = shared::statistics(floats(&x), n, c);
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
        let (x, residual) = (beside(x, &scale), residual.into_option().map(|residual| beside(residual, &scale)));
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

    fn fused_max_pool2d(x: FlexTensor, pool: Pool2d) -> FlexTensor {
        if x.dtype() == DType::BF16 {
            let x = channels_last(x);
            let window = window(&x, &pool);
            let shape = shape_of(&window);
            let len = shape.iter().product();
            let mut y = buffer_of_halves(len);
            pool::max_pool_of_halves(halves(&x), &window, halves_mut(&mut y, len));
            return map_of_halves(y, shape);
        }
        if !takes(&x, &pool) {
            return plain::fused_max_pool2d::<Self>(x, pool);
        }
        let x = channels_last(x);
        let window = window(&x, &pool);
        let mut y = output(&window);
        pool::max_pool(floats(&x), &window, &mut y);
        map(y, shape_of(&window))
    }

    fn fused_avg_pool2d(x: FlexTensor, pool: Pool2d) -> FlexTensor {
        let x = widened(x);
        if !takes(&x, &pool) {
            return plain::fused_avg_pool2d::<Self>(x, pool);
        }
        let x = channels_last(x);
        let window = window(&x, &pool);
        let mut y = output(&window);
        pool::avg_pool(floats(&x), &window, pool.count_include_pad, &mut y);
        map(y, shape_of(&window))
    }

    fn fused_adaptive_avg_pool2d(x: FlexTensor, size: [usize; 2]) -> FlexTensor {
        let x = widened(x);
        let [n, c, h, w] = dims(&x);
        if !single(&[&x]) {
            return Self::adaptive_avg_pool2d(x, size);
        }
        if [h, w] == size {
            return x;
        }
        let x = channels_last(x);
        let mut y = Buffer::new(n * c * size[0] * size[1]);
        pool::adaptive_avg_pool(floats(&x), n, c, [h, w], size, &mut y);
        map(y, [n, c, size[0], size[1]])
    }

    fn response_norm(x: FlexTensor, norm: LocalResponseNorm) -> FlexTensor {
        let x = widened(x);
        // An even window has its middle elsewhere in PyTorch, whose windows these are, and in Burn.
        if !single(&[&x]) || norm.size.is_multiple_of(2) {
            return plain::response_norm::<Self>(x, norm);
        }
        let x = channels_last(x);
        let shape @ [_, c, _, _] = dims(&x);
        let mut y = Buffer::new(x.layout().num_elements());
        lrn::lrn(floats(&x), c, &lrn_of(&norm), &mut y);
        map(y, shape)
    }

    fn join_channels(maps: Maps<Self>) -> FlexTensor {
        let maps = maps.into_vec();
        if maps.iter().all(|map| map.dtype() == DType::BF16) {
            let maps: Vec<FlexTensor> = maps.into_iter().map(channels_last).collect();
            let [n, _, h, w] = dims(&maps[0]);
            let parts: Vec<(&[bf16], usize)> = maps.iter().map(|map| (halves(map), dims(map)[1])).collect();
            let channels: usize = parts.iter().map(|&(_, channels)| channels).sum();
            let len = n * h * w * channels;
            let mut out = buffer_of_halves(len);
            join::join(&parts, n * h * w, halves_mut(&mut out, len));
            return map_of_halves(out, [n, channels, h, w]);
        }
        let maps: Vec<FlexTensor> = maps.into_iter().map(widened).collect();
        if !single(&maps.iter().collect::<Vec<_>>()) {
            return Self::float_cat(maps, 1);
        }
        let maps: Vec<FlexTensor> = maps.into_iter().map(channels_last).collect();
        let [n, _, h, w] = dims(&maps[0]);
        let parts: Vec<(&[f32], usize)> = maps.iter().map(|map| (floats(map), dims(map)[1])).collect();
        let channels = parts.iter().map(|&(_, channels)| channels).sum();
        let mut out = Buffer::new(n * h * w * channels);
        join::join(&parts, n * h * w, &mut out);
        map(out, [n, channels, h, w])
    }

    fn fused_linear(x: FlexTensor, weight: FlexTensor, bias: Maybe<Self>, then: Then) -> FlexTensor {
        let bias = bias.into_option();
        if !single(&[&x, &weight]) {
            return plain::fused_linear::<Self>(x, weight, bias);
        }
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        let ([rows, inputs], [_, outputs]) = (x.layout().shape().dims(), weight.layout().shape().dims());
        let bias = bias.as_ref().map(values);
        let mut y = Buffer::new(rows * outputs);
        if then.bf16 && then.keep_weights && half::is_available() && inputs > 0 && outputs > 0 {
            conv::linear_of_halves(&x, &weight, bias.as_deref(), &mut y);
            return tensor(y, [rows, outputs]);
        }
        Linear { rows, inputs, outputs }.forward(floats(&x), floats(&weight), bias.as_deref(), &mut y);
        tensor(y, [rows, outputs])
    }

    fn cross_entropy(logits: FlexTensor, targets: FlexTensor) -> FlexTensor {
        if !single(&[&logits, &targets]) {
            return plain::cross_entropy::<Self>(logits, targets);
        }
        let [logits, targets] = [logits, targets].map(|tensor| tensor.to_contiguous());
        let [n, classes] = logits.layout().shape().dims();
        let mut losses = Buffer::new(n);
        loss::cross_entropy(floats(&logits), floats(&targets), classes, &mut losses);
        tensor(losses, [n])
    }

    fn sgd_step(
        mut param: FlexTensor,
        gradient: FlexTensor,
        velocity: Maybe<Self>,
        settings: Sgd,
    ) -> (FlexTensor, FlexTensor) {
        let velocity = velocity.into_option();
        let usual = |x: &FlexTensor| single(&[x]) && x.is_contiguous();
        if !usual(&param) || !single(&[&gradient]) || velocity.as_ref().is_some_and(|velocity| !usual(velocity)) {
            return plain::sgd_step::<Self>(param, gradient, velocity, settings);
        }
        let gradient = gradient.to_contiguous();
        let started = velocity.is_some();
        let shape = param.layout().shape().clone();
        // What is shared is copied first.
        let own = |mut x: FlexTensor| {
            if own_floats(&mut x).is_none() {
                let mut copy = Buffer::new(x.layout().num_elements());
                copy_all(floats(&x), &mut copy);
                x = shaped(copy, shape.clone());
            }
            x
        };
        param = own(param);
        let mut velocity = match velocity {
            Some(velocity) => own(velocity),
            None => shaped(Buffer::new(gradient.layout().num_elements()), shape.clone()),
        };
        let (Some(values), Some(speeds)) = (own_floats(&mut param), own_floats(&mut velocity)) else {
            unreachable!("both have one owner now")
        };
        sgd::step(settings, values, floats(&gradient), speeds, started);
        (param, velocity)
    }
}

/// Whether the fast poolings take it: a place in a window is kept in a byte.
fn takes(x: &FlexTensor, pool: &Pool2d) -> bool {
    let [height, width] = pool.kernel;
    single(&[x]) && height <= 256 && width <= 256 && height * width <= 256
}

fn window(x: &FlexTensor, pool: &Pool2d) -> Window {
    let [n, channels, h, w] = dims(x);
    let output = pool.output_size([h, w]).expect("the kernel fits into the padded input");
    let Pool2d { kernel, stride, padding, .. } = *pool;
    Window { n, channels, input: [h, w], output, kernel, stride, padding }
}

fn shape_of(window: &Window) -> [usize; 4] {
    [window.n, window.channels, window.output[0], window.output[1]]
}

fn output(window: &Window) -> Buffer {
    Buffer::new(shape_of(window).iter().product())
}

fn lrn_of(norm: &LocalResponseNorm) -> Lrn {
    Lrn { size: norm.size, alpha: norm.alpha as f32, beta: norm.beta as f32, k: norm.k as f32 }
}

fn linear_of(weight: &FlexTensor, dy: &FlexTensor) -> Linear {
    let ([inputs, outputs], [rows, _]) = (weight.layout().shape().dims(), dy.layout().shape().dims());
    Linear { rows, inputs, outputs }
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
