//! Batch statistics of several processes: synchronized batch normalization.

use std::{fmt, sync::Arc};

use burn::tensor::TensorData;

use super::prelude::*;

#[cfg(feature = "flex")]
use crate::cpu::norm::{self, Mask};

/// A sum over all processes, for [`batch_norm`](crate::batch_norm) and [`all_reduce_sum`](crate::all_reduce_sum).
#[derive(Clone)]
pub struct AllReduce(Arc<Sum>);

/// Sums values over all processes, in place.
type Sum = dyn Fn(&mut [f64]) + Send + Sync;

impl AllReduce {
    /// Creates it from a function that sums each value over all processes, in place, with the same bits on each. All
    /// processes must call it equally often and in the same order.
    pub fn new(sum: impl Fn(&mut [f64]) + Send + Sync + 'static) -> Self {
        Self(Arc::new(sum))
    }

    fn sum(&self, values: &mut [f64]) {
        (self.0)(values);
    }
}

impl fmt::Debug for AllReduce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AllReduce")
    }
}

/// Reductions over processes, on any backend.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait AllReduceSum: Backend {
    /// Sums each element over the tensors of all processes, through host memory; its gradient likewise.
    fn all_reduce_sum(x: FloatTensor<Self>, sum: AllReduce) -> FloatTensor<Self> {
        let (device, dtype) = (x.device(), x.dtype());
        let data = burn_std::reader::try_read_sync(Self::float_into_data(x));
        let data = data.expect("the host waits for the device").expect("a tensor of the device can be read");
        let shape = data.shape().clone();
        let mut values: Vec<f64> = data.iter::<f64>().collect();
        sum.sum(&mut values);
        Self::float_from_data(TensorData::new(values, shape).convert_dtype(dtype), &device)
    }
}

reference_backends!(AllReduceSum);
#[cfg(feature = "flex")]
impl AllReduceSum for Flex {}

/// Sums the values of each image in f64, so that the sum does not depend on the assignment of images to processes, up to the
/// last bits of an f64.
#[cfg(feature = "flex")]
fn over_images(sum: &AllReduce, pixels: usize, images: impl Iterator<Item = [Vec<f64>; 2]>) -> ([Vec<f64>; 2], f64) {
    let mut total = Vec::new();
    for image in images {
        let values = image.concat();
        total.resize(values.len(), 0.0);
        total.iter_mut().zip(values).for_each(|(total, value)| *total += value);
    }
    total.push(pixels as f64);
    sum.sum(&mut total);
    let pixels = total.pop().unwrap_or_default();
    let second = total.split_off(total.len() / 2);
    ([total, second], pixels)
}

/// Mean and biased variance of each channel over the images `x`, `[n, pixels, channels]`, and with `sync` over those of all
/// processes.
#[cfg(feature = "flex")]
pub(crate) fn statistics(x: &[f32], n: usize, channels: usize, sync: Option<&AllReduce>) -> [Vec<f32>; 2] {
    let Some(sum) = sync else { return norm::statistics(x, channels) };
    let images = x.chunks_exact((x.len() / n.max(1)).max(1)).map(|image| norm::raw_sums(image, channels));
    let ([sums, squares], pixels) = over_images(sum, x.len() / channels, images);
    let means: Vec<f64> = sums.iter().map(|sum| sum / pixels).collect();
    let variances = squares.iter().zip(&means).map(|(square, mean)| (square / pixels - mean * mean).max(0.0) as f32);
    [means.iter().map(|&mean| mean as f32).collect(), variances.collect()]
}

/// The sums that the gradients of a norm are computed from.
#[cfg(feature = "flex")]
pub(crate) struct NormSums {
    /// `Σ g` and `Σ g · (x − mean)` over this process's images: the norm's own weights' gradients.
    pub own: [Vec<f64>; 2],
    /// The same over all processes' images, for the gradient of the input.
    pub all: [Vec<f64>; 2],
    /// Pixels of all images.
    pub pixels: f64,
}

/// As [`norm::gradient_sums`], over `n` images of this process, and with `sync` over those of all others.
#[cfg(feature = "flex")]
pub(crate) fn gradient_sums(
    x: &[f32],
    dy: &mut [f32],
    n: usize,
    mask: Mask<'_>,
    mean: &[f32],
    sync: Option<&AllReduce>,
) -> NormSums {
    let pixels = x.len() / mean.len();
    let Some(sum) = sync else {
        let own = norm::gradient_sums(x, dy, mask, mean);
        return NormSums { all: own.clone(), own, pixels: pixels as f64 };
    };
    let len = (x.len() / n.max(1)).max(1);
    let mut own = [vec![0.0; mean.len()], vec![0.0; mean.len()]];
    let images = x.chunks_exact(len).zip(dy.chunks_exact_mut(len)).enumerate().map(|(image, (x, dy))| {
        let mask = match mask {
            Mask::Output(y) => Mask::Output(&y[image * len..][..len]),
            mask => mask,
        };
        let sums = norm::gradient_sums(x, dy, mask, mean);
        for (own, sums) in own.iter_mut().zip(&sums) {
            own.iter_mut().zip(sums).for_each(|(own, sum)| *own += sum);
        }
        sums
    });
    let (all, pixels) = over_images(sum, pixels, images);
    NormSums { own, all, pixels }
}

/// Parent: x.
#[derive(Debug)]
struct AllReduceSumBackward;

impl<B: AllReduceSum> Backward<B, 1> for AllReduceSumBackward {
    type State = AllReduce;

    fn backward(self, ops: Ops<AllReduce, 1>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        // All processes' losses depend on the sum.
        let dy = B::all_reduce_sum(grads.consume::<B>(&ops.node), ops.state);
        let [parent] = ops.parents;
        if let Some(node) = parent {
            grads.register::<B>(node.id, dy);
        }
    }
}

impl<B: AllReduceSum, C: CheckpointStrategy> AllReduceSum for Autodiff<B, C> {
    fn all_reduce_sum(x: Ad<B, C>, sum: AllReduce) -> Ad<B, C> {
        let node = x.node();
        let output = B::all_reduce_sum(x.into_primitive(), sum.clone());
        record::<B, C, _, 1>(AllReduceSumBackward, [node], output, |_| sum)
    }
}
