//! `train resume`: on with a run that was interrupted.

use anyhow::{Result, anyhow};
use runtime::exit::ExitCode;
use train::{Error, run};

use super::conclude;
use crate::cli::{Global, ResumeArgs};

pub fn run(args: &ResumeArgs, global: Global) -> Result<ExitCode> {
    let artifacts = args.run.parent().map(|parent| parent.to_path_buf()).unwrap_or_default();
    let options = args.loading.options(artifacts, None, global)?;
    let resumed = run::resume(&args.run, &args.overrides(), &args.load, &options);
    conclude(resumed.map_err(|error| match error {
        Error::Finished { .. } => anyhow!("{error} (`train resume {} --epochs N`)", args.run.display()),
        error => error.into(),
    })?)
}
