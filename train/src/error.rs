//! The error of this crate.

use std::{io, path::PathBuf};

use crate::recipe;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a training. Messages name the file or the key of the recipe, the cause and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A recipe that cannot be read or is not valid.
    #[error(transparent)]
    Recipe(#[from] recipe::Error),

    /// A recipe that does not go with the devices, the processes or the environment.
    #[error("{0}")]
    Settings(String),

    /// Data that cannot be opened or read.
    #[error(transparent)]
    Data(#[from] datasets::Error),

    /// Data that can be read but not trained on.
    #[error("{0}")]
    Unsuitable(String),

    /// Weights to start from that cannot be opened.
    #[error("cannot start from the weights {name}")]
    Start {
        /// The published name, file or run folder.
        name: String,
        /// The cause.
        source: hub::Error,
    },

    /// Weights or a model card that cannot be read or written, or do not match the network.
    #[error(transparent)]
    Weights(#[from] hub::Error),

    /// An input that is too small for the network.
    #[error(transparent)]
    Network(#[from] models::Error),

    /// A device that cannot be opened, a file that cannot be written, or processes that cannot work together.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),

    /// A device that failed, or that computes wrongly.
    #[error("{0}")]
    Device(String),

    /// A loss, gradients or features that are not finite.
    #[error("{0}")]
    NotFinite(String),

    /// A file or folder that the system refuses.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// `read`, `write`, `lock`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },

    /// A file of a run that cannot be read or written.
    #[error(transparent)]
    File(#[from] report::Error),

    /// A folder that holds no run, or cannot be used for one.
    #[error("{cause}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The cause and the remedy.
        cause: String,
    },

    /// A run that is resumed has nothing left to do.
    #[error(
        "the run {} is finished, after {epochs} epochs: more epochs continue it, fine-tuning its weights starts another",
        run.display()
    )]
    Finished {
        /// The run folder.
        run: PathBuf,
        /// The epochs that were trained.
        epochs: usize,
    },

    /// A run that is resumed with another recipe or other data than it began with.
    #[error("{0}")]
    Changed(String),

    /// A run that cannot be resumed.
    #[error("cannot resume {}{hint}", run.display())]
    Resume {
        /// The run folder.
        run: PathBuf,
        /// The remedy, if it may be that the data was moved.
        hint: &'static str,
        /// The cause.
        source: Box<Error>,
    },

    /// A trial, or a training of a study, that failed.
    #[error("{what} failed")]
    Part {
        /// The trial or training.
        what: String,
        /// The cause.
        source: Box<Error>,
    },

    /// A run that reached its end, but whose last weights could not be saved.
    #[error("the training is done, but its last weights could not be saved; then: train resume {}", run.display())]
    LastWeights {
        /// The run folder.
        run: PathBuf,
        /// The cause.
        source: hub::Error,
    },

    /// A checkpoint, or a message of another process, that cannot be read.
    #[error("{0}")]
    Message(String),

    /// Burn's Learner failed.
    #[error("{0}")]
    Learner(String),

    /// A stop was asked for before the first step of a run, which has no folder yet.
    #[error("stopped before the first step; start it again: features that were computed are kept")]
    Stopped,

    /// A defect of this crate.
    #[error("{0}; this is a bug, please report it")]
    Bug(&'static str),
}

impl Error {
    /// Creates an [`Error::Io`] from the system's error.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
