//! The arithmetic, on slices: it knows nothing of Burn. Maps have their channels last.
//!
//! SIMD values live in `#[inline(always)]` functions with plain loops: the closure of an iterator would be compiled
//! without the processor's features.
#![allow(clippy::needless_range_loop)]

/// Asserts what the reads and writes of a kernel rely on, in builds with debug assertions or the feature `checked`.
macro_rules! check {
    ($($arguments:tt)*) => {
        if cfg!(any(debug_assertions, feature = "checked")) {
            assert!($($arguments)*);
        }
    };
}
pub mod amx;
pub mod conv;
pub mod half;
pub mod join;
pub mod linear;
pub mod loss;
pub mod lrn;
pub mod memory;
pub mod norm;
pub mod parallel;
pub mod pool;
pub mod sgd;
pub mod simd;
#[cfg(test)]
mod testing;
pub mod tile;
pub mod weight_gradient;
pub mod winograd;

#[cfg(test)]
mod tests;
