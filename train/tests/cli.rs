//! The `train` binary as its users run it.
#![allow(clippy::unwrap_used)] // Helpers of tests fail as tests do.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use common::{digit_folders, distance, last_checkpoint, losses, weights};
use tempfile::TempDir;

mod common;

/// `train` with a home of its own, so that no cache of the user's is touched.
fn command(home: &Path, args: &[&str]) -> Command {
    let mut command = common::train();
    command.args(args).env("HOME", home).env("XDG_CACHE_HOME", home.join("cache")).current_dir(home);
    // Burn's default device may be another than `--backend` names: asked for, it panics. Burn itself names it when an
    // optimizer's record is loaded, without using it.
    if args[0] != "resume" {
        command.env("BURN_DEVICE", "none");
    }
    command
}

fn run(home: &Path, args: &[&str]) -> Output {
    command(home, args).output().expect("train runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs and must succeed; standard output.
fn succeed(home: &Path, args: &[&str]) -> String {
    let output = run(home, args);
    assert!(output.status.success(), "{args:?}\n{}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Runs and must fail with the code; standard error.
fn fail(home: &Path, code: i32, args: &[&str]) -> String {
    let output = run(home, args);
    assert_eq!(output.status.code(), Some(code), "{args:?}\n{}\n{}", text(&output.stdout), text(&output.stderr));
    let error = text(&output.stderr);
    assert!(!error.contains("panicked"), "{error}");
    error
}

/// A training of a few seconds with everything on that has a state: Mixup, CutMix, an average of the weights,
/// accumulation, momentum, checkpoints inside an epoch.
fn eventful(out: &str) -> Vec<String> {
    let mut args: Vec<String> =
        ["pretrain", "--epochs", "3", "--batch-size", "24", "--quiet", "--seed", "5", "--out", out]
            .map(String::from)
            .to_vec();
    for set in [
        "images.mix=[{ name = \"Mixup\", alpha = 0.3 }, { name = \"CutMix\" }]",
        "ema.decay=0.9",
        "ema.every=2",
        "accumulate=2",
        "checkpoints.every_steps=3",
        "loss.label_smoothing=0.1",
        "optimizer.clip_norm=2.0",
    ] {
        args.extend(["--set".to_string(), set.to_string()]);
    }
    args
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// Everything of a run that must not depend on how often it was interrupted.
fn fingerprint(run: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> =
        ["weights.safetensors", "last.safetensors", "last-ema.safetensors", "predictions.csv"]
            .map(|name| (name.to_string(), fs::read(run.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))))
            .to_vec();
    // Rows without the last cell, the speed.
    let metrics = fs::read_to_string(run.join("metrics.csv")).unwrap();
    let rows: Vec<&str> = metrics.lines().map(|line| line.rsplit_once(',').unwrap().0).collect();
    files.push(("metrics.csv".into(), rows.join("\n").into_bytes()));
    // The safetensors carry the card, whose origin names the run's folder.
    files.into_iter().map(|(name, bytes)| (name, without_card(bytes))).collect()
}

fn without_card(bytes: Vec<u8>) -> Vec<u8> {
    if bytes.get(8) != Some(&b'{') {
        return bytes;
    }
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header..].to_vec()
}

fn assert_same(run: &Path, expected: &[(String, Vec<u8>)], what: &str) {
    for ((name, bytes), (_, wanted)) in fingerprint(run).iter().zip(expected) {
        if bytes != wanted && name.ends_with(".csv") {
            let lines = |bytes: &[u8]| text(bytes).lines().map(String::from).collect::<Vec<_>>();
            let (lines, wanted) = (lines(bytes), lines(wanted));
            let at = lines.iter().zip(&wanted).position(|(a, b)| a != b).unwrap_or(lines.len().min(wanted.len()));
            println!("line {}: {:?}, undisturbed {:?}", at + 1, lines.get(at), wanted.get(at));
        }
        assert!(bytes == wanted, "{what}: {name} differs from that of the undisturbed run");
    }
}

/// A number from the clock, told on a failure by the test's output.
fn random_below(limit: u64) -> u64 {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    u64::from(nanos) / 1000 % limit
}

fn start(home: &Path, args: &[&str]) -> Child {
    command(home, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("train starts")
}

#[cfg(unix)]
fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().expect("kill runs");
    assert!(status.success());
}

#[cfg(unix)]
#[test]
fn a_run_that_is_killed_at_any_moment_ends_with_the_same_bits() {
    let home = TempDir::new().unwrap();
    let undisturbed = home.path().join("undisturbed");
    let began = std::time::Instant::now();
    succeed(home.path(), &strs(&eventful(undisturbed.to_str().unwrap())));
    let whole = began.elapsed().as_millis() as u64;
    let expected = fingerprint(&undisturbed);

    let run = home.path().join("killed");
    let args = eventful(run.to_str().unwrap());
    // When the device's results are read back must not matter, nor whether that changes from one start to the next.
    let start = |args: &[&str], kills: u64| {
        let mut command = command(home.path(), args);
        command.env("HEARTH_READBACK", if kills.is_multiple_of(2) { "log" } else { "step" });
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("train starts")
    };
    let (mut child, mut kills) = (start(&strs(&args), 0), 0);
    while kills < 5 {
        // So that five kills fall into the run's length, more or less.
        let millis = 100 + random_below(whole / 4);
        println!("kill {} after {millis} ms", kills + 1);
        std::thread::sleep(Duration::from_millis(millis));
        if child.try_wait().unwrap().is_some() {
            break;
        }
        signal(&child, "KILL");
        child.wait().unwrap();
        kills += 1;
        if !run.join("recipe.toml").exists() || !run.join("run.json").exists() {
            // Killed before the run began: its folder may be there, empty or with a temporary file.
            let _ = fs::remove_dir_all(&run);
            child = start(&strs(&args), kills);
        } else {
            child = start(&["resume", run.to_str().unwrap(), "--quiet"], kills);
        }
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(kills >= 2, "the run was over after {kills} kills; it is too short to test anything");
    assert_same(&run, &expected, &format!("killed {kills} times"));
}

/// Between an epoch's last step and its record there is a checkpoint too, as long as the validation takes.
#[test]
fn a_run_that_is_killed_in_its_validation_ends_with_the_same_bits() {
    let home = TempDir::new().unwrap();
    let undisturbed = home.path().join("undisturbed");
    succeed(home.path(), &strs(&eventful(undisturbed.to_str().unwrap())));
    let run = home.path().join("killed");
    let mut child = start(home.path(), &strs(&eventful(run.to_str().unwrap())));
    // 1442 images, 24 a batch, two batches a step: 30 steps an epoch.
    let last = run.join("checkpoints/step-00000030/state.json");
    while !last.exists() {
        assert!(child.try_wait().unwrap().is_none(), "over too soon");
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = child.kill();
    child.wait().unwrap();
    let state: serde_json::Value = serde_json::from_slice(&fs::read(last).unwrap()).unwrap();
    println!("killed at epoch {}, batch {}", state["epoch"], state["batch"]);
    succeed(home.path(), &["resume", run.to_str().unwrap(), "--quiet"]);
    assert_same(&run, &fingerprint(&undisturbed), "killed in its validation");
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_says_how_to_go_on_and_loses_nothing() {
    let home = TempDir::new().unwrap();
    let undisturbed = home.path().join("undisturbed");
    succeed(home.path(), &strs(&eventful(undisturbed.to_str().unwrap())));
    let run = home.path().join("interrupted");
    let child = start(home.path(), &strs(&eventful(run.to_str().unwrap())));
    while !run.join("checkpoints").exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    signal(&child, "INT");
    let output = child.wait_with_output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{error}");
    assert!(error.contains("finishing the step") && error.contains("resume"), "{error}");
    assert!(fs::read_to_string(run.join("run.json")).unwrap().contains("\"interrupted\""));
    succeed(home.path(), &["resume", run.to_str().unwrap(), "--quiet"]);
    assert_same(&run, &fingerprint(&undisturbed), "after Ctrl-C");
    let error = fail(home.path(), 1, &["resume", run.to_str().unwrap()]);
    assert!(error.contains("is finished"), "{error}");
}

#[test]
fn a_run_s_recipe_alone_repeats_it() {
    let home = TempDir::new().unwrap();
    let (first, second) = (home.path().join("first"), home.path().join("second"));
    let mut args = eventful(first.to_str().unwrap());
    let epochs = args.iter().position(|arg| arg == "--epochs").unwrap();
    args[epochs + 1] = "1".into();
    args.extend(["--workers".into(), "0".into()]);
    succeed(home.path(), &strs(&args));
    let recipe = first.join("recipe.toml");
    succeed(
        home.path(),
        &["pretrain", "--recipe", recipe.to_str().unwrap(), "--out", second.to_str().unwrap(), "-q", "--workers", "2"],
    );
    assert_same(&second, &fingerprint(&first), "from the recipe");
}

#[test]
fn the_same_run_twice_writes_the_same_bytes() {
    let files = [(); 2].map(|()| {
        // The card names the run's folder, so both have the same name.
        let home = TempDir::new().unwrap();
        let mut args = eventful("run");
        let epochs = args.iter().position(|arg| arg == "--epochs").unwrap();
        args[epochs + 1] = "1".into();
        succeed(home.path(), &strs(&args));
        let names = ["weights.safetensors", "last.safetensors", "last-ema.safetensors"];
        [&names[..], &["card.json", "recipe.toml", "predictions.csv"]]
            .concat()
            .into_iter()
            .map(|name| (name, fs::read(home.path().join("run").join(name)).unwrap()))
            .collect::<Vec<_>>()
    });
    for ((name, first), (_, second)) in files[0].iter().zip(&files[1]) {
        assert!(first == second, "{name} differs");
    }
}

#[test]
fn a_run_goes_on_as_it_began_or_not_at_all() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("data");
    digit_folders(&data, &[0, 1, 2], 16);
    let run = home.path().join("run");
    let begin = |extra: &[&str]| {
        let mut args =
            vec!["pretrain", "--recipe", "digits", "--data", data.to_str().unwrap(), "--batch-size", "8", "-q"];
        args.extend(["--epochs", "10", "--set", "checkpoints.every_steps=1", "--out", run.to_str().unwrap()]);
        args.extend(extra);
        args.iter().map(|arg| arg.to_string()).collect::<Vec<_>>()
    };
    let mut child = start(home.path(), &strs(&begin(&[])));
    while last_checkpoint(&run).is_none() {
        assert!(child.try_wait().unwrap().is_none(), "over too soon");
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    child.wait().unwrap();

    let recipe = fs::read_to_string(run.join("recipe.toml")).unwrap();
    fs::write(run.join("recipe.toml"), recipe.replace("learning_rate = 0.1", "learning_rate = 0.2")).unwrap();
    let error = fail(home.path(), 1, &["resume", run.to_str().unwrap()]);
    assert!(error.contains("- learning_rate = 0.1") && error.contains("+ learning_rate = 0.2"), "{error}");
    fs::write(run.join("recipe.toml"), recipe.replace("resnet20", "plain20")).unwrap();
    let error = fail(home.path(), 1, &["resume", run.to_str().unwrap()]);
    assert!(error.contains("+ architecture = \"plain20\""), "{error}");
    fs::write(run.join("recipe.toml"), &recipe).unwrap();

    let image = data.join("train/digit-0/000.png");
    let bytes = fs::read(&image).unwrap();
    fs::remove_file(&image).unwrap();
    let error = fail(home.path(), 1, &["resume", run.to_str().unwrap()]);
    assert!(error.contains("is not what this run began with"), "{error}");
    fs::write(&image, bytes).unwrap();
    succeed(home.path(), &["resume", run.to_str().unwrap(), "--quiet"]);
}

#[test]
fn a_damaged_checkpoint_is_told_and_the_one_before_it_taken() {
    let home = TempDir::new().unwrap();
    let run = home.path().join("run");
    let mut child = start(home.path(), &strs(&eventful(run.to_str().unwrap())));
    let checkpoints = || {
        let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
        let mut names: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| !is_hidden(path)).collect();
        names.sort();
        names
    };
    while checkpoints().len() < 2 {
        assert!(child.try_wait().unwrap().is_none(), "over too soon");
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    child.wait().unwrap();
    let last = checkpoints().pop().unwrap();
    let mut bytes = fs::read(last.join("network.bpk")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(last.join("network.bpk"), bytes).unwrap();
    let output = run_output(home.path(), &["resume", run.to_str().unwrap(), "--quiet"]);
    let error = text(&output.stderr);
    assert!(output.status.success() && error.contains("is damaged"), "{error}");
}

fn run_output(home: &Path, args: &[&str]) -> Output {
    run(home, args)
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

#[test]
fn weights_are_carried_over_to_new_classes() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("data");
    digit_folders(&data, &[3, 5, 8], 24);
    let source = home.path().join("source");
    succeed(home.path(), &["--epochs", "4", "-q", "--out", source.to_str().unwrap()]);

    // The whole network.
    let tuned = home.path().join("tuned");
    let base =
        ["finetune", "--weights", source.to_str().unwrap(), "--data", data.to_str().unwrap(), "--batch-size", "8"];
    let mut args = base.to_vec();
    args.extend(["--epochs", "2", "-q", "--out", tuned.to_str().unwrap()]);
    succeed(home.path(), &args);
    let card: serde_json::Value = serde_json::from_slice(&fs::read(tuned.join("card.json")).unwrap()).unwrap();
    assert_eq!(card["classes"], serde_json::json!(["digit-3", "digit-5", "digit-8"]));
    assert_eq!(card["architecture"], "resnet20");
    assert_eq!(card["preprocess"]["input_size"], serde_json::json!([16, 16]));

    // Its recipe alone repeats it, also where the images are not as the weights' card says.
    let [sized, again] = ["sized", "again"].map(|name| home.path().join(name));
    let mut args = base.to_vec();
    args.extend(["--epochs", "1", "--size", "20", "-q", "--out", sized.to_str().unwrap()]);
    succeed(home.path(), &args);
    let recipe = sized.join("recipe.toml");
    succeed(home.path(), &["finetune", "--recipe", recipe.to_str().unwrap(), "-q", "--out", again.to_str().unwrap()]);
    let last = |run: &Path| without_card(fs::read(run.join("last.safetensors")).unwrap());
    assert!(last(&sized) == last(&again));
    let recipes = [&sized, &again].map(|run| fs::read_to_string(run.join("recipe.toml")).unwrap());
    assert!(recipes[0] == recipes[1] && recipes[0].contains("crop = 20"), "{}", recipes[1]);

    // The classifier on fixed features, twice: the second time from the cache, to the same bits.
    let probes = ["probe-1", "probe-2"].map(|name| home.path().join(name));
    for probe in &probes {
        let mut args = base[..5].to_vec();
        args.extend(["--recipe", "linear-probe", "--epochs", "40", "-q", "--out", probe.to_str().unwrap()]);
        let printed = succeed(home.path(), &args);
        assert!(printed.contains("best epoch"), "{printed}");
    }
    // Of the training images in both sizes, and of the validation images in one.
    assert_eq!(fs::read_dir(home.path().join("cache/hearth/features")).unwrap().count(), 3);
    let weights = probes.map(|probe| without_card(fs::read(probe.join("last.safetensors")).unwrap()));
    assert!(weights[0] == weights[1]);
    let results = fs::read_to_string(home.path().join("results.csv")).unwrap();
    assert_eq!(results.lines().count(), 7, "{results}");
    let error = fail(home.path(), 1, &["resume", home.path().join("probe-1").to_str().unwrap()]);
    assert!(error.contains("is a linear probe"), "{error}");
}

#[test]
fn auto_reports_the_probe_beside_the_whole_network() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("data");
    digit_folders(&data, &[3, 5, 8], 24);
    let source = home.path().join("source");
    succeed(home.path(), &["--epochs", "3", "-q", "--out", source.to_str().unwrap()]);
    let printed = succeed(
        home.path(),
        &[
            "finetune",
            "--auto",
            "--weights",
            source.to_str().unwrap(),
            "--data",
            data.to_str().unwrap(),
            "--batch-size",
            "8",
            "--epochs",
            "3",
            "-q",
        ],
    );
    assert!(printed.contains("linear probe: top-1") && printed.contains("whole network: top-1"), "{printed}");
    assert!(printed.contains("95 % interval") && printed.lines().any(|line| line.starts_with("best: ")), "{printed}");
    let comparison = printed.lines().find_map(|line| line.strip_prefix("comparison: ")).unwrap();
    assert!(home.path().join(comparison).is_file());
}

#[test]
fn stages_that_thaw_one_by_one_resume_to_the_same_bits() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("data");
    digit_folders(&data, &[3, 5, 8], 24);
    let source = home.path().join("source");
    succeed(home.path(), &["--epochs", "2", "-q", "--out", source.to_str().unwrap()]);
    let begin = |out: &Path| {
        let mut args = ["finetune", "--weights", source.to_str().unwrap(), "--data", data.to_str().unwrap()].to_vec();
        args.extend(["--batch-size", "8", "--epochs", "4", "-q", "--freeze", "backbone", "--unfreeze-at", "2"]);
        args.extend(["--unfreeze-per-epoch", "2", "--layer-decay", "0.7", "--set", "checkpoints.every_steps=2"]);
        args.extend(["--set", "ema.decay=0.9", "--out", out.to_str().unwrap()]);
        args.iter().map(|arg| arg.to_string()).collect::<Vec<_>>()
    };
    let undisturbed = home.path().join("undisturbed");
    succeed(home.path(), &strs(&begin(&undisturbed)));
    let expected = fingerprint(&undisturbed);
    // Nine steps an epoch: inside each epoch, and at the end of one.
    for step in [4, 9, 14, 22, 32] {
        let run = home.path().join(format!("killed-{step}"));
        let mut child = start(home.path(), &strs(&begin(&run)));
        let reached = || last_checkpoint(&run).is_some_and(|last| last >= step);
        while !reached() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = child.kill();
        child.wait().unwrap();
        let output = run_output(home.path(), &["resume", run.to_str().unwrap(), "-q"]);
        let error = text(&output.stderr);
        assert!(output.status.success() || error.contains("is finished"), "{error}");
        assert_same(&run, &expected, &format!("killed at step {step}"));
    }
}

#[test]
fn everything_that_a_recipe_can_say_trains() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("data");
    digit_folders(&data, &[0, 1, 7], 24);
    let best = |name: &str, sets: &[&str]| {
        let mut args =
            ["pretrain", "--recipe", "digits", "--data", data.to_str().unwrap(), "--batch-size", "8"].to_vec();
        let out = home.path().join(name);
        args.extend(["--epochs", "7", "--lr", "0.05", "-q", "--out", out.to_str().unwrap()]);
        sets.iter().for_each(|set| args.extend(["--set", set]));
        let printed = succeed(home.path(), &args);
        let line = printed.lines().find(|line| line.contains("best epoch")).unwrap();
        line.split(": ").nth(1).unwrap().split(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let plain = best("plain", &[]);
    let cases: [(&str, &[&str]); 15] = [
        ("windowed", &["data.order=windowed"]),
        ("bf16", &["network.dtype=bf16"]),
        ("f16", &["network.dtype=f16"]),
        ("checkpointing", &["network.gradient_checkpointing=true"]),
        ("sizes", &["images.sizes=[{ epoch = 1, size = 12 }, { epoch = 4, size = 16 }]"]),
        ("balanced", &["loss.class_weights=balanced", "data.balanced=true"]),
        ("balance", &["data.balance=0.5", "loss.class_weights={ digit-0 = 2.0, digit-7 = 0.5 }"]),
        ("focal", &["loss.name=focal", "loss.gamma=1.5", "loss.class_weights=[1.0, 2.0, 1.0]"]),
        ("repeats", &["data.repeats=2"]),
        ("bce", &["loss.name=bce"]),
        ("adamw", &["optimizer={ name = \"adamw\", weight_decay = 0.01 }", "schedule.learning_rate=0.003"]),
        ("lamb", &["optimizer={ name = \"lamb\", weight_decay = 0.01 }", "schedule.learning_rate=0.02"]),
        ("rmsprop", &["optimizer={ name = \"rmsprop\" }", "schedule.learning_rate=0.003"]),
        ("nesterov", &["optimizer.nesterov=true", "optimizer.decay_norms_and_biases=false"]),
        ("one-cycle", &["schedule.decay=one_cycle", "schedule.warmup_epochs=0"]),
    ];
    for (name, sets) in cases {
        let top1 = best(name, sets);
        assert!(top1 > 60.0, "{name}: {top1} %; plain {plain} %");
    }
    let recipe = text(&fs::read(home.path().join("balance/recipe.toml")).unwrap());
    assert!(recipe.contains("balance = 0.5") && recipe.contains("digit-7 = 0.5"), "{recipe}");
    // Three classes are always among the first five: no epoch is better than the first.
    best("patience", &["checkpoints.patience=2", "checkpoints.best=top5"]);
    let epochs = fs::read_to_string(home.path().join("patience/epochs.csv")).unwrap();
    assert_eq!(epochs.lines().count(), 1 + 3, "{epochs}");
    let weights = |name: &str| without_card(fs::read(home.path().join(name).join("last.safetensors")).unwrap());
    assert!(weights("checkpointing") == weights("plain"), "what is computed again is the same");
    assert!(weights("bf16") != weights("plain") && weights("f16") != weights("bf16"), "other precisions");
    assert!(text(&fs::read(home.path().join("f16/run.json")).unwrap()).contains("\"dtype\": \"f16\""));
}

/// Burn's own operations, with activations in bf16: the scheme of GPU backends.
#[test]
fn training_in_bf16_reaches_the_accuracy_of_f32() {
    let home = TempDir::new().unwrap();
    let best = |dtype: &str| {
        let out = home.path().join(dtype);
        let args =
            ["pretrain", "--recipe", "digits", "--epochs", "4", "--kernels", "reference", "-q", "--dtype", dtype];
        let printed = succeed(home.path(), &[&args[..], &["--out", out.to_str().unwrap()]].concat());
        let line = printed.lines().find(|line| line.contains("best epoch")).unwrap();
        line.split(": ").nth(1).unwrap().split(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let (f32, bf16) = (best("f32"), best("bf16"));
    assert!(f32 > 97.0 && bf16 > f32 - 1.0, "f32 {f32} %, bf16 {bf16} %");
}

/// Batches of 25 on one, two and three devices: images mixed across parts, weighted classes, accumulation, a clipped
/// gradient.
#[test]
fn several_devices_of_one_process_train_as_one() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("data");
    digit_folders(&data, &[0, 1, 7], 34);
    let run_with = |readback: &str, devices: &str, rate: &str| {
        let out = home.path().join(format!("{devices}-{rate}-{readback}"));
        let mut args =
            vec!["pretrain", "--recipe", "cifar", "--arch", "alexnet", "--size", "64", "--epochs", "1", "-q"];
        args.extend(["--data", data.to_str().unwrap(), "--out", out.to_str().unwrap(), "--batch-size", "25"]);
        args.extend(["--lr", rate, "--devices", devices, "--set", "network.dropout=0", "--set", "accumulate=2"]);
        args.extend(["--set", "images.mix=[{ name = \"Mixup\", alpha = 0.3 }, { name = \"CutMix\" }]"]);
        args.extend(["--set", "loss.class_weights=balanced", "--set", "optimizer.clip_norm=0.05"]);
        let output = command(home.path(), &args).env("HEARTH_READBACK", readback).output().expect("train runs");
        assert!(output.status.success(), "{}", text(&output.stderr));
        (weights(&out), losses(&out))
    };
    let run = |devices: &str, rate: &str| run_with("step", devices, rate);
    let (one, untrained) = (run("flex:0", "1e-3"), run("flex:0", "1e-30"));
    for devices in ["flex:0,0", "flex:0,0,0"] {
        let several = run(devices, "1e-3");
        let log = run_with("log", devices, "1e-3");
        assert!(log == several, "{devices}: when results are read back");
        let (difference, change) = (distance(&one.0, &several.0), distance(&one.0, &untrained.0));
        assert!(difference > 0.0 && difference <= 1e-3 * change, "{devices}: {difference} of {change}");
        assert_eq!(one.1, several.1, "as they are written");
    }
}

#[test]
fn several_devices_go_on_with_another_number_and_are_refused_where_they_cannot_share() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("data");
    digit_folders(&data, &[0, 1, 7], 24);
    let out = home.path().join("run");
    let (data, out) = (data.to_str().unwrap(), out.to_str().unwrap());
    let pretrain =
        ["pretrain", "--recipe", "digits", "--data", data, "--epochs", "9", "--batch-size", "8", "--out", out];
    let mut child = start(home.path(), &[&pretrain[..], &["--devices", "flex:0,0"]].concat());
    while last_checkpoint(Path::new(out)).is_none() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let output = run(home.path(), &["resume", out, "--devices", "flex:0,0,0"]);
    let error = text(&output.stderr);
    assert!(output.status.success() && error.contains("3 devices (flex, flex, flex)"), "{error}");
    assert!(error.contains("going on from step"), "{error}");
    let best = text(&output.stdout).lines().find(|line| line.contains("best epoch")).unwrap().to_string();
    let top1: f64 = best.split(": ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(top1 > 60.0, "{best}");

    let devices = ["0"; 9].join(",");
    for (devices, more, part) in [
        (format!("flex:{devices}"), vec!["--batch-size", "8"], "9 devices cannot share batches of 8"),
        ("flex:0,0".to_string(), vec!["--sync-bn"], "--sync-bn"),
        ("cuda:0,0".to_string(), vec![], "twice"),
    ] {
        let mut args = vec!["pretrain", "--devices", &devices];
        args.extend(more);
        let code = if part == "twice" { 2 } else { 1 };
        let error = fail(home.path(), code, &args);
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn bench_measures_steps_with_either_kernels() {
    let home = tempfile::tempdir().unwrap();
    let args = [
        "bench",
        "resnet20",
        "--size",
        "32",
        "--batch-sizes",
        "2",
        "--iters",
        "2",
        "--warmup",
        "1",
        "--compare-kernels",
    ];
    let out = succeed(home.path(), &args);
    let rows: Vec<&str> = out.lines().collect();
    assert!(rows.len() == 3 && rows[1].contains("reference") && rows[2].contains("optimized"), "{out}");
    let json = succeed(home.path(), &[&args[..], &["--format", "json"]].concat());
    let losses: Vec<f64> = json
        .lines()
        .map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(row["images_per_s"].as_f64().unwrap() > 0.0 && row["mode"] == "train", "{row}");
            row["last_value"].as_f64().unwrap()
        })
        .collect();
    // The same weights, images and labels: the same loss, but for rounding.
    assert!((losses[0] - losses[1]).abs() < 1e-3 * losses[0].abs(), "{losses:?}");
    let row =
        succeed(home.path(), &[&args[..args.len() - 1], &["--gradient-checkpointing", "--format", "json"]].concat());
    let row: serde_json::Value = serde_json::from_str(&row).unwrap();
    assert!(row["gradient_checkpointing"] == true && row["last_value"] == losses[1], "the same gradients: {row}");
    assert!(fs::read_dir(home.path()).unwrap().next().is_none(), "a measurement leaves nothing");
}

/// Every block of docs/scale.md that begins with a command is what the command prints.
#[test]
fn the_tables_of_docs_scale_are_what_plan_prints() {
    let home = TempDir::new().unwrap();
    let document = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/scale.md")).unwrap();
    let mut blocks = 0;
    for block in document.split("```text\n$ cargo run -p train -- ").skip(1) {
        let (command, rest) = block.split_once('\n').unwrap();
        let (shown, _) = rest.split_once("```").unwrap();
        let args: Vec<&str> = command.split_whitespace().collect();
        assert_eq!(args[0], "plan", "{command}");
        let printed = succeed(home.path(), &args);
        assert!(printed == shown, "docs/scale.md shows for `train {command}`\n{shown}\nand it prints\n{printed}");
        blocks += 1;
    }
    assert!(blocks >= 2, "docs/scale.md has {blocks} tables");
    assert!(fs::read_dir(home.path()).unwrap().next().is_none(), "a plan leaves nothing");
}

#[test]
fn plan_takes_figures_and_refuses_what_is_none() {
    let home = TempDir::new().unwrap();
    let json =
        succeed(home.path(), &["plan", "resnet18", "--devices", "4", "--images-per-s", "50", "--format", "json"]);
    let plan: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(plan["figures"]["parameters"], 11_689_512);
    assert_eq!(plan["rows"][0]["limit"], "device");
    let table = succeed(home.path(), &["plan", "--images-per-s", "50", "--format", "csv"]);
    assert!(table.starts_with("devices,hosts,global_batch,") && table.lines().count() == 5, "{table}");

    // Without a figure it is that of two cores, and told; of other networks there is none.
    let output = run(home.path(), &["plan", "resnet50", "--devices", "1"]);
    assert!(text(&output.stderr).contains("two cores") && text(&output.stdout).contains("6.97 images/s"));
    assert!(fail(home.path(), 1, &["plan", "resnet34"]).contains("--images-per-s"));
    let error = fail(home.path(), 1, &["plan", "resnet50", "--devices", "100000"]);
    assert!(error.contains("6,400,000 images a step") && error.contains("--devices 100000"), "{error}");
    for flag in [
        "--devices",
        "--devices-per-host",
        "--images-per-s",
        "--batch-per-device",
        "--epochs",
        "--images",
        "--image-kb",
        "--cores-per-host",
        "--decode-per-core",
        "--disk-mb",
        "--network-gbit",
        "--link-gbit",
    ] {
        for value in ["0", "-1", "many", "NaN"] {
            let error = fail(home.path(), 2, &["plan", flag, value]);
            assert!(error.contains(flag) && error.contains(value), "{flag} {value}: {error}");
        }
    }
    for (flag, value) in [("--validation", "-1"), ("--latency-us", "-1")] {
        assert!(fail(home.path(), 2, &["plan", flag, value]).contains(flag), "{flag} {value}");
    }
}

#[test]
fn a_trial_estimates_and_leaves_nothing() {
    let home = TempDir::new().unwrap();
    let printed = succeed(home.path(), &["--dry-run"]);
    for expected in ["a step", "the whole run", "memory"] {
        assert!(printed.contains(expected), "{printed}");
    }
    assert!(!home.path().join("artifacts").exists());
}

#[test]
fn a_rate_is_found_and_drawn() {
    let home = TempDir::new().unwrap();
    let printed = succeed(home.path(), &["lr-find", "--steps", "40", "-q"]);
    let rate: f64 = printed.lines().find_map(|line| line.strip_prefix("suggested: --lr ")).unwrap().parse().unwrap();
    assert!((1e-3..3.0).contains(&rate), "{printed}");
    assert!(fs::read_to_string(home.path().join("lr-find.svg")).unwrap().starts_with("<svg"));
    assert!(fs::read_to_string(home.path().join("lr-find.csv")).unwrap().lines().count() > 10);
}

#[test]
fn recipes_are_listed_and_shown() {
    let home = TempDir::new().unwrap();
    let list = succeed(home.path(), &["recipes"]);
    for name in ["digits", "imagenet-classic", "imagenet-modern", "imagenet-a3", "cifar", "finetune", "linear-probe"] {
        assert!(list.contains(name), "{list}");
    }
    let shown = succeed(home.path(), &["recipes", "imagenet-a3"]);
    assert!(shown.starts_with("# Reproduces:") && shown.contains("lamb"), "{shown}");
    assert!(fail(home.path(), 1, &["recipes", "imagenet-a4"]).contains("did you mean imagenet-a3?"));
}

#[test]
fn runs_are_compared_and_reports_written_again() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("data");
    digit_folders(&data, &[0, 1], 8);
    let runs = ["a", "b"].map(|name| home.path().join(name));
    for (run, seed) in runs.iter().zip(["1", "2"]) {
        succeed(
            home.path(),
            &[
                "pretrain",
                "--recipe",
                "digits",
                "--data",
                data.to_str().unwrap(),
                "--batch-size",
                "4",
                "--epochs",
                "2",
                "--seed",
                seed,
                "-q",
                "--out",
                run.to_str().unwrap(),
            ],
        );
        assert!(run.join("report.html").is_file());
    }
    fs::remove_file(runs[0].join("report.html")).unwrap();
    let printed = succeed(home.path(), &["report", runs[0].to_str().unwrap()]);
    assert!(printed.contains("report.html") && runs[0].join("report.html").is_file(), "{printed}");
    succeed(home.path(), &["report", runs[0].to_str().unwrap(), runs[1].to_str().unwrap()]);
    let page = fs::read_to_string(home.path().join("comparison.html")).unwrap();
    assert!(page.contains("seed"), "the recipes differ in their seed");
}

#[test]
fn the_study_of_shortcuts_draws_its_charts() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("data");
    digit_folders(&data, &[0, 1], 8);
    let printed = succeed(
        home.path(),
        &[
            "study",
            "shortcuts",
            "--recipe",
            "digits",
            "--data",
            data.to_str().unwrap(),
            "--epochs",
            "2",
            "--set",
            "batch_size=8",
            "-q",
        ],
    );
    for name in ["plain20", "plain56", "resnet20", "resnet56"] {
        assert!(printed.contains(name), "{printed}");
    }
    let folder = home.path().join("artifacts/study-shortcuts-001");
    for name in ["study.html", "training-error.svg", "gradient-before.svg", "resnet56/report.html"] {
        assert!(folder.join(name).is_file(), "{name}");
    }
}

#[test]
fn loss_that_is_not_finite_stops_the_run_and_names_its_samples() {
    let home = TempDir::new().unwrap();
    let stops = ["step", "log"].map(|readback| {
        let args = ["--lr", "1e30", "--set", "schedule.warmup_epochs=0", "--epochs", "2"];
        let output = command(home.path(), &args).env("HEARTH_READBACK", readback).output().expect("train runs");
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("not finite 10 times in a row") && error.contains("digit-"), "{error}");
        assert!(error.contains("resume"), "{error}");
        let start = error.find("stopped at step").unwrap();
        error[start..].lines().next().unwrap().to_string()
    });
    assert_eq!(stops[0], stops[1], "the same step and the same images");
}

/// A device that decides by itself which steps count, and a host that does: the same weights, rows and loss scales.
#[test]
fn when_results_are_read_back_changes_nothing() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("data");
    digit_folders(&data, &[0, 1, 7], 40);
    let data = data.to_str().unwrap();
    let train = |name: &str, readback: &str, sets: &[&str]| {
        let out = home.path().join(format!("{name}-{readback}"));
        let mut args =
            vec!["pretrain", "--recipe", "digits", "--data", data, "--batch-size", "8", "--epochs", "3", "-q"];
        args.extend(["--out", out.to_str().unwrap(), "--set", "ema.decay=0.9", "--set", "checkpoints.keep=9"]);
        sets.iter().for_each(|set| args.extend(["--set", set]));
        let output = command(home.path(), &args).env("HEARTH_READBACK", readback).output().expect("train runs");
        assert!(output.status.success(), "{}", text(&output.stderr));
        out
    };
    let states = |run: &Path| {
        let mut folders: Vec<_> =
            fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).collect();
        folders.sort();
        let state = |folder: &PathBuf| {
            let state: serde_json::Value =
                serde_json::from_slice(&fs::read(folder.join("state.json")).unwrap()).unwrap();
            ["step", "batch", "loss_scale", "skipped_steps", "bad_in_a_row", "average_started", "learning_rate"]
                .map(|key| state[key].clone())
        };
        folders.iter().map(state).collect::<Vec<_>>()
    };
    let cases: [(&str, &[&str]); 3] = [
        ("clipped", &["optimizer.clip_norm=0.5", "accumulate=3", "ema.every=4", "checkpoints.every_steps=4"]),
        // So large a loss scale that the first steps overflow.
        ("f16", &["network.dtype=f16", "network.loss_scale=1e12", "max_bad_steps=1000", "checkpoints.every_steps=7"]),
        (
            "adamw",
            &[
                "optimizer={ name = \"adamw\", weight_decay = 0.01, clip_norm = 1.0 }",
                "schedule.learning_rate=0.003",
                "network.dtype=f16",
                "network.loss_scale=1e12",
                "max_bad_steps=1000",
            ],
        ),
    ];
    for (name, sets) in cases {
        let [step, log] = ["step", "log"].map(|readback| train(name, readback, sets));
        assert_same(&log, &fingerprint(&step), name);
        assert_eq!(states(&log), states(&step), "{name}");
        let skipped = states(&step).last().unwrap()[3].as_u64().unwrap();
        assert_eq!(skipped > 0, name != "clipped", "{name}: {skipped} steps were skipped");
    }
    let output = command(home.path(), &["pretrain"]).env("HEARTH_READBACK", "never").output().unwrap();
    assert!(text(&output.stderr).contains("HEARTH_READBACK is `never`"), "{}", text(&output.stderr));
}

#[test]
fn progress_can_be_json() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("data");
    digit_folders(&data, &[0, 1], 8);
    let output = run(
        home.path(),
        &[
            "pretrain",
            "--recipe",
            "digits",
            "--data",
            data.to_str().unwrap(),
            "--batch-size",
            "4",
            "--epochs",
            "2",
            "--log-format",
            "json",
        ],
    );
    let lines = text(&output.stderr);
    let epochs: Vec<serde_json::Value> = lines
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &serde_json::Value| line["event"] == "epoch")
        .collect();
    assert_eq!(epochs.len(), 2, "{lines}");
    assert!(epochs[1]["valid"]["top1"].is_number() && epochs[1]["times"]["waiting"].is_number());
}

#[test]
fn wrong_input_is_told_with_its_cause_and_leaves_nothing_behind() {
    let home = TempDir::new().unwrap();
    let at = |name: &str| home.path().join(name).display().to_string();
    digit_folders(&home.path().join("one"), &[4], 4);
    digit_folders(&home.path().join("two"), &[0, 1], 8);
    digit_folders(&home.path().join("other"), &[0, 2], 8);
    fs::create_dir_all(home.path().join("empty")).unwrap();
    fs::create_dir_all(home.path().join("full")).unwrap();
    fs::write(home.path().join("full/thesis.txt"), "mine").unwrap();
    fs::create_dir_all(home.path().join("flat")).unwrap();
    fs::copy(home.path().join("two/train/digit-0/000.png"), home.path().join("flat/a.png")).unwrap();
    let typo = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/digits.toml")).unwrap();
    fs::write(home.path().join("typo.toml"), typo.replace("momentum", "momentun")).unwrap();

    let cases: Vec<(Vec<String>, i32, &[&str])> = vec![
        (vec!["--data".into(), at("missing")], 1, &["missing"]),
        (vec!["--data".into(), at("empty")], 1, &["empty"]),
        (vec!["--data".into(), at("flat"), "--recipe".into(), "digits".into()], 1, &["flat"]),
        (vec!["--data".into(), at("one"), "--recipe".into(), "digits".into()], 1, &["one class"]),
        (
            vec!["--data".into(), at("two"), "--val".into(), at("other"), "--recipe".into(), "digits".into()],
            1,
            &["different classes", "digit-1", "digit-2"],
        ),
        (vec!["--recipe".into(), at("typo.toml")], 1, &["momentun", "did you mean `momentum`?"]),
        (
            vec!["--val-fraction".into(), "0".into()],
            1,
            &["data.val_fraction is 0", "--val-fraction sets", "data.valid"],
        ),
        (vec!["--lr".into(), "-0.1".into()], 1, &["schedule.learning_rate is -0.1"]),
        (vec!["--batch-size".into(), "0".into()], 2, &["--batch-size", "at least 1"]),
        (vec!["--epochs".into(), "0".into()], 2, &["--epochs", "at least 1"]),
        (vec!["--epochs".into(), "9223372036854775807".into()], 1, &["epochs is 9223372036854775807; the most is"]),
        (vec!["--set".into(), "epochs=9223372036854775807".into()], 1, &["epochs is 9223372036854775807"]),
        (vec!["--set".into(), "accumulate=9223372036854775807".into()], 1, &["accumulate is"]),
        (vec!["--set".into(), "data.repeats=9223372036854775807".into()], 1, &["data.repeats is"]),
        (vec!["--set".into(), "images.sizes=[{epoch=1,size=4294967295}]".into()], 1, &["4294967295"]),
        (vec!["--batch-size".into(), "9223372036854775807".into()], 1, &["batch_size is"]),
        (vec!["--workers".into(), "1000000".into()], 2, &["--workers", "0 to 1024"]),
        (vec!["--set".into(), "data.order=windowd".into()], 1, &["did you mean `windowed`?"]),
        (
            vec!["--set".into(), "data.order=windowed".into(), "--set".into(), "data.balanced=true".into()],
            1,
            &["windowed"],
        ),
        (vec!["finetune".into(), "--auto".into(), "--freeze".into(), "backbone".into()], 2, &["--auto", "--freeze"]),
        (vec!["--arch".into(), "alexnet".into()], 1, &["alexnet", "63"]),
        (vec!["--arch".into(), "resnet21".into()], 2, &["resnet21"]),
        (vec!["--out".into(), at("full")], 1, &["not empty", "train resume"]),
        (vec!["--set".into(), "optimizer.momentun=1".into()], 1, &["did you mean `momentum`?"]),
        (vec!["--backend".into(), "cuda".into()], 1, &["cuda", "--features cuda"]),
        (vec!["resume".into(), at("empty")], 1, &["is not the folder of a run"]),
        (vec!["finetune".into(), "--data".into(), at("two")], 1, &["--weights"]),
        (
            vec!["finetune".into(), "--weights".into(), at("nothing.pth"), "--data".into(), at("two")],
            1,
            &["nothing.pth", "no such file"],
        ),
        (vec!["report".into(), at("empty")], 1, &["empty"]),
        (
            vec!["lr-find".into(), "--from".into(), "1".into(), "--to".into(), "0.1".into()],
            1,
            &["--from 1 to --to 0.1"],
        ),
    ];
    for (args, code, expected) in cases {
        let error = fail(home.path(), code, &strs(&args));
        for part in expected {
            assert!(error.contains(part), "{args:?} should say `{part}`: {error}");
        }
    }
    let left = fs::read_dir(home.path().join("artifacts")).map_or(0, |entries| entries.count());
    assert_eq!(left, 0, "a refused run leaves no folder");
    assert_eq!(fs::read_dir(home.path().join("full")).unwrap().count(), 1);
}

#[test]
fn an_image_that_cannot_be_decoded_is_met_as_the_policy_says() {
    let home = TempDir::new().unwrap();
    let data = home.path().join("data");
    digit_folders(&data, &[0, 1], 8);
    fs::write(data.join("train/digit-0/000.png"), "no image").unwrap();
    let base =
        ["pretrain", "--recipe", "digits", "--data", data.to_str().unwrap(), "--batch-size", "4", "--epochs", "2"];
    let error = fail(home.path(), 1, &base);
    assert!(error.contains("000.png"), "{error}");
    for policy in ["skip", "substitute"] {
        let mut args = base.to_vec();
        let run = home.path().join(policy);
        args.extend(["--bad-samples", policy, "--out", run.to_str().unwrap()]);
        let output = run_output(home.path(), &args);
        let error = text(&output.stderr);
        assert!(output.status.success() && error.contains("could not be read or decoded"), "{error}");
        let listed = fs::read_to_string(run.join("bad_samples.csv")).unwrap();
        assert!(listed.contains("000.png"), "{listed}");
    }
}

/// Needs a small file system, which only root can make.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_costs_no_checkpoint_that_is_whole() {
    let home = TempDir::new().unwrap();
    let disk = home.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=14m", "tmpfs"]).arg(&disk).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: cannot mount a small file system here");
        return;
    }
    struct Unmount(PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(&self.0).status();
        }
    }
    let _unmount = Unmount(disk.clone());
    let undisturbed = home.path().join("undisturbed");
    succeed(home.path(), &strs(&eventful(undisturbed.to_str().unwrap())));
    let run = disk.join("run");
    let mut child = start(home.path(), &strs(&eventful(run.to_str().unwrap())));
    while !run.join("checkpoints").exists() {
        assert!(child.try_wait().unwrap().is_none(), "over too soon");
        std::thread::sleep(Duration::from_millis(5));
    }
    // Someone else fills the disk to its last byte.
    let ballast = disk.join("ballast");
    let _ = fs::write(&ballast, vec![7; 14 << 20]);
    let output = child.wait_with_output().unwrap();
    let error = text(&output.stderr);
    assert!(!output.status.success(), "{error}");
    assert!(error.contains("No space left") && error.contains("training goes on"), "{error}");
    fs::remove_file(&ballast).unwrap();
    succeed(home.path(), &["resume", run.to_str().unwrap(), "--quiet"]);
    assert_same(&run, &fingerprint(&undisturbed), "after a full disk");
}
