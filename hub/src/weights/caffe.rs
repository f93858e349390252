//! Reads the weights of a `.caffemodel`: the kind of file that BVLC published GoogLeNet as.
//!
//! It is a protocol buffer, a `NetParameter`, and of it only this much matters (field numbers of Caffe's
//! `caffe.proto`):
//!
//! | message | fields |
//! |---|---|
//! | `NetParameter` | 2 `layers` (of version 1), 100 `layer` |
//! | `V1LayerParameter` | 4 name, 5 type (a number: 14 is a linear layer), 6 blobs |
//! | `LayerParameter` | 1 name, 2 type (`InnerProduct` is a linear layer), 7 blobs |
//! | `BlobProto` | 1–4 num, channels, height, width; 5 data; 7 shape; 8 double_data |
//! | `BlobShape` | 1 dim |
//!
//! A layer's first blob is its weight (convolutions: output, input, height, width; linear layers: output, input), its
//! second the bias. Old files write every shape with four numbers; the superfluous ones are dropped.

use super::limits::{MAX_NAME, MAX_RANK, MAX_TENSORS};

/// The largest number of blobs of a layer; batch normalization has three.
const MAX_BLOBS: usize = 16;

/// One blob of a layer: a weight or a bias.
#[derive(Debug, Clone, PartialEq)]
pub struct Blob {
    /// The layer's name and `.weight` or `.bias`, or `.blobN` for a third and further ones: `conv1/7x7_s2.weight`.
    pub name: String,
    /// The shape: `[out, in, height, width]`, `[out, in]`, or `[out]`.
    pub shape: Vec<usize>,
    /// The values, row-major.
    pub values: Vec<f32>,
}

/// Why bytes are not a readable caffemodel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause} at byte {offset}")]
pub struct CaffeError {
    /// Where, from the beginning of the file.
    pub offset: usize,
    /// What is wrong.
    pub cause: String,
}

/// Whether a file that begins so may be a caffemodel: its first field is the network's name, or a layer.
pub fn is_caffemodel(head: &[u8]) -> bool {
    matches!(head, [0x0a | 0x12, ..] | [0xa2, 0x06, ..])
}

/// The blobs of all layers, in the file's order. Layers without weights have none.
///
/// # Errors
/// Where the bytes are no protocol buffer, or a blob's shape and values disagree; with the offset.
pub fn read(bytes: &[u8]) -> Result<Vec<Blob>, CaffeError> {
    let mut blobs = Vec::new();
    for field in fields(bytes, 0) {
        match field? {
            Field { number: 2, value: Value::Bytes(layer), offset } => read_layer(layer, offset, &V1, &mut blobs)?,
            Field { number: 100, value: Value::Bytes(layer), offset } => read_layer(layer, offset, &V2, &mut blobs)?,
            _ => {}
        }
        if blobs.len() > MAX_TENSORS {
            return Err(CaffeError { offset: bytes.len(), cause: format!("more than {MAX_TENSORS} blobs") });
        }
    }
    match blobs.is_empty() {
        true => Err(CaffeError { offset: bytes.len(), cause: "no layer with weights before the end".to_string() }),
        false => Ok(blobs),
    }
}

/// The field numbers of a layer message.
struct LayerFields {
    name: u32,
    kind: u32,
    blobs: u32,
}

const V1: LayerFields = LayerFields { name: 4, kind: 5, blobs: 6 };
const V2: LayerFields = LayerFields { name: 1, kind: 2, blobs: 7 };

/// `INNER_PRODUCT` of `V1LayerParameter.LayerType`.
const V1_INNER_PRODUCT: u64 = 14;

fn read_layer(bytes: &[u8], base: usize, numbers: &LayerFields, blobs: &mut Vec<Blob>) -> Result<(), CaffeError> {
    let mut name = String::new();
    let mut is_linear = false;
    let mut messages = Vec::new();
    for field in fields(bytes, base) {
        let Field { number, value, offset } = field?;
        match value {
            Value::Bytes(text) if number == numbers.name => {
                // Each blob repeats the name.
                if text.len() > MAX_NAME {
                    return Err(CaffeError { offset, cause: format!("a layer's name has {} bytes", text.len()) });
                }
                name = String::from_utf8_lossy(text).into_owned();
            }
            Value::Bytes(kind) if number == numbers.kind => is_linear = kind == b"InnerProduct",
            Value::Varint(kind) if number == numbers.kind => is_linear = kind == V1_INNER_PRODUCT,
            Value::Bytes(blob) if number == numbers.blobs => {
                messages.push((blob, offset));
                if messages.len() > MAX_BLOBS {
                    return Err(CaffeError { offset, cause: format!("a layer has more than {MAX_BLOBS} blobs") });
                }
            }
            _ => {}
        }
    }
    for (index, (blob, offset)) in messages.into_iter().enumerate() {
        let (mut shape, values) = read_blob(blob, offset)?;
        let superfluous = match (index, is_linear) {
            (0, true) => shape.len().saturating_sub(2),
            (0, false) => 0,
            _ => shape.len().saturating_sub(1),
        };
        if shape[..superfluous].iter().any(|size| *size != 1) {
            let cause = format!("blob {index} of layer '{name}' has the unexpected shape {shape:?}");
            return Err(CaffeError { offset, cause });
        }
        shape.drain(..superfluous);
        let name = match index {
            0 => format!("{name}.weight"),
            1 => format!("{name}.bias"),
            _ => format!("{name}.blob{index}"),
        };
        blobs.push(Blob { name, shape, values });
    }
    Ok(())
}

/// Shape and values of a `BlobProto`.
fn read_blob(bytes: &[u8], base: usize) -> Result<(Vec<usize>, Vec<f32>), CaffeError> {
    let mut old_shape = [None; 4];
    let mut shape = None;
    let mut values: Vec<f32> = Vec::new();
    for field in fields(bytes, base) {
        let Field { number, value, offset } = field?;
        match (number, value) {
            (1..=4, Value::Varint(size)) => old_shape[number as usize - 1] = Some(to_size(size, offset)?),
            (7, Value::Bytes(message)) => shape = Some(read_shape(message, offset)?),
            // Repeated numbers are packed into one field, or have a field each.
            (5, Value::Bytes(packed)) => {
                values.reserve(packed.len() / 4);
                values.extend(items(packed, offset)?.map(f32::from_le_bytes));
            }
            (5, Value::Fixed32(one)) => values.push(f32::from_le_bytes(one)),
            (8, Value::Bytes(packed)) => {
                values.extend(items(packed, offset)?.map(|one| f64::from_le_bytes(one) as f32))
            }
            (8, Value::Fixed64(one)) => values.push(f64::from_le_bytes(one) as f32),
            _ => {}
        }
    }
    let shape = match shape {
        Some(shape) => shape,
        None if old_shape.iter().any(Option::is_some) => old_shape.map(|size| size.unwrap_or(0)).to_vec(),
        None => vec![values.len()],
    };
    let count = shape.iter().try_fold(1usize, |count, size| count.checked_mul(*size));
    if count != Some(values.len()) {
        let cause = format!("a blob of shape {shape:?} has {} values", values.len());
        return Err(CaffeError { offset: base, cause });
    }
    Ok((shape, values))
}

fn read_shape(bytes: &[u8], base: usize) -> Result<Vec<usize>, CaffeError> {
    let mut shape = Vec::new();
    for field in fields(bytes, base) {
        match field? {
            Field { number: 1, value: Value::Varint(size), offset } => shape.push(to_size(size, offset)?),
            Field { number: 1, value: Value::Bytes(packed), offset } => {
                let mut reader = Reader { bytes: packed, at: 0, base: offset };
                while reader.at < packed.len() {
                    let size = reader.varint()?;
                    shape.push(to_size(size, offset)?);
                    if shape.len() > MAX_RANK {
                        return Err(CaffeError { offset, cause: format!("more than {MAX_RANK} dimensions") });
                    }
                }
            }
            _ => {}
        }
    }
    Ok(shape)
}

fn to_size(size: u64, offset: usize) -> Result<usize, CaffeError> {
    // A negative number is a huge one here.
    let size = u32::try_from(size).map_err(|_| CaffeError { offset, cause: format!("a size of {}", size as i64) })?;
    Ok(size as usize)
}

/// Packed numbers of `N` bytes each.
fn items<const N: usize>(bytes: &[u8], offset: usize) -> Result<impl Iterator<Item = [u8; N]>, CaffeError> {
    let (items, rest) = bytes.as_chunks::<N>();
    match rest {
        [] => Ok(items.iter().copied()),
        _ => Err(CaffeError { offset, cause: format!("{} bytes of packed numbers of {N} bytes", bytes.len()) }),
    }
}

// ---- protocol buffers ----

/// A field of a message; `offset` is where its value begins in the file.
struct Field<'a> {
    number: u32,
    value: Value<'a>,
    offset: usize,
}

enum Value<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(&'a [u8]),
    Fixed32([u8; 4]),
}

/// The fields of the message `bytes`, which begins at `base` in the file. It ends after the first error.
fn fields(bytes: &[u8], base: usize) -> impl Iterator<Item = Result<Field<'_>, CaffeError>> {
    let mut reader = Reader { bytes, at: 0, base };
    std::iter::from_fn(move || {
        if reader.at >= reader.bytes.len() {
            return None;
        }
        let field = reader.field();
        if field.is_err() {
            reader.at = reader.bytes.len();
        }
        Some(field)
    })
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    base: usize,
}

impl<'a> Reader<'a> {
    fn error(&self, cause: impl Into<String>) -> CaffeError {
        CaffeError { offset: self.base + self.at, cause: cause.into() }
    }

    fn field(&mut self) -> Result<Field<'a>, CaffeError> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| self.error("a field number that is too large"))?;
        if number == 0 {
            return Err(self.error("a field numbered 0"));
        }
        let length = if tag & 7 == 2 { self.varint()? } else { 0 };
        let offset = self.base + self.at;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(self.array()?),
            2 => Value::Bytes(self.take(length)?),
            5 => Value::Fixed32(self.array()?),
            wire_type => return Err(self.error(format!("wire type {wire_type}, which Caffe does not use"))),
        };
        Ok(Field { number, value, offset })
    }

    fn varint(&mut self) -> Result<u64, CaffeError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.error("a number of more than 10 bytes"))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CaffeError> {
        let bytes = self.take(N as u64)?;
        Ok(bytes.try_into().expect("`take` returns as many bytes as asked for"))
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], CaffeError> {
        let rest = &self.bytes[self.at..];
        match usize::try_from(length) {
            Ok(length) if length <= rest.len() => {
                self.at += length;
                Ok(&rest[..length])
            }
            _ => Err(self.error(format!("the file ends: {length} bytes were announced, {} are left", rest.len()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A writer of the same form, so that the tests read whole files.

    fn varint(mut value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    fn number(field: u64, value: u64) -> Vec<u8> {
        [varint(field << 3), varint(value)].concat()
    }

    fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
        [varint(field << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
    }

    fn packed(values: &[f32]) -> Vec<u8> {
        bytes(5, &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
    }

    fn old_blob(shape: [u64; 4], values: &[f32]) -> Vec<u8> {
        let sizes: Vec<u8> = (1..).zip(shape).flat_map(|(field, size)| number(field, size)).collect();
        [sizes, packed(values)].concat()
    }

    fn new_blob(shape: &[u64], values: &[f32]) -> Vec<u8> {
        let sizes: Vec<u8> = shape.iter().flat_map(|size| varint(*size)).collect();
        [packed(values), bytes(7, &bytes(1, &sizes))].concat()
    }

    fn blob(name: &str, shape: &[usize], values: &[f32]) -> Blob {
        Blob { name: name.to_string(), shape: shape.to_vec(), values: values.to_vec() }
    }

    #[test]
    fn a_file_of_version_1_is_read_as_bvlc_wrote_it() {
        let conv = [
            bytes(2, b"data"),
            bytes(4, b"conv1/7x7_s2"),
            number(5, 4),
            bytes(6, &old_blob([2, 1, 1, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
            bytes(6, &old_blob([1, 1, 1, 2], &[0.5, -0.5])),
            // Training parameters in between: a float, and a message.
            [varint(7 << 3 | 5), 1.0f32.to_le_bytes().to_vec()].concat(),
            bytes(106, &number(1, 64)),
        ];
        let relu = [bytes(4, b"conv1/relu"), number(5, 18)].concat();
        let linear = [
            bytes(6, &old_blob([1, 1, 2, 1], &[7.0, 8.0])),
            bytes(6, &old_blob([1, 1, 1, 2], &[9.0, 10.0])),
            bytes(4, b"loss3/classifier"),
            number(5, 14),
        ];
        let file =
            [bytes(1, b"GoogleNet"), bytes(2, &conv.concat()), bytes(2, &relu), bytes(2, &linear.concat())].concat();
        assert!(is_caffemodel(&file));
        let expected = [
            blob("conv1/7x7_s2.weight", &[2, 1, 1, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            blob("conv1/7x7_s2.bias", &[2], &[0.5, -0.5]),
            blob("loss3/classifier.weight", &[2, 1], &[7.0, 8.0]),
            blob("loss3/classifier.bias", &[2], &[9.0, 10.0]),
        ];
        assert_eq!(read(&file).expect("it is well-formed"), expected);
    }

    #[test]
    fn a_file_of_version_2_is_read_with_its_shapes() {
        let layer = [
            bytes(1, b"fc"),
            bytes(2, b"InnerProduct"),
            bytes(7, &new_blob(&[1, 3], &[1.0, 2.0, 3.0])),
            bytes(7, &new_blob(&[1], &[4.0])),
        ];
        // Values that are not packed, and doubles.
        let single = [varint(5 << 3 | 5), 1.5f32.to_le_bytes().to_vec()].concat();
        let double = [varint(8 << 3 | 1), 2.5f64.to_le_bytes().to_vec()].concat();
        let scale = [bytes(1, b"scale"), bytes(7, &[single.clone(), single].concat()), bytes(7, &double)];
        let file = [bytes(100, &layer.concat()), bytes(100, &scale.concat())].concat();
        assert!(is_caffemodel(&file));
        let expected = [
            blob("fc.weight", &[1, 3], &[1.0, 2.0, 3.0]),
            blob("fc.bias", &[1], &[4.0]),
            blob("scale.weight", &[2], &[1.5, 1.5]),
            blob("scale.bias", &[1], &[2.5]),
        ];
        assert_eq!(read(&file).expect("it is well-formed"), expected);
    }

    #[test]
    fn a_cut_file_is_an_error_wherever_it_is_cut() {
        let layer = [bytes(1, b"fc"), bytes(7, &new_blob(&[1, 2], &[1.0, 2.0]))].concat();
        let file = bytes(100, &layer);
        assert_eq!(read(&file).map(|blobs| blobs.len()), Ok(1));
        for end in 0..file.len() {
            let error = read(&file[..end]).unwrap_err();
            assert!(error.offset <= end, "{error}");
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        let layer = [bytes(1, b"fc"), bytes(7, &new_blob(&[1, 2], &[1.0, 2.0])), bytes(7, &old_blob([1; 4], &[3.0]))];
        let file = bytes(100, &layer.concat());
        for at in 0..file.len() {
            for value in 0..=255 {
                let mut changed = file.clone();
                changed[at] = value;
                let _ = read(&changed);
            }
        }
    }

    #[test]
    fn a_shape_that_contradicts_the_values_is_an_error_with_its_offset() {
        let wrong = |blob: Vec<u8>| read(&bytes(100, &[bytes(1, b"fc"), bytes(7, &blob)].concat())).unwrap_err();
        let error = wrong(new_blob(&[2, 2], &[1.0, 2.0, 3.0]));
        assert_eq!(error.cause, "a blob of shape [2, 2] has 3 values");
        assert!(error.offset > 0);
        assert!(wrong(new_blob(&[u64::MAX], &[])).cause.contains("a size of -1"));
        let huge = u64::from(u32::MAX);
        assert!(wrong(new_blob(&[huge, huge, huge], &[1.0])).cause.contains("has 1 values"));
        let linear = [bytes(1, b"fc"), bytes(2, b"InnerProduct"), bytes(7, &old_blob([2, 1, 1, 1], &[1.0, 2.0]))];
        let error = read(&bytes(100, &linear.concat())).unwrap_err();
        assert!(error.cause.contains("layer 'fc' has the unexpected shape [2, 1, 1, 1]"), "{error}");
    }

    #[test]
    fn other_files_are_told_apart() {
        assert!(!is_caffemodel(b"PK\x03\x04"));
        assert!(!is_caffemodel(&[0x80, 2]));
        assert!(!is_caffemodel(b""));
        assert!(read(b"hello").is_err());
    }
}
