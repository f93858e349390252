//! Runs: from a recipe to a run folder.
//!
//! - [`prepare`]: data, weights and devices, opened and checked against each other
//! - [`lifecycle`](start): a new run, from its folder to its result; [`resume`]: one that goes on
//! - `session`: what the training loop works on, from scratch or from a checkpoint
//! - `folder`, `info`, `checkpoint`, `changes`: the folder, `run.json`, checkpoints, what may change on resume
//! - `logger`, `tensorboard`, `results`: what a run writes while it trains, and at its end
//! - `trial`: a few steps of a run

mod changes;
pub(crate) mod checkpoint;
pub(crate) mod folder;
mod info;
mod lifecycle;
pub(crate) mod logger;
mod options;
mod prepare;
pub(crate) mod results;
mod resume;
mod session;
mod tensorboard;
mod trial;

pub use self::{
    lifecycle::{Finished, start},
    options::Options,
    prepare::{Prepared, follow_weights, num_stages, prepare},
    resume::resume,
};
pub(crate) use self::{
    lifecycle::{finish, new_run},
    prepare::first_state,
    trial::{trial, trial_folder},
};
pub use crate::trainer::End;
