//! The vector instructions that the kernels use on this processor.

use pulp::{Arch, Simd, WithSimd};

/// Returns the number of `f32` values in a vector register.
pub fn f32_lanes() -> usize {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _simd: S) -> usize {
            S::F32_LANES
        }
    }
    Arch::new().dispatch(Lanes)
}

/// Returns the usual name of the instruction set.
pub fn name() -> &'static str {
    match f32_lanes() {
        16 => "AVX-512",
        8 => "AVX2",
        4 if cfg!(target_arch = "aarch64") => "NEON",
        4 => "128-bit SIMD",
        _ => "no SIMD",
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_what_the_processor_has() {
        let has = match name() {
            "AVX-512" => is_x86_feature_detected!("avx512f"),
            "AVX2" => is_x86_feature_detected!("avx2"),
            other => other == "no SIMD" && !is_x86_feature_detected!("avx2"),
        };
        assert!(has, "{}", name());
    }
}
