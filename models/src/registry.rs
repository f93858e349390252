//! Every network by its name. A family is a line in [`registry!`], at the end of this file, and a file with its variants.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
};

use burn::{
    config::Config,
    module::Module,
    nn::{BatchNorm, Linear},
    tensor::{Device, Tensor},
};
use serde::{Deserialize, Serialize};

use crate::{Error, FeatureInfo, ImageClassifier, Result, blocks::ConvNormMut, pass::Pass};

/// One network of a family, as the family's file describes it.
#[derive(Debug, Clone, Copy)]
pub struct Variant {
    /// The name that commands, recipes and cards use; torchvision's where it has the network.
    pub name: &'static str,
    /// The smallest height and width that the network accepts, in pixels.
    pub min_size: usize,
    /// The side of the square input that the network was designed for, in pixels.
    pub default_size: usize,
    /// The number of classes that the network was published with.
    pub default_classes: usize,
    /// The key of the last linear layer.
    pub head_key: &'static str,
    /// The stage whose output a class activation map is computed from.
    pub last_map: &'static str,
    /// The auxiliary classifiers, which only training uses, in order of depth.
    pub aux: &'static [AuxClassifier],
    /// The network that this one becomes when its norms are folded, where that has a name of its own.
    pub folded: Option<Architecture>,
    pub(crate) build: fn(&NetworkConfig, &Device) -> Network,
}

impl Variant {
    /// A variant with the most frequent properties, for the family's file to change.
    pub(crate) const fn new(name: &'static str, build: fn(&NetworkConfig, &Device) -> Network) -> Self {
        Self {
            name,
            min_size: 1,
            default_size: 224,
            default_classes: 1000,
            head_key: "fc",
            last_map: "",
            aux: &[],
            folded: None,
            build,
        }
    }
}

/// An auxiliary classifier: a small head on an inner stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuxClassifier {
    /// torchvision's name of the module.
    pub name: &'static str,
    /// The stage whose output it classifies.
    pub stage: &'static str,
    /// The key of its last linear layer.
    pub head_key: &'static str,
}

/// Declares a family's variants: `CONSTANT, constructor = configuration, property: value, …;` for each. The name of the
/// variant is that of the constructor; `facts` sets what the family's variants have in common.
macro_rules! variants {
    (
        $family:ident, $facts:expr;
        $($(#[$doc:meta])* $constant:ident, $constructor:ident = $config:expr $(, $field:ident: $value:expr)*;)*
    ) => {
        /// The variants of this family.
        pub const VARIANTS: &[$crate::Architecture] = &[$($crate::Architecture::$constant,)*];

        #[allow(non_upper_case_globals, clippy::needless_update)]
        impl $crate::Architecture {
            $(
                #[doc = concat!("`", stringify!($constructor), "`.")]
                $(#[$doc])*
                pub const $constant: Self = Self::new({
                    static VARIANT: $crate::Variant = $crate::Variant {
                        $($field: $value,)*
                        ..$facts($crate::Variant::new(stringify!($constructor), |options, device| {
                            $crate::Network::$family($config.with_options(options).init(device))
                        }))
                    };
                    &VARIANT
                });
            )*
        }

        $(
            #[doc = concat!("Builds `", stringify!($constructor), "` with its default classes and random weights.")]
            $(#[$doc])*
            pub fn $constructor(device: &Device) -> $family {
                $config.init(device)
            }
        )*
    };
}
pub(crate) use variants;

/// A network, by name: a handle to its [`Variant`].
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Architecture(&'static Variant);

impl Architecture {
    pub(crate) const fn new(variant: &'static Variant) -> Self {
        Self(variant)
    }

    /// Returns the properties of the network.
    pub fn variant(self) -> &'static Variant {
        self.0
    }

    /// Returns the name that commands, recipes and cards use.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// Returns the number of classes the network was published with: 1000, or 10 for the CIFAR networks.
    pub fn default_classes(self) -> usize {
        self.0.default_classes
    }

    /// Returns the side of the square input that the network was designed for, in pixels.
    pub fn default_size(self) -> usize {
        self.0.default_size
    }

    /// Returns the smallest height and width that the network accepts, in pixels.
    pub fn min_size(self) -> usize {
        self.0.min_size
    }

    /// Whether the network has auxiliary classifiers, which only training uses.
    pub fn has_aux(self) -> bool {
        !self.0.aux.is_empty()
    }

    /// Returns what the network is once its norms are [folded](ImageClassifier::fold_batch_norm): VGG with norms becomes
    /// VGG without, the others keep their name.
    pub fn folded(self) -> Self {
        self.0.folded.unwrap_or(self)
    }

    /// Checks that images of `height × width` pixels can be classified.
    ///
    /// # Errors
    ///
    /// [`Error::InputTooSmall`] where they are smaller than [`min_size`](Self::min_size).
    pub fn check_input(self, [height, width]: [usize; 2]) -> Result<()> {
        let min = self.min_size();
        match height.min(width) < min {
            true => Err(Error::InputTooSmall { architecture: self, height, width, min }),
            false => Ok(()),
        }
    }

    /// The position in [`ALL`](Self::ALL).
    fn position(self) -> usize {
        Self::ALL.iter().position(|other| *other == self).unwrap_or(Self::ALL.len())
    }
}

impl PartialEq for Architecture {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for Architecture {}

impl Hash for Architecture {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name.hash(state);
    }
}

/// In the order of [`Architecture::ALL`].
impl Ord for Architecture {
    fn cmp(&self, other: &Self) -> Ordering {
        self.position().cmp(&other.position())
    }
}

impl PartialOrd for Architecture {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Architecture").field(&self.name()).finish()
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Architecture {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let find = |wanted: &str| Self::ALL.iter().copied().find(|arch| arch.name() == wanted);
        let found = find(name).or_else(|| find(&name.to_lowercase().replace('-', "_")));
        found.ok_or_else(|| Error::UnknownArchitecture { name: name.to_string() })
    }
}

impl TryFrom<String> for Architecture {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        name.parse()
    }
}

impl From<Architecture> for String {
    fn from(architecture: Architecture) -> Self {
        architecture.name().to_string()
    }
}

/// Configuration of any [`Network`].
///
/// ```
/// use burn::tensor::Device;
/// use models::{Architecture, ImageClassifier, NetworkConfig};
///
/// let network = NetworkConfig::new(Architecture::ResNet18).with_num_classes(10).init(&Device::flex());
/// assert_eq!(network.num_classes(), 10);
/// ```
#[derive(Config, Debug)]
pub struct NetworkConfig {
    /// Which network.
    pub architecture: Architecture,
    /// The number of classes.
    #[config(default = "architecture.default_classes()")]
    pub num_classes: usize,
    /// Build the auxiliary classifiers, where the architecture has them; only training uses them.
    #[config(default = true)]
    pub aux_logits: bool,
    /// Map inputs to ±1 inside the network; torchvision's published GoogLeNet and Inception v3 want it.
    #[config(default = false)]
    pub transform_input: bool,
    /// The probability of dropping a unit before the classifier; the architecture's own by default. The auxiliary
    /// classifiers of GoogLeNet have theirs (0.7), switched off with 0 here.
    #[config(default = "None")]
    pub dropout: Option<f64>,
}

impl NetworkConfig {
    /// Builds a network with random weights; each architecture's `init` documents how they are drawn. Parameters are
    /// initialized when they are first used, from the device's random state (`device.seed`).
    pub fn init(&self, device: &Device) -> Network {
        (self.architecture.0.build)(self, device)
    }
}

/// Generates [`Network`], its dispatch, and [`Architecture::ALL`].
macro_rules! registry {
    ($($module:ident::$family:ident),* $(,)?) => {
        /// An image classifier of any family. Built by [`NetworkConfig`].
        ///
        /// Inputs are images `[n, 3, h, w]`, normalized as the network's model card specifies. On an autodiff device the
        /// network runs in training mode (dropout, batch statistics), elsewhere in evaluation mode; `network.valid()`
        /// leads from the first to the second.
        ///
        /// # Precision
        ///
        /// The network computes in the type of its input: in mixed precision where `images.cast(FloatDType::BF16)` (or
        /// `F16`) enter it. Convolutions, linear layers and all activations between them are then in that type; the
        /// arithmetic of norms is in f32, and logits leave in f32. Parameters stay in f32 and are cast once in each
        /// forward pass; their gradients arrive in f32. In f16, gradients below 6e-8 vanish unless the loss is scaled up
        /// before the backward pass.
        ///
        /// The optimized CPU kernels (`flex`, with AVX512-BF16) have a bf16 mode of their own: they round operands to
        /// bf16 and keep activations in f32.
        #[derive(Module, Debug)]
        #[allow(missing_docs, clippy::large_enum_variant)]
        pub enum Network {
            $($family(crate::$module::$family),)*
        }

        impl Architecture {
            /// Every architecture, family by family.
            pub const ALL: &'static [Architecture] = {
                const FAMILIES: &[&[Architecture]] = &[$(crate::$module::VARIANTS),*];
                const ALL: [Architecture; count(FAMILIES)] = concat(FAMILIES);
                &ALL
            };
        }

        impl ImageClassifier for Network {
            fn features(&self, images: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<4> {
                match self { $(Network::$family(network) => network.features(images, pass),)* }
            }

            fn pre_logits(&self, features: Tensor<4>, pass: &mut Pass<'_>) -> Tensor<2> {
                match self { $(Network::$family(network) => network.pre_logits(features, pass),)* }
            }

            fn classifier(&self) -> &Linear {
                match self { $(Network::$family(network) => network.classifier(),)* }
            }

            fn reset_classifier(self, num_classes: usize, device: &Device) -> Self {
                match self {
                    $(Network::$family(network) => Network::$family(network.reset_classifier(num_classes, device)),)*
                }
            }

            fn head_key(&self) -> &'static str {
                match self { $(Network::$family(network) => network.head_key(),)* }
            }

            fn feature_info(&self) -> Vec<FeatureInfo> {
                match self { $(Network::$family(network) => network.feature_info(),)* }
            }

            fn last_map(&self) -> String {
                match self { $(Network::$family(network) => network.last_map(),)* }
            }

            fn aux_classifiers(&self) -> &'static [AuxClassifier] {
                match self { $(Network::$family(network) => network.aux_classifiers(),)* }
            }

            fn classify_aux(&self, outputs: Vec<Tensor<4>>) -> Vec<(&'static str, Tensor<2>)> {
                match self { $(Network::$family(network) => network.classify_aux(outputs),)* }
            }

            fn conv_norms_mut(&mut self) -> Vec<ConvNormMut<'_>> {
                match self { $(Network::$family(network) => network.conv_norms_mut(),)* }
            }

            fn norms_mut(&mut self) -> Vec<&mut BatchNorm> {
                match self { $(Network::$family(network) => network.norms_mut(),)* }
            }

            fn fold_batch_norm(self) -> Self {
                match self { $(Network::$family(network) => Network::$family(network.fold_batch_norm()),)* }
            }

            fn forward_dense(&self, images: Tensor<4>) -> Tensor<2> {
                match self { $(Network::$family(network) => network.forward_dense(images),)* }
            }
        }
    };
}

const fn count(families: &[&[Architecture]]) -> usize {
    let (mut sum, mut family) = (0, 0);
    while family < families.len() {
        sum += families[family].len();
        family += 1;
    }
    sum
}

const fn concat<const N: usize>(families: &[&[Architecture]]) -> [Architecture; N] {
    let mut all = [families[0][0]; N];
    let (mut next, mut family) = (0, 0);
    while family < families.len() {
        let mut variant = 0;
        while variant < families[family].len() {
            all[next] = families[family][variant];
            next += 1;
            variant += 1;
        }
        family += 1;
    }
    all
}

registry! {
    alexnet::AlexNet,
    vgg::Vgg,
    googlenet::GoogLeNet,
    googlenet_2014::GoogLeNet2014,
    inception_v3::InceptionV3,
    resnet::ResNet,
    cifar_resnet::CifarResNet,
}

#[cfg(test)]
mod tests {
    use burn::{
        module::{Module, ModuleMapper, Param},
        tensor::{DType, Distribution, FloatDType},
    };

    use super::*;

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
        type A = Architecture;
        let device = Device::flex();
        for architecture in [
            A::AlexNet,
            A::Vgg11Bn,
            A::GoogLeNet,
            A::GoogLeNet2014,
            A::InceptionV3,
            A::ResNet18,
            A::ResNeXt50,
            A::ResNet20,
        ] {
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
