//! The exponential moving average of a network's weights and running statistics.

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::Tensor,
};
use models::Network;

use crate::recipe::Ema;

/// The average of a network in training; itself in evaluation mode.
#[derive(Debug, Clone)]
pub struct Average {
    pub network: Network,
    decay: f32,
    every: u64,
    /// Whether anything was averaged yet: the first update copies, as PyTorch's `AveragedModel` has it.
    pub started: bool,
}

impl Average {
    pub fn new(recipe: &Ema, network: &Network) -> Self {
        Self { network: network.valid(), decay: recipe.decay, every: recipe.every as u64, started: false }
    }

    /// Takes in the weights after `step` steps.
    pub fn update(&mut self, network: &Network, step: u64) {
        if !step.is_multiple_of(self.every) {
            return;
        }
        let decay = if self.started { self.decay } else { 0.0 };
        self.started = true;
        let mut current = Tensors::default();
        network.valid().visit(&mut current);
        self.network = self.network.clone().map(&mut Blend { current: current.0, decay });
    }
}

/// A network's tensors by parameter, whatever their rank.
#[derive(Default)]
struct Tensors(GradientsParams);

impl ModuleVisitor for Tensors {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.register(param.id, param.val());
    }
}

struct Blend {
    current: GradientsParams,
    decay: f32,
}

impl ModuleMapper for Blend {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let current = self.current.remove::<D>(param.id);
        let decay = self.decay;
        param.map(|average| match current {
            Some(current) if decay == 0.0 => current,
            Some(current) => average * decay + current * (1.0 - decay),
            None => average,
        })
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use models::{Architecture, NetworkConfig};

    use super::*;
    use crate::optimizer::draw_all;

    fn first_weight(network: &Network) -> f32 {
        struct First(Option<f32>);
        impl ModuleVisitor for First {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.0.get_or_insert_with(|| param.val().into_data().iter::<f32>().next().unwrap());
            }
        }
        let mut first = First(None);
        network.visit(&mut first);
        first.0.unwrap()
    }

    struct Add;
    impl ModuleMapper for Add {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|tensor| tensor + 1.0)
        }
    }

    #[test]
    fn the_first_update_copies_and_later_ones_blend() {
        let device = Device::flex();
        let network = draw_all(NetworkConfig::new(Architecture::ResNet20).init(&device));
        let mut average = Average::new(&Ema { decay: 0.75, every: 2 }, &network);
        let start = first_weight(&network);
        let moved = network.map(&mut Add);
        average.update(&moved, 1);
        assert_eq!(first_weight(&average.network), start);
        average.update(&moved, 2);
        assert_eq!(first_weight(&average.network), start + 1.0);
        let moved = moved.map(&mut Add);
        average.update(&moved, 4);
        assert!((first_weight(&average.network) - (start + 1.25)).abs() < 1e-6);
    }
}
