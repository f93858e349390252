//! The frame of a page, and formatting of values.

use std::fmt::Write;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// A page under construction: a head, then sections listed in a table of contents.
pub(crate) struct Page {
    title: String,
    head: String,
    contents: String,
    sections: String,
}

impl Page {
    /// Creates a page with a title (text) and a head (HTML).
    pub(crate) fn new(title: &str, head: String) -> Self {
        Self { title: title.to_string(), head, contents: String::new(), sections: String::new() }
    }

    /// Adds a section, unless its body (HTML) is empty.
    pub(crate) fn section(&mut self, id: &str, title: &str, body: &str) {
        if !body.is_empty() {
            let _ = write!(self.contents, "<a href=\"#{id}\">{title}</a>\n ");
            let _ = writeln!(self.sections, "<section id=\"{id}\">\n<h2>{title}</h2>\n{body}</section>");
        }
    }

    /// Returns the whole page. Its content security policy forbids external resources.
    pub(crate) fn finish(&self) -> String {
        let nav =
            if self.contents.is_empty() { String::new() } else { format!("<nav>{}</nav>\n", self.contents.trim()) };
        format!(
            r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{}</title>
<style>
{STYLE}</style>
</head>
<body>
<header>
{}</header>
{nav}<main>
{}</main>
<script>
{SCRIPT}</script>
</body>
</html>
"#,
            escape(&self.title),
            self.head,
            self.sections
        )
    }
}

/// Escapes text for HTML, SVG and their attributes. Characters that change the text direction, or that XML forbids, are
/// replaced.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(character),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            control if control.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

/// Formats a count with thousands separators.
pub(crate) fn thousands(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a count and its noun.
pub(crate) fn plural(count: usize, noun: &str) -> String {
    format!("{} {noun}{}", thousands(count), if count == 1 { "" } else { "s" })
}

/// Formats a percentage with `decimals` decimals.
pub(crate) fn percent(value: f64, decimals: usize) -> String {
    format!("{value:.decimals$}\u{202f}%")
}

/// Formats an interval of percentages.
pub(crate) fn interval((low, high): (f64, f64)) -> String {
    format!("{low:.1}–{high:.1}\u{202f}%")
}

/// Formats a number with `digits` significant digits, without trailing zeros.
pub(crate) fn significant(value: f64, digits: usize) -> String {
    if value == 0.0 {
        return "0".to_string();
    }
    if !value.is_finite() {
        return "–".to_string();
    }
    let scientific = format!("{:.*e}", digits.max(1) - 1, value);
    // The exponent after rounding: 9.999 to three digits is 10.0.
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trim = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text.to_string(),
    };
    let text = if (-4..=9).contains(&exponent) {
        trim(&format!("{:.*}", (digits as i32 - 1 - exponent).max(0) as usize, value))
    } else {
        format!("{}e{exponent}", trim(mantissa))
    };
    text.replace('-', "\u{2212}")
}

/// Formats a duration in its two largest units.
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "–".to_string();
    }
    if seconds < 9.95 {
        return format!("{seconds:.1}\u{202f}s");
    }
    let whole = seconds.round() as u64;
    let (days, hours, minutes, rest) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60, whole % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}\u{202f}s"),
        (0, 0, _) => format!("{minutes}\u{202f}min {rest}\u{202f}s"),
        (0, _, _) => format!("{hours}\u{202f}h {minutes}\u{202f}min"),
        _ => format!("{days}\u{202f}d {hours}\u{202f}h"),
    }
}

/// Formats an RFC 3339 time to the minute; anything else is unchanged.
pub(crate) fn moment(time: &str) -> String {
    let zone = if time.ends_with('Z') || time.ends_with("+00:00") { " UTC" } else { "" };
    match (time.split_once('T'), time.is_ascii()) {
        (Some((day, clock)), true) if day.len() == 10 && clock.len() >= 5 => format!("{day} {}{zone}", &clock[..5]),
        _ => time.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_escaped_and_direction_marks_are_replaced() {
        assert_eq!(escape(r#"<a b="c">&'"#), "&lt;a b=&quot;c&quot;&gt;&amp;&#39;");
        assert_eq!(escape("é, 猫\u{202e}\u{0}"), "é, 猫\u{fffd}\u{fffd}");
    }

    #[test]
    fn numbers_are_formatted() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(1_281_167), "1,281,167");
        assert_eq!((plural(1, "image"), plural(1000, "image")), ("1 image".to_string(), "1,000 images".to_string()));
        assert_eq!(significant(0.000_123_456, 3), "0.000123");
        assert_eq!(significant(9.9996, 4), "10");
        assert_eq!(significant(-1.5e-7, 3), "\u{2212}1.5e\u{2212}7");
        assert_eq!(significant(503.0, 5), "503");
        assert_eq!(significant(1e30, 3), "1e30");
    }

    #[test]
    fn durations_have_two_units() {
        assert_eq!(duration(0.04), "0.0\u{202f}s");
        assert_eq!(duration(59.7), "1\u{202f}min 0\u{202f}s");
        assert_eq!(duration(3700.0), "1\u{202f}h 1\u{202f}min");
        assert_eq!(duration(200_000.0), "2\u{202f}d 7\u{202f}h");
        assert_eq!(duration(f64::NAN), "–");
    }

    #[test]
    fn times_are_formatted_to_the_minute() {
        assert_eq!(moment("2026-11-24T08:07:31.5Z"), "2026-11-24 08:07 UTC");
        assert_eq!(moment("yesterday"), "yesterday");
        assert_eq!(moment("2026-11-24Tééé"), "2026-11-24Tééé");
    }
}
