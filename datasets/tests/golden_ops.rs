//! Single operations against torchvision's pixels on Pillow images: all of them exact.

mod support;

use datasets::transforms::{
    Interpolation, adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, adjust_sharpness, autocontrast,
    equalize, flip_horizontal, invert, posterize, rotate, shear_x, shear_y, solarize, translate,
};
use image::RgbImage;

fn in_place(image: &RgbImage, op: impl FnOnce(&mut RgbImage)) -> RgbImage {
    let mut image = image.clone();
    op(&mut image);
    image
}

#[test]
fn operations_are_torchvisions() {
    let Some(golden) = support::golden() else { return };
    let folder = golden.join("transforms");
    let open = |name: &str| image::open(folder.join(format!("op_{name}.png"))).unwrap().into_rgb8();
    let input = open("input");
    let nearest = Interpolation::Nearest;
    let results = [
        ("identity", input.clone()),
        ("hflip", in_place(&input, flip_horizontal)),
        ("autocontrast", in_place(&input, autocontrast)),
        ("equalize", in_place(&input, equalize)),
        ("invert", in_place(&input, invert)),
        ("posterize_4", in_place(&input, |image| posterize(image, 4))),
        ("solarize_128", in_place(&input, |image| solarize(image, 128.0))),
        ("brightness_1_5", in_place(&input, |image| adjust_brightness(image, 1.5))),
        ("brightness_0_4", in_place(&input, |image| adjust_brightness(image, 0.4))),
        ("contrast_1_5", in_place(&input, |image| adjust_contrast(image, 1.5))),
        ("saturation_0_3", in_place(&input, |image| adjust_saturation(image, 0.3))),
        ("sharpness_1_8", in_place(&input, |image| adjust_sharpness(image, 1.8))),
        ("hue_0_1", in_place(&input, |image| adjust_hue(image, 0.1))),
        ("shear_x_0_2", shear_x(&input, 0.2, nearest)),
        ("shear_y_0_2", shear_y(&input, 0.2, nearest)),
        ("translate_x_30", translate(&input, 30, 0, nearest)),
        ("translate_y_30", translate(&input, 0, 30, nearest)),
        ("rotate_20", rotate(&input, 20.0, nearest)),
        ("rotate_20_bilinear", rotate(&input, 20.0, Interpolation::Bilinear)),
    ];
    for (name, result) in results {
        let expected = open(name);
        assert_eq!(result.dimensions(), expected.dimensions(), "{name}");
        let different = result.as_raw().iter().zip(expected.as_raw()).filter(|(a, b)| a != b).count();
        let most = result.as_raw().iter().zip(expected.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
        assert_eq!(different, 0, "{name}: {different} values differ, at most by {most:?}");
    }
}
