//! Resizing and cropping.

use image::{RgbImage, imageops};
use serde::{Deserialize, Serialize};

use super::resample::{Interpolation, Rect, resample};

/// What the size of a [`Resize`] means.
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
    /// Which side.
    #[serde(default)]
    pub rule: ResizeRule,
    /// The filter.
    #[serde(default)]
    pub interpolation: Interpolation,
    /// Whether the filter widens with the reduction; `true` is what Pillow always does.
    #[serde(default = "yes")]
    pub antialias: bool,
}

/// The longest side that an aspect ratio can lead to.
const LONGEST: u32 = 65_535;

fn yes() -> bool {
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
    fn window(&self, image: &RgbImage, window: Rect) -> RgbImage {
        let size = self.target(image.width(), image.height());
        resample(image, Rect::of(image), size, window, self.interpolation, self.antialias)
    }
}

/// torchvision's `CenterCrop`: a square around the centre; an image that is too small is padded with black.
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

    /// [`Resize`] followed by this crop, without computing what the crop drops. The same pixels.
    pub fn apply_after(&self, resize: &Resize, image: &RgbImage) -> RgbImage {
        let (width, height) = resize.target(image.width(), image.height());
        if width < self.size || height < self.size {
            return self.apply(&resize.apply(image));
        }
        resize.window(image, self.window(width, height))
    }
}

/// Pads the image with black, evenly, until both sides are at least `size`; an odd pixel goes to the right and bottom.
fn pad_to(image: &RgbImage, size: u32) -> RgbImage {
    let before = |side: u32| size.saturating_sub(side) / 2;
    let mut padded = RgbImage::new(image.width().max(size), image.height().max(size));
    imageops::replace(&mut padded, image, before(image.width()).into(), before(image.height()).into());
    padded
}
