//! Opening a data set from a path, a pattern or a URL.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use runtime::text::printable;

use super::{
    LocalFile, ReadAt, Source, Subset, archive, folder, foreign, is_image_name,
    options::{Found, OpenOptions, OpenPart, Opened, Part, SourceKind, Split, TableOptions},
    pattern,
    subset::Chain,
    table::{self, is_table_name},
    walk::holds_image,
    webdataset::{self, WEBDATASET},
};
#[cfg(feature = "parquet")]
use super::{index::IndexCache, layout::Role};
use crate::{Digits, Error, Result};

/// Opens the data set `spec`.
///
/// The kinds are tried in this order, and the first match is opened; `options.kind` selects one:
///
/// | kind | path |
/// |---|---|
/// | `digits` | the word `digits`, where nothing of that name is there: the [digits](crate::digits) that are built in |
/// | `archive` | a folder with `ILSVRC2012_img_train.tar`, `ILSVRC2012_img_val.tar` or both, or one such file by any name |
/// | `webdataset` | a folder of `.tar` files, one of them, or a pattern (`imagenet-train-{0000..1023}.tar`, `shards/*.tar`) |
/// | `parquet` | a folder of `.parquet` files or one whose `data` folder has them, one of them, or a pattern |
/// | `kaggle` | a folder with `ILSVRC/Data/CLS-LOC/{train,val}`, or one of the folders on the way down |
/// | `folder` | a folder with `train/CLASS/…`, `val/CLASS/…` (in any case and usual variant: `Training`, `test_set`), or with `CLASS/…` |
/// | `table` | a file `.csv`, `.tsv`, `.txt` or `.jsonl` with a row for each image, or a folder with one, or with one for each split |
/// | `images` | an image file, a folder of images, a pattern (`photos/*.jpg`, `{a,b}.png`) |
///
/// Images get labels from their names by `options.table.label_from`. The other options of tables are refused where the
/// data is none.
///
/// A URL (`http://`, `https://`, `s3://`, `gs://`, `az://`; cargo feature `remote`) is one `.tar` or `.parquet`, a
/// pattern of them, or a folder: of any of these where the store can list it, of the official archives elsewhere.
///
/// Data with a `train` and a `val` split opens the one that `options.split` names, and both for [`Split::All`]. Data
/// without splits is opened whole for `Train` and `All`, and has no `Val`, unless `options.val_fraction` splits it;
/// likewise for data with a `train` split alone. Images without labels are opened whole for every split.
///
/// # Errors
/// [`Error::Unrecognized`] names the accepted layouts; [`Error::MissingSplit`], [`Error::Layout`] (no samples, empty
/// classes, classes that only `val` knows), [`Error::Io`].
pub fn open(spec: &str, options: &OpenOptions) -> Result<Opened> {
    let path = Path::new(spec);
    let (kind, found) = recognize(spec, path, options)?;
    check_table_options(spec, kind, &options.table)?;
    let part = select(spec, found, options, kind)?;
    log::debug!("{spec}: {kind}, {} samples of {} classes", part.source.len(), part.source.classes().len());
    let notes = part.notes.iter().map(|note| printable(note).into_owned()).collect();
    Ok(Opened { source: part.source, kind, split: options.split, notes, left_out: part.left_out })
}

/// Refuses options of tables for other data: they would have no effect.
fn check_table_options(spec: &str, kind: SourceKind, options: &TableOptions) -> Result<()> {
    let labels_in_names = options.label_from.is_some() && !matches!(kind, SourceKind::Table | SourceKind::Images);
    let is_table = kind == SourceKind::Table || (kind == SourceKind::Parquet && options.images_root.is_none());
    let unused = match (options.is_of_table() && !is_table, labels_in_names) {
        (true, _) => {
            "a column or the folder of a table's images (image_column, label_column, split_column, images_root)"
        }
        (_, true) => "an expression for labels in names of files (label_from)",
        _ => return Ok(()),
    };
    Err(Error::layout(spec, format!("is of the kind {kind}, for which {unused} has no effect; leave it out")))
}

fn recognize<'a>(spec: &str, path: &'a Path, options: &'a OpenOptions) -> Result<(SourceKind, Found<'a>)> {
    let wanted = |kind| options.kind.is_none_or(|asked| asked == kind);
    let mut looked_for = Vec::new();

    if spec.contains("://") && !path.exists() {
        if spec.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("file:")) {
            return Err(Error::io(path, explained(spec, std::io::ErrorKind::NotFound.into())));
        }
        return find_remote(spec, options);
    }
    if wanted(SourceKind::Digits) && spec == "digits" && !path.exists() {
        let part = |digits: fn() -> Digits| Some(Box::new(move || Ok(Part::new(digits(), Vec::new()))) as OpenPart<'a>);
        let (train, val) = (part(Digits::train), part(Digits::test));
        return Ok((SourceKind::Digits, Found::Divided { container: spec.to_owned(), train, val }));
    }
    if !path.exists() && pattern::is_pattern(spec) {
        let files = pattern::local_files(spec)?;
        if let Some(pattern) = label_pattern(spec, options)? {
            let is_image = |path: &PathBuf| path.file_name().is_some_and(|name| is_image_name(&name.to_string_lossy()));
            let images = files.into_iter().filter(is_image).collect();
            return Ok((SourceKind::Images, table::find_labeled(spec, pattern, Some(images))?));
        }
        if wanted(SourceKind::WebDataset) && files.iter().all(|path| path.extension().is_some_and(|e| e == "tar")) {
            let shards = webdataset::local_shards(&files)?;
            return Ok((SourceKind::WebDataset, webdataset::find(spec.to_owned(), shards, WEBDATASET, options)));
        }
        looked_for.push("tar files alone");
        if wanted(SourceKind::Parquet) && files.iter().all(|path| path.extension().is_some_and(|e| e == "parquet")) {
            return Ok((SourceKind::Parquet, find_parquet(spec, &files, options)?));
        }
        looked_for.push("Parquet files alone");
        let is_image = |path: &PathBuf| path.to_string_lossy().rsplit('/').next().is_some_and(is_image_name);
        if wanted(SourceKind::Images) && files.iter().any(is_image) {
            let files: Vec<_> = files.into_iter().filter(is_image).collect();
            return Ok((SourceKind::Images, images(move || folder::Folder::files(&files), Vec::new())));
        }
        looked_for.push("images among the files that match the pattern");
        return Err(unrecognized(spec, &looked_for));
    }

    let metadata = std::fs::metadata(path).map_err(|source| Error::io(path, explained(spec, source)))?;
    if metadata.is_file() {
        if wanted(SourceKind::Table) && (is_table_name(spec) || options.kind == Some(SourceKind::Table)) {
            return Ok((SourceKind::Table, table::find(path, &options.table)?));
        }
        looked_for.push("*.csv, *.tsv, *.txt, *.jsonl");
        if wanted(SourceKind::Archive) && spec.ends_with(".tar") {
            let file: Arc<dyn ReadAt> = Arc::new(LocalFile::open(path)?);
            if let Some(archives) = archive::recognize(&file)? {
                return Ok((SourceKind::Archive, archive::find(spec.to_owned(), archives, options)));
            }
            looked_for.push("a tar of one tar a class, or of ILSVRC2012_val_….JPEG");
        }
        if wanted(SourceKind::WebDataset) && spec.ends_with(".tar") {
            let shards = webdataset::local_shards(&[path.to_owned()])?;
            return Ok((SourceKind::WebDataset, webdataset::find(spec.to_owned(), shards, WEBDATASET, options)));
        }
        if wanted(SourceKind::Parquet) && spec.ends_with(".parquet") {
            return Ok((SourceKind::Parquet, find_parquet(spec, &[path.to_owned()], options)?));
        }
        looked_for.push("*.tar, *.parquet");
        if wanted(SourceKind::Images) && is_image_name(spec) {
            return Ok((SourceKind::Images, images(move || folder::Folder::files(&[path.to_owned()]), Vec::new())));
        }
        looked_for.push("an image file (jpg, png, webp, bmp, gif, tif, ppm)");
        let what = path.file_name().and_then(|name| foreign::file(&name.to_string_lossy()));
        return Err(what.map_or_else(|| unrecognized(spec, &looked_for), |what| Error::layout(spec, what)));
    }
    if !metadata.is_dir() {
        let kind = std::io::Error::other("it is a pipe, socket or device, not a regular file or a folder");
        return Err(Error::io(path, kind));
    }

    if let Some(pattern) = label_pattern(spec, options)? {
        return Ok((SourceKind::Images, table::find_labeled(spec, pattern, None)?));
    }
    if options.kind == Some(SourceKind::Table) || (options.kind.is_none() && options.table.is_of_table()) {
        if let Some(found) = table::find_in_folder(path, &options.table)? {
            return Ok((SourceKind::Table, found));
        }
        looked_for.push("tables (*.csv, *.tsv, *.jsonl)");
    }
    if wanted(SourceKind::Archive) {
        if let Some(archives) = archive::local_archives(path)? {
            return Ok((SourceKind::Archive, archive::find(spec.to_owned(), archives, options)));
        }
        looked_for.push("ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar");
    }
    if wanted(SourceKind::WebDataset) {
        let shards = webdataset::files_in(path, "tar")?;
        if !shards.is_empty() {
            let shards = webdataset::local_shards(&shards)?;
            return Ok((SourceKind::WebDataset, webdataset::find(spec.to_owned(), shards, WEBDATASET, options)));
        }
        looked_for.push("shards (*.tar)");
    }
    if wanted(SourceKind::Parquet) {
        for folder in [path.to_owned(), path.join("data")] {
            let files = if folder.is_dir() { webdataset::files_in(&folder, "parquet")? } else { Vec::new() };
            if !files.is_empty() {
                return Ok((SourceKind::Parquet, find_parquet(spec, &files, options)?));
            }
        }
        looked_for.push("Parquet tables (*.parquet, data/*.parquet)");
    }
    if wanted(SourceKind::Kaggle) {
        if let Some(root) = folder::kaggle_root(path) {
            return Ok((SourceKind::Kaggle, folder::find_kaggle(root, options)?));
        }
        looked_for.push("Kaggle's ILSVRC/Data/CLS-LOC");
    }
    if wanted(SourceKind::Folder) {
        match folder::find_classes(path, options) {
            Ok(Some(found)) => return Ok((SourceKind::Folder, found)),
            Ok(None) => {}
            // Tables beside folders of images say which are which.
            Err(error) => match table::find_in_folder(path, &options.table) {
                Ok(Some(found)) if wanted(SourceKind::Table) => return Ok((SourceKind::Table, found)),
                Err(of_table) if wanted(SourceKind::Table) => return Err(of_table),
                _ => return Err(error),
            },
        }
        looked_for.push("train/CLASS/IMAGE and val/CLASS/IMAGE, CLASS/IMAGE");
    }
    if wanted(SourceKind::Table) {
        match table::find_in_folder(path, &options.table) {
            Ok(Some(found)) => return Ok((SourceKind::Table, found)),
            Ok(None) => {}
            // A table beside images may be about something else.
            Err(Error::Layout { container, cause }) if wanted(SourceKind::Images) && holds_image(path)? => {
                let note = format!("{container} gives the images no labels: it {cause}");
                return Ok((SourceKind::Images, images(move || folder::Folder::images(path), vec![note])));
            }
            Err(error) => return Err(error),
        }
        looked_for.push("a table (*.csv, *.tsv, *.jsonl)");
    }
    if wanted(SourceKind::Images) {
        if holds_image(path)? {
            return Ok((SourceKind::Images, images(move || folder::Folder::images(path), Vec::new())));
        }
        looked_for.push("images (jpg, png, webp, bmp, gif, tif, ppm)");
    }
    let what = foreign::folder(path);
    Err(what.map_or_else(|| unrecognized(spec, &looked_for), |what| Error::layout(spec, what)))
}

#[cfg(not(feature = "remote"))]
fn find_remote<'a>(spec: &str, _options: &'a OpenOptions) -> Result<(SourceKind, Found<'a>)> {
    Err(Error::NeedsFeature { spec: spec.to_owned(), feature: "remote" })
}

/// Opens a URL: archives by their names or content, shards, tables.
#[cfg(feature = "remote")]
fn find_remote<'a>(spec: &str, options: &'a OpenOptions) -> Result<(SourceKind, Found<'a>)> {
    if !super::remote::is_remote(spec) {
        return Err(unrecognized(spec, &["http://, https://, s3://, gs://, az://"]));
    }
    let wanted = |kind| options.kind.is_none_or(|asked| asked == kind);
    let (files, manifest) = super::remote::files(spec, &options.remote)?;
    let all_end = |extension: &str| files.iter().all(|file| file.name().ends_with(extension));
    if wanted(SourceKind::Archive) && all_end(".tar") {
        let official = archive::OFFICIAL_NAMES
            .map(|name| files.iter().find(|file| file.name().rsplit('/').next() == Some(name)).cloned());
        let found = match files.as_slice() {
            _ if official.iter().any(Option::is_some) => Some(official),
            [file] => archive::recognize(file)?,
            _ => None,
        };
        if let Some(archives) = found {
            return Ok((SourceKind::Archive, archive::find(spec.to_owned(), archives, options)));
        }
    }
    let classes = match manifest {
        Some(bytes) => webdataset::manifest_classes(spec, &bytes)?,
        None => None,
    };
    if wanted(SourceKind::WebDataset) && all_end(".tar") {
        let shards = webdataset::Shards { files, classes };
        return Ok((SourceKind::WebDataset, webdataset::find(spec.to_owned(), shards, WEBDATASET, options)));
    }
    #[cfg(feature = "parquet")]
    if wanted(SourceKind::Parquet) && all_end(".parquet") {
        return Ok((SourceKind::Parquet, find_tables(spec, webdataset::Shards { files, classes }, options)?));
    }
    #[cfg(not(feature = "parquet"))]
    if wanted(SourceKind::Parquet) && all_end(".parquet") {
        return Err(Error::NeedsFeature { spec: spec.to_owned(), feature: "parquet" });
    }
    Err(unrecognized(spec, &["the official archives", "shards (*.tar)", "Parquet tables (*.parquet)"]))
}

#[cfg(feature = "parquet")]
fn find_parquet<'a>(spec: &str, files: &[PathBuf], options: &'a OpenOptions) -> Result<Found<'a>> {
    find_tables(spec, webdataset::local_shards(files)?, options)
}

/// The splits of Parquet tables: those of a column if one is given, else those in the names of the files.
#[cfg(feature = "parquet")]
fn find_tables<'a>(spec: &str, shards: webdataset::Shards, options: &'a OpenOptions) -> Result<Found<'a>> {
    use super::parquet::{PARQUET, splits, with_classes};
    let shards = with_classes(shards, &options.table)?;
    let Some(column) = &options.table.split_column else {
        return Ok(webdataset::find(spec.to_owned(), shards, PARQUET, options));
    };
    let cells = splits(&shards.files, &options.table)?;
    let roles = table::roles_of_cells(&cells, column).map_err(|cause| Error::layout(spec, cause))?;
    let cache = IndexCache::new(options.index_cache.as_deref());
    let whole = webdataset::open_part(spec, shards.files, &[], shards.classes, PARQUET, &options.table, &cache)?;
    let part = |role: Role| -> Result<Option<OpenPart<'a>>> {
        let indices: Vec<u32> = (0..).zip(&roles).filter(|(_, of)| **of == role).map(|(index, _)| index).collect();
        if indices.is_empty() {
            return Ok(None);
        }
        let (source, notes) = (Subset::new(whole.source.clone(), indices)?, whole.notes.clone());
        Ok(Some(Box::new(move || Ok(Part::new(source, notes)))))
    };
    let (train, val, test) = (part(Role::Train)?, part(Role::Val)?, part(Role::Test)?);
    let notes_of_test = match (&val, &test) {
        (Some(_), Some(_)) => Some("the rows of the test split are left out; `val` is the other split"),
        (None, Some(_)) if train.is_some() => {
            Some("`test` is the validation split, which selects the best epoch in training: there is no `val`")
        }
        _ => None,
    };
    let note = notes_of_test.map(|note| format!("{spec}: {note}"));
    let noted = |open: OpenPart<'a>| {
        let note = note.clone();
        Box::new(move || {
            let mut part = open()?;
            part.notes.extend(note);
            Ok(part)
        }) as OpenPart<'a>
    };
    Ok(Found::Divided { container: spec.to_owned(), train: train.map(noted), val: val.or(test).map(noted) })
}

#[cfg(not(feature = "parquet"))]
fn find_parquet<'a>(spec: &str, _files: &[PathBuf], _options: &'a OpenOptions) -> Result<Found<'a>> {
    Err(Error::NeedsFeature { spec: spec.to_owned(), feature: "parquet" })
}

/// The system's error for a path that cannot be opened, and what the path may be.
fn explained(spec: &str, source: std::io::Error) -> std::io::Error {
    let is_missing = source.kind() == std::io::ErrorKind::NotFound;
    let hint = || match KNOWN_SETS.contains(&spec.to_lowercase().replace(['-', '_', ' '], "").as_str()) {
        true => Some("only `digits` is built in; give the path of the data".to_owned()),
        false => runtime::missing::hint(spec),
    };
    match is_missing.then(hint).flatten() {
        Some(hint) => std::io::Error::new(source.kind(), format!("{source}; {hint}")),
        None => source,
    }
}

/// Names by which other programs download data sets.
const KNOWN_SETS: [&str; 16] = [
    "mnist",
    "fashionmnist",
    "cifar",
    "cifar10",
    "cifar100",
    "svhn",
    "stl10",
    "imagenet",
    "imagenet1k",
    "imagenette",
    "imagewoof",
    "tinyimagenet",
    "flowers102",
    "food101",
    "caltech101",
    "oxfordpets",
];

/// The expression that finds labels in names of files, where the data may be such files.
fn label_pattern<'a>(spec: &str, options: &'a OpenOptions) -> Result<Option<&'a str>> {
    let Some(pattern) = &options.table.label_from else { return Ok(None) };
    match options.kind {
        None | Some(SourceKind::Images) => Ok(Some(pattern)),
        Some(SourceKind::Table) => Ok(None),
        Some(kind) => {
            Err(Error::layout(spec, format!("labels in names of files (label_from) are not of the kind {kind}")))
        }
    }
}

fn unrecognized(spec: &str, looked_for: &[&str]) -> Error {
    Error::Unrecognized { spec: spec.to_owned(), looked_for: looked_for.join("; ") }
}

fn images<'a>(open: impl FnOnce() -> Result<folder::Folder> + 'a, notes: Vec<String>) -> Found<'a> {
    Found::Whole(Box::new(move || Ok(open()?.into_part(notes))))
}

/// Opens the requested split.
fn select(spec: &str, found: Found<'_>, options: &OpenOptions, kind: SourceKind) -> Result<Part> {
    let (container, train, val) = match found {
        Found::Whole(open) => {
            let part = open()?;
            if kind == SourceKind::Images && part.source.classes().is_empty() {
                return Ok(part);
            }
            return draw_split(spec, part, options);
        }
        Found::Divided { container, train, val } => (container, train, val),
    };
    let missing = |split: Split, hint: &str| Error::MissingSplit {
        container: container.clone(),
        split: split.name(),
        hint: hint.to_owned(),
    };
    match (options.split, train, val) {
        (Split::Train, Some(train), Some(_)) => train(),
        (Split::Train | Split::Val, Some(train), None) => draw_split(&container, train()?, options),
        (Split::Train, None, _) => Err(missing(Split::Train, "there is only validation data")),
        (Split::Val, _, Some(val)) => val(),
        (Split::All, Some(train), Some(val)) => {
            let (train, val) = (train()?, val()?);
            let Part { mut notes, mut left_out, source } = train;
            let new = val.notes.into_iter().filter(|note| !notes.contains(note)).collect::<Vec<_>>();
            notes.extend(new);
            left_out.merge(&val.left_out);
            Ok(Part { source: Arc::new(Chain::new(vec![source, val.source])), notes, left_out })
        }
        (Split::All, Some(part), None) | (Split::All, None, Some(part)) => part(),
        (split, None, None) => Err(missing(split, "there is neither training nor validation data")),
    }
}

/// Splits data that has no splits.
fn draw_split(container: &str, part: Part, options: &OpenOptions) -> Result<Part> {
    let Part { source, notes, left_out } = part;
    let source: Arc<dyn Source> = match (options.split, options.val_fraction) {
        (Split::All, _) | (Split::Train, None) => source,
        (Split::Val, None) => {
            return Err(Error::MissingSplit {
                container: container.to_owned(),
                split: Split::Val.name(),
                hint: "hold out a fraction of the training data (val fraction), or open all of it".to_owned(),
            });
        }
        (Split::Train, Some(fraction)) => Arc::new(Subset::split(source, fraction, options.seed)?.0),
        (Split::Val, Some(fraction)) => Arc::new(Subset::split(source, fraction, options.seed)?.1),
    };
    Ok(Part { source, notes, left_out })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_digits_open_by_their_name() {
        let len = |split| open("digits", &OpenOptions::split(split)).unwrap().source.len();
        assert_eq!([len(Split::Train), len(Split::Val), len(Split::All)], [1442, 355, 1797]);
        let other = OpenOptions { kind: Some(SourceKind::Folder), ..Default::default() };
        assert!(open("digits", &other).is_err(), "a forced kind is the only one that is tried");
    }

    #[test]
    fn names_of_kinds_and_splits_are_read_back() {
        for kind in SourceKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        for split in [Split::Train, Split::Val, Split::All] {
            assert_eq!(split.to_string().parse(), Ok(split));
        }
        assert!("tar".parse::<SourceKind>().unwrap_err().contains("webdataset"));
        assert!("test".parse::<Split>().is_err());
    }

    #[cfg(not(feature = "remote"))]
    #[test]
    fn a_build_without_servers_says_what_to_build() {
        let error = open("s3://bucket/s-{0..9}.tar", &OpenOptions::default()).unwrap_err().to_string();
        assert!(error.contains("--features remote"), "{error}");
    }

    #[cfg(not(feature = "parquet"))]
    #[test]
    fn a_build_without_parquet_says_what_to_build() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("train-0.parquet"), "").unwrap();
        let error = open(folder.path().to_str().unwrap(), &OpenOptions::default()).unwrap_err().to_string();
        assert!(error.contains("--features parquet"), "{error}");
    }
}
