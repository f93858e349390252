//! Files that a source leaves out, counted by reason and extension.

use std::{collections::BTreeMap, fmt, path::Path};

use runtime::text::printable;
use serde::{Serialize, Serializer, ser::SerializeSeq};

/// The reason for leaving a file out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum LeftOutReason {
    /// An image in a format that cannot be decoded.
    UnsupportedFormat,
    /// A link to what does not exist, or that may not be followed.
    DeadLink,
    /// A link to a folder above, or to one that has been entered already.
    LinkLoop,
    /// A pipe, a socket or a device.
    Special,
    /// A folder that may not be read.
    Unreadable,
    /// A file whose name is not Unicode and looks like another one's when it is written out.
    AmbiguousName,
    /// An image or a folder whose name begins with a dot, or a folder of an operating system or
    /// of this program.
    Hidden,
    /// A file without an image's extension.
    NoImage,
    /// An image of a table that is not there.
    Missing,
    /// An image whose name has no label, where labels are in the names.
    NoLabel,
}

impl LeftOutReason {
    fn text(self) -> &'static str {
        match self {
            Self::UnsupportedFormat => "format that is not supported; convert it to JPEG or PNG",
            Self::DeadLink => "dead link",
            Self::LinkLoop => "link to a folder above or to one that is included already",
            Self::Special => "pipe, socket or device",
            Self::Unreadable => "folder that may not be read",
            Self::AmbiguousName => "name that is not Unicode and equals another one",
            Self::Hidden => "hidden",
            Self::NoImage => "no image by its name",
            Self::Missing => "in the table and missing",
            Self::NoLabel => "no label in its name",
        }
    }
}

/// The extension that stands for a folder.
const FOLDER: &str = "folder";

/// Files that a source leaves out, counted by reason and extension. Its text is one line, empty if there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut(BTreeMap<(LeftOutReason, String), (usize, String)>);

/// One line of [`LeftOut`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOutGroup<'a> {
    /// Why.
    pub reason: LeftOutReason,
    /// The extension with its dot, in lower case; empty where there is none, `folder` for folders.
    pub extension: &'a str,
    /// The number of files.
    pub count: usize,
    /// One of them.
    pub example: &'a str,
}

impl LeftOut {
    /// The number of files and folders.
    pub fn count(&self) -> usize {
        self.0.values().map(|(count, _)| count).sum()
    }

    /// Whether nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The counts by reason and extension.
    pub fn groups(&self) -> impl Iterator<Item = LeftOutGroup<'_>> {
        self.0.iter().map(|((reason, extension), (count, example))| LeftOutGroup {
            reason: *reason,
            extension,
            count: *count,
            example,
        })
    }

    /// Adds a file, a link or a device.
    pub(super) fn file(&mut self, reason: LeftOutReason, path: &Path) {
        let extension =
            path.extension().map_or_else(String::new, |e| format!(".{}", e.to_string_lossy().to_lowercase()));
        self.add(reason, extension, path);
    }

    /// Adds a folder.
    pub(super) fn folder(&mut self, reason: LeftOutReason, path: &Path) {
        self.add(reason, FOLDER.to_owned(), path);
    }

    fn add(&mut self, reason: LeftOutReason, extension: String, path: &Path) {
        let (count, _) = self.0.entry((reason, extension)).or_insert_with(|| (0, path.display().to_string()));
        *count += 1;
    }

    /// Adds what another source leaves out.
    pub fn merge(&mut self, other: &LeftOut) {
        for (key, (count, example)) in &other.0 {
            let (sum, _) = self.0.entry(key.clone()).or_insert_with(|| (0, example.clone()));
            *sum += count;
        }
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = None;
        for LeftOutGroup { reason, extension, count, example } in self.groups() {
            if last != Some(reason) {
                let separator = if last.is_some() { "; " } else { "" };
                write!(f, "{separator}{}: ", reason.text())?;
            } else {
                f.write_str(", ")?;
            }
            last = Some(reason);
            let extension = match extension {
                "" => "without extension".into(),
                FOLDER if count != 1 => "folders".into(),
                extension => printable(extension),
            };
            write!(f, "{count} {extension} ({})", printable(example))?;
        }
        Ok(())
    }
}

impl Serialize for LeftOut {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        self.groups().try_for_each(|group| list.serialize_element(&group))?;
        list.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_by_reason_and_extension_on_one_line() {
        let mut left_out = LeftOut::default();
        assert!(left_out.is_empty() && left_out.to_string().is_empty());
        for name in ["b.HEIC", "a.heic", "x.svg"] {
            left_out.file(LeftOutReason::UnsupportedFormat, Path::new(name));
        }
        let mut other = LeftOut::default();
        other.file(LeftOutReason::NoImage, Path::new("odd\nname"));
        other.folder(LeftOutReason::Hidden, Path::new("__MACOSX"));
        other.folder(LeftOutReason::Hidden, Path::new(".git"));
        left_out.merge(&other);
        assert_eq!(left_out.count(), 6);
        assert_eq!(
            left_out.to_string(),
            "format that is not supported; convert it to JPEG or PNG: 2 .heic (b.HEIC), 1 .svg (x.svg); hidden: \
             2 folders (__MACOSX); no image by its name: 1 without extension (odd\\nname)"
        );
        let json = serde_json::to_value(&left_out).unwrap();
        let heic = serde_json::json!(
            { "reason": "unsupported-format", "extension": ".heic", "count": 2, "example": "b.HEIC" }
        );
        assert_eq!(json[0], heic);
    }
}
