//! Tests of published weights on real photographs against PyTorch's results in reference files.
//!
//! `HEARTH_DATA` is the folder of photographs and weights (default: `../shared/data`), `HEARTH_GOLDEN` that of the
//! references (default: `../shared/golden`). If they are missing, the tests are skipped with a message.

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::tensor::{Device, FloatDType};
use datasets::{BadSamples, OpenOptions, Source, Split, open};
use hub::{Card, LoadOptions, Preprocessor, Resize};
use infer::{
    Model,
    evaluation::{Settings, evaluate},
    protocol::{Crops, Protocol},
};
use models::Architecture;
use report::format::EvaluationSpec;
use runtime::progress::{Output, Progress, Unit};
use serde::Deserialize;

/// The largest accepted difference of a count from the reference's.
const COUNT_TOLERANCE: usize = 1;

/// The largest accepted difference of a count in bf16.
const BF16_COUNT_TOLERANCE: usize = 3;

/// The largest accepted difference of a probability from the reference's.
const PROBABILITY_TOLERANCE: f64 = 2e-3;

/// The accepted differences from the reference.
#[derive(Clone, Copy)]
struct Tolerance {
    count: usize,
    /// The bound on probabilities, if they are compared.
    probability: Option<f64>,
}

const SINGLE: Tolerance = Tolerance { count: COUNT_TOLERANCE, probability: Some(PROBABILITY_TOLERANCE) };

/// The reference's results for one preprocessing.
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

/// Returns a file or folder of the sample data; prints a message and returns `None` if it is missing.
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

/// Evaluates every image of `source` and compares with the reference, which torchvision computed without orientation.
fn check(model: Model, source: &Arc<dyn Source>, expected: &Expected, tolerance: Tolerance) {
    let settings = Settings {
        protocol: Protocol { crops: Crops::One, scales: Vec::new(), flip: false, dense: false },
        batch_size: 25,
        workers: None,
        bad_samples: BadSamples::Strict,
        shard: (0, 1),
        class_map: None,
    };
    let spec = EvaluationSpec {
        weights: vec!["a test".into()],
        architectures: vec![model.card().architecture.to_string()],
        origins: Vec::new(),
        data: "a test".into(),
        split: "val".into(),
        images: source.len(),
        classes: model.card().classes.len(),
        data_classes: source.classes().len(),
        class_map: None,
        protocol: settings.protocol.to_string(),
        hearth: String::new(),
        commit: None,
        backend: "flex".into(),
    };
    let progress = Progress::new("evaluate", Unit::Items("images"), None, Output::Quiet);
    let models = [model];
    let evaluation = evaluate(&models, source, &settings, spec, &progress).expect("an evaluation");
    let mut compared = 0;
    for row in &evaluation.rows {
        let Some(image) = expected.first.iter().find(|image| row.key.ends_with(&image.file)) else { continue };
        compared += 1;
        assert_eq!(image.label, row.label, "{}", row.key);
        let Some(tolerance) = tolerance.probability else { continue };
        let preds = [row.pred1, row.pred2, row.pred3, row.pred4, row.pred5];
        let ps = [row.p1, row.p2, row.p3, row.p4, row.p5];
        for (&class, &want) in image.top5.iter().zip(&image.probabilities) {
            // A class outside the first five is at most as probable as the fifth.
            let place = preds.iter().position(|&pred| pred == Some(class)).unwrap_or(4);
            let got = ps[place].expect("five classes");
            assert!((got - want).abs() <= tolerance, "{}, class {class}: {got}, want {want}", row.key);
        }
    }
    let summary = evaluation.summary();
    let (top1, top5) = (summary.top1.right, summary.top5.right);
    eprintln!("{}: {top1} and {top5} of {} right", summary.spec.architectures[0], evaluation.rows.len());
    assert_eq!((evaluation.rows.len(), compared), (expected.images, expected.first.len()));
    assert!(top1.abs_diff(expected.top1_correct) <= tolerance.count, "top-1 {top1}, want {}", expected.top1_correct);
    if let Some(want) = expected.top5_correct {
        assert!(top5.abs_diff(want) <= tolerance.count, "top-5 {top5}, want {want}");
    }
}

fn expected(value: &serde_json::Value) -> Expected {
    Expected::deserialize(value).expect("the form of the reference")
}

/// BVLC's GoogLeNet on the sample of ImageNet's validation archive, read in place.
fn bvlc(protocol: &str, resize: Option<Resize>, dtype: Option<FloatDType>, tolerance: Tolerance) {
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
    let mut opened = hub::open(&name, &options, &device).expect("weights");
    if let Some(resize) = resize {
        opened.card.preprocess.resize = resize;
    }
    let model = Model::load(&opened, false, &device).expect("a network").with_dtype(dtype).expect("flex has it");
    let index_cache = tempfile::tempdir().expect("a folder");
    let options = OpenOptions { index_cache: Some(index_cache.path().into()), ..OpenOptions::split(Split::Val) };
    let source = open(&archive.display().to_string(), &options).expect("the archive").source;
    let expected = expected(&golden["validation"][protocol]);
    check(model, &source, &expected, tolerance);
}

#[test]
fn bvlc_googlenet_on_squashed_photographs() {
    bvlc("squash", None, None, SINGLE);
}

#[test]
fn bvlc_googlenet_on_the_center_of_photographs() {
    bvlc("shorter_side", Some(Resize::ShorterSide(256)), None, SINGLE);
}

#[test]
fn bvlc_googlenet_in_bf16() {
    if !kernels::has_bf16_dot() {
        eprintln!("skipped: this processor has no AVX512-BF16");
        return;
    }
    let tolerance = Tolerance { count: BF16_COUNT_TOLERANCE, probability: None };
    bvlc("squash", None, Some(FloatDType::BF16), tolerance);
    bvlc("shorter_side", Some(Resize::ShorterSide(256)), Some(FloatDType::BF16), tolerance);
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
    let opened = hub::open(&weights_file.display().to_string(), &options, &device).expect("weights");
    let model = Model::load(&opened, false, &device).expect("a network");
    let source = open(&images.display().to_string(), &OpenOptions::split(Split::All)).expect("the images").source;
    let classes: Vec<&str> = source.classes().iter().map(|class| class.id.as_str()).collect();
    assert_eq!(classes, model.card().classes, "the folders are the network's classes, in order");
    check(model, &source, &expected(&golden["cifar10_jpeg_1000"]), SINGLE);
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
    let published = hub::find("googlenet_2014").expect("published");
    let usual = Card::of(Architecture::GoogLeNet2014, 1000, "");
    assert_eq!(published.card().preprocess, usual.preprocess);
    assert!(Preprocessor::new(&published.card()).is_ok());
}
