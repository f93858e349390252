//! Writes the drawing as SVG 1.1.

use std::fmt::Write;

use super::{
    layer::Kind,
    layout::{Anchor, Item, Rect, SUM, Style, TEXT, Text},
    page::Page,
    text::escape,
};

const PAPER: &str = "#ffffff";
/// The background of a stage.
const GROUND: &str = "#f4f5f7";
const INK: &str = "#1d1f22";
/// Secondary text.
const MUTED: &str = "#555a62";
const LINES: &str = "#62676f";
/// The track of the bars of shares.
const TRACK: &str = "#dcdfe3";

impl Kind {
    /// The colors of boxes and their borders: tints and shades of Okabe and Ito's palette.
    fn colors(self) -> [&'static str; 2] {
        match self {
            Kind::Convolution => ["#d5e6f4", "#0072b2"],
            Kind::Pooling => ["#fbdfce", "#d55e00"],
            Kind::Norm => ["#f1dcea", "#b8639a"],
            Kind::Linear => ["#cfeee2", "#009e73"],
            Kind::Join => ["#fcedc4", "#c48a00"],
            Kind::Other => ["#e6e8eb", "#84888f"],
        }
    }
}

/// Returns the page as an SVG file on a light background.
pub(super) fn draw(page: &Page) -> String {
    let (width, height) = (page.width.ceil(), page.height.ceil());
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" font-family="system-ui, Helvetica, Arial, sans-serif" font-size="{TEXT}">
<title>{}</title>
<desc>{}</desc>
<rect width="{width}" height="{height}" fill="{PAPER}"/>
"#,
        escape(&page.title),
        escape(&page.description)
    );
    for item in &page.items {
        draw_item(&mut svg, item);
    }
    svg + "</svg>\n"
}

fn draw_item(svg: &mut String, item: &Item) {
    match item {
        Item::Open(about) => {
            let _ = write!(svg, "<g><title>{}</title>", escape(about));
        }
        Item::Close => svg.push_str("</g>"),
        Item::Panel(at) => draw_rect(svg, at, 8.0, &format!(r#"fill="{GROUND}""#)),
        Item::Frame(at) => {
            draw_rect(svg, at, 8.0, &format!(r#"fill="none" stroke="{LINES}" stroke-dasharray="4 3""#));
        }
        Item::Box { at, kind, texts, about } => {
            let [fill, stroke] = kind.colors();
            let _ = write!(svg, "<g><title>{}</title>", escape(about));
            draw_rect(svg, at, 5.0, &format!(r#"fill="{fill}" stroke="{stroke}""#));
            texts.iter().for_each(|text| draw_text(svg, text));
            svg.push_str("</g>");
        }
        Item::End { at, text } => {
            draw_rect(svg, at, at.height / 2.0, &format!(r#"fill="{PAPER}" stroke="{LINES}""#));
            draw_text(svg, text);
        }
        Item::Sum { x, y, about } => {
            let [fill, stroke] = Kind::Join.colors();
            let arm = SUM - 4.0;
            let _ = write!(
                svg,
                r#"<g stroke="{stroke}"><title>{}</title><circle cx="{x:.1}" cy="{y:.1}" r="{SUM}" fill="{fill}"/><path d="M{:.1} {y:.1}h{width}M{x:.1} {:.1}v{width}" stroke="{INK}" stroke-width="1.3"/></g>"#,
                escape(about),
                x - arm,
                y - arm,
                width = 2.0 * arm
            );
        }
        Item::Line { points, round, head } => draw_line(svg, points, *round, *head),
        Item::Text(text) => draw_text(svg, text),
        Item::Share { at, share } => {
            draw_rect(svg, at, 0.0, &format!(r#"fill="{TRACK}""#));
            let filled = Rect { width: at.width * share, ..*at };
            draw_rect(svg, &filled, 0.0, &format!(r#"fill="{LINES}""#));
        }
        Item::Swatch { at, kind } => {
            let [fill, stroke] = kind.colors();
            draw_rect(svg, at, 3.0, &format!(r#"fill="{fill}" stroke="{stroke}""#));
        }
    }
    svg.push('\n');
}

fn draw_rect(svg: &mut String, at: &Rect, round: f64, paint: &str) {
    let Rect { x, y, width, height } = at;
    let round = if round > 0.0 { format!(r#" rx="{round}""#) } else { String::new() };
    let _ = write!(svg, r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}"{round} {paint}/>"#);
}

fn draw_text(svg: &mut String, text: &Text) {
    let anchor = match text.anchor {
        Anchor::Start => "",
        Anchor::Middle => r#" text-anchor="middle""#,
        Anchor::End => r#" text-anchor="end""#,
    };
    let style = match text.style {
        Style::Plain => String::new(),
        Style::Strong => r#" font-weight="600""#.to_string(),
        style => format!(
            r#" font-size="{}"{}"#,
            style.size(),
            if style == Style::Title { r#" font-weight="600""# } else { "" }
        ),
    };
    let fill = if matches!(text.style, Style::Muted | Style::Note) { MUTED } else { INK };
    let (x, y) = (text.x, text.y);
    let _ = write!(svg, r#"<text x="{x:.1}" y="{y:.1}"{anchor}{style} fill="{fill}">{}</text>"#, escape(&text.text));
}

/// Draws a line with rounded corners, and an arrowhead at its end.
fn draw_line(svg: &mut String, points: &[(f64, f64)], round: f64, head: bool) {
    let mut points = points.to_vec();
    points.dedup();
    let [first, rest @ ..] = &points[..] else { return };
    let Some(&(end_x, end_y)) = rest.last() else { return };
    let mut path = format!("M{:.1} {:.1}", first.0, first.1);
    for corner in points.windows(3) {
        let [a, b, c] = [corner[0], corner[1], corner[2]];
        let length = |to: (f64, f64)| (to.0 - b.0).hypot(to.1 - b.1);
        let round = round.min(length(a) / 2.0).min(length(c) / 2.0);
        let towards = |to: (f64, f64)| {
            let part = round / length(to);
            (b.0 + (to.0 - b.0) * part, b.1 + (to.1 - b.1) * part)
        };
        let (before, after) = (towards(a), towards(c));
        let _ = write!(path, "L{:.1} {:.1}Q{:.1} {:.1} {:.1} {:.1}", before.0, before.1, b.0, b.1, after.0, after.1);
    }
    let _ = write!(path, "L{end_x:.1} {end_y:.1}");
    let _ = write!(svg, r#"<path d="{path}" fill="none" stroke="{LINES}"/>"#);
    if head {
        // Lines end downward, or to the left.
        let (x, y) = points[points.len() - 2];
        let wings = if (x - end_x).abs() > (y - end_y).abs() { "l6 -3.5v7z" } else { "l-3.5 -6h7z" };
        let _ = write!(svg, r#"<path d="M{end_x:.1} {end_y:.1}{wings}" fill="{LINES}"/>"#);
    }
}
