//! The linear probe: a linear classifier on the features of a frozen network.
//!
//! The features are computed once, from images prepared as in validation, and kept in the cache folder under a hash of
//! the weights, the images and the preprocessing. What follows is a training of the head alone, in seconds.

use std::{
    fs,
    io::{Read, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    optim::{GradientsParams, lr_scheduler::LrScheduler},
    tensor::{Device, Int, Tensor, TensorData},
};
use data_encoding::HEXLOWER;
use datasets::{ImageBatch, ImageLoader, SampleRng, Source, loader::BadSample};
use hub::weights;
use models::{ImageClassifier, Network};
use report::format::{BAD_SAMPLES, RunKind};
use runtime::{
    files::write_atomic,
    progress::{Progress, Unit},
};
use sha2::{Digest, Sha256};

use crate::{
    classifier::{Classifier, Task},
    data,
    evaluation::{self, BatchScalars, Prediction, Reading},
    journal::Journal,
    progress::{EpochRecord, Interval, State, Times, lap},
    recipe::{Freeze, Recipe},
    results,
    schedule::Rates,
    trainer::{End, Outcome, flat, guard::StepCheck, optimizer::Optimizer, slot::Slot},
    training::{self, Finished, Options, Prepared},
    transfer,
};

/// The features of a set of images.
#[derive(Debug, Clone, PartialEq)]
struct Features {
    /// Numbers an image.
    width: usize,
    /// `width` for each image, in order.
    values: Vec<f32>,
    labels: Vec<u32>,
    /// The images' indices in their source.
    indices: Vec<u32>,
}

/// Trains only the classifier, as a linear probe, if the recipe freezes all else and transforms no image at random;
/// otherwise the network.
///
/// # Errors
/// Fails like [`training::start`].
pub fn finetune(prepared: Prepared, options: &Options) -> Result<Finished> {
    if is_probe(&prepared.recipe) {
        start(prepared, options)
    } else {
        training::start(prepared, RunKind::Finetune, options)
    }
}

/// Whether every image has the same features in every epoch.
fn is_probe(recipe: &Recipe) -> bool {
    let frozen = recipe
        .transfer
        .as_ref()
        .is_some_and(|transfer| transfer.freeze == Freeze::Backbone && transfer.unfreeze_at.is_none());
    let images = &recipe.images;
    frozen && images.mix.choices().is_empty() && !images.train.transforms().iter().any(data::is_random)
}

/// Runs a probe in a folder of its own.
fn start(prepared: Prepared, options: &Options) -> Result<Finished> {
    let Prepared { recipe, data, start, device, devices, .. } = &prepared;
    let classes = data.class_names();
    let task = Arc::new(Task::new(recipe, classes.len(), data.class_weights(recipe.loss.class_weights)));
    let network = transfer::network(recipe, start.as_ref(), &classes, device)?;
    let (folder, card, mut info) = training::new_run(&prepared, RunKind::Probe, options)?;
    let state = training::first_state(&prepared)?;
    let journal = Journal::open(&folder.path, &state, options.observer.clone(), recipe.epochs, 1)?;
    data.notes.iter().for_each(|note| journal.warn(note));
    journal.say(&format!(
        "a linear classifier on {}'s features for {} classes: {} images, {} held out; {}",
        recipe.architecture,
        classes.len(),
        data.train.len(),
        data.valid.len(),
        folder.path.display()
    ));
    if devices.is_some() {
        journal.warn(&format!("a linear probe runs on one device, {}", options.devices[0]));
    }
    info.parameters = network.num_parameters();
    let mut bad = Vec::new();
    let features = compute(&prepared, &network, &task, options, &mut bad);
    if !bad.is_empty() {
        journal.warn(&format!("{} images could not be read or decoded ({BAD_SAMPLES})", bad.len()));
    }
    if let Err(error) = results::write_bad_samples(&folder.path, &[], &bad) {
        journal.warn(&format!("{error:#}"));
    }
    let outcome = match features {
        Ok(Some([train, valid])) => {
            let buffer = flat::buffer(options.main_device()?);
            let stop = options.stop.clone();
            let probe = Probe { recipe, task, device, buffer, train, valid, state, journal, stop };
            probe.train(network, &folder.path, &card, &data.valid)
        }
        Ok(None) => Outcome { state, network: network.valid(), ema: None, journal, end: End::Interrupted },
        Err(error) => Outcome { state, network: network.valid(), ema: None, journal, end: End::Failed(error) },
    };
    training::finish(outcome, &folder.path, recipe, &card, info, options)
}

/// Computes the features of the training and validation images, and adds images without features to `bad`. Returns `None`
/// if it was stopped.
fn compute(
    prepared: &Prepared,
    network: &Network,
    task: &Task,
    options: &Options,
    bad: &mut Vec<BadSample>,
) -> Result<Option<[Computed; 2]>> {
    let Prepared { recipe, data, device, .. } = prepared;
    let identity = identity(network, recipe)?;
    let mut of = |source: &Arc<dyn Source>, what: &str| {
        let loader = data.in_order(source, recipe, options.workers)?;
        let computed = features(network, task, &loader, &identity, what, device, options);
        bad.extend(loader.bad_samples());
        computed
    };
    let Some(train) = of(&data.train, "training")? else { return Ok(None) };
    let Some(valid) = of(&data.valid, "validation")? else { return Ok(None) };
    Ok(Some([train, valid]))
}

/// Features, and what it took to compute them.
struct Computed {
    features: Features,
    /// Zero for features from the cache.
    times: Times,
    /// Images that went through the network.
    images: u64,
}

struct Probe<'a> {
    recipe: &'a Recipe,
    task: Arc<Task>,
    device: &'a Device,
    /// Elements of the optimizer's buffers.
    buffer: usize,
    train: Computed,
    valid: Computed,
    state: State,
    journal: Journal,
    stop: Arc<AtomicBool>,
}

impl Probe<'_> {
    fn train(mut self, network: Network, run: &Path, card: &hub::Card, valid_source: &Arc<dyn Source>) -> Outcome {
        let mut model = Slot::new(Classifier::new(network, self.task.clone()));
        let end = self.fit(&mut model, run, card, valid_source).unwrap_or_else(End::Failed);
        Outcome { state: self.state, network: model.network.valid(), ema: None, journal: self.journal, end }
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
        let mut optimizer = Optimizer::new(&recipe.optimizer, &model.network, self.buffer);
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
            let mut sums = Reading::default();
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
                valid: Reading::of(&predictions).score(),
                average: None,
                images_per_second: computed as f64 / times.training().max(1e-9),
                times,
            };
            self.state.seconds += times.total();
            times = Times::default();
            self.state.history.push(record.clone());
            self.state.epoch = epoch + 1;
            self.journal.record(&record);
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
        let logits = model.network.classify(values.clone().select(0, rows));
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
        let logits = network.classify(self.valid.features.tensor(&self.device.clone().without_autodiff()));
        let [_, classes] = logits.dims();
        let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
        let indices: Vec<usize> = self.valid.features.indices.iter().map(|&index| index as usize).collect();
        evaluation::predictions(&logits, classes, &self.valid.features.labels, &indices)
    }
}

impl Features {
    fn tensor(&self, device: &Device) -> Tensor<2> {
        Tensor::from_data(TensorData::new(self.values.clone(), [self.labels.len(), self.width]), device)
    }
}

/// What features depend on besides the images: the values below the head, and the preprocessing.
fn identity(network: &Network, recipe: &Recipe) -> Result<Vec<u8>> {
    struct Values {
        wanted: Vec<ParamId>,
        hash: Sha256,
    }
    impl ModuleVisitor for Values {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.wanted.contains(&param.id) {
                self.hash.update(param.val().into_data().as_bytes());
            }
        }
    }
    let mut values = Values { wanted: network.backbone_params(), hash: Sha256::new() };
    values.hash.update(recipe.architecture.name());
    network.visit(&mut values);
    if recipe.network.dtype.half().is_some() {
        values.hash.update(recipe.network.dtype.name());
    }
    values.hash.update(toml::to_string(&recipe.images).context("cannot hash the preprocessing")?);
    Ok(values.hash.finalize().to_vec())
}

/// The features of a loader's images: from the cache, or computed and put there. Returns `None` if it was stopped.
fn features(
    network: &Network,
    task: &Task,
    loader: &ImageLoader,
    identity: &[u8],
    what: &str,
    device: &Device,
    options: &Options,
) -> Result<Option<Computed>> {
    let source = loader.source();
    let mut hash = Sha256::new();
    hash.update(identity);
    for index in 0..source.len() {
        hash.update(source.key(index).as_bytes());
        hash.update(source.label(index).unwrap_or(u32::MAX).to_le_bytes());
        hash.update(source.location(index).to_string().as_bytes());
    }
    let name = HEXLOWER.encode(&hash.finalize()[..16]);
    let cache = datasets::cache_folder("features").map(|folder| folder.join(format!("{name}.features")));
    if let Some(path) = &cache {
        match read(path) {
            Ok(Some(features)) => return Ok(Some(Computed { features, times: Times::default(), images: 0 })),
            Ok(None) => {}
            Err(error) => log::warn!("{error:#}; computing the features again"),
        }
    }
    let total = Some(source.len() as u64);
    let progress = Progress::new(format!("{what} features"), Unit::Items("images"), total, options.progress);
    let (network, device) = (network.valid(), device.clone().without_autodiff());
    let mut features = Features { width: 0, values: Vec::new(), labels: Vec::new(), indices: Vec::new() };
    let (mut times, mut mark) = (Times::default(), Instant::now());
    for batch in loader.batches() {
        let batch = batch?;
        times.waiting += lap(&mut mark);
        let values = network.forward_pre_logits(task.images(&batch, &device));
        features.width = values.dims()[1];
        features.values.extend(values.into_data().iter::<f32>());
        features.labels.extend(batch.labels.iter().flatten());
        features.indices.extend(batch.indices.iter().map(|&index| index as u32));
        times.compute += lap(&mut mark);
        progress.inc(batch.len() as u64);
        if options.stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
    }
    progress.finish();
    times.add_loader(&loader.meters());
    ensure!(
        features.values.iter().all(|value| value.is_finite()),
        "the network's features are not finite: are the weights damaged?"
    );
    // What could not be read may be readable next time, and would have to be reported again.
    if let Some(path) = cache.filter(|_| times.bad_samples == 0)
        && let Err(error) = write(&path, &features)
    {
        log::warn!("{error:#}; the features will be computed again next time");
    }
    let images = features.labels.len() as u64;
    Ok(Some(Computed { features, times, images }))
}

/// A file: a magic number, the width and the count, labels, indices, values, all little-endian, and their checksum.
const MAGIC: &[u8; 8] = b"hearthF1";

fn write(path: &Path, features: &Features) -> Result<()> {
    write_atomic(path, |writer| {
        let mut body = Vec::new();
        body.extend((features.width as u64).to_le_bytes());
        body.extend((features.labels.len() as u64).to_le_bytes());
        features.labels.iter().chain(&features.indices).for_each(|number| body.extend(number.to_le_bytes()));
        features.values.iter().for_each(|value| body.extend(value.to_le_bytes()));
        writer.write_all(MAGIC)?;
        writer.write_all(&body)?;
        Ok(writer.write_all(&crc32fast::hash(&body).to_le_bytes())?)
    })
}

/// `None` where the file is not there.
fn read(path: &Path) -> Result<Option<Features>> {
    let context = || format!("cannot read {}", path.display());
    let mut bytes = Vec::new();
    match fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.with_context(context)?.read_to_end(&mut bytes).with_context(context)?,
    };
    let damaged = || format!("{} is damaged", path.display());
    let body = bytes.strip_prefix(MAGIC).with_context(damaged)?;
    let (body, sum) = body.split_last_chunk::<4>().with_context(damaged)?;
    ensure!(crc32fast::hash(body) == u32::from_le_bytes(*sum), "{}", damaged());
    let number =
        |at: usize| body.get(at..at + 8).map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes")) as usize);
    let (width, count) = number(0).zip(number(8)).with_context(damaged)?;
    let words: Vec<[u8; 4]> = body[16..].chunks_exact(4).map(|word| word.try_into().expect("four bytes")).collect();
    ensure!(Some(words.len()) == width.checked_add(2).and_then(|each| each.checked_mul(count)), "{}", damaged());
    let integers = |range: &[[u8; 4]]| range.iter().map(|word| u32::from_le_bytes(*word)).collect();
    Ok(Some(Features {
        width,
        labels: integers(&words[..count]),
        indices: integers(&words[count..2 * count]),
        values: words[2 * count..].iter().map(|word| f32::from_le_bytes(*word)).collect(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_come_back_from_their_file_and_damage_is_recognised() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.features");
        assert_eq!(read(&path).unwrap(), None);
        let features =
            Features { width: 2, values: vec![1.0, -2.5, 3.0, 4.0], labels: vec![1, 0], indices: vec![7, 9] };
        write(&path, &features).unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), features);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(read(&path).is_err(), "{length}");
        }
        let mut flipped = whole.clone();
        flipped[30] ^= 1;
        fs::write(&path, flipped).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("damaged"));
    }
}
