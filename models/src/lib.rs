//! The classic image classifiers as Burn modules: AlexNet, VGG, GoogLeNet, Inception v3, ResNet and their variants.
//!
//! The crate `hub` reads and writes weights, downloads published ones, and prepares images.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use models::{Architecture, ImageClassifier, NetworkConfig};
//!
//! let device = Device::flex();
//! let network = NetworkConfig::new(Architecture::ResNet20).init(&device);
//! let logits = network.forward(Tensor::zeros([1, 3, 32, 32], &device));
//! assert_eq!(logits.dims(), [1, 10]);
//! ```

#![forbid(unsafe_code)]

pub mod alexnet;
mod blocks;
pub mod cifar_resnet;
mod classifier;
mod error;
mod execution;
mod feature;
mod freeze;
pub mod googlenet;
pub mod googlenet_2014;
pub mod graph;
pub mod hook;
pub mod inception_v3;
pub mod nn;
mod ops;
mod pass;
pub mod quantized;
mod recompute;
mod registry;
pub mod resnet;
mod summary;
pub mod vgg;

pub use blocks::{ConvNorm, ConvNormConfig, ConvNormMut, Layer};
pub use classifier::{Entry, ImageClassifier, Output};
pub use error::{Error, Result};
pub use execution::Execution;
pub use feature::{FeatureExtractor, FeatureInfo};
pub use graph::Graph;
pub use pass::Pass;
pub use quantized::QuantizedNetwork;
pub use registry::{Architecture, AuxClassifier, Network, NetworkConfig, Variant};
pub use summary::{Stage, Summary};
