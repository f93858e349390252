//! Signals that every binary treats alike.

/// Ignores SIGXFSZ, which the system sends when a file passes the limit of its size (`ulimit -f`, also set by some
/// clusters): its default is to end the process, in the middle of a training. Ignored, the write fails as on a full disk.
pub fn ignore_file_size_limit() {
    #[cfg(unix)]
    // SAFETY: `signal` with SIG_IGN installs no handler of ours.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::{io::Write, process::Command};

    /// The limit holds for a whole process, so the test runs in another one.
    #[test]
    fn a_write_beyond_the_limit_is_an_error_and_not_the_end() {
        const INNER: &str = "HEARTH_TEST_SIGXFSZ";
        if let Some(path) = std::env::var_os(INNER) {
            super::ignore_file_size_limit();
            let error = std::fs::File::create(path).and_then(|mut file| file.write_all(&[0; 8192])).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::FileTooLarge);
            return;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let program = std::env::current_exe().expect("this program");
        let test = "signals::tests::a_write_beyond_the_limit_is_an_error_and_not_the_end";
        let line = format!("ulimit -f 1; exec '{}' --exact {test}", program.display());
        let output =
            Command::new("sh").args(["-c", &line]).env(INNER, folder.path().join("x")).output().expect("sh runs");
        assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stdout));
    }
}
