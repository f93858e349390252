//! A backward pass that starts from a given gradient.

use super::prelude::*;

/// The start of a backward pass.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait SeedGradient: Backend {
    /// Returns a zero `[1]` whose backward pass gives `gradient` to `output`. Burn starts backward passes from ones; the
    /// gradient is constant, so it is passed on as it is.
    fn seed_gradient(output: FloatTensor<Self>, _gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_zeros(Shape::new([1]), &output.device(), output.dtype().into())
    }
}

reference_backends!(SeedGradient);

#[cfg(feature = "flex")]
impl SeedGradient for Flex {}

#[derive(Debug)]
struct Seed;

impl<B: SeedGradient> Backward<B, 1> for Seed {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        drop(grads.consume::<B>(&ops.node));
        if let [Some(output)] = ops.parents {
            grads.register::<B>(output.id, ops.state);
        }
    }
}

impl<B: SeedGradient, C: CheckpointStrategy> SeedGradient for Autodiff<B, C> {
    fn seed_gradient(output: Ad<B, C>, gradient: Ad<B, C>) -> Ad<B, C> {
        let (node, gradient) = (output.node(), gradient.into_primitive());
        let seed = B::seed_gradient(output.into_primitive(), gradient.clone());
        record::<B, C, _, 1>(Seed, [node], seed, |_| gradient)
    }
}
