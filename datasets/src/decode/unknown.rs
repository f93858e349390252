//! Names what bytes are that are no image, by their beginning.

/// What the first bytes of a file say that it is, with the remedy, to follow "not an image".
pub(super) fn what(start: &[u8]) -> String {
    let text = String::from_utf8_lossy(start).trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    let begins = |beginnings: &[&str]| beginnings.iter().any(|beginning| text.starts_with(beginning));
    match start {
        [] => ": it is empty, so writing or downloading it failed".to_owned(),
        [0x1f, 0x8b, ..] => ": it is compressed by gzip; unpack it".to_owned(),
        [b'P', b'K', 3 | 5, ..] => ": it is a ZIP archive; unpack it".to_owned(),
        [b'%', b'!', b'P', b'S', ..] => ": it is PostScript; convert it to PNG".to_owned(),
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => ": it is a NumPy array; write it as PNG".to_owned(),
        // What JPEG and PNG files begin with, in base64.
        [b'/', b'9', b'j', b'/', ..] | [b'i', b'V', b'B', b'O', b'R', ..] => {
            ": it is an image in base64; decode it".to_owned()
        }
        _ if begins(&["data:"]) => ": it is a data URI; decode what follows its comma".to_owned(),
        _ if begins(&["<!doct", "<html", "<head", "<?xml", "<!--"]) => {
            ": it is a web page or XML, as a failed download leaves it".to_owned()
        }
        _ if begins(&["version "]) => ": it is a Git LFS pointer, not the file itself; run `git lfs pull`".to_owned(),
        _ if begins(&["{", "["]) => ": it is JSON, as a failed download leaves it".to_owned(),
        _ if is_text(start) => format!(": it is text that begins with {text:?}"),
        _ => format!(" (it starts with {start:02x?})"),
    }
}

fn is_text(start: &[u8]) -> bool {
    start.iter().all(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_images_are_named() {
        for (start, name) in [
            (&b""[..], "it is empty"),
            (b"<!DOCTYP", "web page"),
            (b"\xef\xbb\xbf<?xml", "web page or XML"),
            (b"version ", "git lfs pull"),
            (b"\x1f\x8b\x08\0\0\0\0\0", "gzip"),
            (b"PK\x03\x04\x14\0\0\0", "ZIP"),
            (b"/9j/4AAQ", "base64"),
            (b"data:ima", "data URI"),
            (b"{\"error\"", "JSON"),
            (b"a/1.jpg\n", "text that begins with \"a/1.jpg\\n\""),
            (b"\0\x01\x02\x03", "it starts with [00, 01, 02, 03]"),
        ] {
            let what = what(start);
            assert!(what.contains(name), "{start:?}: {what}");
        }
    }
}
