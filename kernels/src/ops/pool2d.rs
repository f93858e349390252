//! 2D pooling: maximum, average and adaptive average.
use super::prelude::*;

/// The windows of a 2D pooling. Sizes are `[height, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool2d {
    /// Size of a window.
    pub kernel: [usize; 2],
    /// Steps between windows.
    pub stride: [usize; 2],
    /// Padding on both sides of an axis.
    pub padding: [usize; 2],
    /// Whether the number of windows is rounded up; no window starts in the padding after the input.
    pub ceil_mode: bool,
    /// Whether averages count the padding; maxima never do.
    pub count_include_pad: bool,
}

impl Pool2d {
    /// Returns the output size for an input size, as PyTorch defines it, or `None` if the kernel does not fit.
    pub fn output_size(&self, input: [usize; 2]) -> Option<[usize; 2]> {
        let along = |axis: usize| {
            let [size, kernel, stride, padding] =
                [input, self.kernel, self.stride, self.padding].map(|sizes| sizes[axis]);
            let padded = size.checked_add(padding.checked_mul(2)?)?;
            let room = if self.ceil_mode { padded.checked_add(stride.checked_sub(1)?)? } else { padded };
            let windows = room.checked_sub(kernel)?.checked_div(stride)? + 1;
            let last = (windows - 1).checked_mul(stride)?;
            Some(if self.ceil_mode && last >= size + padding { windows - 1 } else { windows })
        };
        Some([along(0)?, along(1)?])
    }
}

/// The gradients of poolings.
pub trait Pooling2dGrad: Backend {
    /// Max pooling with the index of each maximum, in the form that [`max_pool2d_backward`](Self::max_pool2d_backward)
    /// expects.
    fn max_pool2d_with_indices(x: FloatTensor<Self>, pool: Pool2d) -> (FloatTensor<Self>, IntTensor<Self>) {
        reference::max_pool2d_with_indices::<Self>(x, pool)
    }

    /// The gradient of the input of a max pooling.
    fn max_pool2d_backward(
        x: FloatTensor<Self>,
        indices: IntTensor<Self>,
        dy: FloatTensor<Self>,
        pool: Pool2d,
    ) -> FloatTensor<Self> {
        reference::max_pool2d_backward::<Self>(x, indices, dy, pool)
    }

    /// The gradient of the input of an average pooling.
    fn fused_avg_pool2d_backward(x: FloatTensor<Self>, dy: FloatTensor<Self>, pool: Pool2d) -> FloatTensor<Self> {
        reference::fused_avg_pool2d_backward::<Self>(x, dy, pool)
    }

    /// The gradient of the input of an adaptive average pooling.
    fn fused_adaptive_avg_pool2d_backward(x: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::adaptive_avg_pool2d_backward(x, dy)
    }
}

/// 2D pooling.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait Pooling2d: Pooling2dGrad {
    /// Max pooling: `[n, c, h, w]` → `[n, c, h', w']`.
    fn fused_max_pool2d(x: FloatTensor<Self>, pool: Pool2d) -> FloatTensor<Self> {
        reference::fused_max_pool2d::<Self>(x, pool)
    }

    /// Average pooling: `[n, c, h, w]` → `[n, c, h', w']`.
    fn fused_avg_pool2d(x: FloatTensor<Self>, pool: Pool2d) -> FloatTensor<Self> {
        reference::fused_avg_pool2d::<Self>(x, pool)
    }

    /// Adaptive average pooling: `[n, c, h, w]` → `[n, c, size…]`.
    fn fused_adaptive_avg_pool2d(x: FloatTensor<Self>, size: [usize; 2]) -> FloatTensor<Self> {
        Self::adaptive_avg_pool2d(x, size)
    }
}

reference_backends!(Pooling2dGrad, Pooling2d);

/// Reference bodies in Burn's operations.
mod reference {
    use super::*;

    pub fn fused_max_pool2d<B: Backend>(x: FloatTensor<B>, pool: Pool2d) -> FloatTensor<B> {
        B::max_pool2d(x, pool.kernel, pool.stride, pool.padding, [1, 1], pool.ceil_mode)
    }

    pub fn max_pool2d_with_indices<B: Backend>(x: FloatTensor<B>, pool: Pool2d) -> (FloatTensor<B>, IntTensor<B>) {
        let dtype = IntDType::I64;
        let pooled =
            B::max_pool2d_with_indices(x, pool.kernel, pool.stride, pool.padding, [1, 1], pool.ceil_mode, dtype);
        (pooled.output, pooled.indices)
    }

    pub fn max_pool2d_backward<B: Backend>(
        x: FloatTensor<B>,
        indices: IntTensor<B>,
        dy: FloatTensor<B>,
        pool: Pool2d,
    ) -> FloatTensor<B> {
        let Pool2d { kernel, stride, padding, ceil_mode, .. } = pool;
        B::max_pool2d_with_indices_backward(x, kernel, stride, padding, [1, 1], ceil_mode, dy, indices).x_grad
    }

    pub fn fused_avg_pool2d<B: Backend>(x: FloatTensor<B>, pool: Pool2d) -> FloatTensor<B> {
        B::avg_pool2d(x, pool.kernel, pool.stride, pool.padding, pool.count_include_pad, pool.ceil_mode)
    }

    pub fn fused_avg_pool2d_backward<B: Backend>(
        x: FloatTensor<B>,
        dy: FloatTensor<B>,
        pool: Pool2d,
    ) -> FloatTensor<B> {
        B::avg_pool2d_backward(x, dy, pool.kernel, pool.stride, pool.padding, pool.count_include_pad, pool.ceil_mode)
    }
}

#[cfg(feature = "flex")]
mod optimized {
    use super::*;
    use crate::{
        cpu::{
            buffer_pool::Buffer,
            pool::{self, Window},
        },
        flex::{bf16_buffer, bf16_map, bf16s, bf16s_mut, channels_last, dims, floats, map, single, widened},
    };
    use burn::tensor::{DType, TensorData};

    impl Pooling2dGrad for Flex {
        fn max_pool2d_with_indices(x: FlexTensor, pool: Pool2d) -> (FlexTensor, FlexTensor) {
            if !takes(&x, &pool) {
                return reference::max_pool2d_with_indices::<Self>(x, pool);
            }
            let x = channels_last(x);
            let window = window(&x, &pool);
            let mut y = output(&window);
            let mut indices = vec![0u8; y.len()];
            pool::max_pool_with_indices(floats(&x), &window, &mut y, &mut indices);
            let indices = FlexTensor::from_data(TensorData::new(indices, [y.len()]));
            (map(y, shape_of(&window)), indices)
        }

        fn max_pool2d_backward(x: FlexTensor, indices: FlexTensor, dy: FlexTensor, pool: Pool2d) -> FlexTensor {
            if indices.dtype() != DType::U8 {
                return reference::max_pool2d_backward::<Self>(x, indices, dy, pool);
            }
            let dy = channels_last(dy);
            let window = window(&x, &pool);
            let mut dx = Buffer::new(x.layout().num_elements());
            pool::max_pool_backward(floats(&dy), indices.storage::<u8>(), &window, &mut dx);
            map(dx, dims(&x))
        }

        fn fused_avg_pool2d_backward(x: FlexTensor, dy: FlexTensor, pool: Pool2d) -> FlexTensor {
            if !takes(&x, &pool) || !single(&[&dy]) {
                return reference::fused_avg_pool2d_backward::<Self>(x, dy, pool);
            }
            let dy = channels_last(dy);
            let window = window(&x, &pool);
            let mut dx = Buffer::new(x.layout().num_elements());
            pool::avg_pool_backward(floats(&dy), &window, pool.count_include_pad, &mut dx);
            map(dx, dims(&x))
        }

        fn fused_adaptive_avg_pool2d_backward(x: FlexTensor, dy: FlexTensor) -> FlexTensor {
            if !single(&[&x, &dy]) {
                return Self::adaptive_avg_pool2d_backward(x, dy);
            }
            let dy = channels_last(dy);
            let shape @ [n, c, h, w] = dims(&x);
            let [_, _, height, width] = dims(&dy);
            let mut dx = Buffer::new(n * c * h * w);
            pool::adaptive_avg_pool_backward(floats(&dy), n, c, [h, w], [height, width], &mut dx);
            map(dx, shape)
        }
    }

    impl Pooling2d for Flex {
        fn fused_max_pool2d(x: FlexTensor, pool: Pool2d) -> FlexTensor {
            if x.dtype() == DType::BF16 {
                let x = channels_last(x);
                let window = window(&x, &pool);
                let shape = shape_of(&window);
                let len = shape.iter().product();
                let mut y = bf16_buffer(len);
                pool::max_pool_bf16(bf16s(&x), &window, bf16s_mut(&mut y, len));
                return bf16_map(y, shape);
            }
            if !takes(&x, &pool) {
                return reference::fused_max_pool2d::<Self>(x, pool);
            }
            let x = channels_last(x);
            let window = window(&x, &pool);
            let mut y = output(&window);
            pool::max_pool(floats(&x), &window, &mut y);
            map(y, shape_of(&window))
        }

        fn fused_avg_pool2d(x: FlexTensor, pool: Pool2d) -> FlexTensor {
            let x = widened(x);
            if !takes(&x, &pool) {
                return reference::fused_avg_pool2d::<Self>(x, pool);
            }
            let x = channels_last(x);
            let window = window(&x, &pool);
            let mut y = output(&window);
            pool::avg_pool(floats(&x), &window, pool.count_include_pad, &mut y);
            map(y, shape_of(&window))
        }

        fn fused_adaptive_avg_pool2d(x: FlexTensor, size: [usize; 2]) -> FlexTensor {
            let x = widened(x);
            let [n, c, h, w] = dims(&x);
            if !single(&[&x]) {
                return Self::adaptive_avg_pool2d(x, size);
            }
            if [h, w] == size {
                return x;
            }
            let x = channels_last(x);
            let mut y = Buffer::new(n * c * size[0] * size[1]);
            pool::adaptive_avg_pool(floats(&x), n, c, [h, w], size, &mut y);
            map(y, [n, c, size[0], size[1]])
        }
    }

    /// Returns whether the optimized max pooling supports the window: its indices are bytes.
    fn takes(x: &FlexTensor, pool: &Pool2d) -> bool {
        let [height, width] = pool.kernel;
        single(&[x]) && height <= 256 && width <= 256 && height * width <= 256
    }

    fn window(x: &FlexTensor, pool: &Pool2d) -> Window {
        let [n, channels, h, w] = dims(x);
        let output = pool.output_size([h, w]).expect("the kernel fits into the padded input");
        let Pool2d { kernel, stride, padding, .. } = *pool;
        Window { n, channels, input: [h, w], output, kernel, stride, padding }
    }

    fn shape_of(window: &Window) -> [usize; 4] {
        [window.n, window.channels, window.output[0], window.output[1]]
    }

    fn output(window: &Window) -> Buffer {
        Buffer::new(shape_of(window).iter().product())
    }
}

#[derive(Debug)]
struct MaxPoolBackward;

impl<B: Pooling2d> Backward<B, 1> for MaxPoolBackward {
    type State = (FloatTensor<B>, IntTensor<B>, Pool2d);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let (x, indices, pool) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, B::max_pool2d_backward(x, indices, dy, pool));
        }
    }
}

#[derive(Debug)]
struct AvgPoolBackward;

impl<B: Pooling2d> Backward<B, 1> for AvgPoolBackward {
    /// The input, and the windows unless they are adaptive.
    type State = (FloatTensor<B>, Option<Pool2d>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut grads::Gradients, _: &mut Checkpointer) {
        let (x, pool) = ops.state;
        let dy = grads.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            let gradient = match pool {
                Some(pool) => B::fused_avg_pool2d_backward(x, dy, pool),
                None => B::fused_adaptive_avg_pool2d_backward(x, dy),
            };
            grads.register::<B>(node.id, gradient);
        }
    }
}

impl<B: Pooling2d, C: CheckpointStrategy> Pooling2d for Autodiff<B, C> {
    fn fused_max_pool2d(x: Ad<B, C>, pool: Pool2d) -> Ad<B, C> {
        let node = x.node();
        let x = x.into_primitive();
        match MaxPoolBackward.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let (y, indices) = <B as Pooling2dGrad>::max_pool2d_with_indices(x.clone(), pool);
                prepared.finish((x, indices, pool), y)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::fused_max_pool2d(x, pool)),
        }
    }

    fn fused_avg_pool2d(x: Ad<B, C>, pool: Pool2d) -> Ad<B, C> {
        let node = x.node();
        let x = x.into_primitive();
        let y = B::fused_avg_pool2d(x.clone(), pool);
        record::<B, C, _, 1>(AvgPoolBackward, [node], y, |_| (x, Some(pool)))
    }

    fn fused_adaptive_avg_pool2d(x: Ad<B, C>, size: [usize; 2]) -> Ad<B, C> {
        let node = x.node();
        let x = x.into_primitive();
        let y = B::fused_adaptive_avg_pool2d(x.clone(), size);
        record::<B, C, _, 1>(AvgPoolBackward, [node], y, |_| (x, None))
    }
}
