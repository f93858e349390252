//! Checkpoints: all that a run needs to go on as if it had never stopped.
//!
//! A checkpoint is a folder `step-00001234` of Burn's records and a JSON of everything else, with a manifest of lengths
//! and checksums. It is written under another name, synced and renamed, so that a crash leaves the old ones whole; one
//! that is damaged anyway is recognised by its manifest, and the one before it is taken.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use burn::{store::ModuleRecord, tensor::Bytes};
use runtime::files::sync_folder;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, progress::State, trainer::optimizer};

const MANIFEST: &str = "manifest.json";
const STATE: &str = "state.json";
const NETWORK: &str = "network.bpk";
const AVERAGE: &str = "average.bpk";
const OPTIMIZER: &str = "optimizer.bpk";

/// What a checkpoint holds.
pub struct Checkpoint {
    pub state: State,
    /// The raw weights and running statistics.
    pub network: ModuleRecord,
    /// Their moving average.
    pub average: Option<ModuleRecord>,
    pub optimizer: optimizer::Record,
}

/// A checkpoint as bytes, to be sent: state, network, optimizer, average.
pub struct Parted([Vec<u8>; 4]);

impl Checkpoint {
    pub fn into_parts(self) -> Result<Parted> {
        let average = self.average.map(ModuleRecord::into_bytes).transpose().map_err(unsent)?;
        Ok(Parted([
            serde_json::to_vec(&self.state).map_err(unsent)?,
            self.network.into_bytes().map_err(unsent)?.to_vec(),
            self.optimizer.into_bytes().map_err(unsent)?.to_vec(),
            average.map_or(Vec::new(), |bytes| bytes.to_vec()),
        ]))
    }

    pub fn from_parts(Parted([state, network, optimizer, average]): Parted) -> Result<Self> {
        let module = |bytes: Vec<u8>| ModuleRecord::from_bytes(Bytes::from_bytes_vec(bytes)).map_err(unsent);
        Ok(Self {
            state: serde_json::from_slice(&state).map_err(unsent)?,
            network: module(network)?,
            average: (!average.is_empty()).then(|| module(average)).transpose()?,
            optimizer: optimizer::Record::from_bytes(Bytes::from_bytes_vec(optimizer)).map_err(unsent)?,
        })
    }
}

fn unsent(cause: impl fmt::Display) -> Error {
    Error::Message(format!("a checkpoint cannot be passed on: {cause}"))
}

impl Parted {
    /// One message of what there is, each part after its length; nothing for none.
    pub fn to_bytes(parts: &Option<Self>) -> Vec<u8> {
        let parts = parts.iter().flat_map(|parts| &parts.0);
        parts.flat_map(|part| (part.len() as u64).to_le_bytes().into_iter().chain(part.iter().copied())).collect()
    }

    pub fn from_bytes(bytes: Vec<u8>) -> Result<Option<Self>> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let mut rest = &bytes[..];
        let mut part = || {
            let (len, after) = rest.split_first_chunk::<8>()?;
            let (part, after) = after.split_at_checked(u64::from_le_bytes(*len) as usize)?;
            rest = after;
            Some(part.to_vec())
        };
        let parts = [part(), part(), part(), part()].map(|part| part.ok_or_else(|| unsent("it came in pieces")));
        let [state, network, optimizer, average] = parts;
        Ok(Some(Self([state?, network?, optimizer?, average?])))
    }
}

/// The checkpoints of a run.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    files: BTreeMap<String, Sum>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sum {
    bytes: u64,
    crc32: u32,
}

impl Sum {
    fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, crc32: crc32fast::hash(bytes) }
    }
}

impl Store {
    /// The checkpoints in a run's folder.
    pub fn new(run: &Path) -> Self {
        Self { folder: run.join("checkpoints") }
    }

    /// Writes a checkpoint, whole or not at all, and then drops all but the last `keep`.
    pub fn save(&self, checkpoint: Checkpoint, keep: usize) -> Result<PathBuf> {
        let step = checkpoint.state.step;
        let path = self.folder.join(format!("step-{step:08}"));
        let partial = self.folder.join(format!(".step-{step:08}.part"));
        let written = self.write(checkpoint, &partial, &path);
        if written.is_err() {
            // On a full disk every byte counts.
            let _ = fs::remove_dir_all(&partial);
        }
        written.map_err(Error::io("write the checkpoint", &path))?;
        let steps = self.steps()?;
        for &old in steps.iter().take(steps.len().saturating_sub(keep)) {
            let old = self.folder.join(format!("step-{old:08}"));
            fs::remove_dir_all(&old).map_err(Error::io("remove the old checkpoint", &old))?;
        }
        Ok(path)
    }

    fn write(&self, checkpoint: Checkpoint, partial: &Path, path: &Path) -> io::Result<()> {
        match fs::remove_dir_all(partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(partial)?,
        }
        let mut manifest = Manifest { files: BTreeMap::new() };
        let mut put = |name: &str, bytes: &[u8]| {
            manifest.files.insert(name.to_string(), Sum::of(bytes));
            write_synced(&partial.join(name), bytes)
        };
        put(STATE, &serde_json::to_vec_pretty(&checkpoint.state)?)?;
        put(NETWORK, &checkpoint.network.into_bytes().map_err(io::Error::other)?)?;
        put(OPTIMIZER, &checkpoint.optimizer.into_bytes().map_err(io::Error::other)?)?;
        if let Some(average) = checkpoint.average {
            put(AVERAGE, &average.into_bytes().map_err(io::Error::other)?)?;
        }
        write_synced(&partial.join(MANIFEST), &serde_json::to_vec_pretty(&manifest)?)?;
        sync_folder(partial)?;
        // The same step again: a run that was resumed and comes by once more.
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
        fs::rename(partial, path)?;
        sync_folder(&self.folder)
    }

    /// Whether a checkpoint is there.
    pub fn has_any(&self) -> bool {
        self.steps().is_ok_and(|steps| !steps.is_empty())
    }

    /// The steps of the checkpoints that are there, ascending.
    fn steps(&self) -> Result<Vec<u64>> {
        let failed = |error| Error::io("list the checkpoints in", &self.folder)(error);
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut steps = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            steps.extend(name.to_str().and_then(|name| name.strip_prefix("step-")?.parse::<u64>().ok()));
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// The last checkpoint that is whole, with a warning for each later one that is not; `None` where there is none.
    pub fn load(&self) -> Result<(Option<Checkpoint>, Vec<String>)> {
        let mut warnings = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            let path = self.folder.join(format!("step-{step:08}"));
            match read(&path) {
                Ok(checkpoint) => return Ok((Some(checkpoint), warnings)),
                Err(cause) => warnings
                    .push(format!("the checkpoint {} is damaged ({cause}); taking the one before it", path.display())),
            }
        }
        Ok((None, warnings))
    }
}

/// Reads a checkpoint, or returns what is damaged.
fn read(path: &Path) -> Result<Checkpoint, String> {
    let file = |name: &str| fs::read(path.join(name)).map_err(|error| format!("cannot read {name}: {error}"));
    let manifest: Manifest = serde_json::from_slice(&file(MANIFEST)?).map_err(invalid(MANIFEST))?;
    let get = |name: &str| {
        let Some(sum) = manifest.files.get(name) else { return Ok(None) };
        let bytes = file(name)?;
        if *sum == Sum::of(&bytes) { Ok(Some(bytes)) } else { Err(format!("{name} is not as it was written")) }
    };
    let need = |name: &str| get(name)?.ok_or_else(|| format!("{name} is missing from the manifest"));
    let module = |name, bytes: Vec<u8>| ModuleRecord::from_bytes(Bytes::from_bytes_vec(bytes)).map_err(invalid(name));
    let optimizer = optimizer::Record::from_bytes(Bytes::from_bytes_vec(need(OPTIMIZER)?));
    Ok(Checkpoint {
        state: serde_json::from_slice(&need(STATE)?).map_err(invalid(STATE))?,
        network: module(NETWORK, need(NETWORK)?)?,
        average: get(AVERAGE)?.map(|bytes| module(AVERAGE, bytes)).transpose()?,
        optimizer: optimizer.map_err(invalid(OPTIMIZER))?,
    })
}

fn invalid<E: fmt::Display>(name: &'static str) -> impl FnOnce(E) -> String {
    move |error| format!("{name} is not valid: {error}")
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use burn::{module::Module, tensor::Device};
    use kernels::KernelMode;
    use models::{Architecture, NetworkConfig};

    use super::*;
    use crate::recipe::{Overrides, load};

    fn checkpoint(step: u64) -> Checkpoint {
        let network = NetworkConfig::new(Architecture::ResNet20).with_num_classes(2).init(&Device::flex().autodiff());
        let recipe = load("digits", &Overrides::default()).unwrap();
        let optimizer = optimizer::Optimizer::new(&recipe.optimizer, &network, 0, KernelMode::default()).record();
        let state = State { step, ..State::default() };
        Checkpoint { state, network: network.clone().into_record(), average: Some(network.into_record()), optimizer }
    }

    #[test]
    fn the_last_ones_stay_and_the_latest_comes_back() {
        let run = tempfile::tempdir().unwrap();
        let store = Store::new(run.path());
        assert!(store.load().unwrap().0.is_none());
        for step in [3, 7, 12] {
            store.save(checkpoint(step), 2).unwrap();
        }
        assert_eq!(store.steps().unwrap(), [7, 12]);
        let (latest, warnings) = store.load().unwrap();
        let latest = latest.unwrap();
        assert_eq!((latest.state.step, latest.average.is_some(), warnings.len()), (12, true, 0));
    }

    #[test]
    fn a_damaged_checkpoint_is_recognised_and_the_one_before_it_taken() {
        let run = tempfile::tempdir().unwrap();
        let store = Store::new(run.path());
        store.save(checkpoint(1), 9).unwrap();
        type Damage = fn(&Path);
        let damages: [Damage; 5] = [
            |path| fs::write(path.join(MANIFEST), "{").unwrap(),
            |path| fs::remove_file(path.join(NETWORK)).unwrap(),
            |path| {
                let mut bytes = fs::read(path.join(OPTIMIZER)).unwrap();
                bytes[10] ^= 1;
                fs::write(path.join(OPTIMIZER), bytes).unwrap();
            },
            |path| {
                let bytes = fs::read(path.join(AVERAGE)).unwrap();
                fs::write(path.join(AVERAGE), &bytes[..bytes.len() / 2]).unwrap();
            },
            |path| fs::write(path.join(STATE), "{}").unwrap(),
        ];
        for damage in damages {
            damage(&store.save(checkpoint(2), 9).unwrap());
            let (found, warnings) = store.load().unwrap();
            assert_eq!(found.unwrap().state.step, 1);
            assert!(warnings.len() == 1 && warnings[0].contains("step-00000002 is damaged"), "{warnings:?}");
        }
    }

    #[test]
    fn what_was_left_half_written_is_no_checkpoint() {
        let run = tempfile::tempdir().unwrap();
        let store = Store::new(run.path());
        store.save(checkpoint(1), 9).unwrap();
        fs::create_dir(run.path().join("checkpoints/.step-00000005.part")).unwrap();
        assert_eq!(store.load().unwrap().0.unwrap().state.step, 1);
        store.save(checkpoint(5), 9).unwrap();
        assert_eq!(store.steps().unwrap(), [1, 5]);
    }
}
