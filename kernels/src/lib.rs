//! Optimized CPU kernels for convolutional networks, as operations on Burn's tensors.
//!
//! Convolution, batch normalization, pooling, linear layers, local response normalization, cross entropy and SGD run
//! optimized code on Burn's `flex` backend, forward and backward. On every other backend they run Burn's own operations and
//! return the same results up to rounding. So a network calls these functions once and works on every backend;
//! `examples/custom_cnn.rs` replaces the layers of a plain Burn network. No setting of the process or the thread changes a
//! result: what a function computes depends on its arguments alone.
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::tensor::{Device, Tensor, ops::ConvOptions};
//! use kernels::{Epilogue, Precision};
//!
//! let device = Device::flex();
//! let x = Tensor::<4>::ones([1, 3, 8, 8], &device);
//! let weight = Tensor::<4>::ones([16, 3, 3, 3], &device);
//! // conv, bias and ReLU in one pass over the output
//! let epilogue = Epilogue { bias: Some(Tensor::ones([16], &device)), relu: true, ..Epilogue::default() };
//! let y = kernels::conv2d(x, weight, ConvOptions::new([1, 1], [1, 1], [1, 1], 1), epilogue, Precision::F32);
//! assert_eq!(y.dims(), [1, 16, 8, 8]);
//! assert_eq!(y.slice([0..1, 0..1, 4..5, 4..5]).into_scalar::<f32>(), 28.0);
//! # }
//! ```
//!
//! # Layers
//! ```text
//! functional.rs  safe functions on Tensor: every shape, stride and length is checked here
//!      │
//! ops/           one file per operation: backend extension trait, reference body, optimized body, gradient
//!      ├─ reference body ── Burn's own operations (any backend)
//!      └─ optimized body ── flex/   from FlexTensor to slices: layout, data type, cache of packed weights
//!                             │
//!                           cpu/    arithmetic on slices, channels last; knows nothing of Burn
//!                             ├─ conv, weight_gradient   implicit GEMM
//!                             ├─ winograd/               F(4×4, 3×3)
//!                             ├─ bf16, amx               GEMM in bf16
//!                             ├─ int8                    GEMM of quantized maps, for the module `int8`
//!                             ├─ linear, norm, pool, lrn, loss, cat, sgd
//!                             └─ tile, simd, thread_pool, disjoint, buffer_pool
//! ```
//!
//! # Adding an operation
//! 1. `ops/NAME.rs`: a trait with `#[backend_extension(…)]` whose default body calls `reference`, the module `reference` in
//!    Burn's operations, the module `optimized` for `Flex` (behind the feature `flex`) that falls back to `reference` for
//!    what it does not support, and the gradient (`impl … for Autodiff<B, C>`). `reference_backends!` implements it for the
//!    other backends.
//! 2. `cpu/NAME.rs`: the arithmetic, written once over [`pulp::Simd`]; `check!` states what each raw access relies on.
//! 3. `functional.rs`: the public function, which checks every argument and documents `# Shapes` and `# Panics`.
//! 4. `tests/reference.rs` compares both bodies, forward and backward; `tests/panics.rs` passes wrong arguments.

#![deny(missing_docs)]

use std::{fmt, str::FromStr};

#[cfg(not(feature = "internals"))]
// Only the implementation for `flex` calls most of it.
#[cfg_attr(not(feature = "flex"), allow(dead_code, unused_imports))]
mod cpu;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod cpu;
#[cfg(feature = "flex")]
mod flex;
mod functional;
pub mod int8;
// NdArray and LibTorch are deprecated and stay for as long as Burn ships them.
#[allow(deprecated)]
// Without a backend the dispatch that Burn's macro generates uses no argument.
#[cfg_attr(not(any(feature = "flex", feature = "ndarray", feature = "tch", feature = "cube")), allow(unused_variables))]
mod ops;

pub use functional::*;
pub use ops::sync_batch_norm::AllReduce;

/// The operations that a network runs where both exist. The functions of this crate run the optimized ones; a caller that
/// wants the reference calls Burn's own instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KernelMode {
    /// The optimized operations of this crate, on the backend that has them.
    #[default]
    Optimized,
    /// Burn's own operations, as the reference.
    Reference,
}

impl fmt::Display for KernelMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Optimized => "optimized",
            Self::Reference => "reference",
        })
    }
}

impl FromStr for KernelMode {
    type Err = String;

    /// Accepts the earlier names `fast` and `plain` as well.
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "optimized" | "fast" => Ok(Self::Optimized),
            "reference" | "plain" => Ok(Self::Reference),
            _ => Err(format!("unknown kernels {name:?}; expected `optimized` (or `fast`) or `reference` (or `plain`)")),
        }
    }
}

/// Returns the name of the vector instructions that the optimized kernels use on this processor: `AVX-512`, `AVX2`, `NEON`.
pub fn instruction_set() -> &'static str {
    cpu::simd::name()
}

/// Returns the number of threads that the optimized kernels use: rayon's, `RAYON_NUM_THREADS` or one per core.
pub fn num_threads() -> usize {
    cpu::thread_pool::threads()
}
