//! The run format: what `train` and `infer` write into a run's folder and what reports read, as one set of types.
//!
//! Every file is JSON or CSV. JSON objects carry a `format` version. Readers ignore unknown keys and columns and accept
//! missing ones, so a report can show a run that is in progress, was cut off, or was written by another version.

use std::{collections::BTreeMap, error::Error as StdError, path::Path};

use runtime::{
    files::{self, write_atomic_bytes},
    text::cell,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Error, Result};

/// The version of the run format that this build writes.
pub const FORMAT: u32 = 1;

/// [`RunInfo`].
pub const RUN: &str = "run.json";
/// The effective recipe.
pub const RECIPE: &str = "recipe.toml";
/// The model card.
pub const CARD: &str = "card.json";
/// [`MetricRow`]s.
pub const METRICS: &str = "metrics.csv";
/// [`EpochRow`]s.
pub const EPOCHS: &str = "epochs.csv";
/// [`PredictionRow`]s.
pub const PREDICTIONS: &str = "predictions.csv";
/// [`MistakeRow`]s, beside the thumbnails that they name.
pub const MISTAKES: &str = "mistakes/index.csv";
/// Images that could not be read or decoded.
pub const BAD_SAMPLES: &str = "bad_samples.csv";
/// The log of a run: its notes and warnings, and log records.
pub const EXPERIMENT_LOG: &str = "experiment.log";
/// [`EvaluationSummary`].
pub const EVALUATION: &str = "result.json";

/// The identity, environment, state and result of a run: `run.json`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RunInfo {
    /// The version of the run format; 0 in files written before there was one.
    pub format: u32,
    /// The name of the run.
    pub name: String,
    /// The command line that began it.
    pub command: Vec<String>,
    /// What was done.
    pub kind: RunKind,
    /// How far it got.
    pub status: Option<RunStatus>,
    /// The version of Hearth.
    pub hearth: String,
    /// The commit of the source tree that the program runs in, if any.
    pub commit: Option<String>,
    /// The version of Burn.
    pub burn: String,
    /// The devices that trained the run; after it was resumed on others, `cuda:0, then flex`.
    pub backend: String,
    /// The devices.
    pub device: String,
    /// The operations that the network ran on the CPU, `optimized` or `reference`; empty where it is not known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kernels: String,
    /// The number of CPU threads.
    pub threads: usize,
    /// The operating system and processor architecture.
    pub os: String,
    /// The processor's name.
    pub cpu: String,
    /// The compute precision.
    pub dtype: String,
    /// When the run began: RFC 3339, UTC.
    pub started: String,
    /// When it ended.
    pub finished: Option<String>,
    /// The data set.
    pub data: DataInfo,
    /// The absolute paths of what the recipe names, by its keys.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub paths: BTreeMap<String, String>,
    /// What was changed when the run was resumed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<RunChange>,
    /// What was decided from the data and the weights before the first step, a sentence each. The recipe has the values.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub decisions: Vec<String>,
    /// The number of trainable parameters; 0 where it is not known.
    #[serde(skip_serializing_if = "is_zero")]
    pub parameters: usize,
    /// The result, once an epoch has been validated.
    pub result: Option<RunResult>,
}

/// What a run did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunKind {
    /// Training from random weights.
    #[default]
    Pretrain,
    /// Training from given weights.
    Finetune,
    /// Training of a classifier on frozen features.
    Probe,
    /// Evaluation of given weights.
    Evaluation,
}

impl RunKind {
    /// The name in `run.json`.
    pub fn name(self) -> &'static str {
        match self {
            RunKind::Pretrain => "pretrain",
            RunKind::Finetune => "finetune",
            RunKind::Probe => "probe",
            RunKind::Evaluation => "evaluation",
        }
    }
}

/// The state of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunStatus {
    /// It has begun and not ended, or its process was killed.
    Running,
    /// It reached its end.
    Finished,
    /// It was stopped on request.
    Interrupted,
    /// It ended with an error.
    Failed,
}

impl RunStatus {
    /// The name in `run.json`.
    pub fn name(self) -> &'static str {
        match self {
            RunStatus::Running => "running",
            RunStatus::Finished => "finished",
            RunStatus::Interrupted => "interrupted",
            RunStatus::Failed => "failed",
        }
    }
}

/// The data set of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DataInfo {
    /// Where the training images are; absent in evaluations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<String>,
    /// Where the validation images are.
    pub valid: Option<String>,
    /// The kind of source: a folder, an archive, shards.
    pub kind: String,
    /// The number of training images; 0 in evaluations.
    #[serde(skip_serializing_if = "is_zero")]
    pub train_images: usize,
    /// The number of validation images.
    #[serde(skip_serializing_if = "is_zero")]
    pub valid_images: usize,
    /// The number of classes in the data.
    pub classes: usize,
    /// The hash of the images' keys and labels and of the classes, which does not depend on where they are.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fingerprint: String,
}

/// A change with which a run was resumed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RunChange {
    /// The number of optimizer steps before it.
    pub step: u64,
    /// The epoch that it falls into, from 1.
    pub epoch: usize,
    /// The key of the recipe, or `device`, `images`, `program` or `cpu`.
    pub key: String,
    /// The value before.
    pub from: String,
    /// The value since.
    pub to: String,
}

/// Means over images; top-1 and top-5 in percent.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Metrics {
    /// The mean loss.
    pub loss: f64,
    /// Images whose most probable class is the label.
    pub top1: f64,
    /// Images whose label is among the five most probable classes.
    pub top5: f64,
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RunResult {
    /// The epoch whose weights were kept, from 1, or 0 for the network before its first step; absent in evaluations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_epoch: Option<usize>,
    /// The score of the weights that were kept.
    pub best: Metrics,
    /// The score of the raw weights after the last epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Metrics>,
    /// The score of their EMA after the last epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema: Option<Metrics>,
    /// The throughput of training, or of the evaluation: images that went through the network. 0 for a probe whose features
    /// were cached.
    pub images_per_second: f64,
    /// The duration without pauses.
    pub seconds: f64,
    /// The number of images that could not be read or decoded, over all epochs.
    pub bad_samples: u64,
    /// The number of steps that were skipped because the loss or a gradient was not finite.
    pub skipped_steps: u64,
}

/// A row of `metrics.csv`: the mean over the steps since the last row (`train_step`), or over an epoch (`train`,
/// `valid`, `valid_ema`).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MetricRow {
    /// The epoch, from 1; 0 before the first step.
    pub epoch: Option<usize>,
    /// The number of optimizer steps so far.
    pub step: Option<u64>,
    /// `train_step`, `train`, `valid` or `valid_ema`.
    #[serde(default)]
    pub split: String,
    /// The mean loss.
    #[serde(serialize_with = "decimals::<5, _>")]
    pub loss: Option<f64>,
    /// Top-1 accuracy in percent.
    #[serde(serialize_with = "decimals::<3, _>")]
    pub top1: Option<f64>,
    /// Top-5 accuracy in percent.
    #[serde(serialize_with = "decimals::<3, _>")]
    pub top5: Option<f64>,
    /// The learning rate of the last step.
    #[serde(serialize_with = "scientific")]
    pub learning_rate: Option<f64>,
    /// The mean norm of the gradient.
    #[serde(serialize_with = "decimals::<5, _>")]
    pub gradient_norm: Option<f64>,
    /// The throughput of training.
    #[serde(serialize_with = "decimals::<1, _>")]
    pub images_per_second: Option<f64>,
}

/// A row of `epochs.csv`: where the time of an epoch went, in seconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EpochRow {
    /// The epoch, from 1.
    pub epoch: Option<usize>,
    /// The duration of the epoch.
    #[serde(serialize_with = "decimals::<3, _>")]
    pub seconds: Option<f64>,
    /// Waiting for the loader.
    #[serde(serialize_with = "decimals::<3, _>")]
    pub waiting: Option<f64>,
    /// Copying batches to the device, where compute had to wait for that; 0 on the CPU.
    #[serde(default, serialize_with = "decimals::<3, _>")]
    pub transfer: Option<f64>,
    /// Forward and backward passes and the optimizer.
    #[serde(serialize_with = "decimals::<3, _>")]
    pub compute: Option<f64>,
    /// With several processes: waiting for the slowest of them.
    #[serde(serialize_with = "decimals::<3, _>")]
    pub waiting_for_ranks: Option<f64>,
    /// With several processes: the all-reduce of gradients.
    #[serde(serialize_with = "decimals::<3, _>")]
    pub all_reduce: Option<f64>,
    /// Validation.
    #[serde(serialize_with = "decimals::<3, _>")]
    pub validation: Option<f64>,
    /// Writing checkpoints.
    #[serde(serialize_with = "decimals::<3, _>")]
    pub checkpointing: Option<f64>,
    /// The loader's threads, summed: reading files.
    #[serde(serialize_with = "decimals::<3, _>")]
    pub reading: Option<f64>,
    /// Decoding images.
    #[serde(serialize_with = "decimals::<3, _>")]
    pub decoding: Option<f64>,
    /// Transforms.
    #[serde(serialize_with = "decimals::<3, _>")]
    pub transforming: Option<f64>,
    /// Collating batches.
    #[serde(serialize_with = "decimals::<3, _>")]
    pub collating: Option<f64>,
    /// Waiting for room in the queue.
    #[serde(serialize_with = "decimals::<3, _>")]
    pub idle: Option<f64>,
    /// The number of images that could not be read or decoded.
    pub bad_samples: Option<u64>,
    /// The number of steps that were skipped because the loss or a gradient was not finite.
    pub skipped_steps: Option<u64>,
    /// What would make the epoch faster, if anything.
    #[serde(default)]
    pub advice: String,
}

/// A row of `predictions.csv`: the five most probable classes of one image.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PredictionRow {
    /// The image's key.
    #[serde(default, with = "cell")]
    pub key: String,
    /// The true class.
    pub label: usize,
    /// The probability of the true class.
    pub p_label: Option<f64>,
    /// The cross entropy.
    pub loss: Option<f64>,
    /// The most probable class.
    pub pred1: Option<usize>,
    /// Its probability.
    pub p1: Option<f64>,
    /// The second most probable class.
    pub pred2: Option<usize>,
    /// Its probability.
    pub p2: Option<f64>,
    /// The third most probable class.
    pub pred3: Option<usize>,
    /// Its probability.
    pub p3: Option<f64>,
    /// The fourth most probable class.
    pub pred4: Option<usize>,
    /// Its probability.
    pub p4: Option<f64>,
    /// The fifth most probable class.
    pub pred5: Option<usize>,
    /// Its probability.
    pub p5: Option<f64>,
    /// In evaluations: the number of classes of the data that are more probable than the label.
    #[serde(default)]
    pub rank_in_data: Option<usize>,
    /// In evaluations of ImageNet: whether the most probable class is among the image's ReaL labels; empty where it has
    /// none.
    #[serde(default)]
    pub real: Option<bool>,
}

impl PredictionRow {
    /// A row with the most probable classes and their probabilities, the most probable first; those after the fifth are
    /// left out.
    pub fn new(key: String, label: usize, top: impl IntoIterator<Item = (usize, f64)>) -> Self {
        let mut top = top.into_iter();
        let mut next = || top.next().unzip();
        let [(pred1, p1), (pred2, p2), (pred3, p3), (pred4, p4), (pred5, p5)] = std::array::from_fn(|_| next());
        Self { key, label, pred1, p1, pred2, p2, pred3, p3, pred4, p4, pred5, p5, ..Self::default() }
    }

    /// Whether the most probable class is the label.
    pub fn is_right(&self) -> bool {
        self.pred1 == Some(self.label)
    }

    /// Whether the label is among the five most probable classes.
    pub fn is_in_top5(&self) -> bool {
        [self.pred1, self.pred2, self.pred3, self.pred4, self.pred5].contains(&Some(self.label))
    }
}

/// A row of `mistakes/index.csv`: a thumbnail of an image that was classified wrongly.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MistakeRow {
    /// The thumbnail's file, in the folder of the index.
    #[serde(default)]
    pub file: String,
    /// The image's key.
    #[serde(default, with = "cell")]
    pub key: String,
    /// The true class.
    pub label: usize,
    /// The most probable class.
    pub pred1: Option<usize>,
    /// Its probability.
    #[serde(serialize_with = "decimals::<6, _>")]
    pub p1: Option<f64>,
}

/// What was evaluated, how and on what. Shards of an evaluation can be merged where it is equal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvaluationSpec {
    /// The weights as given.
    pub weights: Vec<String>,
    /// Their architectures.
    pub architectures: Vec<String>,
    /// Where the weights come from, according to their cards.
    pub origins: Vec<String>,
    /// The data set.
    pub data: String,
    /// Its split.
    pub split: String,
    /// The number of images in the data, over all shards.
    pub images: usize,
    /// The number of classes of the network.
    pub classes: usize,
    /// The number of classes of the data.
    pub data_classes: usize,
    /// How the data's classes were mapped to the network's, if not by name: `index`, or the file of the map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_map: Option<String>,
    /// The crops and scales.
    pub protocol: String,
    /// The version of Hearth.
    pub hearth: String,
    /// The commit of the source tree that the program runs in, if any.
    pub commit: Option<String>,
    /// The backend.
    pub backend: String,
}

/// A proportion in percent with its 95 % interval (Wilson).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Proportion {
    /// The number of images for which it holds.
    pub right: usize,
    /// The number of images.
    pub of: usize,
    /// The proportion.
    pub percent: f64,
    /// The lower bound of the interval.
    pub low: f64,
    /// The upper bound.
    pub high: f64,
}

/// A mean with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// The lower bound of the interval.
    pub low: f64,
    /// The upper bound.
    pub high: f64,
}

/// Precision, recall and F1, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct PrecisionRecall {
    /// Of the images that are predicted as a class, the part that is of it; 0 if there are none.
    pub precision: f64,
    /// Of a class's images, the part that is predicted as it; 0 if there are none.
    pub recall: f64,
    /// The harmonic mean of both; 0 if both are.
    pub f1: f64,
}

/// The scores of predictions over the classes that occur among labels or predictions.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Scores {
    /// Over all images; precision, recall and F1 are the accuracy where an image has one label.
    pub micro: PrecisionRecall,
    /// The mean over classes.
    #[serde(rename = "macro")]
    pub macro_average: PrecisionRecall,
    /// The mean over classes, weighted by their images.
    pub weighted: PrecisionRecall,
    /// The mean recall of the classes that have images.
    pub balanced_accuracy: f64,
    /// Cohen's κ: agreement of labels and predictions beyond chance; absent where both are always one class.
    pub kappa: Option<f64>,
    /// The mean over classes of the area under the ROC curve, one class against the rest; absent where the probabilities
    /// of all classes were not kept.
    #[serde(default)]
    pub auroc: Option<f64>,
}

/// The result of an evaluation: `result.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationSummary {
    /// The version of the run format.
    #[serde(default)]
    pub format: u32,
    /// What was evaluated.
    #[serde(flatten)]
    pub spec: EvaluationSpec,
    /// The index of the shard, from 0.
    #[serde(rename = "rank")]
    pub shard_index: usize,
    /// The number of shards.
    #[serde(rename = "of")]
    pub num_shards: usize,
    /// Top-1 accuracy.
    pub top1: Proportion,
    /// Top-5 accuracy.
    pub top5: Proportion,
    /// The cross entropy.
    pub loss: Mean,
    /// Top-1 accuracy among the classes of the data, where the network has more.
    pub top1_among_data_classes: Option<Proportion>,
    /// Top-5 accuracy among the classes of the data.
    pub top5_among_data_classes: Option<Proportion>,
    /// Top-1 accuracy by the reassessed labels of Beyer et al., 2020, over the images that have some.
    pub top1_real: Option<Proportion>,
    /// The expected calibration error in percentage points.
    pub ece: Option<f64>,
    /// Precision, recall, F1 and what follows from them.
    #[serde(default)]
    pub scores: Option<Scores>,
    /// The number of images that could not be read or decoded.
    pub bad_samples: usize,
    /// The duration.
    pub seconds: f64,
    /// The throughput.
    pub images_per_second: f64,
}

/// Writes a JSON file, complete or not at all.
///
/// # Errors
/// Fails if the file cannot be written.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let json = serde_json::to_string_pretty(value).map_err(|error| encode(path, error))?;
    Ok(write_atomic_bytes(path, (json + "\n").as_bytes())?)
}

/// Reads a JSON file.
///
/// # Errors
/// Fails if the file cannot be read or does not hold a `T`.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = files::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
    serde_json::from_str(&text).map_err(|error| damaged(path, error))
}

/// Writes a table with a header, complete or not at all.
///
/// # Errors
/// Fails if the file cannot be written.
pub fn write_csv<T: Serialize>(path: &Path, rows: impl IntoIterator<Item = T>) -> Result<()> {
    let mut table = csv::Writer::from_writer(Vec::new());
    for row in rows {
        table.serialize(row).map_err(|error| encode(path, error))?;
    }
    let bytes = table.into_inner().map_err(|error| encode(path, error.into_error()))?;
    Ok(write_atomic_bytes(path, &bytes)?)
}

/// Reads a table. Every row must be whole; reports read tables more tolerantly.
///
/// # Errors
/// Fails if the file cannot be read or a row does not hold a `T`.
pub fn read_csv<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let bytes = files::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
    let rows: Result<Vec<T>, _> = csv::Reader::from_reader(bytes.as_slice()).into_deserialize().collect();
    rows.map_err(|error| damaged(path, error))
}

fn encode(path: &Path, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
    Error::Encode { path: path.into(), source: source.into() }
}

fn damaged(path: &Path, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
    Error::Damaged { path: path.into(), source: source.into() }
}

/// The header line of a table that grows row by row.
pub fn csv_header<T: Serialize + Default>() -> String {
    let text = csv_text(csv::WriterBuilder::new(), &T::default());
    text.split_inclusive('\n').next().unwrap_or_default().to_string()
}

/// One line of a table that grows row by row.
pub fn csv_line<T: Serialize>(row: &T) -> String {
    let mut builder = csv::WriterBuilder::new();
    builder.has_headers(false);
    csv_text(builder, row)
}

fn csv_text<T: Serialize>(builder: csv::WriterBuilder, row: &T) -> String {
    let mut table = builder.from_writer(Vec::new());
    table.serialize(row).expect("the run format's rows are flat and memory does not fail to be written");
    String::from_utf8(table.into_inner().unwrap_or_default()).unwrap_or_default()
}

#[allow(clippy::trivially_copy_pass_by_ref)] // The signature that serde asks for.
fn is_zero(value: &usize) -> bool {
    *value == 0
}

/// Serializes a number with `N` decimals.
#[allow(clippy::ref_option)] // The signature that serde asks for.
fn decimals<const N: usize, S: serde::Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(&format_args!("{value:.N$}")),
        None => serializer.serialize_none(),
    }
}

/// Serializes a number with seven significant digits, whatever its magnitude.
#[allow(clippy::ref_option)] // The signature that serde asks for.
fn scientific<S: serde::Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(&format_args!("{value:.6e}")),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn rows_are_written_with_their_columns_and_digits() {
        assert_eq!(
            csv_header::<MetricRow>(),
            "epoch,step,split,loss,top1,top5,learning_rate,gradient_norm,images_per_second\n"
        );
        let row = MetricRow {
            epoch: Some(1),
            step: Some(45),
            split: "train_step".to_string(),
            loss: Some(f64::NAN),
            top1: Some(200.0 / 3.0),
            learning_rate: Some(0.1),
            ..MetricRow::default()
        };
        assert_eq!(csv_line(&row), "1,45,train_step,NaN,66.667,,1.000000e-1,,\n");
        let advice =
            EpochRow { seconds: Some(1.0), advice: "more \"workers\", please".to_string(), ..EpochRow::default() };
        assert!(csv_line(&advice).ends_with(",\"more \"\"workers\"\", please\"\n"), "{}", csv_line(&advice));
    }

    #[test]
    fn predictions_return_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(PREDICTIONS);
        let row = PredictionRow {
            p_label: Some(1.0 / 3.0),
            loss: Some(3f64.ln()),
            rank_in_data: Some(1),
            real: Some(false),
            ..PredictionRow::new("=a, \"b\"\n".to_string(), 7, (0..9).map(|class| (class, 1.0 / (class + 2) as f64)))
        };
        assert!((row.pred5, row.p5) == (Some(4), Some(1.0 / 6.0)) && !row.is_right() && !row.is_in_top5());
        write_csv(&path, [&row]).unwrap();
        assert_eq!(read_csv::<PredictionRow>(&path).unwrap(), [row]);
        assert!(fs::read_to_string(&path).unwrap().contains("\"'=a"), "no spreadsheet evaluates a key");
        fs::write(&path, "key,p_label\na,1\n").unwrap();
        let error = runtime::exit::chain(&read_csv::<PredictionRow>(&path).unwrap_err());
        assert!(error.contains("predictions.csv is damaged") && error.contains("label"), "{error}");
    }

    #[test]
    fn an_older_file_without_a_version_is_read() {
        let info: RunInfo = serde_json::from_str(r#"{"name": "a", "kind": "probe", "status": "failed"}"#).unwrap();
        assert_eq!((info.format, info.kind, info.status), (0, RunKind::Probe, Some(RunStatus::Failed)));
        let info = RunInfo { format: FORMAT, result: Some(RunResult::default()), ..info };
        let json = serde_json::to_string(&info).unwrap();
        assert_eq!(serde_json::from_str::<RunInfo>(&json).unwrap(), info);
        assert!(serde_json::from_str::<RunInfo>(r#"{"status": "done"}"#).is_err());
    }

    /// The page describes every key and column that is written.
    #[test]
    fn the_reference_page_names_every_key() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guide/reference/run-folder.md");
        let page = fs::read_to_string(page).unwrap();
        let info = RunInfo {
            parameters: 1,
            data: DataInfo {
                train: Some(String::new()),
                train_images: 1,
                valid_images: 1,
                fingerprint: "f".to_string(),
                ..DataInfo::default()
            },
            paths: BTreeMap::from([("data.train".to_string(), String::new())]),
            changes: vec![RunChange::default()],
            result: Some(RunResult {
                best_epoch: Some(1),
                last: Some(Metrics::default()),
                ema: Some(Metrics::default()),
                ..RunResult::default()
            }),
            ..RunInfo::default()
        };
        fn keys(value: &serde_json::Value, found: &mut Vec<String>) {
            value.as_array().into_iter().flatten().for_each(|value| keys(value, found));
            for (key, value) in value.as_object().into_iter().flatten() {
                found.push(key.clone());
                keys(value, found);
            }
        }
        let mut names = Vec::new();
        keys(&serde_json::to_value(&info).unwrap(), &mut names);
        for header in [
            csv_header::<MetricRow>(),
            csv_header::<EpochRow>(),
            csv_header::<PredictionRow>(),
            csv_header::<MistakeRow>(),
        ] {
            names.extend(header.trim_end().split(',').map(str::to_string));
        }
        // The page lists the pairs up to `pred5`, `p5` with an ellipsis.
        let in_ellipsis = ["pred2", "p2", "pred3", "p3", "pred4", "p4"];
        for name in names.iter().filter(|name| !in_ellipsis.contains(&name.as_str())) {
            assert!(page.contains(&format!("`{name}`")), "docs/guide/reference/run-folder.md does not name `{name}`");
        }
    }
}
