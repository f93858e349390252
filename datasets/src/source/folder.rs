//! Images as plain files: class folders, with splits or without, Kaggle's ImageNet, or no classes at all.
//!
//! ```text
//! DATA/train/CLASS/…/IMAGE        DATA/CLASS/…/IMAGE        DATA/IMAGE
//! DATA/val/CLASS/…/IMAGE
//! DATA/ILSVRC/Data/CLS-LOC/train/WNID/IMAGE
//! DATA/ILSVRC/Data/CLS-LOC/val/IMAGE with DATA/LOC_val_solution.csv
//! ```
//!
//! Classes sort by name, byte by byte, and so do the images of a class. Hidden files are skipped. Symbolic links are
//! followed; a folder is entered once per class, so loops end.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::Read,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Class, Location, MAX_SAMPLE_BYTES, Source, check_index, is_image_name,
    names::{Labels, Names, natural_order},
    options::{Found, OpenOptions, Part},
};
use crate::{Error, Result, imagenet};

/// The names a training split's folder may have.
const TRAIN_NAMES: [&str; 2] = ["train", "training"];

/// The names a validation split's folder may have; the first existing one counts.
const VAL_NAMES: [&str; 4] = ["val", "valid", "validation", "test"];

/// Images as files in a folder. Opening it lists the files without opening them.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    classes: Vec<Class>,
    names: Names,
    labels: Labels,
}

impl Folder {
    /// The images below `root/split/CLASS` for each of `classes` (by their `id`), at any depth; `split` may be empty.
    /// Keys are paths below `root` with `/` between folders.
    ///
    /// # Errors
    /// [`Error::Io`] for a folder that cannot be read, [`Error::Layout`] for a file name that is not Unicode. A class
    /// without a folder or without images is none.
    pub fn with_classes(root: &Path, split: &str, classes: Vec<Class>) -> Result<Self> {
        let mut names = Names::default();
        for class in &classes {
            let base = if split.is_empty() { format!("{}/", class.id) } else { format!("{split}/{}/", class.id) };
            let folder = root.join(&base);
            let mut images = if folder.is_dir() { images_below(&folder)? } else { Vec::new() };
            images.sort_unstable();
            names.push_group(&base, &images)?;
        }
        names.shrink_to_fit();
        let labels = Labels::PerGroup((0..classes.len() as u32).collect());
        Ok(Self { root: root.to_owned(), classes, names, labels })
    }

    /// All images below `root` at any depth, without labels, in natural order (`2.jpg` before `10.jpg`).
    ///
    /// # Errors
    /// As [`with_classes`](Folder::with_classes).
    pub fn images(root: &Path) -> Result<Self> {
        let mut images = images_below(root)?;
        images.sort_unstable_by(|a, b| natural_order(a, b));
        let mut names = Names::default();
        names.push_group("", &images)?;
        Ok(Self { root: root.to_owned(), classes: Vec::new(), names, labels: Labels::Absent })
    }

    /// The given files, without labels, in the given order; their keys are their paths.
    ///
    /// # Errors
    /// [`Error::Layout`] for a path that is not Unicode.
    pub fn files(paths: &[PathBuf]) -> Result<Self> {
        let paths = paths.iter().map(|path| unicode(path)).collect::<Result<Vec<_>>>()?;
        let mut names = Names::default();
        names.push_group("", &paths)?;
        Ok(Self { root: PathBuf::new(), classes: Vec::new(), names, labels: Labels::Absent })
    }

    /// The official validation images in one folder, `root/split/*`, each labeled by the wnid that `wnid_of` knows
    /// for its file name.
    fn official_val(
        root: &Path,
        split: &str,
        classes: Vec<Class>,
        wnid_of: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let mut images = images_below(&root.join(split))?;
        images.sort_unstable();
        let by_id: HashMap<&str, u32> = classes.iter().map(|class| class.id.as_str()).zip(0..).collect();
        let label = |image: &String| {
            let path = root.join(split).join(image);
            let wnid = wnid_of(image).ok_or_else(|| {
                Error::layout(path.display(), "no label is known for it; is it an official validation image?")
            })?;
            by_id.get(wnid.as_str()).copied().ok_or_else(|| {
                Error::layout(path.display(), format!("is of class {wnid}, which has no folder in the training data"))
            })
        };
        let labels = Labels::PerSample(images.iter().map(label).collect::<Result<_>>()?);
        let mut names = Names::default();
        names.push_group(&format!("{split}/"), &images)?;
        Ok(Self { root: root.to_owned(), classes, names, labels })
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
        self.root.join(self.names.get(index))
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
        Location { container: self.path(index).display().to_string(), member: None, offset: None }
    }
    fn read(&self, index: usize, buffer: &mut Vec<u8>) -> Result<()> {
        check_index(index, self.len())?;
        let path = self.path(index);
        read_file(&path, buffer).map_err(|source| Error::io(path, source))
    }
}

/// Replaces the content of `buffer` by a file's, up to [`MAX_SAMPLE_BYTES`] of it.
fn read_file(path: &Path, buffer: &mut Vec<u8>) -> std::io::Result<()> {
    buffer.clear();
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    if size > MAX_SAMPLE_BYTES {
        return Err(std::io::Error::other(format!(
            "{size} bytes are more than an image may have ({MAX_SAMPLE_BYTES})"
        )));
    }
    // One byte beyond the size lets the end be found without growing the buffer.
    buffer.reserve(size as usize + 1);
    file.take(MAX_SAMPLE_BYTES).read_to_end(buffer)?;
    Ok(())
}

/// Recognizes a folder with splits or with one level of classes; `None` if it is neither.
pub(super) fn find_classes<'a>(root: &'a Path, options: &'a OpenOptions) -> Result<Option<Found<'a>>> {
    let train = TRAIN_NAMES.iter().copied().find(|name| root.join(name).is_dir());
    let val = VAL_NAMES.iter().copied().find(|name| root.join(name).is_dir());
    let train_classes = train.map(|name| subfolders(&root.join(name))).transpose()?.unwrap_or_default();
    let val_classes = val.map(|name| subfolders(&root.join(name))).transpose()?.unwrap_or_default();
    // A lone `test` or `val` may be a class; with class folders inside it is a split.
    if !train_classes.is_empty() || !val_classes.is_empty() {
        return divided(root, train.zip(Some(train_classes)), val.zip(Some(val_classes)), options).map(Some);
    }

    let mut classes = Vec::new();
    let mut any_image = false;
    for class in subfolders(root)? {
        any_image = any_image || holds_image(&root.join(&class))?;
        classes.push(imagenet::named_class(&class));
    }
    if !any_image {
        return Ok(None);
    }
    Ok(Some(Found::Whole(Box::new(move || {
        let folder = Folder::with_classes(root, "", classes)?;
        let beside = images_beside_folders(root)?;
        let mut notes = check_classes(&root.display().to_string(), &folder, options.allow_empty_classes)?;
        if beside > 0 {
            notes.push(format!("{}: {beside} images lie beside the class folders and are left out", root.display()));
        }
        Ok(Part { source: Arc::new(folder), notes })
    }))))
}

/// Opens a folder with `train`, `val` or both. The classes are the training split's if there is one.
fn divided<'a>(
    root: &'a Path,
    train: Option<(&'static str, Vec<String>)>,
    val: Option<(&'static str, Vec<String>)>,
    options: &'a OpenOptions,
) -> Result<Found<'a>> {
    let class_ids = match (&train, &val) {
        (Some((_, ids)), _) if !ids.is_empty() => ids,
        (None, Some((_, ids))) => ids,
        (Some((name, _)), _) => {
            return Err(Error::layout(root.join(name).display(), "has no class folders; expected train/CLASS/IMAGE"));
        }
        (None, None) => return Err(Error::layout(root.display(), "has no split")),
    };
    let classes: Vec<Class> = class_ids.iter().map(|id| imagenet::named_class(id)).collect();

    let train_part = train.as_ref().map(|(name, _)| {
        let (name, classes) = (*name, classes.clone());
        Box::new(move || {
            let folder = Folder::with_classes(root, name, classes)?;
            let notes = check_classes(&root.join(name).display().to_string(), &folder, options.allow_empty_classes)?;
            Ok(Part { source: Arc::new(folder), notes })
        }) as _
    });
    let val_part = val.map(|(name, ids)| {
        Box::new(move || {
            let path = root.join(name);
            let folder = if ids.is_empty() {
                Folder::official_val(root, name, classes, builtin_wnid)?
            } else {
                let known: HashSet<&str> = classes.iter().map(|class| class.id.as_str()).collect();
                if let Some(unknown) = ids.iter().find(|id| !known.contains(id.as_str())) {
                    let cause = format!("class {unknown} is unknown to the training split");
                    return Err(Error::layout(path.display(), cause));
                }
                Folder::with_classes(root, name, classes)?
            };
            let notes = check_classes(&path.display().to_string(), &folder, true)?;
            Ok(Part { source: Arc::new(folder), notes })
        }) as _
    });
    Ok(Found::Divided { container: root.display().to_string(), train: train_part, val: val_part })
}

/// The folder `…/Data/CLS-LOC` of Kaggle's ImageNet, given it or one of the folders above it.
pub(super) fn kaggle_root(path: &Path) -> Option<PathBuf> {
    let candidates = [path.join("ILSVRC/Data/CLS-LOC"), path.join("Data/CLS-LOC"), path.join("CLS-LOC")];
    let itself = path.file_name().is_some_and(|name| name == "CLS-LOC").then(|| path.to_owned());
    candidates.into_iter().chain(itself).find(|folder| folder.join("train").is_dir() || folder.join("val").is_dir())
}

/// Opens Kaggle's ImageNet: `root` is the folder that [`kaggle_root`] found.
pub(super) fn find_kaggle<'a>(root: PathBuf, options: &'a OpenOptions) -> Result<Found<'a>> {
    let ids = if root.join("train").is_dir() { subfolders(&root.join("train"))? } else { Vec::new() };
    let has_train = !ids.is_empty();
    let classes: Vec<Class> = match has_train {
        true => ids.iter().map(|id| imagenet::named_class(id)).collect(),
        false => imagenet::classes().to_vec(),
    };
    let container = root.display().to_string();
    let train = has_train.then(|| {
        let (root, classes) = (root.clone(), classes.clone());
        Box::new(move || {
            let folder = Folder::with_classes(&root, "train", classes)?;
            let notes = check_classes(&root.join("train").display().to_string(), &folder, options.allow_empty_classes)?;
            Ok(Part { source: Arc::new(folder), notes })
        }) as _
    });
    let val = root.join("val").is_dir().then(|| {
        Box::new(move || {
            let solution = read_solution(&root)?;
            let folder = Folder::official_val(&root, "val", classes, |name| {
                let image = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
                solution.get(image).cloned().or_else(|| builtin_wnid(name))
            })?;
            let notes = check_classes(&root.join("val").display().to_string(), &folder, true)?;
            Ok(Part { source: Arc::new(folder), notes })
        }) as _
    });
    Ok(Found::Divided { container, train, val })
}

/// The wnid of an official validation image, from the labels that are built in.
pub(super) fn builtin_wnid(file_name: &str) -> Option<String> {
    let label = imagenet::val_label(imagenet::val_number(file_name)?)?;
    Some(imagenet::classes()[label as usize].id.clone())
}

/// Reads `LOC_val_solution.csv` (`ImageId,PredictionString`, where the string begins with the wnid) from the folders
/// above `CLS-LOC`; empty if there is none.
fn read_solution(root: &Path) -> Result<HashMap<String, String>> {
    let found = root.ancestors().take(4).map(|folder| folder.join("LOC_val_solution.csv")).find(|path| path.is_file());
    let Some(path) = found else { return Ok(HashMap::new()) };
    let text = fs::read_to_string(&path).map_err(|source| Error::io(&path, source))?;
    let mut solution = HashMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        if (number == 1 && line.starts_with("ImageId")) || line.trim().is_empty() {
            continue;
        }
        let row = line.split_once(',').and_then(|(image, rest)| Some((image, rest.split_whitespace().next()?)));
        let Some((image, wnid)) = row else {
            return Err(Error::layout(path.display(), format!("line {number} is not `ImageId,WNID …`: {line:?}")));
        };
        solution.insert(image.to_owned(), wnid.trim_matches('"').to_owned());
    }
    Ok(solution)
}

/// Rejects a split without samples, and one with empty classes unless they are allowed, which are then noted.
fn check_classes(container: &str, folder: &Folder, allow_empty: bool) -> Result<Vec<String>> {
    if folder.is_empty() {
        return Err(Error::layout(container, format!("no images; looked for {}", super::IMAGE_EXTENSIONS.join(", "))));
    }
    let counts = folder.counts();
    let empty: Vec<_> = counts.iter().zip(&folder.classes).filter(|(count, _)| **count == 0).map(|(_, c)| c).collect();
    let Some(first) = empty.first() else { return Ok(Vec::new()) };
    let finding = match empty.len() {
        1 => format!("class {} has no images", first.id),
        count => format!("{count} classes have no images, the first is {}", first.id),
    };
    if allow_empty {
        return Ok(vec![format!("{container}: {finding}")]);
    }
    Err(Error::layout(container, format!("{finding}; remove the empty folders or allow empty classes")))
}

/// Returns the names of the subfolders, sorted; links to folders count, hidden folders do not.
fn subfolders(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for (name, entry) in entries(folder)? {
        if kind_of(&entry)? == EntryKind::Folder {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The number of images directly in a folder.
pub(super) fn images_beside_folders(folder: &Path) -> Result<usize> {
    let mut count = 0;
    for (name, entry) in entries(folder)? {
        count += usize::from(is_image_name(&name) && kind_of(&entry)? == EntryKind::File);
    }
    Ok(count)
}

/// Whether there is an image anywhere below a folder.
pub(super) fn holds_image(folder: &Path) -> Result<bool> {
    let mut found = false;
    walk(folder, &mut |_| {
        found = true;
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// The images below a folder, as paths below it with `/` between folders, in no order.
fn images_below(folder: &Path) -> Result<Vec<String>> {
    let mut images = Vec::new();
    walk(folder, &mut |name| {
        images.push(name);
        ControlFlow::Continue(())
    })?;
    Ok(images)
}

/// Calls `visit` with each image below a folder. Each folder is entered once, even if several links lead to it.
fn walk(top: &Path, visit: &mut dyn FnMut(String) -> ControlFlow<()>) -> Result<()> {
    let mut seen = HashSet::new();
    let mut open = vec![String::new()];
    while let Some(below) = open.pop() {
        let folder = top.join(&below);
        let real = fs::canonicalize(&folder).map_err(|source| Error::io(&folder, source))?;
        if !seen.insert(real) {
            log::debug!("{}: was seen already by another link", folder.display());
            continue;
        }
        for (name, entry) in entries(&folder)? {
            match kind_of(&entry)? {
                EntryKind::Folder => open.push(format!("{below}{name}/")),
                EntryKind::File if is_image_name(&name) => {
                    if visit(format!("{below}{name}")).is_break() {
                        return Ok(());
                    }
                }
                EntryKind::File | EntryKind::Other => {}
            }
        }
    }
    Ok(())
}

/// The entries of a folder whose names do not begin with a dot.
fn entries(folder: &Path) -> Result<Vec<(String, fs::DirEntry)>> {
    let mut list = Vec::new();
    for entry in fs::read_dir(folder).map_err(|source| Error::io(folder, source))? {
        let entry = entry.map_err(|source| Error::io(folder, source))?;
        let name = unicode(Path::new(&entry.file_name()))?;
        if !name.starts_with('.') {
            list.push((name, entry));
        }
    }
    Ok(list)
}

#[derive(PartialEq, Eq)]
enum EntryKind {
    File,
    Folder,
    Other,
}

/// Returns the type of an entry, following links; a dangling link is an error if it is named like an image.
fn kind_of(entry: &fs::DirEntry) -> Result<EntryKind> {
    let path = entry.path();
    let mut kind = entry.file_type().map_err(|source| Error::io(&path, source))?;
    if kind.is_symlink() {
        kind = match fs::metadata(&path) {
            Ok(metadata) => metadata.file_type(),
            Err(_) if !is_image_name(&entry.file_name().to_string_lossy()) => return Ok(EntryKind::Other),
            Err(source) => return Err(Error::io(path, source)),
        };
    }
    Ok(match kind {
        kind if kind.is_dir() => EntryKind::Folder,
        kind if kind.is_file() => EntryKind::File,
        _ => EntryKind::Other,
    })
}

fn unicode(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Error::layout(path.display(), "the name is not Unicode, so it cannot be a stable key; rename it")
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{SourceKind, Split, open},
        *,
    };

    /// Creates a folder with the given files; each contains its own path.
    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        root
    }

    fn open_at(root: &Path, options: &OpenOptions) -> Result<super::super::Opened> {
        open(root.to_str().unwrap(), options)
    }

    fn keys(source: &dyn Source) -> Vec<String> {
        (0..source.len()).map(|index| source.key(index).into_owned()).collect()
    }

    fn labels(source: &dyn Source) -> Vec<Option<u32>> {
        (0..source.len()).map(|index| source.label(index)).collect()
    }

    #[test]
    fn splits_are_read_with_sorted_classes_and_human_names() {
        let root = tree(&[
            "train/n02085620/b.JPEG",
            "train/n02085620/deep/a.jpg",
            "train/n01440764/10.png",
            "train/n01440764/9.Tiff",
            "train/n01440764/.hidden.png",
            "train/n01440764/notes.txt",
            "train/.git/x.png",
            "val/n02085620/v.webp",
        ]);
        let train = open_at(root.path(), &OpenOptions::default()).unwrap();
        assert_eq!(train.kind, SourceKind::Folder);
        let names: Vec<_> = train.source.classes().iter().map(|class| class.name.as_str()).collect();
        assert_eq!(names, ["tench", "Chihuahua"]);
        let expected = [
            "train/n01440764/10.png",
            "train/n01440764/9.Tiff",
            "train/n02085620/b.JPEG",
            "train/n02085620/deep/a.jpg",
        ];
        assert_eq!(keys(&train.source), expected);
        assert_eq!(labels(&train.source), [Some(0), Some(0), Some(1), Some(1)]);
        let mut bytes = vec![0; 99];
        train.source.read(3, &mut bytes).unwrap();
        assert_eq!(bytes, b"train/n02085620/deep/a.jpg");
        assert!(matches!(train.source.read(4, &mut bytes), Err(Error::OutOfRange { index: 4, len: 4 })));

        let val = open_at(root.path(), &OpenOptions::split(Split::Val)).unwrap();
        assert_eq!((keys(&val.source), labels(&val.source)), (vec!["val/n02085620/v.webp".to_owned()], vec![Some(1)]));
        assert_eq!(val.notes.len(), 1, "the class without validation images is noted: {:?}", val.notes);
        let all = open_at(root.path(), &OpenOptions::split(Split::All)).unwrap();
        assert_eq!((all.source.len(), all.source.key(4).into_owned()), (5, "val/n02085620/v.webp".to_owned()));
        all.source.read(4, &mut bytes).unwrap();
        assert_eq!(bytes, b"val/n02085620/v.webp");
    }

    #[test]
    fn one_level_of_classes_is_split_by_class_and_seed_alone() {
        let files: Vec<String> =
            (0..40).map(|i| format!("cat/{i}.jpg")).chain((0..5).map(|i| format!("dog/{i}.jpg"))).collect();
        let root = tree(&files.iter().map(String::as_str).chain(["eel/only.jpg"]).collect::<Vec<_>>());
        let options = |split, val_fraction, seed| OpenOptions { split, val_fraction, seed, ..Default::default() };
        let part = |split, fraction, seed| open_at(root.path(), &options(split, fraction, seed)).unwrap().source;

        assert_eq!(part(Split::Train, None, 0).len(), 46);
        assert!(matches!(open_at(root.path(), &options(Split::Val, None, 0)), Err(Error::MissingSplit { .. })));
        assert!(open_at(root.path(), &options(Split::Val, Some(1.0), 0)).is_err());

        let (train, val) = (part(Split::Train, Some(0.1), 7), part(Split::Val, Some(0.1), 7));
        let count = |label| labels(&val).iter().filter(|&&l| l == Some(label)).count();
        assert_eq!([count(0), count(1), count(2)], [4, 1, 0], "of 40, 5 and 1");
        let mut both = [keys(&train), keys(&val)].concat();
        both.sort();
        let mut all = keys(&part(Split::All, Some(0.1), 7));
        all.sort();
        assert_eq!(both, all, "every sample is in exactly one part");
        assert_eq!(keys(&val), keys(&part(Split::Val, Some(0.1), 7)));
        assert_ne!(keys(&val), keys(&part(Split::Val, Some(0.1), 8)));
    }

    #[test]
    fn images_without_classes_come_in_natural_order() {
        let root = tree(&["10.jpg", "9.jpg", "1.BMP", "x.txt"]);
        let opened = open_at(root.path(), &OpenOptions::default()).unwrap();
        assert_eq!((opened.kind, labels(&opened.source)), (SourceKind::Images, vec![None; 3]));
        assert_eq!(keys(&opened.source), ["1.BMP", "9.jpg", "10.jpg"]);

        let one = open_at(&root.path().join("9.jpg"), &OpenOptions::split(Split::Val)).unwrap();
        let mut bytes = Vec::new();
        one.source.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, b"9.jpg");
        let some = open_at(&root.path().join("{10,9}.jpg"), &OpenOptions::default()).unwrap();
        assert_eq!(some.source.len(), 2);
        assert!(some.source.key(0).ends_with("10.jpg"), "a pattern's own order is kept");
    }

    #[test]
    fn kaggles_layout_is_labeled_by_its_solution_file() {
        let data = "ILSVRC/Data/CLS-LOC";
        let root = tree(&[
            &format!("{data}/train/n02085620/n02085620_1.JPEG"),
            &format!("{data}/train/n01440764/n01440764_1.JPEG"),
            &format!("{data}/val/ILSVRC2012_val_00000001.JPEG"),
            &format!("{data}/val/ILSVRC2012_val_00000002.JPEG"),
            &format!("{data}/test/ILSVRC2012_test_00000001.JPEG"),
        ]);
        fs::write(
            root.path().join("LOC_val_solution.csv"),
            "ImageId,PredictionString\nILSVRC2012_val_00000002,n01440764 1 2 3 4 n01440764 5 6 7 8\n\
             ILSVRC2012_val_00000001,n02085620 85 1 499 272 \n",
        )
        .unwrap();
        for top in ["", "ILSVRC", "ILSVRC/Data", data] {
            let train = open_at(&root.path().join(top), &OpenOptions::default()).unwrap();
            assert_eq!((train.kind, train.source.len()), (SourceKind::Kaggle, 2), "{top}");
            let val = open_at(&root.path().join(top), &OpenOptions::split(Split::Val)).unwrap();
            assert_eq!(labels(&val.source), [Some(1), Some(0)]);
            assert_eq!(val.source.key(0), "val/ILSVRC2012_val_00000001.JPEG");
        }
        // Image 1 is a sea snake by the labels that are built in: no class of this training split.
        fs::remove_file(root.path().join("LOC_val_solution.csv")).unwrap();
        let error = open_at(root.path(), &OpenOptions::split(Split::Val)).unwrap_err();
        assert!(error.to_string().contains("n01751748"), "{error}");
        fs::write(root.path().join("LOC_val_solution.csv"), "nonsense\n").unwrap();
        let error = open_at(root.path(), &OpenOptions::split(Split::Val)).unwrap_err();
        assert!(error.to_string().contains("line 1"), "{error}");
    }

    #[test]
    fn unsorted_official_validation_images_get_the_builtin_labels() {
        let root = tree(&["train/n01751748/a.jpg", "val/ILSVRC2012_val_00000001.JPEG"]);
        let val = open_at(root.path(), &OpenOptions::split(Split::Val)).unwrap();
        assert_eq!(labels(&val.source), [Some(0)]);
    }

    #[test]
    fn what_is_wrong_with_a_folder_is_said_clearly() {
        let says = |files: &[&str], folders: &[&str], options: &OpenOptions, expected: &str| {
            let root = tree(files);
            folders.iter().for_each(|folder| fs::create_dir_all(root.path().join(folder)).unwrap());
            let error = open_at(root.path(), options).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} should contain {expected}");
        };
        let default = OpenOptions::default();
        says(&["a/1.jpg"], &["b"], &default, "class b has no images");
        says(&["train/a/1.jpg"], &["train/b", "train/c"], &default, "2 classes have no images, the first is b");
        says(&[], &["train/a"], &default, "no images");
        says(&["notes.txt"], &[], &default, "Kaggle's");
        says(&[], &[], &default, "looked for");
        says(&["train/1.jpg"], &["val/a"], &default, "no class folders");
        let val = OpenOptions::split(Split::Val);
        says(&["train/a/1.jpg", "val/b/1.jpg"], &[], &val, "class b is unknown");
        says(&["train/a/1.jpg", "val/odd.jpg"], &[], &val, "no label is known");
        says(&["val/a/1.jpg"], &[], &default, "no train split");
        let images = OpenOptions { kind: Some(SourceKind::Kaggle), ..Default::default() };
        says(&["a/1.jpg"], &[], &images, "Kaggle");
        assert!(matches!(open("no/such/place", &default), Err(Error::Io { .. })));

        let root = tree(&["a/1.jpg"]);
        fs::create_dir(root.path().join("b")).unwrap();
        let lenient = OpenOptions { allow_empty_classes: true, ..Default::default() };
        let opened = open_at(root.path(), &lenient).unwrap();
        assert_eq!((opened.source.classes().len(), opened.notes.len()), (2, 1));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_loops_end() {
        use std::os::unix::fs::symlink;
        let root = tree(&["a/1.jpg", "a/sub/2.jpg", "elsewhere.bin"]);
        let at = |path: &str| root.path().join(path);
        symlink(at("a"), at("a/sub/up")).unwrap();
        symlink(at("a"), at("b")).unwrap();
        symlink(at("elsewhere.bin"), at("a/3.jpg")).unwrap();
        symlink(at("nowhere"), at("a/dangling")).unwrap();
        let opened = open_at(root.path(), &OpenOptions::default()).unwrap();
        let expected = ["a/1.jpg", "a/3.jpg", "a/sub/2.jpg", "b/1.jpg", "b/3.jpg", "b/sub/2.jpg"];
        assert_eq!(keys(&opened.source), expected);

        symlink(at("nowhere"), at("a/dangling.jpg")).unwrap();
        let error = open_at(root.path(), &OpenOptions::default()).unwrap_err();
        assert!(error.to_string().contains("dangling.jpg"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn an_unreadable_folder_is_named() {
        use std::os::unix::fs::PermissionsExt;
        let root = tree(&["a/1.jpg", "b/1.jpg"]);
        let closed = root.path().join("b");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        if fs::read_dir(&closed).is_ok() {
            eprintln!("skipped: this user may read every folder");
            return;
        }
        let error = open_at(root.path(), &OpenOptions::default()).unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("b")), "{error}");
    }
}
