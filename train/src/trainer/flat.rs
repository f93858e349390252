//! Tensors of a module in flat buffers: one kernel updates what would take one kernel per tensor.
//!
//! A buffer holds tensors one after another, and the module's tensors are views of it. A GPU backend makes such a view
//! without a copy where it begins and ends at a multiple of [`ALIGNMENT`]. What has to be copied in each step are tensors
//! that come from elsewhere: gradients, from a backward pass.

use std::collections::HashMap;

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId},
    optim::GradientsParams,
    tensor::{Shape, Tensor},
};
use runtime::backend::BackendSpec;

/// Elements at whose multiples a view may begin and end without being copied: CUDA's 512 bytes, the largest alignment of
/// Burn's backends.
const ALIGNMENT: usize = 128;

/// Elements of a buffer, at most, on backends that pay for each kernel launch; longer tensors have buffers of their own.
/// 64 MiB: below the bindings of every graphics API, and a fraction of what a network's activations take.
const BUFFER: usize = 16 << 20;

/// Elements of a buffer on a backend; 0 where each tensor is better off by itself, since nothing is launched.
pub fn buffer(backend: &BackendSpec) -> usize {
    if super::is_asynchronous(backend) { BUFFER } else { 0 }
}

/// Flat tensors by parameter.
pub type FlatTensors = HashMap<ParamId, Tensor<1>>;

/// A tensor of a module, and where it is in a buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    pub id: ParamId,
    pub shape: Shape,
}

impl Member {
    pub fn len(&self) -> usize {
        self.shape.num_elements()
    }
}

/// Which tensors a buffer holds, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    members: Vec<Member>,
    /// Zeros after them, so that views of the last aligned one end at a multiple of the alignment.
    padding: usize,
}

impl Layout {
    /// Distributes tensors over buffers of at most `limit` elements; 0 gives each a buffer of its own, which copies
    /// nothing.
    pub fn distribute(members: Vec<Member>, limit: usize) -> Vec<Self> {
        // What would misalign the views after it comes last.
        let (aligned, rest): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|member| member.len().is_multiple_of(ALIGNMENT));
        let mut layouts: Vec<Vec<Member>> = Vec::new();
        let mut len = limit;
        for member in aligned.into_iter().chain(rest) {
            len += member.len();
            if len > limit {
                layouts.push(Vec::new());
                len = member.len();
            }
            layouts.last_mut().expect("the first member begins a buffer").push(member);
        }
        layouts.into_iter().map(Self::new).collect()
    }

    fn new(members: Vec<Member>) -> Self {
        let len: usize = members.iter().map(Member::len).sum();
        let padding = if members.len() == 1 { 0 } else { len.next_multiple_of(ALIGNMENT) - len };
        Self { members, padding }
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Moves the members' tensors into one buffer. `None` where one of them is missing.
    pub fn pack(&self, tensors: &mut FlatTensors) -> Option<Tensor<1>> {
        let mut parts: Vec<Tensor<1>> = Vec::with_capacity(self.members.len() + 1);
        for member in &self.members {
            parts.push(tensors.remove(&member.id)?);
        }
        if self.padding > 0 {
            parts.push(Tensor::zeros([self.padding], &parts[0].device()));
        }
        Some(if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 0) })
    }

    /// Views of the members in a buffer.
    pub fn unpack(&self, buffer: Tensor<1>, tensors: &mut FlatTensors) {
        if let [member] = &self.members[..] {
            tensors.insert(member.id, buffer);
            return;
        }
        let mut start = 0;
        for member in &self.members {
            tensors.insert(member.id, buffer.clone().narrow(0, start, member.len()));
            start += member.len();
        }
    }
}

/// The float tensors of a module: parameters and running statistics, without autodiff.
pub fn tensors<M: Module>(module: &M) -> (Vec<Member>, FlatTensors) {
    struct All {
        members: Vec<Member>,
        tensors: FlatTensors,
    }
    impl ModuleVisitor for All {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let tensor = param.val();
            self.members.push(Member { id: param.id, shape: tensor.shape() });
            self.tensors.insert(param.id, tensor.inner().reshape([-1]));
        }
    }
    let mut all = All { members: Vec::new(), tensors: HashMap::new() };
    module.visit(&mut all);
    (all.members, all.tensors)
}

/// The gradients of a module's parameters, flat; of a parameter without one nothing.
pub fn gradients<M: Module>(module: &M, gradients: GradientsParams) -> (Vec<Member>, FlatTensors) {
    struct All {
        gradients: GradientsParams,
        members: Vec<Member>,
        tensors: FlatTensors,
    }
    impl ModuleVisitor for All {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.remove::<D>(param.id) {
                self.members.push(Member { id: param.id, shape: gradient.shape() });
                self.tensors.insert(param.id, gradient.reshape([-1]));
            }
        }
    }
    let mut all = All { gradients, members: Vec::new(), tensors: HashMap::new() };
    module.visit(&mut all);
    (all.members, all.tensors)
}

/// Replaces the tensors of a module that are `wanted`. `update` gets the flat value of each, which nobody else holds
/// unless the module is shared.
pub fn update<M: Module>(
    module: M,
    wanted: impl Fn(ParamId) -> bool,
    update: impl FnMut(ParamId, Tensor<1>) -> Tensor<1>,
) -> M {
    struct Update<W, F> {
        wanted: W,
        update: F,
    }
    impl<W: Fn(ParamId) -> bool, F: FnMut(ParamId, Tensor<1>) -> Tensor<1>> ModuleMapper for Update<W, F> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if !(self.wanted)(param.id) {
                return param;
            }
            let (id, tensor, mapper) = param.consume();
            let shape = tensor.shape();
            let (requires_grad, checkpointing) = (tensor.is_require_grad(), tensor.gradient_checkpointing_strategy());
            let flat = tensor.inner().reshape([-1]);
            let mut tensor: Tensor<D> = (self.update)(id, flat).reshape(shape);
            if let Some(strategy) = checkpointing {
                tensor = Tensor::from_inner(tensor).with_gradient_checkpointing_strategy(strategy);
                tensor = tensor.set_require_grad(requires_grad);
            }
            Param::from_mapped_value(id, tensor, mapper)
        }
    }
    module.map(&mut Update { wanted, update })
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use models::{Architecture, Network, NetworkConfig};

    use super::*;

    fn network() -> Network {
        let network = NetworkConfig::new(Architecture::ResNet20).with_num_classes(3).init(&Device::flex().autodiff());
        crate::transfer::draw_all(network)
    }

    fn values(tensors: &FlatTensors, members: &[Member]) -> Vec<Vec<f32>> {
        members.iter().map(|member| tensors[&member.id].clone().into_data().iter::<f32>().collect()).collect()
    }

    #[test]
    fn views_of_buffers_are_the_tensors_that_were_packed() {
        let (members, found) = tensors(&network());
        let elements: usize = members.iter().map(Member::len).sum();
        for (limit, buffers) in [(0, members.len()), (usize::MAX / 2, 1), (elements / 3, 4)] {
            let layouts = Layout::distribute(members.clone(), limit);
            assert_eq!(layouts.len(), buffers, "{limit}");
            let (mut packed, mut unpacked) = (found.clone(), FlatTensors::new());
            for layout in &layouts {
                let buffer = layout.pack(&mut packed).unwrap();
                assert!(layout.members().len() == 1 || buffer.dims()[0].is_multiple_of(ALIGNMENT));
                layout.unpack(buffer, &mut unpacked);
            }
            assert!(packed.is_empty());
            assert_eq!(values(&unpacked, &members), values(&found, &members), "{limit}");
        }
        let mut none = FlatTensors::new();
        assert!(Layout::distribute(members, 0)[0].pack(&mut none).is_none());
    }

    #[test]
    fn what_is_replaced_stays_a_parameter() {
        let network = network();
        let (members, before) = tensors(&network);
        let first = members[0].id;
        let network = update(network, |id| id == first, |_, value| value + 1.0);
        let (_, after) = tensors(&network);
        let [old, new] = [before, after].map(|tensors| values(&tensors, &members));
        assert!(old[0].iter().zip(&new[0]).all(|(old, new)| old + 1.0 == *new));
        assert_eq!(old[1..], new[1..]);
        struct Trained(bool);
        impl ModuleVisitor for Trained {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.0 &= D != 4 || param.val().is_require_grad();
            }
        }
        let mut trained = Trained(true);
        network.visit(&mut trained);
        assert!(trained.0);
    }
}
