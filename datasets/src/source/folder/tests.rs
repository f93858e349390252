//! Layouts of folders, and what is said of wrong ones.

use std::{fs, path::Path};

use crate::{
    Error, Result,
    source::{LeftOutReason, OpenOptions, Opened, Source, SourceKind, Split, open},
};

/// Creates a folder with the given files; each contains its own path.
fn tree(files: &[&str]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for file in files {
        let path = root.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, file).unwrap();
    }
    root
}

fn open_at(root: &Path, options: &OpenOptions) -> Result<Opened> {
    open(root.to_str().unwrap(), options)
}

fn keys(source: &dyn Source) -> Vec<String> {
    (0..source.len()).map(|index| source.key(index).into_owned()).collect()
}

fn labels(source: &dyn Source) -> Vec<Option<u32>> {
    (0..source.len()).map(|index| source.label(index)).collect()
}

#[test]
fn splits_are_read_with_sorted_classes_and_human_names() {
    let root = tree(&[
        "train/n02085620/b.JPEG",
        "train/n02085620/deep/a.jpg",
        "train/n01440764/10.png",
        "train/n01440764/9.Tiff",
        "train/n01440764/.hidden.png",
        "train/n01440764/notes.txt",
        "train/.git/x.png",
        "val/n02085620/v.webp",
    ]);
    let train = open_at(root.path(), &OpenOptions::default()).unwrap();
    assert_eq!(train.kind, SourceKind::Folder);
    let names: Vec<_> = train.source.classes().iter().map(|class| class.name.as_str()).collect();
    assert_eq!(names, ["tench", "Chihuahua"]);
    let expected =
        ["train/n01440764/10.png", "train/n01440764/9.Tiff", "train/n02085620/b.JPEG", "train/n02085620/deep/a.jpg"];
    assert_eq!(keys(&train.source), expected);
    assert_eq!(labels(&train.source), [Some(0), Some(0), Some(1), Some(1)]);
    let mut bytes = vec![0; 99];
    train.source.read(3, &mut bytes).unwrap();
    assert_eq!(bytes, b"train/n02085620/deep/a.jpg");
    assert!(matches!(train.source.read(4, &mut bytes), Err(Error::OutOfRange { index: 4, len: 4 })));

    let val = open_at(root.path(), &OpenOptions::split(Split::Val)).unwrap();
    assert_eq!((keys(&val.source), labels(&val.source)), (vec!["val/n02085620/v.webp".to_owned()], vec![Some(1)]));
    assert_eq!(val.notes.len(), 1, "the class without validation images is noted: {:?}", val.notes);
    let all = open_at(root.path(), &OpenOptions::split(Split::All)).unwrap();
    assert_eq!((all.source.len(), all.source.key(4).into_owned()), (5, "val/n02085620/v.webp".to_owned()));
    all.source.read(4, &mut bytes).unwrap();
    assert_eq!(bytes, b"val/n02085620/v.webp");
}

#[test]
fn one_level_of_classes_is_split_by_class_and_seed_alone() {
    let files: Vec<String> =
        (0..40).map(|i| format!("cat/{i}.jpg")).chain((0..5).map(|i| format!("dog/{i}.jpg"))).collect();
    let root = tree(&files.iter().map(String::as_str).chain(["eel/only.jpg"]).collect::<Vec<_>>());
    let options = |split, val_fraction, seed| OpenOptions { split, val_fraction, seed, ..Default::default() };
    let part = |split, fraction, seed| open_at(root.path(), &options(split, fraction, seed)).unwrap().source;

    assert_eq!(part(Split::Train, None, 0).len(), 46);
    assert!(matches!(open_at(root.path(), &options(Split::Val, None, 0)), Err(Error::MissingSplit { .. })));
    assert!(open_at(root.path(), &options(Split::Val, Some(1.0), 0)).is_err());

    let (train, val) = (part(Split::Train, Some(0.1), 7), part(Split::Val, Some(0.1), 7));
    let count = |label| labels(&val).iter().filter(|&&l| l == Some(label)).count();
    assert_eq!([count(0), count(1), count(2)], [4, 1, 0], "of 40, 5 and 1");
    let mut both = [keys(&train), keys(&val)].concat();
    both.sort();
    let mut all = keys(&part(Split::All, Some(0.1), 7));
    all.sort();
    assert_eq!(both, all, "every sample is in exactly one part");
    assert_eq!(keys(&val), keys(&part(Split::Val, Some(0.1), 7)));
    assert_ne!(keys(&val), keys(&part(Split::Val, Some(0.1), 8)));
}

#[test]
fn images_without_classes_come_in_natural_order() {
    let root = tree(&["10.jpg", "9.jpg", "1.BMP", "x.txt"]);
    let opened = open_at(root.path(), &OpenOptions::default()).unwrap();
    assert_eq!((opened.kind, labels(&opened.source)), (SourceKind::Images, vec![None; 3]));
    assert_eq!(keys(&opened.source), ["1.BMP", "9.jpg", "10.jpg"]);

    let table = tree(&["images/1.jpg", "images/2.jpg", "labels.csv"]);
    let unlabeled = open_at(table.path(), &OpenOptions::default()).unwrap();
    assert_eq!((unlabeled.kind, unlabeled.source.len()), (SourceKind::Images, 2));
    assert!(unlabeled.notes[0].contains("labels.csv gives the images no labels"), "{:?}", unlabeled.notes);
    assert!(unlabeled.notes[1].contains("1 .csv"), "{:?}", unlabeled.notes);

    let one = open_at(&root.path().join("9.jpg"), &OpenOptions::split(Split::Val)).unwrap();
    let mut bytes = Vec::new();
    one.source.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, b"9.jpg");
    let some = open_at(&root.path().join("{10,9}.jpg"), &OpenOptions::default()).unwrap();
    assert_eq!(some.source.len(), 2);
    assert!(some.source.key(0).ends_with("10.jpg"), "a pattern's own order is kept");
}

#[test]
fn kaggles_layout_is_labeled_by_its_solution_file() {
    let data = "ILSVRC/Data/CLS-LOC";
    let root = tree(&[
        &format!("{data}/train/n02085620/n02085620_1.JPEG"),
        &format!("{data}/train/n01440764/n01440764_1.JPEG"),
        &format!("{data}/val/ILSVRC2012_val_00000001.JPEG"),
        &format!("{data}/val/ILSVRC2012_val_00000002.JPEG"),
        &format!("{data}/test/ILSVRC2012_test_00000001.JPEG"),
    ]);
    fs::write(
        root.path().join("LOC_val_solution.csv"),
        "ImageId,PredictionString\nILSVRC2012_val_00000002,n01440764 1 2 3 4 n01440764 5 6 7 8\n\
         ILSVRC2012_val_00000001,n02085620 85 1 499 272 \n",
    )
    .unwrap();
    for top in ["", "ILSVRC", "ILSVRC/Data", data] {
        let train = open_at(&root.path().join(top), &OpenOptions::default()).unwrap();
        assert_eq!((train.kind, train.source.len()), (SourceKind::Kaggle, 2), "{top}");
        let val = open_at(&root.path().join(top), &OpenOptions::split(Split::Val)).unwrap();
        assert_eq!(labels(&val.source), [Some(1), Some(0)]);
        assert_eq!(val.source.key(0), "val/ILSVRC2012_val_00000001.JPEG");
    }
    // Image 1 is a sea snake by the labels that are built in: no class of this training split.
    fs::remove_file(root.path().join("LOC_val_solution.csv")).unwrap();
    let error = open_at(root.path(), &OpenOptions::split(Split::Val)).unwrap_err();
    assert!(error.to_string().contains("n01751748"), "{error}");
    let rows = "ILSVRC2012_val_00000001,n02085620 1\nILSVRC2012_val_00000001,n02085620 2\n";
    fs::write(root.path().join("LOC_val_solution.csv"), rows).unwrap();
    let error = open_at(root.path(), &OpenOptions::split(Split::Val)).unwrap_err();
    assert!(error.to_string().contains("00000002"), "two rows that agree are one: {error}");
    fs::write(root.path().join("LOC_val_solution.csv"), rows.replace("n02085620 2", "n01440764 2")).unwrap();
    let error = open_at(root.path(), &OpenOptions::split(Split::Val)).unwrap_err().to_string();
    assert!(error.contains("line 2 has class n01440764") && error.contains("another line has n02085620"), "{error}");
    fs::write(root.path().join("LOC_val_solution.csv"), "nonsense\n").unwrap();
    let error = open_at(root.path(), &OpenOptions::split(Split::Val)).unwrap_err();
    assert!(error.to_string().contains("line 1"), "{error}");
}

#[test]
fn unsorted_official_validation_images_get_the_builtin_labels() {
    let root = tree(&["train/n01751748/a.jpg", "val/ILSVRC2012_val_00000001.JPEG"]);
    let val = open_at(root.path(), &OpenOptions::split(Split::Val)).unwrap();
    assert_eq!(labels(&val.source), [Some(0)]);
}

#[test]
fn what_is_wrong_with_a_folder_is_said_clearly() {
    let says = |files: &[&str], folders: &[&str], options: &OpenOptions, expected: &str| {
        let root = tree(files);
        folders.iter().for_each(|folder| fs::create_dir_all(root.path().join(folder)).unwrap());
        let error = open_at(root.path(), options).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} should contain {expected}");
    };
    let default = OpenOptions::default();
    says(&["a/1.jpg"], &["b"], &default, "class b has no images");
    says(&["train/a/1.jpg"], &["train/b", "train/c"], &default, "2 classes have no images, the first is b");
    says(&[], &["train/a"], &default, "no images");
    says(&["notes.txt"], &[], &default, "Kaggle's");
    says(&[], &[], &default, "looked for");
    says(&["train/1.jpg"], &["val/a"], &default, "no class folders");
    let val = OpenOptions::split(Split::Val);
    says(&["train/a/1.jpg", "val/b/1.jpg"], &[], &val, "class `b` is unknown");
    says(&["train/Cat/1.jpg", "val/cat/1.jpg"], &[], &val, "it has `Cat`, which differs in case");
    says(&["a/1.jpg", "b/1.heic"], &[], &default, "class b has no images that can be read; its folder has");
    says(&["a/1.jpg"], &["b"], &default, "remove the empty folders");
    says(&["train/a/1.jpg", "val/odd.jpg"], &[], &val, "no label is known");
    says(&["val/a/1.jpg"], &[], &default, "no train split");
    let images = OpenOptions { kind: Some(SourceKind::Kaggle), ..Default::default() };
    says(&["a/1.jpg"], &[], &images, "Kaggle");
    assert!(matches!(open("no/such/place", &default), Err(Error::Io { .. })));

    let root = tree(&["a/1.jpg"]);
    fs::create_dir(root.path().join("b")).unwrap();
    let lenient = OpenOptions { allow_empty_classes: true, ..Default::default() };
    let opened = open_at(root.path(), &lenient).unwrap();
    assert_eq!((opened.source.classes().len(), opened.notes.len()), (2, 1));
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_loops_end() {
    use std::os::unix::fs::symlink;
    let root = tree(&["a/1.jpg", "a/sub/2.jpg", "elsewhere.bin"]);
    let at = |path: &str| root.path().join(path);
    symlink(at("a"), at("a/sub/up")).unwrap();
    symlink(at("a"), at("b")).unwrap();
    symlink(at("elsewhere.bin"), at("a/3.jpg")).unwrap();
    symlink(at("nowhere"), at("a/dangling")).unwrap();
    let opened = open_at(root.path(), &OpenOptions::default()).unwrap();
    let expected = ["a/1.jpg", "a/3.jpg", "a/sub/2.jpg", "b/1.jpg", "b/3.jpg", "b/sub/2.jpg"];
    assert_eq!(keys(&opened.source), expected);

    symlink(at("nowhere"), at("a/dangling.jpg")).unwrap();
    symlink(at("nowhere"), at("lost_class")).unwrap();
    symlink("/", at("b/everything")).unwrap();
    let opened = open_at(root.path(), &OpenOptions::default()).unwrap();
    assert_eq!(keys(&opened.source), expected);
    let count = |reason, extension: &str| {
        let groups: Vec<_> = opened.left_out.groups().collect();
        groups.iter().find(|group| (group.reason, group.extension) == (reason, extension)).map(|group| group.count)
    };
    assert_eq!(count(LeftOutReason::DeadLink, ".jpg"), Some(2), "through both links to the class");
    assert_eq!(count(LeftOutReason::DeadLink, ""), Some(3), "{}", opened.left_out);
    // `a/sub/up` through both links, and `everything`, likewise.
    assert_eq!(count(LeftOutReason::LinkLoop, "folder"), Some(4), "{}", opened.left_out);
    assert!(opened.notes.iter().any(|note| note.contains("dead link: 3 without extension")), "{:?}", opened.notes);
}

#[cfg(unix)]
#[test]
fn images_in_subfolders_count_for_the_class_above_them_which_is_noted() {
    let data = tree(&["cats/1.jpg", "dogs/pug/1.jpg", "dogs/husky/2.jpg", "frogs/all/1.jpg"]);
    let opened = open_at(data.path(), &OpenOptions::default()).unwrap();
    assert_eq!(labels(&*opened.source), [Some(0), Some(1), Some(1), Some(2)]);
    let notes: Vec<_> = opened.notes.iter().filter(|note| note.contains("subfolders")).collect();
    let [note] = notes[..] else { panic!("{:?}", opened.notes) };
    assert!(note.ends_with("belong to the class folder above them: dogs (`husky`, `pug`)"), "{note}");
}

#[test]
fn pipes_are_left_out_and_never_waited_for() {
    let root = tree(&["a/1.jpg", "a/2.jpg", "b/1.jpg"]);
    let pipe = root.path().join("a/pipe.jpg");
    if !std::process::Command::new("mkfifo").arg(&pipe).status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: there is no mkfifo");
        return;
    }
    let opened = open_at(root.path(), &OpenOptions::default()).unwrap();
    assert_eq!((opened.source.len(), opened.left_out.count()), (3, 1));
    // One that takes the place of an image later is an error, not a wait.
    fs::rename(&pipe, root.path().join("b/1.jpg")).unwrap();
    let error = opened.source.read(2, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("b/1.jpg: it is a pipe"), "{error}");
    let error = open_at(&root.path().join("b/1.jpg"), &OpenOptions::default()).unwrap_err().to_string();
    assert!(error.contains("it is a pipe"), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn names_that_are_not_unicode_are_read() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let root = tree(&["train/a/1.jpg", "val/a/1.jpg"]);
    let odd = |name: &[u8]| OsStr::from_bytes(name).to_owned();
    for path in [odd(b"train/a/caf\xe9.jpg"), odd(b"train/gl\xfcck/2.jpg"), odd(b"train/a/caf\\xE9.jpg")] {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "odd").unwrap();
    }
    let opened = open_at(root.path(), &OpenOptions::default()).unwrap();
    // The file that is really named like the other one's key keeps it.
    assert_eq!(keys(&opened.source), ["train/a/1.jpg", "train/a/caf\\xE9.jpg", "train/gl\\xFCck/2.jpg"]);
    let left_out: Vec<_> = opened.left_out.groups().map(|group| (group.reason, group.count)).collect();
    assert_eq!(left_out, [(LeftOutReason::AmbiguousName, 1)]);
    let mut bytes = Vec::new();
    (1..3).for_each(|index| opened.source.read(index, &mut bytes).unwrap());
    assert_eq!(bytes, b"odd");
    assert_eq!(opened.source.classes()[1].id, "gl\\xFCck");
    assert!(opened.source.location(2).to_string().ends_with("gl\\xFCck/2.jpg"));
}

#[test]
fn splits_are_found_by_any_of_their_usual_names() {
    for (train, val) in [
        ("Training", "Testing"),
        ("TRAIN", "VAL"),
        ("Train", "Test"),
        ("training_set", "test_set"),
        ("train_images", "validation_images"),
        ("seg_train", "seg_test"),
        ("train2017", "val2017"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train/images", "valid/images"),
        ("archive/data/train", "archive/data/val"),
    ] {
        let files = [(train, "cat"), (train, "dog"), (val, "cat"), (val, "dog")]
            .map(|(split, class)| format!("{split}/{class}/1.jpg"));
        let root = tree(&files.each_ref().map(String::as_str));
        fs::create_dir_all(root.path().join("__MACOSX/._x")).unwrap();
        fs::create_dir_all(root.path().join(".ipynb_checkpoints")).unwrap();
        for (split, name) in [(Split::Train, train), (Split::Val, val)] {
            let opened = open_at(root.path(), &OpenOptions::split(split)).unwrap();
            let ids: Vec<_> = opened.source.classes().iter().map(|class| class.id.as_str()).collect();
            assert_eq!((opened.source.len(), ids), (2, vec!["cat", "dog"]), "{name}");
            let inner = name.strip_prefix("archive/data/").unwrap_or(name);
            assert_eq!(opened.source.key(1), format!("{inner}/dog/1.jpg"));
            let note = |text: &str| opened.notes.iter().any(|note| note.contains(text));
            assert_eq!(note("taken from its folder"), train.contains('/'), "{name}: {:?}", opened.notes);
            assert_eq!(note("selects the best epoch"), val.to_lowercase().contains("test"), "{:?}", opened.notes);
        }
    }
}

#[test]
fn what_could_be_meant_in_two_ways_is_refused_with_the_names() {
    let says = |files: &[&str], expected: &[&str]| {
        let root = tree(files);
        let error = open_at(root.path(), &OpenOptions::default()).unwrap_err().to_string();
        expected.iter().for_each(|expected| assert!(error.contains(expected), "{error} should contain {expected}"));
    };
    says(&["train/a/1.jpg", "val/a/1.jpg", "valid/a/1.jpg"], &["`val`, `valid` could each be the val split"]);
    if fs::write(tree(&["Train"]).path().join("train"), "").is_ok() && !cfg!(any(windows, target_os = "macos")) {
        says(&["train/a/1.jpg", "Train/a/1.jpg", "val/a/1.jpg"], &["`Train`, `train` could each be the train split"]);
    }
    says(
        &["train/steam/1.jpg", "bus/1.jpg", "car/1.jpg"],
        &["`train` could be a split or a class beside `bus`, `car`"],
    );
    says(
        &["a_train/x/1.jpg", "a_test/x/1.jpg", "b_train/y/1.jpg", "b_val/y/1.jpg"],
        &["several data sets", "`a_test`"],
    );
    says(
        &["cat/train/1.jpg", "cat/val/1.jpg", "dog/train/1.jpg", "dog/val/1.jpg"],
        &["`train`, `val`, which are splits"],
    );
    says(&["x/cat/1.jpg", "x/dog/1.jpg", "y/cat/1.jpg", "y/dog/1.jpg"], &["the same subfolders `cat`, `dog`"]);
    says(
        &["train/2019/cat/1.jpg", "train/2019/dog/1.jpg", "train/2020/cat/1.jpg", "train/2020/dog/1.jpg"],
        &["same subfolders"],
    );
    says(&["train/train/1.jpg"], &["train/train: has no class folders"]);
    says(&["train/images/1.jpg", "val/a/1.jpg"], &["train/images: has no class folders"]);
    says(
        &["train/cat.1.jpg", "test1/1.jpg"],
        &["`test1`, `train` hold images and no class folders", "one folder per class"],
    );
    let root = tree(&["x/cat/1.jpg", "x/dog/1.jpg", "y/cat/1.jpg", "y/dog/1.jpg"]);
    let folder = OpenOptions { kind: Some(SourceKind::Folder), ..Default::default() };
    assert_eq!(open_at(root.path(), &folder).unwrap().source.classes().len(), 2, "a forced kind");
}

#[test]
fn classes_that_resemble_splits_stay_classes() {
    let ids = |files: &[&str]| {
        let root = tree(files);
        let opened = open_at(root.path(), &OpenOptions::default()).unwrap();
        opened.source.classes().iter().map(|class| class.id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&["bus/1.jpg", "train/1.jpg", "test tube/1.jpg"]), ["bus", "test tube", "train"]);
    assert_eq!(ids(&["steam_train/a/1.jpg", "steam_train/b/2.jpg", "bus/1.jpg"]), ["bus", "steam_train"]);
    assert_eq!(ids(&["a/images/1.jpg", "b/images/1.jpg"]), ["a", "b"], "as in Tiny ImageNet");
    assert_eq!(ids(&["photos/cat/1.jpg", "photos/dog/1.jpg", "annotations/x.xml"]), ["cat", "dog"]);
    assert_eq!(ids(&["images/train/cat/1.jpg", "images/train/dog/1.jpg", "labels/train/1.txt"]), ["cat", "dog"]);
    assert_eq!(ids(&["0/1.jpg", "1/1.jpg", "10/1.jpg"]), ["0", "1", "10"]);
}

#[test]
fn test_images_beside_a_validation_split_or_without_labels_are_left_out_and_noted() {
    let opened = |files: &[&str], split| open_at(tree(files).path(), &OpenOptions::split(split)).unwrap();
    let three = opened(&["train/a/1.jpg", "val/a/2.jpg", "test/a/3.jpg"], Split::Val);
    assert_eq!(keys(&three.source), ["val/a/2.jpg"]);
    assert!(three.notes[0].contains("`test` is left out"), "{:?}", three.notes);
    for test in ["test/3.jpg", "test/unknown/3.jpg", "test/images/3.jpg", "test/test/3.jpg"] {
        let files = ["train/a/1.jpg", "train/b/2.jpg", test];
        let train = opened(&files, Split::Train);
        assert!(train.notes.iter().any(|note| note.contains("left out")), "{:?}", train.notes);
        let error = open_at(tree(&files).path(), &OpenOptions::split(Split::Val)).unwrap_err();
        assert!(matches!(error, Error::MissingSplit { .. }), "{error}");
    }
    // As in Tiny ImageNet: the training images are read, and the validation images have no labels.
    let files = ["train/a/images/1.jpg", "train/b/images/2.jpg", "val/images/3.jpg", "test/images/4.jpg"];
    assert_eq!(opened(&files, Split::Train).source.len(), 2);
    let error = open_at(tree(&files).path(), &OpenOptions::split(Split::Val)).unwrap_err().to_string();
    assert!(error.contains("val/images/3.jpg: no label is known"), "{error}");
    let stray = opened(&["train/a/1.jpg", "train/b/2.jpg", "train/stray.jpg"], Split::Train);
    assert_eq!((stray.source.len(), stray.notes.len()), (2, 1), "{:?}", stray.notes);
    let more = opened(&["train/a/1.jpg", "val/a/2.jpg", "unlabeled/3.jpg"], Split::Train);
    assert!(more.notes[0].contains("`unlabeled` belong to no split"), "{:?}", more.notes);
}

#[test]
fn every_usual_extension_is_read_and_the_rest_is_counted() {
    let images: Vec<String> =
        crate::source::IMAGE_EXTENSIONS.iter().map(|e| format!("a/x.{}", e.to_uppercase())).collect();
    let others = ["a/1.heic", "b/2.HEIC", "b/3.avif", "b/notes.txt", "b/README", "b/1.jpg", "b/._1.jpg"];
    let root = tree(&images.iter().map(String::as_str).chain(others).collect::<Vec<_>>());
    let opened = open_at(root.path(), &OpenOptions::default()).unwrap();
    assert_eq!(opened.source.len(), images.len() + 1);
    let groups: Vec<_> = opened.left_out.groups().map(|g| (g.reason, g.extension.to_owned(), g.count)).collect();
    let expected = [
        (LeftOutReason::UnsupportedFormat, ".avif", 1),
        (LeftOutReason::UnsupportedFormat, ".heic", 2),
        (LeftOutReason::Hidden, ".jpg", 1),
        (LeftOutReason::NoImage, "", 1),
        (LeftOutReason::NoImage, ".txt", 1),
    ];
    assert_eq!(groups, expected.map(|(reason, extension, count)| (reason, extension.to_owned(), count)));
    assert!(opened.notes[0].contains("2 .heic"), "{:?}", opened.notes);
}

#[cfg(unix)]
#[test]
fn an_unreadable_folder_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let root = tree(&["a/1.jpg", "b/1.jpg"]);
    let closed = root.path().join("b");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read_dir(&closed).is_ok() {
        eprintln!("skipped: this user may read every folder");
        return;
    }
    let error = open_at(root.path(), &OpenOptions::default()).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if path.ends_with("b")), "{error}");
}
