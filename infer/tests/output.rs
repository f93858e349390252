//! A standard output that is closed or full.
#![cfg(unix)]

mod fixture;

use std::{
    fs::File,
    os::unix::process::ExitStatusExt,
    process::{Command, Stdio},
};

use fixture::Fixture;

const SIGPIPE: i32 = 13;

#[test]
fn results_that_cannot_be_written_are_an_error_and_a_closed_pipe_is_none() {
    let fixture = Fixture::new();
    fixture.image("a.png");
    let commands: [&[&str]; 8] = [
        &["--help"],
        &["models"],
        &["models", "--format", "json"],
        &["devices"],
        &["summary", "resnet20"],
        &["completions", "zsh"],
        &["classify", "a.png", "--weights", "run"],
        &["classify", "a.png", "--weights", "run", "--format", "json"],
    ];
    for args in commands {
        let command = |stdout: Stdio| -> Command {
            let mut command = fixture::infer();
            command.args(args).arg("-qq").current_dir(fixture.path("")).stdout(stdout).stderr(Stdio::piped());
            command
        };
        let full = File::options().write(true).open("/dev/full").expect("it is there");
        let output = command(full.into()).output().expect("infer runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            error, "error: cannot write to standard output: No space left on device (os error 28)\n",
            "{args:?}"
        );
        assert_eq!(output.status.code(), Some(1), "{args:?}");

        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = command(writer.into()).output().expect("infer runs");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
        assert_eq!(output.status.signal(), Some(SIGPIPE), "{args:?}");
    }
}
