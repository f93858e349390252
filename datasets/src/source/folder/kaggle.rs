//! Kaggle's ImageNet: `ILSVRC/Data/CLS-LOC`, with the labels of the validation images in a table.

use std::{
    collections::HashMap,
    io::Read,
    path::{Path, PathBuf},
};

use runtime::files::open_regular;

use super::{ClassFolders, Folder, builtin_wnid, check_classes, classes_in};
use crate::{
    Error, Result, imagenet,
    source::{
        Class,
        options::{Found, OpenOptions, OpenPart},
        walk::{Listing, list},
    },
};

/// The folder `…/Data/CLS-LOC` of Kaggle's ImageNet, given it or one of the folders above it.
pub fn kaggle_root(path: &Path) -> Option<PathBuf> {
    let candidates = [path.join("ILSVRC/Data/CLS-LOC"), path.join("Data/CLS-LOC"), path.join("CLS-LOC")];
    let itself = path.file_name().is_some_and(|name| name == "CLS-LOC").then(|| path.to_owned());
    candidates.into_iter().chain(itself).find(|folder| folder.join("train").is_dir() || folder.join("val").is_dir())
}

/// Opens Kaggle's ImageNet: `root` is the folder that [`kaggle_root`] found.
pub fn find_kaggle<'a>(root: PathBuf, options: &'a OpenOptions) -> Result<Found<'a>> {
    let train = root.join("train");
    let listing = if train.is_dir() { list(&train)? } else { Listing::default() };
    let (ids, folders) = classes_in(&listing);
    let classes: Vec<Class> = match ids.is_empty() {
        false => ids.iter().map(|id| imagenet::named_class(id)).collect(),
        true => imagenet::classes().to_vec(),
    };
    let container = root.display().to_string();
    let allow_empty = options.allow_empty_classes;
    let train_part = (!ids.is_empty()).then(|| {
        let (root, classes) = (root.clone(), classes.clone());
        Box::new(move || {
            let mut folder = Folder::of_classes(&root, &train, classes, &folders)?;
            folder.left_out.merge(&listing.left_out);
            let notes = check_classes(&train, &folder, &folders, allow_empty)?;
            Ok(folder.into_part(notes))
        }) as OpenPart<'a>
    });
    let val_part = root.join("val").is_dir().then(|| {
        Box::new(move || {
            let (val, solution) = (root.join("val"), read_solution(&root)?);
            let folder = Folder::official_val(&root, &val, classes, |name| {
                let image = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
                solution.get(image).cloned().or_else(|| builtin_wnid(name))
            })?;
            let notes = check_classes(&val, &folder, &ClassFolders::new(), true)?;
            Ok(folder.into_part(notes))
        }) as OpenPart<'a>
    });
    Ok(Found::Divided { container, train: train_part, val: val_part })
}

/// Reads `LOC_val_solution.csv` (`ImageId,PredictionString`, where the string begins with the wnid) from the folders
/// above `CLS-LOC`; empty if there is none. Two rows of one image must agree.
fn read_solution(root: &Path) -> Result<HashMap<String, String>> {
    let found = root.ancestors().take(4).map(|folder| folder.join("LOC_val_solution.csv")).find(|path| path.is_file());
    let Some(path) = found else { return Ok(HashMap::new()) };
    let text = read_text(&path).map_err(|source| Error::io(&path, source))?;
    let mut solution: HashMap<String, String> = HashMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        if (number == 1 && line.starts_with("ImageId")) || line.trim().is_empty() {
            continue;
        }
        let row = line.split_once(',').and_then(|(image, rest)| Some((image, rest.split_whitespace().next()?)));
        let Some((image, wnid)) = row else {
            return Err(Error::layout(path.display(), format!("line {number} is not `ImageId,WNID …`: {line:?}")));
        };
        let wnid = wnid.trim_matches('"');
        match solution.insert(image.to_owned(), wnid.to_owned()) {
            Some(other) if other != wnid => {
                let cause = format!("line {number} has class {wnid} for {image}, another line has {other}; correct it");
                return Err(Error::layout(path.display(), cause));
            }
            _ => {}
        }
    }
    Ok(solution)
}

/// Reads a text file.
fn read_text(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    open_regular(path)?.read_to_string(&mut text)?;
    Ok(text)
}
