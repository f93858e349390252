//! 3×3 convolutions by Winograd's F(4×4, 3×3): 36 products for 16 outputs where the plain sum has 144.
//!
//! Paper: [Fast Algorithms for Convolutional Neural Networks](https://arxiv.org/abs/1509.09308) (Lavin & Gray, 2015),
//! whose matrices these are. The result differs from the plain sum by rounding, relative to the largest output some ten
//! times as much; a test has the bound.

use pulp::{Arch, Simd, WithSimd};

use super::{
    conv::{Epilogue, Packed, Rows, Shape, finish, panel_width},
    memory::{Buffer, elements},
    parallel::{Shared, part, tasks, threads},
    tile::{Tile, WIDTH, accumulate_outer, even_rows, load, load_at, load_part, rows, store, with_tile},
};

/// Side of an output tile.
const OUT: usize = 4;
/// Side of an input tile.
const IN: usize = 6;
/// Places of a transformed tile.
const PLACES: usize = IN * IN;

/// Whether Winograd is the faster way: the kernel fits, and what the transformed weights weigh is paid back. Where
/// weights are kept, in evaluation, an image's result must not depend on those beside it, and nor does the choice.
pub fn wins(shape: &Shape, weights_are_kept: bool) -> bool {
    match weights_are_kept {
        // As for few images: over a map of 7 × 7 pixels one alone would wait for the weights, four times the bytes.
        true => pays(&Shape { n: 2, ..*shape }, 15.0),
        false => pays(shape, 60.0),
    }
}

/// The same for the weight gradient, whose transformed sums are written, read and transformed back.
pub fn wins_gradient(shape: &Shape) -> bool {
    pays(shape, 80.0)
}

/// Whether the products saved outweigh the transforms, those of the weights at so many multiply-adds a float.
fn pays(shape: &Shape, a_weight: f64) -> bool {
    let fits = shape.kernel == [3, 3]
        && shape.stride == [1, 1]
        && shape.dilation == [1, 1]
        && shape.groups == 1
        && shape.channels_in >= 16
        && shape.channels_out >= 16;
    let Some([height, width]) = shape.output().filter(|_| fits) else { return false };
    let tiles = shape.n * height.div_ceil(OUT) * width.div_ceil(OUT);
    let (c_in, c_out) = (shape.channels_in as f64, shape.channels_out as f64);
    // In multiply-adds, or in what else takes as long: a vector of floats through the memory, say.
    let products = (PLACES * tiles) as f64 * c_in * c_out;
    let transforms = tiles as f64 * (c_in + c_out) * 700.0;
    let weights = PLACES as f64 * c_in * c_out * a_weight;
    products + transforms + weights < 0.95 * shape.cost() as f64
}

/// Transformed weights: `[place][panel][k][width]`.
pub struct Weights {
    data: Buffer,
    k: usize,
    channels: usize,
}

impl Weights {
    /// Transforms packed weights of 3 × 3 taps.
    pub fn new(packed: &Packed) -> Self {
        let [taps, k, channels] = packed.dims();
        assert_eq!(taps, 9, "Winograd's transform is for 3 × 3 weights");
        let width = panel_width();
        let panels = channels.div_ceil(width);
        let mut data = Buffer::new(elements([PLACES, panels, k, width]));
        let out = Shared::new(&mut data);
        let parts = k.div_ceil(16);
        let arch = Arch::new();
        tasks(panels * parts, |task| {
            let range = part(k, parts, task % parts, 1);
            arch.dispatch(TransformWeights { packed: packed.data(), k, panels, panel: task / parts, range, out });
        });
        Self { data, k, channels }
    }
}

struct TransformWeights<'a> {
    packed: &'a [f32],
    k: usize,
    panels: usize,
    panel: usize,
    range: std::ops::Range<usize>,
    out: Shared<'a, f32>,
}

impl WithSimd for TransformWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = S::F32_LANES;
        let width = WIDTH * lanes;
        let Self { packed, k, panels, panel, range, out } = self;
        assert!(packed.len() >= (panel + 1) * 9 * k * width);
        for k_index in range {
            for n in 0..WIDTH {
                let mut half = [[simd.splat_f32s(0.0); 3]; IN]; // G g
                for x in 0..3 {
                    let mut column = [simd.splat_f32s(0.0); 3];
                    for y in 0..3 {
                        let at = ((panel * 9 + y * 3 + x) * k + k_index) * width + n * lanes;
                        // SAFETY: inside the panel, as was checked.
                        column[y] = unsafe { load_at(simd, packed, at, lanes) };
                    }
                    let column = transform_kernel(simd, column);
                    for y in 0..IN {
                        half[y][x] = column[y];
                    }
                }
                for y in 0..IN {
                    let row = transform_kernel(simd, half[y]);
                    for x in 0..IN {
                        let at = (((y * IN + x) * panels + panel) * k + k_index) * width + n * lanes;
                        // SAFETY: each task has its own panel and `k`.
                        unsafe { store::<S>(out.at(at, lanes), row[x]) };
                    }
                }
            }
        }
    }
}

/// `factor · a + b`.
#[inline(always)]
fn fma<S: Simd>(simd: S, factor: f32, a: S::f32s, b: S::f32s) -> S::f32s {
    simd.mul_add_e_f32s(simd.splat_f32s(factor), a, b)
}

/// G · g.
#[inline(always)]
fn transform_kernel<S: Simd>(simd: S, g: [S::f32s; 3]) -> [S::f32s; IN] {
    let sixth = simd.splat_f32s(1.0 / 6.0);
    let even = simd.mul_f32s(simd.splat_f32s(-1.0 / 6.0), simd.add_f32s(g[0], g[2]));
    let odd = simd.mul_f32s(sixth, g[1]);
    let outer = fma(simd, 1.0 / 24.0, g[0], simd.mul_f32s(sixth, g[2]));
    let middle = simd.mul_f32s(simd.splat_f32s(1.0 / 12.0), g[1]);
    [
        simd.mul_f32s(simd.splat_f32s(0.25), g[0]),
        simd.sub_f32s(even, odd),
        simd.add_f32s(even, odd),
        simd.add_f32s(outer, middle),
        simd.sub_f32s(outer, middle),
        g[2],
    ]
}

/// Bᵀ · d.
#[inline(always)]
fn transform_input<S: Simd>(simd: S, d: [S::f32s; IN]) -> [S::f32s; IN] {
    let (a, b) = (fma(simd, -4.0, d[2], d[4]), fma(simd, -4.0, d[1], d[3]));
    let (c, e) = (simd.sub_f32s(d[4], d[2]), simd.sub_f32s(d[3], d[1]));
    [
        fma(simd, 4.0, d[0], fma(simd, -5.0, d[2], d[4])),
        simd.add_f32s(a, b),
        simd.sub_f32s(a, b),
        fma(simd, 2.0, e, c),
        fma(simd, -2.0, e, c),
        fma(simd, 4.0, d[1], fma(simd, -5.0, d[3], d[5])),
    ]
}

/// Aᵀ · m.
#[inline(always)]
fn transform_output<S: Simd>(simd: S, m: [S::f32s; IN]) -> [S::f32s; OUT] {
    let (even, odd) = (simd.add_f32s(m[1], m[2]), simd.sub_f32s(m[1], m[2]));
    let (even2, odd2) = (simd.add_f32s(m[3], m[4]), simd.sub_f32s(m[3], m[4]));
    [
        simd.add_f32s(simd.add_f32s(m[0], even), even2),
        fma(simd, 2.0, odd2, odd),
        fma(simd, 4.0, even2, even),
        simd.add_f32s(fma(simd, 8.0, odd2, odd), m[5]),
    ]
}

/// A · y, the transpose of [`transform_output`].
#[inline(always)]
fn spread_output<S: Simd>(simd: S, y: [S::f32s; OUT]) -> [S::f32s; IN] {
    let (even, odd) = (simd.add_f32s(y[0], y[2]), simd.add_f32s(y[1], y[3]));
    let (even2, odd2) = (fma(simd, 4.0, y[2], y[0]), fma(simd, 8.0, y[3], simd.add_f32s(y[1], y[1])));
    [
        y[0],
        simd.add_f32s(even, odd),
        simd.sub_f32s(even, odd),
        simd.add_f32s(even2, odd2),
        simd.sub_f32s(even2, odd2),
        y[3],
    ]
}

/// Gᵀ · m, the transpose of [`transform_kernel`].
#[inline(always)]
fn gather_kernel<S: Simd>(simd: S, m: [S::f32s; IN]) -> [S::f32s; 3] {
    let [sixth, twelfth] = [simd.splat_f32s(1.0 / 6.0), simd.splat_f32s(1.0 / 12.0)];
    let (even, odd) = (simd.add_f32s(m[1], m[2]), simd.sub_f32s(m[2], m[1]));
    let (even2, odd2) = (simd.add_f32s(m[3], m[4]), simd.sub_f32s(m[3], m[4]));
    let outer = simd.mul_f32s(simd.splat_f32s(-1.0 / 6.0), even);
    [
        fma(simd, 0.25, m[0], fma(simd, 1.0 / 24.0, even2, outer)),
        simd.mul_add_e_f32s(sixth, odd, simd.mul_f32s(twelfth, odd2)),
        simd.add_f32s(simd.mul_add_e_f32s(sixth, even2, outer), m[5]),
    ]
}

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

/// Transformed tiles of a task that does all steps itself: bytes that stay in a core's second cache.
const OWN: usize = 640 << 10;
/// Transformed weights (bytes) up to which tasks do all steps themselves; larger ones should be read as seldom as can be.
const SMALL_WEIGHTS: usize = 3 << 20;
/// Transformed tiles (bytes) of steps done by all threads together: they should stay in the cache that cores share.
const TOGETHER: usize = 10 << 20;

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
        let tile_bytes = PLACES * (k_pitch + out_pitch) * size_of::<f32>();
        let zeros = vec![0.0; self.weights.k];
        let out = Shared::new(out);
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
                arch.dispatch(step(What::Products(0..PLACES, 0..out_pitch / panel_width()), range.clone()));
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
            tasks(PLACES * halves, |i| {
                let panels = part(panels, halves, i % halves, 1);
                arch.dispatch(step(What::Products(i / halves..i / halves + 1, panels)));
            });
            tasks(parts, |i| arch.dispatch(step(What::Output(some(i)))));
        }
    }
}

/// Transformed inputs `[place][tile][k_pitch]` and outputs `[place][tile][out_pitch]` of some tiles.
struct Work {
    v: Buffer,
    m: Buffer,
}

impl Work {
    fn new(job: &Convolution<'_>, tiles: std::ops::Range<usize>) -> Self {
        let [v, m] = job.pitches().map(|pitch| Buffer::new(PLACES * plane(tiles.len(), pitch)));
        Self { v, m }
    }

    fn shared(&mut self) -> [Shared<'_, f32>; 2] {
        [Shared::new(&mut self.v), Shared::new(&mut self.m)]
    }
}

/// Floats from place to place: an odd number of cache lines, or the 36 of a tile would fall on one set of the cache.
fn plane(tiles: usize, pitch: usize) -> usize {
    let lines = (tiles * pitch).div_ceil(16);
    (lines | 1) * 16
}

/// The image, the first row and the first column of a tile's output.
#[inline(always)]
fn place(output: [usize; 2], tile: usize) -> [usize; 3] {
    let [rows, columns] = [output[0].div_ceil(OUT), output[1].div_ceil(OUT)];
    [tile / (rows * columns), tile / columns % rows * OUT, tile % columns * OUT]
}

/// Where the `SIDE × SIDE` pixels of a tile lie, or zeros where it hangs over.
#[inline(always)]
fn pixels<const SIDE: usize, const ALL: usize>(
    map: &[f32],
    [height, width]: [usize; 2],
    channels: usize,
    [n, y, x]: [usize; 3],
    before: [isize; 2],
    zeros: &[f32],
) -> [*const f32; ALL] {
    let mut read = [zeros.as_ptr(); ALL];
    for i in 0..ALL {
        let down = (y + i / SIDE) as isize - before[0];
        let right = (x + i % SIDE) as isize - before[1];
        if (down as usize) < height && (right as usize) < width {
            let at = ((n * height + down as usize) * width + right as usize) * channels;
            check!(at + channels <= map.len());
            read[i] = map.as_ptr().wrapping_add(at);
        }
    }
    read
}

/// Transforms the `k` channels of a tile of input, its places `plane` floats apart in `out`.
///
/// # Safety
/// Each of `read` must be good for reading `k` floats, and the tile in `out` be this task's alone.
#[inline(always)]
unsafe fn write_input<S: Simd>(simd: S, read: &[*const f32; PLACES], k: usize, out: Shared<'_, f32>, plane: usize) {
    let mut channel = 0;
    while channel < k {
        let count = S::F32_LANES.min(k - channel);
        let mut half = [[simd.splat_f32s(0.0); IN]; IN];
        for row in 0..IN {
            let mut d = [simd.splat_f32s(0.0); IN];
            for column in 0..IN {
                // SAFETY: each of the pixels has `k` readable floats.
                d[column] = unsafe { load_part(simd, read[row * IN + column].wrapping_add(channel), count) };
            }
            half[row] = transform_input(simd, d);
        }
        for column in 0..IN {
            let mut d = [simd.splat_f32s(0.0); IN];
            for row in 0..IN {
                d[row] = half[row][column];
            }
            let v = transform_input(simd, d);
            for row in 0..IN {
                // SAFETY: the tile has a vector at each of the positions, and is this task's alone.
                unsafe { store::<S>(out.at((row * IN + column) * plane + channel, S::F32_LANES), v[row]) };
            }
        }
        channel += S::F32_LANES;
    }
}

enum What {
    Input(std::ops::Range<usize>),
    Products(std::ops::Range<usize>, std::ops::Range<usize>),
    Output(std::ops::Range<usize>),
}

struct Step<'a> {
    job: &'a Convolution<'a>,
    /// The tiles of the work.
    tiles: std::ops::Range<usize>,
    what: What,
    zeros: &'a [f32],
    v: Shared<'a, f32>,
    m: Shared<'a, f32>,
    out: Shared<'a, f32>,
}

impl Step<'_> {
    #[inline(always)]
    fn input<S: Simd>(&self, simd: S, tile: usize) {
        let job = self.job;
        let k = job.weights.k;
        let read = pixels::<IN, PLACES>(job.x, job.input, k, place(job.output, tile), job.padding, self.zeros);
        let [pitch, _] = job.pitches();
        let plane = plane(self.tiles.len(), pitch);
        // SAFETY: each task has its own tiles.
        unsafe { write_input(simd, &read, k, self.v.from((tile - self.tiles.start) * pitch), plane) };
    }

    #[inline(always)]
    fn output<S: Simd>(&self, simd: S, tile: usize) {
        let job = self.job;
        let channels = job.weights.channels;
        let [height, width] = job.output;
        let [n, y, x] = place(job.output, tile);
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
    fn products<S: Simd>(&self, simd: S, place: usize, panels: std::ops::Range<usize>) {
        let job = self.job;
        let [k_pitch, out_pitch] = job.pitches();
        let tiles = self.tiles.len();
        let weights = job.weights.k * out_pitch;
        let v = plane(tiles, k_pitch);
        let m = plane(tiles, out_pitch);
        // SAFETY: the inputs of this place are done, and no one else writes the outputs of these panels.
        unsafe {
            Rows {
                x: self.v.range(place * v..(place + 1) * v),
                pitch: k_pitch,
                rows: 0..tiles,
                panels: &job.weights.data[place * weights..(place + 1) * weights],
                k: job.weights.k,
                which: panels,
                out_pitch,
            }
            .run(simd, self.m.from(place * m))
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
            What::Products(places, panels) => {
                for place in places.clone() {
                    self.products(simd, place, panels.clone());
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
        let tile_bytes = PLACES * (pitches[0] + pitches[1]) * size_of::<f32>();
        let chunks = tiles.div_ceil((TOGETHER / tile_bytes).max(16));
        let longest = tiles.div_ceil(chunks);
        let [mut v, mut d] = pitches.map(|pitch| Buffer::new(PLACES * plane(longest, pitch)));
        let mut sums = Buffer::zeros(PLACES * panels * self.k * width); // [place][panel][k][width]
        let zeros = vec![0.0; self.k.max(self.channels)];
        let [v, d, shared] = [Shared::new(&mut v), Shared::new(&mut d), Shared::new(&mut sums)];
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
            tasks(PLACES * halves, |index| {
                let panels = part(panels, halves, index % halves, 1);
                arch.dispatch(step(GradientWhat::Products(index / halves, panels, range.len())));
            });
        }
        let out = Shared::new(out);
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
    Input(std::ops::Range<usize>),
    /// Transform tiles of the output's gradient.
    Output(std::ops::Range<usize>),
    /// A place, panels, and the number of tiles.
    Products(usize, std::ops::Range<usize>, usize),
}

struct GradientStep<'a> {
    job: &'a WeightGradient<'a>,
    /// The first tile of the work.
    start: usize,
    what: GradientWhat,
    zeros: &'a [f32],
    /// `[place][tile][k]`.
    v: Shared<'a, f32>,
    /// `[place][panel][tile][width]`.
    d: Shared<'a, f32>,
    /// `[place][panel][k][width]`.
    sums: Shared<'a, f32>,
    /// Tiles that the work has room for.
    longest: usize,
}

impl GradientStep<'_> {
    #[inline(always)]
    fn input<S: Simd>(&self, simd: S, tile: usize) {
        let job = self.job;
        let place = place(job.output, self.start + tile);
        let read = pixels::<IN, PLACES>(job.x, job.input, job.k, place, job.padding, self.zeros);
        let pitch = job.k.next_multiple_of(S::F32_LANES);
        let plane = plane(self.longest, pitch);
        // SAFETY: each task has its own tiles.
        unsafe { write_input(simd, &read, job.k, self.v.from(tile * pitch), plane) };
    }

    #[inline(always)]
    fn output<S: Simd>(&self, simd: S, tile: usize) {
        let job = self.job;
        let place = place(job.output, self.start + tile);
        let read = pixels::<OUT, { OUT * OUT }>(job.dy, job.output, job.channels, place, [0, 0], self.zeros);
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
                    // SAFETY: each task has its own tiles.
                    unsafe { store::<S>(self.d.at((row * IN + column) * plane + at, S::F32_LANES), d[row]) };
                }
            }
            channel += S::F32_LANES;
        }
    }

    #[inline(always)]
    fn products<S: Simd>(&self, simd: S, place: usize, panels: std::ops::Range<usize>, tiles: usize) {
        let job = self.job;
        let width = WIDTH * S::F32_LANES;
        let all = job.channels.div_ceil(width);
        let k_pitch = job.k.next_multiple_of(S::F32_LANES);
        let v = place * plane(self.longest, k_pitch);
        let d = place * plane(self.longest, all * width);
        let most = even_rows(job.k, rows::<S>());
        let mut read = Vec::with_capacity(TILES);
        let mut first = 0;
        // So many tiles that a panel of gradients stays in the first cache.
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
                    let at = ((place * all + panel) * job.k + k) * width;
                    // SAFETY: no other task has this place and panel.
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
            GradientWhat::Products(place, panels, tiles) => self.products(simd, *place, panels.clone(), *tiles),
        }
    }
}

struct Gather<'a> {
    job: &'a WeightGradient<'a>,
    sums: &'a [f32],
    panel: usize,
    k: std::ops::Range<usize>,
    out: Shared<'a, f32>,
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
                        let place = row * IN + column;
                        let at = ((place * panels + panel) * job.k + k.start + index) * width + n * lanes;
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
            // SAFETY: each task has its own weights.
            let out = unsafe { out.range(base..base + k.len() * 9) };
            for (index, out) in out.iter_mut().enumerate() {
                *out = taps[index * width + lane];
            }
        }
    }
}
