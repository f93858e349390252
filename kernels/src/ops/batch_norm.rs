//! Batch normalization in training (batch statistics) and in evaluation (scale and shift per channel).
use super::{prelude::*, sync_batch_norm::AllReduce};

/// The gradients of batch normalization.
pub trait BatchNormGrad: EpilogueGrad {
    /// Gradients of `fused_batch_norm`: `(x, gamma, beta, residual)`. `y`, the output, is
    /// needed where there was a residual and a ReLU.
    #[allow(clippy::too_many_arguments)] // What the forward pass kept, and the gradient.
    fn fused_batch_norm_backward(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        y: Option<FloatTensor<Self>>,
        dy: FloatTensor<Self>,
        epsilon: f64,
        flags: EpilogueFlags,
        sync: Option<AllReduce>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        assert!(sync.is_none(), "only the optimized operations synchronize");
        reference::fused_batch_norm_backward::<Self>(x, gamma, beta, mean, variance, y, dy, epsilon, flags)
    }
}

/// Batch normalization.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait BatchNorm: BatchNormGrad {
    /// `relu((x − mean) / √(variance + ε) · gamma + beta + residual)` with the mean and the biased variance of the
    /// batch, or with `sync` of the batches of all processes; returns those too: `(y [n, c, h, w], mean [c], variance [c])`.
    /// No gradient flows through the statistics returned.
    fn fused_batch_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        #[extension_type] residual: OptionalTensor<Self>,
        epsilon: f64,
        flags: EpilogueFlags,
        sync: Option<AllReduce>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        assert!(sync.is_none(), "only the optimized operations synchronize");
        reference::fused_batch_norm::<Self>(x, gamma, beta, residual.into_option(), epsilon, flags)
    }

    /// `relu(x · scale + shift + residual)` with `scale` and `shift` `[c]`: batch normalization in evaluation.
    fn channel_affine(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        #[extension_type] residual: OptionalTensor<Self>,
        flags: EpilogueFlags,
    ) -> FloatTensor<Self> {
        reference::channel_affine::<Self>(x, scale, shift, residual.into_option(), flags)
    }
}

reference_backends!(BatchNormGrad, BatchNorm);

/// Reference bodies in Burn's operations.
mod reference {
    use super::*;

    pub fn fused_batch_norm<B: Backend>(
        x: FloatTensor<B>,
        gamma: FloatTensor<B>,
        beta: FloatTensor<B>,
        residual: Option<FloatTensor<B>>,
        epsilon: f64,
        flags: EpilogueFlags,
    ) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
        let result = B::batch_norm_train(x, gamma, beta, epsilon);
        (finish::<B>(result.output, residual, flags), result.mean, result.variance)
    }

    #[allow(clippy::too_many_arguments)] // What the forward pass kept, and the gradient.
    pub fn fused_batch_norm_backward<B: Backend>(
        x: FloatTensor<B>,
        gamma: FloatTensor<B>,
        beta: FloatTensor<B>,
        mean: FloatTensor<B>,
        variance: FloatTensor<B>,
        y: Option<FloatTensor<B>>,
        dy: FloatTensor<B>,
        epsilon: f64,
        flags: EpilogueFlags,
    ) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
        let y = match (flags.relu, y) {
            (false, _) => None,
            (true, Some(y)) => Some(y),
            (true, None) => {
                let (x, gamma, beta) = (x.clone(), gamma.clone(), beta);
                Some(B::batch_norm(x, gamma, beta, mean.clone(), variance.clone(), epsilon))
            }
        };
        let dy = match y {
            Some(y) => B::relu_backward(B::relu(y), dy),
            None => dy,
        };
        let gradients = B::batch_norm_train_backward(x, gamma, mean, variance, epsilon, dy.clone());
        (gradients.x_grad, gradients.gamma_grad, gradients.beta_grad, dy)
    }

    pub fn channel_affine<B: Backend>(
        x: FloatTensor<B>,
        scale: FloatTensor<B>,
        shift: FloatTensor<B>,
        residual: Option<FloatTensor<B>>,
        flags: EpilogueFlags,
    ) -> FloatTensor<B> {
        let y = B::float_mul(x, by_channel::<B>(scale));
        finish::<B>(B::float_add(y, by_channel::<B>(shift)), residual, flags)
    }
}

#[cfg(feature = "flex")]
mod optimized {
    use super::*;
    use crate::{
        cpu::{
            buffer_pool::Buffer,
            norm::{self, Mask, Pass},
        },
        flex::{beside, channels_last, copy_all, dims, floats, map, own_floats, single, values, vector},
        ops::sync_batch_norm::{self, NormSums},
    };

    impl BatchNormGrad for Flex {
        fn fused_batch_norm_backward(
            x: FlexTensor,
            gamma: FlexTensor,
            beta: FlexTensor,
            mean: FlexTensor,
            variance: FlexTensor,
            y: Option<FlexTensor>,
            dy: FlexTensor,
            epsilon: f64,
            flags: EpilogueFlags,
            sync: Option<AllReduce>,
        ) -> (FlexTensor, FlexTensor, FlexTensor, FlexTensor) {
            if !single(&[&x, &gamma, &beta, &dy]) {
                return reference::fused_batch_norm_backward::<Self>(
                    x, gamma, beta, mean, variance, y, dy, epsilon, flags,
                );
            }
            let (x, dy) = (channels_last(x), channels_last(dy));
            let y = y.map(channels_last);
            let shape @ [n, c, h, w] = dims(&x);
            let [gamma, beta, mean, variance] = [&gamma, &beta, &mean, &variance].map(values);
            let [scale, shift] = affine(&gamma, &beta, &mean, &variance, epsilon);
            let mask = match (&y, flags.relu) {
                (_, false) => Mask::None,
                (Some(y), true) => Mask::Output(floats(y)),
                (None, true) => Mask::Input(&scale, &shift),
            };
            let mut dy = dy;
            let NormSums { own: [sums, products], all: [all_sums, all_products], pixels } = match own_floats(&mut dy) {
                Some(dy) => sync_batch_norm::gradient_sums(floats(&x), dy, n, mask, &mean, sync.as_ref()),
                None => {
                    let mut copy = Buffer::new(n * c * h * w);
                    copy_all(floats(&dy), &mut copy);
                    dy = map(copy, shape);
                    let Some(own) = own_floats(&mut dy) else { unreachable!("a new tensor has one owner") };
                    sync_batch_norm::gradient_sums(floats(&x), own, n, mask, &mean, sync.as_ref())
                }
            };
            // With `Mask::Output` the sums mask the gradient in place.
            let mask = match mask {
                Mask::Output(_) => Mask::None,
                mask => mask,
            };
            let mut by_input = vec![0.0; c];
            let mut constant = vec![0.0; c];
            let mut gamma_gradient = vec![0.0; c];
            for channel in 0..c {
                let deviation = (f64::from(variance[channel]) + epsilon).sqrt();
                let by_gradient = f64::from(gamma[channel]) / deviation;
                by_input[channel] = (-by_gradient * all_products[channel] / (deviation * deviation * pixels)) as f32;
                constant[channel] = (-by_gradient * all_sums[channel] / pixels) as f32;
                gamma_gradient[channel] = (products[channel] / deviation) as f32;
            }
            let beta_gradient: Vec<f32> = sums.iter().map(|&sum| sum as f32).collect();
            let pass = Pass::Backward {
                dy: floats(&dy),
                mask,
                mean: &mean,
                by_gradient: &scale,
                by_input: &by_input,
                constant: &constant,
            };
            let dx = map(norm::pass(floats(&x), c, pass), shape);
            (dx, vector(&gamma_gradient), vector(&beta_gradient), dy)
        }
    }

    impl BatchNorm for Flex {
        fn fused_batch_norm(
            x: FlexTensor,
            gamma: FlexTensor,
            beta: FlexTensor,
            residual: OptionalTensor<Self>,
            epsilon: f64,
            flags: EpilogueFlags,
            sync: Option<AllReduce>,
        ) -> (FlexTensor, FlexTensor, FlexTensor) {
            let residual = residual.into_option();
            if !single(&[&x, &gamma, &beta]) {
                return reference::fused_batch_norm::<Self>(x, gamma, beta, residual, epsilon, flags);
            }
            let x = channels_last(x);
            let shape @ [n, c, _, _] = dims(&x);
            let [mean, variance] = sync_batch_norm::statistics(floats(&x), n, c, sync.as_ref());
            let [scale, shift] = affine(&values(&gamma), &values(&beta), &mean, &variance, epsilon);
            let residual = residual.map(channels_last);
            let residual = residual.as_ref().map(floats);
            let pass = Pass::Forward { scale: &scale, shift: &shift, residual, relu: flags.relu };
            let y = norm::pass(floats(&x), c, pass);
            (map(y, shape), vector(&mean), vector(&variance))
        }

        fn channel_affine(
            x: FlexTensor,
            scale: FlexTensor,
            shift: FlexTensor,
            residual: OptionalTensor<Self>,
            flags: EpilogueFlags,
        ) -> FlexTensor {
            let (x, residual) = (beside(x, &scale), residual.into_option().map(|residual| beside(residual, &scale)));
            if !single(&[&x, &scale, &shift]) {
                return reference::channel_affine::<Self>(x, scale, shift, residual, flags);
            }
            let x = channels_last(x);
            let shape @ [_, c, _, _] = dims(&x);
            let (scale, shift) = (values(&scale), values(&shift));
            let residual = residual.map(channels_last);
            let residual = residual.as_ref().map(floats);
            let pass = Pass::Forward { scale: &scale, shift: &shift, residual, relu: flags.relu };
            map(norm::pass(floats(&x), c, pass), shape)
        }
    }

    /// Returns the scale and the shift of a norm.
    fn affine(gamma: &[f32], beta: &[f32], mean: &[f32], variance: &[f32], epsilon: f64) -> [Vec<f32>; 2] {
        let scale: Vec<f32> = gamma
            .iter()
            .zip(variance)
            .map(|(&gamma, &variance)| (f64::from(gamma) / (f64::from(variance) + epsilon).sqrt()) as f32)
            .collect();
        let shift = beta
            .iter()
            .zip(mean)
            .zip(&scale)
            .map(|((&beta, &mean), &scale)| (f64::from(beta) - f64::from(mean) * f64::from(scale)) as f32)
            .collect();
        [scale, shift]
    }
}

/// Parents: x, gamma, beta, then the residual where there is one.
#[derive(Debug)]
struct BatchNormBackward;

#[derive(Debug, Clone)]
struct BatchNormState<B: Backend> {
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    mean: FloatTensor<B>,
    variance: FloatTensor<B>,
    /// The output, if the mask of the ReLU cannot be computed from the input alone.
    y: Option<FloatTensor<B>>,
    epsilon: f64,
    flags: EpilogueFlags,
    sync: Option<AllReduce>,
}

impl<B: BatchNorm, const N: usize> Backward<B, N> for BatchNormBackward {
    type State = BatchNormState<B>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let BatchNormState { x, gamma, beta, mean, variance, y, epsilon, flags, sync } = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        let (dx, d_gamma, d_beta, residual) =
            B::fused_batch_norm_backward(x, gamma, beta, mean, variance, y, dy, epsilon, flags, sync);
        let gradients = [dx, d_gamma, d_beta, residual];
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

/// Parents: x, scale, shift, then the residual where there is one.
#[derive(Debug)]
struct AffineBackward;

#[derive(Debug, Clone)]
struct AffineState<B: Backend> {
    x: FloatTensor<B>,
    scale: FloatTensor<B>,
    y: Option<FloatTensor<B>>,
}

impl<B: BatchNorm, const N: usize> Backward<B, N> for AffineBackward {
    type State = AffineState<B>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let AffineState { x, scale, y } = ops.state;
        let mut dy = grads.consume::<B>(&ops.node);
        if let Some(y) = y {
            dy = <B as EpilogueGrad>::relu_backward(y, dy);
        }
        let mut parents = ops.parents.into_iter();
        let mut next = || parents.next().flatten();
        let (x_node, scale_node, shift_node, residual_node) = (next(), next(), next(), next());
        if let Some(node) = scale_node {
            grads.register::<B>(node.id, B::channel_sums(B::float_mul(dy.clone(), x)));
        }
        if let Some(node) = shift_node {
            grads.register::<B>(node.id, B::channel_sums(dy.clone()));
        }
        if let Some(node) = residual_node {
            grads.register::<B>(node.id, dy.clone());
        }
        if let Some(node) = x_node {
            let zeros = B::float_mul_scalar(scale.clone(), 0f32.into());
            grads.register::<B>(
                node.id,
                B::channel_affine(dy, scale, zeros, OptionalTensor::None, EpilogueFlags::default()),
            );
        }
    }
}

impl<B: BatchNorm, C: CheckpointStrategy> BatchNorm for Autodiff<B, C> {
    fn fused_batch_norm(
        x: Ad<B, C>,
        gamma: Ad<B, C>,
        beta: Ad<B, C>,
        residual: OptionalTensor<Self>,
        epsilon: f64,
        flags: EpilogueFlags,
        sync: Option<AllReduce>,
    ) -> (Ad<B, C>, Ad<B, C>, Ad<B, C>) {
        let residual = residual.into_option();
        let mut nodes = vec![x.node(), gamma.node(), beta.node()];
        nodes.extend(residual.as_ref().map(|tensor| tensor.node()));
        let has_residual = residual.is_some();
        let [x, gamma, beta] = [x, gamma, beta].map(|tensor| tensor.into_primitive());
        let residual = residual.map(|tensor| tensor.into_primitive());
        let [x_in, gamma_in, beta_in] = [&x, &gamma, &beta].map(Clone::clone);
        let (output, mean, variance) =
            B::fused_batch_norm(x_in, gamma_in, beta_in, residual.into(), epsilon, flags, sync.clone());
        let statistics = [mean.clone(), variance.clone()].map(<Self as AutodiffBackend>::from_inner);
        let y = record_some::<B, C, _, _>(BatchNormBackward, nodes, output, |y| BatchNormState {
            x,
            gamma,
            beta,
            mean,
            variance,
            y: (flags.relu && has_residual).then(|| y.clone()),
            epsilon,
            flags,
            sync,
        });
        let [mean, variance] = statistics;
        (y, mean, variance)
    }

    fn channel_affine(
        x: Ad<B, C>,
        scale: Ad<B, C>,
        shift: Ad<B, C>,
        residual: OptionalTensor<Self>,
        flags: EpilogueFlags,
    ) -> Ad<B, C> {
        let residual = residual.into_option();
        let mut nodes = vec![x.node(), scale.node(), shift.node()];
        nodes.extend(residual.as_ref().map(|tensor| tensor.node()));
        let [x, scale, shift] = [x, scale, shift].map(|tensor| tensor.into_primitive());
        let residual = residual.map(|tensor| tensor.into_primitive());
        let output = B::channel_affine(x.clone(), scale.clone(), shift, residual.into(), flags);
        record_some::<B, C, _, _>(AffineBackward, nodes, output, |y| AffineState {
            x,
            scale,
            y: flags.relu.then(|| y.clone()),
        })
    }
}
