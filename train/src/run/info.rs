//! `run.json`: the facts of a run.

use std::{path::Path, time::SystemTime};

use kernels::KernelMode;
use report::format::{FORMAT, RUN, RunChange, RunInfo, RunKind, RunStatus, read_json, write_json};
use runtime::environment;

use crate::Result;

/// The facts of a run that are known before training starts.
pub fn describe(run: &Path, kind: RunKind, command: Vec<String>, backend: String, kernels: KernelMode) -> RunInfo {
    RunInfo {
        format: FORMAT,
        name: run.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned()),
        command,
        kind,
        status: Some(RunStatus::Running),
        hearth: env!("CARGO_PKG_VERSION").to_string(),
        commit: environment::commit(),
        burn: "0.22.1".to_string(),
        backend: backend.clone(),
        device: backend,
        kernels: kernels.to_string(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        cpu: environment::cpu(),
        dtype: "f32".to_string(),
        started: now(),
        ..RunInfo::default()
    }
}

/// Between the devices of a run before and after it was resumed.
const THEN: &str = ", then ";

/// Records that the run is resumed on `devices`; returns those that it ran on before, if they are others.
pub fn continue_on(info: &mut RunInfo, devices: &str) -> Option<String> {
    let last = info.backend.rsplit(THEN).next().unwrap_or_default().to_string();
    if last == devices {
        return None;
    }
    info.backend = format!("{}{THEN}{devices}", info.backend);
    info.device.clone_from(&info.backend);
    Some(last)
}

/// Records changes with which a run is resumed after `step` steps. Those after a later step were lost with it, and a run
/// that made no step since it was last resumed has some of them already.
pub fn record_changes(info: &mut RunInfo, step: u64, changes: Vec<RunChange>) {
    info.changes.retain(|known| known.step <= step);
    for change in changes {
        if !info.changes.contains(&change) {
            info.changes.push(change);
        }
    }
}

/// Writes `run.json`.
pub fn write(info: &RunInfo, run: &Path) -> Result<()> {
    Ok(write_json(&run.join(RUN), info)?)
}

/// Reads `run.json`.
pub fn read(run: &Path) -> Result<RunInfo> {
    Ok(read_json(&run.join(RUN))?)
}

/// The time now as RFC 3339, UTC.
pub fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_is_resumed_on_another_device_records_both() {
        let mut info = RunInfo { backend: "cuda:0, cuda:1".into(), ..RunInfo::default() };
        assert_eq!(continue_on(&mut info, "cuda:0, cuda:1"), None);
        assert_eq!(continue_on(&mut info, "flex").as_deref(), Some("cuda:0, cuda:1"));
        assert_eq!(info.backend, "cuda:0, cuda:1, then flex");
        assert_eq!(continue_on(&mut info, "flex"), None);
        assert_eq!(continue_on(&mut info, "cuda:0").as_deref(), Some("flex"));
        assert_eq!(info.device, "cuda:0, cuda:1, then flex, then cuda:0");
    }

    #[test]
    fn changes_are_recorded_once_and_lost_with_the_steps_after_them() {
        let change =
            |step, to: &str| RunChange { step, epoch: 1, key: "epochs".into(), from: "1".into(), to: to.into() };
        let mut info = RunInfo::default();
        record_changes(&mut info, 5, vec![change(5, "2")]);
        record_changes(&mut info, 5, vec![change(5, "2")]);
        record_changes(&mut info, 9, vec![change(9, "3")]);
        assert_eq!(info.changes, [change(5, "2"), change(9, "3")]);
        record_changes(&mut info, 7, Vec::new());
        assert_eq!(info.changes, [change(5, "2")]);
    }
}
