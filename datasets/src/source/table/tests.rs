use std::{fs, path::Path, time::Instant};

use super::super::{OpenOptions, Opened, SourceKind, Split, TableOptions, open};

/// A folder with these files, whose content is their name.
fn folder(files: &[&str]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for file in files {
        write(root.path(), file, file);
    }
    root
}

fn write(root: &Path, file: &str, content: impl AsRef<[u8]>) {
    let path = root.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn opened(root: &Path, spec: &str, split: Split, table: TableOptions) -> Result<Opened, String> {
    let options = OpenOptions { split, table, ..OpenOptions::default() };
    open(root.join(spec).to_str().unwrap(), &options).map_err(|error| error.to_string())
}

fn train(root: &Path, spec: &str) -> Result<Opened, String> {
    opened(root, spec, Split::Train, TableOptions::default())
}

/// `key=class` of each sample; the bytes are those of the file.
fn samples(opened: &Opened) -> Vec<String> {
    let (source, mut bytes) = (&opened.source, Vec::new());
    (0..source.len())
        .map(|index| {
            source.read(index, &mut bytes).unwrap();
            let key = source.key(index);
            assert!(key.ends_with(std::str::from_utf8(&bytes).unwrap().rsplit('/').next().unwrap()), "{key}");
            let class = source.label(index).map_or("", |label| source.classes()[label as usize].id.as_str());
            format!("{key}={class}")
        })
        .collect()
}

fn has(notes: &[String], text: &str) -> bool {
    notes.iter().any(|note| note.contains(text))
}

#[test]
fn a_table_gives_its_images_their_labels_and_splits() {
    let root = folder(&["images/1.jpg", "images/2.png", "images/3.jpg", "images/4.jpg"]);
    write(root.path(), "t.csv", "id,label,split\n1,cat,train\n2,dog,TRAIN\n3.jpg,cat,Valid\n4,cat,test\n");
    let opened = train(root.path(), "t.csv").unwrap();
    assert_eq!(samples(&opened), ["images/1.jpg=cat", "images/2.png=dog"]);
    assert_eq!(opened.kind, SourceKind::Table);
    let note = "images from the column `id`, labels from `label`, splits from `split`";
    assert!(has(&opened.notes, note), "{:?}", opened.notes);
    assert!(has(&opened.notes, "1 rows of the test split are left out"), "{:?}", opened.notes);
    let val = super::super::open(root.path().join("t.csv").to_str().unwrap(), &OpenOptions::split(Split::Val)).unwrap();
    assert_eq!(samples(&val), ["images/3.jpg=cat"]);
    assert_eq!(val.source.classes().len(), 2, "the classes are those of the training split");
    // The folder of one table is its data set.
    assert_eq!(samples(&train(root.path(), "").unwrap()).len(), 2);
}

#[test]
fn a_table_without_splits_is_held_out_from_and_test_stands_in_for_val() {
    let names: Vec<String> = (0..10).map(|n| format!("{n}.jpg")).collect();
    let root = folder(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let rows = |of: &dyn Fn(usize) -> &'static str| -> String {
        names.iter().enumerate().map(|(n, name)| format!("{name};{};{}\n", n % 2, of(n))).collect()
    };
    write(root.path(), "whole.csv", format!("file;y;note\n{}", rows(&|_| "x")));
    let open_at = |spec: &str, split, val_fraction| {
        let options = OpenOptions { split, val_fraction, ..OpenOptions::default() };
        open(root.path().join(spec).to_str().unwrap(), &options)
    };
    let error = open_at("whole.csv", Split::Val, None).unwrap_err();
    assert!(matches!(error, crate::Error::MissingSplit { .. }), "{error}");
    let held_out = open_at("whole.csv", Split::Val, Some(0.2)).unwrap().source;
    assert_eq!((held_out.len(), open_at("whole.csv", Split::Train, Some(0.2)).unwrap().source.len()), (2, 8));

    write(root.path(), "test.csv", format!("file;y;set\n{}", rows(&|n| if n < 6 { "training" } else { "testing" })));
    let val = open_at("test.csv", Split::Val, None).unwrap();
    assert_eq!(val.source.len(), 4);
    assert!(has(&val.notes, "`test` is the validation split"), "{:?}", val.notes);
    for (column, value) in [("is_valid", "True"), ("is_training_image", "0")] {
        let other = if value == "True" { "False" } else { "1" };
        let cells = rows(&|n| if n < 3 { value } else { other });
        write(root.path(), "flag.csv", format!("file;y;{column}\n{cells}"));
        assert_eq!(open_at("flag.csv", Split::Val, None).unwrap().source.len(), 3, "{column}");
    }
    write(root.path(), "odd.csv", format!("file;y;split\n{}", rows(&|n| if n == 4 { "holdout" } else { "train" })));
    let opened = open_at("odd.csv", Split::Train, None).unwrap();
    assert_eq!(opened.source.len(), 10);
    assert!(
        has(&opened.notes, "the column `split` is not used: `holdout` in it is no split (line 6)"),
        "{:?}",
        opened.notes
    );
    let given = TableOptions { split_column: Some("split".into()), ..TableOptions::default() };
    let error = super::tests::opened(root.path(), "odd.csv", Split::Train, given).unwrap_err();
    assert!(error.contains("`holdout` in it is no split"), "{error}");
}

#[test]
fn separate_tables_are_the_splits_of_their_folder() {
    let root = folder(&["train/1.jpg", "train/2.jpg", "test/1.jpg", "test/3.jpg"]);
    write(root.path(), "train.csv", "image,label\n1,a\n2,b\n");
    write(root.path(), "test.csv", "image\n1\n3\n");
    write(root.path(), "sample_submission.csv", "image,label\n1,a\n");
    let opened = train(root.path(), "").unwrap();
    assert_eq!(samples(&opened), ["train/1.jpg=a", "train/2.jpg=b"]);
    assert!(has(&opened.notes, "the test split is left out: it has no labels"), "{:?}", opened.notes);
    assert!(has(&opened.notes, "`sample_submission.csv` belong to no split"), "{:?}", opened.notes);
    write(root.path(), "test.csv", "image,label\n1,a\n3,b\n");
    let val = super::tests::opened(root.path(), "", Split::Val, TableOptions::default()).unwrap();
    assert_eq!(samples(&val), ["test/1.jpg=a", "test/3.jpg=b"]);
    assert_eq!(samples(&train(root.path(), "test.csv").unwrap())[0], "test/1.jpg=a", "by the table's own name");
    write(root.path(), "test.csv", "image,label\n1,A\n3,b\n");
    let error = super::tests::opened(root.path(), "", Split::Val, TableOptions::default()).unwrap_err();
    assert!(error.contains("no label `A` (line 2)") && error.contains("it has `a`"), "{error}");
    write(root.path(), "train_2.csv", "image,label\n1,a\n");
    let error = train(root.path(), "").unwrap_err();
    assert!(error.contains("several tables: `train.csv`, `train_2.csv`"), "{error}");
}

#[test]
fn class_folders_count_before_tables_beside_them() {
    let root = folder(&["cat/1.jpg", "dog/2.jpg"]);
    write(root.path(), "t.csv", "image,label\ncat/1.jpg,x\ndog/2.jpg,y\n");
    assert_eq!(train(root.path(), "").unwrap().kind, SourceKind::Folder);
    let given = TableOptions { label_column: Some("label".into()), ..TableOptions::default() };
    let opened = opened(root.path(), "", Split::Train, given).unwrap();
    assert_eq!(samples(&opened), ["cat/1.jpg=x", "dog/2.jpg=y"]);
}

#[test]
fn missing_files_are_counted_and_listed_and_all_missing_is_an_error() {
    let root = folder(&["a.jpg"]);
    write(root.path(), "t.csv", "image,label\na.jpg,x\nb.jpg,x\nc.png,y\n");
    let opened = train(root.path(), "t.csv").unwrap();
    assert_eq!((opened.source.len(), opened.left_out.count()), (1, 2));
    assert!(
        has(&opened.notes, "2 of 3 images are missing and left out: `b.jpg`, `c.png` (lines 3 and 4)"),
        "{opened:?}"
    );
    assert_eq!(opened.source.classes().len(), 1, "no class is without images");
    write(root.path(), "none.csv", "image,label\nb.jpg,x\nc.png,y\n");
    let error = train(root.path(), "none.csv").unwrap_err();
    assert!(error.contains("none of its 2 images is there: `b.jpg`") && error.contains("images_root"), "{error}");
    let elsewhere = folder(&["b.jpg", "c.png"]);
    let given = TableOptions { images_root: Some(elsewhere.path().into()), ..TableOptions::default() };
    let opened = super::tests::opened(root.path(), "none.csv", Split::Train, given).unwrap();
    assert_eq!(samples(&opened), ["b.jpg=x", "c.png=y"]);
    let wrong = TableOptions { images_root: Some("/nowhere/at/all".into()), ..TableOptions::default() };
    assert!(
        super::tests::opened(root.path(), "none.csv", Split::Train, wrong).unwrap_err().contains("/nowhere/at/all")
    );
}

#[test]
fn keys_do_not_depend_on_where_the_images_are() {
    let (one, other) = (folder(&["x/1.jpg", "y/2.jpg"]), folder(&["x/1.jpg", "y/2.jpg"]));
    let tables = tempfile::tempdir().unwrap();
    let mut all = Vec::new();
    for root in [&one, &other] {
        let at = |name: &str| root.path().join(name).display().to_string();
        write(tables.path(), "t.csv", format!("path,label\n{},a\n{},b\n", at("x/1.jpg"), at("y/2.jpg")));
        all.push(samples(&train(tables.path(), "t.csv").unwrap()));
        write(root.path(), "t.csv", "path,label\nx/1.jpg,a\n./y/2.jpg,b\n");
        all.push(samples(&train(root.path(), "t.csv").unwrap()));
    }
    assert!(all.iter().all(|samples| samples == &["x/1.jpg=a", "y/2.jpg=b"]), "{all:?}");
}

#[test]
fn contradictions_are_refused_and_repetitions_are_left_out() {
    let root = folder(&["a.jpg", "b.jpg"]);
    write(root.path(), "t.csv", "image,label\na.jpg,x\nb.jpg,y\n./a.jpg,z\n");
    let error = train(root.path(), "t.csv").unwrap_err();
    assert!(error.contains("has `x` in line 2 and `z` in line 4"), "{error}");
    write(root.path(), "t.csv", "image,label\na.jpg,x\nb.jpg,y\na.jpg,x\n");
    let opened = train(root.path(), "t.csv").unwrap();
    assert_eq!(opened.source.len(), 2);
    assert!(has(&opened.notes, "1 rows repeat an image with the same label and are left out (line 4)"), "{opened:?}");
    write(root.path(), "t.csv", "image,label,split\na.jpg,x,train\nb.jpg,y,train\na.jpg,x,val\n");
    assert!(has(&train(root.path(), "t.csv").unwrap().notes, "1 images are in several splits: `a.jpg`"));
}

#[test]
fn labels_that_are_empty_or_look_alike_are_reported() {
    let root = folder(&["a.jpg", "b.jpg", "c.jpg"]);
    write(root.path(), "t.csv", "image,label\na.jpg,x\nb.jpg,\nc.jpg,  \n");
    let error = train(root.path(), "t.csv").unwrap_err();
    assert!(error.contains("2 of 3 rows have no label (lines 3 and 4)"), "{error}");
    write(root.path(), "t.csv", "image,label\na.jpg,Cat\nb.jpg,cat\nc.jpg,dog\n");
    assert!(has(&train(root.path(), "t.csv").unwrap().notes, "`Cat` and `cat` differ in case"));
    write(root.path(), "t.csv", "image,label\na.jpg,\nb.jpg,\nc.jpg,\n");
    let opened = train(root.path(), "t.csv").unwrap();
    assert_eq!((opened.source.len(), opened.source.classes().len(), opened.source.label(0)), (3, 0, None));
}

#[test]
fn texts_in_every_encoding_and_json_lines_are_tables() {
    let root = folder(&["ü.jpg", "b.jpg"]);
    let text = "image,label\r\nü.jpg,x\r\nb.jpg,y\r\n";
    let wide = |mark: &str| format!("{mark}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    for bytes in [format!("\u{feff}{text}").into_bytes(), wide("\u{feff}"), wide("")] {
        write(root.path(), "t.csv", bytes);
        assert_eq!(samples(&train(root.path(), "t.csv").unwrap()), ["ü.jpg=x", "b.jpg=y"]);
    }
    write(root.path(), "t.jsonl", "{\"file_name\":\"ü.jpg\",\"label\":1}\n{\"file_name\":\"b.jpg\",\"label\":0}\n");
    assert_eq!(samples(&train(root.path(), "t.jsonl").unwrap()), ["ü.jpg=1", "b.jpg=0"]);
    write(root.path(), "t.csv", b"image,label\nb.jpg,caf\xe9\n");
    assert!(train(root.path(), "t.csv").unwrap_err().contains("line 2 is not UTF-8"));
    write(root.path(), "t.csv", "image,label\nhttps://example.org/b.jpg,y\n");
    assert!(train(root.path(), "t.csv").unwrap_err().contains("is a URL"));
}

#[test]
fn labels_are_taken_from_names_of_files() {
    let from = |pattern: &str| TableOptions { label_from: Some(pattern.into()), ..TableOptions::default() };
    let pattern = r"^([a-z]+)\.\d+";
    let root = folder(&["cat.0.jpg", "cat.10.jpg", "cat.2.jpg", "dog.1.jpg", "README.jpg"]);
    let opened = opened(root.path(), "", Split::Train, from(pattern)).unwrap();
    assert_eq!(samples(&opened), ["cat.0.jpg=cat", "cat.2.jpg=cat", "cat.10.jpg=cat", "dog.1.jpg=dog"]);
    assert!(has(&opened.notes, "1 of 5 images are left out"), "{:?}", opened.notes);
    assert_eq!(opened.left_out.count(), 1);
    let error = super::tests::opened(root.path(), "", Split::Train, from("^(x)")).unwrap_err();
    assert!(error.contains("fits none of 5 images"), "{error}");
    let files = super::tests::opened(root.path(), "cat.*.jpg", Split::Train, from(pattern)).unwrap();
    assert_eq!((files.source.len(), files.source.classes().len()), (3, 1));

    let divided = folder(&["train/cat.0.jpg", "train/dog.0.jpg", "val/dog.1.jpg", "other/cat.7.jpg"]);
    let val = super::tests::opened(divided.path(), "", Split::Val, from(pattern)).unwrap();
    assert_eq!(samples(&val), ["val/dog.1.jpg=dog"]);
    assert!(has(&val.notes, "1 images belong to no split"), "{:?}", val.notes);

    let elsewhere = folder(&["train/cat.0.jpg", "val/val_1.jpg", "val/val_2.jpg"]);
    for split in [Split::Train, Split::Val] {
        let error = super::tests::opened(elsewhere.path(), "", split, from(pattern)).unwrap_err();
        assert!(error.contains("none of the 2 images of the split val, `val/val_1.jpg`"), "{error}");
    }

    // The images of a table, too.
    write(root.path(), "t.csv", "image,width\ncat.0.jpg,3\ndog.1.jpg,4\n");
    let of_table = super::tests::opened(root.path(), "t.csv", Split::Train, from(pattern)).unwrap();
    assert_eq!(samples(&of_table), ["cat.0.jpg=cat", "dog.1.jpg=dog"]);
    let both = TableOptions { label_column: Some("width".into()), ..from(pattern) };
    assert!(super::tests::opened(root.path(), "t.csv", Split::Train, both).unwrap_err().contains("label_from"));
}

#[test]
fn options_without_effect_are_refused() {
    let root = folder(&["cat/1.jpg", "dog/2.jpg"]);
    let given = TableOptions { label_column: Some("x".into()), ..TableOptions::default() };
    let error = opened(root.path(), "", Split::Train, given.clone()).unwrap_err();
    assert!(error.contains("is of the kind folder") && error.contains("no effect"), "{error}");
    let options = OpenOptions { table: given, ..OpenOptions::default() };
    assert!(open("digits", &options).unwrap_err().to_string().contains("no effect"));
}

#[test]
fn a_large_table_opens_in_seconds() {
    const ROWS: usize = 200_000;
    let root = folder(&["images/0.jpg"]);
    // Each file is named by many rows that repeat it: what costs time is the rows.
    for n in 1..100 {
        write(root.path(), &format!("images/{n}.jpg"), "");
    }
    let rows: String = (0..ROWS).map(|n| format!("{},class_{},\"{n}\"\n", n % 100, n % 100)).collect();
    write(root.path(), "t.csv", format!("id,label,note\n{rows}"));
    let start = Instant::now();
    let opened = train(root.path(), "t.csv").unwrap();
    assert_eq!((opened.source.len(), opened.source.classes().len()), (100, 100));
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
}
