//! Branches of a tensor whose gradients are accumulated in place.

use std::{
    any::Any,
    sync::{Arc, Mutex, PoisonError},
};

use super::prelude::*;

/// The sum of the gradients of the branches of a fan-out, so far: a `FloatTensor` of the backend.
///
/// The graph is `x → root → branches`. A branch adds its gradient in place, and the root, which Burn runs after all
/// branches that the loss depends on, passes the sum to `x`. A branch that does not reach the loss adds nothing.
#[derive(Debug, Clone, Default)]
pub struct GradAccumulator(Arc<Mutex<Option<Box<dyn Any + Send>>>>);

impl GradAccumulator {
    fn take<B: Backend>(&self) -> Option<FloatTensor<B>> {
        let sum = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(*sum.downcast().expect("a graph has one backend"))
    }

    fn put<B: Backend>(&self, sum: FloatTensor<B>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(sum));
    }
}

/// The gradient of a fan-out.
pub trait FanOutGrad: Backend {
    /// Adds two tensors; the first may be overwritten.
    fn add_assign(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_add(x, y)
    }
}

/// Branches of a tensor.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait FanOut: FanOutGrad {
    /// Registers `x` as the root of branches whose gradients are summed in the accumulator.
    fn fan_out_root(x: FloatTensor<Self>, _accumulator: GradAccumulator) -> FloatTensor<Self> {
        x
    }

    /// Registers a branch of the root.
    fn fan_out_branch(root: FloatTensor<Self>, _accumulator: GradAccumulator) -> FloatTensor<Self> {
        root
    }
}

reference_backends!(FanOutGrad, FanOut);

#[cfg(feature = "flex")]
mod optimized {
    use super::*;
    use crate::{
        cpu::{buffer_pool::Buffer, cat},
        flex::{channels_last, copy_all, dims, floats, map, own_floats, single},
    };

    impl FanOutGrad for Flex {
        fn add_assign(x: FlexTensor, y: FlexTensor) -> FlexTensor {
            if !single(&[&x, &y]) || x.rank() != 4 {
                return Self::float_add(x, y);
            }
            let (mut x, y) = (channels_last(x), channels_last(y));
            if own_floats(&mut x).is_none() {
                let mut copy = Buffer::new(x.layout().num_elements());
                copy_all(floats(&x), &mut copy);
                x = map(copy, dims(&x));
            }
            let Some(out) = own_floats(&mut x) else { unreachable!("a new tensor has one owner") };
            cat::add(floats(&y), out);
            x
        }
    }

    impl FanOut for Flex {}
}

#[derive(Debug)]
struct FanOutRoot;

impl<B: FanOut> Backward<B, 1> for FanOutRoot {
    type State = GradAccumulator;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        if let ([Some(node)], Some(sum)) = (ops.parents, ops.state.take::<B>()) {
            grads.register::<B>(node.id, sum);
        }
    }
}

#[derive(Debug)]
struct FanOutBranch;

impl<B: FanOut> Backward<B, 1> for FanOutBranch {
    type State = GradAccumulator;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        ops.state.put::<B>(match ops.state.take::<B>() {
            Some(sum) => B::add_assign(sum, dy),
            None => dy,
        });
    }
}

impl<B: FanOut, C: CheckpointStrategy> FanOut for Autodiff<B, C> {
    fn fan_out_root(x: Ad<B, C>, accumulator: GradAccumulator) -> Ad<B, C> {
        let node = x.node();
        record::<B, C, _, 1>(FanOutRoot, [node], x.into_primitive(), |_| accumulator)
    }

    fn fan_out_branch(root: Ad<B, C>, accumulator: GradAccumulator) -> Ad<B, C> {
        let node = root.node();
        record::<B, C, _, 1>(FanOutBranch, [node], root.into_primitive(), |_| accumulator)
    }
}
