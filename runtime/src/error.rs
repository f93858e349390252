//! The error of this crate.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::output::StdoutError;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with files, devices and processes. Messages name the thing, the cause and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be written, or a folder created.
    #[error("cannot {action} {}", path.display())]
    Write {
        /// `write`, `create folder`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },

    /// A backend that this build does not have.
    #[error("{0}")]
    NotCompiled(String),

    /// A device that cannot be opened or chosen.
    #[error("{0}")]
    Device(String),

    /// A type of numbers that a device does not compute in.
    #[error("{0}")]
    Dtype(String),

    /// An environment variable or a list of devices that is not valid.
    #[error("{0}")]
    Setting(String),

    /// Several processes that cannot work together, or work that failed on another one.
    #[error("{0}")]
    Processes(String),

    /// A result that could not be printed.
    #[error("{0}")]
    Stdout(#[from] StdoutError),
}

impl Error {
    /// Creates an [`Error::Write`].
    pub(crate) fn write(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Write { action, path: path.into(), source }
    }
}
