//! The error type of this crate.

use std::{
    io,
    path::{Path, PathBuf},
};

use models::Architecture;

use crate::weights::Mismatch;

/// Shorthand for a result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with weights, cards and downloads. Messages name the file, the cause and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened, read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// `read`, `write`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file does not have the format it was read as.
    #[error("{} is not readable as {kind}: {cause}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it was read as.
        kind: &'static str,
        /// What is wrong.
        cause: String,
    },
    /// A file is something else than weights.
    #[error("{} has no weights that Hearth reads: it is {what}; {remedy}", path.display())]
    NotWeights {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The network of a file is quantized, where its weights in f32 are needed.
    #[error(
        "the network of {} is quantized: it classifies, and nothing can be trained, explained by gradients or converted \
         from its int8 weights; give the file that it was quantized from",
        path.display()
    )]
    IsQuantized {
        /// The file.
        path: PathBuf,
    },
    /// A file has several networks, or none with the requested key.
    #[error("{}", ambiguous(path, asked.as_deref(), keys))]
    Ambiguous {
        /// The file.
        path: PathBuf,
        /// The requested key.
        asked: Option<String>,
        /// The keys of the networks.
        keys: Vec<String>,
    },
    /// A network does not have the single output that a sigmoid is applied to.
    #[error(
        "--activation sigmoid is for a network with one output; {} has {outputs}: omit it",
        path.display()
    )]
    NotOneOutput {
        /// The file.
        path: PathBuf,
        /// The number of outputs.
        outputs: usize,
    },
    /// A file's tensors do not match the network's.
    #[error("{} does not hold the weights of {architecture}:\n{mismatch}", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// The network.
        architecture: Architecture,
        /// The table of differences.
        mismatch: Box<Mismatch>,
    },
    /// A file without a card was given without an architecture.
    #[error(
        "{} carries no model card, so its architecture is not known: name it with --arch (for instance --arch resnet50)",
        path.display()
    )]
    NoCard {
        /// The file.
        path: PathBuf,
    },
    /// A card is not well-formed or contradicts itself.
    #[error("the model card of {} is not valid: {cause}", path.display())]
    Card {
        /// The file that contains the card.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// Changes of a card's preprocessing are not possible.
    #[error("the preprocessing is not possible: {0}")]
    Override(String),
    /// The preprocessing of a card cannot be applied.
    #[error("the model card's preprocessing is not supported")]
    Preprocess(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// There is no file or folder of that path.
    #[error("cannot read {path}: no such file or folder{}", what_is_meant(path))]
    NotFound {
        /// The path as it was given.
        path: String,
    },
    /// A folder without weights was given.
    #[error("{}", not_a_run(folder, run.as_deref()))]
    NotARun {
        /// The folder.
        folder: PathBuf,
        /// A run or a file of weights in that folder, if there is one.
        run: Option<PathBuf>,
    },
    /// A name is neither a path nor that of published weights.
    #[error("--weights {name}: no file or run folder has this path (`infer models` lists published names)")]
    UnknownWeights {
        /// The name.
        name: String,
        /// [`Error::UnknownName`].
        source: Box<Error>,
    },
    /// The requested architecture is not that of the weights' card.
    #[error(
        "--arch {asked} contradicts the model card of {}, which is for {card}; omit --arch, or choose other weights",
        path.display()
    )]
    OtherArchitecture {
        /// The requested architecture.
        asked: Architecture,
        /// The architecture of the card.
        card: Architecture,
        /// The file of weights.
        path: PathBuf,
    },
    /// The given card is for another architecture than the file's own card.
    #[error("--card {} is for {given}, but {} has a model card for {own}", card.display(), path.display())]
    OtherCard {
        /// The file of the given card.
        card: PathBuf,
        /// Its architecture.
        given: Architecture,
        /// The file of weights.
        path: PathBuf,
        /// The architecture of that file's card.
        own: Architecture,
    },
    /// A card has another number of classes than the weights' last layer.
    #[error(
        "the model card of {} contradicts its weights: it has {card} classes, the last layer has {layer}{}",
        path.display(),
        if (*card, *layer) == (2, 1) { " (--activation sigmoid reads one output as two classes)" } else { "" }
    )]
    OtherClasses {
        /// The file of weights.
        path: PathBuf,
        /// The number of classes of the card.
        card: usize,
        /// The number of outputs of the last layer.
        layer: usize,
    },
    /// Published weights whose classifier was not trained.
    #[error("{name} has no trained classifier, only features: it can be fine-tuned, but cannot classify")]
    FeaturesOnly {
        /// The name of the weights.
        name: String,
    },
    /// No published weights have that name.
    #[error("no published weights are called '{name}'; did you mean {}?", .nearest.join(" or "))]
    UnknownName {
        /// What was asked for.
        name: String,
        /// The most similar names.
        nearest: Vec<String>,
    },
    /// Neither `XDG_CACHE_HOME` nor `HOME` names a parent of a cache folder.
    #[error("no folder to keep weights in: set XDG_CACHE_HOME or HOME, or give one with --cache-dir")]
    NoCacheFolder,
    /// The file is not in the cache folder and downloads are off.
    #[error("{} is not there and downloads are off (--offline): fetch {url} and put it there", path.display())]
    Offline {
        /// Where the file is looked for.
        path: PathBuf,
        /// Where it is published.
        url: String,
    },
    /// The server did not answer with the file.
    #[error("{url}: the server answered {status}; {}", status_advice(*status))]
    Status {
        /// The requested URL.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The network failed repeatedly.
    #[error("cannot download {url}: {cause}; {} MiB are kept in {}, run the same command to resume", done / 1048576, part.display())]
    Network {
        /// The requested URL.
        url: String,
        /// The cause of the last failure.
        cause: String,
        /// How many bytes are on disk.
        done: u64,
        /// The unfinished file.
        part: PathBuf,
    },
    /// A downloaded or cached file is not the published one.
    #[error("{origin} is not the published file: expected {expected}, got {got}; {advice}")]
    WrongFile {
        /// The URL or path.
        origin: String,
        /// The published checksum and size.
        expected: String,
        /// The checksum and size that were found.
        got: String,
        /// The remedy.
        advice: &'static str,
    },
    /// A proxy variable contains no proxy.
    #[error("the environment variable {variable} holds no proxy URL like http://host:8080: '{value}'")]
    Proxy {
        /// The variable.
        variable: String,
        /// Its value.
        value: String,
    },
    /// The cache folder cannot be read or written.
    #[error("cannot {action} {}: {source}{}", path.display(), cache_advice(source))]
    Cache {
        /// `read`, `write`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// What a path that is not there may be, after a semicolon.
fn what_is_meant(path: &str) -> String {
    let hint = match hub_id(path) {
        Some(id) => Some(format!(
            "models of the Hugging Face hub are not downloaded: `hf download {id} --local-dir DIR`, then give \
             DIR/model.safetensors"
        )),
        None => runtime::missing::hint(path),
    };
    hint.map_or_else(String::new, |hint| format!("; {hint}"))
}

/// The `OWNER/NAME` of a model on the Hugging Face hub, if it is no path into a folder that is there.
fn hub_id(path: &str) -> Option<&str> {
    let (id, is_url) = match path.strip_prefix("hf://") {
        Some(id) => (id, true),
        None => (path, false),
    };
    let (owner, name) = id.split_once('/')?;
    let is_name = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let is_file = [".pth", ".pt", ".th", ".bin", ".safetensors", ".bpk", ".caffemodel", ".tar"]
        .iter()
        .any(|end| name.ends_with(end));
    (is_name(owner) && is_name(name) && (is_url || (!is_file && !Path::new(owner).is_dir()))).then_some(id)
}

fn not_a_run(folder: &Path, run: Option<&Path>) -> String {
    let shown = folder.display();
    match run {
        Some(run) => {
            format!("{shown} is not a run folder; did you mean --weights {}?", run.display())
        }
        None => format!(
            "{shown} is not a run folder: it has no {}; give the folder that `train` printed, or a weight file",
            crate::RUN_WEIGHTS
        ),
    }
}

fn ambiguous(path: &Path, asked: Option<&str>, keys: &[String]) -> String {
    let shown = path.display();
    let listed = keys.join(", ");
    match (asked, keys) {
        (Some(asked), []) => format!("--weights-key {asked}: {shown} has no network of this architecture"),
        (Some(asked), _) => format!("--weights-key {asked} names no single network of {shown}, which has: {listed}"),
        (None, _) => format!(
            "{shown} has several networks: {listed}; select one with --weights-key (for instance --weights-key {})",
            keys.first().map_or("", String::as_str)
        ),
    }
}

fn status_advice(status: u16) -> &'static str {
    match status {
        404 | 410 => "it is no longer published there, or the mirror does not have it",
        401 | 403 | 407 => "access is refused: is a proxy or mirror in between?",
        _ => "try again later, or use a mirror",
    }
}

fn cache_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; make room or choose another disk with --cache-dir, then run the same command to resume"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; choose another folder with --cache-dir"
        }
        _ => "",
    }
}

/// A shorthand for `map_err`.
pub(crate) fn cache_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_path_buf();
    move |source| Error::Cache { action, path, source }
}
