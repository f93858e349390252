//! How Burn's Learner is driven: [`run`] launches its `SupervisedTraining`, of which [`Strategy`] is the loop.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use burn::{module::Module, optim::SgdConfig};
use burn_train::{
    Interrupter, Learner, SupervisedLearningStrategy, SupervisedTraining, SupervisedTrainingEventProcessor,
    TrainLoader, TrainingComponents, TrainingStrategy, ValidLoader, metric::LearningRateMetric,
};

use super::{
    End, Outcome, Session, Trainer,
    epoch::Agreed,
    metric::{Kind, Mean},
    renderer::{NoFiles, renderer},
    slot::Slot,
    upload::Copies,
};
use crate::{Error, Result, classifier::Classifier, evaluation::TOP, parallel, run::checkpoint::Store};

/// Trains the model, with Burn's dashboard on the terminal if it is wanted.
///
/// # Errors
/// If Burn's Learner ends without running the strategy. A training that fails is no error here: see [`Outcome::end`].
pub fn run(session: Session, model: Classifier, dashboard: bool) -> Result<Outcome> {
    // What would be printed waits until the dashboard gives the terminal back.
    let hold = dashboard.then(runtime::output::hold_stderr);
    let interrupter = Interrupter::new();
    let loaders = &session.loaders;
    let (train, valid) = (Arc::new(loaders.first().clone()), Arc::new(loaders.valid.clone()));
    let (folder, scheduler) = (session.run.clone(), session.scheduler.clone());
    let (epochs, starting_after) = (session.recipe.epochs, session.state.epoch);
    let classes = session.card.classes.len();
    let (strategy, outcome) = Strategy::new(session);
    let mut training = SupervisedTraining::new(folder, train, valid)
        .metrics((Mean::new(Kind::Loss), Mean::new(Kind::Top1)))
        .metric_train_numeric(LearningRateMetric::new())
        .with_metric_logger(NoFiles)
        .renderer(renderer(dashboard, interrupter.clone()))
        .with_interrupter(interrupter)
        .with_training_strategy(TrainingStrategy::Custom(Arc::new(strategy)))
        // The run's logger writes `experiment.log`; Burn's would take over the logger and the panic hook of the process.
        .with_application_logger(None)
        .num_epochs(epochs);
    if classes > TOP {
        training = training.metrics((Mean::new(Kind::Top5),));
    }
    if starting_after > 0 {
        training = training.checkpoint(starting_after);
    }
    // The strategy steps by an optimizer of its own.
    let unused = SgdConfig::new().init();
    let result = training.launch(Learner::new(model, unused, scheduler));
    // The dashboard gives the terminal back when it is dropped.
    drop(result.renderer);
    drop(hold);
    let outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
    let mut outcome = outcome.ok_or(Error::Bug("training ended without an outcome"))?;
    if let (Some(error), End::Finished | End::Interrupted) = (result.error, &outcome.end) {
        outcome.end = End::Failed(Error::Learner(error.to_string()));
    }
    Ok(outcome)
}

/// The strategy that Burn's `SupervisedTraining` runs. It runs once.
struct Strategy {
    session: Mutex<Option<Session>>,
    outcome: Arc<Mutex<Option<Outcome>>>,
}

impl Strategy {
    /// The strategy, and where it leaves its outcome.
    fn new(session: Session) -> (Self, Arc<Mutex<Option<Outcome>>>) {
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
        let end = run.train().unwrap_or_else(End::Failed);
        let model = run.model.into_inner();
        let Session { state, ema, logger, .. } = run.session;
        let (network, ema) = (model.network.valid(), ema.map(|ema| ema.network().clone()));
        let outcome = Outcome { state, network, ema, logger, end };
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        (model, run.events)
    }
}
