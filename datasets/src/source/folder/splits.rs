//! Folders of splits: which of a folder's subfolders they are, by their names.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
};

use runtime::text::printable;

use super::key_prefix;
use crate::{
    Error, Result,
    source::{
        layout::{Role, is_filler_name, split_name},
        walk::{Entry, Listing, list},
    },
};

/// How many folders around the data are stepped through.
pub const MAX_WRAPPERS: usize = 8;

/// The most names that a message lists.
const NAMED: usize = 5;

/// A folder that is a split.
pub struct SplitFolder {
    pub role: Role,
    pub name: String,
    pub path: PathBuf,
    pub listing: Listing,
}

impl SplitFolder {
    pub fn has_classes(&self) -> bool {
        !self.listing.folders.is_empty()
    }
}

/// The training and the validation split of a folder.
pub struct Splits {
    pub train: Option<SplitFolder>,
    pub val: Option<SplitFolder>,
}

/// Finds the splits in a folder by their names, if any of them holds class folders. Notes what is left out.
pub fn find_splits(root: &Path, listing: &Listing, notes: &mut Vec<String>) -> Result<Option<Splits>> {
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
pub fn step_into(split: SplitFolder, is_class: impl Fn(&str) -> bool) -> Result<(SplitFolder, Option<String>)> {
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

/// Up to [`NAMED`] names in backquotes.
pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut names = names.into_iter();
    let mut text =
        names.by_ref().take(NAMED).map(|name| format!("`{}`", printable(name))).collect::<Vec<_>>().join(", ");
    match names.count() {
        0 => {}
        more => text += &format!(" and {more} more"),
    }
    text
}
