//! Images as plain files: class folders, with splits or without, Kaggle's ImageNet, or no classes at all.
//!
//! ```text
//! DATA/train/CLASS/…/IMAGE        DATA/CLASS/…/IMAGE        DATA/IMAGE
//! DATA/val/CLASS/…/IMAGE
//! DATA/ILSVRC/Data/CLS-LOC/train/WNID/IMAGE
//! DATA/ILSVRC/Data/CLS-LOC/val/IMAGE with DATA/LOC_val_solution.csv
//! ```
//!
//! Names of splits count in any case and in [their usual variants](super::layout); a folder that holds nothing but the
//! data is stepped through, and what could be meant in two ways is refused. Classes sort by name, byte by byte, and so do
//! the images of a class. [`walk`] says which files are read; all others are counted.
//!
//! [`Folder`] is the source; `classes` recognizes class folders, `splits` those of splits, `kaggle` Kaggle's ImageNet.

mod classes;
mod kaggle;
mod splits;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    cmp::Ordering,
    collections::{BTreeSet, HashMap},
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use runtime::text::printable;

pub(super) use self::{
    classes::find_classes,
    kaggle::{find_kaggle, kaggle_root},
};
use super::{
    Class, LeftOut, LeftOutReason, Location, Source, check_index,
    names::{Labels, Names, natural_order},
    options::Part,
    read_at::read_file,
    walk::{ImageFile, Listing, Unreadable, readable, walk},
};
use crate::{Error, Result, imagenet};

/// Images as files in a folder. Opening it lists the files without opening them.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    classes: Vec<Class>,
    names: Names,
    labels: Labels,
    /// The paths of the images whose keys are not their paths, because a name is not Unicode.
    odd_paths: HashMap<String, PathBuf>,
    left_out: LeftOut,
    /// The classes with images in several subfolders, and some of these: `dogs (husky, pug)`.
    merged: Vec<String>,
}

impl Folder {
    /// The images below the folders of `classes` (by their `id`), at any depth; a class without a folder has none. Keys are
    /// paths below `root`, in which the folder `split` is, with `/` between folders; bytes of names that are not Unicode are
    /// written `\xFF`.
    fn of_classes(root: &Path, split: &Path, classes: Vec<Class>, folders: &ClassFolders) -> Result<Self> {
        let mut folder = Self::empty(root, classes);
        let prefix = key_prefix(root, split);
        for at in 0..folder.classes.len() {
            let id = &folder.classes[at].id;
            let base = format!("{prefix}{id}/");
            match folders.get(id).filter(|path| path.is_dir()) {
                Some(path) => {
                    let images = images_below(path, &mut folder.left_out)?;
                    let subfolders: BTreeSet<&str> =
                        images.iter().filter_map(|image| Some(image.key.split_once('/')?.0)).collect();
                    if subfolders.len() > 1 {
                        folder.merged.push(format!("{} ({})", printable(id), splits::named(subfolders)));
                    }
                    folder.push(&base, path, images, str::cmp)?;
                }
                // Every class is a group of names.
                None => folder.names.push_group(&base, &[] as &[&str])?,
            }
        }
        folder.labels = Labels::PerGroup((0..folder.classes.len() as u32).collect());
        folder.names.shrink_to_fit();
        Ok(folder)
    }

    /// All images below `root` at any depth, without labels, in natural order (`2.jpg` before `10.jpg`).
    ///
    /// # Errors
    /// [`Error::Io`] for a folder that cannot be read.
    pub fn images(root: &Path) -> Result<Self> {
        let mut folder = Self::empty(root, Vec::new());
        let images = images_below(root, &mut folder.left_out)?;
        folder.push("", root, images, natural_order)?;
        Ok(folder)
    }

    /// The given files, without labels, in the given order; their keys are their paths.
    ///
    /// # Errors
    /// Fails if the paths pass 4 GiB.
    pub fn files(paths: &[PathBuf]) -> Result<Self> {
        let mut folder = Self::empty(Path::new(""), Vec::new());
        let keys: Vec<_> = paths.iter().map(|path| readable(path.as_os_str())).collect();
        folder.names.push_group("", &keys)?;
        let odd = keys.into_iter().zip(paths).filter(|(_, path)| path.to_str().is_none());
        folder.odd_paths = odd.map(|(key, path)| (key, path.clone())).collect();
        Ok(folder)
    }

    /// The official validation images in one folder of `root`, each labeled by the wnid that `wnid_of` knows for its file
    /// name.
    fn official_val(
        root: &Path,
        split: &Path,
        classes: Vec<Class>,
        wnid_of: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let mut folder = Self::empty(root, classes);
        let images = images_below(split, &mut folder.left_out)?;
        folder.push(&key_prefix(root, split), split, images, str::cmp)?;
        let by_id: HashMap<&str, u32> = folder.classes.iter().map(|class| class.id.as_str()).zip(0..).collect();
        let label = |index| {
            let path = folder.path(index);
            let name = path.file_name().map(readable).unwrap_or_default();
            let wnid = wnid_of(&name).ok_or_else(|| {
                let cause = "no label is known for it: it is in no class folder and not an official validation image";
                Error::layout(path.display(), cause)
            })?;
            by_id.get(wnid.as_str()).copied().ok_or_else(|| {
                Error::layout(path.display(), format!("is of class {wnid}, which has no folder in the training data"))
            })
        };
        let labels = (0..folder.len()).map(label).collect::<Result<_>>()?;
        folder.labels = Labels::PerSample(labels);
        Ok(folder)
    }

    fn empty(root: &Path, classes: Vec<Class>) -> Self {
        Self {
            root: root.to_owned(),
            classes,
            names: Names::default(),
            labels: Labels::Absent,
            odd_paths: HashMap::new(),
            left_out: LeftOut::default(),
            merged: Vec::new(),
        }
    }

    /// Appends a group of images in order of their names; `base` is the key of `folder`, which holds them.
    fn push(
        &mut self,
        base: &str,
        folder: &Path,
        mut images: Vec<ImageFile>,
        order: fn(&str, &str) -> Ordering,
    ) -> Result<()> {
        if self.root.join(base) != folder {
            for image in &mut images {
                image.odd_path.get_or_insert_with(|| folder.join(&image.key));
            }
        }
        // Those that are Unicode come first among equals, and the others are left out: their keys are taken.
        images.sort_unstable_by(|a, b| order(&a.key, &b.key).then_with(|| a.odd_path.cmp(&b.odd_path)));
        let mut names: Vec<String> = Vec::with_capacity(images.len());
        for ImageFile { key, odd_path } in images {
            if let Some(path) = odd_path {
                if names.last() == Some(&key) {
                    self.left_out.file(LeftOutReason::AmbiguousName, &path);
                    continue;
                }
                self.odd_paths.insert(format!("{base}{key}"), path);
            }
            names.push(key);
        }
        self.names.push_group(base, &names)
    }

    /// The number of images of each class.
    fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len()];
        for label in (0..self.len()).filter_map(|index| self.label(index)) {
            counts[label as usize] += 1;
        }
        counts
    }

    fn path(&self, index: usize) -> PathBuf {
        let key = self.names.get(index);
        self.odd_paths.get(&key).cloned().unwrap_or_else(|| self.root.join(key))
    }

    /// Turns it into an opened part; what is left out is noted.
    pub(super) fn into_part(self, mut notes: Vec<String>) -> Part {
        let left_out = self.left_out.clone();
        if let Some(first) = self.merged.first() {
            let and = match self.merged.len() {
                1 => String::new(),
                count => format!(" and {} more", count - 1),
            };
            let root = self.root.display();
            notes.push(format!("{root}: images in subfolders belong to the class folder above them: {first}{and}"));
        }
        if !left_out.is_empty() {
            notes.push(format!("{}: left out: {left_out}", self.root.display()));
        }
        Part { source: Arc::new(self), notes, left_out }
    }
}

impl Source for Folder {
    fn len(&self) -> usize {
        self.names.len()
    }
    fn classes(&self) -> &[Class] {
        &self.classes
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.labels.get(&self.names, index)
    }
    fn key(&self, index: usize) -> Cow<'_, str> {
        Cow::Owned(self.names.get(index))
    }
    fn location(&self, index: usize) -> Location {
        Location { container: readable(self.path(index).as_os_str()), member: None, offset: None }
    }
    fn read(&self, index: usize, buffer: &mut Vec<u8>) -> Result<()> {
        check_index(index, self.len())?;
        let path = self.path(index);
        read_file(&path, buffer).map_err(|source| Error::io(path, source))
    }
}

/// Class folders by the classes' identifiers.
type ClassFolders = HashMap<String, PathBuf>;

/// The key of a folder in `root`, with a slash at its end; empty for `root` itself.
fn key_prefix(root: &Path, folder: &Path) -> String {
    let below = folder.strip_prefix(root).unwrap_or(folder);
    below.iter().map(|part| format!("{}/", readable(part))).collect()
}

/// The images below a folder, in no order.
fn images_below(folder: &Path, left_out: &mut LeftOut) -> Result<Vec<ImageFile>> {
    let mut images = Vec::new();
    walk(folder, Unreadable::Fail, left_out, &mut |image| {
        images.push(image);
        ControlFlow::Continue(())
    })?;
    Ok(images)
}

/// The identifiers of the class folders in a folder, sorted, and the folders.
fn classes_in(listing: &Listing) -> (Vec<String>, ClassFolders) {
    let ids = listing.folders.iter().map(|class| class.name.clone()).collect();
    (ids, listing.folders.iter().map(|class| (class.name.clone(), class.path.clone())).collect())
}

/// The wnid of an official validation image, from the labels that are built in.
pub(super) fn builtin_wnid(file_name: &str) -> Option<String> {
    let label = imagenet::val_label(imagenet::val_number(file_name)?)?;
    Some(imagenet::classes()[label as usize].id.clone())
}

/// Rejects a split without samples, and one with empty classes unless they are allowed, which are then noted.
fn check_classes(container: &Path, folder: &Folder, folders: &ClassFolders, allow_empty: bool) -> Result<Vec<String>> {
    let refuse = |cause: String| Err(Error::layout(container.display(), cause));
    if folder.is_empty() {
        let looked_for = super::IMAGE_EXTENSIONS.join(", ");
        return match folder.left_out.is_empty() {
            true => refuse(format!("no images; looked for {looked_for}")),
            false => refuse(format!("no images; looked for {looked_for}; left out: {}", folder.left_out)),
        };
    }
    let counts = folder.counts();
    let empty: Vec<_> = counts.iter().zip(&folder.classes).filter(|(count, _)| **count == 0).map(|(_, c)| c).collect();
    let Some(first) = empty.first() else { return Ok(Vec::new()) };
    let finding = match empty.len() {
        1 => format!("class {} has no images", printable(&first.id)),
        count => format!("{count} classes have no images, the first is {}", printable(&first.id)),
    };
    if allow_empty {
        return Ok(vec![format!("{}: {finding}", container.display())]);
    }
    // Not every folder without images is empty.
    let mut left_out = LeftOut::default();
    if let Some(path) = folders.get(&first.id) {
        images_below(path, &mut left_out)?;
    }
    match left_out.is_empty() {
        true => refuse(format!("{finding}; remove the empty folders, or accept them by allow_empty_classes")),
        false => refuse(format!("{finding} that can be read; its folder has: {left_out}")),
    }
}
