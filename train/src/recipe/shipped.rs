//! The recipes that come with Hearth.

/// A recipe that is compiled in.
#[derive(Debug, Clone, Copy)]
pub struct Shipped {
    /// The name.
    pub name: &'static str,
    /// The TOML text.
    pub text: &'static str,
}

impl Shipped {
    /// Returns the first sentence of its header.
    pub fn headline(&self) -> String {
        let header = self.text.lines().take_while(|line| line.starts_with('#'));
        let joined = header.map(|line| line.trim_start_matches('#').trim()).collect::<Vec<_>>().join(" ");
        let joined = joined.trim_start_matches("Reproduces:").trim();
        let end = joined.find(". ").unwrap_or(joined.len());
        joined[..end].trim_end_matches('.').to_string()
    }
}

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        /// All shipped recipes.
        pub const SHIPPED: &[Shipped] = &[
            $(Shipped { name: $name, text: include_str!(concat!("../../recipes/", $name, ".toml")) },)*
        ];
    };
}

shipped! {
    "digits",
    "cifar",
    "finetune",
    "linear-probe",
    "imagenet-classic",
    "imagenet-modern",
    "imagenet-a3",
    "resnet-2015",
    "vgg-2014",
    "googlenet-2014",
}
