//! Damaged and hostile files: decoded as far as libjpeg and Pillow do, or refused with a cause, in bounded time.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::Cursor,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use datasets::{DecodeError, DecodeOptions, Decoded, decode, probe};
use image::{RgbImage, codecs::jpeg::JpegEncoder};

fn fixture(name: &str) -> Vec<u8> {
    support::decode_fixtures().into_iter().find(|(other, _)| other == name).expect("a fixture of this name").1
}

fn picture() -> RgbImage {
    RgbImage::from_fn(160, 96, |x, y| image::Rgb([(x + y) as u8, (x * 3 / 2) as u8, (y * 2 + x / 4) as u8]))
}

fn jpeg() -> Vec<u8> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 90).encode_image(&picture()).unwrap();
    bytes
}

fn decoded(bytes: &[u8]) -> Decoded {
    decode(bytes, &DecodeOptions::default()).unwrap()
}

/// Where the entropy-coded data of the first scan starts.
fn scan_data(jpeg: &[u8]) -> usize {
    let scan = jpeg.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap();
    scan + 2 + usize::from(u16::from_be_bytes([jpeg[scan + 2], jpeg[scan + 3]]))
}

/// The fraction of equal pixels.
fn equal(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    a.pixels().zip(b.pixels()).filter(|(a, b)| a == b).count() as f64 / f64::from(a.width() * a.height())
}

#[test]
fn a_premature_end_marker_leaves_the_rest_gray() {
    let good = jpeg();
    let whole = decoded(&good).image;
    let start = scan_data(&good);
    let end = start + (good.len() - 2 - start) / 2;
    let cut = [&good[..end], &[0xff, 0xd9]].concat();
    let Decoded { image, damage, .. } = decoded(&cut);
    assert!(damage.unwrap().cause.contains("ends early"));
    let same = equal(&image, &whole);
    assert!((0.3..0.7).contains(&same), "{same}");
    assert_eq!(image.get_pixel(159, 95).0, [128; 3]);
    // Without the marker the file is cut, which Pillow refuses too.
    assert!(matches!(decode(&good[..end], &DecodeOptions::default()), Err(DecodeError::Broken { .. })));
}

#[test]
fn a_frame_without_huffman_tables_uses_the_standard_ones() {
    // The encoder writes the standard tables.
    let good = jpeg();
    let mut frame = good[..2].to_vec();
    let mut at = 2;
    while good[at + 1] != 0xda {
        let length = 2 + usize::from(u16::from_be_bytes([good[at + 2], good[at + 3]]));
        if good[at + 1] != 0xc4 {
            frame.extend(&good[at..at + length]);
        }
        at += length;
    }
    frame.extend(&good[at..]);
    assert!(frame.len() < good.len());
    let Decoded { image, damage, .. } = decoded(&frame);
    assert!(damage.unwrap().cause.contains("Huffman"));
    assert_eq!(image, decoded(&good).image);
}

#[test]
fn lost_restart_markers_cost_their_intervals_alone() {
    for name in ["restarts.jpg", "restarts_progressive.jpg"] {
        let good = fixture(name);
        let whole = decoded(&good).image;
        let start = scan_data(&good);
        let markers: Vec<usize> =
            (start..good.len() - 1).filter(|&at| good[at] == 0xff && (0xd0..=0xd7).contains(&good[at + 1])).collect();
        assert!(markers.len() > 1, "{name} has {} markers", markers.len());
        for &at in &markers {
            let lost = [&good[..at], &good[at + 2..]].concat();
            let Decoded { image, damage, .. } = decoded(&lost);
            assert!(damage.is_some(), "{name}, marker at {at}");
            let same = equal(&image, &whole);
            assert!(same > 0.25, "{name}, marker at {at}: {same} of the pixels are right");
        }
    }
}

#[test]
fn a_zeroed_sector_spoils_what_it_holds() {
    let good = jpeg();
    let whole = decoded(&good).image;
    let start = scan_data(&good);
    let middle = start + (good.len() - start) / 2;
    let mut zeroed = good.clone();
    zeroed[middle..middle + 64].fill(0);
    let Decoded { image, .. } = decoded(&zeroed);
    let above = |image: &RgbImage| image::imageops::crop_imm(image, 0, 0, 160, 32).to_image();
    assert_eq!(above(&image), above(&whole));
}

#[test]
fn scans_without_end_are_refused_before_they_are_decoded() {
    let good = fixture("progressive_444.jpg");
    // The first scan of AC coefficients, repeated.
    let scans: Vec<usize> = (0..good.len() - 1).filter(|&at| good[at..at + 2] == [0xff, 0xda]).collect();
    let scan = scans[1]..scans[2];
    for (side, repeats) in [(4096u16, 900), (8192, 400)] {
        let mut bytes = good[..scan.end].to_vec();
        (0..repeats).for_each(|_| bytes.extend(&good[scan.clone()]));
        bytes.extend([0xff, 0xd9]);
        let frame = bytes.windows(2).position(|pair| pair == [0xff, 0xc2]).unwrap();
        bytes[frame + 5..frame + 7].copy_from_slice(&side.to_be_bytes());
        bytes[frame + 7..frame + 9].copy_from_slice(&side.to_be_bytes());
        let began = Instant::now();
        let error = decode(&bytes, &DecodeOptions::default()).unwrap_err();
        assert!(matches!(error, DecodeError::TooMuchWork { .. }), "{error}");
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }
}

#[test]
fn decoding_is_cancelled() {
    let options = DecodeOptions { cancel: Some(Arc::new(AtomicBool::new(true))), ..DecodeOptions::default() };
    for (name, bytes) in support::decode_fixtures() {
        assert_eq!(decode(&bytes, &options), Err(DecodeError::Cancelled), "{name}");
    }
}

#[test]
fn what_cannot_be_read_is_named_with_a_way_out() {
    let error = |bytes: &[u8]| decode(bytes, &DecodeOptions::default()).unwrap_err().to_string();
    let avif = error(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1");
    assert!(avif.contains("AVIF") && avif.contains("convert"), "{avif}");
    for heic in [&b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"[..], b"\0\0\0\x18ftypmif1\0\0\0\0heic"] {
        assert!(error(heic).contains("HEIC"), "{}", error(heic));
    }
    let mut arithmetic = jpeg();
    let frame = arithmetic.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    arithmetic[frame + 1] = 0xc9;
    let arithmetic = error(&arithmetic);
    assert!(arithmetic.contains("arithmetic") && arithmetic.contains("jpegtran"), "{arithmetic}");
    // A photograph of 300 megapixels: the flag that lets it in is named.
    let mut huge = fixture("rgb.png");
    huge[16..24].copy_from_slice(&[0, 0, 0x4e, 0x20, 0, 0, 0x3a, 0x98]);
    assert!(error(&huge).contains("--max-pixels"), "{}", error(&huge));
}

#[test]
fn portable_maps_are_images() {
    let pixels = b"P6\n# a comment\n2 1\n255\n\x01\x02\x03\xff\xfe\xfd";
    assert_eq!(decoded(pixels).image.as_raw().as_slice(), [1, 2, 3, 255, 254, 253]);
    assert_eq!(decoded(b"P2\n2 1\n255\n7 9\n").image.as_raw().as_slice(), [7, 7, 7, 9, 9, 9]);
    assert_eq!(decoded(b"P5\n2 1\n65535\n\x12\x34\xff\xff").image.as_raw().as_slice(), [18, 18, 18, 255, 255, 255]);
    assert!(decode(b"P6\n99999 99999\n255\nabc", &DecodeOptions::default()).is_err());
}

mod tiffs {
    use tiff::{
        encoder::{Compression, TiffEncoder, TiffKind, colortype::*},
        tags::Tag,
    };

    use super::*;

    fn written<K: TiffKind>(write: impl FnOnce(&mut TiffEncoder<&mut Cursor<Vec<u8>>, K>)) -> Vec<u8>
    where
        for<'a> TiffEncoder<&'a mut Cursor<Vec<u8>>, K>: Open<'a>,
    {
        let mut bytes = Cursor::new(Vec::new());
        write(&mut Open::open(&mut bytes));
        bytes.into_inner()
    }

    trait Open<'a> {
        fn open(bytes: &'a mut Cursor<Vec<u8>>) -> Self;
    }

    impl<'a> Open<'a> for TiffEncoder<&'a mut Cursor<Vec<u8>>, tiff::encoder::TiffKindStandard> {
        fn open(bytes: &'a mut Cursor<Vec<u8>>) -> Self {
            Self::new(bytes).unwrap()
        }
    }

    impl<'a> Open<'a> for TiffEncoder<&'a mut Cursor<Vec<u8>>, tiff::encoder::TiffKindBig> {
        fn open(bytes: &'a mut Cursor<Vec<u8>>) -> Self {
            Self::new_big(bytes).unwrap()
        }
    }

    type Small = tiff::encoder::TiffKindStandard;
    type Big = tiff::encoder::TiffKindBig;

    #[test]
    fn palettes_are_looked_up() {
        // Red, green and blue rise with the index in different steps; the map has 16 bits or, wrongly, 8.
        for factor in [257u16, 1] {
            let map: Vec<u16> =
                [1, 2, 3].iter().flat_map(|step| (0..256).map(move |i| (i * step % 256) * factor)).collect();
            let indices: Vec<u8> = (0..12).map(|i| i * 20).collect();
            let bytes = written::<Small>(|encoder| {
                let mut image = encoder.new_image::<Gray8>(4, 3).unwrap();
                image.encoder().write_tag(Tag::PhotometricInterpretation, 3u16).unwrap();
                image.encoder().write_tag(Tag::ColorMap, map.as_slice()).unwrap();
                image.write_data(&indices).unwrap();
            });
            assert_eq!(probe(&bytes).unwrap().color, datasets::decode::ColorModel::Palette);
            let expected: Vec<u8> =
                indices.iter().flat_map(|&i| [1u16, 2, 3].map(|s| (u16::from(i) * s % 256) as u8)).collect();
            assert_eq!(decoded(&bytes).image.as_raw(), &expected);
        }
    }

    #[test]
    fn wide_samples_are_scaled() {
        let gray = |bytes: &[u8]| decoded(bytes).image.pixels().map(|pixel| pixel.0[0]).collect::<Vec<_>>();
        let floats = written::<Small>(|encoder| encoder.write_image::<Gray32Float>(3, 1, &[0.0, 0.5, 1.0]).unwrap());
        assert_eq!(gray(&floats), [0, 128, 255]);
        let doubles = written::<Small>(|encoder| encoder.write_image::<Gray64Float>(2, 1, &[10.0, 200.0]).unwrap());
        assert_eq!(gray(&doubles), [10, 200]);
        let words = written::<Small>(|encoder| encoder.write_image::<Gray16>(2, 1, &[0x1234, 0xffff]).unwrap());
        assert_eq!(gray(&words), [0x12, 0xff]);
        let rgb = written::<Small>(|encoder| encoder.write_image::<RGB16>(1, 1, &[0x100, 0x2000, 0xfffe]).unwrap());
        assert_eq!(decoded(&rgb).image.as_raw().as_slice(), [1, 32, 255]);
        let rgb = written::<Small>(|encoder| encoder.write_image::<RGB32Float>(1, 1, &[0.0, 0.2, 1.0]).unwrap());
        assert_eq!(decoded(&rgb).image.as_raw().as_slice(), [0, 51, 255]);
        let signed = written::<Small>(|encoder| encoder.write_image::<GrayI32>(2, 1, &[-5, 77]).unwrap());
        assert_eq!(gray(&signed), [0, 77]);
    }

    #[test]
    fn big_files_compression_and_other_colors_are_read() {
        let picture = picture();
        let big = written::<Big>(|encoder| {
            encoder.write_image::<RGB8>(picture.width(), picture.height(), picture.as_raw()).unwrap();
        });
        assert_eq!(decoded(&big).image, picture);
        for compression in [Compression::Lzw, Compression::Deflate(Default::default()), Compression::Packbits] {
            let mut bytes = Cursor::new(Vec::new());
            let mut encoder = TiffEncoder::new(&mut bytes).unwrap().with_compression(compression);
            encoder.write_image::<RGB8>(picture.width(), picture.height(), picture.as_raw()).unwrap();
            assert_eq!(decoded(bytes.get_ref()).image, picture);
        }
        // White in YCbCr, without subsampling.
        let ycc = written::<Small>(|encoder| {
            let mut image = encoder.new_image::<YCbCr8>(2, 1).unwrap();
            image.encoder().write_tag(Tag::ChromaSubsampling, &[1u16, 1][..]).unwrap();
            image.write_data(&[255, 128, 128, 76, 85, 255]).unwrap();
        });
        assert_eq!(decoded(&ycc).image.as_raw().as_slice(), [255, 255, 255, 254, 0, 0]);
    }
}

#[test]
fn strict_loaders_refuse_damage_and_others_count_it() {
    use datasets::{BadSamples, ImageLoader, PipelinePreprocess, Split, open, transforms::Pipeline};
    let folder = tempfile::tempdir().unwrap();
    let good = jpeg();
    let end = scan_data(&good) + 400;
    for (class, bytes) in [("cat", good.clone()), ("dog", [&good[..end], &[0xff, 0xd9]].concat())] {
        std::fs::create_dir_all(folder.path().join("train").join(class)).unwrap();
        std::fs::write(folder.path().join("train").join(class).join("a.jpg"), bytes).unwrap();
    }
    let loader = |policy: BadSamples| {
        let options = datasets::OpenOptions::split(Split::Train);
        let source = open(folder.path().to_str().unwrap(), &options).unwrap().source;
        let preprocess = PipelinePreprocess::new(Pipeline::train(16), DecodeOptions::default()).unwrap();
        ImageLoader::builder(source, Arc::new(preprocess)).bad_samples(policy).build().unwrap()
    };
    for policy in [BadSamples::Warn, BadSamples::Skip, BadSamples::Substitute] {
        let loader = loader(policy);
        let images: usize = loader.batches().map(|batch| batch.unwrap().len()).sum();
        assert_eq!((images, loader.bad_samples().len()), (2, 0), "{policy:?}");
        let damaged = loader.damaged_samples();
        assert!(damaged.len() == 1 && damaged[0].cause.contains("ends early"), "{damaged:?}");
        assert_eq!(loader.meters().damaged, 1);
    }
    let strict = loader(BadSamples::Strict);
    let error = strict.batches().find_map(Result::err).unwrap().to_string();
    assert!(error.contains("dog") && error.contains("ends early"), "{error}");
}
