//! Products, weight gradients and Winograd against sums in double precision, over small shapes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{
    bf16,
    conv::{Epilogue, Lattice, Map, Packed, Product, Shape, Tap, WeightOrder, backward_lattices, forward_taps},
    linear::Linear,
    loss, lrn,
    norm::{self, Mask, Pass},
    testing::Random,
    weight_gradient::WeightGradient,
    winograd,
};

/// `(index of x, index of the weight, index of y)` of every product, for the weights `[c_out, c_in / groups, kh, kw]`.
fn products(shape: &Shape) -> Vec<[usize; 3]> {
    let [height, width] = shape.output().unwrap();
    let [inputs, outputs] = [shape.channels_in, shape.channels_out].map(|channels| channels / shape.groups);
    let mut all = Vec::new();
    for n in 0..shape.n {
        for (row, column) in (0..height).flat_map(|row| (0..width).map(move |column| (row, column))) {
            for (i, j) in (0..shape.kernel[0]).flat_map(|i| (0..shape.kernel[1]).map(move |j| (i, j))) {
                let y = (row * shape.stride[0] + i * shape.dilation[0]).checked_sub(shape.padding[0][0]);
                let x = (column * shape.stride[1] + j * shape.dilation[1]).checked_sub(shape.padding[1][0]);
                let (Some(y), Some(x)) = (y, x) else { continue };
                if y >= shape.input[0] || x >= shape.input[1] {
                    continue;
                }
                for output in 0..shape.channels_out {
                    for input in 0..inputs {
                        let channel = output / outputs * inputs + input;
                        all.push([
                            ((n * shape.input[0] + y) * shape.input[1] + x) * shape.channels_in + channel,
                            ((output * inputs + input) * shape.kernel[0] + i) * shape.kernel[1] + j,
                            ((n * height + row) * width + column) * shape.channels_out + output,
                        ]);
                    }
                }
            }
        }
    }
    all
}

/// Of the largest result, or of 1.
const BOUND: f64 = 3e-6;
/// The same for Winograd.
const WINOGRAD: f64 = 3e-5;

#[track_caller]
fn close(found: &[f32], exact: &[f64], bound: f64, shape: &Shape, what: &str) {
    let bound = bound * exact.iter().fold(1f64, |largest, value| largest.max(value.abs()));
    for (index, (&found, exact)) in found.iter().zip(exact).enumerate() {
        assert!((f64::from(found) - exact).abs() < bound, "{what} of {shape:?} at {index}: {found} {exact}");
    }
}

fn order(shape: &Shape, group: usize, groups: usize) -> WeightOrder {
    let [inputs, outputs] = [shape.channels_in, shape.channels_out].map(|channels| channels / shape.groups);
    let taps = shape.taps();
    let base = group * groups * outputs * inputs * taps;
    WeightOrder { base, taps, inputs, outputs, groups, transposed: false, turned: false }
}

/// All three products, `merged` groups at a time.
fn check(shape: &Shape, merged: usize, random: &mut Random) {
    let all = products(shape);
    let output @ [height, width] = shape.output().unwrap();
    let x = random.floats(shape.n * shape.input[0] * shape.input[1] * shape.channels_in);
    let w = random.floats(shape.channels_out * shape.channels_in / shape.groups * shape.taps());
    let dy = random.floats(shape.n * height * width * shape.channels_out);
    let [mut exact_y, mut exact_dw, mut exact_dx] = [&dy, &w, &x].map(|values| vec![0f64; values.len()]);
    for [at_x, at_w, at_y] in all {
        let [x, w, dy] = [x[at_x], w[at_w], dy[at_y]].map(f64::from);
        exact_y[at_y] += x * w;
        exact_dw[at_w] += x * dy;
        exact_dx[at_x] += w * dy;
    }

    let [mut y, mut dw, mut dx] = [&dy, &w, &x].map(|values| vec![f32::NAN; values.len()]);
    let taps = forward_taps(shape);
    for group in 0..shape.groups / merged {
        let order = order(shape, group, merged);
        let [c_in, c_out] = order.sizes();
        let x = Map { data: &x, size: shape.input, pitch: shape.channels_in, offset: group * c_in };
        let dy = Map { data: &dy, size: output, pitch: shape.channels_out, offset: group * c_out };
        Product {
            n: shape.n,
            x,
            stride: shape.stride,
            taps: &taps,
            weights: &Packed::new(&w, order),
            lattice: Lattice::all(output),
            out_pitch: shape.channels_out,
            out_offset: group * c_out,
            epilogue: Epilogue::default(),
        }
        .run(&mut y);
        for (lattice, taps) in backward_lattices(shape) {
            Product {
                n: shape.n,
                x: dy,
                stride: [1, 1],
                taps: &taps,
                weights: &Packed::new(&w, WeightOrder { transposed: true, ..order }),
                lattice,
                out_pitch: shape.channels_in,
                out_offset: group * c_in,
                epilogue: Epilogue::default(),
            }
            .run(&mut dx);
        }
        let (k, channels) = (c_in, c_out);
        WeightGradient { n: shape.n, x, k, stride: shape.stride, taps: &taps, dy, channels }.run(order, &mut dw);
    }
    close(&y, &exact_y, BOUND, shape, "output");
    close(&dx, &exact_dx, BOUND, shape, "data gradient");
    close(&dw, &exact_dw, BOUND, shape, "weight gradient");

    if shape.kernel == [3, 3] && shape.stride == [1, 1] && shape.dilation == [1, 1] && shape.groups == 1 {
        let weights = winograd::Weights::new(&Packed::new(&w, order(shape, 0, 1)));
        let padding = [0, 1].map(|axis| shape.padding[axis][0] as isize);
        y.fill(f32::NAN);
        winograd::Convolution {
            n: shape.n,
            x: &x,
            input: shape.input,
            output,
            padding,
            weights: &weights,
            epilogue: Epilogue::default(),
            out_pitch: shape.channels_out,
            out_offset: 0,
        }
        .run(&mut y);
        close(&y, &exact_y, WINOGRAD, shape, "Winograd's output");
        let (n, input, k, channels) = (shape.n, shape.input, shape.channels_in, shape.channels_out);
        dw.fill(f32::NAN);
        winograd::WeightGradient { n, x: &x, k, input, dy: &dy, channels, output, padding }.run(&mut dw);
        close(&dw, &exact_dw, WINOGRAD, shape, "Winograd's weight gradient");
    }
}

#[test]
fn products_equal_the_plain_sums() {
    let mut random = Random::new(11);
    for _ in 0..150 {
        let [kernel, stride, dilation] = [3, 2, 2].map(|most| [random.size(1, most), random.size(1, most)]);
        let groups = random.size(1, 3);
        let largest = 24;
        let shape = Shape {
            n: random.size(1, 2),
            channels_in: groups * random.size(1, largest),
            channels_out: groups * random.size(1, largest),
            input: [0, 1].map(|axis| dilation[axis] * (kernel[axis] - 1) + random.size(1, 6)),
            kernel,
            stride,
            padding: [[random.size(0, 2), random.size(0, 2)], [random.size(0, 2), random.size(0, 2)]],
            dilation,
            groups,
        };
        check(&shape, 1, &mut random);
        check(&shape, groups, &mut random);
    }
}

#[test]
fn winograd_equals_the_plain_sums() {
    let mut random = Random::new(12);
    for size in 1..12 {
        let largest = 40;
        let shape = Shape {
            n: random.size(1, 3),
            channels_in: random.size(1, largest),
            channels_out: random.size(1, largest),
            input: [size + 2, size + random.size(2, 6)],
            kernel: [3, 3],
            stride: [1, 1],
            padding: [[random.size(0, 2), random.size(0, 2)], [random.size(0, 2), random.size(0, 2)]],
            dilation: [1, 1],
            groups: 1,
        };
        check(&shape, 1, &mut random);
    }
}

/// Products of bf16 values without AMX, on processors that have it as well.
#[test]
fn bf16_dot_products_equal_the_exact_sums() {
    if !bf16::is_available() {
        return eprintln!("skipped: this processor has no AVX512-BF16");
    }
    let mut random = Random::new(13);
    for [pixels, inputs, outputs] in [[1, 1, 1], [37, 64, 48], [90, 33, 70], [15, 130, 32]] {
        let rounded = |values: Vec<f32>| values.into_iter().map(|value| ::half::bf16::from_f32(value).to_f32());
        let x: Vec<f32> = rounded(random.floats(pixels * inputs)).collect();
        let w: Vec<f32> = rounded(random.floats(outputs * inputs)).collect();
        let order = WeightOrder { base: 0, taps: 1, inputs, outputs, groups: 1, transposed: false, turned: false };
        let mut y = vec![f32::NAN; pixels * outputs];
        Product {
            n: 1,
            x: Map { data: &x, size: [pixels, 1], pitch: inputs, offset: 0 },
            stride: [1, 1],
            taps: &[Tap { down: 0, right: 0, index: 0 }],
            weights: &bf16::Packed::new(&Packed::new(&w, order), super::amx::is_available()),
            lattice: Lattice::all([pixels, 1]),
            out_pitch: outputs,
            out_offset: 0,
            epilogue: Epilogue::default(),
        }
        .run(&mut y);
        for (index, &found) in y.iter().enumerate() {
            let (pixel, output) = (index / outputs, index % outputs);
            let row = |values: &[f32], row: usize| values[row * inputs..][..inputs].to_vec();
            let exact: f64 =
                row(&x, pixel).iter().zip(row(&w, output)).map(|(&x, w)| f64::from(x) * f64::from(w)).sum();
            assert!((f64::from(found) - exact).abs() < 1e-5, "{pixels} × {inputs} × {outputs}: {found} {exact}");
        }
    }
}

/// Runs `work` once with each slice one value short: it must panic, and must not where all are as long as they should be.
fn each_short<const N: usize>(lengths: [usize; N], what: &str, work: impl Fn([&mut [f32]; N])) {
    for short in (0..N).map(Some).chain([None]) {
        let mut values = lengths.map(|len| vec![0.5f32; len]);
        let mut slices = values.each_mut().map(|values| values.as_mut_slice());
        if let Some(short) = short {
            let slice = std::mem::take(&mut slices[short]);
            let len = slice.len();
            slices[short] = &mut slice[..len - 1];
        }
        let panicked = catch_unwind(AssertUnwindSafe(|| work(slices))).is_err();
        assert_eq!(panicked, short.is_some(), "{what}, slice {short:?} one value short");
    }
}

#[test]
fn slices_that_are_too_short_panic() {
    let shape = Shape {
        n: 2,
        channels_in: 4,
        channels_out: 6,
        input: [5, 7],
        kernel: [3, 3],
        stride: [1, 1],
        padding: [[1, 1], [1, 1]],
        dilation: [1, 1],
        groups: 1,
    };
    let taps = forward_taps(&shape);
    let (pixels, weights) = (2 * 5 * 7, 6 * 4 * 9);
    each_short([weights], "packed weights", |[w]| drop(Packed::new(w, order(&shape, 0, 1))));
    let packed = Packed::new(&vec![1.0; weights], order(&shape, 0, 1));
    each_short([pixels * 4, 6, 6, pixels * 6, pixels * 6], "product", |[x, scale, bias, residual, y]| {
        Product {
            n: 2,
            x: Map { data: x, size: [5, 7], pitch: 4, offset: 0 },
            stride: [1, 1],
            taps: &taps,
            weights: &packed,
            lattice: Lattice::all([5, 7]),
            out_pitch: 6,
            out_offset: 0,
            epilogue: Epilogue { scale: Some(scale), bias: Some(bias), residual: Some(residual), relu: true },
        }
        .run(y);
    });
    let transformed = winograd::Weights::new(&packed);
    each_short([pixels * 4, 6, 6, pixels * 6, pixels * 6], "Winograd", |[x, scale, bias, residual, y]| {
        winograd::Convolution {
            n: 2,
            x,
            input: [5, 7],
            output: [5, 7],
            padding: [1, 1],
            weights: &transformed,
            epilogue: Epilogue { scale: Some(scale), bias: Some(bias), residual: Some(residual), relu: true },
            out_pitch: 6,
            out_offset: 0,
        }
        .run(y);
    });
    each_short([pixels * 4, pixels * 6, weights], "weight gradient", |[x, dy, dw]| {
        let x = Map { data: x, size: [5, 7], pitch: 4, offset: 0 };
        let dy = Map { data: dy, size: [5, 7], pitch: 6, offset: 0 };
        WeightGradient { n: 2, x, k: 4, stride: [1, 1], taps: &taps, dy, channels: 6 }.run(order(&shape, 0, 1), dw);
    });
    each_short([pixels * 4, pixels * 6, weights], "Winograd's weight gradient", |[x, dy, dw]| {
        let (input, output, padding) = ([5, 7], [5, 7], [1, 1]);
        winograd::WeightGradient { n: 2, x, k: 4, input, dy, channels: 6, output, padding }.run(dw);
    });
    each_short([70, 7, 7, 70], "norm", |[x, scale, shift, residual]| {
        drop(norm::pass(x, 7, Pass::Forward { scale, shift, residual: Some(residual), relu: true }));
    });
    each_short([70, 70, 7, 7, 7, 7, 7, 7], "norm's gradient", |slices| {
        let [x, dy, scale, shift, mean, by_gradient, by_input, constant] = slices;
        let mask = Mask::Input(scale, shift);
        drop(norm::pass(x, 7, Pass::Backward { dy, mask, mean, by_gradient, by_input, constant }));
    });
    each_short([70, 70, 70, 7], "norm's sums", |[x, dy, y, mean]| {
        norm::gradient_sums(x, dy, Mask::Output(y), mean);
    });
    each_short([70, 70], "ReLU's gradient", |[y, dy]| drop(norm::pass(y, 7, Pass::Relu { dy })));
    let linear = Linear { rows: 3, inputs: 5, outputs: 7 };
    each_short([15, 35, 7, 21], "linear", |[x, w, bias, y]| linear.forward(x, w, Some(bias), y));
    each_short([15, 21, 35], "linear's weight gradient", |[x, dy, dw]| linear.weight_backward(x, dy, dw));
    each_short([21, 35, 15], "linear's input gradient", |[dy, w, dx]| linear.x_backward(dy, w, dx));
    each_short([20, 20, 4], "cross entropy", |[logits, targets, losses]| {
        loss::cross_entropy(logits, targets, 5, losses);
    });
    each_short([20, 20, 20], "cross entropy's gradient", |[logits, targets, out]| {
        loss::cross_entropy_backward(logits, targets, &[1.0; 4], out);
    });
    let local = lrn::Lrn { size: 5, alpha: 1.0, beta: 0.75, k: 1.0 };
    each_short([70, 70, 70], "local response norm", |[x, dy, dx]| lrn::lrn_backward(x, dy, 7, &local, dx));
}

/// Sizes that do not belong together, though the slices have the lengths that they tell.
#[test]
fn products_outside_of_their_operands_panic() {
    let packed = Packed::new(
        &[1.0; 6],
        WeightOrder { base: 0, taps: 1, inputs: 2, outputs: 3, groups: 1, transposed: false, turned: false },
    );
    let (x, good) = (vec![1.0; 32], Tap { down: 0, right: 0, index: 0 });
    let run = |change: fn(&mut Product<'_>), tap: Tap| {
        let mut product = Product {
            n: 1,
            x: Map { data: &x, size: [4, 4], pitch: 2, offset: 0 },
            stride: [1, 1],
            taps: &[tap],
            weights: &packed,
            lattice: Lattice::all([4, 4]),
            out_pitch: 3,
            out_offset: 0,
            epilogue: Epilogue::default(),
        };
        change(&mut product);
        let mut y = vec![0.0; 48];
        catch_unwind(AssertUnwindSafe(|| product.run(&mut y))).is_err()
    };
    assert!(!run(|_| (), good), "as it should be");
    assert!(!run(|_| (), Tap { down: 3, right: -7, index: 0 }), "pixels outside the feature map are zero");
    assert!(run(|_| (), Tap { index: 1, ..good }), "a tap that there is not");
    let changes: [fn(&mut Product<'_>); 10] = [
        |product| product.n = 2,
        |product| product.n = usize::MAX / 8,
        |product| product.x.offset = 1,
        |product| product.x.offset = usize::MAX,
        |product| product.x.size = [5, 4],
        |product| product.lattice.count = [5, 4],
        |product| product.lattice.step = [0, 1],
        |product| product.lattice.first = [1, 0],
        |product| product.out_offset = 1,
        |product| product.lattice.size = [2, 4],
    ];
    for (index, change) in changes.into_iter().enumerate() {
        assert!(run(change, good), "change {index}");
    }
}
