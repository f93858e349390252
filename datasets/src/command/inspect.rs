//! `datasets inspect`: describes the data.

use std::{collections::BTreeMap, fmt::Write};

use anyhow::Result;
use datasets::{Opened, decode, source::LeftOut};
use runtime::{
    exit::ExitCode,
    out,
    progress::{Output, Progress, Unit},
    text::printable,
    units::human_bytes,
};
use serde::Serialize;

use super::{
    count, open_data, print_json,
    scan::{scan, spread},
    threads,
};
use crate::cli::{Format, InspectArgs};

#[derive(Debug, Serialize)]
struct Inspection {
    data: String,
    kind: String,
    split: String,
    samples: usize,
    /// Samples of each class, in label order.
    classes: Vec<ClassCount>,
    unlabeled: usize,
    notes: Vec<String>,
    /// The files of folders that are left out, by reason and extension.
    left_out: LeftOut,
    /// The number of samples that the following fields are measured on.
    measured: usize,
    /// The number of measured samples whose header cannot be read.
    unreadable: usize,
    bytes: Spread,
    width: Spread,
    height: Spread,
    formats: BTreeMap<String, usize>,
    colors: BTreeMap<String, usize>,
    /// A histogram of the shorter sides.
    shorter_side: Vec<Bar>,
}

#[derive(Debug, Serialize)]
struct ClassCount {
    id: String,
    name: String,
    samples: usize,
}

/// Smallest, mean and largest.
#[derive(Debug, Default, Serialize)]
struct Spread {
    min: u64,
    mean: f64,
    max: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Bar {
    from: u32,
    below: u32,
    images: usize,
}

pub fn run(args: &InspectArgs, output: Output) -> Result<ExitCode> {
    let opened = open_data(&args.data, &args.split)?;
    let inspection = inspect(args, &opened, output);
    match args.format {
        Format::Json => print_json(&inspection)?,
        Format::Text => out!("{}", text(&inspection))?,
    }
    Ok(ExitCode::Success)
}

fn inspect(args: &InspectArgs, opened: &Opened, output: Output) -> Inspection {
    let source = &opened.source;
    let mut per_class = vec![0; source.classes().len()];
    let mut unlabeled = 0;
    for index in 0..source.len() {
        match source.label(index).and_then(|label| per_class.get_mut(label as usize)) {
            Some(samples) => *samples += 1,
            None => unlabeled += 1,
        }
    }
    let classes = source.classes().iter().zip(per_class);
    let classes =
        classes.map(|(class, samples)| ClassCount { id: class.id.clone(), name: class.name.clone(), samples });

    let indices = spread(source.len(), args.sample);
    let progress = Progress::new("inspect", Unit::Items("images"), Some(indices.len() as u64), output);
    let looked = scan(source, &indices, threads(None), &progress, |_, bytes| {
        let bytes = bytes.ok()?;
        Some((bytes.len() as u64, decode::probe(bytes).ok()?))
    });
    progress.finish();
    let headers: Vec<_> = looked.iter().flatten().collect();
    let (mut formats, mut colors) = (BTreeMap::new(), BTreeMap::new());
    for (_, header) in &headers {
        *formats.entry(header.format.to_string()).or_default() += 1;
        *colors.entry(format!("{:?}", header.color)).or_default() += 1;
    }
    Inspection {
        data: args.data.data().to_string(),
        kind: opened.kind.to_string(),
        split: opened.split.to_string(),
        samples: source.len(),
        classes: classes.collect(),
        unlabeled,
        notes: opened.notes.clone(),
        left_out: opened.left_out.clone(),
        measured: indices.len(),
        unreadable: indices.len() - headers.len(),
        bytes: spread_of(headers.iter().map(|(bytes, _)| *bytes)),
        width: spread_of(headers.iter().map(|(_, header)| u64::from(header.width))),
        height: spread_of(headers.iter().map(|(_, header)| u64::from(header.height))),
        formats,
        colors,
        shorter_side: histogram(headers.iter().map(|(_, header)| header.width.min(header.height))),
    }
}

fn spread_of(values: impl Iterator<Item = u64> + Clone) -> Spread {
    let n = values.clone().count().max(1) as f64;
    Spread {
        min: values.clone().min().unwrap_or(0),
        mean: values.clone().map(|value| value as f64).sum::<f64>() / n,
        max: values.max().unwrap_or(0),
    }
}

/// Counts by powers of two and halfway between, from the first non-empty bar to the last.
fn histogram(sides: impl Iterator<Item = u32>) -> Vec<Bar> {
    let edges: Vec<u32> = (3..16).flat_map(|power| [1 << power, 3 << (power - 1)]).collect();
    let mut counts = vec![0; edges.len() + 1];
    for side in sides {
        counts[edges.partition_point(|&edge| edge <= side)] += 1;
    }
    let filled = |count: &usize| *count > 0;
    let (Some(first), Some(last)) = (counts.iter().position(filled), counts.iter().rposition(filled)) else {
        return Vec::new();
    };
    let edge = |i: usize| edges.get(i).copied().unwrap_or(u32::MAX);
    (first..=last)
        .map(|i| Bar { from: if i == 0 { 0 } else { edge(i - 1) }, below: edge(i), images: counts[i] })
        .collect()
}

fn text(inspection: &Inspection) -> String {
    let Inspection { data, kind, split, samples, classes, measured, .. } = inspection;
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(format!("{data}: {kind}, split {split}"));
    line(format!("  {} of {}", count(*samples, "sample"), count(classes.len(), "class")));
    if inspection.unlabeled > 0 {
        line(format!("  {} without a label", inspection.unlabeled));
    }
    let by_size = |class: &&ClassCount| class.samples;
    if let (Some(smallest), Some(largest)) = (classes.iter().min_by_key(by_size), classes.iter().max_by_key(by_size)) {
        line(format!(
            "  classes hold {} ({}) to {} ({}) samples",
            smallest.samples,
            printable(&smallest.name),
            largest.samples,
            printable(&largest.name)
        ));
    }
    let list = |counts: &BTreeMap<String, usize>| {
        counts.iter().map(|(name, n)| format!("{n} {name}")).collect::<Vec<_>>().join(", ")
    };
    if !inspection.left_out.is_empty() {
        line(format!("  left out: {}", inspection.left_out));
    }
    line(format!("  measured on {measured}:"));
    if inspection.unreadable > 0 {
        line(format!("    {} unreadable: `datasets doctor` names them", inspection.unreadable));
    }
    line(format!("    format  {}", list(&inspection.formats)));
    line(format!("    color  {}", list(&inspection.colors)));
    let Spread { min, mean, max } = inspection.bytes;
    line(format!("    bytes   {} to {}, mean {}", human_bytes(min), human_bytes(max), human_bytes(mean as u64)));
    for (name, Spread { min, mean, max }) in [("width ", &inspection.width), ("height", &inspection.height)] {
        line(format!("    {name}  {min} to {max}, mean {mean:.0}"));
    }
    line("    shorter side".into());
    let most = inspection.shorter_side.iter().map(|bar| bar.images).max().unwrap_or(1).max(1);
    for Bar { from, below, images } in &inspection.shorter_side {
        let mut text = String::new();
        let below = if *below == u32::MAX { String::new() } else { (below - 1).to_string() };
        // Writing to a string does not fail.
        let _ = write!(text, "    {from:>6} – {below:<6} {images:>7}  {}", "█".repeat((images * 40).div_ceil(most)));
        line(text);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_count_every_image_once() {
        let bars = histogram([4, 8, 320, 375, 383, 384].into_iter());
        assert_eq!(bars.iter().map(|bar| bar.images).sum::<usize>(), 6);
        assert_eq!(bars[0], Bar { from: 0, below: 8, images: 1 });
        assert_eq!(bars[bars.len() - 2], Bar { from: 256, below: 384, images: 3 });
        assert_eq!(bars[bars.len() - 1], Bar { from: 384, below: 512, images: 1 });
        assert!(histogram(std::iter::empty()).is_empty());
    }
}
