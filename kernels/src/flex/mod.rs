//! Conversion between `flex` tensors and slices: layouts, data types, and the cache of packed weights.

pub mod conv;
mod tensor;
mod weights;

use burn::{backend::flex::FlexTensor, tensor::DType};

use crate::cpu::{
    disjoint::{DisjointSlice, part},
    thread_pool::tasks,
};
pub use tensor::*;

/// Returns whether all tensors are f32.
pub fn single(tensors: &[&FlexTensor]) -> bool {
    tensors.iter().all(|tensor| tensor.dtype() == DType::F32)
}

/// Copies the floats of a vector.
pub fn values(x: &FlexTensor) -> Vec<f32> {
    floats(&x.to_contiguous()).to_vec()
}

/// Converts a bf16 feature map to f32 if `other` is f32.
pub fn beside(x: FlexTensor, other: &FlexTensor) -> FlexTensor {
    if other.dtype() == DType::F32 { widened(x) } else { x }
}

/// Runs `work(start, part)` on parts of a slice, on all threads.
fn in_parts(out: &mut [f32], work: impl Fn(usize, &mut [f32]) + Sync + Send) {
    let len = out.len();
    let parts = len.div_ceil(1 << 16).max(1);
    let shared = DisjointSlice::new(out);
    tasks(parts, |index| {
        let range = part(len, parts, index, 16);
        // SAFETY: each task accesses its own part only.
        work(range.start, unsafe { shared.range(range) });
    });
}

pub fn copy_all(from: &[f32], to: &mut [f32]) {
    in_parts(to, |start, to| to.copy_from_slice(&from[start..start + to.len()]));
}
