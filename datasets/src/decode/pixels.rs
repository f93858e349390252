//! From samples of any depth to RGB8.

use std::sync::Once;

use image::{DynamicImage, RgbImage};

use super::{DecodeError, Decoded, Result, filled};

/// Converts to RGB like Pillow's `convert("RGB")`, but for samples of 16 bits and floats, which are scaled.
pub(super) fn to_rgb(image: DynamicImage) -> Result<Decoded> {
    let (width, height) = (image.width(), image.height());
    match image {
        DynamicImage::ImageRgb8(rgb) => Ok(Decoded::new(rgb)),
        DynamicImage::ImageLuma16(gray) => of_16_bits(width, height, gray.as_raw(), 1),
        DynamicImage::ImageLumaA16(gray) => of_16_bits(width, height, gray.as_raw(), 2),
        DynamicImage::ImageRgb16(rgb) => of_16_bits(width, height, rgb.as_raw(), 3),
        DynamicImage::ImageRgba16(rgba) => of_16_bits(width, height, rgba.as_raw(), 4),
        DynamicImage::ImageRgb32F(rgb) => of_floats(width, height, rgb.as_raw(), 3),
        DynamicImage::ImageRgba32F(rgba) => of_floats(width, height, rgba.as_raw(), 4),
        other => Ok(Decoded::new(other.into_rgb8())),
    }
}

/// The image of `channels` samples a pixel, of which the first (below three channels) or the first three count, each
/// brought to 8 bits by `to_byte`.
pub(super) fn gather<T: Copy>(
    width: u32,
    height: u32,
    samples: &[T],
    channels: usize,
    to_byte: impl Fn(T) -> u8,
) -> Result<RgbImage> {
    let mut pixels = filled(3 * width as usize * height as usize, 0)?;
    for (pixel, samples) in pixels.chunks_exact_mut(3).zip(samples.chunks_exact(channels.max(1))) {
        match samples {
            [r, g, b, ..] => pixel.copy_from_slice(&[to_byte(*r), to_byte(*g), to_byte(*b)]),
            [gray, ..] => pixel.fill(to_byte(*gray)),
            [] => {}
        }
    }
    rgb(width, height, pixels)
}

/// The image of three bytes for each pixel.
pub(super) fn rgb(width: u32, height: u32, pixels: Vec<u8>) -> Result<RgbImage> {
    let bytes = pixels.len() as u64;
    RgbImage::from_raw(width, height, pixels).ok_or(DecodeError::OutOfMemory { bytes })
}

/// The image of 16-bit samples: their high bytes. Cameras and scanners also store 8 or 12 bits in 16, which would be
/// black: if no color sample exceeds that range, it is what is scaled.
pub(super) fn of_16_bits(width: u32, height: u32, samples: &[u16], channels: usize) -> Result<Decoded> {
    of_words(width, height, samples, channels, |sample| sample)
}

/// The image of 16-bit samples in any form.
pub(super) fn of_words<T: Copy>(
    width: u32,
    height: u32,
    samples: &[T],
    channels: usize,
    to_word: impl Fn(T) -> u16,
) -> Result<Decoded> {
    let colors = if channels < 3 { 1 } else { 3 };
    let pixels = samples.chunks_exact(channels.max(1));
    let all = pixels.flat_map(|pixel| &pixel[..colors.min(pixel.len())]).fold(0, |all, &sample| all | to_word(sample));
    let (shift, used_bits) = match all {
        0 => (8, None),
        1..=0xff => (0, Some(8)),
        0x100..=0xfff => (4, Some(12)),
        _ => (8, None),
    };
    if let Some(bits) = used_bits {
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            log::warn!(
                "images with 16 bits a sample that use {bits} of them are scaled by that range; `datasets doctor` lists \
                 all such images, and this is said once"
            );
        });
    }
    let image = gather(width, height, samples, channels, |sample| (to_word(sample) >> shift) as u8)?;
    Ok(Decoded { used_bits, ..Decoded::new(image) })
}

/// A sample of a wide type that is scaled by the range of its image.
pub(super) trait Wide: Copy {
    /// The values that may be white, in rising order. Integers have no white of 1.
    const WHITES: &[f64];

    fn to_f64(self) -> f64;
}

macro_rules! wide {
    ($whites:expr, $($type:ty),*) => {
        $(impl Wide for $type {
            const WHITES: &[f64] = &$whites;

            fn to_f64(self) -> f64 {
                self as f64
            }
        })*
    };
}

wide!([1.0, 255.0, 65_535.0, 4_294_967_295.0], f32, f64);
wide!([127.0], i8);
wide!([255.0, 4095.0, 32_767.0], i16);
wide!([255.0, 4095.0, 65_535.0, 4_294_967_295.0], u32, u64, i32, i64);

/// The image of floats and wide integers, whose files do not give the value of white: it is the smallest of the usual
/// ones that no color sample exceeds. Negative values are black.
pub(super) fn of_floats<T: Wide>(width: u32, height: u32, samples: &[T], channels: usize) -> Result<Decoded> {
    let colors = if channels < 3 { 1 } else { 3 };
    let pixels = samples.chunks_exact(channels.max(1));
    let values = pixels.flat_map(|pixel| &pixel[..colors.min(pixel.len())]).map(|sample| sample.to_f64());
    let most = values.filter(|value| value.is_finite()).fold(0f64, f64::max);
    let white = T::WHITES.iter().copied().find(|&white| most <= white).unwrap_or(most);
    let scale = 255.0 / white;
    let image = gather(width, height, samples, channels, |sample| (sample.to_f64() * scale).round() as u8)?;
    Ok(Decoded::new(image))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bits_are_scaled_by_the_range_in_use() {
        let gray = |samples: &[u16]| {
            let decoded = of_16_bits(samples.len() as u32, 1, samples, 1).unwrap();
            (decoded.image.pixels().map(|pixel| pixel.0[0]).collect::<Vec<_>>(), decoded.used_bits)
        };
        assert_eq!(gray(&[0, 257, 65_535]), (vec![0, 1, 255], None));
        assert_eq!(gray(&[0, 16, 4095]), (vec![0, 1, 255], Some(12)));
        assert_eq!(gray(&[0, 16, 255]), (vec![0, 16, 255], Some(8)));
        assert_eq!(gray(&[0, 0]), (vec![0, 0], None));
        // Full alpha says nothing about the colors.
        let rgba = of_16_bits(1, 1, &[16, 32, 4095, 65_535], 4).unwrap();
        assert_eq!((rgba.image.as_raw().as_slice(), rgba.used_bits), (&[1, 2, 255][..], Some(12)));
        let alpha = of_16_bits(1, 1, &[4080, 65_535], 2).unwrap();
        assert_eq!(alpha.image.as_raw().as_slice(), [255; 3]);
    }

    #[test]
    fn floats_are_scaled_by_the_white_that_fits() {
        let gray = |samples: &[f32]| {
            let image = of_floats(samples.len() as u32, 1, samples, 1).unwrap().image;
            image.pixels().map(|pixel| pixel.0[0]).collect::<Vec<_>>()
        };
        assert_eq!(gray(&[0.0, 0.5, 1.0]), [0, 128, 255]);
        assert_eq!(gray(&[0.0, 17.0, 254.6]), [0, 17, 255]);
        assert_eq!(gray(&[0.0, 257.0, 65_535.0]), [0, 1, 255]);
        assert_eq!(gray(&[-3.0, f32::NAN, f32::INFINITY, 1.0]), [0, 0, 255, 255]);
        let signed = of_floats(3, 1, &[0i32, 100, 255], 1).unwrap().image;
        assert_eq!(signed.pixels().map(|pixel| pixel.0[0]).collect::<Vec<_>>(), [0, 100, 255]);
    }
}
