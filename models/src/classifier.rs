//! The interface of every network.

use burn::{
    module::{Module, ModuleVisitor, Param, ParamGroup, ParamId},
    nn::{BatchNorm, Linear},
    optim::GradientsParams,
    tensor::{Bool, Device, FloatDType, Int, Tensor},
};

use crate::{
    AuxClassifier, FeatureExtractor, FeatureInfo, Result,
    blocks::{ConvNormMut, fold},
    feature, freeze,
    hook::{Capture, ForwardHook},
    ops,
    pass::Pass,
    recompute,
};

/// An image classifier: a [`Network`](crate::Network), a network of one family such as [`ResNet`](crate::resnet::ResNet),
/// or your own.
///
/// Names are timm's: [`forward_features`](Self::forward_features) computes the last feature map,
/// [`forward_head`](Self::forward_head) the logits from it. The vector before the last linear layer is called pre-logits.
///
/// An implementation provides [`features`](Self::features), [`pre_logits`](Self::pre_logits),
/// [`classifier`](Self::classifier), [`reset_classifier`](Self::reset_classifier), [`head_key`](Self::head_key) and
/// [`feature_info`](Self::feature_info); the example `network_from_blocks` shows one.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use models::{ImageClassifier, resnet::resnet18};
///
/// let device = Device::flex();
/// let network = resnet18(&device).reset_classifier(5, &device);
/// let images = Tensor::zeros([1, 3, 64, 64], &device);
/// let features = network.forward_features(images.clone());
/// assert_eq!(features.dims(), [1, 512, 2, 2]);
/// assert_eq!(network.forward_head(features).dims(), [1, 5]);
/// assert_eq!(network.forward_pre_logits(images).dims(), [1, 512]);
/// ```
pub trait ImageClassifier: Module {
    /// Runs the layers before the classifier in `pass`, which stages and segments are announced to.
    ///
    /// # Shapes
    ///
    /// - images: `[n, 3, h, w]`
    /// - output: `[n, c, h', w']`
    fn features(&self, images: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4>;

    /// Runs the layers between the last feature map and the last linear layer: pooling, hidden layers, dropout.
    ///
    /// # Shapes
    ///
    /// - features: `[n, c, h', w']`
    /// - output: `[n, d]`
    fn pre_logits(&self, features: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<2>;

    /// Returns the last linear layer.
    fn classifier(&self) -> &Linear;

    /// Replaces the classifier, and those of auxiliary classifiers, by new ones for `num_classes`. Their weights are drawn
    /// by PyTorch's default, uniform ±1/√fan_in; all others are kept.
    fn reset_classifier(self, num_classes: usize, device: &Device) -> Self;

    /// Returns the key of the last linear layer: `fc`, `classifier.6` or `linear`.
    fn head_key(&self) -> &'static str;

    /// Returns the feature maps for detection and segmentation: the last one of each stride, in order of depth.
    fn feature_info(&self) -> Vec<FeatureInfo>;

    /// Returns the stage whose output a class activation map is computed from: the last feature map, in AlexNet and VGG
    /// before its pooling, at twice the resolution.
    fn last_map(&self) -> String {
        self.feature_info().pop().map_or_else(String::new, |info| info.stage)
    }

    /// Returns the auxiliary classifiers that this network was built with, in order of depth.
    fn aux_classifiers(&self) -> &'static [AuxClassifier] {
        &[]
    }

    /// Runs the [auxiliary classifiers](Self::aux_classifiers) on the outputs of their stages.
    ///
    /// # Shapes
    ///
    /// - outputs: `[n, c, h', w']` each
    /// - output: `[n, classes]` each, with the classifier's name
    fn classify_aux(&self, _outputs: Vec<Tensor<4>>) -> Vec<(&'static str, Tensor<2>)> {
        vec![]
    }

    /// Returns each convolution with the batch normalization after it.
    fn conv_norms_mut(&mut self) -> Vec<ConvNormMut<'_>> {
        vec![]
    }

    /// Returns all batch normalizations.
    fn norms_mut(&mut self) -> Vec<&mut BatchNorm> {
        self.conv_norms_mut().into_iter().filter_map(|(_, norm)| norm.as_mut()).collect()
    }

    /// Folds every batch normalization into the convolution before it, which gains a bias: the same function in
    /// evaluation mode up to rounding, with fewer passes over memory. Not for training.
    fn fold_batch_norm(mut self) -> Self {
        self.conv_norms_mut().into_iter().for_each(|(conv, norm)| fold(conv, norm));
        self
    }

    /// Computes logits.
    ///
    /// # Shapes
    ///
    /// - images: `[n, 3, h, w]`
    /// - output: `[n, classes]`
    ///
    /// # Panics
    ///
    /// If the images are smaller than the architecture's [`min_size`](crate::Architecture::min_size).
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        ops::unseen(|| self.forward_with_hook(images, &mut ()))
    }

    /// Like [`forward`](Self::forward), with a [`ForwardHook`] that observes the output of each stage.
    ///
    /// # Shapes
    ///
    /// - images: `[n, 3, h, w]`
    /// - output: `[n, classes]`
    fn forward_with_hook(&self, images: Tensor<4>, hook: &mut dyn ForwardHook) -> Tensor<2> {
        ops::in_type_of(images, |images| {
            let mut pass = Pass::new(hook);
            let features = self.features(images, &mut pass);
            self.classify(self.pre_logits(features, &mut pass))
        })
    }

    /// Computes logits of whole images that were not cropped: the classifier of AlexNet and VGG is applied wherever it fits
    /// (images of at least 224 × 224 pixels) and its logits are averaged; other networks average their last feature map
    /// anyway.
    ///
    /// # Shapes
    ///
    /// - images: `[n, 3, h, w]`
    /// - output: `[n, classes]`
    fn forward_dense(&self, images: Tensor<4>) -> Tensor<2> {
        self.forward(images)
    }

    /// Computes logits and the logits of the auxiliary classifiers.
    ///
    /// # Shapes
    ///
    /// - images: `[n, 3, h, w]`
    /// - output: `[n, classes]` each
    fn forward_aux(&self, images: Tensor<4>) -> Output {
        let stages: Vec<&str> = self.aux_classifiers().iter().map(|aux| aux.stage).collect();
        if stages.is_empty() {
            return Output { logits: self.forward(images), aux: vec![] };
        }
        let mut capture = Capture::new(&stages);
        ops::in_type_of(images, |images| {
            let logits = self.forward_with_hook(images, &mut capture);
            let aux = self.classify_aux(stages.iter().filter_map(|stage| capture.take(stage)).collect());
            Output { logits, aux }
        })
    }

    /// Computes the last feature map, in the type of the images.
    ///
    /// # Shapes
    ///
    /// - images: `[n, 3, h, w]`
    /// - output: `[n, c, h', w']`
    fn forward_features(&self, images: Tensor<4>) -> Tensor<4> {
        let dtype = images.dtype();
        ops::in_type_of(images, |images| self.features(images, &mut Pass::new(&mut ()))).cast(dtype)
    }

    /// Computes logits from the last feature map.
    ///
    /// # Shapes
    ///
    /// - features: `[n, c, h', w']`
    /// - output: `[n, classes]`
    fn forward_head(&self, features: Tensor<4>) -> Tensor<2> {
        ops::in_type_of(features, |features| self.classify(self.pre_logits(features, &mut Pass::new(&mut ()))))
    }

    /// Computes the vectors before the last linear layer, in f32.
    ///
    /// # Shapes
    ///
    /// - images: `[n, 3, h, w]`
    /// - output: `[n, d]`
    fn forward_pre_logits(&self, images: Tensor<4>) -> Tensor<2> {
        ops::unseen(|| self.forward_pre_logits_with_hook(images, &mut ()))
    }

    /// Like [`forward_pre_logits`](Self::forward_pre_logits), with a [`ForwardHook`].
    ///
    /// # Shapes
    ///
    /// - images: `[n, 3, h, w]`
    /// - output: `[n, d]`
    fn forward_pre_logits_with_hook(&self, images: Tensor<4>, hook: &mut dyn ForwardHook) -> Tensor<2> {
        ops::in_type_of(images, |images| {
            let mut pass = Pass::new(hook);
            let features = self.features(images, &mut pass);
            self.pre_logits(features, &mut pass)
        })
        .cast(FloatDType::F32)
    }

    /// Computes logits, in f32, from the vectors before the last linear layer.
    ///
    /// # Shapes
    ///
    /// - pre_logits: `[n, d]`
    /// - output: `[n, classes]`
    fn classify(&self, pre_logits: Tensor<2>) -> Tensor<2> {
        ops::logits(self.classifier(), pre_logits)
    }

    /// Computes the feature maps of chosen stages, in their order and in the type of the images. Later stages are not
    /// computed.
    ///
    /// # Shapes
    ///
    /// - images: `[n, 3, h, w]`
    /// - output: `[n, channels, ≈ h / stride, ≈ w / stride]` each
    ///
    /// # Errors
    ///
    /// [`Error::UnknownStage`](crate::Error::UnknownStage) where a stage is not in [`feature_info`](Self::feature_info).
    fn forward_intermediates(&self, images: Tensor<4>, stages: &[&str]) -> Result<Vec<Tensor<4>>> {
        feature::select(self.feature_info(), stages)?;
        Ok(feature::forward(self, images, stages))
    }

    /// Turns the network into one that returns the feature maps of chosen stages.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownStage`](crate::Error::UnknownStage) where a stage is not in [`feature_info`](Self::feature_info).
    fn features_only(self, stages: &[&str]) -> Result<FeatureExtractor<Self>> {
        FeatureExtractor::new(self, stages)
    }

    /// Computes the gradients of `loss` by gradient checkpointing: the gradients of
    /// `loss(network.forward_aux(images)).backward()`, in less memory, for the time of another forward pass.
    ///
    /// The running statistics of batch normalization are updated once. In f32 the gradients are bit-identical to those of
    /// the ordinary backward pass where an activation between two segments has at most two consumers, as in ResNets.
    ///
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use models::{Architecture, ImageClassifier, NetworkConfig};
    ///
    /// let device = Device::flex().autodiff();
    /// let network = NetworkConfig::new(Architecture::ResNet20).init(&device);
    /// let images = Tensor::ones([2, 3, 32, 32], &device);
    /// let gradients = network.checkpointed_gradients(images, |output| output.logits.square().mean());
    /// assert_eq!(gradients.len(), 3 * 19 + 2); // Weights and two parameters of a norm each; the classifier.
    /// ```
    ///
    /// # Panics
    ///
    /// If the network is not on an autodiff device, or the loss does not depend on its output.
    fn checkpointed_gradients(&self, images: Tensor<4>, loss: impl FnOnce(Output) -> Tensor<1>) -> GradientsParams {
        ops::in_type_of(images, |images| recompute::gradients(self, images, loss))
    }

    /// Returns the stages that have parameters, in order of depth, the classifier last and auxiliary classifiers left out:
    /// the modules of the network, `layer2`, or the layers of a column, `features.12`.
    fn stages(&self) -> Vec<String> {
        freeze::stages(self)
    }

    /// Returns the parameters, running statistics and training flags of a stage.
    fn stage_params(&self, stage: &str) -> Vec<ParamId> {
        freeze::stage_params(self, stage)
    }

    /// Returns the parameters and running statistics of all stages before the classifier.
    fn backbone_params(&self) -> Vec<ParamId> {
        freeze::backbone_params(self)
    }

    /// Returns what is frozen where the first `count` [stages](Self::stages) are. All stages before the classifier include
    /// what has no parameters, such as dropout.
    ///
    /// # Panics
    ///
    /// If there are fewer stages.
    fn frozen_group(&self, count: usize) -> ParamGroup {
        freeze::group(self, count)
    }

    /// Freezes the first `count` [stages](Self::stages): they have no gradients, their batch normalizations keep their
    /// running statistics, and their dropout is off.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use models::{ImageClassifier, resnet::resnet18};
    ///
    /// let network = resnet18(&Device::flex().autodiff());
    /// assert_eq!(network.stages().join(" "), "conv1 bn1 layer1 layer2 layer3 layer4 fc");
    /// let network = network.freeze_until("layer2")?; // The same as `freeze_stages(4)`.
    /// # Ok::<(), models::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If there are fewer stages.
    fn freeze_stages(self, count: usize) -> Self {
        if count == 0 {
            return self;
        }
        let group = self.frozen_group(count);
        self.freeze_group(group)
    }

    /// Freezes the [stages](Self::stages) up to `stage`, as [`freeze_stages`](Self::freeze_stages) does.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownStage`](crate::Error::UnknownStage) where there is no such stage.
    fn freeze_until(self, stage: &str) -> Result<Self> {
        let count = freeze::position(&self.stages(), stage)? + 1;
        Ok(self.freeze_stages(count))
    }

    /// Freezes everything but the classifier and auxiliary classifiers, as [`freeze_stages`](Self::freeze_stages) does.
    fn freeze_backbone(self) -> Self {
        let count = self.stages().len() - 1;
        self.freeze_stages(count)
    }

    /// Returns the number of classes.
    fn num_classes(&self) -> usize {
        self.classifier().weight.lazy_shape()[1]
    }

    /// Returns the state of the network: every parameter and running statistic by torchvision's key, in the module's
    /// order. None is initialized.
    fn entries(&self) -> Vec<Entry> {
        let mut visitor = Keys::default();
        self.visit(&mut visitor);
        visitor.entries
    }

    /// Returns the number of trainable parameters, auxiliary classifiers included (running statistics are not parameters).
    fn num_parameters(&self) -> usize {
        self.entries().iter().filter(|entry| !entry.is_statistic()).map(Entry::len).sum()
    }
}

/// The output of a network while training.
#[derive(Debug, Clone)]
pub struct Output {
    /// Logits `[n, classes]`.
    pub logits: Tensor<2>,
    /// The auxiliary classifiers' logits `[n, classes]` by torchvision's name, in order of depth; empty where the
    /// network has none.
    pub aux: Vec<(&'static str, Tensor<2>)>,
}

/// One tensor of a network's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// torchvision's key: `layer1.0.bn1.weight`.
    pub key: String,
    /// Burn's path of it: `ResNet.layer1.0.Basic.bn1.gamma`.
    pub path: String,
    /// The shape as PyTorch has it: a linear layer is `[out, in]`.
    pub shape: Vec<usize>,
    /// Whether this is a weight that Burn stores as `[in, out]`.
    pub is_linear: bool,
}

impl Entry {
    /// A running statistic of BatchNorm rather than a parameter.
    pub fn is_statistic(&self) -> bool {
        self.key.ends_with(".running_mean") || self.key.ends_with(".running_var")
    }

    /// The number of values.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Collects keys and shapes. Enum variants do not show in PyTorch's keys; norms call their parameters weight and bias;
/// linear layers are transposed.
#[derive(Default)]
struct Keys {
    path: Vec<(String, String)>,
    entries: Vec<Entry>,
}

impl Keys {
    fn push(&mut self, mut shape: Vec<usize>) {
        let container = |(_, container): &(String, String)| container.clone();
        let module = self.path.iter().rev().map(container).find(|c| c.starts_with("Struct:"));
        let shown = self.path.iter().filter(|(_, container)| !container.starts_with("Enum:"));
        let mut names: Vec<&str> = shown.map(|(name, _)| name.as_str()).collect();
        if module.as_deref() == Some("Struct:BatchNorm")
            && let Some(last) = names.last_mut()
        {
            *last = match *last {
                "gamma" => "weight",
                "beta" => "bias",
                other => other,
            };
        }
        let is_linear = module.as_deref() == Some("Struct:Linear") && shape.len() == 2;
        if is_linear {
            shape.reverse();
        }
        let path: Vec<&str> = self.path.iter().map(|(name, _)| name.as_str()).collect();
        self.entries.push(Entry { key: names.join("."), path: path.join("."), shape, is_linear });
    }
}

impl ModuleVisitor for Keys {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.push((name.to_string(), container_type.to_string()));
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.push(param.lazy_shape().to_vec());
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.push(param.lazy_shape().to_vec());
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.push(param.lazy_shape().to_vec());
    }
}
