//! Evaluation transforms and resized crops against torchvision's pixels, from our own decode.

mod support;

use std::fs;

use datasets::{
    DecodeOptions, SampleRng, decode,
    transforms::{CenterCrop, Interpolation, Pipeline, Rect, Resize, Transform, resized_crop},
};
use image::RgbImage;

/// The largest and the mean difference of two images in gray levels.
fn difference(a: &RgbImage, b: &RgbImage) -> (u8, f64) {
    assert_eq!(a.dimensions(), b.dimensions());
    let differences = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = differences.clone().map(u64::from).sum();
    (differences.max().unwrap_or(0), sum as f64 / a.as_raw().len() as f64)
}

fn pipeline(resize: Resize, crop: CenterCrop) -> Pipeline {
    Pipeline::new(vec![Transform::Resize(resize), Transform::CenterCrop(crop)]).expect("valid parameters")
}

#[test]
fn evaluation_transforms_and_resized_crops_are_torchvisions() {
    let (Some(golden), Some(archive)) = (support::golden(), support::validation_archive()) else { return };
    let folder = golden.join("transforms");
    let members = support::tar_members(&archive);
    let index: Vec<serde_json::Value> = serde_json::from_slice(&fs::read(folder.join("index.json")).unwrap()).unwrap();
    let mut checked = 0;
    for entry in &index {
        let number = |key: &str| u32::try_from(entry[key].as_u64().unwrap()).unwrap();
        let text = |key: &str| entry[key].as_str().unwrap();
        let Some((_, bytes)) = members.iter().find(|(name, _)| name == text("source")) else { continue };
        let options = DecodeOptions::default();
        let image = decode(bytes, &options).unwrap().image;
        let result = match text("transform") {
            "resize the shorter side, centre crop" => {
                let interpolation = match text("interpolation") {
                    "bilinear" => Interpolation::Bilinear,
                    "bicubic" => Interpolation::Bicubic,
                    other => panic!("unknown interpolation {other}"),
                };
                let resize = Resize { interpolation, ..Resize::new(number("resize")) };
                let crop = CenterCrop { size: number("crop") };
                let result = pipeline(resize, crop).apply(image.clone(), &mut SampleRng::new(0, 0, 0));
                assert_eq!(result, crop.apply(&resize.apply(&image)), "fused and in two steps");
                let fused = pipeline(resize, crop).decode_and_apply(bytes, &mut SampleRng::new(0, 0, 0), &options);
                assert_eq!(result, fused.unwrap().image, "fused with decoding");
                result
            }
            "resized_crop" => {
                let crop =
                    Rect { left: number("left"), top: number("top"), width: number("width"), height: number("height") };
                resized_crop(&image, crop, number("size"), number("size"), Interpolation::Bilinear)
            }
            "resize 256, centre crop 224" => CenterCrop { size: 224 }.apply(&Resize::new(256).apply(&image)),
            other => panic!("unknown transform {other}"),
        };
        let expected = image::open(folder.join(text("file"))).unwrap().into_rgb8();
        let (most, mean) = difference(&result, &expected);
        eprintln!("{}: at most {most}, on average {mean:.4}", text("file"));
        assert!(most <= 2 && mean <= 0.15, "{}: at most {most}, on average {mean:.3} gray levels", text("file"));
        checked += 1;
    }
    assert_eq!(checked, 21, "all references of the index were checked");
}
