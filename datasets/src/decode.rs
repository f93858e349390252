//! Decoding to RGB8, equal to Pillow's `Image.open(f).convert("RGB")`.
//!
//! The format is detected from the content, not from the name. As in Pillow, alpha is dropped, a palette is looked up,
//! 16-bit color is truncated to its high byte, 16-bit gray is clipped at 255, only the first frame of an animation is
//! read, and the EXIF orientation is ignored. CMYK follows Adobe's inverted convention.

mod jpeg;

use std::{
    io::Cursor,
    panic::{AssertUnwindSafe, catch_unwind},
};

use self::jpeg::Window;
use crate::transforms::Rect;
use image::{
    DynamicImage, ExtendedColorType, ImageDecoder, RgbImage,
    codecs::{bmp::BmpDecoder, gif::GifDecoder, png::PngDecoder, tiff::TiffDecoder, webp::WebPDecoder},
};

/// Shorthand for a result of this module.
pub type Result<T, E = DecodeError> = std::result::Result<T, E>;

/// Why bytes are not an image. It has no path: callers wrap it with the sample's [`Location`](crate::Location) into
/// [`Error::Decode`](crate::Error::Decode).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The first bytes match no supported format.
    #[error("not a JPEG, PNG, WebP, BMP, GIF or TIFF image (it starts with {start:02x?})")]
    UnknownFormat {
        /// The first bytes, at most 8.
        start: Vec<u8>,
    },
    /// The bytes end too early or contradict the format.
    #[error("broken {format} image: {cause}")]
    Broken {
        /// Returns the format that the first bytes declare.
        format: Format,
        /// The cause.
        cause: String,
    },
    /// A valid variant of the format that is not supported.
    #[error("unsupported {format} image: {cause}")]
    Unsupported {
        /// The format.
        format: Format,
        /// The variant.
        cause: String,
    },
    /// The header declares more pixels than allowed; nothing was allocated.
    #[error("{width} × {height} pixels exceed the limit of {max_pixels} pixels; raise it if the image is genuine")]
    TooManyPixels {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// [`Limits::max_pixels`].
        max_pixels: u64,
    },
    /// The image, or decoding it, needs more memory than allowed; it was not allocated.
    #[error("decoding needs {bytes} bytes, over the limit of {max_bytes} bytes; raise it if the image is genuine")]
    TooManyBytes {
        /// The required bytes.
        bytes: u64,
        /// [`Limits::max_bytes`].
        max_bytes: u64,
    },
}

/// Limits on an image. Both are checked on the header, before pixels are allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest number of pixels, width × height. The default is 89,478,485, where Pillow starts to warn of a
    /// decompression bomb.
    pub max_pixels: u64,
    /// The largest number of bytes of the encoded image, and of the memory for decoding it. The default is 1 GiB.
    pub max_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_pixels: 89_478_485, max_bytes: 1 << 30 }
    }
}

impl Limits {
    /// Checks the declared size, and the memory of `bytes_per_pixel` for each pixel.
    pub(crate) fn check(&self, width: u32, height: u32, bytes_per_pixel: u64) -> Result<()> {
        let pixels = u64::from(width) * u64::from(height);
        if pixels > self.max_pixels {
            return Err(DecodeError::TooManyPixels { width, height, max_pixels: self.max_pixels });
        }
        self.check_bytes(pixels.saturating_mul(bytes_per_pixel))
    }

    fn check_bytes(&self, bytes: u64) -> Result<()> {
        if bytes > self.max_bytes {
            return Err(DecodeError::TooManyBytes { bytes, max_bytes: self.max_bytes });
        }
        Ok(())
    }
}

/// The supported formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// ISO 10918-1.
    Jpeg,
    /// ISO 15948.
    Png,
    /// RFC 9649.
    WebP,
    /// Windows bitmap.
    Bmp,
    /// GIF 87a and 89a.
    Gif,
    /// TIFF 6.0.
    Tiff,
}

impl Format {
    /// Returns the format that the first bytes declare.
    ///
    /// # Errors
    /// [`DecodeError::UnknownFormat`].
    pub fn of(bytes: &[u8]) -> Result<Self> {
        Ok(match bytes {
            [0xff, 0xd8, 0xff, ..] => Self::Jpeg,
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Self::Png,
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Self::WebP,
            [b'B', b'M', ..] => Self::Bmp,
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Self::Gif,
            [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => Self::Tiff,
            _ => return Err(DecodeError::UnknownFormat { start: bytes[..bytes.len().min(8)].to_vec() }),
        })
    }

    /// The usual file extensions, in lower case.
    pub fn extensions(self) -> &'static [&'static str] {
        match self {
            Self::Jpeg => &["jpg", "jpeg", "jpe", "jfif", "jif", "jfi", "pjpeg", "pjp"],
            Self::Png => &["png", "apng"],
            Self::WebP => &["webp"],
            Self::Bmp => &["bmp", "dib"],
            Self::Gif => &["gif"],
            Self::Tiff => &["tif", "tiff"],
        }
    }

    fn broken(self, cause: impl ToString) -> DecodeError {
        DecodeError::Broken { format: self, cause: cause.to_string() }
    }

    fn unsupported(self, cause: impl ToString) -> DecodeError {
        DecodeError::Unsupported { format: self, cause: cause.to_string() }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Bmp => "BMP",
            Self::Gif => "GIF",
            Self::Tiff => "TIFF",
        })
    }
}

/// How an encoded image stores its colors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ColorModel {
    /// One channel.
    Gray,
    /// Gray and alpha.
    GrayAlpha,
    /// Red, green, blue (including JPEG's YCbCr).
    Rgb,
    /// RGB and alpha.
    Rgba,
    /// Indices into a palette.
    Palette,
    /// Four inks (JPEG: CMYK or YCCK).
    Cmyk,
    /// Anything else.
    Other,
}

/// The contents of an image's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The format, detected from the content.
    pub format: Format,
    /// Width in pixels, before any EXIF rotation.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// How colors are stored.
    pub color: ColorModel,
    /// Bits of one channel; of the index, for a palette.
    pub bits: u8,
    /// Whether it is a progressive JPEG.
    pub progressive: bool,
    /// The EXIF block of a JPEG.
    pub exif: Exif,
}

/// The EXIF block of a JPEG. It never changes the decoded pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Exif {
    /// There is none, or it is not supported for this format.
    #[default]
    Absent,
    /// It is readable with this orientation: 1 is upright (also if none is given), 2–8 are rotated or mirrored.
    Orientation(u16),
    /// It is malformed.
    Broken,
}

/// Reads an image's header, at the cost of a few hundred bytes.
///
/// # Errors
/// [`DecodeError::UnknownFormat`], [`DecodeError::Broken`] or [`DecodeError::Unsupported`].
pub fn probe(bytes: &[u8]) -> Result<Header> {
    let format = Format::of(bytes)?;
    contain_panics(format, || match format {
        Format::Jpeg => jpeg_header(bytes),
        Format::Png => png_header(bytes),
        _ => {
            let decoder = decoder(format, bytes, &Limits::default())?;
            let (width, height) = decoder.dimensions();
            let (color, bits) = color_model(decoder.original_color_type());
            let (color, bits) = if format == Format::Gif { (ColorModel::Palette, 8) } else { (color, bits) };
            Ok(Header { format, width, height, color, bits, progressive: false, exif: Exif::Absent })
        }
    })
}

/// Decodes an image into RGB8, equal to Pillow's `Image.open(f).convert("RGB")`.
///
/// # Errors
/// Any [`DecodeError`]. No input causes a panic or allocates more than `limits` allow.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage> {
    limits.check_bytes(bytes.len() as u64)?;
    let format = Format::of(bytes)?;
    contain_panics(format, || {
        if format == Format::Jpeg {
            return jpeg::decode(bytes, limits, true, |right, bottom| Window {
                left: 0,
                top: 0,
                right,
                bottom,
                block: 8,
            });
        }
        let header = probe(bytes)?;
        header.check(limits)?;
        let decoder = decoder(format, bytes, limits)?;
        let image = DynamicImage::from_decoder(decoder).map_err(|cause| image_error(format, cause))?;
        Ok(to_rgb(image))
    })
}

/// A separately decoded part of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Region {
    /// The pixels that the part touches, at the decoded scale.
    pub image: RgbImage,
    /// Where the part begins in `image`, in fractions of its pixels.
    pub left: f64,
    /// Where the part begins in `image`, in fractions of its pixels.
    pub top: f64,
    /// The part's width, in fractions of pixels of `image`.
    pub width: f64,
    /// The part's height, in fractions of pixels of `image`.
    pub height: f64,
}

/// Decodes the part `crop` of an image, for a resize to `target` (width, height).
///
/// For a JPEG, only the required blocks are transformed, at 1/2, 1/4 or 1/8 scale if the part is at least that much
/// larger than the target on both sides. At full scale the pixels equal those of [`decode`]. Damage in rows below the
/// part is not detected. Other formats are decoded whole.
///
/// # Errors
/// Any [`DecodeError`]; [`DecodeError::Broken`] if `crop` is empty or extends beyond the image.
pub fn decode_region(bytes: &[u8], crop: Rect, target: (u32, u32), limits: &Limits) -> Result<Region> {
    let format = Format::of(bytes)?;
    let outside = |width: u32, height: u32| {
        crop.width == 0
            || crop.height == 0
            || crop.left.checked_add(crop.width).is_none_or(|right| right > width)
            || crop.top.checked_add(crop.height).is_none_or(|bottom| bottom > height)
    };
    let error = || format.broken("the part to decode reaches beyond the image");
    let [left, top, width, height] = [crop.left, crop.top, crop.width, crop.height].map(f64::from);
    if format != Format::Jpeg {
        let whole = decode(bytes, limits)?;
        if outside(whole.width(), whole.height()) {
            return Err(error());
        }
        let image = image::imageops::crop_imm(&whole, crop.left, crop.top, crop.width, crop.height).to_image();
        return Ok(Region { image, left: 0.0, top: 0.0, width, height });
    }
    limits.check_bytes(bytes.len() as u64)?;
    contain_panics(format, || {
        let header = probe(bytes)?;
        if outside(header.width, header.height) {
            return Err(error());
        }
        let enough = |block: u32| {
            u64::from(crop.width) * u64::from(block) >= 8 * u64::from(target.0)
                && u64::from(crop.height) * u64::from(block) >= 8 * u64::from(target.1)
        };
        let block = [1, 2, 4].into_iter().find(|&block| enough(block)).unwrap_or(8);
        let window = Window::of(crop, block as usize);
        let image = jpeg::decode(bytes, limits, false, |_, _| window)?;
        let (scale, scaled) = (f64::from(block) / 8.0, window.scaled());
        Ok(Region {
            image,
            left: left * scale - scaled.left as f64,
            top: top * scale - scaled.top as f64,
            width: width * scale,
            height: height * scale,
        })
    })
}

/// Decodes the part `crop` of an image at full scale, parsing the file to its end. The pixels equal those of
/// [`decode`]. `crop` must be within the image.
pub(crate) fn decode_part(bytes: &[u8], crop: Rect, limits: &Limits) -> Result<RgbImage> {
    let format = Format::of(bytes)?;
    if format != Format::Jpeg {
        let whole = decode(bytes, limits)?;
        return Ok(image::imageops::crop_imm(&whole, crop.left, crop.top, crop.width, crop.height).to_image());
    }
    limits.check_bytes(bytes.len() as u64)?;
    contain_panics(format, || jpeg::decode(bytes, limits, true, |_, _| Window::of(crop, 8)))
}

impl Header {
    /// Checks the declared size against the limits.
    pub(crate) fn check(&self, limits: &Limits) -> Result<()> {
        if self.width == 0 || self.height == 0 {
            return Err(self.format.broken(format_args!("{} × {} pixels", self.width, self.height)));
        }
        // The decoded channels and the RGB8 copy.
        let bytes_per_pixel = 4 * u64::from(self.bits.div_ceil(8)) + 3;
        limits.check(self.width, self.height, if self.format == Format::Jpeg { 0 } else { bytes_per_pixel })
    }
}

/// The `image` crate's decoder, with `limits` set.
fn decoder<'a>(format: Format, bytes: &'a [u8], limits: &Limits) -> Result<Box<dyn ImageDecoder + 'a>> {
    let reader = Cursor::new(bytes);
    let mut allowed = image::Limits::default();
    allowed.max_alloc = Some(limits.max_bytes);
    let decoder: Result<Box<dyn ImageDecoder>, _> = match format {
        Format::Jpeg => return Err(format.unsupported("JPEG has a decoder of its own")),
        Format::Png => PngDecoder::with_limits(reader, allowed.clone()).map(|d| Box::new(d) as _),
        Format::WebP => WebPDecoder::new(reader).map(|d| Box::new(d) as _),
        Format::Bmp => BmpDecoder::new(reader).map(|d| Box::new(d) as _),
        Format::Gif => GifDecoder::new(reader).map(|d| Box::new(d) as _),
        Format::Tiff => TiffDecoder::new(reader).map(|d| Box::new(d) as _),
    };
    let mut decoder = decoder.map_err(|cause| image_error(format, cause))?;
    decoder.set_limits(allowed).map_err(|cause| image_error(format, cause))?;
    Ok(decoder)
}

fn image_error(format: Format, cause: image::ImageError) -> DecodeError {
    match cause {
        image::ImageError::Unsupported(cause) => format.unsupported(cause),
        cause => format.broken(cause),
    }
}

/// Converts a panic of a third-party decoder into an error.
fn contain_panics<T>(format: Format, decode: impl FnOnce() -> Result<T>) -> Result<T> {
    // The closure shares only the encoded bytes, which it cannot change.
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| Err(format.broken("its decoder panicked")))
}

/// Converts to RGB like Pillow's `convert("RGB")`.
fn to_rgb(image: DynamicImage) -> RgbImage {
    /// The high bytes of the first three of `channels` 16-bit samples a pixel.
    fn high_bytes(width: u32, height: u32, samples: &[u16], channels: usize) -> RgbImage {
        let pixels = samples.chunks_exact(channels).flat_map(|pixel| {
            let at = |channel: usize| (pixel[channel] >> 8) as u8;
            if channels < 3 { [at(0); 3] } else { [at(0), at(1), at(2)] }
        });
        RgbImage::from_raw(width, height, pixels.collect()).expect("three bytes for each pixel")
    }
    let (width, height) = (image.width(), image.height());
    match image {
        DynamicImage::ImageRgb8(rgb) => rgb,
        DynamicImage::ImageLuma16(gray) => {
            let pixels = gray.as_raw().iter().flat_map(|&value| [value.min(255) as u8; 3]);
            RgbImage::from_raw(width, height, pixels.collect()).expect("three bytes for each pixel")
        }
        DynamicImage::ImageLumaA16(gray) => high_bytes(width, height, gray.as_raw(), 2),
        DynamicImage::ImageRgb16(rgb) => high_bytes(width, height, rgb.as_raw(), 3),
        DynamicImage::ImageRgba16(rgba) => high_bytes(width, height, rgba.as_raw(), 4),
        other => other.into_rgb8(),
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
    Ok(Header { format, width, height, color, bits, progressive: false, exif: Exif::Absent })
}

/// The segments before the first scan.
fn jpeg_header(bytes: &[u8]) -> Result<Header> {
    let format = Format::Jpeg;
    let ends_early = || format.broken("it ends before the frame header");
    let mut exif = Exif::Absent;
    let mut at = 2;
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        match rest {
            // Skips fill bytes and garbage between segments, as libjpeg does with a warning.
            [0xff, 0xff, ..] | [0..=0xfe, _, ..] => at += 1,
            [0xff, 0x00 | 0x01 | 0xd0..=0xd8, ..] => at += 2,
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
                        return Ok(Header { format, width, height, color, bits, progressive, exif });
                    }
                    0xe1 => {
                        if let Some(tiff) = segment.strip_prefix(b"Exif\0\0") {
                            exif = exif_orientation(tiff).map_or(Exif::Broken, Exif::Orientation);
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

/// Returns the orientation tag (0x0112) of the first directory; 1 if it is missing, `None` if the block is malformed.
fn exif_orientation(tiff: &[u8]) -> Option<u16> {
    let little = match tiff.get(..4)? {
        [b'I', b'I', 42, 0] => true,
        [b'M', b'M', 0, 42] => false,
        _ => return None,
    };
    let u16_at = |at: usize| {
        let pair = tiff.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if little { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) })
    };
    let (low, high) = if little { (4, 6) } else { (6, 4) };
    let directory = (usize::from(u16_at(high)?) << 16) | usize::from(u16_at(low)?);
    for entry in 0..usize::from(u16_at(directory)?) {
        let at = directory + 2 + entry * 12;
        if u16_at(at)? == 0x0112 {
            return Some(u16_at(at + 8)?).filter(|value| (1..=8).contains(value));
        }
    }
    Some(1)
}
