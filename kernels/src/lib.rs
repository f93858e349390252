//! The operations of the classic image classifiers, fast on the CPU.
//!
//! Burn's own operations stay the reference and what every other backend runs; on `flex` the ones here take their
//! place, unless [`set_kernel_mode`] has set [`KernelMode::Reference`].

#![deny(missing_docs)]

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicBool, Ordering},
};

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
// NdArray and LibTorch are deprecated and stay for as long as Burn ships them.
#[allow(deprecated)]
// Without a backend the dispatch that Burn's macro generates uses no argument.
#[cfg_attr(not(any(feature = "flex", feature = "ndarray", feature = "tch", feature = "cube")), allow(unused_variables))]
mod ops;

pub use functional::*;
pub use ops::sync_batch_norm::{AllReduce, set_sync_batch_norm, sync_batch_norm};

/// The operations that networks run.
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

static REFERENCE: AtomicBool = AtomicBool::new(false);

/// Sets the operations that the networks of this process run from now on.
pub fn set_kernel_mode(mode: KernelMode) {
    REFERENCE.store(mode == KernelMode::Reference, Ordering::Relaxed);
}

/// Returns what [`set_kernel_mode`] has set.
pub fn kernel_mode() -> KernelMode {
    if REFERENCE.load(Ordering::Relaxed) { KernelMode::Reference } else { KernelMode::Optimized }
}

/// Returns the name of the vector instructions that the optimized kernels use on this processor: `AVX-512`, `AVX2`, `NEON`.
pub fn instruction_set() -> &'static str {
    cpu::simd::name()
}

/// Returns the number of threads that the optimized kernels use: rayon's, `RAYON_NUM_THREADS` or one per core.
pub fn num_threads() -> usize {
    cpu::parallel::threads()
}
