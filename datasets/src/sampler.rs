//! The order of an epoch: a pure function of (seed, epoch, position).
//!
//! There is no state between positions, so an epoch may start anywhere in O(1), and shards of an epoch need no
//! communication between ranks.

use crate::{Error, Result, Source};

/// The order of an epoch's samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// The source's order, for evaluation.
    #[default]
    Sequential,
    /// A full shuffle, different in each epoch: for sources with cheap random access.
    Shuffled,
    /// For sources that are fastest when read in sequence (archives on slow disks or remote): runs of `run` consecutive
    /// samples are shuffled, then samples within windows of `window`.
    Windowed {
        /// Consecutive samples that stay together, a shard's worth.
        run: usize,
        /// Samples shuffled among themselves; several runs' worth mixes classes well.
        window: usize,
    },
}

/// The sampling of an epoch from a source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplerOptions {
    /// The seed of all orders.
    pub seed: u64,
    /// The order.
    pub order: Order,
    /// Repeated augmentation (Hoffer et al., 2020, <https://arxiv.org/abs/1901.09335>): how often each drawn sample
    /// occurs, transformed anew each time. An epoch keeps its length, so it sees a `repeats`-th of the samples, as with
    /// torchvision's `RASampler`. The copies of a sample are spread over a batch of all ranks, so that as many processes as
    /// there are copies get one each, and no image is beside a copy of itself.
    pub repeats: usize,
    /// The size of a batch over all ranks, at least 1; only repeats depend on it.
    pub batch: usize,
    /// How far classes are balanced, from 0 to 1: a class of `n` samples is drawn in proportion to `n` to the power of
    /// `1 - balance`. At 0 every sample occurs once; at 0.5 classes go by the square roots of their sizes (Mahajan et al.,
    /// 2018, <https://arxiv.org/abs/1805.00932>); at 1 every class is drawn equally often. Small classes repeat, large ones
    /// are seen in part. An epoch keeps its length.
    pub balance: f64,
    /// The index of this process's shard of an epoch.
    pub rank: usize,
    /// The number of shards.
    pub world: usize,
    /// Whether the remainder of an epoch that `world` does not divide is dropped; otherwise the first samples are
    /// repeated (`false`). Shards have equal size either way.
    pub drop_last: bool,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            order: Order::Sequential,
            repeats: 1,
            batch: 1,
            balance: 0.0,
            rank: 0,
            world: 1,
            drop_last: false,
        }
    }
}

/// One position's sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Draw {
    /// The index into the source.
    pub index: usize,
    /// The number of earlier occurrences in this epoch, on which the random choices of its transforms depend.
    pub repeat: usize,
}

/// Draws epochs from a source.
#[derive(Debug)]
pub struct Sampler {
    options: SamplerOptions,
    /// Samples in the source, which is also the epoch's length over all ranks.
    total: usize,
    share: usize,
    classes: Option<ClassIndex>,
}

impl Sampler {
    /// Creates a sampler over `source`.
    ///
    /// # Errors
    /// [`Error::InvalidLoader`] for options that contradict each other or the source.
    pub fn new(source: &dyn Source, options: SamplerOptions) -> Result<Self> {
        let SamplerOptions { order, repeats, balance, rank, world, drop_last, .. } = options;
        let invalid = |what: String| Err(Error::InvalidLoader { what });
        let total = source.len();
        if total == 0 {
            return invalid("the source holds no samples; check its path".into());
        }
        if world == 0 || rank >= world {
            return invalid(format!("rank {rank} of {world}: ranks count from 0 and end below the world's size"));
        }
        if repeats == 0 {
            return invalid("0 repeats would draw nothing; 1 means no repetition".into());
        }
        if options.batch == 0 {
            return invalid("a batch has at least 1 sample".into());
        }
        if !(0.0..=1.0).contains(&balance) {
            return invalid(format!("balance is {balance}; it goes from 0 to 1"));
        }
        if order != Order::Shuffled && (balance > 0.0 || repeats > 1) {
            return invalid("repeats and class-balanced sampling need the shuffled order".into());
        }
        if let Order::Windowed { run, window } = order
            && (run == 0 || window == 0)
        {
            return invalid("a windowed shuffle needs a run and a window of at least 1".into());
        }
        let share = if drop_last { total / world } else { total.div_ceil(world) };
        let classes = if balance > 0.0 { Some(ClassIndex::new(source, balance)?) } else { None };
        Ok(Self { options, total, share, classes })
    }

    /// The number of positions in this rank's shard of an epoch.
    pub fn len(&self) -> usize {
        self.share
    }

    /// Whether this rank's shard is empty.
    pub fn is_empty(&self) -> bool {
        self.share == 0
    }

    /// The number of the draw at a position of the epoch, and which of its copies is there. A batch holds the first copies
    /// of its samples, then the second copies in the same order, and so on.
    fn copy(&self, position: usize) -> (usize, usize) {
        let SamplerOptions { repeats, batch, .. } = self.options;
        if repeats == 1 {
            return (position, 0);
        }
        // Where a batch is too small for all copies of two samples, several make a block.
        let block = batch.saturating_mul(repeats.saturating_mul(2).div_ceil(batch));
        let (before, slot) = (position - position % block, position % block);
        let draws = before / block * distinct(block, repeats, batch);
        let samples = distinct(block.min(self.total - before), repeats, batch);
        (draws + slot % samples, slot / samples)
    }

    /// The order of one epoch.
    pub fn epoch(&self, epoch: u64) -> EpochOrder<'_> {
        let key = hash(&[self.options.seed, epoch]);
        EpochOrder { sampler: self, key, permutation: Permutation::new(self.total, key) }
    }
}

/// The order of one epoch; see [`Sampler::epoch`].
#[derive(Debug)]
pub struct EpochOrder<'a> {
    sampler: &'a Sampler,
    key: u64,
    permutation: Permutation,
}

impl EpochOrder<'_> {
    /// Returns the sample at `position` of this rank's shard, in O(1).
    ///
    /// # Panics
    /// Panics if `position` is not below [`Sampler::len`].
    pub fn at(&self, position: usize) -> Draw {
        let Sampler { options, total, share, classes } = self.sampler;
        assert!(position < *share, "position {position} of {share}");
        let global = match options.order {
            // Each rank has its own stretch, so adjacent ranks read adjacent runs.
            Order::Windowed { .. } => options.rank * share + position,
            _ => position * options.world + options.rank,
        } % total;
        let (draw, repeat) = self.sampler.copy(global);
        if let Some(classes) = classes {
            let (index, round) = match classes.quotas {
                None => classes.draw(draw, self.key),
                Some(_) => classes.draw_by_quota(self.permutation.at(draw), self.key),
            };
            return Draw { index, repeat: round * options.repeats + repeat };
        }
        let index = match options.order {
            Order::Sequential => draw,
            Order::Shuffled => self.permutation.at(draw),
            Order::Windowed { run, window } => self.windowed(draw, run, window),
        };
        Draw { index, repeat }
    }

    /// Shuffles within the window around `position`, then looks up the position in the sequence of shuffled runs.
    fn windowed(&self, position: usize, run: usize, window: usize) -> usize {
        let total = self.sampler.total;
        let first = position - position % window;
        let width = window.min(total - first);
        let key = hash(&[self.key, 1, first as u64]);
        let slot = first + Permutation::new(width, key).at(position - first);

        // Only full runs are permuted; a rotation moves their boundaries, and the rest, from epoch to epoch.
        let full = total / run;
        let shuffled = if slot / run < full {
            Permutation::new(full, hash(&[self.key, 2])).at(slot / run) * run + slot % run
        } else {
            slot
        };
        let rotation = hash(&[self.key, 3]) % total as u64;
        (shuffled + rotation as usize) % total
    }
}

/// The number of samples in a block of `size` positions, each of which occurs up to `repeats` times, in turn. It is such that
/// the first and the last position of each batch have different samples, as neighbors have: mixing goes around.
fn distinct(size: usize, repeats: usize, batch: usize) -> usize {
    let differ = |length: usize, samples: usize| length <= 1 || !(length - 1).is_multiple_of(samples);
    let least = size.div_ceil(repeats);
    (least..size).find(|&samples| differ(batch.min(size), samples) && differ(size % batch, samples)).unwrap_or(size)
}

/// The samples of each class, one after the other.
#[derive(Debug)]
struct ClassIndex {
    /// Sample indices, sorted by class.
    samples: Vec<u32>,
    /// The non-empty classes' ranges in `samples`.
    ranges: Vec<(u32, u32)>,
    /// The end of each class's draws among those of an epoch; `None` where all have equally many.
    quotas: Option<Vec<u32>>,
}

impl ClassIndex {
    fn new(source: &dyn Source, balance: f64) -> Result<Self> {
        let count = u32::try_from(source.len()).map_err(|_| Error::InvalidLoader {
            what: format!("class-balanced sampling holds up to {} samples, not {}", u32::MAX, source.len()),
        })?;
        let mut starts = vec![0u32; source.classes().len() + 1];
        let label = |index: u32| match source.label(index as usize) {
            Some(label) if (label as usize) < source.classes().len() => Ok(label as usize),
            _ => Err(Error::InvalidLoader {
                what: format!(
                    "class-balanced sampling needs a label for every sample; {} has none",
                    source.key(index as usize)
                ),
            }),
        };
        for index in 0..count {
            starts[label(index)? + 1] += 1;
        }
        for class in 1..starts.len() {
            starts[class] += starts[class - 1];
        }
        let mut samples = vec![0; count as usize];
        let mut next = starts.clone();
        for index in 0..count {
            let next_slot = &mut next[label(index)?];
            samples[*next_slot as usize] = index;
            *next_slot += 1;
        }
        let ranges: Vec<(u32, u32)> =
            starts.windows(2).map(|pair| (pair[0], pair[1])).filter(|(start, end)| start < end).collect();
        let quotas = (balance < 1.0).then(|| quotas(&ranges, balance));
        Ok(Self { samples, ranges, quotas })
    }

    /// Returns the `position`-th draw and how often its sample was drawn before: each stretch of `classes` draws has
    /// each class once, and a class repeats no sample before all of its samples were drawn.
    fn draw(&self, position: usize, key: u64) -> (usize, usize) {
        let classes = self.ranges.len();
        let (stretch, offset) = (position / classes, position % classes);
        let class = Permutation::new(classes, hash(&[key, 4, stretch as u64])).at(offset);
        let (start, end) = self.ranges[class];
        let size = (end - start) as usize;
        let (round, offset) = (stretch / size, stretch % size);
        let member = Permutation::new(size, hash(&[key, 5, class as u64, round as u64])).at(offset);
        (self.samples[start as usize + member] as usize, round)
    }
}

impl ClassIndex {
    /// Returns the draw of a slot of the epoch, and how often its sample was drawn before. Each class has a stretch of slots,
    /// and repeats no sample in it before all of its samples were drawn.
    fn draw_by_quota(&self, slot: usize, key: u64) -> (usize, usize) {
        let ends = self.quotas.as_deref().unwrap_or_default();
        let class = ends.partition_point(|&end| end as usize <= slot);
        let first = class.checked_sub(1).map_or(0, |before| ends[before] as usize);
        let (start, end) = self.ranges[class];
        let size = (end - start) as usize;
        let (round, offset) = ((slot - first) / size, (slot - first) % size);
        let member = Permutation::new(size, hash(&[key, 5, class as u64, round as u64])).at(offset);
        (self.samples[start as usize + member] as usize, round)
    }
}

/// The ends of the classes' draws: as many in all as there are samples, by largest remainders.
fn quotas(ranges: &[(u32, u32)], balance: f64) -> Vec<u32> {
    let sizes = || ranges.iter().map(|(start, end)| end - start);
    let total: u32 = sizes().sum();
    let weights: Vec<f64> = sizes().map(|size| libm::pow(f64::from(size), 1.0 - balance)).collect();
    let sum: f64 = weights.iter().sum();
    let exact = |class: usize| weights[class] / sum * f64::from(total);
    let mut draws: Vec<u32> = (0..ranges.len()).map(|class| exact(class) as u32).collect();
    let mut by_remainder: Vec<usize> = (0..ranges.len()).collect();
    by_remainder.sort_by(|&a, &b| (exact(b) % 1.0).total_cmp(&(exact(a) % 1.0)).then(a.cmp(&b)));
    let missing = total.saturating_sub(draws.iter().sum());
    by_remainder.iter().cycle().take(missing as usize).for_each(|&class| draws[class] += 1);
    let mut end = 0;
    draws.iter_mut().for_each(|draws| {
        end += *draws;
        *draws = end;
    });
    draws
}

/// A random permutation of `0..len` in constant memory: the swap-or-not shuffle (Hoang, Morris and Rogaway, 2012,
/// <https://arxiv.org/abs/1208.1176>) computes each position independently.
///
/// Each round pairs the positions that sum to a random constant and swaps them with probability ½.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Permutation {
    len: u64,
    key: u64,
}

impl Permutation {
    /// Ample: mixing takes a few times log2(len) rounds.
    const ROUNDS: u64 = 64;

    pub(crate) fn new(len: usize, key: u64) -> Self {
        Self { len: len as u64, key }
    }

    pub(crate) fn at(&self, index: usize) -> usize {
        let mut index = index as u64;
        debug_assert!(index < self.len);
        for round in 0..Self::ROUNDS {
            let round_key = mix(self.key ^ round.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let sum = round_key % self.len;
            let partner = if sum >= index { sum - index } else { sum + self.len - index };
            if mix(round_key ^ index.max(partner)) >> 63 == 1 {
                index = partner;
            }
        }
        index as usize
    }
}

/// Mixes numbers into one; every bit of the result depends on every bit of each, and on their order.
pub(crate) fn hash(words: &[u64]) -> u64 {
    words.iter().fold(0x6a09_e667_f3bc_c908, |state, &word| mix(mix(state) ^ word.wrapping_add(0x9e37_79b9_7f4a_7c15)))
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use super::*;
    use crate::loader::testing::Counting;

    fn sampler(total: usize, options: SamplerOptions) -> Sampler {
        Sampler::new(&Counting::new(total), options).unwrap()
    }

    fn indices(sampler: &Sampler, epoch: u64) -> Vec<usize> {
        let order = sampler.epoch(epoch);
        (0..sampler.len()).map(|position| order.at(position).index).collect()
    }

    fn sorted(mut indices: Vec<usize>) -> Vec<usize> {
        indices.sort_unstable();
        indices
    }

    #[test]
    fn permutations_hold_every_place_once() {
        for len in [1, 2, 3, 7, 64, 1000] {
            for key in 0..5 {
                let permutation = Permutation::new(len, key);
                assert_eq!(sorted((0..len).map(|index| permutation.at(index)).collect()), (0..len).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn all_permutations_of_four_are_about_equally_likely() {
        let mut counts = BTreeMap::new();
        let trials = 24_000;
        for key in 0..trials {
            let permutation = Permutation::new(4, hash(&[key]));
            *counts.entry([0, 1, 2, 3].map(|index| permutation.at(index))).or_insert(0.0) += 1.0;
        }
        assert_eq!(counts.len(), 24);
        let expected = trials as f64 / 24.0;
        let chi_squared: f64 = counts.values().map(|count: &f64| (count - expected).powi(2) / expected).sum();
        // 23 degrees of freedom: the 99.9th percentile is 49.7.
        assert!(chi_squared < 49.7, "{chi_squared}");
    }

    #[test]
    fn neighbors_do_not_stay_neighbors() {
        let permutation = Permutation::new(10_000, 3);
        let close = (0..9_999).filter(|&i| permutation.at(i).abs_diff(permutation.at(i + 1)) <= 10).count();
        // 20 in 10,000 by chance.
        assert!(close < 50, "{close}");
    }

    #[test]
    fn every_order_shows_each_sample_once_and_epochs_differ() {
        for order in [Order::Shuffled, Order::Windowed { run: 10, window: 64 }] {
            let sampler = sampler(1003, SamplerOptions { order, ..Default::default() });
            let [first, second] = [0, 1].map(|epoch| indices(&sampler, epoch));
            assert_ne!(first, second);
            for epoch in [first, second] {
                assert_eq!(sorted(epoch), (0..1003).collect::<Vec<_>>(), "{order:?}");
            }
        }
        assert_eq!(indices(&sampler(5, SamplerOptions::default()), 3), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn windowed_order_reads_few_runs_at_a_time() {
        let order = Order::Windowed { run: 50, window: 200 };
        let sampler = sampler(10_000, SamplerOptions { order, ..Default::default() });
        for window in indices(&sampler, 7).chunks(200) {
            // Four runs, each of which may straddle two stretches of 50.
            let stretches: HashSet<_> = window.iter().map(|index| index / 50).collect();
            assert!(stretches.len() <= 9, "{}", stretches.len());
        }
    }

    #[test]
    fn shares_are_equal_and_together_hold_each_sample() {
        for order in [Order::Sequential, Order::Shuffled, Order::Windowed { run: 3, window: 10 }] {
            for drop_last in [false, true] {
                let shares: Vec<_> = (0..4)
                    .map(|rank| {
                        let options = SamplerOptions { order, rank, world: 4, drop_last, ..Default::default() };
                        indices(&sampler(103, options), 2)
                    })
                    .collect();
                let expected = if drop_last { 25 } else { 26 };
                assert!(shares.iter().all(|share| share.len() == expected), "{order:?}");
                let distinct: HashSet<_> = shares.iter().flatten().collect();
                assert_eq!(distinct.len(), if drop_last { 100 } else { 103 }, "{order:?}");
            }
        }
    }

    #[test]
    fn repeats_keep_the_epoch_s_length_and_count_up() {
        let options = SamplerOptions { order: Order::Shuffled, repeats: 3, batch: 6, ..Default::default() };
        let sampler = sampler(12, options);
        assert_eq!(sampler.len(), 12);
        let order = sampler.epoch(0);
        let draws: Vec<_> = (0..12).map(|position| order.at(position)).collect();
        assert_eq!(draws.iter().map(|draw| draw.index).collect::<HashSet<_>>().len(), 4);
        for batch in draws.chunks(6) {
            let [a, b] = [batch[0].index, batch[1].index];
            assert_eq!(batch.iter().map(|draw| draw.index).collect::<Vec<_>>(), [a, b, a, b, a, b]);
            assert_eq!(batch.iter().map(|draw| draw.repeat).collect::<Vec<_>>(), [0, 0, 1, 1, 2, 2]);
        }
    }

    #[test]
    fn copies_are_in_one_batch_and_never_neighbors_there() {
        for (total, batch, repeats) in
            (2..40).flat_map(|total| (2..14).flat_map(move |batch| (2..7).map(move |repeats| (total, batch, repeats))))
        {
            let what = format!("{total} samples, batches of {batch}, {repeats} repeats");
            let options = SamplerOptions { order: Order::Shuffled, repeats, batch, ..Default::default() };
            let sampler = sampler(total, options);
            let order = sampler.epoch(3);
            let draws: Vec<_> = (0..total).map(|position| order.at(position)).collect();
            assert_eq!(draws.iter().collect::<HashSet<_>>().len(), total, "{what}: copies are numbered");
            assert!(draws.iter().all(|draw| draw.repeat < repeats), "{what}");
            for batch in draws.chunks(batch).filter(|batch| batch.len() > 1) {
                for (at, draw) in batch.iter().enumerate() {
                    assert_ne!(draw.index, batch[(at + 1) % batch.len()].index, "{what}: {batch:?}");
                }
            }
            let images: HashSet<_> = draws.iter().map(|draw| draw.index).collect();
            let is_whole = total.is_multiple_of(batch * (2 * repeats).div_ceil(batch));
            assert!(!is_whole || images.len() * repeats <= 3 * total, "{what}: {} images", images.len());
        }
    }

    #[test]
    fn balanced_epochs_show_each_class_equally_often() {
        // Classes of 1, 10 and 89 samples, and an empty one.
        let labels: Vec<u32> = (0..100)
            .map(|i| {
                if i == 0 {
                    0
                } else if i < 11 {
                    1
                } else {
                    3
                }
            })
            .collect();
        let source = Counting::with_labels(labels.clone());
        let options = SamplerOptions { order: Order::Shuffled, balance: 1.0, ..Default::default() };
        let sampler = Sampler::new(&source, options).unwrap();
        let order = sampler.epoch(0);
        let mut per_class = [0; 4];
        let mut seen = HashSet::new();
        for position in 0..99 {
            let draw = order.at(position);
            per_class[labels[draw.index] as usize] += 1;
            assert!(seen.insert(draw), "a sample came again with the same repeat number");
        }
        assert_eq!(per_class, [33, 33, 0, 33]);
        // The large class repeats nothing within the 33.
        assert_eq!(
            seen.iter().filter(|draw| labels[draw.index] == 3).map(|d| d.index).collect::<HashSet<_>>().len(),
            33
        );
    }

    #[test]
    fn partly_balanced_epochs_show_classes_by_powers_of_their_sizes() {
        // Classes of 4, 16 and 100 samples, and an empty one: their square roots are 2, 4 and 10.
        let labels: Vec<u32> = (0..120).map(|i| if i < 4 { 0 } else { 1 + 2 * u32::from(i >= 20) }).collect();
        let source = Counting::with_labels(labels.clone());
        for (balance, expected) in [(0.5, [15, 30, 0, 75]), (0.25, [8, 23, 0, 89]), (1e-9, [4, 16, 0, 100])] {
            let options = SamplerOptions { order: Order::Shuffled, balance, seed: 3, ..Default::default() };
            let sampler = Sampler::new(&source, options).unwrap();
            for epoch in 0..3 {
                let order = sampler.epoch(epoch);
                let draws: Vec<Draw> = (0..120).map(|position| order.at(position)).collect();
                let mut per_class = [0; 4];
                draws.iter().for_each(|draw| per_class[labels[draw.index] as usize] += 1);
                assert_eq!(per_class, expected, "{balance}");
                assert_eq!(draws.iter().collect::<HashSet<_>>().len(), 120, "a sample came again with the same repeat");
                // No sample comes a second time before all of its class came once.
                let first: HashSet<usize> = draws.iter().map(|draw| draw.index).collect();
                for (class, size) in [(0, 4), (1, 16), (3, 100)] {
                    let seen = first.iter().filter(|index| labels[**index] == class).count();
                    assert_eq!(seen, size.min(expected[class as usize]), "{balance}: class {class}");
                }
                // Classes are spread over the epoch.
                let early = draws[..60].iter().filter(|draw| labels[draw.index] == 3).count();
                assert!((expected[3] / 2 - 15..=expected[3] / 2 + 15).contains(&early), "{early} of {}", expected[3]);
            }
            // Ranks share the epoch out.
            let whole: Vec<usize> = indices(&sampler, 0);
            let of_rank = |rank| Sampler::new(&source, SamplerOptions { rank, world: 2, ..options }).unwrap();
            let (even, odd) = (indices(&of_rank(0), 0), indices(&of_rank(1), 0));
            assert_eq!(whole, (0..60).flat_map(|at| [even[at], odd[at]]).collect::<Vec<_>>());
        }
    }

    #[test]
    fn contradictions_are_named() {
        let cases = [
            (SamplerOptions { rank: 2, world: 2, ..Default::default() }, "rank 2 of 2"),
            (SamplerOptions { repeats: 0, ..Default::default() }, "0 repeats"),
            (SamplerOptions { repeats: 2, ..Default::default() }, "shuffled"),
            (SamplerOptions { balance: 1.0, ..Default::default() }, "shuffled"),
            (SamplerOptions { balance: 0.5, ..Default::default() }, "shuffled"),
            (SamplerOptions { balance: 1.5, ..Default::default() }, "from 0 to 1"),
            (SamplerOptions { balance: f64::NAN, ..Default::default() }, "from 0 to 1"),
            (SamplerOptions { order: Order::Windowed { run: 0, window: 1 }, ..Default::default() }, "at least 1"),
        ];
        for (options, part) in cases {
            let message = Sampler::new(&Counting::new(4), options).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
        assert!(Sampler::new(&Counting::new(0), SamplerOptions::default()).is_err());
    }
}
