//! The model card: what one must know of a network to use it.

use std::path::Path;

use datasets::{OrientationPolicy, imagenet};
use models::Architecture;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, files, weights::MAX_CLASSES};

/// The largest height and width of a preprocessed image, in pixels.
pub(crate) const MAX_SIDE: usize = 16_384;

/// The largest number of pixels of a preprocessed image: 4096 × 4096.
const MAX_PIXELS: usize = 1 << 24;

/// The longest name of a class, in bytes.
const MAX_CLASS_NAME: usize = 4096;

/// The largest card, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// The version of the card's form that this build writes and reads.
const FORMAT: u32 = 1;

/// Everything that inference needs besides the weights. Published weights have built-in cards; every checkpoint that
/// Hearth writes carries one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// The version of this form.
    pub format: u32,
    /// Which network.
    pub architecture: Architecture,
    /// The names of the classes, in the order of the logits.
    pub classes: Vec<String>,
    /// How an image becomes the network's input.
    pub preprocess: Preprocess,
    /// Whether the network maps its input to ±1 itself (torchvision's published GoogLeNet and Inception v3).
    #[serde(default)]
    pub transform_input: bool,
    /// Where the weights come from: a URL, a run, a paper.
    pub origin: String,
}

/// From an image to a network's input: resize, crop the centre, order the channels, normalise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// How the image is resized first.
    pub resize: Resize,
    /// Height and width of the centre crop, in pixels: the network's input.
    pub input_size: [usize; 2],
    /// The filter of the resize.
    pub interpolation: Interpolation,
    /// Whether the filter widens when an image shrinks, as Pillow's does.
    pub antialias: bool,
    /// The order of the input's channels.
    pub channel_order: ChannelOrder,
    /// The mean of each channel, in that order, for values from 0 to 1.
    pub mean: [f32; 3],
    /// The deviation of each channel, likewise.
    pub std: [f32; 3],
    /// What becomes of the orientation in an image's metadata. Cards without it, like those of published weights, have
    /// it applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orientation: Option<OrientationPolicy>,
}

/// How an image is resized before the centre crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Resize {
    /// Resizes the shorter side to this number of pixels, keeping the aspect ratio.
    ShorterSide(usize),
    /// To exactly this height and width, whatever the aspect ratio.
    Squash([usize; 2]),
}

/// The filter of a resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Interpolation {
    Nearest,
    Bilinear,
    Bicubic,
}

/// The order of an input's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum ChannelOrder {
    Rgb,
    Bgr,
}

/// The mean of ImageNet's training images, RGB from 0 to 1.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// The deviation of ImageNet's training images, RGB from 0 to 1.
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

impl Preprocess {
    /// torchvision's: shorter side to `resize`, centre crop of `crop`, ImageNet's mean and deviation.
    pub fn imagenet(resize: usize, crop: usize) -> Self {
        Self {
            resize: Resize::ShorterSide(resize),
            input_size: [crop, crop],
            interpolation: Interpolation::Bilinear,
            antialias: true,
            channel_order: ChannelOrder::Rgb,
            mean: IMAGENET_MEAN,
            std: IMAGENET_STD,
            orientation: None,
        }
    }

    /// BVLC's for the GoogLeNet of 2014: squashed to 256 × 256, centre crop of 224, BGR from 0 to 255 minus
    /// (104, 117, 123).
    pub fn bvlc() -> Self {
        Self {
            resize: Resize::Squash([256, 256]),
            input_size: [224, 224],
            interpolation: Interpolation::Bilinear,
            antialias: true,
            channel_order: ChannelOrder::Bgr,
            mean: [104.0 / 255.0, 117.0 / 255.0, 123.0 / 255.0],
            std: [1.0 / 255.0; 3],
            orientation: None,
        }
    }

    /// What the architecture's published weights want. For files that have no card of their own.
    pub fn of(architecture: Architecture) -> Self {
        match architecture.default_size() {
            _ if architecture == Architecture::GoogLeNet2014 => Self::bvlc(),
            299 => Self::imagenet(342, 299),
            32 => Self::imagenet(32, 32),
            _ => Self::imagenet(256, 224),
        }
    }
}

/// The names of ImageNet's 1000 classes, in label order.
pub fn imagenet_classes() -> Vec<String> {
    imagenet::classes().iter().map(|class| class.name.clone()).collect()
}

impl Card {
    /// A card with the architecture's usual preprocessing. A thousand classes are ImageNet's; others are only numbered.
    pub fn of(architecture: Architecture, num_classes: usize, origin: impl Into<String>) -> Self {
        let classes = match num_classes {
            1000 => imagenet_classes(),
            n => (0..n).map(|i| format!("class {i}")).collect(),
        };
        Self {
            format: FORMAT,
            architecture,
            classes,
            preprocess: Preprocess::of(architecture),
            transform_input: false,
            origin: origin.into(),
        }
    }

    /// Reads a card from JSON; `path` names its file in errors.
    ///
    /// # Errors
    /// [`Error::Card`] where it is not a card, of another form, or contradicts itself.
    pub fn from_json(json: &str, path: &Path) -> Result<Self> {
        let error = |cause: String| Error::Card { path: path.to_path_buf(), cause };
        let card: Card = serde_json::from_str(json).map_err(|cause| error(cause.to_string()))?;
        card.check().map_err(error)?;
        Ok(card)
    }

    /// Reads a card from a JSON file.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Card`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |source| Error::Io { action: "read", path: path.to_path_buf(), source };
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(io(std::io::Error::other("it is not a file")));
        }
        let bytes = files::read_whole(path, MAX_BYTES).map_err(io)?;
        let text = String::from_utf8(bytes).map_err(|error| io(std::io::Error::other(error)))?;
        Self::from_json(&text, path)
    }

    /// The card as indented JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a card has only plain fields")
    }

    /// Writes the card as a JSON file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        files::write_whole(path.as_ref(), |temporary| std::fs::write(temporary, self.to_json() + "\n"))
    }

    /// Checks that the card is whole, and that each of its numbers is possible.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Preprocess { input_size, mean, std, resize, .. } = &self.preprocess;
        if self.format != FORMAT {
            return Err(format!("its format is {}, this build reads {FORMAT}", self.format));
        }
        if self.classes.is_empty() {
            return Err("it has no classes".to_string());
        }
        if self.classes.len() > MAX_CLASSES {
            return Err(format!("it has {} classes; at most {MAX_CLASSES} are supported", self.classes.len()));
        }
        if let Some(index) = self.classes.iter().position(|class| class.len() > MAX_CLASS_NAME) {
            return Err(format!("the name of class {index} has more than {MAX_CLASS_NAME} bytes"));
        }
        self.architecture.check_input(*input_size).map_err(|error| error.to_string())?;
        if !mean.iter().all(|m| m.is_finite()) || !std.iter().all(|s| s.is_finite() && *s > 0.0) {
            return Err(format!("mean {mean:?} must be finite and std {std:?} positive"));
        }
        let resized = match *resize {
            Resize::ShorterSide(side) => [side, side],
            Resize::Squash(size) => size,
        };
        for [height, width] in [resized, *input_size] {
            let sides = 1..=MAX_SIDE;
            if !sides.contains(&height) || !sides.contains(&width) {
                return Err(format!("a size of {height} × {width} pixels is not possible: a side has 1 to {MAX_SIDE}"));
            }
            if height * width > MAX_PIXELS {
                return Err(format!("a size of {height} × {width} pixels is more than {MAX_PIXELS} pixels"));
            }
        }
        Ok(())
    }
}
