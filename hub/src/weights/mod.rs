//! Weights in and out: PyTorch's files, safetensors and Burn's records.
//!
//! | kind | read | written |
//! |---|---|---|
//! | `.pth`, `.pt`, `.th`, `.bin`: zip, legacy pickle and tar; nested dictionaries, whole models and TorchScript's archives (their weights); nothing from a pickle is executed | yes | |
//! | `.safetensors`, torchvision's names and layouts, or Caffe's layer names (BVLC GoogLeNet) | yes | yes |
//! | `.bpk`, Burn's records | yes | yes |
//! | `.caffemodel`, as BVLC published GoogLeNet | yes | |
//!
//! The kind is recognized from a file's content, not its name. Shards, as `save_pretrained` of transformers writes large
//! models, are read as one file. Stored f16, bf16 and f64 values become f32. A file that
//! Hearth writes carries its [`Card`] inside.
//!
//! Files are not trusted: each number that one declares is checked against what it can hold before memory is taken
//! (`limits`), and files are read, not mapped into memory.

mod caffe;
mod caffe_names;
mod kind;
mod limits;
mod mismatch;
mod names;
mod pickle;
mod pytorch;
mod quantized;
mod safetensors;
mod shards;
mod zip;

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use burn::tensor::{Bytes, DType, Device, TensorData};
use burn_store::{
    BurnToPyTorchAdapter, BurnpackStore, ChainAdapter, FloatCastAdapter, ModuleSnapshot, ModuleStore,
    PyTorchToBurnAdapter, SafetensorsStore, bridge,
    burn_pack::{self, Tensor as PackTensor},
};

pub use limits::MAX_CLASSES;
pub use mismatch::{Difference, Mismatch, WrongShape};
pub use quantized::save_quantized;

use models::{Architecture, Entry, ImageClassifier, Network, NetworkConfig};

use crate::{Card, Error, Result, files};

/// The key of the card in a file's metadata.
const CARD: &str = "hearth.card";

/// A file of weights, opened: names and shapes are known, values are read when they are needed.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    tensors: BTreeMap<String, PackTensor>,
    /// Names and layouts are Burn's rather than PyTorch's.
    burn_record: bool,
    card: Option<Card>,
    /// Which network of the file, where it has several.
    key: Option<String>,
    /// The program of a quantized network as JSON, and how it was found.
    program: Option<String>,
    record: Option<String>,
}

/// How strictly a file must match a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strictness {
    /// Every tensor of the network, and no other.
    #[default]
    Exact,
    /// As `Exact`, but the last linear layer (of auxiliary classifiers too) keeps its fresh weights: for new classes.
    FreshHead,
    /// What fits is loaded; the rest is reported and left as it is.
    Partial,
}

/// What a load did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// How many of the network's tensors came from the file.
    pub loaded: usize,
    /// What did not match; empty unless a [`Strictness`] other than `Exact` allowed it.
    pub mismatch: Mismatch,
}

/// Whether a tensor is one that PyTorch's optimizers keep for each parameter: `state.0.exp_avg`.
fn is_optimizer_state(key: &str) -> bool {
    let (before, name) = key.rsplit_once('.').unwrap_or(("", key));
    let of_parameter = before.rsplit('.').next().is_some_and(|number| number.parse::<u32>().is_ok());
    const STATE: [&str; 8] =
        ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "sum"];
    of_parameter && STATE.contains(&name)
}

impl Weights {
    /// Opens a file of any kind this module reads. An index of shards (`model.safetensors.index.json`), or one of them
    /// (`model-00001-of-00003.safetensors`), stands for all of them.
    ///
    /// # Errors
    /// Where the file can't be read, has no weights ([`Error::NotWeights`]), or is damaged, or where a shard is missing.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let Some(parts) = shards::of(path)? else { return Self::read(path)?.normalized() };
        let mut whole: Option<Self> = None;
        for part in parts {
            let part = Self::read(&part)?;
            match &mut whole {
                Some(whole) => {
                    if let Some(twice) = part.tensors.keys().find(|key| whole.tensors.contains_key(*key)) {
                        return Err(Error::Format {
                            path: part.path,
                            kind: "weights in several files",
                            cause: format!("the tensor `{}` is in another of the files too", printable(twice)),
                        });
                    }
                    whole.tensors.extend(part.tensors);
                }
                None => whole = Some(Self { path: path.to_path_buf(), ..part }),
            }
        }
        whole
            .ok_or_else(|| Error::Format {
                path: path.to_path_buf(),
                kind: "an index of shards",
                cause: "it names no files".to_string(),
            })?
            .normalized()
    }

    /// Opens one file. Its names are as they are stored.
    fn read(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { action: "read", path: path.to_path_buf(), source };
        let metadata = std::fs::metadata(path).map_err(io)?;
        if metadata.is_dir() {
            return Err(io(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        if !metadata.is_file() {
            // Opening a pipe waits for its other end.
            return Err(io(io::Error::other("it is a pipe or a device; write its content to a file first")));
        }
        let mut head = Vec::new();
        File::open(path).map_err(io)?.take(kind::HEAD as u64).read_to_end(&mut head).map_err(io)?;
        let len = metadata.len();
        let is_safetensors = safetensors::is_safetensors(&head, len);
        if !is_safetensors && let Some(kind::Kind { what, remedy }) = kind::of(path, &head, len) {
            return Err(Error::NotWeights { path: path.to_path_buf(), what, remedy });
        }
        let format = |kind| move |cause| Error::Format { path: path.to_path_buf(), kind, cause };
        let (tensors, metadata, burn_record) = if is_safetensors {
            let (tensors, metadata) = safetensors::read(path).map_err(format("safetensors"))?;
            (tensors, metadata, false)
        } else if head.starts_with(&burn_pack::MAGIC_NUMBER.to_le_bytes()) {
            let (tensors, metadata) = read_burnpack(path, len).map_err(format("a Burn record"))?;
            (tensors, metadata, true)
        } else if caffe::is_caffemodel(&head) {
            (read_caffe(path)?, HashMap::new(), false)
        } else {
            let kind = "a PyTorch file, safetensors or Burn record";
            (pytorch::read(path, &head).map_err(format(kind))?, HashMap::new(), false)
        };
        limits::check_tensors(tensors.values(), limits::expanded(len)).map_err(format("a file of weights"))?;
        let card = metadata.get(CARD).map(|json| Card::from_json(json, path)).transpose()?;
        let [program, record] = [quantized::PROGRAM, quantized::RECORD].map(|key| metadata.get(key).cloned());
        Ok(Self { path: path.to_path_buf(), tensors, burn_record, card, key: None, program, record })
    }

    /// Brings names into torchvision's form and removes counters.
    fn normalized(mut self) -> Result<Self> {
        let is_counter = |key: &str| {
            let name = key.rsplit('.').next().unwrap_or(key);
            matches!(name, "num_batches_tracked" | "n_averaged")
        };
        self.tensors.retain(|key, _| !is_counter(key));
        if self.tensors.is_empty() {
            return Err(self.unreadable("it holds no tensors".to_string()));
        }
        if self.tensors.keys().all(|key| is_optimizer_state(key)) {
            return Err(Error::NotWeights {
                path: self.path,
                what: "the state of an optimizer",
                remedy: "give the file of the network's weights, which is usually beside it",
            });
        }
        // A quantized network's names are those of its program.
        if !self.burn_record && self.program.is_none() {
            self.tensors = names::normalize(caffe_names::to_torchvision(self.tensors));
        }
        Ok(self)
    }

    /// Selects one of several networks of the file by its key, such as `state_dict_ema` or `encoder_q`.
    #[must_use]
    pub fn with_key(mut self, key: Option<String>) -> Self {
        self.key = key;
        self
    }

    /// Weights held in memory under PyTorch's names and shapes, for instance drawn by a formula. `origin` stands for
    /// the file in messages.
    pub fn from_tensors(origin: impl AsRef<Path>, tensors: impl IntoIterator<Item = (String, TensorData)>) -> Self {
        let pack = |(key, data): (String, TensorData)| (key.clone(), bridge::from_data(data, key, None));
        let tensors = tensors.into_iter().map(pack).collect();
        let tensors = names::normalize(tensors);
        let path = origin.as_ref().to_path_buf();
        Self { path, tensors, burn_record: false, card: None, key: None, program: None, record: None }
    }

    /// The card that the file carries.
    pub fn card(&self) -> Option<&Card> {
        self.card.as_ref()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the names and shapes of the tensors, sorted by name.
    pub fn shapes(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shape.to_vec()))
    }

    /// Reads the values of a tensor, row by row; None where there is no tensor of that name.
    ///
    /// # Errors
    /// [`Error::Format`] where the file is damaged or the values are no numbers.
    pub fn values(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(tensor) = self.tensors.get(name) else { return Ok(None) };
        let data = bridge::to_data(tensor).map_err(|error| self.unreadable(error.to_string()))?;
        let values = data.convert::<f32>().try_into_vec();
        values.map(Some).map_err(|error| self.unreadable(format!("{}: {error:?}", printable(name))))
    }

    /// The configuration of `architecture` that these weights fit: as many classes as the file's last layer, auxiliary
    /// classifiers if the file has them. Where the file tells nothing, or its last layer is of another network, the
    /// architecture's own.
    ///
    /// # Errors
    /// [`Error::Ambiguous`] where the file has several networks, and [`Error::Format`] where its last layer has no
    /// outputs, or more than [`MAX_CLASSES`].
    pub fn config(&self, architecture: Architecture, device: &Device) -> Result<NetworkConfig> {
        let config = NetworkConfig::new(architecture);
        let entries = config.init(device).entries();
        let keyed = self.keyed(&entries, architecture)?;
        let aux = architecture.has_aux() && keyed.keys().any(|key| is_aux(key, architecture));
        let key = format!("{}.weight", architecture.variant().head_key);
        let inputs = entries.iter().find(|entry| entry.key == key).and_then(|entry| entry.shape.get(1).copied());
        let mut classes = architecture.default_classes();
        if let Some(tensor) = keyed.get(&key) {
            if tensor.shape.contains(&0) {
                let cause = format!("its last layer has no outputs: {key} has the shape {:?}", tensor.shape);
                return Err(self.unreadable(cause));
            }
            if let [outputs, width] = tensor.shape[..]
                && Some(width) == inputs
            {
                if outputs > MAX_CLASSES {
                    let cause = format!("its last layer has {outputs} outputs; at most {MAX_CLASSES} are supported");
                    return Err(self.unreadable(cause));
                }
                classes = outputs;
            }
        }
        Ok(config.with_num_classes(classes).with_aux_logits(aux))
    }

    /// Whether the file has a last layer for `architecture`, under any name that is recognized.
    ///
    /// # Errors
    /// [`Error::Ambiguous`] where the file has several networks.
    pub fn has_head(&self, architecture: Architecture, device: &Device) -> Result<bool> {
        let entries = NetworkConfig::new(architecture).init(device).entries();
        let key = format!("{}.weight", architecture.variant().head_key);
        Ok(self.keyed(&entries, architecture)?.contains_key(&key))
    }

    /// Whether the batch normalizations of `architecture` are folded into its convolutions in this file: it has biases
    /// where the network has norms, as [`Network::fold_batch_norm`] leaves them.
    pub fn is_folded(&self, architecture: Architecture, device: &Device) -> bool {
        let entries = NetworkConfig::new(architecture).with_aux_logits(false).init(device).entries();
        let has_bias =
            |key: &str| key.strip_suffix("weight").is_some_and(|of| self.tensors.contains_key(&format!("{of}bias")));
        let mut tensors = self.tensors.iter();
        entries.iter().any(Entry::is_statistic)
            && tensors.clone().any(|(key, tensor)| tensor.shape.len() == 4 && has_bias(key))
            && !tensors.any(|(key, _)| key.ends_with("running_mean"))
    }

    /// Finds the network in the file.
    fn choice(&self, entries: &[Entry], architecture: Architecture) -> Result<names::Choice> {
        names::choose(&self.tensors, entries, architecture, self.key.as_deref()).map_err(|ambiguity| Error::Ambiguous {
            path: self.path.clone(),
            asked: ambiguity.asked,
            keys: ambiguity.keys,
        })
    }

    /// Checks that the file has one network, or the one that was [selected](Self::with_key), and logs what was assumed.
    pub(crate) fn announce(&self, architecture: Architecture, device: &Device) -> Result<()> {
        if self.burn_record || self.is_quantized() {
            return Ok(());
        }
        let choice = self.choice(&NetworkConfig::new(architecture).init(device).entries(), architecture)?;
        if let Some(note) = choice.note {
            log::warn!("{}: {note}", self.path.display());
        }
        if let Some(head) = choice.head {
            let head = printable(head.trim_end_matches('.'));
            log::info!("{}: `{head}` is read as the last layer", self.path.display());
        }
        Ok(())
    }

    /// The tensors by the network's keys, with PyTorch's shapes: prefixes (`state_dict.`, `module.`) are gone and
    /// Burn's names are translated.
    fn keyed(&self, entries: &[Entry], architecture: Architecture) -> Result<BTreeMap<String, Keyed<'_>>> {
        if self.burn_record {
            let by_path: HashMap<&str, &Entry> = entries.iter().map(|entry| (entry.path.as_str(), entry)).collect();
            let key = |(path, tensor): (&String, _)| match by_path.get(path.as_str()) {
                Some(entry) => (entry.key.clone(), Keyed::new(tensor, entry.is_linear)),
                None => (path.clone(), Keyed::new(tensor, false)),
            };
            return Ok(self.tensors.iter().map(|(path, tensor)| key((path, tensor))).collect());
        }
        Ok(names::keyed(&self.tensors, &self.choice(entries, architecture)?, architecture))
    }

    /// The architectures that the file fits, its last layer aside.
    fn fitting(&self, device: &Device) -> Vec<Architecture> {
        let fits = |architecture: &Architecture| {
            let mut entries = NetworkConfig::new(*architecture).init(device).entries();
            entries.retain(|entry| !is_aux(&entry.key, *architecture));
            let Ok(mut keyed) = self.keyed(&entries, *architecture) else { return false };
            keyed.retain(|key, _| !is_aux(key, *architecture));
            let mut mismatch = Mismatch::between(&entries, &keyed, *architecture);
            mismatch.ignore_head(&entries, *architecture);
            mismatch.is_empty()
        };
        Architecture::ALL.iter().copied().filter(fits).collect()
    }

    /// Puts the file's values into `network`, whose parameters become f32.
    ///
    /// Auxiliary classifiers serve training alone. A network that was built without them
    /// ([`NetworkConfig::aux_logits`]) leaves those of the file unread, whatever the strictness. So are tensors outside
    /// of the network's part of a checkpoint, such as an optimizer's; no other is ever passed over in silence.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the whole table where the tensors are not the network's and `strictness` does not
    /// allow the difference; [`Error::Ambiguous`] where the file has several networks. The network is only changed once
    /// everything fits.
    pub fn load(
        &self,
        network: Network,
        architecture: Architecture,
        strictness: Strictness,
    ) -> Result<(Network, Loaded)> {
        let entries = network.entries();
        let mut keyed = self.keyed(&entries, architecture)?;
        if architecture.has_aux() && !entries.iter().any(|entry| is_aux(&entry.key, architecture)) {
            keyed.retain(|key, _| !is_aux(key, architecture));
        }
        let mut mismatch = Mismatch::between(&entries, &keyed, architecture);
        if strictness == Strictness::FreshHead {
            let unused = mismatch.ignore_head(&entries, architecture);
            if !unused.is_empty() {
                log::info!("{}: not used, since the classifier is new: {}", self.path.display(), unused.join(", "));
            }
        }
        if strictness != Strictness::Partial && !mismatch.is_empty() {
            mismatch.beside = self.beside(&entries, architecture)?;
            let device = network.classifier().weight.device();
            // Of a file that fits but for its last layer, other architectures of the same tensors are no remedy.
            mismatch.fits = self.fitting(&device);
            if mismatch.fits.contains(&architecture) {
                mismatch.fits.clear();
            }
            return Err(Error::Mismatch { path: self.path.clone(), architecture, mismatch: Box::new(mismatch) });
        }

        let fits = |entry: &Entry| {
            let head = strictness == Strictness::FreshHead && is_head(&entry.key, architecture);
            !head && keyed.get(&entry.key).is_some_and(|tensor| tensor.shape == entry.shape)
        };
        let wanted: Vec<PackTensor> = entries
            .iter()
            .filter(|entry| fits(entry))
            .map(|entry| {
                let mut tensor = keyed[&entry.key].tensor.clone();
                tensor.name = if self.burn_record { entry.path.clone() } else { entry.key.clone() };
                tensor
            })
            .collect();
        let count = wanted.len();
        // Reading first: what can't be read must not leave the network half-loaded.
        for tensor in &wanted {
            if !matches!(tensor.dtype, DType::F32 | DType::F16 | DType::BF16 | DType::F64) {
                return Err(self.unreadable(format!("{} holds {:?} values, not floats", tensor.name, tensor.dtype)));
            }
        }
        let mut network = network;
        let result = if self.burn_record {
            network.apply(wanted, None, Some(Box::new(FloatCastAdapter::to(DType::F32))), false)
        } else {
            let adapter = ChainAdapter::new(PyTorchToBurnAdapter, FloatCastAdapter::to(DType::F32));
            network.apply(wanted, None, Some(Box::new(adapter)), true)
        };
        if let Some(error) = result.errors.first() {
            return Err(self.unreadable(error.to_string()));
        }
        if result.applied.len() != count {
            let cause = format!("only {} of {count} tensors could be applied", result.applied.len());
            return Err(self.unreadable(cause));
        }
        log::debug!("{}: {count} tensors loaded", self.path.display());
        Ok((network, Loaded { loaded: count, mismatch }))
    }

    /// The layers beside the network in the file: the classifier of one that has the network behind a prefix.
    fn beside(&self, entries: &[Entry], architecture: Architecture) -> Result<Vec<(String, Vec<usize>)>> {
        if self.burn_record {
            return Ok(Vec::new());
        }
        let choice = self.choice(entries, architecture)?;
        let others = choice.others(&self.tensors, |_| true);
        Ok(others.map(|(key, tensor)| (key.clone(), tensor.shape.to_vec())).collect())
    }

    fn unreadable(&self, cause: String) -> Error {
        Error::Format { path: self.path.clone(), kind: "a file of weights", cause }
    }
}

/// A tensor with the shape PyTorch would give it.
#[derive(Debug)]
struct Keyed<'a> {
    tensor: &'a PackTensor,
    shape: Vec<usize>,
}

impl<'a> Keyed<'a> {
    fn new(tensor: &'a PackTensor, transposed: bool) -> Self {
        let mut shape = tensor.shape.to_vec();
        if transposed {
            shape.reverse();
        }
        Self { tensor, shape }
    }
}

/// A tensor of an auxiliary classifier.
fn is_aux(key: &str, architecture: Architecture) -> bool {
    let (module, _) = key.split_once('.').unwrap_or((key, ""));
    architecture.variant().aux.iter().any(|aux| aux.name == module)
}

/// A tensor of a last linear layer: the network's or an auxiliary classifier's.
fn is_head(key: &str, architecture: Architecture) -> bool {
    let layer = key.rsplit_once('.').map_or(key, |(layer, _)| layer);
    let variant = architecture.variant();
    layer == variant.head_key || variant.aux.iter().any(|aux| aux.head_key == layer)
}

/// Writes a network as safetensors with torchvision's names and layouts and its card inside: PyTorch's
/// `load_state_dict(strict=True)` takes it. Written beside, synced, renamed: the file is whole or not there. The same
/// network and card give the same bytes.
///
/// # Errors
/// [`Error::Io`] where the file can't be written; what was there before stays.
pub fn save(network: &Network, card: &Card, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    files::write_whole(path, |temporary| {
        let mut store = SafetensorsStore::from_file(temporary)
            .overwrite(true)
            .clear_metadata()
            .metadata("format", "pt")
            .metadata(CARD, card.to_json())
            .skip_enum_variants(true)
            .with_to_adapter(BurnToPyTorchAdapter);
        store.collect_from(network).map_err(|error| io::Error::other(error.to_string()))?;
        sort_metadata(temporary)
    })
}

/// Sorts the entries of a safetensors file's `__metadata__` by their keys, in place.
///
/// burn-store and safetensors keep them in hash maps, whose order differs from process to process.
fn sort_metadata(path: &Path) -> io::Result<()> {
    const START: &[u8] = br#"{"__metadata__":"#;
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let mut header = Vec::new();
    (&file).take(u64::from_le_bytes(length)).read_to_end(&mut header)?;
    let unexpected = || io::Error::other("safetensors begin with their metadata");
    let metadata = header.strip_prefix(START).ok_or_else(unexpected)?;
    let mut values = serde_json::Deserializer::from_slice(metadata).into_iter::<BTreeMap<String, String>>();
    let sorted = serde_json::to_vec(&values.next().ok_or_else(unexpected)??)?;
    // The same entries, written by the same library: the tensors stay where they are.
    if sorted.len() != values.byte_offset() {
        return Err(unexpected());
    }
    file.seek(SeekFrom::Start((length.len() + START.len()) as u64))?;
    file.write_all(&sorted)
}

/// Writes a network as Burn's record, which any Burn program loads into the same module, with its card inside. Whole or
/// not there, as with [`save`].
///
/// # Errors
/// [`Error::Io`] where the file can't be written; what was there before stays.
pub fn save_record(network: &Network, card: &Card, path: impl AsRef<Path>) -> Result<()> {
    files::write_whole(path.as_ref(), |temporary| {
        let store = BurnpackStore::from_file(temporary).auto_extension(false).overwrite(true);
        let mut store = store.metadata(CARD, card.to_json());
        store.collect_from(network).map_err(|error| io::Error::other(error.to_string()))
    })
}

fn read_caffe(path: &Path) -> Result<BTreeMap<String, PackTensor>> {
    // Protocol buffers end at 2 GB.
    let bytes = files::read_whole(path, i32::MAX as u64).map_err(|source| Error::Io {
        action: "read",
        path: path.to_path_buf(),
        source,
    })?;
    let blobs = caffe::read(&bytes).map_err(|error| Error::Format {
        path: path.to_path_buf(),
        kind: "a caffemodel",
        cause: error.to_string(),
    })?;
    let pack = |blob: caffe::Blob| {
        let data = TensorData::new(blob.values, blob.shape);
        (blob.name.clone(), bridge::from_data(data, blob.name, None))
    };
    Ok(blobs.into_iter().map(pack).collect())
}

type Tensors = (BTreeMap<String, PackTensor>, HashMap<String, String>);

fn read_burnpack(path: &Path, len: u64) -> std::result::Result<Tensors, String> {
    // The reader takes memory for the size that the header declares.
    let mut header = [0; burn_pack::HEADER_SIZE];
    let short = |_| "it ends within its header: it is only a part of the file".to_string();
    File::open(path).and_then(|mut file| file.read_exact(&mut header)).map_err(short)?;
    let [.., a, b, c, d] = header;
    let declared = u64::from(u32::from_le_bytes([a, b, c, d]));
    if declared > len {
        return Err(format!("its header declares {declared} bytes of {len}: it is only a part of the file"));
    }
    // Held in memory: a view of a file that becomes shorter cannot report an error.
    let bytes = files::read_whole(path, u64::MAX).map_err(|error| error.to_string())?;
    let reader = burn_pack::Reader::from_bytes(Bytes::from_bytes_vec(bytes)).map_err(|error| error.to_string())?;
    let metadata = reader.metadata().clone().into_iter().collect();
    let tensors = reader.into_tensors().map_err(|error| error.to_string())?;
    Ok((tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect(), metadata))
}

/// A name from a file, safe to print: control characters are escaped, and a long one is shortened.
pub(crate) fn printable(text: &str) -> String {
    match text.char_indices().nth(120) {
        Some((end, _)) => format!("{}…", runtime::text::printable(&text[..end])),
        None => runtime::text::printable(text).into_owned(),
    }
}
