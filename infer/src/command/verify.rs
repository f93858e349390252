//! `infer verify`: compares the compiled backends with flex, forward and in training.
//!
//! Each comparison runs in a child process (`--in-process`), which computes the network on flex and on the backend and
//! prints one row as JSON. A driver that panics on a thread of its own, aborts or runs out of memory spoils one row.

use std::{
    collections::HashSet,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use burn::{
    module::{Module, ModuleVisitor, Param},
    nn::{Linear, LinearConfig},
    optim::GradientsParams,
    tensor::{Device, Tensor, TensorData, activation::log_softmax},
};
use hub::{Strictness, Weights};
use kernels::KernelMode;
use models::{Architecture, Entry, Execution, ImageClassifier, Network, NetworkConfig, Output as NetworkOutput};
use runtime::{
    backend::{self, Backend, BackendSpec, DeviceSelector, compiled},
    exit::ExitCode,
    noteln, out,
    progress::{Output, Progress, Unit},
};
use serde::{Deserialize, Serialize};

use super::{failure_reason, print_json};
use crate::cli::{Format, Pass, VerifyArgs};

/// One network of each family.
const FAMILIES: [Architecture; 8] = [
    Architecture::AlexNet,
    Architecture::Vgg11Bn,
    Architecture::GoogLeNet,
    Architecture::GoogLeNet2014,
    Architecture::InceptionV3,
    Architecture::ResNet18,
    Architecture::ResNeXt50,
    Architecture::ResNet20,
];

/// Images in a batch: more than one, so that a batch in the wrong order shows.
const IMAGES: usize = 2;

/// Units of the hidden layers of AlexNet and VGG on software adapters, whose buffers end at 128 MiB: the weights of the
/// first of those layers take 144 and 392 MiB.
const NARROW: usize = 256;

/// The weight of an auxiliary classifier's loss.
const AUX_WEIGHT: f32 = 0.3;

/// Batches of images to choose from for a training step, at most.
const DRAWS: usize = 64;

/// By how much the pixels of a batch are disturbed, relative to each, and how often, to see whether its gradients depend on
/// rounding.
const DISTURBANCE: f32 = 4e-6;
const DISTURBANCES: usize = 3;

/// The index of the logits or the loss among the values of a pass.
const OUTPUT: usize = 0;

/// Gradients below this fraction of the network's largest gradient are compared relative to that fraction: those that
/// are zero but for rounding, such as a bias in front of a batch normalization, have no scale of their own.
const GRADIENT_FLOOR: f64 = 1e-3;

/// One comparison.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    architecture: Architecture,
    pass: Pass,
    /// The backend with its device.
    backend: String,
    /// Height and width of the input.
    input_size: [usize; 2],
    /// How the network differs from the published one; whether its gradients depend on rounding.
    note: Option<String>,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
enum Outcome {
    /// All differences are within the tolerance.
    Equal(Differences),
    /// At least one difference exceeds the tolerance.
    Differs(Differences),
    /// The backend could not run the network.
    NotRun { reason: String },
}

/// The largest difference of the logits to flex, relative to the largest value there; null if the backend's values are
/// not finite.
#[derive(Debug, Serialize, Deserialize)]
struct Differences {
    /// The difference of the logits, or in training of the loss.
    output: Option<f64>,
    /// The largest difference of all stages' outputs, or of all gradients.
    largest: Option<f64>,
    /// The stage or parameter that has the largest difference.
    largest_at: String,
    /// The first stage of the forward pass, or the first parameter, that differs by more than the tolerance.
    first_to_differ: Option<String>,
    /// The time on the backend, with its start, the compilation of its kernels and their autotuning.
    seconds: f64,
}

pub fn run(args: &VerifyArgs, kernels: KernelMode, output: Output) -> Result<ExitCode> {
    ensure!(
        Backend::Flex.is_compiled(),
        "verify compares with flex, which this binary was built without; build with `--features flex`"
    );
    if args.in_process {
        return in_process(args, kernels);
    }
    let architectures = if args.architectures.is_empty() { &FAMILIES[..] } else { &args.architectures };
    let passes = if args.passes.is_empty() { &Pass::ALL[..] } else { &args.passes };
    let backends = match args.backends.is_empty() {
        true => compiled().into_iter().filter(|backend| *backend != Backend::Flex).map(BackendSpec::from).collect(),
        false => args.backends.clone(),
    };
    ensure!(
        !backends.is_empty(),
        "flex is the only backend of this binary, so there is nothing to compare; build with others, as in `cargo run \
         -p infer --features ndarray,wgpu -- verify`"
    );
    for backend in &backends {
        if !backend.backend().is_compiled() {
            backend.device()?; // The error names the missing feature.
        }
    }

    let total = (architectures.len() * passes.len() * backends.len()) as u64;
    let progress = Progress::new("verify", Unit::Items("comparisons"), Some(total), output);
    let mut rows = Vec::new();
    for &architecture in architectures {
        for &backend in &backends {
            for &pass in passes {
                rows.push(compare_in_child(args, architecture, pass, backend, kernels)?);
                progress.inc(1);
            }
        }
    }
    progress.finish();
    match args.format {
        Format::Json => print_json(&rows)?,
        Format::Text => out!("{}", text(&rows, args.tolerance, args.gradient_tolerance))?,
    }
    let any = |wanted: fn(&Outcome) -> bool| rows.iter().any(|row| wanted(&row.outcome));
    Ok(match (any(|o| matches!(o, Outcome::Differs(_))), any(|o| matches!(o, Outcome::NotRun { .. }))) {
        (true, _) => ExitCode::Failure,
        (false, true) => ExitCode::SomeInputsFailed,
        (false, false) => ExitCode::Success,
    })
}

/// The height and width of the input where `--size` is absent: small, for slow backends. In training the last norms must not
/// normalize two or three different values, which depends on rounding: Inception v3 ends with 2 × 2 pixels, and GoogLeNet,
/// whose last modules pool 3 × 3 pixels of them, with 3 × 3.
fn usual_size(architecture: Architecture, pass: Pass) -> [usize; 2] {
    let small = architecture.min_size().max(architecture.default_size().min(64));
    let trained = match architecture {
        _ if architecture == Architecture::InceptionV3 => 107,
        _ if architecture == Architecture::GoogLeNet => 80,
        _ => small,
    };
    [if pass == Pass::Training { trained } else { small }; 2]
}

fn compare_in_child(
    args: &VerifyArgs,
    architecture: Architecture,
    pass: Pass,
    backend: BackendSpec,
    kernels: KernelMode,
) -> Result<Row> {
    let input_size = args.size.unwrap_or(usual_size(architecture, pass));
    architecture.check_input(input_size)?;
    let [height, width] = input_size;
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    let output = Command::new(program)
        .args(["verify", "--in-process", "--arch", architecture.name(), "--backend", &backend.to_string()])
        .args(["--pass", pass.name(), "--size", &format!("{height}x{width}")])
        .args(["--tolerance", &args.tolerance.to_string()])
        .args(["--gradient-tolerance", &args.gradient_tolerance.to_string()])
        .args(["--kernels", &kernels.to_string()])
        .stdin(Stdio::null())
        .output()
        .context("cannot start the child process of a comparison")?;
    if output.status.success()
        && let Ok(row) = serde_json::from_slice(&output.stdout)
    {
        return Ok(row);
    }
    let reason = failure_reason(&String::from_utf8_lossy(&output.stderr), output.status);
    let outcome = Outcome::NotRun { reason };
    Ok(Row { architecture, pass, backend: backend.to_string(), input_size, note: None, outcome })
}

/// Runs one comparison in this process.
fn in_process(args: &VerifyArgs, kernels: KernelMode) -> Result<ExitCode> {
    let ([architecture], [backend], [pass], Some(size)) =
        (&args.architectures[..], &args.backends[..], &args.passes[..], args.size)
    else {
        bail!("--in-process takes one --arch, one --backend, one --pass and a --size");
    };
    let (spec, device) = open(*backend)?;
    // Drivers report errors by panicking, also on threads that are never joined. The first panic ends the process.
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("the backend panicked without a message");
        noteln!("error: {}", message.split_whitespace().collect::<Vec<_>>().join(" "));
        std::process::exit(ExitCode::Failure.code().into());
    }));
    let software = backend::is_software_adapter(&device);
    let subject = Subject::new(*architecture, *pass, size, software);
    let (outcome, is_smooth) = Execution::new(kernels).run(|| subject.compare(&device, args))?;
    let rough = (!is_smooth).then(|| {
        format!("gradients depend on rounding for each of {DRAWS} batches of images: a difference may be no fault")
    });
    let notes: Vec<String> = subject.note().into_iter().chain(rough).collect();
    let row = Row {
        architecture: *architecture,
        pass: *pass,
        backend: spec.to_string(),
        input_size: size,
        note: (!notes.is_empty()).then(|| notes.join("; ")),
        outcome,
    };
    print_json(&row)?;
    Ok(ExitCode::Success)
}

/// Opens a backend's device; for a graphics backend without a GPU, its software adapter.
fn open(spec: BackendSpec) -> Result<(BackendSpec, Device)> {
    let graphics = matches!(spec.backend(), Backend::Wgpu | Backend::Vulkan);
    let error = match spec.device() {
        Ok(device) => return Ok((spec, device)),
        Err(error) => error,
    };
    if !graphics || spec.selector() != DeviceSelector::Default {
        return Err(error.into());
    }
    let software: BackendSpec = format!("{spec}:cpu").parse()?;
    // The first error is more useful to someone with a GPU.
    Ok((software, software.device().map_err(|_| error)?))
}

/// The network and the pass that are compared.
struct Subject {
    architecture: Architecture,
    pass: Pass,
    size: [usize; 2],
    aux: bool,
    narrow: bool,
}

/// The pass on flex.
struct Reference {
    images: TensorData,
    values: Vec<Value>,
    /// Whether gradients differ by less than the tolerance where pixels differ by rounding.
    is_smooth: bool,
}

/// A tensor that is compared, on the host.
struct Value {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Subject {
    /// `software`: whether the device is a software adapter, whose buffers are small.
    fn new(architecture: Architecture, pass: Pass, size: [usize; 2], software: bool) -> Self {
        // Inception's auxiliary classifier needs a feature map of 17 × 17 pixels.
        let too_small = architecture == Architecture::InceptionV3 && size[0].min(size[1]) < architecture.default_size();
        Self {
            architecture,
            pass,
            size,
            aux: pass == Pass::Training && architecture.has_aux() && !too_small,
            narrow: software && has_wide_classifier(architecture),
        }
    }

    /// What the network lacks.
    fn note(&self) -> Option<String> {
        if self.narrow {
            return Some(format!(
                "hidden layers of {NARROW} units instead of 4096: a software adapter's buffers end at 128 MiB"
            ));
        }
        let lacks_aux = self.pass == Pass::Training && self.architecture.has_aux() && !self.aux;
        lacks_aux.then(|| {
            format!("no auxiliary classifier: it needs images of {0} × {0} pixels", self.architecture.default_size())
        })
    }

    /// The network without dropout, whose masks differ from backend to backend.
    fn network(&self, device: &Device) -> Network {
        let config = NetworkConfig::new(self.architecture).with_aux_logits(self.aux).with_dropout(Some(0.0));
        let network = config.init(device);
        if !self.narrow {
            return network;
        }
        let linear = |inputs: usize, outputs: usize| LinearConfig::new(inputs, outputs).init(device);
        let narrow = |first: &mut Linear, second: &mut Linear, last: &mut Linear| {
            let [inputs, _] = first.weight.lazy_shape().dims();
            let [_, classes] = last.weight.lazy_shape().dims();
            (*first, *second, *last) = (linear(inputs, NARROW), linear(NARROW, NARROW), linear(NARROW, classes));
        };
        match network {
            Network::AlexNet(mut network) => {
                let (_, first, _, _, second, _, last) = &mut network.classifier;
                narrow(first, second, last);
                Network::AlexNet(network)
            }
            Network::Vgg(mut network) => {
                let (first, _, _, second, _, _, last) = &mut network.classifier;
                narrow(first, second, last);
                Network::Vgg(network)
            }
            network => network,
        }
    }

    /// Computes the pass on flex and on `device`. Returns whether the values are independent of rounding, too.
    fn compare(&self, device: &Device, args: &VerifyArgs) -> Result<(Outcome, bool)> {
        let flex = BackendSpec::from(Backend::Flex).device()?;
        let weights = weights(self.architecture, self.pass, &self.network(&flex));
        let Reference { images, values: reference, is_smooth } =
            self.reference(&weights, &flex, args.gradient_tolerance)?;
        let started = Instant::now();
        let values = self.compute(&weights, &images, device)?;
        let seconds = started.elapsed().as_secs_f64();
        let bounds = self.bounds(&reference, args.tolerance, args.gradient_tolerance);
        Ok((assess(&reference, &values, &bounds, seconds)?, is_smooth))
    }

    /// Computes the pass on flex, a training step on the first of [`DRAWS`] batches whose gradients do not depend on rounding.
    ///
    /// Gradients jump where a value is at the kink of a ReLU, or two values of a max pooling are equal. Where they are so but
    /// for rounding, two right backends take different sides, and gradients differ by 1e-2 and more.
    fn reference(&self, weights: &Weights, flex: &Device, gradient_tolerance: f64) -> Result<Reference> {
        let draws = if self.pass == Pass::Training { DRAWS } else { 1 };
        let mut best: Option<(f64, Reference)> = None;
        for draw in 0..draws {
            let images = self.images(draw);
            let values = self.compute(weights, &images, flex)?;
            if self.pass == Pass::Forward {
                return Ok(Reference { images, values, is_smooth: true });
            }
            let Bounds { floor, .. } = self.bounds(&values, 0.0, gradient_tolerance);
            let mut sensitivity: f64 = 0.0;
            for number in 0..DISTURBANCES {
                let disturbed = self.compute(weights, &disturbed(&images, number), flex)?;
                let differences = values.iter().zip(&disturbed).skip(OUTPUT + 1);
                let largest = differences
                    .map(|(a, b)| difference(&a.values, &b.values, floor).unwrap_or(f64::INFINITY))
                    .fold(0.0, f64::max);
                sensitivity = sensitivity.max(largest);
                if best.as_ref().is_some_and(|(least, _)| sensitivity >= *least) {
                    break;
                }
            }
            // Half of what counts as equal is left to the backend.
            let is_smooth = sensitivity <= 0.5 * gradient_tolerance;
            if best.as_ref().is_none_or(|(least, _)| sensitivity < *least) {
                best = Some((sensitivity, Reference { images, values, is_smooth }));
            }
            if is_smooth {
                break;
            }
        }
        let (_, reference) = best.context("no batch of images was drawn")?;
        Ok(reference)
    }

    fn bounds(&self, reference: &[Value], tolerance: f64, gradient_tolerance: f64) -> Bounds {
        match self.pass {
            Pass::Forward => Bounds { output: tolerance, others: tolerance, floor: 0.0 },
            Pass::Training => {
                let gradients = reference.iter().skip(OUTPUT + 1).flat_map(|value| &value.values);
                let largest = largest(gradients.map(|&gradient| gradient.into())).unwrap_or(0.0);
                Bounds { output: tolerance, others: gradient_tolerance, floor: GRADIENT_FLOOR * largest }
            }
        }
    }

    fn compute(&self, weights: &Weights, images: &TensorData, device: &Device) -> Result<Vec<Value>> {
        match self.pass {
            Pass::Forward => self.forward(weights, images, device),
            Pass::Training => self.training_step(weights, images, &device.clone().autodiff()),
        }
    }

    /// The images of a forward pass, or one of many batches of a training step.
    fn images(&self, draw: usize) -> TensorData {
        let [height, width] = self.size;
        let shape = [IMAGES, 3, height, width];
        let key = match self.pass {
            Pass::Forward => "images".to_string(),
            Pass::Training => format!("images {draw}"),
        };
        TensorData::new(drawn(&key, &shape, -2.0, 2.0), shape)
    }

    /// The logits and the output of every stage of a forward pass on `device`.
    fn forward(&self, weights: &Weights, images: &TensorData, device: &Device) -> Result<Vec<Value>> {
        let (network, _) = weights.load(self.network(device), self.architecture, Strictness::Exact)?;
        let mut stages: Vec<Result<Value>> = Vec::new();
        let logits = network
            .forward_with_hook(Tensor::from_data(images.clone(), device), &mut |name: &str, output: &Tensor<4>| {
                stages.push(value(name, output.clone()))
            });
        std::iter::once(value("logits", logits)).chain(stages).collect()
    }

    /// The loss and the gradient of every parameter on `device`, an autodiff device.
    fn training_step(&self, weights: &Weights, images: &TensorData, device: &Device) -> Result<Vec<Value>> {
        let (network, _) = weights.load(self.network(device), self.architecture, Strictness::Exact)?;
        let NetworkOutput { logits, aux } = network.forward_aux(Tensor::from_data(images.clone(), device));
        let [_, classes] = logits.dims();
        let mut targets = vec![0.0f32; IMAGES * classes];
        (0..IMAGES).for_each(|image| targets[image * classes + (7 * image + 3) % classes] = 1.0);
        let targets = Tensor::<2>::from_data(TensorData::new(targets, [IMAGES, classes]), device);
        let cross_entropy = |logits| -(targets.clone() * log_softmax(logits, 1)).sum() / IMAGES as f32;
        let loss =
            aux.into_iter().fold(cross_entropy(logits), |loss, (_, logits)| loss + cross_entropy(logits) * AUX_WEIGHT);
        let gradients = GradientsParams::from_grads(loss.backward(), &network);
        let mut values =
            Gradients { gradients, entries: network.entries().into_iter(), values: vec![value("loss", loss.inner())] };
        network.visit(&mut values);
        values.values.into_iter().collect()
    }
}

/// The same images but for rounding.
fn disturbed(images: &TensorData, number: usize) -> TensorData {
    let key = format!("disturbance {number}");
    let factors = drawn(&key, images.shape(), 1.0 - DISTURBANCE, 1.0 + DISTURBANCE);
    let values: Vec<f32> = images.iter::<f32>().zip(factors).map(|(value, factor)| value * factor).collect();
    TensorData::new(values, images.shape().clone())
}

fn has_wide_classifier(architecture: Architecture) -> bool {
    [models::alexnet::VARIANTS, models::vgg::VARIANTS].concat().contains(&architecture)
}

/// Collects gradients by the names of their parameters.
struct Gradients {
    gradients: GradientsParams,
    /// Those that are still to come, in the order of the visit.
    entries: std::vec::IntoIter<Entry>,
    values: Vec<Result<Value>>,
}

impl ModuleVisitor for Gradients {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(entry) = self.entries.next() else { return };
        if entry.is_statistic() {
            return;
        }
        self.values.push(match self.gradients.remove::<D>(param.id) {
            Some(gradient) => value(&entry.key, gradient),
            None => Err(anyhow::anyhow!("{} has no gradient", entry.key)),
        });
    }
}

/// Copies a tensor to the host.
fn value<const D: usize>(name: &str, tensor: Tensor<D>) -> Result<Value> {
    let shape = tensor.dims().to_vec();
    let data = tensor.try_into_data().with_context(|| format!("cannot read {name}"))?.convert::<f32>();
    let values = data.try_into_vec().with_context(|| format!("{name} holds no floats"))?;
    Ok(Value { name: name.to_string(), shape, values })
}

/// What counts as equal.
struct Bounds {
    /// The largest difference of the output: the logits or the loss.
    output: f64,
    /// The largest difference of every other value.
    others: f64,
    /// The smallest scale that a difference of those is relative to.
    floor: f64,
}

/// Compares values with those of flex; the first is the output.
fn assess(reference: &[Value], values: &[Value], bounds: &Bounds, seconds: f64) -> Result<Outcome> {
    ensure!(
        values.len() == reference.len() && values.iter().zip(reference).all(|(a, b)| a.shape == b.shape),
        "the tensors have other shapes than on flex"
    );
    let differences: Vec<Option<f64>> = reference
        .iter()
        .zip(values)
        .enumerate()
        .map(|(index, (want, got))| {
            difference(&want.values, &got.values, if index == OUTPUT { 0.0 } else { bounds.floor })
        })
        .collect();
    let beyond = |&index: &usize| {
        let tolerance = if index == OUTPUT { bounds.output } else { bounds.others };
        differences[index].is_none_or(|difference| difference > tolerance)
    };
    let rank = |difference: &Option<f64>| difference.unwrap_or(f64::INFINITY);
    let (worst, largest) = differences
        .iter()
        .enumerate()
        .max_by(|(_, a), (_, b)| rank(a).total_cmp(&rank(b)))
        .context("the network has no output")?;
    // The output depends on all the others: it is the last to be named.
    let first = (OUTPUT + 1..differences.len()).chain([OUTPUT]).find(beyond);
    let found = Differences {
        output: differences[OUTPUT],
        largest: *largest,
        largest_at: reference[worst].name.clone(),
        first_to_differ: first.map(|first| reference[first].name.clone()),
        seconds,
    };
    Ok(if first.is_some() { Outcome::Differs(found) } else { Outcome::Equal(found) })
}

/// Returns max |got − want| / max(max |want|, floor); `None` where a value is not finite.
fn difference(want: &[f32], got: &[f32], floor: f64) -> Option<f64> {
    let scale = largest(want.iter().map(|&want| want.into()))?.max(floor);
    let off = largest(want.iter().zip(got).map(|(&want, &got)| f64::from(got) - f64::from(want)))?;
    Some(if off == 0.0 { 0.0 } else { off / scale })
}

/// Returns the largest magnitude; `None` where a value is not finite.
fn largest(mut values: impl Iterator<Item = f64>) -> Option<f64> {
    values.try_fold(0.0, |largest: f64, value| value.is_finite().then(|| largest.max(value.abs())))
}

/// Weights that keep the magnitude of activations from layer to layer, the same on every machine. In training, norms shift
/// most values of a channel to one side of zero, every second channel's below it, so that few are near the kink of a ReLU.
fn weights(architecture: Architecture, pass: Pass, network: &Network) -> Weights {
    let entries = network.entries();
    let norms: HashSet<&str> = entries.iter().filter_map(|entry| entry.key.strip_suffix(".running_mean")).collect();
    let tensors = entries.iter().map(|entry| {
        let (module, name) = entry.key.rsplit_once('.').unwrap_or_default();
        let smooth = pass == Pass::Training && norms.contains(module);
        let (low, high) = match (name, &entry.shape[..]) {
            // Kaiming variance for a uniform distribution.
            (_, [_, inputs @ ..]) if !inputs.is_empty() => {
                let bound = (6.0 / inputs.iter().product::<usize>() as f32).sqrt();
                (-bound, bound)
            }
            ("weight", _) if smooth => (0.5, 0.8),
            ("bias", _) if smooth => (2.0, 2.5),
            ("running_var" | "weight", _) => (0.5, 1.5),
            _ => (-0.1, 0.1),
        };
        let mut values = drawn(&entry.key, &entry.shape, low, high);
        if smooth && name == "bias" {
            values.iter_mut().skip(1).step_by(2).for_each(|value| *value = -*value);
        }
        (entry.key.clone(), TensorData::new(values, entry.shape.clone()))
    });
    Weights::from_tensors(architecture.name(), tensors)
}

/// Draws values from `low` to `high`: splitmix64, seeded by the FNV-1a hash of `key`.
fn drawn(key: &str, shape: &[usize], low: f32, high: f32) -> Vec<f32> {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let mut state = key.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let unit = ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32;
        low + (high - low) * unit
    };
    (0..shape.iter().product()).map(|_| next()).collect()
}

fn text(rows: &[Row], tolerance: f64, gradient_tolerance: f64) -> String {
    let backend = rows.iter().map(|row| row.backend.len()).max().unwrap_or(0).max("backend".len());
    let mut text = format!(
        "{:<16}{:<10}{:>8}  {:<backend$}  {:>12}  {:<36}{:>9}  {}\n",
        "architecture", "pass", "input", "backend", "logits, loss", "largest, at", "time", "verdict"
    );
    let number = |difference: Option<f64>| match difference {
        Some(0.0) => "0".to_string(),
        Some(value) => format!("{value:.1e}"),
        None => "not finite".to_string(),
    };
    for Row { architecture, pass, backend: name, input_size: [h, w], note, outcome } in rows {
        let start = format!("{architecture:<16}{:<10}{:>8}  {name:<backend$}", pass.name(), format!("{h}x{w}"));
        let (found, verdict) = match outcome {
            Outcome::NotRun { reason } => {
                text += &format!("{start}  not run: {reason}\n");
                continue;
            }
            Outcome::Equal(found) => (found, "equal".to_string()),
            Outcome::Differs(found) => {
                (found, format!("DIFFERS from {} on", found.first_to_differ.as_deref().unwrap_or("the output")))
            }
        };
        let largest = format!("{} {}", number(found.largest), found.largest_at);
        text += &format!(
            "{start}  {:>12}  {largest:<36}{:>9}  {verdict}\n",
            number(found.output),
            format!("{:.1} s", found.seconds)
        );
        if let Some(note) = note {
            text += &format!("{:16}({note})\n", "");
        }
    }
    text + &format!(
        "\nlargest difference to flex, relative to the largest value of the tensor; equal: at most {tolerance:.0e} in every stage \
         and the loss, {gradient_tolerance:.0e} in every gradient\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::ImageClassifier;

    #[test]
    fn a_difference_is_relative_to_the_largest_value() {
        assert_eq!(difference(&[1.0, -4.0], &[1.0, -4.0], 0.0), Some(0.0));
        assert_eq!(difference(&[1.0, -4.0], &[2.0, -4.0], 0.0), Some(0.25));
        assert_eq!(difference(&[0.0], &[1.0], 0.0), Some(f64::INFINITY));
        assert_eq!(difference(&[1.0], &[f32::NAN], 0.0), None);
    }

    #[test]
    fn the_formula_draws_within_its_bounds_and_by_key() {
        let values = |key: &str| drawn(key, &[4, 25], -0.5, 0.5);
        let (a, b) = (values("a"), values("b"));
        assert!(a.iter().all(|value| (-0.5..0.5).contains(value)));
        assert!(a != b && a == values("a"));
        let mean = a.iter().sum::<f32>() / 100.0;
        assert!(mean.abs() < 0.1, "{mean}");
    }

    fn subject(architecture: Architecture, pass: Pass, software: bool) -> Subject {
        Subject::new(architecture, pass, usual_size(architecture, pass), software)
    }

    fn compute(subject: &Subject) -> Vec<Value> {
        let flex = Device::flex();
        let weights = weights(subject.architecture, subject.pass, &subject.network(&flex));
        subject.compute(&weights, &subject.images(0), &flex).unwrap()
    }

    #[test]
    fn the_first_stage_that_differs_is_named() {
        let subject = subject(Architecture::ResNet20, Pass::Forward, false);
        let (right, mut wrong) = (compute(&subject), compute(&subject));
        assert_eq!((&*right[OUTPUT].name, &right[OUTPUT].shape[..]), ("logits", &[2, 10][..]));
        assert!(right.iter().flat_map(|stage| &stage.values).all(|value| value.abs() < 1e4), "the signal grows");
        let bounds = subject.bounds(&right, 0.0, 0.0);
        let Outcome::Equal(found) = assess(&right, &wrong, &bounds, 0.0).unwrap() else { panic!("flex is not flex") };
        assert_eq!((found.output, found.first_to_differ), (Some(0.0), None));

        let at = right.iter().position(|stage| stage.name == "layer2").unwrap();
        wrong[at].values[5] += 1e3;
        wrong[OUTPUT].values[0] = f32::NAN;
        let bounds = subject.bounds(&right, 1e-4, 0.0);
        let Outcome::Differs(found) = assess(&right, &wrong, &bounds, 0.0).unwrap() else {
            panic!("nothing was found")
        };
        assert_eq!(found.first_to_differ.as_deref(), Some("layer2"));
        assert_eq!((found.output, &*found.largest_at), (None, "logits"));
    }

    #[test]
    fn a_training_step_compares_the_loss_and_every_gradient() {
        let subject = subject(Architecture::GoogLeNet, Pass::Training, false);
        let (right, mut wrong) = (compute(&subject), compute(&subject));
        let parameters = subject.network(&Device::flex()).entries();
        let names: Vec<&str> =
            parameters.iter().filter(|entry| !entry.is_statistic()).map(|entry| &*entry.key).collect();
        assert_eq!(right[OUTPUT].name, "loss");
        assert!(names.contains(&"aux1.fc2.weight"), "the auxiliary classifiers take part");
        assert_eq!(right[OUTPUT + 1..].iter().map(|gradient| &*gradient.name).collect::<Vec<_>>(), names);
        let silent: Vec<_> = right.iter().filter(|value| value.values.iter().all(|&value| value == 0.0)).collect();
        assert!(silent.is_empty(), "{}", silent[0].name);

        let bounds = subject.bounds(&right, 1e-4, 1e-3);
        let outcome = assess(&right, &wrong, &bounds, 0.0).unwrap();
        assert!(matches!(outcome, Outcome::Equal(Differences { output: Some(0.0), largest: Some(0.0), .. })));
        let at = right.iter().position(|gradient| gradient.name == "inception4b.branch2.1.conv.weight").unwrap();
        wrong[at].values.iter_mut().for_each(|value| *value *= 1.01);
        let Outcome::Differs(found) = assess(&right, &wrong, &bounds, 0.0).unwrap() else {
            panic!("nothing was found")
        };
        assert_eq!(found.first_to_differ.as_deref(), Some("inception4b.branch2.1.conv.weight"));
    }

    #[test]
    fn a_gradient_that_is_zero_but_for_rounding_has_the_scale_of_the_others() {
        let values = |bias: f32| {
            let value = |name: &str, value| Value { name: name.into(), shape: vec![1], values: vec![value] };
            vec![value("loss", 1.0), value("weight", 2.0), value("bias", bias)]
        };
        let subject = subject(Architecture::ResNet20, Pass::Training, false);
        let reference = values(1e-8);
        let bounds = subject.bounds(&reference, 1e-4, 1e-3);
        assert!(matches!(assess(&reference, &values(-1e-8), &bounds, 0.0).unwrap(), Outcome::Equal(_)));
        assert!(matches!(assess(&reference, &values(1e-3), &bounds, 0.0).unwrap(), Outcome::Differs(_)));
    }

    /// Burn's own operations round differently from the optimized ones, as another backend does.
    #[test]
    fn gradients_at_the_usual_size_do_not_depend_on_rounding() {
        let flex = Device::flex();
        for architecture in FAMILIES {
            let subject = subject(architecture, Pass::Training, true);
            let weights = weights(architecture, Pass::Training, &subject.network(&flex));
            let Reference { images, values, is_smooth } = subject.reference(&weights, &flex, 1e-3).unwrap();
            assert!(is_smooth, "{architecture}");
            let kernels = Execution::new(KernelMode::Reference);
            let other = kernels.run(|| subject.compute(&weights, &images, &flex)).unwrap();
            let outcome = assess(&values, &other, &subject.bounds(&values, 1e-4, 1e-3), 0.0).unwrap();
            assert!(matches!(outcome, Outcome::Equal(_)), "{architecture}: {outcome:?}");
        }
    }

    #[test]
    fn gradients_that_depend_on_rounding_are_noticed() {
        let flex = Device::flex();
        let subject = subject(Architecture::ResNet20, Pass::Training, true);
        let weights = weights(Architecture::ResNet20, Pass::Training, &subject.network(&flex));
        assert!(!subject.reference(&weights, &flex, 1e-9).unwrap().is_smooth);
    }

    #[cfg(unix)]
    #[test]
    fn a_row_survives_its_way_through_json() {
        let found = Differences {
            output: None,
            largest: Some(0.5),
            largest_at: "fc".into(),
            first_to_differ: Some("conv1".into()),
            seconds: 1.25,
        };
        for outcome in [Outcome::Differs(found), Outcome::NotRun { reason: "no adapter".into() }] {
            let row = Row {
                architecture: Architecture::ResNet20,
                pass: Pass::Training,
                backend: "wgpu:cpu".into(),
                input_size: [32, 32],
                note: None,
                outcome,
            };
            let json = serde_json::to_string(&row).unwrap();
            let again: Row = serde_json::from_str(&json).unwrap();
            assert_eq!(serde_json::to_string(&again).unwrap(), json);
            assert!(text(&[again], 1e-4, 1e-3).contains("resnet20"));
        }
    }

    #[test]
    fn every_family_fits_the_buffers_of_a_software_adapter() {
        for architecture in FAMILIES {
            let subject = subject(architecture, Pass::Training, true);
            let network = subject.network(&Device::flex());
            let largest = network.entries().iter().map(|entry| entry.len()).max().unwrap();
            assert!(largest * 4 <= 128 << 20, "{architecture}: {largest}");
            let full = self::subject(architecture, Pass::Training, false).network(&Device::flex());
            assert_eq!(
                network.num_parameters() < full.num_parameters(),
                subject.note().is_some_and(|note| note.contains("256"))
            );
        }
    }
}
