//! `train finetune`: on from trained weights.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use hub::LoadOptions;
use runtime::{exit::ExitCode, logging::Verbosity};
use train::{
    lr_finder, probe,
    recipe::{self, Overrides, Transfer},
    training::{self, End, Options, Prepared},
};

use super::{conclude, dry_run, print};
use crate::cli::FinetuneArgs;

pub fn run(args: &FinetuneArgs, verbosity: Verbosity) -> Result<ExitCode> {
    let options = args.run.how.options(verbosity)?;
    if args.auto {
        return auto(args, &options);
    }
    let prepared = prepare(args, &args.recipe, args.weights.as_deref(), Overrides::default(), &options)?;
    if args.run.dry_run {
        return dry_run::run(prepared, &options);
    }
    conclude(probe::finetune(prepared, &options)?)
}

/// The recipe with the command line's changes and then `more`; data, weights and images as it and the card say.
fn prepare(
    args: &FinetuneArgs,
    recipe: &str,
    weights: Option<&str>,
    more: Overrides,
    options: &Options,
) -> Result<Prepared> {
    let mut overrides = Overrides::default();
    if args.freeze.is_some() {
        unfreeze_never(&mut overrides);
    }
    overrides.extend(args.run.overrides()?);
    overrides.set("transfer.weights", weights);
    // The key is that of the given weights, and not of the probe that --auto continues from.
    let weights_key = args.load.weights_key.clone().filter(|_| weights == args.weights.as_deref());
    overrides.set("transfer.weights_key", weights_key);
    let load = LoadOptions { weights_key: None, ..args.load.clone() };
    overrides.set("transfer.freeze", args.freeze.clone().map(String::from));
    overrides.set("transfer.unfreeze_at", args.unfreeze_at);
    overrides.set("transfer.unfreeze_per_epoch", args.unfreeze_per_epoch);
    overrides.set("transfer.layer_decay", args.layer_decay);
    overrides.extend(more);
    let from_card = !Path::new(recipe).exists();
    let mut recipe = recipe::load(recipe, &overrides)?;
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
        return training::follow_weights(recipe, &load, args.run.size, options);
    }
    // A file says itself how images are prepared; a run's alone repeats the run.
    if let Some(size) = args.run.size {
        recipe.images.set_size(size)?;
    }
    training::prepare(recipe, &load, options)
}

/// Removes what a recipe says about unfreezing: stages that are to be frozen stay so, unless flags say otherwise.
fn unfreeze_never(overrides: &mut Overrides) {
    overrides.remove("transfer.unfreeze_at");
    overrides.remove("transfer.unfreeze_per_epoch");
}

/// A linear probe; a search for the rate; then the whole network, from the head down.
fn auto(args: &FinetuneArgs, options: &Options) -> Result<ExitCode> {
    ensure!(options.out.is_none(), "--auto makes several runs: give --artifacts in place of --out");
    let weights = args.weights.as_deref();
    log::info!("1 of 3: a linear probe on the features of the frozen network");
    let mut of_probe = Overrides::default();
    // The command line's own are for the whole network.
    of_probe.set("epochs", Some(30));
    of_probe.set("batch_size", Some(256));
    of_probe.set("schedule.learning_rate", Some(1e-3));
    of_probe.parse("transfer = { weights = \"\", freeze = \"backbone\" }")?;
    of_probe.set("transfer.weights", weights);
    of_probe.set("transfer.weights_key", args.load.weights_key.clone());
    let probe = probe::finetune(prepare(args, "linear-probe", weights, of_probe, options)?, options)?;
    if !matches!(probe.end, End::Finished) {
        return conclude(probe);
    }
    let head = probe.run.display().to_string();

    log::info!("2 of 3: a search for the rate, from the probe's head");
    let mut unfrozen = Overrides::default();
    unfreeze_never(&mut unfrozen);
    unfrozen.set("transfer.freeze", Some("none"));
    unfrozen.parse("transfer.layer_decay = 0.8")?;
    let prepared = prepare(args, &args.recipe, Some(&head), unfrozen, options)?;
    let chart = probe.run.join("lr-find.svg");
    let found = lr_finder::sweep(prepared, (1e-6, 1.0), 60, &chart, options)?;
    let rate = args.run.lr.or(found).context(
        "no rate was found: the loss fell nowhere. Is the network as it should be? --lr gives a rate by hand",
    )?;
    log::info!("rate {rate:.2e}; chart: {}", chart.display());

    log::info!("3 of 3: the whole network, from the head down");
    let mut gradual = Overrides::default();
    gradual.set("schedule.learning_rate", Some(rate));
    gradual.set("transfer.freeze", Some("backbone"));
    gradual.set("transfer.unfreeze_at", Some(1));
    gradual.parse("transfer.layer_decay = 0.8")?;
    let mut prepared = prepare(args, &args.recipe, Some(&head), gradual, options)?;
    unfreeze_over_a_third(&mut prepared)?;
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
    print(&tuned, &format!("{text}comparison: {}\n", comparison.display()));
    conclude(tuned)
}

/// So many stages an epoch that all are trained after a third of the epochs.
fn unfreeze_over_a_third(prepared: &mut Prepared) -> Result<()> {
    let stages = training::num_stages(prepared)?;
    let epochs = prepared.recipe.epochs.div_ceil(3).max(1);
    if let Some(Transfer { unfreeze_per_epoch, .. }) = &mut prepared.recipe.transfer {
        *unfreeze_per_epoch = Some(stages.div_ceil(epochs).max(1));
    }
    Ok(prepared.recipe.check()?)
}
