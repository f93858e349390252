//! Between Burn's `flex` tensors and slices: layouts, types, and the cache of packed weights.

pub mod conv;
mod tensor;
mod weights;

use burn::{backend::flex::FlexTensor, tensor::DType};

use crate::cpu::parallel::{Shared, part, tasks};
pub use tensor::*;

/// Whether all of them are single precision.
pub fn single(tensors: &[&FlexTensor]) -> bool {
    tensors.iter().all(|tensor| tensor.dtype() == DType::F32)
}

/// The floats of a vector, in order.
pub fn values(x: &FlexTensor) -> Vec<f32> {
    floats(&x.to_contiguous()).to_vec()
}

/// A map of bf16 values as floats, where what it meets is of floats.
pub fn beside(x: FlexTensor, other: &FlexTensor) -> FlexTensor {
    if other.dtype() == DType::F32 { widened(x) } else { x }
}

/// Works on parts of a slice on all threads: `work(start, part)`.
fn in_parts(out: &mut [f32], work: impl Fn(usize, &mut [f32]) + Sync + Send) {
    let len = out.len();
    let parts = len.div_ceil(1 << 16).max(1);
    let shared = Shared::new(out);
    tasks(parts, |index| {
        let range = part(len, parts, index, 16);
        // SAFETY: each task has its own part.
        work(range.start, unsafe { shared.range(range) });
    });
}

pub fn copy_all(from: &[f32], to: &mut [f32]) {
    in_parts(to, |start, to| to.copy_from_slice(&from[start..start + to.len()]));
}
