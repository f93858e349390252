//! Networks under the names that people's files have for them, and files with several networks.

use burn::tensor::{Device, Distribution, Tensor, TensorData};
use hub::{Error, Strictness, Weights};
use models::{Architecture, ImageClassifier, Network, NetworkConfig};

const ARCHITECTURE: Architecture = Architecture::ResNet20;

fn device() -> Device {
    Device::flex()
}

fn network(classes: usize) -> Network {
    NetworkConfig::new(ARCHITECTURE).with_num_classes(classes).init(&device())
}

/// Tensors of the shapes of a network, which its number distinguishes from another's.
fn drawn(network: &Network, seed: usize) -> Vec<(String, TensorData)> {
    let draw = |(number, entry): (usize, models::Entry)| {
        let count = entry.shape.iter().product::<usize>();
        // Variances are positive.
        let value = |i: usize| ((i * 31 + number * 7 + seed * 13) % 17) as f32 / 170.0 + 0.01;
        (entry.key, TensorData::new((0..count).map(value).collect::<Vec<_>>(), entry.shape))
    };
    network.entries().into_iter().enumerate().map(draw).collect()
}

fn renamed(tensors: &[(String, TensorData)], name: impl Fn(&str) -> String) -> Vec<(String, TensorData)> {
    tensors.iter().map(|(key, data)| (name(key), data.clone())).collect()
}

fn images(side: usize) -> Tensor<4> {
    Tensor::random([2, 3, side, side], Distribution::Default, &device())
}

fn logits(network: &Network, images: Tensor<4>) -> Vec<f32> {
    network.forward(images).into_data().try_into_vec().expect("f32")
}

/// Loads both and compares what the networks compute.
fn assert_same(architecture: Architecture, weights: &Weights, expected: Vec<(String, TensorData)>) {
    let expected = Weights::from_tensors("expected", expected);
    let load = |weights: &Weights| {
        let config = weights.config(architecture, &device()).expect("a configuration");
        weights.load(config.init(&device()), architecture, Strictness::Exact).expect("it fits").0
    };
    let images = images(architecture.min_size().max(32));
    assert_eq!(logits(&load(weights), images.clone()), logits(&load(&expected), images));
}

fn refused(weights: &Weights) -> Error {
    weights.load(network(10), ARCHITECTURE, Strictness::Exact).map(|_| ()).expect_err("it is refused")
}

#[test]
fn wrappers_are_seen_through_wherever_they_are() {
    let plain = drawn(&network(10), 1);
    let names: [&dyn Fn(&str) -> String; 4] = [
        // PyTorch's ImageNet example wraps the features of AlexNet and VGG alone.
        &|key| key.replacen("layer1.", "layer1.module.", 1),
        &|key| format!("_orig_mod.{key}"),
        &|key| format!("state_dict.model._orig_mod.{key}"),
        &|key| format!("model.module._fsdp_wrapped_module.{key}"),
    ];
    for name in names {
        let weights = Weights::from_tensors("wrapped.pth", renamed(&plain, name));
        assert_same(ARCHITECTURE, &weights, plain.clone());
    }
}

#[test]
fn transformers_names_are_translated() {
    let network = NetworkConfig::new(Architecture::ResNet18).with_num_classes(10).init(&device());
    let plain = drawn(&network, 1);
    let translate = |key: &str| {
        let parts: Vec<&str> = key.split('.').collect();
        let number = |text: &str| text[text.len() - 1..].parse::<usize>().expect("a digit") - 1;
        let kind = |text: &str| if text.starts_with("conv") { "convolution" } else { "normalization" };
        match parts[..] {
            ["conv1", last] => format!("resnet.embedder.embedder.convolution.{last}"),
            ["bn1", last] => format!("resnet.embedder.embedder.normalization.{last}"),
            ["fc", last] => format!("classifier.1.{last}"),
            [stage, block, "downsample", index, last] => {
                let kind = if index == "0" { "convolution" } else { "normalization" };
                format!("resnet.encoder.stages.{}.layers.{block}.shortcut.{kind}.{last}", number(stage))
            }
            [stage, block, layer, last] => format!(
                "resnet.encoder.stages.{}.layers.{block}.layer.{}.{}.{last}",
                number(stage),
                number(layer),
                kind(layer)
            ),
            _ => panic!("{key}"),
        }
    };
    let weights = Weights::from_tensors("pytorch_model.bin", renamed(&plain, translate));
    assert_same(Architecture::ResNet18, &weights, plain);
}

#[test]
fn a_single_linear_layer_of_another_name_is_the_head() {
    let plain = drawn(&network(7), 1);
    for head in ["linear.1", "head.fc", "classifier", "fc", "last_linear", "classifier.1"] {
        let weights =
            Weights::from_tensors("head.pth", renamed(&plain, |key| key.replace("linear.", &format!("{head}."))));
        assert_same(ARCHITECTURE, &weights, plain.clone());
    }
    // Beside a network that has a prefix of its own.
    let name = |key: &str| match key.strip_prefix("linear.") {
        Some(kind) => format!("state_dict.head.{kind}"),
        None => format!("state_dict.backbone.{key}"),
    };
    assert_same(ARCHITECTURE, &Weights::from_tensors("backbone.pth", renamed(&plain, name)), plain.clone());
}

#[test]
fn an_mlp_in_the_head_s_place_is_shown_and_replaced_in_fine_tuning() {
    let mut tensors = drawn(&network(10), 1);
    tensors.retain(|(key, _)| !key.starts_with("linear."));
    let zeros = |shape: &[usize]| TensorData::zeros::<f32, _>(shape.to_vec());
    for (key, shape) in [("0.weight", &[32, 64][..]), ("0.bias", &[32]), ("3.weight", &[5, 32]), ("3.bias", &[5])] {
        tensors.push((format!("linear.{key}"), zeros(shape)));
    }
    tensors.push(("projector.weight".to_string(), zeros(&[128, 64])));
    let weights = Weights::from_tensors("mlp.pth", tensors);
    let table = refused(&weights).to_string();
    for part in ["linear.0.weight", "linear.3.weight", "[5, 32]", "projector.weight", "`train finetune`"] {
        assert!(table.contains(part), "{part} is not in:\n{table}");
    }
    weights.load(network(3), ARCHITECTURE, Strictness::FreshHead).expect("the head is new");
}

#[test]
fn several_networks_are_never_chosen_in_silence() {
    let (first, second) = (drawn(&network(10), 1), drawn(&network(10), 2));
    let both = |one: &str, other: &str| {
        let tensors = [
            renamed(&first, |key| format!("{one}{key}")),
            renamed(&second, |key| format!("{other}{key}")),
            // The rest of a checkpoint.
            match one {
                "" => Vec::new(),
                _ => vec![("optimizer.state.0.exp_avg".to_string(), TensorData::zeros::<f32, _>([16, 3, 3, 3]))],
            },
        ];
        Weights::from_tensors("several.pth", tensors.concat())
    };
    // Documented: timm's and torchvision's.
    assert_same(ARCHITECTURE, &both("state_dict.", "state_dict_ema."), second.clone());
    assert_same(ARCHITECTURE, &both("model.", "model_ema.module."), second.clone());
    let raw = both("model.", "model_ema.module.").with_key(Some("model".to_string()));
    assert_same(ARCHITECTURE, &raw, first.clone());

    for (one, other) in [
        ("best.", "last."),
        ("student.", "teacher."),
        ("student.backbone.", "teacher.backbone."),
        ("state_dict.module.encoder_q.", "state_dict.module.encoder_k."),
        ("state_dict.", "best_state_dict."),
        ("", "ema."),
    ] {
        let error = refused(&both(one, other));
        assert!(matches!(error, Error::Ambiguous { .. }), "{error}");
        let shown = |prefix: &str| match prefix.replace("module.", "").trim_end_matches('.') {
            "" => ".".to_string(),
            key => key.to_string(),
        };
        let message = error.to_string();
        assert!(message.contains(&shown(one)) && message.contains(&shown(other)), "{message}");
        assert!(message.contains("--weights-key"), "{message}");
        assert!(both(one, other).config(ARCHITECTURE, &device()).is_err());
        for (prefix, expected) in [(one, &first), (other, &second)] {
            for key in [shown(prefix), prefix.trim_end_matches('.').to_string()] {
                let key = if key.is_empty() { ".".to_string() } else { key };
                assert_same(ARCHITECTURE, &both(one, other).with_key(Some(key)), expected.clone());
            }
        }
        let error = refused(&both(one, other).with_key(Some("ema_model".to_string()))).to_string();
        assert!(error.contains("names no single network"), "{error}");
    }
    // A part of the key is enough where it is the only one.
    let pair = both("state_dict.encoder_q.", "state_dict.encoder_k.");
    assert_same(ARCHITECTURE, &pair.with_key(Some("encoder_k".to_string())), second);
}

#[test]
fn an_encoder_without_a_head_is_fine_tuned() {
    let plain: Vec<_> = drawn(&network(10), 1).into_iter().filter(|(key, _)| !key.starts_with("linear.")).collect();
    let mut tensors = renamed(&plain, |key| format!("state_dict.module.encoder_q.{key}"));
    tensors.extend(renamed(&plain, |key| format!("state_dict.module.encoder_k.{key}")));
    tensors.push(("state_dict.module.queue".to_string(), TensorData::zeros::<f32, _>([128, 64])));
    let weights = Weights::from_tensors("moco.pth", tensors);
    assert!(matches!(refused(&weights), Error::Ambiguous { .. }));
    let weights = weights.with_key(Some("encoder_q".to_string()));
    weights.load(network(3), ARCHITECTURE, Strictness::FreshHead).expect("the head is new");
    let table = refused(&weights).to_string();
    assert!(table.contains("no classifier"), "{table}");
}

#[test]
fn a_projection_is_no_classifier() {
    for name in ["projector.0", "projection_head", "predictor", "contrastive_head"] {
        let tensors = renamed(&drawn(&network(10), 1), |key| key.replace("linear.", &format!("{name}.")));
        let weights = Weights::from_tensors("simclr.pth", tensors);
        assert!(refused(&weights).to_string().contains("no classifier"));
        weights.load(network(3), ARCHITECTURE, Strictness::FreshHead).expect("the head is new");
    }
}

#[test]
fn the_architecture_that_a_file_fits_is_named() {
    let weights = Weights::from_tensors("w.pth", drawn(&network(10), 1));
    let deeper = NetworkConfig::new(Architecture::ResNet32).init(&device());
    let error = weights.load(deeper, Architecture::ResNet32, Strictness::Exact).unwrap_err().to_string();
    assert!(error.contains("the file fits --arch resnet20"), "{error}");
    let other = NetworkConfig::new(Architecture::ResNet18).with_num_classes(5).init(&device());
    let weights = Weights::from_tensors("w.pth", drawn(&other, 1));
    let wrong = NetworkConfig::new(Architecture::ResNet34).init(&device());
    let error = weights.load(wrong, Architecture::ResNet34, Strictness::FreshHead).unwrap_err().to_string();
    assert!(error.contains("the file fits --arch resnet18"), "{error}");
}

#[test]
fn a_network_for_gray_images_is_explained() {
    let mut tensors = drawn(&network(10), 1);
    for (key, data) in &mut tensors {
        if key == "conv1.weight" {
            *data = TensorData::zeros::<f32, _>([16, 1, 3, 3]);
        }
    }
    let error = refused(&Weights::from_tensors("gray.pth", tensors)).to_string();
    assert!(error.contains("images of 1 channels"), "{error}");
}

#[test]
fn names_from_a_file_cannot_control_the_terminal() {
    let mut tensors = drawn(&network(10), 1);
    tensors.push(("\u{1b}[2J\u{1b}[31mfc\n.weight".to_string(), TensorData::zeros::<f32, _>([3])));
    let error = refused(&Weights::from_tensors("w.pth", tensors)).to_string();
    assert!(!error.contains('\u{1b}') && error.contains("\\u{1b}[2J"), "{error}");
}
