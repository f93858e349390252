//! The command line.

use std::path::PathBuf;

use burn::tensor::{Device, FloatDType};
use clap::{Args, Parser, Subcommand, ValueEnum};
use datasets::{OrientationPolicy, source::TableOptions};
use hub::{Activation, Card, LoadOptions, PreprocessOverrides, parse_architecture};
use infer::model::fastest_dtype;
use models::Architecture;
use runtime::{
    backend::{BackendArgs, BackendChoice, BackendSpec, Devices, DevicesArgs, KernelArgs},
    communicator::CommunicatorArgs,
    environment::{parse_threads, parse_workers},
    logging::{LogFormat, Verbosity},
    progress::Output,
    shell::{CompletionsArgs, ManArgs},
    units::{number_in, whole_in},
};
use serde::{Deserialize, Serialize};

/// Classify images; evaluate, explain, export and serve image classifiers
///
/// Preprocessing and class names come from the model card, which every checkpoint of `train` carries and published
/// weights have built in. A weight file without a card needs --arch, and is prepared by that architecture's default
/// unless --card is given.
///
/// Results go to standard output; progress and warnings go to standard error.
#[derive(Debug, Parser)]
#[command(name = "infer", version, after_long_help = runtime::exit::HELP, max_term_width = 100)]
pub struct Cli {
    /// The command
    #[command(subcommand)]
    pub command: Command,
    /// The verbosity of standard error
    #[command(flatten)]
    pub verbosity: Verbosity,
    /// The operations that run on the CPU
    #[command(flatten, next_help_heading = "Compute")]
    pub kernels: KernelArgs,
    /// Options of several processes
    #[command(flatten, next_help_heading = "Several processes")]
    pub ranks: CommunicatorArgs,
}

impl Cli {
    /// Returns where progress is shown.
    pub fn progress(&self) -> Output {
        Output::from_quiet(self.verbosity.is_quiet())
    }

    /// Returns the format of log lines: a server's have time stamps.
    pub fn log_format(&self) -> LogFormat {
        match &self.command {
            #[cfg(feature = "serve")]
            Command::Serve(args) => args.log_format,
            _ => LogFormat::Plain,
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Classify images: print the most probable classes of each
    ///
    /// Reads JPEG, PNG, WebP, BMP, TIFF, GIF and PNM, recognized by content. An unreadable image gets an error line, the
    /// others their results, and the exit code is 3; if no image is readable it is 1.
    #[command(after_long_help = "Formats:
  text   the path, then a line for each class: probability, index, name; errors go to standard error
  json   one object per line and image: {\"path\", \"top\": [{\"class\", \"index\", \"probability\"}, …]},
         or {\"path\", \"error\"}
  csv    path,rank,class,index,probability,error: a row for each class of each image; an unreadable image has one
         row with its error

Examples:
  infer classify dog.jpg --weights resnet50                     # published weights, downloaded once
  infer classify photos/ --weights artifacts/my-run --topk 1 --format csv > photos.csv
  infer classify *.jpg --weights googlenet.pth --arch googlenet # a file without a card
  curl -s https://example.org/cat.png | infer classify - --weights resnet18 --format json")]
    Classify(ClassifyArgs),

    /// Evaluate a model on a labeled data set: top-1, top-5, loss, calibration, each class
    ///
    /// Every image counts once, whatever the batch size. The classes of the data are matched with the network's by name,
    /// or by wnid for networks with ImageNet's 1000 classes; if the data has fewer classes, the accuracy among those is
    /// reported too. ImageNet's validation images under their official names are also evaluated on the reassessed ReaL
    /// labels.
    #[command(after_long_help = "Examples:
  infer evaluate --data /data/imagenet --weights resnet50
  infer evaluate --data photos/ --weights artifacts/my-run --out results/
  infer evaluate --data labels.csv --label-column breed --weights artifacts/my-run
  infer evaluate --data /data/imagenet --weights bvlc_googlenet --crops 144
  infer evaluate --data /data/imagenet --weights vgg16 --dense --scales 256,384,512 --flip
  infer evaluate --data /data/imagenet --weights resnet50 --ensemble resnet101 resnext50_32x4d
  infer evaluate … --shard-index 0 --num-shards 2 --out part0
  infer evaluate … --shard-index 1 --num-shards 2 --out part1
  infer merge part0 part1 --out results/")]
    Evaluate(Box<EvaluateArgs>),

    /// Merge the shards of an evaluation into the exact whole
    Merge(MergeArgs),

    /// Compare two evaluations of the same images: McNemar's test
    ///
    /// Pairs the predictions of two folders of `infer evaluate --out`, or of runs, by the keys of their images. The test
    /// tells whether the classifiers err equally often: exactly, by the binomial distribution, up to 1000 images that only
    /// one of them classifies correctly, and by χ² with continuity correction beyond.
    #[command(after_long_help = "Examples:\n  infer compare results-a results-b")]
    Compare(CompareArgs),

    /// Explain predictions: saliency maps, activations, features, nearest neighbors
    ///
    /// Writes a picture for each image: the network's input, and beside it the saliency map of each of the most probable
    /// classes; and a contact sheet for several images. --features, --neighbors, --stages and --filters do that instead.
    /// An unreadable image gets an error line, the others are processed, and the exit code is 3.
    #[command(after_long_help = "Examples:
  infer explain dog.jpg --weights resnet50                            # explained/dog.explained.png
  infer explain photos/ --weights artifacts/my-run --method grad-cam++ --out why/
  infer explain dog.jpg --weights vgg16 --class beagle --class 162 --method occlusion
  infer explain dog.jpg --weights googlenet --stages                  # the strongest channels of each stage
  infer explain --weights alexnet --filters                           # the filters of the first layer
  infer explain photos/ --weights resnet50 --features vectors.npy     # and vectors.csv with their paths
  infer explain dog.jpg --weights resnet50 --neighbors vectors.npy   # or a folder of images")]
    Explain(Box<ExplainArgs>),

    /// Export a network: safetensors, Burn's record, ONNX
    ///
    /// Safetensors have torchvision's names and layouts, so `load_state_dict(strict=True)` accepts them. ONNX files (opset
    /// 17) accept any batch size; their input is normalized floats and their output logits.
    #[command(after_long_help = "Examples:
  infer export --weights artifacts/my-run --to onnx --fold-batchnorm   # resnet50.onnx
  infer export --weights googlenet.caffemodel --to safetensors --out googlenet_2014.safetensors")]
    Export(ExportArgs),

    /// Quantize a network to int8: 1.5 to 4.8 times as fast on a CPU, a quarter of the size
    ///
    /// Finds the ranges of activations on calibration images, quantizes weights for each output channel, and compares the
    /// result with f32 on images that were not used for it. Stages that cost too much accuracy stay in f32, the worst
    /// first, until at most --max-drop points are lost. `classify`, `evaluate`, `serve`, `bench` and `export --to onnx` take
    /// the file like any other weights. It computes on the CPU.
    ///
    /// Data with a training and a validation split is calibrated on the one and compared on the other; other data is divided.
    /// Without labels, the class that f32 finds stands for the label.
    #[command(after_long_help = "Examples:
  infer quantize --weights resnet50 --data /data/imagenet                 # resnet50.int8.safetensors
  infer quantize --weights artifacts/my-run --data photos/ --out small.safetensors
  infer quantize --weights artifacts/my-run --data photos/ --images 500 --max-drop 0.2
  infer classify dog.jpg --weights resnet50.int8.safetensors")]
    Quantize(Box<QuantizeArgs>),

    /// Serve a network over HTTP, with a web page
    ///
    /// `POST /v1/classify` accepts an image as its body, or a form with several; `POST /v1/explain` returns a saliency map;
    /// `/` is a page for photographs and the camera. Images that arrive together run as one batch. Requests that exceed a
    /// limit are rejected immediately with a status that says why. Ctrl-C answers the requests in flight and stops.
    ///
    /// The server is reachable from this machine only unless --addr is given.
    #[cfg(feature = "serve")]
    #[command(after_long_help = "Also: GET /v1/model, /healthz, /readyz, /metrics (Prometheus), /openapi.json

Examples:
  infer serve --weights resnet50                      # then open http://127.0.0.1:8080
  curl -sS --data-binary @dog.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8080/v1/classify
  curl -sS -F a=@dog.jpg -F b=@cat.jpg 'http://127.0.0.1:8080/v1/classify?topk=1'
  curl -sS --data-binary @dog.jpg -H 'Content-Type: image/jpeg' 'http://127.0.0.1:8080/v1/explain?class=162' > why.png
  HEARTH_TOKEN=… infer serve --weights artifacts/my-run --addr 0.0.0.0:8080 --timeout 1min")]
    Serve(Box<ServeArgs>),

    /// Measure inference speed and memory
    ///
    /// Times one batch of random images, from the images on the device to the logits on the host. Each row is measured in
    /// a process of its own.
    #[command(
        after_long_help = "--format json prints one object per line: model, batch, size, threads, median_s, p99_s, min_s, max_s, images_per_s,
peak_rss_mb, folded, device, cpu.

Examples:
  infer bench                                     # one architecture of each family, batches of 1 and 8
  infer bench resnet50 --compare-folding --batch-sizes 1,8,32
  infer bench --weights artifacts/my-run --backend flex --backend cuda:0 --format json"
    )]
    Bench(BenchArgs),

    /// Draw a network as an SVG
    ///
    /// Draws stages from top to bottom with their shapes, parameters and multiply-adds; Inception modules with their
    /// branches side by side, residual blocks with their shortcuts.
    #[command(after_long_help = "Examples:
  infer diagram resnet50                                   # resnet50.svg
  infer diagram googlenet --out googlenet.svg
  infer diagram artifacts/my-run --size 128 --out mine.svg")]
    Diagram(DiagramArgs),

    /// Print a network's stages, output shapes, parameters and multiply-adds
    ///
    /// For an architecture by name, or for weights, with their model card.
    #[command(after_long_help = "Examples:
  infer summary resnet18
  infer summary vgg16 --classes 10 --size 320x256
  infer summary --weights artifacts/my-run --format json")]
    Summary(SummaryArgs),

    /// Write a model card for a weight file: its architecture, preprocessing and class names
    ///
    /// The card is the file's own or its architecture's default, with the changes of the flags, checked against the
    /// weights. It is given with --card to the other commands and to `train finetune`.
    #[command(after_long_help = "Examples:
  infer card flowers.pth --arch resnet18 --classes names.txt --out flowers.json
  infer card flowers.pth --arch resnet18 --classes-from flowers/ --resize 232 --crop 224 --out flowers.json
  infer classify rose.jpg --weights flowers.pth --card flowers.json")]
    Card(Box<CardArgs>),

    /// List the architectures and their published weights
    Models(ModelsArgs),

    /// List the devices of the compiled backends, and which one `--backend auto` picks
    Devices(DevicesArgs),

    /// Check that the compiled backends compute the same as flex, forward and in training
    ///
    /// Runs networks on every backend of this build with the same weights (drawn by a formula) and the same images, and
    /// prints the largest difference to flex: of the logits and of every stage's output in a forward pass, of the loss
    /// and of every parameter's gradient in a training step, each relative to the largest value of its tensor. Ends with
    /// exit code 1 where a difference exceeds the tolerance, and with 3 where a backend could not run a network; its row
    /// gives the reason. Each comparison runs in a child process, so a driver that crashes spoils one row.
    #[command(after_long_help = "Examples:
  cargo run -p infer --features ndarray,wgpu -- verify
  infer verify --arch vgg16 --size 224 --backend cuda:1")]
    Verify(VerifyArgs),

    /// Print a shell's completion script
    #[command(
        after_long_help = "Examples:\n  infer completions bash > ~/.local/share/bash-completion/completions/infer"
    )]
    Completions(CompletionsArgs),

    /// Write manual pages
    #[command(after_long_help = "Examples:\n  infer man ~/.local/share/man/man1")]
    Man(ManArgs),
}

/// An output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Human-readable
    Text,
    /// JSON
    Json,
}

/// An output format of `classify` and `evaluate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AnswerFormat {
    /// A short table per image
    Text,
    /// One JSON object per line and image
    Json,
    /// CSV with a header
    Csv,
}

/// Options for reading weights.
#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    #[command(flatten)]
    pub options: LoadOptions,
    #[command(flatten)]
    pub preprocess: PreprocessOverrides,
    /// How outputs become probabilities: softmax, or for a network with one output sigmoid, the probability of the second
    /// of two classes
    #[arg(long, value_name = "softmax|sigmoid", value_enum, default_value_t)]
    pub activation: Activation,
}

impl LoadArgs {
    /// Returns all of them as the library's options.
    pub fn options(&self) -> LoadOptions {
        LoadOptions { preprocess: self.preprocess.clone(), activation: self.activation, ..self.options.clone() }
    }
}

/// Options for running a network.
#[derive(Debug, Clone, Args)]
pub struct RunOptions {
    /// Run batch normalization as separate layers
    ///
    /// By default it is folded into the preceding convolutions, which is faster and equal up to rounding.
    #[arg(long)]
    pub keep_batchnorm: bool,
    /// Compute in this type (mixed precision: the arithmetic of norms and the logits stay f32); auto measures for some
    /// milliseconds whether the CPU is faster in bf16, for which it needs AVX512-BF16 or AMX
    #[arg(long, value_name = "f32|bf16|f16|auto", value_enum, default_value_t)]
    pub dtype: Dtype,
    #[command(flatten)]
    pub backend: BackendArgs,
}

/// How images are decoded.
#[derive(Debug, Clone, Args)]
pub struct ImageArgs {
    /// Orientation in the metadata of images: apply turns pixels upright, ignore uses them as stored, as torchvision's
    /// published accuracies do [default: the model card's, else apply]
    #[arg(long, value_name = "apply|ignore")]
    pub orientation: Option<OrientationPolicy>,
    /// Largest number of pixels of an image; the memory for decoding grows with it [default: 178956970]
    #[arg(long, value_name = "N", value_parser = whole_in("a number of pixels", 1_u64..))]
    pub max_pixels: Option<u64>,
}

impl ImageArgs {
    /// Replaces the card's orientation by the flag's.
    pub fn override_card(&self, card: &mut Card) {
        card.preprocess.orientation = self.orientation.or(card.preprocess.orientation);
    }
}

/// A compute type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Dtype {
    #[default]
    F32,
    Bf16,
    F16,
    /// The fastest on this processor, by a measurement of milliseconds
    Auto,
}

impl Dtype {
    /// Returns the compute type, unless it is f32.
    pub fn compute_dtype(self, device: &Device) -> Option<FloatDType> {
        match self {
            Self::F32 => None,
            Self::Bf16 => Some(FloatDType::BF16),
            Self::F16 => Some(FloatDType::F16),
            Self::Auto => {
                let dtype = fastest_dtype(device);
                log::info!("dtype: {}", if dtype.is_some() { "bf16" } else { "f32" });
                dtype
            }
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Auto => "auto",
        }
    }
}

#[derive(Debug, Args)]
pub struct ClassifyArgs {
    /// Image files, folders, or `-` for an image on standard input
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<PathBuf>,
    /// Include the images in subfolders
    #[arg(short, long)]
    pub recursive: bool,
    /// Weights: a run folder, a file, or a published name
    ///
    /// A run folder is written by `train`. A file may be safetensors, PyTorch's (.pth, .pt, .th), Burn's record or BVLC's
    /// caffemodel. A published name is `resnet50` or `resnet50.IMAGENET1K_V1` (`infer models` lists them); it is
    /// downloaded once. An existing path takes precedence over a published name.
    #[arg(short, long, value_name = "W")]
    pub weights: String,
    #[command(flatten, next_help_heading = "Weights")]
    pub load: LoadArgs,
    #[command(flatten, next_help_heading = "Images")]
    pub decoding: ImageArgs,
    /// Number of classes per image
    #[arg(short = 'k', long, value_name = "K", default_value_t = 5, value_parser = whole_in("a number of classes", 1_u32..))]
    pub topk: u32,
    /// Output format
    #[arg(long, value_enum, default_value_t = AnswerFormat::Text)]
    pub format: AnswerFormat,
    #[command(flatten, next_help_heading = "Compute")]
    pub run: RunOptions,
    /// Images per forward pass
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = whole_in("a number of images", 1_u32..=4096))]
    pub batch_size: u32,
}

/// `evaluate`
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// Labeled images: class folders, a table (CSV, TSV, JSON lines), ImageNet's archives, shards, Parquet files
    #[arg(long, value_name = "DATA")]
    pub data: String,
    #[command(flatten)]
    pub table: TableOptions,
    /// Split to evaluate
    #[arg(long, value_enum, default_value_t = SplitArg::Val)]
    pub split: SplitArg,
    /// Exclude the samples listed in this file, which `datasets doctor --quarantine FILE` writes
    #[arg(long, value_name = "FILE", aliases = ["without", "quarantine"])]
    pub exclude: Option<PathBuf>,
    /// Classes of the data by a file, if their names differ: CSV rows `folder,class` or JSON `{"folder": "class"}`, where
    /// a class is the network's name or index; or a list of classes, one per line or a JSON array, of which folder 0 is
    /// the first
    #[arg(long, value_name = "FILE")]
    pub class_map: Option<PathBuf>,
    /// Weights: a run folder, a file, or a published name
    #[arg(short, long, value_name = "W", required_unless_present = "ensemble")]
    pub weights: Option<String>,
    /// More weights for the same classes, whose probabilities are averaged with the first's
    #[arg(help_heading = "Protocol", long, value_name = "W", num_args = 1..)]
    pub ensemble: Vec<String>,
    #[command(flatten, next_help_heading = "Weights")]
    pub load: LoadArgs,
    #[command(flatten, next_help_heading = "Images")]
    pub decoding: ImageArgs,
    /// Crops of an image whose probabilities are averaged: the center, AlexNet's 10, GoogLeNet's 144
    #[arg(help_heading = "Protocol", long, value_enum, default_value_t = CropsArg::One)]
    pub crops: CropsArg,
    /// Shorter sides in pixels to which images are resized, in place of the card's; the crops of all are averaged
    #[arg(help_heading = "Protocol", long, value_name = "PIXELS", value_delimiter = ',', value_parser = whole_in("a number of pixels", 1_u32..=16_384))]
    pub scales: Vec<u32>,
    /// Average with the mirror image
    #[arg(help_heading = "Protocol", long)]
    pub flip: bool,
    /// Evaluate the whole image in place of crops: VGG's and AlexNet's classifier at every position, other networks as
    /// they are
    #[arg(help_heading = "Protocol", long)]
    pub dense: bool,
    /// Evaluate one shard: every N-th image, starting at this index; `infer merge` merges the results. Under mpirun or
    /// srun (feature `mpi`) the processes divide the images by themselves
    #[arg(
        help_heading = "Several processes",
        long,
        alias = "rank",
        value_name = "I",
        default_value_t = 0,
        requires = "num_shards",
        value_parser = whole_in("the index of a shard", 0_usize..))]
    pub shard_index: usize,
    /// Number of shards
    #[arg(help_heading = "Several processes", long, alias = "of", value_name = "N", default_value_t = 1, value_parser = whole_in("a number of shards", 1_usize..))]
    pub num_shards: usize,
    /// Policy for images that are damaged, or cannot be read or decoded
    #[arg(long, value_enum, default_value_t = BadSamplesArg::Skip)]
    pub bad_samples: BadSamplesArg,
    /// Output format
    #[arg(long, value_enum, default_value_t = AnswerFormat::Text)]
    pub format: AnswerFormat,
    /// Print precision, recall and F1 of every class and their averages, as scikit-learn's `classification_report` does
    #[arg(long)]
    pub classification_report: bool,
    /// New or empty folder for tables, pictures, predictions and a report page
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Crops per forward pass
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = whole_in("a number of images", 1_u32..=4096))]
    pub batch_size: u32,
    /// Decoding threads; 0 decodes on the main thread [default: one per core]
    #[arg(long, value_name = "N", value_parser = parse_workers)]
    pub workers: Option<usize>,
    #[command(flatten, next_help_heading = "Compute")]
    pub run: RunOptions,
    /// Devices of a host, cuda:0-7 or cuda:0,2: each process there (mpirun, srun) uses one, in order
    #[arg(help_heading = "Several processes", long, value_name = "NAME:DEVICES", conflicts_with = "backend")]
    pub devices: Option<Devices>,
}

/// `merge`
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// Folders written by `evaluate --out`, one per shard
    #[arg(required = true, value_name = "DIR")]
    pub parts: Vec<PathBuf>,
    /// New or empty folder for the result
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Output format
    #[arg(long, value_enum, default_value_t = AnswerFormat::Text)]
    pub format: AnswerFormat,
}

/// `compare`
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Folder of the first evaluation or run
    #[arg(value_name = "FOLDER")]
    pub first: PathBuf,
    /// Folder of the second
    #[arg(value_name = "FOLDER")]
    pub second: PathBuf,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// `explain`
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Image files, folders, or `-` for an image on standard input
    #[arg(value_name = "IMAGE", required_unless_present = "filters")]
    pub images: Vec<PathBuf>,
    /// Include the images in subfolders, also for --neighbors
    #[arg(short, long)]
    pub recursive: bool,
    /// Weights: a run folder, a file, or a published name
    #[arg(short, long, value_name = "W")]
    pub weights: String,
    #[command(flatten, next_help_heading = "Weights")]
    pub load: LoadArgs,
    #[command(flatten, next_help_heading = "Images")]
    pub decoding: ImageArgs,
    /// Class to explain, by index or name (may be repeated) [default: the most probable ones]
    #[arg(short, long = "class", value_name = "CLASS")]
    pub classes: Vec<String>,
    /// Number of classes, or of neighbors
    #[arg(short = 'k', long, value_name = "K", default_value_t = 3, value_parser = whole_in("a number of classes", 1_u32..=20))]
    pub topk: u32,
    /// Explanation method
    #[arg(long, value_enum, default_value_t = MethodArg::GradCam)]
    pub method: MethodArg,
    /// Stage whose feature map Grad-CAM uses (`infer summary` lists them) [default: the last before the classifier]
    #[arg(long, value_name = "STAGE")]
    pub stage: Option<String>,
    /// Show the shape and the strongest channels of each stage
    #[arg(long, conflicts_with_all = ["classes", "features", "neighbors"])]
    pub stages: bool,
    /// Show the filters of the first layer
    #[arg(long)]
    pub filters: bool,
    /// Write each image's feature vector to this file (NumPy's .npy, with a .csv of paths beside it)
    #[arg(long, value_name = "FILE.npy", conflicts_with = "neighbors")]
    pub features: Option<PathBuf>,
    /// Find the most similar images by cosine similarity: in a folder, or in a file written by --features
    #[arg(long, alias = "neighbours", value_name = "FOLDER|FILE.npy")]
    pub neighbors: Option<PathBuf>,
    /// Folder for pictures
    #[arg(short, long, value_name = "DIR", default_value = "explained")]
    pub out: PathBuf,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Crops per forward pass
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = whole_in("a number of images", 1_u32..=4096))]
    pub batch_size: u32,
    #[command(flatten, next_help_heading = "Compute")]
    pub run: RunOptions,
}

/// An explanation method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MethodArg {
    /// Channels of the last feature map, weighted by the class's gradient
    GradCam,
    /// Grad-CAM weighted per position, so that several objects show
    #[value(name = "grad-cam++", alias = "grad-cam-plus-plus")]
    GradCamPlusPlus,
    /// Drop of the probability when a gray square covers the image; slow, without gradients
    Occlusion,
    /// Gradient of the pixels, averaged over noisy copies
    Smoothgrad,
}

/// `serve`
#[cfg(feature = "serve")]
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Weights: a run folder, a file, or a published name
    #[arg(short, long, value_name = "W")]
    pub weights: String,
    #[command(flatten, next_help_heading = "Weights")]
    pub load: LoadArgs,
    #[command(flatten, next_help_heading = "Images")]
    pub decoding: ImageArgs,
    /// Address to listen on; port 0 takes a free port
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080", value_parser = address)]
    pub addr: std::net::SocketAddr,
    /// Largest number of images per forward pass
    #[arg(help_heading = "Limits", long, value_name = "N", default_value_t = 16, value_parser = whole_in("a number of images", 1_u32..=4096))]
    pub batch_size: u32,
    /// Longest wait of a batch's first image for others; milliseconds without a unit
    #[arg(help_heading = "Limits", long, alias = "max-wait-ms", value_name = "DURATION", default_value = "2ms",
        value_parser = runtime::units::duration_in(std::time::Duration::from_millis(1), std::time::Duration::ZERO..=std::time::Duration::from_secs(60)))]
    pub max_wait: std::time::Duration,
    /// Largest number of images in flight; more are rejected (503)
    #[arg(help_heading = "Limits", long, value_name = "N", default_value_t = 256, value_parser = whole_in("a number of images", 1_u32..=1_000_000))]
    pub max_images: u32,
    /// Largest number of images in a request (413)
    #[arg(help_heading = "Limits", long, value_name = "N", default_value_t = 64, value_parser = whole_in("a number of images", 1_u32..))]
    pub max_images_per_request: u32,
    /// Largest request body (413); MiB without a unit
    #[arg(help_heading = "Limits", long, alias = "max-body-mib", value_name = "SIZE", default_value = "20MiB",
        value_parser = runtime::units::byte_size_in(1 << 20, 1 << 10..=1 << 30))]
    pub max_body: u64,
    /// Largest memory of all images that are being decoded (413 for one that needs more alone, others wait); MiB without
    /// a unit
    #[arg(help_heading = "Limits", long, value_name = "SIZE", default_value = "1GiB",
        value_parser = runtime::units::byte_size_in(1 << 20, 1 << 20..=1 << 40))]
    pub max_decoding: u64,
    /// Time limit of a request, including its body (408); seconds without a unit
    #[arg(help_heading = "Limits", long, alias = "timeout-secs", value_name = "DURATION", default_value = "30s",
        value_parser = runtime::units::duration_in(std::time::Duration::from_secs(1), std::time::Duration::from_millis(100)..=std::time::Duration::from_secs(86_400)))]
    pub timeout: std::time::Duration,
    /// Largest number of open connections; others wait
    #[arg(help_heading = "Limits", long, value_name = "N", default_value_t = 1024, value_parser = whole_in("a number of connections", 1_u32..))]
    pub max_connections: u32,
    /// Largest number of requests per second from one address (429) [default: no limit]
    #[arg(help_heading = "Limits", long, value_name = "N", value_parser = whole_in("a number of requests per second", 1_u32..))]
    pub rate_limit: Option<u32>,
    /// Bearer token required for /v1/ (401); HEARTH_TOKEN is safer, since other users of the machine cannot see it
    #[arg(help_heading = "Access", long, value_name = "TOKEN", env = "HEARTH_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Origin whose pages may call the API, such as https://example.org or `*` (may be repeated) [default: none]
    #[arg(help_heading = "Access", long = "cors-origin", value_name = "ORIGIN")]
    pub cors_origins: Vec<String>,
    /// Host name that clients use, besides IP addresses and localhost (may be repeated). Without a token, and on a loopback
    /// address, other names are rejected (421): a web page could reach the server by them
    #[arg(help_heading = "Access", long = "allowed-host", value_name = "HOST")]
    pub allowed_hosts: Vec<String>,
    /// Serve without a token on an address that other machines can reach
    #[arg(help_heading = "Access", long)]
    pub insecure: bool,
    /// Decoding threads [default: one per core]
    #[arg(help_heading = "Limits", long, value_name = "N", value_parser = parse_threads)]
    pub workers: Option<usize>,
    /// Format of log lines on standard error
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    #[command(flatten, next_help_heading = "Compute")]
    pub run: RunOptions,
}

/// Resolves `HOST:PORT`. Of a name with several addresses, IPv4 comes first.
#[cfg(feature = "serve")]
fn address(text: &str) -> Result<std::net::SocketAddr, String> {
    use std::net::ToSocketAddrs;
    if let Some((scheme, rest)) = text.split_once("://") {
        return Err(format!("expected HOST:PORT without `{scheme}://`, such as {}", rest.trim_end_matches('/')));
    }
    let (host, port) = text.rsplit_once(':').ok_or("expected HOST:PORT, such as 127.0.0.1:8080 or localhost:8080")?;
    let port: u16 = port.parse().map_err(|_| format!("`{port}` is no port; ports are 0 to 65535"))?;
    if host.is_empty() {
        let hosts = format!("127.0.0.1:{port} for this machine alone, 0.0.0.0:{port} for all");
        return Err(format!("`{text}` has no host: {hosts}"));
    }
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let found = (host, port).to_socket_addrs().map_err(|error| format!("`{host}` is not known: {error}"))?;
    found.min_by_key(std::net::SocketAddr::is_ipv6).ok_or_else(|| format!("`{host}` has no address"))
}

/// `bench`
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Architectures (`infer models` lists them), with random weights [default: one of each family]
    #[arg(value_name = "ARCH", conflicts_with = "weights", value_parser = parse_architecture)]
    pub architectures: Vec<Architecture>,
    /// Weights in place of architectures: a run folder, a file, or a published name
    #[arg(short, long, value_name = "W")]
    pub weights: Option<String>,
    #[command(flatten, next_help_heading = "Weights")]
    pub load: LoadArgs,
    /// Batch sizes, a row each
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 8], value_parser = whole_in("a number of images", 1_u32..=4096))]
    pub batch_sizes: Vec<u32>,
    /// Height and width of the images in pixels, as 224 or 320x256 [default: the network's own]
    #[arg(long, value_name = "H[xW]", value_parser = image_size)]
    pub size: Option<[usize; 2]>,
    /// Threads of the CPU backends [default: one per core]
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// Timed batches
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = whole_in("a number of iterations", 1_u32..))]
    pub iters: u32,
    /// Untimed batches before those; by default 3 to 30, until the times of three in a row differ by at most 10 %
    ///
    /// On a GPU the first batches compile kernels and time several of them for each shape to keep the fastest. A warning
    /// follows the row where the times had not settled.
    #[arg(long, value_name = "N", value_parser = whole_in("a number of iterations", 1_u32..))]
    pub warmup: Option<u32>,
    /// Run batch normalization as separate layers
    #[arg(long)]
    pub keep_batchnorm: bool,
    /// Compute type of convolutions and linear layers; everything else is f32. On the CPU, bf16 is usually faster with
    /// AVX512-BF16, which auto measures; with AMX, activations are bf16 too
    #[arg(long, value_name = "f32|bf16|f16|auto", value_enum, default_value_t)]
    pub dtype: Dtype,
    /// Measure with batch normalization folded and kept, a row each
    #[arg(long, alias = "both", conflicts_with = "keep_batchnorm")]
    pub compare_folding: bool,
    /// The backend and its device (may be repeated, each a row) [env: HEARTH_BACKEND] [default: auto]
    #[arg(short, long = "backend", value_name = "auto|NAME[:DEVICE]")]
    pub backends: Vec<BackendChoice>,
    /// Output format, row by row
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Measure a single row in this process
    #[arg(long, hide = true)]
    pub in_process: bool,
}

/// `diagram`
#[derive(Debug, Args)]
pub struct DiagramArgs {
    /// Architecture (`infer models` lists them), or weights: a run folder, a file, or a published name
    #[arg(value_name = "ARCH|W")]
    pub network: String,
    #[command(flatten, next_help_heading = "Weights")]
    pub load: LoadArgs,
    /// Output file [default: the architecture's name]
    #[arg(short, long, value_name = "FILE.svg")]
    pub out: Option<PathBuf>,
    /// Height and width of the input in pixels, as 224 or 320x256 [default: the network's own]
    #[arg(long, value_name = "H[xW]", value_parser = image_size)]
    pub size: Option<[usize; 2]>,
    /// Draw the network with batch normalization folded into the convolutions
    #[arg(long)]
    pub fold_batchnorm: bool,
}

/// `export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Weights: a run folder, a file, or a published name
    #[arg(short, long, value_name = "W")]
    pub weights: String,
    #[command(flatten, next_help_heading = "Weights")]
    pub load: LoadArgs,
    /// File format
    #[arg(long, value_enum)]
    pub to: ExportFormat,
    /// Output file [default: the architecture's name]
    #[arg(short, long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace an existing file
    #[arg(short, long)]
    pub force: bool,
    /// Fold batch normalization into the preceding convolutions: faster, equal up to rounding, not for training
    #[arg(long)]
    pub fold_batchnorm: bool,
    /// Height and width of an ONNX file's images, as 224 or 320x256 [default: the card's]
    #[arg(long, value_name = "H[xW]", value_parser = image_size)]
    pub size: Option<[usize; 2]>,
}

/// `quantize`
#[derive(Debug, Args)]
pub struct QuantizeArgs {
    /// Weights: a run folder, a file, or a published name
    #[arg(short, long, value_name = "W")]
    pub weights: String,
    #[command(flatten, next_help_heading = "Weights")]
    pub load: LoadArgs,
    /// Images like those to be classified, with labels or without: class folders, a table (CSV, TSV, JSON lines), ImageNet's
    /// archives, shards, a folder of photographs
    #[arg(long, value_name = "DATA")]
    pub data: String,
    #[command(flatten)]
    pub table: TableOptions,
    /// Images to calibrate on
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = whole_in("a number of images", 1_u32..=100_000))]
    pub images: u32,
    /// Other images to compare int8 with f32 on; 0 omits the comparison
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = whole_in("a number of images", 0_u32..=100_000))]
    pub held_out: u32,
    /// Points of top-1 accuracy that int8 may lose; stages stay in f32 until it holds
    #[arg(long, value_name = "POINTS", default_value_t = 0.5, value_parser = fraction_of_a_percent)]
    pub max_drop: f64,
    /// Output file [default: the architecture's name]
    #[arg(short, long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace an existing file
    #[arg(short, long)]
    pub force: bool,
    /// Print how the network was quantized as text or as JSON
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    #[command(flatten, next_help_heading = "Images")]
    pub decoding: ImageArgs,
    /// Images per forward pass
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = whole_in("a number of images", 1_u32..=4096))]
    pub batch_size: u32,
}

/// Parses a number of points from 0 to 100.
fn fraction_of_a_percent(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(points) if (0.0..=100.0).contains(&points) => Ok(points),
        _ => Err("expected a number of points from 0 to 100".to_string()),
    }
}

/// A file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// PyTorch's state dictionary under torchvision's names, with the model card inside
    Safetensors,
    /// Burn's own record (.bpk), with the model card inside
    Burnpack,
    /// ONNX, for onnxruntime, OpenVINO, TensorRT and others
    Onnx,
}

/// A split of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SplitArg {
    /// The validation split; everything if the data has no splits
    Val,
    /// The training split
    Train,
    /// Both splits
    All,
}

/// Crops of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CropsArg {
    /// The center crop
    #[value(name = "1")]
    One,
    /// Corners and center, each with its mirror image
    #[value(name = "10")]
    Ten,
    /// Four sizes, three squares of each, six crops of each square, each with its mirror image
    #[value(name = "144")]
    All,
}

/// The policy for unreadable images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BadSamplesArg {
    /// Stop at any, and at damaged ones, with an error that names archive, member, offset and cause
    Strict,
    /// Stop at one that cannot be decoded; evaluate damaged ones as far as they can be decoded, with a warning
    Warn,
    /// Warn of damaged ones; count one that cannot be decoded, list it and leave it out; the exit code is 3
    Skip,
}

/// `summary`
#[derive(Debug, Args)]
pub struct SummaryArgs {
    /// Architecture (`infer models` lists them)
    #[arg(value_name = "ARCH", required_unless_present = "weights")]
    #[arg(conflicts_with_all = [
        "weights", "architecture", "card", "weights_key", "cache_dir", "offline", "resize", "crop", "interpolation", "mean",
        "std", "activation"
    ], value_parser = parse_architecture)]
    pub network: Option<Architecture>,
    /// Weights in place of an architecture: a run folder, a file, or a published name
    #[arg(short, long, value_name = "W")]
    pub weights: Option<String>,
    #[command(flatten, next_help_heading = "Weights")]
    pub load: LoadArgs,
    /// Number of classes [default: the architecture's own]
    #[arg(long, value_name = "N", conflicts_with = "weights", value_parser = whole_in("a number of classes", 1_u32..))]
    pub classes: Option<u32>,
    /// Height and width of the input in pixels, as 224 or 320x256 [default: the network's own]
    #[arg(long, value_name = "H[xW]", value_parser = image_size)]
    pub size: Option<[usize; 2]>,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// `card`
#[derive(Debug, Args)]
pub struct CardArgs {
    /// Weights: a run folder, a file, or a published name
    #[arg(value_name = "W")]
    pub weights: String,
    #[command(flatten, next_help_heading = "Weights")]
    pub load: LoadArgs,
    /// Class names in the order of the outputs: a text file with a name per line, or a JSON array
    #[arg(long, value_name = "FILE", conflicts_with = "classes_from")]
    pub classes: Option<PathBuf>,
    /// Labeled images whose classes are the network's, in the order that training sorts them
    #[arg(long, value_name = "DATA")]
    pub classes_from: Option<String>,
    #[command(flatten)]
    pub table: TableOptions,
    /// Output file [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace an existing file
    #[arg(short, long)]
    pub force: bool,
}

/// `models`
#[derive(Debug, Args)]
pub struct ModelsArgs {
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// The pass that `verify` compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Pass {
    /// A forward pass in evaluation mode: the output of every stage, and the logits
    Forward,
    /// A training step: the loss, with auxiliary classifiers, and the gradient of every parameter
    Training,
}

impl Pass {
    /// Every pass.
    pub const ALL: [Self; 2] = [Self::Forward, Self::Training];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Training => "training",
        }
    }
}

/// `verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// A network to run (may be repeated); by default one of each family. On software adapters, whose buffers end at
    /// 128 MiB, AlexNet and VGG get narrower hidden layers
    #[arg(short, long = "arch", value_name = "ARCH", value_parser = parse_architecture)]
    pub architectures: Vec<Architecture>,
    /// A backend to compare with flex (may be repeated); by default all that are compiled in, with the best device of
    /// each, or its software adapter where there is no GPU
    #[arg(long = "backend", value_name = "NAME[:DEVICE]")]
    pub backends: Vec<BackendSpec>,
    /// A pass to compare (may be repeated); both by default
    #[arg(long = "pass", value_name = "forward|training", value_enum)]
    pub passes: Vec<Pass>,
    /// Height and width of the input in pixels, as 96 or 96x128; 64 by default, or what the network and the pass need
    #[arg(long, value_name = "H[xW]", value_parser = image_size)]
    pub size: Option<[usize; 2]>,
    /// The largest relative difference of a stage's output, the logits or the loss that counts as equal
    ///
    /// Sums in another order differ by some 1e-6 in 32-bit floats, more in deeper networks; a wrong operation differs
    /// by 1e-2 and more. GPUs that multiply in TF32 differ by some 1e-3.
    #[arg(long, value_name = "X", default_value_t = 1e-4, value_parser = number_in("a number such as 1e-4", 0.0..))]
    pub tolerance: f64,
    /// The largest relative difference of a gradient that counts as equal
    #[arg(long, value_name = "X", default_value_t = 1e-3, value_parser = number_in("a number such as 1e-3", 0.0..))]
    pub gradient_tolerance: f64,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Run the one comparison asked for in this process, and print its row as JSON
    #[arg(long, hide = true)]
    pub in_process: bool,
}

/// Parses height and width from `224` or `320x256`.
fn image_size(text: &str) -> Result<[usize; 2], String> {
    let side = |text: &str| match text.trim().parse::<usize>() {
        Ok(side) if (1..=16_384).contains(&side) => Ok(side),
        _ => Err(format!("`{text}` is not a number of pixels from 1 to 16384; write 224 or 320x256 (height x width)")),
    };
    match text.split_once(['x', 'X', '×']) {
        Some((height, width)) => Ok([side(height)?, side(width)?]),
        None => side(text).map(|side| [side, side]),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn clap_accepts_the_command_line() {
        Cli::command().debug_assert();
    }

    #[cfg(feature = "serve")]
    #[test]
    fn addresses_have_a_host_and_a_port() {
        assert_eq!(address("127.0.0.1:80"), Ok(([127, 0, 0, 1], 80).into()));
        assert_eq!(address("[::1]:0").map(|address| address.is_ipv6()), Ok(true));
        for (text, remedy) in [
            (":8080", "127.0.0.1:8080 for this machine"),
            ("http://localhost:80/", "without `http://`, such as localhost:80"),
            ("localhost", "expected HOST:PORT"),
            ("localhost:99999", "no port"),
        ] {
            let error = address(text).unwrap_err();
            assert!(error.contains(remedy), "{text}: {error}");
        }
    }

    #[test]
    fn image_sizes_are_one_or_two_numbers() {
        assert_eq!(image_size("224"), Ok([224, 224]));
        assert_eq!(image_size("320x256"), Ok([320, 256]));
        for wrong in ["", "0", "x", "224x", "-5", "99999", "12.5"] {
            assert!(image_size(wrong).unwrap_err().contains("pixels"), "{wrong}");
        }
    }

    #[test]
    fn summary_accepts_an_architecture_or_weights() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["infer", "summary"], args].concat());
        assert!(parse(&["resnet18"]).is_ok());
        assert!(parse(&["--weights", "w.pth", "--arch", "resnet18"]).is_ok());
        assert!(parse(&[]).is_err());
        assert!(parse(&["resnet18", "--weights", "w.pth"]).is_err());
        assert!(parse(&["resnet18", "--arch", "resnet18"]).is_err(), "--arch belongs to --weights");
        assert!(parse(&["resnet18", "--offline"]).is_err());
        let error = parse(&["resnet81"]).unwrap_err().to_string();
        assert!(error.contains("did you mean 'resnet"), "{error}");
    }
}
