//! What every variant documents of itself, against the network.

use burn::{
    module::Module,
    tensor::{Device, Distribution, Tensor},
};
use models::{Architecture, Error, ImageClassifier, NetworkConfig, cifar_resnet, googlenet, resnet};

fn images(architecture: Architecture, more: usize) -> Tensor<4> {
    let side = architecture.min_size().max(32) + more;
    Tensor::random([1, 3, side, side + 5], Distribution::Default, &Device::flex())
}

/// Sizes at which the variants of a family differ in their blocks alone.
fn small() -> [Architecture; 8] {
    [
        Architecture::AlexNet,
        Architecture::Vgg11Bn,
        Architecture::GoogLeNet,
        Architecture::GoogLeNet2014,
        Architecture::InceptionV3,
        Architecture::ResNet18,
        Architecture::ResNeXt50,
        Architecture::ResNet20,
    ]
}

#[test]
fn feature_info_equals_the_maps_that_are_computed() {
    for &architecture in Architecture::ALL {
        for fold in [false, true] {
            let network = NetworkConfig::new(architecture).with_aux_logits(false).init(&Device::flex());
            let network = if fold { network.fold_batch_norm() } else { network };
            let info = network.feature_info();
            assert!(info.len() >= 3 && info.is_sorted_by_key(|info| info.stride), "{architecture}: {info:?}");
            let stages: Vec<&str> = info.iter().map(|info| info.stage.as_str()).collect();
            let maps = |more| network.forward_intermediates(images(architecture, more), &stages).unwrap();
            for ((info, small), large) in info.iter().zip(maps(0)).zip(maps(32)) {
                let ([_, channels, h, w], [_, _, larger_h, larger_w]) = (small.dims(), large.dims());
                assert_eq!(channels, info.channels, "{architecture}: {info:?}");
                // An image that is larger by 32 pixels has a map that is larger by 32 / stride.
                let grown = [larger_h - h, larger_w - w].map(|more| more * info.stride);
                assert_eq!(grown, [32, 32], "{architecture}: {info:?}");
            }
            if architecture.default_size() != 32 && fold {
                break;
            }
        }
    }
}

#[test]
fn variants_have_the_keys_and_stages_of_their_networks() {
    for &architecture in Architecture::ALL {
        let variant = architecture.variant();
        let network = NetworkConfig::new(architecture).init(&Device::flex());
        assert_eq!(network.head_key(), variant.head_key, "{architecture}");
        assert_eq!(network.last_map(), variant.last_map, "{architecture}");
        assert_eq!(network.aux_classifiers(), variant.aux, "{architecture}");
        assert_eq!(network.num_classes(), variant.default_classes, "{architecture}");
        let keys: Vec<String> = network.entries().into_iter().map(|entry| entry.key).collect();
        for head in variant.aux.iter().map(|aux| aux.head_key).chain([variant.head_key]) {
            assert!(keys.contains(&format!("{head}.weight")), "{architecture}: {head}");
        }
        let folded = network.fold_batch_norm();
        assert_eq!(folded.last_map(), architecture.folded().variant().last_map, "{architecture}");
        assert_eq!(architecture.name().parse::<Architecture>().unwrap(), architecture);
        assert_eq!(serde_json::to_string(&architecture).unwrap(), format!("\"{architecture}\""));
    }
    assert_eq!(Architecture::ALL.len(), 29);
    assert!(Architecture::ALL.is_sorted());
}

#[test]
fn features_and_head_compose_to_the_network() {
    for architecture in small() {
        let config = NetworkConfig::new(architecture).with_num_classes(6).with_aux_logits(false);
        let network = config.init(&Device::flex());
        let images = images(architecture, 8);
        let values = |logits: Tensor<2>| logits.into_data().try_into_vec::<f32>().unwrap();
        let logits = values(network.forward(images.clone()));
        let features = network.forward_features(images.clone());
        assert_eq!(logits, values(network.forward_head(features.clone())), "{architecture}");
        assert_eq!(logits, values(network.classify(network.forward_pre_logits(images.clone()))), "{architecture}");

        let last = network.feature_info().pop().unwrap().stage;
        let extractor = network.features_only(&[&last, &last]).unwrap();
        let maps = extractor.forward(images);
        assert_eq!(extractor.feature_info().len(), 2);
        for map in maps {
            assert_eq!(map.into_data(), features.to_data(), "{architecture}");
        }
    }
}

#[test]
fn an_unknown_stage_is_an_error_that_lists_the_known_ones() {
    let network = resnet::resnet18(&Device::flex());
    let error = network.features_only(&["layer2", "layer9"]).unwrap_err();
    assert!(matches!(&error, Error::UnknownStage { stage, .. } if stage == "layer9"));
    assert_eq!(error.to_string(), "there is no stage `layer9`; there are relu, layer1, layer2, layer3, layer4");
}

#[test]
fn resetting_the_classifier_keeps_everything_else() {
    let device = Device::flex();
    let network = googlenet::googlenet(&device);
    let before = network.entries();
    let network = network.reset_classifier(7, &device);
    assert_eq!(network.num_classes(), 7);
    let changed: Vec<String> = before
        .iter()
        .zip(network.entries())
        .filter(|(before, after)| before.shape != after.shape)
        .map(|(_, after)| after.key)
        .collect();
    assert_eq!(
        changed,
        ["aux1.fc2.weight", "aux1.fc2.bias", "aux2.fc2.weight", "aux2.fc2.bias", "fc.weight", "fc.bias"]
    );

    let network = cifar_resnet::resnet20(&device);
    let conv = network.conv1.weight.val().into_data();
    let network = network.reset_classifier(3, &device);
    assert_eq!(network.conv1.weight.val().into_data(), conv);
    assert_eq!(network.forward(images(Architecture::ResNet20, 0)).dims(), [1, 3]);
    assert_eq!(network.clone().num_params(), network.num_parameters() + 2 * statistics(&network));
}

/// The number of channels of all norms.
fn statistics(network: &impl ImageClassifier) -> usize {
    network.entries().iter().filter(|entry| entry.key.ends_with("running_mean")).map(|entry| entry.len()).sum()
}
