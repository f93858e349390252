//! A step of stochastic gradient descent, which has no gradient.
use super::prelude::*;
pub use crate::cpu::sgd::Sgd;

/// Stochastic gradient descent.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait SgdStep: Backend {
    /// Returns the parameter and its velocity after a step, in place if their storage is not shared. The first step has no
    /// velocity; without momentum it is unused.
    fn sgd_step(
        param: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        #[extension_type] velocity: OptionalTensor<Self>,
        sgd: Sgd,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        reference::sgd_step::<Self>(param, gradient, velocity.into_option(), sgd)
    }
}

reference_backends!(SgdStep);

/// Reference bodies in Burn's operations.
mod reference {
    use super::*;

    pub fn sgd_step<B: Backend>(
        param: FloatTensor<B>,
        mut gradient: FloatTensor<B>,
        velocity: Option<FloatTensor<B>>,
        sgd: Sgd,
    ) -> (FloatTensor<B>, FloatTensor<B>) {
        let times = |x: FloatTensor<B>, factor: f32| B::float_mul_scalar(x, Scalar::Float(f64::from(factor)));
        if sgd.weight_decay != 0.0 {
            gradient = B::float_add(times(param.clone(), sgd.weight_decay), gradient);
        }
        let mut velocity = velocity
            .map(|velocity| B::float_add(times(gradient.clone(), 1.0 - sgd.dampening), times(velocity, sgd.momentum)));
        if sgd.momentum != 0.0 {
            let new = velocity.unwrap_or_else(|| gradient.clone());
            gradient =
                if sgd.nesterov { B::float_add(times(new.clone(), sgd.momentum), gradient) } else { new.clone() };
            velocity = Some(new);
        }
        let step = times(gradient.clone(), sgd.learning_rate);
        (B::float_sub(param, step), velocity.unwrap_or(gradient))
    }
}

#[cfg(feature = "flex")]
mod optimized {
    use super::*;
    use crate::{
        cpu::{buffer_pool::Buffer, sgd},
        flex::{copy_all, floats, own_floats, shaped, single},
    };

    impl SgdStep for Flex {
        fn sgd_step(
            mut param: FlexTensor,
            gradient: FlexTensor,
            velocity: OptionalTensor<Self>,
            settings: Sgd,
        ) -> (FlexTensor, FlexTensor) {
            let velocity = velocity.into_option();
            let usual = |x: &FlexTensor| single(&[x]) && x.is_contiguous();
            if !usual(&param) || !single(&[&gradient]) || velocity.as_ref().is_some_and(|velocity| !usual(velocity)) {
                return reference::sgd_step::<Self>(param, gradient, velocity, settings);
            }
            let gradient = gradient.to_contiguous();
            let started = velocity.is_some();
            let shape = param.layout().shape().clone();
            // Shared storage is copied first.
            let own = |mut x: FlexTensor| {
                if own_floats(&mut x).is_none() {
                    let mut copy = Buffer::new(x.layout().num_elements());
                    copy_all(floats(&x), &mut copy);
                    x = shaped(copy, shape.clone());
                }
                x
            };
            param = own(param);
            let mut velocity = match velocity {
                Some(velocity) => own(velocity),
                None => shaped(Buffer::new(gradient.layout().num_elements()), shape.clone()),
            };
            let (Some(values), Some(speeds)) = (own_floats(&mut param), own_floats(&mut velocity)) else {
                unreachable!("both have one owner now")
            };
            sgd::step(settings, values, floats(&gradient), speeds, started);
            (param, velocity)
        }
    }
}

impl<B: SgdStep, C: CheckpointStrategy> SgdStep for Autodiff<B, C> {}
