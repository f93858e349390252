//! Mixing the samples of a batch: Mixup, CutMix, and a random choice of them.
//!
//! Batches stay u8 on the host. The host draws the parameters, [`BatchMix`]; the device mixes the normalized floats,
//! which loses nothing to rounding, and [`BatchMix::targets`] mixes the targets.

use serde::{Deserialize, Serialize};

use super::Rect;
use crate::{Error, SampleRng};

/// A way of mixing a batch. In a recipe: `{ name = "Mixup", alpha = 0.2 }`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name")]
#[non_exhaustive]
pub enum BatchTransform {
    /// [`Mixup`].
    Mixup(Mixup),
    /// [`CutMix`].
    CutMix(CutMix),
}

/// torchvision's `MixUp` (Zhang et al., 2018): each image becomes `λ · itself + (1 − λ) · another`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mixup {
    /// λ is drawn from Beta(alpha, alpha).
    pub alpha: f64,
}

/// torchvision's `CutMix` (Yun et al., 2019): a box of each image is replaced by that of another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CutMix {
    /// The remaining fraction of the area is drawn from Beta(alpha, alpha).
    pub alpha: f64,
}

impl Default for Mixup {
    fn default() -> Self {
        Self { alpha: 1.0 }
    }
}

impl Default for CutMix {
    fn default() -> Self {
        Self { alpha: 1.0 }
    }
}

/// Batch transforms of which one is drawn uniformly for each batch, like torchvision's `RandomChoice`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<BatchTransform>", into = "Vec<BatchTransform>")]
pub struct BatchTransforms(Vec<BatchTransform>);

impl TryFrom<Vec<BatchTransform>> for BatchTransforms {
    type Error = Error;

    fn try_from(choices: Vec<BatchTransform>) -> Result<Self, Error> {
        Self::new(choices)
    }
}

impl From<BatchTransforms> for Vec<BatchTransform> {
    fn from(transforms: BatchTransforms) -> Self {
        transforms.0
    }
}

/// Set apart from the streams of samples, which have small indices.
const BATCH_STREAM: u64 = 1 << 63;

impl BatchTransforms {
    /// The choices; none mixes nothing.
    ///
    /// # Errors
    /// [`Error::Transform`] where an alpha is not positive.
    pub fn new(choices: Vec<BatchTransform>) -> Result<Self, Error> {
        for choice in &choices {
            let (name, alpha) = match choice {
                BatchTransform::Mixup(t) => ("Mixup", t.alpha),
                BatchTransform::CutMix(t) => ("CutMix", t.alpha),
            };
            if !(alpha > 0.0 && alpha.is_finite()) {
                return Err(Error::Transform { name, cause: "alpha must be positive" });
            }
        }
        Ok(Self(choices))
    }

    /// The choices.
    pub fn choices(&self) -> &[BatchTransform] {
        &self.0
    }

    /// Draws how batch `batch` of epoch `epoch` is mixed: a function of these numbers alone. `None` without choices
    /// or samples. Images are `width × height` pixels.
    pub fn draw(
        &self,
        (seed, epoch, batch): (u64, u64, u64),
        samples: usize,
        width: u32,
        height: u32,
    ) -> Option<BatchMix> {
        if self.0.is_empty() || samples == 0 {
            return None;
        }
        let mut rng = SampleRng::new(seed, epoch, BATCH_STREAM | batch);
        let choice = self.0[rng.below(self.0.len() as u64) as usize];
        // torchvision's partner: the neighbor. The order of samples is random already.
        let permutation = (0..samples).map(|i| ((i + samples - 1) % samples) as u32).collect();
        Some(match choice {
            BatchTransform::Mixup(Mixup { alpha }) => {
                BatchMix { permutation, lambda: rng.beta(alpha, alpha) as f32, region: None }
            }
            BatchTransform::CutMix(CutMix { alpha }) => {
                let half = 0.5 * (1.0 - rng.beta(alpha, alpha)).sqrt();
                let mut range = |side: u32| {
                    let center = rng.below(side.into()) as i64;
                    let reach = (half * f64::from(side)) as i64;
                    let low = (center - reach).max(0);
                    (low as u32, ((center + reach).min(side.into()) - low) as u32)
                };
                let ((left, width_in), (top, height_in)) = (range(width), range(height));
                let region = Rect { left, top, width: width_in, height: height_in };
                let share = f64::from(width_in) * f64::from(height_in) / (f64::from(width) * f64::from(height));
                BatchMix { permutation, lambda: (1.0 - share) as f32, region: Some(region) }
            }
        })
    }
}

/// The mixing of a batch. With `x` the normalized images `[n, c, h, w]` and `x'` those in the order of `permutation`:
///
/// - `region` is `None` (Mixup): `lambda · x + (1 − lambda) · x'`;
/// - `region` is a box (CutMix): `x'` inside the box, `x` outside; `lambda` is the fraction of the area outside.
///
/// Targets are mixed by `lambda` in both cases.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchMix {
    /// By sample: the index of the other one. Samples of the batch beyond its length are others alone, and gone once
    /// they are mixed in.
    pub permutation: Vec<u32>,
    /// The weight of the sample itself, 0 to 1.
    pub lambda: f32,
    /// CutMix: the part that comes from the other sample.
    pub region: Option<Rect>,
}

impl BatchMix {
    /// The mixed targets. `targets` and the result are `[n, classes]`, row by row; others alone have a row in `targets`.
    ///
    /// # Panics
    /// Panics if `targets` has fewer rows than the permutation.
    pub fn targets(&self, targets: &[f32], classes: usize) -> Vec<f32> {
        assert!(targets.len() >= self.permutation.len() * classes, "one row of targets for each sample");
        let mut mixed = Vec::with_capacity(targets.len());
        for (row, &other) in targets.chunks_exact(classes.max(1)).zip(&self.permutation) {
            let other = &targets[other as usize * classes..][..classes];
            mixed.extend(row.iter().zip(other).map(|(a, b)| self.lambda * a + (1.0 - self.lambda) * b));
        }
        mixed
    }

    /// The mixed images, rounded to u8, for looking at them; training mixes on the device. `images` and the result
    /// are `[n, 3, height, width]`.
    ///
    /// # Panics
    /// Panics if `images` is not of that size.
    pub fn images(&self, images: &[u8], width: u32, height: u32) -> Vec<u8> {
        let (width, height) = (width as usize, height as usize);
        let sample = 3 * width * height;
        assert_eq!(images.len(), self.permutation.len() * sample, "3 × height × width bytes for each sample");
        let mut mixed = images.to_vec();
        for (out, &other) in mixed.chunks_exact_mut(sample.max(1)).zip(&self.permutation) {
            let other = &images[other as usize * sample..][..sample];
            match self.region {
                None => {
                    for (a, &b) in out.iter_mut().zip(other) {
                        *a = (self.lambda * f32::from(*a) + (1.0 - self.lambda) * f32::from(b)).round() as u8;
                    }
                }
                Some(region) => {
                    let [left, top, columns, rows] =
                        [region.left, region.top, region.width, region.height].map(|side| side as usize);
                    for (out, other) in out.chunks_exact_mut(width * height).zip(other.chunks_exact(width * height)) {
                        for y in top..top + rows {
                            let row = y * width + left..y * width + left + columns;
                            out[row.clone()].copy_from_slice(&other[row]);
                        }
                    }
                }
            }
        }
        mixed
    }
}

/// Targets `[n, classes]` of 0 and 1 from labels.
///
/// # Panics
/// Panics if a label is not below `classes`.
pub fn one_hot(labels: &[u32], classes: usize) -> Vec<f32> {
    let mut targets = vec![0.0; labels.len() * classes];
    for (row, &label) in targets.chunks_exact_mut(classes.max(1)).zip(labels) {
        row[label as usize] = 1.0;
    }
    targets
}
