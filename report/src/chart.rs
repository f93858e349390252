//! SVG line charts with ticks, legends and labels derived from the data.
//!
//! [`Chart::to_svg`] returns a self-contained picture. The report draws the same chart in the page's colors, which
//! follow the reader's light or dark scheme.

use std::fmt::{self, Write};

use maud::{Markup, html};

use super::{markup::to_document, page::significant};

/// The colors of a drawing. In the page they are CSS variables.
pub(crate) struct Theme {
    /// The background of a self-contained drawing.
    paper: &'static str,
    /// The color of text.
    pub(crate) ink: &'static str,
    /// The color of secondary text.
    pub(crate) muted: &'static str,
    /// The color of grid lines.
    pub(crate) grid: &'static str,
    /// Okabe and Ito's palette, distinguishable for the color-blind: blue, vermilion, green, purple, orange, sky, gray, yellow.
    pub(crate) series: [&'static str; 8],
}

const LIGHT: Theme = Theme {
    paper: "#ffffff",
    ink: "#1d1f22",
    muted: "#62676f",
    grid: "#e6e6e2",
    series: ["#0072b2", "#d55e00", "#009e73", "#b8639a", "#d99000", "#56b4e9", "#84888f", "#a89b00"],
};

/// The colors that `page.css` defines.
pub(crate) const PAGE: Theme = Theme {
    paper: "var(--paper)",
    ink: "var(--ink)",
    muted: "var(--muted)",
    grid: "var(--grid)",
    series: ["var(--s0)", "var(--s1)", "var(--s2)", "var(--s3)", "var(--s4)", "var(--s5)", "var(--s6)", "var(--s7)"],
};

/// A coordinate or a length in a drawing: a number with one decimal.
pub(crate) struct Px(pub(crate) f64);

impl fmt::Display for Px {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "{:.1}", self.0)
    }
}

/// The font size of charts in pixels of the drawing.
pub(crate) const TEXT: f64 = 12.0;
const LINE: f64 = 16.0;
/// A line of more points than this is thinned to the extremes in each column of pixels.
const MANY_POINTS: usize = 1500;
/// A line whose total variation exceeds this multiple of its range is noise: it is drawn faintly under its mean.
const NOISY_RANGES: f64 = 30.0;
/// The width of the intervals over which that mean is taken, in pixels.
const MEAN_WIDTH: f64 = 4.0;
/// The largest number of points that are drawn as dots too.
const FEW_POINTS: usize = 40;

/// One line of a chart.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// The name in the legend.
    pub name: String,
    /// The points in order; a value that is not finite leaves a gap.
    pub points: Vec<(f64, f64)>,
    /// Whether the line is dashed.
    pub dashed: bool,
    /// The index in the palette; by default the index in the chart.
    pub color: Option<usize>,
}

impl Series {
    /// Creates a solid line in the next color.
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, dashed: false, color: None }
    }

    /// Makes the line dashed.
    pub fn dashed(self) -> Self {
        Self { dashed: true, ..self }
    }

    /// Sets the color by its index in the palette.
    pub fn colored(self, color: usize) -> Self {
        Self { color: Some(color), ..self }
    }
}

/// How an axis maps values to positions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scale {
    /// Linear.
    #[default]
    Linear,
    /// Logarithmic; values that are not positive leave gaps.
    Log,
}

impl Scale {
    fn forward(self, value: f64) -> f64 {
        match self {
            Scale::Linear => value,
            Scale::Log => value.log10(),
        }
    }

    fn backward(self, value: f64) -> f64 {
        match self {
            Scale::Linear => value,
            Scale::Log => 10f64.powf(value),
        }
    }

    /// Whether a value can be shown. The bound keeps the arithmetic of a diverged run finite.
    fn shows(self, value: f64) -> bool {
        value.abs() < 1e100 && (self == Scale::Linear || value > 1e-100)
    }
}

/// A line chart.
#[derive(Debug, Clone, Default)]
pub struct Chart {
    /// The title.
    pub title: String,
    /// The label of the horizontal axis.
    pub x_label: String,
    /// The label of the vertical axis.
    pub y_label: String,
    /// The horizontal scale.
    pub x_scale: Scale,
    /// The vertical scale.
    pub y_scale: Scale,
    /// The lines.
    pub series: Vec<Series>,
    /// A labeled vertical line.
    pub marker: Option<(f64, String)>,
}

/// An axis that maps values from `low` to `high` to pixels from `from` to `to`.
pub(crate) struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    /// Whether only whole numbers are ticks.
    whole: bool,
}

impl Axis {
    /// Creates a linear axis between two values.
    pub(crate) fn linear(low: f64, high: f64, from: f64, to: f64) -> Self {
        Self { scale: Scale::Linear, low, high, from, to, whole: false }
    }

    /// Creates an axis that contains all values, with a margin at its ends.
    fn around(values: impl Iterator<Item = f64> + Clone, scale: Scale, margin: f64) -> Self {
        let shown = values.filter(|&value| scale.shows(value));
        let whole = shown.clone().all(|value| value.fract() == 0.0) && scale == Scale::Linear;
        let low = shown.clone().fold(f64::INFINITY, f64::min);
        let high = shown.fold(f64::NEG_INFINITY, f64::max);
        let (low, high) = if low <= high { (scale.forward(low), scale.forward(high)) } else { (0.0, 1.0) };
        let span = high - low;
        let (low, high) = if span > high.abs() * 1e-9 {
            // An axis that nearly reaches zero starts at zero.
            let zero = scale == Scale::Linear && margin > 0.0 && low >= 0.0 && low < 0.3 * high;
            (if zero { 0.0 } else { low - margin * span }, high + margin * span)
        } else {
            // A single value is centered.
            let half = if whole { (1e-6 * high.abs()).max(1.0) } else { (0.1 * high.abs()).max(0.1) };
            (low - half, high + half)
        };
        Self { scale, low: scale.backward(low), high: scale.backward(high), from: 0.0, to: 1.0, whole }
    }

    /// Returns the pixel of a value.
    pub(crate) fn at(&self, value: f64) -> f64 {
        let (low, high) = (self.scale.forward(self.low), self.scale.forward(self.high));
        self.from + (self.scale.forward(value) - low) / (high - low) * (self.to - self.from)
    }

    /// Returns about `about` round values with their labels.
    pub(crate) fn ticks(&self, about: usize) -> Vec<(f64, String)> {
        match self.scale {
            Scale::Linear => linear_ticks(self.low, self.high, about, self.whole),
            Scale::Log => log_ticks(self.low, self.high, about),
        }
    }
}

/// Returns ticks at steps of 1, 2 or 5 times a power of ten.
fn linear_ticks(low: f64, high: f64, about: usize, whole: bool) -> Vec<(f64, String)> {
    let rough = (high - low) / about.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    // The round step nearest to the rough one, by ratio.
    let round = match rough / power {
        ..1.414 => 1.0,
        ..3.162 => 2.0,
        ..7.071 => 5.0,
        _ => 10.0,
    };
    let step = if whole { (round * power).max(1.0) } else { round * power };
    let (first, last) = ((low / step - 1e-9).ceil(), (high / step + 1e-9).floor());
    // Beyond 2^53 steps from zero the ticks are no longer distinct numbers.
    if !(step > 0.0 && first.abs() < 9e15 && last - first < 100.0) {
        return Vec::new();
    }
    let count = (last - first) as i64;
    let ticks: Vec<f64> = (0..=count).map(|tick| (first + tick as f64) * step).collect();
    let largest = ticks.iter().fold(0f64, |largest, tick| largest.max(tick.abs()));
    ticks.iter().map(|&tick| (tick, linear_label(tick, step, largest))).collect()
}

fn linear_label(tick: f64, step: f64, largest: f64) -> String {
    let (unit, suffix) = match largest {
        _ if tick == 0.0 => return "0".to_string(),
        _ if step < 0.9e-4 || largest >= 1e13 => return significant(tick, 4),
        1e9.. => (1e9, "G"),
        1e6.. => (1e6, "M"),
        1e4.. => (1e3, "k"),
        _ => (1.0, ""),
    };
    let decimals = (-(step / unit).log10() - 1e-9).ceil().clamp(0.0, 6.0) as usize;
    format!("{:.decimals$}{suffix}", tick / unit).replace('-', "\u{2212}")
}

/// Returns ticks at powers of ten, or at 1, 2 and 5 times those if few powers fit.
fn log_ticks(low: f64, high: f64, about: usize) -> Vec<(f64, String)> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let decades = high.log10() - low.log10();
    if decades < 0.7 {
        return linear_ticks(low, high, about, false);
    }
    let rounds: &[f64] = if decades < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let every = ((decades / about.max(1) as f64).ceil() as i32).max(1);
    let every = if rounds.len() > 1 { 1 } else { every };
    let mut ticks = Vec::new();
    for power in (first..=last).filter(|power| power.rem_euclid(every) == 0) {
        for round in rounds {
            let tick = round * 10f64.powi(power);
            if tick >= low * (1.0 - 1e-9) && tick <= high * (1.0 + 1e-9) {
                ticks.push((tick, log_label(*round, power)));
            }
        }
    }
    ticks
}

fn log_label(round: f64, power: i32) -> String {
    match power {
        -3..=-1 => format!("{:.*}", -power as usize, round * 10f64.powi(power)),
        0..=3 => format!("{:.0}", round * 10f64.powi(power)),
        4..=5 => format!("{:.0}k", round * 10f64.powi(power - 3)),
        _ => format!("{round:.0}e{power}").replace('-', "\u{2212}"),
    }
}

/// Estimates the width of a text in a sans-serif font.
pub(crate) fn text_width(text: &str, size: f64) -> f64 {
    let width = |character: char| match character {
        'i' | 'j' | 'l' | '.' | ',' | ':' | ';' | '\'' | '|' | '!' | ' ' => 0.32,
        'm' | 'w' | 'M' | 'W' | '%' | '@' => 0.9,
        'A'..='Z' => 0.68,
        '\u{2e80}'.. => 1.0,
        _ => 0.58,
    };
    text.chars().map(width).sum::<f64>() * size
}

/// Cuts the text with an ellipsis if it is wider than `width`.
pub(crate) fn shorten(text: &str, size: f64, width: f64) -> String {
    if text_width(text, size) <= width {
        return text.to_string();
    }
    let mut short = String::new();
    for character in text.chars() {
        if text_width(&short, size) + 1.6 * size > width {
            break;
        }
        short.push(character);
    }
    short.trim_end().to_string() + "…"
}

/// Splits the points at those that cannot be shown.
fn segments<'a>(points: &'a [(f64, f64)], x: &Axis, y: &Axis) -> Vec<&'a [(f64, f64)]> {
    let hidden = |&(a, b): &(f64, f64)| !(x.scale.shows(a) && y.scale.shows(b));
    points.split(hidden).filter(|run| !run.is_empty()).collect()
}

/// Returns the first, lowest, highest and last point of each pixel column, in order.
fn thinned(points: &[(f64, f64)], x: &Axis) -> Vec<(f64, f64)> {
    let column = |point: &(f64, f64)| x.at(point.0).floor();
    let mut kept = Vec::new();
    for column in points.chunk_by(|a, b| column(a) == column(b)) {
        let by_height = |&a: &usize, &b: &usize| column[a].1.total_cmp(&column[b].1);
        let low = (0..column.len()).min_by(by_height).unwrap_or(0);
        let high = (0..column.len()).max_by(by_height).unwrap_or(0);
        let mut keep = [0, low, high, column.len() - 1];
        keep.sort_unstable();
        let mut last = None;
        for index in keep {
            if last.replace(index) != Some(index) {
                kept.push(column[index]);
            }
        }
    }
    kept
}

/// Whether lines are so noisy that their mean is more informative.
fn is_noisy(runs: &[&[(f64, f64)]], y: &Axis) -> bool {
    let heights = runs.iter().copied().flatten().map(|point| y.at(point.1));
    let range = heights.clone().fold(0.0, f64::max) - heights.fold(f64::INFINITY, f64::min);
    let range = range.max(0.0);
    let path = runs.iter().flat_map(|run| run.windows(2)).map(|pair| (y.at(pair[0].1) - y.at(pair[1].1)).abs());
    path.sum::<f64>() > NOISY_RANGES * range
}

/// Returns the means of the points over intervals of a few pixels; geometric means on a logarithmic scale.
fn means(points: &[(f64, f64)], x: &Axis, y: &Axis) -> Vec<(f64, f64)> {
    let piece = |point: &(f64, f64)| (x.at(point.0) / MEAN_WIDTH).floor();
    let mean = |points: &[(f64, f64)], value: fn(&(f64, f64)) -> f64, scale: Scale| {
        scale.backward(points.iter().map(|point| scale.forward(value(point))).sum::<f64>() / points.len() as f64)
    };
    let pieces = points.chunk_by(|a, b| piece(a) == piece(b));
    pieces.map(|points| (mean(points, |point| point.0, x.scale), mean(points, |point| point.1, y.scale))).collect()
}

/// The size and context of a chart.
struct Canvas {
    width: f64,
    height: f64,
    /// Whether the chart is self-contained: with its title, and without the data for the page's tooltip.
    alone: bool,
}

impl Chart {
    /// Returns the chart as an SVG file on a light background.
    pub fn to_svg(&self) -> String {
        to_document(self.draw(&LIGHT, &Canvas { width: 696.0, height: 408.0, alone: true }))
    }

    /// Returns the chart as a figure of the page.
    pub(crate) fn to_figure(&self) -> Markup {
        let svg = self.draw(&PAGE, &Canvas { width: 420.0, height: 252.0, alone: false });
        html! { figure { figcaption { (self.title) } (svg) } }
    }

    /// Makes the vertical scale logarithmic if the values span more than this ratio.
    pub(crate) fn log_beyond(mut self, ratio: f64) -> Self {
        let values = self.series.iter().flat_map(|series| &series.points).map(|point| point.1);
        let (mut low, mut high) = (f64::INFINITY, 0f64);
        for value in values.filter(|&value| Scale::Linear.shows(value)) {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > 0.0 && high > ratio * low {
            self.y_scale = Scale::Log;
        }
        self
    }

    fn draw(&self, theme: &Theme, canvas: &Canvas) -> Markup {
        let &Canvas { width, height, alone } = canvas;
        let shown = |&(x, y): &(f64, f64)| self.x_scale.shows(x) && self.y_scale.shows(y);
        // Lines without a visible point are omitted; the others keep their colors.
        let lines = self.series.iter().enumerate().filter_map(|(index, series)| {
            let end = series.points.iter().rev().find(|point| shown(point)).copied()?;
            Some(Line::new(theme, index, series, end, width))
        });
        let lines: Vec<Line> = lines.collect();
        let points = self.series.iter().flat_map(|series| &series.points).copied().filter(shown);
        let marked = self.marker.iter().map(|marker| marker.0);
        let mut x = Axis::around(points.clone().map(|point| point.0).chain(marked), self.x_scale, 0.0);
        let mut y = Axis::around(points.map(|point| point.1), self.y_scale, 0.04);
        y.whole = false;

        // Names are placed at the line ends if those reach the right edge and there is room, else in a legend.
        let widest = lines.iter().map(|line| text_width(&line.name, TEXT)).fold(0.0, f64::max);
        let reach = lines.iter().all(|line| x.at(line.end.0) > 0.96);
        let direct = (2..=6).contains(&lines.len()) && widest < width * 0.22 && reach;
        let legend = if lines.len() > 1 && !direct { legend_rows(&lines, width - 16.0) } else { Vec::new() };

        let title_height = if alone && !self.title.is_empty() { 26.0 } else { 0.0 };
        let legend_top = title_height + 6.0;
        y.to = legend_top + legend.len() as f64 * LINE + if legend.is_empty() { 22.0 } else { 30.0 };
        y.from = height - 40.0;
        let y_ticks = y.ticks((y.from - y.to) as usize / 40);
        x.from = y_ticks.iter().map(|tick| text_width(&tick.1, TEXT)).fold(0.0, f64::max) + 14.0;
        x.to = width - if direct { widest + 22.0 } else { 14.0 };
        let x_ticks = x.ticks((x.to - x.from) as usize / 56);
        let axes = (&x, &y);

        let marker = self.marker.as_ref().filter(|marker| self.x_scale.shows(marker.0));
        let dotted = lines.iter().all(|line| line.series.points.len() <= FEW_POINTS);
        let content = html! {
            (draw_legend(theme, &lines, &legend, legend_top))
            (draw_axes(theme, (&x, &x_ticks, &self.x_label), (&y, &y_ticks, &self.y_label)))
            @if let Some((value, label)) = marker { (draw_marker(theme, *value, label, axes)) }
            @for line in &lines { (draw_line(line, axes, dotted, !alone)) }
            @if direct { (draw_names(theme, &lines, axes)) }
            @if lines.is_empty() {
                text x=((x.from + x.to) / 2.0) y=((y.from + y.to) / 2.0) text-anchor="middle" fill=(theme.muted) {
                    "no values yet"
                }
            }
        };
        self.frame(theme, canvas, axes, &content)
    }

    /// Returns the drawing with its size, and either background and title or the data for the page's tooltip.
    fn frame(&self, theme: &Theme, canvas: &Canvas, (x, y): (&Axis, &Axis), content: &Markup) -> Markup {
        const FONT: &str = "system-ui, sans-serif";
        let &Canvas { width, height, alone } = canvas;
        if !alone {
            let axis = |axis: &Axis| {
                let log = u8::from(axis.scale == Scale::Log);
                format!("{:.2} {:.2} {} {} {log}", axis.from, axis.to, axis.low, axis.high)
            };
            return html! {
                svg xmlns="http://www.w3.org/2000/svg" font-family=(FONT) font-size=(TEXT) role="img"
                    aria-label=(self.title) viewBox={ "0 0 " (width) " " (height) } class="chart"
                    data-x=(axis(x)) data-y=(axis(y)) data-label=(self.x_label) { (content) }
            };
        }
        const MARGIN: f64 = 12.0;
        let (left, top) = (-MARGIN, -MARGIN / 2.0);
        let (width, height) = (width + 2.0 * MARGIN, height + MARGIN);
        html! {
            svg xmlns="http://www.w3.org/2000/svg" font-family=(FONT) font-size=(TEXT) role="img"
                aria-label=(self.title) viewBox={ (left) " " (top) " " (width) " " (height) }
                width=(width) height=(height) {
                rect x=(left) y=(top) width=(width) height=(height) fill=(theme.paper) {}
                text x="2" y="20" font-size="15" font-weight="600" fill=(theme.ink) {
                    (shorten(&self.title, 15.0, canvas.width))
                }
                (content)
            }
            "\n"
        }
    }
}

/// A series prepared for drawing.
struct Line<'a> {
    series: &'a Series,
    /// The name, shortened if long.
    name: String,
    /// The last visible point.
    end: (f64, f64),
    color: &'static str,
    /// The dash pattern of the stroke.
    dashes: Option<&'static str>,
}

impl<'a> Line<'a> {
    fn new(theme: &Theme, index: usize, series: &'a Series, end: (f64, f64), width: f64) -> Self {
        let index = series.color.unwrap_or(index);
        let color = theme.series[index % theme.series.len()];
        // Once the palette is used up, dash patterns distinguish the lines.
        let dashes = match (index / theme.series.len(), series.dashed) {
            (0, false) => None,
            (0, true) => Some("5 3"),
            (1, _) => Some("2 2"),
            _ => Some("8 3 2 3"),
        };
        Self { series, name: shorten(&series.name, TEXT, width * 0.6), end, color, dashes }
    }
}

/// Draws the legend above the chart.
fn draw_legend(theme: &Theme, lines: &[Line], rows: &[Vec<(usize, f64)>], top: f64) -> Markup {
    let entries = rows.iter().enumerate().flat_map(|(row, entries)| {
        let middle = top + (row as f64 + 0.5) * LINE;
        entries.iter().map(move |&(index, left)| (&lines[index], left, middle))
    });
    html! {
        @for (line, left, middle) in entries {
            path d={ "M" (Px(left)) " " (Px(middle)) "h18" } fill="none" stroke-width="2"
                stroke=(line.color) stroke-dasharray=[line.dashes] {}
            text x=(Px(left + 23.0)) y=(Px(middle + 4.0)) fill=(theme.ink) { (line.name) }
        }
    }
}

/// Draws a vertical line with its label on the side where it fits.
fn draw_marker(theme: &Theme, value: f64, label: &str, (x, y): (&Axis, &Axis)) -> Markup {
    let at = x.at(value);
    let left = at + text_width(label, TEXT) + 8.0 > x.to;
    let (anchor, text) = if left { ("end", at - 4.0) } else { ("start", at + 4.0) };
    html! {
        path d={ "M" (Px(at)) " " (Px(y.to - 8.0)) "V" (Px(y.from)) } stroke=(theme.muted) stroke-dasharray="2 3" {}
        text x=(Px(text)) y=(Px(y.to + 2.0)) text-anchor=(anchor) fill=(theme.muted) {
            (shorten(label, TEXT, (x.to - x.from) * 0.6))
        }
    }
}

/// Draws the names at the right ends of the lines, moved apart where they would overlap.
fn draw_names(theme: &Theme, lines: &[Line], (x, y): (&Axis, &Axis)) -> Markup {
    let mut lines: Vec<&Line> = lines.iter().collect();
    lines.sort_by(|a, b| y.at(a.end.1).total_cmp(&y.at(b.end.1)));
    let ends: Vec<f64> = lines.iter().map(|line| y.at(line.end.1)).collect();
    let heights = spread(&ends, LINE - 1.0, y.to, y.from);
    html! {
        @for ((line, end), height) in lines.iter().zip(ends).zip(heights) {
            path d={ "M" (Px(x.to + 3.0)) " " (Px(end)) "L" (Px(x.to + 14.0)) " " (Px(height)) } fill="none"
                stroke=(line.color) stroke-dasharray=[line.dashes] {}
            text x=(Px(x.to + 17.0)) y=(Px(height + 4.0)) fill=(theme.ink) { (line.name) }
        }
    }
}

/// Draws grid lines, tick labels and axis labels.
pub(crate) fn draw_axes(
    theme: &Theme,
    (x, x_ticks, x_label): (&Axis, &[(f64, String)], &str),
    (y, y_ticks, y_label): (&Axis, &[(f64, String)], &str),
) -> Markup {
    html! {
        @for (value, label) in y_ticks {
            @let at = y.at(*value);
            path d={ "M" (Px(x.from)) " " (Px(at)) "H" (Px(x.to)) } stroke=(theme.grid) {}
            text x=(Px(x.from - 6.0)) y=(Px(at + 4.0)) text-anchor="end" fill=(theme.muted) { (label) }
        }
        @for (value, label) in x_ticks {
            @let at = x.at(*value);
            path d={ "M" (Px(at)) " " (Px(y.from)) "v4" } stroke=(theme.muted) {}
            text x=(Px(at)) y=(Px(y.from + 17.0)) text-anchor="middle" fill=(theme.muted) { (label) }
        }
        path d={ "M" (Px(x.from)) " " (Px(y.from)) "H" (Px(x.to)) } stroke=(theme.muted) {}
        text x=(Px(x.to)) y=(Px(y.from + 34.0)) text-anchor="end" fill=(theme.muted) { (x_label) }
        text x="2" y=(Px(y.to - 12.0)) fill=(theme.muted) { (y_label) }
    }
}

/// Draws a line with its gaps; noise is drawn faintly under its mean.
fn draw_line(line: &Line, (x, y): (&Axis, &Axis), dotted: bool, hover: bool) -> Markup {
    let Line { series, color, dashes, .. } = line;
    let path = |runs: &[Vec<(f64, f64)>]| {
        let mut path = String::new();
        for (index, &(a, b)) in runs.iter().flat_map(|run| run.iter().enumerate()) {
            let command = if index == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{command}{:.1} {:.1}", x.at(a), y.at(b));
        }
        path
    };
    let whole = segments(&series.points, x, y);
    let mut runs: Vec<Vec<(f64, f64)>> = whole.iter().map(|run| run.to_vec()).collect();
    if series.points.len() > MANY_POINTS {
        runs = whole.iter().map(|run| thinned(run, x)).collect();
    }
    let noise = is_noisy(&whole, y).then(|| path(&runs));
    if noise.is_some() {
        runs = whole.iter().map(|run| means(run, x, y)).collect();
    }
    // The tooltip needs the values themselves, not their positions.
    let list = |value: fn(&(f64, f64)) -> f64| {
        let values: Vec<String> = runs.iter().flatten().map(|point| significant(value(point), 5)).collect();
        values.join(" ").replace('\u{2212}', "-")
    };
    let [xs, ys] = [|point: &(f64, f64)| point.0, |point: &(f64, f64)| point.1].map(|value| hover.then(|| list(value)));
    html! {
        @if let Some(noise) = noise {
            path d=(noise) fill="none" stroke-width="1" stroke-opacity=".35" stroke=(color) stroke-dasharray=[dashes] {}
        }
        path d=(path(&runs)) fill="none" stroke-width="1.8" stroke-linejoin="round"
            stroke=(color) stroke-dasharray=[dashes]
            data-name=[hover.then_some(&series.name)] data-xs=[xs] data-ys=[ys] {}
        // A point between two gaps has no line, so it is drawn as a dot.
        @for &(a, b) in runs.iter().filter(|run| dotted || run.len() == 1).flatten() {
            circle cx=(Px(x.at(a))) cy=(Px(y.at(b))) r="2.2" fill=(color) {}
        }
    }
}

/// Lays out the rows of a legend: the entries' indices and left edges.
fn legend_rows(lines: &[Line], width: f64) -> Vec<Vec<(usize, f64)>> {
    let mut rows = vec![Vec::new()];
    let mut left = 8.0;
    for (index, line) in lines.iter().enumerate() {
        let wide = text_width(&line.name, TEXT) + 36.0;
        if left + wide > width && left > 8.0 {
            rows.push(Vec::new());
            left = 8.0;
        }
        if let Some(row) = rows.last_mut() {
            row.push((index, left));
        }
        left += wide;
    }
    rows
}

/// Moves sorted heights apart until they are at least `gap` apart, within bounds if possible.
fn spread(wanted: &[f64], gap: f64, top: f64, bottom: f64) -> Vec<f64> {
    let mut heights = wanted.to_vec();
    let mut least = top;
    for height in &mut heights {
        *height = height.max(least);
        least = *height + gap;
    }
    let mut most = bottom;
    for height in heights.iter_mut().rev() {
        *height = height.min(most);
        most = *height - gap;
    }
    heights
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(ticks: Vec<(f64, String)>) -> Vec<String> {
        ticks.into_iter().map(|tick| tick.1).collect()
    }

    #[test]
    fn linear_ticks_are_at_steps_of_one_two_or_five() {
        assert_eq!(labels(linear_ticks(0.0, 1.0, 5, false)), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(linear_ticks(-3.0, 12.0, 5, false)), ["\u{2212}2", "0", "2", "4", "6", "8", "10", "12"]);
        assert_eq!(labels(linear_ticks(0.0, 450_000.0, 4, false)), ["0", "100k", "200k", "300k", "400k"]);
        assert_eq!(labels(linear_ticks(1.0, 3.0, 8, true)), ["1", "2", "3"]);
    }

    #[test]
    fn log_ticks_are_decades_or_one_two_five() {
        assert_eq!(labels(log_ticks(1e-4, 10.0, 8)), ["1e\u{2212}4", "0.001", "0.01", "0.1", "1", "10"]);
        assert_eq!(labels(log_ticks(0.5, 20.0, 8)), ["0.5", "1", "2", "5", "10", "20"]);
    }

    #[test]
    fn ticks_of_extreme_ranges_are_bounded() {
        assert!(linear_ticks(1e17, 1e17 + 32.0, 5, false).len() < 100);
        assert!(log_ticks(1e-90, 1e90, 6).len() < 100);
        let far = Chart { series: vec![Series::new("a", vec![(0.0, 1e99), (1.0, -1e99)])], ..Chart::default() };
        assert!(!far.to_svg().contains("NaN"));
        let one = Chart { series: vec![Series::new("a", vec![(1e17, 1e17)])], ..Chart::default() };
        assert!(!one.to_svg().contains("NaN"));
    }

    #[test]
    fn a_value_that_is_not_finite_leaves_a_gap() {
        let points = vec![(1.0, 1.0), (2.0, 2.0), (3.0, f64::NAN), (4.0, f64::INFINITY), (5.0, 1.0)];
        let svg = Chart { series: vec![Series::new("a", points)], ..Chart::default() }.to_svg();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let line = svg.split("<path").find(|path| path.contains("stroke-linejoin")).unwrap();
        assert_eq!(line.split("fill=").next().unwrap().matches('M').count(), 2, "{line}");
    }

    #[test]
    fn zero_is_not_shown_on_a_logarithmic_scale() {
        let series = vec![Series::new("a", vec![(1.0, 0.0), (2.0, 1.0), (3.0, 100.0)])];
        let svg = Chart { y_scale: Scale::Log, series, ..Chart::default() }.to_svg();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn thinning_keeps_the_extremes_of_each_column() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|step| (step as f64, (step % 7) as f64)).collect();
        points[51_234].1 = 99.0;
        points[51_235].1 = -99.0;
        let x = Axis::linear(0.0, 99_999.0, 0.0, 400.0);
        let thin = thinned(&points, &x);
        assert!(thin.len() <= 4 * 401, "{}", thin.len());
        assert!(thin.contains(&(51_234.0, 99.0)) && thin.contains(&(51_235.0, -99.0)));
        assert!(thin.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn only_noisy_lines_are_drawn_with_their_mean() {
        let axis = Axis::linear(0.0, 10.0, 100.0, 0.0);
        let smooth: Vec<(f64, f64)> = (0..5000).map(|step| (step as f64, step as f64 / 500.0)).collect();
        let noise: Vec<(f64, f64)> = (0..5000).map(|step| (step as f64, (step % 3) as f64)).collect();
        assert!(!is_noisy(&[&smooth], &axis) && is_noisy(&[&noise], &axis) && !is_noisy(&[], &axis));
        let x = Axis::linear(0.0, 4999.0, 0.0, 400.0);
        let means = means(&noise, &x, &axis);
        assert!(means.len() <= 101 && means.iter().all(|mean| (mean.1 - 1.0).abs() < 0.1), "{means:?}");
    }

    #[test]
    fn names_are_escaped_and_an_empty_chart_says_so() {
        let hostile = r#"<script>alert("x")</script>"#;
        let series = vec![Series::new(hostile, vec![(0.0, 1.0)]), Series::new("b", vec![(0.0, 2.0)])];
        let marker = Some((0.0, hostile.into()));
        let [title, x_label, y_label] = [hostile; 3].map(String::from);
        let chart = Chart { title, x_label, y_label, series, marker, ..Chart::default() };
        assert!(!chart.to_svg().contains("<script"));
        assert!(!chart.to_figure().into_string().contains("<script"));
        assert!(Chart::default().to_svg().contains("no values yet"));
    }

    #[test]
    fn labels_are_moved_apart_within_bounds() {
        assert_eq!(spread(&[10.0, 11.0, 50.0], 15.0, 0.0, 100.0), [10.0, 25.0, 50.0]);
        assert_eq!(spread(&[95.0, 99.0], 15.0, 0.0, 100.0), [85.0, 100.0]);
    }
}
