//! Evaluation on labeled images: every image counts once, with the probabilities of its crops and of the networks
//! averaged.

use models::ImageClassifier;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Instant,
};

use burn::tensor::activation::softmax;
use datasets::{BadSamples, DecodeError, ImageBatch, ImageLoader, Source, decode, imagenet, loader::BadSample};
use report::{
    format::{
        BAD_SAMPLES, EVALUATION, EvaluationSpec, EvaluationSummary, FORMAT, Mean, PREDICTIONS, PredictionRow,
        Proportion, Scores, read_csv, read_json, write_csv, write_json,
    },
    scores,
    stats::{self, Count},
};
use runtime::{exit::chain, progress::Progress};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    labels::ClassMap,
    model::{Model, finite},
    protocol::{CropStack, Protocol},
};

/// The names of the network's classes, beside the other files of an evaluation.
const CLASSES: &str = "classes.json";

/// The largest forward batch, counted in crops.
const MAX_FORWARD_BATCH: usize = 64;

/// The evaluation of all images or of one shard.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Evaluation {
    pub spec: EvaluationSpec,
    /// The names of the network's classes.
    pub class_names: Vec<String>,
    /// The shard's index and the number of shards.
    pub shard: (usize, usize),
    /// The rows, in the order of the data.
    pub rows: Vec<PredictionRow>,
    pub bad: Vec<BadSample>,
    pub seconds: f64,
    /// The mean area under the ROC curve over the data's classes, one against the rest; `None` for shards, and for data
    /// whose probabilities would take too much memory.
    #[serde(default)]
    pub auroc: Option<f64>,
}

/// Settings of an evaluation.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Settings {
    pub protocol: Protocol,
    pub batch_size: usize,
    pub workers: Option<usize>,
    pub bad_samples: BadSamples,
    /// The shard's index and the number of shards; `(0, 1)` is all images.
    pub shard: (usize, usize),
    /// The network's class for each class of the data; by default they are matched by name.
    pub class_map: Option<ClassMap>,
}

/// Evaluates the average of `models` once on every image of the shard.
///
/// # Errors
/// Fails if the networks have different classes or the data has other classes, if an image cannot be read and the
/// policy is strict, or if an output is not finite.
pub fn evaluate(
    models: &[Model],
    source: &Arc<dyn Source>,
    settings: &Settings,
    spec: EvaluationSpec,
    progress: &Progress,
) -> Result<Evaluation> {
    let (index, count) = settings.shard;
    if index >= count {
        return Err(Error::Shards(format!(
            "--shard-index {index} is out of range for --num-shards {count}; shards are numbered from 0"
        )));
    }
    let first = models.first().ok_or_else(|| Error::Unsupported("no weights to evaluate".into()))?;
    if let Some(other) = models.iter().find(|other| other.card().classes != first.card().classes) {
        return Err(Error::Unsupported(format!(
            "the networks have different classes: {} and {} cannot be averaged",
            first.card().origin,
            other.card().origin
        )));
    }
    let map = match &settings.class_map {
        Some(map) => map.clone(),
        None => ClassMap::new(source.classes(), first.card())?,
    };
    if map.0.len() != source.classes().len() {
        return Err(Error::ClassMap("the class map is of other data".into()));
    }
    let shard = Arc::new(Shard { source: source.clone(), index, count }) as Arc<dyn Source>;
    let began = Instant::now();
    let mut sums: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
    let mut bad: BTreeMap<String, BadSample> = BTreeMap::new();
    let mut rows = Vec::new();
    let mut curves = Curves::new(&map, shard.len(), count);
    for (nth, model) in models.iter().enumerate() {
        // Each network has its own card and therefore its own crops.
        let crops = crops_of(model, settings)?;
        let mut sink = |index: usize, mut probabilities: Vec<f32>| -> Result<()> {
            if nth > 0 {
                let sum = sums.remove(&index).ok_or(Error::Bug("the networks read different images"))?;
                probabilities.iter_mut().zip(sum).for_each(|(p, sum)| *p += sum);
            }
            if nth + 1 < models.len() {
                sums.insert(index, probabilities);
            } else {
                probabilities.iter_mut().for_each(|p| *p /= models.len() as f32);
                rows.push(score_image(&probabilities, &*shard, index, &map)?);
                curves.add(&probabilities, shard.label(index));
            }
            progress.inc(crops.count() as u64);
            Ok(())
        };
        let met = match crops.is_dense() {
            true => dense_pass(model, &crops, &shard, settings.bad_samples, &mut sink)?,
            false => batched_pass(model, &crops, &shard, settings, &mut sink)?,
        };
        bad.extend(met.into_iter().map(|sample| (sample.key.clone(), sample)));
    }
    Ok(Evaluation {
        spec,
        class_names: first.card().classes.clone(),
        shard: settings.shard,
        rows,
        bad: bad.into_values().collect(),
        auroc: curves.mean_area(),
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// The crops of images for a network.
fn crops_of(model: &Model, settings: &Settings) -> Result<CropStack> {
    CropStack::new(&settings.protocol, model.card(), model.preprocess().options().clone())
}

/// Receives each image's probabilities by its index in the shard.
type ProbabilitySink<'a> = dyn FnMut(usize, Vec<f32>) -> Result<()> + 'a;

/// Evaluates crops of one size, loaded by threads and run in batches. Returns the samples that could not be read.
fn batched_pass(
    model: &Model,
    crops: &CropStack,
    shard: &Arc<dyn Source>,
    settings: &Settings,
    sink: &mut ProbabilitySink<'_>,
) -> Result<Vec<BadSample>> {
    let images = (settings.batch_size / crops.count()).max(1);
    let mut builder = ImageLoader::builder(shard.clone(), Arc::new(crops.clone()))
        .batch_size(images)
        .bad_samples(settings.bad_samples);
    if let Some(workers) = settings.workers {
        builder = builder.workers(workers);
    }
    let loader = builder.build()?;
    for batch in loader.batches() {
        let batch = batch?;
        let averaged = crop_probabilities(model, &batch, crops)?;
        averaged.into_iter().zip(&batch.indices).try_for_each(|(row, &index)| sink(index, row))?;
    }
    let damaged = loader.damaged_samples().len();
    if damaged > 0 {
        log::warn!("{damaged} damaged images were evaluated as far as they can be decoded");
    }
    Ok(loader.bad_samples())
}

/// Evaluates whole images of any size, one at a time.
fn dense_pass(
    model: &Model,
    crops: &CropStack,
    shard: &Arc<dyn Source>,
    policy: BadSamples,
    sink: &mut ProbabilitySink<'_>,
) -> Result<Vec<BadSample>> {
    let (mut bytes, mut bad) = (Vec::new(), Vec::new());
    for index in 0..shard.len() {
        let decoded = shard.read(index, &mut bytes).map_err(Error::from).and_then(|()| {
            let decoded = decode(&bytes, model.preprocess().options())?;
            match decoded.damage {
                Some(damage) if policy == BadSamples::Strict => return Err(DecodeError::from(damage).into()),
                Some(damage) => {
                    log::warn!("{}: {damage}; it is used as far as it can be decoded", shard.location(index));
                }
                None => {}
            }
            Ok(decoded.image)
        });
        let image = match decoded {
            Ok(image) => image,
            Err(error) if policy == BadSamples::Skip => {
                let (key, location) = (shard.key(index).into_owned(), shard.location(index).to_string());
                bad.push(BadSample { index, key, location, cause: chain(&error), times: 1 });
                continue;
            }
            Err(source) => {
                return Err(Error::Sample { location: shard.location(index), source: Box::new(source) });
            }
        };
        let mut sum = vec![0f32; model.card().classes.len()];
        for crop in crops.of(&image) {
            let batch = ImageBatch {
                shape: [1, 3, crop.height() as usize, crop.width() as usize],
                images: (0..3).flat_map(|channel| crop.as_raw().iter().skip(channel).step_by(3).copied()).collect(),
                labels: None,
                mix: None,
                indices: Vec::new(),
                epoch: 0,
                number: 0,
            };
            let input = model.preprocess().normalize(&batch, model.device());
            let network = model.network()?;
            let logits = model.execution().run(|| network.forward_dense(model.typed(input)));
            let probabilities = finite(softmax(logits, 1))?;
            sum.iter_mut().zip(probabilities).for_each(|(sum, p)| *sum += p / crops.count() as f32);
        }
        sink(index, sum)?;
    }
    Ok(bad)
}

/// Returns the number of crops over all networks and all images of a shard.
///
/// # Errors
/// Fails like [`CropStack::new`].
pub fn num_crops(models: &[Model], images: usize, settings: &Settings) -> Result<u64> {
    let (index, count) = settings.shard;
    let images = images.saturating_sub(index).div_ceil(count.max(1));
    let crops = models.iter().map(|model| Ok(crops_of(model, settings)?.count() as u64));
    Ok(crops.sum::<Result<u64>>()? * images as u64)
}

/// Averages the probabilities over each image's crops.
fn crop_probabilities(model: &Model, batch: &ImageBatch, crops: &CropStack) -> Result<Vec<Vec<f32>>> {
    let (per_image, side) = (crops.count(), crops.side() as usize);
    let single = unstack(batch, per_image, side);
    let mut all: Vec<f32> = Vec::new();
    let plane = 3 * side * side;
    for pixels in single.chunks(MAX_FORWARD_BATCH * plane) {
        let shape = [pixels.len() / plane, 3, side, side];
        let part = ImageBatch {
            images: pixels.to_vec(),
            shape,
            labels: None,
            mix: None,
            indices: Vec::new(),
            epoch: 0,
            number: 0,
        };
        all.extend(finite(softmax(model.logits(&part)?, 1))?);
    }
    let classes = model.card().classes.len();
    let mean = |crops: &[f32]| {
        let mut sum = vec![0f32; classes];
        crops.chunks_exact(classes).for_each(|crop| sum.iter_mut().zip(crop).for_each(|(sum, p)| *sum += p));
        sum.iter_mut().for_each(|sum| *sum /= per_image as f32);
        sum
    };
    Ok(all.chunks_exact(per_image * classes).map(mean).collect())
}

/// Unstacks crops: `[n, 3, crops · side, side]` → `[n · crops, 3, side, side]`.
fn unstack(batch: &ImageBatch, crops: usize, side: usize) -> Vec<u8> {
    if crops == 1 {
        return batch.images.clone();
    }
    let plane = side * side;
    let mut single = Vec::with_capacity(batch.images.len());
    for image in batch.images.chunks_exact(3 * crops * plane) {
        for crop in 0..crops {
            for channel in 0..3 {
                let at = (channel * crops + crop) * plane;
                single.extend_from_slice(&image[at..at + plane]);
            }
        }
    }
    single
}

/// Returns the row of an image from its probabilities.
fn score_image(probabilities: &[f32], source: &dyn Source, index: usize, map: &ClassMap) -> Result<PredictionRow> {
    let no_label = || Error::ClassMap(format!("{} has no label", source.location(index)));
    let label = source.label(index).ok_or_else(no_label)?;
    let label = map.0[label as usize] as usize;
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    // A stable sort: ties keep the order of the classes.
    order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
    let own = probabilities[label];
    let more_probable = |&&class: &&u32| {
        let other = probabilities[class as usize];
        other > own || (other == own && (class as usize) < label)
    };
    let rank_in_data = map.0.iter().filter(more_probable).count();
    let key = source.key(index).into_owned();
    let real = imagenet::val_number(&key).and_then(imagenet::real_labels).filter(|labels| !labels.is_empty());
    let real = real.map(|labels| labels.iter().any(|&label| order.first() == Some(&usize::from(label))));
    let top = order.iter().map(|&class| (class, f64::from(probabilities[class])));
    Ok(PredictionRow {
        p_label: Some(f64::from(own)),
        loss: Some(-f64::from(own.max(f32::MIN_POSITIVE)).ln()),
        rank_in_data: Some(rank_in_data),
        real,
        ..PredictionRow::new(key, label, top)
    })
}

/// The probabilities of the data's classes, for the areas under their ROC curves.
struct Curves {
    /// The network's class of each class of the data.
    classes: Vec<u32>,
    /// `classes` for each image, and the image's label; `None` if they are not kept.
    kept: Option<(Vec<f32>, Vec<u32>)>,
}

impl Curves {
    /// The most probabilities that are kept: 256 MiB of them, enough for ImageNet's validation images.
    const MOST: usize = 1 << 26;

    fn new(map: &ClassMap, images: usize, shards: usize) -> Self {
        let is_kept = shards == 1 && images.saturating_mul(map.0.len()) <= Self::MOST;
        Self { classes: map.0.clone(), kept: is_kept.then(Default::default) }
    }

    fn add(&mut self, probabilities: &[f32], label: Option<u32>) {
        if let (Some((kept, labels)), Some(label)) = (&mut self.kept, label) {
            kept.extend(self.classes.iter().map(|&class| probabilities[class as usize]));
            labels.push(label);
        }
    }

    /// The mean area over the classes that have images.
    fn mean_area(&self) -> Option<f64> {
        let (kept, labels) = self.kept.as_ref()?;
        let classes = self.classes.len();
        let area = |class: usize| {
            let own = kept.iter().skip(class).step_by(classes);
            let cases: Vec<(f32, bool)> =
                own.zip(labels).map(|(&score, &label)| (score, label as usize == class)).collect();
            scores::area_under_roc(&cases)
        };
        let areas: Vec<f64> = (0..classes).filter_map(area).collect();
        (!areas.is_empty()).then(|| areas.iter().sum::<f64>() / areas.len() as f64)
    }
}

/// One shard of a source: every `count`-th sample, starting at `index`.
struct Shard {
    source: Arc<dyn Source>,
    index: usize,
    count: usize,
}

impl Shard {
    fn at(&self, index: usize) -> usize {
        index * self.count + self.index
    }
}

impl Source for Shard {
    fn len(&self) -> usize {
        self.source.len().saturating_sub(self.index).div_ceil(self.count)
    }
    fn classes(&self) -> &[datasets::Class] {
        self.source.classes()
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.source.label(self.at(index))
    }
    fn key(&self, index: usize) -> std::borrow::Cow<'_, str> {
        self.source.key(self.at(index))
    }
    fn location(&self, index: usize) -> datasets::Location {
        self.source.location(self.at(index))
    }
    fn read(&self, index: usize, buffer: &mut Vec<u8>) -> datasets::Result<()> {
        self.source.read(self.at(index), buffer)
    }
}

/// Its proportion and the interval.
fn proportion(count: Count) -> Proportion {
    let (low, high) = count.wilson();
    Proportion { right: count.hits, of: count.of, percent: count.percent(), low, high }
}

impl Evaluation {
    /// Returns the summary.
    pub fn summary(&self) -> EvaluationSummary {
        let (top1, top5) = stats::accuracy(&self.rows);
        let count = |holds: &dyn Fn(&PredictionRow) -> Option<bool>| {
            let mut count = Count::default();
            self.rows.iter().filter_map(holds).for_each(|holds| count.add(holds));
            (count.of > 0).then(|| proportion(count))
        };
        let subset = self.spec.data_classes < self.spec.classes;
        let among = |k: usize| if subset { count(&|row| Some(row.rank_in_data? < k)) } else { None };
        EvaluationSummary {
            format: FORMAT,
            spec: self.spec.clone(),
            shard_index: self.shard.0,
            num_shards: self.shard.1,
            top1: proportion(top1),
            top5: proportion(top5),
            loss: mean(&self.rows),
            top1_among_data_classes: among(1),
            top5_among_data_classes: among(5),
            top1_real: count(&|row| row.real),
            ece: stats::calibration(&self.rows).map(|calibration| calibration.ece),
            scores: scores::scores(&self.rows).map(|scores| Scores { auroc: self.auroc, ..scores }),
            bad_samples: self.bad.len(),
            seconds: self.seconds,
            images_per_second: self.rows.len() as f64 / self.seconds.max(1e-9),
        }
    }

    /// Writes `predictions.csv` and `result.json`, from which shards are merged.
    ///
    /// # Errors
    /// Fails if a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_csv(&folder.join(PREDICTIONS), &self.rows)?;
        if !self.bad.is_empty() {
            write_csv(&folder.join(BAD_SAMPLES), &self.bad)?;
        }
        write_json(&folder.join(CLASSES), &self.class_names)?;
        Ok(write_json(&folder.join(EVALUATION), &self.summary())?)
    }

    /// Reads what [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// Fails if a file is missing or damaged.
    pub fn read(folder: &Path) -> Result<Self> {
        let summary: EvaluationSummary = read_json(&folder.join(EVALUATION))?;
        let class_names = read_json(&folder.join(CLASSES))?;
        let rows: Vec<PredictionRow> = read_csv(&folder.join(PREDICTIONS))?;
        let bad_samples = folder.join(BAD_SAMPLES);
        let bad = if bad_samples.exists() { read_csv(&bad_samples)? } else { Vec::new() };
        if rows.len() != summary.top1.of {
            return Err(Error::Format(format!(
                "{} has {} images, result.json has {}",
                folder.join(PREDICTIONS).display(),
                rows.len(),
                summary.top1.of
            )));
        }
        let shard = (summary.shard_index, summary.num_shards);
        let auroc = summary.scores.and_then(|scores| scores.auroc);
        Ok(Self { spec: summary.spec, class_names, shard, rows, bad, seconds: summary.seconds, auroc })
    }
}

/// Returns the mean loss and its 95 % interval by the normal approximation.
fn mean(predictions: &[PredictionRow]) -> Mean {
    let losses: Vec<f64> = predictions.iter().filter_map(|prediction| prediction.loss).collect();
    let n = losses.len().max(1) as f64;
    let mean = losses.iter().sum::<f64>() / n;
    let variance = losses.iter().map(|loss| (loss - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let half = 1.959_964 * (variance / n).sqrt();
    Mean { mean, low: mean - half, high: mean + half }
}

/// Merges the shards of an evaluation: each image once, none missing.
///
/// # Errors
/// Fails if the shards belong to different evaluations, or if a shard is missing or occurs twice.
pub fn merge(mut parts: Vec<(String, Evaluation)>) -> Result<Evaluation> {
    parts.sort_by_key(|(_, part)| part.shard.0);
    let (first_name, first) = parts.first().ok_or_else(|| Error::Shards("no shards to merge".into()))?;
    let of = first.shard.1;
    if let Some((name, _)) = parts.iter().find(|(_, part)| part.spec != first.spec || part.shard.1 != of) {
        return Err(Error::Shards(format!(
            "{name} and {first_name} are shards of different evaluations: weights, data, protocol, commit and number of \
             shards must be equal"
        )));
    }
    let ranks: Vec<usize> = parts.iter().map(|(_, part)| part.shard.0).collect();
    if ranks != (0..of).collect::<Vec<_>>() {
        return Err(Error::Shards(format!("the shards 0 to {} are required, each once; given: {ranks:?}", of - 1)));
    }
    let (spec, class_names) = (first.spec.clone(), first.class_names.clone());
    let images: usize = parts.iter().map(|(_, part)| part.rows.len() + part.bad.len()).sum();
    if images != spec.images {
        return Err(Error::Shards(format!(
            "the shards have {images} images, the data has {}: is a shard incomplete?",
            spec.images
        )));
    }
    // Areas under curves do not add up.
    let auroc = first.auroc.filter(|_| of == 1);
    let (shard, rows, bad, seconds) = ((0, 1), Vec::new(), Vec::new(), 0.0);
    let mut merged = Evaluation { spec, class_names, shard, rows, bad, seconds, auroc };
    // Shard i has the images i, i + n, i + 2n, …, some of which may be unreadable.
    let mut rows = BTreeMap::new();
    for (_, part) in parts {
        let place = |nth: usize| part.shard.0 + nth * of;
        let bad: BTreeSet<usize> = part.bad.iter().map(|sample| sample.index).collect();
        let read = (0..).filter(|nth| !bad.contains(nth));
        rows.extend(read.zip(part.rows).map(|(nth, row)| (place(nth), row)));
        merged.bad.extend(part.bad.into_iter().map(|sample| BadSample { index: place(sample.index), ..sample }));
        merged.seconds += part.seconds;
    }
    merged.rows = rows.into_values().collect();
    merged.bad.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(merged)
}
