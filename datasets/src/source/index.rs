//! Indices of archives: a table of member offsets, built once by reading headers, then stored in the cache folder.
//!
//! Each archive has its own index file. It identifies the archive by path, length and time, so that a changed archive is
//! indexed again, and ends with a checksum, so that a damaged index is rebuilt too. It is written to a temporary name,
//! synced and renamed: if two processes index concurrently, each writes a complete file, and the later one is kept.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use runtime::files::{open_regular, write_atomic_at};

use super::{
    ReadAt,
    codec::{Decoder, Encoder},
    names::Names,
};
use crate::{Result, cache::cache_folder};

/// Changes whenever the layout of the file does.
const MAGIC: &[u8; 8] = b"hearthi1";

/// The samples of one archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Table {
    /// The samples' keys.
    pub names: Names,
    /// The offset of each sample's bytes in the archive.
    pub offsets: Vec<u64>,
    /// Their number.
    pub sizes: Vec<u32>,
    /// Each sample's label, or none at all. Where there are `label_names` it is an index into them.
    pub labels: Vec<u32>,
    /// The labels' identifiers where the archive names them rather than numbers them.
    pub label_names: Vec<String>,
    /// Notes on the archive for the user.
    pub notes: Vec<String>,
}

impl Table {
    pub(crate) fn shrink_to_fit(&mut self) {
        self.names.shrink_to_fit();
        self.offsets.shrink_to_fit();
        self.sizes.shrink_to_fit();
        self.labels.shrink_to_fit();
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::default();
        self.names.encode(&mut out);
        out.u64(self.offsets.len() as u64);
        self.offsets.iter().for_each(|&offset| out.u64(offset));
        out.u32s(&self.sizes);
        out.u32s(&self.labels);
        for texts in [&self.label_names, &self.notes] {
            out.u64(texts.len() as u64);
            texts.iter().for_each(|text| out.text(text));
        }
        out.0
    }

    /// `None` for bytes that [`encode`](Table::encode) would not have written of an archive of `length` bytes.
    fn decode(bytes: &[u8], length: u64) -> Option<Self> {
        let mut input = Decoder(bytes);
        let names = Names::decode(&mut input)?;
        let offsets = input.u64s()?;
        let (sizes, labels) = (input.u32s()?, input.u32s()?);
        let (label_names, notes) = (input.texts()?, input.texts()?);
        let ends_inside =
            |(&offset, &size): (&u64, &u32)| offset.checked_add(u64::from(size)).is_some_and(|end| end <= length);
        let is_sound = input.0.is_empty()
            && offsets.len() == names.len()
            && sizes.len() == names.len()
            && (labels.is_empty() || labels.len() == names.len())
            && (label_names.is_empty() || labels.iter().all(|&label| (label as usize) < label_names.len()))
            && offsets.iter().zip(&sizes).all(ends_inside);
        is_sound.then_some(Self { names, offsets, sizes, labels, label_names, notes })
    }
}

/// The folder that holds cached indices.
#[derive(Debug, Clone)]
pub(crate) struct IndexCache(Option<PathBuf>);

impl IndexCache {
    /// The given folder, or `hearth/index` in the user's cache folder; without one, nothing is cached.
    pub(crate) fn new(folder: Option<&Path>) -> Self {
        Self(folder.map(Path::to_owned).or_else(|| cache_folder("index")))
    }

    /// Returns the table of `file` from the cache, or builds and caches it. `layout` distinguishes the tables that
    /// different kinds of source build of one file.
    pub(crate) fn get(&self, file: &dyn ReadAt, layout: &str, build: impl FnOnce() -> Result<Table>) -> Result<Table> {
        let key = format!("{layout}\n{}\n{}", file.identity(), file.version());
        let path = self.0.as_ref().map(|folder| {
            let name = fnv(format!("{layout}\n{}", file.identity()).as_bytes());
            folder.join(format!("{name:016x}.index"))
        });
        if let Some(path) = &path
            && let Some(table) = load(path, &key, file.len())
        {
            return Ok(table);
        }
        log::debug!("{}: indexing", file.name());
        let mut table = build()?;
        table.shrink_to_fit();
        if let Some(path) = &path
            && let Err(error) = store(path, &key, &table)
        {
            let note = format!("{}: the index cannot be kept for the next time: {error}", path.display());
            log::debug!("{note}");
            table.notes.push(note);
        }
        Ok(table)
    }
}

fn load(path: &Path, key: &str, length: u64) -> Option<Table> {
    let mut bytes = Vec::new();
    open_regular(path).and_then(|mut file| file.read_to_end(&mut bytes)).ok()?;
    let table = parse(&bytes, key, length);
    if table.is_none() {
        log::debug!("{}: is of another state of the archive, or damaged; indexing anew", path.display());
    }
    table
}

/// Magic, key, table, CRC-32 of all before it.
fn parse(bytes: &[u8], key: &str, length: u64) -> Option<Table> {
    let (body, sum) = bytes.split_last_chunk::<4>()?;
    let mut input = Decoder(body.strip_prefix(MAGIC)?);
    // The key first: most indices that do not fit are of an older state, and need no checksum.
    if input.text()? != key || crc32fast::hash(body) != u32::from_le_bytes(*sum) {
        return None;
    }
    Table::decode(input.0, length)
}

fn store(path: &Path, key: &str, table: &Table) -> io::Result<()> {
    let mut out = Encoder(MAGIC.to_vec());
    out.text(key);
    out.0.extend(table.encode());
    let sum = crc32fast::hash(&out.0);
    out.0.extend(sum.to_le_bytes());
    write_atomic_at(path, |temporary| fs::write(temporary, &out.0))
}

/// FNV-1a, 64 bits: sufficient to distinguish paths; the key in the file is authoritative.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::{super::LocalFile, *};

    fn table() -> Table {
        let mut names = Names::default();
        names.push_group("train/a/", &["a_1.jpg", "a_2.jpg"]).unwrap();
        names.push_group("train/b/", &["b_1.jpg"]).unwrap();
        Table {
            names,
            offsets: vec![0, 10, 20],
            sizes: vec![10, 10, 5],
            labels: vec![0, 0, 1],
            label_names: vec!["a".into(), "b".into()],
            notes: vec!["a note".into()],
        }
    }

    #[test]
    fn a_table_comes_back_from_the_cache_until_its_archive_changes() {
        let folder = tempfile::tempdir().unwrap();
        let cache = IndexCache::new(Some(&folder.path().join("deep").join("cache")));
        let path = folder.path().join("archive.tar");
        let builds = AtomicUsize::new(0);
        let get = |layout| {
            let file = LocalFile::open(&path).unwrap();
            let build = || {
                builds.fetch_add(1, Ordering::Relaxed);
                Ok(table())
            };
            assert_eq!(cache.get(&file, layout, build).unwrap(), table());
            builds.load(Ordering::Relaxed)
        };
        fs::write(&path, [0; 25]).unwrap();
        assert_eq!([get("train"), get("train"), get("train")], [1, 1, 1]);
        assert_eq!([get("val"), get("train")], [2, 2], "each layout has its own table");
        fs::write(&path, [0; 26]).unwrap();
        assert_eq!([get("train"), get("train")], [3, 3], "another size");
        let later = std::time::SystemTime::now() + std::time::Duration::from_nanos(100);
        fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert_eq!([get("train"), get("train")], [4, 4], "another time");

        let cached = fs::read_dir(folder.path().join("deep/cache")).unwrap().map(|entry| entry.unwrap().path());
        for file in cached {
            let mut bytes = fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
            fs::write(&file, bytes).unwrap();
        }
        assert_eq!([get("train"), get("train")], [5, 5], "a damaged index is built again");
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_noted_and_stops_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        fs::write(&blocked, [0; 25]).unwrap();
        let file = LocalFile::open(&blocked).unwrap();
        let table = IndexCache::new(Some(&blocked)).get(&file, "x", || Ok(table())).unwrap();
        assert_eq!((table.names.len(), table.notes.len()), (3, 2));
    }

    #[test]
    fn two_at_once_both_get_the_whole_table_and_leave_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("archive.tar");
        fs::write(&path, [0; 25]).unwrap();
        let cache_folder = folder.path().join("cache");
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let file = LocalFile::open(&path).unwrap();
                        let cache = IndexCache::new(Some(&cache_folder));
                        // Each pretends to have found nothing in the cache.
                        fs::create_dir_all(&cache_folder).unwrap();
                        store(&cache_folder.join("x.index"), "key", &table()).unwrap();
                        assert!(load(&cache_folder.join("x.index"), "key", 25).is_some(), "never half a file");
                        assert_eq!(cache.get(&file, "train", || Ok(table())).unwrap(), table());
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(&cache_folder).unwrap().count(), 2, "nothing temporary is left");
    }

    #[test]
    fn mutated_indices_are_refused_or_sound() {
        let mut out = Encoder(MAGIC.to_vec());
        out.text("key");
        out.0.extend(table().encode());
        let mut rng = StdRng::seed_from_u64(2);
        for _ in 0..20_000 {
            let mut body = out.0.clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..body.len());
                match rng.random_range(0..3) {
                    0 => body[at] ^= 1 << rng.random_range(0..8),
                    1 => body[at] = 0xff,
                    _ => body.truncate(at.max(1)),
                }
            }
            // As if the checksum had not noticed.
            let sum = crc32fast::hash(&body);
            body.extend(sum.to_le_bytes());
            if let Some(table) = parse(&body, "key", 25) {
                (0..table.names.len()).for_each(|index| {
                    table.names.get(index);
                    assert!(table.offsets[index] + u64::from(table.sizes[index]) <= 25);
                });
            }
        }
    }
}
