//! The inverse DCT: libjpeg's accurate integer method (Loeffler, Ligtenberg and Moschytz, 1989) at the full size,
//! and the exact transform of the lowest frequencies at 4, 2 and 1 pixels.

/// Fraction bits of the constants.
const CONST_BITS: u32 = 13;
/// Fraction bits kept between the passes.
const PASS1_BITS: u32 = 2;

/// A block in 32 bits, row by row.
type Block = [[i32; 8]; 8];

/// One dimension of the 8-point transform, down each of the eight columns. The loop over columns becomes one over
/// vector lanes. Overflow wraps: it only happens for corrupt data.
#[allow(clippy::needless_range_loop, reason = "one column of eight rows at once")]
#[inline(always)]
fn pass(v: &mut Block, shift: u32) {
    #[inline(always)]
    fn mul(value: i32, factor: i32) -> i32 {
        value.wrapping_mul(factor)
    }
    #[inline(always)]
    fn add(a: i32, b: i32) -> i32 {
        a.wrapping_add(b)
    }
    #[inline(always)]
    fn sub(a: i32, b: i32) -> i32 {
        a.wrapping_sub(b)
    }
    let half = 1 << (shift - 1);
    for x in 0..8 {
        let z1 = mul(add(v[2][x], v[6][x]), 4433);
        let t2 = sub(z1, mul(v[6][x], 15137));
        let t3 = add(z1, mul(v[2][x], 6270));
        let t0 = add(add(v[0][x], v[4][x]) << CONST_BITS, half);
        let t1 = add(sub(v[0][x], v[4][x]) << CONST_BITS, half);
        let (e0, e1, e2, e3) = (add(t0, t3), add(t1, t2), sub(t1, t2), sub(t0, t3));

        let (t0, t1, t2, t3) = (v[7][x], v[5][x], v[3][x], v[1][x]);
        let z5 = mul(add(add(t0, t2), add(t1, t3)), 9633);
        let z1 = mul(add(t0, t3), -7373);
        let z2 = mul(add(t1, t2), -20995);
        let z3 = add(mul(add(t0, t2), -16069), z5);
        let z4 = add(mul(add(t1, t3), -3196), z5);
        let o0 = add(mul(t3, 12299), add(z1, z4));
        let o1 = add(mul(t2, 25172), add(z2, z3));
        let o2 = add(mul(t1, 16819), add(z2, z4));
        let o3 = add(mul(t0, 2446), add(z1, z3));

        v[0][x] = add(e0, o0) >> shift;
        v[7][x] = sub(e0, o0) >> shift;
        v[1][x] = add(e1, o1) >> shift;
        v[6][x] = sub(e1, o1) >> shift;
        v[2][x] = add(e2, o2) >> shift;
        v[5][x] = sub(e2, o2) >> shift;
        v[3][x] = add(e3, o3) >> shift;
        v[4][x] = sub(e3, o3) >> shift;
    }
}

#[allow(clippy::needless_range_loop, reason = "the transposition reads best so")]
#[inline(always)]
fn transpose(v: &Block) -> Block {
    let mut transposed = [[0; 8]; 8];
    for row in 0..8 {
        for column in 0..8 {
            transposed[row][column] = v[column][row];
        }
    }
    transposed
}

/// A sample from a transformed value: the level shift, and the limits.
#[inline(always)]
fn sample(value: i32) -> u8 {
    value.wrapping_add(128).clamp(0, 255) as u8
}

/// Writes the `size × size` samples of a block of dequantized coefficients (row by row); `last` is the last zigzag
/// position that is not zero.
#[inline(always)]
pub(super) fn transform(block: &[i16; 64], last: usize, size: usize, out: &mut [u8], stride: usize) {
    if last == 0 {
        let value = sample((i32::from(block[0]).wrapping_add(4)) >> 3);
        for row in out.chunks_mut(stride).take(size) {
            row[..size].fill(value);
        }
        return;
    }
    match size {
        8 => {
            let mut v = [[0; 8]; 8];
            for row in 0..8 {
                for column in 0..8 {
                    v[row][column] = i32::from(block[row * 8 + column]);
                }
            }
            pass(&mut v, CONST_BITS - PASS1_BITS);
            let mut v = transpose(&v);
            pass(&mut v, CONST_BITS + PASS1_BITS + 3);
            let v = transpose(&v);
            for (out, row) in out.chunks_mut(stride).zip(&v) {
                let mut samples = [0; 8];
                for (to, value) in samples.iter_mut().zip(row) {
                    *to = sample(*value);
                }
                out[..8].copy_from_slice(&samples);
            }
        }
        4 => small::<4>(block, &COSINES_4, out, stride),
        2 => small::<2>(block, &COSINES_2, out, stride),
        _ => out[0] = sample((i32::from(block[0]).wrapping_add(4)) >> 3),
    }
}

/// `c(k) · cos((2x + 1) k π / 8) / √2`, k by x, in 13 fraction bits: the orthonormal 4-point basis, over √2 for the
/// halved size.
const COSINES_4: [[i32; 4]; 4] =
    [[2896, 2896, 2896, 2896], [3784, 1567, -1567, -3784], [2896, -2896, -2896, 2896], [1567, -3784, 3784, -1567]];

/// The orthonormal 2-point basis over 2, for the quartered size.
const COSINES_2: [[i32; 2]; 2] = [[2896, 2896], [2896, -2896]];

/// The exact transform of the lowest `N × N` frequencies.
#[inline(always)]
fn small<const N: usize>(block: &[i16; 64], basis: &[[i32; N]; N], out: &mut [u8], stride: usize) {
    let mut between = [[0i32; N]; N];
    for (row, between) in between.iter_mut().enumerate() {
        for (k, basis) in basis.iter().enumerate() {
            let value = i32::from(block[row * 8 + k]);
            for (sum, factor) in between.iter_mut().zip(basis) {
                *sum = sum.wrapping_add(value.wrapping_mul(*factor));
            }
        }
        for sum in between {
            *sum = sum.wrapping_add(1 << 9) >> 10;
        }
    }
    for (y, out) in out.chunks_mut(stride).take(N).enumerate() {
        for (x, out) in out[..N].iter_mut().enumerate() {
            let sum = (0..N).fold(1 << 15, |sum: i32, k| sum.wrapping_add(between[k][x].wrapping_mul(basis[k][y])));
            *out = sample(sum >> 16);
        }
    }
}
