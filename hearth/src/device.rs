//! Choosing the device that computes.

use std::{fmt, str::FromStr};

use burn::tensor::Device;
use runtime::backend::{self, Backend, BackendSpec};

use crate::error::{Error, Result, cause};

/// The name of a device: a backend, and which of its devices.
///
/// The default is the CPU. Other backends are cargo features of the same names.
///
/// ```
/// use hearth::DeviceSpec;
///
/// assert_eq!(DeviceSpec::default(), DeviceSpec::cpu());
/// let gpu: DeviceSpec = "cuda:1".parse()?;
/// assert_eq!(gpu.to_string(), "cuda:1");
/// # Ok::<(), hearth::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceSpec(BackendSpec);

impl Default for DeviceSpec {
    fn default() -> Self {
        Self::cpu()
    }
}

impl DeviceSpec {
    /// Returns the CPU.
    pub fn cpu() -> Self {
        let cpu = [Backend::Flex, Backend::NdArray, Backend::Tch].into_iter().find(|backend| backend.is_compiled());
        Self(cpu.unwrap_or(Backend::Flex).into())
    }

    /// Returns the first GPU that opens among those of the compiled backends, or else the CPU.
    ///
    /// # Errors
    /// Fails if no device opens.
    pub fn auto() -> Result<Self> {
        let selected = backend::auto().map_err(|error| Error::Device { device: "auto".into(), cause: cause(error) })?;
        Ok(Self(selected.spec()))
    }

    /// Opens the device, for work with Burn's tensors. It has no autodiff.
    ///
    /// # Errors
    /// Fails if the backend is not compiled in, or if there is no such device.
    pub fn open(&self) -> Result<Device> {
        let name = self.0.backend();
        let failed = |cause| Error::Device { device: self.to_string(), cause };
        if !name.is_compiled() {
            let compiled: Vec<_> = backend::compiled().iter().map(ToString::to_string).collect();
            return Err(failed(format!(
                "the backend is not compiled in (compiled: {}); enable the feature `{name}` of hearth-vision",
                compiled.join(", ")
            )));
        }
        self.0.device().map_err(|error| failed(cause(error)))
    }

    pub(crate) fn backend(&self) -> BackendSpec {
        self.0
    }
}

impl FromStr for DeviceSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.parse()
            .map(Self)
            .map_err(|error: backend::ParseBackendError| Error::Device { device: text.into(), cause: cause(error) })
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
