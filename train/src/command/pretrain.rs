//! `train pretrain`: from random weights.

use anyhow::Result;
use hub::LoadOptions;
use report::format::RunKind;
use runtime::exit::ExitCode;
use train::{
    recipe::{self, Recipe},
    run,
};

use super::{conclude, dry_run};
use crate::cli::{Global, PretrainArgs};

pub fn run(args: &PretrainArgs, global: Global) -> Result<ExitCode> {
    let recipe = recipe(args)?;
    let options = args.run.how.options(global)?;
    let prepared = run::prepare(recipe, &LoadOptions::default(), &options)?;
    if args.run.dry_run {
        return dry_run::run(prepared, &options);
    }
    conclude(run::start(prepared, RunKind::Pretrain, &options)?)
}

fn recipe(args: &PretrainArgs) -> Result<Recipe> {
    let default =
        if args.run.data.as_deref().is_none_or(|data| data == "digits") { "digits" } else { "imagenet-classic" };
    let mut overrides = args.run.overrides()?;
    overrides.set("architecture", args.arch.map(|arch| arch.to_string()));
    let mut recipe = recipe::load(args.recipe.as_deref().unwrap_or(default), &overrides)?;
    if let Some(size) = args.run.size {
        recipe.images.set_size(size)?;
    }
    Ok(recipe)
}
