//! Quantized networks against the same networks in f32.
#![allow(clippy::unwrap_used)]

mod drawn;
mod fixture;

use std::collections::BTreeSet;

use burn::tensor::{Device, Tensor, TensorData};
use drawn::network;
use fixture::Fixture;
use hub::{Card, LoadOptions, Strictness, Weights, weights};
use image::RgbImage;
use infer::{Model, quantize};
use models::{
    Architecture, ImageClassifier, QuantizedNetwork,
    quantized::{Calibrator, Weights as LayerWeights},
};

const NORMALIZATION: [[f32; 3]; 2] = [[0.5; 3], [0.25; 3]];

/// Pictures with structure: the averages of noise are close to zero.
fn pictures(n: usize, side: usize) -> Vec<RgbImage> {
    let picture = |image: u32| {
        RgbImage::from_fn(side as u32, side as u32, |x, y| {
            let turns = |k: u32| 1.0 + (image * 7 + k * 3) as f32 * 0.618 % 5.0;
            let wave = |at: u32, k: u32| (at as f32 / side as f32 * turns(k) * 3.1 + image as f32).sin();
            image::Rgb([0, 1, 2].map(|channel| (127.5 + 63.0 * wave(x, channel) + 63.0 * wave(y, channel + 1)) as u8))
        })
    };
    (0..n as u32).map(picture).collect()
}

/// The same, normalized.
fn tensor(pictures: &[RgbImage], device: &Device) -> Tensor<4> {
    let [width, height] = [pictures[0].width() as usize, pictures[0].height() as usize];
    let plane = |image: &RgbImage, channel: usize| -> Vec<f32> {
        image.pixels().map(|pixel| (f32::from(pixel.0[channel]) / 255.0 - 0.5) / 0.25).collect()
    };
    let values: Vec<f32> =
        pictures.iter().flat_map(|image| (0..3).flat_map(move |channel| plane(image, channel))).collect();
    Tensor::from_data(TensorData::new(values, [pictures.len(), 3, height, width]), device)
}

fn calibrated(architecture: Architecture, side: usize) -> (Calibrator, Tensor<4>) {
    let images = tensor(&pictures(4, side), &Device::flex());
    let network = network(architecture, false);
    (Calibrator::new(architecture, network, NORMALIZATION, std::slice::from_ref(&images)).unwrap(), images)
}

fn values(logits: Tensor<2>) -> Vec<f32> {
    logits.into_data().try_into_vec().unwrap()
}

#[test]
fn one_network_of_each_family_keeps_its_outputs() {
    for (architecture, side) in [
        (Architecture::ResNet20, 32),
        (Architecture::ResNet18, 64),
        (Architecture::ResNeXt50, 64),
        (Architecture::GoogLeNet, 64),
        (Architecture::GoogLeNet2014, 64),
        (Architecture::InceptionV3, 75),
        (Architecture::AlexNet, 64),
    ] {
        let (calibrator, images) = calibrated(architecture, side);
        let (quantized, calibration) = calibrator.quantize(&BTreeSet::new()).unwrap();
        assert!(quantized.layers().values().all(|layer| matches!(layer.weights, LayerWeights::Int8 { .. })));
        let weakest = calibration.layers.iter().map(|layer| layer.signal_to_noise).fold(f64::INFINITY, f64::min);
        assert!(weakest > 28.0, "{architecture}: {:?}", calibration.layers);
        let ratios = calibrator.signal_to_noise(&quantized, images.clone()).unwrap();
        let (_, logits) = ratios.last().unwrap();
        println!("{architecture}: logits {logits:.1} dB, weakest layer {weakest:.1} dB, {:?}", calibration.methods);
        assert!(*logits > 17.0, "{architecture}: {ratios:?}");

        // Images one at a time, and the same again, whatever memory the passes before have left.
        let all = values(quantized.forward(images.clone()).unwrap());
        let alone = (0..4).flat_map(|index| values(quantized.forward(images.clone().narrow(0, index, 1)).unwrap()));
        assert_eq!(alone.collect::<Vec<f32>>(), all, "{architecture}");
    }
}

#[test]
fn layers_in_f32_stay_exact() {
    let (calibrator, images) = calibrated(Architecture::AlexNet, 64);
    let reference = values(calibrator.reference(images.clone()).unwrap());
    let (quantized, _) = calibrator.quantize(&BTreeSet::new()).unwrap();
    let every: BTreeSet<String> = quantized.layers().keys().cloned().collect();
    let error = |kept: &BTreeSet<String>| {
        let (network, _) = calibrator.quantize(kept).unwrap();
        let logits = values(network.forward(images.clone()).unwrap());
        let noise: f32 = logits.iter().zip(&reference).map(|(a, b)| (a - b).powi(2)).sum();
        (noise / reference.iter().map(|a| a * a).sum::<f32>()).sqrt()
    };
    let of = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<BTreeSet<_>>();
    // Between layers in f32, poolings still round to bytes.
    let int8 = error(&BTreeSet::new());
    assert!(int8 < 0.03 && error(&every) < int8, "{} {int8}", error(&every));
    for kept in [of(&["features.0"]), of(&["classifier.1", "classifier.4"]), of(&["classifier.6"]), of(&["features.3"])]
    {
        assert!(error(&kept) < 2.0 * int8, "{kept:?}: {} {int8}", error(&kept));
    }
}

#[test]
fn a_quantized_file_classifies_and_refuses_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let (architecture, device) = (Architecture::ResNet20, Device::flex());
    let mut card = Card::of(architecture, 10, "a test");
    (card.preprocess.mean, card.preprocess.std) = (NORMALIZATION[0], NORMALIZATION[1]);
    let float = folder.path().join("float.safetensors");
    weights::save(&network(architecture, false), &card, &float).unwrap();
    let open = |path: &std::path::Path| hub::open(&path.display().to_string(), &LoadOptions::default(), &device);
    let images = pictures(12, 32);
    let held_out: Vec<_> = images[8..].iter().map(|image| (image.clone(), None)).collect();
    let options = quantize::Options { max_drop: 100.0, batch_size: 5 };
    let quantize = |max_drop| {
        let options = quantize::Options { max_drop, ..options.clone() };
        let opened = open(&float).unwrap();
        quantize::quantize(opened, ("pictures", &images[..8]), &held_out, &options, &device, &mut |_| {}).unwrap()
    };
    let quantize::Quantized { network, card, record } = quantize(100.0);
    assert_eq!(record.images, 8);
    assert_eq!(record.gate.as_ref().unwrap().images, 4);
    let path = folder.path().join("int8.safetensors");
    let save = |path: &std::path::Path| {
        weights::save_quantized(&network, &card, &serde_json::to_string(&record).unwrap(), path).unwrap();
    };
    save(&path);
    save(&folder.path().join("again.safetensors"));
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(folder.path().join("again.safetensors")).unwrap());

    let opened = open(&path).unwrap();
    assert_eq!(opened.weights.quantization_record().map(|text| serde_json::from_str(text).unwrap()), Some(record));
    let model = Model::load(&opened, false, &device).unwrap();
    let expected = values(network.forward(tensor(&images[8..], &device)).unwrap());
    let refs: Vec<&RgbImage> = images[8..].iter().collect();
    assert_eq!(values(model.logits(&model.preprocess().batch(&refs)).unwrap()), expected);
    assert_eq!(model.num_parameters(), network.num_parameters());
    let [vector] = &model.features(&refs[..1]).unwrap()[..] else { panic!("one image has one vector") };
    let float = Model::load(&open(&float).unwrap(), false, &device).unwrap();
    let [exact] = &float.features(&refs[..1]).unwrap()[..] else { panic!("one image has one vector") };
    let power = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>();
    let noise = power(&mut vector.iter().zip(exact).map(|(a, b)| a - b));
    assert_eq!(vector.len(), 64);
    assert!(noise < 0.01 * power(&mut exact.iter().copied()), "{vector:?} {exact:?}");
    for error in [
        opened.network(false, &device).unwrap_err().to_string(),
        model.network().unwrap_err().to_string(),
        model.with_dtype(Some(burn::tensor::FloatDType::BF16)).unwrap_err().to_string(),
    ] {
        assert!(error.contains("is quantized"), "{error}");
    }
}

/// The gate keeps stages in f32 until enough images are right.
#[test]
fn stages_that_lose_too_much_stay_in_f32() {
    let folder = tempfile::tempdir().unwrap();
    let (architecture, device) = (Architecture::ResNet20, Device::flex());
    let mut card = Card::of(architecture, 10, "a test");
    (card.preprocess.mean, card.preprocess.std) = (NORMALIZATION[0], NORMALIZATION[1]);
    let images = pictures(60, 32);
    let refs: Vec<&RgbImage> = images.iter().collect();
    // A bias that makes every class about as frequent; the labels are what f32 finds.
    let network = network(architecture, false);
    let logits = values(network.forward(tensor(&images, &device)));
    let mean = |class: usize| logits.iter().skip(class).step_by(10).sum::<f32>() / 60.0;
    let bias = Tensor::<1>::from_data(TensorData::from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9].map(mean)), &device);
    let old: Tensor<1> = network.classifier().bias.as_ref().unwrap().val();
    let bias = Weights::from_tensors("a bias", [("linear.bias".to_string(), (old - bias).into_data())]);
    let network = bias.load(network, architecture, Strictness::Partial).unwrap().0;
    let float = folder.path().join("float.safetensors");
    weights::save(&network, &card, &float).unwrap();
    let opened = hub::open(&float.display().to_string(), &LoadOptions::default(), &device).unwrap();
    let model = Model::load(&opened, false, &device).unwrap();
    let logits = values(model.logits(&model.preprocess().batch(&refs)).unwrap());
    let best = |row: &[f32]| (0..10).max_by(|&a, &b| row[a].total_cmp(&row[b]));
    let held_out: Vec<_> = images.iter().cloned().zip(logits.chunks_exact(10).map(best)).collect();
    // Ranges of gray images, which clip everything else.
    let gray: Vec<RgbImage> = (0..4).map(|level| RgbImage::from_pixel(32, 32, image::Rgb([120 + level; 3]))).collect();
    let mut kept = Vec::new();
    let options = quantize::Options { max_drop: 0.0, batch_size: 20 };
    let result = quantize::quantize(opened, ("gray images", &gray), &held_out, &options, &device, &mut |event| {
        if let quantize::Progress::KeptFloat { stage, drop } = event {
            assert!(drop > 0.0);
            kept.push(stage);
        }
    })
    .unwrap();
    let float: Vec<&str> = result.record.stages.iter().filter(|stage| stage.float).map(|stage| &*stage.stage).collect();
    assert!(!kept.is_empty() && kept.iter().all(|stage| float.contains(&stage.as_str())), "{kept:?} {float:?}");
    let has_float = |network: &QuantizedNetwork| {
        network.layers().values().any(|layer| matches!(layer.weights, LayerWeights::F32(_)))
    };
    assert!(has_float(&result.network));
}

/// The commands, as a user runs them.
#[test]
fn the_binary_quantizes_and_runs_quantized_files() {
    let fixture = Fixture::new();
    for index in 0..30 {
        fixture.image(&format!("photos/{}/{index}.png", ["ant", "cat"][index % 2]));
    }
    fixture.image("a.png");
    let out = ["--out", "small.safetensors"];
    let quantize = |more: &[&str]| {
        fixture.infer(&[&["quantize", "--weights", "run", "--data", "photos"], &out[..], more].concat())
    };
    let ran = quantize(&["--images", "10"]).ends_with(0);
    assert!(
        ran.stdout.contains("calibrated on 10 images of photos") && ran.stdout.contains("20 held-out images, top-1"),
        "{}",
        ran.stdout
    );
    quantize(&[]).ends_with(1).says("exists already");
    let record: serde_json::Value =
        serde_json::from_str(&quantize(&["-f", "--format", "json"]).ends_with(0).stdout).unwrap();
    // Too few for both: a fifth calibrates.
    assert_eq!((record["images"].as_u64(), record["gate"]["images"].as_u64()), (Some(6), Some(24)));
    let small = ["--weights", "small.safetensors"];
    let run = |arguments: &[&str]| fixture.infer(&[arguments, &small[..]].concat());
    let classified = run(&["classify", "a.png", "--format", "json"]).ends_with(0);
    assert!(classified.stdout.contains("\"ant\""), "{}", classified.stdout);
    run(&["classify", "a.png", "--dtype", "auto"]).ends_with(0);
    run(&["classify", "a.png", "--dtype", "bf16"]).ends_with(1).says("is quantized");
    run(&["classify", "a.png", "--kernels", "reference"]).ends_with(0).says("no reference operations for int8");
    run(&["evaluate", "--data", "photos"]).ends_with(0);
    run(&["explain", "a.png", "--method", "occlusion", "--class", "ant", "--out", "why"]).ends_with(0);
    run(&["explain", "a.png", "--features", "vectors.npy"]).ends_with(0);
    run(&["explain", "a.png"]).ends_with(1).says("is quantized");
    run(&["export", "--to", "onnx", "--out", "small.onnx"]).ends_with(0);
    run(&["export", "--to", "safetensors", "--out", "big.safetensors"]).ends_with(1).says("is exported as ONNX alone");
    run(&["bench", "--batch-sizes", "2", "--iters", "2", "--warmup", "1"]).ends_with(0);
    run(&["bench", "--compare-folding"]).ends_with(1).says("is folded");
    fixture.infer(&["card", "small.safetensors"]).ends_with(0);

    // A folder without classes: what f32 finds stands for the labels.
    for index in 0..6 {
        fixture.image(&format!("flat/{index}.png"));
    }
    let flat = fixture.infer(&[
        "quantize",
        "--weights",
        "run",
        "--data",
        "flat",
        "--images",
        "3",
        "--out",
        "flat.safetensors",
    ]);
    assert!(flat.ends_with(0).stdout.contains("3 held-out images, same class as f32"));
    fixture
        .infer(&["quantize", "--weights", "run", "--data", "nowhere", "--out", "x.safetensors"])
        .ends_with(1)
        .says("nowhere");
    fixture
        .infer(&["quantize", "--weights", "small.safetensors", "--data", "flat", "--out", "x"])
        .ends_with(1)
        .says("quantized already");
}
