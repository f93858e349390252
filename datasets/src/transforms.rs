//! Transforms of decoded images, with torchvision's names, defaults and pixels.

mod geometry;
mod resample;

pub use geometry::{CenterCrop, Resize, ResizeRule};
pub use resample::{Interpolation, Rect, resize, resized_crop};
