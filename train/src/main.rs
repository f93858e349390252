//! Trains image classifiers: `cargo run -p train` trains ResNet-20 on the embedded digits.

mod classifier;
mod cli;
mod history;
mod recipe;
mod renderer;
mod run;
mod training;

use clap::Parser;
use runtime::exit::{self, ExitCode};

fn main() -> ExitCode {
    exit::run(|| {
        let cli = cli::Cli::parse();
        let recipe = cli.recipe()?;
        let device = cli.backend.backend.device()?;
        training::train(&recipe, &device, &cli.options())?;
        Ok(ExitCode::Success)
    })
}
