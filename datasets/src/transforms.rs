//! Transforms of decoded images, with torchvision's names, defaults and pixels.
//!
//! Images are RGB8 throughout. [`Transform`] is one transform by name, [`Pipeline`] a sequence of them; batch
//! transforms are in [`batch`]. Random draws come from the sample's own [`SampleRng`](crate::SampleRng).

mod affine;
mod augment;
pub mod batch;
mod color;
mod geometry;
mod pipeline;
mod resample;

pub use affine::{rotate, shear_x, shear_y, translate};
pub use augment::{AugMix, ColorJitter, Erased, Lighting, RandAugment, RandomErasing, TrivialAugmentWide};
pub use color::{
    adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, adjust_sharpness, autocontrast, equalize,
    invert, posterize, solarize,
};
pub use geometry::{
    CenterCrop, FiveCrop, RandomCrop, RandomHorizontalFlip, RandomResizedCrop, RandomShorterSide, Resize, ResizeRule,
    TenCrop, flip_horizontal,
};
pub use pipeline::{EvalTransform, Pipeline, Transform};
pub use resample::{Interpolation, Rect, resize, resized_crop};
