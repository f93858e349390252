//! 2D convolution with a fused epilogue.
use super::prelude::*;

/// The gradients of a convolution.
pub trait Conv2dGrad: EpilogueGrad {
    /// The gradient of `x` from that of the convolution's output.
    fn fused_conv2d_x_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        reference::fused_conv2d_x_backward::<Self>(x, weight, dy, options)
    }

    /// The gradient of `weight` from that of the convolution's output.
    fn fused_conv2d_weight_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        reference::fused_conv2d_weight_backward::<Self>(x, weight, dy, options)
    }
}

/// 2D convolution.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait Conv2d: Conv2dGrad {
    /// `relu(conv(x, weight) · scale + bias + residual)`, everything but the convolution where it is given.
    ///
    /// `x: [n, c_in, h, w]`, `weight: [c_out, c_in / groups, kh, kw]`, `scale`, `bias: [c_out]`, `residual` as the
    /// output `[n, c_out, h', w']`.
    fn fused_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] scale: OptionalTensor<Self>,
        #[extension_type] bias: OptionalTensor<Self>,
        #[extension_type] residual: OptionalTensor<Self>,
        options: ConvOptions<2>,
        flags: EpilogueFlags,
    ) -> FloatTensor<Self> {
        reference::fused_conv2d::<Self>(
            x,
            weight,
            scale.into_option(),
            bias.into_option(),
            residual.into_option(),
            options,
            flags,
        )
    }
}

reference_backends!(Conv2dGrad, Conv2d);

/// Reference bodies in Burn's operations.
mod reference {
    use super::*;

    pub fn fused_conv2d<B: Backend>(
        x: FloatTensor<B>,
        weight: FloatTensor<B>,
        scale: Option<FloatTensor<B>>,
        bias: Option<FloatTensor<B>>,
        residual: Option<FloatTensor<B>>,
        options: ConvOptions<2>,
        flags: EpilogueFlags,
    ) -> FloatTensor<B> {
        let y = match scale {
            None => B::conv2d(x, weight, bias, options),
            Some(scale) => {
                let y = B::float_mul(B::conv2d(x, weight, None, options), by_channel::<B>(scale));
                match bias {
                    Some(bias) => B::float_add(y, by_channel::<B>(bias)),
                    None => y,
                }
            }
        };
        finish::<B>(y, residual, flags)
    }

    pub fn fused_conv2d_x_backward<B: Backend>(
        x: FloatTensor<B>,
        weight: FloatTensor<B>,
        dy: FloatTensor<B>,
        options: ConvOptions<2>,
    ) -> FloatTensor<B> {
        B::conv2d_x_backward(x, weight, dy, options)
    }

    pub fn fused_conv2d_weight_backward<B: Backend>(
        x: FloatTensor<B>,
        weight: FloatTensor<B>,
        dy: FloatTensor<B>,
        options: ConvOptions<2>,
    ) -> FloatTensor<B> {
        B::conv2d_weight_backward(x, weight, dy, options)
    }
}

#[cfg(feature = "flex")]
mod optimized {
    use super::*;
    use crate::flex::{conv, single};
    use burn::tensor::DType;

    impl Conv2dGrad for Flex {
        fn fused_conv2d_x_backward(
            x: FlexTensor,
            weight: FlexTensor,
            dy: FlexTensor,
            options: ConvOptions<2>,
        ) -> FlexTensor {
            if !single(&[&x, &weight, &dy]) {
                return Self::conv2d_x_backward(x, weight, dy, options);
            }
            conv::x_backward(&x, weight, dy, &options)
        }

        fn fused_conv2d_weight_backward(
            x: FlexTensor,
            weight: FlexTensor,
            dy: FlexTensor,
            options: ConvOptions<2>,
        ) -> FlexTensor {
            if !single(&[&x, &weight, &dy]) {
                return Self::conv2d_weight_backward(x, weight, dy, options);
            }
            conv::weight_backward(x, &weight, dy, &options)
        }
    }

    impl Conv2d for Flex {
        fn fused_conv2d(
            x: FlexTensor,
            weight: FlexTensor,
            scale: OptionalTensor<Self>,
            bias: OptionalTensor<Self>,
            residual: OptionalTensor<Self>,
            options: ConvOptions<2>,
            flags: EpilogueFlags,
        ) -> FlexTensor {
            let scale = scale.into_option();
            let bias = bias.into_option();
            let residual = residual.into_option();
            let mixed = weight.dtype() == DType::F32 && x.dtype() == DType::BF16;
            if !single(&[&x, &weight]) && !mixed {
                return reference::fused_conv2d::<Self>(x, weight, scale, bias, residual, options, flags);
            }
            conv::forward(x, weight, scale, bias, residual, &options, flags)
        }
    }
}

/// Parents: x, weight, then bias and residual where there are any.
#[derive(Debug)]
struct ConvBackward;

#[derive(Debug, Clone)]
struct ConvState<B: Backend> {
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    /// The output, where a ReLU masks its gradient.
    y: Option<FloatTensor<B>>,
    has_bias: bool,
    options: ConvOptions<2>,
}

impl<B: Conv2d, const N: usize> Backward<B, N> for ConvBackward {
    type State = ConvState<B>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let ConvState { x, weight, y, has_bias, options } = ops.state;
        let mut dy = grads.consume::<B>(&ops.node);
        if let Some(y) = y {
            dy = <B as EpilogueGrad>::relu_backward(y, dy);
        }
        let mut parents = ops.parents.into_iter();
        let mut next = || parents.next().flatten();
        let (x_node, weight_node) = (next(), next());
        if has_bias && let Some(node) = next() {
            grads.register::<B>(node.id, B::channel_sums(dy.clone()));
        }
        if let Some(node) = next() {
            grads.register::<B>(node.id, dy.clone());
        }
        if let Some(node) = weight_node {
            let gradient = B::fused_conv2d_weight_backward(x.clone(), weight.clone(), dy.clone(), options.clone());
            grads.register::<B>(node.id, gradient);
        }
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::fused_conv2d_x_backward(x, weight, dy, options));
        }
    }
}

impl<B: Conv2d, C: CheckpointStrategy> Conv2d for Autodiff<B, C> {
    fn fused_conv2d(
        x: Ad<B, C>,
        weight: Ad<B, C>,
        scale: OptionalTensor<Self>,
        bias: OptionalTensor<Self>,
        residual: OptionalTensor<Self>,
        options: ConvOptions<2>,
        flags: EpilogueFlags,
    ) -> Ad<B, C> {
        let [scale, bias, residual] = [scale, bias, residual].map(OptionalTensor::into_option);
        if scale.is_some() {
            return reference::fused_conv2d::<Self>(x, weight, scale, bias, residual, options, flags);
        }
        let mut nodes = vec![x.node(), weight.node()];
        nodes.extend(bias.iter().chain(&residual).map(|tensor| tensor.node()));
        let has_bias = bias.is_some();
        let [x, weight] = [x, weight].map(|tensor| tensor.into_primitive());
        let [bias, residual] = [bias, residual].map(|tensor| tensor.map(|tensor| tensor.into_primitive()));
        let flags = EpilogueFlags { keep_weights: false, bf16_output: false, ..flags };
        let output = B::fused_conv2d(
            x.clone(),
            weight.clone(),
            OptionalTensor::None,
            bias.into(),
            residual.into(),
            options.clone(),
            flags,
        );
        record_some::<B, C, _, _>(ConvBackward, nodes, output, |y| ConvState {
            x,
            weight,
            y: flags.relu.then(|| y.clone()),
            has_bias,
            options,
        })
    }
}
