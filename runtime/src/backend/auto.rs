//! `--backend auto`, and the description of the selected device.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;

use burn::tensor::Device;
use kernels::KernelMode;
use serde_json::{Value, json};

use super::{Backend, BackendSpec, found};
use crate::{Error, Result};

/// Backends in the order in which [`auto`] tries them. WebGPU is not among them: a native program cannot open it.
const ORDER: [Backend; 8] = [
    Backend::Cuda,
    Backend::Rocm,
    Backend::Metal,
    Backend::Vulkan,
    Backend::Wgpu,
    Backend::Flex,
    Backend::NdArray,
    Backend::Tch,
];

/// A device that was chosen and opened.
#[derive(Debug, Clone)]
pub struct Selected {
    spec: BackendSpec,
    device: Device,
    skipped: Vec<Skipped>,
}

/// A compiled GPU backend that [`auto`] did not choose, though it comes before the one that was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The backend.
    pub backend: Backend,
    /// The error of opening its device.
    pub reason: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.backend, self.reason)
    }
}

impl Selected {
    /// Opens the device that was named.
    pub(super) fn named(spec: BackendSpec) -> Result<Self> {
        let device = spec.device()?;
        Ok(Self { spec: spec.canonical(), device, skipped: Vec::new() })
    }

    /// The backend and its device, as the command line names them.
    pub fn spec(&self) -> BackendSpec {
        self.spec
    }

    /// The device, without autodiff.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The GPU backends that come before it and did not open.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// Returns a description of the device, with the operations that are to run on it: `cuda:0 (NVIDIA H200)`, `CPU (flex,
    /// AVX-512, 2 threads)`.
    pub fn description(&self, kernels: KernelMode) -> String {
        describe(self.spec, &self.device, kernels)
    }

    /// Returns a warning if kernels may fail although the device opened, with the remedy.
    pub fn warning(&self) -> Option<String> {
        found::missing_for_kernels(self.spec.backend())
    }
}

/// Returns the first device that opens among those of the compiled backends: CUDA's, ROCm's, Metal's, Vulkan's or
/// wgpu's if it is a GPU and no software adapter, or else the CPU. The search is done once per process.
///
/// # Errors
/// Fails if the build has no CPU backend, and no GPU was found.
pub fn auto() -> Result<Selected> {
    static AUTO: OnceLock<Result<Selected, String>> = OnceLock::new();
    let selected = AUTO.get_or_init(|| {
        let compiled = ORDER.into_iter().filter(|backend| backend.is_compiled());
        let (opened, skipped) = first_that_opens(compiled, open);
        match opened {
            Some((spec, device)) => Ok(Selected { spec, device, skipped }),
            None => Err(format!(
                "no device opens ({}); build with a CPU backend too: `--features flex`",
                sentence(&skipped).unwrap_or_else(|| "no backend is compiled in".to_string())
            )),
        }
    });
    selected.clone().map_err(Error::Device)
}

/// Returns the first of `backends` that `open` opens, and the errors of those before it.
fn first_that_opens<T>(
    backends: impl IntoIterator<Item = Backend>,
    mut open: impl FnMut(Backend) -> Result<T, String>,
) -> (Option<T>, Vec<Skipped>) {
    let mut skipped = Vec::new();
    for backend in backends {
        match open(backend) {
            Ok(opened) => return (Some(opened), skipped),
            Err(reason) => skipped.push(Skipped { backend, reason }),
        }
    }
    (None, skipped)
}

/// Opens a backend's best device unless it is a software adapter.
fn open(backend: Backend) -> Result<(BackendSpec, Device), String> {
    let spec = choose(backend, &found::devices(backend))?;
    let device = spec.try_open()?;
    // `CUBECL_WGPU_DEFAULT_DEVICE` can name another adapter than the best.
    match found::identity(&device) {
        Some(identity) if identity.is_software => Err(format!("{} is a software adapter", identity.name)),
        _ => Ok((spec, device)),
    }
}

/// Selects the device of a backend among those that it lists.
fn choose(backend: Backend, found: &[found::Found]) -> Result<BackendSpec, String> {
    if !backend.is_gpu() {
        return Ok(backend.into());
    }
    if found.is_empty() {
        return Err(found::why_none(backend).to_string());
    }
    if found.iter().all(|found| found.is_software) {
        return Err(format!("only a software adapter was found (`--backend {backend}:cpu` uses it)"));
    }
    // Graphics backends know themselves which adapter is the best.
    Ok(BackendSpec::from(backend).canonical())
}

/// Describes a device.
pub(super) fn describe(spec: BackendSpec, device: &Device, kernels: KernelMode) -> String {
    match spec.backend() {
        Backend::Flex => {
            let instructions = match kernels {
                KernelMode::Optimized => kernels::instruction_set(),
                KernelMode::Reference => "Burn's operations",
            };
            let threads = kernels::num_threads();
            format!("CPU (flex, {instructions}, {threads} {})", if threads == 1 { "thread" } else { "threads" })
        }
        Backend::NdArray => "CPU (ndarray)".to_string(),
        Backend::Tch => format!("{spec} (LibTorch)"),
        _ => {
            let spec = spec.canonical();
            match found::identity(device) {
                Some(identity) if identity.is_software => format!("{spec} ({}, a software adapter)", identity.name),
                Some(identity) => format!("{spec} ({})", identity.name),
                None => spec.to_string(),
            }
        }
    }
}

/// Summarizes why GPU backends were skipped.
fn sentence(skipped: &[Skipped]) -> Option<String> {
    let reasons: Vec<_> = skipped.iter().map(ToString::to_string).collect();
    (!reasons.is_empty()).then(|| format!("no GPU was found: {}", reasons.join("; ")))
}

/// Returns the first line of a program's output: the devices that it computes on and the operations that it runs there.
///
/// `device: cuda:0 (NVIDIA H200)`, `device: CPU (flex, AVX-512, 2 threads); no GPU was found: vulkan: …`
pub fn device_line(selected: &[Selected], kernels: KernelMode) -> String {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    let descriptions: Vec<String> = selected.iter().map(|selected| selected.description(kernels)).collect();
    for description in &descriptions {
        let first = descriptions.iter().position(|other| other == description).unwrap_or_default();
        *counts.entry(first).or_default() += 1;
    }
    let devices: Vec<String> = counts
        .into_iter()
        .map(|(first, count)| match count {
            1 => descriptions[first].clone(),
            _ => format!("{count} × {}", descriptions[first]),
        })
        .collect();
    let (first, label) = (selected.first(), if selected.len() > 1 { "devices" } else { "device" });
    let reasons = match first {
        Some(first) if first.spec.backend().is_gpu() => {
            let skipped: Vec<_> = first.skipped.iter().map(ToString::to_string).collect();
            (!skipped.is_empty()).then(|| format!("skipped {}", skipped.join("; ")))
        }
        Some(first) => sentence(&first.skipped),
        None => None,
    };
    format!("{label}: {}{}", devices.join(", "), reasons.map_or(String::new(), |reasons| format!("; {reasons}")))
}

/// Returns [`device_line`] as a JSON object with the event `device`.
pub fn device_json(selected: &[Selected], kernels: KernelMode) -> Value {
    let device = |selected: &Selected| {
        json!({
            "backend": selected.spec.backend().name(), "device": selected.spec.to_string(),
            "description": selected.description(kernels),
            "skipped": selected.skipped.iter().map(|skipped| {
                json!({ "backend": skipped.backend.name(), "reason": skipped.reason })
            }).collect::<Vec<_>>(),
            "warning": selected.warning(),
        })
    };
    json!({ "event": "device", "devices": selected.iter().map(device).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{compiled, found::Found};

    /// Devices that open, and the errors of the others.
    fn run(compiled: &[Backend], opens: &[Backend]) -> (Option<Backend>, Vec<String>) {
        let mut asked = Vec::new();
        let (opened, skipped) =
            first_that_opens(ORDER.into_iter().filter(|backend| compiled.contains(backend)), |backend| {
                asked.push(backend);
                if opens.contains(&backend) { Ok(backend) } else { Err(format!("no driver of {backend}")) }
            });
        assert_eq!(asked.len(), skipped.len() + usize::from(opened.is_some()), "none is opened after the first");
        (opened, skipped.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_first_backend_that_opens_is_chosen_in_the_documented_order() {
        use Backend::{Cuda, Flex, Metal, NdArray, Rocm, Vulkan, WebGpu, Wgpu};
        let all = Backend::ALL;
        let gpus = [Cuda, Rocm, Metal, Vulkan, Wgpu];
        for (index, expected) in gpus.into_iter().enumerate() {
            let (opened, skipped) = run(&all, &gpus[index..]);
            assert_eq!((opened, skipped.len()), (Some(expected), index));
        }
        assert_eq!(run(&[Flex, Vulkan, Wgpu], &[Flex, Wgpu]).0, Some(Wgpu));
        assert_eq!(run(&[Flex, NdArray], &[Flex, NdArray]), (Some(Flex), vec![]));
        // A browser's backend is never tried.
        assert_eq!(run(&[Flex, WebGpu], &[Flex, WebGpu]), (Some(Flex), vec![]));
    }

    #[test]
    fn without_a_gpu_the_cpu_is_chosen_and_every_reason_is_kept() {
        use Backend::{Cuda, Flex, Vulkan};
        let (opened, skipped) = run(&[Flex, Cuda, Vulkan], &[Flex]);
        assert_eq!(opened, Some(Flex));
        assert_eq!(skipped, ["cuda: no driver of cuda", "vulkan: no driver of vulkan"]);
        assert_eq!(run(&[Cuda], &[]), (None, vec!["cuda: no driver of cuda".to_string()]));
    }

    #[test]
    fn software_adapters_are_never_chosen() {
        let cpu = Found { spec: "vulkan:cpu".parse().unwrap(), is_software: true };
        let integrated = Found { spec: "vulkan:integrated0".parse().unwrap(), is_software: false };
        let refused = choose(Backend::Vulkan, &[cpu]).unwrap_err();
        assert!(refused.contains("only a software adapter") && refused.contains("vulkan:cpu"), "{refused}");
        assert!(choose(Backend::Vulkan, &[]).is_err());
        assert_eq!(choose(Backend::Vulkan, &[cpu, integrated]), Ok(Backend::Vulkan.into()));
        let gpu = Found { spec: "cuda:0".parse().unwrap(), is_software: false };
        assert_eq!(choose(Backend::Cuda, &[gpu]).map(|spec| spec.to_string()), Ok("cuda:0".to_string()));
        assert_eq!(choose(Backend::Flex, &[]), Ok(Backend::Flex.into()));
    }

    #[cfg(feature = "flex")]
    #[test]
    fn the_line_names_the_device_and_why_there_is_no_gpu() {
        let flex = Selected::named(Backend::Flex.into()).expect("the CPU opens");
        let threads = kernels::num_threads();
        let line = device_line(std::slice::from_ref(&flex), KernelMode::Optimized);
        assert!(line.starts_with("device: CPU (flex, ") && line.contains(&format!(", {threads} thread")), "{line}");
        assert!(line.ends_with(')'), "{line}");
        let reason = Skipped { backend: Backend::Vulkan, reason: "no adapter".into() };
        let fallback = Selected { skipped: vec![reason], ..flex.clone() };
        let line = device_line(std::slice::from_ref(&fallback), KernelMode::Optimized);
        assert!(line.ends_with("); no GPU was found: vulkan: no adapter"), "{line}");
        assert!(flex.description(KernelMode::Reference).starts_with("CPU (flex, Burn's operations, "));
        assert!(device_line(&[flex.clone(), flex], KernelMode::Optimized).starts_with("devices: 2 × CPU (flex, "));
        let json = device_json(&[fallback], KernelMode::Optimized);
        assert_eq!(json["devices"][0]["skipped"][0]["reason"], "no adapter");
        assert_eq!(json["devices"][0]["device"], "flex");
    }

    #[cfg(feature = "flex")]
    #[test]
    fn a_build_with_flex_always_finds_a_device() {
        let selected = auto().expect("flex opens");
        assert!(compiled().contains(&selected.spec().backend()));
        // Every GPU backend before it has its reason.
        let before = ORDER.into_iter().take_while(|backend| *backend != selected.spec().backend());
        let skipped: Vec<_> = selected.skipped().iter().map(|skipped| skipped.backend).collect();
        assert_eq!(skipped, before.filter(|backend| backend.is_compiled()).collect::<Vec<_>>());
        let identity = found::identity(selected.device());
        assert!(identity.is_none_or(|identity| !identity.is_software));
    }
}
