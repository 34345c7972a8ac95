//! Adam: adaptive moments.
//!
//! Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015, Algorithm 1; the folded form is the end of §2.
//! Reddi, Kale and Kumar, "On the Convergence of Adam and Beyond", 2018, Algorithm 2 (AMSGrad).

use super::prelude::*;
use super::{coefficients, hyperparameters};

hyperparameters! {
    AdamHyper {
        lr: RATE, beta1: FRACTION, beta2: FRACTION, eps: NOT_NEGATIVE,
        bias_correction: SWITCH, eps_inside: SWITCH, eps_hat: SWITCH,
    }
}
coefficients! { AdamCoefficients { rate, beta1, one_minus_beta1, beta2, one_minus_beta2, eps_inside, eps } }

/// Both bias corrections are folded into scalars, so that an element costs one root and one division:
/// γ·m̂/(√v̂ + ε) = γ√c₂/c₁ · m/(√v + ε√c₂)  and  γ·m̂/√(v̂ + ε) = γ√c₂/c₁ · m/√(v + εc₂),  cᵢ = 1 − βᵢᵗ.
fn coefficients<S: Scalar>(h: &AdamHyper<S>, at: &Progress) -> AdamCoefficients<S> {
    let (zero, one) = (S::constant(0.0), S::constant(1.0));
    let c1 = h.bias_correction.switch(one - h.beta1.product(at, 0), one);
    let c2 = h.bias_correction.switch(one - h.beta2.product(at, 1), one);
    AdamCoefficients {
        rate: h.lr * c2.sqrt() / c1,
        beta1: h.beta1,
        one_minus_beta1: one - h.beta1,
        beta2: h.beta2,
        one_minus_beta2: one - h.beta2,
        eps_inside: h.eps_inside.switch(h.eps * c2, zero),
        eps: h.eps_inside.switch(zero, h.eps_hat.switch(h.eps, h.eps * c2.sqrt())),
    }
}

/// m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)g²,  w ← w − γ·m̂/(√v̂ + ε)
#[derive(Debug)]
pub struct Adam;

impl Rule<2> for Adam {
    const NAME: &'static str = "adam";
    const STATES: [State; 2] = [State::first_moment("m"), State::second_moment("v")];
    type Hyper<S: Scalar> = AdamHyper<S>;
    type Coefficients<A: Real> = AdamCoefficients<A>;
    const PRODUCTS: &'static [&'static str] = &["beta1", "beta2"];

    fn coefficients<S: Scalar>(h: &AdamHyper<S>, at: &Progress) -> AdamCoefficients<S> {
        coefficients(h, at)
    }

    #[inline(always)]
    fn update<A: Real>(c: &AdamCoefficients<A>, _p: A, g: A, [m, v]: [A; 2]) -> (A, [A; 2]) {
        let m = c.beta1 * m + c.one_minus_beta1 * g;
        let v = (c.beta2 * v + c.one_minus_beta2 * (g * g)).capped();
        (c.rate * m.divide_or_zero((v + c.eps_inside).sqrt() + c.eps), [m, v])
    }
}

hyperparameters! {
    AmsgradHyper {
        lr: RATE, beta1: FRACTION, beta2: FRACTION, eps: NOT_NEGATIVE,
        bias_correction: SWITCH, eps_inside: SWITCH, eps_hat: SWITCH, max_corrected: SWITCH,
    }
}
coefficients! {
    AmsgradCoefficients { rate, beta1, one_minus_beta1, beta2, one_minus_beta2, correction, eps_inside, eps }
}

/// The same with the largest v so far in the denominator, or with `max_corrected` the largest v̂: then v is corrected
/// before the comparison and not behind it.
#[derive(Debug)]
pub struct Amsgrad;

impl Rule<3> for Amsgrad {
    const NAME: &'static str = "adam_amsgrad";
    const STATES: [State; 3] = [State::first_moment("m"), State::second_moment("v"), State::second_moment("v_max")];
    type Hyper<S: Scalar> = AmsgradHyper<S>;
    type Coefficients<A: Real> = AmsgradCoefficients<A>;
    const PRODUCTS: &'static [&'static str] = &["beta1", "beta2"];

    fn coefficients<S: Scalar>(h: &AmsgradHyper<S>, at: &Progress) -> AmsgradCoefficients<S> {
        let (zero, one) = (S::constant(0.0), S::constant(1.0));
        let c1 = h.bias_correction.switch(one - h.beta1.product(at, 0), one);
        let c2 = h.bias_correction.switch(one - h.beta2.product(at, 1), one);
        let behind = h.max_corrected.switch(one, c2);
        AmsgradCoefficients {
            rate: h.lr * behind.sqrt() / c1,
            beta1: h.beta1,
            one_minus_beta1: one - h.beta1,
            beta2: h.beta2,
            one_minus_beta2: one - h.beta2,
            correction: h.max_corrected.switch(one / c2, one),
            eps_inside: h.eps_inside.switch(h.eps * behind, zero),
            eps: h.eps_inside.switch(zero, h.eps_hat.switch(h.eps, h.eps * behind.sqrt())),
        }
    }

    #[inline(always)]
    fn update<A: Real>(c: &AmsgradCoefficients<A>, _p: A, g: A, [m, v, v_max]: [A; 3]) -> (A, [A; 3]) {
        let m = c.beta1 * m + c.one_minus_beta1 * g;
        let v = (c.beta2 * v + c.one_minus_beta2 * (g * g)).capped();
        let v_max = v_max.larger((c.correction * v).capped());
        (c.rate * m.divide_or_zero((v_max + c.eps_inside).sqrt() + c.eps), [m, v, v_max])
    }
}
