//! The page that compares several runs.

use std::collections::BTreeSet;

use maud::{Markup, html};
use serde_json::Value;

use super::{
    chart::{Chart, Series},
    format::MetricRow,
    page::{Page, duration, interval, percent, plural, significant, thousands},
    run::{Run, by_epoch, by_step, flatten},
    scores::McNemar,
    sections::{Outcome, notices, outcome, status},
    stats::Count,
};

/// Returns the page that compares these runs.
pub(crate) fn page(runs: &[Run]) -> String {
    let names = names(runs);
    let title = plural(runs.len(), "run") + " compared";
    let mut page = Page::new(&title, html! { h1 { (title) } (notices(runs)) });
    page.section("results", "Results", Some(results(runs, &names)));
    page.section("paired", "Paired test", paired(runs, &names));
    page.section("curves", "Curves", curves(runs, &names));
    page.section("recipes", "Differences", differences(runs, &names));
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

fn results(runs: &[Run], names: &[String]) -> Markup {
    let none = || "–".to_string();
    let outcomes: Vec<Option<Outcome>> = runs.iter().map(outcome).collect();
    let images = outcomes.iter().flatten().filter_map(|outcome| outcome.counts[0]).map(|count| count.of);
    let images: BTreeSet<usize> = images.collect();
    let five = runs.iter().any(|run| run.class_count() > 5);
    html! {
        div.scroll {
            table {
                tr {
                    th { "Run" }
                    th.rate { "Top-1" }
                    @if five { th.rate { "Top-5" } }
                    th { "Network" }
                    th.number { "Parameters" }
                    th.number { "Best epoch" }
                    th.number { "Images/s" }
                    th.number { "Time" }
                    th { "Status" }
                }
                @for ((run, name), outcome) in runs.iter().zip(names).zip(&outcomes) {
                    @let result = run.info.result.as_ref();
                    "\n" tr {
                        td { bdi { (name) } }
                        td.rate { (accuracy(outcome.as_ref(), 0)) }
                        @if five { td.rate { (accuracy(outcome.as_ref().filter(|_| run.class_count() > 5), 1)) } }
                        td { (run.architecture().unwrap_or_else(none)) }
                        td.number {
                            (Some(run.info.parameters).filter(|&n| n > 0).map_or_else(none, thousands))
                        }
                        td.number {
                            (result.and_then(|result| result.best_epoch).map_or_else(none, |epoch| epoch.to_string()))
                        }
                        td.number {
                            (result.map(|result| result.images_per_second).filter(|&rate| rate > 0.0).map_or_else(none, |rate| significant(rate, 4)))
                        }
                        td.number { (result.map_or_else(none, |result| duration(result.seconds))) }
                        td { (status(run)) }
                    }
                }
            }
        }
        p.sub {
            "Intervals are Wilson’s, of 95\u{202f}%. They reflect the sampling of the validation images, not the "
            "variation between seeds."
        }
        @if images.len() > 1 {
            p {
                "These runs were validated on different numbers of images, so their accuracies may not be comparable."
            }
        }
    }
}

/// Returns top-1 (index 0) or top-5 (index 1) with its interval.
fn accuracy(outcome: Option<&Outcome>, index: usize) -> Markup {
    html! {
        @match outcome.and_then(|outcome| Some((outcome.top[index]?, outcome.counts[index]))) {
            Some((top, count)) => {
                (percent(top, 2)) br; span.sub { (count.map(Count::wilson).map(interval).unwrap_or_default()) }
            }
            None => { "–" }
        }
    }
}

/// Returns McNemar's test of each run against the first, on the images that both have predictions of.
fn paired(runs: &[Run], names: &[String]) -> Option<Markup> {
    let (first, others) = runs.split_first()?;
    let test = |run: &Run| McNemar::new(&first.predictions, &run.predictions);
    let tests: Vec<(&String, McNemar)> =
        others.iter().zip(&names[1..]).filter_map(|(run, name)| Some((name, test(run)?))).collect();
    if tests.is_empty() {
        return None;
    }
    Some(html! {
        p {
            "McNemar’s test compares each run with " bdi { (names[0]) } " on the images that both predict: whether they "
            "err equally often. Only the images that one of them alone classifies correctly tell them apart."
        }
        div.scroll {
            table {
                tr {
                    th { "Run" }
                    th.number { "Images" }
                    th.number { "Right in the first alone" }
                    th.number { "Right in this run alone" }
                    th.rate { "Difference" }
                    th.number { "p" }
                }
                @for (name, test) in &tests {
                    @let (difference, low, high) = test.difference();
                    "\n" tr {
                        td { bdi { (name) } }
                        td.number { (thousands(test.images)) }
                        td.number { (thousands(test.only_first)) }
                        td.number { (thousands(test.only_second)) }
                        td.rate { (format_args!("{difference:+.2}")) " " span.sub { (format_args!("{low:+.2} to {high:+.2}")) } }
                        td.number { (significant(test.p, 3)) }
                    }
                }
            }
        }
        p.sub {
            "Differences of the accuracies are in percentage points, with 95\u{202f}% intervals for paired proportions. p is "
            "two-sided, of the binomial distribution up to 1000 discordant images, else of χ² with continuity correction."
        }
    })
}

fn curves(runs: &[Run], names: &[String]) -> Option<Markup> {
    let chart = |title: &str, split: &str, steps: bool, y_label: &str, y: fn(&MetricRow) -> Option<f64>| {
        let x: fn(&MetricRow) -> Option<f64> = if steps { by_step } else { by_epoch };
        let lines = runs.iter().zip(names).enumerate();
        let series = lines.map(|(index, (run, name))| Series::new(name, run.curve(split, x, y)).colored(index));
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
        // Top-5 is always 100 % with up to five classes.
        match runs.iter().any(|run| run.class_count() > 5) {
            true => chart("Top-5 on the validation images", "valid", false, "%", |metric| metric.top5),
            false => Chart::default(),
        },
        chart("Loss on the validation images", "valid", false, "", |metric| metric.loss).log_beyond(40.0),
        chart("Loss on the training images", "train", false, "", |metric| metric.loss).log_beyond(40.0),
        chart("Learning rate", "train_step", true, "", |metric| metric.learning_rate),
        chart("Throughput", "train_step", true, "images/s", |metric| metric.images_per_second),
    ];
    let charts: Vec<&Chart> = charts.iter().filter(|chart| !chart.series.is_empty()).collect();
    (!charts.is_empty()).then(|| html! { div.pair { @for chart in charts { (chart.to_figure()) } } })
}

/// Returns the recipe keys and facts in which the runs differ.
fn differences(runs: &[Run], names: &[String]) -> Option<Markup> {
    if runs.len() == 1 {
        return None;
    }
    let mut problems = Vec::new();
    let mut recipes = Vec::new();
    for (run, name) in runs.iter().zip(names) {
        let recipe = match run.recipe.as_deref().map(toml::from_str::<Value>) {
            Some(Ok(recipe)) => recipe,
            Some(Err(error)) => {
                let cause = format!("recipe.toml of {name} is not TOML: {}", error.message());
                problems.push(format!("{cause}. Repair it, then compare again."));
                Value::Null
            }
            None => {
                problems.push(format!("{name} has no recipe.toml."));
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
    Some(html! {
        @for problem in problems { p { (problem) } }
        @match differing("Recipe", &recipes, names) {
            Some(table) => { (table) }
            None => { p { "The recipes are the same." } }
        }
        @if let Some(table) = differing("Data and environment", &facts, names) { (table) }
    })
}

/// Returns a table of the keys whose values differ between runs, if there are any.
fn differing(title: &str, runs: &[Vec<(String, String)>], names: &[String]) -> Option<Markup> {
    let mut keys: Vec<&str> = Vec::new();
    for (key, _) in runs.iter().flatten() {
        if !keys.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    let value = |run: &'_ [(String, String)], key: &str| -> Option<String> {
        run.iter().find(|leaf| leaf.0 == key).map(|leaf| leaf.1.clone())
    };
    let rows = keys.into_iter().map(|key| (key, runs.iter().map(|run| value(run, key)).collect()));
    let rows: Vec<(&str, Vec<Option<String>>)> =
        rows.filter(|(_, values): &(&str, Vec<_>)| values.iter().any(|value| *value != values[0])).collect();
    (!rows.is_empty()).then(|| {
        html! {
            div.scroll {
                table.differs {
                    tr { th { (title) } @for name in names { th { bdi { (name) } } } }
                    @for (key, values) in rows {
                        "\n" tr {
                            td { code { (key) } }
                            @for value in values { td { (value.unwrap_or_else(|| "–".to_string())) } }
                        }
                    }
                }
            }
        }
    })
}
