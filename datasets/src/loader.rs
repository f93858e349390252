//! The loader: from a source to batches. Order and pixels depend on the seed alone.
//!
//! Workers process samples in the order of the epoch and write each into its slot of a batch; the consumer receives
//! finished batches in order. Batches and their order do not depend on the number of workers. Data in flight is bounded
//! in bytes ([`LoaderBuilder::memory_bytes`]).
//!
//! # Failures
//! Burn's iterators yield results. An unreadable sample is handled by the [`BadSamples`] policy. Under every policy, a
//! worker panic or a batch that cannot be built is yielded as an error once, in place of the batch, after which the
//! iterator ends. No failure ends an epoch without an error.
//!
//! Dropping an iterator stops its workers and waits until each has finished its current sample.

mod batches;
mod policy;
#[cfg(test)]
pub(crate) mod testing;

use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use burn::{
    data::dataloader::{DataLoader, DataLoaderIterator},
    tensor::Device,
};

pub use self::{
    batches::Batches,
    policy::{BadSample, BadSamples, Incidents},
};
use crate::{
    DecodeError, DecodeOptions, Decoded, Error, ImageBatch, Result, SampleRng, Source,
    meters::{MeterReading, Meters, Stage, Stopwatch},
    sampler::{Order, Sampler, SamplerOptions},
    transforms::{Pipeline, batch::BatchTransforms},
};

/// The inputs of a sample's random choices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleContext {
    /// The loader's seed, or one derived from it if an epoch repeats the sample.
    pub seed: u64,
    /// The epoch, from 0.
    pub epoch: u64,
    /// The sample's index in the source.
    pub index: u64,
}

/// The preprocessing of a loader: decodes encoded bytes and transforms the pixels to the batch's size.
pub trait Preprocess: Send + Sync {
    /// Height and width of every image that [`process`](Preprocess::process) returns.
    fn output_size(&self) -> [usize; 2];

    /// Decodes and transforms one sample. The result is a function of the arguments alone.
    ///
    /// Implementations charge their time to the stages by [`Stopwatch::lap`]; what they leave is charged to
    /// [`Stage::Transform`].
    ///
    /// # Errors
    /// Any [`DecodeError`]; the loader adds the sample's location.
    fn process(&self, bytes: &[u8], context: SampleContext, watch: &mut Stopwatch) -> Result<Decoded, DecodeError>;
}

/// A [`Pipeline`] as the loader's preprocessing, decoding no more than it needs.
#[derive(Debug, Clone)]
pub struct PipelinePreprocess {
    pipeline: Pipeline,
    options: DecodeOptions,
    output_size: [usize; 2],
}

impl PipelinePreprocess {
    /// Creates the preprocessing of a pipeline.
    ///
    /// # Errors
    /// [`Error::InvalidLoader`] for a pipeline whose images differ in size.
    pub fn new(pipeline: Pipeline, options: DecodeOptions) -> Result<Self> {
        let output_size = pipeline.output_size().ok_or_else(|| Error::InvalidLoader {
            what: "the transforms leave images of different sizes, which make no batch; add a crop".into(),
        })?;
        Ok(Self { pipeline, options, output_size })
    }
}

impl Preprocess for PipelinePreprocess {
    fn output_size(&self) -> [usize; 2] {
        self.output_size
    }

    fn process(&self, bytes: &[u8], context: SampleContext, watch: &mut Stopwatch) -> Result<Decoded, DecodeError> {
        let SampleContext { seed, epoch, index } = context;
        let mut rng = SampleRng::new(seed, epoch, index);
        let result = self.pipeline.decode_and_apply_with(bytes, &mut rng, &self.options, || watch.lap(Stage::Decode));
        if result.is_err() {
            watch.lap(Stage::Decode);
        }
        result
    }
}

/// The largest number of threads of a loader.
const MOST_WORKERS: usize = 1024;

/// Settings of an [`ImageLoader`]; see [`ImageLoader::builder`].
#[derive(Clone)]
pub struct LoaderBuilder {
    source: Arc<dyn Source>,
    preprocess: Arc<dyn Preprocess>,
    mix: BatchTransforms,
    batch_size: usize,
    workers: usize,
    memory_bytes: usize,
    bad_samples: BadSamples,
    allow_unlabeled: bool,
    sampler: SamplerOptions,
    /// The part of each batch to load: rank and number of ranks.
    part: (usize, usize),
}

impl LoaderBuilder {
    /// Sets the images per batch. Default: 32.
    pub fn batch_size(mut self, batch_size: usize) -> Self {
        self.batch_size = batch_size;
        self
    }

    /// Sets the number of threads that read, decode and transform. Default: one per core. With 0, the consumer does the
    /// work when it requests a batch. At most 1024.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Sets the largest number of bytes of pixels in unfinished and waiting batches. Default: 512 MiB. One batch is
    /// always allowed. Each worker adds one sample's encoded and decoded bytes.
    pub fn memory_bytes(mut self, memory_bytes: usize) -> Self {
        self.memory_bytes = memory_bytes;
        self
    }

    /// Sets the seed of the order and of all random choices. Default: 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.sampler.seed = seed;
        self
    }

    /// Shuffles fully, differently in each epoch. Short for [`order`](LoaderBuilder::order)`(Order::Shuffled)`.
    pub fn shuffle(self) -> Self {
        self.order(Order::Shuffled)
    }

    /// Sets the order of an epoch. Default: the source's.
    pub fn order(mut self, order: Order) -> Self {
        self.sampler.order = order;
        self
    }

    /// Sets whether an incomplete last batch is dropped. Default: `false`.
    pub fn drop_last(mut self, drop_last: bool) -> Self {
        self.sampler.drop_last = drop_last;
        self
    }

    /// Sets repeated augmentation: see [`SamplerOptions::repeats`]. Default: 1.
    pub fn repeats(mut self, repeats: usize) -> Self {
        self.sampler.repeats = repeats;
        self
    }

    /// Sets how far classes are balanced, from 0 to 1: see [`SamplerOptions::balance`]. Default: 0.
    pub fn balance(mut self, balance: f64) -> Self {
        self.sampler.balance = balance;
        self
    }

    /// Sets class-balanced sampling: a [`balance`](LoaderBuilder::balance) of 1. Default: `false`.
    pub fn balanced(self, balanced: bool) -> Self {
        self.balance(if balanced { 1.0 } else { 0.0 })
    }

    /// Loads shard `rank` of `world` equal shards of each epoch; see [`SamplerOptions::drop_last`] for the remainder.
    /// Default: the whole epoch.
    pub fn share(mut self, rank: usize, world: usize) -> Self {
        (self.sampler.rank, self.sampler.world) = (rank, world);
        self
    }

    /// Loads part `rank` of `ranks` of each batch: the batches equal those of a single loader, and their parts are
    /// consecutive and nearly equal. A batch whose part is empty is yielded too, so that every rank sees the same
    /// number of batches. Default: whole batches.
    pub fn part_of_batches(mut self, rank: usize, ranks: usize) -> Self {
        self.part = (rank, ranks);
        self
    }

    /// Sets the policy for samples that are damaged or cannot be read or decoded. Default: [`BadSamples::Warn`].
    pub fn bad_samples(mut self, policy: BadSamples) -> Self {
        self.bad_samples = policy;
        self
    }

    /// Sets whether samples without a label are accepted (their batches have no labels). Default: `false`.
    pub fn allow_unlabeled(mut self, allow: bool) -> Self {
        self.allow_unlabeled = allow;
        self
    }

    /// Sets how batches are mixed: Mixup, CutMix. The mixing is drawn from the seed here and applied by
    /// [`ImageBatch::normalize`] and [`ImageBatch::soft_targets`] on the device. Default: none.
    pub fn mix(mut self, mix: BatchTransforms) -> Self {
        self.mix = mix;
        self
    }

    /// Builds the loader.
    ///
    /// # Errors
    /// [`Error::InvalidLoader`] where settings contradict each other or the source.
    pub fn build(self) -> Result<ImageLoader> {
        let batch = self.batch_size.max(1).saturating_mul(self.sampler.world);
        let sampler = Sampler::new(&self.source, SamplerOptions { batch, ..self.sampler })?;
        let invalid = |what: String| Err(Error::InvalidLoader { what });
        if self.workers > MOST_WORKERS {
            return invalid(format!("{} workers; the most are {MOST_WORKERS}", self.workers));
        }
        if self.batch_size == 0 {
            return invalid("a batch of 0 images".into());
        }
        let (rank, ranks) = self.part;
        if rank >= ranks {
            return invalid(format!("part {rank} of {ranks}: parts count from 0 and end below their number"));
        }
        if self.batch_size < ranks {
            return invalid(format!("{ranks} processes cannot share batches of {} images", self.batch_size));
        }
        if self.sampler.drop_last && sampler.len() < self.batch_size {
            return invalid(format!(
                "an epoch of {} samples holds no full batch of {}; take a smaller batch or keep the last one",
                sampler.len(),
                self.batch_size
            ));
        }
        if !self.allow_unlabeled
            && let Some(index) = (0..self.source.len()).find(|&index| self.source.label(index).is_none())
        {
            return invalid(format!("{} has no label", self.source.location(index)));
        }
        let range = 0..sampler.len();
        let context =
            Context { settings: self, sampler, incidents: Incidents::default(), damaged: Incidents::default() };
        Ok(ImageLoader { context: Arc::new(context), range, cursor: Arc::default(), meters: Arc::default() })
    }
}

/// The state shared by all iterators and workers of a loader.
struct Context {
    settings: LoaderBuilder,
    sampler: Sampler,
    incidents: Incidents,
    damaged: Incidents,
}

/// The position at which the next iterator starts.
#[derive(Debug, Clone, Copy, Default)]
struct Cursor {
    epoch: u64,
    batch: usize,
}

/// Loads batches of images; Burn's [`DataLoader`].
///
/// Each call of [`iter`](DataLoader::iter) or [`batches`](ImageLoader::batches) is an epoch: the first is epoch 0, or
/// the one given to [`start_at`](ImageLoader::start_at).
///
/// Batches stay on the host until [`ImageBatch::normalize`] names a device, so the copy that
/// [`to_device`](DataLoader::to_device) returns is the same loader: it shares the epoch counter, the meters and the
/// list of bad samples. A [`slice`](DataLoader::slice) takes a range of positions of every epoch and counts its epochs
/// by itself.
#[derive(Clone)]
pub struct ImageLoader {
    context: Arc<Context>,
    /// The positions of an epoch that are loaded.
    range: Range<usize>,
    cursor: Arc<Mutex<Cursor>>,
    /// The latest epoch's meters.
    meters: Arc<Mutex<Arc<Meters>>>,
}

impl ImageLoader {
    /// Returns a builder with default settings.
    pub fn builder(source: Arc<dyn Source>, preprocess: Arc<dyn Preprocess>) -> LoaderBuilder {
        LoaderBuilder {
            source,
            preprocess,
            mix: BatchTransforms::default(),
            batch_size: 32,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: 512 << 20,
            bad_samples: BadSamples::default(),
            allow_unlabeled: false,
            sampler: SamplerOptions::default(),
            part: (0, 1),
        }
    }

    /// The number of batches per epoch.
    pub fn num_batches(&self) -> usize {
        self.positions().div_ceil(self.batch_size())
    }

    /// The images per batch; the last batch of an epoch may have fewer.
    pub fn batch_size(&self) -> usize {
        self.context.settings.batch_size
    }

    /// The source.
    pub fn source(&self) -> &Arc<dyn Source> {
        &self.context.settings.source
    }

    /// Makes the next iterator start at batch `batch` of epoch `epoch`, both from 0, in O(1): nothing before it is
    /// read. A batch one past the end of an epoch means the first of the next.
    ///
    /// # Errors
    /// [`Error::InvalidLoader`] for a batch that no epoch has.
    pub fn start_at(&self, epoch: u64, batch: usize) -> Result<()> {
        let batches = self.num_batches();
        if batch > batches {
            return Err(Error::InvalidLoader {
                what: format!(
                    "cannot start at batch {batch} of an epoch of {batches}; did the batch size or the data change?"
                ),
            });
        }
        let (epoch, batch) = if batch == batches { (epoch + 1, 0) } else { (epoch, batch) };
        *lock(&self.cursor) = Cursor { epoch, batch };
        Ok(())
    }

    /// Returns the epoch, from 0, and the batch at which the next iterator starts.
    pub fn next_start(&self) -> (u64, usize) {
        let cursor = lock(&self.cursor);
        (cursor.epoch, cursor.batch)
    }

    /// Returns the next epoch's batches, like [`iter`](DataLoader::iter) with this crate's error type.
    pub fn batches(&self) -> Batches {
        let start = {
            let mut cursor = lock(&self.cursor);
            let next = Cursor { epoch: cursor.epoch + 1, batch: 0 };
            std::mem::replace(&mut *cursor, next)
        };
        let meters = Arc::new(Meters::default());
        *lock(&self.meters) = meters.clone();
        Batches::new(self.context.clone(), self.range.start..self.range.start + self.positions(), start, meters)
    }

    /// The meters of the latest epoch, which may still run.
    pub fn meters(&self) -> MeterReading {
        lock(&self.meters).read()
    }

    /// Returns the samples that could not be read or decoded so far, without duplicates, by index.
    pub fn bad_samples(&self) -> Vec<BadSample> {
        self.context.incidents.list()
    }

    /// Returns the damaged samples that were decoded nevertheless so far, without duplicates, by index.
    pub fn damaged_samples(&self) -> Vec<BadSample> {
        self.context.damaged.list()
    }

    /// Positions in the batches of an epoch.
    fn positions(&self) -> usize {
        let len = self.range.len();
        if self.context.settings.sampler.drop_last { len - len % self.batch_size() } else { len }
    }
}

impl DataLoader<ImageBatch> for ImageLoader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<ImageBatch> + 'a> {
        Box::new(batches::BurnBatches(self.batches()))
    }

    fn num_items(&self) -> usize {
        self.positions()
    }

    fn to_device(&self, _device: &Device) -> Arc<dyn DataLoader<ImageBatch>> {
        Arc::new(self.clone())
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<ImageBatch>> {
        let end = (self.range.start + end).min(self.range.end);
        let range = (self.range.start + start).min(end)..end;
        let cursor = Arc::new(Mutex::new(*lock(&self.cursor)));
        Arc::new(Self { range, cursor, ..self.clone() })
    }
}

impl fmt::Debug for ImageLoader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageLoader")
            .field("range", &self.range)
            .field("batch_size", &self.batch_size())
            .field("sampler", &self.context.settings.sampler)
            .finish_non_exhaustive()
    }
}

/// Locks a mutex, ignoring poisoning: its data is consistent between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
