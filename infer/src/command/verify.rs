//! `infer verify`: whether the compiled backends compute the same as flex.
//!
//! The command starts itself anew for each comparison (`--in-process`), which computes the network on flex and on the
//! backend and prints one row as JSON. A driver that panics on a thread of its own, aborts or runs out of memory then
//! costs its row and nothing else.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use models::{Architecture, NetworkConfig, Strictness, Weights};
use runtime::{
    backend::{Backend, BackendSpec, DeviceSelector, compiled},
    exit::ExitCode,
    progress::{Output, Progress, Unit},
};
use serde::{Deserialize, Serialize};

use super::{failure_reason, print_json};
use crate::cli::{Format, VerifyArgs};

/// One of each family whose tensors fit into the 128 MiB that a buffer of a software GPU may have: AlexNet's and VGG's
/// first linear maps do not.
const FAMILIES: [Architecture; 6] = [
    Architecture::GoogLeNet,
    Architecture::GoogLeNet2014,
    Architecture::InceptionV3,
    Architecture::ResNet18,
    Architecture::ResNeXt50,
    Architecture::ResNet20,
];

/// Images a batch: more than one, so that a mixed-up batch shows.
const IMAGES: usize = 2;

/// One comparison.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    architecture: Architecture,
    /// The backend with its device.
    backend: String,
    /// Height and width of the input.
    input_size: [usize; 2],
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
enum Outcome {
    /// Every difference is within the tolerance.
    Equal(Differences),
    /// Some are not.
    Differs(Differences),
    /// The backend could not run the network.
    NotRun { reason: String },
}

/// Largest differences to flex, relative to the largest value there; null where the backend's values are not finite.
#[derive(Debug, Serialize, Deserialize)]
struct Differences {
    logits: Option<f64>,
    /// Of all stages' outputs.
    largest: Option<f64>,
    /// The stage that has it.
    largest_stage: String,
    /// The first stage in the order of the forward pass that differs by more than the tolerance.
    first_to_differ: Option<String>,
    /// Two images on the backend, with its start and the compilation of its kernels.
    seconds: f64,
}

pub fn run(args: &VerifyArgs, output: Output) -> Result<ExitCode> {
    ensure!(
        Backend::Flex.is_compiled(),
        "verify compares with flex, which this binary was built without; add `--features flex` to the cargo command"
    );
    if args.in_process {
        return in_process(args);
    }
    let architectures = if args.architectures.is_empty() { &FAMILIES[..] } else { &args.architectures };
    let backends = match args.backends.is_empty() {
        true => compiled().into_iter().filter(|backend| *backend != Backend::Flex).map(BackendSpec::from).collect(),
        false => args.backends.clone(),
    };
    ensure!(
        !backends.is_empty(),
        "flex is the only backend of this binary, so there is nothing to compare it with; build with others, as in \
         `cargo run -p infer --features ndarray,wgpu -- verify`"
    );
    for backend in &backends {
        if !backend.backend().is_compiled() {
            backend.device()?; // It says which feature is missing.
        }
    }

    let total = (architectures.len() * backends.len()) as u64;
    let progress = Progress::new("verify", Unit::Items("comparisons"), Some(total), output);
    let mut rows = Vec::new();
    for &architecture in architectures {
        for &backend in &backends {
            rows.push(compare_in_child(args, architecture, backend)?);
            progress.inc(1);
        }
    }
    progress.finish();
    match args.format {
        Format::Json => print_json(&rows)?,
        Format::Text => print!("{}", text(&rows, args.tolerance)),
    }
    let any = |wanted: fn(&Outcome) -> bool| rows.iter().any(|row| wanted(&row.outcome));
    Ok(match (any(|o| matches!(o, Outcome::Differs(_))), any(|o| matches!(o, Outcome::NotRun { .. }))) {
        (true, _) => ExitCode::Failure,
        (false, true) => ExitCode::SomeInputsFailed,
        (false, false) => ExitCode::Success,
    })
}

/// Height and width of the input unless they were given: small, so that slow backends come to an end.
fn usual_size(architecture: Architecture) -> [usize; 2] {
    [architecture.min_size().max(architecture.default_size().min(64)); 2]
}

fn compare_in_child(args: &VerifyArgs, architecture: Architecture, backend: BackendSpec) -> Result<Row> {
    let input_size = args.size.unwrap_or(usual_size(architecture));
    architecture.check_input(input_size)?;
    let [height, width] = input_size;
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let output = Command::new(program)
        .args(["verify", "--in-process", "--arch", architecture.name(), "--backend", &backend.to_string()])
        .args(["--size", &format!("{height}x{width}"), "--tolerance", &args.tolerance.to_string()])
        .stdin(Stdio::null())
        .output()
        .context("cannot start this program anew for a comparison")?;
    if output.status.success()
        && let Ok(row) = serde_json::from_slice(&output.stdout)
    {
        return Ok(row);
    }
    let reason = failure_reason(&String::from_utf8_lossy(&output.stderr), output.status);
    Ok(Row { architecture, backend: backend.to_string(), input_size, outcome: Outcome::NotRun { reason } })
}

/// The one comparison asked for, in this process.
fn in_process(args: &VerifyArgs) -> Result<ExitCode> {
    let ([architecture], [backend], Some(size)) = (&args.architectures[..], &args.backends[..], args.size) else {
        bail!("--in-process takes one --arch, one --backend and a --size");
    };
    let (spec, device) = open(*backend)?;
    // Drivers report errors by panics, also on threads that nobody joins. The first ends the process.
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("the backend panicked without a message");
        eprintln!("error: {}", message.split_whitespace().collect::<Vec<_>>().join(" "));
        std::process::exit(ExitCode::Failure.code().into());
    }));
    let outcome = compare(*architecture, size, &device, args.tolerance)?;
    let row = Row { architecture: *architecture, backend: spec.to_string(), input_size: size, outcome };
    print_json(&row)?;
    Ok(ExitCode::Success)
}

/// Opens a backend's device; where it is a graphics backend without a GPU, its software adapter.
fn open(spec: BackendSpec) -> Result<(BackendSpec, Device)> {
    let graphics = matches!(spec.backend(), Backend::Wgpu | Backend::Vulkan);
    spec.device().map(|device| (spec, device)).or_else(|error| {
        if !graphics || spec.selector() != DeviceSelector::Default {
            return Err(error);
        }
        let software: BackendSpec = format!("{spec}:cpu").parse()?;
        // The first error says more to someone who has a GPU.
        software.device().map(|device| (software, device)).map_err(|_| error)
    })
}

/// Runs the network on flex and on `device`.
fn compare(architecture: Architecture, size: [usize; 2], device: &Device, tolerance: f64) -> Result<Outcome> {
    let flex = BackendSpec::from(Backend::Flex).device()?;
    let weights = weights(architecture, &flex);
    let reference = outputs(&weights, architecture, size, &flex)?;
    let started = Instant::now();
    let outputs = outputs(&weights, architecture, size, device)?;
    judge(&reference, &outputs, started.elapsed().as_secs_f64(), tolerance)
}

fn judge(reference: &[Stage], outputs: &[Stage], seconds: f64, tolerance: f64) -> Result<Outcome> {
    ensure!(
        outputs.len() == reference.len() && outputs.iter().zip(reference).all(|(a, b)| a.shape == b.shape),
        "the stages have other shapes than on flex"
    );
    let differences: Vec<Option<f64>> =
        reference.iter().zip(outputs).map(|(want, got)| difference(&want.values, &got.values)).collect();
    let beyond = |difference: &Option<f64>| difference.is_none_or(|difference| difference > tolerance);
    let rank = |difference: &Option<f64>| difference.unwrap_or(f64::INFINITY);
    let (worst, largest) = differences
        .iter()
        .enumerate()
        .max_by(|(_, a), (_, b)| rank(a).total_cmp(&rank(b)))
        .context("the network has no output")?;
    let first = differences.iter().position(beyond);
    let found = Differences {
        logits: differences.last().copied().flatten(),
        largest: *largest,
        largest_stage: reference[worst].name.clone(),
        first_to_differ: first.map(|first| reference[first].name.clone()),
        seconds,
    };
    Ok(if first.is_some() { Outcome::Differs(found) } else { Outcome::Equal(found) })
}

/// A stage's output on the host.
struct Stage {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// Every stage of a forward pass on `device`, the logits last.
fn outputs(weights: &Weights, architecture: Architecture, [h, w]: [usize; 2], device: &Device) -> Result<Vec<Stage>> {
    let config = NetworkConfig::new(architecture).with_aux_logits(false);
    let (network, _) = weights.load(config.init(device), architecture, Strictness::Exact)?;
    let images = Tensor::<4>::from_data(drawn("images", &[IMAGES, 3, h, w], -2.0, 2.0), device);
    let mut stages: Vec<Result<Stage>> = Vec::new();
    let logits = network.forward_with_hook(images, &mut |name: &str, output: &Tensor<4>| {
        stages.push(stage(name, output.dims().to_vec(), output.clone().try_into_data()))
    });
    let shape = logits.dims().to_vec();
    stages.push(stage("logits", shape, logits.try_into_data()));
    stages.into_iter().collect()
}

fn stage<E: std::error::Error + Send + Sync + 'static>(
    name: &str,
    shape: Vec<usize>,
    data: Result<TensorData, E>,
) -> Result<Stage> {
    let values = data.with_context(|| format!("in stage {name}"))?.convert::<f32>();
    let values = values.try_into_vec().with_context(|| format!("stage {name} holds no floats"))?;
    Ok(Stage { name: name.to_string(), shape, values })
}

/// max |got − want| / max |want|; `None` where something is not finite.
fn difference(want: &[f32], got: &[f32]) -> Option<f64> {
    let scale = largest(want.iter().map(|&want| want.into()))?;
    let off = largest(want.iter().zip(got).map(|(&want, &got)| f64::from(got) - f64::from(want)))?;
    Some(if off == 0.0 { 0.0 } else { off / scale })
}

/// The largest magnitude; `None` where a value is not finite.
fn largest(mut values: impl Iterator<Item = f64>) -> Option<f64> {
    values.try_fold(0.0, |largest: f64, value| value.is_finite().then(|| largest.max(value.abs())))
}

/// Weights that keep a signal's size from layer to layer, the same on every machine.
fn weights(architecture: Architecture, device: &Device) -> Weights {
    let network = NetworkConfig::new(architecture).with_aux_logits(false).init(device);
    let tensors = network.entries().into_iter().map(|entry| {
        let (low, high) = match entry.shape[..] {
            // He's variance for a uniform distribution.
            [_, ref inputs @ ..] if !inputs.is_empty() => {
                let bound = (6.0 / inputs.iter().product::<usize>() as f32).sqrt();
                (-bound, bound)
            }
            _ if entry.key.ends_with(".running_var") => (0.5, 1.5),
            _ if entry.key.ends_with(".weight") => (0.5, 1.5),
            _ => (-0.1, 0.1),
        };
        let data = drawn(&entry.key, &entry.shape, low, high);
        (entry.key, data)
    });
    Weights::from_tensors(architecture.name(), tensors)
}

/// Values from `low` to `high`: splitmix64, seeded by the FNV-1a hash of `key`.
fn drawn(key: &str, shape: &[usize], low: f32, high: f32) -> TensorData {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let mut state = key.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let unit = ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32;
        low + (high - low) * unit
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    TensorData::new(values, shape.to_vec())
}

fn text(rows: &[Row], tolerance: f64) -> String {
    let backend = rows.iter().map(|row| row.backend.len()).max().unwrap_or(0).max("backend".len());
    let mut text = format!(
        "{:<18}{:>9}  {:<backend$}  {:>8}  {:<22}{:>8}  {}\n",
        "architecture", "input", "backend", "logits", "largest, in stage", "time", "verdict"
    );
    let number = |difference: Option<f64>| match difference {
        Some(0.0) => "0".to_string(),
        Some(value) => format!("{value:.1e}"),
        None => "not finite".to_string(),
    };
    for Row { architecture, backend: name, input_size: [h, w], outcome } in rows {
        let start = format!("{architecture:<18}{:>9}  {name:<backend$}", format!("{h}x{w}"));
        let (found, verdict) = match outcome {
            Outcome::NotRun { reason } => {
                text += &format!("{start}  not run: {reason}\n");
                continue;
            }
            Outcome::Equal(found) => (found, "equal".to_string()),
            Outcome::Differs(found) => {
                (found, format!("DIFFERS from {} on", found.first_to_differ.as_deref().unwrap_or("logits")))
            }
        };
        let largest = format!("{} {}", number(found.largest), found.largest_stage);
        text += &format!(
            "{start}  {:>8}  {largest:<22}{:>8}  {verdict}\n",
            number(found.logits),
            format!("{:.1} s", found.seconds)
        );
    }
    text + &format!(
        "\nlargest difference to flex, relative to the largest value there; equal: at most {tolerance:.0e} in every stage\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_relative_to_the_largest_value() {
        assert_eq!(difference(&[1.0, -4.0], &[1.0, -4.0]), Some(0.0));
        assert_eq!(difference(&[1.0, -4.0], &[2.0, -4.0]), Some(0.25));
        assert_eq!(difference(&[0.0], &[1.0]), Some(f64::INFINITY));
        assert_eq!(difference(&[1.0], &[f32::NAN]), None);
    }

    #[test]
    fn the_formula_draws_within_its_bounds_and_by_key() {
        let values = |key: &str| drawn(key, &[4, 25], -0.5, 0.5).try_into_vec::<f32>().unwrap();
        let (a, b) = (values("a"), values("b"));
        assert!(a.iter().all(|value| (-0.5..0.5).contains(value)));
        assert!(a != b && a == values("a"));
        let mean = a.iter().sum::<f32>() / 100.0;
        assert!(mean.abs() < 0.1, "{mean}");
    }

    #[test]
    fn the_first_stage_that_differs_is_named() {
        let (architecture, flex) = (Architecture::ResNet20, Device::flex());
        let run = || outputs(&weights(architecture, &flex), architecture, usual_size(architecture), &flex).unwrap();
        let (right, mut wrong) = (run(), run());
        assert_eq!(right.last().map(|stage| (&*stage.name, &stage.shape[..])), Some(("logits", &[2, 10][..])));
        assert!(right.iter().flat_map(|stage| &stage.values).all(|value| value.abs() < 1e4), "the signal grows");
        let Outcome::Equal(found) = judge(&right, &wrong, 0.0, 0.0).unwrap() else { panic!("flex differs from flex") };
        assert_eq!((found.logits, found.first_to_differ), (Some(0.0), None));

        let at = right.iter().position(|stage| stage.name == "layer2").unwrap();
        wrong[at].values[5] += 1e3;
        wrong.last_mut().unwrap().values[0] = f32::NAN;
        let Outcome::Differs(found) = judge(&right, &wrong, 0.0, 1e-4).unwrap() else { panic!("nothing was found") };
        assert_eq!(found.first_to_differ.as_deref(), Some("layer2"));
        assert_eq!((found.logits, &*found.largest_stage), (None, "logits"));
    }

    #[cfg(unix)]
    #[test]
    fn a_row_survives_its_way_through_json() {
        let found = Differences {
            logits: None,
            largest: Some(0.5),
            largest_stage: "fc".into(),
            first_to_differ: Some("conv1".into()),
            seconds: 1.25,
        };
        for outcome in [Outcome::Differs(found), Outcome::NotRun { reason: "no adapter".into() }] {
            let row =
                Row { architecture: Architecture::ResNet20, backend: "wgpu:cpu".into(), input_size: [32, 32], outcome };
            let json = serde_json::to_string(&row).unwrap();
            let again: Row = serde_json::from_str(&json).unwrap();
            assert_eq!(serde_json::to_string(&again).unwrap(), json);
            assert!(text(&[again], 1e-4).contains("resnet20"));
        }
    }

    #[test]
    fn every_family_fits_a_small_buffer() {
        for architecture in FAMILIES {
            let network = NetworkConfig::new(architecture).with_aux_logits(false).init(&Device::flex());
            let largest = network.entries().iter().map(|entry| entry.len()).max().unwrap();
            assert!(largest * 4 <= 128 << 20, "{architecture}: {largest}");
        }
    }
}
