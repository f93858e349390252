//! The sections of one run's report.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use maud::{Markup, html};
use serde_json::Value;

use super::{
    chart::{Chart, PAGE, Px, Series},
    figure::{self, Bars, Part},
    format::{
        DataInfo, EpochRow, MetricRow, Metrics, PrecisionRecall, PredictionRow, RUN, RunChange, RunKind, RunResult,
        RunStatus,
    },
    page::{Page, duration, interval, moment, percent, plural, significant, thousands},
    run::{Mistake, Run, by_epoch, by_step, flatten},
    scores,
    stats::{self, Class, Count},
};

/// The largest number of classes for which the confusion matrix and the whole table are shown.
const MANY_CLASSES: usize = 50;
/// The number of most confused pairs shown.
const PAIRS: usize = 20;
/// The number of images with the largest loss shown.
const SUSPECTS: usize = 20;
/// The splits and their names; the index is the color in every chart.
const SPLITS: [(&str, &str); 3] = [("train", "train"), ("valid", "valid"), ("valid_ema", "valid, EMA")];

/// Returns the report of a run.
pub(crate) fn page(run: &Run) -> String {
    let mut page = Page::new(&run.name(), head(run));
    page.section("curves", "Curves", curves(run));
    page.section("time", "Time", time(run));
    page.section("classes", "Classes", classes(run));
    page.section("confused", "Most confused pairs", confused(run));
    page.section("mistakes", "Most confident mistakes", mistakes(run));
    page.section("calibration", "Calibration", calibration(run));
    page.section("labels", "Possibly mislabeled", suspects(run));
    page.section("setup", "Setup", setup(run));
    page.finish()
}

/// The headline accuracy of a run.
pub(crate) struct Outcome {
    /// Which accuracy it is, unless it is that of the predictions.
    pub(crate) what: &'static str,
    /// Top-1 and top-5, in percent.
    pub(crate) top: [Option<f64>; 2],
    /// The counts behind them, if the number of images is known.
    pub(crate) counts: [Option<Count>; 2],
}

/// Returns the accuracy from the predictions, else from the run's result, else of the last validation.
pub(crate) fn outcome(run: &Run) -> Option<Outcome> {
    if !run.predictions.is_empty() {
        let (top1, top5) = stats::accuracy(&run.predictions);
        let counts = [Some(top1), Some(top5)];
        return Some(Outcome { what: "", top: counts.map(|c| c.map(Count::percent)), counts });
    }
    let images = Some(run.info.data.valid_images).filter(|&images| images > 0);
    let (what, top) = match &run.info.result {
        Some(result) => ("of the best epoch", [Some(result.best.top1), Some(result.best.top5)]),
        None => {
            let last = run.last("valid")?;
            ("so far", [last.top1, last.top5])
        }
    };
    Some(Outcome { what, top, counts: top.map(|top| Some(Count::from_percent(top?, images?))) })
}

/// Returns a sentence on what was trained or evaluated on which data.
fn subject(run: &Run) -> Markup {
    let evaluated = run.info.kind == RunKind::Evaluation;
    let verb = match run.info.kind {
        RunKind::Evaluation => "evaluated on",
        RunKind::Finetune => "fine-tuned on",
        RunKind::Probe => "with a linear probe trained on",
        RunKind::Pretrain => "trained on",
    };
    let architecture = run.architecture().unwrap_or_else(|| "A network".to_string());
    let parameters = Some(run.info.parameters).filter(|&parameters| parameters > 0);
    let DataInfo { train, valid, kind, train_images, valid_images, .. } = &run.info.data;
    let known = |images: &usize| Some(*images).filter(|&images| images > 0);
    let data = if evaluated { valid } else { train };
    let kind = Some(kind.as_str()).filter(|kind| !kind.is_empty());
    let data = data.as_deref().or(kind).unwrap_or("unnamed data");
    let mut sizes = Vec::new();
    sizes.extend(known(train_images).map(|images| plural(images, "image")));
    sizes.extend(known(valid_images).map(|images| match evaluated {
        true => plural(images, "image"),
        false => format!("{} for validation", thousands(images)),
    }));
    sizes.extend(
        Some(run.class_count()).filter(|&count| count > 0).map(|count| format!("{} classes", thousands(count))),
    );
    html! {
        b { (architecture) }
        @if let Some(parameters) = parameters { " (" (thousands(parameters)) " parameters)" }
        " " (verb) " " bdi { (data) }
        @if !sizes.is_empty() { ": " (sizes.join(", ")) }
        "."
    }
}

fn head(run: &Run) -> Markup {
    let times = [(Some(&run.info.started), "started"), (run.info.finished.as_ref(), "ended")];
    let times = times.into_iter().filter_map(|(time, verb)| Some((time.filter(|time| !time.is_empty())?, verb)));
    let times = times.map(|(time, verb)| format!("{verb} {}", moment(time)));
    let hardware = [&run.info.device, &run.info.cpu].into_iter().filter(|name| !name.is_empty());
    let line: Vec<String> = times.chain(hardware.cloned()).collect();
    let tiles = tiles(run);
    html! {
        div.title { h1 { bdi { (run.name()) } } (status(run)) }
        p.lead { (subject(run)) }
        @if !line.is_empty() { p.sub { (line.join(" · ")) } }
        @if !tiles.is_empty() { dl.tiles { @for tile in tiles { (tile.draw()) } } }
        (notices(std::slice::from_ref(run)))
        (missing(run))
    }
}

/// A headline number with its name, and lines below it.
struct Tile {
    name: String,
    value: String,
    lines: Vec<String>,
}

impl Tile {
    fn draw(&self) -> Markup {
        html! {
            div {
                dt { (self.name) }
                dd {
                    div.big { (self.value) }
                    div.sub { @for (index, line) in self.lines.iter().enumerate() { @if index > 0 { br; } (line) } }
                }
            }
        }
    }
}

fn tiles(run: &Run) -> Vec<Tile> {
    let mut tiles = Vec::new();
    if let Some(outcome) = outcome(run) {
        for (name, (top, count)) in ["Top-1", "Top-5"].into_iter().zip(outcome.top.into_iter().zip(outcome.counts)) {
            // Top-5 is always 100 % with up to five classes.
            let Some(top) = top.filter(|_| name == "Top-1" || run.class_count() > 5) else { continue };
            let interval = |count: Count| format!("95\u{202f}%: {}", interval(count.wilson()));
            let hits = |count: Count| format!("{} of {}", thousands(count.hits), thousands(count.of));
            tiles.push(Tile {
                name: format!("{name} {}", outcome.what).trim_end().to_string(),
                value: percent(top, decimals(count)),
                lines: count.into_iter().flat_map(|count| [interval(count), hits(count)]).collect(),
            });
        }
    }
    let epochs = run.metrics.iter().filter_map(|metric| metric.epoch).max();
    let result = run.info.result.as_ref();
    let best = result.and_then(|result| result.best_epoch).or_else(|| best_epoch(run));
    if let Some(best) = best {
        let loss = result.map(|result| result.best.loss).map(|loss| format!("valid loss {}", significant(loss, 4)));
        let of = epochs.filter(|&epochs| epochs > 0).map(|epochs| format!("of {epochs}"));
        let lines = [of, loss].into_iter().flatten().collect();
        tiles.push(Tile { name: "Best epoch".to_string(), value: best.to_string(), lines });
    }
    let spent: f64 = run.epochs.iter().filter_map(|epoch| epoch.seconds).sum();
    if let Some(seconds) = result.map(|result| result.seconds).or(Some(spent).filter(|&spent| spent > 0.0)) {
        let count = Some(run.epochs.len()).filter(|&count| count > 0);
        let lines = count.map(|count| format!("{} per epoch", duration(spent / count as f64))).into_iter().collect();
        tiles.push(Tile { name: "Time".to_string(), value: duration(seconds), lines });
    }
    let rate = result.map(|result| result.images_per_second);
    if let Some(rate) =
        rate.or_else(|| run.last("train")?.images_per_second).filter(|rate| rate.is_finite() && *rate > 0.0)
    {
        let value = if rate < 1000.0 { significant(rate, 3) } else { thousands(rate as usize) };
        tiles.push(Tile { name: "Throughput".to_string(), value, lines: vec!["images/s".to_string()] });
    }
    tiles
}

/// Returns the number of decimals: percentages of few images need few.
fn decimals(count: Option<Count>) -> usize {
    if count.is_some_and(|count| count.of < 1000) { 1 } else { 2 }
}

/// Returns the status of a run as a badge.
pub(crate) fn status(run: &Run) -> Markup {
    let (class, name) = match run.info.status {
        Some(status) => (status.name(), status.name()),
        None => ("", "status unknown"),
    };
    html! { span class={ "status " (class) } { (name) } }
}

/// Returns the problems with the files of these runs.
pub(crate) fn notices(runs: &[Run]) -> Markup {
    html! {
        @if runs.iter().any(|run| !run.notices.is_empty()) {
            div.notices role="note" {
                @for run in runs {
                    @for notice in &run.notices {
                        p { @if runs.len() > 1 { (run.folder_name()) "/" } (notice) }
                    }
                }
            }
        }
    }
}

fn missing(run: &Run) -> Markup {
    let is_running = run.info.status == Some(RunStatus::Running);
    html! {
        @if !run.missing.is_empty() {
            p.sub {
                (if is_running { "Not written yet" } else { "Missing from the run folder" })
                ": " (run.missing.join(", ")) "."
            }
        }
    }
}

fn best_epoch(run: &Run) -> Option<usize> {
    let valid = run.curve("valid", by_epoch, |metric| metric.top1);
    let best =
        valid.iter().filter(|point| point.1.is_finite()).max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.total_cmp(&a.0)));
    best.map(|best| best.0 as usize)
}

fn curves(run: &Run) -> Option<Markup> {
    let epochs = |y: fn(&MetricRow) -> Option<f64>| -> Vec<Series> {
        let series = SPLITS.iter().enumerate().map(|(color, (split, name))| {
            let line = Series::new(*name, run.curve(split, by_epoch, y)).colored(color);
            if *split == "valid_ema" { line.dashed() } else { line }
        });
        series.filter(has_values).collect()
    };
    let steps = |name: &str, color: usize, y: fn(&MetricRow) -> Option<f64>| -> Vec<Series> {
        let points = run.curve("train_step", by_step, y);
        Some(Series::new(name, points).colored(color)).into_iter().filter(has_values).collect()
    };
    let best = run.info.result.as_ref().and_then(|result| result.best_epoch).or_else(|| best_epoch(run));
    let marker = best.map(|best| (best as f64, "best".to_string()));
    let chart = |title: &str, x_label: &str, y_label: &str, series: Vec<Series>| Chart {
        title: title.to_string(),
        x_label: x_label.to_string(),
        y_label: y_label.to_string(),
        series,
        ..Chart::default()
    };
    let by_epoch = |title: &str, y_label: &str, series: Vec<Series>| Chart {
        marker: marker.clone(),
        ..chart(title, "epoch", y_label, series)
    };

    let mut charts = vec![
        by_epoch("Loss", "cross-entropy", epochs(|metric| metric.loss)).log_beyond(40.0),
        by_epoch("Top-1 accuracy", "%", epochs(|metric| metric.top1)),
    ];
    if run.class_count() > 5 {
        charts.push(by_epoch("Top-5 accuracy", "%", epochs(|metric| metric.top5)));
    }
    // With too few epochs for a curve, the steps are shown.
    if charts[0].series.iter().all(|series| series.points.len() < 3) {
        charts.push(chart("Training loss", "step", "cross-entropy", steps("loss", 0, |metric| metric.loss)));
    }
    charts.push(chart("Learning rate", "step", "", steps("learning rate", 3, |metric| metric.learning_rate)));
    let norms = steps("gradient norm", 4, |metric| metric.gradient_norm);
    charts.push(chart("Gradient norm", "step", "", norms).log_beyond(40.0));
    let rates = steps("images/s", 2, |metric| metric.images_per_second);
    charts.push(chart("Throughput", "step", "images/s", rates));

    charts.retain(|chart| !chart.series.is_empty());
    let results = run.info.result.as_ref().map(|result| results(result, run.class_count() > 5));
    (!charts.is_empty()).then(|| {
        html! {
            div.pair { @for chart in &charts { (chart.to_figure()) } }
            @if let Some(results) = results { (results) }
        }
    })
}

fn has_values(series: &Series) -> bool {
    series.points.iter().any(|point| point.1.is_finite())
}

/// Returns a table of best, last and EMA weights.
fn results(result: &RunResult, five: bool) -> Markup {
    let rows: [(Option<Metrics>, &str); 3] =
        [(Some(result.best), "Best epoch"), (result.last, "Last epoch"), (result.ema, "EMA of the weights")];
    html! {
        h3 { "Results on the validation images" }
        div.scroll {
            table style="max-width:36rem" {
                tr {
                    th { "Weights" }
                    th.number { "Top-1" }
                    @if five { th.number { "Top-5" } }
                    th.number { "Loss" }
                }
                @for (score, name) in rows.iter().filter_map(|(score, name)| Some((score.as_ref()?, name))) {
                    "\n" tr {
                        td { (name) }
                        td.number { (percent(score.top1, 2)) }
                        @if five { td.number { (percent(score.top5, 2)) } }
                        td.number { (significant(score.loss, 4)) }
                    }
                }
            }
        }
    }
}

fn time(run: &Run) -> Option<Markup> {
    // A resumed run may repeat epochs; the later row counts.
    let mut epochs: Vec<(usize, &EpochRow)> = Vec::new();
    for epoch in &run.epochs {
        let Some(number) = epoch.epoch else { continue };
        while epochs.pop_if(|last| last.0 >= number).is_some() {}
        epochs.push((number, epoch));
    }
    if epochs.is_empty() {
        return None;
    }
    const PHASES: [Part; 8] = [
        ("compute", 0),
        ("waiting for data", 1),
        ("waiting for processes", 4),
        ("all-reduce", 5),
        ("validation", 2),
        ("checkpointing", 3),
        ("transfer to the device", 7),
        ("other", 6),
    ];
    const THREADS: [Part; 5] = [("reading", 5), ("decoding", 0), ("transforming", 2), ("collating", 4), ("idle", 6)];
    let seconds = |value: Option<f64>| value.filter(|value| value.is_finite()).unwrap_or(0.0).max(0.0);
    // A single process does not wait for others.
    let several = epochs.iter().any(|(_, epoch)| seconds(epoch.all_reduce) > 0.0);
    // Nor does a CPU copy batches.
    let copied = epochs.iter().any(|(_, epoch)| seconds(epoch.transfer) > 0.0);
    let is_shown = |part: &usize| match part {
        2 | 3 => several,
        6 => copied,
        _ => true,
    };
    let shown: Vec<usize> = (0..PHASES.len()).filter(is_shown).collect();
    let phases = |epoch: &EpochRow| {
        let of_ranks = [epoch.waiting_for_ranks, epoch.all_reduce];
        let mut parts = [epoch.compute, epoch.waiting, of_ranks[0], of_ranks[1], epoch.validation, epoch.checkpointing]
            .map(seconds)
            .to_vec();
        parts.push(seconds(epoch.transfer));
        parts.push((seconds(epoch.seconds) - parts.iter().sum::<f64>()).max(0.0));
        shown.iter().map(|&part| parts[part]).collect()
    };
    let names: Vec<Part> = shown.iter().map(|&part| PHASES[part]).collect();
    let threads = |epoch: &EpochRow| {
        [epoch.reading, epoch.decoding, epoch.transforming, epoch.collating, epoch.idle].map(seconds).to_vec()
    };
    let bars = |title, parts: &[Part], shares, values: &dyn Fn(&EpochRow) -> Vec<f64>| Bars {
        title,
        parts: parts.to_vec(),
        bars: epochs.iter().map(|(number, epoch)| (*number, values(epoch))).collect(),
        shares,
    };
    let figures = [
        bars("Each epoch", &names, false, &phases).to_figure(),
        bars("Loader threads", &THREADS, true, &threads).to_figure(),
    ];

    let mut advice: Vec<(&str, Vec<usize>)> = Vec::new();
    for (number, epoch) in epochs.iter().filter(|(_, epoch)| !epoch.advice.trim().is_empty()) {
        match advice.iter_mut().find(|known| known.0 == epoch.advice) {
            Some(known) => known.1.push(*number),
            None => advice.push((&epoch.advice, vec![*number])),
        }
    }
    let total = |value: fn(&EpochRow) -> Option<u64>| -> usize {
        epochs.iter().filter_map(|(_, epoch)| value(epoch)).map(|count| count as usize).sum()
    };
    let (bad, skipped) = (total(|epoch| epoch.bad_samples), total(|epoch| epoch.skipped_steps));
    Some(html! {
        div.pair { @for figure in figures.iter().flatten() { (figure) } }
        @if !advice.is_empty() {
            h3 { "Advice" }
            ul {
                @for (text, numbers) in advice {
                    li {
                        (text.trim()) " "
                        span.sub { (if numbers.len() == 1 { "(epoch " } else { "(epochs " }) (Ranges(&numbers)) ")" }
                    }
                }
            }
        }
        @if bad + skipped > 0 {
            p {
                "Over all epochs, " (plural(bad, "sample")) " could not be read and "
                (plural(skipped, "optimizer step")) (if skipped == 1 { " was" } else { " were" }) " skipped."
            }
        }
    })
}

/// Ascending numbers with consecutive ones joined: `1, 3–5`.
struct Ranges<'a>(&'a [usize]);

impl fmt::Display for Ranges<'_> {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        for (index, run) in self.0.chunk_by(|a, b| a + 1 == *b).enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            match run {
                [one] => write!(out, "{comma}{one}")?,
                [first, .., last] => write!(out, "{comma}{first}–{last}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

fn classes(run: &Run) -> Option<Markup> {
    let classes = stats::classes(&run.predictions);
    if classes.is_empty() {
        return None;
    }
    let count = run.class_count();
    let flawless = classes.iter().filter(|class| class.top1.hits == class.top1.of).count();
    Some(html! {
        p {
            (if classes.len() == 1 { "1 class has".to_string() } else { thousands(classes.len()) + " classes have" })
            " validation images; the class with the lowest accuracy is listed first. "
            (match flawless {
                0 => "No class has".to_string(),
                1 => "1 class has".to_string(),
                _ => thousands(flawless) + " classes have",
            })
            " an accuracy of 100\u{202f}%. The bars show Wilson’s 95\u{202f}% intervals."
        }
        @if let Some(averages) = averages(run) { (averages) }
        @if count > MANY_CLASSES {
            (class_table(run, &classes[..classes.len().min(10)]))
            (details(&format!("All {} classes", thousands(classes.len())), class_table(run, &classes)))
        } @else {
            @let names: Vec<String> = (0..count).map(|index| run.class(index)).collect();
            (class_table(run, &classes))
            (figure::confusion(&names, &stats::confusion(&run.predictions)))
        }
    })
}

/// Returns the scores over all classes: precision, recall, F1, balanced accuracy, Cohen's κ.
fn averages(run: &Run) -> Option<Markup> {
    let scores = scores::scores(&run.predictions)?;
    let number = |value: f64| format!("{value:.4}");
    let rows = [("Macro (mean over classes)", scores.macro_average), ("Weighted by images", scores.weighted)];
    Some(html! {
        div.scroll {
            table {
                tr {
                    th { "Average" }
                    th.number { "Precision" }
                    th.number { "Recall" }
                    th.number { "F1" }
                }
                @for (name, average) in rows {
                    "\n" tr {
                        td { (name) }
                        td.number { (number(average.precision)) }
                        td.number { (number(average.recall)) }
                        td.number { (number(average.f1)) }
                    }
                }
            }
        }
        p {
            "Balanced accuracy " (percent(100.0 * scores.balanced_accuracy, 2))
            @if let Some(kappa) = scores.kappa { "; Cohen’s κ " (number(kappa)) }
            ". Micro averages equal the accuracy."
        }
    })
}

fn class_table(run: &Run, classes: &[Class]) -> Markup {
    let five = run.class_count() > 5;
    let of_class: BTreeMap<usize, PrecisionRecall> =
        scores::classes(&run.predictions).into_iter().map(|class| (class.class, class.scores)).collect();
    let score = |label: usize, of: fn(&PrecisionRecall) -> f64| {
        of_class.get(&label).map_or_else(|| "–".to_string(), |scores| format!("{:.3}", of(scores)))
    };
    html! {
        div.scroll {
            table {
                tr {
                    th { "Class" }
                    th.number { "Images" }
                    th.rate { "Top-1" }
                    @if five { th.rate { "Top-5" } }
                    th.number { "Precision" }
                    th.number { "F1" }
                    th { "Most often mistaken for" }
                }
                @for class in classes {
                    "\n" tr {
                        td { bdi { (run.class(class.label)) } }
                        td.number { (thousands(class.top1.of)) }
                        (rate(class.top1))
                        @if five { (rate(class.top5)) }
                        td.number { (score(class.label, |scores| scores.precision)) }
                        td.number { (score(class.label, |scores| scores.f1)) }
                        td.name {
                            @if let Some((other, count)) = class.taken_for {
                                bdi { (run.class(other)) } " " span.sub { (thousands(count)) "×" }
                            } @else { "–" }
                        }
                    }
                }
            }
        }
    }
}

/// Returns a table cell with a percentage and its interval, drawn and in numbers.
fn rate(count: Count) -> Markup {
    let (low, high) = count.wilson();
    let blue = PAGE.series[0];
    html! {
        td.rate {
            svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" {
                path d="M0 5H100" stroke=(PAGE.grid) {}
                rect x=(Px(low)) y="2.5" width=(Px(high - low)) height="5" fill=(blue) fill-opacity=".35" {}
                rect x=(Px((count.percent() - 1.0).clamp(0.0, 98.0))) width="2" height="10" fill=(blue) {}
            }
            (percent(count.percent(), 1)) " " span.sub { (format_args!("{low:.0}–{high:.0}")) }
        }
    }
}

fn confused(run: &Run) -> Option<Markup> {
    let confusion = stats::confusion(&run.predictions);
    let mut of_class: HashMap<usize, usize> = HashMap::new();
    for prediction in &run.predictions {
        *of_class.entry(prediction.label).or_default() += 1;
    }
    let mut pairs: Vec<_> = confusion.into_iter().filter(|((label, predicted), _)| label != predicted).collect();
    pairs.sort_by_key(|pair| std::cmp::Reverse(pair.1));
    // Pairs of a single image are shown only if there are no others.
    if pairs.first().is_some_and(|pair| pair.1 > 1) {
        pairs.retain(|pair| pair.1 > 1);
    }
    pairs.truncate(PAIRS);
    if pairs.is_empty() {
        return None;
    }
    Some(html! {
        div.scroll {
            table {
                tr { th { "True" } th { "Predicted" } th.number { "Images" } th.number { "% of class" } }
                @for ((label, predicted), count) in pairs {
                    @let of = of_class.get(&label).copied().unwrap_or(count);
                    "\n" tr {
                        td { bdi { (run.class(label)) } }
                        td { bdi { (run.class(predicted)) } }
                        td.number { (thousands(count)) }
                        td.number { (percent(100.0 * count as f64 / of as f64, 1)) }
                    }
                }
            }
        }
    })
}

fn mistakes(run: &Run) -> Option<Markup> {
    if run.mistakes.is_empty() {
        return None;
    }
    let probability = |mistake: &Mistake| mistake.row.p1.filter(|p| p.is_finite()).map(|p| percent(100.0 * p, 1));
    Some(html! {
        p { "The misclassified images with the highest predicted probability. Some of their labels may be wrong." }
        ul.pictures {
            @for (index, mistake) in run.mistakes.iter().enumerate() {
                "\n" li id={ "mistake-" (index) } {
                    (picture(mistake))
                    span.label {
                        b.wrong { bdi { (predicted(run, mistake.row.pred1)) } } " "
                        (probability(mistake).unwrap_or_default())
                    }
                    span.label { "labeled " bdi { (run.class(mistake.row.label)) } }
                    span.key title=(mistake.row.key) { (mistake.row.key) }
                }
            }
        }
    })
}

/// Returns the name of a predicted class.
fn predicted(run: &Run, class: Option<usize>) -> String {
    class.map_or("–".to_string(), |class| run.class(class))
}

fn picture(mistake: &Mistake) -> Markup {
    html! {
        @match &mistake.picture {
            Some((bytes, kind)) => { img src={ "data:" (kind) ";base64," (BASE64_STANDARD.encode(bytes)) } alt=""; }
            None => { span.none { "no picture" } }
        }
    }
}

fn calibration(run: &Run) -> Option<Markup> {
    let calibration = stats::calibration(&run.predictions)?;
    let (confidence, accuracy) = (calibration.all.mean_confidence(), calibration.all.right.percent());
    let apart = confidence - accuracy;
    let (low, high) = calibration.all.right.wilson();
    let verdict = if (low..=high).contains(&confidence) {
        "Overall, the confidence agrees with the accuracy: it is within its 95\u{202f}% interval.".to_string()
    } else {
        let kind = if apart > 0.0 { "overconfident" } else { "underconfident" };
        format!("Overall, the network is {kind}, by {:.1} percentage points.", apart.abs())
    };
    let tile = |name: &str, value: String, line: &str| {
        Tile { name: name.to_string(), value, lines: vec![line.to_string()] }.draw()
    };
    Some(html! {
        div.pair {
            (figure::reliability(&calibration))
            div {
                dl.tiles style="margin-top:0" {
                    (tile("Calibration error", percent(calibration.ece, 2), "expected (ECE)"))
                    (tile("Confidence", percent(confidence, 1), "mean probability"))
                    (tile("Accuracy", percent(accuracy, 1), "top-1"))
                }
                p style="margin-top:1rem" { (verdict) }
                p.sub {
                    "On the dashed line, predictions of 80\u{202f}% are correct in 80\u{202f}% of cases. "
                    (stats::BINS) " bins of equal width; the thin lines are Wilson’s 95\u{202f}% intervals; the dots "
                    "mark each bin’s mean confidence; the gray bars count its images."
                }
            }
        }
    })
}

fn suspects(run: &Run) -> Option<Markup> {
    let loss = |prediction: &PredictionRow| prediction.loss.filter(|loss| !loss.is_nan());
    let mut suspects: Vec<_> = run.predictions.iter().filter(|prediction| loss(prediction).is_some()).collect();
    suspects.sort_by(|a, b| b.loss.partial_cmp(&a.loss).unwrap_or(std::cmp::Ordering::Equal));
    suspects.truncate(SUSPECTS);
    if suspects.is_empty() {
        return None;
    }
    let pictures: HashMap<&str, usize> =
        run.mistakes.iter().enumerate().map(|(index, mistake)| (mistake.row.key.as_str(), index)).collect();
    let class = |name: String, p: Option<f64>| {
        html! {
            td.name {
                bdi { (name) }
                @if let Some(p) = p.filter(|p| p.is_finite()) {
                    " " span.sub { (percent(100.0 * p, if p < 0.01 { 2 } else { 1 })) }
                }
            }
        }
    };
    Some(html! {
        p { "The images with the highest loss: check whether their labels are correct." }
        div.scroll {
            table {
                tr { th { "Image" } th { "Label" } th { "Predicted" } th.number { "Loss" } }
                @for suspect in suspects {
                    "\n" tr {
                        td {
                            @match pictures.get(suspect.key.as_str()) {
                                Some(index) => { a href={ "#mistake-" (index) } { bdi { (suspect.key) } } }
                                None => { bdi { (suspect.key) } }
                            }
                        }
                        (class(run.class(suspect.label), suspect.p_label))
                        (class(predicted(run, suspect.pred1), suspect.p1))
                        td.number {
                            @match suspect.loss.filter(|loss| loss.is_finite()) {
                                Some(loss) => { (significant(loss, 4)) }
                                None => { "∞" }
                            }
                        }
                    }
                }
            }
        }
    })
}

fn setup(run: &Run) -> Option<Markup> {
    let recipe = run.recipe.as_ref().map(|recipe| html! { pre { (recipe.trim_end()) } });
    let card = run.card.as_object().cloned().map(|mut card| {
        let classes = card.remove("classes");
        html! {
            (facts(&Value::Object(card)))
            @if let Some(Value::Array(classes)) = classes {
                @let names: Vec<String> = (0..classes.len()).map(|index| run.class(index)).collect();
                h3 { (thousands(names.len())) " classes" }
                p { (names.join(" · ")) }
            }
        }
    });
    let environment = (!run.missing.contains(&RUN)).then(|| {
        let words: Vec<String> = run.info.command.iter().map(|word| quote(word)).collect();
        html! { pre { (words.join(" ")) } p {} (facts(&run.environment())) }
    });
    let parts = [("Recipe", recipe), ("Model card", card), ("Environment", environment)];
    let parts: Vec<Markup> = parts.into_iter().filter_map(|(title, inside)| Some(details(title, inside?))).collect();
    let (changes, decisions) = (&run.info.changes, &run.info.decisions);
    (!parts.is_empty() || !changes.is_empty() || !decisions.is_empty()).then(|| {
        html! {
            @if !decisions.is_empty() {
                p { "Decided from the data and the weights:" }
                ul { @for decision in decisions { li { (decision) } } }
            }
            @if !changes.is_empty() {
                p { "The run was resumed with changes:" }
                ul {
                    @for RunChange { step, epoch, key, from, to } in changes {
                        li {
                            "epoch " (epoch) ", after step " (step) ": " code { (key) } " from " bdi { (from) } " to " bdi { (to) }
                        }
                    }
                }
            }
            @for part in parts { (part) }
        }
    })
}

fn details(title: &str, inside: Markup) -> Markup {
    html! { details { summary { (title) } div { (inside) } } }
}

/// Quotes a word of a command line for a shell.
fn quote(word: &str) -> String {
    let plain = |character: char| character.is_alphanumeric() || "-_=./:,+@%".contains(character);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_string()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn facts(value: &Value) -> Markup {
    html! { dl.facts { @for (name, value) in flatten(value) { "\n" dt { (name.replace('_', " ")) } dd { (value) } } } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_numbers_are_joined() {
        assert_eq!(Ranges(&[1, 3, 4, 5, 9]).to_string(), "1, 3–5, 9");
        assert_eq!(Ranges(&[]).to_string(), "");
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quote("--lr=0.1"), "--lr=0.1");
        assert_eq!(quote("it's here"), r"'it'\''s here'");
        assert_eq!(quote(""), "''");
    }
}
