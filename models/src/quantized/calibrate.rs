//! Post-training quantization: ranges of activations, int8 weights, corrected biases.
//!
//! Ranges come from the activations of calibration images. For each value four methods propose a range, and the one is
//! taken whose rounding and clipping changes the outputs of the layers that read the value least:
//!
//! | method | range |
//! |---|---|
//! | min-max | everything that was seen |
//! | percentile | all but 0.1 %, 0.01 % or 0.001 % |
//! | mean squared error | the shrunken range whose error over the histogram is smallest |
//! | entropy | the shrunken range whose 256 levels have the smallest Kullback-Leibler divergence from the histogram |
//!
//! Weights are symmetric, with a scale for each output channel, clipped where that lowers their squared error. Each bias
//! is corrected by the mean error that its layer makes on the calibration images (Nagel et al., *Data-Free Quantization
//! Through Weight Equalization and Bias Correction*).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use burn::tensor::{Device, Tensor, TensorData};

use super::{
    program::{Layer, Layers, Operation, Program, Quantization, Step, Weights, pixels},
    reference::Reference,
    values::Values,
};
use crate::graph::Value;

type Outcome<T> = std::result::Result<T, String>;

/// Bins of a histogram.
const BINS: usize = 2048;

/// The images that ranges are compared on.
const COMPARED: usize = 8;

/// How a range was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum RangeMethod {
    MinMax,
    Percentile,
    MeanSquaredError,
    Entropy,
}

impl RangeMethod {
    /// The name, as records have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::MinMax => "min-max",
            Self::Percentile => "percentile",
            Self::MeanSquaredError => "mean squared error",
            Self::Entropy => "entropy",
        }
    }
}

/// What calibration found out.
#[derive(Debug, Clone, Default)]
pub struct Calibration {
    /// The number of values whose range each method gave.
    pub methods: BTreeMap<RangeMethod, usize>,
    /// For each layer in int8, in order: its name, its stage, and the power of its outputs over that of the error that
    /// its own quantization causes, in decibels.
    pub layers: Vec<LayerNoise>,
}

/// The quantization error of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerNoise {
    /// The layer.
    pub layer: String,
    /// torchvision's name of the stage that it belongs to.
    pub stage: String,
    /// Signal to noise in decibels.
    pub signal_to_noise: f64,
}

/// Values that share a quantization.
struct Groups {
    parent: HashMap<Value, Value>,
}

impl Groups {
    fn of(program: &Program) -> Self {
        let mut groups = Self { parent: HashMap::new() };
        let concatenated: BTreeSet<Value> = program
            .steps
            .iter()
            .filter(|step| step.operation == Operation::Concat)
            .flat_map(|step| step.inputs.iter().copied())
            .collect();
        for step in &program.steps {
            match step.operation {
                // A pooled part of a concatenation is converted to its scale while it is pooled.
                Operation::MaxPool2d { .. } if !concatenated.contains(&step.output) => {
                    groups.join(step.inputs[0], step.output);
                }
                Operation::Concat => step.inputs.iter().for_each(|&input| {
                    if input != program.input {
                        groups.join(input, step.output);
                    }
                }),
                Operation::Flatten => groups.join(step.inputs[0], step.output),
                _ => {}
            }
        }
        groups
    }

    fn find(&self, value: Value) -> Value {
        let mut at = value;
        while let Some(&next) = self.parent.get(&at).filter(|&&next| next != at) {
            at = next;
        }
        at
    }

    fn join(&mut self, a: Value, b: Value) {
        let (a, b) = (self.find(a), self.find(b));
        self.parent.insert(a, b);
    }
}

/// A range, and how it was found.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    method: RangeMethod,
    quantization: Quantization,
}

/// Bytes for values from `low` to `high`, among them 0.
fn quantization(low: f32, high: f32) -> Quantization {
    let (low, high) = (low.min(0.0), high.max(0.0));
    let scale = ((high - low) / 255.0).max(f32::MIN_POSITIVE * 1e6);
    Quantization { scale, zero: (-low / scale).round().clamp(0.0, 255.0) as u8 }
}

/// The values that a group takes on.
#[derive(Debug, Clone)]
struct Histogram {
    low: f32,
    high: f32,
    bins: Vec<f64>,
}

impl Histogram {
    fn new(low: f32, high: f32) -> Self {
        Self { low, high, bins: vec![0.0; BINS] }
    }

    fn add(&mut self, values: &[f32]) {
        let per_bin = (self.high - self.low) / BINS as f32;
        if per_bin <= 0.0 {
            return;
        }
        for value in values {
            let bin = ((value - self.low) / per_bin) as usize;
            self.bins[bin.min(BINS - 1)] += 1.0;
        }
    }

    fn center(&self, bin: usize) -> f32 {
        self.low + (bin as f32 + 0.5) * (self.high - self.low) / BINS as f32
    }

    /// The range without the smallest and the largest values; `outside` of them altogether.
    fn percentile(&self, outside: f64) -> (f32, f32) {
        let total: f64 = self.bins.iter().sum();
        // Of values that are never negative only the large ones are cut.
        let sides = if self.low < 0.0 { 2.0 } else { 1.0 };
        let cut = total * outside / sides;
        let edge = |mut bins: Box<dyn Iterator<Item = usize>>| {
            let mut seen = 0.0;
            bins.find(|&bin| {
                seen += self.bins[bin];
                seen > cut
            })
        };
        let high = edge(Box::new((0..BINS).rev())).map_or(self.high, |bin| self.center(bin));
        let low =
            if self.low < 0.0 { edge(Box::new(0..BINS)).map_or(self.low, |bin| self.center(bin)) } else { self.low };
        (low, high)
    }

    /// The squared error of a quantization.
    fn squared_error(&self, to: Quantization) -> f64 {
        let error = |(bin, count): (usize, &f64)| {
            let value = self.center(bin);
            let byte = (value / to.scale + f32::from(to.zero)).round().clamp(0.0, 255.0);
            let error = f64::from((byte - f32::from(to.zero)) * to.scale - value);
            // Within a bin, values are spread evenly.
            error * error * count
        };
        self.bins.iter().enumerate().map(error).sum()
    }

    /// The Kullback-Leibler divergence of the histogram from what is left of it with 256 levels.
    fn divergence(&self, to: Quantization) -> f64 {
        let level = |bin: usize| (self.center(bin) / to.scale + f32::from(to.zero)).round().clamp(0.0, 255.0) as usize;
        let (mut mass, mut filled) = ([0.0; 256], [0u32; 256]);
        let inside = |bin: usize| {
            let value = self.center(bin) / to.scale + f32::from(to.zero);
            (-0.5..255.5).contains(&value)
        };
        for (bin, &count) in self.bins.iter().enumerate() {
            mass[level(bin)] += count;
            filled[level(bin)] += u32::from(count > 0.0 && inside(bin));
        }
        let total: f64 = self.bins.iter().sum();
        let mut divergence = 0.0;
        for (bin, &count) in self.bins.iter().enumerate() {
            if count > 0.0 {
                let spread = match inside(bin) {
                    true => mass[level(bin)] / f64::from(filled[level(bin)].max(1)),
                    // What is clipped keeps no place of its own.
                    false => 1e-4,
                };
                divergence += count / total * (count / spread).ln();
            }
        }
        divergence
    }

    fn candidates(&self) -> Vec<Candidate> {
        let mut candidates =
            vec![Candidate { method: RangeMethod::MinMax, quantization: quantization(self.low, self.high) }];
        for outside in [1e-3, 1e-4, 1e-5] {
            let (low, high) = self.percentile(outside);
            candidates.push(Candidate { method: RangeMethod::Percentile, quantization: quantization(low, high) });
        }
        let shrunken: Vec<Quantization> = (10..=64)
            .map(|part| part as f32 / 64.0)
            .map(|part| quantization(self.low * part, self.high * part))
            .collect();
        let best = |error: &dyn Fn(Quantization) -> f64| {
            shrunken.iter().copied().min_by(|&a, &b| error(a).total_cmp(&error(b))).unwrap_or(shrunken[0])
        };
        candidates.push(Candidate {
            method: RangeMethod::MeanSquaredError,
            quantization: best(&|to| self.squared_error(to)),
        });
        candidates.push(Candidate { method: RangeMethod::Entropy, quantization: best(&|to| self.divergence(to)) });
        candidates
    }
}

/// Rounds a tensor to what its bytes would stand for.
fn rounded(x: &Values, to: Quantization) -> Values {
    fn round<const D: usize>(x: Tensor<D>, to: Quantization) -> Tensor<D> {
        let zero = f32::from(to.zero);
        ((x / to.scale + zero).round().clamp(0.0, 255.0) - zero) * to.scale
    }
    match x.clone() {
        Values::D2(x) => Values::D2(round(x, to)),
        Values::D4(x) => Values::D4(round(x, to)),
        other => other,
    }
}

fn difference(a: &Values, b: &Values) -> Outcome<Values> {
    Ok(match (a.clone(), b.clone()) {
        (Values::D2(a), Values::D2(b)) => Values::D2(a - b),
        (Values::D4(a), Values::D4(b)) => Values::D4(a - b),
        _ => return Err("a difference of other shapes".into()),
    })
}

fn power(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value) * f64::from(value)).sum()
}

/// Quantizes the layers of a program, on batches of normalized images.
pub(super) fn calibrate(
    program: &Program,
    layers: &Layers,
    batches: &[Tensor<4>],
    device: &Device,
) -> Outcome<(Program, Layers, Calibration)> {
    let reference = Reference::new(layers, device)?;
    let groups = Groups::of(program);
    let first = batches.first().ok_or("there are no calibration images")?;

    let mut ranges: HashMap<Value, (f32, f32)> = HashMap::new();
    for batch in batches {
        reference.run(program, layers, batch.clone(), &mut |step, _, output| {
            let range = ranges.entry(groups.find(step.output)).or_insert((0.0, 0.0));
            for value in output.to_vec()? {
                if !value.is_finite() {
                    return Err(format!("{} has an output that is not finite", step.stage));
                }
                *range = (range.0.min(value), range.1.max(value));
            }
            Ok(())
        })?;
    }
    let mut histograms: HashMap<Value, Histogram> =
        ranges.iter().map(|(&group, &(low, high))| (group, Histogram::new(low, high))).collect();
    for batch in batches {
        reference.run(program, layers, batch.clone(), &mut |step, _, output| {
            if let Some(histogram) = histograms.get_mut(&groups.find(step.output)) {
                histogram.add(&output.to_vec()?);
            }
            Ok(())
        })?;
    }
    let candidates: HashMap<Value, Vec<Candidate>> =
        histograms.iter().map(|(&group, histogram)| (group, histogram.candidates())).collect();
    let chosen = choose(program, layers, &reference, first, &groups, &candidates)?;

    let mut calibration = Calibration::default();
    for candidate in chosen.values() {
        *calibration.methods.entry(candidate.method).or_default() += 1;
    }
    let mut quantized = program.clone();
    for step in &program.steps {
        if let Some(candidate) = chosen.get(&groups.find(step.output)) {
            quantized.quantization.insert(step.output, candidate.quantization);
        }
    }
    let layers_int8 = weights(&quantized, layers, &reference, batches, &mut calibration)?;
    Ok((quantized, layers_int8, calibration))
}

/// Chooses the range of each group by the error that it causes in the outputs of the layers that read it.
fn choose(
    program: &Program,
    layers: &Layers,
    reference: &Reference,
    batch: &Tensor<4>,
    groups: &Groups,
    candidates: &HashMap<Value, Vec<Candidate>>,
) -> Outcome<HashMap<Value, Candidate>> {
    let images = batch.dims()[0].min(COMPARED);
    let batch = batch.clone().narrow(0, 0, images);
    // By group, for each candidate: the error in layers, and in itself.
    let mut errors: HashMap<Value, Vec<[f64; 2]>> = HashMap::new();
    reference.run(program, layers, batch, &mut |step, inputs, output| {
        for (value, input) in step.inputs.iter().zip(inputs) {
            let group = groups.find(*value);
            let Some(candidates) = candidates.get(&group) else { continue };
            if !matches!(input, Values::D2(_) | Values::D4(_)) {
                continue;
            }
            let errors = errors.entry(group).or_insert_with(|| vec![[0.0; 2]; candidates.len()]);
            let own = power(&input.to_vec()?).max(f64::MIN_POSITIVE);
            let signal = power(&output.to_vec()?).max(f64::MIN_POSITIVE);
            for (candidate, error) in candidates.iter().zip(errors) {
                let noise = difference(&rounded(input, candidate.quantization), input)?;
                error[1] += power(&noise.to_vec()?) / own;
                if step.operation.layer().is_some() {
                    error[0] += power(&reference.layer(&step.operation, &noise, None, false)?.to_vec()?) / signal;
                }
            }
        }
        Ok(())
    })?;
    let best = |(&group, errors): (&Value, &Vec<[f64; 2]>)| {
        // Where no layer reads it, its own error decides.
        let kind = usize::from(errors.iter().all(|error| error[0] == 0.0));
        let best = errors.iter().enumerate().min_by(|a, b| a.1[kind].total_cmp(&b.1[kind]));
        (group, candidates[&group][best.map_or(0, |(index, _)| index)])
    };
    let mut chosen: HashMap<Value, Candidate> = errors.iter().map(best).collect();
    for (&group, candidates) in candidates {
        chosen.entry(group).or_insert(candidates[0]);
    }
    Ok(chosen)
}

/// int8 weights of an output: the scale among clipped ones whose squared error is smallest.
fn quantize_row(row: &[f32]) -> (f32, Vec<i8>) {
    let largest = row.iter().fold(0.0f32, |largest, weight| largest.max(weight.abs()));
    let round = |scale: f32| row.iter().map(move |weight| (weight / scale).round().clamp(-127.0, 127.0));
    let error = |scale: f32| -> f64 {
        round(scale).zip(row).map(|(byte, weight)| f64::from(byte * scale - weight).powi(2)).sum()
    };
    let full = (largest / 127.0).max(f32::MIN_POSITIVE * 1e6);
    let scales = (0..=10).map(|step| full * (1.0 - 0.03 * step as f32));
    let scale = scales.min_by(|&a, &b| error(a).total_cmp(&error(b))).unwrap_or(full);
    (scale, round(scale).map(|byte| byte as i8).collect())
}

/// Quantizes weights and corrects biases.
fn weights(
    program: &Program,
    layers: &Layers,
    reference: &Reference,
    batches: &[Tensor<4>],
    calibration: &mut Calibration,
) -> Outcome<Layers> {
    let mut quantized = layers.clone();
    // The weights that int8 stands for, in the units of the inputs.
    let mut stood_for: HashMap<String, Values> = HashMap::new();
    let channel_scale: Vec<f32> = pixels(program).iter().map(|channel| channel.scale).collect();
    let device = batches[0].device();
    for step in &program.steps {
        let Some(name) = step.operation.layer() else { continue };
        let layer = &layers[name];
        let Weights::F32(values) = &layer.weights else { continue };
        let reads_images = step.inputs.contains(&program.input);
        if reads_images && !matches!(step.operation, Operation::Conv2d { .. }) {
            continue;
        }
        let depth: usize = layer.shape[1..].iter().product();
        let per_channel: usize = layer.shape[2..].iter().product();
        // Images are bytes already: what one byte more adds is a factor of the weights.
        let factor = |index: usize| match reads_images {
            true => channel_scale[index % depth / per_channel],
            false => 1.0,
        };
        let scaled: Vec<f32> = values.iter().enumerate().map(|(index, weight)| weight * factor(index)).collect();
        let (mut scales, mut bytes, mut back) = (vec![], vec![], Vec::with_capacity(values.len()));
        for row in scaled.chunks_exact(depth) {
            let (scale, row) = quantize_row(row);
            back.extend(row.iter().enumerate().map(|(index, &byte)| f32::from(byte) * scale / factor(index)));
            scales.push(scale);
            bytes.extend(row);
        }
        let tensor = Values::new(TensorData::new(back, layer.shape.clone()), &device)?;
        stood_for.insert(
            name.to_string(),
            match tensor {
                Values::D2(matrix) => Values::D2(matrix.transpose()),
                other => other,
            },
        );
        let weights = Weights::Int8 { values: bytes, scales };
        quantized.insert(name.to_string(), Layer { weights, ..layer.clone() });
    }

    // The mean error of each output, and the powers of outputs and of errors about their mean.
    struct Error {
        sums: Vec<f64>,
        count: f64,
        signal: f64,
        noise: f64,
    }
    let mut errors: HashMap<String, Error> = HashMap::new();
    for batch in batches {
        reference.run(program, layers, batch.clone(), &mut |step, inputs, _| {
            let Some((name, weight)) = step.operation.layer().and_then(|name| Some((name, stood_for.get(name)?)))
            else {
                return Ok(());
            };
            let x = match program.quantization.get(&step.inputs[0]) {
                Some(&to) => rounded(inputs[0], to),
                None => inputs[0].clone(),
            };
            let exact = reference.layer(&step.operation, inputs[0], None, false)?;
            let error = difference(&exact, &reference.layer(&step.operation, &x, Some(weight), false)?)?;
            let outputs = layers[name].shape[0];
            let found = errors.entry(name.to_string()).or_insert_with(|| Error {
                sums: vec![0.0; outputs],
                count: 0.0,
                signal: 0.0,
                noise: 0.0,
            });
            let (exact, error) = (exact.to_vec()?, error.to_vec()?);
            // [n, c, h · w] for maps, [n, c, 1] for matrices.
            let plane = error.len() / outputs / batch.dims()[0];
            for (index, values) in error.chunks_exact(plane.max(1)).enumerate() {
                found.sums[index % outputs] += values.iter().copied().map(f64::from).sum::<f64>();
            }
            found.count += (error.len() / outputs) as f64;
            found.signal += power(&exact);
            found.noise += power(&error);
            Ok(())
        })?;
    }
    for step in &program.steps {
        let Some(name) = step.operation.layer() else { continue };
        let Some(error) = errors.get(name) else { continue };
        let layer = quantized.get_mut(name).ok_or("a layer is gone")?;
        let means = error.sums.iter().map(|sum| sum / error.count);
        let corrected: f64 = means.clone().map(|mean| mean * mean * error.count).sum();
        for (bias, mean) in layer.bias.iter_mut().zip(means) {
            *bias += mean as f32;
        }
        if step.inputs.contains(&program.input) {
            center_images(program, layer)?;
        }
        let noise = (error.noise - corrected).max(f64::MIN_POSITIVE);
        calibration.layers.push(LayerNoise {
            layer: name.to_string(),
            stage: step.stage.clone(),
            signal_to_noise: 10.0 * (error.signal.max(f64::MIN_POSITIVE) / noise).log10(),
        });
    }
    Ok(quantized)
}

/// The means of images are no whole bytes: moves the fractions into the bias.
fn center_images(program: &Program, layer: &mut Layer) -> Outcome<()> {
    let Weights::Int8 { values, scales } = &layer.weights else { return Ok(()) };
    let depth: usize = layer.shape[1..].iter().product();
    let per_channel: usize = layer.shape[2..].iter().product();
    let pixels = pixels(program);
    let fraction = |channel: usize| 255.0 * program.mean[channel] - f32::from(pixels[channel].zero);
    for (output, bias) in layer.bias.iter_mut().enumerate() {
        let row = &values[output * depth..][..depth];
        let sum: f32 = row.iter().enumerate().map(|(at, &byte)| f32::from(byte) * fraction(at / per_channel)).sum();
        *bias -= sum * scales[output];
    }
    Ok(())
}

/// Lists the layers of a step's stage, for falling back to f32.
pub(super) fn layers_of<'a>(program: &'a Program, stage: &'a str) -> impl Iterator<Item = &'a str> {
    program.steps.iter().filter(move |step: &&Step| step.stage == stage).filter_map(|step| step.operation.layer())
}
