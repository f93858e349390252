//! Billions of operations (a multiply and an add are two) a second, for the shapes of the networks:
//! `cargo bench --profile dev --workspace --features kernels/internals --bench operations -- [IMAGES]`.
//!
//! A `*` marks what `winograd::select` picks in training and a `+` what it picks in evaluation. `selection` in place of the
//! number of images sweeps channels, feature maps and batches, and counts how often the pick is the slower one; `accuracy`
//! compares both ways with sums in double precision.
//!
//! Winograd's figures count the operations of the plain sum, so that they can be compared: they may exceed the
//! arithmetic peak, which the first line estimates by one register tile over data that never leaves the L1 cache.

use std::{hint::black_box, time::Instant};

use kernels::cpu::{
    conv::{Epilogue, Lattice, Map, Packed, Product, Shape, WeightOrder, backward_lattices, forward_taps},
    linear::Linear,
    thread_pool,
    weight_gradient::WeightGradient,
    winograd,
};

/// Channels in and out, size of the map, kernel, stride.
const SHAPES: [[usize; 5]; 16] = [
    [64, 64, 56, 3, 1],
    [128, 128, 28, 3, 1],
    [256, 256, 14, 3, 1],
    [512, 512, 7, 3, 1],
    [96, 208, 14, 3, 1],
    [64, 192, 27, 5, 1],
    [64, 128, 56, 3, 2],
    [256, 512, 14, 3, 2],
    [64, 256, 56, 1, 1],
    [256, 64, 56, 1, 1],
    [512, 128, 28, 1, 1],
    [256, 1024, 14, 1, 1],
    [1024, 256, 14, 1, 1],
    [512, 2048, 7, 1, 1],
    [2048, 512, 7, 1, 1],
    [1024, 2048, 14, 1, 2],
];

/// The 3×3 convolutions with a stride of 1: channels in and out, size of the map.
const THREES: [[usize; 3]; 20] = [
    // ResNet-18 to 152.
    [64, 64, 56],
    [128, 128, 28],
    [256, 256, 14],
    [512, 512, 7],
    // VGG.
    [64, 64, 224],
    [64, 128, 112],
    [128, 256, 56],
    [256, 512, 28],
    [512, 512, 14],
    // GoogLeNet.
    [64, 192, 56],
    [96, 128, 28],
    [128, 192, 28],
    [96, 208, 14],
    [144, 288, 14],
    [160, 320, 7],
    [192, 384, 7],
    // AlexNet.
    [192, 384, 13],
    [384, 256, 13],
    // Inception v3.
    [64, 96, 35],
    [32, 64, 147],
];

/// The median of some runs, in seconds.
fn time(mut work: impl FnMut()) -> f64 {
    work();
    let mut seconds: Vec<f64> = (0..9)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn values(count: usize, mut state: u64) -> Vec<f32> {
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// A product whose operands stay in the L1 cache, on every thread.
fn peak() -> f64 {
    let (pixels, k, channels, rounds) = (14, 128, 32, 2000);
    let x = values(pixels * k, 3);
    let order =
        WeightOrder { base: 0, taps: 1, inputs: k, outputs: channels, groups: 1, transposed: false, turned: false };
    let weights = Packed::new(&values(k * channels, 5), order);
    let taps = forward_taps(&shape(1, [k, channels, 1, 1, 1]));
    let seconds = time(|| {
        thread_pool::tasks(thread_pool::threads(), |_| {
            let mut y = vec![0.0; pixels * channels];
            for _ in 0..rounds {
                Product {
                    n: 1,
                    x: Map { data: &x, size: [1, pixels], pitch: k, offset: 0 },
                    stride: [1, 1],
                    taps: &taps,
                    weights: &weights,
                    lattice: Lattice::all([1, pixels]),
                    out_pitch: channels,
                    out_offset: 0,
                    epilogue: Epilogue::default(),
                }
                .run(&mut y);
            }
            black_box(&y);
        });
    });
    (2 * pixels * k * channels * rounds * thread_pool::threads()) as f64 / seconds * 1e-9
}

fn shape(n: usize, [channels_in, channels_out, size, kernel, stride]: [usize; 5]) -> Shape {
    Shape {
        n,
        channels_in,
        channels_out,
        input: [size, size],
        kernel: [kernel, kernel],
        stride: [stride, stride],
        padding: [[kernel / 2; 2]; 2],
        dilation: [1, 1],
        groups: 1,
    }
}

fn convolution(n: usize, sizes: [usize; 5]) {
    let shape = shape(n, sizes);
    let [c_in, c_out, size, kernel, stride] = sizes;
    let output @ [height, width] = shape.output().expect("these kernels fit");
    let (x, dy) = (values(n * size * size * c_in, 1), values(n * height * width * c_out, 2));
    let weights = values(c_out * c_in * shape.taps(), 3);
    let [mut y, mut dx, mut dw] = [dy.len(), x.len(), weights.len()].map(|len| vec![0.0; len]);
    let order = WeightOrder {
        base: 0,
        taps: shape.taps(),
        inputs: c_in,
        outputs: c_out,
        groups: 1,
        transposed: false,
        turned: false,
    };
    let taps = forward_taps(&shape);
    let rate = |seconds: f64| 2e-9 * shape.cost() as f64 / seconds;

    let packed = Packed::new(&weights, order);
    let product =
        |x: &[f32], size, pitch, stride, taps: &[_], weights: &Packed, lattice, out_pitch, out: &mut [f32]| {
            let x = Map { data: x, size, pitch, offset: 0 };
            let epilogue = Epilogue::default();
            Product { n, x, stride, taps, weights, lattice, out_pitch, out_offset: 0, epilogue }.run(out);
        };
    let forward = time(|| {
        product(&x, shape.input, c_in, shape.stride, &taps, &packed, Lattice::all(output), c_out, &mut y);
    });
    let transposed = Packed::new(&weights, WeightOrder { transposed: true, ..order });
    let backward = time(|| {
        for (lattice, taps) in backward_lattices(&shape) {
            product(&dy, output, c_out, [1, 1], &taps, &transposed, lattice, c_in, &mut dx);
        }
    });
    let (x_map, dy_map) = (
        Map { data: &x, size: shape.input, pitch: c_in, offset: 0 },
        Map { data: &dy, size: output, pitch: c_out, offset: 0 },
    );
    let gradient =
        WeightGradient { n, x: x_map, k: c_in, stride: shape.stride, taps: &taps, dy: dy_map, channels: c_out };
    let weight_gradient = time(|| gradient.run(order, &mut dw));
    print!(
        "{c_in:4} → {c_out:4}, {size:3} px, {kernel}×{kernel}/{stride}: forward {:6.1}  data gradient {:6.1}  weight \
         gradient {:6.1}",
        rate(forward),
        rate(backward),
        rate(weight_gradient)
    );
    if kernel == 3 && stride == 1 {
        let transformed = winograd::Weights::new(&packed);
        let padding = [1, 1];
        let fast = time(|| {
            winograd::Convolution {
                n,
                x: &x,
                input: shape.input,
                output,
                padding,
                weights: &transformed,
                epilogue: Epilogue::default(),
                out_pitch: c_out,
                out_offset: 0,
            }
            .run(&mut y);
        });
        let (input, k, channels) = (shape.input, c_in, c_out);
        let gradient = winograd::WeightGradient { n, x: &x, k, input, dy: &dy, channels, output, padding };
        let fast_gradient = time(|| gradient.run(&mut dw));
        let marks = [(winograd::wins(&shape, false), '*'), (winograd::wins(&shape, true), '+')];
        let marks: String = marks.iter().filter(|(wins, _)| *wins).map(|(_, mark)| mark).collect();
        let mark = if winograd::wins_gradient(&shape) { "*" } else { "" };
        print!("  Winograd: forward {:6.1}{marks}  weight gradient {:6.1}{mark}", rate(fast), rate(fast_gradient));
    }
    println!();
}

fn linear(rows: usize, inputs: usize, outputs: usize) {
    let job = Linear { rows, inputs, outputs };
    let (x, w, dy) = (values(rows * inputs, 1), values(inputs * outputs, 2), values(rows * outputs, 3));
    let [mut y, mut dx, mut dw] = [dy.len(), x.len(), w.len()].map(|len| vec![0.0; len]);
    let rate = |seconds: f64| 4e-9 * w.len() as f64 / seconds;
    println!(
        "linear, {rows} rows, {inputs} → {outputs}, GB/s of weights: forward {:5.1}  data gradient {:5.1}  weight \
         gradient {:5.1}",
        rate(time(|| job.forward(&x, &w, None, &mut y))),
        rate(time(|| job.x_backward(&dy, &w, &mut dx))),
        rate(time(|| job.weight_backward(&x, &dy, &mut dw)))
    );
}

/// Times both ways of the 3×3 convolutions of one size, and returns the seconds of (GEMM, Winograd): forward with the
/// transform of the weights, forward without, weight gradient.
fn both_ways(shape: &Shape) -> [(f64, f64); 3] {
    let (n, c_in, c_out) = (shape.n, shape.channels_in, shape.channels_out);
    let output @ [height, width] = shape.output().expect("these kernels fit");
    let (x, dy) = (values(n * height * width * c_in, 1), values(n * height * width * c_out, 2));
    let weights = values(c_out * c_in * 9, 3);
    let [mut y, mut dw] = [dy.len(), weights.len()].map(|len| vec![0.0; len]);
    let order =
        WeightOrder { base: 0, taps: 9, inputs: c_in, outputs: c_out, groups: 1, transposed: false, turned: false };
    let taps = forward_taps(shape);
    let map = |data, pitch| Map { data, size: output, pitch, offset: 0 };
    let gemm = |packed: &Packed, y: &mut [f32]| {
        Product {
            n,
            x: map(&x, c_in),
            stride: [1, 1],
            taps: &taps,
            weights: packed,
            lattice: Lattice::all(output),
            out_pitch: c_out,
            out_offset: 0,
            epilogue: Epilogue::default(),
        }
        .run(y);
    };
    let winograd = |weights: &winograd::Weights, y: &mut [f32]| {
        winograd::Convolution {
            n,
            x: &x,
            input: output,
            output,
            padding: [1, 1],
            weights,
            epilogue: Epilogue::default(),
            out_pitch: c_out,
            out_offset: 0,
        }
        .run(y);
    };
    let packed = Packed::new(&weights, order);
    let transformed = winograd::Weights::new(&packed);
    let training = (
        time(|| gemm(&Packed::new(&weights, order), &mut y)),
        time(|| winograd(&winograd::Weights::new(&Packed::new(&weights, order)), &mut y)),
    );
    let evaluation = (time(|| gemm(&packed, &mut y)), time(|| winograd(&transformed, &mut y)));
    let stride = [1, 1];
    let plain =
        WeightGradient { n, x: map(&x, c_in), k: c_in, stride, taps: &taps, dy: map(&dy, c_out), channels: c_out };
    let fast = winograd::WeightGradient {
        n,
        x: &x,
        k: c_in,
        input: output,
        dy: &dy,
        channels: c_out,
        output,
        padding: [1, 1],
    };
    [training, evaluation, (time(|| plain.run(order, &mut dw)), time(|| fast.run(&mut dw)))]
}

/// Compares what `winograd::select` picks with what is faster.
fn selection() {
    let mut slower: [Vec<f64>; 3] = Default::default();
    let mut count = 0;
    for channels in [[16, 16], [32, 32], [64, 64], [96, 208], [128, 128], [256, 256], [512, 512]] {
        for size in [7, 14, 28, 56] {
            for n in [1, 8, 32] {
                if channels[0] * channels[1] * size * size * n > 1 << 30 {
                    continue;
                }
                let shape = shape(n, [channels[0], channels[1], size, 3, 1]);
                let picks =
                    [winograd::wins(&shape, false), winograd::wins(&shape, true), winograd::wins_gradient(&shape)];
                let times = both_ways(&shape);
                count += 1;
                print!("{:4} → {:4}, {size:2} px, {n:2} images:", channels[0], channels[1]);
                for ((pick, (gemm, winograd)), slower) in picks.into_iter().zip(times).zip(&mut slower) {
                    let cost = if pick { winograd / gemm } else { gemm / winograd };
                    print!("  GEMM / Winograd {:5.2}{}", gemm / winograd, if pick { '*' } else { ' ' });
                    if cost > 1.0 {
                        slower.push(cost);
                    }
                }
                println!();
            }
        }
    }
    for (pass, slower) in ["training forward", "evaluation forward", "weight gradient"].into_iter().zip(&slower) {
        let over = |bound: f64| slower.iter().filter(|cost| **cost > bound).count();
        let worst = slower.iter().copied().fold(1.0, f64::max);
        println!(
            "{pass}: of {count} picks {} are slower by over 5 %, {} by over 20 %; at worst {worst:.2} ×",
            over(1.05),
            over(1.2)
        );
    }
}

/// The mean and the largest difference to exact values, relative to the largest of these.
fn errors(found: impl IntoIterator<Item = f32>, exact: &[f64]) -> [f64; 2] {
    let largest = exact.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    let differences = found.into_iter().zip(exact).map(|(found, exact)| (f64::from(found) - exact).abs() / largest);
    let (sum, most) = differences.fold((0.0, 0.0), |(sum, most): (f64, f64), d| (sum + d, most.max(d)));
    [sum / exact.len() as f64, most]
}

/// Compares the direct sum (implicit GEMM) and Winograd with sums in double precision, on inputs as after a ReLU.
fn accuracy() {
    let mut ratios: [Vec<[f64; 2]>; 2] = Default::default();
    println!("differences to sums in double precision, relative to the largest value: mean, largest");
    for [c_in, c_out, size] in THREES {
        let n = if size > 56 { 1 } else { 4 };
        let shape = shape(n, [c_in, c_out, size, 3, 1]);
        let (input, output, padding) = (shape.input, shape.input, [1, 1]);
        let x: Vec<f32> = values(n * size * size * c_in, 1).into_iter().map(|value| value.max(0.0)).collect();
        let (dy, weights) = (values(n * size * size * c_out, 2), values(c_out * c_in * 9, 3));
        let [mut direct, mut fast] = [vec![0.0; dy.len()], vec![0.0; dy.len()]];
        let [mut direct_gradient, mut fast_gradient] = [vec![0.0; weights.len()], vec![0.0; weights.len()]];
        let order =
            WeightOrder { base: 0, taps: 9, inputs: c_in, outputs: c_out, groups: 1, transposed: false, turned: false };
        let (taps, packed, stride) = (forward_taps(&shape), Packed::new(&weights, order), [1, 1]);
        let transformed = winograd::Weights::new(&packed);
        let map = |data, pitch| Map { data, size: input, pitch, offset: 0 };
        let (lattice, epilogue) = (Lattice::all(output), Epilogue::default());
        let (out_pitch, out_offset) = (c_out, 0);
        Product {
            n,
            x: map(&x, c_in),
            stride,
            taps: &taps,
            weights: &packed,
            lattice,
            out_pitch,
            out_offset,
            epilogue,
        }
        .run(&mut direct);
        let epilogue = Epilogue::default();
        winograd::Convolution {
            n,
            x: &x,
            input,
            output,
            padding,
            weights: &transformed,
            epilogue,
            out_pitch,
            out_offset,
        }
        .run(&mut fast);
        WeightGradient { n, x: map(&x, c_in), k: c_in, stride, taps: &taps, dy: map(&dy, c_out), channels: c_out }
            .run(order, &mut direct_gradient);
        winograd::WeightGradient { n, x: &x, k: c_in, input, dy: &dy, channels: c_out, output, padding }
            .run(&mut fast_gradient);

        // Pixels of the feature map, spread over it; all channels of each.
        let pixels: Vec<usize> = (0..97).map(|i| i * (n * size * size - 1) / 96).collect();
        let at = |pixel: usize, tap: usize| {
            let (image, row, column) = (pixel / (size * size), pixel / size % size + tap / 3, pixel % size + tap % 3);
            let is_inside = (1..=size).contains(&row) && (1..=size).contains(&column);
            is_inside.then(|| ((image * size + row - 1) * size + column - 1) * c_in)
        };
        let sum = |pixel: usize, o: usize| -> f64 {
            let taps = (0..9).filter_map(|tap| Some((tap, at(pixel, tap)?)));
            let of_tap = |(tap, from): (usize, usize)| -> f64 {
                (0..c_in).map(|c| f64::from(x[from + c]) * f64::from(weights[(o * c_in + c) * 9 + tap])).sum()
            };
            taps.map(of_tap).sum()
        };
        let chosen: Vec<(usize, usize)> = pixels.iter().flat_map(|&p| (0..c_out).map(move |o| (p, o))).collect();
        let exact: Vec<f64> = chosen.iter().map(|&(pixel, o)| sum(pixel, o)).collect();
        let forward = [&direct, &fast].map(|y| errors(chosen.iter().map(|&(pixel, o)| y[pixel * c_out + o]), &exact));

        // The weights of a few output channels.
        let outputs = [0, c_out / 3, c_out - 1];
        let mut exact = vec![0.0; outputs.len() * c_in * 9];
        for (sums, &o) in exact.chunks_exact_mut(c_in * 9).zip(&outputs) {
            for pixel in 0..n * size * size {
                let slope = f64::from(dy[pixel * c_out + o]);
                for (tap, from) in (0..9).filter_map(|tap| Some((tap, at(pixel, tap)?))) {
                    (0..c_in).for_each(|c| sums[c * 9 + tap] += slope * f64::from(x[from + c]));
                }
            }
        }
        let of = |gradient: &[f32]| {
            errors(outputs.iter().flat_map(|&o| gradient[o * c_in * 9..][..c_in * 9].iter().copied()), &exact)
        };
        let gradient = [of(&direct_gradient), of(&fast_gradient)];

        print!("{c_in:4} → {c_out:4}, {size:3} px:");
        let passes = [("forward", forward), ("weight gradient", gradient)];
        for ((pass, [direct, fast]), ratios) in passes.into_iter().zip(&mut ratios) {
            let ratio = [fast[0] / direct[0], fast[1] / direct[1]];
            print!(
                "  {pass}: direct {:.1e} {:.1e}  Winograd {:.1e} {:.1e} ({:.1} ×, {:.1} ×)",
                direct[0], direct[1], fast[0], fast[1], ratio[0], ratio[1]
            );
            ratios.push(ratio);
        }
        println!();
    }
    for (pass, ratios) in ["forward", "weight gradient"].into_iter().zip(&ratios) {
        let most = |at: usize| ratios.iter().map(|ratio| ratio[at]).fold(0.0, f64::max);
        println!(
            "{pass}: Winograd's mean error is at most {:.1} times the direct sum's, its largest {:.1} times",
            most(0),
            most(1)
        );
    }
}

fn main() {
    if std::env::args().any(|argument| argument == "accuracy") {
        return accuracy();
    }
    if std::env::args().any(|argument| argument == "selection") {
        return selection();
    }
    let images = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(8);
    println!("{} threads, {images} images; one tile in the L1 cache: {:.1}", thread_pool::threads(), peak());
    for sizes in SHAPES {
        convolution(images, sizes);
    }
    for [inputs, outputs] in [[9216, 4096], [4096, 4096], [2048, 1000]] {
        linear(images, inputs, outputs);
    }
}
