//! RAdam: Adam that divides by √v̂ only once enough squares have been seen, and by how much is rectified.
//!
//! Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", 2020, Algorithm 2; with torch.optim's ε and its
//! threshold of 5, which is 4 in the paper.

use super::prelude::*;
use super::{coefficients, hyperparameters};

hyperparameters! {
    RadamHyper {
        lr: RATE, beta1: FRACTION, beta2: FRACTION, eps: NOT_NEGATIVE, eps_hat: SWITCH, from_four: SWITCH
    }
}
coefficients! { RadamCoefficients { rate, beta1, one_minus_beta1, beta2, one_minus_beta2, adaptive, eps } }

/// m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)g²,  w ← w − γ·m̂·r·√(1−β₂ᵗ)/(√v + ε) if ρ > 5, else w − γ·m̂
///
/// Without `eps_hat` it is γ·m̂·r/(√v̂ + ε); with `from_four` the threshold is the paper's.
/// ρ and r depend on t alone, so which of the two it is was decided for all elements on the host.
#[derive(Debug)]
pub struct Radam;

impl Rule<2> for Radam {
    const NAME: &'static str = "radam";
    const STATES: [State; 2] = [State::first_moment("m"), State::second_moment("v")];
    type Hyper<S: Scalar> = RadamHyper<S>;
    type Coefficients<A: Real> = RadamCoefficients<A>;
    const PRODUCTS: &'static [&'static str] = &["beta1", "beta2"];

    fn coefficients<S: Scalar>(h: &RadamHyper<S>, at: &Progress) -> RadamCoefficients<S> {
        let (zero, one, two) = (S::constant(0.0), S::constant(1.0), S::constant(2.0));
        let four = S::constant(4.0);
        let threshold = h.from_four.switch(four, S::constant(5.0));
        let past = h.beta2.product(at, 1);
        let (c1, c2) = (one - h.beta1.product(at, 0), one - past);
        let limit = (two / (one - h.beta2) - one).named("ρ∞");
        let rho = (limit - two * S::count(at.t) * past / c2).named("ρ");
        let above = (rho - four) * (rho - two) * limit;
        let r = (above / ((limit - four) * (limit - two) * rho)).sqrt().named("r");
        RadamCoefficients {
            rate: S::select_less(threshold, rho, h.lr * r * c2.sqrt() / c1, h.lr / c1),
            beta1: h.beta1,
            one_minus_beta1: one - h.beta1,
            beta2: h.beta2,
            one_minus_beta2: one - h.beta2,
            adaptive: S::select_less(threshold, rho, one, zero).named("adaptive"),
            eps: h.eps_hat.switch(h.eps, h.eps * c2.sqrt()),
        }
    }

    #[inline(always)]
    fn update<A: Real>(c: &RadamCoefficients<A>, _p: A, g: A, [m, v]: [A; 2]) -> (A, [A; 2]) {
        let m = c.beta1 * m + c.one_minus_beta1 * g;
        let v = (c.beta2 * v + c.one_minus_beta2 * (g * g)).capped();
        let root = A::select_equal(c.adaptive, A::constant(0.0), A::constant(1.0), v.sqrt() + c.eps);
        (c.rate * m.divide_or_zero(root), [m, v])
    }
}
