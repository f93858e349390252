//! Enumerates the devices of the compiled GPU backends, with their properties.

use burn::tensor::Device;

use super::{Backend, BackendSpec};

/// A device that a GPU backend lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) spec: BackendSpec,
    /// Whether it is a software adapter, such as Mesa's lavapipe.
    pub(super) is_software: bool,
}

/// The properties of an open device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) is_software: bool,
    /// Bytes of device memory, if the API reports them.
    pub(super) memory: Option<u64>,
}

/// Lists the devices of a compiled backend, without opening them: those that drivers report, none where there is no
/// driver. Other backends than those of GPUs list nothing.
pub(super) fn devices(backend: Backend) -> Vec<Found> {
    cube::devices(backend)
}

/// Returns the properties of a GPU device; `None` for other backends.
pub(super) fn identity(device: &Device) -> Option<Identity> {
    cube::identity(device)
}

/// Returns whether an open device is a software adapter, such as Mesa's lavapipe, regardless of its name.
pub fn is_software_adapter(device: &Device) -> bool {
    identity(device).is_some_and(|identity| identity.is_software)
}

/// Returns why a compiled GPU backend lists no device.
pub(super) fn why_none(backend: Backend) -> &'static str {
    match backend {
        #[cfg(feature = "cuda")]
        // SAFETY: loads the library, whose initializers are NVIDIA's, and nothing else; the runtime does the same.
        Backend::Cuda if !unsafe { cudarc::driver::sys::is_culib_present() } => {
            "the NVIDIA driver is not installed (libcuda was not found)"
        }
        Backend::Cuda => "the NVIDIA driver reports no GPU",
        Backend::Rocm => "ROCm's HIP runtime is not installed (ROCM_PATH names its folder), or reports no GPU",
        Backend::Metal if !backend.is_supported_here() => "Metal exists on macOS only",
        Backend::Metal => "Metal reports no GPU",
        Backend::Vulkan => "Vulkan's loader or a driver is not installed, or reports no GPU",
        Backend::WebGpu => "only a browser has WebGPU",
        _ => "no graphics driver reports a GPU",
    }
}

/// Whether the CUDA runtime finds NCCL, tested by the runtime's own search.
#[cfg(feature = "cuda")]
pub(super) fn cuda_has_collectives() -> bool {
    // SAFETY: loads the library, whose initializers are NVIDIA's, and nothing else; the runtime does the same.
    unsafe { cudarc::nccl::sys::is_culib_present() }
}

/// Returns why kernels that the backend compiles may fail although its device opens.
///
/// The compiler of CUDA kernels links NVIDIA's math library, a file of the CUDA toolkit, into kernels that use `exp`,
/// `log` and the like: losses and softmax do. The places are those where the compiler looks.
pub(super) fn missing_for_kernels(backend: Backend) -> Option<String> {
    if backend != Backend::Cuda {
        return None;
    }
    missing_libdevice(std::env::var_os("CUDA_PATH").map(Into::into), |path| path.exists())
}

fn missing_libdevice(
    cuda_path: Option<std::path::PathBuf>,
    exists: impl Fn(&std::path::Path) -> bool,
) -> Option<String> {
    let library = |root: &std::path::Path| root.join("nvvm/libdevice/libdevice.10.bc");
    let roots = match cuda_path {
        Some(root) => vec![root],
        None => ["/usr/local/cuda", "/opt/cuda", "/usr/lib/cuda", "/usr"].map(Into::into).to_vec(),
    };
    if roots.iter().any(|root| exists(&library(root))) {
        return None;
    }
    let looked: Vec<_> = roots.iter().map(|root| root.display().to_string()).collect();
    Some(format!(
        "nvvm/libdevice/libdevice.10.bc of the CUDA toolkit was not found under {}: CUDA kernels that compute \
         exponentials or logarithms cannot be compiled without it, so losses cannot be computed; set CUDA_PATH to a \
         folder that has it",
        looked.join(", ")
    ))
}

#[cfg(any(
    feature = "wgpu",
    feature = "vulkan",
    feature = "metal",
    feature = "webgpu",
    feature = "cuda",
    feature = "rocm"
))]
mod cube {
    use burn::{
        backend::{CubeDevice, DispatchDevice},
        tensor::{Device, DeviceType},
    };

    use super::{Found, Identity};
    use crate::backend::{Backend, BackendSpec, DeviceSelector};

    pub(super) fn devices(backend: Backend) -> Vec<Found> {
        let devices = match backend {
            #[cfg(feature = "wgpu")]
            Backend::Wgpu => Device::enumerate(DeviceType::Wgpu),
            #[cfg(feature = "vulkan")]
            Backend::Vulkan => Device::enumerate(DeviceType::Vulkan),
            #[cfg(feature = "metal")]
            Backend::Metal => Device::enumerate(DeviceType::Metal),
            #[cfg(feature = "webgpu")]
            Backend::WebGpu => Device::enumerate(DeviceType::WebGpu),
            #[cfg(feature = "cuda")]
            Backend::Cuda => Device::enumerate(DeviceType::Cuda),
            #[cfg(feature = "rocm")]
            Backend::Rocm => Device::enumerate(DeviceType::Rocm),
            _ => return Vec::new(),
        };
        let selectors = devices.iter().filter_map(|device| selector(inner(device)?));
        selectors
            .map(|selector| Found {
                spec: BackendSpec::new(backend, selector),
                is_software: selector == DeviceSelector::Cpu,
            })
            .collect()
    }

    /// The name of the device on the command line, if it has one.
    fn selector(device: &CubeDevice) -> Option<DeviceSelector> {
        match device {
            CubeDevice::Cuda(device) => Some(DeviceSelector::Index(device.index)),
            CubeDevice::Hip(device) => Some(DeviceSelector::Index(device.index)),
            #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal", feature = "webgpu"))]
            CubeDevice::Wgpu(device) => {
                use burn::backend::WgpuDeviceKind;
                match device.kind {
                    WgpuDeviceKind::DiscreteGpu(i) => Some(DeviceSelector::Index(i)),
                    WgpuDeviceKind::IntegratedGpu(i) => Some(DeviceSelector::Integrated(i)),
                    WgpuDeviceKind::VirtualGpu(i) => Some(DeviceSelector::Virtual(i)),
                    WgpuDeviceKind::Cpu => Some(DeviceSelector::Cpu),
                    // An adapter whose API does not tell its kind (OpenGL) is reached as the best one.
                    WgpuDeviceKind::Other(0) | WgpuDeviceKind::DefaultDevice => Some(DeviceSelector::Default),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn inner(device: &Device) -> Option<&CubeDevice> {
        match device.as_dispatch() {
            DispatchDevice::Cube(device) => Some(device),
            _ => None,
        }
    }

    pub(super) fn identity(device: &Device) -> Option<Identity> {
        let client = inner(device)?.client();
        let properties = client.properties();
        Some(Identity {
            name: properties.identity.name.clone(),
            is_software: properties.identity.physical.is_none(),
            memory: properties.memory.max_memory(),
        })
    }
}

#[cfg(not(any(
    feature = "wgpu",
    feature = "vulkan",
    feature = "metal",
    feature = "webgpu",
    feature = "cuda",
    feature = "rocm"
)))]
mod cube {
    use burn::tensor::Device;

    use super::{Found, Identity};
    use crate::backend::Backend;

    pub(super) fn devices(_: Backend) -> Vec<Found> {
        Vec::new()
    }

    pub(super) fn identity(_: &Device) -> Option<Identity> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn libdevice_is_looked_for_where_the_compiler_looks() {
        let at = |place: &'static str| move |path: &Path| path == Path::new(place);
        assert_eq!(missing_libdevice(None, at("/opt/cuda/nvvm/libdevice/libdevice.10.bc")), None);
        assert_eq!(missing_libdevice(Some("/sw/cuda".into()), at("/sw/cuda/nvvm/libdevice/libdevice.10.bc")), None);
        // CUDA_PATH replaces the usual places.
        let missing = missing_libdevice(Some("/sw/cuda".into()), at("/opt/cuda/nvvm/libdevice/libdevice.10.bc"));
        assert!(missing.is_some_and(|text| text.contains("/sw/cuda") && text.contains("CUDA_PATH")));
    }

    #[test]
    fn backends_of_cpus_list_no_devices() {
        assert_eq!(devices(Backend::Flex), Vec::new());
    }
}
