//! What a network says of labelled images, one by one and in sum.

use burn::tensor::{Device, ExecutionError, FloatDType, Int, Tensor};
use burn_train::ItemLazy;
pub use report::format::Metrics;
use serde::{Deserialize, Serialize};

/// How many of the most probable classes are kept of an image.
pub const TOP: usize = 5;

/// What a network says of one image.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// The image's index in its source.
    pub index: usize,
    pub label: u32,
    /// Cross entropy.
    pub loss: f32,
    /// The probability of the label.
    pub p_label: f32,
    /// The most probable classes with their probabilities, at most [`TOP`], the most probable first.
    pub top: Vec<(u32, f32)>,
}

/// Sums over images.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct MetricSums {
    /// The sum of the losses.
    pub loss: f64,
    /// Images whose most probable class is the label.
    pub top1: u64,
    /// Images whose label is among the five most probable classes.
    pub top5: u64,
    pub images: u64,
}

/// What a batch came to, on its device: reading it waits for everything before it.
#[derive(Debug, Clone)]
pub struct BatchScalars {
    /// `[3]`: the mean loss, and the images whose label is the most probable class or among the first five.
    pub values: Tensor<1>,
    pub images: u64,
    /// Of the loss: what makes the sum over parts of a batch that of the whole.
    pub loss_factor: f64,
}

impl BatchScalars {
    /// Of a batch with its mean `loss` `[1]`, logits `[n, classes]` and labels `[n]`.
    pub fn new(loss: Tensor<1>, logits: Tensor<2>, labels: Tensor<1, Int>) -> Self {
        let [n, classes] = logits.dims();
        let (all, logits) = ([n, classes], logits.cast(FloatDType::F32));
        let labels = labels.unsqueeze_dim::<2>(1);
        let own = logits.clone().gather(1, labels.clone());
        let likelier = logits.clone().greater(own.clone().expand(all));
        // Of equals the first counts, as in argmax.
        let index = Tensor::<1, Int>::arange(0..classes as i64, &logits.device()).unsqueeze::<2>().expand(all);
        let first_of_equals = logits.equal(own.clone().expand(all)).bool_and(index.lower(labels.expand(all)));
        let rank = likelier.bool_or(first_of_equals).float().sum_dim(1);
        // What is not a number is not right.
        let rank = rank.mask_fill(own.is_nan(), TOP as f32);
        let among = |first: usize| rank.clone().lower_elem(first as f32).float().sum();
        let values = Tensor::cat(vec![loss.cast(FloatDType::F32), among(1), among(TOP)], 0);
        Self { values, images: n as u64, loss_factor: 1.0 }
    }

    pub fn to_device(&self, device: &Device) -> Self {
        Self { values: self.values.clone().to_device(device), ..*self }
    }

    /// Reads the values: waits for the device.
    pub fn read(&self) -> MetricSums {
        let values: Vec<f32> = self.values.clone().into_data().iter::<f32>().collect();
        self.reading(&values)
    }

    /// The sums, from the values.
    pub fn reading(&self, values: &[f32]) -> MetricSums {
        let [loss, top1, top5] = [0, 1, 2].map(|which| f64::from(values[which]));
        let loss = loss * self.images as f64 * self.loss_factor;
        MetricSums { loss, top1: top1 as u64, top5: top5 as u64, images: self.images }
    }
}

impl MetricSums {
    /// Of single images.
    pub fn of(predictions: &[Prediction]) -> Self {
        let mut reading = Self { images: predictions.len() as u64, ..Self::default() };
        for prediction in predictions {
            reading.loss += f64::from(prediction.loss);
            reading.top1 += u64::from(prediction.top.first().is_some_and(|(class, _)| *class == prediction.label));
            reading.top5 += u64::from(prediction.top.iter().any(|(class, _)| *class == prediction.label));
        }
        reading
    }

    pub fn add(&mut self, other: &Self) {
        self.loss += other.loss;
        self.top1 += other.top1;
        self.top5 += other.top5;
        self.images += other.images;
    }

    /// The means.
    pub fn score(&self) -> Metrics {
        let images = self.images.max(1) as f64;
        Metrics {
            loss: self.loss / images,
            top1: 100.0 * self.top1 as f64 / images,
            top5: 100.0 * self.top5 as f64 / images,
        }
    }
}

impl ItemLazy for MetricSums {
    fn sync(self) -> Result<Self, ExecutionError> {
        Ok(self)
    }
}

/// From logits, `classes` for each image.
pub fn predictions(logits: &[f32], classes: usize, labels: &[u32], indices: &[usize]) -> Vec<Prediction> {
    let each = logits.chunks_exact(classes.max(1)).zip(labels).zip(indices);
    each.map(|((row, &label), &index)| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|logit| f64::from(logit - largest).exp()).sum();
        let probability = |class: u32| (f64::from(row[class as usize] - largest).exp() / sum) as f32;
        let mut order: Vec<u32> = (0..classes as u32).collect();
        let ascending = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
        let kept = TOP.min(classes);
        if kept < classes {
            order.select_nth_unstable_by(kept, ascending);
            order.truncate(kept);
        }
        order.sort_unstable_by(ascending);
        Prediction {
            index,
            label,
            loss: (sum.ln() - f64::from(row[label as usize] - largest)) as f32,
            p_label: probability(label),
            top: order.into_iter().map(|class| (class, probability(class))).collect(),
        }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(loss: f32, logits: Tensor<2>, labels: &[i64]) -> MetricSums {
        let device = logits.device();
        BatchScalars::new(Tensor::from_floats([loss], &device), logits, Tensor::from_data(labels, &device)).read()
    }

    #[test]
    fn readings_of_logits_and_of_predictions_agree() {
        let logits: Vec<f32> = vec![0.0, 2.0, 1.0, 1.0, 1.0, 1.0, -1.0, 3.0, 3.0, 0.0, 0.0, 0.5, 0.25, 0.75];
        let labels = [1, 1];
        let device = Device::flex();
        let tensor = Tensor::<1>::from_floats(logits.as_slice(), &device).reshape([2, 7]);
        let predictions = predictions(&logits, 7, &labels, &[4, 9]);
        let loss = predictions.iter().map(|p| p.loss).sum::<f32>() / 2.0;
        let reading = read(loss, tensor, &[1, 1]);
        // The second image's label is as probable as class 0, which comes first.
        assert_eq!((reading.top1, reading.top5, reading.images), (1, 2, 2));
        let other = MetricSums::of(&predictions);
        assert_eq!((other.top1, other.top5, other.images), (1, 2, 2));
        assert!((reading.loss - other.loss).abs() < 1e-5);
        let total: f64 = logits[..7].iter().map(|l| f64::from(*l).exp()).sum();
        assert!((f64::from(predictions[0].loss) - (total.ln() - 2.0)).abs() < 1e-6);
        assert_eq!(predictions[0].top.iter().map(|(class, _)| *class).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!(predictions[0].top[0].1, predictions[0].p_label);
    }

    #[test]
    fn logits_that_are_not_numbers_are_not_right() {
        let device = Device::flex();
        let logits = Tensor::<2>::from_floats([[f32::NAN, f32::NAN]], &device);
        let reading = read(f32::NAN, logits, &[0]);
        assert_eq!((reading.top1, reading.top5), (0, 0));
        assert!(reading.loss.is_nan());
    }
}
