//! From a recipe's data to loaders.

use std::{collections::HashSet, path::Path, sync::Arc};

use data_encoding::HEXLOWER;
use datasets::{
    Class, ImageLoader, OpenOptions, Opened, PipelinePreprocess, Quarantine, SampleRng, Source, Split,
    source::{Relabeled, Subset, split_beside},
    transforms::{Pipeline, Transform, batch::BatchTransforms},
};
use runtime::{
    communicator::communicator,
    text::{canonical, nearest, printable},
};
use sha2::{Digest, Sha256};

use crate::{
    Error, Result,
    recipe::{ClassWeights, Data, Recipe},
};

/// Training and validation images of the same classes.
#[derive(Clone)]
pub struct DataSet {
    pub train: Arc<dyn Source>,
    pub valid: Arc<dyn Source>,
    /// The kind of data, `folder` for instance.
    pub kind: &'static str,
    /// What a user should know, a sentence each.
    pub notes: Vec<String>,
    /// The fingerprint with the images that are left out, where some are.
    pub unfiltered: Option<String>,
}

/// The fraction of each class that is held out where the data has no validation split and the recipe has no
/// `data.val_fraction`.
pub const DEFAULT_VAL_FRACTION: f64 = 0.2;

/// Up to `most` images of a source, spread over all of it, in its order or in one drawn from a seed.
pub fn spread(source: &Arc<dyn Source>, most: usize, shuffle: Option<u64>) -> Result<Arc<dyn Source>> {
    let (len, count) = (source.len(), source.len().min(most));
    let mut indices: Vec<u32> = (0..count).map(|nth| (nth * len / count) as u32).collect();
    if let Some(seed) = shuffle {
        SampleRng::new(seed, u64::MAX, 0).shuffle(&mut indices);
    }
    Ok(Arc::new(Subset::new(source.clone(), indices)?))
}

/// Opens the data and checks that it can be trained on.
pub fn open(data: &Data, seed: u64) -> Result<DataSet> {
    let (train, valid, mut notes) = open_splits(data, seed)?;
    for opened in [&train, &valid] {
        for note in &opened.notes {
            if !notes.contains(note) {
                notes.push(note.clone());
            }
        }
    }
    let (mut train_source, mut valid_source) = (train.source, valid.source);
    let mut unfiltered = None;
    let valid_spec = data.valid.as_deref().unwrap_or(&data.train);
    if let Some((relabeled, note)) = relabel(&*train_source, &valid_source, valid_spec) {
        valid_source = relabeled;
        notes.extend(note);
    }
    if let Some(path) = &data.quarantine {
        unfiltered = Some(fingerprint(&*train_source, &*valid_source));
        let list = Quarantine::load(path.as_ref())?;
        let (source, from_train) = list.apply(train_source)?;
        train_source = source;
        let (source, from_valid) = list.apply(valid_source)?;
        valid_source = source;
        notes.push(format!("{path} leaves out {from_train} training and {from_valid} validation images"));
    }
    check(&*train_source, &*valid_source, &data.train, valid_spec, &notes)?;
    Ok(DataSet { train: train_source, valid: valid_source, kind: train.kind.name(), notes, unfiltered })
}

fn fingerprint(train: &dyn Source, valid: &dyn Source) -> String {
    let mut hash = Sha256::new();
    for class in train.classes() {
        hash.update(class.id.as_bytes());
        hash.update([0]);
    }
    for source in [train, valid] {
        hash.update((source.len() as u64).to_le_bytes());
        for index in 0..source.len() {
            hash.update(source.key(index).as_bytes());
            hash.update([0]);
            hash.update(source.label(index).unwrap_or(u32::MAX).to_le_bytes());
        }
    }
    HEXLOWER.encode(&hash.finalize()[..8])
}

/// Opens the training and the validation images, and notes which were held out.
fn open_splits(data: &Data, seed: u64) -> Result<(Opened, Opened, Vec<String>)> {
    let part = |spec: &str, split: Split, val_fraction: Option<f64>| {
        let options = OpenOptions {
            split,
            val_fraction,
            seed,
            allow_empty_classes: data.allow_empty_classes,
            table: data.table_options(spec),
            ..OpenOptions::default()
        };
        datasets::open(spec, &options)
    };
    let mut notes = Vec::new();
    let unused = |notes: &mut Vec<String>, why: &str| {
        if data.val_fraction.is_some() {
            notes.push(format!("data.val_fraction has no effect: {why}"));
        }
    };
    if let Some(spec) = &data.valid {
        unused(&mut notes, "data.valid has the validation images");
        let valid = match part(spec, Split::Val, None) {
            // Data without splits is opened whole as `train`.
            Err(datasets::Error::MissingSplit { .. }) => part(spec, Split::Train, None)?,
            opened => opened?,
        };
        return Ok((part(&data.train, Split::Train, None)?, valid, notes));
    }
    match part(&data.train, Split::Val, None) {
        Err(datasets::Error::MissingSplit { .. }) => {
            let fraction = data.val_fraction.unwrap_or(DEFAULT_VAL_FRACTION);
            let train = part(&data.train, Split::Train, Some(fraction))?;
            let valid = part(&data.train, Split::Val, Some(fraction))?;
            let held_out = valid.source.len();
            if held_out == 0 && !train.source.is_empty() {
                return Err(Error::Unsuitable(format!(
                    "{}: no class has two images, so none can be held out; name validation images in data.valid",
                    data.train
                )));
            }
            notes.push(format!(
                "{}: there is no validation split: {held_out} of {} images are held out ({} % of each class, drawn by the \
                 seed{}){}",
                data.train,
                held_out + train.source.len(),
                fraction * 100.0,
                if data.val_fraction.is_none() { "; data.val_fraction changes it" } else { "" },
                beside(&data.train)
            ));
            Ok((train, valid, notes))
        }
        valid => {
            let valid = valid?;
            unused(&mut notes, "the data has a validation split");
            Ok((part(&data.train, Split::Train, None)?, valid, notes))
        }
    }
}

/// A hint where the folder of training images is one of several splits.
fn beside(train: &str) -> String {
    split_beside(Path::new(train)).map_or_else(String::new, |other| {
        let name = other.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        format!("; `{}` beside it is not used: give the folder of both to validate on it", printable(&name))
    })
}

/// Returns the validation images under the training images' classes, where theirs are others but all among them, and a
/// note of the classes without validation images.
fn relabel(train: &dyn Source, valid: &Arc<dyn Source>, valid_spec: &str) -> Option<(Arc<dyn Source>, Option<String>)> {
    if train.classes() == valid.classes() || valid.classes().is_empty() {
        return None;
    }
    let relabeled = Relabeled::new(valid.clone(), train.classes())?;
    let known: HashSet<_> = valid.classes().iter().map(|class| canonical(&class.id)).collect();
    let missing = train.classes().iter().filter(|class| !known.contains(&canonical(&class.id)));
    let missing: Vec<&str> = missing.map(|class| class.name.as_str()).collect();
    let note = (!missing.is_empty())
        .then(|| format!("{valid_spec}: {} classes have no validation images: {}", missing.len(), some_of(&missing)));
    Some((Arc::new(relabeled), note))
}

/// Lists up to five names.
fn some_of(names: &[&str]) -> String {
    let names: Vec<_> = names.iter().map(|name| printable(name)).collect();
    match names.len() {
        0 => "none".to_string(),
        n if n > 5 => format!("{} and {} more", names[..5].join(", "), n - 5),
        _ => names.join(", "),
    }
}

fn check(train: &dyn Source, valid: &dyn Source, train_spec: &str, valid_spec: &str, notes: &[String]) -> Result<()> {
    let unsuitable = |cause: String| Err(Error::Unsuitable(cause));
    let classes = match train.classes() {
        [] => {
            let notes: String = notes.iter().map(|note| format!("; {note}")).collect();
            return unsuitable(format!(
                "{train_spec} has no classes: training needs images in one folder per class, a table with labels (CSV, JSON \
                 lines, Parquet), labels in the names of files (label_from), an archive or shards{notes}"
            ));
        }
        [one] => {
            return unsuitable(format!("{train_spec} has one class, `{}`: there is nothing to tell apart", one.name));
        }
        classes => classes.len(),
    };
    let ids = |source: &dyn Source| source.classes().iter().map(|class| class.id.clone()).collect::<Vec<_>>();
    let (train_ids, valid_ids) = (ids(train), ids(valid));
    if train_ids != valid_ids {
        let only = |these: &[String], those: &[String]| {
            some_of(&these.iter().filter(|id| !those.contains(id)).map(String::as_str).collect::<Vec<_>>())
        };
        return unsuitable(format!(
            "training and validation images have different classes: only in {train_spec}: {}; only in {valid_spec}: {}; \
             remove the validation images of classes that are not trained, and give classes the same names",
            only(&train_ids, &valid_ids),
            only(&valid_ids, &train_ids),
        ));
    }
    for (source, spec) in [(train, train_spec), (valid, valid_spec)] {
        if source.is_empty() {
            return unsuitable(format!("{spec} holds no images"));
        }
        for index in 0..source.len() {
            match source.label(index) {
                Some(label) if (label as usize) < classes => {}
                Some(label) => {
                    return unsuitable(format!(
                        "{} has the label {label}; the labels of {classes} classes go from 0 to {}",
                        source.location(index),
                        classes - 1
                    ));
                }
                None => return unsuitable(format!("{} has no label", source.location(index))),
            }
        }
    }
    Ok(())
}

impl DataSet {
    /// The names of the classes, in label order.
    pub fn class_names(&self) -> Vec<String> {
        self.train.classes().iter().map(|class| class.name.clone()).collect()
    }

    /// A note where training crops more than images have: what is missing becomes black.
    ///
    /// A look at the headers of some images, spread over all, since reading a million for a note would take too long.
    pub fn small_images(&self, recipe: &Recipe) -> Option<String> {
        const LOOKED_AT: usize = 64;
        let needed = recipe.images.train.transforms().iter().find_map(|transform| match transform {
            Transform::RandomCrop(crop) => Some(Some(crop.size.saturating_sub(2 * crop.padding))),
            Transform::CenterCrop(crop) => Some(Some(crop.size)),
            // Whatever comes after has the size that these give.
            Transform::Resize(_) | Transform::RandomResizedCrop(_) | Transform::RandomShorterSide(_) => Some(None),
            _ => None,
        })??;
        let (len, mut bytes) = (self.train.len(), Vec::new());
        let looked_at = len.min(LOOKED_AT);
        let is_small = |&nth: &usize| {
            let read =
                self.train.read(nth * len / looked_at, &mut bytes).ok().and_then(|()| datasets::probe(&bytes).ok());
            read.is_some_and(|header| header.width.min(header.height) < needed)
        };
        let small = (0..looked_at).filter(is_small).count();
        (small > 0).then(|| {
            format!(
                "{small} of {looked_at} training images looked at are smaller than the crop of {needed} pixels, which \
                 fills them up with black: give a size that fits, or a Resize before the crop"
            )
        })
    }

    /// A hash of which images these are: keys and labels in order, and the classes. A run resumes on the same data
    /// only, wherever it lies.
    pub fn fingerprint(&self) -> String {
        fingerprint(&*self.train, &*self.valid)
    }

    /// Checksums of the bytes of some images, spread over all: the fingerprint does not read them. 0 for one that cannot
    /// be read.
    pub fn sample_contents(&self) -> Vec<u32> {
        const MOST: usize = 64;
        let mut bytes = Vec::new();
        let mut sums = Vec::new();
        for source in [&self.train, &self.valid] {
            let count = source.len().min(MOST);
            for nth in 0..count {
                let read = source.read(nth * source.len() / count, &mut bytes);
                sums.push(read.map_or(0, |()| crc32fast::hash(&bytes)));
            }
        }
        sums
    }

    /// The weight of each class in the loss, where the recipe weighs them.
    ///
    /// # Errors
    /// [`Error::Unsuitable`] for weights of classes that the data does not have.
    pub fn class_weights(&self, weights: &ClassWeights) -> Result<Option<Vec<f32>>> {
        let classes = self.train.classes();
        match weights {
            ClassWeights::Equal => Ok(None),
            ClassWeights::Balanced => {
                let mut counts = vec![0usize; classes.len()];
                for index in 0..self.train.len() {
                    if let Some(label) = self.train.label(index) {
                        counts[label as usize] += 1;
                    }
                }
                let weight = |count: usize| self.train.len() as f32 / (classes.len() * count.max(1)) as f32;
                Ok(Some(counts.into_iter().map(weight).collect()))
            }
            ClassWeights::List(list) if list.len() == classes.len() => Ok(Some(list.clone())),
            ClassWeights::List(list) => Err(Error::Unsuitable(format!(
                "loss.class_weights has {} weights, and the data has {} classes: {}",
                list.len(),
                classes.len(),
                some_of(&classes.iter().map(|class| class.name.as_str()).collect::<Vec<_>>())
            ))),
            ClassWeights::ByClass(by_class) => {
                let is = |class: &Class, name: &str| class.id == *name || class.name == *name;
                if let Some(unknown) = by_class.keys().find(|name| !classes.iter().any(|class| is(class, name))) {
                    let names: Vec<&str> = classes.iter().map(|class| class.name.as_str()).collect();
                    let meant = nearest(unknown, names.iter().copied());
                    let meant = meant.map_or(String::new(), |name| format!("; did you mean `{}`?", printable(name)));
                    return Err(Error::Unsuitable(format!(
                        "loss.class_weights names the class `{}`, which the data does not have{meant}; its classes are {}",
                        printable(unknown),
                        some_of(&names)
                    )));
                }
                // A name that several classes have is the weight of each.
                let weight = |class: &Class| {
                    let by_id = by_class.get(&class.id).or_else(|| by_class.get(&class.name));
                    by_id.copied().unwrap_or(1.0)
                };
                Ok(Some(classes.iter().map(weight).collect()))
            }
        }
    }

    /// The loaders of a recipe. An epoch of fewer images than a batch is one smaller batch.
    pub fn loaders(&self, recipe: &Recipe, workers: Option<usize>) -> Result<Loaders> {
        let (count, batch_size) = (self.train.len(), recipe.batch_size);
        if count < batch_size && communicator().is_root() {
            log::warn!(
                "the {count} training images are fewer than a batch of {batch_size}: each step takes all of them, and a \
                 learning rate for larger batches may be too high"
            );
        }
        let train = |(epoch, pipeline): (usize, Pipeline)| {
            let builder = builder(&self.train, pipeline, recipe, workers)?
                .mix(recipe.images.mix.clone())
                .order(recipe.data.order.order())
                .repeats(recipe.data.repeats)
                .balance(recipe.data.balance())
                // A last batch of a few images would unsettle the batch statistics, unless there is no other.
                .drop_last(count >= batch_size);
            Ok::<_, Error>((epoch, builder.build()?))
        };
        let phases = recipe.images.phases()?.into_iter().map(train).collect::<Result<Vec<_>>>()?;
        let eval = Pipeline::eval(recipe.images.eval);
        let valid = builder(&self.valid, eval, recipe, workers)?.mix(BatchTransforms::default()).build()?;
        Ok(Loaders { phases, valid })
    }

    /// The images of a source, each once and in order, prepared as in validation.
    pub fn in_order(&self, source: &Arc<dyn Source>, recipe: &Recipe, workers: Option<usize>) -> Result<ImageLoader> {
        // Small batches: nothing is learnt from them, and big ones only take memory. Every process has all of them.
        let builder = builder(source, Pipeline::eval(recipe.images.eval), recipe, workers)?;
        Ok(builder.batch_size(16).part_of_batches(0, 1).build()?)
    }
}

fn builder(
    source: &Arc<dyn Source>,
    pipeline: Pipeline,
    recipe: &Recipe,
    workers: Option<usize>,
) -> Result<datasets::LoaderBuilder> {
    let preprocess = Arc::new(PipelinePreprocess::new(pipeline, recipe.images.decoding())?);
    let mut builder = ImageLoader::builder(source.clone(), preprocess)
        .batch_size(recipe.batch_size)
        .seed(recipe.seed)
        .bad_samples(recipe.data.bad_samples)
        .part_of_batches(communicator().rank(), communicator().size());
    if let Some(workers) = workers {
        builder = builder.workers(workers);
    }
    Ok(builder)
}

/// What an epoch reads.
pub struct Loaders {
    /// The training images, with the epoch, from 0, from which on each is used.
    phases: Vec<(usize, ImageLoader)>,
    pub valid: ImageLoader,
}

impl Loaders {
    /// The training images of an epoch.
    pub fn train(&self, epoch: usize) -> &ImageLoader {
        let begun = self.phases.iter().rev().find(|(first, _)| *first <= epoch);
        &begun.unwrap_or(&self.phases[0]).1
    }

    /// The first phase's.
    pub fn first(&self) -> &ImageLoader {
        &self.phases[0].1
    }

    /// The samples that could not be read or decoded so far, and those that were decoded around damage.
    pub fn bad_samples(&self) -> Vec<datasets::loader::BadSample> {
        let loaders = self.phases.iter().map(|(_, loader)| loader).chain([&self.valid]);
        loaders.flat_map(|loader| [loader.bad_samples(), loader.damaged_samples()].concat()).collect()
    }
}

/// Whether a transform draws anything.
pub fn is_random(transform: &Transform) -> bool {
    !matches!(transform, Transform::Resize(_) | Transform::CenterCrop(_))
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use datasets::{Class, Digits, Location};

    use super::*;
    use crate::recipe::{Overrides, load};

    /// Two images of `classes` classes with the given labels.
    struct Labelled {
        classes: Vec<Class>,
        labels: [Option<u32>; 2],
    }

    impl Labelled {
        fn new(classes: usize, labels: [Option<u32>; 2]) -> Self {
            let class = |id: usize| Class { id: id.to_string(), name: id.to_string() };
            Self { classes: (0..classes).map(class).collect(), labels }
        }
    }

    impl Source for Labelled {
        fn len(&self) -> usize {
            self.labels.len()
        }
        fn classes(&self) -> &[Class] {
            &self.classes
        }
        fn label(&self, index: usize) -> Option<u32> {
            self.labels[index]
        }
        fn key(&self, index: usize) -> Cow<'_, str> {
            index.to_string().into()
        }
        fn location(&self, index: usize) -> Location {
            Location { container: "shard.tar".into(), member: Some(format!("{index}.jpg")), offset: None }
        }
        fn read(&self, _index: usize, _buffer: &mut Vec<u8>) -> datasets::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn data_that_cannot_be_trained_on_is_refused() {
        let good = Labelled::new(2, [Some(0), Some(1)]);
        let error = |train: &dyn Source| check(train, &good, "train", "val", &[]).unwrap_err().to_string();
        check(&good, &good, "train", "val", &[]).unwrap();
        assert!(error(&Labelled::new(0, [None, None])).contains("no classes"));
        assert!(error(&Labelled::new(1, [Some(0), Some(0)])).contains("one class"));
        let message = error(&Labelled::new(2, [Some(0), Some(7)]));
        assert!(message.contains("shard.tar → 1.jpg has the label 7") && message.contains("from 0 to 1"), "{message}");
        assert!(error(&Labelled::new(2, [Some(0), None])).contains("has no label"));
        assert!(error(&Labelled::new(3, [Some(0), Some(1)])).contains("only in train: 2; only in val: none"));
    }

    /// A folder with the given files, each of which has no image.
    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file).unwrap();
        }
        root
    }

    #[test]
    fn a_fifth_of_each_class_is_held_out_by_the_seed_where_there_is_no_split() {
        let files: Vec<String> =
            ["cat", "dog"].iter().flat_map(|class| (0..10).map(move |i| format!("{class}/{i}.jpg"))).collect();
        let root = tree(&files.iter().map(String::as_str).collect::<Vec<_>>());
        let data =
            |val_fraction| Data { train: root.path().to_str().unwrap().to_owned(), val_fraction, ..Data::default() };
        let keys = |source: &Arc<dyn Source>| (0..source.len()).map(|i| source.key(i).into_owned()).collect::<Vec<_>>();
        let labels = |source: &Arc<dyn Source>| (0..source.len()).map(|i| source.label(i)).collect::<Vec<_>>();
        let opened = open(&data(None), 7).unwrap();
        assert_eq!(opened.train.len(), 16);
        assert_eq!(labels(&opened.valid), [Some(0), Some(0), Some(1), Some(1)]);
        assert!(opened.notes[0].contains("4 of 20 images are held out (20 % of each class"), "{:?}", opened.notes);
        assert_eq!(keys(&open(&data(None), 7).unwrap().valid), keys(&opened.valid));
        assert_ne!(keys(&open(&data(None), 8).unwrap().valid), keys(&opened.valid));
        assert_eq!(open(&data(Some(0.5)), 7).unwrap().valid.len(), 10);
        let single = tree(&["a/1.jpg", "b/1.jpg"]);
        let data = Data { train: single.path().to_str().unwrap().to_owned(), ..Data::default() };
        assert!(open(&data, 7).err().unwrap().to_string().contains("no class has two images"));
    }

    #[test]
    fn the_split_that_selects_the_best_epoch_is_noted_and_errors_are_the_datas_own() {
        let open = |files: &[&str], val_fraction| {
            let root = tree(files);
            let train = root.path().to_str().unwrap().to_owned();
            super::open(&Data { train, val_fraction, ..Data::default() }, 0)
        };
        let both = ["train/a/1.jpg", "train/b/1.jpg", "test/a/2.jpg", "test/b/2.jpg"];
        let notes = open(&both, Some(0.5)).unwrap().notes;
        assert!(notes[0].contains("data.val_fraction has no effect"), "{notes:?}");
        assert!(notes[1].contains("`test` is the validation split, which selects the best epoch"), "{notes:?}");
        let error = open(&["train/a/1.jpg", "train/b/1.jpg", "val/c/1.jpg"], None).err().unwrap();
        let error = error.to_string();
        assert!(error.contains("class `c` is unknown") && !error.contains("no validation"), "{error}");
    }

    #[test]
    fn validation_images_may_lack_classes_but_not_have_others() {
        let (train, valid) = (tree(&["a/1.jpg", "b/1.jpg", "c/1.jpg"]), tree(&["a/2.jpg", "c/2.jpg"]));
        let data = |train: &tempfile::TempDir, valid: &tempfile::TempDir| Data {
            train: train.path().to_str().unwrap().to_owned(),
            valid: Some(valid.path().to_str().unwrap().to_owned()),
            ..Data::default()
        };
        let opened = open(&data(&train, &valid), 0).unwrap();
        assert_eq!((opened.valid.classes(), opened.valid.label(1)), (opened.train.classes(), Some(2)));
        assert!(opened.notes[0].ends_with("1 classes have no validation images: b"), "{:?}", opened.notes);
        let error = open(&data(&valid, &train), 0).err().unwrap().to_string();
        assert!(error.contains("different classes") && error.contains(": b;"), "{error}");
    }

    #[test]
    fn images_smaller_than_the_crop_are_noted() {
        let data = DataSet {
            train: Arc::new(Digits::train()),
            valid: Arc::new(Digits::test()),
            kind: "digits",
            notes: Vec::new(),
            unfiltered: None,
        };
        let recipe = |train: &str| {
            let mut overrides = Overrides::default();
            overrides.parse(&format!("images.train={train}")).unwrap();
            load("digits", &overrides).unwrap()
        };
        let note = data.small_images(&recipe("[{ name = \"RandomCrop\", size = 16 }]")).unwrap();
        assert!(note.starts_with("64 of 64") && note.contains("crop of 16 pixels"), "{note}");
        assert_eq!(data.small_images(&recipe("[{ name = \"RandomCrop\", size = 12, padding = 2 }]")), None);
        assert_eq!(data.small_images(&load("digits", &Overrides::default()).unwrap()), None);
    }
}
