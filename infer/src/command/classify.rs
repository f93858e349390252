//! `infer classify`: classifies images.

use anyhow::{Context, Result};
use infer::{Input, Model, Prediction, inputs, stream};
use kernels::KernelMode;
use runtime::{
    exit::{self, ExitCode},
    noteln, out,
    progress::{Output, Progress, Unit},
    text::{escape_cell, printable},
};
use serde::Serialize;

use super::{open_weights, select, with_dtype};
use crate::cli::{AnswerFormat, ClassifyArgs};

/// The number of images from which progress is shown.
const MANY: usize = 20;

/// The result of one image: a line of JSON.
#[derive(Debug, Serialize)]
struct Answer {
    /// The path as given on the command line.
    path: String,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    /// The most probable classes, in descending order.
    Top(Vec<Prediction>),
    /// Why the image has no result.
    Error(String),
}

pub fn run(args: &ClassifyArgs, kernels: KernelMode, output: Output) -> Result<ExitCode> {
    let inputs::Expanded { inputs, notes } = inputs::expand(&args.images, args.recursive)?;
    notes.iter().for_each(|note| log::warn!("{note}"));
    let device = select(&args.run.backend, kernels)?.device().clone();
    let mut opened = open_weights(&args.weights, &args.load, &device, output)?;
    args.decoding.override_card(&mut opened.card);
    let model = with_dtype(Model::load(&opened, args.run.keep_batchnorm, &device)?, args.run.dtype)?;
    let model = model.with_max_pixels(args.decoding.max_pixels).with_kernels(kernels);

    let output = if inputs.len() < MANY { Output::Quiet } else { output };
    let progress = Progress::new("classify", Unit::Items("images"), Some(inputs.len() as u64), output);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut printer = Printer::new(args.format);
    let mut unreadable = 0;
    stream::batches(&inputs, model.preprocess(), args.batch_size as usize, threads, |batch| -> Result<()> {
        let answers = answer(&model, &batch, args.topk as usize)?;
        unreadable += answers.iter().filter(|answer| matches!(answer.outcome, Outcome::Error(_))).count();
        answers.iter().try_for_each(|answer| printer.print(answer))?;
        printer.flush()?;
        progress.inc(batch.len() as u64);
        Ok(())
    })?;
    progress.finish();
    if unreadable > 0 && inputs.len() > 1 {
        log::warn!("{unreadable} of {} images could not be read", inputs.len());
    }
    Ok(match unreadable {
        0 => ExitCode::Success,
        n if n == inputs.len() => ExitCode::Failure,
        _ => ExitCode::SomeInputsFailed,
    })
}

/// Runs the readable images of a batch through the network.
fn answer(model: &Model, batch: &[(&Input, infer::Result<image::RgbImage>)], k: usize) -> Result<Vec<Answer>> {
    let readable: Vec<_> = batch.iter().filter_map(|(_, image)| image.as_ref().ok()).collect();
    let mut probabilities = match readable.is_empty() {
        true => Vec::new(),
        false => model.probabilities(&model.preprocess().batch(&readable))?,
    }
    .into_iter();
    let outcome = |image: &infer::Result<image::RgbImage>| match image {
        Err(error) => Ok(Outcome::Error(exit::chain(error))),
        Ok(_) => {
            let probabilities = probabilities.next().context("the network returned fewer results than images")?;
            Ok(Outcome::Top(model.top(&probabilities, k)))
        }
    };
    let outcomes: Vec<Outcome> = batch.iter().map(|(_, image)| image).map(outcome).collect::<Result<_>>()?;
    let answers = batch.iter().zip(outcomes);
    Ok(answers.map(|((input, _), outcome)| Answer { path: input.name(), outcome }).collect())
}

/// Prints results as they arrive.
struct Printer {
    format: AnswerFormat,
    /// Text that is not printed yet.
    pending: String,
}

impl Printer {
    fn new(format: AnswerFormat) -> Self {
        let header = if format == AnswerFormat::Csv { "path,rank,class,index,probability,error\n" } else { "" };
        Self { format, pending: header.to_string() }
    }

    fn flush(&mut self) -> Result<()> {
        Ok(out!("{}", std::mem::take(&mut self.pending))?)
    }

    fn print(&mut self, answer: &Answer) -> Result<()> {
        match (self.format, &answer.outcome) {
            (AnswerFormat::Json, _) => self.pending += &(serde_json::to_string(answer)? + "\n"),
            (AnswerFormat::Csv, outcome) => self.pending += &csv(&answer.path, outcome),
            (AnswerFormat::Text, Outcome::Top(top)) => self.pending += &text(&answer.path, top),
            (AnswerFormat::Text, Outcome::Error(error)) => {
                // Flushes, so that errors and results keep their order on a terminal.
                self.flush()?;
                noteln!("error: {}: {}", printable(&answer.path), printable(error));
            }
        }
        Ok(())
    }
}

/// Formats the path, and a line for each class.
fn text(path: &str, top: &[Prediction]) -> String {
    let width = top.iter().map(|prediction| prediction.index.to_string().len()).max().unwrap_or(0);
    let line = |Prediction { class, index, probability }: &Prediction| {
        format!("  {:>6.2} %  {index:>width$}  {}\n", probability * 100.0, printable(class))
    };
    format!("{}\n{}", printable(path), top.iter().map(line).collect::<String>())
}

/// Formats a row for each class, or one with the error.
fn csv(path: &str, outcome: &Outcome) -> String {
    let path = field(path);
    match outcome {
        Outcome::Error(error) => format!("{path},,,,,{}\n", field(error)),
        Outcome::Top(top) => {
            let row = |(rank, Prediction { class, index, probability }): (usize, &Prediction)| {
                format!("{path},{rank},{},{index},{probability:.6},\n", field(class))
            };
            (1..).zip(top).map(row).collect()
        }
    }
}

/// Formats a field of a CSV file, quoted if necessary (RFC 4180) and no formula for a spreadsheet.
fn field(text: &str) -> String {
    let text = escape_cell(text);
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn top() -> Vec<Prediction> {
        let prediction = |class: &str, index, probability| Prediction { class: class.into(), index, probability };
        vec![prediction("beagle", 162, 0.875), prediction("\"puma\", cougar", 7, 0.0625)]
    }

    #[test]
    fn text_is_a_short_table() {
        let lines = text("a\u{1b}[2J\n.jpg", &top());
        assert!(lines.starts_with("a\\u{1b}[2J\\n.jpg\n"), "{lines:?}");
        assert_eq!(text("a.jpg", &top()), "a.jpg\n   87.50 %  162  beagle\n    6.25 %    7  \"puma\", cougar\n");
    }

    #[test]
    fn csv_quotes_what_must_be_quoted() {
        let rows = csv("a,b.jpg", &Outcome::Top(top()));
        assert_eq!(rows, "\"a,b.jpg\",1,beagle,162,0.875000,\n\"a,b.jpg\",2,\"\"\"puma\"\", cougar\",7,0.062500,\n");
        assert_eq!(csv("a.jpg", &Outcome::Error("cut off".into())), "a.jpg,,,,,cut off\n");
        let formula = Prediction { class: "@SUM(A1)".into(), index: 0, probability: 1.0 };
        assert_eq!(csv("=x.jpg", &Outcome::Top(vec![formula])), "'=x.jpg,1,'@SUM(A1),0,1.000000,\n");
    }

    #[test]
    fn json_has_the_documented_fields() {
        let json = |outcome| serde_json::to_string(&Answer { path: "a.jpg".into(), outcome }).unwrap();
        assert_eq!(
            json(Outcome::Top(top()[..1].to_vec())),
            r#"{"path":"a.jpg","top":[{"class":"beagle","index":162,"probability":0.875}]}"#
        );
        assert_eq!(json(Outcome::Error("cut off".into())), r#"{"path":"a.jpg","error":"cut off"}"#);
    }
}
