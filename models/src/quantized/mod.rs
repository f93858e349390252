//! Networks that compute in int8: post-training quantization, and inference.
//!
//! [`QuantizedNetwork::calibrate`] lowers a network to a [`Program`] of fused steps, finds the scales of its activations
//! and weights on calibration images, and keeps activations in bytes from the images to the logits. Operations that have
//! no int8 kernel, and layers that lose too much, run in f32 between them.
//!
//! ```
//! use burn::tensor::{Device, Distribution, Tensor};
//! use models::{Architecture, ImageClassifier, NetworkConfig, QuantizedNetwork};
//!
//! let device = Device::flex();
//! let network = NetworkConfig::new(Architecture::ResNet20).init(&device);
//! let images = Tensor::random([4, 3, 32, 32], Distribution::Uniform(-2.0, 2.0), &device);
//! let (quantized, _) =
//!     QuantizedNetwork::calibrate(Architecture::ResNet20, network, [[0.5; 3], [0.25; 3]], &[images.clone()], &[])?;
//! assert_eq!(quantized.forward(images)?.dims(), [4, 10]);
//! # Ok::<(), models::Error>(())
//! ```

mod calibrate;
mod memory;
mod prepare;
mod program;
mod reference;
mod run;
mod values;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::OnceLock,
};

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};

pub use calibrate::{Calibration, LayerNoise, RangeMethod};
pub use program::{Layer, Layers, Operation, Program, Quantization, Step, Weights};

use crate::{Architecture, Error, Graph, ImageClassifier, Network, Result, graph::Value};

/// A network that computes in int8.
pub struct QuantizedNetwork {
    program: Program,
    layers: Layers,
    runner: run::Runner,
}

impl fmt::Debug for QuantizedNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuantizedNetwork").field("steps", &self.program.steps.len()).finish_non_exhaustive()
    }
}

impl QuantizedNetwork {
    /// Quantizes a network on batches of calibration images, `[n, 3, h, w]`, normalized by `[mean, std]` of each channel
    /// and of one size. The layers in `float` stay in f32.
    ///
    /// # Errors
    /// [`Error::Quantized`] for a network that can't be lowered, without images, or with values that are not finite.
    pub fn calibrate(
        architecture: Architecture,
        network: Network,
        normalization: [[f32; 3]; 2],
        batches: &[Tensor<4>],
        float: &[String],
    ) -> Result<(Self, Calibration)> {
        let float = float.iter().cloned().collect();
        Calibrator::new(architecture, network, normalization, batches)?.quantize(&float)
    }

    /// Builds a network from a program and its layers, which may come from an untrusted file.
    ///
    /// # Errors
    /// [`Error::Quantized`] where they contradict each other.
    pub fn new(program: Program, layers: Layers, device: &Device) -> Result<Self> {
        let runner = run::Runner::new(&program, &layers, device).map_err(Error::Quantized)?;
        Ok(Self { program, layers, runner })
    }

    /// Returns the program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Returns the layers.
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// Returns the shape of every value for one image of the recorded size.
    ///
    /// # Errors
    /// [`Error::Quantized`] where a step cannot be computed, which [`new`](Self::new) has excluded.
    pub fn shapes(&self) -> Result<HashMap<Value, Vec<usize>>> {
        self.program.shapes(&self.layers, 1, self.program.input_size).map_err(Error::Quantized)
    }

    /// Whether a step computes in f32 and its result is not quantized.
    pub fn is_float(&self, step: &Step) -> bool {
        memory::is_float(&self.program, &self.layers, step)
    }

    /// Whether a step reads bytes: values in f32 are rounded to them first.
    pub fn reads_bytes(&self, step: &Step) -> bool {
        memory::reads_bytes(&self.program, &self.layers, step)
    }

    /// Returns the bytes of images: the scale and zero point of each channel.
    pub fn pixels(&self) -> Vec<Quantization> {
        program::pixels(&self.program)
    }

    /// Returns the number of classes.
    pub fn num_classes(&self) -> usize {
        let of_output = self.program.steps.iter().find(|step| step.output == self.program.output);
        let layer = of_output.and_then(|step| self.layers.get(step.operation.layer()?));
        layer.map_or(0, |layer| layer.shape[0])
    }

    /// Returns the number of weights and biases.
    pub fn num_parameters(&self) -> usize {
        self.layers.values().map(|layer| layer.weights.len() + layer.bias.len()).sum()
    }

    /// Computes logits.
    ///
    /// # Shapes
    /// - images: `[n, 3, h, w]`, normalized
    /// - output: `[n, classes]`
    ///
    /// # Errors
    /// [`Error::Quantized`] for images of a size that the network cannot take.
    pub fn forward(&self, images: Tensor<4>) -> Result<Tensor<2>> {
        let run = self.runner.run(&self.program, &self.layers, images, &mut |_, _| {});
        run.map_err(Error::Quantized)
    }
}

impl QuantizedNetwork {
    /// Computes the input of the last linear layer.
    ///
    /// # Shapes
    /// - images: `[n, 3, h, w]`, normalized
    /// - output: `[n, d]`
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and for a network whose last step is no linear layer.
    pub fn forward_pre_logits(&self, images: Tensor<4>) -> Result<Tensor<2>> {
        let last = self.program.steps.iter().find(|step| step.output == self.program.output);
        let read = last.filter(|step| matches!(step.operation, Operation::Linear { .. })).map(|step| step.inputs[0]);
        let read = read.ok_or_else(|| Error::Quantized("its last step is no linear layer".into()))?;
        let mut features = None;
        let run = self.runner.run(&self.program, &self.layers, images, &mut |step, output| {
            if step.output == read {
                features = Some(output().and_then(|output| output.matrix()));
            }
        });
        run.map_err(Error::Quantized)?;
        features.unwrap_or_else(|| Err("its last layer reads the images".into())).map_err(Error::Quantized)
    }
}

/// The float side of a quantization: the lowered network and the images that it is calibrated on. Several quantizations
/// with other layers in f32 start from it.
pub struct Calibrator {
    program: Program,
    layers: Layers,
    batches: Vec<Tensor<4>>,
    device: Device,
    /// With all layers in int8.
    calibrated: OnceLock<(Program, Layers, Calibration)>,
}

impl Calibrator {
    /// Lowers a network; as [`QuantizedNetwork::calibrate`].
    ///
    /// # Errors
    /// As [`QuantizedNetwork::calibrate`].
    pub fn new(
        architecture: Architecture,
        network: Network,
        normalization: [[f32; 3]; 2],
        batches: &[Tensor<4>],
    ) -> Result<Self> {
        let first = batches.first().ok_or_else(|| Error::Quantized("there are no calibration images".into()))?;
        let [_, _, height, width] = first.dims();
        if batches.iter().any(|batch| batch.dims()[1..] != [3, height, width] || batch.dims()[0] == 0) {
            return Err(Error::Quantized("the calibration images have different sizes".into()));
        }
        let device = first.device();
        let network = network.valid().fold_batch_norm();
        let graph = Graph::of(architecture, &network, [height, width])?;
        let (program, layers) = Program::of(&graph, normalization).map_err(Error::Quantized)?;
        Ok(Self { program, layers, batches: batches.to_vec(), device, calibrated: OnceLock::new() })
    }

    /// Returns the layers of a stage.
    pub fn layers_of(&self, stage: &str) -> Vec<String> {
        calibrate::layers_of(&self.program, stage).map(str::to_string).collect()
    }

    /// Quantizes all layers but those in `float`.
    ///
    /// # Errors
    /// As [`QuantizedNetwork::calibrate`].
    pub fn quantize(&self, float: &BTreeSet<String>) -> Result<(QuantizedNetwork, Calibration)> {
        if self.calibrated.get().is_none() {
            let calibrated = calibrate::calibrate(&self.program, &self.layers, &self.batches, &self.device);
            // Another thread's result is the same.
            let _ = self.calibrated.set(calibrated.map_err(Error::Quantized)?);
        }
        let Some((program, layers, calibration)) = self.calibrated.get() else {
            return Err(Error::Quantized("calibration has no result".into()));
        };
        let layers = layers.iter().map(|(name, layer)| {
            let layer = if float.contains(name) { &self.layers[name] } else { layer };
            (name.clone(), layer.clone())
        });
        Ok((QuantizedNetwork::new(program.clone(), layers.collect(), &self.device)?, calibration.clone()))
    }

    /// Computes the logits in f32.
    ///
    /// # Errors
    /// As [`QuantizedNetwork::forward`].
    pub fn reference(&self, images: Tensor<4>) -> Result<Tensor<2>> {
        let reference = reference::Reference::new(&self.layers, &self.device).map_err(Error::Quantized)?;
        let run = reference.run(&self.program, &self.layers, images, &mut |_, _, _| Ok(()));
        run.map_err(Error::Quantized)
    }

    /// Compares the outputs of all steps in int8 with those in f32: the stage, and signal to noise in decibels.
    ///
    /// # Errors
    /// As [`QuantizedNetwork::forward`].
    pub fn signal_to_noise(&self, network: &QuantizedNetwork, images: Tensor<4>) -> Result<Vec<(String, f64)>> {
        let failed = Error::Quantized;
        let reference = reference::Reference::new(&self.layers, &self.device).map_err(failed)?;
        let mut exact = Vec::new();
        let run = reference.run(&self.program, &self.layers, images.clone(), &mut |step, _, output| {
            exact.push((step.output, output.to_vec()?));
            Ok(())
        });
        run.map_err(failed)?;
        let mut ratios = Vec::new();
        let mut exact = exact.into_iter();
        let mut failure = None;
        let run = network.runner.run(&network.program, &network.layers, images, &mut |step, output| {
            let Some((_, exact)) = exact.next() else { return };
            match output().and_then(|output| output.to_vec()) {
                Ok(values) => {
                    let power = |values: &mut dyn Iterator<Item = f32>| -> f64 {
                        values.map(|value| f64::from(value).powi(2)).sum()
                    };
                    let noise = power(&mut values.iter().zip(&exact).map(|(a, b)| a - b));
                    let signal = power(&mut exact.iter().copied());
                    let ratio = signal.max(f64::MIN_POSITIVE) / noise.max(f64::MIN_POSITIVE);
                    ratios.push((step.stage.clone(), 10.0 * ratio.log10()));
                }
                Err(error) => failure = Some(error),
            }
        });
        run.map_err(failed)?;
        match failure {
            Some(error) => Err(Error::Quantized(error)),
            None => Ok(ratios),
        }
    }
}
