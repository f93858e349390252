//! The directory of a zip archive, as `torch.save` writes it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    sync::{Arc, Mutex},
};

use super::limits;

/// The largest directory: 100,000 entries with short names.
const MAX_DIRECTORY: u64 = 32 << 20;

/// A file that is read at offsets, by several tensors.
#[derive(Debug, Clone)]
pub struct Blocks {
    file: Arc<Mutex<File>>,
    len: u64,
}

impl Blocks {
    /// Reads from an open file, at whichever position it is.
    ///
    /// # Errors
    /// The system's error.
    pub fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self { file: Arc::new(Mutex::new(file)), len })
    }

    /// Returns the length of the file when it was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Reads `len` bytes from `offset` on. A range beyond the end is an error before memory is taken for it, and so is
    /// a file that became shorter.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`], [`io::ErrorKind::OutOfMemory`], or the system's error.
    pub fn read(&self, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            let cause = format!("{len} bytes at {offset} are beyond the end of the file ({} bytes)", self.len);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, cause));
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len as usize).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        (&mut *file).take(len).read_to_end(&mut bytes)?;
        match bytes.len() as u64 == len {
            true => Ok(bytes),
            false => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter while it was read")),
        }
    }
}

/// Where an entry's bytes are.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The offset of the local header.
    header: u64,
    is_deflated: bool,
    crc32: u32,
    stored: u64,
    /// The number of bytes once they are decompressed.
    pub size: u64,
}

/// The entries of an archive.
#[derive(Debug)]
pub struct Archive {
    blocks: Blocks,
    entries: BTreeMap<String, Entry>,
}

type Result<T> = std::result::Result<T, String>;

impl Archive {
    /// Reads the directory at the end of the file.
    ///
    /// # Errors
    /// Where there is none, as in half a download, or it contradicts the file.
    pub fn open(blocks: Blocks) -> Result<Self> {
        // The record at the end has 22 bytes and a comment of at most 65535.
        let tail_len = blocks.len().min(22 + 65535);
        let tail_start = blocks.len() - tail_len;
        let tail = blocks.read(tail_start, tail_len).map_err(|error| error.to_string())?;
        let cut =
            || "it has no directory at its end: it is only a part of the file; download or copy it again".to_string();
        let at = tail.windows(4).rposition(|window| window == b"PK\x05\x06").ok_or_else(cut)?;
        let end = tail.get(at..at + 22).ok_or_else(cut)?;
        let (mut size, mut start) = (u64::from(u32_at(end, 12)), u64::from(u32_at(end, 16)));
        let mut count = u64::from(u16_at(end, 10));
        if size == u64::from(u32::MAX) || start == u64::from(u32::MAX) || count == u64::from(u16::MAX) {
            // Archives of more than 4 GB, or with more entries, have a second record, and a locator before this one.
            if let Some(locator) = at.checked_sub(20).and_then(|at| tail.get(at..at + 20))
                && locator.starts_with(b"PK\x06\x07")
            {
                let record = blocks.read(u64_at(locator, 8), 56).map_err(|error| error.to_string())?;
                if !record.starts_with(b"PK\x06\x06") {
                    return Err("its directory is damaged".to_string());
                }
                (count, size, start) = (u64_at(&record, 32), u64_at(&record, 40), u64_at(&record, 48));
            }
        }
        if size > MAX_DIRECTORY || count > limits::MAX_TENSORS as u64 {
            return Err(format!("it has a directory of {count} entries in {size} bytes"));
        }
        let directory = blocks.read(start, size).map_err(|error| error.to_string())?;
        let mut entries = BTreeMap::new();
        let mut rest = directory.as_slice();
        for _ in 0..count {
            let damaged = || "its directory is damaged".to_string();
            let fixed = rest.get(..46).filter(|fixed| fixed.starts_with(b"PK\x01\x02")).ok_or_else(damaged)?;
            let lengths = [28, 30, 32].map(|at| usize::from(u16_at(fixed, at)));
            let end: usize = 46 + lengths.iter().sum::<usize>();
            let (name, extra) = rest.get(46..end).ok_or_else(damaged)?[..lengths[0] + lengths[1]].split_at(lengths[0]);
            let entry = entry(fixed, extra)?;
            entries.insert(String::from_utf8_lossy(name).into_owned(), entry);
            rest = &rest[end..];
        }
        Ok(Self { blocks, entries })
    }

    /// Returns the names of the entries.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Returns an entry by name.
    pub fn entry(&self, name: &str) -> Option<Entry> {
        self.entries.get(name).copied()
    }

    /// Checks that an entry's declared size can be true, and returns it.
    ///
    /// # Errors
    /// Where it is larger than what the archive stores for it can hold.
    pub fn size(&self, name: &str) -> Result<u64> {
        let entry = self.entry(name).ok_or_else(|| format!("it has no entry {}", super::printable(name)))?;
        let held = if entry.is_deflated { limits::expanded(entry.stored) } else { entry.stored };
        match entry.size <= held && entry.stored <= self.blocks.len() {
            true => Ok(entry.size),
            false => Err(format!(
                "its entry {} declares {} bytes and stores {}",
                super::printable(name),
                entry.size,
                entry.stored
            )),
        }
    }

    /// Reads `len` bytes of an entry, from `start` on. A whole entry is checked against its CRC-32, if it has one.
    ///
    /// # Errors
    /// Where the entry is shorter, damaged, or stored in an unknown way.
    pub fn read(&self, name: &str, start: u64, len: u64) -> io::Result<Vec<u8>> {
        let invalid = |cause: String| io::Error::new(io::ErrorKind::InvalidData, cause);
        let size = self.size(name).map_err(invalid)?;
        if start.checked_add(len).is_none_or(|end| end > size) {
            let cause = format!("the entry {} has {size} bytes, not {len} from {start} on", super::printable(name));
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, cause));
        }
        let entry = self.entries[name];
        let local = self.blocks.read(entry.header, 30)?;
        if !local.starts_with(b"PK\x03\x04") {
            return Err(invalid(format!("the entry {} is not where the directory says", super::printable(name))));
        }
        let data = entry.header + 30 + u64::from(u16_at(&local, 26)) + u64::from(u16_at(&local, 28));
        let bytes = match entry.is_deflated {
            false => self.blocks.read(data + start, len)?,
            true => {
                let stored = self.blocks.read(data, entry.stored)?;
                let mut inflated = flate2::read::DeflateDecoder::new(stored.as_slice());
                io::copy(&mut (&mut inflated).take(start), &mut io::sink())?;
                let mut bytes = Vec::new();
                bytes.try_reserve_exact(len as usize).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
                inflated.take(len).read_to_end(&mut bytes)?;
                if bytes.len() as u64 != len {
                    return Err(invalid(format!("the entry {} ends early", super::printable(name))));
                }
                bytes
            }
        };
        // `torch.save` without checksums writes 0.
        if len == size && entry.crc32 != 0 && crc32fast::hash(&bytes) != entry.crc32 {
            return Err(invalid(format!("the entry {} is damaged: its checksum differs", super::printable(name))));
        }
        Ok(bytes)
    }
}

fn entry(fixed: &[u8], mut extra: &[u8]) -> Result<Entry> {
    let is_deflated = match u16_at(fixed, 10) {
        0 => false,
        8 => true,
        method => return Err(format!("it is compressed in a way that is not supported (method {method})")),
    };
    if u16_at(fixed, 8) & 1 != 0 {
        return Err("it is encrypted".to_string());
    }
    let mut numbers = [24, 20, 42].map(|at| u64::from(u32_at(fixed, at)));
    while extra.len() >= 4 {
        let (id, len) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        let Some(mut field) = extra.get(4..4 + len) else { break };
        if id == 1 {
            // The 64-bit values of those that are all ones, in this order.
            for number in numbers.iter_mut().filter(|number| **number == u64::from(u32::MAX)) {
                let Some((value, rest)) = field.split_first_chunk::<8>() else { break };
                *number = u64::from_le_bytes(*value);
                field = rest;
            }
        }
        extra = &extra[4 + len..];
    }
    let [size, stored, header] = numbers;
    Ok(Entry { header, is_deflated, crc32: u32_at(fixed, 16), stored, size })
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
