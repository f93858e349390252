//! The communicator of the processes that train together: one process, or those that `mpirun` or `srun` started.
//!
//! MPI transports all messages, with the feature `mpi`. Every rank calls the same collective operations in the same order.
//! A collective that takes longer than the time limit ends the process with an error: otherwise it would wait forever for a
//! peer that died, or for a network that is down.

use std::{
    env,
    error::Error as StdError,
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{Error, Result, exit::chain, units::duration_in};

/// Flags of programs that several processes run, for flattening into a command line.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct CommunicatorArgs {
    /// Several processes (mpirun, srun): how long one waits for the others before it takes them for lost; seconds without a
    /// unit
    #[arg(long, global = true, value_name = "DURATION", default_value = "5min", value_parser =
        duration_in(Duration::from_secs(1), Duration::from_millis(100)..=Duration::from_secs(1_000_000)))]
    pub mpi_timeout: Duration,
}

/// The rank that writes, logs and draws.
pub const ROOT: usize = 0;

/// The processes that train together.
pub struct Communicator {
    rank: usize,
    size: usize,
    /// The rank of this process among those on this host, and their number.
    local_rank: usize,
    local_size: usize,
    /// Bytes that this rank passed to collectives.
    bytes: AtomicU64,
    #[cfg(feature = "mpi")]
    mpi: Option<mpi_backend::MpiBackend>,
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Communicator({} of {})", self.rank, self.size)
    }
}

impl Default for Communicator {
    fn default() -> Self {
        Self::alone()
    }
}

/// The rank of this process and the number of processes, as launchers pass them.
const LAUNCHERS: [(&str, &str, &str); 4] = [
    ("OpenMPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MPICH", "PMI_RANK", "PMI_SIZE"),
    ("Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    (TORCHRUN, "RANK", "WORLD_SIZE"),
];

/// PyTorch's launcher, which does not start MPI.
const TORCHRUN: &str = "torchrun";

/// The launcher, this process's rank and the number of processes, where a launcher started several.
fn launched(get: impl Fn(&str) -> Option<String>) -> Option<(&'static str, usize, usize)> {
    LAUNCHERS.into_iter().find_map(|(launcher, rank, size)| {
        let number = |name: &str| get(name)?.parse::<usize>().ok();
        Some((launcher, number(rank)?, number(size)?)).filter(|&(_, _, size)| size > 1)
    })
}

static COMMUNICATOR: OnceLock<Communicator> = OnceLock::new();

/// Returns the communicator that [`init`] opened; before that, one of this process alone.
pub fn communicator() -> &'static Communicator {
    static ALONE: OnceLock<Communicator> = OnceLock::new();
    COMMUNICATOR.get().unwrap_or_else(|| ALONE.get_or_init(Communicator::alone))
}

/// Connects to the processes that this one was started with. Collectives that take longer than `timeout` end the process.
/// To be called once, before any collective; [`finalize`] disconnects.
///
/// # Errors
/// Fails if there are several, and this program was built without the feature `mpi`, or MPI does not start.
pub fn init(timeout: Duration) -> Result<&'static Communicator> {
    let opened = Communicator::init(timeout)?;
    Ok(COMMUNICATOR.get_or_init(|| opened))
}

/// Disconnects from the others. MPI treats a process that ends without this as failed, and ends the others.
pub fn finalize() {
    #[cfg(feature = "mpi")]
    if let Some(mpi) = COMMUNICATOR.get().and_then(|world| world.mpi.as_ref()) {
        mpi.finalize();
    }
}

impl Communicator {
    /// This process alone.
    pub fn alone() -> Self {
        Self {
            rank: ROOT,
            size: 1,
            local_rank: 0,
            local_size: 1,
            bytes: AtomicU64::new(0),
            #[cfg(feature = "mpi")]
            mpi: None,
        }
    }

    fn init(timeout: Duration) -> Result<Self> {
        let Some((launcher, rank, size)) = launched(|name| env::var(name).ok()) else { return Ok(Self::alone()) };
        if launcher == TORCHRUN {
            return Err(Error::Processes(format!(
                "torchrun started this program {size} times (this is number {rank}; RANK and WORLD_SIZE are set), and \
                 each would train on its own. Several processes train together by MPI: build with `--features mpi` and \
                 start `mpirun -n {size}`; several GPUs of one machine need one process and `--devices`"
            )));
        }
        #[cfg(not(feature = "mpi"))]
        {
            let _ = timeout;
            Err(Error::Processes(format!(
                "{launcher} started this program {size} times (this is number {rank}), and it was built without MPI: \
                 each would train on its own. Build it with `--features mpi`"
            )))
        }
        #[cfg(feature = "mpi")]
        {
            let (mpi, found_rank, found_size) = mpi_backend::MpiBackend::new(timeout)?;
            if found_size != size {
                return Err(Error::Processes(format!(
                    "{launcher} started {size} processes (this is number {rank}), and the MPI that this program was \
                     built with sees {found_size}: start it with that MPI's own mpirun"
                )));
            }
            let (local_rank, local_size) = mpi.local();
            Ok(Self { rank: found_rank, size, local_rank, local_size, bytes: AtomicU64::new(0), mpi: Some(mpi) })
        }
    }

    /// This process's number, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The number of processes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether this is the process that writes.
    pub fn is_root(&self) -> bool {
        self.rank == ROOT
    }

    /// Whether there are no others.
    pub fn is_alone(&self) -> bool {
        self.size == 1
    }

    /// This process's number among those on this host, from 0.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// The number of processes on this host.
    pub fn local_size(&self) -> usize {
        self.local_size
    }

    /// The bytes of tensors and messages that this rank has given into collectives.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// # Errors
    /// Fails if there are several processes, and `what` is the work of one.
    pub fn require_alone(&self, what: &str) -> Result<()> {
        if self.is_alone() {
            return Ok(());
        }
        Err(Error::Processes(format!("{what} is the work of one process, and {} were started", self.size)))
    }

    /// Returns this rank's shard of `count` items. Shards are contiguous and differ in size by at most one.
    pub fn part(&self, count: usize) -> std::ops::Range<usize> {
        self.rank * count / self.size..(self.rank + 1) * count / self.size
    }

    /// Each value becomes the sum over all ranks, the same bits on each.
    pub fn sum_floats(&self, values: &mut [f32]) {
        self.count(size_of_val(values));
        #[cfg(feature = "mpi")]
        if let Some(mpi) = &self.mpi {
            mpi.sum_floats(values);
        }
        #[cfg(not(feature = "mpi"))]
        let _ = values;
    }

    /// Sums like the function above, in double precision.
    pub fn sum(&self, values: &mut [f64]) {
        self.count(size_of_val(values));
        #[cfg(feature = "mpi")]
        if let Some(mpi) = &self.mpi {
            mpi.sum(values);
        }
        #[cfg(not(feature = "mpi"))]
        let _ = values;
    }

    /// The root's bytes, on every rank.
    pub fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        self.count(bytes.len());
        #[cfg(feature = "mpi")]
        if let Some(mpi) = &self.mpi {
            return mpi.broadcast(bytes, self.is_root());
        }
        bytes
    }

    /// Every rank's bytes, in the order of ranks, on every rank.
    pub fn gather(&self, bytes: Vec<u8>) -> Vec<Vec<u8>> {
        self.count(bytes.len());
        #[cfg(feature = "mpi")]
        if let Some(mpi) = &self.mpi {
            return mpi.gather(&bytes);
        }
        vec![bytes]
    }

    /// The root's result of `work`, which no other rank does; its failure is everybody's.
    ///
    /// # Errors
    /// The root's.
    pub fn on_root<T, E: StdError + From<Error> + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, E>,
        to_bytes: impl FnOnce(&T) -> Vec<u8>,
        from_bytes: impl FnOnce(Vec<u8>) -> Result<T, E>,
    ) -> Result<T, E> {
        if self.is_alone() {
            return work();
        }
        let mine = self.is_root().then(work);
        let message = match &mine {
            Some(Ok(value)) => [vec![1], to_bytes(value)].concat(),
            Some(Err(error)) => [vec![0], chain(error).into_bytes()].concat(),
            None => Vec::new(),
        };
        let mut message = self.broadcast(message);
        if let Some(mine) = mine {
            return mine;
        }
        if message.remove(0) == 1 {
            return from_bytes(message);
        }
        let cause = String::from_utf8_lossy(&message);
        Err(Error::Processes(format!("the first process failed: {cause}")).into())
    }

    /// Takes leave of the others after a result that all ranks have, and passes it on. After an error, which others may
    /// not know of, it is told here and all processes end.
    ///
    /// # Errors
    /// That of a process alone.
    pub fn conclude<T, E: AsRef<dyn StdError + Send + Sync>>(&self, result: Result<T, E>) -> Result<T, E> {
        match result {
            Err(error) if !self.is_alone() => {
                crate::noteln!("error: process {} of {}: {}", self.rank, self.size, chain(error.as_ref()));
                if !self.is_root() {
                    // Where all know, the root writes down how the run ended.
                    std::thread::sleep(Duration::from_secs(2));
                }
                self.abort()
            }
            result => {
                finalize();
                result
            }
        }
    }

    /// Ends all processes. Report the cause before.
    pub fn abort(&self) -> ! {
        #[cfg(feature = "mpi")]
        if let Some(mpi) = &self.mpi {
            mpi.abort();
        }
        std::process::exit(1)
    }

    fn count(&self, bytes: usize) {
        if !self.is_alone() {
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }
}

#[cfg(feature = "mpi")]
mod mpi_backend {
    use std::{
        sync::{
            Arc, Mutex, PoisonError,
            atomic::{AtomicU64, Ordering},
        },
        time::{Duration, Instant},
    };

    use mpi::{
        Threading,
        collective::SystemOperation,
        datatype::PartitionMut,
        environment::Universe,
        topology::SimpleCommunicator,
        traits::{Communicator, CommunicatorCollectives, Equivalence, Root},
    };

    use crate::{Error, Result};

    /// Values of a message: MPI counts in 32 bits, and a part that fits into a cache is summed the faster.
    const BUCKET: usize = 1 << 20;

    /// MPI, from its start to its end.
    pub struct MpiBackend {
        /// Ends MPI when it is dropped.
        universe: Mutex<Option<Universe>>,
        /// Sums on their way, kept from call to call.
        sums: Mutex<Vec<f32>>,
        watch: Arc<Watchdog>,
    }

    /// Looks for collectives that last too long.
    struct Watchdog {
        started: Instant,
        /// Milliseconds after `started` when the current collective began, plus 1; 0 outside of any.
        since: AtomicU64,
    }

    impl MpiBackend {
        /// MPI with this process's rank and the number of processes.
        pub fn new(timeout: Duration) -> Result<(Self, usize, usize)> {
            // One thread at a time: the training's.
            let failed = |cause: String| Error::Processes(cause);
            let started = mpi::initialize_with_threading(Threading::Serialized);
            let (universe, threading) = started.ok_or_else(|| failed("MPI was started before".into()))?;
            if threading < Threading::Serialized {
                let cause = "this MPI lets only a program's first thread speak; build it with thread support";
                return Err(failed(cause.into()));
            }
            let world = universe.world();
            let (rank, size) = (world.rank() as usize, world.size() as usize);
            let watch = Arc::new(Watchdog { started: Instant::now(), since: AtomicU64::new(0) });
            let looked_at = watch.clone();
            std::thread::Builder::new()
                .name("collectives".into())
                .spawn(move || looked_at.look(rank, timeout))
                .map_err(|error| failed(format!("cannot start a thread: {error}")))?;
            Ok((Self { universe: Mutex::new(Some(universe)), sums: Mutex::default(), watch }, rank, size))
        }

        pub fn finalize(&self) {
            drop(self.universe.lock().unwrap_or_else(PoisonError::into_inner).take());
        }

        /// This process's number on its host, and the number of processes there.
        pub fn local(&self) -> (usize, usize) {
            self.watched(|world| {
                let host = world.split_shared(world.rank());
                (host.rank() as usize, host.size() as usize)
            })
        }

        fn watched<T>(&self, work: impl FnOnce(&SimpleCommunicator) -> T) -> T {
            let began = self.watch.started.elapsed().as_millis() as u64 + 1;
            self.watch.since.store(began, Ordering::Relaxed);
            let result = work(&SimpleCommunicator::world());
            self.watch.since.store(0, Ordering::Relaxed);
            result
        }

        pub fn sum_floats(&self, values: &mut [f32]) {
            self.sum_by(values, &mut self.sums.lock().unwrap_or_else(PoisonError::into_inner));
        }

        pub fn sum(&self, values: &mut [f64]) {
            self.sum_by(values, &mut Vec::new());
        }

        fn sum_by<T: Equivalence + Copy + Default>(&self, values: &mut [T], sums: &mut Vec<T>) {
            self.watched(|world| {
                sums.resize(values.len().min(BUCKET), T::default());
                for bucket in values.chunks_mut(BUCKET) {
                    let sums = &mut sums[..bucket.len()];
                    world.all_reduce_into(&*bucket, sums, SystemOperation::sum());
                    bucket.copy_from_slice(sums);
                }
            });
        }

        pub fn broadcast(&self, mut bytes: Vec<u8>, is_root: bool) -> Vec<u8> {
            self.watched(|world| {
                let root = world.process_at_rank(super::ROOT as i32);
                let mut len = bytes.len() as u64;
                root.broadcast_into(&mut len);
                if !is_root {
                    bytes = vec![0; len as usize];
                }
                for part in bytes.chunks_mut(4 * BUCKET) {
                    root.broadcast_into(part);
                }
                bytes
            })
        }

        pub fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
            self.watched(|world| {
                let mut lens = vec![0u64; world.size() as usize];
                world.all_gather_into(&(bytes.len() as u64), &mut lens[..]);
                // In rounds, since MPI counts in 32 bits.
                let mut all: Vec<Vec<u8>> = lens.iter().map(|&len| Vec::with_capacity(len as usize)).collect();
                let longest = lens.iter().max().copied().unwrap_or(0) as usize;
                let step = BUCKET;
                for start in (0..longest).step_by(step) {
                    let mine = &bytes[start.min(bytes.len())..(start + step).min(bytes.len())];
                    let counts: Vec<i32> =
                        lens.iter().map(|&len| (len as usize).saturating_sub(start).min(step) as i32).collect();
                    let starts: Vec<i32> = counts
                        .iter()
                        .scan(0, |at, &count| {
                            let start = *at;
                            *at += count;
                            Some(start)
                        })
                        .collect();
                    let mut received = vec![0u8; counts.iter().sum::<i32>() as usize];
                    let mut partition = PartitionMut::new(&mut received[..], &counts[..], &starts[..]);
                    world.all_gather_varcount_into(mine, &mut partition);
                    for ((all, &start), &count) in all.iter_mut().zip(&starts).zip(&counts) {
                        all.extend_from_slice(&received[start as usize..(start + count) as usize]);
                    }
                }
                all
            })
        }

        pub fn abort(&self) -> ! {
            abort()
        }
    }

    impl Watchdog {
        fn look(&self, rank: usize, timeout: Duration) {
            loop {
                std::thread::sleep(Duration::from_millis(200).min(timeout));
                let since = self.since.load(Ordering::Relaxed);
                let now = self.started.elapsed().as_millis() as u64 + 1;
                if since != 0 && now.saturating_sub(since) > timeout.as_millis() as u64 {
                    crate::noteln!(
                        "error: process {rank} has waited for the others for {} s: one of them hangs, or the network \
                         between them is cut. Everything ends here; `train resume` goes on from the last checkpoint \
                         (--mpi-timeout waits longer)",
                        timeout.as_secs_f64()
                    );
                    abort();
                }
            }
        }
    }

    /// Ends all processes, and this one whatever becomes of the others.
    fn abort() -> ! {
        static ONCE: Mutex<bool> = Mutex::new(false);
        let mut aborted = ONCE.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut *aborted, true) {
            // It speaks to the launcher, which may be out of reach.
            let spoken = std::thread::spawn(|| SimpleCommunicator::world().abort(1));
            let until = Instant::now() + Duration::from_secs(3);
            while !spoken.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        std::process::exit(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_are_recognised() {
        let from = |pairs: &'static [(&str, &str)]| {
            launched(move |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_string()))
        };
        assert_eq!(from(&[]), None);
        assert_eq!(from(&[("OMPI_COMM_WORLD_RANK", "3"), ("OMPI_COMM_WORLD_SIZE", "8")]), Some(("OpenMPI", 3, 8)));
        assert_eq!(from(&[("PMI_RANK", "0"), ("PMI_SIZE", "2")]), Some(("MPICH", 0, 2)));
        assert_eq!(from(&[("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "4")]), Some(("Slurm", 1, 4)));
        assert_eq!(from(&[("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1")]), None, "one alone");
        assert_eq!(from(&[("RANK", "1"), ("WORLD_SIZE", "4")]), Some(("torchrun", 1, 4)));
        assert_eq!(from(&[("PMI_RANK", "x"), ("PMI_SIZE", "2")]), None);
    }

    #[test]
    fn parts_follow_each_other() {
        for size in 1..7 {
            for count in 0..40 {
                let parts: Vec<_> =
                    (0..size).map(|rank| Communicator { rank, size, ..Communicator::alone() }.part(count)).collect();
                assert_eq!(parts.iter().cloned().flatten().collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
                let (least, most) = (parts.iter().map(|p| p.len()).min(), parts.iter().map(|p| p.len()).max());
                assert!(most <= least.map(|least| least + 1));
            }
        }
    }

    #[test]
    fn one_alone_has_its_own_results() {
        let world = Communicator::alone();
        let mut values = [1.5, 2.0];
        world.sum(&mut values);
        assert_eq!(values, [1.5, 2.0]);
        assert_eq!(world.gather(vec![1, 2]), [[1, 2]]);
        assert_eq!(world.broadcast(vec![3]), [3]);
        assert_eq!(world.bytes(), 0);
        assert!(world.require_alone("a study").is_ok());
    }
}
