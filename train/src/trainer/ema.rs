//! The exponential moving average (EMA) of a network's weights and running statistics.

use burn::{
    module::Module,
    tensor::{Bool, Tensor},
};
use models::Network;

use super::{
    flat::{self, FlatTensors, Layout},
    optimizer::select,
};
use crate::recipe;

/// The EMA of a network in training; itself in evaluation mode.
pub struct Ema {
    network: Network,
    decay: f32,
    every: u64,
    /// Whether there was an update yet: the first one copies, as in PyTorch's `AveragedModel`.
    started: bool,
    /// Elements of a buffer.
    buffer: usize,
    /// The averages in buffers, which the network's tensors are views of. Empty before the first update.
    buffers: Vec<(Layout, Tensor<1>)>,
}

impl Ema {
    /// The EMA of `network` from now on, in buffers of `buffer` elements.
    pub fn new(recipe: &recipe::Ema, network: &Network, buffer: usize) -> Self {
        let (decay, every) = (recipe.decay, recipe.every as u64);
        Self { network: network.valid(), decay, every, started: false, buffer, buffers: Vec::new() }
    }

    /// The network of the averages.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Continues from another average.
    pub fn load(&mut self, load: impl FnOnce(Network) -> Network, started: bool) {
        self.network = load(self.network.clone());
        self.started = started;
        self.buffers.clear();
    }

    /// Whether the weights after `step` steps are averaged.
    pub fn is_due(&self, step: u64) -> bool {
        step.is_multiple_of(self.every)
    }

    /// Whether an update is known to have counted.
    pub fn has_started(&self) -> bool {
        self.started
    }

    /// Adds the weights of a step to the average, if the step counts: `finite` says so where only the device knows. The
    /// host has to [`confirm`](Self::confirm) the first update that counted before the next one.
    pub fn update(&mut self, network: &Network, finite: Option<&Tensor<1, Bool>>) {
        let (_, mut current) = flat::tensors(&network.valid());
        if self.buffers.is_empty() {
            let (members, mut tensors) = flat::tensors(&self.network);
            let layouts = Layout::distribute(members, self.buffer).into_iter();
            self.buffers = layouts.map(|layout| pack(layout, &mut tensors)).collect();
        }
        let mut views = FlatTensors::new();
        for (layout, average) in std::mem::take(&mut self.buffers) {
            let (layout, current) = pack(layout, &mut current);
            let old = finite.map(|finite| (finite, average.clone()));
            let decay = self.decay;
            let new = if self.started { average * decay + current * (1.0 - decay) } else { current };
            let new = match old {
                Some((finite, old)) => select(finite, new, old),
                None => new,
            };
            layout.unpack(new.clone(), &mut views);
            self.buffers.push((layout, new));
        }
        let view = |id, value| views.remove(&id).unwrap_or(value);
        self.network = flat::update(self.network.clone(), |_| true, view);
        self.started |= finite.is_none();
    }

    /// Learns that an update counted.
    pub fn confirm(&mut self) {
        self.started = true;
    }
}

fn pack(layout: Layout, tensors: &mut FlatTensors) -> (Layout, Tensor<1>) {
    let buffer = layout.pack(tensors).expect("a network and its average have the same tensors");
    (layout, buffer)
}

#[cfg(test)]
mod tests {
    use burn::{
        module::{ModuleMapper, ModuleVisitor, Param},
        tensor::Device,
    };
    use models::{Architecture, NetworkConfig};

    use super::*;
    use crate::transfer::draw_all;

    fn values(network: &Network) -> Vec<f32> {
        struct Values(Vec<f32>);
        impl ModuleVisitor for Values {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.0.extend(param.val().into_data().iter::<f32>());
            }
        }
        let mut values = Values(Vec::new());
        network.visit(&mut values);
        values.0
    }

    struct Add(f32);
    impl ModuleMapper for Add {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|tensor| tensor + self.0)
        }
    }

    fn network() -> Network {
        draw_all(NetworkConfig::new(Architecture::ResNet20).init(&Device::flex()))
    }

    #[test]
    fn the_first_update_copies_and_later_ones_blend() {
        for buffer in [0, 1 << 16] {
            let network = network();
            let mut ema = Ema::new(&recipe::Ema { decay: 0.75, every: 2 }, &network, buffer);
            assert!(!ema.is_due(1) && ema.is_due(2));
            let start = values(&network)[0];
            // Running statistics are shared by clones.
            let moved = network.valid().map(&mut Add(1.0));
            ema.update(&moved, None);
            assert!(ema.has_started());
            assert_eq!(values(ema.network()), values(&moved));
            let moved = moved.valid().map(&mut Add(1.0));
            ema.update(&moved, None);
            assert!((values(ema.network())[0] - (start + 1.25)).abs() < 1e-6);
        }
    }

    #[test]
    fn updates_that_do_not_count_change_nothing_whatever_they_hold() {
        let flag = |finite: bool| Tensor::<1, Bool>::from_data([finite], &Device::flex());
        for buffer in [0, 1 << 16] {
            let network = network();
            let mut ema = Ema::new(&recipe::Ema { decay: 0.75, every: 1 }, &network, buffer);
            let mut certain = Ema::new(&recipe::Ema { decay: 0.75, every: 1 }, &network, 0);
            let before = values(ema.network());
            ema.update(&network.valid().map(&mut Add(f32::NAN)), Some(&flag(false)));
            assert_eq!(values(ema.network()), before);
            assert!(!ema.has_started());
            for add in [1.0, 2.0] {
                let moved = network.valid().map(&mut Add(add));
                ema.update(&moved, Some(&flag(true)));
                ema.confirm();
                ema.update(&network.valid().map(&mut Add(f32::INFINITY)), Some(&flag(false)));
                certain.update(&moved, None);
            }
            assert_eq!(values(ema.network()), values(certain.network()));
        }
    }
}
