//! Options of opening a data set, and what is found.

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc};

use super::{LeftOut, Source};
use crate::Result;

/// Which part of a data set to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Split {
    /// The training split.
    #[default]
    Train,
    /// The validation split.
    Val,
    /// Both splits, train first.
    All,
}

impl Split {
    /// `train`, `val` or `all`.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Val => "val",
            Split::All => "all",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Split {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Split::Train, Split::Val, Split::All]
            .into_iter()
            .find(|split| split.name() == text)
            .ok_or_else(|| format!("unknown split `{text}`; expected train, val or all"))
    }
}

/// The layout of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SourceKind {
    /// The official archives of ImageNet, `ILSVRC2012_img_train.tar` and `ILSVRC2012_img_val.tar`.
    Archive,
    /// WebDataset shards.
    WebDataset,
    /// Parquet tables as the Hugging Face hub has them; needs the cargo feature `parquet`.
    Parquet,
    /// Class folders, with `train` and `val` above them or without.
    Folder,
    /// Kaggle's ImageNet: `ILSVRC/Data/CLS-LOC` with `LOC_val_solution.csv`.
    Kaggle,
    /// The handwritten digits that are built in.
    Digits,
    /// A table of images and labels: CSV, TSV, JSON lines.
    Table,
    /// Images without labels, or with labels in their names: one file, a folder of files, a pattern.
    Images,
}

impl SourceKind {
    /// All kinds, in the order in which a path is tried.
    pub const ALL: [SourceKind; 8] = [
        SourceKind::Digits,
        SourceKind::Archive,
        SourceKind::WebDataset,
        SourceKind::Parquet,
        SourceKind::Kaggle,
        SourceKind::Folder,
        SourceKind::Table,
        SourceKind::Images,
    ];

    /// Returns the name that `--source` accepts.
    pub fn name(self) -> &'static str {
        match self {
            SourceKind::Archive => "archive",
            SourceKind::WebDataset => "webdataset",
            SourceKind::Parquet => "parquet",
            SourceKind::Folder => "folder",
            SourceKind::Kaggle => "kaggle",
            SourceKind::Digits => "digits",
            SourceKind::Table => "table",
            SourceKind::Images => "images",
        }
    }
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SourceKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        SourceKind::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let names: Vec<_> = SourceKind::ALL.iter().map(|kind| kind.name()).collect();
            format!("unknown kind of source `{text}`; expected one of {}", names.join(", "))
        })
    }
}

/// Options of [`open`](crate::open). `OpenOptions::default()` opens the training split of any kind of data.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// The part to open.
    pub split: Split,
    /// The kind; by default it is detected.
    pub kind: Option<SourceKind>,
    /// The fraction of the training data that becomes the validation split if the data has none, drawn by class (see
    /// [`Subset::split`](super::Subset::split)). `None`: such data has no validation split.
    pub val_fraction: Option<f64>,
    /// The seed of that draw.
    pub seed: u64,
    /// Classes without training images are noted instead of refused.
    pub allow_empty_classes: bool,
    /// The folder of archive indices; `None` is `$XDG_CACHE_HOME/hearth/index` or `~/.cache/hearth/index`.
    pub index_cache: Option<PathBuf>,
    /// The columns of a table, and labels in names of files.
    pub table: TableOptions,
    /// Options for files on servers; used with the cargo feature `remote`.
    pub remote: RemoteOptions,
}

/// The columns and files of a table, and labels in names of files.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct TableOptions {
    /// Column of the images in a table, by its name, or its number if there is no header [default: guessed from the names]
    #[arg(help_heading = "Data", long, value_name = "COLUMN")]
    pub image_column: Option<String>,
    /// Column of the labels in a table [default: guessed from the names]
    #[arg(help_heading = "Data", long, value_name = "COLUMN")]
    pub label_column: Option<String>,
    /// Column of the splits in a table (train, val, test, or true and false in a column `is_valid`) [default: guessed]
    #[arg(help_heading = "Data", long, value_name = "COLUMN")]
    pub split_column: Option<String>,
    /// Folder that the images of a table are in [default: the table's folder, and its subfolders such as images/]
    #[arg(help_heading = "Data", long, value_name = "DIR")]
    pub images_root: Option<PathBuf>,
    /// Regular expression that finds the label in the name of a file, in its group or the group `label`: '^(.+)_[0-9]+'
    #[arg(help_heading = "Data", long, value_name = "REGEX", conflicts_with = "label_column")]
    pub label_from: Option<String>,
}

impl TableOptions {
    /// Whether a column or the folder of a table's images is given.
    pub fn is_of_table(&self) -> bool {
        let columns = [&self.image_column, &self.label_column, &self.split_column];
        columns.into_iter().any(Option::is_some) || self.images_root.is_some()
    }
}

/// Options for files on servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteOptions {
    /// The number of retries of a failed request, with pauses of 0.1 s, 0.2 s, 0.4 s, … 20 s.
    pub retries: u32,
    /// A disk cache of fetched data; `None` caches nothing.
    pub cache_folder: Option<PathBuf>,
    /// The largest size of the disk cache in bytes.
    pub cache_bytes: u64,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        Self { retries: 8, cache_folder: None, cache_bytes: 20_000_000_000 }
    }
}

impl OpenOptions {
    /// The options for one split, all else at its default.
    pub fn split(split: Split) -> Self {
        Self { split, ..Self::default() }
    }
}

/// The data that [`open`](crate::open) found.
#[derive(Clone)]
pub struct Opened {
    /// The samples.
    pub source: Arc<dyn Source>,
    /// The kind of data.
    pub kind: SourceKind,
    /// The split that was opened.
    pub split: Split,
    /// Notes for the user, one sentence each: empty classes, skipped files.
    pub notes: Vec<String>,
    /// The files of a folder that are left out; `notes` has them too.
    pub left_out: LeftOut,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("kind", &self.kind)
            .field("split", &self.split)
            .field("samples", &self.source.len())
            .field("classes", &self.source.classes().len())
            .field("notes", &self.notes)
            .field("left_out", &self.left_out)
            .finish()
    }
}

/// A source and notes about it.
pub(super) struct Part {
    pub source: Arc<dyn Source>,
    pub notes: Vec<String>,
    pub left_out: LeftOut,
}

impl Part {
    /// A part of which no file is left out.
    pub(super) fn new(source: impl Source + 'static, notes: Vec<String>) -> Self {
        Self { source: Arc::new(source), notes, left_out: LeftOut::default() }
    }
}

/// Opens a split lazily: the training archive is not indexed to read the validation images.
pub(super) type OpenPart<'a> = Box<dyn FnOnce() -> Result<Part> + 'a>;

/// The data at a path, before a split is selected.
pub(super) enum Found<'a> {
    /// Data with splits, or at least one of them.
    Divided { container: String, train: Option<OpenPart<'a>>, val: Option<OpenPart<'a>> },
    /// Data without.
    Whole(OpenPart<'a>),
}
