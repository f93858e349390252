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

use ::report::format::{RunKind, Score};
use runtime::{exit::ExitCode, progress::human_duration, world::world};
use train::training::{End, Finished};

/// Prints the result of a run and returns the exit code.
pub fn conclude(finished: Finished) -> anyhow::Result<ExitCode> {
    let (steps, seconds) = (finished.steps(), finished.seconds());
    let Finished { run, info, end, .. } = finished;
    let shown = run.display();
    if !world().is_root() {
        return match end {
            End::Failed(error) => Err(error),
            End::Interrupted => Ok(ExitCode::Interrupted),
            End::Finished => Ok(ExitCode::Success),
        };
    }
    match end {
        End::Failed(error) => {
            return Err(error.context(format!(
                "training stopped; what was written is in {shown}, and `train resume {shown}` goes on from its last \
                 checkpoint"
            )));
        }
        End::Interrupted if info.kind == RunKind::Probe => {
            println!("run: {shown}");
            eprintln!("stopped; start it again: the features are kept");
            return Ok(ExitCode::Interrupted);
        }
        End::Interrupted => {
            println!("run: {shown}");
            eprintln!("stopped after step {}; go on with: cargo run -p train -- resume {shown}", steps);
            return Ok(ExitCode::Interrupted);
        }
        End::Finished => {}
    }
    if let Some(result) = &info.result {
        let n = info.data.valid_images;
        let line = |what: String, score: &Score| {
            let right = (score.top1 / 100.0 * n as f64).round();
            println!("top-1 on the held-out images, {what}: {:.2} % ({right} of {n})", score.top1);
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
    println!("run: {shown}");
    eprintln!(
        "took {}; report: {shown}/report.html; try: cargo run -p infer -- classify IMAGE --weights {shown}",
        human_duration(Duration::from_secs_f64(seconds))
    );
    Ok(ExitCode::Success)
}
