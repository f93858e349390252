//! Which device `train` computes on, and what it says of it.
#![allow(clippy::unwrap_used)] // Helpers of tests fail as tests do.

use std::process::Output;

mod common;

const DRY_RUN: [&str; 3] = ["--dry-run", "--epochs", "1"];

fn run(arguments: &[&str], environment: &str) -> (Output, String) {
    let output = common::train().args(arguments).env("HEARTH_BACKEND", environment).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, stderr)
}

/// Returns the first line of Hearth. The libraries of graphics drivers print this one while adapters are listed.
fn first_line(stderr: &str) -> &str {
    const OF_DRIVERS: &str = "error: XDG_RUNTIME_DIR is invalid or not set in the environment.";
    stderr.lines().find(|&line| line != OF_DRIVERS).unwrap_or_default()
}

#[test]
fn training_names_the_cpu_first() {
    let (output, stderr) = run(&DRY_RUN, "flex");
    assert!(output.status.success(), "{stderr}");
    let line = first_line(&stderr);
    assert!(line.starts_with("device: CPU (flex, ") && line.contains(" thread") && line.ends_with(')'), "{stderr}");
    let (_, stderr) = run(&[&DRY_RUN[..], &["--devices", "flex:0,0"]].concat(), "flex");
    assert!(first_line(&stderr).starts_with("devices: 2 × CPU (flex, "), "{stderr}");
    let (_, stderr) = run(&[&DRY_RUN[..], &["--quiet"]].concat(), "flex");
    assert!(!stderr.contains("device: "), "{stderr}");
    let (_, stderr) = run(&[&DRY_RUN[..], &["--log-format", "json"]].concat(), "flex");
    let event: serde_json::Value = serde_json::from_str(first_line(&stderr)).unwrap();
    assert_eq!((event["event"].as_str(), event["devices"][0]["device"].as_str()), (Some("device"), Some("flex")));
}

#[test]
fn a_build_with_a_gpu_backend_and_no_gpu_trains_on_the_cpu_and_says_why() {
    let (output, stderr) = run(&["devices", "--format", "json"], "");
    assert!(output.status.success(), "{stderr}");
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    if list["auto"]["device"] != "flex" {
        eprintln!("skipped: this machine has a GPU for this build");
        return;
    }
    let (output, stderr) = run(&DRY_RUN, "");
    assert!(output.status.success(), "{stderr}");
    assert!(first_line(&stderr).starts_with("device: CPU (flex, "), "{stderr}");
    for skipped in list["auto"]["skipped"].as_array().unwrap() {
        assert!(first_line(&stderr).contains(skipped.as_str().unwrap()), "{skipped}: {stderr}");
    }
}

#[test]
fn a_backend_that_is_not_compiled_in_names_the_command_of_train() {
    let (output, _) = run(&["devices"], "flex");
    let list = String::from_utf8(output.stdout).unwrap();
    let compiled = list.lines().find_map(|line| line.strip_prefix("compiled: ")).unwrap();
    if compiled.split(';').next().unwrap().contains("cuda") || cfg!(target_os = "macos") {
        return;
    }
    let (output, stderr) = run(&["--backend", "cuda"], "flex");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("`cargo run -p train --features cuda -- …`"), "{stderr}");
}
