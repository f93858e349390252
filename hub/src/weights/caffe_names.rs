//! BVLC's Caffe model of GoogLeNet names its layers `inception_3a/5x5_reduce`; our keys are torchvision's.

use std::collections::BTreeMap;

use burn_store::burn_pack::Tensor as PackTensor;

/// The same tensors under torchvision's keys, if these are Caffe's; others pass through.
pub(super) fn to_torchvision(tensors: BTreeMap<String, PackTensor>) -> BTreeMap<String, PackTensor> {
    if !tensors.contains_key("conv1/7x7_s2.weight") {
        return tensors;
    }
    tensors.into_iter().map(|(name, tensor)| (rename(&name).unwrap_or(name), tensor)).collect()
}

/// `inception_3a/5x5_reduce.weight` → `inception3a.branch3.0.conv.weight`.
fn rename(name: &str) -> Option<String> {
    let (layer, parameter) = name.rsplit_once('.')?;
    let (module, part) = layer.split_once('/')?;
    let layer = match (module, part) {
        ("conv1", "7x7_s2") => "conv1.conv".to_string(),
        ("conv2", "3x3_reduce") => "conv2.conv".to_string(),
        ("conv2", "3x3") => "conv3.conv".to_string(),
        ("loss1", _) => format!("aux1.{}", aux(part)?),
        ("loss2", _) => format!("aux2.{}", aux(part)?),
        ("loss3", "classifier") => "fc".to_string(),
        _ => {
            let block = module.strip_prefix("inception_")?;
            let branch = match part {
                "1x1" => "branch1",
                "3x3_reduce" => "branch2.0",
                "3x3" => "branch2.1",
                "5x5_reduce" => "branch3.0",
                "5x5" => "branch3.1",
                "pool_proj" => "branch4.1",
                _ => return None,
            };
            format!("inception{block}.{branch}.conv")
        }
    };
    Some(format!("{layer}.{parameter}"))
}

fn aux(part: &str) -> Option<&'static str> {
    match part {
        "conv" => Some("conv.conv"),
        "fc" => Some("fc1"),
        "classifier" => Some("fc2"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::rename;

    #[test]
    fn caffe_layers_become_torchvision_keys() {
        let renamed = |name| rename(name).unwrap();
        assert_eq!(renamed("conv2/3x3.bias"), "conv3.conv.bias");
        assert_eq!(renamed("inception_4e/pool_proj.weight"), "inception4e.branch4.1.conv.weight");
        assert_eq!(renamed("loss2/fc.weight"), "aux2.fc1.weight");
        assert_eq!(renamed("loss3/classifier.bias"), "fc.bias");
        assert_eq!(rename("data/mean.weight"), None);
    }
}
