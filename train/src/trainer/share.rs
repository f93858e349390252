//! The part of a batch that a rank has.

/// What a rank has of a batch, or all ranks together.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::trainer) struct BatchShare {
    /// What it counts in the mean: its images, or the sum of their classes' weights.
    pub weight: f64,
    pub images: f64,
}
