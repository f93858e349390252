//! The weight gradient, by the transposed transforms: `dG = Gᵀ · [(A · dY · Aᵀ) ⊙ (Bᵀ · d · B)] · G`.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::{
    TOGETHER, pixels, plane, position,
    transforms::{IN, OUT, POSITIONS, gather_kernel, spread_output},
    write_input,
};
use crate::cpu::{
    buffer_pool::{Buffer, elements},
    conv::panel_width,
    disjoint::{DisjointSlice, part},
    thread_pool::{tasks, threads},
    tile::{Tile, WIDTH, accumulate_outer, even_rows, load, load_at, load_part, rows, store, with_tile},
};

/// The weight gradient of a 3×3 convolution with stride 1, by the transposes of the same transforms.
pub struct WeightGradient<'a> {
    /// Images.
    pub n: usize,
    /// `[n, h, w, k]`.
    pub x: &'a [f32],
    /// Channels of it.
    pub k: usize,
    /// `[h, w]`.
    pub input: [usize; 2],
    /// `[n, h', w', channels]`.
    pub dy: &'a [f32],
    /// Channels of it.
    pub channels: usize,
    /// `[h', w']`.
    pub output: [usize; 2],
    /// Zeros before the first row and column.
    pub padding: [isize; 2],
}

impl WeightGradient<'_> {
    /// Computes `[channels, k, 3, 3]`. What is summed in which order depends on the shapes alone.
    ///
    /// # Panics
    ///
    /// If a slice does not have the length that the sizes tell.
    pub fn run(&self, out: &mut [f32]) {
        let ([h, w], [height, width]) = (self.input, self.output);
        assert!(self.x.len() == elements([self.n, h, w, self.k]), "{} values of {h} × {w}", self.x.len());
        assert!(self.dy.len() == elements([self.n, height, width, self.channels]), "a gradient of another size");
        assert!(out.len() == elements([self.channels, self.k, 9]), "{} weights", out.len());
        if self.dy.is_empty() || self.x.is_empty() {
            return out.fill(0.0);
        }
        let width = panel_width();
        let [rows, columns] = self.output.map(|size| size.div_ceil(OUT));
        let tiles = self.n * rows * columns;
        let panels = self.channels.div_ceil(width);
        let pitches = [self.k.next_multiple_of(width / WIDTH), panels * width];
        let tile_bytes = POSITIONS * (pitches[0] + pitches[1]) * size_of::<f32>();
        let chunks = tiles.div_ceil((TOGETHER / tile_bytes).max(16));
        let longest = tiles.div_ceil(chunks);
        let [mut v, mut d] = pitches.map(|pitch| Buffer::new(POSITIONS * plane(longest, pitch)));
        let mut sums = Buffer::zeros(POSITIONS * panels * self.k * width); // [position][panel][k][width]
        let zeros = vec![0.0; self.k.max(self.channels)];
        let [v, d, shared] = [DisjointSlice::new(&mut v), DisjointSlice::new(&mut d), DisjointSlice::new(&mut sums)];
        let arch = Arch::new();
        for chunk in 0..chunks {
            let range = part(tiles, chunks, chunk, 1);
            let step =
                |what| GradientStep { job: self, start: range.start, what, zeros: &zeros, v, d, sums: shared, longest };
            let parts = (4 * threads()).min(range.len());
            tasks(2 * parts, |index| {
                let some = part(range.len(), parts, index / 2, 1);
                arch.dispatch(step(if index % 2 == 0 {
                    GradientWhat::Input(some)
                } else {
                    GradientWhat::Output(some)
                }));
            });
            let halves = panels.min(2);
            tasks(POSITIONS * halves, |index| {
                let panels = part(panels, halves, index % halves, 1);
                arch.dispatch(step(GradientWhat::Products(index / halves, panels, range.len())));
            });
        }
        let out = DisjointSlice::new(out);
        let blocks = self.k.div_ceil(16);
        tasks(panels * blocks, |index| {
            let k = part(self.k, blocks, index / panels, 1);
            arch.dispatch(Gather { job: self, sums: &sums, panel: index % panels, k, out });
        });
    }
}

/// Tiles whose products are summed in registers.
const TILES: usize = 128;

enum GradientWhat {
    /// Transform tiles of the input.
    Input(Range<usize>),
    /// Transform tiles of the output's gradient.
    Output(Range<usize>),
    /// A position, panels, and the number of tiles.
    Products(usize, Range<usize>, usize),
}

struct GradientStep<'a> {
    job: &'a WeightGradient<'a>,
    /// The first tile of the work.
    start: usize,
    what: GradientWhat,
    zeros: &'a [f32],
    /// `[position][tile][k]`.
    v: DisjointSlice<'a, f32>,
    /// `[position][panel][tile][width]`.
    d: DisjointSlice<'a, f32>,
    /// `[position][panel][k][width]`.
    sums: DisjointSlice<'a, f32>,
    /// Tiles that the work has room for.
    longest: usize,
}

impl GradientStep<'_> {
    #[inline(always)]
    fn input<S: Simd>(&self, simd: S, tile: usize) {
        let job = self.job;
        let position = position(job.output, self.start + tile);
        let read = pixels::<IN, POSITIONS>(job.x, job.input, job.k, position, job.padding, self.zeros);
        let pitch = job.k.next_multiple_of(S::F32_LANES);
        let plane = plane(self.longest, pitch);
        // SAFETY: each task accesses its own tiles only.
        unsafe { write_input(simd, &read, job.k, self.v.from(tile * pitch), plane) };
    }

    #[inline(always)]
    fn output<S: Simd>(&self, simd: S, tile: usize) {
        let job = self.job;
        let position = position(job.output, self.start + tile);
        let read = pixels::<OUT, { OUT * OUT }>(job.dy, job.output, job.channels, position, [0, 0], self.zeros);
        let width = WIDTH * S::F32_LANES;
        let pitch = job.channels.next_multiple_of(width);
        let plane = plane(self.longest, pitch);
        let zero = simd.splat_f32s(0.0);
        let mut channel = 0;
        while channel < pitch {
            let count = S::F32_LANES.min(job.channels.saturating_sub(channel));
            let mut half = [[zero; IN]; OUT];
            for row in 0..OUT {
                let mut y = [zero; OUT];
                for column in 0..OUT {
                    let from = read[row * OUT + column].wrapping_add(channel);
                    // SAFETY: the channels of a pixel inside the map, or as many zeros.
                    y[column] = unsafe { load_part(simd, from, count) };
                }
                half[row] = spread_output(simd, y);
            }
            let at = (channel / width * self.longest + tile) * width + channel % width;
            for column in 0..IN {
                let mut y = [zero; OUT];
                for row in 0..OUT {
                    y[row] = half[row][column];
                }
                let d = spread_output(simd, y);
                for row in 0..IN {
                    // SAFETY: each task accesses its own tiles only.
                    unsafe { store::<S>(self.d.at((row * IN + column) * plane + at, S::F32_LANES), d[row]) };
                }
            }
            channel += S::F32_LANES;
        }
    }

    #[inline(always)]
    fn products<S: Simd>(&self, simd: S, position: usize, panels: Range<usize>, tiles: usize) {
        let job = self.job;
        let width = WIDTH * S::F32_LANES;
        let all = job.channels.div_ceil(width);
        let k_pitch = job.k.next_multiple_of(S::F32_LANES);
        let v = position * plane(self.longest, k_pitch);
        let d = position * plane(self.longest, all * width);
        let most = even_rows(job.k, rows::<S>());
        let mut read = Vec::with_capacity(TILES);
        let mut first = 0;
        // The number of tiles for which a panel of gradients stays in the L1 cache.
        while first < tiles {
            let last = tiles.min(first + TILES);
            read.clear();
            for tile in first..last {
                read.push(self.v.at(v + tile * k_pitch, job.k).cast_const());
            }
            for panel in panels.clone() {
                let gradients =
                    self.d.at(d + (panel * self.longest + first) * width, (last - first) * width).cast_const();
                let mut k = 0;
                while k < job.k {
                    let rows = most.min(job.k - k);
                    let at = ((position * all + panel) * job.k + k) * width;
                    // SAFETY: no other task has this position and panel.
                    let sums = unsafe { self.sums.range(at..at + rows * width) };
                    with_tile!(rows, WIDTH, add_products::<S>(simd, &read, k, gradients, sums));
                    k += rows;
                }
            }
            first = last;
        }
    }
}

/// Adds the products of all tiles, of `M` channels of the input from `k` on with a panel of gradients, to `sums`.
#[inline(always)]
fn add_products<S: Simd, const M: usize, const N: usize>(
    simd: S,
    read: &[*const f32],
    k: usize,
    gradients: *const f32,
    sums: &mut [f32],
) {
    let width = WIDTH * S::F32_LANES;
    assert!(sums.len() >= M * width);
    let mut tile: Tile<S, M, N> = [[simd.splat_f32s(0.0); N]; M];
    // SAFETY: `sums` has M rows, as was checked; each row read has M channels from `k` on, and the gradients a panel for
    // each tile.
    unsafe {
        for m in 0..M {
            for n in 0..N {
                tile[m][n] = load::<S>(sums.as_ptr().wrapping_add(m * width + n * S::F32_LANES));
            }
        }
        accumulate_outer(simd, &mut tile, read, k, gradients, width);
        for m in 0..M {
            for n in 0..N {
                store::<S>(sums.as_mut_ptr().wrapping_add(m * width + n * S::F32_LANES), tile[m][n]);
            }
        }
    }
}

impl WithSimd for GradientStep<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match &self.what {
            GradientWhat::Input(tiles) => {
                for tile in tiles.clone() {
                    self.input(simd, tile);
                }
            }
            GradientWhat::Output(tiles) => {
                for tile in tiles.clone() {
                    self.output(simd, tile);
                }
            }
            GradientWhat::Products(position, panels, tiles) => self.products(simd, *position, panels.clone(), *tiles),
        }
    }
}

struct Gather<'a> {
    job: &'a WeightGradient<'a>,
    sums: &'a [f32],
    panel: usize,
    k: Range<usize>,
    out: DisjointSlice<'a, f32>,
}

impl WithSimd for Gather<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { job, sums, panel, k, out } = self;
        let lanes = S::F32_LANES;
        let width = WIDTH * lanes;
        let panels = job.channels.div_ceil(width);
        let zero = simd.splat_f32s(0.0);
        // Gradients of all taps, [k][tap][width], brought into the weights' order channel by channel.
        let mut taps = Buffer::new(k.len() * 9 * width);
        for index in 0..k.len() {
            for n in 0..WIDTH {
                let mut half = [[zero; IN]; 3];
                for column in 0..IN {
                    let mut m = [zero; IN];
                    for row in 0..IN {
                        let position = row * IN + column;
                        let at = ((position * panels + panel) * job.k + k.start + index) * width + n * lanes;
                        // SAFETY: inside the sums.
                        m[row] = unsafe { load_at(simd, sums, at, lanes) };
                    }
                    let m = gather_kernel(simd, m);
                    for row in 0..3 {
                        half[row][column] = m[row];
                    }
                }
                for row in 0..3 {
                    let g = gather_kernel(simd, half[row]);
                    for column in 0..3 {
                        let at = (index * 9 + row * 3 + column) * width + n * lanes;
                        // SAFETY: the slice has as many floats as a vector.
                        unsafe { store::<S>(taps[at..at + lanes].as_mut_ptr(), g[column]) };
                    }
                }
            }
        }
        for lane in 0..width.min(job.channels - panel * width) {
            let base = ((panel * width + lane) * job.k + k.start) * 9;
            // SAFETY: each task accesses its own weights only.
            let out = unsafe { out.range(base..base + k.len() * 9) };
            for (index, out) in out.iter_mut().enumerate() {
                *out = taps[index * width + lane];
            }
        }
    }
}
