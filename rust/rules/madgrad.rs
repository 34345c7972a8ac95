//! MADGRAD: dual averaging of gradients over the cube root of their squares, with momentum.
//!
//! Defazio and Jelassi, "Adaptivity without Compromise: A Momentumized, Adaptive, Dual Averaged Gradient Method for
//! Stochastic Optimization", 2021, Algorithm 1.

use super::prelude::*;
use super::{coefficients, hyperparameters};

hyperparameters! { MadgradHyper { lr: RATE, momentum: FRACTION, eps: NOT_NEGATIVE, weight_decay: NOT_NEGATIVE } }
coefficients! { MadgradCoefficients { rate, one_minus_momentum, eps, first, of_past } }

/// s ← s + γ√t·g,  v ← v + γ√t·g²,  w ← w − (μγλ·w + (1−μ)(w − x₀ + s/(∛v + ε)))
///
/// x₀ is the w before the first step. With z = x₀ − s/(∛v + ε) that is μ(1−γλ)w + (1−μ)z: the old w decays, and z does not.
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
            one_minus_momentum: one - h.momentum,
            eps: h.eps,
            first: S::at_first(at.t, one, S::constant(0.0)).named("first"),
            of_past: h.momentum * (h.lr * h.weight_decay),
        }
    }

    #[inline(always)]
    fn update<A: Real>(c: &MadgradCoefficients<A>, p: A, g: A, [s, v, start]: [A; 3]) -> (A, [A; 3]) {
        let x0 = A::select_equal(c.first, A::constant(1.0), p, start);
        let s = s + c.rate * g;
        let v = (v + c.rate * (g * g)).capped();
        // Not p - z: z rounded to the last bit of p would leave nothing to round the decay by.
        let behind = (p - x0) + s.divide_or_zero(v.cube_root() + c.eps);
        (c.of_past * p + c.one_minus_momentum * behind, [s, v, x0])
    }
}
