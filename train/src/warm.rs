//! What comes between trained weights and the first step on new data: the running statistics of batch normalization are
//! compared with the images, and the classifier is trained on the features of the frozen network.

use burn::{module::Module, store::ModuleRecord, tensor::Device};
use datasets::loader::BadSample;
use models::{Execution, ImageClassifier};
use runtime::exit::chain;

use crate::{
    Error, Result, batchnorm,
    classifier::Objective,
    data::{self, DataSet},
    features,
    head::{self, Fit},
    recipe::{BatchNormMode, HeadStart, Recipe},
    run::{Options, Prepared},
    transfer,
};

/// The largest number of images whose features the classifier is trained on.
const MOST_FEATURES: usize = 20_000;

/// Images on which stored statistics are checked, and over which they are recomputed, at most.
const CHECKED: usize = 64;
const MOST_MEASURED: usize = 10_000;

/// What was done and decided before the first step of a transfer.
#[derive(Debug, Clone, Default)]
pub struct Warm {
    /// What the network begins as, where it is not what the weights and the seed make it.
    pub network: Option<ModuleRecord>,
    /// What was decided from the data and the weights, a sentence each.
    pub decisions: Vec<String>,
    /// Whether the learning rate and the weight decay of a linear probe are chosen by images that are held out.
    pub chooses_rate: bool,
    pub chooses_decay: bool,
    /// Whether the classifier has the learning rate 0: the range test of the stages before it.
    pub holds_head: bool,
    is_done: bool,
}

impl Warm {
    /// Replaces what a recipe leaves to the data by the decision.
    pub fn new(recipe: &mut Recipe, data: &DataSet, devices: usize, device: &Device) -> Self {
        let devices = devices * runtime::communicator::communicator().size();
        let decision = batchnorm::decide(recipe, data.train.len(), devices, device);
        Self { decisions: decision.into_iter().collect(), ..Self::default() }
    }
}

/// Replaces what an older run's recipe leaves open by what it meant then.
pub fn settle(recipe: &mut Recipe) {
    if let Some(transfer) = &mut recipe.transfer
        && transfer.batchnorm == BatchNormMode::Auto
    {
        transfer.batchnorm = BatchNormMode::Train;
    }
}

/// Checks or recomputes running statistics and trains the classifier, once, as the recipe says. Warnings are added to the
/// notes of the data.
///
/// # Errors
/// [`Error::Stopped`] where a stop was asked for. Where the weights do not fit the network, or images cannot be read.
pub fn start(prepared: &mut Prepared, options: &Options) -> Result<()> {
    let Prepared { recipe, data, start, device, .. } = &*prepared;
    let Some(transfer) = recipe.transfer.as_ref().filter(|_| !prepared.warm.is_done) else { return Ok(()) };
    let classes = data.class_names();
    let mut network = transfer::network(recipe, start.as_deref(), &classes, device)?;
    // Smoothed targets cost a classifier of few images several points.
    let mut plain = recipe.clone();
    plain.loss.label_smoothing = 0.0;
    let weights = data.class_weights(&recipe.loss.class_weights)?;
    let task = Objective::new(&plain, classes.len(), weights, Execution::new(options.kernels));
    let (mut decisions, mut notes, mut changes) = (Vec::new(), Vec::new(), false);

    let stored = batchnorm::stored(&network);
    if !stored.is_empty() {
        let recalibrates = transfer.recalibrate_batchnorm;
        let most = if recalibrates { MOST_MEASURED } else { CHECKED };
        let source = data::spread(&data.train, most, Some(recipe.seed))?;
        let images = source.len();
        let loader = data.in_order(&source, recipe, options.workers)?;
        let measured = batchnorm::measure(&network, &task, &loader, device, &options.stop);
        if recalibrates {
            let measured = measured.map_err(|error| Error::Part {
                what: "recomputing the running statistics of batch normalization".into(),
                source: Box::new(error),
            });
            batchnorm::set(&network, &measured?.ok_or(Error::Stopped)?);
            changes = true;
            decisions.push(format!(
                "running statistics of batch normalization were recomputed over {images} training images"
            ));
        } else {
            // An image that cannot be read is reported by the run itself.
            let seen = match measured {
                Ok(seen) => Some(seen.ok_or(Error::Stopped)?),
                Err(error) => {
                    log::debug!("running statistics are not compared with the images: {}", chain(&error));
                    None
                }
            };
            if let Some(why) = seen.and_then(|seen| batchnorm::misfit(&stored, &seen)) {
                notes.push(format!(
                    "the running statistics of batch normalization do not fit the images: {why}. \
                     transfer.recalibrate_batchnorm (--recalibrate-batchnorm) recomputes them over the training images"
                ));
            }
        }
    }

    if transfer.head == HeadStart::Probe {
        let source = data::spread(&data.train, MOST_FEATURES, None)?;
        let loader = data.in_order(&source, recipe, options.workers)?;
        let identity = features::identity(&network, recipe);
        let computed = features::features(&network, &task, &loader, &identity, "training", device, options)?;
        let features = computed.ok_or(Error::Stopped)?.features;
        let bad: Vec<BadSample> = loader.bad_samples();
        log::debug!("{} images without features", bad.len());
        let images = features.labels.len();
        if images == 0 {
            return Err(Error::Unsuitable("no training image could be read".into()));
        }
        let is_fresh = start.as_ref().is_none_or(|start| start.card.classes != classes);
        let own = network.classifier().clone();
        let (batch, passes) = head::sizes(images, 256);
        let fit = Fit {
            features: features.tensor(&device.clone().autodiff()),
            labels: &features.labels,
            task: &task,
            start: if is_fresh { head::zeroed(own) } else { own },
            optimizer: head::optimizer(),
            batch,
            passes,
            seed: recipe.seed,
        };
        let choice = fit.choose(&head::settings(None, None), &options.stop).ok_or(Error::Stopped)?;
        decisions.push(choice.describe());
        let rows: Vec<u32> = (0..images as u32).collect();
        let trained = fit.train(&rows, choice.setting);
        network = head::put(network, &trained);
        changes = true;
    }

    let warm = &mut prepared.warm;
    warm.network = changes.then(|| network.into_record());
    warm.decisions.extend(decisions);
    warm.is_done = true;
    prepared.data.notes.extend(notes);
    Ok(())
}
