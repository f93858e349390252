//! `train study`: a paper's experiment as one command.

use anyhow::Result;
use models::Architecture;
use runtime::{exit::ExitCode, outln};
use train::{
    recipe::{self, Overrides, Recipe},
    study,
};

use crate::cli::{Global, ShortcutsArgs, Study, StudyArgs, set_table};

pub fn run(args: &StudyArgs, global: Global) -> Result<ExitCode> {
    match &args.study {
        Study::Shortcuts(args) => shortcuts(args, global),
    }
}

fn shortcuts(args: &ShortcutsArgs, global: Global) -> Result<ExitCode> {
    let options = args.how.options(global)?;
    let Some((folder, trained)) = study::shortcuts(|architecture| recipe(args, architecture), &options)? else {
        return Ok(ExitCode::Interrupted);
    };
    outln!("{:10} {:>16} {:>18}", "network", "training error", "validation error")?;
    for trained in &trained {
        let (train, valid) = trained.errors();
        outln!("{:10} {train:14.2} % {valid:16.2} %", trained.architecture.name())?;
    }
    outln!("study: {}", folder.join("study.html").display())?;
    Ok(ExitCode::Success)
}

fn recipe(args: &ShortcutsArgs, architecture: Architecture) -> Result<Recipe, recipe::Error> {
    let default = if args.data.is_some() { "cifar" } else { "digits" };
    let mut overrides = Overrides::default();
    overrides.set("data.train", args.data.clone());
    set_table(&mut overrides, &args.table);
    overrides.set("epochs", args.epochs);
    overrides.set("architecture", Some(architecture.name()));
    for set in &args.set {
        overrides.parse(set)?;
    }
    recipe::load(args.recipe.as_deref().unwrap_or(default), &overrides)
}
