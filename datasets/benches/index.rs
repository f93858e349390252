//! The index of an archive of ImageNet's true shape: 1000 archives of 1281 images each, 1,281,000 in all, in one tar of
//! 141 GB that has true headers and holes instead of images (about 5 GB on disk, in the temporary folder).
//!
//! ```text
//! cargo bench --profile dev -p datasets --bench index
//! ```
//!
//! Prints the time to index, the time to open again from the cached index, and the memory of both.

use std::{env, error::Error, fs, path::Path, time::Instant};

use datasets::{
    OpenOptions, Source, open,
    source::{LocalFile, Packed, tar_header},
};

const CLASSES: u64 = 1000;
const IMAGES: u64 = 1281;
/// The mean length of an ImageNet JPEG in bytes; lengths vary around it.
const IMAGE_BYTES: u64 = 110_000;

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo test --benches` passes `--test`: the shape is then a small one.
    let (classes, images) = if env::args().any(|arg| arg == "--test") { (10, 20) } else { (CLASSES, IMAGES) };
    let folder = tempfile::tempdir()?;
    let archive = folder.path().join("ILSVRC2012_img_train.tar");
    let started = Instant::now();
    write_sparse_archive(&archive, classes, images)?;
    println!(
        "{} samples, archive of {} bytes, written in {:.1?}",
        classes * images,
        fs::metadata(&archive)?.len(),
        started.elapsed()
    );

    let options = OpenOptions { index_cache: Some(folder.path().join("cache")), ..OpenOptions::default() };
    let spec = archive.to_str().ok_or("the temporary folder's name is not Unicode")?;
    let before = peak_memory();
    for step in ["index by reading headers", "open with the cached index"] {
        let started = Instant::now();
        let opened = open(spec, &options)?;
        let elapsed = started.elapsed();
        if opened.source.len() as u64 != classes * images {
            return Err(format!("{} samples found", opened.source.len()).into());
        }
        println!("{step}: {elapsed:.2?}, peak memory {} MiB (before {before} MiB)", peak_memory());
    }
    let packed = Packed::official_train(LocalFile::open(&archive)?, &options)?;
    let bytes = packed.index_memory();
    println!("index in memory: {bytes} bytes, {:.1} a sample", bytes as f64 / packed.len() as f64);
    let started = Instant::now();
    let total: usize = (0..packed.len()).map(|index| packed.key(index).len()).sum();
    println!("all keys, {total} bytes: {:.2?}", started.elapsed());
    Ok(())
}

/// Writes the headers of a tar of tars where they belong and leaves holes for the images.
fn write_sparse_archive(path: &Path, classes: u64, images: u64) -> Result<(), Box<dyn Error>> {
    use std::io::{Seek, SeekFrom, Write};
    let mut file = fs::File::create(path)?;
    let mut position = 0;
    for class in 0..classes {
        let wnid = format!("n{:08}", 1_440_764 + class * 9973);
        let sizes: Vec<u64> =
            (0..images).map(|image| IMAGE_BYTES / 2 + (class * 7919 + image * 104_729) % IMAGE_BYTES).collect();
        let inner: u64 = sizes.iter().map(|size| 512 + size.next_multiple_of(512)).sum::<u64>() + 1024;
        file.seek(SeekFrom::Start(position))?;
        file.write_all(&tar_header(&format!("{wnid}.tar"), inner)?)?;
        position += 512;
        for (image, size) in sizes.into_iter().enumerate() {
            file.seek(SeekFrom::Start(position))?;
            file.write_all(&tar_header(&format!("{wnid}_{}.JPEG", image * 17 % 30_000), size)?)?;
            position += 512 + size.next_multiple_of(512);
        }
        position += 1024;
    }
    file.set_len(position + 1024)?;
    Ok(())
}

/// Returns the peak memory of this process in MiB; 0 if the system does not report it.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}
