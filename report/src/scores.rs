//! Precision, recall, F1, Cohen's κ and the area under the ROC curve, as scikit-learn defines them, and McNemar's test.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write,
};

use runtime::text::printable;
use serde::Serialize;

use crate::format::{PrecisionRecall, PredictionRow, Scores};

/// Above this number of discordant pairs McNemar's test uses the χ² distribution.
const EXACT_PAIRS: usize = 1000;

impl PrecisionRecall {
    /// From the hits, the images of the class and the predictions of it.
    fn new(hits: usize, images: usize, predicted: usize) -> Self {
        let ratio = |part: usize, of: usize| if of == 0 { 0.0 } else { part as f64 / of as f64 };
        Self { precision: ratio(hits, predicted), recall: ratio(hits, images), f1: ratio(2 * hits, images + predicted) }
    }

    /// The mean, weighted; zeros if all weights are.
    fn mean(parts: impl Iterator<Item = (Self, f64)>) -> Self {
        let (mut sum, mut weights) = (Self::default(), 0.0);
        for (part, weight) in parts {
            sum.precision += part.precision * weight;
            sum.recall += part.recall * weight;
            sum.f1 += part.f1 * weight;
            weights += weight;
        }
        let divided = |value: f64| if weights > 0.0 { value / weights } else { 0.0 };
        Self { precision: divided(sum.precision), recall: divided(sum.recall), f1: divided(sum.f1) }
    }
}

/// The scores of one class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassScores {
    /// The index of the class.
    pub class: usize,
    /// Its precision, recall and F1.
    pub scores: PrecisionRecall,
    /// The number of its images.
    pub support: usize,
}

/// Hits, images and predictions of each class, by its index.
fn counts(predictions: &[PredictionRow]) -> BTreeMap<usize, [usize; 3]> {
    let mut counts: BTreeMap<usize, [usize; 3]> = BTreeMap::new();
    for row in predictions {
        let of_label = counts.entry(row.label).or_default();
        of_label[0] += usize::from(row.is_right());
        of_label[1] += 1;
        if let Some(predicted) = row.pred1 {
            counts.entry(predicted).or_default()[2] += 1;
        }
    }
    counts
}

/// Returns the scores of each class that occurs among labels or predictions, in the order of the classes.
pub fn classes(predictions: &[PredictionRow]) -> Vec<ClassScores> {
    let scores = |(class, [hits, images, predicted]): (usize, [usize; 3])| ClassScores {
        class,
        scores: PrecisionRecall::new(hits, images, predicted),
        support: images,
    };
    counts(predictions).into_iter().map(scores).collect()
}

/// Returns the scores over all classes; `None` without predictions.
pub fn scores(predictions: &[PredictionRow]) -> Option<Scores> {
    let classes = classes(predictions);
    let counts = counts(predictions);
    let [hits, images, predicted] =
        counts.values().fold([0; 3], |sum, counts| std::array::from_fn(|at| sum[at] + counts[at]));
    if images == 0 {
        return None;
    }
    let all = |weight: fn(&ClassScores) -> f64| PrecisionRecall::mean(classes.iter().map(|c| (c.scores, weight(c))));
    let n = images as f64;
    let by_chance: f64 =
        counts.values().map(|[_, images, predicted]| *images as f64 * *predicted as f64 / (n * n)).sum();
    Some(Scores {
        micro: PrecisionRecall::new(hits, images, predicted),
        macro_average: all(|_| 1.0),
        weighted: all(|class| class.support as f64),
        balanced_accuracy: all(|class| f64::from(u8::from(class.support > 0))).recall,
        kappa: (by_chance < 1.0).then(|| (hits as f64 / n - by_chance) / (1.0 - by_chance)),
        auroc: None,
    })
}

/// Returns a table of all classes and their averages, as scikit-learn's `classification_report` prints it.
pub fn classification_report(predictions: &[PredictionRow], names: &[String]) -> String {
    let Some(scores) = scores(predictions) else { return String::new() };
    let classes = classes(predictions);
    let name = |class: usize| names.get(class).map_or_else(|| class.to_string(), |name| printable(name).into_owned());
    let names: Vec<String> = classes.iter().map(|class| name(class.class)).collect();
    let width = names.iter().map(|name| name.chars().count()).chain(["weighted avg".len()]).max().unwrap_or(0);
    let total: usize = classes.iter().map(|class| class.support).sum();
    let mut text = format!("{:>width$}  {:>9} {:>9} {:>9} {:>9}\n\n", "", "precision", "recall", "f1-score", "support");
    let mut row = |name: &str, PrecisionRecall { precision, recall, f1 }: PrecisionRecall, support: usize| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:>width$}  {precision:>9.2} {recall:>9.2} {f1:>9.2} {support:>9}");
    };
    for (class, name) in classes.iter().zip(&names) {
        row(name, class.scores, class.support);
    }
    let accuracy = scores.micro.recall;
    let _ = write!(text, "\n{:>width$}  {:>9} {:>9} {accuracy:>9.2} {total:>9}\n", "accuracy", "", "");
    let mut row = |name: &str, PrecisionRecall { precision, recall, f1 }: PrecisionRecall| {
        let _ = writeln!(text, "{name:>width$}  {precision:>9.2} {recall:>9.2} {f1:>9.2} {total:>9}");
    };
    row("macro avg", scores.macro_average);
    row("weighted avg", scores.weighted);
    text
}

/// Returns the area under the ROC curve: the probability that a positive case scores higher than a negative one, where
/// equal scores count half. `None` unless there are both.
pub fn area_under_roc(cases: &[(f32, bool)]) -> Option<f64> {
    let positives = cases.iter().filter(|(_, is_positive)| *is_positive).count();
    let negatives = cases.len() - positives;
    if positives == 0 || negatives == 0 {
        return None;
    }
    let mut sorted = cases.to_vec();
    sorted.sort_unstable_by(|(a, _), (b, _)| a.total_cmp(b));
    // The sum of the positives' ranks; equal scores share their mean rank.
    let (mut ranks, mut first) = (0.0, 0);
    for equal in sorted.chunk_by(|(a, _), (b, _)| a == b) {
        let mean = first as f64 + (equal.len() as f64 + 1.0) / 2.0;
        ranks += mean * equal.iter().filter(|(_, is_positive)| *is_positive).count() as f64;
        first += equal.len();
    }
    let (positives, negatives) = (positives as f64, negatives as f64);
    Some((ranks - positives * (positives + 1.0) / 2.0) / (positives * negatives))
}

/// McNemar's test: whether two classifiers err equally often on the same images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct McNemar {
    /// The number of images that both have.
    pub images: usize,
    /// The images that both classify correctly.
    pub both_right: usize,
    /// The images that only the first classifies correctly.
    pub only_first: usize,
    /// The images that only the second classifies correctly.
    pub only_second: usize,
    /// The probability of a difference as large as this one or larger if both erred equally often.
    pub p: f64,
    /// Whether it is that of the binomial distribution, not of χ² with continuity correction.
    pub exact: bool,
    /// The images that only one of the two has, which do not count.
    pub unpaired: usize,
}

impl McNemar {
    /// Pairs two lists of predictions by their keys. `None` without common images.
    pub fn new(first: &[PredictionRow], second: &[PredictionRow]) -> Option<Self> {
        let right: HashMap<&str, bool> = second.iter().map(|row| (row.key.as_str(), row.is_right())).collect();
        let mut counts = [[0; 2]; 2];
        for row in first {
            if let Some(&other) = right.get(row.key.as_str()) {
                counts[usize::from(row.is_right())][usize::from(other)] += 1;
            }
        }
        let [[neither, only_second], [only_first, both_right]] = counts;
        let images = neither + only_second + only_first + both_right;
        if images == 0 {
            return None;
        }
        let (p, exact) = mcnemar(only_first, only_second);
        let unpaired = first.len() + second.len() - 2 * images;
        Some(Self { images, both_right, only_first, only_second, p, exact, unpaired })
    }

    /// The difference of the accuracies, second minus first, in percentage points, with its 95 % interval (Wald, for
    /// paired proportions).
    pub fn difference(&self) -> (f64, f64, f64) {
        let n = self.images as f64;
        let (b, c) = (self.only_first as f64, self.only_second as f64);
        let difference = (c - b) / n;
        let half = 1.959_964 * ((b + c) - (c - b).powi(2) / n).max(0.0).sqrt() / n;
        (100.0 * difference, 100.0 * (difference - half), 100.0 * (difference + half))
    }
}

/// Returns the p-value of McNemar's test for the images that only one of two classifiers has right, and whether it is exact.
pub fn mcnemar(only_first: usize, only_second: usize) -> (f64, bool) {
    match only_first + only_second <= EXACT_PAIRS {
        true => (binomial(only_first, only_second), true),
        false => (chi_squared(only_first, only_second), false),
    }
}

/// The two-sided p-value of `b` against `c` heads of a fair coin.
fn binomial(b: usize, c: usize) -> f64 {
    let (n, least) = (b + c, b.min(c));
    let log_factorial = |k: usize| libm::lgamma(k as f64 + 1.0);
    let log_of = |k: usize| log_factorial(n) - log_factorial(k) - log_factorial(n - k);
    let tail: f64 = (0..=least).map(|k| libm::exp(log_of(k) - n as f64 * std::f64::consts::LN_2)).sum();
    (2.0 * tail).min(1.0)
}

/// The p-value of χ² with one degree of freedom and continuity correction.
fn chi_squared(b: usize, c: usize) -> f64 {
    let statistic = (b.abs_diff(c) as f64 - 1.0).max(0.0).powi(2) / (b + c) as f64;
    libm::erfc((statistic / 2.0).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(labels: &[usize], predicted: &[usize]) -> Vec<PredictionRow> {
        let row = |(key, (&label, &pred)): (usize, (&usize, &usize))| {
            PredictionRow::new(key.to_string(), label, [(pred, 1.0)])
        };
        labels.iter().zip(predicted).enumerate().map(row).collect()
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} {b}");
    }

    const LABELS: [usize; 12] = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2];
    const PREDICTED: [usize; 12] = [0, 0, 1, 2, 1, 1, 0, 2, 2, 2, 1, 3];

    const REPORT: &str = concat!(
        "                        precision    recall  f1-score   support\n",
        "\n",
        "                   cat       0.67      0.50      0.57         4\n",
        "                   dog       0.50      0.67      0.57         3\n",
        "a long name of a class       0.75      0.60      0.67         5\n",
        "                     d       0.00      0.00      0.00         0\n",
        "\n",
        "              accuracy                           0.58        12\n",
        "             macro avg       0.48      0.44      0.45        12\n",
        "          weighted avg       0.66      0.58      0.61        12\n",
    );

    /// Expected: precision_recall_fscore_support, balanced_accuracy_score and cohen_kappa_score of scikit-learn.
    #[test]
    fn scores_are_those_of_scikit_learn() {
        let scores = scores(&rows(&LABELS, &PREDICTED)).unwrap();
        let expect = |of: PrecisionRecall, [precision, recall, f1]: [f64; 3]| {
            close(of.precision, precision);
            close(of.recall, recall);
            close(of.f1, f1);
        };
        expect(scores.micro, [7.0 / 12.0; 3]);
        expect(scores.macro_average, [0.479_166_666_667, 0.441_666_666_667, 0.452_380_952_381]);
        expect(scores.weighted, [0.659_722_222_222, 0.583_333_333_333, 0.611_111_111_111]);
        close(scores.balanced_accuracy, 0.588_888_888_889);
        close(scores.kappa.unwrap(), 0.4);
        assert_eq!(super::scores(&[]), None);
        assert_eq!(super::scores(&rows(&[1, 1], &[1, 1])).unwrap().kappa, None);
    }

    #[test]
    fn the_report_is_printed_as_scikit_learn_prints_it() {
        let names: Vec<String> = ["cat", "dog", "a long name of a class", "d"].map(str::to_owned).to_vec();
        let text = classification_report(&rows(&LABELS, &PREDICTED), &names);
        assert_eq!(text, REPORT);
        assert_eq!(classification_report(&[], &names), "");
    }

    /// Expected: roc_auc_score of scikit-learn.
    #[test]
    fn the_area_under_the_curve_counts_equal_scores_half() {
        let cases = |scores: &[f32], positive: &[usize]| -> Vec<(f32, bool)> {
            scores.iter().enumerate().map(|(at, &score)| (score, positive.contains(&at))).collect()
        };
        close(area_under_roc(&cases(&[0.1, 0.4, 0.35, 0.8], &[2, 3])).unwrap(), 0.75);
        close(area_under_roc(&cases(&[0.5, 0.5, 0.5, 0.9, 0.1], &[1, 3])).unwrap(), 5.0 / 6.0);
        assert_eq!(area_under_roc(&cases(&[0.5, 0.6], &[0, 1])), None);
    }

    /// Expected: statsmodels' mcnemar, exact and with continuity correction.
    #[test]
    fn mc_nemar_s_test_is_exact_for_few_pairs() {
        close(binomial(1, 9), 0.021484375);
        close(binomial(5, 5), 1.0);
        close(binomial(0, 0), 1.0);
        close(binomial(0, 6), 0.03125);
        assert!((chi_squared(600, 700) - 0.006_036_981).abs() < 1e-8, "{}", chi_squared(600, 700));
        let first = rows(&[0, 0, 0, 0, 0, 0], &[0, 0, 0, 1, 1, 1]);
        let mut second = rows(&[0, 0, 0, 0, 0, 0, 0], &[0, 1, 0, 0, 0, 1, 0]);
        let test = McNemar::new(&first, &second).unwrap();
        assert_eq!((test.images, test.both_right, test.only_first, test.only_second), (6, 2, 1, 2));
        assert_eq!((test.unpaired, test.exact), (1, true));
        close(test.p, 1.0);
        close(test.difference().0, 100.0 / 6.0);
        second.iter_mut().for_each(|row| row.key.push('x'));
        assert_eq!(McNemar::new(&first, &second), None);
    }
}
