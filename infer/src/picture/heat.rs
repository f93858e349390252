//! Saliency maps over images, and pictures of filters and feature maps.

use image::{
    Rgb, RgbImage,
    imageops::{self, FilterType},
};

use crate::explain::Heat;

use super::PAPER;

/// The color scale from 0 to 1.
const RAMP: [[f32; 3]; 5] =
    [[40.0, 20.0, 90.0], [150.0, 30.0, 110.0], [225.0, 70.0, 50.0], [250.0, 160.0, 40.0], [255.0, 245.0, 120.0]];

fn ramp(heat: f32) -> [f32; 3] {
    let place = heat.clamp(0.0, 1.0) * (RAMP.len() - 1) as f32;
    let low = (place as usize).min(RAMP.len() - 2);
    let share = place - low as f32;
    [0, 1, 2].map(|channel| RAMP[low][channel] * (1.0 - share) + RAMP[low + 1][channel] * share)
}

/// Draws the saliency map over the image: colored where it is high, pale and nearly gray where it is low.
///
/// # Panics
/// Panics if the two have different sizes.
pub fn overlay(image: &RgbImage, heat: &Heat) -> RgbImage {
    assert_eq!(image.dimensions(), heat.dimensions(), "heat belongs to an image of its size");
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let pixel = image.get_pixel(x, y).0.map(f32::from);
        let heat = heat.get_pixel(x, y).0[0];
        let gray = 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2];
        let (color, cover) = (ramp(heat), 0.65 * heat.sqrt());
        Rgb([0, 1, 2].map(|channel| {
            let cold = 0.25 * pixel[channel] + 0.75 * (40.0 + 0.7 * gray);
            (cold * (1.0 - cover) + color[channel] * cover).round() as u8
        }))
    })
}

/// Draws a feature map `[height, width]`, scaled to its maximum.
pub fn map(values: &[f32], width: u32, side: u32) -> RgbImage {
    let (low, high) = values.iter().fold((f32::MAX, f32::MIN), |(low, high), &v| (low.min(v), high.max(v)));
    let range = if high > low { high - low } else { 1.0 };
    let height = values.len() as u32 / width.max(1);
    let picture = RgbImage::from_fn(width, height, |x, y| {
        let value = values[(y * width + x) as usize];
        Rgb(ramp((value - low) / range).map(|channel| channel.round() as u8))
    });
    imageops::resize(&picture, side, side, FilterType::Nearest)
}

/// Draws the first layer's filters `[out, 3, kh, kw]` in RGB, each scaled on its own, with gray for 0.
pub fn filters(weights: &[f32], [filters, height, width]: [usize; 3]) -> RgbImage {
    let columns = (filters as f64).sqrt().ceil() as usize;
    let rows = filters.div_ceil(columns.max(1));
    let cell = (44 / height.max(width).max(1)).max(2);
    let (tile_width, tile_height) = (width * cell + 4, height * cell + 4);
    let mut picture = RgbImage::from_pixel((columns * tile_width + 4) as u32, (rows * tile_height + 4) as u32, PAPER);
    for (index, filter) in weights.chunks_exact(3 * height * width).enumerate() {
        let most = filter.iter().fold(f32::MIN_POSITIVE, |most, value| most.max(value.abs()));
        let (left, top) = (4 + index % columns * tile_width, 4 + index / columns * tile_height);
        for (y, x) in (0..height * cell).flat_map(|y| (0..width * cell).map(move |x| (y, x))) {
            let place = y / cell * width + x / cell;
            let color = [0, 1, 2].map(|channel| filter[channel * height * width + place]);
            let color = color.map(|value| (127.5 + 127.5 * value / most).round() as u8);
            picture.put_pixel((left + x) as u32, (top + y) as u32, Rgb(color));
        }
    }
    picture
}

#[cfg(test)]
mod tests {
    use image::Luma;

    use super::*;

    #[test]
    fn the_overlay_is_bright_where_the_map_is_high() {
        let image = RgbImage::from_pixel(2, 1, Rgb([0, 0, 200]));
        let heat = Heat::from_fn(2, 1, |x, _| Luma([x as f32]));
        let picture = overlay(&image, &heat);
        let [cold, hot] = [0, 1].map(|x| picture.get_pixel(x, 0).0);
        assert!(hot[0] > 150 && hot[0] > hot[2], "{hot:?}");
        assert!(cold[2].abs_diff(cold[0]) < 70, "{cold:?}");
    }

    #[test]
    fn filters_are_arranged_in_a_square() {
        let mut weights = vec![0.0; 5 * 3 * 7 * 7];
        weights[0] = 2.0; // Red, upper left, of the first.
        let picture = filters(&weights, [5, 7, 7]);
        assert_eq!(picture.dimensions(), (3 * 46 + 4, 2 * 46 + 4));
        assert_eq!(picture.get_pixel(4, 4).0, [255, 128, 128]);
        assert_eq!(picture.get_pixel(20, 20).0, [128, 128, 128]);
        assert_eq!(map(&[0.0, 1.0], 2, 4).get_pixel(3, 3).0, [255, 245, 120]);
    }
}
