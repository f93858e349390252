//! The running statistics of batch normalization in transfer: whether they are trained, whether they fit the images, and
//! computing them anew.

use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::{Device, Tensor, TensorData};
use datasets::ImageLoader;
use models::{ImageClassifier, Network, NetworkConfig};

use crate::{
    Result,
    classifier::Objective,
    recipe::{BatchNormMode, Recipe},
};

/// Fewer images than these in a batch of one device, or in all, and `auto` freezes the running statistics.
const FEW_IN_A_BATCH: usize = 16;
const FEW_IMAGES: usize = 2000;

/// A layer's statistics do not fit if the median channel's variance differs by more than this factor, or its mean by more
/// than this number of stored standard deviations.
const VARIANCE_FACTOR: f64 = 4.0;
const MEAN_SHIFT: f64 = 2.0;

/// Replaces `auto` by what fits the number of training images. Returns a sentence about it, for a network with batch
/// normalization.
pub fn decide(recipe: &mut Recipe, images: usize, devices: usize, device: &Device) -> Option<String> {
    let batch = recipe.batch_size / devices.max(1);
    let architecture = recipe.architecture;
    let transfer = recipe.transfer.as_mut().filter(|transfer| transfer.batchnorm == BatchNormMode::Auto)?;
    // Parameters are not drawn until they are used.
    let mut network = NetworkConfig::new(architecture).init(device);
    let what = "running statistics of batch normalization";
    let (mode, text) = if images < FEW_IMAGES {
        (
            BatchNormMode::Freeze,
            format!("{what} stay frozen: there are {images} training images, fewer than {FEW_IMAGES}"),
        )
    } else if batch < FEW_IN_A_BATCH {
        let text = format!("{what} stay frozen: a batch of a device has {batch} images, fewer than {FEW_IN_A_BATCH}");
        (BatchNormMode::Freeze, text)
    } else {
        (BatchNormMode::Train, format!("{what} are trained: {images} training images, {batch} in a batch of a device"))
    };
    transfer.batchnorm = mode;
    (!network.norms_mut().is_empty()).then_some(text)
}

/// The mean and the variance of each channel of a batch normalization's input.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    mean: Vec<f64>,
    variance: Vec<f64>,
}

impl Moments {
    /// Whether they are those that a network begins with.
    fn are_initial(&self) -> bool {
        self.mean.iter().all(|mean| *mean == 0.0) && self.variance.iter().all(|variance| *variance == 1.0)
    }

    /// Whether others are far from these.
    fn are_far_from(&self, seen: &Self) -> bool {
        const EPSILON: f64 = 1e-5;
        let stored = self.mean.iter().zip(&self.variance);
        let pairs: Vec<_> = stored.zip(seen.mean.iter().zip(&seen.variance)).collect();
        let ratio = |&((_, stored), (_, seen)): &((&f64, &f64), (&f64, &f64))| {
            ((seen + EPSILON) / (stored + EPSILON)).ln().abs()
        };
        let shift = |&((stored, variance), (seen, _)): &((&f64, &f64), (&f64, &f64))| {
            (seen - stored).abs() / (variance + EPSILON).sqrt()
        };
        median(pairs.iter().map(ratio)) > VARIANCE_FACTOR.ln() || median(pairs.iter().map(shift)) > MEAN_SHIFT
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// The running statistics of a network, a layer each.
pub fn stored(network: &Network) -> Vec<Moments> {
    let values = |tensor: Tensor<1>| tensor.into_data().iter::<f64>().collect();
    let of = |norm: &mut burn::nn::BatchNorm| Moments {
        mean: values(norm.running_mean.value_sync()),
        variance: values(norm.running_var.value_sync()),
    };
    // Copies share them.
    network.clone().norms_mut().into_iter().map(of).collect()
}

/// Replaces the running statistics of a network, which its copies share.
pub fn set(network: &Network, moments: &[Moments]) {
    for (norm, Moments { mean, variance }) in network.clone().norms_mut().into_iter().zip(moments) {
        for (state, values) in [(&norm.running_mean, mean), (&norm.running_var, variance)] {
            let device = state.value_sync().device();
            let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
            let channels = values.len();
            state.update(Tensor::from_data(TensorData::new(values, [channels]), &device));
            // Until then a copy that is made has the old ones.
            drop(state.value_sync());
        }
    }
}

/// The statistics over a loader's images, each batch of them normalized by its own, as PyTorch's `update_bn` does; and the
/// network is left as it was. Returns `None` if it was stopped.
///
/// # Errors
/// Where an image cannot be read.
pub fn measure(
    network: &Network,
    task: &Objective,
    loader: &ImageLoader,
    device: &Device,
    stop: &AtomicBool,
) -> Result<Option<Vec<Moments>>> {
    let before = stored(network);
    let mut probing = network.clone();
    // A batch's statistics then replace those before.
    probing.norms_mut().into_iter().for_each(|norm| norm.momentum = 1.0);
    let device = device.clone().autodiff();
    let mut sums: Vec<Moments> = Vec::new();
    let (mut weight, mut is_stopped, mut failure) = (0.0, false, None);
    for batch in loader.batches() {
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => {
                failure = Some(error);
                break;
            }
        };
        is_stopped = stop.load(Ordering::Relaxed);
        if is_stopped {
            break;
        }
        let images = batch.len() as f64;
        drop(task.run(|| probing.forward_aux(task.images(&batch, &device))));
        let own = stored(&probing);
        // Second moments, whose mean is that of all images.
        let squares = |Moments { mean, variance }: Moments| Moments {
            variance: mean.iter().zip(&variance).map(|(mean, variance)| images * (variance + mean * mean)).collect(),
            mean: mean.iter().map(|mean| images * mean).collect(),
        };
        let own: Vec<Moments> = own.into_iter().map(squares).collect();
        if sums.is_empty() {
            sums = own;
        } else {
            for (sum, own) in sums.iter_mut().zip(own) {
                sum.mean.iter_mut().zip(own.mean).for_each(|(sum, own)| *sum += own);
                sum.variance.iter_mut().zip(own.variance).for_each(|(sum, own)| *sum += own);
            }
        }
        weight += images;
    }
    set(network, &before);
    match failure {
        Some(error) => return Err(error.into()),
        None if is_stopped || weight == 0.0 => return Ok(None),
        None => {}
    }
    for Moments { mean, variance } in &mut sums {
        mean.iter_mut().for_each(|mean| *mean /= weight);
        variance.iter_mut().zip(mean).for_each(|(square, mean)| *square = (*square / weight - *mean * *mean).max(0.0));
    }
    Ok(Some(sums))
}

/// Why stored statistics do not fit those of a network's images, where most layers' do not.
pub fn misfit(stored: &[Moments], seen: &[Moments]) -> Option<String> {
    let layers = stored.len();
    let initial = stored.iter().filter(|moments| moments.are_initial()).count();
    if 2 * initial > layers {
        return Some(format!("in {initial} of {layers} layers they are mean 0 and variance 1, as before any training"));
    }
    let far = stored.iter().zip(seen).filter(|(stored, seen)| stored.are_far_from(seen)).count();
    (2 * far > layers).then(|| {
        format!(
            "in {far} of {layers} layers the activations of the first images have other means or variances (by more than \
             {MEAN_SHIFT} standard deviations or a factor of {VARIANCE_FACTOR})"
        )
    })
}

#[cfg(test)]
mod tests {
    use models::Architecture;

    use super::*;
    use crate::recipe::{Overrides, load};

    fn moments(mean: &[f64], variance: &[f64]) -> Moments {
        Moments { mean: mean.to_vec(), variance: variance.to_vec() }
    }

    #[test]
    fn statistics_that_do_not_fit_are_told_from_a_shift_of_the_data() {
        let seen = vec![moments(&[0.5, -2.0, 0.1], &[0.2, 3.0, 0.01]); 4];
        let shifted = vec![moments(&[0.4, -1.5, 0.15], &[0.3, 2.0, 0.02]); 4];
        assert_eq!(misfit(&shifted, &seen), None);
        let initial = vec![moments(&[0.0; 3], &[1.0; 3]); 4];
        assert!(misfit(&initial, &seen).unwrap().contains("4 of 4 layers they are mean 0 and variance 1"));
        let scaled = vec![moments(&[0.5, -2.0, 0.1], &[2.0, 30.0, 0.1]); 4];
        assert!(misfit(&scaled, &seen).unwrap().contains("a factor of 4"));
        let mixed = [&shifted[..3], &initial[..1]].concat();
        assert_eq!(misfit(&mixed, &seen), None, "one layer of four");
        assert_eq!(misfit(&[], &[]), None, "a network without batch normalization");
    }

    #[test]
    fn statistics_are_stored_in_all_copies() {
        let network = NetworkConfig::new(Architecture::ResNet20).with_num_classes(3).init(&Device::flex().autodiff());
        let mut wanted = stored(&network);
        assert!(wanted.len() == 19 && wanted.iter().all(Moments::are_initial));
        wanted[2].mean[1] = 0.25;
        wanted[2].variance[0] = 4.0;
        set(&network, &wanted);
        assert_eq!(stored(&network), wanted);
        use burn::module::Module;
        assert_eq!(stored(&network.valid()), wanted);
    }

    #[test]
    fn auto_follows_the_number_of_images_and_an_explicit_mode_stays() {
        let recipe = |changes: &[&str]| {
            let mut overrides = Overrides::default();
            changes.iter().for_each(|change| overrides.parse(change).unwrap());
            load("finetune", &overrides).unwrap()
        };
        let decide = |changes: &[&str], images, devices| {
            let mut recipe = recipe(changes);
            let text = super::decide(&mut recipe, images, devices, &Device::flex());
            (recipe.transfer.unwrap().batchnorm, text)
        };
        let (mode, text) = decide(&[], 244, 1);
        assert!(mode == BatchNormMode::Freeze && text.unwrap().contains("there are 244 training images"));
        assert_eq!(decide(&[], 5000, 1).0, BatchNormMode::Train);
        assert_eq!(decide(&[], 5000, 4).0, BatchNormMode::Freeze);
        assert_eq!(decide(&["transfer.batchnorm=train"], 244, 1), (BatchNormMode::Train, None));
        assert_eq!(decide(&["architecture=vgg16"], 244, 1), (BatchNormMode::Freeze, None));
    }
}
