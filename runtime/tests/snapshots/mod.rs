//! Commands and what they print, as a file of fenced blocks: `$ command`, `? exit code`, the output. In an expected line
//! `[..]` stands for any text. For the tests of the binaries, by `#[path]`.

use std::{fs, path::Path, process::Command};

/// Runs the commands of `file`, a Markdown file, in a copy of the folder `input`, and compares their exit codes and output.
/// With the environment variable `UPDATE` the file is written anew. The commands must leave the folder as it is.
pub fn check(program: &str, file: &Path, input: &Path) {
    let folder = tempfile::tempdir().expect("a folder");
    copy(input, folder.path());
    let before = names(folder.path());
    let expected = fs::read_to_string(file).expect("the commands");
    let mut found = String::new();
    for block in expected.split_inclusive("```\n") {
        let Some(command) = block.lines().find_map(|line| line.strip_prefix("$ ")) else {
            found += block;
            continue;
        };
        let (_, arguments) = command.split_once(' ').unwrap_or((command, ""));
        let output = Command::new(program)
            .args(arguments.split_whitespace())
            .current_dir(folder.path())
            .env("HEARTH_BACKEND", "flex")
            .env("NO_COLOR", "1")
            .env_remove("RUST_LOG")
            .output()
            .expect("the program runs");
        let code = output.status.code().map_or("none".to_string(), |code| code.to_string());
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let mut printed = format!("$ {command}\n? {code}\n{stdout}{stderr}");
        printed.truncate(printed.trim_end().len());
        // What an expected line leaves open stays open.
        let known: Vec<&str> = block.lines().filter(|line| line.contains("[..]")).collect();
        let line = |line: &str| known.iter().find(|known| line_matches(known, line)).unwrap_or(&line).to_string();
        let printed = match std::env::var_os("UPDATE") {
            Some(_) => printed.lines().map(line).collect::<Vec<_>>().join("\n"),
            None => printed,
        };
        found += &format!("{printed}\n```\n");
    }
    if std::env::var_os("UPDATE").is_some() {
        return fs::write(file, found).expect("written");
    }
    let differences: Vec<String> = expected
        .split("```\n")
        .zip(found.split("```\n"))
        .filter(|(expected, found)| !matches(expected, found))
        .map(|(expected, found)| format!("expected:\n{expected}\nfound:\n{found}"))
        .collect();
    assert!(differences.is_empty(), "{}\nUPDATE=1 accepts what is found", differences.join("\n"));
    assert_eq!(names(folder.path()), before, "a command left something behind");
}

fn matches(expected: &str, found: &str) -> bool {
    let (expected, found) = (expected.trim_end(), found.trim_end());
    expected.lines().count() == found.lines().count()
        && expected.lines().zip(found.lines()).all(|(expected, found)| line_matches(expected, found))
}

fn line_matches(expected: &str, found: &str) -> bool {
    match expected.split_once("[..]") {
        Some((start, end)) => found.starts_with(start) && found.ends_with(end),
        None => expected == found,
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a folder") {
        let (path, to) = (entry.as_ref().expect("an entry").path(), to.join(entry.expect("an entry").file_name()));
        match path.is_dir() {
            true => {
                fs::create_dir(&to).expect("a folder");
                copy(&path, &to);
            }
            false => drop(fs::copy(&path, &to).expect("copied")),
        }
    }
}

fn names(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut names: Vec<_> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    names.sort();
    names
}
