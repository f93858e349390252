//! Explanations: which pixels of an image support a class.
//!
//! | method | what it shows | passes |
//! |---|---|---|
//! | [Grad-CAM](https://arxiv.org/abs/1610.02391) (Selvaraju et al., 2016) | channels of the last feature map, weighted by the class's gradient | 1, and backward through the top |
//! | [Grad-CAM++](https://arxiv.org/abs/1710.11063) (Chattopadhay et al., 2017) | as Grad-CAM, weighted per position, so that several objects show | as before |
//! | Occlusion ([Zeiler & Fergus, 2013](https://arxiv.org/abs/1311.2901)) | the drop of the probability when a gray square covers the image | some 250 |
//! | SmoothGrad ([Smilkov et al., 2017](https://arxiv.org/abs/1706.03825)) | the gradient of the pixels, averaged over noisy copies | 16, and backward through all |
//!
//! Images are explained one at a time in small batches of passes, so memory does not grow with the number of images.

use burn::tensor::{Tensor, TensorData};
use datasets::SampleRng;
use image::{
    ImageBuffer, Luma, RgbImage,
    imageops::{self, FilterType},
};
use models::{ImageClassifier, hook::ForwardHook};

use crate::{Error, Model, Result};

/// An explanation method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// Grad-CAM.
    #[default]
    GradCam,
    /// Grad-CAM++.
    GradCamPlusPlus,
    /// Occlusion by a square of a seventh of the image's side.
    Occlusion,
    /// SmoothGrad.
    SmoothGrad,
}

/// A saliency map: how strongly each pixel supports a class, from 0 to 1; all 0 if nothing does.
pub type Heat = ImageBuffer<Luma<f32>, Vec<f32>>;

/// The number of noisy copies that SmoothGrad averages.
const NOISY_COPIES: u64 = 16;
/// The standard deviation of the noise as a fraction of the input's range: the middle of the paper's values.
const NOISE: f64 = 0.15;
/// The side of the occluding square as a fraction of the image's.
const HIDDEN: f64 = 1.0 / 7.0;

/// Explains the predictions of a model.
#[derive(Debug)]
pub struct Explainer<'a> {
    model: &'a Model,
    method: Method,
    stage: String,
    batch_size: usize,
}

impl<'a> Explainer<'a> {
    /// Creates an explainer for `stage` (Grad-CAM); by default the stage before the classifier.
    ///
    /// # Errors
    /// Fails if the network has no such stage.
    pub fn new(model: &'a Model, method: Method, stage: Option<&str>, batch_size: usize) -> Result<Self> {
        let stage = match stage {
            // Occlusion reads no stage, and works for quantized networks.
            None if method == Method::Occlusion => String::new(),
            None => model.network()?.last_map(),
            Some(stage) => {
                let known = stages(model)?;
                if !known.iter().any(|(name, _)| name == stage) {
                    let architecture = model.card().architecture;
                    let stages = known.into_iter().map(|(name, _)| name).collect();
                    return Err(Error::UnknownStage { architecture, stage: stage.into(), stages });
                }
                stage.to_string()
            }
        };
        Ok(Self { model, method, stage, batch_size: batch_size.max(1) })
    }

    /// Returns the saliency map of each of `classes` on `image`, which is preprocessed as the card specifies.
    ///
    /// # Errors
    /// Fails if the device fails.
    pub fn explain(&self, image: &RgbImage, classes: &[usize]) -> Result<Vec<Heat>> {
        let input = self.model.preprocess().normalize(&self.model.preprocess().batch(&[image]), self.model.device());
        let size = image.dimensions();
        match self.method {
            Method::GradCam | Method::GradCamPlusPlus => self.cams(input, classes, size),
            Method::Occlusion => self.occlusion(input, classes, size),
            Method::SmoothGrad => classes.iter().map(|&class| self.smooth_grad(&input, class, size)).collect(),
        }
    }

    /// Grad-CAM in one pass for all classes: the activation is repeated for each class, and each copy receives its
    /// class's gradient.
    fn cams(&self, input: Tensor<4>, classes: &[usize], size: (u32, u32)) -> Result<Vec<Heat>> {
        let mut leaf = Leaf { stage: &self.stage, copies: classes.len(), map: None };
        let network = self.model.network()?;
        let run = || network.forward_with_hook(self.model.typed(input), &mut leaf);
        let logits = self.model.execution().run(run);
        let map = leaf.map.ok_or_else(|| Error::NoGradient(format!("the stage {}", self.stage)))?;
        let [_, channels, height, width] = map.dims();
        let gradients = chosen(logits, classes).backward();
        let gradient = map.grad(&gradients).ok_or_else(|| Error::NoGradient(format!("the stage {}", self.stage)))?;
        let (map, gradient) = (map.inner().try_into_vec_as::<f32>()?, gradient.try_into_vec_as::<f32>()?);
        let each = channels * height * width;
        let heats = map.chunks_exact(each).zip(gradient.chunks_exact(each)).map(|(map, gradient)| {
            let mut heat = vec![0f32; height * width];
            for (map, gradient) in map.chunks_exact(height * width).zip(gradient.chunks_exact(height * width)) {
                let weight = match self.method {
                    Method::GradCamPlusPlus => plus_plus_weight(map, gradient),
                    _ => gradient.iter().sum::<f32>() / gradient.len() as f32,
                };
                heat.iter_mut().zip(map).for_each(|(heat, value)| *heat += weight * value);
            }
            scaled(heat, width as u32, height as u32, size)
        });
        Ok(heats.collect())
    }

    /// Occlusion: the drop of each class's probability when a square of the mean color covers the image, averaged over
    /// the squares that cover a pixel.
    fn occlusion(&self, input: Tensor<4>, classes: &[usize], size: (u32, u32)) -> Result<Vec<Heat>> {
        let [_, _, height, width] = input.dims();
        let patch = ((height.min(width) as f64 * HIDDEN).round() as usize).max(1);
        let step = patch.div_ceil(2);
        let places = |side: usize| (0..).map(|i| i * step).take_while(move |&at| at + step < side + patch);
        let squares: Vec<(usize, usize)> = places(height).flat_map(|y| places(width).map(move |x| (y, x))).collect();
        let whole = self.probabilities(input.clone())?;
        let mut falls = vec![vec![0f32; height * width]; classes.len()];
        let mut seen = vec![0f32; height * width];
        // Squares extend past the edges, so that borders are covered as often as the middle.
        let span = |at: usize, side: usize| (at.saturating_sub(patch / 2), (at + patch - patch / 2).min(side));
        for chunk in squares.chunks(self.batch_size) {
            let hidden = chunk.iter().map(|&(y, x)| {
                let ((top, bottom), (left, right)) = (span(y, height), span(x, width));
                let gray = Tensor::<4>::zeros([1, 3, bottom - top, right - left], &input.device());
                input.clone().slice_assign([0..1, 0..3, top..bottom, left..right], gray)
            });
            let probabilities = self.probabilities(Tensor::cat(hidden.collect(), 0))?;
            for (&(y, x), probabilities) in chunk.iter().zip(probabilities) {
                let ((top, bottom), (left, right)) = (span(y, height), span(x, width));
                for (row, column) in (top..bottom).flat_map(|row| (left..right).map(move |column| (row, column))) {
                    seen[row * width + column] += 1.0;
                    for (falls, &class) in falls.iter_mut().zip(classes) {
                        falls[row * width + column] += (whole[0][class] - probabilities[class]) as f32;
                    }
                }
            }
        }
        let heat = |falls: Vec<f32>| {
            let mean = falls.iter().zip(&seen).map(|(fall, seen)| fall / seen.max(1.0)).collect();
            scaled(mean, width as u32, height as u32, size)
        };
        Ok(falls.into_iter().map(heat).collect())
    }

    fn probabilities(&self, input: Tensor<4>) -> Result<Vec<Vec<f64>>> {
        self.model.probabilities_of(self.model.forward(input)?)
    }

    /// SmoothGrad: the magnitude of the gradient of the class's logit with respect to the pixels, the largest of the
    /// three channels, averaged over noisy copies of the image.
    fn smooth_grad(&self, input: &Tensor<4>, class: usize, size: (u32, u32)) -> Result<Heat> {
        let [_, _, height, width] = input.dims();
        let range = f64::from((input.clone().max() - input.clone().min()).into_scalar::<f32>());
        let mut sum = vec![0f32; height * width];
        let copies: Vec<u64> = (0..NOISY_COPIES).collect();
        for copies in copies.chunks(self.batch_size) {
            let shape = [copies.len(), 3, height, width];
            // The noise does not depend on the image, the class or the batch size.
            let noise = copies.iter().flat_map(|&copy| {
                let mut rng = SampleRng::new(0, 0, copy);
                (0..3 * height * width).map(move |_| (NOISE * range * rng.normal()) as f32)
            });
            let noise = TensorData::new(noise.collect::<Vec<f32>>(), shape);
            let noise = Tensor::<4>::from_data(noise, self.model.device());
            let copies = copies.len();
            let noisy = (input.clone() + noise).autodiff().require_grad();
            let images = self.model.typed(noisy.clone());
            let network = self.model.network()?;
            let logits = self.model.execution().run(|| network.forward(images));
            let gradients = chosen(logits, &vec![class; copies]).backward();
            let gradient = noisy.grad(&gradients).ok_or_else(|| Error::NoGradient("the image".into()))?;
            // [copies, 3, h, w] → [h, w]
            let strength = gradient.abs().max_dim(1).sum_dim(0);
            let strength = strength.try_into_vec_as::<f32>()?;
            sum.iter_mut().zip(strength).for_each(|(sum, value)| *sum += value);
        }
        // A few pixels have gradients far above all others, so values are clipped at the 99th percentile, as in the
        // paper.
        let mut sorted = sum.clone();
        sorted.sort_by(f32::total_cmp);
        let most = sorted[sorted.len() * 99 / 100].max(f32::MIN_POSITIVE);
        let clipped = sum.into_iter().map(|value| value.min(most)).collect();
        Ok(scaled(clipped, width as u32, height as u32, size))
    }
}

/// Returns the stages of a network that output a feature map, with its shape `[c, h, w]`, in order.
///
/// # Errors
/// Fails if the network does not accept the card's input size.
pub fn stages(model: &Model) -> Result<Vec<(String, [usize; 3])>> {
    let [height, width] = model.card().preprocess.input_size;
    model.card().architecture.check_input([height, width])?;
    let mut found = Vec::new();
    let blank = Tensor::zeros([1, 3, height, width], model.device());
    model.network()?.forward_with_hook(blank, &mut |name: &str, map: &Tensor<4>| {
        let [_, channels, height, width] = map.dims();
        found.push((name.to_string(), [channels, height, width]));
    });
    Ok(found)
}

/// Returns the sum of one chosen logit per row.
fn chosen(logits: Tensor<2>, classes: &[usize]) -> Tensor<1> {
    let [rows, columns] = logits.dims();
    let mut mask = vec![0f32; rows * columns];
    for (row, &class) in classes.iter().enumerate() {
        mask[row * columns + class] = 1.0;
    }
    let mask = Tensor::<2>::from_data(TensorData::new(mask, [rows, columns]), &logits.device());
    (logits * mask).sum()
}

/// Returns Grad-CAM++'s channel weights: the positive gradients, each weighted by α = g² / (2g² + ΣA·g³).
fn plus_plus_weight(map: &[f32], gradient: &[f32]) -> f32 {
    let total: f32 = map.iter().sum();
    let weight = gradient.iter().map(|&g| {
        let denominator = 2.0 * g * g + total * g * g * g;
        let alpha = if denominator == 0.0 { 0.0 } else { g * g / denominator };
        alpha * g.max(0.0)
    });
    weight.sum()
}

/// Clips to positive values, scales to 0..1 and resizes to the image.
fn scaled(values: Vec<f32>, width: u32, height: u32, (to_width, to_height): (u32, u32)) -> Heat {
    let mut heat: Vec<f32> =
        values.into_iter().map(|value| if value.is_finite() { value.max(0.0) } else { 0.0 }).collect();
    normalize(&mut heat); // Before too: resizing cuts off at 1.
    let heat = Heat::from_raw(width, height, heat).expect("a value for each pixel");
    let mut heat = imageops::resize(&heat, to_width, to_height, FilterType::Triangle);
    normalize(&mut heat);
    heat
}

/// Divides by the maximum.
fn normalize(values: &mut [f32]) {
    let most = values.iter().copied().fold(0f32, f32::max);
    if most > 0.0 {
        values.iter_mut().for_each(|value| *value /= most);
    }
}

/// Makes the output of a stage a leaf of the autodiff graph, with a copy for each class.
struct Leaf<'a> {
    stage: &'a str,
    copies: usize,
    map: Option<Tensor<4>>,
}

impl ForwardHook for Leaf<'_> {
    fn on_output(&mut self, name: &str, output: Tensor<4>) -> Tensor<4> {
        if name != self.stage {
            return output;
        }
        let leaf = output.repeat_dim(0, self.copies).autodiff().require_grad();
        self.map = Some(leaf.clone());
        leaf
    }
}

#[cfg(test)]
mod tests {
    use burn::module::{Module, ModuleMapper, Param};
    use burn::tensor::{Device, TensorData};
    use datasets::SampleRng;
    use hub::Card;
    use models::{Architecture, NetworkConfig};

    use super::*;

    /// Draws parameters from its own generator: Burn's is shared with concurrent tests.
    struct Drawn(SampleRng);

    impl ModuleMapper for Drawn {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let shape = param.lazy_shape();
            let bound = (6.0 / shape.iter().skip(1).product::<usize>() as f64).sqrt();
            let (low, high) = if D == 1 { (0.5, 1.5) } else { (-bound, bound) };
            let values: Vec<f32> = (0..shape.num_elements()).map(|_| self.0.uniform(low, high) as f32).collect();
            Param::initialized(param.id, Tensor::from_data(TensorData::new(values, shape), &param.lazy_device()))
        }
    }

    fn model(architecture: Architecture) -> Model {
        let device = Device::flex();
        let mut card = Card::of(architecture, 4, "a test");
        let side = architecture.min_size().max(32);
        card.preprocess = hub::Preprocess::imagenet(side, side);
        let network = NetworkConfig::new(architecture).with_num_classes(4).with_aux_logits(false).init(&device);
        let network = network.map(&mut Drawn(SampleRng::new(5, 0, 0)));
        Model::new(network, card, &device).unwrap()
    }

    fn image(model: &Model) -> RgbImage {
        let [height, width] = model.preprocess().input_size().map(|side| side as u32);
        RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 7) as u8, (y * 5) as u8, (x * y) as u8]))
    }

    #[test]
    fn every_family_and_method_yields_a_map_of_the_image_size() {
        for architecture in [
            Architecture::AlexNet,
            Architecture::Vgg11,
            Architecture::GoogLeNet,
            Architecture::GoogLeNet2014,
            Architecture::InceptionV3,
            Architecture::ResNet18,
            Architecture::ResNet20,
        ] {
            let model = model(architecture);
            let image = image(&model);
            let methods = [Method::GradCam, Method::GradCamPlusPlus, Method::SmoothGrad];
            let all = [Method::GradCam, Method::GradCamPlusPlus, Method::SmoothGrad, Method::Occlusion];
            for &method in if architecture == Architecture::ResNet20 { &all[..] } else { &methods[..] } {
                let heats = Explainer::new(&model, method, None, 8).unwrap().explain(&image, &[0, 3]).unwrap();
                assert_eq!(heats.len(), 2);
                for heat in heats {
                    assert_eq!(heat.dimensions(), image.dimensions());
                    assert!(heat.iter().all(|value| (0.0..=1.0).contains(value)), "{architecture} {method:?}");
                }
            }
        }
    }

    /// After global average pooling and one linear layer, Grad-CAM equals CAM: the activation weighted by the class's
    /// row of weights, up to scale (section 3 of the paper).
    #[test]
    fn grad_cam_of_the_last_feature_map_equals_cam() {
        let model = model(Architecture::ResNet20);
        let image = image(&model);
        let heat = Explainer::new(&model, Method::GradCam, None, 8).unwrap().explain(&image, &[2]).unwrap().remove(0);

        let input = model.preprocess().normalize(&model.preprocess().batch(&[&image]), model.device());
        let mut map = None;
        model.network().unwrap().forward_with_hook(input, &mut |name: &str, x: &Tensor<4>| {
            if name == "layer3" {
                map = Some(x.clone());
            }
        });
        let models::Network::CifarResNet(network) = model.network().unwrap() else { panic!("another network") };
        let weights = network.linear.weight.val().slice([0..64, 2..3]).reshape([1, 64, 1, 1]);
        let cam: Vec<f32> = (map.unwrap() * weights).sum_dim(1).into_data().try_into_vec().unwrap();
        let expected = scaled(cam, 8, 8, image.dimensions());
        let worst = heat.iter().zip(expected.iter()).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(worst < 1e-4 && expected.contains(&1.0), "{worst}");
    }

    #[test]
    fn an_unknown_stage_is_an_error_that_lists_the_stages() {
        let model = model(Architecture::ResNet20);
        let error = Explainer::new(&model, Method::GradCam, Some("layer9"), 8).unwrap_err().to_string();
        assert!(error.contains("no stage `layer9`") && error.contains("layer3"), "{error}");
        let heat = Explainer::new(&model, Method::GradCam, Some("layer1"), 8).unwrap();
        assert_eq!(heat.explain(&image(&model), &[1]).unwrap().len(), 1);
    }

    #[test]
    fn explanations_repeat() {
        let model = model(Architecture::ResNet20);
        let image = image(&model);
        for method in [Method::SmoothGrad, Method::Occlusion] {
            let explain = |batch| Explainer::new(&model, method, None, batch).unwrap().explain(&image, &[1]).unwrap();
            assert!(explain(5) == explain(5), "{method:?}");
        }
    }
}
