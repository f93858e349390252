//! `datasets bench`: measures loading speed.

use std::time::Instant;

use anyhow::{Result, bail};
use datasets::{
    ImageLoader,
    meters::{MeterReading, Stage},
};
use runtime::{
    exit::ExitCode,
    out,
    progress::{Output, Progress, Unit},
};
use serde::Serialize;

use super::{open_data, pipeline, print_json, threads};
use crate::cli::{BenchArgs, Format, PipelineName};

#[derive(Debug, Serialize)]
struct Bench {
    data: String,
    pipeline: &'static str,
    size: u32,
    workers: usize,
    batch_size: u32,
    samples: usize,
    images_per_pass: usize,
    /// The median over all passes but the first.
    images_per_s: f64,
    /// All passes, including the first.
    passes: Vec<f64>,
    /// Fractions of the workers' busy time over the counted passes.
    reading: f64,
    decoding: f64,
    transforming: f64,
    collating: f64,
    /// Fractions of the elapsed time: the consumer's wait, and each worker's wait for memory.
    waiting: f64,
    idle: f64,
    bytes_per_image: f64,
}

pub fn run(args: &BenchArgs, output: Output) -> Result<ExitCode> {
    let opened = open_data(&args.data, &args.split)?;
    let workers = threads_or_none(args.workers);
    let mut builder =
        ImageLoader::builder(opened.source.clone(), pipeline(args.pipeline, args.size, &args.images_options)?)
            .batch_size(args.batch_size as usize)
            .workers(workers)
            .memory_bytes(usize::try_from(args.memory).unwrap_or(usize::MAX))
            .seed(args.data.seed)
            .allow_unlabeled(true);
    if args.pipeline == PipelineName::Train {
        builder = builder.shuffle();
    }
    let loader = builder.build()?;
    let bench = measure(args, workers, &loader, output)?;
    match args.format {
        Format::Json => print_json(&bench)?,
        Format::Text => out!("{}", text(&bench))?,
    }
    Ok(ExitCode::Success)
}

/// The number of workers; 0 is the consumer's own thread.
fn threads_or_none(asked: Option<usize>) -> usize {
    if asked == Some(0) { 0 } else { threads(asked) }
}

fn measure(args: &BenchArgs, workers: usize, loader: &ImageLoader, output: Output) -> Result<Bench> {
    let total = u64::from(args.images) * u64::from(args.passes);
    let progress = Progress::new("bench", Unit::Items("images"), Some(total), output);
    let mut stream = Stream { loader, batches: None, finished: MeterReading::default() };
    let (mut rates, mut elapsed, mut images) = (Vec::new(), 0.0, 0);
    let mut warm = MeterReading::default();
    for pass in 0..args.passes {
        if pass == 1 {
            warm = stream.meters();
            (elapsed, images) = (0.0, 0);
        }
        let began = Instant::now();
        let mut loaded = 0;
        while loaded < args.images as usize {
            let n = stream.next_batch()?;
            loaded += n;
            progress.inc(n as u64);
        }
        let seconds = began.elapsed().as_secs_f64();
        rates.push(loaded as f64 / seconds);
        elapsed += seconds;
        images += loaded;
    }
    let all = stream.meters();
    progress.finish();
    let spent = difference(&all, &warm);
    let counted = if rates.len() > 1 { &rates[1..] } else { &rates[..] };
    Ok(Bench {
        data: args.data.data().to_string(),
        pipeline: match args.pipeline {
            PipelineName::Train => "train",
            PipelineName::Eval => "eval",
        },
        size: args.size,
        workers,
        batch_size: args.batch_size,
        samples: loader.source().len(),
        images_per_pass: images / counted.len(),
        images_per_s: median(counted),
        passes: rates.clone(),
        reading: spent.share(Stage::Read),
        decoding: spent.share(Stage::Decode),
        transforming: spent.share(Stage::Transform),
        collating: spent.share(Stage::Collate),
        waiting: spent.waiting.as_secs_f64() / elapsed,
        idle: spent.idle.as_secs_f64() / (elapsed * workers.max(1) as f64),
        bytes_per_image: spent.bytes as f64 / spent.samples.max(1) as f64,
    })
}

/// Endless epochs.
struct Stream<'a> {
    loader: &'a ImageLoader,
    batches: Option<datasets::loader::Batches>,
    /// The meters of the epochs that ended.
    finished: MeterReading,
}

impl Stream<'_> {
    /// Loads and discards a batch. Returns its number of images.
    fn next_batch(&mut self) -> Result<usize> {
        let mut fresh = false;
        loop {
            let batches = self.batches.get_or_insert_with(|| {
                fresh = true;
                self.loader.batches()
            });
            match batches.next() {
                Some(batch) => return Ok(batch?.len()),
                None if fresh => bail!("an epoch without a batch"),
                None => {
                    self.batches = None;
                    self.finished = self.finished + self.loader.meters();
                }
            }
        }
    }

    fn meters(&self) -> MeterReading {
        if self.batches.is_some() { self.finished + self.loader.meters() } else { self.finished }
    }
}

fn difference(all: &MeterReading, before: &MeterReading) -> MeterReading {
    MeterReading {
        waiting: all.waiting - before.waiting,
        reading: all.reading - before.reading,
        decoding: all.decoding - before.decoding,
        transforming: all.transforming - before.transforming,
        collating: all.collating - before.collating,
        idle: all.idle - before.idle,
        samples: all.samples - before.samples,
        bytes: all.bytes - before.bytes,
        bad: all.bad - before.bad,
        damaged: all.damaged - before.damaged,
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

fn text(bench: &Bench) -> String {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let passes = bench.passes.iter().map(|rate| format!("{rate:.0}")).collect::<Vec<_>>().join(", ");
    format!(
        "{:.0} images/s: {} pipeline, {} px, {} workers, batches of {}\n\
         \x20 passes      {passes} images/s (the first warms up)\n\
         \x20 images      {} of {:.1} kB on average\n\
         \x20 workers     reading {}, decoding {}, transforming {}, collating {}\n\
         \x20 idle        {} of the workers' time, for want of room in memory\n\
         \x20 waiting     {} of the time, the consumer for a batch\n",
        bench.images_per_s,
        bench.pipeline,
        bench.size,
        bench.workers,
        bench.batch_size,
        bench.samples,
        bench.bytes_per_image / 1000.0,
        percent(bench.reading),
        percent(bench.decoding),
        percent(bench.transforming),
        percent(bench.collating),
        percent(bench.idle),
        percent(bench.waiting),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
    }
}
