//! `train bench`: how fast networks train, and in how much memory.
//!
//! Each row is measured in a process of its own (`--in-process`), as in `infer bench`: the largest memory of a process
//! can only grow, and the number of threads is set once.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use kernels::KernelMode;
use models::Architecture;
use runtime::{
    backend::{self, BackendChoice, BackendSpec, Selected},
    environment,
    exit::ExitCode,
    noteln, outln,
    progress::{Output, Progress, Unit},
};
use serde::{Deserialize, Serialize};

use train::{
    benchmark::{self, Measurement, Subject},
    recipe::Dtype,
};

use crate::cli::{BenchArgs, Global, LogFormat, announce, lines::Lines};

/// One of each family, as the peers' benchmarks time them.
const USUAL: [Architecture; 5] = [
    Architecture::ResNet18,
    Architecture::ResNet50,
    Architecture::GoogLeNet,
    Architecture::Vgg16,
    Architecture::AlexNet,
];

/// One measurement. The names are those of `infer bench` and of the peers' `bench_model.py`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Row {
    peer: String,
    version: String,
    model: String,
    mode: String,
    batch: usize,
    size: usize,
    device: String,
    threads: usize,
    kernels: String,
    gradient_checkpointing: bool,
    dtype: String,
    params: usize,
    iters: usize,
    warmup: usize,
    /// Whether the last steps of the warm-up took the same time.
    settled: bool,
    /// Why the timed steps may be no measure of later ones.
    warning: Option<String>,
    /// The time of the first step, for which kernels are compiled and tuned.
    first_step_s: f64,
    median_s: f64,
    min_s: f64,
    max_s: f64,
    images_per_s: f64,
    /// The loss of the last step.
    last_value: f64,
    /// The most memory that the process held, and before the network was made; null where the system does not tell.
    peak_rss_mb: Option<f64>,
    import_rss_mb: Option<f64>,
    cpu: String,
}

pub fn run(args: &BenchArgs, global: Global) -> Result<ExitCode> {
    let Global { kernels, verbosity } = global;
    if args.in_process {
        return in_process(args, kernels);
    }
    let architectures = if args.architectures.is_empty() { USUAL.to_vec() } else { args.architectures.clone() };
    let selected = backend::select_all(&args.backends)?;
    let lines = match args.format {
        _ if verbosity.is_quiet() => Lines::Quiet,
        LogFormat::Json => Lines::Json,
        LogFormat::Text => Lines::Text,
    };
    announce(&selected, lines, kernels);
    let backends: Vec<BackendSpec> = selected.iter().map(Selected::spec).collect();
    let choices = if args.compare_kernels { vec![KernelMode::Reference, KernelMode::Optimized] } else { vec![kernels] };
    let total = architectures.len() * backends.len() * args.batch_sizes.len() * choices.len();
    let progress = Progress::new(
        "bench",
        Unit::Items("measurements"),
        Some(total as u64),
        Output::from_quiet(verbosity.is_quiet()),
    );
    if args.format == LogFormat::Text {
        outln!("{}", Row::HEADER)?;
    }
    let mut failed = 0;
    for architecture in &architectures {
        for backend in &backends {
            for batch in &args.batch_sizes {
                for choice in &choices {
                    match in_child(args, *architecture, backend, *batch, *choice)? {
                        Ok(row) => {
                            match args.format {
                                LogFormat::Text => outln!("{}", row.text())?,
                                LogFormat::Json => outln!("{}", serde_json::to_string(&row).unwrap_or_default())?,
                            }
                            if let Some(warning) = &row.warning {
                                noteln!("warning: {architecture} on {backend}, {batch} images: {warning}");
                            }
                        }
                        Err(reason) => {
                            failed += 1;
                            noteln!("error: {architecture} on {backend}, {batch} images: {reason}");
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

fn in_child(
    args: &BenchArgs,
    architecture: Architecture,
    backend: &BackendSpec,
    batch: u32,
    choice: KernelMode,
) -> Result<Result<Row, String>> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(program);
    command.args(["bench", architecture.name(), "--in-process", "--backend", &backend.to_string()]);
    command.args(["--batch-sizes", &batch.to_string(), "--iters", &args.iters.to_string()]);
    command.args(["--classes", &args.classes.to_string()]);
    if let Some(warmup) = args.warmup {
        command.args(["--warmup", &warmup.to_string()]);
    }
    command.args(["--dtype", &args.dtype, "--kernels", &choice.to_string()]);
    if args.gradient_checkpointing {
        command.arg("--gradient-checkpointing");
    }
    if let Some(size) = args.size {
        command.args(["--size", &size.to_string()]);
    }
    if let Some(threads) = args.threads {
        command.args(["--threads", &threads.to_string()]);
    }
    command.env("RAYON_NUM_THREADS", threads(args).to_string());
    let output = command.stdin(Stdio::null()).output().context("cannot start this program anew for a measurement")?;
    Ok(match serde_json::from_slice(&output.stdout) {
        Ok(row) if output.status.success() => Ok(row),
        _ => {
            let errors = String::from_utf8_lossy(&output.stderr);
            let last = errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
            Err(format!("{} ({})", last.trim_start_matches("error: "), output.status))
        }
    })
}

fn threads(args: &BenchArgs) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    args.threads.map_or_else(cores, |threads| threads as usize)
}

/// The one measurement asked for.
fn in_process(args: &BenchArgs, kernels: KernelMode) -> Result<ExitCode> {
    let ([BackendChoice::Named(backend)], [batch], [architecture]) =
        (&args.backends[..], &args.batch_sizes[..], &args.architectures[..])
    else {
        bail!("--in-process takes one architecture, one --backend and one batch size");
    };
    let subject = Subject {
        architecture: *architecture,
        backend: *backend,
        batch: *batch as usize,
        classes: args.classes as usize,
        size: args.size.map(|size| size as usize),
        dtype: Dtype::from_name(&args.dtype).with_context(|| format!("unknown type `{}`", args.dtype))?,
        kernels,
        gradient_checkpointing: args.gradient_checkpointing,
        iters: args.iters as usize,
        warmup: args.warmup,
    };
    let measured = benchmark::measure(&subject)?;
    let median_s = measured.median_s();
    let Measurement { size, params, warmup, first_step_s, timed, last_value, import_rss_mb } = measured;
    let row = Row {
        peer: "hearth".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        model: architecture.to_string(),
        mode: "train".into(),
        batch: subject.batch,
        size,
        device: backend.to_string(),
        threads: threads(args),
        kernels: kernels.to_string(),
        gradient_checkpointing: subject.gradient_checkpointing,
        dtype: args.dtype.clone(),
        params,
        iters: timed.len(),
        warmup: warmup.steps(),
        settled: warmup.has_settled(),
        warning: warmup.warning(backend.backend()),
        first_step_s,
        median_s,
        min_s: timed[0],
        max_s: timed[timed.len() - 1],
        images_per_s: subject.batch as f64 / median_s,
        last_value,
        peak_rss_mb: environment::peak_rss_mb(),
        import_rss_mb,
        cpu: environment::cpu(),
    };
    outln!("{}", serde_json::to_string(&row)?)?;
    Ok(ExitCode::Success)
}

impl Row {
    const HEADER: &str =
        "network             backend     kernels    batch   size    images/s     ms/step   peak MiB        loss";

    fn text(&self) -> String {
        let memory = self.peak_rss_mb.map_or("-".to_string(), |mib| format!("{mib:.0}"));
        format!(
            "{:18}  {:10}  {:9} {:>6} {:>6} {:>11.2} {:>11.1} {memory:>10} {:>11.4}",
            self.model,
            self.device,
            self.kernels,
            self.batch,
            self.size,
            self.images_per_s,
            1e3 * self.median_s,
            self.last_value
        )
    }
}
