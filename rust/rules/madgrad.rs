//! MADGRAD: dual averaging of gradients over the cube root of their squares, with momentum.
//!
//! Defazio and Jelassi, "Adaptivity without Compromise: A Momentumized, Adaptive, Dual Averaged Gradient Method for
//! Stochastic Optimization", 2021, Algorithm 1.

use super::prelude::*;
use super::{coefficients, hyperparameters};

hyperparameters! { MadgradHyper { lr: RATE, momentum: FRACTION, eps: NOT_NEGATIVE } }
coefficients! { MadgradCoefficients { rate, momentum, one_minus_momentum, eps, first } }

/// s ← s + γ√t·g,  v ← v + γ√t·g²,  w ← μw + (1−μ)(x₀ − s/(∛v + ε)),  x₀ the parameter before the first step
#[derive(Debug)]
pub struct Madgrad;

impl Rule<3> for Madgrad {
    const NAME: &'static str = "madgrad";
    const STATES: [State; 3] = [State::slow("g_sum"), State::second_moment("v"), State::weight("start")];
    type Hyper<S: Scalar> = MadgradHyper<S>;
    type Coefficients<A: Real> = MadgradCoefficients<A>;

    fn coefficients<S: Scalar>(h: &MadgradHyper<S>, at: &Progress) -> MadgradCoefficients<S> {
        let one = S::constant(1.0);
        MadgradCoefficients {
            rate: (h.lr * S::count(at.t).sqrt()).named("γₜ"),
            momentum: h.momentum,
            one_minus_momentum: one - h.momentum,
            eps: h.eps,
            first: S::at_first(at.t, one, S::constant(0.0)).named("first"),
        }
    }

    #[inline(always)]
    fn update<A: Real>(c: &MadgradCoefficients<A>, p: A, g: A, [s, v, start]: [A; 3]) -> (A, [A; 3]) {
        let x0 = A::select_equal(c.first, A::constant(1.0), p, start);
        let s = s + c.rate * g;
        let v = v + c.rate * (g * g);
        let z = x0 - s.divide_or_zero(v.cube_root() + c.eps);
        (c.momentum * p + c.one_minus_momentum * z, [s, v, x0])
    }
}
