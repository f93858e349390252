//! Several processes: the root's weights are broadcast once, gradients are summed in each step, predictions are gathered
//! in each epoch.

use std::{cell::RefCell, fmt, sync::Arc};

use burn::{
    module::{Module, ModuleVisitor, Param, ParamGroup},
    optim::{GradientsParams, lr_scheduler::module_lr_scheduler::ModuleLearningRate},
    store::ModuleRecord,
    tensor::{Bytes, Device, Tensor, TensorData},
};
use datasets::ImageBatch;
use models::Network;
use runtime::communicator::Communicator;

use super::{DataParallel, Shard};
use crate::{
    Error, Result,
    classifier::{Classifier, Objective},
    evaluation::{BatchScalars, Prediction},
    recipe::DistBn,
    trainer::{
        guard::{running_statistics, set_running_statistics},
        optimizer::Update,
        slot::Slot,
    },
};

/// One of several processes, with its own devices.
pub struct Mpi {
    world: &'static Communicator,
    local: Box<dyn DataParallel>,
    /// The first of the devices, without autodiff.
    device: Device,
    /// The message of the step before: fresh memory would cost as much as a copy.
    message: RefCell<Vec<f32>>,
}

impl Mpi {
    pub fn new(world: &'static Communicator, local: Box<dyn DataParallel>, device: Device) -> Self {
        Self { world, local, device: device.without_autodiff(), message: RefCell::default() }
    }

    /// Sums tensors of the parameters that `wanted` selects over all processes, times `factor`, in one message.
    fn sum(
        &self,
        model: &Classifier,
        wanted: fn(&str, bool) -> bool,
        mut tensors: GradientsParams,
        factor: f32,
    ) -> GradientsParams {
        let mut values = self.message.borrow_mut();
        values.clear();
        each(model, wanted, &mut Flatten { tensors: &mut tensors, values: &mut values });
        self.world.sum_floats(&mut values);
        let device = self.device.clone();
        let mut unflatten = Unflatten { tensors: GradientsParams::new(), values: &values, factor, device };
        each(model, wanted, &mut unflatten);
        unflatten.tensors
    }
}

impl DataParallel for Mpi {
    fn num_devices(&self) -> usize {
        self.local.num_devices()
    }

    fn forward_backward(
        &self,
        model: &Classifier,
        shards: Vec<Shard>,
        loss_scale: Option<&Tensor<1>>,
    ) -> Result<(GradientsParams, Vec<BatchScalars>)> {
        self.local.forward_backward(model, shards, loss_scale)
    }

    fn all_reduce(&self, model: &Classifier, gradients: GradientsParams) -> GradientsParams {
        let gradients = self.local.all_reduce(model, gradients);
        self.sum(model, |_, requires_grad| requires_grad, gradients, 1.0)
    }

    fn step(
        &self,
        model: &mut Slot<Classifier>,
        rates: &ModuleLearningRate,
        update: &Update,
        main: &mut dyn FnMut(&mut Slot<Classifier>),
    ) -> Result<()> {
        self.local.step(model, rates, update, main)
    }

    fn discard(&self) -> Result<()> {
        self.local.discard()
    }

    fn unfreeze(&self, group: &ParamGroup) -> Result<()> {
        self.local.unfreeze(group)
    }

    fn sync_running_statistics(&self, model: &Classifier, how: DistBn) {
        let own = running_statistics(model);
        let (own, factor) = match how {
            DistBn::None => return,
            DistBn::Reduce => (own, 1.0 / self.world.size() as f32),
            DistBn::Broadcast if self.world.is_root() => (own, 1.0),
            // The sum is then the root's alone.
            DistBn::Broadcast => (GradientsParams::new(), 1.0),
        };
        set_running_statistics(model, self.sum(model, |module, _| is_statistic(module), own, factor));
    }

    fn check_weights(&self, model: &Classifier) -> Result<()> {
        let all = self.world.gather(fingerprint(model).to_le_bytes().to_vec());
        if all.iter().any(|sum| *sum != all[0]) {
            return Err(Error::Device(
                "the processes' weights are not the same any more: a device computes wrongly, or Hearth has a defect"
                    .into(),
            ));
        }
        self.local.check_weights(model)
    }

    fn copies(&self, network: Network) -> Vec<Network> {
        self.local.copies(network)
    }

    fn predict(
        &self,
        copies: &[Network],
        task: &Arc<Objective>,
        batches: &[ImageBatch],
    ) -> Result<Vec<Vec<Prediction>>> {
        self.local.predict(copies, task, batches)
    }

    fn gather(&self, own: Vec<Prediction>) -> Result<Vec<Prediction>> {
        let own = self.local.gather(own)?;
        let bytes: Vec<u8> = own.iter().flat_map(to_bytes).collect();
        let mut all = Vec::new();
        for bytes in self.world.gather(bytes) {
            let mut bytes = &bytes[..];
            while !bytes.is_empty() {
                let unreadable = || Error::Message("a process sent predictions that cannot be read".into());
                all.push(from_bytes(&mut bytes).ok_or_else(unreadable)?);
            }
        }
        all.sort_by_key(|prediction| prediction.index);
        Ok(all)
    }
}

/// Returns the root's network, on every rank: weights, running statistics, and the parameters' identities.
pub fn broadcast_network(world: &Communicator, network: Network) -> Result<Network> {
    if world.is_alone() {
        return Ok(network);
    }
    let message = |what: &str, error: &dyn fmt::Display| Error::Message(format!("{what}: {error}"));
    let own = || {
        let bytes = network.clone().into_record().into_bytes();
        bytes.map(|bytes| bytes.to_vec()).map_err(|error| message("the network cannot be sent", &error))
    };
    let bytes = world.on_root(own, Vec::clone, Ok)?;
    let record = ModuleRecord::from_bytes(Bytes::from_bytes_vec(bytes));
    let record = record.map_err(|error| message("the root's network cannot be read", &error))?;
    Ok(network.load_record(record))
}

/// Visits float parameters that `wanted` selects by the module that holds them.
struct Each<'a, F> {
    module: String,
    wanted: fn(&str, bool) -> bool,
    visit: &'a mut F,
}

/// What is done with each.
trait Visit {
    fn visit<const D: usize>(&mut self, param: &Param<Tensor<D>>);
}

impl<F: Visit> ModuleVisitor for Each<'_, F> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.module = name.to_string();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if (self.wanted)(&self.module, param.val().is_require_grad()) {
            self.visit.visit(param);
        }
    }
}

fn each(model: &Classifier, wanted: fn(&str, bool) -> bool, visit: &mut impl Visit) {
    model.visit(&mut Each { module: String::new(), wanted, visit });
}

/// Tensors one after another, each with a flag that says whether it is there: one message.
struct Flatten<'a> {
    tensors: &'a mut GradientsParams,
    values: &'a mut Vec<f32>,
}

impl Visit for Flatten<'_> {
    fn visit<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        match self.tensors.remove::<D>(param.id) {
            Some(tensor) => {
                self.values.push(1.0);
                let data = tensor.into_data().convert::<f32>();
                match data.as_slice::<f32>() {
                    Ok(values) => self.values.extend_from_slice(values),
                    Err(_) => self.values.extend(data.iter::<f32>()),
                }
            }
            None => {
                self.values.push(0.0);
                let len = param.val().shape().num_elements();
                self.values.resize(self.values.len() + len, 0.0);
            }
        }
    }
}

struct Unflatten<'a> {
    tensors: GradientsParams,
    values: &'a [f32],
    factor: f32,
    device: Device,
}

impl Visit for Unflatten<'_> {
    fn visit<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let shape = param.val().dims();
        let len = shape.iter().product::<usize>();
        let [there, rest @ ..] = self.values else { return };
        let (values, rest) = rest.split_at(len);
        self.values = rest;
        // A rank without images has no gradients of its own.
        if *there > 0.0 {
            let values = if self.factor == 1.0 {
                values.to_vec()
            } else {
                values.iter().map(|value| value * self.factor).collect()
            };
            self.tensors.register(param.id, Tensor::<D>::from_data(TensorData::new(values, shape), &self.device));
        }
    }
}

/// Whether a module of this name holds a running statistic of batch normalization.
fn is_statistic(module: &str) -> bool {
    module.starts_with("running_")
}

/// Returns a fingerprint of a network's weights, without running statistics.
pub fn fingerprint(model: &Classifier) -> u32 {
    struct Sum(u32);
    impl Visit for Sum {
        fn visit<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let data = param.val().into_data();
            let mut hash = crc32fast::Hasher::new_with_initial(self.0);
            hash.update(data.as_bytes());
            self.0 = hash.finalize();
        }
    }
    let mut own = Sum(0);
    each(model, |module, _| !is_statistic(module), &mut own);
    own.0
}

fn to_bytes(prediction: &Prediction) -> Vec<u8> {
    let Prediction { index, label, loss, p_label, top } = prediction;
    let mut bytes = (*index as u64).to_le_bytes().to_vec();
    bytes.extend(label.to_le_bytes());
    bytes.extend(loss.to_le_bytes());
    bytes.extend(p_label.to_le_bytes());
    bytes.extend((top.len() as u32).to_le_bytes());
    for (class, probability) in top {
        bytes.extend(class.to_le_bytes());
        bytes.extend(probability.to_le_bytes());
    }
    bytes
}

fn from_bytes(bytes: &mut &[u8]) -> Option<Prediction> {
    fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
        let (first, rest) = bytes.split_first_chunk::<N>()?;
        *bytes = rest;
        Some(*first)
    }
    let index = u64::from_le_bytes(take(bytes)?) as usize;
    let label = u32::from_le_bytes(take(bytes)?);
    let [loss, p_label] = [f32::from_le_bytes(take(bytes)?), f32::from_le_bytes(take(bytes)?)];
    let count = u32::from_le_bytes(take(bytes)?);
    let mut top = Vec::new();
    for _ in 0..count {
        top.push((u32::from_le_bytes(take(bytes)?), f32::from_le_bytes(take(bytes)?)));
    }
    Some(Prediction { index, label, loss, p_label, top })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_survive_the_message() {
        let prediction =
            |index, top: &[(u32, f32)]| Prediction { index, label: 3, loss: f32::NAN, p_label: 0.1, top: top.to_vec() };
        let sent = [prediction(7, &[(3, 0.5), (1, 0.25)]), prediction(1 << 40, &[])];
        let bytes: Vec<u8> = sent.iter().flat_map(to_bytes).collect();
        let mut left = &bytes[..];
        for sent in sent {
            let got = from_bytes(&mut left).unwrap();
            assert!(got.loss.is_nan());
            assert_eq!((got.index, got.label, got.p_label, got.top), (sent.index, sent.label, sent.p_label, sent.top));
        }
        assert!(left.is_empty());
        assert!(from_bytes(&mut &bytes[..11]).is_none());
    }
}
