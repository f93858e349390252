//! A network with its card, on a device.

use anyhow::{Context, Result, bail, ensure};
use burn::{
    module::Module,
    tensor::{Device, FloatDType, Tensor},
};
use datasets::ImageBatch;
use models::{Card, Network};

use zoo::{CardPreprocess, Opened};

/// A network ready to classify.
#[derive(Debug)]
pub struct Model {
    network: Network,
    card: Card,
    preprocess: CardPreprocess,
    device: Device,
    /// What the network computes in, where it is not f32.
    compute: Option<FloatDType>,
}

/// One class of an answer.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Prediction {
    /// The name.
    pub class: String,
    /// The place among the logits, from 0.
    pub index: usize,
    /// The softmax of the logits there.
    pub probability: f64,
}

impl Model {
    /// Loads the weights onto `device`, which needs no autodiff: the network runs in evaluation mode. Auxiliary
    /// classifiers stay in the file, since only training uses them. Batch normalisation is folded into the convolutions
    /// before it, which is faster and the same to rounding, unless `keep_batch_norm`.
    ///
    /// # Errors
    /// Those of [`Opened::network`] and [`CardPreprocess::new`].
    pub fn load(opened: &Opened, keep_batch_norm: bool, device: &Device) -> Result<Self> {
        let device = device.clone().without_autodiff();
        let network = opened.network(false, &device)?;
        let network = if keep_batch_norm { network } else { network.fold_batch_norm() };
        Self::new(network, opened.card.clone(), &device)
    }

    /// A network on `device` with its card.
    ///
    /// # Errors
    /// Those of [`CardPreprocess::new`].
    pub fn new(network: Network, card: Card, device: &Device) -> Result<Self> {
        let preprocess = CardPreprocess::new(&card)?;
        // Without training flags the network may be a constant in a graph of gradients, and stays in evaluation mode.
        Ok(Self { network: network.valid(), card, preprocess, device: device.clone(), compute: None })
    }

    /// Has the network compute in `dtype`: mixed precision, see [`Network`].
    ///
    /// # Errors
    /// Where the device does not compute in it.
    pub fn with_dtype(mut self, dtype: Option<FloatDType>) -> Result<Self> {
        if let Some(dtype) = dtype {
            runtime::dtype::check(format_args!("{:?}", self.device), &self.device, dtype)?;
        }
        self.compute = dtype;
        Ok(self)
    }

    /// Images in the type that the network computes in, [f32 by default](Self::with_dtype).
    pub fn typed(&self, images: Tensor<4>) -> Tensor<4> {
        match self.compute {
            Some(dtype) => images.cast(dtype),
            None => images,
        }
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The card.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// The card's preprocessing.
    pub fn preprocess(&self) -> &CardPreprocess {
        &self.preprocess
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A batch `[n, 3, h, w]` of RGB bytes → logits `[n, classes]`.
    pub fn logits(&self, batch: &ImageBatch) -> Tensor<2> {
        let images = self.preprocess.normalise(batch, &self.device);
        self.network.forward(self.typed(images))
    }

    /// A batch `[n, 3, h, w]` of RGB bytes → the probability of each class for each image, `n` rows.
    ///
    /// # Errors
    /// Where the device fails, or the logits are not finite.
    pub fn probabilities(&self, batch: &ImageBatch) -> Result<Vec<Vec<f64>>> {
        self.probabilities_of(self.logits(batch))
    }

    /// Logits `[n, classes]` → probabilities, `n` rows.
    ///
    /// # Errors
    /// Where the device fails, or the logits are not finite.
    pub fn probabilities_of(&self, logits: Tensor<2>) -> Result<Vec<Vec<f64>>> {
        let logits = logits.try_into_data().context("the device could not run the network")?;
        let logits: Vec<f32> = logits.convert::<f32>().try_into_vec().context("the logits are no floats")?;
        ensure!(
            logits.iter().all(|logit| logit.is_finite()),
            "the network's outputs are not finite: are the weights damaged?"
        );
        Ok(logits.chunks_exact(self.card.classes.len()).map(softmax).collect())
    }

    /// The class that is meant by `text`: its index, its name, or a part of one name alone, whatever the case.
    ///
    /// # Errors
    /// Where there is none, or several.
    pub fn class(&self, text: &str) -> Result<usize> {
        let classes = &self.card.classes;
        if let Ok(index) = text.parse::<usize>() {
            ensure!(index < classes.len(), "there is no class {index}: the network has 0 to {}", classes.len() - 1);
            return Ok(index);
        }
        let wanted = text.to_lowercase();
        if let Some(index) = classes.iter().position(|class| class.to_lowercase() == wanted) {
            return Ok(index);
        }
        let found: Vec<usize> =
            (0..classes.len()).filter(|&index| classes[index].to_lowercase().contains(&wanted)).collect();
        match found[..] {
            [index] => Ok(index),
            [] => bail!("no class of the network is called {text}; give its index, from 0 to {}", classes.len() - 1),
            _ => {
                let shown: Vec<String> =
                    found.iter().take(5).map(|&index| format!("{index} {}", classes[index])).collect();
                let more = if found.len() > 5 { ", …" } else { "" };
                bail!("{} classes could be meant by {text}: {}{more}", found.len(), shown.join(", "))
            }
        }
    }

    /// The `k` most probable classes, or all where there are fewer; the most probable first.
    pub fn top(&self, probabilities: &[f64], k: usize) -> Vec<Prediction> {
        let mut order: Vec<usize> = (0..probabilities.len()).collect();
        // Stable: of equals the first counts.
        order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
        let prediction = |index: usize| Prediction {
            class: self.card.classes[index].clone(),
            index,
            probability: probabilities[index],
        };
        order.into_iter().take(k).map(prediction).collect()
    }
}

/// Logits → probabilities.
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
