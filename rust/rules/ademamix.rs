//! AdEMAMix: Adam with a second, much slower mean of gradients beside the first.
//!
//! Pagliardini, Ablin and Grangier, "The AdEMAMix Optimizer: Better, Faster, Older", 2024, Algorithm 1; its warm-ups of α
//! and β₃ are schedules.

use super::prelude::*;
use super::{coefficients, hyperparameters};

hyperparameters! {
    AdEmaMixHyper {
        lr: RATE, beta1: FRACTION, beta2: FRACTION, beta3: FRACTION, eps: NOT_NEGATIVE, alpha: NOT_NEGATIVE
    }
}
coefficients! {
    AdEmaMixCoefficients {
        fast, slow, beta1, one_minus_beta1, beta2, one_minus_beta2, beta3, one_minus_beta3, eps
    }
}

/// m ← β₁m + (1−β₁)g,  n ← β₃n + (1−β₃)g,  v ← β₂v + (1−β₂)g²,  w ← w − γ·(m̂ + αn)/(√v̂ + ε)
#[derive(Debug)]
pub struct AdEmaMix;

impl Rule<3> for AdEmaMix {
    const NAME: &'static str = "ademamix";
    const STATES: [State; 3] = [State::first_moment("m"), State::slow("n"), State::second_moment("v")];
    type Hyper<S: Scalar> = AdEmaMixHyper<S>;
    type Coefficients<A: Real> = AdEmaMixCoefficients<A>;
    const PRODUCTS: &'static [&'static str] = &["beta1", "beta2"];

    fn coefficients<S: Scalar>(h: &AdEmaMixHyper<S>, at: &Progress) -> AdEmaMixCoefficients<S> {
        let one = S::constant(1.0);
        let c2 = one - h.beta2.product(at, 1);
        let rate = h.lr * c2.sqrt();
        AdEmaMixCoefficients {
            fast: rate / (one - h.beta1.product(at, 0)),
            slow: rate * h.alpha,
            beta1: h.beta1,
            one_minus_beta1: one - h.beta1,
            beta2: h.beta2,
            one_minus_beta2: one - h.beta2,
            beta3: h.beta3,
            one_minus_beta3: one - h.beta3,
            eps: h.eps * c2.sqrt(),
        }
    }

    #[inline(always)]
    fn update<A: Real>(c: &AdEmaMixCoefficients<A>, _p: A, g: A, [m, n, v]: [A; 3]) -> (A, [A; 3]) {
        let m = c.beta1 * m + c.one_minus_beta1 * g;
        let n = c.beta3 * n + c.one_minus_beta3 * g;
        let v = (c.beta2 * v + c.one_minus_beta2 * (g * g)).capped();
        ((c.fast * m + c.slow * n).divide_or_zero(v.sqrt() + c.eps), [m, n, v])
    }
}
