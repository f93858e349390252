//! What every Hearth binary shares: the choice of a backend, progress, logging, exit codes and safe writing of files.
//!
//! Libraries (`models`, `datasets`) choose no backend and print nothing; the binaries do, and they do it here, so that
//! `train` and `infer` have the same flags, the same messages and the same exit codes. Nothing panics because standard
//! output or standard error is closed or full: see [`output`].

#![deny(missing_docs, clippy::print_stderr, clippy::print_stdout)]

pub mod backend;
pub mod dtype;
pub mod environment;
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
pub mod world;
