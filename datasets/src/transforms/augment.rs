//! Augmentations: color jitter, lighting, erasing, and the automatic policies.

use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::{Interpolation, affine, color};
use crate::SampleRng;

/// torchvision's `ColorJitter`: brightness, contrast, saturation and hue, in an order drawn anew.
///
/// The factors of the first three are drawn from `[max(0, 1 − x), 1 + x]`, the hue's shift from `[−x, x]`; 0 leaves
/// a property alone.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ColorJitter {
    /// Strength of the change of brightness, from 0.
    pub brightness: f64,
    /// Strength of the change of contrast, from 0.
    pub contrast: f64,
    /// Strength of the change of saturation, from 0.
    pub saturation: f64,
    /// Strength of the change of hue in turns, 0 to 0.5.
    pub hue: f64,
}

impl ColorJitter {
    /// Jitters the image.
    pub fn apply(&self, image: &mut RgbImage, rng: &mut SampleRng) {
        let mut order = [0, 1, 2, 3];
        rng.shuffle(&mut order);
        let mut factor =
            |strength: f64| (strength > 0.0).then(|| rng.uniform((1.0 - strength).max(0.0), 1.0 + strength));
        let factors = [self.brightness, self.contrast, self.saturation].map(&mut factor);
        let hue = (self.hue > 0.0).then(|| rng.uniform(-self.hue, self.hue));
        for property in order {
            match (property, factors, hue) {
                (0, [Some(factor), _, _], _) => color::adjust_brightness(image, factor),
                (1, [_, Some(factor), _], _) => color::adjust_contrast(image, factor),
                (2, [_, _, Some(factor)], _) => color::adjust_saturation(image, factor),
                (3, _, Some(shift)) => color::adjust_hue(image, shift),
                _ => {}
            }
        }
    }
}

/// The PCA lighting of AlexNet (Krizhevsky et al., 2012): adds to all pixels the principal components of ImageNet's
/// colors, each times its eigenvalue and a normal draw of deviation `std`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lighting {
    /// The standard deviation of the draws.
    #[serde(default = "tenth")]
    pub std: f64,
}

fn tenth() -> f64 {
    0.1
}

/// Eigenvalues of the covariance of ImageNet's RGB values in `[0, 1]`, as published with fb.resnet.torch.
const EIGENVALUES: [f64; 3] = [0.2175, 0.0188, 0.0045];
/// Their eigenvectors, in columns.
const EIGENVECTORS: [[f64; 3]; 3] =
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]];

impl Lighting {
    /// Shifts the colors of the image.
    pub fn apply(&self, image: &mut RgbImage, rng: &mut SampleRng) {
        let weights = EIGENVALUES.map(|value| value * rng.normal() * self.std);
        let tables = EIGENVECTORS.map(|row| {
            let shift = 255.0 * row.iter().zip(weights).map(|(part, weight)| part * weight).sum::<f64>();
            std::array::from_fn::<u8, 256, _>(|value| (value as f64 + shift).round().clamp(0.0, 255.0) as u8)
        });
        for pixel in image.chunks_exact_mut(3) {
            for (value, table) in pixel.iter_mut().zip(&tables) {
                *value = table[usize::from(*value)];
            }
        }
    }
}

/// The fill of [`RandomErasing`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Erased {
    /// ImageNet's mean color: the 0 of torchvision, which erases after normalization.
    Mean,
    /// One color.
    Rgb([u8; 3]),
    /// Noise with ImageNet's mean and deviation: torchvision's `"random"`.
    Random,
}

/// torchvision's `RandomErasing` (Zhong et al., 2020): blanks a rectangle of random area and aspect ratio.
///
/// **NOTE.** torchvision erases in normalized tensors and this in u8 images, hence the values of [`Erased`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RandomErasing {
    /// The probability.
    pub p: f64,
    /// The range of the rectangle's fraction of the area.
    pub scale: [f64; 2],
    /// The range of the rectangle's aspect ratio, height over width.
    pub ratio: [f64; 2],
    /// The fill of the rectangle.
    pub value: Erased,
}

impl Default for RandomErasing {
    fn default() -> Self {
        Self { p: 0.5, scale: [0.02, 0.33], ratio: [0.3, 3.3], value: Erased::Mean }
    }
}

/// Mean and standard deviation of ImageNet's colors, in gray levels.
const IMAGENET: [(f64, f64); 3] =
    [(0.485 * 255.0, 0.229 * 255.0), (0.456 * 255.0, 0.224 * 255.0), (0.406 * 255.0, 0.225 * 255.0)];

impl RandomErasing {
    /// Blanks a rectangle with the probability `p`; after ten draws that do not fit, nothing.
    pub fn apply(&self, image: &mut RgbImage, rng: &mut SampleRng) {
        if !rng.chance(self.p) {
            return;
        }
        let (width, height) = (image.width(), image.height());
        let area = f64::from(width) * f64::from(height);
        let [low, high] = self.ratio.map(libm::log);
        for _ in 0..10 {
            let target = area * rng.uniform(self.scale[0], self.scale[1]);
            let ratio = libm::exp(rng.uniform(low, high));
            let h = (target * ratio).sqrt().round_ties_even() as u32;
            let w = (target / ratio).sqrt().round_ties_even() as u32;
            if h >= height || w >= width {
                continue;
            }
            let top = rng.below(u64::from(height - h) + 1) as u32;
            let left = rng.below(u64::from(width - w) + 1) as u32;
            for y in top..top + h {
                for x in left..left + w {
                    image.get_pixel_mut(x, y).0 = match self.value {
                        Erased::Mean => IMAGENET.map(|(mean, _)| mean.round() as u8),
                        Erased::Rgb(color) => color,
                        Erased::Random => {
                            IMAGENET.map(|(mean, std)| (mean + std * rng.normal()).round().clamp(0.0, 255.0) as u8)
                        }
                    };
                }
            }
            return;
        }
    }
}

/// One operation of the automatic policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
}

/// The operations of RandAugment and TrivialAugment, in torchvision's order.
const OPS: [Op; 14] = [
    Op::Identity,
    Op::ShearX,
    Op::ShearY,
    Op::TranslateX,
    Op::TranslateY,
    Op::Rotate,
    Op::Brightness,
    Op::Color,
    Op::Contrast,
    Op::Sharpness,
    Op::Posterize,
    Op::Solarize,
    Op::AutoContrast,
    Op::Equalize,
];

/// The operations of AugMix, in torchvision's order; the last four are those that `all_ops` adds.
const AUGMIX_OPS: [Op; 13] = [
    Op::ShearX,
    Op::ShearY,
    Op::TranslateX,
    Op::TranslateY,
    Op::Rotate,
    Op::Posterize,
    Op::Solarize,
    Op::AutoContrast,
    Op::Equalize,
    Op::Brightness,
    Op::Color,
    Op::Contrast,
    Op::Sharpness,
];

/// The strength of a policy's largest magnitude.
struct Strength {
    shear: f64,
    /// Pixels along x and y.
    translate: [f64; 2],
    degrees: f64,
    enhance: f64,
    /// Posterisation keeps from `most_bits` down to `most_bits − fewer_bits` bits.
    most_bits: f64,
    fewer_bits: f64,
}

impl Op {
    /// Whether the magnitude's sign is drawn.
    fn signed(self) -> bool {
        use Op as O;
        !matches!(self, O::Identity | O::Posterize | O::Solarize | O::AutoContrast | O::Equalize)
    }

    /// The magnitude of bin `bin` of `bins`.
    fn magnitude(self, bin: u32, bins: u32, strength: &Strength) -> f64 {
        let part = f64::from(bin) / f64::from(bins.max(2) - 1);
        match self {
            Self::Identity | Self::AutoContrast | Self::Equalize => 0.0,
            Self::ShearX | Self::ShearY => strength.shear * part,
            Self::TranslateX => strength.translate[0] * part,
            Self::TranslateY => strength.translate[1] * part,
            Self::Rotate => strength.degrees * part,
            Self::Brightness | Self::Color | Self::Contrast | Self::Sharpness => strength.enhance * part,
            Self::Posterize => strength.most_bits - (part * strength.fewer_bits).round_ties_even(),
            Self::Solarize => 255.0 * (1.0 - part),
        }
    }

    fn apply(self, image: &mut RgbImage, magnitude: f64, interpolation: Interpolation) {
        match self {
            Self::Identity => {}
            Self::ShearX => *image = affine::shear_x(image, magnitude, interpolation),
            Self::ShearY => *image = affine::shear_y(image, magnitude, interpolation),
            Self::TranslateX => *image = affine::translate(image, magnitude as i32, 0, interpolation),
            Self::TranslateY => *image = affine::translate(image, 0, magnitude as i32, interpolation),
            Self::Rotate => *image = affine::rotate(image, magnitude, interpolation),
            Self::Brightness => color::adjust_brightness(image, 1.0 + magnitude),
            Self::Color => color::adjust_saturation(image, 1.0 + magnitude),
            Self::Contrast => color::adjust_contrast(image, 1.0 + magnitude),
            Self::Sharpness => color::adjust_sharpness(image, 1.0 + magnitude),
            Self::Posterize => color::posterize(image, magnitude as u32),
            Self::Solarize => color::solarize(image, magnitude),
            Self::AutoContrast => color::autocontrast(image),
            Self::Equalize => color::equalize(image),
        }
    }

    /// Applies the operation at a bin, with a sign drawn where it has one.
    fn apply_bin(
        self,
        image: &mut RgbImage,
        (bin, bins): (u32, u32),
        strength: &Strength,
        interpolation: Interpolation,
        rng: &mut SampleRng,
    ) {
        let magnitude = self.magnitude(bin, bins, strength);
        let sign = if self.signed() && rng.chance(0.5) { -1.0 } else { 1.0 };
        self.apply(image, sign * magnitude, interpolation);
    }
}

/// Draws one of the operations.
fn draw(ops: &[Op], rng: &mut SampleRng) -> Op {
    ops[rng.below(ops.len() as u64) as usize]
}

/// torchvision's `RandAugment` (Cubuk et al., 2020): `num_ops` operations drawn from 14, all of one magnitude.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RandAugment {
    /// Operations a sample.
    pub num_ops: u32,
    /// The magnitude's bin, below `num_magnitude_bins`.
    pub magnitude: u32,
    /// The number of bins that the range of magnitudes is cut into.
    pub num_magnitude_bins: u32,
    /// The filter of the geometric operations.
    pub interpolation: Interpolation,
}

impl Default for RandAugment {
    fn default() -> Self {
        Self { num_ops: 2, magnitude: 9, num_magnitude_bins: 31, interpolation: Interpolation::Nearest }
    }
}

impl RandAugment {
    /// Augments the image.
    pub fn apply(&self, image: &mut RgbImage, rng: &mut SampleRng) {
        let translate = [image.width(), image.height()].map(|side| 150.0 / 331.0 * f64::from(side));
        let strength = Strength { shear: 0.3, translate, degrees: 30.0, enhance: 0.9, most_bits: 8.0, fewer_bits: 4.0 };
        for _ in 0..self.num_ops {
            let bin = (self.magnitude, self.num_magnitude_bins);
            draw(&OPS, rng).apply_bin(image, bin, &strength, self.interpolation, rng);
        }
    }
}

/// torchvision's `TrivialAugmentWide` (Müller and Hutter, 2021): one operation drawn from 14, of a magnitude drawn
/// from a wide range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrivialAugmentWide {
    /// The number of bins that the range of magnitudes is cut into.
    pub num_magnitude_bins: u32,
    /// The filter of the geometric operations.
    pub interpolation: Interpolation,
}

impl Default for TrivialAugmentWide {
    fn default() -> Self {
        Self { num_magnitude_bins: 31, interpolation: Interpolation::Nearest }
    }
}

impl TrivialAugmentWide {
    /// Augments the image.
    pub fn apply(&self, image: &mut RgbImage, rng: &mut SampleRng) {
        let strength = Strength {
            shear: 0.99,
            translate: [32.0; 2],
            degrees: 135.0,
            enhance: 0.99,
            most_bits: 8.0,
            fewer_bits: 6.0,
        };
        let op = draw(&OPS, rng);
        let bin = rng.below(u64::from(self.num_magnitude_bins)) as u32;
        op.apply_bin(image, (bin, self.num_magnitude_bins), &strength, self.interpolation, rng);
    }
}

/// torchvision's `AugMix` (Hendrycks et al., 2020): the image mixed with several chains of operations on it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AugMix {
    /// The largest strength of operations, 1 to 10.
    pub severity: u32,
    /// The number of chains.
    pub mixture_width: u32,
    /// Operations in a chain; drawn from 1 to 3 where it is not positive.
    pub chain_depth: i32,
    /// The parameter of the distributions of the weights.
    pub alpha: f64,
    /// Whether brightness, color, contrast and sharpness are among the operations.
    pub all_ops: bool,
    /// The filter of the geometric operations.
    pub interpolation: Interpolation,
}

impl Default for AugMix {
    fn default() -> Self {
        Self {
            severity: 3,
            mixture_width: 3,
            chain_depth: -1,
            alpha: 1.0,
            all_ops: true,
            interpolation: Interpolation::Bilinear,
        }
    }
}

impl AugMix {
    pub(super) const BINS: u32 = 10;

    /// Augments the image.
    pub fn apply(&self, image: &mut RgbImage, rng: &mut SampleRng) {
        let translate = [image.width(), image.height()].map(|side| f64::from(side) / 3.0);
        let strength = Strength { shear: 0.3, translate, degrees: 30.0, enhance: 0.9, most_bits: 4.0, fewer_bits: 4.0 };
        let ops = if self.all_ops { &AUGMIX_OPS[..] } else { &AUGMIX_OPS[..9] };
        // The image's own share is one of two Dirichlet weights; the chains share the rest by Dirichlet weights.
        let changed = rng.beta(self.alpha, self.alpha);
        let mut shares: Vec<f64> = (0..self.mixture_width).map(|_| rng.gamma(self.alpha)).collect();
        let sum = shares.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        shares.iter_mut().for_each(|share| *share *= changed / sum);
        let mut mix: Vec<f32> = image.iter().map(|&value| (1.0 - changed) as f32 * f32::from(value)).collect();
        for share in shares {
            let mut chain = image.clone();
            let depth = if self.chain_depth > 0 { self.chain_depth as u64 } else { 1 + rng.below(3) };
            for _ in 0..depth {
                let op = draw(ops, rng);
                let bin = rng.below(u64::from(self.severity)) as u32;
                op.apply_bin(&mut chain, (bin, Self::BINS), &strength, self.interpolation, rng);
            }
            for (mix, &value) in mix.iter_mut().zip(chain.iter()) {
                *mix += share as f32 * f32::from(value);
            }
        }
        for (value, mix) in image.iter_mut().zip(mix) {
            *value = mix.clamp(0.0, 255.0) as u8;
        }
    }
}
