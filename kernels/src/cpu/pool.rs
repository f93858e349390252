//! Pooling. Gradients are gathered: each element sums over the windows that contain it, always in the same order.

use std::ops::Range;

use ::half::bf16;
use pulp::{Arch, Simd, WithSimd};

use super::{
    buffer_pool::elements,
    disjoint::{DisjointSlice, part},
    thread_pool::{tasks, threads},
    tile::{load_at, store_part},
};

/// Windows over feature maps `[n, h, w, channels]`. The part of a window outside the input is ignored.
#[derive(Clone, Debug)]
pub struct Window {
    /// The number of images.
    pub n: usize,
    /// The number of channels.
    pub channels: usize,
    /// The input size `[h, w]`.
    pub input: [usize; 2],
    /// The output size `[h, w]`.
    pub output: [usize; 2],
    /// The window size `[h, w]`.
    pub kernel: [usize; 2],
    /// The stride `[h, w]`.
    pub stride: [usize; 2],
    /// The padding before the input, `[top, left]`.
    pub padding: [usize; 2],
}

impl Window {
    fn maps(&self) -> Pooling {
        let axes = [0, 1].map(|axis| {
            let [size, kernel, stride, padding] =
                [self.input, self.kernel, self.stride, self.padding].map(|sizes| sizes[axis]);
            let windows = (0..self.output[axis]).map(|i| {
                let start = i * stride;
                start.saturating_sub(padding)..(start + kernel).saturating_sub(padding).min(size)
            });
            Axis::new(size, windows.collect())
        });
        Pooling { n: self.n, channels: self.channels, axes }
    }

    /// Returns the axes, and the factors of each window's rows and columns in an average.
    fn averages(&self, count_include_pad: bool) -> (Pooling, [Vec<f32>; 2]) {
        let maps = self.maps();
        if !count_include_pad {
            let factors = maps.factors();
            return (maps, factors);
        }
        let factors = [0, 1].map(|axis| {
            let end = self.input[axis] + 2 * self.padding[axis];
            let starts = (0..self.output[axis]).map(|i| i * self.stride[axis]);
            starts.map(|start| 1.0 / (self.kernel[axis].min(end - start)) as f32).collect()
        });
        (maps, factors)
    }

    /// Returns the index of the input pixel in the window of the output, in row-major order.
    #[inline(always)]
    fn index(&self, input: [usize; 2], output: [usize; 2]) -> u32 {
        let [down, right] = [0, 1].map(|axis| input[axis] + self.padding[axis] - output[axis] * self.stride[axis]);
        (down * self.kernel[1] + right) as u32
    }
}

/// The correspondence between an axis of the input and the same axis of the output.
struct Axis {
    /// The input range of each output's window.
    windows: Vec<Range<usize>>,
    /// The range of outputs whose windows contain each input.
    outputs: Vec<Range<usize>>,
}

impl Axis {
    /// Neither the starts nor the ends of the windows may decrease.
    fn new(size: usize, windows: Vec<Range<usize>>) -> Self {
        assert!(windows.iter().all(|window| window.start < window.end), "a window without inputs: {windows:?}");
        let outputs = (0..size).map(|i| {
            windows.partition_point(|window| window.end <= i)..windows.partition_point(|window| window.start <= i)
        });
        Self { outputs: outputs.collect(), windows }
    }
}

/// The correspondence between an input feature map and its pooled output.
struct Pooling {
    n: usize,
    channels: usize,
    axes: [Axis; 2],
}

impl Pooling {
    /// The windows of PyTorch's adaptive pooling.
    fn adaptive(n: usize, channels: usize, input: [usize; 2], output: [usize; 2]) -> Self {
        let axes = [0, 1].map(|axis| {
            let (from, to) = (input[axis], output[axis]);
            Axis::new(from, (0..to).map(|i| i * from / to..((i + 1) * from).div_ceil(to)).collect())
        });
        Self { n, channels, axes }
    }

    /// Returns the factors of each window's rows and columns for an average without padding.
    fn factors(&self) -> [Vec<f32>; 2] {
        [0, 1].map(|axis| self.axes[axis].windows.iter().map(|window| 1.0 / window.len() as f32).collect())
    }

    fn input(&self) -> [usize; 2] {
        [0, 1].map(|axis| self.axes[axis].outputs.len())
    }

    fn output(&self) -> [usize; 2] {
        [0, 1].map(|axis| self.axes[axis].windows.len())
    }

    /// Returns the number of floats of feature maps of this size.
    fn len(&self, [height, width]: [usize; 2]) -> usize {
        elements([self.n, height, width, self.channels])
    }

    /// Returns the offset of a channel of an input pixel.
    #[inline(always)]
    fn input_at(&self, image: usize, [down, right]: [usize; 2], channel: usize) -> usize {
        ((image * self.axes[0].outputs.len() + down) * self.axes[1].outputs.len() + right) * self.channels + channel
    }

    /// Returns the offset of a channel of an output pixel.
    #[inline(always)]
    fn output_at(&self, image: usize, [down, right]: [usize; 2], channel: usize) -> usize {
        ((image * self.axes[0].windows.len() + down) * self.axes[1].windows.len() + right) * self.channels + channel
    }
}

/// Max pooling; NaN propagates.
pub fn max_pool(x: &[f32], window: &Window, y: &mut [f32]) {
    let maps = window.maps();
    check_lengths(&maps, x, y);
    let max = Max::<false> { x, window, maps: &maps, y: DisjointSlice::new(y), indices: DisjointSlice::new(&mut []) };
    run(&max, &maps, maps.output());
}

/// Max pooling of bf16 values.
pub fn max_pool_bf16(x: &[bf16], window: &Window, y: &mut [bf16]) {
    let maps = window.maps();
    assert_eq!(x.len(), maps.len(maps.input()), "not the input's size");
    assert_eq!(y.len(), maps.len(maps.output()), "not the output's size");
    run(&MaxOfHalves { x, maps: &maps, y: DisjointSlice::new(y) }, &maps, maps.output());
}

/// Max pooling with the index of each maximum in its window, in row-major order: the first of equal values, but the
/// last NaN, as in PyTorch.
///
/// # Panics
/// If windows have more than 256 elements.
pub fn max_pool_with_indices(x: &[f32], window: &Window, y: &mut [f32], indices: &mut [u8]) {
    let maps = window.maps();
    check_lengths(&maps, x, y);
    assert_eq!(indices.len(), y.len());
    assert!(window.kernel[0] * window.kernel[1] <= 256, "indices do not fit bytes: {window:?}");
    let max = Max::<true> { x, window, maps: &maps, y: DisjointSlice::new(y), indices: DisjointSlice::new(indices) };
    run(&max, &maps, maps.output());
}

/// The gradient of [`max_pool_with_indices`]: writes all of `dx`.
pub fn max_pool_backward(dy: &[f32], indices: &[u8], window: &Window, dx: &mut [f32]) {
    let maps = window.maps();
    check_lengths(&maps, dx, dy);
    assert_eq!(indices.len(), dy.len());
    let gather = MaxBackward { dy, indices, window, maps: &maps, dx: DisjointSlice::new(dx) };
    run(&gather, &maps, maps.input());
}

/// Average pooling. `count_include_pad` counts the padding, as wide after the input as before it, as zeros.
pub fn avg_pool(x: &[f32], window: &Window, count_include_pad: bool, y: &mut [f32]) {
    let (maps, factors) = window.averages(count_include_pad);
    average(x, &maps, &factors, y);
}

/// The gradient of [`avg_pool`]: writes all of `dx`.
pub fn avg_pool_backward(dy: &[f32], window: &Window, count_include_pad: bool, dx: &mut [f32]) {
    let (maps, factors) = window.averages(count_include_pad);
    average_backward(dy, &maps, &factors, dx);
}

/// Adaptive average pooling from size `input` to size `output`.
pub fn adaptive_avg_pool(x: &[f32], n: usize, channels: usize, input: [usize; 2], output: [usize; 2], y: &mut [f32]) {
    let maps = Pooling::adaptive(n, channels, input, output);
    average(x, &maps, &maps.factors(), y);
}

/// The gradient of [`adaptive_avg_pool`]: writes all of `dx`.
pub fn adaptive_avg_pool_backward(
    dy: &[f32],
    n: usize,
    channels: usize,
    input: [usize; 2],
    output: [usize; 2],
    dx: &mut [f32],
) {
    let maps = Pooling::adaptive(n, channels, input, output);
    average_backward(dy, &maps, &maps.factors(), dx);
}

fn average(x: &[f32], maps: &Pooling, factors: &[Vec<f32>; 2], y: &mut [f32]) {
    check_lengths(maps, x, y);
    run(&Average { x, maps, factors, y: DisjointSlice::new(y) }, maps, maps.output());
}

fn average_backward(dy: &[f32], maps: &Pooling, factors: &[Vec<f32>; 2], dx: &mut [f32]) {
    check_lengths(maps, dx, dy);
    run(&AverageBackward { dy, maps, factors, dx: DisjointSlice::new(dx) }, maps, maps.input());
}

fn check_lengths(maps: &Pooling, input: &[f32], output: &[f32]) {
    assert_eq!(input.len(), maps.len(maps.input()), "not the input's size");
    assert_eq!(output.len(), maps.len(maps.output()), "not the output's size");
}

/// Computes each pixel of a feature map independently.
trait Pixel: Sync {
    /// Computes `N` vectors of a pixel from `channel` on, each of `count` channels: fewer than lanes only if `N` is 1.
    ///
    /// # Safety
    /// The pixel must have these channels, and no other task may access them.
    unsafe fn compute<S: Simd, const N: usize>(
        &self,
        simd: S,
        image: usize,
        pixel: [usize; 2],
        channel: usize,
        count: usize,
    );
}

/// The number of vectors computed at once. Additions along a window depend on each other, those of different channels
/// do not.
const VECTORS: usize = 4;
/// Channels are split among tasks in units of a cache line.
const LINE: usize = 16;
/// The minimum number of floats of a task.
const TASK: usize = 4096;

/// Computes all pixels of a feature map of this `size`.
fn run<P: Pixel>(pixel: &P, maps: &Pooling, size: [usize; 2]) {
    let pixels = maps.n * size[0] * size[1];
    if pixels * maps.channels == 0 {
        return;
    }
    let floats = maps.len(maps.input()).max(maps.len(maps.output()));
    let wanted = (floats / TASK).clamp(1, 4 * threads());
    let rows = wanted.min(pixels);
    let columns = wanted.div_ceil(rows).min(maps.channels.div_ceil(LINE));
    tasks(rows * columns, |task| {
        Arch::new().dispatch(Part {
            pixel,
            size,
            pixels: part(pixels, rows, task / columns, 1),
            channels: part(maps.channels, columns, task % columns, LINE),
        });
    });
}

/// A task: some channels of some pixels.
struct Part<'a, P> {
    pixel: &'a P,
    size: [usize; 2],
    pixels: Range<usize>,
    channels: Range<usize>,
}

impl<P: Pixel> WithSimd for Part<'_, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = S::F32_LANES;
        let [height, width] = self.size;
        let Range { start, end } = self.channels;
        let first = self.pixels.start;
        let (mut image, mut down, mut right) = (first / (height * width), first / width % height, first % width);
        for _ in self.pixels {
            let pixel = [down, right];
            // SAFETY: the feature map has these channels, and the parts of tasks are disjoint.
            unsafe {
                if end - start < lanes {
                    self.pixel.compute::<S, 1>(simd, image, pixel, start, end - start);
                } else {
                    let mut channel = start;
                    while channel + VECTORS * lanes <= end {
                        self.pixel.compute::<S, VECTORS>(simd, image, pixel, channel, lanes);
                        channel += VECTORS * lanes;
                    }
                    // The last vector starts early: some channels twice are faster than part of a vector.
                    while channel < end {
                        self.pixel.compute::<S, 1>(simd, image, pixel, channel.min(end - lanes), lanes);
                        channel += lanes;
                    }
                }
            }
            right += 1;
            if right == width {
                (right, down) = (0, down + 1);
            }
            if down == height {
                (down, image) = (0, image + 1);
            }
        }
    }
}

/// Loads at most `S::F32_LANES` bytes as a vector of integers, padded with zeros.
#[inline(always)]
fn widen<S: Simd>(simd: S, bytes: &[u8]) -> S::u32s {
    let mut wide = simd.splat_u32s(0);
    let lanes = (&raw mut wide).cast::<u32>();
    assert!(bytes.len() <= S::F32_LANES);
    for (lane, &byte) in bytes.iter().enumerate() {
        // SAFETY: a vector has the layout of an array of its lanes, and there are as many lanes as bytes at least.
        unsafe { lanes.add(lane).write(u32::from(byte)) };
    }
    wide
}

/// Stores the lowest bytes of a vector's first `count` integers.
///
/// # Safety
/// `to` must be good for writing `count` bytes.
#[inline(always)]
unsafe fn narrow<S: Simd>(to: *mut u8, count: usize, wide: S::u32s) {
    let lanes = (&raw const wide).cast::<u32>();
    for lane in 0..count {
        // SAFETY: `to` has `count` writable bytes, and `wide` has at least as many lanes.
        unsafe { to.add(lane).write(lanes.add(lane).read() as u8) };
    }
}

struct Max<'a, const PLACES: bool> {
    x: &'a [f32],
    window: &'a Window,
    maps: &'a Pooling,
    y: DisjointSlice<'a, f32>,
    indices: DisjointSlice<'a, u8>,
}

impl<const PLACES: bool> Pixel for Max<'_, PLACES> {
    #[inline(always)]
    unsafe fn compute<S: Simd, const N: usize>(
        &self,
        simd: S,
        image: usize,
        pixel: [usize; 2],
        channel: usize,
        count: usize,
    ) {
        let lanes = S::F32_LANES;
        let [rows, columns] = [0, 1].map(|axis| self.maps.axes[axis].windows[pixel[axis]].clone());
        // The first element always replaces the initial value.
        let mut most = [simd.splat_f32s(f32::NEG_INFINITY); N];
        let mut indices = [simd.splat_u32s(self.window.index([rows.start, columns.start], pixel)); N];
        for down in rows {
            for right in columns.clone() {
                let at = self.maps.input_at(image, [down, right], channel);
                let index = simd.splat_u32s(self.window.index([down, right], pixel));
                for n in 0..N {
                    // SAFETY: the window is clipped to the input.
                    let x = unsafe { load_at(simd, self.x, at + n * lanes, count) };
                    let nan = simd.not_m32s(simd.equal_f32s(x, x));
                    let larger = simd.or_m32s(simd.greater_than_f32s(x, most[n]), nan);
                    most[n] = simd.select_f32s(larger, x, most[n]);
                    if PLACES {
                        indices[n] = simd.select_u32s(larger, index, indices[n]);
                    }
                }
            }
        }
        let at = self.maps.output_at(image, pixel, channel);
        for n in 0..N {
            // SAFETY: the output has these channels of this pixel, and no other task accesses them.
            unsafe {
                store_part(simd, self.y.at(at + n * lanes, count), count, most[n]);
                if PLACES {
                    narrow::<S>(self.indices.at(at + n * lanes, count), count, indices[n]);
                }
            }
        }
    }
}

struct MaxOfHalves<'a> {
    x: &'a [bf16],
    maps: &'a Pooling,
    y: DisjointSlice<'a, bf16>,
}

impl Pixel for MaxOfHalves<'_> {
    #[inline(always)]
    unsafe fn compute<S: Simd, const N: usize>(
        &self,
        _simd: S,
        image: usize,
        pixel: [usize; 2],
        channel: usize,
        count: usize,
    ) {
        let [rows, columns] = [0, 1].map(|axis| self.maps.axes[axis].windows[pixel[axis]].clone());
        let end = channel + N * count;
        let mut first = channel;
        while first < end {
            // SAFETY: the channels from `first` to `end` are accessed by this task only.
            unsafe {
                if first + 2 * LINE <= end {
                    self.block::<{ 2 * LINE }>(image, pixel, first, [rows.clone(), columns.clone()]);
                    first += 2 * LINE;
                } else if first + LINE <= end {
                    self.block::<LINE>(image, pixel, first, [rows.clone(), columns.clone()]);
                    first += LINE;
                } else {
                    self.block::<1>(image, pixel, first, [rows.clone(), columns.clone()]);
                    first += 1;
                }
            }
        }
    }
}

impl MaxOfHalves<'_> {
    /// Computes `COUNT` channels from `first` on, in a loop that the compiler vectorizes.
    ///
    /// # Safety
    /// No other task may access them.
    #[inline(always)]
    unsafe fn block<const COUNT: usize>(
        &self,
        image: usize,
        pixel: [usize; 2],
        first: usize,
        [rows, columns]: [Range<usize>; 2],
    ) {
        let mut most = [i16::MIN; COUNT];
        for down in rows {
            let mut at = self.maps.input_at(image, [down, columns.start], first);
            for _ in columns.clone() {
                let x: &[bf16; COUNT] = self.x[at..at + COUNT].try_into().expect("as many values");
                for i in 0..COUNT {
                    most[i] = most[i].max(rank(x[i]));
                }
                at += self.maps.channels;
            }
        }
        let at = self.maps.output_at(image, pixel, first);
        // SAFETY: the `COUNT` channels are accessed by this task only.
        let y = unsafe { self.y.range(at..at + COUNT) };
        for i in 0..COUNT {
            // The mapping is its own inverse.
            y[i] = bf16::from_bits((most[i] ^ (most[i] >> 15 & 0x7fff)) as u16);
        }
    }
}

/// Returns an integer that grows with a value; NaN has the largest.
#[inline(always)]
fn rank(x: bf16) -> i16 {
    let bits = x.to_bits() as i16;
    if bits & 0x7fff > 0x7f80 { i16::MAX } else { bits ^ (bits >> 15 & 0x7fff) }
}

struct MaxBackward<'a> {
    dy: &'a [f32],
    indices: &'a [u8],
    window: &'a Window,
    maps: &'a Pooling,
    dx: DisjointSlice<'a, f32>,
}

impl Pixel for MaxBackward<'_> {
    #[inline(always)]
    unsafe fn compute<S: Simd, const N: usize>(
        &self,
        simd: S,
        image: usize,
        pixel: [usize; 2],
        channel: usize,
        count: usize,
    ) {
        let lanes = S::F32_LANES;
        let [rows, columns] = [0, 1].map(|axis| self.maps.axes[axis].outputs[pixel[axis]].clone());
        let zero = simd.splat_f32s(0.0);
        let mut sums = [zero; N];
        for down in rows {
            for right in columns.clone() {
                let at = self.maps.output_at(image, [down, right], channel);
                let index = simd.splat_u32s(self.window.index(pixel, [down, right]));
                for n in 0..N {
                    // SAFETY: the outputs are inside the output map, which has as many indices.
                    let (dy, indices) = unsafe {
                        (
                            load_at(simd, self.dy, at + n * lanes, count),
                            widen(simd, &self.indices[at + n * lanes..][..count]),
                        )
                    };
                    let here = simd.equal_u32s(indices, index);
                    sums[n] = simd.add_f32s(sums[n], simd.select_f32s(here, dy, zero));
                }
            }
        }
        let at = self.maps.input_at(image, pixel, channel);
        for n in 0..N {
            // SAFETY: the input has these channels of this pixel, and no other task accesses them.
            unsafe { store_part(simd, self.dx.at(at + n * lanes, count), count, sums[n]) };
        }
    }
}

struct Average<'a> {
    x: &'a [f32],
    maps: &'a Pooling,
    factors: &'a [Vec<f32>; 2],
    y: DisjointSlice<'a, f32>,
}

impl Pixel for Average<'_> {
    #[inline(always)]
    unsafe fn compute<S: Simd, const N: usize>(
        &self,
        simd: S,
        image: usize,
        pixel: [usize; 2],
        channel: usize,
        count: usize,
    ) {
        let lanes = S::F32_LANES;
        let [rows, columns] = [0, 1].map(|axis| self.maps.axes[axis].windows[pixel[axis]].clone());
        let mut sums = [simd.splat_f32s(0.0); N];
        for down in rows {
            // Summing rows first is more accurate for large windows.
            let mut row = [simd.splat_f32s(0.0); N];
            for right in columns.clone() {
                let at = self.maps.input_at(image, [down, right], channel);
                for n in 0..N {
                    // SAFETY: the window is clipped to the input.
                    let x = unsafe { load_at(simd, self.x, at + n * lanes, count) };
                    row[n] = simd.add_f32s(row[n], x);
                }
            }
            for n in 0..N {
                sums[n] = simd.add_f32s(sums[n], row[n]);
            }
        }
        let factor = simd.splat_f32s(self.factors[0][pixel[0]] * self.factors[1][pixel[1]]);
        let at = self.maps.output_at(image, pixel, channel);
        for n in 0..N {
            // SAFETY: the output has these channels of this pixel, and no other task accesses them.
            unsafe { store_part(simd, self.y.at(at + n * lanes, count), count, simd.mul_f32s(factor, sums[n])) };
        }
    }
}

struct AverageBackward<'a> {
    dy: &'a [f32],
    maps: &'a Pooling,
    factors: &'a [Vec<f32>; 2],
    dx: DisjointSlice<'a, f32>,
}

impl Pixel for AverageBackward<'_> {
    #[inline(always)]
    unsafe fn compute<S: Simd, const N: usize>(
        &self,
        simd: S,
        image: usize,
        pixel: [usize; 2],
        channel: usize,
        count: usize,
    ) {
        let lanes = S::F32_LANES;
        let [rows, columns] = [0, 1].map(|axis| self.maps.axes[axis].outputs[pixel[axis]].clone());
        let mut sums = [simd.splat_f32s(0.0); N];
        for down in rows {
            for right in columns.clone() {
                let at = self.maps.output_at(image, [down, right], channel);
                let factor = simd.splat_f32s(self.factors[0][down] * self.factors[1][right]);
                for n in 0..N {
                    // SAFETY: the outputs are inside the output map.
                    let dy = unsafe { load_at(simd, self.dy, at + n * lanes, count) };
                    sums[n] = simd.mul_add_e_f32s(factor, dy, sums[n]);
                }
            }
        }
        let at = self.maps.input_at(image, pixel, channel);
        for n in 0..N {
            // SAFETY: the input has these channels of this pixel, and no other task accesses them.
            unsafe { store_part(simd, self.dx.at(at + n * lanes, count), count, sums[n]) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::Random, *};

    fn windows(random: &mut Random) -> Vec<Window> {
        let mut windows = Vec::new();
        while windows.len() < 150 {
            let mut two = |from: usize, to: usize| [random.size(from, to), random.size(from, to)];
            let (input, kernel, stride) = (two(1, 11), two(1, 5), two(1, 3));
            let padding = two(0, 4);
            let padding = [0, 1].map(|axis| padding[axis].min(kernel[axis] / 2));
            if [0, 1].iter().any(|&axis| input[axis] + 2 * padding[axis] < kernel[axis]) {
                continue;
            }
            let ceil = random.size(0, 1) == 1;
            let output = [0, 1].map(|axis| {
                let rest = input[axis] + 2 * padding[axis] - kernel[axis];
                let size = 1 + if ceil { rest.div_ceil(stride[axis]) } else { rest / stride[axis] };
                // PyTorch: the last window must start inside the map or the padding before it.
                if (size - 1) * stride[axis] >= input[axis] + padding[axis] { size - 1 } else { size }
            });
            let channels = [1, 3, 8, 16, 24, 67, 112][random.size(0, 6)];
            windows.push(Window { n: [1, 3][random.size(0, 1)], channels, input, output, kernel, stride, padding });
        }
        windows
    }

    /// Calls `visit` with the offset of the output, of the input, and its index in the window, for each element of each window.
    fn elements(window: &Window, mut visit: impl FnMut(usize, usize, usize)) {
        let Window { n, channels, input, output, kernel, stride, padding } = window.clone();
        for image in 0..n {
            for out in 0..output[0] * output[1] {
                let (top, left) = (out / output[1] * stride[0], out % output[1] * stride[1]);
                for index in 0..kernel[0] * kernel[1] {
                    let (down, right) = (top + index / kernel[1], left + index % kernel[1]);
                    let inside = |at: usize, axis: usize| at >= padding[axis] && at - padding[axis] < input[axis];
                    if inside(down, 0) && inside(right, 1) {
                        let pixel = (image * input[0] + down - padding[0]) * input[1] + right - padding[1];
                        for channel in 0..channels {
                            let out = (image * output[0] * output[1] + out) * channels + channel;
                            visit(out, pixel * channels + channel, index);
                        }
                    }
                }
            }
        }
    }

    fn lengths(window: &Window) -> [usize; 2] {
        [window.input, window.output].map(|[h, w]| window.n * h * w * window.channels)
    }

    fn assert_close(what: &[f32], expected: &[f64], of: &dyn std::fmt::Debug) {
        assert_eq!(what.len(), expected.len());
        for (&value, &expected) in what.iter().zip(expected) {
            assert!((f64::from(value) - expected).abs() <= 2e-6 * (1.0 + expected.abs()), "{value} {expected}: {of:?}");
        }
    }

    #[test]
    fn max_is_exact_and_flows_back_to_its_place() {
        let mut random = Random::new(1);
        for window in windows(&mut random) {
            let [input, output] = lengths(&window);
            // Few values, so that many are equal.
            let x: Vec<f32> = (0..input).map(|_| random.size(0, 9) as f32 - 5.0).collect();
            let mut expected = vec![f32::NEG_INFINITY; output];
            let mut from = vec![(0, 0); output];
            elements(&window, |out, at, index| {
                if x[at] > expected[out] {
                    (expected[out], from[out]) = (x[at], (at, index));
                }
            });
            let (mut y, mut indices) = (vec![f32::NAN; output], vec![255; output]);
            max_pool(&x, &window, &mut y);
            assert_eq!(y, expected, "{window:?}");
            y.fill(f32::NAN);
            max_pool_with_indices(&x, &window, &mut y, &mut indices);
            assert_eq!(y, expected, "{window:?}");
            assert!(indices.iter().zip(&from).all(|(&index, from)| usize::from(index) == from.1), "{window:?}");

            let dy = random.floats(output);
            let mut expected = vec![0.0; input];
            for (dy, (at, _)) in dy.iter().zip(&from) {
                expected[*at] += f64::from(*dy);
            }
            let mut dx = vec![f32::NAN; input];
            max_pool_backward(&dy, &indices, &window, &mut dx);
            assert_close(&dx, &expected, &window);
        }
    }

    #[test]
    fn maxima_of_halves_are_those_of_the_same_floats() {
        let mut random = Random::new(5);
        for window in windows(&mut random) {
            let [input, output] = lengths(&window);
            let x: Vec<bf16> = random.floats(input).into_iter().map(bf16::from_f32).collect();
            let (mut y, mut halves) = (vec![f32::NAN; output], vec![bf16::NAN; output]);
            max_pool(&x.iter().map(|x| x.to_f32()).collect::<Vec<_>>(), &window, &mut y);
            max_pool_bf16(&x, &window, &mut halves);
            assert_eq!(halves.iter().map(|y| y.to_f32()).collect::<Vec<_>>(), y, "{window:?}");
        }
    }

    #[test]
    fn nan_is_the_largest_and_infinities_have_places() {
        let window = Window {
            n: 1,
            channels: 1,
            input: [1, 9],
            output: [1, 3],
            kernel: [1, 3],
            stride: [1, 3],
            padding: [0, 0],
        };
        let (low, nan) = (f32::NEG_INFINITY, f32::NAN);
        let x = [1.0, nan, 7.0, nan, 3.0, nan, low, low, low];
        let (mut y, mut indices) = ([0.0; 3], [9; 3]);
        max_pool_with_indices(&x, &window, &mut y, &mut indices);
        assert!(y[0].is_nan() && y[1].is_nan() && y[2] == low, "{y:?}");
        assert_eq!(indices, [1, 2, 0]);
    }

    #[test]
    fn averages_and_their_gradients_match_plain_sums() {
        let mut random = Random::new(2);
        for (window, count_include_pad) in
            windows(&mut random).into_iter().flat_map(|w| [(w.clone(), false), (w, true)])
        {
            let [input, output] = lengths(&window);
            let (x, dy) = (random.floats(input), random.floats(output));
            let mut divisors = vec![0.0; output];
            if count_include_pad {
                for (out, divisor) in divisors.iter_mut().enumerate() {
                    let [_, width] = window.output;
                    let pixel = out / window.channels % (window.output[0] * width);
                    let area = [pixel / width, pixel % width].into_iter().enumerate().map(|(axis, i)| {
                        let start = i * window.stride[axis];
                        (start + window.kernel[axis]).min(window.input[axis] + 2 * window.padding[axis]) - start
                    });
                    *divisor = area.product::<usize>() as f64;
                }
            } else {
                elements(&window, |out, _, _| divisors[out] += 1.0);
            }
            let (mut expected, mut expected_dx) = (vec![0.0; output], vec![0.0; input]);
            elements(&window, |out, at, _| {
                expected[out] += f64::from(x[at]) / divisors[out];
                expected_dx[at] += f64::from(dy[out]) / divisors[out];
            });
            let (mut y, mut dx) = (vec![f32::NAN; output], vec![f32::NAN; input]);
            avg_pool(&x, &window, count_include_pad, &mut y);
            assert_close(&y, &expected, &window);
            avg_pool_backward(&dy, &window, count_include_pad, &mut dx);
            assert_close(&dx, &expected_dx, &window);
        }
    }

    #[test]
    fn adaptive_averages_and_their_gradients_match_plain_sums() {
        let mut random = Random::new(3);
        for round in 0..150 {
            let (n, channels) = ([1, 3][round % 2], [1, 16, 24, 67, 208, 300][random.size(0, 5)]);
            let input = [random.size(1, 15), random.size(1, 15)];
            let output = if round < 50 { [1, 1] } else { [random.size(1, 8), random.size(1, 8)] };
            let [x, dy] = [input, output].map(|[h, w]| random.floats(n * h * w * channels));
            let (mut expected, mut expected_dx) = (vec![0.0; dy.len()], vec![0.0; x.len()]);
            for out in 0..dy.len() {
                let (pixel, channel) = (out / channels, out % channels);
                let image = pixel / (output[0] * output[1]);
                let at = [pixel / output[1] % output[0], pixel % output[1]];
                let [rows, columns] = [0, 1].map(|axis| {
                    let (i, from, to) = (at[axis] as f64, input[axis] as f64, output[axis] as f64);
                    (i * from / to).floor() as usize..((i + 1.0) * from / to).ceil() as usize
                });
                let count = (rows.len() * columns.len()) as f64;
                for down in rows {
                    for right in columns.clone() {
                        let at = ((image * input[0] + down) * input[1] + right) * channels + channel;
                        expected[out] += f64::from(x[at]) / count;
                        expected_dx[at] += f64::from(dy[out]) / count;
                    }
                }
            }
            let (mut y, mut dx) = (vec![f32::NAN; dy.len()], vec![f32::NAN; x.len()]);
            adaptive_avg_pool(&x, n, channels, input, output, &mut y);
            assert_close(&y, &expected, &(n, channels, input, output));
            adaptive_avg_pool_backward(&dy, n, channels, input, output, &mut dx);
            assert_close(&dx, &expected_dx, &(n, channels, input, output));
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        let window = Window {
            n: 2,
            channels: 83,
            input: [29, 31],
            output: [14, 15],
            kernel: [3, 3],
            stride: [2, 2],
            padding: [0, 0],
        };
        let [input, output] = lengths(&window);
        let mut random = Random::new(4);
        let (x, dy) = (random.floats(input), random.floats(output));
        let all = |threads: usize| {
            let (mut y, mut indices, mut max_dx) = (vec![0.0; output], vec![0; output], vec![0.0; input]);
            let (mut mean, mut avg, mut avg_dx) = (vec![0.0; 2 * 83], vec![0.0; output], vec![0.0; input]);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                max_pool_with_indices(&x, &window, &mut y, &mut indices);
                max_pool_backward(&dy, &indices, &window, &mut max_dx);
                avg_pool(&x, &window, true, &mut avg);
                avg_pool_backward(&dy, &window, true, &mut avg_dx);
                adaptive_avg_pool(&x, 2, 83, window.input, [1, 1], &mut mean);
            });
            (y, indices, max_dx, mean, avg, avg_dx)
        };
        assert!(all(1) == all(5));
    }
}
