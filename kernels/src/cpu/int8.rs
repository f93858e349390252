//! Convolution of quantized feature maps by implicit GEMM: u8 activations times i8 weights, summed exactly in i32.
//!
//! ```text
//! sum[pixel][c_out] = Σ_tap Σ_k x[pixel · stride + tap][k] · weights[tap][k][c_out]
//! out = clamp(round(sum · scale[c_out] + residual · residual_scale + bias[c_out]), low, 255)
//! ```
//!
//! An instruction multiplies four values that are adjacent along `k` by four weights of each of its channels, so that a
//! [`Line`] of packed weights interleaves four rows of 16 channels:
//!
//! ```text
//! line 0: k0 k1 k2 k3 of channel 0 │ k0 k1 k2 k3 of channel 1 │ … of channel 15
//! line 1: the same rows of channels 16 to 31          1 to 4 lines are a panel
//! line 2: k4 k5 k6 k7 of channel 0 │ …
//! ```
//!
//! Padding reads the zero point. Sums are exact, and what follows is the same f32 arithmetic on every processor, without
//! fused multiply-adds: results do not depend on the instruction set or on the number of threads.

#[cfg(test)]
mod tests;

use std::ops::Range;

use super::{
    conv::Tap,
    disjoint::{DisjointSlice, part},
    thread_pool::{tasks, threads},
    tile::even_rows,
};

/// Channels of a line.
const LANES: usize = 16;
/// The most lines of a panel along its channels.
const MOST_LINES: usize = 4;
/// Values along `k` of a line.
const QUAD: usize = 4;
/// The largest number of values in a sum: 255 · 128 times as many still fit into an i32.
pub const MAX_DEPTH: usize = 1 << 16;
/// Bytes after the end of a feature map that are read, and multiplied by weights of zero.
pub const SLACK: usize = QUAD - 1;

/// Four rows of 16 channels.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([i8; QUAD * LANES]);

/// Packed weights, `[panel][tap][quad][width]` lines; the last panel and the last quad are padded with zeros.
pub struct Packed {
    data: Vec<Line>,
    /// Lines of a panel. As many as leave no part of a panel empty: a tile of few lines loads its pixels for few sums.
    width: usize,
    /// Where the sums of each channel begin: minus the sum of its weights, each times the zero point that it meets.
    start: Vec<i32>,
    taps: usize,
    /// The number of values of the left operand for each tap.
    k: usize,
    /// The number of channels of the result.
    channels: usize,
}

impl Packed {
    /// Packs weights of `channels` outputs, `at(channel, tap, k)`, for values whose zero point is `zero(k)`.
    pub fn new(
        [channels, taps, k]: [usize; 3],
        at: impl Fn(usize, usize, usize) -> i8 + Sync + Send,
        zero: impl Fn(usize) -> u8 + Sync + Send,
    ) -> Self {
        assert!(taps.checked_mul(k).is_some_and(|depth| depth <= MAX_DEPTH), "{taps} × {k} values in a sum");
        let quads = k.div_ceil(QUAD);
        let all = channels.div_ceil(LANES);
        let width = [4, 3, 2, 1].into_iter().find(|width| all.is_multiple_of(*width)).unwrap_or(1);
        let width = if width < 3 && all > MOST_LINES { MOST_LINES } else { width };
        let panels = all.div_ceil(width);
        let mut data = vec![Line([0; QUAD * LANES]); panels * taps * quads * width];
        let lines = DisjointSlice::new(&mut data);
        tasks(panels * taps, |task| {
            let (panel, tap) = (task / taps, task % taps);
            // SAFETY: each task accesses its own lines only.
            let lines = unsafe { lines.range(task * quads * width..(task + 1) * quads * width) };
            for (index, line) in lines.iter_mut().enumerate() {
                let (quad, first) = (index / width, (panel * width + index % width) * LANES);
                for (byte, value) in line.0.iter_mut().enumerate() {
                    let (channel, k_index) = (first + byte / QUAD, quad * QUAD + byte % QUAD);
                    if channel < channels && k_index < k {
                        *value = at(channel, tap, k_index);
                    }
                }
            }
        });
        let mut start = vec![0; panels * width * LANES];
        for (channel, start) in start.iter_mut().enumerate().take(channels) {
            for tap in 0..taps {
                for k_index in 0..k {
                    *start -= i32::from(zero(k_index)) * i32::from(at(channel, tap, k_index));
                }
            }
        }
        Self { data, width, start, taps, k, channels }
    }

    fn quads(&self) -> usize {
        self.k.div_ceil(QUAD)
    }
}

/// A quantized feature map with its channels last.
#[derive(Clone, Copy)]
pub struct Map<'a> {
    /// `[n, height, width, pitch]` and [`SLACK`] bytes.
    pub data: &'a [u8],
    /// `[height, width]`.
    pub size: [usize; 2],
    /// The distance between pixels in bytes.
    pub pitch: usize,
    /// The first channel.
    pub offset: usize,
}

/// A residual in the layout of the output's pixels.
#[derive(Clone, Copy)]
pub struct Residual<'a> {
    /// `[n, height, width, pitch]`.
    pub data: &'a [u8],
    /// The distance between pixels in bytes.
    pub pitch: usize,
    /// The first channel.
    pub offset: usize,
    /// What its values are multiplied by.
    pub scale: f32,
}

/// Where results go.
pub enum Out<'a> {
    /// Quantized: `[n, height, width, pitch]`, from `offset` on; values below `low` become `low`.
    Quantized {
        /// The bytes.
        data: &'a mut [u8],
        /// The distance between pixels in bytes.
        pitch: usize,
        /// The first channel.
        offset: usize,
        /// The smallest value: the zero point where ReLU is fused, otherwise 0.
        low: u8,
    },
    /// Not quantized: `[n, height, width, channels]`.
    Float(&'a mut [f32]),
}

/// An implicit GEMM.
pub struct Product<'a> {
    /// Images.
    pub n: usize,
    /// Left operand.
    pub x: Map<'a>,
    /// What a tap outside of the map reads: `k` zero points and [`SLACK`] bytes.
    pub zeros: &'a [u8],
    /// Steps in `x` between pixels of the output.
    pub stride: [usize; 2],
    /// The kernel positions summed over.
    pub taps: &'a [Tap],
    /// Right operand.
    pub weights: &'a Packed,
    /// The size of the output.
    pub output: [usize; 2],
    /// Multiplies each channel.
    pub scale: &'a [f32],
    /// Added to each channel.
    pub bias: &'a [f32],
    /// Added to each value.
    pub residual: Option<Residual<'a>>,
}

/// The most pixels of a tile.
const MOST_ROWS: usize = 14;

/// Bytes of the left operand of a task, which it reads again for each panel, so that they stay in the L2 cache.
const CHUNK: usize = 128 << 10;

#[derive(Clone, Copy)]
enum Target<'a> {
    Quantized { data: DisjointSlice<'a, u8>, pitch: usize, offset: usize, low: f32 },
    Float(DisjointSlice<'a, f32>),
}

struct Task<'a> {
    product: &'a Product<'a>,
    /// For each tile of pixels and each tap, the addresses of its rows.
    rows: &'a [*const u8],
    out: Target<'a>,
    pixels: Range<usize>,
    panels: Range<usize>,
    /// Pixels and lines of a tile.
    most: [usize; 2],
}

impl Product<'_> {
    /// Computes into `out` with instructions that the processor has.
    ///
    /// # Panics
    /// If a slice does not have the size that the others imply.
    pub fn run(&self, instructions: Instructions, out: Out<'_>) {
        self.check(&out);
        let Self { n, x, stride, taps, weights, output: [height, width], .. } = *self;
        let pixels = n * height * width;
        if pixels == 0 || weights.channels == 0 {
            return;
        }
        let out = match out {
            Out::Quantized { data, pitch, offset, low } => {
                Target::Quantized { data: DisjointSlice::new(data), pitch, offset, low: f32::from(low) }
            }
            Out::Float(data) => Target::Float(DisjointSlice::new(data)),
        };
        let zeros = self.zeros;
        // From the pixel at an output's own position to the one that a tap reads.
        let steps: Vec<isize> =
            taps.iter().map(|tap| (tap.down * x.size[1] as isize + tap.right) * x.pitch as isize).collect();
        // A few pixels, as of a linear layer, are one tile, so that the weights are read once.
        let lines_of_tile = if (7..=12).contains(&pixels) { weights.width.min(2) } else { weights.width };
        let rows_of_tile = instructions.rows(lines_of_tile);
        let panels = weights.channels.div_ceil(weights.width * LANES);
        let bytes = weights.k.max(16) * stride[0] * stride[1];
        let few = weights.data.len() * size_of::<Line>() <= CHUNK;
        let chunk = if few { 56 } else { (CHUNK / bytes).clamp(56, 896) };
        let chunk = chunk.min(pixels.div_ceil(threads())).next_multiple_of(rows_of_tile);
        let chunks = pixels.div_ceil(chunk);
        let groups = (4 * threads()).div_ceil(chunks).clamp(1, panels);
        tasks(chunks * groups, |task| {
            let pixels = part(pixels, chunks, task / groups, rows_of_tile);
            let panels = part(panels, groups, task % groups, 1);
            let most = even_rows(pixels.len(), rows_of_tile);
            let mut rows = Vec::with_capacity(pixels.len() * taps.len());
            let mut start = pixels.start;
            let (mut column, rest) = (start % width, start / width);
            let (mut row, mut image) = (rest % height, rest / height);
            let mut of_tile: [(isize, isize, *const u8); MOST_ROWS] = [(0, 0, std::ptr::null()); MOST_ROWS];
            while start < pixels.end {
                let count = most.min(pixels.end - start);
                for position in &mut of_tile[..count] {
                    let (y, x_at) = (row * stride[0], column * stride[1]);
                    let at = ((image * x.size[0] + y) * x.size[1] + x_at) * x.pitch + x.offset;
                    *position = (y as isize, x_at as isize, x.data.as_ptr().wrapping_add(at));
                    column += 1;
                    if column == width {
                        (column, row) = (0, row + 1);
                        if row == height {
                            (row, image) = (0, image + 1);
                        }
                    }
                }
                for (tap, &step) in taps.iter().zip(&steps) {
                    rows.extend(of_tile[..count].iter().map(|&(y, x_at, own)| {
                        let inside = ((y + tap.down) as usize) < x.size[0] && ((x_at + tap.right) as usize) < x.size[1];
                        if inside { own.wrapping_offset(step) } else { zeros.as_ptr() }
                    }));
                }
                start += count;
            }
            let task = Task { product: self, rows: &rows, out, pixels, panels, most: [most, lines_of_tile] };
            // SAFETY: `check` has asserted that rows inside of the map have `k` bytes and the slack; `Instructions`
            // exist only for what the processor has.
            unsafe { instructions.run(&task) };
        });
    }

    /// Asserts that all reads and writes are in bounds.
    fn check(&self, out: &Out<'_>) {
        let Self { n, x, weights, .. } = self;
        let elements = |sizes: [usize; 4]| {
            let len = sizes.into_iter().try_fold(1, usize::checked_mul);
            len.expect("the sizes of a feature map are addressable")
        };
        let [height, width] = self.output;
        assert!(self.zeros.len() >= weights.k + SLACK, "{} zero points for {} values", self.zeros.len(), weights.k);
        assert!(x.data.len() >= elements([*n, x.size[0], x.size[1], x.pitch]) + SLACK, "a map that is too short");
        // A kernel row that is read at once spans pixels, all inside of the map.
        let reach = weights.k.saturating_sub(x.pitch - x.offset.min(x.pitch)).div_ceil(x.pitch.max(1));
        for tap in self.taps {
            assert!(tap.index < weights.taps, "{tap:?} of {} taps", weights.taps);
            if reach > 0 {
                let last = (width.max(1) - 1) * self.stride[1];
                let end = last as isize + tap.right + reach as isize;
                assert!(tap.right >= 0 && (end as usize) < x.size[1], "{} values do not fit into a row", weights.k);
            }
        }
        assert!(self.taps.len() == weights.taps, "{} taps of {}", self.taps.len(), weights.taps);
        for vector in [self.scale, self.bias] {
            assert!(vector.len() == weights.channels, "{} values for {} channels", vector.len(), weights.channels);
        }
        match out {
            Out::Quantized { data, pitch, offset, .. } => {
                assert!(data.len() >= elements([*n, height, width, *pitch]), "an output that is too short");
                assert!(
                    offset + weights.channels <= *pitch,
                    "{} channels from {offset} on of {pitch}",
                    weights.channels
                );
            }
            Out::Float(data) => {
                assert!(data.len() == elements([*n, height, width, weights.channels]), "an output of another size");
            }
        }
        if let Some(residual) = &self.residual {
            assert!(
                residual.data.len() >= elements([*n, height, width, residual.pitch]),
                "a residual that is too short"
            );
            assert!(residual.offset + weights.channels <= residual.pitch, "a residual with too few channels");
        }
    }
}

/// What a processor multiplies with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instructions {
    Avx512Vnni,
    AvxVnni,
    Avx2,
    Portable,
}

impl Instructions {
    /// The fastest that this processor has.
    pub fn best() -> Self {
        Self::available().next().expect("portable instructions are always available")
    }

    /// What this processor has, the fastest first.
    pub fn available() -> impl Iterator<Item = Self> {
        [Self::Avx512Vnni, Self::AvxVnni, Self::Avx2, Self::Portable].into_iter().filter(|instructions| {
            match instructions {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512Vnni => {
                    is_x86_feature_detected!("avx512vnni")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512vl")
                }
                #[cfg(target_arch = "x86_64")]
                Self::AvxVnni => is_x86_feature_detected!("avxvnni") && is_x86_feature_detected!("avx2"),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => is_x86_feature_detected!("avx2"),
                Self::Portable => true,
                #[cfg(not(target_arch = "x86_64"))]
                _ => false,
            }
        })
    }

    /// Pixels of a tile of `lines` lines: as many as keep all sums in registers.
    fn rows(self, lines: usize) -> usize {
        match (self, lines) {
            (Self::Avx512Vnni, 1) => MOST_ROWS,
            (Self::Avx512Vnni, 2) => 12,
            (Self::Avx512Vnni, 3) => 8,
            (Self::Avx512Vnni, _) => 6,
            (Self::AvxVnni | Self::Avx2, _) => 3,
            (Self::Portable, _) => 4,
        }
    }

    /// # Safety
    /// The rows of the task must be good for reading `k` bytes and the slack, and no other task may write its outputs.
    unsafe fn run(self, task: &Task<'_>) {
        // SAFETY: the caller's promise; the processor was asked when this value was made.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512Vnni => x86::run_avx512(task),
                #[cfg(target_arch = "x86_64")]
                Self::AvxVnni => x86::run_avx_vnni(task),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => x86::run_avx2(task),
                _ => run::<Portable, 1>(task),
            }
        }
    }
}

/// 16 sums, and the instructions on them.
trait Sums: Copy {
    type Weights: Copy;
    /// # Safety
    /// `from` must be good for reading 16 values, and the processor must have the instructions, here and below.
    unsafe fn start(from: *const i32) -> Self;
    unsafe fn weights(from: *const Line) -> Self::Weights;
    /// Adds the products of four values with the weights of each channel.
    unsafe fn dot(self, values: *const u8, weights: Self::Weights) -> Self;
    /// Writes the results of `count` channels.
    unsafe fn finish(self, epilogue: &Finish, count: usize);
}

/// The epilogue of 16 channels of a pixel. Pointers are good for `count` values.
struct Finish {
    scale: *const f32,
    bias: *const f32,
    residual: Option<(*const u8, f32)>,
    to: To,
}

#[derive(Clone, Copy)]
enum To {
    Quantized(*mut u8, f32),
    Float(*mut f32),
}

/// All panels and pixels of a task, in tiles of at most `N` lines.
#[inline(always)]
unsafe fn run<S: Sums, const N: usize>(task: &Task<'_>) {
    let weights = task.product.weights;
    let lines = weights.channels.div_ceil(LANES);
    let [most, lines_of_tile] = task.most;
    let together = N.min(lines_of_tile);
    for first in (task.panels.start * weights.width..(task.panels.end * weights.width).min(lines)).step_by(together) {
        let count = together.min(lines - first);
        let mut start = task.pixels.start;
        let mut rows = 0;
        while start < task.pixels.end {
            let pixels = most.min(task.pixels.end - start);
            let taps = task.product.taps.len();
            let tile = &task.rows[rows..rows + pixels * taps];
            macro_rules! tiles {
                ($($n:literal: $($m:literal)*;)*) => {
                    match (count, pixels) {
                        $($(($n, $m) if $n <= N => tile_of::<S, $m, $n>(task, tile, start, first),)*)*
                        _ => unreachable!("no tile has {pixels} pixels of {count} lines"),
                    }
                };
            }
            // SAFETY: the caller's promise.
            unsafe {
                tiles! {
                    1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14;
                    2: 1 2 3 4 5 6 7 8 9 10 11 12;
                    3: 1 2 3 4 5 6 7 8;
                    4: 1 2 3 4 5 6;
                }
            }
            rows += pixels * taps;
            start += pixels;
        }
    }
}

#[inline(always)]
unsafe fn tile_of<S: Sums, const M: usize, const N: usize>(
    task: &Task<'_>,
    rows: &[*const u8],
    start: usize,
    first: usize,
) {
    let product = task.product;
    let weights = product.weights;
    let quads = weights.quads();
    let width = weights.width;
    let (panel, line) = (first / width, first % width);
    // SAFETY: rows of `k` bytes and the slack; the panel has `quads` rows of lines for each tap.
    unsafe {
        let mut start_of = [S::start(weights.start.as_ptr().add(first * LANES)); N];
        for n in 1..N {
            start_of[n] = S::start(weights.start.as_ptr().add((first + n) * LANES));
        }
        let mut sums = [start_of; M];
        for (tap, rows) in product.taps.iter().zip(rows.chunks_exact(M)) {
            let mut left = [std::ptr::null::<u8>(); M];
            left.copy_from_slice(rows);
            let lines = weights.data.as_ptr().add((panel * weights.taps + tap.index) * quads * width + line);
            for quad in 0..quads {
                let mut right = [S::weights(lines.add(quad * width)); N];
                for n in 1..N {
                    right[n] = S::weights(lines.add(quad * width + n));
                }
                for m in 0..M {
                    for n in 0..N {
                        sums[m][n] = sums[m][n].dot(left[m].add(quad * QUAD), right[n]);
                    }
                }
            }
        }
        let sums = sums;
        for n in 0..N {
            let channel = (first + n) * LANES;
            let count = LANES.min(weights.channels - channel);
            for m in 0..M {
                let pixel = start + m;
                let residual = product.residual.map(|residual| {
                    let at = pixel * residual.pitch + residual.offset + channel;
                    (residual.data.as_ptr().add(at), residual.scale)
                });
                let to = match task.out {
                    Target::Quantized { data, pitch, offset, low } => {
                        To::Quantized(data.at(pixel * pitch + offset + channel, count), low)
                    }
                    Target::Float(data) => To::Float(data.at(pixel * weights.channels + channel, count)),
                };
                let finish = Finish {
                    scale: product.scale.as_ptr().add(channel),
                    bias: product.bias.as_ptr().add(channel),
                    residual,
                    to,
                };
                sums[m][n].finish(&finish, count);
            }
        }
    }
}

/// Plain integers.
#[derive(Clone, Copy)]
struct Portable([i32; LANES]);

impl Sums for Portable {
    type Weights = Line;

    #[inline(always)]
    unsafe fn start(from: *const i32) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[i32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn weights(from: *const Line) -> Line {
        // SAFETY: the caller's promise.
        unsafe { *from }
    }

    #[inline(always)]
    unsafe fn dot(mut self, values: *const u8, weights: Line) -> Self {
        // SAFETY: the caller's promise.
        let values = unsafe { values.cast::<[u8; QUAD]>().read_unaligned() };
        for (sum, weights) in self.0.iter_mut().zip(weights.0.as_chunks::<QUAD>().0) {
            for k in 0..QUAD {
                *sum += i32::from(values[k]) * i32::from(weights[k]);
            }
        }
        self
    }

    #[inline(always)]
    unsafe fn finish(self, epilogue: &Finish, count: usize) {
        for lane in 0..count {
            // SAFETY: the pointers are good for `count` values.
            unsafe {
                let mut value = self.0[lane] as f32 * *epilogue.scale.add(lane);
                if let Some((residual, scale)) = epilogue.residual {
                    value += f32::from(*residual.add(lane)) * scale;
                }
                value += *epilogue.bias.add(lane);
                match epilogue.to {
                    To::Quantized(to, low) => *to.add(lane) = quantize(value, low),
                    To::Float(to) => *to.add(lane) = value,
                }
            }
        }
    }
}

/// Rounds to the nearest integer between `low` and 255, ties to even; NaN becomes `low`.
#[inline(always)]
pub fn quantize(value: f32, low: f32) -> u8 {
    let value = if value > low { value } else { low };
    let value = if value < 255.0 { value } else { 255.0 };
    value.round_ties_even() as u8
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::*;

    /// # Safety
    /// As [`Instructions::run`], and the processor must have these features.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub unsafe fn run_avx512(task: &Task<'_>) {
        // SAFETY: the caller's promise.
        unsafe { run::<Avx512, 4>(task) }
    }

    /// # Safety
    /// As [`Instructions::run`], and the processor must have these features.
    #[target_feature(enable = "avx2,avxvnni")]
    pub unsafe fn run_avx_vnni(task: &Task<'_>) {
        // SAFETY: the caller's promise.
        unsafe { run::<Avx<true>, 1>(task) }
    }

    /// # Safety
    /// As [`Instructions::run`], and the processor must have these features.
    #[target_feature(enable = "avx2")]
    pub unsafe fn run_avx2(task: &Task<'_>) {
        // SAFETY: the caller's promise.
        unsafe { run::<Avx<false>, 1>(task) }
    }

    #[derive(Clone, Copy)]
    struct Avx512(__m512i);

    impl Sums for Avx512 {
        type Weights = __m512i;

        #[inline(always)]
        unsafe fn start(from: *const i32) -> Self {
            // SAFETY: the caller's promise.
            unsafe { Self(_mm512_loadu_si512(from.cast())) }
        }

        #[inline(always)]
        unsafe fn weights(from: *const Line) -> __m512i {
            // SAFETY: the caller's promise; lines are aligned.
            unsafe { _mm512_load_si512(from.cast()) }
        }

        #[inline(always)]
        unsafe fn dot(self, values: *const u8, weights: __m512i) -> Self {
            // SAFETY: the caller's promise.
            unsafe {
                let values = _mm512_set1_epi32(values.cast::<i32>().read_unaligned());
                Self(_mm512_dpbusd_epi32(self.0, values, weights))
            }
        }

        #[inline(always)]
        unsafe fn finish(self, epilogue: &Finish, count: usize) {
            let mask = ((1u32 << count) - 1) as __mmask16;
            // SAFETY: masked reads and writes touch `count` values.
            unsafe {
                let full = count == LANES;
                let load = |from: *const f32| match full {
                    true => _mm512_loadu_ps(from),
                    false => _mm512_maskz_loadu_ps(mask, from),
                };
                let (scale, bias) = (load(epilogue.scale), load(epilogue.bias));
                let mut value = _mm512_mul_ps(_mm512_cvtepi32_ps(self.0), scale);
                if let Some((residual, scale)) = epilogue.residual {
                    let residual = match full {
                        true => _mm_loadu_si128(residual.cast()),
                        false => _mm_maskz_loadu_epi8(mask, residual.cast()),
                    };
                    let residual = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(residual));
                    value = _mm512_add_ps(value, _mm512_mul_ps(residual, _mm512_set1_ps(scale)));
                }
                value = _mm512_add_ps(value, bias);
                match epilogue.to {
                    To::Quantized(to, low) => {
                        let value = _mm512_max_ps(value, _mm512_set1_ps(low));
                        let value = _mm512_cvtps_epi32(_mm512_min_ps(value, _mm512_set1_ps(255.0)));
                        let bytes = _mm512_cvtepi32_epi8(value);
                        // A masked store takes AMD's processors tens of cycles.
                        match full {
                            true => _mm_storeu_si128(to.cast(), bytes),
                            false => _mm_mask_storeu_epi8(to.cast(), mask, bytes),
                        }
                    }
                    To::Float(to) if full => _mm512_storeu_ps(to, value),
                    To::Float(to) => _mm512_mask_storeu_ps(to, mask, value),
                }
            }
        }
    }

    /// Two vectors of eight sums, with AVX-VNNI or without.
    #[derive(Clone, Copy)]
    struct Avx<const VNNI: bool>([__m256i; 2]);

    impl<const VNNI: bool> Sums for Avx<VNNI> {
        type Weights = [__m256i; 2];

        #[inline(always)]
        unsafe fn start(from: *const i32) -> Self {
            // SAFETY: the caller's promise.
            unsafe { Self([0, 1].map(|half| _mm256_loadu_si256(from.cast::<__m256i>().add(half)))) }
        }

        #[inline(always)]
        unsafe fn weights(from: *const Line) -> [__m256i; 2] {
            // SAFETY: the caller's promise; lines are aligned.
            unsafe { [0, 1].map(|half| _mm256_load_si256(from.cast::<__m256i>().add(half))) }
        }

        #[inline(always)]
        unsafe fn dot(self, values: *const u8, weights: [__m256i; 2]) -> Self {
            // SAFETY: the caller's promise.
            unsafe {
                let values = _mm256_set1_epi32(values.cast::<i32>().read_unaligned());
                let mut sums = self.0;
                for half in 0..2 {
                    sums[half] = match VNNI {
                        true => _mm256_dpbusd_avx_epi32(sums[half], values, weights[half]),
                        false => dot_exact(sums[half], values, weights[half]),
                    };
                }
                Self(sums)
            }
        }

        #[inline(always)]
        unsafe fn finish(self, epilogue: &Finish, count: usize) {
            if count < LANES {
                // SAFETY: the two types have one size; the caller's promise.
                return unsafe {
                    let sums: [i32; LANES] = std::mem::transmute(self.0);
                    Portable(sums).finish(epilogue, count)
                };
            }
            // SAFETY: the pointers are good for 16 values.
            unsafe {
                let mut results = [_mm256_setzero_si256(); 2];
                for half in 0..2 {
                    let at = half * 8;
                    let scale = _mm256_loadu_ps(epilogue.scale.add(at));
                    let bias = _mm256_loadu_ps(epilogue.bias.add(at));
                    let mut value = _mm256_mul_ps(_mm256_cvtepi32_ps(self.0[half]), scale);
                    if let Some((residual, scale)) = epilogue.residual {
                        let residual = _mm256_cvtepu8_epi32(_mm_loadl_epi64(residual.add(at).cast()));
                        let residual = _mm256_cvtepi32_ps(residual);
                        value = _mm256_add_ps(value, _mm256_mul_ps(residual, _mm256_set1_ps(scale)));
                    }
                    value = _mm256_add_ps(value, bias);
                    match epilogue.to {
                        To::Quantized(_, low) => {
                            let value = _mm256_max_ps(value, _mm256_set1_ps(low));
                            results[half] = _mm256_cvtps_epi32(_mm256_min_ps(value, _mm256_set1_ps(255.0)));
                        }
                        To::Float(to) => _mm256_storeu_ps(to.add(at), value),
                    }
                }
                if let To::Quantized(to, _) = epilogue.to {
                    let words = _mm256_permute4x64_epi64::<0b11011000>(_mm256_packus_epi32(results[0], results[1]));
                    let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
                    _mm_storeu_si128(to.cast(), bytes);
                }
            }
        }
    }

    /// Without the saturation of `maddubs`: even and odd bytes as words, whose products' sums fit into an i32.
    #[inline(always)]
    unsafe fn dot_exact(sums: __m256i, values: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: the processor has AVX2.
        unsafe {
            let low = _mm256_set1_epi16(0xff);
            let even = _mm256_madd_epi16(
                _mm256_and_si256(values, low),
                _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(weights)),
            );
            let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(values), _mm256_srai_epi16::<8>(weights));
            _mm256_add_epi32(sums, _mm256_add_epi32(even, odd))
        }
    }
}
