//! Data sets of images, and loaders for training loops.

use std::{fmt, sync::Arc};

use burn::data::dataloader::DataLoader;
use datasets::{
    DecodeOptions, ImageBatch, ImageLoader, OpenOptions, PipelinePreprocess, Source, Split, open,
    transforms::{EvalTransform, Pipeline, batch::BatchTransforms},
};

use crate::error::Result;

/// Labeled images, and how batches are made of them.
///
/// [`loader`](Self::loader) returns an [`ImageLoader`], which is a `DataLoader<ImageBatch>` of Burn: it feeds a training
/// loop or Burn's Learner. What happens to an image depends on the seed, the epoch and the index of the image alone, not
/// on the number of threads.
///
/// ```
/// use burn::{data::dataloader::DataLoader, tensor::Device};
/// use hearth::{ImageDataset, datasets::Split};
///
/// let loader = ImageDataset::open("digits", Split::Train)?.augment(32).batch_size(64).shuffle(1).loader()?;
/// for batch in loader.iter().take(2) {
///     let images = batch?.normalize([0.5; 3], [0.5; 3], &Device::flex());
///     assert_eq!(images.dims(), [64, 3, 32, 32]);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ImageDataset {
    source: Arc<dyn Source>,
    pipeline: Pipeline,
    mix: BatchTransforms,
    batch_size: usize,
    seed: u64,
    shuffle: bool,
    drop_last: bool,
    workers: Option<usize>,
    decoding: DecodeOptions,
}

impl fmt::Debug for ImageDataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pipeline, batch_size, seed, shuffle, .. } = self;
        f.debug_struct("ImageDataset")
            .field("images", &self.len())
            .field("pipeline", pipeline)
            .field("batch_size", batch_size)
            .field("seed", seed)
            .field("shuffle", shuffle)
            .finish_non_exhaustive()
    }
}

impl ImageDataset {
    /// Opens a split of a data set: a folder with one folder per class, ImageNet's archives, shards, a table, a pattern,
    /// or `digits`, which is compiled in.
    ///
    /// # Errors
    /// Fails if there is no such data set or split, or if it cannot be read.
    pub fn open(spec: &str, split: Split) -> Result<Self> {
        Self::open_with(spec, &OpenOptions::split(split))
    }

    /// Opens a data set with options, for instance with a fraction of the training images as the validation split.
    ///
    /// # Errors
    /// Fails if there is no such data set or split, or if it cannot be read.
    pub fn open_with(spec: &str, options: &OpenOptions) -> Result<Self> {
        Ok(Self::from_source(open(spec, options)?.source))
    }

    /// Creates a data set from a source of encoded images.
    pub fn from_source(source: Arc<dyn Source>) -> Self {
        Self {
            source,
            pipeline: eval(224),
            mix: BatchTransforms::default(),
            batch_size: 32,
            seed: 0,
            shuffle: false,
            drop_last: false,
            workers: None,
            decoding: DecodeOptions::default(),
        }
    }

    /// Returns the number of images.
    pub fn len(&self) -> usize {
        self.source.len()
    }

    /// Returns whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the class names, in the order of the labels.
    pub fn classes(&self) -> Vec<String> {
        self.source.classes().iter().map(|class| class.name.clone()).collect()
    }

    /// Returns the source of the encoded images.
    pub fn source(&self) -> &Arc<dyn Source> {
        &self.source
    }

    /// Resizes the shorter side to `size` pixels and crops the center. This is the default, with 224 pixels.
    pub fn resize(self, size: u32) -> Self {
        self.pipeline(eval(size))
    }

    /// Crops a random part, resizes it to `size` pixels and flips half of the images, as torchvision's recipes do.
    pub fn augment(self, size: u32) -> Self {
        self.pipeline(Pipeline::train(size))
    }

    /// Sets the transforms.
    pub fn pipeline(mut self, pipeline: Pipeline) -> Self {
        self.pipeline = pipeline;
        self
    }

    /// Sets the transforms of batches: Mixup and CutMix.
    pub fn mix(mut self, mix: BatchTransforms) -> Self {
        self.mix = mix;
        self
    }

    /// Sets the number of images of a batch; 32 by default.
    pub fn batch_size(mut self, batch_size: usize) -> Self {
        self.batch_size = batch_size;
        self
    }

    /// Shuffles the images anew in each epoch, as `seed` determines; augmentation depends on `seed` too.
    pub fn shuffle(mut self, seed: u64) -> Self {
        (self.shuffle, self.seed) = (true, seed);
        self
    }

    /// Leaves out a last batch with fewer images.
    pub fn drop_last(mut self) -> Self {
        self.drop_last = true;
        self
    }

    /// Sets the number of threads that decode and transform; by default the number of cores.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Sets how images are decoded: whether the orientation of their metadata is applied (the default), and limits.
    pub fn decoding(mut self, options: DecodeOptions) -> Self {
        self.decoding = options;
        self
    }

    /// Returns the loader. Each of its iterators yields the next epoch.
    ///
    /// # Errors
    /// Fails if the batch size is 0 or exceeds the data, or if the images have no common size after the transforms.
    pub fn loader(&self) -> Result<ImageLoader> {
        let preprocess = PipelinePreprocess::new(self.pipeline.clone(), self.decoding.clone())?;
        let mut builder = ImageLoader::builder(self.source.clone(), Arc::new(preprocess))
            .batch_size(self.batch_size)
            .seed(self.seed)
            .drop_last(self.drop_last)
            .mix(self.mix.clone());
        if self.shuffle {
            builder = builder.shuffle();
        }
        if let Some(workers) = self.workers {
            builder = builder.workers(workers);
        }
        Ok(builder.build()?)
    }

    /// Returns the loader as Burn's Learner accepts it.
    ///
    /// # Errors
    /// Fails like [`loader`](Self::loader).
    pub fn data_loader(&self) -> Result<Arc<dyn DataLoader<ImageBatch>>> {
        Ok(Arc::new(self.loader()?))
    }
}

fn eval(size: u32) -> Pipeline {
    let (rule, interpolation) = (Default::default(), Default::default());
    Pipeline::eval(EvalTransform { resize: size, rule, crop: size, interpolation, antialias: true })
}
