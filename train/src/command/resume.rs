//! `train resume`: on with a run that was interrupted.

use anyhow::Result;
use runtime::{exit::ExitCode, logging::Verbosity};
use train::training;

use super::conclude;
use crate::cli::ResumeArgs;

pub fn run(args: &ResumeArgs, verbosity: Verbosity) -> Result<ExitCode> {
    let artifacts = args.run.parent().map(|parent| parent.to_path_buf()).unwrap_or_default();
    let options = args.loading.options(artifacts, None, verbosity)?;
    conclude(training::resume(&args.run, &args.overrides(), &args.load, &options)?)
}
