//! Tests of `explain`, `export`, `diagram` and `bench`.

mod fixture;

use std::fs;

use fixture::Fixture;
use hub::{Card, Weights};
use models::Architecture;

fn size_of(fixture: &Fixture, name: &str) -> (u32, u32) {
    image::open(fixture.path(name)).unwrap_or_else(|error| panic!("{name}: {error}")).to_rgb8().dimensions()
}

#[test]
fn explain_writes_a_picture_per_image_and_a_contact_sheet() {
    let fixture = Fixture::new();
    fixture.image("photos/a.png").image("photos/b.jpg").image("a.png").broken("photos/c.jpg");
    let ran = fixture.infer(&["explain", "photos", "a.png", "-w", "run", "-k", "2", "--format", "json"]);
    let ran = ran.ends_with(3).says("contact sheet: explained/contact.sheet.png");
    let lines = ran.json_lines();
    assert_eq!(lines.len(), 4);
    let names = ["a.explained.png", "b.explained.png", "", "a-2.explained.png"];
    for (line, name) in lines.iter().zip(names).filter(|(_, name)| !name.is_empty()) {
        assert_eq!(line["picture"], format!("explained/{name}"));
        assert_eq!(line["classes"].as_array().map(Vec::len), Some(2));
        // The network's input and two classes, 32 pixels enlarged sevenfold.
        assert_eq!(size_of(&fixture, &format!("explained/{name}")).0, 3 * (224 + 8) + 8);
    }
    assert!(lines[2]["error"].is_string(), "{}", lines[2]);
    let (_, height) = size_of(&fixture, "explained/a.explained.png");
    assert_eq!(size_of(&fixture, "explained/contact.sheet.png").1, 3 * height);
}

#[test]
fn a_class_is_selected_by_index_or_name() {
    let fixture = Fixture::new();
    fixture.image("a.png");
    let explain = |class: &str| fixture.infer(&["explain", "a.png", "-w", "run", "--format", "json", "--class", class]);
    for class in ["1", "Bee, \"honey\"", "honey"] {
        let lines = explain(class).ends_with(0).json_lines();
        assert_eq!((lines[0]["classes"][0]["index"].as_u64(), lines[0]["classes"][1].is_null()), (Some(1), true));
    }
    explain("3").ends_with(1).says("class 3 is out of range: the network has 0 to 2");
    explain("wolf").ends_with(1).says("unknown class `wolf`");
    explain("a").ends_with(1).says("`a` matches 2 classes: 0 ant, 2 cat");
    let wrong = ["explain", "a.png", "-w", "run", "--stage", "layer7"];
    fixture.infer(&wrong).ends_with(1).says("has no stage `layer7`; it has conv1").says("layer3");
}

#[test]
fn every_method_writes_a_picture() {
    let fixture = Fixture::new();
    fixture.image("a.png");
    for method in ["grad-cam", "grad-cam++", "occlusion", "smoothgrad"] {
        let out = format!("out-{method}");
        fixture.infer(&["explain", "a.png", "-w", "run", "--method", method, "--out", &out]).ends_with(0);
        size_of(&fixture, &format!("{out}/a.explained.png"));
    }
    fixture.infer(&["explain", "a.png", "-w", "run", "--stages", "--out", "stages"]).ends_with(0);
    assert!(size_of(&fixture, "stages/a.stages.png").1 > 5 * 96, "a row for each of six stages");
    let filters = fixture.infer(&["explain", "-w", "run", "--filters", "--out", "filters"]).ends_with(0);
    assert_eq!(filters.stdout, "16 filters of 3 × 3: filters/filters.png\n");
    size_of(&fixture, "filters/filters.png");
}

#[test]
fn feature_vectors_find_similar_images() {
    let fixture = Fixture::new();
    fixture.image("photos/a.png").image("photos/b.png").image("photos/c.png").image("q.png");
    fs::copy(fixture.path("photos/b.png"), fixture.path("twin.png")).expect("copied");
    fixture.broken("photos/broken.jpg");
    let folder = ["explain", "twin.png", "photos/b.png", "-w", "run", "--neighbors", "photos", "--format", "json"];
    let by_folder = fixture.infer(&folder).ends_with(0).says("broken.jpg").json_lines();
    assert_eq!(by_folder[0]["neighbors"][0]["path"], "photos/b.png");
    assert!((by_folder[0]["neighbors"][0]["similarity"].as_f64().unwrap_or(0.0) - 1.0).abs() < 1e-6);
    let own = by_folder[1]["neighbors"].as_array().expect("an array");
    assert!(own.iter().all(|near| near["path"] != "photos/b.png"), "an image is not its own neighbor: {own:?}");

    fixture.infer(&["explain", "photos", "-w", "run", "--features", "v.npy"]).ends_with(3);
    assert_eq!(fs::metadata(fixture.path("v.npy")).expect("a file").len(), 128 + 3 * 64 * 4);
    let file = ["explain", "twin.png", "-w", "run", "--neighbors", "v.npy", "--format", "json"];
    let by_file = fixture.infer(&file).ends_with(0).json_lines();
    let paths = |line: &serde_json::Value| {
        let near = line["neighbors"].as_array().cloned().unwrap_or_default();
        near.iter().map(|near| near["path"].to_string()).collect::<Vec<_>>()
    };
    assert_eq!(paths(&by_file[0]), paths(&by_folder[0]));
    fixture.infer(&["explain", "q.png", "-w", "run", "--features", "v.txt"]).ends_with(1).says("must be a .npy file");
    fixture
        .infer(&["explain", "q.png", "-w", "run", "--neighbors", "q.png"])
        .ends_with(1)
        .says("not a table of float32");
}

#[test]
fn exports_can_be_read_back_and_are_replaced_only_with_force() {
    let fixture = Fixture::new();
    fixture.image("a.png");
    let answer = |weights: &str| fixture.infer(&["classify", "a.png", "-w", weights, "--format", "json"]).ends_with(0);
    let expected = answer("run").json_lines();
    for (to, extension) in [("safetensors", "safetensors"), ("burnpack", "bpk")] {
        for fold in [false, true] {
            let file = format!("{fold}.{extension}");
            let mut args = vec!["export", "-w", "run", "--to", to, "--out", &file];
            args.extend(fold.then_some("--fold-batchnorm"));
            let ran = fixture.infer(&args).ends_with(0);
            assert!(ran.stdout.starts_with("resnet20, ") && ran.stdout.trim_end().ends_with(&file), "{}", ran.stdout);
            let got = answer(&file).json_lines();
            assert_eq!(got[0]["top"][0]["class"], expected[0]["top"][0]["class"]);
            let probability = |lines: &[serde_json::Value]| lines[0]["top"][0]["probability"].as_f64().unwrap_or(0.0);
            assert!((probability(&got) - probability(&expected)).abs() < 1e-5);
        }
    }
    let onnx = ["export", "-w", "run", "--to", "onnx"];
    fixture.infer(&onnx).ends_with(0).says("float32 [batch, 3, 32, 32]");
    let first = fs::read(fixture.path("resnet20.onnx")).expect("a file");
    fixture.infer(&onnx).ends_with(1).says("exists already; replace it with --force");
    fixture.infer(&[&onnx[..], &["--force"]].concat()).ends_with(0);
    assert!(fs::read(fixture.path("resnet20.onnx")).expect("a file") == first, "the same bytes again");
    fixture.infer(&[&onnx[..], &["--out", "run"]].concat()).ends_with(1).says("is a folder");
    fixture.infer(&[&onnx[..], &["--out", "a.png/x.onnx"]].concat()).ends_with(1).says("cannot create folder a.png");
}

#[test]
fn a_network_is_drawn_by_name_or_from_its_weights() {
    let fixture = Fixture::new();
    let named = fixture.infer(&["diagram", "resnet20"]).ends_with(0);
    assert_eq!(named.stdout, "resnet20: resnet20.svg\n");
    let drawing = fs::read_to_string(fixture.path("resnet20.svg")).expect("a file");
    assert!(drawing.contains("10 classes") && drawing.contains("every other pixel"), "{drawing}");
    fixture.infer(&["diagram", "run", "--size", "64", "--fold-batchnorm", "--out", "mine.svg"]).ends_with(0);
    let own = fs::read_to_string(fixture.path("mine.svg")).expect("a file");
    assert!(own.contains("3 classes") && own.contains("3 × 64 × 64") && !own.contains("BN"), "{own}");
    fixture.infer(&["diagram", "resnet21"]).ends_with(1).says("resnet21: no file or run folder has this path");
    fixture.infer(&["diagram", "alexnet", "--size", "16"]).ends_with(1).says("at least 63 × 63");
}

#[test]
fn bench_prints_the_documented_fields() {
    let fixture = Fixture::new();
    let ran = fixture.infer(&[
        "bench",
        "resnet20",
        "--compare-folding",
        "--batch-sizes",
        "1,2",
        "--iters",
        "3",
        "--warmup",
        "1",
        "--threads",
        "1",
        "--format",
        "json",
    ]);
    let rows = ran.ends_with(0).json_lines();
    let cases: Vec<_> = rows.iter().map(|row| (row["batch"].as_u64(), row["folded"].as_bool())).collect();
    assert_eq!(cases, [(1, false), (1, true), (2, false), (2, true)].map(|(b, f)| (Some(b), Some(f))));
    for row in &rows {
        for name in ["median_s", "min_s", "max_s", "p99_s", "first_step_s", "images_per_s"] {
            assert!(row[name].as_f64().is_some_and(|value| value > 0.0), "{name}: {row}");
        }
        assert_eq!((&row["model"], &row["threads"], &row["iters"]), (&"resnet20".into(), &1.into(), &3.into()));
    }
    let of_run = fixture.infer(&["bench", "-w", "run", "--batch-sizes", "1", "--iters", "2", "--format", "json"]);
    assert_eq!(of_run.ends_with(0).json_lines()[0]["size"], 32);
    fixture.infer(&["bench", "resnet20", "--batch-sizes", "0"]).ends_with(2);
    fixture
        .infer(&["bench", "alexnet", "--size", "16", "--batch-sizes", "1"])
        .ends_with(1)
        .says("at least 63 × 63 pixels");
}

#[test]
fn foreign_weights_and_contradicting_cards_are_errors() {
    let fixture = Fixture::new();
    fixture.image("a.png");
    let weights = Weights::open(fixture.path("run/weights.safetensors")).expect("weights");
    assert_eq!(weights.card().map(|card| card.architecture), Some(Architecture::ResNet20));
    let write = |name: &str, card: &Card| card.write(fixture.path(name)).expect("written");
    write("classes.json", &Card::of(Architecture::ResNet20, 5, "a lie"));
    write("network.json", &Card::of(Architecture::ResNet32, 3, "a lie"));
    fs::write(fixture.path("mad.json"), "{\"format\": 1}").expect("written");
    for command in [&["explain", "a.png"][..], &["export", "--to", "onnx"], &["bench"], &["classify", "a.png"]] {
        let run = |card: &str| fixture.infer(&[command, &["-w", "run", "--card", card]].concat()).ends_with(1);
        run("classes.json").says("has 5 classes, the last layer has 3");
        run("network.json").says("has a model card for resnet20");
        run("mad.json").says("missing field");
        run("none.json").says("none.json");
        fixture
            .infer(&[command, &["-w", "run", "--arch", "vgg11"]].concat())
            .ends_with(1)
            .says("contradicts the model card");
        fixture
            .infer(&[command, &["-w", "a.png", "--arch", "vgg11"]].concat())
            .ends_with(1)
            .says("a.png has no weights that Hearth reads");
    }
    assert!(!fixture.path("resnet20.onnx").exists());
}

#[test]
fn empty_folders_and_unwritable_outputs_are_errors() {
    let fixture = Fixture::new();
    fixture.image("a.png");
    fs::create_dir(fixture.path("empty")).expect("created");
    fixture.infer(&["explain", "empty", "-w", "run"]).ends_with(1).says("no images in this folder");
    fixture.infer(&["explain", "empty", "a.png", "-w", "run"]).ends_with(3).says("no images in this folder");
    fixture
        .infer(&["explain", "a.png", "-w", "run", "--out", "a.png"])
        .ends_with(1)
        .says("cannot create the folder a.png");
    fixture.infer(&["explain", "a.png", "-w", "run", "--features", "a.png/v.npy"]).ends_with(1).says("a.png");
}
