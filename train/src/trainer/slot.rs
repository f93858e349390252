//! A value that is replaced by what is made of it.

use std::ops::Deref;

/// Holds a value that [`update`](Self::update) may take to pieces: nobody else has a copy, so tensors in it can be changed
/// in place.
pub struct Slot<T>(Option<T>);

impl<T> Slot<T> {
    pub fn new(value: T) -> Self {
        Self(Some(value))
    }

    pub fn update(&mut self, update: impl FnOnce(T) -> T) {
        self.0 = self.0.take().map(update);
    }

    pub fn into_inner(self) -> T {
        self.0.expect(HELD)
    }
}

const HELD: &str = "a slot is empty only while its value is updated";

impl<T> Deref for Slot<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect(HELD)
    }
}
