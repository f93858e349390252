//! Convolution on `flex`: which way is the fastest for a shape, and the weights for it.

use std::sync::Arc;

use burn::{
    backend::flex::FlexTensor,
    tensor::{DType, ops::ConvOptions},
};

use super::{
    tensor::{bf16_buffer, bf16_map, bf16s, bf16s_mut, channels_last, dims, floats, map, tensor, widened},
    values,
    weights::{Form, kept},
};
use crate::{
    cpu::{
        amx, bf16,
        buffer_pool::Buffer,
        conv::{
            Epilogue, Lattice, Map, Packed, Product, Shape, Tap, WeightOrder, backward_lattices, forward_taps, pad,
            reads_rows,
        },
        weight_gradient::WeightGradient,
        winograd,
    },
    ops::epilogue::EpilogueFlags,
};

fn shape(x: [usize; 4], weight: [usize; 4], options: &ConvOptions<2>) -> Shape {
    let [n, channels_in, h, w] = x;
    let [channels_out, _, kh, kw] = weight;
    Shape {
        n,
        channels_in,
        channels_out,
        input: [h, w],
        kernel: [kh, kw],
        stride: options.stride,
        padding: options.padding.map(|(before, after)| [before, after]),
        dilation: options.dilation,
        groups: options.groups,
    }
}

fn output(shape: &Shape) -> [usize; 2] {
    shape
        .output()
        .unwrap_or_else(|| panic!("a {:?} kernel does not fit into an input of {:?} pixels", shape.kernel, shape.input))
}

/// Groups side by side that are computed as one, with zeros where they do not see each other: groups of few channels
/// would leave most of a register tile empty.
fn merged(shape: &Shape) -> usize {
    let per_group = shape.channels_in / shape.groups;
    let mut merged = 1;
    while per_group * merged < 16 && shape.groups.is_multiple_of(merged * 2) {
        merged *= 2;
    }
    merged
}

/// The weights of the `index`-th merged group.
fn order(shape: &Shape, index: usize) -> WeightOrder {
    let [inputs, outputs] = [shape.channels_in, shape.channels_out].map(|channels| channels / shape.groups);
    let (groups, taps) = (merged(shape), shape.taps());
    let base = index * groups * outputs * inputs * taps;
    WeightOrder { base, taps, inputs, outputs, groups, transposed: false, turned: false }
}

/// The same with in and out exchanged, for the data gradient.
fn transposed(shape: &Shape, index: usize, turned: bool) -> WeightOrder {
    WeightOrder { transposed: true, turned, ..order(shape, index) }
}

/// See [`Conv2d::fused_conv2d`](crate::ops::conv2d::Conv2d::fused_conv2d).
pub fn forward(
    x: FlexTensor,
    weight: FlexTensor,
    scale: Option<FlexTensor>,
    bias: Option<FlexTensor>,
    residual: Option<FlexTensor>,
    options: &ConvOptions<2>,
    flags: EpilogueFlags,
) -> FlexTensor {
    let weight = weight.to_contiguous();
    let shape = shape(dims(&x), dims(&weight), options);
    let size @ [height, width] = output(&shape);
    let (scale, bias) = (scale.as_ref().map(values), bias.as_ref().map(values));
    let residual = residual.map(channels_last);
    if flags.bf16 && shape.groups == 1 && amx::is_available() {
        let [scale, bias] = [scale.as_deref(), bias.as_deref()];
        return forward_by_tiles(x, &weight, scale, bias, residual.as_ref(), &shape, flags);
    }
    let (x, residual) = (widened(x), residual.map(widened));
    let mut out = Buffer::new(shape.n * height * width * shape.channels_out);
    let epilogue = Epilogue {
        scale: scale.as_deref(),
        bias: bias.as_deref(),
        residual: residual.as_ref().map(floats),
        relu: flags.relu,
    };
    let packed = |group: usize, rows: usize| {
        let make = || Packed::new(floats(&weight), order(&shape, group)).into_rows(rows);
        if flags.keep_weights { kept(&weight, Form::Packed { group, rows }, make) } else { Arc::new(make()) }
    };
    let bf16 = flags.bf16 && shape.groups == 1 && bf16::is_available();
    let packed_bf16 = |rows: usize| {
        let make =
            || bf16::Packed::new(&Packed::new(floats(&weight), order(&shape, 0)).into_rows(rows), amx::is_available());
        if flags.keep_weights { kept(&weight, Form::Bf16 { rows }, make) } else { Arc::new(make()) }
    };
    let multiply = |product: Product<'_, ()>, group: usize, rows: usize, out: &mut [f32]| {
        if bf16 {
            product.with(&*packed_bf16(rows)).run(out);
        } else {
            product.with(&*packed(group, rows)).run(out);
        }
    };

    if reads_rows(&shape) {
        let layout = x.layout().strides();
        let strides = [layout[0], layout[1], layout[2], layout[3]];
        let x = if strides.iter().all(|&stride| stride >= 0) { x } else { x.to_contiguous() };
        let (padded, input) = padded(&x, &shape);
        let [rows, _] = shape.kernel;
        let taps = row_taps(&shape);
        let product = Product {
            n: shape.n,
            x: Map { data: &padded, size: input, pitch: shape.channels_in, offset: 0 },
            stride: shape.stride,
            taps: &taps,
            weights: &(),
            lattice: Lattice::all(size),
            out_pitch: shape.channels_out,
            out_offset: 0,
            epilogue,
        };
        multiply(product, 0, rows, &mut out);
        return map(out, [shape.n, shape.channels_out, height, width]);
    }

    let x = channels_last(x);
    // Over a map of a few pixels Winograd's weights, eight times the bytes, take longer to read than it saves.
    let few_pixels = bf16 && height * width <= 64;
    if !few_pixels && winograd::wins(&shape, flags.keep_weights) {
        let make = || winograd::Weights::new(&Packed::new(floats(&weight), order(&shape, 0)));
        let weights = if flags.keep_weights { kept(&weight, Form::Winograd, make) } else { Arc::new(make()) };
        winograd::Convolution {
            n: shape.n,
            x: floats(&x),
            input: shape.input,
            output: size,
            padding: [shape.padding[0][0] as isize, shape.padding[1][0] as isize],
            weights: &weights,
            epilogue,
            out_pitch: shape.channels_out,
            out_offset: 0,
        }
        .run(&mut out);
        return map(out, [shape.n, shape.channels_out, height, width]);
    }

    let taps = forward_taps(&shape);
    let [c_in, c_out] = order(&shape, 0).sizes();
    for group in 0..shape.groups / merged(&shape) {
        let product = Product {
            n: shape.n,
            x: Map { data: floats(&x), size: shape.input, pitch: shape.channels_in, offset: group * c_in },
            stride: shape.stride,
            taps: &taps,
            weights: &(),
            lattice: Lattice::all(size),
            out_pitch: shape.channels_out,
            out_offset: group * c_out,
            epilogue,
        };
        multiply(product, group, shape.taps(), &mut out);
    }
    map(out, [shape.n, shape.channels_out, height, width])
}

/// The same by AMX, of maps of floats or bf16 values.
fn forward_by_tiles(
    x: FlexTensor,
    weight: &FlexTensor,
    scale: Option<&[f32]>,
    bias: Option<&[f32]>,
    residual: Option<&FlexTensor>,
    shape: &Shape,
    flags: EpilogueFlags,
) -> FlexTensor {
    let output @ [height, width] = output(shape);
    let reads_rows = reads_rows(shape);
    let (taps, rows) =
        if reads_rows { (row_taps(shape), shape.kernel[0]) } else { (forward_taps(shape), shape.taps()) };
    let make = || bf16::Packed::new(&Packed::new(floats(weight), order(shape, 0)).into_rows(rows), amx::is_available());
    let weights = if flags.keep_weights { kept(weight, Form::Bf16 { rows }, make) } else { Arc::new(make()) };
    let (x, padded) = if reads_rows {
        let x = widened(x);
        let x = if x.layout().strides().iter().all(|&stride| stride >= 0) { x } else { x.to_contiguous() };
        let padded = padded(&x, shape);
        (x, Some(padded))
    } else {
        (channels_last(x), None)
    };
    let product = amx::Product {
        n: shape.n,
        x: padded.as_ref().map_or_else(|| map_values(&x), |(padded, _)| amx::Values::F32(padded)),
        input: padded.as_ref().map_or(shape.input, |&(_, size)| size),
        pitch: shape.channels_in,
        stride: shape.stride,
        taps: &taps,
        weights: &weights,
        output,
        scale,
        bias,
        residual: residual.map(map_values),
        relu: flags.relu,
    };
    let shape = [shape.n, shape.channels_out, height, width];
    let len = shape.iter().product();
    if flags.bf16_output {
        let mut out = bf16_buffer(len);
        product.run(amx::Output::Bf16(bf16s_mut(&mut out, len)));
        return bf16_map(out, shape);
    }
    let mut out = Buffer::new(len);
    product.run(amx::Output::F32(&mut out));
    map(out, shape)
}

fn map_values(x: &FlexTensor) -> amx::Values<'_> {
    if x.dtype() == DType::BF16 { amx::Values::Bf16(bf16s(x)) } else { amx::Values::F32(floats(x)) }
}

/// A linear layer as a convolution of single pixels, both operands rounded to bf16; its weights are kept.
pub fn linear_of_halves(x: &FlexTensor, weight: &FlexTensor, bias: Option<&[f32]>, y: &mut [f32]) {
    let ([rows, inputs], [_, outputs]) = (x.layout().shape().dims(), weight.layout().shape().dims());
    let make = || {
        // `[inputs, outputs]` is the order of a data gradient's weights.
        let order = WeightOrder {
            base: 0,
            taps: 1,
            inputs: outputs,
            outputs: inputs,
            groups: 1,
            transposed: true,
            turned: false,
        };
        bf16::Packed::new(&Packed::new(floats(weight), order), amx::is_available())
    };
    let weights = kept(weight, Form::Bf16 { rows: 1 }, make);
    let taps = [Tap { down: 0, right: 0, index: 0 }];
    if amx::is_available() {
        return amx::Product {
            n: rows,
            x: amx::Values::F32(floats(x)),
            input: [1, 1],
            pitch: inputs,
            stride: [1, 1],
            taps: &taps,
            weights: &weights,
            output: [1, 1],
            scale: None,
            bias,
            residual: None,
            relu: false,
        }
        .run(amx::Output::F32(y));
    }
    Product {
        n: rows,
        x: Map { data: floats(x), size: [1, 1], pitch: inputs, offset: 0 },
        stride: [1, 1],
        taps: &taps,
        weights: &*weights,
        lattice: Lattice::all([1, 1]),
        out_pitch: outputs,
        out_offset: 0,
        epilogue: Epilogue { bias, ..Epilogue::default() },
    }
    .run(y);
}

/// The padded input, whatever the order of its axes.
fn padded(x: &FlexTensor, shape: &Shape) -> (Buffer, [usize; 2]) {
    let strides = x.layout().strides();
    let strides = [0, 1, 2, 3].map(|axis| strides[axis] as usize);
    pad(&x.storage::<f32>()[x.layout().start_offset()..], strides, shape)
}

/// The rows of a kernel over a padded input.
fn row_taps(shape: &Shape) -> Vec<Tap> {
    let row = |index: usize| Tap { down: (index * shape.dilation[0]) as isize, right: 0, index };
    (0..shape.kernel[0]).map(row).collect()
}

/// See [`Conv2dGrad::fused_conv2d_x_backward`](crate::ops::conv2d::Conv2dGrad::fused_conv2d_x_backward).
pub fn x_backward(x: &FlexTensor, weight: FlexTensor, dy: FlexTensor, options: &ConvOptions<2>) -> FlexTensor {
    let weight = weight.to_contiguous();
    let shape = shape(dims(x), dims(&weight), options);
    let size @ [height, width] = output(&shape);
    let dy = channels_last(dy);
    let mut out = Buffer::new(shape.n * shape.input[0] * shape.input[1] * shape.channels_in);

    // The same convolution from the output's side.
    let mirrored = Shape {
        channels_in: shape.channels_out,
        channels_out: shape.channels_in,
        input: size,
        padding: [0, 1].map(|axis| {
            let before = 2usize.saturating_sub(shape.padding[axis][0]);
            [before, (shape.input[axis] + 2).saturating_sub(size[axis] + before)]
        }),
        ..shape
    };
    let fits = shape.padding.as_flattened().iter().all(|&pad| pad <= 2);
    if fits && winograd::wins(&mirrored, false) {
        let weights = winograd::Weights::new(&Packed::new(floats(&weight), transposed(&shape, 0, true)));
        winograd::Convolution {
            n: shape.n,
            x: floats(&dy),
            input: [height, width],
            output: shape.input,
            padding: [mirrored.padding[0][0] as isize, mirrored.padding[1][0] as isize],
            weights: &weights,
            epilogue: Epilogue::default(),
            out_pitch: shape.channels_in,
            out_offset: 0,
        }
        .run(&mut out);
        return map(out, dims(x));
    }

    let [c_in, c_out] = order(&shape, 0).sizes();
    for group in 0..shape.groups / merged(&shape) {
        let weights = Packed::new(floats(&weight), transposed(&shape, group, false));
        for (lattice, taps) in backward_lattices(&shape) {
            Product {
                n: shape.n,
                x: Map { data: floats(&dy), size, pitch: shape.channels_out, offset: group * c_out },
                stride: [1, 1],
                taps: &taps,
                weights: &weights,
                lattice,
                out_pitch: shape.channels_in,
                out_offset: group * c_in,
                epilogue: Epilogue::default(),
            }
            .run(&mut out);
        }
    }
    map(out, dims(x))
}

/// See [`Conv2dGrad::fused_conv2d_weight_backward`](crate::ops::conv2d::Conv2dGrad::fused_conv2d_weight_backward).
pub fn weight_backward(x: FlexTensor, weight: &FlexTensor, dy: FlexTensor, options: &ConvOptions<2>) -> FlexTensor {
    let weight_dims = dims(weight);
    let shape = shape(dims(&x), weight_dims, options);
    let size = output(&shape);
    let dy = channels_last(dy);
    let mut out = Buffer::new(weight_dims.iter().product());

    if reads_rows(&shape) {
        let x = if x.layout().strides().iter().all(|&stride| stride >= 0) { x } else { x.to_contiguous() };
        let (padded, input) = padded(&x, &shape);
        let [rows, columns] = shape.kernel;
        let k = columns * shape.channels_in;
        // `[c_out][column, channel][row]`, brought into the weights' order below.
        let mut turned = Buffer::new(out.len());
        let outputs = shape.channels_out;
        let order =
            WeightOrder { base: 0, taps: rows, inputs: k, outputs, groups: 1, transposed: false, turned: false };
        WeightGradient {
            n: shape.n,
            x: Map { data: &padded, size: input, pitch: shape.channels_in, offset: 0 },
            k,
            stride: shape.stride,
            taps: &row_taps(&shape),
            dy: Map { data: floats(&dy), size, pitch: shape.channels_out, offset: 0 },
            channels: shape.channels_out,
        }
        .run(order, &mut turned);
        for (index, value) in out.iter_mut().enumerate() {
            let (rest, column) = (index / columns, index % columns);
            let (rest, row) = (rest / rows, rest % rows);
            let (c_out, channel) = (rest / shape.channels_in, rest % shape.channels_in);
            *value = turned[(c_out * k + column * shape.channels_in + channel) * rows + row];
        }
        return tensor(out, weight_dims);
    }

    let x = channels_last(x);
    if winograd::wins_gradient(&shape) {
        winograd::WeightGradient {
            n: shape.n,
            x: floats(&x),
            k: shape.channels_in,
            input: shape.input,
            dy: floats(&dy),
            channels: shape.channels_out,
            output: size,
            padding: [shape.padding[0][0] as isize, shape.padding[1][0] as isize],
        }
        .run(&mut out);
        return tensor(out, weight_dims);
    }
    let [c_in, c_out] = order(&shape, 0).sizes();
    for group in 0..shape.groups / merged(&shape) {
        WeightGradient {
            n: shape.n,
            x: Map { data: floats(&x), size: shape.input, pitch: shape.channels_in, offset: group * c_in },
            k: c_in,
            stride: shape.stride,
            taps: &forward_taps(&shape),
            dy: Map { data: floats(&dy), size, pitch: shape.channels_out, offset: group * c_out },
            channels: c_out,
        }
        .run(order(&shape, group), &mut out);
    }
    tensor(out, weight_dims)
}
