//! Writes any [`Source`] as WebDataset shards.
//!
//! ```text
//! OUT/imagenet-train-000000.tar   train/n01440764/n01440764_10026.jpg, train/n01440764/n01440764_10026.cls, …
//! OUT/imagenet-train-000001.tar
//! OUT/imagenet-train-manifest.json   classes, and of each shard its samples, bytes and SHA-256
//! OUT/manifest.json               the classes alone, for readers
//! ```
//!
//! A shard is written to a temporary name, synced, renamed, and recorded in `PREFIX-manifest.json.partial`: an
//! interrupted run continues after the last complete shard, and its output is byte-identical to that of an
//! uninterrupted one. The partial manifest becomes the manifest at the end.

use std::{
    collections::HashSet,
    fs,
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use data_encoding::HEXLOWER;
use runtime::files::{create_unlinked, open_regular, write_atomic_at};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    DecodeError, Error, Location, Result, Source,
    source::{draw, is_image_name, parallel, tar_header},
};

/// The number of samples read and re-encoded at a time.
const CHUNK: usize = 64;

/// Options of [`write_shards`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardOptions {
    /// The prefix of the shards' names; `train` or `val` in it denotes the split for readers.
    pub prefix: String,
    /// The largest size of a shard in bytes; it has at least one sample.
    pub shard_bytes: u64,
    /// The seed of the order; `None` keeps the source's.
    pub shuffle: Option<u64>,
    /// A description of `transform` (`resize 512`): a run with another description does not continue these shards.
    pub recipe: String,
    /// Threads that read and transform.
    pub workers: usize,
}

impl Default for ShardOptions {
    fn default() -> Self {
        Self {
            prefix: "shard".to_owned(),
            shard_bytes: 1_000_000_000,
            shuffle: None,
            recipe: String::new(),
            workers: 1,
        }
    }
}

/// Re-encodes a sample. The result must be an image file.
pub type Transform<'a> = &'a (dyn Fn(&[u8]) -> Result<Vec<u8>, DecodeError> + Sync);

/// The contents of `PREFIX-manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// SHA-256 of everything that determines the shards except the samples' bytes: keys, labels, classes, options.
    pub fingerprint: String,
    /// The classes in label order.
    pub classes: Vec<ManifestClass>,
    /// The shards in order.
    pub shards: Vec<Shard>,
}

/// A class in a [`Manifest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestClass {
    /// The identifier, as in [`Class`](crate::Class).
    pub id: String,
    /// The human-readable name.
    pub name: String,
}

/// A shard in a [`Manifest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// The file's name.
    pub file: String,
    /// The number of samples.
    pub samples: usize,
    /// The file's length.
    pub bytes: u64,
    /// The file's SHA-256 in hexadecimal digits.
    pub sha256: String,
}

/// Writes all samples of `source` into shards in the folder `out`, and continues an interrupted run. `progress` is
/// called with the number of samples done, including those of earlier runs.
///
/// # Errors
/// [`Error::Layout`] where `out` holds shards of other data or options, a shard is missing that the manifest lists, or
/// a sample is no image that readers know; [`Error::Io`]; whatever the source and `transform` return. The shards that
/// were finished stay.
pub fn write_shards(
    source: &dyn Source,
    out: &Path,
    options: &ShardOptions,
    transform: Option<Transform<'_>>,
    mut progress: impl FnMut(usize),
) -> Result<Manifest> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if options.prefix.is_empty() || !options.prefix.chars().all(valid) {
        return Err(Error::layout(&options.prefix, "a prefix of shards has letters, digits, `-` and `_`"));
    }
    fs::create_dir_all(out).map_err(|error| Error::io(out, error))?;
    let order = order(source, options.shuffle)?;
    let final_path = out.join(format!("{}-manifest.json", options.prefix));
    let partial_path = out.join(format!("{}-manifest.json.partial", options.prefix));

    let mut manifest =
        Manifest { fingerprint: fingerprint(source, options), classes: classes(source), shards: Vec::new() };
    for path in [&final_path, &partial_path] {
        if path.exists() {
            manifest.shards = earlier_shards(path, out, &manifest.fingerprint)?;
            break;
        }
    }
    let classes_path = out.join("manifest.json");
    let class_list = serde_json::json!({ "classes": manifest.classes });
    if classes_path.exists() {
        let bytes = read_regular(&classes_path)?;
        if serde_json::from_slice::<serde_json::Value>(&bytes).ok() != Some(class_list.clone()) {
            return Err(Error::layout(classes_path.display(), "is of other classes; choose another folder"));
        }
    }
    write_json(&classes_path, &class_list)?;
    let mut done: usize = manifest.shards.iter().map(|shard| shard.samples).sum();
    if done > order.len() {
        return Err(Error::layout(partial_path.display(), "lists more samples than the data has; remove it"));
    }
    progress(done);

    let mut names = Names::default();
    order[..done].iter().for_each(|&index| drop(names.unique(&source.key(index as usize))));
    let mut pending =
        Pending { source, transform, order: &order, next: done, ready: Vec::new(), workers: options.workers };
    let mut carried = None;
    while done < order.len() {
        let file = format!("{}-{:06}.tar", options.prefix, manifest.shards.len());
        let path = out.join(&file);
        let beside = path.with_extension("tar.tmp");
        let failed = |error| Error::io(&beside, error);
        let mut tar = TarWriter::new(BufWriter::new(create_unlinked(&beside).map_err(failed)?));
        let mut samples = 0;
        while let Some((index, bytes)) = carried.take().map_or_else(|| pending.next(), |sample| Ok(Some(sample)))? {
            let extension = extension(source, index, &bytes)?;
            let label = source.label(index).map(|label| label.to_string());
            // Two headers and two padded contents; the extension headers of long names are negligible.
            let needed = 1024 + bytes.len().next_multiple_of(512) as u64 + label.as_ref().map_or(0, |_| 512);
            if samples > 0 && tar.position + needed + 1024 > options.shard_bytes {
                carried = Some((index, bytes));
                break;
            }
            let name = names.unique(&source.key(index));
            tar.member(&format!("{name}.{extension}"), &bytes).map_err(failed)?;
            if let Some(label) = label {
                tar.member(&format!("{name}.cls"), label.as_bytes()).map_err(failed)?;
            }
            samples += 1;
            progress(done + samples);
        }
        let (writer, bytes, sha256) = tar.finish().map_err(failed)?;
        let written = writer.into_inner().map_err(io::IntoInnerError::into_error);
        written.and_then(|file| file.sync_all()).map_err(failed)?;
        fs::rename(&beside, &path).map_err(failed)?;
        done += samples;
        manifest.shards.push(Shard { file, samples, bytes, sha256 });
        write_json(&partial_path, &manifest)?;
    }
    write_json(&final_path, &manifest)?;
    match fs::remove_file(&partial_path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(partial_path, error)),
        _ => Ok(manifest),
    }
}

/// Returns the order of the samples: the source's, or by random numbers drawn for their keys.
fn order(source: &dyn Source, shuffle: Option<u64>) -> Result<Vec<u32>> {
    let len = u32::try_from(source.len())
        .map_err(|_| Error::layout("shards", "more than 4 billion samples; write them in parts"))?;
    let mut order: Vec<u32> = (0..len).collect();
    if let Some(seed) = shuffle {
        order.sort_by_cached_key(|&index| (draw(seed, &source.key(index as usize)), index));
    }
    Ok(order)
}

fn classes(source: &dyn Source) -> Vec<ManifestClass> {
    let class = |class: &crate::Class| ManifestClass { id: class.id.clone(), name: class.name.clone() };
    source.classes().iter().map(class).collect()
}

fn fingerprint(source: &dyn Source, options: &ShardOptions) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    add(&options.prefix);
    add(&options.recipe);
    add(&format!("{} {:?}", options.shard_bytes, options.shuffle));
    for class in source.classes() {
        add(&class.id);
        add(&class.name);
    }
    for index in 0..source.len() {
        add(&source.key(index));
        add(&format!("{:?}", source.label(index)));
    }
    HEXLOWER.encode(&hash.finalize())
}

/// Returns the shards of a manifest, if they belong to the same data and still exist.
fn earlier_shards(path: &Path, out: &Path, fingerprint: &str) -> Result<Vec<Shard>> {
    let bytes = read_regular(path)?;
    let manifest: Manifest = serde_json::from_slice(&bytes)
        .map_err(|error| Error::layout(path.display(), format!("is not a manifest of shards: {error}; remove it")))?;
    if manifest.fingerprint != fingerprint {
        return Err(Error::layout(path.display(), "is of other data or options; choose another folder or prefix"));
    }
    for shard in &manifest.shards {
        let file = out.join(&shard.file);
        let bytes = fs::metadata(&file).map_err(|error| Error::io(&file, error))?.len();
        if bytes != shard.bytes {
            let cause = format!("has {bytes} bytes instead of {}; remove the manifests to begin anew", shard.bytes);
            return Err(Error::layout(file.display(), cause));
        }
    }
    Ok(manifest.shards)
}

fn read_regular(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = open_regular(path).and_then(|mut file| file.read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(|error| Error::io(path, error))
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(|error| Error::io(path, error.into()))?;
    text.push('\n');
    write_atomic_at(path, |temporary| fs::write(temporary, &text)).map_err(|error| Error::io(path, error))
}

/// Returns the samples in order, read and transformed in chunks on several threads.
struct Pending<'a> {
    source: &'a dyn Source,
    transform: Option<Transform<'a>>,
    order: &'a [u32],
    next: usize,
    /// The next samples, the first one last.
    ready: Vec<(usize, Vec<u8>)>,
    workers: usize,
}

impl Pending<'_> {
    fn next(&mut self) -> Result<Option<(usize, Vec<u8>)>> {
        if self.ready.is_empty() {
            let chunk = &self.order[self.next..self.order.len().min(self.next + CHUNK)];
            self.next += chunk.len();
            self.ready = parallel(chunk.len(), self.workers.max(1), |at| {
                let index = chunk[at] as usize;
                let mut bytes = Vec::new();
                self.source.read(index, &mut bytes)?;
                match self.transform {
                    Some(transform) => match transform(&bytes) {
                        Ok(bytes) => Ok((index, bytes)),
                        Err(cause) => Err(Error::Decode { location: self.source.location(index), cause }),
                    },
                    None => Ok((index, bytes)),
                }
            })?;
            self.ready.reverse();
        }
        Ok(self.ready.pop())
    }
}

/// Returns the samples' names: keys without extension and without dots in their last part, as the format requires.
#[derive(Default)]
struct Names(HashSet<String>);

impl Names {
    fn unique(&mut self, key: &str) -> String {
        let stem = if is_image_name(key) { key.rsplit_once('.').map_or(key, |(stem, _)| stem) } else { key };
        let (folder, file) = stem.rsplit_once('/').map_or(("", stem), |(folder, file)| (folder, file));
        let file = file.replace('.', "_");
        let stem = if folder.is_empty() { file } else { format!("{folder}/{file}") };
        let mut name = stem.clone();
        for number in 2.. {
            if self.0.insert(name.clone()) {
                break;
            }
            name = format!("{stem}-{number}");
        }
        name
    }
}

/// Returns the extension for the actual format, regardless of the key's.
fn extension(source: &dyn Source, index: usize, bytes: &[u8]) -> Result<&'static str> {
    match bytes {
        [0xff, 0xd8, 0xff, ..] => Ok("jpg"),
        [0x89, b'P', b'N', b'G', ..] => Ok("png"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok("webp"),
        [b'G', b'I', b'F', b'8', ..] => Ok("gif"),
        [b'B', b'M', ..] => Ok("bmp"),
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => Ok("tif"),
        _ => {
            let location: Location = source.location(index);
            Err(Error::Corrupt { location, cause: "begins like no image format that is known".to_owned() })
        }
    }
}

/// Writes a tar archive and hashes what it writes.
struct TarWriter<W> {
    out: W,
    hash: Sha256,
    position: u64,
}

impl<W: Write> TarWriter<W> {
    fn new(out: W) -> Self {
        Self { out, hash: Sha256::new(), position: 0 }
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.position += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn padded(&mut self, header: &[u8], content: &[u8]) -> io::Result<()> {
        self.put(header)?;
        self.put(content)?;
        self.put(&[0; 512][..content.len().next_multiple_of(512) - content.len()])
    }

    fn member(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        let size = content.len() as u64;
        if name.len() <= 100 {
            return self.padded(&tar_header(name, size).map_err(io::Error::other)?, content);
        }
        // A pax header carries the name; its length field includes its own digits.
        let rest = format!(" path={name}\n");
        let mut length = rest.len();
        while length != rest.len() + length.to_string().len() {
            length = rest.len() + length.to_string().len();
        }
        let record = format!("{length}{rest}");
        let mut header = tar_header("pax", record.len() as u64).map_err(io::Error::other)?;
        header[156] = b'x';
        crate::source::seal_tar_header(&mut header);
        self.padded(&header, record.as_bytes())?;
        self.padded(&tar_header("long-name", size).map_err(io::Error::other)?, content)
    }

    /// Writes the end of the archive. Returns the writer, the archive's length and its SHA-256.
    fn finish(mut self) -> io::Result<(W, u64, String)> {
        self.put(&[0; 1024])?;
        Ok((self.out, self.position, HEXLOWER.encode(&self.hash.finalize())))
    }
}

/// The paths of a manifest's shards in the folder `out`.
pub fn shard_paths(manifest: &Manifest, out: &Path) -> Vec<PathBuf> {
    manifest.shards.iter().map(|shard| out.join(&shard.file)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{OpenOptions, Opened, Split, open};

    const JPEG: &[u8] = &[0xff, 0xd8, 0xff, 0xe0];

    fn folder(count: usize) -> (tempfile::TempDir, Opened) {
        let root = tempfile::tempdir().unwrap();
        for index in 0..count {
            let class = root.path().join(["train/cat", "train/dog"][index % 2]);
            fs::create_dir_all(&class).unwrap();
            let name = if index == 4 { format!("{}.x.jpg", "long".repeat(30)) } else { format!("{index}.jpg") };
            fs::write(class.join(name), [JPEG, &vec![index as u8; 100 * index]].concat()).unwrap();
        }
        let opened = open(root.path().to_str().unwrap(), &OpenOptions::default()).unwrap();
        (root, opened)
    }

    fn options() -> ShardOptions {
        ShardOptions {
            prefix: "pets-train".into(),
            shard_bytes: 12_000,
            shuffle: Some(3),
            workers: 2,
            ..Default::default()
        }
    }

    #[test]
    fn what_is_written_is_read_again_in_shuffled_order_with_its_classes() {
        let (_root, opened) = folder(20);
        let out = tempfile::tempdir().unwrap();
        let mut last = 0;
        let manifest = write_shards(&opened.source, out.path(), &options(), None, |done| last = done).unwrap();
        assert_eq!(last, 20);
        assert!(manifest.shards.len() > 1);
        for shard in &manifest.shards {
            let bytes = fs::read(out.path().join(&shard.file)).unwrap();
            assert!(bytes.len() <= 12_000 && bytes.len() as u64 == shard.bytes);
            assert_eq!(HEXLOWER.encode(&Sha256::digest(&bytes)), shard.sha256);
        }
        let index_cache = Some(out.path().join("cache"));
        let options = OpenOptions { split: Split::Train, index_cache, ..Default::default() };
        let again = open(out.path().to_str().unwrap(), &options).unwrap().source;
        assert_eq!(again.classes(), opened.source.classes());
        let rows = |source: &dyn Source| {
            let mut bytes = Vec::new();
            let row = |index| {
                source.read(index, &mut bytes).unwrap();
                (bytes.clone(), source.label(index))
            };
            (0..source.len()).map(row).collect::<Vec<_>>()
        };
        let (mut before, mut after) = (rows(&opened.source), rows(&again));
        assert_ne!(before, after, "the order is shuffled");
        before.sort();
        after.sort();
        assert_eq!(before, after);
    }

    #[test]
    fn a_stopped_run_goes_on_to_the_same_bytes() {
        let (_root, opened) = folder(20);
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let expected = write_shards(&opened.source, whole.path(), &options(), None, |_| ()).unwrap();
        for stop_after in [3, 9, 14] {
            let calls = AtomicUsize::new(0);
            let failing = |bytes: &[u8]| match calls.fetch_add(1, Ordering::Relaxed) {
                calls if calls >= stop_after => Err(DecodeError::UnknownFormat { start: Vec::new() }),
                _ => Ok(bytes.to_vec()),
            };
            assert!(write_shards(&opened.source, parts.path(), &options(), Some(&failing), |_| ()).is_err());
        }
        let manifest = write_shards(&opened.source, parts.path(), &options(), None, |_| ()).unwrap();
        assert_eq!(manifest, expected);
        for path in shard_paths(&manifest, whole.path()) {
            let other = parts.path().join(path.file_name().unwrap());
            assert_eq!(fs::read(&path).unwrap(), fs::read(other).unwrap());
        }
        let count = |folder: &Path| fs::read_dir(folder).unwrap().count();
        assert_eq!(count(whole.path()), count(parts.path()), "nothing temporary is left");
        let mut first = None;
        write_shards(&opened.source, parts.path(), &options(), None, |done| first = first.or(Some(done))).unwrap();
        assert_eq!(first, Some(20), "a third run has nothing to do");
    }

    #[test]
    fn a_run_killed_between_shards_is_taken_up_after_the_last_whole_one() {
        let (_root, opened) = folder(20);
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let expected = write_shards(&opened.source, whole.path(), &options(), None, |_| ()).unwrap();
        // The state after two shards, with half of a third one.
        let partial = Manifest { shards: expected.shards[..2].to_vec(), ..expected.clone() };
        for path in shard_paths(&partial, whole.path()) {
            fs::copy(&path, parts.path().join(path.file_name().unwrap())).unwrap();
        }
        write_json(&parts.path().join("pets-train-manifest.json.partial"), &partial).unwrap();
        fs::write(parts.path().join("pets-train-000002.tar.tmp"), "half").unwrap();
        let mut first = None;
        let manifest =
            write_shards(&opened.source, parts.path(), &options(), None, |done| first = first.or(Some(done))).unwrap();
        assert_eq!(first, Some(expected.shards[0].samples + expected.shards[1].samples));
        assert_eq!(manifest, expected);
    }

    #[test]
    fn other_data_other_options_and_no_images_are_refused() {
        let (root, opened) = folder(6);
        let out = tempfile::tempdir().unwrap();
        write_shards(&opened.source, out.path(), &options(), None, |_| ()).unwrap();
        let other = ShardOptions { recipe: "resize 512".into(), ..options() };
        let error = write_shards(&opened.source, out.path(), &other, None, |_| ()).unwrap_err().to_string();
        assert!(error.contains("other data or options"), "{error}");
        let bad = ShardOptions { prefix: "../x".into(), ..options() };
        assert!(write_shards(&opened.source, out.path(), &bad, None, |_| ()).is_err());
        fs::remove_file(out.path().join("pets-train-000000.tar")).unwrap();
        assert!(write_shards(&opened.source, out.path(), &options(), None, |_| ()).is_err());
        fs::write(root.path().join("train/cat/0.jpg"), "text").unwrap();
        let second = ShardOptions { prefix: "second".into(), ..options() };
        let error = write_shards(&opened.source, out.path(), &second, None, |_| ()).unwrap_err().to_string();
        assert!(error.contains("0.jpg: begins like no image"), "{error}");
    }

    #[test]
    fn names_are_unique_and_have_no_dots_in_their_last_part() {
        let mut names = Names::default();
        let all = ["a.b/c.d.jpg", "a.b/c_d.png", "a.b/c.d.gif", "x", "x.jpg"].map(|key| names.unique(key));
        assert_eq!(all, ["a.b/c_d", "a.b/c_d-2", "a.b/c_d-3", "x", "x-2"]);
    }
}
