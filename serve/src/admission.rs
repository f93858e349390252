//! Admission control: bounds the images and the bytes of request bodies in flight. A request that exceeds a bound is rejected
//! immediately.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ApiError;

/// A bounded number of permits. A permit is returned when it is dropped.
#[derive(Debug, Clone)]
pub struct Permits {
    free: Arc<Semaphore>,
    all: usize,
}

impl Permits {
    pub fn new(all: usize) -> Self {
        let all = all.min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(all)), all }
    }

    /// Takes `count` permits if they are available now.
    pub fn take(&self, count: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let count = u32::try_from(count).map_err(|_| ApiError::busy())?;
        Arc::clone(&self.free).try_acquire_many_owned(count).map_err(|_| ApiError::busy())
    }

    pub fn taken(&self) -> usize {
        self.all - self.free.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_returned_when_dropped() {
        let permits = Permits::new(3);
        let two = permits.take(2).unwrap();
        assert!(permits.take(2).is_err());
        assert_eq!(permits.taken(), 2);
        drop(two);
        assert!(permits.take(3).is_ok());
        assert_eq!(permits.taken(), 0);
    }
}
