//! `datasets shard`: WebDataset shards.

use std::{
    fs::File,
    io::{BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use datasets::{
    Source,
    decode::{self, Limits},
    sampler::{Order, Sampler, SamplerOptions},
};
use image::{
    codecs::jpeg::JpegEncoder,
    imageops::{FilterType, resize},
};
use runtime::{
    exit::ExitCode,
    files,
    progress::{Output, Progress, Unit},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{count, doctor::hex, human_bytes, open_data, scan::scan, threads};
use crate::cli::ShardArgs;

const MANIFEST: &str = "manifest.json";

/// Samples that are prepared in parallel before they are written.
const CHUNK: usize = 256;

/// What the folder holds, and what it was made of. Written anew after each shard: a run that was stopped goes on
/// behind the last shard it lists.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Manifest {
    made: Made,
    /// Identifiers of the classes, in label order.
    classes: Vec<String>,
    shards: Vec<Shard>,
    /// Whether all samples are in.
    complete: bool,
}

/// Everything that the shards' bytes depend on.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Made {
    name: String,
    samples: usize,
    /// SHA-256 over keys and labels.
    source: String,
    shard_size: u64,
    shuffle_seed: Option<u64>,
    resize: Option<u32>,
    quality: Option<u8>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Shard {
    file: String,
    samples: usize,
    bytes: u64,
    sha256: String,
}

pub fn run(args: &ShardArgs, output: Output) -> Result<ExitCode> {
    let opened = open_data(&args.data, &args.split)?;
    let source = opened.source;
    let shuffle_seed = args.shuffle.then_some(args.data.seed);
    let name = match &args.name {
        Some(name) => name.clone(),
        None => default_name(&args.data.data),
    };
    let made = Made {
        name: format!("{name}-{}", opened.split),
        samples: source.len(),
        source: fingerprint(&source),
        shard_size: args.shard_size,
        shuffle_seed,
        resize: args.resize,
        quality: args.resize.map(|_| args.quality),
    };
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    let classes = source.classes().iter().map(|class| class.id.clone()).collect();
    let mut manifest = resume(&args.out, Manifest { made, classes, shards: Vec::new(), complete: false })?;
    if !manifest.complete {
        write_shards(args, &source, &mut manifest, output)?;
    }
    let bytes = manifest.shards.iter().map(|shard| shard.bytes).sum();
    println!(
        "{}: {} in {}, {}",
        args.out.display(),
        count(manifest.made.samples, "sample"),
        count(manifest.shards.len(), "shard"),
        human_bytes(bytes)
    );
    Ok(ExitCode::Success)
}

/// The last part of a path, without what cannot stand in a file's name.
fn default_name(data: &str) -> String {
    let last = data.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let name: String = last.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect();
    if name.is_empty() { "data".into() } else { name }
}

fn fingerprint(source: &dyn Source) -> String {
    let mut hash = Sha256::new();
    for index in 0..source.len() {
        hash.update(source.key(index).as_bytes());
        hash.update([0]);
        hash.update(source.label(index).map_or(u64::MAX, u64::from).to_le_bytes());
    }
    hex(&hash.finalize())
}

/// The manifest to go on with: the folder's, where it was made in the same way and its shards are still there.
fn resume(out: &Path, fresh: Manifest) -> Result<Manifest> {
    let path = out.join(MANIFEST);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(fresh),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let there: Manifest = serde_json::from_str(&text)
        .with_context(|| format!("{} is no manifest of shards; choose another folder", path.display()))?;
    if there.made != fresh.made || there.classes != fresh.classes {
        bail!(
            "{} holds shards made from other data or with other options; choose another folder or remove it",
            out.display()
        );
    }
    for shard in &there.shards {
        let file = out.join(&shard.file);
        let bytes = std::fs::metadata(&file).map_or(0, |metadata| metadata.len());
        if bytes != shard.bytes {
            bail!(
                "{} holds {bytes} bytes, the manifest says {}; remove {} to start anew",
                file.display(),
                shard.bytes,
                path.display()
            );
        }
    }
    log::info!("{}: {} already there", out.display(), count(there.shards.len(), "shard"));
    Ok(there)
}

fn write_shards(args: &ShardArgs, source: &Arc<dyn Source>, manifest: &mut Manifest, output: Output) -> Result<()> {
    let order = if args.shuffle { Order::Shuffled } else { Order::Sequential };
    let sampler = Sampler::new(source, SamplerOptions { seed: args.data.seed, order, ..SamplerOptions::default() })?;
    let order = sampler.epoch(0);
    let total = source.len();
    let mut done: usize = manifest.shards.iter().map(|shard| shard.samples).sum();
    let progress = Progress::new("shard", Unit::Items("samples"), Some(total as u64), output);
    progress.set_initial(done as u64);
    let quiet = Progress::new("prepare", Unit::Items("samples"), None, Output::Quiet);

    let mut shard: Option<ShardWriter> = None;
    while done < total {
        let indices: Vec<_> = (done..total.min(done + CHUNK)).map(|position| order.at(position).index).collect();
        let prepared = scan(source, &indices, threads(args.workers), &quiet, |index, bytes| {
            prepare(args, bytes.map_err(anyhow::Error::from)?).with_context(|| source.location(index).to_string())
        });
        for (&index, sample) in indices.iter().zip(prepared) {
            let sample = sample?;
            let size = ShardWriter::size(&sample);
            if shard.as_ref().is_some_and(|shard| shard.bytes + size > args.shard_size) {
                close(args, shard.take(), manifest, false)?;
            }
            let writer = match &mut shard {
                Some(writer) => writer,
                None => shard.insert(ShardWriter::create(&args.out, manifest)?),
            };
            writer.add(done, &source.key(index), source.label(index), &sample)?;
            done += 1;
            progress.inc(1);
        }
    }
    close(args, shard, manifest, true)?;
    progress.finish();
    Ok(())
}

/// Puts a finished shard in its place and into the manifest.
fn close(args: &ShardArgs, shard: Option<ShardWriter>, manifest: &mut Manifest, complete: bool) -> Result<()> {
    if let Some(shard) = shard {
        manifest.shards.push(shard.finish()?);
    }
    manifest.complete = complete;
    files::write_atomic_bytes(&args.out.join(MANIFEST), &serde_json::to_vec_pretty(manifest)?)
}

/// A sample ready to be written.
struct Prepared {
    extension: &'static str,
    bytes: Vec<u8>,
}

fn prepare(args: &ShardArgs, bytes: &[u8]) -> Result<Prepared> {
    let header = decode::probe(bytes)?;
    let (width, height) = (header.width, header.height);
    let shorter = width.min(height);
    match args.resize {
        Some(side) if shorter > side => {
            let image = decode::decode(bytes, &Limits::default())?;
            let scale = |length: u32| (u64::from(length) * u64::from(side) / u64::from(shorter)) as u32;
            let image = resize(&image, scale(width), scale(height), FilterType::CatmullRom);
            let mut jpeg = Vec::new();
            JpegEncoder::new_with_quality(&mut jpeg, args.quality).encode_image(&image)?;
            Ok(Prepared { extension: "jpg", bytes: jpeg })
        }
        _ => Ok(Prepared { extension: header.format.extensions()[0], bytes: bytes.to_vec() }),
    }
}

/// A shard in the making, under a name that no reader takes up.
struct ShardWriter {
    tar: tar::Builder<BufWriter<File>>,
    part: PathBuf,
    file: String,
    samples: usize,
    bytes: u64,
}

impl ShardWriter {
    fn create(out: &Path, manifest: &Manifest) -> Result<Self> {
        let file = format!("{}-{:06}.tar", manifest.made.name, manifest.shards.len());
        let part = out.join(format!("{file}.part"));
        let writer = File::create(&part).with_context(|| format!("cannot create {}", part.display()))?;
        Ok(Self { tar: tar::Builder::new(BufWriter::new(writer)), part, file, samples: 0, bytes: 1024 })
    }

    /// The bytes that a sample takes in a shard: each member is a header and whole blocks of 512 bytes.
    fn size(sample: &Prepared) -> u64 {
        512 + (sample.bytes.len() as u64).next_multiple_of(512) + 1024
    }

    fn add(&mut self, position: usize, key: &str, label: Option<u32>, sample: &Prepared) -> Result<()> {
        let name = member_name(position, key);
        self.member(&format!("{name}.{}", sample.extension), &sample.bytes)?;
        if let Some(label) = label {
            self.member(&format!("{name}.cls"), label.to_string().as_bytes())?;
        }
        self.samples += 1;
        self.bytes += Self::size(sample);
        Ok(())
    }

    fn member(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        let added = self.tar.append_data(&mut header, name, bytes);
        added.with_context(|| format!("cannot write {name} to {}", self.part.display()))
    }

    /// Syncs, hashes and renames.
    fn finish(self) -> Result<Shard> {
        let Self { tar, part, file, samples, .. } = self;
        let context = || format!("cannot write {}", part.display());
        let mut writer = tar.into_inner().with_context(context)?;
        writer.flush().with_context(context)?;
        writer.get_ref().sync_all().with_context(context)?;
        drop(writer);
        let (bytes, sha256) = hash_file(&part).with_context(context)?;
        let place = part.with_file_name(&file);
        std::fs::rename(&part, &place).with_context(|| format!("cannot create {}", place.display()))?;
        Ok(Shard { file, samples, bytes, sha256 })
    }
}

/// A member's name up to its first dot: WebDataset takes all behind it for the extension. The position makes it
/// unique and keeps readers that sort by name in order.
fn member_name(position: usize, key: &str) -> String {
    let stem = key.rsplit('/').next().unwrap_or(key);
    let stem = stem.rsplit_once('.').map_or(stem, |(stem, _)| stem);
    let clean: String =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '_' }).take(64).collect();
    format!("{position:09}-{clean}")
}

fn hash_file(path: &Path) -> std::io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let (mut hash, mut buffer, mut total) = (Sha256::new(), vec![0; 1 << 20], 0);
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok((total, hex(&hash.finalize())));
        }
        hash.update(&buffer[..n]);
        total += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn member_names_have_no_dot_and_are_safe() {
        assert_eq!(member_name(12, "train/n02085620/n02085620_10074.JPEG"), "000000012-n02085620_10074");
        assert_eq!(member_name(0, "a b/../c.d.é.jpg"), "000000000-c_d__");
        assert_eq!(member_name(1, ""), "000000001-");
    }

    #[test]
    fn names_come_from_the_data_s_last_part() {
        assert_eq!(default_name("/data/imagenet/"), "imagenet");
        assert_eq!(default_name("shards/x-{0..9}.tar"), "x-09tar");
        assert_eq!(default_name("/"), "data");
    }
}
