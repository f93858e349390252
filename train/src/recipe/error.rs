//! The error of recipes.

/// A recipe that cannot be read or is not valid. The message names the file or the key, the cause and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

impl Error {
    /// Takes over a chain of causes.
    pub(super) fn new(chain: anyhow::Error) -> Self {
        Self(format!("{chain:#}"))
    }
}
