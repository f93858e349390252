//! Operations on colors: Pillow's `ImageEnhance` and `ImageOps`, and torchvision's `adjust_hue`, pixel for pixel.

use image::RgbImage;

/// ITU-R BT.601 luma in 16 fraction bits: Pillow's `convert("L")`.
pub(crate) fn luma(pixel: &[u8]) -> u8 {
    let [r, g, b] = [pixel[0], pixel[1], pixel[2]].map(u32::from);
    ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16) as u8
}

/// Pillow's blend of one channel, `from + factor · (to − from)` in single precision, truncated.
fn blend(from: u8, to: u8, factor: f32) -> u8 {
    (f32::from(from) + factor * f32::from(i16::from(to) - i16::from(from))).clamp(0.0, 255.0) as u8
}

/// Moves each pixel away from (`factor` > 1) or toward (`factor` < 1) the pixel that `degenerate` returns for it.
fn enhance(image: &mut RgbImage, factor: f64, degenerate: impl Fn(&[u8]) -> [u8; 3]) {
    for pixel in image.chunks_exact_mut(3) {
        let from = degenerate(pixel);
        for (value, from) in pixel.iter_mut().zip(from) {
            *value = blend(from, *value, factor as f32);
        }
    }
}

/// Brightness: 0 is black, 1 the image itself.
pub fn adjust_brightness(image: &mut RgbImage, factor: f64) {
    enhance(image, factor, |_| [0; 3]);
}

/// Contrast: 0 is the mean gray, 1 the image itself.
pub fn adjust_contrast(image: &mut RgbImage, factor: f64) {
    let sum: u64 = image.chunks_exact(3).map(|pixel| u64::from(luma(pixel))).sum();
    let pixels = (image.len() / 3).max(1);
    let mean = (sum as f64 / pixels as f64 + 0.5) as u8;
    enhance(image, factor, |_| [mean; 3]);
}

/// Saturation: 0 is grayscale, 1 the image itself.
pub fn adjust_saturation(image: &mut RgbImage, factor: f64) {
    enhance(image, factor, |pixel| [luma(pixel); 3]);
}

/// Sharpness: 0 is smoothed, 1 the image itself. The outermost pixels stay.
pub fn adjust_sharpness(image: &mut RgbImage, factor: f64) {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let original = image.as_raw().clone();
    let stride = width * 3;
    for y in 1..height.saturating_sub(1) {
        for at in y * stride + 3..(y + 1) * stride - 3 {
            // The kernel [1 1 1; 1 5 1; 1 1 1] / 13, rounded.
            let around = |row: usize| (0..3).map(|x| u32::from(original[row - 3 + 3 * x])).sum::<u32>();
            let sum = around(at - stride) + around(at) + around(at + stride) + 4 * u32::from(original[at]);
            let smooth = (2 * sum + 13) / 26;
            image.as_mut()[at] = blend(smooth as u8, original[at], factor as f32);
        }
    }
}

/// Hue: turns the color circle by `shift` turns, −0.5 to 0.5, in HSV of 8 bits.
pub fn adjust_hue(image: &mut RgbImage, shift: f64) {
    let turn = (shift * 255.0) as i32 as u8;
    for pixel in image.chunks_exact_mut(3) {
        let [h, s, v] = rgb_to_hsv([pixel[0], pixel[1], pixel[2]]);
        pixel.copy_from_slice(&hsv_to_rgb([h.wrapping_add(turn), s, v]));
    }
}

/// Pillow's RGB → HSV: single precision where it stores, double where it calculates.
fn rgb_to_hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    if most == least {
        return [0, 0, most];
    }
    let range = f32::from(most - least);
    let saturation = range / f32::from(most);
    let [rc, gc, bc] = [r, g, b].map(|channel| f64::from(f32::from(most - channel) / range));
    let sector = if r == most {
        bc - gc
    } else if g == most {
        2.0 + rc - bc
    } else {
        4.0 + gc - rc
    };
    let hue = ((f64::from(sector as f32) / 6.0 + 1.0) % 1.0) as f32;
    [(f64::from(hue) * 255.0) as u8, (f64::from(saturation) * 255.0) as u8, most]
}

/// Pillow's HSV → RGB.
fn hsv_to_rgb([h, s, v]: [u8; 3]) -> [u8; 3] {
    if s == 0 {
        return [v; 3];
    }
    let turned = f64::from(h) * 6.0 / 255.0;
    let sector = turned.floor();
    let f = f64::from((turned - sector) as f32);
    let s = f64::from((f64::from(s) / 255.0) as f32);
    let [p, q, t] = [1.0 - s, 1.0 - s * f, 1.0 - s * (1.0 - f)].map(|part| (f64::from(v) * part).round() as u8);
    match sector as u8 % 6 {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        _ => [v, p, q],
    }
}

/// Maps each channel by a table derived from the channel's histogram.
fn map_by_histogram(image: &mut RgbImage, table: impl Fn(&[u64; 256]) -> Option<[u8; 256]>) {
    for channel in 0..3 {
        let mut histogram = [0; 256];
        for pixel in image.chunks_exact(3) {
            histogram[usize::from(pixel[channel])] += 1;
        }
        if let Some(table) = table(&histogram) {
            for pixel in image.chunks_exact_mut(3) {
                pixel[channel] = table[usize::from(pixel[channel])];
            }
        }
    }
}

/// Stretches each channel to the full range.
pub fn autocontrast(image: &mut RgbImage) {
    map_by_histogram(image, |histogram| {
        let low = histogram.iter().position(|&count| count > 0)?;
        let high = histogram.iter().rposition(|&count| count > 0)?;
        (high > low).then(|| {
            let scale = 255.0 / (high - low) as f64;
            let offset = -(low as f64) * scale;
            std::array::from_fn(|value| (value as f64 * scale + offset) as u8)
        })
    });
}

/// Equalises the histogram of each channel.
pub fn equalize(image: &mut RgbImage) {
    map_by_histogram(image, |histogram| {
        let last = *histogram.iter().rfind(|&&count| count > 0)?;
        let step = (histogram.iter().sum::<u64>() - last) / 255;
        (step > 0).then(|| {
            let mut sum = step / 2;
            histogram.map(|count| {
                let value = sum / step;
                sum += count;
                value.min(255) as u8
            })
        })
    });
}

/// The negative.
pub fn invert(image: &mut RgbImage) {
    image.iter_mut().for_each(|value| *value = 255 - *value);
}

/// Keeps the highest `bits` bits of each channel, 0 to 8.
pub fn posterize(image: &mut RgbImage, bits: u32) {
    let mask = !(0xffu16 >> bits.min(8)) as u8;
    image.iter_mut().for_each(|value| *value &= mask);
}

/// Inverts the values from `threshold` on.
pub fn solarize(image: &mut RgbImage, threshold: f64) {
    image.iter_mut().filter(|value| f64::from(**value) >= threshold).for_each(|value| *value = 255 - *value);
}
