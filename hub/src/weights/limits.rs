//! What a file may declare: each number that a file of weights states is checked here against what the file can hold,
//! and against a limit, before memory is taken for it.

use burn::tensor::DType;
use burn_store::burn_pack::Tensor as PackTensor;

/// The largest number of classes of a network: ImageNet's full set has 21,841, and the largest collections of faces
/// less than a million.
pub const MAX_CLASSES: usize = 1 << 20;

/// The largest number of tensors in a file. ResNet-152 has 932, a checkpoint with its optimizer some 3,000.
pub const MAX_TENSORS: usize = 100_000;

/// The largest number of dimensions of a tensor.
pub const MAX_RANK: usize = 8;

/// The longest name of a tensor, in bytes.
pub const MAX_NAME: usize = 1024;

/// How far compressed bytes may expand. Trained floats barely shrink, pruned ones by some 10 times, zeros by 1000.
const MAX_EXPANSION: u64 = 64;

/// The size below which a tensor may have more values than the file holds, as a broadcast scalar has.
const SMALL: u64 = 1 << 20;

/// How many bytes of content a file of `stored` bytes can hold, if they are compressed.
pub fn expanded(stored: u64) -> u64 {
    stored.saturating_mul(MAX_EXPANSION).saturating_add(SMALL)
}

/// Checks the name and the shape that a file declares for a tensor, and the bytes of its values against those that the
/// file holds for it. Returns the number of bytes.
///
/// # Errors
/// What is wrong, to follow the tensor's name.
pub fn check_tensor(shape: &[usize], dtype: DType, held: u64) -> Result<u64, String> {
    if shape.len() > MAX_RANK {
        return Err(format!("has {} dimensions; at most {MAX_RANK} are supported", shape.len()));
    }
    let count = shape.iter().try_fold(1u64, |count, size| count.checked_mul(*size as u64));
    let bytes = count.and_then(|count| count.checked_mul(dtype.size() as u64));
    match bytes {
        Some(bytes) if bytes <= held.max(SMALL) => Ok(bytes),
        Some(bytes) => Err(format!("has the shape {shape:?}, which is {bytes} bytes; the file holds {held} for it")),
        None => Err(format!("has the shape {shape:?}, which is larger than any file")),
    }
}

/// Checks all tensors of a file of `len` bytes.
///
/// # Errors
/// What is wrong, with the tensor's name.
pub fn check_tensors<'a>(tensors: impl Iterator<Item = &'a PackTensor>, len: u64) -> Result<(), String> {
    for (number, tensor) in tensors.enumerate() {
        if number >= MAX_TENSORS {
            return Err(format!("it has more than {MAX_TENSORS} tensors"));
        }
        if tensor.name.len() > MAX_NAME {
            return Err(format!("a tensor has a name of {} bytes", tensor.name.len()));
        }
        let name = super::printable(&tensor.name);
        check_tensor(&tensor.shape, tensor.dtype, len).map_err(|cause| format!("{name} {cause}"))?;
    }
    Ok(())
}
