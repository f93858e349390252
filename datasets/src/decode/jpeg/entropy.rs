//! Huffman decoding: the time of a JPEG decoder goes here.

use super::{Result, ZIGZAG, broken};

/// The entropy-coded data of one scan without its byte stuffing, cut at its markers.
#[derive(Default)]
pub(super) struct Segments {
    bytes: Vec<u8>,
    /// Where each piece ends, and the marker behind it: 0 at the end of the file.
    ends: Vec<(usize, u8)>,
}

impl Segments {
    /// Takes the data at the start of `bytes` up to the marker that ends the scan; returns how many bytes that was.
    /// With `restarts`, restart markers and markers that no encoder writes only end a piece.
    pub fn split(&mut self, bytes: &[u8], restarts: bool) -> usize {
        self.bytes.clear();
        self.ends.clear();
        let mut at = 0;
        loop {
            let plain = memchr::memchr(0xff, &bytes[at..]).unwrap_or(bytes.len() - at);
            self.bytes.extend_from_slice(&bytes[at..at + plain]);
            at += plain;
            match bytes[at..] {
                [0xff, 0x00, ..] => {
                    self.bytes.push(0xff);
                    at += 2;
                }
                [0xff, 0xff, ..] => at += 1,
                [0xff, marker @ (0x01..=0xbf | 0xd0..=0xd7), ..] if restarts => {
                    self.ends.push((self.bytes.len(), marker));
                    at += 2;
                }
                [0xff, marker, ..] => {
                    self.ends.push((self.bytes.len(), marker));
                    break;
                }
                _ => {
                    self.ends.push((self.bytes.len(), 0));
                    break;
                }
            }
        }
        at
    }

    /// Whether a marker follows: the data was not cut.
    pub fn is_complete(&self) -> bool {
        self.ends.last().is_some_and(|end| end.1 != 0)
    }

    /// Starts to read the scan.
    pub fn pieces(&self) -> (Pieces<'_>, Bits<'_>) {
        let pieces = Pieces { segments: self, index: 0, expected: 0 };
        let bits = pieces.bits();
        (pieces, bits)
    }
}

/// The pieces of a scan in the order in which they are decoded.
pub(super) struct Pieces<'a> {
    segments: &'a Segments,
    index: usize,
    /// The number of the next restart marker, 0 to 7.
    expected: u8,
}

impl<'a> Pieces<'a> {
    fn bits(&self) -> Bits<'a> {
        let end = self.segments.ends.get(self.index).map_or(0, |end| end.0);
        let start = self.index.checked_sub(1).map_or(0, |before| self.segments.ends[before].0);
        Bits { data: &self.segments.bytes[start..end], at: 0, buffer: 0, count: 0, bad: false }
    }

    /// The marker behind the current piece.
    fn marker(&self) -> u8 {
        self.segments.ends.get(self.index).map_or(0, |end| end.1)
    }

    /// Whether the current piece is the last before the file ends.
    pub fn is_cut(&self) -> bool {
        self.marker() == 0
    }

    /// Continues at the next restart marker. Where it is not the expected one, libjpeg's rules decide
    /// (`jpeg_resync_to_restart`): a marker that is ahead means that the expected one is lost, so the data of the
    /// current interval is missing (`None`); one that is behind is skipped with its data. The flag is false if any
    /// marker was lost or out of order.
    pub fn restart(&mut self) -> (Option<Bits<'a>>, bool) {
        let expected = self.expected;
        self.expected = (expected + 1) & 7;
        let mut in_order = true;
        loop {
            let marker = self.marker();
            match (marker, marker.wrapping_sub(0xd0).wrapping_sub(expected) & 7) {
                (0xd0..=0xd7, 1 | 2) | (0 | 0xc0..=0xcf | 0xd8..=0xff, _) => return (None, false),
                (0xd0..=0xd7, distance @ (0 | 3..=5)) => {
                    self.index += 1;
                    return (Some(self.bits()), in_order && distance == 0);
                }
                _ => self.index += 1,
            }
            in_order = false;
        }
    }
}

/// Bits of a code that one look into the table decides.
const LOOK: u32 = 10;

/// A table entry of a code without its value.
const NO_VALUE: u32 = 1 << 15;

/// A run that ends any block.
const END_OF_BLOCK: u32 = 64;

/// A Huffman table.
pub(super) struct Huffman {
    /// By the next [`LOOK`] bits: 0 if the code is longer; else bits 0–7 are the bits to consume, bits 8–14 the run of
    /// zeros, and bits 16–31 the value (signed); with [`NO_VALUE`], they are the value's number of bits.
    fast: Box<[u32; 1 << LOOK]>,
    /// By code length: the first code beyond it, aligned to 16 bits.
    limits: [u32; 17],
    /// By code length: what to add to a code to index `symbols`.
    offsets: [i32; 17],
    symbols: [u8; 256],
}

impl Huffman {
    /// A table from the number of codes of each length, 1 to 16, and the symbols in code order.
    pub fn new(counts: &[u8; 16], list: &[u8], dc: bool) -> Result<Self> {
        let mut table = Self { fast: Box::new([0; 1 << LOOK]), limits: [0; 17], offsets: [0; 17], symbols: [0; 256] };
        let invalid = || broken("an impossible Huffman table");
        table.symbols.get_mut(..list.len()).ok_or_else(invalid)?.copy_from_slice(list);
        let (mut code, mut index) = (0u32, 0usize);
        for length in 1..=16u32 {
            let count = u32::from(counts[length as usize - 1]);
            table.offsets[length as usize] = index as i32 - code as i32;
            for _ in 0..count {
                if code >= 1 << length {
                    return Err(invalid());
                }
                if length <= LOOK {
                    table.fill(code, length, list[index], dc);
                }
                code += 1;
                index += 1;
            }
            table.limits[length as usize] = code << (16 - length);
            code <<= 1;
        }
        // A DC symbol is the size of a difference.
        if dc && list.iter().any(|&size| size > 15) {
            return Err(invalid());
        }
        Ok(table)
    }

    /// Fills the fast entries that start with `code`.
    fn fill(&mut self, code: u32, length: u32, symbol: u8, dc: bool) {
        let (run, size) = if dc { (0, u32::from(symbol)) } else { (u32::from(symbol >> 4), u32::from(symbol & 15)) };
        let spare = LOOK - length;
        for tail in 0..1 << spare {
            self.fast[((code << spare) | tail) as usize] = if size == 0 {
                // A run of 16 zeros is 15 zeros and a value of zero.
                let run = if !dc && run != 15 { END_OF_BLOCK } else { run };
                length | (run << 8)
            } else if size <= spare {
                let value = extend(tail >> (spare - size), size);
                (length + size) | (run << 8) | ((value as u32) << 16)
            } else {
                length | (run << 8) | NO_VALUE | (size << 16)
            };
        }
    }
}

/// The signed value of `size` bits (T.81 F.2.2.1).
#[inline(always)]
fn extend(bits: u32, size: u32) -> i32 {
    let bits = bits as i32;
    if size > 0 && bits < 1 << (size - 1) { bits - (1 << size) + 1 } else { bits }
}

/// A reader of bits, most significant first. Past the end it returns zeros, which [`Bits::overrun`] reports.
pub(super) struct Bits<'a> {
    data: &'a [u8],
    /// The next byte that `buffer` does not hold in full.
    at: usize,
    /// The next bits, from the top.
    buffer: u64,
    /// How many bits of the buffer count.
    count: u32,
    /// Whether a code was met that its table does not hold.
    pub bad: bool,
}

impl Bits<'_> {
    /// No bits: all that is read is zeros.
    pub fn empty() -> Self {
        Bits { data: &[], at: 0, buffer: 0, count: 0, bad: false }
    }

    /// Makes at least 56 bits available.
    #[inline(always)]
    pub fn refill(&mut self) {
        if let Some(next) = self.data.get(self.at..).and_then(|rest| rest.first_chunk()) {
            self.buffer |= u64::from_be_bytes(*next) >> self.count;
            self.at = self.at.wrapping_add((63u32.wrapping_sub(self.count) >> 3) as usize);
            self.count |= 56;
        } else {
            self.refill_slowly();
        }
    }

    #[cold]
    fn refill_slowly(&mut self) {
        while self.count <= 56 {
            let byte = self.data.get(self.at).copied().unwrap_or(0);
            self.buffer |= u64::from(byte) << (56 - self.count);
            self.at += 1;
            self.count += 8;
        }
    }

    /// The next `n` bits, 1 to 32, which stay.
    #[inline(always)]
    fn peek(&self, n: u32) -> u32 {
        (self.buffer >> (64 - n)) as u32
    }

    #[inline(always)]
    fn consume(&mut self, n: u32) {
        self.buffer <<= n;
        self.count = self.count.wrapping_sub(n);
    }

    /// Takes `n` bits, 0 to 16, of those available.
    #[inline(always)]
    pub fn take(&mut self, n: u32) -> u32 {
        let bits = (self.buffer >> 32 >> (32 - n)) as u32;
        self.consume(n);
        bits
    }

    /// The signed value of `size` bits of those available.
    #[inline(always)]
    pub fn value(&mut self, size: u32) -> i32 {
        extend(self.take(size), size)
    }

    /// One bit.
    #[inline(always)]
    pub fn bit(&mut self) -> u32 {
        if self.count == 0 {
            self.refill();
        }
        self.take(1)
    }

    /// Whether more bits were read than the data has.
    pub fn overrun(&self) -> bool {
        self.at * 8 > self.data.len() * 8 + self.count as usize
    }

    /// One symbol, by its code alone. At least 17 bits must be available. A code that the table does not hold is
    /// noted, and taken as 0 with libjpeg's 17 bits.
    #[inline(always)]
    pub fn symbol(&mut self, table: &Huffman) -> u8 {
        let next = self.peek(16);
        for length in 1..=16 {
            if next < table.limits[length] {
                self.consume(length as u32);
                let code = (next >> (16 - length)) as i32;
                return table.symbols[(code + table.offsets[length]) as usize & 255];
            }
        }
        self.consume(17);
        self.bad = true;
        0
    }

    /// A DC difference.
    #[inline(always)]
    fn difference(&mut self, table: &Huffman) -> i32 {
        self.refill();
        let entry = table.fast[self.peek(LOOK) as usize];
        if entry != 0 && entry & NO_VALUE == 0 {
            self.consume(entry & 0xff);
            return entry as i32 >> 16;
        }
        self.slow_difference(table)
    }

    #[inline(never)]
    pub fn slow_difference(&mut self, table: &Huffman) -> i32 {
        self.refill();
        let size = u32::from(self.symbol(table)).min(15);
        extend(self.take(size), size)
    }

    /// An AC run and value that the fast table does not hold.
    #[inline(always)]
    fn slow_coefficient(&mut self, table: &Huffman, entry: u32) -> (usize, i32) {
        self.refill();
        let (run, size) = if entry != 0 {
            self.consume(entry & 0xff);
            ((entry >> 8) & 0x7f, entry >> 16)
        } else {
            let symbol = u32::from(self.symbol(table));
            let (run, size) = (symbol >> 4, symbol & 15);
            (if size == 0 && run != 15 { END_OF_BLOCK } else { run }, size)
        };
        (run as usize, extend(self.take(size), size))
    }

    /// One baseline block: dequantized coefficients in natural order. Returns the last zigzag position in use.
    #[inline(always)]
    pub fn block(
        &mut self,
        dc: &Huffman,
        ac: &Huffman,
        prediction: &mut i32,
        quant: &[u16; 64],
        block: &mut [i16; 64],
    ) -> usize {
        *prediction = prediction.wrapping_add(self.difference(dc));
        block[0] = (*prediction as i16).wrapping_mul(quant[0] as i16);
        let mut at = 1usize;
        let mut last = 0;
        loop {
            self.refill();
            // Two codes of the fast table fit what is available.
            for _ in 0..2 {
                let entry = ac.fast[self.peek(LOOK) as usize];
                let (run, value) = if entry != 0 && entry & NO_VALUE == 0 {
                    self.consume(entry & 0xff);
                    (((entry >> 8) & 0x7f) as usize, entry as i32 >> 16)
                } else {
                    self.slow_coefficient(ac, entry)
                };
                at = at.wrapping_add(run);
                if at > 63 {
                    // Only damage puts a value beyond the end; libjpeg stores it at the end.
                    if value != 0 {
                        block[63] = (value as i16).wrapping_mul(quant[63] as i16);
                        last = 63;
                    }
                    return last;
                }
                block[usize::from(ZIGZAG[at]) & 63] = (value as i16).wrapping_mul(quant[at] as i16);
                last = at;
                at = at.wrapping_add(1);
                if at > 63 {
                    return last;
                }
            }
        }
    }

    /// Parses one baseline block and keeps nothing but the prediction.
    #[inline(always)]
    pub fn skip_block(&mut self, dc: &Huffman, ac: &Huffman, prediction: &mut i32) {
        *prediction = prediction.wrapping_add(self.difference(dc));
        let mut at = 1usize;
        loop {
            self.refill();
            for _ in 0..2 {
                let entry = ac.fast[self.peek(LOOK) as usize];
                let run = if entry != 0 && entry & NO_VALUE == 0 {
                    self.consume(entry & 0xff);
                    ((entry >> 8) & 0x7f) as usize
                } else {
                    self.slow_coefficient(ac, entry).0
                };
                at = at.wrapping_add(run).wrapping_add(1);
                if at > 63 {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first byte of each interval that is decoded, `None` where it is missing.
    fn intervals(data: &[u8], count: usize) -> (Vec<Option<u8>>, bool) {
        let mut segments = Segments::default();
        assert_eq!(segments.split(data, true), data.len() - 2, "up to the end marker");
        let (mut pieces, mut bits) = segments.pieces();
        let mut all_in_order = true;
        let first = |bits: &mut Bits<'_>| {
            bits.refill();
            Some(bits.take(8) as u8)
        };
        let mut bytes = vec![first(&mut bits)];
        for _ in 1..count {
            let (next, in_order) = pieces.restart();
            all_in_order &= in_order;
            bytes.push(next.and_then(|mut bits| first(&mut bits)));
        }
        (bytes, all_in_order)
    }

    #[test]
    fn restarts_resynchronize_as_libjpeg_does() {
        let piece = |number: u8, byte: u8| vec![0xff, 0xd0 + number, byte];
        let end = vec![0xff, 0xd9];
        let data = |pieces: &[Vec<u8>]| [vec![10], pieces.concat(), end.clone()].concat();
        let whole: Vec<_> = (0..5).map(|i| piece(i, 11 + i)).collect();
        let right: Vec<_> = (10..16).map(Some).collect();
        assert_eq!(intervals(&data(&whole), 6), (right.clone(), true));
        // The second marker is lost: its interval is missing, the others are found.
        let lost = [&whole[..1], &whole[2..]].concat();
        let mut expected = right.clone();
        expected[2] = None;
        assert_eq!(intervals(&data(&lost), 6), (expected, false));
        // One marker too many is skipped with its data, and so is one that no encoder writes.
        for extra in [piece(1, 99), vec![0xff, 0x47, 99]] {
            let more = [&whole[..2], &[extra], &whole[2..]].concat();
            assert_eq!(intervals(&data(&more), 6), (right.clone(), false));
        }
        // The data ends early.
        assert_eq!(intervals(&data(&whole[..1]), 4), (vec![Some(10), Some(11), None, None], false));
    }
}
