//! The encoding of index files.

/// Writes little-endian numbers and texts with their lengths before them.
#[derive(Default)]
pub(super) struct Encoder(pub Vec<u8>);

impl Encoder {
    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }
    pub(super) fn u32s(&mut self, values: &[u32]) {
        self.u64(values.len() as u64);
        self.0.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    pub(super) fn text(&mut self, text: &str) {
        self.u64(text.len() as u64);
        self.0.extend(text.as_bytes());
    }
}

/// Reads what [`Encoder`] wrote; never allocates more than there are bytes left.
pub(super) struct Decoder<'a>(pub &'a [u8]);

impl<'a> Decoder<'a> {
    fn take(&mut self, count: u64, width: usize) -> Option<&'a [u8]> {
        let length = usize::try_from(count).ok()?.checked_mul(width)?;
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
    pub(super) fn u64(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*bytes))
    }
    pub(super) fn u64s(&mut self) -> Option<Vec<u64>> {
        let count = self.u64()?;
        let (values, _) = self.take(count, 8)?.as_chunks();
        Some(values.iter().map(|&bytes| u64::from_le_bytes(bytes)).collect())
    }
    pub(super) fn u32s(&mut self) -> Option<Vec<u32>> {
        let count = self.u64()?;
        let (values, _) = self.take(count, 4)?.as_chunks();
        Some(values.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect())
    }
    pub(super) fn text(&mut self) -> Option<String> {
        let length = self.u64()?;
        String::from_utf8(self.take(length, 1)?.to_vec()).ok()
    }
    pub(super) fn texts(&mut self) -> Option<Vec<String>> {
        let count = self.u64()?;
        (0..count).map(|_| self.text()).collect()
    }
}
