//! Tables of images and labels, and labels in names of files.
//!
//! ```text
//! path,label,split        {"file_name": "0001.jpg", "label": "cat"}        cat.0.jpg
//! images/0001.jpg,cat,train                                                dog.17.jpg
//! ```
//!
//! A table is CSV with any delimiter, in UTF-8 or UTF-16, or JSON lines. Its columns are those of the options, or guessed
//! from their names, which is noted. A name may lack its extension and the folder that all images are in. Keys are paths
//! below the folder of the images, so that a data set is the same wherever it is.
//!
//! `text` reads the text, `rows` the rows, `columns` chooses the columns, `files` finds the files, `labels` makes
//! classes; this file joins them.

mod columns;
mod files;
mod labels;
mod rows;
#[cfg(test)]
mod tests;
mod text;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use runtime::text::printable;

use self::{
    files::{Files, Located, common_folder},
    labels::LabelPattern,
    rows::{Texts, some_lines},
};
use super::{
    Class, LeftOut, LeftOutReason, Location, Source, alike, check_index,
    layout::{Role, role_in, split_name},
    names::{Labels, Names, natural_order},
    options::{Found, OpenPart, Part, TableOptions},
    read_at::read_file,
    walk::{Unreadable, readable, walk},
};
use crate::{Error, Result};

/// The most names that a message lists.
const NAMED: usize = 5;

/// No label, in a list of labels.
const NONE: u32 = u32::MAX;

/// How a table is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Syntax {
    Delimited,
    Tabbed,
    JsonLines,
}

fn syntax(name: &str) -> Option<Syntax> {
    let (_, extension) = name.rsplit_once('.')?;
    match extension.to_ascii_lowercase().as_str() {
        "csv" | "txt" => Some(Syntax::Delimited),
        "tsv" | "tab" => Some(Syntax::Tabbed),
        "jsonl" | "ndjson" => Some(Syntax::JsonLines),
        _ => None,
    }
}

/// Whether a file is a table by its name: CSV, TSV, a text, or JSON lines.
pub fn is_table_name(name: &str) -> bool {
    syntax(name).is_some()
}

/// Images as files, in the order of a table.
#[derive(Debug)]
pub struct TableSource {
    base: PathBuf,
    classes: Vec<Class>,
    names: Names,
    labels: Labels,
    /// The paths of the images whose keys are not their paths, because a name is not Unicode.
    odd_paths: Arc<HashMap<String, PathBuf>>,
}

impl TableSource {
    fn path(&self, index: usize) -> PathBuf {
        let key = self.names.get(index);
        self.odd_paths.get(&key).cloned().unwrap_or_else(|| self.base.join(key))
    }
}

impl Source for TableSource {
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
        let path = self.path(index);
        Location { container: readable(path.as_os_str()), member: None, offset: None }
    }
    fn read(&self, index: usize, buffer: &mut Vec<u8>) -> Result<()> {
        check_index(index, self.len())?;
        let path = self.path(index);
        read_file(&path, buffer).map_err(|source| Error::io(path, source))
    }
}

/// A row whose file is there.
struct Sample {
    key: String,
    /// An index into the distinct labels, or [`NONE`].
    label: u32,
    /// The line of the table; 0 where there is no table.
    line: u32,
}

/// Samples of one split, or of data without splits.
struct Portion {
    container: PathBuf,
    base: PathBuf,
    samples: Vec<Sample>,
    /// The distinct labels of the table; `None` if it has none.
    labels: Option<Arc<Vec<String>>>,
    /// The paths of the images whose keys are not their paths, because a name is not Unicode.
    odd_paths: Arc<HashMap<String, PathBuf>>,
}

/// The samples of a table or a folder by their splits, and what there is to say about them.
#[derive(Default)]
struct Listed {
    portions: BTreeMap<Option<Role>, Portion>,
    notes: Vec<String>,
    left_out: LeftOut,
}

/// Opens one table.
///
/// # Errors
/// [`Error::Io`], or [`Error::Layout`] with the line and the cause.
pub(super) fn find<'a>(table: &Path, options: &TableOptions) -> Result<Found<'a>> {
    let role = table.file_stem().and_then(|stem| role_in(&stem.to_string_lossy()));
    let listed = read_table(table, role, true, options)?;
    assemble(table, listed)
}

/// Opens the tables of a folder: one by itself, or one for each split; `None` if it has none.
///
/// # Errors
/// As [`find`]; where it is not clear which tables are meant.
pub(super) fn find_in_folder<'a>(folder: &Path, options: &TableOptions) -> Result<Option<Found<'a>>> {
    let mut by_role: BTreeMap<Option<Role>, Vec<PathBuf>> = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(|source| Error::io(folder, source))? {
        let path = entry.map_err(|source| Error::io(folder, source))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        // Texts are about the data, usually.
        let is_table = is_table_name(name) && !name.to_ascii_lowercase().ends_with(".txt") && !name.starts_with('.');
        if is_table && path.is_file() {
            let role = path.file_stem().and_then(|stem| role_in(&stem.to_string_lossy()));
            by_role.entry(role).or_default().push(path);
        }
    }
    by_role.values_mut().for_each(|paths| paths.sort_unstable());
    let mut notes = Vec::new();
    let names = |paths: &[PathBuf]| {
        let names: Vec<_> = paths.iter().map(|path| file_name(path)).collect();
        named(names.iter().map(String::as_str))
    };
    let has_train = by_role.contains_key(&Some(Role::Train));
    if has_train && let Some(others) = by_role.remove(&None) {
        notes.push(format!("{}: {} belong to no split and are left out", folder.display(), names(&others)));
    }
    if !has_train && by_role.contains_key(&None) {
        let others: Vec<_> =
            by_role.iter().filter(|(role, _)| role.is_some()).flat_map(|(_, paths)| paths.clone()).collect();
        if !others.is_empty() {
            notes.push(format!("{}: {} are left out: there is no table `train`", folder.display(), names(&others)));
        }
        by_role.retain(|role, _| role.is_none());
    }
    if by_role.contains_key(&Some(Role::Val))
        && let Some(test) = by_role.remove(&Some(Role::Test))
    {
        notes.push(format!("{}: {} left out; `val` is the other split", folder.display(), names(&test)));
    }
    if let Some(several) = by_role.values().find(|paths| paths.len() > 1) {
        let cause = format!("has several tables: {}; give the one that is meant", names(several));
        return Err(Error::layout(folder.display(), cause));
    }
    if by_role.is_empty() {
        return Ok(None);
    }
    let mut listed = Listed { notes, ..Listed::default() };
    for (role, paths) in by_role {
        for path in paths {
            let is_divided = role.is_some();
            let of_table = match read_table(&path, role, !is_divided, options) {
                Ok(of_table) => of_table,
                // Tables of test images lack labels, and their images are elsewhere.
                Err(error @ Error::Layout { .. }) if role == Some(Role::Test) && has_train => {
                    listed.notes.push(format!("{} is left out: {error}", file_name(&path)));
                    continue;
                }
                Err(error) => return Err(error),
            };
            listed.notes.extend(of_table.notes);
            listed.left_out.merge(&of_table.left_out);
            for (of, portion) in of_table.portions {
                listed.portions.insert(of.or(role), portion);
            }
        }
    }
    assemble(folder, listed).map(Some)
}

/// Opens images whose names have their labels: a folder, with splits or without, or the files of a pattern.
///
/// # Errors
/// [`Error::Io`], or [`Error::Layout`] for an expression that fits no image.
pub(super) fn find_labeled<'a>(spec: &str, pattern: &str, files: Option<Vec<PathBuf>>) -> Result<Found<'a>> {
    let folder = Path::new(spec);
    let pattern = LabelPattern::new(pattern).map_err(|cause| Error::layout("label_from", cause))?;
    let mut left_out = LeftOut::default();
    // Keys, and the paths of those that are not Unicode.
    let mut images: Vec<(String, Option<PathBuf>)> = Vec::new();
    let base = match files {
        None => {
            walk(folder, Unreadable::Fail, &mut left_out, &mut |image| {
                images.push((image.key, image.odd_path));
                ControlFlow::Continue(())
            })?;
            folder.to_owned()
        }
        Some(files) => {
            let paths: Vec<_> = files.iter().map(|path| (readable(path.as_os_str()), path)).collect();
            let common = common_folder(paths.iter().map(|(path, _)| path.as_str()));
            let odd = |path: &Path| path.to_str().is_none().then(|| path.to_owned());
            images.extend(paths.iter().map(|(shown, path)| (shown[common.len()..].to_owned(), odd(path))));
            PathBuf::from(if common.is_empty() { "." } else { &common })
        }
    };
    images.sort_by(|(a, _), (b, _)| natural_order(a, b));
    images.dedup_by(|(other, path), (first, _)| {
        let is_same = other == first;
        if let (true, Some(path)) = (is_same, path) {
            left_out.file(LeftOutReason::AmbiguousName, path);
        }
        is_same
    });

    let role_of = |key: &str| match split_name(key.split_once('/')?.0)? {
        (role, rest) if rest.is_empty() => Some(role),
        _ => None,
    };
    let has_train = images.iter().any(|(key, _)| role_of(key) == Some(Role::Train));
    let (mut others, mut unlabeled, mut found) = (0, 0, 0);
    let mut first_unlabeled = None;
    // Of each split, how many images have no label, and the first of them.
    let mut unlabeled_of: BTreeMap<Option<Role>, (usize, String)> = BTreeMap::new();
    let mut texts = Texts::default();
    let mut samples: BTreeMap<Option<Role>, Vec<Sample>> = BTreeMap::new();
    let mut odd_paths = HashMap::new();
    let count = images.len();
    for (key, odd_path) in images {
        let role = role_of(&key).filter(|_| has_train);
        if has_train && role.is_none() {
            others += 1;
            continue;
        }
        let Some(label) = pattern.label(&key) else {
            unlabeled += 1;
            left_out.file(LeftOutReason::NoLabel, &base.join(&key));
            unlabeled_of.entry(role).or_insert_with(|| (0, key.clone())).0 += 1;
            first_unlabeled.get_or_insert(key);
            continue;
        };
        texts.push(label);
        found += 1;
        let label = texts.rows[texts.rows.len() - 1];
        if let Some(path) = odd_path {
            odd_paths.insert(key.clone(), path);
        }
        samples.entry(role).or_default().push(Sample { key, label, line: 0 });
    }
    if found == 0 {
        let cause = match first_unlabeled {
            Some(first) => format!(
                "the expression of the labels fits none of {count} images, `{}` for instance",
                printable(&first)
            ),
            None => format!("no images; looked for {}", super::IMAGE_EXTENSIONS.join(", ")),
        };
        return Err(Error::layout(spec, cause));
    }
    if let Some((Some(role), (count, first))) = unlabeled_of.iter().find(|(role, _)| !samples.contains_key(role)) {
        let cause = format!(
            "the expression of the labels fits none of the {count} images of the split {}, `{}` for instance",
            role.name(),
            printable(first)
        );
        return Err(Error::layout(spec, cause));
    }
    let mut notes = Vec::new();
    if others > 0 {
        notes.push(format!("{spec}: {others} images belong to no split and are left out"));
    }
    if unlabeled > 0 {
        let first = first_unlabeled.unwrap_or_default();
        notes.push(format!(
            "{spec}: {unlabeled} of {count} images are left out: the expression of the labels does not fit their names \
             (`{}`)",
            printable(&first)
        ));
    }
    let (labels, odd_paths) = (Arc::new(texts.names), Arc::new(odd_paths));
    let portion = |samples| Portion {
        container: folder.to_owned(),
        base: base.clone(),
        samples,
        labels: Some(labels.clone()),
        odd_paths: odd_paths.clone(),
    };
    let portions = samples.into_iter().map(|(role, samples)| (role, portion(samples))).collect();
    assemble(folder, Listed { portions, notes, left_out })
}

/// Reads a table and looks up its files. `role` is the split that its name names; its column of splits is guessed only
/// where `guesses_split`.
fn read_table(path: &Path, role: Option<Role>, guesses_split: bool, options: &TableOptions) -> Result<Listed> {
    let refuse = |cause: String| Error::layout(path.display(), cause);
    let pattern = match &options.label_from {
        Some(_) if options.label_column.is_some() => {
            return Err(refuse(
                "labels are in a column or in the names of files: give label_column or label_from".into(),
            ));
        }
        Some(text) => Some(LabelPattern::new(text).map_err(refuse)?),
        None => None,
    };
    let name = file_name(path);
    let text = text::read(path)?;
    let rows = match syntax(&name).unwrap_or(Syntax::Delimited) {
        Syntax::JsonLines => rows::read_json_lines(&text, options),
        syntax => rows::read_delimited(&text, syntax == Syntax::Tabbed, options),
    };
    let mut rows = rows.map_err(refuse)?;
    drop(text);
    let mut notes = Vec::new();
    let shown = path.display();
    let roles = match (&rows.splits, &rows.split_column) {
        (Some(splits), Some((column, is_guessed))) if guesses_split || !is_guessed => {
            match roles_of(splits, column, &rows.lines) {
                Ok(roles) => Some(roles),
                Err(cause) if *is_guessed => {
                    notes.push(format!("{shown}: the column `{}` is not used: {cause}", printable(column)));
                    None
                }
                Err(cause) => return Err(refuse(cause)),
            }
        }
        _ => None,
    };
    if !rows.guess.is_empty() {
        notes.insert(0, format!("{shown}: {}", rows.guess));
    }
    if let Some(url) = rows.images.iter().find(|image| image.contains("://")) {
        return Err(refuse(format!("`{}` is a URL: download the images, and name the files", printable(url))));
    }
    let role_at = |row: usize| match (&roles, &rows.splits) {
        (Some(roles), Some(splits)) => Some(roles[splits.rows[row] as usize]),
        _ => None,
    };
    let count = rows.images.len();
    let has = |role| (0..count).any(|row| role_at(row) == Some(role));
    let leaves_test_out = roles.is_some() && has(Role::Val) && has(Role::Test);
    let test_rows = (0..count).filter(|&row| leaves_test_out && role_at(row) == Some(Role::Test)).count();
    if test_rows > 0 {
        notes.push(format!("{shown}: {test_rows} rows of the test split are left out; `val` is the other split"));
    }

    let root = match &options.images_root {
        Some(root) => {
            fs::metadata(root).map_err(|source| Error::io(root, source))?;
            root.clone()
        }
        None => path.parent().unwrap_or(Path::new("")).to_owned(),
    };
    let mut files = Files::new(&root);
    let (mut located, mut left_out) = (Vec::with_capacity(count), LeftOut::default());
    let mut missing = Vec::new();
    for (row, written) in rows.images.iter().enumerate() {
        let of_row = role_at(row);
        if leaves_test_out && of_row == Some(Role::Test) {
            continue;
        }
        let at_line = |cause: String| refuse(format!("line {}: {cause}", rows.lines[row]));
        match files.locate(written, of_row.or(role)).map_err(at_line)? {
            Located::Missing => {
                left_out.file(LeftOutReason::Missing, Path::new(written));
                missing.push(row);
            }
            file => located.push((row, file)),
        }
    }
    let some_missing = named(missing.iter().map(|&row| rows.images[row].as_str()));
    if located.is_empty() {
        return Err(refuse(format!(
            "none of its {} images is there: {some_missing}; looked in {}: name the folder of the images (images_root)",
            missing.len(),
            files.searched()
        )));
    }
    if !missing.is_empty() {
        let lines: Vec<u32> = missing.iter().map(|&row| rows.lines[row]).collect();
        notes.push(format!(
            "{shown}: {} of {} images are missing and left out: {some_missing} ({}); looked in {}",
            missing.len(),
            missing.len() + located.len(),
            some_lines(&lines),
            files.searched()
        ));
    }
    let (base, keys) = keys_of(&files, located.iter().map(|(_, file)| file)).ok_or_else(|| {
        refuse(
            "some images are below the folder of the images and some are not, and its path is not Unicode".to_owned(),
        )
    })?;

    if let Some(pattern) = &pattern {
        // Rows whose file is missing have no key.
        let mut texts = Texts::default();
        let mut of_row = vec![""; count];
        located.iter().zip(&keys).for_each(|((row, _), key)| of_row[*row] = pattern.label(key).unwrap_or_default());
        of_row.iter().for_each(|label| texts.push(label));
        rows.labels = Some(texts);
    }
    let label_at = |row: usize| match &rows.labels {
        Some(labels) if !labels.names[labels.rows[row] as usize].is_empty() => labels.rows[row],
        _ => NONE,
    };

    // The first row of each image, and the images of later rows in other splits.
    let mut first: HashMap<&str, usize> = HashMap::with_capacity(keys.len());
    let mut elsewhere: HashSet<(Option<Role>, &str)> = HashSet::new();
    let (mut conflicts, mut in_both) = (Vec::new(), Vec::new());
    let mut is_repeated = vec![false; keys.len()];
    for (at, key) in keys.iter().enumerate() {
        let Some(&earlier) = first.get(key.as_str()) else {
            first.insert(key, at);
            continue;
        };
        let (row, earlier_row) = (located[at].0, located[earlier].0);
        if label_at(row) != label_at(earlier_row) {
            conflicts.push((earlier_row, row));
        } else if role_at(row) == role_at(earlier_row) || !elsewhere.insert((role_at(row), key)) {
            is_repeated[at] = true;
        } else {
            in_both.push(row);
        }
    }
    if let Some(&(a, b)) = conflicts.first() {
        let label = |row: usize| match (label_at(row), &rows.labels) {
            (NONE, _) | (_, None) => "no label".to_owned(),
            (label, Some(labels)) => format!("`{}`", printable(&labels.names[label as usize])),
        };
        let (line, other) = (rows.lines[a], rows.lines[b]);
        let image = printable(&rows.images[b]);
        let more = match conflicts.len() {
            1 => String::new(),
            count => format!(" ({count} rows contradict earlier ones)"),
        };
        return Err(refuse(format!(
            "`{image}` has {} in line {line} and {} in line {other}{more}: correct the labels; an image has one",
            label(a),
            label(b)
        )));
    }
    let repeated: Vec<u32> =
        (0..keys.len()).filter(|&at| is_repeated[at]).map(|at| rows.lines[located[at].0]).collect();
    if !repeated.is_empty() {
        notes.push(format!(
            "{shown}: {} rows repeat an image with the same label and are left out ({})",
            repeated.len(),
            some_lines(&repeated)
        ));
    }
    if !in_both.is_empty() {
        let images = named(in_both.iter().map(|&row| rows.images[row].as_str()));
        notes.push(format!("{shown}: {} images are in several splits: {images}", in_both.len()));
    }

    let mut samples: BTreeMap<Option<Role>, Vec<Sample>> = BTreeMap::new();
    drop((first, elsewhere));
    for ((at, key), (row, _)) in keys.into_iter().enumerate().zip(&located) {
        if !is_repeated[at] {
            let sample = Sample { key, label: label_at(*row), line: rows.lines[*row] };
            samples.entry(role_at(*row)).or_default().push(sample);
        }
    }
    let labels = rows.labels.map(|labels| Arc::new(labels.names));
    let odd_paths = Arc::default();
    let portion = |samples| Portion {
        container: path.to_owned(),
        base: base.clone(),
        samples,
        labels: labels.clone(),
        odd_paths: Arc::clone(&odd_paths),
    };
    let portions = samples.into_iter().map(|(role, samples)| (role, portion(samples))).collect();
    Ok(Listed { portions, notes, left_out })
}

/// The folder that keys are relative to, and the keys: the folder of the images, or, where some are elsewhere, the longest
/// folder that has all of them. `None` where an absolute path cannot be written.
fn keys_of<'a>(files: &Files, located: impl Iterator<Item = &'a Located> + Clone) -> Option<(PathBuf, Vec<String>)> {
    let below = |file: &Located| match file {
        Located::Below(key) => Some(key.clone()),
        _ => None,
    };
    if let Some(keys) = located.clone().map(below).collect() {
        return Some((files.root().to_owned(), keys));
    }
    let paths: Vec<String> = located.map(|file| files.absolute(file)).collect::<Option<_>>()?;
    let common = common_folder(paths.iter().map(String::as_str));
    let keys = paths.iter().map(|path| path[common.len()..].to_owned()).collect();
    Some((PathBuf::from(common), keys))
}

/// The split that each distinct cell of a column names; of `is_valid` and the like, true and false.
///
/// # Errors
/// Returns the cells that name none, with a line.
fn roles_of(splits: &Texts, column: &str, lines: &[u32]) -> Result<Vec<Role>, String> {
    let truth = |text: &String| match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "yes" | "1" | "1.0" => Some(true),
        "false" | "f" | "no" | "0" | "0.0" => Some(false),
        _ => None,
    };
    let of_column = || role_in(column).or_else(|| role_in(column.get(2..).filter(|_| column.starts_with("is"))?));
    if let Some(role) = of_column()
        && let Some(truths) = splits.names.iter().map(truth).collect::<Option<Vec<_>>>()
    {
        let other = if role == Role::Train { Role::Val } else { Role::Train };
        return Ok(truths.into_iter().map(|is_role| if is_role { role } else { other }).collect());
    }
    let roles: Vec<Option<Role>> = splits.names.iter().map(|name| role_in(name)).collect();
    if let Some(roles) = roles.iter().copied().collect() {
        return Ok(roles);
    }
    let unknown: Vec<usize> = (0..roles.len()).filter(|&at| roles[at].is_none()).collect();
    let rows: Vec<u32> =
        (0..lines.len()).filter(|&row| roles[splits.rows[row] as usize].is_none()).map(|row| lines[row]).collect();
    Err(format!(
        "{} in it is no split ({}); expected train, val or test",
        named(unknown.iter().map(|&at| splits.names[at].as_str())),
        some_lines(&rows)
    ))
}

/// The split that each cell of a column names.
///
/// # Errors
/// Returns the cells that name none, with their rows, from 1.
#[cfg(feature = "parquet")]
pub(super) fn roles_of_cells(cells: &[String], column: &str) -> Result<Vec<Role>, String> {
    let mut texts = Texts::default();
    cells.iter().for_each(|cell| texts.push(cell));
    let rows: Vec<u32> = (1..=cells.len() as u32).collect();
    let roles = roles_of(&texts, column, &rows)?;
    Ok(texts.rows.iter().map(|&text| roles[text as usize]).collect())
}

/// Makes the splits of what was listed; the classes are those of the training split if there is one.
fn assemble<'a>(root: &Path, listed: Listed) -> Result<Found<'a>> {
    let Listed { mut portions, mut notes, left_out } = listed;
    if let Some(whole) = portions.remove(&None) {
        let classes = whole.classes()?;
        notes.extend(alike_note(&whole, &classes));
        let part = Part { source: Arc::new(whole.into_source(classes)?), notes, left_out };
        return Ok(Found::Whole(Box::new(move || Ok(part))));
    }
    let mut take = |role| portions.remove(&Some(role));
    let (train, mut val, test) = (take(Role::Train), take(Role::Val), take(Role::Test));
    let shown = root.display();
    if let Some(test) = test {
        match (&train, &val) {
            (_, Some(_)) => notes.push(format!("{shown}: the test split is left out; `val` is the other split")),
            (Some(train), None) if !test.is_labeled()? && train.is_labeled()? => {
                notes.push(format!("{shown}: the test split is left out: it has no labels"));
            }
            (train, None) => {
                if train.is_some() {
                    notes.push(format!(
                        "{shown}: `test` is the validation split, which selects the best epoch in training: there is no \
                         `val`"
                    ));
                }
                val = Some(test);
            }
        }
    }
    let Some(first) = train.as_ref().or(val.as_ref()) else {
        return Err(Error::layout(shown, "has no rows"));
    };
    let classes = first.classes()?;
    notes.extend(alike_note(first, &classes));
    let open = |portion: Portion| {
        let (classes, notes, left_out) = (classes.clone(), notes.clone(), left_out.clone());
        Box::new(move || Ok(Part { source: Arc::new(portion.into_source(classes)?), notes, left_out })) as OpenPart<'a>
    };
    Ok(Found::Divided { container: shown.to_string(), train: train.map(open), val: val.map(open) })
}

fn alike_note(portion: &Portion, classes: &[Class]) -> Option<String> {
    let ids: Vec<String> = classes.iter().map(|class| class.id.clone()).collect();
    alike::note(&portion.container, &ids, "give them one name")
}

impl Portion {
    /// Whether the samples have labels.
    ///
    /// # Errors
    /// [`Error::Layout`] where some have and some do not.
    fn is_labeled(&self) -> Result<bool> {
        let without: Vec<u32> =
            self.samples.iter().filter(|sample| sample.label == NONE).map(|sample| sample.line).collect();
        if without.is_empty() || without.len() == self.samples.len() {
            return Ok(without.is_empty());
        }
        let cause = format!(
            "{} of {} rows have no label ({}); label them, or remove the rows",
            without.len(),
            self.samples.len(),
            some_lines(&without)
        );
        Err(Error::layout(self.container.display(), cause))
    }

    /// The classes of the labels that occur; none if there are no labels.
    fn classes(&self) -> Result<Vec<Class>> {
        let Some(labels) = self.labels.as_ref().filter(|_| !self.samples.is_empty()) else { return Ok(Vec::new()) };
        if !self.is_labeled()? {
            return Ok(Vec::new());
        }
        let mut occurs = vec![false; labels.len()];
        self.samples.iter().for_each(|sample| occurs[sample.label as usize] = true);
        Ok(labels::classes(labels.iter().zip(&occurs).filter(|(_, occurs)| **occurs).map(|(label, _)| label.as_str())))
    }

    /// The samples under classes that are known.
    ///
    /// # Errors
    /// [`Error::Layout`] for labels that are none of the classes.
    fn into_source(self, classes: Vec<Class>) -> Result<TableSource> {
        let labels = match (&self.labels, self.is_labeled()?) {
            (Some(labels), true) if !classes.is_empty() => {
                // The same text in another Unicode form is the same class.
                let (ids, _) = alike::as_known(labels.to_vec(), HashMap::<_, ()>::new(), &classes);
                let by_id: HashMap<&str, u32> = classes.iter().map(|class| class.id.as_str()).zip(0..).collect();
                let known: Vec<Option<u32>> = ids.iter().map(|id| by_id.get(id.as_str()).copied()).collect();
                let of = |sample: &Sample| known[sample.label as usize];
                if self.samples.iter().any(|sample| of(sample).is_none()) {
                    return Err(self.unknown_labels(&ids, &known, &classes));
                }
                Labels::PerSample(self.samples.iter().filter_map(of).collect())
            }
            (_, false) if !classes.is_empty() => {
                let cause = "the validation split has no labels while the training split has";
                return Err(Error::layout(self.container.display(), cause));
            }
            _ => Labels::Absent,
        };
        let mut names = Names::default();
        let keys: Vec<&str> = self.samples.iter().map(|sample| sample.key.as_str()).collect();
        names.push_group("", &keys)?;
        names.shrink_to_fit();
        let odd_paths = self.odd_paths.clone();
        Ok(TableSource { base: self.base, classes, names, labels, odd_paths })
    }

    /// The error for labels that the training split lacks.
    fn unknown_labels(&self, ids: &[String], known: &[Option<u32>], classes: &[Class]) -> Error {
        let lines: Vec<u32> = self
            .samples
            .iter()
            .filter(|sample| known[sample.label as usize].is_none())
            .map(|sample| sample.line)
            .collect();
        let used: HashSet<u32> = self.samples.iter().map(|sample| sample.label).collect();
        let unknown: Vec<&str> = (0..ids.len())
            .filter(|&at| known[at].is_none() && used.contains(&(at as u32)))
            .map(|at| ids[at].as_str())
            .collect();
        let alike = |id: &&str| {
            classes.iter().find(|class| alike::folded(&class.id) == alike::folded(id)).map(|class| class.id.as_str())
        };
        let remedy = match unknown.iter().find_map(alike) {
            Some(class) => {
                format!("it has `{}`, which differs in case or spaces: give both the same name", printable(class))
            }
            None => "add images of them there, or remove them here".to_owned(),
        };
        let at = if lines.iter().all(|&line| line == 0) { String::new() } else { format!(" ({})", some_lines(&lines)) };
        let cause = format!("the training split has no label {}{at}; {remedy}", named(unknown));
        Error::layout(self.container.display(), cause)
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, readable)
}

/// Up to [`NAMED`] names in backquotes.
fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut names = names.into_iter();
    let shown: Vec<_> = names.by_ref().take(NAMED).map(|name| format!("`{}`", printable(name))).collect();
    match names.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
