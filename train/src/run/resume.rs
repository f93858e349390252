//! Continuing a run from its last checkpoint.

use std::path::Path;

use hub::{Card, LoadOptions};
use report::format::{RECIPE, RunChange, RunInfo, RunKind, RunStatus};
use runtime::{
    communicator::communicator,
    environment,
    files::{self, write_atomic_bytes},
};

use super::{
    changes::{self, Change},
    checkpoint::{Checkpoint, Parted, Store},
    folder::RunFolder,
    info,
    lifecycle::{Finished, data_info, train},
    options::Options,
    prepare::{Prepared, complete, first_state, open_weights},
    session::Position,
};
use crate::{
    Error, Result,
    progress::State,
    recipe::{self, Overrides, Recipe},
    warm,
};

/// Continues the run in a folder from its last checkpoint. `overrides` may change where its data is, which images are left
/// out (`data.train`, `data.valid`, `data.quarantine`, `data.bad_samples`), and `epochs`, which continues a finished run
/// too. Changes are recorded in `run.json`; where results may depend on them, a warning says so.
///
/// # Errors
/// Fails if the folder has no run, if another process trains in it, if the run is finished, if anything else in its recipe
/// was changed, or if its data has other images or labels.
pub fn resume(run: &Path, overrides: &Overrides, load: &LoadOptions, options: &Options) -> Result<Finished> {
    let world = communicator();
    let folder = if world.is_root() { RunFolder::open(run)? } else { RunFolder::of_another(run) };
    let (mut info, card, text) = read_files(run)?;
    let checkpoint = last_checkpoint(run, options)?;
    let (recipe, changes) = changed_recipe(run, &text, overrides, &info, checkpoint.as_ref())?;
    let located = changes::located(&recipe, &info.paths, &changes);
    let mut prepared = reopen(run, recipe, &located, checkpoint.as_ref(), load, options)?;

    let mut differences = Differences::new(&changes, checkpoint.as_ref(), &prepared.recipe);
    differences.add_environment(&mut info, options);
    let first = first_state(&prepared)?;
    let state = match &checkpoint {
        Some(Checkpoint { state: known, .. }) => {
            refuse_other_data(known, &first, &changes, &located.data.train)?;
            differences.add_data(known, &first, &changes);
            let State { recipe, data_fingerprint, unfiltered_fingerprint, data_contents, .. } = first;
            State { recipe, data_fingerprint, unfiltered_fingerprint, data_contents, ..known.clone() }
        }
        None => {
            if world.is_root() {
                let note = format!("{} has no checkpoint yet: it starts from its beginning", run.display());
                options.observer.on_note(&note);
            }
            first
        }
    };
    if card.classes != prepared.data.class_names() {
        let place = &located.data.train;
        return Err(Error::Changed(format!("the data in {place} has other classes than this run began with")));
    }
    if checkpoint.is_some() {
        differences.tell(&mut prepared);
    } else {
        warm::start(&mut prepared, options)?;
    }
    let loaders = prepared.data.loaders(&prepared.recipe, options.workers)?;
    (info.status, info.finished) = (Some(RunStatus::Running), None);
    info::record_changes(&mut info, differences.step, differences.records);
    info.data = data_info(&prepared.recipe, &prepared.data);
    info.paths.extend(changes::paths(&located));
    if world.is_root() {
        info::write(&info, run)?;
        if !changes.is_empty() {
            write_atomic_bytes(&run.join(RECIPE), prepared.recipe.to_toml().as_bytes())?;
        }
    }
    train(prepared, loaders, folder, card, info, Position { state, checkpoint }, options)
}

/// Reads `run.json`, the card and the recipe. Processes other than the root need not see its files.
fn read_files(run: &Path) -> Result<(RunInfo, Card, String)> {
    let read = || {
        let recipe = run.join(RECIPE);
        let text = files::read_to_string(&recipe).map_err(Error::io("read", &recipe))?;
        let card = run.join("card.json");
        files::check_regular(&card).map_err(Error::io("read", &card))?;
        Ok((info::read(run)?, Card::read(card)?, text))
    };
    let unreadable = |error| Error::Message(format!("the root's run cannot be read: {error}"));
    let (info, card, text): (RunInfo, Card, String) = communicator().on_root(
        read,
        |read| serde_json::to_vec(read).unwrap_or_default(),
        |bytes| serde_json::from_slice(&bytes).map_err(unreadable),
    )?;
    if info.kind == RunKind::Probe {
        let shown = run.display();
        let cause = format!("{shown} is a linear probe, which takes seconds: start it again (its features are kept)");
        return Err(Error::Folder { path: run.into(), cause });
    }
    Ok((info, card, text))
}

/// Reads the last checkpoint that is whole.
fn last_checkpoint(run: &Path, options: &Options) -> Result<Option<Checkpoint>> {
    let load = || {
        let (checkpoint, warnings) = Store::new(run).load()?;
        for warning in warnings {
            options.observer.on_warning(&warning);
        }
        checkpoint.map(Checkpoint::into_parts).transpose()
    };
    let checkpoint = communicator().on_root(load, Parted::to_bytes, Parted::from_bytes)?;
    checkpoint.map(Checkpoint::from_parts).transpose()
}

/// Returns the recipe to continue with, and what it changes in the one that the run has followed.
fn changed_recipe(
    run: &Path,
    text: &str,
    overrides: &Overrides,
    info: &RunInfo,
    checkpoint: Option<&Checkpoint>,
) -> Result<(Recipe, Vec<Change>)> {
    let shown = run.join(RECIPE).display().to_string();
    let mut recipe = recipe::parse(text, &shown, overrides)?;
    let mut before = match checkpoint {
        Some(checkpoint) => {
            recipe::parse(&checkpoint.state.recipe, "the last checkpoint's recipe", &Overrides::default())
        }
        None => recipe::parse(text, &shown, &Overrides::default()),
    }?;
    [&mut recipe, &mut before].into_iter().for_each(warm::settle);
    let changes = changes::between(&before, &recipe).map_err(|difference| {
        Error::Changed(format!(
            "the recipe in {shown} is not the one that this run began with; put it back, or start another \
             run:\n{difference}"
        ))
    })?;
    if let Some(Checkpoint { state, .. }) = checkpoint {
        refuse_end(run, info.status, state, before.epochs, recipe.epochs)?;
    }
    Ok((recipe, changes))
}

/// Opens data and weights of a recipe, where they are `located` now.
fn reopen(
    run: &Path,
    recipe: Recipe,
    located: &Recipe,
    checkpoint: Option<&Checkpoint>,
    load: &LoadOptions,
    options: &Options,
) -> Result<Prepared> {
    let device = options.device()?;
    let start = match (&located.transfer, checkpoint) {
        // The checkpoint has all weights.
        (Some(_), Some(Checkpoint { state: State { aux_logits: Some(_), .. }, .. })) | (None, _) => None,
        (Some(transfer), _) => {
            let load = LoadOptions { architecture: load.architecture.or(Some(recipe.architecture)), ..load.clone() };
            Some(open_weights(transfer, &load, &device, options)?)
        }
    };
    let opened = complete(recipe, Some(&located.data), start, device, options);
    opened.map_err(|source| {
        let is_known = located.data.train == "digits" || changes::exists(&located.data.train);
        let hint = if is_known { "" } else { "; if the data was moved, give data.train anew" };
        Error::Resume { run: run.into(), hint, source: Box::new(source) }
    })
}

/// What differs from a run that was not interrupted.
struct Differences {
    /// The steps after which the run continues, and the epoch, from 0.
    step: u64,
    epoch: usize,
    /// Why results need not be the same bits.
    effects: Vec<String>,
    /// For `run.json`.
    records: Vec<RunChange>,
}

impl Differences {
    fn new(changes: &[Change], checkpoint: Option<&Checkpoint>, recipe: &Recipe) -> Self {
        let (step, epoch) = checkpoint.map_or((0, 0), |last| (last.state.step, last.state.epoch));
        let records = changes.iter().map(|change| change.clone().at(step, epoch + 1)).collect();
        Self { step, epoch, effects: changes::effects(changes, recipe), records }
    }

    fn record(&mut self, key: &'static str, from: String, to: String) {
        self.records.push(Change { key, from, to }.at(self.step, self.epoch + 1));
    }

    /// Adds other devices, other kernels, another processor and another version of the program, which `info` has from now on.
    fn add_environment(&mut self, info: &mut RunInfo, options: &Options) {
        let devices = options.device_names();
        if let Some(last) = info::continue_on(info, &devices) {
            self.effects.push(format!("it was trained on {last} and continues on {devices}"));
            self.record("device", last, devices);
        }
        let kernels = options.kernels.to_string();
        if info.kernels != kernels {
            let last = std::mem::replace(&mut info.kernels, kernels.clone());
            // Runs of earlier versions do not say.
            if !last.is_empty() {
                self.effects.push(format!("it was trained with {last} kernels and continues with {kernels} ones"));
                self.record("kernels", last, kernels);
            }
        }
        let (cpu, program) = (environment::cpu(), env!("CARGO_PKG_VERSION").to_string());
        if info.cpu != cpu {
            self.effects.push(format!("it was trained on the processor {} and continues on {cpu}", info.cpu));
            self.record("cpu", std::mem::replace(&mut info.cpu, cpu.clone()), cpu);
        }
        if info.hearth != program {
            self.effects.push(format!("it was trained by Hearth {} and continues by {program}", info.hearth));
            self.record("program", std::mem::replace(&mut info.hearth, program.clone()), program);
        }
    }

    /// Adds images that are left out now, and images with other contents.
    fn add_data(&mut self, known: &State, now: &State, changes: &[Change]) {
        if known.data_fingerprint != now.data_fingerprint {
            if changes.iter().all(|change| change.key != changes::QUARANTINE) {
                self.effects.push("the list of images that are left out has other entries".into());
                self.record(changes::QUARANTINE, known.data_fingerprint.clone(), now.data_fingerprint.clone());
            }
            return;
        }
        let of = known.data_contents.len();
        if of == now.data_contents.len() {
            let differ = known.data_contents.iter().zip(&now.data_contents).filter(|(then, now)| then != now).count();
            if differ > 0 {
                self.effects.push(format!("{differ} of {of} images that were compared have other contents"));
                self.record("images", format!("{of} compared"), format!("{differ} have other contents"));
            }
        }
    }

    /// Has the run say what its results will be.
    fn tell(&self, prepared: &mut Prepared) {
        match self.effects.is_empty() {
            true => prepared.resumed = Some("the run ends with the same bits as without the interruption".into()),
            false => prepared.data.notes.push(format!(
                "the run continues with changes, so its results are not bit for bit those of a run without them: {}",
                self.effects.join("; ")
            )),
        }
    }
}

/// Refuses to resume a run that has nothing left to do.
fn refuse_end(run: &Path, status: Option<RunStatus>, state: &State, epochs_before: usize, epochs: usize) -> Result<()> {
    let (done, shown) = (state.epoch, run.display());
    let is_finished = status == Some(RunStatus::Finished);
    if is_finished && epochs == epochs_before {
        return Err(Error::Finished { run: run.into(), epochs: done });
    }
    let least = if is_finished || state.batch > 0 { done + 1 } else { done };
    if epochs >= least {
        return Ok(());
    }
    let part = if state.batch > 0 { " and a part of the next" } else { "" };
    Err(Error::Changed(format!(
        "the run {shown} has trained {done} epochs{part}: epochs is {epochs}, and has to be at least {least}"
    )))
}

/// A run resumes on the images that it began with, apart from those that are left out.
fn refuse_other_data(known: &State, now: &State, changes: &[Change], place: &str) -> Result<()> {
    let leaves_out_others = changes.iter().any(|change| change.key == changes::QUARANTINE);
    let is_known = known.data_fingerprint == now.data_fingerprint
        || (!known.unfiltered_fingerprint.is_empty() && known.unfiltered_fingerprint == now.unfiltered_fingerprint);
    if is_known {
        return Ok(());
    }
    Err(Error::Changed(format!(
        "the data in {place} is not what this run began with (fingerprint {}, now {}): images were added, removed or \
         given other labels. Put it back, or start another run from this one's weights{}",
        known.data_fingerprint,
        now.data_fingerprint,
        if leaves_out_others { "; an older checkpoint cannot tell whether only data.quarantine changed" } else { "" }
    )))
}
