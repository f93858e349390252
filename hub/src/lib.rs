//! Weights of networks: files, published weights and their downloads, and the model card that specifies how an image
//! becomes a network's input.
//!
//! `models` has the networks and does no I/O; `datasets` decodes and transforms images and knows no network. This crate
//! connects them.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use hub::{Card, LoadOptions, weights};
//! use models::{Architecture, ImageClassifier, NetworkConfig};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("weights.safetensors");
//! let device = Device::flex();
//! let network = NetworkConfig::new(Architecture::ResNet20).init(&device);
//! weights::save(&network, &Card::of(Architecture::ResNet20, 10, "an example"), &path)?;
//!
//! // A path, a run folder, or the name of published weights, such as `resnet50`.
//! let opened = hub::open(&path.to_string_lossy(), &LoadOptions::default(), &device)?;
//! let logits = opened.network(false, &device)?.forward(Tensor::zeros([1, 3, 32, 32], &device));
//! assert_eq!(logits.dims(), [1, opened.card.classes.len()]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]
#![deny(clippy::print_stderr, clippy::print_stdout)]

mod card;
mod error;
mod files;
mod open;
mod overrides;
pub mod preprocess;
mod published;
pub mod weights;

pub use card::{Card, ChannelOrder, IMAGENET_MEAN, IMAGENET_STD, Interpolation, Preprocess, Resize, imagenet_classes};
pub use error::{Error, Result};
pub use open::{LoadOptions, Opened, RUN_WEIGHTS, open, open_with_progress, parse_architecture};
pub use overrides::{Activation, PreprocessOverrides};
pub use preprocess::Preprocessor;
pub use published::{Checksum, Hub, Progress, Published, Stored, find, identify, published};
pub use weights::{Strictness, Weights};
