//! Tests of exported ONNX files with the `onnx` checker and onnxruntime.
//!
//! They need Python with `onnx` and `onnxruntime` (`python3`, or `HEARTH_PYTHON`); without it they are skipped with a
//! message.
#![allow(clippy::unwrap_used)]

use std::{path::Path, process::Command};

use burn::tensor::{Device, Distribution, Tensor, TensorData};
use datasets::SampleRng;
use hub::{Card, Strictness, Weights, weights};
use infer::onnx;
use models::{Architecture, Entry, Graph, ImageClassifier, Network, NetworkConfig};

fn python() -> Option<String> {
    let python = std::env::var("HEARTH_PYTHON").unwrap_or_else(|_| "python3".to_string());
    let imports = Command::new(&python).args(["-c", "import onnx, onnxruntime"]).output();
    if imports.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    eprintln!("skipped: {python} has no onnx and onnxruntime (set HEARTH_PYTHON to one that has)");
    None
}

/// A network with Kaiming-initialized weights, and norms and statistics like a trained network's: activations neither
/// grow nor vanish with depth, so that differences show wrong operations and not the draw.
fn network(architecture: Architecture, transform_input: bool) -> Network {
    let device = Device::flex();
    let config = NetworkConfig::new(architecture).with_num_classes(10).with_aux_logits(false);
    let network = config.with_transform_input(transform_input).init(&device);
    let draw = |(index, entry): (usize, Entry)| {
        let (low, high) = match entry.shape[..] {
            [_, ref inputs @ ..] if !inputs.is_empty() => {
                let bound = (6.0 / inputs.iter().product::<usize>() as f64).sqrt();
                (-bound, bound)
            }
            _ if entry.key.ends_with(".running_var") || entry.key.ends_with(".weight") => (0.5, 1.5),
            _ => (-0.1, 0.1),
        };
        let mut rng = SampleRng::new(11, 0, index as u64);
        let values: Vec<f32> = (0..entry.len()).map(|_| rng.uniform(low, high) as f32).collect();
        (entry.key, TensorData::new(values, entry.shape))
    };
    let weights = Weights::from_tensors("drawn", network.entries().into_iter().enumerate().map(draw));
    weights.load(network, architecture, Strictness::Exact).unwrap().0
}

/// Exports and runs a network. Returns the largest differences for three images and for one, relative to the largest
/// logit.
fn differences(python: &str, architecture: Architecture, side: usize, folder: &Path, options: [bool; 2]) -> Vec<f64> {
    let [fold, transform_input] = options;
    let network = network(architecture, transform_input);
    let images = Tensor::<4>::random([3, 3, side, side], Distribution::Normal(0.0, 1.0), &Device::flex());
    let raw = |tensor: burn::tensor::TensorData| tensor.iter::<f32>().flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
    let logits = network.forward(images.clone());
    let exported = if fold { network.fold_batch_norm() } else { network };
    let graph = Graph::of(architecture, &exported, [side, side]).unwrap();
    let [onnx, input, output] = ["model.onnx", "input", "logits"].map(|name| folder.join(name));
    std::fs::write(&onnx, onnx::encode(&graph, &Card::of(architecture, 10, "a test")).unwrap()).unwrap();
    std::fs::write(&input, raw(images.into_data())).unwrap();
    std::fs::write(&output, raw(logits.into_data())).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/check_onnx.py");
    let ran = Command::new(python).arg(script).args([&onnx, &input, &output]).arg("3").output().unwrap();
    assert!(ran.status.success(), "{architecture}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8_lossy(&ran.stdout).lines().map(|line| line.parse().unwrap()).collect()
}

fn check(architectures: &[Architecture]) {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    for &architecture in architectures {
        let side = architecture.min_size().max(64);
        let variants: &[[bool; 2]] = if architecture == Architecture::GoogLeNet {
            &[[false, false], [true, false], [false, true]]
        } else if [Architecture::AlexNet, Architecture::GoogLeNet2014].contains(&architecture) {
            &[[false, false]]
        } else {
            &[[false, false], [true, false]]
        };
        for &options in variants {
            let found = differences(&python, architecture, side, folder.path(), options);
            eprintln!("{architecture:18} {options:?} {found:?}");
            // Folding rounds differently; the file itself computes the same as the network.
            let bound = if options[0] { 1e-4 } else { 1e-5 };
            assert!(
                found.len() == 2 && found.iter().all(|difference| *difference < bound),
                "{architecture}: {found:?}"
            );
        }
    }
}

#[test]
fn onnxruntime_matches_every_family() {
    check(&[
        Architecture::AlexNet,
        Architecture::Vgg11Bn,
        Architecture::GoogLeNet,
        Architecture::GoogLeNet2014,
        Architecture::InceptionV3,
        Architecture::ResNet18,
        Architecture::ResNet50,
        Architecture::ResNeXt50,
        Architecture::ResNet20,
        Architecture::Plain20,
    ]);
}

#[test]
#[ignore = "writes some 7 GB, file after file"]
fn onnxruntime_matches_every_architecture() {
    check(Architecture::ALL);
}

/// VGG's last pooling adapts any feature map to a classifier for 7 × 7: below 224 pixels by repetition, above by means
/// of unequal windows, which ONNX can only express as matrix products.
#[test]
fn adaptive_pooling_is_exported_for_any_image_size() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    for side in [63, 95, 230] {
        let found = differences(&python, Architecture::AlexNet, side, folder.path(), [false, false]);
        assert!(found.iter().all(|difference| *difference < 1e-5), "{side}: {found:?}");
    }
}

#[test]
fn folded_files_and_records_are_recognized() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    for architecture in [Architecture::ResNet20, Architecture::Vgg11Bn, Architecture::GoogLeNet] {
        let side = architecture.min_size().max(32);
        let network = network(architecture, false);
        let images = Tensor::<4>::random([2, 3, side, side], Distribution::Default, &device);
        let logits = network.forward(images.clone());
        for (fold, record) in [(false, true), (true, false), (true, true)] {
            let path = folder.path().join("weights");
            let (written, name) = match fold {
                true => (network.clone().fold_batch_norm(), architecture.folded()),
                false => (network.clone(), architecture),
            };
            let card = Card::of(name, 10, "a test");
            match record {
                true => weights::save_record(&written, &card, &path).unwrap(),
                false => weights::save(&written, &card, &path).unwrap(),
            }
            let options = hub::LoadOptions::default();
            let opened = hub::open(&path.display().to_string(), &options, &device).unwrap();
            assert_eq!(opened.card, card);
            let read = opened.network(false, &device).unwrap().forward(images.clone());
            let largest = logits.clone().abs().max().into_scalar::<f32>();
            let difference = (read - logits.clone()).abs().max().into_scalar::<f32>();
            assert!(difference <= 1e-4 * largest, "{architecture}, folded {fold}: {difference} of {largest}");
            assert_eq!(Weights::open(&path).unwrap().is_folded(architecture, &device), fold);
        }
    }
    // A folded file has no statistics, but must still be that network.
    let path = folder.path().join("weights");
    weights::save(
        &network(Architecture::ResNet20, false).fold_batch_norm(),
        &Card::of(Architecture::ResNet20, 10, ""),
        &path,
    )
    .unwrap();
    let other = NetworkConfig::new(Architecture::ResNet32).with_num_classes(10).init(&device).fold_batch_norm();
    assert!(Weights::open(&path).unwrap().load(other, Architecture::ResNet32, Strictness::Exact).is_err());
}
