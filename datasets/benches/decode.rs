//! Images a second on one core: decoding alone, and the two usual pipelines.
//!
//! `cargo bench -p datasets --bench decode [-- FOLDER]` reads the JPEG files of FOLDER; without one, the photographs
//! of the sample of ImageNet's validation archive in the folder `HEARTH_DATA`.

#[path = "../tests/support/mod.rs"]
mod support;

use std::{fs, hint::black_box, time::Instant};

use datasets::{
    DecodeOptions, Decoded, SampleRng, decode,
    transforms::{EvalTransform, Interpolation, Pipeline, ResizeRule},
};

/// Passes over the files; the median counts.
const PASSES: usize = 5;

fn main() {
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let files: Vec<Vec<u8>> = match folder {
        Some(folder) => fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("cannot list {folder}: {error}"))
            .filter_map(|entry| fs::read(entry.ok()?.path()).ok())
            .collect(),
        None => {
            let Some(archive) = support::validation_archive() else { return };
            support::tar_members(&archive).into_iter().map(|(_, bytes)| bytes.to_vec()).collect()
        }
    };
    let options = DecodeOptions::default();
    let bytes: usize = files.iter().map(Vec::len).sum();
    println!("{} files of {} kB on average", files.len(), bytes / files.len().max(1) / 1000);

    let eval = Pipeline::eval(EvalTransform {
        resize: 256,
        rule: ResizeRule::Shorter,
        crop: 224,
        interpolation: Interpolation::Bilinear,
        antialias: true,
    });
    let train = Pipeline::train(224);
    measure("decode", &files, |_, bytes| drop(black_box(decode(bytes, &options))));
    measure("decode by the image crate (zune-jpeg)", &files, |_, bytes| {
        drop(black_box(image::load_from_memory(bytes).map(image::DynamicImage::into_rgb8)));
    });
    measure("pipeline eval (256, 224)", &files, |index, bytes| {
        drop(black_box(eval.decode_and_apply(bytes, &mut SampleRng::new(0, 0, index), &options)));
    });
    measure("pipeline train (224)", &files, |index, bytes| {
        drop(black_box(train.decode_and_apply(bytes, &mut SampleRng::new(0, 0, index), &options)));
    });
    measure("pipeline train (224) after a full decode", &files, |index, bytes| {
        if let Ok(Decoded { image, .. }) = decode(bytes, &options) {
            drop(black_box(train.apply(image, &mut SampleRng::new(0, 0, index))));
        }
    });
}

/// Prints the median rate over [`PASSES`] passes.
fn measure(name: &str, files: &[Vec<u8>], mut run: impl FnMut(u64, &[u8])) {
    let mut rates: Vec<f64> = (0..PASSES)
        .map(|_| {
            let start = Instant::now();
            files.iter().zip(0..).for_each(|(bytes, index)| run(index, bytes));
            files.len() as f64 / start.elapsed().as_secs_f64()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    println!("{name}: {:.0} images/s", rates[PASSES / 2]);
}
