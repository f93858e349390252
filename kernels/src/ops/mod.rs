//! The operations, one file each: its trait, the reference body in Burn's operations that every backend runs, the
//! optimized body for `flex`, and the gradient.
//!
//! Each operation is a backend extension of its own. Its gradients are methods of a second trait without
//! `#[backend_extension]`: a backward pass runs on a known backend, so dispatch by device would only cost compile time.

/// Implements an operation for the backends that run its reference body, and its gradients for `Dispatch` and `Autodiff`.
macro_rules! reference_backends {
    ($gradients:ident, $operation:ident) => {
        impl $gradients for Dispatch {}
        impl<B: $operation, C: CheckpointStrategy> $gradients for Autodiff<B, C> {}
        #[cfg(feature = "ndarray")]
        impl $gradients for burn::backend::NdArray {}
        #[cfg(feature = "tch")]
        impl $gradients for burn::backend::LibTorch {}
        #[cfg(feature = "cube")]
        impl $gradients for burn::backend::Cube {}
        reference_backends!($operation);
    };
    ($operation:ident) => {
        #[cfg(feature = "ndarray")]
        impl $operation for burn::backend::NdArray {}
        #[cfg(feature = "tch")]
        impl $operation for burn::backend::LibTorch {}
        #[cfg(feature = "cube")]
        impl $operation for burn::backend::Cube {}
    };
}

pub mod batch_norm;
pub mod cat;
pub mod conv2d;
pub mod cross_entropy;
pub mod epilogue;
pub mod fan_out;
pub mod linear;
pub mod local_response_norm;
pub mod pool2d;
pub mod seed_gradient;
pub mod sgd;
pub mod sync_batch_norm;

use burn::backend::{
    Autodiff, Backend, ExtensionType,
    autodiff::{
        checkpoint::strategy::CheckpointStrategy,
        ops::{Backward, NodeGuard, OpsKind},
    },
    tensor::FloatTensor,
};

/// Imports of the operations' files.
pub(crate) mod prelude {
    #[cfg(feature = "flex")]
    pub use burn::backend::{
        Flex,
        flex::FlexTensor,
        ops::{FloatTensorOps, ModuleOps},
    };
    pub use burn::{
        backend::{
            Autodiff, AutodiffBackend, Backend, Dispatch, Scalar, TensorMetadata,
            autodiff::{
                checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
                grads,
                ops::{Backward, NodeGuard, Ops, OpsKind},
            },
            backend_extension,
            tensor::{FloatTensor, IntTensor},
        },
        tensor::{IntDType, Shape, Slice, ops::ConvOptions},
    };

    pub(crate) use super::{
        Ad, OptionalTensor, TensorList,
        epilogue::{EpilogueFlags, EpilogueGrad, by_channel, finish},
        record, record_some,
    };
}

/// A tensor under autodiff.
pub(crate) type Ad<B, C> = FloatTensor<Autodiff<B, C>>;

/// Up to [`CAPACITY`](Self::CAPACITY) tensors.
#[derive(Debug, Clone, ExtensionType)]
#[allow(missing_docs)]
pub struct TensorList<B: Backend> {
    pub first: FloatTensor<B>,
    #[extension_type]
    pub second: OptionalTensor<B>,
    #[extension_type]
    pub third: OptionalTensor<B>,
    #[extension_type]
    pub fourth: OptionalTensor<B>,
    #[extension_type]
    pub fifth: OptionalTensor<B>,
    #[extension_type]
    pub sixth: OptionalTensor<B>,
}

impl<B: Backend> TensorList<B> {
    /// The maximum number of tensors.
    pub const CAPACITY: usize = 6;

    /// Returns the tensors.
    pub fn into_vec(self) -> Vec<FloatTensor<B>> {
        let rest = [self.second, self.third, self.fourth, self.fifth, self.sixth];
        std::iter::once(self.first).chain(rest.into_iter().filter_map(OptionalTensor::into_option)).collect()
    }

    /// Creates a list of one to six tensors; `None` for any other number.
    pub fn new(maps: impl IntoIterator<Item = FloatTensor<B>>) -> Option<Self> {
        let mut maps = maps.into_iter();
        let first = maps.next()?;
        let mut next = || OptionalTensor::from(maps.next());
        let all = Self { first, second: next(), third: next(), fourth: next(), fifth: next(), sixth: next() };
        maps.next().is_none().then_some(all)
    }
}

/// An optional tensor.
#[derive(Debug, Clone, ExtensionType)]
pub enum OptionalTensor<B: Backend> {
    /// A tensor.
    Some(FloatTensor<B>),
    /// No tensor.
    None,
}

impl<B: Backend> OptionalTensor<B> {
    /// Converts to an `Option`.
    pub fn into_option(self) -> Option<FloatTensor<B>> {
        match self {
            Self::Some(tensor) => Some(tensor),
            Self::None => None,
        }
    }
}

impl<B: Backend> From<Option<FloatTensor<B>>> for OptionalTensor<B> {
    fn from(tensor: Option<FloatTensor<B>>) -> Self {
        tensor.map_or(Self::None, Self::Some)
    }
}

/// Registers an operation for autodiff. `state` computes what the gradient needs from the output, if a gradient is tracked.
pub(crate) fn record<B, C, W, const N: usize>(
    backward: W,
    nodes: [NodeGuard; N],
    output: FloatTensor<B>,
    state: impl FnOnce(&FloatTensor<B>) -> W::State,
) -> FloatTensor<Autodiff<B, C>>
where
    B: Backend,
    C: CheckpointStrategy,
    W: Backward<B, N>,
{
    match backward.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => {
            let state = state(&output);
            prepared.finish(state, output)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    }
}

/// Registers an operation with optional parents.
pub(crate) fn record_some<B, C, W, S>(
    backward: W,
    nodes: Vec<NodeGuard>,
    output: FloatTensor<B>,
    state: impl FnOnce(&FloatTensor<B>) -> S,
) -> FloatTensor<Autodiff<B, C>>
where
    B: Backend,
    C: CheckpointStrategy,
    W: Backward<B, 2, State = S> + Backward<B, 3, State = S> + Backward<B, 4, State = S>,
{
    let nodes = match <[NodeGuard; 2]>::try_from(nodes) {
        Ok(nodes) => return record::<B, C, W, 2>(backward, nodes, output, state),
        Err(nodes) => nodes,
    };
    let nodes = match <[NodeGuard; 3]>::try_from(nodes) {
        Ok(nodes) => return record::<B, C, W, 3>(backward, nodes, output, state),
        Err(nodes) => nodes,
    };
    match <[NodeGuard; 4]>::try_from(nodes) {
        Ok(nodes) => record::<B, C, W, 4>(backward, nodes, output, state),
        Err(nodes) => unreachable!("an operation has two to four parents, not {}", nodes.len()),
    }
}
