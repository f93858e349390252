//! Recognizes splits by the names of folders and shards: `Training`, `test_set`, `seg_train`, `val2017`.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The split that a name denotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Role {
    Train,
    Val,
    Test,
}

impl Role {
    /// Returns the split's usual name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
        }
    }
}

const ROLES: [(&str, Role); 11] = [
    ("train", Role::Train),
    ("training", Role::Train),
    ("val", Role::Val),
    ("valid", Role::Val),
    ("validate", Role::Val),
    ("validation", Role::Val),
    ("eval", Role::Val),
    ("evaluation", Role::Val),
    ("test", Role::Test),
    ("testing", Role::Test),
    ("tst", Role::Test),
];

/// Words beside a split's name that carry no information.
const FILLERS: [&str; 18] = [
    "set", "sets", "split", "data", "dataset", "datasets", "image", "images", "img", "imgs", "picture", "pictures",
    "photo", "photos", "folder", "jpg", "jpeg", "png",
];

/// Returns the split of a name and what else the name says: nothing for `train`, `Training_Set` and `val2017`, `seg` for
/// `seg_train`. `None` for a name without a split's, or with several.
pub(super) fn split_name(name: &str) -> Option<(Role, String)> {
    let (mut role, mut rest) = (None, Vec::new());
    for word in words(name) {
        match role_of(&word) {
            Some(found) if role.is_none() => role = Some(found),
            Some(_) => return None,
            None if is_filler(&word) => {}
            None => rest.push(word),
        }
    }
    Some((role?, rest.join(" ")))
}

/// Returns the folder of another split beside a folder that is a training split: `data/val` beside `data/train`.
pub fn split_beside(folder: &Path) -> Option<PathBuf> {
    let folder = fs::canonicalize(folder).ok()?;
    let (role, rest) = split_name(folder.file_name()?.to_str()?)?;
    let other = |path: PathBuf| {
        let (other, its_rest) = split_name(path.file_name()?.to_str()?)?;
        (role == Role::Train && other != role && its_rest == rest && path.is_dir()).then_some((other, path))
    };
    let beside = fs::read_dir(folder.parent()?).ok()?.filter_map(|entry| other(entry.ok()?.path()));
    beside.min().map(|(_, path)| path)
}

/// Returns the first split in a name: of `imagenet-train-0000.tar`, the training split.
pub(super) fn role_in(name: &str) -> Option<Role> {
    words(name).iter().find_map(|word| role_of(word))
}

/// Whether a name has a generic word for data or the name of a split in it: `HAM10000_images_part_1`, `train-jpg`.
pub(super) fn names_data(name: &str) -> bool {
    words(name).iter().any(|word| role_of(word).is_some() || FILLERS.contains(&word.as_str()))
}

/// Whether a name is a generic word for data, such as `images` or `data_2017`. A number alone can be a class.
pub(super) fn is_filler_name(name: &str) -> bool {
    let words = words(name);
    words.iter().all(|word| is_filler(word)) && words.iter().any(|word| FILLERS.contains(&word.as_str()))
}

/// `train`, but also `trainset` and `testimages`.
fn role_of(word: &str) -> Option<Role> {
    let is = |&&(name, _): &&(&str, Role)| {
        word.strip_prefix(name).is_some_and(|rest| rest.is_empty() || FILLERS.contains(&rest))
    };
    ROLES.iter().find(is).map(|&(_, role)| role)
}

fn is_filler(word: &str) -> bool {
    FILLERS.contains(&word) || word.bytes().all(|byte| byte.is_ascii_digit())
}

/// The words of a name in lower case: `TrainImages_2017a` has `train`, `images`, `2017` and `a`.
fn words(name: &str) -> Vec<String> {
    let (mut words, mut word, mut before) = (Vec::new(), String::new(), ' ');
    for c in name.chars() {
        let begins = (before.is_lowercase() && c.is_uppercase()) || before.is_numeric() != c.is_numeric();
        if (begins || !c.is_alphanumeric()) && !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if c.is_alphanumeric() {
            word.extend(c.to_lowercase());
        }
        before = c;
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_split_beside_a_training_split_is_found() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for folder in ["train", "test", "Val", "seg_train", "cats"] {
            fs::create_dir(at(folder)).unwrap();
        }
        let beside = |name: &str| split_beside(&at(name)).map(|path| path.file_name().unwrap().to_owned());
        assert_eq!(beside("train"), Some("Val".into()), "before the test split");
        for none in ["Val", "seg_train", "cats", "nothing"] {
            assert_eq!(beside(none), None, "{none}");
        }
    }

    #[test]
    fn splits_are_recognized_in_any_case_and_in_the_usual_variants() {
        for (names, role) in [
            (
                &["train", "Training", "TRAIN", "training_set", "train_images", "TrainImages", "trainset", "train2017"]
                    [..],
                Role::Train,
            ),
            (&["val", "Valid", "VALIDATION", "validation-set", "valset", "val_images", "eval", "Val 2"], Role::Val),
            (&["test", "Testing", "test_set", "TestSet", "testimages", "test.data"], Role::Test),
        ] {
            for name in names {
                assert_eq!(split_name(name), Some((role, String::new())), "{name}");
            }
        }
        assert_eq!(split_name("seg_train"), Some((Role::Train, "seg".into())));
        assert_eq!(split_name("chest_xray-TEST"), Some((Role::Test, "chest xray".into())));
        for name in ["trainer", "contest", "testament", "valley", "trainval", "train_test", "images", "", "invalid"] {
            assert_eq!(split_name(name), None, "{name}");
        }
        assert_eq!(role_in("imagenet-validation-0000.tar"), Some(Role::Val));
        assert_eq!(role_in("shard-0000.tar"), None);
        assert!(
            is_filler_name("Images") && is_filler_name("data_2017") && !is_filler_name("cats") && !is_filler_name("7")
        );
        assert!(names_data("HAM10000_images_part_1") && names_data("train-jpg") && !names_data("cats_2"));
    }
}
