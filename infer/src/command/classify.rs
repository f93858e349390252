//! `infer classify`: classifies images.

use std::io::{self, BufWriter, Write};

use anyhow::{Context, Result};
use infer::{Input, Model, Prediction, inputs, stream};
use runtime::{
    exit::ExitCode,
    progress::{self, Output, Progress, Unit},
};
use serde::Serialize;

use super::{open_weights, select};
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

pub fn run(args: &ClassifyArgs, output: Output) -> Result<ExitCode> {
    let inputs = inputs::expand(&args.images)?;
    let device = select(&args.run.backend)?.device().clone();
    let mut opened = open_weights(&args.weights, &args.load, &device, output)?;
    args.decoding.override_card(&mut opened.card);
    let model = Model::load(&opened, args.run.keep_batchnorm, &device)?.with_dtype(args.run.dtype.compute_dtype())?;
    let model = model.with_max_pixels(args.decoding.max_pixels);

    let output = if inputs.len() < MANY { Output::Quiet } else { output };
    let progress = Progress::new("classify", Unit::Items("images"), Some(inputs.len() as u64), output);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut printer = Printer::new(args.format)?;
    let mut unreadable = 0;
    stream::batches(&inputs, model.preprocess(), args.batch_size as usize, threads, |batch| {
        let answers = answer(&model, batch, args.topk as usize)?;
        unreadable += answers.iter().filter(|answer| matches!(answer.outcome, Outcome::Error(_))).count();
        progress::suspend(|| {
            answers.iter().try_for_each(|answer| printer.print(answer)).and_then(|()| printer.flush())
        })
        .context("cannot write to standard output")?;
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
fn answer(model: &Model, batch: &[(&Input, Result<image::RgbImage>)], k: usize) -> Result<Vec<Answer>> {
    let readable: Vec<_> = batch.iter().filter_map(|(_, image)| image.as_ref().ok()).collect();
    let mut probabilities = match readable.is_empty() {
        true => Vec::new(),
        false => model.probabilities(&model.preprocess().batch(&readable))?,
    }
    .into_iter();
    let outcome = |image: &Result<image::RgbImage>| match image {
        Err(error) => Ok(Outcome::Error(format!("{error:#}"))),
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
    stdout: BufWriter<io::Stdout>,
}

impl Printer {
    fn new(format: AnswerFormat) -> Result<Self> {
        let mut stdout = BufWriter::new(io::stdout());
        if format == AnswerFormat::Csv {
            writeln!(stdout, "path,rank,class,index,probability,error")?;
        }
        Ok(Self { format, stdout })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush()
    }

    fn print(&mut self, answer: &Answer) -> io::Result<()> {
        match (self.format, &answer.outcome) {
            (AnswerFormat::Json, _) => {
                serde_json::to_writer(&mut self.stdout, answer)?;
                writeln!(self.stdout)
            }
            (AnswerFormat::Csv, outcome) => write!(self.stdout, "{}", csv(&answer.path, outcome)),
            (AnswerFormat::Text, Outcome::Top(top)) => write!(self.stdout, "{}", text(&answer.path, top)),
            (AnswerFormat::Text, Outcome::Error(error)) => {
                // Flushes, so that errors and results keep their order on a terminal.
                self.stdout.flush()?;
                writeln!(io::stderr(), "error: {}: {error}", answer.path)
            }
        }
    }
}

/// Formats the path, and a line for each class.
fn text(path: &str, top: &[Prediction]) -> String {
    let width = top.iter().map(|prediction| prediction.index.to_string().len()).max().unwrap_or(0);
    let line = |Prediction { class, index, probability }: &Prediction| {
        format!("  {:>6.2} %  {index:>width$}  {class}\n", probability * 100.0)
    };
    format!("{path}\n{}", top.iter().map(line).collect::<String>())
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

/// Formats a field of a CSV file, quoted if necessary (RFC 4180).
fn field(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_string(),
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
        assert_eq!(text("a.jpg", &top()), "a.jpg\n   87.50 %  162  beagle\n    6.25 %    7  \"puma\", cougar\n");
    }

    #[test]
    fn csv_quotes_what_must_be_quoted() {
        let rows = csv("a,b.jpg", &Outcome::Top(top()));
        assert_eq!(rows, "\"a,b.jpg\",1,beagle,162,0.875000,\n\"a,b.jpg\",2,\"\"\"puma\"\", cougar\",7,0.062500,\n");
        assert_eq!(csv("a.jpg", &Outcome::Error("cut off".into())), "a.jpg,,,,,cut off\n");
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
