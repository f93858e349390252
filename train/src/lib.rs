//! Training image classifiers: the library behind the `train` binary.
//!
//! ```text
//! recipe (TOML) → run::prepare → Prepared (recipe, data, weights, device) → run::start
//!               → trainer (Burn's Learner, our loop) → run folder: recipe, card, checkpoints, metrics, weights, report
//! ```
//!
//! A run reports its progress to an [`Observer`] and is stopped by [`Options::stop`]; the library prints nothing.
//! Several processes train together if the program has joined [`runtime::communicator`].
//!
//! [`Error`] names the file or the key of the recipe, the cause and the remedy.

#![forbid(unsafe_code)]
#![deny(clippy::print_stderr, clippy::print_stdout)]

pub mod adapt;
mod batchnorm;
pub mod benchmark;
mod classifier;
mod data;
mod error;
pub mod estimate;
mod evaluation;
mod features;
mod head;
pub mod lr_finder;
pub mod observer;
mod parallel;
pub mod probe;
mod progress;
pub mod recipe;
pub mod run;
pub mod scale;
mod schedule;
pub mod study;
mod trainer;
mod transfer;
mod warm;

pub use error::{Error, Result};
pub use observer::Observer;
pub use progress::{EpochRecord, StepTimes};
pub use recipe::Recipe;
pub use run::Options;
