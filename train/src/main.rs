//! Trains image classifiers: `cargo run -p train` trains ResNet-20 on the embedded digits.

#![forbid(unsafe_code)]
#![deny(clippy::print_stderr, clippy::print_stdout)]

mod cli;
mod command;

use clap::CommandFactory;
use cli::{Cli, Command};
use runtime::{
    communicator,
    exit::{self, ExitCode},
    logging, shell,
};

fn main() -> ExitCode {
    exit::run(|cli: Cli| {
        let world = communicator::init(cli.ranks.mpi_timeout)?;
        if let Some(command) = cli.command.as_ref().filter(|command| !command.trains()) {
            world.require_alone(&format!("`train {}`", command.name()))?;
        }
        // What all processes know is logged by the first one.
        let verbosity = if world.is_root() { cli.verbosity } else { cli.verbosity.at_most_warnings() };
        let result = logging::init(verbosity, cli.log_format()).map_err(Into::into).and_then(|()| run(&cli));
        world.conclude(result.map_err(cli::flags::with_flags))
    })
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    let global = cli.global();
    match &cli.command {
        None => command::pretrain::run(&cli.pretrain, global),
        Some(Command::Pretrain(args)) => command::pretrain::run(args, global),
        Some(Command::Finetune(args)) => command::finetune::run(args, global),
        Some(Command::Resume(args)) => command::resume::run(args, global),
        Some(Command::LrFind(args)) => command::lr_find::run(args, global),
        Some(Command::Recipes(args)) => command::recipes::run(args),
        Some(Command::Report(args)) => command::report::run(args),
        Some(Command::Study(args)) => command::study::run(args, global),
        Some(Command::Bench(args)) => command::bench::run(args, global),
        Some(Command::Devices(args)) => Ok(runtime::backend::devices(args, global.kernels)?),
        Some(Command::Plan(args)) => command::plan::run(args),
        Some(Command::Completions(args)) => Ok(shell::completions(args, Cli::command())?),
        Some(Command::Man(args)) => Ok(shell::man(args, Cli::command())?),
    }
}
