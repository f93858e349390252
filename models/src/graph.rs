//! A network as a graph of operations, recorded from its own forward pass: what exports and diagrams stand on, so that
//! no architecture needs code of its own for either.
//!
//! Burn's capture device records the operations of a pass without running them. Two passes with batches of two and three
//! images tell which sizes follow the batch.

use std::collections::{BTreeMap, HashMap};

use burn::{
    backend::Capture,
    module::{Module, ModuleVisitor, Param},
    tensor::{CapturedGraph, Device, Shape, Tensor, TensorData, TensorId},
};
use burn_ir::{
    ActivationOperationIr as Activation, BaseOperationIr as Base, FloatOperationIr as Float,
    ModuleOperationIr as Modules, NumericOperationIr as Numeric, OperationIr, ScalarIr, TensorIr,
};
use serde::{Deserialize, Serialize};

use crate::{Architecture, Entry, Error, ImageClassifier, Network, Result, hook::ForwardHook};

/// A tensor of a graph, by number.
pub type Value = u64;

/// A network as a graph, in evaluation mode, for one size of image and any number of images.
#[derive(Debug, Clone, Serialize)]
pub struct Graph {
    /// The images, `[n, 3, h, w]`.
    pub input: Value,
    /// Height and width of the images in pixels.
    pub input_size: [usize; 2],
    /// The logits, `[n, classes]`.
    pub output: Value,
    /// In an order in which every node comes after those it reads.
    pub nodes: Vec<Node>,
    /// Parameters and running statistics.
    pub constants: BTreeMap<Value, Constant>,
}

/// An operation.
#[derive(Debug, Clone, Serialize)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// What it reads, in the order that [`Op`] names them.
    pub inputs: Vec<Value>,
    /// What it computes.
    pub output: Value,
    /// The shape of the output.
    pub shape: Vec<Size>,
    /// torchvision's name of the stage it belongs to: `layer1`, `inception3a`, `features.3`, `fc`.
    pub stage: String,
}

/// The size of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Size {
    /// A number that does not depend on the batch size.
    Fixed(usize),
    /// A number per image.
    PerImage(usize),
}

/// A tensor that does not depend on the input.
#[derive(Debug, Clone, Serialize)]
pub struct Constant {
    /// torchvision's key for parameters and statistics (linear weights are transposed here, `[in, out]`); `constant.N` for
    /// others.
    pub name: String,
    /// The shape.
    pub shape: Vec<usize>,
    /// The values, in row-major order.
    #[serde(skip)]
    pub data: TensorData,
}

impl Constant {
    /// How the names of constants begin that are neither parameters nor statistics.
    const UNNAMED: &str = "constant.";
}

/// What a node computes. Images are `[n, c, h, w]`; sizes of windows are `[height, width]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs)] // The fields are called what torch.nn calls them.
pub enum Op {
    /// Input, weight `[out, in / groups, kh, kw]`, perhaps bias.
    Conv2d { stride: [usize; 2], padding: [(usize, usize); 2], dilation: [usize; 2], groups: usize },
    /// Input, weight, bias, mean, variance.
    BatchNorm { epsilon: f64 },
    /// Input.
    MaxPool2d { kernel: [usize; 2], stride: [usize; 2], padding: [usize; 2], dilation: [usize; 2], ceil_mode: bool },
    /// Input `[n, c, h, w]` or, with one window size, `[n, c, l]`.
    AvgPool { kernel: Vec<usize>, stride: Vec<usize>, padding: Vec<usize>, count_include_pad: bool, ceil_mode: bool },
    /// Input.
    AdaptiveAvgPool2d { output: [usize; 2] },
    /// Input.
    Relu,
    /// Input `[n, in]`, weight `[in, out]`, perhaps bias `[1, out]`.
    Linear,
    /// Two inputs, which broadcast.
    Add,
    /// Two inputs, which broadcast.
    Mul,
    /// Two inputs, which broadcast.
    Div,
    /// Input.
    AddScalar(f64),
    /// Input.
    MulScalar(f64),
    /// Input.
    PowScalar(f64),
    /// Any number of inputs.
    Concat { axis: usize },
    /// Input; the shape is the node's.
    Reshape,
    /// Input.
    Transpose { permutation: Vec<usize> },
    /// Input; for each axis where it begins, where it ends (`None`: at its end) and its step.
    Slice { ranges: Vec<(usize, Option<usize>, usize)> },
    /// No input.
    Zeros,
}

/// The batches whose recordings are compared.
const BATCHES: [usize; 2] = [2, 3];

impl Graph {
    /// Records the forward pass of `network` for images of `height × width` pixels.
    ///
    /// # Errors
    /// Where the network does not accept images of this size, or uses an operation that this module does not know.
    pub fn of(architecture: Architecture, network: &Network, size: [usize; 2]) -> Result<Self> {
        architecture.check_input(size)?;
        Recording::of(network, size).and_then(|recording| recording.graph(size)).map_err(Error::Graph)
    }

    /// The multiply-adds of a node for one image; those of convolutions and linear layers count, as is the custom.
    pub fn multiply_adds(&self, node: &Node) -> u64 {
        let fan_in = match (&node.op, node.inputs.get(1).and_then(|weight| self.constants.get(weight))) {
            (Op::Conv2d { .. }, Some(weight)) => weight.shape[1..].iter().product(),
            (Op::Linear, Some(weight)) => weight.shape[0],
            _ => 0,
        };
        let outputs: usize = node.shape.iter().map(|size| size.of_one()).product();
        (fan_in * outputs) as u64
    }

    /// The trainable parameters that a node reads: running statistics and other constants are none.
    pub fn parameters(&self, node: &Node) -> usize {
        let constants = node.inputs.iter().filter_map(|input| self.constants.get(input));
        let trained = constants
            .filter(|constant| !constant.name.contains(".running_") && !constant.name.starts_with(Constant::UNNAMED));
        trained.map(|constant| constant.shape.iter().product::<usize>()).sum()
    }
}

impl Size {
    /// The size for one image.
    pub fn of_one(self) -> usize {
        match self {
            Size::Fixed(size) | Size::PerImage(size) => size,
        }
    }
}

/// What Burn recorded of two passes.
struct Recording {
    captured: CapturedGraph,
    names: HashMap<Value, String>,
    passes: [Pass; 2],
}

/// One pass: its ends, and where each stage ends.
struct Pass {
    input: Value,
    output: Value,
    stages: Vec<(String, Value)>,
}

type Outcome<T> = std::result::Result<T, String>;

impl Recording {
    fn of(network: &Network, [height, width]: [usize; 2]) -> Outcome<Self> {
        let device = Device::capture();
        let entries = network.entries();
        let mut names = HashMap::new();
        let mut passes = Vec::new();
        let captured = device.capture_scope(|scope| {
            // Clones share their running statistics, and moving one would move both: `valid` makes them its own.
            let network = network.valid().to_device(&device);
            let mut visitor = Names { entries: entries.iter(), names: &mut names };
            network.visit(&mut visitor);
            let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
            for batch in BATCHES {
                let images = TensorData::zeros::<f32, _>([batch, 3, height, width]);
                let images = Tensor::<4>::from_data(images, &device);
                let mut stages = Stages::default();
                let input = id(images.clone());
                let logits = network.forward_with_hook(images, &mut stages);
                let output = id(logits.clone());
                outputs.push(logits);
                passes.push(Pass { input: input.value(), output: output.value(), stages: stages.0 });
                inputs.push(input);
            }
            let ids: Vec<TensorId> = outputs.iter().map(|logits| id(logits.clone())).collect();
            scope.complete(inputs, ids)
        });
        let captured = captured.map_err(|error| error.to_string())?;
        let passes = passes.try_into().map_err(|_| "two passes were to be recorded")?;
        Ok(Self { captured, names, passes })
    }

    fn graph(mut self, input_size: [usize; 2]) -> Outcome<Graph> {
        let operations = std::mem::take(&mut self.captured.graph.operations);
        let values = std::mem::take(&mut self.captured.values);
        let [first, second] = &self.passes;
        let mut constants: BTreeMap<Value, Constant> = BTreeMap::new();
        for (id, data) in values {
            let id = id.value();
            if id == first.input || id == second.input {
                continue;
            }
            let name = self.names.get(&id).cloned().unwrap_or_else(|| format!("{}{id}", Constant::UNNAMED));
            constants.insert(id, Constant { name, shape: data.shape().to_vec(), data });
        }

        let mut drafts = Vec::new();
        for operation in &operations {
            if let Some(draft) = Draft::of(operation)? {
                drafts.push(draft);
            }
        }
        // A constant seen in another shape is a constant.
        drafts.retain(|draft| {
            let constant = match (&draft.op, draft.inputs.first().and_then(|input| constants.get(input))) {
                (Op::Reshape, Some(constant)) => {
                    Constant { shape: draft.shape.clone(), data: constant.data.clone(), name: constant.name.clone() }
                }
                _ => return true,
            };
            constants.insert(draft.output, constant);
            false
        });
        let (drafts, others) = drafts.split_at(drafts.len() / 2);
        if drafts.len() != others.len() || !drafts.iter().zip(others).all(|(a, b)| a.op.is_like(&b.op)) {
            return Err("its operations depend on the number of images".to_string());
        }

        let mut stages = first.stages.iter();
        let mut stage = stages.next();
        let mut nodes = Vec::with_capacity(drafts.len());
        for (draft, other) in drafts.iter().zip(others) {
            let shape = draft.shape.iter().zip(&other.shape).map(|(&a, &b)| size(a, b)).collect::<Outcome<_>>()?;
            let mut op = draft.op.clone();
            if let (Op::Slice { ranges }, Op::Slice { ranges: others }) = (&mut op, &other.op) {
                // An end that follows the batch is the end of the axis.
                for (range, other) in ranges.iter_mut().zip(others).filter(|(range, other)| range != other) {
                    if (range.0, range.2) != (other.0, other.2) {
                        return Err("a slice depends on the number of images".to_string());
                    }
                    range.1 = None;
                }
            }
            let name = stage.map(|(name, _)| name.clone()).unwrap_or_default();
            nodes.push(Node { op, inputs: draft.inputs.clone(), output: draft.output, shape, stage: name });
            if stage.is_some_and(|(_, end)| *end == draft.output) {
                stage = stages.next();
            }
        }
        let mut graph = Graph { input: first.input, input_size, output: first.output, nodes, constants };
        graph.join_bias();
        graph.name_tail();
        let used: Vec<Value> = graph.nodes.iter().flat_map(|node| node.inputs.clone()).collect();
        graph.constants.retain(|value, _| used.contains(value));
        Ok(graph)
    }
}

impl Graph {
    /// A product with a constant and the sum with another is one linear layer.
    fn join_bias(&mut self) {
        let mut at = 0;
        while at + 1 < self.nodes.len() {
            let (product, sum) = (&self.nodes[at], &self.nodes[at + 1]);
            let bias = match (&product.op, &sum.op, sum.inputs.as_slice()) {
                (Op::Linear, Op::Add, [input, bias])
                    if *input == product.output && self.constants.contains_key(bias) =>
                {
                    *bias
                }
                _ => {
                    at += 1;
                    continue;
                }
            };
            let sum = self.nodes.remove(at + 1);
            let product = &mut self.nodes[at];
            product.inputs.push(bias);
            product.output = sum.output;
        }
    }

    /// What comes after the last stage that was announced is the classifier: it is called by its weights' names.
    fn name_tail(&mut self) {
        let layer = |node: &Node| {
            let weight = self.constants.get(node.inputs.get(1)?)?;
            weight.name.strip_suffix(".weight").map(str::to_string)
        };
        let tail = self.nodes.iter().position(|node| node.stage.is_empty()).unwrap_or(self.nodes.len());
        let names: Vec<Option<String>> = self.nodes[tail..].iter().map(layer).collect();
        let mut last = names.iter().flatten().next().cloned().unwrap_or_default();
        for (node, name) in self.nodes[tail..].iter_mut().zip(names) {
            last = name.unwrap_or(last);
            node.stage.clone_from(&last);
        }
    }
}

/// An operation with the shape that one batch gave it.
struct Draft {
    op: Op,
    inputs: Vec<Value>,
    output: Value,
    shape: Vec<usize>,
}

impl Draft {
    fn new(op: Op, inputs: &[&TensorIr], output: &TensorIr) -> Self {
        let inputs = inputs.iter().map(|input| input.id.value()).collect();
        Self { op, inputs, output: output.id.value(), shape: dims(&output.shape) }
    }

    /// `None` for an operation that only makes a constant known.
    fn of(operation: &OperationIr) -> Outcome<Option<Self>> {
        let unknown = || {
            let text = format!("{operation:?}");
            let end = text.match_indices('{').next().map_or(text.len(), |(at, _)| at);
            Err(format!("it uses an operation that graphs do not know: {}", text[..end].trim_end_matches(['(', ' '])))
        };
        let draft = match operation {
            OperationIr::Init(_) | OperationIr::Drop(_) => return Ok(None),
            OperationIr::Activation(Activation::Relu(op)) => Self::new(Op::Relu, &[&op.input], &op.out),
            OperationIr::Module(op) => match op {
                Modules::Conv2d(op) => {
                    let inputs: Vec<&TensorIr> = [&op.x, &op.weight].into_iter().chain(&op.bias).collect();
                    let burn_ir::Conv2dOptionsIr { stride, padding, dilation, groups } = op.options.clone();
                    Self::new(Op::Conv2d { stride, padding, dilation, groups }, &inputs, &op.out)
                }
                Modules::BatchNorm(op) => {
                    let inputs = [&op.x, &op.gamma, &op.beta, &op.mean, &op.variance];
                    Self::new(Op::BatchNorm { epsilon: scalar(&op.epsilon)? }, &inputs, &op.out)
                }
                Modules::MaxPool2d(op) => {
                    let pool = Op::MaxPool2d {
                        kernel: op.kernel_size,
                        stride: op.stride,
                        padding: op.padding,
                        dilation: op.dilation,
                        ceil_mode: op.ceil_mode,
                    };
                    Self::new(pool, &[&op.x], &op.out)
                }
                Modules::AvgPool2d(op) => {
                    let pool = Op::AvgPool {
                        kernel: op.kernel_size.to_vec(),
                        stride: op.stride.to_vec(),
                        padding: op.padding.to_vec(),
                        count_include_pad: op.count_include_pad,
                        ceil_mode: op.ceil_mode,
                    };
                    Self::new(pool, &[&op.x], &op.out)
                }
                Modules::AvgPool1d(op) => {
                    let pool = Op::AvgPool {
                        kernel: vec![op.kernel_size],
                        stride: vec![op.stride],
                        padding: vec![op.padding],
                        count_include_pad: op.count_include_pad,
                        ceil_mode: op.ceil_mode,
                    };
                    Self::new(pool, &[&op.x], &op.out)
                }
                Modules::AdaptiveAvgPool2d(op) => {
                    Self::new(Op::AdaptiveAvgPool2d { output: op.output_size }, &[&op.x], &op.out)
                }
                _ => return unknown(),
            },
            OperationIr::BaseFloat(op) => match op {
                Base::Reshape(op) => Self::new(Op::Reshape, &[&op.input], &op.out),
                Base::Zeros(op) => Self::new(Op::Zeros, &[], &op.out),
                Base::Cat(op) => {
                    Self::new(Op::Concat { axis: op.dim }, &op.tensors.iter().collect::<Vec<_>>(), &op.out)
                }
                Base::SwapDims(op) => {
                    let mut permutation: Vec<usize> = (0..op.input.shape.len()).collect();
                    permutation.swap(op.dim1, op.dim2);
                    Self::new(Op::Transpose { permutation }, &[&op.input], &op.out)
                }
                Base::Permute(op) => Self::new(Op::Transpose { permutation: op.axes.clone() }, &[&op.input], &op.out),
                Base::Slice(op) => {
                    let whole = dims(&op.tensor.shape);
                    let ranges = op.ranges.iter().zip(whole).map(|(slice, size)| range(slice, size));
                    let ranges = ranges.collect::<Outcome<_>>()?;
                    Self::new(Op::Slice { ranges }, &[&op.tensor], &op.out)
                }
                _ => return unknown(),
            },
            OperationIr::NumericFloat(_, op) => match op {
                Numeric::Add(op) => Self::new(Op::Add, &[&op.lhs, &op.rhs], &op.out),
                Numeric::Mul(op) => Self::new(Op::Mul, &[&op.lhs, &op.rhs], &op.out),
                Numeric::Div(op) => Self::new(Op::Div, &[&op.lhs, &op.rhs], &op.out),
                Numeric::AddScalar(op) => Self::new(Op::AddScalar(scalar(&op.rhs)?), &[&op.lhs], &op.out),
                Numeric::MulScalar(op) => Self::new(Op::MulScalar(scalar(&op.rhs)?), &[&op.lhs], &op.out),
                _ => return unknown(),
            },
            OperationIr::Float(_, op) => match op {
                Float::Matmul(op) => Self::new(Op::Linear, &[&op.lhs, &op.rhs], &op.out),
                Float::PowfScalar(op) => Self::new(Op::PowScalar(scalar(&op.rhs)?), &[&op.lhs], &op.out),
                _ => return unknown(),
            },
            _ => return unknown(),
        };
        Ok(Some(draft))
    }
}

impl Op {
    /// Whether two recordings of an operation differ at most by the batch.
    fn is_like(&self, other: &Op) -> bool {
        match (self, other) {
            (Op::Slice { .. }, Op::Slice { .. }) => true,
            _ => self == other,
        }
    }
}

fn range(slice: &burn::tensor::Slice, size: usize) -> Outcome<(usize, Option<usize>, usize)> {
    let position = |at: isize| usize::try_from(if at < 0 { at + size as isize } else { at });
    let whole = || format!("a slice that graphs do not know: {slice:?}");
    let start = position(slice.start).map_err(|_| whole())?;
    let end = slice.end.map(position).transpose().map_err(|_| whole())?;
    let step = usize::try_from(slice.step).map_err(|_| whole())?;
    Ok((start, end, step))
}

fn scalar(scalar: &ScalarIr) -> Outcome<f64> {
    match *scalar {
        ScalarIr::Float(value) => Ok(value),
        ScalarIr::Int(value) => Ok(value as f64),
        ScalarIr::UInt(value) => Ok(value as f64),
        ScalarIr::Bool(_) => Err("a boolean is used as a number".to_string()),
    }
}

fn dims(shape: &Shape) -> Vec<usize> {
    shape.to_vec()
}

/// The size of an axis that was `a` and `b` for the two batches.
fn size(a: usize, b: usize) -> Outcome<Size> {
    let [two, three] = BATCHES;
    match a {
        _ if a == b => Ok(Size::Fixed(a)),
        _ if a.is_multiple_of(two) && a / two * three == b => Ok(Size::PerImage(a / two)),
        _ => Err(format!("an axis of {a} for {two} images and {b} for {three} follows no rule")),
    }
}

/// The number of a tensor on a capture device.
fn id<const D: usize>(tensor: Tensor<D>) -> TensorId {
    let primitive = tensor.try_into_primitive::<Capture>().expect("it is on a capture device");
    primitive.id()
}

/// Where each stage ends.
#[derive(Default)]
struct Stages(Vec<(String, Value)>);

impl ForwardHook for Stages {
    fn on_output(&mut self, name: &str, output: Tensor<4>) -> Tensor<4> {
        self.0.push((name.to_string(), id(output.clone()).value()));
        output
    }
}

/// Collects the numbers of a network's tensors, in the order of its entries.
struct Names<'a> {
    entries: std::slice::Iter<'a, Entry>,
    names: &'a mut HashMap<Value, String>,
}

impl ModuleVisitor for Names<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let entry = self.entries.next().expect("a tensor has an entry");
        self.names.insert(id(param.val()).value(), entry.key.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::{NetworkConfig, Summary};

    fn graph(architecture: Architecture, side: usize, folded: bool) -> (Network, Graph) {
        let config = NetworkConfig::new(architecture).with_num_classes(10).with_aux_logits(false);
        // An input that is mapped first brings constants that are no parameters.
        let network = config.with_transform_input(true).init(&Device::flex());
        let network = if folded { network.fold_batch_norm() } else { network };
        let graph = Graph::of(architecture, &network, [side, side]).unwrap();
        (network, graph)
    }

    #[test]
    fn every_family_is_recorded_with_its_parameters_and_cost() {
        for (architecture, side) in [
            (Architecture::AlexNet, 63),
            (Architecture::Vgg11Bn, 32),
            (Architecture::GoogLeNet, 64),
            (Architecture::GoogLeNet2014, 64),
            (Architecture::InceptionV3, 75),
            (Architecture::ResNeXt50, 32),
            (Architecture::ResNet20, 32),
        ] {
            for folded in [false, true] {
                let (network, graph) = graph(architecture, side, folded);
                let summary = Summary::of(architecture, &network, [side, side], &Device::flex()).unwrap();
                let cost: u64 = graph.nodes.iter().map(|node| graph.multiply_adds(node)).sum();
                assert_eq!(cost, summary.multiply_adds(), "{architecture}");
                let parameters: usize = graph.nodes.iter().map(|node| graph.parameters(node)).sum();
                assert_eq!(parameters, network.num_parameters(), "{architecture}");
                let norms = graph.nodes.iter().filter(|node| matches!(node.op, Op::BatchNorm { .. })).count();
                assert!(norms == 0 || !folded, "{architecture}: {norms} norms are left");

                let last = graph.nodes.last().unwrap();
                assert_eq!((last.output, &last.shape[..]), (graph.output, &[Size::PerImage(1), Size::Fixed(10)][..]));
                let mut known: HashSet<Value> = graph.constants.keys().copied().chain([graph.input]).collect();
                for node in &graph.nodes {
                    assert!(node.inputs.iter().all(|input| known.contains(input)), "{architecture}: {node:?}");
                    assert!(!node.stage.is_empty(), "{architecture}: {node:?}");
                    known.insert(node.output);
                }
                let unnamed = graph.constants.values().filter(|constant| constant.name.starts_with(Constant::UNNAMED));
                let mapped = [Architecture::GoogLeNet, Architecture::InceptionV3].contains(&architecture);
                assert_eq!(unnamed.count(), if mapped { 2 } else { 0 }, "{architecture}");
            }
        }
    }

    #[test]
    fn folding_leaves_the_logits_as_they_are() {
        let device = Device::flex();
        for (architecture, side) in [
            (Architecture::Vgg11Bn, 32),
            (Architecture::GoogLeNet, 64),
            (Architecture::InceptionV3, 75),
            (Architecture::ResNet18, 64),
            (Architecture::ResNet50, 64),
            (Architecture::ResNet20, 32),
        ] {
            device.seed(3);
            let network = NetworkConfig::new(architecture).with_num_classes(7).with_dropout(Some(0.0));
            let network = network.init(&device.clone().autodiff());
            let image = || Tensor::<4>::random([4, 3, side, side], burn::tensor::Distribution::Default, &device);
            // Training steps move the running statistics away from 0 and 1.
            for _ in 0..3 {
                network.forward(image().to_device(&device.clone().autodiff()));
            }
            let network = network.valid();
            let images = image();
            let before = network.forward(images.clone());
            let after = network.clone().fold_batch_norm().forward(images);
            let largest = before.clone().abs().max().into_scalar::<f32>();
            let difference = (before - after).abs().max().into_scalar::<f32>();
            assert!(difference > 0.0 && difference < 1e-4 * largest, "{architecture}: {difference} of {largest}");
        }
    }
}
