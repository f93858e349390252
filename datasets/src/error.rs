//! The error type of this crate.

use std::{io, path::PathBuf};

use runtime::text::printable;

use crate::{DecodeError, Location};

/// Shorthand for a result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate. Every message names the file, the cause and, if there is one, the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be opened or read.
    #[error("cannot read {}: {source}", printable(&path.to_string_lossy()))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },

    /// A path, pattern or URL that is not a recognized data set.
    #[error("{spec}: no data set found; looked for {looked_for}")]
    Unrecognized {
        /// The given path, pattern or URL.
        spec: String,
        /// The accepted layouts.
        looked_for: String,
    },

    /// The data lacks the requested split.
    #[error("{}: no {split} split; {hint}", printable(container))]
    MissingSplit {
        /// The data set.
        container: String,
        /// The name of the split.
        split: &'static str,
        /// The remedy.
        hint: String,
    },

    /// A data set with an inconsistent or unusable layout: no samples, empty classes, unknown classes.
    #[error("{}: {cause}", printable(container))]
    Layout {
        /// The folder, archive or URL.
        container: String,
        /// The cause and the remedy.
        cause: String,
    },

    /// Data that violates its format.
    #[error("{location}: {cause}")]
    Corrupt {
        /// The archive, member and offset.
        location: Location,
        /// The cause.
        cause: String,
    },

    /// A sample index beyond the end of its source.
    #[error("sample {index} of {len}: out of range")]
    OutOfRange {
        /// The requested index.
        index: usize,
        /// The number of samples.
        len: usize,
    },

    /// Data that requires a build with another cargo feature.
    #[error("{spec}: this build cannot read it; build with `--features {feature}`")]
    NeedsFeature {
        /// The given path, pattern or URL.
        spec: String,
        /// The cargo feature.
        feature: &'static str,
    },

    /// A sample's bytes are not an image that can be decoded.
    #[error("cannot decode {location}: {cause}")]
    Decode {
        /// The sample.
        location: Location,
        /// The cause.
        #[source]
        cause: DecodeError,
    },

    /// A transform's parameter is out of its range.
    #[error("transform {name}: {cause}")]
    Transform {
        /// The transform's name.
        name: &'static str,
        /// The cause.
        cause: &'static str,
    },

    /// Loader settings that contradict each other or the source.
    #[error("cannot load: {what}")]
    InvalidLoader {
        /// The cause and the remedy.
        what: String,
    },

    /// No sample of an epoch could be read and decoded.
    #[error("none of {bad} samples could be read and decoded; the first: {cause}")]
    NoGoodSample {
        /// The number of attempts.
        bad: u64,
        /// The cause of the first failure.
        cause: String,
    },

    /// A worker thread panicked: a bug in Hearth, not a problem of the data.
    #[error("a worker panicked over {what}: {message}; please report this")]
    WorkerPanicked {
        /// The sample or batch being processed.
        what: String,
        /// The panic's message.
        message: String,
    },
}

impl Error {
    /// Creates an [`Error::Io`] from the path and the system's error.
    pub(crate) fn io(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// Creates an [`Error::Layout`].
    pub(crate) fn layout(container: impl ToString, cause: impl Into<String>) -> Self {
        Self::Layout { container: container.to_string(), cause: cause.into() }
    }
}
