//! Image data sets: from archive to batch.
//!
//! ```text
//! archive → Source (where a sample's bytes are, and its label) → bytes
//!         → decode (RGB8) → transforms (RGB8, still u8) → loader (ordered, bounded in bytes)
//!         → ImageBatch (u8 NCHW + targets) → device: normalize
//! ```
//!
//! The augmentation of sample `i` in epoch `e` is a function of `(seed, e, i)` alone. It does not depend on the number of
//! workers, on their timing, or on earlier samples.

#![forbid(unsafe_code)]
#![deny(clippy::print_stderr, clippy::print_stdout)]

mod batch;
mod cache;
mod dataset;
pub mod decode;
pub mod digits;
mod error;
pub mod imagenet;
pub mod loader;
pub mod meters;
mod quarantine;
pub mod rng;
pub mod sampler;
pub mod shard;
mod simd;
pub mod source;
pub mod transforms;

pub use batch::{ImageBatch, UploadedBatch};
pub use cache::cache_folder;
pub use dataset::{SourceDataset, SourceItem};
pub use decode::{DecodeError, DecodeOptions, Decoded, Limits, OrientationPolicy, decode, probe};
pub use digits::Digits;
pub use error::{Error, Result};
pub use loader::{BadSamples, ImageLoader, LoaderBuilder, PipelinePreprocess, Preprocess, SampleContext};
pub use quarantine::Quarantine;
pub use rng::SampleRng;
pub use sampler::Order;
pub use source::{Class, Location, OpenOptions, Opened, Source, SourceKind, Split, open};
