//! Trains image classifiers: `cargo run -p train` trains ResNet-20 on the embedded digits.

#![forbid(unsafe_code)]

mod cli;
mod command;

use clap::{CommandFactory, Parser};
use cli::Command;
use runtime::{
    exit::{self, ExitCode},
    shell, world,
};

fn main() -> ExitCode {
    exit::run(|| {
        let cli = cli::Cli::parse();
        cli.kernels.choose();
        let world = world::join(cli.ranks.mpi_timeout)?;
        if let Some(command) = cli.command.as_ref().filter(|command| !command.trains()) {
            world.require_alone(&format!("`train {}`", command.name()))?;
        }
        let result = match &cli.command {
            None => command::pretrain::run(&cli.pretrain),
            Some(Command::Pretrain(args)) => command::pretrain::run(args),
            Some(Command::Finetune(args)) => command::finetune::run(args),
            Some(Command::Resume(args)) => command::resume::run(args),
            Some(Command::LrFind(args)) => command::lr_find::run(args),
            Some(Command::Recipes(args)) => command::recipes::run(args),
            Some(Command::Report(args)) => command::report::run(args),
            Some(Command::Study(args)) => command::study::run(args),
            Some(Command::Bench(args)) => command::bench::run(args),
            Some(Command::Devices(args)) => runtime::backend::devices(args),
            Some(Command::Plan(args)) => command::plan::run(args),
            Some(Command::Completions(args)) => shell::completions(args, cli::Cli::command()),
            Some(Command::Man(args)) => shell::man(args, cli::Cli::command()),
        };
        world.conclude(result.map_err(cli::flags::with_flags))
    })
}
