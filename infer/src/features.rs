//! Feature vectors: the input of a network's last linear layer, for search and other tools.

use std::{
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::Tensor,
};
use image::RgbImage;
use models::Network;
use runtime::{
    files::{AtomicFile, open_regular, write_atomic_bytes},
    text::{escape_cell, unescape_cell},
};

use crate::{Error, Input, Model, Result, stream};

impl Model {
    /// Returns the feature vector of each image, `[n, features]` in rows.
    ///
    /// # Errors
    /// Fails if the device fails.
    pub fn features(&self, images: &[&RgbImage]) -> Result<Vec<Vec<f32>>> {
        let input = self.preprocess().normalize(&self.preprocess().batch(images), self.device());
        let features = self.forward_pre_logits(input)?;
        let [_, length] = features.dims();
        let values = features.try_into_vec_as::<f32>()?;
        Ok(values.chunks_exact(length).map(<[f32]>::to_vec).collect())
    }
}

/// Calls `consume` with each input and its vector or error, in order.
///
/// # Errors
/// Fails if the device fails or `consume` returns an error, which is returned as it is.
pub fn each<'a, E: From<Error>>(
    model: &Model,
    inputs: &'a [Input],
    batch_size: usize,
    mut consume: impl FnMut(&'a Input, Result<Vec<f32>>) -> Result<(), E>,
) -> Result<(), E> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    stream::batches(inputs, model.preprocess(), batch_size, threads, |batch| {
        let readable: Vec<&RgbImage> = batch.iter().filter_map(|(_, image)| image.as_ref().ok()).collect();
        let vectors = if readable.is_empty() { vec![] } else { model.features(&readable)? };
        let mut vectors = vectors.into_iter();
        for (input, image) in batch {
            let vector = match image {
                Ok(_) => Ok(vectors.next().ok_or(Error::Bug("the network returned fewer results than images"))?),
                Err(error) => Err(error),
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
/// Fails if a file cannot be written, or if `fill` returns an error, which is returned as it is.
pub fn write_npy<E: From<Error>>(path: &Path, fill: impl FnOnce(&mut Rows<'_>) -> Result<(), E>) -> Result<usize, E> {
    let mut file = AtomicFile::create(path).map_err(Error::from)?;
    let failed = |source| Error::Runtime(runtime::Error::Write { action: "write", path: path.into(), source });
    file.write_all(&header(0, 0)).map_err(failed)?; // Its place; the counts are known at the end.
    let mut rows = Rows { file: &mut file, path, names: Vec::new(), length: 0 };
    fill(&mut rows)?;
    let Rows { names, length, .. } = rows;
    let header = header(names.len(), length);
    file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&header)).map_err(failed)?;
    file.commit().map_err(Error::from)?;
    let path = names_of(path);
    let table = csv_of(&names).map_err(|error| Error::Format(format!("cannot write {}: {error}", path.display())))?;
    write_atomic_bytes(&path, &table).map_err(Error::from)?;
    Ok(names.len())
}

/// Returns the table of the rows' paths.
fn csv_of(names: &[String]) -> io::Result<Vec<u8>> {
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(["path"])?;
    names.iter().try_for_each(|name| table.write_record([&*escape_cell(name)]))?;
    table.into_inner().map_err(|error| error.into_error())
}

/// The rows of a growing `.npy`.
#[derive(Debug)]
pub struct Rows<'a> {
    file: &'a mut AtomicFile,
    path: &'a Path,
    names: Vec<String>,
    length: usize,
}

impl Rows<'_> {
    /// Appends a row.
    ///
    /// # Errors
    /// Fails if the row cannot be written, or if its length differs from the previous rows'.
    pub fn push(&mut self, name: String, vector: &[f32]) -> Result<()> {
        if !self.names.is_empty() && vector.len() != self.length {
            return Err(Error::Format("vectors of different lengths".into()));
        }
        self.length = vector.len();
        let failed = |source| runtime::Error::Write { action: "write", path: self.path.into(), source };
        vector.iter().try_for_each(|value| self.file.write_all(&value.to_le_bytes())).map_err(failed)?;
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
/// Fails if a file cannot be read or has another format, or if `consume` returns an error, which is returned as it is.
pub fn read_npy<E: From<Error>>(
    path: &Path,
    mut consume: impl FnMut(String, Vec<f32>) -> Result<(), E>,
) -> Result<(), E> {
    let shown = path.display();
    let read_error = |source| Error::Read { path: path.into(), source };
    let file = open_regular(path).map_err(read_error)?;
    let length = file.metadata().map_err(read_error)?.len();
    let mut file = BufReader::new(file);
    let mut start = [0; 10];
    let mut text = String::new();
    let read = file.read_exact(&mut start).and_then(|()| file.by_ref().take(HEADER_BYTES).read_line(&mut text));
    let shape = text.split_once("'shape': (").and_then(|(_, rest)| rest.split_once(')')).map(|(shape, _)| shape);
    let sizes: Vec<usize> =
        shape.map(|s| s.split(',').filter_map(|n| n.trim().parse().ok()).collect()).unwrap_or_default();
    let is_ours = read.is_ok() && start.starts_with(b"\x93NUMPY\x01") && text.contains("'<f4'");
    let (true, &[rows, columns], false) = (is_ours, sizes.as_slice(), text.contains("'fortran_order': True")) else {
        let cause = format!("{shown} is not a table of float32 vectors as written by `infer explain --features`");
        return Err(Error::Format(cause).into());
    };
    // Before a row is allocated: the file must be able to hold one.
    let row = columns.checked_mul(4).filter(|&row| row as u64 <= length);
    let too_long = || format!("{shown} declares vectors of {columns} values, more than its {length} bytes");
    let row = row.ok_or_else(|| Error::Format(too_long()))?;
    let table = names_of(path);
    let no_names = |error| format!("{shown} has no list of paths, {}: {error}", table.display());
    let names = open_regular(&table).map_err(|error| Error::Format(no_names(error)))?;
    let mut names = csv::Reader::from_reader(names);
    let mut names = names.records();
    let mut bytes = vec![0; row];
    for row in 0..rows {
        let ends = |path: &Path| Error::Format(format!("{} ends at row {row} of {rows}", path.display()));
        let damaged = |error| Error::Format(format!("{} is damaged: {error}", table.display()));
        let name = names.next().ok_or_else(|| ends(&table))?.map_err(damaged)?;
        file.read_exact(&mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ends(path),
            _ => read_error(error),
        })?;
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
    let none = || Error::Unsupported("the network has no convolution with three input channels".into());
    first.0.ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_read_back_with_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vectors.npy");
        let rows = write_npy(&path, |rows| -> Result<()> {
            rows.push("a, b.jpg".into(), &[1.0, 2.0, 3.0])?;
            rows.push("=c.jpg".into(), &[-1.0, 0.5, 0.0])
        });
        assert_eq!(rows.unwrap(), 2);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 128 + 2 * 3 * 4);
        assert!(String::from_utf8_lossy(&bytes[10..128]).contains("'shape': (2, 3)"));
        let mut seen = Vec::new();
        read_npy(&path, |name, vector| -> Result<()> {
            seen.push((name, vector));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, [("a, b.jpg".into(), vec![1.0, 2.0, 3.0]), ("=c.jpg".into(), vec![-1.0, 0.5, 0.0])]);

        std::fs::write(&path, &bytes[..140]).unwrap();
        let error = read_npy::<Error>(&path, |_, _| Ok(())).unwrap_err().to_string();
        assert!(error.contains("ends at row 1 of 2"), "{error}");
        let huge = bytes[..128].iter().map(|&byte| char::from(byte)).collect::<String>();
        let huge = huge.replace("(2, 3)", "(2, 4000000000000000000)");
        std::fs::write(&path, huge.chars().map(|c| c as u8).collect::<Vec<_>>()).unwrap();
        let error = read_npy::<Error>(&path, |_, _| Ok(())).unwrap_err().to_string();
        assert!(error.contains("declares vectors of 4000000000000000000 values"), "{error}");
        std::fs::write(&path, "no table").unwrap();
        assert!(read_npy::<Error>(&path, |_, _| Ok(())).unwrap_err().to_string().contains("not a table of float32"));
        assert!(write_npy(&path, |_| Err(Error::NotFinite)).is_err());
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
