//! Classic image classifiers (AlexNet, VGG, GoogLeNet, Inception, ResNet) on [Burn](burn): use, train and embed them.
//!
//! - [`Classifier`]: images to classes, probabilities and feature vectors
//! - [`Trainer`]: a recipe to a run folder
//! - [`ImageDataset`]: a data set to batches, as Burn's `DataLoader`
//! - [`models`]: the networks as Burn modules; [`hub`]: weights and model cards; [`datasets`]: sources, decoding and
//!   transforms; [`kernels`]: the CPU kernels
//!
//! ```
//! use hearth::{Classifier, Trainer, models::Architecture};
//!
//! // Train ResNet-20 on the digits that are compiled in, for two epochs.
//! let artifacts = tempfile::tempdir()?;
//! let run = Trainer::pretrain(Architecture::ResNet20, "digits").epochs(2).artifacts(artifacts.path()).run()?;
//! assert!(run.best().unwrap().top1 > 20.0);
//!
//! // Classify an image with it. `Classifier::pretrained("resnet50")` downloads published weights instead.
//! let classifier = Classifier::open(run.folder())?;
//! let classes = classifier.classify(&image::RgbImage::new(16, 16))?;
//! assert!(classes[0].probability >= classes[1].probability);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The device is the CPU unless a [`DeviceSpec`] names another. GPU backends are cargo features (`cuda`, `rocm`, `metal`,
//! `vulkan`, `wgpu`), and so are `serve`, `parquet` and `remote`.
//!
//! Nothing is printed; warnings go to the program's logger (crate `log`).

#![forbid(unsafe_code)]

mod classifier;
mod dataset;
mod device;
mod error;
mod input;
mod trainer;

pub use classifier::{Classifier, ClassifierBuilder};
pub use dataset::ImageDataset;
pub use device::DeviceSpec;
pub use error::{Error, Result};
pub use infer::Prediction;
pub use input::ImageInput;
pub use report::format::Metrics;
pub use train::{
    EpochRecord, Recipe,
    observer::{EpochReport, StepReport},
    recipe,
};
pub use trainer::{Flow, TrainedRun, Trainer};

pub use datasets;
pub use hub;
pub use image;
pub use kernels;
pub use models;
#[cfg(feature = "serve")]
pub use serve;

/// The Rust examples of the README and the guide, which are compiled and run as documentation tests.
#[cfg(doctest)]
mod examples {
    #[doc = include_str!("../../README.md")]
    mod readme {}

    #[doc = include_str!("../../docs/guide/library.md")]
    mod library {}
}
