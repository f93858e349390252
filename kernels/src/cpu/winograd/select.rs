//! Where Winograd is faster than the implicit GEMM.

use super::transforms::{OUT, POSITIONS};
use crate::cpu::conv::Shape;

/// Whether Winograd is the faster way: the kernel fits, and what the transformed weights weigh is paid back. Where
/// weights are kept, in evaluation, an image's result must not depend on those beside it, and nor does the choice.
pub fn wins(shape: &Shape, weights_are_kept: bool) -> bool {
    match weights_are_kept {
        // As for few images: over a map of 7 × 7 pixels one alone would wait for the weights, four times the bytes.
        true => pays(&Shape { n: 2, ..*shape }, 15.0),
        false => pays(shape, 60.0),
    }
}

/// The same for the weight gradient, whose transformed sums are written, read and transformed back.
pub fn wins_gradient(shape: &Shape) -> bool {
    pays(shape, 80.0)
}

/// Whether the multiplications saved outweigh the transforms; transforming the weights costs
/// `a_weight` multiply-adds per float.
fn pays(shape: &Shape, a_weight: f64) -> bool {
    let fits = shape.kernel == [3, 3]
        && shape.stride == [1, 1]
        && shape.dilation == [1, 1]
        && shape.groups == 1
        && shape.channels_in >= 16
        && shape.channels_out >= 16;
    let Some([height, width]) = shape.output().filter(|_| fits) else { return false };
    let tiles = shape.n * height.div_ceil(OUT) * width.div_ceil(OUT);
    let (c_in, c_out) = (shape.channels_in as f64, shape.channels_out as f64);
    // In multiply-adds, or in what else takes as long: a vector of floats through the memory, say.
    let products = (POSITIONS * tiles) as f64 * c_in * c_out;
    let transforms = tiles as f64 * (c_in + c_out) * 700.0;
    let weights = POSITIONS as f64 * c_in * c_out * a_weight;
    products + transforms + weights < 0.95 * shape.cost() as f64
}
