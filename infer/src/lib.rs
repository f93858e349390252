//! Inference from a model card and its weights: the library behind the `infer` binary.
//!
//! ```text
//! --weights → hub::open → Opened (weights, card) ─┬→ Model (network on a device)
//!                                                 └→ Preprocessor (as the card specifies)
//! IMAGE…    → inputs::expand → stream::batches (decoded on threads, bounded, in order) → Model::probabilities
//! IMAGE…    → Explainer → heat → picture; features → vectors, neighbors
//! network   → models::Graph (recorded) ─┬→ onnx
//!                                       └→ diagram (SVG)
//! --data  → datasets::open → Views (the protocol's crops) → evaluation::evaluate → rows → report
//! ```
//!
//! [`Error`] names the thing, the cause and the remedy.

#![forbid(unsafe_code)]
#![deny(clippy::print_stderr, clippy::print_stdout)]

pub mod diagram;
mod error;
pub mod evaluation;
pub mod explain;
pub mod features;
pub mod inputs;
pub mod labels;
pub mod model;
pub mod onnx;
pub mod picture;
pub mod protocol;
pub mod quantize;
pub mod stream;

pub use error::{Error, Result};
pub use inputs::Input;
pub use model::{Model, Prediction};
