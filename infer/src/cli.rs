//! The command line.

use std::path::PathBuf;

use burn::tensor::FloatDType;
use clap::{Args, Parser, Subcommand, ValueEnum};
use models::Architecture;
use runtime::{
    backend::{BackendArgs, BackendChoice, BackendSpec, Devices, DevicesArgs, KernelArgs},
    logging::Verbosity,
    progress::Output,
    world::WorldArgs,
};
use serde::{Deserialize, Serialize};
use zoo::LoadOptions;

/// Classifies images, and looks into the networks that do it
///
/// A network, its weights and the way it wants its images come together in a model card: every checkpoint that `train`
/// writes carries one, published weights have theirs built in. Preprocessing is never guessed.
///
/// Results go to standard output; progress and warnings go to standard error.
#[derive(Debug, Parser)]
#[command(name = "infer", version, after_long_help = runtime::exit::HELP, max_term_width = 100)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
    /// How much is said on standard error
    #[command(flatten)]
    pub verbosity: Verbosity,
    /// What runs on the CPU
    #[command(flatten)]
    pub kernels: KernelArgs,
    /// How several processes work together
    #[command(flatten)]
    pub ranks: WorldArgs,
}

impl Cli {
    /// Where progress goes.
    pub fn progress(&self) -> Output {
        Output::from_quiet(self.verbosity.is_quiet())
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Says what is on images: the most probable classes of each
    ///
    /// Reads JPEG, PNG, WebP, BMP, TIFF and GIF, told by their content. An image that cannot be read gets its line of
    /// error, the others still get their answers, and the exit code is 3; if none can be read it is 1.
    #[command(after_long_help = "Formats:
  text   the path, then a line for each class: probability, index, name; errors go to standard error
  json   one object an image, each on its line: {\"path\", \"top\": [{\"class\", \"index\", \"probability\"}, …]},
         or {\"path\", \"error\"}
  csv    path,rank,class,index,probability,error: a row for each class of each image; an unreadable image has one
         row with its error

Examples:
  infer classify dog.jpg --weights resnet50                     # published weights, downloaded once
  infer classify photos/ --weights artifacts/my-run --topk 1 --format csv > photos.csv
  infer classify *.jpg --weights googlenet.pth --arch googlenet # a file without a card
  curl -s https://example.org/cat.png | infer classify - --weights resnet18 --format json")]
    Classify(ClassifyArgs),

    /// Judges a network on labelled images: top-1, top-5, loss, calibration, each class
    ///
    /// Every image counts once, whatever the batch size. The classes of the data are matched with the network's by name,
    /// or by wnid for networks that know ImageNet's 1000 classes; where the data has fewer, the network is judged among
    /// all of its classes and among those of the data. Validation images of ImageNet under their official names are
    /// judged by the reassessed ReaL labels too.
    #[command(after_long_help = "Examples:
  infer evaluate --data /data/imagenet --weights resnet50
  infer evaluate --data photos/ --weights artifacts/my-run --out judged/
  infer evaluate --data /data/imagenet --weights bvlc_googlenet --crops 144
  infer evaluate --data /data/imagenet --weights vgg16 --dense --scales 256,384,512 --flip
  infer evaluate --data /data/imagenet --weights resnet50 --ensemble resnet101 resnext50_32x4d
  infer evaluate … --rank 0 --of 2 --out part0   and   … --rank 1 --of 2 --out part1
  infer merge part0 part1 --out judged/")]
    Evaluate(Box<EvaluateArgs>),

    /// Puts the shares of an evaluation together, exactly
    Merge(MergeArgs),

    /// Shows where on images a network looks, and what it finds alike
    ///
    /// Writes a picture for each image: what the network gets, and beside it where it sees each of the most probable
    /// classes; a contact sheet when there are several. With --features, --neighbours, --stages or --filters it does that
    /// instead. An image that cannot be read gets its line of error, the others go on, and the exit code is 3.
    #[command(after_long_help = "Examples:
  infer explain dog.jpg --weights resnet50                            # explained/dog.explained.png
  infer explain photos/ --weights artifacts/my-run --method grad-cam++ --out why/
  infer explain dog.jpg --weights vgg16 --class beagle --class 162 --method occlusion
  infer explain dog.jpg --weights googlenet --stages                  # what each stage makes of it
  infer explain --weights alexnet --filters                           # its first layer
  infer explain photos/ --weights resnet50 --features vectors.npy     # and vectors.csv with their paths
  infer explain dog.jpg --weights resnet50 --neighbours vectors.npy   # or a folder of images")]
    Explain(Box<ExplainArgs>),

    /// Writes a network for other programs: safetensors, Burn's record, ONNX
    ///
    /// Safetensors have torchvision's names and layouts, so `load_state_dict(strict=True)` takes them. ONNX (opset 17) takes
    /// any number of images; every architecture is written from its recorded graph of operations.
    #[command(after_long_help = "Examples:
  infer export --weights artifacts/my-run --to onnx --fold-batchnorm   # resnet50.onnx
  infer export --weights googlenet.caffemodel --to safetensors --out googlenet_2014.safetensors")]
    Export(ExportArgs),

    /// Answers over HTTP, with a page for people
    ///
    /// `POST /v1/classify` takes an image as its body, or a form with several; `POST /v1/explain` gives a picture of where
    /// a class is seen; `/` is a page for photographs and the camera. Images that arrive together run together. What does
    /// not fit is refused at once with a status that says why: nothing grows under load. Ctrl-C ends it once the requests
    /// in flight are answered.
    ///
    /// It listens on this machine alone unless --addr says otherwise.
    #[cfg(feature = "serve")]
    #[command(after_long_help = "Also: GET /v1/model, /healthz, /readyz, /metrics (Prometheus), /openapi.json

Examples:
  infer serve --weights resnet50                      # then open http://127.0.0.1:8080
  curl -sS --data-binary @dog.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8080/v1/classify
  curl -sS -F a=@dog.jpg -F b=@cat.jpg 'http://127.0.0.1:8080/v1/classify?topk=1'
  curl -sS --data-binary @dog.jpg -H 'Content-Type: image/jpeg' 'http://127.0.0.1:8080/v1/explain?class=162' > why.png
  HEARTH_TOKEN=… infer serve --weights artifacts/my-run --addr 0.0.0.0:8080")]
    Serve(Box<ServeArgs>),

    /// Measures how fast networks run, and in how much memory
    ///
    /// Random images of the network's size go through it; what is timed is one batch from the images on the device to the
    /// logits on the host. Each row is measured in a process of its own.
    #[command(
        after_long_help = "One JSON object a line (--format json) has the names that the peers' scripts print: model, batch, size, threads,
median_s, min_s, max_s, images_per_s, peak_rss_mb; besides p99_s, folded, device, cpu.

Examples:
  infer bench                                     # the usual five, batches of 1 and 8
  infer bench resnet50 --both --batch-sizes 1,8,32
  infer bench --weights artifacts/my-run --backend flex --backend cuda:0 --format json"
    )]
    Bench(BenchArgs),

    /// Draws a network as the papers do, as an SVG
    ///
    /// Stages from top to bottom with their shapes, parameters and multiply-adds; Inception modules with their branches
    /// side by side, residual blocks with their shortcuts. Drawn from the recorded graph of operations.
    #[command(after_long_help = "Examples:
  infer diagram resnet50                                   # resnet50.svg
  infer diagram googlenet --out googlenet.svg
  infer diagram artifacts/my-run --size 128 --out mine.svg")]
    Diagram(DiagramArgs),

    /// Prints a network's stages, output shapes, parameters and multiply-adds
    ///
    /// Of an architecture by name, or of a file of weights with what its model card says.
    #[command(after_long_help = "Examples:
  infer summary resnet18
  infer summary vgg16 --classes 10 --size 320x256
  infer summary --weights artifacts/my-run --format json")]
    Summary(SummaryArgs),

    /// Lists the architectures and their published weights
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
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AnswerFormat {
    /// A short table for each image
    Text,
    /// One JSON object an image, each on its line
    Json,
    /// A table for programs, with a header
    Csv,
}

/// How a network runs.
#[derive(Debug, Clone, Args)]
pub struct RunOptions {
    /// Run batch normalisation as layers of its own
    ///
    /// By default it is folded into the convolutions before it, which is faster and the same to rounding.
    #[arg(long)]
    pub keep_batchnorm: bool,
    /// Compute in this type (mixed precision: the arithmetic of norms and the logits stay f32). On the CPU bf16 is faster
    /// with AVX512-BF16 or AMX
    #[arg(long, value_name = "f32|bf16|f16", value_enum, default_value_t)]
    pub dtype: Dtype,
    #[command(flatten)]
    pub backend: BackendArgs,
}

/// A type of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Dtype {
    #[default]
    F32,
    Bf16,
    F16,
}

impl Dtype {
    /// What to compute in, where it is not what everything else is in.
    pub fn half(self) -> Option<FloatDType> {
        match self {
            Self::F32 => None,
            Self::Bf16 => Some(FloatDType::BF16),
            Self::F16 => Some(FloatDType::F16),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

#[derive(Debug, Args)]
pub struct ClassifyArgs {
    /// Image files, folders (the images in them, not in folders below), or `-` for an image on standard input
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<PathBuf>,
    /// The weights: a run folder, a file, or a published name
    ///
    /// A run folder is what `train` writes. A file may be safetensors, PyTorch's (.pth, .pt, .th), Burn's record or
    /// BVLC's caffemodel. A published name is `resnet50` or `resnet50.IMAGENET1K_V1` (`infer models` lists them); it is
    /// downloaded once. What exists as a path is taken as one.
    #[arg(short, long, value_name = "W")]
    pub weights: String,
    #[command(flatten)]
    pub load: LoadOptions,
    /// How many classes an answer has; all of them where there are fewer
    #[arg(short = 'k', long, value_name = "K", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub topk: u32,
    /// How answers are printed
    #[arg(long, value_enum, default_value_t = AnswerFormat::Text)]
    pub format: AnswerFormat,
    #[command(flatten)]
    pub run: RunOptions,
    /// Images that the network takes at a time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch_size: u32,
}

/// `evaluate`
#[derive(Debug, Args)]
pub struct EvaluateArgs {
    /// The images: class folders, ImageNet's archives, shards, a table
    #[arg(long, value_name = "DATA")]
    pub data: String,
    /// Which part of them
    #[arg(long, value_enum, default_value_t = SplitArg::Val)]
    pub split: SplitArg,
    /// Leave out the samples that this quarantine file lists
    #[arg(long, value_name = "FILE")]
    pub without: Option<PathBuf>,
    /// The weights: a run folder, a file, or a published name
    #[arg(short, long, value_name = "W", required_unless_present = "ensemble")]
    pub weights: Option<String>,
    /// More weights of the same classes, whose probabilities are averaged with the first's
    #[arg(long, value_name = "W", num_args = 1..)]
    pub ensemble: Vec<String>,
    #[command(flatten)]
    pub load: LoadOptions,
    /// Views of an image whose probabilities are averaged: the centre, AlexNet's 10, GoogLeNet's 144
    #[arg(long, value_enum, default_value_t = CropsArg::One)]
    pub crops: CropsArg,
    /// Shorter sides in pixels to which images are resized, in place of the card's; the views of all are averaged
    #[arg(long, value_name = "PIXELS", value_delimiter = ',')]
    pub scales: Vec<u32>,
    /// Average with the mirror image
    #[arg(long)]
    pub flip: bool,
    /// Look at the whole image in place of a crop: VGG's and AlexNet's classifier at every place, others as they are
    #[arg(long)]
    pub dense: bool,
    /// This process judges every OF-th image from RANK on; `infer merge` puts the results together. Under mpirun or srun
    /// (feature `mpi`) the processes share the images by themselves
    #[arg(long, value_name = "RANK", default_value_t = 0, requires = "of")]
    pub rank: usize,
    /// How many processes share the work
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub of: usize,
    /// What to do with an image that cannot be read or decoded
    #[arg(long, value_enum, default_value_t = BadSamplesArg::Skip)]
    pub bad_samples: BadSamplesArg,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = AnswerFormat::Text)]
    pub format: AnswerFormat,
    /// A folder, new or empty, for tables, pictures, the prediction for each image and a page
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Views that the network takes at a time
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch_size: u32,
    /// Threads that decode; by default as many as there are cores
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    #[command(flatten)]
    pub run: RunOptions,
    /// The devices of a host, cuda:0-7 or cuda:0,2: each process there (mpirun, srun) takes one, in their order
    #[arg(long, value_name = "NAME:DEVICES", conflicts_with = "backend")]
    pub devices: Option<Devices>,
}

/// `merge`
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// The folders that `evaluate --out` wrote, one a share
    #[arg(required = true, value_name = "DIR")]
    pub parts: Vec<PathBuf>,
    /// A folder, new or empty, for the whole
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = AnswerFormat::Text)]
    pub format: AnswerFormat,
}

/// `explain`
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Image files, folders (the images in them, not in folders below), or `-` for an image on standard input
    #[arg(value_name = "IMAGE", required_unless_present = "filters")]
    pub images: Vec<PathBuf>,
    /// The weights: a run folder, a file, or a published name
    #[arg(short, long, value_name = "W")]
    pub weights: String,
    #[command(flatten)]
    pub load: LoadOptions,
    /// A class to look for, by index or name (may be repeated); by default the most probable ones
    #[arg(short, long = "class", value_name = "CLASS")]
    pub classes: Vec<String>,
    /// How many classes are looked for, or how many neighbours
    #[arg(short = 'k', long, value_name = "K", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub topk: u32,
    /// How they are looked for
    #[arg(long, value_enum, default_value_t = MethodArg::GradCam)]
    pub method: MethodArg,
    /// The stage whose map Grad-CAM weights (`infer summary` lists them); by default the last before the classifier
    #[arg(long, value_name = "STAGE")]
    pub stage: Option<String>,
    /// Show the shape and the strongest channels of each stage in place of classes
    #[arg(long, conflicts_with_all = ["classes", "features", "neighbours"])]
    pub stages: bool,
    /// Show the filters of the first layer
    #[arg(long)]
    pub filters: bool,
    /// Write the vector before the classifier of each image to this file (NumPy's .npy, with a .csv of paths beside it)
    #[arg(long, value_name = "FILE.npy", conflicts_with = "neighbours")]
    pub features: Option<PathBuf>,
    /// Find the images most like each, by the cosine of their vectors: in a folder, or in a file that --features wrote
    #[arg(long, value_name = "FOLDER|FILE.npy")]
    pub neighbours: Option<PathBuf>,
    /// The folder for pictures
    #[arg(short, long, value_name = "DIR", default_value = "explained")]
    pub out: PathBuf,
    /// How results are printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Views that the network takes at a time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch_size: u32,
    #[command(flatten)]
    pub run: RunOptions,
}

/// How a class is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MethodArg {
    /// Channels of the last map, weighted by the class's gradient
    GradCam,
    /// The same, weighted place by place: several objects show
    #[value(name = "grad-cam++", alias = "grad-cam-plus-plus")]
    GradCamPlusPlus,
    /// How far the probability falls where a grey square hides the image; slow, and owes nothing to gradients
    Occlusion,
    /// The gradient of the pixels themselves, averaged over noisy copies
    Smoothgrad,
}

/// `serve`
#[cfg(feature = "serve")]
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The weights: a run folder, a file, or a published name
    #[arg(short, long, value_name = "W")]
    pub weights: String,
    #[command(flatten)]
    pub load: LoadOptions,
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:8080")]
    pub addr: std::net::SocketAddr,
    /// Images that the network takes at a time, at most
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch_size: u32,
    /// How long the first image of a batch waits for others, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2)]
    pub max_wait_ms: u64,
    /// Images that are decoded, wait or run at once; more are refused (503)
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_images: u32,
    /// Images of one request (413)
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_images_per_request: u32,
    /// Size of a request's body in MiB (413)
    #[arg(long, value_name = "MIB", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub max_body_mib: u32,
    /// Time for a request in seconds, its body included (408)
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    pub timeout_secs: u32,
    /// Connections at once; others wait
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,
    /// Requests a second from one address (429); no limit by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate_limit: Option<u32>,
    /// A bearer token that /v1/ asks for (401); better given as HEARTH_TOKEN, which other users of the machine cannot see
    #[arg(long, value_name = "TOKEN", env = "HEARTH_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// An origin whose pages may call, as https://example.org (may be repeated, `*` is any); none by default
    #[arg(long = "cors-origin", value_name = "ORIGIN")]
    pub cors_origins: Vec<String>,
    /// Threads that decode; by default as many as there are cores
    #[arg(long, value_name = "N", value_parser = threads)]
    pub workers: Option<usize>,
    #[command(flatten)]
    pub run: RunOptions,
}

/// `bench`
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The architectures (`infer models` lists them), with weights drawn at random; by default one of each family
    #[arg(value_name = "ARCH", conflicts_with = "weights")]
    pub architectures: Vec<Architecture>,
    /// A run folder, a file or a published name instead
    #[arg(short, long, value_name = "W")]
    pub weights: Option<String>,
    #[command(flatten)]
    pub load: LoadOptions,
    /// Images a batch, each number a row
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 8], value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch_sizes: Vec<u32>,
    /// Height and width of the images in pixels, as 224 or 320x256; the network's own by default
    #[arg(long, value_name = "H[xW]", value_parser = image_size)]
    pub size: Option<[usize; 2]>,
    /// Threads of the CPU backends; by default as many as there are cores
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
    /// Batches that are timed
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub iters: u32,
    /// Untimed batches before those; by default 3 to 30, until the times of three in a row differ by at most 10 %
    ///
    /// On a GPU the first batches compile kernels and time several of them for each shape to keep the fastest. A warning
    /// follows the row where the times had not settled.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub warmup: Option<u32>,
    /// Run batch normalisation as layers of its own
    #[arg(long)]
    pub keep_batchnorm: bool,
    /// What convolutions and linear maps are computed in; everything else is in single precision. On the CPU bf16 pays
    /// where the processor multiplies it (AVX512-BF16, and AMX, with which the maps between them are of bf16 too)
    #[arg(long, value_name = "f32|bf16|f16", value_enum, default_value_t)]
    pub dtype: Dtype,
    /// A row with batch normalisation folded and one with it kept
    #[arg(long, conflicts_with = "keep_batchnorm")]
    pub both: bool,
    /// The backend and its device (may be repeated, each a row) [env: HEARTH_BACKEND] [default: auto]
    #[arg(short, long = "backend", value_name = "auto|NAME[:DEVICE]")]
    pub backends: Vec<BackendChoice>,
    /// How results are printed, row by row
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Measure the one row asked for in this process
    #[arg(long, hide = true)]
    pub in_process: bool,
}

/// `diagram`
#[derive(Debug, Args)]
pub struct DiagramArgs {
    /// An architecture (`infer models` lists them), or weights: a run folder, a file, a published name
    #[arg(value_name = "ARCH|W")]
    pub network: String,
    #[command(flatten)]
    pub load: LoadOptions,
    /// The file; by default the architecture's name in this folder
    #[arg(short, long, value_name = "FILE.svg")]
    pub out: Option<PathBuf>,
    /// Height and width of the input in pixels, as 224 or 320x256; the network's own by default
    #[arg(long, value_name = "H[xW]", value_parser = image_size)]
    pub size: Option<[usize; 2]>,
    /// Draw it with batch normalisation folded into the convolutions
    #[arg(long)]
    pub fold_batchnorm: bool,
}

/// `export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The weights: a run folder, a file, or a published name
    #[arg(short, long, value_name = "W")]
    pub weights: String,
    #[command(flatten)]
    pub load: LoadOptions,
    /// What to write
    #[arg(long, value_enum)]
    pub to: ExportFormat,
    /// The file; by default the architecture's name in this folder
    #[arg(short, long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace a file that is there
    #[arg(short, long)]
    pub force: bool,
    /// Fold batch normalisation into the convolutions before it: fewer operations, the same to rounding, not for training
    #[arg(long)]
    pub fold_batchnorm: bool,
    /// Height and width of the images of an ONNX file, as 224 or 320x256; the card's by default
    #[arg(long, value_name = "H[xW]", value_parser = image_size)]
    pub size: Option<[usize; 2]>,
}

/// A kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// PyTorch's state dictionary under torchvision's names, with the model card inside
    Safetensors,
    /// Burn's own record (.bpk), with the model card inside
    Burnpack,
    /// For onnxruntime, OpenVINO, TensorRT and the like
    Onnx,
}

/// A part of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SplitArg {
    /// The validation images; everything where the data has no parts
    Val,
    /// The training images
    Train,
    /// Everything
    All,
}

/// Views of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CropsArg {
    /// The centre
    #[value(name = "1")]
    One,
    /// Corners and centre, each with its mirror
    #[value(name = "10")]
    Ten,
    /// Four sizes, three squares of each, six crops of each, each with its mirror
    #[value(name = "144")]
    All,
}

/// What to do with an image that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BadSamplesArg {
    /// Stop, naming archive, member, offset and cause
    Strict,
    /// Count it, list it and leave it out; the exit code is 3
    Skip,
}

/// `summary`
#[derive(Debug, Args)]
pub struct SummaryArgs {
    /// The architecture (`infer models` lists them)
    #[arg(value_name = "ARCH", required_unless_present = "weights")]
    #[arg(conflicts_with_all = ["weights", "architecture", "card", "cache_dir", "offline"])]
    pub network: Option<Architecture>,
    /// A run folder, a file or a published name instead of an architecture
    #[arg(short, long, value_name = "W")]
    pub weights: Option<String>,
    #[command(flatten)]
    pub load: LoadOptions,
    /// The number of classes; the architecture's own by default
    #[arg(long, value_name = "N", conflicts_with = "weights", value_parser = clap::value_parser!(u32).range(1..))]
    pub classes: Option<u32>,
    /// Height and width of the input in pixels, as 224 or 320x256; the network's own by default
    #[arg(long, value_name = "H[xW]", value_parser = image_size)]
    pub size: Option<[usize; 2]>,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// `models`
#[derive(Debug, Args)]
pub struct ModelsArgs {
    /// How the result is printed
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
    #[arg(short, long = "arch", value_name = "ARCH")]
    pub architectures: Vec<Architecture>,
    /// A backend to compare with flex (may be repeated); by default all that are compiled in, with the best device of
    /// each, or its software adapter where there is no GPU
    #[arg(long = "backend", value_name = "NAME[:DEVICE]")]
    pub backends: Vec<BackendSpec>,
    /// A pass to compare (may be repeated); both by default
    #[arg(long = "pass", value_name = "forward|training", value_enum)]
    pub passes: Vec<Pass>,
    /// Height and width of the input in pixels, as 96 or 96x128; 64 by default, or what the network needs
    #[arg(long, value_name = "H[xW]", value_parser = image_size)]
    pub size: Option<[usize; 2]>,
    /// The largest relative difference of a stage's output, the logits or the loss that counts as equal
    ///
    /// Sums in another order differ by some 1e-6 in 32-bit floats, more in deeper networks; a wrong operation differs
    /// by 1e-2 and more. GPUs that multiply in TF32 differ by some 1e-3.
    #[arg(long, value_name = "X", default_value_t = 1e-4, value_parser = tolerance)]
    pub tolerance: f64,
    /// The largest relative difference of a gradient that counts as equal
    #[arg(long, value_name = "X", default_value_t = 1e-3, value_parser = tolerance)]
    pub gradient_tolerance: f64,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Run the one comparison asked for in this process, and print its row as JSON
    #[arg(long, hide = true)]
    pub in_process: bool,
}

/// Height and width from `224` or `320x256`.
fn image_size(text: &str) -> Result<[usize; 2], String> {
    let side = |text: &str| match text.trim().parse::<usize>() {
        Ok(side) if (1..=16_384).contains(&side) => Ok(side),
        _ => Err(format!("`{text}` is no number of pixels from 1 to 16384; write 224 or 320x256 (height x width)")),
    };
    match text.split_once(['x', 'X', '×']) {
        Some((height, width)) => Ok([side(height)?, side(width)?]),
        None => side(text).map(|side| [side, side]),
    }
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads @ 1..=1024) => Ok(threads),
        _ => Err("a number of threads is one from 1 to 1024".to_string()),
    }
}

fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value >= 0.0 && value.is_finite() => Ok(value),
        _ => Err("a tolerance is a number from 0, such as 1e-4".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_one_number_or_two() {
        assert_eq!(image_size("224"), Ok([224, 224]));
        assert_eq!(image_size("320x256"), Ok([320, 256]));
        for wrong in ["", "0", "x", "224x", "-5", "99999", "12.5"] {
            assert!(image_size(wrong).unwrap_err().contains("pixels"), "{wrong}");
        }
    }

    #[test]
    fn a_summary_is_of_an_architecture_or_of_weights() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["infer", "summary"], args].concat());
        assert!(parse(&["resnet18"]).is_ok());
        assert!(parse(&["--weights", "w.pth", "--arch", "resnet18"]).is_ok());
        assert!(parse(&[]).is_err());
        assert!(parse(&["resnet18", "--weights", "w.pth"]).is_err());
        assert!(parse(&["resnet18", "--arch", "resnet18"]).is_err(), "--arch is of --weights");
        assert!(parse(&["resnet18", "--offline"]).is_err());
        let error = parse(&["resnet81"]).unwrap_err().to_string();
        assert!(error.contains("did you mean 'resnet"), "{error}");
    }
}
