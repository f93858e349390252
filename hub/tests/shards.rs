//! Weights as other programs write them to disk: in shards, with metadata of any kind, in archives, beside an optimizer's.

use std::{fs, path::Path};

use burn::tensor::Device;
use hub::{Card, Error, Weights, weights};
use models::{Architecture, NetworkConfig};
use serde_json::{Map, Value, json};

/// A header of safetensors and its values.
struct Parts(Map<String, Value>, Vec<u8>);

fn saved(folder: &Path) -> Parts {
    let path = folder.join("whole.safetensors");
    let network = NetworkConfig::new(Architecture::ResNet20).with_num_classes(3).init(&Device::flex());
    weights::save(&network, &Card::of(Architecture::ResNet20, 3, "a test"), &path).expect("written");
    let bytes = fs::read(&path).expect("read");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let mut entries: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + header]).expect("a header");
    entries.remove("__metadata__");
    Parts(entries, bytes[8 + header..].to_vec())
}

fn write(path: &Path, header: &Value, data: &[u8]) {
    let header = header.to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
    fs::write(path, bytes).expect("written");
}

fn shapes(path: &Path) -> Vec<(String, Vec<usize>)> {
    Weights::open(path).expect("opened").shapes().collect()
}

#[test]
fn shards_are_one_file_whichever_of_them_is_given() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let Parts(entries, data) = saved(folder.path());
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let (mut map, half) = (Map::new(), entries.len() / 2);
    for (shard, name) in names.iter().enumerate() {
        let of_shard = entries.iter().enumerate().filter(|(index, _)| usize::from(*index >= half) == shard);
        let header: Map<String, Value> = of_shard.map(|(_, (key, entry))| (key.clone(), entry.clone())).collect();
        map.extend(header.keys().map(|key| (key.clone(), json!(name))));
        // Each has all values: offsets are into its own.
        write(&at(name), &Value::Object(header), &data);
    }
    let index = at("model.safetensors.index.json");
    fs::write(&index, json!({ "metadata": { "total_size": 1 }, "weight_map": map }).to_string()).expect("written");
    let whole = shapes(&at("whole.safetensors"));
    for path in [&index, &at(names[0]), &at(names[1])] {
        assert_eq!(shapes(path), whole, "{}", path.display());
    }
    let opened = Weights::open(&index).expect("opened");
    let key = &whole[0].0;
    let first = Weights::open(at("whole.safetensors")).expect("opened").values(key).expect("read");
    assert_eq!(opened.values(key).expect("read"), first);
    fs::copy(at(names[0]), at(names[1])).expect("copied");
    let error = Weights::open(&index).expect_err("tensors are in both shards").to_string();
    assert!(error.contains("in another of the files too"), "{error}");
    fs::remove_file(at(names[1])).expect("removed");
    let error = Weights::open(at(names[0])).expect_err("a shard is missing").to_string();
    assert!(error.contains(names[1]) && error.contains("is missing"), "{error}");
}

#[test]
fn metadata_of_any_kind_does_no_harm() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("w.safetensors");
    let Parts(entries, data) = saved(folder.path());
    let whole = shapes(&folder.path().join("whole.safetensors"));
    for metadata in
        [json!(null), json!({}), json!({ "epoch": 3, "format": "pt" }), json!({ "a": { "b": 1 } }), json!("x")]
    {
        let mut header = entries.clone();
        header.insert("__metadata__".to_string(), metadata.clone());
        write(&path, &Value::Object(header), &data);
        assert_eq!(shapes(&path), whole, "{metadata}");
    }
}

#[test]
fn an_archive_around_the_file_and_an_optimizers_state_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("w.tar");
    let mut archive = tar::Builder::new(fs::File::create(&path).expect("created"));
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    header.set_cksum();
    archive.append_data(&mut header, "weights/best.pth", &b"data"[..]).expect("added");
    archive.into_inner().expect("written");
    let error = Weights::open(&path).expect_err("no weights").to_string();
    assert!(error.contains("tar archive of other files (weights/best.pth)") && error.contains("unpack"), "{error}");

    let entry = |start: u64| json!({ "dtype": "F32", "shape": [2], "data_offsets": [start, start + 8] });
    let path = folder.path().join("optimizer.safetensors");
    write(&path, &json!({ "state.0.exp_avg": entry(0), "state.0.exp_avg_sq": entry(8) }), &[0; 16]);
    let error = Weights::open(&path).expect_err("no weights");
    assert!(matches!(error, Error::NotWeights { what: "the state of an optimizer", .. }), "{error}");
}
