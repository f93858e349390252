//! A [`Source`] as a [`Dataset`] of Burn, for Burn's own loaders and transforms.

use burn_dataset::{Dataset, DatasetError};

use crate::{Error, Source};

/// A sample for Burn's loaders: encoded bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceItem {
    /// The encoded image.
    pub bytes: Vec<u8>,
    /// The label, an index into the source's classes; `None` if the data has none.
    pub label: Option<u32>,
    /// The stable key.
    pub key: String,
}

/// Any source as a `Dataset<SourceItem>`.
///
/// ```
/// use burn_dataset::Dataset;
/// use datasets::{SourceDataset, Source};
///
/// fn first_key<S: Source>(source: S) -> Option<String> {
///     let dataset = SourceDataset(source);
///     (dataset.len() > 0).then(|| dataset.get(0).ok()).flatten().map(|item| item.key)
/// }
/// ```
#[derive(Debug, Clone)]
pub struct SourceDataset<S>(pub S);

impl<S: Source> Dataset<SourceItem> for SourceDataset<S> {
    /// Reads one sample.
    ///
    /// # Panics
    /// Panics if `index` is not below [`len`](Dataset::len), as Burn requires.
    fn get(&self, index: usize) -> Result<SourceItem, DatasetError> {
        let len = self.0.len();
        assert!(index < len, "{}", Error::OutOfRange { index, len });
        let mut bytes = Vec::new();
        self.0.read(index, &mut bytes).map_err(DatasetError::new)?;
        Ok(SourceItem { bytes, label: self.0.label(index), key: self.0.key(index).into_owned() })
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{OpenOptions, open};

    #[test]
    fn a_source_is_a_dataset_of_burn() {
        let root = tempfile::tempdir().unwrap();
        for (class, bytes) in [("a", "first"), ("b", "second")] {
            fs::create_dir(root.path().join(class)).unwrap();
            fs::write(root.path().join(class).join("1.jpg"), bytes).unwrap();
        }
        let source = open(root.path().to_str().unwrap(), &OpenOptions::default()).unwrap().source;
        let dataset = SourceDataset(source);
        let items: Vec<_> = dataset.iter().collect::<Result<_, _>>().unwrap();
        let expected =
            |bytes: &str, label, key: &str| SourceItem { bytes: bytes.into(), label: Some(label), key: key.to_owned() };
        assert_eq!(items, [expected("first", 0, "a/1.jpg"), expected("second", 1, "b/1.jpg")]);
        fs::remove_file(root.path().join("b/1.jpg")).unwrap();
        let error = dataset.get(1).unwrap_err();
        assert!(error.to_string().contains("1.jpg"), "{error}");
    }
}
