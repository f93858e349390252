//! The one error type of this crate.

use std::{io, path::PathBuf};

use crate::{Architecture, weights::Mismatch};

/// Shorthand for a result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with networks, weights and cards. Every message names the file, the cause and the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No architecture of that name.
    #[error("no architecture is called '{name}'; did you mean '{nearest}'?")]
    UnknownArchitecture {
        /// What was asked for.
        name: String,
        /// The name most like it.
        nearest: &'static str,
    },
    /// An image is smaller than the network can take.
    #[error("{architecture} needs inputs of at least {min} × {min} pixels, got {height} × {width}")]
    InputTooSmall {
        /// The network.
        architecture: Architecture,
        /// The input's height in pixels.
        height: usize,
        /// The input's width in pixels.
        width: usize,
        /// The smallest side it accepts.
        min: usize,
    },
    /// A file could not be opened, read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// `read`, `write`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what its kind promises.
    #[error("{} is not readable as {kind}: {cause}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it was read as.
        kind: &'static str,
        /// What is wrong.
        cause: String,
    },
    /// A file's tensors are not the network's.
    #[error("{} does not hold the weights of {architecture}:\n{mismatch}", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// The network.
        architecture: Architecture,
        /// The table of differences.
        mismatch: Box<Mismatch>,
    },
    /// A file without a card was given without an architecture.
    #[error(
        "{} carries no model card, so its architecture is not known: name it with --arch (for instance --arch resnet50)",
        path.display()
    )]
    NoCard {
        /// The file.
        path: PathBuf,
    },
    /// A card that is not well-formed or contradicts itself or what it lies beside.
    #[error("the model card of {} is not valid: {cause}", path.display())]
    Card {
        /// The file that holds the card.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// A network could not be recorded as a graph.
    #[error("this network cannot be recorded as a graph: {0}")]
    Graph(String),
    /// Published weights could not be had.
    #[error(transparent)]
    Hub(#[from] crate::hub::Error),
}
