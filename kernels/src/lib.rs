//! The operations of the classic image classifiers, fast on the CPU.
//!
//! Burn's own operations stay the reference and what every other backend runs; on `flex` the ones here take their
//! place, unless [`choose`] says [`Choice::Plain`].

#![deny(missing_docs)]

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicBool, Ordering},
};

mod autodiff;
mod calls;
pub mod cpu;
#[cfg(feature = "flex")]
mod flex;
pub mod ops;
mod plain;
#[allow(deprecated)] // NdArray and LibTorch, for as long as Burn ships them.
mod shared;

pub use calls::*;
pub use shared::{Shared, Sum, share_statistics, shares_statistics};

/// Which operations the networks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// Those of this crate, where there are any for the backend.
    #[default]
    Fast,
    /// Burn's own.
    Plain,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fast => "fast",
            Self::Plain => "plain",
        })
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "fast" => Ok(Self::Fast),
            "plain" => Ok(Self::Plain),
            _ => Err(format!("{name:?} is neither `fast` nor `plain`")),
        }
    }
}

static PLAIN: AtomicBool = AtomicBool::new(false);

/// Says which operations the networks of this process run from now on.
pub fn choose(choice: Choice) {
    PLAIN.store(choice == Choice::Plain, Ordering::Relaxed);
}

/// What was [chosen](choose).
pub fn choice() -> Choice {
    if PLAIN.load(Ordering::Relaxed) { Choice::Plain } else { Choice::Fast }
}
