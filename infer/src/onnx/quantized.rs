//! A quantized network as a graph of f32 operations between `QuantizeLinear` and `DequantizeLinear`, which runtimes fuse
//! into integer ones.

use std::collections::HashMap;

use burn::tensor::TensorData;
use models::{
    Graph, QuantizedNetwork,
    graph::{Constant, Node, Op, Size, Value},
    quantized::{Operation, Quantization, Step, Weights},
};

/// What the writer quantizes.
pub(super) struct Quantized {
    /// The graph; weights in int8 are constants of that type.
    pub graph: Graph,
    /// The bytes of values, from where they are computed to where they are read.
    pub values: HashMap<Value, Quantization>,
    /// Values in f32 that a step reads in bytes: the rounded value, the value, and its bytes.
    pub rounded: HashMap<Value, (Value, Quantization)>,
    /// The pixels of the images: the scale and the zero point of each channel.
    pub pixels: Vec<Quantization>,
    /// What is added to the images first: the means are no whole bytes.
    pub shift: Vec<f32>,
    /// The scale of each output channel of weights in int8.
    pub scales: HashMap<Value, Vec<f32>>,
}

impl Quantized {
    pub fn new(network: &QuantizedNetwork) -> Result<Self, String> {
        let (program, layers) = (network.program(), network.layers());
        let ids = program.steps.iter().map(|step| step.output).chain([program.input]);
        let mut next: Value = ids.max().unwrap_or_default() + 1;
        let mut fresh = || {
            next += 1;
            next
        };
        let shapes = network.shapes().map_err(|error| error.to_string())?;
        let mut graph = Graph {
            input: program.input,
            input_size: program.input_size,
            output: program.output,
            nodes: vec![],
            constants: std::collections::BTreeMap::new(),
        };
        let bytes_of = |step: &Step| Some((step.output, *program.quantization.get(&step.output)?));
        let in_f32 = program.steps.iter().filter(|step| network.is_float(step));
        let produced_in_f32: HashMap<Value, Quantization> = in_f32.filter_map(bytes_of).collect();
        let (mut copies, mut rounded) = (HashMap::new(), HashMap::new());
        let mut scales = HashMap::new();
        for step in &program.steps {
            let shape = shapes.get(&step.output).ok_or("a step without a shape")?;
            let shape: Vec<Size> = match &step.operation {
                Operation::Float { shape, .. } => shape.clone(),
                _ => [Size::PerImage(1)].into_iter().chain(shape[1..].iter().map(|&size| Size::Fixed(size))).collect(),
            };
            let mut round = |value: Value| match produced_in_f32.get(&value) {
                Some(&bytes) if network.reads_bytes(step) => *copies.entry(value).or_insert_with(|| {
                    let copy = fresh();
                    rounded.insert(copy, (value, bytes));
                    copy
                }),
                _ => value,
            };
            let mut inputs: Vec<Value> = step.inputs.iter().map(|&value| round(value)).collect();
            let residual = step.residual.map(round);
            if let Some((name, layer)) = step.operation.layer().and_then(|name| Some((name, layers.get(name)?))) {
                let is_matrix = matches!(step.operation, Operation::Linear { .. });
                // A graph has the weights of linear layers transposed.
                let (weight_shape, order) = match (is_matrix, &layer.shape[..]) {
                    (true, &[out, width]) => {
                        let order = (0..width).flat_map(|input| (0..out).map(move |row| row * width + input)).collect();
                        (vec![width, out], Some(order))
                    }
                    (_, shape) => (shape.to_vec(), None::<Vec<usize>>),
                };
                let weight = fresh();
                let data = match &layer.weights {
                    Weights::F32(values) => TensorData::new(in_order(values, order.as_deref()), weight_shape.clone()),
                    Weights::Int8 { values, scales: of_outputs } => {
                        scales.insert(weight, of_outputs.clone());
                        TensorData::new(in_order(values, order.as_deref()), weight_shape.clone())
                    }
                };
                let name = name.to_string();
                graph.constants.insert(weight, Constant { name: format!("{name}.weight"), shape: weight_shape, data });
                let bias = fresh();
                let length = layer.bias.len();
                let data = TensorData::new(layer.bias.clone(), [length]);
                graph.constants.insert(bias, Constant { name: format!("{name}.bias"), shape: vec![length], data });
                inputs.extend([weight, bias]);
            }
            let mut parts = vec![op(step)];
            parts.extend(step.residual.map(|_| Op::Add));
            parts.extend(step.relu.then_some(Op::Relu));
            let count = parts.len();
            for (index, op) in parts.into_iter().enumerate() {
                let output = if index + 1 == count { step.output } else { fresh() };
                if op == Op::Add && index > 0 {
                    inputs.extend(residual);
                }
                let read = std::mem::replace(&mut inputs, vec![output]);
                graph.nodes.push(Node { op, inputs: read, output, shape: shape.clone(), stage: step.stage.clone() });
            }
        }
        let values = program.steps.iter().filter(|step| !network.is_float(step));
        let values = values.filter_map(bytes_of).collect();
        let pixels = network.pixels();
        let shift = pixels.iter().zip(&program.mean);
        let shift = shift.map(|(channel, mean)| (255.0 * mean - f32::from(channel.zero)) * channel.scale).collect();
        Ok(Self { graph, values, rounded, pixels, shift, scales })
    }
}

fn in_order<T: Copy>(values: &[T], order: Option<&[usize]>) -> Vec<T> {
    match order {
        Some(order) => order.iter().map(|&index| values[index]).collect(),
        None => values.to_vec(),
    }
}

/// The operation of a step without what is fused into it.
fn op(step: &Step) -> Op {
    match step.operation.clone() {
        Operation::Conv2d { stride, padding, dilation, groups, .. } => {
            Op::Conv2d { stride, padding: padding.map(|[before, after]| (before, after)), dilation, groups }
        }
        Operation::Linear { .. } => Op::Linear,
        Operation::MaxPool2d { kernel, stride, padding, ceil_mode } => {
            Op::MaxPool2d { kernel, stride, padding, dilation: [1, 1], ceil_mode }
        }
        Operation::AvgPool2d { kernel, stride, padding, count_include_pad, ceil_mode } => Op::AvgPool {
            kernel: kernel.to_vec(),
            stride: stride.to_vec(),
            padding: padding.to_vec(),
            count_include_pad,
            ceil_mode,
        },
        Operation::AdaptiveAvgPool2d { output } => Op::AdaptiveAvgPool2d { output },
        Operation::Concat => Op::Concat { axis: 1 },
        Operation::Add => Op::Add,
        Operation::Relu => Op::Relu,
        Operation::Flatten => Op::Reshape,
        Operation::Float { op, .. } => op,
    }
}
