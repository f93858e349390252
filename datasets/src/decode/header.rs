//! Image headers: format, size, color model and orientation.

use image::{ExtendedColorType, ImageDecoder};

use super::{
    ColorModel, DecodeOptions, Exif, Format, Limits, OrientationPolicy, Result, contain_panics, decoder, gif,
    orientation, tiff,
};

/// The contents of an image's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The format, detected from the content.
    pub format: Format,
    /// Width in pixels as stored, before the orientation is applied.
    pub width: u32,
    /// Height in pixels as stored.
    pub height: u32,
    /// The color model.
    pub color: ColorModel,
    /// Bits of one channel; of the index, for a palette.
    pub bits: u8,
    /// Whether it is a progressive JPEG.
    pub progressive: bool,
    /// The orientation in the metadata.
    pub exif: Exif,
}

/// Reads an image's header, at the cost of a few hundred bytes.
///
/// # Errors
/// [`DecodeError::UnknownFormat`](super::DecodeError::UnknownFormat), `Foreign`, `Broken` or `Unsupported`.
pub fn probe(bytes: &[u8]) -> Result<Header> {
    let format = Format::of(bytes)?;
    contain_panics(format, || match format {
        Format::Jpeg => jpeg_header(bytes),
        Format::Png => png_header(bytes),
        Format::Gif => gif::header(bytes),
        Format::Tiff => tiff::header(bytes),
        _ => {
            let decoder = decoder(format, bytes, &DecodeOptions::default())?;
            let (width, height) = decoder.dimensions();
            let (color, bits) = color_model(decoder.original_color_type());
            let exif = if format == Format::WebP { orientation::of_webp(bytes) } else { Exif::Absent };
            Ok(Header { format, width, height, color, bits, progressive: false, exif })
        }
    })
}

impl Header {
    /// Returns the width and height of the image as [`decode`](super::decode) returns it.
    pub fn oriented_size(&self, policy: OrientationPolicy) -> (u32, u32) {
        self.exif.turn(policy).size((self.width, self.height))
    }

    /// Returns about how many bytes decoding takes: the decoded channels and RGB8.
    pub fn decoded_bytes(&self) -> u64 {
        let per_pixel = match (self.format, self.progressive) {
            // Planes and RGB8; the coefficients of three full components besides.
            (Format::Jpeg, false) => 6,
            (Format::Jpeg, true) => 12,
            _ => 4 * u64::from(self.bits.div_ceil(8)) + 3,
        };
        u64::from(self.width) * u64::from(self.height) * per_pixel
    }

    /// Checks the declared size against the limits.
    pub(crate) fn check(&self, limits: &Limits) -> Result<()> {
        if self.width == 0 || self.height == 0 {
            return Err(self.format.broken(format_args!("{} × {} pixels", self.width, self.height)));
        }
        // A JPEG's decoder knows better what it needs for the part that is decoded.
        let bytes_per_pixel = if self.format == Format::Jpeg { 0 } else { 4 * u64::from(self.bits.div_ceil(8)) + 3 };
        limits.check(self.width, self.height, bytes_per_pixel)
    }
}

fn color_model(color: ExtendedColorType) -> (ColorModel, u8) {
    use ExtendedColorType as C;
    let model = match color {
        C::L1 | C::L2 | C::L4 | C::L8 | C::L16 => ColorModel::Gray,
        C::La1 | C::La2 | C::La4 | C::La8 | C::La16 => ColorModel::GrayAlpha,
        C::Rgb1 | C::Rgb2 | C::Rgb4 | C::Rgb5x1 | C::Rgb8 | C::Bgr8 | C::Rgb16 | C::Rgb32F => ColorModel::Rgb,
        C::Rgba1 | C::Rgba2 | C::Rgba4 | C::Rgba8 | C::Bgra8 | C::Rgba16 | C::Rgba32F => ColorModel::Rgba,
        C::Cmyk8 | C::Cmyk16 => ColorModel::Cmyk,
        _ => ColorModel::Other,
    };
    let channels = u16::from(color.channel_count().max(1));
    (model, u8::try_from(color.bits_per_pixel() / channels).unwrap_or(u8::MAX))
}

/// The signature and the IHDR chunk, which is always first.
fn png_header(bytes: &[u8]) -> Result<Header> {
    let format = Format::Png;
    let [_, _, _, _, _, _, _, _, _, _, _, _, b'I', b'H', b'D', b'R', rest @ ..] = bytes else {
        return Err(format.broken("no IHDR chunk"));
    };
    let &[w0, w1, w2, w3, h0, h1, h2, h3, bits, color, ..] = rest else {
        return Err(format.broken("it ends inside the IHDR chunk"));
    };
    let color = match color {
        0 => ColorModel::Gray,
        2 => ColorModel::Rgb,
        3 => ColorModel::Palette,
        4 => ColorModel::GrayAlpha,
        6 => ColorModel::Rgba,
        other => return Err(format.broken(format_args!("color type {other}"))),
    };
    let (width, height) = (u32::from_be_bytes([w0, w1, w2, w3]), u32::from_be_bytes([h0, h1, h2, h3]));
    Ok(Header { format, width, height, color, bits, progressive: false, exif: orientation::of_png(bytes) })
}

/// The segments before the first scan.
fn jpeg_header(bytes: &[u8]) -> Result<Header> {
    let format = Format::Jpeg;
    let ends_early = || format.broken("it ends before the frame header");
    let (mut exif, mut xmp) = (Exif::Absent, None);
    let mut at = 2;
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        match rest {
            // Skips fill bytes and garbage between segments, as libjpeg does with a warning.
            [0xff, 0xff, ..] | [0..=0xfe, _, ..] => at += 1,
            [0xff, 0x00..=0xbf | 0xd0..=0xd8, ..] => at += 2,
            [0xff, 0xd9 | 0xda, ..] => return Err(format.broken("no frame header before the first scan")),
            [0xff, marker, l0, l1, ..] => {
                let length = usize::from(u16::from_be_bytes([*l0, *l1]));
                let segment = rest.get(4..2 + length.max(2)).ok_or_else(ends_early)?;
                match marker {
                    0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                        let &[bits, h0, h1, w0, w1, components, ..] = segment else { return Err(ends_early()) };
                        let color = match components {
                            1 => ColorModel::Gray,
                            3 => ColorModel::Rgb,
                            4 => ColorModel::Cmyk,
                            _ => ColorModel::Other,
                        };
                        let [width, height] = [[w0, w1], [h0, h1]].map(|side| u32::from(u16::from_be_bytes(side)));
                        let progressive = matches!(marker, 0xc2 | 0xc6 | 0xca | 0xce);
                        let exif = exif.or_xmp(xmp);
                        return Ok(Header { format, width, height, color, bits, progressive, exif });
                    }
                    0xe1 => {
                        if let Some(tiff) = segment.strip_prefix(b"Exif\0\0") {
                            exif = Exif::of_tiff(tiff);
                        } else if segment.starts_with(b"http://ns.adobe.com/xap/1.0/\0") {
                            xmp = Some(segment);
                        }
                    }
                    _ => {}
                }
                at += 2 + length.max(2);
            }
            _ => return Err(ends_early()),
        }
    }
}
