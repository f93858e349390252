//! Reads a run folder. Missing files stay empty and damaged ones become notices, so that a run in progress has a report
//! too.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use runtime::files;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    Error, Result,
    format::{
        CARD, EPOCHS, EpochRow, METRICS, MISTAKES, MetricRow, MistakeRow, PREDICTIONS, PredictionRow, RECIPE, RUN,
        RunInfo,
    },
};

/// The number of mistakes shown with pictures.
const PICTURES: usize = 48;
/// The largest size of a thumbnail; larger pictures are omitted.
const PICTURE_BYTES: u64 = 256 << 10;

/// The contents of a run folder.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// The folder.
    pub(crate) folder: PathBuf,
    /// `run.json`.
    pub(crate) info: RunInfo,
    /// `recipe.toml`.
    pub(crate) recipe: Option<String>,
    /// `card.json`, as it is.
    pub(crate) card: Value,
    /// The keys of the card that reports use.
    summary: CardSummary,
    /// `metrics.csv`.
    pub(crate) metrics: Vec<MetricRow>,
    /// `epochs.csv`.
    pub(crate) epochs: Vec<EpochRow>,
    /// `predictions.csv`.
    pub(crate) predictions: Vec<PredictionRow>,
    /// `mistakes/index.csv`.
    pub(crate) mistakes: Vec<Mistake>,
    /// The names of the files that are missing.
    pub(crate) missing: Vec<&'static str>,
    /// Problems with the files, one sentence each.
    pub(crate) notices: Vec<String>,
}

/// The keys of a model card that reports use. The card's own type belongs to the crate that reads weights.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CardSummary {
    architecture: Option<String>,
    classes: Vec<String>,
}

/// A wrongly classified image and its thumbnail.
#[derive(Debug)]
pub(crate) struct Mistake {
    /// The row of the index.
    pub(crate) row: MistakeRow,
    /// The thumbnail's bytes and media type, where it could be read.
    pub(crate) picture: Option<(Vec<u8>, &'static str)>,
}

impl Run {
    /// Reads the files of a run. A folder without any of them is an error.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let not_a_run = |cause| Error::NotARun { folder: folder.to_path_buf(), cause };
        let kind = fs::metadata(folder).map_err(|source| Error::RunFolder { folder: folder.to_path_buf(), source })?;
        if !kind.is_dir() {
            return Err(not_a_run(format!("{} is a file; give the folder of a run", folder.display())));
        }
        let mut run = Run { folder: folder.to_path_buf(), ..Run::default() };
        run.info = run.json(RUN);
        run.recipe = run.text(RECIPE);
        run.card = run.json(CARD);
        run.metrics = run.rows(METRICS);
        run.epochs = run.rows(EPOCHS);
        run.predictions = run.rows(PREDICTIONS);
        let mistakes: Vec<MistakeRow> = run.rows(MISTAKES);
        if run.missing.len() == 7 {
            let shown = folder.display();
            let cause = format!("{shown} holds no file of a run, such as run.json or metrics.csv; give a run's folder");
            return Err(not_a_run(cause));
        }
        for row in mistakes.into_iter().take(PICTURES) {
            let picture = run.picture(&row.file);
            run.mistakes.push(Mistake { row, picture });
        }
        if !run.card.is_null() {
            match serde_json::from_value(run.card.clone()) {
                Ok(summary) => run.summary = summary,
                Err(error) => run.notice(CARD, &format!("is not a model card: {error}.")),
            }
        }
        Ok(run)
    }

    /// Returns the run's name, or its folder's.
    pub(crate) fn name(&self) -> String {
        if self.info.name.is_empty() { self.folder_name() } else { self.info.name.clone() }
    }

    /// The facts of `run.json` that reports list by name: what the other sections do not show, without what is empty.
    pub(crate) fn environment(&self) -> Value {
        let mut info = serde_json::to_value(&self.info).unwrap_or_default();
        if let Value::Object(facts) = &mut info {
            let elsewhere = ["changes", "command", "decisions", "result", "parameters", "format"];
            let is_empty = |value: &Value| value.is_null() || *value == "" || *value == 0;
            facts.retain(|key, value| !elsewhere.contains(&key.as_str()) && !is_empty(value));
        }
        info
    }

    /// Returns the name of the folder.
    pub(crate) fn folder_name(&self) -> String {
        // `.` and `..` have no file name.
        let path = fs::canonicalize(&self.folder).unwrap_or_else(|_| self.folder.clone());
        path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
    }

    /// Returns the architecture, from the card or the recipe.
    pub(crate) fn architecture(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct RecipeSummary {
            architecture: String,
        }
        let recipe = || Some(toml::from_str::<RecipeSummary>(self.recipe.as_deref()?).ok()?.architecture);
        self.summary.architecture.clone().or_else(recipe)
    }

    /// Returns the name of a class.
    pub(crate) fn class(&self, index: usize) -> String {
        self.summary.classes.get(index).cloned().unwrap_or_else(|| format!("class {index}"))
    }

    /// The number of classes in the card, the data and the predictions, whichever is the largest.
    pub(crate) fn class_count(&self) -> usize {
        let seen = self
            .predictions
            .iter()
            .map(|prediction| prediction.label.max(prediction.pred1.unwrap_or(0)).saturating_add(1));
        self.summary.classes.len().max(self.info.data.classes).max(seen.max().unwrap_or(0))
    }

    /// Returns one column of a split of `metrics.csv` over its epochs or steps. An empty cell is a gap. If a resumed
    /// run repeats steps, the later row counts.
    pub(crate) fn curve(
        &self,
        split: &str,
        x: fn(&MetricRow) -> Option<f64>,
        y: fn(&MetricRow) -> Option<f64>,
    ) -> Vec<(f64, f64)> {
        let mut points: Vec<(f64, f64)> = Vec::new();
        for metric in self.metrics.iter().filter(|metric| metric.split == split) {
            let Some(x) = x(metric) else { continue };
            while points.pop_if(|last| last.0 >= x).is_some() {}
            points.push((x, y(metric).unwrap_or(f64::NAN)));
        }
        points
    }

    /// Returns the last row of a split that has a value.
    pub(crate) fn last(&self, split: &str) -> Option<&MetricRow> {
        self.metrics.iter().rev().find(|metric| metric.split == split && metric.top1.is_some())
    }

    fn notice(&mut self, name: &str, problem: &str) {
        self.notices.push(format!("{name} {problem}"));
    }

    /// Reads a file as text; invalid UTF-8 is replaced.
    fn text(&mut self, name: &'static str) -> Option<String> {
        match files::read(&self.folder.join(name)) {
            Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.missing.push(name);
                None
            }
            Err(error) => {
                self.notice(name, &format!("cannot be read: {error}. Check the file, then write the report again."));
                None
            }
        }
    }

    fn json<T: Default + DeserializeOwned>(&mut self, name: &'static str) -> T {
        let Some(text) = self.text(name) else { return T::default() };
        serde_json::from_str(&text).unwrap_or_else(|error| {
            self.notice(name, &format!("is damaged: {error}. Restore it, then write the report again."));
            T::default()
        })
    }

    fn rows<T: DeserializeOwned>(&mut self, name: &'static str) -> Vec<T> {
        let Some(text) = self.text(name) else { return Vec::new() };
        // A last line without a newline is still being written, or was truncated.
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        let mut rows = Vec::new();
        let mut problems = 0;
        let mut first = String::new();
        for (index, row) in csv::Reader::from_reader(whole.as_bytes()).into_deserialize().enumerate() {
            match row {
                Ok(row) => rows.push(row),
                Err(error) => {
                    problems += 1;
                    if first.is_empty() {
                        let line = error.position().map_or(index as u64 + 2, csv::Position::line);
                        first = format!("line {line}: {}", reason(&error));
                    }
                }
            }
        }
        if problems > 0 {
            let lines = if problems == 1 { "line was" } else { "lines were" };
            self.notice(name, &format!("is damaged: {problems} {lines} left out; {first}. Repair or remove them, then write the report again."));
        }
        rows
    }

    /// Reads a thumbnail. Only plain file names are followed: the index must not lead out of its folder.
    fn picture(&self, file: &str) -> Option<(Vec<u8>, &'static str)> {
        let plain = Path::new(file).file_name().is_some_and(|name| name == file);
        let path = self.folder.join("mistakes").join(file);
        let small = plain && fs::metadata(&path).is_ok_and(|data| data.is_file() && data.len() <= PICTURE_BYTES);
        let bytes = if small { fs::read(&path).ok()? } else { return None };
        let kind = match bytes.as_slice() {
            [0xff, 0xd8, ..] => "image/jpeg",
            [0x89, b'P', b'N', b'G', ..] => "image/png",
            _ => return None,
        };
        Some((bytes, kind))
    }
}

/// The epoch of a row, as the x of a curve.
pub(crate) fn by_epoch(metric: &MetricRow) -> Option<f64> {
    metric.epoch.map(|epoch| epoch as f64)
}

/// The step of a row, as the x of a curve.
pub(crate) fn by_step(metric: &MetricRow) -> Option<f64> {
    metric.step.map(|step| step as f64)
}

/// Returns the cause of a bad row, without its position.
fn reason(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Deserialize { err, .. } => err.to_string(),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => format!("{len} cells instead of {expected_len}"),
        _ => error.to_string(),
    }
}

/// Returns all leaves of a JSON value under dotted names. Arrays are leaves.
pub(crate) fn flatten(value: &Value) -> Vec<(String, String)> {
    fn walk(prefix: &str, value: &Value, leaves: &mut Vec<(String, String)>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                    walk(&name, value, leaves);
                }
            }
            Value::Null => leaves.push((prefix.to_string(), "–".to_string())),
            Value::String(text) => leaves.push((prefix.to_string(), text.clone())),
            other => leaves.push((prefix.to_string(), other.to_string())),
        }
    }
    let mut leaves = Vec::new();
    walk("", value, &mut leaves);
    leaves.retain(|leaf| !leaf.0.is_empty());
    leaves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("mistakes")).unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    const HEADER: &str = "epoch,step,split,loss,top1,top5,learning_rate,gradient_norm,images_per_second\n";

    #[test]
    fn a_truncated_last_line_is_ignored() {
        let text = format!("{HEADER}1,45,valid,0.5,90.0,,,,\n2,90,valid,0.25,95.");
        let folder = folder(&[("metrics.csv", &text)]);
        let run = Run::read(folder.path()).unwrap();
        assert_eq!(run.metrics.len(), 1);
        assert_eq!((run.metrics[0].top1, run.metrics[0].top5), (Some(90.0), None));
        assert!(run.notices.is_empty(), "{:?}", run.notices);
    }

    #[test]
    fn a_damaged_line_is_skipped_with_a_notice() {
        let text = format!("{HEADER}1,45,valid,0.5\n2,90,valid,zero,,,,,\n3,135,valid,0.25,95,,,,\n");
        let folder = folder(&[("metrics.csv", &text)]);
        let run = Run::read(folder.path()).unwrap();
        assert_eq!(run.metrics.len(), 1);
        assert_eq!(
            run.notices,
            ["metrics.csv is damaged: 2 lines were left out; line 2: 4 cells instead of 9. Repair or remove \
             them, then write the report again."]
        );
    }

    #[test]
    fn a_missing_column_is_empty_but_predictions_need_labels() {
        let short = "epoch,split,loss\n1,valid,0.5\n";
        let folder = folder(&[("metrics.csv", short), ("predictions.csv", "key,pred1,p1\na,1,0.5\n")]);
        let run = Run::read(folder.path()).unwrap();
        assert_eq!((run.metrics[0].loss, run.metrics[0].step), (Some(0.5), None));
        assert!(run.predictions.is_empty());
        assert!(run.notices[0].contains("missing field `label`"), "{:?}", run.notices);
    }

    #[test]
    fn a_resumed_run_replaces_the_steps_it_repeats() {
        let text = format!("{HEADER}1,,valid,4,,,,,\n2,,valid,3,,,,,\n3,,valid,2,,,,,\n2,,valid,1,,,,,\n");
        let folder = folder(&[("metrics.csv", &text)]);
        let run = Run::read(folder.path()).unwrap();
        assert_eq!(run.curve("valid", by_epoch, |metric| metric.loss), [(1.0, 4.0), (2.0, 1.0)]);
    }

    #[test]
    fn unknown_keys_are_ignored_and_missing_ones_are_empty() {
        let json = r#"{"new": [], "data": {"train_images": 12}}"#;
        let folder = folder(&[("run.json", json), ("card.json", "{")]);
        let run = Run::read(folder.path()).unwrap();
        assert_eq!((run.info.data.train_images, run.info.data.valid_images), (12, 0));
        assert_eq!(run.name(), run.folder_name());
        assert_eq!(run.notices.len(), 1, "{:?}", run.notices);
        assert!(run.notices[0].starts_with("card.json is damaged: EOF"), "{:?}", run.notices);
    }

    #[test]
    fn a_value_of_the_wrong_type_is_a_notice_that_says_where() {
        let folder = folder(&[("run.json", r#"{"name": 7}"#), ("card.json", r#"{"classes": 3}"#)]);
        let run = Run::read(folder.path()).unwrap();
        assert_eq!(run.name(), run.folder_name());
        let [info, card] = run.notices.as_slice() else { panic!("{:?}", run.notices) };
        assert!(info.starts_with("run.json is damaged: invalid type: integer `7`, expected a string"), "{info}");
        assert!(card.starts_with("card.json is not a model card: invalid type: integer `3`"), "{card}");
    }

    #[test]
    fn a_folder_without_a_run_is_an_error_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().to_path_buf(), folder.path().join("missing")] {
            let error = Run::read(&path).unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()) && error.contains("give a"), "{error}");
        }
    }

    #[test]
    fn pictures_are_only_read_from_their_folder() {
        let index = "file,key,label,pred1,p1\n../secret.jpg,a,0,1,0.9\n/etc/passwd,b,0,1,0.9\nok.jpg,c,0,1,0.9\n";
        let folder = folder(&[("mistakes/index.csv", index)]);
        fs::write(folder.path().join("secret.jpg"), [0xff, 0xd8, 0xff]).unwrap();
        fs::write(folder.path().join("mistakes/ok.jpg"), [0xff, 0xd8, 0xff]).unwrap();
        let run = Run::read(folder.path()).unwrap();
        let read: Vec<bool> = run.mistakes.iter().map(|mistake| mistake.picture.is_some()).collect();
        assert_eq!(read, [false, false, true]);
    }

    #[test]
    fn nested_values_are_flattened_under_dotted_names() {
        let value: Value = toml::from_str("a = 1\n[b]\nc = \"x\"\nd = [1, 2]\n").unwrap();
        let leaves: Vec<String> = flatten(&value).into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(leaves, ["a=1", "b.c=x", "b.d=[1,2]"]);
    }
}
