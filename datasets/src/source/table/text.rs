//! The text of a table: UTF-8 or UTF-16, with a byte order mark or without.

use std::{fs::Metadata, io::Read, path::Path};

use runtime::files::open_regular;

use crate::{Error, Result};

/// The longest table that is read.
const MAX_BYTES: u64 = 2 << 30;

/// The bytes at the beginning that show UTF-16 without a byte order mark.
const SHOWN: usize = 256;

/// Reads the text of a table.
pub fn read(path: &Path) -> Result<String> {
    let file = open_regular(path).map_err(|source| Error::io(path, source))?;
    let size = file.metadata().as_ref().map_or(0, Metadata::len);
    let refuse = |cause: String| Err(Error::layout(path.display(), cause));
    if size > MAX_BYTES {
        return refuse(format!("{size} bytes are more than a table may have ({MAX_BYTES}); split it"));
    }
    let mut bytes = Vec::with_capacity(size as usize + 1);
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(|source| Error::io(path, source))?;
    decode(bytes).or_else(refuse)
}

/// Returns the text of bytes, or why they are none.
pub fn decode(bytes: Vec<u8>) -> Result<String, String> {
    match bytes.get(..2) {
        Some([0xff, 0xfe]) => return utf16(&bytes[2..], u16::from_le_bytes),
        Some([0xfe, 0xff]) => return utf16(&bytes[2..], u16::from_be_bytes),
        _ => {}
    }
    // The high bytes of Latin letters and delimiters are zero.
    let shown = &bytes[..bytes.len().min(SHOWN)];
    let zeros = |first: usize| shown.iter().skip(first).step_by(2).filter(|byte| **byte == 0).count();
    match [zeros(0), zeros(1)] {
        [0, odd] if odd > shown.len() / 4 => return utf16(&bytes, u16::from_le_bytes),
        [even, 0] if even > shown.len() / 4 => return utf16(&bytes, u16::from_be_bytes),
        _ => {}
    }
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        let byte = error.as_bytes()[valid.len()];
        format!("line {line} is not UTF-8 (byte 0x{byte:02X}); save the table as UTF-8")
    })?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String, String> {
    let (units, rest) = bytes.as_chunks::<2>();
    let damaged = || "is UTF-16 that is damaged or cut off; save the table as UTF-8".to_owned();
    if !rest.is_empty() {
        return Err(damaged());
    }
    char::decode_utf16(units.iter().map(|pair| unit(*pair))).collect::<Result<_, _>>().map_err(|_| damaged())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn every_encoding_of_unicode_gives_the_same_text() {
        let text = "image,label\nü.jpg,猫\n";
        let with_mark = format!("\u{feff}{text}");
        for bytes in [
            text.as_bytes().to_vec(),
            with_mark.as_bytes().to_vec(),
            encoded(&with_mark, u16::to_le_bytes),
            encoded(&with_mark, u16::to_be_bytes),
            encoded(text, u16::to_le_bytes),
            encoded(text, u16::to_be_bytes),
        ] {
            assert_eq!(decode(bytes).as_deref(), Ok(text));
        }
        assert_eq!(decode(Vec::new()).as_deref(), Ok(""));
    }

    #[test]
    fn other_encodings_are_refused_with_the_line() {
        let error = decode(b"image,label\na.jpg,caf\xe9\n".to_vec()).unwrap_err();
        assert!(error.contains("line 2 is not UTF-8 (byte 0xE9)"), "{error}");
        assert!(decode(b"\xff\xfea\0,".to_vec()).unwrap_err().contains("cut off"));
        assert!(decode(b"\xff\xfe\x00\xd8a\0".to_vec()).is_err(), "half a surrogate pair");
    }
}
