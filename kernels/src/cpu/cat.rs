//! Concatenation and slicing along the channels, and addition.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::{
    buffer_pool::elements,
    disjoint::{DisjointSlice, part},
    thread_pool::{tasks, threads},
};

/// The minimum number of floats of a task.
const TASK: usize = 16 << 10;

/// Runs `work` on parts of `0..count` items of `floats` floats each.
fn parts(count: usize, floats: usize, work: impl Fn(Range<usize>) + Sync + Send) {
    let parts = (count * floats / TASK).clamp(1, 4 * threads());
    tasks(parts, |task| work(part(count, parts, task, 1)));
}

/// Concatenates feature maps `[pixels, channels]`, each given with its number of channels, along the channels.
pub fn cat<T: Copy + Send + Sync>(maps: &[(&[T], usize)], pixels: usize, out: &mut [T]) {
    let pitch = maps.iter().map(|&(_, channels)| channels).sum::<usize>();
    assert_eq!(out.len(), elements([pixels, pitch]));
    for &(map, channels) in maps {
        assert_eq!(map.len(), pixels * channels);
    }
    let out = DisjointSlice::new(out);
    parts(pixels, pitch, |pixels| {
        // SAFETY: each task accesses its own pixels only.
        let out = unsafe { out.range(pixels.start * pitch..pixels.end * pitch) };
        let mut offset = 0;
        for &(map, channels) in maps {
            for (index, pixel) in pixels.clone().enumerate() {
                let start = index * pitch + offset;
                out[start..start + channels].copy_from_slice(&map[pixel * channels..(pixel + 1) * channels]);
            }
            offset += channels;
        }
    });
}

/// Copies the channels `offset..offset + channels` of `[pixels, pitch]` to `[pixels, channels]`.
pub fn slice(x: &[f32], pitch: usize, offset: usize, channels: usize, out: &mut [f32]) {
    assert!(
        offset.checked_add(channels).is_some_and(|end| end <= pitch),
        "{channels} channels from {offset} on of {pitch}"
    );
    if channels == 0 {
        return;
    }
    let pixels = out.len() / channels;
    assert_eq!((out.len(), x.len()), (pixels * channels, pixels * pitch));
    let out = DisjointSlice::new(out);
    parts(pixels, channels, |pixels| {
        // SAFETY: each task accesses its own pixels only.
        let out = unsafe { out.range(pixels.start * channels..pixels.end * channels) };
        for (index, pixel) in pixels.enumerate() {
            let start = pixel * pitch + offset;
            out[index * channels..(index + 1) * channels].copy_from_slice(&x[start..start + channels]);
        }
    });
}

/// Adds `x` to `y`.
pub fn add(x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    let y = DisjointSlice::new(y);
    parts(x.len(), 1, |range| {
        // SAFETY: each task accesses its own range only.
        let y = unsafe { y.range(range.clone()) };
        Arch::new().dispatch(Add { x: &x[range], y });
    });
}

struct Add<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
}

impl WithSimd for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (x, x_tail) = S::as_simd_f32s(self.x);
        let (y, y_tail) = S::as_mut_simd_f32s(self.y);
        for (x, y) in x.iter().zip(y) {
            *y = simd.add_f32s(*x, *y);
        }
        for (x, y) in x_tail.iter().zip(y_tail) {
            *y += x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::Random, *};

    #[test]
    fn what_is_joined_comes_apart_again() {
        let mut random = Random::new(1);
        for pixels in [0, 1, 7, 333, 1600] {
            let channels = [5, 1, 64, 24];
            let maps = channels.map(|channels| random.floats(pixels * channels));
            let mut joined = vec![f32::NAN; pixels * 94];
            let parts = [0, 1, 2, 3].map(|i| (maps[i].as_slice(), channels[i]));
            cat(&parts, pixels, &mut joined);
            let mut offset = 0;
            for (map, channels) in parts {
                for (pixel, channel) in (0..pixels * channels).map(|i| (i / channels, i % channels)) {
                    assert_eq!(joined[pixel * 94 + offset + channel], map[pixel * channels + channel]);
                }
                let mut taken = vec![f32::NAN; map.len()];
                slice(&joined, 94, offset, channels, &mut taken);
                assert_eq!(taken, map);
                offset += channels;
            }
        }
    }

    #[test]
    fn sums_are_exact() {
        let mut random = Random::new(2);
        for len in [0, 1, 15, 100, 70_001] {
            let (x, mut y) = (random.floats(len), random.floats(len));
            let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
            add(&x, &mut y);
            assert_eq!(y, expected);
        }
    }
}
