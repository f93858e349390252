//! Batch normalization in two reads and one write of the feature map, forward and backward, fused with the residual sum and
//! the ReLU.
//!
//! Paper: [Batch Normalization](https://arxiv.org/abs/1502.03167) (Ioffe & Szegedy, 2015).

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::{
    buffer_pool::Buffer,
    disjoint::{DisjointSlice, part},
    thread_pool::tasks,
    tile::{load_at, load_part, store_part},
};

/// The number of partial sums over pixels. It is independent of the number of threads, so that results are too.
const PARTS: usize = 64;
/// Rows are summed in f32 over this many bytes, then accumulated in f64.
const RUN: usize = 32 << 10;

/// Where the gradient of a ReLU is nonzero.
#[derive(Clone, Copy)]
pub enum Mask<'a> {
    /// Everywhere: there was no ReLU.
    None,
    /// Where `x · scale + shift > 0`.
    Input(&'a [f32], &'a [f32]),
    /// Where this output is above zero.
    Output(&'a [f32]),
}

impl Mask<'_> {
    fn check(&self, len: usize, channels: usize) {
        match self {
            Self::None => {}
            Self::Input(scale, shift) => {
                assert!([scale.len(), shift.len()] == [channels; 2], "values for {channels} channels")
            }
            Self::Output(y) => assert!(y.len() == len, "an output of {} values, not {len}", y.len()),
        }
    }
}

/// The number of pixels of `[pixels, channels]`.
///
/// # Panics
///
/// If there are no channels, or `len` is not a multiple of their number.
fn pixels_of(len: usize, channels: usize) -> usize {
    assert!(channels > 0 && len.is_multiple_of(channels), "{len} values of {channels} channels");
    len / channels
}

/// Mean and biased variance of each channel of `[pixels, channels]`.
///
/// # Panics
///
/// If there are no pixels or no channels.
pub fn statistics(x: &[f32], channels: usize) -> [Vec<f32>; 2] {
    let pixels = pixels_of(x.len(), channels);
    let pivot = &x[..channels];
    let sums = sum(Sums { x, dy: None, mask: Mask::None, center: pivot, channels });
    let mut mean = vec![0.0; channels];
    let mut variance = vec![0.0; channels];
    for channel in 0..channels {
        let [offset, square] = [sums[channel], sums[channels + channel]].map(|sum| sum / pixels as f64);
        mean[channel] = (f64::from(pivot[channel]) + offset) as f32;
        variance[channel] = (square - offset * offset).max(0.0) as f32;
    }
    [mean, variance]
}

/// `Σ x` and `Σ x²` of each channel over `[pixels, channels]`.
pub fn raw_sums(x: &[f32], channels: usize) -> [Vec<f64>; 2] {
    let pixels = pixels_of(x.len(), channels) as f64;
    let pivot = &x[..channels];
    let mut sums = sum(Sums { x, dy: None, mask: Mask::None, center: pivot, channels });
    let mut squares = sums.split_off(channels);
    for ((sum, square), &pivot) in sums.iter_mut().zip(&mut squares).zip(pivot) {
        let pivot = f64::from(pivot);
        *square += 2.0 * pivot * *sum + pixels * pivot * pivot;
        *sum += pixels * pivot;
    }
    [sums, squares]
}

/// Returns `Σ g` and `Σ g · (x − mean)` over the pixels, where `g` is the gradient masked by the ReLU. With
/// [`Mask::Output`] the gradient is masked in place.
pub fn gradient_sums(x: &[f32], dy: &mut [f32], mask: Mask<'_>, mean: &[f32]) -> [Vec<f64>; 2] {
    assert_eq!(x.len(), dy.len(), "a gradient is as large as its value");
    let channels = mean.len();
    let mut sums = sum(Sums { x, dy: Some(DisjointSlice::new(dy)), mask, center: mean, channels });
    let products = sums.split_off(channels);
    [sums, products]
}

/// Without a gradient: `Σ (x − center)` and `Σ (x − center)²`. With one: `Σ g` and `Σ g · (x − center)`.
#[derive(Clone, Copy)]
struct Sums<'a> {
    x: &'a [f32],
    dy: Option<DisjointSlice<'a, f32>>,
    mask: Mask<'a>,
    center: &'a [f32],
    channels: usize,
}

/// `[2 · channels]`.
fn sum(job: Sums<'_>) -> Vec<f64> {
    let pixels = pixels_of(job.x.len(), job.channels);
    assert!(job.center.len() == job.channels, "{} centers of {} channels", job.center.len(), job.channels);
    assert!(job.dy.is_none_or(|dy| dy.len() == job.x.len()), "a gradient of another size");
    job.mask.check(job.x.len(), job.channels);
    let parts = PARTS.min(pixels.div_ceil(8)).max(1);
    let mut partial = vec![0f64; parts * 2 * job.channels];
    let out = DisjointSlice::new(&mut partial);
    let arch = Arch::new();
    tasks(parts, |index| {
        let width = 2 * job.channels;
        // SAFETY: each task writes its own sums only.
        let out = unsafe { out.range(index * width..(index + 1) * width) };
        arch.dispatch(SumTask { job, pixels: part(pixels, parts, index, 1), out });
    });
    let mut sums = vec![0f64; 2 * job.channels];
    for part in partial.chunks_exact(2 * job.channels) {
        for (sum, part) in sums.iter_mut().zip(part) {
            *sum += part;
        }
    }
    sums
}

struct SumTask<'a> {
    job: Sums<'a>,
    pixels: Range<usize>,
    out: &'a mut [f64],
}

impl WithSimd for SumTask<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Sums { x, dy, mask, center, channels } = self.job;
        let rows = (RUN / (channels * size_of::<f32>())).clamp(4, 128);
        let zero = simd.splat_f32s(0.0);
        let mut start = self.pixels.start;
        while start < self.pixels.end {
            let end = (start + rows).min(self.pixels.end);
            let mut channel = 0;
            while channel < channels {
                let count = S::F32_LANES.min(channels - channel);
                // SAFETY: `count` channels are left of each pixel, of the center, the scale and the shift; a task has
                // its pixels of the gradient alone.
                unsafe {
                    let middle = load_at(simd, center, channel, count);
                    let [mut first, mut second] = [zero; 2];
                    match (dy, mask) {
                        (None, _) => {
                            for pixel in start..end {
                                let at = pixel * channels + channel;
                                let value = load_at(simd, x, at, count);
                                let value = simd.sub_f32s(value, middle);
                                first = simd.add_f32s(first, value);
                                second = simd.mul_add_e_f32s(value, value, second);
                            }
                        }
                        (Some(dy), Mask::None) => {
                            for pixel in start..end {
                                let at = pixel * channels + channel;
                                let value = load_at(simd, x, at, count);
                                let gradient = load_part(simd, dy.at(at, count), count);
                                first = simd.add_f32s(first, gradient);
                                second = simd.mul_add_e_f32s(gradient, simd.sub_f32s(value, middle), second);
                            }
                        }
                        (Some(dy), Mask::Input(scale, shift)) => {
                            let scale = load_at(simd, scale, channel, count);
                            let shift = load_at(simd, shift, channel, count);
                            for pixel in start..end {
                                let at = pixel * channels + channel;
                                let value = load_at(simd, x, at, count);
                                let gradient = load_part(simd, dy.at(at, count), count);
                                let output = simd.mul_add_e_f32s(value, scale, shift);
                                let gradient = simd.select_f32s(simd.greater_than_f32s(output, zero), gradient, zero);
                                first = simd.add_f32s(first, gradient);
                                second = simd.mul_add_e_f32s(gradient, simd.sub_f32s(value, middle), second);
                            }
                        }
                        (Some(dy), Mask::Output(y)) => {
                            for pixel in start..end {
                                let at = pixel * channels + channel;
                                let value = load_at(simd, x, at, count);
                                let gradient = load_part(simd, dy.at(at, count), count);
                                let output = load_at(simd, y, at, count);
                                let gradient = simd.select_f32s(simd.greater_than_f32s(output, zero), gradient, zero);
                                store_part(simd, dy.at(at, count), count, gradient);
                                first = simd.add_f32s(first, gradient);
                                second = simd.mul_add_e_f32s(gradient, simd.sub_f32s(value, middle), second);
                            }
                        }
                    }
                    let mut run = [0f32; 64];
                    for (half, sums) in [first, second].into_iter().enumerate() {
                        store_part(simd, run.as_mut_ptr(), S::F32_LANES, sums);
                        for lane in 0..count {
                            self.out[half * channels + channel + lane] += f64::from(run[lane]);
                        }
                    }
                }
                channel += S::F32_LANES;
            }
            start = end;
        }
    }
}

/// An elementwise pass.
#[derive(Clone, Copy)]
pub enum Pass<'a> {
    /// `y = x · scale + shift`, with an optional residual and ReLU.
    Forward {
        /// Per channel.
        scale: &'a [f32],
        /// Per channel.
        shift: &'a [f32],
        /// In the layout of `x`.
        residual: Option<&'a [f32]>,
        /// Whether ReLU is applied last.
        relu: bool,
    },
    /// `dx = by_gradient · g + by_input · (x − mean) + constant`, where `g` is the masked gradient.
    Backward {
        /// The gradient of the output.
        dy: &'a [f32],
        /// The mask of the ReLU.
        mask: Mask<'a>,
        /// Per channel.
        mean: &'a [f32],
        /// The factor of the gradient, per channel.
        by_gradient: &'a [f32],
        /// The factor of the input, per channel.
        by_input: &'a [f32],
        /// Per channel.
        constant: &'a [f32],
    },
    /// `dx = dy` where the output is above zero, otherwise 0; `x` is the output.
    Relu {
        /// The gradient of the output.
        dy: &'a [f32],
    },
}

impl Pass<'_> {
    fn check(&self, len: usize, channels: usize) {
        let vectors = |vectors: &[&[f32]]| {
            assert!(vectors.iter().all(|vector| vector.len() == channels), "vectors of {channels} channels");
        };
        match *self {
            Pass::Forward { scale, shift, residual, .. } => {
                vectors(&[scale, shift]);
                assert!(residual.is_none_or(|residual| residual.len() == len), "a residual of {len} values");
            }
            Pass::Backward { dy, mask, mean, by_gradient, by_input, constant } => {
                vectors(&[mean, by_gradient, by_input, constant]);
                assert!(dy.len() == len, "a gradient of {} values, not {len}", dy.len());
                mask.check(len, channels);
            }
            Pass::Relu { dy } => assert!(dy.len() == len, "a gradient of {} values, not {len}", dy.len()),
        }
    }
}

/// Applies a pass to `[pixels, channels]`.
///
/// # Panics
///
/// If the length of a slice does not match the sizes.
pub fn pass(x: &[f32], channels: usize, pass: Pass<'_>) -> Buffer {
    let mut out = Buffer::new(x.len());
    pass.check(x.len(), channels);
    if x.is_empty() {
        return out;
    }
    let shared = DisjointSlice::new(&mut out);
    let pixels = pixels_of(x.len(), channels);
    let rows = ((128 << 10) / (channels * size_of::<f32>())).max(1);
    let parts = pixels.div_ceil(rows);
    let arch = Arch::new();
    tasks(parts, |index| {
        arch.dispatch(PassTask { x, channels, pass, pixels: part(pixels, parts, index, 1), out: shared });
    });
    out
}

struct PassTask<'a> {
    x: &'a [f32],
    channels: usize,
    pass: Pass<'a>,
    pixels: Range<usize>,
    out: DisjointSlice<'a, f32>,
}

impl WithSimd for PassTask<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, channels, out, .. } = self;
        let zero = simd.splat_f32s(0.0);
        for pixel in self.pixels {
            let mut channel = 0;
            while channel < channels {
                let count = S::F32_LANES.min(channels - channel);
                let at = pixel * channels + channel;
                // SAFETY: `count` channels are left of this pixel in every slice, which are all as large as `x` or
                // have a value for each channel; a task has its pixels of the output alone.
                unsafe {
                    let value = load_at(simd, x, at, count);
                    let result = match self.pass {
                        Pass::Forward { scale, shift, residual, relu } => {
                            let scale = load_at(simd, scale, channel, count);
                            let shift = load_at(simd, shift, channel, count);
                            let mut value = simd.mul_add_e_f32s(value, scale, shift);
                            if let Some(residual) = residual {
                                let residual = load_at(simd, residual, at, count);
                                value = simd.add_f32s(value, residual);
                            }
                            // `max` with its operands in this order propagates NaN.
                            if relu { simd.max_f32s(zero, value) } else { value }
                        }
                        Pass::Backward { dy, mask, mean, by_gradient, by_input, constant } => {
                            let mut gradient = load_at(simd, dy, at, count);
                            match mask {
                                Mask::None => {}
                                Mask::Input(scale, shift) => {
                                    let scale = load_at(simd, scale, channel, count);
                                    let shift = load_at(simd, shift, channel, count);
                                    let output = simd.mul_add_e_f32s(value, scale, shift);
                                    let through = simd.greater_than_f32s(output, zero);
                                    gradient = simd.select_f32s(through, gradient, zero);
                                }
                                Mask::Output(y) => {
                                    let output = load_at(simd, y, at, count);
                                    let through = simd.greater_than_f32s(output, zero);
                                    gradient = simd.select_f32s(through, gradient, zero);
                                }
                            }
                            let mean = load_at(simd, mean, channel, count);
                            let by_gradient = load_at(simd, by_gradient, channel, count);
                            let by_input = load_at(simd, by_input, channel, count);
                            let constant = load_at(simd, constant, channel, count);
                            let rest = simd.mul_add_e_f32s(by_input, simd.sub_f32s(value, mean), constant);
                            simd.mul_add_e_f32s(by_gradient, gradient, rest)
                        }
                        Pass::Relu { dy } => {
                            let gradient = load_at(simd, dy, at, count);
                            simd.select_f32s(simd.greater_than_f32s(value, zero), gradient, zero)
                        }
                    };
                    store_part(simd, out.at(at, count), count, result);
                }
                channel += S::F32_LANES;
            }
        }
    }
}

/// Sums of each channel over the pixels of `[pixels, channels]`.
pub fn channel_sums(x: &[f32], channels: usize) -> Vec<f32> {
    if x.is_empty() {
        return vec![0.0; channels];
    }
    let zeros = vec![0.0; channels];
    let sums = sum(Sums { x, dy: None, mask: Mask::None, center: &zeros, channels });
    sums[..channels].iter().map(|&sum| sum as f32).collect()
}
