//! Signals. Ctrl-C: once to finish the step and save, twice to stop at once. SIGUSR1: save and go on.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use runtime::{exit::ExitCode, noteln};

/// A flag that Ctrl-C, or a request to terminate, sets; the handler is installed with the first call.
pub fn stop_flag() -> Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    FLAG.get_or_init(|| {
        let flag = Arc::new(AtomicBool::new(false));
        let set = flag.clone();
        let installed = ctrlc::set_handler(move || {
            if set.swap(true, Ordering::Relaxed) {
                std::process::exit(ExitCode::Interrupted.code().into());
            }
            noteln!("finishing the step and saving; once more to stop at once");
        });
        if let Err(error) = installed {
            log::warn!("Ctrl-C will stop at once, without saving: {error}");
        }
        flag
    })
    .clone()
}

/// A flag that SIGUSR1 sets, which Slurm sends ahead of a time limit (`#SBATCH --signal=USR1@120`).
pub fn save_flag() -> Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    FLAG.get_or_init(|| {
        let flag = Arc::new(AtomicBool::new(false));
        #[cfg(unix)]
        if let Err(error) = signal_hook::flag::register(signal_hook::consts::SIGUSR1, flag.clone()) {
            log::warn!("SIGUSR1 will end the run, without saving: {error}");
        }
        flag
    })
    .clone()
}
