//! What the processes of a run say to each other: weights once, gradients each step, predictions each epoch.

use std::cell::Cell;

use anyhow::{Context, Result};
use burn::{
    module::{Module, ModuleVisitor, Param},
    optim::GradientsParams,
    store::ModuleRecord,
    tensor::{Bytes, Device, Tensor, TensorData},
};
use models::Network;
use runtime::world::World;

use crate::{classifier::Classifier, evaluation::Prediction};

/// The root's network, on every rank: weights, running statistics, and the parameters' identities.
pub fn broadcast_network(world: &World, network: Network) -> Result<Network> {
    if world.is_alone() {
        return Ok(network);
    }
    let bytes = world.on_root(|| Ok(network.clone().into_record().into_bytes()?.to_vec()), Vec::clone, Ok)?;
    let record = ModuleRecord::from_bytes(Bytes::from_bytes_vec(bytes)).context("the root's network cannot be read")?;
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
    values: Vec<f32>,
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

/// Sums tensors of parameters over all ranks, times `factor`, in one flat message.
fn sum(
    world: &World,
    model: &Classifier,
    wanted: fn(&str, bool) -> bool,
    mut tensors: GradientsParams,
    factor: f32,
    device: &Device,
) -> GradientsParams {
    // The message of the step before: fresh memory would cost as much as a copy.
    thread_local! {
        static MESSAGE: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    }
    let mut values = MESSAGE.take();
    values.clear();
    let mut flat = Flatten { tensors: &mut tensors, values };
    each(model, wanted, &mut flat);
    let mut values = flat.values;
    world.sum_floats(&mut values);
    let device = device.clone().without_autodiff();
    let mut unflatten = Unflatten { tensors: GradientsParams::new(), values: &values, factor, device };
    each(model, wanted, &mut unflatten);
    let tensors = unflatten.tensors;
    MESSAGE.set(values);
    tensors
}

/// The sum of all ranks' gradients.
pub fn sum_gradients(
    world: &World,
    model: &Classifier,
    gradients: GradientsParams,
    device: &Device,
) -> GradientsParams {
    if world.is_alone() {
        return gradients;
    }
    sum(world, model, |_, requires_grad| requires_grad, gradients, 1.0, device)
}

/// The mean of all ranks' running statistics.
pub fn mean_statistics(
    world: &World,
    model: &Classifier,
    statistics: GradientsParams,
    device: &Device,
) -> GradientsParams {
    let factor = 1.0 / world.size() as f32;
    sum(world, model, |module, _| module.starts_with("running_"), statistics, factor, device)
}

/// The root's running statistics.
pub fn root_statistics(
    world: &World,
    model: &Classifier,
    mut statistics: GradientsParams,
    device: &Device,
) -> GradientsParams {
    if !world.is_root() {
        // Others have nothing to add.
        statistics = GradientsParams::new();
    }
    sum(world, model, |module, _| module.starts_with("running_"), statistics, 1.0, device)
}

/// A fingerprint of a network's weights, without running statistics.
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
    each(model, |module, _| !module.starts_with("running_"), &mut own);
    own.0
}

/// Whether the weights are the same on every rank, or something went wrong.
pub fn weights_agree(world: &World, model: &Classifier) -> bool {
    if world.is_alone() {
        return true;
    }
    let all = world.gather(fingerprint(model).to_le_bytes().to_vec());
    all.iter().all(|sum| *sum == all[0])
}

/// All ranks' predictions, in the order of images, on every rank.
pub fn gather_predictions(world: &World, own: Vec<Prediction>) -> Result<Vec<Prediction>> {
    if world.is_alone() {
        return Ok(own);
    }
    let bytes: Vec<u8> = own.iter().flat_map(to_bytes).collect();
    let mut all = Vec::new();
    for bytes in world.gather(bytes) {
        let mut bytes = &bytes[..];
        while !bytes.is_empty() {
            all.push(from_bytes(&mut bytes).context("a process sent predictions that cannot be read")?);
        }
    }
    all.sort_by_key(|prediction| prediction.index);
    Ok(all)
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
    fn predictions_come_back_as_they_went() {
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
