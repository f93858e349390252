//! Packed and transformed weights, kept while the weights they were made of live unchanged.

use std::{
    any::Any,
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use burn::backend::flex::FlexTensor;
use burn_std::Bytes;

/// What was made of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// Panels of a group, as a number of rows.
    Packed { group: usize, rows: usize },
    /// Winograd's.
    Winograd,
    /// Panels of bf16 pairs, as a number of rows.
    Half { rows: usize },
}

type Key = (usize, usize, Vec<usize>, Form);

/// A weak handle holds no memory, and lets a tensor's owner change it in place: the handle is then cut off, and so is
/// what was made of the old values.
struct Entry {
    source: Weak<Bytes>,
    made: Arc<dyn Any + Send + Sync>,
}

static KEPT: Mutex<Option<HashMap<Key, Entry>>> = Mutex::new(None);

/// What `make` makes of `weights`, from the last time if they are the same.
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
