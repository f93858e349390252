//! Decoding to RGB8, as Pillow and torchvision show an image.
//!
//! The format is detected from the content, not from the name. As in Pillow, alpha is dropped, a palette is looked up,
//! and only the first frame of an animation is read. CMYK follows Adobe's inverted convention. Two things differ from
//! `Image.open(f).convert("RGB")`: the orientation of the metadata is applied (`ImageOps.exif_transpose`) unless
//! [`DecodeOptions::orientation`] says otherwise, and samples of 16 bits and floats are scaled to 8 bits instead of
//! being clipped at 255.
//!
//! Damage that libjpeg and Pillow decode with a warning is decoded too, and reported in [`Decoded::damage`].

mod gif;
mod header;
mod jpeg;
mod orientation;
mod pixels;
mod png;
mod tiff;
mod unknown;

use std::{
    io::{self, BufRead, Cursor, Read, Seek, SeekFrom},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use image::{
    DynamicImage, ImageDecoder, RgbImage,
    codecs::{bmp::BmpDecoder, pnm::PnmDecoder, webp::WebPDecoder},
};

use self::jpeg::Window;
pub use self::{
    header::{Header, probe},
    orientation::{Exif, OrientationPolicy},
};
use crate::transforms::Rect;

/// Shorthand for a result of this module.
pub type Result<T, E = DecodeError> = std::result::Result<T, E>;

/// The error of decoding an image. It has no path: callers wrap it with the sample's [`Location`](crate::Location) into
/// [`Error::Decode`](crate::Error::Decode).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The first bytes match no supported format.
    #[error("not a JPEG, PNG, WebP, BMP, GIF, TIFF or PNM image{}", unknown::what(start))]
    UnknownFormat {
        /// The first bytes, at most 8.
        start: Vec<u8>,
    },
    /// An image of a format that is known but cannot be read.
    #[error("{name} images cannot be read; convert it to JPEG or PNG, with `{convert}` for instance")]
    Foreign {
        /// The name of the format.
        name: &'static str,
        /// A command that converts such a file.
        convert: &'static str,
    },
    /// The bytes end too early or contradict the format.
    #[error("broken {format} image: {cause}")]
    Broken {
        /// The format that the first bytes declare.
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
    #[error("{width} × {height} pixels exceed the limit of {max_pixels} pixels; raise --max-pixels if it is genuine")]
    TooManyPixels {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// [`Limits::max_pixels`].
        max_pixels: u64,
    },
    /// The image, or decoding it, needs more memory than allowed; it was not allocated.
    #[error("decoding needs {bytes} bytes, over the limit of {max_bytes} bytes; raise --max-pixels if it is genuine")]
    TooManyBytes {
        /// The required bytes.
        bytes: u64,
        /// [`Limits::max_bytes`].
        max_bytes: u64,
    },
    /// A JPEG repeats scans over its pixels far more often than any encoder does: it is made to waste time.
    #[error(
        "{scans} JPEG scans over {width} × {height} pixels exceed the work that is allowed for them; encode it again \
         with fewer scans if it is genuine"
    )]
    TooMuchWork {
        /// The scans read so far.
        scans: usize,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// There is too little memory at the moment.
    #[error("not enough memory: {bytes} bytes cannot be allocated")]
    OutOfMemory {
        /// The number of bytes requested.
        bytes: u64,
    },
    /// [`DecodeOptions::cancel`] was set.
    #[error("decoding was cancelled")]
    Cancelled,
}

/// Options of decoding.
#[derive(Debug, Clone, Default)]
pub struct DecodeOptions {
    /// Whether the orientation in the metadata is applied. Default: it is.
    pub orientation: OrientationPolicy,
    /// Limits on the image.
    pub limits: Limits,
    /// A flag that ends decoding with [`DecodeError::Cancelled`] soon after it is set. Default: none.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl DecodeOptions {
    /// Sets the largest number of pixels of an image, and the memory for decoding them.
    pub fn max_pixels(mut self, max_pixels: u64) -> Self {
        self.limits = Limits::of_pixels(max_pixels);
        self
    }

    fn check_cancel(&self) -> Result<()> {
        match &self.cancel {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(DecodeError::Cancelled),
            _ => Ok(()),
        }
    }
}

impl From<Limits> for DecodeOptions {
    fn from(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }
}

/// A decoded image.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The pixels.
    pub image: RgbImage,
    /// The damage of the file, if it could be decoded nevertheless.
    pub damage: Option<Damage>,
    /// The bits in use of 16-bit samples, if fewer: 8, or 12 as many cameras and scanners write. The pixels are scaled by
    /// that range.
    pub used_bits: Option<u8>,
}

impl Decoded {
    fn new(image: RgbImage) -> Self {
        Self { image, damage: None, used_bits: None }
    }

    /// Changes the pixels and keeps the rest.
    pub fn map(self, change: impl FnOnce(RgbImage) -> RgbImage) -> Self {
        Self { image: change(self.image), ..self }
    }
}

impl From<RgbImage> for Decoded {
    fn from(image: RgbImage) -> Self {
        Self::new(image)
    }
}

/// Converts the pixels of any image as [`decode`] does: alpha is dropped, and samples of 16 bits and floats are scaled.
impl TryFrom<DynamicImage> for Decoded {
    type Error = DecodeError;

    fn try_from(image: DynamicImage) -> Result<Self> {
        pixels::to_rgb(image)
    }
}

/// Damage despite which an image was decoded, as libjpeg and Pillow do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The format.
    pub format: Format,
    /// The damage found first.
    pub cause: String,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "damaged {} image: {}", self.format, self.cause)
    }
}

impl From<Damage> for DecodeError {
    fn from(damage: Damage) -> Self {
        damage.format.broken(damage.cause)
    }
}

/// Limits on an image. Both are checked on the header, before pixels are allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest number of pixels, width × height. The default is 178,956,970, beyond which Pillow refuses an image
    /// as a decompression bomb.
    pub max_pixels: u64,
    /// The largest number of bytes of the encoded image, and of the memory for decoding it. The default is 1 GiB.
    pub max_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_pixels: 178_956_970, max_bytes: 1 << 30 }
    }
}

impl Limits {
    /// The bytes that decoding one pixel takes at most, usual formats provided: 16 bits in four channels, and RGB.
    const BYTES_PER_PIXEL: u64 = 12;

    /// Returns limits for images of up to `max_pixels` pixels. The memory grows with it, and is not below the default.
    pub fn of_pixels(max_pixels: u64) -> Self {
        let max_bytes = max_pixels.saturating_mul(Self::BYTES_PER_PIXEL).max(Self::default().max_bytes);
        Self { max_pixels, max_bytes }
    }

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
    /// TIFF 6.0 and BigTIFF.
    Tiff,
    /// Portable bitmaps, graymaps and pixmaps (PBM, PGM, PPM).
    Pnm,
}

impl Format {
    /// Returns the format that the first bytes declare.
    ///
    /// # Errors
    /// [`DecodeError::UnknownFormat`], or [`DecodeError::Foreign`] for a format that is known but not supported.
    pub fn of(bytes: &[u8]) -> Result<Self> {
        Ok(match bytes {
            [0xff, 0xd8, 0xff, ..] => Self::Jpeg,
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Self::Png,
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Self::WebP,
            [b'B', b'M', ..] => Self::Bmp,
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Self::Gif,
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Self::Tiff,
            [b'P', b'1'..=b'6', b' ' | b'\t' | b'\n' | b'\r' | b'#', ..] => Self::Pnm,
            _ => return Err(not_an_image(bytes)),
        })
    }

    /// The usual file extensions, in lower case.
    pub fn extensions(self) -> &'static [&'static str] {
        match self {
            Self::Jpeg => &["jpg", "jpeg", "jpe", "jfif", "jif", "jfi", "pjpeg", "pjp", "mpo"],
            Self::Png => &["png", "apng"],
            Self::WebP => &["webp"],
            Self::Bmp => &["bmp", "dib"],
            Self::Gif => &["gif"],
            Self::Tiff => &["tif", "tiff"],
            Self::Pnm => &["pnm", "pbm", "pgm", "ppm"],
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
            Self::Pnm => "PNM",
        })
    }
}

/// Names a format that cannot be read, so that its owner knows what to do.
fn not_an_image(bytes: &[u8]) -> DecodeError {
    let foreign = |name, convert| DecodeError::Foreign { name, convert };
    match bytes {
        [_, _, _, _, b'f', b't', b'y', b'p', brand @ ..] => {
            // The major brand and the compatible ones behind it: a file of `mif1` names what it is among the latter.
            let brands: Vec<&[u8]> = brand.chunks_exact(4).take(16).collect();
            let has = |names: &[&[u8; 4]]| brands.iter().any(|brand| names.iter().any(|name| brand == name));
            match () {
                () if has(&[b"avif", b"avis"]) => foreign("AVIF", "avifdec a.avif a.png"),
                () if has(&[b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"]) => {
                    foreign("HEIC", "heif-convert a.heic a.jpg")
                }
                () if has(&[b"crx "]) => foreign("Canon CR3", "exiftool -b -JpgFromRaw a.cr3 > a.jpg"),
                () => foreign("MP4", "ffmpeg -i a.mp4 a-%05d.jpg"),
            }
        }
        [0xff, 0x0a, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] => foreign("JPEG XL", "djxl a.jxl a.png"),
        [0, 0, 0, 12, b'j', b'P', b' ', b' ', ..] | [0xff, 0x4f, 0xff, 0x51, ..] => {
            foreign("JPEG 2000", "opj_decompress -i a.jp2 -o a.png")
        }
        [b'8', b'B', b'P', b'S', ..] => foreign("Photoshop", "magick 'a.psd[0]' a.png"),
        [b'%', b'P', b'D', b'F', ..] => foreign("PDF", "pdftoppm -png a.pdf a"),
        [0, 0, 1, 0, ..] => foreign("ICO", "magick 'a.ico[0]' a.png"),
        [b'q', b'o', b'i', b'f', ..] => foreign("QOI", "magick a.qoi a.png"),
        [b'v', b'/', b'1', 1, ..] => foreign("OpenEXR", "magick a.exr a.png"),
        [b'#', b'?', b'R', b'A', b'D', ..] => foreign("Radiance HDR", "magick a.hdr a.png"),
        [b'P', b'7' | b'F' | b'f', b'\n', ..] => foreign("PAM and PFM", "magick a.pam a.png"),
        [b'<', b's', b'v', b'g', ..] => foreign("SVG", "rsvg-convert a.svg -o a.png"),
        _ => DecodeError::UnknownFormat { start: bytes[..bytes.len().min(8)].to_vec() },
    }
}

/// The color model of an encoded image.
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

/// Decodes an image into RGB8.
///
/// # Errors
/// Any [`DecodeError`]. No input causes a panic or allocates more than the limits allow.
pub fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Decoded> {
    let header = checked_header(bytes, options)?;
    let decoded = contain_panics(header.format, || {
        if header.format == Format::Jpeg {
            let whole = |right, bottom| Window { left: 0, top: 0, right, bottom, block: 8 };
            return jpeg::decode(bytes, options, true, whole);
        }
        decode_whole(bytes, &header, options)
    })?;
    Ok(decoded.map(|image| header.exif.turn(options.orientation).apply(image)))
}

/// Reads the header and checks it, and the encoded bytes, against the limits.
fn checked_header(bytes: &[u8], options: &DecodeOptions) -> Result<Header> {
    options.limits.check_bytes(bytes.len() as u64)?;
    let header = probe(bytes)?;
    header.check(&options.limits)?;
    options.check_cancel()?;
    Ok(header)
}

/// Decodes an image that is not a JPEG, as it is stored. Its header has been checked.
fn decode_whole(bytes: &[u8], header: &Header, options: &DecodeOptions) -> Result<Decoded> {
    match header.format {
        Format::Png => png::decode(bytes, options),
        Format::Gif => gif::decode(bytes, options),
        Format::Tiff => tiff::decode(bytes, options),
        format => {
            let image = DynamicImage::from_decoder(decoder(format, bytes, options)?);
            pixels::to_rgb(image.map_err(|cause| image_error(format, cause))?)
        }
    }
}

/// A separately decoded part of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Region {
    /// The pixels that the part touches, at the decoded scale.
    pub image: RgbImage,
    /// See [`Decoded::damage`].
    pub damage: Option<Damage>,
    /// See [`Decoded::used_bits`].
    pub used_bits: Option<u8>,
    /// The part's left edge in `image`, in fractional pixels.
    pub left: f64,
    /// The part's upper edge in `image`, in fractional pixels.
    pub top: f64,
    /// The part's width, in fractions of pixels of `image`.
    pub width: f64,
    /// The part's height, in fractions of pixels of `image`.
    pub height: f64,
}

/// Decodes the part `crop` of an image, for a resize to `target` (width, height). Both refer to the image as
/// [`decode`] returns it, turned by its orientation if the options apply that.
///
/// For a JPEG, only the required blocks are transformed, at 1/2, 1/4 or 1/8 scale if the part is at least that much
/// larger than the target on both sides. At full scale the pixels equal those of [`decode`]. Damage in rows below the
/// part is not detected. Other formats are decoded whole.
///
/// # Errors
/// Any [`DecodeError`]; [`DecodeError::Broken`] if `crop` is empty or extends beyond the image.
pub fn decode_region(bytes: &[u8], crop: Rect, target: (u32, u32), options: &DecodeOptions) -> Result<Region> {
    let header = checked_header(bytes, options)?;
    let turn = header.exif.turn(options.orientation);
    let (width, height) = turn.size((header.width, header.height));
    if crop.width == 0
        || crop.height == 0
        || crop.left.checked_add(crop.width).is_none_or(|right| right > width)
        || crop.top.checked_add(crop.height).is_none_or(|bottom| bottom > height)
    {
        return Err(header.format.broken("the part to decode reaches beyond the image"));
    }
    if header.format != Format::Jpeg {
        let Decoded { image, damage, used_bits } = decode_part(bytes, crop, options)?;
        let [width, height] = [crop.width, crop.height].map(f64::from);
        return Ok(Region { image, damage, used_bits, left: 0.0, top: 0.0, width, height });
    }
    let stored = turn.stored(crop, (header.width, header.height));
    let target = turn.size(target);
    contain_panics(header.format, || {
        let enough = |block: u32| {
            u64::from(stored.width) * u64::from(block) >= 8 * u64::from(target.0)
                && u64::from(stored.height) * u64::from(block) >= 8 * u64::from(target.1)
        };
        let block = [1, 2, 4].into_iter().find(|&block| enough(block)).unwrap_or(8);
        let window = Window::of(stored, block as usize);
        let Decoded { image, damage, used_bits } = jpeg::decode(bytes, options, false, |_, _| window)?;
        let (scale, scaled) = (f64::from(block) / 8.0, window.scaled());
        let [left, top, width, height] = [stored.left, stored.top, stored.width, stored.height].map(f64::from);
        let left = left * scale - scaled.left as f64;
        let top = top * scale - scaled.top as f64;
        let region = Region { image, damage, used_bits, left, top, width: width * scale, height: height * scale };
        Ok(turn.apply_to_region(region))
    })
}

/// Decodes the part `crop` of an image at full scale, parsing the file to its end. The pixels equal those of
/// [`decode`]. `crop` must be within the image.
pub(crate) fn decode_part(bytes: &[u8], crop: Rect, options: &DecodeOptions) -> Result<Decoded> {
    let header = checked_header(bytes, options)?;
    let turn = header.exif.turn(options.orientation);
    let stored = turn.stored(crop, (header.width, header.height));
    let part = contain_panics(header.format, || {
        if header.format == Format::Jpeg {
            return jpeg::decode(bytes, options, true, |_, _| Window::of(stored, 8));
        }
        let whole = decode_whole(bytes, &header, options)?;
        let Rect { left, top, width, height } = stored;
        Ok(whole.map(|image| image::imageops::crop_imm(&image, left, top, width, height).to_image()))
    })?;
    Ok(part.map(|image| turn.apply(image)))
}

/// The `image` crate's decoder, with limits set, of the formats that have none of their own here.
fn decoder<'a>(format: Format, bytes: &'a [u8], options: &DecodeOptions) -> Result<Box<dyn ImageDecoder + 'a>> {
    let reader = Cancellable::new(bytes, options);
    let mut allowed = image::Limits::default();
    allowed.max_alloc = Some(options.limits.max_bytes);
    let decoder: Result<Box<dyn ImageDecoder>, _> = match format {
        Format::WebP => WebPDecoder::new(reader).map(|d| Box::new(d) as _),
        Format::Bmp => BmpDecoder::new(reader).map(|d| Box::new(d) as _),
        Format::Pnm => PnmDecoder::new(reader).map(|d| Box::new(d) as _),
        Format::Jpeg | Format::Png | Format::Gif | Format::Tiff => {
            return Err(format.unsupported("it has a decoder of its own; this is a bug, please report it"));
        }
    };
    let mut decoder = decoder.map_err(|cause| image_error(format, cause))?;
    decoder.set_limits(allowed).map_err(|cause| image_error(format, cause))?;
    Ok(decoder)
}

/// Encoded bytes that fail to be read once decoding is cancelled. They are handed out in pieces, so that a decoder
/// notices.
struct Cancellable<'a> {
    inner: Cursor<&'a [u8]>,
    cancel: Option<Arc<AtomicBool>>,
}

impl<'a> Cancellable<'a> {
    const PIECE: usize = 16 << 10;

    fn new(bytes: &'a [u8], options: &DecodeOptions) -> Self {
        Self { inner: Cursor::new(bytes), cancel: options.cancel.clone() }
    }

    fn check(&self) -> io::Result<()> {
        match &self.cancel {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(io::Error::other(DecodeError::Cancelled)),
            _ => Ok(()),
        }
    }
}

impl Read for Cancellable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        self.inner.read(buffer)
    }
}

impl BufRead for Cancellable<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.check()?;
        let rest = self.inner.fill_buf()?;
        Ok(&rest[..rest.len().min(Self::PIECE)])
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
    }
}

impl Seek for Cancellable<'_> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.inner.seek(position)
    }
}

fn image_error(format: Format, cause: image::ImageError) -> DecodeError {
    match cause {
        image::ImageError::Unsupported(cause) => format.unsupported(cause),
        image::ImageError::IoError(cause) => io_error(format, cause),
        cause => format.broken(cause),
    }
}

/// An error of reading from memory: the end, or [`Cancellable`]'s.
fn io_error(format: Format, cause: io::Error) -> DecodeError {
    match cause.get_ref().and_then(|inner| inner.downcast_ref::<DecodeError>()) {
        Some(inner) => inner.clone(),
        None if cause.kind() == io::ErrorKind::UnexpectedEof => format.broken("it ends early"),
        None => format.broken(cause),
    }
}

/// Converts a panic of a third-party decoder into an error.
fn contain_panics<T>(format: Format, decode: impl FnOnce() -> Result<T>) -> Result<T> {
    // The closure shares only the encoded bytes, which it cannot change.
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| Err(format.broken("its decoder panicked")))
}

/// `length` copies of a value, or an error where memory is short.
fn filled<T: Clone>(length: usize, value: T) -> Result<Vec<T>> {
    let mut values = Vec::new();
    let bytes = length.saturating_mul(size_of::<T>()) as u64;
    values.try_reserve_exact(length).map_err(|_| DecodeError::OutOfMemory { bytes })?;
    values.resize(length, value);
    Ok(values)
}
