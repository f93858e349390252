//! One epoch: workers fill the slots of batches in order, the consumer receives finished batches in order.

use std::{
    any::Any,
    collections::VecDeque,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Instant,
};

use burn::data::{
    dataloader::{DataLoaderIterator, Progress},
    dataset::DatasetError,
};
use bytes::BytesMut;
use image::RgbImage;

use super::{BadSamples, Context, Cursor, SampleContext, lock};
use crate::{
    Decoded, Error, ImageBatch, Result,
    meters::{Meters, Stage, Stopwatch},
    sampler::{Draw, EpochOrder, hash},
};

/// The number of substitutes tried for a bad sample before the epoch fails.
const SUBSTITUTES: u64 = 16;

/// A worker's read buffer that grew beyond this for one huge sample is freed.
const KEPT_BUFFER: usize = 16 << 20;

/// The batches of one epoch, in order. Dropping it stops the workers.
pub struct Batches {
    epoch: Arc<Epoch>,
    workers: Vec<JoinHandle<()>>,
    /// The consumer's worker, for a loader without workers.
    buffer: Vec<u8>,
    progress: Progress,
    delivered: bool,
    finished: bool,
}

/// The state shared by the workers and the consumer of an epoch.
struct Epoch {
    context: Arc<Context>,
    number: u64,
    /// The positions of the epoch that this loader loads.
    range: Range<usize>,
    meters: Arc<Meters>,
    state: Mutex<State>,
    /// Signalled when a worker may find work or should stop.
    room: Condvar,
    /// Signalled when the first batch in the queue may be finished.
    ready: Condvar,
}

#[derive(Default)]
struct State {
    /// Batches that are begun and not yet consumed, in order.
    queue: VecDeque<Pending>,
    /// The number of the next batch to begin.
    next: usize,
    /// Bytes of pixels in `queue`.
    bytes: usize,
    /// No more samples are to be processed.
    stopped: bool,
    /// A worker died outside of a sample's processing.
    failed: Option<Error>,
}

/// A batch under construction.
struct Pending {
    number: usize,
    /// Slots not yet assigned, the next one last.
    free: Vec<Slot>,
    /// Slots that are filled, or whose sample failed.
    done: Vec<(usize, Outcome)>,
    size: usize,
    finished: Option<Result<ImageBatch>>,
}

/// The slot of one image in a batch.
struct Slot {
    /// The index among the images that this loader loads.
    index: usize,
    /// The index among all images of the batch.
    offset: usize,
    pixels: BytesMut,
}

enum Outcome {
    Filled { index: usize, label: Option<u32>, pixels: BytesMut },
    Skipped,
    Failed(Error),
}

/// A slot to fill, and its sample's position in the epoch.
struct Job {
    batch: usize,
    position: usize,
    slot: Slot,
}

impl Batches {
    pub(super) fn new(context: Arc<Context>, range: Range<usize>, start: Cursor, meters: Arc<Meters>) -> Self {
        let settings = &context.settings;
        let workers = settings.workers;
        let done = (start.batch * settings.batch_size).min(range.len());
        let progress = Progress::new(done, range.len(), Some("items".into()));
        let state = Mutex::new(State { next: start.batch, ..State::default() });
        let epoch = Arc::new(Epoch {
            context,
            number: start.epoch,
            range,
            meters,
            state,
            room: Condvar::new(),
            ready: Condvar::new(),
        });
        let mut batches =
            Self { epoch, workers: Vec::new(), buffer: Vec::new(), progress, delivered: false, finished: false };
        for worker in 0..workers {
            let epoch = batches.epoch.clone();
            match std::thread::Builder::new().name(format!("loader-{worker}")).spawn(move || epoch.work()) {
                Ok(handle) => batches.workers.push(handle),
                // The other workers, or the consumer, do its work.
                Err(error) => log::warn!("loader: cannot start worker {worker} of {workers}: {error}"),
            }
        }
        batches
    }

    /// Returns the number of samples processed so far, and the number in the epoch.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Returns the next finished batch; `None` after the last.
    fn take(&mut self) -> Option<Result<ImageBatch>> {
        if self.workers.is_empty() {
            while !self.epoch.front_is_finished() {
                let job = self.epoch.claim_now()?;
                self.epoch.run(job, &mut self.buffer);
            }
        }
        self.epoch.take()
    }
}

impl Iterator for Batches {
    type Item = Result<ImageBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let began = Instant::now();
        let next = loop {
            match self.take() {
                Some(Ok(batch)) => {
                    let batch_size = self.epoch.context.settings.batch_size;
                    self.progress.items_processed = ((batch.number + 1) * batch_size).min(self.progress.items_total);
                    // All its samples were skipped: continue with the next batch. A part of a batch must be yielded to
                    // keep the ranks in step.
                    if batch.is_empty() && self.epoch.context.settings.part.1 == 1 {
                        continue;
                    }
                    break Some(Ok(batch));
                }
                None if !self.delivered && self.epoch.meters.read().bad > 0 => {
                    break Some(Err(self.epoch.nothing_left()));
                }
                other => break other,
            }
        };
        self.epoch.meters.add_waiting(began.elapsed());
        match next {
            Some(Ok(_)) => self.delivered = true,
            _ => {
                self.finished = true;
                self.stop();
            }
        }
        next
    }
}

impl Batches {
    fn stop(&mut self) {
        self.epoch.stop();
        for worker in self.workers.drain(..) {
            // A panic was caught inside and is reported as an error.
            let _ = worker.join();
        }
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.stop();
    }
}

/// [`Batches`] with Burn's error type.
pub(super) struct BurnBatches(pub(super) Batches);

impl Iterator for BurnBatches {
    type Item = Result<ImageBatch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.0.next()?.map_err(DatasetError::new))
    }
}

impl DataLoaderIterator<ImageBatch> for BurnBatches {
    fn progress(&self) -> Progress {
        self.0.progress()
    }
}

impl Epoch {
    /// The worker loop.
    fn work(&self) {
        let died = catch_unwind(AssertUnwindSafe(|| {
            let mut buffer = Vec::new();
            while let Some(job) = self.claim() {
                self.run(job, &mut buffer);
            }
        }));
        if let Err(payload) = died {
            let mut state = self.lock();
            state.stopped = true;
            state.failed = Some(Error::WorkerPanicked { what: "the loader".into(), message: message(&*payload) });
            self.room.notify_all();
            self.ready.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Waits for the next slot to fill; `None` when the epoch needs no more work.
    fn claim(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = self.next_job(&mut state) {
                return Some(job);
            }
            if state.stopped || self.is_exhausted(&state) {
                return None;
            }
            let began = Instant::now();
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
            self.meters.add_idle(began.elapsed());
        }
    }

    /// Returns the next slot to fill, if there is one now.
    fn claim_now(&self) -> Option<Job> {
        self.next_job(&mut self.lock())
    }

    fn is_exhausted(&self, state: &State) -> bool {
        state.next * self.context.settings.batch_size >= self.range.len()
    }

    fn next_job(&self, state: &mut State) -> Option<Job> {
        if state.stopped {
            return None;
        }
        // Batches are begun in order, so only the last can have free slots. A part may be empty.
        while state.queue.back().is_none_or(|batch| batch.free.is_empty()) {
            if self.is_exhausted(state) {
                return None;
            }
            let batch = self.begin(state.next);
            let bytes = batch.size * self.image_bytes();
            if state.bytes > 0 && state.bytes + bytes > self.context.settings.memory_bytes {
                return None;
            }
            state.next += 1;
            state.bytes += bytes;
            state.queue.push_back(batch);
            // Other workers can help with it, or it is complete.
            self.room.notify_all();
            self.ready.notify_one();
        }
        let batch = state.queue.back_mut()?;
        let slot = batch.free.pop()?;
        let position = self.range.start + batch.number * self.context.settings.batch_size + slot.offset;
        Some(Job { batch: batch.number, position, slot })
    }

    /// Bytes of one image's pixels.
    fn image_bytes(&self) -> usize {
        let [height, width] = self.context.settings.preprocess.output_size();
        3 * height * width
    }

    /// Allocates a batch: one buffer, split into slots that are filled independently and joined again without copying.
    fn begin(&self, number: usize) -> Pending {
        let own = self.own(number);
        let offsets = own.clone().chain(self.partner(number));
        let size = offsets.clone().count();
        let mut pixels = BytesMut::zeroed(size * self.image_bytes());
        let mut free: Vec<_> = offsets
            .enumerate()
            .map(|(index, offset)| Slot { index, offset, pixels: pixels.split_to(self.image_bytes()) })
            .collect();
        free.reverse();
        let finished = (size == 0).then(|| self.finish(number, Vec::new()));
        Pending { number, free, done: Vec::with_capacity(size), size, finished }
    }

    /// The number of images of a batch, over all parts.
    fn whole(&self, number: usize) -> usize {
        let batch_size = self.context.settings.batch_size;
        batch_size.min(self.range.len() - number * batch_size)
    }

    /// The range of images of this loader's part.
    fn own(&self, number: usize) -> Range<usize> {
        let (rank, ranks) = self.context.settings.part;
        let whole = self.whole(number);
        rank * whole / ranks..(rank + 1) * whole / ranks
    }

    /// The image of another part that the first image of this part is mixed with.
    fn partner(&self, number: usize) -> Option<usize> {
        let (whole, own) = (self.whole(number), self.own(number));
        let mixes = !self.context.settings.mix.choices().is_empty();
        (mixes && !own.is_empty() && own.len() < whole).then(|| (own.start + whole - 1) % whole)
    }

    /// Fills a slot, and finishes the batch if it was the last.
    fn run(&self, job: Job, buffer: &mut Vec<u8>) {
        let Job { batch, position, slot } = job;
        let index = slot.index;
        let outcome = self.fill(position, slot.pixels, buffer);
        if buffer.capacity() > KEPT_BUFFER {
            *buffer = Vec::new();
        }

        let mut state = self.lock();
        if matches!(outcome, Outcome::Failed(_)) {
            // The epoch ends with this batch.
            state.next = usize::MAX / self.context.settings.batch_size;
            self.room.notify_all();
        }
        let Some(pending) = state.queue.iter_mut().find(|pending| pending.number == batch) else { return };
        pending.done.push((index, outcome));
        if pending.done.len() < pending.size {
            return;
        }
        let done = std::mem::take(&mut pending.done);
        drop(state);

        let finished = catch_unwind(AssertUnwindSafe(|| self.finish(batch, done))).unwrap_or_else(|payload| {
            Err(Error::WorkerPanicked { what: format!("batch {batch}"), message: message(&*payload) })
        });
        let mut state = self.lock();
        if let Some(pending) = state.queue.iter_mut().find(|pending| pending.number == batch) {
            pending.finished = Some(finished);
        }
        self.ready.notify_one();
    }

    /// Reads, decodes and transforms the sample at `position`, or its substitute, into `pixels`.
    fn fill(&self, position: usize, mut pixels: BytesMut, buffer: &mut Vec<u8>) -> Outcome {
        let settings = &self.context.settings;
        let order = self.context.sampler.epoch(self.number);
        let mut draw = order.at(position);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let source = &settings.source;
            let failure = match catch_unwind(AssertUnwindSafe(|| self.process(draw, &mut pixels, buffer))) {
                Ok(Ok(())) => {
                    let label = source.label(draw.index);
                    return Outcome::Filled { index: draw.index, label, pixels };
                }
                Ok(Err(error)) => error,
                // A bug, not a problem of the data: no policy hides it.
                Err(payload) => {
                    let what = source.location(draw.index).to_string();
                    return Outcome::Failed(Error::WorkerPanicked { what, message: message(&*payload) });
                }
            };
            self.meters.add_bad();
            self.context.incidents.record(source, draw.index, &failure);
            match settings.bad_samples {
                BadSamples::Skip => return Outcome::Skipped,
                BadSamples::Substitute if attempt <= SUBSTITUTES => {
                    draw = self.substitute(&order, position, attempt);
                }
                _ => return Outcome::Failed(failure),
            }
        }
    }

    /// Returns another sample of this shard, drawn from the seed.
    fn substitute(&self, order: &EpochOrder<'_>, position: usize, attempt: u64) -> Draw {
        let drawn = hash(&[self.context.settings.sampler.seed, self.number, position as u64, attempt]);
        order.at((drawn % self.context.sampler.len() as u64) as usize)
    }

    fn process(&self, draw: Draw, pixels: &mut [u8], buffer: &mut Vec<u8>) -> Result<()> {
        let settings = &self.context.settings;
        let mut watch = Stopwatch::start();
        settings.source.read(draw.index, buffer)?;
        watch.lap(Stage::Read);
        let context = SampleContext {
            seed: match draw.repeat {
                0 => settings.sampler.seed,
                repeat => hash(&[settings.sampler.seed, repeat as u64]),
            },
            epoch: self.number,
            index: draw.index as u64,
        };
        let failed = |cause| Error::Decode { location: settings.source.location(draw.index), cause };
        let Decoded { image, damage, .. } = settings.preprocess.process(buffer, context, &mut watch).map_err(failed)?;
        match damage {
            Some(damage) if settings.bad_samples == BadSamples::Strict => return Err(failed(damage.into())),
            Some(damage) => {
                self.meters.add_damaged();
                self.context.damaged.record_damage(&*settings.source, draw.index, &damage);
            }
            None => {}
        }
        watch.lap(Stage::Transform);
        let [height, width] = settings.preprocess.output_size();
        let size = [image.height() as usize, image.width() as usize];
        assert_eq!(size, [height, width], "the preprocessing returned another size (height, width) than it promised");
        channels_first(&image, pixels);
        watch.lap(Stage::Collate);
        self.meters.add(&watch);
        self.meters.add_sample(buffer.len());
        Ok(())
    }

    /// Joins the slots to a batch.
    fn finish(&self, number: usize, mut done: Vec<(usize, Outcome)>) -> Result<ImageBatch> {
        let settings = &self.context.settings;
        let mut watch = Stopwatch::start();
        done.sort_unstable_by_key(|&(slot, _)| slot);
        let (mut images, mut indices, mut labels) = (BytesMut::new(), Vec::new(), Vec::new());
        let own = self.own(number).len();
        let mut has_partner = false;
        for (slot, outcome) in done {
            has_partner |= slot == own && matches!(outcome, Outcome::Filled { .. });
            match outcome {
                Outcome::Filled { index, label, pixels } => {
                    indices.push(index);
                    labels.push(label);
                    // Adjacent slots are joined in O(1); after a skipped sample the rest is moved up.
                    images.unsplit(pixels);
                }
                Outcome::Skipped => {}
                Outcome::Failed(error) => return Err(error),
            }
        }
        let [height, width] = settings.preprocess.output_size();
        let shape = [indices.len(), 3, height, width];
        let labels = labels.into_iter().collect();
        let images = Vec::from(images);
        // Each rank and slice mixes differently.
        let seed = hash(&[settings.sampler.seed, settings.sampler.rank as u64, self.range.start as u64]);
        let mut mix = settings.mix.draw((seed, self.number, number as u64), indices.len(), width as u32, height as u32);
        if let Some(mix) = mix.as_mut().filter(|_| own < self.whole(number)) {
            // Each image is mixed with the previous one, the first with the appended partner.
            let count = indices.len() - usize::from(has_partner);
            let first = if has_partner { count } else { 0 };
            mix.permutation = (0..count).map(|i| i.checked_sub(1).unwrap_or(first) as u32).collect();
        }
        watch.lap(Stage::Collate);
        self.meters.add(&watch);
        Ok(ImageBatch { images, shape, labels, mix, indices, epoch: self.number, number })
    }

    fn front_is_finished(&self) -> bool {
        self.lock().queue.front().is_some_and(|batch| batch.finished.is_some())
    }

    /// Waits for the first batch of the queue; `None` if none is left.
    fn take(&self) -> Option<Result<ImageBatch>> {
        let mut state = self.lock();
        loop {
            if let Some(error) = state.failed.take() {
                return Some(Err(error));
            }
            if let Some(batch) = state.queue.front_mut()
                && let Some(finished) = batch.finished.take()
            {
                state.bytes -= batch.size * self.image_bytes();
                state.queue.pop_front();
                self.room.notify_all();
                return Some(finished);
            }
            if state.queue.is_empty() && (state.stopped || self.is_exhausted(&state)) {
                return None;
            }
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn stop(&self) {
        self.lock().stopped = true;
        self.room.notify_all();
    }

    fn nothing_left(&self) -> Error {
        let bad = self.context.incidents.list();
        let cause = bad.first().map_or_else(String::new, |sample| format!("{}: {}", sample.location, sample.cause));
        Error::NoGoodSample { bad: self.meters.read().bad, cause }
    }
}

/// Writes `[height, width, 3]` as `[3, height, width]`.
fn channels_first(image: &RgbImage, pixels: &mut [u8]) {
    let plane = pixels.len() / 3;
    let (red, rest) = pixels.split_at_mut(plane);
    let (green, blue) = rest.split_at_mut(plane);
    let planes = red.iter_mut().zip(green).zip(blue);
    for (((red, green), blue), pixel) in planes.zip(image.as_raw().as_chunks::<3>().0) {
        [*red, *green, *blue] = *pixel;
    }
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message").to_owned()
}
