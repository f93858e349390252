//! The command `devices`: lists the devices of the compiled backends and the one that `auto` selects.

use std::io;

use burn::tensor::{Device, FloatDType};
use clap::ValueEnum;
use kernels::KernelMode;
use serde::Serialize;

use super::{Backend, BackendSpec, Selected, VARIABLE, args, auto, build_command, compiled, found, names, suggestion};
use crate::{Result, exit::ExitCode, output::StdoutError, units::human_bytes};

/// List the devices of the compiled backends, and which one `--backend auto` picks
///
/// Each device is opened, so the list also reports why one does not work.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct DevicesArgs {
    /// How the list is printed
    #[arg(long, value_enum, default_value_t)]
    pub format: ListFormat,
}

/// How the list of devices is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ListFormat {
    /// A table
    #[default]
    Text,
    /// One JSON object
    Json,
}

#[derive(Debug, Serialize)]
struct List {
    hearth: &'static str,
    system: String,
    compiled: Vec<&'static str>,
    backends: Vec<Listed>,
    auto: Outcome,
    /// The value of `HEARTH_BACKEND`, which replaces `auto`.
    environment: Option<String>,
}

/// A backend of this build.
#[derive(Debug, Serialize)]
struct Listed {
    backend: &'static str,
    devices: Vec<ListedDevice>,
    /// The reason if it lists no device.
    problem: Option<String>,
    /// A warning if kernels may fail on devices that open.
    warning: Option<String>,
}

#[derive(Debug, Default, Serialize)]
struct ListedDevice {
    /// As `--backend` accepts it.
    device: String,
    name: Option<String>,
    memory_bytes: Option<u64>,
    software: bool,
    /// The supported floating-point types.
    dtypes: Vec<&'static str>,
    /// The error of opening it.
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct Outcome {
    device: Option<String>,
    description: Option<String>,
    skipped: Vec<String>,
    problem: Option<String>,
}

/// Prints the devices of every compiled backend on standard output.
///
/// # Errors
/// Fails if standard output cannot be written.
pub fn devices(args: &DevicesArgs, kernels: KernelMode) -> Result<ExitCode> {
    let list = List {
        hearth: env!("CARGO_PKG_VERSION"),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        compiled: compiled().into_iter().map(Backend::name).collect(),
        backends: compiled().into_iter().map(|backend| listed(backend, kernels)).collect(),
        auto: outcome(auto(), kernels),
        environment: args::environment().filter(|value| !value.is_empty()),
    };
    match args.format {
        ListFormat::Json => crate::outln!("{}", json(&list)?)?,
        ListFormat::Text => crate::out!("{}", text(&list))?,
    }
    Ok(ExitCode::Success)
}

fn json(list: &List) -> Result<String> {
    Ok(serde_json::to_string_pretty(list).map_err(|error| StdoutError::from(io::Error::from(error)))?)
}

fn listed(backend: Backend, kernels: KernelMode) -> Listed {
    let specs: Vec<BackendSpec> = match backend.is_gpu() {
        true => found::devices(backend).into_iter().map(|found| found.spec).collect(),
        false => vec![backend.into()],
    };
    let problem = specs.is_empty().then(|| found::why_none(backend).to_string());
    let warning = if specs.is_empty() { None } else { found::missing_for_kernels(backend) };
    Listed {
        backend: backend.name(),
        devices: specs.into_iter().map(|spec| device(spec, kernels)).collect(),
        problem,
        warning,
    }
}

fn device(spec: BackendSpec, kernels: KernelMode) -> ListedDevice {
    let listed = ListedDevice { device: spec.to_string(), ..ListedDevice::default() };
    let device = match spec.try_open() {
        Ok(device) => device,
        Err(problem) => return ListedDevice { problem: Some(problem), ..listed },
    };
    match found::identity(&device) {
        Some(identity) => ListedDevice {
            name: Some(identity.name),
            memory_bytes: identity.memory,
            software: identity.is_software,
            dtypes: dtypes(&device),
            ..listed
        },
        None => ListedDevice { name: Some(auto::describe(spec, &device, kernels)), dtypes: dtypes(&device), ..listed },
    }
}

fn dtypes(device: &Device) -> Vec<&'static str> {
    let all = [(FloatDType::F32, "f32"), (FloatDType::BF16, "bf16"), (FloatDType::F16, "f16")];
    all.into_iter().filter(|&(dtype, _)| device.supports_dtype(dtype)).map(|(_, name)| name).collect()
}

fn outcome(selected: Result<Selected>, kernels: KernelMode) -> Outcome {
    match selected {
        Ok(selected) => Outcome {
            device: Some(selected.spec().to_string()),
            description: Some(selected.description(kernels)),
            skipped: selected.skipped().iter().map(ToString::to_string).collect(),
            problem: None,
        },
        Err(error) => {
            Outcome { device: None, description: None, skipped: Vec::new(), problem: Some(error.to_string()) }
        }
    }
}

fn text(list: &List) -> String {
    let mut text = format!("{:<18}  {:>10}  {:<14}  {}\n", "device", "memory", "types", "name");
    for Listed { backend, devices, problem, warning } in &list.backends {
        if let Some(problem) = problem {
            text += &format!("{backend:<18}  {:>10}  {:<14}  none: {problem}\n", "-", "-");
        }
        for device in devices {
            let memory = device.memory_bytes.map_or("-".to_string(), human_bytes);
            let name = match (&device.name, &device.problem) {
                (_, Some(problem)) => format!("does not open: {problem}"),
                (Some(name), None) if device.software => format!("{name} (a software adapter)"),
                (name, None) => name.clone().unwrap_or_default(),
            };
            text += &format!("{:<18}  {memory:>10}  {:<14}  {name}\n", device.device, device.dtypes.join(" "));
        }
        if let Some(warning) = warning {
            text += &format!("warning: {warning}\n");
        }
    }
    let Outcome { description, skipped, problem, .. } = &list.auto;
    text += &format!("\nauto: {}\n", description.as_ref().or(problem.as_ref()).map_or("", String::as_str));
    for skipped in skipped {
        text += &format!("  skipped {skipped}\n");
    }
    if let Some(value) = &list.environment {
        text += &format!("{VARIABLE}={value} takes the place of auto\n");
    }
    let absent: Vec<Backend> =
        Backend::ALL.into_iter().filter(|backend| !backend.is_compiled() && backend.is_supported_here()).collect();
    let compiled = &list.compiled;
    text += &format!("compiled: {}; not compiled: {}\n", compiled.join(", "), names(&absent));
    if !compiled.iter().any(|name| name.parse::<Backend>().is_ok_and(Backend::is_gpu)) {
        let first = if cfg!(target_os = "macos") { Backend::Metal } else { Backend::Vulkan };
        text += &format!(
            "no GPU backend is compiled in; build with one, {}: {} -- devices\n",
            suggestion(),
            build_command(first)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> List {
        let opened = ListedDevice {
            device: "cuda:0".into(),
            name: Some("NVIDIA H200".into()),
            memory_bytes: Some(139 << 30),
            dtypes: vec!["f32", "bf16"],
            ..ListedDevice::default()
        };
        let broken = ListedDevice { device: "cuda:1".into(), problem: Some("busy".into()), ..ListedDevice::default() };
        let none = Listed { backend: "vulkan", devices: vec![], problem: Some("no loader".into()), warning: None };
        List {
            hearth: "0.0.0",
            system: "linux x86_64".into(),
            compiled: vec!["cuda", "vulkan"],
            backends: vec![
                Listed { backend: "cuda", devices: vec![opened, broken], problem: None, warning: Some("look".into()) },
                none,
            ],
            auto: Outcome {
                device: Some("cuda:0".into()),
                description: Some("cuda:0 (NVIDIA H200)".into()),
                skipped: vec!["rocm: none".into()],
                problem: None,
            },
            environment: Some("flex".into()),
        }
    }

    #[test]
    fn the_table_has_devices_reasons_and_the_choice() {
        let text = text(&example());
        for part in [
            "cuda:0              139.00 GiB  f32 bf16        NVIDIA H200\n",
            "does not open: busy",
            "none: no loader",
            "warning: look",
            "auto: cuda:0 (NVIDIA H200)\n  skipped rocm: none\nHEARTH_BACKEND=flex",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("no GPU backend"), "{text}");
    }

    #[test]
    fn every_compiled_backend_is_listed_with_a_device_or_a_reason() {
        for backend in compiled() {
            let listed = listed(backend, KernelMode::Optimized);
            assert_eq!(listed.devices.is_empty(), listed.problem.is_some(), "{listed:?}");
            assert!(
                listed.devices.iter().all(|device| device.problem.is_some() || device.name.is_some()),
                "{listed:?}"
            );
        }
    }

    #[cfg(feature = "flex")]
    #[test]
    fn the_cpu_is_listed_with_what_its_kernels_use() {
        let flex = listed(Backend::Flex, KernelMode::Optimized);
        assert_eq!(flex.devices.len(), 1);
        assert!(flex.devices[0].name.as_ref().is_some_and(|name| name.starts_with("CPU (flex, ")), "{flex:?}");
        assert!(flex.devices[0].dtypes.contains(&"f32"));
    }
}
