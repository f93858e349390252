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
    module::{Module, ModuleMapper, Param, ParamGroup},
    optim::{GradientsAccumulator, GradientsParams, lr_scheduler::module_lr_scheduler::ModuleLearningRate},
    tensor::{
        Device, Tensor,
        distributed::{DistributedConfig, DistributedContext, ReduceOperation},
    },
};
use datasets::{BadSamples, ImageBatch};
use models::Network;
use runtime::{backend::BackendSpec, world::World};

use crate::{
    classifier::{self, Classifier, Pass, Task, TrainingBatch},
    evaluation::{BatchScalars, Prediction},
    ranks,
    recipe::Recipe,
    trainer::{
        optimizer::{Optimizer, Update},
        slot::Slot,
    },
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
        bail!("the devices {first} and {other} are of two backends: the devices of one process are of one backend");
    }
    ensure!(
        !recipe.ranks.sync_bn,
        "ranks.sync_bn is for processes with one device each: batch normalisation on several devices of a process knows \
         nothing of the others"
    );
    // Epochs are made of whole batches, so that every device gets as many parts as another, and none is empty.
    let all = names.len() * processes;
    ensure!(
        all <= recipe.batch_size,
        "{all} devices cannot share batches of {} images: give a larger batch_size, or fewer devices",
        recipe.batch_size
    );
    // The backend sums gradients within one backward pass, and gradient checkpointing has many.
    if !collectives || recipe.network.gradient_checkpointing {
        return Ok(Together::MainDevice);
    }
    ensure!(
        recipe.data.bad_samples != BadSamples::Skip,
        "data.bad_samples = \"skip\" could leave a device without images, for which the others would wait: use substitute"
    );
    Ok(Together::Collectives)
}

/// Where a part of a batch is.
pub enum PartBatch {
    /// On the host: the thread of a device uploads its own.
    Host(ImageBatch),
    /// On the device that is to pass it.
    Device(Box<TrainingBatch>),
}

/// What one device has of a batch.
pub struct Part {
    pub batch: PartBatch,
    /// Of the gradient of the whole batch.
    pub share: f64,
    /// What the loss is to be multiplied by, so that the sum over parts is the whole batch's.
    pub loss_factor: f64,
    /// For dropout.
    pub seed: u64,
}

impl Part {
    /// A forward and a backward pass on the network's device.
    pub fn pass(self, model: &Classifier, device: &Device, loss_scale: Option<&Tensor<1>>) -> Pass {
        device.seed(self.seed);
        let batch = match self.batch {
            PartBatch::Host(batch) => model.task.upload(batch, device),
            PartBatch::Device(batch) => *batch,
        };
        let mut pass = model.pass(batch, self.share as f32, loss_scale);
        pass.scalars.loss_factor = self.loss_factor;
        pass
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
    Pass(Box<PassRequest>),
    /// A step with the gradients kept so far.
    Step {
        rates: ModuleLearningRate,
        update: Update,
    },
    /// Drops the gradients kept so far.
    Discard,
    Unfreeze(ParamGroup),
    Fingerprint,
    Predict {
        network: Box<Network>,
        task: Arc<Task>,
        batch: ImageBatch,
    },
}

/// A forward and a backward pass of a network; of the worker's own replica where none comes along.
struct PassRequest {
    model: Option<Classifier>,
    part: Part,
    loss_scale: Option<Tensor<1>>,
}

enum Answer {
    /// Without gradients where the replica keeps them.
    Passed(Box<BatchScalars>, Option<GradientsParams>),
    Done,
    Fingerprint(u32),
    Predicted(Vec<Prediction>),
}

impl Replicas {
    /// Starts a thread for each device. The model and the optimizer are those of the first.
    pub fn start(plan: &Plan, model: &Classifier, optimizer: &Optimizer) -> Self {
        let devices: Vec<Device> = plan.devices.iter().map(|device| device.clone().autodiff()).collect();
        let context = (plan.together == Together::Collectives).then(|| {
            let sum = DistributedConfig { all_reduce_op: ReduceOperation::Sum };
            DistributedContext::init(devices.clone(), sum)
        });
        Self::launch(plan, devices, context, model, optimizer)
    }

    fn launch(
        plan: &Plan,
        devices: Vec<Device>,
        context: Option<DistributedContext>,
        model: &Classifier,
        optimizer: &Optimizer,
    ) -> Self {
        let has_replicas = plan.together == Together::Collectives;
        let sums = context.is_some();
        let (answer, answers) = channel();
        let worker = |(place, device): (usize, Device)| {
            let (request, requests) = channel();
            let replica = (has_replicas && place > 0).then(|| (model.clone(), optimizer.clone()));
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
    pub fn pass(
        &self,
        model: &Classifier,
        parts: Vec<Part>,
        loss_scale: Option<&Tensor<1>>,
    ) -> Result<(GradientsParams, Vec<BatchScalars>)> {
        let model = &marked(model, self.context.is_some());
        let mut asked = 0;
        for (place, part) in parts.into_iter().enumerate() {
            if let PartBatch::Host(batch) = &part.batch
                && batch.mixed_len() == 0
            {
                ensure!(
                    self.together == Together::MainDevice,
                    "batch {} has no image for {}, and the devices wait for each other: choose another batch_size",
                    batch.number,
                    self.names[place]
                );
                continue;
            }
            let model = match (self.together, place) {
                // Its own leaves even on the same device: the passes run side by side.
                (Together::MainDevice, _) => Some(model.clone().fork(&self.devices[place])),
                (Together::Collectives, 0) => Some(model.clone()),
                (Together::Collectives, _) => None,
            };
            let loss_scale = loss_scale.map(|scale| scale.clone().to_device(&inner(&self.devices[place])));
            self.ask(place, Request::Pass(Box::new(PassRequest { model, part, loss_scale })))?;
            asked += 1;
        }
        let mut scalars = Vec::new();
        let mut sum = GradientsAccumulator::new();
        // In the order of devices, not in that of their answers: a sum of floats depends on it.
        for answer in self.answers(asked)? {
            let Answer::Passed(own, gradients) = answer else { continue };
            scalars.push(own.to_device(&inner(&self.devices[0])));
            if let Some(gradients) = gradients {
                sum.accumulate(model, gradients.to_device(&self.devices[0], model));
            }
        }
        Ok((sum.grads(), scalars))
    }

    /// The step that the first device makes by `main`, on all that have a replica.
    pub fn step(&self, rates: &ModuleLearningRate, update: &Update, main: impl FnOnce()) -> Result<()> {
        for place in self.others() {
            let update = update.to_device(&inner(&self.devices[place]));
            self.ask(place, Request::Step { rates: rates.clone(), update })?;
        }
        main();
        self.answers(self.others().len())?;
        Ok(())
    }

    /// Drops the gradients that replicas keep.
    pub fn discard(&self) -> Result<()> {
        for place in self.others() {
            self.ask(place, Request::Discard)?;
        }
        self.answers(self.others().len())?;
        Ok(())
    }

    /// Trains the group's parameters from now on, as the first device does.
    pub fn unfreeze(&self, group: &ParamGroup) -> Result<()> {
        for place in self.others() {
            self.ask(place, Request::Unfreeze(group.clone()))?;
        }
        self.answers(self.others().len())?;
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
            let (network, task, batch) = (Box::new(network.clone()), task.clone(), batch.clone());
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
    replica: Option<(Classifier, Optimizer)>,
    sums: bool,
    requests: &Receiver<Request>,
    answers: &Sender<(usize, Result<Answer, String>)>,
) {
    let mut replica = replica.map(|(model, optimizer)| Replica {
        model: Slot::new(model.fork(device)),
        optimizer: optimizer.to_device(&inner(device)),
        gradients: GradientsParams::new(),
        sums,
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
    model: Slot<Classifier>,
    optimizer: Optimizer,
    gradients: GradientsParams,
    sums: bool,
}

/// The device for tensors without autodiff.
fn inner(device: &Device) -> Device {
    device.clone().without_autodiff()
}

/// A copy of the model, whose gradients the backend sums where it `sums`. The mark lasts for one backward pass.
fn marked(model: &Classifier, sums: bool) -> Classifier {
    struct Mark;
    impl ModuleMapper for Mark {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let id = param.id;
            param.map(|tensor| tensor.set_distributed(id))
        }
    }
    if sums { model.clone().map(&mut Mark) } else { model.clone() }
}

fn answer(device: &Device, replica: Option<&mut Replica>, request: Request) -> Answer {
    let request = match request {
        Request::Predict { network, task, batch } => {
            return Answer::Predicted(classifier::predict(&network, &task, &batch, &inner(device)));
        }
        Request::Pass(request) if request.model.is_some() => {
            let PassRequest { model, part, loss_scale } = *request;
            let model = model.expect("it was looked at");
            let Pass { gradients, scalars } = part.pass(&model, device, loss_scale.as_ref());
            return Answer::Passed(Box::new(scalars), Some(gradients));
        }
        request => request,
    };
    let replica = replica.expect("a device without a replica gets its network with each batch");
    let Replica { model, optimizer, gradients, sums } = replica;
    match request {
        Request::Pass(request) => {
            let PassRequest { part, loss_scale, .. } = *request;
            let marked = marked(model, *sums);
            let pass = part.pass(&marked, device, loss_scale.as_ref());
            let mut sum = GradientsAccumulator::new();
            sum.accumulate(&marked, std::mem::take(gradients));
            sum.accumulate(&marked, pass.gradients);
            *gradients = sum.grads();
            Answer::Passed(Box::new(pass.scalars), None)
        }
        Request::Step { rates, update } => {
            let gradients = optimizer.pack(&**model, std::mem::take(gradients), &rates);
            model.update(|model| optimizer.step(model, gradients, &update));
            Answer::Done
        }
        Request::Discard => {
            *gradients = GradientsParams::new();
            Answer::Done
        }
        Request::Unfreeze(group) => {
            model.update(|model| model.unfreeze(group));
            Answer::Done
        }
        Request::Fingerprint => Answer::Fingerprint(ranks::fingerprint(model)),
        Request::Predict { .. } => unreachable!("it needs no replica"),
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it gave no cause".to_string())
}

#[cfg(test)]
mod tests {
    use models::{Architecture, ImageClassifier, NetworkConfig};

    use super::*;
    use crate::{
        recipe::{Overrides, load},
        trainer::optimizer::Verdict,
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
            (plan(&two, &["ranks.sync_bn=true"], 1, true), "ranks.sync_bn"),
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

    /// A model of ResNet-20 for `classes` classes, and its optimizer.
    fn model(network: Network, classes: usize) -> (Classifier, Optimizer) {
        let recipe = recipe(&[]);
        let optimizer = Optimizer::new(&recipe.optimizer, &network, 0);
        let task = Arc::new(Task::new(&recipe, classes, None));
        (Classifier::new(network, task), optimizer)
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
        Part { batch: PartBatch::Host(batch), share: 0.5, loss_factor: 1.0, seed: 7 }
    }

    /// The protocol of replicas, where every device has the same images: with collectives or without, all make the same
    /// steps as the first, leave out the same, and thaw the same.
    #[test]
    fn replicas_make_the_steps_of_the_first_device() {
        let device = Device::flex().autodiff();
        let network = NetworkConfig::new(Architecture::ResNet20).with_num_classes(10).init(&device);
        let network = transfer::draw_all(network);
        let first = network.frozen_group(1);
        let (model, mut optimizer) = model(network.freeze_group(first.clone()), 10);
        let devices = vec![device.clone(); 3];
        let plan = plan(Together::Collectives, 3);
        let replicas = Replicas::launch(&plan, devices, None, &model, &optimizer);
        let mut model = Slot::new(model);
        let part = |number: usize| part(number, &[1, 2, 3, number as u32 % 10]);
        let guarded = |finite: bool, factor: f32| {
            let finite = Tensor::from_data([finite], &Device::flex());
            let factor = Some(Tensor::from_floats([factor], &Device::flex()));
            Update::Guarded(Arc::new(Verdict { finite, factor }))
        };
        let apply = |factor| Update::Apply { factor };
        // What is done, and whether it changes anything.
        let updates = [
            (Some(apply(1.0)), true),
            (Some(guarded(true, 0.25)), true),
            (None, false),
            (Some(apply(1.0)), true),
            (Some(guarded(false, f32::NAN)), false),
            (Some(apply(0.5)), true),
        ];
        let mut seen = vec![ranks::fingerprint(&model)];
        for (step, (update, changes)) in updates.into_iter().enumerate() {
            if step == 3 {
                model.update(|model| model.unfreeze(first.clone()));
                replicas.unfreeze(&first).unwrap();
            }
            let mut sum = GradientsAccumulator::new();
            for pass in 0..2 {
                let parts = (0..3).map(|_| part(2 * step + pass)).collect();
                let (gradients, scalars) = replicas.pass(&model, parts, None).unwrap();
                assert_eq!(scalars.iter().map(|part| part.read().images).sum::<u64>(), 12);
                sum.accumulate(&*model, gradients);
            }
            let rates = ModuleLearningRate::from(0.1);
            let gradients = optimizer.pack(&*model, sum.grads(), &rates);
            match update {
                None => replicas.discard().unwrap(),
                Some(update) => {
                    let main = || model.update(|model| optimizer.step(model, gradients, &update));
                    replicas.step(&rates, &update, main).unwrap();
                }
            }
            replicas.check_weights(&model).unwrap();
            let now = ranks::fingerprint(&model);
            assert_eq!(!seen.contains(&now), changes, "step {step}");
            seen.push(now);
        }
        // A step of the first device alone is found out.
        let gradients = part(9).pass(&model, &device, None).gradients;
        let gradients = optimizer.pack(&*model, gradients, &0.1.into());
        model.update(|model| optimizer.step(model, gradients, &apply(1.0)));
        let error = replicas.check_weights(&model).unwrap_err().to_string();
        assert!(error.contains("not the same any more"), "{error}");
    }

    #[test]
    fn a_device_that_fails_ends_the_step_with_its_cause() {
        let device = Device::flex().autodiff();
        let (model, optimizer) = model(NetworkConfig::new(Architecture::ResNet20).with_num_classes(2).init(&device), 2);
        let replicas = Replicas::start(&plan(Together::MainDevice, 2), &model, &optimizer);
        // A class that is not there.
        let failed = replicas.pass(&model, vec![part(0, &[1]), part(1, &[2])], None);
        let error = failed.expect_err("it fails").to_string();
        assert!(error.starts_with("flex failed: "), "{error}");
    }
}
