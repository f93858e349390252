//! PyTorch's files: zip archives, the pickle streams before 1.6, the tar archives before 0.1.10, and TorchScript's
//! archives, of which the weights are read and the program is not.
//!
//! Burn's own reader holds the pickle and the tar archive in memory as they expand; this one reads within a
//! [`Budget`], and tensors when they are needed.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::Path,
    sync::Arc,
};

use burn::tensor::{BoolStore, Bytes, DType};
use burn_store::burn_pack::{Error as PackError, Tensor as PackTensor};

use super::{
    limits::{self, check_tensor},
    pickle::{Budget, Found, Node, Pickle, TensorSpec, storage_dtype},
    zip::{Archive, Blocks},
};

type Result<T> = std::result::Result<T, String>;

/// Where the storages of a file are.
#[derive(Debug)]
enum Source {
    Zip {
        archive: Archive,
        /// The folder of the storages, with a slash.
        folder: String,
    },
    /// Offsets and lengths in the file.
    File { blocks: Blocks, ranges: HashMap<String, (u64, u64)> },
}

impl Source {
    /// Returns the number of bytes of a storage, which the file was checked to have.
    fn len(&self, key: &str) -> Result<u64> {
        match self {
            Self::Zip { archive, folder } => archive.size(&format!("{folder}{key}")),
            Self::File { ranges, .. } => {
                ranges.get(key).map(|(_, len)| *len).ok_or_else(|| format!("it has no storage {key}"))
            }
        }
    }

    fn read(&self, key: &str, start: u64, len: u64) -> io::Result<Vec<u8>> {
        match self {
            Self::Zip { archive, folder } => archive.read(&format!("{folder}{key}"), start, len),
            Self::File { blocks, ranges } => match ranges.get(key) {
                Some((offset, held)) if start.checked_add(len).is_some_and(|end| end <= *held) => {
                    blocks.read(offset + start, len)
                }
                _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("the storage {key} is shorter"))),
            },
        }
    }
}

/// Reads the names and shapes of a file's tensors.
///
/// # Errors
/// What is wrong with the file, to follow its path.
pub fn read(path: &Path, head: &[u8]) -> Result<BTreeMap<String, PackTensor>> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let (pickle, source) = if head.starts_with(b"PK") {
        open_zip(file)?
    } else if head.get(257..262) == Some(b"ustar") {
        return open_tar(path, file);
    } else {
        open_stream(file)?
    };
    let source = Arc::new(source);
    let mut tensors = BTreeMap::new();
    for (name, found) in pickle.tensors()? {
        if let Found::Tensor(spec) = found {
            tensors.insert(name.clone(), tensor(name, spec, &source)?);
        }
    }
    Ok(tensors)
}

fn open_zip(file: File) -> Result<(Pickle, Source)> {
    let archive = Archive::open(Blocks::new(file).map_err(|error| error.to_string())?)?;
    let roots = archive.names().filter_map(|name| name.strip_suffix("data.pkl"));
    let root = roots.filter(|root| root.is_empty() || root.ends_with('/')).min_by_key(|root| root.len());
    let Some(root) = root.map(str::to_string) else {
        let shown: Vec<String> = archive.names().take(3).map(super::printable).collect();
        return Err(format!(
            "it is a zip archive of other files ({}{}); if one of them has the weights, unpack it first",
            shown.join(", "),
            if archive.names().nth(3).is_some() { ", …" } else { "" },
        ));
    };
    let order = format!("{root}byteorder");
    if archive.size(&order).is_ok_and(|size| size < 64) {
        let order = archive.read(&order, 0, archive.size(&order)?).map_err(|error| error.to_string())?;
        little_endian(order.trim_ascii() == b"little")?;
    }
    let name = format!("{root}data.pkl");
    // Its size is bounded before it is read, its objects while they are.
    let size = archive.size(&name)?;
    if size > 64 << 20 {
        return Err(format!("its pickle has {size} bytes, more than that of any network"));
    }
    let bytes = archive.read(&name, 0, size).map_err(|error| error.to_string())?;
    let pickle = Pickle::read(&mut bytes.as_slice(), &mut Budget::default())?;
    Ok((pickle, Source::Zip { archive, folder: format!("{root}data/") }))
}

fn little_endian(is_little: bool) -> Result<()> {
    match is_little {
        true => Ok(()),
        false => Err("it was written on a big-endian machine, which is not supported".to_string()),
    }
}

fn check_system(pickle: &Pickle) -> Result<()> {
    match pickle.get(pickle.root(), "little_endian") {
        Some(Node::Bool(is_little)) => little_endian(*is_little),
        _ => Err("it does not state the order of its bytes".to_string()),
    }
}

/// A stream of pickles: a magic number, a version, the system, the object, the storages' keys; then the storages. Or a
/// single pickle, which has no tensors.
fn open_stream(file: File) -> Result<(Pickle, Source)> {
    let failed = |error: io::Error| error.to_string();
    let blocks = Blocks::new(file.try_clone().map_err(failed)?).map_err(failed)?;
    let mut reader = BufReader::new(file);
    let mut budget = Budget::default();
    let first = Pickle::read(&mut reader, &mut budget)?;
    let ranges = HashMap::new();
    // The magic number needs more than 64 bits.
    if !matches!(first.root(), Node::Other) {
        return Ok((first, Source::File { blocks, ranges }));
    }
    match Pickle::read(&mut reader, &mut budget)?.root() {
        Node::Int(1001) => {}
        _ => return Err("it is a pickle, but not a PyTorch file of a known version".to_string()),
    }
    check_system(&Pickle::read(&mut reader, &mut budget)?)?;
    let object = Pickle::read(&mut reader, &mut budget)?;
    let keys = Pickle::read(&mut reader, &mut budget)?;
    let keys = keys.items(keys.root()).ok_or("its list of storages is missing")?;
    let mut sizes = HashMap::new();
    for storage in object.storages()? {
        sizes.insert(storage.key.to_string(), storage.dtype.map_or(1, |dtype| dtype.size() as u64));
    }
    let mut offset = reader.stream_position().map_err(failed)?;
    let mut ranges = HashMap::new();
    for key in keys {
        let key = match key {
            Node::Text(key) => key.to_string(),
            Node::Int(key) => key.to_string(),
            _ => return Err("its list of storages is damaged".to_string()),
        };
        let count = blocks.read(offset, 8).map_err(|error| cut(&error))?;
        let count = u64::from_le_bytes(count.try_into().map_err(|_| "its storages are damaged")?);
        let size = *sizes.get(&key).ok_or("its list of storages is damaged")?;
        let len = count.checked_mul(size).filter(|len| *len <= blocks.len() - offset - 8);
        let len = len.ok_or_else(|| format!("its storage of {count} values exceeds the file: {CUT}"))?;
        ranges.insert(key, (offset + 8, len));
        offset += 8 + len;
    }
    Ok((object, Source::File { blocks, ranges }))
}

const CUT: &str = "it is only a part of the file; download or copy it again";

fn cut(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => format!("it ends early: {CUT}"),
        _ => error.to_string(),
    }
}

/// The entries `sys_info`, `storages`, `tensors` and `pickle`, of which the second has most of the bytes.
fn open_tar(path: &Path, file: File) -> Result<BTreeMap<String, PackTensor>> {
    let failed = |error: io::Error| format!("its archive is damaged: {error}");
    let blocks = Blocks::new(file.try_clone().map_err(failed)?).map_err(failed)?;
    let mut archive = tar::Archive::new(file);
    let mut entries: HashMap<String, (u64, u64)> = HashMap::new();
    let mut others = Vec::new();
    for entry in archive.entries_with_seek().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.path().map_err(failed)?.to_string_lossy().trim_start_matches("./").to_string();
        if !matches!(name.as_str(), "sys_info" | "storages" | "tensors" | "pickle") {
            if others.len() < 3 && entry.header().entry_type().is_file() {
                others.push(super::printable(&name).to_string());
            }
            continue;
        }
        // A sparse entry declares zeros that the file does not have.
        let is_whole = entry.header().entry_type().is_file()
            && entry.raw_file_position().checked_add(entry.size()).is_some_and(|end| end <= blocks.len());
        if !is_whole {
            return Err(format!("its entry {name} is not a whole file: {CUT}"));
        }
        entries.insert(name, (entry.raw_file_position(), entry.size()));
    }
    if entries.is_empty() && !others.is_empty() {
        let names = others.join(", ");
        return Err(format!(
            "it is a tar archive of other files ({names}); if one of them has the weights, unpack it first"
        ));
    }
    let mut budget = Budget::default();
    let reader = |name: &str| -> Result<(BufReader<io::Take<File>>, u64)> {
        let (start, len) = *entries.get(name).ok_or_else(|| format!("its archive has no entry {name}"))?;
        // A handle of its own: duplicates share their position.
        let mut file = File::open(path).map_err(failed)?;
        file.seek(SeekFrom::Start(start)).map_err(failed)?;
        Ok((BufReader::new(file.take(len)), start))
    };
    if let Ok((mut system, _)) = reader("sys_info") {
        check_system(&Pickle::read(&mut system, &mut budget)?)?;
    }
    let (mut types, mut ranges) = (HashMap::new(), HashMap::new());
    let (mut storages, start) = reader("storages")?;
    let mut tensors = reader("tensors")?.0;
    let mut object = reader("pickle")?.0;
    let held = entries["storages"].1;
    let position =
        |reader: &BufReader<io::Take<File>>, held: u64| held - reader.get_ref().limit() - reader.buffer().len() as u64;
    for _ in 0..count(&mut storages, &mut budget)? {
        let meta = Pickle::read(&mut storages, &mut budget)?;
        let (key, kind) = match meta.items(meta.root()).as_deref() {
            Some([key, _, Node::Global(_, kind)]) => (key_of(key)?, kind.to_string()),
            _ => return Err("its storages are damaged".to_string()),
        };
        let dtype = storage_dtype(&kind)?;
        let number = number(&mut storages)?;
        let at = position(&storages, held);
        let len = number.checked_mul(dtype.size() as u64).filter(|len| *len <= held - at);
        let len = len.ok_or_else(|| format!("its storage of {number} values exceeds its entry: {CUT}"))?;
        io::copy(&mut storages.by_ref().take(len), &mut io::sink()).map_err(failed)?;
        types.insert(key.clone(), dtype);
        ranges.insert(key, (start + at, len));
    }
    let views = Pickle::read(&mut storages, &mut budget)?;
    for view in views.items(views.root()).ok_or("its list of views is missing")? {
        let (target, root, first, number) = match views.items(view).as_deref() {
            Some([target, root, Node::Int(first), Node::Int(number)]) => {
                (key_of(target)?, key_of(root)?, *first, *number)
            }
            _ => return Err("its list of views is damaged".to_string()),
        };
        let (offset, held) = *ranges.get(&root).ok_or("a view is of no storage")?;
        let dtype: DType = types[&root];
        let scaled = |number: i64| u64::try_from(number).ok()?.checked_mul(dtype.size() as u64);
        let (Some(first), Some(len)) = (scaled(first), scaled(number)) else {
            return Err("a view is damaged".to_string());
        };
        if first.checked_add(len).is_none_or(|end| end > held) {
            return Err("a view exceeds its storage".to_string());
        }
        types.insert(target.clone(), dtype);
        ranges.insert(target, (offset + first, len));
    }
    let source = Arc::new(Source::File { blocks: blocks.clone(), ranges });
    let mut specs = HashMap::new();
    for _ in 0..count(&mut tensors, &mut budget)? {
        let meta = Pickle::read(&mut tensors, &mut budget)?;
        let (key, storage) = match meta.items(meta.root()).as_deref() {
            Some([key, storage, _]) => (key_of(key)?, key_of(storage)?),
            _ => return Err("its tensors are damaged".to_string()),
        };
        // The rank was once written as 8 bytes.
        let rank = number(&mut tensors)? as u32 as usize;
        if rank > limits::MAX_RANK {
            return Err(format!("a tensor has {rank} dimensions"));
        }
        let mut numbers =
            |count: usize| -> Result<Vec<usize>> { (0..count).map(|_| Ok(number(&mut tensors)? as usize)).collect() };
        let (shape, strides, offset) = (numbers(rank)?, numbers(rank)?, numbers(1)?[0]);
        let dtype = *types.get(&storage).ok_or("a tensor is of no storage")?;
        let len = (source.len(&storage)? / dtype.size() as u64) as usize;
        let storage = super::pickle::Storage { key: storage.into(), dtype: Some(dtype), len, start: 0 };
        specs.insert(key, TensorSpec { storage, dtype, offset, shape, strides });
    }
    let mut found = BTreeMap::new();
    for (name, key) in Pickle::read(&mut object, &mut budget)?.tensors()? {
        if let Found::Key(key) = key {
            let spec = specs.get(&key).ok_or_else(|| "it refers to a tensor that it does not have".to_string())?;
            found.insert(name.clone(), tensor(name, spec.clone(), &source)?);
        }
    }
    Ok(found)
}

fn key_of(node: &Node) -> Result<String> {
    match node {
        Node::Text(key) if key.len() <= 64 => Ok(key.to_string()),
        Node::Int(key) => Ok(key.to_string()),
        _ => Err("a key is damaged".to_string()),
    }
}

fn count(reader: &mut impl io::BufRead, budget: &mut Budget) -> Result<u64> {
    match Pickle::read(reader, budget)?.root() {
        Node::Int(count @ 0..) => Ok(*count as u64),
        _ => Err("a count is damaged".to_string()),
    }
}

fn number(reader: &mut impl Read) -> Result<u64> {
    let mut bytes = [0; 8];
    reader.read_exact(&mut bytes).map_err(|error| cut(&error))?;
    Ok(u64::from_le_bytes(bytes))
}

/// Checks a tensor against its storage; its values are read when they are needed.
fn tensor(name: String, spec: TensorSpec, source: &Arc<Source>) -> Result<PackTensor> {
    let shown = super::printable(&name);
    let TensorSpec { storage, dtype, offset, shape, strides } = spec;
    let held = source.len(&storage.key)?;
    let len = check_tensor(&shape, dtype, held).map_err(|cause| format!("{shown} {cause}"))?;
    let size = dtype.size() as u64;
    let exceeds = || format!("{shown} of shape {shape:?} exceeds its storage of {held} bytes");
    if strides.len() != shape.len() {
        return Err(format!("{shown} has {} dimensions and {} strides", shape.len(), strides.len()));
    }
    // The index of the last value, from the first.
    let span = match shape.contains(&0) {
        true => None,
        false => {
            let last = shape.iter().zip(&strides).try_fold(0u64, |last, (size, stride)| {
                last.checked_add((*size as u64 - 1).checked_mul(*stride as u64)?)
            });
            Some(last.ok_or_else(exceeds)?)
        }
    };
    let first = (storage.start as u64).checked_add(offset as u64).ok_or_else(exceeds)?;
    let values = span.map_or(Some(0), |last| last.checked_add(1)).ok_or_else(exceeds)?;
    let end = first.checked_add(values).ok_or_else(exceeds)?;
    if end > storage.len as u64 || end.checked_mul(size).is_none_or(|end| end > held) {
        return Err(exceeds());
    }
    let (start, window) = (first * size, values * size);
    let (source, key, error_name, dims) = (source.clone(), storage.key, name.clone(), shape.clone());
    let read = move || {
        let failed = |error: io::Error| PackError::IoError(format!("{}: {error}", super::printable(&error_name)));
        let data = source.read(&key, start, window).map_err(failed)?;
        let mut bytes = match is_contiguous(&dims, &strides) {
            true => data,
            false => gather(&data, &dims, &strides, size as usize, len as usize),
        };
        if dtype == DType::Bool(BoolStore::Native) {
            bytes.iter_mut().for_each(|byte| *byte = u8::from(*byte != 0));
        }
        Ok(Bytes::from_bytes_vec(bytes))
    };
    Ok(PackTensor::deferred(name, dtype, shape, None, len as usize, read))
}

/// Whether values are stored row by row; the strides of dimensions of size one do not matter.
fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(size, stride)| {
        let is_next = *size <= 1 || *stride == expected;
        expected *= size;
        is_next
    })
}

/// Collects the values of a view row by row. The caller has checked that all of them are in `data`.
fn gather(data: &[u8], shape: &[usize], strides: &[usize], size: usize, len: usize) -> Vec<u8> {
    let mut values = Vec::with_capacity(len);
    for index in 0..len / size {
        let (mut rest, mut at) = (index, 0);
        for (size, stride) in shape.iter().zip(strides).rev() {
            at += rest % size * stride;
            rest /= size;
        }
        values.extend_from_slice(&data[at * size..][..size]);
    }
    values
}
