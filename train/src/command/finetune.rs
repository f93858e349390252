//! `train finetune`: on from trained weights.

use std::path::Path;

use anyhow::{Result, ensure};
use hub::LoadOptions;
use runtime::{exit::ExitCode, noteln};
use train::{
    adapt::{self, Explicit},
    probe,
    recipe::{self, Overrides, Transfer},
    run::{self, End, Finished, Options, Prepared},
};

use super::{conclude, dry_run, print};
use crate::cli::{FinetuneArgs, Global};

pub fn run(args: &FinetuneArgs, global: Global) -> Result<ExitCode> {
    let options = args.run.how.options(global)?;
    let outcome = if args.auto { auto(args, &options) } else { finetune(args, &options) };
    match outcome {
        Err(error) if matches!(error.downcast_ref(), Some(train::Error::Stopped)) => {
            noteln!("{error}");
            Ok(ExitCode::Interrupted)
        }
        outcome => outcome,
    }
}

fn finetune(args: &FinetuneArgs, options: &Options) -> Result<ExitCode> {
    let overrides = overrides(args)?;
    let mut prepared = prepare(args, &args.recipe, &overrides, options)?;
    // What a file says is explicit.
    let adapts = ADAPTIVE.contains(&args.recipe.as_str());
    let explicit = Explicit::from(overrides);
    if adapts {
        adapt::sizes(&mut prepared, &explicit)?;
    }
    if args.run.dry_run {
        return dry_run::run(prepared, options);
    }
    if adapts {
        adapt::rates(&mut prepared, &explicit, options)?;
    }
    conclude(probe::finetune(prepared, options)?)
}

/// The shipped recipes that follow the data.
const ADAPTIVE: [&str; 2] = ["finetune", PROBE];
const PROBE: &str = "linear-probe";

/// What the command line changes in a recipe.
fn overrides(args: &FinetuneArgs) -> Result<Overrides> {
    let mut overrides = Overrides::default();
    if args.freeze.is_some() {
        unfreeze_never(&mut overrides);
    }
    overrides.extend(args.run.overrides()?);
    overrides.set("transfer.weights", args.weights.clone());
    overrides.set("transfer.weights_key", args.load.weights_key.clone());
    overrides.set("transfer.freeze", args.freeze.clone().map(String::from));
    overrides.set("transfer.unfreeze_at", args.unfreeze_at);
    overrides.set("transfer.unfreeze_per_epoch", args.unfreeze_per_epoch);
    overrides.set("transfer.layer_decay", args.layer_decay);
    overrides.set("transfer.batchnorm", args.batchnorm.clone());
    overrides.set("transfer.recalibrate_batchnorm", args.recalibrate_batchnorm.then_some(true));
    Ok(overrides)
}

/// The recipe with changes; data, weights and images as it and the card say.
fn prepare(args: &FinetuneArgs, recipe: &str, overrides: &Overrides, options: &Options) -> Result<Prepared> {
    let from_card = !Path::new(recipe).exists();
    // The recipe has the key, so that a run that is resumed has it too.
    let load = LoadOptions { weights_key: None, ..args.load.clone() };
    let mut recipe = recipe::load(recipe, overrides)?;
    ensure!(
        recipe.transfer.is_some(),
        "the recipe has no [transfer]: give --weights, or train from scratch with `train pretrain`"
    );
    ensure!(
        args.weights.is_some() || !from_card,
        "give --weights: a run folder, a file, or a published name (`infer models` lists them)"
    );
    ensure!(
        args.run.data.is_some() || !from_card,
        "give --data: the images to train on, in one folder a class for instance"
    );
    if from_card {
        return Ok(run::follow_weights(recipe, &load, args.run.size, options)?);
    }
    // A file says itself how images are prepared; a run's alone repeats the run.
    if let Some(size) = args.run.size {
        recipe.images.set_size(size)?;
    }
    Ok(run::prepare(recipe, &load, options)?)
}

/// Removes what a recipe says about unfreezing: stages that are to be frozen stay so, unless flags say otherwise.
fn unfreeze_never(overrides: &mut Overrides) {
    overrides.remove("transfer.unfreeze_at");
    overrides.remove("transfer.unfreeze_per_epoch");
}

/// A linear probe, then the whole network, from the classifier down.
fn auto(args: &FinetuneArgs, options: &Options) -> Result<ExitCode> {
    ensure!(options.out.is_none(), "--auto makes several runs: give --artifacts in place of --out");
    log::info!("1 of 2: a linear probe on the features of the frozen network");
    let mut of_probe = overrides(args)?;
    // The command line's own are for the whole network; these follow the data.
    for key in ["epochs", "batch_size", "schedule", "optimizer", "checkpoints", "loss"] {
        of_probe.forget(key);
    }
    let mut prepared = prepare(args, PROBE, &of_probe, options)?;
    adapt::sizes(&mut prepared, &Explicit::default())?;
    let probe = probe::finetune(prepared, options)?;
    if !matches!(probe.end, End::Finished) {
        return conclude(probe);
    }

    log::info!("2 of 2: the whole network, from the classifier down");
    let mut gradual = overrides(args)?;
    gradual.set("transfer.freeze", Some("backbone"));
    gradual.set("transfer.unfreeze_at", Some(1));
    let mut prepared = prepare(args, &args.recipe, &gradual, options)?;
    let explicit = Explicit::from(gradual);
    if ADAPTIVE.contains(&args.recipe.as_str()) {
        adapt::sizes(&mut prepared, &explicit)?;
    }
    unfreeze_over_a_third(&mut prepared)?;
    if ADAPTIVE.contains(&args.recipe.as_str()) {
        adapt::rates(&mut prepared, &explicit, options)?;
    }
    let tuned = probe::finetune(prepared, options)?;

    let comparison = options.artifacts.join(format!("{}-auto.html", tuned.info.name));
    report::compare(&[probe.run.clone(), tuned.run.clone()], &comparison)?;
    let mut text = String::new();
    for (what, finished) in [("linear probe", &probe), ("whole network", &tuned)] {
        if let Some(result) = &finished.info.result {
            let n = finished.info.data.valid_images;
            let count = report::stats::Count::from_percent(result.best.top1, n);
            let ((low, high), right) = (count.wilson(), count.hits);
            text += &format!(
                "{what}: top-1 {:.2} % ({right} of {n}; 95 % interval {:.1} to {:.1} %)  {}\n",
                result.best.top1,
                low,
                high,
                finished.run.display()
            );
        }
    }
    let top1 = |finished: &Finished| finished.info.result.as_ref().map_or(0.0, |result| result.best.top1);
    // Of equals the probe, which changed less.
    let best = if top1(&tuned) > top1(&probe) { &tuned } else { &probe };
    text += &format!("best: {}\n", best.run.display());
    print(&tuned, &format!("{text}comparison: {}\n", comparison.display()));
    conclude(tuned)
}

/// Sets the number of stages per epoch such that all are trained after a third of the epochs.
fn unfreeze_over_a_third(prepared: &mut Prepared) -> Result<()> {
    let stages = run::num_stages(prepared)?;
    let epochs = prepared.recipe.epochs.div_ceil(3).max(1);
    if let Some(Transfer { unfreeze_per_epoch, .. }) = &mut prepared.recipe.transfer {
        *unfreeze_per_epoch = Some(stages.div_ceil(epochs).max(1));
    }
    Ok(prepared.recipe.check()?)
}
