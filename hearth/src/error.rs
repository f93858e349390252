//! The error of the facade.

use std::{io, path::PathBuf};

use runtime::exit::chain;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate. Every message names the thing, the cause and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },

    /// Weights that do not exist, cannot be read or do not match their network.
    #[error("cannot open the weights {name}: {cause}")]
    Weights {
        /// The published name, file or run folder.
        name: String,
        /// The cause and the remedy.
        cause: String,
    },

    /// A device that cannot be opened.
    #[error("cannot open the device {device}: {cause}")]
    Device {
        /// The device.
        device: String,
        /// The cause and the remedy.
        cause: String,
    },

    /// An image that cannot be decoded.
    #[error("cannot decode {name}: {cause}")]
    Image {
        /// The file, or the kind of input.
        name: String,
        /// The cause.
        cause: String,
    },

    /// A network that cannot be run.
    #[error("cannot run the network: {cause}")]
    Network {
        /// The cause.
        cause: String,
    },

    /// A data set that cannot be opened or loaded.
    #[error(transparent)]
    Data(#[from] datasets::Error),

    /// A recipe that is not valid.
    #[error("the recipe is not valid: {cause}")]
    Recipe {
        /// The key, the cause and the remedy.
        cause: String,
    },

    /// A training that could not start.
    #[error("cannot start the training: {cause}")]
    Start {
        /// The cause and the remedy.
        cause: String,
    },

    /// A training that failed after its start.
    #[error("the training failed: {cause}; resume the run in {} from its last checkpoint", folder.display())]
    Training {
        /// The run folder.
        folder: PathBuf,
        /// The cause.
        cause: String,
    },
}

/// Names of the command line in messages of the crates below, and what they are called here.
const OPTIONS: [(&str, &str); 9] = [
    ("--weights ", ""),
    ("--weights-key", "`weights_key`"),
    ("--activation", "`activation`"),
    ("--resize", "`preprocess.resize`"),
    ("--crop", "`preprocess.crop`"),
    ("--arch", "`architecture`"),
    ("--card", "`card`"),
    ("--offline", "`offline`"),
    ("--cache-dir", "`cache_dir`"),
];

/// Returns an error and its causes as one line.
pub(crate) fn cause(error: impl std::error::Error + 'static) -> String {
    with_options(&chain(&error))
}

/// Replaces flags by what they are called here.
fn with_options(text: &str) -> String {
    OPTIONS.iter().fold(text.to_string(), |text, (flag, option)| text.replace(flag, option))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_options_and_no_flags() {
        assert_eq!(with_options("downloads are off (--offline)"), "downloads are off (`offline`)");
        assert_eq!(with_options("did you mean --weights runs/1?"), "did you mean runs/1?");
        assert_eq!(with_options("give --weights-key ema, --resize"), "give `weights_key` ema, `preprocess.resize`");
    }
}
