//! `datasets shard`: packs data into WebDataset shards.

use anyhow::{Result, ensure};
use datasets::{
    DecodeError, Error, Opened, SourceKind, Split,
    decode::{self, DecodeOptions, Decoded, Format},
    shard::{ShardOptions, write_shards},
};
use image::{
    codecs::jpeg::JpegEncoder,
    imageops::{FilterType, resize},
};
use runtime::{
    exit::ExitCode,
    outln,
    progress::{Output, Progress, Unit},
    units::human_bytes,
};

use super::{count, open_data, open_split, threads};
use crate::cli::{ShardArgs, SplitArgs};

pub fn run(args: &ShardArgs, output: Output) -> Result<ExitCode> {
    let out = args.out.display();
    ensure!(args.out.is_dir() || !args.out.exists(), "{out} is a file; --out names a folder for the shards");
    let splits = match args.split {
        Some(split) => vec![split],
        None => vec![Split::Train, Split::Val],
    };
    let (mut opened, mut missing) = (Vec::new(), None);
    for split in splits {
        match open_data(&args.data, &SplitArgs { split, exclude: args.exclude.clone() }) {
            // Unlabeled images are opened whole for every split.
            Ok(whole) if whole.kind == SourceKind::Images => {
                opened = vec![whole];
                break;
            }
            Ok(part) => opened.push(part),
            Err(error) if args.split.is_none() && is_missing(&error) => missing = Some(error),
            Err(error) => return Err(error),
        }
    }
    if let (true, Some(error)) = (opened.is_empty(), missing) {
        return Err(error);
    }
    if let (Some(_), [one]) = (args.split, &opened[..]) {
        note_other_split(args, one);
    }
    opened.iter().try_for_each(|opened| write(args, opened, output))?;
    Ok(ExitCode::Success)
}

fn is_missing(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::MissingSplit { .. }))
}

/// Says that only one of two splits was asked for.
fn note_other_split(args: &ShardArgs, opened: &Opened) {
    let other = match opened.split {
        Split::Train => Split::Val,
        Split::Val => Split::Train,
        Split::All => return,
    };
    if opened.kind != SourceKind::Images && open_split(&args.data, other).is_ok() {
        log::warn!("the split {other} is left out; without --split both are written");
    }
}

/// Writes one split.
fn write(args: &ShardArgs, opened: &Opened, output: Output) -> Result<()> {
    let name = args.name.clone().unwrap_or_else(|| default_name(args.data.data()));
    let options = ShardOptions {
        prefix: format!("{name}-{}", opened.split),
        shard_bytes: args.shard_size,
        shuffle: args.shuffle.then_some(args.data.seed),
        recipe: args.resize.map_or_else(String::new, |side| {
            format!("resize {side}, quality {}, orientation {}", args.quality, args.images.orientation)
        }),
        workers: threads(args.workers),
    };
    let decoding = args.images.options();
    let shrink = |side: u32| {
        let decoding = decoding.clone();
        move |bytes: &[u8]| shrink(bytes, side, args.quality, &decoding)
    };
    let transform = args.resize.map(shrink);
    let progress = Progress::new("shard", Unit::Items("samples"), Some(opened.source.len() as u64), output);
    let mut resumed = false;
    let manifest = write_shards(
        &opened.source,
        &args.out,
        &options,
        transform.as_ref().map(|transform| transform as datasets::shard::Transform<'_>),
        |done| match std::mem::replace(&mut resumed, true) {
            false => progress.set_initial(done as u64),
            true => progress.set_done(done as u64),
        },
    )?;
    progress.finish();
    outln!(
        "{}: split {}: {} in {}, {}",
        args.out.display(),
        opened.split,
        count(opened.source.len(), "sample"),
        count(manifest.shards.len(), "shard"),
        human_bytes(manifest.shards.iter().map(|shard| shard.bytes).sum())
    )?;
    Ok(())
}

/// Returns the last part of a path, without characters that a shard's name cannot have.
fn default_name(data: &str) -> String {
    let last = data.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let name: String = last.chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
    if name.is_empty() { "data".into() } else { name }
}

/// Shrinks an image whose shorter side is longer than `side`; other images keep their bytes. The JPEG has no metadata,
/// so its pixels are turned upright, unless the options say otherwise.
fn shrink(bytes: &[u8], side: u32, quality: u8, options: &DecodeOptions) -> Result<Vec<u8>, DecodeError> {
    let header = decode::probe(bytes)?;
    let shorter = header.width.min(header.height);
    if shorter <= side {
        return Ok(bytes.to_vec());
    }
    let Decoded { image, damage, .. } = decode::decode(bytes, options)?;
    if let Some(damage) = damage {
        log::warn!("{damage}; it is resized as far as it can be decoded");
    }
    let scale = |length: u32| (u64::from(length) * u64::from(side) / u64::from(shorter)) as u32;
    let image = resize(&image, scale(image.width()), scale(image.height()), FilterType::CatmullRom);
    let mut jpeg = Vec::new();
    // The only possible error is a side beyond 65,535 pixels.
    JpegEncoder::new_with_quality(&mut jpeg, quality)
        .encode_image(&image)
        .map_err(|error| DecodeError::Unsupported { format: Format::Jpeg, cause: error.to_string() })?;
    Ok(jpeg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_data_s_last_part() {
        assert_eq!(default_name("/data/imagenet/"), "imagenet");
        assert_eq!(default_name("shards/x-{0..9}.tar"), "x-09tar");
        assert_eq!(default_name("/"), "data");
    }

    #[test]
    fn large_images_shrink_and_small_ones_keep_their_bytes() {
        let options = DecodeOptions::default();
        let mut bytes = Vec::new();
        JpegEncoder::new(&mut bytes).encode_image(&image::RgbImage::new(120, 90)).expect("a JPEG");
        assert_eq!(shrink(&bytes, 90, 90, &options).expect("kept"), bytes);
        let header = decode::probe(&shrink(&bytes, 45, 90, &options).expect("shrunk")).expect("a header");
        assert_eq!((header.width, header.height), (60, 45));
        assert!(shrink(b"nonsense", 45, 90, &options).is_err());
    }
}
