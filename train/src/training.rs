//! From a recipe to a run folder, by Burn's Learner.

use std::{
    io::{IsTerminal, stderr, stdout},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use burn::{module::Module, tensor::Device};
use burn_train::{
    Interrupter, Learner, SupervisedTraining,
    metric::{AccuracyMetric, LearningRateMetric, LossMetric},
};
use datasets::{Digits, ImageLoader, Limits, PipelinePreprocess, Source, transforms::Pipeline};
use models::{Architecture, Card, NetworkConfig, weights};
use runtime::{files::write_atomic_bytes, progress::human_duration};

use crate::{classifier::Classifier, history::History, recipe::Recipe, renderer::renderer, run};

/// What does not change the result.
pub struct Options {
    /// Where the run's folder is made.
    pub artifacts: PathBuf,
    /// Threads that decode and augment; one a core by default.
    pub workers: Option<usize>,
    pub quiet: bool,
}

/// Trains on the embedded digits as the recipe says; the result lies in a new run folder, which is printed.
pub fn train(recipe: &Recipe, device: &Device, options: &Options) -> anyhow::Result<()> {
    let started = Instant::now();
    let (train, valid): (Arc<dyn Source>, Arc<dyn Source>) = (Arc::new(Digits::train()), Arc::new(Digits::test()));
    let classes: Vec<String> = train.classes().iter().map(|class| class.name.clone()).collect();
    let images = train.len();
    let train = loader(train, recipe.train_pipeline()?, recipe, options, true)?;
    let valid = loader(valid, recipe.eval_pipeline()?, recipe, options, false)?;

    let run = run::create(&options.artifacts, &format!("digits-{}", recipe.architecture))?;
    write_atomic_bytes(&run.join("recipe.toml"), recipe.to_toml().as_bytes())?;
    let card = Card {
        classes,
        preprocess: recipe.preprocess(),
        ..Card::of(recipe.architecture, 1, format!("trained by Hearth, {}", run.display()))
    };
    card.write(run.join("card.json"))?;

    let scheduler = recipe.scheduler(train.num_batches())?;
    let classifier = classifier(recipe, card.classes.len(), device);
    let dashboard = stdout().is_terminal() && stderr().is_terminal() && !options.quiet;
    if !dashboard && !options.quiet {
        eprintln!(
            "{} on {images} digits, {} held out; {} epochs of {} steps; {}",
            recipe.architecture,
            valid.source().len(),
            recipe.epochs,
            train.num_batches(),
            run.display(),
        );
    }
    let history = History::new(run.join("metrics.csv"), recipe.epochs, images, !dashboard && !options.quiet);
    let interrupter = Interrupter::new();
    let training = SupervisedTraining::new(&run, Arc::new(train), Arc::new(valid.clone()))
        .metrics((LossMetric::new(), AccuracyMetric::new()))
        .metric_train_numeric(LearningRateMetric::new())
        .with_metric_logger(history)
        .renderer(renderer(dashboard, interrupter.clone()))
        .with_interrupter(interrupter)
        .with_default_checkpointers()
        .num_epochs(recipe.epochs);
    let result = training.launch(Learner::new(classifier, recipe.optimizer(), scheduler));
    // The dashboard gives the terminal back when it is dropped.
    drop(result.renderer);
    if let Some(error) = result.error {
        anyhow::bail!("training stopped: {error}; what was written is in {}", run.display());
    }

    weights::save(&result.model.network, &card, run.join("weights.safetensors"))?;
    let (right, total) = count_right(&result.model, &valid)?;
    if let Some(stop) = result.interrupted {
        let reason = stop.reason.unwrap_or_else(|| "by request".to_string());
        eprintln!("stopped before the last epoch: {reason}");
    }
    report(right, total, &run, started);
    Ok(())
}

fn report(right: usize, total: usize, run: &Path, started: Instant) {
    let percent = 100.0 * right as f64 / total as f64;
    println!("top-1 on the held-out images: {percent:.2} % ({right} of {total})");
    println!("run: {}", run.display());
    eprintln!(
        "took {}; try: cargo run -p infer -- classify IMAGE --weights {}",
        human_duration(started.elapsed()),
        run.display()
    );
}

fn loader(
    source: Arc<dyn Source>,
    pipeline: Pipeline,
    recipe: &Recipe,
    options: &Options,
    training: bool,
) -> anyhow::Result<ImageLoader> {
    let preprocess = Arc::new(PipelinePreprocess::new(pipeline, Limits::default())?);
    let mut builder = ImageLoader::builder(source, preprocess).batch_size(recipe.batch_size).seed(recipe.seed);
    if training {
        // A last batch of a few images would unsettle the batch statistics.
        builder = builder.shuffle().drop_last(true);
    }
    if let Some(workers) = options.workers {
        builder = builder.workers(workers);
    }
    Ok(builder.build()?)
}

fn classifier(recipe: &Recipe, num_classes: usize, device: &Device) -> Classifier {
    device.seed(recipe.seed);
    let device = device.clone().autodiff();
    let network = NetworkConfig::new(recipe.architecture).with_num_classes(num_classes).init(&device);
    Classifier {
        network,
        statistics: [recipe.images.mean, recipe.images.std],
        label_smoothing: recipe.label_smoothing,
        aux_weight: if recipe.architecture == Architecture::InceptionV3 { 0.4 } else { 0.3 },
    }
}

/// How many images the network gets right, each counted once.
fn count_right(classifier: &Classifier, loader: &ImageLoader) -> anyhow::Result<(usize, usize)> {
    let classifier = classifier.valid();
    let (mut right, mut total) = (0, 0);
    for batch in loader.batches() {
        let batch = batch?;
        let output = burn_train::InferenceStep::step(&classifier, batch);
        let predicted = output.output.argmax(1).flatten::<1>(0, 1);
        right += predicted.equal(output.targets.clone()).int().sum().into_scalar::<i64>() as usize;
        total += output.targets.dims()[0];
    }
    Ok((right, total))
}
