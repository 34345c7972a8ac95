//! ADOPT: each gradient divided by the second moment as it was before, then momentum.
//!
//! Taniguchi et al., "ADOPT: Modified Adam Can Converge with Any β₂ with the Optimal Rate", 2024, Algorithm 2; without
//! clipping Algorithm 1.

use super::prelude::*;
use super::{coefficients, hyperparameters};

hyperparameters! { AdoptHyper { lr: RATE, beta1: FRACTION, beta2: FRACTION, eps: NOT_NEGATIVE, clip: SWITCH } }
coefficients! { AdoptCoefficients { lr, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, limit } }

/// n = g/max(√v, ε) within ±(t−1)^¼,  m ← β₁m + (1−β₁)n,  w ← w − γm,  v ← β₂v + (1−β₂)g²
///
/// The first gradient only makes v = g²: the limit is 0 at t = 1, and so is the weight of the past.
#[derive(Debug)]
pub struct Adopt;

impl Rule<2> for Adopt {
    const NAME: &'static str = "adopt";
    const STATES: [State; 2] = [State::first_moment("m"), State::second_moment("v")];
    type Hyper<S: Scalar> = AdoptHyper<S>;
    type Coefficients<A: Real> = AdoptCoefficients<A>;

    fn coefficients<S: Scalar>(h: &AdoptHyper<S>, at: &Progress) -> AdoptCoefficients<S> {
        let (zero, one) = (S::constant(0.0), S::constant(1.0));
        let beta2 = S::at_first(at.t, zero, h.beta2);
        let root = (S::count(at.t) - one).sqrt().sqrt();
        AdoptCoefficients {
            lr: h.lr,
            beta1: h.beta1,
            one_minus_beta1: one - h.beta1,
            beta2,
            one_minus_beta2: one - beta2,
            eps: h.eps,
            // The largest float64 is no limit in float64, and infinite in float32.
            limit: S::at_first(at.t, zero, h.clip.switch(root, S::constant(f64::MAX))),
        }
    }

    #[inline(always)]
    fn update<A: Real>(c: &AdoptCoefficients<A>, _p: A, g: A, [m, v]: [A; 2]) -> (A, [A; 2]) {
        let n = g.divide_or_zero(v.sqrt().larger(c.eps)).larger(-c.limit).smaller(c.limit);
        let m = c.beta1 * m + c.one_minus_beta1 * n;
        (c.lr * m, [m, (c.beta2 * v + c.one_minus_beta2 * (g * g)).capped()])
    }
}
