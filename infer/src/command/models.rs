//! `infer models`: lists the architectures and their published weights.

use anyhow::Result;
use models::{Architecture, ImageClassifier, NetworkConfig};
use runtime::{backend::BackendSpec, exit::ExitCode, out, progress::thousands};
use serde::Serialize;

use super::print_json;
use crate::cli::{Format, ModelsArgs};

#[derive(Debug, Serialize)]
struct Listed {
    architecture: Architecture,
    /// The number of parameters without auxiliary classifiers.
    parameters: usize,
    classes: usize,
    /// The default input height and width in pixels.
    input_size: [usize; 2],
    published: Vec<PublishedWeights>,
}

#[derive(Debug, Serialize)]
struct PublishedWeights {
    /// The name that `--weights` accepts.
    name: String,
    /// Whether the architecture's name alone refers to these weights.
    default: bool,
    /// Top-1 accuracy on ImageNet's validation images in percent, as published.
    acc1: Option<f64>,
    acc5: Option<f64>,
    /// Whether there is no trained classifier.
    features_only: bool,
    url: String,
    notes: Vec<String>,
}

pub fn run(args: &ModelsArgs) -> Result<ExitCode> {
    // No network runs; parameters are only counted.
    let device = BackendSpec::host()?.device()?;
    let listed = |&architecture: &Architecture| Listed {
        architecture,
        parameters: NetworkConfig::new(architecture).with_aux_logits(false).init(&device).num_parameters(),
        classes: architecture.default_classes(),
        input_size: [architecture.default_size(); 2],
        published: hub::published().iter().filter(|entry| entry.architecture == architecture).map(weights).collect(),
    };
    let list: Vec<Listed> = Architecture::ALL.iter().map(listed).collect();
    match args.format {
        Format::Json => print_json(&list)?,
        Format::Text => {
            out!("{}", text(&list))?;
            log::info!(
                "`--weights resnet50` takes the first of a row, `--weights resnet50.IMAGENET1K_V1` the one named"
            );
        }
    }
    Ok(ExitCode::Success)
}

fn weights(entry: &hub::Published) -> PublishedWeights {
    PublishedWeights {
        name: entry.name(),
        default: entry.default,
        acc1: entry.acc1,
        acc5: entry.acc5,
        features_only: entry.features_only,
        url: entry.url.clone(),
        notes: entry.notes.clone(),
    }
}

fn text(list: &[Listed]) -> String {
    let mut text =
        format!("{:<18}{:>12}{:>7}  {}\n", "architecture", "parameters", "input", "published weights (top-1 %)");
    for Listed { architecture, parameters, input_size: [size, _], published, .. } in list {
        // The default first, which the architecture's name alone refers to.
        let mut published: Vec<_> = published.iter().collect();
        published.sort_by_key(|weights| !weights.default);
        let weights = |weights: &&PublishedWeights| {
            let name = weights.name.split_once('.').map_or(weights.name.as_str(), |(_, version)| version);
            match (weights.features_only, weights.acc1) {
                (true, _) => format!("{name} (features only)"),
                (false, Some(acc1)) => format!("{name} ({acc1:.1})"),
                (false, None) => name.to_string(),
            }
        };
        let published: Vec<String> = published.iter().map(weights).collect();
        let published = if published.is_empty() { "-".to_string() } else { published.join(", ") };
        text += &format!("{architecture:<18}{:>12}{size:>7}  {published}\n", thousands(*parameters as u64));
    }
    text
}
