//! Tensors with their channels last, in pooled buffers, and access to their slices.

use std::mem::MaybeUninit;

use burn::{
    backend::flex::{FlexTensor, Layout},
    tensor::{DType, Shape},
};
use burn_std::{AccessError, AccessPolicy, AllocationController, AllocationProperty, Bytes};

use ::half::bf16;

use crate::cpu::{buffer_pool::Buffer, disjoint::DisjointSlice, thread_pool::tasks};

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
        // SAFETY: the same memory, initialized; the caller must write initialized values only.
        Ok(unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), size_of_val(floats)) })
    }

    fn memory(&self, _policy: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let floats: &[f32] = &self.0;
        // SAFETY: the same memory, initialized.
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
    // SAFETY: all of the buffer is initialized.
    unsafe { Bytes::from_controller(Box::new(Pooled(buffer)), len) }
}

/// Creates a tensor in row-major order.
pub fn tensor<const D: usize>(buffer: Buffer, shape: [usize; D]) -> FlexTensor {
    shaped(buffer, Shape::new(shape))
}

/// The same.
pub fn shaped(buffer: Buffer, shape: Shape) -> FlexTensor {
    FlexTensor::new(bytes(buffer), Layout::contiguous(shape), DType::F32)
}

/// Creates a vector.
pub fn vector(values: &[f32]) -> FlexTensor {
    let mut buffer = Buffer::new(values.len());
    buffer.copy_from_slice(values);
    tensor(buffer, [values.len()])
}

/// Creates a tensor `[n, c, h, w]` stored with its channels last.
pub fn map(buffer: Buffer, shape: [usize; 4]) -> FlexTensor {
    FlexTensor::new(bytes(buffer), Layout::new(Shape::new(shape), last_strides(shape).to_vec(), 0), DType::F32)
}

/// Allocates a buffer for this many bf16 values.
pub fn bf16_buffer(len: usize) -> Buffer {
    Buffer::new(len.div_ceil(2))
}

/// Returns the first `len` bf16 values.
pub fn bf16s_mut(buffer: &mut Buffer, len: usize) -> &mut [bf16] {
    assert!(len <= 2 * buffer.len());
    // SAFETY: two values have the size of a float and no stricter alignment; any bits are a value.
    unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast(), len) }
}

/// Creates a bf16 tensor `[n, c, h, w]` stored with its channels last.
pub fn bf16_map(buffer: Buffer, shape: [usize; 4]) -> FlexTensor {
    let bytes = of_length(buffer, size_of::<bf16>() * shape.iter().product::<usize>());
    FlexTensor::new(bytes, Layout::new(Shape::new(shape), last_strides(shape).to_vec(), 0), DType::BF16)
}

/// Returns the bf16 values of a tensor of [`channels_last`].
pub fn bf16s(x: &FlexTensor) -> &[bf16] {
    let start = x.layout().start_offset();
    &x.storage::<bf16>()[start..start + x.layout().num_elements()]
}

/// Converts a bf16 feature map to f32; returns an f32 one unchanged.
pub fn widened(x: FlexTensor) -> FlexTensor {
    if x.dtype() != DType::BF16 {
        return x;
    }
    let x = channels_last(x);
    let mut wide = Buffer::new(x.layout().num_elements());
    crate::cpu::bf16::widen(bf16s(&x), &mut wide);
    map(wide, dims(&x))
}

fn last_strides([_, c, h, w]: [usize; 4]) -> [isize; 4] {
    [h * w * c, 1, w * c, c].map(|stride| stride as isize)
}

/// Returns whether `[n, c, h, w]` is stored contiguously with its channels last.
fn is_channels_last(layout: &Layout) -> bool {
    let shape: [usize; 4] = layout.shape().dims();
    let wanted = last_strides(shape);
    layout.strides().iter().zip(wanted).zip(shape).all(|((&stride, wanted), size)| size == 1 || stride == wanted)
}

/// Returns the tensor stored with its channels last, copied if necessary.
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
        let mut buffer = bf16_buffer(n * c * h * w);
        turn(&x.storage::<bf16>()[x.layout().start_offset()..], strides, shape, bf16s_mut(&mut buffer, n * c * h * w));
        return bf16_map(buffer, shape);
    }
    let mut buffer = Buffer::new(n * c * h * w);
    turn(&x.storage::<f32>()[x.layout().start_offset()..], strides, shape, &mut buffer);
    map(buffer, shape)
}

/// Transposes `[n, c, h, w]` to the layout of [`map`].
fn turn<T: Copy + Send + Sync>(source: &[T], strides: [usize; 4], [n, c, h, w]: [usize; 4], out: &mut [T]) {
    let out = DisjointSlice::new(out);
    tasks(n * h, |row| {
        let (image, y) = (row / h, row % h);
        let base = image * strides[0] + y * strides[2];
        // SAFETY: each task accesses its own row only.
        let out = unsafe { out.range(row * w * c..(row + 1) * w * c) };
        // Blocks of channels, so that reads and writes both stay in the cache.
        for first in (0..c).step_by(16) {
            for column in 0..w {
                for channel in first..c.min(first + 16) {
                    out[column * c + channel] = source[base + column * strides[3] + channel * strides[1]];
                }
            }
        }
    });
}

/// Returns the floats of a contiguous tensor.
pub fn floats(x: &FlexTensor) -> &[f32] {
    let start = x.layout().start_offset();
    &x.storage::<f32>()[start..start + x.layout().num_elements()]
}

/// Returns the floats for writing, if the storage is not shared.
pub fn own_floats(x: &mut FlexTensor) -> Option<&mut [f32]> {
    let (start, len) = (x.layout().start_offset(), x.layout().num_elements());
    x.try_storage_mut::<f32>().map(|floats| &mut floats[start..start + len])
}

/// `[n, c, h, w]`.
pub fn dims(x: &FlexTensor) -> [usize; 4] {
    x.layout().shape().dims()
}
