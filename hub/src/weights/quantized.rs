//! Quantized networks in safetensors: int8 weights with a scale for each output, and the program in the metadata.
//!
//! | tensor | type | shape |
//! |---|---|---|
//! | `layer1.0.conv1.weight` | I8, or F32 for a layer in f32 | torchvision's |
//! | `layer1.0.conv1.weight_scale` | F32, with I8 | `[out]` |
//! | `layer1.0.conv1.bias` | F32 | `[out]` |
//!
//! Batch normalization is folded. `hearth.quantized` is the program as JSON, `hearth.quantization` how it was found.

use std::{collections::HashMap, io, path::Path};

use burn::tensor::{DType, Device, TensorData};
use burn_store::bridge;
use models::{
    QuantizedNetwork,
    quantized::{Layer, Layers, Program, Weights as LayerWeights},
};
use safetensors::{Dtype, tensor::TensorView};

use super::{CARD, Weights, printable, sort_metadata};
use crate::{Card, Error, Result, files};

/// The key of the program in a file's metadata.
pub(super) const PROGRAM: &str = "hearth.quantized";
/// The key of the record of the quantization.
pub(super) const RECORD: &str = "hearth.quantization";

/// Writes a quantized network with its card, and the JSON text `record` of how it was quantized. Whole or not there, as
/// with [`save`](super::save).
///
/// # Errors
/// [`Error::Io`] where the file can't be written; what was there before stays.
pub fn save_quantized(network: &QuantizedNetwork, card: &Card, record: &str, path: impl AsRef<Path>) -> Result<()> {
    let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, layer) in network.layers() {
        let outputs = vec![layer.bias.len()];
        match &layer.weights {
            LayerWeights::Int8 { values, scales } => {
                let bytes = values.iter().map(|value| value.cast_unsigned()).collect();
                tensors.push((format!("{name}.weight"), Dtype::I8, layer.shape.clone(), bytes));
                tensors.push((format!("{name}.weight_scale"), Dtype::F32, outputs.clone(), floats(scales)));
            }
            LayerWeights::F32(values) => {
                tensors.push((format!("{name}.weight"), Dtype::F32, layer.shape.clone(), floats(values)));
            }
        }
        tensors.push((format!("{name}.bias"), Dtype::F32, outputs, floats(&layer.bias)));
    }
    let program = serde_json::to_string(network.program()).map_err(|error| Error::Io {
        action: "write",
        path: path.as_ref().to_path_buf(),
        source: error.into(),
    })?;
    let metadata = HashMap::from([
        ("format".to_string(), "pt".to_string()),
        (CARD.to_string(), card.to_json()),
        (PROGRAM.to_string(), program),
        (RECORD.to_string(), record.to_string()),
    ]);
    files::write_whole(path.as_ref(), |temporary| {
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes);
            view.map(|view| (name.as_str(), view)).map_err(io::Error::other)
        });
        let views = views.collect::<io::Result<Vec<_>>>()?;
        safetensors::serialize_to_file(views, Some(metadata), temporary).map_err(io::Error::other)?;
        sort_metadata(temporary)
    })
}

impl Weights {
    /// Whether the file has a quantized network.
    pub fn is_quantized(&self) -> bool {
        self.program.is_some()
    }

    /// Returns the JSON text of how the network was quantized.
    pub fn quantization_record(&self) -> Option<&str> {
        self.record.as_deref()
    }

    /// Reads the quantized network, or returns `None` for a file of floats.
    ///
    /// # Errors
    /// [`Error::Format`] where the file contradicts itself.
    pub fn quantized(&self, device: &Device) -> Result<Option<QuantizedNetwork>> {
        let Some(program) = &self.program else { return Ok(None) };
        let invalid = |cause: String| Error::Format { path: self.path.clone(), kind: "a quantized network", cause };
        let program: Program = serde_json::from_str(program).map_err(|error| invalid(error.to_string()))?;
        let mut layers = Layers::new();
        for name in program.steps.iter().filter_map(|step| step.operation.layer()) {
            let data = |suffix: &str| -> Result<Option<TensorData>> {
                let key = format!("{name}.{suffix}");
                let Some(tensor) = self.tensors.get(&key) else { return Ok(None) };
                bridge::to_data(tensor).map(Some).map_err(|error| invalid(error.to_string()))
            };
            let missing = |suffix: &str| invalid(format!("{}.{suffix} is missing", printable(name)));
            let floats = |suffix: &str| -> Result<Vec<f32>> {
                let data = data(suffix)?.ok_or_else(|| missing(suffix))?;
                data.try_into_vec::<f32>().map_err(|error| invalid(format!("{}.{suffix}: {error:?}", printable(name))))
            };
            let weight = data("weight")?.ok_or_else(|| missing("weight"))?;
            let shape = weight.shape().to_vec();
            let weights = match weight.dtype() {
                DType::I8 => {
                    let values = weight.try_into_vec::<i8>();
                    let values = values.map_err(|error| invalid(format!("{}.weight: {error:?}", printable(name))))?;
                    LayerWeights::Int8 { values, scales: floats("weight_scale")? }
                }
                _ => LayerWeights::F32(floats("weight")?),
            };
            if shape.is_empty() {
                return Err(invalid(format!("{}.weight is a single number", printable(name))));
            }
            layers.insert(name.to_string(), Layer { shape, weights, bias: floats("bias")? });
        }
        QuantizedNetwork::new(program, layers, device).map(Some).map_err(|error| invalid(error.to_string()))
    }
}
