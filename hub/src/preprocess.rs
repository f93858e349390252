//! Preprocessing from encoded bytes or decoded pixels to a network's input, as the model card specifies.

use burn::tensor::{Device, Tensor};
use datasets::{
    DecodeError, DecodeOptions, Decoded, ImageBatch, decode,
    transforms::{Interpolation, Rect, Resize, ResizeRule, resize},
};
use image::{RgbImage, imageops};

use crate::{Card, ChannelOrder, Error, Preprocess, Result};

/// The preprocessing of a model card.
#[derive(Debug, Clone)]
pub struct Preprocessor {
    card: Preprocess,
    resizing: Resizing,
    /// Height and width of the center crop.
    crop: [u32; 2],
    options: DecodeOptions,
}

#[derive(Debug, Clone, Copy)]
enum Resizing {
    /// torchvision's: the shorter side, or both sides to the same length.
    Rule(Resize),
    /// Resize to this height and width.
    Squash([u32; 2], Interpolation, bool),
}

impl Preprocessor {
    /// Creates the preprocessing that `card` specifies.
    ///
    /// # Errors
    /// [`Error::Preprocess`] where the card is not valid.
    pub fn new(card: &Card) -> Result<Self> {
        card.check()
            .and_then(|()| Self::build(card.preprocess.clone()))
            .map_err(|cause| Error::Preprocess(cause.into()))
    }

    fn build(card: Preprocess) -> Result<Self, String> {
        let pixels = |side: usize| u32::try_from(side).map_err(|_| format!("{side} pixels are too large a size"));
        let interpolation = match card.interpolation {
            crate::Interpolation::Nearest => Interpolation::Nearest,
            crate::Interpolation::Bilinear => Interpolation::Bilinear,
            crate::Interpolation::Bicubic => Interpolation::Bicubic,
        };
        let antialias = card.antialias;
        let resize =
            |size: usize, rule| Ok::<_, String>(Resize { size: pixels(size)?, rule, interpolation, antialias });
        let resizing = match card.resize {
            crate::Resize::ShorterSide(side) => Resizing::Rule(resize(side, ResizeRule::Shorter)?),
            crate::Resize::Squash([height, width]) if height == width => {
                Resizing::Rule(resize(height, ResizeRule::Squash)?)
            }
            crate::Resize::Squash([height, width]) => {
                Resizing::Squash([pixels(height)?, pixels(width)?], interpolation, antialias)
            }
        };
        let crop = [pixels(card.input_size[0])?, pixels(card.input_size[1])?];
        let options = DecodeOptions { orientation: card.orientation.unwrap_or_default(), ..DecodeOptions::default() };
        Ok(Self { card, resizing, crop, options })
    }

    /// Height and width of the network's input.
    pub fn input_size(&self) -> [usize; 2] {
        self.card.input_size
    }

    /// Sets the largest number of pixels of an image, before it is resized. Default:
    /// [`Limits::default`](datasets::Limits::default).
    pub fn with_max_pixels(mut self, max_pixels: Option<u64>) -> Self {
        if let Some(max_pixels) = max_pixels {
            self.options = self.options.max_pixels(max_pixels);
        }
        self
    }

    /// How images are decoded: the card's orientation, and limits.
    pub fn options(&self) -> &DecodeOptions {
        &self.options
    }

    /// Decodes, resizes and crops one image.
    ///
    /// # Errors
    /// Any [`DecodeError`].
    pub fn decode(&self, bytes: &[u8]) -> Result<Decoded, DecodeError> {
        self.decode_with(bytes, &self.options)
    }

    /// [`decode`](Self::decode) with other options, which may be cancelled for instance.
    ///
    /// # Errors
    /// Any [`DecodeError`].
    pub fn decode_with(&self, bytes: &[u8], options: &DecodeOptions) -> Result<Decoded, DecodeError> {
        Ok(decode(bytes, options)?.map(|image| self.prepare(&image)))
    }

    /// Resizes and crops one decoded image.
    ///
    /// # Panics
    /// Panics if the image has no pixels.
    pub fn prepare(&self, image: &RgbImage) -> RgbImage {
        assert!(!image.is_empty(), "an image without pixels");
        match self.resizing {
            Resizing::Rule(resize) => {
                // Only the pixels of the crop, however long the other side of the image is.
                let (width, height) = resize.target(image.width(), image.height());
                let (left, columns) = center(width, self.crop[1]);
                let (top, rows) = center(height, self.crop[0]);
                let window = Rect { left, top, width: columns, height: rows };
                center_crop(resize.window(image, window), self.crop)
            }
            Resizing::Squash([height, width], interpolation, antialias) => {
                center_crop(resize(image, width, height, interpolation, antialias), self.crop)
            }
        }
    }

    /// Packs images of the input size into a batch on the host: `[n, 3, h, w]` bytes, RGB.
    ///
    /// # Panics
    /// Panics if an image does not have the size that [`decode`](Self::decode) returns.
    pub fn batch(&self, images: &[&RgbImage]) -> ImageBatch {
        let [height, width] = self.card.input_size;
        let mut pixels = Vec::with_capacity(images.len() * 3 * height * width);
        for image in images {
            assert_eq!([image.height() as usize, image.width() as usize], [height, width], "an image of another size");
            for channel in 0..3 {
                pixels.extend(image.as_raw().iter().skip(channel).step_by(3));
            }
        }
        let shape = [images.len(), 3, height, width];
        let indices = (0..images.len()).collect();
        ImageBatch { images: pixels, shape, labels: None, mix: None, indices, epoch: 0, number: 0 }
    }

    /// Converts a batch of bytes to the network's input `[n, 3, h, w]`: channels in the card's order, normalized on the
    /// device.
    pub fn normalize(&self, batch: &ImageBatch, device: &Device) -> Tensor<4> {
        let Preprocess { mut mean, mut std, channel_order, .. } = self.card;
        match channel_order {
            ChannelOrder::Rgb => batch.normalize(mean, std, device),
            ChannelOrder::Bgr => {
                // The bytes are RGB; mean and deviation of the card are in the network's channel order.
                mean.reverse();
                std.reverse();
                batch.normalize(mean, std, device).flip([1])
            }
        }
    }
}

/// Crops the central `height × width` pixels and pads an image that is too small with black, like torchvision's
/// `CenterCrop`: halves round to even, and an odd pixel of padding goes to the right and bottom.
fn center_crop(image: RgbImage, [height, width]: [u32; 2]) -> RgbImage {
    if image.dimensions() == (width, height) {
        return image;
    }
    let start = |side: u32, wanted: u32| match side >= wanted {
        true => i64::from(center(side, wanted).0),
        false => -i64::from((wanted - side) / 2),
    };
    let mut crop = RgbImage::new(width, height);
    imageops::replace(&mut crop, &image, -start(image.width(), width), -start(image.height(), height));
    crop
}

/// Returns the first pixel and the number of pixels of the central `wanted` of `side` pixels; all if there are fewer.
fn center(side: u32, wanted: u32) -> (u32, u32) {
    match side >= wanted {
        true => ((f64::from(side - wanted) / 2.0).round_ties_even() as u32, wanted),
        false => (0, side),
    }
}

#[cfg(test)]
mod tests {
    use models::Architecture;

    use super::*;

    fn card(resize: crate::Resize, input_size: [usize; 2]) -> Card {
        let mut card = Card::of(Architecture::ResNet20, 10, "a test");
        card.preprocess = Preprocess { resize, input_size, ..Preprocess::imagenet(8, 8) };
        card
    }

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 5) as u8, (y * 7) as u8, (x * y) as u8]))
    }

    fn encoded(image: &RgbImage) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn rectangles_are_cropped_as_squares_are() {
        let image = gradient(40, 30);
        let bytes = encoded(&image);
        let square = Preprocessor::new(&card(crate::Resize::ShorterSide(16), [12, 12])).unwrap();
        let tall = Preprocessor::new(&card(crate::Resize::ShorterSide(16), [12, 10])).unwrap();
        let (square, tall) = (square.decode(&bytes).unwrap().image, tall.decode(&bytes).unwrap().image);
        assert_eq!((tall.width(), tall.height()), (10, 12));
        // 21 × 16 pixels: the square begins at column 4 (4.5 rounds to even), the narrower crop at 6 (5.5).
        assert_eq!(tall, imageops::crop_imm(&square, 2, 0, 10, 12).to_image());

        let squashed = Preprocessor::new(&card(crate::Resize::Squash([12, 10]), [12, 10])).unwrap();
        let expected = resize(&image, 10, 12, Interpolation::Bilinear, true);
        assert_eq!(squashed.decode(&bytes).unwrap().image, expected);
    }

    #[test]
    fn the_card_decides_on_the_orientation_and_old_cards_apply_it() {
        let mut bytes = std::io::Cursor::new(Vec::new());
        gradient(24, 16).write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
        let bytes = bytes.into_inner();
        // A quarter turn clockwise, in an EXIF segment behind the start.
        let block = b"\xff\xe1\0\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        let turned = [&bytes[..2], block, &bytes[2..]].concat();
        let prepared = |card: &Card, bytes: &[u8]| Preprocessor::new(card).unwrap().decode(bytes).unwrap().image;
        let squashed = |size: [usize; 2]| card(crate::Resize::Squash(size), size);
        let stored = prepared(&squashed([16, 24]), &bytes);

        let mut card = squashed([24, 16]);
        let json = card.to_json();
        assert!(!json.contains("orientation"), "cards of before have none");
        assert_eq!(Card::from_json(&json, std::path::Path::new("card")).unwrap(), card);
        assert_eq!(prepared(&card, &turned), imageops::rotate90(&stored));

        card.preprocess.orientation = Some(datasets::OrientationPolicy::Ignore);
        let read = Card::from_json(&card.to_json(), std::path::Path::new("card")).unwrap();
        assert_eq!(read, card);
        assert_eq!(prepared(&read, &turned), resize(&stored, 16, 24, Interpolation::Bilinear, true));
    }

    #[test]
    fn impossible_sizes_are_refused_and_long_images_cost_their_crop() {
        let refused = |resize, input_size| Preprocessor::new(&card(resize, input_size)).unwrap_err();
        use crate::Resize::{ShorterSide, Squash};
        for (resize, input_size) in [
            (ShorterSide(16), [(1 << 32) + 16, (1 << 32) + 8]),
            (ShorterSide((1 << 32) + 16), [16, 12]),
            (Squash([1 << 20, 1 << 20]), [16, 12]),
            (Squash([16_384, 16_384]), [16, 12]),
            (ShorterSide(16), [1_000_000, 12]),
            (ShorterSide(16), [16_384, 16_000]),
            (Squash([usize::MAX, 16]), [16, 16]),
        ] {
            let error = std::error::Error::source(&refused(resize, input_size)).unwrap().to_string();
            assert!(error.contains("pixels"), "{error}");
        }
        // Resized as a whole it would have 4096 × 65535 pixels.
        let long = encoded(&gradient(20_000, 2));
        let crop = Preprocessor::new(&card(ShorterSide(4096), [12, 10])).unwrap().decode(&long).unwrap();
        assert_eq!((crop.image.width(), crop.image.height()), (10, 12));
    }

    #[test]
    fn an_image_too_small_for_the_crop_is_padded() {
        let padded = center_crop(gradient(3, 6), [4, 6]);
        assert_eq!((padded.width(), padded.height()), (6, 4));
        assert_eq!(padded.get_pixel(0, 0).0, [0, 0, 0]);
        assert_eq!(padded.get_pixel(2, 0), gradient(3, 6).get_pixel(1, 1));
    }

    #[test]
    fn bgr_input_is_normalized_by_the_card_s_order() {
        let mut card = card(crate::Resize::Squash([1, 1]), [1, 1]);
        card.preprocess.channel_order = ChannelOrder::Bgr;
        card.preprocess.mean = [10.0 / 255.0, 20.0 / 255.0, 30.0 / 255.0];
        card.preprocess.std = [1.0 / 255.0; 3];
        let preprocess = Preprocessor::new(&card).unwrap();
        let batch = preprocess.batch(&[&RgbImage::from_pixel(1, 1, image::Rgb([1, 2, 3]))]);
        let input = preprocess.normalize(&batch, &Device::flex()).into_data().try_to_vec::<f32>().unwrap();
        let expected = [3.0 - 10.0, 2.0 - 20.0, 1.0 - 30.0];
        assert!(input.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{input:?}");
    }
}
