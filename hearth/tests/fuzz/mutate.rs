//! Deterministic mutations of inputs.

/// SplitMix64.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; 0 if `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % (end as u64).max(1)) as usize
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

/// Numbers at which readers fail: ends of types, and counts and sizes that no file holds.
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x10000,
    0xff_ffff,
    0x1000_0000,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    1 << 40,
    i64::MAX as u64,
    u64::MAX,
];

/// The same as text, and texts that some parsers take for numbers.
const TEXT_NUMBERS: [&str; 22] = [
    "0",
    "1",
    "-1",
    "255",
    "256",
    "65535",
    "65536",
    "99999",
    "1000000",
    "100000000",
    "2147483647",
    "4294967295",
    "4294967296",
    "1000000000000",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "1e-308",
    "NaN",
    "-0.0",
    "0.5",
];

/// Makes inputs from a corpus.
pub struct Mutator {
    pub rng: Rng,
    /// Words of the format.
    pub words: &'static [&'static [u8]],
    /// The longest input in bytes.
    pub longest: usize,
}

impl Mutator {
    /// Returns a changed copy of an input of the corpus.
    pub fn mutate(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = corpus[self.rng.below(corpus.len())].clone();
        let depth = self.rng.below(5);
        for _ in 0..=self.rng.below(1 << depth) {
            self.change(&mut bytes, corpus);
        }
        bytes.truncate(self.longest);
        bytes
    }

    /// A range of at most `longest` bytes, mostly short.
    fn range(&mut self, bytes: &[u8], longest: usize) -> std::ops::Range<usize> {
        let start = self.rng.below(bytes.len());
        let longest = longest.min(1 << self.rng.below(14));
        start..start + self.rng.below(longest.min(bytes.len() - start) + 1)
    }

    fn change(&mut self, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let rng = &mut self.rng;
        if bytes.is_empty() {
            bytes.push(rng.below(256) as u8);
            return;
        }
        let at = rng.below(bytes.len());
        match rng.below(14) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = rng.below(256) as u8,
            2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][rng.below(5)],
            // The end of the data, sooner or later.
            3 => bytes.truncate(at),
            4 => {
                let range = self.range(bytes, usize::MAX);
                bytes.drain(range);
            }
            // A part twice, or often.
            5 => {
                let range = self.range(bytes, 4096);
                let depth = self.rng.below(6);
                let part = bytes[range.clone()].repeat(1 + self.rng.below(1 << depth));
                bytes.splice(range.end..range.end, part);
            }
            // A part of another input, inserted or in place.
            6 => {
                let other = &corpus[rng.below(corpus.len())];
                if !other.is_empty() {
                    let part = other[self.range(other, 4096)].to_vec();
                    let end = if self.rng.below(2) == 0 { at } else { bytes.len().min(at + part.len()) };
                    bytes.splice(at..end, part);
                }
            }
            // The end of another input.
            7 => {
                let other = &corpus[rng.below(corpus.len())];
                let from = if rng.below(2) == 0 { at.min(other.len()) } else { rng.below(other.len()) };
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
            8 if !self.words.is_empty() => {
                let word = rng.pick(self.words);
                let end = if rng.below(2) == 0 { at } else { bytes.len().min(at + word.len()) };
                bytes.splice(at..end, word.iter().copied());
            }
            9 => {
                let swap = rng.below(bytes.len());
                bytes.swap(at, swap);
            }
            10 => self.text_number(bytes, at),
            _ => self.number(bytes, at),
        }
    }

    /// Changes a number of 1 to 8 bytes, such as a length.
    fn number(&mut self, bytes: &mut [u8], at: usize) {
        let width = (1 << self.rng.below(4)).min(bytes.len() - at);
        let field = &mut bytes[at..at + width];
        let little = self.rng.below(2) == 0;
        let digits: Vec<u8> = if little { field.to_vec() } else { field.iter().rev().copied().collect() };
        let old = digits.iter().rev().fold(0u64, |value, digit| value << 8 | u64::from(*digit));
        let new = match self.rng.below(4) {
            0 => old.wrapping_add(1 + self.rng.below(16) as u64),
            1 => old.wrapping_sub(1 + self.rng.below(16) as u64),
            2 => old << self.rng.below(16),
            _ => NUMBERS[self.rng.below(NUMBERS.len())],
        };
        let new = &new.to_le_bytes()[..width];
        field.copy_from_slice(new);
        if !little {
            field.reverse();
        }
    }

    /// Replaces the first decimal number at or behind `at`.
    fn text_number(&mut self, bytes: &mut Vec<u8>, at: usize) {
        let Some(start) = bytes[at..].iter().position(u8::is_ascii_digit).map(|found| at + found) else { return };
        let end = bytes[start..].iter().position(|byte| !byte.is_ascii_digit()).map_or(bytes.len(), |len| start + len);
        let number = TEXT_NUMBERS[self.rng.below(TEXT_NUMBERS.len())];
        bytes.splice(start..end, number.bytes());
    }
}
