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

use std::{
    borrow::Cow,
    cmp::Ordering,
    collections::{BTreeMap, HashMap, HashSet},
    io::Read,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use runtime::{
    files::open_regular,
    text::{canonical, printable},
};

use super::{
    Class, LeftOut, LeftOutReason, Location, MAX_SAMPLE_BYTES, Source, SourceKind, alike, check_index,
    layout::{Role, is_filler_name, split_name},
    names::{Labels, Names, natural_order},
    options::{Found, OpenOptions, OpenPart, Part},
    walk::{Entry, ImageFile, Listing, Unreadable, holds_image, list, readable, walk},
};
use crate::{Error, Result, imagenet};

/// How many folders around the data are stepped through.
const MAX_WRAPPERS: usize = 8;

/// The most names that a message lists.
const NAMED: usize = 5;

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

/// Replaces the content of `buffer` by a file's, up to [`MAX_SAMPLE_BYTES`] of it.
fn read_file(path: &Path, buffer: &mut Vec<u8>) -> std::io::Result<()> {
    buffer.clear();
    let file = open_regular(path)?;
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

/// Up to [`NAMED`] names in backquotes.
fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut names = names.into_iter();
    let mut text =
        names.by_ref().take(NAMED).map(|name| format!("`{}`", printable(name))).collect::<Vec<_>>().join(", ");
    match names.count() {
        0 => {}
        more => text += &format!(" and {more} more"),
    }
    text
}

/// Recognizes a folder with splits or with one level of classes, perhaps in folders around it; `None` if it is neither.
pub(super) fn find_classes<'a>(given: &Path, options: &'a OpenOptions) -> Result<Option<Found<'a>>> {
    let (mut root, mut notes) = (given.to_owned(), Vec::new());
    let mut listing = list(&root)?;
    for _ in 0..MAX_WRAPPERS {
        if let Some(splits) = find_splits(&root, &listing, &mut notes)? {
            return divided(root, splits, notes, options).map(Some);
        }
        let Some(inner) = wrapped(&listing)? else { break };
        notes = vec![format!("{}: the data is taken from its folder {}", given.display(), key_prefix(given, &inner))];
        listing = list(&inner)?;
        root = inner;
    }

    let mut any_image = false;
    for class in &listing.folders {
        any_image = any_image || holds_image(&class.path)?;
    }
    if !any_image {
        return Ok(None);
    }
    if options.kind != Some(SourceKind::Folder) {
        // Images in a folder `images` are unlabeled.
        if let [only] = &listing.folders[..]
            && is_filler_name(&only.name)
        {
            return Ok(None);
        }
        check_splits_have_classes(&root, &listing.folders)?;
        check_subfolders(&root, &listing.folders)?;
    }
    notes.extend(images_beside(&root, &listing));
    let allow_empty = options.allow_empty_classes;
    Ok(Some(Found::Whole(Box::new(move || {
        let (ids, folders) = classes_in(&listing);
        notes.extend(alike::note(&root, &ids));
        let classes = ids.iter().map(|id| imagenet::named_class(id)).collect();
        let mut folder = Folder::of_classes(&root, &root, classes, &folders)?;
        folder.left_out.merge(&listing.left_out);
        notes.extend(check_classes(&root, &folder, &folders, allow_empty)?);
        Ok(folder.into_part(notes))
    }))))
}

/// A note of images beside class folders.
fn images_beside(folder: &Path, listing: &Listing) -> Option<String> {
    let count = listing.images.len();
    (count > 0).then(|| format!("{}: {count} images beside the class folders are left out", folder.display()))
}

/// The identifiers of the class folders in a folder, sorted, and the folders.
fn classes_in(listing: &Listing) -> (Vec<String>, ClassFolders) {
    let ids = listing.folders.iter().map(|class| class.name.clone()).collect();
    (ids, listing.folders.iter().map(|class| (class.name.clone(), class.path.clone())).collect())
}

/// The only folder in a folder that has data, where it holds further folders and not images: a folder too many.
fn wrapped(listing: &Listing) -> Result<Option<PathBuf>> {
    if !listing.images.is_empty() {
        return Ok(None);
    }
    let mut with_images = Vec::new();
    for folder in &listing.folders {
        let mut others = LeftOut::default();
        if holds_image(&folder.path)? {
            with_images.push(folder);
        } else if images_below(&folder.path, &mut others)?.is_empty() && others.is_empty() {
            // An empty folder may be a class whose images are missing.
            return Ok(None);
        }
        if with_images.len() > 1 {
            return Ok(None);
        }
    }
    let [only] = with_images[..] else { return Ok(None) };
    let inner = list(&only.path)?;
    Ok((inner.images.is_empty() && !inner.folders.is_empty()).then(|| only.path.clone()))
}

/// Refuses splits that hold images and no class folders: `train/1.jpg`, `test/2.jpg`.
fn check_splits_have_classes(root: &Path, folders: &[Entry]) -> Result<()> {
    let is_split = |folder: &Entry| split_name(&folder.name).is_some_and(|(_, rest)| rest.is_empty());
    if !folders.iter().all(is_split) {
        return Ok(());
    }
    let names = named(folders.iter().map(|folder| folder.name.as_str()));
    let cause = format!(
        "the splits {names} hold images and no class folders; expected train/CLASS/IMAGE. Labels in names of files or in \
         tables are not read: sort the images into one folder per class"
    );
    Err(Error::layout(root.display(), cause))
}

/// Refuses class folders that all have the same subfolders: those are the classes, or the splits.
fn check_subfolders(root: &Path, classes: &[Entry]) -> Result<()> {
    let [first, others @ ..] = classes else { return Ok(()) };
    let subfolders = |class: &Entry| -> Result<Option<Vec<String>>> {
        let listing = list(&class.path)?;
        Ok(listing.images.is_empty().then(|| listing.folders.into_iter().map(|folder| folder.name).collect()))
    };
    let Some(common) = subfolders(first)?.filter(|common| !common.is_empty() && !others.is_empty()) else {
        return Ok(());
    };
    for other in others {
        if subfolders(other)?.as_ref() != Some(&common) {
            return Ok(());
        }
    }
    let are_splits = common.iter().all(|name| split_name(name).is_some());
    // A single folder `images` in each class is usual.
    if common.len() == 1 && !are_splits {
        return Ok(());
    }
    let (classes, common) =
        (named(classes.iter().map(|class| class.name.as_str())), named(common.iter().map(String::as_str)));
    let cause = if are_splits {
        format!(
            "each of the folders {classes} has the subfolders {common}, which are splits; expected the splits above the \
             classes: train/CLASS/IMAGE and val/CLASS/IMAGE"
        )
    } else {
        format!(
            "the folders {classes} all have the same subfolders {common}: which of them are the classes? Open one of the \
             folders alone, name them train and val if they are splits, or select the kind `folder` to take the folders as \
             classes"
        )
    };
    Err(Error::layout(root.display(), cause))
}

/// A folder that is a split.
struct SplitFolder {
    role: Role,
    name: String,
    path: PathBuf,
    listing: Listing,
}

impl SplitFolder {
    fn has_classes(&self) -> bool {
        !self.listing.folders.is_empty()
    }
}

/// The training and the validation split of a folder.
struct Splits {
    train: Option<SplitFolder>,
    val: Option<SplitFolder>,
}

/// Finds the splits in a folder by their names, if any of them holds class folders. Notes what is left out.
fn find_splits(root: &Path, listing: &Listing, notes: &mut Vec<String>) -> Result<Option<Splits>> {
    let mut named_alike: BTreeMap<String, Vec<SplitFolder>> = BTreeMap::new();
    for Entry { name, path } in &listing.folders {
        if let Some((role, rest)) = split_name(name) {
            let split = SplitFolder { role, name: name.clone(), path: path.clone(), listing: list(path)? };
            named_alike.entry(rest).or_default().push(split);
        }
    }
    // `train` alone is a split; `seg_train` only beside `seg_test`.
    let is_pair = |splits: &[SplitFolder]| {
        let has = |wanted: &dyn Fn(Role) -> bool| splits.iter().any(|split| split.has_classes() && wanted(split.role));
        has(&|role| role == Role::Train) && has(&|role| role != Role::Train)
    };
    named_alike.retain(|rest, splits| match rest.as_str() {
        "" => splits.iter().any(SplitFolder::has_classes),
        _ => is_pair(splits),
    });
    let plain = named_alike.remove("");
    let mut groups: Vec<_> = match plain {
        Some(splits) => vec![splits],
        None => named_alike.into_values().collect(),
    };
    if groups.len() > 1 {
        let names = named(groups.iter().flatten().map(|split| split.name.as_str()));
        return Err(Error::layout(root.display(), format!("holds several data sets: {names}; open a folder with one")));
    }
    let Some(splits) = groups.pop() else { return Ok(None) };
    let mut by_role: BTreeMap<Role, Vec<SplitFolder>> = BTreeMap::new();
    // An empty folder is in nobody's way.
    for split in
        splits.into_iter().filter(|split| !split.listing.images.is_empty() || !split.listing.folders.is_empty())
    {
        by_role.entry(split.role).or_default().push(split);
    }
    if let Some((role, same)) = by_role.iter().find(|(_, same)| same.len() > 1) {
        let names = named(same.iter().map(|split| split.name.as_str()));
        let cause = format!("{names} could each be the {} split; keep one of them, or rename the others", role.name());
        return Err(Error::layout(root.display(), cause));
    }
    let mut take = |role| by_role.remove(&role).and_then(|mut same| same.pop());
    let (train, mut val, test) = (take(Role::Train), take(Role::Val), take(Role::Test));

    let used: HashSet<&str> = [&train, &val, &test].into_iter().flatten().map(|split| split.name.as_str()).collect();
    let mut others = Vec::new();
    for other in listing.folders.iter().filter(|other| !used.contains(other.name.as_str())) {
        if shows_images(&other.path)? {
            others.push(other.name.as_str());
        }
    }
    if let ([first, rest @ ..], 1) = (&others[..], used.len()) {
        let split = used.iter().next().copied().unwrap_or_default();
        let cause = format!(
            "`{split}` could be a split or a class beside {}; open {} alone, or rename it",
            named([*first].into_iter().chain(rest.iter().copied())),
            root.join(split).display()
        );
        return Err(Error::layout(root.display(), cause));
    }
    if !others.is_empty() {
        notes.push(format!("{}: {} belong to no split and are left out", root.display(), named(others)));
    }
    match test {
        Some(test) if val.is_some() => {
            notes.push(format!("{}: `{}` is left out; `val` is the other split", root.display(), test.name));
        }
        Some(test) => val = Some(test),
        None => {}
    }
    Ok(Some(Splits { train, val }))
}

/// Whether there are images in a folder or in one of its first subfolders. Annotations can be as many files as the images:
/// searching them all for a note would take too long.
fn shows_images(folder: &Path) -> Result<bool> {
    let listing = list(folder)?;
    for subfolder in listing.folders.iter().take(NAMED) {
        if !list(&subfolder.path)?.images.is_empty() {
            return Ok(true);
        }
    }
    Ok(!listing.images.is_empty())
}

/// Steps through the folders of a split that hold nothing but another folder of folders: `seg_train/seg_train/CLASS`.
fn step_into(split: SplitFolder, is_class: impl Fn(&str) -> bool) -> Result<(SplitFolder, Option<String>)> {
    let outer = split.path.clone();
    let mut split = split;
    for _ in 0..MAX_WRAPPERS {
        let [only] = &split.listing.folders[..] else { break };
        if !split.listing.images.is_empty() || is_class(&only.name) {
            break;
        }
        let inner = list(&only.path)?;
        let says_nothing =
            split_name(&only.name).is_some_and(|(role, _)| role == split.role) || is_filler_name(&only.name);
        // Otherwise it is a class, and the folders in it are parts of that.
        if !says_nothing && (!inner.images.is_empty() || inner.folders.len() < 2) {
            break;
        }
        split = SplitFolder { path: only.path.clone(), listing: inner, ..split };
    }
    let note = (split.path != outer).then(|| {
        format!("{}: the classes are taken from its folder {}", outer.display(), key_prefix(&outer, &split.path))
    });
    Ok((split, note))
}

/// Opens a folder with `train`, `val` or both. The classes are the training split's if there is one.
fn divided<'a>(root: PathBuf, splits: Splits, notes: Vec<String>, options: &'a OpenOptions) -> Result<Found<'a>> {
    let Splits { train, val } = splits;
    let mut notes = notes;
    let mut step = |split: Option<SplitFolder>, known: &HashSet<String>| -> Result<Option<SplitFolder>> {
        let Some(split) = split else { return Ok(None) };
        let (split, note) = step_into(split, |name| known.contains(canonical(name).as_ref()))?;
        notes.extend(note);
        Ok(Some(split))
    };
    let train = step(train, &HashSet::new())?;
    let text = |class: &Entry| canonical(&class.name).into_owned();
    let known = train.iter().flat_map(|split| &split.listing.folders).map(text).collect();
    let mut val = step(val, &known)?;
    if let Some(split) = &train {
        if !split.has_classes() {
            let cause = "has no class folders; expected train/CLASS/IMAGE";
            return Err(Error::layout(split.path.display(), cause));
        }
        if options.kind != Some(SourceKind::Folder) {
            check_subfolders(&split.path, &split.listing.folders)?;
        }
        // Test images are often unlabeled, in one folder or in a folder `unknown`.
        let foreign = |split: &SplitFolder| {
            split.role == Role::Test && !split.listing.folders.iter().any(|class| known.contains(&text(class)))
        };
        if let Some(test) = val.take_if(|split| foreign(split)) {
            let why = match test.has_classes() {
                true => named(test.listing.folders.iter().map(|class| class.name.as_str())),
                false => "it has no class folders".to_owned(),
            };
            let what = "is left out: the training split has none of its classes";
            notes.push(format!("{}: {what} ({why})", test.path.display()));
        }
        if let Some(test) = val.as_ref().filter(|split| split.role == Role::Test) {
            notes.push(format!(
                "{}: `{}` is the validation split, which selects the best epoch in training: there is no `val`",
                root.display(),
                test.name
            ));
        }
    }
    let class_ids = match (&train, &val) {
        (Some(split), _) | (None, Some(split)) => classes_in(&split.listing).0,
        (None, None) => return Err(Error::layout(root.display(), "has no split")),
    };
    let classes: Vec<Class> = class_ids.iter().map(|id| imagenet::named_class(id)).collect();
    let container = root.display().to_string();
    let allow_empty = options.allow_empty_classes;

    let train_part = train.map(|split| {
        let (root, classes, mut notes) = (root.clone(), classes.clone(), notes.clone());
        Box::new(move || {
            let (ids, folders) = classes_in(&split.listing);
            notes.extend(alike::note(&split.path, &ids));
            let mut folder = Folder::of_classes(&root, &split.path, classes, &folders)?;
            folder.left_out.merge(&split.listing.left_out);
            notes.extend(images_beside(&split.path, &split.listing));
            notes.extend(check_classes(&split.path, &folder, &folders, allow_empty)?);
            Ok(folder.into_part(notes))
        }) as OpenPart<'a>
    });
    let val_part = val.map(|split| {
        Box::new(move || {
            let (ids, folders) = classes_in(&split.listing);
            let (ids, folders) = alike::as_known(ids, folders, &classes);
            let folder = if ids.is_empty() {
                Folder::official_val(&root, &split.path, classes, builtin_wnid)?
            } else {
                check_known(&split.path, &ids, &classes)?;
                let mut folder = Folder::of_classes(&root, &split.path, classes, &folders)?;
                folder.left_out.merge(&split.listing.left_out);
                notes.extend(images_beside(&split.path, &split.listing));
                folder
            };
            notes.extend(check_classes(&split.path, &folder, &folders, true)?);
            Ok(folder.into_part(notes))
        }) as OpenPart<'a>
    });
    Ok(Found::Divided { container, train: train_part, val: val_part })
}

/// Refuses classes that the training split lacks.
fn check_known(split: &Path, ids: &[String], classes: &[Class]) -> Result<()> {
    let known: HashSet<&str> = classes.iter().map(|class| class.id.as_str()).collect();
    let unknown: Vec<&str> = ids.iter().map(String::as_str).filter(|id| !known.contains(id)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let what = if unknown.len() == 1 { "class" } else { "classes" };
    let verb = if unknown.len() == 1 { "is" } else { "are" };
    let looks_like = |id: &str| {
        classes.iter().find(|class| alike::folded(&class.id) == alike::folded(id)).map(|class| class.id.as_str())
    };
    let remedy = match unknown.iter().find_map(|id| looks_like(id)) {
        Some(class) => format!("it has {}, which differs in case or spaces: give both the same name", named([class])),
        None => "add its images there, or remove it here".to_owned(),
    };
    let cause = format!("{what} {} {verb} unknown to the training split; {remedy}", named(unknown));
    Err(Error::layout(split.display(), cause))
}

/// The folder `…/Data/CLS-LOC` of Kaggle's ImageNet, given it or one of the folders above it.
pub(super) fn kaggle_root(path: &Path) -> Option<PathBuf> {
    let candidates = [path.join("ILSVRC/Data/CLS-LOC"), path.join("Data/CLS-LOC"), path.join("CLS-LOC")];
    let itself = path.file_name().is_some_and(|name| name == "CLS-LOC").then(|| path.to_owned());
    candidates.into_iter().chain(itself).find(|folder| folder.join("train").is_dir() || folder.join("val").is_dir())
}

/// Opens Kaggle's ImageNet: `root` is the folder that [`kaggle_root`] found.
pub(super) fn find_kaggle<'a>(root: PathBuf, options: &'a OpenOptions) -> Result<Found<'a>> {
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

/// The wnid of an official validation image, from the labels that are built in.
pub(super) fn builtin_wnid(file_name: &str) -> Option<String> {
    let label = imagenet::val_label(imagenet::val_number(file_name)?)?;
    Some(imagenet::classes()[label as usize].id.clone())
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
        true => refuse(format!("{finding}; remove the empty folders or allow empty classes")),
        false => refuse(format!("{finding} that can be read; its folder has: {left_out}")),
    }
}

/// Reads a text file.
fn read_text(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    open_regular(path)?.read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{
        super::{LeftOutReason, Opened, Split, open},
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

    fn open_at(root: &Path, options: &OpenOptions) -> Result<Opened> {
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

        let table = tree(&["images/1.jpg", "images/2.jpg", "labels.csv"]);
        let unlabeled = open_at(table.path(), &OpenOptions::default()).unwrap();
        assert_eq!((unlabeled.kind, unlabeled.source.len()), (SourceKind::Images, 2));
        assert!(unlabeled.notes[0].contains("1 .csv"), "{:?}", unlabeled.notes);

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
        let rows = "ILSVRC2012_val_00000001,n02085620 1\nILSVRC2012_val_00000001,n02085620 2\n";
        fs::write(root.path().join("LOC_val_solution.csv"), rows).unwrap();
        let error = open_at(root.path(), &OpenOptions::split(Split::Val)).unwrap_err();
        assert!(error.to_string().contains("00000002"), "two rows that agree are one: {error}");
        fs::write(root.path().join("LOC_val_solution.csv"), rows.replace("n02085620 2", "n01440764 2")).unwrap();
        let error = open_at(root.path(), &OpenOptions::split(Split::Val)).unwrap_err().to_string();
        assert!(
            error.contains("line 2 has class n01440764") && error.contains("another line has n02085620"),
            "{error}"
        );
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
        says(&["train/a/1.jpg", "val/b/1.jpg"], &[], &val, "class `b` is unknown");
        says(&["train/Cat/1.jpg", "val/cat/1.jpg"], &[], &val, "it has `Cat`, which differs in case");
        says(&["a/1.jpg", "b/1.heic"], &[], &default, "class b has no images that can be read; its folder has");
        says(&["a/1.jpg"], &["b"], &default, "remove the empty folders");
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
        symlink(at("nowhere"), at("lost_class")).unwrap();
        symlink("/", at("b/everything")).unwrap();
        let opened = open_at(root.path(), &OpenOptions::default()).unwrap();
        assert_eq!(keys(&opened.source), expected);
        let count = |reason, extension: &str| {
            let groups: Vec<_> = opened.left_out.groups().collect();
            groups.iter().find(|group| (group.reason, group.extension) == (reason, extension)).map(|group| group.count)
        };
        assert_eq!(count(LeftOutReason::DeadLink, ".jpg"), Some(2), "through both links to the class");
        assert_eq!(count(LeftOutReason::DeadLink, ""), Some(3), "{}", opened.left_out);
        // `a/sub/up` through both links, and `everything`, likewise.
        assert_eq!(count(LeftOutReason::LinkLoop, "folder"), Some(4), "{}", opened.left_out);
        assert!(opened.notes.iter().any(|note| note.contains("dead link: 3 without extension")), "{:?}", opened.notes);
    }

    #[cfg(unix)]
    #[test]
    fn pipes_are_left_out_and_never_waited_for() {
        let root = tree(&["a/1.jpg", "a/2.jpg", "b/1.jpg"]);
        let pipe = root.path().join("a/pipe.jpg");
        if !std::process::Command::new("mkfifo").arg(&pipe).status().is_ok_and(|status| status.success()) {
            eprintln!("skipped: there is no mkfifo");
            return;
        }
        let opened = open_at(root.path(), &OpenOptions::default()).unwrap();
        assert_eq!((opened.source.len(), opened.left_out.count()), (3, 1));
        // One that takes the place of an image later is an error, not a wait.
        fs::rename(&pipe, root.path().join("b/1.jpg")).unwrap();
        let error = opened.source.read(2, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("b/1.jpg: it is a pipe"), "{error}");
        let error = open_at(&root.path().join("b/1.jpg"), &OpenOptions::default()).unwrap_err().to_string();
        assert!(error.contains("it is a pipe"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn names_that_are_not_unicode_are_read() {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
        let root = tree(&["train/a/1.jpg", "val/a/1.jpg"]);
        let odd = |name: &[u8]| OsStr::from_bytes(name).to_owned();
        for path in [odd(b"train/a/caf\xe9.jpg"), odd(b"train/gl\xfcck/2.jpg"), odd(b"train/a/caf\\xE9.jpg")] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "odd").unwrap();
        }
        let opened = open_at(root.path(), &OpenOptions::default()).unwrap();
        // The file that is really named like the other one's key keeps it.
        assert_eq!(keys(&opened.source), ["train/a/1.jpg", "train/a/caf\\xE9.jpg", "train/gl\\xFCck/2.jpg"]);
        let left_out: Vec<_> = opened.left_out.groups().map(|group| (group.reason, group.count)).collect();
        assert_eq!(left_out, [(LeftOutReason::AmbiguousName, 1)]);
        let mut bytes = Vec::new();
        (1..3).for_each(|index| opened.source.read(index, &mut bytes).unwrap());
        assert_eq!(bytes, b"odd");
        assert_eq!(opened.source.classes()[1].id, "gl\\xFCck");
        assert!(opened.source.location(2).to_string().ends_with("gl\\xFCck/2.jpg"));
    }

    #[test]
    fn splits_are_found_by_any_of_their_usual_names() {
        for (train, val) in [
            ("Training", "Testing"),
            ("TRAIN", "VAL"),
            ("Train", "Test"),
            ("training_set", "test_set"),
            ("train_images", "validation_images"),
            ("seg_train", "seg_test"),
            ("train2017", "val2017"),
            ("seg_train/seg_train", "seg_test/seg_test"),
            ("train/images", "valid/images"),
            ("archive/data/train", "archive/data/val"),
        ] {
            let files = [(train, "cat"), (train, "dog"), (val, "cat"), (val, "dog")]
                .map(|(split, class)| format!("{split}/{class}/1.jpg"));
            let root = tree(&files.each_ref().map(String::as_str));
            fs::create_dir_all(root.path().join("__MACOSX/._x")).unwrap();
            fs::create_dir_all(root.path().join(".ipynb_checkpoints")).unwrap();
            for (split, name) in [(Split::Train, train), (Split::Val, val)] {
                let opened = open_at(root.path(), &OpenOptions::split(split)).unwrap();
                let ids: Vec<_> = opened.source.classes().iter().map(|class| class.id.as_str()).collect();
                assert_eq!((opened.source.len(), ids), (2, vec!["cat", "dog"]), "{name}");
                let inner = name.strip_prefix("archive/data/").unwrap_or(name);
                assert_eq!(opened.source.key(1), format!("{inner}/dog/1.jpg"));
                let note = |text: &str| opened.notes.iter().any(|note| note.contains(text));
                assert_eq!(note("taken from its folder"), train.contains('/'), "{name}: {:?}", opened.notes);
                assert_eq!(note("selects the best epoch"), val.to_lowercase().contains("test"), "{:?}", opened.notes);
            }
        }
    }

    #[test]
    fn what_could_be_meant_in_two_ways_is_refused_with_the_names() {
        let says = |files: &[&str], expected: &[&str]| {
            let root = tree(files);
            let error = open_at(root.path(), &OpenOptions::default()).unwrap_err().to_string();
            expected.iter().for_each(|expected| assert!(error.contains(expected), "{error} should contain {expected}"));
        };
        says(&["train/a/1.jpg", "val/a/1.jpg", "valid/a/1.jpg"], &["`val`, `valid` could each be the val split"]);
        if fs::write(tree(&["Train"]).path().join("train"), "").is_ok() && !cfg!(any(windows, target_os = "macos")) {
            says(
                &["train/a/1.jpg", "Train/a/1.jpg", "val/a/1.jpg"],
                &["`Train`, `train` could each be the train split"],
            );
        }
        says(
            &["train/steam/1.jpg", "bus/1.jpg", "car/1.jpg"],
            &["`train` could be a split or a class beside `bus`, `car`"],
        );
        says(
            &["a_train/x/1.jpg", "a_test/x/1.jpg", "b_train/y/1.jpg", "b_val/y/1.jpg"],
            &["several data sets", "`a_test`"],
        );
        says(
            &["cat/train/1.jpg", "cat/val/1.jpg", "dog/train/1.jpg", "dog/val/1.jpg"],
            &["`train`, `val`, which are splits"],
        );
        says(&["x/cat/1.jpg", "x/dog/1.jpg", "y/cat/1.jpg", "y/dog/1.jpg"], &["the same subfolders `cat`, `dog`"]);
        says(
            &["train/2019/cat/1.jpg", "train/2019/dog/1.jpg", "train/2020/cat/1.jpg", "train/2020/dog/1.jpg"],
            &["same subfolders"],
        );
        says(&["train/train/1.jpg"], &["train/train: has no class folders"]);
        says(&["train/images/1.jpg", "val/a/1.jpg"], &["train/images: has no class folders"]);
        says(
            &["train/cat.1.jpg", "test1/1.jpg"],
            &["`test1`, `train` hold images and no class folders", "one folder per class"],
        );
        let root = tree(&["x/cat/1.jpg", "x/dog/1.jpg", "y/cat/1.jpg", "y/dog/1.jpg"]);
        let folder = OpenOptions { kind: Some(SourceKind::Folder), ..Default::default() };
        assert_eq!(open_at(root.path(), &folder).unwrap().source.classes().len(), 2, "a forced kind");
    }

    #[test]
    fn classes_that_resemble_splits_stay_classes() {
        let ids = |files: &[&str]| {
            let root = tree(files);
            let opened = open_at(root.path(), &OpenOptions::default()).unwrap();
            opened.source.classes().iter().map(|class| class.id.clone()).collect::<Vec<_>>()
        };
        assert_eq!(ids(&["bus/1.jpg", "train/1.jpg", "test tube/1.jpg"]), ["bus", "test tube", "train"]);
        assert_eq!(ids(&["steam_train/a/1.jpg", "steam_train/b/2.jpg", "bus/1.jpg"]), ["bus", "steam_train"]);
        assert_eq!(ids(&["a/images/1.jpg", "b/images/1.jpg"]), ["a", "b"], "as in Tiny ImageNet");
        assert_eq!(ids(&["photos/cat/1.jpg", "photos/dog/1.jpg", "annotations/x.xml"]), ["cat", "dog"]);
        assert_eq!(ids(&["images/train/cat/1.jpg", "images/train/dog/1.jpg", "labels/train/1.txt"]), ["cat", "dog"]);
        assert_eq!(ids(&["0/1.jpg", "1/1.jpg", "10/1.jpg"]), ["0", "1", "10"]);
    }

    #[test]
    fn test_images_beside_a_validation_split_or_without_labels_are_left_out_and_noted() {
        let opened = |files: &[&str], split| open_at(tree(files).path(), &OpenOptions::split(split)).unwrap();
        let three = opened(&["train/a/1.jpg", "val/a/2.jpg", "test/a/3.jpg"], Split::Val);
        assert_eq!(keys(&three.source), ["val/a/2.jpg"]);
        assert!(three.notes[0].contains("`test` is left out"), "{:?}", three.notes);
        for test in ["test/3.jpg", "test/unknown/3.jpg", "test/images/3.jpg", "test/test/3.jpg"] {
            let files = ["train/a/1.jpg", "train/b/2.jpg", test];
            let train = opened(&files, Split::Train);
            assert!(train.notes.iter().any(|note| note.contains("left out")), "{:?}", train.notes);
            let error = open_at(tree(&files).path(), &OpenOptions::split(Split::Val)).unwrap_err();
            assert!(matches!(error, Error::MissingSplit { .. }), "{error}");
        }
        // As in Tiny ImageNet: the training images are read, and the validation images have no labels.
        let files = ["train/a/images/1.jpg", "train/b/images/2.jpg", "val/images/3.jpg", "test/images/4.jpg"];
        assert_eq!(opened(&files, Split::Train).source.len(), 2);
        let error = open_at(tree(&files).path(), &OpenOptions::split(Split::Val)).unwrap_err().to_string();
        assert!(error.contains("val/images/3.jpg: no label is known"), "{error}");
        let stray = opened(&["train/a/1.jpg", "train/b/2.jpg", "train/stray.jpg"], Split::Train);
        assert_eq!((stray.source.len(), stray.notes.len()), (2, 1), "{:?}", stray.notes);
        let more = opened(&["train/a/1.jpg", "val/a/2.jpg", "unlabeled/3.jpg"], Split::Train);
        assert!(more.notes[0].contains("`unlabeled` belong to no split"), "{:?}", more.notes);
    }

    #[test]
    fn every_usual_extension_is_read_and_the_rest_is_counted() {
        let images: Vec<String> =
            super::super::IMAGE_EXTENSIONS.iter().map(|e| format!("a/x.{}", e.to_uppercase())).collect();
        let others = ["a/1.heic", "b/2.HEIC", "b/3.avif", "b/notes.txt", "b/README", "b/1.jpg", "b/._1.jpg"];
        let root = tree(&images.iter().map(String::as_str).chain(others).collect::<Vec<_>>());
        let opened = open_at(root.path(), &OpenOptions::default()).unwrap();
        assert_eq!(opened.source.len(), images.len() + 1);
        let groups: Vec<_> = opened.left_out.groups().map(|g| (g.reason, g.extension.to_owned(), g.count)).collect();
        let expected = [
            (LeftOutReason::UnsupportedFormat, ".avif", 1),
            (LeftOutReason::UnsupportedFormat, ".heic", 2),
            (LeftOutReason::Hidden, ".jpg", 1),
            (LeftOutReason::NoImage, "", 1),
            (LeftOutReason::NoImage, ".txt", 1),
        ];
        assert_eq!(groups, expected.map(|(reason, extension, count)| (reason, extension.to_owned(), count)));
        assert!(opened.notes[0].contains("2 .heic"), "{:?}", opened.notes);
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
