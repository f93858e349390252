//! Reads the headers of a tar archive in place: names, offsets and sizes of its members, not their content.
//!
//! Supported are POSIX ustar, GNU's long names and large sizes, and the `path` and `size` records of pax. Sparse
//! members are rejected: their bytes are not contiguous. Layouts: POSIX.1-2017 `pax`, the GNU tar manual.

use std::borrow::Cow;

use super::ReadAt;
use crate::{Error, Location, Result};

const BLOCK: u64 = 512;

/// The read size: a header and, for small members, the following ones.
const WINDOW: usize = 4096;

/// The longest name or pax record block that is read; a longer one is an error rather than an allocation.
const MAX_EXTENSION: u64 = 1 << 20;

/// The most extension headers before one member.
const MAX_EXTENSIONS: usize = 16;

/// A regular file in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// The path, without a leading `./`; it names no folder above.
    pub name: String,
    /// The offset of the content in the file that holds the archive.
    pub offset: u64,
    /// The length of the content in bytes.
    pub size: u64,
}

/// Reads the members of an archive, which may be inside another.
pub(crate) struct Tar<'a> {
    file: &'a dyn ReadAt,
    /// The name of the inner archive, for messages.
    inner: Option<&'a str>,
    position: u64,
    end: u64,
    window: Vec<u8>,
    window_start: u64,
    /// Whether the archive ended with the required zero block.
    pub marked_end: bool,
}

impl<'a> Tar<'a> {
    /// The archive that a whole file is.
    pub(crate) fn new(file: &'a dyn ReadAt) -> Self {
        Self::within(file, None, 0, file.len())
    }

    /// The archive that member `inner` of a file is: its `size` bytes at `offset`.
    pub(crate) fn inner(file: &'a dyn ReadAt, inner: &'a Member) -> Self {
        Self::within(file, Some(&inner.name), inner.offset, inner.offset + inner.size)
    }

    fn within(file: &'a dyn ReadAt, inner: Option<&'a str>, position: u64, end: u64) -> Self {
        Self { file, inner, position, end, window: Vec::new(), window_start: 0, marked_end: false }
    }

    /// The next regular file; `None` at the end. After an error the archive is not read on.
    ///
    /// # Errors
    /// [`Error::Corrupt`] naming archive, member and offset: a header that is none, cut off or sparse, a member that
    /// reaches beyond the end, a path with `..`. [`Error::Io`].
    pub(crate) fn next_file(&mut self) -> Result<Option<Member>> {
        // The contents of extension headers for the next member.
        let mut path: Option<Vec<u8>> = None;
        let mut pax_size = None;
        let mut extensions = 0;
        loop {
            let at = self.position;
            if at == self.end {
                return match extensions {
                    0 => Ok(None),
                    _ => Err(self.corrupt(path, at, "ends after an extension header: truncated; fetch it again")),
                };
            }
            if self.end - at < BLOCK {
                return Err(self.corrupt(path, at, "ends inside a header: truncated; fetch it again"));
            }
            let mut header = [0; BLOCK as usize];
            self.read(at, &mut header)?;
            if header.iter().all(|&byte| byte == 0) {
                self.marked_end = true;
                return Ok(None);
            }
            if !checksum_holds(&header) {
                return Err(self.corrupt(
                    path,
                    at,
                    "is not a tar header (wrong checksum): damaged, or not a tar archive",
                ));
            }
            let kind = header[156];
            let is_extension = matches!(kind, b'x' | b'g' | b'L' | b'K');
            let name = || path.clone().unwrap_or_else(|| header_name(&header).into());
            let size = match pax_size {
                Some(size) if !is_extension => size,
                _ => number(&header[124..136]).ok_or_else(|| self.corrupt(Some(name()), at, "has an invalid size"))?,
            };
            let offset = at + BLOCK;
            // Links, devices and folders have no content, regardless of their size field.
            let stored = if matches!(kind, b'1'..=b'6') { 0 } else { size };
            if stored > self.end - offset {
                let left = self.end - offset;
                let cause = format!("declares {size} bytes, but only {left} are left: truncated, or a wrong size");
                return Err(self.corrupt(Some(name()), at, cause));
            }
            // The padding of the very last member may be missing.
            self.position = offset.saturating_add(stored.div_ceil(BLOCK).saturating_mul(BLOCK)).min(self.end);
            match kind {
                b'L' => path = path.or(Some(until_zero(&self.extension(at, offset, size)?).to_vec())),
                b'x' => {
                    let bytes = self.extension(at, offset, size)?;
                    let records = pax_records(&bytes)
                        .ok_or_else(|| self.corrupt(path.clone(), at, "has malformed pax records"))?;
                    for (key, value) in records {
                        match key {
                            b"path" => path = Some(until_zero(value).to_vec()),
                            b"size" => {
                                let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                                let none = || self.corrupt(path.clone(), at, "has an invalid pax size");
                                pax_size = Some(size.ok_or_else(none)?);
                            }
                            _ if key.starts_with(b"GNU.sparse.") => return Err(self.sparse(at, path)),
                            _ => {}
                        }
                    }
                }
                b'g' | b'K' => {}
                b'S' => return Err(self.sparse(at, Some(name()))),
                // Archives before POSIX mark a folder by the slash at its name's end.
                b'0' | b'\0' | b'7' if !name().ends_with(b"/") => {
                    let name = self.checked_name(name(), at)?;
                    return Ok(Some(Member { name, offset, size }));
                }
                // A folder, a link, a device, a volume's label.
                _ => (path, pax_size) = (None, None),
            }
            extensions = if is_extension { extensions + 1 } else { 0 };
            if extensions > MAX_EXTENSIONS {
                return Err(self.corrupt(path, at, format!("more than {MAX_EXTENSIONS} extension headers in a row")));
            }
        }
    }

    /// All remaining members.
    pub(crate) fn files(&mut self) -> Result<Vec<Member>> {
        let mut files = Vec::new();
        while let Some(file) = self.next_file()? {
            files.push(file);
        }
        Ok(files)
    }

    /// Reads bytes of the archive; the caller has checked that they are inside it.
    pub(crate) fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let inside = offset.checked_sub(self.window_start).filter(|&skip| {
            skip.checked_add(buffer.len() as u64).is_some_and(|needed| needed <= self.window.len() as u64)
        });
        let failed = |source| Error::io(self.file.name(), source);
        let skip = match inside {
            Some(skip) => skip as usize,
            None if buffer.len() >= WINDOW => return self.file.read_exact_at(buffer, offset).map_err(failed),
            None => {
                let length = (self.end - offset).min(WINDOW as u64) as usize;
                self.window.resize(length, 0);
                self.file.read_exact_at(&mut self.window, offset).map_err(|source| {
                    self.window_start = u64::MAX;
                    failed(source)
                })?;
                self.window_start = offset;
                0
            }
        };
        buffer.copy_from_slice(&self.window[skip..skip + buffer.len()]);
        Ok(())
    }

    fn extension(&mut self, at: u64, offset: u64, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            let cause = format!("has an extension header of {size} bytes; {MAX_EXTENSION} are the most");
            return Err(self.corrupt(None, at, cause));
        }
        let mut content = vec![0; size as usize];
        self.read(offset, &mut content)?;
        Ok(content)
    }

    fn checked_name(&self, raw: Vec<u8>, at: u64) -> Result<String> {
        let name = String::from_utf8(raw)
            .map_err(|error| self.corrupt(Some(error.into_bytes()), at, "has a name that is not UTF-8"))?;
        let name = name.trim_start_matches("./");
        if name.is_empty() {
            return Err(self.corrupt(None, at, "has no name"));
        }
        if name.starts_with(['/', '\\']) || name.split(['/', '\\']).any(|part| part == "..") {
            return Err(self.corrupt(Some(name.into()), at, "has a path that leads out of the archive"));
        }
        Ok(name.to_owned())
    }

    fn sparse(&self, at: u64, name: Option<Vec<u8>>) -> Error {
        self.corrupt(name, at, "is stored sparsely, which is not supported; pack it again without `--sparse`")
    }

    /// An error at a header of this archive.
    pub(crate) fn corrupt(&self, name: Option<Vec<u8>>, offset: u64, cause: impl Into<String>) -> Error {
        let name = name.map(|name| String::from_utf8_lossy(&name).into_owned());
        let member = match (self.inner, name) {
            (Some(inner), Some(name)) => Some(format!("{inner} → {name}")),
            (Some(inner), None) => Some(inner.to_owned()),
            (None, name) => name,
        };
        let location = Location { container: self.file.name().to_owned(), member, offset: Some(offset) };
        Error::Corrupt { location, cause: cause.into() }
    }
}

/// Returns the 512-byte ustar header of a regular file of `size` bytes.
///
/// # Errors
/// The reason, for a name of more than 100 bytes, an empty one, or a size of 8 GiB or more.
pub fn tar_header(name: &str, size: u64) -> Result<[u8; 512], String> {
    if name.is_empty() || name.len() > 100 {
        return Err(format!("`{name}`: a name in a tar header has 1 to 100 bytes"));
    }
    if size >= 1 << 33 {
        return Err(format!("`{name}`: {size} bytes are too many for a tar header"));
    }
    let mut header = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(156, b"0");
    put(257, b"ustar\x0000");
    seal(&mut header);
    Ok(header)
}

/// Writes the checksum of a header into it.
pub(crate) fn seal(header: &mut [u8; 512]) {
    header[148..156].fill(b' ');
    let sum: u64 = header.iter().map(|&byte| u64::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Whether the header's sum is the one it states, of unsigned bytes or, as some old programs had it, of signed ones.
fn checksum_holds(header: &[u8; 512]) -> bool {
    let Some(stated) = number(&header[148..156]) else { return false };
    let counted = || header[..148].iter().chain(&[b' '; 8]).chain(&header[156..]);
    let unsigned: u64 = counted().map(|&byte| u64::from(byte)).sum();
    let signed: i64 = counted().map(|&byte| i64::from(byte as i8)).sum();
    stated == unsigned || i64::try_from(stated) == Ok(signed)
}

/// A number in octal digits, or in GNU's binary form.
fn number(field: &[u8]) -> Option<u64> {
    if field.first()? & 0x80 != 0 {
        if field[0] != 0x80 {
            return None;
        }
        let (high, low) = field[1..].split_at((field.len() - 1).checked_sub(8)?);
        return high.iter().all(|&byte| byte == 0).then(|| u64::from_be_bytes(low.try_into().unwrap_or_default()));
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    if !rest.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, &digit| {
        matches!(digit, b'0'..=b'7').then(|| value.checked_mul(8)?.checked_add(u64::from(digit - b'0')))?
    })
}

/// The name in a header itself: at most 100 bytes, in ustar after a prefix of at most 155.
fn header_name(header: &[u8; 512]) -> Cow<'_, [u8]> {
    let name = until_zero(&header[..100]);
    let prefix = until_zero(&header[345..500]);
    if header[257..263] == *b"ustar\0" && !prefix.is_empty() {
        return Cow::Owned([prefix, b"/", name].concat());
    }
    Cow::Borrowed(name)
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or(bytes)
}

/// The records `LENGTH KEY=VALUE\n` of a pax header; `None` where they are malformed.
fn pax_records(mut bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut records = Vec::new();
    while !until_zero(bytes).is_empty() {
        let space = bytes.iter().position(|&byte| byte == b' ')?;
        let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
        let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|&byte| byte == b'=')?;
        records.push((&record[..equals], &record[equals + 1..]));
        bytes = &bytes[length..];
    }
    Some(records)
}

/// Archives for tests, of every kind that is out there and some that should not be.
#[cfg(test)]
pub(crate) mod testing {
    use std::io;

    use super::*;

    /// A file in memory.
    #[derive(Debug)]
    pub(crate) struct Memory(pub Vec<u8>);

    impl ReadAt for Memory {
        fn name(&self) -> &str {
            "memory.tar"
        }
        fn identity(&self) -> &str {
            "memory.tar"
        }
        fn version(&self) -> &str {
            "1"
        }
        fn len(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            let start = usize::try_from(offset).map_err(io::Error::other)?;
            let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(self.0.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
    }

    /// A member of the given kind, padded.
    pub(crate) fn member(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut header = tar_header("-", content.len() as u64).unwrap();
        header[..100].fill(0);
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[156] = kind;
        seal(&mut header);
        let mut bytes = header.to_vec();
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    /// An archive of regular files, with its end marked.
    pub(crate) fn archive<N: AsRef<str>, B: AsRef<[u8]>>(files: &[(N, B)]) -> Vec<u8> {
        let members = files.iter().flat_map(|(name, content)| member(name.as_ref(), b'0', content.as_ref()));
        members.chain([0; 1024]).collect()
    }

    /// Replaces a header's size field and seals it again.
    pub(crate) fn set_size(archive: &mut [u8], header: usize, field: &[u8]) {
        let header: &mut [u8; 512] = (&mut archive[header..header + 512]).try_into().unwrap();
        header[124..136].fill(0);
        header[124..124 + field.len()].copy_from_slice(field);
        seal(header);
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::{testing::*, *};

    fn list(bytes: &[u8]) -> Result<Vec<(String, u64, u64)>> {
        let file = Memory(bytes.to_vec());
        let files = Tar::new(&file).files()?;
        Ok(files.into_iter().map(|member| (member.name, member.offset, member.size)).collect())
    }

    fn names(bytes: &[u8]) -> Vec<String> {
        list(bytes).unwrap().into_iter().map(|(name, ..)| name).collect()
    }

    fn pax(records: &[(&str, &str)]) -> Vec<u8> {
        let record = |(key, value): &(&str, &str)| {
            let rest = format!(" {key}={value}\n");
            let length = (1..).find(|length| length.to_string().len() + rest.len() == *length).unwrap();
            format!("{length}{rest}")
        };
        member("PaxHeaders/x", b'x', records.iter().map(record).collect::<String>().as_bytes())
    }

    #[test]
    fn regular_files_are_listed_and_all_else_is_passed_over() {
        let bytes = [
            member("./a/", b'5', b""),
            member("old-style-folder/", b'\0', b""),
            member("./a/1.jpg", b'0', b"12345"),
            member("link", b'2', b""),
            member("a/2.jpg", b'\0', b""),
            member("volume", b'V', b""),
            member("a/3.jpg", b'7', &[7; 600]),
            vec![0; 1024],
            b"rubbish beyond the end".to_vec(),
        ]
        .concat();
        let expected =
            [("a/1.jpg".to_owned(), 1536, 5), ("a/2.jpg".to_owned(), 3072, 0), ("a/3.jpg".to_owned(), 4096, 600)];
        assert_eq!(list(&bytes).unwrap(), expected);
    }

    #[test]
    fn long_names_of_gnu_pax_and_ustar_are_put_together() {
        let long = format!("{}/x.jpg", "n".repeat(200));
        let gnu = [member("././@LongLink", b'L', format!("{long}\0").as_bytes()), member("cut", b'0', b"")].concat();
        assert_eq!(names(&gnu), [long.as_str()]);
        let pax = [
            member("g", b'g', b"18 comment=nothing"),
            pax(&[("mtime", "1.5"), ("path", &long)]),
            member("cut", b'0', b""),
            member("own", b'0', b""),
        ]
        .concat();
        assert_eq!(names(&pax), [long.as_str(), "own"]);
        let mut ustar = member("x.jpg", b'0', b"");
        ustar[345..350].copy_from_slice(b"below");
        seal((&mut ustar[..512]).try_into().unwrap());
        assert_eq!(names(&ustar), ["below/x.jpg"]);
    }

    #[test]
    fn sizes_may_be_octal_binary_or_in_pax() {
        let mut binary = member("a", b'0', &[1; 700]);
        set_size(&mut binary, 0, &[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0xbc]);
        assert_eq!(list(&binary).unwrap(), [("a".to_owned(), 512, 700)]);
        let mut file = member("a", b'0', &[1; 700]);
        set_size(&mut file, 0, b"0");
        let bytes = [pax(&[("size", "700")]), file, member("b", b'0', b"")].concat();
        assert_eq!(list(&bytes).unwrap(), [("a".to_owned(), 1536, 700), ("b".to_owned(), 3072, 0)]);
        let mut spaces = member("a", b'0', &[1; 8]);
        set_size(&mut spaces, 0, b"        10 ");
        assert_eq!(list(&spaces).unwrap()[0].2, 8);
    }

    #[test]
    fn a_million_folders_in_a_row_do_not_exhaust_the_stack() {
        let folder = member("d/", b'5', b"");
        let mut bytes = folder.repeat(100_000);
        bytes.extend(member("x", b'0', b""));
        assert_eq!(names(&bytes), ["x"]);
    }

    #[test]
    fn what_is_wrong_is_said_with_archive_member_and_offset() {
        let says = |bytes: &[u8], expected: &[&str]| {
            let error = list(bytes).unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }));
            let text = error.to_string();
            for expected in expected.iter().chain(&["memory.tar"]) {
                assert!(text.contains(expected), "{text} should contain {expected}");
            }
        };
        let good = archive(&[("a.jpg", [1; 600]), ("b.jpg", [2; 600])]);
        says(&good[..700], &["a.jpg", "@ 0", "declares 600 bytes, but only 188 are left"]);
        says(&good[..1536 + 100], &["@ 1536", "inside a header"]);
        let mut damaged = good.clone();
        damaged[1536 + 3] ^= 1;
        says(&damaged, &["@ 1536", "checksum"]);
        says(b"no tar at all", &["@ 0", "inside a header"]);
        let mut lying = good.clone();
        set_size(&mut lying, 1536, b"77777777777");
        says(&lying, &["b.jpg", "@ 1536", "declares 8589934591 bytes"]);
        set_size(&mut lying, 1536, &[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        says(&lying, &["b.jpg", "declares 18446744073709551615 bytes"]);
        set_size(&mut lying, 1536, &[0xff; 12]);
        says(&lying, &["b.jpg", "an invalid size"]);
        set_size(&mut lying, 1536, b"12x");
        says(&lying, &["b.jpg", "an invalid size"]);
        for path in ["../a.jpg", "a/../../b.jpg", "/etc/a.jpg", "a/..", "..\\a.jpg"] {
            says(&member(path, b'0', b""), &[path, "out of the archive"]);
        }
        says(&[member("././@LongLink", b'L', b"../x\0"), member("x", b'0', b"")].concat(), &["../x"]);
        says(&member("s", b'S', b""), &["sparse"]);
        says(&[pax(&[("GNU.sparse.major", "1")]), member("x", b'0', b"")].concat(), &["sparse"]);
        says(&[pax(&[("size", "many")]), member("x", b'0', b"")].concat(), &["pax size"]);
        says(&member("p", b'x', b"99 path=short\n"), &["malformed pax"]);
        says(&member("p", b'x', b"3 \n"), &["malformed pax"]);
        says(&pax(&[("path", "x")]), &["truncated"]);
        says(&member("l", b'L', &vec![b'n'; 2 << 20]), &["extension header of 2097152"]);
        says(&member("l", b'L', b"x").repeat(50), &["in a row"]);
        let mut name = member("x", b'0', b"");
        name[0] = 0xff;
        seal((&mut name[..512]).try_into().unwrap());
        says(&name, &["not UTF-8"]);
        says(&member("", b'0', b""), &["no name"]);
    }

    #[test]
    fn an_end_without_its_mark_is_seen() {
        let bytes = member("a", b'0', b"");
        for (bytes, marked) in [(bytes.clone(), false), ([bytes, vec![0; 512]].concat(), true)] {
            let file = Memory(bytes);
            let mut tar = Tar::new(&file);
            assert_eq!(tar.files().unwrap().len(), 1);
            assert_eq!(tar.marked_end, marked);
        }
    }

    /// Mutated archives cause no panic and no endless loop, and listed members are inside the file.
    #[test]
    fn mutated_archives_never_panic_or_reach_outside() {
        let base = [
            member("././@LongLink", b'L', &[b'n'; 150]),
            member("cut", b'0', b"0123456789"),
            pax(&[("path", "some/path.jpg"), ("size", "600")]),
            member("cut", b'0', &[5; 600]),
            archive(&[("a/b.jpg", [1; 100]), ("c.cls", [b'7'; 100])]),
        ]
        .concat();
        let mut rng = StdRng::seed_from_u64(1);
        let mut outcomes = [0; 2];
        for _ in 0..20_000 {
            let mut bytes = base.clone();
            for _ in 0..rng.random_range(1..6) {
                let at = rng.random_range(0..bytes.len());
                match rng.random_range(0..5) {
                    0 => bytes[at] ^= 1 << rng.random_range(0..8),
                    1 => bytes[at] = rng.random(),
                    2 => bytes.truncate(at.max(1)),
                    3 => {
                        let block = at / 512 * 512;
                        let copy = bytes[block..(block + 512).min(bytes.len())].to_vec();
                        bytes.splice(block..block, copy);
                    }
                    _ => {
                        // A change that the checksum does not catch.
                        let block = at / 512 * 512;
                        if let Some(header) = bytes.get_mut(block..block + 512) {
                            header[rng.random_range(0..512)] = rng.random();
                            seal(header.try_into().unwrap());
                        }
                    }
                }
            }
            let result = list(&bytes);
            outcomes[usize::from(result.is_ok())] += 1;
            for (name, offset, size) in result.unwrap_or_default() {
                assert!(offset + size <= bytes.len() as u64);
                assert!(!name.is_empty() && !name.contains(".."));
            }
        }
        assert!(outcomes.iter().all(|&count| count > 1000), "both ends are reached: {outcomes:?}");
    }
}
