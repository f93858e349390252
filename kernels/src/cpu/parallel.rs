//! Work shared among threads, and memory that tasks write side by side.

use std::{marker::PhantomData, ops::Range};

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};

/// How many threads [`tasks`] has.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Runs `work` once for each of `0..count`, on all threads. Which thread runs which task, and when, is left to chance:
/// a task must write what no other does.
pub fn tasks(count: usize, work: impl Fn(usize) + Sync + Send) {
    if count == 1 || threads() == 1 {
        return (0..count).for_each(work);
    }
    (0..count).into_par_iter().with_max_len(1).for_each(work);
}

/// The `index`-th of `parts` nearly equal parts of `0..len`, whose inner borders are multiples of `unit`.
pub fn part(len: usize, parts: usize, index: usize, unit: usize) -> Range<usize> {
    let units = len.div_ceil(unit);
    let border = |i: usize| (units * i / parts * unit).min(len);
    border(index)..border(index + 1)
}

/// A slice that several tasks write at once, each its own places.
pub struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

impl<T> Clone for Shared<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<'_, T> {}

// SAFETY: who takes a range of it promises (in `range`) that no one else has any of it.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Shares `slice` out.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// A part of the slice.
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
        // SAFETY: in bounds; the caller promises that it is alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.end - range.start) }
    }

    /// What lies from `start` on.
    #[inline(always)]
    pub fn from(&self, start: usize) -> Self {
        assert!(start <= self.len, "{start} of {}", self.len);
        Self { start: self.start.wrapping_add(start), len: self.len - start, slice: PhantomData }
    }

    /// A pointer to the element at `index`, for writing alone what no other task touches.
    #[inline(always)]
    pub fn at(&self, index: usize) -> *mut T {
        check!(index <= self.len, "{index} of {}", self.len);
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
