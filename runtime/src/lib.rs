//! Common parts of the Hearth binaries: backend selection, progress, logging, exit codes and atomic writes.
//!
//! Libraries (`models`, `datasets`) select no backend and print nothing. The binaries do so by this crate, so that `train`
//! and `infer` have the same flags, messages and exit codes. A closed or full standard output or standard error causes no
//! panic: see [`output`].

#![deny(missing_docs, clippy::print_stderr, clippy::print_stdout)]

pub mod backend;
pub mod communicator;
pub mod dtype;
pub mod environment;
mod error;
pub mod exit;
pub mod files;
mod log_file;
pub mod logging;
pub mod missing;
pub mod output;
pub mod progress;
pub mod shell;
pub mod signals;
pub mod text;
pub mod units;
pub mod warmup;

pub use error::{Error, Result};
