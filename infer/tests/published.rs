//! Published weights on real photographs: the counts of the reference files, which PyTorch gave.
//!
//! `HEARTH_DATA` names the folder of photographs and weights, `../shared/data` by default; `HEARTH_GOLDEN` that of the
//! references, `../shared/golden` by default. Where they are missing, the tests say so and pass.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use datasets::{OpenOptions, Source, Split, open};
use image::RgbImage;
use infer::Model;
use models::{Architecture, Card, Resize};
use runtime::progress::Output;
use serde::Deserialize;
use zoo::{CardPreprocess, LoadOptions, weights};

/// How far a count may be from the reference's.
const COUNT_TOLERANCE: usize = 1;

/// How far a probability may be from the reference's.
const PROBABILITY_TOLERANCE: f64 = 2e-3;

/// What the reference says of some images under one preprocessing.
#[derive(Debug, Deserialize)]
struct Expected {
    images: usize,
    top1_correct: usize,
    top5_correct: Option<usize>,
    #[serde(default)]
    first: Vec<ExpectedImage>,
}

#[derive(Debug, Deserialize)]
struct ExpectedImage {
    file: String,
    label: usize,
    top5: Vec<usize>,
    probabilities: Vec<f64>,
}

/// A file or folder of the shared data; `None`, and a line that says so, where it is not there.
fn shared(variable: &str, default: &str, name: &str) -> Option<PathBuf> {
    let root = env::var_os(variable)
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(default), PathBuf::from);
    let path = root.join(name);
    if !path.exists() {
        eprintln!("skipped: {} is not there ({variable} names another folder)", path.display());
        return None;
    }
    Some(path)
}

fn data(name: &str) -> Option<PathBuf> {
    shared("HEARTH_DATA", "data", name)
}

fn golden(name: &str) -> Option<serde_json::Value> {
    let path = shared("HEARTH_GOLDEN", "golden", name)?;
    Some(serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON"))
}

/// Classifies every image of `source` and compares with the reference.
fn check(model: &Model, source: &dyn Source, expected: &Expected) {
    let mut bytes = Vec::new();
    let (mut top1, mut top5, mut compared) = (0, 0, 0);
    let indices: Vec<usize> = (0..source.len()).collect();
    for chunk in indices.chunks(25) {
        let mut decode = |&index: &usize| {
            source.read(index, &mut bytes).expect("readable");
            model.preprocess().decode(&bytes).expect("an image")
        };
        let images: Vec<RgbImage> = chunk.iter().map(&mut decode).collect();
        let batch = model.preprocess().batch(&images.iter().collect::<Vec<_>>());
        let rows = model.probabilities(&batch).expect("finite outputs");
        for (&index, probabilities) in chunk.iter().zip(&rows) {
            let label = source.label(index).expect("a label") as usize;
            let best: Vec<usize> = model.top(probabilities, 5).iter().map(|prediction| prediction.index).collect();
            top1 += usize::from(best[0] == label);
            top5 += usize::from(best.contains(&label));
            let key = source.key(index);
            let Some(image) = expected.first.iter().find(|image| key.ends_with(&image.file)) else { continue };
            compared += 1;
            assert_eq!(image.label, label, "{key}");
            for (&class, &want) in image.top5.iter().zip(&image.probabilities) {
                let got = probabilities[class];
                assert!((got - want).abs() <= PROBABILITY_TOLERANCE, "{key}, class {class}: {got}, want {want}");
            }
        }
    }
    eprintln!("{}: {top1} and {top5} of {} right", model.card().architecture, source.len());
    assert_eq!((source.len(), compared), (expected.images, expected.first.len()));
    assert!(top1.abs_diff(expected.top1_correct) <= COUNT_TOLERANCE, "top-1 {top1}, want {}", expected.top1_correct);
    if let Some(want) = expected.top5_correct {
        assert!(top5.abs_diff(want) <= COUNT_TOLERANCE, "top-5 {top5}, want {want}");
    }
}

fn expected(value: &serde_json::Value) -> Expected {
    Expected::deserialize(value).expect("the form of the reference")
}

/// BVLC's GoogLeNet on the sample of ImageNet's validation archive, read in place.
fn bvlc(protocol: &str, resize: Option<Resize>) {
    let (Some(weights_file), Some(archive), Some(golden)) = (
        data("weights/bvlc_googlenet.safetensors"),
        data("ilsvrc2012-sample/ILSVRC2012_img_val.tar"),
        golden("bvlc_googlenet.json"),
    ) else {
        return;
    };
    let device = Device::flex();
    let options = LoadOptions { architecture: Some(Architecture::GoogLeNet2014), ..LoadOptions::default() };
    let name = weights_file.display().to_string();
    let mut opened = weights::open(&name, &options, &device, Output::Quiet).expect("weights");
    if let Some(resize) = resize {
        opened.card.preprocess.resize = resize;
    }
    let model = Model::load(&opened, &device).expect("a network");
    let index_cache = tempfile::tempdir().expect("a folder");
    let options = OpenOptions { index_cache: Some(index_cache.path().into()), ..OpenOptions::split(Split::Val) };
    let source = open(&archive.display().to_string(), &options).expect("the archive").source;
    let expected = expected(&golden["validation"][protocol]);
    check(&model, &source, &expected);
}

#[test]
fn bvlc_googlenet_on_squashed_photographs() {
    bvlc("squash", None);
}

#[test]
fn bvlc_googlenet_on_the_centre_of_photographs() {
    bvlc("shorter_side", Some(Resize::ShorterSide(256)));
}

/// A CIFAR-10 network on a thousand test images stored as JPEG.
fn cifar(architecture: Architecture) {
    let (Some(images), Some(golden)) = (data("cifar10-jpeg-1000"), golden("cifar10_resnet.json")) else { return };
    let golden = &golden["models"][architecture.name()];
    let file = format!("weights/{}.zip.pth", golden["weights"].as_str().expect("a name"));
    let Some(weights_file) = data(&file) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let mut card = Card::of(architecture, 10, "a test");
    card.classes = Vec::<String>::deserialize(&golden["classes"]).expect("names");
    card.write(folder.path().join("card.json")).expect("written");

    let device = Device::flex();
    let options = LoadOptions { card: Some(folder.path().join("card.json")), ..LoadOptions::default() };
    let opened = weights::open(&weights_file.display().to_string(), &options, &device, Output::Quiet).expect("weights");
    let model = Model::load(&opened, &device).expect("a network");
    let source = open(&images.display().to_string(), &OpenOptions::split(Split::All)).expect("the images").source;
    let classes: Vec<&str> = source.classes().iter().map(|class| class.id.as_str()).collect();
    assert_eq!(classes, model.card().classes, "the folders are the network's classes, in order");
    check(&model, &source, &expected(&golden["cifar10_jpeg_1000"]));
}

#[test]
fn resnet20_on_a_thousand_images_of_cifar_10() {
    cifar(Architecture::ResNet20);
}

#[test]
fn resnet56_on_a_thousand_images_of_cifar_10() {
    cifar(Architecture::ResNet56);
}

#[test]
fn the_built_in_card_of_bvlc_is_what_these_tests_use() {
    let published = models::hub::find("googlenet_2014").expect("published");
    let usual = Card::of(Architecture::GoogLeNet2014, 1000, "");
    assert_eq!(published.card().preprocess, usual.preprocess);
    assert!(CardPreprocess::new(&published.card()).is_ok());
}
