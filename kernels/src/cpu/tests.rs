//! Products, weight gradients and Winograd against sums in double precision, over small shapes: small enough for Miri.

use super::{
    conv::{Epilogue, Lattice, Map, Packed, Product, Shape, WeightOrder, backward_lattices, forward_taps},
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
    for _ in 0..if cfg!(miri) { 6 } else { 150 } {
        let [kernel, stride, dilation] = [3, 2, 2].map(|most| [random.size(1, most), random.size(1, most)]);
        let groups = random.size(1, 3);
        let largest = if cfg!(miri) { 3 } else { 24 };
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
    for size in if cfg!(miri) { 4..6 } else { 1..12 } {
        let largest = if cfg!(miri) { 3 } else { 40 };
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
