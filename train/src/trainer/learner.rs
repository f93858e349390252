//! How Burn's learner is driven: [`Strategy`] is the loop that `SupervisedTraining` launches.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use burn::module::Module;
use burn_train::{
    Learner, SupervisedLearningStrategy, SupervisedTrainingEventProcessor, TrainLoader, TrainingComponents, ValidLoader,
};

use super::{End, Outcome, Session, Trainer, epoch::Agreed};
use crate::{checkpoint::Store, classifier::Classifier, replicas::Replicas};

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
    /// Burn's own loaders are passed over: the session's know how to start inside an epoch.
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
        let replicas = session.devices.as_ref().map(|plan| Replicas::start(plan, &learner));
        let mut run = Trainer {
            store: Store::new(&session.run),
            session,
            learner,
            replicas,
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
        let model = run.learner.model();
        let Session { state, average, journal, .. } = run.session;
        let (network, average) = (model.network.valid(), average.map(|average| average.network));
        let outcome = Outcome { state, network, average, journal, end };
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        (model, run.events)
    }
}
