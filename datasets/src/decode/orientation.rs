//! The orientation in an image's metadata, and turning pixels and parts by it.

use std::io::Read;

use flate2::read::ZlibDecoder;
use image::{DynamicImage, RgbImage, metadata::Orientation};
use serde::{Deserialize, Serialize};

use super::Region;
use crate::transforms::Rect;

/// Whether the orientation in an image's metadata is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OrientationPolicy {
    /// Turn the pixels upright, as viewers do.
    #[default]
    Apply,
    /// Use the pixels as they are stored, as torchvision's loader does.
    Ignore,
}

impl std::fmt::Display for OrientationPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Apply => "apply",
            Self::Ignore => "ignore",
        })
    }
}

impl std::str::FromStr for OrientationPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "apply" => Ok(Self::Apply),
            "ignore" => Ok(Self::Ignore),
            _ => Err(format!("`{text}` is neither apply nor ignore")),
        }
    }
}

/// The orientation in an image's metadata: EXIF, or XMP where that has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Exif {
    /// There is none.
    #[default]
    Absent,
    /// 1 is upright, 2–8 are rotated or mirrored.
    Orientation(u16),
    /// It is malformed.
    Broken,
}

impl Exif {
    /// Reads a TIFF block of EXIF.
    pub(super) fn of_tiff(tiff: &[u8]) -> Self {
        match tag(tiff) {
            Some(None) => Self::Absent,
            Some(Some(value)) => Self::of_value(value),
            None => Self::Broken,
        }
    }

    pub(super) fn of_value(value: u32) -> Self {
        match value {
            1..=8 => Self::Orientation(value as u16),
            _ => Self::Broken,
        }
    }

    /// Itself, or the orientation of an XMP packet if it gives none.
    pub(super) fn or_xmp(self, xmp: Option<&[u8]>) -> Self {
        match (self, xmp.and_then(xmp_orientation)) {
            (Self::Absent, Some(value)) => Self::of_value(value),
            _ => self,
        }
    }

    /// Returns what turns the stored pixels upright under a policy.
    pub(super) fn turn(self, policy: OrientationPolicy) -> Turn {
        match (self, policy) {
            (Self::Orientation(value), OrientationPolicy::Apply) => Turn::of(value),
            _ => Turn::default(),
        }
    }
}

/// Returns the orientation tag (0x0112) of the first directory; `Some(None)` if it is missing, `None` if the block is
/// malformed.
fn tag(tiff: &[u8]) -> Option<Option<u32>> {
    let little = match tiff.get(..4)? {
        [b'I', b'I', 42, 0] => true,
        [b'M', b'M', 0, 42] => false,
        _ => return None,
    };
    let u16_at = |at: usize| {
        let pair = tiff.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if little { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) })
    };
    let u32_at = |at: usize| {
        let four = tiff.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if little { u32::from_le_bytes(four) } else { u32::from_be_bytes(four) })
    };
    let directory = usize::try_from(u32_at(4)?).ok()?;
    for entry in 0..usize::from(u16_at(directory)?) {
        let at = directory.checked_add(2 + entry * 12)?;
        if u16_at(at)? == 0x0112 {
            // Some programs write it as a byte or as 32 bits.
            return Some(Some(match u16_at(at + 2)? {
                1 => u32::from(*tiff.get(at + 8)?),
                4 => u32_at(at + 8)?,
                _ => u32::from(u16_at(at + 8)?),
            }));
        }
    }
    Some(None)
}

/// Returns `tiff:Orientation` of an XMP packet, written as an attribute or as an element.
fn xmp_orientation(xmp: &[u8]) -> Option<u32> {
    const NAME: &[u8] = b"tiff:Orientation";
    memchr::memmem::find_iter(xmp, NAME).find_map(|at| match xmp.get(at + NAME.len()..)? {
        [b'=', b'"' | b'\'', digit @ b'0'..=b'9', ..] | [b'>', digit @ b'0'..=b'9', ..] => {
            Some(u32::from(digit - b'0'))
        }
        _ => None,
    })
}

/// The chunks of a PNG: name and data, as far as they are complete.
pub(super) fn png_chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    let mut rest = bytes.get(8..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let (name, tail) = tail.split_first_chunk::<4>()?;
        let (data, tail) = tail.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        rest = tail.get(4..).unwrap_or_default();
        Some((name, data))
    })
}

/// The orientation of a PNG: its eXIf chunk, XMP, or the EXIF block as text that older programs write.
pub(super) fn of_png(bytes: &[u8]) -> Exif {
    let (mut exif, mut xmp) = (Exif::Absent, None);
    for (name, data) in png_chunks(bytes) {
        match name {
            b"eXIf" => exif = Exif::of_tiff(without_prefix(data)),
            b"iTXt" if data.starts_with(b"XML:com.adobe.xmp\0") => xmp = Some(data),
            b"tEXt" | b"zTXt" if exif == Exif::Absent => {
                if let Some(text) = raw_profile(name, data) {
                    exif = Exif::of_tiff(without_prefix(&text));
                }
            }
            _ => {}
        }
    }
    exif.or_xmp(xmp)
}

/// The bytes of ImageMagick's `Raw profile type exif`: a name, a length and hexadecimal digits, perhaps compressed.
fn raw_profile(name: &[u8; 4], data: &[u8]) -> Option<Vec<u8>> {
    /// A directory of EXIF is at the start; maker's notes and thumbnails behind it do not matter.
    const MOST: u64 = 128 << 10;
    let keyword = data.iter().position(|&byte| byte == 0)?;
    if !matches!(&data[..keyword], b"Raw profile type exif" | b"Raw profile type APP1") {
        return None;
    }
    let mut text = Vec::new();
    match name {
        b"tEXt" => text.extend_from_slice(&data[keyword + 1..]),
        _ => drop(ZlibDecoder::new(data.get(keyword + 2..)?).take(MOST).read_to_end(&mut text)),
    }
    let mut lines = text.split(|&byte| byte == b'\n').skip_while(|line| line.is_empty()).skip(2);
    let digits: Vec<u8> = lines.by_ref().flatten().copied().filter(u8::is_ascii_hexdigit).collect();
    let value = |digit: u8| (digit as char).to_digit(16).unwrap_or(0) as u8;
    Some(digits.chunks_exact(2).map(|pair| (value(pair[0]) << 4) | value(pair[1])).collect())
}

/// The orientation of a WebP: its `EXIF` chunk, or its XMP.
pub(super) fn of_webp(bytes: &[u8]) -> Exif {
    let (mut exif, mut xmp) = (Exif::Absent, None);
    let mut rest = bytes.get(12..).unwrap_or_default();
    while let Some((name, tail)) = rest.split_first_chunk::<4>() {
        let Some((length, tail)) = tail.split_first_chunk::<4>() else { break };
        let length = u32::from_le_bytes(*length) as usize;
        let Some((data, tail)) = tail.split_at_checked(length) else { break };
        match name {
            b"EXIF" => exif = Exif::of_tiff(without_prefix(data)),
            b"XMP " => xmp = Some(data),
            _ => {}
        }
        rest = tail.get(length % 2..).unwrap_or_default();
    }
    exif.or_xmp(xmp)
}

/// EXIF without the name that only JPEG's segment should have.
fn without_prefix(exif: &[u8]) -> &[u8] {
    exif.strip_prefix(b"Exif\0\0").unwrap_or(exif)
}

/// A rotation by quarters, perhaps mirrored: from stored pixels to upright ones. The stored pixel is found by
/// exchanging the coordinates (`transpose`) and then counting the stored columns and rows from the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Turn {
    /// EXIF's number, if it is not 1.
    orientation: Option<Orientation>,
    transpose: bool,
    flip_x: bool,
    flip_y: bool,
}

impl Turn {
    fn of(value: u16) -> Self {
        Self {
            orientation: Orientation::from_exif(value.min(255) as u8).filter(|o| *o != Orientation::NoTransforms),
            transpose: matches!(value, 5..=8),
            flip_x: matches!(value, 2 | 3 | 7 | 8),
            flip_y: matches!(value, 3 | 4 | 6 | 7),
        }
    }

    /// The size of the upright image, from that of the stored one, or the reverse.
    pub fn size(self, (width, height): (u32, u32)) -> (u32, u32) {
        if self.transpose { (height, width) } else { (width, height) }
    }

    /// Maps a rectangle of the upright image to the stored image of this size. It must be within the image.
    pub fn stored(self, part: Rect, (width, height): (u32, u32)) -> Rect {
        let Rect { left, top, width: columns, height: rows } = part;
        let part = match self.transpose {
            true => Rect { left: top, top: left, width: rows, height: columns },
            false => part,
        };
        Rect {
            left: if self.flip_x { width - part.left - part.width } else { part.left },
            top: if self.flip_y { height - part.top - part.height } else { part.top },
            ..part
        }
    }

    /// Turns stored pixels upright.
    pub fn apply(self, image: RgbImage) -> RgbImage {
        let Some(orientation) = self.orientation else { return image };
        let mut image = DynamicImage::ImageRgb8(image);
        image.apply_orientation(orientation);
        image.into_rgb8()
    }

    /// Turns a part upright: its pixels, and where in them it begins.
    pub fn apply_to_region(self, region: Region) -> Region {
        let Region { image, left, top, width, height, .. } = region;
        let left = if self.flip_x { f64::from(image.width()) - left - width } else { left };
        let top = if self.flip_y { f64::from(image.height()) - top - height } else { top };
        let image = self.apply(image);
        match self.transpose {
            true => Region { image, left: top, top: left, width: height, height: width, ..region },
            false => Region { image, left, top, ..region },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TIFF block with one entry.
    fn block(little: bool, kind: u16, value: &[u8]) -> Vec<u8> {
        let short = |value: u16| if little { value.to_le_bytes() } else { value.to_be_bytes() };
        let long = |value: u32| if little { value.to_le_bytes() } else { value.to_be_bytes() };
        let mut bytes = if little { b"II*\0".to_vec() } else { b"MM\0*".to_vec() };
        bytes.extend(long(8));
        bytes.extend(short(1));
        bytes.extend(short(0x0112));
        bytes.extend(short(kind));
        bytes.extend(long(1));
        bytes.extend(value);
        bytes.resize(8 + 2 + 12 + 4, 0);
        bytes
    }

    #[test]
    fn the_tag_is_read_in_both_byte_orders_and_all_integer_types() {
        for little in [true, false] {
            let short = if little { 6u16.to_le_bytes() } else { 6u16.to_be_bytes() };
            let long = if little { 6u32.to_le_bytes() } else { 6u32.to_be_bytes() };
            for tiff in [block(little, 3, &short), block(little, 4, &long), block(little, 1, &[6])] {
                assert_eq!(Exif::of_tiff(&tiff), Exif::Orientation(6));
                // Every prefix is readable or malformed.
                for end in 0..tiff.len() {
                    assert_ne!(Exif::of_tiff(&tiff[..end]), Exif::Orientation(1));
                }
            }
        }
        assert_eq!(Exif::of_tiff(&block(true, 3, &[9, 0])), Exif::Broken);
        assert_eq!(Exif::of_tiff(b"II*\0\xff\xff\xff\xff"), Exif::Broken);
    }

    #[test]
    fn xmp_counts_where_exif_has_no_orientation() {
        let attribute = Some(&b"<rdf:Description tiff:Orientation=\"8\"/>"[..]);
        let element = Some(&b"<tiff:Orientation>3</tiff:Orientation>"[..]);
        assert_eq!(Exif::Absent.or_xmp(attribute), Exif::Orientation(8));
        assert_eq!(Exif::Absent.or_xmp(element), Exif::Orientation(3));
        // An editor that turned the pixels may have left the packet as it was.
        assert_eq!(Exif::Orientation(1).or_xmp(element), Exif::Orientation(1));
        assert_eq!(Exif::Absent.or_xmp(Some(b"tiff:Orientation")), Exif::Absent);
    }

    #[test]
    fn a_stored_part_turned_is_the_part_of_the_turned_image() {
        let stored = RgbImage::from_fn(7, 5, |x, y| image::Rgb([x as u8, y as u8, 0]));
        for value in 1..=8 {
            let turn = Turn::of(value);
            let upright = turn.apply(stored.clone());
            assert_eq!(upright.dimensions(), turn.size((7, 5)), "{value}");
            let (width, height) = upright.dimensions();
            for part in [
                Rect { left: 0, top: 0, width, height },
                Rect { left: 1, top: 2, width: 3, height: 2 },
                Rect { left: width - 1, top: 0, width: 1, height },
            ] {
                let crop = |image: &RgbImage, at: Rect| {
                    image::imageops::crop_imm(image, at.left, at.top, at.width, at.height).to_image()
                };
                let turned = turn.apply(crop(&stored, turn.stored(part, (7, 5))));
                assert_eq!(turned, crop(&upright, part), "{value} {part:?}");
            }
        }
    }

    #[test]
    fn raw_profiles_are_hexadecimal_text() {
        let tiff = block(false, 3, &[0, 7]);
        let digits: String = tiff.iter().map(|byte| format!("{byte:02x}")).collect();
        let text = format!("\nexif\n{:8}\n{digits}\n", tiff.len());
        let plain = [b"Raw profile type exif\0", text.as_bytes()].concat();
        assert_eq!(raw_profile(b"tEXt", &plain).map(|tiff| Exif::of_tiff(&tiff)), Some(Exif::Orientation(7)));
        let mut packed = b"Raw profile type exif\0\0".to_vec();
        let mut encoder = flate2::write::ZlibEncoder::new(&mut packed, flate2::Compression::default());
        std::io::Write::write_all(&mut encoder, text.as_bytes()).unwrap();
        encoder.finish().unwrap();
        assert_eq!(raw_profile(b"zTXt", &packed).map(|tiff| Exif::of_tiff(&tiff)), Some(Exif::Orientation(7)));
        assert_eq!(raw_profile(b"tEXt", b"Comment\0exif"), None);
    }
}
