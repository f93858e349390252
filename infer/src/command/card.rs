//! `infer card`: writes a model card for a weight file.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use datasets::{OpenOptions, Split, source::TableOptions};
use runtime::{backend::BackendSpec, exit::ExitCode, files, outln, progress::Output};

use super::open_weights;
use crate::cli::CardArgs;

/// The largest file of class names, in bytes.
const MAX_NAMES: u64 = 64 << 20;

pub fn run(args: &CardArgs, output: Output) -> Result<ExitCode> {
    if let Some(out) = &args.out {
        let shown = out.display();
        ensure!(!out.is_dir(), "{shown} is a folder; --out names a file");
        ensure!(
            !out.exists() || args.force,
            "{shown} exists already; replace it with --force, or choose another --out"
        );
    }
    let device = BackendSpec::host()?.device()?;
    let mut opened = open_weights(&args.weights, &args.load, &device, output)?;
    // The weights must be those of the architecture, and their outputs as many as the card's classes were so far.
    if opened.quantized(&device)?.is_none() {
        opened.network(false, &device)?;
    }
    let outputs = opened.card.classes.len();
    let given = match (&args.classes, &args.classes_from) {
        (Some(file), _) => Some((read_names(file)?, file.display().to_string())),
        (None, Some(data)) => Some((names_of(data, &args.table)?, data.clone())),
        (None, None) => None,
    };
    if let Some((names, from)) = given {
        // One output has the names of both classes that a sigmoid tells apart.
        let fits = names.len() == outputs || (outputs == 1 && names.len() == 2);
        ensure!(fits, "{from} has {} classes, and the network has {outputs} outputs", names.len());
        opened.card.classes = names;
    }
    match &args.out {
        Some(out) => {
            opened.card.write(out)?;
            log::info!("{}: --card {0} uses it", out.display());
        }
        None => outln!("{}", opened.card.to_json())?,
    }
    Ok(ExitCode::Success)
}

/// Reads names from lines, or from a JSON array.
fn read_names(file: &Path) -> Result<Vec<String>> {
    let shown = file.display();
    let len = fs::metadata(file).with_context(|| format!("cannot read {shown}"))?.len();
    ensure!(len <= MAX_NAMES, "{shown} has {len} bytes: it is no list of class names");
    let text = files::read_to_string(file).with_context(|| format!("cannot read {shown}"))?;
    parse_names(&text).with_context(|| format!("{shown} is no list of class names"))
}

fn parse_names(text: &str) -> Result<Vec<String>> {
    let text = text.trim_start_matches('\u{feff}');
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text).context("it is no JSON array of texts");
    }
    let names: Vec<String> = text.trim_end().lines().map(|line| line.trim().to_string()).collect();
    match names.iter().position(String::is_empty) {
        Some(index) => bail!("line {} is empty; a line has the name of a class", index + 1),
        None => Ok(names),
    }
}

/// Returns the class names of a data set, in its order.
fn names_of(data: &str, table: &TableOptions) -> Result<Vec<String>> {
    let table = table.clone();
    let options = OpenOptions { allow_empty_classes: true, table, ..OpenOptions::split(Split::Train) };
    let opened = datasets::open(data, &options).with_context(|| format!("cannot take the classes from {data}"))?;
    let names: Vec<String> = opened.source.classes().iter().map(|class| class.name.clone()).collect();
    ensure!(!names.is_empty(), "{data} has no classes; give a folder with a folder for each class, or --classes");
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lines_or_a_json_array() {
        let names = vec!["a b".to_string(), "c".to_string()];
        for text in ["a b\nc\n", "\u{feff}a b\r\nc\r\n\r\n", " [\"a b\", \"c\"]"] {
            assert_eq!(parse_names(text).unwrap(), names, "{text:?}");
        }
        assert!(parse_names("a\n\nb").unwrap_err().to_string().contains("line 2 is empty"));
        assert!(parse_names("[1, 2]").is_err());
    }
}
