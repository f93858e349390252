//! The state that handlers and middleware share.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::Semaphore;

use crate::{Options, access::Access, admission::Permits, batch::Queue, metrics::Metrics, rates::Rates};

/// The state that all handlers share.
pub struct AppState<E> {
    pub engine: Arc<E>,
    pub queue: Queue,
    pub options: Options,
    pub metrics: Arc<Metrics>,
    pub access: Access,
    /// Permits for images.
    pub images: Permits,
    /// Permits for bytes of request bodies.
    pub bodies: Permits,
    /// Permits for concurrent decoding.
    pub decoders: Arc<Semaphore>,
    /// Permits for KiB of images that are being decoded.
    pub decoding: Arc<Semaphore>,
    pub rates: Rates,
    pub closing: AtomicBool,
}

impl<E> AppState<E> {
    pub fn is_ready(&self) -> bool {
        self.queue.is_ready() && !self.closing.load(Ordering::Acquire)
    }
}
