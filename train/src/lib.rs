//! Training image classifiers: the library behind the `train` binary.
//!
//! ```text
//! recipe (TOML) → training::prepare → Prepared (recipe, data, weights, device) → training::start
//!               → trainer (Burn's Learner, our loop) → run folder: recipe, card, checkpoints, metrics, weights, report
//! ```
//!
//! A run reports its progress to an [`Observer`] and is stopped by [`Options::stop`]; the library prints nothing.
//! Several processes train together if the program has joined [`runtime::world`].
//!
//! Errors are `anyhow` chains that name the file or the key of the recipe, the cause and the remedy.

#![forbid(unsafe_code)]
#![deny(clippy::print_stderr, clippy::print_stdout)]

pub mod adapt;
mod batchnorm;
pub mod benchmark;
mod changes;
mod checkpoint;
mod classifier;
mod data;
pub mod estimate;
mod evaluation;
mod head;
mod journal;
pub mod lr_finder;
mod metric;
pub mod observer;
mod parallel;
pub mod probe;
mod progress;
pub mod recipe;
mod renderer;
mod results;
mod run;
pub mod scale;
mod schedule;
pub mod study;
mod tensorboard;
mod trainer;
pub mod training;
mod transfer;
mod warm;

pub use observer::Observer;
pub use progress::{EpochRecord, Times};
pub use recipe::Recipe;
pub use training::Options;
pub use warm::Stopped;
