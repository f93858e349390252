//! Built-in facts about ImageNet (ILSVRC 2012): its classes and the labels of its validation images.
//!
//! The official validation archive holds 50,000 unordered images without labels; the labels are in a separate devkit. They
//! are built in here, so that the archive alone suffices. The *ReaL* labels of Beyer et al. 2020, [Are
//! we done with ImageNet?](https://arxiv.org/abs/2006.07159): for each validation image all classes that a person would
//! accept, which may be none.

use std::{collections::HashMap, sync::LazyLock};

use crate::Class;

/// The number of classes of ILSVRC 2012.
pub const CLASSES: usize = 1000;

/// The number of validation images of ILSVRC 2012.
pub const VAL_IMAGES: usize = 50_000;

/// One line a class in label order, `wnid TAB name`: the wnids sort as the labels do.
static CLASS_LIST: &str = include_str!("../../data/imagenet_classes.tsv");

/// The label of each validation image, u16 little-endian.
static VAL_LABELS: &[u8] = include_bytes!("../../data/imagenet_val_labels.bin");

/// For each validation image a count (u8) and that many labels (u16 little-endian).
static REAL_LABELS: &[u8] = include_bytes!("../../data/imagenet_real_labels.bin");

static PARSED_CLASSES: LazyLock<Vec<Class>> = LazyLock::new(|| {
    CLASS_LIST
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(id, name)| Class { id: id.to_owned(), name: name.to_owned() })
        .collect()
});

static CLASS_INDEX: LazyLock<HashMap<&'static str, u32>> =
    LazyLock::new(|| classes().iter().enumerate().map(|(index, class)| (class.id.as_str(), index as u32)).collect());

/// The ReaL labels of all images in one list, and where each image's labels begin in it.
static PARSED_REAL_LABELS: LazyLock<(Vec<u16>, Vec<u32>)> = LazyLock::new(|| {
    let (mut labels, mut starts, mut rest) = (Vec::new(), vec![0], REAL_LABELS);
    while let Some((&count, tail)) = rest.split_first() {
        let (bytes, tail) = tail.split_at(2 * usize::from(count));
        labels.extend(bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])));
        starts.push(labels.len() as u32);
        rest = tail;
    }
    (labels, starts)
});

/// Returns the 1000 classes in label order: `id` is the wnid (`n01440764`), `name` the name for people (`tench`).
pub fn classes() -> &'static [Class] {
    &PARSED_CLASSES
}

/// Returns the label of a wnid; `None` for one that is not among the 1000.
pub fn class_index(wnid: &str) -> Option<u32> {
    CLASS_INDEX.get(wnid).copied()
}

/// Returns the class of an identifier, with its English name if it is a wnid of ImageNet, else with the identifier as its
/// name.
pub fn named_class(id: &str) -> Class {
    match class_index(id) {
        Some(index) => classes()[index as usize].clone(),
        None => Class { id: id.to_owned(), name: id.to_owned() },
    }
}

/// Returns the number of a validation image from its official file name, with or without folders before it:
/// 1 for `ILSVRC2012_val_00000001.JPEG`, 50,000 for the last one; `None` for any other name.
pub fn val_number(file_name: &str) -> Option<u32> {
    let name = file_name.rsplit(['/', '\\']).next()?;
    let digits = name.strip_prefix("ILSVRC2012_val_")?.split('.').next()?;
    let number = (digits.len() == 8).then(|| digits.parse::<u32>().ok())??;
    (1..=VAL_IMAGES as u32).contains(&number).then_some(number)
}

/// Returns the label of validation image `number` (from 1, as in its file name); `None` outside 1 ..= 50,000.
pub fn val_label(number: u32) -> Option<u32> {
    let at = 2 * (number as usize).checked_sub(1)?;
    let pair = VAL_LABELS.get(at..at + 2)?;
    Some(u32::from(u16::from_le_bytes([pair[0], pair[1]])))
}

/// Returns the ReaL labels of validation image `number` (from 1, as in its file name), none to nine of them; `None` outside 1
/// ..= 50,000. An image with an empty list does not count for the ReaL accuracy.
pub fn real_labels(number: u32) -> Option<&'static [u16]> {
    let (labels, starts) = &*PARSED_REAL_LABELS;
    let image = (number as usize).checked_sub(1)?;
    let (start, end) = (*starts.get(image)?, *starts.get(image + 1)?);
    Some(&labels[start as usize..end as usize])
}

#[cfg(test)]
mod tests {
    use std::{env, fs, path::PathBuf};

    use super::*;

    fn shared_labels() -> Option<PathBuf> {
        let data = env::var_os("HEARTH_DATA")
            .map(PathBuf::from)
            .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"));
        let folder = data.join("labels");
        if !folder.is_dir() {
            eprintln!("skipped: {} is missing", folder.display());
            return None;
        }
        Some(folder)
    }

    #[test]
    fn the_class_list_is_whole_sorted_and_named() {
        assert_eq!(classes().len(), CLASSES);
        assert!(classes().is_sorted_by(|a, b| a.id < b.id), "wnids must sort as labels do");
        assert!(classes().iter().all(|class| class.id.len() == 9 && !class.name.is_empty()));
        assert_eq!(class_index("n02085620"), Some(151));
        assert_eq!(named_class("n02085620").name, "Chihuahua");
        assert_eq!(named_class("my dog").name, "my dog");
    }

    #[test]
    fn every_class_has_fifty_validation_images() {
        let mut counts = [0; CLASSES];
        for number in 1..=VAL_IMAGES as u32 {
            counts[val_label(number).unwrap() as usize] += 1;
        }
        assert_eq!(counts, [50; CLASSES]);
        assert_eq!(val_label(0), None);
        assert_eq!(val_label(VAL_IMAGES as u32 + 1), None);
    }

    #[test]
    fn real_labels_match_the_papers_counts() {
        let all: Vec<_> = (1..=VAL_IMAGES as u32).map(|number| real_labels(number).unwrap()).collect();
        assert!(all.iter().flat_map(|labels| labels.iter()).all(|&label| usize::from(label) < CLASSES));
        assert_eq!(all.iter().filter(|labels| !labels.is_empty()).count(), 46_837);
        assert_eq!(real_labels(2), Some(&[970, 795][..]));
        assert_eq!(real_labels(0), None);
        assert_eq!(real_labels(VAL_IMAGES as u32 + 1), None);
    }

    #[test]
    fn validation_images_are_numbered_by_their_file_names() {
        assert_eq!(val_number("ILSVRC2012_val_00000001.JPEG"), Some(1));
        assert_eq!(val_number("val/n01440764/ILSVRC2012_val_00050000.JPEG"), Some(50_000));
        for other in ["ILSVRC2012_val_00050001.JPEG", "ILSVRC2012_val_00000000.JPEG", "ILSVRC2012_val_1.JPEG", "a.jpg"]
        {
            assert_eq!(val_number(other), None, "{other}");
        }
    }

    #[test]
    fn the_labels_agree_with_the_reference_lists() {
        let Some(folder) = shared_labels() else { return };
        let labels = fs::read_to_string(folder.join("ilsvrc2012_val_class_index.txt")).unwrap();
        for (number, line) in (1..).zip(labels.lines()) {
            assert_eq!(val_label(number), line.trim().parse().ok(), "image {number}");
        }
        assert_eq!(labels.lines().count(), VAL_IMAGES);
        let words = fs::read_to_string(folder.join("synset_words.txt")).unwrap();
        for (class, line) in classes().iter().zip(words.lines()) {
            assert_eq!(Some(class.id.as_str()), line.split_whitespace().next());
        }
    }
}
