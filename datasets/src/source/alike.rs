//! Class names that people take for the same: they differ in case, in spaces or dots around them, or in their Unicode form.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
};

use runtime::text::{canonical, printable};

use super::Class;

/// What to do with class folders that are the same class.
pub(super) const MERGE: &str = "merge the folders";

/// What all names that look alike have in common.
pub(super) fn folded(name: &str) -> String {
    // Windows drops spaces and dots at the end of a name.
    canonical(name).trim().trim_end_matches('.').to_lowercase()
}

/// A note of classes in one split whose names look alike: one class more than is meant, usually. `remedy` is what to do
/// "if they are the same".
pub(super) fn note(container: &Path, ids: &[String], remedy: &str) -> Option<String> {
    let mut by_look: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for id in ids {
        by_look.entry(folded(id)).or_default().push(id);
    }
    let alike: Vec<&Vec<&str>> = by_look.values().filter(|names| names.len() > 1).collect();
    let first = alike.first()?;
    let names = first.iter().map(|name| format!("`{}`", printable(name))).collect::<Vec<_>>().join(" and ");
    let more = match alike.len() {
        1 => String::new(),
        count => format!(", as do the names of {} more", count - 1),
    };
    let what = "differ in case, spaces or Unicode form only, and are classes of their own";
    Some(format!("{}: {names} {what}{more}; {remedy} if they are the same", container.display()))
}

/// Gives the folders of another split the names of the known classes whose text is the same in another Unicode form:
/// macOS writes `é` as two characters, other systems as one.
pub(super) fn as_known<V>(
    ids: Vec<String>,
    mut folders: HashMap<String, V>,
    classes: &[Class],
) -> (Vec<String>, HashMap<String, V>) {
    let mut known: HashMap<String, Option<&str>> = HashMap::new();
    for class in classes {
        // Two classes of the same text stay apart.
        known.entry(canonical(&class.id).into_owned()).and_modify(|id| *id = None).or_insert(Some(&class.id));
    }
    let present: HashSet<String> = ids.iter().cloned().collect();
    let rename = |id: String| {
        let Some(Some(name)) = known.get(canonical(&id).as_ref()) else { return id };
        match present.contains(*name) {
            true => id,
            false => {
                if let Some(folder) = folders.remove(&id) {
                    folders.insert((*name).to_owned(), folder);
                }
                (*name).to_owned()
            }
        }
    };
    let ids = ids.into_iter().map(rename).collect();
    (ids, folders)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{OpenOptions, Split, open},
        *,
    };

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn classes_that_look_alike_are_noted() {
        assert_eq!(note(Path::new("d"), &owned(&["cat", "dog", "catfish"]), "x"), None);
        for names in [["Cat", "cat"], ["cat ", "cat"], ["cat.", "cat"], ["caf\u{e9}", "cafe\u{301}"]] {
            let note = note(Path::new("d"), &owned(&[names[0], "dog", names[1]]), "x").unwrap_or_default();
            assert!(note.contains(&format!("`{}` and `{}`", names[0], names[1])), "{note}");
        }
        let note = note(Path::new("d"), &owned(&["A", "B", "a", "b"]), "x").unwrap_or_default();
        assert!(note.contains("`A` and `a`") && note.contains("1 more"), "{note}");
    }

    #[test]
    fn a_split_from_another_system_has_the_classes_of_the_training_split() {
        let root = tempfile::tempdir().unwrap();
        for image in ["train/caf\u{e9}/1.jpg", "train/dog/1.jpg", "val/cafe\u{301}/2.jpg", "val/dog/2.jpg"] {
            let path = root.path().join(image);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, image).unwrap();
        }
        let options = |split| OpenOptions { split, ..OpenOptions::default() };
        let opened = |split| open(root.path().to_str().unwrap(), &options(split)).unwrap();
        let (train, val) = (opened(Split::Train), opened(Split::Val));
        assert_eq!(train.source.classes(), val.source.classes());
        let mut bytes = Vec::new();
        val.source.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, "val/cafe\u{301}/2.jpg".as_bytes());
        std::fs::create_dir(root.path().join("train/DOG")).unwrap();
        std::fs::write(root.path().join("train/DOG/1.jpg"), "x").unwrap();
        let notes = opened(Split::Train).notes;
        assert!(notes.iter().any(|note| note.contains("`DOG` and `dog`")), "{notes:?}");
    }

    #[test]
    fn names_of_the_same_text_take_the_known_form() {
        let class = |id: &str| Class { id: id.to_owned(), name: id.to_owned() };
        fn folders<'a>(names: &[&'a str]) -> HashMap<String, &'a str> {
            names.iter().map(|name| ((*name).to_owned(), *name)).collect()
        }
        let classes = [class("caf\u{e9}"), class("dog")];
        let names = ["cafe\u{301}", "dog"];
        let (ids, found) = as_known(owned(&names), folders(&names), &classes);
        assert_eq!(ids, ["caf\u{e9}", "dog"]);
        assert_eq!(found["caf\u{e9}"], "cafe\u{301}");
        // Both forms are there: no one is lost.
        let names = ["caf\u{e9}", "cafe\u{301}"];
        assert_eq!(as_known(owned(&names), folders(&names), &classes).0, names);
        let both = [class("caf\u{e9}"), class("cafe\u{301}")];
        assert_eq!(as_known(owned(&names[1..]), folders(&names[1..]), &both).0, names[1..]);
    }
}
