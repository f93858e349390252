//! Parquet tables as the Hugging Face hub publishes image sets: a column `image` (or `img`) with `bytes` and, perhaps,
//! `path`, and a column `label` of numbers or names. Columns of other names are given, or guessed and noted.
//!
//! The labels and paths of all rows are read when a table is opened, and kept like an archive's index. A sample's bytes
//! are read from its row group: at first from the pages that hold the row; a block of rows that is requested again soon,
//! as for samples in order, is decoded whole and cached, up to [`Table::CACHE_BYTES`] of them. A block is a row group, or
//! a part of one that is longer than a block.
//!
//! Classes are those of the table's own `huggingface` metadata, else as for [WebDataset shards](super::webdataset).

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    io::{self, BufReader, Read},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use parquet::{
    basic::{ConvertedType, Type as PhysicalType},
    column::reader::ColumnReader,
    data_type::ByteArray,
    errors::ParquetError,
    file::{
        reader::{ChunkReader, FileReader, Length},
        serialized_reader::SerializedFileReader,
    },
};

use super::{
    Class, Location, ReadAt, Source, check_index, index,
    names::{Labels, Names},
    options::TableOptions,
    packed::sample_size,
    webdataset::{Format, Shards},
};
use crate::{Error, Result, imagenet};

/// Tables of Parquet as shards.
pub(super) const PARQUET: Format = Format {
    layout: "parquet",
    index: |file, columns| guarded(file, || index(file, columns)),
    build: |tables, classes, labels, columns| Ok(Arc::new(Table::new(tables, classes, labels, columns)?)),
};

/// Names of columns of images and labels, the most usual ones first.
const IMAGES: [&str; 5] = ["image", "img", "picture", "photo", "jpg"];
const LABELS: [&str; 10] =
    ["label", "labels", "fine_label", "class", "category", "target", "class_label", "cls", "species", "breed"];

/// How many blocks back a second request still counts as soon.
const RECENT: usize = 64;

/// A file as the `parquet` crate reads it.
struct Chunks(Arc<dyn ReadAt>);

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.0.len()
    }
}

impl ChunkReader for Chunks {
    type T = BufReader<Cursor>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(BufReader::new(Cursor { file: self.0.clone(), position: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        // A damaged table may request more than there is: nothing is allocated for that.
        let left = self.0.len().saturating_sub(start);
        if length as u64 > left {
            return Err(ParquetError::EOF(format!("{length} bytes wanted at {start}, {left} are left")));
        }
        let mut bytes = vec![0; length];
        self.0.read_exact_at(&mut bytes, start)?;
        Ok(bytes.into())
    }
}

struct Cursor {
    file: Arc<dyn ReadAt>,
    position: u64,
}

impl Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.file.len().saturating_sub(self.position);
        let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.file.read_exact_at(&mut buffer[..count], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// One file: its metadata and which columns matter.
struct Part {
    file: Arc<dyn ReadAt>,
    reader: SerializedFileReader<Chunks>,
    bytes: usize,
    path: Option<usize>,
    label: Option<usize>,
    label_name: Option<String>,
    split: Option<usize>,
    /// What was guessed of the columns.
    guess: Option<String>,
    /// The first row of each row group, and the number of all.
    starts: Vec<u64>,
}

impl Part {
    fn open(file: Arc<dyn ReadAt>, columns: &TableOptions) -> Result<Self> {
        let failed = |error| corrupt(&file, None, error);
        let reader = SerializedFileReader::new(Chunks(file.clone())).map_err(failed)?;
        let schema = reader.metadata().file_metadata().schema_descr();
        let paths: Vec<String> = schema.columns().iter().map(|column| column.path().string()).collect();
        let at = |path: &str| paths.iter().position(|known| known == path);
        let refuse = |cause: String| Err(Error::layout(file.name(), cause));
        let holds_bytes = |at: usize| schema.column(at).physical_type() == PhysicalType::BYTE_ARRAY;
        let is_text = |at: usize| schema.column(at).converted_type() == ConvertedType::UTF8;
        // As the hub has them, or bytes alone.
        let images_of = |name: &str| {
            let of_group = at(&format!("{name}.bytes")).filter(|&at| holds_bytes(at));
            of_group.or_else(|| at(name).filter(|&at| holds_bytes(at) && !is_text(at)))
        };
        let listed = || paths.join(", ");
        let (image, is_guess) = match &columns.image_column {
            Some(name) if images_of(name).is_some() => (name.clone(), false),
            Some(name) => {
                let why = if at(name).is_some() { "holds no encoded images" } else { "is not there" };
                return refuse(format!("the column {name} {why}; its columns are {}", listed()));
            }
            None => {
                let tops: Vec<&str> = paths.iter().map(|path| path.strip_suffix(".bytes").unwrap_or(path)).collect();
                let groups: Vec<&str> =
                    tops.iter().zip(&paths).filter(|(top, path)| **top != path.as_str()).map(|(top, _)| *top).collect();
                let usual = IMAGES.iter().find(|name| images_of(name).is_some()).copied();
                let only = || match &groups[..] {
                    [one] if images_of(one).is_some() => Some(*one),
                    _ => None,
                };
                match usual.or_else(only) {
                    Some(name) => (name.to_owned(), !IMAGES[..2].contains(&name)),
                    None => {
                        let cause =
                            "has no column of encoded images that can be guessed (image.bytes); its columns are";
                        return refuse(format!("{cause} {}; name it (image_column)", listed()));
                    }
                }
            }
        };
        let Some(bytes) = images_of(&image) else { return refuse(format!("has no column {image}")) };
        let path = at(&format!("{image}.path"));
        let (label, label_is_guess) = match &columns.label_column {
            Some(name) => match at(name) {
                Some(at) => (Some(at), false),
                None => return refuse(format!("has no column {name}; its columns are {}", listed())),
            },
            None => {
                let usual = LABELS.iter().find_map(|name| at(name));
                (usual, usual.is_some_and(|at| paths[at] != LABELS[0]))
            }
        };
        let split = match &columns.split_column {
            Some(name) => match at(name) {
                Some(at) => Some(at),
                None => return refuse(format!("has no column {name}; its columns are {}", listed())),
            },
            None => None,
        };
        let guess = (is_guess || label_is_guess).then(|| {
            let labels = label.map_or_else(String::new, |at| format!(", labels from `{}`", paths[at]));
            format!("{}: images from the column `{image}`{labels}", file.name())
        });
        let label_name = label.map(|at| paths[at].clone());
        let mut starts = vec![0_u64];
        for group in reader.metadata().row_groups() {
            let rows = u64::try_from(group.num_rows()).unwrap_or_default();
            starts.push(starts[starts.len() - 1] + rows);
        }
        Ok(Self { file, reader, bytes, path, label, label_name, split, guess, starts })
    }

    fn column(&self, group: usize, column: usize) -> Result<ColumnReader> {
        let failed = |error| corrupt(&self.file, None, error);
        self.reader.get_row_group(group).and_then(|group| group.get_column_reader(column)).map_err(failed)
    }

    fn rows(&self, group: usize) -> usize {
        (self.starts[group + 1] - self.starts[group]) as usize
    }

    /// A column of byte strings in one row group from a row on; `None` for a null.
    fn texts(&self, group: usize, column: usize, from: usize, count: usize) -> Result<Vec<Option<ByteArray>>> {
        let failed = |error| corrupt(&self.file, Some(self.starts[group] + from as u64), error);
        let ColumnReader::ByteArrayColumnReader(mut reader) = self.column(group, column)? else {
            return Err(Error::layout(self.file.name(), format!("column {column} holds no byte strings")));
        };
        reader.skip_records(from).map_err(failed)?;
        let (mut values, mut levels, mut read) = (Vec::new(), Vec::new(), 0);
        while read < count {
            let (rows, ..) = reader.read_records(count - read, Some(&mut levels), None, &mut values).map_err(failed)?;
            if rows == 0 {
                return Err(failed(ParquetError::EOF(format!("{count} rows wanted, {read} are there"))));
            }
            read += rows;
        }
        let most = self.reader.metadata().file_metadata().schema_descr().column(column).max_def_level();
        spread(values, &levels, most, count).ok_or_else(|| failed(ParquetError::General("rows do not add up".into())))
    }

    /// A column of whole numbers in one row group.
    fn numbers(&self, group: usize, column: usize) -> Result<Vec<Option<i64>>> {
        let failed = |error| corrupt(&self.file, Some(self.starts[group]), error);
        let count = self.rows(group);
        let (mut values, mut levels, mut read) = (Vec::new(), Vec::new(), 0);
        let mut reader = self.column(group, column)?;
        while read < count {
            let left = count - read;
            let rows = match &mut reader {
                ColumnReader::Int64ColumnReader(reader) => {
                    reader.read_records(left, Some(&mut levels), None, &mut values)
                }
                ColumnReader::Int32ColumnReader(reader) => {
                    let mut narrow = Vec::new();
                    let rows = reader.read_records(left, Some(&mut levels), None, &mut narrow);
                    values.extend(narrow.into_iter().map(i64::from));
                    rows
                }
                _ => {
                    return Err(Error::layout(
                        self.file.name(),
                        format!("column {column} holds neither whole numbers nor names"),
                    ));
                }
            };
            let (rows, ..) = rows.map_err(failed)?;
            if rows == 0 {
                return Err(failed(ParquetError::EOF(format!("{count} rows wanted, {read} are there"))));
            }
            read += rows;
        }
        let most = self.reader.metadata().file_metadata().schema_descr().column(column).max_def_level();
        spread(values, &levels, most, count).ok_or_else(|| failed(ParquetError::General("rows do not add up".into())))
    }

    /// The classes that the `datasets` library noted in the file.
    fn classes(&self) -> Option<Vec<Class>> {
        let notes = self.reader.metadata().file_metadata().key_value_metadata()?;
        let json = notes.iter().find(|note| note.key == "huggingface")?.value.as_ref()?;
        let json: serde_json::Value = serde_json::from_str(json).ok()?;
        let names = json.pointer("/info/features")?.get(self.label_name.as_ref()?)?.get("names")?.as_array()?;
        let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect::<Option<_>>()?;
        // ImageNet's are the hub's names, all synonyms of each; its wnids are better identifiers.
        let agrees = |(name, class): (&&str, &Class)| name.split(',').next() == Some(class.name.as_str());
        let agreeing = names.iter().zip(imagenet::classes()).filter(|pair| agrees(*pair)).count();
        if names.len() == imagenet::CLASSES && agreeing > imagenet::CLASSES / 2 {
            return Some(imagenet::classes().to_vec());
        }
        Some(names.into_iter().map(imagenet::named_class).collect())
    }
}

/// Expands values by their definition levels, with nulls in between; `None` if they do not match.
fn spread<T>(values: Vec<T>, levels: &[i16], most: i16, count: usize) -> Option<Vec<Option<T>>> {
    let mut values = values.into_iter();
    let spread: Vec<_> = if most == 0 {
        values.by_ref().map(Some).collect()
    } else {
        levels
            .iter()
            .map(|&level| if level == most { values.next().map(Some) } else { Some(None) })
            .collect::<Option<_>>()?
    };
    (spread.len() == count && values.next().is_none()).then_some(spread)
}

fn corrupt(file: &Arc<dyn ReadAt>, row: Option<u64>, error: ParquetError) -> Error {
    let member = row.map(|row| format!("row {row}"));
    let location = Location { container: file.name().to_owned(), member, offset: None };
    Error::Corrupt { location, cause: format!("cannot be read as Parquet: {error}") }
}

/// Runs `work`, and makes a panic an error: the `parquet` crate asserts some of what a sound file would have.
fn guarded<T>(file: &Arc<dyn ReadAt>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(corrupt(file, None, ParquetError::General("its metadata contradicts itself: damaged".to_owned())))
    })
}

/// Adds the classes that the first table notes.
pub(super) fn with_classes(mut shards: Shards, columns: &TableOptions) -> Result<Shards> {
    if let (None, Some(first)) = (&shards.classes, shards.files.first()) {
        shards.classes = guarded(first, || Ok(Part::open(first.clone(), columns)?.classes()))?;
    }
    Ok(shards)
}

/// Returns the cells of the column of splits, file after file.
pub(super) fn splits(files: &[Arc<dyn ReadAt>], columns: &TableOptions) -> Result<Vec<String>> {
    let of_file = |file: &Arc<dyn ReadAt>| {
        let part = Part::open(file.clone(), columns)?;
        let Some(column) = part.split else { return Ok(Vec::new()) };
        let kind = part.reader.metadata().file_metadata().schema_descr().column(column).physical_type();
        let mut cells = Vec::new();
        for group in 0..part.starts.len() - 1 {
            if kind == PhysicalType::BYTE_ARRAY {
                let texts = part.texts(group, column, 0, part.rows(group))?;
                let text = |text: Option<ByteArray>| text.and_then(|text| text.as_utf8().ok().map(str::to_owned));
                cells.extend(texts.into_iter().map(|cell| text(cell).unwrap_or_default()));
            } else {
                let numbers = part.numbers(group, column)?.into_iter();
                cells.extend(numbers.map(|number| number.map_or_else(String::new, |number| number.to_string())));
            }
        }
        Ok(cells)
    };
    let parts = files.iter().map(|file| guarded(file, || of_file(file))).collect::<Result<Vec<_>>>()?;
    Ok(parts.into_iter().flatten().collect())
}

/// Reads the labels and paths of a file. Offsets are row numbers.
fn index(file: &Arc<dyn ReadAt>, columns: &TableOptions) -> Result<index::Table> {
    let part = Part::open(file.clone(), columns)?;
    let name = file.name().rsplit(['/', '\\']).next().unwrap_or_default();
    let base = format!("{}/", name.strip_suffix(".parquet").unwrap_or(name));
    let rows = part.starts[part.starts.len() - 1];
    if rows > file.len() {
        return Err(Error::layout(file.name(), format!("declares {rows} rows, more than it has bytes")));
    }
    let mut table = index::Table { notes: part.guess.iter().cloned().collect(), ..index::Table::default() };
    let (mut paths, mut labels, mut names): (Vec<String>, Vec<Option<u32>>, Vec<String>) = Default::default();
    let mut numbers: HashMap<String, u32> = HashMap::new();
    for group in 0..part.starts.len() - 1 {
        if let Some(column) = part.path {
            let texts = part.texts(group, column, 0, part.rows(group))?;
            let text = |text: Option<ByteArray>| text.and_then(|text| text.as_utf8().ok().map(str::to_owned));
            paths.extend(texts.into_iter().map(|path| text(path).unwrap_or_default()));
        }
        let Some(column) = part.label else { continue };
        let kind = part.reader.metadata().file_metadata().schema_descr().column(column).physical_type();
        if kind == PhysicalType::BYTE_ARRAY {
            for name in part.texts(group, column, 0, part.rows(group))? {
                let Some(name) = name else {
                    labels.push(None);
                    continue;
                };
                let name = name.as_utf8().map_err(|error| corrupt(file, None, error))?;
                let number = match numbers.get(name) {
                    Some(&number) => number,
                    None => {
                        let number = names.len() as u32;
                        names.push(name.to_owned());
                        numbers.insert(name.to_owned(), number);
                        number
                    }
                };
                labels.push(Some(number));
            }
        } else {
            // The hub writes -1 where a test split has no labels.
            labels.extend(
                part.numbers(group, column)?.into_iter().map(|label| label.and_then(|label| u32::try_from(label).ok())),
            );
        }
    }
    if labels.iter().any(Option::is_some) {
        let missing = |row| Error::layout(file.name(), format!("row {row} has no label while others have"));
        let all = labels.into_iter().enumerate().map(|(row, label)| label.ok_or_else(|| missing(row)));
        table.labels = all.collect::<Result<_>>()?;
        table.label_names = names;
    }
    // The columns have shown that the rows are there.
    table.offsets = (0..rows).collect();
    table.sizes = vec![0; rows as usize];
    let distinct: HashSet<&String> = paths.iter().filter(|path| !path.is_empty()).collect();
    if distinct.len() as u64 != rows {
        paths = (0..rows).map(|row| row.to_string()).collect();
    }
    table.names.push_group(&base, &paths)?;
    Ok(table)
}

/// The rows of one or more Parquet files.
pub struct Table {
    parts: Vec<Part>,
    classes: Vec<Class>,
    names: Names,
    labels: Labels,
    /// The first sample of each file.
    starts: Vec<usize>,
    cache: Mutex<Cache>,
    /// The longest block and the most bytes of blocks that are kept.
    block_bytes: usize,
    cache_bytes: usize,
}

/// A file, a row group, and the number of a block in it.
type Block = (usize, usize, usize);

/// The rows of a decoded block.
type Rows = Arc<Vec<Option<ByteArray>>>;

/// Blocks, those used last at the back.
#[derive(Default)]
struct Cache {
    blocks: VecDeque<(Block, Rows, usize)>,
    bytes: usize,
    recent: VecDeque<Block>,
    /// Blocks that a thread decodes while others wait for them.
    in_progress: HashMap<Block, Arc<Mutex<()>>>,
}

impl Cache {
    fn get(&mut self, block: Block) -> Option<Rows> {
        let at = self.blocks.iter().position(|(kept, ..)| *kept == block)?;
        let found = self.blocks.remove(at)?;
        let rows = found.1.clone();
        self.blocks.push_back(found);
        Some(rows)
    }

    /// Notes a request; whether the block was requested before.
    fn is_requested_again(&mut self, block: Block) -> bool {
        let again = self.recent.contains(&block);
        if !again {
            self.recent.push_back(block);
            if self.recent.len() > RECENT {
                self.recent.pop_front();
            }
        }
        again
    }

    fn insert(&mut self, block: Block, rows: Rows, most: usize) {
        let size = rows.iter().flatten().map(ByteArray::len).sum();
        self.bytes += size;
        self.blocks.push_back((block, rows, size));
        while self.bytes > most
            && let Some((.., freed)) = self.blocks.pop_front()
        {
            self.bytes -= freed;
        }
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files: Vec<_> = self.parts.iter().map(|part| part.file.name()).collect();
        f.debug_struct("Table").field("files", &files).field("rows", &self.names.len()).finish_non_exhaustive()
    }
}

impl Table {
    /// The most bytes of decoded rows that are kept.
    pub const CACHE_BYTES: usize = 256 << 20;

    /// The size of a block: several fit into the cache, so that a thread that is ahead frees none that others read.
    const BLOCK_BYTES: usize = Self::CACHE_BYTES / 4;

    fn new(
        tables: Vec<(Arc<dyn ReadAt>, index::Table)>,
        classes: Vec<Class>,
        labels: Labels,
        columns: &TableOptions,
    ) -> Result<Self> {
        let (mut parts, mut names, mut starts) = (Vec::new(), Names::default(), Vec::new());
        for (file, table) in tables {
            starts.push(names.len());
            names.append(&table.names)?;
            parts.push(guarded(&file, || Part::open(file.clone(), columns))?);
        }
        names.shrink_to_fit();
        let (block_bytes, cache_bytes) = (Self::BLOCK_BYTES, Self::CACHE_BYTES);
        Ok(Self { parts, classes, names, labels, starts, cache: Mutex::default(), block_bytes, cache_bytes })
    }

    /// The file, row group and row in it of a sample.
    fn locate(&self, index: usize) -> (usize, usize, usize) {
        let part = self.starts.partition_point(|&start| start <= index) - 1;
        let row = (index - self.starts[part]) as u64;
        let starts = &self.parts[part].starts;
        let group = starts.partition_point(|&start| start <= row) - 1;
        (part, group, (row - starts[group]) as usize)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        // A panic elsewhere leaves the cache as sound as it was.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of a row, by way of the cache.
    fn row(&self, (part, group, row): (usize, usize, usize)) -> Result<Option<ByteArray>> {
        let source = &self.parts[part];
        let rows_per_block = self.rows_per_block(source, group);
        let (number, at) = (row / rows_per_block, row % rows_per_block);
        let block = (part, group, number);
        let in_progress = {
            let mut cache = self.cache();
            if let Some(rows) = cache.get(block) {
                return Ok(rows.get(at).cloned().flatten());
            }
            cache.is_requested_again(block).then(|| cache.in_progress.entry(block).or_default().clone())
        };
        let Some(in_progress) = in_progress else {
            return Ok(source.texts(group, source.bytes, row, 1)?.pop().flatten());
        };
        let _one_thread = in_progress.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rows) = self.cache().get(block) {
            return Ok(rows.get(at).cloned().flatten());
        }
        let first = number * rows_per_block;
        let count = rows_per_block.min(source.rows(group) - first);
        let decoded = source.texts(group, source.bytes, first, count);
        let mut cache = self.cache();
        cache.in_progress.remove(&block);
        // The values share their pages' memory, which is more than the block's if it is a part of them.
        let is_part = count < source.rows(group);
        let own = |value: ByteArray| if is_part { value.data().into() } else { value };
        let rows: Rows = Arc::new(decoded?.into_iter().map(|value| value.map(own)).collect());
        let value = rows.get(at).cloned().flatten();
        cache.insert(block, rows, self.cache_bytes);
        Ok(value)
    }

    /// The rows of each block of a row group, but for the last: all, if they make no more than a block.
    fn rows_per_block(&self, source: &Part, group: usize) -> usize {
        let size = source.reader.metadata().row_group(group).column(source.bytes).uncompressed_size();
        let blocks = usize::try_from(size).unwrap_or(usize::MAX).div_ceil(self.block_bytes).max(1);
        source.rows(group).div_ceil(blocks).max(1)
    }
}

impl Source for Table {
    fn len(&self) -> usize {
        self.names.len()
    }
    fn classes(&self) -> &[Class] {
        &self.classes
    }
    fn label(&self, index: usize) -> Option<u32> {
        self.labels.get(&self.names, index)
    }
    fn key(&self, index: usize) -> Cow<'_, str> {
        Cow::Owned(self.names.get(index))
    }
    fn location(&self, index: usize) -> Location {
        let (part, group, row) = self.locate(index);
        let part = &self.parts[part];
        let member = format!("row {} ({})", part.starts[group] + row as u64, self.names.get(index));
        Location { container: part.file.name().to_owned(), member: Some(member), offset: None }
    }
    fn read(&self, index: usize, buffer: &mut Vec<u8>) -> Result<()> {
        check_index(index, self.len())?;
        let failed = |cause: String| Error::Corrupt { location: self.location(index), cause };
        let position = self.locate(index);
        let bytes = guarded(&self.parts[position.0].file, || self.row(position))?
            .ok_or_else(|| failed("has no image bytes".to_owned()))?;
        sample_size(bytes.len() as u64).map_err(failed)?;
        buffer.clear();
        buffer.extend_from_slice(bytes.data());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::Path,
        sync::atomic::{AtomicU64, Ordering},
    };

    use parquet::{
        basic::Compression,
        data_type::{ByteArrayType, Int64Type},
        file::{metadata::KeyValue, properties::WriterProperties, writer::SerializedFileWriter},
        schema::parser::parse_message_type,
    };

    use super::{
        super::{LocalFile, OpenOptions, Opened, SourceKind, Split, open, tar::testing::Memory},
        *,
    };

    /// A row: bytes, path, label.
    type Row = (Vec<u8>, Option<String>, Option<i64>);

    fn write(path: &Path, rows: &[Row], group: usize, names: Option<&str>, compression: Compression) {
        let schema = "message schema { optional group image { optional binary bytes; optional binary path (STRING); } optional int64 label; }";
        let note = names.map(|names| {
            vec![KeyValue::new(
                "huggingface".to_owned(),
                format!(r#"{{"info":{{"features":{{"label":{{"names":{names}}}}}}}}}"#),
            )]
        });
        let properties = WriterProperties::builder()
            .set_compression(compression)
            .set_key_value_metadata(note)
            .set_data_page_size_limit(4096)
            .set_write_batch_size(4);
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut writer =
            SerializedFileWriter::new(fs::File::create(path).unwrap(), schema, Arc::new(properties.build())).unwrap();
        for rows in rows.chunks(group) {
            let mut out = writer.next_row_group().unwrap();
            let mut column = out.next_column().unwrap().unwrap();
            let bytes: Vec<ByteArray> = rows.iter().map(|row| row.0.clone().into()).collect();
            column.typed::<ByteArrayType>().write_batch(&bytes, Some(&vec![2; rows.len()]), None).unwrap();
            column.close().unwrap();
            let mut column = out.next_column().unwrap().unwrap();
            let paths: Vec<ByteArray> = rows.iter().filter_map(|row| row.1.as_deref().map(ByteArray::from)).collect();
            let levels: Vec<i16> = rows.iter().map(|row| if row.1.is_some() { 2 } else { 1 }).collect();
            column.typed::<ByteArrayType>().write_batch(&paths, Some(&levels), None).unwrap();
            column.close().unwrap();
            let mut column = out.next_column().unwrap().unwrap();
            let labels: Vec<i64> = rows.iter().filter_map(|row| row.2).collect();
            let levels: Vec<i16> = rows.iter().map(|row| i16::from(row.2.is_some())).collect();
            column.typed::<Int64Type>().write_batch(&labels, Some(&levels), None).unwrap();
            column.close().unwrap();
            out.close().unwrap();
        }
        writer.close().unwrap();
    }

    fn rows(count: usize) -> Vec<Row> {
        let row = |at: usize| (vec![at as u8; 700 + at], Some(format!("{at}.jpg")), Some((at % 3) as i64));
        (0..count).map(row).collect()
    }

    fn open_at(path: &Path, split: Split) -> Result<Opened> {
        let index_cache = Some(path.parent().unwrap().join("cache"));
        open(path.to_str().unwrap(), &OpenOptions { split, index_cache, ..Default::default() })
    }

    #[test]
    fn tables_are_read_in_any_order_with_the_hubs_class_names() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("set");
        fs::create_dir_all(root.join("data")).unwrap();
        let (all, names) = (rows(50), Some(r#"["cat","dog","eel"]"#));
        write(&root.join("data/train-00000-of-00002.parquet"), &all[..30], 12, names, Compression::SNAPPY);
        write(
            &root.join("data/train-00001-of-00002.parquet"),
            &all[30..],
            12,
            names,
            Compression::ZSTD(Default::default()),
        );
        write(&root.join("data/validation-00000-of-00001.parquet"), &all[..1], 12, names, Compression::UNCOMPRESSED);
        for _ in 0..2 {
            let opened = open_at(&root, Split::Train).unwrap();
            let source = opened.source;
            assert_eq!((opened.kind, source.len(), source.classes()[2].id.as_str()), (SourceKind::Parquet, 50, "eel"));
            let mut bytes = Vec::new();
            // Far apart, near each other, in order.
            for index in (0..50).map(|at| at * 29 % 50).chain((0..50).rev()).chain(0..50) {
                source.read(index, &mut bytes).unwrap();
                assert_eq!((&bytes, source.label(index)), (&all[index].0, all[index].2.map(|label| label as u32)));
            }
            assert_eq!(source.key(31), "train-00001-of-00002/31.jpg");
        }
        assert_eq!(open_at(&root, Split::Val).unwrap().source.len(), 1);
        let one = open_at(&root.join("data/train-00001-of-00002.parquet"), Split::Train).unwrap();
        assert_eq!(one.source.len(), 20);
    }

    /// Writes the columns of CIFAR-100: `img`, `fine_label` of numbers, and a column `part` of names.
    fn write_other_columns(path: &Path, count: usize) {
        let schema = "message schema { optional group photo_a { optional binary bytes; } optional int64 coarse_label; \
                      optional int64 fine_label; optional binary part (UTF8); }";
        let note = r#"{"info":{"features":{"fine_label":{"names":["ant","bee","cow"]}}}}"#;
        let note = vec![KeyValue::new("huggingface".to_owned(), note.to_owned())];
        let properties = WriterProperties::builder().set_key_value_metadata(Some(note)).build();
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut writer =
            SerializedFileWriter::new(fs::File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
        let mut out = writer.next_row_group().unwrap();
        let rows = rows(count);
        let mut column = out.next_column().unwrap().unwrap();
        let bytes: Vec<ByteArray> = rows.iter().map(|row| row.0.clone().into()).collect();
        column.typed::<ByteArrayType>().write_batch(&bytes, Some(&vec![2; count]), None).unwrap();
        column.close().unwrap();
        for factor in [0, 1] {
            let mut column = out.next_column().unwrap().unwrap();
            let labels: Vec<i64> = rows.iter().map(|row| row.2.unwrap() * factor).collect();
            column.typed::<Int64Type>().write_batch(&labels, Some(&vec![1; count]), None).unwrap();
            column.close().unwrap();
        }
        let mut column = out.next_column().unwrap().unwrap();
        let parts: Vec<ByteArray> = (0..count).map(|row| if row < 6 { "Train" } else { "valid" }.into()).collect();
        column.typed::<ByteArrayType>().write_batch(&parts, Some(&vec![1; count]), None).unwrap();
        column.close().unwrap();
        out.close().unwrap();
        writer.close().unwrap();
    }

    #[test]
    fn columns_of_any_name_are_guessed_or_given() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        write_other_columns(&path, 9);
        let open_with = |split, table| {
            let index_cache = Some(folder.path().join("cache"));
            open(path.to_str().unwrap(), &OpenOptions { split, index_cache, table, ..Default::default() })
        };
        let guessed = open_with(Split::Train, TableOptions::default()).unwrap();
        assert_eq!((guessed.source.len(), guessed.source.classes()[2].id.as_str()), (9, "cow"));
        assert!(guessed.notes[0].contains("`photo_a`, labels from `fine_label`"), "{:?}", guessed.notes);
        let some = |name: &str| Some(name.to_owned());
        let given = TableOptions { label_column: some("coarse_label"), ..TableOptions::default() };
        let coarse = open_with(Split::Train, given).unwrap();
        assert_eq!(coarse.source.classes().len(), 1, "another column has another index");
        let given = TableOptions { split_column: some("part"), ..TableOptions::default() };
        let mut bytes = Vec::new();
        let val = open_with(Split::Val, given.clone()).unwrap().source;
        val.read(0, &mut bytes).unwrap();
        assert_eq!((val.len(), val.label(0), &bytes), (3, Some(0), &rows(9)[6].0));
        assert_eq!(open_with(Split::Train, given).unwrap().source.len(), 6);
        for (wrong, what) in [
            (TableOptions { image_column: some("part"), ..Default::default() }, "part holds no encoded images"),
            (TableOptions { image_column: some("x"), ..Default::default() }, "x is not there"),
            (TableOptions { label_column: some("x"), ..Default::default() }, "no column x"),
            (TableOptions { split_column: some("fine_label"), ..Default::default() }, "is no split"),
            (TableOptions { images_root: Some("x".into()), ..Default::default() }, "no effect"),
        ] {
            let error = open_with(Split::Train, wrong).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn rows_without_path_label_or_image_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        let unlabeled: Vec<Row> = rows(3).into_iter().map(|row| (row.0, None, Some(-1))).collect();
        write(&path, &unlabeled, 2, None, Compression::SNAPPY);
        let opened = open_at(&path, Split::Train).unwrap();
        assert_eq!((opened.source.label(2), opened.source.key(2).as_ref()), (None, "t/2"));
        let mut mixed = rows(3);
        mixed[1].2 = None;
        write(&path, &mixed, 2, None, Compression::SNAPPY);
        let error = open_at(&path, Split::Train).unwrap_err().to_string();
        assert!(error.contains("row 1 has no label"), "{error}");
        write(&path, &rows(9), 2, None, Compression::SNAPPY);
        assert_eq!(open_at(&path, Split::Train).unwrap().source.classes().len(), 3, "numbers tell how many");
    }

    /// Counts the bytes that are read.
    #[derive(Debug)]
    struct Counting(LocalFile, AtomicU64);

    impl ReadAt for Counting {
        fn name(&self) -> &str {
            self.0.name()
        }
        fn identity(&self) -> &str {
            self.0.identity()
        }
        fn version(&self) -> &str {
            self.0.version()
        }
        fn len(&self) -> u64 {
            self.0.len()
        }
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            self.1.fetch_add(buffer.len() as u64, Ordering::Relaxed);
            self.0.read_exact_at(buffer, offset)
        }
    }

    #[test]
    fn a_row_group_larger_than_the_cache_is_not_decoded_again_for_each_row() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        let all: Vec<Row> = (0..400).map(|at| (vec![at as u8; 5000 + at], None, Some(0))).collect();
        write(&path, &all, 400, None, Compression::UNCOMPRESSED);
        let file = Arc::new(Counting(LocalFile::open(&path).unwrap(), AtomicU64::new(0)));
        let shared: Arc<dyn ReadAt> = file.clone();
        let index = (PARQUET.index)(&shared, &TableOptions::default()).unwrap();
        let mut table =
            Table::new(vec![(shared, index)], Vec::new(), Labels::Absent, &TableOptions::default()).unwrap();
        (table.block_bytes, table.cache_bytes) = (200_000, 500_000);
        file.1.store(0, Ordering::Relaxed);
        // In order, as for sharding; the group of 2 MB is four times the cache.
        let read_all = |step: usize, first: usize| {
            let mut bytes = Vec::new();
            for row in (first..400).step_by(step) {
                table.read(row, &mut bytes).unwrap();
                assert_eq!(bytes, all[row].0);
            }
        };
        read_all(1, 0);
        // Each of the 11 blocks is reached twice, by the dictionary, which is half of this file, and the headers of the
        // pages before it. Row by row these would be read 400 times.
        let (read, length) = (file.1.load(Ordering::Relaxed), file.len());
        assert!(read < 20 * length, "{read} bytes of {length} were read");
        let read_all = &read_all;
        std::thread::scope(|scope| {
            for first in 0..3 {
                scope.spawn(move || read_all(3, first));
            }
        });
        assert!(table.cache().bytes <= 500_000 && table.cache().in_progress.is_empty());
    }

    #[test]
    fn damaged_tables_are_errors_and_never_panics() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        fs::write(&path, "no table").unwrap();
        let error = open_at(&path, Split::Train).unwrap_err().to_string();
        assert!(error.contains("t.parquet") && error.contains("Parquet"), "{error}");
        write(&path, &rows(20), 5, None, Compression::SNAPPY);
        let good = fs::read(&path).unwrap();
        let mut refused = 0;
        for at in (0..good.len()).step_by(good.len() / 400) {
            let mut bytes = good.clone();
            bytes[at] ^= 0x55;
            let file: Arc<dyn ReadAt> = Arc::new(Memory(bytes));
            let Ok(table) = (PARQUET.index)(&file, &TableOptions::default()) else {
                refused += 1;
                continue;
            };
            let Ok(table) = Table::new(vec![(file, table)], Vec::new(), Labels::Absent, &TableOptions::default())
            else {
                continue;
            };
            let mut buffer = Vec::new();
            refused += (0..table.len()).filter(|&row| table.read(row, &mut buffer).is_err()).count();
        }
        assert!(refused > 0);
    }
}
