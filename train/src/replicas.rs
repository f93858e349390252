//! Several devices in one process: each has a thread that takes a part of every batch.
//!
//! These are Burn's two strategies, step by step in our own loop, which has checkpoints within an epoch, an average of
//! the weights and a guard against what is not finite:
//! - [`Together::Collectives`]: Burn's distributed data parallel. Each device has a replica of the network and of the
//!   optimizer; the backend sums gradients over the devices while they are computed, and each makes the same step.
//! - [`Together::MainDevice`]: Burn's multi-device strategy. The network of the first device is copied to the others for
//!   each batch; gradients are summed on the first, which makes the step.
//!
//! Either way BatchNorm's statistics in training are those of a device's part, and the running ones the mean of all.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::{
    module::{Module, ParamGroup},
    optim::{GradientsAccumulator, GradientsParams},
    tensor::{
        Device,
        distributed::{DistributedConfig, DistributedContext, ReduceOperation},
    },
};
use burn_train::{Learner, TrainOutput};
use datasets::{BadSamples, ImageBatch};
use models::Network;
use runtime::{backend::BackendSpec, world::World};

use crate::{
    classifier::{self, Classifier, Task},
    evaluation::{Prediction, Reading},
    optimizer, ranks,
    recipe::Recipe,
};

/// How the devices of a process come to the same step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Together {
    /// The backend sums gradients during the backward pass.
    Collectives,
    /// Gradients are summed on the first device.
    MainDevice,
}

/// The devices of this process, where they are several.
#[derive(Debug, Clone)]
pub struct Plan {
    together: Together,
    names: Vec<BackendSpec>,
    devices: Vec<Device>,
}

impl Plan {
    /// Opens the devices, the first of which is open already; nothing for one alone.
    pub fn new(names: &[BackendSpec], first: &Device, recipe: &Recipe, world: &World) -> Result<Option<Self>> {
        if names.len() == 1 {
            return Ok(None);
        }
        let collectives = world.is_alone() && names.iter().all(BackendSpec::has_collectives);
        let together = together(names, recipe, world.size(), collectives)?;
        let mut devices = vec![first.clone()];
        for name in &names[1..] {
            devices.push(name.device()?);
        }
        Ok(Some(Self { together, names: names.to_vec(), devices }))
    }

    /// How they train together, for people.
    pub fn how(&self) -> &'static str {
        match self.together {
            Together::Collectives => "a replica on each, gradients summed by the backend's collectives",
            Together::MainDevice => "the network copied to each, gradients summed on the first",
        }
    }
}

/// Which strategy so many processes with these devices each have. `collectives` are those between the devices of one
/// process; between processes the sum is taken after a backward pass, on the first device.
fn together(names: &[BackendSpec], recipe: &Recipe, processes: usize, collectives: bool) -> Result<Together> {
    let first = names[0];
    if let Some(other) = names.iter().find(|name| name.backend() != first.backend()) {
        bail!("--devices names {first} and {other}: the devices of one process are of one backend");
    }
    ensure!(
        !recipe.ranks.sync_bn,
        "--sync-bn is for processes with one device each: batch normalisation on several devices of a process knows \
         nothing of the others"
    );
    // Epochs are made of whole batches, so that every device gets as many parts as another, and none is empty.
    let all = names.len() * processes;
    ensure!(
        all <= recipe.batch_size,
        "{all} devices cannot share batches of {} images: give a larger --batch-size, or fewer --devices",
        recipe.batch_size
    );
    // The backend sums gradients within one backward pass, and gradient checkpointing has many.
    if !collectives || recipe.network.gradient_checkpointing {
        return Ok(Together::MainDevice);
    }
    ensure!(
        recipe.data.bad_samples != BadSamples::Skip,
        "--bad-samples skip could leave a device without images, for which the others would wait: use substitute"
    );
    Ok(Together::Collectives)
}

/// What one device has of a batch.
pub struct Part {
    pub batch: ImageBatch,
    /// Of the gradient of the whole batch.
    pub share: f64,
    /// What the loss is to be multiplied by, so that the sum over parts is the whole batch's.
    pub loss_factor: f64,
    /// For dropout.
    pub seed: u64,
}

impl Part {
    /// A forward and a backward pass on the network's device.
    pub fn pass(self, model: &Classifier, device: &Device) -> TrainOutput<Reading> {
        device.seed(self.seed);
        let mut output = model.pass(self.batch, self.share as f32);
        output.item.loss *= self.loss_factor;
        output
    }
}

/// The devices at work.
pub struct Replicas {
    together: Together,
    names: Vec<BackendSpec>,
    devices: Vec<Device>,
    workers: Vec<Sender<Request>>,
    answers: Receiver<(usize, Result<Answer, String>)>,
    /// The backend's server that sums gradients, for as long as it is kept.
    context: Option<DistributedContext>,
}

enum Request {
    /// A forward and a backward pass of this network; of the worker's own replica where none comes along.
    Pass {
        model: Option<Classifier>,
        part: Part,
    },
    /// A step with the gradients kept so far, times the factor; without one they are dropped.
    Step(Option<f64>),
    Thaw(ParamGroup),
    Fingerprint,
    Predict {
        network: Network,
        task: Arc<Task>,
        batch: ImageBatch,
    },
}

enum Answer {
    /// Without gradients where the replica keeps them.
    Passed(Reading, Option<GradientsParams>),
    Done,
    Fingerprint(u32),
    Predicted(Vec<Prediction>),
}

impl Replicas {
    /// Starts a thread for each device. The learner is the one of the first.
    pub fn start(plan: &Plan, learner: &Learner<Classifier>) -> Self {
        let devices: Vec<Device> = plan.devices.iter().map(|device| device.clone().autodiff()).collect();
        let context = (plan.together == Together::Collectives).then(|| {
            let sum = DistributedConfig { all_reduce_op: ReduceOperation::Sum };
            DistributedContext::init(devices.clone(), sum)
        });
        Self::launch(plan, devices, context, learner)
    }

    fn launch(
        plan: &Plan,
        devices: Vec<Device>,
        context: Option<DistributedContext>,
        learner: &Learner<Classifier>,
    ) -> Self {
        let has_replicas = plan.together == Together::Collectives;
        let sums = context.is_some();
        let (answer, answers) = channel();
        let worker = |(place, device): (usize, Device)| {
            let (request, requests) = channel();
            let replica = (has_replicas && place > 0).then(|| learner.clone());
            let answer = answer.clone();
            thread::spawn(move || work(place, &device, replica, sums, &requests, &answer));
            request
        };
        let workers = devices.iter().cloned().enumerate().map(worker).collect();
        Self { together: plan.together, names: plan.names.clone(), devices, workers, answers, context }
    }

    /// The devices after the first that have a replica.
    fn others(&self) -> std::ops::Range<usize> {
        1..if self.together == Together::Collectives { self.len() } else { 1 }
    }

    pub fn len(&self) -> usize {
        self.workers.len()
    }

    /// Forward and backward passes of the parts of a batch, one for each device. Gradients are those of the batch, on the
    /// first device.
    pub fn pass(&self, learner: &mut Learner<Classifier>, parts: Vec<Part>) -> Result<TrainOutput<Reading>> {
        let model = &marked(learner, self.context.is_some());
        let mut asked = 0;
        for (place, part) in parts.into_iter().enumerate() {
            let is_empty = part.batch.mixed_len() == 0;
            ensure!(
                !is_empty || self.together == Together::MainDevice,
                "batch {} has no image for {}, and the devices wait for each other: choose another --batch-size",
                part.batch.number,
                self.names[place]
            );
            if is_empty {
                continue;
            }
            let model = match (self.together, place) {
                // Its own leaves even on the same device: the passes run side by side.
                (Together::MainDevice, _) => Some(model.clone().fork(&self.devices[place])),
                (Together::Collectives, 0) => Some(model.clone()),
                (Together::Collectives, _) => None,
            };
            self.ask(place, Request::Pass { model, part })?;
            asked += 1;
        }
        let mut item = Reading::default();
        let mut sum = GradientsAccumulator::new();
        // In the order of devices, not in that of their answers: a sum of floats depends on it.
        for answer in self.answers(asked)? {
            let Answer::Passed(reading, gradients) = answer else { continue };
            item.add(&reading);
            if let Some(gradients) = gradients {
                sum.accumulate(model, gradients.to_device(&self.devices[0], model));
            }
        }
        Ok(TrainOutput { grads: sum.grads(), item })
    }

    /// The step that the first device makes by `main`, on all that have a replica: gradients times the factor, or no step
    /// without one.
    pub fn step(&self, factor: Option<f64>, main: impl FnOnce()) -> Result<()> {
        for place in self.others() {
            self.ask(place, Request::Step(factor))?;
        }
        main();
        self.answers(self.others().len())?;
        Ok(())
    }

    /// Trains the group's parameters from now on, as the first device does.
    pub fn thaw(&self, group: &ParamGroup) -> Result<()> {
        // One after another: they ask by a place that all share.
        for place in self.others() {
            self.ask(place, Request::Thaw(group.clone()))?;
            self.answers(1)?;
        }
        Ok(())
    }

    /// # Errors
    /// Where a replica's weights are not the same as the first device's any more.
    pub fn check_weights(&self, model: &Classifier) -> Result<()> {
        for place in self.others() {
            self.ask(place, Request::Fingerprint)?;
        }
        let own = ranks::fingerprint(model);
        for (place, answer) in self.others().zip(self.answers(self.others().len())?) {
            ensure!(
                matches!(answer, Answer::Fingerprint(other) if other == own),
                "the weights of {} and {} are not the same any more: a device computes wrongly, or Hearth has a defect",
                self.names[0],
                self.names[place]
            );
        }
        Ok(())
    }

    /// Copies of a network for [`predict`](Self::predict), one on each device.
    pub fn copies(&self, network: &Network) -> Vec<Network> {
        // Clones would share their running statistics, on one device.
        self.devices.iter().map(|device| network.valid().fork(&device.clone().without_autodiff())).collect()
    }

    /// What the copies of a network say of a batch each.
    pub fn predict(
        &self,
        copies: &[Network],
        task: &Arc<Task>,
        batches: &[ImageBatch],
    ) -> Result<Vec<Vec<Prediction>>> {
        for (place, (network, batch)) in copies.iter().zip(batches).enumerate() {
            let (network, task, batch) = (network.clone(), task.clone(), batch.clone());
            self.ask(place, Request::Predict { network, task, batch })?;
        }
        let answers = self.answers(batches.len())?.into_iter();
        Ok(answers.filter_map(|answer| if let Answer::Predicted(own) = answer { Some(own) } else { None }).collect())
    }

    fn ask(&self, place: usize, request: Request) -> Result<()> {
        let sent = self.workers[place].send(request);
        sent.map_err(|_| anyhow!("the thread of {} has ended", self.names[place]))
    }

    /// So many answers, in the order of devices. The first that fails is not waited past: others may wait for it.
    fn answers(&self, count: usize) -> Result<Vec<Answer>> {
        let mut answers = Vec::with_capacity(count);
        for _ in 0..count {
            let (place, answer) = self.answers.recv().context("the threads of all devices have ended")?;
            answers.push((place, answer.map_err(|error| anyhow!("{} failed: {error}", self.names[place]))?));
        }
        answers.sort_by_key(|(place, _)| *place);
        Ok(answers.into_iter().map(|(_, answer)| answer).collect())
    }
}

/// A device's thread. Where the backend `sums` gradients, its replica takes part in that.
fn work(
    place: usize,
    device: &Device,
    learner: Option<Learner<Classifier>>,
    sums: bool,
    requests: &Receiver<Request>,
    answers: &Sender<(usize, Result<Answer, String>)>,
) {
    let mut replica = learner.map(|mut learner| {
        learner.fork(device);
        Replica { learner, gradients: GradientsParams::new(), sums }
    });
    for request in requests {
        let answer = catch_unwind(AssertUnwindSafe(|| answer(device, replica.as_mut(), request)));
        if answers.send((place, answer.map_err(|panic| message(&*panic)))).is_err() {
            break;
        }
    }
}

/// A network and its optimizer that make the steps of the first device's.
struct Replica {
    learner: Learner<Classifier>,
    gradients: GradientsParams,
    sums: bool,
}

/// The learner's network, whose gradients the backend sums where it `sums`. The mark lasts for one backward pass.
fn marked(learner: &mut Learner<Classifier>, sums: bool) -> Classifier {
    if sums {
        learner.grad_sharded();
    }
    learner.model()
}

fn answer(device: &Device, replica: Option<&mut Replica>, request: Request) -> Answer {
    let request = match request {
        Request::Pass { model: Some(model), part } => {
            let TrainOutput { grads, item } = part.pass(&model, device);
            return Answer::Passed(item, Some(grads));
        }
        Request::Predict { network, task, batch } => {
            let device = device.clone().without_autodiff();
            return Answer::Predicted(classifier::predict(&network, &task, &batch, &device));
        }
        request => request,
    };
    let replica = replica.expect("a device without a replica gets its network with each batch");
    let Replica { learner, gradients, sums } = replica;
    match request {
        Request::Pass { part, .. } => {
            let model = marked(learner, *sums);
            let TrainOutput { grads, item } = part.pass(&model, device);
            let mut sum = GradientsAccumulator::new();
            sum.accumulate(&model, std::mem::take(gradients));
            sum.accumulate(&model, grads);
            *gradients = sum.grads();
            Answer::Passed(item, None)
        }
        Request::Step(factor) => {
            let gradients = std::mem::take(gradients);
            learner.lr_step();
            if let Some(factor) = factor {
                // As the first device has it, to the bit.
                let gradients =
                    if factor == 1.0 { gradients } else { optimizer::scale(&learner.model(), gradients, factor) };
                learner.optimizer_step(gradients);
            }
            Answer::Done
        }
        Request::Thaw(group) => {
            classifier::thaw(learner, group);
            Answer::Done
        }
        Request::Fingerprint => Answer::Fingerprint(ranks::fingerprint(&learner.model())),
        Request::Predict { .. } => unreachable!("it needs no replica"),
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it gave no cause".to_string())
}

#[cfg(test)]
mod tests {
    use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
    use models::{Architecture, NetworkConfig};

    use super::*;
    use crate::{
        recipe::{Overrides, load},
        schedule::Rates,
        transfer,
    };

    fn recipe(changes: &[&str]) -> Recipe {
        let mut overrides = Overrides::default();
        changes.iter().for_each(|change| overrides.parse(change).unwrap());
        load("digits", &overrides).unwrap()
    }

    #[test]
    fn devices_work_together_as_their_backend_can_or_are_refused() {
        let plan = |names: &[&str], changes: &[&str], processes, collectives| {
            let names: Vec<BackendSpec> = names.iter().map(|name| name.parse().unwrap()).collect();
            together(&names, &recipe(changes), processes, collectives).map_err(|error| error.to_string())
        };
        let two = ["cuda:0", "cuda:1"];
        assert_eq!(plan(&two, &[], 1, true), Ok(Together::Collectives));
        assert_eq!(plan(&["wgpu:0", "wgpu:1"], &[], 1, false), Ok(Together::MainDevice));
        assert_eq!(plan(&two, &["data.bad_samples=skip"], 1, false), Ok(Together::MainDevice));
        assert_eq!(plan(&two, &["network.gradient_checkpointing=true"], 1, true), Ok(Together::MainDevice));
        for (refused, part) in [
            (plan(&["cuda:0", "rocm:0"], &[], 1, false), "of one backend"),
            (plan(&two, &["ranks.sync_bn=true"], 1, true), "--sync-bn"),
            (plan(&two, &["data.bad_samples=skip"], 1, true), "substitute"),
            (plan(&two, &["batch_size=3"], 2, false), "4 devices cannot share batches of 3"),
        ] {
            assert!(refused.as_ref().unwrap_err().contains(part), "{refused:?}");
        }
    }

    #[test]
    fn one_device_needs_no_plan() {
        let (flex, world) = ("flex".parse::<BackendSpec>().unwrap(), World::alone());
        assert!(Plan::new(&[flex], &Device::flex(), &recipe(&[]), &world).unwrap().is_none());
        let plan = Plan::new(&[flex, flex], &Device::flex(), &recipe(&[]), &world).unwrap().unwrap();
        assert_eq!((plan.together, plan.devices.len()), (Together::MainDevice, 2));
    }

    fn learner(network: Network, classes: usize) -> Learner<Classifier> {
        let recipe = recipe(&[]);
        let optimizer = optimizer::build(&recipe.optimizer, &network);
        let scheduler = ModuleLrScheduler::new(Rates::new(&recipe.schedule, 3, 10));
        let task = Arc::new(Task::new(&recipe, classes, None));
        Learner::new(Classifier::new(network, task), optimizer, scheduler)
    }

    fn plan(together: Together, count: usize) -> Plan {
        Plan { together, names: vec!["flex".parse().unwrap(); count], devices: vec![Device::flex(); count] }
    }

    /// Images that `number` tells apart.
    fn part(number: usize, labels: &[u32]) -> Part {
        let n = labels.len();
        let batch = ImageBatch {
            images: (0..n * 3 * 16 * 16).map(|i| (i * (31 + number) % 251) as u8).collect(),
            shape: [n, 3, 16, 16],
            labels: Some(labels.to_vec()),
            mix: None,
            indices: (0..n).collect(),
            epoch: 0,
            number,
        };
        Part { batch, share: 0.5, loss_factor: 1.0, seed: 7 }
    }

    /// The protocol of replicas, where every device has the same images: with collectives or without, all make the same
    /// steps as the first, leave out the same, and thaw the same.
    #[test]
    fn replicas_make_the_steps_of_the_first_device() {
        let device = Device::flex().autodiff();
        let network = NetworkConfig::new(Architecture::ResNet20).with_num_classes(10).init(&device);
        let network = optimizer::draw_all(network);
        let first = transfer::group(&network, &transfer::stages(&network), 1);
        let mut learner = learner(network.freeze_group(first.clone()), 10);
        let devices = vec![device.clone(); 3];
        let replicas = Replicas::launch(&plan(Together::Collectives, 3), devices, None, &learner);
        let part = |number: usize| part(number, &[1, 2, 3, number as u32]);
        let mut seen = vec![ranks::fingerprint(&learner.model())];
        for (step, factor) in [Some(1.0), Some(0.25), None, Some(1.0), Some(0.5)].into_iter().enumerate() {
            if step == 3 {
                classifier::thaw(&mut learner, first.clone());
                replicas.thaw(&first).unwrap();
            }
            let mut sum = GradientsAccumulator::new();
            for pass in 0..2 {
                let parts = (0..3).map(|_| part(2 * step + pass)).collect();
                let output = replicas.pass(&mut learner, parts).unwrap();
                assert_eq!(output.item.images, 12);
                sum.accumulate(&learner.model(), output.grads);
            }
            learner.lr_step();
            let gradients = optimizer::scale(&learner.model(), sum.grads(), factor.unwrap_or(0.0));
            let main = || {
                if factor.is_some() {
                    learner.optimizer_step(gradients);
                }
            };
            replicas.step(factor, main).unwrap();
            replicas.check_weights(&learner.model()).unwrap();
            let now = ranks::fingerprint(&learner.model());
            assert_eq!(seen.contains(&now), factor.is_none(), "step {step}");
            seen.push(now);
        }
        // A step of the first device alone is found out.
        let output = part(9).pass(&learner.model(), &device);
        learner.optimizer_step(output.grads);
        let error = replicas.check_weights(&learner.model()).unwrap_err().to_string();
        assert!(error.contains("not the same any more"), "{error}");
    }

    #[test]
    fn a_device_that_fails_ends_the_step_with_its_cause() {
        let device = Device::flex().autodiff();
        let mut learner = learner(NetworkConfig::new(Architecture::ResNet20).with_num_classes(2).init(&device), 2);
        let replicas = Replicas::start(&plan(Together::MainDevice, 2), &learner);
        // A class that is not there.
        let failed = replicas.pass(&mut learner, vec![part(0, &[1]), part(1, &[2])]);
        let error = failed.err().expect("it fails").to_string();
        assert!(error.starts_with("flex failed: "), "{error}");
    }
}
