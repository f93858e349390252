//! Names data in formats that are not read, with the remedy.

use std::path::Path;

/// The most entries of a folder that are looked at.
const MAX_ENTRIES: usize = 1000;

/// Archives by the ends of their names, longest first, and the command that unpacks one.
const ARCHIVES: [(&[&str], &str, &str); 5] = [
    (&[".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst"], "a compressed tar archive", "tar -xf"),
    (&[".zip"], "a ZIP archive", "unzip"),
    (&[".7z"], "a 7-Zip archive", "7z x"),
    (&[".rar"], "a RAR archive", "unrar x"),
    (&[".gz", ".bz2", ".xz", ".zst"], "a compressed file", "gunzip, bunzip2, unxz or unzstd"),
];

/// Containers of images by the ends of their names.
const CONTAINERS: [(&[&str], &str); 9] = [
    (&[".npz", ".npy"], "NumPy arrays"),
    (&[".pkl", ".pickle"], "a Python pickle"),
    (&[".mat"], "a MATLAB file"),
    (&[".h5", ".hdf5"], "HDF5"),
    (&[".tfrecord", ".tfrecords"], "TFRecord"),
    (&[".mdb", ".lmdb"], "LMDB"),
    (&[".beton"], "FFCV's format"),
    (&[".arrow"], "Arrow, as `save_to_disk` of Hugging Face's datasets writes it"),
    (&["-ubyte", "-ubyte.gz"], "the IDX format of MNIST"),
];

/// Tables and lists that are not read, by the ends of their names.
const TABLES: [&str; 7] = [".json", ".xml", ".yaml", ".yml", ".xlsx", ".xls", ".ods"];

/// What a file is by its name, and what to do; `None` for one that could be anything.
pub(super) fn file(name: &str) -> Option<String> {
    let name = name.to_lowercase();
    let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    const WRITE: &str = "write its images as files, in one folder per class";
    if name.starts_with("data_batch") || name.starts_with("batches.meta") {
        return Some(format!("is CIFAR's own format, which is not read: {WRITE}"));
    }
    if let Some((_, what)) = CONTAINERS.iter().find(|(endings, _)| ends(endings)) {
        return Some(format!("is {what}, which is not read: {WRITE}"));
    }
    if let Some((_, what, command)) = ARCHIVES.iter().find(|(endings, ..)| ends(endings)) {
        return Some(format!("is {what}, which is not read: unpack it ({command}) and give the folder"));
    }
    ends(&TABLES).then(|| {
        "is a table or list that is not read: save it as CSV, with a column of the images' paths and one of the labels, or \
         sort the images into one folder per class"
            .to_owned()
    })
}

/// What a folder without images has instead, by the names in it and in its subfolders. Tables count only if there is
/// nothing else, and texts never.
pub(super) fn folder(path: &Path) -> Option<String> {
    let names = |folder: &Path| -> Vec<_> {
        let entries = folder.read_dir().into_iter().flatten().take(MAX_ENTRIES);
        let mut entries: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        entries.sort();
        entries
    };
    let top = names(path);
    let below = top.iter().filter(|path| path.is_dir()).flat_map(|folder| names(folder));
    let mut table = None;
    for entry in top.iter().cloned().chain(below).filter(|path| path.is_file()) {
        let Some(name) = entry.file_name().map(|name| name.to_string_lossy().into_owned()) else { continue };
        let Some(what) = file(&name) else { continue };
        let found = format!("has no images; {} {what}", entry.display());
        let is = |endings: &[&str]| endings.iter().any(|end| name.to_lowercase().ends_with(end));
        if !is(&TABLES) {
            return Some(found);
        }
        if is(&[".xlsx", ".xls", ".ods"]) {
            table.get_or_insert(found);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_that_are_not_read_are_named_with_the_remedy() {
        for (name, what) in [
            ("photos.ZIP", "a ZIP archive, which is not read: unpack it (unzip)"),
            ("photos.tar.gz", "unpack it (tar -xf)"),
            ("train-images-idx3-ubyte.gz", "MNIST"),
            ("train-00000-of-00010.tfrecord", "TFRecord"),
            ("x.npz", "NumPy"),
            ("data_batch_1", "CIFAR"),
            ("labels.xlsx", "save it as CSV"),
            ("data.yaml", "one folder per class"),
        ] {
            let found = file(name).unwrap_or_default();
            assert!(found.contains(what), "{name}: {found}");
        }
        for name in ["photos", "cat.jpg", "shard-000.tar", "labels.csv"] {
            assert_eq!(file(name), None, "{name}");
        }
    }

    #[test]
    fn a_folder_is_named_by_its_data_before_its_tables() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("readme.txt"), "").unwrap();
        assert_eq!(folder(root.path()), None);
        std::fs::write(root.path().join("a.xlsx"), "").unwrap();
        assert!(folder(root.path()).unwrap().contains("a.xlsx is a table"));
        std::fs::create_dir(root.path().join("batches")).unwrap();
        std::fs::write(root.path().join("batches/data_batch_1"), "").unwrap();
        let found = folder(root.path()).unwrap();
        assert!(found.contains("data_batch_1 is CIFAR's own format"), "{found}");
    }
}
