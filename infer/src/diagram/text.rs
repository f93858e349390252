//! Formatting of numbers and shapes, and text widths.

/// Formats a shape as papers do: `256 × 56 × 56`.
pub(super) fn shape(sizes: &[usize]) -> String {
    sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(" × ")
}

/// Formats a count in three digits: `1.33 M`, `138 M`, `0.69 G`.
pub(super) fn short(count: u64) -> String {
    if count < 1000 {
        return count.to_string();
    }
    let units = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    let fits = |&(unit, _): &(f64, &str)| count as f64 >= 0.5 * unit;
    let (unit, letter) = units.into_iter().find(fits).unwrap_or((1e3, "k"));
    let value = count as f64 / unit;
    let decimals = match value {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {letter}")
}

/// Formats the range of names from `first` to `last`: `layer1.1–3` for `layer1.1` and `layer1.3`.
pub(super) fn range(first: &str, last: &str) -> String {
    match (first.rsplit_once('.'), last.rsplit_once('.')) {
        _ if first == last => first.to_string(),
        (Some((of_first, _)), Some((of_last, end))) if of_first == of_last => format!("{first}–{end}"),
        _ => format!("{first} – {last}"),
    }
}

/// Estimates the width of a text in common sans-serif fonts; rather too wide than too narrow.
pub(super) fn width(text: &str, size: f64) -> f64 {
    let of = |character: char| match character {
        'i' | 'j' | 'l' | '.' | ',' | ':' | ';' | '\'' | '|' | '!' | ' ' => 0.36,
        'm' | 'w' | 'M' | 'W' | '%' | '@' => 0.95,
        'A'..='Z' => 0.74,
        '\u{d7}' | '\u{2013}' => 0.7,
        '\u{2e80}'.. => 1.05,
        _ => 0.62,
    };
    text.chars().map(of).sum::<f64>() * size
}

/// Cuts the text with an ellipsis if it is wider than `width`.
pub(super) fn shorten(text: &str, size: f64, room: f64) -> String {
    if width(text, size) <= room {
        return text.to_string();
    }
    let mut short = String::new();
    for character in text.chars() {
        if width(&short, size) + 2.0 * size > room {
            break;
        }
        short.push(character);
    }
    short.trim_end().to_string() + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_three_digits() {
        let counts = [0, 999, 1000, 9408, 70_400, 99_990, 215_808, 9_996_000, 25_557_032, 138_357_544, 4_089_184_256];
        let texts = counts.map(short);
        let expected =
            ["0", "999", "1.00 k", "9.41 k", "70.4 k", "100 k", "216 k", "10.0 M", "25.6 M", "138 M", "4.09 G"];
        assert_eq!(texts, expected);
    }

    #[test]
    fn ranges_show_only_the_differing_part() {
        assert_eq!(range("features.0", "features.4"), "features.0–4");
        assert_eq!(range("fc", "fc"), "fc");
        assert_eq!(range("layer1.0.conv1", "layer1.2.conv2"), "layer1.0.conv1 – layer1.2.conv2");
    }

    #[test]
    fn long_texts_are_cut() {
        let long = "a very long title that goes on and on";
        let cut = shorten(long, 12.0, 100.0);
        assert!(cut.ends_with('…') && width(&cut, 12.0) <= 100.0, "{cut}");
        assert_eq!(shorten("short", 12.0, 100.0), "short");
    }
}
