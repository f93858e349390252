//! WebDataset shards: tar archives in which the members that share a name up to its first dot are one sample.
//!
//! ```text
//! imagenet-train-0000.tar: n01440764_10026.jpg  n01440764_10026.cls  n02085620_7.jpg  n02085620_7.cls …
//! ```
//!
//! The image is the member `.jpg`, `.jpeg`, `.png`, `.webp` or one of the other
//! [image extensions](super::IMAGE_EXTENSIONS); the label is the number in `.cls`, or the field `label`
//! of `.json`, a number or a class's name. A key is the shard's name and the image's:
//! `imagenet-train-0000/n01440764_10026.jpg`.
//!
//! Classes are, in this order: those of `manifest.json` beside the shards, as [`shard`](crate::shard) writes it; all
//! 1000 of ImageNet, if the samples' names prove that the numbers are its labels; the names in `.json`, sorted; the
//! numbers from 0 to the largest label.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use runtime::{files::open_regular, text::printable};
use serde::Deserialize;

use super::{
    Class, IMAGE_EXTENSIONS, LeftOut, LocalFile, ReadAt, Source,
    index::{IndexCache, Table},
    layout::{Role, role_in},
    names::Labels,
    options::{Found, OpenOptions, OpenPart, Part, TableOptions},
    packed::{Packed, sample_size},
    parallel,
    tar::{Member, Tar},
};
use crate::{Error, Result, imagenet};

/// The longest `.cls` or `.json` that is read.
const MAX_LABEL_BYTES: u64 = 1 << 20;

/// The longest `manifest.json` that is read.
const MAX_MANIFEST_BYTES: u64 = 256 << 20;

/// The number of classes that numbers may declare without as many samples: a small part of a data set has the labels of
/// the whole.
const MAX_SPARSE_CLASSES: u64 = 1 << 16;

/// With more shards than this, each read opens its shard.
const MAX_OPEN_FILES: usize = 64;

/// The shards of a set with what is known of their classes.
pub(super) struct Shards {
    pub files: Vec<Arc<dyn ReadAt>>,
    pub classes: Option<Vec<Class>>,
}

/// The part of a manifest that a reader needs.
#[derive(Deserialize)]
struct Manifest {
    classes: Vec<ManifestClass>,
}

#[derive(Deserialize)]
struct ManifestClass {
    id: String,
    name: String,
}

/// Opens local shards. A `manifest.json` beside the first one names the classes.
pub(super) fn local_shards(paths: &[PathBuf]) -> Result<Shards> {
    let open = |path: &PathBuf| {
        let file = if paths.len() > MAX_OPEN_FILES { LocalFile::reopened(path) } else { LocalFile::open(path) };
        file.map(|file| Arc::new(file) as Arc<dyn ReadAt>)
    };
    let files = paths.iter().map(open).collect::<Result<_>>()?;
    let manifest = paths.first().and_then(|path| path.parent()).map(|folder| folder.join("manifest.json"));
    let classes = match manifest.filter(|path| path.is_file()) {
        Some(path) => {
            let bytes = read_manifest(&path).map_err(|source| Error::io(&path, source))?;
            manifest_classes(&path.display().to_string(), &bytes)?
        }
        None => None,
    };
    Ok(Shards { files, classes })
}

/// Reads a manifest, up to [`MAX_MANIFEST_BYTES`] of it.
fn read_manifest(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(io::Error::other(format!("it is longer than the {MAX_MANIFEST_BYTES} bytes of a manifest")));
    }
    Ok(bytes)
}

/// The classes of a manifest; `None` for a file of that name that is something else.
pub(super) fn manifest_classes(name: &str, bytes: &[u8]) -> Result<Option<Vec<Class>>> {
    match serde_json::from_slice::<Manifest>(bytes) {
        Ok(manifest) if manifest.classes.is_empty() => Ok(None),
        Ok(manifest) => Ok(Some(manifest.classes.into_iter().map(|c| Class { id: c.id, name: c.name }).collect())),
        Err(error) if error.is_data() => {
            log::debug!("{name}: is not a manifest of shards: {error}");
            Ok(None)
        }
        Err(error) => Err(Error::layout(name, format!("is not valid JSON: {error}"))),
    }
}

/// The files with an extension in a folder, sorted by name.
pub(super) fn files_in(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut shards = Vec::new();
    for entry in fs::read_dir(folder).map_err(|source| Error::io(folder, source))? {
        let path = entry.map_err(|source| Error::io(folder, source))?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.extension().is_some_and(|found| found == extension) && !is_hidden && path.is_file() {
            shards.push(path);
        }
    }
    shards.sort_unstable();
    Ok(shards)
}

/// Returns the split in a file's name.
fn role_of(file: &dyn ReadAt) -> Option<Role> {
    role_in(file.name().rsplit(['/', '\\']).next()?)
}

/// Shards with their tables.
pub(super) type Indexed = Vec<(Arc<dyn ReadAt>, Table)>;

type BuildSource = fn(Indexed, Vec<Class>, Labels, &TableOptions) -> Result<Arc<dyn Source>>;

/// A kind of shard.
#[derive(Clone, Copy)]
pub(super) struct Format {
    /// The layout of its tables in the index cache.
    pub layout: &'static str,
    /// Makes the table of one shard; columns are those of the options.
    pub index: fn(&Arc<dyn ReadAt>, &TableOptions) -> Result<Table>,
    /// Makes the source of indexed shards.
    pub build: BuildSource,
}

/// Shards in tar archives.
pub(super) const WEBDATASET: Format = Format {
    layout: "webdataset",
    index: |file, _| index(file),
    build: |tables, classes, labels, _| Ok(Arc::new(Packed::new(tables, classes, labels)?)),
};

impl Format {
    /// The layout of its tables in the index cache, which have the labels of the chosen columns.
    fn cached_layout(&self, columns: &TableOptions) -> String {
        let chosen = [("image", &columns.image_column), ("label", &columns.label_column)];
        let chosen = chosen.into_iter().filter_map(|(what, name)| Some(format!("\n{what}={}", name.as_ref()?)));
        format!("{}{}", self.layout, chosen.collect::<String>())
    }
}

/// Returns the splits of a set of shards by their names; shards without a split in their names are whole. Those named
/// `test` are the validation split if there is no other.
pub(super) fn find<'a>(container: String, shards: Shards, format: Format, options: &'a OpenOptions) -> Found<'a> {
    let named = |role| shards.files.iter().filter(|file| role_of(&**file) == role).cloned().collect();
    let parts: [Vec<_>; 4] = [Some(Role::Train), Some(Role::Val), Some(Role::Test), None].map(named);
    let [train, mut val, mut test, other] = parts;
    let cache = IndexCache::new(options.index_cache.as_deref());
    let columns = &options.table;
    if train.is_empty() && val.is_empty() && test.is_empty() {
        let name = container.clone();
        return Found::Whole(Box::new(move || open_part(&name, other, &[], shards.classes, format, columns, &cache)));
    }
    let mut notes = Vec::new();
    if val.is_empty() && !test.is_empty() {
        val = std::mem::take(&mut test);
        if !train.is_empty() {
            notes.push(format!(
                "{container}: the shards named `test` are the validation split, which selects the best epoch in \
                 training: there is no `val`"
            ));
        }
    }
    if !test.is_empty() {
        notes.push(format!("{container}: {} shards named `test` are left out; `val` is the other split", test.len()));
    }
    if !other.is_empty() {
        notes.push(format!("{container}: {} shards that name no split are left out", other.len()));
    }
    let part = |mine: Vec<Arc<dyn ReadAt>>, others: Vec<Arc<dyn ReadAt>>| {
        let (name, cache, classes, notes) = (container.clone(), cache.clone(), shards.classes.clone(), notes.clone());
        let open = move || {
            let mut part = open_part(&name, mine, &others, classes, format, columns, &cache)?;
            part.notes.extend(notes);
            Ok(part)
        };
        (Box::new(open)) as OpenPart<'a>
    };
    let train_part = (!train.is_empty()).then(|| part(train.clone(), val.clone()));
    let val_part = (!val.is_empty()).then(|| part(val, train));
    Found::Divided { container, train: train_part, val: val_part }
}

/// Opens some shards. If only the labels define the classes, those of the `others` count too.
pub(super) fn open_part(
    container: &str,
    files: Vec<Arc<dyn ReadAt>>,
    others: &[Arc<dyn ReadAt>],
    known: Option<Vec<Class>>,
    format: Format,
    columns: &TableOptions,
    cache: &IndexCache,
) -> Result<Part> {
    let mut tables = index_all(&files, format, columns, cache)?;
    if tables.iter().all(|table| table.names.len() == 0) {
        return Err(Error::layout(container, format!("no images in {} shards", files.len())));
    }
    let notes = tables.iter_mut().flat_map(|table| std::mem::take(&mut table.notes)).collect();
    let filled = || files.iter().zip(&tables).filter(|(_, table)| table.names.len() > 0);
    let (with, without): (Vec<_>, Vec<_>) = filled().partition(|(_, table)| !table.labels.is_empty());
    if let (Some((with, _)), Some((without, _))) = (with.first(), without.first()) {
        return Err(Error::layout(without.name(), format!("has no labels while {} has", with.name())));
    }
    let (classes, labels) = if with.is_empty() {
        (Vec::new(), Labels::Absent)
    } else {
        let are_numbers = tables.iter().all(|table| table.label_names.is_empty());
        let classes = match known {
            Some(classes) => classes,
            None if are_numbers && are_of_imagenet(&tables) => imagenet::classes().to_vec(),
            None => classes_of(container, tables.iter().chain(&index_all(others, format, columns, cache)?))?,
        };
        let labels = label_all(&files, &tables, &classes)?;
        (classes, labels)
    };
    let source = (format.build)(files.into_iter().zip(tables).collect(), classes, labels, columns)?;
    Ok(Part { source, notes, left_out: LeftOut::default() })
}

fn index_all(
    files: &[Arc<dyn ReadAt>],
    format: Format,
    columns: &TableOptions,
    cache: &IndexCache,
) -> Result<Vec<Table>> {
    let layout = format.cached_layout(columns);
    let threads = files.iter().map(|file| file.parallel_reads()).max().unwrap_or(1);
    parallel(files.len(), threads, |shard| {
        let file = &files[shard];
        cache.get(&**file, &layout, || (format.index)(file, columns))
    })
}

/// Whether the samples' names prove that the labels are ImageNet's: some begin with a wnid or are those of validation
/// images, and all such have the label that they should.
fn are_of_imagenet(tables: &[Table]) -> bool {
    let mut proved = false;
    for table in tables {
        for (index, &label) in table.labels.iter().enumerate() {
            let key = table.names.get(index);
            let name = key.rsplit('/').next().unwrap_or_default();
            let by_wnid = || imagenet::class_index(name.get(..9)?);
            let expected = imagenet::val_number(name).and_then(imagenet::val_label).or_else(by_wnid);
            if label as usize >= imagenet::CLASSES || expected.is_some_and(|expected| expected != label) {
                return false;
            }
            proved |= expected.is_some();
        }
    }
    proved
}

/// Returns the classes defined by the labels. Numbers declare as many classes as there are samples to show them, or
/// [`MAX_SPARSE_CLASSES`]: a single damaged label must not make a list of four billion.
fn classes_of<'a>(container: &str, tables: impl Iterator<Item = &'a Table>) -> Result<Vec<Class>> {
    let (mut names, mut samples, mut are_numbers) = (BTreeSet::new(), 0, false);
    let mut largest: Option<(u32, String)> = None;
    for table in tables.filter(|table| !table.labels.is_empty()) {
        samples += table.labels.len() as u64;
        if !table.label_names.is_empty() {
            names.extend(&table.label_names);
            continue;
        }
        are_numbers = true;
        if let Some((&label, at)) = table.labels.iter().zip(0..).max_by_key(|&(label, _)| label)
            && largest.as_ref().is_none_or(|&(most, _)| label > most)
        {
            largest = Some((label, table.names.get(at)));
        }
    }
    match (names.is_empty(), are_numbers) {
        (false, true) => Err(Error::layout(container, "some labels are numbers and some are names")),
        (false, false) => Ok(names.into_iter().map(|id| imagenet::named_class(id)).collect()),
        (true, _) => {
            let Some((label, key)) = largest else { return Ok(Vec::new()) };
            let limit = samples.max(MAX_SPARSE_CLASSES);
            if u64::from(label) >= limit {
                let cause = format!(
                    "label {label} of {} is out of range: {samples} samples can have labels from 0 to {}; correct the \
                     label, or list the classes in manifest.json",
                    printable(&key),
                    limit - 1
                );
                return Err(Error::layout(container, cause));
            }
            Ok((0..=label).map(|id| imagenet::named_class(&id.to_string())).collect())
        }
    }
}

/// The labels of all samples as indices into the classes.
fn label_all(files: &[Arc<dyn ReadAt>], tables: &[Table], classes: &[Class]) -> Result<Labels> {
    let by_id: HashMap<&str, u32> = classes.iter().map(|class| class.id.as_str()).zip(0..).collect();
    let mut labels = Vec::with_capacity(tables.iter().map(|table| table.labels.len()).sum());
    for (file, table) in files.iter().zip(tables) {
        let unknown = |label: &dyn std::fmt::Display| {
            Error::layout(file.name(), format!("label {label} is out of range for {} classes", classes.len()))
        };
        let map = |name: &String| by_id.get(name.as_str()).copied().ok_or_else(|| unknown(name));
        let names: Vec<u32> = table.label_names.iter().map(map).collect::<Result<_>>()?;
        for &label in &table.labels {
            let label = if names.is_empty() { label } else { names[label as usize] };
            if label as usize >= classes.len() {
                return Err(unknown(&label));
            }
            labels.push(label);
        }
    }
    Ok(Labels::PerSample(labels))
}

/// A label as a shard has it.
#[derive(Debug, PartialEq, Eq)]
enum Label {
    Number(u32),
    Name(String),
}

/// The sample that is being read.
#[derive(Default)]
struct Sample {
    stem: String,
    image: Option<(Member, String)>,
    cls: Option<Label>,
    json: Option<Label>,
}

/// Reads a shard's headers and labels.
fn index(file: &Arc<dyn ReadAt>) -> Result<Table> {
    let name = file.name().rsplit(['/', '\\']).next().unwrap_or_default();
    let base = format!("{}/", name.strip_suffix(".tar").unwrap_or(name));
    let mut tar = Tar::new(file);
    let mut shard = Shard::default();
    let mut sample = Sample::default();
    while let Some(member) = tar.next_file()? {
        let folder = member.name.rfind('/').map_or(0, |slash| slash + 1);
        let dot = member.name[folder..].find('.').map_or(member.name.len(), |dot| folder + dot);
        let stem = &member.name[..dot];
        let extension = member.name[dot..].trim_start_matches('.').to_lowercase();
        if stem != sample.stem {
            shard.push(&tar, std::mem::take(&mut sample))?;
            sample.stem = stem.to_owned();
        }
        match extension.as_str() {
            "cls" => sample.cls = Some(cls_label(&mut tar, &member)?),
            "json" => sample.json = json_label(&mut tar, &member)?,
            image if IMAGE_EXTENSIONS.contains(&image) => {
                if let Some((first, _)) = &sample.image {
                    let cause = format!("is the second image of its sample; the first is {}", first.name);
                    return Err(at(&tar, &member, cause));
                }
                sample.image = Some((member.clone(), member.name[dot..].to_owned()));
            }
            _ => {}
        }
    }
    shard.push(&tar, sample)?;
    if !tar.marked_end {
        let note = "ends without the mark that a tar ends with; it may have been cut off between two members";
        shard.notes.push(format!("{}: {note}", file.name()));
    }
    if shard.without_image > 0 {
        shard.notes.push(format!("{}: {} samples have no image and are left out", file.name(), shard.without_image));
    }
    shard.into_table(file.name(), &base)
}

/// The state of indexing a shard.
#[derive(Default)]
struct Shard {
    names: Vec<String>,
    seen: HashSet<String>,
    offsets: Vec<u64>,
    sizes: Vec<u32>,
    labels: Vec<Option<Label>>,
    without_image: usize,
    notes: Vec<String>,
}

impl Shard {
    fn push(&mut self, tar: &Tar<'_>, sample: Sample) -> Result<()> {
        let Some((image, extension)) = sample.image else {
            self.without_image += usize::from(!sample.stem.is_empty());
            return Ok(());
        };
        if !self.seen.insert(sample.stem.clone()) {
            return Err(at(tar, &image, "its sample is there twice in this shard".to_owned()));
        }
        self.sizes.push(sample_size(image.size).map_err(|cause| at(tar, &image, cause))?);
        self.offsets.push(image.offset);
        self.names.push(format!("{}{extension}", sample.stem));
        self.labels.push(sample.cls.or(sample.json));
        Ok(())
    }

    fn into_table(self, file: &str, base: &str) -> Result<Table> {
        let mut table = Table { offsets: self.offsets, sizes: self.sizes, notes: self.notes, ..Table::default() };
        table.names.push_group(base, &self.names)?;
        if self.labels.iter().all(Option::is_none) {
            return Ok(table);
        }
        let mut numbers: HashMap<String, u32> = HashMap::new();
        for (label, name) in self.labels.into_iter().zip(&self.names) {
            let label = match label {
                Some(Label::Number(number)) if numbers.is_empty() => number,
                Some(Label::Name(name)) if !numbers.is_empty() || table.labels.is_empty() => {
                    let next = numbers.len() as u32;
                    *numbers.entry(name).or_insert_with_key(|name| {
                        table.label_names.push(name.clone());
                        next
                    })
                }
                Some(_) => return Err(Error::layout(file, "some labels are numbers and some are names")),
                None => return Err(Error::layout(file, format!("{name} has no label while others have"))),
            };
            table.labels.push(label);
        }
        Ok(table)
    }
}

fn at(tar: &Tar<'_>, member: &Member, cause: String) -> Error {
    tar.corrupt(Some(member.name.clone().into()), member.offset, cause)
}

/// The content of a label member.
fn content(tar: &mut Tar<'_>, member: &Member) -> Result<Vec<u8>> {
    if member.size > MAX_LABEL_BYTES {
        return Err(at(tar, member, format!("has {} bytes; a label may have {MAX_LABEL_BYTES}", member.size)));
    }
    let mut bytes = vec![0; member.size as usize];
    tar.read(member.offset, &mut bytes)?;
    Ok(bytes)
}

fn cls_label(tar: &mut Tar<'_>, member: &Member) -> Result<Label> {
    let bytes = content(tar, member)?;
    let number = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok());
    number
        .map(Label::Number)
        .ok_or_else(|| at(tar, member, "is not a label: expected a number of at least 0".to_owned()))
}

/// The field `label` of a `.json`; none where it has no such field.
fn json_label(tar: &mut Tar<'_>, member: &Member) -> Result<Option<Label>> {
    #[derive(Deserialize)]
    struct Json {
        label: Option<serde_json::Value>,
    }
    let bytes = content(tar, member)?;
    let json: Json =
        serde_json::from_slice(&bytes).map_err(|e| at(tar, member, format!("is not a JSON object: {e}")))?;
    let Some(value) = json.label.filter(|value| !value.is_null()) else { return Ok(None) };
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok()).map(Label::Number);
    let label = number.or_else(|| value.as_str().map(|name| Label::Name(name.to_owned())));
    label.map(Some).ok_or_else(|| at(tar, member, format!("label {value} is neither a number from 0 on nor a name")))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Opened, SourceKind, Split, open, tar::testing::archive},
        *,
    };

    type Files<'a> = &'a [(&'a str, &'a str)];

    fn set(shards: &[(&str, Files<'_>)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, files) in shards {
            fs::write(folder.path().join(name), archive(files)).unwrap();
        }
        folder
    }

    fn open_set(folder: &tempfile::TempDir, pattern: &str, split: Split) -> Result<Opened> {
        let index_cache = Some(folder.path().join("cache"));
        open(folder.path().join(pattern).to_str().unwrap(), &OpenOptions { split, index_cache, ..Default::default() })
    }

    fn samples(source: &dyn Source) -> Vec<(String, Option<u32>, String)> {
        let mut bytes = Vec::new();
        let mut sample = |index| {
            source.read(index, &mut bytes).unwrap();
            let text = String::from_utf8(bytes.clone()).unwrap();
            (source.key(index).into_owned(), source.label(index), text)
        };
        (0..source.len()).map(&mut sample).collect()
    }

    fn row(key: &str, label: u32, text: &str) -> (String, Option<u32>, String) {
        (key.to_owned(), Some(label), text.to_owned())
    }

    #[test]
    fn shards_of_a_folder_or_a_pattern_are_read_by_split() {
        let folder = set(&[
            ("x-train-0001.tar", &[("b.png", "two"), ("b.json", r#"{"label": 2, "more": [1]}"#)]),
            ("x-train-0000.tar", &[("a.cls", "0\n"), ("a.jpg", "one"), ("c.txt", "no image")]),
            ("x-validation-0000.tar", &[("dir.with.dot/v.JPEG", "val"), ("dir.with.dot/v.cls", "1")]),
        ]);
        let train = [row("x-train-0000/a.jpg", 0, "one"), row("x-train-0001/b.png", 2, "two")];
        for pattern in ["", "x-train-{0000..0001}.tar", "x-train-*.tar"] {
            for _ in 0..2 {
                let opened = open_set(&folder, pattern, Split::Train).unwrap();
                assert_eq!((opened.kind, samples(&opened.source)), (SourceKind::WebDataset, train.to_vec()));
                assert_eq!(opened.notes.len(), 1, "the sample without an image: {:?}", opened.notes);
            }
        }
        let val = open_set(&folder, "", Split::Val).unwrap();
        assert_eq!(samples(&val.source), [row("x-validation-0000/dir.with.dot/v.JPEG", 1, "val")]);
        assert_eq!(val.source.classes().len(), 3, "the classes are those of both splits");
        assert!(matches!(open_set(&folder, "x-train-*.tar", Split::Val), Err(Error::MissingSplit { .. })));
        let missing = open_set(&folder, "x-train-{0000..0002}.tar", Split::Train).unwrap_err();
        assert!(missing.to_string().contains("x-train-0002.tar"), "{missing}");
    }

    #[test]
    fn test_shards_are_the_validation_split_only_where_there_is_no_other() {
        let sample = |label: &'static str| [("a.jpg", "x"), ("a.cls", label)];
        let (train, val, test) = (sample("0"), sample("1"), sample("2"));
        let folder = set(&[("train-0.tar", &train), ("test-0.tar", &test)]);
        let opened = open_set(&folder, "", Split::Val).unwrap();
        assert_eq!(opened.source.key(0), "test-0/a.jpg");
        assert!(opened.notes[0].contains("selects the best epoch"), "{:?}", opened.notes);
        let folder = set(&[("train-0.tar", &train), ("test-0.tar", &test), ("validation-0.tar", &val)]);
        let opened = open_set(&folder, "", Split::Val).unwrap();
        assert_eq!((opened.source.len(), opened.source.key(0).as_ref()), (1, "validation-0/a.jpg"));
        assert!(opened.notes[0].contains("`test` are left out"), "{:?}", opened.notes);
    }

    #[test]
    fn labels_far_beyond_the_samples_are_refused_before_there_are_classes() {
        for label in ["4294967295", "100000000", "65536"] {
            for (name, content) in [("b.cls", label.to_owned()), ("b.json", format!(r#"{{"label":{label}}}"#))] {
                let folder = set(&[("s.tar", &[("a.jpg", ""), ("a.cls", "0"), ("b.jpg", ""), (name, &content)])]);
                let error = open_set(&folder, "", Split::Train).unwrap_err().to_string();
                assert!(error.contains(&format!("label {label} of s/b.jpg")), "{error}");
                assert!(error.contains("2 samples can have labels from 0 to 65535"), "{error}");
            }
        }
        let folder = set(&[("s.tar", &[("a.jpg", ""), ("a.cls", "999")])]);
        assert_eq!(open_set(&folder, "", Split::Train).unwrap().source.classes().len(), 1000);
    }

    #[test]
    fn names_manifests_and_imagenets_own_keys_give_the_classes() {
        let ids = |opened: Opened| opened.source.classes().iter().map(|class| class.id.clone()).collect::<Vec<_>>();
        let named = set(&[(
            "s.tar",
            &[("a.jpg", ""), ("a.json", r#"{"label":"owl"}"#), ("b.jpg", ""), ("b.json", r#"{"label":"cat"}"#)],
        )]);
        let opened = open_set(&named, "s.tar", Split::Train).unwrap();
        assert_eq!([opened.source.label(0), opened.source.label(1)], [Some(1), Some(0)]);
        assert_eq!(ids(opened), ["cat", "owl"]);

        let imagenet = set(&[(
            "s.tar",
            &[
                ("n02085620_1.jpg", ""),
                ("n02085620_1.cls", "151"),
                ("ILSVRC2012_val_00000001.jpg", ""),
                ("ILSVRC2012_val_00000001.cls", "65"),
            ],
        )]);
        assert_eq!(ids(open_set(&imagenet, "", Split::All).unwrap()).len(), 1000);
        let shifted = set(&[("s.tar", &[("n02085620_1.jpg", ""), ("n02085620_1.cls", "2")])]);
        assert_eq!(ids(open_set(&shifted, "", Split::All).unwrap()), ["0", "1", "2"]);

        fs::write(shifted.path().join("manifest.json"), r#"{"classes":[{"id":"a","name":"A"},{"id":"b","name":"B"}]}"#)
            .unwrap();
        let error = open_set(&shifted, "", Split::All).unwrap_err().to_string();
        assert!(error.contains("label 2 is out of range for 2 classes"), "{error}");

        let unlabeled = set(&[("s.tar", &[("a.jpg", ""), ("b.webp", "")])]);
        let opened = open_set(&unlabeled, "", Split::Train).unwrap();
        assert_eq!((opened.source.len(), opened.source.label(0), opened.source.classes().len()), (2, None, 0));
    }

    #[test]
    fn broken_shards_are_refused_with_member_and_offset() {
        let says = |files: Files<'_>, expected: &[&str]| {
            let folder = set(&[("s.tar", files)]);
            let error = open_set(&folder, "", Split::Train).unwrap_err().to_string();
            for expected in expected.iter().chain(&["s.tar"]) {
                assert!(error.contains(expected), "{error} should contain {expected}");
            }
        };
        says(&[("a.jpg", ""), ("a.cls", "x")], &["a.cls @ 1024", "is not a label"]);
        says(&[("a.jpg", ""), ("a.cls", "-1")], &["is not a label"]);
        says(&[("a.jpg", ""), ("a.json", "{")], &["a.json @ 1024", "not a JSON object"]);
        says(&[("a.jpg", ""), ("a.json", r#"{"label":1.5}"#)], &["label 1.5"]);
        says(&[("a.jpg", ""), ("a.png", "")], &["a.png @ 1024", "second image"]);
        says(&[("a.jpg", ""), ("b.jpg", ""), ("a.jpg", "")], &["a.jpg", "twice"]);
        says(&[("a.jpg", ""), ("a.cls", "1"), ("b.jpg", "")], &["b.jpg has no label"]);
        says(&[("a.jpg", ""), ("a.cls", "1"), ("b.jpg", ""), ("b.json", r#"{"label":"x"}"#)], &["some are names"]);
        says(&[("a.jpg", ""), ("a.json", r#"{"label":"x"}"#), ("b.jpg", ""), ("b.cls", "1")], &["some are names"]);
        says(&[("../a.jpg", "")], &["out of the archive"]);
        let folder = set(&[("t-0.tar", &[("a.jpg", ""), ("a.cls", "1")]), ("t-1.tar", &[("b.jpg", "")])]);
        let error = open_set(&folder, "", Split::Train).unwrap_err().to_string();
        assert!(error.contains("t-1.tar: has no labels while"), "{error}");
        let empty = set(&[("s.tar", &[])]);
        assert!(open_set(&empty, "", Split::Train).unwrap_err().to_string().contains("no images in 1 shards"));
        let bytes = archive(&[("a.jpg", "0123456789")]);
        fs::write(empty.path().join("s.tar"), &bytes[..515]).unwrap();
        let error = open_set(&empty, "", Split::Train).unwrap_err().to_string();
        assert!(error.contains("a.jpg @ 0: declares 10 bytes, but only 3 are left"), "{error}");
    }
}
