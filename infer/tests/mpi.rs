//! `infer evaluate` by several processes under `mpirun` against one.
//!
//! Needs the feature `mpi` and `mpirun`; says so where it is missing.
#![cfg(feature = "mpi")]

mod desk;

use std::{fs, process::Command};

use desk::{Desk, Ran};
use serde_json::Value;

#[test]
fn several_processes_judge_as_one() {
    if Command::new("mpirun").arg("--version").output().is_err() {
        eprintln!("skipped: there is no mpirun");
        return;
    }
    let desk = Desk::new();
    for (class, count) in [("ant", 4), ("bee, \"honey\"", 5), ("cat", 6)] {
        (0..count).for_each(|number| {
            desk.image(&format!("data/val/{class}/{class}{number}.png"));
        });
    }
    desk.broken("data/val/cat/broken.png");
    let base = ["evaluate", "--data", "data", "--weights", "run", "--format", "json", "--batch-size", "4", "--out"];
    let judged = |ran: &Ran| -> Value { serde_json::from_str(&ran.stdout).expect("one process speaks, in JSON") };
    let one = judged(&desk.infer(&[&base[..], &["one"]].concat()).ends_with(3));
    for processes in [2usize, 3] {
        let out = format!("by{processes}");
        let devices = format!("flex:{}", vec!["0"; processes].join(","));
        let ran = desk.processes(processes, &[&base[..], &[&out, "--devices", &devices]].concat());
        let several = judged(&ran);
        for field in ["top1", "top5", "loss", "ece", "images"] {
            assert!(!one[field].is_null());
            assert_eq!(several[field], one[field], "{field}");
        }
        for file in ["predictions.csv", "confusion.csv", "bad_samples.csv"] {
            let read = |folder: &str| fs::read_to_string(desk.path(folder).join(file)).expect("written");
            assert_eq!(read(&out), read("one"), "{file}");
        }
    }
    let uneven = desk.processes(2, &[&base[..], &["uneven", "--devices", "flex:0,0,0"]].concat());
    assert!(uneven.code != Some(0) && uneven.stderr.contains("cannot share alike"), "{uneven:#?}");
}

#[test]
fn one_process_evaluates_on_one_device() {
    let desk = Desk::new();
    desk.image("data/val/ant/1.png").image("data/val/cat/2.png");
    let refused = desk.infer(&["evaluate", "--data", "data", "--weights", "run", "--devices", "flex:0,0"]).ends_with(1);
    assert!(refused.stderr.contains("mpirun -n 2 infer evaluate"), "{refused:#?}");
}
