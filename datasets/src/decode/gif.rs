//! GIF by the `gif` crate: the first frame. One that extends beyond the canvas enlarges it, as in Pillow; what the
//! frame does not cover has the transparent color, or the first one.

use std::num::NonZeroU64;

use gif::{ColorOutput, Decoder, DecodingError, Frame, MemoryLimit};

use super::{Cancellable, ColorModel, DecodeOptions, Decoded, Exif, Format, Header, Result, filled, io_error, pixels};

const FORMAT: Format = Format::Gif;

fn open<'a>(bytes: &'a [u8], options: &DecodeOptions) -> Result<Decoder<Cancellable<'a>>> {
    let mut decoding = gif::DecodeOptions::new();
    decoding.set_color_output(ColorOutput::Indexed);
    decoding.allow_unknown_blocks(true);
    let most = NonZeroU64::new(options.limits.max_bytes).unwrap_or(NonZeroU64::MIN);
    decoding.set_memory_limit(MemoryLimit::Bytes(most));
    decoding.read_info(Cancellable::new(bytes, options)).map_err(gif_error)
}

/// Width and height of the canvas that holds a frame.
fn canvas(screen: (u16, u16), frame: &Frame<'_>) -> (u32, u32) {
    let extent = |screen: u16, start: u16, side: u16| u32::from(screen).max(u32::from(start) + u32::from(side));
    (extent(screen.0, frame.left, frame.width), extent(screen.1, frame.top, frame.height))
}

/// Reads the header of the first frame.
pub(super) fn header(bytes: &[u8]) -> Result<Header> {
    let mut decoder = open(bytes, &DecodeOptions::default())?;
    let screen = (decoder.width(), decoder.height());
    let frame = decoder.next_frame_info().map_err(gif_error)?.ok_or_else(|| FORMAT.broken("it has no frame"))?;
    let (width, height) = canvas(screen, frame);
    let color = ColorModel::Palette;
    Ok(Header { format: FORMAT, width, height, color, bits: 8, progressive: false, exif: Exif::Absent })
}

/// Decodes the first frame. The header has been checked.
pub(super) fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Decoded> {
    let mut decoder = open(bytes, options)?;
    let screen = (decoder.width(), decoder.height());
    let global = decoder.global_palette().map(<[u8]>::to_vec);
    let frame = decoder.read_next_frame().map_err(gif_error)?.ok_or_else(|| FORMAT.broken("it has no frame"))?;
    let (width, height) = canvas(screen, frame);
    let palette = frame.palette.as_ref().or(global.as_ref());
    let color = |index: u8| match palette {
        // Pillow shows a file without a palette in gray, and an index beyond one as black.
        None => [index; 3],
        Some(palette) => {
            palette.get(3 * usize::from(index)..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; 3])
        }
    };
    let [across, left, top] = [width, frame.left.into(), frame.top.into()].map(|side| side as usize);
    let mut samples = filled(3 * across * height as usize, 0)?;
    let background = color(frame.transparent.unwrap_or(0));
    if background != [0; 3] {
        samples.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&background));
    }
    let rows = frame.buffer.chunks_exact(usize::from(frame.width).max(1));
    for (out, row) in samples.chunks_exact_mut((3 * across).max(1)).skip(top).zip(rows) {
        let out = out.chunks_exact_mut(3).skip(left);
        out.zip(row).for_each(|(pixel, &index)| pixel.copy_from_slice(&color(index)));
    }
    Ok(Decoded::new(pixels::rgb(width, height, samples)?))
}

fn gif_error(cause: DecodingError) -> super::DecodeError {
    match cause {
        DecodingError::Io(cause) => io_error(FORMAT, cause),
        cause => FORMAT.broken(cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A screen of 3 × 2 pixels and a frame of 2 × 2 at (`left`, `top`).
    fn frame_at(left: u16, top: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = gif::Encoder::new(&mut bytes, 3, 2, &[9, 9, 9, 1, 2, 3, 4, 5, 6]).unwrap();
        let buffer = vec![1, 2, 2, 1].into();
        encoder.write_frame(&Frame { left, top, width: 2, height: 2, buffer, ..Frame::default() }).unwrap();
        drop(encoder);
        bytes
    }

    #[test]
    fn a_frame_beyond_the_canvas_enlarges_it() {
        let options = DecodeOptions::default();
        for (left, top, size) in [(0, 0, (3, 2)), (1, 0, (3, 2)), (2, 1, (4, 3)), (7, 9, (9, 11))] {
            let bytes = frame_at(left, top);
            let header = header(&bytes).unwrap();
            assert_eq!((header.width, header.height), size);
            let image = decode(&bytes, &options).unwrap().image;
            assert_eq!(image.dimensions(), size);
            for (x, y, pixel) in image.enumerate_pixels() {
                let inside = (x.wrapping_sub(left.into()), y.wrapping_sub(top.into()));
                let expected = match inside {
                    (0, 0) | (1, 1) => [1, 2, 3],
                    (1, 0) | (0, 1) => [4, 5, 6],
                    _ => [9; 3],
                };
                assert_eq!(pixel.0, expected, "{x}, {y} of a frame at {left}, {top}");
            }
        }
    }
}
