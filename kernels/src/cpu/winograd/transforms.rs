//! The one-dimensional transforms of F(4, 3), each applied to the columns and then to the rows of a tile.
//!
//! # Derivation
//!
//! Four outputs of a correlation with three weights, `y[o] = Σ_j d[o + j] · g[j]`, are by the transposition principle as
//! cheap as the product of a polynomial of degree 3 and one of degree 2. That product has degree 5, so six values determine
//! it: the values at the points 0, 1, −1, 2 and −2, and its leading coefficient, the value "at ∞" (Toom and Cook).
//! Evaluating the weights there is `G`, each row of which is divided by the product of the differences between its point
//! and the others; evaluating the other factor is `A`; interpolating is `B`. Transposed, this is
//!
//! ```text
//! y = Aᵀ · [(G · g) ⊙ (Bᵀ · d)]        6 products instead of 12
//!
//!      ⎡ 1  1  1  1  1  0 ⎤           ⎡  1/4    0     0  ⎤            ⎡ 4  0 −5  0  1  0 ⎤
//! Aᵀ = ⎢ 0  1 −1  2 −2  0 ⎥      G =  ⎢ −1/6 −1/6  −1/6  ⎥       Bᵀ = ⎢ 0 −4 −4  1  1  0 ⎥
//!      ⎢ 0  1  1  4  4  0 ⎥           ⎢ −1/6  1/6  −1/6  ⎥            ⎢ 0  4 −4 −1  1  0 ⎥
//!      ⎣ 0  1 −1  8 −8  1 ⎦           ⎢  1/24  1/12  1/6 ⎥            ⎢ 0 −2 −1  2  1  0 ⎥
//!                                     ⎢  1/24 −1/12  1/6 ⎥            ⎢ 0  2 −1 −2  1  0 ⎥
//!                                     ⎣   0     0     1  ⎦            ⎣ 0  4  0 −5  0  1 ⎦
//! ```
//!
//! The columns are the points 0, 1, −1, 2, −2, ∞ in this order. In two dimensions each transform is applied to both axes,
//! `Y = Aᵀ · [(G · g · Gᵀ) ⊙ (Bᵀ · d · B)] · A`: 36 products instead of 144. Reading the same identity as a function of the
//! weights gives their gradient, `dG = Gᵀ · [(A · dY · Aᵀ) ⊙ (Bᵀ · d · B)] · G`.
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

/// Computes `factor · a + b`.
#[inline(always)]
fn fma<S: Simd>(simd: S, factor: f32, a: S::f32s, b: S::f32s) -> S::f32s {
    simd.mul_add_e_f32s(simd.splat_f32s(factor), a, b)
}

/// Computes `G · g`.
#[inline(always)]
pub(super) fn transform_kernel<S: Simd>(simd: S, g: [S::f32s; 3]) -> [S::f32s; IN] {
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

/// Computes `Bᵀ · d`.
#[inline(always)]
pub(super) fn transform_input<S: Simd>(simd: S, d: [S::f32s; IN]) -> [S::f32s; IN] {
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

/// Computes `Aᵀ · m`.
#[inline(always)]
pub(super) fn transform_output<S: Simd>(simd: S, m: [S::f32s; IN]) -> [S::f32s; OUT] {
    let (even, odd) = (simd.add_f32s(m[1], m[2]), simd.sub_f32s(m[1], m[2]));
    let (even2, odd2) = (simd.add_f32s(m[3], m[4]), simd.sub_f32s(m[3], m[4]));
    [
        simd.add_f32s(simd.add_f32s(m[0], even), even2),
        fma(simd, 2.0, odd2, odd),
        fma(simd, 4.0, even2, even),
        simd.add_f32s(fma(simd, 8.0, odd2, odd), m[5]),
    ]
}

/// Computes `A · y`, with the transpose of [`transform_output`].
#[inline(always)]
pub(super) fn spread_output<S: Simd>(simd: S, y: [S::f32s; OUT]) -> [S::f32s; IN] {
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

/// Computes `Gᵀ · m`, with the transpose of [`transform_kernel`].
#[inline(always)]
pub(super) fn gather_kernel<S: Simd>(simd: S, m: [S::f32s; IN]) -> [S::f32s; 3] {
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

#[cfg(test)]
mod tests {
    use pulp::{Arch, Scalar, WithSimd};

    use super::*;

    const A_T: [[i64; IN]; OUT] = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]];
    /// 24 · G.
    const G_24: [[i64; 3]; IN] = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]];
    const B_T: [[i64; IN]; IN] = [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ];

    /// In integers, so without rounding: all of the identity, as it is linear in the input and in the weights.
    #[test]
    fn the_matrices_compute_the_correlation_of_all_unit_vectors() {
        for (i, j) in (0..IN).flat_map(|i| (0..3).map(move |j| (i, j))) {
            for (o, row) in A_T.iter().enumerate() {
                let y: i64 = (0..IN).map(|p| row[p] * G_24[p][j] * B_T[p][i]).sum();
                assert_eq!(y, if i == o + j { 24 } else { 0 }, "input {i}, weight {j}, output {o}");
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
            let twenty_fourths = |value: i64| value as f32 / 24.0;
            assert_eq!(
                columns(simd, transform_kernel::<S>),
                std::array::from_fn(|j| G_24.map(|row| twenty_fourths(row[j])))
            );
            assert_eq!(columns(simd, transform_input::<S>), std::array::from_fn(|i| B_T.map(|row| row[i] as f32)));
            assert_eq!(columns(simd, transform_output::<S>), std::array::from_fn(|p| A_T.map(|row| row[p] as f32)));
            // The transposes have the rows for columns.
            assert_eq!(columns(simd, spread_output::<S>), A_T.map(|row| row.map(|value| value as f32)));
            assert_eq!(columns(simd, gather_kernel::<S>), G_24.map(|row| row.map(twenty_fourths)));
        }
    }

    #[test]
    fn the_transforms_apply_the_matrices_to_all_unit_vectors() {
        Check.with_simd(Scalar::new());
        Arch::new().dispatch(Check);
    }
}
