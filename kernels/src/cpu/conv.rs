//! Convolution and its data gradient by implicit GEMM: the rows of the left operand are read pixel by pixel from the
//! feature map itself (channels last) instead of from an im2col matrix; the right operand is the packed weights.
//!
//! ```text
//! out[pixel][c_out] = Σ_tap Σ_k x[pixel · stride + tap][k] · weights[tap][k][c_out]
//!
//! x        NHWC: [n][y][x][c_in]
//! weights  [panel][tap][k][width]      width = 2 vectors of output channels (tile.rs); panel = ⌈c_out / width⌉
//!
//!           panel 0                      panel 1
//!          ┌──── width ────┐            ┌──── width ────┐
//!   tap 0  │ k = 0: c0 c1 …│            │ k = 0: cw …   │
//!          │ k = 1: c0 c1 …│            │               │     contiguous in the order in which
//!          │   ⋮           │            │               │     a register tile reads it
//!   tap 1  │ k = 0: c0 c1 …│            │               │
//!          └───────────────┘            └───────────────┘
//! ```

use pulp::{Arch, Simd, WithSimd};

use super::{
    buffer_pool::{Buffer, elements},
    disjoint::{DisjointSlice, part},
    simd,
    thread_pool::{tasks, threads},
    tile::{self, Tile, WIDTH, accumulate, load, load_part, rows, store, store_part, with_tile},
};

/// The shape of a convolution. Sizes are `[height, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// The batch size.
    pub n: usize,
    /// The number of input channels.
    pub channels_in: usize,
    /// The number of output channels.
    pub channels_out: usize,
    /// The input size.
    pub input: [usize; 2],
    /// The kernel size.
    pub kernel: [usize; 2],
    /// The stride.
    pub stride: [usize; 2],
    /// The zero padding, `[[top, bottom], [left, right]]`.
    pub padding: [[usize; 2]; 2],
    /// The dilation.
    pub dilation: [usize; 2],
    /// The number of groups.
    pub groups: usize,
}

impl Shape {
    /// Returns the output size, or `None` if the kernel does not fit into the padded input.
    pub fn output(&self) -> Option<[usize; 2]> {
        let along = |axis: usize| {
            let [before, after] = self.padding[axis];
            let padded = self.input[axis].checked_add(before)?.checked_add(after)?;
            let reach = self.kernel[axis].checked_sub(1)?.checked_mul(self.dilation[axis])?.checked_add(1)?;
            Some(padded.checked_sub(reach)?.checked_div(self.stride[axis])? + 1)
        };
        Some([along(0)?, along(1)?])
    }

    /// Returns the number of kernel positions.
    pub fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Returns the number of multiply-adds.
    pub fn cost(&self) -> usize {
        let [height, width] = self.output().unwrap_or([0, 0]);
        self.n * height * width * self.channels_out * self.channels_in / self.groups * self.taps()
    }
}

/// A kernel position: the offset of the input pixel that it reads, and its index in the packed weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tap {
    /// Rows down.
    pub down: isize,
    /// Columns right.
    pub right: isize,
    /// The index in the packed weights.
    pub index: usize,
}

/// The packed weights of one group, `[panel][tap][k][width]`; the last panel is padded with zeros.
pub struct Packed {
    data: Buffer,
    taps: usize,
    /// The number of channels of the left operand.
    k: usize,
    /// The number of channels of the result.
    channels: usize,
}

/// The addresses of weights in `[c_out, c_in / groups, kh, kw]`. Several groups can be merged into one whose weights between
/// channels of different groups are zero.
#[derive(Debug, Clone, Copy)]
pub struct WeightOrder {
    /// Offset of the first group.
    pub base: usize,
    /// Taps of the kernel.
    pub taps: usize,
    /// Input channels of a group.
    pub inputs: usize,
    /// Output channels of a group.
    pub outputs: usize,
    /// The number of merged groups.
    pub groups: usize,
    /// Whether inputs and outputs are swapped, as in the data gradient.
    pub transposed: bool,
    /// Whether the kernel is rotated by 180°.
    pub turned: bool,
}

impl WeightOrder {
    /// Returns the number of channels of the left operand and of the result.
    pub fn sizes(&self) -> [usize; 2] {
        let [inputs, outputs] = [self.inputs, self.outputs].map(|channels| channels * self.groups);
        if self.transposed { [outputs, inputs] } else { [inputs, outputs] }
    }

    /// Returns the end of the weights.
    ///
    /// # Panics
    ///
    /// If it overflows.
    pub fn end(&self) -> usize {
        let len = elements([self.outputs, self.inputs, self.groups, self.taps]);
        self.base.checked_add(len).expect("the weights are addressable")
    }

    /// Returns the offset of the taps of weight `(k, channel)`, or `None` if it is zero.
    #[inline(always)]
    pub fn at(&self, k: usize, channel: usize) -> Option<usize> {
        let (input, output) = if self.transposed { (channel, k) } else { (k, channel) };
        if self.groups > 1 && input / self.inputs != output / self.outputs {
            return None;
        }
        Some(self.base + (output * self.inputs + input % self.inputs) * self.taps)
    }
}

/// Returns the width of a panel in floats on this processor.
pub fn panel_width() -> usize {
    WIDTH * simd::f32_lanes()
}

impl Packed {
    /// Packs the weights of some groups.
    pub fn new(weights: &[f32], order: WeightOrder) -> Self {
        let [k, channels] = order.sizes();
        let taps = order.taps;
        assert!(weights.len() >= order.end(), "{} weights are too few for {order:?}", weights.len());
        let width = panel_width();
        let panels = channels.div_ceil(width);
        let mut data = Buffer::new(elements([panels, taps, k, width]));
        let out = DisjointSlice::new(&mut data);
        let parts = k.div_ceil(32).min((4 * threads()).div_ceil(panels)).max(1);
        tasks(panels * parts, |task| {
            let (panel, index) = (task / parts, task % parts);
            let first = panel * width;
            let count = width.min(channels - first);
            let copy = |k_index: usize, lane: usize| {
                let source = if lane < count { order.at(k_index, first + lane) } else { None };
                for tap in 0..taps {
                    let from = if order.turned { taps - 1 - tap } else { tap };
                    let value = source.map_or(0.0, |source| weights[source + from]);
                    // SAFETY: each task has its own `k` of its own panel.
                    unsafe { out.at(((panel * taps + tap) * k + k_index) * width + lane, 1).write(value) };
                }
            };
            // Along the inputs of an output channel, whose weights are contiguous.
            let range = part(k, parts, index, 1);
            if order.transposed {
                for k_index in range {
                    for lane in 0..width {
                        copy(k_index, lane);
                    }
                }
                return;
            }
            let together = 16.max(256 / taps);
            for start in range.clone().step_by(together) {
                for lane in 0..width {
                    for k_index in start..range.end.min(start + together) {
                        copy(k_index, lane);
                    }
                }
            }
        });
        Self { data, taps, k, channels }
    }

    /// Returns the weights with the columns of a kernel row merged into the channels: `[panel][row][column · k][width]`.
    ///
    /// # Panics
    ///
    /// If the kernel does not have this number of rows.
    pub fn into_rows(mut self, rows: usize) -> Self {
        assert!(self.taps.is_multiple_of(rows), "{} taps do not make {rows} rows", self.taps);
        self.k *= self.taps / rows;
        self.taps = rows;
        self
    }

    /// Returns the packed floats.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// `[taps, k, channels]`.
    pub fn dims(&self) -> [usize; 3] {
        [self.taps, self.k, self.channels]
    }
}

/// A feature map with its channels last.
#[derive(Clone, Copy)]
pub struct Map<'a> {
    /// `[n, height, width, pitch]`.
    pub data: &'a [f32],
    /// `[height, width]`.
    pub size: [usize; 2],
    /// The distance between pixels in floats.
    pub pitch: usize,
    /// The first channel.
    pub offset: usize,
}

impl Map<'_> {
    /// Asserts that the slice has `n` images, and that each tap reads `k` values inside of them for every pixel of an output
    /// of this size. A tap outside the feature map reads nothing.
    pub(super) fn check(&self, n: usize, k: usize, taps: &[Tap], stride: [usize; 2], output: [usize; 2]) {
        let Self { data, size, pitch, offset } = *self;
        let [height, width] = size;
        assert!(
            data.len() == elements([n, height, width, pitch]),
            "{} values are no map of {n} images of {size:?} pixels, {pitch} values apart",
            data.len()
        );
        if n == 0 || output.contains(&0) {
            return;
        }
        for tap in taps {
            // The last row and column that it may read.
            let last = |axis: usize, shift: isize| -> Option<usize> {
                let reach = (output[axis] - 1).checked_mul(stride[axis]).expect("the stride fits into the map");
                let reach = isize::try_from(reach).expect("the stride fits into the map").checked_add(shift);
                let reach = reach.expect("a tap is near the map");
                usize::try_from(reach).ok().map(|reach| reach.min(size[axis].saturating_sub(1)))
            };
            let (Some(row), Some(column)) = (last(0, tap.down), last(1, tap.right)) else { continue };
            if height == 0 || width == 0 {
                continue;
            }
            let start = (((n - 1) * height + row) * width + column) * pitch;
            let end = start.checked_add(offset).and_then(|start| start.checked_add(k));
            assert!(
                end.is_some_and(|end| end <= data.len()),
                "{k} values from {offset} on do not fit into a map of {size:?} pixels for {tap:?}"
            );
        }
    }
}

/// The epilogue: operations on an accumulator before it is stored.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Multiplies each channel of the output.
    pub scale: Option<&'a [f32]>,
    /// Added to each channel of the output.
    pub bias: Option<&'a [f32]>,
    /// Added to each value, in the layout of the output.
    pub residual: Option<&'a [f32]>,
    /// Whether ReLU is applied last.
    pub relu: bool,
}

impl Epilogue<'_> {
    /// Asserts that its slices cover `channels` channels and an output of `len` values.
    pub(super) fn check(&self, channels: usize, len: usize) {
        for vector in [self.scale, self.bias].into_iter().flatten() {
            assert!(vector.len() >= channels, "{} values for {channels} channels", vector.len());
        }
        if let Some(residual) = self.residual {
            assert!(residual.len() == len, "a residual of {} values for an output of {len}", residual.len());
        }
    }

    /// Loads scale and bias of `count` channels.
    #[inline(always)]
    pub(super) fn affine<S: Simd>(&self, simd: S, channel: usize, count: usize) -> [S::f32s; 2] {
        let mut affine = [simd.splat_f32s(1.0), simd.splat_f32s(0.0)];
        // SAFETY: as many floats as the slice has.
        unsafe {
            if let Some(scale) = self.scale {
                affine[0] = load_part(simd, scale[channel..channel + count].as_ptr(), count);
            }
            if let Some(bias) = self.bias {
                affine[1] = load_part(simd, bias[channel..channel + count].as_ptr(), count);
            }
        }
        affine
    }
}

/// Pixels `(y, x)` of an output, for `y` and `x` in `0..count`, written to `first + y · step, …` of it.
#[derive(Clone, Copy)]
pub struct Lattice {
    /// The output size.
    pub size: [usize; 2],
    /// The first pixel written.
    pub first: [usize; 2],
    /// The distance between written pixels.
    pub step: [usize; 2],
    /// The number of written pixels.
    pub count: [usize; 2],
}

impl Lattice {
    /// Returns the lattice of every pixel.
    pub fn all(size: [usize; 2]) -> Self {
        Self { size, first: [0, 0], step: [1, 1], count: size }
    }

    /// Asserts that its pixels are distinct ones of the output.
    fn check(&self) {
        for axis in [0, 1] {
            let [size, first, step, count] = [self.size, self.first, self.step, self.count].map(|sizes| sizes[axis]);
            let last = count.checked_sub(1).and_then(|count| count.checked_mul(step)?.checked_add(first));
            let inside = count == 0 || step > 0 && last.is_some_and(|last| last < size);
            assert!(inside, "{count} pixels from {first} on, {step} apart, do not fit into {size}");
        }
    }
}

/// An implicit GEMM: `out[pixel] = Σ_tap x[pixel · stride + tap] · weights[tap]`.
pub struct Product<'a, W = Packed> {
    /// Images.
    pub n: usize,
    /// Left operand.
    pub x: Map<'a>,
    /// Steps in `x` between pixels of the output.
    pub stride: [usize; 2],
    /// The kernel positions summed over.
    pub taps: &'a [Tap],
    /// Right operand: [`Packed`], or of pairs of bf16 values, [`super::bf16::Packed`].
    pub weights: &'a W,
    /// Pixels to be written.
    pub lattice: Lattice,
    /// The distance between output pixels in floats.
    pub out_pitch: usize,
    /// The first channel of the output.
    pub out_offset: usize,
    /// The epilogue.
    pub epilogue: Epilogue<'a>,
}

/// Bytes of the left operand of a task, which it reads again for each panel, so that they stay in the L2 cache.
const CHUNK: usize = 256 << 10;

/// The prefetch distance of new weights, in rows of a panel: a page of memory, since the hardware prefetcher stops at its
/// end.
const AHEAD: usize = 32;

impl<'a, W> Product<'a, W> {
    /// Replaces the weights.
    pub fn with<V>(self, weights: &'a V) -> Product<'a, V> {
        let Self { n, x, stride, taps, lattice, out_pitch, out_offset, epilogue, .. } = self;
        Product { n, x, stride, taps, weights, lattice, out_pitch, out_offset, epilogue }
    }

    /// Asserts the bounds of all reads and writes, for weights of these dimensions, in time proportional to the taps.
    pub(super) fn check(&self, [weight_taps, k, channels]: [usize; 3], out: &[f32]) {
        self.x.check(self.n, k, self.taps, self.stride, self.lattice.count);
        for tap in self.taps {
            assert!(tap.index < weight_taps, "{tap:?} of {weight_taps} taps");
        }
        self.lattice.check();
        let [height, width] = self.lattice.size;
        assert!(
            out.len() == elements([self.n, height, width, self.out_pitch]),
            "an output of {} values for {} images of {height} × {width} pixels, {} values apart",
            out.len(),
            self.n,
            self.out_pitch
        );
        let end = self.out_offset.checked_add(channels).expect("the channels are addressable");
        assert!(end <= self.out_pitch, "{channels} channels from {} on of {}", self.out_offset, self.out_pitch);
        self.epilogue.check(end, out.len());
    }
}

impl Product<'_> {
    /// Computes into `out`, `[n, height, width, out_pitch]`.
    ///
    /// # Panics
    ///
    /// If the length of a slice does not match the sizes, or a tap or a channel does not exist.
    pub fn run(&self, out: &mut [f32]) {
        self.check(self.weights.dims(), out);
        let [_, k, channels] = self.weights.dims();
        let [height, width] = self.lattice.count;
        let pixels = self.n * height * width;
        if pixels == 0 || channels == 0 {
            return;
        }
        let panels = channels.div_ceil(panel_width());
        let bytes = k.max(16) * size_of::<f32>() * self.stride[0] * self.stride[1];
        // Weights that fit into the L2 cache are read again for every few pixels, whose outputs are then stored together.
        // Other weights are read once for as many pixels as fit.
        let heavy = self.weights.data.len() * size_of::<f32>();
        let chunk = if heavy <= CHUNK { 56 } else { (CHUNK / bytes).clamp(56, 1792) };
        // Tasks split the pixels, or the weights if those are larger.
        let shared_out = if heavy > pixels * bytes && panels >= 4 * threads() { 1 } else { threads() };
        let chunk = chunk.min(pixels.div_ceil(shared_out)).next_multiple_of(14);
        let chunks = pixels.div_ceil(chunk);
        let groups = (4 * threads()).div_ceil(chunks).clamp(1, panels);
        let zeros = vec![0.0; k];
        let out = DisjointSlice::new(out);
        let arch = Arch::new();
        tasks(chunks * groups, |task| {
            let pixels = part(pixels, chunks, task / groups, 14);
            let panels = part(panels, groups, task % groups, 1);
            let gathered = self.gather(pixels.clone());
            arch.dispatch(Task { product: self, zeros: &zeros, gathered: gathered.as_deref(), out, pixels, panels });
        });
    }
}

/// Returns whether the pixels of a tile would map to the same few sets of the L1 cache.
pub(super) fn aliases(pitch: usize) -> bool {
    pitch.is_multiple_of(512)
}

/// Returns the distance between gathered pixels in floats.
pub(super) fn gathered_pitch(k: usize) -> usize {
    k.next_multiple_of(16) + 16
}

impl Product<'_> {
    /// Copies the rows that 1 × 1 weights read, if their addresses would alias in the L1 cache.
    fn gather(&self, pixels: std::ops::Range<usize>) -> Option<Buffer> {
        let [Tap { down: 0, right: 0, .. }] = self.taps else { return None };
        let [_, k, _] = self.weights.dims();
        let ([height, width], [x_height, x_width]) = (self.lattice.count, self.x.size);
        let inside = (height - 1) * self.stride[0] < x_height && (width - 1) * self.stride[1] < x_width;
        if !aliases(self.x.pitch) || !inside {
            return None;
        }
        let pitch = gathered_pitch(k);
        let mut gathered = Buffer::new(pixels.len() * pitch);
        for (row, pixel) in gathered.chunks_exact_mut(pitch).zip(pixels) {
            let (rest, column) = (pixel / width, pixel % width);
            let (n, y) = (rest / height, rest % height);
            let at = (n * x_height + y * self.stride[0]) * x_width + column * self.stride[1];
            let start = at * self.x.pitch + self.x.offset;
            row[..k].copy_from_slice(&self.x.data[start..start + k]);
        }
        Some(gathered)
    }
}

struct Task<'a> {
    product: &'a Product<'a>,
    zeros: &'a [f32],
    /// The gathered rows of the pixels, if they were copied.
    gathered: Option<&'a [f32]>,
    out: DisjointSlice<'a, f32>,
    pixels: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let [_, _, channels] = self.product.weights.dims();
        let width = WIDTH * S::F32_LANES;
        let most = tile::even_rows(self.pixels.len(), rows::<S>());
        for panel in self.panels.clone() {
            let vectors = (channels - panel * width).div_ceil(S::F32_LANES).min(WIDTH);
            let mut start = self.pixels.start;
            while start < self.pixels.end {
                let count = most.min(self.pixels.end - start);
                with_tile!(count, vectors, block::<S>(simd, &self, start, panel));
                start += count;
            }
        }
    }
}

/// Computes one tile: pixels `start..start + M`, one panel.
#[inline(always)]
fn block<S: Simd, const M: usize, const N: usize>(simd: S, task: &Task<'_>, start: usize, panel: usize) {
    let product = task.product;
    let [_, k, channels] = product.weights.dims();
    let lanes = S::F32_LANES;
    let width = WIDTH * lanes;
    let [height, columns] = product.lattice.count;
    let x = product.x;
    let [x_height, x_width] = x.size;

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

    for m in 0..M {
        let at = write[m] + panel * width;
        tile::prefetch_for_writing(task.out.at(at, 0), N * lanes);
        if let Some(residual) = product.epilogue.residual {
            tile::prefetch(residual.as_ptr().wrapping_add(at), N * lanes);
        }
    }
    let mut tile: Tile<S, M, N> = [[simd.splat_f32s(0.0); N]; M];
    for tap in product.taps {
        let mut left = [task.zeros.as_ptr(); M];
        for m in 0..M {
            let [down, right] = [origin[m][0] + tap.down, origin[m][1] + tap.right];
            if (down as usize) < x_height && (right as usize) < x_width {
                let pixel = image[m] + down as usize * x_width + right as usize;
                check!(pixel * x.pitch + x.offset + k <= x.data.len());
                left[m] = x.data.as_ptr().wrapping_add(pixel * x.pitch + x.offset);
            }
        }
        if let Some(gathered) = task.gathered {
            let pitch = gathered_pitch(k);
            for m in 0..M {
                let row = start - task.pixels.start + m;
                check!((row + 1) * pitch <= gathered.len());
                left[m] = gathered.as_ptr().wrapping_add(row * pitch);
            }
        }
        let at = (panel * product.weights.taps + tap.index) * k * width;
        check!(at + k * width <= product.weights.data.len());
        // SAFETY: each row is the `k` channels of a pixel inside the map, or as many zeros; the panel has `k` rows.
        unsafe {
            let weights = product.weights.data.as_ptr().add(at);
            // Prefetches weights that this task has not read yet, otherwise the next pixels if they are contiguous.
            let ahead = match start == task.pixels.start {
                true => (weights.wrapping_add(AHEAD * width), width),
                false => (left[M - 1].wrapping_add(k), 16),
            };
            accumulate(simd, &mut tile, &left, weights, width, k, ahead);
        }
    }

    // A copy, so that the accumulators are never indexed by a variable and stay in registers.
    let sums = tile;
    let first = panel * width;
    for n in 0..N {
        let channel = first + n * lanes;
        let count = lanes.min(channels - channel);
        let [scale, bias] = product.epilogue.affine(simd, product.out_offset + channel, count);
        for m in 0..M {
            // SAFETY: the residual is laid out as the output, and no other task has this pixel and panel.
            unsafe {
                finish(
                    simd,
                    &product.epilogue,
                    task.out,
                    write[m] + channel,
                    count,
                    simd.mul_add_e_f32s(sums[m][n], scale, bias),
                )
            };
        }
    }
}

/// Adds the residual, applies ReLU and stores `count` floats at `at`.
///
/// # Safety
/// `at` and `count` must be inside the residual, if any, and inside the part of `out` that only this task accesses.
#[inline(always)]
pub(super) unsafe fn finish<S: Simd>(
    simd: S,
    epilogue: &Epilogue<'_>,
    out: DisjointSlice<'_, f32>,
    at: usize,
    count: usize,
    mut value: S::f32s,
) {
    let full = count == S::F32_LANES;
    if let Some(residual) = epilogue.residual {
        check!(at + count <= residual.len());
        let residual = residual.as_ptr().wrapping_add(at);
        // SAFETY: the `count` floats from `at` on are inside the residual.
        let residual = unsafe { if full { load::<S>(residual) } else { load_part(simd, residual, count) } };
        value = simd.add_f32s(value, residual);
    }
    if epilogue.relu {
        // `max` with its operands in this order propagates NaN.
        value = simd.max_f32s(simd.splat_f32s(0.0), value);
    }
    // SAFETY: the `count` floats from `at` on are inside the output, and only this task accesses them.
    unsafe {
        if full { store::<S>(out.at(at, count), value) } else { store_part(simd, out.at(at, count), count, value) }
    }
}

/// The padded input of a convolution of few channels, `[n, height, width, c]`: a row of the kernel is contiguous in it.
pub fn pad(x: &[f32], [n_stride, c_stride, y_stride, x_stride]: [usize; 4], shape: &Shape) -> (Buffer, [usize; 2]) {
    let c = shape.channels_in;
    let [[top, bottom], [left, right]] = shape.padding;
    let size @ [height, width] = [shape.input[0] + top + bottom, shape.input[1] + left + right];
    let mut padded = Buffer::new(shape.n * height * width * c);
    let out = DisjointSlice::new(&mut padded);
    tasks(shape.n * height, |row| {
        let (n, y) = (row / height, row % height);
        // SAFETY: each task accesses its own row only.
        let out = unsafe { out.range(row * width * c..(row + 1) * width * c) };
        if y < top || y >= top + shape.input[0] {
            return out.fill(0.0);
        }
        out[..left * c].fill(0.0);
        out[(left + shape.input[1]) * c..].fill(0.0);
        let source = n * n_stride + (y - top) * y_stride;
        for (column, pixel) in out[left * c..(left + shape.input[1]) * c].chunks_exact_mut(c).enumerate() {
            for (channel, value) in pixel.iter_mut().enumerate() {
                *value = x[source + column * x_stride + channel * c_stride];
            }
        }
    });
    (padded, size)
}

/// Convolutions with at most this many channels read whole kernel rows at once, from a padded copy.
pub fn reads_rows(shape: &Shape) -> bool {
    shape.channels_in < 8 && shape.groups == 1 && shape.dilation[1] == 1
}

/// Returns the taps of a forward pass.
pub fn forward_taps(shape: &Shape) -> Vec<Tap> {
    let [height, width] = shape.kernel;
    let mut taps = Vec::with_capacity(height * width);
    for y in 0..height {
        for x in 0..width {
            taps.push(Tap {
                down: (y * shape.dilation[0]) as isize - shape.padding[0][0] as isize,
                right: (x * shape.dilation[1]) as isize - shape.padding[1][0] as isize,
                index: y * width + x,
            });
        }
    }
    taps
}

/// Returns, for each remainder of input positions modulo the stride, the pixels and the taps that reach them from the output.
pub fn backward_lattices(shape: &Shape) -> Vec<(Lattice, Vec<Tap>)> {
    // Along an axis, for each remainder: (index of the weight, offset in the output).
    let along = |axis: usize, remainder: usize| -> Vec<(usize, isize)> {
        let stride = shape.stride[axis] as isize;
        let reach = |tap: usize| {
            let at = (remainder + shape.padding[axis][0]) as isize - (tap * shape.dilation[axis]) as isize;
            (at.rem_euclid(stride) == 0).then_some((tap, at.div_euclid(stride)))
        };
        (0..shape.kernel[axis]).filter_map(reach).collect()
    };
    let mut lattices = Vec::new();
    for y in 0..shape.stride[0].min(shape.input[0]) {
        for x in 0..shape.stride[1].min(shape.input[1]) {
            let (down, right) = (along(0, y), along(1, x));
            let tap = |&(i, down): &(usize, isize), &(j, right): &(usize, isize)| Tap {
                down,
                right,
                index: i * shape.kernel[1] + j,
            };
            let taps = down.iter().flat_map(|i| right.iter().map(move |j| tap(i, j))).collect();
            let count =
                [(shape.input[0] - y).div_ceil(shape.stride[0]), (shape.input[1] - x).div_ceil(shape.stride[1])];
            lattices.push((Lattice { size: shape.input, first: [y, x], step: shape.stride, count }, taps));
        }
    }
    lattices
}

/// A plain GEMM without an epilogue, `out[row] = x[row] · weights`, for Winograd. Rows of `x` are `pitch` floats apart; rows
/// of `out` are as wide as all panels.
pub struct Rows<'a> {
    /// Left operand.
    pub x: &'a [f32],
    /// The distance between its rows in floats.
    pub pitch: usize,
    /// Rows to be computed.
    pub rows: std::ops::Range<usize>,
    /// The packed panels, `[panel][k][width]`.
    pub panels: &'a [f32],
    /// The depth of the GEMM.
    pub k: usize,
    /// Panels to be computed.
    pub which: std::ops::Range<usize>,
    /// The distance between rows of the result in floats.
    pub out_pitch: usize,
}

impl Rows<'_> {
    /// Computes into `out`.
    ///
    /// # Safety
    /// No other task may write these rows of these panels.
    #[inline(always)]
    pub unsafe fn run<S: Simd>(&self, simd: S, out: DisjointSlice<'_, f32>) {
        let most = tile::even_rows(self.rows.len(), rows::<S>());
        for panel in self.which.clone() {
            let mut start = self.rows.start;
            while start < self.rows.end {
                let count = most.min(self.rows.end - start);
                with_tile!(count, WIDTH, plain_block::<S>(simd, self, out, start, panel));
                start += count;
            }
        }
    }
}

#[inline(always)]
fn plain_block<S: Simd, const M: usize, const N: usize>(
    simd: S,
    task: &Rows<'_>,
    out: DisjointSlice<'_, f32>,
    start: usize,
    panel: usize,
) {
    let width = WIDTH * S::F32_LANES;
    let mut left = [task.x.as_ptr(); M];
    for (m, left) in left.iter_mut().enumerate() {
        check!((start + m) * task.pitch + task.k <= task.x.len());
        *left = left.wrapping_add((start + m) * task.pitch);
    }
    check!((panel + 1) * task.k * width <= task.panels.len());
    let mut tile: Tile<S, M, N> = [[simd.splat_f32s(0.0); N]; M];
    // SAFETY: rows of `k` floats, a panel of `k` rows; no other task accesses these rows of `out`, which `run` requires.
    unsafe {
        let weights = task.panels.as_ptr().add(panel * task.k * width);
        let ahead = match start == task.rows.start {
            true => (weights.wrapping_add(AHEAD * width), width),
            false => (left[M - 1].wrapping_add(task.pitch), 16),
        };
        accumulate(simd, &mut tile, &left, weights, width, task.k, ahead);
        for (m, sums) in tile.iter().enumerate() {
            for n in 0..N {
                store::<S>(
                    out.at((start + m) * task.out_pitch + panel * width + n * S::F32_LANES, S::F32_LANES),
                    sums[n],
                );
            }
        }
    }
}
