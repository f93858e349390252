//! The one error type of this crate.

use std::{io, path::PathBuf};

use crate::{DecodeError, Location};

/// Shorthand for a result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between an archive and a batch. Every message names the file, the cause and, where there is
/// one, the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// A path, pattern or URL that is no data set this crate knows.
    #[error("{spec}: no data set found; looked for {looked_for}")]
    Unrecognised {
        /// What the caller gave.
        spec: String,
        /// Everything that would have been accepted.
        looked_for: String,
    },

    /// The data lacks the split that was asked for.
    #[error("{container}: no {split} split; {hint}")]
    MissingSplit {
        /// The data set.
        container: String,
        /// The name of the split.
        split: &'static str,
        /// What to do about it.
        hint: String,
    },

    /// A data set whose layout contradicts itself or is unusable: no samples, empty classes, unknown classes.
    #[error("{container}: {cause}")]
    Layout {
        /// The folder, archive or URL.
        container: String,
        /// What is wrong and what to do.
        cause: String,
    },

    /// Bytes that are not what the format says they should be.
    #[error("{location}: {cause}")]
    Corrupt {
        /// The archive, member and offset.
        location: Location,
        /// What is wrong with it.
        cause: String,
    },

    /// A sample index beyond the end of its source.
    #[error("sample {index} of {len}: out of range")]
    OutOfRange {
        /// The index asked for.
        index: usize,
        /// The number of samples.
        len: usize,
    },

    /// Data that only a build with another cargo feature can read.
    #[error("{spec}: this build cannot read it; build with `--features {feature}`")]
    NeedsFeature {
        /// What the caller gave.
        spec: String,
        /// The cargo feature.
        feature: &'static str,
    },

    /// A sample's bytes are not an image that can be decoded.
    #[error("cannot decode {location}: {cause}")]
    Decode {
        /// The sample.
        location: Location,
        /// What is wrong with it.
        #[source]
        cause: DecodeError,
    },

    /// A transform's parameter is out of its range.
    #[error("transform {name}: {cause}")]
    Transform {
        /// The transform's name.
        name: &'static str,
        /// What is wrong.
        cause: &'static str,
    },

    /// Settings of a loader that contradict each other or the source.
    #[error("cannot load: {what}")]
    InvalidLoader {
        /// What is wrong, and what to change.
        what: String,
    },

    /// Not one sample of an epoch could be read and decoded.
    #[error("none of {bad} samples could be read and decoded; the first: {cause}")]
    NoGoodSample {
        /// How many were tried.
        bad: u64,
        /// What was wrong with the first.
        cause: String,
    },

    /// A worker thread panicked: a defect of this program, not of the data.
    #[error("a worker panicked over {what}: {message}; please report this")]
    WorkerPanicked {
        /// The sample or batch in its hands.
        what: String,
        /// The panic's message.
        message: String,
    },
}

impl Error {
    /// An [`Error::Io`] from the path and what the system said.
    pub(crate) fn io(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// An [`Error::Layout`] from anything that prints.
    pub(crate) fn layout(container: impl ToString, cause: impl Into<String>) -> Self {
        Self::Layout { container: container.to_string(), cause: cause.into() }
    }
}
