//! Names what a file is that has no weights, or weights of another program, with the remedy.

use std::path::Path;

/// Bytes from the beginning of a file by which it is recognized.
pub const HEAD: usize = 512;

/// What a file is, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    pub what: &'static str,
    pub remedy: &'static str,
}

const fn kind(what: &'static str, remedy: &'static str) -> Kind {
    Kind { what, remedy }
}

const UNPACK: &str = "unpack it, and give the file of weights inside";
const PICTURE: &str = "--weights takes a network's weights; images are given without a flag, or with --data";
const CONVERT: &str =
    "in PyTorch, load the network and write `torch.save(model.state_dict(), \"weights.pth\")`, or safetensors";

/// Files by their first bytes.
const MAGIC: &[(&[u8], Kind)] = &[
    (
        b"version https://git-lfs",
        kind("a Git LFS pointer, not the file itself", "run `git lfs pull` in its repository, or download the file"),
    ),
    (b"\x89HDF\r\n\x1a\n", kind("HDF5, as Keras writes it", CONVERT)),
    (b"GGUF", kind("GGUF, a format of language models", "it has no network of Hearth")),
    (b"\x89PNG", kind("a PNG picture", PICTURE)),
    (b"\xff\xd8\xff", kind("a JPEG picture", PICTURE)),
    (b"GIF8", kind("a GIF picture", PICTURE)),
    (b"BM", kind("a BMP picture", PICTURE)),
    (b"II*\0", kind("a TIFF picture", PICTURE)),
    (b"MM\0*", kind("a TIFF picture", PICTURE)),
    (b"\x1f\x8b", kind("gzip", UNPACK)),
    (b"BZh", kind("bzip2", UNPACK)),
    (b"\xfd7zXZ", kind("xz", UNPACK)),
    (b"\x28\xb5\x2f\xfd", kind("Zstandard", UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", kind("a 7-Zip archive", UNPACK)),
    (b"Rar!", kind("a RAR archive", UNPACK)),
    (b"%PDF", kind("a PDF document", "download the weights themselves")),
    (b"\x7fELF", kind("a program", "give a file of weights")),
    (b"\x93NUMPY", kind("a NumPy array", "give the network's `state_dict`, with the names of its tensors")),
];

const WEB_PAGE: Kind = kind(
    "a web page, not the file itself",
    "the download was answered with a page (a login, a confirmation or an error), so open the address in a browser, or \
     use the link to the raw file",
);
const ONNX: Kind =
    kind("ONNX", "Hearth writes ONNX and does not read it, so give the PyTorch file it was exported from");
const TENSORFLOW: Kind = kind("TensorFlow's", CONVERT);

/// Recognizes a file by its first [`HEAD`] bytes, its length and its name. None for what may have weights.
pub fn of(path: &Path, head: &[u8], len: u64) -> Option<Kind> {
    if len == 0 {
        return Some(kind("empty", "the download or copy failed, so fetch it again"));
    }
    let lower = String::from_utf8_lossy(head).trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']).to_lowercase();
    if ["<!doctype", "<html", "<head", "<?xml", "<svg", "<body", "<!--"].iter().any(|tag| lower.starts_with(tag)) {
        return Some(WEB_PAGE);
    }
    if let Some((_, kind)) = MAGIC.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Some(Kind { ..*kind });
    }
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_ascii_lowercase();
    match head {
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => {
            return Some(kind("a WebP picture", PICTURE));
        }
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => return Some(kind("a picture or video", PICTURE)),
        [_, _, _, _, b'T', b'F', b'L', b'3', ..] => return Some(TENSORFLOW),
        _ => {}
    }
    match extension.as_str() {
        "onnx" => return Some(ONNX),
        "pb" | "tflite" | "ckpt" if !head.starts_with(b"PK") && head.first() != Some(&0x80) => return Some(TENSORFLOW),
        "crdownload" | "download" | "part" => {
            return Some(kind("an unfinished download", "wait for it, or download the file again"));
        }
        _ => {}
    }
    // A model of ONNX begins with its version, a small number, and the name of the program that wrote it.
    if matches!(head, [0x08, 1..=0x1f, 0x12 | 0x1a | 0x22 | 0x3a | 0x42, ..]) {
        return Some(ONNX);
    }
    if head.first() == Some(&b'{') || head.first() == Some(&b'[') && lower.trim_end().ends_with([']', '}']) {
        return Some(kind("JSON", "a model card is given with --card"));
    }
    let is_text = |byte: &u8| matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7e | 0x80..);
    // Pickles of the oldest protocol are text too; they begin with `(`, `c`, `}` or `]`, and have lines of one letter.
    let may_be_pickle = matches!(head, [b'(' | b'c' | b'}' | b']' | 0x80, ..]);
    if !may_be_pickle && std::str::from_utf8(&head[..head.len().saturating_sub(4)]).is_ok() && head.iter().all(is_text)
    {
        return Some(kind("a text file", "give a file of weights: .pth, .safetensors, .bpk or .caffemodel"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_without_weights_are_named() {
        let what = |name: &str, head: &[u8]| of(Path::new(name), head, head.len() as u64).map(|kind| kind.what);
        assert_eq!(what("w.pth", b""), Some("empty"));
        assert_eq!(what("w.pth", b"\n <!DOCTYPE html>"), Some("a web page, not the file itself"));
        assert_eq!(
            what("w.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:"),
            Some("a Git LFS pointer, not the file itself")
        );
        assert_eq!(what("w.h5", b"\x89HDF\r\n\x1a\n\0\0"), Some("HDF5, as Keras writes it"));
        assert_eq!(what("w.pth", b"\x08\x08\x12\x07pytorch\x1a\x062.1.0:"), Some("ONNX"));
        assert_eq!(what("frozen.pb", b"\x0a\x10\x0a\x05input"), Some("TensorFlow's"));
        assert_eq!(what("config.json", b"{\"a\": 1}"), Some("JSON"));
        assert_eq!(what("w.pth", b"\xff\xd8\xff\xe0\0\x10JFIF"), Some("a JPEG picture"));
        assert_eq!(what("notes.txt", b"\nepoch 1: 90 %\n"), Some("a text file"));
        for head in [
            &b"PK\x03\x04"[..],
            b"\x80\x02\x8a\x0a\x6c\xfc",
            b"\x0a\x09GoogleNet\x12",
            b"\x40\0\0\0\0\0\0\0{\"",
            b"}q\0.",
        ] {
            assert_eq!(what("w.pth", head), None, "{head:?}");
        }
        // A TensorFlow checkpoint of that name is none of PyTorch Lightning's.
        assert_eq!(what("epoch=3.ckpt", b"PK\x03\x04"), None);
    }
}
