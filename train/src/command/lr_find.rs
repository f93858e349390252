//! `train lr-find`: the learning rate range test (Smith, 2015, <https://arxiv.org/abs/1506.01186>).

use anyhow::{Result, ensure};
use hub::LoadOptions;
use runtime::{exit::ExitCode, outln};
use train::{lr_finder, recipe, run};

use crate::cli::{Global, LrFindArgs};

pub fn run(args: &LrFindArgs, global: Global) -> Result<ExitCode> {
    ensure!(
        args.from > 0.0 && args.from < args.to && args.to.is_finite(),
        "the rates go from --from {} to --to {}: both are positive and the first is the smaller",
        args.from,
        args.to
    );
    let options = args.run.how.options(global)?;
    let mut overrides = args.run.overrides()?;
    let default = match (&args.weights, args.run.data.as_deref()) {
        (Some(_), _) => "finetune",
        (None, None | Some("digits")) => "digits",
        (None, Some(_)) => "imagenet-classic",
    };
    overrides.set("transfer.weights", args.weights.clone());
    overrides.set("transfer.weights_key", args.load.weights_key.clone());
    if args.weights.is_none() {
        overrides.set("architecture", args.load.architecture.map(|arch| arch.to_string()));
    }
    let mut recipe = recipe::load(args.recipe.as_deref().unwrap_or(default), &overrides)?;
    let prepared = if recipe.transfer.is_some() {
        run::follow_weights(recipe, &args.load, args.run.size, &options)?
    } else {
        if let Some(size) = args.run.size {
            recipe.images.set_size(size)?;
        }
        run::prepare(recipe, &LoadOptions::default(), &options)?
    };
    let found = lr_finder::sweep(prepared, (args.from, args.to), args.steps, &args.chart, &options)?;
    match found {
        Some(rate) => outln!("suggested: --lr {rate:.2e}")?,
        None => outln!("no suggestion: the loss fell nowhere; try other limits by --from and --to, or more --steps")?,
    }
    outln!("chart: {}", args.chart.display())?;
    Ok(ExitCode::Success)
}
