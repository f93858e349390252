//! SVG line charts with ticks, legends and labels derived from the data.
//!
//! [`Chart::to_svg`] returns a self-contained picture. The report draws the same chart in the page's colors, which
//! follow the reader's light or dark scheme.

use std::fmt::Write;

use super::page::{escape, significant};

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
    fn around(values: impl Iterator<Item = f64> + Clone, scale: Scale, room: f64) -> Self {
        let shown = values.filter(|&value| scale.shows(value));
        let whole = shown.clone().all(|value| value.fract() == 0.0) && scale == Scale::Linear;
        let low = shown.clone().fold(f64::INFINITY, f64::min);
        let high = shown.fold(f64::NEG_INFINITY, f64::max);
        let (low, high) = if low <= high { (scale.forward(low), scale.forward(high)) } else { (0.0, 1.0) };
        let span = high - low;
        let (low, high) = if span > high.abs() * 1e-9 {
            // An axis that nearly reaches zero starts at zero.
            let zero = scale == Scale::Linear && room > 0.0 && low >= 0.0 && low < 0.3 * high;
            (if zero { 0.0 } else { low - room * span }, high + room * span)
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
struct Place {
    width: f64,
    height: f64,
    /// Whether the chart is self-contained: with its title, and without the data for the page's tooltip.
    alone: bool,
}

impl Chart {
    /// Returns the chart as an SVG file on a light background.
    pub fn to_svg(&self) -> String {
        self.draw(&LIGHT, &Place { width: 696.0, height: 408.0, alone: true })
    }

    /// Returns the chart as a figure of the page.
    pub(crate) fn to_figure(&self) -> String {
        let svg = self.draw(&PAGE, &Place { width: 420.0, height: 252.0, alone: false });
        format!("<figure><figcaption>{}</figcaption>{svg}</figure>\n", escape(&self.title))
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

    fn draw(&self, theme: &Theme, place: &Place) -> String {
        let &Place { width, height, alone } = place;
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

        let mut svg = self.open(theme, place, axes);
        draw_legend(&mut svg, theme, &lines, &legend, legend_top);
        draw_axes(&mut svg, theme, (&x, &x_ticks, &self.x_label), (&y, &y_ticks, &self.y_label));
        if let Some((value, label)) = self.marker.as_ref().filter(|marker| self.x_scale.shows(marker.0)) {
            draw_marker(&mut svg, theme, *value, label, axes);
        }
        let dotted = lines.iter().all(|line| line.series.points.len() <= FEW_POINTS);
        for line in &lines {
            draw_line(&mut svg, line, axes, dotted, !alone);
        }
        if direct {
            draw_names(&mut svg, theme, &lines, axes);
        }
        if lines.is_empty() {
            let (x, y) = ((x.from + x.to) / 2.0, (y.from + y.to) / 2.0);
            let muted = theme.muted;
            let _ = writeln!(svg, r#"<text x="{x}" y="{y}" text-anchor="middle" fill="{muted}">no values yet</text>"#);
        }
        svg + "</svg>\n"
    }

    /// Opens the drawing: its size, and either background and title or the data for the page's tooltip.
    fn open(&self, theme: &Theme, place: &Place, (x, y): (&Axis, &Axis)) -> String {
        let &Place { width, height, alone } = place;
        let title = escape(&self.title);
        let head = format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif" font-size="{TEXT}" role="img" aria-label="{title}""#
        );
        if !alone {
            let axis = |axis: &Axis| {
                let log = u8::from(axis.scale == Scale::Log);
                format!("{:.2} {:.2} {} {} {log}", axis.from, axis.to, axis.low, axis.high)
            };
            return format!(
                "{head} viewBox=\"0 0 {width} {height}\" class=\"chart\" data-x=\"{}\" data-y=\"{}\" data-label=\"{}\">\n",
                axis(x),
                axis(y),
                escape(&self.x_label)
            );
        }
        const MARGIN: f64 = 12.0;
        let (left, top) = (-MARGIN, -MARGIN / 2.0);
        let (width, height) = (width + 2.0 * MARGIN, height + MARGIN);
        let title = escape(&shorten(&self.title, 15.0, place.width));
        format!(
            r#"{head} viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">
<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="{}"/>
<text x="2" y="20" font-size="15" font-weight="600" fill="{}">{title}</text>
"#,
            theme.paper, theme.ink
        )
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
    /// The attributes of the stroke.
    stroke: String,
}

impl<'a> Line<'a> {
    fn new(theme: &Theme, index: usize, series: &'a Series, end: (f64, f64), width: f64) -> Self {
        let place = series.color.unwrap_or(index);
        let color = theme.series[place % theme.series.len()];
        // Once the palette is used up, dash patterns distinguish the lines.
        let dashes = match (place / theme.series.len(), series.dashed) {
            (0, false) => "",
            (0, true) => r#" stroke-dasharray="5 3""#,
            (1, _) => r#" stroke-dasharray="2 2""#,
            _ => r#" stroke-dasharray="8 3 2 3""#,
        };
        let name = shorten(&series.name, TEXT, width * 0.6);
        Self { series, name, end, color, stroke: format!(r#"stroke="{color}"{dashes}"#) }
    }
}

/// Draws the legend above the chart.
fn draw_legend(svg: &mut String, theme: &Theme, lines: &[Line], rows: &[Vec<(usize, f64)>], top: f64) {
    for (row, entries) in rows.iter().enumerate() {
        let middle = top + (row as f64 + 0.5) * LINE;
        for &(index, left) in entries {
            let Line { stroke, name, .. } = &lines[index];
            let _ = writeln!(
                svg,
                r#"<path d="M{left:.1} {middle:.1}h18" fill="none" stroke-width="2" {stroke}/><text x="{:.1}" y="{:.1}" fill="{}">{}</text>"#,
                left + 23.0,
                middle + 4.0,
                theme.ink,
                escape(name)
            );
        }
    }
}

/// Draws a vertical line with its label on the side that has room.
fn draw_marker(svg: &mut String, theme: &Theme, value: f64, label: &str, (x, y): (&Axis, &Axis)) {
    let at = x.at(value);
    let left = at + text_width(label, TEXT) + 8.0 > x.to;
    let (anchor, text) = if left { ("end", at - 4.0) } else { ("start", at + 4.0) };
    let _ = writeln!(
        svg,
        r#"<path d="M{at:.1} {:.1}V{:.1}" stroke="{muted}" stroke-dasharray="2 3"/><text x="{text:.1}" y="{:.1}" text-anchor="{anchor}" fill="{muted}">{}</text>"#,
        y.to - 8.0,
        y.from,
        y.to + 2.0,
        escape(&shorten(label, TEXT, (x.to - x.from) * 0.6)),
        muted = theme.muted
    );
}

/// Draws the names at the right ends of the lines, moved apart where they would overlap.
fn draw_names(svg: &mut String, theme: &Theme, lines: &[Line], (x, y): (&Axis, &Axis)) {
    let mut lines: Vec<&Line> = lines.iter().collect();
    lines.sort_by(|a, b| y.at(a.end.1).total_cmp(&y.at(b.end.1)));
    let ends: Vec<f64> = lines.iter().map(|line| y.at(line.end.1)).collect();
    let heights = spread(&ends, LINE - 1.0, y.to, y.from);
    for ((line, end), height) in lines.iter().zip(&ends).zip(heights) {
        let _ = writeln!(
            svg,
            r#"<path d="M{:.1} {end:.1}L{:.1} {height:.1}" fill="none" {}/><text x="{:.1}" y="{:.1}" fill="{}">{}</text>"#,
            x.to + 3.0,
            x.to + 14.0,
            line.stroke,
            x.to + 17.0,
            height + 4.0,
            theme.ink,
            escape(&line.name)
        );
    }
}

/// Draws grid lines, tick labels and axis labels.
pub(crate) fn draw_axes(
    svg: &mut String,
    theme: &Theme,
    (x, x_ticks, x_label): (&Axis, &[(f64, String)], &str),
    (y, y_ticks, y_label): (&Axis, &[(f64, String)], &str),
) {
    for (value, label) in y_ticks {
        let at = y.at(*value);
        let _ = writeln!(
            svg,
            r#"<path d="M{:.1} {at:.1}H{:.1}" stroke="{}"/><text x="{:.1}" y="{:.1}" text-anchor="end" fill="{}">{label}</text>"#,
            x.from,
            x.to,
            theme.grid,
            x.from - 6.0,
            at + 4.0,
            theme.muted
        );
    }
    for (value, label) in x_ticks {
        let at = x.at(*value);
        let _ = writeln!(
            svg,
            r#"<path d="M{at:.1} {:.1}v4" stroke="{muted}"/><text x="{at:.1}" y="{:.1}" text-anchor="middle" fill="{muted}">{label}</text>"#,
            y.from,
            y.from + 17.0,
            muted = theme.muted
        );
    }
    let _ = writeln!(
        svg,
        r#"<path d="M{:.1} {:.1}H{:.1}" stroke="{muted}"/><text x="{:.1}" y="{:.1}" text-anchor="end" fill="{muted}">{}</text><text x="2" y="{:.1}" fill="{muted}">{}</text>"#,
        x.from,
        y.from,
        x.to,
        x.to,
        y.from + 34.0,
        escape(x_label),
        y.to - 12.0,
        escape(y_label),
        muted = theme.muted
    );
}

/// Draws a line with its gaps; noise is drawn faintly under its mean.
fn draw_line(svg: &mut String, line: &Line, (x, y): (&Axis, &Axis), dotted: bool, hover: bool) {
    let Line { series, color, stroke, .. } = line;
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
    if is_noisy(&whole, y) {
        let path = path(&runs);
        let _ = writeln!(svg, r#"<path d="{path}" fill="none" stroke-width="1" stroke-opacity=".35" {stroke}/>"#);
        runs = whole.iter().map(|run| means(run, x, y)).collect();
    }
    let _ = write!(svg, r#"<path d="{}" fill="none" stroke-width="1.8" stroke-linejoin="round" {stroke}"#, path(&runs));
    if hover {
        // The tooltip needs the values themselves, not their positions.
        let list = |value: fn(&(f64, f64)) -> f64| {
            let values: Vec<String> = runs.iter().flatten().map(|point| significant(value(point), 5)).collect();
            values.join(" ").replace('\u{2212}', "-")
        };
        let (xs, ys) = (list(|point| point.0), list(|point| point.1));
        let _ = write!(svg, r#" data-name="{}" data-xs="{xs}" data-ys="{ys}""#, escape(&series.name));
    }
    svg.push_str("/>");
    // A point between two gaps has no line, so it is drawn as a dot.
    for &(a, b) in runs.iter().filter(|run| dotted || run.len() == 1).flatten() {
        let _ = write!(svg, r#"<circle cx="{:.1}" cy="{:.1}" r="2.2" fill="{color}"/>"#, x.at(a), y.at(b));
    }
    svg.push('\n');
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
        let line = svg.lines().find(|line| line.contains("stroke-linejoin")).unwrap();
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
        let chart = Chart { title: hostile.into(), series, marker: Some((0.0, hostile.into())), ..Chart::default() };
        assert!(!chart.to_svg().contains("<script"));
        assert!(!chart.to_figure().contains("<script"));
        assert!(Chart::default().to_svg().contains("no values yet"));
    }

    #[test]
    fn labels_are_moved_apart_within_bounds() {
        assert_eq!(spread(&[10.0, 11.0, 50.0], 15.0, 0.0, 100.0), [10.0, 25.0, 50.0]);
        assert_eq!(spread(&[95.0, 99.0], 15.0, 0.0, 100.0), [85.0, 100.0]);
    }
}
