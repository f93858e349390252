//! The engine thread, which groups queued images into batches.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use image::RgbImage;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::{Engine, EngineError, Explanation, Options, error::ApiError, metrics::Metrics};

/// The longest wait for a batch: an instant that far ahead can always be represented.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

type Reply<T> = oneshot::Sender<Result<T, ApiError>>;

/// A unit of work for the engine. It holds its permit until it is answered.
enum Work {
    Classify { image: RgbImage, permit: OwnedSemaphorePermit, reply: Reply<Vec<f64>> },
    Explain { image: RgbImage, class: Option<usize>, permit: OwnedSemaphorePermit, reply: Reply<Explanation> },
}

impl Work {
    /// Whether the client no longer waits for the answer.
    fn is_forgotten(&self) -> bool {
        match self {
            Work::Classify { reply, .. } => reply.is_closed(),
            Work::Explain { reply, .. } => reply.is_closed(),
        }
    }
}

/// A handle that sends work to the engine thread.
#[derive(Debug, Clone)]
pub struct Queue {
    sender: SyncSender<Work>,
    ready: Arc<AtomicBool>,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Work::Classify { .. } => "Classify",
            Work::Explain { .. } => "Explain",
        })
    }
}

impl Queue {
    /// Whether the engine has run once successfully.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Returns the class probabilities of an image.
    pub async fn classify(&self, image: RgbImage, permit: OwnedSemaphorePermit) -> Result<Vec<f64>, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.send(Work::Classify { image, permit, reply })?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Returns the explanation of an image.
    pub async fn explain(
        &self,
        image: RgbImage,
        class: Option<usize>,
        permit: OwnedSemaphorePermit,
    ) -> Result<Explanation, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.send(Work::Explain { image, class, permit, reply })?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Enqueues work. The queue's capacity equals the number of permits, so it is never full.
    fn send(&self, work: Work) -> Result<(), ApiError> {
        self.sender.try_send(work).map_err(|_| ApiError::busy())
    }
}

fn stopped() -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down")
}

/// Starts the engine thread. It ends when every [`Queue`] is dropped.
pub fn start(engine: Arc<impl Engine>, options: &Options, metrics: Arc<Metrics>) -> (Queue, JoinHandle<()>) {
    let (sender, receiver) = sync_channel(options.max_images);
    let ready = Arc::new(AtomicBool::new(false));
    let queue = Queue { sender, ready: Arc::clone(&ready) };
    let (max_batch, max_wait) = (options.max_batch.max(1), options.max_wait.min(LONGEST_WAIT));
    let thread = thread::spawn(move || {
        match run(|| engine.classify(&[engine.blank()])) {
            Ok(_) => ready.store(true, Ordering::Release),
            Err(failure) => log::error!("the network failed its first run: {}", failure.message),
        }
        let next_batch = |receiver: &Receiver<Work>, first: Work| {
            let mut batch = vec![first];
            let deadline = Instant::now() + max_wait;
            while batch.len() < max_batch {
                // With a timeout of zero this still receives what is queued.
                match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                    Ok(work @ Work::Classify { .. }) => batch.push(work),
                    Ok(other) => return (batch, Some(other)),
                    Err(_) => break,
                }
            }
            (batch, None)
        };
        let mut held = None;
        while let Some(work) = held.take().or_else(|| receiver.recv().ok()) {
            if work.is_forgotten() {
                continue;
            }
            match work {
                Work::Explain { image, class, permit, reply } => {
                    let _ = reply.send(run(|| engine.explain(&image, class)));
                    drop(permit);
                }
                work @ Work::Classify { .. } => {
                    let (batch, other) = next_batch(&receiver, work);
                    held = other;
                    classify(engine.as_ref(), batch, &metrics);
                }
            }
        }
    });
    (queue, thread)
}

fn classify(engine: &impl Engine, batch: Vec<Work>, metrics: &Metrics) {
    let (mut images, mut waiting) = (Vec::new(), Vec::new());
    for work in batch.into_iter().filter(|work| !work.is_forgotten()) {
        if let Work::Classify { image, permit, reply } = work {
            images.push(image);
            waiting.push((permit, reply));
        }
    }
    if images.is_empty() {
        return;
    }
    metrics.batch(images.len());
    let count = images.len();
    let answers = run(|| {
        let answers = engine.classify(&images)?;
        match answers.len() == count {
            true => Ok(answers),
            false => Err(format!("the engine returned {} results for {count} images", answers.len()).into()),
        }
    });
    match answers {
        Ok(answers) => waiting.into_iter().zip(answers).for_each(|((_permit, reply), answer)| {
            let _ = reply.send(Ok(answer));
        }),
        Err(failure) => waiting.into_iter().for_each(|(_permit, reply)| {
            let _ = reply.send(Err(failure.clone()));
        }),
    }
}

/// Runs the engine and turns its error or panic into a 500 response. The cause is logged and not sent to the client.
fn run<T>(work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, ApiError> {
    let failure = || ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the network failed; see the server's log");
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            log::error!("the network failed: {error:#}");
            Err(failure())
        }
        Err(_) => {
            log::error!("the network panicked");
            Err(failure())
        }
    }
}
