//! The random numbers of one sample, a function of `(seed, epoch, index)` alone.

use std::convert::Infallible;

use rand::{Rng, SeedableRng, TryRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// The random stream of sample `index` in epoch `epoch`: xoshiro256++ (Blackman and Vigna, 2018), seeded by mixing the
/// three numbers one after another with SplitMix64's finalizer.
///
/// Different triples of the same seed never share a state. The draws below use integer arithmetic, IEEE `+ − × ÷ √`
/// and the `libm` crate alone, so that the same triple gives the same numbers on every platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleRng(Xoshiro256PlusPlus);

impl SampleRng {
    /// The stream of sample `index` in epoch `epoch` of the run seeded with `seed`.
    pub fn new(seed: u64, epoch: u64, index: u64) -> Self {
        // Each step is a bijection of its last argument: the state is injective in (epoch, index) for a given seed.
        let a = mix(seed, 1);
        let b = mix(a ^ epoch, 2);
        let c = mix(b ^ index, 3);
        let d = mix(c, 4);
        let mut state = [0; 32];
        for (bytes, word) in state.chunks_exact_mut(8).zip([c, b, a, d]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Self(Xoshiro256PlusPlus::from_seed(state))
    }

    /// A number drawn uniformly from `[0, 1)`, a multiple of 2⁻⁵³.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A number drawn uniformly from `[low, high)`; `low` where both are equal.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// An integer drawn uniformly from `0..n` (Lemire's method, unbiased); 0 where `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        let mut wide = u128::from(self.next_u64()) * u128::from(n);
        if (wide as u64) < n {
            let threshold = n.wrapping_neg() % n;
            while (wide as u64) < threshold {
                wide = u128::from(self.next_u64()) * u128::from(n);
            }
        }
        (wide >> 64) as u64
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// A number drawn from the standard normal distribution (Marsaglia's polar method).
    pub fn normal(&mut self) -> f64 {
        loop {
            let (u, v) = (self.uniform(-1.0, 1.0), self.uniform(-1.0, 1.0));
            let s = u * u + v * v;
            if s > 0.0 && s < 1.0 {
                return u * (-2.0 * libm::log(s) / s).sqrt();
            }
        }
    }

    /// A number drawn from the gamma distribution of the given shape and scale 1 (Marsaglia and Tsang, 2000).
    pub fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let boost = libm::pow(1.0 - self.unit(), 1.0 / shape);
            return self.gamma(shape + 1.0) * boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let t = 1.0 + c * x;
            if t > 0.0 {
                let v = t * t * t;
                if libm::log(1.0 - self.unit()) < 0.5 * x * x + d - d * v + d * libm::log(v) {
                    return d * v;
                }
            }
        }
    }

    /// A number in `[0, 1]` drawn from the beta distribution.
    pub fn beta(&mut self, a: f64, b: f64) -> f64 {
        let (x, y) = (self.gamma(a), self.gamma(b));
        // Both underflow to 0 for tiny shapes only: the distribution is then a coin of mean a / (a + b).
        if x + y > 0.0 { x / (x + y) } else { f64::from(u8::from(self.chance(a / (a + b)))) }
    }

    /// Shuffles `items` uniformly (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

/// SplitMix64's finalizer (Steele, Lea and Flood, 2014) on `x` offset by `round` golden gammas: a bijection of `x`.
fn mix(x: u64, round: u64) -> u64 {
    let mut z = x.wrapping_add(round.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl TryRng for SampleRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.0.try_next_u32()
    }
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0.try_next_u64()
    }
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.try_fill_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean and variance of `n` draws.
    fn moments(n: usize, mut draw: impl FnMut() -> f64) -> (f64, f64) {
        let draws: Vec<f64> = (0..n).map(|_| draw()).collect();
        let mean = draws.iter().sum::<f64>() / n as f64;
        (mean, draws.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n as f64)
    }

    #[test]
    fn the_stream_of_a_triple_never_changes() {
        // The values of an independent implementation of SplitMix64's finalizer and xoshiro256++ in Python.
        let mut rng = SampleRng::new(1, 2, 3);
        let words: Vec<u64> = (0..4).map(|_| rng.next_u64()).collect();
        assert_eq!(words, GOLDEN_1_2_3);
    }

    const GOLDEN_1_2_3: [u64; 4] = [0xf08e9c4ab1326c9b, 0xf7098e40450217a2, 0xa542afc384e951ca, 0xe299330ce4312366];

    #[test]
    fn each_part_of_the_triple_matters() {
        let first = |s, e, i| SampleRng::new(s, e, i).next_u64();
        let mut seen: Vec<u64> = (0..512).map(|n| first(n >> 6, n >> 3 & 7, n & 7)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 512);
    }

    #[test]
    fn neighboring_samples_are_uncorrelated() {
        let (mean, variance) = {
            let mut index = 0;
            moments(20_000, || {
                index += 1;
                SampleRng::new(0, 0, index).unit()
            })
        };
        assert!((mean - 0.5).abs() < 0.01 && (variance - 1.0 / 12.0).abs() < 0.003, "{mean} {variance}");
    }

    #[test]
    fn draws_have_the_moments_of_their_distributions() {
        let mut rng = SampleRng::new(7, 0, 0);
        let close = |(mean, variance): (f64, f64), m: f64, v: f64| {
            assert!((mean - m).abs() < 4.0 * (v / 50_000.0).sqrt(), "mean {mean} of {m}");
            assert!((variance / v - 1.0).abs() < 0.05, "variance {variance} of {v}");
        };
        close(moments(50_000, || rng.uniform(-2.0, 4.0)), 1.0, 3.0);
        close(moments(50_000, || rng.normal()), 0.0, 1.0);
        close(moments(50_000, || rng.gamma(2.5)), 2.5, 2.5);
        close(moments(50_000, || rng.gamma(0.4)), 0.4, 0.4);
        close(moments(50_000, || rng.beta(0.2, 0.2)), 0.5, 0.25 / 1.4);
        close(moments(50_000, || rng.beta(2.0, 6.0)), 0.25, 12.0 / (64.0 * 9.0));
        close(moments(50_000, || f64::from(u8::from(rng.chance(0.3)))), 0.3, 0.21);
    }

    #[test]
    fn integers_below_n_are_uniform() {
        let mut rng = SampleRng::new(7, 0, 1);
        let mut counts = [0f64; 7];
        for _ in 0..70_000 {
            counts[rng.below(7) as usize] += 1.0;
        }
        let chi2: f64 = counts.iter().map(|c| (c - 1e4) * (c - 1e4) / 1e4).sum();
        assert!(chi2 < 22.5, "χ² {chi2} of 6 degrees of freedom: p < 0.001");
        assert_eq!(rng.below(1), 0);
        assert_eq!(rng.below(0), 0);
    }

    #[test]
    fn a_shuffle_is_a_permutation_and_moves_things() {
        let mut items: Vec<u32> = (0..100).collect();
        SampleRng::new(0, 0, 0).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<u32>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<u32>>());
    }
}
