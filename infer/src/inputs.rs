//! Image inputs from paths on a command line.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use datasets::source::{MAX_SAMPLE_BYTES, is_image_name, natural_order};

/// An input that should be an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A file. Its existence is checked when it is read.
    File(PathBuf),
    /// Standard input, written `-`.
    Stdin,
    /// A folder without usable images, and the reason.
    Unusable {
        /// The folder.
        path: PathBuf,
        /// The reason.
        cause: String,
    },
}

impl Input {
    /// Returns the name given on the command line; a file in a folder has the folder's path before its name.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) | Self::Unusable { path, .. } => path.display().to_string(),
            Self::Stdin => "-".to_string(),
        }
    }

    /// Reads the encoded image.
    ///
    /// # Errors
    /// Fails if it cannot be read or is larger than [`MAX_SAMPLE_BYTES`].
    pub fn read(&self) -> Result<Vec<u8>> {
        match self {
            Self::File(path) => {
                let file = File::open(path)?;
                if file.metadata()?.is_dir() {
                    bail!("is a folder");
                }
                read_bounded(file)
            }
            Self::Stdin => read_bounded(io::stdin().lock()),
            Self::Unusable { cause, .. } => bail!("{cause}"),
        }
    }
}

fn read_bounded(reader: impl Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MAX_SAMPLE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_SAMPLE_BYTES {
        bail!("larger than the limit of {MAX_SAMPLE_BYTES} bytes");
    }
    Ok(bytes)
}

/// Expands `paths` to images, in order: a folder becomes the images in it, recognized by extension, in natural order
/// (`2.jpg` before `10.jpg`); subfolders and hidden files are skipped.
///
/// # Errors
/// Fails if standard input is named more than once. An unreadable image is an error of that image alone, later.
pub fn expand(paths: &[PathBuf]) -> Result<Vec<Input>> {
    if paths.iter().filter(|path| path.as_os_str() == "-").count() > 1 {
        bail!("`-` is given twice, but standard input can only be read once");
    }
    let mut inputs = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            inputs.push(Input::Stdin);
        } else if path.is_dir() {
            match images_in(path) {
                Ok(images) if images.is_empty() => inputs.push(Input::Unusable {
                    path: path.clone(),
                    cause: format!(
                        "no images in this folder; looked for {}",
                        datasets::source::IMAGE_EXTENSIONS.join(", ")
                    ),
                }),
                Ok(images) => inputs.extend(images.into_iter().map(Input::File)),
                Err(error) => inputs.push(Input::Unusable { path: path.clone(), cause: format!("{error:#}") }),
            }
        } else {
            inputs.push(Input::File(path.clone()));
        }
    }
    Ok(inputs)
}

fn images_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).context("cannot list the folder")? {
        let entry = entry.context("cannot list the folder")?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_image_name(&name) && !name.starts_with('.') && !entry.path().is_dir() {
            names.push((name, entry.path()));
        }
    }
    names.sort_by(|(a, _), (b, _)| natural_order(a, b));
    Ok(names.into_iter().map(|(_, path)| path).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_expands_to_its_images_in_natural_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["10.jpg", "2.PNG", "notes.txt", ".hidden.jpg", "sub/1.jpg"] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let inputs = expand(&[PathBuf::from("first.jpg"), folder.path().to_owned(), PathBuf::from("-")]).unwrap();
        let in_folder = |name: &str| Input::File(folder.path().join(name));
        assert_eq!(inputs, [Input::File("first.jpg".into()), in_folder("2.PNG"), in_folder("10.jpg"), Input::Stdin]);
        assert!(inputs[0].read().is_err());
    }

    #[test]
    fn a_folder_without_images_is_an_error_of_that_input() {
        let folder = tempfile::tempdir().unwrap();
        let inputs = expand(&[folder.path().to_owned()]).unwrap();
        let error = inputs[0].read().unwrap_err().to_string();
        assert!(error.contains("no images in this folder"), "{error}");
        assert!(expand(&["-".into(), "-".into()]).is_err());
    }
}
