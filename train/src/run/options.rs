//! The options of a run.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use burn::tensor::Device;
use kernels::KernelMode;
use runtime::{backend::BackendSpec, progress::Output};

use crate::{
    Error, Result,
    observer::{Observer, Silent},
};

/// The options of a run that are no part of its recipe. Results do not depend on them, apart from roundings by devices and
/// kernels.
#[derive(Clone)]
pub struct Options {
    /// The folder in which run folders are created.
    pub artifacts: PathBuf,
    /// The folder of this run, in place of a new one in `artifacts`.
    pub out: Option<PathBuf>,
    /// The number of threads that decode and augment; by default the number of cores.
    pub workers: Option<usize>,
    /// Receives progress and warnings.
    pub observer: Arc<dyn Observer>,
    /// Where downloads and the computation of features show their progress.
    pub progress: Output,
    /// Whether Burn's dashboard takes over the terminal. The observer then receives warnings only.
    pub dashboard: bool,
    /// Ends the run after the current step, with a checkpoint, once it is set.
    pub stop: Arc<AtomicBool>,
    /// Makes the run write a checkpoint after the current step and go on, once it is set; the run clears it then.
    pub save: Arc<AtomicBool>,
    /// The arguments of the program, for `run.json`.
    pub command: Vec<String>,
    /// The devices of this process, at least one.
    pub devices: Vec<BackendSpec>,
    /// The operations that networks run on the CPU.
    pub kernels: KernelMode,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { artifacts, out, workers, devices, kernels, .. } = self;
        f.debug_struct("Options")
            .field("artifacts", artifacts)
            .field("out", out)
            .field("workers", workers)
            .field("devices", devices)
            .field("kernels", kernels)
            .finish_non_exhaustive()
    }
}

impl Options {
    /// Returns options for a run on `device` in a new folder in `artifacts`, which reports nothing.
    pub fn new(device: BackendSpec) -> Self {
        Self {
            artifacts: "artifacts".into(),
            out: None,
            workers: None,
            observer: Arc::new(Silent),
            progress: Output::Quiet,
            dashboard: false,
            stop: Arc::default(),
            save: Arc::default(),
            command: Vec::new(),
            devices: vec![device],
            kernels: KernelMode::default(),
        }
    }

    /// Returns the first device, which holds the network.
    ///
    /// # Errors
    /// Fails if there is no device.
    pub fn main_device(&self) -> Result<&BackendSpec> {
        self.devices.first().ok_or_else(|| Error::Settings("no device is named".into()))
    }

    /// Opens the first device.
    ///
    /// # Errors
    /// Fails if there is no device, or if it cannot be opened.
    pub fn device(&self) -> Result<Device> {
        Ok(self.main_device()?.device()?)
    }

    /// Returns the names of all devices, separated by commas.
    pub fn device_names(&self) -> String {
        let names: Vec<_> = self.devices.iter().map(ToString::to_string).collect();
        names.join(", ")
    }
}
