//! How Burn's learner is driven: [`Strategy`] is the loop that `SupervisedTraining` launches.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use burn::module::Module;
use burn_train::{
    Learner, SupervisedLearningStrategy, SupervisedTrainingEventProcessor, TrainLoader, TrainingComponents, ValidLoader,
};

use super::{End, Outcome, Session, Trainer, epoch::Agreed, slot::Slot, upload::Copies};
use crate::{checkpoint::Store, classifier::Classifier, parallel};

/// The strategy that Burn's `SupervisedTraining` runs. It runs once.
pub struct Strategy {
    session: Mutex<Option<Session>>,
    outcome: Arc<Mutex<Option<Outcome>>>,
}

impl Strategy {
    /// The strategy, and where it leaves its outcome.
    pub fn new(session: Session) -> (Self, Arc<Mutex<Option<Outcome>>>) {
        let outcome = Arc::new(Mutex::new(None));
        (Self { session: Mutex::new(Some(session)), outcome: outcome.clone() }, outcome)
    }
}

pub(super) type Events = SupervisedTrainingEventProcessor<Classifier>;

impl SupervisedLearningStrategy<Classifier> for Strategy {
    /// Burn's own loaders are passed over: the session's know how to start inside an epoch. So are the learner's optimizer
    /// and scheduler, which it keeps to itself: the session's write their state into checkpoints, and step as the guard
    /// says.
    fn fit(
        &self,
        components: TrainingComponents<Classifier>,
        learner: Learner<Classifier>,
        _train: TrainLoader<Classifier>,
        _valid: ValidLoader<Classifier>,
        _starting_epoch: usize,
    ) -> (Classifier, Events) {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).take();
        let session = session.expect("a strategy runs once");
        let model = learner.model();
        // A copy of the model would keep its tensors from being changed in place.
        drop(learner);
        let Session { world, devices, device, optimizer, .. } = &session;
        let parallel = parallel::start(world, devices.as_ref(), device, &model, optimizer);
        let mut run = Trainer {
            store: Store::new(&session.run),
            session,
            model: Slot::new(model),
            rates: 0.0.into(),
            loss_scale: None,
            submitted: Vec::new(),
            copies: Copies::default(),
            read: Instant::now(),
            clock: Instant::now(),
            seconds: 0.0,
            parallel,
            events: components.event_processor,
            interrupter: components.interrupter,
            saved: Instant::now(),
            saved_step: 0,
            smooth: None,
            lowest: f64::INFINITY,
            diverged: false,
            agreed: Agreed::default(),
        };
        // One process alone too, so that it has the results of several.
        let sync_bn = run.session.recipe.ranks.sync_bn;
        if sync_bn {
            let world = run.session.world;
            kernels::set_sync_batch_norm(Some(Arc::new(|values: &mut [f64]| world.sum(values))));
        }
        let end = run.train().unwrap_or_else(End::Failed);
        if sync_bn {
            kernels::set_sync_batch_norm(None);
        }
        let model = run.model.into_inner();
        let Session { state, ema, journal, .. } = run.session;
        let (network, ema) = (model.network.valid(), ema.map(|ema| ema.network().clone()));
        let outcome = Outcome { state, network, ema, journal, end };
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        (model, run.events)
    }
}
