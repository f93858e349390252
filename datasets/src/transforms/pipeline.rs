//! Transforms by name, and pipelines of transforms.

use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::{
    AugMix, CenterCrop, ColorJitter, Interpolation, Lighting, RandAugment, RandomCrop, RandomErasing,
    RandomHorizontalFlip, RandomResizedCrop, RandomShorterSide, Rect, Resize, ResizeRule, TrivialAugmentWide,
};
use crate::{
    Error, SampleRng,
    decode::{self, DecodeOptions, Decoded, Region},
};

/// One transform of an image. In a recipe it is a table with torchvision's `name` and the parameters that differ
/// from torchvision's defaults: `{ name = "RandomResizedCrop", size = 224 }`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name")]
#[non_exhaustive]
pub enum Transform {
    /// [`Resize`].
    Resize(Resize),
    /// [`CenterCrop`].
    CenterCrop(CenterCrop),
    /// [`RandomCrop`].
    RandomCrop(RandomCrop),
    /// [`RandomResizedCrop`].
    RandomResizedCrop(RandomResizedCrop),
    /// [`RandomShorterSide`]: VGG's scale jitter. Not torchvision's.
    RandomShorterSide(RandomShorterSide),
    /// [`RandomHorizontalFlip`].
    RandomHorizontalFlip(RandomHorizontalFlip),
    /// [`ColorJitter`].
    ColorJitter(ColorJitter),
    /// [`Lighting`]: AlexNet's PCA noise. Not torchvision's.
    Lighting(Lighting),
    /// [`RandAugment`].
    RandAugment(RandAugment),
    /// [`TrivialAugmentWide`].
    TrivialAugmentWide(TrivialAugmentWide),
    /// [`AugMix`].
    AugMix(AugMix),
    /// [`RandomErasing`].
    RandomErasing(RandomErasing),
}

impl Transform {
    /// The name in a recipe.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Resize(_) => "Resize",
            Self::CenterCrop(_) => "CenterCrop",
            Self::RandomCrop(_) => "RandomCrop",
            Self::RandomResizedCrop(_) => "RandomResizedCrop",
            Self::RandomShorterSide(_) => "RandomShorterSide",
            Self::RandomHorizontalFlip(_) => "RandomHorizontalFlip",
            Self::ColorJitter(_) => "ColorJitter",
            Self::Lighting(_) => "Lighting",
            Self::RandAugment(_) => "RandAugment",
            Self::TrivialAugmentWide(_) => "TrivialAugmentWide",
            Self::AugMix(_) => "AugMix",
            Self::RandomErasing(_) => "RandomErasing",
        }
    }

    /// Applies the transform.
    pub fn apply(&self, mut image: RgbImage, rng: &mut SampleRng) -> RgbImage {
        match self {
            Self::Resize(t) => return t.apply(&image),
            Self::CenterCrop(t) => return t.apply(&image),
            Self::RandomCrop(t) => return t.apply(&image, rng),
            Self::RandomResizedCrop(t) => return t.apply(&image, rng),
            Self::RandomShorterSide(t) => return t.apply(&image, rng),
            Self::RandomHorizontalFlip(t) => t.apply(&mut image, rng),
            Self::ColorJitter(t) => t.apply(&mut image, rng),
            Self::Lighting(t) => t.apply(&mut image, rng),
            Self::RandAugment(t) => t.apply(&mut image, rng),
            Self::TrivialAugmentWide(t) => t.apply(&mut image, rng),
            Self::AugMix(t) => t.apply(&mut image, rng),
            Self::RandomErasing(t) => t.apply(&mut image, rng),
        }
        image
    }

    /// Checks the parameters.
    fn check(&self) -> Result<(), &'static str> {
        let size = |size: u32| (1..=LARGEST).contains(&size).then_some(()).ok_or("size must be 1 to 16384 pixels");
        let range = |[low, high]: [f64; 2], most: f64, what: &'static str| {
            (low > 0.0 && low <= high && high <= most).then_some(()).ok_or(what)
        };
        let chance = |p: f64| (0.0..=1.0).contains(&p).then_some(()).ok_or("p must be 0 to 1");
        let ensure = |condition: bool, what: &'static str| condition.then_some(()).ok_or(what);
        match self {
            Self::Resize(t) => size(t.size),
            Self::CenterCrop(t) => size(t.size),
            Self::RandomCrop(t) => {
                size(t.size)?;
                ensure(t.padding <= LARGEST, "padding must be at most 16384 pixels")
            }
            Self::RandomResizedCrop(t) => {
                size(t.size)?;
                range(t.scale, 1.0, "scale must be [low, high] with 0 < low ≤ high ≤ 1")?;
                range(t.ratio, 1e3, "ratio must be [low, high] with 0 < low ≤ high ≤ 1000")
            }
            Self::RandomShorterSide(t) => {
                size(t.min)?;
                size(t.max)?;
                ensure(t.min <= t.max, "min must not exceed max")
            }
            Self::RandomHorizontalFlip(t) => chance(t.p),
            Self::ColorJitter(t) => {
                let strengths = [t.brightness, t.contrast, t.saturation];
                ensure(strengths.iter().all(|s| *s >= 0.0 && s.is_finite()), "strengths must not be negative")?;
                ensure((0.0..=0.5).contains(&t.hue), "hue must be 0 to 0.5")
            }
            Self::Lighting(t) => ensure(t.std >= 0.0 && t.std.is_finite(), "std must not be negative"),
            Self::RandAugment(t) => {
                ensure(t.magnitude < t.num_magnitude_bins, "magnitude must be below num_magnitude_bins")?;
                ensure(t.num_ops <= 100, "num_ops must be at most 100")
            }
            Self::TrivialAugmentWide(t) => ensure(t.num_magnitude_bins > 0, "num_magnitude_bins must be positive"),
            Self::AugMix(t) => {
                ensure((1..=AugMix::BINS).contains(&t.severity), "severity must be 1 to 10")?;
                ensure((1..=100).contains(&t.mixture_width), "mixture_width must be 1 to 100")?;
                ensure(t.chain_depth <= 100, "chain_depth must be at most 100")?;
                ensure(t.alpha > 0.0 && t.alpha.is_finite(), "alpha must be positive")
            }
            Self::RandomErasing(t) => {
                chance(t.p)?;
                range(t.scale, 1.0, "scale must be [low, high] with 0 < low ≤ high ≤ 1")?;
                range(t.ratio, 1e3, "ratio must be [low, high] with 0 < low ≤ high ≤ 1000")
            }
        }
    }
}

/// The largest size in pixels of a transform.
const LARGEST: u32 = 16_384;

/// The preprocessing of an evaluation, as the published weights name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalTransform {
    /// The size to resize to, in pixels.
    pub resize: u32,
    /// Whether the size is that of the shorter side or of both sides.
    #[serde(default)]
    pub rule: ResizeRule,
    /// The side of the central crop in pixels.
    pub crop: u32,
    /// The resize filter.
    #[serde(default)]
    pub interpolation: Interpolation,
    /// Whether the filter widens with the reduction.
    #[serde(default = "super::geometry::yes")]
    pub antialias: bool,
}

/// A sequence of transforms from a decoded image to the network's input size. Its parameters are valid.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<Transform>", into = "Vec<Transform>")]
pub struct Pipeline(Vec<Transform>);

impl TryFrom<Vec<Transform>> for Pipeline {
    type Error = Error;

    fn try_from(transforms: Vec<Transform>) -> Result<Self, Error> {
        Self::new(transforms)
    }
}

impl From<Pipeline> for Vec<Transform> {
    fn from(pipeline: Pipeline) -> Self {
        pipeline.0
    }
}

impl Pipeline {
    /// Creates a pipeline of transforms in this order.
    ///
    /// # Errors
    /// [`Error::Transform`] where a parameter is out of its range.
    pub fn new(transforms: Vec<Transform>) -> Result<Self, Error> {
        for transform in &transforms {
            transform.check().map_err(|cause| Error::Transform { name: transform.name(), cause })?;
        }
        Ok(Self(transforms))
    }

    /// The usual training transform: a [`RandomResizedCrop`] to `size` and a [`RandomHorizontalFlip`].
    pub fn train(size: u32) -> Self {
        let flip = RandomHorizontalFlip { p: 0.5 };
        Self(vec![Transform::RandomResizedCrop(RandomResizedCrop::new(size)), Transform::RandomHorizontalFlip(flip)])
    }

    /// The usual evaluation transform: a [`Resize`] and a [`CenterCrop`].
    pub fn eval(eval: EvalTransform) -> Self {
        let EvalTransform { resize: size, rule, crop, interpolation, antialias } = eval;
        let resize = Resize { size, rule, interpolation, antialias };
        Self(vec![Transform::Resize(resize), Transform::CenterCrop(CenterCrop { size: crop })])
    }

    /// AlexNet's training transform (Krizhevsky et al., 2012): the shorter side to 256, a random crop of 224, flip
    /// and PCA lighting.
    pub fn alexnet_2012() -> Self {
        Self(vec![
            Transform::Resize(Resize::new(256)),
            Transform::RandomCrop(RandomCrop { size: 224, padding: 0 }),
            Transform::RandomHorizontalFlip(RandomHorizontalFlip { p: 0.5 }),
            Transform::Lighting(Lighting { std: 0.1 }),
        ])
    }

    /// VGG's multi-scale training transform (Simonyan and Zisserman, 2015): the shorter side to 256–512, a random
    /// crop of 224, flip and PCA lighting.
    pub fn vgg_2015() -> Self {
        let jitter = RandomShorterSide { min: 256, max: 512, interpolation: Interpolation::Bilinear };
        Self(vec![
            Transform::RandomShorterSide(jitter),
            Transform::RandomCrop(RandomCrop { size: 224, padding: 0 }),
            Transform::RandomHorizontalFlip(RandomHorizontalFlip { p: 0.5 }),
            Transform::Lighting(Lighting { std: 0.1 }),
        ])
    }

    /// GoogLeNet's training transform (Szegedy et al., 2015): a part of 8 % to 100 % of the area and an aspect ratio
    /// of 3/4 to 4/3, flip and photometric distortion (Howard, 2013), here a [`ColorJitter`] of 0.4.
    pub fn googlenet_2015() -> Self {
        let jitter = ColorJitter { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.0 };
        let mut transforms = Self::train(224).0;
        transforms.push(Transform::ColorJitter(jitter));
        Self(transforms)
    }

    /// The transforms in order.
    pub fn transforms(&self) -> &[Transform] {
        &self.0
    }

    /// Applies the transforms to a decoded image.
    pub fn apply(&self, image: RgbImage, rng: &mut SampleRng) -> RgbImage {
        let size = (image.width(), image.height());
        match self.resize_then_crop(size, rng) {
            Some((resize, window, rest)) => {
                apply_all(rest, resize.resampling(size, window).run(&image, Rect::of(&image)), rng)
            }
            None => apply_all(&self.0, image, rng),
        }
    }

    /// Decodes an image and applies the transforms, without computing pixels that they drop.
    ///
    /// - A pipeline that starts with a [`RandomResizedCrop`] draws its part from the header's size and decodes that
    ///   part alone, at 1/2, 1/4 or 1/8 where the part is that much larger than the result.
    /// - One that starts with a resize and a crop decodes at the full scale and parses the whole file, so that no
    ///   damage goes unnoticed; of a JPEG, blocks that the crop does not depend on are not transformed.
    ///
    /// The transforms see the image upright if the options apply its orientation; parts are mapped to the stored pixels.
    ///
    /// Draws from `rng` are those of [`apply`](Pipeline::apply). So are the pixels, but for a part at 1/2 or less.
    ///
    /// # Errors
    /// Any [`DecodeError`](crate::DecodeError).
    pub fn decode_and_apply(
        &self,
        bytes: &[u8],
        rng: &mut SampleRng,
        options: &DecodeOptions,
    ) -> decode::Result<Decoded> {
        self.decode_and_apply_with(bytes, rng, options, || ())
    }

    /// [`decode_and_apply`](Pipeline::decode_and_apply), and calls `decoded` between the two: a meter splits the time
    /// there.
    ///
    /// # Errors
    /// Any [`DecodeError`](crate::DecodeError).
    pub fn decode_and_apply_with(
        &self,
        bytes: &[u8],
        rng: &mut SampleRng,
        options: &DecodeOptions,
        decoded: impl FnOnce(),
    ) -> decode::Result<Decoded> {
        let header = decode::probe(bytes)?;
        header.check(&options.limits)?;
        let size = header.oriented_size(options.orientation);
        if let [Transform::RandomResizedCrop(crop), rest @ ..] = self.0.as_slice() {
            let part = crop.draw(size.0, size.1, rng);
            let region: Region = decode::decode_region(bytes, part, (crop.size, crop.size), options)?;
            decoded();
            let image = apply_all(rest, crop.resize_region(&region), rng);
            return Ok(Decoded { image, damage: region.damage, used_bits: region.used_bits });
        }
        match self.resize_then_crop(size, rng) {
            Some((resize, window, rest)) => {
                let resampling = resize.resampling(size, window);
                let part = decode::decode_part(bytes, resampling.needs(), options)?;
                decoded();
                Ok(part.map(|part| apply_all(rest, resampling.run_on_needs(&part), rng)))
            }
            None => {
                let whole = decode::decode(bytes, options)?;
                decoded();
                Ok(whole.map(|image| apply_all(&self.0, image, rng)))
            }
        }
    }

    /// Returns the output height and width, if they are the same for every image.
    pub fn output_size(&self) -> Option<[usize; 2]> {
        self.0.iter().fold(None, |size, transform| match transform {
            Transform::CenterCrop(CenterCrop { size, .. })
            | Transform::RandomCrop(RandomCrop { size, .. })
            | Transform::RandomResizedCrop(RandomResizedCrop { size, .. })
            | Transform::Resize(Resize { size, rule: ResizeRule::Squash, .. }) => Some([*size as usize; 2]),
            // A square stays a square.
            Transform::Resize(Resize { size: side, .. }) => size.map(|_| [*side as usize; 2]),
            Transform::RandomShorterSide(_) => None,
            _ => size,
        })
    }

    /// Where the pipeline starts with a resize and a crop that needs no padding: both, drawn for an image of the given
    /// size, and the other transforms. They go together: what the crop drops is not computed. `None` draws nothing.
    fn resize_then_crop(&self, size: (u32, u32), rng: &mut SampleRng) -> Option<(Resize, Rect, &[Transform])> {
        let mut drawn = rng.clone();
        let [first, crop, rest @ ..] = self.0.as_slice() else { return None };
        let resize = match first {
            Transform::Resize(resize) => *resize,
            Transform::RandomShorterSide(jitter) => jitter.draw(&mut drawn),
            _ => return None,
        };
        let (width, height) = resize.target(size.0, size.1);
        let window = match crop {
            Transform::CenterCrop(crop) => crop.window_within(width, height)?,
            Transform::RandomCrop(crop) => crop.window_within(width, height, &mut drawn)?,
            _ => return None,
        };
        *rng = drawn;
        Some((resize, window, rest))
    }
}

fn apply_all(transforms: &[Transform], image: RgbImage, rng: &mut SampleRng) -> RgbImage {
    transforms.iter().fold(image, |image, transform| transform.apply(image, rng))
}
