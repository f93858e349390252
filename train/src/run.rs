//! The folder of a run, and what `run.json` says of it.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, bail, ensure};
use runtime::{environment, files::write_atomic_bytes};
use serde::{Deserialize, Serialize};

use crate::evaluation::Score;

/// The file with the effective recipe.
pub const RECIPE: &str = "recipe.toml";

/// A run's folder that this process alone writes to.
#[derive(Debug)]
pub struct RunFolder {
    pub path: PathBuf,
    _lock: Option<File>,
}

impl RunFolder {
    /// A new folder `NAME-001`, `NAME-002`, … in `artifacts`.
    pub fn create_in(artifacts: &Path, name: &str) -> anyhow::Result<Self> {
        Self::lock(create(artifacts, name)?)
    }

    /// A new folder at a place of the user's choice, which must be empty or not there.
    pub fn create_at(path: &Path) -> anyhow::Result<Self> {
        let context = || format!("cannot make the folder {}", path.display());
        fs::create_dir_all(path).with_context(context)?;
        let first = fs::read_dir(path).with_context(context)?.next();
        ensure!(
            first.is_none(),
            "the folder {} is not empty: give another --out, or go on with the run in it by `train resume {}`",
            path.display(),
            path.display()
        );
        Self::lock(path.to_path_buf())
    }

    /// The folder of a run that was begun before.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        ensure!(path.is_dir(), "{} is no folder of a run", path.display());
        ensure!(
            path.join(RECIPE).is_file(),
            "{} is no folder of a run: it holds no {RECIPE}; give the folder that `train` named",
            path.display()
        );
        Self::lock(path.to_path_buf())
    }

    /// The folder that the run's first process writes to, which others only know of.
    pub fn of_another(path: &Path) -> Self {
        Self { path: path.to_path_buf(), _lock: None }
    }

    fn lock(path: PathBuf) -> anyhow::Result<Self> {
        let context = || format!("cannot lock {}", path.display());
        let lock = File::create(path.join(".lock")).with_context(context)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: Some(lock) }),
            Err(TryLockError::WouldBlock) => bail!("another process trains in {}; wait for its end", path.display()),
            Err(TryLockError::Error(error)) => Err(error).with_context(context),
        }
    }
}

/// What a run is, and what it came to. Reports and comparisons read it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RunInfo {
    pub name: String,
    pub command: Vec<String>,
    pub kind: Kind,
    pub status: Status,
    pub hearth: String,
    /// The commit of the source tree that the program runs in, where there is one.
    pub commit: Option<String>,
    pub burn: String,
    pub backend: String,
    pub device: String,
    pub threads: usize,
    pub os: String,
    pub cpu: String,
    pub dtype: String,
    pub started: String,
    pub finished: Option<String>,
    pub data: DataInfo,
    pub parameters: usize,
    pub result: Option<ResultInfo>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    #[default]
    Pretrain,
    Finetune,
    Probe,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Pretrain => "pretrain",
            Kind::Finetune => "finetune",
            Kind::Probe => "probe",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    #[default]
    Running,
    Finished,
    Interrupted,
    Failed,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DataInfo {
    pub train: String,
    pub valid: String,
    pub kind: String,
    pub train_images: usize,
    pub valid_images: usize,
    pub classes: usize,
    pub fingerprint: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ResultInfo {
    pub best_epoch: usize,
    /// Of the weights that were kept, which are those of the best epoch.
    pub best: Score,
    /// Of the raw weights after the last epoch.
    pub last: Score,
    /// Of their moving average after the last epoch.
    pub ema: Option<Score>,
    pub images_per_second: f64,
    pub seconds: f64,
    pub bad_samples: u64,
    pub skipped_steps: u64,
}

impl RunInfo {
    /// What can be known before training starts.
    pub fn new(run: &Path, kind: Kind, command: Vec<String>, backend: String) -> Self {
        Self {
            name: run.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned()),
            command,
            kind,
            hearth: env!("CARGO_PKG_VERSION").to_string(),
            commit: environment::commit(),
            burn: "0.22.1".to_string(),
            backend: backend.clone(),
            device: backend,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu: environment::cpu(),
            dtype: "f32".to_string(),
            started: now(),
            ..Self::default()
        }
    }

    pub fn write(&self, run: &Path) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(self).context("cannot write run.json")?;
        write_atomic_bytes(&run.join("run.json"), (json + "\n").as_bytes())
    }

    pub fn read(run: &Path) -> anyhow::Result<Self> {
        let path = run.join("run.json");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not valid", path.display()))
    }
}

/// The time now as RFC 3339, UTC.
pub fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// Makes a new folder `NAME-001`, `NAME-002`, … in `artifacts`: the number after the highest there. Two runs that start
/// at once get two folders.
fn create(artifacts: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let context = || format!("cannot make a folder for the run in {}", artifacts.display());
    fs::create_dir_all(artifacts).with_context(context)?;
    let mut number = 1;
    for entry in fs::read_dir(artifacts).with_context(context)? {
        let entry = entry.with_context(context)?.file_name();
        let taken = entry.to_str().and_then(|entry| entry.strip_prefix(name)?.strip_prefix('-')?.parse::<u32>().ok());
        number = number.max(taken.map_or(0, |taken| taken.saturating_add(1)));
    }
    loop {
        let run = artifacts.join(format!("{name}-{number:03}"));
        match fs::create_dir(&run) {
            Ok(()) => return Ok(run),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error).with_context(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_numbered_and_never_share_a_folder() {
        let artifacts = tempfile::tempdir().unwrap();
        let name = |run: PathBuf| run.file_name().unwrap().to_str().unwrap().to_string();
        fs::create_dir(artifacts.path().join("digits-resnet20-007")).unwrap();
        fs::create_dir(artifacts.path().join("digits-resnet20-old")).unwrap();
        assert_eq!(name(create(artifacts.path(), "digits-resnet20").unwrap()), "digits-resnet20-008");
        assert_eq!(name(create(artifacts.path(), "digits-resnet20").unwrap()), "digits-resnet20-009");
        assert_eq!(name(create(artifacts.path(), "digits-plain20").unwrap()), "digits-plain20-001");
    }

    #[test]
    fn a_folder_of_the_user_s_choice_must_be_empty_and_belongs_to_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/run");
        let run = RunFolder::create_at(&path).unwrap();
        fs::write(path.join(RECIPE), "").unwrap();
        let error = RunFolder::create_at(&path).unwrap_err().to_string();
        assert!(error.contains("not empty") && error.contains("train resume"), "{error}");
        assert!(RunFolder::open(&path).unwrap_err().to_string().contains("another process"));
        drop(run);
        RunFolder::open(&path).unwrap();
        assert!(RunFolder::open(folder.path()).unwrap_err().to_string().contains("no recipe.toml"));
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error_with_its_path() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = format!("{:#}", create(file.path(), "digits").unwrap_err());
        assert!(error.contains(file.path().to_str().unwrap()), "{error}");
    }
}
