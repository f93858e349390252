//! Implicit GEMM in bf16 with f32 accumulation (AVX512-BF16): twice the multiply-adds per instruction of [`super::conv`].
//!
//! The left operand is rounded as it is gathered; feature maps stay in f32 between operations. With AMX, [`super::amx`]
//! multiplies the same packed weights.
//!
//! An instruction multiplies pairs of values that are adjacent along `k`, so packed weights interleave two rows:
//!
//! ```text
//! f32 panel                     bf16 panel
//! k = 0: a0 a1 a2 …             pair 0: a0 b0 a1 b1 a2 b2 …
//! k = 1: b0 b1 b2 …      ──▶    pair 1: c0 d0 c1 d1 c2 d2 …
//! k = 2: c0 c1 c2 …             (an odd k is padded with zeros)
//! k = 3: d0 d1 d2 …
//! ```

use ::half::bf16;

use super::{
    buffer_pool::Buffer,
    conv::{self, Product},
    disjoint::{DisjointSlice, part},
    thread_pool::{tasks, threads},
};

/// Returns whether the processor has AVX512-BF16.
pub fn is_available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        // As wide as the panels that are packed.
        is_x86_feature_detected!("avx512bf16")
            && is_x86_feature_detected!("avx512bw")
            && conv::panel_width() == imp::PANEL
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Packed weights in pairs along `k`: `[panel][tap][pair][width][2]`.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // Nothing else multiplies them.
pub struct Packed {
    pub(super) data: Buffer,
    pub(super) taps: usize,
    /// The number of channels of the left operand.
    pub(super) k: usize,
    /// At least `⌈k / 2⌉`; for [`super::amx`] whole tiles, padded with zeros.
    pub(super) pairs: usize,
    /// The number of channels of the result.
    pub(super) channels: usize,
}

impl Packed {
    /// Rounds packed weights to the nearest bf16 values, ties to even. `whole_tiles` pads `k` to the tiles of AMX.
    pub fn new(weights: &conv::Packed, whole_tiles: bool) -> Self {
        let [taps, k, channels] = weights.dims();
        let width = conv::panel_width();
        let pairs = if whole_tiles { k.next_multiple_of(32) / 2 } else { k.div_ceil(2) };
        let mut data = Buffer::zeros(channels.div_ceil(width) * taps * pairs * width);
        for (to, from) in data.chunks_exact_mut(pairs * width).zip(weights.data().chunks_exact(k * width)) {
            for (to, from) in to.chunks_exact_mut(width).zip(from.chunks(2 * width)) {
                let (first, second) = from.split_at(width);
                for (lane, to) in to.iter_mut().enumerate() {
                    let pair = [first[lane], second.get(lane).copied().unwrap_or(0.0)].map(round);
                    *to = f32::from_bits(u32::from(pair[0]) | u32::from(pair[1]) << 16);
                }
            }
        }
        Self { data, taps, k, pairs, channels }
    }
}

/// Converts bf16 values to f32.
pub fn widen(x: &[bf16], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    let (len, y) = (x.len(), DisjointSlice::new(y));
    let parts = (len >> 14).clamp(1, 4 * threads());
    tasks(parts, |index| {
        let range = part(len, parts, index, 1);
        // SAFETY: each task accesses its own part only.
        let y = unsafe { y.range(range.clone()) };
        for (x, y) in x[range].iter().zip(y) {
            *y = f32::from_bits(u32::from(x.to_bits()) << 16);
        }
    });
}

/// Returns the bits of the nearest bf16 value, ties to even.
fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

impl Product<'_, Packed> {
    /// Computes into `out`, `[n, height, width, out_pitch]`, with both operands rounded to bf16.
    ///
    /// # Panics
    /// If bf16 [is not available](is_available), and as the f32 GEMM does.
    pub fn run(&self, out: &mut [f32]) {
        assert!(is_available(), "this processor has no AVX512-BF16");
        self.check([self.weights.taps, self.weights.k, self.weights.channels], out);
        #[cfg(target_arch = "x86_64")]
        imp::run(self, out);
        #[cfg(not(target_arch = "x86_64"))]
        let _ = out;
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) use imp::{LANES, PANEL, round_into};

#[cfg(target_arch = "x86_64")]
mod imp {
    use std::{arch::x86_64::*, ops::Range};

    use super::{super::tile, *};
    use crate::cpu::{
        conv::{Map, Tap},
        tile::{WIDTH, with_tile},
    };

    /// Floats of a vector.
    pub const LANES: usize = 16;
    /// Channels of a panel.
    pub const PANEL: usize = WIDTH * LANES;
    const ROWS: usize = 14;
    /// Bytes of the rounded pixels of a task, which it reads again for each panel.
    const CHUNK: usize = 128 << 10;

    /// Rounded pixels, `[n, height, width, pitch]`; `pitch` counts bf16 values.
    #[derive(Clone, Copy)]
    struct Rounded<'a> {
        data: &'a [f32],
        pitch: usize,
    }

    impl Rounded<'_> {
        fn at(&self, pixel: usize) -> *const u16 {
            self.data.as_ptr().cast::<u16>().wrapping_add(pixel * self.pitch)
        }
    }

    /// Returns the distance between pixels: even, and such that the pixels of a tile do not alias in the L1 cache.
    fn pitch_of(k: usize) -> usize {
        let pitch = k.next_multiple_of(2);
        if pitch.is_multiple_of(1024) { pitch + 2 * LANES } else { pitch }
    }

    /// Returns whether each output reads only the pixel at its own position.
    fn is_pointwise(product: &Product<'_, Packed>) -> bool {
        let [Tap { down: 0, right: 0, .. }] = product.taps else { return false };
        let [height, width] = product.lattice.count;
        (height - 1) * product.stride[0] < product.x.size[0] && (width - 1) * product.stride[1] < product.x.size[1]
    }

    pub(super) fn run(product: &Product<'_, Packed>, out: &mut [f32]) {
        let weights = product.weights;
        let [height, width] = product.lattice.count;
        let pixels = product.n * height * width;
        if pixels == 0 || weights.channels == 0 {
            return;
        }
        let panels = weights.channels.div_ceil(PANEL);
        // A pixel of a map with few channels is read as part of a row, at any offset.
        let overlaps = weights.k > product.x.pitch;
        let pointwise = !overlaps && is_pointwise(product);
        let pitch = if overlaps { product.x.pitch } else { pitch_of(weights.k) };
        let bytes = pitch.max(16) * size_of::<u16>() * product.stride[0] * product.stride[1];
        let few = weights.data.len() * size_of::<f32>() <= 2 * CHUNK;
        let chunk = if few { 4 * ROWS } else { (CHUNK / bytes).clamp(4 * ROWS, 128 * ROWS) };
        let chunk = chunk.min(pixels.div_ceil(threads())).next_multiple_of(ROWS);
        let chunks = pixels.div_ceil(chunk);
        let groups = (4 * threads()).div_ceil(chunks).clamp(1, panels);
        // Rounded once for all tasks, unless the tasks read disjoint pixels.
        let all = (!pointwise || groups > 1).then(|| round_all(product.x, pitch, weights.k, overlaps));
        let zeros = Buffer::zeros(pitch.max(weights.k).div_ceil(2));
        let out = DisjointSlice::new(out);
        tasks(chunks * groups, |task| {
            let pixels = part(pixels, chunks, task / groups, ROWS);
            let panels = part(panels, groups, task % groups, 1);
            let own = all.is_none().then(|| round_own(product, pixels.clone()));
            let task = Task {
                product,
                zeros: &zeros,
                x: Rounded { data: all.as_ref().or(own.as_ref()).expect("one of them"), pitch },
                gathered: own.is_some(),
                out,
                pixels,
                panels,
            };
            // SAFETY: `run` of the parent module has asserted that the processor has AVX512-BF16.
            unsafe { task.run() };
        });
    }

    /// Rounds the whole feature map.
    fn round_all(x: Map<'_>, pitch: usize, k: usize, overlaps: bool) -> Buffer {
        let pixels = x.data.len() / x.pitch;
        // A window that ends with the map reads one value more where its length is odd.
        let mut rounded = Buffer::new((pixels * pitch).div_ceil(2) + 1);
        let end = rounded.len() - 1;
        rounded[end] = 0.0;
        let out = DisjointSlice::new(&mut rounded);
        // The feature map contiguously, in parts of whole pairs, or pixel by pixel.
        let (run, runs, step) = if overlaps || (x.pitch == pitch && x.offset == 0) {
            let len = pixels * pitch;
            (len.min(1 << 14), len.div_ceil(1 << 14), 1 << 14)
        } else {
            (k, pixels, x.pitch)
        };
        let parts = runs.min(8 * threads());
        tasks(parts, |index| {
            for run_index in part(runs, parts, index, 1) {
                let start = run_index * step + x.offset;
                let values = &x.data[start..x.data.len().min(start + run)];
                let to = run_index * if step == x.pitch && run == k { pitch } else { step };
                // SAFETY: each run has its own position; the processor was asked.
                unsafe {
                    {
                        check!(to + values.len().next_multiple_of(2) <= 2 * out.len());
                        round_into(values, out.at(0, 0).cast::<u16>().wrapping_add(to))
                    }
                };
            }
        });
        rounded
    }

    /// Gathers the pixels that a task reads.
    fn round_own(product: &Product<'_, Packed>, pixels: Range<usize>) -> Buffer {
        let k = product.weights.k;
        let ([height, width], [x_height, x_width]) = (product.lattice.count, product.x.size);
        let pitch = pitch_of(k);
        let mut rounded = Buffer::new(pixels.len() * pitch / 2);
        let len = rounded.len();
        let to = rounded.as_mut_ptr().cast::<u16>();
        for (row, pixel) in pixels.enumerate() {
            let (rest, column) = (pixel / width, pixel % width);
            let (n, y) = (rest / height, rest % height);
            let at = (n * x_height + y * product.stride[0]) * x_width + column * product.stride[1];
            let start = at * product.x.pitch + product.x.offset;
            // SAFETY: the buffer has `pitch` values for each pixel; the processor was asked.
            unsafe {
                check!(row * pitch + k.next_multiple_of(2) <= 2 * len);
                round_into(&product.x.data[start..start + k], to.wrapping_add(row * pitch));
            }
        }
        rounded
    }

    /// Rounds to nearest, ties to even; an odd number of values is followed by a zero.
    ///
    /// # Safety
    /// `to` must be good for writing as many values, rounded up to an even number.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn round_into(values: &[f32], to: *mut u16) {
        let (mut from, mut left) = (values.as_ptr(), values.len());
        let mut to = to;
        // SAFETY: as many are read as are left; as many are written, and one more if their number is odd.
        unsafe {
            while left > 0 {
                let count = left.min(2 * LANES);
                let mask = |first: usize| ((1u32 << count.saturating_sub(first).min(LANES)) - 1) as __mmask16;
                let pair = if count == 2 * LANES {
                    _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from.add(LANES)), _mm512_loadu_ps(from))
                } else {
                    let high = _mm512_maskz_loadu_ps(mask(LANES), from.wrapping_add(LANES));
                    _mm512_cvtne2ps_pbh(high, _mm512_maskz_loadu_ps(mask(0), from))
                };
                let bits: __m512i = std::mem::transmute(pair);
                if count == 2 * LANES {
                    _mm512_storeu_si512(to.cast(), bits);
                } else {
                    let even = ((1u64 << count.next_multiple_of(2)) - 1) as __mmask32;
                    _mm512_mask_storeu_epi16(to.cast(), even, bits);
                }
                from = from.wrapping_add(count);
                to = to.wrapping_add(count);
                left -= count;
            }
        }
    }

    struct Task<'a> {
        product: &'a Product<'a, Packed>,
        zeros: &'a [f32],
        x: Rounded<'a>,
        /// Whether `x` has the pixels of this task alone, one after another.
        gathered: bool,
        out: DisjointSlice<'a, f32>,
        pixels: Range<usize>,
        panels: Range<usize>,
    }

    impl Task<'_> {
        /// # Safety
        /// The processor must have AVX512-BF16.
        #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
        unsafe fn run(&self) {
            let most = tile::even_rows(self.pixels.len(), ROWS);
            for panel in self.panels.clone() {
                let vectors = (self.product.weights.channels - panel * PANEL).div_ceil(LANES).min(WIDTH);
                let mut start = self.pixels.start;
                while start < self.pixels.end {
                    let count = most.min(self.pixels.end - start);
                    // SAFETY: the caller guarantees that the processor has AVX512-BF16.
                    unsafe { with_tile!(count, vectors, block::<()>(self, start, panel)) };
                    start += count;
                }
            }
        }
    }

    /// `sums[i] + Σ_pair rows[i][pair] · panel[pair]`.
    ///
    /// # Safety
    /// Each of `rows` must be good for reading `2 · pairs` values, `panel` for `pairs` rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn accumulate<const M: usize, const N: usize>(
        mut sums: [[__m512; N]; M],
        rows: &[*const u16; M],
        panel: *const f32,
        pairs: usize,
    ) -> [[__m512; N]; M] {
        for pair in 0..pairs {
            // SAFETY: the rows have `2 · pairs` values and the panel `pairs` rows; all of these types are plain bits of one size.
            unsafe {
                let mut weights = [_mm512_setzero_si512(); N];
                for n in 0..N {
                    weights[n] = _mm512_loadu_si512(panel.add(pair * PANEL + n * LANES).cast());
                }
                for m in 0..M {
                    let value = rows[m].add(2 * pair).cast::<i32>().read_unaligned();
                    let value: __m512bh = std::mem::transmute(_mm512_set1_epi32(value));
                    for n in 0..N {
                        let weights: __m512bh = std::mem::transmute(weights[n]);
                        sums[m][n] = _mm512_dpbf16_ps(sums[m][n], value, weights);
                    }
                }
            }
        }
        sums
    }

    /// Computes one tile: pixels `start..start + M`, one panel.
    ///
    /// # Safety
    /// The processor must have AVX512-BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    #[allow(clippy::extra_unused_type_parameters)] // `with_tile` gives one.
    unsafe fn block<S, const M: usize, const N: usize>(task: &Task<'_>, start: usize, panel: usize) {
        let product = task.product;
        let pairs = task.product.weights.k.div_ceil(2);
        let [height, columns] = product.lattice.count;
        let [x_height, x_width] = product.x.size;

        // The addresses that each row of the tile reads and writes.
        let mut origin = [[0isize; 2]; M];
        let mut image = [0usize; M];
        let mut write = [0usize; M];
        let (mut n, rest) = (start / (height * columns), start % (height * columns));
        let (mut row, mut column) = (rest / columns, rest % columns);
        for m in 0..M {
            origin[m] = [(row * product.stride[0]) as isize, (column * product.stride[1]) as isize];
            image[m] = n * x_height * x_width;
            let lattice = &product.lattice;
            let y = lattice.first[0] + row * lattice.step[0];
            let at = lattice.first[1] + column * lattice.step[1];
            write[m] = ((n * lattice.size[0] + y) * lattice.size[1] + at) * product.out_pitch + product.out_offset;
            column += 1;
            if column == columns {
                (column, row) = (0, row + 1);
                if row == height {
                    (row, n) = (0, n + 1);
                }
            }
        }

        let mut sums = [[_mm512_setzero_ps(); N]; M];
        for tap in product.taps {
            let mut left = [task.zeros.as_ptr().cast::<u16>(); M];
            for m in 0..M {
                if task.gathered {
                    left[m] = task.x.at(start - task.pixels.start + m);
                    continue;
                }
                let [down, right] = [origin[m][0] + tap.down, origin[m][1] + tap.right];
                if (down as usize) < x_height && (right as usize) < x_width {
                    left[m] = task.x.at(image[m] + down as usize * x_width + right as usize);
                }
            }
            for m in 0..M {
                let zeros = left[m] == task.zeros.as_ptr().cast();
                let data = if zeros { task.zeros } else { task.x.data };
                check!((left[m] as usize - data.as_ptr() as usize) + pairs * size_of::<f32>() <= size_of_val(data));
            }
            let at = (panel * task.product.weights.taps + tap.index) * task.product.weights.pairs * PANEL;
            check!(at + pairs * PANEL <= task.product.weights.data.len());
            // SAFETY: each row is the values of a pixel inside the map, or as many zeros; the panel has `pairs` rows.
            unsafe {
                sums = accumulate(sums, &left, task.product.weights.data.as_ptr().add(at), pairs);
            }
        }

        // A copy, so that the accumulators are never indexed by a variable and stay in registers.
        let sums = std::hint::black_box(sums);
        let epilogue = &product.epilogue;
        for n in 0..N {
            let channel = panel * PANEL + n * LANES;
            let count = LANES.min(task.product.weights.channels - channel);
            let mask = ((1u32 << count) - 1) as __mmask16;
            let of_channels = product.out_offset + channel..product.out_offset + channel + count;
            // SAFETY: `count` floats of slices and of what is this task's alone.
            unsafe {
                let scale = epilogue.scale.map_or(_mm512_set1_ps(1.0), |scale| {
                    _mm512_maskz_loadu_ps(mask, scale[of_channels.clone()].as_ptr())
                });
                let bias = epilogue.bias.map_or(_mm512_setzero_ps(), |bias| {
                    _mm512_maskz_loadu_ps(mask, bias[of_channels.clone()].as_ptr())
                });
                for m in 0..M {
                    let at = write[m] + channel;
                    let mut value = _mm512_fmadd_ps(sums[m][n], scale, bias);
                    if let Some(residual) = epilogue.residual {
                        check!(at + count <= residual.len());
                        let residual = _mm512_maskz_loadu_ps(mask, residual.as_ptr().wrapping_add(at));
                        value = _mm512_add_ps(value, residual);
                    }
                    if epilogue.relu {
                        // `max` with its operands in this order propagates NaN.
                        value = _mm512_max_ps(_mm512_setzero_ps(), value);
                    }
                    _mm512_mask_storeu_ps(task.out.at(at, count), mask, value);
                }
            }
        }
    }
}
