//! The error of recipes.

/// A recipe that cannot be read or is not valid. The message names the file or the key, the cause and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Neither a shipped recipe nor a file has the name.
    #[error("{0}")]
    Unknown(String),

    /// A file cannot be read.
    #[error("cannot read the recipe {name}: {cause}")]
    Read {
        /// The file.
        name: String,
        /// The system's error.
        cause: String,
    },

    /// A text is not TOML, or has keys or values that a recipe does not have.
    #[error("{0}")]
    Syntax(String),

    /// A value is out of its range, or contradicts another.
    #[error("{0}")]
    Invalid(String),
}
