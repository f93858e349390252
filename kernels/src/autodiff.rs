//! The gradients of the operations.

use std::{
    any::Any,
    sync::{Arc, Mutex, PoisonError},
};

use burn::{
    backend::{
        Autodiff, AutodiffBackend, Backend, TensorMetadata,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads,
            ops::{Backward, NodeGuard, Ops, OpsKind},
        },
        tensor::{FloatTensor, IntTensor},
    },
    tensor::ops::ConvOptions,
};

use crate::{
    ops::{Gradients, Kernels, LocalResponseNorm, Maps, Maybe, Pool2d, Then},
    plain,
    shared::Shared,
};

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

impl<B: Kernels, const N: usize> Backward<B, N> for ConvBackward {
    type State = ConvState<B>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let ConvState { x, weight, y, has_bias, options } = ops.state;
        let mut dy = grads.consume::<B>(&ops.node);
        if let Some(y) = y {
            dy = B::masked(y, dy);
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
    /// The output, where the input alone does not tell what the ReLU let through.
    y: Option<FloatTensor<B>>,
    epsilon: f64,
    then: Then,
}

impl<B: Kernels, const N: usize> Backward<B, N> for BatchNormBackward {
    type State = BatchNormState<B>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let BatchNormState { x, gamma, beta, mean, variance, y, epsilon, then } = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        let (dx, d_gamma, d_beta, residual) =
            B::fused_batch_norm_backward(x, gamma, beta, mean, variance, y, dy, epsilon, then);
        let gradients = [dx, d_gamma, d_beta, residual];
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

/// Parent: x.
#[derive(Debug)]
struct SharedSumBackward;

impl<B: Shared> Backward<B, 1> for SharedSumBackward {
    type State = ();

    fn backward(self, ops: Ops<(), 1>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        // All processes' losses depend on the sum.
        let dy = B::shared_sum(grads.consume::<B>(&ops.node));
        let [parent] = ops.parents;
        if let Some(node) = parent {
            grads.register::<B>(node.id, dy);
        }
    }
}

impl<B: Shared, C: CheckpointStrategy> Shared for Autodiff<B, C> {
    fn shared_sum(x: Ad<B, C>) -> Ad<B, C> {
        let node = x.node();
        record::<B, C, _, 1>(SharedSumBackward, [node], B::shared_sum(x.into_primitive()), |_| ())
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

impl<B: Kernels, const N: usize> Backward<B, N> for AffineBackward {
    type State = AffineState<B>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let AffineState { x, scale, y } = ops.state;
        let mut dy = grads.consume::<B>(&ops.node);
        if let Some(y) = y {
            dy = B::masked(y, dy);
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
            grads.register::<B>(node.id, B::channel_affine(dy, scale, zeros, Maybe::None, Then::default()));
        }
    }
}

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

#[derive(Debug)]
struct FanOutRoot;

impl<B: Kernels> Backward<B, 1> for FanOutRoot {
    type State = GradAccumulator;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        if let ([Some(node)], Some(sum)) = (ops.parents, ops.state.take::<B>()) {
            grads.register::<B>(node.id, sum);
        }
    }
}

#[derive(Debug)]
struct FanOutBranch;

impl<B: Kernels> Backward<B, 1> for FanOutBranch {
    type State = GradAccumulator;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        ops.state.put::<B>(match ops.state.take::<B>() {
            Some(sum) => B::sum_in_place(sum, dy),
            None => dy,
        });
    }
}

#[derive(Debug)]
struct MaxPoolBackward;

impl<B: Kernels> Backward<B, 1> for MaxPoolBackward {
    type State = (FloatTensor<B>, IntTensor<B>, Pool2d);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let (x, places, pool) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::max_pool2d_backward(x, places, dy, pool));
        }
    }
}

/// Of an operation of one input that needs nothing but it: `backward(x, dy)`.
#[derive(Debug)]
struct SimpleBackward;

#[derive(Debug, Clone, Copy)]
enum Simple {
    AvgPool(Pool2d),
    AdaptiveAvgPool,
    LocalResponseNorm(LocalResponseNorm),
}

impl<B: Kernels> Backward<B, 1> for SimpleBackward {
    type State = (FloatTensor<B>, Simple);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let (x, what) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            let gradient = match what {
                Simple::AvgPool(pool) => B::fused_avg_pool2d_backward(x, dy, pool),
                Simple::AdaptiveAvgPool => B::fused_adaptive_avg_pool2d_backward(x, dy),
                Simple::LocalResponseNorm(norm) => B::response_norm_backward(x, dy, norm),
            };
            grads.register::<B>(node.id, gradient);
        }
    }
}

/// The state is the channels of each map.
#[derive(Debug)]
struct JoinBackward;

impl<B: Kernels, const N: usize> Backward<B, N> for JoinBackward {
    type State = Vec<usize>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let mut first = 0;
        for (node, channels) in ops.parents.into_iter().zip(ops.state) {
            if let Some(node) = node {
                grads.register::<B>(node.id, B::channel_slice(dy.clone(), first, channels));
            }
            first += channels;
        }
    }
}

/// Parents: x, weight, then the bias where there is one.
#[derive(Debug)]
struct LinearBackward;

impl<B: Kernels, const N: usize> Backward<B, N> for LinearBackward {
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

#[derive(Debug)]
struct LossBackward;

impl<B: Kernels> Backward<B, 1> for LossBackward {
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

/// Registers an operation: what its gradient needs is made of its output, where a gradient is wanted at all.
fn record<B, C, W, const N: usize>(
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

/// The same for an operation some of whose parents may be missing.
fn record_some<B, C, W, S>(
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

type Ad<B, C> = FloatTensor<Autodiff<B, C>>;

impl<B: Kernels, C: CheckpointStrategy> Gradients for Autodiff<B, C> {}

impl Gradients for burn::backend::Dispatch {}

impl<B: Kernels, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    fn fused_conv2d(
        x: Ad<B, C>,
        weight: Ad<B, C>,
        scale: Maybe<Self>,
        bias: Maybe<Self>,
        residual: Maybe<Self>,
        options: ConvOptions<2>,
        then: Then,
    ) -> Ad<B, C> {
        let [scale, bias, residual] = [scale, bias, residual].map(Maybe::into_option);
        if scale.is_some() {
            return plain::fused_conv2d::<Self>(x, weight, scale, bias, residual, options, then);
        }
        let mut nodes = vec![x.node(), weight.node()];
        nodes.extend(bias.iter().chain(&residual).map(|tensor| tensor.node()));
        let has_bias = bias.is_some();
        let [x, weight] = [x, weight].map(|tensor| tensor.into_primitive());
        let [bias, residual] = [bias, residual].map(|tensor| tensor.map(|tensor| tensor.into_primitive()));
        let then = Then { keep_weights: false, bf16_map: false, ..then };
        let output = B::fused_conv2d(
            x.clone(),
            weight.clone(),
            Maybe::None,
            bias.into(),
            residual.into(),
            options.clone(),
            then,
        );
        record_some::<B, C, _, _>(ConvBackward, nodes, output, |y| ConvState {
            x,
            weight,
            y: then.relu.then(|| y.clone()),
            has_bias,
            options,
        })
    }

    fn fused_batch_norm(
        x: Ad<B, C>,
        gamma: Ad<B, C>,
        beta: Ad<B, C>,
        residual: Maybe<Self>,
        epsilon: f64,
        then: Then,
    ) -> (Ad<B, C>, Ad<B, C>, Ad<B, C>) {
        let residual = residual.into_option();
        let mut nodes = vec![x.node(), gamma.node(), beta.node()];
        nodes.extend(residual.as_ref().map(|tensor| tensor.node()));
        let has_residual = residual.is_some();
        let [x, gamma, beta] = [x, gamma, beta].map(|tensor| tensor.into_primitive());
        let residual = residual.map(|tensor| tensor.into_primitive());
        let (output, mean, variance) =
            B::fused_batch_norm(x.clone(), gamma.clone(), beta.clone(), residual.into(), epsilon, then);
        let statistics = [mean.clone(), variance.clone()].map(<Self as AutodiffBackend>::from_inner);
        let y = record_some::<B, C, _, _>(BatchNormBackward, nodes, output, |y| BatchNormState {
            x,
            gamma,
            beta,
            mean,
            variance,
            y: (then.relu && has_residual).then(|| y.clone()),
            epsilon,
            then,
        });
        let [mean, variance] = statistics;
        (y, mean, variance)
    }

    fn channel_affine(x: Ad<B, C>, scale: Ad<B, C>, shift: Ad<B, C>, residual: Maybe<Self>, then: Then) -> Ad<B, C> {
        let residual = residual.into_option();
        let mut nodes = vec![x.node(), scale.node(), shift.node()];
        nodes.extend(residual.as_ref().map(|tensor| tensor.node()));
        let [x, scale, shift] = [x, scale, shift].map(|tensor| tensor.into_primitive());
        let residual = residual.map(|tensor| tensor.into_primitive());
        let output = B::channel_affine(x.clone(), scale.clone(), shift, residual.into(), then);
        record_some::<B, C, _, _>(AffineBackward, nodes, output, |y| AffineState {
            x,
            scale,
            y: then.relu.then(|| y.clone()),
        })
    }

    fn fan_out_root(x: Ad<B, C>, accumulator: GradAccumulator) -> Ad<B, C> {
        let node = x.node();
        record::<B, C, _, 1>(FanOutRoot, [node], x.into_primitive(), |_| accumulator)
    }

    fn fan_out_branch(root: Ad<B, C>, accumulator: GradAccumulator) -> Ad<B, C> {
        let node = root.node();
        record::<B, C, _, 1>(FanOutBranch, [node], root.into_primitive(), |_| accumulator)
    }

    fn fused_max_pool2d(x: Ad<B, C>, pool: Pool2d) -> Ad<B, C> {
        let node = x.node();
        let x = x.into_primitive();
        match MaxPoolBackward.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let (y, places) = B::max_pool2d_with_places(x.clone(), pool);
                prepared.finish((x, places, pool), y)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::fused_max_pool2d(x, pool)),
        }
    }

    fn fused_avg_pool2d(x: Ad<B, C>, pool: Pool2d) -> Ad<B, C> {
        let node = x.node();
        let x = x.into_primitive();
        let y = B::fused_avg_pool2d(x.clone(), pool);
        record::<B, C, _, 1>(SimpleBackward, [node], y, |_| (x, Simple::AvgPool(pool)))
    }

    fn fused_adaptive_avg_pool2d(x: Ad<B, C>, size: [usize; 2]) -> Ad<B, C> {
        let node = x.node();
        let x = x.into_primitive();
        let y = B::fused_adaptive_avg_pool2d(x.clone(), size);
        record::<B, C, _, 1>(SimpleBackward, [node], y, |_| (x, Simple::AdaptiveAvgPool))
    }

    fn response_norm(x: Ad<B, C>, norm: LocalResponseNorm) -> Ad<B, C> {
        let node = x.node();
        let x = x.into_primitive();
        let y = B::response_norm(x.clone(), norm);
        record::<B, C, _, 1>(SimpleBackward, [node], y, |_| (x, Simple::LocalResponseNorm(norm)))
    }

    fn join_channels(maps: Maps<Self>) -> Ad<B, C> {
        let maps = maps.into_vec();
        let nodes: Vec<NodeGuard> = maps.iter().map(|map| map.node()).collect();
        let maps: Vec<_> = maps.into_iter().map(|map| map.into_primitive()).collect();
        let channels = maps.iter().map(|map| map.shape()[1]).collect();
        let Some(maps) = Maps::new(maps) else { unreachable!("they were up to six before") };
        let y = B::join_channels(maps);
        fn of<B: Kernels, C: CheckpointStrategy, const N: usize>(
            nodes: Vec<NodeGuard>,
            y: FloatTensor<B>,
            channels: Vec<usize>,
        ) -> Ad<B, C> {
            match <[NodeGuard; N]>::try_from(nodes) {
                Ok(nodes) => record::<B, C, _, N>(JoinBackward, nodes, y, |_| channels),
                Err(_) => unreachable!("as many nodes as were counted"),
            }
        }
        match nodes.len() {
            1 => of::<B, C, 1>(nodes, y, channels),
            2 => of::<B, C, 2>(nodes, y, channels),
            3 => of::<B, C, 3>(nodes, y, channels),
            4 => of::<B, C, 4>(nodes, y, channels),
            5 => of::<B, C, 5>(nodes, y, channels),
            _ => of::<B, C, 6>(nodes, y, channels),
        }
    }

    fn fused_linear(x: Ad<B, C>, weight: Ad<B, C>, bias: Maybe<Self>, _then: Then) -> Ad<B, C> {
        let bias = bias.into_option();
        let mut nodes = vec![x.node(), weight.node()];
        nodes.extend(bias.as_ref().map(|tensor| tensor.node()));
        let [x, weight] = [x, weight].map(|tensor| tensor.into_primitive());
        let bias = bias.map(|tensor| tensor.into_primitive());
        let y = B::fused_linear(x.clone(), weight.clone(), bias.into(), Then::default());
        match <[NodeGuard; 2]>::try_from(nodes) {
            Ok(nodes) => record::<B, C, _, 2>(LinearBackward, nodes, y, |_| (x, weight)),
            Err(nodes) => match <[NodeGuard; 3]>::try_from(nodes) {
                Ok(nodes) => record::<B, C, _, 3>(LinearBackward, nodes, y, |_| (x, weight)),
                Err(_) => unreachable!("two parents, or three with a bias"),
            },
        }
    }

    fn cross_entropy(logits: Ad<B, C>, targets: Ad<B, C>) -> Ad<B, C> {
        let node = logits.node();
        let [logits, targets] = [logits, targets].map(|tensor| tensor.into_primitive());
        let losses = B::cross_entropy(logits.clone(), targets.clone());
        record::<B, C, _, 1>(LossBackward, [node], losses, |_| (logits, targets))
    }
}
