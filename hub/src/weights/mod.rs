//! Weights in and out: PyTorch's files, safetensors and Burn's records.
//!
//! | kind | read | written |
//! |---|---|---|
//! | `.pth`, `.pt`, `.th`: zip, legacy pickle and tar; nested dictionaries; nothing from a pickle is executed | yes | |
//! | `.safetensors`, torchvision's names and layouts, or Caffe's layer names (BVLC GoogLeNet) | yes | yes |
//! | `.bpk`, Burn's records | yes | yes |
//! | `.caffemodel`, as BVLC published GoogLeNet | yes | |
//!
//! The kind is told from a file's content, not its name. Stored f16, bf16 and f64 values become f32. What a file
//! writes carries its [`Card`] inside.

mod caffe;
mod caffe_names;
mod mismatch;

use std::{
    collections::{BTreeMap, HashMap},
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use burn::tensor::{DType, Device, TensorData};
use burn_store::{
    BurnToPyTorchAdapter, BurnpackStore, ChainAdapter, FloatCastAdapter, ModuleSnapshot, ModuleStore,
    PyTorchToBurnAdapter, SafetensorsStore, bridge,
    burn_pack::{self, Tensor as PackTensor},
    pytorch_reader::PytorchReader,
};

pub use mismatch::{Difference, Mismatch, WrongShape};

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

impl Weights {
    /// Opens a file of any kind this module reads.
    ///
    /// # Errors
    /// Where the file can't be read, or is none of these kinds, or is damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |source| Error::Io { action: "read", path: path.to_path_buf(), source };
        let mut head = [0; 9];
        let mut file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.is_dir() {
            return Err(io(std::io::Error::from(std::io::ErrorKind::IsADirectory)));
        }
        let got = file.read(&mut head).map_err(io)?;
        let (mut tensors, metadata, burn_record) = match &head[..got] {
            [.., b'{'] if got == 9 => {
                let (tensors, metadata) = read_safetensors(path)?;
                (tensors, metadata, false)
            }
            head if head.starts_with(&burn_pack::MAGIC_NUMBER.to_le_bytes()) => {
                let (tensors, metadata) = read_burnpack(path)?;
                (tensors, metadata, true)
            }
            head if caffe::is_caffemodel(head) => (read_caffe(path)?, HashMap::new(), false),
            _ => (read_pytorch(path)?, HashMap::new(), false),
        };
        tensors.retain(|key, _| !key.ends_with("num_batches_tracked"));
        if tensors.is_empty() {
            let cause = "it holds no tensors".to_string();
            return Err(Error::Format { path: path.to_path_buf(), kind: "a file of weights", cause });
        }
        let card = metadata.get(CARD).map(|json| Card::from_json(json, path)).transpose()?;
        Ok(Self { path: path.to_path_buf(), tensors: caffe_names::to_torchvision(tensors), burn_record, card })
    }

    /// Weights held in memory under PyTorch's names and shapes, for instance drawn by a formula. `origin` stands for
    /// the file in messages.
    pub fn from_tensors(origin: impl AsRef<Path>, tensors: impl IntoIterator<Item = (String, TensorData)>) -> Self {
        let pack = |(key, data): (String, TensorData)| (key.clone(), bridge::from_data(data, key, None));
        let tensors = tensors.into_iter().map(pack).collect();
        Self { path: origin.as_ref().to_path_buf(), tensors, burn_record: false, card: None }
    }

    /// The card that the file carries.
    pub fn card(&self) -> Option<&Card> {
        self.card.as_ref()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration of `architecture` that these weights fit: as many classes as the file's last layer, auxiliary
    /// classifiers if the file has them. Where the file tells nothing, the architecture's own.
    pub fn config(&self, architecture: Architecture, device: &Device) -> NetworkConfig {
        let config = NetworkConfig::new(architecture);
        let network = config.init(device);
        let keyed = self.keyed(&network.entries());
        let head = format!("{}.weight", network.head_key());
        let classes = keyed.get(head.as_str()).and_then(|tensor| tensor.shape.first().copied());
        let aux = architecture.has_aux() && keyed.keys().any(|key| is_aux(key, architecture));
        config.with_num_classes(classes.unwrap_or(architecture.default_classes())).with_aux_logits(aux)
    }

    /// Whether the batch normalisations of `architecture` are folded into its convolutions in this file: it has biases
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

    /// The tensors by the network's keys, with PyTorch's shapes: prefixes (`state_dict.`, `module.`) are gone and
    /// Burn's names are translated.
    fn keyed(&self, entries: &[Entry]) -> BTreeMap<String, Keyed<'_>> {
        if self.burn_record {
            let by_path: HashMap<&str, &Entry> = entries.iter().map(|entry| (entry.path.as_str(), entry)).collect();
            let key = |(path, tensor): (&String, _)| match by_path.get(path.as_str()) {
                Some(entry) => (entry.key.clone(), Keyed::new(tensor, entry.is_linear)),
                None => (path.clone(), Keyed::new(tensor, false)),
            };
            return self.tensors.iter().map(|(path, tensor)| key((path, tensor))).collect();
        }
        let prefix = self.prefix(entries);
        let keyed = self.tensors.iter().filter_map(|(key, tensor)| {
            let key = key.strip_prefix(prefix)?;
            Some((key.to_string(), Keyed::new(tensor, false)))
        });
        keyed.collect()
    }

    /// What stands before the network's keys in the file: the prefix under which most of them are found.
    fn prefix(&self, entries: &[Entry]) -> &str {
        let mut found: BTreeMap<&str, usize> = BTreeMap::new();
        for key in self.tensors.keys() {
            for entry in entries.iter().filter(|entry| key.ends_with(entry.key.as_str())) {
                let prefix = &key[..key.len() - entry.key.len()];
                if prefix.is_empty() || prefix.ends_with('.') {
                    *found.entry(prefix).or_default() += 1;
                }
            }
        }
        // The shortest of the best: maps iterate shortest prefix first, and `max_by_key` would keep the last.
        found.into_iter().rev().max_by_key(|(_, count)| *count).map_or("", |(prefix, _)| prefix)
    }

    /// Puts the file's values into `network`, whose parameters become f32.
    ///
    /// Auxiliary classifiers serve training alone. A network that was built without them
    /// ([`NetworkConfig::aux_logits`]) leaves those of the file unread, whatever the strictness; no other tensor of
    /// the file is ever passed over in silence.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the whole table where the tensors are not the network's and `strictness` does not
    /// allow the difference. The network is only changed once everything fits.
    pub fn load(
        &self,
        network: Network,
        architecture: Architecture,
        strictness: Strictness,
    ) -> Result<(Network, Loaded)> {
        let entries = network.entries();
        let mut keyed = self.keyed(&entries);
        if architecture.has_aux() && !entries.iter().any(|entry| is_aux(&entry.key, architecture)) {
            keyed.retain(|key, _| !is_aux(key, architecture));
        }
        let mut mismatch = Mismatch::between(&entries, &keyed, architecture);
        if strictness == Strictness::FreshHead {
            mismatch.ignore(|key| is_head(key, architecture));
        }
        if strictness != Strictness::Partial && !mismatch.is_empty() {
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

fn read_pytorch(path: &Path) -> Result<BTreeMap<String, PackTensor>> {
    let reader = PytorchReader::new(path).map_err(|error| Error::Format {
        path: path.to_path_buf(),
        kind: "a PyTorch file, safetensors or Burn record",
        cause: error.to_string(),
    })?;
    Ok(reader.into_tensors().into_iter().map(|(key, tensor)| (key, bridge::from_pytorch(tensor))).collect())
}

fn read_caffe(path: &Path) -> Result<BTreeMap<String, PackTensor>> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io { action: "read", path: path.to_path_buf(), source })?;
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

fn read_safetensors(path: &Path) -> Result<Tensors> {
    let format = |cause: String| Error::Format { path: path.to_path_buf(), kind: "safetensors", cause };
    let io = |source| Error::Io { action: "read", path: path.to_path_buf(), source };
    let metadata = safetensors_metadata(path).map_err(io)?;
    let mut store = SafetensorsStore::from_file(path);
    let tensors = store.get_all_tensors().map_err(|error| format(error.to_string()))?;
    Ok((tensors.clone(), metadata))
}

/// The `__metadata__` of a safetensors file; empty where it has none or is damaged, which reading its tensors tells.
fn safetensors_metadata(path: &Path) -> io::Result<HashMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Header {
        #[serde(rename = "__metadata__", default)]
        metadata: HashMap<String, String>,
    }
    let mut file = File::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let (length, size) = (u64::from_le_bytes(length), file.metadata()?.len());
    let mut header = Vec::new();
    file.take(length.min(size)).read_to_end(&mut header)?;
    Ok(serde_json::from_slice::<Header>(&header).map(|header| header.metadata).unwrap_or_default())
}

fn read_burnpack(path: &Path) -> Result<Tensors> {
    let format = |error: burn_pack::Error| Error::Format {
        path: path.to_path_buf(),
        kind: "a Burn record",
        cause: error.to_string(),
    };
    let reader = burn_pack::Reader::from_file_exact(path).map_err(format)?;
    let metadata = reader.metadata().clone().into_iter().collect();
    let tensors = reader.into_tensors().map_err(format)?;
    Ok((tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect(), metadata))
}
