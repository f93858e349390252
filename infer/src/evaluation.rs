//! Judging networks on labelled images: every image once, its views' and the networks' probabilities averaged.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Tensor, activation::softmax};
use datasets::{BadSamples, ImageBatch, ImageLoader, Limits, Source, decode, imagenet, loader::BadSample};
use report::{
    format::{
        BAD_SAMPLES, EVALUATION, EvaluationSpec, EvaluationSummary, FORMAT, Mean, PREDICTIONS, PredictionRow,
        Proportion, read_csv, read_json, write_csv, write_json,
    },
    stats::{self, Count},
};
use runtime::progress::Progress;
use serde::{Deserialize, Serialize};

use crate::{
    labels::ClassMap,
    model::Model,
    protocol::{Protocol, Views},
};

/// The names of the network's classes, beside the other files of an evaluation.
const CLASSES: &str = "classes.json";

/// The most images that a network takes at a time, views counted.
const MOST_AT_ONCE: usize = 64;

/// The judgement of some or all images.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Evaluation {
    pub spec: EvaluationSpec,
    /// The names of the network's classes.
    pub class_names: Vec<String>,
    /// Which share this is, of how many.
    pub share: (usize, usize),
    /// In the order of the data.
    pub rows: Vec<PredictionRow>,
    pub bad: Vec<BadSample>,
    pub seconds: f64,
}

/// How an evaluation runs.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Settings {
    pub protocol: Protocol,
    pub batch_size: usize,
    pub workers: Option<usize>,
    pub bad_samples: BadSamples,
    /// Share `0` of `1` is everything.
    pub share: (usize, usize),
}

/// Judges the average of `models` on every image of the share once.
///
/// # Errors
/// Where the networks know different classes or the data's classes are not theirs, where an image cannot be read and
/// the policy is strict, or where an output is not finite.
pub fn evaluate(
    models: &[Model],
    source: &Arc<dyn Source>,
    settings: &Settings,
    spec: EvaluationSpec,
    progress: &Progress,
) -> Result<Evaluation> {
    let (rank, of) = settings.share;
    ensure!(of > 0 && rank < of, "--rank {rank} of --of {of}: ranks count from 0 and end below --of");
    let first = models.first().context("no weights to judge")?;
    for other in &models[1..] {
        ensure!(
            other.card().classes == first.card().classes,
            "the networks know different classes: {} and {} cannot be averaged",
            first.card().origin,
            other.card().origin
        );
    }
    let map = ClassMap::new(source.classes(), first.card())?;
    let share = Arc::new(Share { source: source.clone(), rank, of }) as Arc<dyn Source>;
    let began = Instant::now();
    let mut sums: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
    let mut bad: BTreeMap<String, BadSample> = BTreeMap::new();
    let mut rows = Vec::new();
    for (nth, model) in models.iter().enumerate() {
        // Each network has a card and thus views of its own.
        let views = Views::new(&settings.protocol, model.card())?;
        let mut take = |index: usize, mut probabilities: Vec<f32>| -> Result<()> {
            if nth > 0 {
                let sum = sums.remove(&index).context("the networks saw different images")?;
                probabilities.iter_mut().zip(sum).for_each(|(p, sum)| *p += sum);
            }
            if nth + 1 < models.len() {
                sums.insert(index, probabilities);
            } else {
                probabilities.iter_mut().for_each(|p| *p /= models.len() as f32);
                rows.push(judge(&probabilities, &*share, index, &map)?);
            }
            progress.inc(views.count() as u64);
            Ok(())
        };
        let met = match views.is_dense() {
            true => dense_pass(model, &views, &share, settings.bad_samples, &mut take)?,
            false => batched_pass(model, &views, &share, settings, &mut take)?,
        };
        bad.extend(met.into_iter().map(|sample| (sample.key.clone(), sample)));
    }
    Ok(Evaluation {
        spec,
        class_names: first.card().classes.clone(),
        share: settings.share,
        rows,
        bad: bad.into_values().collect(),
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// Takes each image's probabilities by its index in the share.
type Take<'a> = dyn FnMut(usize, Vec<f32>) -> Result<()> + 'a;

/// Views of one size, loaded by threads and run in batches; the samples that could not be read.
fn batched_pass(
    model: &Model,
    views: &Views,
    share: &Arc<dyn Source>,
    settings: &Settings,
    take: &mut Take<'_>,
) -> Result<Vec<BadSample>> {
    let images = (settings.batch_size / views.count()).max(1);
    let mut builder = ImageLoader::builder(share.clone(), Arc::new(views.clone()))
        .batch_size(images)
        .bad_samples(settings.bad_samples);
    if let Some(workers) = settings.workers {
        builder = builder.workers(workers);
    }
    let loader = builder.build()?;
    for batch in loader.batches() {
        let batch = batch?;
        let averaged = view_probabilities(model, &batch, views)?;
        averaged.into_iter().zip(&batch.indices).try_for_each(|(row, &index)| take(index, row))?;
    }
    Ok(loader.bad_samples())
}

/// Whole images, each of its own size, one at a time.
fn dense_pass(
    model: &Model,
    views: &Views,
    share: &Arc<dyn Source>,
    policy: BadSamples,
    take: &mut Take<'_>,
) -> Result<Vec<BadSample>> {
    let (mut bytes, mut bad) = (Vec::new(), Vec::new());
    for index in 0..share.len() {
        let image = share
            .read(index, &mut bytes)
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(decode(&bytes, &Limits::default())?));
        let image = match image {
            Ok(image) => image,
            Err(error) if policy == BadSamples::Skip => {
                let (key, location) = (share.key(index).into_owned(), share.location(index).to_string());
                bad.push(BadSample { index, key, location, cause: format!("{error:#}"), times: 1 });
                continue;
            }
            Err(error) => return Err(error.context(share.location(index).to_string())),
        };
        let mut sum = vec![0f32; model.card().classes.len()];
        for view in views.of(&image) {
            let batch = ImageBatch {
                shape: [1, 3, view.height() as usize, view.width() as usize],
                images: (0..3).flat_map(|channel| view.as_raw().iter().skip(channel).step_by(3).copied()).collect(),
                labels: None,
                mix: None,
                indices: Vec::new(),
                epoch: 0,
                number: 0,
            };
            let input = model.preprocess().normalise(&batch, model.device());
            let probabilities = floats(softmax(model.network().forward_dense(model.typed(input)), 1))?;
            sum.iter_mut().zip(probabilities).for_each(|(sum, p)| *sum += p / views.count() as f32);
        }
        take(index, sum)?;
    }
    Ok(bad)
}

/// A tensor's values on the host, all of them finite.
fn floats(tensor: Tensor<2>) -> Result<Vec<f32>> {
    let data = tensor.try_into_data().context("the device could not run the network")?;
    let values: Vec<f32> = data.iter::<f32>().collect();
    ensure!(
        values.iter().all(|value| value.is_finite()),
        "the network's outputs are not finite: are the weights damaged?"
    );
    Ok(values)
}

/// How many views all networks take of all images of a share.
pub fn num_views(models: &[Model], images: usize, settings: &Settings) -> Result<u64> {
    let (rank, of) = settings.share;
    let share = images.saturating_sub(rank).div_ceil(of.max(1));
    let views = models.iter().map(|model| Ok(Views::new(&settings.protocol, model.card())?.count() as u64));
    Ok(views.sum::<Result<u64>>()? * share as u64)
}

/// The mean over its views of each image's probabilities.
fn view_probabilities(model: &Model, batch: &ImageBatch, views: &Views) -> Result<Vec<Vec<f32>>> {
    let (per_image, side) = (views.count(), views.side() as usize);
    let single = unstack(batch, per_image, side);
    let mut all: Vec<f32> = Vec::new();
    let plane = 3 * side * side;
    for pixels in single.chunks(MOST_AT_ONCE * plane) {
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
        all.extend(floats(softmax(model.logits(&part), 1))?);
    }
    let classes = model.card().classes.len();
    let mean = |views: &[f32]| {
        let mut sum = vec![0f32; classes];
        views.chunks_exact(classes).for_each(|view| sum.iter_mut().zip(view).for_each(|(sum, p)| *sum += p));
        sum.iter_mut().for_each(|sum| *sum /= per_image as f32);
        sum
    };
    Ok(all.chunks_exact(per_image * classes).map(mean).collect())
}

/// Views stacked from top to bottom, `[n, 3, views · side, side]`, one after the other, `[n · views, 3, side, side]`.
fn unstack(batch: &ImageBatch, views: usize, side: usize) -> Vec<u8> {
    if views == 1 {
        return batch.images.clone();
    }
    let plane = side * side;
    let mut single = Vec::with_capacity(batch.images.len());
    for image in batch.images.chunks_exact(3 * views * plane) {
        for view in 0..views {
            for channel in 0..3 {
                let at = (channel * views + view) * plane;
                single.extend_from_slice(&image[at..at + plane]);
            }
        }
    }
    single
}

/// From an image's probabilities to its row.
fn judge(probabilities: &[f32], source: &dyn Source, index: usize, map: &ClassMap) -> Result<PredictionRow> {
    let label = source.label(index).with_context(|| format!("{} has no label", source.location(index)))?;
    let label = map.0[label as usize] as usize;
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    // Stable: of equals the first counts.
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

/// Every `of`-th sample, from `rank` on.
struct Share {
    source: Arc<dyn Source>,
    rank: usize,
    of: usize,
}

impl Share {
    fn at(&self, index: usize) -> usize {
        index * self.of + self.rank
    }
}

impl Source for Share {
    fn len(&self) -> usize {
        self.source.len().saturating_sub(self.rank).div_ceil(self.of)
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
    /// The judgement in numbers.
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
            rank: self.share.0,
            of: self.share.1,
            top1: proportion(top1),
            top5: proportion(top5),
            loss: mean(&self.rows),
            top1_among_data_classes: among(1),
            top5_among_data_classes: among(5),
            top1_real: count(&|row| row.real),
            ece: stats::calibration(&self.rows).map(|calibration| calibration.ece),
            bad_samples: self.bad.len(),
            seconds: self.seconds,
            images_per_second: self.rows.len() as f64 / self.seconds.max(1e-9),
        }
    }

    /// Writes `predictions.csv` and `result.json`, by which parts are merged.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_csv(&folder.join(PREDICTIONS), &self.rows)?;
        if !self.bad.is_empty() {
            write_csv(&folder.join(BAD_SAMPLES), &self.bad)?;
        }
        write_json(&folder.join(CLASSES), &self.class_names)?;
        write_json(&folder.join(EVALUATION), &self.summary())
    }

    /// Reads back what [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// Where a file is missing or damaged.
    pub fn read(folder: &Path) -> Result<Self> {
        let summary: EvaluationSummary = read_json(&folder.join(EVALUATION))?;
        let class_names = read_json(&folder.join(CLASSES))?;
        let rows: Vec<PredictionRow> = read_csv(&folder.join(PREDICTIONS))?;
        let bad_samples = folder.join(BAD_SAMPLES);
        let bad = if bad_samples.exists() { read_csv(&bad_samples)? } else { Vec::new() };
        ensure!(
            rows.len() == summary.top1.of,
            "{} holds {} images, result.json says {}",
            folder.join(PREDICTIONS).display(),
            rows.len(),
            summary.top1.of
        );
        let share = (summary.rank, summary.of);
        Ok(Self { spec: summary.spec, class_names, share, rows, bad, seconds: summary.seconds })
    }
}

/// The mean loss and its 95 % interval, by the normal distribution.
fn mean(predictions: &[PredictionRow]) -> Mean {
    let losses: Vec<f64> = predictions.iter().filter_map(|prediction| prediction.loss).collect();
    let n = losses.len().max(1) as f64;
    let mean = losses.iter().sum::<f64>() / n;
    let variance = losses.iter().map(|loss| (loss - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let half = 1.959_964 * (variance / n).sqrt();
    Mean { mean, low: mean - half, high: mean + half }
}

/// Puts the shares of one evaluation together: each image once, none missing.
///
/// # Errors
/// Where the parts are of different evaluations, or not each share is there once.
pub fn merge(mut parts: Vec<(String, Evaluation)>) -> Result<Evaluation> {
    parts.sort_by_key(|(_, part)| part.share.0);
    let (first_name, first) = parts.first().context("no parts to merge")?;
    let of = first.share.1;
    for (name, part) in &parts {
        ensure!(
            part.spec == first.spec && part.share.1 == of,
            "{name} and {first_name} are parts of different evaluations: weights, data, protocol, commit and number of \
             shares must be the same"
        );
    }
    let ranks: Vec<usize> = parts.iter().map(|(_, part)| part.share.0).collect();
    if ranks != (0..of).collect::<Vec<_>>() {
        bail!("the shares 0 to {} are needed, each once; given: {ranks:?}", of - 1);
    }
    let (spec, class_names) = (first.spec.clone(), first.class_names.clone());
    let images: usize = parts.iter().map(|(_, part)| part.rows.len() + part.bad.len()).sum();
    ensure!(
        images == spec.images,
        "the parts hold {images} images, the data {}: is one of them incomplete?",
        spec.images
    );
    let mut merged = Evaluation { spec, class_names, share: (0, 1), rows: Vec::new(), bad: Vec::new(), seconds: 0.0 };
    // Share r has the images r, r + of, …, some of which could not be read.
    let mut rows = BTreeMap::new();
    for (_, part) in parts {
        let place = |nth: usize| part.share.0 + nth * of;
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
