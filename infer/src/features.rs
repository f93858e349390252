//! Feature vectors: the input of a network's last linear layer, for search and other tools.

use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::Tensor,
};
use image::RgbImage;
use models::{ImageClassifier, Network};
use runtime::{
    files::{open_regular, write_atomic, write_atomic_bytes},
    text::{escape_cell, unescape_cell},
};

use crate::{Input, Model, stream};

impl Model {
    /// Returns the feature vector of each image, `[n, features]` in rows.
    ///
    /// # Errors
    /// Fails if the device fails.
    pub fn features(&self, images: &[&RgbImage]) -> Result<Vec<Vec<f32>>> {
        let input = self.preprocess().normalize(&self.preprocess().batch(images), self.device());
        let features = self.network().forward_pre_logits(self.typed(input));
        let [_, length] = features.dims();
        let values = features.try_into_data().context("running the network failed")?;
        let values: Vec<f32> = values.convert::<f32>().try_into_vec().context("the features are not floats")?;
        Ok(values.chunks_exact(length).map(<[f32]>::to_vec).collect())
    }
}

/// Calls `consume` with each input and its vector or error, in order.
///
/// # Errors
/// Fails if the device fails or `consume` returns an error.
pub fn each<'a>(
    model: &Model,
    inputs: &'a [Input],
    batch_size: usize,
    mut consume: impl FnMut(&'a Input, Result<Vec<f32>>) -> Result<()>,
) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    stream::batches(inputs, model.preprocess(), batch_size, threads, |batch| {
        let readable: Vec<&RgbImage> = batch.iter().filter_map(|(_, image)| image.as_ref().ok()).collect();
        let vectors = if readable.is_empty() { vec![] } else { model.features(&readable)? };
        let mut vectors = vectors.into_iter();
        for &(input, ref image) in batch {
            let vector = match image {
                Ok(_) => Ok(vectors.next().context("the network returned fewer results than images")?),
                Err(error) => Err(anyhow::anyhow!(runtime::exit::chain(error))),
            };
            consume(input, vector)?;
        }
        Ok(())
    })
}

/// Writes vectors as NumPy's `.npy`, float32 `[images, features]`, as they arrive, and beside it `NAME.csv` with the
/// path of each row. Both files are complete or absent.
///
/// # Errors
/// Fails if a file cannot be written, or `fill` fails.
pub fn write_npy(path: &Path, fill: impl FnOnce(&mut Rows<'_>) -> Result<()>) -> Result<usize> {
    let names = write_atomic(path, |file| {
        file.write_all(&header(0, 0))?; // Its place; the counts are known at the end.
        let mut rows = Rows { file, names: Vec::new(), length: 0 };
        fill(&mut rows)?;
        let (names, length) = (rows.names, rows.length);
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&header(names.len(), length))?;
        Ok(names)
    })?;
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(["path"])?;
    names.iter().try_for_each(|name| table.write_record([&*escape_cell(name)]))?;
    write_atomic_bytes(&names_of(path), &table.into_inner()?)?;
    Ok(names.len())
}

/// The rows of a growing `.npy`.
#[derive(Debug)]
pub struct Rows<'a> {
    file: &'a mut BufWriter<File>,
    names: Vec<String>,
    length: usize,
}

impl Rows<'_> {
    /// Appends a row.
    ///
    /// # Errors
    /// Fails if the row cannot be written, or if its length differs from the previous rows'.
    pub fn push(&mut self, name: String, vector: &[f32]) -> Result<()> {
        ensure!(self.names.is_empty() || vector.len() == self.length, "vectors of different lengths");
        self.length = vector.len();
        vector.iter().try_for_each(|value| self.file.write_all(&value.to_le_bytes()))?;
        self.names.push(name);
        Ok(())
    }
}

/// The longest header of a `.npy` that is read.
const HEADER_BYTES: u64 = 4096;

/// Returns the header in NumPy's format 1.0: always 128 bytes, so that it can be written last.
fn header(rows: usize, columns: usize) -> Vec<u8> {
    let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    let mut header = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    header.extend(text.bytes());
    header.resize(127, b' ');
    header.push(b'\n');
    header
}

fn names_of(path: &Path) -> PathBuf {
    path.with_extension("csv")
}

/// Reads a `.npy` that [`write_npy`] wrote, row by row, with each row's path.
///
/// # Errors
/// Fails if a file cannot be read or has another format.
pub fn read_npy(path: &Path, mut consume: impl FnMut(String, Vec<f32>) -> Result<()>) -> Result<()> {
    let shown = path.display();
    let cannot_read = || format!("cannot read {shown}");
    let file = open_regular(path).with_context(cannot_read)?;
    let length = file.metadata().with_context(cannot_read)?.len();
    let mut file = BufReader::new(file);
    let mut start = [0; 10];
    let mut text = String::new();
    let read = file.read_exact(&mut start).and_then(|()| file.by_ref().take(HEADER_BYTES).read_line(&mut text));
    let shape = text.split_once("'shape': (").and_then(|(_, rest)| rest.split_once(')')).map(|(shape, _)| shape);
    let sizes: Vec<usize> =
        shape.map(|s| s.split(',').filter_map(|n| n.trim().parse().ok()).collect()).unwrap_or_default();
    let is_ours = read.is_ok() && start.starts_with(b"\x93NUMPY\x01") && text.contains("'<f4'");
    let (true, &[rows, columns], false) = (is_ours, sizes.as_slice(), text.contains("'fortran_order': True")) else {
        bail!("{shown} is not a table of float32 vectors as written by `infer explain --features`");
    };
    // Before a row is allocated: the file must be able to hold one.
    let row = columns.checked_mul(4).filter(|&row| row as u64 <= length);
    let row =
        row.with_context(|| format!("{shown} declares vectors of {columns} values, more than its {length} bytes"))?;
    let table = names_of(path);
    let names = open_regular(&table).with_context(|| format!("{shown} has no list of paths, {}", table.display()))?;
    let mut names = csv::Reader::from_reader(names);
    let mut names = names.records();
    let mut bytes = vec![0; row];
    for row in 0..rows {
        let name = names.next().with_context(|| format!("{} ends at row {row} of {rows}", table.display()))??;
        file.read_exact(&mut bytes).with_context(|| format!("{shown} ends at row {row} of {rows}"))?;
        let vector = bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]));
        consume(unescape_cell(name.get(0).unwrap_or_default()).to_string(), vector.collect())?;
    }
    Ok(())
}

/// Returns the cosine similarity of two vectors.
pub fn similarity(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f64::MIN_POSITIVE)
}

/// A running list of nearest neighbors; memory does not grow with the number of candidates.
#[derive(Debug, Clone)]
pub struct Nearest {
    wanted: usize,
    /// The most similar first.
    found: Vec<(f64, String)>,
}

impl Nearest {
    /// Creates a list that keeps `wanted` neighbors.
    pub fn new(wanted: usize) -> Self {
        Self { wanted, found: Vec::new() }
    }

    /// Considers a candidate; of equal candidates the first is kept.
    pub fn see(&mut self, similarity: f64, name: &str) {
        let place = self.found.partition_point(|(other, _)| *other >= similarity);
        if place < self.wanted {
            self.found.insert(place, (similarity, name.to_string()));
            self.found.truncate(self.wanted);
        }
    }

    /// Returns the neighbors, the most similar first.
    pub fn into_found(self) -> Vec<(f64, String)> {
        self.found
    }
}

/// Returns the weights of the first convolution, `[out, 3, kh, kw]`.
///
/// # Errors
/// Fails if the device fails.
pub fn first_filters(network: &Network) -> Result<(Vec<f32>, [usize; 3])> {
    #[derive(Default)]
    struct First(Option<(Vec<f32>, [usize; 3])>);
    impl ModuleVisitor for First {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.0.is_none()
                && let [filters, 3, height, width] = param.lazy_shape().to_vec()[..]
                && let Ok(data) = param.val().try_into_data()
            {
                self.0 = Some((data.iter::<f32>().collect(), [filters, height, width]));
            }
        }
    }
    let mut first = First::default();
    network.visit(&mut first);
    first.0.context("the network has no convolution with three input channels")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_read_back_with_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vectors.npy");
        let rows = write_npy(&path, |rows| {
            rows.push("a, b.jpg".into(), &[1.0, 2.0, 3.0])?;
            rows.push("=c.jpg".into(), &[-1.0, 0.5, 0.0])
        });
        assert_eq!(rows.unwrap(), 2);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 128 + 2 * 3 * 4);
        assert!(String::from_utf8_lossy(&bytes[10..128]).contains("'shape': (2, 3)"));
        let mut seen = Vec::new();
        read_npy(&path, |name, vector| {
            seen.push((name, vector));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, [("a, b.jpg".into(), vec![1.0, 2.0, 3.0]), ("=c.jpg".into(), vec![-1.0, 0.5, 0.0])]);

        std::fs::write(&path, &bytes[..140]).unwrap();
        let error = format!("{:#}", read_npy(&path, |_, _| Ok(())).unwrap_err());
        assert!(error.contains("ends at row 1 of 2"), "{error}");
        let huge = bytes[..128].iter().map(|&byte| char::from(byte)).collect::<String>();
        let huge = huge.replace("(2, 3)", "(2, 4000000000000000000)");
        std::fs::write(&path, huge.chars().map(|c| c as u8).collect::<Vec<_>>()).unwrap();
        let error = format!("{:#}", read_npy(&path, |_, _| Ok(())).unwrap_err());
        assert!(error.contains("declares vectors of 4000000000000000000 values"), "{error}");
        std::fs::write(&path, "no table").unwrap();
        assert!(read_npy(&path, |_, _| Ok(())).unwrap_err().to_string().contains("not a table of float32"));
        assert!(write_npy(&path, |_| bail!("no")).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"no table", "what was there stays");
    }

    #[test]
    fn the_nearest_are_kept_in_order() {
        let mut nearest = Nearest::new(2);
        for (similarity, name) in [(0.1, "a"), (0.9, "b"), (0.5, "c"), (0.9, "d")] {
            nearest.see(similarity, name);
        }
        assert_eq!(nearest.into_found(), [(0.9, "b".into()), (0.9, "d".into())]);
        assert!((similarity(&[1.0, 0.0], &[1.0, 1.0]) - 0.5f64.sqrt()).abs() < 1e-9);
        assert_eq!(similarity(&[0.0], &[1.0]), 0.0);
    }
}
