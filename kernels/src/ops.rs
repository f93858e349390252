//! The operations as a backend extension: a plain body for every backend, in Burn's own operations, and (in `flex`) a
//! fast one.

use burn::{
    backend::{
        Backend, ExtensionType, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::ops::ConvOptions,
};

pub use crate::cpu::sgd::Sgd;
use crate::{autodiff::GradAccumulator, plain};

/// What follows a convolution or a norm without a pass of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Then {
    /// Negative values become zero.
    pub relu: bool,
    /// The weights will be used again as they are, so what is made of them should be kept.
    pub keep_weights: bool,
    /// Products may round their operands to bf16, where the processor is faster so; sums stay in single precision.
    pub bf16: bool,
    /// The output may be a map of bf16 values, which the operations here take where they take one of floats, if products
    /// are of such values.
    pub bf16_map: bool,
}

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

/// Local response normalisation, `x / (k + alpha · mean(x²))^beta` over `size` channels.
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

/// Up to [`MOST`](Self::MOST) tensors.
#[derive(Debug, Clone, ExtensionType)]
#[allow(missing_docs)]
pub struct Maps<B: Backend> {
    pub first: FloatTensor<B>,
    #[extension_type]
    pub second: Maybe<B>,
    #[extension_type]
    pub third: Maybe<B>,
    #[extension_type]
    pub fourth: Maybe<B>,
    #[extension_type]
    pub fifth: Maybe<B>,
    #[extension_type]
    pub sixth: Maybe<B>,
}

impl<B: Backend> Maps<B> {
    /// The most tensors that it can hold.
    pub const MOST: usize = 6;

    /// As many as there are.
    pub fn into_vec(self) -> Vec<FloatTensor<B>> {
        let rest = [self.second, self.third, self.fourth, self.fifth, self.sixth];
        std::iter::once(self.first).chain(rest.into_iter().filter_map(Maybe::into_option)).collect()
    }

    /// Of one to six maps; `None` for any other number.
    pub fn new(maps: impl IntoIterator<Item = FloatTensor<B>>) -> Option<Self> {
        let mut maps = maps.into_iter();
        let first = maps.next()?;
        let mut next = || Maybe::from(maps.next());
        let all = Self { first, second: next(), third: next(), fourth: next(), fifth: next(), sixth: next() };
        maps.next().is_none().then_some(all)
    }
}

/// A tensor, or none.
#[derive(Debug, Clone, ExtensionType)]
pub enum Maybe<B: Backend> {
    /// There is one.
    Some(FloatTensor<B>),
    /// There is none.
    None,
}

impl<B: Backend> Maybe<B> {
    /// As an option.
    pub fn into_option(self) -> Option<FloatTensor<B>> {
        match self {
            Self::Some(tensor) => Some(tensor),
            Self::None => None,
        }
    }
}

impl<B: Backend> From<Option<FloatTensor<B>>> for Maybe<B> {
    fn from(tensor: Option<FloatTensor<B>>) -> Self {
        tensor.map_or(Self::None, Self::Some)
    }
}

/// What gradients are made of.
pub trait Gradients: Backend {
    /// The gradient of `x` from that of the convolution's output.
    fn fused_conv2d_x_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        plain::fused_conv2d_x_backward::<Self>(x, weight, dy, options)
    }

    /// The gradient of `weight` from that of the convolution's output.
    fn fused_conv2d_weight_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        plain::fused_conv2d_weight_backward::<Self>(x, weight, dy, options)
    }

    /// `dy` where `y` is above zero, otherwise 0.
    fn masked(y: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        plain::masked::<Self>(y, dy)
    }

    /// Sums of `[n, c, h, w]` over everything but the channels: `[c]`.
    fn channel_sums(x: FloatTensor<Self>) -> FloatTensor<Self> {
        plain::channel_sums::<Self>(x)
    }

    /// Gradients of [`fused_batch_norm`](Kernels::fused_batch_norm): `(x, gamma, beta, residual)`. `y`, the output, is
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
        then: Then,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        plain::fused_batch_norm_backward::<Self>(x, gamma, beta, mean, variance, y, dy, epsilon, then)
    }

    /// The sum of two tensors; the first may be overwritten.
    fn sum_in_place(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        plain::sum_in_place::<Self>(x, y)
    }

    /// Maxima of windows, and which element of its window each is, in a form that
    /// [`max_pool2d_backward`](Self::max_pool2d_backward) knows.
    fn max_pool2d_with_places(x: FloatTensor<Self>, pool: Pool2d) -> (FloatTensor<Self>, IntTensor<Self>) {
        plain::max_pool2d_with_places::<Self>(x, pool)
    }

    /// The gradient of the input of a max pooling.
    fn max_pool2d_backward(
        x: FloatTensor<Self>,
        places: IntTensor<Self>,
        dy: FloatTensor<Self>,
        pool: Pool2d,
    ) -> FloatTensor<Self> {
        plain::max_pool2d_backward::<Self>(x, places, dy, pool)
    }

    /// The gradient of the input of an average pooling.
    fn fused_avg_pool2d_backward(x: FloatTensor<Self>, dy: FloatTensor<Self>, pool: Pool2d) -> FloatTensor<Self> {
        plain::fused_avg_pool2d_backward::<Self>(x, dy, pool)
    }

    /// The gradient of the input of an adaptive average pooling.
    fn fused_adaptive_avg_pool2d_backward(x: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::adaptive_avg_pool2d_backward(x, dy)
    }

    /// The gradient of the input of a local response normalisation.
    fn response_norm_backward(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        norm: LocalResponseNorm,
    ) -> FloatTensor<Self> {
        plain::response_norm_backward::<Self>(x, dy, norm)
    }

    /// Some channels of `[n, c, h, w]`.
    fn channel_slice(x: FloatTensor<Self>, first: usize, channels: usize) -> FloatTensor<Self> {
        plain::channel_slice::<Self>(x, first, channels)
    }

    /// `dy · wᵀ`.
    fn fused_linear_x_backward(weight: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        plain::fused_linear_x_backward::<Self>(weight, dy)
    }

    /// `xᵀ · dy`.
    fn fused_linear_weight_backward(x: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        plain::fused_linear_weight_backward::<Self>(x, dy)
    }

    /// The gradient of the logits of [`cross_entropy`](Kernels::cross_entropy), from that of each row's loss `[n]`.
    fn cross_entropy_backward(
        logits: FloatTensor<Self>,
        targets: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        plain::cross_entropy_backward::<Self>(logits, targets, dy)
    }

    /// Sums of `[n, d]` over the rows: `[d]`.
    fn row_sums(x: FloatTensor<Self>) -> FloatTensor<Self> {
        plain::row_sums::<Self>(x)
    }
}

/// The operations that the networks are made of.
///
/// The attribute applies in every combination of features: it also strips `#[extension_type]` from the arguments, which
/// the compiler does not know.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait Kernels: Gradients {
    /// `relu(conv(x, weight) · scale + bias + residual)`, everything but the convolution where it is given.
    ///
    /// `x: [n, c_in, h, w]`, `weight: [c_out, c_in / groups, kh, kw]`, `scale`, `bias: [c_out]`, `residual` as the
    /// output `[n, c_out, h', w']`.
    fn fused_conv2d(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] scale: Maybe<Self>,
        #[extension_type] bias: Maybe<Self>,
        #[extension_type] residual: Maybe<Self>,
        options: ConvOptions<2>,
        then: Then,
    ) -> FloatTensor<Self> {
        plain::fused_conv2d::<Self>(
            x,
            weight,
            scale.into_option(),
            bias.into_option(),
            residual.into_option(),
            options,
            then,
        )
    }

    /// `relu((x − mean) / √(variance + ε) · gamma + beta + residual)` with the mean and the biased variance of the
    /// batch; returns those too: `(y [n, c, h, w], mean [c], variance [c])`. No gradient flows through the statistics
    /// returned.
    fn fused_batch_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        #[extension_type] residual: Maybe<Self>,
        epsilon: f64,
        then: Then,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        plain::fused_batch_norm::<Self>(x, gamma, beta, residual.into_option(), epsilon, then)
    }

    /// `relu(x · scale + shift + residual)`, `scale` and `shift` of each channel `[c]`: a norm in evaluation.
    fn channel_affine(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        #[extension_type] residual: Maybe<Self>,
        then: Then,
    ) -> FloatTensor<Self> {
        plain::channel_affine::<Self>(x, scale, shift, residual.into_option(), then)
    }

    /// `x`, as the root of branches whose gradients are summed in the accumulator.
    fn fan_out_root(x: FloatTensor<Self>, _accumulator: GradAccumulator) -> FloatTensor<Self> {
        x
    }

    /// The root, as one of its branches.
    fn fan_out_branch(root: FloatTensor<Self>, _accumulator: GradAccumulator) -> FloatTensor<Self> {
        root
    }

    /// Max pooling: `[n, c, h, w]` → `[n, c, h', w']`.
    fn fused_max_pool2d(x: FloatTensor<Self>, pool: Pool2d) -> FloatTensor<Self> {
        plain::fused_max_pool2d::<Self>(x, pool)
    }

    /// Average pooling: `[n, c, h, w]` → `[n, c, h', w']`.
    fn fused_avg_pool2d(x: FloatTensor<Self>, pool: Pool2d) -> FloatTensor<Self> {
        plain::fused_avg_pool2d::<Self>(x, pool)
    }

    /// Averages of `size` nearly equal parts: `[n, c, h, w]` → `[n, c, size…]`.
    fn fused_adaptive_avg_pool2d(x: FloatTensor<Self>, size: [usize; 2]) -> FloatTensor<Self> {
        Self::adaptive_avg_pool2d(x, size)
    }

    /// Local response normalisation across the channels of `[n, c, h, w]`.
    fn response_norm(x: FloatTensor<Self>, norm: LocalResponseNorm) -> FloatTensor<Self> {
        plain::response_norm::<Self>(x, norm)
    }

    /// Maps side by side along their channels.
    fn join_channels(#[extension_type] maps: Maps<Self>) -> FloatTensor<Self> {
        Self::float_cat(maps.into_vec(), 1)
    }

    /// `x · weight + bias`: `[n, d_in]` → `[n, d_out]`.
    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        #[extension_type] bias: Maybe<Self>,
        _then: Then,
    ) -> FloatTensor<Self> {
        plain::fused_linear::<Self>(x, weight, bias.into_option())
    }

    /// `−Σ targets · log softmax(logits)` of each row: `[n, classes]` → `[n]`. The targets have no gradient.
    fn cross_entropy(logits: FloatTensor<Self>, targets: FloatTensor<Self>) -> FloatTensor<Self> {
        plain::cross_entropy::<Self>(logits, targets)
    }

    /// A step of stochastic gradient descent: the parameter and its velocity, both overwritten where nobody else has
    /// them. The first step has no velocity; without momentum there is none to speak of.
    fn sgd_step(
        param: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        #[extension_type] velocity: Maybe<Self>,
        sgd: Sgd,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        plain::sgd_step::<Self>(param, gradient, velocity.into_option(), sgd)
    }
}

#[cfg(feature = "ndarray")]
impl Gradients for burn::backend::NdArray {}
#[cfg(feature = "ndarray")]
impl Kernels for burn::backend::NdArray {}
#[cfg(feature = "tch")]
impl Gradients for burn::backend::LibTorch {}
#[cfg(feature = "tch")]
impl Kernels for burn::backend::LibTorch {}
#[cfg(feature = "cube")]
impl Gradients for burn::backend::Cube {}
#[cfg(feature = "cube")]
impl Kernels for burn::backend::Cube {}
