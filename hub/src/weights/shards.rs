//! Weights in several files: `model-00001-of-00003.safetensors` and so on, with an index of which tensor is where.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    path::{Component, Path, PathBuf},
};

use serde::Deserialize;

use crate::{Error, Result};

/// How the name of an index ends.
const INDEX: &str = ".index.json";

/// The largest index. It has a line for each tensor.
const MAX_INDEX: u64 = 32 << 20;

/// The most shards that a name may declare.
const MAX_SHARDS: u32 = 1000;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The files that an index, or one of several shards, stands for; `None` for any other file.
///
/// # Errors
/// If the index is not valid or names a file that is not beside it, or a shard is missing.
pub fn of(path: &Path) -> Result<Option<Vec<PathBuf>>> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let parts: Vec<PathBuf> = if name.ends_with(INDEX) && path.is_file() {
        let damaged = |cause: String| Error::Format { path: path.to_path_buf(), kind: "an index of shards", cause };
        let mut text = String::new();
        let read = fs::File::open(path).and_then(|file| file.take(MAX_INDEX).read_to_string(&mut text));
        read.map_err(|source| Error::Io { action: "read", path: path.to_path_buf(), source })?;
        let index: Index = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        let names: BTreeSet<&String> = index.weight_map.values().collect();
        // An index from elsewhere leads to no other folder.
        let is_name =
            |name: &str| matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
        if let Some(other) = names.iter().find(|name| !is_name(name)) {
            return Err(damaged(format!("`{}` is not the name of a file beside it", super::printable(other))));
        }
        names.into_iter().map(|name| path.with_file_name(name)).collect()
    } else {
        let Some((before, total, after)) = shard(name) else { return Ok(None) };
        (1..=total).map(|number| path.with_file_name(format!("{before}-{number:05}-of-{total:05}{after}"))).collect()
    };
    if let Some(missing) = parts.iter().find(|part| !part.is_file()) {
        return Err(Error::Format {
            path: path.to_path_buf(),
            kind: "weights in several files",
            cause: format!("{} of {} is missing; download or copy all of them", missing.display(), parts.len()),
        });
    }
    Ok(Some(parts))
}

/// Splits the name of one of several shards: what is before its number, their total, what is after it.
fn shard(name: &str) -> Option<(&str, u32, &str)> {
    let (before, after) = name.split_once("-of-")?;
    let (before, number) = before.rsplit_once('-')?;
    let (total, after) = after.split_at_checked(5)?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let total = total.parse().ok().filter(|_| is_number(total) && is_number(number))?;
    (2..=MAX_SHARDS).contains(&total).then_some((before, total, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_recognized_by_their_names() {
        assert_eq!(shard("model-00002-of-00003.safetensors"), Some(("model", 3, ".safetensors")));
        assert_eq!(shard("pytorch_model-00001-of-00012.bin"), Some(("pytorch_model", 12, ".bin")));
        for name in [
            "model-00001-of-00001.safetensors",
            "epoch-5-of-10.pth",
            "model.safetensors",
            "-of-",
            "a-00001-of-99999.pt",
        ] {
            assert_eq!(shard(name), None, "{name}");
        }
    }

    #[test]
    fn an_index_stands_for_the_files_beside_it_only() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let index = at("model.safetensors.index.json");
        let write = |files: [&str; 2]| {
            let map = format!(r#"{{"metadata": {{}}, "weight_map": {{"a": "{}", "b": "{}"}}}}"#, files[0], files[1]);
            fs::write(&index, map).unwrap();
        };
        let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
        write([second, first]);
        fs::write(at(first), "").unwrap();
        let error = of(&index).unwrap_err().to_string();
        assert!(error.contains(second) && error.contains("is missing"), "{error}");
        assert!(of(&at(first)).unwrap_err().to_string().contains(second));
        fs::write(at(second), "").unwrap();
        for path in [&index, &at(first), &at(second)] {
            assert_eq!(of(path).unwrap(), Some(vec![at(first), at(second)]));
        }
        for outside in ["../x", "/etc/passwd", "sub/x", ""] {
            write([first, outside]);
            assert!(of(&index).unwrap_err().to_string().contains("not the name of a file beside it"), "{outside}");
        }
        assert_eq!(of(&at("weights.pth")).unwrap(), None);
    }
}
