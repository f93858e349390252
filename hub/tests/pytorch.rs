//! PyTorch's files in their formats: archives, streams, whole models, TorchScript.

mod checkpoint;

use std::fs;

use checkpoint::{Entry, Tensor, Value, checkpoint, pickle, zip};
use hub::Weights;

fn floats(count: usize) -> Vec<u8> {
    (0..count).flat_map(|value| (value as f32).to_le_bytes()).collect()
}

fn open(name: &str, bytes: &[u8]) -> hub::Result<Weights> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    fs::write(&path, bytes).expect("written");
    let weights = Weights::open(&path)?;
    // Values are read from the open file, whatever becomes of its name.
    fs::remove_file(&path).expect("deleted");
    Ok(weights)
}

fn dict(pairs: &[(&str, Value)]) -> Value {
    Value::Dict(pairs.iter().map(|(key, value)| (key.to_string(), value.clone())).collect())
}

fn object(module: &'static str, name: &'static str, pairs: &[(&str, Value)]) -> Value {
    Value::Object(module, name, pairs.iter().map(|(key, value)| (key.to_string(), value.clone())).collect())
}

fn names(weights: &Weights) -> Vec<String> {
    weights.shapes().map(|(name, _)| name).collect()
}

#[test]
fn archives_are_read_stored_and_compressed() {
    let value = dict(&[("a", Value::Tensor(Tensor::dense("0", &[2, 3]))), ("epoch", Value::Int(3))]);
    let stored = checkpoint(&value, &[("0", floats(6))]);
    let deflated =
        zip(&[Entry::deflated("archive/data.pkl", pickle(&value)), Entry::deflated("archive/data/0", floats(6))]);
    for bytes in [stored, deflated] {
        let weights = open("w.pth", &bytes).expect("readable");
        assert_eq!(weights.shapes().collect::<Vec<_>>(), [("a".to_string(), vec![2, 3])]);
        assert_eq!(weights.values("a").expect("readable"), Some(vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
    }
}

#[test]
fn views_of_a_storage_are_read_in_their_order() {
    let transposed = Tensor { strides: vec![1, 3], ..Tensor::dense("0", &[3, 2]) };
    let bytes = checkpoint(&dict(&[("t", Value::Tensor(transposed))]), &[("0", floats(6))]);
    let weights = open("w.pth", &bytes).expect("readable");
    assert_eq!(weights.values("t").expect("readable"), Some(vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0]));
}

#[test]
fn a_whole_model_is_read_as_its_state_dict() {
    let tensor = |key: &str| Value::Tensor(Tensor::dense(key, &[2]));
    let buffers = dict(&[("running_mean", tensor("1")), ("scratch", tensor("2"))]);
    let layer = object(
        "torch.nn.modules.batchnorm",
        "BatchNorm2d",
        &[
            ("training", Value::Int(1)),
            ("_parameters", dict(&[("weight", tensor("0"))])),
            ("_buffers", buffers),
            ("_modules", dict(&[])),
            ("other", tensor("2")),
        ],
    );
    let model = object(
        "__main__",
        "Net",
        &[("_parameters", dict(&[])), ("_buffers", dict(&[])), ("_modules", dict(&[("bn1", layer)]))],
    );
    let storages = ["0", "1", "2"].map(|key| (key, floats(2)));
    let weights = open("model.pth", &checkpoint(&model, &storages)).expect("readable");
    assert_eq!(names(&weights), ["bn1.running_mean", "bn1.scratch", "bn1.weight"]);
}

#[test]
fn a_torchscript_archive_has_its_attributes_as_names() {
    let convolution = object(
        "__torch__.torch.nn.modules.conv",
        "Conv2d",
        &[("weight", Value::Tensor(Tensor::dense("0", &[1, 1, 2, 2]))), ("stride", Value::Int(1))],
    );
    let model = object("__torch__", "Net", &[("training", Value::Int(0)), ("conv1", convolution)]);
    let bytes = zip(&[
        Entry::stored("net/code/__torch__.py", b"class Net(Module): ...".to_vec()),
        Entry::stored("net/data.pkl", pickle(&model)),
        Entry::stored("net/constants.pkl", b"\x80\x02).".to_vec()),
        Entry::stored("net/data/0", floats(4)),
    ]);
    assert_eq!(names(&open("net.pt", &bytes).expect("readable")), ["conv1.weight"]);
}

#[test]
fn the_stream_before_1_6_is_read_and_may_end_nowhere_else() {
    let mut bytes = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".to_vec();
    bytes.extend(b"\x80\x02M\xe9\x03.");
    bytes.extend(b"\x80\x02}X\x0d\0\0\0little_endian\x88s.");
    let value = dict(&[("b", Value::Tensor(Tensor::dense("7", &[3]))), ("a", Value::Tensor(Tensor::dense("3", &[2])))]);
    bytes.extend(pickle(&value));
    bytes.extend(b"\x80\x02](X\x01\0\0\x003X\x01\0\0\x007e.");
    for (count, first) in [(2u64, 10.0f32), (3, 20.0)] {
        bytes.extend(count.to_le_bytes());
        bytes.extend((0..count).flat_map(|i| (first + i as f32).to_le_bytes()));
    }
    let weights = open("old.pth", &bytes).expect("readable");
    assert_eq!(weights.values("a").expect("readable"), Some(vec![10.0, 11.0]));
    assert_eq!(weights.values("b").expect("readable"), Some(vec![20.0, 21.0, 22.0]));
    for end in 1..bytes.len() {
        assert!(open("old.pth", &bytes[..end]).is_err(), "cut at {end}");
    }
    // Every byte of the pickles may be another.
    for at in 0..bytes.len() {
        for value in [0, b'.', b'(', b'R', 0x7f, 0xff] {
            let mut changed = bytes.clone();
            changed[at] = value;
            if let Ok(weights) = open("old.pth", &changed) {
                weights.shapes().for_each(|(name, _)| drop(weights.values(&name)));
            }
        }
    }
}

#[test]
fn other_archives_are_named_by_their_content() {
    let keras = zip(&[Entry::stored("config.json", b"{}".to_vec()), Entry::stored("model.weights.h5", vec![1])]);
    let error = open("model.keras", &keras).unwrap_err().to_string();
    assert!(error.contains("config.json, model.weights.h5"), "{error}");
    let big = zip(&[
        Entry::stored("archive/data.pkl", pickle(&dict(&[]))),
        Entry::stored("archive/byteorder", b"big".to_vec()),
    ]);
    let error = open("big.pth", &big).unwrap_err().to_string();
    assert!(error.contains("big-endian"), "{error}");
}
