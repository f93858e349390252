//! Every network against the golden references of torchvision (`golden/make_golden.py` says how they were made).
//!
//! `HEARTH_GOLDEN` names another folder of such files; `HEARTH_DATA` the folder that holds `weights/` for the
//! references with published weights, `../shared/data` by default. A comparison that fails names the first stage that
//! diverges.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use burn::{
    module::{Module, ModuleVisitor, Param},
    nn::loss::CrossEntropyLossConfig,
    optim::{GradientsParams, SgdConfig, decay::WeightDecayConfig, momentum::MomentumConfig},
    tensor::{Device, Gradients, Int, Tensor, TensorData},
};
use hub::{Strictness, Weights};
use kernels::KernelMode;
use libtest_mimic::{Arguments, Failed, Trial};
use models::{Architecture, Execution, ImageClassifier, Network, NetworkConfig};
use serde::Deserialize;

/// What every logit may deviate by, relative to the largest; a case for which PyTorch's own f32 does worse says so.
const TOLERANCE: f64 = 1e-5;

fn main() {
    let arguments = Arguments::from_args();
    let trials = goldens().iter().flat_map(|path| trials_of(path)).collect();
    libtest_mimic::run(&arguments, trials).exit();
}

/// A test whose networks run the operations that `HEARTH_KERNELS` names, as the binaries' `--kernels` has it.
fn trial(name: String, test: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Trial {
    let kernels = env::var("HEARTH_KERNELS").map_or(Ok(KernelMode::default()), |name| name.parse());
    let kernels = kernels.unwrap_or_else(|error| panic!("HEARTH_KERNELS: {error}"));
    Trial::test(name, move || Execution::new(kernels).run(test))
}

fn folder(variable: &str, default: &str) -> PathBuf {
    env::var_os(variable).map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(default), PathBuf::from)
}

fn goldens() -> Vec<PathBuf> {
    let folder = folder("HEARTH_GOLDEN", "tests/golden");
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a folder entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    assert!(!paths.is_empty(), "{} holds no *.json", folder.display());
    paths
}

/// The file's form tells what is tested.
fn trials_of(path: &Path) -> Vec<Trial> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Golden {
        Torchvision(Box<Torchvision>),
        Cifar(Cifar),
        Bvlc(Bvlc),
    }
    let json = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let golden: Golden = match serde_json::from_slice(&json) {
        Ok(golden) => golden,
        Err(error) => {
            let message = format!("{} has none of the known forms: {error}", path.display());
            return vec![trial(path.display().to_string(), || Err(message.into()))];
        }
    };
    match golden {
        Golden::Torchvision(golden) => golden.trials(),
        Golden::Cifar(golden) => golden.trials(),
        Golden::Bvlc(golden) => golden.trials(),
    }
}

/// A backend's name and its device.
type Backend = (&'static str, fn() -> Device);

/// The backends compiled in. ndarray is slow, so it takes one network of each family.
fn backends(architecture: Architecture) -> Vec<Backend> {
    #[allow(unused_mut)]
    let mut backends: Vec<Backend> = vec![("flex", Device::flex)];
    #[cfg(feature = "ndarray")]
    {
        if [
            Architecture::AlexNet,
            Architecture::Vgg11,
            Architecture::GoogLeNet,
            Architecture::GoogLeNet2014,
            Architecture::InceptionV3,
            Architecture::ResNet18,
            Architecture::ResNeXt50,
            Architecture::ResNet20,
        ]
        .contains(&architecture)
        {
            backends.push(("ndarray", Device::ndarray));
        }
    }
    let _ = architecture;
    backends
}

// --- torchvision's networks, weights drawn by formula -----------------------------------------------------------

#[derive(Clone, Deserialize)]
struct Torchvision {
    arch: Architecture,
    seed: u64,
    parameters: usize,
    tensors: Vec<Drawn>,
    cases: Vec<Case>,
    train: Option<Train>,
}

/// A tensor drawn by the formula of `make_golden.py`.
#[derive(Clone, Deserialize)]
struct Drawn {
    key: String,
    shape: Vec<usize>,
    lo: f64,
    hi: f64,
    #[serde(default)]
    head: Vec<f32>,
}

#[derive(Clone, Deserialize)]
struct Case {
    #[serde(flatten)]
    input: Drawn,
    /// Files without it were made with published weights.
    #[serde(default)]
    relative_error_of_float32: f64,
    logits: Vec<Vec<f64>>,
    aux1: Option<Vec<Vec<f64>>>,
    aux2: Option<Vec<Vec<f64>>>,
    #[serde(rename = "AuxLogits")]
    aux_logits: Option<Vec<Vec<f64>>>,
    #[serde(default)]
    stages: BTreeMap<String, Stage>,
}

#[derive(Clone, Deserialize)]
struct Stage {
    shape: Vec<usize>,
    mean: f64,
    std: f64,
    at: Vec<usize>,
    values: Vec<f64>,
}

#[derive(Clone, Deserialize)]
struct Train {
    input: Drawn,
    targets: Vec<i64>,
    lr: f64,
    momentum: f64,
    dampening: f64,
    weight_decay: f32,
    label_smoothing: f32,
    aux_weight: Option<f64>,
    losses: Vec<f64>,
    float32_loss_error: Vec<f64>,
    first_step_gradient_norms: BTreeMap<String, f64>,
    float32_gradient_error: f64,
}

impl Torchvision {
    fn trials(self: Box<Self>) -> Vec<Trial> {
        let mut trials = Vec::new();
        for (backend, device) in backends(self.arch) {
            let golden = self.clone();
            trials.push(trial(format!("{} logits on {backend}", self.arch), move || golden.logits(&device())));
        }
        if let Some(train) = self.train.clone() {
            trials
                .push(trial(format!("{} training on flex", self.arch), move || self.training(&train, &Device::flex())));
        }
        trials
    }

    /// The network with the formula's weights, loaded the way any file is.
    fn network(&self, device: &Device, dropout: Option<f64>) -> Result<Network, Failed> {
        let tensors = self.tensors.iter().map(|drawn| Ok((drawn.key.clone(), drawn.draw(self.seed)?)));
        let tensors: Vec<(String, TensorData)> = tensors.collect::<Result<_, Failed>>()?;
        let weights = Weights::from_tensors(self.arch.name(), tensors);
        let config = NetworkConfig::new(self.arch).with_dropout(dropout);
        let (network, _) = weights.load(config.init(device), self.arch, Strictness::Exact)?;
        Ok(network)
    }

    fn logits(&self, device: &Device) -> Result<(), Failed> {
        let network = self.network(device, None)?;
        let count = network.num_parameters();
        if count != self.parameters {
            return Err(format!("{count} parameters, want {}", self.parameters).into());
        }
        for case in &self.cases {
            let name = |stage: &str| stage.to_string();
            case.check(&network, self.arch, self.seed, device, TOLERANCE, name)?;
        }
        Ok(())
    }

    fn training(&self, train: &Train, device: &Device) -> Result<(), Failed> {
        assert_eq!(train.dampening, 0.0);
        let device = device.clone().autodiff();
        let mut network = self.network(&device, Some(0.0))?;
        let images = Tensor::<4>::from_data(train.input.draw(self.seed)?, &device);
        let targets = Tensor::<1, Int>::from_data(TensorData::from(train.targets.as_slice()), &device);
        let loss = CrossEntropyLossConfig::new().with_smoothing(Some(train.label_smoothing)).init(&device);
        let momentum = MomentumConfig::new().with_momentum(train.momentum).with_dampening(0.0);
        let sgd = SgdConfig::new()
            .with_momentum(Some(momentum))
            .with_weight_decay(Some(WeightDecayConfig::new(train.weight_decay)));
        let mut optimizer = sgd.init();

        for (step, (want, float32_error)) in train.losses.iter().zip(&train.float32_loss_error).enumerate() {
            let output = network.forward_aux(images.clone());
            let mut total = loss.forward(output.logits, targets.clone());
            for (_, aux) in output.aux {
                total = total + loss.forward(aux, targets.clone()) * train.aux_weight.unwrap_or(0.0);
            }
            let got: f64 = total.clone().into_scalar::<f32>().into();
            let gradients = total.backward();
            if step == 0 {
                check_gradients(&network, &gradients, train)?;
            }
            let (error, bound) = ((got - want).abs() / want.abs(), f64::max(1e-4, 20.0 * float32_error));
            if error > bound {
                return Err(
                    format!("loss {step} is {got}, want {want}: off by {error:.1e}, allowed {bound:.1e}").into()
                );
            }
            network = optimizer.step(train.lr, network.clone(), GradientsParams::from_grads(gradients, &network));
        }
        Ok(())
    }
}

/// Every parameter has a gradient, and its norm is the reference's.
fn check_gradients(network: &Network, gradients: &Gradients, train: &Train) -> Result<(), Failed> {
    struct Norms<'a>(&'a Gradients, Vec<Option<f64>>);
    impl ModuleVisitor for Norms<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let norm = |gradient: Tensor<D>| gradient.square().sum().sqrt().into_scalar::<f32>().into();
            self.1.push(param.val().grad(self.0).map(norm));
        }
    }
    let mut norms = Norms(gradients, Vec::new());
    network.visit(&mut norms);

    let largest = train.first_step_gradient_norms.values().cloned().fold(0.0, f64::max);
    let bound = f64::max(1e-3, 5.0 * train.float32_gradient_error) * largest;
    let entries = network.entries();
    let parameters: Vec<_> = entries.iter().zip(norms.1).filter(|(entry, _)| !entry.is_statistic()).collect();
    if parameters.len() != train.first_step_gradient_norms.len() {
        return Err(format!("{} parameters, want {}", parameters.len(), train.first_step_gradient_norms.len()).into());
    }
    for (entry, norm) in parameters {
        let norm = norm.ok_or_else(|| format!("{} has no gradient", entry.key))?;
        let want = train.first_step_gradient_norms.get(&entry.key).ok_or(format!("{} is not known", entry.key))?;
        if (norm - want).abs() > bound {
            return Err(format!("the gradient of {} has norm {norm}, want {want} ± {bound:.1e}", entry.key).into());
        }
    }
    Ok(())
}

impl Drawn {
    /// splitmix64 seeded with FNV-1a of the key: see `make_golden.py`.
    fn draw(&self, seed: u64) -> Result<TensorData, Failed> {
        let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let start = self.key.bytes().fold(0xcbf2_9ce4_8422_2325, fnv) ^ seed;
        let value = |i: u64| {
            let z = start.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let u = ((z ^ (z >> 31)) >> 40) as f64 / (1u64 << 24) as f64;
            (self.lo + (self.hi - self.lo) * u) as f32
        };
        let values: Vec<f32> = (0..self.shape.iter().product::<usize>() as u64).map(value).collect();
        match values.starts_with(&self.head) {
            true => Ok(TensorData::new(values, self.shape.clone())),
            false => Err(format!("the formula gives {:?} for {}, not {:?}", &values[..4], self.key, self.head).into()),
        }
    }
}

/// What one stage of ours gave where the reference was sampled.
struct Sampled {
    name: String,
    shape: Vec<usize>,
    values: Vec<f64>,
}

impl Case {
    /// Runs the case; `stage_name` leads from our stages' names to the file's.
    fn check(
        &self,
        network: &Network,
        architecture: Architecture,
        seed: u64,
        device: &Device,
        tolerance: f64,
        stage_name: impl Fn(&str) -> String,
    ) -> Result<(), Failed> {
        let images = Tensor::<4>::from_data(self.input.draw(seed)?, device);
        let mut sampled = Vec::new();
        let mut look = |name: &str, output: &Tensor<4>| {
            let name = stage_name(name);
            if let Some(stage) = self.stages.get(&name) {
                let all: Vec<f32> = output.to_data().try_into_vec().expect("f32");
                let values = stage.at.iter().map(|&at| all.get(at).copied().unwrap_or(f32::NAN).into()).collect();
                sampled.push(Sampled { name, shape: output.dims().to_vec(), values });
            }
        };
        let logits = network.forward_with_hook(images.clone(), &mut look);
        let allowed = tolerance.max(self.relative_error_of_float32);
        let stages = self.first_divergence(&sampled, allowed);
        if self.stages.len() > 2 && sampled.len() + 2 < self.stages.len() {
            let seen: Vec<&str> = sampled.iter().map(|stage| stage.name.as_str()).collect();
            let unseen: Vec<&String> = self.stages.keys().filter(|name| !seen.contains(&name.as_str())).collect();
            // The classifier's stages are flat, and BVLC lists a convolution beside its ReLU.
            if unseen.iter().any(|name| !["fc", "classifier", "features", "linear", "dropout"].contains(&name.as_str()))
                && architecture != Architecture::GoogLeNet2014
            {
                return Err(format!("the network announced no stages {unseen:?}").into());
            }
        }
        let hint = || match &stages {
            Some(stage) => format!("; the first stage to diverge is {stage}"),
            None => "; no stage before the classifier diverges".to_string(),
        };
        compare(&format!("{} logits", self.input.key), logits, &self.logits, allowed)
            .map_err(|error| error + &hint())?;
        if let Some(stage) = &stages {
            return Err(format!("{}: the logits agree, but the stage {stage} does not", self.input.key).into());
        }

        let wanted = [("aux1", &self.aux1), ("aux2", &self.aux2), ("AuxLogits", &self.aux_logits)];
        if wanted.iter().any(|(_, want)| want.is_some()) {
            let aux = network.forward_aux(images).aux;
            for (name, want) in wanted {
                let Some(want) = want else { continue };
                let got = aux.iter().find(|(found, _)| *found == name).ok_or(format!("no {name}"))?.1.clone();
                compare(&format!("{} {name}", self.input.key), got, want, allowed).map_err(|error| error + &hint())?;
            }
        }
        Ok(())
    }

    /// The first stage whose samples leave the reference by more than `allowed` of the stage's magnitude.
    fn first_divergence(&self, sampled: &[Sampled], allowed: f64) -> Option<String> {
        sampled.iter().find_map(|stage| {
            let want = &self.stages[&stage.name];
            if stage.shape != want.shape {
                return Some(format!("{}: shape {:?}, want {:?}", stage.name, stage.shape, want.shape));
            }
            // The largest of a map's values is some five deviations out.
            let scale = want.mean.abs() + 5.0 * want.std;
            let deviation = stage.values.iter().zip(&want.values).map(|(got, want)| (got - want).abs() / scale);
            let deviation = deviation.fold(0.0, |worst: f64, x| if x.is_nan() { f64::INFINITY } else { worst.max(x) });
            (deviation > allowed).then(|| format!("{}: off by {deviation:.1e}", stage.name))
        })
    }
}

fn compare(what: &str, got: Tensor<2>, want: &[Vec<f64>], allowed: f64) -> Result<(), String> {
    let shape = got.dims();
    if shape != [want.len(), want[0].len()] {
        return Err(format!("{what}: shape {shape:?}, want [{}, {}]", want.len(), want[0].len()));
    }
    let got: Vec<f32> = got.into_data().try_into_vec().expect("f32");
    let want: Vec<f64> = want.iter().flatten().copied().collect();
    let largest = want.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let worst = got
        .iter()
        .zip(&want)
        .map(|(got, want)| (f64::from(*got) - want).abs())
        .fold(0.0, |m: f64, x| if x.is_nan() { f64::INFINITY } else { m.max(x) });
    match worst / largest <= allowed {
        true => Ok(()),
        false => Err(format!("{what}: off by {:.2e} of the largest, allowed {allowed:.1e}", worst / largest)),
    }
}

// --- published weights ------------------------------------------------------------------------------------------

/// Runs with the file `weights/NAME` under `HEARTH_DATA`, or is skipped, visibly.
fn with_weights(
    name: String,
    file: String,
    test: impl FnOnce(PathBuf) -> Result<(), Failed> + Send + 'static,
) -> Trial {
    let path = folder("HEARTH_DATA", "../../shared/data").join("weights").join(file);
    let missing = !path.exists();
    let name = if missing { format!("{name} (skipped: {} is missing)", path.display()) } else { name };
    trial(name, move || test(path)).with_ignored_flag(missing)
}

fn load(path: &Path, architecture: Architecture, device: &Device) -> Result<Network, Failed> {
    let weights = Weights::open(path)?;
    let network = weights.config(architecture, device).expect("a configuration").init(device);
    Ok(weights.load(network, architecture, Strictness::Exact)?.0)
}

/// BVLC's GoogLeNet.
#[derive(Clone, Deserialize)]
struct Bvlc {
    seed: u64,
    cases: Vec<Case>,
}

impl Bvlc {
    fn trials(self) -> Vec<Trial> {
        let architecture = Architecture::GoogLeNet2014;
        let trial = |(backend, device): Backend| {
            let golden = self.clone();
            with_weights(format!("bvlc_googlenet on {backend}"), "bvlc_googlenet.safetensors".into(), move |path| {
                let network = load(&path, architecture, &device())?;
                for case in &golden.cases {
                    case.check(&network, architecture, golden.seed, &device(), TOLERANCE, caffe_stage)?;
                }
                Ok(())
            })
        };
        backends(architecture).into_iter().map(trial).collect()
    }
}

/// Caffe's name of the output that our stage gives (after its ReLU, where it has one).
fn caffe_stage(ours: &str) -> String {
    match ours {
        "conv1" => "conv1_relu_7x7".into(),
        "maxpool1" => "pool1_3x3_s2".into(),
        "norm1" => "pool1_norm1".into(),
        "conv2" => "conv2_relu_3x3_reduce".into(),
        "conv3" => "conv2_relu_3x3".into(),
        "norm2" => "conv2_norm2".into(),
        "avgpool" => "pool5_7x7_s1".into(),
        _ => match (ours.strip_prefix("inception"), ours.strip_prefix("maxpool")) {
            (Some(block), _) => format!("inception_{block}_output"),
            (_, Some(pool)) => format!("pool{pool}_3x3_s2"),
            _ => ours.into(),
        },
    }
}

/// The ResNets for CIFAR-10.
#[derive(Clone, Deserialize)]
struct Cifar {
    seed: u64,
    models: BTreeMap<Architecture, CifarModel>,
}

#[derive(Clone, Deserialize)]
struct CifarModel {
    weights: String,
    cases: Vec<Case>,
}

impl Cifar {
    fn trials(self) -> Vec<Trial> {
        let seed = self.seed;
        let mut trials = Vec::new();
        for (architecture, model) in self.models {
            for (backend, device) in backends(architecture) {
                for kind in ["legacy.th", "zip.pth"] {
                    let (name, file) =
                        (format!("{architecture} from {kind} on {backend}"), format!("{}.{kind}", model.weights));
                    let cases = model.cases.clone();
                    trials.push(with_weights(name, file, move |path| {
                        let network = load(&path, architecture, &device())?;
                        for case in &cases {
                            case.check(&network, architecture, seed, &device(), TOLERANCE, str::to_string)?;
                        }
                        Ok(())
                    }));
                }
            }
        }
        trials
    }
}
