//! The files that a table names: relative to the folder of the images or to its obvious subfolders, with an extension or
//! without.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use runtime::text::printable;

use crate::source::{
    is_image_name,
    layout::{Role, names_data, role_in},
};

/// The most subfolders that are searched.
const MAX_SUBFOLDERS: usize = 64;

/// The names of the files in a folder.
#[derive(Default)]
struct Names {
    names: HashSet<String>,
    /// The names of images without their extensions; made when a name without one is looked up.
    stems: Option<HashMap<String, Vec<String>>>,
}

/// A file that a table names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Located {
    /// The path below the folder of the images, with `/` between folders.
    Below(String),
    /// An absolute path elsewhere.
    Elsewhere(String),
    /// No such file.
    Missing,
}

/// The folder of the images, listed folder by folder as names are looked up.
pub struct Files {
    root: PathBuf,
    /// The absolute path of the root, without `.` and `..`, with `/` at its end.
    absolute: Option<String>,
    /// Subfolders that names may be relative to, and their splits.
    subfolders: Vec<(String, Option<Role>)>,
    listed: HashMap<String, Option<Names>>,
}

impl Files {
    pub fn new(root: &Path) -> Self {
        let root = if root.as_os_str().is_empty() { Path::new(".") } else { root };
        let absolute = std::path::absolute(root).ok().and_then(|path| {
            let path = normal(&path.to_str()?.replace('\\', "/"))?;
            Some(format!("{}/", path.trim_end_matches('/')))
        });
        let mut subfolders: Vec<_> = fs::read_dir(root)
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let name = entry.file_name().into_string().ok()?;
                (names_data(&name) && entry.path().is_dir()).then(|| (name.clone(), role_in(&name)))
            })
            .collect();
        subfolders.sort();
        subfolders.truncate(MAX_SUBFOLDERS);
        Self { root: root.to_owned(), absolute, subfolders, listed: HashMap::new() }
    }

    /// Where names were looked up, for messages.
    pub fn searched(&self) -> String {
        let folders = self.subfolders.iter().map(|(name, _)| format!(", {}", printable(name)));
        format!("{}{}", self.root.display(), folders.collect::<String>())
    }

    /// Returns the path of a sample at `located`, and the folder that keys are relative to.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The absolute path of a file.
    pub fn absolute(&self, located: &Located) -> Option<String> {
        match located {
            Located::Below(key) => Some(format!("{}{key}", self.absolute.as_ref()?)),
            Located::Elsewhere(path) => Some(path.clone()),
            Located::Missing => None,
        }
    }

    /// Looks a name up. Of subfolders, that of the row's split comes first.
    ///
    /// # Errors
    /// Returns the cause and the remedy where several files could be meant.
    pub fn locate(&mut self, written: &str, role: Option<Role>) -> Result<Located, String> {
        let found = self.locate_path(written, role)?;
        match found {
            Located::Missing if written.contains('\\') => self.locate_path(&written.replace('\\', "/"), role),
            found => Ok(found),
        }
    }

    fn locate_path(&mut self, written: &str, role: Option<Role>) -> Result<Located, String> {
        if Path::new(written).is_absolute() {
            let Some(path) = normal(written) else { return Ok(Located::Missing) };
            return self.locate_absolute(&path);
        }
        let Some(path) = normal(written) else {
            // It begins above the root.
            let Some(absolute) = &self.absolute else { return Ok(Located::Missing) };
            let Some(path) = normal(&format!("{absolute}{written}")) else { return Ok(Located::Missing) };
            return self.locate_absolute(&path);
        };
        if let Some(key) = self.file(&path)? {
            return Ok(Located::Below(key));
        }
        let role = role.unwrap_or(Role::Train);
        let rank = |of: Option<Role>| match of {
            Some(of) if of == role => 0,
            None => 1,
            Some(_) => 2,
        };
        for wanted in 0..3 {
            let mut found = Vec::new();
            for at in 0..self.subfolders.len() {
                let (name, of) = &self.subfolders[at];
                if rank(*of) == wanted {
                    let path = format!("{name}/{path}");
                    found.extend(self.file(&path)?);
                }
            }
            match &found[..] {
                [] => {}
                [key] => return Ok(Located::Below(key.clone())),
                [first, second, ..] => {
                    return Err(format!(
                        "`{}` could be `{}` or `{}`: name the folder of the images (images_root), or write the folders \
                         into the table",
                        printable(written),
                        printable(first),
                        printable(second)
                    ));
                }
            }
        }
        Ok(Located::Missing)
    }

    fn locate_absolute(&mut self, path: &str) -> Result<Located, String> {
        if let Some(below) = self.absolute.as_ref().and_then(|root| path.strip_prefix(root.as_str())) {
            let below = below.to_owned();
            return Ok(self.file(&below)?.map_or(Located::Missing, Located::Below));
        }
        Ok(self.file(path)?.map_or(Located::Missing, Located::Elsewhere))
    }

    /// The path of a file with its extension; `None` if there is no such file.
    fn file(&mut self, path: &str) -> Result<Option<String>, String> {
        let (folder, name) = path.rsplit_once('/').map_or(("", path), |(folder, name)| (folder, name));
        if name.is_empty() {
            return Ok(None);
        }
        let is_absolute = path.starts_with('/') || Path::new(path).is_absolute();
        if !self.listed.contains_key(folder) {
            let at = match (is_absolute, folder) {
                (true, "") => PathBuf::from("/"),
                (true, folder) => PathBuf::from(folder),
                (false, folder) => self.root.join(folder),
            };
            self.listed.insert(folder.to_owned(), list(&at));
        }
        let Some(Some(names)) = self.listed.get_mut(folder) else { return Ok(None) };
        if names.names.contains(name) {
            return Ok(Some(path.to_owned()));
        }
        if is_image_name(name) {
            return Ok(None);
        }
        match names.with_extension(name) {
            [] => Ok(None),
            [one] => Ok(Some(format!("{}{one}", &path[..path.len() - name.len()]))),
            [first, second, ..] => Err(format!(
                "`{}` could be `{}` or `{}`: write the extensions into the table",
                printable(path),
                printable(first),
                printable(second)
            )),
        }
    }
}

impl Names {
    /// The images of a name without an extension.
    fn with_extension(&mut self, stem: &str) -> &[String] {
        let names = &self.names;
        let stems = self.stems.get_or_insert_with(|| {
            let mut stems: HashMap<String, Vec<String>> = HashMap::new();
            for name in names.iter().filter(|name| is_image_name(name)) {
                let stem = name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem);
                stems.entry(stem.to_owned()).or_default().push(name.clone());
            }
            stems.values_mut().for_each(|names| names.sort_unstable());
            stems
        });
        stems.get(stem).map_or(&[], Vec::as_slice)
    }
}

/// The files in a folder, links to files among them; `None` for a folder that cannot be read.
fn list(folder: &Path) -> Option<Names> {
    let mut names = HashSet::new();
    for entry in fs::read_dir(folder).ok()? {
        let Ok(entry) = entry else { continue };
        let is_file = match entry.file_type() {
            Ok(kind) if kind.is_symlink() => fs::metadata(entry.path()).is_ok_and(|metadata| metadata.is_file()),
            Ok(kind) => kind.is_file(),
            Err(_) => false,
        };
        if let (true, Ok(name)) = (is_file, entry.file_name().into_string()) {
            names.insert(name);
        }
    }
    Some(Names { names, stems: None })
}

/// A path without `.`, `..` and repeated slashes; `None` for one that ends above its beginning.
fn normal(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    let root = if path.starts_with('/') { "/" } else { "" };
    Some(format!("{root}{}", parts.join("/")))
}

/// The longest folder that all paths are in, with `/` at its end.
pub fn common_folder<'a>(mut paths: impl Iterator<Item = &'a str>) -> String {
    let Some(first) = paths.next() else { return String::new() };
    let mut length = first.rfind('/').map_or(0, |slash| slash + 1);
    for path in paths {
        let same = first.bytes().take(length).zip(path.bytes()).take_while(|(a, b)| a == b).count();
        length = first.as_bytes()[..same].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    }
    first[..length].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        root
    }

    #[test]
    fn names_are_found_with_and_without_extensions_and_subfolders() {
        let root = folder(&[
            "a.jpg",
            "images/b.PNG",
            "images/v1.2.jpg",
            "HAM10000_images_part_1/c.jpg",
            "train/1.jpg",
            "test/1.jpg",
            "cats/d.jpg",
        ]);
        let mut files = Files::new(root.path());
        let below = |path: &str| Ok(Located::Below(path.to_owned()));
        for (written, found) in [
            ("a.jpg", "a.jpg"),
            ("./a.jpg", "a.jpg"),
            ("a", "a.jpg"),
            ("b.PNG", "images/b.PNG"),
            ("b", "images/b.PNG"),
            ("images/b", "images/b.PNG"),
            ("images\\b.PNG", "images/b.PNG"),
            ("v1.2", "images/v1.2.jpg"),
            ("c", "HAM10000_images_part_1/c.jpg"),
            ("cats/../cats//d.jpg", "cats/d.jpg"),
            ("1.jpg", "train/1.jpg"),
        ] {
            assert_eq!(files.locate(written, None), below(found), "{written}");
        }
        assert_eq!(files.locate("1", Some(Role::Test)), below("test/1.jpg"));
        for missing in ["d.jpg", "cats", "", "..", "b.jpg", "a.jpg/x", "../../../../../../../x.jpg"] {
            assert_eq!(files.locate(missing, None), Ok(Located::Missing), "{missing}");
        }
    }

    #[test]
    fn absolute_paths_are_below_the_root_or_elsewhere() {
        let (root, other) = (folder(&["images/a.jpg"]), folder(&["b.jpg"]));
        let mut files = Files::new(root.path());
        let at = |folder: &tempfile::TempDir, name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        assert_eq!(files.locate(&at(&root, "images/a.jpg"), None), Ok(Located::Below("images/a.jpg".into())));
        assert_eq!(files.locate(&at(&other, "b.jpg"), None), Ok(Located::Elsewhere(at(&other, "b.jpg"))));
        let beside = format!("../{}/b", other.path().file_name().unwrap().to_str().unwrap());
        assert_eq!(files.locate(&beside, None), Ok(Located::Elsewhere(at(&other, "b.jpg"))));
        assert_eq!(files.locate(&at(&other, "c.jpg"), None), Ok(Located::Missing));
    }

    #[test]
    fn what_could_be_two_files_is_refused() {
        let root = folder(&["images/a.jpg", "photos/a.jpg", "b.jpg", "b.png"]);
        let mut files = Files::new(root.path());
        let error = files.locate("a.jpg", None).unwrap_err();
        assert!(error.contains("images/a.jpg") && error.contains("photos/a.jpg") && error.contains("images_root"));
        assert!(files.locate("b", None).unwrap_err().contains("`b.jpg` or `b.png`"));
        assert_eq!(files.locate("photos/a.jpg", None), Ok(Located::Below("photos/a.jpg".into())));
    }

    #[test]
    fn the_common_folder_ends_between_folders() {
        let common = |paths: &[&str]| common_folder(paths.iter().copied());
        assert_eq!(common(&["/data/x/1.jpg", "/data/xy/2.jpg"]), "/data/");
        assert_eq!(common(&["/data/x/1.jpg"]), "/data/x/");
        assert_eq!(common(&["/é/a", "/è/b"]), "/");
        assert_eq!(common(&[]), "");
    }
}
