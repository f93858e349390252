//! Other figures of the report, in the page's colors: stacked bars, the confusion matrix, the reliability diagram.

use std::{collections::BTreeMap, fmt::Write};

use super::{
    chart::{Axis, PAGE, TEXT, draw_axes, shorten, text_width},
    page::{duration, escape, interval, percent, plural},
    stats::{BINS, Calibration},
};

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 232.0;

/// A kind of part in stacked bars: its name and its index in the palette.
pub(crate) type Part = (&'static str, usize);

/// Stacked bars of seconds, one per epoch.
pub(crate) struct Bars {
    /// The title.
    pub(crate) title: &'static str,
    /// The kinds of parts, from the bottom.
    pub(crate) parts: Vec<Part>,
    /// The epochs and the seconds of each part.
    pub(crate) bars: Vec<(usize, Vec<f64>)>,
    /// Whether each bar is scaled to 100 %.
    pub(crate) shares: bool,
}

impl Bars {
    /// Returns the bars as a figure; the key lists each part's percentage of the total.
    pub(crate) fn to_figure(&self) -> String {
        let sum = |bar: &[f64]| bar.iter().sum::<f64>();
        let highest = self.bars.iter().map(|bar| sum(&bar.1)).fold(0.0, f64::max);
        if highest <= 0.0 {
            return String::new();
        }
        let (unit, name) = match highest {
            _ if self.shares => (1.0, "% of the time"),
            10_000.0.. => (3600.0, "hours"),
            300.0.. => (60.0, "minutes"),
            _ => (1.0, "seconds"),
        };
        let top = if self.shares { 100.0 } else { highest / unit };
        let y = Axis::linear(0.0, top, HEIGHT - 40.0, 26.0);
        let y_ticks = y.ticks(5);
        let left = y_ticks.iter().map(|tick| text_width(&tick.1, TEXT)).fold(0.0, f64::max) + 14.0;
        let count = self.bars.len() as f64;
        let x = Axis::linear(-0.5, count - 0.5, left, WIDTH - 10.0);
        let pitch = (WIDTH - 10.0 - left) / count;
        // Every k-th bar is labeled, so that the labels do not touch.
        let every = [1, 2, 5, 10, 20, 50, 100, 200, 500].into_iter().find(|&k| k as f64 * pitch > 26.0).unwrap_or(1000);
        let labeled = |bar: &(usize, &(usize, Vec<f64>))| every == 1 || bar.1.0.is_multiple_of(every);
        let x_ticks: Vec<(f64, String)> = (self.bars.iter().enumerate().filter(labeled))
            .map(|(place, bar)| (place as f64, bar.0.to_string()))
            .collect();

        let mut svg = open(WIDTH, HEIGHT, self.title);
        draw_axes(&mut svg, &PAGE, (&x, &x_ticks, "epoch"), (&y, &y_ticks, name));
        let wide = (pitch * if pitch > 6.0 { 0.78 } else { 1.0 }).min(60.0);
        for (place, (epoch, seconds)) in self.bars.iter().enumerate() {
            let whole = sum(seconds);
            if whole <= 0.0 {
                continue;
            }
            let scale = if self.shares { 100.0 / whole } else { 1.0 / unit };
            let mut tip = format!("epoch {epoch}: {}", duration(whole));
            let mut base = 0.0;
            svg.push_str("<g>");
            for ((part, color), &seconds) in self.parts.iter().zip(seconds).filter(|(_, seconds)| **seconds > 0.0) {
                let _ = write!(tip, "\n{part}: {} ({})", duration(seconds), percent(100.0 * seconds / whole, 0));
                let (bottom, upper) = (y.at(base), y.at(base + seconds * scale));
                let _ = write!(
                    svg,
                    r#"<rect x="{:.2}" y="{upper:.2}" width="{wide:.2}" height="{:.2}" fill="{}"/>"#,
                    x.at(place as f64) - wide / 2.0,
                    bottom - upper,
                    PAGE.series[*color]
                );
                base += seconds * scale;
            }
            let _ = writeln!(svg, "<title>{tip}</title></g>");
        }
        svg.push_str("</svg>\n");

        let mut keys = String::new();
        let all: f64 = self.bars.iter().map(|bar| sum(&bar.1)).sum();
        for (index, (part, color)) in self.parts.iter().enumerate() {
            let share = 100.0 * self.bars.iter().map(|bar| bar.1[index]).sum::<f64>() / all;
            let share = percent(share, if share < 10.0 { 1 } else { 0 });
            let _ = write!(keys, r#"<li><i style="background:{}"></i>{part} {share}</li>"#, PAGE.series[*color]);
        }
        format!("<figure><figcaption>{}</figcaption><ul class=\"keys\">{keys}</ul>{svg}</figure>\n", self.title)
    }
}

/// Returns the confusion matrix: one row per true class, colored by the fraction of its images. The diagonal is blue,
/// errors are orange.
pub(crate) fn confusion(names: &[String], counts: &BTreeMap<(usize, usize), usize>) -> String {
    let classes = names.len();
    let cell = (760.0 / classes as f64).clamp(15.0, 46.0);
    let size = (cell * 0.62).min(TEXT);
    let names: Vec<String> = names.iter().map(|name| shorten(name, size, 110.0)).collect();
    let widest = names.iter().map(|name| text_width(name, size)).fold(30.0, f64::max);
    let left = widest + 30.0;
    // Column names are vertical unless all fit above their cells.
    let flat = names.iter().all(|name| text_width(name, size) < cell - 4.0);
    let top = if flat { 40.0 } else { widest + 32.0 };
    let side = cell * classes as f64;
    let mut rows = vec![0usize; classes];
    for (&(label, _), count) in counts {
        if let Some(row) = rows.get_mut(label) {
            *row += count;
        }
    }

    let (width, height) = (left + side + 4.0, top + side + 4.0);
    let mut svg = open(width, height, "Confusion matrix");
    let _ = writeln!(
        svg,
        r#"<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" stroke="{}"/><g fill="{}" font-size="{TEXT}"><text x="{:.1}" y="11" text-anchor="middle">predicted</text><text transform="translate(11 {:.1}) rotate(-90)" text-anchor="middle">true</text></g>"#,
        PAGE.grid,
        PAGE.muted,
        left + side / 2.0,
        top + side / 2.0
    );
    let _ = write!(svg, r#"<g fill="{}" font-size="{size:.1}">"#, PAGE.ink);
    for (index, name) in names.iter().enumerate() {
        let middle = (index as f64 + 0.5) * cell;
        let name = escape(name);
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{name}</text>"#,
            left - 7.0,
            top + middle + size * 0.35
        );
        let _ = match flat {
            true => writeln!(
                svg,
                r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{name}</text>"#,
                left + middle,
                top - 8.0
            ),
            false => writeln!(
                svg,
                r#"<text transform="translate({:.1} {:.1}) rotate(-90)">{name}</text>"#,
                left + middle + size * 0.35,
                top - 7.0
            ),
        };
    }
    svg.push_str("</g>\n");
    for (&(label, predicted), &count) in counts.iter().filter(|((label, pred), _)| *label.max(pred) < classes) {
        let share = count as f64 / rows[label] as f64;
        let (x, y) = (left + predicted as f64 * cell, top + label as f64 * cell);
        // A single error among many must remain visible.
        let strength = 0.13 + 0.87 * if label == predicted { share } else { share.sqrt() };
        let color = PAGE.series[usize::from(label != predicted)];
        let _ = write!(
            svg,
            r#"<g><rect x="{:.1}" y="{:.1}" width="{:.1}" height="{:.1}" fill="{color}" fill-opacity="{strength:.2}"/>"#,
            x + 0.5,
            y + 0.5,
            cell - 1.0,
            cell - 1.0
        );
        if cell >= 26.0 {
            let ink = if strength > 0.6 { "var(--paper)" } else { PAGE.ink };
            let _ = write!(
                svg,
                r#"<text x="{:.1}" y="{:.1}" text-anchor="middle" fill="{ink}">{count}</text>"#,
                x + cell / 2.0,
                y + cell / 2.0 + 4.0
            );
        }
        let _ = writeln!(
            svg,
            "<title>{} → {}: {count} of {} ({})</title></g>",
            escape(&names[label]),
            escape(&names[predicted]),
            rows[label],
            percent(100.0 * share, 1)
        );
    }
    svg.push_str("</svg>\n");
    // On a narrow screen the matrix scrolls instead of shrinking beyond legibility.
    let least = (width * 0.8).min(if cell >= 26.0 { 480.0 } else { 640.0 });
    format!(
        "<figure class=\"wide\"><figcaption>Confusion matrix</figcaption><div class=\"scroll\"><div style=\"min-width:{least:.0}px;max-width:{width:.0}px;margin:auto\">{svg}</div></div></figure>\n"
    )
}

/// Returns the reliability diagram: accuracy over confidence with 95 % intervals, above a histogram of confidence.
pub(crate) fn reliability(calibration: &Calibration) -> String {
    const STRIP: f64 = 46.0;
    let height = 370.0;
    let bottom = height - 40.0 - STRIP;
    let x = Axis::linear(0.0, 100.0, 44.0, WIDTH - 14.0);
    let y = Axis::linear(0.0, 100.0, bottom, 30.0);
    let (x_ticks, y_ticks) = (x.ticks(5), y.ticks(5));
    let mut svg = open(WIDTH, height, "Reliability");
    draw_axes(&mut svg, &PAGE, (&x, &[], ""), (&y, &y_ticks, "% right"));
    let _ = writeln!(
        svg,
        r#"<path d="M{:.1} {:.1}L{:.1} {:.1}" stroke="{}" stroke-dasharray="4 4"/>"#,
        x.at(0.0),
        y.at(0.0),
        x.at(100.0),
        y.at(100.0),
        PAGE.muted
    );
    let largest = calibration.bins.iter().map(|bin| bin.right.of).max().unwrap_or(1).max(1) as f64;
    let strip = height - 36.0;
    for (index, bin) in calibration.bins.iter().enumerate().filter(|(_, bin)| bin.right.of > 0) {
        let edge = |index: usize| 100.0 * index as f64 / BINS as f64;
        let (left, right) = (x.at(edge(index)) + 1.0, x.at(edge(index + 1)) - 1.0);
        let (accuracy, (low, high)) = (bin.right.percent(), bin.right.wilson());
        let tall = ((STRIP - 8.0) * bin.right.of as f64 / largest).max(1.0);
        let _ = writeln!(
            svg,
            r#"<g><rect x="{left:.1}" y="{at:.1}" width="{wide:.1}" height="{:.1}" fill="{blue}" fill-opacity=".25"/><path d="M{left:.1} {at:.1}H{right:.1}" stroke="{blue}" stroke-width="2.2"/><path d="M{middle:.1} {:.1}V{:.1}" stroke="{blue}"/><circle cx="{:.1}" cy="{at:.1}" r="2.8" fill="{blue}"/><rect x="{left:.1}" y="{:.1}" width="{wide:.1}" height="{tall:.1}" fill="{}"/><rect x="{left:.1}" y="{:.1}" width="{wide:.1}" height="{:.1}" fill="none" pointer-events="all"/><title>confidence {:.0}–{}: {}&#10;right: {} ({})&#10;mean confidence: {}</title></g>"#,
            y.at(0.0) - y.at(accuracy),
            y.at(low),
            y.at(high),
            x.at(bin.mean_confidence()),
            strip - tall,
            PAGE.series[6],
            y.at(100.0),
            strip - y.at(100.0),
            edge(index),
            percent(edge(index + 1), 0),
            plural(bin.right.of, "image"),
            percent(accuracy, 1),
            interval((low, high)),
            percent(bin.mean_confidence(), 1),
            at = y.at(accuracy),
            wide = right - left,
            middle = (left + right) / 2.0,
            blue = PAGE.series[0]
        );
    }
    let _ = writeln!(svg, r#"<text x="2" y="{:.1}" fill="{}">images</text>"#, strip - 2.0, PAGE.muted);
    draw_axes(&mut svg, &PAGE, (&x, &x_ticks, "confidence, %"), (&Axis::linear(0.0, 1.0, strip, strip), &[], ""));
    svg.push_str("</svg>\n");
    format!("<figure><figcaption>Reliability of the first prediction</figcaption>{svg}</figure>\n")
}

fn open(width: f64, height: f64, label: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"marks\" viewBox=\"0 0 {width:.0} {height:.0}\" font-size=\"{TEXT}\" role=\"img\" aria-label=\"{label}\">\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentage_bars_are_full_and_the_key_sums_over_epochs() {
        let bars = Bars {
            title: "Time",
            parts: vec![("waiting", 1), ("compute", 0)],
            bars: vec![(1, vec![1.0, 3.0]), (2, vec![0.0, 4.0])],
            shares: true,
        };
        let figure = bars.to_figure();
        assert!(figure.contains("waiting 12\u{202f}%") && figure.contains("compute 88\u{202f}%"), "{figure}");
        assert!(figure.contains("waiting: 1.0\u{202f}s (25\u{202f}%)"), "{figure}");
    }

    #[test]
    fn bars_without_time_are_no_figure() {
        let bars = Bars { title: "Time", parts: vec![("waiting", 1)], bars: vec![(1, vec![0.0])], shares: false };
        assert_eq!(bars.to_figure(), "");
    }

    #[test]
    fn a_confusion_matrix_bears_labels_beyond_its_classes_and_hostile_names() {
        let names = ["<b>".to_string(), "\"".to_string()];
        let counts = BTreeMap::from([((0, 0), 3), ((0, 1), 1), ((7, 1), 1)]);
        let figure = confusion(&names, &counts);
        assert!(!figure.contains("<b>") && figure.contains("&lt;b&gt; → &quot;: 1 of 4 (25.0\u{202f}%)"), "{figure}");
    }
}
