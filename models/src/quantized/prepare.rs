//! A program's steps with packed weights and scales in place.

use burn::tensor::{Device, Tensor, TensorData, ops::ConvOptions};
use kernels::int8::{Average, Conv2d, Geometry, Table};

use super::{
    memory::{Memory, Shapes, is_float, reads_bytes},
    program::{Layer, Layers, Operation, Program, Quantization, Step, Weights, pixels, pooling},
};
use crate::graph::Value;

type Outcome<T> = std::result::Result<T, String>;

/// A step, ready to run.
pub(super) enum Prepared {
    /// Perhaps several convolutions of the same input, whose outputs are parts of the first one's pixels.
    Conv2d {
        conv: Conv2d,
        scale: Vec<f32>,
        bias: Vec<f32>,
        residual_scale: f32,
        low: u8,
    },
    FloatConv2d {
        weight: Tensor<4>,
        bias: Tensor<1>,
        options: ConvOptions<2>,
    },
    /// A convolution of 1 × 1 over a map of 1 × 1; writes bytes, or logits.
    Linear {
        conv: Conv2d,
        scale: Vec<f32>,
        bias: Vec<f32>,
        low: Option<u8>,
    },
    FloatLinear {
        weight: Tensor<2>,
        bias: Tensor<1>,
    },
    MaxPool2d {
        geometry: Geometry,
        table: Option<Table>,
    },
    AvgPool2d {
        average: Average,
    },
    /// The table of each input that is copied.
    Concat(Vec<Option<Option<Table>>>),
    Add {
        low: u8,
    },
    Table(Option<Table>),
    /// The bytes are there already: those of the input seen otherwise, or written by another step.
    InPlace,
    Float,
}

/// What steps are prepared from.
pub(super) struct Preparation<'a> {
    pub program: &'a Program,
    pub layers: &'a Layers,
    pub shapes: &'a Shapes,
    pub memory: &'a Memory,
    pub device: &'a Device,
}

impl Preparation<'_> {
    /// Prepares all steps.
    pub fn steps(&self) -> Outcome<Vec<Prepared>> {
        let name = |step: &Step| step.operation.layer().unwrap_or(&step.stage).to_string();
        let prepare = |(index, step)| self.step(index, step).map_err(|cause| format!("{}: {cause}", name(step)));
        self.program.steps.iter().enumerate().map(prepare).collect()
    }

    fn step(&self, index: usize, step: &Step) -> Outcome<Prepared> {
        let scale_of = |value: Value| self.program.scale_of(value);
        let is_layer = matches!(step.operation, Operation::Conv2d { .. });
        if reads_bytes(self.program, self.layers, step) && step.inputs.contains(&self.program.input) && !is_layer {
            return Err("only convolutions read the bytes of images".into());
        }
        Ok(match &step.operation {
            Operation::Conv2d { layer, .. } => return self.conv2d(index, step, &self.layers[layer]),
            Operation::Linear { layer } => return self.linear(step, &self.layers[layer]),
            _ if is_float(self.program, self.layers, step) => Prepared::Float,
            Operation::MaxPool2d { kernel, stride, padding, .. } => Prepared::MaxPool2d {
                geometry: pooling(*kernel, *stride, *padding),
                table: Table::new(scale_of(step.inputs[0])?.into(), scale_of(step.output)?.into()),
            },
            Operation::AvgPool2d { kernel, stride, padding, count_include_pad, .. } => Prepared::AvgPool2d {
                average: Average::Windows {
                    geometry: pooling(*kernel, *stride, *padding),
                    count_padding: *count_include_pad,
                },
            },
            Operation::AdaptiveAvgPool2d { .. } => Prepared::AvgPool2d { average: Average::Adaptive },
            Operation::Concat => {
                let to = scale_of(step.output)?;
                let table = |input: &Value| {
                    Ok(match self.memory.copied.contains(&(index, *input)) {
                        true => Some(Table::new(scale_of(*input)?.into(), to.into())),
                        false => None,
                    })
                };
                Prepared::Concat(step.inputs.iter().map(table).collect::<Outcome<_>>()?)
            }
            Operation::Add => Prepared::Add { low: low(step, scale_of(step.output)?) },
            Operation::Relu => {
                let (from, to) = (scale_of(step.inputs[0])?, scale_of(step.output)?);
                Prepared::Table(Table::with_relu(from.into(), to.into()))
            }
            Operation::Flatten => {
                let places = [step.output, step.inputs[0]].map(|value| self.memory.places.get(&value));
                if scale_of(step.output)? != scale_of(step.inputs[0])? {
                    return Err("a flattened map has other scales".into());
                }
                if places[0] == places[1] { Prepared::InPlace } else { Prepared::Table(None) }
            }
            Operation::Float { .. } => Prepared::Float,
        })
    }

    fn conv2d(&self, index: usize, step: &Step, layer: &Layer) -> Outcome<Prepared> {
        let Operation::Conv2d { stride, padding, dilation, groups, .. } = &step.operation else {
            return Err("it is no convolution".into());
        };
        let &[_, per_group, kernel_h, kernel_w] = &layer.shape[..] else {
            return Err(format!("weights of shape {:?}", layer.shape));
        };
        if let Weights::F32(weights) = &layer.weights {
            let padding = padding.map(|[before, after]| (before, after));
            return Ok(Prepared::FloatConv2d {
                weight: Tensor::from_data(TensorData::new(weights.clone(), layer.shape.clone()), self.device),
                bias: Tensor::from_data(TensorData::new(layer.bias.clone(), [layer.bias.len()]), self.device),
                options: ConvOptions::new_with_padding(*stride, padding, *dilation, *groups),
            });
        }
        let alone = vec![index];
        let members = match self.memory.together.get(&index) {
            Some(members) if members.is_empty() => return Ok(Prepared::InPlace),
            Some(members) => members,
            None => &alone,
        };
        let kernel = [kernel_h, kernel_w];
        let geometry = Geometry { kernel, stride: *stride, padding: *padding, dilation: *dilation, groups: *groups };
        let mut residual_scale = 0.0;
        let (mut weights, mut scale, mut bias) = (Vec::new(), Vec::new(), Vec::new());
        for step in members.iter().map(|&member| &self.program.steps[member]) {
            let layer = step.operation.layer().and_then(|name| self.layers.get(name)).ok_or("it has no weights")?;
            let Weights::Int8 { values, scales } = &layer.weights else {
                return Err("its weights are not int8".into());
            };
            let to = self.program.scale_of(step.output)?;
            let mut shift = f32::from(to.zero);
            if let Some(residual) = step.residual {
                let residual = self.program.scale_of(residual)?;
                residual_scale = residual.scale / to.scale;
                shift -= f32::from(residual.zero) * residual_scale;
            }
            let from = self.input_scale(step)?;
            weights.extend_from_slice(values);
            scale.extend(scales.iter().map(|weight| from * weight / to.scale));
            bias.extend(layer.bias.iter().map(|bias| bias / to.scale + shift));
        }
        let channels = [per_group * groups, bias.len()];
        let conv = Conv2d::new(&weights, channels, geometry, &self.zeros(step)?).ok_or("its sums are too long")?;
        let low = low(step, self.program.scale_of(step.output)?);
        Ok(Prepared::Conv2d { conv, scale, bias, residual_scale, low })
    }

    fn linear(&self, step: &Step, layer: &Layer) -> Outcome<Prepared> {
        let &[out, width] = &layer.shape[..] else { return Err(format!("weights of shape {:?}", layer.shape)) };
        let (values, scales) = match &layer.weights {
            Weights::F32(weights) => {
                let weight = TensorData::new(weights.clone(), [out, width]);
                let bias = TensorData::new(layer.bias.clone(), [out]);
                return Ok(Prepared::FloatLinear {
                    weight: Tensor::<2>::from_data(weight, self.device).transpose(),
                    bias: Tensor::from_data(bias, self.device),
                });
            }
            Weights::Int8 { values, scales } => (values, scales),
        };
        // Pixels of a flattened map come one after another, not its channels.
        let before = self.program.steps.iter().find(|before| before.output == step.inputs[0]);
        let pixels = match before {
            Some(before) if before.operation == Operation::Flatten => {
                self.shapes[&before.inputs[0]][2..].iter().product()
            }
            _ => 1,
        };
        let channels = width / pixels;
        let row = |output: usize| {
            let row = &values[output * width..][..width];
            (0..width).map(move |at| row[at % channels * pixels + at / channels])
        };
        let values: Vec<i8> = (0..out).flat_map(row).collect();
        let geometry = pooling([1; 2], [1; 2], [0; 2]);
        let conv = Conv2d::new(&values, [width, out], geometry, &self.zeros(step)?).ok_or("its sums are too long")?;
        let from = self.input_scale(step)?;
        let is_float = is_float(self.program, self.layers, step);
        let to = if is_float { Quantization { scale: 1.0, zero: 0 } } else { self.program.scale_of(step.output)? };
        Ok(Prepared::Linear {
            conv,
            scale: scales.iter().map(|weight| from * weight / to.scale).collect(),
            bias: layer.bias.iter().map(|bias| bias / to.scale + f32::from(to.zero)).collect(),
            low: (!is_float).then(|| low(step, to)),
        })
    }

    /// The zero points of what a layer reads.
    fn zeros(&self, step: &Step) -> Outcome<Vec<u8>> {
        match step.inputs[0] == self.program.input {
            true => Ok(pixels(self.program).iter().map(|channel| channel.zero).collect()),
            false => Ok(vec![self.program.scale_of(step.inputs[0])?.zero]),
        }
    }

    /// The scale of what a layer reads. Images are read with weights that have their deviations inside.
    fn input_scale(&self, step: &Step) -> Outcome<f32> {
        match step.inputs[0] == self.program.input {
            true => Ok(1.0),
            false => Ok(self.program.scale_of(step.inputs[0])?.scale),
        }
    }
}

/// The smallest byte of a step's output.
fn low(step: &Step, to: Quantization) -> u8 {
    if step.relu { to.zero } else { 0 }
}
