//! The one error type of this crate.

use crate::Architecture;

/// Shorthand for a result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The remedy for an unknown name, which may be a path. Names are listed as serde lists those of an enumeration.
fn remedy(name: &str) -> String {
    if name.contains(['/', '\\']) {
        return "an architecture is a name, such as `resnet50`, and not a path".to_string();
    }
    let names: Vec<String> = Architecture::ALL.iter().map(|architecture| format!("`{architecture}`")).collect();
    format!("expected one of {}", names.join(", "))
}

/// What can go wrong with networks. Messages name the cause and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No architecture of that name.
    #[error("unknown architecture `{name}`, {}", remedy(name))]
    UnknownArchitecture {
        /// The unknown name.
        name: String,
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
    /// A network has no stage of that name.
    #[error("there is no stage `{stage}`; there are {}", stages.join(", "))]
    UnknownStage {
        /// The requested stage.
        stage: String,
        /// The stages that could be meant.
        stages: Vec<String>,
    },
    /// A network could not be recorded as a graph.
    #[error("this network cannot be recorded as a graph: {0}")]
    Graph(String),
    /// A network could not be quantized, or a quantized network is invalid.
    #[error("the quantized network: {0}")]
    Quantized(String),
}
