//! The error of this crate.

use std::{error::Error as StdError, io, path::PathBuf};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with the files of runs and with reports. Messages name the file, the cause and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },

    /// A file does not hold what its name promises.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The place and the cause.
        source: Box<dyn StdError + Send + Sync>,
    },

    /// A value has no form in the format of its file.
    #[error("cannot write {}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn StdError + Send + Sync>,
    },

    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] runtime::Error),

    /// A folder without a run.
    #[error("{cause}")]
    NotARun {
        /// The folder.
        folder: PathBuf,
        /// The cause and the remedy.
        cause: String,
    },

    /// The folder of a run could not be read.
    #[error("cannot read the run folder {}; give a folder that `train` wrote", folder.display())]
    RunFolder {
        /// The folder.
        folder: PathBuf,
        /// The system's error.
        source: io::Error,
    },

    /// A comparison of no runs.
    #[error("no run to compare; give at least one run folder")]
    NoRuns,
}
