//! Any of the networks, behind one type.

use burn::{
    module::{Module, ModuleVisitor, Param},
    nn::BatchNorm,
    tensor::{Bool, Device, FloatDType, Int, Tensor},
};

use crate::{
    Layer,
    alexnet::AlexNet,
    cifar_resnet::CifarResNet,
    googlenet::GoogLeNet,
    googlenet_2014::GoogLeNet2014,
    hook::{Capture, ForwardHook},
    inception_v3::InceptionV3,
    ops,
    pass::Pass,
    resnet::ResNet,
    vgg::Vgg,
};

/// An image classifier. Built by [`NetworkConfig`](crate::NetworkConfig).
///
/// Inputs are images `[n, 3, h, w]`, normalized as the network's model card specifies. On an autodiff device the
/// network runs in training mode (dropout, batch statistics), elsewhere in evaluation mode; `network.valid()` leads
/// from the first to the second.
///
/// # Precision
/// The network computes in the type of its input: in mixed precision where `images.cast(FloatDType::BF16)` (or `F16`)
/// enter it. Convolutions, linear layers and all activations between them are then in that type; the arithmetic of
/// norms is in f32, and logits leave in f32. Parameters stay in f32 and are cast once in each forward pass; their
/// gradients arrive in f32. In f16, gradients below 6e-8 vanish unless the loss is scaled up before the backward pass.
///
/// The optimized CPU kernels (`flex`, with AVX512-BF16) have a bf16 mode of their own: they round operands to bf16 and
/// keep activations in f32.
#[derive(Module, Debug)]
#[allow(missing_docs, clippy::large_enum_variant)]
pub enum Network {
    AlexNet(AlexNet),
    Vgg(Vgg),
    GoogLeNet(GoogLeNet),
    GoogLeNet2014(GoogLeNet2014),
    InceptionV3(InceptionV3),
    ResNet(ResNet),
    CifarResNet(CifarResNet),
}

/// What a network says of a batch while training.
#[derive(Debug, Clone)]
pub struct Output {
    /// Logits `[n, classes]`.
    pub logits: Tensor<2>,
    /// The auxiliary classifiers' logits `[n, classes]` by torchvision's name, in order of depth; empty where the
    /// network has none.
    pub aux: Vec<(&'static str, Tensor<2>)>,
}

/// Does the same with whichever network it is.
macro_rules! each {
    ($network:expr, $inner:ident => $body:expr) => {
        match $network {
            Network::AlexNet($inner) => $body,
            Network::Vgg($inner) => $body,
            Network::GoogLeNet($inner) => $body,
            Network::GoogLeNet2014($inner) => $body,
            Network::InceptionV3($inner) => $body,
            Network::ResNet($inner) => $body,
            Network::CifarResNet($inner) => $body,
        }
    };
}

impl Network {
    /// Images `[n, 3, h, w]` → logits `[n, classes]`.
    ///
    /// # Panics
    /// Where the input is smaller than the architecture's [`min_size`](crate::Architecture::min_size).
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        ops::unseen(|| self.forward_with_hook(images, &mut ()))
    }

    /// Like [`forward`](Self::forward), with a [`ForwardHook`] that sees each stage's output.
    pub fn forward_with_hook(&self, images: Tensor<4>, hook: &mut dyn ForwardHook) -> Tensor<2> {
        ops::in_type_of(images, |images| self.head(self.pre_logits(images, hook)))
    }

    /// Images `[n, 3, h, w]`, not cropped → logits `[n, classes]` of the whole: VGG's and AlexNet's classifier is applied
    /// at every place where it fits (at least 224 × 224 pixels) and its scores are averaged; other networks average
    /// their last map anyway.
    pub fn forward_dense(&self, images: Tensor<4>) -> Tensor<2> {
        match self {
            Network::AlexNet(network) => ops::in_type_of(images, |images| network.forward_dense(images)),
            Network::Vgg(network) => ops::in_type_of(images, |images| network.forward_dense(images)),
            _ => self.forward(images),
        }
    }

    /// Images `[n, 3, h, w]` → logits and the auxiliary classifiers' logits.
    pub fn forward_aux(&self, images: Tensor<4>) -> Output {
        let stages = self.aux_stages();
        if stages.is_empty() {
            return Output { logits: self.forward(images), aux: vec![] };
        }
        let mut capture = Capture::new(stages);
        ops::in_type_of(images, |images| {
            let logits = self.forward_with_hook(images, &mut capture);
            let aux = self.classify_aux(stages.iter().filter_map(|stage| capture.take(stage)).collect());
            Output { logits, aux }
        })
    }

    /// Images `[n, 3, h, w]` → the vector before the last linear layer `[n, features]`, in f32.
    pub fn features(&self, images: Tensor<4>) -> Tensor<2> {
        ops::unseen(|| self.features_with_hook(images, &mut ()))
    }

    /// Like [`features`](Self::features), with a [`ForwardHook`].
    pub fn features_with_hook(&self, images: Tensor<4>, hook: &mut dyn ForwardHook) -> Tensor<2> {
        ops::in_type_of(images, |images| self.pre_logits(images, hook)).cast(FloatDType::F32)
    }

    fn pre_logits(&self, images: Tensor<4>, hook: &mut dyn ForwardHook) -> Tensor<2> {
        let mut pass = Pass::new(hook);
        let features = self.forward_features(images, &mut pass);
        each!(self, network => network.pre_logits(features, &mut pass))
    }

    /// Images `[n, 3, h, w]` → the last feature map `[n, c, h', w']`.
    pub(crate) fn forward_features(&self, images: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
        each!(self, network => network.forward_features(images, pass))
    }

    /// The last feature map → logits `[n, classes]`.
    pub(crate) fn classify(&self, features: Tensor<4>) -> Tensor<2> {
        each!(self, network => network.head(network.pre_logits(features, &mut Pass::new(&mut ()))))
    }

    /// The stages whose outputs the auxiliary classifiers take, in order of depth.
    pub(crate) fn aux_stages(&self) -> &'static [&'static str] {
        match self {
            Network::GoogLeNet(network) => network.aux_stages(),
            Network::GoogLeNet2014(network) => network.aux_stages(),
            Network::InceptionV3(network) => network.aux_stages(),
            _ => &[],
        }
    }

    /// The outputs of [`aux_stages`](Self::aux_stages) → auxiliary logits, each `[n, classes]`, with their names.
    pub(crate) fn classify_aux(&self, outputs: Vec<Tensor<4>>) -> Vec<(&'static str, Tensor<2>)> {
        match self {
            Network::GoogLeNet(network) => network.classify_aux(outputs),
            Network::GoogLeNet2014(network) => network.classify_aux(outputs),
            Network::InceptionV3(network) => network.classify_aux(outputs),
            _ => vec![],
        }
    }

    /// All batch normalizations.
    pub(crate) fn norms_mut(&mut self) -> Vec<&mut BatchNorm> {
        let pairs = match self {
            Network::Vgg(network) => return network.norms_mut(),
            Network::GoogLeNet(network) => network.conv_norms_mut(),
            Network::InceptionV3(network) => network.conv_norms_mut(),
            Network::ResNet(network) => network.conv_norms_mut(),
            Network::CifarResNet(network) => network.conv_norms_mut(),
            Network::AlexNet(_) | Network::GoogLeNet2014(_) => vec![],
        };
        pairs.into_iter().filter_map(|(_, norm)| norm.as_mut()).collect()
    }

    /// The vectors of [`features`](Self::features) `[n, features]` → logits `[n, classes]`.
    pub fn head(&self, features: Tensor<2>) -> Tensor<2> {
        each!(self, network => network.head(features))
    }

    /// The same network with a fresh classifier for `num_classes` (auxiliary ones too): the weights below stay, the
    /// last linear map is drawn anew, uniform ±1/√fan_in.
    pub fn with_classes(self, num_classes: usize, device: &Device) -> Self {
        match self {
            Network::AlexNet(network) => Network::AlexNet(network.with_classes(num_classes, device)),
            Network::Vgg(network) => Network::Vgg(network.with_classes(num_classes, device)),
            Network::GoogLeNet(network) => Network::GoogLeNet(network.with_classes(num_classes, device)),
            Network::GoogLeNet2014(network) => Network::GoogLeNet2014(network.with_classes(num_classes, device)),
            Network::InceptionV3(network) => Network::InceptionV3(network.with_classes(num_classes, device)),
            Network::ResNet(network) => Network::ResNet(network.with_classes(num_classes, device)),
            Network::CifarResNet(network) => Network::CifarResNet(network.with_classes(num_classes, device)),
        }
    }

    /// The same function in evaluation mode, with every batch normalisation folded into the convolution before it
    /// (which gains a bias): fewer passes over memory, logits equal to rounding. Not for training.
    pub fn fold_batch_norm(self) -> Self {
        match self {
            Network::Vgg(network) => Network::Vgg(network.fold_batch_norm()),
            Network::GoogLeNet(network) => Network::GoogLeNet(network.fold_batch_norm()),
            Network::InceptionV3(network) => Network::InceptionV3(network.fold_batch_norm()),
            Network::ResNet(network) => Network::ResNet(network.fold_batch_norm()),
            Network::CifarResNet(network) => Network::CifarResNet(network.fold_batch_norm()),
            network @ (Network::AlexNet(_) | Network::GoogLeNet2014(_)) => network,
        }
    }

    /// The stage whose output is the last map before the classifier: the last of a column's ReLUs (before its last
    /// pooling, at twice the resolution), or the last block.
    pub fn last_map(&self) -> String {
        let last_relu = |features: &[Layer]| {
            let last = features.iter().rposition(|layer| matches!(layer, Layer::Relu(_)));
            format!("features.{}", last.unwrap_or_default())
        };
        match self {
            Network::AlexNet(network) => last_relu(&network.features),
            Network::Vgg(network) => last_relu(&network.features),
            Network::GoogLeNet(_) | Network::GoogLeNet2014(_) => "inception5b".to_string(),
            Network::InceptionV3(_) => "Mixed_7c".to_string(),
            Network::ResNet(_) => "layer4".to_string(),
            Network::CifarResNet(_) => "layer3".to_string(),
        }
    }

    /// The key of the last linear map: `fc`, `classifier.6` or `linear`.
    pub fn head_key(&self) -> &'static str {
        match self {
            Network::AlexNet(_) | Network::Vgg(_) => "classifier.6",
            Network::CifarResNet(_) => "linear",
            _ => "fc",
        }
    }

    /// The number of classes.
    pub fn num_classes(&self) -> usize {
        let linear = match self {
            Network::AlexNet(network) => &network.classifier.6,
            Network::Vgg(network) => &network.classifier.6,
            Network::GoogLeNet(network) => &network.fc,
            Network::GoogLeNet2014(network) => &network.fc,
            Network::InceptionV3(network) => &network.fc,
            Network::ResNet(network) => &network.fc,
            Network::CifarResNet(network) => &network.linear,
        };
        linear.weight.lazy_shape()[1]
    }

    /// The state of the network: every parameter and running statistic by torchvision's key, in the module's order,
    /// without initialising any.
    pub fn entries(&self) -> Vec<Entry> {
        let mut visitor = Keys::default();
        self.visit(&mut visitor);
        visitor.entries
    }

    /// The number of trainable parameters, auxiliary classifiers included (running statistics are not parameters).
    pub fn num_parameters(&self) -> usize {
        self.entries().iter().filter(|entry| !entry.is_statistic()).map(Entry::len).sum()
    }
}

/// One tensor of a network's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// torchvision's key: `layer1.0.bn1.weight`.
    pub key: String,
    /// Burn's path of it: `ResNet.layer1.0.Basic.bn1.gamma`.
    pub path: String,
    /// The shape as PyTorch has it: a linear map is `[out, in]`.
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
/// linear maps are transposed.
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

#[cfg(test)]
mod tests {
    use burn::{
        module::{Module, ModuleMapper, Param},
        tensor::{DType, Distribution, FloatDType},
    };

    use super::*;
    use crate::{Architecture, NetworkConfig};

    /// Dense evaluation is the mean of the classifier over all windows, so on an input of one window it is the network
    /// itself, and on one that repeats itself over the windows as well.
    #[test]
    fn dense_evaluation_is_the_mean_over_all_windows() {
        let device = Device::flex();
        for architecture in [Architecture::AlexNet, Architecture::Vgg11] {
            device.seed(1);
            let network = NetworkConfig::new(architecture).with_num_classes(5).with_dropout(Some(0.0)).init(&device);
            let images = Tensor::<4>::random([1, 3, 224, 224], Distribution::Default, &device);
            let [plain, dense] = [network.forward(images.clone()), network.forward_dense(images)];
            let difference = (plain - dense.clone()).abs().max().into_scalar::<f32>();
            let largest = dense.abs().max().into_scalar::<f32>();
            assert!(difference < 1e-4 * largest, "{architecture}: {difference} of {largest}");
            let wide = Tensor::<4>::random([1, 3, 224, 288], Distribution::Default, &device);
            assert_eq!(network.forward_dense(wide).dims(), [1, 5]);
        }
    }

    /// Draws weights by He's rule, so that an image reaches the logits whatever the architecture's own rule.
    struct Lively;

    impl ModuleMapper for Lively {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if D == 1 {
                return param;
            }
            param.map(|weight| {
                let dims = weight.dims();
                let fan_in: usize = if D == 2 { dims[0] } else { dims[1..].iter().product() };
                weight.random_like(Distribution::Normal(0.0, (2.0 / fan_in as f64).sqrt()))
            })
        }
    }

    /// The bf16 mode of the optimized kernels: activations may be in bf16 as long as no hook observes them.
    #[test]
    fn bf16_stays_near_f32() {
        if !kernels::has_bf16_dot() {
            eprintln!("skipped: this processor does not multiply bf16");
            return;
        }
        use Architecture::*;
        let device = Device::flex();
        for architecture in [AlexNet, Vgg11Bn, GoogLeNet, GoogLeNet2014, InceptionV3, ResNet18, ResNeXt50, ResNet20] {
            let config = NetworkConfig::new(architecture).with_num_classes(7).with_aux_logits(false);
            let network = config.with_dropout(Some(0.0)).init(&device).map(&mut Lively).valid();
            let side = architecture.min_size().max(70);
            let images = Tensor::<4>::random([2, 3, side, side + 3], Distribution::Normal(0.0, 1.0), &device);
            let mut stages = Vec::new();
            let mut look = |_: &str, output: &Tensor<4>| stages.push(output.dtype());
            let rounded = images.clone().cast(FloatDType::BF16);
            let [whole, half, hooked] = [
                network.forward(images),
                network.forward(rounded.clone()),
                network.forward_with_hook(rounded, &mut look),
            ];
            assert!(stages.iter().all(|&dtype| dtype == DType::F32), "{architecture}: hooks observe f32");
            let norm = |x: Tensor<2>| x.square().sum().sqrt().into_scalar::<f32>();
            let size = norm(whole.clone());
            for (what, logits) in [("forward", half), ("hooked", hooked)] {
                assert_eq!(logits.dtype(), DType::F32);
                let difference = norm(logits - whole.clone()) / size;
                assert!(difference > 0.0 && difference < 0.05, "{architecture}, {what}: {difference}");
            }
        }
    }
}
