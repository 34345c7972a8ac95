//! AdaBelief: Adam that divides by how far gradients lie from their own mean.
//!
//! Zhuang et al., "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients", 2020, Algorithm 2.

use super::prelude::*;
use super::{coefficients, hyperparameters};

hyperparameters! {
    AdaBeliefHyper { lr: RATE, beta1: FRACTION, beta2: FRACTION, eps: NOT_NEGATIVE, eps_root: NOT_NEGATIVE }
}
coefficients! { AdaBeliefCoefficients { rate, beta1, one_minus_beta1, beta2, one_minus_beta2, eps_root, eps } }

/// m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)(g−m)² + ε₀,  w ← w − γ·m̂/(√v̂ + ε)
#[derive(Debug)]
pub struct AdaBelief;

impl Rule<2> for AdaBelief {
    const NAME: &'static str = "adabelief";
    const STATES: [State; 2] = [State::first_moment("m"), State::second_moment("v")];
    type Hyper<S: Scalar> = AdaBeliefHyper<S>;
    type Coefficients<A: Real> = AdaBeliefCoefficients<A>;
    const PRODUCTS: &'static [&'static str] = &["beta1", "beta2"];

    fn coefficients<S: Scalar>(h: &AdaBeliefHyper<S>, at: &Progress) -> AdaBeliefCoefficients<S> {
        let one = S::constant(1.0);
        let c2 = one - h.beta2.product(at, 1);
        AdaBeliefCoefficients {
            rate: h.lr * c2.sqrt() / (one - h.beta1.product(at, 0)),
            beta1: h.beta1,
            one_minus_beta1: one - h.beta1,
            beta2: h.beta2,
            one_minus_beta2: one - h.beta2,
            eps_root: h.eps_root,
            eps: h.eps * c2.sqrt(),
        }
    }

    #[inline(always)]
    fn update<A: Real>(c: &AdaBeliefCoefficients<A>, _p: A, g: A, [m, v]: [A; 2]) -> (A, [A; 2]) {
        let m = c.beta1 * m + c.one_minus_beta1 * g;
        let surprise = g - m;
        let v = (c.beta2 * v + c.one_minus_beta2 * (surprise * surprise) + c.eps_root).capped();
        (c.rate * m.divide_or_zero(v.sqrt() + c.eps), [m, v])
    }
}
