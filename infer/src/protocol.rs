//! How an image is looked at when a network is judged: one centre crop, or several views whose probabilities are
//! averaged.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use datasets::{
    DecodeError, Limits, Preprocess, SampleContext, decode,
    meters::{Stage, Stopwatch},
    transforms::{CenterCrop, FiveCrop, Interpolation, Resize, ResizeRule, TenCrop, resize},
};
use image::{RgbImage, imageops};
use models::Card;

/// The views of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crops {
    /// The centre, as the card says.
    One,
    /// The corners and the centre of the resized image and of its mirror (AlexNet, 2012; torchvision's `TenCrop`).
    Ten,
    /// GoogLeNet's (Szegedy et al., 2014, section 7): the image at four sizes, three squares of each, of a square its
    /// corners, its centre and the whole, each with its mirror.
    All144,
}

/// A way of judging.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protocol {
    /// Which parts of it.
    pub crops: Crops,
    /// The shorter sides in pixels to which an image is resized, one after the other, in place of the card's.
    pub scales: Vec<u32>,
    /// Whether each view comes with its mirror too. Ten crops and 144 have theirs anyway.
    pub flip: bool,
    /// Whether the whole resized image is looked at in place of crops (VGG's dense evaluation).
    pub dense: bool,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.crops {
            _ if self.dense => f.write_str("dense")?,
            Crops::One => f.write_str("centre crop")?,
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

/// The views of an image as a card wants them, stacked from top to bottom so that a loader carries them as one image.
#[derive(Debug, Clone)]
pub struct Views {
    crops: Crops,
    resizes: Vec<Resize>,
    flip: bool,
    dense: bool,
    side: u32,
}

impl Views {
    /// The views that `protocol` takes for a network with this card.
    ///
    /// # Errors
    /// Where the card wants rectangles, which these protocols do not know, or a scale is smaller than the input.
    pub fn new(protocol: &Protocol, card: &Card) -> Result<Self> {
        let preprocess = &card.preprocess;
        let [height, width] = preprocess.input_size;
        ensure!(
            height == width,
            "the card of {} asks for {height} × {width} pixels; evaluation knows squares",
            card.architecture
        );
        let pixels = |side: usize| u32::try_from(side).with_context(|| format!("{side} pixels are too many"));
        let side = pixels(width)?;
        let interpolation = match preprocess.interpolation {
            models::Interpolation::Nearest => Interpolation::Nearest,
            models::Interpolation::Bilinear => Interpolation::Bilinear,
            models::Interpolation::Bicubic => Interpolation::Bicubic,
        };
        let of = |size: u32, rule| Resize { size, rule, interpolation, antialias: preprocess.antialias };
        let own = match preprocess.resize {
            models::Resize::ShorterSide(shorter) => of(pixels(shorter)?, ResizeRule::Shorter),
            models::Resize::Squash([height, width]) if height == width => of(pixels(width)?, ResizeRule::Squash),
            models::Resize::Squash([height, width]) => {
                bail!(
                    "the card of {} squashes to {height} × {width} pixels; evaluation knows squares",
                    card.architecture
                )
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
            bail!("images resized to {} pixels are smaller than the network's input of {side}", small.size);
        }
        let Protocol { crops, dense, .. } = *protocol;
        ensure!(!dense || crops == Crops::One, "--dense looks at the whole image: it goes without --crops");
        Ok(Self { crops, resizes, flip: protocol.flip && crops == Crops::One, dense, side })
    }

    /// Views an image.
    pub fn count(&self) -> usize {
        let each = match self.crops {
            Crops::One => 1 + usize::from(self.flip),
            Crops::Ten => 10,
            Crops::All144 => 36,
        };
        each * self.resizes.len()
    }

    /// Whether views are whole images, of any aspect ratio, which no batch can hold.
    pub fn is_dense(&self) -> bool {
        self.dense
    }

    /// The side of a view in pixels, unless they are whole images.
    pub fn side(&self) -> u32 {
        self.side
    }

    /// The views of an image.
    pub fn of(&self, image: &RgbImage) -> Vec<RgbImage> {
        let mut views = Vec::with_capacity(self.count());
        for to in &self.resizes {
            let resized = to.apply(image);
            match self.crops {
                Crops::One => {
                    let view = if self.dense { resized } else { CenterCrop { size: self.side }.apply(&resized) };
                    if self.flip {
                        views.push(imageops::flip_horizontal(&view));
                    }
                    views.push(view);
                }
                Crops::Ten => views.extend(TenCrop { size: self.side, vertical_flip: false }.apply(&resized)),
                Crops::All144 => {
                    for square in squares(&resized) {
                        let whole = resize(&square, self.side, self.side, to.interpolation, to.antialias);
                        let five = FiveCrop { size: self.side }.apply(&square);
                        for view in five.into_iter().chain([whole]) {
                            views.push(imageops::flip_horizontal(&view));
                            views.push(view);
                        }
                    }
                }
            }
        }
        views
    }
}

/// The left, central and right square of a wide image; the upper, central and lower one of a tall one.
fn squares(image: &RgbImage) -> [RgbImage; 3] {
    let (width, height) = image.dimensions();
    let side = width.min(height);
    let rest = width.max(height) - side;
    [0, rest / 2, rest].map(|at| {
        let (left, top) = if width >= height { (at, 0) } else { (0, at) };
        imageops::crop_imm(image, left, top, side, side).to_image()
    })
}

impl Preprocess for Views {
    fn output_size(&self) -> [usize; 2] {
        let side = self.side as usize;
        [side * self.count(), side]
    }

    fn process(&self, bytes: &[u8], _context: SampleContext, watch: &mut Stopwatch) -> Result<RgbImage, DecodeError> {
        let image = decode(bytes, &Limits::default());
        watch.lap(Stage::Decode);
        let views = self.of(&image?);
        let mut pixels = Vec::with_capacity(views.len() * views[0].len());
        for view in &views {
            pixels.extend_from_slice(view.as_raw());
        }
        let height = self.side * views.len() as u32;
        Ok(RgbImage::from_raw(self.side, height, pixels).expect("as many pixels as views have"))
    }
}

#[cfg(test)]
mod tests {
    use models::Architecture;

    use super::*;

    fn views(crops: Crops, scales: &[u32], flip: bool) -> Result<Views> {
        let card = Card::of(Architecture::ResNet18, 10, "a test");
        Views::new(&Protocol { crops, scales: scales.to_vec(), flip, dense: false }, &card)
    }

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb([(x / 2) as u8, (y / 2) as u8, (x + y) as u8]))
    }

    #[test]
    fn a_protocol_has_as_many_views_as_it_says() {
        let image = gradient(400, 300);
        for (crops, scales, flip, count) in [
            (Crops::One, &[][..], false, 1),
            (Crops::One, &[256, 384], true, 4),
            (Crops::Ten, &[], false, 10),
            (Crops::Ten, &[256, 288], true, 20),
            (Crops::All144, &[], false, 144),
        ] {
            let views = views(crops, scales, flip).unwrap();
            assert_eq!((views.count(), views.of(&image).len()), (count, count), "{crops:?}");
            assert!(views.of(&image).iter().all(|view| view.dimensions() == (224, 224)));
            assert_eq!(views.output_size(), [224 * count, 224]);
        }
        let error = views(Crops::One, &[200], false).unwrap_err().to_string();
        assert!(error.contains("200") && error.contains("224"), "{error}");
    }

    #[test]
    fn the_centre_crop_is_the_card_s() {
        let image = gradient(400, 300);
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        let card = Card::of(Architecture::ResNet18, 10, "a test");
        let expected = zoo::CardPreprocess::new(&card).unwrap().decode(bytes.get_ref()).unwrap();
        assert_eq!(views(Crops::One, &[], false).unwrap().of(&image)[0], expected);
        let mirrored = views(Crops::One, &[], true).unwrap().of(&image);
        assert_eq!(mirrored[0], imageops::flip_horizontal(&expected));
    }

    #[test]
    fn squares_lie_at_both_ends_and_in_the_middle() {
        let tall = squares(&gradient(100, 160));
        assert!(tall.iter().all(|square| square.dimensions() == (100, 100)));
        assert_eq!(tall.map(|square| square.get_pixel(0, 0).0[1]), [0, 15, 30]);
    }
}
