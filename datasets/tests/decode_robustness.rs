//! Thousands of mutations of each fixture: the result is an image within the limits or an error, without a panic and in
//! bounded time.

mod support;

use datasets::{
    DecodeOptions, Decoded, Limits, SampleRng, decode,
    decode::decode_region,
    probe,
    transforms::{Pipeline, Rect},
};

/// Small limits: an accepted image stays small, however its size was changed.
const LIMITS: Limits = Limits { max_pixels: 1 << 16, max_bytes: 1 << 22 };

fn options() -> DecodeOptions {
    LIMITS.into()
}

/// All entry points of the decoder. A panic fails the test; our decoder must not even rely on the net that catches
/// third-party panics.
fn try_all(name: &str, bytes: &[u8], rng: &mut SampleRng) {
    let header = probe(bytes);
    let decoded = decode(bytes, &options());
    if let Ok(Decoded { image, .. }) = &decoded {
        assert!(u64::from(image.width()) * u64::from(image.height()) <= LIMITS.max_pixels, "{name}");
    }
    let ours = name.ends_with(".jpg");
    let part = Rect {
        left: rng.below(40) as u32,
        top: rng.below(40) as u32,
        width: rng.below(40) as u32,
        height: rng.below(40) as u32,
    };
    let target = (1 + rng.below(20) as u32, 1 + rng.below(20) as u32);
    let region = decode_region(bytes, part, target, &options());
    let piped = Pipeline::train(16).decode_and_apply(bytes, rng, &options());
    let errors = [header.err(), decoded.err(), region.err(), piped.err()];
    for error in errors.into_iter().flatten() {
        assert!(!(ours && error.to_string().contains("panicked")), "{name}: {error}");
    }
}

#[test]
fn mutated_images_are_images_or_errors() {
    for (file, (name, original)) in support::decode_fixtures().into_iter().enumerate() {
        let rounds = if name.ends_with(".jpg") { 600 } else { 100 };
        for round in 0..rounds {
            let mut rng = SampleRng::new(20, file as u64, round);
            let mut bytes = original.clone();
            for _ in 0..=rng.below(6) {
                let at = rng.below(bytes.len() as u64) as usize;
                match rng.below(6) {
                    0 => bytes[at] = rng.below(256) as u8,
                    1 => bytes[at] ^= 1 << rng.below(8),
                    2 => bytes[at] = [0x00, 0xff, 0x7f, 0x80][rng.below(4) as usize],
                    3 => drop(bytes.remove(at)),
                    4 => bytes.insert(at, rng.below(256) as u8),
                    _ => {
                        let end = (at + 1 + rng.below(40) as usize).min(bytes.len());
                        let piece = bytes[at..end].to_vec();
                        let to = rng.below(bytes.len() as u64) as usize;
                        bytes.splice(to..to, piece);
                    }
                }
                if bytes.is_empty() {
                    break;
                }
            }
            try_all(&name, &bytes, &mut rng);
        }
    }
}

#[test]
fn truncated_images_are_errors_or_images_everywhere() {
    for (name, original) in support::decode_fixtures() {
        let step = if name.ends_with(".jpg") { 1 } else { 1 + original.len() / 60 };
        for length in (0..original.len()).step_by(step) {
            try_all(&name, &original[..length], &mut SampleRng::new(21, 0, length as u64));
        }
    }
}

#[test]
fn a_jpeg_cut_in_its_pixels_is_an_error() {
    for (name, original) in support::decode_fixtures() {
        if name.ends_with(".jpg") {
            let half = original.len() - (original.len() - original.len() / 2) / 2;
            let error = decode(&original[..half], &DecodeOptions::default()).map(|_| &name).expect_err("cut");
            assert!(error.to_string().contains("ends"), "{name}: {error}");
        }
    }
}

#[test]
fn a_tall_size_with_little_data_is_damage() {
    // 1 × 65,535 and 65,535 × 1 pixels of which nearly nothing is coded: libjpeg leaves the rest gray.
    for (name, original) in support::decode_fixtures().into_iter().filter(|(name, _)| name.ends_with("420.jpg")) {
        let frame = original.windows(2).position(|pair| matches!(pair, [0xff, 0xc0 | 0xc2])).unwrap();
        for size in [[0xff, 0xff, 0, 1], [0, 1, 0xff, 0xff]] {
            let mut bytes = original.clone();
            bytes[frame + 5..frame + 9].copy_from_slice(&size);
            let decoded = decode(&bytes, &DecodeOptions::default()).unwrap();
            assert!(decoded.damage.unwrap().cause.contains("ends early"), "{name}");
            let gray = decoded.image.pixels().filter(|pixel| pixel.0 == [128; 3]).count();
            assert!(gray > 60_000, "{name}: {gray} pixels are gray");
        }
    }
}
