//! Stochastic gradient descent with momentum and weight decay, in one pass over the parameters.

use pulp::{Arch, Simd, WithSimd};

use super::parallel::{Shared, part, tasks};

/// How a step is made; as PyTorch's and Burn's `SGD` have it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub learning_rate: f32,
    /// What is left of the velocity after a step; 0 for none.
    pub momentum: f32,
    /// What of a gradient does not go into the velocity.
    pub dampening: f32,
    /// Whether the gradient counts beside the velocity that it goes into.
    pub nesterov: bool,
    /// The parameter's share in its gradient.
    pub weight_decay: f32,
}

/// Floats of a task.
const CHUNK: usize = 1 << 16;

/// Steps in place. `started` says that the velocity is one: the first step's is the gradient. In the order of Burn's
/// operations, without fused ones: the same bits.
pub fn step(sgd: Sgd, param: &mut [f32], gradient: &[f32], velocity: &mut [f32], started: bool) {
    assert_eq!([param.len(), velocity.len()], [gradient.len(); 2], "a step's slices are as long as its parameters");
    let len = param.len();
    let [param, velocity] = [Shared::new(param), Shared::new(velocity)];
    let parts = len.div_ceil(CHUNK);
    let arch = Arch::new();
    tasks(parts, |index| {
        let range = part(len, parts, index, 16);
        let gradient = &gradient[range.clone()];
        // SAFETY: each task has its own part.
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
