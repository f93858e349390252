//! Writes the drawing as SVG 1.1.

use std::{
    fmt::{self, Write},
    slice,
};

use maud::{Markup, html};
use report::markup::to_document;

use super::{
    layer::Kind,
    layout::{Anchor, Item, Rect, SUM, Style, TEXT, Text},
    page::Page,
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
    to_document(html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox={ "0 0 " (width) " " (height) } width=(width) height=(height)
            role="img" font-family="system-ui, Helvetica, Arial, sans-serif" font-size=(TEXT) {
            "\n" title { (page.title) }
            "\n" desc { (page.description) }
            "\n" rect width=(width) height=(height) fill=(PAPER) {}
            "\n" (draw_items(&mut page.items.iter()))
        }
        "\n"
    })
}

/// Draws the items up to the end of their group.
fn draw_items(items: &mut slice::Iter<Item>) -> Markup {
    html! {
        @while let Some(item) = items.next().filter(|item| !matches!(item, Item::Close)) {
            @if let Item::Open(about) = item {
                g { title { (about) } "\n" (draw_items(items)) }
            } @else {
                (draw_item(item))
            }
            "\n"
        }
    }
}

fn draw_item(item: &Item) -> Markup {
    let outlined = |at: &Rect, round: f64, [fill, stroke]: [&str; 2]| draw_rect(at, round, fill, Some(stroke), None);
    match item {
        Item::Open(_) | Item::Close => html! {},
        Item::Panel(at) => draw_rect(at, 8.0, GROUND, None, None),
        Item::Frame(at) => draw_rect(at, 8.0, "none", Some(LINES), Some("4 3")),
        Item::Box { at, kind, texts, about } => html! {
            g {
                title { (about) }
                (outlined(at, 5.0, kind.colors()))
                @for text in texts { (draw_text(text)) }
            }
        },
        Item::End { at, text } => html! { (outlined(at, at.height / 2.0, [PAPER, LINES])) (draw_text(text)) },
        Item::Sum { x, y, about } => {
            let [fill, stroke] = Kind::Join.colors();
            let arm = SUM - 4.0;
            let width = 2.0 * arm;
            html! {
                g stroke=(stroke) {
                    title { (about) }
                    circle cx=(Px(*x)) cy=(Px(*y)) r=(SUM) fill=(fill) {}
                    path d={ "M" (Px(x - arm)) " " (Px(*y)) "h" (width) "M" (Px(*x)) " " (Px(y - arm)) "v" (width) }
                        stroke=(INK) stroke-width="1.3" {}
                }
            }
        }
        Item::Line { points, round, head } => draw_line(points, *round, *head),
        Item::Text(text) => draw_text(text),
        Item::Share { at, share } => {
            let filled = Rect { width: at.width * share, ..*at };
            html! { (draw_rect(at, 0.0, TRACK, None, None)) (draw_rect(&filled, 0.0, LINES, None, None)) }
        }
        Item::Swatch { at, kind } => outlined(at, 3.0, kind.colors()),
    }
}

/// A coordinate or a length: a number with one decimal.
struct Px(f64);

impl fmt::Display for Px {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "{:.1}", self.0)
    }
}

fn draw_rect(at: &Rect, round: f64, fill: &str, stroke: Option<&str>, dashes: Option<&str>) -> Markup {
    let Rect { x, y, width, height } = *at;
    html! {
        rect x=(Px(x)) y=(Px(y)) width=(Px(width)) height=(Px(height)) rx=[(round > 0.0).then_some(round)]
            fill=(fill) stroke=[stroke] stroke-dasharray=[dashes] {}
    }
}

fn draw_text(text: &Text) -> Markup {
    let anchor = match text.anchor {
        Anchor::Start => None,
        Anchor::Middle => Some("middle"),
        Anchor::End => Some("end"),
    };
    let size = (!matches!(text.style, Style::Plain | Style::Strong)).then(|| text.style.size());
    let weight = matches!(text.style, Style::Strong | Style::Title).then_some("600");
    let fill = if matches!(text.style, Style::Muted | Style::Note) { MUTED } else { INK };
    html! {
        text x=(Px(text.x)) y=(Px(text.y)) text-anchor=[anchor] font-size=[size] font-weight=[weight] fill=(fill) {
            (text.text)
        }
    }
}

/// Draws a line with rounded corners, and an arrowhead at its end.
fn draw_line(points: &[(f64, f64)], round: f64, head: bool) -> Markup {
    let mut points = points.to_vec();
    points.dedup();
    let [first, rest @ ..] = &points[..] else { return html! {} };
    let Some(&(end_x, end_y)) = rest.last() else { return html! {} };
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
    // Lines end downward, or to the left.
    let (x, y) = points[points.len() - 2];
    let wings = if (x - end_x).abs() > (y - end_y).abs() { "l6 -3.5v7z" } else { "l-3.5 -6h7z" };
    html! {
        path d=(path) fill="none" stroke=(LINES) {}
        @if head { path d={ "M" (Px(end_x)) " " (Px(end_y)) (wings) } fill=(LINES) {} }
    }
}
