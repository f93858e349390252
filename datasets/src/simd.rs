//! Pixel loops compiled for the widest SIMD extension of the processor.

/// A loop over pixels. Its body, and all that the body calls, must be `#[inline(always)]`: only what is inlined into
/// [`run`] is compiled for the wider vectors.
pub(crate) trait Kernel {
    /// The output of the kernel.
    type Output;

    /// Runs the loop.
    fn run(self) -> Self::Output;
}

/// Runs a kernel with the best SIMD extension, detected at run time.
pub(crate) fn run<K: Kernel>(kernel: K) -> K::Output {
    struct Dispatch<K>(K);
    impl<K: Kernel> pulp::NullaryFnOnce for Dispatch<K> {
        type Output = K::Output;

        #[inline(always)]
        fn call(self) -> K::Output {
            self.0.run()
        }
    }
    pulp::Arch::new().dispatch(Dispatch(kernel))
}
