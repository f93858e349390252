//! Patterns for many files: braces as the shell has them, wildcards as `glob` has them.

use std::path::PathBuf;

use glob::MatchOptions;

use crate::{Error, Result};

/// The most names that braces may expand to.
const MAX_EXPANSION: usize = 1 << 20;

/// Whether a specification that is not an existing path is a pattern.
pub fn is_pattern(spec: &str) -> bool {
    spec.contains(['{', '*', '?', '['])
}

/// Expands `{0000..1023}` and `{train,val}`, nested and repeated; text without braces is returned unchanged.
///
/// # Errors
/// [`Error::Layout`] for more than a million names.
pub(crate) fn expand_braces(pattern: &str) -> Result<Vec<String>> {
    let mut done = Vec::new();
    let mut open = vec![pattern.to_owned()];
    while let Some(pattern) = open.pop() {
        match innermost_brace(&pattern) {
            None => done.push(pattern),
            Some((before, choices, after)) => {
                if open.len() + done.len() + choices.len() > MAX_EXPANSION {
                    return Err(Error::layout(pattern, format!("expands to more than {MAX_EXPANSION} files")));
                }
                open.extend(choices.iter().rev().map(|choice| format!("{before}{choice}{after}")));
            }
        }
    }
    Ok(done)
}

/// Returns the first expandable brace without nested ones: the text before it, its alternatives, the text after it.
fn innermost_brace(pattern: &str) -> Option<(&str, Vec<String>, &str)> {
    let mut from = 0;
    while let Some(end) = pattern[from..].find('}').map(|at| from + at) {
        if let Some(start) = pattern[..end].rfind('{')
            && start >= from
            && let Some(choices) = choices(&pattern[start + 1..end])
        {
            return Some((&pattern[..start], choices, &pattern[end + 1..]));
        }
        from = end + 1;
    }
    None
}

fn choices(inside: &str) -> Option<Vec<String>> {
    if let Some((first, last)) = inside.split_once("..") {
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(first) || !is_number(last) {
            return None;
        }
        let padded = [first, last].iter().any(|text| text.len() > 1 && text.starts_with('0'));
        let width = if padded { first.len().max(last.len()) } else { 0 };
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        let number = |value: u64| format!("{value:0width$}");
        // One more than allowed is enough for the caller to refuse it.
        let limit = MAX_EXPANSION + 1;
        return Some(if first <= last {
            (first..=last).take(limit).map(number).collect()
        } else {
            (last..=first).rev().take(limit).map(number).collect()
        });
    }
    inside.contains(',').then(|| inside.split(',').map(str::to_owned).collect())
}

/// The files that a local pattern names, in the pattern's order; wildcards expand in the order of names. A name without
/// wildcards is kept even if it does not exist, so that a missing shard is reported by name.
///
/// # Errors
/// [`Error::Layout`] for a pattern that is malformed or matches nothing, [`Error::Io`] for an unreadable folder.
pub fn local_files(pattern: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for expanded in expand_braces(pattern)? {
        if !expanded.contains(['*', '?', '[']) {
            files.push(PathBuf::from(expanded));
            continue;
        }
        let options = MatchOptions { require_literal_leading_dot: true, ..MatchOptions::new() };
        let matches =
            glob::glob_with(&expanded, options).map_err(|e| Error::layout(pattern, format!("bad pattern: {e}")))?;
        for path in matches {
            files.push(path.map_err(|e| Error::io(e.path().to_owned(), e.into()))?);
        }
    }
    if files.is_empty() {
        return Err(Error::layout(pattern, "no file matches this pattern"));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_expand_as_in_the_shell() {
        for (pattern, expected) in [
            ("a-{008..011}.tar", &["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"][..]),
            ("{9..11}", &["9", "10", "11"]),
            ("{2..1}", &["2", "1"]),
            ("{a,b}-{0..1}", &["a-0", "a-1", "b-0", "b-1"]),
            ("{x{1,2},y}", &["x1", "y", "x2", "y"]),
            ("plain.tar", &["plain.tar"]),
            ("{odd", &["{odd"]),
            ("}{,}", &["}", "}"]),
            ("{one}-{0..1}", &["{one}-0", "{one}-1"]),
            ("{a..b}", &["{a..b}"]),
        ] {
            assert_eq!(expand_braces(pattern).unwrap(), expected, "{pattern}");
        }
    }

    #[test]
    fn a_brace_bomb_is_an_error() {
        for bomb in ["{0..18446744073709551615}", "{0..9999}{0..9999}{0..9999}", "{1..1048577}"] {
            assert!(expand_braces(bomb).is_err(), "{bomb}");
        }
    }

    #[test]
    fn a_pattern_finds_files_in_order_and_says_when_there_are_none() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["s-1.tar", "s-0.tar", "other.txt", ".s-2.tar"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let pattern = |tail: &str| folder.path().join(tail).to_str().unwrap().to_owned();
        let found = local_files(&pattern("*.tar")).unwrap();
        assert_eq!(found, [folder.path().join("s-0.tar"), folder.path().join("s-1.tar")]);
        assert!(local_files(&pattern("*.zip")).is_err());
        assert_eq!(local_files(&pattern("s-{1..2}.tar")).unwrap().len(), 2, "a named file need not exist yet");
    }
}
