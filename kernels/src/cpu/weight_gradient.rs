//! The weight gradient of a convolution: for each tap one product over all pixels, `Σ_p x[p + tap]ᵀ · dy[p]`.

use pulp::{Arch, Simd, WithSimd};

use super::{
    conv::{Map, Tap, WeightOrder, panel_width},
    memory::Buffer,
    parallel::{Shared, part, tasks, threads},
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
    /// Where the kernel looks.
    pub taps: &'a [Tap],
    /// Gradient of the output.
    pub dy: Map<'a>,
    /// Channels of it.
    pub channels: usize,
}

/// Pixels of a packed panel of `dy`: it stays in a core's first cache.
const PIXELS: usize = 128;

impl WeightGradient<'_> {
    /// Computes into `out`, in the given order; see [`WeightOrder`]. Every sum is over the pixels in order, whatever
    /// the number of threads.
    pub fn run(&self, order: WeightOrder, out: &mut [f32]) {
        let width = panel_width();
        let panels = self.channels.div_ceil(width);
        // As few parts as keep all threads busy: each packs the panel anew.
        let parts = match panels {
            panels if panels % threads() == 0 || panels >= 4 * threads() => 1,
            panels => (3 * threads()).div_ceil(panels).min(self.k.div_ceil(8)),
        };
        let zeros = vec![0.0; self.k];
        let out = Shared::new(out);
        let arch = Arch::new();
        tasks(panels * parts, |task| {
            let channels = part(self.k, parts, task % parts, 1);
            if !channels.is_empty() {
                arch.dispatch(Task { job: self, order, zeros: &zeros, out, panel: task / parts, k: channels });
            }
        });
    }
}

struct Task<'a> {
    job: &'a WeightGradient<'a>,
    order: WeightOrder,
    zeros: &'a [f32],
    out: Shared<'a, f32>,
    panel: usize,
    k: std::ops::Range<usize>,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let job = self.job;
        let width = WIDTH * S::F32_LANES;
        let first = self.panel * width;
        let channels = width.min(job.channels - first);
        let vectors = channels.div_ceil(S::F32_LANES);
        let taps = job.taps.len();
        let k = self.k.len();

        let mut sums = Buffer::zeros(taps * k * width); // [tap][k][width]
        let mut panel = Buffer::zeros(PIXELS * width); // [pixel][width]
        let mut read = vec![self.zeros.as_ptr(); PIXELS];
        let pixels = job.n * job.dy.size[0] * job.dy.size[1];
        for start in (0..pixels).step_by(PIXELS) {
            let count = PIXELS.min(pixels - start);
            for (p, row) in panel.chunks_exact_mut(width).take(count).enumerate() {
                let at = (start + p) * job.dy.pitch + job.dy.offset + first;
                row[..channels].copy_from_slice(&job.dy.data[at..at + channels]);
            }
            for tap in 0..taps {
                look_up(job, job.taps[tap], start, self.zeros, &mut read[..count]);
                let sums = &mut sums[tap * k * width..(tap + 1) * k * width];
                let most = even_rows(k, rows::<S>());
                let mut done = 0;
                while done < k {
                    let rows = most.min(k - done);
                    let offset = self.k.start + done;
                    let sums = &mut sums[done * width..(done + rows) * width];
                    with_tile!(rows, vectors, block::<S>(simd, &read[..count], offset, &panel, sums));
                    done += rows;
                }
            }
        }

        for k_index in 0..k {
            for channel in 0..channels {
                let Some(base) = self.order.at(self.k.start + k_index, first + channel) else { continue };
                for tap in 0..taps {
                    // SAFETY: each task has its own weights.
                    unsafe { self.out.at(base + tap).write(sums[(tap * k + k_index) * width + channel]) };
                }
            }
        }
    }
}

/// Where `tap` reads for each of the pixels from `start` on.
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
