//! Several devices in one process: each has a thread that computes a shard of every batch.
//!
//! These are Burn's two strategies, step by step in our own loop, which has checkpoints within an epoch, an EMA of the
//! weights and a guard against values that are not finite:
//! - [`GradientSync::Collectives`]: Burn's distributed data parallel. Each device has a replica of the network and of the
//!   optimizer; the backend sums gradients over the devices while they are computed, and each makes the same step.
//! - [`GradientSync::MainDevice`]: Burn's multi-device strategy. The network of the first device is copied to the others
//!   for each batch; gradients are summed on the first, which makes the step.
//!
//! Either way batch normalization uses the statistics of a device's shard in training, and the running statistics are
//! the mean of all.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

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
use runtime::{backend::BackendSpec, communicator::Communicator};

use super::{DataParallel, Shard, ShardImages, mpi};
use crate::{
    Error, Result,
    classifier::{self, Classifier, Objective, Pass},
    evaluation::{BatchScalars, Prediction},
    recipe::Recipe,
    trainer::{
        guard::{running_statistics, set_running_statistics},
        optimizer::{Optimizer, Update},
        slot::Slot,
    },
};

/// How gradients are summed over the devices of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GradientSync {
    /// The backend sums gradients during the backward pass.
    Collectives,
    /// Gradients are summed on the first device.
    MainDevice,
}

/// The devices of this process, where they are several.
#[derive(Debug, Clone)]
pub struct Plan {
    sync: GradientSync,
    names: Vec<BackendSpec>,
    devices: Vec<Device>,
}

impl Plan {
    /// Opens the devices, the first of which is open already; nothing for one alone.
    pub fn new(names: &[BackendSpec], first: &Device, recipe: &Recipe, world: &Communicator) -> Result<Option<Self>> {
        if names.len() == 1 {
            return Ok(None);
        }
        let collectives = world.is_alone() && names.iter().all(BackendSpec::has_collectives);
        let sync = gradient_sync(names, recipe, world.size(), collectives)?;
        let mut devices = vec![first.clone()];
        for name in &names[1..] {
            devices.push(name.device()?);
        }
        Ok(Some(Self { sync, names: names.to_vec(), devices }))
    }

    /// How they train together, for people.
    pub fn how(&self) -> &'static str {
        match self.sync {
            GradientSync::Collectives => "a replica on each, gradients summed by the backend's collectives",
            GradientSync::MainDevice => "the network copied to each, gradients summed on the first",
        }
    }
}

/// Which strategy so many processes with these devices each have. `collectives` are those between the devices of one
/// process; between processes the sum is taken after a backward pass, on the first device.
fn gradient_sync(names: &[BackendSpec], recipe: &Recipe, processes: usize, collectives: bool) -> Result<GradientSync> {
    let first = names[0];
    if let Some(other) = names.iter().find(|name| name.backend() != first.backend()) {
        return Err(Error::Settings(format!(
            "the devices {first} and {other} are of two backends: the devices of one process are of one backend"
        )));
    }
    if recipe.ranks.sync_bn {
        return Err(Error::Settings(
            "ranks.sync_bn is for processes with one device each: batch normalization on several devices of a process \
             knows nothing of the others"
                .into(),
        ));
    }
    // Epochs are made of whole batches, so that every device gets as many parts as another, and none is empty.
    let all = names.len() * processes;
    if all > recipe.batch_size {
        return Err(Error::Settings(format!(
            "{all} devices cannot share batches of {} images: give a larger batch_size, or fewer devices",
            recipe.batch_size
        )));
    }
    // The backend sums gradients within one backward pass, and gradient checkpointing has many.
    if !collectives || recipe.network.gradient_checkpointing {
        return Ok(GradientSync::MainDevice);
    }
    if recipe.data.bad_samples == BadSamples::Skip {
        return Err(Error::Settings(
            "data.bad_samples = \"skip\" could leave a device without images, for which the others would wait: use \
             substitute"
                .into(),
        ));
    }
    Ok(GradientSync::Collectives)
}

/// Several devices of one process.
pub struct MultiDevice {
    sync: GradientSync,
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
        task: Arc<Objective>,
        batch: ImageBatch,
    },
}

/// A forward and a backward pass of a network; of the worker's own replica where none comes along.
struct PassRequest {
    model: Option<Classifier>,
    shard: Shard,
    loss_scale: Option<Tensor<1>>,
}

enum Answer {
    /// Without gradients where the replica keeps them.
    Passed(Box<BatchScalars>, Option<GradientsParams>),
    Done,
    Fingerprint(u32),
    Predicted(Vec<Prediction>),
}

impl MultiDevice {
    /// Starts a thread for each device. The model and the optimizer are those of the first.
    pub fn start(plan: &Plan, model: &Classifier, optimizer: &Optimizer) -> Self {
        let devices: Vec<Device> = plan.devices.iter().map(|device| device.clone().autodiff()).collect();
        let context = (plan.sync == GradientSync::Collectives).then(|| {
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
        let has_replicas = plan.sync == GradientSync::Collectives;
        let sums = context.is_some();
        let (answer, answers) = channel();
        let worker = |(index, device): (usize, Device)| {
            let (request, requests) = channel();
            let replica = (has_replicas && index > 0).then(|| (model.clone(), optimizer.clone()));
            let answer = answer.clone();
            thread::spawn(move || work(index, &device, replica, sums, &requests, &answer));
            request
        };
        let workers = devices.iter().cloned().enumerate().map(worker).collect();
        Self { sync: plan.sync, names: plan.names.clone(), devices, workers, answers, context }
    }

    /// The indices of the devices after the first that have a replica.
    fn replicas(&self) -> Range<usize> {
        1..if self.sync == GradientSync::Collectives { self.workers.len() } else { 1 }
    }

    /// Sends a request to every replica, and waits for the answers, which are in the order of devices.
    fn ask_replicas(&self, request: impl Fn() -> Request) -> Result<Vec<Answer>> {
        for index in self.replicas() {
            self.ask(index, request())?;
        }
        self.answers(self.replicas().len())
    }

    fn ask(&self, index: usize, request: Request) -> Result<()> {
        let sent = self.workers[index].send(request);
        sent.map_err(|_| Error::Device(format!("the thread of {} has ended", self.names[index])))
    }

    /// Waits for `count` answers and returns them in the order of devices; at the first failure at once, since other
    /// devices may wait for the one that failed.
    fn answers(&self, count: usize) -> Result<Vec<Answer>> {
        let mut answers = Vec::with_capacity(count);
        for _ in 0..count {
            let ended = |_| Error::Device("the threads of all devices have ended".into());
            let (index, answer) = self.answers.recv().map_err(ended)?;
            let failed = |error| Error::Device(format!("{} failed: {error}", self.names[index]));
            answers.push((index, answer.map_err(failed)?));
        }
        answers.sort_by_key(|(index, _)| *index);
        Ok(answers.into_iter().map(|(_, answer)| answer).collect())
    }
}

impl DataParallel for MultiDevice {
    fn num_devices(&self) -> usize {
        self.workers.len()
    }

    fn forward_backward(
        &self,
        model: &Classifier,
        shards: Vec<Shard>,
        loss_scale: Option<&Tensor<1>>,
    ) -> Result<(GradientsParams, Vec<BatchScalars>)> {
        let model = &marked(model, self.context.is_some());
        let mut asked = 0;
        for (index, shard) in shards.into_iter().enumerate() {
            if let ShardImages::Host(batch) = &shard.images
                && batch.mixed_len() == 0
            {
                if self.sync == GradientSync::MainDevice {
                    continue;
                }
                return Err(Error::Settings(format!(
                    "batch {} has no image for {}, and the devices wait for each other: choose another batch_size",
                    batch.number, self.names[index]
                )));
            }
            let model = match (self.sync, index) {
                // Its own leaves even on the same device: the passes run side by side.
                (GradientSync::MainDevice, _) => Some(model.clone().fork(&self.devices[index])),
                (GradientSync::Collectives, 0) => Some(model.clone()),
                (GradientSync::Collectives, _) => None,
            };
            let loss_scale = loss_scale.map(|scale| scale.clone().to_device(&inner(&self.devices[index])));
            self.ask(index, Request::Pass(Box::new(PassRequest { model, shard, loss_scale })))?;
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

    fn step(
        &self,
        model: &mut Slot<Classifier>,
        rates: &ModuleLearningRate,
        update: &Update,
        main: &mut dyn FnMut(&mut Slot<Classifier>),
    ) -> Result<()> {
        for index in self.replicas() {
            let update = update.to_device(&inner(&self.devices[index]));
            self.ask(index, Request::Step { rates: rates.clone(), update })?;
        }
        main(model);
        self.answers(self.replicas().len())?;
        // They are on the device that used them last.
        let statistics = running_statistics(model).to_device(&self.devices[0], &**model);
        set_running_statistics(model, statistics);
        Ok(())
    }

    fn discard(&self) -> Result<()> {
        self.ask_replicas(|| Request::Discard)?;
        Ok(())
    }

    fn unfreeze(&self, group: &ParamGroup) -> Result<()> {
        self.ask_replicas(|| Request::Unfreeze(group.clone()))?;
        Ok(())
    }

    fn check_weights(&self, model: &Classifier) -> Result<()> {
        let answers = self.ask_replicas(|| Request::Fingerprint)?;
        let own = mpi::fingerprint(model);
        for (index, answer) in self.replicas().zip(answers) {
            if !matches!(answer, Answer::Fingerprint(other) if other == own) {
                return Err(Error::Device(format!(
                    "the weights of {} and {} are not the same any more: a device computes wrongly, or Hearth has a defect",
                    self.names[0], self.names[index]
                )));
            }
        }
        Ok(())
    }

    fn copies(&self, network: Network) -> Vec<Network> {
        // Clones would share their running statistics, on one device.
        self.devices.iter().map(|device| network.valid().fork(&inner(device))).collect()
    }

    fn predict(
        &self,
        copies: &[Network],
        task: &Arc<Objective>,
        batches: &[ImageBatch],
    ) -> Result<Vec<Vec<Prediction>>> {
        for (index, (network, batch)) in copies.iter().zip(batches).enumerate() {
            let (network, task, batch) = (Box::new(network.clone()), task.clone(), batch.clone());
            self.ask(index, Request::Predict { network, task, batch })?;
        }
        let answers = self.answers(batches.len())?.into_iter();
        Ok(answers.filter_map(|answer| if let Answer::Predicted(own) = answer { Some(own) } else { None }).collect())
    }
}

/// A device's thread. Where the backend `sums` gradients, its replica takes part in that.
fn work(
    index: usize,
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
        if answers.send((index, answer.map_err(|panic| message(&*panic)))).is_err() {
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
            let PassRequest { model, shard, loss_scale } = *request;
            let model = model.expect("it was looked at");
            let Pass { gradients, scalars } = shard.forward_backward(&model, device, loss_scale.as_ref());
            return Answer::Passed(Box::new(scalars), Some(gradients));
        }
        request => request,
    };
    let replica = replica.expect("a device without a replica gets its network with each batch");
    let Replica { model, optimizer, gradients, sums } = replica;
    match request {
        Request::Pass(request) => {
            let PassRequest { shard, loss_scale, .. } = *request;
            let marked = marked(model, *sums);
            let pass = shard.forward_backward(&marked, device, loss_scale.as_ref());
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
        Request::Fingerprint => Answer::Fingerprint(mpi::fingerprint(model)),
        Request::Predict { .. } => unreachable!("it needs no replica"),
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it gave no cause".to_string())
}

#[cfg(test)]
mod tests {
    use kernels::KernelMode;
    use models::{Architecture, Execution, ImageClassifier, NetworkConfig};

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
            gradient_sync(&names, &recipe(changes), processes, collectives).map_err(|error| error.to_string())
        };
        let two = ["cuda:0", "cuda:1"];
        assert_eq!(plan(&two, &[], 1, true), Ok(GradientSync::Collectives));
        assert_eq!(plan(&["wgpu:0", "wgpu:1"], &[], 1, false), Ok(GradientSync::MainDevice));
        assert_eq!(plan(&two, &["data.bad_samples=skip"], 1, false), Ok(GradientSync::MainDevice));
        assert_eq!(plan(&two, &["network.gradient_checkpointing=true"], 1, true), Ok(GradientSync::MainDevice));
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
        let (flex, world) = ("flex".parse::<BackendSpec>().unwrap(), Communicator::alone());
        assert!(Plan::new(&[flex], &Device::flex(), &recipe(&[]), &world).unwrap().is_none());
        let plan = Plan::new(&[flex, flex], &Device::flex(), &recipe(&[]), &world).unwrap().unwrap();
        assert_eq!((plan.sync, plan.devices.len()), (GradientSync::MainDevice, 2));
    }

    /// A model of ResNet-20 for `classes` classes, and its optimizer.
    fn model(network: Network, classes: usize) -> (Classifier, Optimizer) {
        let recipe = recipe(&[]);
        let optimizer = Optimizer::new(&recipe.optimizer, &network, 0, KernelMode::default());
        let task = Arc::new(Objective::new(&recipe, classes, None, Execution::default()));
        (Classifier::new(network, task), optimizer)
    }

    fn plan(sync: GradientSync, count: usize) -> Plan {
        Plan { sync, names: vec!["flex".parse().unwrap(); count], devices: vec![Device::flex(); count] }
    }

    /// Images that `number` tells apart.
    fn shard(number: usize, labels: &[u32]) -> Shard {
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
        Shard { images: ShardImages::Host(batch), weight: 0.5, loss_factor: 1.0, seed: 7 }
    }

    /// The protocol of replicas, where every device has the same images: with collectives or without, all make the same
    /// steps as the first, leave out the same, and unfreeze the same.
    #[test]
    fn replicas_make_the_steps_of_the_first_device() {
        let device = Device::flex().autodiff();
        let network = NetworkConfig::new(Architecture::ResNet20).with_num_classes(10).init(&device);
        let network = transfer::draw_all(network);
        let first = network.frozen_group(1);
        let (model, mut optimizer) = model(network.freeze_group(first.clone()), 10);
        let devices = vec![device.clone(); 3];
        let plan = plan(GradientSync::Collectives, 3);
        let replicas = MultiDevice::launch(&plan, devices, None, &model, &optimizer);
        let mut model = Slot::new(model);
        let shard = |number: usize| shard(number, &[1, 2, 3, number as u32 % 10]);
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
        let mut seen = vec![mpi::fingerprint(&model)];
        for (step, (update, changes)) in updates.into_iter().enumerate() {
            if step == 3 {
                model.update(|model| model.unfreeze(first.clone()));
                replicas.unfreeze(&first).unwrap();
            }
            let mut sum = GradientsAccumulator::new();
            for pass in 0..2 {
                let shards = (0..3).map(|_| shard(2 * step + pass)).collect();
                let (gradients, scalars) = replicas.forward_backward(&model, shards, None).unwrap();
                assert_eq!(scalars.iter().map(|part| part.read().images).sum::<u64>(), 12);
                sum.accumulate(&*model, gradients);
            }
            let rates = ModuleLearningRate::from(0.1);
            let gradients = optimizer.pack(&*model, sum.grads(), &rates);
            match update {
                None => replicas.discard().unwrap(),
                Some(update) => {
                    let mut gradients = Some(gradients);
                    let mut main = |model: &mut Slot<Classifier>| {
                        let gradients = gradients.take().unwrap();
                        model.update(|model| optimizer.step(model, gradients, &update));
                    };
                    replicas.step(&mut model, &rates, &update, &mut main).unwrap();
                }
            }
            replicas.check_weights(&model).unwrap();
            let now = mpi::fingerprint(&model);
            assert_eq!(!seen.contains(&now), changes, "step {step}");
            seen.push(now);
        }
        // A step of the first device alone is found out.
        let gradients = shard(9).forward_backward(&model, &device, None).gradients;
        let gradients = optimizer.pack(&*model, gradients, &0.1.into());
        model.update(|model| optimizer.step(model, gradients, &apply(1.0)));
        let error = replicas.check_weights(&model).unwrap_err().to_string();
        assert!(error.contains("not the same any more"), "{error}");
    }

    #[test]
    fn a_device_that_fails_ends_the_step_with_its_cause() {
        let device = Device::flex().autodiff();
        let (model, optimizer) = model(NetworkConfig::new(Architecture::ResNet20).with_num_classes(2).init(&device), 2);
        let replicas = MultiDevice::start(&plan(GradientSync::MainDevice, 2), &model, &optimizer);
        // A class that is not there.
        let failed = replicas.forward_backward(&model, vec![shard(0, &[1]), shard(1, &[2])], None);
        let error = failed.expect_err("it fails").to_string();
        assert!(error.starts_with("flex failed: "), "{error}");
    }
}
