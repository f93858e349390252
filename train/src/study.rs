//! The experiment of He et al. (2015), figure 6: what shortcuts do for deep networks.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::{
    module::{Module, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::{Device, Tensor},
};
use burn_train::TrainStep;
use datasets::ImageBatch;
use hub::{LoadOptions, Strictness, Weights};
use models::{Architecture, Execution, NetworkConfig};
use report::{
    chart::{Chart, Scale, Series},
    format::RunKind,
    study::StudyRow,
};
use runtime::files::write_atomic_bytes;

use crate::{
    Error, Result,
    classifier::{Classifier, Objective},
    progress::EpochRecord,
    recipe::{self, Recipe},
    run::{self, Options, Prepared, folder::RunFolder},
    trainer::End,
    transfer,
};

/// Shallow and deep networks, without shortcuts and with them; in charts the color tells the depth, and a dashed line the
/// lack of shortcuts.
const NETWORKS: [Architecture; 4] =
    [Architecture::Plain20, Architecture::Plain56, Architecture::ResNet20, Architecture::ResNet56];

/// The training of one network.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The network.
    pub architecture: Architecture,
    /// The run folder.
    pub run: PathBuf,
    /// The metrics of each epoch.
    pub history: Vec<EpochRecord>,
    /// The gradient's norm by layer, before training and after it.
    pub gradients: [Vec<f64>; 2],
}

/// Trains the four networks under the recipe that `recipe` returns for each, and writes `study.html`. Returns the folder
/// and the results, or `None` if a training was stopped.
///
/// # Errors
/// Fails if a training fails, or if a file cannot be written.
pub fn shortcuts(
    recipe: impl Fn(Architecture) -> Result<Recipe, recipe::Error>,
    options: &Options,
) -> Result<Option<(PathBuf, Vec<Trained>)>> {
    let folder = match &options.out {
        Some(out) => RunFolder::create_at(out)?,
        None => RunFolder::create_in(&options.artifacts, "study-shortcuts")?,
    };
    let mut trained = Vec::new();
    for architecture in NETWORKS {
        match train_one(architecture, recipe(architecture), &folder.path, options) {
            Ok(Some(one)) => trained.push(one),
            Ok(None) => return Ok(None),
            Err(error) => {
                // A folder without a training in it would only be in the way.
                if trained.is_empty() && !folder.path.join(architecture.name()).exists() {
                    folder.discard();
                }
                return Err(error);
            }
        }
    }
    write(&folder.path, &trained)?;
    Ok(Some((folder.path.clone(), trained)))
}

/// Trains one network in a folder of its own inside of `folder`. Returns `None` if the training was stopped.
fn train_one(
    architecture: Architecture,
    recipe: Result<Recipe, recipe::Error>,
    folder: &Path,
    options: &Options,
) -> Result<Option<Trained>> {
    let recipe = recipe?;
    let own = Options { out: Some(folder.join(architecture.name())), ..options.clone() };
    let prepared = run::prepare(recipe.clone(), &LoadOptions::default(), &own)?;
    let batch = first_batch(&prepared, &own)?;
    let (device, classes) = (prepared.device.clone().autodiff(), prepared.data.class_names());
    let network = transfer::network(&recipe, None, &classes, &prepared.device)?;
    let before = gradient_norms(Classifier::new(network, task(&recipe, classes.len(), options)), batch.clone());
    let finished = run::start(prepared, RunKind::Pretrain, &own)?;
    match finished.end {
        End::Failed(error) => {
            return Err(Error::Part { what: format!("the training of {architecture}"), source: Box::new(error) });
        }
        End::Interrupted => return Ok(None),
        End::Finished => {}
    }
    let network = last_weights(&finished.run, architecture, classes.len(), &device)?;
    let after = gradient_norms(Classifier::new(network, task(&recipe, classes.len(), options)), batch);
    let history = finished.state.history;
    Ok(Some(Trained { architecture, run: finished.run, history, gradients: [before, after] }))
}

fn task(recipe: &Recipe, classes: usize, options: &Options) -> Arc<Objective> {
    Arc::new(Objective::new(recipe, classes, None, Execution::new(options.kernels)))
}

fn first_batch(prepared: &Prepared, options: &Options) -> Result<ImageBatch> {
    let loaders = prepared.data.loaders(&prepared.recipe, options.workers)?;
    let none = || Error::Unsuitable("there is no batch to train on".into());
    Ok(loaders.first().batches().next().ok_or_else(none)??)
}

fn last_weights(run: &Path, architecture: Architecture, classes: usize, device: &Device) -> Result<models::Network> {
    let network = NetworkConfig::new(architecture).with_num_classes(classes).init(device);
    let weights = Weights::open(run.join("last.safetensors"))?;
    Ok(weights.load(network, architecture, Strictness::Exact)?.0)
}

/// The norm of the gradient of each convolution's weights and of the classifier's, from the input on.
fn gradient_norms(classifier: Classifier, batch: ImageBatch) -> Vec<f64> {
    struct Norms {
        gradients: GradientsParams,
        norms: Vec<f64>,
    }
    impl ModuleVisitor for Norms {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if D > 1
                && let Some(gradient) = self.gradients.remove::<D>(param.id)
            {
                self.norms.push(f64::from(gradient.square().sum().into_scalar::<f32>()).sqrt());
            }
        }
    }
    let gradients = TrainStep::step(&classifier, batch).grads;
    let mut norms = Norms { gradients, norms: Vec::new() };
    classifier.network.visit(&mut norms);
    norms.norms
}

impl Trained {
    /// Returns the errors of the last epoch, in training and in validation, in percent.
    pub fn errors(&self) -> (f64, f64) {
        self.history.last().map_or((f64::NAN, f64::NAN), |last| (100.0 - last.train.top1, 100.0 - last.valid.top1))
    }

    fn series(&self, points: Vec<(f64, f64)>) -> Series {
        let name = self.architecture.name();
        let series = Series::new(name, points).colored(usize::from(name.ends_with("56")));
        if name.starts_with("plain") { series.dashed() } else { series }
    }
}

fn write(folder: &Path, trained: &[Trained]) -> Result<()> {
    let by_epoch = |title: &str, label: &str, error: fn(&EpochRecord) -> f64| Chart {
        title: title.into(),
        x_label: "epoch".into(),
        y_label: label.into(),
        x_scale: Scale::Linear,
        y_scale: Scale::Linear,
        series: trained
            .iter()
            .map(|t| t.series(t.history.iter().map(|record| (record.epoch as f64, error(record))).collect()))
            .collect(),
        marker: None,
    };
    let by_layer = |title: &str, which: usize| Chart {
        title: title.into(),
        x_label: "layer, from the input (0) to the classifier (1)".into(),
        y_label: "norm of the gradient".into(),
        x_scale: Scale::Linear,
        y_scale: Scale::Log,
        series: trained
            .iter()
            .map(|t| {
                let norms = &t.gradients[which];
                let depth = |layer: usize| layer as f64 / (norms.len() - 1).max(1) as f64;
                t.series(norms.iter().enumerate().map(|(layer, &norm)| (depth(layer), norm)).collect())
            })
            .collect(),
        marker: None,
    };
    let charts = [
        ("training-error", by_epoch("Training error", "training error, %", |r| 100.0 - r.train.top1)),
        ("validation-error", by_epoch("Validation error", "validation error, %", |r| 100.0 - r.valid.top1)),
        ("gradient-before", by_layer("Gradient by layer before training", 0)),
        ("gradient-after", by_layer("Gradient by layer after training", 1)),
    ];
    for (name, chart) in &charts {
        write_atomic_bytes(&folder.join(format!("{name}.svg")), chart.to_svg().as_bytes())?;
    }
    let rows: Vec<StudyRow> = trained
        .iter()
        .map(|trained| {
            let (train_error, validation_error) = trained.errors();
            let run = trained.run.file_name().map_or(String::new(), |run| run.to_string_lossy().into_owned());
            StudyRow { network: trained.architecture.name(), run, train_error, validation_error }
        })
        .collect();
    let page = report::study::shortcuts(&rows, charts.iter().map(|(_, chart)| chart));
    Ok(write_atomic_bytes(&folder.join("study.html"), page.as_bytes())?)
}
