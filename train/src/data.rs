//! From a recipe's data to loaders.

use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use datasets::{
    ImageLoader, OpenOptions, PipelinePreprocess, Quarantine, Source, Split,
    transforms::{Pipeline, Transform, batch::BatchTransforms},
};
use runtime::world::world;
use sha2::{Digest, Sha256};

use crate::recipe::{ClassWeights, Data, Recipe};

/// Training and validation images of the same classes.
pub struct DataSet {
    pub train: Arc<dyn Source>,
    pub valid: Arc<dyn Source>,
    /// The kind of data, `folder` for instance.
    pub kind: &'static str,
    /// What a user should know, a sentence each.
    pub notes: Vec<String>,
}

/// Opens the data and checks that it can be trained on.
pub fn open(data: &Data, seed: u64) -> anyhow::Result<DataSet> {
    let part = |spec: &str, split: Split, val_fraction: Option<f64>| {
        let options = OpenOptions { split, val_fraction, seed, ..OpenOptions::default() };
        datasets::open(spec, &options)
    };
    let train = part(&data.train, Split::Train, data.val_fraction)?;
    let mut notes = train.notes;
    let valid = match &data.valid {
        // Data without parts is opened whole as `train`.
        Some(spec) => match part(spec, Split::Val, None) {
            Err(datasets::Error::MissingSplit { .. }) => part(spec, Split::Train, None)?,
            opened => opened?,
        },
        None => part(&data.train, Split::Val, data.val_fraction).context(
            "there are no validation images: name them in data.valid, or hold some of the training images \
             out with data.val_fraction = 0.1",
        )?,
    };
    notes.extend(valid.notes.into_iter().filter(|note| !notes.contains(note)).collect::<Vec<_>>());
    let (mut train_source, mut valid_source) = (train.source, valid.source);
    if let Some(path) = &data.quarantine {
        let list = Quarantine::load(path.as_ref())?;
        let (source, from_train) = list.apply(train_source)?;
        train_source = source;
        let (source, from_valid) = list.apply(valid_source)?;
        valid_source = source;
        notes.push(format!("{path} leaves out {from_train} training and {from_valid} validation images"));
    }
    check(&*train_source, &*valid_source, &data.train, data.valid.as_deref().unwrap_or(&data.train))?;
    Ok(DataSet { train: train_source, valid: valid_source, kind: train.kind.name(), notes })
}

fn check(train: &dyn Source, valid: &dyn Source, train_spec: &str, valid_spec: &str) -> anyhow::Result<()> {
    let classes = train.classes().len();
    ensure!(
        classes > 0,
        "{train_spec} has no classes: training needs images in one folder a class (or an archive, shards, a table with \
         labels)"
    );
    ensure!(classes > 1, "{train_spec} has one class, `{}`: there is nothing to tell apart", train.classes()[0].name);
    let ids = |source: &dyn Source| source.classes().iter().map(|class| class.id.clone()).collect::<Vec<_>>();
    let (train_ids, valid_ids) = (ids(train), ids(valid));
    if train_ids != valid_ids {
        let only = |these: &[String], those: &[String]| {
            let missing: Vec<&str> = these.iter().filter(|id| !those.contains(id)).map(String::as_str).collect();
            match missing.len() {
                0 => "none".to_string(),
                n if n > 5 => format!("{} and {} more", missing[..5].join(", "), n - 5),
                _ => missing.join(", "),
            }
        };
        bail!(
            "training and validation images have different classes: only in {train_spec}: {}; only in {valid_spec}: {}",
            only(&train_ids, &valid_ids),
            only(&valid_ids, &train_ids),
        );
    }
    for (source, spec) in [(train, train_spec), (valid, valid_spec)] {
        ensure!(!source.is_empty(), "{spec} holds no images");
        for index in 0..source.len() {
            match source.label(index) {
                Some(label) if (label as usize) < classes => {}
                Some(label) => bail!(
                    "{} has the label {label}; the labels of {classes} classes go from 0 to {}",
                    source.location(index),
                    classes - 1
                ),
                None => bail!("{} has no label", source.location(index)),
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
        let mut hash = Sha256::new();
        for class in self.train.classes() {
            hash.update(class.id.as_bytes());
            hash.update([0]);
        }
        for source in [&self.train, &self.valid] {
            hash.update((source.len() as u64).to_le_bytes());
            for index in 0..source.len() {
                hash.update(source.key(index).as_bytes());
                hash.update([0]);
                hash.update(source.label(index).unwrap_or(u32::MAX).to_le_bytes());
            }
        }
        hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The weight of each class in the loss, where the recipe weighs them.
    pub fn class_weights(&self, weights: ClassWeights) -> Option<Vec<f32>> {
        if weights == ClassWeights::Equal {
            return None;
        }
        let classes = self.train.classes().len();
        let mut counts = vec![0usize; classes];
        for index in 0..self.train.len() {
            if let Some(label) = self.train.label(index) {
                counts[label as usize] += 1;
            }
        }
        let weight = |count: usize| self.train.len() as f32 / (classes * count.max(1)) as f32;
        Some(counts.into_iter().map(weight).collect())
    }

    /// The loaders of a recipe.
    pub fn loaders(&self, recipe: &Recipe, workers: Option<usize>) -> anyhow::Result<Loaders> {
        let train = |(epoch, pipeline): (usize, Pipeline)| {
            let builder = builder(&self.train, pipeline, recipe, workers)?
                .mix(recipe.images.mix.clone())
                .shuffle()
                .repeats(recipe.data.repeats)
                .balanced(recipe.data.balanced)
                // A last batch of a few images would unsettle the batch statistics.
                .drop_last(true);
            Ok::<_, anyhow::Error>((epoch, builder.build()?))
        };
        let phases = recipe.images.phases()?.into_iter().map(train).collect::<anyhow::Result<Vec<_>>>()?;
        let eval = Pipeline::eval(recipe.images.eval);
        let valid = builder(&self.valid, eval, recipe, workers)?.mix(BatchTransforms::default()).build()?;
        Ok(Loaders { phases, valid })
    }

    /// The images of a source, each once and in order, prepared as in validation.
    pub fn in_order(
        &self,
        source: &Arc<dyn Source>,
        recipe: &Recipe,
        workers: Option<usize>,
    ) -> anyhow::Result<ImageLoader> {
        // Small batches: nothing is learnt from them, and big ones only take memory.
        Ok(builder(source, Pipeline::eval(recipe.images.eval), recipe, workers)?.batch_size(16).build()?)
    }
}

fn builder(
    source: &Arc<dyn Source>,
    pipeline: Pipeline,
    recipe: &Recipe,
    workers: Option<usize>,
) -> anyhow::Result<datasets::LoaderBuilder> {
    let preprocess = Arc::new(PipelinePreprocess::new(pipeline, recipe.images.decoding())?);
    let mut builder = ImageLoader::builder(source.clone(), preprocess)
        .batch_size(recipe.batch_size)
        .seed(recipe.seed)
        .bad_samples(recipe.data.bad_samples)
        .part_of_batches(world().rank(), world().size());
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
        let error = |train: &dyn Source| check(train, &good, "train", "val").unwrap_err().to_string();
        check(&good, &good, "train", "val").unwrap();
        assert!(error(&Labelled::new(0, [None, None])).contains("no classes"));
        assert!(error(&Labelled::new(1, [Some(0), Some(0)])).contains("one class"));
        let message = error(&Labelled::new(2, [Some(0), Some(7)]));
        assert!(message.contains("shard.tar → 1.jpg has the label 7") && message.contains("from 0 to 1"), "{message}");
        assert!(error(&Labelled::new(2, [Some(0), None])).contains("has no label"));
        assert!(error(&Labelled::new(3, [Some(0), Some(1)])).contains("only in train: 2; only in val: none"));
    }

    #[test]
    fn images_smaller_than_the_crop_are_noted() {
        let data = DataSet {
            train: Arc::new(Digits::train()),
            valid: Arc::new(Digits::test()),
            kind: "digits",
            notes: Vec::new(),
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
