//! From labels as a table has them to classes.

use std::{cmp::Ordering, collections::BTreeSet};

use regex::Regex;

use crate::{Class, imagenet};

/// The classes of distinct labels: numbers in their order, names byte by byte, as class folders are.
pub fn classes<'a>(labels: impl Iterator<Item = &'a str> + Clone) -> Vec<Class> {
    let is_number = |label: &str| label.parse::<i64>().is_ok();
    let are_numbers = labels.clone().all(is_number);
    let distinct: BTreeSet<&str> = labels.collect();
    let mut ids: Vec<&str> = distinct.into_iter().collect();
    if are_numbers {
        ids.sort_by(|a, b| by_value(a, b));
    }
    ids.into_iter().map(imagenet::named_class).collect()
}

fn by_value(a: &str, b: &str) -> Ordering {
    a.parse::<i64>().ok().cmp(&b.parse().ok()).then_with(|| a.cmp(b))
}

/// A regular expression that finds the label in the name of a file.
#[derive(Debug)]
pub struct LabelPattern {
    regex: Regex,
    group: usize,
}

impl LabelPattern {
    /// Parses a regular expression with a group named `label`, or with one group.
    ///
    /// # Errors
    /// Returns the cause and the remedy.
    pub fn new(text: &str) -> Result<Self, String> {
        let regex = Regex::new(text).map_err(|error| format!("`{text}` is no regular expression: {error}"))?;
        let named = regex.capture_names().position(|name| name == Some("label"));
        let group = match (named, regex.captures_len()) {
            (Some(group), _) => group,
            (None, 2) => 1,
            (None, 1) => {
                return Err(format!("`{text}` has no group for the label; put it in parentheses, as in `^([a-z]+)`"));
            }
            (None, count) => {
                return Err(format!("`{text}` has {} groups; name that of the label: `(?<label>…)`", count - 1));
            }
        };
        Ok(Self { regex, group })
    }

    /// Returns the label in the name of a file, the last part of a path.
    pub fn label<'a>(&self, path: &'a str) -> Option<&'a str> {
        let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
        let label = self.regex.captures(name)?.get(self.group)?.as_str().trim();
        (!label.is_empty()).then_some(label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_sort_by_value_and_names_by_bytes() {
        let ids = |labels: &[&str]| classes(labels.iter().copied()).into_iter().map(|c| c.id).collect::<Vec<_>>();
        assert_eq!(ids(&["10", "9", "-1", "9"]), ["-1", "9", "10"]);
        assert_eq!(ids(&["b", "10", "9", "B"]), ["10", "9", "B", "b"]);
        assert_eq!(classes(["n02085620"].into_iter())[0].name, "Chihuahua");
    }

    #[test]
    fn labels_are_found_in_names_of_files() {
        let label = |pattern: &str, path: &str| LabelPattern::new(pattern).unwrap().label(path).map(str::to_owned);
        assert_eq!(label(r"^(\w+)\.\d+\.jpg$", "train/cat.0.jpg").as_deref(), Some("cat"));
        assert_eq!(label(r"^(.+)_\d+", "Great_Pyrenees_12.jpg").as_deref(), Some("Great_Pyrenees"));
        assert_eq!(label(r"(\d+)_(?<label>[a-z]+)", "7_dog.png").as_deref(), Some("dog"));
        assert_eq!(label(r"^(cat|dog)", "bird.jpg"), None);
        for (pattern, cause) in [("cat", "no group"), ("(a)(b)", "2 groups"), ("(", "no regular expression")] {
            let error = LabelPattern::new(pattern).unwrap_err();
            assert!(error.contains(cause), "{error}");
        }
    }
}
