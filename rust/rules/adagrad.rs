//! Adagrad: every coordinate divided by the size of its own past gradients.
//!
//! Duchi, Hazan and Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", 2011, §1.3.

use super::prelude::*;
use super::{coefficients, hyperparameters};

hyperparameters! { AdagradHyper { lr: RATE, eps: NOT_NEGATIVE, initial: NOT_NEGATIVE, eps_inside: SWITCH } }
coefficients! { AdagradCoefficients { lr, start, eps_inside, eps } }

/// v ← v + g²,  w ← w − γ·g/(√v + ε), or √(v + ε)
///
/// v is v₀ before the first step: it is stored as 0 and v₀ is added at t = 1.
#[derive(Debug)]
pub struct Adagrad;

impl Rule<1> for Adagrad {
    const NAME: &'static str = "adagrad";
    const STATES: [State; 1] = [State::second_moment("v")];
    type Hyper<S: Scalar> = AdagradHyper<S>;
    type Coefficients<A: Real> = AdagradCoefficients<A>;

    fn coefficients<S: Scalar>(h: &AdagradHyper<S>, at: &Progress) -> AdagradCoefficients<S> {
        let zero = S::constant(0.0);
        AdagradCoefficients {
            lr: h.lr,
            start: S::at_first(at.t, h.initial, zero),
            eps_inside: h.eps_inside.switch(h.eps, zero),
            eps: h.eps_inside.switch(zero, h.eps),
        }
    }

    #[inline(always)]
    fn update<A: Real>(c: &AdagradCoefficients<A>, _p: A, g: A, [v]: [A; 1]) -> (A, [A; 1]) {
        let v = (v + c.start + g * g).capped();
        (c.lr * g.divide_or_zero((v + c.eps_inside).sqrt() + c.eps), [v])
    }
}

hyperparameters! { AdagradMeanHyper { lr: RATE, eps: NOT_NEGATIVE } }
coefficients! { AdagradMeanCoefficients { lr, eps, t } }

/// v ← v + (g² − v)/t,  w ← w − γ·g/(√v + ε):  the root of the mean, not of the sum
///
/// A plain sum stalls in float32 once g² is below half an ulp of it; a running mean does not.
#[derive(Debug)]
pub struct AdagradMean;

impl Rule<1> for AdagradMean {
    const NAME: &'static str = "adagrad_mean";
    const STATES: [State; 1] = [State::second_moment("v")];
    type Hyper<S: Scalar> = AdagradMeanHyper<S>;
    type Coefficients<A: Real> = AdagradMeanCoefficients<A>;

    fn coefficients<S: Scalar>(h: &AdagradMeanHyper<S>, at: &Progress) -> AdagradMeanCoefficients<S> {
        AdagradMeanCoefficients { lr: h.lr, eps: h.eps, t: S::count(at.t) }
    }

    #[inline(always)]
    fn update<A: Real>(c: &AdagradMeanCoefficients<A>, _p: A, g: A, [v]: [A; 1]) -> (A, [A; 1]) {
        let v = (v + (g * g - v) / c.t).or_if_nan(v + g * g).capped(); // ∞ − ∞: an infinite v of an older file
        (c.lr * g.divide_or_zero(v.sqrt() + c.eps), [v])
    }
}
