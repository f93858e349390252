//! What users' files and habits do to trainings: few images, runs among the data, terminals that show only lines.
#![allow(clippy::unwrap_used)] // Helpers of tests fail as tests do.

use std::{fs, path::Path, process::Command, process::Stdio};

use common::{digit_folders, info};
use tempfile::TempDir;

mod common;

const QUICK: [&str; 7] = ["pretrain", "--arch", "resnet20", "--size", "16", "--epochs", "1"];

fn train(folder: &Path, args: &[&str]) -> (Option<i32>, String) {
    let mut command = common::train();
    command.args(QUICK).args(args).env("HOME", folder).current_dir(folder);
    let output = command.output().expect("train runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn fewer_images_than_a_batch_are_one_step() {
    let home = TempDir::new().unwrap();
    digit_folders(&home.path().join("data"), &[3, 7], 4);
    let (code, stderr) = train(home.path(), &["--data", "data", "--batch-size", "32", "--out", "run"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("8 training images are fewer than a batch of 32"), "{stderr}");
    assert!(stderr.contains("1 epochs of 1 steps"), "{stderr}");
    let table = fs::read_to_string(home.path().join("run/metrics.csv")).unwrap();
    assert_eq!(table.lines().filter(|line| line.contains(",train_step,")).count(), 1, "{table}");
    let (code, stderr) = train(home.path(), &["--data", "data", "--batch-size", "8", "--out", "full"]);
    assert!(code == Some(0) && !stderr.contains("fewer than a batch"), "{stderr}");
}

#[test]
fn runs_in_the_folder_of_the_data_are_no_class() {
    let home = TempDir::new().unwrap();
    digit_folders(home.path(), &[3, 7], 8);
    let data = home.path().join("train");
    for run in ["artifacts/data-resnet20-001", "artifacts/data-resnet20-002"] {
        let (code, stderr) = train(&data, &["--data", ".", "--batch-size", "8"]);
        assert_eq!(code, Some(0), "{stderr}");
        let info = info(&data.join(run));
        assert_eq!(info["data"]["classes"], 2, "{run}: {info}");
        assert_eq!(info["data"]["train_images"], 12, "{run}: {info}");
    }
}

#[test]
fn an_unreadable_image_is_stopped_at_with_the_remedy() {
    let home = TempDir::new().unwrap();
    digit_folders(&home.path().join("data"), &[3, 7], 8);
    fs::write(home.path().join("data/train/digit-3/bad.png"), "").unwrap();
    let (code, stderr) = train(home.path(), &["--data", "data", "--batch-size", "17", "--out", "run"]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("it is empty") && stderr.contains("--bad-samples skip"), "{stderr}");
    let mut resume = common::train();
    resume.args(["resume", "run", "--bad-samples", "skip"]).env("HOME", home.path()).current_dir(home.path());
    let output = resume.output().expect("train runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_terminal_that_shows_lines_only_gets_no_dashboard() {
    let home = TempDir::new().unwrap();
    digit_folders(&home.path().join("data"), &[3, 7], 8);
    let program = env!("CARGO_BIN_EXE_train");
    let line = format!("'{program}' {} --data data --batch-size 8 --out run", QUICK.join(" "));
    let mut terminal = Command::new("script");
    terminal.args(["-qfec", &line, "/dev/null"]).env("TERM", "dumb").env("HOME", home.path());
    terminal.env("HEARTH_BACKEND", "flex").current_dir(home.path()).stdin(Stdio::null());
    let Ok(output) = terminal.output() else {
        return eprintln!("skipped: there is no `script`");
    };
    let screen = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && screen.contains("epoch 1/1"), "{screen}");
    assert!(!screen.contains('\u{1b}'), "{screen:?}");
}

#[test]
fn a_training_split_alone_is_told_of_the_split_beside_it() {
    let home = TempDir::new().unwrap();
    digit_folders(&home.path().join("data"), &[3, 7], 8);
    let (code, stderr) = train(home.path(), &["--data", "data/train", "--batch-size", "8", "--out", "run"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("`val` beside it is not used"), "{stderr}");
    let (code, stderr) =
        train(home.path(), &["--data", "data/train", "--val", "data/val", "--batch-size", "8", "--out", "both"]);
    assert!(code == Some(0) && !stderr.contains("beside it"), "{stderr}");
}
