//! Reading samples in parallel.

use std::{
    any::Any,
    panic::resume_unwind,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use datasets::Source;
use runtime::progress::Progress;

/// Reads the samples `indices` on `threads` threads and examines each. Results are in the order of `indices`.
pub fn scan<T: Send>(
    source: &dyn Source,
    indices: &[usize],
    threads: usize,
    progress: &Progress,
    look: impl Fn(usize, datasets::Result<&[u8]>) -> T + Sync,
) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut buffer, mut results) = (Vec::new(), Vec::new());
        while let position = next.fetch_add(1, Relaxed)
            && let Some(&index) = indices.get(position)
        {
            let bytes = source.read(index, &mut buffer).map(|()| buffer.as_slice());
            results.push((position, look(index, bytes)));
            progress.inc(1);
        }
        results
    };
    let mut results: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.clamp(1, indices.len().max(1))).map(|_| scope.spawn(work)).collect();
        let join = |payload: Box<dyn Any + Send>| resume_unwind(payload);
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_else(join)).collect()
    });
    results.sort_unstable_by_key(|&(position, _)| position);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Returns `n` indices evenly spread over `0..len`; all of them if `n` is 0 or too large.
pub fn spread(len: usize, n: usize) -> Vec<usize> {
    if n == 0 || n >= len { (0..len).collect() } else { (0..n).map(|i| i * len / n).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_spread_evenly() {
        assert_eq!(spread(10, 3), [0, 3, 6]);
        assert_eq!(spread(3, 0), [0, 1, 2]);
        assert_eq!(spread(3, 5), [0, 1, 2]);
        assert!(spread(0, 5).is_empty());
    }
}
