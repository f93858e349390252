//! One forward pass through a network: who observes it, and which of its segments are computed.

use burn::tensor::Tensor;

use crate::hook::ForwardHook;

/// Chooses what a segment computes on: given its index and the activation before it, the input to run it on, or nothing
/// to leave the segment out.
type Select<'a> = &'a mut dyn FnMut(usize, &Tensor<4>) -> Option<Tensor<4>>;

/// The state of a forward pass.
pub(crate) struct Pass<'a> {
    hook: &'a mut dyn ForwardHook,
    select: Option<Select<'a>>,
    segments: usize,
}

impl<'a> Pass<'a> {
    /// A pass through the whole network.
    pub fn new(hook: &'a mut dyn ForwardHook) -> Self {
        Self { hook, select: None, segments: 0 }
    }

    /// A pass through the segments that `select` chooses.
    pub fn through(select: Select<'a>, hook: &'a mut dyn ForwardHook) -> Self {
        Self { hook, select: Some(select), segments: 0 }
    }

    /// Announces the output of stage `name`; what this returns flows on.
    pub fn stage(&mut self, name: &str, output: Tensor<4>) -> Tensor<4> {
        self.hook.on_output(name, output)
    }

    /// Whether stage `name` must be announced.
    pub fn observes(&self, name: &str) -> bool {
        self.hook.observes(name)
    }

    /// Runs a segment: what gradient checkpointing computes again as a whole. The activation goes from one segment to the
    /// next and nothing is computed between them.
    pub fn segment(&mut self, x: Tensor<4>, run: impl FnOnce(Tensor<4>, &mut Self) -> Tensor<4>) -> Tensor<4> {
        let index = self.segments;
        self.segments += 1;
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
