//! Images as a classifier accepts them.

use std::{
    borrow::Cow,
    io::Read,
    path::{Path, PathBuf},
};

use datasets::{DecodeError, Decoded, source::MAX_SAMPLE_BYTES};
use hub::Preprocessor;
use image::{DynamicImage, RgbImage};
use runtime::files::open_regular;

use crate::error::{Error, Result};

/// An image: a file, encoded bytes, or pixels.
///
/// Functions of [`Classifier`](crate::Classifier) accept whatever converts into it:
///
/// ```
/// use hearth::ImageInput;
///
/// let file = ImageInput::from("dog.jpg");
/// let pixels = ImageInput::rgb(2, 1, &[255, 0, 0, 0, 0, 255])?;
/// let image = ImageInput::from(&image::DynamicImage::new_rgb8(64, 64));
/// # Ok::<(), hearth::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ImageInput<'a>(Kind<'a>);

#[derive(Debug, Clone)]
enum Kind<'a> {
    File(&'a Path),
    Bytes(&'a [u8]),
    Pixels(Cow<'a, RgbImage>),
    /// Pixels of other channels or types.
    Decoded(&'a DynamicImage),
}

impl<'a> ImageInput<'a> {
    /// Creates an image from rows of RGB bytes, `[height, width, 3]`.
    ///
    /// # Errors
    /// Fails if the length of `pixels` is not `3 * width * height`, or if the image is empty.
    pub fn rgb(width: u32, height: u32, pixels: &[u8]) -> Result<Self> {
        let image = RgbImage::from_raw(width, height, pixels.to_vec());
        let image = image.filter(|image| !image.is_empty() && image.len() == pixels.len()).ok_or_else(|| {
            let (given, wanted) = (pixels.len(), 3 * u64::from(width) * u64::from(height));
            let cause =
                format!("{given} bytes for {width} × {height} pixels; give {wanted} bytes, and at least a pixel");
            Error::Image { name: "the RGB buffer".into(), cause }
        })?;
        Ok(Self(Kind::Pixels(Cow::Owned(image))))
    }

    /// Decodes the image if it is encoded, resizes and crops it.
    pub(crate) fn prepare(&self, preprocessor: &Preprocessor) -> Result<RgbImage> {
        let decode = |bytes: &[u8], name: &dyn Fn() -> String| {
            let failed = |error: DecodeError| Error::Image { name: name(), cause: error.to_string() };
            let decoded = preprocessor.decode(bytes).map_err(failed)?;
            if let Some(damage) = decoded.damage {
                log::warn!("{}: {damage}; it is used as far as it can be decoded", name());
            }
            Ok(decoded.image)
        };
        let of_pixels = |cause: String| Error::Image { name: "the pixels".into(), cause };
        let resized = |image: &RgbImage| match image.is_empty() {
            true => Err(of_pixels("there are none".into())),
            false => Ok(preprocessor.prepare(image)),
        };
        match &self.0 {
            Kind::File(path) => {
                let mut bytes = Vec::new();
                open_regular(path)
                    .and_then(|file| file.take(MAX_SAMPLE_BYTES).read_to_end(&mut bytes))
                    .map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
                decode(&bytes, &|| path.display().to_string())
            }
            Kind::Bytes(bytes) => decode(bytes, &|| format!("an image of {} bytes", bytes.len())),
            Kind::Pixels(image) => resized(image),
            Kind::Decoded(image) => {
                let converted = Decoded::try_from((*image).clone()).map_err(|error| of_pixels(error.to_string()))?;
                resized(&converted.image)
            }
        }
    }
}

impl<'a> From<&'a Path> for ImageInput<'a> {
    fn from(path: &'a Path) -> Self {
        Self(Kind::File(path))
    }
}

impl<'a> From<&'a PathBuf> for ImageInput<'a> {
    fn from(path: &'a PathBuf) -> Self {
        Self(Kind::File(path))
    }
}

impl<'a> From<&'a str> for ImageInput<'a> {
    fn from(path: &'a str) -> Self {
        Self(Kind::File(path.as_ref()))
    }
}

impl<'a> From<&'a String> for ImageInput<'a> {
    fn from(path: &'a String) -> Self {
        Self(Kind::File(path.as_ref()))
    }
}

impl<'a> From<&'a [u8]> for ImageInput<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self(Kind::Bytes(bytes))
    }
}

impl<'a> From<&'a Vec<u8>> for ImageInput<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Self(Kind::Bytes(bytes))
    }
}

impl<'a> From<&'a RgbImage> for ImageInput<'a> {
    fn from(image: &'a RgbImage) -> Self {
        Self(Kind::Pixels(Cow::Borrowed(image)))
    }
}

impl<'a> From<&'a DynamicImage> for ImageInput<'a> {
    fn from(image: &'a DynamicImage) -> Self {
        Self(match image {
            DynamicImage::ImageRgb8(image) => Kind::Pixels(Cow::Borrowed(image)),
            image => Kind::Decoded(image),
        })
    }
}
