//! Text from files and requests: escaped for terminals and spreadsheets; similar names.

use std::borrow::Cow;

use unicode_normalization::{UnicodeNormalization, is_nfc};

/// Escapes what would change the text around it on a terminal: control characters (`\n`, `\u{1b}`), line separators and
/// marks that change the direction of writing. For names of files, classes and tensors.
pub fn printable(text: &str) -> Cow<'_, str> {
    escape(text, |_| false)
}

/// As [`printable`], but keeps line breaks and tabs. For messages that may have several lines.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| matches!(c, '\n' | '\t'))
}

/// Returns the candidates most similar to `name`, the best first, for "did you mean": at most `count`, and none that is
/// not similar. Names that `name` begins come first, then those with the fewest edits.
pub fn similar<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>, count: usize) -> Vec<&'a str> {
    const SIMILAR: f64 = 0.8;
    let name = name.to_ascii_lowercase();
    let mut similar: Vec<((bool, usize), f64, &str)> = candidates
        .into_iter()
        .map(|candidate| {
            let lower = candidate.to_ascii_lowercase();
            let rank = (!lower.starts_with(&name), strsim::damerau_levenshtein(&name, &lower));
            (rank, strsim::jaro_winkler(&name, &lower), candidate)
        })
        .filter(|(_, similarity, _)| *similarity >= SIMILAR)
        .collect();
    similar.sort_by(|(rank, a, _), (other, b, _)| rank.cmp(other).then(b.total_cmp(a)));
    similar.into_iter().map(|(.., candidate)| candidate).take(count).collect()
}

/// Returns the candidate most similar to `name`, as [`similar`] has it.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    similar(name, candidates, 1).pop()
}

fn escape(text: &str, keep: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_unsafe = |c: char| {
        let reorders = matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        (c.is_control() || reorders) && !keep(c)
    };
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_unsafe(c) { escaped.extend(c.escape_default()) } else { escaped.push(c) }
    }
    Cow::Owned(escaped)
}

/// Returns the composed form (NFC) of a text. macOS decomposes the letters of file names, so that the same name in an
/// archive from there and in a folder of another system has other bytes.
pub fn canonical(text: &str) -> Cow<'_, str> {
    if is_nfc(text) { Cow::Borrowed(text) } else { Cow::Owned(text.nfc().collect()) }
}

/// Protects a text cell of a CSV file from being run as a formula: spreadsheets evaluate cells that begin with `=`, `+`,
/// `-` or `@`, also after a tab or a line break. Such a cell gets an apostrophe in front, which they do not show.
/// [`unescape_cell`] is the inverse.
pub fn escape_cell(text: &str) -> Cow<'_, str> {
    if is_formula(text.trim_start_matches('\'')) { Cow::Owned(format!("'{text}")) } else { Cow::Borrowed(text) }
}

/// Returns the text that [`escape_cell`] was given.
pub fn unescape_cell(cell: &str) -> &str {
    match cell.strip_prefix('\'') {
        Some(text) if is_formula(text.trim_start_matches('\'')) => text,
        _ => cell,
    }
}

/// A text field of a CSV row with [`escape_cell`]: `#[serde(with = "runtime::text::cell")]`.
pub mod cell {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{escape_cell, unescape_cell};

    /// Serializes the text as a cell.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&escape_cell(text))
    }

    /// Deserializes the text of a cell.
    ///
    /// # Errors
    /// The deserializer's.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
        let cell = String::deserialize(deserializer)?;
        Ok(unescape_cell(&cell).to_owned())
    }
}

fn is_formula(text: &str) -> bool {
    text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_similar_names_come_first_and_others_not_at_all() {
        let names = ["resnet18", "resnet50", "vgg16", "alexnet"];
        assert_eq!(nearest("resnet5", names), Some("resnet50"));
        assert_eq!(nearest("VGG", names), Some("vgg16"));
        assert_eq!(similar("resnet1", names, 2), ["resnet18", "resnet50"]);
        assert_eq!(nearest("mobilenet", names), None);
        assert_eq!(nearest("gpu", ["flex", "wgpu", "cuda"]), Some("wgpu"));
    }

    #[test]
    fn names_cannot_move_the_cursor_or_begin_a_line() {
        assert_eq!(printable("räuber 犬.jpg"), "räuber 犬.jpg");
        assert!(matches!(printable("plain"), Cow::Borrowed(_)));
        assert_eq!(printable("a\u{1b}[2Jb\nc\t\u{7f}\u{9b}"), "a\\u{1b}[2Jb\\nc\\t\\u{7f}\\u{9b}");
        assert_eq!(printable("gpj\u{202e}exe"), "gpj\\u{202e}exe");
        assert_eq!(printable_lines("two\n\tlines\u{1b}[31m\r"), "two\n\tlines\\u{1b}[31m\\r");
    }

    #[test]
    fn composed_and_decomposed_letters_are_the_same_text() {
        assert_eq!(canonical("the\u{301}"), "th\u{e9}");
        assert_eq!(canonical("\u{1112}\u{1161}\u{11ab}"), "\u{d55c}");
        assert!(matches!(canonical("th\u{e9} 犬"), Cow::Borrowed(_)));
    }

    #[test]
    fn formulas_are_cells_of_text_and_come_back_unchanged() {
        for text in ["=1+1", "+1", "-x", "@SUM(A1)", "\t=1", "'=1", "''=1", "'quoted'", "a=1", "", "'", "n01440764"] {
            let cell = escape_cell(text);
            assert!(!is_formula(&cell), "{cell}");
            assert_eq!(unescape_cell(&cell), text);
        }
        assert_eq!(escape_cell("=cmd"), "'=cmd");
        assert_eq!(escape_cell("a=1"), "a=1");
    }
}
