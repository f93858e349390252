//! Batches on their way to a device: the one after the current is copied before the current step's results are waited for.
//!
//! Burn's GPU backends accept a copy as they accept any operation, and make it (through pinned memory on CUDA and ROCm)
//! while the host goes on. How long one takes is measured where the device has nothing else to do, at the beginning of an
//! epoch, and charged to the epoch by the byte. On the CPU a batch's memory becomes its tensor, and nothing is copied.

use std::time::Instant;

use burn::{data::dataloader::Progress, tensor::ExecutionError};
use datasets::{ImageBatch, loader::Batches};

use super::{Trainer, share::BatchShare};
use crate::{Error, Result, parallel::ShardImages, progress::lap};

/// A batch that is ready for its pass.
pub(super) struct FetchedBatch {
    pub number: usize,
    pub epoch: u64,
    pub share: BatchShare,
    pub samples: Vec<usize>,
    /// That of the epoch, up to this batch.
    pub progress: Progress,
    /// One for each device; none where the batch has no image.
    pub shards: Vec<FetchedShard>,
}

pub(super) struct FetchedShard {
    pub images: ShardImages,
    pub share: BatchShare,
}

/// What is known of copies to the device.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Whether the next copy is measured.
    is_next_measured: bool,
    /// Seconds for a byte; `None` before the first measurement, and where nothing is copied.
    seconds_per_byte: Option<f64>,
    /// The duration of the copies that no time was charged for yet.
    seconds: f64,
}

impl Copies {
    /// Measures the next copy: the device has nothing else to do.
    pub fn measure_next(&mut self) {
        self.is_next_measured = true;
    }

    fn add(&mut self, bytes: usize) {
        self.seconds += self.seconds_per_byte.unwrap_or(0.0) * bytes as f64;
    }

    /// Returns how much of the time that the device was waited for went into copies.
    pub fn take(&mut self, waited: f64) -> f64 {
        std::mem::take(&mut self.seconds).min(waited)
    }
}

impl Trainer {
    /// Waits for the next batch and begins to copy it. `None` after the last one.
    pub(super) fn fetch(&mut self, batches: &mut Batches) -> Option<Result<FetchedBatch>> {
        self.charge(|times| &mut times.compute);
        let batch = batches.next();
        self.charge(|times| &mut times.waiting);
        let batch = match batch? {
            Ok(batch) => batch,
            Err(error) => return Some(Err(error.into())),
        };
        Some(self.upload(batch, batches.progress()))
    }

    fn upload(&mut self, batch: ImageBatch, progress: Progress) -> Result<FetchedBatch> {
        let task = self.model.task.clone();
        let share_of = |batch: &ImageBatch| BatchShare { weight: task.weight(batch), images: batch.mixed_len() as f64 };
        let (number, epoch, share) = (batch.number, batch.epoch, share_of(&batch));
        let samples = batch.indices[..batch.mixed_len()].to_vec();
        let mut shards = Vec::new();
        if !samples.is_empty() {
            let devices = self.parallel.num_devices();
            for batch in batch.split(devices) {
                let share = share_of(&batch);
                // Several devices have threads, which upload side by side.
                let images = if devices > 1 { ShardImages::Host(batch) } else { self.copy(batch)? };
                shards.push(FetchedShard { images, share });
            }
        }
        Ok(FetchedBatch { number, epoch, share, samples, progress, shards })
    }

    fn copy(&mut self, batch: ImageBatch) -> Result<ShardImages> {
        let device = &self.session.device;
        if !self.session.is_asynchronous {
            return Ok(ShardImages::Device(Box::new(self.model.task.upload(batch, device))));
        }
        let bytes = batch.images.len();
        let failed = |error: ExecutionError| Error::Device(format!("the device failed: {error}"));
        let measured = std::mem::take(&mut self.copies.is_next_measured);
        if measured {
            if self.copies.seconds_per_byte.is_none() {
                // The first copy of a process also allocates what later ones use again.
                drop(self.model.task.upload(batch.clone(), device));
            }
            device.sync().map_err(failed)?;
        }
        let mut mark = Instant::now();
        let batch = self.model.task.upload(batch, device);
        if measured {
            device.sync().map_err(failed)?;
            self.copies.seconds_per_byte = Some(lap(&mut mark) / bytes.max(1) as f64);
        } else {
            self.copies.add(bytes);
        }
        self.charge(|times| &mut times.transfer);
        Ok(ShardImages::Device(Box::new(batch)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_take_no_more_than_the_time_that_was_waited() {
        let mut copies = Copies::default();
        copies.add(1000);
        assert_eq!(copies.take(1.0), 0.0, "nothing is known of them");
        copies.seconds_per_byte = Some(1e-3);
        copies.add(500);
        copies.add(250);
        assert_eq!(copies.take(1.0), 0.75);
        assert_eq!(copies.take(1.0), 0.0, "they were charged");
        copies.add(5000);
        assert_eq!(copies.take(2.0), 2.0);
    }
}
