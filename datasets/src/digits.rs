//! The embedded data set: 1797 handwritten digits of 8 × 8 pixels, for examples, tests and a first run without a
//! download.

use std::{
    borrow::Cow,
    io::Read,
    sync::{Arc, OnceLock},
};

use flate2::read::GzDecoder;
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

use crate::{Class, Error, Location, Result, Source};

/// One image: 8 rows of 8 gray values in `0..=16`, 16 being full ink.
pub type Digit = [u8; 64];

/// Every fifth sample of a class is held out.
const HELD_OUT_EVERY: usize = 5;

/// The UCI "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998), its test part of 1797 images,
/// as in scikit-learn's `load_digits`.
///
/// As a [`Source`] each sample is a gray PNG of 8 × 8 pixels; a value `v` of `0..=16` becomes `v · 255 / 16`, rounded.
///
/// **The split.** [`Digits::test`] holds every fifth sample of each class in file order (the 5th, 10th, 15th, … of
/// its class): 355 samples. [`Digits::train`] holds the other 1442. The same writers appear on both sides, so the
/// held-out accuracy is that of known writers.
#[derive(Debug, Clone)]
pub struct Digits {
    rows: Arc<[u16]>,
    data: &'static Table,
}

#[derive(Debug)]
struct Table {
    images: Vec<Digit>,
    labels: Vec<u8>,
    classes: Vec<Class>,
}

impl Digits {
    /// All 1797 samples in file order.
    pub fn all() -> Self {
        Self::select(|_| true)
    }

    /// The 1442 samples of the training part.
    pub fn train() -> Self {
        Self::select(|nth| nth % HELD_OUT_EVERY != HELD_OUT_EVERY - 1)
    }

    /// The 355 samples of the held-out part.
    pub fn test() -> Self {
        Self::select(|nth| nth % HELD_OUT_EVERY == HELD_OUT_EVERY - 1)
    }

    /// Returns the samples whose position within their class satisfies `keep`.
    fn select(keep: impl Fn(usize) -> bool) -> Self {
        let data = table();
        let mut seen = [0; 10];
        let rows = data.labels.iter().zip(0u16..).filter_map(|(&label, row)| {
            let nth = seen[usize::from(label)];
            seen[usize::from(label)] += 1;
            keep(nth).then_some(row)
        });
        Self { rows: rows.collect(), data }
    }

    /// The pixels of sample `index`, row by row, in `0..=16`.
    ///
    /// # Panics
    /// Panics if `index` is not below [`len`](Source::len).
    pub fn pixels(&self, index: usize) -> &'static Digit {
        &self.data.images[self.row(index)]
    }

    fn row(&self, index: usize) -> usize {
        usize::from(self.rows[index])
    }
}

/// The table, unpacked on first use.
fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut text = String::new();
        GzDecoder::new(include_bytes!("../data/digits.csv.gz").as_slice())
            .read_to_string(&mut text)
            .expect("the embedded file is whole");
        let (mut images, mut labels) = (Vec::with_capacity(1797), Vec::with_capacity(1797));
        for line in text.lines() {
            let mut image = [0; 64];
            let mut values = line.split(',').map(|value| value.parse::<u8>().expect("the embedded file holds numbers"));
            image.iter_mut().for_each(|pixel| *pixel = values.next().expect("64 pixels a line"));
            labels.push(values.next().expect("a label ends each line"));
            images.push(image);
        }
        let classes = (0..10).map(|digit| Class { id: digit.to_string(), name: digit.to_string() }).collect();
        Table { images, labels, classes }
    })
}

impl Source for Digits {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn classes(&self) -> &[Class] {
        &self.data.classes
    }

    fn label(&self, index: usize) -> Option<u32> {
        Some(u32::from(self.data.labels[self.row(index)]))
    }

    fn key(&self, index: usize) -> Cow<'_, str> {
        format!("digit-{:04}", self.row(index)).into()
    }

    fn location(&self, index: usize) -> Location {
        Location {
            container: "the embedded digits".into(),
            member: Some(format!("line {}", self.row(index) + 1)),
            offset: None,
        }
    }

    fn read(&self, index: usize, buffer: &mut Vec<u8>) -> Result<()> {
        buffer.clear();
        let gray = self.pixels(index).map(|value| ((u16::from(value) * 255 + 8) / 16) as u8);
        PngEncoder::new(buffer)
            .write_image(&gray, 8, 8, ExtendedColorType::L8)
            .map_err(|cause| Error::Io { path: "the embedded digits".into(), source: std::io::Error::other(cause) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn per_class(digits: &Digits) -> [usize; 10] {
        let mut counts = [0; 10];
        (0..digits.len()).for_each(|i| counts[digits.label(i).unwrap() as usize] += 1);
        counts
    }

    #[test]
    fn the_parts_have_the_documented_sizes() {
        assert_eq!((Digits::all().len(), Digits::train().len(), Digits::test().len()), (1797, 1442, 355));
        assert_eq!(per_class(&Digits::all()), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
        assert_eq!(per_class(&Digits::test()), [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]);
    }

    #[test]
    fn the_parts_are_disjoint_and_complete() {
        let keys = |d: &Digits| (0..d.len()).map(|i| d.key(i).into_owned()).collect::<BTreeSet<_>>();
        let (train, test, all) = (keys(&Digits::train()), keys(&Digits::test()), keys(&Digits::all()));
        assert!(train.is_disjoint(&test));
        assert_eq!(train.union(&test).cloned().collect::<BTreeSet<_>>(), all);
        assert_eq!(all.len(), 1797);
    }

    #[test]
    fn the_first_image_is_the_known_zero() {
        let digits = Digits::all();
        assert_eq!(digits.label(0), Some(0));
        assert_eq!(digits.pixels(0)[..16], [0, 0, 5, 13, 9, 1, 0, 0, 0, 0, 13, 15, 10, 15, 5, 0]);
        assert!((0..1797).all(|i| digits.pixels(i).iter().all(|&v| v <= 16)));
    }

    #[test]
    fn a_sample_reads_as_a_png_of_its_pixels() {
        let digits = Digits::test();
        let mut png = Vec::from(*b"old content");
        digits.read(3, &mut png).unwrap();
        let image = image::load_from_memory_with_format(&png, image::ImageFormat::Png).unwrap();
        assert_eq!(image.color(), image::ColorType::L8);
        let image = image.into_luma8();
        assert_eq!(image.dimensions(), (8, 8));
        for (gray, &value) in image.as_raw().iter().zip(digits.pixels(3)) {
            assert_eq!(*gray, (f64::from(value) * 255.0 / 16.0).round() as u8);
        }
    }
}
