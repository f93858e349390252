//! Mapping of the data's classes to the network's.

use anyhow::{Result, bail};
use datasets::{Class, imagenet};
use hub::Card;

/// The network's class for each class of the data, in label order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassMap(pub Vec<u32>);

impl ClassMap {
    /// Whether the network has classes that the data lacks.
    pub fn is_subset(&self, card: &Card) -> bool {
        self.0.len() < card.classes.len()
    }

    /// Matches classes by name, or by wnid if the network has ImageNet's 1000 classes in their standard order.
    ///
    /// # Errors
    /// Fails if the network lacks a class of the data; the error names some.
    pub fn new(data: &[Class], card: &Card) -> Result<Self> {
        let of_imagenet = card.classes == hub::imagenet_classes();
        let find = |class: &Class| {
            let by_wnid = of_imagenet.then(|| imagenet::class_index(&class.id)).flatten();
            by_wnid.or_else(|| {
                let same = |name: &String| *name == class.name || *name == class.id;
                // A name that occurs twice is ambiguous.
                let mut found = card.classes.iter().enumerate().filter(|(_, name)| same(name)).map(|(at, _)| at as u32);
                match (found.next(), found.next()) {
                    (Some(index), None) => Some(index),
                    _ => None,
                }
            })
        };
        let found: Vec<Option<u32>> = data.iter().map(find).collect();
        let unknown: Vec<&str> = data
            .iter()
            .zip(&found)
            .filter(|(_, found)| found.is_none())
            .map(|(class, _)| class.name.as_str())
            .collect();
        if !unknown.is_empty() {
            let shown = unknown.iter().take(5).copied().collect::<Vec<_>>().join(", ");
            let more = if unknown.len() > 5 { format!(" and {} more", unknown.len() - 5) } else { String::new() };
            bail!(
                "the network lacks {} of the data's {} classes: {shown}{more}. It has, for instance, {}. The class names in the \
                 model card must equal those of the data (or its wnids, for ImageNet's 1000 classes)",
                unknown.len(),
                data.len(),
                card.classes.iter().take(3).cloned().collect::<Vec<_>>().join(", ")
            );
        }
        Ok(Self(found.into_iter().flatten().collect()))
    }
}

#[cfg(test)]
mod tests {
    use models::Architecture;

    use super::*;

    fn class(id: &str) -> Class {
        Class { id: id.into(), name: id.into() }
    }

    #[test]
    fn classes_match_by_name_or_wnid_only() {
        let mut card = Card::of(Architecture::ResNet18, 3, "a test");
        card.classes = vec!["cat".into(), "dog".into(), "owl".into()];
        let map = ClassMap::new(&[class("owl"), class("cat")], &card).unwrap();
        assert_eq!(map, ClassMap(vec![2, 0]));
        assert!(map.is_subset(&card));
        let error = ClassMap::new(&[class("owl"), class("cow")], &card).unwrap_err().to_string();
        assert!(error.contains("1 of the data's 2 classes: cow"), "{error}");

        let imagenet = Card::of(Architecture::ResNet18, 1000, "a test");
        let map = ClassMap::new(&[class("n02085620"), class("n01440764")], &imagenet).unwrap();
        assert_eq!(map, ClassMap(vec![151, 0]));

        card.classes = vec!["crane".into(), "dog".into(), "crane".into()];
        assert!(ClassMap::new(&[class("crane")], &card).is_err(), "a bird or a machine?");
    }
}
