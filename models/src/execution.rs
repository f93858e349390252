//! How forward passes run: which operations, in which precision, and over which processes batch statistics are computed.
//!
//! All of this is decided by the caller of a pass: by [`Execution::run`] and by the type of the images. There is no setter,
//! for the process or for a thread, and nothing outlives the call: the same network on the same images, run in the same
//! way, has the same result whatever was run before or is run by other threads.
//!
//! # Why layers do not receive it as an argument
//! A layer's operation is a function of Burn's modules and tensors, `conv_norm(&self.conv1, &self.bn1).forward(x)`, so that
//! networks read like their papers, blocks accept any `Tensor`, and users copy them into plain Burn programs. None of those
//! types can carry more: `Device` is a closed enum whose variant for the CPU is the unit struct `FlexDevice`, so two devices
//! cannot differ in how they compute; `Tensor` has a shape, a type and a device; `Conv2d`, `BatchNorm` and `Linear` are
//! Burn's structs, with a fixed set of fields; and functions without a module (`cat`, `fan_out`, pooling) get tensors alone.
//! What would have to be threaded through every block and every hook is therefore kept in a variable of the thread for as
//! long as the call lasts, and reset also when it panics. A pass runs on the thread that calls it. A backward pass does not
//! look: operations record what their gradient needs.

use std::cell::RefCell;

use burn::tensor::{DType, FloatDType, Tensor};
use kernels::{AllReduce, KernelMode, Precision};

/// How networks run. The default runs the optimized operations where the backend has them, and computes batch statistics
/// over the images of a pass.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use kernels::KernelMode;
/// use models::{Architecture, Execution, ImageClassifier, NetworkConfig};
///
/// let device = Device::flex();
/// let network = NetworkConfig::new(Architecture::ResNet20).init(&device);
/// let images = Tensor::ones([1, 3, 32, 32], &device);
/// let optimized = network.forward(images.clone());
/// let reference = Execution::new(KernelMode::Reference).run(|| network.forward(images));
/// let difference = (optimized - reference).abs().max().into_scalar::<f32>();
/// assert!(difference < 1e-4);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Execution {
    kernels: KernelMode,
    all_reduce: Option<AllReduce>,
}

/// What the operations of this crate look at while a pass runs.
#[derive(Debug, Clone, Default)]
struct Current {
    execution: Execution,
    /// Whether GEMMs round their operands to bf16, with activations in f32.
    bf16_gemms: bool,
    /// Whether nobody observes the activations.
    unseen: bool,
}

thread_local! {
    static CURRENT: RefCell<Current> = RefCell::default();
}

impl Execution {
    /// Selects the operations: with [`KernelMode::Reference`] Burn's own, on every backend.
    pub fn new(kernels: KernelMode) -> Self {
        Self { kernels, all_reduce: None }
    }

    /// Computes the statistics of batch normalization in training over the images of all processes, which `all_reduce` sums
    /// over: synchronized batch normalization.
    pub fn with_sync_batch_norm(mut self, all_reduce: AllReduce) -> Self {
        self.all_reduce = Some(all_reduce);
        self
    }

    /// Returns the operations.
    pub fn kernels(&self) -> KernelMode {
        self.kernels
    }

    /// Runs forward passes so: those that `passes` makes on this thread, of networks, of blocks and of layers in
    /// [`nn`](crate::nn).
    pub fn run<T>(&self, passes: impl FnOnce() -> T) -> T {
        with(|current| current.execution = self.clone(), passes)
    }

    /// Whether the optimized operations support a tensor and are selected, for losses and optimizers.
    pub fn accelerates<const D: usize>(&self, x: &Tensor<D>) -> bool {
        self.kernels == KernelMode::Optimized && kernels::accelerates(x)
    }
}

/// Changes what operations look at for as long as `work` runs.
fn with<T>(change: impl FnOnce(&mut Current), work: impl FnOnce() -> T) -> T {
    struct Reset(Current);
    impl Drop for Reset {
        fn drop(&mut self) {
            CURRENT.replace(std::mem::take(&mut self.0));
        }
    }
    let mut current = CURRENT.with_borrow(Current::clone);
    change(&mut current);
    let _reset = Reset(CURRENT.replace(current));
    work()
}

/// Runs `work`, whose activations nobody else reads: in bf16 they may be of that type where the operations are faster so.
pub(crate) fn unseen<T>(work: impl FnOnce() -> T) -> T {
    with(|current| current.unseen = true, work)
}

/// Runs a network on `images` in their type. The optimized kernels have a bf16 mode of their own, with activations in f32
/// and operands rounded as the GEMMs gather them, which takes the place of activations in bf16.
pub(crate) fn in_type_of<T>(images: Tensor<4>, network: impl FnOnce(Tensor<4>) -> T) -> T {
    let optimized = CURRENT.with_borrow(|current| current.execution.kernels == KernelMode::Optimized);
    if images.dtype() == DType::BF16 && optimized && kernels::has_bf16_dot() && kernels::runs_on_device_of(&images) {
        with(|current| current.bf16_gemms = true, || network(images.cast(FloatDType::F32)))
    } else {
        network(images)
    }
}

/// Whether the optimized operations accept this tensor in the current pass.
pub(crate) fn is_fast<const D: usize>(x: &Tensor<D>) -> bool {
    CURRENT.with_borrow(|current| {
        // Activations in bf16 are theirs only in their own bf16 mode.
        (x.dtype() == DType::F32 || current.bf16_gemms) && current.execution.accelerates(x)
    })
}

/// The precision of convolutions in the current pass.
pub(crate) fn conv2d_precision() -> Precision {
    CURRENT.with_borrow(|current| match (current.bf16_gemms, current.unseen) {
        (true, true) => Precision::Bf16Activations,
        (true, false) => Precision::Bf16,
        (false, _) => Precision::F32,
    })
}

/// The precision of linear layers in the current pass.
pub(crate) fn linear_precision() -> Precision {
    CURRENT.with_borrow(|current| if current.bf16_gemms { Precision::Bf16 } else { Precision::F32 })
}

/// The sum over processes for batch normalization in the current pass.
pub(crate) fn all_reduce() -> Option<AllReduce> {
    CURRENT.with_borrow(|current| current.execution.all_reduce.clone())
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use burn::tensor::Device;

    use super::*;

    #[test]
    fn a_pass_ends_with_its_call_also_when_it_panics() {
        let x = Tensor::<1>::ones([4], &Device::flex());
        let reference = Execution::new(KernelMode::Reference);
        assert!(is_fast(&x));
        reference.run(|| {
            assert!(!is_fast(&x));
            Execution::default().run(|| assert!(is_fast(&x)));
            assert!(!is_fast(&x));
        });
        assert!(is_fast(&x));
        let failed = catch_unwind(AssertUnwindSafe(|| reference.run(|| -> () { panic!("a pass that fails") })));
        assert!(failed.is_err() && is_fast(&x));
    }

    #[test]
    fn passes_of_other_threads_run_as_their_callers_say() {
        let x = Tensor::<1>::ones([4], &Device::flex());
        Execution::new(KernelMode::Reference).run(|| {
            let elsewhere = std::thread::scope(|scope| scope.spawn(|| is_fast(&x)).join().expect("no panic"));
            assert!(elsewhere && !is_fast(&x));
        });
    }
}
