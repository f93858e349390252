//! Slices that several tasks write at once.

use std::{marker::PhantomData, ops::Range};

/// Returns the `index`-th of `parts` nearly equal parts of `0..len`; inner bounds are multiples of `unit`.
pub fn part(len: usize, parts: usize, index: usize, unit: usize) -> Range<usize> {
    let units = len.div_ceil(unit);
    let border = |i: usize| (units * i / parts * unit).min(len);
    border(index)..border(index + 1)
}

/// A mutable slice that several tasks write at once, each its own elements.
pub struct DisjointSlice<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

impl<T> Clone for DisjointSlice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for DisjointSlice<'_, T> {}

// SAFETY: elements are reached only through `range` and `at`, whose callers guarantee that no two tasks touch the same
// element; so sending a copy to another thread is like sending a `&mut [T]` to part of the slice.
unsafe impl<T: Send> Send for DisjointSlice<'_, T> {}
// SAFETY: as for `Send`; a shared reference gives no other access to the elements.
unsafe impl<T: Send> Sync for DisjointSlice<'_, T> {}

impl<'a, T> DisjointSlice<'a, T> {
    /// Borrows `slice` for several tasks.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// Returns a part of the slice.
    ///
    /// # Safety
    /// No other part that overlaps this one may be alive.
    ///
    /// # Panics
    /// If the range is out of bounds.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn range(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: the range is in bounds (asserted above), and the caller guarantees that no overlapping part is alive.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.end - range.start) }
    }

    /// Returns the number of elements.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns the slice from `start` on.
    #[inline(always)]
    pub fn from(&self, start: usize) -> Self {
        assert!(start <= self.len, "{start} of {}", self.len);
        Self { start: self.start.wrapping_add(start), len: self.len - start, slice: PhantomData }
    }

    /// Returns a pointer to the `count` elements from `index` on, for writes to elements that no other task touches.
    #[inline(always)]
    pub fn at(&self, index: usize, count: usize) -> *mut T {
        check!(index + count <= self.len, "{count} from {index} on of {}", self.len);
        self.start.wrapping_add(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_all_once() {
        for (len, parts, unit) in [(0, 3, 4), (5, 8, 1), (100, 3, 16), (49, 2, 14)] {
            let mut next = 0;
            for index in 0..parts {
                let part = part(len, parts, index, unit);
                assert_eq!(part.start, next);
                assert!(part.end == len || part.end.is_multiple_of(unit));
                next = part.end;
            }
            assert_eq!(next, len);
        }
    }
}
