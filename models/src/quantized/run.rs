//! Runs a program: bytes through the int8 kernels, the rest in f32.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use burn::tensor::{Device, Tensor, TensorData, activation, ops::ConvOptions};
use kernels::{
    Epilogue, Precision,
    int8::{self, Average, Conv2d, Geometry, Map, MapMut, Requantize, Table},
};

use super::{
    program::{Layer, Layers, Operation, Program, Quantization, Step, Weights, pooling},
    values::{self, Values, shape_for},
};
use crate::graph::Value;

type Outcome<T> = std::result::Result<T, String>;

/// Is given each step, and a function that returns its output in f32.
type Observe<'a> = dyn FnMut(&Step, &dyn Fn() -> Outcome<Values>) + 'a;

/// Is given each step with its inputs and its output.
type ObserveReference<'a> = dyn FnMut(&Step, &[&Values], &Values) -> Outcome<()> + 'a;

/// Bytes that the kernels may read after a map.
const SLACK: usize = 64;

/// A program with packed weights.
pub(super) struct Runner {
    steps: Vec<Prepared>,
    /// Where the bytes of each quantized value are.
    places: HashMap<Value, Place>,
    /// The last step that reads each value.
    last_use: HashMap<Value, usize>,
    slots: usize,
    /// Scale and offset of each channel of images.
    input: Vec<[f32; 2]>,
    device: Device,
    /// Memory of passes that have ended.
    scratch: Mutex<Vec<Vec<Vec<u8>>>>,
    /// The shapes of the last pass: most passes have the same.
    shapes: Mutex<Option<([usize; 3], Arc<Shapes>)>>,
}

/// The shape of every value.
type Shapes = HashMap<Value, Vec<usize>>;

/// Where the bytes of a value are: a part of the pixels of a slot's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    slot: usize,
    /// The value whose buffer it is: its own, or the concatenation that it is a part of.
    root: Value,
    /// The first channel.
    offset: usize,
}

/// A step, ready to run.
enum Prepared {
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
    /// The table of each input that is not in place.
    Concat(Vec<Option<Option<Table>>>),
    Add {
        low: u8,
    },
    Table(Option<Table>),
    /// The input's bytes, seen otherwise.
    InPlace,
    Float,
}

/// Whether a step writes tensors in f32 instead of bytes.
pub(super) fn is_float(program: &Program, layers: &Layers, step: &Step) -> bool {
    let float_weights = |name: &str| layers.get(name).is_some_and(|layer| matches!(layer.weights, Weights::F32(_)));
    step.output == program.output
        || matches!(step.operation, Operation::Float { .. })
        || step.operation.layer().is_some_and(float_weights)
}

/// Whether a step reads bytes. The last linear layer does, and writes logits in f32.
pub(super) fn reads_bytes(program: &Program, layers: &Layers, step: &Step) -> bool {
    match &step.operation {
        Operation::Linear { layer } => {
            layers.get(layer).is_some_and(|layer| matches!(layer.weights, Weights::Int8 { .. }))
        }
        _ => !is_float(program, layers, step),
    }
}

/// How the pixels of images are quantized: a byte for each byte.
pub(super) fn pixels(program: &Program) -> Vec<Quantization> {
    let channel = |(mean, std): (&f32, &f32)| Quantization {
        scale: 1.0 / (255.0 * std),
        zero: (255.0 * mean).round().clamp(0.0, 255.0) as u8,
    };
    program.mean.iter().zip(&program.std).map(channel).collect()
}

impl Runner {
    pub fn new(program: &Program, layers: &Layers, device: &Device) -> Outcome<Self> {
        let shapes = program.shapes(layers, 1, program.input_size)?;
        let std_is_positive = program.std.iter().all(|std| std.is_finite() && *std > 0.0);
        if !std_is_positive || !program.mean.iter().all(|mean| mean.is_finite()) {
            return Err("the mean or the deviation of its images is no number".into());
        }
        let quantization = |value: Value| {
            let found = program.quantization.get(&value).ok_or_else(|| format!("the value {value} has no scale"))?;
            match found.scale.is_finite() && found.scale > 0.0 {
                true => Ok(*found),
                false => Err(format!("the scale {} is not positive", found.scale)),
            }
        };
        let floats: Vec<bool> = program.steps.iter().map(|step| is_float(program, layers, step)).collect();
        let mut last_use: HashMap<Value, usize> = HashMap::new();
        let mut readers: HashMap<Value, Vec<usize>> = HashMap::new();
        for (index, step) in program.steps.iter().enumerate() {
            for &value in step.inputs.iter().chain(&step.residual) {
                last_use.insert(value, index);
                readers.entry(value).or_default().push(index);
            }
        }
        let producer: HashMap<Value, usize> =
            program.steps.iter().enumerate().map(|(index, step)| (step.output, index)).collect();

        // Parts of a concatenation are written where it needs them, if nothing else reads them.
        let mut part_of: HashMap<Value, (Value, usize)> = HashMap::new();
        for (index, step) in program.steps.iter().enumerate() {
            if step.operation != Operation::Concat || floats[index] {
                continue;
            }
            let mut offset = 0;
            for input in &step.inputs {
                let own = producer.get(input).is_some_and(|&producer| {
                    !floats[producer]
                        && !matches!(program.steps[producer].operation, Operation::Flatten | Operation::Concat)
                });
                let same = program.quantization.get(input) == program.quantization.get(&step.output);
                if own && same && readers[input] == [index] {
                    part_of.insert(*input, (step.output, offset));
                }
                offset += shapes[input][1];
            }
        }
        let root = |value: Value| {
            let mut at = value;
            loop {
                match producer.get(&at).map(|&index| &program.steps[index]) {
                    Some(step) if step.operation == Operation::Flatten && !part_of.contains_key(&step.inputs[0]) => {
                        at = step.inputs[0];
                    }
                    _ => break,
                }
            }
            part_of.get(&at).map_or((at, 0), |&(whole, offset)| (whole, offset))
        };

        // A slot holds one buffer at a time; a buffer lives from its first write to its last read.
        let mut ends: HashMap<Value, usize> = HashMap::new();
        for (&value, &index) in &last_use {
            let end = ends.entry(root(value).0).or_default();
            *end = index.max(*end);
        }
        let needs_bytes = |value: Value| {
            readers
                .get(&value)
                .is_some_and(|list| list.iter().any(|&at| reads_bytes(program, layers, &program.steps[at])))
        };
        let mut places: HashMap<Value, Place> = HashMap::new();
        let mut slot_of: HashMap<Value, usize> = HashMap::new();
        let mut free: Vec<usize> = Vec::new();
        let mut slots = 0;
        let mut place = |value: Value, free: &mut Vec<usize>, places: &mut HashMap<Value, Place>| {
            let (root, offset) = root(value);
            let slot = *slot_of.entry(root).or_insert_with(|| {
                free.pop().unwrap_or_else(|| {
                    slots += 1;
                    slots - 1
                })
            });
            places.insert(value, Place { slot, root, offset });
        };
        if needs_bytes(program.input) {
            place(program.input, &mut free, &mut places);
        }
        for (index, step) in program.steps.iter().enumerate() {
            if !floats[index] || needs_bytes(step.output) {
                quantization(step.output)?;
                place(step.output, &mut free, &mut places);
            }
            // Each root once, when its last reader has run.
            let mut ended: Vec<usize> = Vec::new();
            for value in step.inputs.iter().chain(&step.residual) {
                let Some(place) = places.get(value) else { continue };
                if ends.get(&place.root) == Some(&index) && !ended.contains(&place.slot) {
                    ended.push(place.slot);
                }
            }
            free.extend(ended);
        }

        let zeros = |value: Value| -> Outcome<Vec<u8>> {
            match value == program.input {
                true => Ok(pixels(program).iter().map(|channel| channel.zero).collect()),
                false => Ok(vec![quantization(value)?.zero]),
            }
        };
        // Images are read with weights that have their deviations inside.
        let scale = |value: Value| -> Outcome<f32> {
            match value == program.input {
                true => Ok(1.0),
                false => Ok(quantization(value)?.scale),
            }
        };
        let mut steps = Vec::with_capacity(program.steps.len());
        for (index, step) in program.steps.iter().enumerate() {
            let name = step.operation.layer().unwrap_or(&step.stage);
            if reads_bytes(program, layers, step)
                && step.inputs.contains(&program.input)
                && !matches!(step.operation, Operation::Conv2d { .. })
            {
                return Err(format!("{name}: only convolutions read the bytes of images"));
            }
            let tensor = |values: &[f32], shape: &[usize]| TensorData::new(values.to_vec(), shape.to_vec());
            let prepared = match &step.operation {
                Operation::Conv2d { layer: key, stride, padding, dilation, groups } => {
                    let layer = &layers[key];
                    let [out, per_group, kernel_h, kernel_w] = <[usize; 4]>::try_from(&layer.shape[..])
                        .map_err(|_| format!("{name}: weights of shape {:?}", layer.shape))?;
                    match &layer.weights {
                        Weights::F32(weights) => Prepared::FloatConv2d {
                            weight: Tensor::from_data(tensor(weights, &layer.shape), device),
                            bias: Tensor::from_data(tensor(&layer.bias, &[out]), device),
                            options: ConvOptions::new_with_padding(
                                *stride,
                                padding.map(|[before, after]| (before, after)),
                                *dilation,
                                *groups,
                            ),
                        },
                        Weights::Int8 { values, scales } => {
                            let geometry = Geometry {
                                kernel: [kernel_h, kernel_w],
                                stride: *stride,
                                padding: *padding,
                                dilation: *dilation,
                                groups: *groups,
                            };
                            let channels = [per_group * groups, out];
                            let conv = Conv2d::new(values, channels, geometry, &zeros(step.inputs[0])?)
                                .ok_or_else(|| format!("{name}: its sums are too long"))?;
                            let to = quantization(step.output)?;
                            let from = scale(step.inputs[0])?;
                            let (residual_scale, shift) = match step.residual {
                                Some(residual) => {
                                    let residual = quantization(residual)?;
                                    let scale = residual.scale / to.scale;
                                    (scale, f32::from(residual.zero) * scale)
                                }
                                None => (0.0, 0.0),
                            };
                            Prepared::Conv2d {
                                conv,
                                scale: scales.iter().map(|weight| from * weight / to.scale).collect(),
                                bias: layer.bias.iter().map(|b| b / to.scale + f32::from(to.zero) - shift).collect(),
                                residual_scale,
                                low: if step.relu { to.zero } else { 0 },
                            }
                        }
                    }
                }
                Operation::Linear { layer: key } => {
                    let layer = &layers[key];
                    let [out, width] = <[usize; 2]>::try_from(&layer.shape[..])
                        .map_err(|_| format!("{name}: weights of shape {:?}", layer.shape))?;
                    match &layer.weights {
                        Weights::F32(weights) => {
                            let weight = Tensor::<2>::from_data(tensor(weights, &layer.shape), device);
                            let bias = Tensor::from_data(tensor(&layer.bias, &[out]), device);
                            Prepared::FloatLinear { weight: weight.transpose(), bias }
                        }
                        Weights::Int8 { values, scales } => {
                            // Pixels of a flattened map come one after another, not its channels.
                            let flat = producer.get(&step.inputs[0]).map(|&at| &program.steps[at]);
                            let pixels = match flat {
                                Some(before) if before.operation == Operation::Flatten => {
                                    shapes[&before.inputs[0]][2..].iter().product()
                                }
                                _ => 1,
                            };
                            let channels = width / pixels;
                            let row = |output: usize| {
                                let row = &values[output * width..][..width];
                                (0..width).map(move |at| row[at % channels * pixels + at / channels])
                            };
                            let values: Vec<i8> = (0..out).flat_map(row).collect();
                            let conv = Conv2d::new(
                                &values,
                                [width, out],
                                pooling([1; 2], [1; 2], [0; 2]),
                                &zeros(step.inputs[0])?,
                            )
                            .ok_or_else(|| format!("{name}: its sums are too long"))?;
                            let from = scale(step.inputs[0])?;
                            let to = match floats[index] {
                                true => Quantization { scale: 1.0, zero: 0 },
                                false => quantization(step.output)?,
                            };
                            Prepared::Linear {
                                conv,
                                scale: scales.iter().map(|weight| from * weight / to.scale).collect(),
                                bias: layer.bias.iter().map(|b| b / to.scale + f32::from(to.zero)).collect(),
                                low: (!floats[index]).then_some(if step.relu { to.zero } else { 0 }),
                            }
                        }
                    }
                }
                _ if floats[index] => Prepared::Float,
                Operation::MaxPool2d { kernel, stride, padding, .. } => Prepared::MaxPool2d {
                    geometry: pooling(*kernel, *stride, *padding),
                    table: Table::new(quantization(step.inputs[0])?.into(), quantization(step.output)?.into()),
                },
                Operation::AvgPool2d { kernel, stride, padding, count_include_pad, .. } => Prepared::AvgPool2d {
                    average: Average::Windows {
                        geometry: pooling(*kernel, *stride, *padding),
                        count_padding: *count_include_pad,
                    },
                },
                Operation::AdaptiveAvgPool2d { .. } => Prepared::AvgPool2d { average: Average::Adaptive },
                Operation::Concat => {
                    let to = quantization(step.output)?;
                    let table = |input: &Value| {
                        Ok(match part_of.contains_key(input) {
                            true => None,
                            false => Some(Table::new(quantization(*input)?.into(), to.into())),
                        })
                    };
                    Prepared::Concat(step.inputs.iter().map(table).collect::<Outcome<_>>()?)
                }
                Operation::Add => {
                    let to = quantization(step.output)?;
                    Prepared::Add { low: if step.relu { to.zero } else { 0 } }
                }
                Operation::Relu => {
                    let (from, to) = (quantization(step.inputs[0])?, quantization(step.output)?);
                    Prepared::Table(Table::with_relu(from.into(), to.into()))
                }
                Operation::Flatten if places[&step.output] == places[&step.inputs[0]] => Prepared::InPlace,
                Operation::Flatten => Prepared::Table(None),
                Operation::Float { .. } => Prepared::Float,
            };
            if step.operation == Operation::Flatten
                && program.quantization.get(&step.output) != program.quantization.get(&step.inputs[0])
            {
                return Err(format!("{name}: a flattened map has other scales"));
            }
            steps.push(prepared);
        }
        Ok(Self {
            steps,
            places,
            last_use,
            slots,
            // The offset is no whole number, so that each pixel becomes its own byte.
            input: program
                .mean
                .iter()
                .zip(&program.std)
                .map(|(mean, std)| [1.0 / (255.0 * std), 255.0 * mean])
                .collect(),
            device: device.clone(),
            scratch: Mutex::default(),
            shapes: Mutex::default(),
        })
    }

    fn shapes(&self, program: &Program, layers: &Layers, of @ [n, height, width]: [usize; 3]) -> Outcome<Arc<Shapes>> {
        let mut last = self.shapes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((key, shapes)) = &*last
            && *key == of
        {
            return Ok(shapes.clone());
        }
        let shapes = Arc::new(program.shapes(layers, n, [height, width])?);
        *last = Some((of, shapes.clone()));
        Ok(shapes)
    }

    /// Computes the logits of normalized images. `observe` is given each step with its output.
    pub fn run(
        &self,
        program: &Program,
        layers: &Layers,
        images: Tensor<4>,
        observe: &mut Observe<'_>,
    ) -> Outcome<Tensor<2>> {
        let [n, channels, height, width] = images.dims();
        if channels != 3 {
            return Err(format!("images of {channels} channels, expected 3"));
        }
        let shapes = self.shapes(program, layers, [n, height, width])?;
        let mut pass = Pass {
            runner: self,
            program,
            shapes: &shapes,
            n,
            pitches: HashMap::new(),
            buffers: self.scratch.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default(),
            floats: HashMap::from([(program.input, Values::D4(images))]),
            written: vec![],
        };
        pass.reserve()?;
        for (index, (step, prepared)) in program.steps.iter().zip(&self.steps).enumerate() {
            pass.step(step, prepared)?;
            observe(step, &|| pass.float(step.output));
            for value in step.inputs.iter().chain(&step.residual) {
                if self.last_use.get(value) == Some(&index) {
                    pass.floats.remove(value);
                    pass.written.retain(|written| written != value);
                }
            }
        }
        let logits = pass.floats.remove(&program.output).ok_or("it has no logits")?.matrix();
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner).push(pass.buffers);
        logits
    }
}

/// A pass of one batch.
struct Pass<'a> {
    runner: &'a Runner,
    program: &'a Program,
    shapes: &'a Shapes,
    n: usize,
    /// Bytes between the pixels of each root.
    pitches: HashMap<Value, usize>,
    buffers: Vec<Vec<u8>>,
    /// Values in f32.
    floats: HashMap<Value, Values>,
    /// Values whose bytes are written.
    written: Vec<Value>,
}

/// Channels and size of a value: a matrix is a map of one pixel.
fn plane(shape: &[usize]) -> Outcome<(usize, [usize; 2])> {
    match *shape {
        [_, channels, height, width] => Ok((channels, [height, width])),
        [_, channels] => Ok((channels, [1, 1])),
        _ => Err(format!("a tensor of shape {shape:?} is no feature map")),
    }
}

impl Pass<'_> {
    /// Makes the buffers as large as this batch needs them.
    fn reserve(&mut self) -> Outcome<()> {
        self.buffers.resize_with(self.runner.slots, Vec::new);
        for place in self.runner.places.values() {
            let (channels, [height, width]) = plane(&self.shapes[&place.root])?;
            self.pitches.insert(place.root, channels);
            let bytes = self.n * height * width * channels + SLACK;
            let buffer = &mut self.buffers[place.slot];
            if buffer.len() < bytes {
                buffer.resize(bytes, 0);
            }
        }
        Ok(())
    }

    fn quantization(&self, value: Value) -> int8::Quantization {
        self.program.quantization[&value].into()
    }

    /// Where a value is within the pixels of its buffer: distance between pixels, first channel.
    fn layout(&self, value: Value) -> (Place, usize, usize) {
        let place = self.runner.places[&value];
        // A flattened map has the bytes of all pixels as channels.
        let (channels, _) = plane(&self.shapes[&value]).unwrap_or_default();
        let pitch = self.pitches[&place.root];
        let is_flat = self.shapes[&value].len() == 2 && self.shapes[&place.root].len() == 4;
        (place, if is_flat { channels } else { pitch }, place.offset)
    }

    /// Makes sure that the bytes of a value are there.
    fn quantize(&mut self, value: Value) -> Outcome<()> {
        if self.written.contains(&value) {
            return Ok(());
        }
        let (channels, size) = plane(&self.shapes[&value])?;
        let values = self.floats.get(&value).ok_or("a value is not computed")?;
        let scales = match value == self.program.input {
            true => self.runner.input.clone(),
            false => vec![self.quantization(value).affine(); channels],
        };
        if let Values::D4(x) = values {
            let x = x.clone();
            return self
                .write(value, |_, out| int8::quantize_tensor(&x, &scales, out))
                .map_err(|error| error.to_string());
        }
        let data = values.to_vec()?;
        let [height, width] = size;
        let strides = [channels * height * width, height * width, width, 1];
        self.write(value, |_, out| int8::quantize(&data, strides, &scales, out));
        Ok(())
    }

    /// Runs `work` with the map of a value that is written.
    fn write<T>(&mut self, value: Value, work: impl FnOnce(&Self, MapMut<'_>) -> T) -> T {
        let (place, pitch, offset) = self.layout(value);
        let (channels, size) = plane(&self.shapes[&value]).unwrap_or_default();
        let mut data = std::mem::take(&mut self.buffers[place.slot]);
        let result = work(self, MapMut { data: &mut data, n: self.n, size, channels, pitch, offset });
        self.buffers[place.slot] = data;
        self.written.push(value);
        result
    }

    /// The map of a value, whose bytes are there.
    fn read(&self, value: Value) -> Map<'_> {
        let (place, pitch, offset) = self.layout(value);
        let (channels, size) = plane(&self.shapes[&value]).unwrap_or_default();
        Map { data: &self.buffers[place.slot], n: self.n, size, channels, pitch, offset }
    }

    /// A value in f32.
    fn float(&self, value: Value) -> Outcome<Values> {
        if let Some(values) = self.floats.get(&value) {
            return Ok(values.clone());
        }
        let map = self.read(value);
        let [height, width] = map.size;
        let mut data = vec![0.0; self.n * height * width * map.channels];
        int8::dequantize(map, self.quantization(value), &mut data);
        let device = &self.runner.device;
        let flattened = self.program.steps.iter().find(|step| step.output == value);
        let flattened = flattened.filter(|step| step.operation == Operation::Flatten);
        Ok(match self.shapes[&value].len() {
            2 => {
                // The bytes of a flattened map are in the order of its pixels.
                let [channels, pixels] = match flattened {
                    Some(step) => {
                        let (channels, [height, width]) = plane(&self.shapes[&step.inputs[0]])?;
                        [channels, height * width]
                    }
                    None => [map.channels, 1],
                };
                let data = TensorData::new(data, [self.n, pixels, channels]);
                Values::D2(Tensor::<3>::from_data(data, device).permute([0, 2, 1]).flatten(1, 2))
            }
            _ => {
                let data = TensorData::new(data, [self.n, height, width, map.channels]);
                Values::D4(Tensor::<4>::from_data(data, device).permute([0, 3, 1, 2]))
            }
        })
    }

    fn step(&mut self, step: &Step, prepared: &Prepared) -> Outcome<()> {
        let reads_bytes =
            !matches!(prepared, Prepared::Float | Prepared::FloatConv2d { .. } | Prepared::FloatLinear { .. });
        if reads_bytes {
            for &value in step.inputs.iter().chain(&step.residual) {
                self.quantize(value)?;
            }
        }
        let input = step.inputs.first().copied().unwrap_or_default();
        match prepared {
            Prepared::Conv2d { conv, scale, bias, residual_scale, low } => self.write(step.output, |pass, out| {
                let residual = step.residual.map(|residual| (pass.read(residual), *residual_scale));
                conv.run(pass.read(input), &Requantize { scale, bias, residual, low: *low }, out);
            }),
            Prepared::Linear { conv, scale, bias, low } => {
                let requantize = Requantize { scale, bias, residual: None, low: low.unwrap_or(0) };
                // One pixel with all channels.
                match low {
                    Some(_) => self.write(step.output, |pass, out| conv.run(pass.read(input), &requantize, out)),
                    None => {
                        let mut logits = vec![0.0; self.n * bias.len()];
                        conv.run_float(self.read(input), &requantize, &mut logits);
                        let logits = TensorData::new(logits, [self.n, bias.len()]);
                        self.keep(step, Values::D2(Tensor::from_data(logits, &self.runner.device)));
                    }
                }
            }
            Prepared::MaxPool2d { geometry, table } => self.write(step.output, |pass, out| {
                int8::max_pool2d(pass.read(input), geometry, table.as_ref(), out);
            }),
            Prepared::AvgPool2d { average } => {
                let (from, to) = (self.quantization(input), self.quantization(step.output));
                self.write(step.output, |pass, out| int8::avg_pool2d(pass.read(input), *average, from, to, out));
            }
            Prepared::Concat(tables) => {
                let mut offset = 0;
                for (&input, table) in step.inputs.iter().zip(tables) {
                    let (channels, _) = plane(&self.shapes[&input])?;
                    if let Some(table) = table {
                        self.write(step.output, |pass, out| {
                            let out = MapMut { channels, offset: out.offset + offset, ..out };
                            int8::convert(pass.read(input), table.as_ref(), out);
                        });
                    }
                    offset += channels;
                }
                self.written.push(step.output);
            }
            Prepared::Add { low } => {
                let terms = [step.inputs[0], step.inputs[1]].map(|value| (value, self.quantization(value)));
                let to = self.quantization(step.output);
                self.write(step.output, |pass, out| {
                    int8::add(terms.map(|(value, from)| (pass.read(value), from)), to, *low, out);
                });
            }
            Prepared::Table(table) => {
                // A map that is flattened has the shape of its input.
                let (channels, size) = plane(&self.shapes[&input])?;
                self.write(step.output, |pass, out| {
                    let out = match out.size == size {
                        true => out,
                        false => MapMut { size, channels, pitch: channels, offset: 0, ..out },
                    };
                    int8::convert(pass.read(input), table.as_ref(), out);
                });
            }
            Prepared::InPlace => self.written.push(step.output),
            Prepared::FloatConv2d { weight, bias, options } => {
                let residual = step.residual.map(|residual| self.float(residual)?.map()).transpose()?;
                let epilogue = Epilogue { bias: Some(bias.clone()), residual, relu: step.relu, ..Epilogue::default() };
                let x = self.float(input)?.map()?;
                let y = kernels::conv2d(x, weight.clone(), options.clone(), epilogue, Precision::F32);
                self.keep(step, Values::D4(y));
            }
            Prepared::FloatLinear { weight, bias } => {
                let x = self.float(input)?.matrix()?;
                let y = kernels::linear(x, weight.clone(), Some(bias.clone()), Precision::F32);
                self.keep(step, Values::D2(if step.relu { activation::relu(y) } else { y }));
            }
            Prepared::Float => {
                let inputs: Vec<Values> = step.inputs.iter().map(|&value| self.float(value)).collect::<Outcome<_>>()?;
                let inputs: Vec<&Values> = inputs.iter().collect();
                let y = run_float(step, &inputs, &self.shapes[&step.output], self.n, &self.runner.device)?;
                self.keep(step, y);
            }
        }
        Ok(())
    }

    fn keep(&mut self, step: &Step, values: Values) {
        self.floats.insert(step.output, values);
    }
}

/// Runs a step without weights in f32.
pub(super) fn run_float(
    step: &Step,
    inputs: &[&Values],
    shape: &[usize],
    n: usize,
    device: &Device,
) -> Outcome<Values> {
    use crate::graph::Op;
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
            Operation::Conv2d { stride, padding, dilation, groups, .. } => crate::graph::Op::Conv2d {
                stride: *stride,
                padding: padding.map(|[before, after]| (before, after)),
                dilation: *dilation,
                groups: *groups,
            },
            _ => crate::graph::Op::Linear,
        };
        values::run(&op, &inputs, &[], &self.device)
    }

    /// Runs the program. `observe` is given each step with its inputs and its output.
    pub fn run(
        &self,
        program: &Program,
        layers: &Layers,
        images: Tensor<4>,
        observe: &mut ObserveReference<'_>,
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
                        y = values::run(&crate::graph::Op::Add, &[&y, &values[&residual]], &[], &self.device)?;
                    }
                    match step.relu {
                        true => values::run(&crate::graph::Op::Relu, &[&y], &[], &self.device)?,
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
