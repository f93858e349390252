//! Resuming runs after what happens to them: data that was moved, images that went bad, more epochs.
#![allow(clippy::unwrap_used)] // Helpers of tests fail as tests do.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use common::{digit_folders, info, last_checkpoint, weights};
use tempfile::TempDir;

mod common;

/// A home with three classes of digits in `data`, in which `train` runs.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(TempDir::new().unwrap());
        digit_folders(&home.at("data"), &[0, 1, 7], 16);
        home
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = common::train();
        command.args(args).env("HOME", self.at("")).env("XDG_CACHE_HOME", self.at("cache")).current_dir(self.at(""));
        command
    }

    /// A training of `epochs` epochs of six steps, with a checkpoint after each.
    fn training(&self, out: &str, epochs: usize, more: &[&str]) -> Command {
        let args = ["pretrain", "--recipe=digits", "--data=data", "--batch-size=8", "--seed=3", "--out", out];
        let mut command = self.command(&args);
        command.args(["--set", "checkpoints.every_steps=1", "--epochs", &epochs.to_string()]).args(more);
        command
    }

    /// Starts a run and kills it after its second epoch began.
    fn kill(&self, mut command: Command, out: &str) {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("train starts");
        while last_checkpoint(&self.at(out)).is_none_or(|step| step < 8) {
            assert!(child.try_wait().unwrap().is_none(), "over too soon");
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = child.kill();
        child.wait().unwrap();
    }

    fn resume(&self, args: &[&str]) -> Output {
        self.command(&[&["resume"], args].concat()).output().expect("train runs")
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn succeed(output: Output) -> String {
    let error = stderr(&output);
    assert!(output.status.success(), "{error}");
    error
}

#[track_caller]
fn fail(output: Output) -> String {
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(!error.contains("panicked"), "{error}");
    error
}

/// The keys of the recorded changes.
fn changed(run: &Path) -> Vec<String> {
    let info = info(run);
    let changes = info["changes"].as_array().into_iter().flatten();
    changes.map(|change| change["key"].as_str().unwrap().to_string()).collect()
}

const SAME_BITS: &str = "ends with the same bits as without the interruption";
const OTHER_BITS: &str = "not bit for bit";

#[test]
fn a_run_resumes_from_another_folder_and_with_its_data_elsewhere_to_the_same_bits() {
    let home = Home::new();
    succeed(home.training("undisturbed", 10, &["-q"]).output().unwrap());
    home.kill(home.training("run", 10, &[]), "run");
    fs::create_dir(home.at("elsewhere")).unwrap();
    fs::create_dir(home.at("moved")).unwrap();

    // The data is gone: the message says what to do, and nothing is changed.
    fs::rename(home.at("data"), home.at("moved/digits")).unwrap();
    let error = fail(home.resume(&["run"]));
    assert!(error.contains("--data sets data.train") && error.contains("data: No such file"), "{error}");
    assert_eq!(changed(&home.at("run")), Vec::<String>::new());

    let mut command = home.command(&["resume", "../run", "--data", "../moved/digits"]);
    let said = succeed(command.current_dir(home.at("elsewhere")).output().unwrap());
    assert!(said.contains(SAME_BITS) && !said.contains(OTHER_BITS), "{said}");
    assert!(weights(&home.at("run")) == weights(&home.at("undisturbed")));
    assert_eq!(changed(&home.at("run")), ["data.train"]);
    let written = info(&home.at("run"));
    assert_eq!(
        (&written["changes"][0]["from"], &written["changes"][0]["to"]),
        (&"data".into(), &"../moved/digits".into())
    );
    assert!(Path::new(written["paths"]["data.train"].as_str().unwrap()).is_absolute(), "{written}");
    let report = fs::read_to_string(home.at("run/report.html")).unwrap();
    assert!(report.contains("resumed with changes") && report.contains("../moved/digits"));
    assert!(fs::read_to_string(home.at("run/recipe.toml")).unwrap().contains("../moved/digits"));
}

#[test]
fn a_run_on_a_table_resumes_with_table_and_images_elsewhere_to_the_same_bits() {
    let home = Home::new();
    let mut rows = String::from("name;kind;part\r\n");
    for split in ["train", "val"] {
        for class in ["digit-0", "digit-1", "digit-7"] {
            for image in fs::read_dir(home.at("data").join(split).join(class)).unwrap() {
                let name = image.unwrap().file_name().into_string().unwrap();
                let stem = name.strip_suffix(".png").unwrap();
                rows += &format!("{split}/{class}/{stem};{class};{}\r\n", split.to_uppercase());
            }
        }
    }
    fs::write(home.at("table.csv"), &rows).unwrap();
    let columns = ["--data=table.csv", "--images-root=data", "--split-column=part"];
    let training = |out: &str| {
        let args = ["pretrain", "--recipe=digits", "--epochs=10", "--batch-size=8", "--seed=3", "--out", out];
        let mut command = home.command(&args);
        command.args(["--set", "checkpoints.every_steps=1"]).args(columns);
        command
    };
    let said = succeed(training("undisturbed").output().unwrap());
    assert!(said.contains("images from the column `name`, labels from `kind`"), "{said}");
    home.kill(training("run"), "run");
    fs::create_dir(home.at("moved")).unwrap();
    fs::rename(home.at("data"), home.at("moved/digits")).unwrap();
    fs::rename(home.at("table.csv"), home.at("moved/labels.csv")).unwrap();
    let error = fail(home.resume(&["run"]));
    assert!(error.contains("--data sets data.train"), "{error}");
    let said = succeed(home.resume(&["run", "--data", "moved/labels.csv", "--images-root", "moved/digits"]));
    assert!(said.contains(SAME_BITS) && !said.contains(OTHER_BITS), "{said}");
    assert!(weights(&home.at("run")) == weights(&home.at("undisturbed")));
    assert_eq!(changed(&home.at("run")), ["data.train", "data.images_root"]);
    // Another label is other data.
    let other = rows.replacen("digit-0;TRAIN", "digit-1;TRAIN", 1);
    assert_ne!(other, rows);
    fs::write(home.at("moved/labels.csv"), other).unwrap();
    let error = fail(home.resume(&["run", "--epochs", "11"]));
    assert!(error.contains("is not what this run began with"), "{error}");
}

#[test]
fn a_relative_path_is_found_from_another_folder() {
    let home = Home::new();
    home.kill(home.training("run", 10, &[]), "run");
    fs::create_dir(home.at("elsewhere")).unwrap();
    let said = succeed(home.command(&["resume", "../run"]).current_dir(home.at("elsewhere")).output().unwrap());
    assert!(said.contains(SAME_BITS), "{said}");
    assert!(changed(&home.at("run")).is_empty());
}

#[test]
fn an_image_that_went_bad_can_be_skipped_or_excluded() {
    let home = Home::new();
    for run in ["skip", "exclude"] {
        home.kill(home.training(run, 10, &[]), run);
    }
    fs::write(home.at("data/train/digit-0/003.png"), "bad blocks").unwrap();
    let error = fail(home.resume(&["skip"]));
    assert!(error.contains("003.png") && error.contains(OTHER_BITS), "{error}");
    assert!(error.contains("1 of 72 images that were compared have other contents"), "{error}");
    let said = succeed(home.resume(&["skip", "--bad-samples", "skip"]));
    assert!(said.contains(OTHER_BITS) && said.contains("data.bad_samples is skip, not warn"), "{said}");
    assert_eq!(changed(&home.at("skip")), ["images", "data.bad_samples"]);

    let list = "# the disk's\ndigit-0/003.png\tbad blocks\ntrain/digit-0/003.png\tbad blocks\n";
    fs::write(home.at("bad.txt"), list).unwrap();
    let said = succeed(home.resume(&["exclude", "--exclude", "bad.txt"]));
    assert!(said.contains(OTHER_BITS) && said.contains("data.quarantine is bad.txt, not none"), "{said}");
    let written = info(&home.at("exclude"));
    assert_eq!(written["data"]["train_images"], 47, "{written}");
    assert_eq!(written["status"], "finished");
}

#[test]
fn a_finished_run_continues_for_more_epochs() {
    let home = Home::new();
    let constant = ["-q", "--set", "schedule.decay=constant"];
    succeed(home.training("long", 10, &constant).output().unwrap());
    succeed(home.training("short", 4, &constant).output().unwrap());
    let error = fail(home.resume(&["short"]));
    assert!(error.contains("is finished, after 4 epochs") && error.contains("--epochs N"), "{error}");
    let error = fail(home.resume(&["short", "--epochs", "3"]));
    assert!(error.contains("at least 5"), "{error}");
    let said = succeed(home.resume(&["short", "--epochs", "10"]));
    assert!(said.contains(SAME_BITS), "rates that do not know the end: {said}");
    assert!(weights(&home.at("short")) == weights(&home.at("long")));
    let epochs = fs::read_to_string(home.at("short/epochs.csv")).unwrap();
    assert_eq!(epochs.lines().count(), 11, "{epochs}");

    succeed(home.training("cosine", 2, &["-q"]).output().unwrap());
    let said = succeed(home.resume(&["cosine", "--epochs", "3"]));
    assert!(said.contains("a schedule of 3 epochs, not 2") && said.contains(OTHER_BITS), "{said}");
    assert_eq!(changed(&home.at("cosine")), ["epochs"]);
}

#[test]
fn one_process_at_a_time_trains_a_run() {
    let home = Home::new();
    let mut first = home.training("run", 1000, &[]);
    let mut first = first.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while last_checkpoint(&home.at("run")).is_none() {
        assert!(first.try_wait().unwrap().is_none(), "over too soon");
        std::thread::sleep(Duration::from_millis(2));
    }
    let error = fail(home.resume(&["run"]));
    assert!(error.contains("another process trains in run"), "{error}");
    let _ = first.kill();
    first.wait().unwrap();
    // The lock is gone with the process, however it ended; a recipe that is not valid is refused before it trains.
    let error = fail(home.resume(&["run", "--epochs", "1000001"]));
    assert!(error.contains("epochs is 1000001; the most is 1000000"), "{error}");
}

#[test]
fn a_shortened_table_is_repaired_and_named() {
    let home = Home::new();
    home.kill(home.training("run", 10, &[]), "run");
    let metrics = home.at("run/metrics.csv");
    let text = fs::read(&metrics).unwrap();
    fs::write(&metrics, &text[..text.len() * 2 / 3]).unwrap();
    let said = succeed(home.resume(&["run"]));
    assert!(said.contains("metrics.csv is not as the last checkpoint left it"), "{said}");
    let table = fs::read_to_string(&metrics).unwrap();
    assert!(table.lines().all(|line| line.split(',').count() == 9), "{table}");
}

#[test]
fn weights_that_a_run_started_from_may_be_gone_by_then() {
    let home = Home::new();
    succeed(home.training("source", 1, &["-q"]).output().unwrap());
    let finetune = |out: &str| {
        let args = ["finetune", "--weights=source", "--data=data", "--batch-size=8", "--epochs=10", "--seed=3"];
        let mut command = home.command(&args);
        command.args(["--set", "checkpoints.every_steps=1", "--out", out]);
        command
    };
    succeed(finetune("undisturbed").output().unwrap());
    home.kill(finetune("run"), "run");
    fs::remove_dir_all(home.at("source")).unwrap();
    succeed(home.resume(&["run"]));
    assert!(weights(&home.at("run")) == weights(&home.at("undisturbed")));
}

#[cfg(unix)]
#[test]
fn a_fifo_in_a_run_is_an_error_and_is_not_waited_for() {
    let home = Home::new();
    home.kill(home.training("run", 10, &[]), "run");
    for name in ["run.json", "recipe.toml", "card.json", "metrics.csv", ".lock"] {
        let path = home.at("run").join(name);
        let kept = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let error = fail(home.resume(&["run"]));
        assert!(error.contains(name), "{name}: {error}");
        if name != ".lock" {
            // A report shows what it can read.
            let report = home.command(&["report", "run"]).output().unwrap();
            assert!(report.status.success(), "{name}: {}", stderr(&report));
            let page = fs::read_to_string(home.at("run/report.html")).unwrap();
            assert!(
                page.contains(&format!("{name} cannot be read: it is a pipe, socket or device, not a regular file")),
                "{name}"
            );
        }
        fs::remove_file(&path).unwrap();
        fs::write(&path, kept).unwrap();
    }
    succeed(home.resume(&["run", "-q"]));
}
