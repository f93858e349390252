//! Linear layers.
use super::prelude::*;

/// The gradients of a linear layer.
pub trait LinearGrad: Backend {
    /// `dy · wᵀ`.
    fn fused_linear_x_backward(weight: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::fused_linear_x_backward::<Self>(weight, dy)
    }

    /// `xᵀ · dy`.
    fn fused_linear_weight_backward(x: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::fused_linear_weight_backward::<Self>(x, dy)
    }

    /// Sums of `[n, d]` over the rows: `[d]`.
    fn row_sums(x: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::row_sums::<Self>(x)
    }
}

/// Linear layers.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait LinearLayer: LinearGrad {
    /// `x · weight + bias`: `[n, d_in]` → `[n, d_out]`.
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: OptionalTensor<Self>,
        _then: EpilogueFlags,
    ) -> FloatTensor<Self> {
        reference::fused_linear::<Self>(x, weight, bias.into_option())
    }
}

reference_backends!(LinearGrad, LinearLayer);

/// Reference bodies in Burn's operations.
mod reference {
    use super::*;

    pub fn fused_linear<B: Backend>(
        x: FloatTensor<B>,
        weight: FloatTensor<B>,
        bias: Option<FloatTensor<B>>,
    ) -> FloatTensor<B> {
        let y = B::float_matmul(x, weight);
        match bias {
            Some(bias) => {
                let [outputs] = bias.shape().dims();
                B::float_add(y, B::float_reshape(bias, Shape::new([1, outputs])))
            }
            None => y,
        }
    }

    pub fn fused_linear_x_backward<B: Backend>(weight: FloatTensor<B>, dy: FloatTensor<B>) -> FloatTensor<B> {
        B::float_matmul(dy, B::float_transpose(weight))
    }

    pub fn fused_linear_weight_backward<B: Backend>(x: FloatTensor<B>, dy: FloatTensor<B>) -> FloatTensor<B> {
        B::float_matmul(B::float_transpose(x), dy)
    }

    pub fn row_sums<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
        let [_, columns] = x.shape().dims();
        B::float_reshape(B::float_sum_dim(x, 0), Shape::new([columns]))
    }
}

#[cfg(feature = "flex")]
mod optimized {
    use super::*;
    use crate::{
        cpu::{bf16, buffer_pool::Buffer, linear::Linear},
        flex::{conv, floats, single, tensor, values},
    };

    impl LinearGrad for Flex {
        fn fused_linear_x_backward(weight: FlexTensor, dy: FlexTensor) -> FlexTensor {
            if !single(&[&weight, &dy]) {
                return reference::fused_linear_x_backward::<Self>(weight, dy);
            }
            let (weight, dy) = (weight.to_contiguous(), dy.to_contiguous());
            let job = linear_of(&weight, &dy);
            let mut dx = Buffer::new(job.rows * job.inputs);
            job.x_backward(floats(&dy), floats(&weight), &mut dx);
            tensor(dx, [job.rows, job.inputs])
        }

        fn fused_linear_weight_backward(x: FlexTensor, dy: FlexTensor) -> FlexTensor {
            if !single(&[&x, &dy]) {
                return reference::fused_linear_weight_backward::<Self>(x, dy);
            }
            let (x, dy) = (x.to_contiguous(), dy.to_contiguous());
            let ([rows, inputs], [_, outputs]) = (x.layout().shape().dims(), dy.layout().shape().dims());
            let mut dw = Buffer::new(inputs * outputs);
            Linear { rows, inputs, outputs }.weight_backward(floats(&x), floats(&dy), &mut dw);
            tensor(dw, [inputs, outputs])
        }
    }

    impl LinearLayer for Flex {
        fn fused_linear(
            x: FlexTensor,
            weight: FlexTensor,
            bias: OptionalTensor<Self>,
            flags: EpilogueFlags,
        ) -> FlexTensor {
            let bias = bias.into_option();
            if !single(&[&x, &weight]) {
                return reference::fused_linear::<Self>(x, weight, bias);
            }
            let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
            let ([rows, inputs], [_, outputs]) = (x.layout().shape().dims(), weight.layout().shape().dims());
            let bias = bias.as_ref().map(values);
            let mut y = Buffer::new(rows * outputs);
            if flags.bf16 && flags.keep_weights && bf16::is_available() && inputs > 0 && outputs > 0 {
                conv::linear_of_halves(&x, &weight, bias.as_deref(), &mut y);
                return tensor(y, [rows, outputs]);
            }
            Linear { rows, inputs, outputs }.forward(floats(&x), floats(&weight), bias.as_deref(), &mut y);
            tensor(y, [rows, outputs])
        }
    }

    fn linear_of(weight: &FlexTensor, dy: &FlexTensor) -> Linear {
        let ([inputs, outputs], [rows, _]) = (weight.layout().shape().dims(), dy.layout().shape().dims());
        Linear { rows, inputs, outputs }
    }
}

/// Parents: x, weight, then the bias where there is one.
#[derive(Debug)]
struct LinearBackward;

impl<B: LinearLayer, const N: usize> Backward<B, N> for LinearBackward {
    type State = (FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let (x, weight) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        let mut parents = ops.parents.into_iter();
        let mut next = || parents.next().flatten();
        let (x_node, weight_node, bias_node) = (next(), next(), next());
        if let Some(node) = bias_node {
            grads.register::<B>(node.id, B::row_sums(dy.clone()));
        }
        if let Some(node) = weight_node {
            grads.register::<B>(node.id, B::fused_linear_weight_backward(x, dy.clone()));
        }
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::fused_linear_x_backward(weight, dy));
        }
    }
}

impl<B: LinearLayer, C: CheckpointStrategy> LinearLayer for Autodiff<B, C> {
    fn fused_linear(x: Ad<B, C>, weight: Ad<B, C>, bias: OptionalTensor<Self>, _then: EpilogueFlags) -> Ad<B, C> {
        let bias = bias.into_option();
        let mut nodes = vec![x.node(), weight.node()];
        nodes.extend(bias.as_ref().map(|tensor| tensor.node()));
        let [x, weight] = [x, weight].map(|tensor| tensor.into_primitive());
        let bias = bias.map(|tensor| tensor.into_primitive());
        let y = B::fused_linear(x.clone(), weight.clone(), bias.into(), EpilogueFlags::default());
        match <[NodeGuard; 2]>::try_from(nodes) {
            Ok(nodes) => record::<B, C, _, 2>(LinearBackward, nodes, y, |_| (x, weight)),
            Err(nodes) => match <[NodeGuard; 3]>::try_from(nodes) {
                Ok(nodes) => record::<B, C, _, 3>(LinearBackward, nodes, y, |_| (x, weight)),
                Err(_) => unreachable!("two parents, or three with a bias"),
            },
        }
    }
}
