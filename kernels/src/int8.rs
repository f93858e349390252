//! Quantized inference: operations on feature maps of bytes, channels last, in memory that the caller owns.
//!
//! A byte `q` stands for the number `(q − zero) · scale`; the zero point `zero` and the scale belong to a feature map.
//! Weights are signed bytes with a scale for each output channel. Sums are exact in i32; what follows is the same f32
//! arithmetic on every processor, so results depend neither on the instruction set nor on the number of threads.
//!
//! ```
//! use kernels::int8::{Conv2d, Geometry, Map, MapMut, Requantize};
//!
//! // A 1 × 1 convolution of one channel with the weight 2, for inputs with the zero point 10.
//! let geometry = Geometry { kernel: [1, 1], stride: [1, 1], padding: [[0, 0]; 2], dilation: [1, 1], groups: 1 };
//! let conv = Conv2d::new(&[2], [1, 1], geometry, &[10]).unwrap();
//! let x = [11, 12, 13, 14];
//! let mut y = [0; 4];
//! let requantize = Requantize { scale: &[1.0], bias: &[3.0], residual: None, low: 0 };
//! conv.run(Map::new(&x, 1, [2, 2], 1), &requantize, MapMut::new(&mut y, 1, [2, 2], 1));
//! assert_eq!(y, [5, 7, 9, 11]);
//! ```

use std::{
    borrow::Cow,
    sync::{Mutex, PoisonError},
};

use burn::tensor::Tensor;
#[cfg(feature = "flex")]
use burn::{backend::Flex, tensor::DType};

#[cfg(feature = "flex")]
use crate::accelerates;
use crate::cpu::{
    conv::{Shape, Tap, forward_taps, reads_rows},
    disjoint::DisjointSlice,
    int8::{self as gemm, Instructions, Out, Packed, Product, Residual, SLACK},
    thread_pool::tasks,
};

pub use crate::cpu::int8::MAX_DEPTH;

/// A feature map of bytes with its channels last.
#[derive(Debug, Clone, Copy)]
pub struct Map<'a> {
    /// `[n, height, width, pitch]`.
    pub data: &'a [u8],
    /// The number of images.
    pub n: usize,
    /// Height and width.
    pub size: [usize; 2],
    /// The number of channels.
    pub channels: usize,
    /// The distance between pixels in bytes.
    pub pitch: usize,
    /// The first channel within a pixel.
    pub offset: usize,
}

/// A feature map of bytes that is written.
#[derive(Debug)]
pub struct MapMut<'a> {
    /// `[n, height, width, pitch]`.
    pub data: &'a mut [u8],
    /// The number of images.
    pub n: usize,
    /// Height and width.
    pub size: [usize; 2],
    /// The number of channels.
    pub channels: usize,
    /// The distance between pixels in bytes.
    pub pitch: usize,
    /// The first channel within a pixel.
    pub offset: usize,
}

/// Returns the bytes of a map, if they are addressable.
fn bytes(n: usize, [height, width]: [usize; 2], pitch: usize) -> Option<usize> {
    n.checked_mul(height)?.checked_mul(width)?.checked_mul(pitch)
}

impl<'a> Map<'a> {
    /// A map whose pixels follow each other.
    pub fn new(data: &'a [u8], n: usize, size: [usize; 2], channels: usize) -> Self {
        Self { data, n, size, channels, pitch: channels, offset: 0 }
    }

    fn check(&self, name: &str) {
        let fits = self.offset.checked_add(self.channels).is_some_and(|end| end <= self.pitch);
        assert!(fits, "{name}: {} channels from {} on do not fit into {}", self.channels, self.offset, self.pitch);
        let needed = bytes(self.n, self.size, self.pitch);
        assert!(
            needed.is_some_and(|needed| self.data.len() >= needed),
            "{name}: {} bytes are too few",
            self.data.len()
        );
    }

    /// The channels of a pixel, counted over all images.
    #[inline(always)]
    fn pixel(&self, index: usize) -> &'a [u8] {
        &self.data[index * self.pitch + self.offset..][..self.channels]
    }
}

impl<'a> MapMut<'a> {
    /// A map whose pixels follow each other.
    pub fn new(data: &'a mut [u8], n: usize, size: [usize; 2], channels: usize) -> Self {
        Self { data, n, size, channels, pitch: channels, offset: 0 }
    }

    fn check(&self, name: &str) {
        let Self { n, size, channels, pitch, offset, .. } = *self;
        Map { data: self.data, n, size, channels, pitch, offset }.check(name);
    }

    /// Runs `work` for every row of pixels, `n · height` of them, with the vector instructions of this processor, for which
    /// it must be `#[inline(always)]`.
    fn rows(self, work: impl Fn(usize, Row<'_>) + Sync + Send) {
        let [height, width] = self.size;
        let Self { channels, pitch, offset, .. } = self;
        if channels == 0 || width == 0 {
            return;
        }
        let (data, row_bytes) = (DisjointSlice::new(self.data), width * pitch);
        tasks(self.n * height, |row| {
            // SAFETY: each row belongs to one task.
            let bytes = unsafe { data.range(row * row_bytes..(row + 1) * row_bytes) };
            let pixels = Row { bytes, channels, pitch, offset };
            pulp::Arch::new().dispatch(
                #[inline(always)]
                || work(row, pixels),
            );
        });
    }
}

/// A row of pixels that one task writes.
struct Row<'a> {
    bytes: &'a mut [u8],
    channels: usize,
    pitch: usize,
    offset: usize,
}

impl Row<'_> {
    #[inline(always)]
    fn pixel(&mut self, column: usize) -> &mut [u8] {
        &mut self.bytes[column * self.pitch + self.offset..][..self.channels]
    }
}

/// The windows of a convolution or pooling. Sizes are `[height, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// The size of a window.
    pub kernel: [usize; 2],
    /// The distance between windows.
    pub stride: [usize; 2],
    /// The padding, `[[top, bottom], [left, right]]`.
    pub padding: [[usize; 2]; 2],
    /// The distance between the pixels of a window.
    pub dilation: [usize; 2],
    /// The number of groups of channels.
    pub groups: usize,
}

impl Geometry {
    fn shape(&self, n: usize, input: [usize; 2], channels_in: usize, channels_out: usize) -> Shape {
        let Self { kernel, stride, padding, dilation, groups } = *self;
        Shape { n, channels_in, channels_out, input, kernel, stride, padding, dilation, groups }
    }

    /// Returns the size of the output, or `None` if no window fits into the padded input.
    pub fn output(&self, input: [usize; 2]) -> Option<[usize; 2]> {
        let positive = [self.kernel, self.stride, self.dilation].iter().flatten().all(|&size| size > 0);
        positive.then(|| self.shape(1, input, 1, 1).output()).flatten()
    }
}

/// From a sum to a byte: `clamp(round(sum · scale + residual · residual.scale + bias), low, 255)`.
#[derive(Debug, Clone, Copy)]
pub struct Requantize<'a> {
    /// Multiplies the sum of each channel: scale of the input · scale of the weights / scale of the output.
    pub scale: &'a [f32],
    /// Added to each channel, in steps of the output; contains the output's zero point, and minus the residual's zero point
    /// times its scale.
    pub bias: &'a [f32],
    /// A map of the output's shape, and what its bytes are multiplied by.
    pub residual: Option<(Map<'a>, f32)>,
    /// The smallest result: the zero point of the output for a fused ReLU, otherwise 0.
    pub low: u8,
}

/// A convolution with packed weights.
pub struct Conv2d {
    geometry: Geometry,
    channels_in: usize,
    channels_out: usize,
    /// Groups, several of which may be merged into one, whose weights between different groups are zero.
    parts: Vec<Packed>,
    /// Whether kernel rows are read at once from a padded copy.
    rows: bool,
    taps: Vec<Tap>,
    /// What padding reads, and the slack.
    zeros: Vec<u8>,
    /// Memory of padded copies.
    scratch: Mutex<Vec<Vec<u8>>>,
}

impl Conv2d {
    /// Packs the weights `[c_out, c_in / groups, kh, kw]` of a convolution of `[c_in, c_out]` channels, for inputs whose
    /// zero point is `zeros[channel]`, or the only one of `zeros`. Returns `None` if a sum has more than [`MAX_DEPTH`]
    /// products.
    ///
    /// # Panics
    /// If the number of weights or zero points does not fit, or a size is zero.
    pub fn new(
        weights: &[i8],
        [channels_in, channels_out]: [usize; 2],
        geometry: Geometry,
        zeros: &[u8],
    ) -> Option<Self> {
        const NAME: &str = "int8::Conv2d";
        let Geometry { kernel: [kernel_h, kernel_w], groups, stride, dilation, .. } = geometry;
        let sizes =
            [channels_in, channels_out, kernel_h, kernel_w, groups, stride[0], stride[1], dilation[0], dilation[1]];
        assert!(!sizes.contains(&0), "{NAME}: a size is zero: {channels_in} → {channels_out} channels, {geometry:?}");
        let divides = channels_in.is_multiple_of(groups) && channels_out.is_multiple_of(groups);
        assert!(divides, "{NAME}: {groups} groups do not divide {channels_in} and {channels_out} channels");
        let (inputs, outputs) = (channels_in / groups, channels_out / groups);
        let taps = kernel_h.checked_mul(kernel_w)?;
        let depth = inputs.checked_mul(taps).filter(|&depth| depth <= MAX_DEPTH)?;
        let count = channels_out.checked_mul(depth)?;
        assert!(weights.len() == count, "{NAME}: {} weights, expected {count}", weights.len());
        assert!([1, channels_in].contains(&zeros.len()), "{NAME}: {} zero points", zeros.len());
        let zero = |channel: usize| zeros[if zeros.len() == 1 { 0 } else { channel }];

        // As many groups together as fill a vector of outputs.
        let together =
            (1..=groups).rev().find(|&many| groups.is_multiple_of(many) && many * outputs <= 16).unwrap_or(1);
        let shape = geometry.shape(1, [1, 1], channels_in, channels_out);
        let rows = reads_rows(&shape);
        let part = |first: usize| {
            let at = |channel: usize, tap: usize, k: usize| {
                let (group, own) = (channel / outputs, k / inputs);
                if group != own {
                    return 0;
                }
                weights[((first * outputs + channel) * inputs + k % inputs) * taps + tap]
            };
            if rows {
                // A tap is a kernel row: its values are the channels of `kernel_w` pixels.
                let at = |channel: usize, row: usize, k: usize| {
                    at(channel, row * kernel_w + k / channels_in, k % channels_in)
                };
                let sizes = [channels_out, kernel_h, kernel_w * channels_in];
                return Packed::new(sizes, at, |k| zero(k % channels_in));
            }
            let sizes = [together * outputs, taps, together * inputs];
            Packed::new(sizes, at, |k| zero(first * inputs + k))
        };
        let parts = (0..groups).step_by(together).map(part).collect();
        let zeros = (0..channels_in * if rows { kernel_w } else { 1 })
            .map(|k| zero(k % channels_in))
            .chain([0; SLACK])
            .collect();
        let taps = match rows {
            true => (0..kernel_h).map(|row| Tap { down: (row * dilation[0]) as isize, right: 0, index: row }).collect(),
            false => forward_taps(&shape),
        };
        Some(Self { geometry, channels_in, channels_out, parts, rows, taps, zeros, scratch: Mutex::default() })
    }

    /// Returns the windows.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Computes a quantized output.
    ///
    /// # Panics
    /// If the maps, the output's size or the vectors do not fit.
    pub fn run(&self, x: Map<'_>, requantize: &Requantize<'_>, out: MapMut<'_>) {
        self.run_with(Instructions::best(), x, requantize, out);
    }

    pub(crate) fn run_with(
        &self,
        instructions: Instructions,
        x: Map<'_>,
        requantize: &Requantize<'_>,
        out: MapMut<'_>,
    ) {
        const NAME: &str = "int8::Conv2d::run";
        out.check(NAME);
        let output = self.check(NAME, &x, requantize);
        let fits = (out.n, out.size, out.channels) == (x.n, output, self.channels_out);
        assert!(fits, "{NAME}: an output of {} × {} channels of {:?}", out.n, out.channels, out.size);
        let MapMut { data, pitch, offset, .. } = out;
        let input = self.input(&x);
        for (part, first) in self.parts.iter().zip((0..).step_by(self.channels_out / self.parts.len())) {
            let out = Out::Quantized { data: &mut *data, pitch, offset: offset + first, low: requantize.low };
            self.product(part, first, &input, requantize, output).run(instructions, out);
        }
        self.keep(input);
    }

    /// Computes an output that is not quantized, `[n, height, width, c_out]`, such as logits.
    ///
    /// # Panics
    /// If the maps, the output's size or the vectors do not fit, or for a convolution of several groups.
    pub fn run_float(&self, x: Map<'_>, requantize: &Requantize<'_>, out: &mut [f32]) {
        self.run_float_with(Instructions::best(), x, requantize, out);
    }

    pub(crate) fn run_float_with(
        &self,
        instructions: Instructions,
        x: Map<'_>,
        requantize: &Requantize<'_>,
        out: &mut [f32],
    ) {
        const NAME: &str = "int8::Conv2d::run_float";
        let output = self.check(NAME, &x, requantize);
        assert!(self.geometry.groups == 1, "{NAME}: {} groups", self.geometry.groups);
        let input = self.input(&x);
        self.product(&self.parts[0], 0, &input, requantize, output).run(instructions, Out::Float(out));
        self.keep(input);
    }

    fn check(&self, name: &str, x: &Map<'_>, requantize: &Requantize<'_>) -> [usize; 2] {
        x.check(name);
        assert!(x.channels == self.channels_in, "{name}: {} channels, expected {}", x.channels, self.channels_in);
        let output = self.geometry.output(x.size);
        let output = output.unwrap_or_else(|| panic!("{name}: no window fits into an input of {:?}", x.size));
        for vector in [requantize.scale, requantize.bias] {
            assert!(vector.len() == self.channels_out, "{name}: {} values per channel", vector.len());
        }
        if let Some((residual, _)) = &requantize.residual {
            residual.check(name);
            let fits = (residual.n, residual.size, residual.channels) == (x.n, output, self.channels_out);
            assert!(fits, "{name}: a residual of {} × {} channels", residual.n, residual.channels);
        }
        output
    }

    /// Keeps the memory of a copy for the next one: page faults would cost more than the copy.
    fn keep(&self, input: Input<'_>) {
        if let Cow::Owned(data) = input.data {
            self.scratch.lock().unwrap_or_else(PoisonError::into_inner).push(data);
        }
    }

    /// The map that is read: with its padding, if kernel rows are read at once, and [`SLACK`] bytes after the last pixel.
    fn input<'a>(&self, x: &Map<'a>) -> Input<'a> {
        if !self.rows {
            let needed = bytes(x.n, x.size, x.pitch).unwrap_or(usize::MAX).saturating_add(SLACK);
            if x.data.len() >= needed {
                return Input { n: x.n, data: Cow::Borrowed(x.data), size: x.size, pitch: x.pitch, offset: x.offset };
            }
        }
        let [[top, bottom], [left, right]] = if self.rows { self.geometry.padding } else { [[0; 2]; 2] };
        let ([height, width], channels) = (x.size, x.channels);
        let size = [height + top + bottom, width + left + right];
        let row = size[1] * channels;
        let mut data = self.scratch.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        data.resize(x.n * size[0] * row + SLACK, 0);
        let rows = DisjointSlice::new(&mut data);
        let zeros = &self.zeros[..channels];
        tasks(x.n * size[0], |index| {
            let (image, y) = (index / size[0], index % size[0]);
            // SAFETY: each task has its own row.
            let pixels = unsafe { rows.range(index * row..(index + 1) * row) };
            for (column, pixel) in pixels.chunks_exact_mut(channels).enumerate() {
                let inside = (top..top + height).contains(&y) && (left..left + width).contains(&column);
                pixel.copy_from_slice(match inside {
                    true => x.pixel((image * height + y - top) * width + column - left),
                    false => zeros,
                });
            }
        });
        Input { n: x.n, data: Cow::Owned(data), size, pitch: channels, offset: 0 }
    }

    fn product<'a>(
        &'a self,
        weights: &'a Packed,
        first: usize,
        input: &'a Input<'_>,
        requantize: &Requantize<'a>,
        output: [usize; 2],
    ) -> Product<'a> {
        let (inputs, outputs) = (self.channels_in / self.parts.len(), self.channels_out / self.parts.len());
        let channels = first..first + outputs;
        let offset = input.offset + first / outputs * inputs;
        Product {
            n: input.n,
            x: gemm::Map { data: &input.data, size: input.size, pitch: input.pitch, offset },
            zeros: &self.zeros[first / outputs * inputs..],
            stride: self.geometry.stride,
            taps: &self.taps,
            weights,
            output,
            scale: &requantize.scale[channels.clone()],
            bias: &requantize.bias[channels],
            residual: requantize.residual.map(|(map, scale)| Residual {
                data: map.data,
                pitch: map.pitch,
                offset: map.offset + first,
                scale,
            }),
        }
    }
}

/// The map that a convolution reads.
struct Input<'a> {
    n: usize,
    data: Cow<'a, [u8]>,
    size: [usize; 2],
    pitch: usize,
    offset: usize,
}

/// A window along one axis of a pooling: the pixels of the input that it covers, and its size with padding.
#[derive(Debug, Clone, Copy)]
struct Window {
    start: usize,
    end: usize,
    padded: usize,
}

/// Returns the windows along an axis for each pixel of the output.
fn windows(geometry: &Geometry, axis: usize, input: usize, output: usize) -> Vec<Window> {
    let [before, after] = geometry.padding[axis];
    let window = |index: usize| {
        let start = index * geometry.stride[axis];
        let end = start + geometry.kernel[axis];
        let inside = |at: usize| at.saturating_sub(before).min(input);
        // A window that is rounded up ends with the padding.
        Window { start: inside(start), end: inside(end), padded: end.min(input + before + after).saturating_sub(start) }
    };
    (0..output).map(window).collect()
}

/// A byte for each byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table([u8; 256]);

impl Table {
    /// Converts bytes of one quantization to another; `None` if they are the same.
    pub fn new(from: Quantization, to: Quantization) -> Option<Self> {
        let convert = |byte: usize| {
            let value = (byte as f32 - f32::from(from.zero)) * (from.scale / to.scale) + f32::from(to.zero);
            gemm::quantize(value, 0.0)
        };
        (from != to).then(|| Self(std::array::from_fn(convert)))
    }

    /// Converts bytes of one quantization to another, negative values to 0.
    pub fn with_relu(from: Quantization, to: Quantization) -> Option<Self> {
        let Self(mut table) = Self::new(from, to).unwrap_or_else(|| Self(std::array::from_fn(|byte| byte as u8)));
        table.iter_mut().for_each(|byte| *byte = (*byte).max(to.zero));
        Some(Self(table))
    }
}

impl Quantization {
    /// Scale and offset, as [`quantize`] takes them.
    pub fn affine(self) -> [f32; 2] {
        [self.scale, f32::from(self.zero)]
    }
}

/// What the bytes of a map stand for: `(byte − zero) · scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantization {
    /// The difference between consecutive bytes.
    pub scale: f32,
    /// The byte that stands for 0.
    pub zero: u8,
}

/// Applies a table to a map.
///
/// # Panics
/// If the maps do not fit.
pub fn convert(x: Map<'_>, table: Option<&Table>, out: MapMut<'_>) {
    let geometry = Geometry { kernel: [1; 2], stride: [1; 2], padding: [[0; 2]; 2], dilation: [1; 2], groups: 1 };
    assert!(out.size == x.size, "int8::convert: {:?} pixels become {:?}", x.size, out.size);
    max_pool2d(x, &geometry, table, out);
}

/// The largest value of each window, to which `table` is applied. Padding is never the largest. `out` has the pooled size,
/// which may be [rounded up](Geometry::output).
///
/// # Panics
/// If the maps do not fit, or a window is empty or dilated.
pub fn max_pool2d(x: Map<'_>, geometry: &Geometry, table: Option<&Table>, out: MapMut<'_>) {
    const NAME: &str = "int8::max_pool2d";
    assert!(geometry.dilation == [1, 1], "{NAME}: a dilation of {:?}", geometry.dilation);
    let down = windows(geometry, 0, x.size[0], out.size[0]);
    let right = windows(geometry, 1, x.size[1], out.size[1]);
    check_pool(NAME, &x, &out, [&down, &right]);
    let ([height, width], rows, channels) = (x.size, out.size[0], x.channels);
    out.rows(
        #[inline(always)]
        |row, mut pixels| {
            let (image, down) = (row / rows, down[row % rows]);
            // Down the columns first: the largest of some rows, then of its neighbors.
            let mut largest = vec![0; width * channels];
            for (column, largest) in largest.chunks_exact_mut(channels).enumerate() {
                largest.copy_from_slice(x.pixel((image * height + down.start) * width + column));
            }
            for y in down.start + 1..down.end {
                let start = (image * height + y) * width;
                if x.pitch == channels {
                    raise(&mut largest, &x.data[start * channels..][..width * channels]);
                } else {
                    for (column, largest) in largest.chunks_exact_mut(channels).enumerate() {
                        raise(largest, x.pixel(start + column));
                    }
                }
            }
            for (column, right) in right.iter().enumerate() {
                let out = pixels.pixel(column);
                out.copy_from_slice(&largest[right.start * channels..][..channels]);
                for at in right.start + 1..right.end {
                    raise(out, &largest[at * channels..][..channels]);
                }
                if let Some(Table(table)) = table {
                    out.iter_mut().for_each(|byte| *byte = table[usize::from(*byte)]);
                }
            }
        },
    );
}

/// The larger one of each pair of bytes.
#[inline(always)]
fn raise(bytes: &mut [u8], others: &[u8]) {
    for (byte, other) in bytes.iter_mut().zip(others) {
        *byte = (*byte).max(*other);
    }
}

/// The windows of an average.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Average {
    /// Windows of one size.
    Windows {
        /// The windows.
        geometry: Geometry,
        /// Whether padding counts as zeros, as PyTorch's `count_include_pad`.
        count_padding: bool,
    },
    /// As many windows as the output has pixels, as PyTorch's adaptive average pooling.
    Adaptive,
}

/// The average of each window.
///
/// # Panics
/// If the maps do not fit, or a window is empty or dilated.
pub fn avg_pool2d(x: Map<'_>, average: Average, from: Quantization, to: Quantization, out: MapMut<'_>) {
    const NAME: &str = "int8::avg_pool2d";
    let (along, count_padding): (Box<dyn Fn(usize) -> Vec<Window>>, bool) = match average {
        Average::Windows { geometry, count_padding } => {
            assert!(geometry.dilation == [1, 1], "{NAME}: a dilation of {:?}", geometry.dilation);
            (Box::new(move |axis| windows(&geometry, axis, x.size[axis], out.size[axis])), count_padding)
        }
        Average::Adaptive => {
            let along = |axis: usize| {
                let (input, output) = (x.size[axis], out.size[axis]);
                let window = |index: usize| {
                    let (start, end) = (index * input / output, ((index + 1) * input).div_ceil(output));
                    Window { start, end, padded: end - start }
                };
                (0..output).map(window).collect()
            };
            (Box::new(along), false)
        }
    };
    let (down, right) = (along(0), along(1));
    drop(along);
    check_pool(NAME, &x, &out, [&down, &right]);
    let ([height, width], rows) = (x.size, out.size[0]);
    let zero = i32::from(from.zero);
    out.rows(
        #[inline(always)]
        |row, mut pixels| {
            let mut sums = vec![0i32; x.channels];
            let (image, down) = (row / rows, down[row % rows]);
            for (column, right) in right.iter().enumerate() {
                let covered = (down.end - down.start) * (right.end - right.start);
                let count = if count_padding { down.padded * right.padded } else { covered };
                let scale = from.scale / to.scale / count as f32;
                sums.fill(-zero * covered as i32);
                for y in down.start..down.end {
                    for at in right.start..right.end {
                        let values = x.pixel((image * height + y) * width + at);
                        for (sum, value) in sums.iter_mut().zip(values) {
                            *sum += i32::from(*value);
                        }
                    }
                }
                for (out, sum) in pixels.pixel(column).iter_mut().zip(&sums) {
                    *out = gemm::quantize(*sum as f32 * scale + f32::from(to.zero), 0.0);
                }
            }
        },
    );
}

fn check_pool(name: &str, x: &Map<'_>, out: &MapMut<'_>, windows: [&[Window]; 2]) {
    x.check(name);
    out.check(name);
    let fits = (out.n, out.channels) == (x.n, x.channels);
    assert!(fits, "{name}: {} × {} channels become {} × {}", x.n, x.channels, out.n, out.channels);
    let covers = windows.iter().all(|windows| windows.iter().all(|window| window.start < window.end));
    assert!(covers, "{name}: a window of an input of {:?} is empty", x.size);
    let largest: usize = windows.iter().map(|windows| windows.iter().map(|w| w.padded).max().unwrap_or(0)).product();
    assert!(largest <= 1 << 20, "{name}: a window of {largest} pixels");
}

/// The sum of two maps: `clamp(round((a − zero_a) · scale_a + (b − zero_b) · scale_b) / scale + zero, low, 255)`.
///
/// # Panics
/// If the maps do not fit.
pub fn add(terms: [(Map<'_>, Quantization); 2], to: Quantization, low: u8, out: MapMut<'_>) {
    const NAME: &str = "int8::add";
    out.check(NAME);
    for (map, _) in &terms {
        map.check(NAME);
        let fits = (map.n, map.size, map.channels) == (out.n, out.size, out.channels);
        assert!(fits, "{NAME}: {} × {} channels of {:?} pixels", map.n, map.channels, map.size);
    }
    let [(a, from_a), (b, from_b)] = terms;
    let [scale_a, scale_b] = [from_a, from_b].map(|from| from.scale / to.scale);
    let bias = f32::from(to.zero) - f32::from(from_a.zero) * scale_a - f32::from(from_b.zero) * scale_b;
    let width = out.size[1];
    out.rows(
        #[inline(always)]
        |row, mut pixels| {
            for column in 0..width {
                let (a, b) = (a.pixel(row * width + column), b.pixel(row * width + column));
                for (out, (a, b)) in pixels.pixel(column).iter_mut().zip(a.iter().zip(b)) {
                    let value = f32::from(*a) * scale_a + f32::from(*b) * scale_b + bias;
                    *out = gemm::quantize(value, f32::from(low));
                }
            }
        },
    );
}

/// Quantizes `[n, c, h, w]` values: the byte of a channel is `value / scale + offset`, for `[scale, offset]`, rounded. Pixels
/// have their channels last.
///
/// # Panics
/// If the sizes do not fit.
pub fn quantize(x: &[f32], strides: [usize; 4], channels: &[[f32; 2]], out: MapMut<'_>) {
    const NAME: &str = "int8::quantize";
    out.check(NAME);
    assert!(channels.len() == out.channels, "{NAME}: {} quantizations for {} channels", channels.len(), out.channels);
    let [height, width] = out.size;
    let ends = [out.n, out.channels, height, width].into_iter().zip(strides);
    let last = ends.map(|(size, stride)| size.saturating_sub(1).saturating_mul(stride)).fold(0, usize::saturating_add);
    let empty = out.n * height * width == 0;
    assert!(empty || last < x.len(), "{NAME}: {} values are too few", x.len());
    out.rows(
        #[inline(always)]
        |row, mut pixels| {
            let start = row / height * strides[0] + row % height * strides[2];
            // A row of each channel at a time, so that a vector of neighbors is read at once.
            let mut bytes = vec![0; width * channels.len()];
            for (channel, (bytes, &[scale, offset])) in bytes.chunks_exact_mut(width).zip(channels).enumerate() {
                let values = &x[start + channel * strides[1]..];
                let factor = 1.0 / scale;
                match strides[3] {
                    1 => {
                        for (byte, value) in bytes.iter_mut().zip(&values[..width]) {
                            *byte = gemm::quantize(value * factor + offset, 0.0);
                        }
                    }
                    stride => {
                        for (column, byte) in bytes.iter_mut().enumerate() {
                            *byte = gemm::quantize(values[column * stride] * factor + offset, 0.0);
                        }
                    }
                }
            }
            for column in 0..width {
                for (channel, out) in pixels.pixel(column).iter_mut().enumerate() {
                    *out = bytes[channel * width + column];
                }
            }
        },
    );
}

/// Quantizes a tensor `[n, c, h, w]` as [`quantize`] does, without a copy of its values on `flex`.
///
/// # Errors
/// If the values cannot be read from the device.
///
/// # Panics
/// If the sizes do not fit.
pub fn quantize_tensor(
    x: &Tensor<4>,
    channels: &[[f32; 2]],
    out: MapMut<'_>,
) -> Result<(), burn::tensor::TensorReadError> {
    const NAME: &str = "int8::quantize_tensor";
    let [n, c, height, width] = x.dims();
    let fits = (n, c, [height, width]) == (out.n, out.channels, out.size);
    assert!(fits, "{NAME}: a tensor of {n} × {c} channels of {:?} pixels", [height, width]);
    #[cfg(feature = "flex")]
    if accelerates(x)
        && x.dtype() == DType::F32
        && let Ok(x) = x.clone().try_into_primitive::<Flex>()
    {
        let strides: Vec<Option<usize>> =
            x.layout().strides().iter().map(|&stride| usize::try_from(stride).ok()).collect();
        if let [Some(a), Some(b), Some(c), Some(d)] = strides[..] {
            quantize(&x.storage::<f32>()[x.layout().start_offset()..], [a, b, c, d], channels, out);
            return Ok(());
        }
    }
    let values = x.clone().try_into_vec_as::<f32>()?;
    quantize(&values, [c * height * width, height * width, width, 1], channels, out);
    Ok(())
}

/// Converts a map to `[n, h, w, c]` values.
///
/// # Panics
/// If the sizes do not fit.
pub fn dequantize(x: Map<'_>, from: Quantization, out: &mut [f32]) {
    const NAME: &str = "int8::dequantize";
    x.check(NAME);
    assert!(Some(out.len()) == bytes(x.n, x.size, x.channels), "{NAME}: {} values", out.len());
    if out.is_empty() {
        return;
    }
    for (index, out) in out.chunks_exact_mut(x.channels).enumerate() {
        for (out, byte) in out.iter_mut().zip(x.pixel(index)) {
            *out = (f32::from(*byte) - f32::from(from.zero)) * from.scale;
        }
    }
}
