//! Resizing and cropping.

use image::{RgbImage, imageops};
use serde::{Deserialize, Serialize};

use super::resample::{Interpolation, Rect, Resampling, resample, resample_part};
use crate::{SampleRng, decode::Region};

/// The meaning of the size of a [`Resize`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResizeRule {
    /// The length of the shorter side; the longer one keeps the aspect ratio. torchvision's `Resize(256)`.
    #[default]
    Shorter,
    /// The length of both sides; the aspect ratio is lost. torchvision's `Resize((256, 256))`.
    Squash,
}

/// torchvision's `Resize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// The length of a side in pixels.
    pub size: u32,
    /// Which side has that length.
    #[serde(default)]
    pub rule: ResizeRule,
    /// The resize filter.
    #[serde(default)]
    pub interpolation: Interpolation,
    /// Whether the filter widens with the reduction; `true` is what Pillow always does.
    #[serde(default = "yes")]
    pub antialias: bool,
}

/// The longest side that an aspect ratio can lead to.
const LONGEST: u32 = 65_535;

pub(super) fn yes() -> bool {
    true
}

impl Resize {
    /// The shorter side to `size`, bilinear, antialiased.
    pub fn new(size: u32) -> Self {
        Self { size, rule: ResizeRule::Shorter, interpolation: Interpolation::Bilinear, antialias: true }
    }

    /// The resulting size (width, height) for an image of the given size. The longer side ends at 65,535 pixels, so
    /// that a hair-thin image cannot grow without bound.
    pub fn target(&self, width: u32, height: u32) -> (u32, u32) {
        let size = self.size.max(1);
        let longer = |long: u32, short: u32| {
            let exact = u64::from(size) * u64::from(long) / u64::from(short.max(1));
            exact.min(u64::from(size.max(LONGEST))) as u32
        };
        match self.rule {
            ResizeRule::Squash => (size, size),
            ResizeRule::Shorter if width <= height => (size, longer(height, width)),
            ResizeRule::Shorter => (longer(width, height), size),
        }
    }

    /// Resizes the image.
    pub fn apply(&self, image: &RgbImage) -> RgbImage {
        let (width, height) = self.target(image.width(), image.height());
        self.window(image, Rect { left: 0, top: 0, width, height })
    }

    /// The part `window` of the resized image; the rest is not computed.
    ///
    /// # Panics
    /// Panics if `window` is empty or reaches beyond the resized image.
    pub fn window(&self, image: &RgbImage, window: Rect) -> RgbImage {
        self.resampling((image.width(), image.height()), window).run(image, Rect::of(image))
    }

    /// The weights for the part `window` of the resized image of `input` pixels.
    pub(super) fn resampling(&self, input: (u32, u32), window: Rect) -> Resampling {
        Resampling::new(input, self.target(input.0, input.1), window, self.interpolation, self.antialias)
    }
}

/// torchvision's `CenterCrop`: a square around the center; an image that is too small is padded with black.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CenterCrop {
    /// The length of a side in pixels.
    pub size: u32,
}

impl CenterCrop {
    /// Crops the image.
    pub fn apply(&self, image: &RgbImage) -> RgbImage {
        let (width, height) = (image.width(), image.height());
        if width < self.size || height < self.size {
            return self.apply(&pad_to(image, self.size));
        }
        let Rect { left, top, width, height } = self.window(width, height);
        imageops::crop_imm(image, left, top, width, height).to_image()
    }

    /// The square in an image at least as large. Halves round to the even number, as Python's `round` does.
    fn window(&self, width: u32, height: u32) -> Rect {
        let start = |side: u32| (f64::from(side - self.size) / 2.0).round_ties_even() as u32;
        Rect { left: start(width), top: start(height), width: self.size, height: self.size }
    }

    /// The same, `None` in an image that must be padded.
    pub(super) fn window_within(&self, width: u32, height: u32) -> Option<Rect> {
        (width >= self.size && height >= self.size).then(|| self.window(width, height))
    }
}

/// Pads the image with black, evenly, until both sides are at least `size`; an odd pixel goes to the right and bottom.
fn pad_to(image: &RgbImage, size: u32) -> RgbImage {
    let before = |side: u32| size.saturating_sub(side) / 2;
    let mut padded = RgbImage::new(image.width().max(size), image.height().max(size));
    imageops::replace(&mut padded, image, before(image.width()).into(), before(image.height()).into());
    padded
}

/// Four corners and the center: torchvision's `FiveCrop`, for evaluation over several crops. An image that is too
/// small is first padded with black, as [`CenterCrop`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FiveCrop {
    /// The length of a side in pixels.
    pub size: u32,
}

impl FiveCrop {
    /// The crops: upper left, upper right, lower left, lower right, center.
    pub fn apply(&self, image: &RgbImage) -> [RgbImage; 5] {
        let image = &pad_to(image, self.size);
        let (right, bottom) = (image.width() - self.size, image.height() - self.size);
        let corner = |left, top| imageops::crop_imm(image, left, top, self.size, self.size).to_image();
        let center = CenterCrop { size: self.size }.apply(image);
        [corner(0, 0), corner(right, 0), corner(0, bottom), corner(right, bottom), center]
    }
}

/// The crops of [`FiveCrop`] and of the image's mirror: torchvision's `TenCrop`, the test of AlexNet (2012).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenCrop {
    /// The length of a side in pixels.
    pub size: u32,
    /// Whether the mirror is upside down instead of left to right.
    #[serde(default)]
    pub vertical_flip: bool,
}

impl TenCrop {
    /// The five crops of the image, then those of its mirror.
    pub fn apply(&self, image: &RgbImage) -> [RgbImage; 10] {
        let crop = FiveCrop { size: self.size };
        let mirror = if self.vertical_flip { imageops::flip_vertical(image) } else { imageops::flip_horizontal(image) };
        let mut crops = crop.apply(image).into_iter().chain(crop.apply(&mirror));
        std::array::from_fn(|_| crops.next().expect("twice five crops"))
    }
}

/// torchvision's `RandomCrop` of a square: the whole image is padded by `padding` on all sides, then to the crop's
/// size where it is too small, with black.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomCrop {
    /// The length of a side in pixels.
    pub size: u32,
    /// Pixels of black on each side before the crop.
    #[serde(default)]
    pub padding: u32,
}

impl RandomCrop {
    /// Crops the image at a random position.
    pub fn apply(&self, image: &RgbImage, rng: &mut SampleRng) -> RgbImage {
        let (left, top) = self.draw(image.width(), image.height(), rng);
        let mut crop = RgbImage::new(self.size, self.size);
        imageops::replace(&mut crop, image, -left, -top);
        crop
    }

    /// The upper left corner in pixels of the image; negative in the padding, which is never stored.
    fn draw(&self, width: u32, height: u32, rng: &mut SampleRng) -> (i64, i64) {
        let mut offset = |side: u32| {
            let around = 2 * u64::from(self.padding) + u64::from(side);
            let missing = u64::from(self.size).saturating_sub(around);
            let before = i64::from(self.padding) + (missing / 2) as i64;
            rng.below(around + missing - u64::from(self.size) + 1) as i64 - before
        };
        let top = offset(height);
        (offset(width), top)
    }

    /// Draws the crop's position in an image that needs no padding; `None`, without drawing, otherwise.
    pub(super) fn window_within(&self, width: u32, height: u32, rng: &mut SampleRng) -> Option<Rect> {
        if self.padding > 0 || width < self.size || height < self.size {
            return None;
        }
        let (left, top) = self.draw(width, height, rng);
        Some(Rect { left: left as u32, top: top as u32, width: self.size, height: self.size })
    }
}

/// torchvision's `RandomResizedCrop`: a crop of random area and aspect ratio, resized to a square (Inception-style
/// crops: Szegedy et al., 2015).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomResizedCrop {
    /// The length of a side of the result in pixels.
    pub size: u32,
    /// The range of the crop's fraction of the area.
    #[serde(default = "whole")]
    pub scale: [f64; 2],
    /// The range of the crop's aspect ratio, width over height.
    #[serde(default = "three_to_four")]
    pub ratio: [f64; 2],
    /// The resize filter.
    #[serde(default)]
    pub interpolation: Interpolation,
    /// Whether the filter widens with the reduction; `true` is what Pillow always does.
    #[serde(default = "yes")]
    pub antialias: bool,
}

fn whole() -> [f64; 2] {
    [0.08, 1.0]
}

fn three_to_four() -> [f64; 2] {
    [3.0 / 4.0, 4.0 / 3.0]
}

impl RandomResizedCrop {
    /// torchvision's defaults: area 0.08 to 1, aspect ratio 3/4 to 4/3, bilinear, antialiased.
    pub fn new(size: u32) -> Self {
        let interpolation = Interpolation::Bilinear;
        Self { size, scale: whole(), ratio: three_to_four(), interpolation, antialias: true }
    }

    /// Draws the part of an image of the given size. After ten draws that do not fit, it is the largest central part
    /// of an allowed aspect ratio.
    pub fn draw(&self, width: u32, height: u32, rng: &mut SampleRng) -> Rect {
        let area = f64::from(width) * f64::from(height);
        let [low, high] = self.ratio.map(libm::log);
        for _ in 0..10 {
            let target = area * rng.uniform(self.scale[0], self.scale[1]);
            let ratio = libm::exp(rng.uniform(low, high));
            let w = (target * ratio).sqrt().round_ties_even() as u32;
            let h = (target / ratio).sqrt().round_ties_even() as u32;
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let top = rng.below(u64::from(height - h) + 1) as u32;
                let left = rng.below(u64::from(width - w) + 1) as u32;
                return Rect { left, top, width: w, height: h };
            }
        }
        let ratio = f64::from(width) / f64::from(height);
        let side = |exact: f64, most: u32| (exact.round_ties_even() as u32).clamp(1, most);
        let (w, h) = if ratio < self.ratio[0] {
            (width, side(f64::from(width) / self.ratio[0], height))
        } else if ratio > self.ratio[1] {
            (side(f64::from(height) * self.ratio[1], width), height)
        } else {
            (width, height)
        };
        Rect { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h }
    }

    /// Draws a part of the image and resizes it.
    pub fn apply(&self, image: &RgbImage, rng: &mut SampleRng) -> RgbImage {
        self.resize(image, self.draw(image.width(), image.height(), rng))
    }

    /// Resizes a separately decoded part.
    pub(super) fn resize_region(&self, region: &Region) -> RgbImage {
        let part = [region.left, region.top, region.width, region.height];
        resample_part(&region.image, part, (self.size, self.size), self.interpolation, self.antialias)
    }

    fn resize(&self, image: &RgbImage, part: Rect) -> RgbImage {
        let out = Rect { left: 0, top: 0, width: self.size, height: self.size };
        resample(image, part, (self.size, self.size), out, self.interpolation, self.antialias)
    }
}

/// torchvision's `RandomHorizontalFlip`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomHorizontalFlip {
    /// The probability.
    #[serde(default = "half")]
    pub p: f64,
}

fn half() -> f64 {
    0.5
}

impl RandomHorizontalFlip {
    /// Mirrors the image left to right with the probability `p`.
    pub fn apply(&self, image: &mut RgbImage, rng: &mut SampleRng) {
        if rng.chance(self.p) {
            flip_horizontal(image);
        }
    }
}

/// Mirrors the image left to right.
pub fn flip_horizontal(image: &mut RgbImage) {
    let stride = image.width() as usize * 3;
    for row in image.chunks_exact_mut(stride.max(1)) {
        let (pixels, _) = row.as_chunks_mut::<3>();
        pixels.reverse();
    }
}

/// The scale jitter of VGG (Simonyan and Zisserman, 2015): a [`Resize`] to a shorter side drawn uniformly from
/// `min..=max`; followed by a [`RandomCrop`]. The paper draws from 256 to 512.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomShorterSide {
    /// The shortest shorter side in pixels.
    pub min: u32,
    /// The longest shorter side in pixels.
    pub max: u32,
    /// The resize filter.
    #[serde(default)]
    pub interpolation: Interpolation,
}

impl RandomShorterSide {
    /// Draws a length and resizes the image.
    pub fn apply(&self, image: &RgbImage, rng: &mut SampleRng) -> RgbImage {
        self.draw(rng).apply(image)
    }

    /// Draws the resize.
    pub(super) fn draw(&self, rng: &mut SampleRng) -> Resize {
        let size = self.min + rng.below(u64::from(self.max.saturating_sub(self.min)) + 1) as u32;
        Resize { interpolation: self.interpolation, ..Resize::new(size) }
    }
}
