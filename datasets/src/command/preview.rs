//! `datasets preview`: draws a grid of transformed samples.

use std::path::Path;

use anyhow::{Context, Result, bail};
use datasets::{BadSamples, ImageBatch, ImageLoader, Source};
use font8x8::UnicodeFonts;
use image::{ImageFormat, Rgb, RgbImage};
use runtime::{exit::ExitCode, files, outln};

use super::{count, open_data, pipeline};
use crate::cli::PreviewArgs;

/// Pixels between cells and around the grid.
const GAP: u32 = 8;
/// Height and width of a glyph.
const GLYPH: u32 = 8;
/// The line height.
const LINE: u32 = GLYPH + 3;
const PAPER: Rgb<u8> = Rgb([255, 255, 255]);
const INK: Rgb<u8> = Rgb([30, 30, 30]);
const PALE_INK: Rgb<u8> = Rgb([120, 120, 120]);

pub fn run(args: &PreviewArgs) -> Result<ExitCode> {
    let opened = open_data(&args.data, &args.split)?;
    let cells = (args.columns * args.rows) as usize;
    let loader = ImageLoader::builder(opened.source.clone(), pipeline(args.pipeline, args.size, &args.images)?)
        .batch_size(cells)
        .shuffle()
        .repeats(args.repeats as usize)
        .seed(args.data.seed)
        .bad_samples(BadSamples::Skip)
        .allow_unlabeled(true)
        .build()?;
    loader.start_at(args.epoch, 0)?;
    let Some(batch) = loader.batches().next() else { bail!("{} holds no sample", args.data.data()) };
    let batch = batch?;
    write(&args.out, &draw(&batch, &opened.source, args.columns))?;
    outln!("{}: {}", args.out.display(), count(batch.len(), "sample"))?;
    let bad = loader.bad_samples();
    for sample in &bad {
        log::warn!("left out: {}: {}", sample.location, sample.cause);
    }
    Ok(if bad.is_empty() { ExitCode::Success } else { ExitCode::SomeInputsFailed })
}

fn write(path: &Path, grid: &RgbImage) -> Result<()> {
    let mut png = std::io::Cursor::new(Vec::new());
    grid.write_to(&mut png, ImageFormat::Png).context("cannot encode the picture")?;
    Ok(files::write_atomic_bytes(path, png.get_ref())?)
}

/// Draws the grid: each image with its class and its key below.
fn draw(batch: &ImageBatch, source: &dyn Source, columns: u32) -> RgbImage {
    let [n, _, height, width] = batch.shape;
    let (width, height) = (width as u32, height as u32);
    let (cell_width, cell_height) = (width + GAP, height + 2 * LINE + GAP);
    let columns = columns.min(n as u32);
    let rows = (n as u32).div_ceil(columns);
    let mut grid = RgbImage::from_pixel(columns * cell_width + GAP, rows * cell_height + GAP, PAPER);
    let plane = (width * height) as usize;
    for (i, pixels) in batch.images.chunks_exact(3 * plane).enumerate() {
        let (left, top) = (GAP + i as u32 % columns * cell_width, GAP + i as u32 / columns * cell_height);
        for y in 0..height {
            for x in 0..width {
                let index = (y * width + x) as usize;
                grid.put_pixel(left + x, top + y, Rgb([0, 1, 2].map(|channel| pixels[channel * plane + index])));
            }
        }
        let label = batch.labels.as_ref().map(|labels| labels[i] as usize);
        let class = label.and_then(|label| source.classes().get(label));
        let class = class.map_or("no label", |class| class.name.as_str());
        write_text(&mut grid, class, left, top + height + 3, width, INK);
        write_text(&mut grid, &source.key(batch.indices[i]), left, top + height + 3 + LINE, width, PALE_INK);
    }
    grid
}

/// Draws a line of text; if it is too long for `width`, its end is kept, which is the most informative part of a key.
fn write_text(picture: &mut RgbImage, text: &str, left: u32, top: u32, width: u32, ink: Rgb<u8>) {
    let fits = (width / GLYPH) as usize;
    let mut glyphs: Vec<char> = text.chars().collect();
    if glyphs.len() > fits {
        glyphs.drain(..glyphs.len() - fits);
        glyphs.iter_mut().take(2.min(fits)).for_each(|glyph| *glyph = '.');
    }
    for (i, character) in glyphs.into_iter().enumerate() {
        let known = font8x8::BASIC_FONTS.get(character).or_else(|| font8x8::LATIN_FONTS.get(character));
        let glyph = known.or_else(|| font8x8::BASIC_FONTS.get('?')).unwrap_or_default();
        for (y, row) in (0..).zip(glyph) {
            for x in (0..GLYPH).filter(|x| row >> x & 1 == 1) {
                picture.put_pixel(left + i as u32 * GLYPH + x, top + y, ink);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ink_columns(picture: &RgbImage) -> Vec<u32> {
        (0..picture.width()).filter(|&x| (0..picture.height()).any(|y| *picture.get_pixel(x, y) == INK)).collect()
    }

    #[test]
    fn text_stays_within_its_width_whatever_it_holds() {
        for (text, characters) in [("I", 1), ("a very long caption", 5), ("é漢", 2), ("", 0)] {
            let mut picture = RgbImage::from_pixel(60, 10, PAPER);
            write_text(&mut picture, text, 4, 1, 40, INK);
            let columns = ink_columns(&picture);
            assert_eq!(columns.is_empty(), characters == 0, "{text}");
            assert!(columns.iter().all(|x| (4..4 + characters * GLYPH).contains(x)), "{text}: {columns:?}");
        }
    }
}
