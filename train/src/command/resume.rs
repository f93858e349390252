//! `train resume`: on with a run that was interrupted.

use anyhow::{Result, anyhow};
use runtime::{exit::ExitCode, logging::Verbosity};
use train::training::{self, RunFinished};

use super::conclude;
use crate::cli::ResumeArgs;

pub fn run(args: &ResumeArgs, verbosity: Verbosity) -> Result<ExitCode> {
    let artifacts = args.run.parent().map(|parent| parent.to_path_buf()).unwrap_or_default();
    let options = args.loading.options(artifacts, None, verbosity)?;
    let resumed = training::resume(&args.run, &args.overrides(), &args.load, &options);
    conclude(resumed.map_err(|error| match error.is::<RunFinished>() {
        true => anyhow!("{error} (`train resume {} --epochs N`)", args.run.display()),
        false => error,
    })?)
}
