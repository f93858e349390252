//! Resampling by separable convolution in fixed point: Pillow's `Image.resize`, pixel for pixel.

use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::simd;

/// The interpolation method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// The closest pixel. For rotations and the like; [`Resize`](super::Resize) accepts it too.
    Nearest,
    /// The triangle filter: torchvision's default for resizing.
    #[default]
    Bilinear,
    /// Keys' cubic filter (a = −0.5).
    Bicubic,
}

/// A rectangle of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rect {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Rect {
    /// The whole of an image.
    pub fn of(image: &RgbImage) -> Self {
        Self { left: 0, top: 0, width: image.width(), height: image.height() }
    }
}

/// Resizes an image to `width × height`, as Pillow's `Image.resize` does.
///
/// With `antialias`, the filter widens with the reduction, as Pillow's always does. Without, it is the interpolation
/// between the two (bilinear) or four (bicubic, a = −0.75) nearest pixels, as on torch's tensors.
pub fn resize(image: &RgbImage, width: u32, height: u32, interpolation: Interpolation, antialias: bool) -> RgbImage {
    let out = Rect { left: 0, top: 0, width, height };
    resample(image, Rect::of(image), (width, height), out, interpolation, antialias)
}

/// Crops `crop` out of the image and resizes it to `width × height`: torchvision's `resized_crop`.
///
/// # Panics
/// Panics if `crop` is empty or reaches beyond the image.
pub fn resized_crop(image: &RgbImage, crop: Rect, width: u32, height: u32, interpolation: Interpolation) -> RgbImage {
    resample(image, crop, (width, height), Rect { left: 0, top: 0, width, height }, interpolation, true)
}

/// Resizes the part `part` (left, top, width, height, in fractions of pixels) of an image that holds nothing else but
/// the pixels it touches.
pub(crate) fn resample_part(
    image: &RgbImage,
    [left, top, width, height]: [f64; 4],
    size: (u32, u32),
    interpolation: Interpolation,
    antialias: bool,
) -> RgbImage {
    let filter = Filter { interpolation, antialias };
    let columns = Taps::new(image.width(), (left, width), size.0, 0..size.0, filter);
    let rows = Taps::new(image.height(), (top, height), size.1, 0..size.1, filter);
    let vertical_first = vertical_first((width, height), size, antialias);
    Resampling { columns, rows, vertical_first }.run(image, Rect::of(image))
}

/// Pillow 13 takes the vertical pass first where it removes more than twice as many rows as the other removes columns;
/// pixels between the passes are rounded, so the order matters.
fn vertical_first(input: (f64, f64), size: (u32, u32), antialias: bool) -> bool {
    let (fewer_columns, fewer_rows) = (input.0 - f64::from(size.0), input.1 - f64::from(size.1));
    antialias && fewer_rows > 0.0 && fewer_rows > 2.0 * fewer_columns
}

/// Returns the part `out` of the part `crop` of `image` resized to `size` (width, height), computing nothing else.
pub(crate) fn resample(
    image: &RgbImage,
    crop: Rect,
    size: (u32, u32),
    out: Rect,
    interpolation: Interpolation,
    antialias: bool,
) -> RgbImage {
    assert!(crop.left + crop.width <= image.width() && crop.top + crop.height <= image.height(), "crop out of bounds");
    Resampling::new((crop.width, crop.height), size, out, interpolation, antialias).run(image, crop)
}

/// A resize of which the part `out` of the result is wanted: its weights, ready to be applied.
pub(crate) struct Resampling {
    columns: Taps,
    rows: Taps,
    vertical_first: bool,
}

impl Resampling {
    /// The part `out` of resizing an image of `input` pixels (width, height) to `size`.
    pub fn new(input: (u32, u32), size: (u32, u32), out: Rect, interpolation: Interpolation, antialias: bool) -> Self {
        assert!(input.0 > 0 && input.1 > 0 && size.0 > 0 && size.1 > 0, "an empty image cannot be resized");
        let filter = Filter { interpolation, antialias };
        let whole = |side: u32| (0.0, f64::from(side));
        let columns = Taps::new(input.0, whole(input.0), size.0, out.left..out.left + out.width, filter);
        let rows = Taps::new(input.1, whole(input.1), size.1, out.top..out.top + out.height, filter);
        let vertical_first = vertical_first((input.0.into(), input.1.into()), size, antialias);
        Self { columns, rows, vertical_first }
    }

    /// The part of the input that the result depends on.
    pub fn needs(&self) -> Rect {
        let (columns, rows) = (self.columns.span(), self.rows.span());
        let [left, top, width, height] =
            [columns.start, rows.start, columns.len(), rows.len()].map(|position| position as u32);
        Rect { left, top, width, height }
    }

    /// The result, from an image of which the part `crop` is the input.
    pub fn run(&self, image: &RgbImage, crop: Rect) -> RgbImage {
        if self.vertical_first {
            let squeezed = passes(image, crop, &Taps::identity(crop.width), &self.rows);
            return passes(&squeezed, Rect::of(&squeezed), &self.columns, &Taps::identity(squeezed.height()));
        }
        passes(image, crop, &self.columns, &self.rows)
    }

    /// The result, from an image that is the part that [`needs`](Self::needs) names.
    pub fn run_on_needs(mut self, part: &RgbImage) -> RgbImage {
        for taps in [&mut self.columns, &mut self.rows] {
            let start = taps.span().start;
            taps.first.iter_mut().for_each(|first| *first -= start);
            taps.identity = false;
        }
        self.run(part, Rect::of(part))
    }
}

/// Both passes, the horizontal one first.
fn passes(image: &RgbImage, crop: Rect, columns: &Taps, rows: &Taps) -> RgbImage {
    let (width, height) = (columns.first.len(), rows.first.len());
    let mut result = vec![0; width * height * 3];
    simd::run(Convolve { image, crop, columns, rows, result: &mut result });
    RgbImage::from_raw(width as u32, height as u32, result).expect("three bytes for each pixel")
}

/// The parameters that determine the weights.
#[derive(Clone, Copy)]
struct Filter {
    interpolation: Interpolation,
    antialias: bool,
}

/// Fraction bits of a weight: a sum of 8-bit pixels with weights that overshoot (bicubic) still fits 32 bits.
const PRECISION: u32 = 32 - 8 - 2;

/// For each output position along one axis: the first input position and the weights from there on.
struct Taps {
    first: Vec<usize>,
    /// `count` weights an output position, padded with zeros.
    weights: Vec<i32>,
    count: usize,
    /// Whether output equals input.
    identity: bool,
}

impl Taps {
    /// Every position as it is.
    fn identity(side: u32) -> Self {
        let filter = Filter { interpolation: Interpolation::Nearest, antialias: false };
        Self::new(side, (0.0, f64::from(side)), side, 0..side, filter)
    }

    /// The weights for the positions `wanted` of `output` positions, which cover `length` of the `input` positions from
    /// `start`.
    fn new(
        input: u32,
        (start, length): (f64, f64),
        output: u32,
        wanted: std::ops::Range<u32>,
        Filter { interpolation, antialias }: Filter,
    ) -> Self {
        let scale = length / f64::from(output);
        let stretch = if antialias { scale.max(1.0) } else { 1.0 };
        let cubic = if antialias { -0.5 } else { -0.75 };
        let radius = match interpolation {
            Interpolation::Nearest => 0.0,
            Interpolation::Bilinear => stretch,
            Interpolation::Bicubic => 2.0 * stretch,
        };
        // A filter that extends past the input needs no more weights than there are positions.
        let count = (radius.ceil() as usize * 2 + 1).min(input as usize);
        let (mut first, mut weights) = (Vec::with_capacity(wanted.len()), vec![0; wanted.len() * count]);
        let mut exact = vec![0.0; count];
        for (position, weights) in wanted.clone().zip(weights.chunks_exact_mut(count)) {
            let center = start + (f64::from(position) + 0.5) * scale;
            if interpolation == Interpolation::Nearest {
                first.push((center as usize).min(input as usize - 1));
                weights[0] = 1 << PRECISION;
                continue;
            }
            let low = (center - radius + 0.5).max(0.0) as usize;
            let high = ((center + radius + 0.5) as usize).min(input as usize);
            let taps = (high - low).min(count);
            let mut sum = 0.0;
            for (tap, weight) in exact[..taps].iter_mut().enumerate() {
                let x = (((low + tap) as f64 - center + 0.5) * (1.0 / stretch)).abs();
                *weight = match interpolation {
                    Interpolation::Bicubic => keys(x, cubic),
                    _ => (1.0 - x).max(0.0),
                };
                sum += *weight;
            }
            // Where the last position has fewer weights than `count`, begin earlier and pad in front.
            let begin = low.min(input as usize - count);
            for (weight, exact) in weights[low - begin..].iter_mut().zip(&exact[..taps]) {
                *weight = (exact / sum * f64::from(1 << PRECISION)).round() as i32;
            }
            first.push(begin);
        }
        let identity = start == 0.0 && length == f64::from(input) && input == output && wanted == (0..output);
        Self { first, weights, count, identity }
    }

    /// The input positions that any output position needs.
    fn span(&self) -> std::ops::Range<usize> {
        let start = self.first.iter().copied().min().unwrap_or(0);
        start..self.first.iter().copied().max().map_or(0, |last| last + self.count)
    }
}

/// Keys' cubic convolution kernel.
fn keys(x: f64, a: f64) -> f64 {
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

/// Rounds a fixed-point sum to a pixel.
#[inline(always)]
fn to_u8(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (PRECISION - 1);

/// Rows that the horizontal pass handles together, and the bytes of one column of them, padded to a power of two.
const ROWS: usize = 4;
const LANES: usize = ROWS * 4;

/// Both passes, horizontal first, with 8-bit pixels in between as in Pillow.
struct Convolve<'a> {
    image: &'a RgbImage,
    crop: Rect,
    columns: &'a Taps,
    rows: &'a Taps,
    result: &'a mut [u8],
}

impl simd::Kernel for Convolve<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        convolve(self.image, self.crop, self.columns, self.rows, self.result);
    }
}

#[inline(always)]
fn convolve(image: &RgbImage, crop: Rect, columns: &Taps, rows: &Taps, result: &mut [u8]) {
    let stride = image.width() as usize * 3;
    let span = rows.span();
    let source = |row: usize| {
        let start = (crop.top as usize + row) * stride + crop.left as usize * 3;
        &image.as_raw()[start..start + crop.width as usize * 3]
    };
    let width = columns.first.len() * 3;
    if rows.identity && columns.identity {
        result.chunks_exact_mut(width).enumerate().for_each(|(row, out)| out.copy_from_slice(source(row)));
        return;
    }
    // Whole groups of rows; those beyond the span are never looked at.
    let mut between = vec![0; span.len().next_multiple_of(ROWS) * width];
    if columns.identity {
        between.chunks_exact_mut(width).zip(span.clone()).for_each(|(out, row)| out.copy_from_slice(source(row)));
    } else {
        let used = columns.span();
        let mut block = vec![[0; LANES]; used.len()];
        let source = |row: usize| source(row.min(span.end - 1))[used.start * 3..used.end * 3].as_chunks::<3>().0;
        for (group, out) in between.chunks_exact_mut(width * ROWS).enumerate() {
            let first = span.start + group * ROWS;
            interleave([source(first), source(first + 1), source(first + 2), source(first + 3)], &mut block);
            horizontal(&block, columns, used.start, out, width);
        }
    }
    for ((first, weights), out) in
        rows.first.iter().zip(rows.weights.chunks_exact(rows.count)).zip(result.chunks_exact_mut(width))
    {
        vertical(&between[(first - span.start) * width..], weights, out);
    }
}

/// Puts the pixels of four rows side by side, column by column, each padded to four bytes.
#[inline(always)]
fn interleave([a, b, c, d]: [&[[u8; 3]]; ROWS], block: &mut [[u8; LANES]]) {
    for ((((column, a), b), c), d) in block.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        *column = [a[0], a[1], a[2], 0, b[0], b[1], b[2], 0, c[0], c[1], c[2], 0, d[0], d[1], d[2], 0];
    }
}

/// Four rows, convolved along the columns; `block` begins with column `start`.
#[inline(always)]
fn horizontal(block: &[[u8; LANES]], columns: &Taps, start: usize, out: &mut [u8], width: usize) {
    let (a, rest) = out.split_at_mut(width);
    let (b, rest) = rest.split_at_mut(width);
    let (c, d) = rest.split_at_mut(width);
    let rows = a.as_chunks_mut::<3>().0.iter_mut().zip(b.as_chunks_mut::<3>().0);
    let rows = rows.zip(c.as_chunks_mut::<3>().0.iter_mut().zip(d.as_chunks_mut::<3>().0));
    let taps = columns.first.iter().zip(columns.weights.chunks_exact(columns.count));
    for ((first, weights), ((a, b), (c, d))) in taps.zip(rows) {
        let mut sums = [HALF; LANES];
        for (column, weight) in block[first.wrapping_sub(start)..].iter().zip(weights) {
            for (sum, value) in sums.iter_mut().zip(column) {
                *sum = sum.wrapping_add(i32::from(*value).wrapping_mul(*weight));
            }
        }
        let mut p = [0; LANES];
        for (pixel, sum) in p.iter_mut().zip(sums) {
            *pixel = to_u8(sum);
        }
        *a = [p[0], p[1], p[2]];
        *b = [p[4], p[5], p[6]];
        *c = [p[8], p[9], p[10]];
        *d = [p[12], p[13], p[14]];
    }
}

/// One output row: a weighted sum of the rows that `between` starts with.
#[inline(always)]
fn vertical(between: &[u8], weights: &[i32], out: &mut [u8]) {
    const BLOCK: usize = 64;
    let width = out.len();
    for (block, out) in out.chunks_mut(BLOCK).enumerate() {
        let mut sums = [HALF; BLOCK];
        for (row, weight) in between.chunks(width).zip(weights) {
            let row = &row[block * BLOCK..];
            if let Some(row) = row.first_chunk::<BLOCK>() {
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum = sum.wrapping_add(i32::from(*value).wrapping_mul(*weight));
                }
            } else {
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum = sum.wrapping_add(i32::from(*value).wrapping_mul(*weight));
                }
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = to_u8(sum);
        }
    }
}
