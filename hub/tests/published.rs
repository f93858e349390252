//! Facts of published weights against the networks.

use burn::tensor::Device;
use models::{Architecture, ImageClassifier, NetworkConfig, Summary};

#[test]
fn parameters_and_multiply_adds_are_those_torchvision_publishes() {
    let device = Device::flex();
    let small = [Architecture::AlexNet, Architecture::GoogLeNet, Architecture::ResNet18, Architecture::ResNeXt50];
    for architecture in small {
        let entry = hub::published().iter().find(|entry| entry.architecture == architecture).unwrap();
        let network = NetworkConfig::new(architecture).with_aux_logits(false).init(&device);
        let summary = Summary::of(architecture, &network, [224, 224], &device).unwrap();
        let gmacs = summary.multiply_adds() as f64 / 1e9;
        assert!((gmacs - entry.gmacs.unwrap()).abs() < 0.0006, "{architecture}: {gmacs}, {:?}", entry.gmacs);
        assert_eq!(Some(summary.parameters() as u64), entry.num_params, "{architecture}");
        assert_eq!(summary.parameters(), network.num_parameters());
    }
}
