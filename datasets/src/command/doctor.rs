//! `datasets doctor`: checks every sample.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyhow::Result;
use data_encoding::HEXLOWER;
use datasets::{
    Error, OrientationPolicy, Quarantine, Source, SourceKind, Split,
    decode::{self, ColorModel, Exif, Format},
    source::LeftOut,
};
use image::{Rgb, RgbImage};
use runtime::{
    exit::ExitCode,
    files, out,
    progress::{Output, Progress, Unit},
    text::printable,
    units::human_bytes,
};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{
    count,
    fingerprint::{PerceptualHash, equal_groups, near_groups},
    open_split, print_json,
    scan::scan,
    threads,
};
use crate::cli::{self, DoctorArgs, QuarantineWhat};

/// The number of findings of each kind shown as text; JSON has all.
const SHOWN: usize = 10;

/// The levels by which the pixels of a flat image may differ from the first: compression leaves some noise.
const FLAT: u8 = 3;

/// A class is rare if it has less than this fraction of the median class's samples.
const RARE: f64 = 0.1;

#[derive(Debug, Serialize)]
struct Report {
    data: String,
    kind: String,
    splits: Vec<SplitReport>,
    /// SHA-256 over the class identifiers in label order, one per line: equal fingerprints mean equal label maps.
    label_map: String,
    /// Per sample, by split and index.
    findings: Vec<Finding>,
    /// Groups of samples with the same bytes.
    duplicates: Vec<Vec<Sample>>,
    /// Groups of near duplicates.
    near_duplicates: Vec<Vec<Sample>>,
    /// Groups, of both kinds, that hold samples of `train` and of `val`.
    leaks: Vec<Leak>,
    /// Groups of samples with the same bytes and different classes: placeholders, or wrong labels.
    conflicts: Vec<Vec<Sample>>,
    /// The files of folders that are left out.
    left_out: LeftOut,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct SplitReport {
    split: String,
    samples: usize,
    /// Samples that cannot be used: undecodable or truncated.
    broken: usize,
    bytes: u64,
    classes: usize,
    empty_classes: Vec<String>,
    /// Classes with less than a tenth of the median class's samples.
    rare_classes: Vec<String>,
    /// The ratio of the largest class to the smallest nonempty one.
    imbalance: f64,
}

#[derive(Debug, Serialize)]
struct Finding {
    kind: Kind,
    sample: Sample,
    detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Undecodable,
    Truncated,
    Damaged,
    WrongExtension,
    Cmyk,
    OddExif,
    NarrowRange,
    Tiny,
    Flat,
    Huge,
}

impl Kind {
    /// Whether training cannot use the sample.
    fn is_broken(self) -> bool {
        matches!(self, Self::Undecodable | Self::Truncated)
    }

    fn title(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::Truncated => "truncated",
            Self::Damaged => "damaged, but decodable (--bad-samples strict stops at them)",
            Self::WrongExtension => "format differs from the extension",
            Self::Cmyk => "CMYK",
            Self::OddExif => "rotated or mirrored by their metadata, or with malformed EXIF",
            Self::NarrowRange => "8 or 12 bits stored in 16, scaled by that range",
            Self::Tiny => "tiny",
            Self::Flat => "of a single color",
            Self::Huge => "huge",
        }
    }
}

#[derive(Debug, Clone, Serialize)]
struct Sample {
    split: String,
    index: usize,
    key: String,
    location: String,
    class: Option<String>,
}

#[derive(Debug, Serialize)]
struct Leak {
    /// Whether the bytes are equal, not only the perceptual hash.
    exact: bool,
    samples: Vec<Sample>,
}

/// The findings on one sample.
#[derive(Debug)]
struct Seen {
    bytes: u64,
    hash: Option<[u8; 32]>,
    perceptual: Option<PerceptualHash>,
    findings: Vec<(Kind, String)>,
}

/// A split and its findings.
struct Examined {
    split: Split,
    source: Arc<dyn Source>,
    seen: Vec<Seen>,
}

pub fn run(args: &DoctorArgs, output: Output) -> Result<ExitCode> {
    let (kind, opened, notes, left_out) = open_splits(args)?;
    let examined: Vec<_> = opened.into_iter().map(|(split, source)| examine(args, split, source, output)).collect();
    let report = report(args, kind, &examined, notes, left_out);
    if let Some(path) = &args.quarantine {
        let list = quarantine(&args.quarantine_what, &report);
        files::write_atomic(path, |writer| list.write(writer))?;
        log::info!("{}: {} to leave out", path.display(), count(list.len(), "sample"));
    }
    match args.format {
        cli::Format::Json => print_json(&report)?,
        cli::Format::Text => out!("{}", text(&report))?,
    }
    let broken = report.splits.iter().any(|split| split.broken > 0);
    Ok(if broken { ExitCode::SomeInputsFailed } else { ExitCode::Success })
}

type Splits = Vec<(Split, Arc<dyn Source>)>;

/// Opens both splits, or everything if the data has none.
fn open_splits(args: &DoctorArgs) -> Result<(SourceKind, Splits, Vec<String>, LeftOut)> {
    let (mut kind, mut splits, mut notes, mut left_out) = (None, Splits::new(), Vec::new(), LeftOut::default());
    for split in [Split::Train, Split::Val] {
        // Unlabeled images are opened whole for every split.
        if kind == Some(SourceKind::Images) {
            break;
        }
        match open_split(&args.data, split) {
            Ok(opened) => {
                kind = Some(opened.kind);
                let new: Vec<_> = opened.notes.into_iter().filter(|note| !notes.contains(note)).collect();
                notes.extend(new);
                left_out.merge(&opened.left_out);
                splits.push((split, opened.source));
            }
            Err(Error::MissingSplit { .. }) => notes.push(format!("no {split} split")),
            Err(error) => return Err(error.into()),
        }
    }
    match kind {
        Some(kind) => Ok((kind, splits, notes, left_out)),
        // There is neither: return the source's error.
        None => Err(open_split(&args.data, Split::All).err().map_or_else(|| anyhow::anyhow!("no split"), Into::into)),
    }
}

fn examine(args: &DoctorArgs, split: Split, source: Arc<dyn Source>, output: Output) -> Examined {
    let progress = Progress::new(format!("doctor {split}"), Unit::Items("images"), Some(source.len() as u64), output);
    let indices: Vec<_> = (0..source.len()).collect();
    let seen = scan(&source, &indices, threads(args.workers), &progress, |index, bytes| match bytes {
        Ok(bytes) => look(args, &source.key(index), bytes),
        Err(error) => {
            Seen { bytes: 0, hash: None, perceptual: None, findings: vec![(Kind::Undecodable, error.to_string())] }
        }
    });
    progress.finish();
    Examined { split, source, seen }
}

/// Examines one sample's bytes.
fn look(args: &DoctorArgs, key: &str, bytes: &[u8]) -> Seen {
    let mut findings = Vec::new();
    let mut perceptual = None;
    let header = decode::probe(bytes);
    let options = args.images.options();
    let complete = header.as_ref().is_ok_and(|header| header.format != Format::Jpeg || has_end_of_image(bytes));
    match decode::decode(bytes, &options) {
        Ok(decoded) => {
            perceptual = Some(PerceptualHash::of(&decoded.image)).filter(|hash| hash.is_telling());
            if let Some([red, green, blue]) = single_color(&decoded.image) {
                findings.push((Kind::Flat, format!("nothing but #{red:02x}{green:02x}{blue:02x}")));
            }
            if let Some(bits) = decoded.used_bits {
                findings.push((Kind::NarrowRange, format!("{bits} bits in 16")));
            }
            if let Some(damage) = decoded.damage {
                findings.push((Kind::Damaged, damage.cause));
            } else if !complete {
                findings.push((Kind::Truncated, "no end-of-image marker".into()));
            }
        }
        Err(error) if header.is_ok() && !complete => findings.push((Kind::Truncated, error.to_string())),
        Err(error) => findings.push((Kind::Undecodable, error.to_string())),
    }
    if let Ok(header) = header {
        let (shorter, longer) = (header.width.min(header.height), header.width.max(header.height));
        let size = format!("{} × {}", header.width, header.height);
        if shorter < args.tiny {
            findings.push((Kind::Tiny, size.clone()));
        }
        if longer > args.huge {
            findings.push((Kind::Huge, size));
        }
        if header.color == ColorModel::Cmyk {
            findings.push((Kind::Cmyk, format!("{} with four inks", header.format)));
        }
        match header.exif {
            Exif::Broken => findings.push((Kind::OddExif, "the EXIF block contradicts its format".into())),
            Exif::Orientation(orientation) if orientation != 1 => {
                findings.push((Kind::OddExif, turned(orientation, options.orientation)));
            }
            _ => {}
        }
        if let Some(extension) = extension(key)
            && !header.format.extensions().contains(&extension.as_str())
        {
            findings.push((Kind::WrongExtension, format!("a {} named .{extension}", header.format)));
        }
    }
    Seen { bytes: bytes.len() as u64, hash: Some(Sha256::digest(bytes).into()), perceptual, findings }
}

/// Returns the first pixel of an image whose pixels are all of that color, up to [`FLAT`] levels in each channel.
fn single_color(image: &RgbImage) -> Option<[u8; 3]> {
    let first = image.pixels().next()?.0;
    let is_first = |pixel: &Rgb<u8>| pixel.0.iter().zip(first).all(|(&value, first)| value.abs_diff(first) <= FLAT);
    image.pixels().all(is_first).then_some(first)
}

/// Describes an orientation other than 1.
fn turned(orientation: u16, policy: OrientationPolicy) -> String {
    match policy {
        OrientationPolicy::Apply => format!("orientation {orientation}, which is applied"),
        OrientationPolicy::Ignore => format!("orientation {orientation}, which is ignored: the pixels are not upright"),
    }
}

/// A key's extension in lower case, if it has one that could be an image's.
fn extension(key: &str) -> Option<String> {
    let (_, extension) = key.rsplit('/').next()?.rsplit_once('.')?;
    let extension = extension.to_ascii_lowercase();
    extension.bytes().all(|byte| byte.is_ascii_alphabetic()).then_some(extension)
}

/// Whether a JPEG has its end-of-image marker; padding may follow it.
fn has_end_of_image(bytes: &[u8]) -> bool {
    let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    // Cameras and web sites append data; a marker in the last part counts.
    let tail = &bytes[end.saturating_sub(64 << 10)..end];
    tail.windows(2).any(|pair| pair == [0xff, 0xd9])
}

fn report(args: &DoctorArgs, kind: SourceKind, examined: &[Examined], notes: Vec<String>, left_out: LeftOut) -> Report {
    // Samples of all splits are numbered consecutively.
    let all: Vec<(&Examined, usize)> =
        examined.iter().flat_map(|split| (0..split.seen.len()).map(move |index| (split, index))).collect();
    let seen = |item: usize| &all[item].0.seen[all[item].1];
    let sample = |item: usize| describe(all[item].0, all[item].1);
    let samples = |group: &[usize]| group.iter().map(|&item| sample(item)).collect::<Vec<_>>();

    let exact = equal_groups((0..all.len()).filter_map(|item| Some((item, seen(item).hash?))));
    // The first of exact duplicates represents all.
    let copies: BTreeSet<usize> = exact.iter().flat_map(|group| &group[1..]).copied().collect();
    let hashes: Vec<_> = (0..all.len())
        .filter(|item| !copies.contains(item))
        .filter_map(|item| Some((item, seen(item).perceptual?)))
        .collect();
    let near = near_groups(&hashes, args.near);
    let crosses = |group: &[usize]| {
        let splits: BTreeSet<_> = group.iter().map(|&item| all[item].0.split.name()).collect();
        splits.len() > 1
    };
    let leaks = |groups: &[Vec<usize>], exact| {
        let crossing = groups.iter().filter(|group| crosses(group));
        crossing.map(|group| Leak { exact, samples: samples(group) }).collect::<Vec<_>>()
    };
    let conflicts = |group: &&Vec<usize>| {
        let classes: BTreeSet<_> = group.iter().filter_map(|&item| all[item].0.source.label(all[item].1)).collect();
        classes.len() > 1
    };
    let mut findings: Vec<_> = (0..all.len())
        .flat_map(|item| seen(item).findings.iter().map(move |(kind, detail)| (item, *kind, detail.clone())))
        .map(|(item, kind, detail)| Finding { kind, sample: sample(item), detail })
        .collect();
    findings.sort_by_key(|finding| finding.kind);

    let mut fingerprint = Sha256::new();
    for class in examined.first().map_or(&[][..], |split| split.source.classes()) {
        fingerprint.update(class.id.as_bytes());
        fingerprint.update(b"\n");
    }
    Report {
        data: args.data.data().to_string(),
        kind: kind.to_string(),
        splits: examined.iter().map(split_report).collect(),
        label_map: HEXLOWER.encode(&fingerprint.finalize()),
        findings,
        duplicates: exact.iter().map(|group| samples(group)).collect(),
        near_duplicates: near.iter().map(|group| samples(group)).collect(),
        leaks: [leaks(&exact, true), leaks(&near, false)].into_iter().flatten().collect(),
        conflicts: exact.iter().filter(conflicts).map(|group| samples(group)).collect(),
        left_out,
        notes,
    }
}

fn describe(examined: &Examined, index: usize) -> Sample {
    let source = &examined.source;
    let class = source.label(index).and_then(|label| source.classes().get(label as usize));
    Sample {
        split: examined.split.to_string(),
        index,
        key: source.key(index).into_owned(),
        location: source.location(index).to_string(),
        class: class.map(|class| class.id.clone()),
    }
}

fn split_report(examined: &Examined) -> SplitReport {
    let Examined { split, source, seen } = examined;
    let mut counts = vec![0usize; source.classes().len()];
    for label in (0..source.len()).filter_map(|index| source.label(index)) {
        if let Some(count) = counts.get_mut(label as usize) {
            *count += 1;
        }
    }
    let mut filled: Vec<_> = counts.iter().copied().filter(|&count| count > 0).collect();
    filled.sort_unstable();
    let median = filled.get(filled.len() / 2).copied().unwrap_or(0) as f64;
    let named = |is: &dyn Fn(usize) -> bool| {
        let classes = source.classes().iter().zip(&counts).filter(|&(_, &count)| is(count));
        classes.map(|(class, _)| class.id.clone()).collect::<Vec<_>>()
    };
    SplitReport {
        split: split.to_string(),
        samples: source.len(),
        broken: seen.iter().filter(|seen| seen.findings.iter().any(|(kind, _)| kind.is_broken())).count(),
        bytes: seen.iter().map(|seen| seen.bytes).sum(),
        classes: source.classes().len(),
        empty_classes: named(&|count| count == 0),
        rare_classes: named(&|count| count > 0 && (count as f64) < RARE * median),
        imbalance: match (filled.first(), filled.last()) {
            (Some(&smallest), Some(&largest)) => largest as f64 / smallest as f64,
            _ => 1.0,
        },
    }
}

fn quarantine(what: &[QuarantineWhat], report: &Report) -> Quarantine {
    let mut list = Quarantine::default();
    let wants = |kind| what.contains(&kind);
    for finding in &report.findings {
        let wanted = match finding.kind {
            kind if kind.is_broken() => wants(QuarantineWhat::Broken),
            Kind::Tiny => wants(QuarantineWhat::Tiny),
            Kind::Flat => wants(QuarantineWhat::Flat),
            _ => false,
        };
        if wanted {
            list.insert(&finding.sample.key, format_args!("{}: {}", finding.kind.title(), finding.detail));
        }
    }
    if wants(QuarantineWhat::Duplicates) {
        for group in &report.duplicates {
            let mut first: BTreeMap<&str, &Sample> = BTreeMap::new();
            for sample in group {
                match first.get(sample.split.as_str()) {
                    Some(original) => list.insert(&sample.key, format_args!("same bytes as {}", original.key)),
                    None => {
                        first.insert(&sample.split, sample);
                    }
                }
            }
        }
    }
    if wants(QuarantineWhat::Conflicts) {
        for group in &report.conflicts {
            for sample in group {
                list.insert(&sample.key, format_args!("same bytes as {} samples of other classes", group.len() - 1));
            }
        }
    }
    if wants(QuarantineWhat::Leaks) {
        for leak in report.leaks.iter().filter(|leak| leak.exact) {
            let Some(val) = leak.samples.iter().find(|sample| sample.split == Split::Val.name()) else { continue };
            for sample in leak.samples.iter().filter(|sample| sample.split == Split::Train.name()) {
                list.insert(&sample.key, format_args!("same bytes as {} of val", val.key));
            }
        }
    }
    list
}

fn text(report: &Report) -> String {
    let mut lines = vec![format!("{}: {}", report.data, report.kind)];
    for split in &report.splits {
        lines.push(format!(
            "  {}: {} of {}, {}; the largest class has {:.1} × the smallest",
            split.split,
            count(split.samples, "sample"),
            count(split.classes, "class"),
            human_bytes(split.bytes),
            split.imbalance,
        ));
        for (what, classes) in [("without samples", &split.empty_classes), ("rare", &split.rare_classes)] {
            if !classes.is_empty() {
                let shown = classes.iter().take(SHOWN).map(|class| printable(class)).collect::<Vec<_>>().join(", ");
                lines.push(format!("    {what}: {} ({shown}{})", count(classes.len(), "class"), more(classes.len())));
            }
        }
    }
    lines.push(format!("  label map {}", report.label_map));
    lines.extend(report.notes.iter().map(|note| format!("  note: {note}")));

    let mut by_kind: BTreeMap<Kind, Vec<&Finding>> = BTreeMap::new();
    for finding in &report.findings {
        by_kind.entry(finding.kind).or_default().push(finding);
    }
    for (kind, findings) in by_kind {
        lines.push(format!("{}: {}", kind.title(), count(findings.len(), "sample")));
        lines.extend(findings.iter().take(SHOWN).map(|f| format!("  {}: {}", f.sample.location, f.detail)));
        lines.extend(rest(findings.len()));
    }
    let mut groups = |title: &str, groups: Vec<&[Sample]>| {
        if groups.is_empty() {
            return;
        }
        lines.push(format!("{title}: {}", count(groups.len(), "group")));
        for group in groups.iter().take(SHOWN) {
            let shown: Vec<_> = group.iter().take(4).map(|s| format!("{} ({})", printable(&s.key), s.split)).collect();
            let more = if group.len() > 4 { format!(" = … ({} in all)", group.len()) } else { String::new() };
            lines.push(format!("  {}{more}", shown.join(" = ")));
        }
        lines.extend(rest(groups.len()));
    };
    let conflicts = "the same image in several classes (a placeholder, or wrong labels)";
    groups(conflicts, report.conflicts.iter().map(Vec::as_slice).collect());
    groups("exact duplicates", report.duplicates.iter().map(Vec::as_slice).collect());
    groups("near duplicates", report.near_duplicates.iter().map(Vec::as_slice).collect());
    let leaks = |exact| report.leaks.iter().filter(move |leak| leak.exact == exact);
    groups("in both train and val", leaks(true).map(|leak| leak.samples.as_slice()).collect());
    groups("look-alikes in train and val", leaks(false).map(|leak| leak.samples.as_slice()).collect());
    if report.findings.is_empty() && report.duplicates.is_empty() && report.near_duplicates.is_empty() {
        lines.push("nothing is wrong with the samples".into());
    }
    lines.join("\n") + "\n"
}

fn more(n: usize) -> &'static str {
    if n > SHOWN { ", …" } else { "" }
}

fn rest(n: usize) -> Option<String> {
    n.checked_sub(SHOWN).filter(|&rest| rest > 0).map(|rest| format!("  … and {rest} more (all with --format json)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_image_marker_is_found_behind_padding_and_missed_where_cut() {
        let jpeg = [&[0xff, 0xd8, 0xff, 1, 2, 3][..], &[0xff, 0xd9]].concat();
        assert!(has_end_of_image(&jpeg));
        assert!(has_end_of_image(&[&jpeg[..], &[0; 100]].concat()));
        assert!(!has_end_of_image(&jpeg[..jpeg.len() - 1]));
        assert!(!has_end_of_image(&[]));
    }

    #[test]
    fn flat_images_are_of_one_color_but_for_compression_noise() {
        let mut image = RgbImage::from_pixel(40, 30, Rgb([200, 100, 0]));
        image.put_pixel(7, 7, Rgb([203, 97, 3]));
        assert_eq!(single_color(&image), Some([200, 100, 0]));
        image.put_pixel(39, 29, Rgb([204, 100, 0]));
        assert_eq!(single_color(&image), None);
    }

    #[test]
    fn extensions_are_those_of_the_last_part_of_a_key() {
        assert_eq!(extension("train/n01/a.JPEG").as_deref(), Some("jpeg"));
        assert_eq!(extension("shard.tar/000123"), None);
        assert_eq!(extension("v1.2/00"), None);
        assert_eq!(extension("a.0"), None);
    }
}
