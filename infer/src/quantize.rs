//! Post-training quantization with an accuracy gate: stages that lose too much stay in f32.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{Device, Tensor};
use data_encoding::HEXLOWER;
use hub::{Card, Opened};
use image::RgbImage;
use models::{QuantizedNetwork, quantized::Calibrator};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, Model, Result};

/// The version of [`Record`].
const FORMAT: u32 = 1;

/// An image of the gate, and the index of its class among the network's, if it has a label.
pub type Labeled = (RgbImage, Option<usize>);

/// What is quantized, and how much it may lose.
#[derive(Debug, Clone)]
pub struct Options {
    /// Points of top-1 accuracy that may be lost on the held-out images.
    pub max_drop: f64,
    /// Images per forward pass.
    pub batch_size: usize,
}

/// How a network was quantized; JSON in the file's metadata, under `hearth.quantization`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The version of this form.
    pub format: u32,
    /// What the calibration images are from.
    pub data: String,
    /// The number of calibration images.
    pub images: usize,
    /// The SHA-256 of their pixels as the network reads them.
    pub sha256: String,
    /// The number of values whose range each method gave.
    pub ranges: BTreeMap<String, usize>,
    /// The stages in order.
    pub stages: Vec<Stage>,
    /// The comparison on held-out images; `None` without any.
    pub gate: Option<Gate>,
}

/// A stage of a quantized network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// torchvision's name.
    pub stage: String,
    /// Whether it stays in f32.
    pub float: bool,
    /// The power of its output over that of the error in it, in decibels, on calibration images; the last step's.
    pub signal_to_noise: f64,
    /// The same for the layer of the stage whose own rounding adds most; `None` without layers.
    pub own: Option<f64>,
}

/// f32 and int8 on the same held-out images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// The number of images.
    pub images: usize,
    /// Whether the images have labels; otherwise the class that f32 finds stands for it.
    pub labeled: bool,
    /// Right in f32.
    pub right_f32: usize,
    /// Right in int8.
    pub right_int8: usize,
    /// Right in f32 alone.
    pub lost: usize,
    /// Right in int8 alone.
    pub gained: usize,
    /// The images of which both find the same class.
    pub agreement: usize,
    /// McNemar's p: how probable a difference at least as large is if neither is better.
    pub p: f64,
    /// The points that may be lost.
    pub max_drop: f64,
}

impl Gate {
    /// Returns the points of accuracy that int8 loses; negative if it gains.
    pub fn drop(&self) -> f64 {
        100.0 * (self.right_f32 as f64 - self.right_int8 as f64) / self.images.max(1) as f64
    }
}

/// What quantization is doing.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// Ranges and weights are being found.
    Calibrating,
    /// The held-out images are being classified, this many of them so far.
    Comparing(usize),
    /// A stage lost too much and stays in f32.
    KeptFloat {
        /// The stage.
        stage: String,
        /// The points that were lost before.
        drop: f64,
    },
}

/// A quantized network, the card for its preprocessing, and how it was found.
#[derive(Debug)]
pub struct Quantized {
    /// The network.
    pub network: QuantizedNetwork,
    /// The card.
    pub card: Card,
    /// The record.
    pub record: Record,
}

/// Quantizes the network of `opened` on `calibration`, images that the card's preprocessing has prepared, and compares it
/// with f32 on `held_out`. Stages fall back to f32, the one whose own rounding adds most first, until the accuracy drops
/// by at most [`Options::max_drop`].
///
/// # Errors
/// Fails if the network cannot be quantized, an image has another size, or an output is not finite.
pub fn quantize(
    mut opened: Opened,
    (data, calibration): (&str, &[RgbImage]),
    held_out: &[Labeled],
    options: &Options,
    device: &Device,
    progress: &mut dyn FnMut(Progress),
) -> Result<Quantized> {
    let device = device.clone().without_autodiff();
    let mut card = opened.card.clone();
    if card.transform_input {
        fold_transform(&mut card);
    }
    let float = Model::load(&opened, false, &device)?;
    let plain = hub::Preprocessor::new(&card)?;
    let batch = options.batch_size.max(1);
    let tensors = |images: &[&RgbImage]| plain.normalize(&plain.batch(images), &device);
    let batches: Vec<Tensor<4>> =
        calibration.chunks(batch).map(|images| tensors(&images.iter().collect::<Vec<_>>())).collect();
    progress(Progress::Calibrating);
    opened.card.clone_from(&card);
    let network = opened.network(false, &device)?;
    let normalization = [card.preprocess.mean, card.preprocess.std];
    let calibrator = Calibrator::new(card.architecture, network, normalization, &batches)?;

    let mut classes_f32 = Vec::with_capacity(held_out.len());
    for images in held_out.chunks(batch) {
        let images: Vec<&RgbImage> = images.iter().map(|(image, _)| image).collect();
        classes_f32.extend(best(float.logits(&float.preprocess().batch(&images))?)?);
    }
    drop(float);

    let mut kept = BTreeSet::new();
    let (network, calibration_result, gate) = loop {
        let (network, calibration) = calibrator.quantize(&kept)?;
        if held_out.is_empty() {
            break (network, calibration, None);
        }
        let mut classes = Vec::with_capacity(held_out.len());
        for images in held_out.chunks(batch) {
            let images: Vec<&RgbImage> = images.iter().map(|(image, _)| image).collect();
            classes.extend(best(network.forward(tensors(&images))?)?);
            progress(Progress::Comparing(classes.len()));
        }
        let gate = compare(&classes_f32, &classes, held_out, options.max_drop);
        let drop = gate.drop();
        let worst = calibration.layers.iter().filter(|layer| !kept.contains(&layer.layer));
        let worst = worst.min_by(|a, b| a.signal_to_noise.total_cmp(&b.signal_to_noise));
        let Some(worst) = worst.filter(|_| drop > options.max_drop) else {
            break (network, calibration, Some(gate));
        };
        progress(Progress::KeptFloat { stage: worst.stage.clone(), drop });
        kept.extend(calibrator.layers_of(&worst.stage));
        kept.insert(worst.layer.clone());
    };

    let first = batches.first().ok_or(Error::Bug("quantization without images"))?;
    let ratios = calibrator.signal_to_noise(&network, first.clone())?;
    let mut stages: Vec<Stage> = Vec::new();
    for (stage, signal_to_noise) in ratios {
        match stages.last_mut().filter(|last| last.stage == stage) {
            Some(last) => last.signal_to_noise = signal_to_noise,
            None => {
                let float = calibrator.layers_of(&stage).iter().any(|layer| kept.contains(layer));
                let layers = calibration_result.layers.iter().filter(|layer| layer.stage == stage);
                let own = layers.map(|layer| layer.signal_to_noise).min_by(f64::total_cmp);
                stages.push(Stage { stage, float, signal_to_noise, own });
            }
        }
    }
    let record = Record {
        format: FORMAT,
        data: data.to_string(),
        images: calibration.len(),
        sha256: sha256(calibration),
        ranges: calibration_result.methods.iter().map(|(method, &count)| (method.name().to_string(), count)).collect(),
        stages,
        gate,
    };
    Ok(Quantized { network, card, record })
}

/// The SHA-256 of the pixels of images.
fn sha256(images: &[RgbImage]) -> String {
    let mut hash = Sha256::new();
    images.iter().for_each(|image| hash.update(image.as_raw()));
    HEXLOWER.encode(&hash.finalize())
}

/// Moves torchvision's `transform_input` from the network into the card's normalization: both are affine.
fn fold_transform(card: &mut Card) {
    for channel in 0..3 {
        let scale = hub::IMAGENET_STD[channel] / 0.5;
        let shift = (hub::IMAGENET_MEAN[channel] - 0.5) / 0.5;
        let (mean, std) = (&mut card.preprocess.mean[channel], &mut card.preprocess.std[channel]);
        // (p - mean) / std · scale + shift
        *mean -= shift * *std / scale;
        *std /= scale;
    }
    card.transform_input = false;
}

/// The most probable class of each row.
fn best(logits: Tensor<2>) -> Result<Vec<usize>> {
    let [_, classes] = logits.dims();
    let values = crate::model::finite(logits)?;
    let largest = |row: &[f32]| {
        // Of equal logits the first one counts, as in an evaluation.
        let best = |best: usize, index: usize| if row[index] > row[best] { index } else { best };
        (0..row.len()).fold(0, best)
    };
    Ok(values.chunks_exact(classes).map(largest).collect())
}

fn compare(f32s: &[usize], int8s: &[usize], held_out: &[Labeled], max_drop: f64) -> Gate {
    let labeled = held_out.iter().all(|(_, label)| label.is_some());
    let mut gate = Gate {
        images: held_out.len(),
        labeled,
        right_f32: 0,
        right_int8: 0,
        lost: 0,
        gained: 0,
        agreement: 0,
        p: 1.0,
        max_drop,
    };
    for ((&f32, &int8), (_, label)) in f32s.iter().zip(int8s).zip(held_out) {
        let label = label.filter(|_| labeled).unwrap_or(f32);
        let right = [f32 == label, int8 == label];
        gate.right_f32 += usize::from(right[0]);
        gate.right_int8 += usize::from(right[1]);
        gate.lost += usize::from(right == [true, false]);
        gate.gained += usize::from(right == [false, true]);
        gate.agreement += usize::from(f32 == int8);
    }
    (gate.p, _) = report::scores::mcnemar(gate.lost, gate.gained);
    gate
}

#[cfg(test)]
mod tests {
    use models::Architecture;

    use super::*;

    #[test]
    fn the_transform_moves_into_the_card() {
        let mut card = Card::of(Architecture::GoogLeNet, 1000, "a test");
        card.transform_input = true;
        fold_transform(&mut card);
        for channel in 0..3 {
            assert!((card.preprocess.mean[channel] - 0.5).abs() < 1e-6, "{:?}", card.preprocess.mean);
            assert!((card.preprocess.std[channel] - 0.5).abs() < 1e-6, "{:?}", card.preprocess.std);
        }
    }

    #[test]
    fn images_without_labels_are_compared_with_f32() {
        let image = || RgbImage::new(1, 1);
        let gate = compare(&[1, 2, 3], &[1, 2, 4], &[(image(), None), (image(), Some(0)), (image(), None)], 0.5);
        assert!(!gate.labeled);
        assert_eq!((gate.right_f32, gate.right_int8, gate.lost, gate.agreement), (3, 2, 1, 2));
        let labeled: Vec<Labeled> = (0..3).map(|label| (image(), Some(label))).collect();
        let gate = compare(&[0, 2, 2], &[1, 1, 2], &labeled, 0.5);
        assert_eq!((gate.right_f32, gate.right_int8, gate.lost, gate.gained, gate.agreement), (2, 2, 1, 1, 1));
    }
}
