//! Changes of a card's preprocessing, and how a network with one output is read.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use crate::{Card, Error, Interpolation, Preprocess, Resize, Result};

/// Changes of a card's preprocessing. With the feature `clap` it is a group of command-line arguments.
#[derive(Debug, Clone, Default, PartialEq)]
#[cfg_attr(feature = "clap", derive(clap::Args))]
pub struct PreprocessOverrides {
    /// Resize images to this shorter side, or to exactly height x width (256x256), in place of the card's
    #[cfg_attr(feature = "clap", arg(long, value_name = "SIDE|HxW", value_parser = resize))]
    pub resize: Option<Resize>,
    /// Height and width of the center crop in pixels, as 224 or 320x256, in place of the card's
    #[cfg_attr(feature = "clap", arg(long, value_name = "H[xW]", value_parser = size))]
    pub crop: Option<[usize; 2]>,
    /// Filter of the resize, in place of the card's
    #[cfg_attr(feature = "clap", arg(long, value_name = "nearest|bilinear|bicubic", value_parser = interpolation))]
    pub interpolation: Option<Interpolation>,
    /// Mean of each channel for values from 0 to 1, as 0.485,0.456,0.406, in place of the card's
    #[cfg_attr(feature = "clap", arg(long, value_name = "M,M,M", value_parser = channels, allow_hyphen_values = true))]
    pub mean: Option<[f32; 3]>,
    /// Deviation of each channel, as 0.229,0.224,0.225, in place of the card's
    #[cfg_attr(feature = "clap", arg(long, value_name = "D,D,D", value_parser = channels))]
    pub std: Option<[f32; 3]>,
}

impl PreprocessOverrides {
    /// Returns whether everything that differs between trainings is given.
    fn is_complete(&self) -> bool {
        self.resize.is_some() && self.crop.is_some() && self.mean.is_some() && self.std.is_some()
    }

    /// Changes the card.
    ///
    /// # Errors
    /// [`Error::Override`] where the result is no valid preprocessing.
    pub fn apply(&self, card: &mut Card) -> Result<()> {
        if *self == Self::default() {
            return Ok(());
        }
        let Preprocess { resize, input_size, interpolation, mean, std, .. } = &mut card.preprocess;
        *resize = self.resize.unwrap_or(*resize);
        *input_size = self.crop.unwrap_or(*input_size);
        *interpolation = self.interpolation.unwrap_or(*interpolation);
        *mean = self.mean.unwrap_or(*mean);
        *std = self.std.unwrap_or(*std);
        let resized = match *resize {
            Resize::ShorterSide(side) => [side; 2],
            Resize::Squash(size) => size,
        };
        if self.crop.is_some() && self.resize.is_none() && (resized[0] < input_size[0] || resized[1] < input_size[1]) {
            let cause = format!(
                "--crop {}x{} is larger than the images, which are resized to {}: give --resize too",
                input_size[0],
                input_size[1],
                resize_text(*resize)
            );
            return Err(Error::Override(cause));
        }
        card.check().map_err(Error::Override)
    }

    /// Logs what is assumed for a file without a card, once for each file: `finetune --auto` opens it twice.
    pub(crate) fn warn_assumed(&self, path: &std::path::Path, card: &Card) {
        static WARNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
        if self.is_complete() {
            return;
        }
        let Preprocess { resize, input_size: [height, width], interpolation, mean, std, .. } = &card.preprocess;
        let interpolation = format!("{interpolation:?}").to_lowercase();
        let text = format!(
            "{} carries no model card: assumed that {} was trained on images resized to {} ({interpolation}), center crop \
             {height}x{width}, mean {mean:?}, deviation {std:?}. Another preprocessing gives wrong results: set it with \
             --resize, --crop, --interpolation, --mean and --std, or write a card with `infer card`",
            path.display(),
            card.architecture,
            resize_text(*resize),
        );
        if WARNED.lock().unwrap_or_else(PoisonError::into_inner).insert(text.clone()) {
            log::warn!("{text}");
        }
    }
}

fn resize_text(resize: Resize) -> String {
    match resize {
        Resize::ShorterSide(side) => format!("a shorter side of {side}"),
        Resize::Squash([height, width]) => format!("{height}x{width}"),
    }
}

/// How the outputs of a network become probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Activation {
    /// The probabilities of all classes sum to 1
    #[default]
    Softmax,
    /// One output: the probability of the second of two classes
    Sigmoid,
}

#[cfg(feature = "clap")]
fn side(text: &str) -> Result<usize, String> {
    match text.trim().parse::<usize>() {
        Ok(side) if (1..=crate::card::MAX_SIDE).contains(&side) => Ok(side),
        _ => Err(format!("`{text}` is not a number of pixels from 1 to {}", crate::card::MAX_SIDE)),
    }
}

#[cfg(feature = "clap")]
fn size(text: &str) -> Result<[usize; 2], String> {
    match text.split_once(['x', 'X', '×']) {
        Some((height, width)) => Ok([side(height)?, side(width)?]),
        None => side(text).map(|side| [side, side]),
    }
}

#[cfg(feature = "clap")]
fn resize(text: &str) -> Result<Resize, String> {
    match text.contains(['x', 'X', '×']) {
        true => size(text).map(Resize::Squash),
        false => side(text).map(Resize::ShorterSide),
    }
}

#[cfg(feature = "clap")]
fn interpolation(text: &str) -> Result<Interpolation, String> {
    match text.to_ascii_lowercase().as_str() {
        "nearest" => Ok(Interpolation::Nearest),
        "bilinear" => Ok(Interpolation::Bilinear),
        "bicubic" => Ok(Interpolation::Bicubic),
        _ => Err("expected nearest, bilinear or bicubic".to_string()),
    }
}

#[cfg(feature = "clap")]
fn channels(text: &str) -> Result<[f32; 3], String> {
    let numbers: Option<Vec<f32>> = text.split(',').map(|number| number.trim().parse().ok()).collect();
    match numbers.as_deref() {
        Some([red, green, blue]) => Ok([*red, *green, *blue]),
        Some([all]) => Ok([*all; 3]),
        _ => Err(format!("`{text}` is not three numbers such as 0.485,0.456,0.406")),
    }
}

#[cfg(test)]
mod tests {
    use models::Architecture;

    use super::*;

    #[test]
    fn what_is_given_replaces_the_card_s_and_must_be_possible() {
        let usual = Card::of(Architecture::ResNet18, 10, "a test");
        let mut card = usual.clone();
        PreprocessOverrides::default().apply(&mut card).unwrap();
        assert_eq!(card, usual);
        let overrides = PreprocessOverrides {
            resize: Some(Resize::Squash([128, 96])),
            crop: Some([128, 96]),
            mean: Some([0.5; 3]),
            ..PreprocessOverrides::default()
        };
        overrides.apply(&mut card).unwrap();
        assert_eq!((card.preprocess.resize, card.preprocess.input_size), (Resize::Squash([128, 96]), [128, 96]));
        assert_eq!((card.preprocess.mean, card.preprocess.std), ([0.5; 3], usual.preprocess.std));

        let crop = |side| PreprocessOverrides { crop: Some([side; 2]), ..PreprocessOverrides::default() };
        assert!(crop(256).apply(&mut usual.clone()).is_ok());
        let error = crop(299).apply(&mut usual.clone()).unwrap_err().to_string();
        assert!(error.contains("give --resize too"), "{error}");
        let flat = PreprocessOverrides { std: Some([0.0; 3]), ..PreprocessOverrides::default() };
        assert!(flat.apply(&mut usual.clone()).is_err());
    }

    #[cfg(feature = "clap")]
    #[test]
    fn arguments_are_sizes_and_channels() {
        assert_eq!(resize("256"), Ok(Resize::ShorterSide(256)));
        assert_eq!(resize("256x128"), Ok(Resize::Squash([256, 128])));
        assert_eq!(size("224"), Ok([224, 224]));
        assert_eq!(channels("0.5"), Ok([0.5; 3]));
        assert_eq!(channels("-1, 0,1"), Ok([-1.0, 0.0, 1.0]));
        assert_eq!(interpolation("Bicubic"), Ok(Interpolation::Bicubic));
        for wrong in ["", "0", "x", "99999", "1,2"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert!(channels("1,2").is_err());
    }
}
