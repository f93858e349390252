//! Evaluation protocols: one center crop, or several crops whose probabilities are averaged.

use std::fmt;

use datasets::{
    DecodeError, DecodeOptions, Decoded, Preprocess, SampleContext, decode,
    meters::{Stage, Stopwatch},
    transforms::{CenterCrop, FiveCrop, Interpolation, Resize, ResizeRule, TenCrop, resize},
};
use hub::Card;
use image::{RgbImage, imageops};

use crate::{Error, Result};

/// Which crops of an image are evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crops {
    /// The center crop of the card.
    One,
    /// Corners and center of the resized image and of its mirror image (AlexNet, 2012; torchvision's `TenCrop`).
    Ten,
    /// GoogLeNet's (Szegedy et al., 2014, section 7): four sizes, three squares of each, six crops of each square
    /// (corners, center, whole), each with its mirror image.
    All144,
}

/// An evaluation protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protocol {
    /// The crops of each resized image.
    pub crops: Crops,
    /// The shorter sides in pixels to which an image is resized, in place of the card's.
    pub scales: Vec<u32>,
    /// Whether to add the mirror image of each crop. Ten and 144 crops include it.
    pub flip: bool,
    /// Whether to use the whole resized image in place of crops (VGG's dense evaluation).
    pub dense: bool,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.crops {
            _ if self.dense => f.write_str("dense")?,
            Crops::One => f.write_str("center crop")?,
            Crops::Ten => f.write_str("10 crops")?,
            Crops::All144 => f.write_str("144 crops")?,
        }
        if !self.scales.is_empty() {
            let scales: Vec<String> = self.scales.iter().map(u32::to_string).collect();
            write!(f, " at {}", scales.join(", "))?;
        }
        if self.flip { f.write_str(" and mirrored") } else { Ok(()) }
    }
}

/// The crops of an image, stacked vertically so that a loader carries them as one image.
#[derive(Debug, Clone)]
pub struct CropStack {
    crops: Crops,
    resizes: Vec<Resize>,
    flip: bool,
    dense: bool,
    side: u32,
    options: DecodeOptions,
}

impl CropStack {
    /// Creates the crops of `protocol` for a network with this card, whose images are decoded with `options`.
    ///
    /// # Errors
    /// Fails if the card's input is not square, or if a scale is smaller than the input.
    pub fn new(protocol: &Protocol, card: &Card, options: DecodeOptions) -> Result<Self> {
        let preprocess = &card.preprocess;
        let [height, width] = preprocess.input_size;
        let unsupported = |cause: String| Err(Error::Unsupported(cause));
        if height != width {
            return unsupported(format!(
                "the card of {} has an input of {height} × {width} pixels; only square inputs are supported",
                card.architecture
            ));
        }
        let too_many = |side: usize| Error::Unsupported(format!("{side} pixels are too many"));
        let pixels = |side: usize| u32::try_from(side).map_err(|_| too_many(side));
        let side = pixels(width)?;
        let interpolation = match preprocess.interpolation {
            hub::Interpolation::Nearest => Interpolation::Nearest,
            hub::Interpolation::Bilinear => Interpolation::Bilinear,
            hub::Interpolation::Bicubic => Interpolation::Bicubic,
        };
        let of = |size: u32, rule| Resize { size, rule, interpolation, antialias: preprocess.antialias };
        let own = match preprocess.resize {
            hub::Resize::ShorterSide(shorter) => of(pixels(shorter)?, ResizeRule::Shorter),
            hub::Resize::Squash([height, width]) if height == width => of(pixels(width)?, ResizeRule::Squash),
            hub::Resize::Squash([height, width]) => {
                return unsupported(format!(
                    "the card of {} resizes to {height} × {width} pixels; only square inputs are supported",
                    card.architecture
                ));
            }
        };
        let scaled = |scales: &[u32]| scales.iter().map(|&scale| of(scale, ResizeRule::Shorter)).collect::<Vec<_>>();
        let resizes = match (protocol.crops, protocol.scales.as_slice()) {
            // The paper's four sizes for an input of 224 pixels.
            (Crops::All144, []) => scaled(&[256, 288, 320, 352].map(|scale| scale * side / 224)),
            (_, []) => vec![own],
            (_, scales) => scaled(scales),
        };
        if let Some(small) = resizes.iter().find(|resize| resize.size < side) {
            return unsupported(format!(
                "images resized to {} pixels are smaller than the network's input of {side} pixels",
                small.size
            ));
        }
        let Protocol { crops, dense, .. } = *protocol;
        if dense && crops != Crops::One {
            return unsupported("--dense uses the whole image and cannot be combined with --crops".into());
        }
        Ok(Self { crops, resizes, flip: protocol.flip && crops == Crops::One, dense, side, options })
    }

    /// Returns the number of crops per image.
    pub fn count(&self) -> usize {
        let each = match self.crops {
            Crops::One => 1 + usize::from(self.flip),
            Crops::Ten => 10,
            Crops::All144 => 36,
        };
        each * self.resizes.len()
    }

    /// Whether crops are whole images of any aspect ratio, which cannot be batched.
    pub fn is_dense(&self) -> bool {
        self.dense
    }

    /// Returns the side of a crop in pixels, unless crops are whole images.
    pub fn side(&self) -> u32 {
        self.side
    }

    /// Returns the crops of an image.
    pub fn of(&self, image: &RgbImage) -> Vec<RgbImage> {
        let mut crops = Vec::with_capacity(self.count());
        for to in &self.resizes {
            let resized = to.apply(image);
            match self.crops {
                Crops::One => {
                    let crop = if self.dense { resized } else { CenterCrop { size: self.side }.apply(&resized) };
                    if self.flip {
                        crops.push(imageops::flip_horizontal(&crop));
                    }
                    crops.push(crop);
                }
                Crops::Ten => crops.extend(TenCrop { size: self.side, vertical_flip: false }.apply(&resized)),
                Crops::All144 => {
                    for square in squares(&resized) {
                        let whole = resize(&square, self.side, self.side, to.interpolation, to.antialias);
                        let five = FiveCrop { size: self.side }.apply(&square);
                        for crop in five.into_iter().chain([whole]) {
                            crops.push(imageops::flip_horizontal(&crop));
                            crops.push(crop);
                        }
                    }
                }
            }
        }
        crops
    }
}

/// Returns the left, central and right square of a wide image; the upper, central and lower one of a tall one.
fn squares(image: &RgbImage) -> [RgbImage; 3] {
    let (width, height) = image.dimensions();
    let side = width.min(height);
    let rest = width.max(height) - side;
    [0, rest / 2, rest].map(|at| {
        let (left, top) = if width >= height { (at, 0) } else { (0, at) };
        imageops::crop_imm(image, left, top, side, side).to_image()
    })
}

impl Preprocess for CropStack {
    fn output_size(&self) -> [usize; 2] {
        let side = self.side as usize;
        [side * self.count(), side]
    }

    fn process(&self, bytes: &[u8], _context: SampleContext, watch: &mut Stopwatch) -> Result<Decoded, DecodeError> {
        let decoded = decode(bytes, &self.options);
        watch.lap(Stage::Decode);
        Ok(decoded?.map(|image| {
            let crops = self.of(&image);
            let pixels: Vec<u8> = crops.iter().flat_map(|crop| crop.as_raw()).copied().collect();
            let height = self.side * crops.len() as u32;
            RgbImage::from_raw(self.side, height, pixels).expect("as many pixels as crops have")
        }))
    }
}

#[cfg(test)]
mod tests {
    use models::Architecture;

    use super::*;

    fn stack(crops: Crops, scales: &[u32], flip: bool) -> Result<CropStack> {
        let card = Card::of(Architecture::ResNet18, 10, "a test");
        let protocol = Protocol { crops, scales: scales.to_vec(), flip, dense: false };
        CropStack::new(&protocol, &card, DecodeOptions::default())
    }

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb([(x / 2) as u8, (y / 2) as u8, (x + y) as u8]))
    }

    #[test]
    fn a_protocol_yields_its_number_of_crops() {
        let image = gradient(400, 300);
        for (crops, scales, flip, count) in [
            (Crops::One, &[][..], false, 1),
            (Crops::One, &[256, 384], true, 4),
            (Crops::Ten, &[], false, 10),
            (Crops::Ten, &[256, 288], true, 20),
            (Crops::All144, &[], false, 144),
        ] {
            let crops = stack(crops, scales, flip).unwrap();
            assert_eq!((crops.count(), crops.of(&image).len()), (count, count), "{crops:?}");
            assert!(crops.of(&image).iter().all(|crop| crop.dimensions() == (224, 224)));
            assert_eq!(crops.output_size(), [224 * count, 224]);
        }
        let error = stack(Crops::One, &[200], false).unwrap_err().to_string();
        assert!(error.contains("200") && error.contains("224"), "{error}");
    }

    #[test]
    fn the_center_crop_equals_the_card_preprocessing() {
        let image = gradient(400, 300);
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        let card = Card::of(Architecture::ResNet18, 10, "a test");
        let expected = hub::Preprocessor::new(&card).unwrap().decode(bytes.get_ref()).unwrap().image;
        assert_eq!(stack(Crops::One, &[], false).unwrap().of(&image)[0], expected);
        let mirrored = stack(Crops::One, &[], true).unwrap().of(&image);
        assert_eq!(mirrored[0], imageops::flip_horizontal(&expected));
    }

    #[test]
    fn squares_cover_both_ends_and_the_middle() {
        let tall = squares(&gradient(100, 160));
        assert!(tall.iter().all(|square| square.dimensions() == (100, 100)));
        assert_eq!(tall.map(|square| square.get_pixel(0, 0).0[1]), [0, 15, 30]);
    }
}
