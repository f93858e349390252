//! A batch of images as the loader yields it: u8, channels first, on the host.

use std::ops::Range;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::transforms::batch::{BatchMix, one_hot};

/// A batch of `n` images of one size.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageBatch {
    /// The pixels, `[n, 3, height, width]` in row-major order, 0 to 255.
    pub images: Vec<u8>,
    /// `[n, 3, height, width]`.
    pub shape: [usize; 4],
    /// The class of each image; `None` where the data has no labels.
    pub labels: Option<Vec<u32>>,
    /// The mixing of the images with each other: Mixup, CutMix.
    pub mix: Option<BatchMix>,
    /// The images' indices in the source, which maps them to keys and locations.
    pub indices: Vec<usize>,
    /// The epoch this batch belongs to, from 0.
    pub epoch: u64,
    /// Its number within the epoch, from 0: a run resumes at `(epoch, number + 1)`.
    pub number: usize,
}

impl ImageBatch {
    /// A batch of labels without pixels, for losses of logits that are known already.
    pub fn of_labels(labels: &[u32]) -> Self {
        Self {
            images: Vec::new(),
            shape: [labels.len(), 3, 0, 0],
            labels: Some(labels.to_vec()),
            mix: None,
            indices: Vec::new(),
            epoch: 0,
            number: 0,
        }
    }

    /// The number of images.
    pub fn len(&self) -> usize {
        self.shape[0]
    }

    /// The number of images after mixing, without those that are only mixed into others.
    pub fn mixed_len(&self) -> usize {
        self.mix.as_ref().map_or(self.len(), |mix| mix.permutation.len())
    }

    /// Whether the batch has no images; a loader yields such a batch only when it loads
    /// [parts](crate::LoaderBuilder::part_of_batches).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Splits the batch into `parts` consecutive parts of nearly equal size. An image of another part that is mixed
    /// into a part is appended to it.
    pub fn split(self, parts: usize) -> Vec<Self> {
        if parts == 1 {
            return vec![self];
        }
        let n = self.mixed_len();
        (0..parts).map(|part| self.part(part * n / parts..(part + 1) * n / parts)).collect()
    }

    fn part(&self, own: Range<usize>) -> Self {
        let mut rows: Vec<usize> = own.clone().collect();
        let mix = self.mix.as_ref().map(|mix| {
            let mut row_of = |other: usize| {
                let there = rows.iter().position(|&row| row == other);
                there.unwrap_or_else(|| {
                    rows.push(other);
                    rows.len() - 1
                })
            };
            let others = mix.permutation[own].iter().map(|&other| row_of(other as usize) as u32);
            BatchMix { permutation: others.collect(), ..mix.clone() }
        });
        let [_, channels, height, width] = self.shape;
        let len = channels * height * width;
        Self {
            images: rows.iter().flat_map(|row| &self.images[row * len..(row + 1) * len]).copied().collect(),
            shape: [rows.len(), channels, height, width],
            labels: self.labels.as_ref().map(|labels| rows.iter().map(|&row| labels[row]).collect()),
            mix,
            indices: rows.iter().map(|&row| self.indices[row]).collect(),
            epoch: self.epoch,
            number: self.number,
        }
    }

    /// Moves the pixels to a device, which normalizes them by `mean` and `std` per channel when it comes to that. A GPU
    /// backend copies while it computes something else; on the CPU nothing is copied.
    ///
    /// Bytes are uploaded; a device without 8-bit integers receives floats from the host.
    pub fn upload(mut self, mean: [f32; 3], std: [f32; 3], device: &Device) -> UploadedBatch {
        let (shift, scale) = (mean.map(|mean| 255.0 * mean), std.map(|std| 1.0 / (255.0 * std)));
        let pixels = if device.supports_dtype(DType::U8) {
            let per_channel =
                |values: [f32; 3]| Tensor::from_data(TensorData::new(values.to_vec(), [1, 3, 1, 1]), device);
            let bytes = TensorData::new(std::mem::take(&mut self.images), self.shape);
            let bytes = Tensor::from_data(bytes, (device, DType::U8));
            Pixels::Bytes(Box::new((bytes, per_channel(shift), per_channel(scale))))
        } else {
            let floats = TensorData::new(self.normalized(shift, scale), self.shape);
            Pixels::Normalized(Box::new(Tensor::from_data(floats, device)))
        };
        let permutation = self.mix.as_ref().map(|mix| {
            let permutation: Vec<i64> = mix.permutation.iter().map(|&other| i64::from(other)).collect();
            let n = permutation.len();
            Tensor::from_data(TensorData::new(permutation, [n]), device)
        });
        UploadedBatch { pixels, mix: self.mix.zip(permutation) }
    }

    /// Returns the network's input: `(x / 255 − mean) / std` per channel, `[n, 3, height, width]`, mixed according to
    /// [`mix`](ImageBatch::mix).
    ///
    /// See [`upload`](ImageBatch::upload), which does not copy the batch on the host.
    pub fn normalize(&self, mean: [f32; 3], std: [f32; 3], device: &Device) -> Tensor<4> {
        self.clone().upload(mean, std, device).normalize()
    }

    /// `(x − shift) · scale` per channel, on the host.
    fn normalized(&self, shift: [f32; 3], scale: [f32; 3]) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.images.len());
        let plane = (self.shape[2] * self.shape[3]).max(1);
        for (channel, pixels) in self.images.chunks_exact(plane).enumerate() {
            let (shift, scale) = (shift[channel % 3], scale[channel % 3]);
            values.extend(pixels.iter().map(|&pixel| (f32::from(pixel) - shift) * scale));
        }
        values
    }

    /// The class of each image once they are mixed, `[mixed_len]`: that of its first part.
    ///
    /// # Panics
    /// Panics if the data has no labels; a loader rejects such a source by default.
    pub fn targets(&self, device: &Device) -> Tensor<1, Int> {
        let labels: Vec<i64> =
            self.expect_labels().iter().take(self.mixed_len()).map(|&label| i64::from(label)).collect();
        Tensor::from_data(TensorData::new(labels, [self.mixed_len()]), device)
    }

    /// The distribution over `classes` for each image, `[n, classes]`: 1 at its class, 0 elsewhere, and mixed as the
    /// images are.
    ///
    /// # Panics
    /// Panics if the data has no labels, or if a label is not below `classes`.
    pub fn soft_targets(&self, classes: usize, device: &Device) -> Tensor<2> {
        let values = one_hot(self.expect_labels(), classes);
        let values = self.mix.as_ref().map_or(values.clone(), |mix| mix.targets(&values, classes));
        Tensor::from_data(TensorData::new(values, [self.mixed_len(), classes]), device)
    }

    fn expect_labels(&self) -> &[u32] {
        self.labels.as_deref().expect("these images have no labels to train or evaluate with")
    }
}

/// The pixels of a batch on a device, or on their way to it.
#[derive(Debug, Clone)]
pub struct UploadedBatch {
    pixels: Pixels,
    /// The mixing of the images, with their partners.
    mix: Option<(BatchMix, Tensor<1, Int>)>,
}

#[derive(Debug, Clone)]
enum Pixels {
    /// `(bytes − shift) · scale`.
    Bytes(Box<(Tensor<4, Int>, Tensor<4>, Tensor<4>)>),
    Normalized(Box<Tensor<4>>),
}

impl UploadedBatch {
    /// Returns the network's input, `[n, 3, height, width]` in the device's default float type: normalized, and mixed
    /// according to [`mix`](ImageBatch::mix).
    pub fn normalize(self) -> Tensor<4> {
        let images = match self.pixels {
            Pixels::Bytes(pixels) => {
                let (bytes, shift, scale) = *pixels;
                (bytes.float() - shift) * scale
            }
            Pixels::Normalized(images) => *images,
        };
        match self.mix {
            Some((mix, permutation)) => mixed(images, &mix, permutation),
            None => images,
        }
    }
}

/// See [`BatchMix`] for the formula.
fn mixed(images: Tensor<4>, mix: &BatchMix, permutation: Tensor<1, Int>) -> Tensor<4> {
    let [all, channels, _, _] = images.dims();
    let n = mix.permutation.len();
    let own = |images: Tensor<4>| if n < all { images.narrow(0, 0, n) } else { images };
    match mix.region {
        None => {
            let others = images.clone().select(0, permutation);
            own(images) * mix.lambda + others * (1.0 - mix.lambda)
        }
        Some(region) if region.width > 0 && region.height > 0 => {
            let [left, top, width, height] = [region.left, region.top, region.width, region.height].map(|v| v as usize);
            let part = |n: usize| [0..n, 0..channels, top..top + height, left..left + width];
            let others = images.clone().slice(part(all)).select(0, permutation);
            own(images).slice_assign(part(n), others)
        }
        Some(_) => own(images),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transforms::Rect;

    fn batch(labels: Option<Vec<u32>>) -> ImageBatch {
        let shape = [2, 3, 2, 1];
        let images = (0..12).map(|i| i * 20).collect();
        ImageBatch { images, shape, labels, mix: None, indices: vec![4, 5], epoch: 0, number: 0 }
    }

    #[test]
    fn normalize_is_torchvision_s_to_tensor_and_normalize() {
        let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        let batch = batch(None);
        let tensor = batch.normalize(mean, std, &Device::flex());
        assert_eq!(tensor.dims(), [2, 3, 2, 1]);
        let values = tensor.into_data().try_to_vec::<f32>().unwrap();
        for (i, value) in values.iter().enumerate() {
            let channel = i / 2 % 3;
            let expected = (f32::from(batch.images[i]) / 255.0 - mean[channel]) / std[channel];
            assert!((value - expected).abs() < 1e-5, "{i}: {value} {expected}");
        }
    }

    /// Mixing across parts equals mixing in one batch.
    #[test]
    fn parts_are_the_batch() {
        let device = Device::flex();
        let images = (0..7 * 12u32).map(|i| (i * 37 % 251) as u8).collect();
        let region = Some(Rect { left: 0, top: 1, width: 2, height: 1 });
        let mix = |region| Some(BatchMix { permutation: vec![6, 0, 1, 2, 3, 4, 5], lambda: 0.3, region });
        let labels = Some(vec![0, 1, 2, 0, 1, 2, 0]);
        let none = ImageBatch {
            images,
            shape: [7, 3, 2, 2],
            labels,
            mix: None,
            indices: (10..17).collect(),
            epoch: 3,
            number: 5,
        };
        for mix in [None, mix(None), mix(region)] {
            let batch = ImageBatch { mix, ..none.clone() };
            let values = |batches: &[ImageBatch]| {
                let mut values = [Vec::new(), Vec::new()];
                for batch in batches.iter().filter(|batch| batch.mixed_len() > 0) {
                    values[0].extend(batch.normalize([0.0; 3], [1.0; 3], &device).into_data().iter::<f32>());
                    values[1].extend(batch.soft_targets(3, &device).into_data().iter::<f32>());
                }
                values
            };
            let own = |batch: &ImageBatch| batch.indices[..batch.mixed_len()].to_vec();
            for (parts, sizes) in [(1, vec![7]), (2, vec![3, 4]), (3, vec![2, 2, 3]), (8, vec![0, 1, 1, 1, 1, 1, 1, 1])]
            {
                let split = batch.clone().split(parts);
                assert_eq!(split.iter().map(ImageBatch::mixed_len).collect::<Vec<_>>(), sizes);
                assert_eq!(split.iter().flat_map(own).collect::<Vec<_>>(), batch.indices);
                assert!(split.iter().all(|part| (part.epoch, part.number) == (3, 5)));
                assert_eq!(values(&split), values(std::slice::from_ref(&batch)), "{parts} parts");
            }
        }
    }

    #[test]
    fn targets_come_as_labels_or_distributions() {
        let device = Device::flex();
        let batch = batch(Some(vec![2, 0]));
        assert_eq!(batch.targets(&device).into_data().convert::<i64>().try_to_vec::<i64>().unwrap(), [2, 0]);
        let one_hot = batch.soft_targets(3, &device).into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(one_hot, [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn floats_from_the_host_equal_those_of_the_device() {
        let batch = batch(None);
        let (shift, scale) = ([10.0, 20.0, 30.0], [0.5, 0.25, 0.125]);
        let host = batch.normalized(shift, scale);
        let (mean, std) = (shift.map(|shift| shift / 255.0), scale.map(|scale| 1.0 / (255.0 * scale)));
        let device = batch.normalize(mean, std, &Device::flex()).into_data().try_to_vec::<f32>().unwrap();
        assert!(host.iter().zip(&device).all(|(a, b)| (a - b).abs() < 1e-4), "{host:?} {device:?}");
    }

    #[test]
    fn mixing_on_the_device_is_mixing_on_the_host() {
        let shape = [3, 3, 4, 5];
        let images: Vec<u8> = (0..180u32).map(|i| (i * 37 % 251) as u8).collect();
        let region = Rect { left: 1, top: 2, width: 3, height: 2 };
        for (lambda, region) in [(0.3, None), (0.7, Some(region)), (1.0, Some(Rect { width: 0, ..region }))] {
            let mix = BatchMix { permutation: vec![2, 0, 1], lambda, region };
            let expected = mix.images(&images, 5, 4);
            let batch = ImageBatch {
                images: images.clone(),
                shape,
                labels: Some(vec![0, 1, 1]),
                mix: Some(mix),
                indices: vec![0, 1, 2],
                epoch: 0,
                number: 0,
            };
            let std = [1.0 / 255.0; 3];
            let mixed = batch.normalize([0.0; 3], std, &Device::flex()).into_data().try_to_vec::<f32>().unwrap();
            for (mixed, expected) in mixed.iter().zip(&expected) {
                assert!((mixed - f32::from(*expected)).abs() <= 0.501, "{mixed} {expected}");
            }
            let targets = batch.soft_targets(2, &Device::flex()).into_data().try_to_vec::<f32>().unwrap();
            let kept = lambda;
            let wanted = [kept, 1.0 - kept, 1.0 - kept, kept, 0.0, 1.0];
            assert!(targets.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-6), "{targets:?}");
        }
    }
}
