//! Data parallelism: how the devices and processes of a run come to the same step.
//!
//! The training loop knows [`DataParallel`] alone. [`SingleDevice`] is a run of one process with one device,
//! [`MultiDevice`] one process with several, and [`Mpi`] one of several processes, whose devices are either of those.

mod mpi;
mod multi_device;
mod single;

use std::sync::Arc;

use burn::{
    module::ParamGroup,
    optim::{GradientsParams, lr_scheduler::module_lr_scheduler::ModuleLearningRate},
    tensor::{Device, Tensor},
};
use datasets::ImageBatch;
use models::Network;
use runtime::communicator::Communicator;

use self::{mpi::Mpi, multi_device::MultiDevice, single::SingleDevice};
pub use self::{mpi::broadcast_network, multi_device::Plan};
use crate::{
    Result,
    classifier::{Classifier, Objective, Pass, TrainingBatch},
    evaluation::{BatchScalars, Prediction},
    recipe::DistBn,
    trainer::{
        optimizer::{Optimizer, Update},
        slot::Slot,
    },
};

/// The devices and processes that share each batch.
///
/// All processes call the same methods in the same order.
pub trait DataParallel {
    /// Returns the number of devices of this process, each of which gets a shard of every batch of the process.
    fn num_devices(&self) -> usize;

    /// Runs the forward and backward passes of a batch's shards, one for each device. Returns the gradients of this
    /// process's part of the batch, on its first device, and the losses of each pass.
    ///
    /// # Errors
    /// Where a device fails.
    fn forward_backward(
        &self,
        model: &Classifier,
        shards: Vec<Shard>,
        loss_scale: Option<&Tensor<1>>,
    ) -> Result<(GradientsParams, Vec<BatchScalars>)>;

    /// Returns the sum of the gradients of all processes. One process has it already.
    fn all_reduce(&self, _model: &Classifier, gradients: GradientsParams) -> GradientsParams {
        gradients
    }

    /// Makes the step that `main` makes on the first device on every device that has a replica of the model.
    ///
    /// # Errors
    /// Where a device fails.
    fn step(
        &self,
        model: &mut Slot<Classifier>,
        rates: &ModuleLearningRate,
        update: &Update,
        main: &mut dyn FnMut(&mut Slot<Classifier>),
    ) -> Result<()>;

    /// Discards the gradients that replicas keep: no step follows from them.
    ///
    /// # Errors
    /// Where a device fails.
    fn discard(&self) -> Result<()>;

    /// Unfreezes the group's parameters in every replica, as the caller does in the model.
    ///
    /// # Errors
    /// Where a device fails.
    fn unfreeze(&self, group: &ParamGroup) -> Result<()>;

    /// Brings the running statistics of all processes together. One process has nothing to do.
    fn sync_running_statistics(&self, _model: &Classifier, _how: DistBn) {}

    /// Checks that every replica and every process has the same weights.
    ///
    /// # Errors
    /// Where one differs.
    fn check_weights(&self, model: &Classifier) -> Result<()>;

    /// Returns copies of a network for [`predict`](Self::predict), one for each device of this process.
    fn copies(&self, network: Network) -> Vec<Network>;

    /// Predicts one batch with each of the first copies. Returns the predictions by batch.
    ///
    /// # Errors
    /// Where a device fails.
    fn predict(
        &self,
        copies: &[Network],
        task: &Arc<Objective>,
        batches: &[ImageBatch],
    ) -> Result<Vec<Vec<Prediction>>>;

    /// Returns the predictions of all processes in the order of images, in every process.
    ///
    /// # Errors
    /// Where a process sends something else.
    fn gather(&self, own: Vec<Prediction>) -> Result<Vec<Prediction>> {
        Ok(own)
    }
}

/// Starts the threads of a process's devices. `device`, with autodiff, is the first of them, and the only one without a
/// `plan`.
pub fn start(
    world: &'static Communicator,
    plan: Option<&Plan>,
    device: &Device,
    model: &Classifier,
    optimizer: &Optimizer,
) -> Box<dyn DataParallel> {
    let local: Box<dyn DataParallel> = match plan {
        Some(plan) => Box::new(MultiDevice::start(plan, model, optimizer)),
        None => Box::new(SingleDevice::new(device.clone())),
    };
    if world.is_alone() { local } else { Box::new(Mpi::new(world, local, device.clone())) }
}

/// The images of a shard.
pub enum ShardImages {
    /// On the host: the thread of a device uploads its own.
    Host(ImageBatch),
    /// On the device that computes with them.
    Device(Box<TrainingBatch>),
}

/// One device's part of a batch.
pub struct Shard {
    pub images: ShardImages,
    /// The weight of its gradient in that of the whole batch.
    pub weight: f64,
    /// The factor of its loss, such that the sum over shards is the loss of the whole batch.
    pub loss_factor: f64,
    /// The seed of dropout.
    pub seed: u64,
}

impl Shard {
    /// Runs a forward and a backward pass on the network's device.
    fn forward_backward(self, model: &Classifier, device: &Device, loss_scale: Option<&Tensor<1>>) -> Pass {
        device.seed(self.seed);
        let batch = match self.images {
            ShardImages::Host(batch) => model.task.upload(batch, device),
            ShardImages::Device(batch) => *batch,
        };
        let mut pass = model.pass(batch, self.weight as f32, loss_scale);
        pass.scalars.loss_factor = self.loss_factor;
        pass
    }
}
