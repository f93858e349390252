//! Other figures of the report, in the page's colors: stacked bars, the confusion matrix, the reliability diagram.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
};

use maud::{Markup, html};

use super::{
    chart::{Axis, PAGE, Px, TEXT, draw_axes, shorten, text_width},
    page::{duration, interval, percent, plural},
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
    /// Returns the bars as a figure, unless all are empty or shorter than the resolution of their times; the key lists each
    /// part's percentage of the total.
    pub(crate) fn to_figure(&self) -> Option<Markup> {
        let sum = |bar: &[f64]| bar.iter().sum::<f64>();
        let highest = self.bars.iter().map(|bar| sum(&bar.1)).fold(0.0, f64::max);
        // Times are written with three decimals.
        if highest <= if self.shares { 0.0 } else { 0.01 } {
            return None;
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
            .map(|(index, bar)| (index as f64, bar.0.to_string()))
            .collect();

        let wide = (pitch * if pitch > 6.0 { 0.78 } else { 1.0 }).min(60.0);
        let bars = (self.bars.iter().enumerate()).filter(|(_, (_, seconds))| sum(seconds) > 0.0);
        let bars = bars.map(|(index, (epoch, seconds))| {
            let whole = sum(seconds);
            let scale = if self.shares { 100.0 / whole } else { 1.0 / unit };
            let mut tip = format!("epoch {epoch}: {}", duration(whole));
            let mut base = 0.0;
            let mut pieces = Vec::new();
            for ((part, color), &seconds) in self.parts.iter().zip(seconds).filter(|(_, seconds)| **seconds > 0.0) {
                let _ = write!(tip, "\n{part}: {} ({})", duration(seconds), percent(100.0 * seconds / whole, 0));
                pieces.push((y.at(base), y.at(base + seconds * scale), PAGE.series[*color]));
                base += seconds * scale;
            }
            (x.at(index as f64) - wide / 2.0, pieces, tip)
        });
        let drawing = html! {
            (draw_axes(&PAGE, (&x, &x_ticks, "epoch"), (&y, &y_ticks, name)))
            @for (left, pieces, tip) in bars {
                g {
                    @for (bottom, upper, color) in pieces {
                        rect x=(Fine(left)) y=(Fine(upper)) width=(Fine(wide)) height=(Fine(bottom - upper))
                            fill=(color) {}
                    }
                    title { (tip) }
                }
            }
        };

        let all: f64 = self.bars.iter().map(|bar| sum(&bar.1)).sum();
        let keys = self.parts.iter().enumerate().map(|(index, (part, color))| {
            let share = 100.0 * self.bars.iter().map(|bar| bar.1[index]).sum::<f64>() / all;
            (PAGE.series[*color], part, percent(share, if share < 10.0 { 1 } else { 0 }))
        });
        Some(html! {
            figure {
                figcaption { (self.title) }
                ul.keys {
                    @for (color, part, share) in keys {
                        li { i style={ "background:" (color) } {} (part) " " (share) }
                    }
                }
                (marks(WIDTH, HEIGHT, self.title, &drawing))
            }
        })
    }
}

/// Returns the confusion matrix: one row per true class, colored by the fraction of its images. The diagonal is blue,
/// errors are orange.
pub(crate) fn confusion(names: &[String], counts: &BTreeMap<(usize, usize), usize>) -> Markup {
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
    let cells = counts.iter().filter(|((label, predicted), _)| *label.max(predicted) < classes);
    let cells = cells.map(|(&(label, predicted), &count)| {
        let share = count as f64 / rows[label] as f64;
        // A single error among many must remain visible.
        let strength = 0.13 + 0.87 * if label == predicted { share } else { share.sqrt() };
        (label, predicted, count, share, strength)
    });
    let drawing = html! {
        rect x=(left) y=(top) width=(side) height=(side) fill="none" stroke=(PAGE.grid) {}
        g fill=(PAGE.muted) font-size=(TEXT) {
            text x=(Px(left + side / 2.0)) y="11" text-anchor="middle" { "predicted" }
            text transform={ "translate(11 " (Px(top + side / 2.0)) ") rotate(-90)" } text-anchor="middle" { "true" }
        }
        g fill=(PAGE.ink) font-size=(Px(size)) {
            @for (index, name) in names.iter().enumerate() {
                @let middle = (index as f64 + 0.5) * cell;
                text x=(Px(left - 7.0)) y=(Px(top + middle + size * 0.35)) text-anchor="end" { (name) }
                @if flat {
                    text x=(Px(left + middle)) y=(Px(top - 8.0)) text-anchor="middle" { (name) }
                } @else {
                    text transform={
                        "translate(" (Px(left + middle + size * 0.35)) " " (Px(top - 7.0)) ") rotate(-90)"
                    } { (name) }
                }
            }
        }
        @for (label, predicted, count, share, strength) in cells {
            @let (x, y) = (left + predicted as f64 * cell, top + label as f64 * cell);
            g {
                rect x=(Px(x + 0.5)) y=(Px(y + 0.5)) width=(Px(cell - 1.0)) height=(Px(cell - 1.0))
                    fill=(PAGE.series[usize::from(label != predicted)]) fill-opacity=(Fine(strength)) {}
                @if cell >= 26.0 {
                    text x=(Px(x + cell / 2.0)) y=(Px(y + cell / 2.0 + 4.0)) text-anchor="middle"
                        fill=(if strength > 0.6 { "var(--paper)" } else { PAGE.ink }) { (count) }
                }
                title {
                    (names[label]) " → " (names[predicted]) ": "
                    (count) " of " (rows[label]) " (" (percent(100.0 * share, 1)) ")"
                }
            }
        }
    };
    // On a narrow screen the matrix scrolls instead of shrinking beyond legibility.
    let least = (width * 0.8).min(if cell >= 26.0 { 480.0 } else { 640.0 });
    html! {
        figure.wide {
            figcaption { "Confusion matrix" }
            div.scroll {
                div style=(format_args!("min-width:{least:.0}px;max-width:{width:.0}px;margin:auto")) {
                    (marks(width, height, "Confusion matrix", &drawing))
                }
            }
        }
    }
}

/// Returns the reliability diagram: accuracy over confidence with 95 % intervals, above a histogram of confidence.
pub(crate) fn reliability(calibration: &Calibration) -> Markup {
    const STRIP: f64 = 46.0;
    let height = 370.0;
    let bottom = height - 40.0 - STRIP;
    let x = Axis::linear(0.0, 100.0, 44.0, WIDTH - 14.0);
    let y = Axis::linear(0.0, 100.0, bottom, 30.0);
    let (x_ticks, y_ticks) = (x.ticks(5), y.ticks(5));
    let largest = calibration.bins.iter().map(|bin| bin.right.of).max().unwrap_or(1).max(1) as f64;
    let strip = height - 36.0;
    let edge = |index: usize| 100.0 * index as f64 / BINS as f64;
    let (blue, gray) = (PAGE.series[0], PAGE.series[6]);
    let drawing = html! {
        (draw_axes(&PAGE, (&x, &[], ""), (&y, &y_ticks, "accuracy, %")))
        path d={ "M" (Px(x.at(0.0))) " " (Px(y.at(0.0))) "L" (Px(x.at(100.0))) " " (Px(y.at(100.0))) }
            stroke=(PAGE.muted) stroke-dasharray="4 4" {}
        @for (index, bin) in calibration.bins.iter().enumerate().filter(|(_, bin)| bin.right.of > 0) {
            @let (left, right) = (x.at(edge(index)) + 1.0, x.at(edge(index + 1)) - 1.0);
            @let (wide, middle) = (right - left, (left + right) / 2.0);
            @let (accuracy, (low, high)) = (bin.right.percent(), bin.right.wilson());
            @let at = y.at(accuracy);
            @let tall = ((STRIP - 8.0) * bin.right.of as f64 / largest).max(1.0);
            g {
                rect x=(Px(left)) y=(Px(at)) width=(Px(wide)) height=(Px(y.at(0.0) - at)) fill=(blue)
                    fill-opacity=".25" {}
                path d={ "M" (Px(left)) " " (Px(at)) "H" (Px(right)) } stroke=(blue) stroke-width="2.2" {}
                path d={ "M" (Px(middle)) " " (Px(y.at(low))) "V" (Px(y.at(high))) } stroke=(blue) {}
                circle cx=(Px(x.at(bin.mean_confidence()))) cy=(Px(at)) r="2.8" fill=(blue) {}
                rect x=(Px(left)) y=(Px(strip - tall)) width=(Px(wide)) height=(Px(tall)) fill=(gray) {}
                rect x=(Px(left)) y=(Px(y.at(100.0))) width=(Px(wide)) height=(Px(strip - y.at(100.0))) fill="none"
                    pointer-events="all" {}
                title {
                    "confidence " (format_args!("{:.0}", edge(index))) "–" (percent(edge(index + 1), 0)) ": "
                    (plural(bin.right.of, "image")) "\n"
                    "accuracy: " (percent(accuracy, 1)) " (" (interval((low, high))) ")\n"
                    "mean confidence: " (percent(bin.mean_confidence(), 1))
                }
            }
        }
        text x="2" y=(Px(strip - 2.0)) fill=(PAGE.muted) { "images" }
        (draw_axes(&PAGE, (&x, &x_ticks, "confidence, %"), (&Axis::linear(0.0, 1.0, strip, strip), &[], "")))
    };
    html! {
        figure { figcaption { "Reliability of the top-1 prediction" } (marks(WIDTH, height, "Reliability", &drawing)) }
    }
}

/// A number with two decimals.
struct Fine(f64);

impl fmt::Display for Fine {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "{:.2}", self.0)
    }
}

/// Returns a drawing whose marks have tooltips.
fn marks(width: f64, height: f64, label: &str, drawing: &Markup) -> Markup {
    html! {
        svg xmlns="http://www.w3.org/2000/svg" class="marks" viewBox=(format_args!("0 0 {width:.0} {height:.0}"))
            font-size=(TEXT) role="img" aria-label=(label) { (drawing) }
    }
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
        let figure = bars.to_figure().unwrap().into_string();
        assert!(figure.contains("waiting 12\u{202f}%") && figure.contains("compute 88\u{202f}%"), "{figure}");
        assert!(figure.contains("waiting: 1.0\u{202f}s (25\u{202f}%)"), "{figure}");
    }

    #[test]
    fn bars_without_time_are_no_figure() {
        let bars = |seconds| Bars {
            title: "Time",
            parts: vec![("waiting", 1)],
            bars: vec![(1, vec![seconds])],
            shares: false,
        };
        assert_eq!([0.0, 0.002, 0.2].map(|seconds| bars(seconds).to_figure().is_some()), [false, false, true]);
    }

    #[test]
    fn a_confusion_matrix_ignores_labels_beyond_its_classes_and_escapes_names() {
        let names = ["<b>".to_string(), "\"".to_string()];
        let counts = BTreeMap::from([((0, 0), 3), ((0, 1), 1), ((7, 1), 1)]);
        let figure = confusion(&names, &counts).into_string();
        assert!(!figure.contains("<b>") && figure.contains("&lt;b&gt; → &quot;: 1 of 4 (25.0\u{202f}%)"), "{figure}");
    }
}
