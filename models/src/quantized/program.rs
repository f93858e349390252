//! The steps of a quantized network, lowered from its [`Graph`], and what each computes in shapes.

use std::collections::{BTreeMap, HashMap};

use kernels::int8::{Geometry, MAX_DEPTH};
use serde::{Deserialize, Serialize};

use super::values::shape_for;
use crate::graph::{Graph, Op, Size, Value};

/// The version of the form that this build writes and reads.
const FORMAT: u32 = 1;

/// The most values of an output for each pixel of the images: a file must not ask for more memory than a network needs.
const MAX_PER_PIXEL: usize = 4096;

/// The most pixels of an adaptive pooling along an axis.
const MAX_ADAPTIVE: usize = 64;

/// A network as a list of steps. Convolutions carry the ReLU and the residual sum that follow them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// The version of this form.
    pub format: u32,
    /// Height and width of the images that the network was recorded with, in pixels.
    pub input_size: [usize; 2],
    /// The mean and the deviation that images are normalized by, for each channel: the network reads their pixels exactly.
    pub mean: [f32; 3],
    /// See [`mean`](Self::mean).
    pub std: [f32; 3],
    /// The images, `[n, 3, h, w]`.
    pub input: Value,
    /// The logits, `[n, classes]`.
    pub output: Value,
    /// In an order in which every step comes after those it reads.
    pub steps: Vec<Step>,
    /// What the bytes of each quantized value stand for.
    pub quantization: BTreeMap<Value, Quantization>,
}

/// What bytes stand for: `(byte − zero) · scale`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantization {
    /// The difference between consecutive bytes.
    pub scale: f32,
    /// The byte that stands for 0.
    pub zero: u8,
}

impl From<Quantization> for kernels::int8::Quantization {
    fn from(Quantization { scale, zero }: Quantization) -> Self {
        Self { scale, zero }
    }
}

/// A step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// What it computes.
    pub operation: Operation,
    /// What it reads.
    pub inputs: Vec<Value>,
    /// What is added to the result, before ReLU; of convolutions only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual: Option<Value>,
    /// Whether ReLU is applied last.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub relu: bool,
    /// What it computes.
    pub output: Value,
    /// torchvision's name of the stage it belongs to.
    pub stage: String,
}

/// What a step computes. Sizes of windows are `[height, width]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs)] // The fields are called what torch.nn calls them.
pub enum Operation {
    Conv2d {
        layer: String,
        stride: [usize; 2],
        padding: [[usize; 2]; 2],
        dilation: [usize; 2],
        groups: usize,
    },
    Linear {
        layer: String,
    },
    MaxPool2d {
        kernel: [usize; 2],
        stride: [usize; 2],
        padding: [usize; 2],
        ceil_mode: bool,
    },
    AvgPool2d {
        kernel: [usize; 2],
        stride: [usize; 2],
        padding: [usize; 2],
        count_include_pad: bool,
        ceil_mode: bool,
    },
    AdaptiveAvgPool2d {
        output: [usize; 2],
    },
    /// Along the channels.
    Concat,
    Add,
    Relu,
    /// From `[n, c, h, w]` to `[n, c · h · w]`.
    Flatten,
    /// An operation that is computed in f32.
    Float {
        op: Op,
        shape: Vec<Size>,
    },
}

/// The weights of a convolution `[out, in / groups, kh, kw]` or a linear layer `[out, in]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// The shape of the weights.
    pub shape: Vec<usize>,
    /// The weights.
    pub weights: Weights,
    /// Added to each output.
    pub bias: Vec<f32>,
}

/// Weights in int8, or in f32 for a layer that is computed in f32.
#[derive(Debug, Clone, PartialEq)]
pub enum Weights {
    /// Each is multiplied by the scale of its output channel.
    Int8 {
        /// Row by row.
        values: Vec<i8>,
        /// One for each output.
        scales: Vec<f32>,
    },
    /// Row by row.
    F32(Vec<f32>),
}

impl Weights {
    /// The number of weights.
    pub fn len(&self) -> usize {
        match self {
            Self::Int8 { values, .. } => values.len(),
            Self::F32(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Layers by torchvision's name.
pub type Layers = BTreeMap<String, Layer>;

type Outcome<T> = std::result::Result<T, String>;

impl Operation {
    /// The layer whose weights it uses.
    pub fn layer(&self) -> Option<&str> {
        match self {
            Self::Conv2d { layer, .. } | Self::Linear { layer } => Some(layer),
            _ => None,
        }
    }
}

/// The windows of a pooling with the same padding on both sides.
pub(super) fn pooling(kernel: [usize; 2], stride: [usize; 2], padding: [usize; 2]) -> Geometry {
    Geometry { kernel, stride, padding: padding.map(|padding| [padding; 2]), dilation: [1, 1], groups: 1 }
}

/// How the pixels of images are quantized: a byte for each byte.
pub(super) fn pixels(program: &Program) -> Vec<Quantization> {
    let channel = |(mean, std): (&f32, &f32)| Quantization {
        scale: 1.0 / (255.0 * std),
        zero: (255.0 * mean).round().clamp(0.0, 255.0) as u8,
    };
    program.mean.iter().zip(&program.std).map(channel).collect()
}

impl Program {
    /// The scale and zero point of a value.
    pub(super) fn scale_of(&self, value: Value) -> Outcome<Quantization> {
        let found = self.quantization.get(&value).ok_or_else(|| format!("the value {value} has no scale"))?;
        match found.scale.is_finite() && found.scale > 0.0 {
            true => Ok(*found),
            false => Err(format!("the scale {} is not positive", found.scale)),
        }
    }

    /// Lowers a graph whose batch normalizations are folded, for images that are normalized by `mean` and `std`. Values
    /// have no quantization yet, and weights are in f32.
    pub(super) fn of(graph: &Graph, [mean, std]: [[f32; 3]; 2]) -> Outcome<(Self, Layers)> {
        let mut uses: HashMap<Value, usize> = HashMap::new();
        for input in graph.nodes.iter().flat_map(|node| &node.inputs) {
            *uses.entry(*input).or_default() += 1;
        }
        *uses.entry(graph.output).or_default() += 1;
        let axes: HashMap<Value, usize> = graph.nodes.iter().map(|node| (node.output, node.shape.len())).collect();
        let mut layers = Layers::new();
        let mut steps: Vec<Step> = Vec::new();
        for node in &graph.nodes {
            let constant = |index: usize| node.inputs.get(index).and_then(|value| graph.constants.get(value));
            let is_map = |value: &Value| *value == graph.input || axes.get(value) == Some(&4);
            let step = |operation, inputs: &[Value]| Step {
                operation,
                inputs: inputs.to_vec(),
                residual: None,
                relu: false,
                output: node.output,
                stage: node.stage.clone(),
            };
            let last = |value: Value| steps.iter().position(|step| step.output == value);
            match &node.op {
                Op::Conv2d { .. } | Op::Linear => {
                    let weight = constant(1).ok_or("a weight is computed")?;
                    let name = weight.name.strip_suffix(".weight").unwrap_or(&weight.name).to_string();
                    let values: Vec<f32> = weight.data.iter::<f32>().collect();
                    let (shape, values, operation) = match &node.op {
                        Op::Conv2d { stride, padding, dilation, groups } => {
                            let padding = padding.map(|(before, after)| [before, after]);
                            let (stride, dilation, groups) = (*stride, *dilation, *groups);
                            let layer = name.clone();
                            (
                                weight.shape.clone(),
                                values,
                                Operation::Conv2d { layer, stride, padding, dilation, groups },
                            )
                        }
                        _ => {
                            let [inputs, outputs] = weight.shape[..] else {
                                return Err(format!("{name} is no matrix"));
                            };
                            let mut turned = Vec::with_capacity(values.len());
                            for output in 0..outputs {
                                turned.extend((0..inputs).map(|input| values[input * outputs + output]));
                            }
                            (vec![outputs, inputs], turned, Operation::Linear { layer: name.clone() })
                        }
                    };
                    let bias = match constant(2) {
                        Some(bias) => bias.data.iter::<f32>().collect(),
                        None => vec![0.0; shape[0]],
                    };
                    let layer = Layer { shape, weights: Weights::F32(values), bias };
                    if layers.insert(name.clone(), layer).is_some() {
                        return Err(format!("{name} is used twice"));
                    }
                    steps.push(step(operation, &node.inputs[..1]));
                }
                Op::Relu => match last(node.inputs[0]).map(|at| &mut steps[at]) {
                    Some(before)
                        if uses[&before.output] == 1
                            && !before.relu
                            && (before.operation.layer().is_some() || before.operation == Operation::Add) =>
                    {
                        before.relu = true;
                        before.output = node.output;
                    }
                    _ if is_map(&node.output) => steps.push(step(Operation::Relu, &node.inputs)),
                    _ => steps.push(step(Operation::Float { op: Op::Relu, shape: node.shape.clone() }, &node.inputs)),
                },
                Op::Add if node.inputs.iter().all(is_map) => {
                    let (a, b) = (node.inputs[0], node.inputs[1]);
                    // The sum belongs to the later convolution, when the other term is known.
                    let (later, term) = if last(a) > last(b) { (last(a), b) } else { (last(b), a) };
                    match later.map(|at| &mut steps[at]) {
                        Some(before)
                            if matches!(before.operation, Operation::Conv2d { .. })
                                && uses[&before.output] == 1
                                && a != b
                                && !before.relu
                                && before.residual.is_none() =>
                        {
                            before.residual = Some(term);
                            before.output = node.output;
                        }
                        _ => steps.push(step(Operation::Add, &node.inputs)),
                    }
                }
                Op::MaxPool2d { kernel, stride, padding, dilation: [1, 1], ceil_mode } => {
                    let (kernel, stride, padding, ceil_mode) = (*kernel, *stride, *padding, *ceil_mode);
                    steps.push(step(Operation::MaxPool2d { kernel, stride, padding, ceil_mode }, &node.inputs));
                }
                Op::AvgPool { kernel, stride, padding, count_include_pad, ceil_mode } if is_map(&node.output) => {
                    let pair = |list: &[usize]| <[usize; 2]>::try_from(list).map_err(|_| "a pooling over other axes");
                    let operation = Operation::AvgPool2d {
                        kernel: pair(kernel)?,
                        stride: pair(stride)?,
                        padding: pair(padding)?,
                        count_include_pad: *count_include_pad,
                        ceil_mode: *ceil_mode,
                    };
                    steps.push(step(operation, &node.inputs));
                }
                Op::AdaptiveAvgPool2d { output } => {
                    steps.push(step(Operation::AdaptiveAvgPool2d { output: *output }, &node.inputs));
                }
                Op::Concat { axis: 1 } if node.inputs.iter().all(is_map) => {
                    steps.push(step(Operation::Concat, &node.inputs));
                }
                Op::Reshape
                    if is_map(&node.inputs[0]) && matches!(node.shape[..], [Size::PerImage(1), Size::Fixed(_)]) =>
                {
                    steps.push(step(Operation::Flatten, &node.inputs));
                }
                op => {
                    if node.inputs.iter().any(|value| graph.constants.contains_key(value)) {
                        return Err(format!("{}: {op:?} has constants", node.stage));
                    }
                    steps.push(step(Operation::Float { op: op.clone(), shape: node.shape.clone() }, &node.inputs));
                }
            }
        }
        let program = Self {
            format: FORMAT,
            input_size: graph.input_size,
            mean,
            std,
            input: graph.input,
            output: graph.output,
            steps,
            quantization: BTreeMap::new(),
        };
        Ok((program, layers))
    }

    /// The shape of every value for `n` images of a size, or why a step can't be computed: programs come from files.
    pub(super) fn shapes(&self, layers: &Layers, n: usize, size: [usize; 2]) -> Outcome<HashMap<Value, Vec<usize>>> {
        if self.format != FORMAT {
            return Err(format!("the form of the quantized network is {}, this build reads {FORMAT}", self.format));
        }
        let most = [n, size[0], size[1], MAX_PER_PIXEL].into_iter().fold(1usize, usize::saturating_mul).min(1 << 40);
        let mut shapes = HashMap::from([(self.input, vec![n, 3, size[0], size[1]])]);
        for step in &self.steps {
            let name = step.operation.layer().unwrap_or(&step.stage);
            let shape = self.shape(step, layers, &shapes, n).map_err(|cause| format!("{name}: {cause}"))?;
            let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
            if elements.is_none_or(|elements| elements > most) {
                return Err(format!("{name}: an output of {shape:?} is too large"));
            }
            if let Some(residual) = step.residual
                && (shapes.get(&residual) != Some(&shape) || !matches!(step.operation, Operation::Conv2d { .. }))
            {
                return Err(format!("{name}: the residual does not have the shape {shape:?}"));
            }
            if shapes.insert(step.output, shape).is_some() {
                return Err(format!("{name}: the value {} is computed twice", step.output));
            }
        }
        match shapes.get(&self.output) {
            Some(shape) if shape.len() == 2 => Ok(shapes),
            _ => Err("the output is no matrix of logits".into()),
        }
    }

    fn shape(
        &self,
        step: &Step,
        layers: &Layers,
        shapes: &HashMap<Value, Vec<usize>>,
        n: usize,
    ) -> Outcome<Vec<usize>> {
        let inputs =
            step.inputs.iter().map(|value| shapes.get(value).ok_or("it reads a value that is not computed yet"));
        let inputs: Vec<&Vec<usize>> = inputs.collect::<Result<_, _>>()?;
        let count = |expected: usize| match inputs.len() == expected {
            true => Ok(()),
            false => Err(format!("{} inputs, expected {expected}", inputs.len())),
        };
        let map = |index: usize| match inputs.get(index).map(|shape| &shape[..]) {
            Some(&[n, channels, height, width]) => Ok((n, channels, [height, width])),
            other => Err(format!("it reads a feature map, not {other:?}")),
        };
        let layer = |name: &str| layers.get(name).ok_or("it has no weights");
        let pooled = |geometry: Geometry, ceil_mode: bool| {
            count(1)?;
            let (n, channels, size) = map(0)?;
            let half = [0, 1].iter().all(|&axis| 2 * geometry.padding[axis][0] <= geometry.kernel[axis]);
            let floor = geometry.output(size).filter(|_| half && geometry.kernel.iter().all(|&side| side <= 1 << 10));
            let mut output = floor.ok_or("its windows do not fit")?;
            if ceil_mode {
                for axis in [0, 1] {
                    let [before, after] = geometry.padding[axis];
                    let reached = (output[axis] - 1) * geometry.stride[axis] + geometry.kernel[axis];
                    // As PyTorch: the last window begins inside the input or the padding before it.
                    let inside = output[axis] * geometry.stride[axis] < size[axis] + before;
                    output[axis] += usize::from(reached < size[axis] + before + after && inside);
                }
            }
            Ok::<_, String>(vec![n, channels, output[0], output[1]])
        };
        Ok(match &step.operation {
            Operation::Conv2d { layer: name, stride, padding, dilation, groups } => {
                count(1)?;
                let (n, channels, size) = map(0)?;
                let layer = layer(name)?;
                let &[out, per_group, kernel_h, kernel_w] = &layer.shape[..] else {
                    return Err(format!("weights of shape {:?}", layer.shape));
                };
                check_layer(layer)?;
                let fits = *groups > 0
                    && out.is_multiple_of(*groups)
                    && per_group.checked_mul(*groups) == Some(channels)
                    && per_group * kernel_h * kernel_w <= MAX_DEPTH
                    && dilation.iter().chain(stride).all(|&size| size <= 1 << 10)
                    && (0..2).all(|axis| {
                        // Every window covers pixels of the input.
                        let reach = dilation[axis] * (layer.shape[2 + axis] - 1);
                        padding[axis].iter().all(|&padding| padding <= reach)
                    });
                let kernel = [kernel_h, kernel_w];
                let geometry =
                    Geometry { kernel, stride: *stride, padding: *padding, dilation: *dilation, groups: *groups };
                match geometry.output(size).filter(|_| fits) {
                    Some([height, width]) => vec![n, out, height, width],
                    None => return Err(format!("weights of shape {:?} do not fit {channels} × {size:?}", layer.shape)),
                }
            }
            Operation::Linear { layer: name } => {
                count(1)?;
                let layer = layer(name)?;
                check_layer(layer)?;
                match (&inputs[0][..], &layer.shape[..]) {
                    (&[n, width], &[out, inputs]) if width == inputs && inputs <= MAX_DEPTH => vec![n, out],
                    (input, shape) => {
                        return Err(format!("weights of shape {shape:?} do not fit an input of {input:?}"));
                    }
                }
            }
            Operation::MaxPool2d { kernel, stride, padding, ceil_mode } => {
                pooled(pooling(*kernel, *stride, *padding), *ceil_mode)?
            }
            Operation::AvgPool2d { kernel, stride, padding, ceil_mode, .. } => {
                pooled(pooling(*kernel, *stride, *padding), *ceil_mode)?
            }
            Operation::AdaptiveAvgPool2d { output } => {
                count(1)?;
                let (n, channels, size) = map(0)?;
                if output.iter().any(|side| !(1..=MAX_ADAPTIVE).contains(side)) || size.contains(&0) {
                    return Err(format!("an average of {output:?} windows"));
                }
                vec![n, channels, output[0], output[1]]
            }
            Operation::Concat => {
                let (n, mut channels, size) = map(0)?;
                for index in 1..inputs.len() {
                    match map(index)? {
                        (other, more, of) if (other, of) == (n, size) => channels = channels.saturating_add(more),
                        _ => return Err("its inputs have different sizes".into()),
                    }
                }
                vec![n, channels, size[0], size[1]]
            }
            Operation::Add => {
                count(2)?;
                map(0)?;
                match inputs[0] == inputs[1] {
                    true => inputs[0].clone(),
                    false => return Err("its inputs have different shapes".into()),
                }
            }
            Operation::Relu => {
                count(1)?;
                map(0)?;
                inputs[0].clone()
            }
            Operation::Flatten => {
                count(1)?;
                let (n, channels, [height, width]) = map(0)?;
                vec![n, channels * height * width]
            }
            Operation::Float { op, shape } => float_shape(op, &inputs, &shape_for(shape, n))?,
        })
    }
}

fn check_layer(layer: &Layer) -> Outcome<()> {
    let count = layer.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    let outputs = layer.shape[0];
    let whole = match &layer.weights {
        Weights::Int8 { values, scales } => {
            Some(values.len()) == count
                && scales.len() == outputs
                && scales.iter().all(|scale| scale.is_finite() && *scale > 0.0)
        }
        Weights::F32(values) => Some(values.len()) == count,
    };
    match whole && count != Some(0) && layer.bias.len() == outputs {
        true => Ok(()),
        false => Err(format!("its weights and scales do not make a layer of shape {:?}", layer.shape)),
    }
}

/// The shape of an operation in f32; `shape` is the recorded one, which holds for the recorded size of image.
fn float_shape(op: &Op, inputs: &[&Vec<usize>], shape: &[usize]) -> Outcome<Vec<usize>> {
    let one = || match inputs {
        [input] => Ok((*input).clone()),
        _ => Err(format!("{} inputs, expected 1", inputs.len())),
    };
    let elements = |shape: &[usize]| shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    Ok(match op {
        Op::Relu | Op::AddScalar(_) | Op::MulScalar(_) | Op::PowScalar(_) => one()?,
        Op::Add | Op::Mul | Op::Div => match inputs {
            [a, b] if a == b => (*a).clone(),
            _ => return Err("its operands have different shapes".into()),
        },
        Op::Concat { axis } => {
            let first = *inputs.first().ok_or("it has no inputs")?;
            let mut joined = first.clone();
            let length = joined.get_mut(*axis).ok_or("it has no such axis")?;
            *length = 0;
            for input in inputs {
                let same = input.len() == first.len()
                    && (0..first.len()).all(|index| index == *axis || input[index] == first[index]);
                if !same {
                    return Err("its inputs have different shapes".into());
                }
                *length = length.saturating_add(input[*axis]);
            }
            joined
        }
        Op::Reshape => match elements(&one()?) == elements(shape) && (1..=5).contains(&shape.len()) {
            true => shape.to_vec(),
            false => return Err(format!("{:?} does not become {shape:?}", inputs[0])),
        },
        Op::Transpose { permutation } => {
            let input = one()?;
            let mut sorted = permutation.clone();
            sorted.sort_unstable();
            match sorted.iter().copied().eq(0..input.len()) {
                true => permutation.iter().map(|&axis| input[axis]).collect(),
                false => return Err(format!("{permutation:?} is no permutation of its axes")),
            }
        }
        Op::Slice { ranges } => {
            let input = one()?;
            if ranges.len() != input.len() {
                return Err("a slice of other axes".into());
            }
            let cut = |(&(start, end, step), &size): (&(usize, Option<usize>, usize), &usize)| {
                let end = end.unwrap_or(size);
                match step > 0 && start <= end && end <= size {
                    true => Ok((end - start).div_ceil(step)),
                    false => Err(format!("a slice from {start} to {end} of {size}")),
                }
            };
            ranges.iter().zip(&input).map(cut).collect::<Outcome<_>>()?
        }
        Op::Zeros if inputs.is_empty() && (1..=5).contains(&shape.len()) => shape.to_vec(),
        Op::AvgPool { kernel, stride, padding, ceil_mode: false, .. } => {
            let (input, axes) = (one()?, kernel.len());
            let fits =
                input.len() == axes + 2 && [1, 2].contains(&axes) && stride.len() == axes && padding.len() == axes;
            if !fits {
                return Err("an average over other axes".into());
            }
            let mut output = input[..2].to_vec();
            for axis in 0..axes {
                let padded = padding[axis].checked_mul(2).and_then(|both| both.checked_add(input[2 + axis]));
                let positions = padded.and_then(|padded| padded.checked_sub(kernel[axis]));
                match positions.filter(|_| kernel[axis] > 0 && stride[axis] > 0 && 2 * padding[axis] <= kernel[axis]) {
                    Some(positions) => output.push(positions / stride[axis] + 1),
                    None => return Err("its windows do not fit".into()),
                }
            }
            output
        }
        other => return Err(format!("{other:?} is not computed in f32")),
    })
}
