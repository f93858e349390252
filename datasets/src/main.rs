//! `datasets`: inspects, checks, previews, shards and benchmarks image data.

#![forbid(unsafe_code)]
#![deny(clippy::print_stderr, clippy::print_stdout)]

mod cli;
mod command;

use clap::CommandFactory;
use runtime::{
    exit::{self, ExitCode},
    logging::{self, LogFormat},
    progress::Output,
    shell,
};

use crate::{
    cli::{Cli, Command},
    command::{bench, doctor, inspect, preview, shard},
};

fn main() -> ExitCode {
    exit::run(|cli: Cli| {
        let progress = cli.progress();
        logging::init(cli.verbosity, LogFormat::Plain)?;
        run(&cli.command, progress)
    })
}

fn run(command: &Command, progress: Output) -> anyhow::Result<ExitCode> {
    match command {
        Command::Inspect(args) => inspect::run(args, progress),
        Command::Doctor(args) => doctor::run(args, progress),
        Command::Preview(args) => preview::run(args),
        Command::Shard(args) => shard::run(args, progress),
        Command::Bench(args) => bench::run(args, progress),
        Command::Completions(args) => Ok(shell::completions(args, Cli::command())?),
        Command::Man(args) => Ok(shell::man(args, Cli::command())?),
    }
}
