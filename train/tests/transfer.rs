//! Frozen stages and linear probes of the `train` binary.
#![allow(clippy::unwrap_used)] // Helpers of tests fail as tests do.

use std::{
    fs,
    path::{Path, PathBuf},
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
    // The recipe freezes nothing.
    assert_eq!(run("recipe", &[]), (false, false));
    assert_eq!(run("later", &["--set", "transfer.freeze=backbone", "--set", "transfer.unfreeze_at=2"]), (false, false));
    assert_eq!(run("backbone", &["--freeze", "backbone"]), (true, true));
    assert_eq!(run("until", &["--freeze", "until=layer2"]), (true, false));
    // In epoch 1 too.
    assert_eq!(run("none", &["--freeze", "none", "--epochs", "1"]), (false, false));
    assert_eq!(run("both", &["--freeze", "backbone", "--unfreeze-at", "3"]), (false, false));
    let recipe = fs::read_to_string(home.at("backbone/recipe.toml")).unwrap();
    assert!(recipe.contains("freeze = \"backbone\"") && !recipe.contains("unfreeze"), "{recipe}");

    for more in [&["--freeze", "none", "--unfreeze-at", "2"][..], &["--set", "transfer.unfreeze_at=2"]] {
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

/// The rows of a split in `metrics.csv`: the epoch, and the top-1 accuracy.
fn rows(run: &Path, split: &str) -> Vec<(usize, f64)> {
    let table = fs::read_to_string(run.join("metrics.csv")).unwrap();
    let rows = table.lines().map(|line| line.split(',').collect::<Vec<_>>()).filter(|row| row[2] == split);
    rows.map(|row| (row[0].parse().unwrap(), row[4].parse().unwrap())).collect()
}

#[test]
fn the_default_follows_the_data_and_explicit_keys_stay() {
    let home = Home::new();
    let run = |out: &str, more: &[&str]| {
        let args = ["finetune", "--weights=source", "--data=data", "--out", out];
        let output = home.command(&[&args[..], more].concat()).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let recipe: toml::Table =
            toml::from_str(&fs::read_to_string(home.at(out).join("recipe.toml")).unwrap()).unwrap();
        (recipe, stderr(&output))
    };
    let (recipe, error) = run("default", &[]);
    // 72 images: nine steps of eight images in an epoch, 240 at least.
    assert_eq!((&recipe["batch_size"], &recipe["epochs"]), (&8.into(), &27.into()), "{recipe}");
    let transfer = &recipe["transfer"];
    let body = transfer["body_rate"].as_float().unwrap();
    assert!((1e-3..=0.34).contains(&body), "{transfer}");
    assert_eq!((&transfer["head"], &transfer["batchnorm"]), (&"probe".into(), &"freeze".into()));
    assert_eq!(recipe["checkpoints"]["patience"], 9.into());
    assert_eq!(recipe["images"]["train"][0]["scale"][0].as_float().unwrap(), 0.6);
    let decisions = info(&home.at("default"))["decisions"].clone();
    for what in ["stay frozen: there are 72", "27 epochs of 9 steps, mild crops", "of 6 settings", "a range test of"] {
        assert!(error.contains(what) && decisions.to_string().contains(what), "{what}: {error}");
    }
    // The classifier alone is validated before the first step, and as good as a probe.
    let valid = rows(&home.at("default"), "valid");
    assert_eq!((valid[0].0, rows(&home.at("default"), "train")[0].0), (0, 1));
    assert!(valid[0].1 > 60.0, "{valid:?}");
    assert!(fs::read_to_string(home.at("default/report.html")).unwrap().contains("Decided from the data"));

    let explicit = ["--epochs=2", "--batch-size=4", "--lr=0.02", "--patience=0", "--batchnorm=train"];
    let (recipe, error) =
        run("explicit", &[&explicit[..], &["--set", "images.train=[{name=\"CenterCrop\",size=16}]"]].concat());
    assert_eq!((&recipe["batch_size"], &recipe["epochs"]), (&4.into(), &2.into()));
    assert_eq!(recipe["schedule"]["learning_rate"].as_float().unwrap(), 0.02);
    assert_eq!((&recipe["transfer"]["batchnorm"], &recipe["transfer"]["body_rate"]), (&"train".into(), &0.1.into()));
    assert!(recipe.get("checkpoints").is_none_or(|table| table.get("patience").is_none()), "{recipe}");
    assert!(!error.contains("range test") && !recipe["images"]["train"].to_string().contains("RandomResizedCrop"));

    // A run that was killed chooses nothing again.
    let (recipe, error) = run("again", &["--recipe", home.at("default/recipe.toml").to_str().unwrap()]);
    assert_eq!(
        recipe.to_string(),
        fs::read_to_string(home.at("default/recipe.toml")).unwrap().parse::<toml::Table>().unwrap().to_string()
    );
    assert!(!error.contains("range test"), "{error}");
    let all = |run: &str| common::weights(&home.at(run));
    assert!(all("default") == all("again"), "the recipe alone repeats the run");
}

#[test]
fn a_probe_chooses_what_is_not_given() {
    let home = Home::new();
    let probe = |out: &str, more: &[&str]| {
        let args = ["finetune", "--recipe=linear-probe", "--weights=source", "--data=data", "--out", out];
        let output = home.command(&[&args[..], more].concat()).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let recipe: toml::Table =
            toml::from_str(&fs::read_to_string(home.at(out).join("recipe.toml")).unwrap()).unwrap();
        let decay = recipe["optimizer"]["weight_decay"].as_float().unwrap();
        let rate = recipe["schedule"]["learning_rate"].as_float().unwrap();
        (
            rate,
            decay,
            recipe["epochs"].as_integer().unwrap(),
            recipe["batch_size"].as_integer().unwrap(),
            stderr(&output),
        )
    };
    let (rate, decay, epochs, batch, error) = probe("chosen", &[]);
    assert!([1e-3, 3e-3, 1e-2].contains(&rate) && [0.01, 1.0].iter().any(|known| (known - decay).abs() < 1e-6));
    assert_eq!((epochs, batch), (100, 16), "400 steps");
    assert!(error.contains("of 6 settings the best"), "{error}");
    let (rate, _, epochs, _, error) = probe("rate", &["--lr", "0.002", "--epochs", "5"]);
    assert!(rate == 0.002 && epochs == 5 && error.contains("of 2 settings"), "{error}");
    let (.., error) = probe("both", &["--lr", "0.002", "--set", "optimizer.weight_decay=0.1", "--epochs", "5"]);
    assert!(!error.contains("settings"), "{error}");
}

/// Replaces every running mean by zeros and every running variance by ones.
fn reset_running_statistics(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut layers = 0;
    for (name, tensor) in &header {
        let value: f32 = match name {
            name if name.ends_with("running_mean") => 0.0,
            name if name.ends_with("running_var") => 1.0,
            _ => continue,
        };
        let [start, end] = [0, 1].map(|end| 8 + length + tensor["data_offsets"][end].as_u64().unwrap() as usize);
        bytes[start..end].chunks_exact_mut(4).for_each(|float| float.copy_from_slice(&value.to_le_bytes()));
        layers += 1;
    }
    assert_eq!(layers, 2 * 19);
    fs::write(file, bytes).unwrap();
}

#[test]
fn running_statistics_that_do_not_fit_are_noticed_and_recomputed() {
    let home = Home::new();
    let misfit = "the running statistics of batch normalization do not fit the images";
    let probe = |out: &str, more: &[&str]| {
        let output = home.finetune(out, &[&["--recipe", "linear-probe", "--epochs", "60"], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let top1 = info(&home.at(out))["result"]["last"]["top1"].as_f64().unwrap();
        (top1, stderr(&output))
    };
    let (whole, error) = probe("whole", &[]);
    assert!(!error.contains(misfit), "{error}");
    let statistics = |run: &str| tensor(&home.at(run).join("last.safetensors"), "layer2.0.bn1.running_var");
    let before = statistics("whole");

    reset_running_statistics(&home.at("source/weights.safetensors"));
    let (_, error) = probe("reset", &[]);
    assert_eq!(error.matches(misfit).count(), 1, "{error}");
    assert!(error.contains("in 19 of 19 layers they are mean 0 and variance 1"), "{error}");
    assert!(error.contains("--recalibrate-batchnorm"), "{error}");

    let (recalibrated, error) = probe("recalibrated", &["--recalibrate-batchnorm"]);
    assert!(!error.contains(misfit) && error.contains("recomputed over 72 training images"), "{error}");
    assert!((recalibrated - whole).abs() < 12.0, "{recalibrated} and {whole}");
    let floats = |bytes: Vec<u8>| -> Vec<f32> {
        bytes.chunks_exact(4).map(|float| f32::from_le_bytes(float.try_into().unwrap())).collect()
    };
    let (before, after) = (floats(before), floats(statistics("recalibrated")));
    // Three classes of ten are other images than all.
    assert!(before.iter().zip(&after).all(|(a, b)| (a / b).ln().abs() < 1.5), "{before:?} {after:?}");

    // The same in a fine-tuning, which starts from them.
    let output = home.finetune("tuned", &["--recalibrate-batchnorm"]);
    assert!(output.status.success() && stderr(&output).contains("recomputed over 72"), "{}", stderr(&output));
    assert!(statistics("tuned") == statistics("recalibrated"), "frozen with few images");
}

#[test]
fn a_run_stops_early_and_says_which_epoch_it_kept() {
    let home = Home::new();
    // A rate that changes nothing: no epoch is better than the first.
    let output = home.finetune("level", &["--epochs", "9", "--lr", "1e-9", "--patience", "2"]);
    let error = stderr(&output);
    assert!(output.status.success(), "{error}");
    assert!(error.contains("stopping early; epoch 0 is kept"), "{error}");
    assert!(
        error.contains("the best epoch, 0, is one before the stages before the classifier were trained"),
        "{error}"
    );
    let result = &info(&home.at("level"))["result"];
    assert_eq!(result["best_epoch"], 0);
    assert_eq!(rows(&home.at("level"), "valid").len(), 3);
    // Without patience, all epochs.
    let output = home.finetune("all", &["--lr", "1e-9", "--patience", "0"]);
    assert!(output.status.success() && rows(&home.at("all"), "valid").len() == 4, "{}", stderr(&output));
}
