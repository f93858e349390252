//! Every operation against its plain body in Burn's own operations, computed in doubles: outputs and all gradients, over
//! random shapes.

use burn::{
    nn::LocalResponseNormConfig,
    tensor::{
        DType, Device, Gradients, Tensor, TensorData,
        activation::{log_softmax, relu},
        module,
        ops::{AvgPoolOptions, ConvOptions, MaxPoolOptions},
    },
};
use kernels::{Epilogue, LocalResponseNorm, Pool2d, Precision};
use proptest::prelude::*;

/// Of the largest value.
const BOUND: f32 = 5e-6;
/// The same where Winograd's transforms round besides; `winograd_keeps_its_bound` compares those with doubles.
const WINOGRAD: f32 = 5e-5;

fn device() -> Device {
    Device::flex().autodiff()
}

fn random<const D: usize>(shape: [usize; D], seed: u64) -> Tensor<D> {
    // Spread, so that seeds that differ in a bit have nothing in common.
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = std::iter::repeat_with(next).skip(8).take(shape.iter().product()).collect();
    Tensor::from_data(TensorData::new(values, shape), &device()).require_grad()
}

/// The same values as doubles, which the plain bodies compute with: what differs is then the kernels' rounding alone.
fn doubles<const D: usize>(x: &Tensor<D>) -> Tensor<D> {
    Tensor::from_data(x.to_data().convert::<f64>(), (&device(), DType::F64)).require_grad()
}

/// Their squares. A sum of products of squares is that of its terms' squares: its root is what the sum comes to where terms
/// do not happen to cancel, and rounding goes by that.
fn squares<const D: usize>(x: &Tensor<D>) -> Tensor<D> {
    Tensor::from_inner(doubles(x).inner().square()).require_grad()
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0f32, |largest, value| largest.max(value.abs()))
}

fn floats<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}

#[track_caller]
fn close(fast: &[f32], plain: &[f32], bound: f32, least: f32, what: &str) {
    assert_eq!(fast.len(), plain.len(), "{what}");
    let largest = largest(plain).max(least);
    let difference = fast.iter().zip(plain).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(difference <= bound * largest, "{what}: off by {difference} of {largest}");
}

/// How a comparison is made.
#[derive(Clone, Copy)]
struct Check {
    /// Of the largest value.
    bound: f32,
    /// The largest value counts as this at the least.
    least: f32,
    /// The plain body sums products of inputs: the largest value counts as the root of `squares`' sums at the least.
    sums: bool,
    /// The operation ends in a ReLU, which the plain body leaves out: outputs that rounding may put on either side of
    /// zero get no gradient.
    relu: bool,
}

const CHECK: Check = Check { bound: BOUND, least: 5e-2, sums: false, relu: false };
const SUMS: Check = Check { sums: true, ..CHECK };

/// Compares the output and the gradients of all `inputs` under the same random gradient of the output.
#[track_caller]
fn compare<const D: usize, const E: usize>(
    inputs: &[Tensor<D>],
    vectors: &[Tensor<1>],
    check: Check,
    fast: impl Fn(&[Tensor<D>], &[Tensor<1>]) -> Tensor<E>,
    plain: impl Fn(&[Tensor<D>], &[Tensor<1>]) -> Tensor<E>,
) {
    let results = |y: Tensor<E>, direction: &Tensor<E>, inputs: &[Tensor<D>], vectors: &[Tensor<1>]| {
        let gradients = (y.clone() * direction.clone().cast(y.dtype())).sum().backward();
        let mut all = vec![floats(y)];
        all.extend(inputs.iter().map(|x| floats(x.grad(&gradients).expect("a gradient of each input"))));
        all.extend(vectors.iter().map(|x| floats(x.grad(&gradients).expect("a gradient of each vector"))));
        all
    };
    let exact_inputs: Vec<_> = inputs.iter().map(doubles).collect();
    let exact_vectors: Vec<_> = vectors.iter().map(doubles).collect();
    let mut y = plain(&exact_inputs, &exact_vectors);
    let mut direction = random(y.dims(), 99).inner();
    if check.relu {
        direction = direction.mask_fill(y.clone().inner().abs().lower_elem(1e-4), 0.0);
        y = relu(y);
    }
    let direction = Tensor::from_inner(direction);
    let mut leasts = vec![check.least; 1 + inputs.len() + vectors.len()];
    if check.sums {
        let (inputs, vectors): (Vec<_>, Vec<_>) =
            (inputs.iter().map(squares).collect(), vectors.iter().map(squares).collect());
        let sums = results(plain(&inputs, &vectors), &direction.clone().square(), &inputs, &vectors);
        leasts.iter_mut().zip(&sums).for_each(|(least, sums)| *least = least.max(largest(sums).sqrt()));
    }
    let exact = results(y, &direction, &exact_inputs, &exact_vectors);
    let fast = results(fast(inputs, vectors), &direction, inputs, vectors);
    for (index, ((fast, exact), least)) in fast.iter().zip(&exact).zip(leasts).enumerate() {
        let what = ["output", "first gradient", "second gradient", "third gradient"][index.min(3)];
        close(fast, exact, check.bound, least, what);
    }
}

fn plus(y: Tensor<4>, residual: Option<Tensor<4>>) -> Tensor<4> {
    match residual {
        Some(residual) => y + residual,
        None => y,
    }
}

#[derive(Debug, Clone)]
struct Conv {
    n: usize,
    channels: [usize; 2],
    groups: usize,
    size: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [(usize, usize); 2],
    dilation: [usize; 2],
    bias: bool,
    residual: bool,
    relu: bool,
    seed: u64,
}

fn conv() -> impl Strategy<Value = Conv> {
    let kernel = prop_oneof![Just([1, 1]), Just([3, 3]), Just([5, 5]), Just([7, 7]), Just([1, 7]), Just([3, 1])];
    let sizes = (1usize..4, 1usize..40, 1usize..40, prop_oneof![4 => Just(1usize), 1 => 2usize..5]);
    let window = (kernel, [1usize..4, 1usize..4], [0usize..4, 0usize..4, 0usize..4, 0usize..4], [1usize..3, 1usize..3]);
    (sizes, window, [1usize..24, 1usize..24], any::<[bool; 3]>(), any::<u64>()).prop_map(
        |((n, c_in, c_out, groups), (kernel, stride, pads, dilation), size, [bias, residual, relu], seed)| {
            let padding = [(pads[0], pads[1]), (pads[2], pads[3])];
            // As large as the kernel at the least.
            let reach = |axis: usize| dilation[axis] * (kernel[axis] - 1) + 1;
            let size = [size[0].max(reach(0)), size[1].max(reach(1))];
            let channels = [c_in.div_ceil(groups) * groups, c_out.div_ceil(groups) * groups];
            Conv { n, channels, groups, size, kernel, stride, padding, dilation, bias, residual, relu, seed }
        },
    )
}

fn check_conv(conv: &Conv, bound: f32) {
    let Conv { n, channels: [c_in, c_out], groups, size: [h, w], kernel: [kh, kw], .. } = *conv;
    let options = ConvOptions::new_with_padding(conv.stride, conv.padding, conv.dilation, groups);
    let x = random([n, c_in, h, w], conv.seed);
    let weight = random([c_out, c_in / groups, kh, kw], conv.seed ^ 1);
    let mut inputs = vec![x.clone(), weight.clone()];
    let y = module::conv2d(x, weight, None, options.clone()).dims();
    if conv.residual {
        inputs.push(random(y, conv.seed ^ 2));
    }
    let vectors: Vec<_> = conv.bias.then(|| random([c_out], conv.seed ^ 3)).into_iter().collect();
    compare(
        &inputs,
        &vectors,
        Check { bound, relu: conv.relu, ..SUMS },
        |inputs, vectors| {
            let epilogue = Epilogue {
                scale: None,
                bias: vectors.first().cloned(),
                residual: inputs.get(2).cloned(),
                relu: conv.relu,
            };
            kernels::conv2d(inputs[0].clone(), inputs[1].clone(), options.clone(), epilogue, Precision::F32)
        },
        |inputs, vectors| {
            let y = module::conv2d(inputs[0].clone(), inputs[1].clone(), vectors.first().cloned(), options.clone());
            plus(y, inputs.get(2).cloned())
        },
    );
    // In evaluation, with a scale, and again with the weights that were kept.
    let scale = random([c_out], conv.seed ^ 4).inner() + 2.0;
    let evaluate = |inputs: Vec<Tensor<4>>, scale: Tensor<1>| {
        let y = module::conv2d(inputs[0].clone(), inputs[1].clone(), None, options.clone());
        plus(y * scale.cast(DType::F64).reshape([1, c_out, 1, 1]), inputs.get(2).cloned())
    };
    let expected = evaluate(inputs.iter().map(|x| doubles(x).inner()).collect(), scale.clone());
    let expected = floats(if conv.relu { relu(expected) } else { expected });
    let sums = evaluate(inputs.iter().map(|x| squares(x).inner()).collect(), scale.clone().square());
    let least = largest(&floats(sums)).sqrt();
    let inputs: Vec<Tensor<4>> = inputs.into_iter().map(|x| x.inner()).collect();
    for _ in 0..2 {
        let epilogue =
            Epilogue { scale: Some(scale.clone()), bias: None, residual: inputs.get(2).cloned(), relu: conv.relu };
        let y = kernels::conv2d(inputs[0].clone(), inputs[1].clone(), options.clone(), epilogue, Precision::F32);
        close(&floats(y), &expected, bound, least, "evaluation");
    }
}

#[derive(Debug, Clone)]
struct Window {
    shape: [usize; 4],
    pool: Pool2d,
    seed: u64,
}

fn window() -> impl Strategy<Value = Window> {
    let shape = [1usize..4, 1usize..40, 3usize..20, 3usize..20];
    (shape, [1usize..4, 1usize..4], [1usize..4, 1usize..4], [0usize..2, 0usize..2], any::<[bool; 2]>(), any::<u64>())
        .prop_map(|(shape, kernel, stride, padding, [ceil_mode, count_include_pad], seed)| {
            let padding = [padding[0].min(kernel[0] / 2), padding[1].min(kernel[1] / 2)];
            Window { shape, pool: Pool2d { kernel, stride, padding, ceil_mode, count_include_pad }, seed }
        })
}

/// For norms: values of either sign around 1 in each channel, or so `narrow` that epsilon is most of the variance. Values that
/// chance brought close together would tell of their own rounding, which grows with the square of how steep they are.
fn spread([n, c, h, w]: [usize; 4], seed: u64, narrow: bool) -> Tensor<4> {
    let x = random([n, c, h, w], seed).detach();
    let sign =
        |index: usize| if (index / (c * h * w) + index / w % h + index % w).is_multiple_of(2) { 3.0 } else { -3.0 };
    let signs = TensorData::new((0..n * c * h * w).map(sign).collect::<Vec<f32>>(), [n, c, h, w]);
    let x = if narrow { x * 0.01 } else { x + Tensor::from_data(signs, &device()) + 1.0 };
    x.detach().require_grad()
}

fn norm(channels: usize, seed: u64) -> [Tensor<1>; 2] {
    [random([channels], seed), random([channels], seed ^ 5)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn convolutions(conv in conv()) {
        let winograd = conv.kernel == [3, 3] && conv.stride == [1, 1] && conv.dilation == [1, 1];
        check_conv(&conv, if winograd { WINOGRAD } else { BOUND });
    }

    #[test]
    fn norms_of_a_batch(
        shape in [1usize..4, 1usize..40, 1usize..12, 1usize..12], narrow: bool, with_residual: bool,
        with_relu: bool, seed: u64
    ) {
        let [n, c, h, w] = shape;
        let mut inputs = vec![spread(shape, seed, narrow)];
        if with_residual {
            inputs.push(random(shape, seed ^ 2));
        }
        // Gradients of inputs are differences of terms as large as the steepest channel makes them, those of weights sums
        // over a channel's values.
        let (variance, _) = inputs[0].clone().detach().swap_dims(0, 1).reshape([c as i32, -1]).var_mean_bias(1);
        let steepest = floats(variance.add_scalar(1e-3).sqrt().recip()).into_iter().fold(1f32, f32::max);
        let least = CHECK.least * steepest.max(((n * h * w) as f32).sqrt());
        compare(
            &inputs, &norm(c, seed), Check { least, relu: with_relu, ..CHECK },
            |x, v| {
                let weights = [v[0].clone(), v[1].clone()];
                kernels::batch_norm(x[0].clone(), weights, 1e-3, x.get(1).cloned(), with_relu, None).0
            },
            |x, v| {
                let result = module::batch_norm_train(x[0].clone(), v[0].clone(), v[1].clone(), 1e-3);
                plus(result.output, x.get(1).cloned())
            },
        );
    }

    #[test]
    fn norms_in_evaluation(
        shape in [1usize..4, 1usize..40, 1usize..12, 1usize..12], with_residual: bool, with_relu: bool, seed: u64
    ) {
        let [_, c, ..] = shape;
        let mut inputs = vec![random(shape, seed)];
        if with_residual {
            inputs.push(random(shape, seed ^ 2));
        }
        compare(
            &inputs, &norm(c, seed), Check { relu: with_relu, ..SUMS },
            |x, v| {
                let affine = [v[0].clone(), v[1].clone()];
                kernels::channel_affine(x[0].clone(), affine, x.get(1).cloned(), with_relu)
            },
            |x, v| {
                let [scale, shift] = [0, 1].map(|i: usize| v[i].clone().reshape([1, c, 1, 1]));
                plus(x[0].clone() * scale + shift, x.get(1).cloned())
            },
        );
    }

    #[test]
    fn poolings(window in window()) {
        let Window { shape, pool, seed } = window;
        let inputs = [random(shape, seed)];
        compare(
            &inputs, &[], CHECK,
            |x, _| kernels::max_pool2d(x[0].clone(), pool),
            |x, _| {
                let options = MaxPoolOptions::new(pool.kernel)
                    .with_stride(pool.stride)
                    .with_padding(pool.padding)
                    .with_ceil_mode(pool.ceil_mode);
                module::max_pool2d(x[0].clone(), options)
            },
        );
        if !pool.ceil_mode {
            let options = AvgPoolOptions::new(pool.kernel)
                .with_stride(pool.stride)
                .with_padding(pool.padding)
                .with_count_include_pad(pool.count_include_pad);
            compare(
                &inputs, &[], CHECK,
                |x, _| kernels::avg_pool2d(x[0].clone(), pool),
                |x, _| module::avg_pool2d(x[0].clone(), options.clone()),
            );
        }
    }

    #[test]
    fn adaptive_averages(
        shape in [1usize..4, 1usize..40, 1usize..12, 1usize..12], size in [1usize..8, 1usize..8], seed: u64
    ) {
        let size = [size[0].min(shape[2]), size[1].min(shape[3])];
        compare(
            &[random(shape, seed)], &[], CHECK,
            |x, _| kernels::adaptive_avg_pool2d(x[0].clone(), size),
            |x, _| module::adaptive_avg_pool2d(x[0].clone(), size),
        );
    }

    #[test]
    fn response_norms(shape in [1usize..3, 1usize..40, 1usize..6, 1usize..6], size in 1usize..7, seed: u64) {
        let norm = LocalResponseNormConfig::new(size).with_alpha(0.5).with_beta(0.75);
        let own = LocalResponseNorm { size, alpha: 0.5, beta: 0.75, k: norm.k };
        let module = norm.init();
        compare(
            &[random(shape, seed)], &[], CHECK,
            |x, _| kernels::local_response_norm(x[0].clone(), own),
            |x, _| module.forward(x[0].clone()),
        );
    }

    #[test]
    fn joins_and_forks(
        shape in [1usize..4, 1usize..20, 1usize..8, 1usize..8], others in prop::collection::vec(1usize..20, 0..5),
        seed: u64
    ) {
        let [n, _, h, w] = shape;
        let mut inputs = vec![random(shape, seed)];
        inputs.extend(others.iter().map(|&c| random([n, c, h, w], seed ^ c as u64)));
        compare(
            &inputs, &[], CHECK,
            |x, _| kernels::cat(x.to_vec()),
            |x, _| Tensor::cat(x.to_vec(), 1),
        );
        compare(
            &inputs[..1], &[], CHECK,
            |x, _| {
                let [a, b, c] = kernels::fan_out(x[0].clone());
                a * 2.0 + b.powi_scalar(2) - c
            },
            |x, _| x[0].clone() * 2.0 + x[0].clone().powi_scalar(2) - x[0].clone(),
        );
    }

    #[test]
    fn cross_entropies(rows in 1usize..20, classes in 1usize..90, scale in 0f32..30.0, seed: u64) {
        let logits = (random([rows, classes], seed) * scale).detach().require_grad();
        let targets = random([rows, classes], seed ^ 1).inner().abs();
        let check = Check { least: 1.0, ..CHECK };
        compare(
            &[logits], &[], check,
            |x, _| kernels::cross_entropy(x[0].clone(), Tensor::from_inner(targets.clone())),
            |x, _| {
                let targets = Tensor::from_inner(targets.clone().cast(DType::F64));
                -(log_softmax(x[0].clone(), 1) * targets).sum_dim(1).squeeze_dim::<1>(1)
            },
        );
    }

    #[test]
    fn linear_maps(rows in 1usize..20, d in [1usize..90, 1usize..90], with_bias: bool, seed: u64) {
        let inputs = [random([rows, d[0]], seed), random(d, seed ^ 1)];
        let bias: Vec<_> = with_bias.then(|| random([d[1]], seed ^ 3)).into_iter().collect();
        compare(
            &inputs, &bias, SUMS,
            |x, b| kernels::linear(x[0].clone(), x[1].clone(), b.first().cloned(), Precision::F32),
            |x, b| module::linear(x[0].clone(), x[1].clone(), b.first().cloned()),
        );
    }
}

/// Linear layers as wide as the networks' last ones.
#[test]
fn linear_maps_of_the_networks() {
    for (rows, d) in [(1, [64, 1000]), (2, [64, 1000]), (8, [300, 700]), (14, [512, 1000]), (20, [100, 1030])] {
        let inputs = [random([rows, d[0]], 3), random(d, 4)];
        compare(
            &inputs,
            &[random([d[1]], 5)],
            SUMS,
            |x, b| kernels::linear(x[0].clone(), x[1].clone(), b.first().cloned(), Precision::F32),
            |x, b| module::linear(x[0].clone(), x[1].clone(), b.first().cloned()),
        );
    }
}

/// Products of bf16 values, against doubles that were rounded to bf16 before: products are then exact, and only the sums
/// round.
fn check_bf16(conv: &Conv) {
    let Conv { n, channels: [c_in, c_out], size: [h, w], kernel: [kh, kw], .. } = *conv;
    let options = ConvOptions::new_with_padding(conv.stride, conv.padding, conv.dilation, 1);
    let (x, weight) =
        (random([n, c_in, h, w], conv.seed).inner(), random([c_out, c_in, kh, kw], conv.seed ^ 1).inner());
    let bias = random([c_out], conv.seed ^ 3).inner();
    let rounded = |x: &Tensor<4>| x.clone().cast(DType::BF16).cast(DType::F64);
    let evaluate = |x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>| {
        module::conv2d(x, weight, None, options.clone()) + bias.cast(DType::F64).reshape([1, c_out, 1, 1])
    };
    let exact = evaluate(rounded(&x), rounded(&weight), bias.clone());
    let sums = evaluate(rounded(&x).square(), rounded(&weight).square(), bias.clone().square());
    let least = largest(&floats(sums)).sqrt();
    let residual = conv.residual.then(|| random(exact.dims(), conv.seed ^ 2).inner());
    let run = |x: &Tensor<4>, residual: Option<Tensor<4>>, precision| {
        let epilogue = Epilogue { scale: None, bias: Some(bias.clone()), residual, relu: conv.relu };
        kernels::conv2d(x.clone(), weight.clone(), options.clone(), epilogue, precision)
    };
    let expected = |residual: Option<&Tensor<4>>| {
        let exact = plus(exact.clone(), residual.map(|residual| residual.clone().cast(DType::F64)));
        floats(if conv.relu { relu(exact) } else { exact })
    };
    for _ in 0..2 {
        close(&floats(run(&x, residual.clone(), Precision::Bf16)), &expected(residual.as_ref()), BOUND, least, "bf16");
    }
    if kernels::has_bf16_activations() {
        let (x, residual) = (x.cast(DType::BF16), residual.map(|residual| residual.cast(DType::BF16)));
        let expected = expected(residual.as_ref());
        close(&floats(run(&x, residual.clone(), Precision::Bf16)), &expected, BOUND, least, "of a map of bf16");
        let y = run(&x, residual, Precision::Bf16Activations);
        assert_eq!(y.dtype(), DType::BF16);
        // Each value is rounded once, by at most half a unit in the last place.
        let rounding = BOUND * largest(&expected).max(least);
        for (y, exact) in floats(y).into_iter().zip(&expected) {
            assert!((y - exact).abs() <= rounding + exact.abs() / 256.0, "a map of bf16: {y} for {exact}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn convolutions_in_bf16(mut conv in conv()) {
        conv.groups = 1;
        // Winograd's products, over larger maps, stay in single precision, except where AMX is the faster way.
        let winograd = conv.kernel == [3, 3] && conv.stride == [1, 1] && conv.dilation == [1, 1];
        let winograd = winograd && !kernels::has_bf16_activations();
        if kernels::has_bf16_dot() && !winograd {
            check_bf16(&conv);
        }
    }

    #[test]
    fn linear_maps_in_bf16(rows in 1usize..20, d in [1usize..90, 1usize..90], seed: u64) {
        if kernels::has_bf16_dot() {
            let (x, weight, bias) = (random([rows, d[0]], seed), random(d, seed ^ 1), random([d[1]], seed ^ 3));
            let (x, weight, bias) = (x.inner(), weight.inner(), bias.inner());
            let rounded = |x: &Tensor<2>| x.clone().cast(DType::BF16).cast(DType::F64);
            let evaluate = |x: Tensor<2>, weight, bias: Tensor<1>| x.matmul(weight) + bias.cast(DType::F64).unsqueeze();
            let exact = evaluate(rounded(&x), rounded(&weight), bias.clone());
            let sums = evaluate(rounded(&x).square(), rounded(&weight).square(), bias.clone().square());
            let y = kernels::linear(x, weight, Some(bias), Precision::Bf16);
            close(&floats(y), &floats(exact), BOUND, largest(&floats(sums)).sqrt(), "bf16");
        }
    }
}

/// Maps of bf16 values through everything that is not a convolution: as if they were floats.
#[test]
fn maps_of_bf16_are_taken_as_floats() {
    if !kernels::has_bf16_activations() {
        eprintln!("skipped: this processor has no AMX");
        return;
    }
    for channels in [1, 3, 16, 40, 96] {
        let [x, other] = [1, 2].map(|seed| random([2, channels, 9, 7], seed).inner().cast(DType::BF16));
        let pool = Pool2d { kernel: [3, 2], stride: [2, 1], padding: [1, 0], ceil_mode: true, count_include_pad: true };
        let affine = [3, 4].map(|seed| random([channels], seed).inner());
        let norm = LocalResponseNorm { size: 5, alpha: 1.0, beta: 0.75, k: 1.0 };
        type Operation<'a> = (&'a str, &'a dyn Fn(Tensor<4>, Tensor<4>) -> Tensor<4>);
        let operations: [Operation<'_>; 7] = [
            ("max", &|x, _| kernels::max_pool2d(x, pool)),
            ("average", &|x, _| kernels::avg_pool2d(x, Pool2d { ceil_mode: false, ..pool })),
            ("adaptive average", &|x, _| kernels::adaptive_avg_pool2d(x, [2, 3])),
            ("its own size", &|x, _| kernels::adaptive_avg_pool2d(x, [9, 7])),
            ("response norm", &|x, _| kernels::local_response_norm(x, norm)),
            ("affine", &|x, other| kernels::channel_affine(x, affine.clone(), Some(other), true)),
            ("join", &|x, other| kernels::cat([x, other])),
        ];
        for (what, operation) in operations {
            let y = operation(x.clone(), other.clone());
            let wide = operation(x.clone().cast(DType::F32), other.clone().cast(DType::F32));
            assert_eq!(y.dims(), wide.dims(), "{what} of {channels}");
            assert_eq!(floats(y), floats(wide), "{what} of {channels}");
            let mixed = operation(x.clone(), other.clone().cast(DType::F32));
            assert_eq!(floats(mixed), floats(operation(x.clone(), other.clone())), "{what} of {channels}, mixed");
        }
    }
}

/// Says so where the bf16 tests above had nothing to test.
#[test]
fn bf16_of_the_networks() {
    if !kernels::has_bf16_dot() {
        eprintln!("skipped: this processor has no AVX512-BF16");
        return;
    }
    let conv = |n, channels, size, kernel, stride, pad| Conv {
        n,
        channels,
        groups: 1,
        size: [size, size],
        kernel: [kernel, kernel],
        stride: [stride, stride],
        padding: [(pad, pad); 2],
        dilation: [1, 1],
        bias: true,
        residual: true,
        relu: true,
        seed: 7,
    };
    for case in [
        conv(2, [3, 64], 40, 7, 2, 3),
        conv(1, [3, 64], 67, 11, 4, 2),
        conv(2, [64, 128], 15, 3, 2, 1),
        conv(2, [512, 96], 9, 1, 1, 0),
        conv(1, [512, 512], 7, 3, 1, 1),
        conv(1, [2048, 64], 9, 1, 2, 0),
        conv(8, [64, 32], 29, 1, 1, 0),
    ] {
        check_bf16(&case);
    }
}

/// Large enough that Winograd is chosen, in each of its ways, and the other special paths too.
#[test]
fn convolutions_of_the_networks() {
    let conv = |n, channels, size, kernel, stride, pad, groups| Conv {
        n,
        channels,
        groups,
        size: [size, size],
        kernel: [kernel, kernel],
        stride: [stride, stride],
        padding: [(pad, pad); 2],
        dilation: [1, 1],
        bias: true,
        residual: true,
        relu: true,
        seed: 7,
    };
    for (case, bound) in [
        (conv(2, [3, 64], 40, 7, 2, 3, 1), BOUND),
        (conv(1, [3, 64], 67, 11, 4, 2, 1), BOUND),
        (conv(2, [64, 64], 30, 3, 1, 1, 1), WINOGRAD),
        (conv(1, [96, 208], 14, 3, 1, 1, 1), WINOGRAD),
        (conv(4, [256, 256], 14, 3, 1, 1, 1), WINOGRAD),
        (conv(1, [512, 512], 7, 3, 1, 1, 1), WINOGRAD),
        (conv(2, [64, 128], 15, 3, 2, 1, 1), BOUND),
        (conv(2, [512, 96], 9, 1, 1, 0, 1), BOUND),
        (conv(1, [1024, 64], 9, 1, 2, 0, 1), BOUND),
        (conv(1, [128, 128], 12, 3, 1, 1, 32), BOUND),
        (conv(1, [24, 24], 12, 3, 1, 1, 24), BOUND),
        (conv(8, [64, 32], 29, 1, 1, 0, 1), BOUND),
    ] {
        check_conv(&case, bound);
    }
}

/// Winograd's result against sums in double precision: within 8e-6 of the largest output, where the plain sum in single
/// precision keeps within 2e-6.
#[test]
fn winograd_keeps_its_bound() {
    for (channels, size) in [(32, 20), (128, 14), (512, 8)] {
        let x = random([1, channels, size, size], 3).inner();
        let weight = random([32, channels, 3, 3], 4).inner();
        let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
        let y = floats(kernels::conv2d(x.clone(), weight.clone(), options, Epilogue::default(), Precision::F32));
        let (x, weight) = (floats(x), floats(weight));
        let mut exact = vec![0f64; 32 * size * size];
        for (index, sum) in exact.iter_mut().enumerate() {
            let (o, y, x_at) = (index / (size * size), index / size % size, index % size);
            for c in 0..channels {
                for tap in 0..9 {
                    let (row, column) = (y + tap / 3, x_at + tap % 3);
                    if (1..=size).contains(&row) && (1..=size).contains(&column) {
                        let value = x[(c * size + row - 1) * size + column - 1];
                        *sum += f64::from(value) * f64::from(weight[(o * channels + c) * 9 + tap]);
                    }
                }
            }
        }
        let largest = exact.iter().fold(0f64, |largest, value| largest.max(value.abs()));
        let difference = y.iter().zip(&exact).fold(0f64, |most, (&a, b)| most.max((f64::from(a) - b).abs()));
        assert!(difference <= 8e-6 * largest, "{channels} channels: off by {difference} of {largest}");
    }
}

/// What is kept of weights follows them: changed weights, in place or not, are seen.
#[test]
fn kept_weights_follow_the_weights() {
    let device = Device::flex();
    let x = Tensor::<4>::ones([1, 16, 8, 8], &device);
    let options = ConvOptions::new([1, 1], [0, 0], [1, 1], 1);
    let mut weight = Tensor::<4>::ones([16, 16, 1, 1], &device);
    for round in 0..4 {
        let expected = 16.0 * 2f32.powi(round);
        let y = kernels::conv2d(x.clone(), weight.clone(), options.clone(), Epilogue::default(), Precision::F32);
        assert!(floats(y).iter().all(|&value| value == expected), "round {round}");
        weight = weight * 2.0;
    }
}

/// The same bits from run to run, and other layouts of the input in memory change nothing.
#[test]
fn the_same_bits() {
    let x = random([2, 64, 14, 14], 1).inner();
    let weight = random([64, 64, 3, 3], 2).inner();
    let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
    let run =
        |x: Tensor<4>| floats(kernels::conv2d(x, weight.clone(), options.clone(), Epilogue::default(), Precision::F32));
    let first = run(x.clone());
    assert_eq!(first, run(x.clone()));
    let turned = x.clone().permute([0, 2, 3, 1]);
    let data: TensorData = turned.into_data();
    let again = Tensor::<4>::from_data(data, &Device::flex()).permute([0, 3, 1, 2]);
    assert_eq!(first, run(again));
}

/// An image's result is the same, bit for bit, alone and among others.
#[test]
fn results_do_not_depend_on_the_batch() {
    for [c_in, c_out, size, kernel] in
        [[64, 64, 14, 3], [512, 512, 7, 3], [96, 208, 14, 3], [256, 64, 14, 1], [3, 64, 40, 7]]
    {
        let x = random([20, c_in, size, size], 1).inner();
        let weight = random([c_out, c_in, kernel, kernel], 2).inner();
        let options = ConvOptions::new([1, 1], [kernel / 2, kernel / 2], [1, 1], 1);
        let run = |x: Tensor<4>| {
            floats(kernels::conv2d(x, weight.clone(), options.clone(), Epilogue::default(), Precision::F32))
        };
        let all = run(x.clone());
        let one = run(x.slice([7..8, 0..c_in, 0..size, 0..size]));
        assert_eq!(one, all[7 * one.len()..8 * one.len()], "{c_in} → {c_out}, {kernel} × {kernel}");
    }
    let x = random([40, 500], 3).inner();
    let weight = random([500, 70], 4).inner();
    let all = floats(kernels::linear(x.clone(), weight.clone(), None, Precision::F32));
    let one = floats(kernels::linear(x.slice([7..8, 0..500]), weight, None, Precision::F32));
    assert_eq!(one, all[7 * 70..8 * 70]);
}

/// Branches that do not reach the loss, or reach it twice, and nested ones.
#[test]
fn any_subset_of_branches_gives_the_gradient_of_clones() {
    type Loss<'a> = &'a dyn Fn([Tensor<4>; 3]) -> Tensor<1>;
    let losses: [Loss<'_>; 5] = [
        &|[a, _, c]| (a * 2.0 + c.powi_scalar(2)).sum(),
        &|[_, b, _]| b.powi_scalar(3).sum(),
        &|[a, b, c]| (a.detach() * b.clone() + c * b).sum(),
        &|[a, b, _]| {
            let [d, e] = kernels::fan_out(b);
            let _unused = e * 5.0;
            (a.clone() * d + a).sum()
        },
        &|[a, b, c]| (a.detach() + b + c.clone() * c).mean(),
    ];
    for (index, loss) in losses.into_iter().enumerate() {
        let gradient = |branches: fn(Tensor<4>) -> [Tensor<4>; 3]| {
            let x = random([2, 5, 3, 4], 7);
            let gradients = loss(branches(x.clone() * 1.5)).backward();
            floats(x.grad(&gradients).expect("the loss depends on x"))
        };
        let clones = gradient(|x| [x.clone(), x.clone(), x]);
        close(&gradient(kernels::fan_out), &clones, 1e-6, 1e-3, &format!("loss {index}"));
    }
    // And where no branch reaches the loss there is no gradient.
    let (x, y) = (random([1, 1, 2, 2], 1), random([1, 1, 2, 2], 2));
    let [_a, _b] = kernels::fan_out(x.clone());
    assert!(x.grad(&y.sum().backward()).is_none());
}

/// In both layouts, and where the output is a leaf.
#[test]
fn a_backward_pass_from_a_gradient_is_that_of_the_sum_of_products() {
    let factor = random([2, 6, 5, 4], 2).inner();
    let gradient = |start: &dyn Fn(Tensor<4>) -> Gradients| {
        let x = random([2, 6, 5, 4], 1);
        let weight = random([6, 6, 3, 3], 5);
        let y = kernels::conv2d(
            x.clone(),
            weight.clone(),
            ConvOptions::new([1, 1], [1, 1], [1, 1], 1),
            Epilogue { relu: true, ..Epilogue::default() },
            Precision::F32,
        );
        let gradients = start(y * Tensor::from_inner(factor.clone()));
        [floats(x.grad(&gradients).expect("of x")), floats(weight.grad(&gradients).expect("of the weight"))]
    };
    // The second gradient is channels last by its strides.
    for seed in [random([2, 6, 5, 4], 3), random([2, 5, 4, 6], 4).permute([0, 3, 1, 2])].map(Tensor::inner) {
        let product = gradient(&|y| (y * Tensor::from_inner(seed.clone())).sum().backward());
        assert_eq!(gradient(&|y| kernels::backward_from(y, seed.clone())), product);
    }
    let leaf = random([3, 4], 7);
    let seed = random([3, 4], 8).inner();
    let gradients = kernels::backward_from(leaf.clone(), seed.clone());
    assert_eq!(floats(leaf.grad(&gradients).expect("of the leaf")), floats(seed));
}
