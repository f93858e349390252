//! Explains paths that do not exist: URLs, words that the shell did not expand, names that differ in case.

use std::path::{Path, PathBuf};

use crate::text::{canonical, printable};

/// The most names of a folder that are compared with a missing one.
const MAX_COMPARED: usize = 10_000;

/// Returns what a path that does not exist probably is, with the remedy, to follow an error; `None` if nothing suggests
/// itself. Reads folders, but never the network.
pub fn hint(path: &str) -> Option<String> {
    let exists = |path: &str| !path.is_empty() && Path::new(path).exists();
    let meant = |path: &str| format!("did you mean `{}`?", printable(path));
    if let Some((scheme, rest)) = path.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) {
        return Some(match scheme.eq_ignore_ascii_case("file") {
            true if exists(rest) => meant(rest),
            true => "a path is given without `file://`".to_owned(),
            false => "it is a URL, and URLs are not read here: download the file, and give its path".to_owned(),
        });
    }
    if path.starts_with("data:") && path.contains(',') {
        return Some("it is a data URI: decode it, and give `-` with the bytes on standard input".to_owned());
    }
    if path == "~" || path.starts_with("~/") {
        return Some("the shell replaces `~` only where it begins a word without quotes: write $HOME".to_owned());
    }
    if path.starts_with('$') || path.starts_with('%') && path[1..].contains('%') {
        return Some(
            "the variable was not replaced: single quotes prevent that, and every shell has its own form".into(),
        );
    }
    let bare = path.trim().trim_matches(['"', '\'', '`', '“', '”', '‘', '’', '«', '»']).trim();
    if bare != path && exists(bare) {
        return Some(format!("{} The name has quotes or spaces around it", meant(bare)));
    }
    if cfg!(unix) && path.contains('\\') {
        let slashes = path.replace('\\', "/");
        if exists(&slashes) {
            return Some(meant(&slashes));
        }
    }
    if let [drive, b':', b'\\' | b'/', rest @ ..] = path.as_bytes()
        && cfg!(unix)
        && drive.is_ascii_alphabetic()
    {
        let rest = String::from_utf8_lossy(rest).replace('\\', "/");
        let drive = drive.to_ascii_lowercase() as char;
        return Some(format!("it is a path of Windows; WSL has it as `/mnt/{drive}/{}`", printable(&rest)));
    }
    if path.contains(',') && path.split(',').all(|part| exists(part.trim())) {
        return Some("several paths are separated by spaces, not by commas".to_owned());
    }
    alike(Path::new(path)).map(|found| meant(&found.to_string_lossy()))
}

fn is_scheme(text: &str) -> bool {
    text.len() > 1 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// The path whose names differ in case or in their Unicode form only, if it is the only one.
fn alike(path: &Path) -> Option<PathBuf> {
    let mut found = PathBuf::new();
    for part in path.components() {
        let next = found.join(part);
        // `/`, `.` and `..` are always there.
        if next.symlink_metadata().is_ok() || next.file_name().is_none() {
            found = next;
            continue;
        }
        let wanted = canonical(&part.as_os_str().to_string_lossy()).to_lowercase();
        let folder = if found.as_os_str().is_empty() { Path::new(".") } else { &found };
        let names = folder.read_dir().ok()?.take(MAX_COMPARED).filter_map(|entry| Some(entry.ok()?.file_name()));
        let mut same = names.filter(|name| canonical(&name.to_string_lossy()).to_lowercase() == wanted);
        let (Some(name), None) = (same.next(), same.next()) else { return None };
        found.push(name);
    }
    found.exists().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_path_is_named() {
        for (path, hint_of) in [
            ("https://example.org/dog.jpg", "download the file"),
            ("hf://timm/resnet18", "it is a URL"),
            ("file:///none/a.png", "without `file://`"),
            ("data:image/png;base64,AAAA", "data URI"),
            ("~/photos", "$HOME"),
            ("$HOME/photos", "was not replaced"),
            ("%USERPROFILE%\\photos", "was not replaced"),
        ] {
            let hint = hint(path).unwrap_or_default();
            assert!(hint.contains(hint_of), "{path}: {hint}");
        }
        for path in ["nothing", "no/such/folder", "", "a:b", "~name", "100%", "a,b", "c:photos"] {
            assert_eq!(hint(path), None, "{path}");
        }
    }

    #[test]
    fn what_is_there_under_another_spelling_is_suggested() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name).to_str().expect("Unicode").to_owned();
        std::fs::create_dir(at("Photos")).expect("created");
        for name in ["Photos/dog.jpg", "Photos/caf\u{e9}.png", "twice", "TWICE"] {
            std::fs::write(at(name), "x").expect("written");
        }
        let meant = |path: &str, name: &str| {
            let (hint, at) = (hint(&at(path)).unwrap_or_default(), at(name));
            assert!(hint.contains(&format!("did you mean `{at}`?")), "{path}: {hint}");
        };
        meant("photos/DOG.JPG", "Photos/dog.jpg");
        meant("Photos/cafe\u{301}.png", "Photos/caf\u{e9}.png");
        meant("Photos/dog.jpg ", "Photos/dog.jpg");
        let quoted = hint(&format!("'{}'", at("Photos/dog.jpg"))).unwrap_or_default();
        assert!(quoted.contains(&at("Photos/dog.jpg")), "{quoted}");
        let url = hint(&format!("file://{}", at("Photos/dog.jpg"))).unwrap_or_default();
        assert!(url.contains("did you mean"), "{url}");
        let listed = hint(&format!("{},{}", at("twice"), at("TWICE"))).unwrap_or_default();
        assert!(listed.contains("separated by spaces"), "{listed}");
        if cfg!(target_os = "linux") {
            assert_eq!(hint(&at("Twice")), None, "two are alike");
        }
        assert_eq!(hint(&at("Photos/cat.jpg")), None);
    }

    #[cfg(unix)]
    #[test]
    fn paths_of_windows_are_recognized() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("a.png"), "x").expect("written");
        let backslashes = format!("{}\\a.png", folder.path().display());
        assert!(hint(&backslashes).is_some_and(|hint| hint.contains("/a.png`?")));
        let drive = hint("C:\\photos\\a.png").unwrap_or_default();
        assert!(drive.contains("/mnt/c/photos/a.png"), "{drive}");
    }
}
