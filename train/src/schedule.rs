//! The learning rate of each step: a function of the step alone, so that a run resumes at any.

use burn::optim::{
    LearningRate,
    lr_scheduler::{LrScheduler, LrSchedulerRecord},
};

use crate::recipe::{Decay, Schedule};

/// A schedule for a run of a known length; Burn's learner steps it.
#[derive(Debug, Clone)]
pub struct Rates {
    shape: Shape,
    /// The factor of the parameters that it belongs to.
    factor: f64,
    /// The next step, from 0.
    step: u64,
}

#[derive(Debug, Clone)]
enum Shape {
    Recipe {
        schedule: Schedule,
        steps_per_epoch: u64,
        steps: u64,
    },
    /// From `low` to `high`, by the same factor each step: the range test of the rate finder.
    Sweep {
        low: f64,
        high: f64,
        steps: u64,
    },
}

impl Rates {
    /// The recipe's schedule over `epochs` epochs of `steps_per_epoch` steps.
    pub fn new(schedule: &Schedule, epochs: usize, steps_per_epoch: u64) -> Self {
        let steps = epochs as u64 * steps_per_epoch;
        let shape = Shape::Recipe { schedule: schedule.clone(), steps_per_epoch, steps };
        Self { shape, factor: 1.0, step: 0 }
    }

    /// Rates from `low` to `high` over so many steps.
    pub fn sweep(low: f64, high: f64, steps: u64) -> Self {
        Self { shape: Shape::Sweep { low, high, steps }, factor: 1.0, step: 0 }
    }

    /// The same, times `factor`.
    pub fn scaled(&self, factor: f64) -> Self {
        Self { factor: self.factor * factor, ..self.clone() }
    }

    /// The same, beginning with `step`.
    pub fn starting_at(&self, step: u64) -> Self {
        Self { step, ..self.clone() }
    }

    /// The rate of `step`, from 0.
    pub fn at(&self, step: u64) -> f64 {
        self.factor
            * match &self.shape {
                Shape::Recipe { schedule, steps_per_epoch, steps } => rate(schedule, *steps_per_epoch, *steps, step),
                Shape::Sweep { low, high, steps } => {
                    low * (high / low).powf(step as f64 / steps.saturating_sub(1).max(1) as f64)
                }
            }
    }
}

/// The rate of `step` of `steps`. The warm-up reaches the full rate with its last step, as PyTorch's training
/// references do; what follows begins there.
fn rate(schedule: &Schedule, steps_per_epoch: u64, steps: u64, step: u64) -> f64 {
    let full = schedule.learning_rate;
    let warmup = (schedule.warmup_epochs * steps_per_epoch as f64) as u64;
    if step < warmup {
        let start = schedule.warmup_start;
        return full * (start + (1.0 - start) * (step + 1) as f64 / warmup as f64);
    }
    let done = (step - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64;
    let end = schedule.end.unwrap_or(0.0);
    let half_cosine =
        |from: f64, to: f64, done: f64| to + (from - to) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
    full * match schedule.decay {
        Decay::Constant => 1.0,
        Decay::Cosine => half_cosine(1.0, end, done.min(1.0)),
        Decay::Polynomial => end + (1.0 - end) * (1.0 - done).max(0.0).powf(schedule.power.unwrap_or(1.0)),
        Decay::Steps => {
            let epoch = step as f64 / steps_per_epoch.max(1) as f64;
            let passed = schedule.milestones.iter().filter(|&&milestone| epoch >= milestone).count();
            schedule.gamma.unwrap_or(0.1).powi(passed as i32)
        }
        // PyTorch's OneCycleLR: both parts are cosines, the last step has the lowest rate.
        Decay::OneCycle => {
            let (first, last) = (1.0 / 25.0, 1.0 / 25.0 / 1e4);
            let top = (0.3 * steps as f64 - 1.0).max(0.0);
            let step = step as f64;
            if step <= top {
                half_cosine(first, 1.0, if top > 0.0 { step / top } else { 1.0 })
            } else {
                half_cosine(1.0, last, ((step - top) / (steps as f64 - 1.0 - top).max(1.0)).min(1.0))
            }
        }
    }
}

impl LrScheduler for Rates {
    fn step(&mut self) -> LearningRate {
        let rate = self.at(self.step);
        self.step += 1;
        rate
    }

    fn to_record(&self) -> LrSchedulerRecord {
        LrSchedulerRecord::new().with_scalar("step", self.step)
    }

    fn load_record(&mut self, record: LrSchedulerRecord) {
        self.step = record.scalar("step").unwrap_or(self.step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::{Overrides, load};

    fn schedule(changes: &[&str]) -> Schedule {
        let mut overrides = Overrides::default();
        changes.iter().for_each(|change| overrides.parse(change).unwrap());
        load("digits", &overrides).unwrap().schedule
    }

    fn close(rates: &Rates, expected: &[(u64, f64)]) {
        for &(step, expected) in expected {
            assert!((rates.at(step) - expected).abs() < 1e-9, "step {step}: {} not {expected}", rates.at(step));
        }
    }

    #[test]
    fn the_rate_warms_up_to_its_full_height_and_follows_a_cosine_down() {
        let rates = Rates::new(&schedule(&[]), 12, 10);
        close(&rates, &[(0, 0.01), (9, 0.1), (10, 0.1), (65, 0.05)]);
        assert!(rates.at(119) < 1e-4);
        let mut stepped = rates.starting_at(65);
        assert_eq!(stepped.step(), rates.at(65));
        assert_eq!(stepped.step(), rates.at(66));
        close(&rates.scaled(0.5), &[(9, 0.05)]);
    }

    #[test]
    fn steps_fall_at_their_milestones_and_polynomials_reach_their_end() {
        let steps = ["schedule.decay=steps", "schedule.milestones=[2, 4]", "schedule.warmup_epochs=0"];
        close(&Rates::new(&schedule(&steps), 6, 10), &[(0, 0.1), (19, 0.1), (20, 0.01), (40, 0.001), (59, 0.001)]);
        let root = ["schedule.decay=polynomial", "schedule.power=0.5", "schedule.warmup_epochs=0"];
        close(&Rates::new(&schedule(&root), 10, 10), &[(0, 0.1), (75, 0.05)]);
    }

    #[test]
    fn one_cycle_is_pytorch_s() {
        // torch.optim.lr_scheduler.OneCycleLR(SGD, max_lr=0.1, total_steps=20), steps 0, 3, 5, 12, 19.
        let cycle = ["schedule.decay=one_cycle", "schedule.warmup_epochs=0"];
        let expected = [(0, 0.004), (5, 0.1), (12, 0.05000020), (19, 4e-7)];
        close(&Rates::new(&schedule(&cycle), 2, 10), &expected);
    }

    #[test]
    fn a_sweep_rises_by_a_constant_factor() {
        close(&Rates::sweep(1e-4, 1.0, 5), &[(0, 1e-4), (1, 1e-3), (4, 1.0)]);
    }
}
