//! Class folders, in splits or by themselves, perhaps in folders around them.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use runtime::text::canonical;

use super::{
    Folder, builtin_wnid, check_classes, classes_in, images_below, key_prefix,
    splits::{MAX_WRAPPERS, SplitFolder, Splits, find_splits, named, step_into},
};
use crate::{
    Error, Result, imagenet,
    source::{
        Class, LeftOut, SourceKind, alike,
        layout::{Role, is_filler_name, split_name},
        options::{Found, OpenOptions, OpenPart},
        walk::{Entry, Listing, holds_image, list},
    },
};

/// Recognizes a folder with splits or with one level of classes, perhaps in folders around it; `None` if it is neither.
pub fn find_classes<'a>(given: &Path, options: &'a OpenOptions) -> Result<Option<Found<'a>>> {
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
        notes.extend(alike::note(&root, &ids, alike::MERGE));
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
            notes.extend(alike::note(&split.path, &ids, alike::MERGE));
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
