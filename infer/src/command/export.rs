//! `infer export`: writes a network for other programs.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use hub::weights;
use infer::onnx;
use models::{Graph, ImageClassifier};
use runtime::{
    backend::BackendSpec,
    exit::ExitCode,
    files::write_atomic_bytes,
    noteln, outln,
    progress::{Output, thousands},
};

use super::open_weights;
use crate::cli::{ExportArgs, ExportFormat};

pub fn run(args: &ExportArgs, output: Output) -> Result<ExitCode> {
    let device = BackendSpec::host()?.device()?;
    let opened = open_weights(&args.weights, &args.load, &device, output)?;
    let mut card = opened.card.clone();
    let extension = match args.to {
        ExportFormat::Safetensors => "safetensors",
        ExportFormat::Burnpack => "bpk",
        ExportFormat::Onnx => "onnx",
    };
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{}.{extension}", card.architecture)));
    let shown = out.display();
    ensure!(!out.is_dir(), "{shown} is a folder; --out names a file");
    if out.exists() && !args.force {
        bail!("{shown} exists already; replace it with --force, or choose another --out");
    }
    if let Some(network) = opened.quantized(&device)? {
        ensure!(
            args.to == ExportFormat::Onnx,
            "the network is quantized: it is exported as ONNX alone; give the file that it was quantized from"
        );
        let [height, width] = network.program().input_size;
        ensure!(
            args.size.is_none_or(|size| size == [height, width]),
            "the network was quantized for images of {height} × {width} pixels; leave out --size"
        );
        write_atomic_bytes(&out, &onnx::encode_quantized(&network, &card)?)?;
        noteln!("input: float32 [batch, 3, {height}, {width}], normalized as the card says (metadata hearth.card)");
        noteln!("logits: float32 [batch, {}]; opset {}; QDQ int8", card.classes.len(), onnx::OPSET);
        let bytes = std::fs::metadata(&out).with_context(|| format!("cannot read the size of {shown}"))?.len();
        let parameters = thousands(network.num_parameters() as u64);
        outln!("{}, {parameters} parameters, {} bytes: {shown}", card.architecture, thousands(bytes))?;
        return Ok(ExitCode::Success);
    }
    // ONNX files are for inference; others keep the auxiliary classifiers, so that training can continue.
    let network = opened.network(args.to != ExportFormat::Onnx, &device)?;
    let network = match args.fold_batchnorm {
        true => {
            card.architecture = card.architecture.folded();
            network.fold_batch_norm()
        }
        false => network,
    };
    match args.to {
        ExportFormat::Safetensors => weights::save(&network, &card, &out)?,
        ExportFormat::Burnpack => weights::save_record(&network, &card, &out)?,
        ExportFormat::Onnx => {
            let size = args.size.unwrap_or(card.preprocess.input_size);
            let graph = Graph::of(card.architecture, &network, size)?;
            write_atomic_bytes(&out, &onnx::encode(&graph, &card)?)?;
            let [height, width] = size;
            noteln!("input: float32 [batch, 3, {height}, {width}], normalized as the card says (metadata hearth.card)");
            noteln!("logits: float32 [batch, {}]; opset {}", card.classes.len(), onnx::OPSET);
        }
    }
    let bytes = std::fs::metadata(&out).with_context(|| format!("cannot read the size of {shown}"))?.len();
    outln!(
        "{}, {} parameters, {} bytes: {shown}",
        card.architecture,
        thousands(network.num_parameters() as u64),
        thousands(bytes)
    )?;
    Ok(ExitCode::Success)
}
