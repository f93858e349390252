//! Device specifications such as `cuda:1`: parsing and opening.

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;

use super::{Backend, auto, build_command, compiled, names, suggestion};
use crate::{Error, Result};

/// Which of a backend's devices to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DeviceSelector {
    /// The backend's default device: the CPU, GPU 0, or the best graphics adapter.
    #[default]
    Default,
    /// `N`: a GPU by its index.
    Index(usize),
    /// `integratedN`: an integrated GPU by its index among those (graphics backends).
    Integrated(usize),
    /// `virtualN`: a virtual GPU by its index among those (graphics backends).
    Virtual(usize),
    /// `cpu`: a software adapter (graphics backends), or LibTorch on the CPU.
    Cpu,
    /// `mps`: Apple's Metal Performance Shaders (`tch` only).
    Mps,
}

impl fmt::Display for DeviceSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => Ok(()),
            Self::Index(i) => write!(f, "{i}"),
            Self::Integrated(i) => write!(f, "integrated{i}"),
            Self::Virtual(i) => write!(f, "virtual{i}"),
            Self::Cpu => f.write_str("cpu"),
            Self::Mps => f.write_str("mps"),
        }
    }
}

/// A backend and one of its devices, written `NAME[:DEVICE]`: `flex`, `cuda:1`, `wgpu:cpu`, `vulkan:integrated0`.
///
/// It parses whether or not the backend is compiled in; [`BackendSpec::device`] is what requires that.
///
/// ```
/// use runtime::backend::{Backend, BackendSpec};
///
/// let spec: BackendSpec = "cuda:1".parse()?;
/// assert_eq!(spec.backend(), Backend::Cuda);
/// assert_eq!(spec.to_string(), "cuda:1");
/// # Ok::<(), runtime::backend::ParseBackendError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BackendSpec {
    backend: Backend,
    selector: DeviceSelector,
}

impl BackendSpec {
    /// A device of a backend that has such devices.
    #[cfg(any(
        feature = "wgpu",
        feature = "vulkan",
        feature = "metal",
        feature = "webgpu",
        feature = "cuda",
        feature = "rocm"
    ))]
    pub(super) fn new(backend: Backend, selector: DeviceSelector) -> Self {
        Self { backend, selector }
    }

    /// Returns the device for light work: counting parameters, recording shapes, reading and writing weights. It is the
    /// CPU, or in a build without a CPU backend the device that [`auto`] selects.
    ///
    /// # Errors
    /// Fails if the build has no CPU backend, and no device of the others opens.
    pub fn host() -> Result<Self> {
        let cpu = [Backend::Flex, Backend::NdArray, Backend::Tch].into_iter().find(|backend| backend.is_compiled());
        cpu.map_or_else(|| Ok(auto()?.spec()), |backend| Ok(Self::from(backend)))
    }

    /// Returns the device with an explicit index: `cuda` becomes `cuda:0`.
    pub(super) fn canonical(self) -> Self {
        match (self.backend, self.selector) {
            (Backend::Cuda | Backend::Rocm, DeviceSelector::Default) => {
                Self { selector: DeviceSelector::Index(0), ..self }
            }
            _ => self,
        }
    }

    /// The backend.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// The device of the backend.
    pub fn selector(&self) -> DeviceSelector {
        self.selector
    }

    /// Whether it computes on the CPU, which several processes can share.
    pub fn is_cpu(&self) -> bool {
        matches!(self.backend, Backend::Flex | Backend::NdArray) || self.selector == DeviceSelector::Cpu
    }

    /// Whether several such devices in one process support collectives: CUDA with NCCL does.
    pub fn has_collectives(&self) -> bool {
        #[cfg(feature = "cuda")]
        if self.backend == Backend::Cuda {
            return super::found::cuda_has_collectives();
        }
        false
    }

    /// Opens the device and checks that it works: a backend that is not compiled in, a missing driver and a missing GPU
    /// are errors here, with the remedy, in place of a panic at the first tensor.
    ///
    /// The device has no autodiff; training calls `.autodiff()` on it. No tensor is made on it, so that
    /// `Device::configure` (the default precision) still works on the result.
    ///
    /// # Errors
    /// Fails if the backend is not compiled in, or the device does not open.
    pub fn device(&self) -> Result<Device> {
        let name = self.backend;
        if !name.is_compiled() {
            let list = names(&compiled());
            return Err(Error::NotCompiled(match name.is_supported_here() {
                false => format!(
                    "backend `{name}` does not exist on {} and is not compiled into this binary (compiled: {list}); \
                     GPU backends here: {}",
                    std::env::consts::OS,
                    suggestion()
                ),
                true => format!(
                    "backend `{name}` is not compiled into this binary (compiled: {list}); add its cargo feature: `{} \
                     -- …`",
                    build_command(name)
                ),
            }));
        }
        let failed = |reason| Error::Device(format!("cannot open device `{self}`; {}: {reason}", self.advice()));
        self.try_open().map_err(failed)
    }

    /// Opens the device of a compiled backend; the backend's own reason where it does not open.
    pub(super) fn try_open(&self) -> Result<Device, String> {
        let device = quietly(|| {
            let device = self.open();
            // The runtime behind a device starts lazily; asking it to finish its (empty) queue starts it now.
            device.sync().map(|()| device).map_err(|error| error.to_string())
        });
        device.and_then(|synced| synced).map_err(|reason| reason.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// Returns the device without checking that it exists.
    fn open(&self) -> Device {
        match self.backend {
            #[cfg(feature = "flex")]
            Backend::Flex => Device::flex(),
            #[cfg(feature = "ndarray")]
            #[allow(deprecated)] // It stays as a cross-check for as long as Burn ships it.
            Backend::NdArray => Device::ndarray(),
            #[cfg(feature = "wgpu")]
            Backend::Wgpu => Device::wgpu(self.kind()),
            #[cfg(feature = "vulkan")]
            Backend::Vulkan => Device::vulkan(self.kind()),
            #[cfg(feature = "metal")]
            Backend::Metal => Device::metal(self.kind()),
            #[cfg(feature = "webgpu")]
            Backend::WebGpu => Device::webgpu(self.kind()),
            #[cfg(feature = "cuda")]
            Backend::Cuda => Device::cuda(self.index()),
            #[cfg(feature = "rocm")]
            Backend::Rocm => Device::rocm(self.index()),
            #[cfg(feature = "tch")]
            #[allow(deprecated)] // As long as Burn ships it.
            Backend::Tch => match self.selector {
                DeviceSelector::Index(i) => Device::libtorch_cuda(i),
                DeviceSelector::Mps => Device::libtorch_mps(),
                _ => Device::libtorch(),
            },
            #[allow(unreachable_patterns)] // Reachable unless every feature is on.
            absent => unreachable!("`{absent}` is not compiled in, which `device` has checked"),
        }
    }

    /// The GPU that the selector names.
    #[cfg(any(feature = "cuda", feature = "rocm"))]
    fn index(&self) -> usize {
        match self.selector {
            DeviceSelector::Index(i) => i,
            _ => 0,
        }
    }

    /// The wgpu adapter that the selector names.
    #[cfg(any(feature = "wgpu", feature = "vulkan", feature = "metal", feature = "webgpu"))]
    fn kind(&self) -> burn::tensor::DeviceKind {
        use burn::tensor::DeviceKind;
        match self.selector {
            DeviceSelector::Index(i) => DeviceKind::DiscreteGpu(i),
            DeviceSelector::Integrated(i) => DeviceKind::IntegratedGpu(i),
            DeviceSelector::Virtual(i) => DeviceKind::VirtualGpu(i),
            DeviceSelector::Cpu => DeviceKind::Cpu,
            DeviceSelector::Default | DeviceSelector::Mps => DeviceKind::DefaultDevice,
        }
    }

    /// The remedy if the device cannot be opened.
    fn advice(&self) -> &'static str {
        match self.backend {
            Backend::Flex | Backend::NdArray => "this is the CPU and should always work: please report it",
            Backend::WebGpu => "WebGPU is the browser's API; a native program takes `--backend wgpu` or `vulkan`",
            Backend::Wgpu | Backend::Vulkan => {
                "is a GPU with a Vulkan driver there (`vulkaninfo --summary` lists the adapters)? `:integrated0` \
                 names an integrated GPU, `:cpu` a software adapter (Debian: mesa-vulkan-drivers); `--backend flex` \
                 needs no GPU"
            }
            Backend::Metal => "Metal needs a Mac; `--backend flex` needs no GPU",
            Backend::Cuda => {
                "is an NVIDIA GPU of that index there, with its driver (`nvidia-smi -L` lists them)? `--backend vulkan` \
                 runs on NVIDIA GPUs too; `--backend flex` needs no GPU"
            }
            Backend::Rocm => {
                "is an AMD GPU of that index there (`rocminfo` lists them), with ROCm installed (ROCM_PATH names its \
                 folder)? `--backend vulkan` runs on AMD GPUs too; `--backend flex` needs no GPU"
            }
            Backend::Tch => "does the installed LibTorch know that device? `--backend tch:cpu` is its CPU",
        }
    }
}

impl From<Backend> for BackendSpec {
    /// The backend's default device.
    fn from(backend: Backend) -> Self {
        Self { backend, selector: DeviceSelector::Default }
    }
}

impl fmt::Display for BackendSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.selector {
            DeviceSelector::Default => write!(f, "{}", self.backend),
            selector => write!(f, "{}:{selector}", self.backend),
        }
    }
}

impl FromStr for BackendSpec {
    type Err = ParseBackendError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((name, selector)) = text.split_once(':') else {
            return Ok(Self::from(Backend::from_str(text)?));
        };
        let backend = Backend::from_str(name)?;
        let lower = selector.to_ascii_lowercase();
        let indexed = |prefix: &str| lower.strip_prefix(prefix).and_then(|digits| digits.parse().ok());
        let selector = match backend {
            Backend::Flex | Backend::NdArray => (lower == "0").then_some(DeviceSelector::Default),
            Backend::Cuda | Backend::Rocm => indexed("").map(DeviceSelector::Index),
            Backend::Tch if lower == "cpu" => Some(DeviceSelector::Cpu),
            Backend::Tch if lower == "mps" => Some(DeviceSelector::Mps),
            Backend::Tch => indexed("").map(DeviceSelector::Index),
            _graphics if lower == "cpu" => Some(DeviceSelector::Cpu),
            _graphics => indexed("")
                .map(DeviceSelector::Index)
                .or_else(|| indexed("integrated").map(DeviceSelector::Integrated))
                .or_else(|| indexed("virtual").map(DeviceSelector::Virtual)),
        };
        let selector = selector.ok_or_else(|| ParseBackendError::UnknownDevice {
            backend,
            selector: text[name.len() + 1..].to_string(),
        })?;
        Ok(Self { backend, selector })
    }
}

fn meant(nearest: Option<Backend>) -> String {
    nearest.map_or(String::new(), |backend| format!(" did you mean `{backend}`?"))
}

/// A `--backend` that names no backend, or a device that the backend cannot have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseBackendError {
    /// The name is none of [`Backend::ALL`].
    #[error("no backend is called `{name}`;{} Hearth knows: {}", meant(*nearest), names(&Backend::ALL))]
    UnknownBackend {
        /// The given value.
        name: String,
        /// The known backend with a similar name.
        nearest: Option<Backend>,
    },
    /// The text after the colon is no device of this backend.
    #[error("`{backend}` has no device `{selector}`; {}", selectors(*backend))]
    UnknownDevice {
        /// The backend.
        backend: Backend,
        /// The text after the colon.
        selector: String,
    },
}

/// The selectors that a backend accepts, for an error.
fn selectors(backend: Backend) -> String {
    match backend {
        Backend::Flex | Backend::NdArray => format!("its only device is the CPU: `{backend}`"),
        Backend::Tch => "it accepts `tch:cpu`, `tch:N` (CUDA GPU N, from 0) or `tch:mps`".to_string(),
        _ if backend.is_graphics() => format!(
            "it accepts `{backend}` (the best adapter), `{backend}:N` (discrete GPU N, from 0), \
             `{backend}:integratedN`, `{backend}:virtualN` or `{backend}:cpu`"
        ),
        _ => format!("it accepts the index of a GPU, from 0: `{backend}:0`"),
    }
}

/// Runs `open` and turns a panic in it into an error that holds the panic's message, printing nothing.
///
/// GPU runtimes panic, on this thread or on one of their own, where there is no driver or no such device.
pub(super) fn quietly<T>(open: impl FnOnce() -> T) -> std::result::Result<T, String> {
    use std::panic::{self, AssertUnwindSafe};
    use std::sync::{Arc, Mutex, PoisonError};

    // The hook belongs to the whole process: one at a time.
    static HOOK: Mutex<()> = Mutex::new(());
    let _hook = HOOK.lock().unwrap_or_else(PoisonError::into_inner);

    let first_message = Arc::new(Mutex::new(None::<String>));
    let seen = Arc::clone(&first_message);
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if let Ok(mut message) = seen.lock() {
            message.get_or_insert_with(|| panic.payload_as_str().unwrap_or("no message").to_string());
        }
    }));
    let result = panic::catch_unwind(AssertUnwindSafe(open));
    panic::set_hook(previous);
    result.map_err(|_| {
        let message = first_message.lock().ok().and_then(|mut message| message.take());
        message.unwrap_or_else(|| "the backend panicked without a message".to_string())
    })
}

/// Devices of one host, `cuda:0-7` or `cuda:0,2,5`, divided among the processes there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices(Vec<BackendSpec>);

impl FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut devices = Vec::new();
        let mut name = "";
        for part in text.split(',') {
            let selectors = match part.split_once(':') {
                Some((of_part, selectors)) => {
                    name = of_part;
                    selectors
                }
                None if name.is_empty() => {
                    return Err(format!("`{part}` names no backend: give for instance cuda:0-7, or cuda:0,2"));
                }
                None => part,
            };
            let numbers = match selectors.split_once('-') {
                Some((first, last)) => {
                    let number =
                        |text: &str| text.parse::<usize>().map_err(|_| format!("`{text}` is not a device number"));
                    let (first, last) = (number(first)?, number(last)?);
                    if last < first || last - first >= 1024 {
                        return Err(format!("the devices {first} to {last} are none, or too many"));
                    }
                    (first..=last).map(|number| number.to_string()).collect()
                }
                None => vec![selectors.to_string()],
            };
            for number in numbers {
                let device: BackendSpec =
                    format!("{name}:{number}").parse().map_err(|error: ParseBackendError| error.to_string())?;
                if devices.contains(&device) && !device.is_cpu() {
                    return Err(format!("{device} is named twice"));
                }
                devices.push(device);
            }
        }
        Ok(Self(devices))
    }
}

impl Devices {
    /// Returns the devices of process `rank` of the `size` processes on this host, an equal number for each.
    ///
    /// # Errors
    /// Fails if the number of processes does not divide that of the devices.
    pub fn of(&self, rank: usize, size: usize) -> Result<Vec<BackendSpec>> {
        let devices = self.0.len();
        if !devices.is_multiple_of(size) {
            return Err(Error::Setting(format!(
                "--devices names {devices} devices of a host, which the {size} processes that run on this one cannot \
                 share alike: start as many processes as devices, or one"
            )));
        }
        let each = devices / size;
        Ok(self.0[rank * each..(rank + 1) * each].to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<BackendSpec, ParseBackendError> {
        text.parse()
    }

    #[test]
    fn devices_are_lists_and_ranges_shared_by_processes() {
        let devices = |text: &str| text.parse::<Devices>();
        let names = |text: &str| -> Vec<String> { devices(text).unwrap().0.iter().map(ToString::to_string).collect() };
        assert_eq!(names("cuda:0-2"), ["cuda:0", "cuda:1", "cuda:2"]);
        assert_eq!(names("cuda:0,2,rocm:1"), ["cuda:0", "cuda:2", "rocm:1"]);
        assert_eq!(names("flex:0,0"), ["flex", "flex"]);
        for (text, part) in [
            ("0-3", "names no backend"),
            ("cuda:3-1", "3 to 1"),
            ("cuda:x", "x"),
            ("cuda:0-x", "not a device number"),
            ("cuda:1,1", "twice"),
            ("coda:0", "did you mean"),
        ] {
            let error = devices(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let four = devices("cuda:4-7").unwrap();
        let of = |rank, size| -> Vec<String> { four.of(rank, size).unwrap().iter().map(ToString::to_string).collect() };
        assert_eq!([0, 1, 2, 3].map(|rank| of(rank, 4)), [["cuda:4"], ["cuda:5"], ["cuda:6"], ["cuda:7"]]);
        assert_eq!([0, 1].map(|rank| of(rank, 2)), [["cuda:4", "cuda:5"], ["cuda:6", "cuda:7"]]);
        assert_eq!(of(0, 1), ["cuda:4", "cuda:5", "cuda:6", "cuda:7"]);
        assert!(four.of(0, 3).unwrap_err().to_string().contains("the 3 processes"));
        assert!(four.of(0, 8).unwrap_err().to_string().contains("start as many processes as devices"));
    }

    #[test]
    fn every_name_parses_and_prints_the_same() {
        for backend in Backend::ALL {
            assert_eq!(parse(backend.name()), Ok(BackendSpec::from(backend)));
            assert_eq!(BackendSpec::from(backend).to_string(), backend.name());
        }
        for text in ["cuda:1", "rocm:0", "wgpu:cpu", "wgpu:3", "vulkan:integrated0", "metal:virtual2", "tch:mps"] {
            assert_eq!(parse(text).map(|spec| spec.to_string()), Ok(text.to_string()));
        }
        assert_eq!(parse("WGPU:CPU").map(|spec| spec.to_string()), Ok("wgpu:cpu".to_string()));
        assert_eq!(parse("flex:0").map(|spec| spec.to_string()), Ok("flex".to_string()));
    }

    #[test]
    fn a_device_that_a_backend_cannot_have_is_refused_with_what_it_takes() {
        for text in ["flex:1", "ndarray:cpu", "cuda:integrated0", "wgpu:mps", "wgpu:", "cuda:-1", "tch:virtual0"] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains("has no device"), "{text}: {message}");
        }
        assert!(parse("flex:1").unwrap_err().to_string().contains("only device is the CPU"));
        assert!(parse("wgpu:gpu").unwrap_err().to_string().contains("wgpu:integratedN"));
    }

    #[cfg(feature = "flex")]
    #[test]
    fn the_host_is_flex_and_it_opens() {
        let spec = BackendSpec::host().expect("flex is compiled in");
        assert_eq!(spec.backend(), Backend::Flex);
        let device = spec.device().expect("the CPU opens");
        assert_eq!(device, Device::flex());
        assert!(!device.is_autodiff());
    }

    #[test]
    fn a_backend_that_is_not_compiled_in_names_the_feature_or_what_this_system_can_have() {
        for backend in Backend::ALL.into_iter().filter(|backend| !backend.is_compiled()) {
            let message = format!("{:#}", BackendSpec::from(backend).device().unwrap_err());
            if backend.is_supported_here() {
                assert!(message.contains(&format!("`cargo run -p train --features {backend} -- …`")), "{message}");
            } else {
                assert!(message.contains("does not exist") && message.contains(suggestion()), "{message}");
            }
        }
    }

    #[test]
    fn every_compiled_backend_opens_or_fails_with_advice() {
        for backend in compiled() {
            if let Err(error) = BackendSpec::from(backend).device() {
                let message = format!("{error:#}");
                assert!(message.contains("cannot open device"), "{message}");
                assert!(message.contains("--backend"), "{message}");
                eprintln!("{message}");
            }
        }
    }

    #[test]
    fn a_panic_while_opening_becomes_an_error_with_its_message() {
        let result: std::result::Result<(), _> = quietly(|| panic!("no adapter of kind {}", "Cpu"));
        assert_eq!(result, Err("no adapter of kind Cpu".to_string()));
    }
}
