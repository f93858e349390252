//! The weight gradient of a convolution: for each tap one GEMM over all pixels, `Σ_p x[p + tap]ᵀ · dy[p]`.

use pulp::{Arch, Simd, WithSimd};

use super::{
    buffer_pool::{Buffer, elements},
    conv::{Map, Tap, WeightOrder, aliases, gathered_pitch, panel_width},
    disjoint::{DisjointSlice, part},
    thread_pool::{tasks, threads},
    tile::{Tile, WIDTH, accumulate_outer, even_rows, load, rows, store, with_tile},
};

/// A weight gradient to be computed.
pub struct WeightGradient<'a> {
    /// Images.
    pub n: usize,
    /// Input of the convolution.
    pub x: Map<'a>,
    /// Channels of it.
    pub k: usize,
    /// Steps in `x` between pixels of the output.
    pub stride: [usize; 2],
    /// The positions of the kernel.
    pub taps: &'a [Tap],
    /// Gradient of the output.
    pub dy: Map<'a>,
    /// Channels of it.
    pub channels: usize,
}

/// Pixels of a packed panel of `dy`, so that it stays in the L1 cache.
const PIXELS: usize = 128;

/// Bytes of the accumulators of a task over all channels of some pixels, so that they stay in the L2 cache.
const OWN: usize = 256 << 10;
/// The minimum number of pixels of a partial sum.
const PART: usize = 1568;

impl WeightGradient<'_> {
    /// Computes into `out`, in the given weight order. The order of summation depends on the shapes alone, not on the
    /// number of threads.
    ///
    /// # Panics
    ///
    /// If the length of a slice, or the weight order, does not match the sizes.
    pub fn run(&self, order: WeightOrder, out: &mut [f32]) {
        self.x.check(self.n, self.k, self.taps, self.stride, self.dy.size);
        let [height, width] = self.dy.size;
        assert!(self.dy.data.len() == elements([self.n, height, width, self.dy.pitch]), "a gradient of another size");
        let end = self.dy.offset.checked_add(self.channels).expect("the channels are addressable");
        assert!(end <= self.dy.pitch, "{} channels from {} on of {}", self.channels, self.dy.offset, self.dy.pitch);
        assert!(
            order.sizes() == [self.k, self.channels] && order.taps == self.taps.len(),
            "{order:?} of other weights"
        );
        assert!(out.len() >= order.end(), "{} weights are too few for {order:?}", out.len());
        let width = panel_width();
        let panels = self.channels.div_ceil(width);
        let taps = self.taps.len();
        let floats = elements([panels, taps, self.k, width]);
        let pixels = self.n * self.dy.size[0] * self.dy.size[1];
        let zeros = vec![0.0; self.k];
        let arch = Arch::new();

        // Few weights and many pixels: a task computes all weights over some of the pixels. Otherwise some of the weights
        // over all pixels, in as few tasks as keep all threads busy, since each task packs its panel.
        let pixel_parts = if floats * size_of::<f32>() <= OWN { (pixels / PART).clamp(1, 16) } else { 1 };
        let k_parts = match panels {
            _ if pixel_parts > 1 => 1,
            panels if panels.is_multiple_of(threads()) || panels >= 4 * threads() => 1,
            panels => (3 * threads()).div_ceil(panels).min(self.k.div_ceil(8)),
        };
        let mut sums = Buffer::zeros(elements([pixel_parts, floats])); // [part][panel][tap][k][width]
        let shared = DisjointSlice::new(&mut sums);
        let task = |pixels, panels, k, sums| arch.dispatch(Task { job: self, zeros: &zeros, sums, pixels, panels, k });
        if pixel_parts > 1 {
            tasks(pixel_parts, |index| {
                task(part(pixels, pixel_parts, index, 1), 0..panels, 0..self.k, shared.from(index * floats));
            });
        } else {
            tasks(panels * k_parts, |index| {
                let panel = index / k_parts;
                let k = part(self.k, k_parts, index % k_parts, 1);
                task(0..pixels, panel..panel + 1, k, shared);
            });
        }

        // Partial sums are added in a fixed order.
        let (first, others) = sums.split_at_mut(floats);
        let first = DisjointSlice::new(first);
        let chunks = if pixel_parts > 1 { floats.div_ceil(4096) } else { 0 };
        tasks(chunks, |index| {
            let range = part(floats, chunks, index, 16);
            // SAFETY: each task writes its own sums only.
            let total = unsafe { first.range(range.clone()) };
            for other in others.chunks_exact(floats) {
                for (total, other) in total.iter_mut().zip(&other[range.clone()]) {
                    *total += other;
                }
            }
        });

        let sums = &sums[..floats];
        let out = DisjointSlice::new(out);
        let together = 16.max(256 / taps);
        tasks(panels * self.k.div_ceil(together), |index| {
            let (panel, block) = (index % panels, index / panels);
            // Channel by channel, whose weights are contiguous.
            for lane in 0..width.min(self.channels - panel * width) {
                for k in block * together..self.k.min((block + 1) * together) {
                    let Some(base) = order.at(k, panel * width + lane) else { continue };
                    for tap in 0..taps {
                        let at = ((panel * taps + tap) * self.k + k) * width + lane;
                        // SAFETY: each task writes its own weights only.
                        unsafe { out.at(base + tap, 1).write(sums[at]) };
                    }
                }
            }
        });
    }
}

struct Task<'a> {
    job: &'a WeightGradient<'a>,
    zeros: &'a [f32],
    /// `[panel][tap][k][width]`.
    sums: DisjointSlice<'a, f32>,
    pixels: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
    k: std::ops::Range<usize>,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let job = self.job;
        let width = WIDTH * S::F32_LANES;
        let taps = job.taps.len();
        let most = even_rows(self.k.len(), rows::<S>());
        // A copy of the rows that 1 × 1 weights read, if their addresses would alias in the L1 cache.
        let gathers = taps == 1 && aliases(job.x.pitch);
        let pitch = gathered_pitch(self.k.len());
        let mut gathered = Buffer::zeros(if gathers { PIXELS * pitch } else { 0 });
        let mut panel = Buffer::zeros(PIXELS * width); // [pixel][width]
        let mut read = vec![self.zeros.as_ptr(); PIXELS];
        let mut start = self.pixels.start;
        while start < self.pixels.end {
            let count = PIXELS.min(self.pixels.end - start);
            for index in self.panels.clone() {
                let first = index * width;
                let channels = width.min(job.channels - first);
                let vectors = channels.div_ceil(S::F32_LANES);
                for p in 0..count {
                    let at = (start + p) * job.dy.pitch + job.dy.offset + first;
                    panel[p * width..p * width + channels].copy_from_slice(&job.dy.data[at..at + channels]);
                    panel[p * width + channels..(p + 1) * width].fill(0.0);
                }
                for tap in 0..taps {
                    let mut skip = self.k.start;
                    look_up(job, job.taps[tap], start, self.zeros, &mut read[..count]);
                    if gathers {
                        for p in 0..count {
                            let row = &mut gathered[p * pitch..p * pitch + self.k.len()];
                            // SAFETY: a pixel has all `k` channels.
                            row.copy_from_slice(unsafe {
                                std::slice::from_raw_parts(read[p].wrapping_add(self.k.start), self.k.len())
                            });
                            read[p] = row.as_ptr();
                        }
                        skip = 0;
                    }
                    let base = (index * taps + tap) * job.k * width;
                    let mut done = 0;
                    while done < self.k.len() {
                        let rows = most.min(self.k.len() - done);
                        let at = base + (self.k.start + done) * width;
                        // SAFETY: each task writes its own sums only.
                        let sums = unsafe { self.sums.range(at..at + rows * width) };
                        let offset = skip + done;
                        with_tile!(rows, vectors, block::<S>(simd, &read[..count], offset, &panel, sums));
                        done += rows;
                    }
                }
            }
            start += count;
        }
    }
}

/// Returns the addresses that `tap` reads for the pixels from `start` on.
#[inline(always)]
fn look_up(job: &WeightGradient<'_>, tap: Tap, start: usize, zeros: &[f32], read: &mut [*const f32]) {
    let [height, columns] = job.dy.size;
    let [x_height, x_width] = job.x.size;
    let (mut n, rest) = (start / (height * columns), start % (height * columns));
    let (mut row, mut column) = (rest / columns, rest % columns);
    for read in read {
        let down = (row * job.stride[0]) as isize + tap.down;
        let right = (column * job.stride[1]) as isize + tap.right;
        *read = zeros.as_ptr();
        if (down as usize) < x_height && (right as usize) < x_width {
            let pixel = (n * x_height + down as usize) * x_width + right as usize;
            check!(pixel * job.x.pitch + job.x.offset + job.k <= job.x.data.len());
            *read = job.x.data.as_ptr().wrapping_add(pixel * job.x.pitch + job.x.offset);
        }
        column += 1;
        if column == columns {
            (column, row) = (0, row + 1);
            if row == height {
                (row, n) = (0, n + 1);
            }
        }
    }
}

#[inline(always)]
fn block<S: Simd, const M: usize, const N: usize>(
    simd: S,
    read: &[*const f32],
    offset: usize,
    panel: &[f32],
    sums: &mut [f32],
) {
    let width = WIDTH * S::F32_LANES;
    assert!(sums.len() >= M * width && panel.len() >= read.len() * width);
    let mut tile: Tile<S, M, N> = [[simd.splat_f32s(0.0); N]; M];
    // SAFETY: `sums` has M rows and `panel` a row for each pixel, as was just checked; each pixel read has `k` channels,
    // of which M are left from `offset` on.
    unsafe {
        for m in 0..M {
            for n in 0..N {
                tile[m][n] = load::<S>(sums.as_ptr().add(m * width + n * S::F32_LANES));
            }
        }
        accumulate_outer(simd, &mut tile, read, offset, panel.as_ptr(), width);
        for m in 0..M {
            for n in 0..N {
                store::<S>(sums.as_mut_ptr().add(m * width + n * S::F32_LANES), tile[m][n]);
            }
        }
    }
}
