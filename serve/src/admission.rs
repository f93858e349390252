//! How much may be in the house at once: images, and bytes of bodies. What does not fit is refused at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Failure;

/// Places for so many; a place is given back when its permit is dropped.
#[derive(Debug, Clone)]
pub struct Places {
    free: Arc<Semaphore>,
    all: usize,
}

impl Places {
    pub fn new(all: usize) -> Self {
        let all = all.min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(all)), all }
    }

    /// `count` places, if they are free now.
    pub fn take(&self, count: usize) -> Result<OwnedSemaphorePermit, Failure> {
        let count = u32::try_from(count).map_err(|_| Failure::busy())?;
        Arc::clone(&self.free).try_acquire_many_owned(count).map_err(|_| Failure::busy())
    }

    pub fn taken(&self) -> usize {
        self.all - self.free.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back() {
        let places = Places::new(3);
        let two = places.take(2).unwrap();
        assert!(places.take(2).is_err());
        assert_eq!(places.taken(), 2);
        drop(two);
        assert!(places.take(3).is_ok());
        assert_eq!(places.taken(), 0);
    }
}
