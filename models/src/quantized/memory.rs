//! Where the bytes of a program's values are: a part of the pixels of a buffer, which other values have before and after.

use std::collections::HashMap;

use super::program::{Layers, Operation, Program, Step, Weights};
use crate::graph::Value;

type Outcome<T> = std::result::Result<T, String>;

/// The shape of every value.
pub(super) type Shapes = HashMap<Value, Vec<usize>>;

/// Where the bytes of a value are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// The buffer.
    pub slot: usize,
    /// The value whose pixels they are a part of: the value itself, a concatenation, or the first of convolutions that run
    /// as one.
    pub root: Value,
    /// The first channel.
    pub offset: usize,
}

/// The memory of a program.
pub(super) struct Memory {
    /// Where each value is whose bytes are needed.
    pub places: HashMap<Value, Place>,
    /// The channels of roots that hold more than their own value.
    wider: HashMap<Value, usize>,
    /// The last step that reads each value.
    pub last_use: HashMap<Value, usize>,
    /// The number of buffers.
    pub slots: usize,
    /// Convolutions of one pixel that read the same input and run as one: for the first of them all, for the others none.
    pub together: HashMap<usize, Vec<usize>>,
    /// Parts of a concatenation that are not written where it needs them.
    pub copied: Vec<(usize, Value)>,
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

/// What a program's values are written and read by.
struct Uses<'a> {
    program: &'a Program,
    layers: &'a Layers,
    floats: Vec<bool>,
    /// The step that computes each value.
    producer: HashMap<Value, usize>,
    readers: HashMap<Value, Vec<usize>>,
}

impl<'a> Uses<'a> {
    fn of(program: &'a Program, layers: &'a Layers) -> Self {
        let floats = program.steps.iter().map(|step| is_float(program, layers, step)).collect();
        let producer = program.steps.iter().enumerate().map(|(index, step)| (step.output, index)).collect();
        let mut readers: HashMap<Value, Vec<usize>> = HashMap::new();
        for (index, step) in program.steps.iter().enumerate() {
            for &value in step.inputs.iter().chain(&step.residual) {
                readers.entry(value).or_default().push(index);
            }
        }
        Self { program, layers, floats, producer, readers }
    }

    fn producer(&self, value: Value) -> Option<&'a Step> {
        self.producer.get(&value).map(|&index| &self.program.steps[index])
    }

    fn readers(&self, value: Value) -> &[usize] {
        self.readers.get(&value).map_or(&[], Vec::as_slice)
    }

    fn needs_bytes(&self, value: Value) -> bool {
        self.readers(value).iter().any(|&at| reads_bytes(self.program, self.layers, &self.program.steps[at]))
    }

    /// Whether a concatenation, step `index`, can have this part written where it needs it: nothing else reads it, and its
    /// bytes mean the same.
    fn is_written_in_place(&self, part: Value, index: usize) -> bool {
        let quantization = &self.program.quantization;
        let own = self.producer.get(&part).is_some_and(|&producer| {
            let operation = &self.program.steps[producer].operation;
            !self.floats[producer] && !matches!(operation, Operation::Flatten | Operation::Concat)
        });
        let same = quantization.get(&part) == quantization.get(&self.program.steps[index].output);
        own && same && self.readers(part) == [index]
    }

    /// Whether a step is a convolution of single pixels that can run as one with others of its kind.
    fn is_pointwise(&self, index: usize) -> bool {
        let step = &self.program.steps[index];
        let Operation::Conv2d { layer, stride: [1, 1], padding, groups: 1, .. } = &step.operation else { return false };
        let kernel = self.layers.get(layer).is_some_and(|layer| layer.shape[2..] == [1, 1]);
        let zero = self.program.quantization.get(&step.output).map(|of| of.zero);
        // ReLU clamps all of them at the same byte.
        let clamps = step.relu && zero == Some(0);
        let is_flattened =
            self.readers(step.output).iter().any(|&at| self.program.steps[at].operation == Operation::Flatten);
        kernel && clamps && !is_flattened && !self.floats[index] && step.residual.is_none() && *padding == [[0; 2]; 2]
    }
}

impl Memory {
    /// Plans the memory: a slot holds one buffer at a time, which lives from its first write to its last read.
    pub fn plan(program: &Program, layers: &Layers, shapes: &Shapes) -> Self {
        let uses = Uses::of(program, layers);
        let (mut part_of, mut wider, mut copied) = (HashMap::new(), HashMap::new(), Vec::new());
        for (index, step) in program.steps.iter().enumerate() {
            if step.operation == Operation::Concat && !uses.floats[index] {
                let mut offset = 0;
                for &input in &step.inputs {
                    match uses.is_written_in_place(input, index) {
                        true => _ = part_of.insert(input, (step.output, offset)),
                        false => copied.push((index, input)),
                    }
                    offset += shapes[&input][1];
                }
            }
        }
        let mut together: HashMap<usize, Vec<usize>> = HashMap::new();
        let mut first_of: HashMap<Value, usize> = HashMap::new();
        for (index, step) in program.steps.iter().enumerate() {
            let input = step.inputs.first().copied().unwrap_or_default();
            if !uses.is_pointwise(index) || part_of.contains_key(&step.output) || input == program.input {
                continue;
            }
            let first = *first_of.entry(input).or_insert(index);
            together.entry(first).or_default().push(index);
            if first != index {
                together.insert(index, vec![]);
            }
        }
        together.retain(|_, members| members.len() != 1);
        for members in together.values().filter(|members| !members.is_empty()) {
            let root = program.steps[members[0]].output;
            let mut channels = 0;
            for &member in members {
                let output = program.steps[member].output;
                if output != root {
                    part_of.insert(output, (root, channels));
                }
                channels += shapes[&output][1];
            }
            wider.insert(root, channels);
        }

        let root = |value: Value| {
            let mut at = value;
            while let Some(step) = uses.producer(at)
                && step.operation == Operation::Flatten
                && !part_of.contains_key(&step.inputs[0])
            {
                at = step.inputs[0];
            }
            part_of.get(&at).copied().unwrap_or((at, 0))
        };
        let mut last_use: HashMap<Value, usize> = HashMap::new();
        let mut ends: HashMap<Value, usize> = HashMap::new();
        for (&value, readers) in &uses.readers {
            let last = readers.last().copied().unwrap_or_default();
            last_use.insert(value, last);
            let end = ends.entry(root(value).0).or_default();
            *end = last.max(*end);
        }
        let mut places: HashMap<Value, Place> = HashMap::new();
        let mut slot_of: HashMap<Value, usize> = HashMap::new();
        let (mut slots, mut free) = (0, Vec::new());
        let mut place = |value: Value, free: &mut Vec<usize>| {
            let (root, offset) = root(value);
            let slot = *slot_of.entry(root).or_insert_with(|| {
                free.pop().unwrap_or_else(|| {
                    slots += 1;
                    slots - 1
                })
            });
            Place { slot, root, offset }
        };
        if uses.needs_bytes(program.input) {
            places.insert(program.input, place(program.input, &mut free));
        }
        for (index, step) in program.steps.iter().enumerate() {
            if !uses.floats[index] || uses.needs_bytes(step.output) {
                places.insert(step.output, place(step.output, &mut free));
            }
            // Each slot once, when the last reader of its buffer has run.
            let mut ended: Vec<usize> = Vec::new();
            for value in step.inputs.iter().chain(&step.residual) {
                let Some(place) = places.get(value) else { continue };
                if ends.get(&place.root) == Some(&index) && !ended.contains(&place.slot) {
                    ended.push(place.slot);
                }
            }
            free.extend(ended);
        }
        Self { places, wider, last_use, slots, together, copied }
    }

    /// Bytes between the pixels of a root, of which a value of its shape has this many channels.
    pub fn pitch(&self, root: Value, channels: usize) -> usize {
        self.wider.get(&root).copied().unwrap_or(channels)
    }

    /// Checks that every placed value has a scale.
    pub fn check(&self, program: &Program) -> Outcome<()> {
        self.places
            .keys()
            .filter(|value| **value != program.input)
            .try_for_each(|&value| program.scale_of(value).map(|_| ()))
    }
}
