//! What a run leaves besides its weights: predictions, pictures of mistakes, bad samples, the table of runs.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs::{self, OpenOptions},
    io::{self, Cursor, Write},
    path::Path,
    sync::Arc,
};

use datasets::{
    DecodeOptions, Source, decode,
    loader::BadSample,
    transforms::{Interpolation, Resize, ResizeRule},
};
use image::{ImageFormat, codecs::jpeg::JpegEncoder};
use report::format::{
    BAD_SAMPLES, MISTAKES, MistakeRow, PREDICTIONS, PredictionRow, RunInfo, RunResult, read_csv, write_csv,
};
use runtime::{
    files::write_atomic_bytes,
    text::{cell, escape_cell},
};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, evaluation::Prediction, recipe::Recipe, run::options::Options};

/// The number of thumbnails of the most confident mistakes.
const MAX_THUMBNAILS: usize = 24;

/// Their shorter side, in pixels.
const THUMBNAIL: u32 = 160;

/// Writes `predictions.csv` and pictures of the surest mistakes into a run's folder.
pub fn write_predictions(run: &Path, predictions: &[Prediction], source: &Arc<dyn Source>) -> Result<()> {
    let rows = predictions.iter().map(|prediction| {
        let top = prediction.top.iter().map(|&(class, probability)| (class as usize, widened(probability)));
        PredictionRow {
            p_label: Some(widened(prediction.p_label)),
            loss: Some(widened(prediction.loss)),
            ..PredictionRow::new(source.key(prediction.index).into_owned(), prediction.label as usize, top)
        }
    });
    write_csv(&run.join(PREDICTIONS), rows)?;
    write_mistakes(run, predictions, source)
}

/// The double with the shortest decimal form of a single, so that tables hold `0.1` and not `0.10000000149011612`.
fn widened(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

fn write_mistakes(run: &Path, predictions: &[Prediction], source: &Arc<dyn Source>) -> Result<()> {
    let first = |prediction: &Prediction| prediction.top.first().copied().unwrap_or((prediction.label, 0.0));
    let mut wrong: Vec<&Prediction> = predictions.iter().filter(|p| first(p).0 != p.label).collect();
    wrong.sort_by(|a, b| first(b).1.total_cmp(&first(a).1).then(a.index.cmp(&b.index)));
    let folder = run.join("mistakes");
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("replace", &folder)(error)),
        _ => {}
    }
    let mut rows = Vec::new();
    let mut bytes = Vec::new();
    for (number, prediction) in wrong.into_iter().take(MAX_THUMBNAILS).enumerate() {
        // An image that could be validated can be read; if not, its picture is missing and nothing else.
        if source.read(prediction.index, &mut bytes).is_err() {
            continue;
        }
        let Some((picture, extension)) = thumbnail(&bytes) else { continue };
        let file = format!("{:03}.{extension}", number + 1);
        write_atomic_bytes(&folder.join(&file), &picture)?;
        let (class, probability) = first(prediction);
        rows.push(MistakeRow {
            file,
            key: source.key(prediction.index).into_owned(),
            label: prediction.label as usize,
            pred1: Some(class as usize),
            p1: Some(widened(probability)),
        });
    }
    Ok(write_csv(&run.join(MISTAKES), rows)?)
}

/// A small picture, and the ending of its file's name; `None` for an image that cannot be decoded.
fn thumbnail(bytes: &[u8]) -> Option<(Vec<u8>, &'static str)> {
    let image = decode(bytes, &DecodeOptions::default()).ok()?.image;
    let tiny = image.width().min(image.height()) < THUMBNAIL / 2;
    // Tiny images are enlarged in whole pixels, so that they look as they are.
    let interpolation = if tiny { Interpolation::Nearest } else { Interpolation::Bilinear };
    let resize = Resize { size: THUMBNAIL, rule: ResizeRule::Shorter, interpolation, antialias: true };
    let mut picture = Cursor::new(Vec::new());
    let small = resize.apply(&image);
    if tiny {
        small.write_to(&mut picture, ImageFormat::Png).ok()?;
    } else {
        small.write_with_encoder(JpegEncoder::new_with_quality(&mut picture, 85)).ok()?;
    }
    Some((picture.into_inner(), if tiny { "png" } else { "jpg" }))
}

/// A row of `bad_samples.csv`: an image that is damaged, or could not be read or decoded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadSampleRow {
    #[serde(with = "cell")]
    key: String,
    #[serde(with = "cell")]
    location: String,
    #[serde(with = "cell")]
    cause: String,
    /// How often it was met.
    times: u64,
}

/// Reads `bad_samples.csv`, for the run to continue it; empty if the run has none.
pub fn read_bad_samples(run: &Path) -> Result<Vec<BadSampleRow>> {
    let path = run.join(BAD_SAMPLES);
    if path.exists() { Ok(read_csv(&path)?) } else { Ok(Vec::new()) }
}

/// Writes `bad_samples.csv`: the rows of earlier processes of the run, and the images that this one met, each once.
pub fn write_bad_samples(run: &Path, earlier: &[BadSampleRow], bad: &[BadSample]) -> Result<()> {
    if bad.is_empty() {
        return Ok(());
    }
    let mut rows = earlier.to_vec();
    let mut known: HashMap<(&str, &str), usize> =
        earlier.iter().enumerate().map(|(at, row)| ((row.key.as_str(), row.location.as_str()), at)).collect();
    for BadSample { key, location, cause, times, .. } in bad {
        match known.entry((key.as_str(), location.as_str())) {
            Entry::Occupied(at) => {
                let row = &mut rows[*at.get()];
                (row.cause, row.times) = (cause.clone(), row.times + times);
            }
            Entry::Vacant(vacant) => {
                vacant.insert(rows.len());
                let (key, location, cause) = (key.clone(), location.clone(), cause.clone());
                rows.push(BadSampleRow { key, location, cause, times: *times });
            }
        }
    }
    Ok(write_csv(&run.join(BAD_SAMPLES), rows)?)
}

/// Rows as CSV.
fn csv_of(rows: impl IntoIterator<Item = Vec<String>>) -> Vec<u8> {
    let mut table = csv::Writer::from_writer(Vec::new());
    rows.into_iter().for_each(|row| table.write_record(row).expect("rows of equal length are written to memory"));
    table.into_inner().expect("memory does not fail to be written")
}

/// Appends a finished run to `results.csv`, the table of all runs in its folder's parent.
pub fn append(run: &Path, recipe: &Recipe, info: &RunInfo, result: &RunResult, options: &Options) -> Result<()> {
    let table = match &options.out {
        Some(_) => run.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")),
        None => &options.artifacts,
    };
    let last = result.last.unwrap_or(result.best);
    append_row(
        table,
        &[
            ("run", info.name.clone()),
            ("kind", info.kind.name().to_string()),
            ("architecture", recipe.architecture.to_string()),
            ("data", recipe.data.train.clone()),
            ("classes", info.data.classes.to_string()),
            ("train_images", info.data.train_images.to_string()),
            ("valid_images", info.data.valid_images.to_string()),
            ("epochs", recipe.epochs.to_string()),
            ("best_epoch", result.best_epoch.map_or(String::new(), |epoch| epoch.to_string())),
            ("best_top1", format!("{:.2}", result.best.top1)),
            ("best_top5", format!("{:.2}", result.best.top5)),
            ("last_top1", format!("{:.2}", last.top1)),
            ("last_loss", format!("{:.4}", last.loss)),
            ("images_per_second", format!("{:.1}", result.images_per_second)),
            ("seconds", format!("{:.0}", result.seconds)),
            ("backend", info.backend.clone()),
            ("finished", info.finished.clone().unwrap_or_default()),
        ],
    )
}

/// Appends a row with named cells to `results.csv`; a new table has a header.
fn append_row(folder: &Path, row: &[(&str, String)]) -> Result<()> {
    let path = folder.join("results.csv");
    // A negative number is no formula.
    let is_number = |cell: &str| cell.parse::<f64>().is_ok();
    let escaped = |cell: &String| if is_number(cell) { cell.clone() } else { escape_cell(cell).into_owned() };
    let cells: Vec<String> = row.iter().map(|(_, cell)| escaped(cell)).collect();
    let header: Vec<String> = row.iter().map(|(name, _)| name.to_string()).collect();
    let append = || {
        let mut file = OpenOptions::new().create(true).append(true).read(true).open(&path)?;
        // Two runs that end at once write one after the other.
        file.lock()?;
        let rows = if file.metadata()?.len() == 0 { vec![header, cells] } else { vec![cells] };
        file.write_all(&csv_of(rows))
    };
    append().map_err(Error::io("write", &path))
}

#[cfg(test)]
mod tests {
    use datasets::Digits;

    use super::*;

    #[test]
    fn predictions_and_the_surest_mistakes_are_written() {
        let run = tempfile::tempdir().unwrap();
        let source: Arc<dyn Source> = Arc::new(Digits::test());
        let prediction = |index: usize, guess: u32, sure: f32| Prediction {
            index,
            label: source.label(index).unwrap(),
            loss: 0.5,
            p_label: 0.25,
            top: vec![(guess, sure), (11, 0.1)],
        };
        let predictions =
            [prediction(0, 99, 0.4), prediction(1, source.label(1).unwrap(), 0.9), prediction(2, 99, 0.8)];
        write_predictions(run.path(), &predictions, &source).unwrap();
        let table = fs::read_to_string(run.path().join("predictions.csv")).unwrap();
        assert_eq!(table.lines().count(), 4, "{table}");
        assert!(table.starts_with("key,label,p_label,loss,pred1,p1,pred2"), "{table}");
        assert!(table.lines().nth(1).unwrap().ends_with("99,0.4,11,0.1,,,,,,,,"), "{table}");
        let index = fs::read_to_string(run.path().join("mistakes/index.csv")).unwrap();
        let rows: Vec<&str> = index.lines().skip(1).collect();
        assert!(rows.len() == 2 && rows[0].starts_with("001.png") && rows[0].ends_with("0.800000"), "{index}");
        assert!(run.path().join("mistakes/002.png").is_file());
        write_predictions(run.path(), &predictions[..1], &source).unwrap();
        assert!(!run.path().join("mistakes/002.png").exists());
    }

    #[test]
    fn bad_samples_of_earlier_processes_stay_listed_once() {
        let run = tempfile::tempdir().unwrap();
        let sample = |key: &str, times| BadSample {
            index: 0,
            key: key.into(),
            location: format!("data/{key}"),
            cause: "it ends early".into(),
            times,
        };
        assert_eq!(read_bad_samples(run.path()).unwrap(), []);
        write_bad_samples(run.path(), &[], &[sample("=a.jpg", 2), sample("b.jpg", 1)]).unwrap();
        let earlier = read_bad_samples(run.path()).unwrap();
        for _ in 0..2 {
            // Each checkpoint of the process writes all that it met so far.
            write_bad_samples(run.path(), &earlier, &[sample("b.jpg", 3), sample("c.jpg", 1)]).unwrap();
        }
        let listed = fs::read_to_string(run.path().join(BAD_SAMPLES)).unwrap();
        assert_eq!(
            listed,
            "key,location,cause,times\n'=a.jpg,data/=a.jpg,it ends early,2\nb.jpg,data/b.jpg,it ends early,4\n\
             c.jpg,data/c.jpg,it ends early,1\n"
        );
        write_bad_samples(run.path(), &earlier, &[]).unwrap();
        assert_eq!(read_bad_samples(run.path()).unwrap().len(), 3, "nothing new, nothing lost");
    }

    #[test]
    fn the_table_of_runs_has_one_header() {
        let artifacts = tempfile::tempdir().unwrap();
        for name in ["a", "b, with a comma"] {
            append_row(artifacts.path(), &[("run", name.to_string()), ("top1", "1".into())]).unwrap();
        }
        let table = fs::read_to_string(artifacts.path().join("results.csv")).unwrap();
        assert_eq!(table, "run,top1\na,1\n\"b, with a comma\",1\n");
    }
}
