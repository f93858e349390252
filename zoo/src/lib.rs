//! Where networks and images meet: weights by name, and pixels as a model card wants them.
//!
//! `models` knows no image files and `datasets` no network; `train` and `infer` need both at once, and find it here.

#![forbid(unsafe_code)]

pub mod preprocess;
pub mod weights;

pub use preprocess::CardPreprocess;
pub use weights::{LoadOptions, Opened};
