//! Adadelta: each gradient scaled by the root mean square of past updates over that of past gradients.
//!
//! Zeiler, "ADADELTA: An Adaptive Learning Rate Method", 2012, Algorithm 1; with torch.optim's γ, which is 1 in the paper.

use super::prelude::*;
use super::{coefficients, hyperparameters};

hyperparameters! { AdadeltaHyper { lr: RATE, rho: FRACTION, eps: NOT_NEGATIVE } }
coefficients! { AdadeltaCoefficients { lr, rho, one_minus_rho, eps } }

/// v ← ρv + (1−ρ)g²,  d = √(u + ε)/√(v + ε)·g,  u ← ρu + (1−ρ)d²,  w ← w − γd
#[derive(Debug)]
pub struct Adadelta;

impl Rule<2> for Adadelta {
    const NAME: &'static str = "adadelta";
    const STATES: [State; 2] = [State::second_moment("v"), State::second_moment("u")];
    type Hyper<S: Scalar> = AdadeltaHyper<S>;
    type Coefficients<A: Real> = AdadeltaCoefficients<A>;

    fn coefficients<S: Scalar>(h: &AdadeltaHyper<S>, _at: &Progress) -> AdadeltaCoefficients<S> {
        AdadeltaCoefficients { lr: h.lr, rho: h.rho, one_minus_rho: S::constant(1.0) - h.rho, eps: h.eps }
    }

    #[inline(always)]
    fn update<A: Real>(c: &AdadeltaCoefficients<A>, _p: A, g: A, [v, u]: [A; 2]) -> (A, [A; 2]) {
        let v = (c.rho * v + c.one_minus_rho * (g * g)).capped();
        let d = (u + c.eps).sqrt().divide_or_zero((v + c.eps).sqrt()) * g;
        let u = (c.rho * u + c.one_minus_rho * (d * d)).capped();
        (c.lr * d, [v, u])
    }
}
