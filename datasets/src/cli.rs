//! The command line.

use std::{ops::Bound, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use datasets::{DecodeOptions, OrientationPolicy, SourceKind, Split, source::TableOptions};
use runtime::{
    environment::{parse_threads, parse_workers},
    logging::Verbosity,
    progress::Output,
    shell::{CompletionsArgs, ManArgs},
    units::{number_in, whole_in},
};

const BETWEEN_0_AND_1: (Bound<f64>, Bound<f64>) = (Bound::Excluded(0.0), Bound::Excluded(1.0));

/// Inspect, check, preview, shard and benchmark image data
///
/// DATA is read in place: ImageNet's official archives, a folder of classes, a table of images and labels, WebDataset
/// shards, Parquet files. Nothing is unpacked or converted.
///
/// Results go to standard output; progress and warnings go to standard error.
#[derive(Debug, Parser)]
#[command(name = "datasets", version, after_long_help = runtime::exit::HELP, max_term_width = 100)]
pub struct Cli {
    /// The command
    #[command(subcommand)]
    pub command: Command,
    /// The verbosity of standard error
    #[command(flatten)]
    pub verbosity: Verbosity,
}

impl Cli {
    /// Returns where progress is shown.
    pub fn progress(&self) -> Output {
        Output::from_quiet(self.verbosity.is_quiet())
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the kind, classes, counts and image sizes of DATA
    ///
    /// Reads the headers of evenly spaced images (--sample) and prints a histogram of their sizes.
    #[command(after_long_help = "Examples:\n  datasets inspect imagenet/\n  datasets inspect photos/ --format json")]
    Inspect(InspectArgs),

    /// Check every sample of DATA
    ///
    /// Decodes every sample of both splits, on all cores, and reports unreadable and truncated samples, formats that differ
    /// from the extension, CMYK images, rotation by metadata, 8 or 12 bits stored in 16, duplicates (exact, and near by
    /// perceptual hash), placeholders (the same image in several classes, images of a single color), tiny and huge images,
    /// files that are left out, class imbalance, images of `val` that are also in `train`, and the fingerprint of the label
    /// map. The exit code is 3 if
    /// a sample is unusable.
    #[command(after_long_help = "Examples:
  datasets doctor imagenet/
  datasets doctor imagenet/ --quarantine bad.txt
  datasets bench imagenet/ --exclude bad.txt")]
    Doctor(DoctorArgs),

    /// Draw a captioned grid of samples as the network receives them
    ///
    /// Each cell shows a sample after the transforms of --pipeline, with its class and key.
    #[command(after_long_help = "Examples:
  datasets preview imagenet/ --out grid.png
  datasets preview imagenet/ --out grid.png --repeats 4    # each sample four times, augmented anew")]
    Preview(PreviewArgs),

    /// Pack DATA into WebDataset shards
    ///
    /// Writes every split as `NAME-SPLIT-000000.tar` and so on, each sample as `KEY.jpg` (or its own format) and `KEY.cls`, and
    /// `NAME-SPLIT-manifest.json` with sizes and SHA-256 hashes. After an interruption the same command continues after the
    /// last complete shard. The same data and options write the same bytes.
    #[command(after_long_help = "Examples:
  datasets shard imagenet/ --out shards/ --shuffle
  datasets shard photos/ --out shards/ --shard-size 256MB --resize 512")]
    Shard(ShardArgs),

    /// Measure how fast DATA loads, in images per second
    ///
    /// Loads batches as training does and discards them. Prints the median over all passes but the first, and the time that
    /// the workers spent on reading, decoding and transforming.
    #[command(after_long_help = "Examples:
  datasets bench imagenet/ --pipeline train --workers 8
  datasets bench imagenet/ --pipeline eval --format json")]
    Bench(BenchArgs),

    /// Print a shell's completion script
    #[command(
        after_long_help = "Examples:\n  datasets completions bash > ~/.local/share/bash-completion/completions/datasets"
    )]
    Completions(CompletionsArgs),

    /// Write manual pages
    #[command(after_long_help = "Examples:\n  datasets man ~/.local/share/man/man1")]
    Man(ManArgs),
}

/// The data and how to open it.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// Data: a folder, an archive, a table (CSV, TSV, JSON lines), a pattern of shards, or a URL
    #[arg(value_name = "DATA", required_unless_present = "data_flag")]
    data: Option<String>,
    /// The same as DATA, as in `train` and `infer`
    #[arg(long = "data", id = "data_flag", value_name = "DATA", conflicts_with = "data")]
    data_flag: Option<String>,
    /// Kind of data, if it is not recognized correctly
    #[arg(long, value_name = "KIND", help_heading = "Data")]
    pub source: Option<SourceKind>,
    /// Fraction of each class to hold out as `val`, if the data has no `val` split
    #[arg(long, value_name = "FRACTION", help_heading = "Data", value_parser = number_in("a fraction", BETWEEN_0_AND_1))]
    pub val_fraction: Option<f64>,
    /// Seed of all random choices
    #[arg(long, default_value_t = 0, help_heading = "Data", value_parser = whole_in("a whole number", 0_u64..))]
    pub seed: u64,
    /// Accept classes without images
    #[arg(long, help_heading = "Data")]
    pub allow_empty_classes: bool,
    #[command(flatten)]
    pub table: TableOptions,
}

impl DataArgs {
    /// Returns the data as typed.
    pub fn data(&self) -> &str {
        self.data.as_deref().or(self.data_flag.as_deref()).unwrap_or_default()
    }
}

/// A split without the excluded samples.
#[derive(Debug, Args)]
pub struct SplitArgs {
    /// Split: train, val or all
    #[arg(long, default_value_t = Split::Train, help_heading = "Data")]
    pub split: Split,
    /// Exclude the samples listed in this file, which `datasets doctor --quarantine FILE` writes
    #[arg(long, value_name = "FILE", alias = "without", help_heading = "Data")]
    pub exclude: Option<PathBuf>,
}

/// How images are decoded.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// Orientation in the metadata of images: apply turns pixels upright, ignore uses them as stored
    #[arg(long, value_name = "apply|ignore", default_value_t, help_heading = "Data")]
    pub orientation: OrientationPolicy,
    /// Largest number of pixels of an image; the memory for decoding grows with it [default: 178956970]
    #[arg(long, value_name = "N", help_heading = "Data", value_parser = whole_in("a number of pixels", 1_u64..))]
    pub max_pixels: Option<u64>,
}

impl ImageArgs {
    /// Returns the options of decoding.
    pub fn options(&self) -> DecodeOptions {
        let options = DecodeOptions { orientation: self.orientation, ..DecodeOptions::default() };
        match self.max_pixels {
            Some(max_pixels) => options.max_pixels(max_pixels),
            None => options,
        }
    }
}

/// The output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Text for people
    Text,
    /// JSON for programs
    Json,
}

/// The transforms.
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
    /// Number of images whose headers are read; 0 reads all
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = whole_in::<usize>("a number of images (0 for all)", ..))]
    pub sample: usize,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// `doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub images: ImageArgs,
    /// Write the samples to exclude to this file
    #[arg(long, value_name = "FILE")]
    pub quarantine: Option<PathBuf>,
    /// Samples that the file lists
    #[arg(long, value_enum, value_delimiter = ',', default_value = "broken", requires = "quarantine")]
    pub quarantine_what: Vec<QuarantineWhat>,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    pub workers: Option<usize>,
    /// Shorter side below which an image is tiny
    #[arg(long, value_name = "PIXELS", default_value_t = 32, value_parser = whole_in("a number of pixels", 0_u32..))]
    pub tiny: u32,
    /// Longer side above which an image is huge
    #[arg(long, value_name = "PIXELS", default_value_t = 8192, value_parser = whole_in("a number of pixels", 0_u32..))]
    pub huge: u32,
    /// Largest number of differing bits (of 128) between the perceptual hashes of near duplicates
    #[arg(long, value_name = "BITS", default_value_t = 6, value_parser = whole_in("a number of bits", 0_u32..=15))]
    pub near: u32,
}

/// The samples that a quarantine file lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QuarantineWhat {
    /// Unreadable and truncated samples
    Broken,
    /// All but the first of each group of exact duplicates within a split
    Duplicates,
    /// Samples of `train` that are also in `val`, byte by byte
    Leaks,
    /// Tiny images
    Tiny,
    /// Images of a single color
    Flat,
    /// Samples that are the same image, byte by byte, in several classes
    Conflicts,
}

/// `preview`
#[derive(Debug, Args)]
pub struct PreviewArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub images: ImageArgs,
    #[command(flatten)]
    pub split: SplitArgs,
    /// PNG file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Transforms
    #[arg(long, value_enum, default_value_t = PipelineName::Train)]
    pub pipeline: PipelineName,
    /// Height and width of the crops in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 224, value_parser = whole_in("a number of pixels", 8_u32..=4096))]
    pub size: u32,
    /// Cells per row
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = whole_in("a number of columns", 1_u32..=64))]
    pub columns: u32,
    /// Number of rows
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = whole_in("a number of rows", 1_u32..=64))]
    pub rows: u32,
    /// Number of augmentations of each sample
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole_in("a number of augmentations", 1_u32..=64))]
    pub repeats: u32,
    /// Epoch whose first samples are shown
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole_in("the number of an epoch", 0_u64..))]
    pub epoch: u64,
}

/// `shard`
#[derive(Debug, Args)]
pub struct ShardArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub images: ImageArgs,
    /// Split: train, val or all (as one split) [default: every split by itself]
    #[arg(long, help_heading = "Data")]
    pub split: Option<Split>,
    /// Exclude the samples listed in this file, which `datasets doctor --quarantine FILE` writes
    #[arg(long, value_name = "FILE", alias = "without", help_heading = "Data")]
    pub exclude: Option<PathBuf>,
    /// Folder to write the shards to
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Largest size of a shard: bytes, or with kB, MB, GB (powers of 1000) or KiB, MiB, GiB (of 1024)
    #[arg(long, value_name = "SIZE", default_value = "1GB", value_parser = runtime::units::byte_size)]
    pub shard_size: u64,
    /// Shuffle the samples, recommended for training from shards
    #[arg(long)]
    pub shuffle: bool,
    /// Resize images with a longer shorter side to this shorter side, as JPEG; other images keep their bytes
    #[arg(long, value_name = "PIXELS", value_parser = whole_in("a number of pixels", 1_u32..=65535))]
    pub resize: Option<u32>,
    /// Quality of resized JPEGs, 1 to 100
    #[arg(long, value_name = "Q", default_value_t = 95, value_parser = whole_in("a quality", 1_u8..=100))]
    pub quality: u8,
    /// First part of the shards' names [default: the name of DATA]
    #[arg(long)]
    pub name: Option<String>,
    /// Threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    pub workers: Option<usize>,
}

/// `bench`
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub images_options: ImageArgs,
    #[command(flatten)]
    pub split: SplitArgs,
    /// Transforms
    #[arg(long, value_enum, default_value_t = PipelineName::Train)]
    pub pipeline: PipelineName,
    /// Height and width of the crops in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = 224, value_parser = whole_in("a number of pixels", 8_u32..=4096))]
    pub size: u32,
    /// Threads; 0 loads on the main thread [default: one per core]
    #[arg(long, value_name = "N", value_parser = parse_workers)]
    pub workers: Option<usize>,
    /// Images per batch
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = whole_in("a number of images", 1_u32..))]
    pub batch_size: u32,
    /// Images per pass; shorter data is repeated
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = whole_in("a number of images", 1_u32..))]
    pub images: u32,
    /// Number of passes; the first is a warm-up if there are several
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = whole_in("a number of passes", 1_u32..))]
    pub passes: u32,
    /// Largest memory of batches in flight
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = runtime::units::byte_size)]
    pub memory: u64,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
