//! The features of images: the input of a network's classifier, from images prepared as in validation. They are kept in the
//! cache folder under a hash of the weights, the contents of the images and the preprocessing.

use std::{
    fs,
    io::{self, Write},
    path::Path,
    sync::atomic::Ordering,
    time::Instant,
};

use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    tensor::{Device, Tensor, TensorData},
};
use data_encoding::HEXLOWER;
use datasets::{
    ImageLoader,
    transforms::{Pipeline, batch::BatchTransforms},
};
use models::{ImageClassifier, Network};
use runtime::{
    exit::chain,
    files::write_atomic,
    progress::{Progress, Unit},
};
use sha2::{Digest, Sha256};

use crate::{
    Error, Result,
    classifier::Objective,
    progress::{StepTimes, lap},
    recipe::{Images, Recipe},
    run::Options,
};

/// The features of a set of images.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// Numbers an image.
    pub width: usize,
    /// `width` for each image, in order.
    pub values: Vec<f32>,
    pub labels: Vec<u32>,
    /// The images' indices in their source.
    pub indices: Vec<u32>,
}

/// Features, and what it took to compute them.
pub struct Computed {
    pub features: Features,
    /// Zero for features from the cache.
    pub times: StepTimes,
    /// Images that went through the network.
    pub images: u64,
}

impl Features {
    pub fn tensor(&self, device: &Device) -> Tensor<2> {
        Tensor::from_data(TensorData::new(self.values.clone(), [self.labels.len(), self.width]), device)
    }
}

/// What features depend on besides the images: the values below the head, and the preprocessing.
pub fn identity(network: &Network, recipe: &Recipe) -> Vec<u8> {
    struct Values {
        wanted: Vec<ParamId>,
        hash: Sha256,
    }
    impl ModuleVisitor for Values {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.wanted.contains(&param.id) {
                self.hash.update(param.val().into_data().as_bytes());
            }
        }
    }
    let mut values = Values { wanted: network.backbone_params(), hash: Sha256::new() };
    values.hash.update(recipe.architecture.name());
    network.visit(&mut values);
    if recipe.network.dtype.half().is_some() {
        values.hash.update(recipe.network.dtype.name());
    }
    // Images are prepared as in validation.
    let images = Images {
        train: Pipeline::eval(recipe.images.eval),
        mix: BatchTransforms::default(),
        sizes: Vec::new(),
        ..recipe.images.clone()
    };
    values.hash.update(toml::to_string(&images).expect("a recipe has only plain fields"));
    values.hash.finalize().to_vec()
}

/// The features of a loader's images: from the cache, or computed and put there. The cache knows them by the contents of the
/// images, their labels and order. Returns `None` if it was stopped.
pub fn features(
    network: &Network,
    task: &Objective,
    loader: &ImageLoader,
    identity: &[u8],
    what: &str,
    device: &Device,
    options: &Options,
) -> Result<Option<Computed>> {
    let source = loader.source();
    let mut hash = Sha256::new();
    hash.update(identity);
    let total = Some(source.len() as u64);
    let reading = Progress::new(format!("{what} images"), Unit::Items("images"), total, options.progress);
    let mut bytes = Vec::new();
    for index in 0..source.len() {
        if options.stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        hash.update(source.label(index).unwrap_or(u32::MAX).to_le_bytes());
        // Features of a set with images that cannot be read are not kept.
        let read = source.read(index, &mut bytes);
        hash.update(if read.is_ok() { Sha256::digest(&bytes) } else { Sha256::digest(b"") });
        reading.inc(1);
    }
    reading.finish();
    let name = HEXLOWER.encode(&hash.finalize()[..16]);
    let cache = datasets::cache_folder("features").map(|folder| folder.join(format!("{name}.features")));
    if let Some(path) = &cache {
        match read(path) {
            Ok(Some(features)) => return Ok(Some(Computed { features, times: StepTimes::default(), images: 0 })),
            Ok(None) => {}
            Err(error) => log::warn!("{error}; computing the features again"),
        }
    }
    let progress = Progress::new(format!("{what} features"), Unit::Items("images"), total, options.progress);
    let (network, device) = (network.valid(), device.clone().without_autodiff());
    let mut features = Features { width: 0, values: Vec::new(), labels: Vec::new(), indices: Vec::new() };
    let (mut times, mut mark) = (StepTimes::default(), Instant::now());
    for batch in loader.batches() {
        let batch = batch?;
        times.waiting += lap(&mut mark);
        let values = task.run(|| network.forward_pre_logits(task.images(&batch, &device)));
        features.width = values.dims()[1];
        features.values.extend(values.into_data().iter::<f32>());
        features.labels.extend(batch.labels.iter().flatten());
        features.indices.extend(batch.indices.iter().map(|&index| index as u32));
        times.compute += lap(&mut mark);
        progress.inc(batch.len() as u64);
        if options.stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
    }
    progress.finish();
    times.add_loader(&loader.meters());
    if !features.values.iter().all(|value| value.is_finite()) {
        return Err(Error::NotFinite("the network's features are not finite: are the weights damaged?".into()));
    }
    // What could not be read may be readable next time, and would have to be reported again.
    if let Some(path) = cache.filter(|_| times.bad_samples == 0)
        && let Err(error) = write(&path, &features)
    {
        log::warn!("{}; the features will be computed again next time", chain(&error));
    }
    let images = features.labels.len() as u64;
    Ok(Some(Computed { features, times, images }))
}

/// A file: a magic number, the width and the count, labels, indices, values, all little-endian, and their checksum.
const MAGIC: &[u8; 8] = b"hearthF1";

fn write(path: &Path, features: &Features) -> Result<(), runtime::Error> {
    write_atomic(path, |writer| {
        let mut body = Vec::new();
        body.extend((features.width as u64).to_le_bytes());
        body.extend((features.labels.len() as u64).to_le_bytes());
        features.labels.iter().chain(&features.indices).for_each(|number| body.extend(number.to_le_bytes()));
        features.values.iter().for_each(|value| body.extend(value.to_le_bytes()));
        writer.write_all(MAGIC)?;
        writer.write_all(&body)?;
        writer.write_all(&crc32fast::hash(&body).to_le_bytes())
    })
}

/// Returns the features of a file, `None` where it is not there, or why it cannot be used.
fn read(path: &Path) -> Result<Option<Features>, String> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
    };
    parse(&bytes).map(Some).ok_or_else(|| format!("{} is damaged", path.display()))
}

/// Returns the features that [`write`] wrote, unless they are damaged.
fn parse(bytes: &[u8]) -> Option<Features> {
    let (body, sum) = bytes.strip_prefix(MAGIC)?.split_last_chunk::<4>()?;
    if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
        return None;
    }
    let number =
        |at: usize| body.get(at..at + 8).map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes")) as usize);
    let (width, count) = number(0).zip(number(8))?;
    let words: Vec<[u8; 4]> = body[16..].chunks_exact(4).map(|word| word.try_into().expect("four bytes")).collect();
    if Some(words.len()) != width.checked_add(2).and_then(|each| each.checked_mul(count)) {
        return None;
    }
    let integers = |range: &[[u8; 4]]| range.iter().map(|word| u32::from_le_bytes(*word)).collect();
    Some(Features {
        width,
        labels: integers(&words[..count]),
        indices: integers(&words[count..2 * count]),
        values: words[2 * count..].iter().map(|word| f32::from_le_bytes(*word)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_come_back_from_their_file_and_damage_is_recognised() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.features");
        assert_eq!(read(&path).unwrap(), None);
        let features =
            Features { width: 2, values: vec![1.0, -2.5, 3.0, 4.0], labels: vec![1, 0], indices: vec![7, 9] };
        write(&path, &features).unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), features);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(read(&path).is_err(), "{length}");
        }
        let mut flipped = whole.clone();
        flipped[30] ^= 1;
        fs::write(&path, flipped).unwrap();
        assert!(read(&path).unwrap_err().contains("damaged"));
    }
}
