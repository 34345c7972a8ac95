//! Adamax: Adam with the largest of the decayed gradients in place of their root mean square.
//!
//! Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015, Algorithm 2; with torch.optim's ε, added to |g|.

use super::prelude::*;
use super::{coefficients, hyperparameters};

hyperparameters! {
    AdamaxHyper {
        lr: RATE, beta1: FRACTION, beta2: FRACTION, eps: NOT_NEGATIVE, bias_correction: SWITCH, eps_outside: SWITCH
    }
}
coefficients! { AdamaxCoefficients { rate, beta1, one_minus_beta1, beta2, eps, eps_outside } }

/// m ← β₁m + (1−β₁)g,  u ← max(β₂u, |g| + ε),  w ← w − γ/(1−β₁ᵗ)·m/u
///
/// With `eps_outside` ε stands beside u in the division; the other place adds 0.
#[derive(Debug)]
pub struct Adamax;

impl Rule<2> for Adamax {
    const NAME: &'static str = "adamax";
    const STATES: [State; 2] = [State::first_moment("m"), State::size("u")];
    type Hyper<S: Scalar> = AdamaxHyper<S>;
    type Coefficients<A: Real> = AdamaxCoefficients<A>;
    const PRODUCTS: &'static [&'static str] = &["beta1"];

    fn coefficients<S: Scalar>(h: &AdamaxHyper<S>, at: &Progress) -> AdamaxCoefficients<S> {
        let (zero, one) = (S::constant(0.0), S::constant(1.0));
        AdamaxCoefficients {
            rate: h.lr / h.bias_correction.switch(one - h.beta1.product(at, 0), one),
            beta1: h.beta1,
            one_minus_beta1: one - h.beta1,
            beta2: h.beta2,
            eps: h.eps_outside.switch(zero, h.eps),
            eps_outside: h.eps_outside.switch(h.eps, zero),
        }
    }

    #[inline(always)]
    fn update<A: Real>(c: &AdamaxCoefficients<A>, _p: A, g: A, [m, u]: [A; 2]) -> (A, [A; 2]) {
        let m = c.beta1 * m + c.one_minus_beta1 * g;
        let u = (c.beta2 * u).larger(g.abs() + c.eps);
        (c.rate * m.divide_or_zero(u + c.eps_outside), [m, u])
    }
}
