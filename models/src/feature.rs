//! Feature maps of chosen stages, for detection and segmentation.

use std::cell::Cell;

use burn::{module::Module, tensor::Tensor};

use crate::{Error, ImageClassifier, Result, hook::ForwardHook, ops, pass::Pass};

/// A feature map that a network computes on its way to the logits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureInfo {
    /// torchvision's name of the stage that computes it: `layer2`, `inception4e`, `features.22`.
    pub stage: String,
    /// The number of channels.
    pub channels: usize,
    /// The distance of neighboring positions, in pixels of the image.
    pub stride: usize,
}

impl FeatureInfo {
    /// Describes the feature map of `stage`.
    pub fn new(stage: impl Into<String>, channels: usize, stride: usize) -> Self {
        Self { stage: stage.into(), channels, stride }
    }
}

/// A network that returns the feature maps of chosen stages. Built by
/// [`ImageClassifier::features_only`].
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use models::{ImageClassifier, resnet::resnet18};
///
/// let device = Device::flex();
/// let backbone = resnet18(&device).features_only(&["layer2", "layer3"])?;
/// assert_eq!(backbone.feature_info()[0].channels, 128);
/// let maps = backbone.forward(Tensor::zeros([1, 3, 64, 64], &device));
/// assert_eq!([maps[0].dims(), maps[1].dims()], [[1, 128, 8, 8], [1, 256, 4, 4]]);
/// # Ok::<(), models::Error>(())
/// ```
#[derive(Module, Debug)]
pub struct FeatureExtractor<N: Module> {
    /// The whole network; layers after the last chosen stage are not run.
    pub network: N,
    #[module(skip)]
    info: Vec<FeatureInfo>,
}

impl<N: ImageClassifier> FeatureExtractor<N> {
    pub(crate) fn new(network: N, stages: &[&str]) -> Result<Self> {
        let info = select(network.feature_info(), stages)?;
        Ok(Self { network, info })
    }

    /// Returns the chosen feature maps.
    pub fn feature_info(&self) -> &[FeatureInfo] {
        &self.info
    }

    /// Computes the chosen feature maps, in their order and in the type of the images.
    ///
    /// # Shapes
    ///
    /// - images: `[n, 3, h, w]`
    /// - output: `[n, channels, ≈ h / stride, ≈ w / stride]` each
    pub fn forward(&self, images: Tensor<4>) -> Vec<Tensor<4>> {
        let stages: Vec<&str> = self.info.iter().map(|info| info.stage.as_str()).collect();
        forward(&self.network, images, &stages)
    }
}

/// The feature maps of `stages`, in their order.
pub(crate) fn select(known: Vec<FeatureInfo>, stages: &[&str]) -> Result<Vec<FeatureInfo>> {
    let find = |stage: &&str| {
        known.iter().find(|info| info.stage == **stage).cloned().ok_or_else(|| Error::UnknownStage {
            stage: stage.to_string(),
            stages: known.iter().map(|info| info.stage.clone()).collect(),
        })
    };
    stages.iter().map(find).collect()
}

/// Computes the outputs of `stages`, all of which the network announces.
pub(crate) fn forward<N: ImageClassifier>(network: &N, images: Tensor<4>, stages: &[&str]) -> Vec<Tensor<4>> {
    let dtype = images.dtype();
    let missing = Cell::new(stages.len());
    let mut hook = Collect { stages, found: vec![None; stages.len()], missing: &missing };
    ops::in_type_of(images, |images| network.features(images, &mut Pass::until(&missing, &mut hook)));
    hook.found.into_iter().flatten().map(|map| map.cast(dtype)).collect()
}

struct Collect<'a> {
    stages: &'a [&'a str],
    found: Vec<Option<Tensor<4>>>,
    /// How many are not found yet.
    missing: &'a Cell<usize>,
}

impl ForwardHook for Collect<'_> {
    fn on_output(&mut self, name: &str, output: Tensor<4>) -> Tensor<4> {
        for (_, found) in self.stages.iter().zip(&mut self.found).filter(|(stage, _)| **stage == name) {
            *found = Some(output.clone());
            self.missing.set(self.missing.get() - 1);
        }
        output
    }

    fn observes(&self, name: &str) -> bool {
        self.stages.contains(&name)
    }
}
