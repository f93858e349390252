//! Steps that are discarded because something is not finite.

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::Tensor,
};

use super::Trainer;
use crate::classifier::Classifier;

impl Trainer {
    /// The keys of samples, for messages.
    pub(super) fn name_samples(&self, indices: &[usize]) -> String {
        let source = self.session.loaders.first().source();
        let shown: Vec<_> = indices.iter().take(8).map(|&index| source.key(index).into_owned()).collect();
        let more = indices.len() - shown.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{}{more}", shown.join(", "))
    }
}

/// BatchNorm's running statistics.
pub(super) fn running_statistics(model: &Classifier) -> GradientsParams {
    #[derive(Default)]
    struct Statistics {
        name: String,
        found: GradientsParams,
    }
    impl ModuleVisitor for Statistics {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.name = name.to_string();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.name.starts_with("running_") {
                self.found.register(param.id, param.val());
            }
        }
    }
    // They lag by one step until a snapshot is taken.
    drop(model.network.valid());
    let mut statistics = Statistics::default();
    model.network.visit(&mut statistics);
    statistics.found
}

/// Sets the running statistics back. All copies of a network share them.
pub(super) fn restore(model: Classifier, statistics: GradientsParams) {
    struct Restore(GradientsParams);
    impl ModuleMapper for Restore {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            match self.0.remove::<D>(param.id) {
                Some(tensor) => param.map(|_| tensor),
                None => param,
            }
        }
    }
    drop(model.network.valid());
    let _ = model.network.map(&mut Restore(statistics));
}
