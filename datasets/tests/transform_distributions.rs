//! The random transforms against their definitions: ranges, moments and χ² with fixed seeds.

use datasets::{
    DecodeOptions, SampleRng,
    transforms::{
        AugMix, CenterCrop, ColorJitter, Erased, EvalTransform, FiveCrop, Interpolation, Lighting, Pipeline,
        RandAugment, RandomCrop, RandomErasing, RandomHorizontalFlip, RandomResizedCrop, RandomShorterSide, Rect,
        Resize, ResizeRule, TenCrop, Transform, TrivialAugmentWide,
        batch::{BatchTransform, BatchTransforms, CutMix, Mixup, one_hot},
    },
};
use image::{Rgb, RgbImage};

/// An image in which every pixel encodes its position.
fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, y as u8, (x * 7 + y * 13) as u8]))
}

fn rng(index: u64) -> SampleRng {
    SampleRng::new(3, 0, index)
}

/// Returns χ² of counts against a uniform distribution.
fn chi2(counts: &[u32]) -> f64 {
    let expected = f64::from(counts.iter().sum::<u32>()) / counts.len() as f64;
    counts.iter().map(|&count| (f64::from(count) - expected).powi(2) / expected).sum()
}

#[test]
fn random_resized_crops_have_the_area_and_ratio_of_their_definition() {
    let crop = RandomResizedCrop::new(224);
    let (mut areas, mut logs) = (Vec::new(), Vec::new());
    for index in 0..20_000 {
        // Large, so that rounding and rejected draws hardly matter: of a square, crops of more than 3/4 may not fit.
        let Rect { left, top, width, height } = crop.draw(4000, 4000, &mut rng(index));
        assert!(left + width <= 4000 && top + height <= 4000);
        let (area, ratio) = (f64::from(width * height) / 16e6, f64::from(width) / f64::from(height));
        assert!((0.0799..=1.0001).contains(&area) && (0.749..=1.335).contains(&ratio), "{area} {ratio}");
        if area < 0.75 {
            areas.push(area);
            logs.push(ratio.ln());
        }
    }
    // Below 3/4 every ratio fits, so both are uniform there: the area in [0.08, 0.75], the logarithm of the ratio.
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let variance = |values: &[f64], m: f64| mean(&values.iter().map(|v| (v - m).powi(2)).collect::<Vec<_>>());
    assert!((mean(&areas) - 0.415).abs() < 0.006, "{}", mean(&areas));
    assert!((variance(&areas, mean(&areas)) - 0.67f64.powi(2) / 12.0).abs() < 0.001);
    let width = 2.0 * (4.0f64 / 3.0).ln();
    assert!(mean(&logs).abs() < 0.005 && (variance(&logs, 0.0) - width.powi(2) / 12.0).abs() < 0.001);
}

#[test]
fn a_crop_that_never_fits_is_the_largest_central_one() {
    let crop = RandomResizedCrop { scale: [1.0, 1.0], ..RandomResizedCrop::new(8) };
    let wide = Rect { left: 267, top: 0, width: 133, height: 100 };
    let wide = Rect { left: (667 - wide.width) / 2, ..wide };
    assert_eq!(crop.draw(667, 100, &mut rng(0)), wide);
    assert_eq!(crop.draw(90, 900, &mut rng(0)), Rect { left: 0, top: 390, width: 90, height: 120 });
    assert_eq!(crop.draw(1, 1, &mut rng(0)), Rect { left: 0, top: 0, width: 1, height: 1 });
}

#[test]
fn random_crops_are_uniform_and_padded() {
    let image = picture(10, 9);
    let mut counts = [0; 12];
    for index in 0..12_000 {
        let crop = RandomCrop { size: 7, padding: 0 }.apply(&image, &mut rng(index));
        let Rgb([x, y, _]) = *crop.get_pixel(0, 0);
        counts[usize::from(y * 4 + x)] += 1;
    }
    assert!(chi2(&counts) < 31.3, "χ² of 11 degrees of freedom: p < 0.001");
    let padded = RandomCrop { size: 13, padding: 1 };
    for index in 0..50 {
        let crop = padded.apply(&image, &mut rng(index));
        let black = crop.pixels().filter(|pixel| pixel.0 == [0; 3]).count();
        assert!(crop.dimensions() == (13, 13) && black >= 13 * 13 - 90, "{black}");
    }
}

#[test]
fn flips_happen_with_their_probability() {
    let image = picture(3, 1);
    for p in [0.0, 0.25, 1.0] {
        let flips = (0..4000).filter(|&index| {
            let mut flipped = image.clone();
            RandomHorizontalFlip { p }.apply(&mut flipped, &mut rng(index));
            assert!(flipped == image || flipped.get_pixel(0, 0) == image.get_pixel(2, 0));
            flipped != image
        });
        assert!((flips.count() as f64 / 4000.0 - p).abs() < 0.03, "{p}");
    }
}

#[test]
fn scale_jitter_draws_every_size() {
    let jitter = RandomShorterSide { min: 4, max: 8, interpolation: Interpolation::Bilinear };
    let mut counts = [0; 5];
    for index in 0..2000 {
        let resized = jitter.apply(&picture(12, 6), &mut rng(index));
        assert_eq!(resized.width(), 2 * resized.height());
        counts[resized.height() as usize - 4] += 1;
    }
    assert!(chi2(&counts) < 18.5, "χ² of 4 degrees of freedom: p < 0.001");
}

#[test]
fn five_and_ten_crops_are_where_they_should_be() {
    let image = picture(11, 9);
    let corners = FiveCrop { size: 4 }.apply(&image).map(|crop| {
        let Rgb([x, y, _]) = *crop.get_pixel(0, 0);
        (x, y)
    });
    // The center: (11 − 4) / 2 = 3.5 and (9 − 4) / 2 = 2.5 round to the even 4 and 2.
    assert_eq!(corners, [(0, 0), (7, 0), (0, 5), (7, 5), (4, 2)]);
    let ten = TenCrop { size: 4, vertical_flip: false }.apply(&image);
    assert_eq!(ten[..5], FiveCrop { size: 4 }.apply(&image));
    assert_eq!(ten[5].get_pixel(0, 0), image.get_pixel(10, 0));
    let upside_down = TenCrop { size: 4, vertical_flip: true }.apply(&image);
    assert_eq!(upside_down[5].get_pixel(0, 0), image.get_pixel(0, 8));
    assert_eq!(CenterCrop { size: 13 }.apply(&image).get_pixel(1, 2), image.get_pixel(0, 0));
}

#[test]
fn color_jitter_stays_in_its_range_and_leaves_zeros_alone() {
    let gray = RgbImage::from_pixel(2, 2, Rgb([100; 3]));
    let mut seen = Vec::new();
    for index in 0..4000 {
        let mut image = gray.clone();
        ColorJitter { brightness: 0.4, ..ColorJitter::default() }.apply(&mut image, &mut rng(index));
        seen.push(f64::from(image.get_pixel(0, 0)[0]));
    }
    let mean = seen.iter().sum::<f64>() / 4000.0;
    assert!(seen.iter().all(|value| (60.0..=140.0).contains(value)));
    // Truncation takes half a gray level.
    assert!((mean - 99.5).abs() < 1.5, "{mean}");
    let mut image = picture(5, 5);
    ColorJitter::default().apply(&mut image, &mut rng(0));
    assert_eq!(image, picture(5, 5));
}

#[test]
fn lighting_has_the_covariance_of_its_components() {
    let mut shifts = Vec::new();
    for index in 0..20_000 {
        let mut image = RgbImage::from_pixel(1, 1, Rgb([128; 3]));
        Lighting { std: 0.1 }.apply(&mut image, &mut rng(index));
        shifts.push(image.get_pixel(0, 0).0.map(|value| f64::from(value) - 128.0));
    }
    let mean = |f: &dyn Fn(&[f64; 3]) -> f64| shifts.iter().map(f).sum::<f64>() / shifts.len() as f64;
    assert!(mean(&|s| s[0]).abs() < 0.1);
    // Var(R) = Σ (v · λ · 25.5)², and 1/12 of rounding.
    let part = |v: f64, l: f64| (v * l * 25.5).powi(2);
    let expected = part(-0.5675, 0.2175) + part(0.7192, 0.0188) + part(0.4009, 0.0045) + 1.0 / 12.0;
    let variance = mean(&|s| s[0] * s[0]);
    assert!((variance / expected - 1.0).abs() < 0.04, "{variance} of {expected}");
    // Mostly brightness: the channels move together.
    assert!(mean(&|s| s[0] * s[2]) / variance > 0.95);
}

#[test]
fn erasing_has_the_area_of_its_definition() {
    let white = RgbImage::from_pixel(100, 100, Rgb([255; 3]));
    let (mut erased, mut areas) = (0, Vec::new());
    for index in 0..4000 {
        let mut image = white.clone();
        let erasing = RandomErasing { value: Erased::Rgb([0; 3]), ..RandomErasing::default() };
        erasing.apply(&mut image, &mut rng(index));
        let area = image.pixels().filter(|pixel| pixel[0] == 0).count() as f64 / 1e4;
        if area > 0.0 {
            erased += 1;
            areas.push(area);
            assert!((0.015..=0.34).contains(&area), "{area}");
        }
    }
    assert!((f64::from(erased) / 4000.0 - 0.5).abs() < 0.03);
    // Uniform in 0.02 … 0.33 but for large and narrow boxes that do not fit: the mean lies a little lower.
    let mean = areas.iter().sum::<f64>() / areas.len() as f64;
    assert!((0.16..0.18).contains(&mean), "{mean}");
}

#[test]
fn automatic_policies_change_images_and_repeat_themselves() {
    let image = picture(32, 24);
    let apply = |transform: Transform, index| transform.apply(image.clone(), &mut rng(index));
    let policies = [
        Transform::RandAugment(RandAugment::default()),
        Transform::TrivialAugmentWide(TrivialAugmentWide::default()),
        Transform::AugMix(AugMix::default()),
    ];
    for policy in policies {
        let changed = (0..200).filter(|&index| {
            let augmented = apply(policy, index);
            assert_eq!(augmented.dimensions(), image.dimensions());
            assert_eq!(augmented, apply(policy, index), "the same draws give the same pixels");
            augmented != image
        });
        let changed = changed.count();
        // Identity has 1 in 14 draws (TrivialAugment), 1 in 196 (RandAugment: both); AugMix hardly ever keeps all.
        assert!((150..=200).contains(&changed), "{}: {changed}", policy.name());
    }
}

#[test]
fn augmix_of_nothing_but_identical_pixels_keeps_them_within_rounding() {
    // On black, all its operations but solarisation's inverse and shifts of brightness leave black.
    let mix = AugMix { all_ops: false, severity: 1, ..AugMix::default() };
    for index in 0..100 {
        let mut image = RgbImage::from_pixel(8, 8, Rgb([0; 3]));
        mix.apply(&mut image, &mut rng(index));
        assert!(image.iter().all(|&value| value == 0));
    }
}

#[test]
fn a_recipe_names_transforms_and_unknown_keys_are_errors() {
    let parse = |text: &str| serde_json::from_str::<Pipeline>(text);
    let train = parse(r#"[{"name": "RandomResizedCrop", "size": 224}, {"name": "RandomHorizontalFlip"}]"#).unwrap();
    assert_eq!(train, Pipeline::train(224));
    for (transform, text) in [
        (Transform::RandAugment(RandAugment::default()), r#"[{"name": "RandAugment"}]"#),
        (Transform::RandomErasing(RandomErasing::default()), r#"[{"name": "RandomErasing"}]"#),
        (Transform::Resize(Resize::new(256)), r#"[{"name": "Resize", "size": 256}]"#),
    ] {
        assert_eq!(parse(text).unwrap().transforms(), [transform]);
    }
    for pipeline in [Pipeline::alexnet_2012(), Pipeline::vgg_2015(), Pipeline::googlenet_2015()] {
        assert_eq!(parse(&serde_json::to_string(&pipeline).unwrap()).unwrap(), pipeline);
        let output = pipeline.apply(picture(200, 120), &mut rng(1));
        assert_eq!(output.dimensions(), (224, 224));
    }
    assert!(parse(r#"[{"name": "Resize", "size": 256, "sise": 3}]"#).is_err());
    assert!(parse(r#"[{"name": "RandomResizedCrop", "size": 224, "scale": [0.5, 0.1]}]"#).is_err());
    assert!(parse(r#"[{"name": "Resize", "size": 0}]"#).is_err());
    assert!(parse(r#"[{"name": "Rotate"}]"#).is_err());
}

#[test]
fn a_squash_ignores_the_aspect_ratio() {
    let eval = EvalTransform {
        resize: 16,
        rule: ResizeRule::Squash,
        crop: 16,
        interpolation: Interpolation::Bicubic,
        antialias: false,
    };
    assert_eq!(Pipeline::eval(eval).apply(picture(40, 20), &mut rng(0)).dimensions(), (16, 16));
}

#[test]
fn fused_pipelines_draw_and_compute_the_same() {
    let mut png = Vec::new();
    let image = picture(97, 61);
    let encoder = image::codecs::png::PngEncoder::new(&mut png);
    image.write_with_encoder(encoder).unwrap();
    let jpeg = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/decode/baseline_420.jpg")).unwrap();
    let jitter = RandomShorterSide { min: 24, max: 40, interpolation: Interpolation::Bicubic };
    let pipelines = [
        Pipeline::train(32),
        Pipeline::new(vec![
            Transform::RandomShorterSide(jitter),
            Transform::RandomCrop(RandomCrop { size: 20, padding: 0 }),
            Transform::RandomHorizontalFlip(RandomHorizontalFlip { p: 0.5 }),
        ])
        .unwrap(),
        Pipeline::new(vec![
            Transform::Resize(Resize::new(24)),
            Transform::CenterCrop(CenterCrop { size: 50 }),
            Transform::RandomCrop(RandomCrop { size: 24, padding: 4 }),
        ])
        .unwrap(),
    ];
    for bytes in [png, jpeg] {
        let whole = datasets::decode(&bytes, &DecodeOptions::default()).unwrap().image;
        for (pipeline, index) in pipelines.iter().flat_map(|pipeline| (0..30).map(move |index| (pipeline, index))) {
            let (mut a, mut b) = (rng(index), rng(index));
            let fused = pipeline.decode_and_apply(&bytes, &mut a, &DecodeOptions::default()).unwrap().image;
            let stepwise =
                pipeline.transforms().iter().fold(whole.clone(), |image, transform| transform.apply(image, &mut b));
            assert_eq!(fused, stepwise);
            assert_eq!(a, b, "as many draws");
        }
    }
}

#[test]
fn batch_mixing_follows_its_definition() {
    let choices = |choices: Vec<BatchTransform>| BatchTransforms::new(choices).unwrap();
    let mixup = choices(vec![BatchTransform::Mixup(Mixup { alpha: 0.2 })]);
    let lambdas: Vec<f64> =
        (0..20_000).map(|batch| f64::from(mixup.draw((1, 2, batch), 4, 8, 8).unwrap().lambda)).collect();
    let mean = lambdas.iter().sum::<f64>() / 2e4;
    let variance = lambdas.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / 2e4;
    assert!((mean - 0.5).abs() < 0.01 && (variance - 0.25 / 1.4).abs() < 0.004, "{mean} {variance}");

    let cutmix = choices(vec![BatchTransform::CutMix(CutMix::default())]);
    for batch in 0..500 {
        let mix = cutmix.draw((1, 2, batch), 3, 20, 10).unwrap();
        let region = mix.region.unwrap();
        assert!(region.left + region.width <= 20 && region.top + region.height <= 10);
        let share = f64::from(region.width * region.height) / 200.0;
        assert!((f64::from(mix.lambda) - (1.0 - share)).abs() < 1e-6, "lambda is the share that stays");
    }

    let both = choices(vec![BatchTransform::Mixup(Mixup::default()), BatchTransform::CutMix(CutMix::default())]);
    let cut = (0..4000).filter(|&batch| both.draw((1, 2, batch), 3, 8, 8).unwrap().region.is_some()).count();
    assert!((1870..2130).contains(&cut), "{cut} of 4000");
    assert_eq!(both.draw((1, 2, 3), 3, 8, 8), both.draw((1, 2, 3), 3, 8, 8));
    assert_ne!(both.draw((1, 2, 3), 3, 8, 8), both.draw((1, 2, 4), 3, 8, 8));
    assert_eq!(BatchTransforms::default().draw((1, 2, 3), 3, 8, 8), None);
    assert!(BatchTransforms::new(vec![BatchTransform::Mixup(Mixup { alpha: 0.0 })]).is_err());
}

#[test]
fn mixed_targets_and_images_are_weighted_sums() {
    let cutmix = BatchTransforms::new(vec![BatchTransform::CutMix(CutMix::default())]).unwrap();
    let mut mix = cutmix.draw((0, 0, 0), 3, 4, 2).unwrap();
    assert_eq!(mix.permutation, [2, 0, 1]);
    (mix.lambda, mix.region) = (0.75, Some(Rect { left: 1, top: 1, width: 2, height: 1 }));
    let targets = mix.targets(&one_hot(&[0, 1, 1], 2), 2);
    assert_eq!(targets, [0.75, 0.25, 0.25, 0.75, 0.0, 1.0]);
    let images: Vec<u8> = (0..3).flat_map(|sample| [sample * 100; 3 * 8]).collect();
    let cut = mix.images(&images, 4, 2);
    assert_eq!(cut[..8], [0, 0, 0, 0, 0, 200, 200, 0]);
    mix.region = None;
    let mixed = mix.images(&images, 4, 2);
    assert_eq!([mixed[0], mixed[24], mixed[48]], [50, 75, 175]);
}
