//! `datasets`: looks into image data, checks it, shows it, repacks it and measures how fast it loads.

#![forbid(unsafe_code)]

mod cli;
mod command;

use clap::Parser;
use runtime::{
    exit::{self, ExitCode},
    logging,
};

use crate::{
    cli::{Cli, Command},
    command::{bench, doctor, inspect, preview, shard},
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init(cli.verbosity);
    let progress = cli.progress();
    exit::run(|| match &cli.command {
        Command::Inspect(args) => inspect::run(args, progress),
        Command::Doctor(args) => doctor::run(args, progress),
        Command::Preview(args) => preview::run(args),
        Command::Shard(args) => shard::run(args, progress),
        Command::Bench(args) => bench::run(args, progress),
    })
}
