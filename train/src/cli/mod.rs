//! The command line.

pub mod flags;
mod interrupt;
pub mod lines;

use std::{
    io::{IsTerminal, stderr, stdout},
    path::PathBuf,
    sync::Arc,
};

use clap::{Args, Parser, Subcommand, ValueEnum, builder::RangedI64ValueParser};
use datasets::BadSamples;
use hub::LoadOptions;
use models::Architecture;
use runtime::{
    backend::{self, BackendArgs, BackendChoice, Devices, DevicesArgs, KernelArgs, Selected},
    exit,
    progress::Output,
    world::{self, WorldArgs},
};
use train::{
    recipe::{Freeze, Overrides},
    training::Options,
};

use self::lines::{Lines, Printer};

/// Trains image classifiers.
///
/// Without arguments: ResNet-20 on the embedded data set of handwritten digits, in about ten seconds on two cores. The
/// result lies in a new folder under `artifacts/`: the recipe that repeats the run, the model card, the best weights
/// with the card inside, checkpoints, the metrics of every epoch and a report. `infer classify IMAGE --weights FOLDER`
/// uses it.
#[derive(Debug, Parser)]
#[command(version, after_long_help = exit::HELP, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,

    #[command(flatten)]
    pub pretrain: PretrainArgs,

    #[command(flatten)]
    pub kernels: KernelArgs,

    #[command(flatten)]
    pub ranks: WorldArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a network from random weights (the default command)
    Pretrain(Box<PretrainArgs>),
    /// Train on from trained weights, with new data and new classes
    Finetune(Box<FinetuneArgs>),
    /// Go on with a run that was interrupted, to the same bits as if it had not been
    Resume(ResumeArgs),
    /// Find a learning rate: train a little while it rises, and see where the loss falls fastest
    LrFind(Box<LrFindArgs>),
    /// List the recipes, or show one
    Recipes(RecipesArgs),
    /// Write a run's report again, or compare runs
    Report(ReportArgs),
    /// Repeat an experiment of a paper
    Study(StudyArgs),
    /// Measure how fast networks train, and in how much memory
    Bench(BenchArgs),
    /// List the devices of the compiled backends, and which one `--backend auto` picks
    Devices(DevicesArgs),
    /// Reckon what training on many devices would take, from figures of one
    ///
    /// A model and no measurement: every device trains on a batch of its own, and gradients are averaged by rings,
    /// within a host and then between hosts. A step takes as long as the slowest of the arithmetic with the all-reduce
    /// that it waits for, decoding, the disk and the network. Each row says which that is and, as shares of a step,
    /// how far the others are from it; the lines below say what to set. docs/scale.md has the formula and examples.
    ///
    /// Give your own figures: `train bench ARCH` measures a device, `datasets bench DATA --pipeline train` decoding.
    Plan(Box<PlanArgs>),
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
        }
    }
}

/// Measures how fast networks train, and in how much memory.
///
/// Random images and labels go through whole steps of training: normalising, forward, backward, SGD with momentum and
/// weight decay. Each row is measured in a process of its own.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The architectures (`infer models` lists them), with weights drawn at random; by default one of each family
    #[arg(value_name = "ARCH")]
    pub architectures: Vec<Architecture>,

    /// Images a step, each number a row
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [8], value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch_sizes: Vec<u32>,

    /// Side of the images in pixels; the network's own by default
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub size: Option<u32>,

    /// Classes
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub classes: u32,

    /// In what convolutions and linear maps compute
    #[arg(long, value_name = "f32|bf16|f16", default_value = "f32", value_parser = ["f32", "bf16", "f16"])]
    pub dtype: String,

    /// Threads of the CPU backends; by default as many as there are cores
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,

    /// Steps that are timed
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub iters: u32,

    /// Untimed steps before those; by default 3 to 30, until the times of three in a row differ by at most 10 %
    ///
    /// On a GPU the first steps compile kernels and time several of them for each shape to keep the fastest. A warning
    /// follows the row where the times had not settled.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub warmup: Option<u32>,

    /// A row with the fast kernels and one with Burn's own operations
    #[arg(long)]
    pub both: bool,

    /// The backend and its device (may be repeated, each a row) [env: HEARTH_BACKEND] [default: auto]
    #[arg(short, long = "backend", value_name = "auto|NAME[:DEVICE]")]
    pub backends: Vec<BackendChoice>,

    /// How results are printed, row by row
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub format: LogFormat,

    /// Measure the one row asked for in this process
    #[arg(long, hide = true)]
    pub in_process: bool,
}

/// Figures of one device and one host, and how many of them.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The architecture (`infer models` lists them), whose parameters are counted
    #[arg(value_name = "ARCH", default_value = "resnet50")]
    pub architecture: Architecture,

    /// Numbers of devices, each a row
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 8, 64, 512], allow_negative_numbers = true, value_parser = at_least(1))]
    pub devices: Vec<u64>,

    /// Devices in a host
    #[arg(long, value_name = "N", default_value_t = 8, allow_negative_numbers = true, value_parser = at_least(1))]
    pub devices_per_host: u64,

    /// Images a second that one device trains on, as `train bench` measures it [default: two cores of a CPU, where
    /// docs/performance.md has the architecture]
    ///
    /// For orientation, not from Hearth: NVIDIA gives 938 (TF32) and 2470 (mixed precision) for ResNet-50 in PyTorch on
    /// one A100.
    #[arg(long, value_name = "IMAGES", allow_negative_numbers = true, value_parser = positive)]
    pub images_per_s: Option<f64>,

    /// Images a step of each device
    #[arg(long = "batch-per-device", value_name = "N", default_value_t = 64, allow_negative_numbers = true, value_parser = at_least(1))]
    pub batch_size: u64,

    /// How often the training images are seen
    #[arg(long, value_name = "N", default_value_t = 90, allow_negative_numbers = true, value_parser = at_least(1))]
    pub epochs: u64,

    /// Training images; ImageNet's by default
    #[arg(long, value_name = "N", default_value_t = 1_281_167, allow_negative_numbers = true, value_parser = at_least(1))]
    pub images: u64,

    /// Validation images, seen once an epoch; 0 for none
    #[arg(long, value_name = "N", default_value_t = 50_000, allow_negative_numbers = true, value_parser = at_least(0))]
    pub validation: u64,

    /// Classes, on which the head's parameters depend [default: the architecture's, 1000 or 10]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub classes: Option<u32>,

    /// Thousands of bytes of an encoded image, on average; by default ImageNet's, whose training archive has
    /// 147,897,477,120 bytes (138 GiB) for 1,281,167 images
    #[arg(long, value_name = "KB", default_value_t = 115.0, allow_negative_numbers = true, value_parser = positive)]
    pub image_kb: f64,

    /// Cores of a host that decode
    #[arg(long, value_name = "N", default_value_t = 64, allow_negative_numbers = true, value_parser = at_least(1))]
    pub cores_per_host: u64,

    /// Images a second that a core decodes, crops and flips; by default half of the 1671 that two cores were measured at
    #[arg(long, value_name = "IMAGES", default_value_t = 835.0, allow_negative_numbers = true, value_parser = positive)]
    pub decode_per_core: f64,

    /// Millions of bytes a second that a host's disk reads in order: about 150 for a hard disk, 500 for SATA, 2000 and
    /// more for NVMe
    #[arg(long, value_name = "MB", default_value_t = 2000.0, allow_negative_numbers = true, value_parser = positive)]
    pub disk_mb: f64,

    /// Gbit/s of a host's network, each way: for the all-reduce between hosts and, with --remote, the images
    #[arg(long, value_name = "GBIT", default_value_t = 100.0, allow_negative_numbers = true, value_parser = positive)]
    pub network_gbit: f64,

    /// Gbit/s of a device's link to the others of its host, each way: about 200 for PCIe 4.0 × 16, 2400 for NVLink 3
    #[arg(long, value_name = "GBIT", default_value_t = 200.0, allow_negative_numbers = true, value_parser = positive)]
    pub link_gbit: f64,

    /// Bytes of a gradient as it is sent: 4 for f32, 2 for bf16 and f16
    #[arg(long, value_name = "BYTES", default_value_t = 4.0, allow_negative_numbers = true, value_parser = positive)]
    pub dtype_bytes: f64,

    /// Microseconds that a message of a ring takes, whatever its size
    #[arg(long, value_name = "US", default_value_t = 20.0, allow_negative_numbers = true, value_parser = not_negative)]
    pub latency_us: f64,

    /// The share of the all-reduce that hides behind the backward pass, from 0 (nothing) to 1; never more than that
    /// pass lasts
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true, value_parser = share)]
    pub overlap: f64,

    /// Images come by the network, from an object store, and not from a disk in the host
    #[arg(long)]
    pub remote: bool,

    /// How the result is printed
    #[arg(long, value_enum, default_value_t = PlanFormat::Text)]
    pub format: PlanFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PlanFormat {
    /// A table, and what to set
    Text,
    /// The figures and a row for each number of devices
    Json,
    /// The rows
    Csv,
}

fn at_least(least: i64) -> RangedI64ValueParser<u64> {
    // Products of two such numbers fit too.
    RangedI64ValueParser::new().range(least..=1_000_000_000)
}

fn number(text: &str, fits: impl Fn(f64) -> bool, wanted: &str) -> Result<f64, String> {
    text.parse().ok().filter(|number: &f64| number.is_finite() && fits(*number)).ok_or_else(|| wanted.to_string())
}

fn positive(text: &str) -> Result<f64, String> {
    number(text, |number| number > 0.0, "give a number above 0")
}

fn not_negative(text: &str) -> Result<f64, String> {
    number(text, |number| number >= 0.0, "give 0 or a number above it")
}

fn share(text: &str) -> Result<f64, String> {
    number(text, |number| (0.0..=1.0).contains(&number), "give a number from 0 to 1")
}

#[derive(Debug, Args)]
pub struct PretrainArgs {
    /// A shipped recipe (`train recipes` lists them) or a file; flags override what it says [default: digits, or
    /// imagenet-classic with --data]
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub recipe: Option<String>,

    /// The network, for instance resnet50 or vgg16_bn
    #[arg(long, value_name = "NAME")]
    pub arch: Option<Architecture>,

    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Debug, Args)]
pub struct FinetuneArgs {
    /// What to start from: a run folder, a file of weights, or a published name (`infer models` lists them)
    #[arg(long, value_name = "W")]
    pub weights: Option<String>,

    /// A shipped recipe (`train recipes` lists them) or a file; flags override what it says
    #[arg(long, value_name = "NAME|FILE.toml", default_value = "finetune")]
    pub recipe: String,

    /// Stages that stay as they are: no gradient, BatchNorm statistics and dropout fixed
    #[arg(long, value_name = "none|backbone|until=STAGE")]
    pub freeze: Option<Freeze>,

    /// The epoch, from 1, with which frozen stages begin to be trained
    #[arg(long, value_name = "EPOCH")]
    pub unfreeze_at: Option<i64>,

    /// From that epoch on, so many stages more each epoch, in place of all at once
    #[arg(long, value_name = "STAGES")]
    pub unfreeze_per_epoch: Option<i64>,

    /// Each stage's rate is that of the next deeper one times this
    #[arg(long, value_name = "FACTOR")]
    pub layer_decay: Option<f64>,

    /// Do it all: a linear probe, a search for the rate, then the whole network from the head down; both are reported
    #[arg(long)]
    pub auto: bool,

    #[command(flatten)]
    pub load: LoadOptions,

    #[command(flatten)]
    pub run: RunArgs,
}

/// What every training has.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The images: class folders, ImageNet's archives, shards, a table, `digits`
    #[arg(long, value_name = "DATA")]
    pub data: Option<String>,

    /// Validation images, where DATA has no `val` part or another is wanted
    #[arg(long, value_name = "DATA")]
    pub val: Option<String>,

    /// Hold this share of the training images out where there is no `val` part
    #[arg(long, value_name = "SHARE")]
    pub val_fraction: Option<f64>,

    /// A list of samples to leave out, made by `datasets doctor --quarantine FILE`
    #[arg(long, value_name = "FILE")]
    pub quarantine: Option<String>,

    /// What to do with an image that cannot be read or decoded
    #[arg(long, value_enum)]
    pub bad_samples: Option<BadSamplesArg>,

    /// How often the training images are seen
    #[arg(long)]
    pub epochs: Option<i64>,

    /// Images a forward pass, over all processes
    #[arg(long, value_name = "N")]
    pub batch_size: Option<i64>,

    /// The learning rate after the warm-up
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    pub lr: Option<f64>,

    /// The learning rate is for so many images a step, 256 usually: it is multiplied by what a step has, over all
    /// processes and with accumulation, over N
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    pub lr_per: Option<i64>,

    /// Several processes: batch normalisation in training by the statistics of all their images, not of each one's own
    #[arg(long)]
    pub sync_bn: bool,

    /// Several processes: what becomes of each one's running statistics before they are used: their mean (reduce), the
    /// first process's (broadcast), or each its own (none, for comparison)
    #[arg(long, value_name = "reduce|broadcast|none", value_parser = ["reduce", "broadcast", "none"])]
    pub dist_bn: Option<String>,

    /// The side of the images in pixels; what validation resizes to changes in proportion
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=16384))]
    pub size: Option<u32>,

    /// What convolutions and linear maps are computed in; weights and gradients stay f32
    #[arg(long, value_enum)]
    pub dtype: Option<DtypeArg>,

    /// What the initial weights, the order, the augmentation and dropout depend on
    #[arg(long, value_parser = clap::value_parser!(i64).range(0..))]
    pub seed: Option<i64>,

    /// Any key of the recipe, for instance optimizer.nesterov=true or ema.decay=0.999; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// A few steps of everything, the validation and a checkpoint included, then an estimate of the run's time and
    /// memory; nothing is kept
    #[arg(long)]
    pub dry_run: bool,

    #[command(flatten)]
    pub how: HowArgs,
}

/// What does not change a run's result.
#[derive(Debug, Args)]
pub struct HowArgs {
    /// The folder in which the run's folder is made
    #[arg(long, value_name = "DIR", default_value = "artifacts")]
    pub artifacts: PathBuf,

    /// The run's folder itself; it must be empty or not there
    #[arg(long, value_name = "DIR", conflicts_with = "artifacts")]
    pub out: Option<PathBuf>,

    #[command(flatten)]
    pub loading: LoadingArgs,
}

#[derive(Debug, Args)]
pub struct LoadingArgs {
    /// Threads that decode and augment [default: one a core]
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,

    /// No progress, only the result
    #[arg(short, long)]
    pub quiet: bool,

    /// How progress is written where there is no terminal
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    #[command(flatten)]
    pub backend: BackendArgs,

    /// The devices of a host, cuda:0-7 or cuda:0,2, on which batches are shared out
    ///
    /// One process trains on all of them. Where several run on the host (mpirun, srun), each takes as many as another, in
    /// their order.
    #[arg(long, value_name = "NAME:DEVICES", conflicts_with = "backend")]
    pub devices: Option<Devices>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DtypeArg {
    F32,
    Bf16,
    /// With a loss scale that adapts
    F16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BadSamplesArg {
    /// Stop, naming archive, member, offset and cause
    Strict,
    /// Leave it out and count it
    Skip,
    /// Put another sample in its place and count it
    Substitute,
}

impl From<BadSamplesArg> for &'static str {
    fn from(policy: BadSamplesArg) -> Self {
        // The names in a recipe.
        match policy {
            BadSamplesArg::Strict => "strict",
            BadSamplesArg::Skip => "skip",
            BadSamplesArg::Substitute => "substitute",
        }
    }
}

const _: fn(BadSamples) = |policy| match policy {
    // One argument for each policy.
    BadSamples::Strict | BadSamples::Skip | BadSamples::Substitute => {}
};

#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// The run's folder
    pub run: PathBuf,

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

    /// A shipped recipe or a file [default: digits, or finetune with --weights, or imagenet-classic with --data]
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub recipe: Option<String>,

    /// The lowest rate
    #[arg(long, value_name = "RATE", default_value_t = 1e-6)]
    pub from: f64,

    /// The highest rate
    #[arg(long, value_name = "RATE", default_value_t = 10.0)]
    pub to: f64,

    /// Steps between them
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(10..=100_000))]
    pub steps: u64,

    /// The chart (SVG); a table of the same name ends with .csv
    #[arg(long, value_name = "FILE.svg", default_value = "lr-find.svg")]
    pub chart: PathBuf,

    /// The architecture: of the network, or of a file of weights that carries no model card
    #[command(flatten)]
    pub load: LoadOptions,

    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Debug, Args)]
pub struct RecipesArgs {
    /// Show this one as TOML
    pub name: Option<String>,
}

#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Folders of runs: of one, its report is written again; several are compared
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,

    /// Where the comparison goes
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
    /// Why shortcuts: plain20, plain56, resnet20 and resnet56 under one recipe (He et al., 2015, figure 6)
    Shortcuts(ShortcutsArgs),
}

#[derive(Debug, Args)]
pub struct ShortcutsArgs {
    /// The images [default: the embedded digits]
    #[arg(long, value_name = "DATA")]
    pub data: Option<String>,

    /// A shipped recipe or a file [default: digits, or cifar with --data]
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub recipe: Option<String>,

    /// How often the training images are seen
    #[arg(long)]
    pub epochs: Option<i64>,

    /// Any key of the recipe; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    #[command(flatten)]
    pub how: HowArgs,
}

impl LoadingArgs {
    fn lines(&self) -> Lines {
        match (self.quiet, self.log_format) {
            (true, _) => Lines::Quiet,
            (false, LogFormat::Text) => Lines::Text,
            (false, LogFormat::Json) => Lines::Json,
        }
    }

    /// Options for runs in `artifacts`, or in `out`. Opens the devices and says which they are.
    ///
    /// # Errors
    /// Where a device does not open, or the processes of this host cannot share `--devices` alike.
    pub fn options(&self, artifacts: PathBuf, out: Option<PathBuf>) -> anyhow::Result<Options> {
        let world = world::world();
        let selected = match &self.devices {
            Some(devices) => backend::select_named(&devices.of(world.local_rank(), world.local_size())?)?,
            None => vec![self.backend.select()?],
        };
        let lines = if world.is_root() { self.lines() } else { Lines::Quiet };
        announce(&selected, lines);
        Ok(Options {
            artifacts,
            out,
            workers: self.workers,
            observer: Arc::new(Printer::new(lines)),
            progress: if lines == Lines::Text { Output::Auto } else { Output::Quiet },
            dashboard: lines == Lines::Text && stdout().is_terminal() && stderr().is_terminal(),
            experiment_log: true,
            stop: interrupt::flag(),
            command: std::env::args().skip(1).collect(),
            devices: selected.iter().map(Selected::spec).collect(),
        })
    }
}

/// Says which devices compute.
pub fn announce(selected: &[Selected], lines: Lines) {
    match lines {
        Lines::Quiet => {}
        Lines::Text => {
            eprintln!("{}", backend::device_line(selected));
            if let Some(warning) = selected.first().and_then(Selected::warning) {
                eprintln!("warning: {warning}");
            }
        }
        Lines::Json => eprintln!("{}", backend::device_json(selected)),
    }
}

impl HowArgs {
    pub fn options(&self) -> anyhow::Result<Options> {
        self.loading.options(self.artifacts.clone(), self.out.clone())
    }
}

impl RunArgs {
    /// What the flags change in a recipe.
    pub fn overrides(&self) -> anyhow::Result<Overrides> {
        let mut overrides = Overrides::default();
        overrides.set("data.train", self.data.clone());
        overrides.set("data.valid", self.val.clone());
        overrides.set("data.val_fraction", self.val_fraction);
        overrides.set("data.quarantine", self.quarantine.clone());
        overrides.set("data.bad_samples", self.bad_samples.map(<&'static str>::from));
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
