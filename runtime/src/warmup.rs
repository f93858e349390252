//! Warm-up: the first steps on a device compile kernels and, on GPU backends, time several of them for each shape to pick
//! the fastest (autotune). They take up to minutes, and are no measure of the steps after them.

use std::collections::VecDeque;

use crate::backend::Backend;

/// Steps that have to agree.
const AGREEING: usize = 3;
/// The largest ratio of the slowest of them to the fastest.
const SPREAD: f64 = 0.1;
/// Steps that a [`Pace`] averages over.
const RECENT: usize = 200;
/// The ratio to every other recent step from which a single slow one is left out of a [`Pace`].
const OUTLIER: f64 = 5.0;

/// Finds out when the times of steps have settled: once three in a row differ by at most 10 %.
///
/// ```
/// use runtime::warmup::Warmup;
///
/// let mut warmup = Warmup::default();
/// for seconds in [60.0, 8.0, 0.51, 0.50, 0.52] {
///     assert!(!warmup.is_over());
///     warmup.record(seconds);
/// }
/// assert!(warmup.is_over() && warmup.has_settled());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Warmup {
    least: usize,
    most: usize,
    steps: usize,
    last: VecDeque<f64>,
}

impl Warmup {
    /// Expects from `least` to `most` steps, at which the warm-up is over in any case.
    pub fn new(least: usize, most: usize) -> Self {
        Self { least, most: most.max(least), steps: 0, last: VecDeque::with_capacity(AGREEING) }
    }

    /// Expects exactly `steps`, or the default number where there are none given.
    pub fn exactly(steps: Option<u32>) -> Self {
        steps.map_or_else(Self::default, |steps| Self::new(steps as usize, steps as usize))
    }

    /// A warm-up with the same bounds, before its first step.
    pub fn anew(&self) -> Self {
        Self::new(self.least, self.most)
    }

    /// Records the time of a step.
    pub fn record(&mut self, seconds: f64) {
        self.steps += 1;
        if self.last.len() == AGREEING {
            self.last.pop_front();
        }
        self.last.push_back(seconds);
    }

    /// The number of steps so far.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Returns whether the next step is no longer part of the warm-up.
    pub fn is_over(&self) -> bool {
        self.steps >= self.most || self.steps >= self.least && self.has_settled()
    }

    /// Returns whether the last three steps took the same time; later ones may then be expected to.
    pub fn has_settled(&self) -> bool {
        let fastest = self.last.iter().copied().fold(f64::INFINITY, f64::min);
        let slowest = self.last.iter().copied().fold(0.0, f64::max);
        self.last.len() == AGREEING && slowest <= fastest * (1.0 + SPREAD)
    }

    /// Returns a warning about a measurement that follows this warm-up, where its times had not settled.
    pub fn warning(&self, backend: Backend) -> Option<String> {
        if self.has_settled() {
            return None;
        }
        let cause = if autotunes(backend) {
            "kernels may still be compiling or autotuning, or the device is busy"
        } else {
            "the machine may be busy"
        };
        let last: Vec<String> = self.last.iter().map(|seconds| format!("{:.1}", 1e3 * seconds)).collect();
        Some(format!(
            "times had not settled after {} warm-up steps (the last took {} ms): {cause}; run the command again",
            self.steps,
            last.join(", ")
        ))
    }
}

impl Default for Warmup {
    /// From 3 to 30 steps.
    fn default() -> Self {
        Self::new(AGREEING, 30)
    }
}

/// Returns whether a backend picks its kernels by timing them on the device.
pub fn autotunes(backend: Backend) -> bool {
    !matches!(backend, Backend::Flex | Backend::NdArray | Backend::Tch)
}

/// The time that a step takes at present: the mean of recent steps, the warm-up and a single much slower step left out.
///
/// The mean and not the median, because slow steps may recur: those that wait for the loader, or on which a device that
/// runs behind is waited for.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pace {
    warmup: Warmup,
    recent: VecDeque<f64>,
    counted: u64,
}

impl Pace {
    /// A pace that counts the steps after `warmup`.
    pub fn after(warmup: Warmup) -> Self {
        Self { warmup, ..Self::default() }
    }

    /// Records the time of a step.
    pub fn record(&mut self, seconds: f64) {
        if !self.warmup.is_over() {
            self.warmup.record(seconds);
            return;
        }
        self.counted += 1;
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(seconds);
    }

    /// The warm-up so far.
    pub fn warmup(&self) -> &Warmup {
        &self.warmup
    }

    /// The number of steps since the warm-up.
    pub fn counted(&self) -> u64 {
        self.counted
    }

    /// Returns the seconds of a step; before the warm-up is over, those of its fastest recent step. `None` before the
    /// first step.
    pub fn seconds_per_step(&self) -> Option<f64> {
        if self.recent.is_empty() {
            return self.warmup.last.iter().copied().min_by(f64::total_cmp);
        }
        let mut times: Vec<f64> = self.recent.iter().copied().collect();
        times.sort_by(f64::total_cmp);
        if let [.., second, slowest] = times[..]
            && slowest > OUTLIER * second
        {
            times.pop();
        }
        Some(times.iter().sum::<f64>() / times.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps_until_over(mut warmup: Warmup, times: impl IntoIterator<Item = f64>) -> usize {
        for seconds in times {
            if warmup.is_over() {
                break;
            }
            warmup.record(seconds);
        }
        warmup.steps()
    }

    #[test]
    fn the_warm_up_lasts_until_three_steps_take_the_same_time() {
        let autotune = [90.0, 20.0, 4.0, 0.9, 0.5, 0.52, 0.51, 0.5, 0.5];
        assert_eq!(steps_until_over(Warmup::default(), autotune), 7);
        assert_eq!(steps_until_over(Warmup::default(), [1.0; 9]), 3);
        assert_eq!(steps_until_over(Warmup::new(5, 9), [1.0; 9]), 5);
    }

    #[test]
    fn a_slow_step_between_fast_ones_is_not_settled() {
        let mut warmup = Warmup::default();
        [1.0, 1.0, 30.0].into_iter().for_each(|seconds| warmup.record(seconds));
        assert!(!warmup.is_over());
        [1.0, 1.0].into_iter().for_each(|seconds| warmup.record(seconds));
        assert!(!warmup.is_over());
        warmup.record(1.05);
        assert!(warmup.is_over());
    }

    #[test]
    fn the_warm_up_is_bounded_and_then_warned_about() {
        let erratic = || (0..).map(|step| f64::from(1 + step % 2));
        assert_eq!(steps_until_over(Warmup::default(), erratic()), 30);
        let mut warmup = Warmup::exactly(Some(4));
        erratic().take(4).for_each(|seconds| warmup.record(seconds));
        assert!(warmup.is_over() && !warmup.has_settled());
        let warning = warmup.warning(Backend::Cuda).unwrap();
        assert!(warning.contains("after 4 warm-up steps (the last took 2000.0, 1000.0, 2000.0 ms)"), "{warning}");
        assert!(warning.contains("autotuning"), "{warning}");
        assert!(!warmup.warning(Backend::Flex).unwrap().contains("autotuning"));
    }

    #[test]
    fn fewer_steps_than_have_to_agree_are_not_settled() {
        let mut warmup = Warmup::exactly(Some(1));
        warmup.record(1.0);
        assert!(warmup.is_over() && warmup.warning(Backend::Cuda).is_some());
        assert!(Warmup::exactly(Some(0)).is_over());
    }

    #[test]
    fn a_settled_warm_up_needs_no_warning() {
        let mut warmup = Warmup::default();
        [5.0, 1.0, 1.01, 1.02].into_iter().for_each(|seconds| warmup.record(seconds));
        assert_eq!(warmup.warning(Backend::Vulkan), None);
    }

    #[test]
    fn the_pace_leaves_the_warm_up_out() {
        let mut pace = Pace::default();
        assert_eq!(pace.seconds_per_step(), None);
        pace.record(120.0);
        assert_eq!(pace.seconds_per_step(), Some(120.0));
        [10.0, 0.5, 0.5, 0.5].into_iter().for_each(|seconds| pace.record(seconds));
        assert_eq!((pace.seconds_per_step(), pace.counted()), (Some(0.5), 0));
        [0.25, 0.75].into_iter().for_each(|seconds| pace.record(seconds));
        assert_eq!((pace.seconds_per_step(), pace.counted()), (Some(0.5), 2));
    }

    #[test]
    fn the_pace_leaves_one_much_slower_step_out_but_not_recurring_ones() {
        let settled = || {
            let mut pace = Pace::default();
            (0..3).for_each(|_| pace.record(1.0));
            pace
        };
        // The last, smaller batch of the first epoch is tuned.
        let mut pace = settled();
        (0..50).for_each(|step| pace.record(if step == 40 { 60.0 } else { 1.0 }));
        assert_eq!(pace.seconds_per_step(), Some(1.0));
        // Every tenth step waits for the loader.
        let mut pace = settled();
        (0..50).for_each(|step| pace.record(if step % 10 == 9 { 60.0 } else { 1.0 }));
        assert!((pace.seconds_per_step().unwrap() - 6.9).abs() < 1e-9);
    }

    #[test]
    fn the_pace_follows_a_change() {
        let mut pace = Pace::default();
        (0..300).for_each(|_| pace.record(1.0));
        (0..RECENT).for_each(|_| pace.record(2.0));
        assert_eq!((pace.seconds_per_step(), pace.recent.len()), (Some(2.0), RECENT));
    }
}
