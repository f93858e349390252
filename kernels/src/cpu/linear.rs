//! Linear layers `y = x · w + b` with few rows and many weights: memory-bound GEMMs that read the weights once.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::{
    buffer_pool::{Buffer, elements},
    conv::panel_width,
    disjoint::{DisjointSlice, part},
    thread_pool::{tasks, threads},
    tile::{Tile, WIDTH, accumulate, accumulate_outer, even_rows, load_at, load_part, rows, store_part, with_tile},
};

/// The sizes of a linear layer.
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    /// Rows of `x` and `y`.
    pub rows: usize,
    /// Columns of `x`, rows of `w`.
    pub inputs: usize,
    /// Columns of `w` and `y`.
    pub outputs: usize,
}

/// Rows of weights read side by side for one row of `x`: the number of streams that the hardware prefetcher follows.
const DEPTH: usize = 8;
/// The same for a few rows of `x`, whose accumulators are loaded and stored each time.
const FEW_DEPTH: usize = 16;
/// The same if `x` has more rows than a tile: the weights are then packed and reused.
const PACKED_DEPTH: usize = 192;
/// The prefetch distance of weights for one row of `x`, in floats.
const AHEAD: usize = 512;
/// Rows of weights of a block of dot products.
const DOTS: usize = 3;
/// Rows of gradients of a block of dot products.
const AT_ONCE: usize = 8;
/// Columns of a block, so that the gradients of many rows stay in the L2 cache.
const ACROSS: usize = 2048;

impl Linear {
    /// `y = x · w + bias`.
    pub fn forward(&self, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
        self.check(x, w, y);
        assert!(bias.is_none_or(|bias| bias.len() == self.outputs), "a bias of other than {} values", self.outputs);
        if y.is_empty() {
            return;
        }
        match bias {
            Some(bias) => y.chunks_exact_mut(self.outputs).for_each(|row| row.copy_from_slice(bias)),
            None => y.fill(0.0),
        }
        let out = DisjointSlice::new(y);
        let panels = self.outputs.div_ceil(panel_width());
        // Ranges of a row as long as possible: prefetching stops at the end of a thread's range.
        let parts = panels.min(threads());
        let arch = Arch::new();
        tasks(parts, |index| {
            arch.dispatch(Columns { job: self, x, w, panels: part(panels, parts, index, 1), out });
        });
    }

    /// `dw = xᵀ · dy`.
    pub fn weight_backward(&self, x: &[f32], dy: &[f32], dw: &mut [f32]) {
        self.check(x, dw, dy);
        if dw.is_empty() {
            return;
        }
        // Whole panels of gradients, the last padded with zeros.
        let pitch = self.outputs.next_multiple_of(panel_width());
        let mut padded = Buffer::zeros(elements([self.rows, pitch]));
        for (row, dy) in padded.chunks_exact_mut(pitch).zip(dy.chunks_exact(self.outputs)) {
            row[..self.outputs].copy_from_slice(dy);
        }
        let out = DisjointSlice::new(dw);
        let parts = self.inputs.div_ceil(14).min(8 * threads());
        let arch = Arch::new();
        tasks(parts, |index| {
            let inputs = part(self.inputs, parts, index, 14);
            arch.dispatch(Outer { job: self, x, dy: &padded, pitch, inputs, out });
        });
    }

    /// `dx = dy · wᵀ`.
    pub fn x_backward(&self, dy: &[f32], w: &[f32], dx: &mut [f32]) {
        self.check(dx, w, dy);
        if dy.is_empty() {
            return dx.fill(0.0);
        }
        let out = DisjointSlice::new(dx);
        let parts = self.inputs.div_ceil(DOTS).min(8 * threads());
        let arch = Arch::new();
        tasks(parts, |index| {
            arch.dispatch(Dots { job: self, dy, w, inputs: part(self.inputs, parts, index, DOTS), out });
        });
    }

    fn check(&self, x: &[f32], w: &[f32], y: &[f32]) {
        let Self { rows, inputs, outputs } = *self;
        let lengths = [[rows, inputs], [inputs, outputs], [rows, outputs]].map(elements);
        assert!([x.len(), w.len(), y.len()] == lengths, "{:?} values for {self:?}", [x.len(), w.len(), y.len()]);
    }
}

struct Columns<'a> {
    job: &'a Linear,
    x: &'a [f32],
    w: &'a [f32],
    panels: Range<usize>,
    out: DisjointSlice<'a, f32>,
}

impl WithSimd for Columns<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Linear { rows: count, inputs, outputs } = *self.job;
        // A single row is memory-bound: one vector at a time starts its loads earlier.
        let across = if count == 1 { 1 } else { WIDTH };
        let width = across * S::F32_LANES;
        let columns_end = outputs.min(self.panels.end * WIDTH * S::F32_LANES);
        let most = even_rows(count, rows::<S>());
        // More rows than one tile has, or columns that do not fill a panel.
        let packs = count > most;
        let mut packed = Buffer::new(PACKED_DEPTH * width);
        let mut depth = 0;
        while depth < inputs {
            let k = match (packs, count) {
                (true, _) => PACKED_DEPTH,
                (false, 1) => DEPTH,
                (false, _) => FEW_DEPTH,
            };
            let k = k.min(inputs - depth);
            let mut first = self.panels.start * WIDTH * S::F32_LANES;
            while first < columns_end {
                let filled = width.min(outputs - first);
                let (mut weights, mut stride) = (self.w[depth * outputs + first..].as_ptr(), outputs);
                if packs || filled < width {
                    for row in 0..k {
                        let at = (depth + row) * outputs + first;
                        packed[row * width..row * width + filled].copy_from_slice(&self.w[at..at + filled]);
                        packed[row * width + filled..(row + 1) * width].fill(0.0);
                    }
                    (weights, stride) = (packed.as_ptr(), width);
                }
                let mut row = 0;
                while row < count {
                    let rows = most.min(count - row);
                    with_tile!(rows, across, columns::<S>(simd, &self, row, depth, k, first, weights, stride));
                    row += rows;
                }
                first += width;
            }
            depth += k;
        }
    }
}

impl Columns<'_> {
    /// Returns the weights to prefetch while those from `(depth, first)` on are multiplied: further along the rows, since the
    /// hardware prefetcher stops at the end of each page, or in the next rows.
    #[inline(always)]
    fn ahead<S: Simd>(&self, depth: usize, first: usize) -> (*const f32, usize) {
        let Linear { rows, outputs, .. } = *self.job;
        if rows > 1 {
            // Not memory-bound: nothing is gained.
            return (self.w.as_ptr(), 0);
        }
        let [start, end] = [self.panels.start, self.panels.end].map(|panel| panel * WIDTH * S::F32_LANES);
        let (row, column) = match first + AHEAD {
            column if column < end => (depth, column),
            column => (depth + DEPTH, (start + column - end).min(end)),
        };
        (self.w.as_ptr().wrapping_add(row * outputs + column), outputs)
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn columns<S: Simd, const M: usize, const N: usize>(
    simd: S,
    task: &Columns<'_>,
    row: usize,
    depth: usize,
    k: usize,
    first: usize,
    weights: *const f32,
    stride: usize,
) {
    let Linear { inputs, outputs, .. } = *task.job;
    let lanes = S::F32_LANES;
    let mut left = [task.x.as_ptr(); M];
    for m in 0..M {
        check!((row + m) * inputs + depth + k <= task.x.len());
        left[m] = left[m].wrapping_add((row + m) * inputs + depth);
    }
    let readable = (k - 1) * stride + N * lanes;
    check!(if stride == outputs {
        depth * outputs + first + readable <= task.w.len()
    } else {
        readable <= PACKED_DEPTH * stride
    });
    // Continues the accumulation of the rows before, so that a result does not depend on the block size.
    let mut before = [[simd.splat_f32s(0.0); N]; M];
    for n in 0..N {
        let column = first + n * lanes;
        if column < outputs {
            let count = lanes.min(outputs - column);
            for m in 0..M {
                // SAFETY: the columns of the output are accessed by this task only.
                before[m][n] = unsafe { load_part(simd, task.out.at((row + m) * outputs + column, count), count) };
            }
        }
    }
    let mut tile: Tile<S, M, N> = before;
    // SAFETY: each row of `x` has `k` values from `depth` on, and the weights `k` rows of a whole panel; the columns
    // of the output are accessed by this task only.
    unsafe {
        accumulate(simd, &mut tile, &left, weights, stride, k, task.ahead::<S>(depth, first));
        let sums = tile;
        for n in 0..N {
            let column = first + n * lanes;
            if column < outputs {
                let count = lanes.min(outputs - column);
                for m in 0..M {
                    store_part(simd, task.out.at((row + m) * outputs + column, count), count, sums[m][n]);
                }
            }
        }
    }
}

struct Outer<'a> {
    job: &'a Linear,
    x: &'a [f32],
    dy: &'a [f32],
    pitch: usize,
    inputs: Range<usize>,
    out: DisjointSlice<'a, f32>,
}

impl WithSimd for Outer<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = WIDTH * S::F32_LANES;
        let most = even_rows(self.inputs.len(), rows::<S>());
        let mut read = Vec::with_capacity(self.job.rows);
        for row in 0..self.job.rows {
            read.push(self.x[row * self.job.inputs..].as_ptr());
        }
        let mut input = self.inputs.start;
        while input < self.inputs.end {
            let rows = most.min(self.inputs.end - input);
            let mut first = 0;
            while first < self.job.outputs {
                with_tile!(rows, WIDTH, outer::<S>(simd, &self, &read, input, first));
                first += width;
            }
            input += rows;
        }
    }
}

#[inline(always)]
fn outer<S: Simd, const M: usize, const N: usize>(
    simd: S,
    task: &Outer<'_>,
    read: &[*const f32],
    input: usize,
    first: usize,
) {
    let outputs = task.job.outputs;
    let lanes = S::F32_LANES;
    check!(first + N * lanes <= task.pitch && input + M <= task.job.inputs);
    let mut tile: Tile<S, M, N> = [[simd.splat_f32s(0.0); N]; M];
    // SAFETY: each row of `x` has `M` values from `input` on, each of the gradients a whole panel from `first` on; the
    // rows of the output are accessed by this task only.
    unsafe {
        accumulate_outer(simd, &mut tile, read, input, task.dy.as_ptr().wrapping_add(first), task.pitch);
        let sums = tile;
        for m in 0..M {
            for n in 0..N {
                let column = first + n * lanes;
                if column < outputs {
                    let count = lanes.min(outputs - column);
                    store_part(simd, task.out.at((input + m) * outputs + column, count), count, sums[m][n]);
                }
            }
        }
    }
}

struct Dots<'a> {
    job: &'a Linear,
    dy: &'a [f32],
    w: &'a [f32],
    inputs: Range<usize>,
    out: DisjointSlice<'a, f32>,
}

impl WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Linear { rows, inputs, outputs } = *self.job;
        let lanes = S::F32_LANES;
        let mut from = 0;
        while from < outputs {
            let to = outputs.min(from + ACROSS);
            let mut input = self.inputs.start;
            while input < self.inputs.end {
                let dots = DOTS.min(self.inputs.end - input);
                let mut row = 0;
                while row < rows {
                    let at_once = AT_ONCE.min(rows - row);
                    let mut sums = [[simd.splat_f32s(0.0); AT_ONCE]; DOTS];
                    let mut column = from;
                    while column < to {
                        let count = lanes.min(to - column);
                        let mut weights = [simd.splat_f32s(0.0); DOTS];
                        // SAFETY: `count` columns are left of each row; a row that is one too many repeats the last.
                        unsafe {
                            for d in 0..DOTS {
                                let at = (input + d.min(dots - 1)) * outputs + column;
                                weights[d] = load_at(simd, self.w, at, count);
                            }
                            for r in 0..AT_ONCE {
                                let at = (row + r.min(at_once - 1)) * outputs + column;
                                let dy = load_at(simd, self.dy, at, count);
                                for d in 0..DOTS {
                                    sums[d][r] = simd.mul_add_e_f32s(dy, weights[d], sums[d][r]);
                                }
                            }
                        }
                        column += lanes;
                    }
                    let totals = sums;
                    for d in 0..dots {
                        for r in 0..at_once {
                            let at = self.out.at((row + r) * inputs + input + d, 1);
                            let sum = simd.reduce_sum_f32s(totals[d][r]);
                            // SAFETY: the columns of `dx` are accessed by this task only.
                            unsafe { at.write(if from == 0 { sum } else { *at + sum }) };
                        }
                    }
                    row += at_once;
                }
                input += dots;
            }
            from = to;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::Random;

    #[test]
    fn equals_the_plain_sums() {
        let mut random = Random::new(5);
        let sizes = [[1, 1, 1], [2, 29, 33], [17, 5, 7], [3, 70, 10], [8, 130, 64], [17, 65, 100], [33, 5, 7]];
        for &[rows, inputs, outputs] in &sizes {
            let job = Linear { rows, inputs, outputs };
            let [x, w, dy] = [rows * inputs, inputs * outputs, rows * outputs].map(|len| random.floats(len));
            let bias = random.floats(outputs);
            let close = |found: &[f32], wanted: &dyn Fn(usize, usize) -> f64, columns: usize, what: &str| {
                for (index, &found) in found.iter().enumerate() {
                    let wanted = wanted(index / columns, index % columns);
                    assert!((f64::from(found) - wanted).abs() < 2e-5, "{what} of {job:?} at {index}: {found} {wanted}");
                }
            };
            let at = |m: &[f32], row: usize, columns: usize, column: usize| f64::from(m[row * columns + column]);

            let mut y = vec![f32::NAN; rows * outputs];
            job.forward(&x, &w, Some(&bias), &mut y);
            let wanted = |n: usize, o: usize| {
                (0..inputs).map(|i| at(&x, n, inputs, i) * at(&w, i, outputs, o)).sum::<f64>() + f64::from(bias[o])
            };
            close(&y, &wanted, outputs, "output");
            let mut dw = vec![f32::NAN; inputs * outputs];
            job.weight_backward(&x, &dy, &mut dw);
            let wanted =
                |i: usize, o: usize| (0..rows).map(|n| at(&x, n, inputs, i) * at(&dy, n, outputs, o)).sum::<f64>();
            close(&dw, &wanted, outputs, "weight gradient");
            let mut dx = vec![f32::NAN; rows * inputs];
            job.x_backward(&dy, &w, &mut dx);
            let wanted =
                |n: usize, i: usize| (0..outputs).map(|o| at(&dy, n, outputs, o) * at(&w, i, outputs, o)).sum::<f64>();
            close(&dx, &wanted, inputs, "input gradient");
        }
    }
}
