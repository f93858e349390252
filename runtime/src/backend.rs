//! The compute backend: which ones this binary was compiled with, and how `--backend NAME[:DEVICE]` becomes a
//! [`Device`].
//!
//! Backends are cargo features of the same names, additive, forwarded by `train` and `infer`: `cargo run -p infer
//! --features wgpu`. Any number of them may be compiled into one binary; the choice is made at run time.
//!
//! | backend | what it is | device selectors |
//! |---|---|---|
//! | `flex` (default) | Burn's own CPU kernels | none (`flex:0` is the CPU) |
//! | `ndarray` | the older CPU backend, deprecated by Burn and slow; a cross-check | none (`ndarray:0` is the CPU) |
//! | `wgpu` | any GPU, by whichever graphics API the machine offers | see below |
//! | `vulkan`, `metal` | as `wgpu`, pinned to that graphics API | see below |
//! | `webgpu` | as `wgpu`, pinned to WebGPU, which only a browser has: a native program cannot open it | see below |
//! | `cuda` | NVIDIA GPUs | `cuda:N`: the Nth GPU as CUDA counts them, from 0 (default 0) |
//! | `rocm` | AMD GPUs | `rocm:N`: the Nth GPU as HIP counts them, from 0 (default 0) |
//! | `tch` | LibTorch, deprecated by Burn | `tch` or `tch:cpu`: CPU; `tch:N`: the Nth CUDA GPU; `tch:mps` |
//!
//! Selectors of the four graphics backends: none means the best adapter found (or the one that
//! `CUBECL_WGPU_DEFAULT_DEVICE` names); `N` the Nth discrete GPU; `integratedN` the Nth integrated GPU; `virtualN` the
//! Nth virtual GPU; `cpu` a software adapter such as Mesa's lavapipe. Each kind is counted from 0 on its own.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use burn::tensor::Device;

/// A compute backend, compiled in or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// Burn's own CPU kernels; the default.
    Flex,
    /// The `ndarray` CPU backend, deprecated upstream.
    NdArray,
    /// GPUs through wgpu, on whichever graphics API is there.
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
    /// Every backend Hearth knows, the default first.
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
        Self::ALL
            .into_iter()
            .find(|backend| backend.name() == lower)
            .ok_or_else(|| ParseBackendError::UnknownBackend { name: name.to_string(), nearest: nearest(&lower) })
    }
}

/// The backends that this binary was built with, in the order of [`Backend::ALL`].
pub fn compiled() -> Vec<Backend> {
    Backend::ALL.into_iter().filter(|backend| backend.is_compiled()).collect()
}

/// Which of a backend's devices to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DeviceSelector {
    /// What the backend itself takes first: the CPU, GPU 0, or the best graphics adapter.
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
/// It parses whether or not the backend is compiled in; [`BackendSpec::device`] is what asks for that.
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
    /// The backend.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Which of its devices.
    pub fn selector(&self) -> DeviceSelector {
        self.selector
    }

    /// Whether it computes on the CPU, which several may do at once.
    pub fn is_cpu(&self) -> bool {
        matches!(self.backend, Backend::Flex | Backend::NdArray) || self.selector == DeviceSelector::Cpu
    }

    /// Whether several such devices in one process can sum tensors among themselves: CUDA can, where NCCL is installed.
    pub fn has_collectives(&self) -> bool {
        #[cfg(feature = "cuda")]
        if self.backend == Backend::Cuda {
            return cuda_has_collectives();
        }
        false
    }

    /// Opens the device and makes sure that it works: a backend that is not compiled in, a missing driver and a
    /// missing GPU are errors here, with what to do about them, and not a panic at the first tensor.
    ///
    /// The device has no autodiff; training calls `.autodiff()` on it. No tensor is made on it, so that
    /// `Device::configure` (the default precision) still works on the result.
    pub fn device(&self) -> Result<Device> {
        if !self.backend.is_compiled() {
            bail!(
                "backend `{name}` is not compiled into this binary (compiled: {list}); build with it: add `--features \
                 {name}` to the cargo command, as in `cargo run -p infer --features {name}`",
                name = self.backend,
                list = list(&compiled()),
            );
        }
        let device = quietly(|| {
            let device = self.open();
            // The runtime behind a device starts lazily; asking it to finish its (empty) queue starts it now.
            device.sync().map(|()| device).map_err(|error| error.to_string())
        });
        device
            .and_then(|synced| synced)
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("cannot open device `{self}`; {}", self.advice()))
    }

    /// The device, without a check that it is there.
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

    /// What to try when the device cannot be opened.
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
                "is an NVIDIA GPU of that index there (`nvidia-smi -L` lists them), with its driver and the CUDA \
                 toolkit's NVRTC? `--backend flex` needs no GPU"
            }
            Backend::Rocm => {
                "is an AMD GPU of that index there (`rocminfo` lists them), with ROCm installed? `--backend flex` \
                 needs no GPU"
            }
            Backend::Tch => "does the installed LibTorch know that device? `--backend tch:cpu` is its CPU",
        }
    }
}

impl Default for BackendSpec {
    /// `flex` if it is compiled in, or else the first backend that is.
    fn default() -> Self {
        let backend = compiled().first().copied().unwrap_or(Backend::Flex);
        Self { backend, selector: DeviceSelector::Default }
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

/// A `--backend` that names no backend, or a device that the backend cannot have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseBackendError {
    /// The name is none of [`Backend::ALL`].
    #[error("no backend is called `{name}`; did you mean `{nearest}`? Hearth knows: {}", list(&Backend::ALL))]
    UnknownBackend {
        /// What was given.
        name: String,
        /// The known backend with the most similar name.
        nearest: Backend,
    },
    /// What follows the colon is no device of this backend.
    #[error("`{backend}` has no device `{selector}`; {}", selectors(*backend))]
    UnknownDevice {
        /// The backend.
        backend: Backend,
        /// What was given after the colon.
        selector: String,
    },
}

/// The selectors a backend takes, for an error.
fn selectors(backend: Backend) -> String {
    match backend {
        Backend::Flex | Backend::NdArray => format!("its only device is the CPU: `{backend}`"),
        Backend::Tch => "it takes `tch:cpu`, `tch:N` (CUDA GPU N, from 0) or `tch:mps`".to_string(),
        _ if backend.is_graphics() => format!(
            "it takes `{backend}` (the best adapter), `{backend}:N` (discrete GPU N, from 0), \
             `{backend}:integratedN`, `{backend}:virtualN` or `{backend}:cpu`"
        ),
        _ => format!("it takes the index of a GPU, from 0: `{backend}:0`"),
    }
}

/// Names with commas between.
fn list(backends: &[Backend]) -> String {
    if backends.is_empty() {
        return "none".to_string();
    }
    backends.iter().map(|backend| backend.name()).collect::<Vec<_>>().join(", ")
}

/// The backend whose name is nearest to `name` by edit distance.
fn nearest(name: &str) -> Backend {
    Backend::ALL.into_iter().min_by_key(|backend| edit_distance(name, backend.name())).unwrap_or(Backend::Flex)
}

/// The Levenshtein distance of two strings, in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Runs `open` and turns a panic in it into an error that holds the panic's message, printing nothing.
///
/// GPU runtimes panic, on this thread or on one of their own, where there is no driver or no such device.
fn quietly<T>(open: impl FnOnce() -> T) -> std::result::Result<T, String> {
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

/// Devices of one host, `cuda:0-7` or `cuda:0,2,5`, shared among the processes there.
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
                        |text: &str| text.parse::<usize>().map_err(|_| format!("`{text}` is no device number"));
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
    /// The devices of process `rank` of the `size` processes on this host: as many for each.
    ///
    /// # Errors
    /// Where they cannot be shared so: a process would idle, or train on more images than another.
    pub fn of(&self, rank: usize, size: usize) -> Result<Vec<BackendSpec>> {
        let devices = self.0.len();
        if !devices.is_multiple_of(size) {
            bail!(
                "--devices names {devices} devices of a host, which the {size} processes that run on this one cannot \
                 share alike: start as many processes as devices, or one"
            );
        }
        let each = devices / size;
        Ok(self.0[rank * each..(rank + 1) * each].to_vec())
    }
}

/// Whether the CUDA runtime finds NCCL, by the runtime's own look for it.
#[cfg(feature = "cuda")]
fn cuda_has_collectives() -> bool {
    // SAFETY: loads the library, whose initialisers are NVIDIA's, and nothing else; the runtime does the same.
    unsafe { cudarc::nccl::sys::is_culib_present() }
}

/// The flag `--backend`, the same in every binary: put `#[command(flatten)] backend: BackendArgs` into its arguments.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct BackendArgs {
    /// The compute backend and its device
    ///
    /// Among those that this binary was built with: `flex` (CPU) always, unless it was left out; others by cargo
    /// features of their names: ndarray, wgpu, vulkan, metal, webgpu, cuda, rocm, tch. DEVICE is the index of a GPU
    /// from 0 (`cuda:1`); the graphics backends also take `integrated0`, `virtual0` and `cpu` (a software adapter).
    #[arg(long, value_name = "NAME[:DEVICE]", default_value_t)]
    pub backend: BackendSpec,
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

impl KernelArgs {
    /// Has them run from now on.
    pub fn choose(self) {
        kernels::set_kernel_mode(self.kernels);
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
            ("cuda:0-x", "no device number"),
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
    fn an_unknown_name_gets_the_nearest_one() {
        for (given, expected) in [("flx", Backend::Flex), ("cuda12", Backend::Cuda), ("nd-array", Backend::NdArray)] {
            match parse(given) {
                Err(ParseBackendError::UnknownBackend { nearest, .. }) => assert_eq!(nearest, expected, "{given}"),
                other => panic!("{given}: {other:?}"),
            }
        }
        let message = parse("vulcan").unwrap_err().to_string();
        assert!(message.contains("did you mean `vulkan`"), "{message}");
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
    fn the_default_is_flex_and_it_opens() {
        let spec = BackendSpec::default();
        assert_eq!(spec.backend(), Backend::Flex);
        let device = spec.device().expect("the CPU opens");
        assert_eq!(device, Device::flex());
        assert!(!device.is_autodiff());
    }

    #[test]
    fn a_backend_that_is_not_compiled_in_says_which_feature_to_build_with() {
        for backend in Backend::ALL.into_iter().filter(|backend| !backend.is_compiled()) {
            let message = format!("{:#}", BackendSpec::from(backend).device().unwrap_err());
            assert!(message.contains(&format!("`cargo run -p infer --features {backend}`")), "{message}");
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
