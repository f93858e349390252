//! A network with drawn weights, for tests.

use burn::tensor::{Device, TensorData};
use datasets::SampleRng;
use hub::{Strictness, Weights};
use models::{Architecture, Entry, ImageClassifier, Network, NetworkConfig};

/// A network with Kaiming-initialized weights, and norms and statistics like a trained network's: activations neither
/// grow nor vanish with depth, so that differences show wrong operations and not the draw.
pub fn network(architecture: Architecture, transform_input: bool) -> Network {
    let device = Device::flex();
    let config = NetworkConfig::new(architecture).with_num_classes(10).with_aux_logits(false);
    let network = config.with_transform_input(transform_input).init(&device);
    let draw = |(index, entry): (usize, Entry)| {
        let (low, high) = match entry.shape[..] {
            [_, ref inputs @ ..] if !inputs.is_empty() => {
                let bound = (6.0 / inputs.iter().product::<usize>() as f64).sqrt();
                (-bound, bound)
            }
            _ if entry.key.ends_with(".running_var") || entry.key.ends_with(".weight") => (0.5, 1.5),
            _ => (-0.1, 0.1),
        };
        let mut rng = SampleRng::new(11, 0, index as u64);
        let values: Vec<f32> = (0..entry.len()).map(|_| rng.uniform(low, high) as f32).collect();
        (entry.key, TensorData::new(values, entry.shape))
    };
    let weights = Weights::from_tensors("drawn", network.entries().into_iter().enumerate().map(draw));
    weights.load(network, architecture, Strictness::Exact).unwrap().0
}
