//! The optimizer: from gradients to new parameters.
//!
//! Parameters that one rule steps alike are kept in flat buffers ([`flat`]) where each kernel launch costs
//! something, so that a step takes a few kernels and not a few per parameter; on the CPU each parameter stays by itself. The
//! numbers are the same. An [`Update`] may leave it to the device whether a step counts, without the host knowing.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use burn::{
    module::{Module, ParamId},
    optim::{GradientsParams, lr_scheduler::module_lr_scheduler::ModuleLearningRate},
    store::RecordError,
    tensor::{Bool, Bytes, Device, Tensor, TensorData},
};
use burn_pack::{Reader, Scalar, Writer};
use kernels::KernelMode;

use super::flat::{self, FlatTensors, Layout, Member};
use crate::recipe::{self, OptimizerName};

/// How a parameter is stepped, and what is kept for that: PyTorch's rules.
#[derive(Debug, Clone)]
enum Rule {
    Sgd { momentum: f32, nesterov: bool, kernels: KernelMode },
    AdamW { betas: [f32; 2], epsilon: f32 },
    Lamb { betas: [f32; 2], epsilon: f32 },
    RmsProp { alpha: f32, momentum: f32, epsilon: f32 },
}

/// What is done with the gradients of a step.
#[derive(Debug, Clone)]
pub enum Update {
    /// The step counts. Gradients are multiplied by the factor first.
    Apply { factor: f32 },
    /// The step counts if the verdict says so, which only the device knows; otherwise everything stays as it was.
    Guarded(Arc<Verdict>),
}

/// What the device decides about a step.
#[derive(Debug)]
pub struct Verdict {
    /// `[1]`: the step counts.
    pub finite: Tensor<1, Bool>,
    /// `[1]`: what gradients are multiplied by first. `None` for 1.
    pub factor: Option<Tensor<1>>,
}

impl Update {
    fn scaled(&self, gradient: Tensor<1>) -> Tensor<1> {
        match self {
            Self::Apply { factor } if *factor == 1.0 => gradient,
            Self::Apply { factor } => gradient * *factor,
            Self::Guarded(verdict) => match &verdict.factor {
                None => gradient,
                Some(factor) => {
                    let shape = gradient.shape();
                    gradient * factor.clone().expand(shape)
                }
            },
        }
    }

    pub fn to_device(&self, device: &Device) -> Self {
        match self {
            Self::Apply { factor } => Self::Apply { factor: *factor },
            Self::Guarded(verdict) => Self::Guarded(Arc::new(Verdict {
                finite: verdict.finite.clone().to_device(device),
                factor: verdict.factor.clone().map(|factor| factor.to_device(device)),
            })),
        }
    }
}

/// `new` where the step counts, otherwise `old`. Selected and not computed: what is discarded may not be finite.
pub fn select<const D: usize>(finite: &Tensor<1, Bool>, new: Tensor<D>, old: Tensor<D>) -> Tensor<D> {
    let mask = finite.clone().reshape([1; D]).expand(new.shape());
    old.mask_where(mask, new)
}

/// What a rule keeps of a parameter, or of all parameters of a buffer.
#[derive(Debug, Clone, Default)]
struct State {
    /// Steps so far `[1]`, where the rule wants to know. On the device, since steps that are discarded do not count.
    steps: Option<Tensor<1>>,
    /// Velocity, or the moments of gradients.
    moments: [Option<Tensor<1>>; 2],
}

impl State {
    /// The state after a step that counts if `finite`.
    fn select(finite: &Tensor<1, Bool>, new: Self, old: Self) -> Self {
        let choose = |new: Option<Tensor<1>>, old: Option<Tensor<1>>| {
            // Before the first step that counts there is nothing, which zeros are as good as.
            new.map(|new| {
                let old = old.unwrap_or_else(|| new.zeros_like());
                select(finite, new, old)
            })
        };
        let [first, second] = new.moments;
        let [old_first, old_second] = old.moments;
        Self { steps: choose(new.steps, old.steps), moments: [choose(first, old_first), choose(second, old_second)] }
    }

    fn to_device(&self, device: &Device) -> Self {
        let moved = |tensor: &Option<Tensor<1>>| tensor.clone().map(|tensor| tensor.to_device(device));
        Self { steps: moved(&self.steps), moments: [moved(&self.moments[0]), moved(&self.moments[1])] }
    }
}

impl Rule {
    /// Whether an element's step depends on nothing but that element.
    fn is_elementwise(&self) -> bool {
        !matches!(self, Self::Lamb { .. })
    }

    /// The names of the moments and of the number of steps in Burn's records of its optimizers, which are those of ours.
    fn names(&self) -> (&[&'static str], Option<&'static str>) {
        match self {
            Self::Sgd { .. } => (&["momentum.velocity"], None),
            Self::AdamW { .. } => (&["momentum.moment_1", "momentum.moment_2"], Some("momentum.time")),
            Self::Lamb { .. } => (&["moment_1", "moment_2"], Some("time")),
            Self::RmsProp { .. } => (&["square_avg.square_avg", "momentum.buf"], None),
        }
    }

    fn step(&self, rate: f64, decay: f32, param: Tensor<1>, gradient: Tensor<1>, state: State) -> (Tensor<1>, State) {
        let State { steps, moments: [first, second] } = state;
        // `kept · old + (1 − kept) · new`
        let average = |old: Option<Tensor<1>>, kept: f32, new: Tensor<1>| match old {
            Some(old) => old * kept + new * (1.0 - kept),
            None => new * (1.0 - kept),
        };
        match *self {
            Self::Sgd { momentum, nesterov, kernels } => {
                let sgd = kernels::Sgd {
                    learning_rate: rate as f32,
                    momentum,
                    dampening: 0.0,
                    nesterov,
                    weight_decay: decay,
                };
                let (param, velocity) = if kernels == KernelMode::Optimized && kernels::accelerates(&param) {
                    kernels::sgd_step(param, gradient, first, sgd)
                } else {
                    sgd_step(param, gradient, first, sgd)
                };
                (param, State { steps, moments: [velocity, None] })
            }
            Self::AdamW { betas, epsilon } | Self::Lamb { betas, epsilon } => {
                let first = average(first, betas[0], gradient.clone());
                let second = average(second, betas[1], gradient.square());
                let steps = steps.unwrap_or_else(|| Tensor::zeros([1], &param.device())) + 1.0;
                // Averages begin at zero, which is divided out.
                let unbiased = |moment: &Tensor<1>, beta: f32| {
                    let correction = -(steps.clone() * f64::from(beta).ln()).exp() + 1.0;
                    moment.clone() / correction.expand(moment.shape())
                };
                let update = unbiased(&first, betas[0]) / (unbiased(&second, betas[1]).sqrt() + epsilon);
                let param = if matches!(self, Self::AdamW { .. }) {
                    let decayed = if decay == 0.0 { param } else { param * (1.0 - rate * f64::from(decay)) };
                    decayed - update * rate
                } else {
                    let update = if decay == 0.0 { update } else { update + param.clone() * decay };
                    let trust = trust_ratio(&param, &update);
                    param - update * trust * rate
                };
                (param, State { steps: Some(steps), moments: [Some(first), Some(second)] })
            }
            Self::RmsProp { alpha, momentum, epsilon } => {
                let gradient = if decay == 0.0 { gradient } else { param.clone() * decay + gradient };
                let square = average(first, alpha, gradient.clone().square());
                let mut update = gradient / (square.clone().sqrt() + epsilon);
                let mut buffer = None;
                if momentum > 0.0 {
                    update = match second {
                        Some(buffer) => buffer * momentum + update,
                        None => update,
                    };
                    buffer = Some(update.clone());
                }
                (param - update * rate, State { steps, moments: [Some(square), buffer] })
            }
        }
    }
}

/// SGD in Burn's operations; the kernels have it in one pass.
fn sgd_step(
    param: Tensor<1>,
    mut gradient: Tensor<1>,
    velocity: Option<Tensor<1>>,
    sgd: kernels::Sgd,
) -> (Tensor<1>, Option<Tensor<1>>) {
    let kernels::Sgd { learning_rate: rate, momentum, nesterov, weight_decay, .. } = sgd;
    if weight_decay != 0.0 {
        gradient = param.clone() * weight_decay + gradient;
    }
    if momentum == 0.0 {
        return (param - gradient * rate, None);
    }
    let velocity = match velocity {
        Some(velocity) => gradient.clone() + velocity * momentum,
        None => gradient.clone(),
    };
    let step = if nesterov { velocity.clone() * momentum + gradient } else { velocity.clone() };
    (param - step * rate, Some(velocity))
}

/// LAMB: the norm of a parameter over that of its update; 1 where either is zero.
fn trust_ratio(param: &Tensor<1>, update: &Tensor<1>) -> Tensor<1> {
    let norm = |tensor: &Tensor<1>| tensor.clone().square().sum().sqrt();
    let (param_norm, update_norm) = (norm(param), norm(update));
    let is_known = param_norm.clone().greater_elem(0.0).bool_and(update_norm.clone().greater_elem(0.0));
    let ratio = param_norm / update_norm.clamp_min(f32::MIN_POSITIVE);
    ratio.ones_like().mask_where(is_known, ratio).expand(param.shape())
}

/// Parameters that are stepped together.
#[derive(Clone)]
struct Bucket {
    layout: Layout,
    decay: f32,
    state: State,
    /// The parameters as the last step left them; the module's are views of it. None where there is only one.
    params: Option<Tensor<1>>,
}

impl Bucket {
    /// The learning rate of all its parameters. `None` where they differ.
    fn rate(&self, rates: &ModuleLearningRate) -> Option<f64> {
        let mut each = self.layout.members().iter().map(|member| rates.lr_from_param(member.id, None));
        let first = each.next()?;
        each.all(|rate| rate == first).then_some(first)
    }
}

/// Where a parameter's state comes from; only parameters with one origin share a number of steps.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Origin {
    New,
    /// A record, after so many steps.
    Record(u64),
    /// A bucket of before.
    Bucket(usize),
}

/// Steps the parameters of a module.
///
/// It remembers the module's parameters: all steps of one optimizer are made on the module that the step before returned.
#[derive(Clone)]
pub struct Optimizer {
    rule: Rule,
    weight_decay: f32,
    /// Parameters without weight decay.
    undecayed: HashSet<ParamId>,
    /// Elements of a buffer; with 0 every parameter is by itself.
    buffer: usize,
    buckets: Vec<Bucket>,
    /// The parameters in the buckets, in the module's order.
    members: Vec<Member>,
    /// The states of parameters that are in no bucket yet.
    others: HashMap<ParamId, (Origin, Member, State)>,
}

/// The gradients of a step, as the optimizer's buckets have them.
pub struct Gradients {
    buffers: Vec<Tensor<1>>,
    rates: Vec<f64>,
}

impl Gradients {
    /// The sums of the squares of each buffer's gradients; `[0]` for a buffer of none.
    pub fn square_sums(&self, device: &Device) -> Tensor<1> {
        let sums: Vec<_> = self.buffers.iter().map(|buffer| buffer.clone().square().sum()).collect();
        if sums.is_empty() { Tensor::zeros([1], device) } else { Tensor::cat(sums, 0) }
    }
}

impl Optimizer {
    /// The optimizer that the recipe names, for the parameters of `module`, in buffers of `buffer` elements, with these
    /// operations on the CPU.
    pub fn new<M: Module>(recipe: &recipe::Optimizer, module: &M, buffer: usize, kernels: KernelMode) -> Self {
        let momentum = recipe.momentum.unwrap_or(0.0) as f32;
        let betas = recipe.betas.unwrap_or([0.9, 0.999]);
        let rule = match recipe.name {
            OptimizerName::Sgd => Rule::Sgd { momentum, nesterov: recipe.nesterov.unwrap_or(false), kernels },
            OptimizerName::AdamW => Rule::AdamW { betas, epsilon: recipe.epsilon.unwrap_or(1e-8) },
            OptimizerName::Lamb => Rule::Lamb { betas, epsilon: recipe.epsilon.unwrap_or(1e-6) },
            OptimizerName::RmsProp => {
                Rule::RmsProp { alpha: recipe.alpha.unwrap_or(0.99), momentum, epsilon: recipe.epsilon.unwrap_or(1e-8) }
            }
        };
        let buffer = if rule.is_elementwise() { buffer } else { 0 };
        Self {
            rule,
            weight_decay: recipe.weight_decay,
            undecayed: if recipe.decay_norms_and_biases { HashSet::new() } else { vectors(module) },
            buffer,
            buckets: Vec::new(),
            members: Vec::new(),
            others: HashMap::new(),
        }
    }

    /// Arranges the gradients of a step at these learning rates.
    pub fn pack<M: Module>(&mut self, module: &M, gradients: GradientsParams, rates: &ModuleLearningRate) -> Gradients {
        let (members, mut tensors) = flat::gradients(module, gradients);
        let of_buckets = |optimizer: &Self| optimizer.buckets.iter().map(|bucket| bucket.rate(rates)).collect();
        let known: Option<Vec<f64>> = if members == self.members { of_buckets(self) } else { None };
        let rates = known.unwrap_or_else(|| {
            self.form(members, rates);
            of_buckets(self).expect("a bucket's parameters have one rate")
        });
        let pack = |bucket: &Bucket| bucket.layout.pack(&mut tensors).expect("a bucket's parameters have gradients");
        Gradients { buffers: self.buckets.iter().map(pack).collect(), rates }
    }

    /// Forms buckets of the parameters that have gradients: what has one learning rate and one weight decay is stepped
    /// together.
    fn form(&mut self, members: Vec<Member>, rates: &ModuleLearningRate) {
        for (index, bucket) in std::mem::take(&mut self.buckets).into_iter().enumerate() {
            self.others
                .extend(bucket.states().map(|(member, state)| (member.id, (Origin::Bucket(index), member, state))));
        }
        let mut groups: Vec<((f64, f32, Origin), Vec<Member>)> = Vec::new();
        for member in &members {
            let decay = if self.undecayed.contains(&member.id) { 0.0 } else { self.weight_decay };
            let origin = self.others.get(&member.id).map_or(Origin::New, |(origin, ..)| *origin);
            let key = (rates.lr_from_param(member.id, None), decay, origin);
            match groups.iter_mut().find(|(known, _)| *known == key) {
                Some((_, group)) => group.push(member.clone()),
                None => groups.push((key, vec![member.clone()])),
            }
        }
        for ((_, decay, _), group) in groups {
            for layout in Layout::distribute(group, self.buffer) {
                let state = self.take_state(&layout);
                self.buckets.push(Bucket { layout, decay, state, params: None });
            }
        }
        // The order in which norms are summed must not depend on when parameters were unfrozen: a resumed run forms all
        // buckets at once.
        let positions: HashMap<ParamId, usize> =
            members.iter().enumerate().map(|(position, member)| (member.id, position)).collect();
        self.buckets.sort_by_key(|bucket| bucket.layout.members().first().map(|member| positions[&member.id]));
        self.members = members;
    }

    /// The state of a bucket, from those of its parameters.
    fn take_state(&mut self, layout: &Layout) -> State {
        let (mut steps, mut moments) = (None, [FlatTensors::new(), FlatTensors::new()]);
        for member in layout.members() {
            let Some((_, _, state)) = self.others.remove(&member.id) else { continue };
            steps = steps.or(state.steps);
            for (moments, moment) in moments.iter_mut().zip(state.moments) {
                moments.extend(moment.map(|moment| (member.id, moment)));
            }
        }
        State { steps, moments: moments.map(|mut moments| layout.pack(&mut moments)) }
    }

    /// Steps the module by gradients that [`pack`](Self::pack) arranged.
    pub fn step<M: Module>(&mut self, module: M, gradients: Gradients, update: &Update) -> M {
        let mut current = FlatTensors::new();
        if self.buckets.iter().any(|bucket| bucket.layout.members().len() > 1 && bucket.params.is_none()) {
            current = flat::tensors(&module).1;
        }
        // Parameters that were stepped in a buffer; buckets of one parameter, which is stepped as it is replaced.
        let (mut stepped, mut single) = (FlatTensors::new(), HashMap::new());
        let Gradients { buffers, rates } = gradients;
        for ((bucket, gradient), rate) in self.buckets.iter_mut().zip(buffers).zip(rates) {
            if let [member] = bucket.layout.members() {
                single.insert(member.id, (bucket, gradient, rate));
                continue;
            }
            let params = bucket.params.take().or_else(|| bucket.layout.pack(&mut current));
            let params = params.expect("the module has the bucket's parameters");
            let params = bucket.step(&self.rule, rate, params, gradient, update);
            bucket.layout.unpack(params.clone(), &mut stepped);
            bucket.params = Some(params);
        }
        drop(current);
        let wanted: HashSet<ParamId> = stepped.keys().chain(single.keys()).copied().collect();
        flat::update(
            module,
            |id| wanted.contains(&id),
            |id, value| match single.remove(&id) {
                Some((bucket, gradient, rate)) => bucket.step(&self.rule, rate, value, gradient, update),
                None => stepped.remove(&id).unwrap_or(value),
            },
        )
    }

    /// The state of every parameter that was stepped.
    pub fn record(&self) -> Record {
        let mut record = Record::default();
        let (moments, steps) = self.rule.names();
        let of_buckets = self.buckets.iter().flat_map(Bucket::states);
        let of_others = self.others.values().map(|(_, member, state)| (member.clone(), state.clone()));
        for (Member { id, shape }, state) in of_buckets.chain(of_others) {
            let named = |name: &str| format!("{}.{name}", id.val());
            for (name, moment) in moments.iter().zip(state.moments) {
                let Some(moment) = moment else { continue };
                let (bytes, _, dtype) = moment.into_data().into_parts();
                record.tensors.push((named(name), id, TensorData::from_bytes(bytes, shape.clone(), dtype)));
            }
            if let (Some(name), Some(steps)) = (steps, state.steps) {
                record.scalars.insert(named(name), Scalar::UInt(steps.into_scalar::<f32>() as u64));
            }
            record.scalars.insert(named(RANK), Scalar::from(shape.num_dims()));
        }
        record
    }

    /// Continues from a record, with its tensors on `device`.
    pub fn load(&mut self, record: Record, device: &Device) {
        let device = device.clone().without_autodiff();
        let (moments, steps_name) = self.rule.names();
        for (name, id, data) in record.tensors {
            let Some(which) = moments.iter().position(|moment| name.ends_with(&format!(".{moment}"))) else { continue };
            let steps = steps_name.and_then(|steps| record.scalars.get(&format!("{}.{steps}", id.val())));
            let steps = steps.and_then(|steps| u64::try_from(*steps).ok());
            let (bytes, shape, dtype) = data.into_parts();
            let data = TensorData::from_bytes(bytes, [shape.num_elements()], dtype);
            let (_, _, state) = self.others.entry(id).or_insert_with(|| {
                let member = Member { id, shape: shape.clone() };
                let steps_tensor = steps.map(|steps| Tensor::from_floats([steps as f32], &device));
                let state = State { steps: steps_tensor, moments: [None, None] };
                (Origin::Record(steps.unwrap_or(0)), member, state)
            });
            state.moments[which] = Some(Tensor::from_data(data, &device));
        }
    }

    /// Moves the state to another device, to which the module has moved.
    pub fn to_device(&self, device: &Device) -> Self {
        let mut moved = self.clone();
        for bucket in &mut moved.buckets {
            bucket.state = bucket.state.to_device(device);
            bucket.params = None;
        }
        for (_, _, state) in moved.others.values_mut() {
            *state = state.to_device(device);
        }
        moved
    }
}

impl Bucket {
    fn step(&mut self, rule: &Rule, rate: f64, param: Tensor<1>, gradient: Tensor<1>, update: &Update) -> Tensor<1> {
        let gradient = update.scaled(gradient);
        let state = std::mem::take(&mut self.state);
        let Update::Guarded(verdict) = update else {
            let (param, state) = rule.step(rate, self.decay, param, gradient, state);
            self.state = state;
            return param;
        };
        let (new_param, new_state) = rule.step(rate, self.decay, param.clone(), gradient, state.clone());
        self.state = State::select(&verdict.finite, new_state, state);
        select(&verdict.finite, new_param, param)
    }

    /// The state of each parameter.
    fn states(&self) -> impl Iterator<Item = (Member, State)> {
        let mut moments = [FlatTensors::new(), FlatTensors::new()];
        for (moments, moment) in moments.iter_mut().zip(&self.state.moments) {
            if let Some(moment) = moment {
                self.layout.unpack(moment.clone(), moments);
            }
        }
        let state = move |member: &Member| {
            let moments = moments.each_mut().map(|moments| moments.remove(&member.id));
            (member.clone(), State { steps: self.state.steps.clone(), moments })
        };
        self.layout.members().iter().map(state)
    }
}

/// The scalar of a parameter in Burn's records that has its number of dimensions.
const RANK: &str = "__rank";

/// An optimizer's state as a file has it: the same as a record of Burn's optimizer of the same name.
#[derive(Default)]
pub struct Record {
    tensors: Vec<(String, ParamId, TensorData)>,
    scalars: BTreeMap<String, Scalar>,
}

impl Record {
    pub fn into_bytes(self) -> Result<Bytes, RecordError> {
        let tensors = self.tensors.into_iter().map(|(name, id, data)| {
            let (bytes, shape, dtype) = data.into_parts();
            burn_pack::Tensor::new(name, dtype, shape, Some(id.val()), bytes)
        });
        let writer = Writer::new(tensors.collect());
        let writer = self.scalars.iter().fold(writer, |writer, (name, value)| writer.with_scalar(name, *value));
        Ok(writer.into_bytes()?)
    }

    pub fn from_bytes(bytes: Bytes) -> Result<Self, RecordError> {
        let reader = Reader::from_bytes(bytes)?;
        let scalars = reader.scalars().clone();
        let tensors = reader.into_tensors()?.into_iter().map(|tensor| {
            let (name, dtype, shape, id, bytes) = tensor.into_parts()?;
            let no_parameter = || format!("the tensor {name} of the optimizer belongs to no parameter");
            let id = id.ok_or_else(|| RecordError::Validation(no_parameter()))?;
            Ok((name, ParamId::from(id), TensorData::from_bytes(bytes, shape, dtype)))
        });
        Ok(Self { tensors: tensors.collect::<Result<_, RecordError>>()?, scalars })
    }
}

/// The parameters with one dimension: norms' scales and shifts, and biases. Everything that mixes channels has more.
fn vectors<M: Module>(module: &M) -> HashSet<ParamId> {
    let members = flat::tensors(module).0;
    members.into_iter().filter(|member| member.shape.num_dims() == 1).map(|member| member.id).collect()
}

#[cfg(test)]
mod tests {
    use burn::{
        module::{Module, Param, ParamGroup},
        nn::{Linear, LinearConfig},
        optim::{
            AdamWConfig, LambConfig, ModuleOptimizer, OptimizerRecord, RmsPropConfig, SgdConfig,
            decay::WeightDecayConfig, lr_scheduler::module_lr_scheduler::ModuleLrScheduler, momentum::MomentumConfig,
        },
    };

    use super::*;
    use crate::recipe::{Overrides, load};

    const RATE: f64 = 0.1;

    #[derive(Module, Debug)]
    struct Net {
        first: Linear,
        second: Linear,
    }

    fn net() -> Net {
        let device = Device::flex().autodiff();
        let linear = |weights: [[f32; 2]; 2], biases: [f32; 2]| {
            let mut linear = LinearConfig::new(2, 2).init(&device);
            linear.weight = Param::from_data(TensorData::from(weights), &device);
            linear.bias = Some(Param::from_data(TensorData::from(biases), &device));
            linear
        };
        Net {
            first: linear([[1.0, -2.0], [3.0, 4.0]], [1.0, 2.0]),
            second: linear([[0.5, 1.5], [-1.0, 2.5]], [0.0, -3.0]),
        }
    }

    /// Gradients of the sum of the first layer's outputs for the input (3, 4): 3, 3, 4, 4 and 1, 1; those of the second
    /// depend on the first layer. All times `factor`.
    fn gradients(net: &Net, factor: f32) -> GradientsParams {
        let input = Tensor::<2>::from_floats([[3.0, 4.0]], &Device::flex().autodiff());
        let loss = net.first.forward(input.clone()).sum() + net.second.forward(input * 0.1).powi_scalar(2).sum();
        GradientsParams::from_grads((loss * factor).backward(), net)
    }

    fn values(net: &Net) -> Vec<f32> {
        let (members, tensors) = flat::tensors(net);
        members
            .iter()
            .flat_map(|member| tensors[&member.id].clone().into_data().iter::<f32>().collect::<Vec<_>>())
            .collect()
    }

    fn optimizer(changes: &[&str], net: &Net, buffer: usize) -> Optimizer {
        let mut overrides = Overrides::default();
        changes.iter().for_each(|change| overrides.parse(change).unwrap());
        Optimizer::new(&load("digits", &overrides).unwrap().optimizer, net, buffer, KernelMode::Optimized)
    }

    fn step(optimizer: &mut Optimizer, net: Net, factor: f32, update: &Update) -> Net {
        let packed = optimizer.pack(&net, gradients(&net, factor), &RATE.into());
        optimizer.step(net, packed, update)
    }

    const APPLY: Update = Update::Apply { factor: 1.0 };

    fn after(changes: &[&str], steps: usize, buffer: usize) -> Vec<f32> {
        let mut net = net();
        let mut optimizer = optimizer(changes, &net, buffer);
        for _ in 0..steps {
            net = step(&mut optimizer, net, 1.0, &APPLY);
        }
        values(&net)
    }

    fn assert_close(values: &[f32], expected: &[f32]) {
        assert_eq!(values.len(), expected.len());
        assert!(values.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{values:?} not {expected:?}");
    }

    const ALL: [&str; 4] = [
        r#"optimizer={ name = "sgd", momentum = 0.9, nesterov = true, weight_decay = 0.01 }"#,
        r#"optimizer={ name = "adamw", weight_decay = 0.01 }"#,
        r#"optimizer={ name = "lamb", weight_decay = 0.01 }"#,
        r#"optimizer={ name = "rmsprop", momentum = 0.9, weight_decay = 0.01 }"#,
    ];

    #[test]
    fn square_sums_are_those_of_all_gradients() {
        let net = net();
        let all: f32 = {
            let (members, tensors) = flat::gradients(&net, gradients(&net, 1.0));
            members.iter().map(|member| tensors[&member.id].clone().square().sum().into_scalar::<f32>()).sum()
        };
        assert!(all > 52.0);
        for buffer in [0, 1 << 10] {
            let packed = optimizer(&[], &net, buffer).pack(&net, gradients(&net, 1.0), &RATE.into());
            let sums: f32 = packed.square_sums(&Device::flex()).sum().into_scalar();
            assert!((sums - all).abs() < 1e-3, "{sums} {all}");
        }
        let packed = optimizer(&[], &net, 0).pack(&net, GradientsParams::new(), &RATE.into());
        assert_eq!(packed.square_sums(&Device::flex()).into_data().iter::<f32>().collect::<Vec<_>>(), [0.0]);
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
        let weights = [(1.0, 3.0), (-2.0, 3.0), (3.0, 4.0), (4.0, 4.0), (1.0, 1.0), (2.0, 1.0)];
        for nesterov in [false, true] {
            let expected: Vec<f32> = weights.iter().map(|&(w, g)| by_hand(w, g, 0.5, nesterov)).collect();
            let nesterov = format!("optimizer.nesterov={nesterov}");
            assert_close(&after(&["optimizer.weight_decay=0.5", &nesterov], 2, 0)[..6], &expected);
        }
    }

    #[test]
    fn adamw_is_pytorch_s() {
        // One step moves every weight by the rate (bias correction makes the ratio of the moments 1) after the decay.
        let changes = [r#"optimizer = { name = "adamw", weight_decay = 0.5 }"#];
        let expected = [1.0f32, -2.0, 3.0, 4.0, 1.0, 2.0].map(|w| w * (1.0 - 0.1 * 0.5) - 0.1);
        assert_close(&after(&changes, 1, 0)[..6], &expected);
    }

    /// Each continues from the other's record. SGD has Burn's bits; the others compute their bias corrections on the
    /// device.
    #[test]
    fn rules_and_records_are_burn_s() {
        let decay = || Some(WeightDecayConfig::new(0.01));
        let momentum = MomentumConfig::new().with_momentum(0.9).with_dampening(0.0).with_nesterov(true);
        let burns = |which: usize| -> ModuleOptimizer {
            match which {
                0 => SgdConfig::new().with_momentum(Some(momentum.clone())).with_weight_decay(decay()).init(),
                1 => AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.01).init(),
                2 => LambConfig::new().with_epsilon(1e-6).with_weight_decay(0.01).init(),
                _ => RmsPropConfig::new().with_epsilon(1e-8).with_weight_decay(decay()).init(),
            }
        };
        let burn_steps = |mut optimizer: ModuleOptimizer, mut net: Net| {
            for _ in 0..5 {
                let gradients = gradients(&net, 1.0);
                net = optimizer.step(RATE, net, gradients);
            }
            (optimizer, net)
        };
        let our_steps = |mut optimizer: Optimizer, mut net: Net| {
            for _ in 0..5 {
                net = step(&mut optimizer, net, 1.0, &APPLY);
            }
            (optimizer, net)
        };
        for (which, changes) in ALL.into_iter().enumerate() {
            let start = net();
            let (ours, our_net) = our_steps(optimizer(&[changes], &start, 0), start.clone());
            let (burn, burn_net) = burn_steps(burns(which), start);
            let (one, other) = (values(&our_net), values(&burn_net));
            if which == 0 {
                assert_eq!(one, other)
            } else {
                assert_close(&one, &other)
            }

            let record = Record::from_bytes(burn.to_record().into_bytes().unwrap()).unwrap();
            let mut loaded = optimizer(&[changes], &burn_net, 0);
            loaded.load(record, &Device::flex());
            let (_, crossed) = our_steps(loaded, burn_net.clone());
            let (_, straight) = burn_steps(burn, burn_net);
            assert_close(&values(&crossed), &values(&straight));
            // Burn wants a record of its RMSProp to have the average of squares twice.
            if which < 3 {
                let record = OptimizerRecord::from_bytes(ours.record().into_bytes().unwrap()).unwrap();
                let (_, back) = burn_steps(burns(which).load_record(record), our_net);
                assert_close(&values(&back), &values(&straight));
            }
        }
    }

    #[test]
    fn a_record_continues_with_the_same_bits_whatever_the_buffers() {
        for changes in ALL {
            let run = |steps: [usize; 2], buffers: [usize; 2]| {
                let mut net = net();
                let mut first = optimizer(&[changes], &net, buffers[0]);
                for _ in 0..steps[0] {
                    net = step(&mut first, net, 1.0, &APPLY);
                }
                let mut second = optimizer(&[changes], &net, buffers[1]);
                let bytes = first.record().into_bytes().unwrap();
                second.load(Record::from_bytes(bytes).unwrap(), &Device::flex());
                for _ in 0..steps[1] {
                    net = step(&mut second, net, 1.0, &APPLY);
                }
                values(&net)
            };
            let straight = after(&[changes], 5, 0);
            for buffers in [[0, 0], [0, 1 << 10], [1 << 10, 0], [1 << 10, 1 << 10]] {
                for steps in [[2, 3], [0, 5]] {
                    assert_eq!(run(steps, buffers), straight, "{changes} {buffers:?} {steps:?}");
                }
            }
        }
    }

    /// Steps that do not count leave no trace: neither in parameters nor in the state, from the first step on.
    #[test]
    fn discarded_steps_leave_no_trace() {
        let flag = |finite: bool| Tensor::<1, Bool>::from_data([finite], &Device::flex());
        let guarded = |finite: bool| Update::Guarded(Arc::new(Verdict { finite: flag(finite), factor: None }));
        for changes in ALL {
            for buffer in [0, 1 << 10] {
                let mut net = net();
                let mut guarded_optimizer = optimizer(&[changes], &net, buffer);
                for factor in [f32::NAN, 1.0, f32::INFINITY, 1.0, 1.0, f32::NAN] {
                    let before = values(&net);
                    net = step(&mut guarded_optimizer, net, factor, &guarded(factor == 1.0));
                    assert_eq!(values(&net) == before, factor != 1.0, "{changes}");
                }
                assert_eq!(values(&net), after(&[changes], 3, 0), "{changes}");
                let bytes = guarded_optimizer.record().into_bytes().unwrap();
                let mut resumed = optimizer(&[changes], &net, 0);
                resumed.load(Record::from_bytes(bytes).unwrap(), &Device::flex());
                let net = step(&mut resumed, net, 1.0, &APPLY);
                assert_eq!(values(&net), after(&[changes], 4, 0), "{changes}");
            }
        }
    }

    #[test]
    fn factors_of_the_host_and_of_the_device_are_the_same() {
        let device = Device::flex();
        let run = |update: &Update| {
            let net = net();
            let mut optimizer = optimizer(&[], &net, 0);
            values(&step(&mut optimizer, net, 1.0, update))
        };
        let factor = 0.1234567f32;
        let finite = Tensor::from_data([true], &device);
        let verdict = Verdict { finite, factor: Some(Tensor::from_floats([factor], &device)) };
        let of_device = Update::Guarded(Arc::new(verdict));
        assert_eq!(run(&Update::Apply { factor }), run(&of_device));
        assert_ne!(run(&of_device), run(&APPLY));
    }

    #[test]
    fn norms_and_biases_may_be_left_out_of_weight_decay() {
        for name in ["sgd", "adamw", "lamb", "rmsprop"] {
            for buffer in [0, 1 << 10] {
                let optimizer = |decay: f32| {
                    format!(
                        r#"optimizer = {{ name = "{name}", weight_decay = {decay:.1}, decay_norms_and_biases = false }}"#
                    )
                };
                let (decayed, plain) = (after(&[&optimizer(0.5)], 2, buffer), after(&[&optimizer(0.0)], 2, buffer));
                assert_eq!(decayed[4..6], plain[4..6], "{name}");
                assert_ne!(decayed[..4], plain[..4], "{name}");
            }
        }
    }

    /// Parameters that are trained later, at rates of their own, are stepped as they are by themselves.
    #[test]
    fn buckets_follow_the_parameters_that_are_trained_and_their_rates() {
        for changes in ALL {
            let run = |buffer: usize| {
                let mut net = net();
                let second = ParamGroup::ids_from_module(net.second.clone());
                net = net.freeze_group(second.clone());
                let mut optimizer = optimizer(&[changes], &net, buffer);
                for number in 0..6 {
                    if number == 2 {
                        net = net.unfreeze_group(second.clone());
                    }
                    let mut rates = ModuleLrScheduler::new(RATE);
                    if number >= 4 {
                        rates = rates.with_group(second.clone(), RATE / 2.0);
                    }
                    let packed = optimizer.pack(&net, gradients(&net, 1.0), &rates.step());
                    net = optimizer.step(net, packed, &APPLY);
                }
                values(&net)
            };
            let alone = run(0);
            assert_eq!(alone, run(1 << 10), "{changes}");
            assert_ne!(alone, after(&[changes], 6, 0), "{changes}");
        }
    }
}
