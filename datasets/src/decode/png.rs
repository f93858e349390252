//! PNG by the `png` crate. Color profiles and text are skipped: they may be larger than the image.

use png::{ColorType, Decoder, DecodingError, Limits, Transformations};

use super::{
    Cancellable, Damage, DecodeOptions, Decoded, Format, Result, filled, io_error, orientation::png_chunks, pixels,
};

const FORMAT: Format = Format::Png;

/// Decodes a PNG as it is stored. The header has been checked.
///
/// Wrong checksums and a missing end are damage that can be decoded around: the file is tried again with its image
/// data alone.
pub(super) fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Decoded> {
    let error = match read(bytes, options, false) {
        Err(error @ super::DecodeError::Broken { .. }) => error,
        other => return other,
    };
    // The checksum of the pixels tells whether those are right.
    match repaired(bytes).map(|bytes| read(&bytes, options, true)) {
        Some(Ok(decoded)) => {
            let super::DecodeError::Broken { cause, .. } = error else { return Err(error) };
            Ok(Decoded { damage: Some(Damage { format: FORMAT, cause }), ..decoded })
        }
        _ => Err(error),
    }
}

fn read(bytes: &[u8], options: &DecodeOptions, check_pixels: bool) -> Result<Decoded> {
    let mut skipping = png::DecodeOptions::default();
    skipping.set_ignore_text_chunk(true);
    skipping.set_ignore_iccp_chunk(true);
    skipping.set_ignore_adler32(!check_pixels);
    let mut decoder = Decoder::new_with_options(Cancellable::new(bytes, options), skipping);
    decoder.set_limits(Limits { bytes: usize::try_from(options.limits.max_bytes).unwrap_or(usize::MAX) });
    // Palettes and fewer than 8 bits become 8 bits; 16 bits stay.
    decoder.set_transformations(Transformations::EXPAND);
    let mut reader = decoder.read_info().map_err(png_error)?;
    let size = reader.output_buffer_size().ok_or_else(|| FORMAT.broken("an impossible size"))?;
    let mut samples = filled(size, 0)?;
    let info = reader.next_frame(&mut samples).map_err(png_error)?;
    let channels = match info.color_type {
        ColorType::Grayscale | ColorType::Indexed => 1,
        ColorType::GrayscaleAlpha => 2,
        ColorType::Rgb => 3,
        ColorType::Rgba => 4,
    };
    if info.bit_depth == png::BitDepth::Sixteen {
        let words = samples.as_chunks::<2>().0;
        return pixels::of_words(info.width, info.height, words, channels, u16::from_be_bytes);
    }
    let image = match channels {
        3 => pixels::rgb(info.width, info.height, samples)?,
        _ => pixels::gather(info.width, info.height, &samples, channels, |sample| sample)?,
    };
    Ok(Decoded::new(image))
}

fn png_error(cause: DecodingError) -> super::DecodeError {
    match cause {
        DecodingError::IoError(cause) => io_error(FORMAT, cause),
        cause => FORMAT.broken(cause),
    }
}

/// The chunks that the pixels depend on, with right checksums and an end. `None` if the file has none.
fn repaired(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut file = bytes.get(..8)?.to_vec();
    file.try_reserve_exact(bytes.len()).ok()?;
    let mut put = |name: &[u8; 4], data: &[u8]| {
        file.extend((data.len() as u32).to_be_bytes());
        let start = file.len();
        file.extend(name);
        file.extend(data);
        let checksum = crc32fast::hash(&file[start..]);
        file.extend(checksum.to_be_bytes());
    };
    let mut end = 8;
    for (name, data) in png_chunks(bytes) {
        end += 12 + data.len();
        match name {
            b"IHDR" | b"PLTE" | b"tRNS" | b"IDAT" => put(name, data),
            b"IEND" => break,
            _ => {}
        }
    }
    // The image may be complete though its last chunk is not.
    if let Some([_, _, _, _, b'I', b'D', b'A', b'T', data @ ..]) = bytes.get(end..) {
        put(b"IDAT", data);
    }
    put(b"IEND", &[]);
    Some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded() -> (Vec<u8>, Vec<u8>) {
        let pixels: Vec<u8> = (0..40 * 30 * 3).map(|i| (i * 7 % 251) as u8).collect();
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 40, 30);
        encoder.set_color(ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.add_text_chunk("Comment".into(), "a comment".into()).unwrap();
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&pixels).unwrap();
        writer.finish().unwrap();
        (bytes, pixels)
    }

    fn chunk(bytes: &[u8], name: &[u8; 4]) -> usize {
        bytes.windows(4).position(|window| window == name).unwrap()
    }

    #[test]
    fn wrong_checksums_and_a_missing_end_are_damage() {
        let (good, pixels) = encoded();
        let clean = decode(&good, &DecodeOptions::default()).unwrap();
        assert_eq!((clean.image.as_raw(), clean.damage), (&pixels, None));
        let end = chunk(&good, b"IEND") - 4;
        let mut wrong_data = good.clone();
        wrong_data[end - 1] ^= 1; // the checksum of IDAT
        for damaged in [wrong_data.as_slice(), &good[..end], &good[..end - 2]] {
            let decoded = decode(damaged, &DecodeOptions::default()).unwrap();
            assert_eq!(decoded.image.as_raw(), &pixels);
            assert!(decoded.damage.is_some());
        }
        // Wrong pixels, and pixels that are missing.
        let mut wrong_pixels = good.clone();
        wrong_pixels[end - 200] ^= 1;
        assert!(decode(&wrong_pixels, &DecodeOptions::default()).is_err());
        assert!(decode(&good[..end - 100], &DecodeOptions::default()).is_err());
    }

    #[test]
    fn a_profile_that_inflates_beyond_the_image_is_not_read() {
        let (good, pixels) = encoded();
        // 64 MB of zeros in an iCCP chunk, with a limit of a tenth of that.
        let mut data = b"name\0\0".to_vec();
        let mut encoder = flate2::write::ZlibEncoder::new(&mut data, flate2::Compression::best());
        std::io::Write::write_all(&mut encoder, &vec![0; 64 << 20]).unwrap();
        encoder.finish().unwrap();
        let mut bomb = good[..33].to_vec();
        bomb.extend((data.len() as u32).to_be_bytes());
        let start = bomb.len();
        bomb.extend(b"iCCP");
        bomb.extend(&data);
        let checksum = crc32fast::hash(&bomb[start..]);
        bomb.extend(checksum.to_be_bytes());
        bomb.extend(&good[33..]);
        let limits = super::super::Limits { max_bytes: 6 << 20, ..Default::default() };
        let decoded = decode(&bomb, &limits.into()).unwrap();
        assert_eq!((decoded.image.as_raw(), decoded.damage), (&pixels, None));
    }
}
