//! The official archives of ImageNet, read in place: `ILSVRC2012_img_train.tar`, a tar of one tar a class, and
//! `ILSVRC2012_img_val.tar`, a tar of 50,000 images. Neither is ever unpacked, and the devkit is not needed: the labels
//! of the validation images are [built in](crate::imagenet).
//!
//! The training classes are the archives inside, sorted by name, which for the whole of ImageNet is label order; the
//! images of a class sort by name too, so that the samples come in the same order as from class folders. Where both
//! archives are there, the validation labels count in the training archive's classes; alone, in all 1000.

use std::{collections::HashMap, path::Path, sync::Arc};

use super::{
    Class, LocalFile, ReadAt,
    folder::builtin_wnid,
    index::{IndexCache, Table},
    is_image_name,
    names::Labels,
    options::{Found, OpenOptions, OpenPart, Part},
    packed::{Packed, sample_size},
    parallel,
    tar::{Member, Tar},
};
use crate::{Error, Result, imagenet};

/// The file names of the official archives: training images, validation images.
pub(super) const OFFICIAL_NAMES: [&str; 2] = ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"];

/// The training and the validation archive, if present.
pub(super) type Archives = [Option<Arc<dyn ReadAt>>; 2];

/// Returns the archives in a folder; `None` if there are none.
pub(super) fn local_archives(folder: &Path) -> Result<Option<Archives>> {
    let mut archives = [None, None];
    for (archive, name) in archives.iter_mut().zip(OFFICIAL_NAMES) {
        let path = folder.join(name);
        if path.is_file() {
            *archive = Some(Arc::new(LocalFile::open(&path)?) as Arc<dyn ReadAt>);
        }
    }
    Ok(archives.iter().any(Option::is_some).then_some(archives))
}

/// Recognizes an official archive by its first member: an archive, or a validation image; `None` if it is neither.
pub(super) fn recognize(file: &Arc<dyn ReadAt>) -> Result<Option<Archives>> {
    let Some(first) = Tar::new(file).next_file()? else { return Ok(None) };
    Ok(match () {
        () if class_of(&first.name).is_some() => Some([Some(file.clone()), None]),
        () if imagenet::val_number(&first.name).is_some() => Some([None, Some(file.clone())]),
        () => None,
    })
}

/// The splits of the official archives.
pub(super) fn find<'a>(container: String, [train, val]: Archives, options: &'a OpenOptions) -> Found<'a> {
    let cache = IndexCache::new(options.index_cache.as_deref());
    let train_part = train.clone().map(|file| {
        let cache = cache.clone();
        Box::new(move || open_train(file, &cache, options.allow_empty_classes).map(part)) as OpenPart<'a>
    });
    let val_part = val.map(|file| Box::new(move || open_val(file, train, &cache).map(part)) as OpenPart<'a>);
    Found::Divided { container, train: train_part, val: val_part }
}

impl Packed {
    /// Opens an official training archive, local or remote.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the archive or one inside is broken, [`Error::Layout`] where it has no images or, unless
    /// they are allowed, empty classes, [`Error::Io`].
    pub fn official_train(file: impl ReadAt + 'static, options: &OpenOptions) -> Result<Self> {
        let cache = IndexCache::new(options.index_cache.as_deref());
        Ok(open_train(Arc::new(file), &cache, options.allow_empty_classes)?.0)
    }

    /// Opens an official validation archive, labeled with all 1000 classes.
    ///
    /// # Errors
    /// As [`official_train`](Packed::official_train), and [`Error::Layout`] for an image without a known label.
    pub fn official_val(file: impl ReadAt + 'static, options: &OpenOptions) -> Result<Self> {
        let cache = IndexCache::new(options.index_cache.as_deref());
        Ok(open_val(Arc::new(file), None, &cache)?.0)
    }
}

fn part((packed, notes): (Packed, Vec<String>)) -> Part {
    Part::new(packed, notes)
}

fn open_train(file: Arc<dyn ReadAt>, cache: &IndexCache, allow_empty: bool) -> Result<(Packed, Vec<String>)> {
    let mut table = cache.get(&file, "imagenet train", || index_train(&file))?;
    let mut notes = std::mem::take(&mut table.notes);
    let classes: Vec<Class> = table.label_names.iter().map(|id| imagenet::named_class(id)).collect();
    if table.names.len() == 0 {
        return Err(Error::layout(file.name(), "holds no images at all"));
    }
    let empty: Vec<_> = (0..classes.len()).filter(|&class| table.names.group_len(class) == 0).collect();
    if let Some(&first) = empty.first() {
        let cause = format!("{} classes have no images, the first is {}", empty.len(), classes[first].id);
        if !allow_empty {
            return Err(Error::layout(
                file.name(),
                format!("{cause}; fetch it again, or accept it by allow_empty_classes"),
            ));
        }
        notes.push(format!("{}: {cause}", file.name()));
    }
    let labels = Labels::PerGroup((0..classes.len() as u32).collect());
    Ok((Packed::new(vec![(file, table)], classes, labels)?, notes))
}

fn open_val(
    file: Arc<dyn ReadAt>,
    train: Option<Arc<dyn ReadAt>>,
    cache: &IndexCache,
) -> Result<(Packed, Vec<String>)> {
    let mut table = cache.get(&file, "imagenet val", || index_val(&file))?;
    let notes = std::mem::take(&mut table.notes);
    if table.names.len() == 0 {
        return Err(Error::layout(file.name(), "holds no images at all"));
    }
    let classes = match &train {
        Some(train) => class_list(train, cache)?,
        None => imagenet::classes().to_vec(),
    };
    let by_id: HashMap<&str, u32> = classes.iter().map(|class| class.id.as_str()).zip(0..).collect();
    let label = |index| {
        let name = table.names.get(index);
        let wnid = builtin_wnid(&name).ok_or_else(|| {
            Error::layout(file.name(), format!("{name} is not an official validation image, so its label is unknown"))
        })?;
        by_id.get(wnid.as_str()).copied().ok_or_else(|| {
            Error::layout(file.name(), format!("{name} is of class {wnid}, which the training archive lacks"))
        })
    };
    let labels = Labels::PerSample((0..table.names.len()).map(label).collect::<Result<_>>()?);
    Ok((Packed::new(vec![(file, table)], classes, labels)?, notes))
}

/// The classes of a training archive, from its outer headers alone.
fn class_list(file: &Arc<dyn ReadAt>, cache: &IndexCache) -> Result<Vec<Class>> {
    let table = cache.get(file, "imagenet classes", || {
        let (archives, _) = class_archives(file)?;
        let label_names = archives.into_iter().map(|(class, _)| class).collect();
        Ok(Table { label_names, ..Table::default() })
    })?;
    Ok(table.label_names.iter().map(|id| imagenet::named_class(id)).collect())
}

/// Returns the class of an inner archive: `n01440764` for `n01440764.tar`.
fn class_of(member: &str) -> Option<&str> {
    let name = member.rsplit('/').next()?;
    name.strip_suffix(".tar").filter(|class| !class.is_empty() && !class.starts_with('.'))
}

/// Archives by class.
type ClassArchives = Vec<(String, Member)>;

/// Returns the inner archives of a training archive, sorted by class, and the notes.
fn class_archives(file: &Arc<dyn ReadAt>) -> Result<(ClassArchives, Vec<String>)> {
    let mut tar = Tar::new(file);
    let mut archives = Vec::new();
    let mut left_out = 0;
    for member in tar.files()? {
        match class_of(&member.name) {
            Some(class) => archives.push((class.to_owned(), member)),
            None => left_out += 1,
        }
    }
    archives.sort_by(|(a, _), (b, _)| a.cmp(b));
    if let Some([(class, first), (_, second)]) = archives.array_windows().find(|[(a, _), (b, _)]| a == b) {
        let cause = format!("class {class} is there twice, also at {}", first.offset);
        return Err(tar.corrupt(Some(second.name.clone().into()), second.offset, cause));
    }
    let mut notes = Vec::new();
    if left_out > 0 {
        notes.push(format!("{}: {left_out} members are not class archives and are skipped", file.name()));
    }
    if !tar.marked_end {
        notes.push(unmarked(file.name()));
    }
    Ok((archives, notes))
}

fn index_train(file: &Arc<dyn ReadAt>) -> Result<Table> {
    let (archives, mut notes) = class_archives(file)?;
    let indexed =
        parallel(archives.len(), file.parallel_reads(), |class| images(Tar::inner(file, &archives[class].1)))?;
    let mut table = Table::default();
    let mut left_out = 0;
    for ((class, _), images) in archives.into_iter().zip(indexed) {
        table.push(&format!("train/{class}/"), &images.members)?;
        left_out += images.left_out;
        if !images.marked_end {
            notes.push(unmarked(&format!("{} → {class}.tar", file.name())));
        }
        table.label_names.push(class);
    }
    note_left_out(&mut notes, file.name(), left_out);
    table.notes = notes;
    Ok(table)
}

fn index_val(file: &Arc<dyn ReadAt>) -> Result<Table> {
    let images = images(Tar::new(file))?;
    let mut table = Table::default();
    table.push("val/", &images.members)?;
    note_left_out(&mut table.notes, file.name(), images.left_out);
    if !images.marked_end {
        table.notes.push(unmarked(file.name()));
    }
    Ok(table)
}

fn note_left_out(notes: &mut Vec<String>, name: &str, count: usize) {
    if count > 0 {
        notes.push(format!("{name}: {count} members are not images and are skipped"));
    }
}

fn unmarked(name: &str) -> String {
    format!("{name}: ends without the mark that a tar ends with; it may have been cut off between two members")
}

/// The images of one archive, sorted by name.
struct Images {
    members: Vec<Member>,
    left_out: usize,
    marked_end: bool,
}

fn images(mut tar: Tar<'_>) -> Result<Images> {
    let all = tar.files()?;
    let count = all.len();
    let is_image = |member: &Member| {
        let name = member.name.rsplit('/').next().unwrap_or_default();
        is_image_name(name) && !name.starts_with('.')
    };
    let mut members: Vec<_> = all.into_iter().filter(is_image).collect();
    for member in &members {
        sample_size(member.size)
            .map_err(|cause| tar.corrupt(Some(member.name.clone().into()), member.offset, cause))?;
    }
    members.sort_unstable_by(|a, b| (&a.name, a.offset).cmp(&(&b.name, b.offset)));
    if let Some([first, second]) = members.array_windows().find(|[a, b]| a.name == b.name) {
        let cause = format!("is there twice, also at {}", first.offset);
        return Err(tar.corrupt(Some(second.name.clone().into()), second.offset, cause));
    }
    Ok(Images { left_out: count - members.len(), members, marked_end: tar.marked_end })
}

impl Table {
    /// Appends a group of images; their sizes were checked.
    fn push(&mut self, base: &str, members: &[Member]) -> Result<()> {
        let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
        self.names.push_group(base, &names)?;
        self.offsets.extend(members.iter().map(|member| member.offset));
        self.sizes.extend(members.iter().map(|member| member.size as u32));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fs, path::PathBuf};

    use super::{
        super::{Opened, Source, SourceKind, Split, open, tar::testing},
        *,
    };

    fn pack(classes: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let members: Vec<_> = classes.iter().map(|(class, tar)| (format!("{class}.tar"), tar)).collect();
        testing::archive(&members)
    }

    fn class(files: &[(&str, &str)]) -> Vec<u8> {
        testing::archive(files)
    }

    struct Data {
        folder: tempfile::TempDir,
    }

    impl Data {
        fn new(train: Option<&[u8]>, val: Option<&[u8]>) -> Self {
            let folder = tempfile::tempdir().unwrap();
            for (bytes, name) in [train, val].into_iter().zip(OFFICIAL_NAMES) {
                if let Some(bytes) = bytes {
                    fs::write(folder.path().join(name), bytes).unwrap();
                }
            }
            Self { folder }
        }

        fn options(&self, split: Split) -> OpenOptions {
            OpenOptions { split, index_cache: Some(self.folder.path().join("cache")), ..Default::default() }
        }

        fn open(&self, split: Split) -> Result<Opened> {
            open(self.folder.path().to_str().unwrap(), &self.options(split))
        }
    }

    /// Two classes out of order, images out of order, and validation images 1 (of n01751748) and 2 (of n09193705).
    fn small() -> Data {
        let train = pack(&[
            ("n09193705", class(&[("n09193705_2.JPEG", "alp two"), ("n09193705_10.JPEG", "alp ten")])),
            ("n01751748", class(&[("n01751748_1.JPEG", "snake"), ("readme.txt", "no image")])),
        ]);
        let val = class(&[("ILSVRC2012_val_00000002.JPEG", "val alp"), ("ILSVRC2012_val_00000001.JPEG", "val snake")]);
        Data::new(Some(&train), Some(&val))
    }

    fn samples(source: &dyn Source) -> Vec<(String, Option<u32>, String)> {
        let mut bytes = vec![9; 1000];
        (0..source.len())
            .map(|index| {
                source.read(index, &mut bytes).unwrap();
                let text = String::from_utf8(bytes.clone()).unwrap();
                (source.key(index).into_owned(), source.label(index), text)
            })
            .collect()
    }

    #[test]
    fn the_archives_are_read_in_place_and_in_the_order_of_folders() {
        let data = small();
        for round in 0..2 {
            let train = data.open(Split::Train).unwrap();
            assert_eq!(train.kind, SourceKind::Archive);
            let ids: Vec<_> = train.source.classes().iter().map(|class| class.id.as_str()).collect();
            assert_eq!(ids, ["n01751748", "n09193705"]);
            let expected = [
                ("train/n01751748/n01751748_1.JPEG", Some(0), "snake"),
                ("train/n09193705/n09193705_10.JPEG", Some(1), "alp ten"),
                ("train/n09193705/n09193705_2.JPEG", Some(1), "alp two"),
            ];
            assert_eq!(samples(&train.source), expected.map(|(key, label, text)| (key.into(), label, text.into())));
            assert_eq!(train.notes.len(), 1, "the text file is noted, round {round}: {:?}", train.notes);
            let val = data.open(Split::Val).unwrap();
            let expected = [
                ("val/ILSVRC2012_val_00000001.JPEG", Some(0), "val snake"),
                ("val/ILSVRC2012_val_00000002.JPEG", Some(1), "val alp"),
            ];
            assert_eq!(samples(&val.source), expected.map(|(key, label, text)| (key.into(), label, text.into())));
            assert_eq!(data.open(Split::All).unwrap().source.len(), 5);
        }
        let location = data.open(Split::Train).unwrap().source.location(1);
        assert!(location.container.ends_with("ILSVRC2012_img_train.tar"));
        assert_eq!(location.member.as_deref(), Some("train/n09193705/n09193705_10.JPEG"));
        assert!(location.offset.is_some());
    }

    #[test]
    fn one_archive_alone_is_recognized_by_what_it_holds() {
        let data = small();
        let path = |name| data.folder.path().join(name);
        fs::rename(path(OFFICIAL_NAMES[1]), path("renamed.tar")).unwrap();
        let val = open(path("renamed.tar").to_str().unwrap(), &data.options(Split::Val)).unwrap();
        assert_eq!((val.source.classes().len(), val.source.label(0)), (1000, imagenet::val_label(1)));
        let train = open(path(OFFICIAL_NAMES[0]).to_str().unwrap(), &data.options(Split::Train)).unwrap();
        assert_eq!((train.kind, train.source.len()), (SourceKind::Archive, 3));
        let held_back = OpenOptions { val_fraction: Some(0.5), ..data.options(Split::Val) };
        let held_back = open(data.folder.path().to_str().unwrap(), &held_back).unwrap();
        assert_eq!(held_back.source.len(), 1, "half of the class of two");
        assert!(matches!(data.open(Split::Val), Err(Error::MissingSplit { .. })));
    }

    /// Every archive of the corpus is rejected with an error that names the location and the cause.
    #[test]
    fn broken_archives_are_refused_with_archive_member_and_offset() {
        let train_says = |train: &[u8], expected: &[&str]| {
            let error = Data::new(Some(train), None).open(Split::Train).unwrap_err().to_string();
            for expected in expected.iter().chain(&["ILSVRC2012_img_train.tar"]) {
                assert!(error.contains(expected), "{error} should contain {expected}");
            }
        };
        let one = class(&[("a_1.JPEG", "first"), ("a_2.JPEG", "second")]);
        let good = pack(&[("a", one.clone()), ("b", class(&[("b_1.JPEG", "third")]))]);
        assert!(Data::new(Some(&good), None).open(Split::Train).is_ok());

        train_says(&good[..300], &["@ 0", "inside a header"]);
        train_says(&good[..1000], &["a.tar", "@ 0", "bytes, but only 488 are left"]);
        train_says(&pack(&[("a", one[..1024 + 100].to_vec())]), &["a.tar", "@ 1536", "inside a header"]);
        train_says(&pack(&[("a", one[..1024 + 512].to_vec())]), &["a.tar → a_2.JPEG", "@ 1536", "only 0 are left"]);

        let mut lying = good.clone();
        testing::set_size(&mut lying, 512 + 1024, b"00000077777");
        train_says(&lying, &["a.tar → a_2.JPEG", "@ 1536", "declares 32767 bytes"]);
        let mut huge = good.clone();
        testing::set_size(&mut huge, 0, b"77777777777");
        train_says(&huge, &["a.tar", "declares 8589934591 bytes"]);

        let twice = class(&[("a_1.JPEG", "first"), ("a_1.JPEG", "again")]);
        train_says(&pack(&[("a", twice)]), &["a.tar → a_1.JPEG", "is there twice, also at 1024"]);
        train_says(&pack(&[("a", one.clone()), ("a", one.clone())]), &["a.tar", "class a is there twice"]);
        let outside = class(&[("../a_1.JPEG", "x")]);
        train_says(&pack(&[("a", outside)]), &["a.tar → ../a_1.JPEG", "out of the archive"]);
        train_says(&pack(&[("../a", one.clone())]), &["../a.tar", "out of the archive"]);
        train_says(&pack(&[("a", one.clone()), ("b", class(&[]))]), &["1 classes have no images, the first is b"]);
        train_says(&pack(&[("a", one.clone()), ("b", vec![])]), &["1 classes have no images, the first is b"]);
        train_says(&pack(&[("a", one.clone()), ("b", class(&[("x.txt", "x")]))]), &["the first is b"]);
        train_says(&pack(&[("a", class(&[]))]), &["no images at all"]);
        train_says(&pack(&[]), &["no images at all"]);
        train_says(b"", &["no images at all"]);
        train_says(&pack(&[("a", b"not a tar, though long enough to be read as a header".repeat(12))]), &["checksum"]);

        let val_says = |val: &[u8], expected: &str| {
            let error = Data::new(None, Some(val)).open(Split::Val).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("ILSVRC2012_img_val.tar"), "{error}");
        };
        val_says(&class(&[("mine.jpg", "x")]), "not an official validation image");
        val_says(&class(&[]), "no images at all");
        let val = class(&[("ILSVRC2012_val_00000003.JPEG", "a dog")]);
        let error = Data::new(Some(&good), Some(&val)).open(Split::Val).unwrap_err().to_string();
        assert!(error.contains("n02105855, which the training archive lacks"), "{error}");
    }

    #[test]
    fn empty_classes_and_missing_end_marks_are_noted_where_they_are_let_through() {
        let one = class(&[("a_1.JPEG", "first")]);
        let cut = one[..one.len() - 1024].to_vec();
        let data = Data::new(Some(&pack(&[("a", cut), ("b", vec![])])), None);
        let options = OpenOptions { allow_empty_classes: true, ..data.options(Split::Train) };
        let opened = open(data.folder.path().to_str().unwrap(), &options).unwrap();
        assert_eq!((opened.source.len(), opened.source.classes().len()), (1, 2));
        assert!(opened.notes.iter().any(|note| note.contains("a.tar: ends without the mark")), "{:?}", opened.notes);
        assert!(opened.notes.iter().any(|note| note.contains("the first is b")), "{:?}", opened.notes);
    }

    #[test]
    fn an_archive_that_shrinks_after_opening_is_an_error_at_the_sample() {
        let data = small();
        let train = data.open(Split::Train).unwrap();
        let file = fs::File::options().write(true).open(data.folder.path().join(OFFICIAL_NAMES[0])).unwrap();
        file.set_len(600).unwrap();
        let error = train.source.read(0, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("n01751748_1.JPEG @ "), "{error}");
    }

    #[test]
    fn the_sample_archives_agree_with_their_label_list() {
        let data = env::var_os("HEARTH_DATA")
            .map(PathBuf::from)
            .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"));
        let folder = data.join("ilsvrc2012-sample");
        if !folder.is_dir() {
            eprintln!("skipped: {} is missing", folder.display());
            return;
        }
        let cache = tempfile::tempdir().unwrap();
        let options =
            |split| OpenOptions { split, index_cache: Some(cache.path().to_owned()), ..OpenOptions::default() };
        let train = open(folder.to_str().unwrap(), &options(Split::Train)).unwrap().source;
        assert_eq!((train.len(), train.classes().len()), (1000, 10));
        let mut bytes = Vec::new();
        for index in 0..train.len() {
            train.read(index, &mut bytes).unwrap();
            assert_eq!(bytes[..2], [0xff, 0xd8], "{} is a JPEG", train.location(index));
            assert!(train.key(index).contains(&train.classes()[train.label(index).unwrap() as usize].id));
        }
        let val = open(folder.to_str().unwrap(), &options(Split::Val)).unwrap().source;
        let list = fs::read_to_string(folder.join("val_labels.csv")).unwrap();
        let wnids: HashMap<_, _> =
            list.lines().skip(1).map(|line| line.split(',').collect::<Vec<_>>()).map(|row| (row[0], row[1])).collect();
        assert_eq!(val.len(), wnids.len());
        for index in 0..val.len() {
            let key = val.key(index).into_owned();
            let class = &val.classes()[val.label(index).unwrap() as usize];
            assert_eq!(wnids[key.strip_prefix("val/").unwrap()], class.id);
        }
    }
}
