//! `infer diagram`: draws a network.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use infer::diagram;
use models::{Architecture, Graph, ImageClassifier, NetworkConfig};
use runtime::{backend::BackendSpec, exit::ExitCode, files::write_atomic_bytes, outln, progress::Output};

use super::open_weights;
use crate::cli::DiagramArgs;

pub fn run(args: &DiagramArgs, output: Output) -> Result<ExitCode> {
    let device = BackendSpec::host()?.device()?;
    // The name of an architecture means the architecture, unless a file or run has that name.
    let named = args.network.parse::<Architecture>().ok().filter(|_| !Path::new(&args.network).exists());
    let (architecture, network, usual_size) = match named {
        Some(architecture) => {
            let network = NetworkConfig::new(architecture).with_aux_logits(false).init(&device);
            (architecture, network, [architecture.default_size(); 2])
        }
        None => {
            let opened = open_weights(&args.network, &args.load, &device, output)?;
            (opened.card.architecture, opened.network(false, &device)?, opened.card.preprocess.input_size)
        }
    };
    let (architecture, network) = match args.fold_batchnorm {
        true => (architecture.folded(), network.fold_batch_norm()),
        false => (architecture, network),
    };
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{architecture}.svg")));
    ensure!(!out.is_dir(), "{} is a folder; --out names a file", out.display());
    let graph = Graph::of(architecture, &network, args.size.unwrap_or(usual_size))?;
    write_atomic_bytes(&out, diagram::svg(architecture.name(), &graph).as_bytes())?;
    outln!("{architecture}: {}", out.display())?;
    Ok(ExitCode::Success)
}
