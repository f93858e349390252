//! `infer summary`: prints a network's stages, shapes, parameters and multiply-adds.

use anyhow::{Context, Result};
use hub::{Card, ChannelOrder, Resize};
use models::{Architecture, NetworkConfig, Summary};
use runtime::{
    backend::BackendSpec,
    exit::ExitCode,
    outln,
    progress::{Output, thousands},
};
use serde::Serialize;

use super::{open_weights, print_json};
use crate::cli::{Format, SummaryArgs};

#[derive(Debug, Serialize)]
struct Described<'a> {
    architecture: Architecture,
    input_size: [usize; 2],
    /// The number of parameters with auxiliary classifiers.
    parameters: usize,
    multiply_adds: u64,
    stages: Vec<Stage<'a>>,
    /// The model card of the weights; null for an architecture.
    card: Option<&'a Card>,
}

#[derive(Debug, Serialize)]
struct Stage<'a> {
    name: &'a str,
    /// `[channels, height, width]` or `[features]`.
    output: &'a [usize],
    parameters: usize,
    multiply_adds: u64,
}

pub fn run(args: &SummaryArgs, output: Output) -> Result<ExitCode> {
    let device = BackendSpec::host()?.device()?;
    let (architecture, network, card) = match (&args.weights, args.network) {
        (Some(name), _) => {
            let opened = open_weights(name, &args.load, &device, output)?;
            (opened.card.architecture, opened.network(true, &device)?, Some(opened.card))
        }
        (None, architecture) => {
            let architecture = architecture.context("give an architecture, or --weights")?;
            let mut config = NetworkConfig::new(architecture);
            if let Some(classes) = args.classes {
                config = config.with_num_classes(classes as usize);
            }
            (architecture, config.init(&device), None)
        }
    };
    let usual = card.as_ref().map_or([architecture.default_size(); 2], |card| card.preprocess.input_size);
    let summary = Summary::of(architecture, &network, args.size.unwrap_or(usual), &device)?;
    match args.format {
        Format::Json => print_json(&described(&summary, card.as_ref()))?,
        Format::Text => {
            if let Some(card) = &card {
                outln!("{}", card_text(card))?;
            }
            outln!("{}", table(&summary))?;
        }
    }
    Ok(ExitCode::Success)
}

fn described<'a>(summary: &'a Summary, card: Option<&'a Card>) -> Described<'a> {
    let stage = |stage: &'a models::Stage| Stage {
        name: &stage.name,
        output: &stage.output,
        parameters: stage.parameters,
        multiply_adds: stage.multiply_adds,
    };
    Described {
        architecture: summary.architecture,
        input_size: summary.input_size,
        parameters: summary.parameters(),
        multiply_adds: summary.multiply_adds(),
        stages: summary.stages.iter().map(stage).collect(),
        card,
    }
}

/// Formats a summary as a table of its stages.
fn table(summary: &Summary) -> String {
    let [h, w] = summary.input_size;
    let width = summary.stages.iter().map(|stage| stage.name.len()).max().unwrap_or(0).max(5);
    let count = |count: u64| if count == 0 { "-".to_string() } else { thousands(count) };
    let row = |name: &str, output: &str, parameters: usize, multiply_adds: u64| {
        let (parameters, cost) = (count(parameters as u64), count(multiply_adds));
        format!("{name:<width$}  {output:>17}  {parameters:>12}  {cost:>15}\n")
    };
    let mut text = format!("{}, input 3 × {h} × {w}\n\n", summary.architecture);
    text += &format!("{:<width$}  {:>17}  {:>12}  {:>15}\n", "stage", "output", "parameters", "multiply-adds");
    for stage in &summary.stages {
        let output: Vec<String> = stage.output.iter().map(usize::to_string).collect();
        text += &row(&stage.name, &output.join(" × "), stage.parameters, stage.multiply_adds);
    }
    text + row("total", "", summary.parameters(), summary.multiply_adds()).trim_end()
}

/// The number of classes named in a card's text.
const CLASSES_SHOWN: usize = 6;

fn card_text(card: &Card) -> String {
    let Card { classes, preprocess, transform_input, origin, .. } = card;
    let shown: Vec<&str> = classes.iter().take(CLASSES_SHOWN).map(String::as_str).collect();
    let more = if classes.len() > CLASSES_SHOWN { ", …" } else { "" };
    let resize = match preprocess.resize {
        Resize::ShorterSide(side) => format!("shorter side to {side}"),
        Resize::Squash([height, width]) => format!("squashed to {height} × {width}"),
    };
    let [height, width] = preprocess.input_size;
    let filter = format!("{:?}", preprocess.interpolation).to_lowercase();
    let antialias = if preprocess.antialias { "antialiased" } else { "not antialiased" };
    let order = match preprocess.channel_order {
        ChannelOrder::Rgb => "RGB",
        ChannelOrder::Bgr => "BGR",
    };
    let numbers = |numbers: [f32; 3]| numbers.map(|number| format!("{number:.4}")).join(", ");
    let inside = if *transform_input { ", mapped to ±1 by the network" } else { "" };
    format!(
        "origin      {origin}\n\
         classes     {}: {}{more}\n\
         image       {resize} ({filter}, {antialias}), center crop {height} × {width}\n\
         input       {order}, mean {}, deviation {}{inside}\n",
        classes.len(),
        shown.join("; "),
        numbers(preprocess.mean),
        numbers(preprocess.std),
    )
}
