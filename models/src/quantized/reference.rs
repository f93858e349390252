//! A program in f32: the steps without int8 kernels, and the reference that calibration measures against.

use std::collections::{BTreeMap, HashMap};

use burn::tensor::{Device, Tensor, TensorData};

use super::{
    program::{Layer, Layers, Operation, Program, Step, Weights},
    values::{self, Values, shape_for},
};
use crate::graph::{Op, Value};

type Outcome<T> = std::result::Result<T, String>;

/// Is given each step with its inputs and its output.
type Observe<'a> = dyn FnMut(&Step, &[&Values], &Values) -> Outcome<()> + 'a;

/// Runs a step without weights in f32.
pub(super) fn run_float(
    step: &Step,
    inputs: &[&Values],
    shape: &[usize],
    n: usize,
    device: &Device,
) -> Outcome<Values> {
    let run = |op: &Op, inputs: &[&Values]| values::run(op, inputs, shape, device);
    match &step.operation {
        Operation::Float { op, shape } => values::run(op, inputs, &shape_for(shape, n), device),
        Operation::MaxPool2d { kernel, stride, padding, ceil_mode } => {
            let (kernel, stride, padding, ceil_mode) = (*kernel, *stride, *padding, *ceil_mode);
            run(&Op::MaxPool2d { kernel, stride, padding, dilation: [1, 1], ceil_mode }, inputs)
        }
        Operation::AvgPool2d { kernel, stride, padding, count_include_pad, ceil_mode } => {
            let op = Op::AvgPool {
                kernel: kernel.to_vec(),
                stride: stride.to_vec(),
                padding: padding.to_vec(),
                count_include_pad: *count_include_pad,
                ceil_mode: *ceil_mode,
            };
            run(&op, inputs)
        }
        Operation::AdaptiveAvgPool2d { output } => run(&Op::AdaptiveAvgPool2d { output: *output }, inputs),
        Operation::Concat => run(&Op::Concat { axis: 1 }, inputs),
        Operation::Add => {
            let sum = run(&Op::Add, inputs)?;
            if step.relu { run(&Op::Relu, &[&sum]) } else { Ok(sum) }
        }
        Operation::Relu => run(&Op::Relu, inputs),
        Operation::Flatten => run(&Op::Reshape, inputs),
        Operation::Conv2d { .. } | Operation::Linear { .. } => Err("a layer needs its weights".into()),
    }
}

/// A program whose layers are all in f32: the reference of the quantized one.
pub(super) struct Reference {
    weights: BTreeMap<String, (Values, Values)>,
    device: Device,
}

impl Reference {
    pub fn new(layers: &Layers, device: &Device) -> Outcome<Self> {
        let tensors = |layer: &Layer| {
            let Weights::F32(weights) = &layer.weights else { return Err("a layer is quantized already".to_string()) };
            let weight = Values::new(TensorData::new(weights.clone(), layer.shape.clone()), device)?;
            let weight = match weight {
                Values::D2(weight) => Values::D2(weight.transpose()),
                other => other,
            };
            let bias = TensorData::new(layer.bias.clone(), [layer.bias.len()]);
            Ok((weight, Values::new(bias, device)?))
        };
        let weights = layers.iter().map(|(name, layer)| Ok((name.clone(), tensors(layer)?))).collect::<Outcome<_>>()?;
        Ok(Self { weights, device: device.clone() })
    }

    /// Computes a layer without residual and ReLU, with its weights or others.
    pub fn layer(&self, operation: &Operation, x: &Values, weight: Option<&Values>, bias: bool) -> Outcome<Values> {
        let name = operation.layer().ok_or("it is no layer")?;
        let (own, own_bias) = &self.weights[name];
        let mut inputs = vec![x, weight.unwrap_or(own)];
        inputs.extend(bias.then_some(own_bias));
        let op = match operation {
            Operation::Conv2d { stride, padding, dilation, groups, .. } => Op::Conv2d {
                stride: *stride,
                padding: padding.map(|[before, after]| (before, after)),
                dilation: *dilation,
                groups: *groups,
            },
            _ => Op::Linear,
        };
        values::run(&op, &inputs, &[], &self.device)
    }

    /// Runs the program. `observe` is given each step with its inputs and its output.
    pub fn run(
        &self,
        program: &Program,
        layers: &Layers,
        images: Tensor<4>,
        observe: &mut Observe<'_>,
    ) -> Outcome<Tensor<2>> {
        let [n, _, height, width] = images.dims();
        let shapes = program.shapes(layers, n, [height, width])?;
        let mut last_use: HashMap<Value, usize> = HashMap::new();
        for (index, step) in program.steps.iter().enumerate() {
            last_use.extend(step.inputs.iter().chain(&step.residual).map(|&value| (value, index)));
        }
        let mut values = HashMap::from([(program.input, Values::D4(images))]);
        for (index, step) in program.steps.iter().enumerate() {
            let inputs: Vec<&Values> = step.inputs.iter().map(|value| &values[value]).collect();
            let output = match step.operation.layer() {
                None => run_float(step, &inputs, &shapes[&step.output], n, &self.device)?,
                Some(_) => {
                    let mut y = self.layer(&step.operation, inputs[0], None, true)?;
                    if let Some(residual) = step.residual {
                        y = values::run(&Op::Add, &[&y, &values[&residual]], &[], &self.device)?;
                    }
                    match step.relu {
                        true => values::run(&Op::Relu, &[&y], &[], &self.device)?,
                        false => y,
                    }
                }
            };
            observe(step, &inputs, &output)?;
            values.insert(step.output, output);
            values.retain(|value, _| *value == program.output || last_use.get(value).is_some_and(|&last| last > index));
        }
        values.remove(&program.output).ok_or("it has no logits")?.matrix()
    }
}
