//! Safetensors: a header of names, shapes and offsets, then the values.
//!
//! The file is read, not mapped into memory: a mapped file that another process shortens ends this one with SIGBUS.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    path::Path,
};

use burn::tensor::{BoolStore, Bytes, DType};
use burn_store::burn_pack::{Error as PackError, Tensor as PackTensor};
use serde::Deserialize;

use super::zip::Blocks;

/// The largest header. That of ResNet-152 has 100 kB, and a card's class names add to it.
const MAX_HEADER: u64 = 32 << 20;

#[derive(Deserialize)]
struct Header {
    /// Texts by the format's rules; other programs write numbers and null as well, which do not matter here.
    #[serde(rename = "__metadata__", default)]
    metadata: serde_json::Value,
    #[serde(flatten)]
    tensors: BTreeMap<String, Info>,
}

#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

type Result<T> = std::result::Result<T, String>;

/// Whether a file begins with the length of a header that it can hold, and the header.
pub fn is_safetensors(head: &[u8], len: u64) -> bool {
    match head.split_first_chunk::<8>() {
        Some((length, [b'{', ..])) => u64::from_le_bytes(*length) <= len.max(MAX_HEADER),
        _ => false,
    }
}

/// Reads the names and shapes of a file's tensors, and its metadata.
///
/// # Errors
/// What is wrong with the file, to follow its path.
pub fn read(path: &Path) -> Result<(BTreeMap<String, PackTensor>, HashMap<String, String>)> {
    let blocks = File::open(path).and_then(Blocks::new).map_err(|error| error.to_string())?;
    let length = blocks.read(0, 8).map_err(|error| error.to_string())?;
    let length = u64::from_le_bytes(length.try_into().map_err(|_| "it has no header")?);
    if length > MAX_HEADER {
        return Err(format!("its header has {length} bytes, and at most {MAX_HEADER} are read"));
    }
    let header = blocks.read(8, length).map_err(|_| {
        "it ends within its header: it is only a part of the file; download or copy it again".to_string()
    })?;
    let header: Header = serde_json::from_slice(&header).map_err(|error| format!("its header is damaged: {error}"))?;
    let (data, held) = (8 + length, blocks.len() - 8 - length);
    let declared = header.tensors.values().map(|info| info.data_offsets[1]).max().unwrap_or(0);
    if declared > held {
        return Err(format!(
            "{held} of its {declared} bytes of values are there: it is only a part of the file; download or copy it again"
        ));
    }
    let mut tensors = BTreeMap::new();
    for (name, Info { dtype, shape, data_offsets: [start, end] }) in header.tensors {
        let dtype = self::dtype(&dtype)?;
        let count = shape.iter().try_fold(dtype.size() as u64, |count, size| count.checked_mul(*size as u64));
        let len = end.checked_sub(start).filter(|len| Some(*len) == count).ok_or_else(|| {
            format!("{} of shape {shape:?} is stored at bytes {start} to {end}", super::printable(&name))
        })?;
        let (blocks, shown) = (blocks.clone(), super::printable(&name));
        let read = move || {
            let failed = |error| PackError::IoError(format!("{shown}: {error}"));
            blocks.read(data + start, len).map(Bytes::from_bytes_vec).map_err(failed)
        };
        tensors.insert(name.clone(), PackTensor::deferred(name, dtype, shape, None, len as usize, read));
    }
    Ok((tensors, texts(header.metadata)))
}

/// The texts of an object.
fn texts(value: serde_json::Value) -> HashMap<String, String> {
    let serde_json::Value::Object(entries) = value else { return HashMap::new() };
    let text = |(key, value)| match value {
        serde_json::Value::String(text) => Some((key, text)),
        _ => None,
    };
    entries.into_iter().filter_map(text).collect()
}

fn dtype(name: &str) -> Result<DType> {
    Ok(match name {
        "F64" => DType::F64,
        "F32" => DType::F32,
        "F16" => DType::F16,
        "BF16" => DType::BF16,
        "I64" => DType::I64,
        "I32" => DType::I32,
        "I16" => DType::I16,
        "I8" => DType::I8,
        "U64" => DType::U64,
        "U32" => DType::U32,
        "U16" => DType::U16,
        "U8" => DType::U8,
        "BOOL" => DType::Bool(BoolStore::Native),
        other => return Err(format!("it has values of the type {}, which is not supported", super::printable(other))),
    })
}
