//! LAMB: Adam with each tensor's step as long as the tensor, times the rate.
//!
//! You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", 2020, Algorithm 2, φ(z) = z.

use super::prelude::*;
use super::{Layerwise, Norms, coefficients, hyperparameters};

hyperparameters! {
    LambHyper {
        lr: RATE, beta1: FRACTION, beta2: FRACTION, eps: NOT_NEGATIVE, weight_decay: NOT_NEGATIVE, adapt: SWITCH,
    }
}
coefficients! {
    LambCoefficients { rate, scale, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay }
}

/// m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)g²,  u = m̂/(√v̂ + ε) + λw,  w ← w − γ·‖w‖/‖u‖·u
#[derive(Debug)]
pub struct Lamb;

/// m, v and u; the bias corrections are folded into scalars, as Adam's are.
#[inline(always)]
fn direction<A: Real>(c: &LambCoefficients<A>, p: A, g: A, [m, v]: [A; 2]) -> (A, [A; 2]) {
    let m = c.beta1 * m + c.one_minus_beta1 * g;
    let v = (c.beta2 * v + c.one_minus_beta2 * (g * g)).capped();
    (c.scale * m.divide_or_zero(v.sqrt() + c.eps) + c.weight_decay * p, [m, v])
}

impl Rule<2> for Lamb {
    const NAME: &'static str = "lamb";
    const STATES: [State; 2] = [State::first_moment("m"), State::second_moment("v")];
    type Hyper<S: Scalar> = LambHyper<S>;
    type Coefficients<A: Real> = LambCoefficients<A>;
    const PRODUCTS: &'static [&'static str] = &["beta1", "beta2"];

    fn coefficients<S: Scalar>(h: &LambHyper<S>, at: &Progress) -> LambCoefficients<S> {
        Self::adapted(h, at, &Norms::unknown())
    }

    #[inline(always)]
    fn update<A: Real>(c: &LambCoefficients<A>, p: A, g: A, state: [A; 2]) -> (A, [A; 2]) {
        let (u, state) = direction(c, p, g, state);
        (c.rate * u, state)
    }
}

impl Layerwise<2> for Lamb {
    const MEASURED: &'static str = "u";

    #[inline(always)]
    fn measured<A: Real>(c: &LambCoefficients<A>, p: A, g: A, state: [A; 2]) -> A {
        direction(c, p, g, state).0
    }

    fn adapted<S: Scalar>(h: &LambHyper<S>, at: &Progress, norms: &Norms<S>) -> LambCoefficients<S> {
        let one = S::constant(1.0);
        let root2 = (one - h.beta2.product(at, 1)).sqrt();
        let ratio = norms.one_if_one_is_0(norms.parameter / norms.measured);
        LambCoefficients {
            rate: h.lr * h.adapt.switch(ratio, one),
            scale: root2 / (one - h.beta1.product(at, 0)),
            beta1: h.beta1,
            one_minus_beta1: one - h.beta1,
            beta2: h.beta2,
            one_minus_beta2: one - h.beta2,
            eps: h.eps * root2,
            weight_decay: h.weight_decay,
        }
    }
}
