//! The table of what does not match between a file and a network.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use models::{Architecture, Entry};
use runtime::text::nearest;

use super::{Keyed, is_head, printable};

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
    /// Layers beside the network in the file, where it is behind a prefix: a classifier of its own.
    pub beside: Vec<(String, Vec<usize>)>,
    /// The architectures that the file does fit, its last layer aside.
    pub fits: Vec<Architecture>,
    /// All that is missing is the last layer.
    pub lacks_head: bool,
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
            beside: Vec::new(),
            fits: Vec::new(),
            lacks_head: !missing.is_empty() && missing.iter().all(|entry| is_head(&entry.key, architecture)),
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

    /// Removes what belongs to a classifier that is replaced: the last layer; an MLP in its place; other heads of the
    /// file; and where none of the layers before the last fits (VGG, AlexNet), those too. Returns the file's tensors
    /// among them that the network has no place for.
    pub(super) fn ignore_head(&mut self, entries: &[Entry], architecture: Architecture) -> Vec<String> {
        let top = |key: &str| key.split('.').next().unwrap_or(key).to_string();
        let root = top(architecture.variant().head_key);
        let modules: BTreeSet<String> = entries.iter().map(|entry| top(&entry.key)).collect();
        let differs = |key: &str| {
            self.missing.iter().any(|row| row.key == key) || self.wrong_shape.iter().any(|row| row.key == key)
        };
        let mut layers = entries.iter().filter(|entry| top(&entry.key) == root && !is_head(&entry.key, architecture));
        let is_other_classifier = layers.clone().next().is_some() && layers.all(|entry| differs(&entry.key));
        let head = architecture.variant().head_key;
        let is_replaced = |key: &str| {
            is_head(key, architecture)
                || key.strip_prefix(head).is_some_and(|rest| rest.starts_with('.'))
                || (is_other_classifier && top(key) == root)
        };
        let is_other_head = |row: &Difference| row.shape.len() <= 2 && !modules.contains(&top(&row.key));
        self.missing.retain(|row| !is_replaced(&row.key));
        self.wrong_shape.retain(|row| !is_replaced(&row.key));
        let mut unused = Vec::new();
        self.unexpected.retain(|row| {
            let ignored = is_replaced(&row.key) || is_other_head(row);
            if ignored {
                unused.push(printable(&row.key));
            }
            !ignored
        });
        unused
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = |shape: &[usize]| format!("{shape:?}");
        let sides = [("missing", &self.missing), ("unexpected", &self.unexpected)];
        for (title, rows) in sides {
            section(f, title, rows, |row| {
                let like = row.nearest.as_ref().map(|key| format!("  (like {}?)", printable(key))).unwrap_or_default();
                format!("{:<44} {:<20}{like}", printable(&row.key), shape(&row.shape))
            })?;
        }
        section(f, "wrong shape", &self.wrong_shape, |row| {
            format!("{:<44} want {}, got {}", row.key, shape(&row.want), shape(&row.got))
        })?;
        section(f, "beside the network in the file", &self.beside, |(key, sizes)| {
            format!("{:<44} {}", printable(key), shape(sizes))
        })?;
        if !self.fits.is_empty() {
            let names: Vec<String> = self.fits.iter().map(|fits| format!("--arch {fits}")).collect();
            return writeln!(f, "  the file fits {}", names.join(" or "));
        }
        let channels =
            |row: &&WrongShape| row.want.len() == 4 && row.want[1] == 3 && row.got.len() == 4 && row.got[1] != 3;
        if let Some(row) = self.wrong_shape.iter().find(channels) {
            writeln!(
                f,
                "  the first convolution is for images of {} channels: Hearth's networks take RGB, 3 channels. A network \
                 for gray images computes the same with its filters divided by 3 and repeated for each channel",
                row.got[1]
            )?;
        }
        if self.lacks_head {
            writeln!(f, "  the file has no classifier for this network: `train finetune` trains one on its features")?;
        }
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
