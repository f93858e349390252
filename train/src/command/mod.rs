//! The commands, a module each.

pub mod bench;
pub mod finetune;
pub mod lr_find;
pub mod plan;
pub mod pretrain;
pub mod recipes;
pub mod report;
pub mod resume;
pub mod study;

mod dry_run;

use std::time::Duration;

use ::report::format::{Metrics, RunKind};
use runtime::{communicator::communicator, exit::ExitCode, noteln, out, progress::human_duration};
use train::run::{End, Finished};

/// Whether a training stopped because of an image that cannot be read or decoded.
fn is_bad_sample(error: &train::Error) -> bool {
    use datasets::Error::{Corrupt, Decode, Io};
    let of = |error: &datasets::Error| matches!(error, Decode { .. } | Io { .. } | Corrupt { .. });
    let causes = std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |error| error.source());
    causes.into_iter().any(|cause| match (cause.downcast_ref(), cause.downcast_ref()) {
        (Some(train::Error::Data(error)), _) | (_, Some(error)) => of(error),
        _ => false,
    })
}

/// Prints the result of a run and returns the exit code.
pub fn conclude(finished: Finished) -> anyhow::Result<ExitCode> {
    let (steps, seconds) = (finished.steps(), finished.seconds());
    let shown = finished.run.display().to_string();
    if !communicator().is_root() {
        return match finished.end {
            End::Failed(error) => Err(error.into()),
            End::Interrupted => Ok(ExitCode::Interrupted),
            End::Finished => Ok(ExitCode::Success),
        };
    }
    let is_probe = finished.info.kind == RunKind::Probe;
    match finished.end {
        End::Failed(error) => {
            let next = match is_probe {
                true => "start it again when the cause is gone".to_string(),
                false if is_bad_sample(&error) => format!(
                    "`train resume {shown}` goes on from its last checkpoint, and with `--bad-samples skip` without the \
                     images that cannot be read"
                ),
                false => format!("`train resume {shown}` goes on from its last checkpoint"),
            };
            let context = format!("training stopped; what was written is in {shown}, and {next}");
            return Err(anyhow::Error::from(error).context(context));
        }
        End::Interrupted => {
            print(&finished, &format!("run: {shown}\n"));
            match is_probe {
                true => noteln!("stopped; start it again: complete features are kept"),
                false => noteln!("stopped after step {steps}; go on with: cargo run -p train -- resume {shown}"),
            }
            return Ok(ExitCode::Interrupted);
        }
        End::Finished => {}
    }
    let mut results = String::new();
    if let Some(result) = &finished.info.result {
        let n = finished.info.data.valid_images;
        let mut line = |what: String, score: &Metrics| {
            let right = (score.top1 / 100.0 * n as f64).round();
            results += &format!("top-1 on the held-out images, {what}: {:.2} % ({right} of {n})\n", score.top1);
        };
        let best = result.best_epoch.map_or("best epoch".to_string(), |epoch| format!("best epoch ({epoch})"));
        line(best, &result.best);
        if let Some(last) = &result.last {
            line("last epoch".to_string(), last);
        }
        if let Some(ema) = &result.ema {
            line("average of the weights".to_string(), ema);
        }
    }
    print(&finished, &format!("{results}run: {shown}\n"));
    log::info!(
        "took {}; report: {shown}/report.html; try: cargo run -p infer -- classify IMAGE --weights {shown}",
        human_duration(Duration::from_secs_f64(seconds))
    );
    Ok(ExitCode::Success)
}

/// Prints results of a run. They are in its folder too, so it is no error if standard output is closed or full.
pub fn print(finished: &Finished, text: &str) {
    if let Err(error) = out!("{text}") {
        let warning = format!("{:#}; the results are in {}", anyhow::Error::from(error), finished.run.display());
        finished.warn(&warning);
        noteln!("warning: {warning}");
    }
}
