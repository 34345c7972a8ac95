//! LARS: layer-wise adaptive rate scaling.
//!
//! You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks", 2017, Algorithm 1 with equation 6.

use super::prelude::*;
use super::{Layerwise, Norms, coefficients, hyperparameters};

hyperparameters! {
    LarsHyper {
        lr: RATE, momentum: FRACTION, trust_coefficient: NOT_NEGATIVE, eps: NOT_NEGATIVE, weight_decay: NOT_NEGATIVE,
        adapt: SWITCH,
    }
}
coefficients! { LarsCoefficients { rate, momentum, weight_decay } }

/// v ← μv + γ·η‖w‖/(‖g‖ + λ‖w‖ + ε)·(g + λw),  w ← w − v
///
/// The rate lives inside the buffer, as in the paper; ε is not in it.
#[derive(Debug)]
pub struct Lars;

impl Rule<1> for Lars {
    const NAME: &'static str = "lars";
    const STATES: [State; 1] = [State::first_moment("v")];
    type Hyper<S: Scalar> = LarsHyper<S>;
    type Coefficients<A: Real> = LarsCoefficients<A>;

    fn coefficients<S: Scalar>(h: &LarsHyper<S>, at: &Progress) -> LarsCoefficients<S> {
        Self::adapted(h, at, &Norms::unknown())
    }

    #[inline(always)]
    fn update<A: Real>(c: &LarsCoefficients<A>, p: A, g: A, [v]: [A; 1]) -> (A, [A; 1]) {
        let v = c.momentum * v + c.rate * (g + c.weight_decay * p);
        (v, [v])
    }
}

impl Layerwise<1> for Lars {
    const MEASURED: &'static str = "g";
    const OF_GRADIENT: &'static [&'static str] = &["eps", "weight_decay"];

    #[inline(always)]
    fn measured<A: Real>(_c: &LarsCoefficients<A>, _p: A, g: A, _state: [A; 1]) -> A {
        g
    }

    fn adapted<S: Scalar>(h: &LarsHyper<S>, _at: &Progress, norms: &Norms<S>) -> LarsCoefficients<S> {
        let below = norms.measured + h.weight_decay * norms.parameter + h.eps;
        let ratio = norms.one_if_one_is_0(h.trust_coefficient * norms.parameter / below);
        LarsCoefficients {
            rate: h.lr * h.adapt.switch(ratio, S::constant(1.0)),
            momentum: h.momentum,
            weight_decay: h.weight_decay,
        }
    }
}
