//! `infer serve`: serves a network over HTTP.

use std::sync::{Arc, atomic::AtomicBool};

use anyhow::{Result, ensure};
use datasets::{DecodeError, DecodeOptions};
use image::RgbImage;
use infer::{
    Model,
    explain::{Explainer, Method},
    picture,
};
use kernels::KernelMode;
use runtime::{exit::ExitCode, noteln, outln, progress::Output};
use serde_json::json;
use serve::{Engine, EngineError, Explanation, Options, RejectReason};

use super::{open_weights, png, select, with_dtype};
use crate::cli::ServeArgs;

/// A model as the server's engine.
struct Served {
    model: Model,
    backend: String,
}

impl Engine for Served {
    fn decoded_bytes(&self, bytes: &[u8]) -> Result<u64, RejectReason> {
        let header = datasets::probe(bytes).map_err(reject)?;
        let max_pixels = self.model.preprocess().options().limits.max_pixels;
        let (width, height) = (header.width, header.height);
        if u64::from(width) * u64::from(height) > max_pixels {
            return Err(reject(DecodeError::TooManyPixels { width, height, max_pixels }));
        }
        Ok(header.decoded_bytes())
    }

    fn prepare(&self, bytes: &[u8], cancel: &Arc<AtomicBool>) -> Result<RgbImage, RejectReason> {
        let preprocess = self.model.preprocess();
        let options = DecodeOptions { cancel: Some(Arc::clone(cancel)), ..preprocess.options().clone() };
        Ok(preprocess.decode_with(bytes, &options).map_err(reject)?.image)
    }

    fn classify(&self, images: &[RgbImage]) -> Result<Vec<Vec<f64>>, EngineError> {
        Ok(self.model.probabilities(&self.model.preprocess().batch(&images.iter().collect::<Vec<_>>()))?)
    }

    fn explain(&self, image: &RgbImage, class: Option<usize>) -> Result<Explanation, EngineError> {
        let probabilities = self.classify(std::slice::from_ref(image))?.remove(0);
        let best = || (0..probabilities.len()).max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]));
        let class = class.or_else(best).unwrap_or_default();
        let heat = Explainer::new(&self.model, Method::GradCam, None, 1)?.explain(image, &[class])?.remove(0);
        Ok(Explanation { class, probability: probabilities[class], png: png(&picture::overlay(image, &heat))? })
    }

    fn classes(&self) -> &[String] {
        &self.model.card().classes
    }

    fn blank(&self) -> RgbImage {
        let [height, width] = self.model.preprocess().input_size().map(|side| side as u32);
        RgbImage::new(width, height)
    }

    fn name(&self) -> String {
        self.model.card().architecture.to_string()
    }

    fn model(&self) -> serde_json::Value {
        let mut card = self.model.card().clone();
        card.origin = without_folders(&card.origin);
        json!({
            "name": self.name(),
            "parameters": self.model.num_parameters(),
            "backend": self.backend,
            "hearth": env!("CARGO_PKG_VERSION"),
            "card": card,
        })
    }
}

/// Shortens a path in a card's origin to its file name: clients have no use for the folders of this machine.
fn without_folders(origin: &str) -> String {
    if origin.contains("://") {
        return origin.to_string();
    }
    let Some(separator) = origin.find(['/', '\\']) else { return origin.to_string() };
    let start = origin[..separator].rfind(' ').map_or(0, |space| space + 1);
    let name = origin[start..].trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default();
    format!("{}{name}", &origin[..start])
}

fn reject(error: DecodeError) -> RejectReason {
    let message = error.to_string();
    match error {
        DecodeError::UnknownFormat { .. } | DecodeError::Foreign { .. } | DecodeError::Unsupported { .. } => {
            RejectReason::Unsupported(message)
        }
        DecodeError::TooManyPixels { .. } | DecodeError::TooManyBytes { .. } | DecodeError::TooMuchWork { .. } => {
            RejectReason::TooLarge(message)
        }
        _ => RejectReason::Damaged(message),
    }
}

pub fn run(args: &ServeArgs, kernels: KernelMode, output: Output) -> Result<ExitCode> {
    ensure!(args.token.as_deref() != Some(""), "the token is empty; omit it, or give one");
    ensure!(
        args.addr.ip().is_loopback() || args.token.is_some() || args.insecure,
        "{} can be reached from other machines, and no token is required; set HEARTH_TOKEN, or allow it with --insecure",
        args.addr.ip()
    );
    for origin in &args.cors_origins {
        serve::check_origin(origin)?;
    }
    let selected = select(&args.run.backend, kernels)?;
    let device = selected.device().clone();
    let mut opened = open_weights(&args.weights, &args.load, &device, output)?;
    args.decoding.override_card(&mut opened.card);
    let model = with_dtype(Model::load(&opened, args.run.keep_batchnorm, &device)?, args.run.dtype)?;
    let model = model.with_max_pixels(args.decoding.max_pixels).with_kernels(kernels);
    let defaults = Options::default();
    let options = Options {
        addr: args.addr,
        max_batch: args.batch_size as usize,
        max_wait: args.max_wait,
        max_images: args.max_images as usize,
        max_body: args.max_body as usize,
        max_bodies: defaults.max_bodies.max(args.max_body as usize),
        max_images_per_request: args.max_images_per_request as usize,
        request_timeout: args.timeout,
        max_connections: args.max_connections as usize,
        rate_limit: args.rate_limit,
        token: args.token.clone(),
        cors_origins: args.cors_origins.clone(),
        allowed_hosts: args.allowed_hosts.clone(),
        workers: args.workers.unwrap_or(defaults.workers),
        max_decoding: args.max_decoding as usize,
        ..defaults
    };
    if !args.addr.ip().is_loopback() && args.token.is_none() {
        log::warn!("{} can be reached from other machines, and no token is required", args.addr.ip());
    }
    let served = Served { model, backend: selected.spec().to_string() };
    let name = served.name();
    serve::run(Arc::new(served), options, |addr| {
        // A server answers whether or not somebody reads its output.
        if let Err(error) = outln!("serving {name}: http://{addr}") {
            log::warn!("{:#}", anyhow::Error::from(error));
        }
    })?;
    noteln!("stopped");
    Ok(ExitCode::Success)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_served_without_local_folders() {
        for (origin, served) in [
            ("/home/ada/My photos/w.pth", "w.pth"),
            ("trained by Hearth, run a, from /home/My photos/run-1/", "trained by Hearth, run a, from run-1"),
            ("trained by Hearth, run a, from C:\\w.pth", "trained by Hearth, run a, from w.pth"),
            ("resnet50 (https://example.org/a/b.pth)", "resnet50 (https://example.org/a/b.pth)"),
            ("trained by Hearth, run a", "trained by Hearth, run a"),
        ] {
            assert_eq!(without_folders(origin), served);
        }
    }
}
