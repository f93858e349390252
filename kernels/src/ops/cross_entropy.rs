//! Softmax cross entropy with soft targets.
use super::prelude::*;

/// The gradient of cross entropy.
pub trait CrossEntropyGrad: Backend {
    /// The gradient of the logits of `cross_entropy` from that of each row's loss `[n]`.
    fn cross_entropy_backward(
        logits: FloatTensor<Self>,
        targets: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        reference::cross_entropy_backward::<Self>(logits, targets, dy)
    }
}

/// Cross entropy.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait CrossEntropy: CrossEntropyGrad {
    /// `−Σ targets · log softmax(logits)` of each row: `[n, classes]` → `[n]`. The targets have no gradient.
    fn cross_entropy(logits: FloatTensor<Self>, targets: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::cross_entropy::<Self>(logits, targets)
    }
}

reference_backends!(CrossEntropyGrad, CrossEntropy);

/// Reference bodies in Burn's operations.
mod reference {
    use super::*;

    pub fn cross_entropy<B: Backend>(logits: FloatTensor<B>, targets: FloatTensor<B>) -> FloatTensor<B> {
        let [n, _] = logits.shape().dims();
        let products = B::float_mul(B::log_softmax(logits, 1), targets);
        B::float_neg(B::float_reshape(B::float_sum_dim(products, 1), Shape::new([n])))
    }

    pub fn cross_entropy_backward<B: Backend>(
        logits: FloatTensor<B>,
        targets: FloatTensor<B>,
        dy: FloatTensor<B>,
    ) -> FloatTensor<B> {
        let [n, _] = logits.shape().dims();
        let totals = B::float_sum_dim(targets.clone(), 1);
        let difference = B::float_sub(B::float_mul(B::softmax(logits, 1), totals), targets);
        B::float_mul(difference, B::float_reshape(dy, Shape::new([n, 1])))
    }
}

#[cfg(feature = "flex")]
mod optimized {
    use super::*;
    use crate::{
        cpu::{buffer_pool::Buffer, loss},
        flex::{floats, single, tensor},
    };

    impl CrossEntropyGrad for Flex {
        fn cross_entropy_backward(logits: FlexTensor, targets: FlexTensor, dy: FlexTensor) -> FlexTensor {
            if !single(&[&logits, &targets, &dy]) {
                return reference::cross_entropy_backward::<Self>(logits, targets, dy);
            }
            let [logits, targets, dy] = [logits, targets, dy].map(|tensor| tensor.to_contiguous());
            let [n, classes] = logits.layout().shape().dims();
            let mut out = Buffer::new(n * classes);
            loss::cross_entropy_backward(floats(&logits), floats(&targets), floats(&dy), &mut out);
            tensor(out, [n, classes])
        }
    }

    impl CrossEntropy for Flex {
        fn cross_entropy(logits: FlexTensor, targets: FlexTensor) -> FlexTensor {
            if !single(&[&logits, &targets]) {
                return reference::cross_entropy::<Self>(logits, targets);
            }
            let [logits, targets] = [logits, targets].map(|tensor| tensor.to_contiguous());
            let [n, classes] = logits.layout().shape().dims();
            let mut losses = Buffer::new(n);
            loss::cross_entropy(floats(&logits), floats(&targets), classes, &mut losses);
            tensor(losses, [n])
        }
    }
}

#[derive(Debug)]
struct LossBackward;

impl<B: CrossEntropy> Backward<B, 1> for LossBackward {
    /// Logits and targets.
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let (logits, targets) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::cross_entropy_backward(logits, targets, dy));
        }
    }
}

impl<B: CrossEntropy, C: CheckpointStrategy> CrossEntropy for Autodiff<B, C> {
    fn cross_entropy(logits: Ad<B, C>, targets: Ad<B, C>) -> Ad<B, C> {
        let node = logits.node();
        let [logits, targets] = [logits, targets].map(|tensor| tensor.into_primitive());
        let losses = B::cross_entropy(logits.clone(), targets.clone());
        record::<B, C, _, 1>(LossBackward, [node], losses, |_| (logits, targets))
    }
}
