//! A network with its model card, on a device.

use burn::{
    module::Module,
    tensor::{Device, FloatDType, Tensor},
};
use datasets::ImageBatch;
use hub::{Card, Opened, Preprocessor};
use kernels::KernelMode;
use models::{Execution, ImageClassifier, Network, QuantizedNetwork};

use crate::{Error, Result};

/// A network ready to classify.
#[derive(Debug)]
pub struct Model {
    network: Kind,
    card: Card,
    preprocess: Preprocessor,
    device: Device,
    /// What the network computes in, where it is not f32.
    compute: Option<FloatDType>,
    execution: Execution,
}

/// What computes the logits.
#[derive(Debug)]
enum Kind {
    Float(Box<Network>),
    Quantized(Box<QuantizedNetwork>),
}

/// A predicted class.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Prediction {
    /// The class name.
    pub class: String,
    /// The index of the class.
    pub index: usize,
    /// The softmax probability.
    pub probability: f64,
}

impl Model {
    /// Loads the weights onto `device`, without autodiff and in evaluation mode. Auxiliary classifiers are not loaded,
    /// since only training uses them. Batch normalization is folded into the preceding convolutions, which is faster
    /// and equal up to rounding, unless `keep_batch_norm` is set.
    ///
    /// # Errors
    /// Fails like [`Opened::network`] and [`Preprocessor::new`].
    pub fn load(opened: &Opened, keep_batch_norm: bool, device: &Device) -> Result<Self> {
        let device = device.clone().without_autodiff();
        if let Some(network) = opened.quantized(&device)? {
            if keep_batch_norm {
                log::warn!("the network is quantized: its batch normalization is folded");
            }
            let model = Self::of(Kind::Quantized(Box::new(network)), opened.card.clone(), &device)?;
            let [height, width] = model.preprocess.input_size();
            model.forward(Tensor::zeros([1, 3, height, width], &device))?;
            return Ok(model);
        }
        let network = opened.network(false, &device)?;
        let network = if keep_batch_norm { network } else { network.fold_batch_norm() };
        Self::new(network, opened.card.clone(), &device)
    }

    /// Creates a model from a network on `device` and its card.
    ///
    /// # Errors
    /// Fails like [`Preprocessor::new`], and for a network with one output.
    pub fn new(network: Network, card: Card, device: &Device) -> Result<Self> {
        // `valid` keeps the network in evaluation mode, also as a constant in an autodiff graph.
        Self::of(Kind::Float(Box::new(network.valid())), card, device)
    }

    /// Creates a model from a quantized network and its card.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn quantized(network: QuantizedNetwork, card: Card, device: &Device) -> Result<Self> {
        Self::of(Kind::Quantized(Box::new(network)), card, device)
    }

    fn of(network: Kind, card: Card, device: &Device) -> Result<Self> {
        if card.classes.len() < 2 {
            return Err(Error::Unsupported(
                "the network has one output, of which softmax would make a probability of 100 % for every image; read \
                 as a sigmoid it is the probability of the second of two classes (--activation sigmoid)"
                    .into(),
            ));
        }
        let preprocess = Preprocessor::new(&card)?;
        Ok(Self { network, card, preprocess, device: device.clone(), compute: None, execution: Execution::default() })
    }

    /// Has the network compute in `dtype`: mixed precision, see [`Network`].
    ///
    /// # Errors
    /// Fails if the device does not support it.
    pub fn with_dtype(mut self, dtype: Option<FloatDType>) -> Result<Self> {
        if let Some(dtype) = dtype {
            if self.is_quantized() {
                return Err(Error::Unsupported(format!(
                    "the network is quantized: it computes in int8 and not in {dtype:?}; leave out --dtype"
                )));
            }
            runtime::dtype::check(format_args!("{:?}", self.device), &self.device, dtype)?;
            warn_of_slow(dtype, &self.device);
        }
        self.compute = dtype;
        Ok(self)
    }

    /// Selects the operations that the network runs, where the device has optimized ones; these are the default.
    pub fn with_kernels(mut self, kernels: KernelMode) -> Self {
        if kernels == KernelMode::Reference && self.is_quantized() {
            log::warn!("the network is quantized: there are no reference operations for int8");
        }
        self.execution = Execution::new(kernels);
        self
    }

    /// Sets the largest number of pixels of an image, before it is resized; `None` keeps the default.
    pub fn with_max_pixels(mut self, max_pixels: Option<u64>) -> Self {
        self.preprocess = self.preprocess.with_max_pixels(max_pixels);
        self
    }

    /// Images in the type that the network computes in, [f32 by default](Self::with_dtype).
    pub fn typed(&self, images: Tensor<4>) -> Tensor<4> {
        match self.compute {
            Some(dtype) => images.cast(dtype),
            None => images,
        }
    }

    /// Returns the network.
    ///
    /// # Errors
    /// Fails if it is quantized: then it computes [logits](Self::forward) alone.
    pub fn network(&self) -> Result<&Network> {
        match &self.network {
            Kind::Float(network) => Ok(network),
            Kind::Quantized(_) => Err(Error::Unsupported(
                "the network is quantized: it has neither gradients nor feature maps in f32; give the file that it was \
                 quantized from"
                    .into(),
            )),
        }
    }

    /// Whether the network is quantized.
    pub fn is_quantized(&self) -> bool {
        matches!(self.network, Kind::Quantized(_))
    }

    /// Returns the number of weights and biases.
    pub fn num_parameters(&self) -> usize {
        match &self.network {
            Kind::Float(network) => network.num_parameters(),
            Kind::Quantized(network) => network.num_parameters(),
        }
    }

    /// Computes the logits `[n, classes]` of normalized images `[n, 3, h, w]`.
    ///
    /// # Errors
    /// Fails if a quantized network does not accept their size.
    pub fn forward(&self, images: Tensor<4>) -> Result<Tensor<2>> {
        match &self.network {
            Kind::Float(network) => Ok(self.execution.run(|| network.forward(self.typed(images)))),
            Kind::Quantized(network) => Ok(network.forward(images)?),
        }
    }

    /// Returns how the network runs, for passes that the methods of this type do not have.
    pub fn execution(&self) -> &Execution {
        &self.execution
    }

    /// Returns the card.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// Returns the card's preprocessing.
    pub fn preprocess(&self) -> &Preprocessor {
        &self.preprocess
    }

    /// Returns the device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Computes the input `[n, d]` of the last linear layer for normalized images `[n, 3, h, w]`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_pre_logits(&self, images: Tensor<4>) -> Result<Tensor<2>> {
        match &self.network {
            Kind::Float(network) => Ok(self.execution.run(|| network.forward_pre_logits(self.typed(images)))),
            Kind::Quantized(network) => Ok(network.forward_pre_logits(images)?),
        }
    }

    /// Computes the logits `[n, classes]` of a batch `[n, 3, h, w]` of RGB bytes.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn logits(&self, batch: &ImageBatch) -> Result<Tensor<2>> {
        self.forward(self.preprocess.normalize(batch, &self.device))
    }

    /// Computes the class probabilities of a batch `[n, 3, h, w]` of RGB bytes; one row per image.
    ///
    /// # Errors
    /// Fails if the device fails, or the logits are not finite.
    pub fn probabilities(&self, batch: &ImageBatch) -> Result<Vec<Vec<f64>>> {
        self.probabilities_of(self.logits(batch)?)
    }

    /// Converts logits `[n, classes]` to probabilities, one row per image.
    ///
    /// # Errors
    /// Fails if the device fails, or the logits are not finite.
    pub fn probabilities_of(&self, logits: Tensor<2>) -> Result<Vec<Vec<f64>>> {
        let logits = finite(logits)?;
        Ok(logits.chunks_exact(self.card.classes.len()).map(softmax).collect())
    }

    /// Finds a class by index, by name, or by a part of a name that occurs in one name only, ignoring case.
    ///
    /// # Errors
    /// Fails if there is no such class, or if several match.
    pub fn class(&self, text: &str) -> Result<usize> {
        let classes = &self.card.classes;
        let last = classes.len() - 1;
        if let Ok(index) = text.parse::<usize>() {
            return match index <= last {
                true => Ok(index),
                false => {
                    Err(Error::UnknownClass(format!("class {index} is out of range: the network has 0 to {last}")))
                }
            };
        }
        let wanted = text.to_lowercase();
        if let Some(index) = classes.iter().position(|class| class.to_lowercase() == wanted) {
            return Ok(index);
        }
        let found: Vec<usize> =
            (0..classes.len()).filter(|&index| classes[index].to_lowercase().contains(&wanted)).collect();
        match found[..] {
            [index] => Ok(index),
            [] => Err(Error::UnknownClass(format!(
                "unknown class `{text}`; give its name, or its index from 0 to {last}"
            ))),
            _ => {
                let shown: Vec<String> =
                    found.iter().take(5).map(|&index| format!("{index} {}", classes[index])).collect();
                let more = if found.len() > 5 { ", …" } else { "" };
                let count = found.len();
                Err(Error::UnknownClass(format!("`{text}` matches {count} classes: {}{more}", shown.join(", "))))
            }
        }
    }

    /// Returns the `k` most probable classes, or all if there are fewer; the most probable first.
    pub fn top(&self, probabilities: &[f64], k: usize) -> Vec<Prediction> {
        let mut order: Vec<usize> = (0..probabilities.len()).collect();
        // A stable sort: ties keep the order of the classes.
        order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
        let prediction = |index: usize| Prediction {
            class: self.card.classes[index].clone(),
            index,
            probability: probabilities[index],
        };
        order.into_iter().take(k).map(prediction).collect()
    }
}

/// Returns the type in which networks run fastest on `device`: on the CPU by a measurement, elsewhere f32, which `None`
/// stands for.
pub fn fastest_dtype(device: &Device) -> Option<FloatDType> {
    let on_cpu = kernels::runs_on_device_of(&Tensor::<1>::zeros([1], device));
    (on_cpu && kernels::is_faster_in_bf16()).then_some(FloatDType::BF16)
}

/// Warns of a type that the CPU is slower in than in f32.
pub fn warn_of_slow(dtype: FloatDType, device: &Device) {
    let name = if dtype == FloatDType::BF16 { "bf16" } else { "f16" };
    if dtype != FloatDType::F32
        && kernels::runs_on_device_of(&Tensor::<1>::zeros([1], device))
        && !(dtype == FloatDType::BF16 && kernels::is_faster_in_bf16())
    {
        log::warn!("{name} is slower than f32 on this processor; --dtype auto picks the faster type");
    }
}

/// Reads a tensor's values to the host and checks that they are finite.
pub(crate) fn finite<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    let values = tensor.try_into_vec_as::<f32>()?;
    if values.iter().all(|value| value.is_finite()) { Ok(values) } else { Err(Error::NotFinite) }
}

/// Converts logits to probabilities.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|logit| f64::from(logit - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_sums_to_one_and_does_not_overflow() {
        let probabilities = softmax(&[1000.0, 1000.0, 0.0]);
        assert_eq!(probabilities, [0.5, 0.5, 0.0]);
        let probabilities = softmax(&[0.0, f32::ln(3.0)]);
        assert!((probabilities[0] - 0.25).abs() < 1e-7, "{probabilities:?}");
    }
}
