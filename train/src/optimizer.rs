//! From a recipe to Burn's optimizer, and what happens to gradients before it.

use std::cell::RefCell;

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param, ParamGroup, ParamId},
    optim::{
        AdamWConfig, GradientsParams, LambConfig, ModuleOptimizer, Optimizer as BurnOptimizer, OptimizerRecord,
        RecordState, RmsPropConfig, StateSink, StateSource, decay::WeightDecayConfig,
    },
    tensor::{Device, Tensor},
};

use crate::recipe::{Optimizer, OptimizerName};

/// The optimizer that the recipe names, for the parameters of `module`.
pub fn build<M: Module>(recipe: &Optimizer, module: &M) -> ModuleOptimizer {
    // Vectors are norms' scales and shifts and biases; everything that mixes channels has more dimensions.
    let vectors = (!recipe.decay_norms_and_biases).then(|| vectors(module));
    let (decay, momentum) = (recipe.weight_decay, recipe.momentum.unwrap_or(0.0));
    match recipe.name {
        OptimizerName::Sgd => {
            let nesterov = recipe.nesterov.unwrap_or(false);
            grouped(|decay| Sgd { momentum: momentum as f32, nesterov, weight_decay: decay }, decay, vectors)
        }
        OptimizerName::AdamW => {
            let [beta_1, beta_2] = recipe.betas.unwrap_or([0.9, 0.999]);
            let epsilon = recipe.epsilon.unwrap_or(1e-8);
            let config = AdamWConfig::new().with_beta_1(beta_1).with_beta_2(beta_2).with_epsilon(epsilon);
            grouped(|decay| config.clone().with_weight_decay(decay).build(), decay, vectors)
        }
        OptimizerName::Lamb => {
            let [beta_1, beta_2] = recipe.betas.unwrap_or([0.9, 0.999]);
            let epsilon = recipe.epsilon.unwrap_or(1e-6);
            let config = LambConfig::new().with_beta_1(beta_1).with_beta_2(beta_2).with_epsilon(epsilon);
            grouped(|decay| config.clone().with_weight_decay(decay).build(), decay, vectors)
        }
        OptimizerName::RmsProp => {
            let config = RmsPropConfig::new()
                .with_alpha(recipe.alpha.unwrap_or(0.99))
                .with_momentum(momentum as f32)
                .with_epsilon(recipe.epsilon.unwrap_or(1e-8));
            let build = |decay: f32| {
                let decay = (decay > 0.0).then(|| WeightDecayConfig::new(decay));
                config.clone().with_weight_decay(decay).build()
            };
            grouped(build, decay, vectors)
        }
    }
}

/// SGD as PyTorch has it, in one pass over each parameter where the kernels have it. Its records are those of Burn's own
/// `Sgd`, and so are its numbers.
#[derive(Debug, Clone)]
pub struct Sgd {
    pub momentum: f32,
    pub nesterov: bool,
    pub weight_decay: f32,
}

/// The velocity, with momentum. Burn's own state keeps it out of reach.
#[derive(Clone)]
pub struct SgdState<const D: usize>(Option<Tensor<D>>);

/// Where Burn's records have it.
const VELOCITY: &str = "momentum.velocity";

impl<const D: usize> RecordState for SgdState<D> {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        if let Some(velocity) = &self.0 {
            out.push_tensor(prefix, VELOCITY, velocity.to_data());
        }
    }

    fn state_unflatten(prefix: &str, source: &mut StateSource, device: &Device) -> Option<Self> {
        Some(Self(source.take_tensor(prefix, VELOCITY).map(|data| Tensor::from_data(data, device))))
    }
}

impl BurnOptimizer for Sgd {
    type State<const D: usize> = SgdState<D>;

    fn step<const D: usize>(
        &self,
        rate: f64,
        tensor: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<SgdState<D>>,
    ) -> (Tensor<D>, Option<SgdState<D>>) {
        let velocity = state.and_then(|state| state.0);
        let Self { momentum, nesterov, weight_decay } = *self;
        let settings = kernels::Sgd { learning_rate: rate as f32, momentum, dampening: 0.0, nesterov, weight_decay };
        let (tensor, velocity) = if kernels::accelerates(&tensor) {
            kernels::sgd_step(tensor, gradient, velocity, settings)
        } else {
            plain_sgd_step(tensor, gradient, velocity, settings)
        };
        (tensor, Some(SgdState(velocity)))
    }

    fn to_device<const D: usize>(state: SgdState<D>, device: &Device) -> SgdState<D> {
        SgdState(state.0.map(|velocity| velocity.to_device(device)))
    }
}

fn plain_sgd_step<const D: usize>(
    tensor: Tensor<D>,
    mut gradient: Tensor<D>,
    velocity: Option<Tensor<D>>,
    settings: kernels::Sgd,
) -> (Tensor<D>, Option<Tensor<D>>) {
    let kernels::Sgd { learning_rate, momentum, nesterov, weight_decay, .. } = settings;
    if weight_decay != 0.0 {
        gradient = tensor.clone() * weight_decay + gradient;
    }
    if momentum == 0.0 {
        return (tensor - gradient * learning_rate, None);
    }
    let velocity = match velocity {
        Some(velocity) => gradient.clone() + velocity * momentum,
        None => gradient.clone(),
    };
    let step = if nesterov { velocity.clone() * momentum + gradient } else { velocity.clone() };
    (tensor - step * learning_rate, Some(velocity))
}

/// One optimizer for all, or another without weight decay for the group.
fn grouped<O: BurnOptimizer>(build: impl Fn(f32) -> O, decay: f32, without: Option<ParamGroup>) -> ModuleOptimizer {
    let optimizer = ModuleOptimizer::from(Placed(build(decay)));
    match without {
        Some(group) => optimizer.with_group(group, Placed(build(0.0)), None),
        None => optimizer,
    }
}

/// An optimizer that [`build`] made, with the state of a record, on the device where the network is.
pub fn load(optimizer: ModuleOptimizer, record: OptimizerRecord, device: &Device) -> ModuleOptimizer {
    PLACE.set(Some(device.clone().without_autodiff()));
    let optimizer = optimizer.load_record(record);
    PLACE.set(None);
    optimizer
}

/// An optimizer whose state is loaded to the device that [`load`] names. Burn would load it to the first GPU that the
/// program knows, whatever device trains: memory of a GPU that is another's, and a panic where it is too small.
#[derive(Clone)]
struct Placed<O>(O);

#[derive(Clone)]
struct PlacedState<S>(S);

thread_local! {
    static PLACE: RefCell<Option<Device>> = const { RefCell::new(None) };
}

impl<S: RecordState> RecordState for PlacedState<S> {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        self.0.state_flatten(prefix, out);
    }

    fn state_unflatten(prefix: &str, source: &mut StateSource, device: &Device) -> Option<Self> {
        let place = PLACE.with_borrow(Option::clone);
        S::state_unflatten(prefix, source, place.as_ref().unwrap_or(device)).map(Self)
    }
}

impl<O: BurnOptimizer> BurnOptimizer for Placed<O> {
    type State<const D: usize> = PlacedState<O::State<D>>;

    fn step<const D: usize>(
        &self,
        rate: f64,
        tensor: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let (tensor, state) = self.0.step(rate, tensor, gradient, state.map(|state| state.0));
        (tensor, state.map(PlacedState))
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        PlacedState(O::to_device(state.0, device))
    }
}

fn vectors<M: Module>(module: &M) -> ParamGroup {
    struct Vectors(Vec<ParamId>);
    impl ModuleVisitor for Vectors {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if D == 1 {
                self.0.push(param.id);
            }
        }
    }
    let mut found = Vectors(Vec::new());
    module.visit(&mut found);
    ParamGroup::from_ids(found.0)
}

/// The Euclidean norm of all gradients together. Not a number where one of them is not finite.
pub fn gradient_norm<M: Module>(module: &M, gradients: &GradientsParams) -> f64 {
    struct Squares<'a> {
        gradients: &'a GradientsParams,
        sums: Vec<Tensor<1>>,
    }
    impl ModuleVisitor for Squares<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.get::<D>(param.id) {
                self.sums.push(gradient.square().sum());
            }
        }
    }
    let mut squares = Squares { gradients, sums: Vec::new() };
    module.visit(&mut squares);
    if squares.sums.is_empty() {
        return 0.0;
    }
    // One transfer for all. The sum is in f64: of many parameters' squares f32 would lose the small ones.
    let sums = Tensor::cat(squares.sums, 0).into_data().convert::<f32>();
    let sum: f64 = sums.iter::<f32>().map(f64::from).sum();
    sum.sqrt()
}

/// Multiplies every gradient.
pub fn scale<M: Module>(module: &M, gradients: GradientsParams, factor: f64) -> GradientsParams {
    struct Scale {
        gradients: GradientsParams,
        factor: f64,
    }
    impl ModuleVisitor for Scale {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.remove::<D>(param.id) {
                self.gradients.register(param.id, gradient.mul_scalar(self.factor));
            }
        }
    }
    let mut scale = Scale { gradients, factor };
    module.visit(&mut scale);
    scale.gradients
}

/// Makes sure that every parameter is drawn: Burn draws them when they are first used, at which point another seed may
/// be set.
pub fn draw_all<M: Module>(module: M) -> M {
    struct Draw;
    impl ModuleMapper for Draw {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let _ = param.val();
            param
        }
    }
    module.map(&mut Draw)
}

#[cfg(test)]
mod tests {
    use burn::{
        nn::{Linear, LinearConfig},
        optim::{SgdConfig, momentum::MomentumConfig},
        tensor::{Device, TensorData},
    };

    use super::*;
    use crate::recipe::{Overrides, load};

    fn linear() -> Linear {
        let device = Device::flex().autodiff();
        let mut linear = LinearConfig::new(2, 2).init(&device);
        linear.weight = Param::from_data(TensorData::from([[1.0f32, -2.0], [3.0, 4.0]]), &device);
        linear.bias = Some(Param::from_data(TensorData::from([1.0f32, 2.0]), &device));
        linear
    }

    /// Gradients of the sum of the outputs for the input (3, 4): 3, 3, 4, 4 and 1, 1.
    fn gradients(linear: &Linear) -> GradientsParams {
        let input = Tensor::<2>::from_floats([[3.0, 4.0]], &Device::flex().autodiff());
        GradientsParams::from_grads(linear.forward(input).sum().backward(), linear)
    }

    fn values(linear: &Linear) -> Vec<f32> {
        let mut values: Vec<f32> = linear.weight.val().into_data().iter::<f32>().collect();
        values.extend(linear.bias.as_ref().unwrap().val().into_data().iter::<f32>());
        values
    }

    fn step(changes: &[&str], steps: usize) -> Vec<f32> {
        let mut overrides = Overrides::default();
        changes.iter().for_each(|change| overrides.parse(change).unwrap());
        let recipe = load("digits", &overrides).unwrap().optimizer;
        let mut linear = linear();
        let mut optimizer = build(&recipe, &linear);
        for _ in 0..steps {
            let gradients = gradients(&linear);
            linear = optimizer.step(0.1, linear, gradients);
        }
        values(&linear)
    }

    fn assert_close(values: &[f32], expected: &[f32]) {
        assert!(values.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{values:?} not {expected:?}");
    }

    #[test]
    fn the_norm_is_of_all_gradients_and_scaling_touches_all() {
        let linear = linear();
        let gradients = gradients(&linear);
        let norm = f64::sqrt(9.0 + 9.0 + 16.0 + 16.0 + 1.0 + 1.0);
        assert!((gradient_norm(&linear, &gradients) - norm).abs() < 1e-6);
        let halved = scale(&linear, gradients, 0.5);
        assert!((gradient_norm(&linear, &halved) - norm / 2.0).abs() < 1e-6);
    }

    #[test]
    fn sgd_is_pytorch_s() {
        // torch.optim.SGD(lr=0.1, momentum=0.9, weight_decay=0.5), two steps; v₁ = g + 0.5 w, v₂ = 0.9 v₁ + g + 0.5 w.
        let by_hand = |w: f32, g: f32, decay: f32, nesterov: bool| {
            let v1 = g + decay * w;
            let w1 = w - 0.1 * if nesterov { 0.9 * v1 + v1 } else { v1 };
            let d2 = g + decay * w1;
            let v2 = 0.9 * v1 + d2;
            w1 - 0.1 * if nesterov { 0.9 * v2 + d2 } else { v2 }
        };
        let weights = [(1.0, 3.0), (-2.0, 3.0), (3.0, 4.0), (4.0, 4.0)];
        for nesterov in [false, true] {
            let mut expected: Vec<f32> = weights.iter().map(|&(w, g)| by_hand(w, g, 0.5, nesterov)).collect();
            expected.extend([by_hand(1.0, 1.0, 0.5, nesterov), by_hand(2.0, 1.0, 0.5, nesterov)]);
            let nesterov = format!("optimizer.nesterov={nesterov}");
            assert_close(&step(&["optimizer.weight_decay=0.5", &nesterov], 2), &expected);
        }
    }

    /// Bit for bit, and each goes on from the other's record.
    #[test]
    fn sgd_is_burn_s_too() {
        for nesterov in [false, true] {
            let momentum = MomentumConfig::new().with_momentum(0.9).with_dampening(0.0).with_nesterov(nesterov);
            let burns = || {
                let decay = Some(WeightDecayConfig::new(0.01));
                let config = SgdConfig::new().with_momentum(Some(momentum.clone())).with_weight_decay(decay);
                ModuleOptimizer::from(config.build())
            };
            let ours = || ModuleOptimizer::from(Sgd { momentum: 0.9, nesterov, weight_decay: 0.01 });
            let go = |mut optimizer: ModuleOptimizer, mut linear: Linear| {
                for _ in 0..5 {
                    let gradients = gradients(&linear);
                    linear = optimizer.step(0.1, linear, gradients);
                }
                (optimizer, linear)
            };
            let start = linear();
            let (ours_after, our_linear) = go(ours(), start.clone());
            let (burns_after, burns_linear) = go(burns(), start);
            assert_eq!(values(&our_linear), values(&burns_linear));
            let (_, crossed) = go(ours().load_record(burns_after.to_record()), burns_linear.clone());
            let (_, back) = go(burns().load_record(ours_after.to_record()), our_linear);
            let (_, straight) = go(burns_after, burns_linear);
            assert_eq!(values(&crossed), values(&straight));
            assert_eq!(values(&back), values(&straight));
        }
    }

    #[test]
    fn norms_and_biases_may_be_left_out_of_weight_decay() {
        for name in ["sgd", "adamw", "lamb", "rmsprop"] {
            let optimizer = |decay: f32| {
                format!(
                    r#"optimizer = {{ name = "{name}", weight_decay = {decay:.1}, decay_norms_and_biases = false }}"#
                )
            };
            let (decayed, plain) = (step(&[&optimizer(0.5)], 2), step(&[&optimizer(0.0)], 2));
            assert_eq!(decayed[4..], plain[4..], "{name}");
            assert_ne!(decayed[..4], plain[..4], "{name}");
        }
    }

    #[test]
    fn adamw_is_pytorch_s() {
        // One step moves every weight by the rate (bias correction makes the ratio of the moments 1) after the decay.
        let changes = [r#"optimizer = { name = "adamw", weight_decay = 0.5 }"#];
        let expected = [1.0f32, -2.0, 3.0, 4.0, 1.0, 2.0].map(|w| w * (1.0 - 0.1 * 0.5) - 0.1);
        assert_close(&step(&changes, 1), &expected);
    }
}
