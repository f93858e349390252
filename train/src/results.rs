//! What a run leaves besides its weights: predictions, pictures of mistakes, bad samples, the table of runs.

use std::{
    fs::{self, OpenOptions},
    io::{Cursor, Write},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result};
use datasets::{
    Limits, Source, decode,
    loader::BadSample,
    transforms::{Interpolation, Resize, ResizeRule},
};
use image::{ImageFormat, codecs::jpeg::JpegEncoder};
use runtime::files::write_atomic_bytes;

use crate::evaluation::{Prediction, TOP};

/// Pictures of the surest mistakes.
const MISTAKES: usize = 24;

/// Their shorter side, in pixels.
const THUMBNAIL: u32 = 160;

/// Writes `predictions.csv` and pictures of the surest mistakes into a run's folder.
pub fn write_predictions(run: &Path, predictions: &[Prediction], source: &Arc<dyn Source>) -> Result<()> {
    let mut table = csv::Writer::from_writer(Vec::new());
    let mut header: Vec<String> = ["key", "label", "p_label", "loss"].map(String::from).to_vec();
    header.extend((1..=TOP).flat_map(|rank| [format!("pred{rank}"), format!("p{rank}")]));
    table.write_record(&header)?;
    for prediction in predictions {
        let mut row = vec![
            source.key(prediction.index).into_owned(),
            prediction.label.to_string(),
            format!("{:.6}", prediction.p_label),
            format!("{:.5}", prediction.loss),
        ];
        for rank in 0..TOP {
            let (class, probability) = prediction.top.get(rank).copied().unzip();
            row.push(class.map_or(String::new(), |class| class.to_string()));
            row.push(probability.map_or(String::new(), |probability| format!("{probability:.6}")));
        }
        table.write_record(&row)?;
    }
    write_atomic_bytes(&run.join("predictions.csv"), &table.into_inner()?)?;
    write_mistakes(run, predictions, source)
}

fn write_mistakes(run: &Path, predictions: &[Prediction], source: &Arc<dyn Source>) -> Result<()> {
    let first = |prediction: &Prediction| prediction.top.first().copied().unwrap_or((prediction.label, 0.0));
    let mut wrong: Vec<&Prediction> = predictions.iter().filter(|p| first(p).0 != p.label).collect();
    wrong.sort_by(|a, b| first(b).1.total_cmp(&first(a).1).then(a.index.cmp(&b.index)));
    let folder = run.join("mistakes");
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", folder.display()));
        }
        _ => {}
    }
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(["file", "key", "label", "pred1", "p1"])?;
    let mut bytes = Vec::new();
    for (number, prediction) in wrong.into_iter().take(MISTAKES).enumerate() {
        // An image that could be validated can be read; if not, its picture is missing and nothing else.
        if source.read(prediction.index, &mut bytes).is_err() {
            continue;
        }
        let Ok((picture, extension)) = thumbnail(&bytes) else { continue };
        let file = format!("{:03}.{extension}", number + 1);
        write_atomic_bytes(&folder.join(&file), &picture)?;
        let (class, probability) = first(prediction);
        table.write_record([
            file,
            source.key(prediction.index).into_owned(),
            prediction.label.to_string(),
            class.to_string(),
            format!("{probability:.6}"),
        ])?;
    }
    write_atomic_bytes(&folder.join("index.csv"), &table.into_inner()?)
}

/// A small picture, and the ending of its file's name.
fn thumbnail(bytes: &[u8]) -> Result<(Vec<u8>, &'static str)> {
    let image = decode(bytes, &Limits::default())?;
    let tiny = image.width().min(image.height()) < THUMBNAIL / 2;
    // Tiny images are enlarged in whole pixels, so that they look as they are.
    let interpolation = if tiny { Interpolation::Nearest } else { Interpolation::Bilinear };
    let resize = Resize { size: THUMBNAIL, rule: ResizeRule::Shorter, interpolation, antialias: true };
    let mut picture = Cursor::new(Vec::new());
    let small = resize.apply(&image);
    if tiny {
        small.write_to(&mut picture, ImageFormat::Png)?;
    } else {
        small.write_with_encoder(JpegEncoder::new_with_quality(&mut picture, 85))?;
    }
    Ok((picture.into_inner(), if tiny { "png" } else { "jpg" }))
}

/// Writes `bad_samples.csv` where there are any.
pub fn write_bad_samples(run: &Path, bad: &[BadSample]) -> Result<()> {
    if bad.is_empty() {
        return Ok(());
    }
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(["key", "location", "cause", "times"])?;
    for sample in bad {
        table.write_record([&sample.key, &sample.location, &sample.cause, &sample.times.to_string()])?;
    }
    write_atomic_bytes(&run.join("bad_samples.csv"), &table.into_inner()?)
}

/// Appends a finished run to the table of all runs.
pub fn append_result(artifacts: &Path, header: &[&str], row: &[String]) -> Result<()> {
    let path = artifacts.join("results.csv");
    let context = || format!("cannot write {}", path.display());
    let line = |cells: &[String]| -> Result<Vec<u8>> {
        let mut table = csv::Writer::from_writer(Vec::new());
        table.write_record(cells)?;
        Ok(table.into_inner()?)
    };
    let mut file = OpenOptions::new().create(true).append(true).read(true).open(&path).with_context(context)?;
    // Two runs that end at once write one after the other.
    file.lock().with_context(context)?;
    let mut bytes = Vec::new();
    if file.metadata().with_context(context)?.len() == 0 {
        bytes.extend(line(&header.iter().map(|name| name.to_string()).collect::<Vec<_>>())?);
    }
    bytes.extend(line(row)?);
    file.write_all(&bytes).with_context(context)
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
        assert!(table.lines().nth(1).unwrap().ends_with("99,0.400000,11,0.100000,,,,,,"), "{table}");
        let index = fs::read_to_string(run.path().join("mistakes/index.csv")).unwrap();
        let rows: Vec<&str> = index.lines().skip(1).collect();
        assert!(rows.len() == 2 && rows[0].starts_with("001.png") && rows[0].ends_with("0.800000"), "{index}");
        assert!(run.path().join("mistakes/002.png").is_file());
        write_predictions(run.path(), &predictions[..1], &source).unwrap();
        assert!(!run.path().join("mistakes/002.png").exists());
    }

    #[test]
    fn the_table_of_runs_has_one_header() {
        let artifacts = tempfile::tempdir().unwrap();
        for name in ["a", "b, with a comma"] {
            append_result(artifacts.path(), &["run", "top1"], &[name.to_string(), "1".into()]).unwrap();
        }
        let table = fs::read_to_string(artifacts.path().join("results.csv")).unwrap();
        assert_eq!(table, "run,top1\na,1\n\"b, with a comma\",1\n");
    }
}
