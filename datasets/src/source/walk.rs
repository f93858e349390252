//! Listing folders and the images below them.
//!
//! Hidden files are skipped. Links are followed, but not to a folder above, and a folder is entered once, so loops end.
//! Only regular files count: opening a pipe or a device could wait for ever.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs, io,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use super::{LeftOut, LeftOutReason, is_image_name, names::natural_order};
use crate::{Error, Result};

/// Extensions of images in formats that are not decoded, in lower case.
const UNSUPPORTED_EXTENSIONS: [&str; 43] = [
    "heic", "heif", "hif", "avif", "jxl", "jp2", "j2k", "jpf", "jpx", "jpm", "jpc", "jxr", "wdp", "hdp", "svg", "svgz",
    "raw", "dng", "cr2", "cr3", "crw", "nef", "nrw", "arw", "srf", "sr2", "orf", "rw2", "raf", "pef", "psd", "psb",
    "xcf", "ico", "cur", "tga", "exr", "hdr", "dds", "pcx", "eps", "dcm", "qoi",
];

/// Folders that operating systems, network drives and other programs put beside the data; those with a dot are hidden
/// anyway.
const FOREIGN_FOLDERS: [&str; 12] = [
    "__macosx",
    "@eadir",
    "#recycle",
    "@recycle",
    "#snapshot",
    "@recently-snapshot",
    "$recycle.bin",
    "recycler",
    "recycled",
    "system volume information",
    "lost+found",
    "__pycache__",
];

/// The folder that `train` creates run folders in, unless it is given another.
const RUNS: &str = "artifacts";

/// Whether a folder is one that `train` and `infer evaluate` write, whose pictures are no samples: a run, or the folder
/// of runs.
fn is_written_by_hearth(folder: &Path, name: &str) -> bool {
    let is_run = |folder: &Path| folder.join("run.json").is_file() && folder.join("card.json").is_file();
    let holds_run = || {
        fs::read_dir(folder)
            .is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(|entry| is_run(&entry.path()))))
    };
    is_run(folder) || (name == RUNS && holds_run())
}

/// The largest depth of nested folders.
const MAX_DEPTH: usize = 64;

/// An entry of a folder.
pub(super) struct Entry {
    /// The name; bytes that are not Unicode are written `\xFF`.
    pub name: String,
    /// The path.
    pub path: PathBuf,
}

impl Entry {
    /// Whether the path ends otherwise than the name.
    fn is_odd(&self) -> bool {
        self.path.file_name().is_none_or(|name| name.to_str().is_none())
    }
}

/// The content of a folder.
#[derive(Default)]
pub(super) struct Listing {
    /// The subfolders, sorted by name; links to folders count, hidden ones do not.
    pub folders: Vec<Entry>,
    /// The images, in no order.
    pub images: Vec<Entry>,
    /// Everything else.
    pub left_out: LeftOut,
}

/// Lists a folder.
pub(super) fn list(folder: &Path) -> Result<Listing> {
    let mut listing = Listing::default();
    for entry in fs::read_dir(folder).map_err(|source| Error::io(folder, source))? {
        let entry = entry.map_err(|source| Error::io(folder, source))?;
        let (path, name) = (entry.path(), readable(&entry.file_name()));
        let kind = match entry.file_type() {
            Ok(kind) if kind.is_symlink() => fs::metadata(&path).map(|metadata| metadata.file_type()),
            kind => kind,
        };
        let hidden = name.starts_with('.');
        match kind {
            Ok(kind) if kind.is_dir() => {
                if hidden
                    || FOREIGN_FOLDERS.contains(&name.to_lowercase().as_str())
                    || is_written_by_hearth(&path, &name)
                {
                    listing.left_out.folder(LeftOutReason::Hidden, &path);
                } else {
                    listing.folders.push(Entry { name, path });
                }
            }
            // Other hidden files are of no interest: `.DS_Store`, `.gitignore`.
            _ if hidden && !is_image_name(&name) => {}
            _ if hidden => listing.left_out.file(LeftOutReason::Hidden, &path),
            Ok(kind) if !kind.is_file() => listing.left_out.file(LeftOutReason::Special, &path),
            Ok(_) if is_image_name(&name) => listing.images.push(Entry { name, path }),
            Ok(_) if is_unsupported_image_name(&name) => {
                listing.left_out.file(LeftOutReason::UnsupportedFormat, &path);
            }
            Ok(_) => listing.left_out.file(LeftOutReason::NoImage, &path),
            Err(_) => listing.left_out.file(LeftOutReason::DeadLink, &path),
        }
    }
    // Of equal names the one that is really written so comes first; the others would be the same class.
    listing.folders.sort_unstable_by(|a, b| (&a.name, a.is_odd()).cmp(&(&b.name, b.is_odd())));
    listing.folders.dedup_by(|other, first| {
        let is_same = other.name == first.name;
        if is_same {
            listing.left_out.folder(LeftOutReason::AmbiguousName, &other.path);
        }
        is_same
    });
    Ok(listing)
}

fn is_unsupported_image_name(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_lowercase());
    extension.is_some_and(|extension| UNSUPPORTED_EXTENSIONS.contains(&extension.as_str()))
}

/// A name as text: bytes that are not Unicode become `\xFF`.
pub(super) fn readable(name: &OsStr) -> String {
    match name.to_str() {
        Some(name) => name.to_owned(),
        None => name.as_encoded_bytes().utf8_chunks().fold(String::new(), |mut text, chunk| {
            text.push_str(chunk.valid());
            chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02X}")));
            text
        }),
    }
}

/// An image below a folder.
pub(super) struct ImageFile {
    /// The path below the folder, with `/` between folders and readable names.
    pub key: String,
    /// The path, where the key is not one because a name is not Unicode.
    pub odd_path: Option<PathBuf>,
}

/// The identity of a folder, independent of links.
#[cfg(unix)]
fn identity(folder: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(folder).map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn identity(folder: &Path) -> io::Result<PathBuf> {
    fs::canonicalize(folder)
}

/// The policy for a subfolder that cannot be read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    Fail,
    Count,
}

/// Calls `visit` with each image below a folder, at any depth and in no order.
///
/// # Errors
/// [`Error::Io`] for a folder that cannot be read; for subfolders depending on `unreadable`.
pub(super) fn walk(
    top: &Path,
    unreadable: Unreadable,
    left_out: &mut LeftOut,
    visit: &mut dyn FnMut(ImageFile) -> ControlFlow<()>,
) -> Result<()> {
    // A link to a folder above would lead to everything beside the data, and then here again.
    let real = fs::canonicalize(top).map_err(|source| Error::io(top, source))?;
    let mut entered = real.ancestors().skip(1).filter_map(|above| identity(above).ok()).collect::<HashSet<_>>();
    let mut open = vec![(String::new(), top.to_owned(), false, 0)];
    while let Some((below, folder, odd, depth)) = open.pop() {
        let listed = identity(&folder).map_err(|source| Error::io(&folder, source)).and_then(|id| {
            let is_new = entered.insert(id) && depth <= MAX_DEPTH;
            is_new.then(|| list(&folder)).transpose()
        });
        let listing = match listed {
            Ok(Some(listing)) => listing,
            Ok(None) => {
                left_out.folder(LeftOutReason::LinkLoop, &folder);
                continue;
            }
            Err(_) if depth > 0 && unreadable == Unreadable::Count => {
                left_out.folder(LeftOutReason::Unreadable, &folder);
                continue;
            }
            Err(error) => return Err(error),
        };
        left_out.merge(&listing.left_out);
        for entry in listing.images {
            let odd_path = (odd || entry.is_odd()).then(|| entry.path.clone());
            if visit(ImageFile { key: format!("{below}{}", entry.name), odd_path }).is_break() {
                return Ok(());
            }
        }
        for entry in listing.folders {
            let odd = odd || entry.is_odd();
            open.push((format!("{below}{}/", entry.name), entry.path, odd, depth + 1));
        }
    }
    Ok(())
}

/// Whether there is an image anywhere below a folder.
pub(super) fn holds_image(folder: &Path) -> Result<bool> {
    let mut found = false;
    walk(folder, Unreadable::Count, &mut LeftOut::default(), &mut |_| {
        found = true;
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// The images in a folder and what is beside them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImagesInFolder {
    /// The paths of the images, in natural order (`2.jpg` before `10.jpg`).
    pub paths: Vec<PathBuf>,
    /// The number of images in subfolders, which are not in `paths` unless they were asked for.
    pub in_subfolders: usize,
    /// The entries left out.
    pub left_out: LeftOut,
}

/// Lists the images in a folder, and with `recursive` those in its subfolders too.
///
/// # Errors
/// [`Error::Io`] for a folder that cannot be read; subfolders that cannot be read are left out.
pub fn images_in_folder(folder: &Path, recursive: bool) -> Result<ImagesInFolder> {
    let (mut images, mut left_out, mut in_subfolders) = (Vec::new(), LeftOut::default(), 0);
    walk(folder, Unreadable::Count, &mut left_out, &mut |image| {
        let is_below = image.key.contains('/');
        in_subfolders += usize::from(is_below);
        if recursive || !is_below {
            images.push(image);
        }
        ControlFlow::Continue(())
    })?;
    if !recursive {
        left_out = list(folder)?.left_out;
    }
    images.sort_unstable_by(|a, b| natural_order(&a.key, &b.key));
    let path = |image: ImageFile| image.odd_path.unwrap_or_else(|| folder.join(&image.key));
    Ok(ImagesInFolder { paths: images.into_iter().map(path).collect(), in_subfolders, left_out })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_programs_and_this_one_write_beside_images_is_skipped() {
        let root = tempfile::tempdir().unwrap();
        let runs = ["artifacts/x-resnet18-001", "my-run", "artifacts/old/deeper"];
        for name in ["cat/1.jpg", "artifact/2.jpg", "#recycle/3.jpg", "@Recycle/4.jpg", "RECYCLER/5.jpg"] {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        for run in runs {
            let run = root.path().join(run);
            fs::create_dir_all(run.join("mistakes")).unwrap();
            fs::write(run.join("mistakes/01.png"), "x").unwrap();
            fs::write(run.join("run.json"), "{}").unwrap();
            fs::write(run.join("card.json"), "{}").unwrap();
        }
        let folders = |path: &Path| list(path).unwrap().folders.into_iter().map(|entry| entry.name).collect::<Vec<_>>();
        assert_eq!(folders(root.path()), ["artifact", "cat"]);
        assert_eq!(images_in_folder(root.path(), true).unwrap().paths.len(), 2);
        // A class may be called so, too.
        let other = tempfile::tempdir().unwrap();
        fs::create_dir_all(other.path().join("artifacts/vases")).unwrap();
        assert_eq!(folders(other.path()), ["artifacts"]);
    }

    #[test]
    fn images_in_subfolders_are_counted_or_listed() {
        let root = tempfile::tempdir().unwrap();
        for name in
            ["10.jpg", "2.PNG", "notes.txt", "x.heic", ".hidden.jpg", "sub/1.jpg", "sub/deep/3.jpg", "sub/4.avif"]
        {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let names = |found: &ImagesInFolder| -> Vec<String> {
            let below = found.paths.iter().map(|path| path.strip_prefix(root.path()).unwrap());
            below.map(|path| path.to_str().unwrap().replace('\\', "/")).collect()
        };
        let flat = images_in_folder(root.path(), false).unwrap();
        assert_eq!(names(&flat), ["2.PNG", "10.jpg"]);
        assert_eq!((flat.in_subfolders, flat.left_out.count()), (2, 3), "{}", flat.left_out);
        let deep = images_in_folder(root.path(), true).unwrap();
        assert_eq!(names(&deep), ["2.PNG", "10.jpg", "sub/1.jpg", "sub/deep/3.jpg"]);
        assert_eq!((deep.in_subfolders, deep.left_out.count()), (2, 4), "{}", deep.left_out);
        assert!(images_in_folder(&root.path().join("none"), true).is_err());
    }
}
