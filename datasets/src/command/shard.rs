//! `datasets shard`: packs data into WebDataset shards.

use anyhow::Result;
use datasets::{
    DecodeError,
    decode::{self, DecodeOptions, Decoded, Format},
    shard::{ShardOptions, write_shards},
};
use image::{
    codecs::jpeg::JpegEncoder,
    imageops::{FilterType, resize},
};
use runtime::{
    exit::ExitCode,
    progress::{Output, Progress, Unit},
};

use super::{count, human_bytes, open_data, threads};
use crate::cli::ShardArgs;

pub fn run(args: &ShardArgs, output: Output) -> Result<ExitCode> {
    let opened = open_data(&args.data, &args.split)?;
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
    println!(
        "{}: {} in {}, {}",
        args.out.display(),
        count(opened.source.len(), "sample"),
        count(manifest.shards.len(), "shard"),
        human_bytes(manifest.shards.iter().map(|shard| shard.bytes).sum())
    );
    Ok(ExitCode::Success)
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
