//! Local response normalization (LRN) across channels.
use super::prelude::*;

/// Local response normalization, `x / (k + alpha · mean(x²))^beta` over `size` channels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LocalResponseNorm {
    /// Channels of a window.
    pub size: usize,
    /// Weight of the squares.
    pub alpha: f64,
    /// Exponent.
    pub beta: f64,
    /// Added to the squares.
    pub k: f64,
}

/// The gradient of local response normalization.
pub trait LocalResponseNormGrad: Backend {
    /// The gradient of the input of a local response normalization.
    fn local_response_norm_backward(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        norm: LocalResponseNorm,
    ) -> FloatTensor<Self> {
        reference::local_response_norm_backward::<Self>(x, dy, norm)
    }
}

/// Local response normalization.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait LocalResponseNormalization: LocalResponseNormGrad {
    /// Local response normalization across the channels of `[n, c, h, w]`.
    fn local_response_norm(x: FloatTensor<Self>, norm: LocalResponseNorm) -> FloatTensor<Self> {
        reference::local_response_norm::<Self>(x, norm)
    }
}

reference_backends!(LocalResponseNormGrad, LocalResponseNormalization);

/// Reference bodies in Burn's operations.
mod reference {
    use super::*;

    pub fn local_response_norm<B: Backend>(x: FloatTensor<B>, norm: LocalResponseNorm) -> FloatTensor<B> {
        B::float_mul(x.clone(), B::float_powf_scalar(response_base::<B>(x, norm), Scalar::Float(-norm.beta)))
    }

    /// `k + alpha · mean(x²)` over the channels around each.
    fn response_base<B: Backend>(x: FloatTensor<B>, norm: LocalResponseNorm) -> FloatTensor<B> {
        let means =
            B::float_div_scalar(window_sums::<B>(B::float_mul(x.clone(), x), norm.size, false), norm.size.into());
        B::float_add_scalar(B::float_mul_scalar(means, Scalar::Float(norm.alpha)), Scalar::Float(norm.k))
    }

    /// Sums over the channels from `(size − 1) / 2` before to `size / 2` after each, or, reversed, over those whose window
    /// it is in.
    fn window_sums<B: Backend>(x: FloatTensor<B>, size: usize, reversed: bool) -> FloatTensor<B> {
        let [n, c, h, w] = x.shape().dims();
        let device = x.device();
        let [before, after] = [(size - 1) / 2, size / 2];
        let [before, after] = if reversed { [after, before] } else { [before, after] };
        let zeros = |channels| B::float_zeros(Shape::new([n, channels, h, w]), &device, x.dtype().into());
        let padded = B::float_cat(vec![zeros(before), x.clone(), zeros(after)], 1);
        let shifted = |offset: usize| {
            let all = Slice::new(0, None, 1);
            B::float_slice(
                padded.clone(),
                &[all, Slice::new(offset as isize, Some((offset + c) as isize), 1), all, all],
            )
        };
        (1..size).fold(shifted(0), |sum, offset| B::float_add(sum, shifted(offset)))
    }

    pub fn local_response_norm_backward<B: Backend>(
        x: FloatTensor<B>,
        dy: FloatTensor<B>,
        norm: LocalResponseNorm,
    ) -> FloatTensor<B> {
        let base = response_base::<B>(x.clone(), norm);
        let direct = B::float_mul(dy.clone(), B::float_powf_scalar(base.clone(), Scalar::Float(-norm.beta)));
        let through =
            B::float_mul(B::float_mul(dy, x.clone()), B::float_powf_scalar(base, Scalar::Float(-norm.beta - 1.0)));
        let through = B::float_mul(window_sums::<B>(through, norm.size, true), x);
        let factor = -2.0 * norm.alpha * norm.beta / norm.size as f64;
        B::float_add(direct, B::float_mul_scalar(through, Scalar::Float(factor)))
    }
}

#[cfg(feature = "flex")]
mod optimized {
    use super::*;
    use crate::{
        cpu::{
            buffer_pool::Buffer,
            lrn::{self, Lrn},
        },
        flex::{channels_last, dims, floats, map, single, widened},
    };

    impl LocalResponseNormGrad for Flex {
        fn local_response_norm_backward(x: FlexTensor, dy: FlexTensor, norm: LocalResponseNorm) -> FlexTensor {
            if !single(&[&x, &dy]) || norm.size.is_multiple_of(2) {
                return reference::local_response_norm_backward::<Self>(x, dy, norm);
            }
            let (x, dy) = (channels_last(x), channels_last(dy));
            let shape @ [_, c, _, _] = dims(&x);
            let mut dx = Buffer::new(x.layout().num_elements());
            lrn::lrn_backward(floats(&x), floats(&dy), c, &lrn_of(&norm), &mut dx);
            map(dx, shape)
        }
    }

    impl LocalResponseNormalization for Flex {
        fn local_response_norm(x: FlexTensor, norm: LocalResponseNorm) -> FlexTensor {
            let x = widened(x);
            // An even window has its middle elsewhere in PyTorch, whose windows these are, and in Burn.
            if !single(&[&x]) || norm.size.is_multiple_of(2) {
                return reference::local_response_norm::<Self>(x, norm);
            }
            let x = channels_last(x);
            let shape @ [_, c, _, _] = dims(&x);
            let mut y = Buffer::new(x.layout().num_elements());
            lrn::lrn(floats(&x), c, &lrn_of(&norm), &mut y);
            map(y, shape)
        }
    }

    fn lrn_of(norm: &LocalResponseNorm) -> Lrn {
        Lrn { size: norm.size, alpha: norm.alpha as f32, beta: norm.beta as f32, k: norm.k as f32 }
    }
}

#[derive(Debug)]
struct LocalResponseNormBackward;

impl<B: LocalResponseNormalization> Backward<B, 1> for LocalResponseNormBackward {
    type State = (FloatTensor<B>, LocalResponseNorm);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let (x, norm) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::local_response_norm_backward(x, dy, norm));
        }
    }
}

impl<B: LocalResponseNormalization, C: CheckpointStrategy> LocalResponseNormalization for Autodiff<B, C> {
    fn local_response_norm(x: Ad<B, C>, norm: LocalResponseNorm) -> Ad<B, C> {
        let node = x.node();
        let x = x.into_primitive();
        let y = B::local_response_norm(x.clone(), norm);
        record::<B, C, _, 1>(LocalResponseNormBackward, [node], y, |_| (x, norm))
    }
}
