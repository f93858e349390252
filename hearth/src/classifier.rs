//! Classifying images.

use std::{
    path::{Path, PathBuf},
    thread,
};

use burn::tensor::Device;
use datasets::OrientationPolicy;
use hub::{Activation, Card, LoadOptions, PreprocessOverrides};
use image::RgbImage;
use infer::{Model, Prediction};
use models::{Architecture, ImageClassifier, Network};

use crate::{
    DeviceSpec,
    error::{Error, Result, cause},
    input::ImageInput,
};

/// The number of predictions of [`Classifier::classify`], unless [`ClassifierBuilder::top`] changes it.
const TOP: usize = 5;

/// Images of a forward pass in functions for several images.
const BATCH: usize = 16;

/// An image classifier: a network on a device, with the class names and the preprocessing of its model card.
///
/// ```no_run
/// let classifier = hearth::Classifier::pretrained("resnet50")?;
/// for class in classifier.classify("dog.jpg")? {
///     println!("{:6.2} %  {}", 100.0 * class.probability, class.class);
/// }
/// # Ok::<(), hearth::Error>(())
/// ```
#[derive(Debug)]
pub struct Classifier {
    model: Model,
    top: usize,
}

/// The options of a [`Classifier`]: the device, and where weights are looked for.
///
/// ```no_run
/// use hearth::Classifier;
///
/// let classifier = Classifier::builder().device("cuda:0".parse()?).offline(true).pretrained("resnet50")?;
/// # Ok::<(), hearth::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct ClassifierBuilder {
    device: DeviceSpec,
    load: LoadOptions,
    top: Option<usize>,
    keep_batch_norm: bool,
    orientation: Option<OrientationPolicy>,
    max_pixels: Option<u64>,
}

impl ClassifierBuilder {
    /// Selects the device; by default the CPU.
    pub fn device(mut self, device: DeviceSpec) -> Self {
        self.device = device;
        self
    }

    /// Names the architecture of a weight file without a model card, which then has the default preprocessing of the
    /// architecture.
    pub fn architecture(mut self, architecture: Architecture) -> Self {
        self.load.architecture = Some(architecture);
        self
    }

    /// Selects one of several networks of a weight file by its key, such as `state_dict_ema` or `encoder_q`.
    pub fn weights_key(mut self, key: impl Into<String>) -> Self {
        self.load.weights_key = Some(key.into());
        self
    }

    /// Changes the preprocessing of the model card, or of the architecture for a weight file without one.
    pub fn preprocess(mut self, overrides: PreprocessOverrides) -> Self {
        self.load.preprocess = overrides;
        self
    }

    /// Sets how outputs become probabilities. A network with one output needs [`Activation::Sigmoid`], and then has two
    /// classes.
    pub fn activation(mut self, activation: Activation) -> Self {
        self.load.activation = activation;
        self
    }

    /// Sets the folder in which downloaded weights are kept; by default `$XDG_CACHE_HOME/hearth/weights` or
    /// `~/.cache/hearth/weights`.
    pub fn cache_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.load.cache_dir = Some(folder.into());
        self
    }

    /// Never downloads if `offline`: published weights must be in the cache folder.
    pub fn offline(mut self, offline: bool) -> Self {
        self.load.offline = offline;
        self
    }

    /// Sets the number of classes that [`Classifier::classify`] returns; 5 by default.
    pub fn top(mut self, top: usize) -> Self {
        self.top = Some(top);
        self
    }

    /// Keeps batch normalization as layers of its own, in place of folding it into the convolutions.
    pub fn keep_batch_norm(mut self) -> Self {
        self.keep_batch_norm = true;
        self
    }

    /// Sets whether the orientation in an image's metadata is applied; by default the model card's choice, which is to
    /// apply it if the card has none.
    pub fn orientation(mut self, policy: OrientationPolicy) -> Self {
        self.orientation = Some(policy);
        self
    }

    /// Sets the largest number of pixels of an image, before it is resized; 178,956,970 by default.
    pub fn max_pixels(mut self, max_pixels: u64) -> Self {
        self.max_pixels = Some(max_pixels);
        self
    }

    /// Opens published weights, which are downloaded once.
    ///
    /// # Errors
    /// Fails if the name is unknown, if the weights cannot be downloaded, or if the device cannot be opened.
    pub fn pretrained(self, name: &str) -> Result<Classifier> {
        check_published(name)?;
        self.load(name)
    }

    /// Opens a run folder or a weight file.
    ///
    /// # Errors
    /// Fails if the file cannot be read, if it has no model card and no architecture was named, or if the device cannot
    /// be opened.
    pub fn open(self, path: impl AsRef<Path>) -> Result<Classifier> {
        let path = path.as_ref();
        check_path(path)?;
        self.load(&path.to_string_lossy())
    }

    fn load(self, name: &str) -> Result<Classifier> {
        let device = self.device.open()?;
        let failed = |error| Error::Weights { name: name.into(), cause: cause(error) };
        let mut opened = open_weights(name, &self.load, &device)?;
        let preprocess = &mut opened.card.preprocess;
        preprocess.orientation = self.orientation.or(preprocess.orientation);
        let model = Model::load(&opened, self.keep_batch_norm, &device).map_err(failed)?;
        let model = model.with_max_pixels(self.max_pixels);
        Ok(Classifier::of(model, self.top.unwrap_or(TOP)))
    }
}

/// Opens weights; an architecture is only for a file without a card, and must not contradict one.
fn open_weights(name: &str, load: &LoadOptions, device: &Device) -> Result<hub::Opened> {
    let failed = |cause| Error::Weights { name: name.into(), cause };
    let open = |load: &LoadOptions| hub::open(name, load, device);
    let Some(asked) = load.architecture else { return open(load).map_err(|error| failed(cause(error))) };
    match open(&LoadOptions { architecture: None, ..load.clone() }) {
        Ok(opened) if opened.card.architecture != asked => Err(failed(format!(
            "they are for {}, and the architecture was set to {asked}; leave it out",
            opened.card.architecture
        ))),
        Ok(opened) => Ok(opened),
        Err(_) => open(load).map_err(|error| failed(cause(error))),
    }
}

/// Checks that published weights have this name.
pub(crate) fn check_published(name: &str) -> Result<()> {
    let failed = |cause| Error::Weights { name: name.into(), cause };
    hub::find(name).map(|_| ()).map_err(|error| failed(cause(error)))
}

/// Checks that a file, or a run folder with weights, has this path.
pub(crate) fn check_path(path: &Path) -> Result<()> {
    std::fs::metadata(path).map_err(|source| Error::Io { path: path.into(), source })?;
    if path.is_dir() && !path.join(hub::RUN_WEIGHTS).is_file() {
        let cause = format!(
            "it is not a run folder: it has no {}; give the folder of a run with a finished epoch, or a weight file",
            hub::RUN_WEIGHTS
        );
        return Err(Error::Weights { name: path.display().to_string(), cause });
    }
    Ok(())
}

impl Classifier {
    /// Returns the options of a classifier.
    pub fn builder() -> ClassifierBuilder {
        ClassifierBuilder::default()
    }

    /// Opens published weights on the CPU. They are downloaded once; [`published`](crate::hub::published) lists
    /// them.
    ///
    /// # Errors
    /// Fails if the name is unknown, or if the weights cannot be downloaded.
    pub fn pretrained(name: &str) -> Result<Self> {
        Self::builder().pretrained(name)
    }

    /// Opens a run folder or a weight file on the CPU: safetensors, PyTorch's, Burn's or Caffe's.
    ///
    /// # Errors
    /// Fails if the file cannot be read, or if it has no model card; see [`ClassifierBuilder::architecture`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::builder().open(path)
    }

    /// Creates a classifier from a network on `device` and its card.
    ///
    /// # Errors
    /// Fails if the numbers of classes differ, or if the card's preprocessing is not supported.
    pub fn from_network(network: Network, card: Card, device: &Device) -> Result<Self> {
        let (layer, classes) = (network.num_classes(), card.classes.len());
        if layer != classes {
            let cause = format!("its card has {classes} classes, its last layer {layer}; they must be equal");
            return Err(Error::Network { cause });
        }
        let model = Model::new(network, card, device).map_err(|error| Error::Network { cause: cause(error) })?;
        Ok(Self::of(model, TOP))
    }

    fn of(model: Model, top: usize) -> Self {
        Self { model, top }
    }

    /// Returns the model card.
    pub fn card(&self) -> &Card {
        self.model.card()
    }

    /// Returns the class names, in the order of [`probabilities`](Self::probabilities).
    pub fn classes(&self) -> &[String] {
        &self.card().classes
    }

    /// Returns the most probable classes of an image, the most probable first.
    ///
    /// # Errors
    /// Fails if the image cannot be read or decoded, or if the device fails.
    pub fn classify<'a>(&self, image: impl Into<ImageInput<'a>>) -> Result<Vec<Prediction>> {
        Ok(self.classify_batch([image])?.remove(0))
    }

    /// Returns the most probable classes of each image. Images are decoded by several threads.
    ///
    /// # Errors
    /// Fails if an image cannot be read or decoded, or if the device fails.
    pub fn classify_batch<'a, I>(&self, images: I) -> Result<Vec<Vec<Prediction>>>
    where
        I: IntoIterator<Item: Into<ImageInput<'a>>>,
    {
        self.each(images, |model, images| {
            let probabilities = model.probabilities(&model.preprocess().batch(images))?;
            Ok(probabilities.iter().map(|row| model.top(row, self.top)).collect())
        })
    }

    /// Returns the probability of each class of an image.
    ///
    /// # Shapes
    /// - output: `[classes]`
    ///
    /// # Errors
    /// Fails if the image cannot be read or decoded, or if the device fails.
    pub fn probabilities<'a>(&self, image: impl Into<ImageInput<'a>>) -> Result<Vec<f64>> {
        let rows = self.each([image], |model, images| model.probabilities(&model.preprocess().batch(images)))?;
        Ok(rows.into_iter().flatten().collect())
    }

    /// Returns the feature vector of an image: the input of the last linear layer, for search and other models.
    ///
    /// # Shapes
    /// - output: `[features]`
    ///
    /// # Errors
    /// Fails if the image cannot be read or decoded, or if the device fails.
    pub fn embed<'a>(&self, image: impl Into<ImageInput<'a>>) -> Result<Vec<f32>> {
        Ok(self.embed_batch([image])?.remove(0))
    }

    /// Returns the feature vector of each image. Images are decoded by several threads.
    ///
    /// # Shapes
    /// - output: `[images, features]`
    ///
    /// # Errors
    /// Fails if an image cannot be read or decoded, or if the device fails.
    pub fn embed_batch<'a, I>(&self, images: I) -> Result<Vec<Vec<f32>>>
    where
        I: IntoIterator<Item: Into<ImageInput<'a>>>,
    {
        self.each(images, |model, images| model.features(images))
    }

    /// Prepares images and passes them to `run` in batches; one result per image, in order.
    fn each<'a, I, T>(&self, images: I, run: impl Fn(&Model, &[&RgbImage]) -> infer::Result<Vec<T>>) -> Result<Vec<T>>
    where
        I: IntoIterator<Item: Into<ImageInput<'a>>>,
    {
        let images: Vec<ImageInput<'a>> = images.into_iter().map(Into::into).collect();
        let mut results = Vec::with_capacity(images.len());
        for batch in images.chunks(BATCH) {
            let prepared = prepare(batch, self.model.preprocess())?;
            let rows = run(&self.model, &prepared.iter().collect::<Vec<_>>());
            results.extend(rows.map_err(|error| Error::Network { cause: cause(error) })?);
        }
        Ok(results)
    }
}

/// Decodes images, on as many threads as there are cores.
fn prepare(images: &[ImageInput<'_>], preprocess: &hub::Preprocessor) -> Result<Vec<RgbImage>> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(images.len());
    if threads <= 1 {
        return images.iter().map(|image| image.prepare(preprocess)).collect();
    }
    let parts: Vec<Result<Vec<RgbImage>>> = thread::scope(|scope| {
        let part = |images: &'_ [ImageInput<'_>]| images.iter().map(|image| image.prepare(preprocess)).collect();
        let parts: Vec<_> =
            images.chunks(images.len().div_ceil(threads)).map(|images| scope.spawn(move || part(images))).collect();
        parts.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    Ok(parts.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}
