//! The environment of a run: processor, memory and commit, for its records.

use std::fs;

/// The largest number of loader threads; a larger one is taken for a typing error.
pub const MOST_WORKERS: usize = 1024;

/// Parses `--workers` where 0 means the main thread.
///
/// # Errors
/// Fails if the text is no number from 0 to [`MOST_WORKERS`].
pub fn parse_workers(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|workers| *workers <= MOST_WORKERS)
        .ok_or_else(|| format!("expected a number of threads from 0 to {MOST_WORKERS}"))
}

/// Parses `--workers` of at least 1.
///
/// # Errors
/// Fails if the text is no number from 1 to [`MOST_WORKERS`].
pub fn parse_threads(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|threads| (1..=MOST_WORKERS).contains(threads))
        .ok_or_else(|| format!("expected a number of threads from 1 to {MOST_WORKERS}"))
}

/// Returns the commit of the git repository of the current folder.
pub fn commit() -> Option<String> {
    let here = std::env::current_dir().ok()?;
    let git = here.ancestors().map(|folder| folder.join(".git")).find(|git| git.is_dir())?;
    let head = fs::read_to_string(git.join("HEAD")).ok()?;
    let commit = match head.trim().strip_prefix("ref: ") {
        None => head,
        Some(name) => fs::read_to_string(git.join(name)).ok().or_else(|| {
            let packed = fs::read_to_string(git.join("packed-refs")).ok()?;
            packed.lines().find_map(|line| Some(line.strip_suffix(name)?.trim().to_string()))
        })?,
    };
    Some(commit.trim().to_string())
}

/// Returns the processor's name, if the system reports it.
pub fn cpu() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_string(), |(_, name)| name.trim().to_string())
}

/// Returns the peak resident memory of this process in MiB, on Linux.
pub fn peak_rss_mb() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some((kib / 102.4).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_threads_are_bounded() {
        assert_eq!(["0", "1", "1024"].map(parse_workers), [Ok(0), Ok(1), Ok(1024)]);
        assert_eq!(["1", "1024"].map(parse_threads), [Ok(1), Ok(1024)]);
        for text in ["1025", "1000000", "-1", "many", "99999999999999999999"] {
            assert!(parse_workers(text).is_err() && parse_threads(text).is_err(), "{text}");
        }
        assert!(parse_threads("0").is_err());
    }
}
