//! The `train` binary as tests start it, and what they read of runs.
#![allow(dead_code, clippy::unwrap_used)] // Not every test needs all of it; helpers of tests fail as tests do.

use std::{fs, path::Path, process::Command};

use datasets::{Digits, Source};

/// The `train` binary, on the CPU whatever the build and the machine have.
pub fn train() -> Command {
    on_the_cpu(Command::new(env!("CARGO_BIN_EXE_train")))
}

/// `processes` ranks of the `train` binary on this host, on the CPU.
pub fn train_ranks(processes: usize) -> Command {
    if processes == 1 {
        return train();
    }
    let mut command = on_the_cpu(Command::new("mpirun"));
    command.args(["--oversubscribe", "-n", &processes.to_string(), env!("CARGO_BIN_EXE_train")]);
    // In a container everybody is root.
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command
}

/// Pins the backend that `--backend auto` would choose.
pub fn on_the_cpu(mut command: Command) -> Command {
    command.env("HEARTH_BACKEND", "flex");
    command
}

/// All floats of a file of weights.
pub fn weights(run: &Path) -> Vec<f64> {
    let bytes = fs::read(run.join("last.safetensors")).expect("weights");
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let data = &bytes[8 + length..];
    let mut values = Vec::new();
    for (_, tensor) in header.iter().filter(|(name, tensor)| *name != "__metadata__" && tensor["dtype"] == "F32") {
        let [start, end] = [0, 1].map(|end| tensor["data_offsets"][end].as_u64().unwrap() as usize);
        let floats = data[start..end].chunks_exact(4);
        values.extend(floats.map(|float| f64::from(f32::from_le_bytes(float.try_into().unwrap()))));
    }
    values
}

/// The loss of each step.
pub fn losses(run: &Path) -> Vec<f64> {
    let table = fs::read_to_string(run.join("metrics.csv")).expect("metrics");
    let steps = table.lines().filter(|line| line.contains(",train_step,"));
    steps.map(|line| line.split(',').nth(3).unwrap().parse().unwrap()).collect()
}

pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut a.iter().copied())
}

/// Class folders with `count` digits of each of the classes, a few more for validation.
pub fn digit_folders(root: &Path, classes: &[u32], count: usize) {
    let digits = Digits::train();
    let mut seen = [0; 10];
    let mut bytes = Vec::new();
    for index in 0..digits.len() {
        let label = digits.label(index).unwrap();
        let nth = seen[label as usize];
        if !classes.contains(&label) || nth >= count + count / 2 {
            continue;
        }
        seen[label as usize] += 1;
        let folder = root.join(if nth < count { "train" } else { "val" }).join(format!("digit-{label}"));
        fs::create_dir_all(&folder).unwrap();
        digits.read(index, &mut bytes).unwrap();
        fs::write(folder.join(format!("{nth:03}.png")), &bytes).unwrap();
    }
}

/// The step of a run's last complete checkpoint.
pub fn last_checkpoint(run: &Path) -> Option<u64> {
    let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()).max()
}

/// `run.json`.
pub fn info(run: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(run.join("run.json")).expect("run.json")).expect("JSON")
}

/// The bytes of one tensor of a file of weights.
pub fn tensor(file: &Path, name: &str) -> Vec<u8> {
    let bytes = fs::read(file).expect("weights");
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let [start, end] = [0, 1].map(|end| header[name]["data_offsets"][end].as_u64().expect("the tensor") as usize);
    bytes[8 + length..][start..end].to_vec()
}
