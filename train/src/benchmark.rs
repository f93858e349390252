//! Measuring the training speed of a network on random images.

use std::{sync::Arc, time::Instant};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::Tensor,
};
use burn_train::TrainStep;
use datasets::{ImageBatch, SampleRng};
use kernels::KernelMode;
use models::{Architecture, Execution, NetworkConfig};
use runtime::{backend::BackendSpec, environment, warmup::Warmup};

use crate::{
    Error, Result,
    classifier::{Classifier, Objective},
    recipe::{self, Dtype, Overrides},
    trainer::{
        flat,
        optimizer::{Optimizer, Update},
    },
};

/// The learning rate. It has no effect on the speed.
const RATE: f64 = 0.01;

/// The subject of a measurement.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The network.
    pub architecture: Architecture,
    /// The device.
    pub backend: BackendSpec,
    /// The number of images of a step.
    pub batch: usize,
    /// The number of classes.
    pub classes: usize,
    /// The side of the images in pixels; by default that of the architecture.
    pub size: Option<usize>,
    /// The compute type.
    pub dtype: Dtype,
    /// The operations that run on the CPU.
    pub kernels: KernelMode,
    /// Whether activations are recomputed in the backward pass.
    pub gradient_checkpointing: bool,
    /// The number of timed steps.
    pub iters: usize,
    /// The number of untimed steps before them; by default until their times settle.
    pub warmup: Option<u32>,
}

/// The result of a measurement.
#[derive(Debug, Clone)]
pub struct Measurement {
    /// The side of the images in pixels.
    pub size: usize,
    /// The number of parameters.
    pub params: usize,
    /// The warm-up.
    pub warmup: Warmup,
    /// The time of the first step, in which kernels are compiled and tuned.
    pub first_step_s: f64,
    /// The times of the timed steps in seconds, in ascending order.
    pub timed: Vec<f64>,
    /// The loss of the last step.
    pub last_value: f64,
    /// The memory of the process before the network was created, in MiB.
    pub import_rss_mb: Option<f64>,
}

impl Measurement {
    /// Returns the median time of a step in seconds.
    pub fn median_s(&self) -> f64 {
        let middle = self.timed.len() / 2;
        match self.timed.len() % 2 {
            1 => self.timed[middle],
            _ => (self.timed[middle - 1] + self.timed[middle]) / 2.0,
        }
    }
}

/// Times whole training steps: normalization, forward and backward pass, and SGD with momentum and weight decay.
///
/// # Errors
/// Fails if the device cannot be opened, if the images are too small for the network, or if the loss is not finite.
///
/// # Panics
/// Panics if `iters` is 0.
pub fn measure(subject: &Subject) -> Result<Measurement> {
    let Subject { architecture, backend, batch, classes, dtype, kernels, iters, .. } = *subject;
    assert!(iters > 0, "no step to time");
    let device = backend.device()?.autodiff();
    let import_rss_mb = environment::peak_rss_mb();
    let size = subject.size.unwrap_or(architecture.default_size());
    architecture.check_input([size, size])?;
    device.seed(0);

    let mut overrides = Overrides::default();
    overrides.set("architecture", Some(architecture.to_string()));
    overrides.set("network.dtype", (dtype != Dtype::F32).then(|| dtype.name()));
    overrides.set("network.gradient_checkpointing", subject.gradient_checkpointing.then_some(true));
    let recipe = recipe::load("imagenet-classic", &overrides)?;
    let network = NetworkConfig::new(architecture).with_num_classes(classes).init(&device);
    network.visit(&mut Draw);
    let classifier =
        Classifier::new(network, Arc::new(Objective::new(&recipe, classes, None, Execution::new(kernels))));
    let mut optimizer = Optimizer::new(&recipe.optimizer, &classifier, flat::buffer(&backend), kernels);
    let params = classifier.num_params();

    let mut rng = SampleRng::new(0, 0, 0);
    let images = ImageBatch {
        images: (0..batch * 3 * size * size).map(|_| rng.below(256) as u8).collect(),
        shape: [batch, 3, size, size],
        labels: Some((0..batch).map(|_| rng.below(classes as u64) as u32).collect()),
        mix: None,
        indices: (0..batch).collect(),
        epoch: 0,
        number: 0,
    };

    let mut last_value = f64::NAN;
    let mut time_step = |classifier: Classifier| {
        let start = Instant::now();
        // Reading the loss waits for the device.
        let step = TrainStep::step(&classifier, images.clone());
        last_value = step.item.score().loss;
        let gradients = optimizer.pack(&classifier, step.grads, &RATE.into());
        let classifier = optimizer.step(classifier, gradients, &Update::Apply { factor: 1.0 });
        (classifier, start.elapsed().as_secs_f64())
    };
    let mut warmup = Warmup::exactly(subject.warmup);
    let (mut classifier, first_step_s) = time_step(classifier);
    warmup.record(first_step_s);
    while !warmup.is_over() {
        let seconds;
        (classifier, seconds) = time_step(classifier);
        warmup.record(seconds);
    }
    let mut timed = vec![0.0; iters];
    for seconds in &mut timed {
        (classifier, *seconds) = time_step(classifier);
    }
    if !last_value.is_finite() {
        return Err(Error::NotFinite("the loss is not finite".into()));
    }
    timed.sort_by(f64::total_cmp);
    Ok(Measurement { size, params, warmup, first_step_s, timed, last_value, import_rss_mb })
}

/// Draws the weights. Burn draws each at its first use, and passes that use them in another order would get other weights.
struct Draw;

impl ModuleVisitor for Draw {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        drop(param.val());
    }
}
