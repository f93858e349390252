//! `infer bench`: measures inference speed and memory.
//!
//! Each row is measured in a process of its own (`--in-process`): the peak memory of a process can only grow, the
//! number of threads is set once, and a backend that crashes fails its row only.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use datasets::SampleRng;
use hub::{Activation, Resize};
use infer::model::warn_of_slow;
use kernels::KernelMode;
use models::{Architecture, Execution, ImageClassifier, Network, NetworkConfig, QuantizedNetwork};
use runtime::{
    backend::{self, BackendChoice, BackendSpec, Selected},
    environment,
    exit::ExitCode,
    noteln, outln,
    progress::{Output, Progress, Unit},
    warmup::Warmup,
};
use serde::{Deserialize, Serialize};

use super::{announce, failure_reason, open_weights};
use crate::cli::{BenchArgs, Dtype, Format};

/// The architectures measured by default: one of each family.
const USUAL: [Architecture; 5] = [
    Architecture::ResNet18,
    Architecture::ResNet50,
    Architecture::GoogLeNet,
    Architecture::Vgg16,
    Architecture::AlexNet,
];

/// One measurement. The field names are those of the scripts that measure PyTorch and onnxruntime.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Row {
    peer: String,
    version: String,
    model: String,
    mode: String,
    batch: usize,
    /// The side of the image in pixels, or `HEIGHTxWIDTH`.
    size: Size,
    device: String,
    threads: usize,
    kernels: String,
    dtype: String,
    folded: bool,
    params: usize,
    iters: usize,
    warmup: usize,
    /// Whether the last batches of the warm-up took the same time.
    settled: bool,
    /// Why the timed batches may be no measure of later ones.
    warning: Option<String>,
    /// The time of the first batch, for which weights are initialized on the device and kernels compiled and tuned.
    first_step_s: f64,
    median_s: f64,
    min_s: f64,
    max_s: f64,
    p99_s: f64,
    images_per_s: f64,
    /// Peak memory of the process, and its memory before the network was built; null if the system does not report it.
    peak_rss_mb: Option<f64>,
    import_rss_mb: Option<f64>,
    cpu: String,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(untagged)]
enum Size {
    Square(usize),
    Rectangle([usize; 2]),
}

pub fn run(args: &BenchArgs, kernels: KernelMode, output: Output) -> Result<ExitCode> {
    if args.in_process {
        return in_process(args, kernels, output);
    }
    let architectures = match (&args.weights, args.architectures.is_empty()) {
        (None, true) => USUAL.to_vec(),
        _ => args.architectures.clone(),
    };
    let subjects: Vec<Vec<String>> = match &args.weights {
        Some(weights) => {
            // An error in the weights fails the command, not each row.
            let opened = open_weights(weights, &args.load, &BackendSpec::host()?.device()?, output)?;
            ensure!(
                !opened.weights.is_quantized() || !args.keep_batchnorm && !args.compare_folding,
                "the network is quantized: its batch normalization is folded"
            );
            vec![[vec!["--weights".to_string(), weights.clone()], load_arguments(args)].concat()]
        }
        None => architectures.iter().map(|architecture| vec![architecture.name().to_string()]).collect(),
    };
    let selected = backend::select_all(&args.backends)?;
    announce(&selected, kernels);
    let backends: Vec<BackendSpec> = selected.iter().map(Selected::spec).collect();
    let folds: &[bool] = match (args.keep_batchnorm, args.compare_folding) {
        (_, true) => &[false, true],
        (true, _) => &[false],
        _ => &[true],
    };
    let total = subjects.len() * backends.len() * args.batch_sizes.len() * folds.len();
    let progress = Progress::new("bench", Unit::Items("measurements"), Some(total as u64), output);
    if args.format == Format::Text {
        outln!("{}", Row::HEADER)?;
    }
    let mut failed = 0;
    for subject in &subjects {
        for backend in &backends {
            for batch in &args.batch_sizes {
                for fold in folds {
                    match in_child(args, subject, backend, *batch, *fold, kernels)? {
                        Ok(row) => {
                            match args.format {
                                Format::Text => outln!("{}", row.text())?,
                                Format::Json => outln!("{}", serde_json::to_string(&row).unwrap_or_default())?,
                            }
                            if let Some(warning) = &row.warning {
                                noteln!("warning: {} on {backend}, {batch} images: {warning}", row.model);
                            }
                        }
                        Err(reason) => {
                            failed += 1;
                            let subject = subject.first().map_or("", String::as_str);
                            noteln!("error: {subject} on {backend}, {batch} images: {reason}");
                        }
                    }
                    progress.inc(1);
                }
            }
        }
    }
    progress.finish();
    Ok(match failed {
        0 => ExitCode::Success,
        n if n == total => ExitCode::Failure,
        _ => ExitCode::SomeInputsFailed,
    })
}

/// The options of `--weights` as arguments for a child process.
fn load_arguments(args: &BenchArgs) -> Vec<String> {
    let mut arguments = vec!["--offline".to_string()]; // The parent has downloaded what there was to download.
    let mut push = |name: &str, value: Option<String>| {
        arguments.extend(value.into_iter().flat_map(|value| [name.to_string(), value]));
    };
    push("--arch", args.load.options.architecture.map(|architecture| architecture.to_string()));
    push("--weights-key", args.load.options.weights_key.clone());
    // The pixels are random, and only their number matters.
    push(
        "--resize",
        args.load.preprocess.resize.map(|resize| match resize {
            Resize::ShorterSide(side) => side.to_string(),
            Resize::Squash([height, width]) => format!("{height}x{width}"),
        }),
    );
    push("--crop", args.load.preprocess.crop.map(|[height, width]| format!("{height}x{width}")));
    push("--activation", (args.load.activation == Activation::Sigmoid).then(|| "sigmoid".to_string()));
    push("--card", args.load.options.card.as_ref().map(|path| path.display().to_string()));
    push("--cache-dir", args.load.options.cache_dir.as_ref().map(|path| path.display().to_string()));
    arguments
}

fn in_child(
    args: &BenchArgs,
    subject: &[String],
    backend: &BackendSpec,
    batch: u32,
    fold: bool,
    kernels: KernelMode,
) -> Result<Result<Row, String>> {
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    let mut command = Command::new(program);
    command.arg("bench").args(subject).args(["--in-process", "--backend", &backend.to_string()]);
    command.args(["--batch-sizes", &batch.to_string(), "--iters", &args.iters.to_string()]);
    if let Some(warmup) = args.warmup {
        command.args(["--warmup", &warmup.to_string()]);
    }
    if let Some([height, width]) = args.size {
        command.args(["--size", &format!("{height}x{width}")]);
    }
    if !fold {
        command.arg("--keep-batchnorm");
    }
    if let Some(threads) = args.threads {
        command.args(["--threads", &threads.to_string()]);
    }
    command.args(["--dtype", args.dtype.name(), "--kernels", &kernels.to_string()]);
    command.env("RAYON_NUM_THREADS", threads(args).to_string());
    let output = command.stdin(Stdio::null()).output().context("cannot start a child process for a measurement")?;
    Ok(match serde_json::from_slice(&output.stdout) {
        Ok(row) if output.status.success() => Ok(row),
        _ => Err(failure_reason(&String::from_utf8_lossy(&output.stderr), output.status)),
    })
}

fn threads(args: &BenchArgs) -> usize {
    args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Makes one measurement in this process.
fn in_process(args: &BenchArgs, kernels: KernelMode, output: Output) -> Result<ExitCode> {
    let ([BackendChoice::Named(backend)], [batch]) = (&args.backends[..], &args.batch_sizes[..]) else {
        bail!("--in-process takes one --backend and one batch size");
    };
    let device = backend.device()?;
    let dtype = args.dtype.compute_dtype(&device);
    if let Some(dtype) = dtype {
        runtime::dtype::check(backend, &device, dtype)?;
        warn_of_slow(dtype, &device);
    }
    let import_rss_mb = environment::peak_rss_mb();
    let (architecture, network, usual_size) = subject(args, &device, output)?;
    let params = network.num_parameters();
    let is_quantized = matches!(network, Subject::Quantized(_));
    let dtype = dtype.filter(|_| !is_quantized || args.dtype != Dtype::Auto);
    ensure!(!is_quantized || dtype.is_none(), "the network is quantized: it computes in int8; leave out --dtype");
    let [height, width] = args.size.unwrap_or(usual_size);
    architecture.check_input([height, width])?;
    let batch = *batch as usize;
    let mut rng = SampleRng::new(0, 0, 0);
    let values: Vec<f32> = (0..batch * 3 * height * width).map(|_| rng.normal() as f32).collect();
    let images = Tensor::<4>::from_data(TensorData::new(values, [batch, 3, height, width]), &device);
    let images = dtype.map_or(images.clone(), |dtype| images.cast(dtype));

    let execution = Execution::new(kernels);
    let iters = args.iters as usize;
    let time_batch = || -> Result<f64> {
        let start = Instant::now();
        // Reading the logits synchronizes with the device.
        let logits = match &network {
            Subject::Float(network) => execution.run(|| network.forward(images.clone())),
            Subject::Quantized(network) => network.forward(images.clone())?,
        };
        let logits = logits.try_into_data().context("running the network failed")?;
        let seconds = start.elapsed().as_secs_f64();
        ensure!(logits.iter::<f32>().all(f32::is_finite), "the logits are not finite");
        Ok(seconds)
    };
    let mut warmup = Warmup::exactly(args.warmup);
    let first_step_s = time_batch()?;
    warmup.record(first_step_s);
    while !warmup.is_over() {
        warmup.record(time_batch()?);
    }
    let mut timed = (0..iters).map(|_| time_batch()).collect::<Result<Vec<_>>>()?;
    timed.sort_by(f64::total_cmp);
    let middle = timed.len() / 2;
    let median_s = if timed.len() % 2 == 1 { timed[middle] } else { (timed[middle - 1] + timed[middle]) / 2.0 };
    let row = Row {
        peer: "hearth".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        model: architecture.to_string(),
        mode: "infer".into(),
        batch,
        size: if height == width { Size::Square(height) } else { Size::Rectangle([height, width]) },
        device: backend.to_string(),
        threads: threads(args),
        kernels: kernels.to_string(),
        dtype: match (is_quantized, dtype) {
            (true, _) => "int8",
            (false, None) => "f32",
            (false, Some(FloatDType::BF16)) => "bf16",
            (false, Some(_)) => "f16",
        }
        .into(),
        folded: is_quantized || !args.keep_batchnorm,
        params,
        iters,
        warmup: warmup.steps(),
        settled: warmup.has_settled(),
        warning: warmup.warning(backend.backend()),
        first_step_s,
        median_s,
        min_s: timed[0],
        max_s: timed[timed.len() - 1],
        p99_s: timed[(timed.len() * 99).div_ceil(100) - 1],
        images_per_s: batch as f64 / median_s,
        peak_rss_mb: environment::peak_rss_mb(),
        import_rss_mb,
        cpu: environment::cpu(),
    };
    outln!("{}", serde_json::to_string(&row)?)?;
    Ok(ExitCode::Success)
}

/// Returns the architecture, the network and its default input size.
fn subject(args: &BenchArgs, device: &Device, output: Output) -> Result<(Architecture, Subject, [usize; 2])> {
    let float = |network: Network| {
        Subject::Float(Box::new(match args.keep_batchnorm {
            true => network,
            false => network.fold_batch_norm(),
        }))
    };
    if let Some(weights) = &args.weights {
        let opened = open_weights(weights, &args.load, device, output)?;
        let network = match opened.quantized(device)? {
            Some(network) => Subject::Quantized(Box::new(network)),
            None => float(opened.network(false, device)?),
        };
        return Ok((opened.card.architecture, network, opened.card.preprocess.input_size));
    }
    let [architecture] = args.architectures[..] else { bail!("--in-process takes one architecture") };
    let network = NetworkConfig::new(architecture).with_aux_logits(false).init(device);
    Ok((architecture, float(network), [architecture.default_size(); 2]))
}

/// What is measured.
enum Subject {
    Float(Box<Network>),
    Quantized(Box<QuantizedNetwork>),
}

impl Subject {
    fn num_parameters(&self) -> usize {
        match self {
            Self::Float(network) => network.num_parameters(),
            Self::Quantized(network) => network.num_parameters(),
        }
    }
}

impl Row {
    const HEADER: &str = "network             backend     batch  size     norms    images/s       p50 ms       p99 ms  \
                          peak MiB";

    fn text(&self) -> String {
        let size = match self.size {
            Size::Square(side) => side.to_string(),
            Size::Rectangle([height, width]) => format!("{height}x{width}"),
        };
        let norms = if self.folded { "folded" } else { "kept" };
        let memory = self.peak_rss_mb.map_or("-".to_string(), |mib| format!("{mib:.0}"));
        format!(
            "{:18}  {:10} {:>6}  {size:8} {norms:7} {:>9.2} {:>12.2} {:>12.2} {memory:>9}",
            self.model,
            self.device,
            self.batch,
            self.images_per_s,
            1e3 * self.median_s,
            1e3 * self.p99_s
        )
    }
}
