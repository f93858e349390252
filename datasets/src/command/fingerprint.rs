//! Duplicates: exact ones by bytes, near ones by a perceptual hash.

use std::collections::HashMap;

use image::RgbImage;

/// A perceptual hash of 128 bits: the difference hash (dHash) along rows and columns. A smaller copy or one of lower
/// quality differs in a few bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PerceptualHash(u128);

impl PerceptualHash {
    /// Shrinks the image to 9 × 9 cells of mean brightness; a bit is set if a cell is brighter than the one to its
    /// right (64 bits) or below (64 bits).
    pub fn of(image: &RgbImage) -> Self {
        let cells = mean_brightness::<9>(image);
        let mut bits = 0;
        for row in 0..8 {
            for column in 0..8 {
                bits = bits << 1 | u128::from(cells[row][column] > cells[row][column + 1]);
                bits = bits << 1 | u128::from(cells[row][column] > cells[row + 1][column]);
            }
        }
        Self(bits)
    }

    /// Returns the Hamming distance.
    pub fn distance(self, other: Self) -> u32 {
        (self.0 ^ other.0).count_ones()
    }

    /// Whether the image has enough structure to be distinguished: all blank pages look alike.
    pub fn is_telling(self) -> bool {
        (16..=112).contains(&self.0.count_ones())
    }
}

/// Mean luma (ITU-R BT.601, times 1000) of the cells of an N × N grid over the image.
fn mean_brightness<const N: usize>(image: &RgbImage) -> [[u64; N]; N] {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let mut sums = [[0u64; N]; N];
    let mut counts = [[0u64; N]; N];
    if width == 0 {
        return sums;
    }
    let columns: Vec<usize> = (0..width).map(|x| x * N / width).collect();
    for (y, row) in image.as_raw().chunks_exact(3 * width).enumerate() {
        let cell_row = y * N / height;
        for (pixel, &column) in row.as_chunks::<3>().0.iter().zip(&columns) {
            let [red, green, blue] = pixel.map(u64::from);
            sums[cell_row][column] += 299 * red + 587 * green + 114 * blue;
            counts[cell_row][column] += 1;
        }
    }
    for (sum, count) in sums.iter_mut().flatten().zip(counts.iter().flatten()) {
        *sum /= (*count).max(1);
    }
    sums
}

/// Groups of two or more items that are equal, each group and the list of groups in order of the items.
pub fn equal_groups<K: Eq + std::hash::Hash>(items: impl IntoIterator<Item = (usize, K)>) -> Vec<Vec<usize>> {
    let mut groups: HashMap<K, Vec<usize>> = HashMap::new();
    for (item, key) in items {
        groups.entry(key).or_default().push(item);
    }
    let mut groups: Vec<_> = groups.into_values().filter(|group| group.len() > 1).collect();
    groups.sort_unstable();
    groups
}

/// Groups of items that are linked by at most `distance` differing bits, each group and the list of groups in order.
///
/// Two hashes that differ in at most d bits agree fully in one of d + 1 bands of bits: only those that share a band
/// are compared.
pub fn near_groups(items: &[(usize, PerceptualHash)], distance: u32) -> Vec<Vec<usize>> {
    let bands = distance + 1;
    let mut links = Links((0..items.len()).collect());
    for band in 0..bands {
        let (low, high) = (128 * band / bands, 128 * (band + 1) / bands);
        let mask = (u128::MAX >> (128 - (high - low))) << low;
        let mut buckets: HashMap<u128, Vec<usize>> = HashMap::new();
        for (i, (_, hash)) in items.iter().enumerate() {
            buckets.entry(hash.0 & mask).or_default().push(i);
        }
        for bucket in buckets.values() {
            for (index, &a) in bucket.iter().enumerate() {
                for &b in &bucket[index + 1..] {
                    if items[a].1.distance(items[b].1) <= distance {
                        links.join(a, b);
                    }
                }
            }
        }
    }
    equal_groups((0..items.len()).map(|i| (i, links.root(i))).collect::<Vec<_>>())
        .into_iter()
        .map(|group| group.into_iter().map(|i| items[i].0).collect())
        .collect()
}

/// Union-find.
struct Links(Vec<usize>);

impl Links {
    fn root(&mut self, mut item: usize) -> usize {
        while self.0[item] != item {
            self.0[item] = self.0[self.0[item]];
            item = self.0[item];
        }
        item
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b)] = a.min(b);
    }
}

#[cfg(test)]
mod tests {
    use image::{
        Rgb,
        imageops::{FilterType, resize},
    };

    use super::*;

    fn pattern(seed: u32) -> RgbImage {
        RgbImage::from_fn(120, 90, |x, y| {
            let wave = |a: u32, b: u32| (f64::from(a * (seed + 2)) / 23.0 + f64::from(b * seed) / 17.0).sin();
            let value = (127.0 + 60.0 * wave(x, y) + 60.0 * wave(y, 2 * x)) as u8;
            Rgb([value, value / 2, 255 - value])
        })
    }

    #[test]
    fn a_smaller_copy_is_near_and_another_image_is_far() {
        let image = pattern(1);
        let hash = PerceptualHash::of(&image);
        let small = PerceptualHash::of(&resize(&image, 60, 45, FilterType::Triangle));
        assert!(hash.distance(small) <= 6, "{}", hash.distance(small));
        assert!(hash.distance(PerceptualHash::of(&pattern(5))) > 20);
        assert!(hash.is_telling());
        assert!(!PerceptualHash::of(&RgbImage::new(50, 50)).is_telling());
        assert!(!PerceptualHash::of(&RgbImage::new(1, 1)).is_telling());
    }

    #[test]
    fn near_groups_link_over_steps_and_miss_nothing() {
        let base = 0x0123_4567_89ab_cdef_0f1e_2d3c_4b5a_6978_u128;
        let flip = |bits: u128| PerceptualHash(base ^ bits);
        let items = [
            (10, flip(0)),
            (11, flip(0b111 << 60)),
            // Within 3 of the one before only.
            (12, flip((0b111 << 60) | 1 | 1 << 127 | 1 << 90)),
            (13, PerceptualHash(!base)),
            (14, flip(0xffff)),
        ];
        assert_eq!(near_groups(&items, 3), [vec![10, 11, 12]]);
        assert_eq!(near_groups(&items, 2), Vec::<Vec<usize>>::new());
        assert_eq!(near_groups(&[(1, flip(0)), (2, flip(0))], 0), [vec![1, 2]]);
    }

    #[test]
    fn equal_groups_come_in_order() {
        let groups = equal_groups([(0, 'b'), (1, 'a'), (2, 'b'), (3, 'c'), (4, 'a'), (5, 'b')]);
        assert_eq!(groups, [vec![0, 2, 5], vec![1, 4]]);
    }
}
