//! Several processes under `mpirun` against one: the same training, whatever their number.
//!
//! Needs the feature `mpi`, `mpirun`, and the images of `../shared/data/tiny10` (`HEARTH_DATA` names another folder of
//! data); says so where something is missing.
#![cfg(feature = "mpi")]
#![allow(clippy::unwrap_used)] // Helpers of tests fail as tests do.

use std::{
    env, fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use common::{distance, losses, weights};

mod common;

/// The tests take turns: each starts as many processes as the machine has cores, or more.
static TURN: Mutex<()> = Mutex::new(());

/// 500 images of ten classes; `None`, and a line that says so, where there are none or there is no `mpirun`.
fn images() -> Option<PathBuf> {
    let data = env::var_os("HEARTH_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"), PathBuf::from);
    let images = data.join("tiny10/val");
    if !images.is_dir() {
        eprintln!("skipped: {} is not there (HEARTH_DATA names another folder)", images.display());
        return None;
    }
    mpirun().then_some(images)
}

fn mpirun() -> bool {
    let found = Command::new("mpirun").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("skipped: there is no mpirun");
    }
    found
}

/// `train` with these arguments, by so many processes.
fn train(processes: usize, arguments: &[&str]) -> Command {
    let mut command = common::train_ranks(processes);
    command.args(arguments).env("RUST_BACKTRACE", "0");
    command
}

#[track_caller]
fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    stderr
}

/// Twenty steps of 24 images.
fn twenty_steps(images: &Path, out: &Path, processes: usize, arch: &str, rate: &str, more: &[&str]) -> String {
    let (images, out) = (images.display().to_string(), out.display().to_string());
    let mut arguments = vec!["pretrain", "--recipe", "cifar", "--data", &images, "--val-fraction", "0.04"];
    arguments.extend(["--arch", arch, "--out", &out, "--lr", rate, "--epochs", "1", "--batch-size", "24"]);
    arguments.extend(["--size", "64", "--set", "network.dropout=0"]);
    arguments.extend(["--set", "checkpoints.keep=1"]);
    arguments.extend(more);
    let said = succeed(&mut train(processes, &arguments));
    // A checkpoint of VGG-11 is a gigabyte.
    fs::remove_dir_all(Path::new(&out).join("checkpoints")).unwrap();
    fs::remove_file(Path::new(&out).join("weights.safetensors")).unwrap();
    said
}

/// Weights and losses agree to 1e-5; and what differs is a small part of what training changed at all.
#[track_caller]
fn agree(one: &Path, other: &Path, untrained: &Path, part: f64) {
    let [a, b, start] = [one, other, untrained].map(weights);
    let (difference, change) = (distance(&a, &b), distance(&a, &start));
    let (of_one, of_other) = (losses(one), losses(other));
    assert_eq!([of_one.len(), of_other.len()], [20; 2]);
    let loss = of_one.iter().zip(&of_other).map(|(a, b)| (a - b).abs() / a).fold(0.0, f64::max);
    eprintln!("{}: weights {difference:.1e} of {change:.1e} changed, loss {loss:.1e}", other.display());
    assert!(difference <= 1e-5, "weights differ by {difference}");
    assert!(loss <= 1e-5, "losses differ by {loss}");
    assert!(difference <= part * change, "{difference} of {change}");
}

/// One, two and four processes.
fn the_same_training(arch: &str, rate: &str, processes: &[usize], part: f64, more: &[&str]) {
    let Some(images) = images() else { return };
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let one = folder.path().join("one");
    twenty_steps(&images, &one, 1, arch, rate, more);
    let untrained = folder.path().join("untrained");
    twenty_steps(&images, &untrained, 1, arch, "1e-30", more);
    for &processes in processes {
        let several = folder.path().join(format!("{arch}-{processes}"));
        let said = twenty_steps(&images, &several, processes, arch, rate, more);
        assert!(said.contains(&format!("{processes} processes")), "{said}");
        agree(&one, &several, &untrained, part);
        fs::remove_dir_all(several).unwrap();
    }
}

#[test]
fn alexnet_by_one_two_and_four() {
    the_same_training("alexnet", "1e-3", &[2, 4], 1e-3, &[]);
}

#[test]
fn vgg11_by_one_and_two() {
    the_same_training("vgg11", "1e-4", &[2], 1e-2, &[]);
}

/// A step small enough that ResNet-18's chaos does not take over: at a rate of 1e-4 two runs of one process whose rates
/// differ by a millionth part are as far from each other as runs of one and of two processes, 2e-3.
#[test]
fn resnet18_with_synchronised_norms_by_one_two_and_four() {
    the_same_training("resnet18", "1e-6", &[2, 4], 3e-2, &["--sync-bn"]);
}

/// Batches of 25 by four, images mixed across parts, weighted classes, accumulation, a clipped gradient.
#[test]
fn uneven_parts_are_exact() {
    let Some(images) = images() else { return };
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let images = images.display().to_string();
    let run = |processes: usize, rate: &str| {
        let out = folder.path().join(format!("{processes}-{rate}"));
        let shown = out.display().to_string();
        let mut arguments = vec!["pretrain", "-q", "--recipe", "cifar", "--data", &images, "--val-fraction", "0.2"];
        arguments.extend(["--arch", "alexnet", "--out", &shown, "--lr", rate, "--epochs", "1", "--batch-size", "25"]);
        arguments.extend(["--size", "64", "--set", "network.dropout=0", "--set", "accumulate=2"]);
        arguments.extend(["--set", "loss.class_weights=balanced", "--set", "loss.label_smoothing=0.1"]);
        arguments.extend(["--set", "images.mix=[{ name = \"Mixup\", alpha = 0.3 }, { name = \"CutMix\" }]"]);
        arguments.extend(["--set", "optimizer.clip_norm=0.05"]);
        succeed(&mut train(processes, &arguments));
        (weights(&out), losses(&out))
    };
    let (one, four, untrained) = (run(1, "1e-3"), run(4, "1e-3"), run(1, "1e-30"));
    let (difference, change) = (distance(&one.0, &four.0), distance(&one.0, &untrained.0));
    eprintln!("weights {difference:.1e} of {change:.1e} changed");
    assert!(difference <= 1e-3 * change, "{difference} of {change}");
    assert_eq!(one.1, four.1, "as they are written");
}

/// Waits until a checkpoint of `step` or later is there. A child that ends before is told with what it said.
#[track_caller]
fn wait_for_checkpoint(run: &Path, step: u64, child: &mut Child) {
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        let steps = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
        let latest =
            steps.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("step-")?.parse::<u64>().ok()).max();
        if latest.is_some_and(|latest| latest >= step) {
            return;
        }
        if let Some(status) = child.try_wait().unwrap() {
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("it ended before step {step} with {status}:\n{said}");
        }
        assert!(Instant::now() < until, "no checkpoint of step {step}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The processes that a launcher started, or itself where it is the program.
fn ranks(launcher: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap_or_default();
    children.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

fn kill_9(id: u32) {
    assert!(Command::new("kill").args(["-9", &id.to_string()]).status().unwrap().success());
}

#[test]
fn a_killed_rank_ends_all_and_the_run_goes_on_by_one_and_by_two_again() {
    let Some(images) = images() else { return };
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let (one, run) = (folder.path().join("one"), folder.path().join("run"));
    let checkpoints = ["--set", "checkpoints.every_steps=6"];
    twenty_steps(&images, &one, 1, "alexnet", "1e-3", &[]);
    let untrained = folder.path().join("untrained");
    twenty_steps(&images, &untrained, 1, "alexnet", "1e-30", &[]);
    // The recipe is a part of the run's state: the same images.
    let (data, out) = (images.display().to_string(), run.display().to_string());
    let mut arguments = vec!["pretrain", "--recipe", "cifar", "--data", &data, "--val-fraction", "0.04", "--out", &out];
    arguments.extend(["--arch", "alexnet", "--lr", "1e-3", "--epochs", "1", "--batch-size", "24", "--size", "64"]);
    arguments.extend(["--set", "network.dropout=0", "--set", "checkpoints.keep=1"]);
    arguments.extend(checkpoints);

    let mut child = train(2, &arguments).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    wait_for_checkpoint(&run, 6, &mut child);
    let ids = ranks(child.id());
    assert_eq!(ids.len(), 2);
    kill_9(ids[1]);
    let killed = Instant::now();
    let output = child.wait_with_output().unwrap();
    let took = killed.elapsed();
    assert!(!output.status.success() && took < Duration::from_secs(20), "{took:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("signal 9"), "the cause is told: {said}");
    let is_there = |id: &u32| Path::new(&format!("/proc/{id}")).exists();
    while ids.iter().any(is_there) {
        assert!(killed.elapsed() < Duration::from_secs(20), "a process is left");
        std::thread::sleep(Duration::from_millis(100));
    }

    let mut child = train(1, &["resume", &out]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    wait_for_checkpoint(&run, 12, &mut child);
    kill_9(child.id());
    child.wait().unwrap();

    succeed(&mut train(2, &["resume", &out]));
    agree(&one, &run, &untrained, 1e-3);
}

/// The same weights from one and two processes on another backend, where it was compiled in: of AlexNet, and of ResNet-20
/// with synchronised norms.
#[test]
fn other_backends_train_together_too() {
    let Some(images) = images() else { return };
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    // Three images of each class: the backend is slow.
    let few = folder.path().join("few");
    for class in fs::read_dir(images).unwrap().flatten() {
        let to = few.join(class.file_name());
        fs::create_dir_all(&to).unwrap();
        for image in fs::read_dir(class.path()).unwrap().flatten().take(3) {
            fs::copy(image.path(), to.join(image.file_name())).unwrap();
        }
    }
    let few = few.display().to_string();
    let run = |processes: usize, rate: &str, network: &[&str]| {
        let out = folder.path().join(format!("{}-{processes}-{rate}", network[1]));
        let shown = out.display().to_string();
        let mut arguments = vec!["pretrain", "-q", "--backend", "ndarray", "--recipe", "cifar", "--data", &few];
        arguments.extend([
            "--val-fraction",
            "0.2",
            "--out",
            &shown,
            "--lr",
            rate,
            "--epochs",
            "1",
            "--batch-size",
            "8",
        ]);
        arguments.extend(network);
        let output = train(processes, &arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if said.contains("is not compiled into this binary") {
            eprintln!("skipped: the backend ndarray is not compiled in");
            return None;
        }
        assert!(output.status.success(), "{said}");
        Some(weights(&out))
    };
    let alexnet: &[&str] = &["--arch", "alexnet", "--size", "64", "--set", "network.dropout=0"];
    let resnet20: &[&str] = &["--arch", "resnet20", "--size", "32", "--sync-bn"];
    for (network, rate, part) in [(alexnet, "1e-3", 1e-3), (resnet20, "1e-5", 3e-2)] {
        let Some(one) = run(1, rate, network) else { return };
        let (two, untrained) = (run(2, rate, network).unwrap(), run(1, "1e-30", network).unwrap());
        let (difference, change) = (distance(&one, &two), distance(&one, &untrained));
        eprintln!("ndarray, {}: weights {difference:.1e} of {change:.1e} changed", network[1]);
        assert!(difference <= part * change, "{difference} of {change}");
    }
}

#[test]
fn other_commands_are_the_work_of_one() {
    if !mpirun() {
        return;
    }
    let output = train(2, &["recipes"]).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("`train recipes` is the work of one process"), "{said}");
}

/// A rank that hangs is not waited for without end.
#[test]
fn a_rank_that_hangs_ends_the_run_with_its_cause() {
    if !mpirun() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run").display().to_string();
    let arguments = ["pretrain", "--epochs", "1000", "--out", &out, "--mpi-timeout", "2"];
    let mut child = train(2, &arguments).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    wait_for_checkpoint(Path::new(&out), 1, &mut child);
    let ids = ranks(child.id());
    assert!(Command::new("kill").args(["-STOP", &ids[1].to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("process 0 has waited for the others for 2 s"), "{said}");
    let _ = Command::new("kill").args(["-9", &ids[1].to_string()]).stderr(Stdio::null()).status();
}
