//! Image inputs from paths on a command line.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use datasets::source::{
    IMAGE_EXTENSIONS, ImagesInFolder, MAX_SAMPLE_BYTES, files_of_pattern, images_in_folder, is_pattern,
};
use runtime::{exit::chain, files::open_regular, missing, text::printable};

use crate::{Error, Result};

/// An input that should be an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A file. Its existence is checked when it is read.
    File(PathBuf),
    /// Standard input, written `-`.
    Stdin,
    /// A folder without usable images or a pattern without files, and the reason.
    Unusable {
        /// The folder or the pattern.
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
                let special = |error: &io::Error| error.kind() == io::ErrorKind::InvalidInput;
                let file = open_regular(path).map_err(|error| match missing::hint(&path.to_string_lossy()) {
                    _ if special(&error) => Error::NotAFile(error),
                    Some(hint) if error.kind() == io::ErrorKind::NotFound => Error::NotFound { cause: error, hint },
                    _ => error.into(),
                })?;
                read_bounded(file)
            }
            Self::Stdin => read_bounded(io::stdin().lock()),
            Self::Unusable { cause, .. } => Err(Error::Unusable(cause.clone())),
        }
    }
}

fn read_bounded(reader: impl Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MAX_SAMPLE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_SAMPLE_BYTES {
        return Err(Error::Unusable(format!("larger than the limit of {MAX_SAMPLE_BYTES} bytes")));
    }
    Ok(bytes)
}

/// The images of a command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expanded {
    /// The inputs, in order.
    pub inputs: Vec<Input>,
    /// What folders hold besides, a sentence each.
    pub notes: Vec<String>,
}

/// Expands `paths` to images, in order: a folder becomes the images in it, recognized by extension, in natural order
/// (`2.jpg` before `10.jpg`), and with `recursive` those in its subfolders too. Everything else in it is counted in a
/// note. A pattern (`photos/*.jpg`) that is not the name of a file becomes what it matches, for shells that leave that to
/// programs.
///
/// # Errors
/// Fails if standard input is named more than once. An unreadable image is an error of that image alone, later.
pub fn expand(paths: &[PathBuf], recursive: bool) -> Result<Expanded> {
    if paths.iter().filter(|path| path.as_os_str() == "-").count() > 1 {
        return Err(Error::Unusable("`-` is given twice, but standard input can only be read once".into()));
    }
    let mut expanded = Expanded::default();
    for path in paths {
        match path.to_str() {
            Some("-") => expanded.inputs.push(Input::Stdin),
            Some(pattern) if is_pattern(pattern) && !path.exists() => match files_of_pattern(pattern) {
                Ok(files) => files.iter().for_each(|file| expanded.add(file, recursive)),
                Err(error) => {
                    let cause = match error {
                        datasets::Error::Layout { cause, .. } => cause,
                        other => other.to_string(),
                    };
                    expanded.inputs.push(Input::Unusable { path: path.clone(), cause });
                }
            },
            _ => expanded.add(path, recursive),
        }
    }
    Ok(expanded)
}

impl Expanded {
    fn add(&mut self, path: &Path, recursive: bool) {
        match path.is_dir() {
            true => self.add_folder(path, recursive),
            false => self.inputs.push(Input::File(path.to_owned())),
        }
    }

    fn add_folder(&mut self, folder: &Path, recursive: bool) {
        let unusable = |cause: String| Input::Unusable { path: folder.to_owned(), cause };
        let found = match images_in_folder(folder, recursive) {
            Ok(found) => found,
            Err(error) => return self.inputs.push(unusable(format!("cannot list the folder: {}", chain(&error)))),
        };
        let ImagesInFolder { paths, in_subfolders, left_out, .. } = found;
        let mut beside = Vec::new();
        if !recursive && in_subfolders > 0 {
            beside.push(format!("{in_subfolders} images in subfolders are left out; --recursive includes them"));
        }
        if !left_out.is_empty() {
            beside.push(format!("left out: {left_out}"));
        }
        if paths.is_empty() {
            let looked_for = format!("no images in this folder; looked for {}", IMAGE_EXTENSIONS.join(", "));
            self.inputs.push(unusable([&[looked_for], &beside[..]].concat().join("; ")));
            return;
        }
        let name = folder.to_string_lossy();
        self.notes.extend(beside.into_iter().map(|text| format!("{}: {text}", printable(&name))));
        self.inputs.extend(paths.into_iter().map(Input::File));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_folder_expands_to_its_images_in_natural_order_and_the_rest_is_noted() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["10.jpg", "2.PNG", "3.jfif", "notes.txt", "x.heic", ".hidden.jpg", "sub/1.jpg", "sub/deep/2.jpg"] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let paths = [PathBuf::from("first.jpg"), folder.path().to_owned(), PathBuf::from("-")];
        let in_folder =
            |names: &[&str]| names.iter().map(|name| Input::File(folder.path().join(name))).collect::<Vec<_>>();
        let Expanded { inputs, notes } = expand(&paths, false).unwrap();
        assert_eq!(inputs[0], Input::File("first.jpg".into()));
        assert_eq!(inputs[1..4], in_folder(&["2.PNG", "3.jfif", "10.jpg"]));
        assert_eq!(inputs[4], Input::Stdin);
        assert!(inputs[0].read().is_err());
        assert!(notes[0].contains("2 images in subfolders are left out; --recursive"), "{notes:?}");
        assert!(notes[1].contains("1 .heic") && notes[1].contains("1 .txt"), "{notes:?}");

        let Expanded { inputs, notes } = expand(&paths[1..2], true).unwrap();
        assert_eq!(inputs, in_folder(&["2.PNG", "3.jfif", "10.jpg", "sub/1.jpg", "sub/deep/2.jpg"]));
        assert_eq!(notes.len(), 1, "{notes:?}");
    }

    #[test]
    fn a_folder_without_images_is_an_error_of_that_input() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("sub/1.jpg"), "x").unwrap();
        let inputs = expand(&[folder.path().to_owned()], false).unwrap().inputs;
        let error = inputs[0].read().unwrap_err().to_string();
        assert!(error.contains("no images in this folder") && error.contains("--recursive"), "{error}");
        assert!(expand(&["-".into(), "-".into()], false).is_err());
    }

    #[test]
    fn a_pattern_that_no_shell_expanded_becomes_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("more")).unwrap();
        for name in ["b.jpg", "a.jpg", "c.txt", "odd[1].jpg", "more/d.jpg"] {
            fs::write(at(name), "x").unwrap();
        }
        let files = |names: &[&str]| names.iter().map(|name| Input::File(at(name))).collect::<Vec<_>>();
        let inputs = |pattern: &str| expand(&[at(pattern)], false).unwrap().inputs;
        assert_eq!(inputs("?.jpg"), files(&["a.jpg", "b.jpg"]));
        assert_eq!(inputs("{b,a}.jpg"), files(&["b.jpg", "a.jpg"]));
        assert_eq!(inputs("m*"), files(&["more/d.jpg"]), "a folder that matches becomes its images");
        assert_eq!(inputs("odd[1].jpg"), files(&["odd[1].jpg"]), "a file of that very name");
        let error = inputs("*.png")[0].read().unwrap_err().to_string();
        assert!(error.contains("no file matches"), "{error}");
    }

    #[test]
    fn a_path_that_is_not_there_is_explained() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("Dog.jpg"), "x").unwrap();
        let error = |path: &Path| format!("{:#}", Input::File(path.to_owned()).read().unwrap_err());
        let text = error(&folder.path().join("dog.JPG"));
        assert!(text.contains("did you mean") && text.contains("Dog.jpg"), "{text}");
        let text = error(Path::new("https://example.org/dog.jpg"));
        assert!(text.contains("download the file"), "{text}");
        assert!(!error(Path::new("none.jpg")).contains(';'));
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_an_error_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe.jpg");
        if !std::process::Command::new("mkfifo").arg(&pipe).status().is_ok_and(|status| status.success()) {
            eprintln!("skipped: there is no mkfifo");
            return;
        }
        let error = chain(&Input::File(pipe).read().unwrap_err());
        assert!(error.contains("is read only as `-`") && error.contains("a pipe"), "{error}");
        let inputs = expand(&[folder.path().to_owned()], false).unwrap().inputs;
        assert!(inputs[0].read().unwrap_err().to_string().contains("pipe, socket or device"));
    }
}
