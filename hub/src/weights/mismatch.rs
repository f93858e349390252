//! The table of what does not match between a file and a network.

use std::{collections::BTreeMap, fmt};

use models::{Architecture, Entry};

use super::{Keyed, is_head};

/// Rows shown of each kind before the rest is only counted.
const SHOWN: usize = 12;

/// What does not match between a file of weights and a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// Tensors that the network has and the file has not.
    pub missing: Vec<Difference>,
    /// Tensors that the file has and the network has not.
    pub unexpected: Vec<Difference>,
    /// Tensors that both have, in different shapes.
    pub wrong_shape: Vec<WrongShape>,
}

/// A tensor that only one side has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its key.
    pub key: String,
    /// Its shape, as PyTorch has it.
    pub shape: Vec<usize>,
    /// The key on the other side that is most like it, among those that match nothing.
    pub nearest: Option<String>,
}

/// A tensor that both sides have, in different shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongShape {
    /// Its key.
    pub key: String,
    /// The network's shape, as PyTorch has it.
    pub want: Vec<usize>,
    /// The file's.
    pub got: Vec<usize>,
    /// It belongs to the last layer, so another number of classes may be all that differs.
    pub head: bool,
}

impl Mismatch {
    pub(super) fn between(entries: &[Entry], file: &BTreeMap<String, Keyed<'_>>, architecture: Architecture) -> Self {
        let wanted: BTreeMap<&str, &Entry> = entries.iter().map(|entry| (entry.key.as_str(), entry)).collect();
        let missing: Vec<&Entry> = entries.iter().filter(|entry| !file.contains_key(&entry.key)).collect();
        let unexpected: Vec<(&String, &Keyed)> =
            file.iter().filter(|(key, _)| !wanted.contains_key(key.as_str())).collect();
        let wrong_shape = entries.iter().filter_map(|entry| {
            let got = &file.get(&entry.key)?.shape;
            (*got != entry.shape).then(|| WrongShape {
                key: entry.key.clone(),
                want: entry.shape.clone(),
                got: got.clone(),
                head: is_head(&entry.key, architecture),
            })
        });
        Self {
            wrong_shape: wrong_shape.collect(),
            missing: missing
                .iter()
                .map(|entry| Difference {
                    key: entry.key.clone(),
                    shape: entry.shape.clone(),
                    nearest: nearest(&entry.key, unexpected.iter().map(|(key, _)| key.as_str())).map(str::to_string),
                })
                .collect(),
            unexpected: unexpected
                .iter()
                .map(|(key, keyed)| Difference {
                    key: key.to_string(),
                    shape: keyed.shape.clone(),
                    nearest: nearest(key, missing.iter().map(|entry| entry.key.as_str())).map(str::to_string),
                })
                .collect(),
        }
    }

    /// Whether everything matches.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.wrong_shape.is_empty()
    }

    pub(super) fn ignore(&mut self, ignored: impl Fn(&str) -> bool) {
        self.missing.retain(|row| !ignored(&row.key));
        self.unexpected.retain(|row| !ignored(&row.key));
        self.wrong_shape.retain(|row| !ignored(&row.key));
    }
}

/// The candidate most similar to `name`, if any is similar.
fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = candidates.map(|candidate| (strsim::jaro_winkler(name, candidate), candidate));
    let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (best.0 >= 0.7).then_some(best.1)
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = |shape: &[usize]| format!("{shape:?}");
        let sides = [("missing", &self.missing), ("unexpected", &self.unexpected)];
        for (title, rows) in sides {
            section(f, title, rows, |row| {
                let like = row.nearest.as_ref().map(|key| format!("  (like {key}?)")).unwrap_or_default();
                format!("{:<44} {:<20}{like}", row.key, shape(&row.shape))
            })?;
        }
        section(f, "wrong shape", &self.wrong_shape, |row| {
            format!("{:<44} want {}, got {}", row.key, shape(&row.want), shape(&row.got))
        })?;
        if self.wrong_shape.iter().any(|row| row.head) {
            let classes = |shape: &[usize]| shape.first().copied().unwrap_or_default();
            if let Some(row) = self.wrong_shape.iter().find(|row| row.head) {
                writeln!(
                    f,
                    "  the last layer is for {} classes, not {}: ask for a fresh head (Strictness::FreshHead; \
                     `train finetune` does) to keep the other layers",
                    classes(&row.got),
                    classes(&row.want),
                )?;
            }
        }
        Ok(())
    }
}

fn section<T>(f: &mut fmt::Formatter<'_>, title: &str, rows: &[T], line: impl Fn(&T) -> String) -> fmt::Result {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(f, "  {title} ({}):", rows.len())?;
    for row in rows.iter().take(SHOWN) {
        writeln!(f, "    {}", line(row).trim_end())?;
    }
    if rows.len() > SHOWN {
        writeln!(f, "    … and {} more", rows.len() - SHOWN)?;
    }
    Ok(())
}
