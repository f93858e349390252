//! The folder of a run.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use report::format::RECIPE;
use runtime::files;

use crate::{Error, Result};

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
    pub fn create_in(artifacts: &Path, name: &str) -> Result<Self> {
        Self::lock(create(artifacts, name)?, Origin::Made)
    }

    /// A new folder at a place of the user's choice, which must be empty or not there.
    pub fn create_at(path: &Path) -> Result<Self> {
        let origin = if path.exists() { Origin::Empty } else { Origin::Made };
        let first = fs::create_dir_all(path).and_then(|()| Ok(fs::read_dir(path)?.next()));
        if first.map_err(Error::io("make the folder", path))?.is_some() {
            let shown = path.display();
            return Err(refused(
                path,
                format!(
                    "the folder {shown} is not empty: give another, or resume the run in it (`train resume {shown}`)"
                ),
            ));
        }
        Self::lock(path.to_path_buf(), origin)
    }

    /// The folder of a run that was begun before. The error for another path inside or around a run names that run.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        if !path.exists() {
            return Err(refused(path, format!("there is no folder {shown}; give the folder that `train` named")));
        }
        if !path.join(RECIPE).is_file() {
            let cause = match path.is_dir() {
                true => format!("{shown} is not the folder of a run: it has no {RECIPE}"),
                false => format!("{shown} is a file and not the folder of a run"),
            };
            let remedy = match nearest_run(path) {
                Some(run) => format!("did you mean {}?", run.display()),
                None => "give the folder that `train` named".to_string(),
            };
            return Err(refused(path, format!("{cause}; {remedy}")));
        }
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
    fn lock(path: PathBuf, origin: Origin) -> Result<Self> {
        let file = path.join(".lock");
        let lock = files::check_regular(&file).and_then(|()| File::create(&file));
        let lock = lock.map_err(Error::io("lock", &file))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, lock: Some(lock), origin }),
            Err(TryLockError::WouldBlock) => {
                let cause = format!("another process trains in {}; wait for its end", path.display());
                Err(refused(&path, cause))
            }
            Err(TryLockError::Error(error)) => Err(Error::io("lock", file)(error)),
        }
    }
}

/// The run that a file or folder belongs to, such as a checkpoint or weights; else the run in a folder that was changed
/// last.
fn nearest_run(path: &Path) -> Option<PathBuf> {
    let is_run = |folder: &&Path| folder.join(RECIPE).is_file();
    // `.` has no parent to be named by.
    let absolute = std::path::absolute(path).ok()?;
    let around = path.ancestors().skip(1).find(is_run).or_else(|| absolute.ancestors().skip(1).find(is_run));
    if let Some(run) = around {
        return Some(run.to_path_buf());
    }
    let changed = |run: &PathBuf| fs::metadata(run.join(RECIPE)).and_then(|file| file.modified()).ok();
    let inside = fs::read_dir(path).ok()?.flatten().map(|entry| entry.path()).filter(|run| is_run(&run.as_path()));
    inside.max_by_key(changed)
}

fn refused(path: &Path, cause: String) -> Error {
    Error::Folder { path: path.into(), cause }
}

/// Makes a new folder `NAME-001`, `NAME-002`, … in `artifacts`: the number after the highest there. Two runs that start
/// at once get two folders.
fn create(artifacts: &Path, name: &str) -> Result<PathBuf> {
    numbered(artifacts, name).map_err(Error::io("make a folder for the run in", artifacts))
}

fn numbered(artifacts: &Path, name: &str) -> io::Result<PathBuf> {
    fs::create_dir_all(artifacts)?;
    let mut number = 1;
    for entry in fs::read_dir(artifacts)? {
        let entry = entry?.file_name();
        let taken = entry.to_str().and_then(|entry| entry.strip_prefix(name)?.strip_prefix('-')?.parse::<u32>().ok());
        number = number.max(taken.map_or(0, |taken| taken.saturating_add(1)));
    }
    loop {
        let run = artifacts.join(format!("{name}-{number:03}"));
        match fs::create_dir(&run) {
            Ok(()) => return Ok(run),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
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
    fn a_path_beside_a_run_is_answered_with_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("digits-001");
        fs::create_dir_all(run.join("checkpoints/step-00000001")).unwrap();
        for file in [RECIPE, "weights.safetensors"] {
            fs::write(run.join(file), "").unwrap();
        }
        let paths = [
            run.join("checkpoints"),
            run.join("checkpoints/step-00000001"),
            run.join("weights.safetensors"),
            folder.path().to_path_buf(),
        ];
        for path in paths {
            let error = RunFolder::open(&path).unwrap_err().to_string();
            assert!(error.ends_with(&format!("did you mean {}?", run.display())), "{error}");
        }
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
        let error = create(file.path(), "digits").unwrap_err().to_string();
        assert!(error.contains(file.path().to_str().unwrap()), "{error}");
    }
}
