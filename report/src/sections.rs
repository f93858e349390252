//! The sections of one run's report.

use std::{
    collections::HashMap,
    fmt::{self, Write},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;

use super::{
    chart::{Chart, PAGE, Series},
    figure::{self, Bars, Part},
    format::{DataInfo, EpochRow, MetricRow, PredictionRow, RUN, RunKind, RunStatus, Score},
    page::{Page, duration, escape, interval, moment, percent, plural, significant, thousands},
    run::{Mistake, Run, by_epoch, by_step, flatten},
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
    page.section("curves", "Curves", &curves(run));
    page.section("time", "Where the time went", &time(run));
    page.section("classes", "Classes", &classes(run));
    page.section("confused", "Most confused pairs", &confused(run));
    page.section("mistakes", "Most confident mistakes", &mistakes(run));
    page.section("calibration", "Calibration", &calibration(run));
    page.section("labels", "Possibly mislabeled", &suspects(run));
    page.section("setup", "Set-up", &setup(run));
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
pub(crate) fn subject(run: &Run) -> String {
    let evaluated = run.info.kind == RunKind::Evaluation;
    let verb = match run.info.kind {
        RunKind::Evaluation => "evaluated on",
        RunKind::Finetune => "fine-tuned on",
        RunKind::Probe => "with a linear probe on",
        RunKind::Pretrain => "trained on",
    };
    let architecture = run.architecture().unwrap_or_else(|| "A network".to_string());
    let mut subject = format!("<b>{}</b>", escape(&architecture));
    if let Some(parameters) = Some(run.info.parameters).filter(|&parameters| parameters > 0) {
        let _ = write!(subject, " ({} parameters)", thousands(parameters));
    }
    let DataInfo { train, valid, kind, train_images, valid_images, .. } = &run.info.data;
    let known = |images: &usize| Some(*images).filter(|&images| images > 0);
    let data = if evaluated { valid } else { train };
    let kind = Some(kind.as_str()).filter(|kind| !kind.is_empty());
    let data = data.as_deref().or(kind).unwrap_or("unnamed data");
    let _ = write!(subject, " {verb} <bdi>{}</bdi>", escape(data));
    let mut sizes = Vec::new();
    sizes.extend(known(train_images).map(|images| plural(images, "image")));
    sizes.extend(known(valid_images).map(|images| match evaluated {
        true => plural(images, "image"),
        false => format!("{} for validation", thousands(images)),
    }));
    sizes.extend(
        Some(run.class_count()).filter(|&count| count > 0).map(|count| format!("{} classes", thousands(count))),
    );
    if !sizes.is_empty() {
        let _ = write!(subject, ": {}", sizes.join(", "));
    }
    subject + "."
}

fn head(run: &Run) -> String {
    let mut head = format!("<div class=\"title\"><h1><bdi>{}</bdi></h1>{}</div>\n", escape(&run.name()), status(run));
    let _ = writeln!(head, "<p class=\"lead\">{}</p>", subject(run));
    let times = [(Some(&run.info.started), "started"), (run.info.finished.as_ref(), "ended")];
    let times = times.into_iter().filter_map(|(time, verb)| Some((time.filter(|time| !time.is_empty())?, verb)));
    let times = times.map(|(time, verb)| format!("{verb} {}", escape(&moment(time))));
    let hardware = [&run.info.device, &run.info.cpu].into_iter().filter(|name| !name.is_empty());
    let line: Vec<String> = times.chain(hardware.map(|name| escape(name))).collect();
    if !line.is_empty() {
        let _ = writeln!(head, "<p class=\"sub\">{}</p>", line.join(" · "));
    }

    let mut tiles = String::new();
    if let Some(outcome) = outcome(run) {
        for (name, (top, count)) in ["Top-1", "Top-5"].into_iter().zip(outcome.top.into_iter().zip(outcome.counts)) {
            // Top-5 is always 100 % with up to five classes.
            let Some(top) = top.filter(|_| name == "Top-1" || run.class_count() > 5) else { continue };
            let sub = match count {
                Some(count) => format!(
                    "95\u{202f}%: {}<br>{} of {}",
                    interval(count.wilson()),
                    thousands(count.hits),
                    thousands(count.of)
                ),
                None => String::new(),
            };
            tile(&mut tiles, format!("{name} {}", outcome.what).trim_end(), &percent(top, decimals(count)), &sub);
        }
    }
    let epochs = run.metrics.iter().filter_map(|metric| metric.epoch).max();
    let result = run.info.result.as_ref();
    let best = result.and_then(|result| result.best_epoch).or_else(|| best_epoch(run));
    if let Some(best) = best {
        let loss = result.map(|result| result.best.loss).map(|loss| format!("valid loss {}", significant(loss, 4)));
        let of = epochs.filter(|&epochs| epochs > 0).map(|epochs| format!("of {epochs}"));
        let lines: Vec<String> = [of, loss].into_iter().flatten().collect();
        tile(&mut tiles, "Best epoch", &best.to_string(), &lines.join("<br>"));
    }
    let spent: f64 = run.epochs.iter().filter_map(|epoch| epoch.seconds).sum();
    if let Some(seconds) = result.map(|result| result.seconds).or(Some(spent).filter(|&spent| spent > 0.0)) {
        let each = if run.epochs.is_empty() { String::new() } else { duration(spent / run.epochs.len() as f64) };
        let each = if each.is_empty() { each } else { format!("{each} per epoch") };
        tile(&mut tiles, "Time", &duration(seconds), &each);
    }
    let rate = result.map(|result| result.images_per_second);
    if let Some(rate) = rate.or_else(|| run.last("train")?.images_per_second).filter(|rate| rate.is_finite()) {
        let rate = if rate < 1000.0 { significant(rate, 3) } else { thousands(rate as usize) };
        tile(&mut tiles, "Throughput", &rate, "images/s");
    }
    if !tiles.is_empty() {
        let _ = writeln!(head, "<dl class=\"tiles\">{tiles}</dl>");
    }
    head + &notices(std::slice::from_ref(run)) + &missing(run)
}

/// Returns the number of decimals: percentages of few images need few.
fn decimals(count: Option<Count>) -> usize {
    if count.is_some_and(|count| count.of < 1000) { 1 } else { 2 }
}

fn tile(tiles: &mut String, name: &str, value: &str, sub: &str) {
    let _ = writeln!(
        tiles,
        "<div><dt>{name}</dt><dd><div class=\"big\">{value}</div><div class=\"sub\">{sub}</div></dd></div>"
    );
}

/// Returns the status of a run as a badge.
pub(crate) fn status(run: &Run) -> String {
    let (class, name) = match run.info.status {
        Some(status) => (status.name(), status.name()),
        None => ("", "state unknown"),
    };
    format!("<span class=\"status {class}\">{name}</span>")
}

/// Returns the problems with the files of these runs.
pub(crate) fn notices(runs: &[Run]) -> String {
    let mut lines = String::new();
    for run in runs {
        for notice in &run.notices {
            let folder = if runs.len() > 1 { run.folder_name() + "/" } else { String::new() };
            let _ = writeln!(lines, "<p>{}</p>", escape(&(folder + notice)));
        }
    }
    if lines.is_empty() { lines } else { format!("<div class=\"notices\" role=\"note\">\n{lines}</div>\n") }
}

fn missing(run: &Run) -> String {
    if run.missing.is_empty() {
        return String::new();
    }
    let verb =
        if run.info.status == Some(RunStatus::Running) { "Not written yet" } else { "Missing from the run folder" };
    format!("<p class=\"sub\">{verb}: {}.</p>\n", run.missing.join(", "))
}

fn best_epoch(run: &Run) -> Option<usize> {
    let valid = run.curve("valid", by_epoch, |metric| metric.top1);
    let best =
        valid.iter().filter(|point| point.1.is_finite()).max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.total_cmp(&a.0)));
    best.map(|best| best.0 as usize)
}

fn curves(run: &Run) -> String {
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

    let figures: String = charts.iter().filter(|chart| !chart.series.is_empty()).map(Chart::to_figure).collect();
    if figures.is_empty() { figures } else { format!("<div class=\"pair\">\n{figures}</div>\n{}", results(run)) }
}

fn has_values(series: &Series) -> bool {
    series.points.iter().any(|point| point.1.is_finite())
}

/// Returns a table of best, last and EMA weights.
fn results(run: &Run) -> String {
    let Some(result) = &run.info.result else { return String::new() };
    let rows: [(Option<Score>, &str); 3] =
        [(Some(result.best), "Best epoch"), (result.last, "Last epoch"), (result.ema, "EMA of the weights")];
    let mut body = String::new();
    for (score, name) in rows {
        let Some(Score { loss, top1, top5 }) = score else { continue };
        let _ = writeln!(
            body,
            "<tr><td>{name}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td></tr>",
            percent(top1, 2),
            percent(top5, 2),
            significant(loss, 4)
        );
    }
    if body.is_empty() {
        return body;
    }
    format!(
        "<h3>Results on the validation images</h3>\n<div class=\"scroll\"><table style=\"max-width:36rem\">\n<tr><th>Weights</th><th class=\"number\">Top-1</th><th class=\"number\">Top-5</th><th class=\"number\">Loss</th></tr>\n{body}</table></div>\n"
    )
}

fn time(run: &Run) -> String {
    // A resumed run may repeat epochs; the later row counts.
    let mut epochs: Vec<(usize, &EpochRow)> = Vec::new();
    for epoch in &run.epochs {
        let Some(number) = epoch.epoch else { continue };
        while epochs.pop_if(|last| last.0 >= number).is_some() {}
        epochs.push((number, epoch));
    }
    if epochs.is_empty() {
        return String::new();
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
    let mut body = format!(
        "<div class=\"pair\">\n{}{}</div>\n",
        bars("Each epoch", &names, false, &phases).to_figure(),
        bars("The loader’s threads", &THREADS, true, &threads).to_figure()
    );

    let mut advice: Vec<(&str, Vec<usize>)> = Vec::new();
    for (number, epoch) in epochs.iter().filter(|(_, epoch)| !epoch.advice.trim().is_empty()) {
        match advice.iter_mut().find(|known| known.0 == epoch.advice) {
            Some(known) => known.1.push(*number),
            None => advice.push((&epoch.advice, vec![*number])),
        }
    }
    if !advice.is_empty() {
        body.push_str("<h3>Advice</h3>\n<ul>\n");
        for (text, numbers) in advice {
            let noun = if numbers.len() == 1 { "epoch" } else { "epochs" };
            let _ = writeln!(
                body,
                "<li>{} <span class=\"sub\">({noun} {})</span></li>",
                escape(text.trim()),
                Ranges(&numbers)
            );
        }
        body.push_str("</ul>\n");
    }
    let total = |value: fn(&EpochRow) -> Option<u64>| -> usize {
        epochs.iter().filter_map(|(_, epoch)| value(epoch)).map(|count| count as usize).sum()
    };
    let (bad, skipped) = (total(|epoch| epoch.bad_samples), total(|epoch| epoch.skipped_steps));
    if bad + skipped > 0 {
        let _ = writeln!(
            body,
            "<p>Over all epochs, {} could not be read and {} of the optimizer {} skipped.</p>",
            plural(bad, "sample"),
            plural(skipped, "step"),
            if skipped == 1 { "was" } else { "were" }
        );
    }
    body
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

fn classes(run: &Run) -> String {
    let classes = stats::classes(&run.predictions);
    if classes.is_empty() {
        return String::new();
    }
    let count = run.class_count();
    let flawless = classes.iter().filter(|class| class.top1.hits == class.top1.of).count();
    let mut body = format!(
        "<p>{} with validation images, the worst first; {} without a mistake. The bars show Wilson’s 95\u{202f}% intervals.</p>\n",
        if classes.len() == 1 { "1 class".to_string() } else { format!("{} classes", thousands(classes.len())) },
        if flawless == 0 { "none".to_string() } else { thousands(flawless) }
    );
    if count > MANY_CLASSES {
        body += &class_table(run, &classes[..classes.len().min(10)]);
        let _ = writeln!(
            body,
            "<details><summary>All {} classes</summary><div>{}</div></details>",
            thousands(classes.len()),
            class_table(run, &classes)
        );
    } else {
        body += &class_table(run, &classes);
        let names: Vec<String> = (0..count).map(|index| run.class(index)).collect();
        body += &figure::confusion(&names, &stats::confusion(&run.predictions));
    }
    body
}

fn class_table(run: &Run, classes: &[Class]) -> String {
    let five = run.class_count() > 5;
    let mut table = format!(
        "<div class=\"scroll\"><table>\n<tr><th>Class</th><th class=\"number\">Images</th><th class=\"rate\">Top-1</th>{}<th>Most often mistaken for</th></tr>\n",
        if five { "<th class=\"rate\">Top-5</th>" } else { "" }
    );
    for class in classes {
        let taken_for = class.taken_for.map_or("–".to_string(), |(other, count)| {
            format!("<bdi>{}</bdi> <span class=\"sub\">{}×</span>", escape(&run.class(other)), thousands(count))
        });
        let _ = writeln!(
            table,
            "<tr><td><bdi>{}</bdi></td><td class=\"number\">{}</td>{}{}<td class=\"name\">{taken_for}</td></tr>",
            escape(&run.class(class.label)),
            thousands(class.top1.of),
            rate(class.top1),
            if five { rate(class.top5) } else { String::new() }
        );
    }
    table + "</table></div>\n"
}

/// Returns a table cell with a percentage and its interval, drawn and in numbers.
fn rate(count: Count) -> String {
    let (low, high) = count.wilson();
    format!(
        r#"<td class="rate"><svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><path d="M0 5H100" stroke="{}"/><rect x="{low:.1}" y="2.5" width="{:.1}" height="5" fill="{blue}" fill-opacity=".35"/><rect x="{:.1}" width="2" height="10" fill="{blue}"/></svg>{} <span class="sub">{low:.0}–{high:.0}</span></td>"#,
        PAGE.grid,
        high - low,
        (count.percent() - 1.0).clamp(0.0, 98.0),
        percent(count.percent(), 1),
        blue = PAGE.series[0]
    )
}

fn confused(run: &Run) -> String {
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
        return String::new();
    }
    let mut body = "<div class=\"scroll\"><table>\n<tr><th>True</th><th>Predicted</th><th class=\"number\">Images</th><th class=\"number\">% of class</th></tr>\n".to_string();
    for ((label, predicted), count) in pairs {
        let of = of_class.get(&label).copied().unwrap_or(count);
        let _ = writeln!(
            body,
            "<tr><td><bdi>{}</bdi></td><td><bdi>{}</bdi></td><td class=\"number\">{}</td><td class=\"number\">{}</td></tr>",
            escape(&run.class(label)),
            escape(&run.class(predicted)),
            thousands(count),
            percent(100.0 * count as f64 / of as f64, 1)
        );
    }
    body + "</table></div>\n"
}

fn mistakes(run: &Run) -> String {
    if run.mistakes.is_empty() {
        return String::new();
    }
    let mut body = "<p>Wrong predictions with the highest probability. In some the label may be wrong.</p>\n<ul class=\"pictures\">\n".to_string();
    for (place, mistake) in run.mistakes.iter().enumerate() {
        let predicted = mistake.row.pred1.map_or("–".to_string(), |predicted| run.class(predicted));
        let probability = mistake.row.p1.filter(|p| p.is_finite()).map(|p| percent(100.0 * p, 1)).unwrap_or_default();
        let _ = writeln!(
            body,
            "<li id=\"mistake-{place}\">{}<span class=\"label\"><b class=\"wrong\"><bdi>{}</bdi></b> {probability}</span><span class=\"label\">labeled <bdi>{}</bdi></span><span class=\"key\" title=\"{key}\">{key}</span></li>",
            picture(mistake),
            escape(&predicted),
            escape(&run.class(mistake.row.label)),
            key = escape(&mistake.row.key)
        );
    }
    body + "</ul>\n"
}

fn picture(mistake: &Mistake) -> String {
    match &mistake.picture {
        Some((bytes, kind)) => {
            format!("<img src=\"data:{kind};base64,{}\" alt=\"\">", BASE64_STANDARD.encode(bytes))
        }
        None => "<span class=\"none\">no picture</span>".to_string(),
    }
}

fn calibration(run: &Run) -> String {
    let Some(calibration) = stats::calibration(&run.predictions) else { return String::new() };
    let (confidence, accuracy) = (calibration.all.mean_confidence(), calibration.all.right.percent());
    let apart = confidence - accuracy;
    let (low, high) = calibration.all.right.wilson();
    let verdict = if (low..=high).contains(&confidence) {
        "Overall, the confidence agrees with the accuracy: it is within its 95\u{202f}% interval.".to_string()
    } else {
        let kind = if apart > 0.0 { "overconfident" } else { "underconfident" };
        format!("Overall, the network is {kind}, by {:.1} percentage points.", apart.abs())
    };
    format!(
        "<div class=\"pair\">\n{}<div>\n<dl class=\"tiles\" style=\"margin-top:0\"><div><dt>Calibration error</dt><dd><div class=\"big\">{}</div><div class=\"sub\">expected (ECE)</div></dd></div>\
         <div><dt>Confidence</dt><dd><div class=\"big\">{}</div><div class=\"sub\">mean probability</div></dd></div>\
         <div><dt>Accuracy</dt><dd><div class=\"big\">{}</div><div class=\"sub\">top-1</div></dd></div></dl>\n\
         <p style=\"margin-top:1rem\">{verdict}</p>\n\
         <p class=\"sub\">On the dashed line, predictions of 80\u{202f}% are correct in 80\u{202f}% of cases. \
         {} bins of equal width; the thin lines are Wilson’s 95\u{202f}% intervals; the dots mark each bin’s mean \
         confidence; the gray bars count its images.</p>\n</div>\n</div>\n",
        figure::reliability(&calibration),
        percent(calibration.ece, 2),
        percent(confidence, 1),
        percent(accuracy, 1),
        stats::BINS
    )
}

fn suspects(run: &Run) -> String {
    let loss = |prediction: &PredictionRow| prediction.loss.filter(|loss| !loss.is_nan());
    let mut suspects: Vec<_> = run.predictions.iter().filter(|prediction| loss(prediction).is_some()).collect();
    suspects.sort_by(|a, b| b.loss.partial_cmp(&a.loss).unwrap_or(std::cmp::Ordering::Equal));
    suspects.truncate(SUSPECTS);
    if suspects.is_empty() {
        return String::new();
    }
    let pictures: HashMap<&str, usize> =
        run.mistakes.iter().enumerate().map(|(place, mistake)| (mistake.row.key.as_str(), place)).collect();
    let mut body = "<p>The images with the highest loss: check whether their labels are correct.</p>\n<div class=\"scroll\"><table>\n<tr><th>Image</th><th>Label</th><th>Predicted</th><th class=\"number\">Loss</th></tr>\n".to_string();
    for suspect in suspects {
        let key = format!("<bdi>{}</bdi>", escape(&suspect.key));
        let key = match pictures.get(suspect.key.as_str()) {
            Some(place) => format!("<a href=\"#mistake-{place}\">{key}</a>"),
            None => key,
        };
        let share = |p: Option<f64>| match p.filter(|p| p.is_finite()) {
            Some(p) => format!(" <span class=\"sub\">{}</span>", percent(100.0 * p, if p < 0.01 { 2 } else { 1 })),
            None => String::new(),
        };
        let _ = writeln!(
            body,
            "<tr><td>{key}</td><td class=\"name\"><bdi>{}</bdi>{}</td><td class=\"name\"><bdi>{}</bdi>{}</td><td class=\"number\">{}</td></tr>",
            escape(&run.class(suspect.label)),
            share(suspect.p_label),
            escape(&suspect.pred1.map_or("–".to_string(), |predicted| run.class(predicted))),
            share(suspect.p1),
            suspect.loss.filter(|loss| loss.is_finite()).map_or("∞".to_string(), |loss| significant(loss, 4))
        );
    }
    body + "</table></div>\n"
}

fn setup(run: &Run) -> String {
    let mut body = String::new();
    let mut details = |title: &str, inside: String| {
        let _ = writeln!(body, "<details><summary>{title}</summary><div>{inside}</div></details>");
    };
    if let Some(recipe) = &run.recipe {
        details("Recipe", format!("<pre>{}</pre>", escape(recipe.trim_end())));
    }
    if let Value::Object(mut card) = run.card.clone() {
        let classes = card.remove("classes");
        let mut shown = facts(&Value::Object(card));
        if let Some(Value::Array(classes)) = classes {
            let names: Vec<String> = (0..classes.len()).map(|index| escape(&run.class(index))).collect();
            let _ = write!(shown, "<h3>{} classes</h3><p>{}</p>", thousands(names.len()), names.join(" · "));
        }
        details("Model card", shown);
    }
    if !run.missing.contains(&RUN) {
        let words: Vec<String> = run.info.command.iter().map(|word| quote(word)).collect();
        let command = format!("<pre>{}</pre><p></p>", escape(&words.join(" ")));
        details("Environment", command + &facts(&run.environment()));
    }
    body
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

fn facts(value: &Value) -> String {
    let mut list = String::from("<dl class=\"facts\">\n");
    for (name, value) in flatten(value) {
        let _ = writeln!(list, "<dt>{}</dt><dd>{}</dd>", escape(&name.replace('_', " ")), escape(&value));
    }
    list + "</dl>\n"
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
