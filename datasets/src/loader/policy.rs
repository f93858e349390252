//! Samples that are damaged, or that cannot be read or decoded.

use std::{collections::BTreeMap, sync::Mutex};

use serde::{Deserialize, Serialize};

use super::lock;
use crate::{Error, Source, decode::Damage};

/// The policy for samples that are damaged, or that cannot be read or decoded. Each is logged, counted in the epoch's
/// meters and listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BadSamples {
    /// Stop at any, with an error that names archive, member, offset and cause.
    Strict,
    /// Decode damaged samples as far as libjpeg and Pillow do, as all policies below do; stop at one that cannot be
    /// decoded.
    #[default]
    Warn,
    /// Leave it out if it cannot be decoded: its batch is one image shorter. An epoch of nothing but bad samples is an error.
    Skip,
    /// Replace it by another sample, drawn from the seed, with that sample's label: batches stay full.
    Substitute,
}

/// A sample that is damaged, or could not be read or decoded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadSample {
    /// Its index in the source.
    pub index: usize,
    /// Its key, by which a quarantine file names it.
    #[serde(with = "runtime::text::cell")]
    pub key: String,
    /// The location of its bytes: archive → member @ offset.
    #[serde(with = "runtime::text::cell")]
    pub location: String,
    /// The cause.
    #[serde(with = "runtime::text::cell")]
    pub cause: String,
    /// The number of times it was read.
    pub times: u64,
}

/// The bad samples of a loader, without duplicates.
#[derive(Debug, Default)]
pub struct Incidents(Mutex<BTreeMap<usize, BadSample>>);

impl Incidents {
    /// The samples, by index.
    pub fn list(&self) -> Vec<BadSample> {
        lock(&self.0).values().cloned().collect()
    }

    /// Records a sample that cannot be used.
    pub(super) fn record(&self, source: &dyn Source, index: usize, error: &Error) {
        let cause = || match error {
            Error::Decode { cause, .. } => cause.to_string(),
            other => other.to_string(),
        };
        self.add(source, index, &|| log::warn!("bad sample: {error}"), &cause);
    }

    /// Records a sample that was decoded around its damage.
    pub(super) fn record_damage(&self, source: &dyn Source, index: usize, damage: &Damage) {
        let warn = || log::warn!("{}: {damage}; it is used as far as it can be decoded", source.location(index));
        self.add(source, index, &warn, &|| damage.to_string());
    }

    fn add(&self, source: &dyn Source, index: usize, warn: &dyn Fn(), cause: &dyn Fn() -> String) {
        let mut samples = lock(&self.0);
        let sample = samples.entry(index).or_insert_with(|| {
            warn();
            let cause = cause();
            let (key, location) = (source.key(index).into_owned(), source.location(index).to_string());
            BadSample { index, key, location, cause, times: 0 }
        });
        sample.times += 1;
    }
}
