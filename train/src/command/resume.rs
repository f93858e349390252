//! `train resume`: on with a run that was interrupted.

use anyhow::Result;
use runtime::exit::ExitCode;
use train::training;

use super::conclude;
use crate::cli::ResumeArgs;

pub fn run(args: &ResumeArgs) -> Result<ExitCode> {
    let artifacts = args.run.parent().map(|parent| parent.to_path_buf()).unwrap_or_default();
    let options = args.loading.options(artifacts, None)?;
    conclude(training::resume(&args.run, &args.load, &options)?)
}
