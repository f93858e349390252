//! Winograd convolution F(4×4, 3×3), for 3×3 kernels with a stride of 1.
//!
//! A 4×4 tile of the output needs a 6×6 tile `d` of the input and the kernel `g`. Transformed, the correlation is an
//! elementwise product, of 36 values where the direct sum has 144 products; [`transforms`] has the matrices and where they
//! come from. Channels are summed in the transformed domain, so each of the 36 positions of a tile is one GEMM over all
//! tiles:
//!
//! ```text
//! input   [n, h, w, c_in]  ──Bᵀ·d·B──▶ V [36][tile][c_in]             ─┐
//!                                                                      ├─ 36 GEMMs ─▶ M [36][tile][c_out]
//! weights [c_out, c_in, 9] ──G·g·Gᵀ──▶ U [36][panel][c_in][lane]      ─┘                      │
//!                                                                                          Aᵀ·M·A
//!                                      output [n, h', w', c_out] ◀── scale, bias, residual, ReLU
//! ```
//!
//! A panel is as many output channels as a register tile is wide. [`forward`] also computes the data gradient, which is a
//! convolution with the rotated kernel; [`weight_gradient`] uses the transposed transforms; [`select`] decides where all of
//! this is faster than the implicit GEMM.
//!
//! The result is rounded more often than the direct sum: for the networks' convolutions its mean error is 2.0 to 2.4 times
//! that of the implicit GEMM, the weight gradient's 1.4 to 4.9 times (`bench operations -- accuracy`); a test has the bound.
//!
//! Paper: [Fast Algorithms for Convolutional Neural Networks](https://arxiv.org/abs/1509.09308) (Lavin & Gray, 2015).

mod forward;
mod select;
mod transforms;
mod weight_gradient;

use pulp::{Arch, Simd, WithSimd};

use super::{
    buffer_pool::{Buffer, elements},
    conv::{Packed, panel_width},
    disjoint::{DisjointSlice, part},
    thread_pool::tasks,
    tile::{WIDTH, load_at, load_part, store},
};

pub use forward::Convolution;
pub use select::{wins, wins_gradient};
use transforms::{IN, OUT, POSITIONS, transform_input, transform_kernel};
pub use weight_gradient::WeightGradient;

/// Transformed weights: `[position][panel][k][width]`.
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
        let mut data = Buffer::new(elements([POSITIONS, panels, k, width]));
        let out = DisjointSlice::new(&mut data);
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
    out: DisjointSlice<'a, f32>,
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

/// Transformed tiles (bytes) of steps done by all threads together: they should stay in the last-level cache.
const TOGETHER: usize = 10 << 20;

/// Floats from position to position: an odd number of cache lines, or the 36 of a tile would fall on one set of the cache.
fn plane(tiles: usize, pitch: usize) -> usize {
    let lines = (tiles * pitch).div_ceil(16);
    (lines | 1) * 16
}

/// The image, the first row and the first column of a tile's output.
#[inline(always)]
fn position(output: [usize; 2], tile: usize) -> [usize; 3] {
    let [rows, columns] = [output[0].div_ceil(OUT), output[1].div_ceil(OUT)];
    [tile / (rows * columns), tile / columns % rows * OUT, tile % columns * OUT]
}

/// Where the `SIDE × SIDE` pixels of a tile are, or zeros where it extends past the edge.
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

/// Transforms the `k` channels of a tile of input, its positions `plane` floats apart in `out`.
///
/// # Safety
/// Each of `read` must be good for reading `k` floats, and the tile in `out` be this task's alone.
#[inline(always)]
unsafe fn write_input<S: Simd>(
    simd: S,
    read: &[*const f32; POSITIONS],
    k: usize,
    out: DisjointSlice<'_, f32>,
    plane: usize,
) {
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
