//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use datasets::{SourceKind, Split};
use runtime::{logging::Verbosity, progress::Output};

/// Looks into image data, checks it, shows it, repacks it and measures how fast it loads
///
/// DATA is read in place, whatever it is: ImageNet's official archives, a folder of classes, WebDataset shards,
/// Parquet files. Nothing is unpacked or converted.
///
/// Results go to standard output; progress and warnings go to standard error.
#[derive(Debug, Parser)]
#[command(name = "datasets", version, after_long_help = runtime::exit::HELP, max_term_width = 100)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
    /// How much is said on standard error
    #[command(flatten)]
    pub verbosity: Verbosity,
}

impl Cli {
    /// Where progress goes.
    pub fn progress(&self) -> Output {
        Output::from_quiet(self.verbosity.is_quiet())
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Says what DATA is: kind, classes, counts, sizes
    ///
    /// Reads the headers of some images, evenly spread (`--sample`), and prints a histogram of their sizes.
    #[command(after_long_help = "Examples:\n  datasets inspect imagenet/\n  datasets inspect photos/ --format json")]
    Inspect(InspectArgs),

    /// Checks every sample of DATA
    ///
    /// Reads and decodes every sample of both splits, on all cores, and reports: samples that cannot be decoded or end
    /// early, formats that differ from the extension, CMYK, odd EXIF, duplicates (exact, and near by perceptual hash),
    /// tiny and huge images, class imbalance, images of `val` that are in `train` too, and the fingerprint of the
    /// label map. Ends with exit code 3 where a sample cannot be used.
    #[command(after_long_help = "Examples:
  datasets doctor imagenet/
  datasets doctor imagenet/ --quarantine bad.txt
  datasets bench imagenet/ --without bad.txt")]
    Doctor(DoctorArgs),

    /// Draws a captioned grid of samples as the network sees them
    ///
    /// Each cell shows a sample after the transforms of `--pipeline`, with its class and key below.
    #[command(after_long_help = "Examples:
  datasets preview imagenet/ --out grid.png
  datasets preview imagenet/ --out grid.png --repeats 4    # each sample four times, augmented anew")]
    Preview(PreviewArgs),

    /// Packs DATA into WebDataset shards
    ///
    /// Writes `NAME-SPLIT-000000.tar` and so on, each sample as `KEY.jpg` (or what its format is) and `KEY.cls`, with
    /// `NAME-SPLIT-manifest.json` of sizes and SHA-256 hashes. Stopped on the way, the same command goes on after the
    /// last whole shard. The same data and options give the same bytes.
    #[command(after_long_help = "Examples:
  datasets shard imagenet/ --out shards/ --shuffle
  datasets shard photos/ --out shards/ --shard-size 256MB --resize 512")]
    Shard(ShardArgs),

    /// Measures how fast DATA loads, in images a second
    ///
    /// Loads batches as training does and throws them away. Prints the median over the passes but the first, and where
    /// the workers' time went.
    #[command(after_long_help = "Examples:
  datasets bench imagenet/ --pipeline train --workers 8
  datasets bench imagenet/ --pipeline eval --format json")]
    Bench(BenchArgs),
}

/// The data and how to open it.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// The data: a folder, an archive, a pattern of shards, a URL
    #[arg(value_name = "DATA")]
    pub data: String,
    /// The kind of data, where it is not recognized or not rightly
    #[arg(long, value_name = "KIND")]
    pub source: Option<SourceKind>,
    /// Hold back this share of each class as `val`, where the data has no `val` of its own
    #[arg(long, value_name = "SHARE")]
    pub val_fraction: Option<f64>,
    /// The seed of every random choice
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Accept classes without images
    #[arg(long)]
    pub allow_empty_classes: bool,
}

/// One split, less what is in quarantine.
#[derive(Debug, Args)]
pub struct SplitArgs {
    /// The split: train, val or all
    #[arg(long, default_value_t = Split::Train)]
    pub split: Split,
    /// Leave out the samples that this quarantine file lists
    #[arg(long, value_name = "FILE", alias = "quarantine")]
    pub without: Option<PathBuf>,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Which transforms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PipelineName {
    /// RandomResizedCrop and RandomHorizontalFlip
    Train,
    /// Resize (to 8/7 of the size) and CenterCrop
    Eval,
}

/// `inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub split: SplitArgs,
    /// How many images' headers to read; 0 reads all
    #[arg(long, value_name = "N", default_value_t = 2000)]
    pub sample: usize,
    /// How to print the result
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// `doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub data: DataArgs,
    /// Write the list of samples to leave out to this file
    #[arg(long, value_name = "FILE")]
    pub quarantine: Option<PathBuf>,
    /// What the quarantine list holds
    #[arg(long, value_enum, value_delimiter = ',', default_value = "broken", requires = "quarantine")]
    pub quarantine_what: Vec<QuarantineWhat>,
    /// How to print the result
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Threads; by default as many as there are cores
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    /// An image whose shorter side has fewer pixels is tiny
    #[arg(long, value_name = "PIXELS", default_value_t = 32)]
    pub tiny: u32,
    /// An image whose longer side has more pixels is huge
    #[arg(long, value_name = "PIXELS", default_value_t = 8192)]
    pub huge: u32,
    /// Images are near duplicates if at most this many bits of 128 differ in their perceptual hashes
    #[arg(long, value_name = "BITS", default_value_t = 6, value_parser = clap::value_parser!(u32).range(0..=15))]
    pub near: u32,
}

/// What goes into a quarantine list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QuarantineWhat {
    /// Samples that cannot be decoded or end early
    Broken,
    /// All but the first of each group of exact duplicates within a split
    Duplicates,
    /// Samples of `train` that are in `val` too, exactly
    Leaks,
    /// Tiny images
    Tiny,
}

/// `preview`
#[derive(Debug, Args)]
pub struct PreviewArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub split: SplitArgs,
    /// Where the picture goes (PNG)
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Which transforms
    #[arg(long, value_enum, default_value_t = PipelineName::Train)]
    pub pipeline: PipelineName,
    /// Height and width of the crops in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 224, value_parser = clap::value_parser!(u32).range(8..=4096))]
    pub size: u32,
    /// Cells in a row
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub columns: u32,
    /// Rows
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub rows: u32,
    /// Show each sample so many times, augmented anew
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub repeats: u32,
    /// The epoch whose first samples are shown
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub epoch: u64,
}

/// `shard`
#[derive(Debug, Args)]
pub struct ShardArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub split: SplitArgs,
    /// The folder for the shards
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// How large a shard may grow: bytes, or with kB, MB, GB (powers of 1000) or KiB, MiB, GiB (of 1024)
    #[arg(long, value_name = "SIZE", default_value = "1GB", value_parser = byte_size)]
    pub shard_size: u64,
    /// Shuffle the samples, as training from shards wants it
    #[arg(long)]
    pub shuffle: bool,
    /// Shrink images whose shorter side is longer to so many pixels, as JPEGs; smaller images keep their bytes
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=65535))]
    pub resize: Option<u32>,
    /// The quality of shrunk JPEGs, 1 to 100
    #[arg(long, value_name = "Q", default_value_t = 95, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub quality: u8,
    /// The first part of the shards' names; by default the name of DATA
    #[arg(long)]
    pub name: Option<String>,
    /// Threads; by default as many as there are cores
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
}

/// `bench`
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub split: SplitArgs,
    /// Which transforms
    #[arg(long, value_enum, default_value_t = PipelineName::Train)]
    pub pipeline: PipelineName,
    /// Height and width of the crops in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 224, value_parser = clap::value_parser!(u32).range(8..=4096))]
    pub size: u32,
    /// Threads; by default as many as there are cores. 0 loads on the main thread
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    /// Images a batch
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: u32,
    /// Images a pass; the data comes again where it is shorter
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    pub images: u32,
    /// Passes; the first warms up and does not count where there are more
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    pub passes: u32,
    /// The most memory for batches in flight
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = byte_size)]
    pub memory: u64,
    /// How to print the result
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// Bytes from `1000`, `64kB`, `1.5GB`, `512MiB`.
fn byte_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1000 * 1000,
        "g" | "gb" => 1000 * 1000 * 1000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(format!("unknown unit `{unit}`; expected kB, MB, GB, KiB, MiB or GiB")),
    };
    let number: f64 = number.parse().map_err(|_| format!("`{number}` is not a number"))?;
    let bytes = number * factor as f64;
    if bytes < 1.0 { Err("the size is less than a byte".into()) } else { Ok(bytes as u64) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn byte_sizes_have_units() {
        assert_eq!(byte_size("1000"), Ok(1000));
        assert_eq!(byte_size("1.5GB"), Ok(1_500_000_000));
        assert_eq!(byte_size("512 MiB"), Ok(512 << 20));
        assert!(byte_size("5 apples").unwrap_err().contains("apples"));
        assert!(byte_size("GB").unwrap_err().contains("not a number"));
        assert!(byte_size("0").is_err());
    }
}
