//! Finds a network's tensors under the names that people's files have for them: behind prefixes of wrappers and
//! checkpoints, in the names of transformers and of timm's VGG, with the classifier in another place; and finds out
//! whether a file has several networks.

use std::collections::{BTreeMap, HashMap, HashSet};

use burn_store::burn_pack::Tensor as PackTensor;
use models::{Architecture, Entry};

use super::{Keyed, is_aux, is_head};

/// Components of names that wrappers insert: DataParallel, `torch.compile`, FSDP, activation checkpoints.
const WRAPPERS: [&str; 4] = ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// Where published trainers keep the EMA of the weights beside the weights: timm's and torchvision's references.
const DOCUMENTED_EMA: [(&str, &str); 2] = [("state_dict.", "state_dict_ema."), ("model.", "model_ema.")];

/// Brings names into torchvision's form, where that needs no knowledge of the network.
pub fn normalize(tensors: BTreeMap<String, PackTensor>) -> BTreeMap<String, PackTensor> {
    let tensors = rename(tensors, |key| {
        let kept: Vec<&str> = key.split('.').filter(|part| !WRAPPERS.contains(part)).collect();
        kept.join(".")
    });
    let tensors = rename(tensors, |key| transformers(key).unwrap_or_else(|| key.to_string()));
    timm_vgg(tensors)
}

/// Renames all tensors, or none where two would get the same name.
fn rename(tensors: BTreeMap<String, PackTensor>, name: impl Fn(&str) -> String) -> BTreeMap<String, PackTensor> {
    let names: HashSet<String> = tensors.keys().map(|key| name(key)).collect();
    match names.len() == tensors.len() {
        true => tensors.into_iter().map(|(key, tensor)| (name(&key), tensor)).collect(),
        false => tensors,
    }
}

/// torchvision's name of a tensor of transformers' `ResNetModel`.
fn transformers(key: &str) -> Option<String> {
    let parts: Vec<&str> = key.split('.').collect();
    let at = parts.windows(2).position(|pair| pair == ["embedder", "embedder"] || pair == ["encoder", "stages"])?;
    let layer = match parts[at..] {
        ["embedder", "embedder", "convolution", _] => "conv1".to_string(),
        ["embedder", "embedder", "normalization", _] => "bn1".to_string(),
        ["encoder", "stages", stage, "layers", block, "shortcut", kind, _] => {
            let stage = stage.parse::<u8>().ok()?.checked_add(1)?;
            let index = match kind {
                "convolution" => 0,
                "normalization" => 1,
                _ => return None,
            };
            format!("layer{stage}.{block}.downsample.{index}")
        }
        ["encoder", "stages", stage, "layers", block, "layer", index, kind, _] => {
            let (stage, index) = (stage.parse::<u8>().ok()?.checked_add(1)?, index.parse::<u8>().ok()?.checked_add(1)?);
            let kind = match kind {
                "convolution" => "conv",
                "normalization" => "bn",
                _ => return None,
            };
            format!("layer{stage}.{block}.{kind}{index}")
        }
        _ => return None,
    };
    let prefix = match parts[..at] {
        [.., "resnet"] => &parts[..at - 1],
        _ => &parts[..at],
    };
    let name: Vec<&str> = prefix.iter().copied().chain([layer.as_str(), parts[parts.len() - 1]]).collect();
    Some(name.join("."))
}

/// timm's VGG has convolutions in place of the first two linear layers, of the same values in the same order.
fn timm_vgg(tensors: BTreeMap<String, PackTensor>) -> BTreeMap<String, PackTensor> {
    if !tensors.keys().any(|key| key.ends_with("pre_logits.fc1.weight")) {
        return tensors;
    }
    let layers =
        [("pre_logits.fc1.", "classifier.0."), ("pre_logits.fc2.", "classifier.3."), ("head.fc.", "classifier.6.")];
    let translate = |(key, tensor): (String, PackTensor)| {
        let Some((prefix, layer, kind)) = layers.iter().find_map(|(timm, torchvision)| {
            let at = key.find(timm)?;
            Some((&key[..at], torchvision, &key[at + timm.len()..]))
        }) else {
            return (key, tensor);
        };
        let name = format!("{prefix}{layer}{kind}");
        let tensor = if tensor.shape.len() == 4 { flattened(tensor) } else { tensor };
        (name, tensor)
    };
    tensors.into_iter().map(translate).collect()
}

/// A convolution's weight as that of a linear layer.
fn flattened(tensor: PackTensor) -> PackTensor {
    let shape = vec![tensor.shape[0], tensor.shape[1..].iter().product()];
    let (name, dtype, len) = (tensor.name.clone(), tensor.dtype, tensor.byte_len());
    PackTensor::deferred(name, dtype, shape, None, len, move || tensor.to_bytes())
}

/// Which tensors of a file are a network's.
#[derive(Debug, Default)]
pub struct Choice {
    /// The prefix of the network's keys in the file.
    pub prefix: String,
    /// The name of the file's classifier, with a dot at its end, where it is not the network's.
    pub head: Option<String>,
    /// The prefixes of the keys of the file's other networks.
    pub rest: Vec<String>,
    /// What a user must know of the choice.
    pub note: Option<String>,
}

/// The networks of a file, where they are several or not those that were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ambiguity {
    /// What was asked for.
    pub asked: Option<String>,
    /// The keys of the networks.
    pub keys: Vec<String>,
}

/// How a user names a prefix.
fn shown(prefix: &str) -> String {
    match prefix.trim_end_matches('.') {
        "" => ".".to_string(),
        key => super::printable(key),
    }
}

/// Finds the network in a file: by `key` where it is given, otherwise the only one, or the documented EMA.
///
/// # Errors
/// [`Ambiguity`] where several are as complete, or none has the key.
pub fn choose(
    tensors: &BTreeMap<String, PackTensor>,
    entries: &[Entry],
    architecture: Architecture,
    key: Option<&str>,
) -> Result<Choice, Ambiguity> {
    let wanted: HashMap<&str, &Entry> = entries.iter().map(|entry| (entry.key.as_str(), entry)).collect();
    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    for (key, tensor) in tensors {
        let starts = std::iter::once(0).chain(key.match_indices('.').map(|(dot, _)| dot + 1));
        for start in starts {
            let fits = |entry: &&Entry| is_head(&entry.key, architecture) || *tensor.shape == *entry.shape;
            if wanted.get(&key[start..]).is_some_and(fits) {
                *found.entry(&key[..start]).or_default() += 1;
            }
        }
    }
    let most = found.values().copied().max().unwrap_or(0);
    // Of a network that the file does not have, what comes nearest is compared.
    let is_whole = |count: usize| count * 10 >= most * 9 && count * 2 >= entries.len();
    let mut candidates: Vec<&str> =
        found.iter().filter(|(_, count)| is_whole(**count)).map(|(prefix, _)| *prefix).collect();
    if candidates.is_empty() {
        candidates = found.iter().filter(|(_, count)| **count == most).map(|(prefix, _)| *prefix).take(1).collect();
    }
    let ambiguity = |asked: Option<&str>| Ambiguity {
        asked: asked.map(str::to_string),
        keys: candidates.iter().map(|prefix| shown(prefix)).collect(),
    };
    let (prefix, note) = match (key, candidates.as_slice()) {
        (Some(key), _) => {
            let asked: Vec<&str> = key.split('.').filter(|part| !part.is_empty() && !WRAPPERS.contains(part)).collect();
            let asked = asked.join(".");
            let bare = |prefix: &str| prefix.trim_end_matches('.').to_string();
            let equal = candidates.iter().find(|prefix| bare(prefix) == asked);
            let within: Vec<&&str> = candidates
                .iter()
                .filter(|prefix| {
                    !asked.is_empty()
                        && (bare(prefix).starts_with(&format!("{asked}."))
                            || bare(prefix).ends_with(&format!(".{asked}")))
                })
                .collect();
            match (equal, within.as_slice()) {
                (Some(prefix), _) => (*prefix, None),
                (None, [prefix]) => (**prefix, None),
                _ => return Err(ambiguity(Some(key))),
            }
        }
        (None, []) => ("", None),
        (None, [prefix]) => (*prefix, None),
        (None, [raw, ema]) if DOCUMENTED_EMA.contains(&(*raw, *ema)) => {
            let note = format!(
                "it has the weights and their EMA: `{}` is used (--weights-key {} for the other)",
                shown(ema),
                shown(raw)
            );
            (*ema, Some(note))
        }
        (None, _) => return Err(ambiguity(None)),
    };
    let rest = candidates.iter().filter(|other| **other != prefix).map(ToString::to_string).collect();
    let mut choice = Choice { prefix: prefix.to_string(), head: None, rest, note };
    choice.head = other_head(tensors, &choice, &wanted, architecture);
    Ok(choice)
}

/// The prefix of the tensors beside a network's: those of the checkpoint's part that it is in.
fn parent(prefix: &str) -> &str {
    let inner = prefix.strip_suffix('.').unwrap_or(prefix);
    inner.rfind('.').map_or("", |dot| &inner[..=dot])
}

/// Whether a name is that of a layer's parameter, unlike those of optimizers and counters.
fn is_parameter(key: &str) -> bool {
    matches!(key.rsplit('.').next(), Some("weight" | "bias" | "running_mean" | "running_var"))
}

impl Choice {
    /// The network's key of a tensor: its name behind the prefix, unless it is another network's.
    fn key<'a>(&self, name: &'a str) -> Option<&'a str> {
        let is_rest = |other: &String| other.len() > self.prefix.len() && name.starts_with(other.as_str());
        name.strip_prefix(self.prefix.as_str()).filter(|_| !self.rest.iter().any(is_rest))
    }

    /// The tensors of layers that are not the network's: in its part of the file, and beside it where the network has a
    /// prefix of its own there (`backbone.conv1.weight` and `head.weight`).
    pub fn others<'a>(
        &'a self,
        tensors: &'a BTreeMap<String, PackTensor>,
        is_wanted: impl Fn(&str) -> bool + 'a,
    ) -> impl Iterator<Item = (&'a String, &'a PackTensor)> {
        let parent = parent(&self.prefix);
        let is_rest = |name: &str| self.rest.iter().any(|other| !other.is_empty() && name.starts_with(other.as_str()));
        tensors.iter().filter(move |(name, _)| match self.key(name) {
            Some(key) => !is_wanted(key),
            None => !self.prefix.is_empty() && name.starts_with(parent) && is_parameter(name) && !is_rest(name),
        })
    }
}

/// Finds the classifier of a file that lacks the network's: the only layer that is left, if it is a linear layer of
/// the classifier's inputs. It is then the same function: dropout, flattening and wrappers have no parameters.
fn other_head(
    tensors: &BTreeMap<String, PackTensor>,
    choice: &Choice,
    wanted: &HashMap<&str, &Entry>,
    architecture: Architecture,
) -> Option<String> {
    let head = architecture.variant().head_key;
    if tensors.contains_key(&format!("{}{head}.weight", choice.prefix)) {
        return None;
    }
    let inputs = wanted.get(format!("{head}.weight").as_str())?.shape[1];
    let is_wanted = |key: &str| wanted.contains_key(key) || is_aux(key, architecture);
    let left: Vec<(&String, &PackTensor)> = choice.others(tensors, is_wanted).collect();
    let [(bias_key, bias), (weight_key, weight)] = left[..] else { return None };
    let layer = weight_key.strip_suffix("weight").filter(|layer| bias_key.strip_suffix("bias") == Some(layer))?;
    // Those of self-supervised training have no classes.
    let is_projection = ["proj", "predict", "contrast", "prototype"].iter().any(|name| layer.contains(name));
    let fits =
        !is_projection && weight.shape.len() == 2 && weight.shape[1] == inputs && *bias.shape == [weight.shape[0]];
    fits.then(|| layer.to_string())
}

/// The tensors of a choice by the network's keys.
pub fn keyed<'a>(
    tensors: &'a BTreeMap<String, PackTensor>,
    choice: &Choice,
    architecture: Architecture,
) -> BTreeMap<String, Keyed<'a>> {
    let head = architecture.variant().head_key;
    let name = |key: &String| match choice.head.as_ref().and_then(|layer| key.strip_prefix(layer.as_str())) {
        Some(kind) => Some(format!("{head}.{kind}")),
        None => choice.key(key).map(str::to_string),
    };
    tensors.iter().filter_map(|(key, tensor)| Some((name(key)?, Keyed::new(tensor, false)))).collect()
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use burn_store::bridge;

    use super::*;

    fn tensor(name: &str, shape: &[usize]) -> (String, PackTensor) {
        let count = shape.iter().product::<usize>();
        let data = TensorData::new((0..count).map(|i| i as f32).collect::<Vec<_>>(), shape.to_vec());
        (name.to_string(), bridge::from_data(data, name.to_string(), None))
    }

    #[test]
    fn timms_vgg_becomes_torchvisions_with_the_same_values() {
        let tensors = [
            tensor("features.0.weight", &[2, 3, 3, 3]),
            tensor("pre_logits.fc1.weight", &[4, 2, 7, 7]),
            tensor("pre_logits.fc1.bias", &[4]),
            tensor("pre_logits.fc2.weight", &[4, 4, 1, 1]),
            tensor("head.fc.weight", &[3, 4]),
        ];
        let renamed = normalize(tensors.into_iter().collect());
        let shapes: Vec<(&str, Vec<usize>)> =
            renamed.iter().map(|(key, tensor)| (key.as_str(), tensor.shape.to_vec())).collect();
        let expected = [
            ("classifier.0.bias", vec![4]),
            ("classifier.0.weight", vec![4, 98]),
            ("classifier.3.weight", vec![4, 4]),
            ("classifier.6.weight", vec![3, 4]),
            ("features.0.weight", vec![2, 3, 3, 3]),
        ];
        assert_eq!(shapes, expected);
        let values = bridge::to_data(&renamed["classifier.0.weight"]).unwrap().try_into_vec::<f32>().unwrap();
        assert!(values.iter().enumerate().all(|(i, value)| *value == i as f32));
    }

    #[test]
    fn names_that_would_collide_are_left_as_they_are() {
        let tensors = [tensor("module.a", &[1]), tensor("a", &[1])];
        let kept: Vec<String> = normalize(tensors.into_iter().collect()).into_keys().collect();
        assert_eq!(kept, ["a", "module.a"]);
    }
}
