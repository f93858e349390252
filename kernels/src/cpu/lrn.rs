//! Local response normalization across channels.

use pulp::{Arch, Simd, WithSimd};

use super::{
    buffer_pool::elements,
    disjoint::{DisjointSlice, part},
    thread_pool::{tasks, threads},
    tile::{load, load_part, store_part},
};

/// `y = x / (k + alpha / size · Σ x²)^beta`, the sum over `size` channels around each, of which `size / 2` before it.
#[derive(Clone, Copy, Debug)]
pub struct Lrn {
    /// The number of channels of a window.
    pub size: usize,
    /// The factor of the sum of squares, times `size`.
    pub alpha: f32,
    /// The exponent.
    pub beta: f32,
    /// Added to the sum.
    pub k: f32,
}

/// The minimum number of floats of a task.
const TASK: usize = 4096;

/// Normalizes `x` `[pixels, channels]` to `y`.
pub fn lrn(x: &[f32], channels: usize, job: &Lrn, y: &mut [f32]) {
    run(x, None, channels, job, y);
}

/// The gradient of [`lrn`]: writes all of `dx`.
pub fn lrn_backward(x: &[f32], dy: &[f32], channels: usize, job: &Lrn, dx: &mut [f32]) {
    assert_eq!(x.len(), dy.len());
    run(x, Some(dy), channels, job, dx);
}

fn run(x: &[f32], dy: Option<&[f32]>, channels: usize, lrn: &Lrn, out: &mut [f32]) {
    assert!(lrn.size > 0, "a sum of no channels");
    assert_eq!(x.len(), out.len());
    if x.is_empty() {
        return;
    }
    let pixels = x.len() / channels;
    assert_eq!(x.len(), pixels * channels);
    // Within `Padded`, so that nothing overflows.
    let _ = elements([PIXELS, channels.saturating_add(lrn.size).saturating_add(64)]);
    let out = DisjointSlice::new(out);
    let parts = (x.len() / TASK).clamp(1, 4 * threads()).min(pixels);
    tasks(parts, |task| {
        let pixels = part(pixels, parts, task, 1);
        let range = pixels.start * channels..pixels.end * channels;
        // SAFETY: each task accesses its own pixels only.
        let out = unsafe { out.range(range.clone()) };
        Arch::new().dispatch(Pixels { x: &x[range.clone()], dy: dy.map(|dy| &dy[range]), channels, lrn, out });
    });
}

/// A task: some pixels of a feature map.
struct Pixels<'a> {
    x: &'a [f32],
    /// The scratch memory of the gradient.
    dy: Option<&'a [f32]>,
    channels: usize,
    lrn: &'a Lrn,
    out: &'a mut [f32],
}

/// Pixels computed at once, since reading back what was just stored with other vector bounds stalls (store forwarding).
const PIXELS: usize = 8;

/// The channels of some pixels, padded with zeros on both sides, so that windows need no bounds.
struct Padded {
    data: Vec<f32>,
    /// Floats from pixel to pixel.
    pitch: usize,
    before: usize,
    size: usize,
}

impl Padded {
    /// Allocates for windows of `size` channels, `before` of them before the center.
    fn new<S: Simd>(channels: usize, before: usize, size: usize) -> Self {
        let pitch = channels.next_multiple_of(S::F32_LANES) + size;
        Self { data: vec![0.0; PIXELS * pitch], pitch, before, size }
    }

    /// Writes `count` channels.
    #[inline(always)]
    fn set<S: Simd>(&mut self, simd: S, pixel: usize, channel: usize, count: usize, value: S::f32s) {
        let start = pixel * self.pitch + self.before + channel;
        // SAFETY: the slice is as long. What is behind the last channel stays zero.
        unsafe { store_part(simd, self.data[start..start + count].as_mut_ptr(), count, value) };
    }

    /// Returns the window sums of a vector of channels.
    #[inline(always)]
    fn sum<S: Simd>(&self, simd: S, pixel: usize, channel: usize) -> S::f32s {
        let start = pixel * self.pitch + channel;
        let row = &self.data[start..start + S::F32_LANES + self.size - 1];
        let mut sum = simd.splat_f32s(0.0);
        for i in 0..self.size {
            // SAFETY: the slice holds `size` vectors, each one float after the other.
            sum = simd.add_f32s(sum, unsafe { load::<S>(row.as_ptr().wrapping_add(i)) });
        }
        sum
    }
}

impl Pixels<'_> {
    /// `value^beta`.
    #[inline(always)]
    fn power<S: Simd>(&self, simd: S, mut value: S::f32s) -> S::f32s {
        if self.lrn.beta == 0.75 {
            let root = simd.sqrt_f32s(value);
            return simd.mul_f32s(root, simd.sqrt_f32s(root));
        }
        let lanes = (&raw mut value).cast::<f32>();
        for lane in 0..S::F32_LANES {
            // SAFETY: a vector has the layout of an array of its lanes.
            unsafe { lanes.add(lane).write(lanes.add(lane).read().powf(self.lrn.beta)) };
        }
        value
    }
}

impl WithSimd for Pixels<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let size = self.lrn.size;
        let mut squares = Padded::new::<S>(self.channels, size / 2, size);
        // A channel receives gradients from the channels whose windows contain it: the mirrored window.
        let mut flows = Padded::new::<S>(self.channels, (size - 1) / 2, size);
        for start in (0..self.x.len()).step_by(PIXELS * self.channels) {
            let pixels = PIXELS.min((self.x.len() - start) / self.channels);
            for pixel in 0..pixels {
                for channel in (0..self.channels).step_by(S::F32_LANES) {
                    let (at, count) = self.vector::<S>(start, pixel, channel);
                    let x = read(simd, self.x, at, count);
                    squares.set(simd, pixel, channel, count, simd.mul_f32s(x, x));
                }
            }
            match self.dy {
                None => self.forward(simd, start, pixels, &squares),
                Some(dy) => self.backward(simd, start, pixels, dy, &squares, &mut flows),
            }
        }
    }
}

/// Reads `count` floats.
#[inline(always)]
fn read<S: Simd>(simd: S, from: &[f32], at: usize, count: usize) -> S::f32s {
    // SAFETY: the slice is as long.
    unsafe { load_part(simd, from[at..at + count].as_ptr(), count) }
}

impl Pixels<'_> {
    /// Returns the offset of a vector of channels of the pixel `start + …`, and its number of channels.
    #[inline(always)]
    fn vector<S: Simd>(&self, start: usize, pixel: usize, channel: usize) -> (usize, usize) {
        (start + pixel * self.channels + channel, S::F32_LANES.min(self.channels - channel))
    }

    #[inline(always)]
    fn write<S: Simd>(&mut self, simd: S, at: usize, count: usize, value: S::f32s) {
        // SAFETY: the slice is as long.
        unsafe { store_part(simd, self.out[at..at + count].as_mut_ptr(), count, value) };
    }

    /// Returns the base of the power.
    #[inline(always)]
    fn base<S: Simd>(&self, simd: S, sum: S::f32s) -> S::f32s {
        let factor = simd.splat_f32s(self.lrn.alpha / self.lrn.size as f32);
        simd.mul_add_e_f32s(factor, sum, simd.splat_f32s(self.lrn.k))
    }

    #[inline(always)]
    fn forward<S: Simd>(&mut self, simd: S, start: usize, pixels: usize, squares: &Padded) {
        for pixel in 0..pixels {
            for channel in (0..self.channels).step_by(S::F32_LANES) {
                let (at, count) = self.vector::<S>(start, pixel, channel);
                let power = self.power(simd, self.base(simd, squares.sum(simd, pixel, channel)));
                self.write(simd, at, count, simd.div_f32s(read(simd, self.x, at, count), power));
            }
        }
    }

    /// `dx = dy / base^beta - 2 · alpha / size · beta · x · Σ dy · x / base^(beta + 1)`.
    #[inline(always)]
    fn backward<S: Simd>(
        &mut self,
        simd: S,
        start: usize,
        pixels: usize,
        dy: &[f32],
        squares: &Padded,
        flows: &mut Padded,
    ) {
        for pixel in 0..pixels {
            for channel in (0..self.channels).step_by(S::F32_LANES) {
                let (at, count) = self.vector::<S>(start, pixel, channel);
                let base = self.base(simd, squares.sum(simd, pixel, channel));
                let straight = simd.div_f32s(read(simd, dy, at, count), self.power(simd, base));
                self.write(simd, at, count, straight);
                let flow = simd.div_f32s(simd.mul_f32s(straight, read(simd, self.x, at, count)), base);
                flows.set(simd, pixel, channel, count, flow);
            }
        }
        let factor = simd.splat_f32s(-2.0 * self.lrn.alpha / self.lrn.size as f32 * self.lrn.beta);
        for pixel in 0..pixels {
            for channel in (0..self.channels).step_by(S::F32_LANES) {
                let (at, count) = self.vector::<S>(start, pixel, channel);
                let sum = simd.mul_f32s(read(simd, self.x, at, count), flows.sum(simd, pixel, channel));
                self.write(simd, at, count, simd.mul_add_e_f32s(factor, sum, read(simd, self.out, at, count)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::Random, *};

    fn neighbors(channel: usize, channels: usize, size: usize) -> std::ops::Range<usize> {
        channel.saturating_sub(size / 2)..(channel + (size - 1) / 2 + 1).min(channels)
    }

    fn bases(x: &[f64], lrn: &Lrn) -> Vec<f64> {
        let sum = |channel| neighbors(channel, x.len(), lrn.size).map(|i| x[i] * x[i]).sum::<f64>();
        let factor = f64::from(lrn.alpha) / lrn.size as f64;
        (0..x.len()).map(|channel| f64::from(lrn.k) + factor * sum(channel)).collect()
    }

    /// Computes one pixel.
    fn plain(x: &[f64], lrn: &Lrn) -> Vec<f64> {
        x.iter().zip(bases(x, lrn)).map(|(x, base)| x / base.powf(lrn.beta.into())).collect()
    }

    fn assert_close(what: f32, expected: f64, of: &dyn std::fmt::Debug) {
        assert!((f64::from(what) - expected).abs() <= 2e-6 * (0.1 + expected.abs()), "{what} {expected}: {of:?}");
    }

    #[test]
    fn it_and_its_gradient_match_plain_sums() {
        let mut random = Random::new(1);
        for round in 0..120 {
            let channels = [1, 3, 16, 24, 64, 67, 208][random.size(0, 6)];
            let pixels = [1, 5, 700][random.size(0, 2)];
            let lrn = Lrn {
                size: random.size(1, 8),
                alpha: [1e-4, 0.5, 2.0][round % 3],
                beta: [0.75, 0.75, 0.5, 1.3][random.size(0, 3)],
                k: [1.0, 2.0][round % 2],
            };
            let (x, dy) = (random.floats(pixels * channels), random.floats(pixels * channels));
            let (mut y, mut dx) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
            super::lrn(&x, channels, &lrn, &mut y);
            lrn_backward(&x, &dy, channels, &lrn, &mut dx);
            for start in (0..x.len()).step_by(channels) {
                let [x, dy] = [&x, &dy].map(|map| map[start..start + channels].iter().map(|&v| v.into()));
                let (x, dy): (Vec<f64>, Vec<f64>) = (x.collect(), dy.collect());
                let bases = bases(&x, &lrn);
                let mut expected_dx = vec![0.0; channels];
                for (channel, expected) in plain(&x, &lrn).into_iter().enumerate() {
                    assert_close(y[start + channel], expected, &lrn);
                    let beta = f64::from(lrn.beta);
                    expected_dx[channel] += dy[channel] / bases[channel].powf(beta);
                    let factor = 2.0 * beta * f64::from(lrn.alpha) / lrn.size as f64;
                    for i in neighbors(channel, channels, lrn.size) {
                        expected_dx[i] -= factor * dy[channel] * expected * x[i] / bases[channel];
                    }
                }
                for (channel, expected) in expected_dx.into_iter().enumerate() {
                    assert_close(dx[start + channel], expected, &lrn);
                }
            }
        }
    }

    #[test]
    fn the_gradient_matches_differences() {
        let mut random = Random::new(2);
        let lrn = Lrn { size: 4, alpha: 1.5, beta: 0.75, k: 1.0 };
        let (x, dy, direction) = (random.floats(21), random.floats(21), random.floats(21));
        let mut dx = vec![0.0; 21];
        lrn_backward(&x, &dy, 21, &lrn, &mut dx);
        let along = |step: f64| {
            let moved: Vec<f64> = x.iter().zip(&direction).map(|(&x, &d)| f64::from(x) + step * f64::from(d)).collect();
            plain(&moved, &lrn).iter().zip(&dy).map(|(y, &dy)| y * f64::from(dy)).sum::<f64>()
        };
        let slope: f64 = dx.iter().zip(&direction).map(|(&dx, &d)| f64::from(dx) * f64::from(d)).sum();
        assert!((slope - (along(1e-5) - along(-1e-5)) / 2e-5).abs() < 1e-5);
    }

    #[test]
    fn zeros_beside_the_channels_do_not_reach_them() {
        // With k = 0 the base is 0 too.
        let lrn = Lrn { size: 3, alpha: 1.0, beta: 0.75, k: 0.0 };
        let mut dx = [f32::NAN; 5];
        lrn_backward(&[1.0; 5], &[1.0; 5], 5, &lrn, &mut dx);
        assert!(dx.iter().all(|dx| dx.is_finite()), "{dx:?}");
    }
}
