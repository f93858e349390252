//! The learning rate range test (Smith, 2015, <https://arxiv.org/abs/1506.01186>).

use std::path::Path;

use report::{
    chart::{Chart, Scale, Series},
    format::{METRICS, read_csv},
};
use runtime::{communicator::communicator, files::write_atomic_bytes};

use crate::{
    Error, Result,
    recipe::Freeze,
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
    prepared: Prepared,
    (low, high): (f64, f64),
    steps: u64,
    chart: &Path,
    options: &Options,
) -> Result<Option<f64>> {
    let (points, _) = losses(prepared, (low, high), steps, (DIVERGED, None), options)?;
    if points.len() < 5 {
        return Err(Error::NotFinite(
            "the loss was not finite from the beginning; begin with a lower learning rate, or check the data".into(),
        ));
    }
    let smoothed = smooth(&points, 0.9);
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

/// The learning rate and the loss of each step while the rate rises; and whether the test was stopped. Ends once the smoothed
/// loss is `factor` times its lowest value, or after `seconds`.
fn losses(
    mut prepared: Prepared,
    (low, high): (f64, f64),
    steps: u64,
    (factor, seconds): (f64, Option<f64>),
    options: &Options,
) -> Result<(Vec<(f64, f64)>, bool)> {
    let folder = run::trial_folder()?;
    // As many epochs as the steps need; each has at least one.
    prepared.recipe.epochs = steps as usize;
    prepared.recipe.schedule.warmup_epochs = 0.0;
    let every_step_until = Some(factor);
    let limits = RunLimits { steps: Some(steps), steps_only: true, every_step_until, seconds, ..RunLimits::default() };
    let trial = run::trial(prepared, folder.path(), limits, Some(Rates::sweep(low, high, steps)), options)?;
    let is_stopped = match trial.outcome.end {
        End::Failed(error) => return Err(Error::Part { what: "the range test".into(), source: Box::new(error) }),
        end => matches!(end, End::Interrupted),
    };
    let rows: Vec<Row> = read_csv(&folder.path().join(METRICS))?;
    Ok((rows.iter().map(|row| (row.learning_rate, row.loss)).collect(), is_stopped))
}

/// The rates of the range test of a network with a trained classifier, its steps, and the seconds after which it ends.
const BODY_RATES: (f64, f64) = (1e-5, 1.0);
const BODY_STEPS: u64 = 50;
const BODY_SECONDS: f64 = 60.0;
/// The rate that is taken, as a part of the one at which training breaks down.
const BODY_PART: f64 = 0.1;

/// What the range test of the stages before the classifier came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct BodyTest {
    /// The rate to train with.
    pub rate: f64,
    /// The highest rate before the loss broke away, or the highest that was tried.
    pub edge: f64,
    pub has_diverged: bool,
    pub steps: usize,
}

/// Raises the learning rate of the stages before the classifier, whose own is 0, over a few steps. Returns `None` if it was
/// stopped.
///
/// # Errors
/// Fails if training fails or the loss is not finite from the beginning.
pub(crate) fn test_body(mut prepared: Prepared, options: &Options) -> Result<Option<BodyTest>> {
    prepared.warm.holds_head = true;
    if let Some(transfer) = &mut prepared.recipe.transfer {
        (transfer.body_rate, transfer.unfreeze_at, transfer.unfreeze_per_epoch) = (1.0, None, None);
        if transfer.freeze == Freeze::Backbone {
            transfer.freeze = Freeze::None;
        }
    }
    // Clipped gradients would hide where training breaks down.
    prepared.recipe.optimizer.clip_norm = None;
    // Processes that share the work make as many steps each, so their clocks may not decide.
    let seconds = communicator().is_alone().then_some(BODY_SECONDS);
    // The loss of a trained classifier can be as low that a factor says nothing: `edge` looks at the loss itself.
    let (points, is_stopped) = losses(prepared, BODY_RATES, BODY_STEPS, (f64::INFINITY, seconds), options)?;
    if is_stopped {
        return Ok(None);
    }
    if points.len() < 5 {
        return Err(Error::NotFinite(
            "the loss was not finite from the beginning: are the weights those of the architecture?".into(),
        ));
    }
    Ok(Some(edge(&points)))
}

/// Where the loss leaves its level for good: it is noisy there, and low already, so nothing is to be read from its fall.
fn edge(points: &[(f64, f64)]) -> BodyTest {
    let smoothed = smooth(points, 0.7);
    let lowest = smoothed.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let limit = lowest + (0.5 * lowest).max(0.5);
    let below = smoothed.iter().rposition(|point| point.1 < limit).unwrap_or(0);
    // The smoothed loss lags behind.
    let has_diverged = below + 1 < smoothed.len() || points.len() < BODY_STEPS as usize;
    let edge = points[if has_diverged { below.saturating_sub(1) } else { below }].0;
    // Two digits: the recipe is read by people.
    let rate: f64 = format!("{:.1e}", BODY_PART * edge).parse().unwrap_or(BODY_PART * edge);
    BodyTest { rate, edge, has_diverged, steps: points.len() }
}

#[derive(serde::Deserialize)]
struct Row {
    loss: f64,
    learning_rate: f64,
}

/// The exponential mean of the losses, freed of its start's bias; `kept` of it stays at each step.
fn smooth(points: &[(f64, f64)], kept: f64) -> Vec<(f64, f64)> {
    let (mut mean, mut weight) = (0.0, 0.0);
    let step = |&(rate, loss): &(f64, f64)| {
        mean = kept * mean + (1.0 - kept) * loss;
        weight = kept * weight + (1.0 - kept);
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
    fn the_edge_is_where_a_low_and_noisy_loss_breaks_away() {
        let rate = |step: i32| 1e-5 * 10f64.powf(f64::from(step) * 5.0 / 49.0);
        let noise = |step: i32| 0.25 * f64::from(step * 7919 % 13 - 6) / 6.0;
        let loss = |step: i32| 0.6 + noise(step) + (rate(step) / 0.05).powi(2);
        let points: Vec<(f64, f64)> = (0..50).map(|step| (rate(step), loss(step))).collect();
        let broken = edge(&points);
        assert!(broken.has_diverged && (0.02..0.08).contains(&broken.edge), "{broken:?}");
        assert!((broken.rate / broken.edge - 0.1).abs() < 0.01, "{broken:?}");
        let level: Vec<(f64, f64)> = (0..50).map(|step| (rate(step), 0.6 + noise(step))).collect();
        let level = edge(&level);
        assert!(!level.has_diverged && (level.edge - 1.0).abs() < 1e-9 && level.rate == 0.1, "{level:?}");
    }

    #[test]
    fn smoothing_starts_at_the_first_loss() {
        let smoothed = smooth(&[(1.0, 2.0), (2.0, 2.0), (3.0, 4.0)], 0.9);
        assert!((smoothed[0].1 - 2.0).abs() < 1e-12 && (smoothed[1].1 - 2.0).abs() < 1e-12);
        assert!(smoothed[2].1 > 2.0 && smoothed[2].1 < 4.0);
    }
}
