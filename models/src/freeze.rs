//! Stages that are frozen while the others are trained.

use burn::{
    module::{Flag, Module, ModuleVisitor, Param, ParamGroup, ParamId},
    tensor::Tensor,
};

use crate::{Error, ImageClassifier, Result};

/// One of a network's parameters, running statistics or training flags.
struct Key {
    /// torchvision's key; Burn's names for what torchvision has no key for.
    key: String,
    id: ParamId,
    is_flag: bool,
}

impl Key {
    /// The stage that it belongs to: a module directly below the network, `layer2`, or a layer of a column,
    /// `features.12`.
    fn stage(&self) -> &str {
        let mut dots = self.key.match_indices('.').map(|(at, _)| at);
        let first = dots.next().unwrap_or(self.key.len());
        match &self.key[..first] {
            "features" | "classifier" => &self.key[..dots.next().unwrap_or(self.key.len())],
            stage => stage,
        }
    }

    fn is_aux(&self, network: &impl ImageClassifier) -> bool {
        network.aux_classifiers().iter().any(|aux| aux.name == self.stage())
    }
}

/// Everything in a network that can be frozen, in order of depth.
fn keys(network: &impl Module) -> Vec<Key> {
    #[derive(Default)]
    struct Keys {
        /// Names, and whether they are part of a key: an enum's variant is not.
        path: Vec<(String, bool)>,
        found: Vec<Key>,
    }
    impl Keys {
        fn push(&mut self, id: ParamId, is_flag: bool) {
            let shown = self.path.iter().filter(|(_, shown)| *shown).map(|(name, _)| name.as_str());
            let key = shown.collect::<Vec<_>>().join(".");
            self.found.push(Key { key, id, is_flag });
        }
    }
    impl ModuleVisitor for Keys {
        fn enter_module(&mut self, name: &str, container_type: &str) {
            self.path.push((name.to_string(), !container_type.starts_with("Enum:")));
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.push(param.id, false);
        }
        fn visit_flag(&mut self, flag: &Param<Flag>) {
            self.push(flag.id, true);
        }
    }
    let mut keys = Keys::default();
    network.visit(&mut keys);
    keys.found
}

pub(crate) fn stages(network: &impl ImageClassifier) -> Vec<String> {
    let mut stages: Vec<String> = Vec::new();
    for key in keys(network).iter().filter(|key| !key.is_flag && !key.is_aux(network)) {
        if !stages.iter().any(|known| known == key.stage()) {
            stages.push(key.stage().to_string());
        }
    }
    let head = network.head_key();
    stages.retain(|stage| stage != head);
    stages.push(head.to_string());
    stages
}

pub(crate) fn position(stages: &[String], stage: &str) -> Result<usize> {
    let unknown = || Error::UnknownStage { stage: stage.to_string(), stages: stages.to_vec() };
    stages.iter().position(|known| known == stage).ok_or_else(unknown)
}

pub(crate) fn stage_params(network: &impl ImageClassifier, stage: &str) -> Vec<ParamId> {
    keys(network).iter().filter(|key| key.stage() == stage).map(|key| key.id).collect()
}

pub(crate) fn backbone_params(network: &impl ImageClassifier) -> Vec<ParamId> {
    let head = network.head_key();
    let below = |key: &Key| key.stage() != head && !key.is_aux(network) && !key.is_flag;
    keys(network).into_iter().filter(below).map(|key| key.id).collect()
}

pub(crate) fn group(network: &impl ImageClassifier, count: usize) -> ParamGroup {
    let stages = stages(network);
    let is_backbone = count + 1 == stages.len();
    let (head, frozen) = (network.head_key(), &stages[..count]);
    let belongs = |key: &&Key| match is_backbone {
        true => key.stage() != head && !key.is_aux(network),
        false => frozen.iter().any(|stage| stage == key.stage()),
    };
    ParamGroup::from_ids(keys(network).iter().filter(belongs).map(|key| key.id).collect())
}

#[cfg(test)]
mod tests {
    use burn::{
        optim::GradientsParams,
        tensor::{Device, Distribution},
    };

    use super::*;
    use crate::{Architecture, Network, NetworkConfig, resnet::Block};

    fn network(architecture: Architecture) -> Network {
        NetworkConfig::new(architecture).with_num_classes(3).init(&Device::flex().autodiff())
    }

    #[test]
    fn stages_are_the_network_s_own_in_order_of_depth() {
        let names = |architecture| network(architecture).stages().join(" ");
        assert_eq!(names(Architecture::ResNet18), "conv1 bn1 layer1 layer2 layer3 layer4 fc");
        assert_eq!(
            names(Architecture::AlexNet),
            "features.0 features.3 features.6 features.8 features.10 classifier.1 classifier.4 classifier.6"
        );
        assert!(names(Architecture::GoogLeNet2014).ends_with("inception5b fc"));
        assert!(names(Architecture::ResNet20).ends_with("layer3 linear"));
    }

    /// Whether each stage has gradients.
    fn step(network: &Network) -> Vec<(String, bool)> {
        let images = Tensor::<4>::random([2, 3, 32, 32], Distribution::Default, &Device::flex().autodiff());
        let gradients = GradientsParams::from_grads(network.forward(images.clone()).sum().backward(), network);
        // Running statistics lag by one step.
        network.forward(images);
        let scales = keys(network).into_iter().filter(|key| key.key.ends_with("gamma"));
        scales.map(|key| (key.stage().to_string(), gradients.get::<1>(key.id).is_some())).collect()
    }

    /// The running means of the first and the last norm.
    fn running_means(network: &Network) -> [Vec<f32>; 2] {
        let Network::ResNet(resnet) = network else { unreachable!() };
        let Some(Block::Basic(last)) = resnet.layer4.last() else { unreachable!() };
        [&resnet.bn1, &last.bn2]
            .map(|norm| norm.as_ref().unwrap().running_mean.value_sync().into_data().iter::<f32>().collect())
    }

    #[test]
    fn frozen_stages_have_no_gradient_and_fixed_statistics() {
        let network = network(Architecture::ResNet18).freeze_until("layer1").unwrap();
        let before = running_means(&network);
        for (stage, has_gradient) in step(&network) {
            assert_eq!(has_gradient, !["bn1", "layer1"].contains(&stage.as_str()), "{stage}");
        }
        let after = running_means(&network);
        assert_eq!(before[0], after[0]);
        assert_ne!(before[1], after[1]);
    }

    #[test]
    fn a_frozen_backbone_drops_out_nothing() {
        let network = network(Architecture::GoogLeNet2014).freeze_backbone();
        let images = Tensor::<4>::ones([1, 3, 64, 64], &Device::flex().autodiff());
        let run = |forward: fn(&Network, Tensor<4>) -> Tensor<2>| {
            [0, 1].map(|_| forward(&network, images.clone()).into_data().iter::<f32>().collect::<Vec<_>>())
        };
        for [first, second] in [run(Network::forward_pre_logits), run(Network::forward)] {
            assert_eq!(first, second);
        }
    }

    #[test]
    fn an_unknown_stage_is_an_error_that_lists_the_known_ones() {
        let error = network(Architecture::ResNet18).freeze_until("layer9").unwrap_err().to_string();
        assert_eq!(error, "there is no stage `layer9`; there are conv1, bn1, layer1, layer2, layer3, layer4, fc");
    }
}
