//! The frame of a page, and formatting of values.

use std::time::Duration;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use runtime::progress::human_duration;

use super::markup::to_document;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// Forbids external resources.
const SECURITY_POLICY: &str =
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

/// A page under construction: a head, then sections listed in a table of contents.
pub(crate) struct Page {
    title: String,
    head: Markup,
    sections: Vec<Section>,
}

struct Section {
    id: &'static str,
    title: &'static str,
    body: Markup,
}

impl Page {
    /// Creates a page.
    pub(crate) fn new(title: &str, head: Markup) -> Self {
        Self { title: title.to_string(), head, sections: Vec::new() }
    }

    /// Adds a section, if it has a body.
    pub(crate) fn section(&mut self, id: &'static str, title: &'static str, body: Option<Markup>) {
        self.sections.extend(body.map(|body| Section { id, title, body }));
    }

    /// Returns the whole page.
    pub(crate) fn finish(&self) -> String {
        to_document(html! {
            (DOCTYPE) "\n"
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta http-equiv="Content-Security-Policy" content=(SECURITY_POLICY);
                    meta name="color-scheme" content="light dark";
                    title { (self.title) } "\n"
                    // Browsers do not unescape style sheets. This one is a constant, and a test checks that it does not
                    // end its element.
                    style { (PreEscaped(STYLE)) }
                } "\n"
                body {
                    header { (self.head) } "\n"
                    @if !self.sections.is_empty() {
                        nav { @for Section { id, title, .. } in &self.sections { a href={ "#" (id) } { (title) } " " } }
                    }
                    main {
                        @for Section { id, title, body } in &self.sections {
                            "\n" section id=(id) { h2 { (title) } (body) }
                        }
                    } "\n"
                    // As above: browsers do not unescape scripts, and this one is a constant.
                    script { (PreEscaped(SCRIPT)) }
                }
            } "\n"
        })
    }
}

/// Formats a count with thousands separators.
pub(crate) fn thousands(count: usize) -> String {
    runtime::progress::thousands(count as u64)
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

/// Formats a duration in its two largest units, which stay on one line.
pub(crate) fn duration(seconds: f64) -> String {
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) => human_duration(duration).replace(' ', "\u{202f}"),
        Err(_) => "–".to_string(),
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
    fn style_and_script_do_not_end_their_elements() {
        assert!(!STYLE.contains("</") && !SCRIPT.contains("</") && !SCRIPT.contains("<!--"));
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
        assert_eq!(duration(59.7), "1\u{202f}min\u{202f}00\u{202f}s");
        assert_eq!(duration(3700.0), "1\u{202f}h\u{202f}01\u{202f}min");
        assert_eq!(duration(200_000.0), "2\u{202f}d\u{202f}07\u{202f}h");
        assert_eq!(duration(f64::NAN), "–");
    }

    #[test]
    fn times_are_formatted_to_the_minute() {
        assert_eq!(moment("2026-11-24T08:07:31.5Z"), "2026-11-24 08:07 UTC");
        assert_eq!(moment("yesterday"), "yesterday");
        assert_eq!(moment("2026-11-24Tééé"), "2026-11-24Tééé");
    }
}
