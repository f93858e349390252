//! The learning rate range test (Smith, 2015, <https://arxiv.org/abs/1506.01186>).

use std::path::Path;

use report::{
    chart::{Chart, Scale, Series},
    format::{METRICS, read_csv},
};
use runtime::files::write_atomic_bytes;

use crate::{
    Error, Result,
    run::{self, Options, Prepared},
    schedule::Rates,
    trainer::{End, RunLimits},
};

/// The factor between the smoothed loss and its lowest value at which the test ends.
const DIVERGED: f64 = 4.0;

/// Trains while the learning rate rises from `low` to `high` over `steps` steps. Writes an SVG chart to `chart` and a
/// table beside it, and returns the suggested learning rate, or `None` if the loss never falls.
///
/// # Errors
/// Fails if training fails, if the loss is not finite from the beginning, or if the chart cannot be written.
pub fn sweep(
    mut prepared: Prepared,
    (low, high): (f64, f64),
    steps: u64,
    chart: &Path,
    options: &Options,
) -> Result<Option<f64>> {
    let folder = run::trial_folder()?;
    // As many epochs as the steps need; each has at least one.
    prepared.recipe.epochs = steps as usize;
    prepared.recipe.schedule.warmup_epochs = 0.0;
    let limits =
        RunLimits { steps: Some(steps), steps_only: true, every_step_until: Some(DIVERGED), ..RunLimits::default() };
    let trial = run::trial(prepared, folder.path(), limits, Some(Rates::sweep(low, high, steps)), options)?;
    if let End::Failed(error) = trial.outcome.end {
        return Err(Error::Part { what: "the range test".into(), source: Box::new(error) });
    }
    let rows: Vec<Row> = read_csv(&folder.path().join(METRICS))?;
    let points: Vec<(f64, f64)> = rows.iter().map(|row| (row.learning_rate, row.loss)).collect();
    if points.len() < 5 {
        return Err(Error::NotFinite(
            "the loss was not finite from the beginning; begin with a lower learning rate, or check the data".into(),
        ));
    }
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
    let mut table = "learning_rate,loss,smoothed\n".to_string();
    for ((rate, loss), (_, smoothed)) in points.iter().zip(&smoothed) {
        table += &format!("{rate:.6e},{loss:.5},{smoothed:.5}\n");
    }
    write_atomic_bytes(&chart.with_extension("csv"), table.as_bytes())?;
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
