//! The forward pass, and with a rotated kernel the data gradient.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::{
    TOGETHER, Weights, pixels, plane, position,
    transforms::{IN, OUT, POSITIONS, transform_output},
    write_input,
};
use crate::cpu::{
    buffer_pool::{Buffer, elements},
    conv::{Epilogue, Rows, finish, panel_width},
    disjoint::{DisjointSlice, part},
    thread_pool::{tasks, threads},
    tile::{WIDTH, load},
};

/// A 3×3 convolution with stride 1: `[n, h, w, k]` → `[n, h', w', channels]`.
pub struct Convolution<'a> {
    /// Images.
    pub n: usize,
    /// `[n, h, w, k]`.
    pub x: &'a [f32],
    /// `[h, w]`.
    pub input: [usize; 2],
    /// `[h', w']`.
    pub output: [usize; 2],
    /// Zeros before the first row and column; those after follow from the sizes.
    pub padding: [isize; 2],
    /// Transformed.
    pub weights: &'a Weights,
    /// The end of it.
    pub epilogue: Epilogue<'a>,
    /// Floats from pixel to pixel of the output.
    pub out_pitch: usize,
    /// The first channel of the output.
    pub out_offset: usize,
}

/// Transformed tiles of a task that does all steps itself: bytes that stay in a core's L2 cache.
const OWN: usize = 640 << 10;
/// Transformed weights (bytes) up to which tasks do all steps themselves; larger ones should be read as seldom as can be.
const SMALL_WEIGHTS: usize = 3 << 20;
impl Convolution<'_> {
    /// Tiles of all images.
    fn tiles(&self) -> usize {
        self.n * self.output[0].div_ceil(OUT) * self.output[1].div_ceil(OUT)
    }

    /// Floats in a row of transformed input and of transformed output.
    fn pitches(&self) -> [usize; 2] {
        let width = panel_width();
        [self.weights.k.next_multiple_of(width / WIDTH), self.weights.channels.next_multiple_of(width)]
    }

    /// Computes into `out`.
    ///
    /// # Panics
    ///
    /// If a slice does not have the length that the sizes tell.
    pub fn run(&self, out: &mut [f32]) {
        let ([h, w], [height, width], channels) = (self.input, self.output, self.weights.channels);
        assert!(self.x.len() == elements([self.n, h, w, self.weights.k]), "{} values of {h} × {w}", self.x.len());
        assert!(
            out.len() == elements([self.n, height, width, self.out_pitch]),
            "{} values for an output of {height} × {width}",
            out.len()
        );
        let end = self.out_offset.checked_add(channels).expect("the channels are addressable");
        assert!(end <= self.out_pitch, "{channels} channels from {} on of {}", self.out_offset, self.out_pitch);
        self.epilogue.check(end, out.len());
        let tiles = self.tiles();
        if tiles == 0 {
            return;
        }
        let [k_pitch, out_pitch] = self.pitches();
        let tile_bytes = POSITIONS * (k_pitch + out_pitch) * size_of::<f32>();
        let zeros = vec![0.0; self.weights.k];
        let out = DisjointSlice::new(out);
        let small = self.weights.data.len() * size_of::<f32>() <= SMALL_WEIGHTS;
        let own = (OWN / tile_bytes) / 7 * 7;
        if small && own >= 7 && tiles >= 7 * threads() {
            let own = own.min(28).min(tiles.div_ceil(threads()));
            let chunks = tiles.div_ceil(own);
            tasks(chunks, |chunk| {
                let range = part(tiles, chunks, chunk, 1);
                let mut work = Work::new(self, range.clone());
                let [v, m] = work.shared();
                let step = |what, range| Step { job: self, tiles: range, what, zeros: &zeros, v, m, out };
                let arch = Arch::new();
                arch.dispatch(step(What::Input(range.clone()), range.clone()));
                arch.dispatch(step(What::Products(0..POSITIONS, 0..out_pitch / panel_width()), range.clone()));
                arch.dispatch(step(What::Output(range.clone()), range));
            });
            return;
        }
        let together = (TOGETHER / tile_bytes).max(14).min(tiles);
        let chunks = tiles.div_ceil(together);
        for chunk in 0..chunks {
            let range = part(tiles, chunks, chunk, 1);
            let mut work = Work::new(self, range.clone());
            let [v, m] = work.shared();
            let step = |what| Step { job: self, tiles: range.clone(), what, zeros: &zeros, v, m, out };
            let arch = Arch::new();
            let parts = (4 * threads()).min(range.len());
            let some = |i| {
                let part = part(range.len(), parts, i, 1);
                range.start + part.start..range.start + part.end
            };
            tasks(parts, |i| arch.dispatch(step(What::Input(some(i)))));
            // Two halves of the panels, so that threads end together.
            let panels = out_pitch / panel_width();
            let halves = panels.min(2);
            tasks(POSITIONS * halves, |i| {
                let panels = part(panels, halves, i % halves, 1);
                arch.dispatch(step(What::Products(i / halves..i / halves + 1, panels)));
            });
            tasks(parts, |i| arch.dispatch(step(What::Output(some(i)))));
        }
    }
}

/// Transformed inputs `[position][tile][k_pitch]` and outputs `[position][tile][out_pitch]` of some tiles.
struct Work {
    v: Buffer,
    m: Buffer,
}

impl Work {
    fn new(job: &Convolution<'_>, tiles: Range<usize>) -> Self {
        let [v, m] = job.pitches().map(|pitch| Buffer::new(POSITIONS * plane(tiles.len(), pitch)));
        Self { v, m }
    }

    fn shared(&mut self) -> [DisjointSlice<'_, f32>; 2] {
        [DisjointSlice::new(&mut self.v), DisjointSlice::new(&mut self.m)]
    }
}

enum What {
    Input(Range<usize>),
    Products(Range<usize>, Range<usize>),
    Output(Range<usize>),
}

struct Step<'a> {
    job: &'a Convolution<'a>,
    /// The tiles of the work.
    tiles: Range<usize>,
    what: What,
    zeros: &'a [f32],
    v: DisjointSlice<'a, f32>,
    m: DisjointSlice<'a, f32>,
    out: DisjointSlice<'a, f32>,
}

impl Step<'_> {
    #[inline(always)]
    fn input<S: Simd>(&self, simd: S, tile: usize) {
        let job = self.job;
        let k = job.weights.k;
        let read = pixels::<IN, POSITIONS>(job.x, job.input, k, position(job.output, tile), job.padding, self.zeros);
        let [pitch, _] = job.pitches();
        let plane = plane(self.tiles.len(), pitch);
        // SAFETY: each task accesses its own tiles only.
        unsafe { write_input(simd, &read, k, self.v.from((tile - self.tiles.start) * pitch), plane) };
    }

    #[inline(always)]
    fn output<S: Simd>(&self, simd: S, tile: usize) {
        let job = self.job;
        let channels = job.weights.channels;
        let [height, width] = job.output;
        let [n, y, x] = position(job.output, tile);
        let [_, pitch] = job.pitches();
        let plane = plane(self.tiles.len(), pitch);
        let read = (tile - self.tiles.start) * pitch;
        let zero = simd.splat_f32s(0.0);
        for channel in (0..channels).step_by(S::F32_LANES) {
            let count = S::F32_LANES.min(channels - channel);
            let mut half = [[zero; OUT]; IN];
            for row in 0..IN {
                let mut m = [zero; IN];
                for column in 0..IN {
                    // SAFETY: the products of this tile are done, and its rows are as wide as the panels.
                    m[column] =
                        unsafe { load::<S>(self.m.at((row * IN + column) * plane + read + channel, S::F32_LANES)) };
                }
                half[row] = transform_output(simd, m);
            }
            let [scale, bias] = job.epilogue.affine(simd, job.out_offset + channel, count);
            for column in 0..OUT {
                if x + column >= width {
                    break;
                }
                let mut m = [zero; IN];
                for row in 0..IN {
                    m[row] = half[row][column];
                }
                let values = transform_output(simd, m);
                for row in 0..OUT {
                    if y + row >= height {
                        break;
                    }
                    let pixel = (n * height + y + row) * width + x + column;
                    let at = pixel * job.out_pitch + job.out_offset + channel;
                    let value = simd.mul_add_e_f32s(values[row], scale, bias);
                    // SAFETY: the residual is laid out as the output, and each task has its own tiles.
                    unsafe { finish(simd, &job.epilogue, self.out, at, count, value) };
                }
            }
        }
    }

    #[inline(always)]
    fn products<S: Simd>(&self, simd: S, position: usize, panels: Range<usize>) {
        let job = self.job;
        let [k_pitch, out_pitch] = job.pitches();
        let tiles = self.tiles.len();
        let weights = job.weights.k * out_pitch;
        let v = plane(tiles, k_pitch);
        let m = plane(tiles, out_pitch);
        // SAFETY: the inputs of this position are done, and no one else writes the outputs of these panels.
        unsafe {
            Rows {
                x: self.v.range(position * v..(position + 1) * v),
                pitch: k_pitch,
                rows: 0..tiles,
                panels: &job.weights.data[position * weights..(position + 1) * weights],
                k: job.weights.k,
                which: panels,
                out_pitch,
            }
            .run(simd, self.m.from(position * m))
        }
    }
}

impl WithSimd for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match &self.what {
            What::Input(tiles) => {
                for tile in tiles.clone() {
                    self.input(simd, tile);
                }
            }
            What::Products(positions, panels) => {
                for position in positions.clone() {
                    self.products(simd, position, panels.clone());
                }
            }
            What::Output(tiles) => {
                for tile in tiles.clone() {
                    self.output(simd, tile);
                }
            }
        }
    }
}
