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
use report::stats::{self, Count, Prediction};
use runtime::{files::write_atomic_bytes, progress::Progress};
use serde::{Deserialize, Serialize};

use crate::{
    labels::ClassMap,
    model::Model,
    protocol::{Protocol, Views},
};

/// The most images that a network takes at a time, views counted.
const MOST_AT_ONCE: usize = 64;

/// What was judged, how and on what: an evaluation's parts can be merged if it is the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // The fields are what `result.json` calls them.
pub struct Subject {
    /// The weights as given.
    pub weights: Vec<String>,
    pub architectures: Vec<String>,
    /// Where the cards say that the weights come from.
    pub origins: Vec<String>,
    pub data: String,
    pub split: String,
    /// Images in the data, of all shares.
    pub images: usize,
    /// Classes of the network, and of the data.
    pub classes: usize,
    pub data_classes: usize,
    pub protocol: String,
    pub hearth: String,
    /// The commit of the source tree that the program runs in, where there is one.
    pub commit: Option<String>,
    pub backend: String,
}

/// A row of `predictions.csv`: what the network says of one image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // The columns.
pub struct Row {
    pub key: String,
    pub label: usize,
    pub p_label: Option<f64>,
    pub loss: Option<f64>,
    pub pred1: Option<usize>,
    pub p1: Option<f64>,
    pub pred2: Option<usize>,
    pub p2: Option<f64>,
    pub pred3: Option<usize>,
    pub p3: Option<f64>,
    pub pred4: Option<usize>,
    pub p4: Option<f64>,
    pub pred5: Option<usize>,
    pub p5: Option<f64>,
    /// Classes of the data that are more probable than the label.
    pub rank_in_data: usize,
    /// Whether the most probable class is among the image's ReaL labels; empty where it has none.
    pub real: Option<bool>,
}

impl Row {
    /// The part that statistics are made of.
    pub fn prediction(&self) -> Prediction {
        Prediction {
            key: self.key.clone(),
            label: self.label,
            p_label: self.p_label,
            loss: self.loss,
            pred1: self.pred1,
            p1: self.p1,
            pred2: self.pred2,
            p2: self.p2,
            pred3: self.pred3,
            p3: self.p3,
            pred4: self.pred4,
            p4: self.p4,
            pred5: self.pred5,
            p5: self.p5,
        }
    }
}

/// The judgement of some or all images.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Evaluation {
    pub subject: Subject,
    /// The names of the network's classes.
    pub class_names: Vec<String>,
    /// Which share this is, of how many.
    pub share: (usize, usize),
    /// In the order of the data.
    pub rows: Vec<Row>,
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
    subject: Subject,
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
        subject,
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
            let probabilities = floats(softmax(model.run(|network| network.forward_dense(input)), 1))?;
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
fn judge(probabilities: &[f32], source: &dyn Source, index: usize, map: &ClassMap) -> Result<Row> {
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
    let (pred, p) = (|n: usize| order.get(n).copied(), |n: usize| order.get(n).map(|&c| f64::from(probabilities[c])));
    Ok(Row {
        label,
        p_label: Some(f64::from(own)),
        loss: Some(-f64::from(own.max(f32::MIN_POSITIVE)).ln()),
        pred1: pred(0),
        p1: p(0),
        pred2: pred(1),
        p2: p(1),
        pred3: pred(2),
        p3: p(2),
        pred4: pred(3),
        p4: p(3),
        pred5: pred(4),
        p5: p(4),
        rank_in_data,
        real: real.map(|labels| labels.iter().any(|&label| Some(usize::from(label)) == pred(0))),
        key,
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

/// A count with its share in percent and Wilson's 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Rate {
    pub right: usize,
    pub of: usize,
    pub percent: f64,
    pub low: f64,
    pub high: f64,
}

impl From<Count> for Rate {
    fn from(count: Count) -> Self {
        let (low, high) = count.wilson();
        Self { right: count.hits, of: count.of, percent: count.percent(), low, high }
    }
}

/// A mean with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Mean {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
}

/// `result.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // The fields are what `result.json` calls them.
pub struct Summary {
    #[serde(flatten)]
    pub subject: Subject,
    pub rank: usize,
    pub of: usize,
    pub top1: Rate,
    pub top5: Rate,
    pub loss: Mean,
    /// Among the data's classes alone, where the network knows more.
    pub top1_among_data_classes: Option<Rate>,
    pub top5_among_data_classes: Option<Rate>,
    /// By the reassessed labels of Beyer et al., 2020, of images that have some.
    pub top1_real: Option<Rate>,
    /// The expected calibration error in percentage points.
    pub ece: Option<f64>,
    pub bad_samples: usize,
    pub seconds: f64,
    pub images_per_second: f64,
}

impl Evaluation {
    /// The rows' statistics part.
    pub fn predictions(&self) -> Vec<Prediction> {
        self.rows.iter().map(Row::prediction).collect()
    }

    /// The judgement in numbers.
    pub fn summary(&self) -> Summary {
        let predictions = self.predictions();
        let (top1, top5) = stats::accuracy(&predictions);
        let count = |holds: &dyn Fn(&Row) -> Option<bool>| {
            let mut count = Count::default();
            self.rows.iter().filter_map(holds).for_each(|holds| count.add(holds));
            (count.of > 0).then(|| Rate::from(count))
        };
        let subset = self.subject.data_classes < self.subject.classes;
        let among = |k: usize| if subset { count(&|row| Some(row.rank_in_data < k)) } else { None };
        Summary {
            subject: self.subject.clone(),
            rank: self.share.0,
            of: self.share.1,
            top1: top1.into(),
            top5: top5.into(),
            loss: mean(&predictions),
            top1_among_data_classes: among(1),
            top5_among_data_classes: among(5),
            top1_real: count(&|row| row.real),
            ece: stats::calibration(&predictions).map(|calibration| calibration.ece),
            bad_samples: self.bad.len(),
            seconds: self.seconds,
            images_per_second: self.rows.len() as f64 / self.seconds.max(1e-9),
        }
    }

    /// Writes `predictions.csv` and `result.json`, by which parts are merged.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut table = csv::Writer::from_writer(Vec::new());
        for row in &self.rows {
            table.serialize(row)?;
        }
        write_atomic_bytes(&folder.join("predictions.csv"), &table.into_inner()?)?;
        if !self.bad.is_empty() {
            let mut table = csv::Writer::from_writer(Vec::new());
            self.bad.iter().try_for_each(|bad| table.serialize(bad))?;
            write_atomic_bytes(&folder.join("bad_samples.csv"), &table.into_inner()?)?;
        }
        let classes = serde_json::to_vec_pretty(&self.class_names)?;
        write_atomic_bytes(&folder.join("classes.json"), &classes)?;
        write_atomic_bytes(&folder.join("result.json"), &serde_json::to_vec_pretty(&self.summary())?)
    }

    /// Reads back what [`write`](Self::write) wrote.
    ///
    /// # Errors
    /// Where a file is missing or damaged.
    pub fn read(folder: &Path) -> Result<Self> {
        let file = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let damaged = |name: &str| format!("{} is damaged", folder.join(name).display());
        let summary: Summary = serde_json::from_slice(&file("result.json")?).with_context(|| damaged("result.json"))?;
        let class_names = serde_json::from_slice(&file("classes.json")?).with_context(|| damaged("classes.json"))?;
        let bytes = file("predictions.csv")?;
        let rows: Result<Vec<Row>, _> = csv::Reader::from_reader(bytes.as_slice()).into_deserialize().collect();
        let rows = rows.with_context(|| damaged("predictions.csv"))?;
        let bad = match folder.join("bad_samples.csv").exists() {
            true => {
                let bytes = file("bad_samples.csv")?;
                let bad: Result<Vec<BadSample>, _> =
                    csv::Reader::from_reader(bytes.as_slice()).into_deserialize().collect();
                bad.with_context(|| damaged("bad_samples.csv"))?
            }
            false => Vec::new(),
        };
        ensure!(
            rows.len() == summary.top1.of,
            "{} holds {} images, result.json says {}",
            folder.join("predictions.csv").display(),
            rows.len(),
            summary.top1.of
        );
        let share = (summary.rank, summary.of);
        Ok(Self { subject: summary.subject, class_names, share, rows, bad, seconds: summary.seconds })
    }
}

/// The mean loss and its 95 % interval, by the normal distribution.
fn mean(predictions: &[Prediction]) -> Mean {
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
            part.subject == first.subject && part.share.1 == of,
            "{name} and {first_name} are parts of different evaluations: weights, data, protocol, commit and number of \
             shares must be the same"
        );
    }
    let ranks: Vec<usize> = parts.iter().map(|(_, part)| part.share.0).collect();
    if ranks != (0..of).collect::<Vec<_>>() {
        bail!("the shares 0 to {} are needed, each once; given: {ranks:?}", of - 1);
    }
    let (subject, class_names) = (first.subject.clone(), first.class_names.clone());
    let images: usize = parts.iter().map(|(_, part)| part.rows.len() + part.bad.len()).sum();
    ensure!(
        images == subject.images,
        "the parts hold {images} images, the data {}: is one of them incomplete?",
        subject.images
    );
    let mut merged =
        Evaluation { subject, class_names, share: (0, 1), rows: Vec::new(), bad: Vec::new(), seconds: 0.0 };
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
