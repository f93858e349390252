//! The one error type of this crate.

use crate::Architecture;

/// Shorthand for a result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The remedy for an unknown name, which may be a path.
fn meant(name: &str, nearest: &str) -> String {
    match name.contains(['/', '\\']) {
        true => "an architecture is a name, such as 'resnet50', and not a path".to_string(),
        false => format!("did you mean '{nearest}'?"),
    }
}

/// What can go wrong with networks. Messages name the cause and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No architecture of that name.
    #[error("no architecture is called '{name}'; {}", meant(name, nearest))]
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
}
