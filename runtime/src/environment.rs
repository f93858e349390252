//! Where a program runs, for the records of what it did.

use std::fs;

/// The most threads that a program reads and decodes with: a larger number is a slip.
pub const MOST_WORKERS: usize = 1024;

/// Parses `--workers` where 0 leaves the work to the main thread.
///
/// # Errors
/// If the text is no number from 0 to [`MOST_WORKERS`].
pub fn parse_workers(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|workers| *workers <= MOST_WORKERS)
        .ok_or_else(|| format!("expected a number of threads from 0 to {MOST_WORKERS}"))
}

/// Parses `--workers` where there has to be one.
///
/// # Errors
/// If the text is no number from 1 to [`MOST_WORKERS`].
pub fn parse_threads(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|threads| (1..=MOST_WORKERS).contains(threads))
        .ok_or_else(|| format!("expected a number of threads from 1 to {MOST_WORKERS}"))
}

/// The commit of the git checkout around the current folder.
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

/// The processor's name, where the system tells it.
pub fn cpu() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_string(), |(_, name)| name.trim().to_string())
}

/// The most memory this process has held, in MiB, where the system tells (Linux).
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
