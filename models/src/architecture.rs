//! The registry: every network by its name.

use std::{fmt, str::FromStr};

use burn::{config::Config, tensor::Device};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Network, Result,
    alexnet::AlexNetConfig,
    cifar_resnet::CifarResNetConfig,
    googlenet::GoogLeNetConfig,
    googlenet_2014::GoogLeNet2014Config,
    inception_v3::InceptionV3Config,
    nearest,
    resnet::ResNetConfig,
    vgg::{VggConfig, VggDepth},
};

macro_rules! architectures {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A network, by name. Names are torchvision's where it has the network.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        #[allow(missing_docs)]
        pub enum Architecture { $($(#[$doc])* $variant,)* }

        impl Architecture {
            /// Every architecture, family by family.
            pub const ALL: &'static [Architecture] = &[$(Architecture::$variant,)*];

            /// The name that commands, recipes and cards use.
            pub fn name(self) -> &'static str {
                match self { $(Architecture::$variant => $name,)* }
            }
        }
    };
}

architectures! {
    AlexNet = "alexnet",
    Vgg11 = "vgg11",
    Vgg11Bn = "vgg11_bn",
    Vgg13 = "vgg13",
    Vgg13Bn = "vgg13_bn",
    Vgg16 = "vgg16",
    Vgg16Bn = "vgg16_bn",
    Vgg19 = "vgg19",
    Vgg19Bn = "vgg19_bn",
    /// torchvision's GoogLeNet, with batch normalisation.
    GoogLeNet = "googlenet",
    /// The GoogLeNet of the 2014 paper.
    GoogLeNet2014 = "googlenet_2014",
    InceptionV3 = "inception_v3",
    ResNet18 = "resnet18",
    ResNet34 = "resnet34",
    ResNet50 = "resnet50",
    ResNet101 = "resnet101",
    ResNet152 = "resnet152",
    ResNeXt50 = "resnext50_32x4d",
    ResNeXt101 = "resnext101_32x8d",
    ResNeXt101x64 = "resnext101_64x4d",
    WideResNet50 = "wide_resnet50_2",
    WideResNet101 = "wide_resnet101_2",
    /// The paper's ResNets for CIFAR-10.
    ResNet20 = "resnet20",
    ResNet32 = "resnet32",
    ResNet44 = "resnet44",
    ResNet56 = "resnet56",
    ResNet110 = "resnet110",
    /// The same without shortcuts.
    Plain20 = "plain20",
    Plain56 = "plain56",
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
        find(name).or_else(|| find(&name.to_lowercase().replace('-', "_"))).ok_or_else(|| Error::UnknownArchitecture {
            name: name.to_string(),
            nearest: nearest(name, Self::ALL.iter().map(|arch| arch.name())).unwrap_or("resnet50"),
        })
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

impl Architecture {
    /// The number of classes the network was published with: 1000, or 10 for the CIFAR networks.
    pub fn default_classes(self) -> usize {
        if self.is_cifar() { 10 } else { 1000 }
    }

    /// The side of the square input that the network was designed for, in pixels.
    pub fn default_size(self) -> usize {
        match self {
            Architecture::InceptionV3 => 299,
            _ if self.is_cifar() => 32,
            _ => 224,
        }
    }

    /// The smallest height and width that the network accepts, in pixels.
    pub fn min_size(self) -> usize {
        use Architecture::*;
        match self {
            AlexNet => 63,
            Vgg11 | Vgg11Bn | Vgg13 | Vgg13Bn | Vgg16 | Vgg16Bn | Vgg19 | Vgg19Bn => 32,
            GoogLeNet | GoogLeNet2014 => 15,
            InceptionV3 => 75,
            _ => 1,
        }
    }

    /// Whether the network has auxiliary classifiers, which only training uses.
    pub fn has_aux(self) -> bool {
        matches!(self, Architecture::GoogLeNet | Architecture::GoogLeNet2014 | Architecture::InceptionV3)
    }

    /// What the network is once its norms are [folded](crate::Network::fold_batch_norm): VGG with norms becomes VGG
    /// without, the others keep their name.
    pub fn folded(self) -> Self {
        use Architecture::*;
        match self {
            Vgg11Bn => Vgg11,
            Vgg13Bn => Vgg13,
            Vgg16Bn => Vgg16,
            Vgg19Bn => Vgg19,
            other => other,
        }
    }

    /// Whether an input of `height × width` pixels can be classified.
    ///
    /// # Errors
    /// [`Error::InputTooSmall`] where it is smaller than [`min_size`](Self::min_size).
    pub fn check_input(self, [height, width]: [usize; 2]) -> Result<()> {
        let min = self.min_size();
        match height.min(width) < min {
            true => Err(Error::InputTooSmall { architecture: self, height, width, min }),
            false => Ok(()),
        }
    }

    fn is_cifar(self) -> bool {
        use Architecture::*;
        matches!(self, ResNet20 | ResNet32 | ResNet44 | ResNet56 | ResNet110 | Plain20 | Plain56)
    }
}

/// Configuration of any [`Network`].
///
/// ```
/// # use models::{Architecture, NetworkConfig};
/// # #[cfg(feature = "never")] {
/// let network = NetworkConfig::new(Architecture::ResNet18).with_num_classes(10).init(&device);
/// # }
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
    /// A network with freshly drawn weights; each architecture's `init` says how they are drawn. Parameters are
    /// initialised when they are first used, from the device's random state (`device.seed`).
    pub fn init(&self, device: &Device) -> Network {
        use Architecture::*;
        let classes = self.num_classes;
        let vgg = |depth, batch_norm| {
            let config = VggConfig::new(depth, batch_norm).with_num_classes(classes);
            Network::Vgg(config.with_dropout(self.dropout.unwrap_or(0.5)).init(device))
        };
        let resnet = |layers, bottleneck| ResNetConfig::new(layers, bottleneck).with_num_classes(classes);
        let wide = |layers, groups, width| {
            Network::ResNet(resnet(layers, true).with_groups(groups).with_width_per_group(width).init(device))
        };
        let cifar = |depth: usize, shortcuts| {
            let config = CifarResNetConfig::new((depth - 2) / 6).with_shortcuts(shortcuts);
            Network::CifarResNet(config.with_num_classes(classes).init(device))
        };
        let dropout_aux = if self.dropout == Some(0.0) { 0.0 } else { 0.7 };
        match self.architecture {
            AlexNet => {
                let config = AlexNetConfig::new().with_num_classes(classes);
                Network::AlexNet(config.with_dropout(self.dropout.unwrap_or(0.5)).init(device))
            }
            Vgg11 => vgg(VggDepth::Eleven, false),
            Vgg11Bn => vgg(VggDepth::Eleven, true),
            Vgg13 => vgg(VggDepth::Thirteen, false),
            Vgg13Bn => vgg(VggDepth::Thirteen, true),
            Vgg16 => vgg(VggDepth::Sixteen, false),
            Vgg16Bn => vgg(VggDepth::Sixteen, true),
            Vgg19 => vgg(VggDepth::Nineteen, false),
            Vgg19Bn => vgg(VggDepth::Nineteen, true),
            GoogLeNet => Network::GoogLeNet(
                GoogLeNetConfig::new()
                    .with_num_classes(classes)
                    .with_aux_logits(self.aux_logits)
                    .with_transform_input(self.transform_input)
                    .with_dropout(self.dropout.unwrap_or(0.2))
                    .with_dropout_aux(dropout_aux)
                    .init(device),
            ),
            GoogLeNet2014 => Network::GoogLeNet2014(
                GoogLeNet2014Config::new()
                    .with_num_classes(classes)
                    .with_aux_logits(self.aux_logits)
                    .with_dropout(self.dropout.unwrap_or(0.4))
                    .with_dropout_aux(dropout_aux)
                    .init(device),
            ),
            InceptionV3 => Network::InceptionV3(
                InceptionV3Config::new()
                    .with_num_classes(classes)
                    .with_aux_logits(self.aux_logits)
                    .with_transform_input(self.transform_input)
                    .with_dropout(self.dropout.unwrap_or(0.5))
                    .init(device),
            ),
            ResNet18 => Network::ResNet(resnet([2, 2, 2, 2], false).init(device)),
            ResNet34 => Network::ResNet(resnet([3, 4, 6, 3], false).init(device)),
            ResNet50 => Network::ResNet(resnet([3, 4, 6, 3], true).init(device)),
            ResNet101 => Network::ResNet(resnet([3, 4, 23, 3], true).init(device)),
            ResNet152 => Network::ResNet(resnet([3, 8, 36, 3], true).init(device)),
            ResNeXt50 => wide([3, 4, 6, 3], 32, 4),
            ResNeXt101 => wide([3, 4, 23, 3], 32, 8),
            ResNeXt101x64 => wide([3, 4, 23, 3], 64, 4),
            WideResNet50 => wide([3, 4, 6, 3], 1, 128),
            WideResNet101 => wide([3, 4, 23, 3], 1, 128),
            ResNet20 => cifar(20, true),
            ResNet32 => cifar(32, true),
            ResNet44 => cifar(44, true),
            ResNet56 => cifar(56, true),
            ResNet110 => cifar(110, true),
            Plain20 => cifar(20, false),
            Plain56 => cifar(56, false),
        }
    }
}
