//! Tests of the binary: output and exit codes.

mod fixture;

use std::{
    fs,
    path::{Path, PathBuf},
};

use fixture::Fixture;
use hub::Card;
use models::Architecture;
use serde_json::Value;

#[test]
fn text_is_a_short_table_for_each_image() {
    let fixture = Fixture::new();
    fixture.image("a.png").image("b.png");
    let ran = fixture.infer(&["classify", "a.png", "b.png", "--weights", "run"]).ends_with(0);
    assert!(ran.stderr.starts_with("device: CPU (flex") && ran.stderr.lines().count() == 1, "{}", ran.stderr);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 8, "two paths, and all three classes of each: --topk 5 is more than there are");
    assert_eq!((lines[0], lines[4]), ("a.png", "b.png"));
    let mut sum = 0.0;
    for line in &lines[1..4] {
        let (percent, rest) = line.trim().split_once(" %").expect("a probability");
        sum += percent.parse::<f64>().expect("a number");
        let (index, class) = rest.trim().split_once("  ").expect("an index and a class");
        assert_eq!(class, ["ant", "bee, \"honey\"", "cat"][index.parse::<usize>().expect("an index")]);
    }
    assert!((sum - 100.0).abs() < 0.02, "{sum}");
}

#[test]
fn json_has_an_object_a_line_and_csv_a_row_a_class() {
    let fixture = Fixture::new();
    fixture.image("a.png").image("b.png");
    let ran =
        fixture.infer(&["classify", "a.png", "b.png", "-w", "run", "--format", "json", "--topk", "2"]).ends_with(0);
    let objects = ran.json_lines();
    assert_eq!(objects.len(), 2);
    for (object, path) in objects.iter().zip(["a.png", "b.png"]) {
        assert_eq!(object["path"], path);
        assert_eq!(object.as_object().map(|object| object.len()), Some(2), "{object}");
        let top = object["top"].as_array().expect("an array");
        assert_eq!(top.len(), 2);
        let probability = |i: usize| top[i]["probability"].as_f64().expect("a number");
        assert!(probability(0) >= probability(1) && probability(0) + probability(1) < 1.0);
        assert!(top[0]["class"].is_string() && top[0]["index"].is_u64());
    }

    let csv = fixture.infer(&["classify", "a.png", "b.png", "-w", "run", "--format", "csv", "-k", "3"]).ends_with(0);
    let rows: Vec<&str> = csv.stdout.lines().collect();
    assert_eq!(rows.len(), 1 + 2 * 3);
    assert_eq!(rows[0], "path,rank,class,index,probability,error");
    assert!(rows[1].starts_with("a.png,1,") && rows[6].starts_with("b.png,3,"), "{rows:?}");
    assert!(csv.stdout.contains("\"bee, \"\"honey\"\"\",1,0."), "{}", csv.stdout);
    let best = &objects[0]["top"][0];
    let probability = format!("{:.6}", best["probability"].as_f64().expect("a number"));
    assert!(rows[1].ends_with(&format!(",{},{probability},", best["index"])), "{} {best}", rows[1]);
}

#[test]
fn the_answer_does_not_depend_on_the_batch() {
    let fixture = Fixture::new();
    let names: Vec<String> = (0..7).map(|i| format!("{i}.png")).collect();
    names.iter().for_each(|name| {
        fixture.image(name);
    });
    let run = |batch_size: &str| {
        let names = names.iter().map(String::as_str);
        let args: Vec<&str> = ["classify", "-w", "run", "--format", "json", "--batch-size", batch_size]
            .into_iter()
            .chain(names)
            .collect();
        fixture.infer(&args).ends_with(0).json_lines()
    };
    let (one, three) = (run("1"), run("3"));
    assert_eq!(one.len(), 7);
    for (a, b) in one.iter().zip(&three) {
        assert_eq!((&a["path"], &a["top"][0]["index"]), (&b["path"], &b["top"][0]["index"]));
        let probability = |object: &Value| object["top"][0]["probability"].as_f64().expect("a number");
        assert!((probability(a) - probability(b)).abs() < 1e-5);
    }
}

#[test]
fn every_format_of_image_is_read_whatever_its_name() {
    let fixture = Fixture::new();
    let names = ["a.jpg", "a.png", "a.webp", "a.bmp", "a.tiff", "a.gif"];
    for name in names {
        fixture.image(name);
    }
    fs::copy(fixture.path("a.png"), fixture.path("png.jpg")).expect("copied");
    let args = [&["classify", "-w", "run", "--format", "json"], &names[..], &["png.jpg"]].concat();
    let objects = fixture.infer(&args).ends_with(0).json_lines();
    assert_eq!(objects.len(), 7);
    assert!(objects.iter().all(|object| object["top"].is_array()), "{objects:?}");
    assert_eq!(objects[6]["top"], objects[1]["top"]);
}

#[test]
fn images_are_turned_upright_and_limited_unless_flags_say_otherwise() {
    let fixture = Fixture::new();
    fixture.image("a.jpg");
    let bytes = fs::read(fixture.path("a.jpg")).expect("read");
    // Upside down, by an EXIF segment behind the start.
    let block = b"\xff\xe1\0\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0";
    fs::write(fixture.path("turned.jpg"), [&bytes[..2], block, &bytes[2..]].concat()).expect("written");
    let answers = |flags: &[&str]| {
        let args = [&["classify", "a.jpg", "turned.jpg", "-w", "run", "--format", "json"], flags].concat();
        let objects = fixture.infer(&args).ends_with(0).json_lines();
        [objects[0]["top"].to_string(), objects[1]["top"].to_string()]
    };
    let (applied, ignored) = (answers(&[]), answers(&["--orientation", "ignore"]));
    assert_eq!(ignored[0], ignored[1]);
    assert_eq!(applied[0], ignored[0]);
    assert_ne!(applied[1], applied[0]);

    let refused = fixture.infer(&["classify", "a.jpg", "-w", "run", "--max-pixels", "16"]).ends_with(1);
    assert!(refused.stderr.contains("--max-pixels"), "{}", refused.stderr);
}

#[test]
fn a_damaged_image_is_classified_with_a_warning() {
    let fixture = Fixture::new();
    fixture.image("a.jpg");
    let bytes = fs::read(fixture.path("a.jpg")).expect("read");
    // The end marker comes before the last blocks.
    fs::write(fixture.path("b.jpg"), [&bytes[..bytes.len() - 6], b"\xff\xd9"].concat()).expect("written");
    let ran = fixture.infer(&["classify", "b.jpg", "-w", "run"]).ends_with(0);
    assert!(ran.stderr.contains("b.jpg: damaged JPEG image"), "{}", ran.stderr);
}

#[test]
fn standard_input_is_an_image() {
    let fixture = Fixture::new();
    fixture.image("a.png");
    let bytes = fs::read(fixture.path("a.png")).expect("read");
    let args = ["classify", "-", "a.png", "-w", "run", "--format", "json"];
    let objects = fixture.infer_with(&args, &bytes).ends_with(0).json_lines();
    assert_eq!((&objects[0]["path"], &objects[0]["top"]), (&Value::from("-"), &objects[1]["top"]));
    fixture.infer_with(&["classify", "-", "-", "-w", "run"], &bytes).ends_with(1).says("given twice");
}

#[test]
fn a_folder_is_the_images_in_it_in_natural_order() {
    let fixture = Fixture::new();
    fixture.image("photos/10.png").image("photos/9.jpg").image("photos/below/1.png");
    fs::write(fixture.path("photos/notes.txt"), "not an image").expect("written");
    let ran = fixture.infer(&["classify", "photos", "-w", "run", "--format", "csv", "-k", "1"]).ends_with(0);
    let paths: Vec<_> = ran.stdout.lines().skip(1).filter_map(|row| row.split(',').next()).map(PathBuf::from).collect();
    assert_eq!(paths, [Path::new("photos/9.jpg"), Path::new("photos/10.png")]);
    let ran = ran.says("1 images in subfolders are left out; --recursive includes them");
    ran.says("no image by its name: 1 .txt");
    let deep = fixture.infer(&["classify", "photos", "-r", "-w", "run", "--format", "json"]).ends_with(0);
    assert_eq!(deep.json_lines()[2]["path"], "photos/below/1.png");
}

#[test]
fn a_broken_image_gets_its_error_in_its_place_and_the_others_their_answers() {
    let fixture = Fixture::new();
    fixture.image("a.png").broken("broken.jpg").image("c.png");
    let run = |format: &str| {
        let images = ["a.png", "broken.jpg", "missing.png", "c.png"];
        let args = [&["classify", "-w", "run", "-k", "1", "--format", format], &images[..]].concat();
        fixture.infer(&args).ends_with(3).says("2 of 4 images could not be read")
    };
    let text = run("text").says("error: broken.jpg: broken JPEG image").says("error: missing.png: ");
    assert_eq!(text.stdout.lines().step_by(2).collect::<Vec<_>>(), ["a.png", "c.png"]);

    let objects = run("json").json_lines();
    assert_eq!(objects.iter().map(|object| object["top"].is_array()).collect::<Vec<_>>(), [true, false, false, true]);
    assert!(objects[1]["error"].as_str().is_some_and(|error| error.contains("broken JPEG image")), "{}", objects[1]);
    assert_eq!(objects[2]["path"], "missing.png");

    let csv = run("csv");
    let rows: Vec<&str> = csv.stdout.lines().collect();
    assert_eq!(rows.len(), 5);
    assert!(rows[2].starts_with("broken.jpg,,,,,") && rows[2].contains("broken JPEG image"), "{}", rows[2]);
}

#[test]
fn no_readable_image_at_all_is_a_failure() {
    let fixture = Fixture::new();
    fixture.broken("broken.jpg");
    fs::create_dir(fixture.path("empty")).expect("created");
    fixture.infer(&["classify", "broken.jpg", "-w", "run"]).ends_with(1).says("error: broken.jpg: broken JPEG image");
    fixture.infer(&["classify", "empty", "-w", "run"]).ends_with(1).says("error: empty: no images in this folder");
}

#[test]
fn a_wrong_command_line_ends_with_2_and_says_what_is_right() {
    let fixture = Fixture::new();
    fixture.infer(&["classify", "-w", "run"]).ends_with(2).says("<IMAGE>");
    fixture.infer(&["classify", "a.png"]).ends_with(2).says("--weights <W>");
    fixture.infer(&["classify", "a.png", "-w", "run", "--topk", "0"]).ends_with(2).says("--topk");
    fixture.infer(&["classify", "a.png", "-w", "run", "--arch", "resnet81"]).ends_with(2).says("did you mean");
    fixture
        .infer(&["classify", "a.png", "-w", "run", "--backend", "gpu"])
        .ends_with(2)
        .says("no backend is called `gpu`");
    fixture.infer(&["summary"]).ends_with(2).says("ARCH");
}

#[test]
fn a_backend_that_is_not_compiled_in_says_which_feature_to_build_with() {
    let fixture = Fixture::new();
    fixture.image("a.png");
    // No test build has ROCm.
    let args = ["classify", "a.png", "-w", "run", "--backend", "rocm"];
    fixture.infer(&args).ends_with(1).says("backend `rocm` is not compiled").says("--features rocm");
    fixture.infer(&["verify", "--backend", "rocm"]).ends_with(1).says("--features rocm");
}

#[test]
fn weights_that_are_not_there_or_not_weights_are_told() {
    let fixture = Fixture::new();
    fixture.image("a.png");
    let fails = |weights: &str| fixture.infer(&["classify", "a.png", "--weights", weights, "--offline"]).ends_with(1);
    fails("missing.pth").says("cannot read missing.pth: no such file");
    fails("resnet5").says("no file or run folder has this path").says("did you mean resnet50");
    fails("resnet18").says("resnet18-f37072fd.pth is not there and downloads are off (--offline)");
    fs::create_dir(fixture.path("artifacts")).expect("created");
    fails("artifacts").says("is not a run folder").says("weights.safetensors");
    fails(".").says("did you mean --weights ./run?");
    fails("a.png").says("a.png has no weights that Hearth reads: it is a PNG picture");
}

#[test]
fn preprocessing_is_assumed_aloud_and_set_by_flags_or_a_card() {
    let fixture = Fixture::new();
    fixture.image("a.png").image("data/train/ant/1.png").image("data/train/bee/1.png").image("data/train/cat/1.png");
    without_card(&fixture.path("run/weights.safetensors"), &fixture.path("bare.safetensors"));
    let classify = |more: &[&str]| {
        let args = ["classify", "a.png", "-w", "bare.safetensors", "--format", "json", "--quiet"];
        fixture.infer(&[&args, more].concat()).ends_with(0)
    };
    let top = |ran: &fixture::Ran| ran.json_lines()[0]["top"].clone();
    let assumed = classify(&["--arch", "resnet20"]).says("assumed that resnet20 was trained on images resized to");
    assert_eq!(assumed.stderr.matches("carries no model card").count(), 1, "{}", assumed.stderr);
    let flags = ["--resize", "40x40", "--crop", "36", "--mean", "0.5", "--std", "0.25,0.25,0.5"];
    let set = classify(&[&["--arch", "resnet20"], &flags[..]].concat());
    assert_eq!(set.stderr, "");
    assert_ne!(top(&set)[0]["probability"], top(&assumed)[0]["probability"]);

    // The same by a card, with the classes of a data set.
    let card = ["card", "bare.safetensors", "--arch", "resnet20", "--classes-from", "data", "--out", "card.json"];
    fixture.infer(&[&card, &flags[..]].concat()).ends_with(0);
    let by_card = classify(&["--card", "card.json"]);
    assert_eq!(by_card.stderr, "");
    assert_eq!(top(&by_card)[0]["probability"], top(&set)[0]["probability"]);
    let card_file = Card::read(fixture.path("card.json")).expect("a card");
    assert_eq!(
        (card_file.classes, card_file.preprocess.input_size),
        (vec!["ant".into(), "bee".into(), "cat".into()], [36, 36])
    );
    fixture.infer(&card).ends_with(1).says("exists already").says("--force");

    fs::write(fixture.path("names.txt"), "x\ny\nz\n").expect("written");
    let ran = fixture.infer(&["card", "run", "--classes", "names.txt"]).ends_with(0);
    let card = Card::from_json(&ran.stdout, Path::new("stdout")).expect("a card");
    assert_eq!(card.classes, ["x", "y", "z"]);
    fs::write(fixture.path("names.txt"), "x\ny\n").expect("written");
    fixture.infer(&["card", "run", "--classes", "names.txt"]).ends_with(1).says("2 classes").says("3 outputs");
    let large = ["classify", "a.png", "-w", "run", "--crop", "99"];
    fixture.infer(&large).ends_with(1).says("larger than the images").says("--resize");
    fixture.infer(&["classify", "a.png", "-w", "run", "--resize", "0"]).ends_with(2).says("number of pixels");
}

#[test]
fn a_network_with_one_output_needs_a_sigmoid() {
    let fixture = Fixture::new();
    fixture.image("a.png");
    let mut card = Card::of(Architecture::ResNet20, 1, "a test");
    card.classes = vec!["dog".into()];
    let network = models::NetworkConfig::new(Architecture::ResNet20).with_num_classes(1);
    hub::weights::save(&network.init(&burn::tensor::Device::flex()), &card, fixture.path("one.safetensors"))
        .expect("saved");
    let args = ["classify", "a.png", "-w", "one.safetensors", "--format", "json"];
    fixture.infer(&args).ends_with(1).says("has one output").says("--activation sigmoid");
    let ran = fixture.infer(&[&args[..], &["--activation", "sigmoid"]].concat()).ends_with(0);
    let top = ran.json_lines()[0]["top"].clone();
    let sum: f64 = top.as_array().expect("two").iter().filter_map(|class| class["probability"].as_f64()).sum();
    assert_eq!(top.as_array().map(Vec::len), Some(2));
    assert!((sum - 1.0).abs() < 1e-9 && ran.stdout.contains("\"not dog\""), "{}", ran.stdout);
    let three = ["classify", "a.png", "-w", "run", "--activation", "sigmoid"];
    fixture.infer(&three).ends_with(1).says("has 3: omit it");
}

#[test]
fn a_file_without_a_card_needs_an_architecture_or_a_card() {
    let fixture = Fixture::new();
    fixture.image("a.png");
    without_card(&fixture.path("run/weights.safetensors"), &fixture.path("bare.safetensors"));
    let run =
        |more: &[&str]| fixture.infer(&[&["classify", "a.png", "-w", "bare.safetensors", "-k", "1"], more].concat());
    run(&[]).ends_with(1).says("bare.safetensors carries no model card").says("--arch");
    let ran = run(&["--arch", "resnet20"]).ends_with(0).says("bare.safetensors carries no model card");
    assert!(ran.stdout.contains("  class "), "{}", ran.stdout);
    run(&["--arch", "resnet56"])
        .ends_with(1)
        .says("does not hold the weights of resnet56")
        .says("layer1.3.conv1.weight");

    let mut card = Card::of(Architecture::ResNet20, 3, "a test");
    card.classes = ["one", "two", "three"].map(String::from).to_vec();
    card.write(fixture.path("card.json")).expect("written");
    let ran = run(&["--card", "card.json"]).ends_with(0);
    assert!(["one", "two", "three"].iter().any(|class| ran.stdout.contains(class)), "{}", ran.stdout);
    card.classes.push("four".into());
    card.write(fixture.path("card.json")).expect("written");
    run(&["--card", "card.json"]).ends_with(1).says("it has 4 classes, the last layer has 3");
    fs::write(fixture.path("card.json"), "{}").expect("written");
    run(&["--card", "card.json"]).ends_with(1).says("card.json");
}

#[test]
fn an_architecture_that_contradicts_the_card_is_refused() {
    let fixture = Fixture::new();
    fixture.image("a.png");
    fixture.infer(&["classify", "a.png", "-w", "run", "--arch", "resnet20"]).ends_with(0);
    fixture
        .infer(&["classify", "a.png", "-w", "run", "--arch", "vgg16"])
        .ends_with(1)
        .says("--arch vgg16 contradicts the model card of run/weights.safetensors, which is for resnet20");
}

#[test]
fn a_summary_is_a_table_or_json() {
    let fixture = Fixture::new();
    let ran = fixture.infer(&["summary", "resnet20"]).ends_with(0);
    assert!(ran.stdout.starts_with("resnet20, input 3 × 32 × 32\n"), "{}", ran.stdout);
    let total = ran.stdout.lines().last().map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(total, Some(vec!["total", "269,722", "40,551,040"]));

    let ran =
        fixture.infer(&["summary", "resnet18", "--classes", "7", "--size", "64x96", "--format", "json"]).ends_with(0);
    let summary: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(summary["input_size"], serde_json::json!([64, 96]));
    let last = summary["stages"].as_array().and_then(|stages| stages.last()).expect("stages");
    assert_eq!((&last["name"], &last["output"]), (&Value::from("fc"), &serde_json::json!([7])));
    assert_eq!(summary["card"], Value::Null);

    let ran = fixture.infer(&["summary", "--weights", "run"]).ends_with(0);
    assert!(ran.stdout.contains("classes     3: ant; bee, \"honey\"; cat\n"), "{}", ran.stdout);
    fixture.infer(&["summary", "vgg16", "--size", "16"]).ends_with(1).says("at least 32 × 32");
}

#[test]
fn every_architecture_is_listed() {
    let fixture = Fixture::new();
    let ran = fixture.infer(&["models"]).ends_with(0);
    for architecture in Architecture::ALL {
        assert!(ran.stdout.lines().any(|line| line.split_whitespace().next() == Some(architecture.name())));
    }
    let row = ran.stdout.lines().find(|line| line.starts_with("resnet50 ")).expect("a row");
    assert!(row.contains("25,557,032") && row.contains("IMAGENET1K_V2 (80.9), IMAGENET1K_V1 (76.1)"), "{row}");
    let list: Value =
        serde_json::from_str(&fixture.infer(&["models", "--format", "json"]).ends_with(0).stdout).expect("JSON");
    assert_eq!(list.as_array().map(Vec::len), Some(Architecture::ALL.len()));
}

#[test]
fn verify_finds_flex_equal_to_itself() {
    let fixture = Fixture::new();
    let args = ["verify", "--arch", "resnet20", "--arch", "googlenet", "--backend", "flex", "--format", "json"];
    let ran = fixture.infer(&args).ends_with(0);
    let rows: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let rows = rows.as_array().expect("rows");
    let compared = ["resnet20", "googlenet"].iter().flat_map(|name| [(name, "forward"), (name, "training")]);
    assert_eq!(rows.len(), 4);
    for (row, (architecture, pass)) in rows.iter().zip(compared) {
        assert_eq!((&row["architecture"], &row["pass"]), (&Value::from(*architecture), &Value::from(pass)));
        assert_eq!((&row["status"], &row["largest"]), (&Value::from("equal"), &Value::from(0.0)));
    }
    let text = fixture
        .infer(&["verify", "--arch", "resnet20", "--backend", "flex", "--size", "40x48", "--pass", "forward"])
        .ends_with(0);
    assert!(text.stdout.contains("40x48") && text.stdout.contains("equal"), "{}", text.stdout);
    assert!(!text.stdout.contains("training"), "{}", text.stdout);
    fixture
        .infer(&["verify", "--arch", "alexnet", "--backend", "flex", "--size", "32"])
        .ends_with(1)
        .says("at least 63");
}

/// Copies a safetensors file without the metadata that contains the card.
fn without_card(from: &Path, to: &Path) {
    let bytes = fs::read(from).expect("read");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("a JSON header");
    header.as_object_mut().expect("an object").remove("__metadata__").expect("a card");
    let mut header = serde_json::to_vec(&header).expect("JSON");
    header.resize(header.len().next_multiple_of(8), b' ');
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &bytes[8 + length..]].concat();
    fs::write(to, file).expect("written");
}

/// Writes class folders with different images, for `evaluate`.
fn labeled(fixture: &Fixture) {
    for (class, shape) in [("ant", "a"), ("bee, \"honey\"", "b"), ("cat", "c")] {
        for number in 0..7 {
            fixture.image(&format!("data/val/{class}/{number}-{shape}.png"));
        }
    }
}

#[test]
fn merged_shards_equal_the_whole_evaluation() {
    let fixture = Fixture::new();
    labeled(&fixture);
    let base = ["evaluate", "--data", "data", "--weights", "run", "--format", "json"];
    let with = |more: &[&str]| fixture.infer(&[&base, more].concat());
    let whole = with(&["--out", "whole", "--batch-size", "4"]).ends_with(0);
    let whole: Value = serde_json::from_str(&whole.stdout).expect("JSON");
    assert_eq!(whole["top1"]["of"], 21);
    assert_eq!(whole["top5"]["right"], 21, "three classes are always among five");
    for shard in ["0", "1", "2"] {
        with(&["--shard-index", shard, "--num-shards", "3", "--out", &format!("part{shard}"), "--batch-size", "1"])
            .ends_with(0);
    }
    let merged =
        fixture.infer(&["merge", "part2", "part0", "part1", "--out", "merged", "--format", "json"]).ends_with(0);
    let merged: Value = serde_json::from_str(&merged.stdout).expect("JSON");
    for field in ["top1", "top5", "loss", "ece", "images"] {
        assert_eq!(merged[field], whole[field], "{field}");
    }
    let read = |folder: &str, file: &str| fs::read(fixture.path(folder).join(file)).expect("written");
    for file in ["predictions.csv", "per_class.csv", "confusion.csv", "confusion.png", "calibration.svg"] {
        assert!(read("merged", file) == read("whole", file), "{file}");
    }
    // Unreadable images do not change the order of the data.
    fixture.broken("data/val/ant/broken.jpg").broken("data/val/cat/0-broken.jpg");
    with(&["--out", "bad"]).ends_with(3);
    for shard in ["0", "1", "2"] {
        fixture.infer(
            &[&base[..], &["--shard-index", shard, "--num-shards", "3", "--out", &format!("bad{shard}")]].concat(),
        );
    }
    fixture.infer(&["merge", "bad2", "bad0", "bad1", "--out", "bad-merged"]).ends_with(3);
    for file in ["predictions.csv", "bad_samples.csv", "per_class.csv"] {
        assert!(read("bad-merged", file) == read("bad", file), "{file}");
    }
    assert!(String::from_utf8(read("whole", "report.html")).expect("text").contains("Confusion matrix"));

    let incomplete = fixture.infer(&["merge", "part0", "part1", "--out", "other"]).ends_with(1);
    assert!(incomplete.stderr.contains("each once"), "{}", incomplete.stderr);
    let occupied = with(&["--out", "whole"]).ends_with(1);
    assert!(occupied.stderr.contains("not empty"), "{}", occupied.stderr);
}

#[test]
fn protocols_average_views_and_networks() {
    let fixture = Fixture::new();
    labeled(&fixture);
    let rows = |more: &[&str], out: &str| {
        fixture.infer(&[&["evaluate", "--data", "data", "--weights", "run", "--out", out], more].concat()).ends_with(0);
        fs::read_to_string(fixture.path(out).join("predictions.csv")).expect("written")
    };
    let plain = rows(&[], "plain");
    assert_eq!(rows(&["--ensemble", "run"], "twice"), plain, "the average of a network with itself is itself");
    assert_eq!(rows(&["--scales", "32"], "scaled"), plain, "the card's own scale");
    assert_ne!(rows(&["--flip"], "flipped"), plain);
    assert_ne!(rows(&["--crops", "10"], "ten"), plain);
    assert_ne!(rows(&["--dense"], "dense"), plain);
    let error = fixture.infer(&["evaluate", "--data", "data", "--weights", "run", "--scales", "16"]).ends_with(1);
    assert!(error.stderr.contains("smaller than the network's input"), "{}", error.stderr);
}

#[test]
fn evaluation_reports_unreadable_images_and_unknown_classes() {
    let fixture = Fixture::new();
    labeled(&fixture);
    fixture.broken("data/val/ant/broken.jpg");
    let evaluated = fixture.infer(&["evaluate", "--data", "data", "--weights", "run", "--out", "results"]).ends_with(3);
    assert!(evaluated.stdout.contains("top-1") && evaluated.stdout.contains("of 21"), "{}", evaluated.stdout);
    assert!(evaluated.stderr.contains("1 images could not be read"), "{}", evaluated.stderr);
    let listed = fs::read_to_string(fixture.path("results/bad_samples.csv")).expect("written");
    assert!(listed.contains("broken.jpg"), "{listed}");
    let strict =
        fixture.infer(&["evaluate", "--data", "data", "--weights", "run", "--bad-samples", "strict"]).ends_with(1);
    assert!(strict.stderr.contains("broken.jpg"), "{}", strict.stderr);

    fixture.image("other/val/dog/1.png").image("other/val/cat/2.png");
    let unknown = fixture.infer(&["evaluate", "--data", "other", "--weights", "run"]).ends_with(1);
    assert!(unknown.stderr.contains("lacks 1 of the data's 2 classes: dog"), "{}", unknown.stderr);
    fixture.image("flat/1.png");
    let unlabeled = fixture.infer(&["evaluate", "--data", "flat", "--weights", "run"]).ends_with(1);
    assert!(unlabeled.stderr.contains("no labels"), "{}", unlabeled.stderr);
}

#[test]
fn folders_named_by_index_and_by_a_file_are_evaluated() {
    let fixture = Fixture::new();
    labeled(&fixture);
    for (index, class) in ["ant", "bee, \"honey\"", "cat"].iter().enumerate() {
        let (named, numbered) = (fixture.path(&format!("data/val/{class}")), format!("numbers/val/{index}"));
        fs::create_dir_all(fixture.path("numbers/val")).expect("created");
        fs::create_dir_all(fixture.path("letters/val")).expect("created");
        let copy = |to: &str| {
            fs::create_dir(fixture.path(to)).expect("created");
            for entry in fs::read_dir(&named).expect("a folder") {
                let path = entry.expect("an entry").path();
                fs::copy(&path, fixture.path(to).join(path.file_name().expect("a name"))).expect("copied");
            }
        };
        copy(&numbered);
        copy(&format!("letters/val/{}", ["x", "y", "z"][index]));
    }
    fs::write(fixture.path("map.csv"), "folder,class\nx,ant\ny,1\nz,cat\n").expect("written");
    let evaluate = |data: &str, more: &[&str]| {
        let base = ["evaluate", "--data", data, "--weights", "run", "--format", "json"];
        fixture.infer(&[&base, more].concat())
    };
    let top1 = |ran: &fixture::Ran| {
        let result: Value = serde_json::from_str(&ran.stdout).expect("JSON");
        (result["top1"]["right"].clone(), result["loss"]["mean"].clone())
    };
    let named = evaluate("data", &[]).ends_with(0);
    let numbered = evaluate("numbers", &[]).ends_with(0).says("are taken as indices of the network's: 0 is ant");
    assert_eq!(top1(&numbered), top1(&named));
    assert!(numbered.stdout.contains("\"class_map\": \"index\"") && !named.stdout.contains("class_map"));
    evaluate("letters", &[]).ends_with(1).says("--class-map FILE maps others");
    assert_eq!(top1(&evaluate("letters", &["--class-map", "map.csv"]).ends_with(0)), top1(&named));
    evaluate("data", &["--class-map", "map.csv"]).ends_with(1).says("lacks 3 of the data's 3 classes");
}

#[test]
fn tables_are_evaluated_with_scores_and_compared() {
    let fixture = Fixture::new();
    labeled(&fixture);
    let mut table = csv::Writer::from_path(fixture.path("labels.csv")).expect("a table");
    table.write_record(["path", "name"]).expect("written");
    for class in ["ant", "bee, \"honey\"", "cat"] {
        for image in fs::read_dir(fixture.path("data/val").join(class)).expect("a folder") {
            let image = image.expect("an image").file_name().into_string().expect("a name");
            table.write_record([format!("val/{class}/{image}"), class.to_string()]).expect("written");
        }
    }
    table.flush().expect("written");
    let of_folders = fixture.infer(&["evaluate", "--data", "data", "--weights", "run", "--out", "a"]).ends_with(0);
    let more = ["--data", "labels.csv", "--images-root", "data", "--classification-report", "--out", "b"];
    let of_table = fixture.infer(&[&["evaluate", "--weights", "run"], &more[..]].concat()).ends_with(0);
    for shown in ["balanced accuracy", "macro P, R, F1", "Cohen's kappa", "AUROC"] {
        assert!(of_folders.stdout.contains(shown) && of_table.stdout.contains(shown), "{}", of_table.stdout);
    }
    assert!(of_table.stdout.contains("f1-score   support") && of_table.stdout.contains("weighted avg"));
    let read = |name: &str| fs::read_to_string(fixture.path(name)).expect("written");
    assert_eq!(read("a/classification_report.txt"), read("b/classification_report.txt"));
    let scores = |name: &str| serde_json::from_str::<Value>(&read(name)).expect("JSON")["scores"].clone();
    assert_eq!(scores("a/result.json"), scores("b/result.json"));
    let auroc = scores("a/result.json")["auroc"].as_f64().expect("a number");
    assert!((0.0..=1.0).contains(&auroc), "{auroc}");
    let compared = fixture.infer(&["compare", "a", "b"]).ends_with(0);
    assert!(compared.stdout.contains("McNemar's test (exact): p = 1.0000"), "{}", compared.stdout);
    fixture.infer(&["compare", "a", "data"]).ends_with(1).says("has no predictions.csv");
}
