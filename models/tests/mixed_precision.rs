//! Mixed precision with Burn's own operations: the scheme of every backend but `flex`, whose optimized kernels are not run.

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::{DType, Device, Distribution, FloatDType, Tensor},
};
use kernels::KernelMode;
use models::{Architecture, Execution, ImageClassifier, Network, NetworkConfig};

/// One of each family; small inputs keep them fast.
const FAMILIES: [Architecture; 8] = [
    Architecture::AlexNet,
    Architecture::Vgg11Bn,
    Architecture::GoogLeNet,
    Architecture::GoogLeNet2014,
    Architecture::InceptionV3,
    Architecture::ResNet18,
    Architecture::ResNeXt50,
    Architecture::ResNet20,
];

/// Draws weights by He's rule, so that an image reaches the logits whatever the architecture's own rule.
struct He;

impl ModuleMapper for He {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if D == 1 {
            return param;
        }
        param.map(|weight| {
            let dims = weight.dims();
            let fan_in: usize = if D == 2 { dims[0] } else { dims[1..].iter().product() };
            let gradient = weight.is_require_grad();
            let drawn = weight.random_like(Distribution::Normal(0.0, (2.0 / fan_in as f64).sqrt()));
            if gradient { drawn.require_grad() } else { drawn }
        })
    }
}

fn network(architecture: Architecture, aux: bool, device: &Device) -> Network {
    device.seed(7);
    let config = NetworkConfig::new(architecture).with_num_classes(7).with_aux_logits(aux);
    config.with_dropout(Some(0.0)).init(device).map(&mut He)
}

fn images(architecture: Architecture, count: usize, device: &Device) -> Tensor<4> {
    let side = architecture.min_size().max(if architecture == Architecture::InceptionV3 { 75 } else { 64 });
    Tensor::random([count, 3, side, side + 3], Distribution::Normal(0.0, 1.0), device)
}

/// ‖a − b‖ / ‖b‖.
fn distance<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
    let norm = |x: Tensor<D>| x.square().sum().sqrt().into_scalar::<f32>();
    norm(a - b.clone()) / norm(b)
}

#[test]
fn activations_stay_in_the_type_of_the_images_and_logits_leave_in_f32() {
    Execution::new(KernelMode::Reference).run(check_types);
}

fn check_types() {
    let device = Device::flex();
    for architecture in FAMILIES {
        let network = network(architecture, false, &device).valid();
        let images = images(architecture, 2, &device);
        let exact = network.forward(images.clone());
        for (dtype, most) in [(FloatDType::BF16, 0.08), (FloatDType::F16, 0.01)] {
            let mut stages = Vec::new();
            let mut observe = |name: &str, output: &Tensor<4>| stages.push((name.to_string(), output.dtype()));
            let rounded = images.clone().cast(dtype);
            let logits = network.forward_with_hook(rounded.clone(), &mut observe);
            assert!(stages.len() > 3);
            for (name, found) in stages {
                assert_eq!(found, DType::from(dtype), "{architecture}, {name}");
            }
            assert_eq!(logits.dtype(), DType::F32);
            let difference = distance(logits, exact.clone());
            assert!(difference > 0.0 && difference < most, "{architecture}, {dtype:?}: {difference}");
            assert_eq!(network.forward_pre_logits(rounded).dtype(), DType::F32);
        }
    }
}

/// The type of each parameter's gradient, and its distance from another.
struct Compare<'a>(&'a GradientsParams, &'a GradientsParams, Vec<f32>);

impl ModuleVisitor for Compare<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(exact) = self.1.get::<D>(param.id) {
            let rounded = self.0.get::<D>(param.id).expect("the same parameters have gradients");
            assert_eq!(rounded.dtype(), DType::F32);
            if exact.clone().abs().max().into_scalar::<f32>() > 1e-6 {
                self.2.push(distance(rounded, exact));
            }
        }
    }
}

#[test]
fn gradients_of_all_parameters_arrive_in_f32() {
    Execution::new(KernelMode::Reference).run(check_gradients);
}

fn check_gradients() {
    let device = Device::flex().autodiff();
    // Most of the distance comes from ReLUs and poolings that choose otherwise, which grows with the root of the rounding
    // error, and batch normalization amplifies it from layer to layer.
    for (architecture, bounds) in [(Architecture::GoogLeNet2014, [0.1, 0.04]), (Architecture::ResNet18, [0.5, 0.2])] {
        let network = network(architecture, true, &device);
        // Enough of them that batch statistics are well conditioned.
        let images = images(architecture, 8, &device);
        let run = |dtype: FloatDType| {
            let output = network.forward_aux(images.clone().cast(dtype));
            let loss = output.aux.into_iter().fold(output.logits.square().mean(), |loss, (_, aux)| {
                assert_eq!(aux.dtype(), DType::F32);
                loss + aux.square().mean()
            });
            GradientsParams::from_grads(loss.backward(), &network)
        };
        let exact = run(FloatDType::F32);
        for (dtype, most) in [FloatDType::BF16, FloatDType::F16].into_iter().zip(bounds) {
            let rounded = run(dtype);
            assert_eq!(rounded.len(), exact.len());
            let mut compare = Compare(&rounded, &exact, Vec::new());
            network.visit(&mut compare);
            let mean = compare.2.iter().sum::<f32>() / compare.2.len() as f32;
            assert!(mean > 0.0 && mean < most, "{architecture}, {dtype:?}: {mean}");
        }
    }
}
