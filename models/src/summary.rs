//! A network at a glance: its stages with their output shapes, parameters and multiply-adds.

use burn::tensor::{Device, Tensor};

use crate::{Architecture, ImageClassifier, Network, Result, ops};

/// The stages of a network for one input size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Which network.
    pub architecture: Architecture,
    /// Height and width of the input in pixels.
    pub input_size: [usize; 2],
    /// In order of the forward pass; the classifier and the auxiliary classifiers last.
    pub stages: Vec<Stage>,
}

/// A stage of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// torchvision's name of it.
    pub name: String,
    /// The shape of its output without the batch: `[c, h, w]` or `[features]`.
    pub output: Vec<usize>,
    /// The number of its parameters.
    pub parameters: usize,
    /// The multiply-adds of its convolutions and linear layers for one image; those of auxiliary classifiers, which only
    /// training runs, are not counted.
    pub multiply_adds: u64,
}

impl Summary {
    /// Runs one blank image through the network and looks at every stage.
    ///
    /// # Errors
    /// Where the network does not accept inputs of this size.
    pub fn of(architecture: Architecture, network: &Network, [h, w]: [usize; 2], device: &Device) -> Result<Self> {
        architecture.check_input([h, w])?;
        let mut stages: Vec<Stage> = Vec::new();
        let mut before = ops::multiply_adds();
        let mut stage = |name: &str, output: Vec<usize>| {
            let now = ops::multiply_adds();
            stages.push(Stage { name: name.to_string(), output, parameters: 0, multiply_adds: now - before });
            before = now;
        };
        let images = Tensor::zeros([1, 3, h, w], device);
        let logits =
            network.forward_with_hook(images, &mut |name: &str, x: &Tensor<4>| stage(name, x.dims()[1..].to_vec()));
        let head = network.head_key().split('.').next().unwrap_or_default();
        stage(head, logits.dims()[1..].to_vec());

        for entry in network.entries().iter().filter(|entry| !entry.is_statistic()) {
            let within = |stage: &Stage| entry.key.strip_prefix(&stage.name).is_some_and(|rest| rest.starts_with('.'));
            match stages.iter_mut().find(|stage| within(stage)) {
                Some(stage) => stage.parameters += entry.len(),
                None => {
                    let name = entry.key.split('.').next().unwrap_or_default().to_string();
                    let output = vec![network.num_classes()];
                    stages.push(Stage { name, output, parameters: entry.len(), multiply_adds: 0 });
                }
            }
        }
        Ok(Self { architecture, input_size: [h, w], stages })
    }

    /// The number of parameters, auxiliary classifiers included.
    pub fn parameters(&self) -> usize {
        self.stages.iter().map(|stage| stage.parameters).sum()
    }

    /// Multiply-adds of a forward pass of one image.
    pub fn multiply_adds(&self) -> u64 {
        self.stages.iter().map(|stage| stage.multiply_adds).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NetworkConfig;

    #[test]
    fn auxiliary_classifiers_have_rows_of_their_own() {
        let device = Device::flex();
        let architecture = Architecture::GoogLeNet2014;
        let network = NetworkConfig::new(architecture).with_num_classes(10).init(&device);
        let summary = Summary::of(architecture, &network, [64, 64], &device).unwrap();
        let last: Vec<&str> = summary.stages.iter().rev().take(3).map(|stage| stage.name.as_str()).collect();
        assert_eq!(last, ["aux2", "aux1", "fc"]);
    }

    #[test]
    fn an_input_too_small_is_an_error() {
        let device = Device::flex();
        let network = NetworkConfig::new(Architecture::AlexNet).init(&device);
        let error = Summary::of(Architecture::AlexNet, &network, [32, 224], &device).unwrap_err();
        assert!(error.to_string().contains("at least 63 × 63"), "{error}");
    }
}
