//! Compares `infer evaluate` in several processes under `mpirun` with one process.
//!
//! Needs the feature `mpi` and `mpirun`; skipped with a message if it is missing.
#![cfg(feature = "mpi")]

mod fixture;

use std::{fs, process::Command};

use fixture::{Fixture, Ran};
use serde_json::Value;

#[test]
fn several_processes_evaluate_as_one() {
    if Command::new("mpirun").arg("--version").output().is_err() {
        eprintln!("skipped: there is no mpirun");
        return;
    }
    let fixture = Fixture::new();
    for (class, count) in [("ant", 4), ("bee, \"honey\"", 5), ("cat", 6)] {
        (0..count).for_each(|number| {
            fixture.image(&format!("data/val/{class}/{class}{number}.png"));
        });
    }
    fixture.broken("data/val/cat/broken.png");
    let base = ["evaluate", "--data", "data", "--weights", "run", "--format", "json", "--batch-size", "4", "--out"];
    let parse = |ran: &Ran| -> Value { serde_json::from_str(&ran.stdout).expect("one process speaks, in JSON") };
    let one = parse(&fixture.infer(&[&base[..], &["one"]].concat()).ends_with(3));
    for processes in [2usize, 3] {
        let out = format!("by{processes}");
        let devices = format!("flex:{}", vec!["0"; processes].join(","));
        let ran = fixture.processes(processes, &[&base[..], &[&out, "--devices", &devices]].concat());
        let several = parse(&ran);
        for field in ["top1", "top5", "loss", "ece", "images"] {
            assert!(!one[field].is_null());
            assert_eq!(several[field], one[field], "{field}");
        }
        for file in ["predictions.csv", "confusion.csv", "bad_samples.csv"] {
            let read = |folder: &str| fs::read_to_string(fixture.path(folder).join(file)).expect("written");
            assert_eq!(read(&out), read("one"), "{file}");
        }
    }
    let uneven = fixture.processes(2, &[&base[..], &["uneven", "--devices", "flex:0,0,0"]].concat());
    assert!(uneven.code != Some(0) && uneven.stderr.contains("cannot share alike"), "{uneven:#?}");
}

#[test]
fn one_process_evaluates_on_one_device() {
    let fixture = Fixture::new();
    fixture.image("data/val/ant/1.png").image("data/val/cat/2.png");
    let refused =
        fixture.infer(&["evaluate", "--data", "data", "--weights", "run", "--devices", "flex:0,0"]).ends_with(1);
    assert!(refused.stderr.contains("mpirun -n 2 infer evaluate"), "{refused:#?}");
}
