//! Synchronised norms of ordinary operations: two processes, played by threads, each with a part of a batch, against one
//! with all of it and against Burn's own norms.

#[path = "../../kernels/tests/two/mod.rs"]
mod two;

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    optim::GradientsParams,
    store::ModuleRecord,
    tensor::{Bytes, Device, Tensor, TensorData},
};
use kernels::{AllReduce, KernelMode};
use models::{Architecture, Execution, ImageClassifier, Network, NetworkConfig};

fn values(len: usize) -> Vec<f32> {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Gradients of weights and running statistics, one after another.
struct Collect {
    gradients: GradientsParams,
    module: String,
    of_weights: Vec<f32>,
    running: Vec<f32>,
}

impl ModuleVisitor for Collect {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.module = name.to_string();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.module.starts_with("running_") {
            self.running.extend(param.val().into_data().iter::<f32>());
        } else if let Some(gradient) = self.gradients.get::<D>(param.id) {
            self.of_weights.extend(gradient.into_data().iter::<f32>());
        }
    }
}

/// Logits, gradients and running statistics of images `range` of the batch.
fn pass(record: &[u8], range: std::ops::Range<usize>) -> [Vec<f32>; 3] {
    let device = Device::flex().autodiff();
    // Clones would share their running statistics.
    let record = ModuleRecord::from_bytes(Bytes::from_bytes_vec(record.to_vec())).expect("a record");
    let network = fresh(&device).load_record(record);
    let len = 3 * 16 * 16;
    let all = values(range.end * len);
    let images = TensorData::new(all[range.start * len..].to_vec(), [range.len(), 3, 16, 16]);
    let logits = network.forward(Tensor::<4>::from_data(images, &device));
    let gradients = GradientsParams::from_grads(logits.clone().square().sum().backward(), &network);
    // Running statistics lag by a step until they are asked for.
    drop(network.valid());
    let mut collect = Collect { gradients, module: String::new(), of_weights: Vec::new(), running: Vec::new() };
    network.visit(&mut collect);
    [logits.into_data().iter::<f32>().collect(), collect.of_weights, collect.running]
}

fn fresh(device: &Device) -> Network {
    NetworkConfig::new(Architecture::ResNet20).with_num_classes(5).init(device)
}

/// Shifts the norms' outputs away from zero, where a ReLU has its kink: one that flips by a rounding has another gradient.
#[derive(Default)]
struct Lift {
    module: String,
}

impl ModuleMapper for Lift {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.module = name.to_string();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.module == "beta" { param.map(|beta| beta.add_scalar(3.0)) } else { param }
    }
}

fn close(a: &[f32], b: &[f32], bound: f64, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let of = norm(&mut b.iter().map(|&b| f64::from(b)));
    let difference = norm(&mut a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    eprintln!("{what}: {:.1e}", difference / of);
    assert!(of > 0.0 && difference <= bound * of, "{what}: off by {difference} of {of}");
}

#[test]
fn parts_of_a_batch_are_normalised_as_the_whole_and_as_burn_does() {
    // Without the optimized operations, which have norms of their own.
    let reference = Execution::new(KernelMode::Reference);
    let device = Device::flex().autodiff();
    device.seed(1);
    let network = fresh(&device).map(&mut Lift::default());
    let record = network.into_record().into_bytes().expect("bytes").to_vec();
    let of_burn = reference.run(|| pass(&record, 0..7));
    let alone = reference.clone().with_sync_batch_norm(AllReduce::new(|_: &mut [f64]| ()));
    let whole = alone.run(|| pass(&record, 0..7));
    let shared = reference.with_sync_batch_norm(two::sum());
    let (first, second) = two::run(|| shared.run(|| pass(&record, 0..3)), || shared.run(|| pass(&record, 3..7)));

    for ([logits, gradients, running], what) in [(&of_burn, "Burn"), (&whole, "the whole")] {
        close(&[&first[0][..], &second[0]].concat(), logits, 1e-5, &format!("logits, {what}"));
        let sum: Vec<f32> = first[1].iter().zip(&second[1]).map(|(a, b)| a + b).collect();
        close(&sum, gradients, 1e-5, &format!("gradients, {what}"));
        close(&first[2], running, 1e-5, &format!("running statistics, {what}"));
    }
    assert_eq!(first[2], second[2], "the same bits on both");
}
