//! Meters of an epoch's time: waiting, reading, decoding, transforming, collating.

use std::{
    fmt,
    ops::Add,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use serde::Serialize;

/// A stage of the processing of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Fetching the encoded bytes from the source.
    Read,
    /// Decoding to RGB8.
    Decode,
    /// Transforms, to the batch's image size.
    Transform,
    /// Conversion from height × width × channel to the batch's channel × height × width.
    Collate,
}

/// Divides one sample's time among the stages: each [`lap`](Stopwatch::lap) charges the time since the last one.
#[derive(Debug)]
pub struct Stopwatch {
    last: Instant,
    nanos: [u64; 4],
}

impl Stopwatch {
    /// A running stopwatch.
    pub fn start() -> Self {
        Self { last: Instant::now(), nanos: [0; 4] }
    }

    /// Charges the time since the start or the last lap to `stage`.
    pub fn lap(&mut self, stage: Stage) {
        let now = Instant::now();
        self.nanos[stage as usize] += nanos(now - self.last);
        self.last = now;
    }
}

/// The running meters of one epoch. All workers add to them; reading them does not block.
#[derive(Debug, Default)]
pub struct Meters {
    stages: [AtomicU64; 4],
    waiting: AtomicU64,
    idle: AtomicU64,
    samples: AtomicU64,
    bytes: AtomicU64,
    bad: AtomicU64,
    damaged: AtomicU64,
}

impl Meters {
    /// Returns the current readings.
    pub fn read(&self) -> MeterReading {
        let [reading, decoding, transforming, collating] =
            std::array::from_fn(|stage| Duration::from_nanos(self.stages[stage].load(Relaxed)));
        MeterReading {
            waiting: Duration::from_nanos(self.waiting.load(Relaxed)),
            reading,
            decoding,
            transforming,
            collating,
            idle: Duration::from_nanos(self.idle.load(Relaxed)),
            samples: self.samples.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            bad: self.bad.load(Relaxed),
            damaged: self.damaged.load(Relaxed),
        }
    }

    pub(crate) fn add(&self, watch: &Stopwatch) {
        for (total, &spent) in self.stages.iter().zip(&watch.nanos) {
            total.fetch_add(spent, Relaxed);
        }
    }

    pub(crate) fn add_sample(&self, bytes: usize) {
        self.samples.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn add_damaged(&self) {
        self.damaged.fetch_add(1, Relaxed);
    }

    pub(crate) fn add_bad(&self) {
        self.bad.fetch_add(1, Relaxed);
    }

    pub(crate) fn add_waiting(&self, time: Duration) {
        self.waiting.fetch_add(nanos(time), Relaxed);
    }

    pub(crate) fn add_idle(&self, time: Duration) {
        self.idle.fetch_add(nanos(time), Relaxed);
    }
}

/// The readings of an epoch's meters.
///
/// `waiting` is the consumer's time: a run that waits much needs more workers. The other stages are summed over the
/// workers, so two workers may add two seconds per second. Workers that are mostly `idle` wait for the consumer, so
/// there are more than enough.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MeterReading {
    /// The consumer's wait for the next batch. Without workers it includes the other stages' time.
    pub waiting: Duration,
    /// Fetching encoded bytes.
    pub reading: Duration,
    /// Decoding to RGB8.
    pub decoding: Duration,
    /// Crops, flips, color.
    pub transforming: Duration,
    /// Laying pixels out as a batch.
    pub collating: Duration,
    /// Workers waiting for memory.
    pub idle: Duration,
    /// Samples processed.
    pub samples: u64,
    /// Their encoded bytes.
    pub bytes: u64,
    /// Samples that could not be read or decoded.
    pub bad: u64,
    /// Samples that are damaged and were decoded nevertheless.
    pub damaged: u64,
}

impl MeterReading {
    /// The workers' busy time: reading, decoding, transforming and collating.
    pub fn busy(&self) -> Duration {
        self.reading + self.decoding + self.transforming + self.collating
    }

    /// Returns a stage's fraction of the workers' [`busy`](MeterReading::busy) time, 0 to 1.
    pub fn share(&self, stage: Stage) -> f64 {
        let part = match stage {
            Stage::Read => self.reading,
            Stage::Decode => self.decoding,
            Stage::Transform => self.transforming,
            Stage::Collate => self.collating,
        };
        if self.busy().is_zero() { 0.0 } else { part.as_secs_f64() / self.busy().as_secs_f64() }
    }
}

impl Add for MeterReading {
    type Output = Self;

    /// The sum of two epochs' readings.
    fn add(self, other: Self) -> Self {
        Self {
            waiting: self.waiting + other.waiting,
            reading: self.reading + other.reading,
            decoding: self.decoding + other.decoding,
            transforming: self.transforming + other.transforming,
            collating: self.collating + other.collating,
            idle: self.idle + other.idle,
            samples: self.samples + other.samples,
            bytes: self.bytes + other.bytes,
            bad: self.bad + other.bad,
            damaged: self.damaged + other.damaged,
        }
    }
}

impl fmt::Display for MeterReading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |stage| 100.0 * self.share(stage);
        write!(
            f,
            "waited {:.2} s; workers: read {:.1} %, decode {:.1} %, transform {:.1} %, collate {:.1} % of {:.2} s; idle {:.2} s",
            self.waiting.as_secs_f64(),
            percent(Stage::Read),
            percent(Stage::Decode),
            percent(Stage::Transform),
            percent(Stage::Collate),
            self.busy().as_secs_f64(),
            self.idle.as_secs_f64(),
        )?;
        if self.bad > 0 {
            write!(f, "; {} bad samples", self.bad)?;
        }
        if self.damaged > 0 {
            write!(f, "; {} damaged samples", self.damaged)?;
        }
        Ok(())
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn laps_go_to_their_stage_and_shares_sum_to_one() {
        let meters = Meters::default();
        let mut watch = Stopwatch::start();
        std::thread::sleep(Duration::from_millis(2));
        watch.lap(Stage::Decode);
        watch.lap(Stage::Transform);
        meters.add(&watch);
        meters.add_sample(10);

        let reading = meters.read();
        assert!(reading.decoding >= Duration::from_millis(2));
        assert_eq!((reading.reading, (reading + reading).decoding), (Duration::ZERO, 2 * reading.decoding));
        assert_eq!((reading.samples, reading.bytes, reading.bad), (1, 10, 0));
        let stages = [Stage::Read, Stage::Decode, Stage::Transform, Stage::Collate];
        assert!((stages.map(|stage| reading.share(stage)).iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }
}
