//! Small images in every dress against Pillow's `Image.open(f).convert("RGB")`, pixel for pixel; but gray of 16 bits, which
//! Pillow clips at 255, against the upper 8 of the 12 bits that these fixtures use.
//!
//! `fixtures/decode/NAME` was written by Pillow 13 (libjpeg-turbo 3.2) from a synthetic picture of 37 × 29 pixels,
//! or assembled by hand where Pillow does not write the variant; `NAME.expected.png` is what Pillow reads in it.

mod support;

use std::path::Path;

use datasets::{
    DecodeError, DecodeOptions, Decoded, Limits, OrientationPolicy, decode,
    decode::{ColorModel, Exif, Format, decode_region},
    probe,
    transforms::Rect,
};
use image::{DynamicImage, RgbImage, imageops};

/// The pixels as stored, like Pillow's.
fn stored() -> DecodeOptions {
    DecodeOptions { orientation: OrientationPolicy::Ignore, ..DecodeOptions::default() }
}

/// Names and contents of the encoded files.
fn fixtures() -> Vec<(String, Vec<u8>)> {
    let files = support::decode_fixtures();
    assert_eq!(files.len(), 46, "all fixtures are there");
    files
}

fn fixture(name: &str) -> Vec<u8> {
    fixtures().into_iter().find(|(other, _)| other == name).expect("a fixture of this name").1
}

#[test]
fn every_variant_decodes_to_pillows_pixels() {
    for (name, bytes) in fixtures() {
        let expected = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/decode/{name}.expected.png"));
        let (expected, bits) = match image::load_from_memory(&bytes) {
            Ok(DynamicImage::ImageLuma16(gray)) => {
                let byte = |x, y| (gray.get_pixel(x, y).0[0] >> 4) as u8;
                (RgbImage::from_fn(37, 29, |x, y| image::Rgb([byte(x, y); 3])), Some(12))
            }
            _ => (image::open(expected).unwrap().into_rgb8(), None),
        };
        let Decoded { image: decoded, damage, used_bits } =
            decode(&bytes, &stored()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((decoded.dimensions(), damage, used_bits), ((37, 29), None, bits), "{name}");
        let different = decoded.as_raw().iter().zip(expected.as_raw()).filter(|(a, b)| a != b).count();
        assert_eq!(different, 0, "{name}: {different} values differ");
    }
}

#[test]
fn the_header_tells_what_the_content_is() {
    for (name, bytes) in fixtures() {
        let header = probe(&bytes).unwrap();
        let extension = name.rsplit('.').next().unwrap();
        assert!(header.format.extensions().contains(&extension), "{name} is {}", header.format);
        assert_eq!((header.width, header.height), (37, 29), "{name}");
        assert_eq!(header.progressive, name.contains("progressive"), "{name}");
    }
    let color = |name: &str| probe(&fixture(name)).map(|header| (header.color, header.bits)).unwrap();
    assert_eq!(color("gray.jpg"), (ColorModel::Gray, 8));
    assert_eq!(color("cmyk.jpg"), (ColorModel::Cmyk, 8));
    assert_eq!(color("palette.png").0, ColorModel::Palette);
    assert_eq!(color("rgba16.png"), (ColorModel::Rgba, 16));
    assert_eq!(color("gray16.tiff"), (ColorModel::Gray, 16));
    assert_eq!(probe(&fixture("exif_rotated.jpg")).unwrap().exif, Exif::Orientation(6));
    assert_eq!(probe(&fixture("exif_broken.jpg")).unwrap().exif, Exif::Broken);
    assert_eq!(probe(&fixture("baseline_420.jpg")).unwrap().exif, Exif::Absent);
}

#[test]
fn a_region_at_full_scale_is_a_crop_of_the_whole() {
    for (name, bytes) in fixtures() {
        let whole = decode(&bytes, &stored()).unwrap().image;
        for (left, top, width, height) in
            [(0, 0, 37, 29), (0, 0, 1, 1), (36, 28, 1, 1), (7, 3, 11, 17), (16, 16, 16, 13), (15, 1, 2, 28)]
        {
            let crop = Rect { left, top, width, height };
            let region = decode_region(&bytes, crop, (224, 224), &stored()).unwrap();
            let expected = imageops::crop_imm(&whole, left, top, width, height).to_image();
            assert_eq!(region.image, expected, "{name} {crop:?}");
            assert_eq!((region.left, region.top), (0.0, 0.0));
        }
    }
}

#[test]
fn a_region_at_a_smaller_scale_is_close_to_the_shrunk_whole() {
    for name in ["444", "422", "420", "411", "progressive", "gray"] {
        let name = &format!("smooth_{name}.jpg");
        let bytes = fixture(name);
        let whole = decode(&bytes, &stored()).unwrap().image;
        for (shrink, target) in [(2, (18, 14)), (4, (9, 7)), (8, (4, 3))] {
            let crop = Rect { left: 0, top: 0, width: 37, height: 29 };
            let region = decode_region(&bytes, crop, target, &DecodeOptions::default()).unwrap();
            assert_eq!(region.image.dimensions(), (37u32.div_ceil(shrink), 29u32.div_ceil(shrink)), "{name}");
            assert_eq!((region.width, region.height), (37.0 / f64::from(shrink), 29.0 / f64::from(shrink)));
            // The mean of each complete block of pixels.
            let mut sum = 0.0;
            let (columns, rows) = (37 / shrink, 29 / shrink);
            for (x, y) in (0..columns).flat_map(|x| (0..rows).map(move |y| (x, y))) {
                for channel in 0..3 {
                    let block = imageops::crop_imm(&whole, x * shrink, y * shrink, shrink, shrink).to_image();
                    let mean = block.pixels().map(|p| f64::from(p[channel])).sum::<f64>() / f64::from(shrink * shrink);
                    sum += (mean - f64::from(region.image.get_pixel(x, y)[channel])).abs();
                }
            }
            let mean = sum / f64::from(columns * rows * 3);
            // Cutting frequencies off overshoots a ramp: by a seventh of it at 1/4. Color that is subsampled along
            // rows alone stays so at every scale, and this picture's colors change fast.
            let most = if name.contains("422") || name.contains("411") { 12.0 } else { 4.0 };
            assert!(mean < most, "{name} at 1/{shrink}: {mean} gray levels from the mean on average");
        }
    }
}

#[test]
fn an_impossible_region_is_an_error() {
    let bytes = fixture("baseline_420.jpg");
    for (left, top, width, height) in [(0, 0, 38, 29), (30, 0, 8, 1), (0, 0, 0, 1), (u32::MAX, 0, 2, 1)] {
        let crop = Rect { left, top, width, height };
        assert!(decode_region(&bytes, crop, (8, 8), &DecodeOptions::default()).is_err(), "{crop:?}");
    }
}

#[test]
fn limits_are_checked_on_the_header() {
    for (name, bytes) in fixtures() {
        let pixels = Limits { max_pixels: 37 * 29 - 1, ..Limits::default() };
        let error = decode(&bytes, &pixels.into()).unwrap_err();
        assert_eq!(error, DecodeError::TooManyPixels { width: 37, height: 29, max_pixels: 1072 }, "{name}");
        let memory = Limits { max_bytes: 37 * 29 * 3, ..Limits::default() };
        assert!(matches!(decode(&bytes, &memory.into()), Err(DecodeError::TooManyBytes { .. })), "{name}");
    }
}

#[test]
fn a_bomb_is_an_error_before_it_is_an_allocation() {
    // The header of a small JPEG, its size raised to 65,535 × 65,535.
    let mut bytes = fixture("progressive_420.jpg");
    let frame = bytes.windows(2).position(|pair| pair == [0xff, 0xc2]).unwrap();
    bytes[frame + 5..frame + 9].fill(0xff);
    assert!(matches!(decode(&bytes, &DecodeOptions::default()), Err(DecodeError::TooManyPixels { .. })));
    let mut bytes = fixture("rgb.png");
    bytes[16..24].fill(0x7f);
    assert!(matches!(decode(&bytes, &DecodeOptions::default()), Err(DecodeError::TooManyPixels { .. })));
}

#[test]
fn what_is_no_image_says_so() {
    let error = decode(b"<html>404</html>", &DecodeOptions::default()).unwrap_err();
    assert!(matches!(&error, DecodeError::UnknownFormat { start } if start == b"<html>40"), "{error}");
    assert!(matches!(decode(&[], &DecodeOptions::default()), Err(DecodeError::UnknownFormat { .. })));
    assert_eq!(Format::of(&fixture("lossy.webp")).unwrap(), Format::WebP);
}
