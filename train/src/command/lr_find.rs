//! `train lr-find`: the learning rate range test (Smith, 2015, <https://arxiv.org/abs/1506.01186>).

use std::path::Path;

use anyhow::{Context, Result, ensure};
use report::chart::{Chart, Scale, Series};
use runtime::{exit::ExitCode, files::write_atomic_bytes};
use zoo::LoadOptions;

use crate::{
    cli::LrFindArgs,
    recipe,
    schedule::Rates,
    trainer::{End, RunLimits},
    training::{self, Options, Prepared},
};

/// The test ends once the smoothed loss is so many times its lowest.
const DIVERGED: f64 = 4.0;

pub fn run(args: &LrFindArgs) -> Result<ExitCode> {
    ensure!(
        args.from > 0.0 && args.from < args.to && args.to.is_finite(),
        "the rates go from --from {} to --to {}: both are positive and the first is the smaller",
        args.from,
        args.to
    );
    let options = args.run.how.options()?;
    let mut overrides = args.run.overrides()?;
    let default = match (&args.weights, args.run.data.as_deref()) {
        (Some(_), _) => "finetune",
        (None, None | Some("digits")) => "digits",
        (None, Some(_)) => "imagenet-classic",
    };
    overrides.set("transfer.weights", args.weights.clone());
    if args.weights.is_none() {
        overrides.set("architecture", args.load.architecture.map(|arch| arch.to_string()));
    }
    let mut recipe = recipe::load(args.recipe.as_deref().unwrap_or(default), &overrides)?;
    let prepared = if recipe.transfer.is_some() {
        training::follow_weights(recipe, &args.load, args.run.size, &options)?
    } else {
        if let Some(size) = args.run.size {
            recipe.images.set_size(size)?;
        }
        training::prepare(recipe, &LoadOptions::default(), &options)?
    };
    let found = sweep(prepared, (args.from, args.to), args.steps, &args.chart, &options)?;
    match found {
        Some(rate) => println!("suggested: --lr {rate:.2e}"),
        None => println!("no suggestion: the loss fell nowhere; try other limits by --from and --to, or more --steps"),
    }
    println!("chart: {}", args.chart.display());
    Ok(ExitCode::Success)
}

/// Trains while the rate rises from the first to the second; writes the chart and the table, and returns a suggestion.
pub fn sweep(
    mut prepared: Prepared,
    (low, high): (f64, f64),
    steps: u64,
    chart: &Path,
    options: &Options,
) -> Result<Option<f64>> {
    let folder = tempfile::tempdir().context("cannot make a folder for the trial")?;
    // As many epochs as the steps need; each has at least one.
    prepared.recipe.epochs = steps as usize;
    prepared.recipe.schedule.warmup_epochs = 0.0;
    let limits =
        RunLimits { steps: Some(steps), steps_only: true, every_step_until: Some(DIVERGED), ..RunLimits::default() };
    let trial = training::trial(prepared, folder.path(), limits, Some(Rates::sweep(low, high, steps)), options)?;
    if let End::Failed(error) = trial.outcome.end {
        return Err(error.context("the range test failed"));
    }
    let table = csv::Reader::from_path(folder.path().join("metrics.csv"))?.into_deserialize::<Row>();
    let rows: Vec<Row> = table.collect::<Result<_, _>>().context("cannot read the test's metrics")?;
    let points: Vec<(f64, f64)> = rows.iter().map(|row| (row.learning_rate, row.loss)).collect();
    ensure!(points.len() >= 5, "the loss was not finite from the beginning; lower --from, or check the data");
    let smoothed = smooth(&points);
    let suggestion = suggest(&smoothed);
    let drawing = Chart {
        title: "Learning rate range test".into(),
        x_label: "learning rate".into(),
        y_label: "training loss".into(),
        x_scale: Scale::Log,
        y_scale: Scale::Linear,
        series: vec![Series::new("a step", points.clone()), Series::new("smoothed", smoothed.clone())],
        marker: suggestion.map(|rate| (rate, format!("{rate:.1e}"))),
    };
    write_atomic_bytes(chart, drawing.to_svg().as_bytes())?;
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(["learning_rate", "loss", "smoothed"])?;
    for ((rate, loss), (_, smoothed)) in points.iter().zip(&smoothed) {
        table.write_record([format!("{rate:.6e}"), format!("{loss:.5}"), format!("{smoothed:.5}")])?;
    }
    write_atomic_bytes(&chart.with_extension("csv"), &table.into_inner()?)?;
    Ok(suggestion)
}

#[derive(serde::Deserialize)]
struct Row {
    loss: f64,
    learning_rate: f64,
}

/// The exponential mean of the losses, freed of its start's bias.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let (mut mean, mut weight) = (0.0, 0.0);
    let step = |&(rate, loss): &(f64, f64)| {
        mean = 0.9 * mean + 0.1 * loss;
        weight = 0.9 * weight + 0.1;
        (rate, mean / weight)
    };
    points.iter().map(step).collect()
}

/// Where the smoothed loss falls fastest by the logarithm of the rate, in the lower half of its fall: before that slopes
/// are noise, at the start the more so since little is smoothed there. `None` where it never falls.
fn suggest(smoothed: &[(f64, f64)]) -> Option<f64> {
    let lowest = (0..smoothed.len()).min_by(|&a, &b| smoothed[a].1.total_cmp(&smoothed[b].1))?;
    let mut first: Vec<f64> = smoothed[..smoothed.len().div_ceil(5)].iter().map(|point| point.1).collect();
    first.sort_by(f64::total_cmp);
    let middle = (first[first.len() / 2] + smoothed[lowest].1) / 2.0;
    let half = smoothed[..lowest].iter().rposition(|point| point.1 >= middle)?;
    // A slope over several steps: one step's is noise.
    let reach = (smoothed.len() / 20).max(1);
    let slope = |at: usize| {
        let (from, to) = (at.saturating_sub(reach), (at + reach).min(smoothed.len() - 1));
        (smoothed[to].1 - smoothed[from].1) / (smoothed[to].0.ln() - smoothed[from].0.ln())
    };
    let steepest = (half..=lowest).map(|at| (at, slope(at))).min_by(|a, b| a.1.total_cmp(&b.1))?;
    (steepest.1 < 0.0).then_some(smoothed[steepest.0].0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suggestion_is_where_the_loss_falls_fastest() {
        // Flat, then a fall around 1e-2, then a rise.
        let loss = |rate: f64| 2.0 - 1.5 / (1.0 + (rate / 1e-2).powi(-2)) + (rate / 0.5).powi(3);
        let points: Vec<(f64, f64)> =
            (0..100).map(|i| 1e-5 * 10f64.powf(f64::from(i) * 5.5 / 99.0)).map(|rate| (rate, loss(rate))).collect();
        let rate = suggest(&points).unwrap();
        assert!((4e-3..2e-2).contains(&rate), "{rate}");
        // A bump at the start, steeper than the fall.
        let mut bumpy = points.clone();
        bumpy[1].1 += 0.3;
        bumpy[2].1 -= 0.3;
        assert_eq!(suggest(&bumpy), Some(rate));
        let rising: Vec<(f64, f64)> = points.iter().map(|&(rate, _)| (rate, 1.0 + rate)).collect();
        assert_eq!(suggest(&rising), None);
    }

    #[test]
    fn smoothing_starts_at_the_first_loss() {
        let smoothed = smooth(&[(1.0, 2.0), (2.0, 2.0), (3.0, 4.0)]);
        assert!((smoothed[0].1 - 2.0).abs() < 1e-12 && (smoothed[1].1 - 2.0).abs() < 1e-12);
        assert!(smoothed[2].1 > 2.0 && smoothed[2].1 < 4.0);
    }
}
