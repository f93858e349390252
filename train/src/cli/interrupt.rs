//! Ctrl-C: once to finish the step and save, twice to stop at once.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use runtime::exit::ExitCode;

/// A flag that Ctrl-C, or a request to terminate, sets; the handler is installed with the first call.
pub fn flag() -> Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    FLAG.get_or_init(|| {
        let flag = Arc::new(AtomicBool::new(false));
        let set = flag.clone();
        let installed = ctrlc::set_handler(move || {
            if set.swap(true, Ordering::Relaxed) {
                std::process::exit(ExitCode::Interrupted.code().into());
            }
            eprintln!("finishing the step and saving; once more to stop at once");
        });
        if let Err(error) = installed {
            log::warn!("Ctrl-C will stop at once, without saving: {error}");
        }
        flag
    })
    .clone()
}
