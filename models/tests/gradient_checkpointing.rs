//! Gradients by gradient checkpointing against those of a plain backward pass, for the optimized kernels and for Burn's own
//! operations. One test: the choice of kernels is the process's.

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamGroup},
    optim::GradientsParams,
    tensor::{Device, Distribution, FloatDType, Tensor},
};
use kernels::KernelMode;
use models::{Architecture, Execution, ImageClassifier, Network, NetworkConfig, Output};

/// Draws weights by He's rule, so that an image reaches the logits whatever the architecture's own rule.
struct He;

impl ModuleMapper for He {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if D == 1 {
            // Drawn now, not at its first use.
            let _ = param.val();
            return param;
        }
        param.map(|weight| {
            let dims = weight.dims();
            let fan_in: usize = if D == 2 { dims[0] } else { dims[1..].iter().product() };
            weight.random_like(Distribution::Normal(0.0, (2.0 / fan_in as f64).sqrt())).detach().require_grad()
        })
    }
}

/// A network; the same for the same architecture.
fn network(architecture: Architecture, device: &Device) -> Network {
    device.seed(3);
    NetworkConfig::new(architecture).with_num_classes(5).init(device).map(&mut He)
}

fn loss(output: Output) -> Tensor<1> {
    output.aux.into_iter().fold(output.logits.square().mean(), |loss, (_, aux)| loss + aux.square().mean() * 0.3)
}

/// Every gradient and every running statistic as numbers, in the order of the module.
fn values(network: &Network, gradients: &GradientsParams) -> [Vec<Vec<f32>>; 2] {
    struct Values<'a> {
        gradients: &'a GradientsParams,
        names: Vec<String>,
        found: [Vec<Vec<f32>>; 2],
    }
    impl ModuleVisitor for Values<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.names.push(name.to_string());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.names.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let list = |tensor: Tensor<D>| tensor.into_data().iter::<f32>().collect();
            if let Some(gradient) = self.gradients.get::<D>(param.id) {
                self.found[0].push(list(gradient));
            }
            if self.names.last().is_some_and(|name| name.starts_with("running_")) {
                self.found[1].push(list(param.val()));
            }
        }
    }
    // Running statistics lag by one update until a snapshot is taken.
    drop(network.valid());
    let mut values = Values { gradients, names: Vec::new(), found: Default::default() };
    network.visit(&mut values);
    values.found
}

/// Both ways: gradients and running statistics.
fn both(architecture: Architecture, dtype: FloatDType, frozen: bool, device: &Device) -> [[Vec<Vec<f32>>; 2]; 2] {
    let side = architecture.min_size().max(if architecture == Architecture::InceptionV3 { 299 } else { 64 });
    device.seed(4);
    let images = Tensor::<4>::random([2, 3, side, side], Distribution::Normal(0.0, 1.0), device).cast(dtype);
    [false, true].map(|checkpointed| {
        let mut network = network(architecture, device);
        if frozen {
            network = network.freeze_group(ParamGroup::from_regex("conv1|bn1|layer1|layer2").expect("a regex"));
        }
        device.seed(5);
        let gradients = match checkpointed {
            false => GradientsParams::from_grads(loss(network.forward_aux(images.clone())).backward(), &network),
            true => network.checkpointed_gradients(images.clone(), loss),
        };
        values(&network, &gradients)
    })
}

#[test]
fn gradients_and_running_statistics_are_those_of_a_plain_backward_pass() {
    let device = Device::flex().autodiff();
    for mode in [KernelMode::Optimized, KernelMode::Reference] {
        let cases: &[_] = match mode {
            KernelMode::Optimized => &[
                (Architecture::ResNet18, FloatDType::F32, false),
                (Architecture::ResNet18, FloatDType::F32, true),
                (Architecture::ResNet18, FloatDType::BF16, false),
                (Architecture::AlexNet, FloatDType::F32, false),
                (Architecture::Vgg11Bn, FloatDType::F32, false),
                (Architecture::GoogLeNet, FloatDType::F32, false),
            ],
            KernelMode::Reference => &[
                (Architecture::ResNet20, FloatDType::F32, false),
                (Architecture::ResNet20, FloatDType::BF16, false),
                (Architecture::GoogLeNet2014, FloatDType::F32, false),
            ],
        };
        for &(architecture, dtype, frozen) in cases {
            let what = format!("{architecture}, {dtype:?}, {mode}, frozen: {frozen}");
            let [[plain, statistics], [checkpointed, other_statistics]] =
                Execution::new(mode).run(|| both(architecture, dtype, frozen, &device));
            assert_eq!(plain.len(), checkpointed.len(), "{what}");
            assert!(!plain.is_empty(), "{what}");
            assert!(statistics == other_statistics, "{what}: running statistics");
            let bitwise = plain == checkpointed;
            // Where an activation between segments has more than two consumers, their gradients are summed in another
            // order.
            let is_inception = [Architecture::GoogLeNet, Architecture::GoogLeNet2014].contains(&architecture);
            assert!(bitwise || is_inception && mode == KernelMode::Reference, "{what}: gradients differ");
            for (plain, checkpointed) in plain.iter().zip(&checkpointed) {
                let largest = plain.iter().fold(0f32, |largest, value| largest.max(value.abs()));
                let difference = plain.iter().zip(checkpointed).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
                assert!(difference <= 1e-4 * largest, "{what}: {difference} of {largest}");
            }
        }
    }
}
