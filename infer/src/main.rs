//! `infer`: card + weights → predictions.

#![forbid(unsafe_code)]
#![deny(clippy::print_stderr, clippy::print_stdout)]

mod cli;
mod command;

use clap::CommandFactory;
use runtime::{
    communicator::{self, Communicator},
    exit::{self, ExitCode},
    logging,
    progress::Output,
    shell,
};

use crate::{
    cli::{Cli, Command},
    command::{bench, classify, diagram, evaluate, explain, export, models, quantize, summary, verify},
};

fn main() -> ExitCode {
    exit::run(|cli: Cli| {
        let progress = cli.progress();
        logging::init(cli.verbosity, cli.log_format())?;
        let world = communicator::init(cli.ranks.mpi_timeout)?;
        if !matches!(cli.command, Command::Evaluate(_)) {
            world.require_alone("every command but `infer evaluate`")?;
        }
        let progress = if world.is_root() { progress } else { Output::Quiet };
        world.conclude(run(&cli, progress, world))
    })
}

fn run(cli: &Cli, progress: Output, world: &Communicator) -> anyhow::Result<ExitCode> {
    let kernels = cli.kernels.kernels;
    match &cli.command {
        Command::Classify(args) => classify::run(args, kernels, progress),
        Command::Evaluate(args) => evaluate::evaluate(args, kernels, progress, world),
        Command::Merge(args) => evaluate::merge(args),
        Command::Compare(args) => evaluate::compare(args),
        Command::Explain(args) => explain::run(args, kernels, progress),
        Command::Export(args) => export::run(args, progress),
        Command::Quantize(args) => quantize::run(args, progress),
        Command::Bench(args) => bench::run(args, kernels, progress),
        #[cfg(feature = "serve")]
        Command::Serve(args) => command::serve::run(args, kernels, progress),
        Command::Diagram(args) => diagram::run(args, progress),
        Command::Summary(args) => summary::run(args, progress),
        Command::Card(args) => command::card::run(args, progress),
        Command::Models(args) => models::run(args),
        Command::Devices(args) => Ok(runtime::backend::devices(args, kernels)?),
        Command::Verify(args) => verify::run(args, kernels, progress),
        Command::Completions(args) => Ok(shell::completions(args, Cli::command())?),
        Command::Man(args) => Ok(shell::man(args, Cli::command())?),
    }
}
