//! ASGD: gradient descent with a falling rate, and the average of the parameters it passes.
//!
//! Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; the rate and the decay are those of
//! Bottou, "Large-Scale Machine Learning with Stochastic Gradient Descent", 2010, as in torch.optim.

use super::prelude::*;
use super::{coefficients, hyperparameters};

hyperparameters! {
    AsgdHyper { lr: RATE, lambd: NOT_NEGATIVE, alpha: NOT_NEGATIVE, t0: NOT_NEGATIVE, weight_decay: NOT_NEGATIVE }
}
coefficients! { AsgdCoefficients { rate, decay, weight } }

/// η = γ/(1 + κγ(t−1))^α,  δ = κη + γλ − κηγλ,  w ← w − (δw + ηg),  a ← a + (w − a)/max(1, t−1−t₀): w itself until then
///
/// 1 − δ is (1−κη)(1−γλ): the rule's own decay, after the one that all rules have.
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
        let (own, common) = (h.lambd * rate, h.lr * h.weight_decay);
        AsgdCoefficients {
            rate,
            decay: own + common - own * common,
            weight: (one / (before - h.t0).larger(one)).named("μ"),
        }
    }

    #[inline(always)]
    fn update<A: Real>(c: &AsgdCoefficients<A>, p: A, g: A, [average]: [A; 1]) -> (A, [A; 1]) {
        let step = c.decay * p + c.rate * g;
        let p = p - step;
        let mean = average + c.weight * (p - average);
        (step, [A::select_equal(c.weight, A::constant(1.0), p, mean)])
    }
}
