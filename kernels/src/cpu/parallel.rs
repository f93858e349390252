//! Work shared among threads, and memory that tasks write side by side.

use std::{
    any::Any,
    cell::{Cell, UnsafeCell},
    marker::PhantomData,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, OnceLock, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::Thread,
    time::{Duration, Instant},
};

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};

/// How many threads [`tasks`] has: as many as rayon's pool, `RAYON_NUM_THREADS` or the number of cores.
pub fn threads() -> usize {
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| if cfg!(miri) { 2 } else { rayon::current_num_threads() })
}

/// Runs `work` once for each of `0..count`, on all threads. Which thread runs which task, and when, is left to chance:
/// a task must write what no other does.
///
/// An operation takes a fraction of a millisecond, and waking a thread of a sleeping pool a good part of one. So the
/// caller works along, helpers look out for work a little longer before they sleep, and nobody waits for one that has
/// not woken up.
///
/// # Panics
/// If a task does.
pub fn tasks(count: usize, work: impl Fn(usize) + Sync + Send) {
    if count <= 1 || threads() == 1 || INSIDE.get() {
        return (0..count).for_each(work);
    }
    let crew = CREW.get_or_init(|| Crew::new(threads() - 1));
    let panic = match crew.captain.try_lock() {
        Ok(_captain) => crew.run(count, &work),
        // The lock guards nothing that a panic could leave broken.
        Err(TryLockError::Poisoned(captain)) => {
            let _captain = captain.into_inner();
            crew.run(count, &work)
        }
        // Another thread has the crew: the pool that all share.
        Err(TryLockError::WouldBlock) => {
            (0..count).into_par_iter().with_max_len(1).for_each(work);
            None
        }
    };
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}

static CREW: OnceLock<Crew> = OnceLock::new();

thread_local! {
    /// Whether this thread is at a task: those in it are its own.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// How long a helper looks out for work before it sleeps.
const LOOKOUT: Duration = Duration::from_micros(100);

/// Threads that help whoever has the captain's lock.
struct Crew {
    captain: Mutex<()>,
    state: Arc<State>,
    helpers: Vec<Thread>,
}

type Panic = Box<dyn Any + Send>;

#[derive(Default)]
struct State {
    /// The number of the job that may be joined, 0 for none.
    open: AtomicU64,
    /// Helpers that look at a job, or found that it was over.
    joined: AtomicUsize,
    /// The job: written before it is opened, and left alone until all who joined have gone.
    job: UnsafeCell<Option<Job>>,
    /// The next task.
    next: AtomicUsize,
    /// What the first task that panicked did so with.
    panic: Mutex<Option<Panic>>,
    /// Whether each helper sleeps, or is about to.
    asleep: Vec<AtomicBool>,
}

// SAFETY: `job` is written by the captain alone while no one may join, and read by those who joined while it is open.
unsafe impl Send for State {}
// SAFETY: the same: a shared reference reaches `job` only under the protocol of `open` and `joined`.
unsafe impl Sync for State {}

#[derive(Clone, Copy)]
struct Job {
    work: *const (dyn Fn(usize) + Sync),
    count: usize,
}

impl State {
    /// Takes tasks until none is left.
    fn work(&self, job: Job) {
        // SAFETY: the captain returns, and lets go of `work`, only when all who joined are gone.
        let work = unsafe { &*job.work };
        INSIDE.set(true);
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= job.count {
                break;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(index))) {
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
            }
        }
        INSIDE.set(false);
    }

    fn help(&self, number: usize) {
        let mut done = 0;
        let mut since = Instant::now();
        loop {
            let open = self.open.load(Ordering::SeqCst);
            if open != 0 && open != done {
                self.joined.fetch_add(1, Ordering::SeqCst);
                // Whoever joins while it is open is waited for.
                if self.open.load(Ordering::SeqCst) == open {
                    // SAFETY: the job stays until this helper has gone.
                    let job = unsafe { *self.job.get() };
                    if let Some(job) = job {
                        self.work(job);
                    }
                }
                self.joined.fetch_sub(1, Ordering::SeqCst);
                done = open;
                since = Instant::now();
            } else if since.elapsed() < LOOKOUT {
                std::hint::spin_loop();
            } else {
                self.asleep[number].store(true, Ordering::SeqCst);
                let open = self.open.load(Ordering::SeqCst);
                if open == 0 || open == done {
                    std::thread::park();
                }
                self.asleep[number].store(false, Ordering::SeqCst);
                since = Instant::now();
            }
        }
    }
}

impl Crew {
    fn new(helpers: usize) -> Self {
        let asleep = (0..helpers).map(|_| AtomicBool::new(false)).collect();
        let state = Arc::new(State { asleep, ..State::default() });
        let start = |number: usize| {
            let state = state.clone();
            let helper = std::thread::Builder::new().name(format!("kernels-{number}"));
            // Without one its work is done by the others.
            helper.spawn(move || state.help(number)).ok().map(|handle| handle.thread().clone())
        };
        let helpers = (0..helpers).filter_map(start).collect();
        Self { captain: Mutex::new(()), state, helpers }
    }

    /// Runs a job; the caller must have the captain's lock. Returns what a task panicked with.
    fn run(&self, count: usize, work: &(dyn Fn(usize) + Sync)) -> Option<Panic> {
        let state = &*self.state;
        // SAFETY: only the lifetime is forgotten; this function returns when no one uses it any more.
        let work = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(work) };
        let job = Job { work, count };
        // SAFETY: nothing is open and all who joined the last job have gone, so nobody reads it.
        unsafe { *state.job.get() = Some(job) };
        state.next.store(0, Ordering::Relaxed);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        state.open.store(number, Ordering::SeqCst);
        for (helper, asleep) in self.helpers.iter().zip(&state.asleep) {
            if asleep.load(Ordering::SeqCst) {
                helper.unpark();
            }
        }
        state.work(job);
        state.open.store(0, Ordering::SeqCst);
        let since = Instant::now();
        while state.joined.load(Ordering::SeqCst) != 0 {
            // Where there are more threads than cores, the last one may need this one's.
            if since.elapsed() < LOOKOUT { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        state.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Of the next job.
static NUMBER: AtomicU64 = AtomicU64::new(1);

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
// SAFETY: a shared reference gives out elements only through `range` and `at`, whose users keep to their own.
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

    /// How many elements it has.
    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// What lies from `start` on.
    #[inline(always)]
    pub fn from(&self, start: usize) -> Self {
        assert!(start <= self.len, "{start} of {}", self.len);
        Self { start: self.start.wrapping_add(start), len: self.len - start, slice: PhantomData }
    }

    /// A pointer to the `count` elements from `index` on, for writing alone what no other task touches.
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
    fn every_task_runs_once_whoever_asks() {
        let rounds = if cfg!(miri) { 5 } else { 2000 };
        std::thread::scope(|scope| {
            for seed in 0..3 {
                scope.spawn(move || {
                    for round in 0..rounds {
                        let count = (round * 7 + seed) % 23;
                        let runs: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                        tasks(count, |index| {
                            runs[index].fetch_add(1, Ordering::Relaxed);
                            // Tasks within a task are its own.
                            tasks(2, |_| {
                                runs[index].fetch_add(1, Ordering::Relaxed);
                            });
                        });
                        assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 3));
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_is_the_caller_s_and_the_crew_goes_on() {
        let panicked = catch_unwind(|| tasks(8, |index| assert!(index != 5, "of a test")));
        let panic = panicked.expect_err("a task panicked");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"of a test"));
        let runs = AtomicUsize::new(0);
        tasks(8, |_| {
            runs.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(runs.load(Ordering::Relaxed), 8);
    }

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
