//! The command line.

use std::path::PathBuf;

use clap::Parser;
use models::Architecture;
use runtime::{backend::BackendArgs, exit};

use crate::{recipe::Recipe, training::Options};

/// Trains an image classifier.
///
/// Without arguments: ResNet-20 on the embedded data set of handwritten digits, in under two minutes on two cores. The
/// result lies in a new folder under `artifacts/`: the recipe that repeats the run, the model card, the weights with
/// the card inside, Burn's checkpoints and the metrics of every epoch. `infer classify IMAGE --weights FOLDER` uses it.
#[derive(Debug, Parser)]
#[command(version, after_long_help = exit::HELP)]
pub struct Cli {
    /// A recipe file; flags override what it says [default: the built-in `digits`]
    #[arg(long, value_name = "FILE.toml")]
    pub recipe: Option<PathBuf>,

    /// The network, for instance resnet20 or plain20
    #[arg(long, value_name = "NAME")]
    pub arch: Option<Architecture>,

    /// How often the training images are seen
    #[arg(long)]
    pub epochs: Option<usize>,

    /// Images a step
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,

    /// The learning rate after the warm-up
    #[arg(long, value_name = "RATE")]
    pub lr: Option<f64>,

    /// What the initial weights, the order and the augmentation depend on
    #[arg(long)]
    pub seed: Option<u64>,

    /// The folder in which the run's folder is made
    #[arg(long, value_name = "DIR", default_value = "artifacts")]
    pub artifacts: PathBuf,

    /// Threads that decode and augment [default: one a core]
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,

    /// No progress, only the result
    #[arg(short, long)]
    pub quiet: bool,

    #[command(flatten)]
    pub backend: BackendArgs,
}

impl Cli {
    /// The recipe with the flags' overrides, checked.
    pub fn recipe(&self) -> anyhow::Result<Recipe> {
        let mut recipe = match &self.recipe {
            Some(path) => Recipe::read(path)?,
            None => Recipe::digits(),
        };
        let Self { arch, epochs, batch_size, lr, seed, .. } = self;
        recipe.architecture = arch.unwrap_or(recipe.architecture);
        recipe.epochs = epochs.unwrap_or(recipe.epochs);
        recipe.batch_size = batch_size.unwrap_or(recipe.batch_size);
        recipe.schedule.learning_rate = lr.unwrap_or(recipe.schedule.learning_rate);
        recipe.seed = seed.unwrap_or(recipe.seed);
        recipe.check()?;
        Ok(recipe)
    }

    pub fn options(&self) -> Options {
        Options { artifacts: self.artifacts.clone(), workers: self.workers, quiet: self.quiet }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
