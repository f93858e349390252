//! HTML reports: one self-contained page from the files of a run folder, and one page that compares several runs.
//!
//! Reports only read files, so they can be written during a run, after an interruption, or years later. Missing files
//! are named on the page; damaged ones are reported at its top.

#![forbid(unsafe_code)]
#![deny(clippy::print_stderr, clippy::print_stdout)]

pub mod chart;
mod compare;
mod error;
mod figure;
pub mod format;
pub mod markup;
mod page;
mod run;
pub mod scores;
mod sections;
pub mod stats;
pub mod study;

use std::path::{Path, PathBuf};

use runtime::files::write_atomic_bytes;

pub use error::{Error, Result};
use run::Run;

/// Writes `report.html` into the run folder atomically and returns its path.
///
/// # Errors
/// Fails if the folder has no file of a run, or if the report cannot be written.
pub fn write(run: &Path) -> Result<PathBuf> {
    let page = sections::page(&Run::read(run)?);
    let path = run.join("report.html");
    write_atomic_bytes(&path, page.as_bytes())?;
    Ok(path)
}

/// Writes a page to `out` that compares runs: overlaid curves, a table of results, and the differences between their
/// recipes.
///
/// # Errors
/// Fails if there is no run, if a folder has no file of a run, or if the page cannot be written.
pub fn compare(runs: &[PathBuf], out: &Path) -> Result<()> {
    if runs.is_empty() {
        return Err(Error::NoRuns);
    }
    let runs = runs.iter().map(|run| Run::read(run)).collect::<Result<Vec<_>>>()?;
    Ok(write_atomic_bytes(out, compare::page(&runs).as_bytes())?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const HOSTILE: &str = r#"<script>alert("1")</script>, 'é猫'"#;

    /// Writes a finished run with hostile names.
    fn example(folder: &Path) {
        let name = serde_json::to_string(HOSTILE).unwrap();
        let write = |file: &str, text: &str| fs::write(folder.join(file), text).unwrap();
        write("recipe.toml", "# <script>\narchitecture = \"resnet20\"\n[schedule]\nlearning_rate = 0.1\n");
        write(
            "card.json",
            &format!(r#"{{"architecture": {name}, "classes": [{name}, "b", "c", "d", "e", "f"], "origin": {name}}}"#),
        );
        write(
            "run.json",
            &format!(
                r#"{{"name": {name}, "command": ["train", {name}], "status": "finished", "kind": "pretrain",
                "data": {{"train": {name}, "valid_images": 4}}, "result": {{"best_epoch": 2, "seconds": 61.0,
                "best": {{"loss": 0.5, "top1": 75.0, "top5": 100.0}}}}}}"#
            ),
        );
        write(
            "metrics.csv",
            "epoch,step,split,loss,top1,top5,learning_rate,gradient_norm,images_per_second\n\
             1,10,train_step,2.0,10,50,0.1,3.5,500\n1,10,train,2.0,10,50,,,\n1,10,valid,1.9,20,60,,,\n\
             2,20,train,1.0,60,90,,,\n2,20,valid,NaN,75,100,,,\n",
        );
        write(
            "epochs.csv",
            "epoch,seconds,waiting,compute,validation,checkpointing,reading,decoding,transforming,collating,idle,\
             bad_samples,skipped_steps,advice\n1,10,1,7,1,1,2,3,1,1,1,1,0,\"Use <more> threads, please\"\n",
        );
        let key = HOSTILE.replace('"', "\"\"");
        let predictions = ["0,0.9,0.1,0,0.9,1,0.1", "0,0.1,2.3,1,0.9,0,0.1", "1,0.8,0.2,1,0.8,0,0.2", "2,,,2,1.0,,"];
        let rows = predictions.map(|row| format!("\"{key}\",{row},,,,,,\n")).concat();
        write(
            "predictions.csv",
            &format!("key,label,p_label,loss,pred1,p1,pred2,p2,pred3,p3,pred4,p4,pred5,p5\n{rows}"),
        );
        fs::create_dir(folder.join("mistakes")).unwrap();
        fs::write(folder.join("mistakes/1.jpg"), [0xff, 0xd8, 0xff, 0xe0]).unwrap();
        write("mistakes/index.csv", &format!("file,key,label,pred1,p1\n1.jpg,\"{key}\",0,1,0.9\ngone.jpg,x,9,,\n"));
    }

    #[test]
    fn a_finished_run_has_every_section_and_hostile_names_are_harmless() {
        let folder = tempfile::tempdir().unwrap();
        example(folder.path());
        let path = write(folder.path()).unwrap();
        assert_eq!(path, folder.path().join("report.html"));
        let page = fs::read_to_string(path).unwrap();
        for id in ["curves", "time", "classes", "confused", "mistakes", "calibration", "labels", "setup"] {
            assert!(page.contains(&format!("<section id=\"{id}\">")), "no section {id}");
        }
        assert_eq!(page.matches("<script").count(), 1);
        assert!(page.contains("data:image/jpeg;base64,/9j/4A=="));
        assert!(page.contains("75.0\u{202f}%") && page.contains("3 of 4"));
        assert!(!page.contains("NaN"));
        assert!(!page.contains("is damaged"), "{page}");
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".part")), "{left:?}");
    }

    #[test]
    fn the_page_refers_to_nothing_outside_itself() {
        let folder = tempfile::tempdir().unwrap();
        example(folder.path());
        let page = fs::read_to_string(write(folder.path()).unwrap()).unwrap();
        for reference in ["src=\"", "href=\"", "url(", "@import"] {
            for (at, _) in page.match_indices(reference) {
                let rest = &page[at + reference.len()..];
                assert!(
                    rest.starts_with("data:") || rest.starts_with('#'),
                    "{}",
                    rest.chars().take(60).collect::<String>()
                );
            }
        }
    }

    #[test]
    fn a_run_that_just_started_has_a_report_that_names_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("run.json"), r#"{"name": "early", "status": "running", "result": null}"#).unwrap();
        fs::write(folder.path().join("metrics.csv"), "epoch,step,spl").unwrap();
        let page = fs::read_to_string(write(folder.path()).unwrap()).unwrap();
        assert!(page.contains("early") && page.contains("running") && page.contains("predictions.csv"), "{page}");
        assert!(!page.contains("<section id=\"classes\">"));
    }

    #[test]
    fn a_comparison_shows_what_differs() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for folder in &folders {
            example(folder.path());
        }
        fs::write(
            folders[1].path().join("recipe.toml"),
            "architecture = \"plain20\"\n[schedule]\nlearning_rate = 0.1\n",
        )
        .unwrap();
        let out = folders[0].path().join("compare.html");
        compare(&folders.each_ref().map(|folder| folder.path().to_path_buf()), &out).unwrap();
        let page = fs::read_to_string(&out).unwrap();
        assert!(page.contains("plain20") && !page.contains("schedule.learning_rate"), "{page}");
        assert_eq!(page.matches("<script").count(), 1);
    }

    #[test]
    fn errors_name_the_path_and_what_to_do() {
        let error = compare(&[], Path::new("x.html")).unwrap_err().to_string();
        assert!(error.contains("give at least one"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        example(folder.path());
        fs::write(folder.path().join("a-file"), "").unwrap();
        let out = folder.path().join("a-file/x.html");
        let error = runtime::exit::chain(&compare(&[folder.path().to_path_buf()], &out).unwrap_err());
        assert!(error.contains("a-file"), "{error}");
    }
}
