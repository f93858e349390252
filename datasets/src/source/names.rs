//! The samples' names and labels, packed: a million paths in a few bytes each.

use super::codec::{Decoder, Encoder};
use crate::{Error, Result};

/// A list of names in groups (a folder, an inner archive, a shard). What all names of a group begin and end with is
/// kept once: `train/n01440764/n01440764_10026.JPEG` costs the five bytes of `10026` and four for where they end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names {
    groups: Vec<NameGroup>,
    /// The end of each name's own part in `text`; it begins at the end of the previous one.
    ends: Vec<u32>,
    text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct NameGroup {
    first: u32,
    prefix: String,
    suffix: String,
}

impl Names {
    /// Appends a group: every name is `base` followed by one of `names`.
    ///
    /// # Errors
    /// Fails if the packed names pass 4 GiB or the samples 4 billion.
    pub(crate) fn push_group<S: AsRef<str>>(&mut self, base: &str, names: &[S]) -> Result<()> {
        let (prefix, suffix) = common_ends(names);
        let first = u32::try_from(self.ends.len()).map_err(|_| too_many())?;
        for name in names {
            let name = name.as_ref();
            self.text.push_str(&name[prefix.len()..name.len() - suffix.len()]);
            self.ends.push(u32::try_from(self.text.len()).map_err(|_| too_many())?);
        }
        self.groups.push(NameGroup { first, prefix: format!("{base}{prefix}"), suffix: suffix.to_owned() });
        Ok(())
    }

    /// Gives back what growing reserved.
    pub(crate) fn shrink_to_fit(&mut self) {
        self.groups.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.text.shrink_to_fit();
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// The number of names in a group.
    pub(crate) fn group_len(&self, group: usize) -> usize {
        let end = self.groups.get(group + 1).map_or(self.ends.len(), |next| next.first as usize);
        end - self.groups[group].first as usize
    }

    /// Appends all groups of another list.
    ///
    /// # Errors
    /// As [`push_group`](Names::push_group).
    pub(crate) fn append(&mut self, other: &Names) -> Result<()> {
        let first = u32::try_from(self.ends.len()).map_err(|_| too_many())?;
        let start = u32::try_from(self.text.len()).map_err(|_| too_many())?;
        u32::try_from(self.ends.len() + other.ends.len()).map_err(|_| too_many())?;
        u32::try_from(self.text.len() + other.text.len()).map_err(|_| too_many())?;
        let moved = |group: &NameGroup| NameGroup { first: group.first + first, ..group.clone() };
        self.groups.extend(other.groups.iter().map(moved));
        self.ends.extend(other.ends.iter().map(|end| end + start));
        self.text.push_str(&other.text);
        Ok(())
    }

    /// The bytes that the list occupies.
    pub(crate) fn memory(&self) -> usize {
        let ends = self.groups.iter().map(|group| group.prefix.capacity() + group.suffix.capacity());
        self.groups.capacity() * size_of::<NameGroup>()
            + ends.sum::<usize>()
            + self.ends.capacity() * size_of::<u32>()
            + self.text.capacity()
    }

    pub(super) fn encode(&self, out: &mut Encoder) {
        out.u32s(&self.ends);
        out.text(&self.text);
        out.u64(self.groups.len() as u64);
        for group in &self.groups {
            out.u64(u64::from(group.first));
            out.text(&group.prefix);
            out.text(&group.suffix);
        }
    }

    /// `None` for anything that [`encode`](Names::encode) would not have written.
    pub(super) fn decode(input: &mut Decoder<'_>) -> Option<Self> {
        let ends = input.u32s()?;
        let text = input.text()?;
        let mut groups = Vec::new();
        for _ in 0..input.u64()? {
            let first = u32::try_from(input.u64()?).ok()?;
            groups.push(NameGroup { first, prefix: input.text()?, suffix: input.text()? });
        }
        let is_sound = ends.is_sorted()
            && ends.iter().all(|&end| text.is_char_boundary(end as usize))
            && ends.last().map_or(0, |&end| end as usize) == text.len()
            && groups.is_sorted_by_key(|group| group.first)
            && groups.iter().all(|group| group.first as usize <= ends.len())
            && (ends.is_empty() || groups.first().is_some_and(|group| group.first == 0));
        is_sound.then_some(Self { groups, ends, text })
    }

    /// The group that holds name `index`.
    pub(crate) fn group(&self, index: usize) -> usize {
        self.groups.partition_point(|group| group.first as usize <= index).saturating_sub(1)
    }

    /// Name `index`, put together again.
    pub(crate) fn get(&self, index: usize) -> String {
        let group = &self.groups[self.group(index)];
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        let own = &self.text[start..self.ends[index] as usize];
        [&group.prefix, own, &group.suffix].concat()
    }
}

fn too_many() -> Error {
    Error::layout("index", "more than 4 GiB of sample names; split the data set")
}

/// Returns the longest common prefix of all names, and the longest common suffix after it.
fn common_ends<S: AsRef<str>>(names: &[S]) -> (&str, &str) {
    let Some((first, rest)) = names.split_first() else { return ("", "") };
    let first = first.as_ref();
    let mut prefix = first.len();
    for name in rest {
        prefix = common(first.bytes().take(prefix), name.as_ref().bytes());
    }
    while !first.is_char_boundary(prefix) {
        prefix -= 1;
    }
    let mut suffix = first.len() - prefix;
    for name in rest {
        let name = &name.as_ref()[prefix..];
        suffix = common(first.bytes().rev().take(suffix), name.bytes().rev());
    }
    while !first.is_char_boundary(first.len() - suffix) {
        suffix -= 1;
    }
    (&first[..prefix], &first[first.len() - suffix..])
}

fn common(a: impl Iterator<Item = u8>, b: impl Iterator<Item = u8>) -> usize {
    a.zip(b).take_while(|(a, b)| a == b).count()
}

/// The samples' labels, as coarse as they may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Labels {
    /// No sample has one.
    Absent,
    /// All samples of a group of [`Names`] share one.
    PerGroup(Vec<u32>),
    /// One label per sample.
    PerSample(Vec<u32>),
}

impl Labels {
    pub(crate) fn get(&self, names: &Names, index: usize) -> Option<u32> {
        match self {
            Labels::Absent => None,
            Labels::PerGroup(labels) if index < names.len() => labels.get(names.group(index)).copied(),
            Labels::PerGroup(_) => None,
            Labels::PerSample(labels) => labels.get(index).copied(),
        }
    }
}

/// Compares names in natural order: `image2` before `image10`; by bytes if they are equal.
pub fn natural_order(a: &str, b: &str) -> std::cmp::Ordering {
    let (mut left, mut right) = (a, b);
    while let (Some(x), Some(y)) = (left.chars().next(), right.chars().next()) {
        let order = if x.is_ascii_digit() && y.is_ascii_digit() {
            let (x, y) = (leading_digits(&mut left), leading_digits(&mut right));
            let (x, y) = (x.trim_start_matches('0'), y.trim_start_matches('0'));
            x.len().cmp(&y.len()).then_with(|| x.cmp(y))
        } else {
            (left, right) = (&left[x.len_utf8()..], &right[y.len_utf8()..]);
            x.cmp(&y)
        };
        if order.is_ne() {
            return order;
        }
    }
    left.len().cmp(&right.len()).then_with(|| a.cmp(b))
}

fn leading_digits<'a>(text: &mut &'a str) -> &'a str {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    *text = rest;
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_whole_and_cost_only_what_differs() {
        let mut names = Names::default();
        names.push_group("train/n01/", &["n01_1.JPEG", "n01_10.JPEG"]).unwrap();
        names.push_group("train/empty/", &[] as &[&str]).unwrap();
        names.push_group("train/n02/", &["same.png"]).unwrap();
        names.push_group("", &["é.jpg", "è.jpg", "aa", "a"]).unwrap();
        let all: Vec<_> = (0..names.len()).map(|index| names.get(index)).collect();
        let expected =
            ["train/n01/n01_1.JPEG", "train/n01/n01_10.JPEG", "train/n02/same.png", "é.jpg", "è.jpg", "aa", "a"];
        assert_eq!(all, expected);
        assert_eq!((0..7).map(|index| names.group(index)).collect::<Vec<_>>(), [0, 0, 2, 3, 3, 3, 3]);
        assert_eq!(names.ends[1], 1, "only the zero of `10` is kept");
    }

    #[test]
    fn names_that_share_half_a_character_or_overlap_come_back_whole() {
        for group in [&["é", "è"][..], &["aba", "abababa"], &["xé", "xè"], &["éx", "©x"], &["", "a"], &["a", "a"]]
        {
            let mut names = Names::default();
            names.push_group("", group).unwrap();
            assert_eq!((0..group.len()).map(|index| names.get(index)).collect::<Vec<_>>(), group);
        }
    }

    #[test]
    fn numbers_in_names_sort_by_value() {
        let mut names = ["b", "img10.png", "img2.png", "img02.png", "a10b2", "a10b10", "Img1", "img", ""];
        names.sort_by(|a, b| natural_order(a, b));
        assert_eq!(names, ["", "Img1", "a10b2", "a10b10", "b", "img", "img02.png", "img2.png", "img10.png"]);
    }
}
