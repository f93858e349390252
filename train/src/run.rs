//! The folder of a run.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;

/// Makes a new folder `NAME-001`, `NAME-002`, … in `artifacts`: the number after the highest there. Two runs that start
/// at once get two folders.
pub fn create(artifacts: &Path, name: &str) -> anyhow::Result<PathBuf> {
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
    fn a_folder_that_cannot_be_made_is_an_error_with_its_path() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = format!("{:#}", create(file.path(), "digits").unwrap_err());
        assert!(error.contains(file.path().to_str().unwrap()), "{error}");
    }
}
