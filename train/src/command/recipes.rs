//! `train recipes`: what is shipped.

use anyhow::Result;
use runtime::{exit::ExitCode, out, outln};
use train::recipe::{self, Overrides, SHIPPED};

use crate::cli::RecipesArgs;

pub fn run(args: &RecipesArgs) -> Result<ExitCode> {
    match &args.name {
        Some(name) => {
            // An unknown name is told as everywhere.
            recipe::load(name, &Overrides::default())?;
            match SHIPPED.iter().find(|shipped| shipped.name == name) {
                Some(shipped) => out!("{}", shipped.text)?,
                None => out!("{}", std::fs::read_to_string(name)?)?,
            }
        }
        None => {
            let width = SHIPPED.iter().map(|shipped| shipped.name.len()).max().unwrap_or(0);
            for shipped in SHIPPED {
                outln!("{:width$}  {}", shipped.name, shipped.headline())?;
            }
        }
    }
    Ok(ExitCode::Success)
}
