//! Which steps count: a step whose loss or gradient is not finite is discarded.
//!
//! A device of a GPU works while the host goes on, and to ask it about each step would stop both in turn. So the device
//! itself decides: [`StepCheck`] holds its verdict, by which [`Update::Guarded`] and [`select`] take a step or leave
//! everything as it was. What the host wants to know is read back for many steps at once.

use std::sync::Arc;

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::{Bool, Device, Tensor},
};

use super::optimizer::{Update, Verdict, select};
use crate::{
    classifier::Classifier,
    evaluation::{BatchScalars, MetricSums},
};

/// The loss scale of f16 at the beginning, and the steps after which a larger one is tried, as in PyTorch's `GradScaler`.
pub const LOSS_SCALE: f32 = 65536.0;
const LOSS_SCALE_STEPS: u64 = 2000;

/// The factor of the loss in f16, on the device, so that gradients stay in its range. The host computes the same from
/// what it learns of steps ([`next_loss_scale`]).
#[derive(Debug, Clone)]
pub struct LossScale {
    /// `[1]`
    value: Tensor<1>,
    /// Steps since it changed, `[1]`.
    steps: Tensor<1>,
}

/// The loss scale and the steps since it changed, after one more step.
pub fn next_loss_scale((value, steps): (f32, u64), finite: bool) -> (f32, u64) {
    match finite {
        false => (value * 0.5, 0),
        true if steps + 1 >= LOSS_SCALE_STEPS => ((value * 2.0).min(f32::MAX), 0),
        true => (value, steps + 1),
    }
}

impl LossScale {
    pub fn new((value, steps): (f32, u64), device: &Device) -> Self {
        let device = device.clone().without_autodiff();
        let scalar = |value: f32| Tensor::from_floats([value], &device);
        Self { value: scalar(value), steps: scalar(steps as f32) }
    }

    /// `[1]`
    pub fn value(&self) -> &Tensor<1> {
        &self.value
    }

    /// [`next_loss_scale`], on the device.
    pub fn update(&mut self, finite: &Tensor<1, Bool>) {
        let (value, steps) = (self.value.clone(), self.steps.clone() + 1.0);
        let is_over = steps.clone().greater_equal_elem(LOSS_SCALE_STEPS as f32);
        let grown = (value.clone() * 2.0).clamp_max(f32::MAX);
        let value = select(finite, value.clone().mask_where(is_over.clone(), grown), self.value.clone() * 0.5);
        self.steps = select(finite, steps.mask_fill(is_over, 0.0), self.steps.zeros_like());
        self.value = value;
    }
}

/// Whether a step counts, and by what its gradients are multiplied, on the device.
pub struct StepCheck {
    /// Loss and gradients are finite; the factor makes the mean of the passes of their sum, takes the loss scale out and
    /// clips.
    pub verdict: Arc<Verdict>,
    passes: Vec<BatchScalars>,
    /// The sums of squares of gradients.
    squares: Tensor<1>,
}

/// What a step came to, on the host.
#[derive(Debug, Clone, Copy)]
pub struct StepResult {
    pub reading: MetricSums,
    pub finite: bool,
    pub factor: f32,
    /// The sum of the squares of all gradients, as they are.
    pub squares: f64,
}

impl StepCheck {
    /// Checks the sum of gradients over `count` forward passes, whose squares are summed in `squares` `[n]`; `passes` are
    /// those of them that had images. Gradients are clipped to the norm `clip`.
    pub fn new(
        passes: Vec<BatchScalars>,
        squares: Tensor<1>,
        count: usize,
        scale: Option<&LossScale>,
        clip: Option<f64>,
    ) -> Self {
        let total = squares.clone().sum();
        let values = passes.iter().map(|pass| pass.values.clone()).chain([total.clone()]).collect();
        let finite = Tensor::cat(values, 0).is_finite().all();
        let mut factor = match scale {
            Some(scale) => Some((scale.value.clone() * count as f32).recip()),
            None if count > 1 => Some(total.ones_like() / count as f32),
            None => None,
        };
        if let Some(clip) = clip {
            let mean = factor.unwrap_or_else(|| total.ones_like());
            let norm = total.sqrt() * mean.clone();
            let ratio = norm.full_like(clip) / norm.clone();
            let clipped = norm.ones_like().mask_where(norm.greater_elem(clip), ratio);
            factor = Some(mean * clipped);
        }
        Self { verdict: Arc::new(Verdict { finite, factor }), passes, squares }
    }

    /// The update that the device decides on.
    pub fn update(&self) -> Update {
        Update::Guarded(self.verdict.clone())
    }

    /// Everything that the host wants to know of it: `[len]`.
    fn row(&self) -> Tensor<1> {
        let finite = self.verdict.finite.clone().float();
        let factor = self.verdict.factor.clone().unwrap_or_else(|| finite.ones_like());
        let passes = self.passes.iter().map(|pass| pass.values.clone());
        Tensor::cat(passes.chain([self.squares.clone(), finite, factor]).collect(), 0)
    }

    fn result(&self, row: &[f32]) -> StepResult {
        let (passes, rest) = row.split_at(3 * self.passes.len());
        let (squares, rest) = rest.split_at(self.squares.dims()[0]);
        let mut reading = MetricSums::default();
        for (pass, values) in self.passes.iter().zip(passes.chunks(3)) {
            reading.add(&pass.reading(values));
        }
        StepResult {
            reading,
            finite: rest[0] > 0.0,
            factor: rest[1],
            // f32 would lose the small ones.
            squares: squares.iter().map(|&square| f64::from(square)).sum(),
        }
    }

    /// Waits for the device and reads what it knows.
    pub fn read(&self) -> StepResult {
        let row: Vec<f32> = self.row().into_data().iter::<f32>().collect();
        self.result(&row)
    }

    /// The same of many steps, in one transfer.
    pub fn read_all(checks: &[&Self]) -> Vec<StepResult> {
        if checks.is_empty() {
            return Vec::new();
        }
        let rows: Vec<_> = checks.iter().map(|check| check.row()).collect();
        let lengths: Vec<usize> = rows.iter().map(|row| row.dims()[0]).collect();
        let values: Vec<f32> = Tensor::cat(rows, 0).into_data().iter::<f32>().collect();
        let mut rest = &values[..];
        let next = |(check, length): (&&Self, usize)| {
            let (row, after) = rest.split_at(length);
            rest = after;
            check.result(row)
        };
        checks.iter().zip(lengths).map(next).collect()
    }
}

/// BatchNorm's running statistics.
pub fn running_statistics(model: &Classifier) -> GradientsParams {
    #[derive(Default)]
    struct Statistics {
        name: String,
        found: GradientsParams,
    }
    impl ModuleVisitor for Statistics {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.name = name.to_string();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.name.starts_with("running_") {
                self.found.register(param.id, param.val());
            }
        }
    }
    // They lag by one step until a snapshot is taken.
    drop(model.network.valid());
    let mut statistics = Statistics::default();
    model.network.visit(&mut statistics);
    statistics.found
}

/// Sets running statistics. All copies of a network share them.
pub fn set_running_statistics(model: &Classifier, statistics: GradientsParams) {
    change_running_statistics(model, statistics, None);
}

/// Sets running statistics back to what they were `before` a step, unless it counts.
pub fn guard_running_statistics(model: &Classifier, before: GradientsParams, finite: &Tensor<1, Bool>) {
    change_running_statistics(model, before, Some(finite));
}

fn change_running_statistics(model: &Classifier, statistics: GradientsParams, unless: Option<&Tensor<1, Bool>>) {
    struct Change<'a> {
        statistics: GradientsParams,
        unless: Option<&'a Tensor<1, Bool>>,
    }
    impl ModuleMapper for Change<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let Some(other) = self.statistics.remove::<D>(param.id) else { return param };
            let Some(finite) = self.unless else { return param.map(|_| other) };
            param.map(|current| {
                let strategy = current.gradient_checkpointing_strategy();
                let chosen = select(finite, current.inner(), other.inner());
                match strategy {
                    Some(strategy) => Tensor::from_inner(chosen).with_gradient_checkpointing_strategy(strategy),
                    None => chosen,
                }
            })
        }
    }
    drop(model.network.valid());
    let _ = model.network.clone().map(&mut Change { statistics, unless });
}
