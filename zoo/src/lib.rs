//! Loading networks by name, and preprocessing images as a model card specifies.
//!
//! `models` knows nothing of image files and `datasets` nothing of networks; this crate connects them for `train` and
//! `infer`.

#![forbid(unsafe_code)]

pub mod preprocess;
pub mod weights;

pub use preprocess::CardPreprocess;
pub use weights::{LoadOptions, Opened};
