//! The page that compares several runs.

use std::{collections::BTreeSet, fmt::Write};

use serde_json::Value;

use super::{
    chart::{Chart, Series},
    format::MetricRow,
    page::{Page, duration, escape, interval, percent, plural, significant, thousands},
    run::{Run, by_epoch, by_step, flatten},
    sections::{notices, outcome, status},
    stats::Count,
};

/// Returns the page that compares these runs.
pub(crate) fn page(runs: &[Run]) -> String {
    let names = names(runs);
    let title = plural(runs.len(), "run") + " compared";
    let mut page = Page::new(&title, format!("<h1>{title}</h1>\n{}", notices(runs)));
    page.section("results", "Results", &results(runs, &names));
    page.section("curves", "Curves", &curves(runs, &names));
    page.section("recipes", "What differs", &differences(runs, &names));
    page.finish()
}

/// Returns the runs' names; their folders' if a name occurs twice, with numbers if that does too.
fn names(runs: &[Run]) -> Vec<String> {
    let unique = |names: &[String]| names.iter().collect::<BTreeSet<_>>().len() == names.len();
    let names: Vec<String> = runs.iter().map(Run::name).collect();
    if unique(&names) {
        return names;
    }
    let folders: Vec<String> = runs.iter().map(Run::folder_name).collect();
    if unique(&folders) {
        return folders;
    }
    folders.iter().enumerate().map(|(index, folder)| format!("{}: {folder}", index + 1)).collect()
}

fn results(runs: &[Run], names: &[String]) -> String {
    let mut body = "<div class=\"scroll\"><table>\n<tr><th>Run</th><th class=\"rate\">Top-1</th><th class=\"rate\">Top-5</th><th>Network</th><th class=\"number\">Parameters</th><th class=\"number\">Best epoch</th><th class=\"number\">Images/s</th><th class=\"number\">Time</th><th>State</th></tr>\n".to_string();
    let mut measured = BTreeSet::new();
    for (run, name) in runs.iter().zip(names) {
        let none = || "–".to_string();
        let outcome = outcome(run);
        let result = run.info.result.as_ref();
        measured.extend(outcome.as_ref().and_then(|outcome| outcome.counts[0]).map(|count| count.of));
        let top = |place: usize| {
            let Some((top, count)) =
                outcome.as_ref().and_then(|outcome| Some((outcome.top[place]?, outcome.counts[place])))
            else {
                return none();
            };
            let interval = count.map(Count::wilson).map(interval).unwrap_or_default();
            format!("{}<br><span class=\"sub\">{interval}</span>", percent(top, 2))
        };
        let _ = writeln!(
            body,
            "<tr><td><bdi>{}</bdi></td><td class=\"rate\">{}</td><td class=\"rate\">{}</td><td>{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td>{}</td></tr>",
            escape(name),
            top(0),
            top(1),
            run.architecture().map_or_else(none, |name| escape(&name)),
            Some(run.info.parameters).filter(|&n| n > 0).map_or_else(none, thousands),
            result.and_then(|result| result.best_epoch).map_or_else(none, |epoch| epoch.to_string()),
            result.map(|result| result.images_per_second).map_or_else(none, |rate| significant(rate, 4)),
            result.map(|result| result.seconds).map_or_else(none, duration),
            status(run)
        );
    }
    body += "</table></div>\n<p class=\"sub\">Intervals are Wilson’s, of 95\u{202f}%. They reflect the sampling of the validation images, not the variation between seeds.</p>\n";
    if measured.len() > 1 {
        body += "<p>These runs were validated on different numbers of images, so their accuracies may not be comparable.</p>\n";
    }
    body
}

fn curves(runs: &[Run], names: &[String]) -> String {
    let chart = |title: &str, split: &str, steps: bool, y_label: &str, y: fn(&MetricRow) -> Option<f64>| {
        let x: fn(&MetricRow) -> Option<f64> = if steps { by_step } else { by_epoch };
        let lines = runs.iter().zip(names).enumerate();
        let series = lines.map(|(place, (run, name))| Series::new(name, run.curve(split, x, y)).colored(place));
        let series: Vec<Series> = series.filter(|line| line.points.iter().any(|point| point.1.is_finite())).collect();
        Chart {
            title: title.to_string(),
            x_label: if steps { "step" } else { "epoch" }.to_string(),
            y_label: y_label.to_string(),
            series,
            ..Chart::default()
        }
    };
    let charts = [
        chart("Top-1 on the validation images", "valid", false, "%", |metric| metric.top1),
        chart("Top-5 on the validation images", "valid", false, "%", |metric| metric.top5),
        chart("Loss on the validation images", "valid", false, "", |metric| metric.loss).log_beyond(40.0),
        chart("Loss on the training images", "train", false, "", |metric| metric.loss).log_beyond(40.0),
        chart("Learning rate", "train_step", true, "", |metric| metric.learning_rate),
        chart("Throughput", "train_step", true, "images/s", |metric| metric.images_per_second),
    ];
    let figures: String = charts.iter().filter(|chart| !chart.series.is_empty()).map(Chart::to_figure).collect();
    if figures.is_empty() { figures } else { format!("<div class=\"pair\">\n{figures}</div>\n") }
}

/// Returns the recipe keys and facts in which the runs differ.
fn differences(runs: &[Run], names: &[String]) -> String {
    let mut unread = String::new();
    let mut recipes = Vec::new();
    for (run, name) in runs.iter().zip(names) {
        let recipe = match run.recipe.as_deref().map(toml::from_str::<Value>) {
            Some(Ok(recipe)) => recipe,
            Some(Err(error)) => {
                let cause = format!("recipe.toml of {name} is not TOML: {}", error.message());
                let _ = writeln!(unread, "<p>{}. Repair it, then compare again.</p>", escape(&cause));
                Value::Null
            }
            None => {
                let _ = writeln!(unread, "<p>{} has no recipe.toml.</p>", escape(name));
                Value::Null
            }
        };
        recipes.push(flatten(&recipe));
    }
    let facts: Vec<Vec<(String, String)>> = runs
        .iter()
        .map(|run| {
            let mut environment = run.environment();
            // Two runs always differ in these.
            if let Value::Object(facts) = &mut environment {
                facts.retain(|key, _| !["name", "status", "started", "finished"].contains(&key.as_str()));
            }
            flatten(&environment)
        })
        .collect();
    if runs.len() == 1 {
        return String::new();
    }
    let recipe = differing("Recipe", &recipes, names);
    let recipe = if recipe.is_empty() { "<p>The recipes are the same.</p>\n".to_string() } else { recipe };
    unread + &recipe + &differing("Data and environment", &facts, names)
}

/// Returns a table of the keys whose values differ between runs; empty if there are none.
fn differing(title: &str, runs: &[Vec<(String, String)>], names: &[String]) -> String {
    let mut keys: Vec<&String> = Vec::new();
    for key in runs.iter().flatten().map(|leaf| &leaf.0) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let value = |run: &'_ Vec<(String, String)>, key: &str| -> Option<String> {
        run.iter().find(|leaf| leaf.0 == key).map(|leaf| leaf.1.clone())
    };
    let mut body = String::new();
    for key in keys {
        let values: Vec<Option<String>> = runs.iter().map(|run| value(run, key)).collect();
        if values.iter().all(|value| *value == values[0]) {
            continue;
        }
        let _ = write!(body, "<tr><td><code>{}</code></td>", escape(key));
        for value in values {
            let _ = write!(body, "<td>{}</td>", value.map_or("–".to_string(), |value| escape(&value)));
        }
        body.push_str("</tr>\n");
    }
    if body.is_empty() {
        return body;
    }
    let heads: String = names.iter().map(|name| format!("<th><bdi>{}</bdi></th>", escape(name))).collect();
    format!("<div class=\"scroll\"><table class=\"differs\">\n<tr><th>{title}</th>{heads}</tr>\n{body}</table></div>\n")
}
