//! One forward pass through a network: who observes it, and which of its segments are computed.

use std::cell::Cell;

use burn::tensor::Tensor;

use crate::hook::ForwardHook;

/// Chooses what a segment computes on: given its index and the activation before it, the input to run it on, or nothing
/// to leave the segment out.
type Select<'a> = &'a mut dyn FnMut(usize, &Tensor<4>) -> Option<Tensor<4>>;

/// The state of a forward pass. A network announces the outputs of its named stages to it, for
/// [`ForwardHook`]s, and divides itself into segments, for gradient checkpointing.
pub struct Pass<'a> {
    hook: &'a mut dyn ForwardHook,
    select: Option<Select<'a>>,
    /// How many outputs are still needed; segments that begin at 0 are left out.
    missing: Option<&'a Cell<usize>>,
    segments: usize,
}

impl<'a> Pass<'a> {
    /// Creates a pass through the whole network.
    pub fn new(hook: &'a mut dyn ForwardHook) -> Self {
        Self { hook, select: None, missing: None, segments: 0 }
    }

    /// A pass through the segments that `select` chooses.
    pub(crate) fn through(select: Select<'a>, hook: &'a mut dyn ForwardHook) -> Self {
        Self { hook, select: Some(select), missing: None, segments: 0 }
    }

    /// A pass that ends after the segment in which `missing` becomes 0.
    pub(crate) fn until(missing: &'a Cell<usize>, hook: &'a mut dyn ForwardHook) -> Self {
        Self { hook, select: None, missing: Some(missing), segments: 0 }
    }

    /// Announces the output of stage `name`; the network continues with the returned tensor.
    pub fn stage(&mut self, name: &str, output: Tensor<4>) -> Tensor<4> {
        self.hook.on_output(name, output)
    }

    /// Whether stage `name` must be announced. Operations up to the next such stage may be fused.
    pub fn observes(&self, name: &str) -> bool {
        self.hook.observes(name)
    }

    /// Runs a segment: what gradient checkpointing computes again as a whole. The activation goes from one segment to the
    /// next and nothing is computed between them.
    pub fn segment(&mut self, x: Tensor<4>, run: impl FnOnce(Tensor<4>, &mut Self) -> Tensor<4>) -> Tensor<4> {
        let index = self.segments;
        self.segments += 1;
        if self.missing.is_some_and(|missing| missing.get() == 0) {
            return x;
        }
        let input = match &mut self.select {
            None => x,
            Some(select) => match select(index, &x) {
                Some(input) => input,
                None => return x,
            },
        };
        run(input, self)
    }

    /// Runs a stage that is a segment.
    pub fn block(&mut self, name: &str, x: Tensor<4>, run: impl FnOnce(Tensor<4>) -> Tensor<4>) -> Tensor<4> {
        self.segment(x, |x, pass| pass.stage(name, run(x)))
    }
}
