//! The commands, one module each, and what they share.

pub mod bench;
pub mod doctor;
mod fingerprint;
pub mod inspect;
pub mod preview;
mod scan;
pub mod shard;

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};
use datasets::{
    OpenOptions, Opened, PipelinePreprocess, Preprocess, Quarantine, Source, Split, open,
    transforms::{EvalTransform, Interpolation, Pipeline, ResizeRule},
};
use serde::Serialize;

use crate::cli::{DataArgs, ImageArgs, PipelineName, SplitArgs};
use runtime::outln;

/// Opens a split of the data without the quarantined samples, and logs the notes.
fn open_data(data: &DataArgs, split: &SplitArgs) -> Result<Opened> {
    let mut opened = open_split(data, split.split)?;
    for note in &opened.notes {
        log::warn!("{note}");
    }
    if let Some(path) = &split.exclude {
        opened.source = without(opened.source, path)?;
    }
    Ok(opened)
}

fn open_split(data: &DataArgs, split: Split) -> datasets::Result<Opened> {
    let options = OpenOptions {
        split,
        kind: data.source,
        val_fraction: data.val_fraction,
        seed: data.seed,
        allow_empty_classes: data.allow_empty_classes,
        table: data.table.clone(),
        ..OpenOptions::default()
    };
    open(data.data(), &options)
}

fn without(source: Arc<dyn Source>, path: &Path) -> Result<Arc<dyn Source>> {
    let list = Quarantine::load(path)?;
    let (source, left_out) = list.apply(source)?;
    log::info!("{}: {left_out} of {} listed samples are in this data and left out", path.display(), list.len());
    Ok(source)
}

/// The pipeline by name, for crops of `size` pixels.
fn pipeline(name: PipelineName, size: u32, images: &ImageArgs) -> Result<Arc<dyn Preprocess>> {
    let pipeline = match name {
        PipelineName::Train => Pipeline::train(size),
        PipelineName::Eval => Pipeline::eval(EvalTransform {
            // 256 for 224.
            resize: size * 8 / 7,
            rule: ResizeRule::Shorter,
            crop: size,
            interpolation: Interpolation::Bilinear,
            antialias: true,
        }),
    };
    Ok(Arc::new(PipelinePreprocess::new(pipeline, images.options())?))
}

/// Prints a result as JSON to standard output.
fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("cannot write the result as JSON")?;
    outln!("{text}")?;
    Ok(())
}

/// The number of threads to use.
fn threads(asked: Option<usize>) -> usize {
    asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Formats a count: `1 sample`, `2 samples`.
fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}{}", if what.ends_with("ss") { "es" } else { "s" }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([count(1, "class"), count(2, "class"), count(0, "sample")], ["1 class", "2 classes", "0 samples"]);
    }
}
