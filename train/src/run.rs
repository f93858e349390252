//! The folder of a run and its `run.json`.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, bail, ensure};
pub use report::format::RECIPE;
use report::format::{FORMAT, RUN, RunChange, RunInfo, RunKind, RunStatus, read_json, write_json};
use runtime::{environment, files};

/// A run's folder that this process alone writes to.
#[derive(Debug)]
pub struct RunFolder {
    pub path: PathBuf,
    lock: Option<File>,
    origin: Origin,
}

/// Where a folder comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// This process made it.
    Made,
    /// It was there and empty.
    Empty,
    /// It holds a run, or belongs to another process.
    Kept,
}

impl RunFolder {
    /// A new folder `NAME-001`, `NAME-002`, … in `artifacts`.
    pub fn create_in(artifacts: &Path, name: &str) -> anyhow::Result<Self> {
        Self::lock(create(artifacts, name)?, Origin::Made)
    }

    /// A new folder at a place of the user's choice, which must be empty or not there.
    pub fn create_at(path: &Path) -> anyhow::Result<Self> {
        let context = || format!("cannot make the folder {}", path.display());
        let origin = if path.exists() { Origin::Empty } else { Origin::Made };
        fs::create_dir_all(path).with_context(context)?;
        let first = fs::read_dir(path).with_context(context)?.next();
        ensure!(
            first.is_none(),
            "the folder {} is not empty: give another, or resume the run in it (`train resume {}`)",
            path.display(),
            path.display()
        );
        Self::lock(path.to_path_buf(), origin)
    }

    /// The folder of a run that was begun before.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        ensure!(path.exists(), "there is no folder {}; give the folder that `train` named", path.display());
        ensure!(
            path.join(RECIPE).is_file(),
            "{} is no folder of a run: it holds no {RECIPE}; give the folder that `train` named",
            path.display()
        );
        Self::lock(path.to_path_buf(), Origin::Kept)
    }

    /// The folder that the run's first process writes to, which others only know of.
    pub fn of_another(path: &Path) -> Self {
        Self { path: path.to_path_buf(), lock: None, origin: Origin::Kept }
    }

    /// Removes what was made for a run that did not begin: a folder without a run would only be in the way.
    pub fn discard(self) {
        let Self { path, lock, origin } = self;
        drop(lock);
        if origin == Origin::Kept {
            return;
        }
        let removed = fs::remove_dir_all(&path).and_then(|()| match origin {
            Origin::Empty => fs::create_dir(&path),
            Origin::Made | Origin::Kept => Ok(()),
        });
        if let Err(error) = removed {
            log::warn!("cannot remove {}, which holds no run: {error}", path.display());
        }
    }

    /// The operating system releases the lock with the process, however that ends.
    fn lock(path: PathBuf, origin: Origin) -> anyhow::Result<Self> {
        let context = || format!("cannot lock {}", path.join(".lock").display());
        let file = path.join(".lock");
        files::check_regular(&file).with_context(context)?;
        let lock = File::create(file).with_context(context)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, lock: Some(lock), origin }),
            Err(TryLockError::WouldBlock) => bail!("another process trains in {}; wait for its end", path.display()),
            Err(TryLockError::Error(error)) => Err(error).with_context(context),
        }
    }
}

/// The facts of a run that are known before training starts.
pub fn describe(run: &Path, kind: RunKind, command: Vec<String>, backend: String) -> RunInfo {
    RunInfo {
        format: FORMAT,
        name: run.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned()),
        command,
        kind,
        status: Some(RunStatus::Running),
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
        ..RunInfo::default()
    }
}

/// Between the devices of a run before and after it was resumed.
const THEN: &str = ", then ";

/// Records that the run is resumed on `devices`; returns those that it ran on before, if they are others.
pub fn continue_on(info: &mut RunInfo, devices: &str) -> Option<String> {
    let last = info.backend.rsplit(THEN).next().unwrap_or_default().to_string();
    if last == devices {
        return None;
    }
    info.backend = format!("{}{THEN}{devices}", info.backend);
    info.device.clone_from(&info.backend);
    Some(last)
}

/// Records changes with which a run is resumed after `step` steps. Those after a later step were lost with it, and a run
/// that made no step since it was last resumed has some of them already.
pub fn record_changes(info: &mut RunInfo, step: u64, changes: Vec<RunChange>) {
    info.changes.retain(|known| known.step <= step);
    for change in changes {
        if !info.changes.contains(&change) {
            info.changes.push(change);
        }
    }
}

/// Writes `run.json`.
pub fn write_info(info: &RunInfo, run: &Path) -> anyhow::Result<()> {
    write_json(&run.join(RUN), info)
}

/// Reads `run.json`.
pub fn read_info(run: &Path) -> anyhow::Result<RunInfo> {
    read_json(&run.join(RUN))
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
    fn a_run_that_is_resumed_on_another_device_records_both() {
        let mut info = RunInfo { backend: "cuda:0, cuda:1".into(), ..RunInfo::default() };
        assert_eq!(continue_on(&mut info, "cuda:0, cuda:1"), None);
        assert_eq!(continue_on(&mut info, "flex").as_deref(), Some("cuda:0, cuda:1"));
        assert_eq!(info.backend, "cuda:0, cuda:1, then flex");
        assert_eq!(continue_on(&mut info, "flex"), None);
        assert_eq!(continue_on(&mut info, "cuda:0").as_deref(), Some("flex"));
        assert_eq!(info.device, "cuda:0, cuda:1, then flex, then cuda:0");
    }

    #[test]
    fn changes_are_recorded_once_and_lost_with_the_steps_after_them() {
        let change =
            |step, to: &str| RunChange { step, epoch: 1, key: "epochs".into(), from: "1".into(), to: to.into() };
        let mut info = RunInfo::default();
        record_changes(&mut info, 5, vec![change(5, "2")]);
        record_changes(&mut info, 5, vec![change(5, "2")]);
        record_changes(&mut info, 9, vec![change(9, "3")]);
        assert_eq!(info.changes, [change(5, "2"), change(9, "3")]);
        record_changes(&mut info, 7, Vec::new());
        assert_eq!(info.changes, [change(5, "2")]);
    }

    #[test]
    fn a_folder_without_a_run_is_removed_and_the_user_s_own_only_emptied() {
        let root = tempfile::tempdir().unwrap();
        let made = RunFolder::create_in(root.path(), "digits").unwrap();
        let path = made.path.clone();
        fs::write(path.join(RECIPE), "").unwrap();
        made.discard();
        assert!(!path.exists());
        let own = root.path().join("own");
        fs::create_dir(&own).unwrap();
        RunFolder::create_at(&own).unwrap().discard();
        assert_eq!(fs::read_dir(&own).unwrap().count(), 0);
        fs::write(own.join(RECIPE), "").unwrap();
        RunFolder::open(&own).unwrap().discard();
        assert!(own.join(RECIPE).exists(), "a run is never removed");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error_with_its_path() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = format!("{:#}", create(file.path(), "digits").unwrap_err());
        assert!(error.contains(file.path().to_str().unwrap()), "{error}");
    }
}
