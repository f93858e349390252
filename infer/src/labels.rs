//! Mapping of the data's classes to the network's.

use std::{
    collections::HashMap,
    io::Read,
    path::{Path, PathBuf},
};

use datasets::{Class, imagenet};
use hub::Card;
use runtime::{
    files::open_regular,
    text::{canonical, printable},
};

use crate::{Error, Result};

/// The longest file of classes that is read.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// The most names that a message lists.
const NAMED: usize = 5;

/// The network's class for each class of the data, in label order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassMap(pub Vec<u32>);

impl ClassMap {
    /// Whether the network has classes that the data lacks.
    pub fn is_subset(&self, card: &Card) -> bool {
        self.0.len() < card.classes.len()
    }

    /// Matches classes by name, or by wnid if the network has ImageNet's 1000 classes in their standard order.
    ///
    /// # Errors
    /// Fails if the network lacks a class of the data; the error names some.
    pub fn new(data: &[Class], card: &Card) -> Result<Self> {
        let of_imagenet = card.classes == hub::imagenet_classes();
        let find = |class: &Class| {
            let by_wnid = of_imagenet.then(|| imagenet::class_index(&class.id)).flatten();
            by_wnid.or_else(|| {
                let same = |name: &String| *name == class.name || *name == class.id;
                // The same text in another Unicode form, as macOS and other systems write it.
                let text = [canonical(&class.name), canonical(&class.id)];
                unique(card, same).or_else(|| unique(card, |name| text.contains(&canonical(name))))
            })
        };
        let found: Vec<Option<u32>> = data.iter().map(find).collect();
        let unknown: Vec<&str> = data
            .iter()
            .zip(&found)
            .filter(|(_, found)| found.is_none())
            .map(|(class, _)| class.name.as_str())
            .collect();
        if !unknown.is_empty() {
            return Err(Error::ClassMap(format!(
                "the network lacks {} of the data's {} classes: {}. It has, for instance, {}. The class names in the \
                 model card must equal those of the data (or its wnids, for ImageNet's 1000 classes); --class-map FILE \
                 maps others",
                unknown.len(),
                data.len(),
                some_of(&unknown),
                card.classes.iter().take(3).map(|name| printable(name)).collect::<Vec<_>>().join(", ")
            )));
        }
        Ok(Self(found.into_iter().flatten().collect()))
    }

    /// Takes the names of the data's classes as indices of the network's classes, as ImageNet-V2 names its folders; `None`
    /// unless all are numbers in range, each once, and none is the name of a class.
    pub fn by_index(data: &[Class], card: &Card) -> Option<Self> {
        let is_name = |class: &Class| card.classes.contains(&class.id);
        let index = |class: &Class| {
            let is_number = !class.id.is_empty() && class.id.bytes().all(|byte| byte.is_ascii_digit());
            let index = class.id.parse::<u32>().ok().filter(|_| is_number)?;
            ((index as usize) < card.classes.len()).then_some(index)
        };
        if data.is_empty() || data.iter().any(is_name) {
            return None;
        }
        let indices: Vec<u32> = data.iter().map(index).collect::<Option<_>>()?;
        let mut distinct = indices.clone();
        distinct.sort_unstable();
        distinct.dedup();
        (distinct.len() == indices.len()).then_some(Self(indices))
    }
}

/// The only class that `is` holds for; a name that occurs twice is ambiguous.
fn unique(card: &Card, is: impl Fn(&String) -> bool) -> Option<u32> {
    let mut found = card.classes.iter().zip(0..).filter(|(name, _)| is(name)).map(|(_, index)| index);
    match (found.next(), found.next()) {
        (Some(index), None) => Some(index),
        _ => None,
    }
}

fn some_of(names: &[&str]) -> String {
    let shown = names.iter().take(NAMED).map(|name| printable(name)).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// The contents of a `--class-map` file: the network's class, by name or index, for each class of the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassMapFile {
    path: PathBuf,
    classes: HashMap<String, String>,
}

impl ClassMapFile {
    /// Reads CSV rows `folder,class` or a JSON object of them, or a list of classes, one per line or as a JSON array, of
    /// which the first is that of the folder `0`.
    ///
    /// # Errors
    /// Fails if the file cannot be read, is neither, or gives a folder two classes.
    pub fn read(path: &Path) -> Result<Self> {
        let named = || format!("--class-map {}", path.display());
        let mut text = String::new();
        open_regular(path)
            .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text))
            .map_err(|error| Error::ClassMap(format!("{}: {error}", named())))?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(Error::ClassMap(format!("{} is longer than {MAX_FILE_BYTES} bytes", named())));
        }
        let text = text.trim_start_matches('\u{feff}');
        let rows = if text.trim_start().starts_with(['{', '[']) { json_rows(text) } else { csv_rows(text) };
        let mut classes = HashMap::new();
        for (folder, class) in rows.map_err(|cause| Error::ClassMap(format!("{}: {cause}", named())))? {
            if let Some(other) = classes.insert(folder.clone(), class.clone())
                && other != class
            {
                let (folder, other, class) = (printable(&folder), printable(&other), printable(&class));
                let cause = format!("{}: `{folder}` has two classes, `{other}` and `{class}`", named());
                return Err(Error::ClassMap(cause));
            }
        }
        Ok(Self { path: path.to_owned(), classes })
    }

    /// Maps the data's classes to the network's.
    ///
    /// # Errors
    /// Fails if the file lacks a class of the data, or names one that the network lacks.
    pub fn map(&self, data: &[Class], card: &Card) -> Result<ClassMap> {
        let named = || format!("--class-map {}", self.path.display());
        let class_of = |class: &Class| {
            // `007` and `7` are the same folder.
            let number = || class.id.parse::<u32>().ok().map(|number| number.to_string());
            self.classes.get(&class.id).or_else(|| self.classes.get(&number()?))
        };
        let missing: Vec<&str> =
            data.iter().filter(|class| class_of(class).is_none()).map(|class| class.id.as_str()).collect();
        if !missing.is_empty() {
            return Err(Error::ClassMap(format!(
                "{} lacks {} of the data's {} classes: {}",
                named(),
                missing.len(),
                data.len(),
                some_of(&missing)
            )));
        }
        let of_imagenet = card.classes == hub::imagenet_classes();
        let resolve = |name: &String| {
            let by_wnid = || of_imagenet.then(|| imagenet::class_index(name)).flatten();
            let by_index = || name.parse::<u32>().ok().filter(|&index| (index as usize) < card.classes.len());
            unique(card, |class| class == name).or_else(by_wnid).or_else(by_index).ok_or_else(|| {
                Error::ClassMap(format!(
                    "{}: the network has no class `{}`, or several; it has {} classes, for instance {}",
                    named(),
                    printable(name),
                    card.classes.len(),
                    some_of(&card.classes.iter().take(3).map(String::as_str).collect::<Vec<_>>())
                ))
            })
        };
        Ok(ClassMap(data.iter().filter_map(class_of).map(resolve).collect::<Result<_>>()?))
    }
}

type Rows = Vec<(String, String)>;

/// Returns the rows of a JSON file, or what is wrong with it.
fn json_rows(text: &str) -> Result<Rows, String> {
    let name = |value: &serde_json::Value| match value {
        serde_json::Value::String(name) => Ok(name.clone()),
        serde_json::Value::Number(number) => Ok(number.to_string()),
        other => Err(format!("{other} is no class: expected a name or an index")),
    };
    match serde_json::from_str(text).map_err(|error| format!("is not valid JSON: {error}"))? {
        serde_json::Value::Object(map) => {
            map.iter().map(|(folder, class)| Ok((folder.clone(), name(class)?))).collect()
        }
        serde_json::Value::Array(list) => {
            list.iter().enumerate().map(|(at, class)| Ok((at.to_string(), name(class)?))).collect()
        }
        _ => Err("is neither a JSON object nor an array".into()),
    }
}

/// Returns the rows of a CSV file, or what is wrong with it.
fn csv_rows(text: &str) -> Result<Rows, String> {
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).flexible(true).trim(csv::Trim::All).from_reader(text.as_bytes());
    let records = reader.records().collect::<Result<Vec<_>, _>>();
    let records = records.map_err(|error| format!("is not a CSV file: {error}"))?;
    if records.iter().all(|record| record.len() == 1) {
        return Ok(records.iter().enumerate().map(|(at, record)| (at.to_string(), record[0].to_owned())).collect());
    }
    let is_header = |record: &csv::StringRecord| {
        record[0].eq_ignore_ascii_case("folder") && record[1].eq_ignore_ascii_case("class")
    };
    let mut rows = Rows::new();
    for record in &records {
        let line = record.position().map_or(0, csv::Position::line);
        if record.len() != 2 {
            return Err(format!("line {line} has {} cells; expected folder,class", record.len()));
        }
        if rows.is_empty() && line == 1 && is_header(record) {
            continue;
        }
        rows.push((record[0].to_owned(), record[1].to_owned()));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use models::Architecture;

    use super::*;

    fn class(id: &str) -> Class {
        Class { id: id.into(), name: id.into() }
    }

    fn pets() -> Card {
        let mut card = Card::of(Architecture::ResNet18, 3, "a test");
        card.classes = vec!["cat".into(), "dog".into(), "owl".into()];
        card
    }

    #[test]
    fn classes_match_by_name_or_wnid_only() {
        let mut card = pets();
        let map = ClassMap::new(&[class("owl"), class("cat")], &card).unwrap();
        assert_eq!(map, ClassMap(vec![2, 0]));
        assert!(map.is_subset(&card));
        let error = ClassMap::new(&[class("owl"), class("cow")], &card).unwrap_err().to_string();
        assert!(error.contains("1 of the data's 2 classes: cow"), "{error}");

        let imagenet = Card::of(Architecture::ResNet18, 1000, "a test");
        let map = ClassMap::new(&[class("n02085620"), class("n01440764")], &imagenet).unwrap();
        assert_eq!(map, ClassMap(vec![151, 0]));

        card.classes = vec!["crane".into(), "dog".into(), "crane".into()];
        assert!(ClassMap::new(&[class("crane")], &card).is_err(), "a bird or a machine?");
        card.classes = vec!["cafe\u{301}".into(), "th\u{e9}".into()];
        let map = ClassMap::new(&[class("the\u{301}"), class("caf\u{e9}")], &card).unwrap();
        assert_eq!(map, ClassMap(vec![1, 0]), "in another Unicode form");
    }

    #[test]
    fn folders_named_by_index_are_indices_unless_they_are_names() {
        let card = pets();
        // The order of folders by name, not by number.
        let imagenet = Card::of(Architecture::ResNet18, 1000, "a test");
        let v2 = ["0", "1", "10", "999"].map(class);
        assert_eq!(ClassMap::by_index(&v2, &imagenet), Some(ClassMap(vec![0, 1, 10, 999])));
        assert_eq!(ClassMap::by_index(&["000", "002"].map(class), &card), Some(ClassMap(vec![0, 2])));
        for none in [&["0", "3"][..], &["0", "dog"], &["0", "00"], &["+1"], &["-1"], &[]] {
            let classes: Vec<_> = none.iter().map(|id| class(id)).collect();
            assert_eq!(ClassMap::by_index(&classes, &card), None, "{none:?}");
        }
        let mut digits = card;
        digits.classes = vec!["2".into(), "1".into(), "0".into()];
        assert_eq!(ClassMap::by_index(&[class("0"), class("1")], &digits), None);
    }

    #[test]
    fn a_file_maps_folders_to_names_or_indices() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            ClassMapFile::read(&path)
        };
        let data = ["bird", "hound"].map(class);
        for (name, text) in [
            ("a.csv", "folder,class\nbird,owl\r\nhound,1\nmore,cat\n"),
            ("b.csv", "\u{feff}bird,2\n\"hound\", dog\n"),
            ("c.json", r#"{"bird": "owl", "hound": 1}"#),
        ] {
            assert_eq!(read(name, text).unwrap().map(&data, &pets()).unwrap(), ClassMap(vec![2, 1]), "{name}");
        }
        for (name, text) in [("order.txt", "owl\ndog\ncat\n"), ("order.json", r#"["owl", "dog", "cat"]"#)] {
            let map = read(name, text).unwrap().map(&["0", "02"].map(class), &pets()).unwrap();
            assert_eq!(map, ClassMap(vec![2, 0]), "{name}");
        }
        let wnid = read("w.csv", "hound,n02085620\nbird,0\n").unwrap();
        let imagenet = Card::of(Architecture::ResNet18, 1000, "a test");
        assert_eq!(wnid.map(&data, &imagenet).unwrap(), ClassMap(vec![0, 151]));

        let error = |name: &str, text: &str| {
            let mapped = read(name, text).and_then(|file| file.map(&data, &pets()));
            let error = mapped.unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
            error
        };
        assert!(error("lacks.csv", "bird,owl\nx,dog\n").contains("lacks 1 of the data's 2 classes: hound"));
        assert!(error("unknown.csv", "bird,eagle\nhound,dog\n").contains("no class `eagle`"));
        assert!(error("range.csv", "bird,3\nhound,dog\n").contains("no class `3`"));
        assert!(error("two.csv", "bird,owl\nbird,cat\nhound,dog\n").contains("two classes, `owl` and `cat`"));
        assert!(error("cells.csv", "bird,owl\nhound,dog,1\n").contains("line 2 has 3 cells"));
        assert!(error("broken.json", "{").contains("not valid JSON"));
        assert!(error("float.json", r#"{"bird": [], "hound": 1}"#).contains("is no class"));
        assert!(ClassMapFile::read(folder.path()).is_err());
    }
}
