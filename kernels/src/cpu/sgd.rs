//! Stochastic gradient descent with momentum and weight decay, in one pass over the parameters.

use pulp::{Arch, Simd, WithSimd};

use super::{
    disjoint::{DisjointSlice, part},
    thread_pool::tasks,
};

/// The options of a step, as in PyTorch's and Burn's `SGD`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// The learning rate.
    pub learning_rate: f32,
    /// The momentum, 0 for none.
    pub momentum: f32,
    /// The dampening of the gradient in the velocity.
    pub dampening: f32,
    /// Whether the momentum is Nesterov's.
    pub nesterov: bool,
    /// The weight decay (L2 penalty).
    pub weight_decay: f32,
}

/// The number of floats of a task.
const CHUNK: usize = 1 << 16;

/// Steps in place. `started` is false in the first step, whose velocity is the gradient. The order of operations is Burn's,
/// without fused multiply-add, so that results are bit-identical.
pub fn step(sgd: Sgd, param: &mut [f32], gradient: &[f32], velocity: &mut [f32], started: bool) {
    assert_eq!([param.len(), velocity.len()], [gradient.len(); 2], "a step's slices are as long as its parameters");
    let len = param.len();
    let [param, velocity] = [DisjointSlice::new(param), DisjointSlice::new(velocity)];
    let parts = len.div_ceil(CHUNK);
    let arch = Arch::new();
    tasks(parts, |index| {
        let range = part(len, parts, index, 16);
        let gradient = &gradient[range.clone()];
        // SAFETY: each task accesses its own part only.
        let [param, velocity] = unsafe { [param.range(range.clone()), velocity.range(range)] };
        arch.dispatch(Task { sgd, param, gradient, velocity, started });
    });
}

struct Task<'a> {
    sgd: Sgd,
    param: &'a mut [f32],
    gradient: &'a [f32],
    velocity: &'a mut [f32],
    started: bool,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Sgd { learning_rate, momentum, dampening, nesterov, weight_decay } = self.sgd;
        let len = self.param.len();
        let (gradient, velocity) = (&self.gradient[..len], &mut self.velocity[..len]);
        for i in 0..len {
            let mut g = gradient[i];
            if weight_decay != 0.0 {
                g += self.param[i] * weight_decay;
            }
            if momentum != 0.0 {
                let v = if self.started { g * (1.0 - dampening) + velocity[i] * momentum } else { g };
                velocity[i] = v;
                g = if nesterov { v * momentum + g } else { v };
            }
            self.param[i] -= g * learning_rate;
        }
    }
}
