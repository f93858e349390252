//! From a recipe to what a run needs: its data, weights and devices, opened and checked against each other.

use std::{fmt, sync::Arc};

use burn::tensor::Device;
use datasets::BadSamples;
use hub::LoadOptions;
use models::ImageClassifier;
use runtime::{communicator::communicator, progress::Download};

use super::options::Options;
use crate::{
    Error, Result,
    data::{self, DataSet},
    parallel,
    progress::State,
    recipe::{self, Recipe, Transfer},
    transfer,
    warm::Warm,
};

/// A recipe with its data and weights, which have been opened and checked against each other.
#[derive(Clone)]
pub struct Prepared {
    /// The effective recipe.
    pub recipe: Recipe,
    pub(crate) data: DataSet,
    pub(crate) start: Option<Arc<hub::Opened>>,
    pub(crate) device: Device,
    /// All devices of this process, where they are several.
    pub(crate) devices: Option<parallel::Plan>,
    /// What is promised of a run that is resumed.
    pub(crate) resumed: Option<String>,
    /// What is done and decided before the first step of a transfer.
    pub(crate) warm: Warm,
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").field("recipe", &self.recipe).finish_non_exhaustive()
    }
}

/// Opens the weights and data of a recipe.
///
/// # Errors
/// Fails if the recipe is not valid, or if the weights, the data or the device cannot be opened.
pub fn prepare(recipe: Recipe, load: &LoadOptions, options: &Options) -> Result<Prepared> {
    let device = options.device()?;
    let start = match &recipe.transfer {
        Some(transfer) => {
            // A recipe in a file names the network of a file of weights that has no card.
            // It also says how images are prepared.
            let architecture = load.architecture.or(Some(recipe.architecture));
            let load = LoadOptions { architecture, ignore_preprocess: true, ..load.clone() };
            Some(open_weights(transfer, &load, &device, options)?)
        }
        None => None,
    };
    complete(recipe, None, start, device, options)
}

/// Opens the weights and data of a recipe with a `[transfer]` section, and replaces the architecture and the
/// preprocessing of the recipe by those of the weights' model card. Images have the side `size` if it is given.
///
/// # Errors
/// Fails like [`prepare`], and if the recipe has no `[transfer]` section or the card's preprocessing cannot be trained
/// with.
pub fn follow_weights(
    mut recipe: Recipe,
    load: &LoadOptions,
    size: Option<u32>,
    options: &Options,
) -> Result<Prepared> {
    let device = options.device()?;
    let transfer = recipe.transfer.as_ref();
    let transfer = transfer.ok_or_else(|| Error::Settings("the recipe has no [transfer]".into()))?;
    let start = open_weights(transfer, load, &device, options)?;
    recipe.architecture = start.card.architecture;
    recipe.images.follow(&start.card.preprocess)?;
    if let Some(size) = size {
        recipe.images.set_size(size)?;
    }
    complete(recipe, None, Some(start), device, options)
}

/// Checks the recipe and opens its data, or `data` in its place.
pub(super) fn complete(
    mut recipe: Recipe,
    data: Option<&recipe::Data>,
    start: Option<hub::Opened>,
    device: Device,
    options: &Options,
) -> Result<Prepared> {
    recipe.check()?;
    if let Some(dtype) = recipe.network.dtype.half() {
        runtime::dtype::check(options.device_names(), &device, dtype)?;
    }
    if recipe.ranks.sync_bn && recipe.data.bad_samples == BadSamples::Skip {
        let cause =
            "ranks.sync_bn with data.bad_samples = \"skip\" could leave a process without images; use \"substitute\"";
        return Err(Error::Settings(cause.into()));
    }
    let devices = parallel::Plan::new(&options.devices, &device, &recipe, communicator())?;
    let mut data = data::open(data.unwrap_or(&recipe.data), recipe.seed)?;
    data.notes.extend(data.small_images(&recipe));
    let warm = Warm::new(&mut recipe, &data, options.devices.len(), &device);
    Ok(Prepared { recipe, data, start: start.map(Arc::new), device, devices, resumed: None, warm })
}

/// Opens weights, with the progress of a download.
pub(super) fn open_weights(
    transfer: &Transfer,
    load: &LoadOptions,
    device: &Device,
    options: &Options,
) -> Result<hub::Opened> {
    let name = &transfer.weights;
    let weights_key = load.weights_key.clone().or_else(|| transfer.weights_key.clone());
    let load = LoadOptions { weights_key, ..load.clone() };
    let mut download = Download::new(options.progress);
    let opened = hub::open_with_progress(name, &load, device, &mut |published, progress| {
        download.report(published.file(), progress.done, progress.total, progress.resumed);
    });
    let opened = opened.map_err(|source| Error::Start { name: name.into(), source })?;
    download.finish();
    Ok(opened)
}

/// Returns the number of stages of the network that a recipe trains.
///
/// # Errors
/// Fails if the weights do not match the network.
pub fn num_stages(prepared: &Prepared) -> Result<usize> {
    let classes = prepared.data.class_names();
    let network = transfer::network(&prepared.recipe, prepared.start.as_deref(), &classes, &prepared.device)?;
    Ok(network.stages().len())
}

/// The state of a run before its first step.
///
/// # Errors
/// Where the weights that it starts from do not fit the architecture.
pub(crate) fn first_state(prepared: &Prepared) -> Result<State> {
    let Prepared { recipe, data, start, device, .. } = prepared;
    let data_fingerprint = data.fingerprint();
    Ok(State {
        recipe: recipe.to_toml(),
        unfiltered_fingerprint: data.unfiltered.clone().unwrap_or_else(|| data_fingerprint.clone()),
        data_fingerprint,
        data_contents: data.sample_contents(),
        aux_logits: start.as_ref().map(|start| transfer::aux_logits(recipe, start, device)).transpose()?,
        ..State::default()
    })
}
