//! Writes a network as an ONNX file (opset 17) from its recorded [`Graph`], with no code for single architectures.
//!
//! The model has one input `input`, normalized images `[batch, 3, h, w]` of a fixed size and any batch size, and one
//! output `logits`, `[batch, classes]`. The model card is stored as metadata (`hearth.card`). `ceil_mode` is written
//! out as padding, so that no runtime has to interpret it.

mod proto;
mod quantized;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use burn::tensor::DType;
use hub::Card;
use models::{
    Graph, QuantizedNetwork,
    graph::{Constant, Node, Op, Size, Value},
    quantized::Quantization,
};
use prost::Message;

use crate::{Error, Result};

/// The version of the operator set.
pub const OPSET: i64 = 17;

/// Encodes the network.
///
/// # Errors
/// Fails if an operation has no counterpart in ONNX, or if the file would exceed the 2 GiB limit of protocol buffers.
pub fn encode(graph: &Graph, card: &Card) -> Result<Vec<u8>> {
    write(Writer::new(graph, None), card)
}

/// Encodes a quantized network: bytes are `QuantizeLinear` and `DequantizeLinear` around the operations, weights int8 with
/// a scale for each output channel (the QDQ form).
///
/// # Errors
/// As [`encode`].
pub fn encode_quantized(network: &QuantizedNetwork, card: &Card) -> Result<Vec<u8>> {
    let quantized = quantized::Quantized::new(network).map_err(Error::Onnx)?;
    let mut writer = Writer::new(&quantized.graph, Some(&quantized));
    writer.quantize_images(&quantized);
    write(writer, card)
}

fn write(mut writer: Writer<'_>, card: &Card) -> Result<Vec<u8>> {
    let graph = writer.graph;
    for node in &graph.nodes {
        for &input in &node.inputs {
            let rounded = writer.quantized.and_then(|quantized| quantized.rounded.get(&input));
            if let Some(&(value, to)) = rounded.filter(|_| !writer.names.contains_key(&input)) {
                let name = writer.name(value);
                writer.quantize(name, input, to, &node.stage);
                if let Some(&shape) = writer.shapes.get(&value) {
                    writer.shapes.insert(input, shape);
                }
            }
        }
        let failed = |cause| format!("cannot write {} of stage {}: {cause}", name_of(&node.op), node.stage);
        writer.node(node).map_err(|cause| Error::Onnx(failed(cause)))?;
        if let Some(&to) = writer.quantized.and_then(|quantized| quantized.values.get(&node.output)) {
            let name = writer.name(node.output);
            writer.quantize(name, node.output, to, &node.stage);
        }
    }
    let output = writer.name(graph.output);
    if output != LOGITS {
        writer.push("Identity", vec![output], LOGITS.to_string(), vec![], "");
    }
    let [height, width] = graph.input_size;
    let info = |name: &str, sizes: &[usize]| proto::ValueInfo {
        name: name.to_string(),
        r#type: Some(proto::Type {
            tensor_type: Some(proto::TensorType {
                elem_type: proto::FLOAT,
                shape: Some(proto::Shape {
                    dim: [proto::Dimension { dim_param: Some("batch".into()), dim_value: None }]
                        .into_iter()
                        .chain(
                            sizes
                                .iter()
                                .map(|&size| proto::Dimension { dim_value: Some(size as i64), dim_param: None }),
                        )
                        .collect(),
                }),
            }),
        }),
    };
    let model = proto::Model {
        ir_version: 8,
        producer_name: "Hearth".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        doc_string: format!("{} from {}", card.architecture, card.origin),
        opset_import: vec![proto::OperatorSet { domain: String::new(), version: OPSET }],
        metadata_props: vec![proto::StringEntry { key: "hearth.card".into(), value: card.to_json() }],
        graph: Some(proto::Graph {
            name: card.architecture.to_string(),
            node: writer.nodes,
            initializer: writer.initializers.into_values().collect(),
            input: vec![info(INPUT, &[3, height, width])],
            output: vec![info(LOGITS, &[card.classes.len()])],
        }),
    };
    match i32::try_from(model.encoded_len()) {
        Ok(_) => Ok(model.encode_to_vec()),
        Err(_) => Err(Error::Onnx(format!("{} exceeds the 2 GiB limit of ONNX files", card.architecture))),
    }
}

const INPUT: &str = "input";
const LOGITS: &str = "logits";

/// Returns the name of an operation for error messages.
fn name_of(op: &Op) -> String {
    let text = format!("{op:?}");
    text.split([' ', '(']).next().unwrap_or_default().to_string()
}

/// Collects nodes and constants.
struct Writer<'a> {
    graph: &'a Graph,
    quantized: Option<&'a quantized::Quantized>,
    shapes: HashMap<Value, &'a [Size]>,
    /// The names of computed values.
    names: HashMap<Value, String>,
    taken: BTreeSet<String>,
    nodes: Vec<proto::Node>,
    initializers: BTreeMap<String, proto::Tensor>,
}

impl<'a> Writer<'a> {
    fn new(graph: &'a Graph, quantized: Option<&'a quantized::Quantized>) -> Self {
        let shapes = graph.nodes.iter().map(|node| (node.output, node.shape.as_slice())).collect();
        let names = HashMap::from([(graph.input, INPUT.to_string())]);
        let (taken, initializers) = (BTreeSet::new(), BTreeMap::new());
        Self { graph, quantized, shapes, names, taken, nodes: vec![], initializers }
    }

    /// Rounds the images to the bytes of their pixels. What one byte more adds is in the weights.
    fn quantize_images(&mut self, quantized: &quantized::Quantized) {
        let pixels = &quantized.pixels;
        let scales: Vec<f32> = pixels.iter().map(|channel| channel.scale).collect();
        let zeros: Vec<u8> = pixels.iter().map(|channel| channel.zero).collect();
        let length = [pixels.len()];
        let scales = self.initialize("input.scale", &length, bytes(&scales));
        let ones = self.initialize("input.one", &length, bytes(&vec![1.0; pixels.len()]));
        let zeros = self.initialize_typed("input.zero", &length, proto::UINT8, zeros);
        let shift = self.initialize("input.shift", &[1, pixels.len(), 1, 1], bytes(&quantized.shift));
        let [shifted, quantized, pixels] = ["input.shifted", "input.quantized", "input.pixels"].map(str::to_string);
        self.push("Add", vec![INPUT.to_string(), shift], shifted.clone(), vec![], "input");
        let inputs = vec![shifted, scales, zeros.clone()];
        self.push("QuantizeLinear", inputs, quantized.clone(), vec![int("axis", 1)], "input");
        self.push("DequantizeLinear", vec![quantized, ones, zeros], pixels.clone(), vec![int("axis", 1)], "input");
        self.names.insert(self.graph.input, pixels);
    }

    /// Rounds what is called `name` to its bytes; `value` is the result.
    fn quantize(&mut self, name: String, value: Value, to: Quantization, stage: &str) {
        let scale = self.initialize(&format!("{name}.scale"), &[], bytes(&[to.scale]));
        let zero = self.initialize_typed(&format!("{name}.zero"), &[], proto::UINT8, vec![to.zero]);
        let [quantized, back] = ["quantized", "dequantized"].map(|suffix| format!("{name}.{suffix}"));
        let inputs = vec![name, scale.clone(), zero.clone()];
        self.push("QuantizeLinear", inputs, quantized.clone(), vec![], stage);
        self.push("DequantizeLinear", vec![quantized, scale, zero], back.clone(), vec![], stage);
        self.names.insert(value, back);
    }

    /// Writes a node, or returns why it has no counterpart.
    fn node(&mut self, node: &Node) -> Result<(), String> {
        let (op, inputs) = match &node.op {
            Op::Conv2d { stride, padding: [(top, bottom), (left, right)], dilation, groups } => {
                let kernel = &self.constant(node.inputs[1])?.shape[2..];
                let attributes = vec![
                    ints("kernel_shape", kernel),
                    ints("strides", stride),
                    ints("pads", &[*top, *left, *bottom, *right]),
                    ints("dilations", dilation),
                    int("group", *groups),
                ];
                (("Conv", attributes), self.inputs(node)?)
            }
            Op::BatchNorm { epsilon } => (("BatchNormalization", vec![float("epsilon", *epsilon)]), self.inputs(node)?),
            Op::MaxPool2d { kernel, stride, padding, dilation, .. } => {
                let spans = [0, 1].map(|axis| (kernel[axis] - 1) * dilation[axis] + 1);
                let pads = self.pads(node, &spans, stride, padding)?;
                let attributes = vec![
                    ints("kernel_shape", kernel),
                    ints("strides", stride),
                    ints("pads", &pads),
                    ints("dilations", dilation),
                ];
                (("MaxPool", attributes), self.inputs(node)?)
            }
            Op::AvgPool { kernel, stride, padding, count_include_pad, .. } => {
                let pads = self.pads(node, kernel, stride, padding)?;
                if pads[..padding.len()] != pads[padding.len()..] {
                    return Err(format!(
                        "an average over windows that extend past the feature map has no counterpart in ONNX {OPSET}"
                    ));
                }
                let attributes = vec![
                    ints("kernel_shape", kernel),
                    ints("strides", stride),
                    ints("pads", &pads),
                    int("count_include_pad", usize::from(*count_include_pad)),
                ];
                (("AveragePool", attributes), self.inputs(node)?)
            }
            Op::AdaptiveAvgPool2d { output } => return self.adaptive_pool(node, *output),
            Op::Relu => (("Relu", vec![]), self.inputs(node)?),
            Op::Linear => {
                let mut inputs = vec![self.name(node.inputs[0]), self.linear_weight(node.inputs[1])?];
                if let Some(&bias) = node.inputs.get(2) {
                    let Constant { name, shape, .. } = self.constant(bias)?;
                    let length = shape.iter().product();
                    inputs.push(self.initialize(name, &[length], floats(self.constant(bias)?)));
                }
                (("Gemm", vec![int("transB", 1)]), inputs)
            }
            Op::Add => (("Add", vec![]), self.inputs(node)?),
            Op::Mul => (("Mul", vec![]), self.inputs(node)?),
            Op::Div => (("Div", vec![]), self.inputs(node)?),
            Op::AddScalar(by) => (("Add", vec![]), vec![self.name(node.inputs[0]), self.scalar(*by)]),
            Op::MulScalar(by) => (("Mul", vec![]), vec![self.name(node.inputs[0]), self.scalar(*by)]),
            Op::PowScalar(by) => (("Pow", vec![]), vec![self.name(node.inputs[0]), self.scalar(*by)]),
            Op::Concat { axis } => (("Concat", vec![int("axis", *axis)]), self.inputs(node)?),
            Op::Transpose { permutation } => (("Transpose", vec![ints("perm", permutation)]), self.inputs(node)?),
            Op::Reshape => {
                let shape = self.reshape(node)?;
                (("Reshape", vec![]), vec![self.name(node.inputs[0]), self.integers(&shape)])
            }
            Op::Slice { ranges } => {
                let cut: Vec<_> = ranges.iter().enumerate().filter(|(_, range)| **range != (0, None, 1)).collect();
                let number = |n: usize| n as i64;
                let starts: Vec<i64> = cut.iter().map(|(_, range)| number(range.0)).collect();
                let ends: Vec<i64> = cut.iter().map(|(_, range)| range.1.map_or(i64::MAX, number)).collect();
                let axes: Vec<i64> = cut.iter().map(|(axis, _)| number(*axis)).collect();
                let steps: Vec<i64> = cut.iter().map(|(_, range)| number(range.2)).collect();
                let mut inputs = vec![self.name(node.inputs[0])];
                inputs.extend([starts, ends, axes, steps].map(|list| self.integers(&list)));
                (("Slice", vec![]), inputs)
            }
            Op::Zeros => return self.zeros(node),
        };
        let output = self.output(node);
        self.push(op.0, inputs, output, op.1, &node.stage);
        Ok(())
    }

    /// Returns the name of weights in int8 behind their `DequantizeLinear`; their outputs are the first axis.
    fn int8(&mut self, value: Value, shape: &[usize], values: &[i8]) -> Result<String, String> {
        let name = &self.constant(value)?.name;
        let scales =
            self.quantized.and_then(|quantized| quantized.scales.get(&value)).ok_or("weights without scales")?;
        let raw = values.iter().map(|value| value.cast_unsigned()).collect();
        let weight = self.initialize_typed(&format!("{name}.int8"), shape, proto::INT8, raw);
        let scale = self.initialize(&format!("{name}.scale"), &[scales.len()], bytes(scales));
        let zero = self.initialize_typed(&format!("{name}.zero"), &[scales.len()], proto::INT8, vec![0; scales.len()]);
        self.push("DequantizeLinear", vec![weight, scale, zero], name.clone(), vec![int("axis", 0)], "");
        Ok(name.clone())
    }

    /// Adaptive pooling becomes a mean, an identity, windows of one size, or two matrix products with weights.
    fn adaptive_pool(&mut self, node: &Node, output: [usize; 2]) -> Result<(), String> {
        let [height, width] = self.plane(node.inputs[0])?;
        let input = self.name(node.inputs[0]);
        if output == [height, width] {
            self.names.insert(node.output, input);
            return Ok(());
        }
        let name = self.output(node);
        if output == [1, 1] {
            self.push("GlobalAveragePool", vec![input], name, vec![], &node.stage);
        } else if height.is_multiple_of(output[0]) && width.is_multiple_of(output[1]) {
            let kernel = [height / output[0], width / output[1]];
            let attributes = vec![ints("kernel_shape", &kernel), ints("strides", &kernel)];
            self.push("AveragePool", vec![input], name, attributes, &node.stage);
        } else {
            // rows [oh, h] · input [.., h, w] · columns [w, ow]
            let rows = averaging(height, output[0]);
            let rows = self.initialize(&format!("{name}.rows"), &[output[0], height], bytes(&rows));
            let columns = transposed(&averaging(width, output[1]), width);
            let columns = self.initialize(&format!("{name}.columns"), &[width, output[1]], bytes(&columns));
            let half = format!("{name}.half");
            self.push("MatMul", vec![rows, input], half.clone(), vec![], &node.stage);
            self.push("MatMul", vec![half, columns], name, vec![], &node.stage);
        }
        Ok(())
    }

    /// Zeros with a batch axis: their shape is computed at run time.
    fn zeros(&mut self, node: &Node) -> Result<(), String> {
        let name = self.output(node);
        let [Size::PerImage(1), rest @ ..] = node.shape.as_slice() else {
            return Err(format!("zeros of shape {:?} have no counterpart", node.shape));
        };
        let rest: Vec<i64> = rest.iter().map(|size| size.of_one() as i64).collect();
        let rest = self.integers(&rest);
        let (batch, shape) = (format!("{name}.batch"), format!("{name}.shape"));
        let ends = vec![int("start", 0), int("end", 1)];
        self.push("Shape", vec![INPUT.to_string()], batch.clone(), ends, &node.stage);
        self.push("Concat", vec![batch, rest], shape.clone(), vec![int("axis", 0)], &node.stage);
        self.push("ConstantOfShape", vec![shape], name, vec![], &node.stage);
        Ok(())
    }

    /// Returns the new shape: 0 keeps the batch axis, −1 is computed at run time.
    fn reshape(&self, node: &Node) -> Result<Vec<i64>, String> {
        let from = self.shapes.get(&node.inputs[0]).copied().unwrap_or_default();
        let axis = |(axis, size): (usize, &Size)| match size {
            Size::Fixed(size) => *size as i64,
            Size::PerImage(_) if from.get(axis) == Some(size) => 0,
            Size::PerImage(_) => -1,
        };
        let shape: Vec<i64> = node.shape.iter().enumerate().map(axis).collect();
        match shape.iter().filter(|&&size| size == -1).count() {
            0 | 1 => Ok(shape),
            _ => Err("two axes depend on the batch".into()),
        }
    }

    /// Returns the padding at the beginning of each axis, and at its end as much as the output size requires.
    fn pads(&self, node: &Node, spans: &[usize], stride: &[usize], padding: &[usize]) -> Result<Vec<usize>, String> {
        let from = self.shapes.get(&node.inputs[0]).ok_or("its input is not computed")?;
        let axes = spans.len();
        let (from, to) = (&from[from.len() - axes..], &node.shape[node.shape.len() - axes..]);
        let mut ends = Vec::with_capacity(axes);
        for axis in 0..axes {
            let (from, to) = (from[axis].of_one(), to[axis].of_one());
            let reached = (to - 1) * stride[axis] + spans[axis];
            let open = reached.saturating_sub(from + padding[axis]);
            // Pixels that no window reaches are cut off with or without padding; the usual amount is easier to read.
            ends.push(open.max(padding[axis].min(reached.saturating_sub(from))));
            let size = (from + padding[axis] + ends[axis] - spans[axis]) / stride[axis] + 1;
            if size != to {
                return Err(format!("its windows yield {size} pixels, expected {to}"));
            }
        }
        Ok([padding, &ends].concat())
    }

    /// Returns height and width of a value.
    fn plane(&self, value: Value) -> Result<[usize; 2], String> {
        match self.shapes.get(&value) {
            Some([_, _, height, width]) => Ok([height.of_one(), width.of_one()]),
            _ => Err("its input is not a feature map".into()),
        }
    }

    fn constant(&self, value: Value) -> Result<&'a Constant, String> {
        self.graph.constants.get(&value).ok_or_else(|| "its weight is computed, not a constant".into())
    }

    /// Returns the names of a node's inputs; constants become initializers.
    fn inputs(&mut self, node: &Node) -> Result<Vec<String>, String> {
        let mut names = Vec::with_capacity(node.inputs.len());
        for &value in &node.inputs {
            names.push(match self.graph.constants.get(&value) {
                Some(constant) if constant.data.dtype() == DType::I8 => {
                    let values: Vec<i8> = constant.data.iter::<i8>().collect();
                    self.int8(value, &constant.shape, &values)?
                }
                Some(constant) => self.initialize(&constant.name, &constant.shape, floats(constant)),
                None => self.name(value),
            });
        }
        Ok(names)
    }

    /// Returns a linear layer's weight in PyTorch's layout, `[out, in]`.
    fn linear_weight(&mut self, value: Value) -> Result<String, String> {
        let Constant { name, shape, data } = self.constant(value)?;
        let [inputs, outputs] = shape[..] else { return Err(format!("{name} is no matrix")) };
        if data.dtype() == DType::I8 {
            let values: Vec<i8> = data.iter::<i8>().collect();
            return self.int8(value, &[outputs, inputs], &transposed(&values, outputs));
        }
        let values: Vec<f32> = data.iter::<f32>().collect();
        Ok(self.initialize(name, &[outputs, inputs], bytes(&transposed(&values, outputs))))
    }

    fn name(&self, value: Value) -> String {
        self.names.get(&value).cloned().unwrap_or_else(|| format!("value.{value}"))
    }

    /// Names a node's output after its weight's module or its stage.
    fn output(&mut self, node: &Node) -> String {
        let weight = node.inputs.get(1).and_then(|weight| self.graph.constants.get(weight));
        let module = weight.and_then(|weight| weight.name.strip_suffix(".weight"));
        let base = match (node.output == self.graph.output, module) {
            (true, _) => LOGITS.to_string(),
            (false, Some(module)) => module.to_string(),
            (false, None) => format!("{}.{}", node.stage, name_of(&node.op).to_lowercase()),
        };
        let mut name = base.clone();
        for number in 2.. {
            if self.taken.insert(name.clone()) {
                break;
            }
            name = format!("{base}_{number}");
        }
        self.names.insert(node.output, name.clone());
        name
    }

    fn push(
        &mut self,
        op_type: &str,
        input: Vec<String>,
        output: String,
        attribute: Vec<proto::Attribute>,
        stage: &str,
    ) {
        let name = format!("{stage}/{op_type}_{}", self.nodes.len());
        self.nodes.push(proto::Node { input, output: vec![output], name, op_type: op_type.to_string(), attribute });
    }

    fn initialize(&mut self, name: &str, shape: &[usize], raw_data: Vec<u8>) -> String {
        self.initialize_typed(name, shape, proto::FLOAT, raw_data)
    }

    fn initialize_typed(&mut self, name: &str, shape: &[usize], data_type: i32, raw_data: Vec<u8>) -> String {
        let dims = shape.iter().map(|&size| size as i64).collect();
        let tensor = proto::Tensor { dims, data_type, name: name.to_string(), raw_data };
        self.initializers.insert(name.to_string(), tensor);
        name.to_string()
    }

    fn scalar(&mut self, value: f64) -> String {
        self.initialize(&format!("scalar.{value:e}"), &[], bytes(&[value as f32]))
    }

    fn integers(&mut self, values: &[i64]) -> String {
        let name = format!("integers.{}", values.iter().map(i64::to_string).collect::<Vec<_>>().join("_"));
        let raw_data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let dims = vec![values.len() as i64];
        let tensor = proto::Tensor { dims, data_type: proto::INT64, name: name.clone(), raw_data };
        self.initializers.insert(name.clone(), tensor);
        name
    }
}

/// Returns the matrix `[output, input]` of adaptive average pooling: output i is the mean of the inputs from
/// ⌊i·input/output⌋ to ⌈(i+1)·input/output⌉.
fn averaging(input: usize, output: usize) -> Vec<f32> {
    let mut matrix = vec![0.0; input * output];
    for (i, row) in matrix.chunks_exact_mut(input).enumerate() {
        let (start, end) = (i * input / output, ((i + 1) * input).div_ceil(output));
        row[start..end].fill(1.0 / (end - start) as f32);
    }
    matrix
}

/// Transposes a matrix with `columns` columns.
fn transposed<T: Copy>(matrix: &[T], columns: usize) -> Vec<T> {
    (0..columns).flat_map(|column| matrix.iter().skip(column).step_by(columns).copied()).collect()
}

fn floats(constant: &Constant) -> Vec<u8> {
    bytes(&constant.data.iter::<f32>().collect::<Vec<f32>>())
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn attribute(name: &str, r#type: i32) -> proto::Attribute {
    proto::Attribute { name: name.to_string(), r#type, ..proto::Attribute::default() }
}

fn float(name: &str, value: f64) -> proto::Attribute {
    proto::Attribute { f: Some(value as f32), ..attribute(name, 1) }
}

fn int(name: &str, value: usize) -> proto::Attribute {
    proto::Attribute { i: Some(value as i64), ..attribute(name, 2) }
}

fn ints(name: &str, values: &[usize]) -> proto::Attribute {
    proto::Attribute { ints: values.iter().map(|&value| value as i64).collect(), ..attribute(name, 7) }
}
