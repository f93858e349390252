//! A model card and its weights made into predictions: what the commands of the `infer` binary stand on.
//!
//! ```text
//! --weights → zoo::weights::open → Opened (weights, card) ─┬→ Model (network on a device)
//!                                                          └→ CardPreprocess (as the card says, never guessed)
//! IMAGE…    → inputs::expand → stream::batches (decoded on threads, bounded, in order) → Model::probabilities
//! IMAGE…    → Explainer → heat → picture; features → vectors, neighbours
//! network   → models::Graph (recorded) ─┬→ onnx
//!                                       └→ diagram (SVG)
//! --data  → datasets::open → Views (the protocol's crops) → evaluation::evaluate → rows → report
//! ```
//!
//! This crate is the inside of a program, so errors are `anyhow` chains: each names the file, the cause and the way
//! out, and is printed as one line.

#![forbid(unsafe_code)]

pub mod diagram;
pub mod evaluation;
pub mod explain;
pub mod features;
pub mod inputs;
pub mod labels;
pub mod model;
pub mod onnx;
pub mod picture;
pub mod protocol;
pub mod stream;

pub use inputs::Input;
pub use model::{Model, Prediction};
