//! Convolutions against sums over all products, on every instruction set that the processor has.

use super::*;
use crate::{
    cpu::testing::Random,
    int8::{self, Average, Conv2d, Geometry, Map, MapMut, Quantization, Requantize, Table},
};

fn bytes(random: &mut Random, count: usize) -> Vec<u8> {
    (0..count).map(|_| random.size(0, 255) as u8).collect()
}

struct Case {
    n: usize,
    input: [usize; 2],
    channels: [usize; 2],
    geometry: Geometry,
    /// The distance between pixels beyond the channels, and the first channel: of the input, the output, the residual.
    wider: [[usize; 2]; 3],
    residual: bool,
    zeros: Vec<u8>,
    low: u8,
}

impl Case {
    fn draw(random: &mut Random) -> Self {
        loop {
            let groups = [1, 1, 1, 2, 4, 8][random.size(0, 5)];
            let channels = [groups * random.size(1, 24), groups * random.size(1, 50)];
            let channels = if random.size(0, 4) == 0 { [random.size(1, 7), channels[1]] } else { channels };
            let groups = if channels[0].is_multiple_of(groups) { groups } else { 1 };
            let mut pair = |from, to| [random.size(from, to), random.size(from, to)];
            let geometry = Geometry {
                kernel: pair(1, 4),
                stride: pair(1, 3),
                padding: [pair(0, 2), pair(0, 2)],
                dilation: pair(1, 2),
                groups,
            };
            let input = pair(1, 12);
            let wider = [pair(0, 5), pair(0, 5), pair(0, 5)];
            let zeros = match random.size(0, 1) {
                0 => bytes(random, 1),
                _ => bytes(random, channels[0]),
            };
            if geometry.output(input).is_some() {
                let (n, low) = (random.size(1, 3), random.size(0, 200) as u8);
                return Self { n, input, channels, geometry, wider, residual: random.size(0, 1) == 1, zeros, low };
            }
        }
    }

    /// Compares the outputs of all instruction sets, in bytes and in floats, with those of exact sums.
    fn check(&self, random: &mut Random) {
        let Self { n, input, channels: [inputs, outputs], geometry, .. } = self;
        let Geometry { kernel, stride, padding, dilation, groups } = *geometry;
        let output @ [height, width] = geometry.output(*input).unwrap();
        let [per_input, per_output] = [inputs / groups, outputs / groups];
        let pitch = |which: usize, channels: usize| channels + self.wider[which].iter().sum::<usize>();
        let weights: Vec<i8> = (0..outputs * per_input * kernel[0] * kernel[1])
            .map(|_| (random.size(0, 255) as u8).cast_signed())
            .collect();
        // No slack, so that the end of the map is copied.
        let x = bytes(random, n * input[0] * input[1] * pitch(0, *inputs));
        let residual = bytes(random, n * height * width * pitch(2, *outputs));
        let scale: Vec<f32> = random.floats(*outputs).iter().map(|value| value * 1e-2).collect();
        let bias: Vec<f32> = random.floats(*outputs).iter().map(|value| 128.0 + 128.0 * value).collect();
        let conv = Conv2d::new(&weights, self.channels, *geometry, &self.zeros).unwrap();
        let map = |data, size, channels, which: usize| Map {
            data,
            n: *n,
            size,
            channels,
            pitch: pitch(which, channels),
            offset: self.wider[which][1],
        };
        let requantize = Requantize {
            scale: &scale,
            bias: &bias,
            residual: self.residual.then(|| (map(&residual, output, *outputs, 2), 0.37)),
            low: self.low,
        };
        let zero = |channel: usize| self.zeros[if self.zeros.len() == 1 { 0 } else { channel }];

        let mut expected = Vec::new();
        for pixel in 0..n * height * width {
            let (image, row, column) = (pixel / width / height, pixel / width % height, pixel % width);
            for channel in 0..*outputs {
                let mut sum = 0i32;
                for (i, j) in (0..kernel[0]).flat_map(|i| (0..kernel[1]).map(move |j| (i, j))) {
                    let y = (row * stride[0] + i * dilation[0]).wrapping_sub(padding[0][0]);
                    let at = (column * stride[1] + j * dilation[1]).wrapping_sub(padding[1][0]);
                    if y >= input[0] || at >= input[1] {
                        continue;
                    }
                    for k in 0..per_input {
                        let from = channel / per_output * per_input + k;
                        let start = ((image * input[0] + y) * input[1] + at) * pitch(0, *inputs) + self.wider[0][1];
                        let weight = weights[((channel * per_input + k) * kernel[0] + i) * kernel[1] + j];
                        sum += (i32::from(x[start + from]) - i32::from(zero(from))) * i32::from(weight);
                    }
                }
                let mut value = sum as f32 * scale[channel];
                if self.residual {
                    let at = pixel * pitch(2, *outputs) + self.wider[2][1] + channel;
                    value += f32::from(residual[at]) * 0.37;
                }
                expected.push(value + bias[channel]);
            }
        }

        for instructions in Instructions::available() {
            let shown = format!("{instructions:?}, {:?} of {:?}, {geometry:?}", self.channels, self.input);
            let out_pitch = pitch(1, *outputs);
            // Bytes between the channels stay as they are.
            let mut out = vec![77; n * height * width * out_pitch];
            let target = MapMut {
                data: &mut out,
                n: *n,
                size: output,
                channels: *outputs,
                pitch: out_pitch,
                offset: self.wider[1][1],
            };
            conv.run_with(instructions, map(&x, *input, *inputs, 0), &requantize, target);
            for (pixel, bytes) in out.chunks_exact(out_pitch).enumerate() {
                for (at, &byte) in bytes.iter().enumerate() {
                    let channel = at.wrapping_sub(self.wider[1][1]);
                    let expected = match channel < *outputs {
                        true => quantize(expected[pixel * outputs + channel], f32::from(self.low)),
                        false => 77,
                    };
                    assert_eq!(byte, expected, "{shown}: pixel {pixel}, byte {at}");
                }
            }
            if groups == 1 {
                let mut out = vec![0.0; expected.len()];
                conv.run_float_with(instructions, map(&x, *input, *inputs, 0), &requantize, &mut out);
                assert_eq!(out, expected, "{shown}");
            }
        }
    }
}

#[test]
fn convolutions_are_exact_on_every_instruction_set() {
    let mut random = Random::new(17);
    for _ in 0..if cfg!(debug_assertions) { 60 } else { 300 } {
        Case::draw(&mut random).check(&mut random);
    }
}

/// Sums at both ends of what fits: AVX2's `maddubs` would saturate.
#[test]
fn the_largest_sums_are_exact() {
    let geometry = Geometry { kernel: [1; 2], stride: [1; 2], padding: [[0; 2]; 2], dilation: [1; 2], groups: 1 };
    for (weight, zero) in [(-128, 0), (127, 0), (-128, 255), (127, 255)] {
        let conv = Conv2d::new(&vec![weight; 20 * MAX_DEPTH], [MAX_DEPTH, 20], geometry, &[zero]).unwrap();
        let x = vec![255 - zero; MAX_DEPTH];
        let requantize = Requantize { scale: &[1.0; 20], bias: &[0.0; 20], residual: None, low: 0 };
        let expected = ((255 - 2 * i32::from(zero)) * i32::from(weight) * MAX_DEPTH as i32) as f32;
        for instructions in Instructions::available() {
            let mut out = [0.0; 20];
            conv.run_float_with(instructions, Map::new(&x, 1, [1, 1], MAX_DEPTH), &requantize, &mut out);
            assert_eq!(out, [expected; 20], "{instructions:?}");
        }
    }
    assert!(Conv2d::new(&vec![1; MAX_DEPTH + 1], [MAX_DEPTH + 1, 1], geometry, &[0]).is_none());
}

#[test]
fn rounding_is_to_the_nearest_even_byte() {
    for (value, low, byte) in [
        (0.5, 0.0, 0),
        (1.5, 0.0, 2),
        (2.5, 0.0, 2),
        (254.5, 0.0, 254),
        (255.5, 0.0, 255),
        (f32::INFINITY, 0.0, 255),
        (-3.0, 0.0, 0),
        (3.0, 10.0, 10),
        (f32::NAN, 7.0, 7),
        (f32::NEG_INFINITY, 0.0, 0),
    ] {
        assert_eq!(quantize(value, low), byte, "{value}");
    }
}

#[test]
fn poolings_and_sums_are_those_of_the_numbers() {
    let mut random = Random::new(3);
    for _ in 0..100 {
        let (n, channels) = (random.size(1, 2), random.size(1, 40));
        let input = [random.size(2, 9), random.size(2, 9)];
        let padding = random.size(0, 1);
        let kernel = random.size(2, 3);
        let geometry = Geometry {
            kernel: [kernel; 2],
            stride: [random.size(1, 2); 2],
            padding: [[padding; 2]; 2],
            dilation: [1; 2],
            groups: 1,
        };
        let Some(output) = geometry.output(input) else { continue };
        let from = Quantization { scale: 0.1, zero: random.size(0, 255) as u8 };
        let to = Quantization { scale: 0.13, zero: random.size(0, 255) as u8 };
        let x = bytes(&mut random, n * input[0] * input[1] * channels);
        let map = Map::new(&x, n, input, channels);
        let number = |byte: u8| (f32::from(byte) - f32::from(from.zero)) * from.scale;
        let mut largest = vec![0; n * output[0] * output[1] * channels];
        let table = Table::new(from, to);
        int8::max_pool2d(map, &geometry, table.as_ref(), MapMut::new(&mut largest, n, output, channels));
        let mut means = [largest.clone(), largest.clone()];
        for (count_padding, means) in [false, true].into_iter().zip(&mut means) {
            let average = Average::Windows { geometry, count_padding };
            int8::avg_pool2d(map, average, from, to, MapMut::new(means, n, output, channels));
        }
        for index in 0..largest.len() {
            let (pixel, channel) = (index / channels, index % channels);
            let (image, row, column) =
                (pixel / output[0] / output[1], pixel / output[1] % output[0], pixel % output[1]);
            let mut seen = Vec::new();
            let mut padded = 0;
            for (i, j) in (0..kernel).flat_map(|i| (0..kernel).map(move |j| (i, j))) {
                let y = (row * geometry.stride[0] + i).wrapping_sub(padding);
                let at = (column * geometry.stride[1] + j).wrapping_sub(padding);
                padded += 1;
                if y < input[0] && at < input[1] {
                    seen.push(number(x[((image * input[0] + y) * input[1] + at) * channels + channel]));
                }
            }
            let byte = |value: f32| value / to.scale + f32::from(to.zero);
            let close = |found: u8, value: f32| {
                let expected = byte(value).clamp(0.0, 255.0);
                assert!((f32::from(found) - expected).abs() <= 0.501, "{found} {expected} {geometry:?}");
            };
            close(largest[index], seen.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let sum: f32 = seen.iter().sum();
            close(means[0][index], sum / seen.len() as f32);
            close(means[1][index], sum / padded as f32);
        }

        let mut adaptive = vec![0; n * 2 * channels];
        int8::avg_pool2d(map, Average::Adaptive, from, to, MapMut::new(&mut adaptive, n, [1, 2], channels));
        let mut sums = vec![0; x.len()];
        int8::add([(map, from), (map, from)], to, to.zero, MapMut::new(&mut sums, n, input, channels));
        for (&sum, &byte) in sums.iter().zip(&x) {
            let expected = (2.0 * number(byte) / to.scale).max(0.0) + f32::from(to.zero);
            assert!((f32::from(sum) - expected.min(255.0)).abs() <= 0.501, "{sum} {expected}");
        }

        let mut floats = vec![0.0; x.len()];
        int8::dequantize(map, from, &mut floats);
        let mut back = vec![0; x.len()];
        let strides = [input[0] * input[1] * channels, 1, input[1] * channels, channels];
        int8::quantize(&floats, strides, &vec![from.affine(); channels], MapMut::new(&mut back, n, input, channels));
        assert_eq!(back, x);
    }
}
