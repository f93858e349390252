//! The linear probe: a linear classifier on the features of a frozen network.
//!
//! The features are computed once. What follows is a training of the head alone, in seconds.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use burn::{
    module::Module,
    optim::{GradientsParams, lr_scheduler::LrScheduler},
    tensor::{Device, Int, Tensor, TensorData},
};
use datasets::{ImageBatch, SampleRng, Source, loader::BadSample};
use hub::weights;
use kernels::KernelMode;
use models::{Execution, ImageClassifier, Network};
use report::format::{BAD_SAMPLES, RECIPE, RunKind};
use runtime::{exit::chain, files::write_atomic_bytes};

use crate::{
    Result,
    classifier::{Classifier, Objective},
    data,
    evaluation::{self, BatchScalars, MetricSums, Prediction},
    features::{self, Computed, Features},
    head::{self, Choice, Fit},
    progress::{EpochRecord, Interval, State, StepTimes, lap},
    recipe::{Freeze, Recipe},
    run::{self, Finished, Options, Prepared, logger::RunLogger, results},
    schedule::Rates,
    trainer::{End, Outcome, flat, guard::StepCheck, optimizer::Optimizer, slot::Slot},
    transfer,
    warm::{self, Warm},
};

/// Trains only the classifier, as a linear probe, if the recipe freezes all else and transforms no image at random;
/// otherwise the network.
///
/// # Errors
/// Fails like [`run::start`], and with [`Error::Stopped`](crate::Error::Stopped) if a stop was asked for before the first step.
pub fn finetune(mut prepared: Prepared, options: &Options) -> Result<Finished> {
    warm::start(&mut prepared, options)?;
    if is_probe(&prepared.recipe) { start(prepared, options) } else { run::start(prepared, RunKind::Finetune, options) }
}

/// Whether every image has the same features in every epoch.
pub(crate) fn is_probe(recipe: &Recipe) -> bool {
    let frozen = recipe
        .transfer
        .as_ref()
        .is_some_and(|transfer| transfer.freeze == Freeze::Backbone && transfer.unfreeze_at.is_none());
    let images = &recipe.images;
    frozen && images.mix.choices().is_empty() && !images.train.transforms().iter().any(data::is_random)
}

/// Runs a probe in a folder of its own.
fn start(prepared: Prepared, options: &Options) -> Result<Finished> {
    let Prepared { data, start, device, devices, warm, .. } = &prepared;
    let mut recipe = prepared.recipe.clone();
    let classes = data.class_names();
    let weights = data.class_weights(&recipe.loss.class_weights)?;
    let task = Arc::new(Objective::new(&recipe, classes.len(), weights, Execution::new(options.kernels)));
    let mut network = transfer::network(&recipe, start.as_deref(), &classes, device)?;
    if let Some(record) = &warm.network {
        network = network.load_record(record.clone());
    }
    if start.as_ref().is_none_or(|start| start.card.classes != classes) {
        let head = head::zeroed(network.classifier().clone());
        network = head::put(network, &head);
    }
    let (folder, card, mut info) = run::new_run(&prepared, RunKind::Probe, options)?;
    let mut state = run::first_state(&prepared)?;
    let logger = RunLogger::open(&folder.path, &state, options.observer.clone(), recipe.epochs, 1)?;
    data.notes.iter().for_each(|note| logger.warn(note));
    logger.info(&format!(
        "a linear classifier on {}'s features for {} classes: {} images, {} held out; {}",
        recipe.architecture,
        classes.len(),
        data.train.len(),
        data.valid.len(),
        folder.path.display()
    ));
    warm.decisions.iter().for_each(|decision| logger.info(decision));
    if devices.is_some() {
        logger.warn(&format!("a linear probe runs on one device, {}", options.devices[0]));
    }
    info.parameters = network.num_parameters();
    let mut bad = Vec::new();
    let features = compute(&prepared, &network, &task, options, &mut bad);
    if !bad.is_empty() {
        logger.warn(&format!("{} images could not be read or decoded ({BAD_SAMPLES})", bad.len()));
    }
    if let Err(error) = results::write_bad_samples(&folder.path, &[], &bad) {
        logger.warn(&chain(&error));
    }
    let outcome = match features {
        Ok(Some([train, valid])) => {
            if let Some(choice) = choose(&recipe, warm, &network, &task, &train.features, device, options) {
                recipe.schedule.learning_rate = choice.setting.rate;
                recipe.optimizer.weight_decay = choice.setting.decay;
                let text = choice.describe();
                logger.info(&text);
                info.decisions.push(text);
                state.recipe = recipe.to_toml();
                write_atomic_bytes(&folder.path.join(RECIPE), state.recipe.as_bytes())?;
            }
            let buffer = flat::buffer(options.main_device()?);
            let (recipe, stop, kernels) = (&recipe, options.stop.clone(), options.kernels);
            let probe = Probe { recipe, task, device, buffer, kernels, train, valid, state, logger, stop };
            probe.train(network, &folder.path, &card, &data.valid)
        }
        Ok(None) => Outcome { state, network: network.valid(), ema: None, logger, end: End::Interrupted },
        Err(error) => Outcome { state, network: network.valid(), ema: None, logger, end: End::Failed(error) },
    };
    run::finish(outcome, &folder.path, &recipe, &card, info, options)
}

/// The learning rate and the weight decay that do best on training images that are held out, where they were left open.
fn choose(
    recipe: &Recipe,
    warm: &Warm,
    network: &Network,
    task: &Objective,
    features: &Features,
    device: &Device,
    options: &Options,
) -> Option<Choice> {
    let (rate, decay) = (recipe.schedule.learning_rate, recipe.optimizer.weight_decay);
    let settings = head::settings((!warm.chooses_rate).then_some(rate), (!warm.chooses_decay).then_some(decay));
    let fit = Fit {
        features: features.tensor(&device.clone().autodiff()),
        labels: &features.labels,
        task,
        start: network.classifier().clone(),
        optimizer: recipe.optimizer.clone(),
        batch: recipe.batch_size,
        passes: recipe.epochs,
        seed: recipe.seed,
    };
    fit.choose(&settings, &options.stop)
}

/// Computes the features of the training and validation images, and adds images without features to `bad`. Returns `None`
/// if it was stopped.
fn compute(
    prepared: &Prepared,
    network: &Network,
    task: &Objective,
    options: &Options,
    bad: &mut Vec<BadSample>,
) -> Result<Option<[Computed; 2]>> {
    let Prepared { recipe, data, device, .. } = prepared;
    let identity = features::identity(network, recipe);
    let mut of = |source: &Arc<dyn Source>, what: &str| {
        let loader = data.in_order(source, recipe, options.workers)?;
        let computed = features::features(network, task, &loader, &identity, what, device, options);
        bad.extend(loader.bad_samples());
        computed
    };
    let Some(train) = of(&data.train, "training")? else { return Ok(None) };
    let Some(valid) = of(&data.valid, "validation")? else { return Ok(None) };
    Ok(Some([train, valid]))
}

struct Probe<'a> {
    recipe: &'a Recipe,
    task: Arc<Objective>,
    device: &'a Device,
    /// Elements of the optimizer's buffers.
    buffer: usize,
    kernels: KernelMode,
    train: Computed,
    valid: Computed,
    state: State,
    logger: RunLogger,
    stop: Arc<AtomicBool>,
}

impl Probe<'_> {
    fn train(mut self, network: Network, run: &Path, card: &hub::Card, valid_source: &Arc<dyn Source>) -> Outcome {
        let mut model = Slot::new(Classifier::new(network, self.task.clone()));
        let end = self.fit(&mut model, run, card, valid_source).unwrap_or_else(End::Failed);
        Outcome { state: self.state, network: model.network.valid(), ema: None, logger: self.logger, end }
    }

    fn fit(
        &mut self,
        model: &mut Slot<Classifier>,
        run: &Path,
        card: &hub::Card,
        valid_source: &Arc<dyn Source>,
    ) -> Result<End> {
        let recipe = self.recipe;
        let autodiff = self.device.clone().autodiff();
        let images = self.train.features.labels.len();
        let batch = recipe.batch_size.min(images);
        let steps_per_epoch = (images / batch) as u64;
        let mut rates = Rates::new(&recipe.schedule, recipe.epochs, steps_per_epoch);
        let mut optimizer = Optimizer::new(&recipe.optimizer, &model.network, self.buffer, self.kernels);
        let values = self.train.features.tensor(&autodiff);
        // The first epoch has the times of the features.
        let mut times = self.train.times;
        times.validation += self.valid.times.training();
        times.bad_samples += self.valid.times.bad_samples;
        for epoch in 0..recipe.epochs {
            let mut mark = Instant::now();
            let mut order: Vec<u32> = (0..images as u32).collect();
            SampleRng::new(recipe.seed, epoch as u64, 0).shuffle(&mut order);
            let mut checks = Vec::new();
            for chosen in order.chunks_exact(batch) {
                self.state.learning_rate = rates.step();
                checks.push(self.step(model, &mut optimizer, &values, chosen));
            }
            let mut sums = MetricSums::default();
            for result in StepCheck::read_all(&checks.iter().collect::<Vec<_>>()) {
                let (reading, norm) = (result.reading, result.squares.sqrt());
                self.state.step += 1;
                self.state.skipped_steps += u64::from(!result.finite);
                times.skipped_steps += u64::from(!result.finite);
                if result.finite {
                    sums.add(&reading);
                    self.state.interval = Interval { reading, norms: norm, steps: 1, seconds: 0.0 };
                }
            }
            times.compute += lap(&mut mark);
            let network = model.network.valid();
            let predictions = self.predict(&network);
            times.validation += lap(&mut mark);
            // Images go through the network in the first epoch alone, and not even then if their features were cached.
            let computed = if epoch == 0 { self.train.images } else { 0 };
            let record = EpochRecord {
                epoch: epoch + 1,
                step: self.state.step,
                learning_rate: self.state.learning_rate,
                train: sums.score(),
                valid: MetricSums::of(&predictions).score(),
                average: None,
                images_per_second: computed as f64 / times.training().max(1e-9),
                times,
            };
            self.state.seconds += times.total();
            times = StepTimes::default();
            self.state.history.push(record.clone());
            self.state.epoch = epoch + 1;
            self.logger.record(&record);
            let best = self.state.best(recipe.checkpoints.best).map(|best| best.epoch);
            if best == Some(record.epoch) {
                weights::save(&network, card, run.join(hub::RUN_WEIGHTS))?;
                results::write_predictions(run, &predictions, valid_source)?;
            }
            if self.stop.load(Ordering::Relaxed) {
                return Ok(End::Interrupted);
            }
        }
        Ok(End::Finished)
    }

    /// One step on the chosen images, at the rate of the state.
    fn step(
        &self,
        model: &mut Slot<Classifier>,
        optimizer: &mut Optimizer,
        values: &Tensor<2>,
        chosen: &[u32],
    ) -> StepCheck {
        let device = values.device();
        let rows: Vec<i64> = chosen.iter().map(|&row| i64::from(row)).collect();
        let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [chosen.len()]), &device);
        let labels: Vec<u32> = chosen.iter().map(|&row| self.train.features.labels[row as usize]).collect();
        let batch = ImageBatch::of_labels(&labels);
        let logits = self.task.run(|| model.network.classify(values.clone().select(0, rows)));
        let loss = self.task.loss_of(logits.clone(), &batch, &device);
        let gradients = GradientsParams::from_grads(loss.backward(), &**model);
        let gradients = optimizer.pack(&**model, gradients, &self.state.learning_rate.into());
        let squares = gradients.square_sums(&device.without_autodiff());
        let scalars = BatchScalars::new(loss.inner(), logits.inner(), batch.targets(self.device));
        let check = StepCheck::new(vec![scalars], squares, 1, None, self.recipe.optimizer.clip_norm);
        model.update(|model| optimizer.step(model, gradients, &check.update()));
        check
    }

    fn predict(&self, network: &Network) -> Vec<Prediction> {
        let values = self.valid.features.tensor(&self.device.clone().without_autodiff());
        let logits = self.task.run(|| network.classify(values));
        let [_, classes] = logits.dims();
        let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
        let indices: Vec<usize> = self.valid.features.indices.iter().map(|&index| index as usize).collect();
        evaluation::predictions(&logits, classes, &self.valid.features.labels, &indices)
    }
}
