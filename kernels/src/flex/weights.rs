//! A cache of packed and transformed weights, valid while the original weights are alive and unchanged.

use std::{
    any::Any,
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use burn::backend::flex::FlexTensor;
use burn_std::Bytes;

/// A form of packed weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// f32 panels of a group, with a number of rows.
    Packed { group: usize, rows: usize },
    /// Winograd-transformed.
    Winograd,
    /// Panels of bf16 pairs, with a number of rows.
    Bf16 { rows: usize },
}

type Key = (usize, usize, Vec<usize>, Form);

/// A weak handle keeps no memory alive and does not prevent in-place updates: an update invalidates the handle and thereby
/// the cached form.
struct Entry {
    source: Weak<Bytes>,
    made: Arc<dyn Any + Send + Sync>,
}

static KEPT: Mutex<Option<HashMap<Key, Entry>>> = Mutex::new(None);

/// Returns the cached form of `weights`, or computes it by `make`.
pub fn kept<T: Any + Send + Sync>(weights: &FlexTensor, form: Form, make: impl FnOnce() -> T) -> Arc<T> {
    let source = weights.data_arc();
    let shape: Vec<usize> = weights.layout().shape().iter().copied().collect();
    let key = (Arc::as_ptr(&source) as usize, weights.layout().start_offset(), shape, form);
    let lock = || KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(entry) = lock().get_or_insert_default().get(&key)
        && entry.source.upgrade().is_some_and(|kept| Arc::ptr_eq(&kept, &source))
        && let Ok(made) = Arc::clone(&entry.made).downcast::<T>()
    {
        return made;
    }
    let made = Arc::new(make());
    let mut guard = lock();
    let entries = guard.get_or_insert_default();
    entries.retain(|_, entry| entry.source.strong_count() > 0);
    entries.insert(key, Entry { source: Arc::downgrade(&source), made: made.clone() });
    made
}
