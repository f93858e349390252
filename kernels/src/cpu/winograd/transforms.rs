//! The one-dimensional transforms of F(4, 3), each applied to the columns and then to the rows of a tile.
//!
//! # Derivation
//!
//! Four outputs of a correlation with three weights, `y[o] = Σ_j d[o + j] · g[j]`, are by the transposition principle as
//! cheap as the product of a polynomial of degree 3 and one of degree 2. That product has degree 5, so six values determine
//! it: the values at five points, and its leading coefficient, the value "at ∞" (Toom and Cook). Evaluating the weights at
//! the points is `G`, each row of which is divided by the product of the differences between its point and the others;
//! evaluating the other factor is `A`; interpolating is `B`. With the points 0, ±a and ±b, transposed,
//!
//! ```text
//! y = Aᵀ · [(G · g) ⊙ (Bᵀ · d)]        6 products instead of 12
//!
//!      ⎡ 1  1   1   1   1  0 ⎤      ⎡ 1/(a²b²)    0      0   ⎤           ⎡ a²b²  0   −a²−b²   0    1  0 ⎤
//! Aᵀ = ⎢ 0  a  −a   b  −b  0 ⎥      ⎢    p        pa    pa²  ⎥           ⎢  0  −ab²   −b²     a    1  0 ⎥
//!      ⎢ 0  a²  a²  b²  b² 0 ⎥  G = ⎢    p       −pa    pa²  ⎥      Bᵀ = ⎢  0   ab²   −b²    −a    1  0 ⎥
//!      ⎣ 0  a³ −a³  b³ −b³ 1 ⎦      ⎢    q        qb    qb²  ⎥           ⎢  0  −a²b   −a²     b    1  0 ⎥
//!                                   ⎢    q       −qb    qb²  ⎥           ⎢  0   a²b   −a²    −b    1  0 ⎥
//!                                   ⎣    0        0      1   ⎦           ⎣  0   a²b²    0  −a²−b²  0  1 ⎦
//!
//! p = 1 / (2a²(a² − b²)),  q = 1 / (2b²(b² − a²))
//! ```
//!
//! The columns are the points 0, a, −a, b, −b, ∞ in this order. In two dimensions each transform is applied to both axes,
//! `Y = Aᵀ · [(G · g · Gᵀ) ⊙ (Bᵀ · d · B)] · A`: 36 products instead of 144. Reading the same identity as a function of the
//! weights gives their gradient, `dG = Gᵀ · [(A · dY · Aᵀ) ⊙ (Bᵀ · d · B)] · G`.
//!
//! # Points
//!
//! The points decide the rounding: where the entries of a matrix differ much in size, large terms cancel. The usual ±1 and
//! ±2 need the fewest multiplications; simulated in single precision, with 128 channels and inputs after a ReLU, their mean
//! error is 3.7 times that of the direct sum and their largest 8 times. ±5/8 and ±3/2, which oneDNN uses too, bring that to
//! 2.0 and 1.8 times with fused multiplications in place of additions. `A` and `B` have no rounded entry, since both points
//! are sums of powers of two. On the choice of points: Barabasz et al., [Error analysis and improving the accuracy of Winograd convolution for
//! deep neural networks](https://arxiv.org/abs/1803.10986).
//!
//! The functions below share the sums of points that differ in sign: `even` and `odd` are the parts of a polynomial that
//! keep and change their sign.

use pulp::Simd;

/// Side of an output tile.
pub(super) const OUT: usize = 4;
/// Side of an input tile.
pub(super) const IN: usize = 6;
/// Positions of a transformed tile.
pub(super) const POSITIONS: usize = IN * IN;

/// The points ±a and ±b.
const A: f64 = 5.0 / 8.0;
const B: f64 = 3.0 / 2.0;
const A1: f32 = A as f32;
const A2: f32 = (A * A) as f32;
const A3: f32 = (A * A * A) as f32;
const B1: f32 = B as f32;
const B2: f32 = (B * B) as f32;
const B3: f32 = (B * B * B) as f32;
/// The coefficients of `x⁴ − (a² + b²) x² + a²b²`, whose roots are the points other than 0.
const SQUARES: f32 = (A * A + B * B) as f32;
const PRODUCT: f32 = (A * A * B * B) as f32;
/// The rows of `G` at 0, a and b. Each entry is rounded once.
const AT_0: f32 = (1.0 / (A * A * B * B)) as f32;
const AT_A: [f32; 3] = powers(A, 2.0 * A * A * (A * A - B * B));
const AT_B: [f32; 3] = powers(B, 2.0 * B * B * (B * B - A * A));

const fn powers(point: f64, divisor: f64) -> [f32; 3] {
    [(1.0 / divisor) as f32, (point / divisor) as f32, (point * point / divisor) as f32]
}

/// Computes `factor · a`.
#[inline(always)]
fn mul<S: Simd>(simd: S, factor: f32, a: S::f32s) -> S::f32s {
    simd.mul_f32s(simd.splat_f32s(factor), a)
}

/// Computes `factor · a + b`.
#[inline(always)]
fn fma<S: Simd>(simd: S, factor: f32, a: S::f32s, b: S::f32s) -> S::f32s {
    simd.mul_add_e_f32s(simd.splat_f32s(factor), a, b)
}

/// Computes `G · g`.
#[inline(always)]
pub(super) fn transform_kernel<S: Simd>(simd: S, g: [S::f32s; 3]) -> [S::f32s; IN] {
    let (even_a, odd_a) = (fma(simd, AT_A[0], g[0], mul(simd, AT_A[2], g[2])), mul(simd, AT_A[1], g[1]));
    let (even_b, odd_b) = (fma(simd, AT_B[0], g[0], mul(simd, AT_B[2], g[2])), mul(simd, AT_B[1], g[1]));
    [
        mul(simd, AT_0, g[0]),
        simd.add_f32s(even_a, odd_a),
        simd.sub_f32s(even_a, odd_a),
        simd.add_f32s(even_b, odd_b),
        simd.sub_f32s(even_b, odd_b),
        g[2],
    ]
}

/// Computes `Bᵀ · d`.
#[inline(always)]
pub(super) fn transform_input<S: Simd>(simd: S, d: [S::f32s; IN]) -> [S::f32s; IN] {
    // `odd` lacks the factor of its point.
    let (even_a, odd_a) = (fma(simd, -B2, d[2], d[4]), fma(simd, -B2, d[1], d[3]));
    let (even_b, odd_b) = (fma(simd, -A2, d[2], d[4]), fma(simd, -A2, d[1], d[3]));
    [
        fma(simd, PRODUCT, d[0], fma(simd, -SQUARES, d[2], d[4])),
        fma(simd, A1, odd_a, even_a),
        fma(simd, -A1, odd_a, even_a),
        fma(simd, B1, odd_b, even_b),
        fma(simd, -B1, odd_b, even_b),
        fma(simd, PRODUCT, d[1], fma(simd, -SQUARES, d[3], d[5])),
    ]
}

/// Computes `Aᵀ · m`.
#[inline(always)]
pub(super) fn transform_output<S: Simd>(simd: S, m: [S::f32s; IN]) -> [S::f32s; OUT] {
    let (even_a, odd_a) = (simd.add_f32s(m[1], m[2]), simd.sub_f32s(m[1], m[2]));
    let (even_b, odd_b) = (simd.add_f32s(m[3], m[4]), simd.sub_f32s(m[3], m[4]));
    [
        simd.add_f32s(simd.add_f32s(m[0], even_a), even_b),
        fma(simd, A1, odd_a, mul(simd, B1, odd_b)),
        fma(simd, A2, even_a, mul(simd, B2, even_b)),
        fma(simd, A3, odd_a, fma(simd, B3, odd_b, m[5])),
    ]
}

/// Computes `A · y`, with the transpose of [`transform_output`].
#[inline(always)]
pub(super) fn spread_output<S: Simd>(simd: S, y: [S::f32s; OUT]) -> [S::f32s; IN] {
    let (even_a, odd_a) = (fma(simd, A2, y[2], y[0]), fma(simd, A3, y[3], mul(simd, A1, y[1])));
    let (even_b, odd_b) = (fma(simd, B2, y[2], y[0]), fma(simd, B3, y[3], mul(simd, B1, y[1])));
    [
        y[0],
        simd.add_f32s(even_a, odd_a),
        simd.sub_f32s(even_a, odd_a),
        simd.add_f32s(even_b, odd_b),
        simd.sub_f32s(even_b, odd_b),
        y[3],
    ]
}

/// Computes `Gᵀ · m`, with the transpose of [`transform_kernel`].
#[inline(always)]
pub(super) fn gather_kernel<S: Simd>(simd: S, m: [S::f32s; IN]) -> [S::f32s; 3] {
    let (even_a, odd_a) = (simd.add_f32s(m[1], m[2]), simd.sub_f32s(m[1], m[2]));
    let (even_b, odd_b) = (simd.add_f32s(m[3], m[4]), simd.sub_f32s(m[3], m[4]));
    [
        fma(simd, AT_0, m[0], fma(simd, AT_A[0], even_a, mul(simd, AT_B[0], even_b))),
        fma(simd, AT_A[1], odd_a, mul(simd, AT_B[1], odd_b)),
        fma(simd, AT_A[2], even_a, fma(simd, AT_B[2], even_b, m[5])),
    ]
}

#[cfg(test)]
mod tests {
    use pulp::{Arch, Scalar, WithSimd};

    use super::*;

    /// 512 · Aᵀ.
    const A_T: [[i64; IN]; OUT] = [
        [512, 512, 512, 512, 512, 0],
        [0, 320, -320, 768, -768, 0],
        [0, 200, 200, 1152, 1152, 0],
        [0, 125, -125, 1728, -1728, 512],
    ];
    /// 26775 · G.
    const G: [[i64; 3]; IN] = [
        [30464, 0, 0],
        [-18432, -11520, -7200],
        [-18432, 11520, -7200],
        [3200, 4800, 7200],
        [3200, -4800, 7200],
        [0, 0, 26775],
    ];
    /// 256 · Bᵀ.
    const B_T: [[i64; IN]; IN] = [
        [225, 0, -676, 0, 256, 0],
        [0, -360, -576, 160, 256, 0],
        [0, 360, -576, -160, 256, 0],
        [0, -150, -100, 384, 256, 0],
        [0, 150, -100, -384, 256, 0],
        [0, 225, 0, -676, 0, 256],
    ];

    /// In integers, so without rounding: all of the identity, as it is linear in the input and in the weights.
    #[test]
    fn the_matrices_compute_the_correlation_of_all_unit_vectors() {
        for (i, j) in (0..IN).flat_map(|i| (0..3).map(move |j| (i, j))) {
            for (o, row) in A_T.iter().enumerate() {
                let y: i64 = (0..IN).map(|p| row[p] * G[p][j] * B_T[p][i]).sum();
                assert_eq!(y, if i == o + j { 512 * 26775 * 256 } else { 0 }, "input {i}, weight {j}, output {o}");
            }
        }
    }

    fn first<S: Simd>(simd: S, value: S::f32s) -> f32 {
        let mut lane = [0.0];
        simd.partial_store_f32s(&mut lane, value);
        lane[0]
    }

    /// Applies a transform to each unit vector: the columns of its matrix.
    fn columns<S: Simd, const FROM: usize, const TO: usize>(
        simd: S,
        transform: impl Fn(S, [S::f32s; FROM]) -> [S::f32s; TO],
    ) -> [[f32; TO]; FROM] {
        std::array::from_fn(|unit| {
            let vector = std::array::from_fn(|i| simd.splat_f32s(if i == unit { 1.0 } else { 0.0 }));
            transform(simd, vector).map(|value| first(simd, value))
        })
    }

    struct Check;

    impl WithSimd for Check {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let over = |divisor: f64| move |value: i64| (value as f64 / divisor) as f32;
            let (a, b, g) = (over(512.0), over(256.0), over(26775.0));
            assert_eq!(columns(simd, transform_kernel::<S>), std::array::from_fn(|j| G.map(|row| g(row[j]))));
            assert_eq!(columns(simd, transform_input::<S>), std::array::from_fn(|i| B_T.map(|row| b(row[i]))));
            assert_eq!(columns(simd, transform_output::<S>), std::array::from_fn(|p| A_T.map(|row| a(row[p]))));
            // The transposes have the rows for columns.
            assert_eq!(columns(simd, spread_output::<S>), A_T.map(|row| row.map(a)));
            assert_eq!(columns(simd, gather_kernel::<S>), G.map(|row| row.map(g)));
        }
    }

    #[test]
    fn the_transforms_apply_the_matrices_to_all_unit_vectors() {
        Check.with_simd(Scalar::new());
        Arch::new().dispatch(Check);
    }
}
