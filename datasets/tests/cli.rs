//! The built binary, from outside: what it prints, where, and how it ends.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use image::{RgbImage, codecs::jpeg::JpegEncoder};
use tempfile::TempDir;

/// A photograph-like image that differs from seed to seed.
fn picture(seed: u32, width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let wave = |a: u32, b: u32| (f64::from(a * (seed + 2)) / 23.0 + f64::from(b * (seed + 1)) / 17.0).sin();
        let value = (127.0 + 60.0 * wave(x, y) + 60.0 * wave(y, 2 * x)) as u8;
        image::Rgb([value, value / 2, 255 - value])
    })
}

fn jpeg(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut bytes, 90);
    image.write_with_encoder(encoder).expect("a JPEG");
    bytes
}

/// Two classes with four images each in train and two in val, all of them different and sound.
fn data() -> TempDir {
    let root = TempDir::new().expect("a folder");
    for (split, per_class) in [("train", 4), ("val", 2)] {
        for (number, class) in ["cat", "dog"].into_iter().enumerate() {
            let folder = root.path().join(split).join(class);
            fs::create_dir_all(&folder).expect("a folder");
            for i in 0..per_class {
                let seed = 10 * number as u32 + i + if split == "val" { 5 } else { 0 };
                fs::write(folder.join(format!("{i}.jpg")), jpeg(&picture(seed, 120, 90))).expect("written");
            }
        }
    }
    root
}

fn datasets(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_datasets")).args(arguments).output().expect("the binary runs")
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}\n{}", stdout(output), stderr(output)))
}

#[test]
fn inspect_says_what_the_data_is() {
    let root = data();
    let root = path(root.path());
    let output = datasets(&["inspect", root]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[..6],
        [
            &*format!("{root}: folder, split train"),
            "  8 samples of 2 classes",
            "  classes hold 4 (cat) to 4 (dog) samples",
            "  measured on 8:",
            "    format  8 JPEG",
            "    color  8 Rgb",
        ]
    );
    assert_eq!(
        lines[7..],
        [
            "    width   120 to 120, mean 120",
            "    height  90 to 90, mean 90",
            "    shorter side",
            "        64 – 95           8  ████████████████████████████████████████",
        ]
    );
    let val = json(&datasets(&["inspect", root, "--split", "val", "--format", "json"]));
    assert_eq!((&val["samples"], &val["classes"][1]["id"]), (&4.into(), &"dog".into()));
    assert_eq!(val["shorter_side"][0]["images"], 4);
}

#[test]
fn doctor_finds_nothing_in_sound_data() {
    let root = data();
    let output = datasets(&["doctor", path(root.path()), "-q"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).ends_with("nothing is wrong with the samples\n"), "{}", stdout(&output));
    assert_eq!(stderr(&output), "");
}

#[test]
fn doctor_finds_what_is_wrong_and_other_commands_honor_its_list() {
    let root = data();
    let train = root.path().join("train");
    let good = fs::read(train.join("cat/0.jpg")).expect("read");
    // Broken, cut, misnamed, tiny, a duplicate, a smaller copy, a leak.
    fs::write(train.join("cat/broken.jpg"), b"no image at all").expect("written");
    fs::write(train.join("cat/cut.jpg"), &good[..good.len() / 2]).expect("written");
    picture(31, 100, 80).save_with_format(train.join("dog/misnamed.jpg"), image::ImageFormat::Png).expect("written");
    fs::write(train.join("dog/tiny.jpg"), jpeg(&picture(41, 16, 16))).expect("written");
    fs::write(train.join("cat/twice.jpg"), &good).expect("written");
    let small = image::imageops::resize(&picture(1, 120, 90), 80, 60, image::imageops::FilterType::Triangle);
    fs::write(train.join("cat/small.jpg"), jpeg(&small)).expect("written");
    fs::copy(root.path().join("val/dog/1.jpg"), train.join("dog/leak.jpg")).expect("copied");

    let list = root.path().join("bad.txt");
    let arguments = ["doctor", path(root.path()), "--format", "json", "--quarantine", path(&list), "--quarantine-what"];
    let output = datasets(&[&arguments[..], &["broken,leaks"]].concat());
    assert_eq!(output.status.code(), Some(3), "samples are broken: {}", stderr(&output));
    let report = json(&output);
    let found = |kind: &str| -> Vec<String> {
        let findings = report["findings"].as_array().expect("a list").iter();
        let of_kind = findings.filter(|finding| finding["kind"] == kind);
        of_kind.map(|finding| finding["sample"]["key"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let ends = |keys: Vec<String>, end: &str| assert!(keys.len() == 1 && keys[0].ends_with(end), "{keys:?} {end}");
    ends(found("undecodable"), "cat/broken.jpg");
    ends(found("truncated"), "cat/cut.jpg");
    ends(found("wrong-extension"), "dog/misnamed.jpg");
    ends(found("tiny"), "dog/tiny.jpg");
    let keys = |group: &serde_json::Value| -> Vec<String> {
        let samples = group.as_array().expect("a list").iter();
        samples.map(|sample| sample["key"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(report["duplicates"].as_array().map(Vec::len), Some(2));
    assert!(keys(&report["duplicates"][0])[1].ends_with("cat/twice.jpg"), "{}", report["duplicates"]);
    assert!(
        report["near_duplicates"].as_array().is_some_and(|groups| {
            groups.iter().any(|group| keys(group).iter().any(|key| key.ends_with("cat/small.jpg")))
        }),
        "{}",
        report["near_duplicates"]
    );
    let leaks = report["leaks"].as_array().expect("a list");
    assert!(leaks.iter().any(|leak| {
        leak["exact"] == true && keys(&leak["samples"]).iter().any(|key| key.ends_with("dog/leak.jpg"))
    }));
    assert_eq!(report["splits"][0]["broken"], 2);
    assert_eq!(report["label_map"].as_str().map(str::len), Some(64));

    let text = fs::read_to_string(&list).expect("the list");
    let entries: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(entries.len(), 3, "{text}");
    let inspected = json(&datasets(&["inspect", path(root.path()), "--without", path(&list), "--format", "json"]));
    assert_eq!(inspected["samples"], 15 - 3);

    // The same in words.
    let text = stdout(&datasets(&["doctor", path(root.path())]));
    for part in ["undecodable: 1 sample\n", "truncated: 1 sample\n", "exact duplicates: 2 groups\n"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn preview_draws_a_grid() {
    let root = data();
    let out = root.path().join("grid.png");
    let arguments =
        ["preview", path(root.path()), "--out", path(&out), "--columns", "4", "--rows", "3", "--size", "64"];
    let output = datasets(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output), format!("{}: 8 samples\n", out.display()));
    let grid = image::open(&out).expect("a picture").into_rgb8();
    assert_eq!(grid.dimensions(), (8 + 4 * 72, 8 + 2 * (64 + 22 + 8)));
    // The same seed draws the same picture; another epoch another one.
    let first = fs::read(&out).expect("read");
    datasets(&arguments);
    assert_eq!(fs::read(&out).expect("read"), first);
    datasets(&[&arguments[..], &["--epoch", "1"]].concat());
    assert_ne!(fs::read(&out).expect("read"), first);
}

#[test]
fn bench_reports_rates_and_meters() {
    let root = data();
    let arguments =
        ["bench", path(root.path()), "--images", "40", "--batch-size", "4", "--workers", "2", "--size", "64"];
    for pipeline in ["train", "eval"] {
        let output = datasets(&[&arguments[..], &["--pipeline", pipeline, "--format", "json"]].concat());
        let bench = json(&output);
        assert_eq!(bench["pipeline"], pipeline);
        assert_eq!(bench["passes"].as_array().map(Vec::len), Some(4));
        let number = |name: &str| bench[name].as_f64().unwrap_or(f64::NAN);
        assert!(number("images_per_s") > 0.0);
        let shares = number("reading") + number("decoding") + number("transforming") + number("collating");
        assert!((shares - 1.0).abs() < 1e-6, "{shares}");
        assert!(number("decoding") > 0.0 && number("bytes_per_image") > 1000.0);
    }
    let text = stdout(&datasets(&[&arguments[..], &["--passes", "1"]].concat()));
    assert!(text.contains("images/s: train pipeline, 64 px, 2 workers, batches of 4"), "{text}");
}

#[test]
fn shards_hold_the_same_samples_and_a_second_run_adds_nothing() {
    let root = data();
    let out = root.path().join("shards");
    let arguments =
        ["shard", path(root.path()), "--out", path(&out), "--shard-size", "20kB", "--name", "pets", "--shuffle"];
    let output = datasets(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let files = || -> Vec<_> {
        let mut names: Vec<_> = fs::read_dir(&out)
            .expect("a folder")
            .map(|entry| entry.expect("an entry"))
            .map(|entry| (entry.file_name(), fs::read(entry.path()).expect("read")))
            .collect();
        names.sort();
        names
    };
    let first = files();
    assert!(first.iter().filter(|(name, _)| name.to_string_lossy().ends_with(".tar")).count() > 1);
    assert_eq!(datasets(&arguments).status.code(), Some(0));
    assert_eq!(files(), first);

    let inspected = json(&datasets(&["inspect", path(&out), "--format", "json"]));
    assert_eq!((&inspected["kind"], &inspected["samples"]), (&"webdataset".into(), &8.into()));
    assert_eq!(inspected["classes"][1]["id"], "dog");
    let other = datasets(&[&arguments[..8], &["--resize", "45"]].concat());
    assert_eq!(other.status.code(), Some(1), "other options need another folder");

    let small = root.path().join("small");
    let output = datasets(&["shard", path(root.path()), "--out", path(&small), "--resize", "45"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let inspected = json(&datasets(&["inspect", path(&small), "--format", "json"]));
    assert_eq!((&inspected["width"]["max"], &inspected["height"]["min"]), (&60.into(), &45.into()));
}

#[test]
fn mistakes_end_with_their_exit_code_and_one_line() {
    let output = datasets(&["inspect", "no/such/data"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.starts_with("error: ") && text.contains("no/such/data") && text.lines().count() == 1, "{text}");
    assert_eq!(stdout(&output), "");
    assert_eq!(datasets(&["inspect"]).status.code(), Some(2));
    assert_eq!(datasets(&["bench", ".", "--batch-size", "0"]).status.code(), Some(2));
    assert_eq!(datasets(&["frobnicate"]).status.code(), Some(2));
}

#[test]
fn help_explains_every_command() {
    let help = stdout(&datasets(&["--help"]));
    for part in ["inspect", "doctor", "preview", "shard", "bench", "Exit codes: 0 done"] {
        assert!(help.contains(part), "{help}");
    }
    for command in ["inspect", "doctor", "preview", "shard", "bench"] {
        let help = stdout(&datasets(&[command, "--help"]));
        assert!(help.contains("Usage: datasets") && help.contains("Examples:"), "{help}");
    }
}

#[test]
fn processes_that_index_the_same_shards_at_once_do_not_hurt_each_other() {
    let (data, out, cache) = (data(), TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
    let shards = out.path().join("shards");
    let made = datasets(&["shard", path(data.path()), "--out", path(&shards), "--shard-size", "20kB"]);
    assert!(made.status.success(), "{}", stderr(&made));
    // Each round starts without an index.
    for round in 0..5 {
        let cache = cache.path().join(round.to_string());
        let start = |_| {
            Command::new(env!("CARGO_BIN_EXE_datasets"))
                .args(["inspect", path(&shards), "--format", "json"])
                .env("XDG_CACHE_HOME", &cache)
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .expect("the binary starts")
        };
        let processes: Vec<_> = (0..4).map(start).collect();
        let outputs: Vec<Output> = processes.into_iter().map(|p| p.wait_with_output().expect("it ends")).collect();
        for output in &outputs {
            assert!(output.status.success(), "{}", stderr(output));
            assert_eq!(json(output), json(&outputs[0]));
        }
        let again = Command::new(env!("CARGO_BIN_EXE_datasets"))
            .args(["inspect", path(&shards), "--format", "json"])
            .env("XDG_CACHE_HOME", &cache)
            .output()
            .expect("the binary runs");
        assert_eq!(json(&again), json(&outputs[0]), "from the index that they left");
    }
}

#[cfg(unix)]
#[test]
fn results_that_cannot_be_written_are_an_error_and_a_closed_pipe_is_none() {
    use std::os::unix::process::ExitStatusExt;

    const SIGPIPE: i32 = 13;
    let data = data();
    let bench = ["bench", path(data.path()), "--batch-size", "2"];
    let commands: [&[&str]; 5] =
        [&["--help"], &["inspect", "digits"], &["doctor", path(data.path())], &bench, &["completions", "fish"]];
    for args in commands {
        let command = |stdout: std::process::Stdio| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_datasets"));
            command.args(args).arg("-qq").stdout(stdout).stderr(std::process::Stdio::piped());
            command.output().expect("the binary runs")
        };
        let full = command(fs::File::options().write(true).open("/dev/full").expect("it is there").into());
        let expected = "error: cannot write to standard output: No space left on device (os error 28)\n";
        assert_eq!((stderr(&full).as_str(), full.status.code()), (expected, Some(1)), "{args:?}");

        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let closed = command(writer.into());
        assert_eq!((stderr(&closed).as_str(), closed.status.signal()), ("", Some(SIGPIPE)), "{args:?}");
    }
}

#[test]
fn doctor_finds_placeholders_and_files_that_are_left_out() {
    let root = data();
    let train = root.path().join("train");
    let placeholder = jpeg(&picture(77, 90, 90));
    for class in ["cat", "dog"] {
        fs::write(train.join(class).join("missing.jpg"), &placeholder).expect("written");
    }
    let gray = RgbImage::from_pixel(64, 64, image::Rgb([128, 128, 128]));
    fs::write(train.join("dog/gray.jpg"), jpeg(&gray)).expect("written");
    fs::write(train.join("dog/phone.HEIC"), "no JPEG").expect("written");
    fs::write(train.join("dog/list.txt"), "x").expect("written");
    let list = root.path().join("bad.txt");
    let what = ["--quarantine", path(&list), "--quarantine-what", "flat,conflicts"];
    let output = datasets(&[&["doctor", path(root.path()), "--format", "json"][..], &what].concat());
    let report = json(&output);
    let conflict = report["conflicts"][0].as_array().expect("a group");
    let keys: Vec<_> = conflict.iter().map(|sample| sample["key"].as_str().unwrap_or_default()).collect();
    assert_eq!(keys, ["train/cat/missing.jpg", "train/dog/missing.jpg"]);
    assert_eq!(report["conflicts"].as_array().map(Vec::len), Some(1));
    let flat: Vec<_> =
        report["findings"].as_array().expect("a list").iter().filter(|finding| finding["kind"] == "flat").collect();
    assert_eq!(flat.len(), 1);
    assert_eq!(
        (&flat[0]["sample"]["key"], &flat[0]["detail"]),
        (&"train/dog/gray.jpg".into(), &"nothing but #808080".into())
    );
    let left_out = report["left_out"].as_array().expect("a list");
    assert!(left_out.iter().any(|group| group["extension"] == ".heic" && group["count"] == 1), "{left_out:?}");
    assert!(left_out.iter().any(|group| group["extension"] == ".txt" && group["reason"] == "no-image"), "{left_out:?}");
    let listed = fs::read_to_string(&list).expect("the list");
    assert_eq!(listed.lines().filter(|line| !line.starts_with('#')).count(), 3, "{listed}");
    let text = stdout(&datasets(&["doctor", path(root.path())]));
    assert!(text.contains("the same image in several classes (a placeholder, or wrong labels): 1 group"), "{text}");
    assert!(text.contains("of a single color: 1 sample"), "{text}");
    let inspected = datasets(&["inspect", path(root.path())]);
    for text in [stdout(&inspected), stderr(&inspected)] {
        assert!(text.contains("left out: ") && text.contains("1 .heic"), "{text}");
    }
}

#[test]
fn shard_writes_every_split_or_says_which_it_leaves_out() {
    let root = data();
    let out = TempDir::new().expect("a folder");
    let both = out.path().join("both");
    let output = datasets(&["shard", path(root.path()), "--out", path(&both), "--name", "pets"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(both.join("pets-train-000000.tar").exists() && both.join("pets-val-000000.tar").exists());
    assert_eq!(stdout(&output).lines().count(), 2, "{}", stdout(&output));
    for (split, samples) in [("train", 8), ("val", 4)] {
        let inspected = json(&datasets(&["inspect", path(&both), "--split", split, "--format", "json"]));
        assert_eq!(inspected["samples"], samples);
    }
    let one = out.path().join("one");
    let output = datasets(&["shard", path(root.path()), "--out", path(&one), "--split", "train"]);
    assert!(stderr(&output).contains("the split val is left out"), "{}", stderr(&output));
    assert!(
        !fs::read_dir(&one).expect("a folder").any(|e| e
            .expect("an entry")
            .file_name()
            .to_string_lossy()
            .contains("val"))
    );
    let whole = out.path().join("whole");
    let output = datasets(&["shard", path(&root.path().join("train")), "--out", path(&whole)]);
    assert!(output.status.success() && stdout(&output).contains("split train: 8 samples"), "{}", stderr(&output));
}

#[cfg(unix)]
#[test]
fn what_names_hold_does_not_reach_the_terminal() {
    let root = data();
    let odd = root.path().join("train/cat/\u{1b}[2J\nwarning: all is lost.jpg");
    fs::write(&odd, "no image").expect("written");
    fs::create_dir(root.path().join("train/\u{1b}]0;title")).expect("a folder");
    for arguments in [&["doctor", path(root.path())][..], &["inspect", path(root.path()), "--allow-empty-classes"]] {
        let output = datasets(arguments);
        for text in [stdout(&output), stderr(&output)] {
            assert!(!text.contains('\u{1b}') && !text.contains("\nwarning: all"), "{text}");
        }
    }
    fs::remove_dir(root.path().join("train/\u{1b}]0;title")).expect("removed");
    let list = root.path().join("bad.txt");
    datasets(&["doctor", path(root.path()), "--quarantine", path(&list)]);
    let inspected = json(&datasets(&["inspect", path(root.path()), "--exclude", path(&list), "--format", "json"]));
    assert_eq!(inspected["samples"], 8, "the odd one alone is left out");
}

#[test]
fn doctor_counts_orientations_of_every_format_damage_and_unused_bits() {
    let root = data();
    let cats = root.path().join("train/cat");
    let good = jpeg(&picture(61, 120, 90));
    // A quarter turn, in an EXIF block of a JPEG, and in an eXIf chunk of a PNG.
    let block = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let turned = [&good[..2], b"\xff\xe1\0\x22Exif\0\0", block, &good[2..]].concat();
    fs::write(cats.join("turned.jpg"), turned).expect("written");
    let mut png = std::io::Cursor::new(Vec::new());
    picture(62, 120, 90).write_to(&mut png, image::ImageFormat::Png).expect("a PNG");
    let png = png.into_inner();
    let chunk = [b"eXIf", &block[..]].concat();
    let (length, checksum) = ((block.len() as u32).to_be_bytes(), crc32fast::hash(&chunk).to_be_bytes());
    fs::write(cats.join("turned.png"), [&png[..33], &length, &chunk, &checksum, &png[33..]].concat()).expect("written");
    // The end marker comes early; and 12 bits in 16.
    fs::write(cats.join("early.jpg"), [&good[..good.len() - 400], b"\xff\xd9"].concat()).expect("written");
    let dim = image::ImageBuffer::from_fn(120, 90, |x, y| image::Luma([(x * 30 + y * 3) as u16]));
    dim.save(cats.join("dim.png")).expect("written");

    let output = datasets(&["doctor", path(root.path()), "--format", "json"]);
    assert_eq!(output.status.code(), Some(0), "all can be used: {}", stderr(&output));
    let report = json(&output);
    let mut found: Vec<(String, String)> = report["findings"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|finding| {
            let key = finding["sample"]["key"].as_str().unwrap_or_default();
            (finding["kind"].as_str().unwrap_or_default().into(), key.rsplit('/').next().unwrap_or_default().into())
        })
        .collect();
    found.sort();
    let expected =
        [("damaged", "early.jpg"), ("narrow-range", "dim.png"), ("odd-exif", "turned.jpg"), ("odd-exif", "turned.png")];
    assert_eq!(found, expected.map(|(kind, key)| (kind.to_string(), key.to_string())));
}

#[test]
fn every_command_reads_a_table() {
    let root = data();
    let mut rows = String::from("file\tkind\n");
    for class in ["cat", "dog"] {
        (0..4).for_each(|i| rows += &format!("{class}/{i}\t{class}\n"));
    }
    fs::write(root.path().join("labels.tsv"), rows + "cat/9.jpg\tcat\n").expect("written");
    let (table, images) = (root.path().join("labels.tsv"), root.path().join("train"));
    let options = [path(&table), "--images-root", path(&images)];
    let run = |command: &str, more: &[&str]| datasets(&[&[command], &options[..], more].concat());
    let inspected = run("inspect", &["--format", "json"]);
    assert!(inspected.status.success(), "{}", stderr(&inspected));
    assert!(stderr(&inspected).contains("images from the column `file`, labels from `kind`"), "{}", stderr(&inspected));
    let inspection: serde_json::Value = serde_json::from_str(&stdout(&inspected)).expect("JSON");
    assert_eq!((&inspection["kind"], &inspection["samples"]), (&"table".into(), &8.into()));
    assert_eq!(inspection["left_out"][0]["reason"], "missing");
    assert!(run("doctor", &[]).status.success());
    let (grid, shards) = (root.path().join("grid.png"), root.path().join("shards"));
    assert!(run("preview", &["--out", path(&grid), "--size", "32"]).status.success() && grid.is_file());
    let sharded = run("shard", &["--out", path(&shards), "--val-fraction", "0.25"]);
    assert!(sharded.status.success(), "{}", stderr(&sharded));
    let manifest = datasets(&["inspect", path(&shards), "--format", "json"]);
    assert!(stdout(&manifest).contains("\"samples\": 6"), "{}", stdout(&manifest));
    assert!(run("bench", &["--images", "8", "--passes", "1", "--size", "32"]).status.success());

    let folder = datasets(&["inspect", path(&images), "--label-column", "kind"]);
    assert!(!folder.status.success() && stderr(&folder).contains("no effect"), "{}", stderr(&folder));
    let by_name = datasets(&["inspect", path(&images), "--label-from", r"^([01])\.jpg$", "--format", "json"]);
    assert!(by_name.status.success(), "{}", stderr(&by_name));
    assert!(stdout(&by_name).contains("\"samples\": 4") && stderr(&by_name).contains("4 of 8 images are left out"));
}
