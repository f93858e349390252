//! Starting from trained weights: the head for new classes, frozen stages, rates by stage.

use burn::{
    module::{Module, ModuleMapper, Param, ParamGroup},
    tensor::{Device, Tensor},
};
use hub::Strictness;
use models::{ImageClassifier, Network, NetworkConfig};

use crate::{
    Result,
    recipe::{self, BatchNormMode, Freeze, Recipe, Transfer},
};

/// The recipe's network for so many classes, with fresh or trained weights, on an autodiff device.
pub fn network(recipe: &Recipe, start: Option<&hub::Opened>, classes: &[String], device: &Device) -> Result<Network> {
    let device = device.clone().autodiff();
    device.seed(recipe.seed);
    let config =
        NetworkConfig::new(recipe.architecture).with_num_classes(classes.len()).with_dropout(recipe.network.dropout);
    let Some(start) = start else {
        return Ok(draw_all(config.init(&device)));
    };
    let (weights, card) = (&start.weights, &start.card);
    let config = config.with_aux_logits(aux_logits(recipe, start, &device)?).with_transform_input(card.transform_input);
    // Drawn first: which seed a parameter sees must not depend on what the file holds.
    let network = draw_all(config.init(&device));
    let same_classes = card.classes == classes;
    let strictness = if same_classes { Strictness::Exact } else { Strictness::FreshHead };
    Ok(weights.load(network, card.architecture, strictness)?.0)
}

/// Whether a network from these weights is trained with auxiliary classifiers. They guide a whole network's training; on
/// a frozen one they would learn for nothing.
///
/// # Errors
/// Where the weights do not fit the card's architecture.
pub fn aux_logits(recipe: &Recipe, start: &hub::Opened, device: &Device) -> Result<bool> {
    let forever_frozen =
        recipe.transfer.as_ref().is_some_and(|t| t.freeze == Freeze::Backbone && t.unfreeze_at.is_none());
    Ok(start.weights.config(start.card.architecture, device)?.aux_logits && !forever_frozen)
}

/// The network of a run that started from trained weights, for a checkpoint to fill: without those weights, which may be
/// gone by then.
pub fn network_of_checkpoint(
    recipe: &Recipe,
    aux_logits: bool,
    transform_input: bool,
    classes: &[String],
    device: &Device,
) -> Network {
    let device = device.clone().autodiff();
    device.seed(recipe.seed);
    let config = NetworkConfig::new(recipe.architecture)
        .with_num_classes(classes.len())
        .with_dropout(recipe.network.dropout)
        .with_aux_logits(aux_logits)
        .with_transform_input(transform_input);
    draw_all(config.init(&device))
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

/// How many stages, of the first, are frozen in an epoch (from 0).
pub fn num_frozen(stages: &[String], transfer: &Transfer, epoch: usize) -> Result<usize> {
    let frozen = match &transfer.freeze {
        Freeze::None => 0,
        Freeze::Backbone => stages.len() - 1,
        Freeze::Until(stage) => {
            let unknown = || {
                let stages = stages.join(", ");
                format!("transfer.freeze is \"until={stage}\": there is no such stage; there are {stages}")
            };
            let at = stages.iter().position(|known| known == stage);
            let at = at.ok_or_else(|| recipe::Error::Invalid(unknown()))?;
            if at + 1 == stages.len() {
                let cause = format!("transfer.freeze = \"until={stage}\" would freeze everything, the classifier too");
                return Err(recipe::Error::Invalid(cause).into());
            }
            at + 1
        }
    };
    let unfrozen = match transfer.unfreeze_at {
        Some(first) if epoch + 1 >= first => match transfer.unfreeze_per_epoch {
            Some(stages) => stages.saturating_mul(epoch + 2 - first),
            None => frozen,
        },
        _ => 0,
    };
    Ok(frozen.saturating_sub(unfrozen))
}

/// The network as it is trained in an epoch (from 0): its frozen stages have no gradient, and their BatchNorm
/// statistics and dropout are fixed. With `batchnorm = "freeze"` the statistics of all stages are.
pub fn frozen(network: Network, transfer: &Transfer, epoch: usize) -> Result<Network> {
    let frozen = num_frozen(&network.stages(), transfer, epoch)?;
    let network = network.freeze_stages(frozen);
    if transfer.batchnorm == BatchNormMode::Freeze {
        let flags = batch_norm_flags(&network);
        return Ok(network.freeze_group(flags));
    }
    Ok(network)
}

/// The training flags of all batch normalizations.
pub fn batch_norm_flags(network: &Network) -> ParamGroup {
    let mut network = network.clone();
    ParamGroup::from_ids(network.norms_mut().into_iter().map(|norm| norm.training.id).collect())
}

/// How a stage's rate relates to the head's: the stages' parameters with their factors, for stages whose factor is not
/// 1. Auxiliary classifiers are trained as the head is.
pub fn rate_groups(network: &Network, transfer: &Transfer) -> Vec<(ParamGroup, f64)> {
    if transfer.layer_decay == 1.0 && transfer.body_rate == 1.0 {
        return Vec::new();
    }
    let mut groups = Vec::new();
    for (depth, stage) in network.stages().iter().rev().enumerate().skip(1) {
        let params = ParamGroup::from_ids(network.stage_params(stage));
        groups.push((params, transfer.body_rate * transfer.layer_decay.powi(depth as i32)));
    }
    groups
}

#[cfg(test)]
mod tests {
    use models::Architecture;

    use super::*;

    fn network(architecture: Architecture) -> Network {
        NetworkConfig::new(architecture).with_num_classes(3).init(&Device::flex().autodiff())
    }

    fn transfer(freeze: Freeze) -> Transfer {
        let recipe = crate::recipe::load("finetune", &crate::recipe::Overrides::default()).unwrap();
        Transfer {
            freeze,
            unfreeze_at: None,
            layer_decay: 1.0,
            body_rate: 1.0,
            batchnorm: BatchNormMode::Train,
            ..recipe.transfer.unwrap()
        }
    }

    #[test]
    fn stages_thaw_from_the_head_down() {
        let stages = network(Architecture::ResNet18).stages();
        let gradual = Transfer { unfreeze_at: Some(2), unfreeze_per_epoch: Some(2), ..transfer(Freeze::Backbone) };
        let frozen: Vec<usize> = (0..6).map(|epoch| num_frozen(&stages, &gradual, epoch).unwrap()).collect();
        assert_eq!(frozen, [6, 4, 2, 0, 0, 0]);
        let at_once = Transfer { unfreeze_at: Some(2), ..transfer(Freeze::Until("layer2".into())) };
        assert_eq!((num_frozen(&stages, &at_once, 0).unwrap(), num_frozen(&stages, &at_once, 1).unwrap()), (4, 0));
    }

    #[test]
    fn an_unknown_stage_is_refused_with_those_there_are() {
        let stages = network(Architecture::ResNet18).stages();
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
            let param = network.stage_params(wanted)[0];
            groups.iter().find(|(group, _)| group.matches(&param, None)).map_or(1.0, |(_, factor)| *factor)
        };
        assert_eq!([factor("fc"), factor("layer4"), factor("layer1"), factor("conv1")], [1.0, 0.5, 0.0625, 0.015625]);
        let groups = rate_groups(&network, &super::Transfer { body_rate: 0.1, layer_decay: 1.0, ..transfer });
        let param = network.stage_params("conv1")[0];
        assert_eq!(groups.iter().find(|(group, _)| group.matches(&param, None)).unwrap().1, 0.1);
        let head = network.stage_params("fc")[0];
        assert!(groups.iter().all(|(group, _)| !group.matches(&head, None)));
    }

    #[test]
    fn frozen_batch_normalization_keeps_its_statistics_and_trains_its_scales() {
        let (first, second) = (Tensor::<4>::ones([2, 3, 32, 32], &Device::flex().autodiff()), 2.0);
        for (batchnorm, moves) in [(BatchNormMode::Freeze, false), (BatchNormMode::Train, true)] {
            let transfer = Transfer { batchnorm, ..transfer(Freeze::None) };
            let network = frozen(network(Architecture::ResNet18), &transfer, 0).unwrap();
            let mean = |mut network: Network| -> Vec<f32> {
                network.norms_mut()[3].running_mean.value_sync().into_data().iter::<f32>().collect()
            };
            let before = mean(network.clone());
            network.forward(first.clone());
            let loss = network.forward(first.clone() * second).square().mean();
            assert_eq!(before != mean(network.clone()), moves, "{batchnorm:?}");
            let gradients = burn::optim::GradientsParams::from_grads(loss.backward(), &network);
            let gamma = network.clone().norms_mut()[3].gamma.id;
            assert!(gradients.get::<1>(gamma).is_some(), "{batchnorm:?}");
        }
    }
}
