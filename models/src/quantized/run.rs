//! Runs a program: bytes through the int8 kernels, the rest in f32.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use burn::tensor::{Device, Tensor, TensorData, activation};
use kernels::{
    Epilogue, Precision,
    int8::{self, Map, MapMut, Requantize},
};

use super::{
    memory::{Memory, Place, Shapes},
    prepare::{Preparation, Prepared},
    program::{Layers, Operation, Program, Step},
    reference::run_float,
    values::Values,
};
use crate::graph::Value;

type Outcome<T> = std::result::Result<T, String>;

/// Is given each step, and a function that returns its output in f32.
type Observe<'a> = dyn FnMut(&Step, &dyn Fn() -> Outcome<Values>) + 'a;

/// Bytes that the kernels may read after a map.
const SLACK: usize = 64;

/// A program with packed weights.
pub(super) struct Runner {
    steps: Vec<Prepared>,
    memory: Memory,
    /// Scale and offset of each channel of images.
    input: Vec<[f32; 2]>,
    device: Device,
    /// Memory of passes that have ended.
    scratch: Mutex<Vec<Vec<Vec<u8>>>>,
    /// The shapes of the last pass: most passes have the same.
    shapes: Mutex<Option<([usize; 3], Arc<Shapes>)>>,
}

impl Runner {
    /// Packs the weights of a program, which may come from an untrusted file.
    pub fn new(program: &Program, layers: &Layers, device: &Device) -> Outcome<Self> {
        let shapes = program.shapes(layers, 1, program.input_size)?;
        let std_is_positive = program.std.iter().all(|std| std.is_finite() && *std > 0.0);
        if !std_is_positive || !program.mean.iter().all(|mean| mean.is_finite()) {
            return Err("the mean or the deviation of its images is no number".into());
        }
        let memory = Memory::plan(program, layers, &shapes);
        memory.check(program)?;
        let steps = Preparation { program, layers, shapes: &shapes, memory: &memory, device }.steps()?;
        // The offset is no whole number, so that each pixel becomes its own byte.
        let channel = |(mean, std): (&f32, &f32)| [1.0 / (255.0 * std), 255.0 * mean];
        Ok(Self {
            steps,
            memory,
            input: program.mean.iter().zip(&program.std).map(channel).collect(),
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
                if self.memory.last_use.get(value) == Some(&index) {
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
        self.buffers.resize_with(self.runner.memory.slots, Vec::new);
        for place in self.runner.memory.places.values() {
            let (channels, [height, width]) = plane(&self.shapes[&place.root])?;
            let pitch = self.runner.memory.pitch(place.root, channels);
            self.pitches.insert(place.root, pitch);
            let bytes = self.n * height * width * pitch + SLACK;
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
        let place = self.runner.memory.places[&value];
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
                // Those of other steps too, which run with this one.
                let out = MapMut { channels: bias.len(), ..out };
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
