//! Writes PyTorch's files as `torch.save` does, and such as it never would.

#![allow(dead_code, reason = "each test file uses a part")]

use std::io::Write;

/// An object to pickle.
#[derive(Clone)]
pub enum Value {
    Int(i64),
    Text(String),
    Dict(Vec<(String, Value)>),
    Tensor(Tensor),
    /// An instance of a class, with its attributes.
    Object(&'static str, &'static str, Vec<(String, Value)>),
}

/// A tensor; its storage is `key`, of `numel` floats.
#[derive(Clone)]
pub struct Tensor {
    pub key: String,
    pub numel: i64,
    pub shape: Vec<i64>,
    pub strides: Vec<i64>,
}

impl Tensor {
    /// A dense tensor of its own storage.
    pub fn dense(key: impl Into<String>, shape: &[usize]) -> Self {
        let shape: Vec<i64> = shape.iter().map(|size| *size as i64).collect();
        let strides = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
        Self { key: key.into(), numel: shape.iter().product(), shape, strides }
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn int(out: &mut Vec<u8>, number: i64) {
    out.extend([0x8a, 8]);
    out.extend(number.to_le_bytes());
}

fn ints(out: &mut Vec<u8>, numbers: &[i64]) {
    out.push(b'(');
    numbers.iter().for_each(|number| int(out, *number));
    out.push(b't');
}

fn dict(out: &mut Vec<u8>, pairs: &[(String, Value)]) {
    out.extend(b"}(");
    for (key, value) in pairs {
        text(out, key);
        write(out, value);
    }
    out.push(b'u');
}

fn write(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Int(number) => int(out, *number),
        Value::Text(value) => text(out, value),
        Value::Dict(pairs) => dict(out, pairs),
        Value::Object(module, name, attributes) => {
            out.extend(format!("c{module}\n{name}\n)").as_bytes());
            out.push(0x81);
            dict(out, attributes);
            out.push(b'b');
        }
        Value::Tensor(tensor) => {
            out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
            text(out, "storage");
            out.extend(b"ctorch\nFloatStorage\n");
            text(out, &tensor.key);
            text(out, "cpu");
            int(out, tensor.numel);
            out.extend(b"tQ");
            int(out, 0);
            ints(out, &tensor.shape);
            ints(out, &tensor.strides);
            out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
        }
    }
}

/// A pickle of protocol 2.
pub fn pickle(value: &Value) -> Vec<u8> {
    let mut out = vec![0x80, 2];
    write(&mut out, value);
    out.push(b'.');
    out
}

/// An entry of a zip archive: its name, its content, and the size that the directory declares, and its offset.
pub struct Entry {
    pub name: String,
    pub content: Vec<u8>,
    pub deflated: bool,
    pub declared: Option<u32>,
}

impl Entry {
    pub fn stored(name: &str, content: Vec<u8>) -> Self {
        Self { name: name.to_string(), content, deflated: false, declared: None }
    }

    pub fn deflated(name: &str, content: Vec<u8>) -> Self {
        Self { deflated: true, ..Self::stored(name, content) }
    }
}

/// A zip archive, without checksums, as `torch.save` writes it where they are switched off.
pub fn zip(entries: &[Entry]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for Entry { name, content, deflated, declared } in entries {
        let (method, bytes) = match deflated {
            false => (0u16, content.clone()),
            true => {
                let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
                encoder.write_all(content).expect("memory");
                (8, encoder.finish().expect("memory"))
            }
        };
        let offset = out.len() as u32;
        let mut common = Vec::new();
        common.extend(20u16.to_le_bytes());
        common.extend([0; 2]);
        common.extend(method.to_le_bytes());
        common.extend([0; 8]);
        common.extend((bytes.len() as u32).to_le_bytes());
        common.extend(declared.unwrap_or(content.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0; 2]);
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend(name.as_bytes());
        out.extend(&bytes);
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = out.len() as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend((entries.len() as u16).to_le_bytes());
    out.extend((entries.len() as u16).to_le_bytes());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0; 2]);
    out
}

/// `torch.save(value)` with the bytes of its storages.
pub fn checkpoint(value: &Value, storages: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut entries = vec![Entry::stored("archive/data.pkl", pickle(value))];
    entries.extend(storages.iter().map(|(key, bytes)| Entry::stored(&format!("archive/data/{key}"), bytes.clone())));
    zip(&entries)
}
