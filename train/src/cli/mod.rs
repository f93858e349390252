//! The command line.

pub mod flags;
mod interrupt;
pub mod lines;

use std::{
    io::{IsTerminal, stderr, stdout},
    ops::Bound,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use datasets::{BadSamples, OrientationPolicy, source::TableOptions};
use hub::LoadOptions;
use kernels::KernelMode;
use models::Architecture;
use runtime::{
    backend::{self, BackendArgs, BackendChoice, Devices, DevicesArgs, KernelArgs, Selected},
    communicator::{self, CommunicatorArgs},
    environment::parse_workers,
    exit,
    logging::{self, Verbosity},
    noteln,
    progress::{Output, is_dumb},
    shell::{CompletionsArgs, ManArgs},
    units::{number_in, whole_in},
};
use train::{
    recipe::{Freeze, Overrides},
    run::Options,
};

use self::lines::{Lines, Printer};

/// The largest number that `plan` accepts; the product of two fits 64 bits.
const MOST: u64 = 1_000_000_000;

const ABOVE_0: (Bound<f64>, Bound<f64>) = (Bound::Excluded(0.0), Bound::Unbounded);

/// Train image classifiers
///
/// Without arguments, trains ResNet-20 on the embedded data set of handwritten digits, in about ten seconds on two cores. The
/// result is a new folder under `artifacts/`: the recipe that repeats the run, the model card, the best weights with the card,
/// checkpoints, the metrics of each epoch and a report. `infer classify IMAGE --weights FOLDER` uses it.
#[derive(Debug, Parser)]
#[command(version, after_long_help = exit::HELP, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,

    #[command(flatten)]
    pub pretrain: PretrainArgs,

    #[command(flatten, next_help_heading = "Output")]
    pub verbosity: Verbosity,

    #[command(flatten)]
    pub kernels: KernelArgs,

    #[command(flatten)]
    pub ranks: CommunicatorArgs,
}

/// What holds for every command.
#[derive(Debug, Clone, Copy)]
pub struct Global {
    pub kernels: KernelMode,
    pub verbosity: Verbosity,
}

impl Cli {
    pub fn global(&self) -> Global {
        Global { kernels: self.kernels.kernels, verbosity: self.verbosity }
    }

    /// The format of log records, which is that of progress.
    pub fn log_format(&self) -> logging::LogFormat {
        let format = match &self.command {
            None => self.pretrain.run.how.loading.log_format,
            Some(Command::Pretrain(args)) => args.run.how.loading.log_format,
            Some(Command::Finetune(args)) => args.run.how.loading.log_format,
            Some(Command::Resume(args)) => args.loading.log_format,
            Some(Command::LrFind(args)) => args.run.how.loading.log_format,
            Some(Command::Study(StudyArgs { study: Study::Shortcuts(args) })) => args.how.loading.log_format,
            Some(_) => LogFormat::Text,
        };
        match format {
            LogFormat::Text => logging::LogFormat::Plain,
            LogFormat::Json => logging::LogFormat::Json,
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a network from random weights (the default command)
    #[command(after_long_help = "Examples:
  train pretrain                                               # ResNet-20 on the embedded digits
  train pretrain --data photos/ --arch resnet18 --epochs 30
  train pretrain --data photos/ --arch resnet18 --dry-run      # time and memory first
  train pretrain --data labels.csv --label-column breed --images-root photos/ --arch resnet18
  train pretrain --data /data/imagenet --recipe imagenet-classic --arch resnet50 --devices cuda:0-7")]
    Pretrain(Box<PretrainArgs>),
    /// Fine-tune trained weights on new data and new classes
    #[command(after_long_help = "Examples:
  train finetune --weights resnet50 --data photos/
  train finetune --weights resnet50 --data photos/ --recipe linear-probe
  train finetune --weights resnet50 --data photos/ --auto
  train finetune --weights artifacts/my-run --data photos/ --freeze until=layer3")]
    Finetune(Box<FinetuneArgs>),
    /// Resume an interrupted run, with bit-identical results, or continue a finished one
    ///
    /// Results are bit-identical unless something that they depend on has changed: the device, the images, the handling of
    /// unreadable ones, or the number of epochs with a schedule that depends on it. A line says which it is, and run.json and
    /// the report record what was changed.
    #[command(after_long_help = "Examples:
  train resume artifacts/photos-resnet18-001
  train resume artifacts/photos-resnet18-001 --data /new/place/photos
  train resume artifacts/photos-resnet18-001 --bad-samples skip
  train resume artifacts/photos-resnet18-001 --epochs 60")]
    Resume(ResumeArgs),
    /// Find a learning rate: raise it during a short training and locate the steepest fall of the loss
    #[command(after_long_help = "Examples:
  train lr-find --data photos/ --arch resnet18
  train lr-find --data photos/ --weights resnet50 --chart lr.svg")]
    LrFind(Box<LrFindArgs>),
    /// List the recipes, or show one
    #[command(after_long_help = "Examples:
  train recipes
  train recipes imagenet-classic > mine.toml")]
    Recipes(RecipesArgs),
    /// Rewrite the report of a run, or compare runs
    #[command(after_long_help = "Examples:
  train report artifacts/photos-resnet18-001
  train report artifacts/photos-resnet18-001 artifacts/photos-resnet18-002 --out comparison.html")]
    Report(ReportArgs),
    /// Reproduce an experiment of a paper
    Study(StudyArgs),
    /// Measure training speed and memory
    #[command(after_long_help = "Examples:
  train bench resnet50 --batch-sizes 8,64 --dtype bf16
  train bench resnet18 --compare-kernels
  train bench resnet50 --backend cuda --format json")]
    Bench(BenchArgs),
    /// List the devices of the compiled backends, and which one `--backend auto` picks
    Devices(DevicesArgs),
    /// Estimate training on many devices from figures of one
    ///
    /// A model, not a measurement: each device trains on its own batch, and gradients are averaged by ring all-reduce, within
    /// a host and then between hosts. A step takes as long as its slowest resource: computation with the all-reduce that it
    /// waits for, decoding, the disk, or the network. Each row names that resource and the load of the others; the lines below
    /// name what to change. docs/scale.md has the formula and examples.
    ///
    /// Pass your own figures: `train bench ARCH` measures a device, `datasets bench DATA --pipeline train` the decoding.
    Plan(Box<PlanArgs>),
    /// Print a shell's completion script
    #[command(
        after_long_help = "Examples:\n  train completions bash > ~/.local/share/bash-completion/completions/train"
    )]
    Completions(CompletionsArgs),
    /// Write manual pages
    #[command(after_long_help = "Examples:\n  train man ~/.local/share/man/man1")]
    Man(ManArgs),
}

impl Command {
    /// Whether it is a run that several processes may share.
    pub fn trains(&self) -> bool {
        matches!(self, Self::Pretrain(_) | Self::Finetune(_) | Self::Resume(_))
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Pretrain(_) => "pretrain",
            Self::Finetune(_) => "finetune",
            Self::Resume(_) => "resume",
            Self::LrFind(_) => "lr-find",
            Self::Recipes(_) => "recipes",
            Self::Report(_) => "report",
            Self::Study(_) => "study",
            Self::Bench(_) => "bench",
            Self::Devices(_) => "devices",
            Self::Plan(_) => "plan",
            Self::Completions(_) => "completions",
            Self::Man(_) => "man",
        }
    }
}

/// Measure training speed and memory
///
/// Times whole training steps on random images and labels: normalization, forward, backward, and SGD with momentum and
/// weight decay. Each row is measured in a process of its own.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Architectures (`infer models` lists them), with random weights [default: one of each family]
    #[arg(value_name = "ARCH", value_parser = hub::parse_architecture)]
    pub architectures: Vec<Architecture>,

    /// Images per step, a row each
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [8], value_parser = whole_in("a number of images", 1_u32..=4096))]
    pub batch_sizes: Vec<u32>,

    /// Side of the images in pixels [default: the network's own]
    #[arg(long, value_name = "PIXELS", value_parser = whole_in("a number of pixels", 1_u32..=4096))]
    pub size: Option<u32>,

    /// Classes
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = whole_in("a number of classes", 2_u32..=100_000))]
    pub classes: u32,

    /// Compute type of convolutions and linear layers
    #[arg(long, value_name = "f32|bf16|f16", default_value = "f32", value_parser = ["f32", "bf16", "f16"])]
    pub dtype: String,

    /// Threads of the CPU backends [default: one per core]
    #[arg(long, value_name = "N", value_parser = whole_in("a number of threads", 1_u32..=1024))]
    pub threads: Option<u32>,

    /// Timed steps
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = whole_in("a number of iterations", 1_u32..))]
    pub iters: u32,

    /// Untimed steps before those; by default 3 to 30, until the times of three in a row differ by at most 10 %
    ///
    /// On a GPU the first steps compile kernels and time several of them for each shape to keep the fastest. A warning
    /// follows the row where the times had not settled.
    #[arg(long, value_name = "N", value_parser = whole_in("a number of iterations", 1_u32..))]
    pub warmup: Option<u32>,

    /// Recompute activations in the backward pass, as the recipe's `network.gradient_checkpointing` does
    #[arg(long)]
    pub gradient_checkpointing: bool,

    /// Measure with the optimized kernels and with Burn's reference operations, a row each
    #[arg(long = "compare-kernels", alias = "both")]
    pub compare_kernels: bool,

    /// The backend and its device (may be repeated, each a row) [env: HEARTH_BACKEND] [default: auto]
    #[arg(short, long = "backend", value_name = "auto|NAME[:DEVICE]")]
    pub backends: Vec<BackendChoice>,

    /// Output format, row by row
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub format: LogFormat,

    /// Measure a single row in this process
    #[arg(long, hide = true)]
    pub in_process: bool,
}

/// Figures of one device and one host, and how many of them.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Architecture (`infer models` lists them)
    #[arg(value_name = "ARCH", default_value = "resnet50")]
    pub architecture: Architecture,

    /// Numbers of devices, a row each
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 8, 64, 512], allow_negative_numbers = true, value_parser = whole_in("a number of devices", 1..=MOST))]
    pub devices: Vec<u64>,

    /// Devices per host
    #[arg(long, value_name = "N", default_value_t = 8, allow_negative_numbers = true, value_parser = whole_in("a number of devices", 1..=MOST))]
    pub devices_per_host: u64,

    /// Training images per second of one device, as `train bench` measures it [default: two CPU cores, for the architectures
    /// in docs/performance.md]
    ///
    /// For orientation, not measured with Hearth: NVIDIA reports 938 (TF32) and 2470 (mixed precision) for ResNet-50 in PyTorch on
    /// one A100.
    #[arg(long, value_name = "IMAGES", allow_negative_numbers = true, value_parser = number_in("a number of images per second", ABOVE_0))]
    pub images_per_s: Option<f64>,

    /// Images per step and device
    #[arg(long = "batch-per-device", value_name = "N", default_value_t = 64, allow_negative_numbers = true, value_parser = whole_in("a number of images", 1..=MOST))]
    pub batch_size: u64,

    /// Number of epochs
    #[arg(long, value_name = "N", default_value_t = 90, allow_negative_numbers = true, value_parser = whole_in("a number of epochs", 1..=MOST))]
    pub epochs: u64,

    /// Number of training images (the default is ImageNet's)
    #[arg(long, value_name = "N", default_value_t = 1_281_167, allow_negative_numbers = true, value_parser = whole_in("a number of images", 1..=MOST))]
    pub images: u64,

    /// Number of validation images, evaluated each epoch; 0 for none
    #[arg(long, value_name = "N", default_value_t = 50_000, allow_negative_numbers = true, value_parser = whole_in("a number of images", 0..=MOST))]
    pub validation: u64,

    /// Number of classes [default: the architecture's, 1000 or 10]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = whole_in("a number of classes", 2_u32..=100_000))]
    pub classes: Option<u32>,

    /// Mean size of an encoded image in kB (the default is ImageNet's: 147,897,477,120 bytes for 1,281,167 images)
    #[arg(long, value_name = "KB", default_value_t = 115.0, allow_negative_numbers = true, value_parser = number_in("a number of kilobytes", ABOVE_0))]
    pub image_kb: f64,

    /// Decoding cores per host
    #[arg(long, value_name = "N", default_value_t = 64, allow_negative_numbers = true, value_parser = whole_in("a number of cores", 1..=MOST))]
    pub cores_per_host: u64,

    /// Images per second that a core decodes, crops and flips (the default is half of the 1671 measured on two cores)
    #[arg(long, value_name = "IMAGES", default_value_t = 835.0, allow_negative_numbers = true, value_parser = number_in("a number of images per second", ABOVE_0))]
    pub decode_per_core: f64,

    /// Sequential read rate of a host's disk in MB/s: about 150 for a hard disk, 500 for SATA, 2000 and more for NVMe
    #[arg(long, value_name = "MB", default_value_t = 2000.0, allow_negative_numbers = true, value_parser = number_in("a number of megabytes per second", ABOVE_0))]
    pub disk_mb: f64,

    /// Network bandwidth of a host in Gbit/s, each way: for the all-reduce between hosts and, with --remote, the images
    #[arg(long, value_name = "GBIT", default_value_t = 100.0, allow_negative_numbers = true, value_parser = number_in("a number of gigabits per second", ABOVE_0))]
    pub network_gbit: f64,

    /// Bandwidth of a device's link to the others of its host in Gbit/s, each way: about 200 for PCIe 4.0 × 16, 2400 for NVLink 3
    #[arg(long, value_name = "GBIT", default_value_t = 200.0, allow_negative_numbers = true, value_parser = number_in("a number of gigabits per second", ABOVE_0))]
    pub link_gbit: f64,

    /// Latency of a message of the ring in microseconds
    #[arg(long, value_name = "US", default_value_t = 20.0, allow_negative_numbers = true, value_parser = number_in("a number of microseconds", 0.0..))]
    pub latency_us: f64,

    /// Images come from an object store over the network, not from a local disk
    #[arg(long)]
    pub remote: bool,

    /// Output format
    #[arg(long, value_enum, default_value_t = PlanFormat::Text)]
    pub format: PlanFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PlanFormat {
    /// A table and advice
    Text,
    /// The inputs and a row for each number of devices
    Json,
    /// The rows
    Csv,
}

#[derive(Debug, Args)]
pub struct PretrainArgs {
    /// Recipe: a shipped one (`train recipes` lists them) or a file; flags override its keys [default: digits, or
    /// imagenet-classic with --data]
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub recipe: Option<String>,

    /// Architecture, such as resnet50 or vgg16_bn (`infer models` lists them)
    #[arg(long, value_name = "NAME", value_parser = hub::parse_architecture)]
    pub arch: Option<Architecture>,

    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Debug, Args)]
pub struct FinetuneArgs {
    /// Weights to start from: a run folder, a file, or a published name (`infer models` lists them)
    #[arg(long, value_name = "W")]
    pub weights: Option<String>,

    /// Recipe: a shipped one (`train recipes` lists them) or a file; flags override its keys
    #[arg(long, value_name = "NAME|FILE.toml", default_value = "finetune")]
    pub recipe: String,

    /// Stages to freeze: no gradient, fixed BatchNorm statistics, no dropout
    ///
    /// They stay frozen unless --unfreeze-at is given too, whatever the recipe says.
    #[arg(help_heading = "Fine-tuning", long, value_name = "none|backbone|until=STAGE")]
    pub freeze: Option<Freeze>,

    /// Epoch, from 1, at which frozen stages are unfrozen
    #[arg(help_heading = "Fine-tuning", long, value_name = "EPOCH", value_parser = whole_in("the number of an epoch", 1_i64..))]
    pub unfreeze_at: Option<i64>,

    /// Number of stages to unfreeze per epoch from then on [default: all at once]
    #[arg(help_heading = "Fine-tuning", long, value_name = "STAGES", value_parser = whole_in("a number of stages", 1_i64..))]
    pub unfreeze_per_epoch: Option<i64>,

    /// Factor of each stage's learning rate relative to the next deeper stage
    #[arg(help_heading = "Fine-tuning", long, value_name = "FACTOR", value_parser = number_in("a factor above 0, at most 1", ..))]
    pub layer_decay: Option<f64>,

    /// Batch normalization in training: by the running statistics, which stay fixed (freeze), or by those of each batch
    /// (train) [default: freeze with few images, see `transfer.batchnorm`]
    #[arg(help_heading = "Fine-tuning", long, value_name = "freeze|train", value_parser = ["auto", "freeze", "train"], hide_possible_values = true)]
    pub batchnorm: Option<String>,

    /// Recompute the running statistics of batch normalization over the training images before training
    #[arg(help_heading = "Fine-tuning", long)]
    pub recalibrate_batchnorm: bool,

    /// Run a linear probe, then fine-tune the whole network with gradual unfreezing; report both, and which is better
    #[arg(help_heading = "Fine-tuning", long, conflicts_with_all = ["freeze", "unfreeze_at", "unfreeze_per_epoch", "layer_decay"])]
    pub auto: bool,

    #[command(flatten)]
    pub load: LoadOptions,

    #[command(flatten)]
    pub run: RunArgs,
}

/// The arguments of a training run.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Training data: class folders, a table (CSV, TSV, JSON lines), ImageNet's archives, WebDataset shards, Parquet files,
    /// or `digits`
    #[arg(help_heading = "Data", long, value_name = "DATA")]
    pub data: Option<String>,

    /// Validation data, in place of the `val` split of --data
    #[arg(help_heading = "Data", long, value_name = "DATA")]
    pub val: Option<String>,

    #[command(flatten)]
    pub table: TableOptions,

    /// Fraction of each class to hold out if there is no validation data [default: 0.2]
    #[arg(help_heading = "Data", long, value_name = "FRACTION", value_parser = number_in("a fraction above 0 and below 1", ..))]
    pub val_fraction: Option<f64>,

    /// Exclude the samples listed in this file, which `datasets doctor --quarantine FILE` writes
    #[arg(help_heading = "Data", long = "exclude", alias = "quarantine", value_name = "FILE")]
    pub quarantine: Option<String>,

    /// Handling of damaged and unreadable images
    #[arg(help_heading = "Data", long, value_enum)]
    pub bad_samples: Option<BadSamplesArg>,

    /// Accept classes without images
    #[arg(help_heading = "Data", long)]
    pub allow_empty_classes: bool,

    /// Orientation in the metadata of images: apply turns pixels upright, ignore uses them as stored
    #[arg(help_heading = "Data", long, value_name = "apply|ignore")]
    pub orientation: Option<OrientationPolicy>,

    /// Largest number of pixels of an image; the memory for decoding grows with it [default: 178956970]
    #[arg(help_heading = "Data", long, value_name = "N", value_parser = whole_in("a number of pixels", 1_i64..))]
    pub max_pixels: Option<i64>,

    /// Number of epochs
    #[arg(help_heading = "Training", long, value_name = "N", value_parser = whole_in("a number of epochs", 1_i64..))]
    pub epochs: Option<i64>,

    /// Images per forward pass, over all processes
    #[arg(help_heading = "Training", long, value_name = "N", value_parser = whole_in("a number of images", 1_i64..))]
    pub batch_size: Option<i64>,

    /// Learning rate after the warm-up
    #[arg(help_heading = "Training", long, value_name = "RATE", allow_negative_numbers = true, value_parser = number_in("a learning rate above 0, such as 0.1", ..))]
    pub lr: Option<f64>,

    /// Scale the learning rate linearly: by the images per step (over all processes, with accumulation) divided by N, which
    /// usually is 256
    #[arg(help_heading = "Training", long, value_name = "N", value_parser = whole_in("a number of images", 1_i64..))]
    pub lr_per: Option<i64>,

    /// Synchronize batch normalization: statistics over the batches of all processes
    #[arg(help_heading = "Several processes", long)]
    pub sync_bn: bool,

    /// Running statistics of batch normalization for evaluation: the mean over processes (reduce), the first process's
    /// (broadcast), or each its own (none, for comparison)
    #[arg(help_heading = "Several processes", long, value_name = "reduce|broadcast|none", value_parser = ["reduce", "broadcast", "none"])]
    pub dist_bn: Option<String>,

    /// Stop after this number of epochs without a better one; 0 never stops early [default: the recipe's]
    #[arg(help_heading = "Training", long, value_name = "EPOCHS", value_parser = clap::value_parser!(i64).range(0..))]
    pub patience: Option<i64>,

    /// Side of the images in pixels; the resize of validation changes in proportion
    #[arg(help_heading = "Training", long, value_name = "PIXELS", value_parser = whole_in("a number of pixels", 1_u32..=16384))]
    pub size: Option<u32>,

    /// Compute type of convolutions and linear layers; weights and gradients are f32
    #[arg(help_heading = "Training", long, value_enum)]
    pub dtype: Option<DtypeArg>,

    /// Seed of the initial weights, the order of samples, augmentation and dropout
    #[arg(help_heading = "Training", long, value_parser = whole_in("a whole number", 0_i64..))]
    pub seed: Option<i64>,

    /// Set a key of the recipe, such as optimizer.nesterov=true or ema.decay=0.999 (may be repeated)
    #[arg(help_heading = "Training", long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// Run a few steps with validation and a checkpoint, estimate the time and memory of the run, and keep nothing
    #[arg(help_heading = "Training", long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub how: HowArgs,
}

/// Options that do not change the result of a run.
#[derive(Debug, Args)]
pub struct HowArgs {
    /// Folder to create the run folder in
    #[arg(help_heading = "Output", long, value_name = "DIR", default_value = "artifacts")]
    pub artifacts: PathBuf,

    /// Run folder; it must be empty or not exist
    #[arg(help_heading = "Output", long, value_name = "DIR", conflicts_with = "artifacts")]
    pub out: Option<PathBuf>,

    #[command(flatten)]
    pub loading: LoadingArgs,
}

#[derive(Debug, Args)]
pub struct LoadingArgs {
    /// Threads that decode and augment; 0 does that on the main thread [default: one per core]
    #[arg(help_heading = "Data", long, value_name = "N", value_parser = parse_workers)]
    pub workers: Option<usize>,

    /// Format of progress and log lines on standard error
    #[arg(help_heading = "Output", long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    #[command(flatten, next_help_heading = "Compute")]
    pub backend: BackendArgs,

    /// Devices of a host to train on, such as cuda:0-7 or cuda:0,2
    ///
    /// One process trains on all of them. Several processes on the host (mpirun, srun) use equal numbers of them, in order.
    #[arg(help_heading = "Compute", long, value_name = "NAME:DEVICES", conflicts_with = "backend")]
    pub devices: Option<Devices>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text, or a progress bar on a terminal
    Text,
    /// One JSON object per line
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DtypeArg {
    F32,
    Bf16,
    /// With dynamic loss scaling
    F16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BadSamplesArg {
    /// Stop at a damaged or unreadable one, naming archive, member, offset and cause
    Strict,
    /// Decode damaged ones as far as possible, with a warning; stop at an unreadable one
    Warn,
    /// Warn of damaged ones; skip an unreadable one and count it
    Skip,
    /// Warn of damaged ones; substitute another sample for an unreadable one and count it
    Substitute,
}

impl From<BadSamplesArg> for &'static str {
    fn from(policy: BadSamplesArg) -> Self {
        // The names in a recipe.
        match policy {
            BadSamplesArg::Strict => "strict",
            BadSamplesArg::Warn => "warn",
            BadSamplesArg::Skip => "skip",
            BadSamplesArg::Substitute => "substitute",
        }
    }
}

const _: fn(BadSamples) = |policy| match policy {
    // One argument for each policy.
    BadSamples::Strict | BadSamples::Warn | BadSamples::Skip | BadSamples::Substitute => {}
};

#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// Run folder
    #[arg(value_name = "RUN")]
    pub run: PathBuf,

    /// Training data, if it was moved: the same images and labels
    #[arg(help_heading = "Data", long, value_name = "DATA")]
    pub data: Option<String>,

    /// Validation data, if it was moved
    #[arg(help_heading = "Data", long, value_name = "DATA")]
    pub val: Option<String>,

    /// Folder of the images of a table, if it was moved
    #[arg(help_heading = "Data", long, value_name = "DIR")]
    pub images_root: Option<PathBuf>,

    /// Exclude the samples listed in this file from here on
    #[arg(help_heading = "Data", long = "exclude", alias = "quarantine", value_name = "FILE")]
    pub quarantine: Option<String>,

    /// Handling of unreadable images from here on
    #[arg(help_heading = "Data", long, value_enum)]
    pub bad_samples: Option<BadSamplesArg>,

    /// Number of epochs in all; more than before continue a finished run
    #[arg(help_heading = "Training", long, value_name = "N", value_parser = whole_in("a number of epochs", 1_i64..))]
    pub epochs: Option<i64>,

    #[command(flatten)]
    pub load: LoadOptions,

    #[command(flatten)]
    pub loading: LoadingArgs,
}

#[derive(Debug, Args)]
pub struct LrFindArgs {
    /// Start from trained weights: a run folder, a file, or a published name
    #[arg(long, value_name = "W")]
    pub weights: Option<String>,

    /// Recipe: a shipped one or a file [default: digits, or finetune with --weights, or imagenet-classic with --data]
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub recipe: Option<String>,

    /// Lowest learning rate
    #[arg(long, value_name = "RATE", default_value_t = 1e-6, value_parser = number_in("a learning rate above 0, such as 1e-6", ..))]
    pub from: f64,

    /// Highest learning rate
    #[arg(long, value_name = "RATE", default_value_t = 10.0, value_parser = number_in("a learning rate above 0, such as 10", ..))]
    pub to: f64,

    /// Number of steps between them
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = whole_in("a number of steps", 10_u64..=100_000))]
    pub steps: u64,

    /// Chart to write (SVG); a table is written beside it (.csv)
    #[arg(long, value_name = "FILE.svg", default_value = "lr-find.svg")]
    pub chart: PathBuf,

    #[command(flatten, next_help_heading = "Weights")]
    pub load: LoadOptions,

    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Debug, Args)]
pub struct RecipesArgs {
    /// Recipe to print as TOML
    pub name: Option<String>,
}

#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Run folders: one rewrites its report, several are compared
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,

    /// File of the comparison
    #[arg(long, value_name = "FILE.html", default_value = "comparison.html")]
    pub out: PathBuf,
}

#[derive(Debug, Args)]
pub struct StudyArgs {
    #[command(subcommand)]
    pub study: Study,
}

#[derive(Debug, Subcommand)]
pub enum Study {
    /// Compare networks with and without shortcuts: plain20, plain56, resnet20 and resnet56 under one recipe (He et al., 2015, figure 6)
    Shortcuts(ShortcutsArgs),
}

#[derive(Debug, Args)]
pub struct ShortcutsArgs {
    /// Training data [default: the embedded digits]
    #[arg(long, value_name = "DATA")]
    pub data: Option<String>,

    #[command(flatten)]
    pub table: TableOptions,

    /// Recipe: a shipped one or a file [default: digits, or cifar with --data]
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub recipe: Option<String>,

    /// Number of epochs
    #[arg(long, value_parser = whole_in("a number of epochs", 1_i64..))]
    pub epochs: Option<i64>,

    /// Set a key of the recipe (may be repeated)
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    #[command(flatten)]
    pub how: HowArgs,
}

impl LoadingArgs {
    fn lines(&self, verbosity: Verbosity) -> Lines {
        match self.log_format {
            _ if verbosity.is_silent() => Lines::Silent,
            _ if verbosity.is_quiet() => Lines::Quiet,
            LogFormat::Text => Lines::Text,
            LogFormat::Json => Lines::Json,
        }
    }

    /// Options for runs in `artifacts`, or in `out`. Opens the devices and says which they are.
    ///
    /// # Errors
    /// Where a device does not open, or the processes of this host cannot share `--devices` alike.
    pub fn options(&self, artifacts: PathBuf, out: Option<PathBuf>, global: Global) -> anyhow::Result<Options> {
        let Global { kernels, verbosity } = global;
        let world = communicator::communicator();
        let selected = match &self.devices {
            Some(devices) => backend::select_named(&devices.of(world.local_rank(), world.local_size())?)?,
            None => vec![self.backend.select()?],
        };
        let lines = if world.is_root() { self.lines(verbosity) } else { Lines::Silent };
        announce(&selected, lines, kernels);
        Ok(Options {
            artifacts,
            out,
            workers: self.workers,
            observer: Arc::new(Printer::new(lines)),
            progress: if lines == Lines::Text { Output::Auto } else { Output::Quiet },
            dashboard: lines == Lines::Text && stdout().is_terminal() && stderr().is_terminal() && !is_dumb(),
            stop: interrupt::stop_flag(),
            save: interrupt::save_flag(),
            command: std::env::args().skip(1).collect(),
            devices: selected.iter().map(Selected::spec).collect(),
            kernels,
        })
    }
}

/// Says which devices compute.
pub fn announce(selected: &[Selected], lines: Lines, kernels: KernelMode) {
    match lines {
        Lines::Quiet | Lines::Silent => {}
        Lines::Text => {
            noteln!("{}", backend::device_line(selected, kernels));
            if let Some(warning) = selected.first().and_then(Selected::warning) {
                noteln!("warning: {warning}");
            }
        }
        Lines::Json => noteln!("{}", backend::device_json(selected, kernels)),
    }
}

impl HowArgs {
    pub fn options(&self, global: Global) -> anyhow::Result<Options> {
        self.loading.options(self.artifacts.clone(), self.out.clone(), global)
    }
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Sets the keys of tables.
pub fn set_table(overrides: &mut Overrides, table: &TableOptions) {
    let TableOptions { image_column, label_column, split_column, images_root, label_from } = table.clone();
    overrides.set("data.image_column", image_column);
    overrides.set("data.label_column", label_column);
    overrides.set("data.split_column", split_column);
    overrides.set("data.images_root", images_root.as_deref().map(path_text));
    overrides.set("data.label_from", label_from);
}

impl ResumeArgs {
    /// What the flags change in the recipe.
    pub fn overrides(&self) -> Overrides {
        let mut overrides = Overrides::default();
        overrides.set("data.train", self.data.clone());
        overrides.set("data.valid", self.val.clone());
        overrides.set("data.images_root", self.images_root.as_deref().map(path_text));
        overrides.set("data.quarantine", self.quarantine.clone());
        overrides.set("data.bad_samples", self.bad_samples.map(<&'static str>::from));
        overrides.set("epochs", self.epochs);
        overrides
    }
}

impl RunArgs {
    /// What the flags change in a recipe.
    pub fn overrides(&self) -> anyhow::Result<Overrides> {
        let mut overrides = Overrides::default();
        overrides.set("data.train", self.data.clone());
        overrides.set("data.valid", self.val.clone());
        set_table(&mut overrides, &self.table);
        overrides.set("data.val_fraction", self.val_fraction);
        overrides.set("data.quarantine", self.quarantine.clone());
        overrides.set("data.bad_samples", self.bad_samples.map(<&'static str>::from));
        overrides.set("data.allow_empty_classes", self.allow_empty_classes.then_some(true));
        overrides.set("images.orientation", self.orientation.map(|policy| policy.to_string()));
        overrides.set("images.max_pixels", self.max_pixels);
        overrides.set("epochs", self.epochs);
        overrides.set("batch_size", self.batch_size);
        overrides.set("schedule.learning_rate", self.lr);
        overrides.set("schedule.per_images", self.lr_per);
        overrides.set("ranks.sync_bn", self.sync_bn.then_some(true));
        overrides.set("ranks.dist_bn", self.dist_bn.clone());
        let dtype = self.dtype.map(|dtype| match dtype {
            DtypeArg::F32 => "f32",
            DtypeArg::Bf16 => "bf16",
            DtypeArg::F16 => "f16",
        });
        overrides.set("network.dtype", dtype);
        match self.patience {
            Some(0) => overrides.remove("checkpoints.patience"),
            patience => overrides.set("checkpoints.patience", patience),
        }
        overrides.set("seed", self.seed);
        for set in &self.set {
            overrides.parse(set)?;
        }
        Ok(overrides)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
