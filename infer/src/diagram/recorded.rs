//! Graphs of networks for the tests, each recorded once.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use burn::tensor::{Device, TensorData};
use models::{Architecture, NetworkConfig, graph::Graph};

/// One of each family, and what is peculiar: groups, depth, no shortcuts.
const NAMES: [&str; 12] = [
    "alexnet",
    "googlenet",
    "googlenet_2014",
    "inception_v3",
    "plain20",
    "resnet110",
    "resnet152",
    "resnet18",
    "resnet20",
    "resnet50",
    "resnext50_32x4d",
    "vgg16",
];

/// The graph of an architecture at its own size, without the values of its weights.
pub fn graph(name: &str) -> Graph {
    static GRAPHS: Mutex<Option<HashMap<String, Graph>>> = Mutex::new(None);
    let mut graphs = GRAPHS.lock().unwrap_or_else(PoisonError::into_inner);
    let graphs = graphs.get_or_insert_default();
    let record = || {
        let architecture: Architecture = name.parse().unwrap();
        let network = NetworkConfig::new(architecture).with_aux_logits(false).init(&Device::flex());
        let mut graph = Graph::of(architecture, &network, [architecture.default_size(); 2]).unwrap();
        graph.constants.values_mut().for_each(|constant| constant.data = TensorData::from([0f32]));
        graph
    };
    graphs.entry(name.to_string()).or_insert_with(record).clone()
}

pub fn names() -> Vec<String> {
    NAMES.map(String::from).to_vec()
}
