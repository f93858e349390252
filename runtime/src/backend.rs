//! The compute backend: which ones this binary was compiled with, and how `--backend NAME[:DEVICE]` becomes a
//! [`Device`](burn::tensor::Device).
//!
//! Backends are cargo features of the same names, additive, forwarded by `train` and `infer`: `cargo run -p train
//! --features vulkan`. Any number of them may be compiled into one binary; the choice is made at run time, by default
//! by [`auto`].
//!
//! | backend | what it is | device selectors |
//! |---|---|---|
//! | `flex` (default) | Burn's own CPU backend | none (`flex:0` is the CPU) |
//! | `ndarray` | the older CPU backend, deprecated by Burn and slow; a cross-check | none (`ndarray:0` is the CPU) |
//! | `wgpu` | any GPU, by any available graphics API | see below |
//! | `vulkan`, `metal` | as `wgpu`, pinned to that graphics API | see below |
//! | `webgpu` | as `wgpu`, pinned to WebGPU, which only a browser has: a native program cannot open it | see below |
//! | `cuda` | NVIDIA GPUs | `cuda:N`: the Nth GPU as CUDA counts them, from 0 (default 0) |
//! | `rocm` | AMD GPUs | `rocm:N`: the Nth GPU as HIP counts them, from 0 (default 0) |
//! | `tch` | LibTorch, deprecated by Burn | `tch` or `tch:cpu`: CPU; `tch:N`: the Nth CUDA GPU; `tch:mps` |
//!
//! Selectors of the four graphics backends: none means the best adapter found (or the one that
//! `CUBECL_WGPU_DEFAULT_DEVICE` names); `N` the Nth discrete GPU; `integratedN` the Nth integrated GPU; `virtualN` the
//! Nth virtual GPU; `cpu` a software adapter such as Mesa's lavapipe. Each kind is counted from 0 on its own.

mod args;
mod auto;
mod found;
mod list;
mod spec;

use std::fmt;
use std::str::FromStr;

use crate::text;

pub use args::{BackendArgs, BackendChoice, KernelArgs, VARIABLE, select_all, select_named};
pub use auto::{Selected, Skipped, auto, device_json, device_line};
pub use found::is_software_adapter;
pub use list::{DevicesArgs, devices};
pub use spec::{BackendSpec, DeviceSelector, Devices, ParseBackendError};

/// A compute backend, compiled in or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// Burn's own CPU backend.
    Flex,
    /// The `ndarray` CPU backend, deprecated upstream.
    NdArray,
    /// GPUs through wgpu, on any available graphics API.
    Wgpu,
    /// wgpu pinned to Vulkan.
    Vulkan,
    /// wgpu pinned to Metal (Apple).
    Metal,
    /// wgpu pinned to WebGPU, which only a browser has.
    WebGpu,
    /// NVIDIA GPUs through CUDA.
    Cuda,
    /// AMD GPUs through ROCm.
    Rocm,
    /// LibTorch, deprecated upstream.
    Tch,
}

impl Backend {
    /// All known backends.
    pub const ALL: [Self; 9] = [
        Self::Flex,
        Self::NdArray,
        Self::Wgpu,
        Self::Vulkan,
        Self::Metal,
        Self::WebGpu,
        Self::Cuda,
        Self::Rocm,
        Self::Tch,
    ];

    /// The name on the command line, which is also the name of the cargo feature.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::NdArray => "ndarray",
            Self::Wgpu => "wgpu",
            Self::Vulkan => "vulkan",
            Self::Metal => "metal",
            Self::WebGpu => "webgpu",
            Self::Cuda => "cuda",
            Self::Rocm => "rocm",
            Self::Tch => "tch",
        }
    }

    /// Whether this binary was built with the backend's feature.
    pub fn is_compiled(self) -> bool {
        match self {
            Self::Flex => cfg!(feature = "flex"),
            Self::NdArray => cfg!(feature = "ndarray"),
            Self::Wgpu => cfg!(feature = "wgpu"),
            Self::Vulkan => cfg!(feature = "vulkan"),
            Self::Metal => cfg!(feature = "metal"),
            Self::WebGpu => cfg!(feature = "webgpu"),
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Rocm => cfg!(feature = "rocm"),
            Self::Tch => cfg!(feature = "tch"),
        }
    }

    /// Whether its devices are wgpu adapters.
    fn is_graphics(self) -> bool {
        matches!(self, Self::Wgpu | Self::Vulkan | Self::Metal | Self::WebGpu)
    }

    /// Whether its devices are GPUs or software adapters.
    pub fn is_gpu(self) -> bool {
        self.is_graphics() || matches!(self, Self::Cuda | Self::Rocm)
    }

    /// Whether the backend is available on this operating system.
    fn is_supported_here(self) -> bool {
        match self {
            Self::Metal => cfg!(target_os = "macos"),
            Self::Cuda | Self::Rocm => !cfg!(target_os = "macos"),
            Self::WebGpu => cfg!(target_family = "wasm"),
            Self::Flex | Self::NdArray | Self::Wgpu | Self::Vulkan | Self::Tch => true,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Backend {
    type Err = ParseBackendError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let lower = name.to_ascii_lowercase();
        Self::ALL.into_iter().find(|backend| backend.name() == lower).ok_or_else(|| ParseBackendError::UnknownBackend {
            name: name.to_string(),
            nearest: by_other_name(&lower).or_else(|| nearest(&lower)),
        })
    }
}

/// The backends that this binary was built with, in the order of [`Backend::ALL`].
pub fn compiled() -> Vec<Backend> {
    Backend::ALL.into_iter().filter(|backend| backend.is_compiled()).collect()
}

/// Joins names with commas.
fn names(backends: &[Backend]) -> String {
    if backends.is_empty() {
        return "none".to_string();
    }
    backends.iter().map(|backend| backend.name()).collect::<Vec<_>>().join(", ")
}

/// The backend that other programs call so.
fn by_other_name(name: &str) -> Option<Backend> {
    Some(match name {
        "cpu" | "host" => Backend::Flex,
        "nvidia" => Backend::Cuda,
        "mps" => Backend::Metal,
        "hip" | "amd" => Backend::Rocm,
        "torch" | "libtorch" | "pytorch" => Backend::Tch,
        _ => return None,
    })
}

/// The backend whose name is most similar to `name`.
fn nearest(name: &str) -> Option<Backend> {
    let nearest = text::nearest(name, Backend::ALL.iter().map(|backend| backend.name()))?;
    Backend::ALL.into_iter().find(|backend| backend.name() == nearest)
}

/// Returns the cargo features for the GPUs of this operating system.
fn suggestion() -> &'static str {
    if cfg!(target_os = "macos") {
        "`metal` on a Mac"
    } else {
        "`cuda` or `vulkan` for an NVIDIA GPU, `rocm` or `vulkan` for an AMD GPU, `vulkan` for any other"
    }
}

/// The cargo command that builds and runs this program with the feature of `backend`.
fn build_command(backend: Backend) -> String {
    let own = std::env::current_exe().ok();
    let own = own.as_deref().and_then(|path| path.file_stem()?.to_str());
    let package = ["train", "infer"].into_iter().find(|name| Some(*name) == own).unwrap_or("train");
    format!("cargo run -p {package} --features {backend}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_gets_the_nearest_one() {
        for (given, expected) in [
            ("flx", Backend::Flex),
            ("cuda12", Backend::Cuda),
            ("nd-array", Backend::NdArray),
            ("cpu", Backend::Flex),
            ("MPS", Backend::Metal),
        ] {
            match given.parse::<Backend>() {
                Err(ParseBackendError::UnknownBackend { nearest, .. }) => {
                    assert_eq!(nearest, Some(expected), "{given}")
                }
                other => panic!("{given}: {other:?}"),
            }
        }
        let message = "vulcan".parse::<Backend>().unwrap_err().to_string();
        assert!(message.contains("did you mean `vulkan`"), "{message}");
    }

    #[test]
    fn suggested_backends_exist_on_this_system() {
        let suggested = Backend::ALL.into_iter().filter(|backend| suggestion().contains(&format!("`{backend}`")));
        assert!(suggested.clone().count() > 0);
        assert!(suggested.into_iter().all(Backend::is_supported_here));
    }
}
