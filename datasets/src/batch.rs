//! A batch of images as it leaves the loader: u8, channels first, on the host.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

/// A batch of `n` images of one size.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageBatch {
    /// The pixels, `[n, 3, height, width]` in row-major order, 0 to 255.
    pub images: Vec<u8>,
    /// `[n, 3, height, width]`.
    pub shape: [usize; 4],
    /// The class of each image; `None` where the data has no labels.
    pub labels: Option<Vec<u32>>,
    /// The images' indices in the source, which knows their keys and locations.
    pub indices: Vec<usize>,
    /// The epoch this batch belongs to, from 0.
    pub epoch: u64,
    /// Its number within the epoch, from 0: a run resumes at `(epoch, number + 1)`.
    pub number: usize,
}

impl ImageBatch {
    /// The number of images.
    pub fn len(&self) -> usize {
        self.shape[0]
    }

    /// Whether there is no image; a loader never yields such a batch.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The images as the network takes them: `(x / 255 − mean) / std` per channel, `[n, 3, height, width]`.
    ///
    /// Bytes are uploaded and the arithmetic is done on the device, in its default float type; a device without 8-bit
    /// integers gets floats from the host.
    pub fn normalise(&self, mean: [f32; 3], std: [f32; 3], device: &Device) -> Tensor<4> {
        let scale = std.map(|std| 1.0 / (255.0 * std));
        if !device.supports_dtype(DType::U8) {
            let plane = self.shape[2] * self.shape[3];
            let mut values = Vec::with_capacity(self.images.len());
            for (channel, pixels) in self.images.chunks_exact(plane).enumerate() {
                let (shift, scale) = (255.0 * mean[channel % 3], scale[channel % 3]);
                values.extend(pixels.iter().map(|&pixel| (f32::from(pixel) - shift) * scale));
            }
            return Tensor::from_data(TensorData::new(values, self.shape), device);
        }
        let per_channel =
            |values: [f32; 3]| Tensor::<4>::from_data(TensorData::new(values.to_vec(), [1, 3, 1, 1]), device);
        let bytes = TensorData::new(self.images.clone(), self.shape);
        let pixels = Tensor::<4, Int>::from_data(bytes, (device, DType::U8)).float();
        (pixels - per_channel(mean.map(|mean| 255.0 * mean))) * per_channel(scale)
    }

    /// The class of each image, `[n]`.
    ///
    /// # Panics
    /// If the data has no labels: a loader refuses such a source unless it was told otherwise.
    pub fn targets(&self, device: &Device) -> Tensor<1, Int> {
        let labels: Vec<i64> = self.expect_labels().iter().map(|&label| i64::from(label)).collect();
        Tensor::from_data(TensorData::new(labels, [self.len()]), device)
    }

    /// The distribution over `classes` for each image, `[n, classes]`: 1 at its class, 0 elsewhere.
    ///
    /// # Panics
    /// If the data has no labels, or a label is not below `classes`.
    pub fn soft_targets(&self, classes: usize, device: &Device) -> Tensor<2> {
        let labels = self.expect_labels();
        let mut values = vec![0.0f32; labels.len() * classes];
        for (row, &label) in values.chunks_exact_mut(classes).zip(labels) {
            row[label as usize] = 1.0;
        }
        Tensor::from_data(TensorData::new(values, [self.len(), classes]), device)
    }

    fn expect_labels(&self) -> &[u32] {
        self.labels.as_deref().expect("these images have no labels to train or evaluate with")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(labels: Option<Vec<u32>>) -> ImageBatch {
        let shape = [2, 3, 2, 1];
        let images = (0..12).map(|i| i * 20).collect();
        ImageBatch { images, shape, labels, indices: vec![4, 5], epoch: 0, number: 0 }
    }

    #[test]
    fn normalise_is_torchvision_s_to_tensor_and_normalize() {
        let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        let batch = batch(None);
        let tensor = batch.normalise(mean, std, &Device::flex());
        assert_eq!(tensor.dims(), [2, 3, 2, 1]);
        let values = tensor.into_data().try_to_vec::<f32>().unwrap();
        for (i, value) in values.iter().enumerate() {
            let channel = i / 2 % 3;
            let expected = (f32::from(batch.images[i]) / 255.0 - mean[channel]) / std[channel];
            assert!((value - expected).abs() < 1e-5, "{i}: {value} {expected}");
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
}
