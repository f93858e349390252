//! Markup and its characters.
//!
//! HTML and SVG are written with [`maud::html!`], which escapes every interpolated value.

use maud::Markup;

/// Returns a whole HTML or SVG document as the text of a file.
///
/// Control characters, which XML forbids, and characters that change the direction of text become replacement
/// characters: escaping leaves them as they are.
pub fn to_document(markup: Markup) -> String {
    let document = markup.into_string();
    if document.contains(is_replaced) { document.replace(is_replaced, "\u{fffd}") } else { document }
}

fn is_replaced(character: char) -> bool {
    match character {
        '\n' | '\t' => false,
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffe}' | '\u{ffff}' => true,
        other => other.is_control(),
    }
}

#[cfg(test)]
mod tests {
    use maud::html;

    use super::*;

    #[test]
    fn markup_is_escaped_and_direction_marks_are_replaced() {
        let document = |text: &str| to_document(html! { p title=(text) { (text) } });
        let escaped = "&lt;a b=&quot;c&quot;&gt;&amp;'";
        assert_eq!(document(r#"<a b="c">&'"#), format!("<p title=\"{escaped}\">{escaped}</p>"));
        assert_eq!(
            document("é, 猫\u{202e}\u{0}\n"),
            "<p title=\"é, 猫\u{fffd}\u{fffd}\n\">é, 猫\u{fffd}\u{fffd}\n</p>"
        );
    }
}
