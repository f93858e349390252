//! Statistics of predictions: accuracies with intervals, confusions, calibration.

use std::collections::BTreeMap;

use crate::format::PredictionRow;

/// The number of calibration bins.
pub const BINS: usize = 15;

/// A number of hits out of a total.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// The number of hits.
    pub hits: usize,
    /// The total.
    pub of: usize,
}

impl Count {
    /// Adds one case.
    pub fn add(&mut self, hit: bool) {
        self.hits += usize::from(hit);
        self.of += 1;
    }

    /// Returns the count that a percentage of `of` cases corresponds to.
    pub fn from_percent(percent: f64, of: usize) -> Self {
        Self { hits: ((percent / 100.0 * of as f64).round().max(0.0) as usize).min(of), of }
    }

    /// Returns the percentage of hits.
    pub fn percent(self) -> f64 {
        100.0 * self.hits as f64 / self.of.max(1) as f64
    }

    /// Returns the 95 % Wilson interval in percent. Unlike the normal interval it is valid near 0 and 100 %.
    pub fn wilson(self) -> (f64, f64) {
        if self.of == 0 {
            return (0.0, 100.0);
        }
        const Z: f64 = 1.959_963_984_540_054;
        let (n, p) = (self.of as f64, self.hits as f64 / self.of as f64);
        let scale = 1.0 + Z * Z / n;
        let center = (p + Z * Z / (2.0 * n)) / scale;
        let half = Z / scale * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        (100.0 * (center - half).max(0.0), 100.0 * (center + half).min(1.0))
    }
}

/// Returns top-1 and top-5 counts.
pub fn accuracy(predictions: &[PredictionRow]) -> (Count, Count) {
    let mut counts = <(Count, Count)>::default();
    for prediction in predictions {
        counts.0.add(prediction.is_right());
        counts.1.add(prediction.is_in_top5());
    }
    counts
}

/// One class of the validation images.
#[derive(Debug, Clone, Default)]
pub struct Class {
    /// The index of the class.
    pub label: usize,
    /// The top-1 count.
    pub top1: Count,
    /// The top-5 count.
    pub top5: Count,
    /// The class that its images are most often mistaken for, and how often.
    pub taken_for: Option<(usize, usize)>,
}

/// Returns the classes that have images, the worst first.
pub fn classes(predictions: &[PredictionRow]) -> Vec<Class> {
    let mut classes: BTreeMap<usize, Class> = BTreeMap::new();
    for prediction in predictions {
        let label = prediction.label;
        let class = classes.entry(label).or_insert_with(|| Class { label, ..Class::default() });
        class.top1.add(prediction.is_right());
        class.top5.add(prediction.is_in_top5());
    }
    for ((label, predicted), count) in confusion(predictions) {
        if let Some(class) = classes.get_mut(&label).filter(|_| label != predicted)
            && class.taken_for.is_none_or(|(_, most)| count > most)
        {
            class.taken_for = Some((predicted, count));
        }
    }
    let mut classes: Vec<Class> = classes.into_values().collect();
    let key = |class: &Class| (class.top1.percent(), class.top5.percent());
    classes.sort_by(|a, b| key(a).0.total_cmp(&key(b).0).then(key(a).1.total_cmp(&key(b).1)));
    classes
}

/// Returns how many images of a class (first) were predicted as a class (second).
pub fn confusion(predictions: &[PredictionRow]) -> BTreeMap<(usize, usize), usize> {
    let mut confusion = BTreeMap::new();
    for prediction in predictions {
        if let Some(predicted) = prediction.pred1 {
            *confusion.entry((prediction.label, predicted)).or_default() += 1;
        }
    }
    confusion
}

/// One bin of the reliability diagram.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bin {
    /// The number of correct predictions in the bin.
    pub right: Count,
    /// The sum of their probabilities.
    confidence: f64,
}

impl Bin {
    /// Returns the mean probability in the bin, in percent.
    pub fn mean_confidence(&self) -> f64 {
        100.0 * self.confidence / self.right.of.max(1) as f64
    }
}

/// The calibration of the first prediction's probability.
pub struct Calibration {
    /// Bins of equal width over the probabilities from 0 to 1.
    pub bins: [Bin; BINS],
    /// All predictions in one bin.
    pub all: Bin,
    /// The expected calibration error, in percentage points: over the bins, the mean distance of accuracy from
    /// confidence, weighted by their sizes.
    pub ece: f64,
}

/// Returns the calibration of all predictions with a probability; `None` if there are none.
pub fn calibration(predictions: &[PredictionRow]) -> Option<Calibration> {
    let mut bins = [Bin::default(); BINS];
    let mut all = Bin::default();
    for prediction in predictions {
        let Some(p) = prediction.p1.filter(|p| (0.0..=1.0).contains(p)) else { continue };
        let place = ((p * BINS as f64) as usize).min(BINS - 1);
        for bin in [&mut bins[place], &mut all] {
            bin.right.add(prediction.is_right());
            bin.confidence += p;
        }
    }
    let weigh = |bin: &Bin| bin.right.of as f64 * (bin.right.percent() - bin.mean_confidence()).abs();
    let ece = bins.iter().map(weigh).sum::<f64>() / all.right.of as f64;
    (all.right.of > 0).then_some(Calibration { bins, all, ece })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prediction(label: usize, preds: &[usize], p1: f64) -> PredictionRow {
        let pred = |place: usize| preds.get(place).copied();
        PredictionRow {
            label,
            pred1: pred(0),
            pred2: pred(1),
            pred3: pred(2),
            p1: Some(p1),
            ..PredictionRow::default()
        }
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-3
    }

    #[test]
    fn wilson_interval_equals_published_values() {
        // Newcombe 1998, Statistics in Medicine 17, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
        for (hits, of, low, high) in
            [(81, 263, 25.53, 36.62), (15, 148, 6.24, 16.05), (0, 20, 0.0, 16.11), (1, 29, 0.61, 17.18)]
        {
            let (lower, upper) = Count { hits, of }.wilson();
            assert!((lower - low).abs() < 0.006 && (upper - high).abs() < 0.006, "{hits} of {of}: {lower} {upper}");
        }
        assert_eq!(Count::default().wilson(), (0.0, 100.0));
    }

    #[test]
    fn percentages_and_counts_agree() {
        assert_eq!(Count::from_percent(98.87, 355), Count { hits: 351, of: 355 });
        assert_eq!(Count::from_percent(f64::NAN, 355), Count { hits: 0, of: 355 });
        assert!(close(Count { hits: 1, of: 3 }.percent(), 33.3333));
        assert_eq!(Count::default().percent(), 0.0);
    }

    #[test]
    fn classes_have_accuracy_and_most_frequent_mistake() {
        let predictions = [
            prediction(0, &[0, 1], 0.9),
            prediction(0, &[1, 0], 0.6),
            prediction(0, &[1, 2], 0.6),
            prediction(0, &[2, 1], 0.5),
            prediction(1, &[1, 0], 0.8),
        ];
        assert_eq!(accuracy(&predictions), (Count { hits: 2, of: 5 }, Count { hits: 3, of: 5 }));
        let classes = classes(&predictions);
        assert_eq!(classes.iter().map(|class| class.label).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(classes[0].top1, Count { hits: 1, of: 4 });
        assert_eq!(classes[0].top5, Count { hits: 2, of: 4 });
        assert_eq!(classes[0].taken_for, Some((1, 2)));
        assert_eq!(classes[1].taken_for, None);
        assert_eq!(confusion(&predictions)[&(0, 1)], 2);
    }

    #[test]
    fn the_calibration_error_is_that_computed_by_hand() {
        // Two bins: at 0.9 three of four right (75 %), at 0.55 none of one. ECE = (4 × 15 + 1 × 55) / 5 = 23.
        let mut predictions = vec![prediction(0, &[0], 0.9); 3];
        predictions.push(prediction(0, &[1], 0.9));
        predictions.push(prediction(0, &[1], 0.55));
        let calibration = calibration(&predictions).unwrap();
        assert!(close(calibration.ece, 23.0), "{}", calibration.ece);
        assert_eq!(calibration.bins[13].right, Count { hits: 3, of: 4 });
        assert_eq!(calibration.bins[8].right, Count { hits: 0, of: 1 });
        assert!(close(calibration.all.mean_confidence(), 83.0));
        assert!(close(calibration.all.right.percent(), 60.0));
    }

    #[test]
    fn probability_one_is_in_the_last_bin_and_invalid_ones_in_none() {
        let predictions = [prediction(0, &[0], 1.0), prediction(0, &[0], f64::NAN), prediction(0, &[0], 1.5)];
        let calibration = calibration(&predictions).unwrap();
        assert_eq!((calibration.bins[14].right.of, calibration.all.right.of), (1, 1));
        assert!(super::calibration(&predictions[1..]).is_none());
    }
}
