//! Recipes: what a training does, as a typed TOML file. Unknown keys are errors.
//!
//! A recipe names everything that changes the result: the network, the images and what happens to them, the loss, the
//! optimizer, the schedule. The effective recipe of a run lies in its folder and alone repeats it.

mod check;
mod error;
mod images;
mod read;
#[cfg(test)]
mod reference;
mod shipped;

use std::{collections::BTreeMap, fmt, path::PathBuf};

use burn::tensor::FloatDType;
use datasets::{
    BadSamples,
    sampler::Order,
    source::{TableOptions, is_table_name},
};
use models::Architecture;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, Visitor},
};

pub use self::{
    error::Error,
    images::{Images, Phase},
    read::{Overrides, load, parse},
    shipped::{SHIPPED, Shipped},
};

/// The effective recipe of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The network.
    pub architecture: Architecture,
    /// How often the training images are seen.
    pub epochs: usize,
    /// Images a forward pass, over all processes.
    pub batch_size: usize,
    /// Forward passes whose gradients are averaged for one step of the optimizer.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub accumulate: usize,
    /// What the initial weights, the order, the augmentation and dropout depend on.
    pub seed: u64,
    /// How many steps in a row may have a loss or a gradient that is not finite; they are skipped and counted.
    #[serde(default = "ten")]
    pub max_bad_steps: usize,
    /// The images.
    #[serde(default)]
    pub data: Data,
    /// The preprocessing and augmentation.
    pub images: Images,
    /// The options of the network.
    #[serde(default)]
    pub network: NetworkOptions,
    /// The loss.
    #[serde(default)]
    pub loss: Loss,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// The learning rate of each step.
    pub schedule: Schedule,
    /// The EMA of the weights; none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<Ema>,
    /// The weights to start from; random ones by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<Transfer>,
    /// Checkpoints, the choice of the best epoch, and early stopping.
    #[serde(default)]
    pub checkpoints: Checkpoints,
    /// Training by several processes.
    #[serde(default, skip_serializing_if = "Ranks::is_default")]
    pub ranks: Ranks,
}

/// What differs where several processes share the work. `batch_size` is over all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ranks {
    /// Batch normalisation in training by the statistics of all processes' images.
    pub sync_bn: bool,
    /// What becomes of each process's running statistics before they are used.
    pub dist_bn: DistBn,
}

impl Ranks {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What becomes of the running statistics of each process before they are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DistBn {
    /// Their mean.
    #[default]
    Reduce,
    /// The first process's.
    Broadcast,
    /// Each keeps its own; the first one's are saved.
    None,
}

fn one() -> usize {
    1
}

fn is_one(value: &usize) -> bool {
    *value == 1
}

fn ten() -> usize {
    10
}

/// Where the images are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// A path, a pattern or a URL that `datasets` opens, or `digits`.
    pub train: String,
    /// The same for the validation images; by default the `val` part of `train`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid: Option<String>,
    /// The column of the images in a table, by name, or by number where there is no header; by default guessed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_column: Option<String>,
    /// The column of the labels in a table; by default guessed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_column: Option<String>,
    /// The column of the splits in a table; by default guessed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_column: Option<String>,
    /// The folder that the images of a table are in; by default the table's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images_root: Option<String>,
    /// A regular expression that finds the label in the name of a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_from: Option<String>,
    /// The fraction of each class that is held out where the data has no `val` split; 0.2 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_fraction: Option<f64>,
    /// A list of samples to exclude, written by `datasets doctor --quarantine`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<String>,
    /// The handling of an image that is damaged, or that cannot be read or decoded.
    pub bad_samples: BadSamples,
    /// Whether classes without images are accepted.
    #[serde(skip_serializing_if = "is_false")]
    pub allow_empty_classes: bool,
    /// Repeated augmentation: each drawn sample comes so often, transformed anew; an epoch keeps its length.
    #[serde(skip_serializing_if = "is_one")]
    pub repeats: usize,
    /// How far classes are balanced, from 0 (each image once) to 1 (each class equally often).
    #[serde(skip_serializing_if = "is_zero")]
    pub balance: f64,
    /// Every class equally often: a balance of 1.
    #[serde(skip_serializing_if = "is_false")]
    pub balanced: bool,
    /// The order of an epoch's samples.
    #[serde(skip_serializing_if = "DataOrder::is_shuffled")]
    pub order: DataOrder,
}

/// The order of an epoch's samples, different in each epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataOrder {
    /// A full shuffle: every sample is read at random.
    #[default]
    Shuffled,
    /// Runs of consecutive samples are shuffled, and the samples within windows of several runs: reads stay within a few
    /// stretches of the data at a time, for shards and archives on disks that are slow at random access.
    Windowed,
}

impl DataOrder {
    /// Consecutive samples that stay together.
    const RUN: usize = 256;
    /// Samples that are shuffled among themselves.
    const WINDOW: usize = 32 * Self::RUN;

    fn is_shuffled(&self) -> bool {
        *self == Self::Shuffled
    }

    /// The order as the loader has it.
    pub fn order(self) -> Order {
        match self {
            Self::Shuffled => Order::Shuffled,
            Self::Windowed => Order::Windowed { run: Self::RUN, window: Self::WINDOW },
        }
    }
}

impl Data {
    /// How far classes are balanced, from 0 to 1.
    pub fn balance(&self) -> f64 {
        if self.balanced { 1.0 } else { self.balance }
    }

    /// The options of tables for one of the data's specifications. Where training and validation images are a table and
    /// something else, columns are those of the table.
    pub fn table_options(&self, spec: &str) -> TableOptions {
        let is_table = |spec: &str| is_table_name(spec) || spec.ends_with(".parquet");
        let has_table = [Some(&self.train), self.valid.as_ref()].into_iter().flatten().any(|spec| is_table(spec));
        let label_from = self.label_from.clone();
        if has_table && !is_table(spec) {
            return TableOptions { label_from, ..TableOptions::default() };
        }
        TableOptions {
            image_column: self.image_column.clone(),
            label_column: self.label_column.clone(),
            split_column: self.split_column.clone(),
            images_root: self.images_root.as_ref().map(PathBuf::from),
            label_from,
        }
    }
}

impl Default for Data {
    fn default() -> Self {
        Self {
            train: "digits".into(),
            valid: None,
            image_column: None,
            label_column: None,
            split_column: None,
            images_root: None,
            label_from: None,
            val_fraction: None,
            quarantine: None,
            bad_samples: BadSamples::default(),
            allow_empty_classes: false,
            repeats: 1,
            balance: 0.0,
            balanced: false,
            order: DataOrder::Shuffled,
        }
    }
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

fn is_false(value: &bool) -> bool {
    !*value
}

/// How the network is built.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkOptions {
    /// The probability of dropping a unit before the classifier; the architecture's own by default. 0 switches the
    /// auxiliary classifiers' off too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// What the network computes in, activations included; weights, their gradients, the arithmetic of norms, and the
    /// loss stay f32.
    #[serde(skip_serializing_if = "Dtype::is_f32")]
    pub dtype: Dtype,
    /// `f16`: the factor of the loss at the beginning; 65536 by default, PyTorch's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f32>,
    /// Keep only the activations between residual blocks or Inception modules and compute those within again in the
    /// backward pass: less memory, the time of another forward pass.
    pub gradient_checkpointing: bool,
}

/// A type of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Single precision.
    #[default]
    F32,
    /// The upper half of f32.
    Bf16,
    /// With a loss scale that adapts, so that small gradients do not vanish.
    F16,
}

impl Dtype {
    /// Returns the name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// Returns the type of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::F32, Self::Bf16, Self::F16].into_iter().find(|dtype| dtype.name() == name)
    }

    /// What to compute in, where it is not what everything else is in.
    pub fn half(self) -> Option<FloatDType> {
        match self {
            Self::F32 => None,
            Self::Bf16 => Some(FloatDType::BF16),
            Self::F16 => Some(FloatDType::F16),
        }
    }

    fn is_f32(&self) -> bool {
        *self == Self::F32
    }
}

/// What is minimised.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Loss {
    /// The function.
    pub name: LossName,
    /// The part of the target that is spread over all classes.
    pub label_smoothing: f32,
    /// `focal`: how much less images count that are classified well; 2 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gamma: Option<f32>,
    /// Weights of the classes.
    #[serde(skip_serializing_if = "ClassWeights::is_equal")]
    pub class_weights: ClassWeights,
    /// The weight of each auxiliary classifier's loss; by default 0.3, as GoogLeNet's paper has it, and 0.4 for
    /// Inception v3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux_weight: Option<f32>,
    /// With `bce`: mixed targets above it count as 1, others as 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_threshold: Option<f32>,
}

/// A loss function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossName {
    /// Softmax cross entropy.
    #[default]
    CrossEntropy,
    /// Binary cross entropy of each class by itself, averaged over images and classes.
    Bce,
    /// The focal loss over softmax probabilities: cross entropy times `(1 - p)` to the power of `gamma` (Lin et al., 2017,
    /// <https://arxiv.org/abs/1708.02002>).
    Focal,
}

/// The weights of the classes in the loss: `equal`, `balanced`, a table by class, or a list in the order of the classes.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassWeights {
    /// All the same.
    #[default]
    Equal,
    /// A class's weight is (images) / (classes · its images): rare classes count as much as frequent ones.
    Balanced,
    /// The weights of some classes, by identifier or name; the others have 1.
    #[serde(untagged)]
    ByClass(BTreeMap<String, f32>),
    /// The weights of all classes, in their order.
    #[serde(untagged)]
    List(Vec<f32>),
}

impl ClassWeights {
    fn is_equal(&self) -> bool {
        *self == Self::Equal
    }

    /// The weights that are given.
    pub fn given(&self) -> Vec<f32> {
        match self {
            Self::Equal | Self::Balanced => Vec::new(),
            Self::ByClass(by_class) => by_class.values().copied().collect(),
            Self::List(list) => list.clone(),
        }
    }
}

impl<'de> Deserialize<'de> for ClassWeights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyForm;
        impl<'de> Visitor<'de> for AnyForm {
            type Value = ClassWeights;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"equal\", \"balanced\", a table of weights by class, or a list of weights")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<ClassWeights, E> {
                match name {
                    "equal" => Ok(ClassWeights::Equal),
                    "balanced" => Ok(ClassWeights::Balanced),
                    other => Err(E::unknown_variant(other, &["equal", "balanced"])),
                }
            }
            fn visit_seq<S: de::SeqAccess<'de>>(self, list: S) -> Result<ClassWeights, S::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(list)).map(ClassWeights::List)
            }
            fn visit_map<M: de::MapAccess<'de>>(self, map: M) -> Result<ClassWeights, M::Error> {
                BTreeMap::deserialize(de::value::MapAccessDeserializer::new(map)).map(ClassWeights::ByClass)
            }
        }
        deserializer.deserialize_any(AnyForm)
    }
}

/// How the gradient becomes a step. What a field means depends on `name`; one that does not apply is refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimizer {
    /// The algorithm.
    pub name: OptimizerName,
    /// `sgd` and `rmsprop`. Dampening is 0, as PyTorch has it. 0 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// `sgd`: Nesterov's momentum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nesterov: Option<bool>,
    /// `adamw` and `lamb`: the decay of the two moments; 0.9 and 0.999 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub betas: Option<[f32; 2]>,
    /// `rmsprop`: the decay of the squared gradient; 0.99 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f32>,
    /// All but `sgd`: added to the denominator; PyTorch's 1e-8 by default, 1e-6 for `lamb`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epsilon: Option<f32>,
    /// The factor of weight decay; 0 by default.
    #[serde(default)]
    pub weight_decay: f32,
    /// Whether weight decay touches norms and biases too, as torchvision's classic recipe has it.
    #[serde(default = "yes")]
    pub decay_norms_and_biases: bool,
    /// The largest Euclidean norm of all gradients together; a larger one is scaled down to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
}

fn yes() -> bool {
    true
}

/// An optimization algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// Stochastic gradient descent, with momentum if it is given.
    Sgd,
    /// Adam with decoupled weight decay (Loshchilov and Hutter, 2019).
    AdamW,
    /// Layer-wise adaptive moments (You et al., 2020).
    Lamb,
    /// RMSprop.
    RmsProp,
}

/// The learning rate of each step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The rate after the warm-up.
    pub learning_rate: f64,
    /// The rate is for so many images a step, and grows with what a step has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_images: Option<usize>,
    /// Epochs over which the rate rises linearly.
    #[serde(default)]
    pub warmup_epochs: f64,
    /// The part of the rate from which it rises.
    #[serde(default)]
    pub warmup_start: f64,
    /// The shape of the schedule after the warm-up.
    pub decay: Decay,
    /// `cosine` and `polynomial`: the part of the rate at the end. 0 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<f64>,
    /// `steps`: the epochs at which the rate is multiplied by `gamma`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub milestones: Vec<f64>,
    /// `steps`: 0.1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gamma: Option<f64>,
    /// `polynomial`: 1 by default, a straight line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<f64>,
}

/// The shape of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// The learning rate stays.
    Constant,
    /// Half a cosine (Loshchilov and Hutter, 2017).
    Cosine,
    /// Multiplies by `gamma` at each milestone.
    Steps,
    /// `(1 - t)` to the power of `power`, with `t` from 0 to 1.
    Polynomial,
    /// Up from 1/25 of the rate over 30 % of the steps and down to nothing, by cosines (Smith, 2018; PyTorch's).
    OneCycle,
}

/// An exponential moving average of the weights, validated and saved beside the raw ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ema {
    /// The part of the average that stays at each update.
    pub decay: f32,
    /// Steps between updates.
    #[serde(default = "one")]
    pub every: usize,
}

/// Training that starts from trained weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// A run folder, a file or a published name.
    pub weights: String,
    /// Which network of a weight file that has several, such as `state_dict_ema` or `encoder_q`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_key: Option<String>,
    /// Stages that stay as they are: no gradient, BatchNorm statistics and dropout fixed.
    #[serde(default)]
    pub freeze: Freeze,
    /// The epoch, from 1, with which frozen stages begin to be trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfreeze_at: Option<usize>,
    /// From that epoch on, so many stages more each epoch, from the head down, in place of all at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfreeze_per_epoch: Option<usize>,
    /// Each stage's rate is that of the next deeper one times this: 1 trains all alike.
    #[serde(default = "unit", skip_serializing_if = "is_unit")]
    pub layer_decay: f64,
    /// The rate of the last stage before the classifier, relative to the classifier's.
    #[serde(default = "unit", skip_serializing_if = "is_unit")]
    pub body_rate: f64,
    /// What the classifier is before the first step.
    #[serde(default, skip_serializing_if = "HeadStart::is_random")]
    pub head: HeadStart,
    /// Whether batch normalization is trained with the statistics of its batches.
    #[serde(default, skip_serializing_if = "BatchNormMode::is_auto")]
    pub batchnorm: BatchNormMode,
    /// Recompute the running statistics of batch normalization over the training images before the first step.
    #[serde(default, skip_serializing_if = "is_false")]
    pub recalibrate_batchnorm: bool,
}

/// What the classifier is before the first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadStart {
    /// Drawn from the seed; that of the weights if the classes are the same.
    #[default]
    Random,
    /// A linear probe: trained on the features of the frozen network. It is validated as epoch 0.
    Probe,
}

impl HeadStart {
    fn is_random(&self) -> bool {
        *self == Self::Random
    }
}

/// Which statistics batch normalization uses in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BatchNormMode {
    /// `Freeze` where batches or data are small, otherwise `Train`. The effective recipe has the decision.
    #[default]
    Auto,
    /// The running statistics, which stay as they are. Scales and shifts are trained.
    Freeze,
    /// The statistics of each batch, which are averaged into the running statistics.
    Train,
}

impl BatchNormMode {
    fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

fn unit() -> f64 {
    1.0
}

fn is_unit(value: &f64) -> bool {
    *value == 1.0
}

/// Which stages are frozen: `none`, `backbone` (all but the classifier), or `until=STAGE` (up to and with it).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Freeze {
    /// Nothing.
    #[default]
    None,
    /// All but the classifier.
    Backbone,
    /// The stages up to and including this one.
    Until(String),
}

impl std::str::FromStr for Freeze {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "none" => Ok(Self::None),
            None if text == "backbone" => Ok(Self::Backbone),
            Some(("until", stage)) if !stage.is_empty() => Ok(Self::Until(stage.into())),
            _ => Err(format!("`{text}` freezes nothing known; there are none, backbone and until=STAGE")),
        }
    }
}

impl TryFrom<String> for Freeze {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Freeze> for String {
    fn from(freeze: Freeze) -> Self {
        match freeze {
            Freeze::None => "none".into(),
            Freeze::Backbone => "backbone".into(),
            Freeze::Until(stage) => format!("until={stage}"),
        }
    }
}

/// What is kept of a run, and when it ends early.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoints {
    /// How many of the last checkpoints stay.
    pub keep: usize,
    /// A checkpoint inside an epoch after so many minutes; one at the end of each epoch is made anyway.
    pub every_minutes: f64,
    /// A checkpoint inside an epoch after so many steps of the optimizer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<u64>,
    /// What makes an epoch the best.
    pub best: Metric,
    /// Stop after so many epochs without a better one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self { keep: 2, every_minutes: 10.0, every_steps: None, best: Metric::Top1, patience: None }
    }
}

/// A measure of the validation images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The accuracy.
    Top1,
    /// The accuracy of the five most probable classes.
    Top5,
    /// The loss; lower is better.
    Loss,
}

impl Recipe {
    /// What the schedule's rates are multiplied by: images a step over those that the rate is for (Goyal et al., 2017,
    /// <https://arxiv.org/abs/1706.02677>).
    pub fn rate_factor(&self) -> f64 {
        self.schedule.per_images.map_or(1.0, |per| (self.batch_size * self.accumulate) as f64 / per as f64)
    }

    /// The recipe as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a recipe has only plain fields")
    }

    /// The weight of each auxiliary classifier's loss.
    pub fn aux_weight(&self) -> f32 {
        self.loss.aux_weight.unwrap_or(if self.architecture == Architecture::InceptionV3 { 0.4 } else { 0.3 })
    }
}
