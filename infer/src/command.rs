//! The commands, one module each, and what they share.

pub mod bench;
pub mod card;
pub mod classify;
pub mod diagram;
pub mod evaluate;
pub mod explain;
pub mod export;
pub mod models;
pub mod quantize;
#[cfg(feature = "serve")]
pub mod serve;
pub mod summary;
pub mod verify;

use std::process::ExitStatus;

use anyhow::{Context, Result};
use burn::tensor::Device;
use hub::Opened;
use infer::Model;
use kernels::KernelMode;
use runtime::{
    backend::{self, BackendArgs, Selected},
    communicator::communicator,
    outln,
    progress::{Download, Output},
};
use serde::Serialize;

use crate::cli::{Dtype, LoadArgs};

/// Opens the weights that `--weights` names, with the progress of a download shown on `output`.
fn open_weights(name: &str, args: &LoadArgs, device: &Device, output: Output) -> Result<Opened> {
    let mut download = Download::new(output);
    let opened = hub::open_with_progress(name, &args.options(), device, &mut |published, progress| {
        download.report(published.file(), progress.done, progress.total, progress.resumed);
    })?;
    download.finish();
    Ok(opened)
}

/// Opens the device of `--backend` and logs which it is.
fn select(args: &BackendArgs, kernels: KernelMode) -> Result<Selected> {
    let selected = args.select()?;
    announce(std::slice::from_ref(&selected), kernels);
    Ok(selected)
}

/// Logs which devices compute, once for all processes.
fn announce(selected: &[Selected], kernels: KernelMode) {
    if !communicator().is_root() {
        return;
    }
    log::info!("{}", backend::device_line(selected, kernels));
    if let Some(warning) = selected.first().and_then(Selected::warning) {
        log::warn!("{warning}");
    }
}

/// Has a network compute in the type of `--dtype`; `auto` leaves int8 as it is.
fn with_dtype(model: Model, dtype: Dtype) -> Result<Model> {
    if dtype == Dtype::Auto && model.is_quantized() {
        return Ok(model);
    }
    let dtype = dtype.compute_dtype(model.device());
    Ok(model.with_dtype(dtype)?)
}

/// Prints a result as indented JSON to standard output.
fn print_json(value: &impl Serialize) -> Result<()> {
    outln!("{}", serde_json::to_string_pretty(value).context("cannot write JSON")?)?;
    Ok(())
}

/// Returns why a child process failed: its last error line, or its exit status.
fn failure_reason(stderr: &str, status: ExitStatus) -> String {
    match stderr.lines().rev().find_map(|line| line.strip_prefix("error: ")) {
        Some(error) => error.trim().to_string(),
        None => format!("the child process ended with {status}"),
    }
}

/// Encodes a picture as PNG.
fn png(picture: &image::RgbImage) -> Result<Vec<u8>> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).context("cannot encode a picture")?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_came_to_no_end_has_its_reason() {
        use std::os::unix::process::ExitStatusExt;
        let killed = ExitStatus::from_raw(9);
        assert_eq!(
            failure_reason("a note\nerror: no adapter: none found\nanother note\n", killed),
            "no adapter: none found"
        );
        assert!(failure_reason("", killed).contains("signal: 9"), "{}", failure_reason("", killed));
    }
}
