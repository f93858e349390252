//! A thread pool for tasks of less than a millisecond.
//!
//! Waking a thread of a sleeping pool costs a good part of one operation's time. So the calling thread works on the job
//! as well, workers spin for [`SPIN`] before they sleep, and the caller does not wait for a worker that has not woken up.
//!
//! One job runs at a time. Its leader, the thread that holds [`ThreadPool::leader`], publishes the job and opens it under
//! a fresh number; workers join while it is open and take task indices from a shared counter; the leader closes it when
//! the indices are used up, and returns after every worker that joined has left.

use std::{
    any::Any,
    cell::{Cell, UnsafeCell},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, OnceLock, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::Thread,
    time::{Duration, Instant},
};

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};

/// Returns the number of threads that [`tasks`] uses, that of rayon's pool: `RAYON_NUM_THREADS` or one per core.
pub fn threads() -> usize {
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(rayon::current_num_threads)
}

/// Runs `work` once for each index of `0..count`, on all threads. The order, and the thread that runs a task, vary: a task
/// must write only what no other task writes.
///
/// Tasks started inside a task run on its thread. If another thread's job holds the pool, rayon's pool runs these tasks.
///
/// # Panics
/// If a task panics; the other tasks still run.
pub fn tasks(count: usize, work: impl Fn(usize) + Sync + Send) {
    if count <= 1 || threads() == 1 || INSIDE.get() {
        return (0..count).for_each(work);
    }
    let pool = POOL.get_or_init(|| ThreadPool::new(threads() - 1));
    let panic = match pool.leader.try_lock() {
        Ok(_leader) => pool.run(count, &work),
        // The lock protects no data that a panic could leave inconsistent.
        Err(TryLockError::Poisoned(leader)) => {
            let _leader = leader.into_inner();
            pool.run(count, &work)
        }
        // Another thread leads a job.
        Err(TryLockError::WouldBlock) => {
            (0..count).into_par_iter().with_max_len(1).for_each(work);
            None
        }
    };
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}

static POOL: OnceLock<ThreadPool> = OnceLock::new();

thread_local! {
    /// Whether this thread runs a task, so that nested tasks stay on it.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// How long a worker spins without work before it sleeps.
const SPIN: Duration = Duration::from_micros(100);

/// Worker threads, and the lock of the thread whose job they run.
struct ThreadPool {
    leader: Mutex<()>,
    state: Arc<State>,
    workers: Vec<Thread>,
}

type Panic = Box<dyn Any + Send>;

#[derive(Default)]
struct State {
    /// The number of the job that workers may join, 0 for none.
    open: AtomicU64,
    /// The number of workers that have joined a job, or are finding out that it is closed.
    joined: AtomicUsize,
    /// The job. The leader writes it while no job is open and `joined` is 0.
    job: UnsafeCell<Option<Job>>,
    /// The index of the next task.
    next: AtomicUsize,
    /// The payload of the first panic.
    panic: Mutex<Option<Panic>>,
    /// Whether each worker sleeps, or is about to.
    asleep: Vec<AtomicBool>,
}

// SAFETY: `job` holds a pointer to a `Sync` closure, which `run` keeps alive for as long as a worker may read it.
unsafe impl Send for State {}
// SAFETY: `job` is written by the leader alone, while `open` is 0 and `joined` is 0, and read by workers that counted
// themselves in `joined` and then saw the job open, so that no write happens during a read.
unsafe impl Sync for State {}

#[derive(Clone, Copy)]
struct Job {
    work: *const (dyn Fn(usize) + Sync),
    count: usize,
}

impl State {
    /// Runs tasks of `job` until no index is left.
    fn work(&self, job: Job) {
        // SAFETY: the leader returns, which ends the closure's lifetime, only when `joined` is 0.
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

    /// The loop of worker `number`.
    fn work_forever(&self, number: usize) {
        let mut done = 0;
        let mut since = Instant::now();
        loop {
            let open = self.open.load(Ordering::SeqCst);
            if open != 0 && open != done {
                self.joined.fetch_add(1, Ordering::SeqCst);
                // The leader waits for workers that joined while the job was open.
                if self.open.load(Ordering::SeqCst) == open {
                    // SAFETY: the leader writes `job` again only when `joined` is 0, and this worker is counted in it.
                    let job = unsafe { *self.job.get() };
                    if let Some(job) = job {
                        self.work(job);
                    }
                }
                self.joined.fetch_sub(1, Ordering::SeqCst);
                done = open;
                since = Instant::now();
            } else if since.elapsed() < SPIN {
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

impl ThreadPool {
    fn new(workers: usize) -> Self {
        let asleep = (0..workers).map(|_| AtomicBool::new(false)).collect();
        let state = Arc::new(State { asleep, ..State::default() });
        let start = |number: usize| {
            let state = state.clone();
            let worker = std::thread::Builder::new().name(format!("kernels-{number}"));
            // If a thread cannot start, the others do its work.
            worker.spawn(move || state.work_forever(number)).ok().map(|handle| handle.thread().clone())
        };
        let workers = (0..workers).filter_map(start).collect();
        Self { leader: Mutex::new(()), state, workers }
    }

    /// Runs a job; the caller must hold the leader's lock. Returns the payload of the first panic.
    fn run(&self, count: usize, work: &(dyn Fn(usize) + Sync)) -> Option<Panic> {
        let state = &*self.state;
        // SAFETY: only the lifetime changes, and this function returns only when no worker uses the closure any more.
        let work = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(work) };
        let job = Job { work, count };
        // SAFETY: `open` is 0 and `joined` was 0 when the last job ended, so no worker reads `job`.
        unsafe { *state.job.get() = Some(job) };
        state.next.store(0, Ordering::Relaxed);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        state.open.store(number, Ordering::SeqCst);
        for (worker, asleep) in self.workers.iter().zip(&state.asleep) {
            if asleep.load(Ordering::SeqCst) {
                worker.unpark();
            }
        }
        state.work(job);
        state.open.store(0, Ordering::SeqCst);
        let since = Instant::now();
        while state.joined.load(Ordering::SeqCst) != 0 {
            // With more threads than cores, the last worker may need this thread's core.
            if since.elapsed() < SPIN { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        state.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The number of the next job.
static NUMBER: AtomicU64 = AtomicU64::new(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concurrent_callers_run_every_task_once() {
        let rounds = 2000;
        std::thread::scope(|scope| {
            for seed in 0..3 {
                scope.spawn(move || {
                    for round in 0..rounds {
                        let count = (round * 7 + seed) % 23;
                        let runs: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                        tasks(count, |index| {
                            runs[index].fetch_add(1, Ordering::Relaxed);
                            // Nested tasks run on the same thread.
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
    fn a_panic_reaches_the_caller_and_the_pool_still_works() {
        let panicked = catch_unwind(|| tasks(8, |index| assert!(index != 5, "of a test")));
        let panic = panicked.expect_err("a task panicked");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"of a test"));
        let runs = AtomicUsize::new(0);
        tasks(8, |_| {
            runs.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(runs.load(Ordering::Relaxed), 8);
    }
}
