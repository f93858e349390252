//! Gradient checkpointing: a forward and a backward pass that keep the activations between segments alone and compute those
//! within a segment again when its gradient is due.
//!
//! Segments are residual blocks, Inception modules, or the layers from one pooling to the next. The classifier, where all
//! random draws of dropout are, and the segment before it are computed once.

use std::{cell::Cell, collections::HashSet};

use burn::{
    module::{ModuleVisitor, Param, ParamId},
    optim::GradientsParams,
    tensor::{Gradients, Tensor},
};

use crate::{ImageClassifier, Output, pass::Pass};

/// The gradients of `loss(network.forward_aux(images))`.
pub(crate) fn gradients(
    network: &impl ImageClassifier,
    images: Tensor<4>,
    loss: impl FnOnce(Output) -> Tensor<1>,
) -> GradientsParams {
    let mut found = Found::of(network);
    let mut count = 0;
    let mut none = |index: usize, _: &Tensor<4>| {
        count = index + 1;
        None
    };
    network.features(images.clone(), &mut Pass::through(&mut none, &mut ()));
    let last = count - 1;
    let Forward { mut inputs, aux } = Forward::run(network, &images, last);

    // The last segment, the classifier, the auxiliary classifiers and the loss, as one graph.
    let mut input = Input::of(last, inputs.pop().expect("a network has a segment"));
    let features = segment(network, &images, last, &input.tensor);
    let logits = network.classify(network.pre_logits(features, &mut Pass::new(&mut ())));
    let aux: Vec<(usize, Input)> =
        aux.into_iter().map(|(boundary, activation)| (boundary, Input::of(boundary, activation))).collect();
    let aux_logits = network.classify_aux(aux.iter().map(|(_, input)| input.tensor.clone()).collect());
    let mut gradients = loss(Output { logits, aux: aux_logits }).backward();
    found.collect(network, &mut gradients);
    let mut gradient = input.gradient(&mut gradients);
    let mut aux: Vec<(usize, Tensor<4>)> =
        aux.into_iter().filter_map(|(boundary, input)| Some((boundary, input.gradient(&mut gradients)?))).collect();
    drop(gradients);

    for index in (0..last).rev() {
        let from_aux = aux.extract_if(.., |(boundary, _)| *boundary == index + 1).map(|(_, gradient)| gradient);
        let Some(output_gradient) = gradient.into_iter().chain(from_aux).reduce(|sum, other| sum + other) else {
            break;
        };
        if found.is_complete() {
            break;
        }
        input = Input::of(index, inputs.pop().expect("an input for each segment"));
        let output = segment(network, &images, index, &input.tensor);
        if !output.is_tracked() {
            break;
        }
        let mut gradients = kernels::backward_from(output, output_gradient);
        found.collect(network, &mut gradients);
        gradient = input.gradient(&mut gradients);
    }
    found.gradients
}

/// Runs one segment on its input.
fn segment(network: &impl ImageClassifier, images: &Tensor<4>, wanted: usize, input: &Tensor<4>) -> Tensor<4> {
    let mut one = |index: usize, _: &Tensor<4>| (index == wanted).then(|| input.clone());
    network.features(images.clone(), &mut Pass::through(&mut one, &mut ()))
}

/// What the first forward pass keeps.
struct Forward {
    /// The input of each segment.
    inputs: Vec<Tensor<4>>,
    /// The inputs of the auxiliary classifiers: each is that of the segment whose index is beside it.
    aux: Vec<(usize, Tensor<4>)>,
}

impl Forward {
    /// All segments before the last, without a graph. A copy of the network computes them, whose norms leave the running
    /// statistics alone: those change when a segment is computed again.
    fn run(network: &impl ImageClassifier, images: &Tensor<4>, last: usize) -> Self {
        let mut copy = network.clone().no_grad();
        copy.norms_mut().into_iter().for_each(|norm| norm.momentum = 0.0);
        let names: Vec<&str> = network.aux_classifiers().iter().map(|aux| aux.stage).collect();
        let mut inputs = Vec::with_capacity(last + 1);
        let mut aux = vec![None; names.len()];
        let next = Cell::new(0);
        let mut hook = |name: &str, output: &Tensor<4>| {
            if let Some(place) = names.iter().position(|known| *known == name) {
                aux[place] = Some((next.get(), output.clone()));
            }
        };
        let mut select = |index: usize, input: &Tensor<4>| {
            next.set(index + 1);
            inputs.push(input.clone());
            (index < last).then(|| input.clone())
        };
        copy.features(images.clone(), &mut Pass::through(&mut select, &mut hook));
        Self { inputs, aux: aux.into_iter().flatten().collect() }
    }
}

/// The input of a segment, a leaf of its graph; the images need no gradient.
struct Input {
    tensor: Tensor<4>,
    is_leaf: bool,
}

impl Input {
    fn of(segment: usize, activation: Tensor<4>) -> Self {
        let is_leaf = segment > 0;
        let tensor = if is_leaf { activation.detach().require_grad() } else { activation };
        Self { tensor, is_leaf }
    }

    fn gradient(&self, gradients: &mut Gradients) -> Option<Tensor<4>> {
        if self.is_leaf { self.tensor.grad_remove(gradients) } else { None }
    }
}

/// The gradients found so far.
struct Found {
    gradients: GradientsParams,
    /// Parameters that have none yet.
    missing: HashSet<ParamId>,
}

impl Found {
    /// Of no parameter. Those that are not drawn yet are drawn, so that copies of the network have the same.
    fn of(network: &impl ImageClassifier) -> Self {
        struct Trainable(HashSet<ParamId>);
        impl ModuleVisitor for Trainable {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if param.val().is_require_grad() {
                    self.0.insert(param.id);
                }
            }
        }
        let mut trainable = Trainable(HashSet::new());
        network.visit(&mut trainable);
        Self { gradients: GradientsParams::new(), missing: trainable.0 }
    }

    fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    fn collect(&mut self, network: &impl ImageClassifier, gradients: &mut Gradients) {
        struct Collect<'a>(&'a mut Found, &'a mut Gradients);
        impl ModuleVisitor for Collect<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if self.0.missing.contains(&param.id)
                    && let Some(gradient) = param.val().grad_remove(self.1)
                {
                    self.0.gradients.register(param.id, gradient);
                    self.0.missing.remove(&param.id);
                }
            }
        }
        network.visit(&mut Collect(self, gradients));
    }
}
