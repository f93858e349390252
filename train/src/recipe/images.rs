//! How images become the network's input, in training and in validation.

use datasets::{
    DecodeOptions, OrientationPolicy,
    transforms::{EvalTransform, Pipeline, Transform, batch::BatchTransforms},
};
use hub::{ChannelOrder, Preprocess};
use serde::{Deserialize, Serialize};

use super::Error;

/// How images become the network's input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Images {
    /// Transforms in training, by torchvision's names.
    pub train: Pipeline,
    /// Ways of mixing a batch, of which each batch gets one: Mixup, CutMix.
    #[serde(default)]
    pub mix: BatchTransforms,
    /// Resize and centre crop in validation; the model card says the same to whoever uses the network.
    pub eval: EvalTransform,
    /// The mean of each channel, in the order of the channels, for values from 0 to 1.
    pub mean: [f32; 3],
    /// The standard deviation of each channel.
    pub std: [f32; 3],
    /// The order of the channels in the network's input.
    #[serde(default = "rgb")]
    pub channel_order: ChannelOrder,
    /// What becomes of the orientation in the images' metadata.
    #[serde(default)]
    pub orientation: OrientationPolicy,
    /// The largest number of pixels of an image, before any transform; Pillow's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pixels: Option<u64>,
    /// Progressive resizing: from the epoch on, training images have this side.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<Phase>,
}

fn rgb() -> ChannelOrder {
    ChannelOrder::Rgb
}

/// A size of training images and the epoch, from 1, with which it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// The first epoch, from 1.
    pub epoch: usize,
    /// The side in pixels.
    pub size: u32,
}

impl Images {
    /// The side of training images in pixels, before any progressive resizing.
    pub fn size(&self) -> Option<usize> {
        self.train.output_size().map(|[height, _]| height)
    }

    /// How images are decoded.
    pub fn decoding(&self) -> DecodeOptions {
        let options = DecodeOptions { orientation: self.orientation, ..DecodeOptions::default() };
        match self.max_pixels {
            Some(max_pixels) => options.max_pixels(max_pixels),
            None => options,
        }
    }

    /// The training transforms of each phase, with the epoch, from 0, at which it begins.
    pub(crate) fn phases(&self) -> Result<Vec<(usize, Pipeline)>, Error> {
        let mut phases = Vec::new();
        if self.sizes.first().is_none_or(|phase| phase.epoch > 1) {
            phases.push((0, self.train.clone()));
        }
        for phase in &self.sizes {
            phases.push((phase.epoch - 1, self.resized(phase.size)?));
        }
        Ok(phases)
    }

    /// The training transforms for images of another side: all sizes in pixels change in proportion.
    fn resized(&self, size: u32) -> Result<Pipeline, Error> {
        let old = self.size().unwrap_or(size as usize) as f64;
        let scale = |value: &mut u32| *value = (f64::from(*value) * f64::from(size) / old).round().max(1.0) as u32;
        let mut transforms: Vec<Transform> = self.train.clone().into();
        for transform in &mut transforms {
            match transform {
                Transform::Resize(t) => scale(&mut t.size),
                Transform::CenterCrop(t) => scale(&mut t.size),
                Transform::RandomCrop(t) => {
                    scale(&mut t.size);
                    if t.padding > 0 {
                        scale(&mut t.padding);
                    }
                }
                Transform::RandomResizedCrop(t) => scale(&mut t.size),
                Transform::RandomShorterSide(t) => {
                    scale(&mut t.min);
                    scale(&mut t.max);
                }
                _ => {}
            }
        }
        Pipeline::new(transforms).map_err(|error| Error::Invalid(error.to_string()))
    }

    /// Changes the side of all images to `size`; what validation resizes to before its crop changes in proportion,
    /// rounded down as torchvision's recipes do it (224 → 256, 64 → 73).
    ///
    /// # Errors
    /// Fails if a size is out of the range of its transform.
    pub fn set_size(&mut self, size: u32) -> Result<(), Error> {
        self.train = self.resized(size)?;
        self.eval.resize = (u64::from(self.eval.resize) * u64::from(size) / u64::from(self.eval.crop.max(1))) as u32;
        self.eval.crop = size;
        self.sizes.clear();
        Ok(())
    }

    /// The card's part about images: what validation does.
    pub fn preprocess(&self) -> Preprocess {
        use datasets::transforms::{Interpolation, ResizeRule};
        let EvalTransform { resize, rule, crop, interpolation, antialias } = self.eval;
        let resize = resize as usize;
        Preprocess {
            resize: match rule {
                ResizeRule::Shorter => hub::Resize::ShorterSide(resize),
                ResizeRule::Squash => hub::Resize::Squash([resize; 2]),
            },
            input_size: [crop as usize; 2],
            interpolation: match interpolation {
                Interpolation::Nearest => hub::Interpolation::Nearest,
                Interpolation::Bilinear => hub::Interpolation::Bilinear,
                Interpolation::Bicubic => hub::Interpolation::Bicubic,
            },
            antialias,
            channel_order: self.channel_order,
            mean: self.mean,
            std: self.std,
            orientation: Some(self.orientation),
        }
    }

    /// Takes over how a card prepares images, the training crop's size with it.
    ///
    /// # Errors
    /// For a card of rectangles, which no training transform here makes.
    pub(crate) fn follow(&mut self, card: &Preprocess) -> Result<(), Error> {
        use datasets::transforms::{Interpolation, ResizeRule};
        let [height, width] = card.input_size;
        let too_many = |side: usize| Error::Invalid(format!("{side} pixels are too many"));
        let side = |side: usize| u32::try_from(side).map_err(|_| too_many(side));
        if height != width {
            return Err(Error::Invalid(format!(
                "the weights' card asks for {height} × {width} pixels; training makes squares: choose other weights"
            )));
        }
        self.set_size(side(width)?)?;
        (self.eval.resize, self.eval.rule) = match card.resize {
            hub::Resize::ShorterSide(shorter) => (side(shorter)?, ResizeRule::Shorter),
            hub::Resize::Squash([height, width]) if height == width => (side(width)?, ResizeRule::Squash),
            hub::Resize::Squash([height, width]) => {
                return Err(Error::Invalid(format!(
                    "the weights' card squashes images to {height} × {width} pixels; training knows squares"
                )));
            }
        };
        self.eval.interpolation = match card.interpolation {
            hub::Interpolation::Nearest => Interpolation::Nearest,
            hub::Interpolation::Bilinear => Interpolation::Bilinear,
            hub::Interpolation::Bicubic => Interpolation::Bicubic,
        };
        self.eval.antialias = card.antialias;
        (self.mean, self.std, self.channel_order) = (card.mean, card.std, card.channel_order);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::read::shipped;

    #[test]
    fn a_change_of_size_keeps_the_proportions_of_validation() {
        let mut images = shipped("imagenet-classic").unwrap().images;
        images.set_size(64).unwrap();
        assert_eq!((images.size(), images.eval.resize, images.eval.crop), (Some(64), 73, 64));
    }

    #[test]
    fn how_images_are_decoded_is_recorded_in_recipe_and_card() {
        use datasets::OrientationPolicy;
        let mut overrides = crate::recipe::Overrides::default();
        let recipe = crate::recipe::load("digits", &overrides).unwrap();
        assert_eq!(recipe.images.decoding().orientation, OrientationPolicy::Apply);
        assert!(recipe.to_toml().contains("orientation = \"apply\""));
        overrides.parse("images.orientation=ignore").unwrap();
        overrides.parse("images.max_pixels=300000000").unwrap();
        let recipe = crate::recipe::load("digits", &overrides).unwrap();
        let options = recipe.images.decoding();
        assert_eq!((options.orientation, options.limits.max_pixels), (OrientationPolicy::Ignore, 300_000_000));
        assert_eq!(recipe.images.preprocess().orientation, Some(OrientationPolicy::Ignore));
    }

    #[test]
    fn progressive_resizing_begins_with_the_plain_size() {
        let mut images = shipped("imagenet-classic").unwrap().images;
        images.sizes = vec![super::Phase { epoch: 3, size: 160 }];
        let phases = images.phases().unwrap();
        let sizes: Vec<_> = phases.iter().map(|(epoch, phase)| (*epoch, phase.output_size().unwrap()[0])).collect();
        assert_eq!(sizes, [(0, 224), (2, 160)]);
        images.sizes[0].epoch = 1;
        assert_eq!(images.phases().unwrap().len(), 1);
    }
}
