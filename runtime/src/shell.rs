//! Shell completions and manual pages of a binary, generated from its command line.

use std::path::PathBuf;

use clap::Command;
use clap_complete::Shell;

use crate::{Error, Result, exit::ExitCode, output};

/// `completions`
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: Shell,
}

/// `man`
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Folder to write the pages to, one per command
    #[arg(value_name = "DIR")]
    pub out: PathBuf,
}

/// Prints the completion script of `command` on standard output.
///
/// # Errors
/// Fails if standard output cannot be written.
pub fn completions(args: &CompletionsArgs, mut command: Command) -> Result<ExitCode> {
    let name = command.get_name().to_string();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    output::write_result(script)?;
    Ok(ExitCode::Success)
}

/// Writes the manual pages of `command` and its subcommands.
///
/// # Errors
/// Fails if the folder cannot be created or a page cannot be written.
pub fn man(args: &ManArgs, command: Command) -> Result<ExitCode> {
    let folder = &args.out;
    std::fs::create_dir_all(folder).map_err(Error::write("create folder", folder))?;
    clap_mangen::generate_to(command, folder).map_err(Error::write("write manual pages to", folder))?;
    Ok(ExitCode::Success)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_written_for_each_command() {
        let folder = tempfile::tempdir().unwrap();
        let args = ManArgs { out: folder.path().join("man1") };
        let command = Command::new("tool").about("Do things").subcommand(Command::new("part").about("Do a part"));
        assert_eq!(man(&args, command).unwrap(), ExitCode::Success);
        let page = |name: &str| std::fs::read_to_string(args.out.join(name)).unwrap();
        assert!(page("tool.1").contains("Do things"));
        assert!(page("tool-part.1").contains("Do a part"));
    }
}
