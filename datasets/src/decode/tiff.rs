//! TIFF by the `tiff` crate, with palettes, which it does not read.

use tiff::{
    ColorType, TiffError,
    decoder::{Decoder, DecodingResult, Limits},
    tags::Tag,
};

use super::{
    Cancellable, ColorModel, DecodeError, DecodeOptions, Decoded, Exif, Format, Header, Result, io_error,
    jpeg::{ink_to_light, ycc_to_rgb},
    pixels,
};

const FORMAT: Format = Format::Tiff;

/// The photometric interpretation of a palette.
const PALETTE: u16 = 3;
/// The photometric interpretation of gray where 0 is black.
const GRAY: u16 = 1;

/// The compression by JPEG.
const JPEG: u16 = 7;

type Reader<'a> = Decoder<Cancellable<'a>>;

fn open<'a>(bytes: &'a [u8], options: &DecodeOptions) -> Result<Reader<'a>> {
    let mut limits = Limits::default();
    let most = usize::try_from(options.limits.max_bytes).unwrap_or(usize::MAX);
    (limits.decoding_buffer_size, limits.intermediate_buffer_size) = (most, most);
    // A value of the directory is stored in the file.
    limits.ifd_value_size = bytes.len();
    Ok(Decoder::new(Cancellable::new(bytes, options)).map_err(tiff_error)?.with_limits(limits))
}

/// Reads the first image's directory.
pub(super) fn header(bytes: &[u8]) -> Result<Header> {
    let mut reader = open(bytes, &DecodeOptions::default())?;
    let (width, height) = reader.dimensions().map_err(tiff_error)?;
    let (color, bits) = match reader.colortype() {
        _ if is_palette(&mut reader) => (ColorModel::Palette, reader.get_tag_unsigned(Tag::BitsPerSample).unwrap_or(8)),
        Ok(color) => (color_model(color), color.bit_depth()),
        Err(cause) => return Err(tiff_error(cause)),
    };
    let exif = match reader.find_tag_unsigned::<u32>(Tag::Orientation) {
        Ok(Some(value)) => Exif::of_value(value),
        Ok(None) => {
            let packet = reader.find_tag(Tag::Unknown(700)).ok().flatten().and_then(|tag| tag.into_u8_vec().ok());
            Exif::Absent.or_xmp(packet.as_deref())
        }
        Err(_) => Exif::Broken,
    };
    Ok(Header { format: FORMAT, width, height, color, bits, progressive: false, exif })
}

fn is_palette(reader: &mut Reader<'_>) -> bool {
    reader.find_tag_unsigned(Tag::PhotometricInterpretation).ok().flatten() == Some(PALETTE)
}

fn color_model(color: ColorType) -> ColorModel {
    match color {
        ColorType::Gray(_) => ColorModel::Gray,
        ColorType::GrayA(_) | ColorType::Multiband { num_samples: 2, .. } => ColorModel::GrayAlpha,
        ColorType::RGB(_) | ColorType::YCbCr(_) => ColorModel::Rgb,
        ColorType::RGBA(_) => ColorModel::Rgba,
        ColorType::Palette(_) => ColorModel::Palette,
        ColorType::CMYK(_) | ColorType::CMYKA(_) => ColorModel::Cmyk,
        _ => ColorModel::Other,
    }
}

/// Decodes the first image as it is stored. The header has been checked.
pub(super) fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Decoded> {
    let mut reader = open(bytes, options)?;
    if !is_palette(&mut reader) {
        return read(&mut reader);
    }
    let colors = reader.get_tag_u16_vec(Tag::ColorMap).map_err(tiff_error)?;
    let indices = as_gray(bytes).ok_or_else(|| FORMAT.broken("no photometric interpretation"))?;
    let (width, height, indices) = read_indices(&mut open(&indices, options)?)?;
    let size = colors.len() / 3;
    // The map has 16 bits, though some programs store 8.
    let shift = if colors.iter().all(|&value| value < 256) { 0 } else { 8 };
    let at = |channel: usize, index: u8| {
        let color = colors.get(channel * size + usize::from(index)).filter(|_| usize::from(index) < size);
        color.map_or(0, |value| (value >> shift) as u8)
    };
    let mut rgb = super::filled(indices.len() * 3, 0)?;
    for (pixel, &index) in rgb.chunks_exact_mut(3).zip(&indices) {
        pixel.copy_from_slice(&[at(0, index), at(1, index), at(2, index)]);
    }
    Ok(Decoded::new(pixels::rgb(width, height, rgb)?))
}

/// Decodes gray samples of up to 8 bits without scaling them.
fn read_indices(reader: &mut Reader<'_>) -> Result<(u32, u32, Vec<u8>)> {
    let (width, height) = reader.dimensions().map_err(tiff_error)?;
    let color = reader.colortype().map_err(tiff_error)?;
    let mut result = DecodingResult::U8(Vec::new());
    reader.read_image_to_buffer(&mut result).map_err(tiff_error)?;
    match (color, result) {
        (ColorType::Gray(bits @ (1 | 2 | 4 | 8)), DecodingResult::U8(packed)) => {
            Ok((width, height, unpacked(width, &packed, bits)?))
        }
        _ => Err(FORMAT.unsupported(format_args!("a palette of {color:?}"))),
    }
}

/// One byte for each sample of 1, 2, 4 or 8 bits; rows begin with a byte.
fn unpacked(width: u32, packed: &[u8], bits: u8) -> Result<Vec<u8>> {
    if bits == 8 {
        return Ok(packed.to_vec());
    }
    let width = width as usize;
    let row_bytes = (width * usize::from(bits)).div_ceil(8).max(1);
    let mut samples = super::filled(packed.len() / row_bytes * width, 0)?;
    for (samples, row) in samples.chunks_exact_mut(width.max(1)).zip(packed.chunks_exact(row_bytes)) {
        for (x, sample) in samples.iter_mut().enumerate() {
            let bit = x * usize::from(bits);
            *sample = (row[bit / 8] >> (8 - bits as usize - bit % 8)) & ((1 << bits) - 1);
        }
    }
    Ok(samples)
}

/// Decodes an image that is not a palette's.
fn read(reader: &mut Reader<'_>) -> Result<Decoded> {
    let (width, height) = reader.dimensions().map_err(tiff_error)?;
    let color = reader.colortype().map_err(tiff_error)?;
    let compression = reader.find_tag_unsigned(Tag::Compression).ok().flatten();
    let mut result = DecodingResult::U8(Vec::new());
    let layout = reader.read_image_to_buffer(&mut result).map_err(tiff_error)?;
    if result.as_buffer(0).as_bytes().len() < layout.complete_len {
        let (bytes, max_bytes) = (layout.complete_len as u64, layout.len as u64);
        return Err(DecodeError::TooManyBytes { bytes, max_bytes });
    }
    let planes = layout.planes.max(1);
    let pixels = width as usize * height as usize;
    match result {
        DecodingResult::U8(packed) if color.bit_depth() < 8 => match color {
            ColorType::Gray(bits @ (1 | 2 | 4)) => {
                let samples = unpacked(width, &packed, bits)?;
                let white = (1u16 << bits) - 1;
                let byte = |sample: u8| (u16::from(sample) * 255 / white) as u8;
                Ok(Decoded::new(pixels::gather(width, height, &samples, 1, byte)?))
            }
            _ => Err(FORMAT.unsupported(format_args!("{color:?}"))),
        },
        DecodingResult::U8(samples) => {
            let (samples, channels) = interleaved(samples, pixels, planes)?;
            Ok(Decoded::new(of_bytes((color, compression), width, height, &samples, channels)?))
        }
        DecodingResult::U16(samples) => {
            let (samples, channels) = interleaved(samples, pixels, planes)?;
            match color {
                ColorType::CMYK(_) | ColorType::CMYKA(_) | ColorType::YCbCr(_) => {
                    let bytes: Vec<u8> = samples.iter().map(|sample| (sample >> 8) as u8).collect();
                    Ok(Decoded::new(of_bytes((color, compression), width, height, &bytes, channels)?))
                }
                _ => pixels::of_16_bits(width, height, &samples, shown(color, channels)?),
            }
        }
        DecodingResult::F16(samples) => {
            let samples = samples.iter().map(|sample| sample.to_f32()).collect();
            wide(color, width, height, samples, planes)
        }
        DecodingResult::F32(samples) => wide(color, width, height, samples, planes),
        DecodingResult::F64(samples) => wide(color, width, height, samples, planes),
        DecodingResult::U32(samples) => wide(color, width, height, samples, planes),
        DecodingResult::U64(samples) => wide(color, width, height, samples, planes),
        DecodingResult::I8(samples) => wide(color, width, height, samples, planes),
        DecodingResult::I16(samples) => wide(color, width, height, samples, planes),
        DecodingResult::I32(samples) => wide(color, width, height, samples, planes),
        DecodingResult::I64(samples) => wide(color, width, height, samples, planes),
    }
}

/// The image of floats or wide integers.
fn wide<T: pixels::Wide>(color: ColorType, width: u32, height: u32, samples: Vec<T>, planes: usize) -> Result<Decoded> {
    let (samples, channels) = interleaved(samples, width as usize * height as usize, planes)?;
    pixels::of_floats(width, height, &samples, shown(color, channels)?)
}

/// The channels of gray and RGB; other colors of wide samples are not supported.
fn shown(color: ColorType, channels: usize) -> Result<usize> {
    match color {
        ColorType::Gray(_) | ColorType::GrayA(_) | ColorType::RGB(_) | ColorType::RGBA(_) => Ok(channels),
        ColorType::Multiband { num_samples: 1..=2, .. } => Ok(channels),
        _ => Err(FORMAT.unsupported(format_args!("{color:?}"))),
    }
}

/// Pixels whose channels are adjacent, and the number of channels, from planes of one channel each.
fn interleaved<T: Copy>(samples: Vec<T>, pixels: usize, planes: usize) -> Result<(Vec<T>, usize)> {
    let channels = samples.len() / pixels.max(1);
    if channels == 0 {
        return Err(FORMAT.broken("it ends early"));
    }
    if planes < 2 {
        return Ok((samples, channels));
    }
    let mut adjacent = super::filled(pixels * planes, samples[0])?;
    for (channel, plane) in samples.chunks_exact(pixels).take(planes).enumerate() {
        adjacent.iter_mut().skip(channel).step_by(planes).zip(plane).for_each(|(to, sample)| *to = *sample);
    }
    Ok((adjacent, planes))
}

/// The image of 8-bit samples.
fn of_bytes(
    (color, compression): (ColorType, Option<u16>),
    width: u32,
    height: u32,
    samples: &[u8],
    channels: usize,
) -> Result<image::RgbImage> {
    let convert = |to_rgb: &dyn Fn(&[u8]) -> [u8; 3]| {
        let mut pixels = super::filled(3 * width as usize * height as usize, 0)?;
        let from = samples.chunks_exact(channels);
        pixels.chunks_exact_mut(3).zip(from).for_each(|(pixel, from)| pixel.copy_from_slice(&to_rgb(from)));
        pixels::rgb(width, height, pixels)
    };
    match color {
        ColorType::CMYK(_) | ColorType::CMYKA(_) if channels >= 4 => {
            convert(&|p| [p[0], p[1], p[2]].map(|ink| ink_to_light(ink, 255 - p[3])))
        }
        ColorType::YCbCr(_) if channels >= 3 => convert(&|p| ycc_to_rgb(p[0], p[1], p[2])),
        // The decoder of JPEG within TIFF takes two channels for something else.
        ColorType::GrayA(_) | ColorType::Multiband { .. } if compression == Some(JPEG) => {
            Err(FORMAT.unsupported("gray with alpha in JPEG compression"))
        }
        _ => pixels::gather(width, height, samples, shown(color, channels)?, |sample| sample),
    }
}

fn tiff_error(cause: TiffError) -> DecodeError {
    match cause {
        TiffError::IoError(cause) => io_error(FORMAT, cause),
        TiffError::UnsupportedError(cause) => FORMAT.unsupported(cause),
        TiffError::LimitsExceeded => FORMAT.broken("its sizes exceed the file or the limits; see --max-pixels"),
        cause => FORMAT.broken(cause),
    }
}

/// The file with the photometric interpretation of a palette changed to gray, so that its indices can be read.
fn as_gray(bytes: &[u8]) -> Option<Vec<u8>> {
    let little = bytes.starts_with(b"II");
    let number = |at: usize, length: usize| {
        let bytes = bytes.get(at..at.checked_add(length)?)?;
        let digits = bytes.iter().map(|&byte| u64::from(byte));
        let join = |value: u64, byte: u64| (value << 8) | byte;
        Some(if little { digits.rev().fold(0, join) } else { digits.fold(0, join) })
    };
    // BigTIFF has 64 bits where TIFF has 32 (and 16 for the number of entries).
    let big = number(2, 2)? == 43;
    let (directory, count_bytes, entry) = if big { (number(8, 8)?, 8, 20) } else { (number(4, 4)?, 2, 12) };
    let directory = usize::try_from(directory).ok()?;
    let entries = number(directory, count_bytes)?.min(u64::from(u16::MAX)) as usize;
    let first = directory.checked_add(count_bytes)?;
    let at = (0..entries)
        .map(|index| first + index * entry)
        .find(|&at| number(at, 2) == Some(u64::from(Tag::PhotometricInterpretation.to_u16())))?;
    let value = at + entry - if big { 8 } else { 4 };
    let mut changed = bytes.to_vec();
    changed.get_mut(value..value + 2)?.copy_from_slice(&if little { GRAY.to_le_bytes() } else { GRAY.to_be_bytes() });
    Some(changed)
}
