//! What the tests on reference data share.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::{fs, path::PathBuf};

/// Returns the folder named by the environment, or its default; prints a message and returns `None` if it is missing.
fn folder(variable: &str, default: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable)
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(default), PathBuf::from);
    if !path.is_dir() {
        eprintln!("skipped: {} is missing (set {variable})", path.display());
        return None;
    }
    Some(path)
}

/// The folder of reference results.
pub fn golden() -> Option<PathBuf> {
    folder("HEARTH_GOLDEN", "golden")
}

/// The folder of real images.
pub fn data() -> Option<PathBuf> {
    folder("HEARTH_DATA", "data")
}

/// The regular members of a tar archive: names and contents.
pub fn tar_members(archive: &[u8]) -> Vec<(String, &[u8])> {
    let mut members = Vec::new();
    let mut rest = archive;
    while rest.len() >= 512 && rest[0] != 0 {
        let text =
            |range: std::ops::Range<usize>| String::from_utf8_lossy(&rest[range]).trim_matches(['\0', ' ']).to_owned();
        let size = usize::from_str_radix(&text(124..136), 8).expect("an octal size");
        members.push((text(0..100), &rest[512..512 + size]));
        rest = &rest[512 + size.next_multiple_of(512)..];
    }
    members
}

/// The photographs of the sample of the ImageNet validation archive.
pub fn validation_archive() -> Option<Vec<u8>> {
    Some(fs::read(data()?.join("ilsvrc2012-sample/ILSVRC2012_img_val.tar")).expect("the archive can be read"))
}

/// The small images of `fixtures/decode`: names and contents, by name.
pub fn decode_fixtures() -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decode");
    let entries = fs::read_dir(folder).expect("the folder of fixtures").map(|entry| entry.expect("a fixture").path());
    let mut files: Vec<_> = entries
        .filter(|path| !path.to_string_lossy().ends_with(".expected.png"))
        .map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, fs::read(&path).expect("a fixture can be read"))
        })
        .collect();
    files.sort();
    files
}
