//! ASGD: gradient descent with a falling rate, and the average of the parameters it passes.
//!
//! Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; the rate and the decay are those of
//! Bottou, "Large-Scale Machine Learning with Stochastic Gradient Descent", 2010, as in torch.optim.

use super::prelude::*;
use super::{coefficients, hyperparameters};

hyperparameters! {
    AsgdHyper { lr: RATE, lambd: NOT_NEGATIVE, alpha: NOT_NEGATIVE, t0: NOT_NEGATIVE }
}
coefficients! { AsgdCoefficients { rate, keep, weight } }

/// η = γ/(1 + κγ(t−1))^α,  w ← (1−κη)w − ηg,  a ← a + (w − a)/max(1, t−1−t₀): w itself until then
#[derive(Debug)]
pub struct Asgd;

impl Rule<1> for Asgd {
    const NAME: &'static str = "asgd";
    const STATES: [State; 1] = [State::weight("average")];
    type Hyper<S: Scalar> = AsgdHyper<S>;
    type Coefficients<A: Real> = AsgdCoefficients<A>;

    fn coefficients<S: Scalar>(h: &AsgdHyper<S>, at: &Progress) -> AsgdCoefficients<S> {
        let one = S::constant(1.0);
        let before = S::count(at.t) - one;
        let rate = (h.lr / (one + h.lambd * h.lr * before).raised(h.alpha)).named("η");
        AsgdCoefficients { rate, keep: one - h.lambd * rate, weight: (one / (before - h.t0).larger(one)).named("μ") }
    }

    #[inline(always)]
    fn update<A: Real>(c: &AsgdCoefficients<A>, p: A, g: A, [average]: [A; 1]) -> (A, [A; 1]) {
        let p = c.keep * p - c.rate * g;
        let mean = average + c.weight * (p - average);
        (p, [A::select_equal(c.weight, A::constant(1.0), p, mean)])
    }
}
