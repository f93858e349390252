//! Standard output and standard error that are closed or full, signals, and logs.
#![cfg(unix)]
#![allow(clippy::unwrap_used)] // Helpers of tests fail as tests do.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

mod common;

const SIGPIPE: i32 = 13;

/// `train` in a home of its own.
fn command(home: &Path, args: &[&str]) -> Command {
    let mut command = common::train();
    command.args(args).env("HOME", home).env("XDG_CACHE_HOME", home.join("cache")).current_dir(home);
    command
}

/// A training of some seconds, without checkpoints inside its epochs.
fn training<'a>(out: &'a str, epochs: &'a str) -> [&'a str; 6] {
    ["pretrain", "--epochs", epochs, "--seed=5", "--out", out]
}

fn log(home: &Path, run: &str) -> String {
    fs::read_to_string(home.join(run).join("experiment.log")).unwrap()
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

fn send(child: &Child, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().expect("kill runs");
    assert!(status.success());
}

fn wait_until(child: &mut Child, what: &str, mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn has_status(home: &Path, run: &str, status: &str) -> bool {
    fs::read_to_string(home.join(run).join("run.json")).unwrap().contains(&format!("\"status\": \"{status}\""))
}

#[test]
fn a_log_that_is_closed_or_full_is_noted_once_and_training_goes_on() {
    let home = TempDir::new().unwrap();
    let mut closed = command(home.path(), &training("closed", "2"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("train starts");
    let mut line = String::new();
    BufReader::new(closed.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(!line.is_empty());
    drop(closed.stdout.take());
    assert_eq!(closed.wait().unwrap().code(), Some(0));

    let full = command(home.path(), &training("full", "1")).stdout(full()).stderr(full()).status().unwrap();
    assert_eq!(full.code(), Some(0));

    for (run, cause) in [("closed", "Broken pipe"), ("full", "No space left on device")] {
        let log = log(home.path(), run);
        for stream in ["standard error", "standard output"] {
            let notes = log.lines().filter(|line| line.contains(&format!("cannot write to {stream}: {cause}")));
            assert_eq!(notes.count(), 1, "{run}, {stream}: {log}");
        }
        assert!(has_status(home.path(), run, "finished"));
        assert!(home.path().join(run).join("last.safetensors").exists());
    }
}

/// Ctrl-C with `2>&1 | tee log` ends `tee` first.
#[test]
fn ctrl_c_with_a_closed_pipe_saves() {
    let home = TempDir::new().unwrap();
    let mut child = command(home.path(), &training("run", "30"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("train starts");
    let metrics = home.path().join("run/metrics.csv");
    wait_until(&mut child, "its first step", || fs::read_to_string(&metrics).is_ok_and(|m| m.contains("train_step")));
    drop((child.stdout.take(), child.stderr.take()));
    send(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(has_status(home.path(), "run", "interrupted"));
    assert!(fs::read_dir(home.path().join("run/checkpoints")).unwrap().count() > 0);
    assert!(log(home.path(), "run").contains("cannot write to standard error: Broken pipe"));
}

#[test]
fn sigusr1_saves_and_goes_on() {
    let home = TempDir::new().unwrap();
    let mut child = command(home.path(), &training("run", "2")).stderr(Stdio::piped()).spawn().expect("train starts");
    let metrics = home.path().join("run/metrics.csv");
    wait_until(&mut child, "its first step", || fs::read_to_string(&metrics).is_ok_and(|m| m.contains("train_step")));
    assert!(!home.path().join("run/checkpoints").exists());
    send(&child, "USR1");
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{error}");
    // 1442 images, 32 a batch: an epoch ends at step 45.
    let saved = error.lines().find_map(|line| line.strip_prefix("saved on request: ")).expect("it is said");
    let step: u64 = saved.rsplit('-').next().unwrap().parse().unwrap();
    assert!(step > 0 && !step.is_multiple_of(45), "{error}");
    assert!(has_status(home.path(), "run", "finished"));
}

#[test]
fn results_that_cannot_be_written_are_an_error_and_a_closed_pipe_is_none() {
    let home = TempDir::new().unwrap();
    let commands: [&[&str]; 7] = [
        &["--help"],
        &["pretrain", "--help"],
        &["--version"],
        &["recipes"],
        &["plan", "--images-per-s", "50"],
        &["devices"],
        &["completions", "bash"],
    ];
    for args in commands {
        let output = command(home.path(), args).stdout(full()).stderr(Stdio::piped()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            error, "error: cannot write to standard output: No space left on device (os error 28)\n",
            "{args:?}"
        );
        assert_eq!(output.status.code(), Some(1), "{args:?}");

        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(home.path(), args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
        assert_eq!(output.status.signal(), Some(SIGPIPE), "{args:?}");
    }
    // Without a standard error, errors keep their code.
    let status = command(home.path(), &["plan", "--epochs", "0"]).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(2));
    let status = command(home.path(), &["report", "nowhere"]).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn records_of_the_libraries_are_shown_as_the_flags_say_and_logged_whatever_they_say() {
    let home = TempDir::new().unwrap();
    let stderr = |args: &[&str], filter: Option<&str>| {
        let mut command = command(home.path(), args);
        filter.map(|filter| command.env("RUST_LOG", filter));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut text = String::new();
        child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(child.wait().unwrap().success(), "{text}");
        text
    };
    let opened = "debug (datasets::source::open): digits: digits, 1442 samples of 10 classes";
    let shown = stderr(&training("shown", "1"), Some("datasets=debug"));
    assert!(shown.contains(opened), "{shown}");
    let shown = stderr(&[&training("plain", "1")[..], &["-v"]].concat(), None);
    assert!(shown.contains(opened) && shown.matches("with 272,474 parameters").count() <= 1, "{shown}");
    assert_eq!(stderr(&[&training("quiet", "1")[..], &["-q"]].concat(), None), "");
    let log = log(home.path(), "quiet");
    assert!(log.lines().any(|line| line.contains(" INFO  train: resnet20 with ")), "{log}");
    assert!(log.lines().any(|line| line.contains(" INFO  train: epoch 1: {")), "{log}");
    assert!(!log.contains("datasets::source::open"), "details are not for the log: {log}");
}

/// A terminal that goes away with its dashboard, as when a connection breaks.
#[test]
fn a_terminal_that_hangs_up_saves() {
    let home = TempDir::new().unwrap();
    let args = training("run", "60").join(" ");
    let mut terminal = Command::new("script");
    terminal.args([
        "-qfec",
        &format!("stty rows 40 cols 120; exec '{}' {args}", env!("CARGO_BIN_EXE_train")),
        "/dev/null",
    ]);
    terminal.env("HEARTH_BACKEND", "flex").env("HOME", home.path()).env("TERM", "xterm").current_dir(home.path());
    let Ok(mut terminal) = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else {
        return eprintln!("skipped: there is no `script`");
    };
    // A screen that nobody reads would stop the run.
    let mut screen = terminal.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut seen = Vec::new();
        let _ = screen.read_to_end(&mut seen);
        seen.len()
    });
    let checkpoints = home.path().join("run/checkpoints");
    wait_until(&mut terminal, "its first epoch", || checkpoints.exists());
    terminal.kill().unwrap();
    terminal.wait().unwrap();
    assert!(reader.join().unwrap() > 1000, "there was no dashboard");
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while has_status(home.path(), "run", "running") {
        assert!(std::time::Instant::now() < end, "{}", log(home.path(), "run"));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(has_status(home.path(), "run", "interrupted"));
    assert!(fs::read_dir(home.path().join("run/checkpoints")).unwrap().count() > 0);
}
