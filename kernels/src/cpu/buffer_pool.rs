//! A pool of buffers. Each training step allocates the same sizes as the step before, and page faults on fresh memory
//! cost more than many of the operations that fill it.

use std::{
    alloc::{Layout, alloc, dealloc, handle_alloc_error},
    collections::{BTreeMap, VecDeque},
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Buffers smaller than this (in bytes) come from the system's allocator each time.
const SMALL: usize = 16 << 10;
/// Buffers of at least this size (in bytes) are aligned to it, so that the system can map them by huge pages.
const HUGE: usize = 2 << 20;
const CACHE_LINE: usize = 64;

/// A buffer of floats, aligned to a cache line. Its initial values are arbitrary, but initialized.
pub struct Buffer {
    start: NonNull<f32>,
    len: usize,
    /// Bytes allocated.
    size: usize,
}

// SAFETY: a buffer is the only owner of its memory.
unsafe impl Send for Buffer {}
// SAFETY: shared access to a buffer only reads.
unsafe impl Sync for Buffer {}

/// Free buffers by size, and byte counts.
#[derive(Default)]
struct Pool {
    /// Free buffers of each size with the time of their return, the oldest first.
    free: BTreeMap<usize, VecDeque<(u64, NonNull<f32>)>>,
    time: u64,
    kept: usize,
    live: usize,
    most_live: usize,
}

impl Pool {
    /// Takes a free buffer of `size` bytes or a little more.
    fn take(&mut self, size: usize) -> Option<(usize, NonNull<f32>)> {
        let (&size, buffers) = self.free.range_mut(size..=size + size / 4).find(|(_, buffers)| !buffers.is_empty())?;
        let (_, start) = buffers.pop_back()?;
        self.kept -= size;
        Some((size, start))
    }

    fn keep(&mut self, size: usize, start: NonNull<f32>) {
        self.time += 1;
        self.kept += size;
        self.free.entry(size).or_default().push_back((self.time, start));
        // The pool keeps at most the peak use and frees the oldest buffers first.
        while self.kept > self.most_live {
            let oldest = self.free.iter().filter_map(|(&size, buffers)| Some((buffers.front()?.0, size))).min();
            let Some((_, size)) = oldest else { break };
            let Some((_, start)) = self.free.get_mut(&size).and_then(VecDeque::pop_front) else { break };
            self.kept -= size;
            // SAFETY: the pool is the only owner.
            unsafe { free(start, size) };
        }
    }
}

// SAFETY: the pool is the only owner of the memory behind its pointers.
unsafe impl Send for Pool {}

static POOL: Mutex<Pool> = Mutex::new(Pool { free: BTreeMap::new(), time: 0, kept: 0, live: 0, most_live: 0 });

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Rounds up to a size class; at most an eighth is wasted.
fn size_class(bytes: usize) -> usize {
    let step = (bytes.next_power_of_two() / 16).max(CACHE_LINE);
    bytes.next_multiple_of(step)
}

fn layout(size: usize) -> Layout {
    let align = if size >= HUGE { HUGE } else { CACHE_LINE };
    Layout::from_size_align(size, align).expect("`Buffer::new` bounds the size")
}

/// The maximum number of floats of a buffer. Rounding its bytes up to a size class and an alignment stays below `isize::MAX`.
const LONGEST: usize = isize::MAX as usize / (2 * size_of::<f32>());

/// The number of elements of a tensor of these sizes.
///
/// # Panics
///
/// If it overflows.
pub fn elements<const N: usize>(sizes: [usize; N]) -> usize {
    let elements = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    elements.unwrap_or_else(|| panic!("the number of elements of {sizes:?} overflows"))
}

impl Buffer {
    /// Allocates `len` floats with arbitrary values.
    ///
    /// # Panics
    ///
    /// If their size exceeds the address space.
    pub fn new(len: usize) -> Self {
        assert!(len <= LONGEST, "a buffer of {len} floats exceeds the address space");
        let size = size_class((len * size_of::<f32>()).max(CACHE_LINE));
        if size >= SMALL {
            let mut pool = pool();
            let found = pool.take(size);
            pool.live += found.map_or(size, |(size, _)| size);
            pool.most_live = pool.most_live.max(pool.live);
            if let Some((size, start)) = found {
                return Self { start, len, size };
            }
        }
        let layout = layout(size);
        // SAFETY: the size is not zero.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start.cast()) else { handle_alloc_error(layout) };
        // Before the first touch, which is what maps the pages.
        advise_huge_pages(start, size);
        // SAFETY: `size` bytes were allocated, and zero bits are floats.
        unsafe { start.cast::<u8>().write_bytes(0, size) };
        Self { start, len, size }
    }

    /// Allocates `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let mut buffer = Self::new(len);
        buffer.fill(0.0);
        buffer
    }
}

#[cfg(target_os = "linux")]
fn advise_huge_pages(start: NonNull<f32>, size: usize) {
    if size >= HUGE {
        // SAFETY: the range was just allocated, and the advice does not change its contents.
        unsafe { libc::madvise(start.as_ptr().cast(), size, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_start: NonNull<f32>, _size: usize) {}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.size >= SMALL {
            let mut pool = pool();
            pool.live -= self.size;
            pool.keep(self.size, self.start);
            return;
        }
        // SAFETY: the buffer is the only owner.
        unsafe { free(self.start, self.size) };
    }
}

/// # Safety
/// `start` must have been allocated by `Buffer::new` with this size, and nothing may use it any more.
unsafe fn free(start: NonNull<f32>, size: usize) {
    // SAFETY: `start` was allocated with the layout of this size, and nothing uses it any more.
    unsafe { dealloc(start.as_ptr().cast(), layout(size)) };
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `len` floats were allocated, zeroed at first and only ever written as floats.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: `len` floats were allocated and initialized, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_meet_again_and_waste_little() {
        for bytes in [64, 100, 4096, 70_001, 1 << 20, (1 << 20) + 1, 30_000_001] {
            let class = size_class(bytes);
            assert!(class >= bytes && class <= bytes + bytes / 8 + CACHE_LINE, "{bytes} → {class}");
            assert_eq!(size_class(class), class);
        }
    }

    #[test]
    fn a_buffer_comes_back_and_zeros_are_zeros() {
        let len = 123_457;
        let mut buffer = Buffer::new(len);
        assert_eq!(buffer.as_ptr() as usize % CACHE_LINE, 0);
        buffer.fill(7.0);
        drop(buffer);
        assert!(Buffer::zeros(len).iter().all(|&value| value == 0.0));
        assert_eq!(Buffer::new(0).len(), 0);
    }

    #[test]
    fn a_length_that_overflows_panics() {
        for len in [LONGEST + 1, 1 << 62, (1 << 62) + 1, usize::MAX] {
            assert!(std::panic::catch_unwind(|| Buffer::new(len)).is_err(), "{len}");
        }
        assert_eq!(Buffer::new(5).len(), 5, "the pool still works");
        assert!(std::panic::catch_unwind(|| elements([1 << 33, 1 << 33])).is_err());
        // Not an overflow, but the largest layout that may be asked for.
        assert!(size_class(LONGEST * size_of::<f32>()) <= isize::MAX as usize);
    }
}
