//! Resolves `--weights W`, which is a run folder, a file, or a published name, and finds its model card.

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, TensorData};
use models::{Architecture, ImageClassifier, Network, QuantizedNetwork};
use runtime::text::nearest;

use crate::{
    Activation, Card, Error, Hub, PreprocessOverrides, Progress, Published, Result, Strictness, Weights, find, identify,
};

/// The weight file of a run folder; it contains the card.
pub const RUN_WEIGHTS: &str = "weights.safetensors";

/// How weights are found and read. With the feature `clap` it is a group of command-line arguments.
#[derive(Debug, Clone, Default)]
#[cfg_attr(feature = "clap", derive(clap::Args))]
pub struct LoadOptions {
    /// Architecture of a weight file without a model card
    #[cfg_attr(feature = "clap", arg(short, long = "arch", value_name = "ARCH", value_parser = parse_architecture))]
    pub architecture: Option<Architecture>,
    /// Model card (JSON) for a weight file without one, or in place of its own
    #[cfg_attr(feature = "clap", arg(long, value_name = "FILE"))]
    pub card: Option<PathBuf>,
    /// Which network of a file that has several, such as state_dict_ema or encoder_q
    #[cfg_attr(feature = "clap", arg(long, value_name = "KEY"))]
    pub weights_key: Option<String>,
    /// Cache folder of published weights
    ///
    /// Default: `$XDG_CACHE_HOME/hearth/weights` or `~/.cache/hearth/weights`.
    #[cfg_attr(feature = "clap", arg(long, value_name = "DIR"))]
    pub cache_dir: Option<PathBuf>,
    /// Never download: published weights must be in the cache folder
    #[cfg_attr(feature = "clap", arg(long))]
    pub offline: bool,
    /// Changes of the card's preprocessing.
    #[cfg_attr(feature = "clap", arg(skip))]
    pub preprocess: PreprocessOverrides,
    /// How a network with one output is read.
    #[cfg_attr(feature = "clap", arg(skip))]
    pub activation: Activation,
    /// The caller prepares images in its own way, so an assumed preprocessing is not worth a warning.
    #[cfg_attr(feature = "clap", arg(skip))]
    pub ignore_preprocess: bool,
}

/// Parses the name of an architecture on a command line; of a name that is unknown the message suggests another one.
///
/// # Errors
/// Fails if no architecture has the name.
pub fn parse_architecture(name: &str) -> Result<Architecture, String> {
    name.parse().map_err(|error: models::Error| {
        let names = Architecture::ALL.iter().map(|architecture| architecture.name());
        match nearest(name, names).filter(|_| !name.contains(['/', '\\'])) {
            Some(nearest) => format!("no architecture is called '{name}'; did you mean '{nearest}'?"),
            None => error.to_string(),
        }
    })
}

/// Weights and their card.
#[derive(Debug)]
pub struct Opened {
    /// The weights.
    pub weights: Weights,
    /// The card: the given one, the file's own, the published weights' built-in one, or the architecture's default.
    pub card: Card,
    activation: Activation,
}

impl Opened {
    /// Builds the network with the weights on `device`; with the file's auxiliary classifiers, which only training
    /// uses, if `aux`.
    ///
    /// # Errors
    /// Fails if the weights do not match the network (with a table of the differences), or if the card has another
    /// number of classes.
    pub fn network(&self, aux: bool, device: &Device) -> Result<Network> {
        let Self { weights, card, activation } = self;
        if weights.is_quantized() {
            return Err(Error::IsQuantized { path: weights.path().to_path_buf() });
        }
        let config = weights.config(card.architecture, device)?.with_transform_input(card.transform_input);
        let config = if aux { config } else { config.with_aux_logits(false) };
        let network = config.init(device);
        let folded = weights.is_folded(card.architecture, device);
        let network = if folded { network.fold_batch_norm() } else { network };
        let (network, _) = weights.load(network, card.architecture, Strictness::Exact)?;
        let network = match activation {
            Activation::Softmax => network,
            Activation::Sigmoid => two_classes(network, card.architecture, device)?,
        };
        let (classes, layer) = (card.classes.len(), network.num_classes());
        match classes == layer {
            true => Ok(network),
            false => Err(Error::OtherClasses { path: weights.path().to_path_buf(), card: classes, layer }),
        }
    }
}

impl Opened {
    /// Reads a quantized network, or returns `None` for a file of floats.
    ///
    /// # Errors
    /// Fails if the file contradicts itself or the card.
    pub fn quantized(&self, device: &Device) -> Result<Option<QuantizedNetwork>> {
        let Self { weights, card, activation } = self;
        let Some(network) = weights.quantized(device)? else { return Ok(None) };
        if *activation == Activation::Sigmoid {
            return Err(Error::IsQuantized { path: weights.path().to_path_buf() });
        }
        let (classes, layer) = (card.classes.len(), network.num_classes());
        match classes == layer {
            true => Ok(Some(network)),
            false => Err(Error::OtherClasses { path: weights.path().to_path_buf(), card: classes, layer }),
        }
    }
}

/// Opens the weights that `name` refers to: a file, a run folder, or published weights. An existing path takes
/// precedence over a published name; published weights are downloaded if they are not in the cache folder. Nothing is
/// moved to `device`, which is only used to inspect shapes.
///
/// The card is, in this order: `options.card`; the one in the file; that of the published weights, also for a file with
/// their checksum; the default card of `options.architecture`.
///
/// # Errors
/// Where there is no such file or name, where the file cannot be read, where there is no card or several networks, or
/// where card, file and `options` contradict each other.
pub fn open(name: &str, options: &LoadOptions, device: &Device) -> Result<Opened> {
    open_with_progress(name, options, device, &mut |_, _| {})
}

/// Like [`open`], and reports the progress of a download.
///
/// # Errors
/// As [`open`].
pub fn open_with_progress(
    name: &str,
    options: &LoadOptions,
    device: &Device,
    progress: &mut dyn FnMut(&Published, Progress),
) -> Result<Opened> {
    let (path, published) = locate(name, options, progress)?;
    let weights = Weights::open(&path)?.with_key(options.weights_key.clone());
    let (card, is_assumed) = card(&weights, published, options, device)?;
    if let Some(asked) = options.architecture.filter(|asked| *asked != card.architecture) {
        return Err(Error::OtherArchitecture { asked, card: card.architecture, path });
    }
    weights.announce(card.architecture, device)?;
    let mut card = card;
    options.preprocess.apply(&mut card)?;
    if is_assumed && !options.ignore_preprocess {
        options.preprocess.warn_assumed(&path, &card);
    }
    if options.activation == Activation::Sigmoid {
        let outputs = weights.config(card.architecture, device)?.num_classes;
        if outputs != 1 {
            return Err(Error::NotOneOutput { path, outputs });
        }
        if let [class] = card.classes.as_slice() {
            card.classes = match class.as_str() {
                "class 0" => vec!["class 0".to_string(), "class 1".to_string()],
                class => vec![format!("not {class}"), class.to_string()],
            };
        }
    }
    log::debug!("{}: {}, {} classes, from {}", path.display(), card.architecture, card.classes.len(), card.origin);
    Ok(Opened { weights, card, activation: options.activation })
}

/// Returns the path, and the published weights if `name` is one of their names.
fn locate(
    name: &str,
    options: &LoadOptions,
    progress: &mut dyn FnMut(&Published, Progress),
) -> Result<(PathBuf, Option<&'static Published>)> {
    let path = Path::new(name);
    if path.is_dir() {
        return Ok((in_run_folder(path)?, None));
    }
    if path.exists() {
        return Ok((path.to_path_buf(), None));
    }
    if is_path_like(name) {
        return Err(Error::NotFound { path: name.to_string() });
    }
    let published =
        find(name).map_err(|source| Error::UnknownWeights { name: name.to_string(), source: Box::new(source) })?;
    let mut hub = Hub::new().with_offline(options.offline);
    if let Some(folder) = &options.cache_dir {
        hub = hub.with_cache_dir(folder);
    }
    let path = hub.fetch(published, &mut |state| progress(published, state))?;
    Ok((path, Some(published)))
}

fn in_run_folder(folder: &Path) -> Result<PathBuf> {
    let path = folder.join(RUN_WEIGHTS);
    if path.is_file() {
        return Ok(path);
    }
    // As easy a mistake is a folder within a run, such as one of its checkpoints.
    let mut above = folder.ancestors().skip(1).take(2).filter(|above| !above.as_os_str().is_empty());
    if let Some(run) = above.find(|above| above.join(RUN_WEIGHTS).is_file()) {
        return Err(Error::NotARun { folder: folder.to_path_buf(), run: Some(run.to_path_buf()) });
    }
    // `--weights artifacts` is an easy mistake for a run in that folder.
    let mut runs: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(|source| Error::Io { action: "list the folder", path: folder.to_path_buf(), source })?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join(RUN_WEIGHTS).is_file())
        .collect();
    runs.sort();
    // Folders of a model as transformers and timm save them.
    let names =
        ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json"];
    let file = names.map(|name| folder.join(name)).into_iter().find(|path| path.is_file());
    Err(Error::NotARun { folder: folder.to_path_buf(), run: runs.pop().or(file) })
}

/// Whether `name` looks like a path rather than a published name.
fn is_path_like(name: &str) -> bool {
    const EXTENSIONS: [&str; 8] = ["pth", "pt", "th", "bin", "safetensors", "bpk", "mpk", "caffemodel"];
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    name.contains(['/', '\\']) || EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
}

fn card(
    weights: &Weights,
    published: Option<&Published>,
    options: &LoadOptions,
    device: &Device,
) -> Result<(Card, bool)> {
    let path = weights.path();
    if let Some(file) = &options.card {
        let card = Card::read(file)?;
        if let Some(own) = weights.card().filter(|own| own.architecture != card.architecture) {
            return Err(Error::OtherCard {
                card: file.clone(),
                given: card.architecture,
                path: path.to_path_buf(),
                own: own.architecture,
            });
        }
        return Ok((card, false));
    }
    if let Some(card) = weights.card() {
        return Ok((card.clone(), false));
    }
    let published = match published {
        Some(published) => Some(published),
        None => identify(path)?,
    };
    if let Some(published) = published {
        for note in &published.notes {
            log::debug!("{}: {note}", published.name());
        }
        return match published.features_only {
            true => Err(Error::FeaturesOnly { name: published.name() }),
            false => Ok((published.card(), false)),
        };
    }
    let Some(architecture) = options.architecture else {
        return Err(Error::NoCard { path: path.to_path_buf() });
    };
    let classes = weights.config(architecture, device)?.num_classes;
    let mut card = Card::of(architecture, classes, path.display().to_string());
    if !weights.has_head(architecture, device)? {
        // The default number of classes says nothing about what they are.
        card.classes = (0..classes).map(|index| format!("class {index}")).collect();
    }
    Ok((card, true))
}

/// Returns the network with two outputs whose softmax is `1 - p` and `p`, where `p` is the sigmoid of its one output:
/// the logit of the first class is 0.
fn two_classes(network: Network, architecture: Architecture, device: &Device) -> Result<Network> {
    let values = |data: TensorData| data.convert::<f32>().try_into_vec::<f32>().unwrap_or_default();
    let layer = network.classifier();
    let (weight, bias) = (layer.weight.val(), layer.bias.as_ref().map(|bias| bias.val()));
    let [inputs, _] = weight.dims();
    let weight: Vec<f32> = std::iter::repeat_n(0.0, inputs).chain(values(weight.into_data())).collect();
    let bias = bias.map_or(0.0, |bias| values(bias.into_data()).first().copied().unwrap_or(0.0));
    let head = network.head_key();
    let tensors = [
        (format!("{head}.weight"), TensorData::new(weight, [2, inputs])),
        (format!("{head}.bias"), TensorData::new(vec![0.0, bias], [2])),
    ];
    let network = network.reset_classifier(2, device);
    Ok(Weights::from_tensors("sigmoid", tensors).load(network, architecture, Strictness::Partial)?.0)
}

#[cfg(test)]
mod tests {
    use models::NetworkConfig;

    use super::*;
    use crate::weights::save;

    fn tiny() -> (NetworkConfig, Card) {
        let card = Card::of(Architecture::ResNet20, 4, "a test");
        (NetworkConfig::new(Architecture::ResNet20).with_num_classes(4), card)
    }

    fn open_quietly(name: &Path, options: &LoadOptions) -> Result<Opened> {
        open(&name.display().to_string(), options, &Device::flex())
    }

    #[test]
    fn a_run_folder_and_the_file_in_it_are_the_same() {
        let artifacts = tempfile::tempdir().unwrap();
        let (config, card) = tiny();
        let run = artifacts.path().join("run-1");
        save(&config.init(&Device::flex()), &card, run.join(RUN_WEIGHTS)).unwrap();
        for path in [run.clone(), run.join(RUN_WEIGHTS)] {
            let opened = open_quietly(&path, &LoadOptions::default()).unwrap();
            assert_eq!(opened.card, card);
            assert_eq!(opened.network(true, &Device::flex()).unwrap().num_classes(), 4);
        }
        let error = open_quietly(artifacts.path(), &LoadOptions::default()).unwrap_err().to_string();
        assert!(error.contains("did you mean --weights") && error.contains("run-1"), "{error}");
        let step = run.join("checkpoints/step-00000045");
        fs::create_dir_all(&step).unwrap();
        let error = open_quietly(&step, &LoadOptions::default()).unwrap_err().to_string();
        assert!(error.ends_with(&format!("did you mean --weights {}?", run.display())), "{error}");
        let model = tempfile::tempdir().unwrap();
        fs::write(model.path().join("model.safetensors"), "").unwrap();
        let error = open_quietly(model.path(), &LoadOptions::default()).unwrap_err().to_string();
        assert!(error.contains("did you mean --weights") && error.contains("model.safetensors"), "{error}");
    }

    #[test]
    fn what_contradicts_the_card_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (config, card) = tiny();
        let path = folder.path().join("w.safetensors");
        save(&config.init(&Device::flex()), &card, &path).unwrap();
        let other = LoadOptions { architecture: Some(Architecture::ResNet56), ..LoadOptions::default() };
        let error = open_quietly(&path, &other).unwrap_err().to_string();
        assert!(error.contains("--arch resnet56 contradicts the model card"), "{error}");

        let lying = Card::of(Architecture::ResNet20, 7, "a test");
        lying.write(folder.path().join("card.json")).unwrap();
        let options = LoadOptions { card: Some(folder.path().join("card.json")), ..LoadOptions::default() };
        let opened = open_quietly(&path, &options).unwrap();
        let error = opened.network(true, &Device::flex()).unwrap_err().to_string();
        assert!(error.contains("has 7 classes, the last layer has 4"), "{error}");

        Card::of(Architecture::Plain20, 4, "a test").write(folder.path().join("card.json")).unwrap();
        let error = open_quietly(&path, &options).unwrap_err().to_string();
        assert!(error.contains("is for plain20, but"), "{error}");
    }

    #[test]
    fn one_output_becomes_two_classes_by_a_sigmoid() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let (architecture, device) = (Architecture::ResNet20, Device::flex());
        let network = NetworkConfig::new(architecture).with_num_classes(1).init(&device);
        let mut card = Card::of(architecture, 1, "a test");
        card.classes = vec!["dog".to_string()];
        save(&network, &card, &path).unwrap();
        let sigmoid = LoadOptions { activation: Activation::Sigmoid, ..LoadOptions::default() };
        let opened = open_quietly(&path, &sigmoid).unwrap();
        assert_eq!(opened.card.classes, ["not dog", "dog"]);
        let images = burn::tensor::Tensor::random([3, 3, 32, 32], burn::tensor::Distribution::Default, &device);
        let logits: Vec<f32> = network.forward(images.clone()).into_data().try_into_vec().unwrap();
        let two: Vec<f32> = opened.network(false, &device).unwrap().forward(images).into_data().try_into_vec().unwrap();
        for (logit, [first, second]) in logits.iter().zip(two.as_chunks().0) {
            assert!(*first == 0.0 && (logit - second).abs() < 1e-5, "{logit}: {first} {second}");
        }

        // Both classes have names in a card that is given.
        card.classes = vec!["cat".to_string(), "dog".to_string()];
        card.write(folder.path().join("card.json")).unwrap();
        let card_file = Some(folder.path().join("card.json"));
        let opened = open_quietly(&path, &LoadOptions { card: card_file.clone(), ..sigmoid.clone() }).unwrap();
        assert_eq!(opened.network(false, &device).unwrap().num_classes(), 2);
        let opened = open_quietly(&path, &LoadOptions { card: card_file, ..LoadOptions::default() }).unwrap();
        let error = opened.network(false, &device).unwrap_err().to_string();
        assert!(error.contains("--activation sigmoid"), "{error}");

        let (config, card) = tiny();
        save(&config.init(&device), &card, &path).unwrap();
        assert!(matches!(open_quietly(&path, &sigmoid), Err(Error::NotOneOutput { outputs: 4, .. })));
    }

    #[test]
    fn auxiliary_classifiers_may_stay_in_the_file_and_nothing_else_may() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let (architecture, device) = (Architecture::GoogLeNet, Device::flex());
        let card = Card::of(architecture, 4, "a test");
        let config = NetworkConfig::new(architecture).with_num_classes(4);
        save(&config.init(&device), &card, &path).unwrap();
        let opened = open_quietly(&path, &LoadOptions::default()).unwrap();
        let count = |aux: bool| opened.network(aux, &device).unwrap().num_parameters();
        assert_eq!(count(true), config.init(&device).num_parameters());
        assert_eq!(count(false), config.with_aux_logits(false).init(&device).num_parameters());

        let (config, card) = tiny();
        save(&config.init(&device), &card, &path).unwrap();
        let opened = open_quietly(&path, &LoadOptions::default()).unwrap();
        let deeper = Opened { card: Card { architecture: Architecture::ResNet32, ..card.clone() }, ..opened };
        assert!(deeper.network(false, &device).unwrap_err().to_string().contains("missing"));
        save(&NetworkConfig::new(Architecture::ResNet32).with_num_classes(4).init(&device), &card, &path).unwrap();
        let error = open_quietly(&path, &LoadOptions::default()).unwrap().network(false, &device).unwrap_err();
        assert!(error.to_string().contains("unexpected"), "{error}");
    }

    #[test]
    fn a_path_that_is_not_there_and_a_name_that_is_not_published_are_told_apart() {
        let options = LoadOptions { offline: true, ..LoadOptions::default() };
        let error = |name: &str| {
            let error = open(name, &options, &Device::flex()).unwrap_err();
            // As the binaries print it.
            std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(": ")
        };
        assert!(error("missing.pth").contains("no such file or folder"), "{}", error("missing.pth"));
        assert!(error("runs/resnet50").contains("no such file or folder"));
        assert!(error("timm/resnet18.a1_in1k").contains("hf download timm/resnet18.a1_in1k"));
        assert!(error("hf://microsoft/resnet-50").contains("hf download microsoft/resnet-50"));
        assert!(error("https://example.org/resnet18.pth").contains("download the file"));
        assert!(error("~/weights.pth").contains("$HOME"));
        assert!(error("resnet5").contains("did you mean resnet5"), "{}", error("resnet5"));
    }
}
