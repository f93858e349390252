//! `train report`: a run's report again, or several runs beside each other.

use anyhow::Result;
use runtime::{exit::ExitCode, outln};

use crate::cli::ReportArgs;

pub fn run(args: &ReportArgs) -> Result<ExitCode> {
    match args.runs.as_slice() {
        [run] => outln!("report: {}", report::write(run)?.display())?,
        runs => {
            report::compare(runs, &args.out)?;
            outln!("comparison: {}", args.out.display())?;
        }
    }
    Ok(ExitCode::Success)
}
