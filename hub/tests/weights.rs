//! Weights in and out: round trips, stored types, mismatches, damaged and hostile files.

use std::fs;

use burn::{
    module::Module,
    tensor::{DType, Device, Distribution, Tensor, TensorData},
};
use hub::{Card, Error, Strictness, Weights, weights};
use models::{Architecture, ImageClassifier, Network, NetworkConfig};

const ARCHITECTURE: Architecture = Architecture::ResNet20;

fn network(num_classes: usize) -> Network {
    NetworkConfig::new(ARCHITECTURE).with_num_classes(num_classes).init(&Device::flex())
}

fn images() -> Tensor<4> {
    let device = Device::flex();
    Tensor::random([2, 3, 32, 32], Distribution::Default, &device)
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("f32")
}

/// The network's tensors under PyTorch's names, changed by `edit`.
fn tensors(network: &Network, edit: impl Fn(&str, TensorData) -> Option<(String, TensorData)>) -> Weights {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("weights.safetensors");
    weights::save(network, &Card::of(ARCHITECTURE, 10, "a test"), &path).expect("written or read");
    let mut tensors = Vec::new();
    let bytes = fs::read(&path).expect("written or read");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("the slice has that length")) as usize;
    let entries: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&bytes[8..8 + header]).expect("a header");
    for (key, entry) in entries.iter().filter(|(key, _)| *key != "__metadata__") {
        let numbers = |name: &str| -> Vec<usize> { serde_json::from_value(entry[name].clone()).expect("numbers") };
        let (shape, range) = (numbers("shape"), numbers("data_offsets"));
        let data = &bytes[8 + header + range[0]..8 + header + range[1]];
        let floats: Vec<f32> = data
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().expect("the slice has that length")))
            .collect();
        tensors.extend(edit(key, TensorData::new(floats, shape)));
    }
    Weights::from_tensors("edited", tensors)
}

fn same(key: &str, data: TensorData) -> Option<(String, TensorData)> {
    Some((key.to_string(), data))
}

#[test]
fn the_same_network_is_written_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (network, card) = (network(10), Card::of(ARCHITECTURE, 10, "a \"test\""));
    // Two entries of metadata in an order drawn for each file would agree 16 times in one of 32,768 runs.
    let files: Vec<Vec<u8>> = (0..16)
        .map(|i| {
            let path = folder.path().join(format!("{i}.safetensors"));
            weights::save(&network, &card, &path).unwrap();
            fs::read(path).unwrap()
        })
        .collect();
    assert!(files[0][8..].starts_with(br#"{"__metadata__":{"format":"pt","hearth.card":"#));
    assert!(files.iter().all(|file| *file == files[0]));
    Weights::open(folder.path().join("0.safetensors")).unwrap();
}

#[test]
fn what_is_saved_is_loaded_to_the_bit_with_its_card() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sub/weights.safetensors");
    for architecture in [ARCHITECTURE, Architecture::GoogLeNet2014, Architecture::ResNet18] {
        let config = NetworkConfig::new(architecture).with_num_classes(7);
        let saved = config.init(&Device::flex());
        let card = Card::of(architecture, 7, "a test");
        weights::save(&saved, &card, &path).unwrap();

        let weights = Weights::open(&path).unwrap();
        assert_eq!(weights.card(), Some(&card));
        let config = weights.config(architecture, &Device::flex()).unwrap();
        assert_eq!((config.num_classes, config.aux_logits), (7, architecture.has_aux()));
        let (loaded, report) = weights.load(config.init(&Device::flex()), architecture, Strictness::Exact).unwrap();
        assert_eq!(report.loaded, saved.entries().len());
        let images = images();
        assert_eq!(values(saved.forward(images.clone())), values(loaded.forward(images)), "{architecture}");
    }
}

#[test]
fn a_saved_file_has_torchvisions_names_and_layouts() {
    let golden = include_str!("../../models/tests/golden/resnet18.json");
    let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
    let wanted = golden["tensors"].as_array().unwrap();
    let network = NetworkConfig::new(Architecture::ResNet18).init(&Device::flex());
    let entries = network.entries();
    assert_eq!(entries.len(), wanted.len());
    for tensor in wanted {
        let (key, shape) = (tensor["key"].as_str().unwrap(), tensor["shape"].clone());
        let entry = entries.iter().find(|entry| entry.key == key).unwrap_or_else(|| panic!("no {key}"));
        assert_eq!(entry.shape, serde_json::from_value::<Vec<usize>>(shape).unwrap(), "{key}");
    }
}

#[test]
fn burns_own_records_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.bpk");
    let saved = network(10);
    saved.clone().into_record().save(&path).unwrap();
    let weights = Weights::open(&path).unwrap();
    assert_eq!(weights.config(ARCHITECTURE, &Device::flex()).unwrap().num_classes, 10);
    let (loaded, _) = weights.load(network(10), ARCHITECTURE, Strictness::Exact).unwrap();
    let images = images();
    assert_eq!(values(saved.forward(images.clone())), values(loaded.forward(images)));
}

#[test]
fn prefixes_of_wrappers_and_checkpoints_are_seen_through() {
    let saved = network(10);
    for prefix in ["module.", "state_dict.", "state_dict.module.", "model."] {
        let weights = tensors(&saved, |key, data| Some((format!("{prefix}{key}"), data)));
        let (loaded, _) = weights.load(network(10), ARCHITECTURE, Strictness::Exact).unwrap();
        let images = images();
        assert_eq!(values(saved.forward(images.clone())), values(loaded.forward(images)), "{prefix}");
    }
}

#[test]
fn half_and_double_precision_files_become_f32() {
    let saved = network(10);
    let images = images();
    let want = values(saved.forward(images.clone()));
    for (dtype, bound) in [(DType::F16, 2e-2), (DType::BF16, 2e-1), (DType::F64, 1e-9)] {
        let weights = tensors(&saved, |key, data| Some((key.to_string(), data.convert_dtype(dtype))));
        let (loaded, _) = weights.load(network(10), ARCHITECTURE, Strictness::Exact).unwrap();
        let logits = loaded.forward(images.clone());
        assert_eq!(logits.dtype(), DType::F32);
        let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
        for (got, want) in values(logits).iter().zip(&want) {
            assert!((got - want).abs() <= bound * largest, "{dtype:?}: {got} {want}");
        }
    }
}

#[test]
fn a_mismatch_is_a_table_with_the_nearest_names() {
    let weights = tensors(&network(5), |key, data| match key {
        "layer2.1.conv1.weight" => Some(("layer2.1.convolution1.weight".to_string(), data)),
        "bn1.bias" => None,
        _ => same(key, data),
    });
    let error = weights.load(network(10), ARCHITECTURE, Strictness::Exact).unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }));
    let table = error.to_string();
    for part in [
        "does not hold the weights of resnet20",
        "missing (2)",
        "bn1.bias",
        "(like layer2.1.convolution1.weight?)",
        "unexpected (1)",
        "(like layer2.1.conv1.weight?)",
        "wrong shape (2)",
        "want [10, 64], got [5, 64]",
        "the last layer is for 5 classes, not 10: ask for a fresh head",
    ] {
        assert!(table.contains(part), "{part} is not in:\n{table}");
    }
}

#[test]
fn a_fresh_head_keeps_everything_below() {
    let saved = network(5);
    let weights = tensors(&saved, same);
    let (loaded, report) = weights.load(network(10), ARCHITECTURE, Strictness::FreshHead).unwrap();
    assert!(report.mismatch.is_empty());
    assert_eq!(report.loaded, saved.entries().len() - 2);
    let images = images();
    assert_eq!(values(saved.forward_pre_logits(images.clone())), values(loaded.forward_pre_logits(images.clone())));
    assert_eq!(loaded.forward(images).dims(), [2, 10]);

    let weights = tensors(&saved, |key, data| if key == "bn1.bias" { None } else { same(key, data) });
    assert!(weights.load(network(10), ARCHITECTURE, Strictness::FreshHead).is_err());
}

#[test]
fn a_partial_load_is_reported() {
    let weights = tensors(&network(10), |key, data| if key.starts_with("layer3") { None } else { same(key, data) });
    let (_, report) = weights.load(network(10), ARCHITECTURE, Strictness::Partial).unwrap();
    assert!(!report.mismatch.missing.is_empty());
    assert!(report.mismatch.missing.iter().all(|row| row.key.starts_with("layer3")));
}

#[test]
fn damaged_files_are_errors_that_name_them() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.safetensors");
    weights::save(&network(10), &Card::of(ARCHITECTURE, 10, "a test"), &whole).unwrap();
    let bytes = fs::read(&whole).unwrap();
    let record = folder.path().join("whole.bpk");
    network(10).into_record().save(&record).unwrap();
    let record = fs::read(&record).unwrap();

    let mut lying = bytes.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let cases: [(&str, &[u8]); 9] = [
        ("empty.pth", b""),
        ("text.pth", b"not a checkpoint at all"),
        ("zip.pth", b"PK\x03\x04 and nothing more"),
        ("pickle.pth", b"\x80\x02}q\x00."),
        ("header.safetensors", &bytes[..100]),
        ("body.safetensors", &bytes[..bytes.len() / 2]),
        ("length.safetensors", &lying),
        ("head.bpk", &record[..64]),
        ("body.bpk", &record[..record.len() / 2]),
    ];
    for (name, content) in cases {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        let error = Weights::open(&path).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(name), "{name}: {error}");
    }
    for missing in [folder.path().join("missing.pth"), folder.path().to_path_buf()] {
        let error = Weights::open(&missing).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("cannot read"), "{error}");
    }
}

#[test]
fn nothing_from_a_pickle_is_executed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, trace) = (folder.path().join("hostile.pth"), folder.path().join("trace"));
    // posix.system("touch TRACE"), as a pickle would call it.
    let pickle = format!("cposix\nsystem\n(S'touch {}'\ntR.", trace.display());
    fs::write(&path, pickle).unwrap();
    assert!(Weights::open(&path).is_err());
    assert!(!trace.exists());
}

#[test]
fn a_failed_save_leaves_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    let card = Card::of(ARCHITECTURE, 10, "a test");
    weights::save(&network(10), &card, &path).unwrap();
    let before = fs::read(&path).unwrap();
    let inside = path.join("weights.safetensors");
    assert!(weights::save(&network(10), &card, inside).is_err());
    assert_eq!(fs::read(&path).unwrap(), before);
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "nothing temporary stays");
}

#[test]
fn a_card_that_contradicts_itself_is_refused() {
    let card = Card::of(ARCHITECTURE, 10, "a test");
    let path = std::path::Path::new("card.json");
    assert_eq!(Card::from_json(&card.to_json(), path).unwrap(), card);
    let broken = [
        ("\"resnet20\"", "\"resnet21\""),
        ("\"format\": 1", "\"format\": 9"),
        ("0.229", "0.0"),
        ("\"origin\"", "\"orign\""),
        ("\"shorter_side\": 32", "\"shorter_side\": 0"),
    ];
    for (good, bad) in broken {
        let json = card.to_json();
        assert!(json.contains(good), "{good} is not in {json}");
        let error = Card::from_json(&json.replace(good, bad), path).unwrap_err().to_string();
        assert!(error.contains("card.json"), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn a_file_is_as_readable_as_the_umask_allows() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
    fs::write(folder.path().join("usual"), "").unwrap();
    let card = Card::of(ARCHITECTURE, 10, "a test");
    card.write(folder.path().join("card.json")).unwrap();
    weights::save(&network(10), &card, folder.path().join("w.safetensors")).unwrap();
    weights::save_record(&network(10), &card, folder.path().join("w.bpk")).unwrap();
    for name in ["card.json", "w.safetensors", "w.bpk"] {
        assert_eq!(mode(name), mode("usual"), "{name}");
    }
}
