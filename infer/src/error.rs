//! The error of this crate.

use std::{io, path::PathBuf};

use burn::tensor::TensorReadError;
use datasets::{DecodeError, Location};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with networks, images and results. Messages name the thing, the cause and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Weights or a model card that cannot be read or do not match.
    #[error(transparent)]
    Weights(#[from] hub::Error),

    /// An input that is too small for the network, or a network that cannot be recorded.
    #[error(transparent)]
    Network(#[from] models::Error),

    /// A network, card or protocol that this crate cannot evaluate.
    #[error("{0}")]
    Unsupported(String),

    /// A class that the network does not have, or that is ambiguous.
    #[error("{0}")]
    UnknownClass(String),

    /// A stage that the network does not have.
    #[error("{architecture} has no stage `{stage}`; it has {}", stages.join(", "))]
    UnknownStage {
        /// The network.
        architecture: models::Architecture,
        /// The requested stage.
        stage: String,
        /// The stages that output a feature map.
        stages: Vec<String>,
    },

    /// Classes of data that cannot be mapped to those of a network.
    #[error("{0}")]
    ClassMap(String),

    /// A device that failed.
    #[error("running the network failed")]
    Device(#[from] TensorReadError),

    /// A device that does not compute in the requested type, or a file that cannot be written.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),

    /// Outputs that are not finite.
    #[error("the network's outputs are not finite: are the weights damaged?")]
    NotFinite,

    /// An output that does not depend on what it is to be explained by.
    #[error("the logits do not depend on {0}")]
    NoGradient(String),

    /// Data that cannot be opened or read.
    #[error(transparent)]
    Data(#[from] datasets::Error),

    /// A sample that cannot be evaluated.
    #[error("{location}")]
    Sample {
        /// The sample.
        location: Location,
        /// The cause.
        source: Box<Error>,
    },

    /// Bytes that are not an image.
    #[error(transparent)]
    Decode(#[from] DecodeError),

    /// An input that cannot be read.
    #[error(transparent)]
    Input(#[from] io::Error),

    /// An input that does not exist, and what its path probably is.
    #[error("{cause}; {hint}")]
    NotFound {
        /// The system's error.
        cause: io::Error,
        /// What the path probably is, with the remedy.
        hint: String,
    },

    /// An input that is no regular file.
    #[error("is read only as `-`, from standard input")]
    NotAFile(#[source] io::Error),

    /// Inputs that cannot be used.
    #[error("{0}")]
    Unusable(String),

    /// A file that cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },

    /// A file of another format or with other contents than expected.
    #[error("{0}")]
    Format(String),

    /// The files of an evaluation that cannot be read or written.
    #[error(transparent)]
    Results(#[from] report::Error),

    /// Shards that do not make an evaluation.
    #[error("{0}")]
    Shards(String),

    /// A network that has no form in ONNX.
    #[error("{0}")]
    Onnx(String),

    /// A defect of this crate.
    #[error("{0}; this is a bug, please report it")]
    Bug(&'static str),
}
