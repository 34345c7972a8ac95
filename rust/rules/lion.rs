//! Lion: the sign of an interpolated momentum.
//!
//! Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, Algorithm 2.

use super::prelude::*;
use super::{coefficients, hyperparameters};

hyperparameters! { LionHyper { lr: RATE, beta1: FRACTION, beta2: FRACTION } }
coefficients! { LionCoefficients { lr, beta1, one_minus_beta1, beta2, one_minus_beta2 } }

/// w ← w − γ·sign(β₁m + (1−β₁)g),  m ← β₂m + (1−β₂)g
#[derive(Debug)]
pub struct Lion;

impl Rule<1> for Lion {
    const NAME: &'static str = "lion";
    const STATES: [State; 1] = [State::first_moment("m")];
    type Hyper<S: Scalar> = LionHyper<S>;
    type Coefficients<A: Real> = LionCoefficients<A>;

    fn coefficients<S: Scalar>(h: &LionHyper<S>, _at: &Progress) -> LionCoefficients<S> {
        let one = S::constant(1.0);
        LionCoefficients {
            lr: h.lr,
            beta1: h.beta1,
            one_minus_beta1: one - h.beta1,
            beta2: h.beta2,
            one_minus_beta2: one - h.beta2,
        }
    }

    #[inline(always)]
    fn update<A: Real>(c: &LionCoefficients<A>, _p: A, g: A, [m]: [A; 1]) -> (A, [A; 1]) {
        let direction = (c.beta1 * m + c.one_minus_beta1 * g).sign();
        (c.lr * direction, [c.beta2 * m + c.one_minus_beta2 * g])
    }
}
