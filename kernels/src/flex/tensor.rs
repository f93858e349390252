//! Between Burn's tensors and slices: maps with their channels last, and buffers that are used again.

use std::mem::MaybeUninit;

use burn::{
    backend::flex::{FlexTensor, Layout},
    tensor::{DType, Shape},
};
use burn_std::{AccessError, AccessPolicy, AllocationController, AllocationProperty, Bytes};

use ::half::bf16;

use crate::cpu::{
    half,
    memory::Buffer,
    parallel::{Shared, tasks},
};

/// Lets a tensor own a [`Buffer`].
struct Pooled(Buffer);

impl AllocationController for Pooled {
    fn alloc_align(&self) -> usize {
        64
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Other
    }

    unsafe fn memory_mut(&mut self, _policy: AccessPolicy) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        let floats: &mut [f32] = &mut self.0;
        // SAFETY: the same memory, initialised; the caller promises to write nothing uninitialised.
        Ok(unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), size_of_val(floats)) })
    }

    fn memory(&self, _policy: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let floats: &[f32] = &self.0;
        // SAFETY: the same memory, initialised.
        Ok(unsafe { std::slice::from_raw_parts(floats.as_ptr().cast(), size_of_val(floats)) })
    }
}

fn bytes(buffer: Buffer) -> Bytes {
    let len = size_of_val::<[f32]>(&buffer);
    of_length(buffer, len)
}

/// The first `len` bytes.
fn of_length(buffer: Buffer, len: usize) -> Bytes {
    assert!(len <= size_of_val::<[f32]>(&buffer));
    // SAFETY: all of the buffer is initialised.
    unsafe { Bytes::from_controller(Box::new(Pooled(buffer)), len) }
}

/// A tensor of any shape, in its usual order.
pub fn tensor<const D: usize>(buffer: Buffer, shape: [usize; D]) -> FlexTensor {
    shaped(buffer, Shape::new(shape))
}

/// The same.
pub fn shaped(buffer: Buffer, shape: Shape) -> FlexTensor {
    FlexTensor::new(bytes(buffer), Layout::contiguous(shape), DType::F32)
}

/// A vector.
pub fn vector(values: &[f32]) -> FlexTensor {
    let mut buffer = Buffer::new(values.len());
    buffer.copy_from_slice(values);
    tensor(buffer, [values.len()])
}

/// A tensor `[n, c, h, w]` whose channels lie last in memory.
pub fn map(buffer: Buffer, shape: [usize; 4]) -> FlexTensor {
    FlexTensor::new(bytes(buffer), Layout::new(Shape::new(shape), last_strides(shape).to_vec(), 0), DType::F32)
}

/// A buffer for as many bf16 values.
pub fn buffer_of_halves(len: usize) -> Buffer {
    Buffer::new(len.div_ceil(2))
}

/// Its first `len` values.
pub fn halves_mut(buffer: &mut Buffer, len: usize) -> &mut [bf16] {
    assert!(len <= 2 * buffer.len());
    // SAFETY: two values have the size of a float and no stricter alignment; any bits are a value.
    unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast(), len) }
}

/// A tensor `[n, c, h, w]` of bf16 values whose channels lie last in memory.
pub fn map_of_halves(buffer: Buffer, shape: [usize; 4]) -> FlexTensor {
    let bytes = of_length(buffer, size_of::<bf16>() * shape.iter().product::<usize>());
    FlexTensor::new(bytes, Layout::new(Shape::new(shape), last_strides(shape).to_vec(), 0), DType::BF16)
}

/// The bf16 values of a tensor of [`channels_last`].
pub fn halves(x: &FlexTensor) -> &[bf16] {
    let start = x.layout().start_offset();
    &x.storage::<bf16>()[start..start + x.layout().num_elements()]
}

/// The map itself, or with its bf16 values as floats.
pub fn widened(x: FlexTensor) -> FlexTensor {
    if x.dtype() != DType::BF16 {
        return x;
    }
    let x = channels_last(x);
    let mut wide = Buffer::new(x.layout().num_elements());
    half::widen(halves(&x), &mut wide);
    map(wide, dims(&x))
}

fn last_strides([_, c, h, w]: [usize; 4]) -> [isize; 4] {
    [h * w * c, 1, w * c, c].map(|stride| stride as isize)
}

/// Whether the channels of `[n, c, h, w]` lie last, without gaps.
fn is_channels_last(layout: &Layout) -> bool {
    let shape: [usize; 4] = layout.shape().dims();
    let wanted = last_strides(shape);
    layout.strides().iter().zip(wanted).zip(shape).all(|((&stride, wanted), size)| size == 1 || stride == wanted)
}

/// The tensor itself if its channels lie last, otherwise a copy of which they do.
pub fn channels_last(x: FlexTensor) -> FlexTensor {
    if is_channels_last(x.layout()) {
        return x;
    }
    let shape @ [n, c, h, w] = x.layout().shape().dims();
    let strides: [usize; 4] = match x.layout().strides() {
        &[a, b, c, d] if [a, b, c, d].iter().all(|&stride| stride >= 0) => [a, b, c, d].map(|stride| stride as usize),
        _ => return channels_last(x.to_contiguous()),
    };
    if x.dtype() == DType::BF16 {
        let mut buffer = buffer_of_halves(n * c * h * w);
        turn(&x.storage::<bf16>()[x.layout().start_offset()..], strides, shape, halves_mut(&mut buffer, n * c * h * w));
        return map_of_halves(buffer, shape);
    }
    let mut buffer = Buffer::new(n * c * h * w);
    turn(&x.storage::<f32>()[x.layout().start_offset()..], strides, shape, &mut buffer);
    map(buffer, shape)
}

/// Brings `[n, c, h, w]` into the order of [`map`].
fn turn<T: Copy + Send + Sync>(source: &[T], strides: [usize; 4], [n, c, h, w]: [usize; 4], out: &mut [T]) {
    let out = Shared::new(out);
    tasks(n * h, |row| {
        let (image, y) = (row / h, row % h);
        let base = image * strides[0] + y * strides[2];
        // SAFETY: each task has its own row.
        let out = unsafe { out.range(row * w * c..(row + 1) * w * c) };
        // Blocks of channels, so that what is read and what is written both stay in the cache.
        for first in (0..c).step_by(16) {
            for column in 0..w {
                for channel in first..c.min(first + 16) {
                    out[column * c + channel] = source[base + column * strides[3] + channel * strides[1]];
                }
            }
        }
    });
}

/// The floats of a tensor of [`channels_last`], or of one in its usual order.
pub fn floats(x: &FlexTensor) -> &[f32] {
    let start = x.layout().start_offset();
    &x.storage::<f32>()[start..start + x.layout().num_elements()]
}

/// The same for writing, where nobody else has the tensor.
pub fn own_floats(x: &mut FlexTensor) -> Option<&mut [f32]> {
    let (start, len) = (x.layout().start_offset(), x.layout().num_elements());
    x.try_storage_mut::<f32>().map(|floats| &mut floats[start..start + len])
}

/// `[n, c, h, w]`.
pub fn dims(x: &FlexTensor) -> [usize; 4] {
    x.layout().shape().dims()
}
