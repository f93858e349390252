//! `infer quantize`: int8 weights and scales from calibration images, compared with f32.

use std::{path::PathBuf, sync::Arc, thread};

use anyhow::{Context, Result, bail, ensure};
use datasets::{OpenOptions, Source, Split};
use hub::{Preprocessor, weights};
use image::RgbImage;
use infer::{
    Input, inputs,
    labels::ClassMap,
    quantize::{self, Gate, Labeled, Options, Quantized, Record},
    stream,
};
use runtime::{
    backend::BackendSpec,
    exit::ExitCode,
    noteln, out,
    progress::{Output, Progress, Unit, thousands},
};

use super::{open_weights, print_json};
use crate::cli::{Format, QuantizeArgs};

/// Stages printed, those with the least signal to noise.
const PRINTED_STAGES: usize = 5;

pub fn run(args: &QuantizeArgs, output: Output) -> Result<ExitCode> {
    let device = BackendSpec::host()?.device()?;
    let mut opened = open_weights(&args.weights, &args.load, &device, output)?;
    ensure!(!opened.weights.is_quantized(), "{} is quantized already", args.weights);
    args.decoding.override_card(&mut opened.card);
    let architecture = opened.card.architecture;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{architecture}.int8.safetensors")));
    let shown = out.display();
    ensure!(!out.is_dir(), "{shown} is a folder; --out names a file");
    ensure!(!out.exists() || args.force, "{shown} exists already; replace it with --force, or choose another --out");

    let preprocess = Preprocessor::new(&opened.card)?.with_max_pixels(args.decoding.max_pixels);
    let data = Data::open(args, &opened.card)?;
    let (calibration, held_out) = data.images(args, &preprocess, output)?;
    if held_out.is_empty() && args.held_out > 0 {
        log::warn!("{} has no other images to compare int8 with f32 on; give more, or fewer --images", args.data);
    }
    let total = held_out.len() as u64;
    let options = Options { max_drop: args.max_drop, batch_size: args.batch_size as usize };
    let mut progress: Option<Progress> = None;
    let float_bytes = opened.weights.shapes().map(|(_, shape)| 4 * shape.iter().product::<usize>() as u64).sum::<u64>();
    let Quantized { network, card, record } = quantize::quantize(
        opened,
        (&args.data, &calibration),
        &held_out,
        &options,
        &device,
        &mut |event| match event {
            quantize::Progress::Calibrating => noteln!("calibrating on {} images …", calibration.len()),
            quantize::Progress::Comparing(done) => {
                let bar = || Progress::new("compare", Unit::Items("images"), Some(total), output);
                let bar = progress.get_or_insert_with(bar);
                bar.set_done(done as u64);
                if done as u64 == total
                    && let Some(bar) = progress.take()
                {
                    bar.finish();
                }
            }
            quantize::Progress::KeptFloat { stage, drop } => {
                noteln!("{drop:.2} points lost: {stage} stays in f32");
            }
        },
    )?;
    weights::save_quantized(&network, &card, &serde_json::to_string(&record)?, &out)?;
    let bytes = std::fs::metadata(&out).with_context(|| format!("cannot read the size of {shown}"))?.len();
    match args.format {
        Format::Json => print_json(&record)?,
        Format::Text => out!("{}", text(&record))?,
    }
    noteln!("result: {shown}, {} bytes (f32: {})", thousands(bytes), thousands(float_bytes));
    let missed = record.gate.as_ref().is_some_and(|gate| gate.drop() > gate.max_drop);
    Ok(if missed { ExitCode::Failure } else { ExitCode::Success })
}

/// The images: labeled ones, or a folder without classes.
enum Data {
    Labeled { calibration: Arc<dyn Source>, held_out: Arc<dyn Source>, map: ClassMap, divided: bool },
    Files(Vec<Input>),
}

impl Data {
    fn open(args: &QuantizeArgs, card: &hub::Card) -> Result<Self> {
        let open = |split| {
            let table = args.table.clone();
            let options = OpenOptions { allow_empty_classes: true, table, ..OpenOptions::split(split) };
            datasets::open(&args.data, &options)
        };
        let opened = match open(Split::Val) {
            Ok(held_out) => Ok((open(Split::Train)?, held_out, false)),
            Err(datasets::Error::MissingSplit { .. }) => {
                let all = open(Split::All)?;
                let again = open(Split::All)?;
                Ok((all, again, true))
            }
            Err(error) => Err(error),
        };
        match opened {
            Ok((calibration, held_out, divided)) if held_out.source.label(0).is_some() => {
                for note in &held_out.notes {
                    log::warn!("{note}");
                }
                let map = ClassMap::new(held_out.source.classes(), card)?;
                Ok(Self::Labeled { calibration: calibration.source, held_out: held_out.source, map, divided })
            }
            unlabeled => {
                let expanded = inputs::expand(&[PathBuf::from(&args.data)], true);
                let found = expanded.map(|expanded| expanded.inputs).unwrap_or_default();
                let files: Vec<Input> = found.into_iter().filter(|input| matches!(input, Input::File(_))).collect();
                match (files.is_empty(), unlabeled) {
                    (false, _) => Ok(Self::Files(files)),
                    (true, Err(error)) => Err(error.into()),
                    (true, Ok(_)) => bail!("{} has no images", args.data),
                }
            }
        }
    }

    /// Reads the calibration images, and the others to compare on, evenly spaced over the data.
    fn images(
        &self,
        args: &QuantizeArgs,
        preprocess: &Preprocessor,
        output: Output,
    ) -> Result<(Vec<RgbImage>, Vec<Labeled>)> {
        let (wanted, compared) = (args.images as usize, args.held_out as usize);
        let progress = Progress::new("decode", Unit::Items("images"), None, output);
        let result = match self {
            Self::Labeled { calibration, held_out, map, divided } => {
                let (first, second) = match divided {
                    true => divide(calibration.len(), wanted, compared),
                    false => (spread(calibration.len(), wanted), spread(held_out.len(), compared)),
                };
                let label = |index: usize| {
                    let class = held_out.label(index)?;
                    map.0.get(class as usize).map(|&class| class as usize)
                };
                let images = read(calibration, &first, preprocess, &progress)?;
                let others = read(held_out, &second, preprocess, &progress)?;
                (
                    images.into_iter().map(|(_, image)| image).collect(),
                    others.into_iter().map(|(index, image)| (image, label(index))).collect(),
                )
            }
            Self::Files(files) => {
                let (first, second) = divide(files.len(), wanted, compared);
                let pick = |indices: &[usize]| -> Result<Vec<RgbImage>> {
                    let chosen: Vec<Input> = indices.iter().map(|&index| files[index].clone()).collect();
                    let mut images = Vec::with_capacity(chosen.len());
                    let threads = thread::available_parallelism().map_or(1, usize::from);
                    stream::batches(&chosen, preprocess, 16, threads, |batch| -> Result<()> {
                        for (input, image) in batch {
                            match image {
                                Ok(image) => images.push(image),
                                Err(error) => log::warn!("{}: {error}; it is left out", input.name()),
                            }
                            progress.inc(1);
                        }
                        Ok(())
                    })?;
                    Ok(images)
                };
                (pick(&first)?, pick(&second)?.into_iter().map(|image| (image, None)).collect())
            }
        };
        progress.finish();
        ensure!(!result.0.is_empty(), "{}: none of its images can be read", args.data);
        Ok(result)
    }
}

/// `count` of `len` indices, evenly spaced; all if there are fewer.
fn spread(len: usize, count: usize) -> Vec<usize> {
    let count = count.min(len);
    (0..count).map(|index| index * len / count).collect()
}

/// Two disjoint parts of data without splits; where calibration would take more than half of the images, it has a fifth.
fn divide(len: usize, first: usize, second: usize) -> (Vec<usize>, Vec<usize>) {
    let chosen = match first <= len / 2 || first + second <= len || second == 0 {
        true => spread(len, first),
        false => spread(len, first.min(len.div_ceil(5))),
    };
    let others: Vec<usize> = (0..len).filter(|index| chosen.binary_search(index).is_err()).collect();
    let second = spread(others.len(), second).into_iter().map(|index| others[index]).collect();
    (chosen, second)
}

/// Reads and prepares samples of a source on all cores, in order; those that cannot be read are noted.
fn read(
    source: &Arc<dyn Source>,
    indices: &[usize],
    preprocess: &Preprocessor,
    progress: &Progress,
) -> Result<Vec<(usize, RgbImage)>> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let part = indices.len().div_ceil(threads).max(1);
    let read = |&index: &usize| {
        let mut bytes = Vec::new();
        let image = source.read(index, &mut bytes).map_err(anyhow::Error::from).and_then(|()| {
            let decoded = preprocess.decode(&bytes)?;
            if let Some(damage) = decoded.damage {
                log::warn!("{}: {damage}; it is used as far as it can be decoded", source.location(index));
            }
            Ok(decoded.image)
        });
        progress.inc(1);
        match image {
            Ok(image) => Some((index, image)),
            Err(error) => {
                log::warn!("{}: {error:#}; it is left out", source.location(index));
                None
            }
        }
    };
    thread::scope(|scope| {
        let handles: Vec<_> = indices
            .chunks(part)
            .map(|indices| scope.spawn(move || indices.iter().filter_map(read).collect::<Vec<_>>()))
            .collect();
        let parts =
            handles.into_iter().map(|handle| handle.join().map_err(|_| anyhow::anyhow!("a decoding thread failed")));
        Ok(parts.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    })
}

fn text(record: &Record) -> String {
    let ranges: Vec<String> = record.ranges.iter().map(|(method, count)| format!("{method} {count}")).collect();
    let mut text =
        format!("calibrated on {} images of {}; ranges: {}\n", record.images, record.data, ranges.join(", "));
    match &record.gate {
        Some(gate) => text += &gate_text(gate),
        None => text += "not compared with f32\n",
    }
    let float: Vec<&str> = record.stages.iter().filter(|stage| stage.float).map(|stage| &*stage.stage).collect();
    text += &match float.is_empty() {
        true => "all stages in int8\n".to_string(),
        false => format!("in f32: {}\n", float.join(", ")),
    };
    let mut stages: Vec<_> = record.stages.iter().filter(|stage| stage.own.is_some()).collect();
    stages.sort_by(|a, b| a.signal_to_noise.total_cmp(&b.signal_to_noise));
    text += "lowest signal to noise     output  own layers (dB)\n";
    for stage in stages.into_iter().take(PRINTED_STAGES) {
        let own = stage.own.unwrap_or_default();
        text += &format!("  {:22} {:>8.1} {own:>8.1}\n", stage.stage, stage.signal_to_noise);
    }
    text
}

fn gate_text(gate: &Gate) -> String {
    let percent = |right: usize| 100.0 * right as f64 / gate.images.max(1) as f64;
    let what = if gate.labeled { "top-1" } else { "same class as f32" };
    format!(
        "{} held-out images, {what}: f32 {:.2} %, int8 {:.2} % ({:+.2} points; {} lost, {} gained, McNemar p = {:.2}; the \
         same class on {:.2} %)\n",
        thousands(gate.images as u64),
        percent(gate.right_f32),
        percent(gate.right_int8),
        -gate.drop(),
        gate.lost,
        gate.gained,
        gate.p,
        percent(gate.agreement)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calibration_and_comparison_share_no_image() {
        for (len, first, second) in
            [(1000, 128, 500), (100, 128, 500), (5, 128, 500), (1, 128, 500), (40, 10, 0), (0, 1, 1)]
        {
            let (a, b) = divide(len, first, second);
            assert!(a.iter().all(|index| !b.contains(index) && *index < len), "{len}");
            assert!(b.iter().all(|index| *index < len));
            assert_eq!(a.is_empty(), len == 0);
            assert!(a.len() <= first && b.len() <= second);
        }
        assert_eq!(spread(10, 3), [0, 3, 6]);
    }
}
