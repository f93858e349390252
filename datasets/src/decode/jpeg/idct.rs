//! The inverse DCT: libjpeg's accurate integer method (Loeffler, Ligtenberg and Moschytz, 1989) at the full size,
//! and the exact transform of the lowest frequencies at 4, 2 and 1 pixels.

/// Eight lanes of 32 bits. Overflow wraps: it happens on broken data alone.
#[derive(Clone, Copy)]
struct Lanes([i32; 8]);

impl Lanes {
    #[inline(always)]
    fn zip(self, other: Self, op: impl Fn(i32, i32) -> i32) -> Self {
        Self(std::array::from_fn(|lane| op(self.0[lane], other.0[lane])))
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, i32::wrapping_add)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, i32::wrapping_sub)
    }
    #[inline(always)]
    fn mul(self, factor: i32) -> Self {
        Self(self.0.map(|value| value.wrapping_mul(factor)))
    }
    #[inline(always)]
    fn shl(self, bits: u32) -> Self {
        Self(self.0.map(|value| value << bits))
    }
    /// Divides by 2^bits, rounded.
    #[inline(always)]
    fn descale(self, bits: u32) -> Self {
        Self(self.0.map(|value| value.wrapping_add(1 << (bits - 1)) >> bits))
    }
}

/// Fraction bits of the constants.
const CONST_BITS: u32 = 13;
/// Fraction bits kept between the passes.
const PASS1_BITS: u32 = 2;

/// One dimension of the 8-point transform, on eight columns at once.
#[inline(always)]
fn pass(v: [Lanes; 8], shift: u32) -> [Lanes; 8] {
    let z1 = v[2].add(v[6]).mul(4433);
    let t2 = z1.sub(v[6].mul(15137));
    let t3 = z1.add(v[2].mul(6270));
    let t0 = v[0].add(v[4]).shl(CONST_BITS);
    let t1 = v[0].sub(v[4]).shl(CONST_BITS);
    let even = [t0.add(t3), t1.add(t2), t1.sub(t2), t0.sub(t3)];

    let [t0, t1, t2, t3] = [v[7], v[5], v[3], v[1]];
    let (z1, z2, z3, z4) = (t0.add(t3), t1.add(t2), t0.add(t2), t1.add(t3));
    let z5 = z3.add(z4).mul(9633);
    let z1 = z1.mul(-7373);
    let z2 = z2.mul(-20995);
    let z3 = z3.mul(-16069).add(z5);
    let z4 = z4.mul(-3196).add(z5);
    let odd = [
        t3.mul(12299).add(z1).add(z4),
        t2.mul(25172).add(z2).add(z3),
        t1.mul(16819).add(z2).add(z4),
        t0.mul(2446).add(z1).add(z3),
    ];
    std::array::from_fn(|i| {
        if i < 4 { even[i].add(odd[i]).descale(shift) } else { even[7 - i].sub(odd[7 - i]).descale(shift) }
    })
}

#[inline(always)]
fn transpose(v: [Lanes; 8]) -> [Lanes; 8] {
    std::array::from_fn(|row| Lanes(std::array::from_fn(|column| v[column].0[row])))
}

/// A sample from a transformed value: the level shift, and the limits.
#[inline(always)]
fn sample(value: i32) -> u8 {
    value.wrapping_add(128).clamp(0, 255) as u8
}

/// Writes the `size × size` samples of a block of dequantised coefficients (row by row); `last` is the last zigzag
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
            let rows =
                std::array::from_fn(|row| Lanes(std::array::from_fn(|column| i32::from(block[row * 8 + column]))));
            let columns = pass(rows, CONST_BITS - PASS1_BITS);
            let rows = transpose(pass(transpose(columns), CONST_BITS + PASS1_BITS + 3));
            for (out, row) in out.chunks_mut(stride).zip(rows) {
                out[..8].copy_from_slice(&row.0.map(sample));
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
