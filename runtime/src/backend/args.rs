//! The flags that select backends, devices and kernels, the same in every binary.

use std::fmt;
use std::str::FromStr;

use super::{Backend, BackendSpec, ParseBackendError, Selected, auto};
use crate::{
    Error, Result,
    communicator::{Communicator, communicator},
};

/// The environment variable that replaces the default of `--backend`.
pub const VARIABLE: &str = "HEARTH_BACKEND";

/// The value of `--backend`: `auto`, or a backend and its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum BackendChoice {
    /// The first device that opens: see [`auto`].
    #[default]
    Auto,
    /// A named device.
    Named(BackendSpec),
}

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Named(spec) => spec.fmt(f),
        }
    }
}

impl FromStr for BackendChoice {
    type Err = ParseBackendError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.eq_ignore_ascii_case("auto") { Ok(Self::Auto) } else { text.parse().map(Self::Named) }
    }
}

impl BackendChoice {
    /// Returns the value of the flag, or else of the environment variable, or else the default.
    fn or_default(flag: Option<Self>, environment: Option<String>) -> Result<Self> {
        match (flag, environment.filter(|value| !value.is_empty())) {
            (Some(flag), _) => Ok(flag),
            (None, Some(value)) => {
                let invalid = |error: ParseBackendError| Error::Setting(format!("{VARIABLE}={value}: {error}"));
                value.parse().map_err(invalid)
            }
            (None, None) => Ok(Self::default()),
        }
    }

    /// Opens the device.
    ///
    /// # Errors
    /// Fails if it does not open; for `auto` also where several processes would all take the same GPU.
    fn select(self, world: &Communicator) -> Result<Selected> {
        match self {
            Self::Named(spec) => Selected::named(spec),
            Self::Auto => {
                // Decided from the build alone, so that it is the same on every host.
                let gpus = Backend::ALL.into_iter().any(|backend| backend.is_gpu() && backend.is_compiled());
                require_device_names(world.size(), gpus)?;
                auto()
            }
        }
    }
}

/// Refuses to choose among GPUs for several processes.
fn require_device_names(processes: usize, gpus: bool) -> Result<()> {
    if processes == 1 || !gpus {
        return Ok(());
    }
    Err(Error::Device(format!(
        "{processes} processes were started, and `--backend auto` would give all of a host the same GPU: name the GPUs of \
         a host, of which each process takes its part (`--devices cuda:0-7`), or the CPU (`--backend flex`)"
    )))
}

pub(super) fn environment() -> Option<String> {
    std::env::var(VARIABLE).ok()
}

/// The flag `--backend`, the same in every binary: put `#[command(flatten)] backend: BackendArgs` into its arguments.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct BackendArgs {
    /// The compute backend and its device [env: HEARTH_BACKEND] [default: auto]
    ///
    /// `auto` takes the first that opens among those that this binary was built with: cuda, rocm, metal, vulkan, wgpu
    /// (GPUs only, no software adapters), or else the CPU (flex). Backends are cargo features of the same names; there
    /// are also ndarray, webgpu and tch. DEVICE is the index of a GPU from 0 (`cuda:1`); the graphics backends also
    /// accept `integrated0`, `virtual0` and `cpu` (a software adapter). A device that is named must open. The command
    /// `devices` lists what there is.
    #[arg(long, value_name = "auto|NAME[:DEVICE]")]
    pub backend: Option<BackendChoice>,
}

impl BackendArgs {
    /// Opens the device.
    ///
    /// # Errors
    /// Fails if it does not open; for `auto` also where several processes would all take the same GPU.
    pub fn select(&self) -> Result<Selected> {
        BackendChoice::or_default(self.backend, environment())?.select(communicator())
    }
}

/// Opens the devices of a flag that may be repeated; the default's where it was not given.
///
/// # Errors
/// Fails if one of them does not open.
pub fn select_all(choices: &[BackendChoice]) -> Result<Vec<Selected>> {
    if choices.is_empty() {
        return Ok(vec![BackendArgs::default().select()?]);
    }
    choices.iter().map(|choice| choice.select(communicator())).collect()
}

/// Opens several named devices.
///
/// # Errors
/// Fails if one of them does not open.
pub fn select_named(devices: &[BackendSpec]) -> Result<Vec<Selected>> {
    devices.iter().map(|&spec| Selected::named(spec)).collect()
}

/// Which operations run on the CPU, for every command of a binary.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct KernelArgs {
    /// Select the operations that networks run on the backend `flex`: Hearth's optimized kernels, or Burn's own as the
    /// reference (also accepted: `fast`, `plain`)
    #[arg(
        long,
        global = true,
        value_name = "optimized|reference",
        env = "HEARTH_KERNELS",
        hide_env_values = true,
        default_value_t
    )]
    pub kernels: kernels::KernelMode,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_precedes_the_environment_which_precedes_auto() {
        let named = |text: &str| BackendChoice::Named(text.parse().unwrap());
        let choose = |flag, environment: Option<&str>| BackendChoice::or_default(flag, environment.map(String::from));
        assert_eq!(choose(Some(named("cuda:1")), Some("vulkan")).unwrap(), named("cuda:1"));
        assert_eq!(choose(Some(BackendChoice::Auto), Some("vulkan")).unwrap(), BackendChoice::Auto);
        assert_eq!(choose(None, Some("vulkan")).unwrap(), named("vulkan"));
        assert_eq!(choose(None, Some("AUTO")).unwrap(), BackendChoice::Auto);
        for unset in [None, Some("")] {
            assert_eq!(choose(None, unset).unwrap(), BackendChoice::Auto);
        }
        let error = format!("{:#}", choose(None, Some("vulcan")).unwrap_err());
        assert!(error.contains("HEARTH_BACKEND=vulcan") && error.contains("did you mean `vulkan`"), "{error}");
    }

    #[test]
    fn choices_print_as_they_parse() {
        for text in ["auto", "flex", "cuda:1", "vulkan:cpu"] {
            assert_eq!(text.parse::<BackendChoice>().map(|choice| choice.to_string()), Ok(text.to_string()));
        }
    }

    #[test]
    fn several_processes_must_name_their_gpus() {
        let error = require_device_names(4, true).unwrap_err().to_string();
        assert!(error.contains("--devices cuda:0-7") && error.contains("--backend flex"), "{error}");
        assert!(require_device_names(1, true).is_ok() && require_device_names(4, false).is_ok());
    }
}
