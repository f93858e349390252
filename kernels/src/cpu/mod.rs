//! The arithmetic on slices, independent of Burn. Feature maps are stored with their channels last (NHWC).
//!
//! Functions with SIMD values are `#[inline(always)]` and use plain loops: an iterator's closure would be compiled without
//! the target features.
#![allow(clippy::needless_range_loop)]

/// Asserts the bounds that raw reads and writes of a kernel rely on, in builds with debug assertions or the feature `checked`.
macro_rules! check {
    ($($arguments:tt)*) => {
        if cfg!(any(debug_assertions, feature = "checked")) {
            assert!($($arguments)*);
        }
    };
}
pub mod amx;
pub mod bf16;
pub mod buffer_pool;
pub mod cat;
pub mod conv;
pub mod disjoint;
pub mod int8;
pub mod linear;
pub mod loss;
pub mod lrn;
pub mod norm;
pub mod pool;
pub mod sgd;
pub mod simd;
#[cfg(test)]
mod testing;
pub mod thread_pool;
pub mod tile;
pub mod weight_gradient;
pub mod winograd;

#[cfg(test)]
mod tests;
