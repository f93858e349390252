//! Tests of exported ONNX files with the `onnx` checker and onnxruntime.
//!
//! They need Python with `onnx` and `onnxruntime` (`python3`, or `HEARTH_PYTHON`); without it they are skipped with a
//! message.
#![allow(clippy::unwrap_used)]

mod drawn;

use std::{path::Path, process::Command};

use burn::tensor::{Device, Distribution, Tensor};
use drawn::network;
use hub::{Card, Strictness, Weights, weights};
use infer::onnx;
use models::{Architecture, Graph, ImageClassifier, NetworkConfig, QuantizedNetwork};

fn python() -> Option<String> {
    let python = std::env::var("HEARTH_PYTHON").unwrap_or_else(|_| "python3".to_string());
    let imports = Command::new(&python).args(["-c", "import onnx, onnxruntime"]).output();
    if imports.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    eprintln!("skipped: {python} has no onnx and onnxruntime (set HEARTH_PYTHON to one that has)");
    None
}

/// Exports and runs a network. Returns the largest differences for three images and for one, relative to the largest
/// logit.
fn differences(python: &str, architecture: Architecture, side: usize, folder: &Path, options: [bool; 2]) -> Vec<f64> {
    let [fold, transform_input] = options;
    let network = network(architecture, transform_input);
    let images = Tensor::<4>::random([3, 3, side, side], Distribution::Normal(0.0, 1.0), &Device::flex());
    let logits = network.forward(images.clone());
    let exported = if fold { network.fold_batch_norm() } else { network };
    let graph = Graph::of(architecture, &exported, [side, side]).unwrap();
    let onnx = onnx::encode(&graph, &Card::of(architecture, 10, "a test")).unwrap();
    run(python, &onnx, images, logits, folder).unwrap_or_else(|error| panic!("{architecture}: {error}"))
}

/// Runs a file on the images. Returns the largest differences from the logits, of all images and of one.
fn run(python: &str, onnx: &[u8], images: Tensor<4>, logits: Tensor<2>, folder: &Path) -> Result<Vec<f64>, String> {
    let raw = |tensor: burn::tensor::TensorData| tensor.iter::<f32>().flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
    let [model, input, output] = ["model.onnx", "input", "logits"].map(|name| folder.join(name));
    std::fs::write(&model, onnx).unwrap();
    std::fs::write(&input, raw(images.into_data())).unwrap();
    std::fs::write(&output, raw(logits.into_data())).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/check_onnx.py");
    let ran = Command::new(python).arg(script).args([&model, &input, &output]).arg("3").output().unwrap();
    match ran.status.success() {
        true => Ok(String::from_utf8_lossy(&ran.stdout).lines().map(|line| line.parse().unwrap()).collect()),
        false => Err(String::from_utf8_lossy(&ran.stderr).into_owned()),
    }
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

/// onnxruntime rounds to the same bytes, but for values that lie half-way between two of them (2 of 100,000 after the first
/// convolution), whose differences grow with depth, to about what rounding itself costs.
#[test]
fn onnxruntime_matches_quantized_networks() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let device = Device::flex();
    for (architecture, side) in [
        (Architecture::ResNet20, 32),
        (Architecture::ResNet18, 64),
        (Architecture::ResNeXt50, 64),
        (Architecture::GoogLeNet, 64),
        (Architecture::GoogLeNet2014, 64),
        (Architecture::AlexNet, 64),
    ] {
        // Pixels, since a quantized network rounds its images to them.
        device.seed(3);
        let images = Tensor::<4>::random([3, 3, side, side], Distribution::Uniform(0.0, 255.0), &device).round();
        let images = (images / 255.0 - 0.5) / 0.25;
        let normalization = [[0.5; 3], [0.25; 3]];
        let batches = std::slice::from_ref(&images);
        let network = network(architecture, false);
        let (float, quantized) = (
            network.clone(),
            QuantizedNetwork::calibrate(architecture, network, normalization, batches, &[]).unwrap().0,
        );
        let logits = quantized.forward(images.clone()).unwrap();
        let lost = float.forward(images.clone()) - logits.clone();
        let onnx = onnx::encode_quantized(&quantized, &Card::of(architecture, 10, "a test")).unwrap();
        let found = run(&python, &onnx, images, logits.clone(), folder.path()).unwrap();
        let largest = |tensor: Tensor<2>| f64::from(tensor.abs().max().into_scalar::<f32>());
        let lost = largest(lost) / largest(logits);
        eprintln!("{architecture:18} {found:?}, int8 itself {lost:.1e}");
        assert!(found.iter().all(|difference| *difference < 2.0 * lost), "{architecture}: {found:?} {lost}");
    }
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
