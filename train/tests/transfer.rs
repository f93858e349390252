//! Frozen stages and linear probes of the `train` binary.
#![allow(clippy::unwrap_used)] // Helpers of tests fail as tests do.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use common::{digit_folders, info, tensor};
use tempfile::TempDir;

mod common;

/// A home with a trained network in `source` and three classes of digits in `data`.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(TempDir::new().unwrap());
        digit_folders(&home.at("data"), &[3, 5, 8], 24);
        assert!(home.command(&["--epochs=1", "-q", "--out=source"]).status().unwrap().success());
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

    fn finetune(&self, out: &str, more: &[&str]) -> Output {
        let args = ["finetune", "--weights=source", "--data=data", "--batch-size=8", "--out", out];
        let epochs = if more.contains(&"--epochs") { &[][..] } else { &["--epochs", "3"] };
        self.command(&[&args[..], epochs, more].concat()).output().unwrap()
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_a_flag_freezes_stays_frozen_whatever_the_recipe_says() {
    let home = Home::new();
    let run = |out: &str, more: &[&str]| {
        let output = home.finetune(out, more);
        assert!(output.status.success(), "{}", stderr(&output));
        let is_kept = |name: &str| {
            tensor(&home.at(out).join("last.safetensors"), name) == tensor(&home.at("source/weights.safetensors"), name)
        };
        (is_kept("conv1.weight"), is_kept("layer3.2.conv2.weight"))
    };
    // The recipe unfreezes everything in epoch 2.
    assert_eq!(run("recipe", &[]), (false, false));
    assert_eq!(run("backbone", &["--freeze", "backbone"]), (true, true));
    assert_eq!(run("until", &["--freeze", "until=layer2"]), (true, false));
    // In epoch 1 too.
    assert_eq!(run("none", &["--freeze", "none", "--epochs", "1"]), (false, false));
    assert_eq!(run("both", &["--freeze", "backbone", "--unfreeze-at", "3"]), (false, false));
    let recipe = fs::read_to_string(home.at("backbone/recipe.toml")).unwrap();
    assert!(recipe.contains("freeze = \"backbone\"") && !recipe.contains("unfreeze"), "{recipe}");

    for more in [&["--freeze", "none", "--unfreeze-at", "2"][..], &["--set", "transfer.freeze=none"]] {
        let output = home.finetune("refused", more);
        let error = stderr(&output);
        assert!(error.contains("transfer.unfreeze_at unfreezes nothing") && output.status.code() == Some(1), "{error}");
        assert!(!home.at("refused").exists());
    }
}

#[test]
fn a_probe_reports_unreadable_images_failures_and_throughput() {
    let home = Home::new();
    let probe = |out: &str, more: &[&str]| home.finetune(out, &[&["--recipe", "linear-probe", "-q"], more].concat());
    let all = probe("all", &[]);
    assert!(all.status.success(), "{}", stderr(&all));
    let result = &info(&home.at("all"))["result"];
    let speed = result["images_per_second"].as_f64().unwrap();
    assert!(speed > 1.0 && 72.0 / speed <= result["seconds"].as_f64().unwrap(), "{result}");
    let again = probe("again", &[]);
    assert!(again.status.success(), "{}", stderr(&again));
    assert_eq!(info(&home.at("again"))["result"]["images_per_second"], 0.0, "no image was read");

    for name in ["train/digit-3/000.png", "train/digit-5/001.png", "val/digit-8/024.png"] {
        fs::write(home.at("data").join(name), "no image").unwrap();
    }
    // Other images of the same names would have the features of the cache.
    fs::remove_dir_all(home.at("cache")).unwrap();
    let strict = probe("strict", &[]);
    let error = stderr(&strict);
    assert!(strict.status.code() == Some(1) && error.contains("digit-3/000.png"), "{error}");
    let failed = info(&home.at("strict"));
    assert!(failed["status"] == "failed" && failed["finished"].is_string(), "{failed}");

    for run in ["skipped", "once-more"] {
        let skipped = probe(run, &["--bad-samples", "skip"]);
        let error = stderr(&skipped);
        assert!(skipped.status.success() && error.contains("3 images could not be read or decoded"), "{error}");
        let info = info(&home.at(run));
        assert_eq!((&info["status"], &info["result"]["bad_samples"]), (&"finished".into(), &3.into()), "{info}");
        let listed = fs::read_to_string(home.at(run).join("bad_samples.csv")).unwrap();
        assert!(listed.lines().count() == 4 && listed.contains("024.png"), "{listed}");
        let report = fs::read_to_string(home.at(run).join("report.html")).unwrap();
        assert!(report.contains("3 samples could not be read"));
    }
}
