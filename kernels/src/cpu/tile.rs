//! The register tile: the microkernel of every GEMM here.
//!
//! A tile keeps `M × N` vectors of accumulators in registers. For each `k` it loads one row of a weight panel (`N` vectors)
//! and broadcasts one value of each of `M` rows of the left operand:
//!
//! ```text
//!                          panel of packed weights, [k][N · lanes]
//!                                   ┌─ N = 2 vectors ─┐
//!                              k = 0│ w w w w│ w w w w│   one row per k is loaded
//!                                  1│ w w w w│ w w w w│
//!                                  ⋮│        │        │
//!                                   └────────┴────────┘
//!   left operand, M rows            ┌────────┬────────┐
//!   row 0  x x x x …  ─broadcast─▶  │ acc    │ acc    │   M × N accumulators:
//!   row 1  x x x x …  ─broadcast─▶  │ acc    │ acc    │   14 × 2 of 32 registers (AVX-512, NEON),
//!     ⋮                             │        │        │    6 × 2 of 16 registers (AVX2)
//!   row M  x x x x …  ─broadcast─▶  │ acc    │ acc    │
//!                                   └────────┴────────┘
//! ```
//!
//! The remaining registers hold the row of weights and the broadcast value. The code is written once over
//! [`pulp::Simd`], which selects AVX-512, AVX2, NEON or scalar code at run time.

use pulp::Simd;

/// The width of a tile in vectors. A panel of packed weights is as wide: `WIDTH · lanes` channels.
pub const WIDTH: usize = 2;

/// Returns the largest number of rows of a tile that leaves registers for a row of weights and a broadcast value.
#[inline(always)]
pub fn rows<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 14 } else { 6 }
}

/// Returns the rows per tile when the fewest tiles of at most `most` rows cover `count` rows evenly.
#[inline(always)]
pub fn even_rows(count: usize, most: usize) -> usize {
    count.div_ceil(count.div_ceil(most).max(1)).max(1)
}

/// The accumulators of a tile.
pub type Tile<S, const M: usize, const N: usize> = [[<S as Simd>::f32s; N]; M];

/// Loads a vector, without alignment.
///
/// # Safety
/// `from` must be good for reading `S::F32_LANES` floats.
#[inline(always)]
pub unsafe fn load<S: Simd>(from: *const f32) -> S::f32s {
    // SAFETY: the caller has `S::F32_LANES` readable floats at `from`; the read needs no alignment, and any bits are floats.
    unsafe { from.cast::<S::f32s>().read_unaligned() }
}

/// Writes a vector, without alignment.
///
/// # Safety
/// `to` must be good for writing `S::F32_LANES` floats.
#[inline(always)]
pub unsafe fn store<S: Simd>(to: *mut f32, value: S::f32s) {
    // SAFETY: the caller has `S::F32_LANES` writable floats at `to`; the write needs no alignment.
    unsafe { to.cast::<S::f32s>().write_unaligned(value) }
}

/// Reads `count ≤ S::F32_LANES` floats, the rest of the vector zero.
///
/// # Safety
/// `from` must be good for reading `count` floats.
#[inline(always)]
pub unsafe fn load_part<S: Simd>(simd: S, from: *const f32, count: usize) -> S::f32s {
    if count >= S::F32_LANES {
        // SAFETY: the vector has at most `count` floats, all of them readable.
        return unsafe { load::<S>(from) };
    }
    // SAFETY: the caller has `count` readable floats at `from`.
    simd.partial_load_f32s(unsafe { std::slice::from_raw_parts(from, count) })
}

/// Writes the first `count ≤ S::F32_LANES` floats of a vector.
///
/// # Safety
/// `to` must be good for writing `count` floats.
#[inline(always)]
pub unsafe fn store_part<S: Simd>(simd: S, to: *mut f32, count: usize, value: S::f32s) {
    if count >= S::F32_LANES {
        // SAFETY: the vector has at most `count` floats, all of them writable.
        return unsafe { store::<S>(to, value) };
    }
    // SAFETY: the caller has `count` writable floats at `to`, which nothing else uses.
    simd.partial_store_f32s(unsafe { std::slice::from_raw_parts_mut(to, count) }, value);
}

/// Reads `count ≤ S::F32_LANES` floats of a slice from `at` on.
///
/// # Safety
///
/// `at + count` must not exceed the length of the slice.
#[inline(always)]
pub unsafe fn load_at<S: Simd>(simd: S, slice: &[f32], at: usize, count: usize) -> S::f32s {
    check!(at + count <= slice.len(), "{count} from {at} on of {}", slice.len());
    // SAFETY: the `count` floats are inside of the slice.
    unsafe { load_part(simd, slice.as_ptr().wrapping_add(at), count) }
}

/// Prefetches the cache lines of `count` floats for writing.
#[inline(always)]
pub fn prefetch_for_writing(at: *const f32, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..count).step_by(16) {
        // SAFETY: a prefetch is a hint and accesses no memory, so any address is allowed.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_ET0 }>(at.wrapping_add(line).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (at, count);
}

/// Prefetches the cache lines of `count` floats for reading.
#[inline(always)]
pub fn prefetch(at: *const f32, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..count).step_by(16) {
        // SAFETY: a prefetch is a hint and accesses no memory, so any address is allowed.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.wrapping_add(line).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (at, count);
}

/// `tile[i] += Σ_k rows[i][k] · panel[k]`: each row is contiguous in `k`, the panel's rows are `stride` floats apart. Each
/// `k` prefetches one cache line: at `ahead + k · every`.
///
/// # Safety
/// Each of `rows` must be good for reading `k` floats, `panel` for `(k - 1) · stride + N · lanes`.
#[inline(always)]
pub unsafe fn accumulate<S: Simd, const M: usize, const N: usize>(
    simd: S,
    tile: &mut Tile<S, M, N>,
    rows: &[*const f32; M],
    panel: *const f32,
    stride: usize,
    k: usize,
    (ahead, every): (*const f32, usize),
) {
    for k in 0..k {
        prefetch(ahead.wrapping_add(k * every), 1);
        let panel = panel.wrapping_add(k * stride);
        let mut weights = [simd.splat_f32s(0.0); N];
        for n in 0..N {
            // SAFETY: the panel has N vectors in each of its `k` rows, `stride` floats apart.
            weights[n] = unsafe { load::<S>(panel.wrapping_add(n * S::F32_LANES)) };
        }
        for m in 0..M {
            // SAFETY: each row has `k` floats.
            let value = simd.splat_f32s(unsafe { rows[m].wrapping_add(k).read_unaligned() });
            for n in 0..N {
                tile[m][n] = simd.mul_add_e_f32s(value, weights[n], tile[m][n]);
            }
        }
    }
}

/// `tile[i] += Σ_p rows[p][i] · panel[p]`: the outer products of scattered rows with a panel's rows.
///
/// # Safety
/// Each of `rows` must be good for reading `M` floats, `panel` for `rows.len() · stride`.
#[inline(always)]
pub unsafe fn accumulate_outer<S: Simd, const M: usize, const N: usize>(
    simd: S,
    tile: &mut Tile<S, M, N>,
    rows: &[*const f32],
    offset: usize,
    panel: *const f32,
    stride: usize,
) {
    for (p, row) in rows.iter().enumerate() {
        let panel = panel.wrapping_add(p * stride);
        let mut gradients = [simd.splat_f32s(0.0); N];
        for n in 0..N {
            // SAFETY: the panel has N vectors for each of `rows`, `stride` floats apart.
            gradients[n] = unsafe { load::<S>(panel.wrapping_add(n * S::F32_LANES)) };
        }
        let row = row.wrapping_add(offset);
        for m in 0..M {
            // SAFETY: each row has M floats from `offset` on.
            let value = simd.splat_f32s(unsafe { row.wrapping_add(m).read_unaligned() });
            for n in 0..N {
                tile[m][n] = simd.mul_add_e_f32s(value, gradients[n], tile[m][n]);
            }
        }
    }
}

/// Calls a function whose first constant parameter is a number of rows, and its second a number of vectors.
macro_rules! with_tile {
    ($rows:expr, $vectors:expr, $function:ident ::<$simd:ty>($($argument:expr),* $(,)?)) => {
        match ($rows, $vectors) {
            (1, 1) => $function::<$simd, 1, 1>($($argument),*),
            (1, _) => $function::<$simd, 1, 2>($($argument),*),
            (2, 1) => $function::<$simd, 2, 1>($($argument),*),
            (2, _) => $function::<$simd, 2, 2>($($argument),*),
            (3, 1) => $function::<$simd, 3, 1>($($argument),*),
            (3, _) => $function::<$simd, 3, 2>($($argument),*),
            (4, 1) => $function::<$simd, 4, 1>($($argument),*),
            (4, _) => $function::<$simd, 4, 2>($($argument),*),
            (5, 1) => $function::<$simd, 5, 1>($($argument),*),
            (5, _) => $function::<$simd, 5, 2>($($argument),*),
            (6, 1) => $function::<$simd, 6, 1>($($argument),*),
            (6, _) => $function::<$simd, 6, 2>($($argument),*),
            (7, 1) => $function::<$simd, 7, 1>($($argument),*),
            (7, _) => $function::<$simd, 7, 2>($($argument),*),
            (8, 1) => $function::<$simd, 8, 1>($($argument),*),
            (8, _) => $function::<$simd, 8, 2>($($argument),*),
            (9, 1) => $function::<$simd, 9, 1>($($argument),*),
            (9, _) => $function::<$simd, 9, 2>($($argument),*),
            (10, 1) => $function::<$simd, 10, 1>($($argument),*),
            (10, _) => $function::<$simd, 10, 2>($($argument),*),
            (11, 1) => $function::<$simd, 11, 1>($($argument),*),
            (11, _) => $function::<$simd, 11, 2>($($argument),*),
            (12, 1) => $function::<$simd, 12, 1>($($argument),*),
            (12, _) => $function::<$simd, 12, 2>($($argument),*),
            (13, 1) => $function::<$simd, 13, 1>($($argument),*),
            (13, _) => $function::<$simd, 13, 2>($($argument),*),
            (14, 1) => $function::<$simd, 14, 1>($($argument),*),
            (14, _) => $function::<$simd, 14, 2>($($argument),*),
            (rows, _) => unreachable!("a tile has 1 to 14 rows, not {rows}"),
        }
    };
}
pub(crate) use with_tile;
