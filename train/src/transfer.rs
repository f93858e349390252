//! Starting from trained weights: the head for new classes, frozen stages, rates by stage.

use anyhow::{Context, bail};
use burn::{
    module::{Flag, Module, ModuleMapper, ModuleVisitor, Param, ParamGroup, ParamId},
    tensor::{Device, Tensor},
};
use hub::Strictness;
use models::{Network, NetworkConfig};

use crate::recipe::{Freeze, Recipe, Transfer};

/// The recipe's network for so many classes, with fresh or trained weights, on an autodiff device.
pub fn network(
    recipe: &Recipe,
    start: Option<&hub::Opened>,
    classes: &[String],
    device: &Device,
) -> anyhow::Result<Network> {
    let device = device.clone().autodiff();
    device.seed(recipe.seed);
    let config =
        NetworkConfig::new(recipe.architecture).with_num_classes(classes.len()).with_dropout(recipe.network.dropout);
    let Some(start) = start else {
        return Ok(draw_all(config.init(&device)));
    };
    let (weights, card) = (&start.weights, &start.card);
    // Auxiliary classifiers guide a whole network's training; on a frozen one they would learn for nothing.
    let forever_frozen =
        recipe.transfer.as_ref().is_some_and(|t| t.freeze == Freeze::Backbone && t.unfreeze_at.is_none());
    let aux = weights.config(card.architecture, &device).aux_logits && !forever_frozen;
    let config = config.with_aux_logits(aux).with_transform_input(card.transform_input);
    // Drawn first: which seed a parameter sees must not depend on what the file holds.
    let network = draw_all(config.init(&device));
    let same_classes = card.classes == classes;
    let strictness = if same_classes { Strictness::Exact } else { Strictness::FreshHead };
    Ok(weights.load(network, card.architecture, strictness)?.0)
}

/// Initializes every parameter: Burn does so when one is first used, at which point another seed may be set.
pub fn draw_all<M: Module>(module: M) -> M {
    struct Draw;
    impl ModuleMapper for Draw {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let _ = param.val();
            param
        }
    }
    module.map(&mut Draw)
}

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

    fn is_aux(&self) -> bool {
        ["aux1", "aux2", "AuxLogits"].contains(&self.stage())
    }
}

/// Everything in a network that can be frozen, in order of depth.
fn keys(network: &Network) -> Vec<Key> {
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

/// The parameters and running statistics below the head.
pub fn backbone(network: &Network) -> Vec<ParamId> {
    let head = network.head_key();
    let below = |key: &Key| key.stage() != head && !key.is_aux() && !key.is_flag;
    keys(network).into_iter().filter(below).map(|key| key.id).collect()
}

/// The stages that have parameters, in order of depth, the head last, auxiliary classifiers left out.
pub fn stages(network: &Network) -> Vec<String> {
    let mut stages: Vec<String> = Vec::new();
    for key in keys(network).iter().filter(|key| !key.is_flag && !key.is_aux()) {
        if !stages.iter().any(|known| known == key.stage()) {
            stages.push(key.stage().to_string());
        }
    }
    let head = network.head_key();
    stages.retain(|stage| stage != head);
    stages.push(head.to_string());
    stages
}

/// How many stages, of the first, are frozen in an epoch (from 0).
pub fn num_frozen(stages: &[String], transfer: &Transfer, epoch: usize) -> anyhow::Result<usize> {
    let frozen = match &transfer.freeze {
        Freeze::None => 0,
        Freeze::Backbone => stages.len() - 1,
        Freeze::Until(stage) => {
            let at = stages.iter().position(|known| known == stage).with_context(|| {
                format!("transfer.freeze is \"until={stage}\": there is no such stage; there are {}", stages.join(", "))
            })?;
            if at + 1 == stages.len() {
                bail!("transfer.freeze = \"until={stage}\" would freeze everything, the classifier too");
            }
            at + 1
        }
    };
    let thawed = match transfer.unfreeze_at {
        Some(first) if epoch + 1 >= first => match transfer.unfreeze_per_epoch {
            Some(stages) => stages * (epoch + 2 - first),
            None => frozen,
        },
        _ => 0,
    };
    Ok(frozen.saturating_sub(thawed))
}

/// Everything that belongs to the frozen ones of the stages. A backbone that is frozen as a whole includes what has no
/// parameters, dropout for instance.
pub fn group(network: &Network, stages: &[String], frozen: usize) -> ParamGroup {
    let whole = frozen + 1 == stages.len();
    let (head, frozen) = (network.head_key(), &stages[..frozen]);
    let belongs = |key: &&Key| match whole {
        true => key.stage() != head && !key.is_aux(),
        false => frozen.iter().any(|stage| stage == key.stage()),
    };
    ParamGroup::from_ids(keys(network).iter().filter(belongs).map(|key| key.id).collect())
}

/// The network as it is trained in an epoch (from 0): its frozen stages have no gradient, and their BatchNorm
/// statistics and dropout are fixed.
pub fn frozen(network: Network, transfer: &Transfer, epoch: usize) -> anyhow::Result<Network> {
    let stages = stages(&network);
    let frozen = num_frozen(&stages, transfer, epoch)?;
    if frozen == 0 {
        return Ok(network);
    }
    let group = group(&network, &stages, frozen);
    Ok(network.freeze_group(group))
}

/// How a stage's rate relates to the head's: the stages' parameters with their factors, for stages whose factor is not
/// 1. Auxiliary classifiers are trained as the head is.
pub fn rate_groups(network: &Network, transfer: &Transfer) -> Vec<(ParamGroup, f64)> {
    if transfer.layer_decay == 1.0 {
        return Vec::new();
    }
    let (stages, keys) = (stages(network), keys(network));
    let mut groups = Vec::new();
    for (depth, stage) in stages.iter().rev().enumerate().skip(1) {
        let ids = keys.iter().filter(|key| key.stage() == stage).map(|key| key.id).collect();
        groups.push((ParamGroup::from_ids(ids), transfer.layer_decay.powi(depth as i32)));
    }
    groups
}

#[cfg(test)]
mod tests {
    use burn::{optim::GradientsParams, tensor::Distribution};
    use models::Architecture;

    use super::*;

    fn network(architecture: Architecture) -> Network {
        NetworkConfig::new(architecture).with_num_classes(3).init(&Device::flex().autodiff())
    }

    #[test]
    fn stages_are_the_network_s_own_in_order_of_depth() {
        let names = |architecture| stages(&network(architecture)).join(" ");
        assert_eq!(names(Architecture::ResNet18), "conv1 bn1 layer1 layer2 layer3 layer4 fc");
        assert_eq!(
            names(Architecture::AlexNet),
            "features.0 features.3 features.6 features.8 features.10 classifier.1 classifier.4 classifier.6"
        );
        assert!(names(Architecture::GoogLeNet2014).ends_with("inception5b fc"));
        assert!(names(Architecture::ResNet20).ends_with("layer3 linear"));
    }

    fn transfer(freeze: Freeze) -> Transfer {
        Transfer { weights: "w".into(), freeze, unfreeze_at: None, unfreeze_per_epoch: None, layer_decay: 1.0 }
    }

    /// Whether each stage has gradients, and the running means of the first and the last norm, before and after a step.
    fn step(network: &Network) -> Vec<(String, bool)> {
        let images = Tensor::<4>::random([2, 3, 32, 32], Distribution::Default, &Device::flex().autodiff());
        let gradients = GradientsParams::from_grads(network.forward(images.clone()).sum().backward(), network);
        // Running statistics lag by one step.
        network.forward(images);
        let scales = keys(network).into_iter().filter(|key| key.key.ends_with("gamma"));
        scales.map(|key| (key.stage().to_string(), gradients.get::<1>(key.id).is_some())).collect()
    }

    fn running_means(network: &Network) -> [Vec<f32>; 2] {
        let Network::ResNet(resnet) = network else { unreachable!() };
        let Some(models::resnet::Block::Basic(last)) = resnet.layer4.last() else { unreachable!() };
        [&resnet.bn1, &last.bn2]
            .map(|norm| norm.as_ref().unwrap().running_mean.value_sync().into_data().iter::<f32>().collect())
    }

    #[test]
    fn frozen_stages_have_no_gradient_and_fixed_statistics() {
        let network = frozen(network(Architecture::ResNet18), &transfer(Freeze::Until("layer1".into())), 0).unwrap();
        let before = running_means(&network);
        for (stage, has_gradient) in step(&network) {
            assert_eq!(has_gradient, !["bn1", "layer1"].contains(&stage.as_str()), "{stage}");
        }
        let after = running_means(&network);
        assert_eq!(before[0], after[0]);
        assert_ne!(before[1], after[1]);
    }

    #[test]
    fn stages_thaw_from_the_head_down() {
        let stages = stages(&network(Architecture::ResNet18));
        let gradual = Transfer { unfreeze_at: Some(2), unfreeze_per_epoch: Some(2), ..transfer(Freeze::Backbone) };
        let frozen: Vec<usize> = (0..6).map(|epoch| num_frozen(&stages, &gradual, epoch).unwrap()).collect();
        assert_eq!(frozen, [6, 4, 2, 0, 0, 0]);
        let at_once = Transfer { unfreeze_at: Some(2), ..transfer(Freeze::Until("layer2".into())) };
        assert_eq!((num_frozen(&stages, &at_once, 0).unwrap(), num_frozen(&stages, &at_once, 1).unwrap()), (4, 0));
    }

    #[test]
    fn a_frozen_backbone_drops_out_nothing() {
        let network = frozen(network(Architecture::GoogLeNet2014), &transfer(Freeze::Backbone), 0).unwrap();
        let images = Tensor::<4>::ones([1, 3, 64, 64], &Device::flex().autodiff());
        let outputs = [0, 1].map(|_| network.features(images.clone()).into_data().iter::<f32>().collect::<Vec<_>>());
        assert_eq!(outputs[0], outputs[1]);
        let logits = [0, 1].map(|_| network.forward(images.clone()).into_data().iter::<f32>().collect::<Vec<_>>());
        assert_eq!(logits[0], logits[1]);
    }

    #[test]
    fn an_unknown_stage_is_refused_with_those_there_are() {
        let stages = stages(&network(Architecture::ResNet18));
        let error = num_frozen(&stages, &transfer(Freeze::Until("layer9".into())), 0).unwrap_err().to_string();
        assert!(error.contains("layer4"), "{error}");
        assert!(num_frozen(&stages, &transfer(Freeze::Until("fc".into())), 0).is_err());
    }

    #[test]
    fn rates_fall_with_the_distance_from_the_head() {
        let network = network(Architecture::ResNet18);
        let transfer = Transfer { layer_decay: 0.5, ..transfer(Freeze::None) };
        let groups = rate_groups(&network, &transfer);
        let factor = |wanted: &str| {
            let key = keys(&network).into_iter().find(|key| key.stage() == wanted).unwrap();
            groups.iter().find(|(group, _)| group.matches(&key.id, None)).map_or(1.0, |(_, factor)| *factor)
        };
        assert_eq!([factor("fc"), factor("layer4"), factor("layer1"), factor("conv1")], [1.0, 0.5, 0.0625, 0.015625]);
    }
}
