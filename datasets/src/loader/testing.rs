//! Sources and preprocessing that need no files, for tests.

use std::{
    borrow::Cow,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use image::{Rgb, RgbImage};

use super::{Preprocess, SampleContext};
use crate::{
    Class, DecodeError, Decoded, Error, Location, Result, Source,
    meters::{Stage, Stopwatch},
    sampler::hash,
};

/// A source whose sample `i` is the number `i`, eight bytes, and its label `i % 3` or a given one.
pub(crate) struct Counting {
    labels: Vec<u32>,
    classes: Vec<Class>,
    /// Samples that cannot be read.
    pub broken: Vec<usize>,
    /// How many samples were read.
    pub reads: AtomicUsize,
}

impl Counting {
    pub(crate) fn new(len: usize) -> Self {
        Self::with_labels((0..len).map(|index| index as u32 % 3).collect())
    }

    pub(crate) fn with_labels(labels: Vec<u32>) -> Self {
        let count = labels.iter().max().map_or(0, |&label| label + 1);
        let classes = (0..count).map(|id| Class { id: id.to_string(), name: id.to_string() }).collect();
        Self { labels, classes, broken: Vec::new(), reads: AtomicUsize::new(0) }
    }

    pub(crate) fn broken_at(mut self, broken: &[usize]) -> Self {
        self.broken = broken.to_vec();
        self
    }
}

impl Source for Counting {
    fn len(&self) -> usize {
        self.labels.len()
    }
    fn classes(&self) -> &[Class] {
        &self.classes
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.labels.get(index).copied()
    }
    fn key(&self, index: usize) -> Cow<'_, str> {
        format!("sample-{index}").into()
    }
    fn location(&self, index: usize) -> Location {
        Location { container: "counting".into(), member: Some(index.to_string()), offset: Some(8 * index as u64) }
    }
    fn read(&self, index: usize, buffer: &mut Vec<u8>) -> Result<()> {
        self.reads.fetch_add(1, Relaxed);
        if self.broken.contains(&index) {
            let source = std::io::Error::other("this one is broken");
            return Err(Error::Io { path: self.location(index).to_string().into(), source });
        }
        buffer.clear();
        buffer.extend((index as u64).to_le_bytes());
        Ok(())
    }
}

/// Paints the sample's number and a random color; some samples take longer than others.
pub(crate) struct Paint {
    /// Height and width.
    pub size: [usize; 2],
    /// A sample to panic over.
    pub panic_at: Option<u64>,
}

impl Default for Paint {
    fn default() -> Self {
        Self { size: [2, 3], panic_at: None }
    }
}

impl Preprocess for Paint {
    fn output_size(&self) -> [usize; 2] {
        self.size
    }

    fn process(&self, bytes: &[u8], context: SampleContext, watch: &mut Stopwatch) -> Result<Decoded, DecodeError> {
        let number = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        assert_eq!(number, context.index);
        assert_ne!(Some(number), self.panic_at, "boom");
        if number % 5 == 0 {
            std::thread::sleep(Duration::from_micros(300));
        }
        watch.lap(Stage::Decode);
        let random = hash(&[context.seed, context.epoch, context.index]);
        let [height, width] = self.size;
        let paint = |x, y| Rgb([number as u8, random as u8, (10 * y + x) as u8]);
        Ok(RgbImage::from_fn(width as u32, height as u32, paint).into())
    }
}
