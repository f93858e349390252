//! The orientation in metadata: every format and every value shows the same upright picture, whole and in parts.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Cursor;

use datasets::{
    DecodeOptions, OrientationPolicy, SampleRng, decode,
    decode::{Exif, decode_region},
    probe,
    transforms::{Interpolation, Pipeline, RandomHorizontalFlip, RandomResizedCrop, Rect, Transform},
};
use image::{DynamicImage, ImageFormat, RgbImage, imageops, metadata::Orientation};

fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x * 4) as u8, (y * 5) as u8, if x > width / 2 && y > height / 2 { 200 } else { 20 }])
    })
}

/// What must be stored so that `orientation` shows `upright`.
fn stored(upright: &RgbImage, orientation: u8) -> RgbImage {
    // Rotations by a quarter are each other's inverse; all other values are their own.
    let inverse = match orientation {
        6 => 8,
        8 => 6,
        other => other,
    };
    let mut image = DynamicImage::ImageRgb8(upright.clone());
    image.apply_orientation(Orientation::from_exif(inverse).unwrap());
    image.into_rgb8()
}

fn upright(image: &RgbImage, orientation: u8) -> RgbImage {
    let mut image = DynamicImage::ImageRgb8(image.clone());
    image.apply_orientation(Orientation::from_exif(orientation).unwrap());
    image.into_rgb8()
}

/// An EXIF block in big endian with the orientation as its second entry.
fn exif(orientation: u8) -> Vec<u8> {
    let mut block = b"MM\0*\0\0\0\x08\0\x02".to_vec();
    block.extend(b"\x01\x0f\0\x02\0\0\0\x04abc\0");
    block.extend(b"\x01\x12\0\x03\0\0\0\x01\0");
    block.push(orientation);
    block.extend([0; 6]);
    block
}

fn encoded(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn jpeg_with(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let block = [b"Exif\0\0", exif(orientation).as_slice()].concat();
    let length = (block.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &[0xff, 0xe1], &length, &block, &jpeg[2..]].concat()
}

fn jpeg(image: &RgbImage, orientation: u8) -> Vec<u8> {
    jpeg_with(&encoded(image, ImageFormat::Jpeg), orientation)
}

/// `late` puts the chunk behind the pixels.
fn png(image: &RgbImage, orientation: u8, late: bool) -> Vec<u8> {
    let bytes = encoded(image, ImageFormat::Png);
    let block = exif(orientation);
    let checksum = crc32fast::hash(&[b"eXIf", block.as_slice()].concat()).to_be_bytes();
    let chunk = [&(block.len() as u32).to_be_bytes(), b"eXIf", block.as_slice(), &checksum].concat();
    let at = if late { bytes.len() - 12 } else { 33 };
    [&bytes[..at], &chunk, &bytes[at..]].concat()
}

fn webp(image: &RgbImage, orientation: u8) -> Vec<u8> {
    let simple = encoded(image, ImageFormat::WebP);
    let chunk = |name: &[u8; 4], data: &[u8]| {
        let mut chunk = [name, (data.len() as u32).to_le_bytes().as_slice(), data].concat();
        chunk.resize(chunk.len().next_multiple_of(2), 0);
        chunk
    };
    let [w, h] = [image.width() - 1, image.height() - 1].map(u32::to_le_bytes);
    let header = [&[0x08, 0, 0, 0][..], &w[..3], &h[..3]].concat();
    let body = [&b"WEBP"[..], &chunk(b"VP8X", &header), &simple[12..], &chunk(b"EXIF", &exif(orientation))].concat();
    [&b"RIFF"[..], &(body.len() as u32).to_le_bytes(), &body].concat()
}

fn tiff(image: &RgbImage, orientation: u8) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let mut encoder = tiff::encoder::TiffEncoder::new(&mut bytes).unwrap();
    let mut directory = encoder.new_image::<tiff::encoder::colortype::RGB8>(image.width(), image.height()).unwrap();
    directory.encoder().write_tag(tiff::tags::Tag::Orientation, u16::from(orientation)).unwrap();
    directory.write_data(image.as_raw()).unwrap();
    bytes.into_inner()
}

#[test]
fn every_orientation_of_every_format_shows_the_upright_picture() {
    let picture = picture(40, 24);
    let ignore = DecodeOptions { orientation: OrientationPolicy::Ignore, ..DecodeOptions::default() };
    for orientation in 1..=8 {
        let stored = stored(&picture, orientation);
        let files = [
            ("JPEG", jpeg(&stored, orientation)),
            ("PNG", png(&stored, orientation, false)),
            ("PNG, late", png(&stored, orientation, true)),
            ("WebP", webp(&stored, orientation)),
            ("TIFF", tiff(&stored, orientation)),
        ];
        for (name, bytes) in files {
            let header = probe(&bytes).unwrap();
            assert_eq!(header.exif, Exif::Orientation(orientation.into()), "{name}");
            assert_eq!((header.width, header.height), stored.dimensions());
            assert_eq!(header.oriented_size(OrientationPolicy::Apply), (40, 24));
            let [shown, raw] =
                [&DecodeOptions::default(), &ignore].map(|options| decode(&bytes, options).unwrap().image);
            assert_eq!(raw.dimensions(), stored.dimensions());
            assert_eq!(shown, upright(&raw, orientation), "{name}, orientation {orientation}");
            if name == "JPEG" {
                let difference = shown.as_raw().iter().zip(picture.as_raw()).map(|(a, b)| u64::from(a.abs_diff(*b)));
                assert!(difference.sum::<u64>() < 8 * 40 * 24 * 3, "orientation {orientation}");
            } else {
                assert_eq!((&shown, &raw), (&picture, &stored), "{name}, orientation {orientation}");
            }
        }
    }
}

#[test]
fn a_part_of_an_oriented_jpeg_is_a_part_of_the_upright_image() {
    let fixtures = support::decode_fixtures();
    let named = |name: &str| fixtures.iter().find(|(other, _)| other == name).unwrap().1.clone();
    let options = DecodeOptions::default();
    for name in ["baseline_444.jpg", "baseline_420.jpg", "baseline_422.jpg", "progressive_420.jpg", "restarts.jpg"] {
        for orientation in 1..=8 {
            let bytes = jpeg_with(&named(name), orientation);
            let whole = decode(&bytes, &options).unwrap().image;
            let (width, height) = whole.dimensions();
            for (left, top, right, bottom) in
                [(0, 0, width, height), (0, 0, 1, 1), (3, 7, 20, 23), (width - 2, 1, width, 9), (8, 8, 16, 16)]
            {
                let crop = Rect { left, top, width: right - left, height: bottom - top };
                let region = decode_region(&bytes, crop, (224, 224), &options).unwrap();
                let expected = imageops::crop_imm(&whole, left, top, crop.width, crop.height).to_image();
                assert_eq!(region.image, expected, "{name}, orientation {orientation}, {crop:?}");
                assert_eq!((region.left, region.top), (0.0, 0.0));
            }
        }
    }
}

#[test]
fn a_part_at_a_smaller_scale_turns_with_its_fractions() {
    // Stored at 1/2: the blocks do not depend on the orientation, so the upright part is the stored one turned.
    let bytes = encoded(&picture(64, 48), ImageFormat::Jpeg);
    for orientation in 1..=8 {
        let oriented = jpeg_with(&bytes, orientation);
        let (width, height) = probe(&oriented).unwrap().oriented_size(OrientationPolicy::Apply);
        let crop = Rect { left: 5, top: 3, width: width - 12, height: height - 9 };
        let region = decode_region(&oriented, crop, (16, 16), &DecodeOptions::default()).unwrap();
        assert_eq!((region.width, region.height), (f64::from(crop.width) / 2.0, f64::from(crop.height) / 2.0));
        // The full image at 1/2, upright; the region begins in it at half the crop's corner.
        let all = Rect { left: 0, top: 0, width, height };
        let half = decode_region(&oriented, all, (16, 16), &DecodeOptions::default()).unwrap().image;
        let [left, top] = [f64::from(crop.left) / 2.0 - region.left, f64::from(crop.top) / 2.0 - region.top];
        assert_eq!((left.fract(), top.fract()), (0.0, 0.0), "orientation {orientation}");
        let (width, height) = region.image.dimensions();
        let expected = imageops::crop_imm(&half, left as u32, top as u32, width, height).to_image();
        assert_eq!(region.image, expected, "orientation {orientation}");
    }
}

#[test]
fn pipelines_see_the_upright_image() {
    let crop = RandomResizedCrop::new(24);
    let train = Pipeline::new(vec![
        Transform::RandomResizedCrop(crop),
        Transform::RandomHorizontalFlip(RandomHorizontalFlip { p: 0.5 }),
    ])
    .unwrap();
    let eval = Pipeline::eval(datasets::transforms::EvalTransform {
        resize: 20,
        rule: Default::default(),
        crop: 16,
        interpolation: Interpolation::Bilinear,
        antialias: true,
    });
    let picture = picture(30, 26);
    for orientation in 1..=8 {
        for bytes in
            [jpeg(&stored(&picture, orientation), orientation), png(&stored(&picture, orientation), orientation, false)]
        {
            let whole = decode(&bytes, &DecodeOptions::default()).unwrap().image;
            for pipeline in [&train, &eval] {
                for seed in 0..8 {
                    let rng = || SampleRng::new(seed, 0, 0);
                    let fused = pipeline.decode_and_apply(&bytes, &mut rng(), &DecodeOptions::default()).unwrap();
                    let apart = pipeline.apply(whole.clone(), &mut rng());
                    assert_eq!(fused.image, apart, "orientation {orientation}, seed {seed}");
                }
            }
        }
    }
}
