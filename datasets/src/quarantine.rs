//! A list of samples to leave out, written by `datasets doctor --quarantine FILE` and honored wherever data is opened.
//!
//! A text file with one sample per line: its key, a tab and the reason; lines that start with `#` are comments. In a key, a
//! line break is written `\n` or `\r`, a tab `\t`, a backslash `\\`, and a `#` at the beginning `\#`.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read, Write},
    path::Path,
    sync::Arc,
};

use runtime::{files::open_regular, text::printable};

use crate::{Error, Result, Source, source::Subset};

/// Samples to leave out, by key, with the reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quarantine(BTreeMap<String, String>);

impl Quarantine {
    /// Reads the list from a file.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be read or is no UTF-8 text.
    pub fn load(path: &Path) -> Result<Self> {
        let mut text = String::new();
        open_regular(path)
            .and_then(|mut file| file.read_to_string(&mut text))
            .map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        Ok(Self(
            lines
                .map(|line| line.split_once('\t').unwrap_or((line, "")))
                .map(|(key, reason)| (unescape(key), reason.to_owned()))
                .collect(),
        ))
    }

    /// Writes the list, sorted by key.
    ///
    /// # Errors
    /// Fails if the writer fails.
    pub fn write(&self, writer: &mut dyn Write) -> io::Result<()> {
        writeln!(writer, "# Samples that `datasets doctor` would leave out: key, tab, reason.")?;
        for (key, reason) in &self.0 {
            writeln!(writer, "{}\t{}", escape(key), printable(&reason.replace(['\n', '\r', '\t'], " ")))?;
        }
        Ok(())
    }

    /// Adds a sample. An earlier reason is kept.
    pub fn insert(&mut self, key: impl Into<String>, reason: impl fmt::Display) {
        self.0.entry(key.into()).or_insert_with(|| reason.to_string());
    }

    /// Returns the number of listed samples.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the sample with this key is to be left out.
    pub fn contains(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// Returns the source without the listed samples, and the number left out. A list for other data leaves out none,
    /// and the source is returned unchanged.
    ///
    /// # Errors
    /// [`Error::InvalidLoader`] for a source of more than four billion samples.
    pub fn apply(&self, source: Arc<dyn Source>) -> Result<(Arc<dyn Source>, usize)> {
        let len = u32::try_from(source.len()).map_err(|_| Error::InvalidLoader {
            what: format!("a quarantine list over {} samples; up to {} are possible", source.len(), u32::MAX),
        })?;
        let kept: Vec<u32> = (0..len).filter(|&index| !self.contains(&source.key(index as usize))).collect();
        let left_out = source.len() - kept.len();
        if left_out == 0 {
            return Ok((source, 0));
        }
        Ok((Arc::new(Subset::new(source, kept)?), left_out))
    }
}

/// A key as a line has it.
fn escape(key: &str) -> String {
    let mut escaped = String::with_capacity(key.len());
    for (at, c) in key.char_indices() {
        match c {
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            '\\' => escaped.push_str("\\\\"),
            '#' if at == 0 => escaped.push_str("\\#"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// The inverse of [`escape`]; other backslashes stay, as in lists that were written by hand.
fn unescape(line: &str) -> String {
    let mut key = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let escaped = match (c, chars.clone().next()) {
            ('\\', Some('n')) => '\n',
            ('\\', Some('r')) => '\r',
            ('\\', Some('t')) => '\t',
            ('\\', Some(same @ ('\\' | '#'))) => same,
            _ => {
                key.push(c);
                continue;
            }
        };
        key.push(escaped);
        chars.next();
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::testing::Counting;

    #[test]
    fn a_list_comes_back_from_its_file_and_leaves_its_samples_out() {
        let mut list = Quarantine::default();
        list.insert("sample-3", "broken:\tends\nearly");
        list.insert("sample-0", "twice");
        list.insert("sample-3", "a second reason");
        list.insert("elsewhere", "no such sample");
        let file = tempfile::NamedTempFile::new().unwrap();
        list.write(&mut file.as_file()).unwrap();
        let read = Quarantine::load(file.path()).unwrap();
        assert_eq!(read.0["sample-3"], "broken: ends early");
        assert_eq!(read.len(), 3);

        let (source, left_out) = read.apply(Arc::new(Counting::new(5))).unwrap();
        assert_eq!(left_out, 2);
        assert_eq!(
            (0..3).map(|index| source.key(index).into_owned()).collect::<Vec<_>>(),
            ["sample-1", "sample-2", "sample-4"]
        );
        let keys = ["a\nsample-1", "#1.jpg", "tab\there", "back\\nslash", "\r", "a\\", "\\x41"];
        let mut list = Quarantine::default();
        keys.iter().for_each(|&key| list.insert(key, "odd"));
        let file = tempfile::NamedTempFile::new().unwrap();
        list.write(&mut file.as_file()).unwrap();
        let read = Quarantine::load(file.path()).unwrap();
        assert_eq!(read, list, "names with line breaks come back and list no other sample");
        assert_eq!(unescape("C:\\photos\\1.jpg"), "C:\\photos\\1.jpg", "a list by hand");
        assert!(Quarantine::load(Path::new("no/such/file")).unwrap_err().to_string().contains("no/such/file"));
    }
}
