//! One process with one device.

use std::sync::Arc;

use burn::{
    module::ParamGroup,
    optim::{GradientsParams, lr_scheduler::module_lr_scheduler::ModuleLearningRate},
    tensor::{Device, Tensor},
};
use datasets::ImageBatch;
use models::Network;

use super::{DataParallel, Shard};
use crate::{
    Error, Result,
    classifier::{Classifier, Objective, Pass, predict},
    evaluation::{BatchScalars, Prediction},
    trainer::{optimizer::Update, slot::Slot},
};

/// The device of a run that has only one.
pub struct SingleDevice {
    device: Device,
}

impl SingleDevice {
    /// `device` has autodiff.
    pub fn new(device: Device) -> Self {
        Self { device }
    }
}

impl DataParallel for SingleDevice {
    fn num_devices(&self) -> usize {
        1
    }

    fn forward_backward(
        &self,
        model: &Classifier,
        shards: Vec<Shard>,
        loss_scale: Option<&Tensor<1>>,
    ) -> Result<(GradientsParams, Vec<BatchScalars>)> {
        let shard = shards.into_iter().next().ok_or(Error::Bug("a batch has no shard for its device"))?;
        let Pass { gradients, scalars } = shard.forward_backward(model, &self.device, loss_scale);
        Ok((gradients, vec![scalars]))
    }

    fn step(
        &self,
        model: &mut Slot<Classifier>,
        _rates: &ModuleLearningRate,
        _update: &Update,
        main: &mut dyn FnMut(&mut Slot<Classifier>),
    ) -> Result<()> {
        main(model);
        Ok(())
    }

    fn discard(&self) -> Result<()> {
        Ok(())
    }

    fn unfreeze(&self, _group: &ParamGroup) -> Result<()> {
        Ok(())
    }

    fn check_weights(&self, _model: &Classifier) -> Result<()> {
        Ok(())
    }

    fn copies(&self, network: Network) -> Vec<Network> {
        vec![network]
    }

    fn predict(
        &self,
        copies: &[Network],
        task: &Arc<Objective>,
        batches: &[ImageBatch],
    ) -> Result<Vec<Vec<Prediction>>> {
        let device = self.device.clone().without_autodiff();
        Ok(copies.iter().zip(batches).map(|(network, batch)| predict(network, task, batch, &device)).collect())
    }
}
