//! What a training loop works on: network, optimizer and schedule, from scratch or from a checkpoint.

use std::{path::Path, sync::Arc};

use burn::{
    module::{Module, ParamGroup},
    optim::lr_scheduler::module_lr_scheduler::ModuleLrScheduler,
};
use hub::Card;
use kernels::AllReduce;
use models::{Execution, ImageClassifier, Network};
use runtime::{communicator::communicator, exit::chain, warmup::autotunes};

use super::{checkpoint::Checkpoint, logger::RunLogger, options::Options, prepare::Prepared, results};
use crate::{
    Result,
    classifier::{Classifier, Objective},
    data::Loaders,
    parallel,
    progress::State,
    recipe::Recipe,
    schedule::Rates,
    trainer::{Readback, RunLimits, Session, ema::Ema, flat, is_asynchronous, optimizer::Optimizer},
    transfer,
};

/// Where a run begins, or goes on.
pub struct Position {
    pub state: State,
    pub checkpoint: Option<Checkpoint>,
}

/// What a session is made of before its log is opened.
pub struct Parts {
    pub classifier: Classifier,
    pub state: State,
    pub steps_per_epoch: u64,
    optimizer: Optimizer,
    scheduler: ModuleLrScheduler,
    ema: Option<Ema>,
    readback: Readback,
    is_asynchronous: bool,
    warms_up: bool,
}

impl Parts {
    /// Makes them of a recipe and its data; `rates` replace the recipe's schedule.
    ///
    /// # Errors
    /// If the weights that the run starts from do not match the network.
    pub fn new(
        prepared: &Prepared,
        loaders: &Loaders,
        card: &Card,
        position: Position,
        rates: Option<Rates>,
        options: &Options,
    ) -> Result<Self> {
        let Prepared { recipe, data, device, .. } = prepared;
        let main = options.main_device()?;
        let (buffer, readback) = (flat::buffer(main), Readback::new(main)?);
        let Position { state, checkpoint } = position;
        let steps_per_epoch = loaders.first().num_batches().div_ceil(recipe.accumulate) as u64;
        let mut network = network(prepared, card, &state, checkpoint.is_some())?;
        let mut ema = recipe.ema.as_ref().map(|ema| Ema::new(ema, &network, buffer));
        let mut optimizer_record = None;
        if let Some(checkpoint) = checkpoint {
            network = network.load_record(checkpoint.network);
            optimizer_record = Some(checkpoint.optimizer);
            if let (Some(ema), Some(record)) = (&mut ema, checkpoint.average) {
                ema.load(|network| network.load_record(record), state.average_started);
            }
        }
        // Optimizer and groups refer to the identity that the parameters have by now: a record gives them another.
        let mut optimizer = Optimizer::new(&recipe.optimizer, &network, buffer, options.kernels);
        if let Some(record) = optimizer_record {
            optimizer.load(record, device);
        }
        let of_recipe = || Rates::new(&recipe.schedule, recipe.epochs, steps_per_epoch).scaled(recipe.rate_factor());
        let rates = rates.unwrap_or_else(of_recipe).starting_at(state.step);
        let mut scheduler = ModuleLrScheduler::new(rates.clone());
        if let Some(transfer) = &recipe.transfer {
            for (group, factor) in transfer::rate_groups(&network, transfer) {
                scheduler = scheduler.with_group(group, rates.scaled(factor));
            }
        }
        if prepared.warm.holds_head {
            let head = network.stage_params(network.head_key());
            scheduler = scheduler.with_group(ParamGroup::from_ids(head), rates.scaled(0.0));
        }
        let weights = data.class_weights(&recipe.loss.class_weights)?;
        let task = Arc::new(Objective::new(recipe, card.classes.len(), weights, execution(recipe, options)));
        let classifier = Classifier::new(network, task);
        let (is_asynchronous, warms_up) = (is_asynchronous(main), autotunes(main.backend()));
        Ok(Self { classifier, optimizer, scheduler, ema, readback, is_asynchronous, warms_up, state, steps_per_epoch })
    }

    /// Returns the session, and the model that it trains.
    #[allow(clippy::too_many_arguments)] // What a session owns.
    pub fn into_session(
        self,
        prepared: Prepared,
        loaders: Loaders,
        card: Card,
        run: &Path,
        logger: RunLogger,
        limits: RunLimits,
        options: &Options,
    ) -> (Session, Classifier) {
        let earlier_bad = results::read_bad_samples(run).unwrap_or_else(|error| {
            logger.warn(&format!("{}: the list begins anew", chain(&error)));
            Vec::new()
        });
        let session = Session {
            recipe: prepared.recipe,
            card,
            run: run.to_path_buf(),
            loaders,
            earlier_bad,
            device: prepared.device.autodiff(),
            devices: prepared.devices,
            state: self.state,
            optimizer: self.optimizer,
            scheduler: self.scheduler,
            ema: self.ema,
            logger,
            readback: self.readback,
            is_asynchronous: self.is_asynchronous,
            warms_up: self.warms_up,
            stop: options.stop.clone(),
            save: options.save.clone(),
            limits,
            steps_per_epoch: self.steps_per_epoch,
            world: communicator(),
        };
        (session, self.classifier)
    }
}

/// How the network runs. One process alone synchronizes too, so that it has the results of several.
fn execution(recipe: &Recipe, options: &Options) -> Execution {
    let execution = Execution::new(options.kernels);
    match recipe.ranks.sync_bn {
        true => execution.with_sync_batch_norm(AllReduce::new(|values: &mut [f64]| communicator().sum(values))),
        false => execution,
    }
}

/// The network with its first weights, as it is trained in the epoch of `state`. A checkpoint replaces them all.
fn network(prepared: &Prepared, card: &Card, state: &State, has_checkpoint: bool) -> Result<Network> {
    let Prepared { recipe, start, device, .. } = prepared;
    let network = match (has_checkpoint, &recipe.transfer, start, state.aux_logits) {
        (true, Some(_), None, Some(aux)) => {
            transfer::network_of_checkpoint(recipe, aux, card.transform_input, &card.classes, device)
        }
        _ => transfer::network(recipe, start.as_deref(), &card.classes, device)?,
    };
    let network = match &prepared.warm.network {
        Some(record) if !has_checkpoint => network.load_record(record.clone()),
        _ => network,
    };
    let network = match &recipe.transfer {
        Some(transfer) => transfer::frozen(network, transfer, state.epoch)?,
        None => network,
    };
    if has_checkpoint { Ok(network) } else { parallel::broadcast_network(communicator(), network) }
}
