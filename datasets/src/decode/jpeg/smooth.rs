//! Block smoothing of incomplete progressive images (T.81, K.8), as libjpeg-turbo does it: low frequencies that no scan has
//! coded yet, or not to the last bit, are estimated from the DC values of 5 × 5 blocks.
//!
//! The weights were measured: the response of a decoder to an image with one DC value that is not zero.

use super::{Component, Frame, ZIGZAG};

/// The coefficients that are estimated are the first of the zigzag order.
pub(super) const TRACKED: usize = 10;

/// The number of low bits that are unknown of each tracked coefficient; −1 for one that no scan has coded.
type Unknown = [i8; TRACKED];

/// The precision to which the tracked coefficients of a component are known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Precision {
    now: Unknown,
    /// Before the last scan, which may have ended early.
    before: Unknown,
}

impl Default for Precision {
    fn default() -> Self {
        Self { now: [-1; TRACKED], before: [-1; TRACKED] }
    }
}

impl Precision {
    /// Notes a scan of the zigzag positions `first..=last`, after which `low` bits are unknown.
    pub(super) fn note(&mut self, first: u8, last: u8, low: u32) {
        let (first, last) = (usize::from(first), usize::from(last));
        self.before[first.min(1)..].copy_from_slice(&self.now[first.min(1)..]);
        for position in first..=last.min(TRACKED - 1) {
            self.now[position] = low as i8;
        }
    }
}

/// Weights of the DC values of the 5 × 5 blocks around, row by row, in 1/256.
type Weights = [i32; 25];

/// The weights of each tracked coefficient where none but the DC value is known.
#[rustfmt::skip]
const OF_DC_ALONE: [Weights; TRACKED] = [
    [
        -2, -6, -8, -6, -2,
        -6, 6, 42, 6, -6,
        -8, 42, 152, 42, -8,
        -6, 6, 42, 6, -6,
        -2, -6, -8, -6, -2,
    ],
    [
        -1, -1, 0, 1, 1,
        -3, 13, 0, -13, 3,
        -3, 38, 0, -38, 3,
        -3, 13, 0, -13, 3,
        -1, -1, 0, 1, 1,
    ],
    [
        -1, -3, -3, -3, -1,
        -1, 13, 38, 13, -1,
        0, 0, 0, 0, 0,
        1, -13, -38, -13, 1,
        1, 3, 3, 3, 1,
    ],
    [
        0, 0, 1, 0, 0,
        0, 2, 7, 2, 0,
        0, -5, -14, -5, 0,
        0, 2, 7, 2, 0,
        0, 0, 1, 0, 0,
    ],
    [
        -1, 0, 0, 0, 1,
        0, 9, 0, -9, 0,
        0, 0, 0, 0, 0,
        0, -9, 0, 9, 0,
        1, 0, 0, 0, -1,
    ],
    [
        0, 0, 0, 0, 0,
        0, 2, -5, 2, 0,
        1, 7, -14, 7, 1,
        0, 2, -5, 2, 0,
        0, 0, 0, 0, 0,
    ],
    [
        0, 0, 0, 0, 0,
        0, 1, 0, -1, 0,
        0, 2, 0, -2, 0,
        0, 1, 0, -1, 0,
        0, 0, 0, 0, 0,
    ],
    [
        0, 0, 0, 0, 0,
        0, 1, -3, 1, 0,
        0, 0, 0, 0, 0,
        0, -1, 3, -1, 0,
        0, 0, 0, 0, 0,
    ],
    [
        0, 0, 0, 0, 0,
        0, 1, 0, -1, 0,
        0, -3, 0, 3, 0,
        0, 1, 0, -1, 0,
        0, 0, 0, 0, 0,
    ],
    [
        0, 0, 0, 0, 0,
        0, 1, 2, 1, 0,
        0, 0, 0, 0, 0,
        0, -1, -2, -1, 0,
        0, 0, 0, 0, 0,
    ],
];

/// The weights where other coefficients are known too; the last four are not estimated then.
#[rustfmt::skip]
const OF_MORE: [Weights; 6] = [
    [
        0, 0, 0, 0, 0,
        0, 0, 0, 0, 0,
        0, 0, 0, 0, 0,
        0, 0, 0, 0, 0,
        0, 0, 0, 0, 0,
    ],
    [
        0, 0, 0, 0, 0,
        0, 0, 0, 0, 0,
        -7, 50, 0, -50, 7,
        0, 0, 0, 0, 0,
        0, 0, 0, 0, 0,
    ],
    [
        0, 0, -7, 0, 0,
        0, 0, 50, 0, 0,
        0, 0, 0, 0, 0,
        0, 0, -50, 0, 0,
        0, 0, 7, 0, 0,
    ],
    [
        0, 0, -1, 0, 0,
        0, 0, 13, 0, 0,
        0, 0, -24, 0, 0,
        0, 0, 13, 0, 0,
        0, 0, -1, 0, 0,
    ],
    [
        0, -1, 0, 1, 0,
        -1, 10, 0, -10, 1,
        0, 0, 0, 0, 0,
        1, -10, 0, 10, -1,
        0, 1, 0, -1, 0,
    ],
    [
        0, 0, 0, 0, 0,
        0, 0, 0, 0, 0,
        -1, 13, -24, 13, -1,
        0, 0, 0, 0, 0,
        0, 0, 0, 0, 0,
    ],
];

/// Whether smoothing changes anything: all DC values are known, and some other tracked coefficients are not.
pub(super) fn is_useful(frame: &Frame) -> bool {
    let is_possible = |component: &Component| {
        component.precision.now[0] >= 0
            && component.quant.is_some_and(|quant| quant[..TRACKED].iter().all(|&step| step != 0))
    };
    let is_incomplete = |component: &Component| component.precision.now[1..].iter().any(|&unknown| unknown != 0);
    frame.components.iter().all(is_possible) && frame.components.iter().any(is_incomplete)
}

/// The smoothing of a component's blocks.
pub(super) struct Smoothing<'a> {
    component: &'a Component,
    quant: &'a [u16; 64],
    /// The last row of MCUs that the last scan has reached, and the last of the image.
    last_good: usize,
    last: usize,
}

impl<'a> Smoothing<'a> {
    pub(super) fn new(component: &'a Component, quant: &'a [u16; 64], last_good: usize, last: usize) -> Self {
        Self { component, quant, last_good, last }
    }

    /// Estimates coefficients of a block, before dequantization.
    pub(super) fn apply(&self, row: usize, column: usize, block: &mut [i16; 64]) {
        let Precision { now, before } = &self.component.precision;
        let unknown = if row / self.component.v > self.last_good { before } else { now };
        let dc_alone = unknown[1..].iter().all(|&unknown| unknown == -1);
        let weights = if dc_alone { &OF_DC_ALONE[..] } else { &OF_MORE };
        let around = self.around(row, column);
        for (position, weights) in weights.iter().enumerate().skip(usize::from(!dc_alone)) {
            let value = &mut block[usize::from(ZIGZAG[position])];
            if position > 0 && (unknown[position] == 0 || *value != 0) {
                continue;
            }
            let sum: i64 = weights.iter().zip(&around).map(|(&weight, &dc)| i64::from(weight) * i64::from(dc)).sum();
            let (numerator, step) = (i64::from(self.quant[0]) * sum, i64::from(self.quant[position]));
            let mut size = ((step << 7) + numerator.abs()) / (step << 8);
            if position > 0 && unknown[position] > 0 {
                // More would have been coded.
                size = size.min((1 << unknown[position]) - 1);
            }
            *value = if numerator >= 0 { size as i16 } else { -size as i16 };
        }
    }

    /// The DC values of the 5 × 5 blocks around one; those at an edge are repeated beyond it.
    fn around(&self, row: usize, column: usize) -> [i16; 25] {
        let Component { coefficients, coefficient_stride, blocks, v, .. } = self.component;
        let (mcu, part) = (row / v, row % v);
        let parts = if mcu < self.last { *v } else { blocks.1 - self.last * v };
        let above = row.saturating_sub(1);
        let below = if part + 1 < parts || mcu < self.last { row + 1 } else { row };
        // Rows at a distance of two are replaced by those at one near the edges of the image, counted in MCUs.
        let far_above = if part > 1 || mcu > 1 { row - 2 } else { above };
        let far_below = if part + 2 < parts || mcu + 1 < self.last { row + 2 } else { below };
        let mut values = [0; 25];
        let rows = [far_above, above, row, below, far_below];
        for (values, row) in values.chunks_exact_mut(5).zip(rows) {
            for (offset, value) in values.iter_mut().enumerate() {
                let column = (column + offset).saturating_sub(2).min(blocks.0 - 1);
                *value = coefficients[row * coefficient_stride + column][0];
            }
        }
        values
    }
}
