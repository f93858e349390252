//! The rows of a table: CSV with any delimiter, and JSON lines.

use std::{collections::HashMap, fmt};

use csv::{ReaderBuilder, StringRecord, Trim};
use runtime::text::printable;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};

use super::columns::{Columns, choose};
use crate::source::{is_image_name, options::TableOptions};

/// The delimiters that are recognized, the usual ones first. A space separates the lists that Caffe reads.
const DELIMITERS: [u8; 5] = [b',', b'\t', b';', b'|', b' '];

/// The rows and bytes that delimiters and columns are recognized from.
const LOOKED_AT: usize = 100;
const LOOKED_AT_BYTES: usize = 1 << 18;

/// The longest label and the longest path: beyond it a quote is open, usually.
const MAX_LABEL: usize = 1 << 10;
const MAX_PATH: usize = 1 << 13;

/// The most columns of a table.
const MAX_COLUMNS: usize = 1 << 14;

/// The most lines that a message names.
const NAMED: usize = 5;

/// Texts of many rows, each distinct one kept once.
#[derive(Debug, Default)]
pub struct Texts {
    /// The distinct texts, in the order in which they occur.
    pub names: Vec<String>,
    /// The text of each row, as an index into the names.
    pub rows: Vec<u32>,
    numbers: HashMap<String, u32>,
}

impl Texts {
    /// Appends a row.
    pub fn push(&mut self, text: &str) {
        let number = match self.numbers.get(text) {
            Some(&number) => number,
            None => {
                let number = self.names.len() as u32;
                self.names.push(text.to_owned());
                self.numbers.insert(text.to_owned(), number);
                number
            }
        };
        self.rows.push(number);
    }
}

/// The columns of a table that matter.
#[derive(Debug, Default)]
pub struct Rows {
    /// The images as they are written.
    pub images: Vec<String>,
    /// The line of each row, from 1.
    pub lines: Vec<u32>,
    /// The labels as they are written, empty where a row has none.
    pub labels: Option<Texts>,
    /// The splits as they are written.
    pub splits: Option<Texts>,
    /// The name of the column of splits, and whether it was guessed.
    pub split_column: Option<(String, bool)>,
    /// What was guessed of the columns.
    pub guess: String,
}

impl Rows {
    fn new(names: &[String], columns: &Columns) -> Self {
        Self {
            labels: columns.label.map(|_| Texts::default()),
            splits: columns.split.map(|_| Texts::default()),
            split_column: columns.split.map(|at| (names[at].clone(), columns.split_is_guessed)),
            guess: columns.guess.clone(),
            ..Self::default()
        }
    }

    fn push(&mut self, line: u64, image: &str, label: &str, split: &str) -> Result<(), String> {
        let too_long = |what: &str, text: &str, most: usize| match text.len() > most {
            true => Err(format!(
                "line {line}: {what} has {} bytes, more than {most}: is there a quote that is not closed?",
                text.len()
            )),
            false => Ok(()),
        };
        too_long("the path of the image", image, MAX_PATH)?;
        too_long("the label", label, MAX_LABEL)?;
        too_long("the split", split, MAX_LABEL)?;
        if image.is_empty() {
            return Err(format!("line {line} names no image"));
        }
        self.images.push(image.to_owned());
        self.lines.push(u32::try_from(line).unwrap_or(u32::MAX));
        if let Some(labels) = &mut self.labels {
            labels.push(label);
        }
        if let Some(splits) = &mut self.splits {
            splits.push(split);
        }
        Ok(())
    }
}

/// Names up to [`NAMED`] lines: `lines 3, 7 and 12`.
pub fn some_lines(lines: &[u32]) -> String {
    let shown: Vec<_> = lines.iter().take(NAMED).map(u32::to_string).collect();
    match (lines.len(), &shown[..]) {
        (1, _) => format!("line {}", shown[0]),
        (count, _) if count > NAMED => format!("lines {} and {} more", shown.join(", "), count - NAMED),
        (_, [first @ .., last]) => format!("lines {} and {last}", first.join(", ")),
        (_, []) => "no line".to_owned(),
    }
}

/// Reads a table of delimited cells; `is_tabbed` prefers tabs where several delimiters fit.
///
/// # Errors
/// Returns the line, the cause and the remedy.
pub fn read_delimited(text: &str, is_tabbed: bool, options: &TableOptions) -> Result<Rows, String> {
    let (text, skipped, named) = match excel_delimiter(text) {
        Some((delimiter, rest)) => (rest, 1, Some(delimiter)),
        None => (text, 0, None),
    };
    let delimiter = named.unwrap_or_else(|| detect(text, is_tabbed));
    let first = records(text, delimiter).take(LOOKED_AT).collect::<Result<Vec<_>, _>>()?;
    let Some((_, header)) = first.first() else { return Err("is empty".to_owned()) };
    if header.len() > MAX_COLUMNS {
        return Err(format!("has {} columns, more than {MAX_COLUMNS}", header.len()));
    }
    let cells = |record: &StringRecord| record.iter().map(str::to_owned).collect::<Vec<_>>();
    let has_header = !begins_with_data(header, options);
    let (width, mut names) = (header.len(), cells(header));
    if !has_header {
        names = (1..=width).map(|number| number.to_string()).collect();
    }
    let sample: Vec<Vec<String>> = first.iter().skip(usize::from(has_header)).map(|(_, row)| cells(row)).collect();
    let columns = choose(&names, &sample, options).map_err(|cause| explain_header(cause, has_header))?;

    let mut rows = Rows::new(&names, &columns);
    let mut odd: Vec<(u32, usize)> = Vec::new();
    for record in records(text, delimiter).skip(usize::from(has_header)) {
        let (line, record) = record?;
        let line = line + skipped;
        // A delimiter at the end of a row adds an empty cell.
        let is_wide = record.len() > width && record.iter().skip(width).any(|cell| !cell.is_empty());
        if record.len() < width || is_wide {
            odd.push((line as u32, record.len()));
            continue;
        }
        let cell = |column: Option<usize>| column.and_then(|at| record.get(at)).unwrap_or_default();
        rows.push(line, cell(Some(columns.image)), cell(columns.label), cell(columns.split))?;
    }
    if !odd.is_empty() {
        return Err(explain_width(text, delimiter, width, has_header, skipped, &odd));
    }
    if rows.images.is_empty() {
        return Err(
            "has a header and no rows; a table has a row for each image, with its path and its label".to_owned()
        );
    }
    if !has_header && !rows.guess.is_empty() {
        rows.guess += " (it has no header)";
    }
    Ok(rows)
}

/// Excel's first line `sep=;`, which names the delimiter.
fn excel_delimiter(text: &str) -> Option<(u8, &str)> {
    let (line, rest) = text.split_once('\n')?;
    let &[delimiter] = line.trim_end_matches('\r').strip_prefix("sep=")?.as_bytes() else { return None };
    (delimiter.is_ascii() && !delimiter.is_ascii_alphanumeric() && delimiter != b'"').then_some((delimiter, rest))
}

/// The records with their lines, from 1; rows of nothing but delimiters are skipped, as blank lines are.
fn records(text: &str, delimiter: u8) -> impl Iterator<Item = Result<(u64, StringRecord), String>> + '_ {
    let mut builder = ReaderBuilder::new();
    // Cells that are separated by spaces would lose theirs.
    let trim = if delimiter == b' ' { Trim::None } else { Trim::All };
    let reader = builder.delimiter(delimiter).flexible(true).has_headers(false).trim(trim).from_reader(text.as_bytes());
    let mut lines = Lines { text: text.as_bytes(), at: 0, line: 1 };
    reader.into_records().filter_map(move |record| match record {
        Ok(record) if record.iter().all(str::is_empty) => None,
        Ok(record) => Some(Ok((lines.line_of(&record), record))),
        Err(error) => Some(Err(format!("cannot be read as a table: {error}"))),
    })
}

/// Counts lines: the reader's own number of a record is that of a line break before it.
struct Lines<'a> {
    text: &'a [u8],
    at: usize,
    line: u64,
}

impl Lines<'_> {
    /// The line in which a record begins that follows those before.
    fn line_of(&mut self, record: &StringRecord) -> u64 {
        let is_break = |byte: &u8| matches!(byte, b'\n' | b'\r');
        let start = record.position().map_or(0, |position| position.byte() as usize).min(self.text.len());
        let start = start + self.text[start..].iter().take_while(|byte| is_break(byte)).count();
        for at in self.at..start {
            let ends_line = match self.text[at] {
                b'\n' => true,
                b'\r' => self.text.get(at + 1) != Some(&b'\n'),
                _ => false,
            };
            self.line += u64::from(ends_line);
        }
        self.at = self.at.max(start);
        self.line
    }
}

/// The delimiter that gives the most rows the same number of cells, above one.
fn detect(text: &str, is_tabbed: bool) -> u8 {
    let mut end = text.len().min(LOOKED_AT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let is_cut = end < text.len();
    let mut best = (0.0, if is_tabbed { b'\t' } else { b',' });
    for delimiter in DELIMITERS {
        let mut widths: Vec<usize> =
            records(&text[..end], delimiter).take(LOOKED_AT).filter_map(|record| Some(record.ok()?.1.len())).collect();
        if is_cut && widths.len() < LOOKED_AT {
            widths.pop();
        }
        let mut counts: HashMap<usize, usize> = HashMap::new();
        widths.iter().for_each(|width| *counts.entry(*width).or_default() += 1);
        let Some((&width, &count)) = counts.iter().max_by_key(|&(width, count)| (*count, *width)) else { continue };
        if width < 2 {
            continue;
        }
        let score = count as f64 / widths.len() as f64;
        // Spaces are in names of files, too.
        if delimiter == b' ' && (best.0 > 0.0 || count < widths.len() || !begins_with_image(text)) {
            continue;
        }
        if score > best.0 || (score == best.0 && is_tabbed && delimiter == b'\t') {
            best = (score, delimiter);
        }
    }
    best.1
}

fn begins_with_image(text: &str) -> bool {
    text.lines().next().and_then(|line| line.split(' ').next()).is_some_and(is_image_name)
}

/// Whether the first record is data: it names an image, or the columns are given by numbers.
fn begins_with_data(first: &StringRecord, options: &TableOptions) -> bool {
    let is_number = |name: &String| name.parse::<usize>().is_ok() && !first.iter().any(|cell| cell == name);
    let columns = [&options.image_column, &options.label_column, &options.split_column];
    first.iter().any(is_image_name) || columns.into_iter().flatten().any(is_number)
}

fn explain_header(cause: String, has_header: bool) -> String {
    match has_header {
        true => cause,
        false => format!("{cause}; the first row names an image, or the columns are numbers: there is no header"),
    }
}

/// Says which rows have another number of cells than the first, and whether another delimiter separates them.
fn explain_width(
    text: &str,
    delimiter: u8,
    width: usize,
    has_header: bool,
    skipped: u64,
    odd: &[(u32, usize)],
) -> String {
    let shown = |delimiter: u8| match delimiter {
        b'\t' => "tabs".to_owned(),
        b' ' => "spaces".to_owned(),
        other => format!("`{}`", char::from(other)),
    };
    let (line, cells) = odd[0];
    let at = u64::from(line).saturating_sub(skipped + 1) as usize;
    let row = text.lines().nth(at).unwrap_or_default();
    let fits = |other: &&u8| {
        let of_row = records(row, **other).next().and_then(Result::ok);
        **other != delimiter && **other != b' ' && of_row.is_some_and(|(_, record)| record.len() == width)
    };
    let mixed = DELIMITERS.iter().find(fits).filter(|_| width > 1);
    let lines: Vec<u32> = odd.iter().map(|(line, _)| *line).collect();
    let first = if has_header { "the header" } else { "the first row" };
    let cells = if cells == 1 { "1 cell".to_owned() } else { format!("{cells} cells") };
    let remedy = match mixed {
        Some(&other) => {
            format!("the table is separated by {}, this line by {}: use one of them", shown(delimiter), shown(other))
        }
        None => format!("cells with {} in them need quotes", shown(delimiter)),
    };
    match lines.len() {
        1 => format!("line {line} has {cells} and {first} {width}; {remedy}"),
        count => format!(
            "{count} rows have another number of cells than {first}, {width} ({}); line {line} has {cells}; {remedy}",
            some_lines(&lines)
        ),
    }
}

/// Reads JSON lines: an object each.
///
/// # Errors
/// Returns the line, the cause and the remedy.
pub fn read_json_lines(text: &str, options: &TableOptions) -> Result<Rows, String> {
    let lines = || text.lines().zip(1_u64..).filter(|(line, _)| !line.trim().is_empty());
    let mut names: Vec<String> = Vec::new();
    for (line, number) in lines().take(LOOKED_AT) {
        let keys = parse(line, number, Keys)?;
        for key in keys {
            if !names.contains(&key) {
                names.push(key);
            }
        }
        if names.len() > MAX_COLUMNS {
            return Err(format!("has more than {MAX_COLUMNS} columns"));
        }
    }
    if names.is_empty() {
        return Err("is empty".to_owned());
    }
    // What is no text is no image's name.
    let cell = |name: &String, line, number| {
        let [text, ..] = parse(line, number, Fields([Some(name), None, None])).unwrap_or_default();
        text
    };
    // Each cell takes a pass over its line.
    let looked_at = if names.len() > LOOKED_AT { 1 } else { LOOKED_AT };
    let cells = |(line, number)| names.iter().map(|name| cell(name, line, number)).collect();
    let sample: Vec<Vec<String>> = lines().take(looked_at).map(cells).collect();
    let columns = choose(&names, &sample, options)?;
    let name = |at: Option<usize>| at.map(|at| names[at].as_str());
    let fields = [name(Some(columns.image)), name(columns.label), name(columns.split)];
    let mut rows = Rows::new(&names, &columns);
    for (line, number) in lines() {
        let [image, label, split] = parse(line, number, Fields(fields))?;
        rows.push(number, image.trim(), label.trim(), split.trim())?;
    }
    Ok(rows)
}

fn parse<'de, S: DeserializeSeed<'de>>(line: &'de str, number: u64, seed: S) -> Result<S::Value, String> {
    let mut input = serde_json::Deserializer::from_str(line);
    let value = seed.deserialize(&mut input).and_then(|value| input.end().map(|()| value));
    value.map_err(|error| {
        // The position in the line is of no use with a line of its own.
        let text = error.to_string();
        let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
        format!("line {number} is no JSON object with texts and numbers: {}", printable(text))
    })
}

/// The keys of an object.
struct Keys;

impl<'de> DeserializeSeed<'de> for Keys {
    type Value = Vec<String>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Keys {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut keys = Vec::new();
        while let Some((key, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
            keys.push(key);
        }
        Ok(keys)
    }
}

/// Some fields of an object as texts; empty where it lacks one.
struct Fields<'a>([Option<&'a str>; 3]);

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = [String; 3];

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = [String; 3];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut texts = <[String; 3]>::default();
        while let Some(key) = map.next_key::<std::borrow::Cow<'_, str>>()? {
            match self.0.iter().position(|wanted| *wanted == Some(&*key)) {
                Some(at) => {
                    let Cell(text) = map.next_value()?;
                    texts[at] = text;
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(texts)
    }
}

/// A value as a cell of a table.
struct Cell(String);

impl<'de> serde::Deserialize<'de> for Cell {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsText;
        impl Visitor<'_> for AsText {
            type Value = Cell;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a number")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Cell, E> {
                Ok(Cell(text.to_owned()))
            }
            fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Cell, E> {
                Ok(Cell(value.to_string()))
            }
            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Cell, E> {
                Ok(Cell(value.to_string()))
            }
            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Cell, E> {
                Ok(Cell(value.to_string()))
            }
            fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Cell, E> {
                match value.is_finite() {
                    true => Ok(Cell(value.to_string())),
                    false => Err(E::custom("a number that is not finite")),
                }
            }
            fn visit_unit<E: serde::de::Error>(self) -> Result<Cell, E> {
                Ok(Cell(String::new()))
            }
        }
        deserializer.deserialize_any(AsText)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Rows, String> {
        read_delimited(text, false, &TableOptions::default())
    }

    /// The images, labels and lines of a table.
    fn cells(rows: &Rows) -> Vec<(String, String, u32)> {
        let labels = rows.labels.as_ref().unwrap();
        let label = |row: usize| labels.names[labels.rows[row] as usize].clone();
        (0..rows.images.len()).map(|row| (rows.images[row].clone(), label(row), rows.lines[row])).collect()
    }

    #[test]
    fn delimiters_line_ends_and_quotes_are_recognized() {
        let expected = [("a.jpg".to_owned(), "cat".to_owned(), 2), ("b c.jpg".to_owned(), "dog".to_owned(), 3)];
        for text in [
            "path,label\na.jpg,cat\nb c.jpg,dog\n",
            "path,label\r\na.jpg,cat\r\nb c.jpg,dog",
            "path\tlabel\na.jpg\tcat\nb c.jpg\tdog\n",
            "path;label\na.jpg;cat\nb c.jpg;dog\n",
            "path | label\na.jpg | cat\nb c.jpg | dog\n",
            "path, label\n\"a.jpg\",cat\n\"b c.jpg\", dog\n",
            "path,label,\na.jpg,cat,\nb c.jpg,dog,\n",
        ] {
            assert_eq!(cells(&read(text).unwrap()), expected, "{text:?}");
        }
        let rows = read("path,label,note\na.jpg,\"cat, \"\"big\"\"\",\"two\nlines; or;more\"\nb.jpg,dog,\n").unwrap();
        assert_eq!(cells(&rows)[0].1, "cat, \"big\"");
        assert_eq!(rows.lines, [2, 4], "a quoted cell may have several lines");
        let rows = read("sep=;\npath;label\na.jpg;1,5\n").unwrap();
        assert_eq!(cells(&rows), [("a.jpg".to_owned(), "1,5".to_owned(), 3)]);
        for text in [
            "path,label\n\n,,\n\na.jpg,cat\n",
            "path,label\r\n\r\n,,\r\n\r\na.jpg,cat",
            "path,label\r\r,,\r\ra.jpg,cat\r",
        ] {
            assert_eq!(read(text).unwrap().lines, [5], "empty rows are none: {text:?}");
        }
    }

    #[test]
    fn a_table_without_a_header_is_recognized_by_its_first_image() {
        for text in ["a.jpg,cat\nb.jpg,dog\n", "a.jpg cat\nb.jpg dog\n"] {
            let rows = read(text).unwrap();
            assert_eq!(cells(&rows)[0], ("a.jpg".to_owned(), "cat".to_owned(), 1), "{text}");
            assert!(rows.guess.contains("no header"), "{}", rows.guess);
        }
        let options =
            TableOptions { image_column: Some("1".into()), label_column: Some("3".into()), ..TableOptions::default() };
        let rows = read_delimited("0001,x,cat\n0002,y,dog\n", false, &options).unwrap();
        assert_eq!(cells(&rows)[1], ("0002".to_owned(), "dog".to_owned(), 2));
        let error = read("0001,x,cat\n0002,y,dog\n").unwrap_err();
        assert!(error.contains("image_column") && error.contains("have numbers"), "{error}");
        let list = read("my cat.jpg\nmy dog.jpg\n").unwrap();
        assert_eq!((list.images[0].as_str(), list.labels.is_none()), ("my cat.jpg", true));
    }

    #[test]
    fn rows_of_another_width_are_named_with_the_cause() {
        let error = read("path,label\na.jpg,cat\nb.jpg;dog\nc.jpg,cat\n").unwrap_err();
        assert!(error.contains("line 3 has 1 cell and the header 2"), "{error}");
        assert!(error.contains("separated by `,`, this line by `;`"), "{error}");
        let error = read("path,label\na.jpg,cat, big\nb.jpg,dog\nc.jpg,x,y\n").unwrap_err();
        assert!(error.contains("2 rows") && error.contains("lines 2 and 4") && error.contains("quotes"), "{error}");
        let error = read(&format!("path,label\na.jpg,\"cat\n{}", "b.jpg,dog\n".repeat(300))).unwrap_err();
        assert!(error.contains("quote that is not closed"), "{error}");
        assert!(read("").unwrap_err().contains("empty"));
        assert!(read("path,label\n").unwrap_err().contains("no rows"));
        assert!(read("path,label\n,cat\n").unwrap_err().contains("line 2 names no image"));
    }

    #[test]
    fn json_lines_are_rows() {
        let read = |text: &str| read_json_lines(text, &TableOptions::default());
        let text = "{\"file_name\":\"a.jpg\",\"label\":3,\"box\":[1,2]}\n\n{\"label\":null,\"file_name\":\"b\\u00e9.jpg\"}\r\n";
        let rows = read(text).unwrap();
        let expected = [("a.jpg".to_owned(), "3".to_owned(), 1), ("bé.jpg".to_owned(), String::new(), 3)];
        assert_eq!(cells(&rows), expected);
        let error = read("{\"file_name\":\"a.jpg\",\"label\":[\"a\",\"b\"]}\n").unwrap_err();
        assert!(error.contains("line 1") && error.contains("a text or a number"), "{error}");
        let error = read("{\"image\":\"a.jpg\",\"label\":1}\n{\"image\":\"b.jpg\",").unwrap_err();
        assert!(error.contains("line 2"), "{error}");
        assert!(read("[1]\n").is_err() && read("\n").unwrap_err().contains("empty"));
    }
}
