//! Adan: Adam with a mean of the gradients' differences, which looks ahead without a second gradient.
//!
//! Xie et al., "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models", 2022, Algorithm 1, with β for
//! the weights of the past (1 − β in the paper) and the bias corrections of the authors' code.

use super::prelude::*;
use super::{coefficients, hyperparameters};

hyperparameters! {
    AdanHyper {
        lr: RATE, beta1: FRACTION, beta2: FRACTION, beta3: FRACTION, eps: NOT_NEGATIVE, eps_root: NOT_NEGATIVE,
        bias_correction: SWITCH, look_less: SWITCH,
    }
}
coefficients! {
    AdanCoefficients {
        fast, ahead, beta1, one_minus_beta1, beta2, of_difference, beta3, one_minus_beta3, eps_root, eps, look
    }
}

/// d = g − g⁻ (0 at t = 1),  m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)d,  n ← β₃n + (1−β₃)(g + β₂d)²,
/// w ← w − γ·(m̂ + β₂v̂)/(√(n̂ + ε₀) + ε),  g⁻ ← g
///
/// That d is 0 at first is a matter of what multiplies it: a coefficient less, or float64 does not fit into a GPU's registers.
/// With `look_less` 1−β₂ stands in the place of β₂ before d and v̂, as in optax.
#[derive(Debug)]
pub struct Adan;

impl Rule<4> for Adan {
    const NAME: &'static str = "adan";
    const STATES: [State; 4] = [
        State::first_moment("m"),
        State::first_moment("v"),
        State::second_moment("n"),
        State::first_moment("g_previous"),
    ];
    type Hyper<S: Scalar> = AdanHyper<S>;
    type Coefficients<A: Real> = AdanCoefficients<A>;
    const PRODUCTS: &'static [&'static str] = &["beta1", "beta2", "beta3"];

    fn coefficients<S: Scalar>(h: &AdanHyper<S>, at: &Progress) -> AdanCoefficients<S> {
        let (zero, one) = (S::constant(0.0), S::constant(1.0));
        let corrected = |beta: S, slot: usize| h.bias_correction.switch(one - beta.product(at, slot), one);
        let c3 = corrected(h.beta3, 2);
        let rate = h.lr * c3.sqrt();
        let look = h.look_less.switch(one - h.beta2, h.beta2);
        AdanCoefficients {
            fast: rate / corrected(h.beta1, 0),
            ahead: rate * look / corrected(h.beta2, 1),
            beta1: h.beta1,
            one_minus_beta1: one - h.beta1,
            beta2: h.beta2,
            of_difference: S::at_first(at.t, zero, one - h.beta2),
            beta3: h.beta3,
            one_minus_beta3: one - h.beta3,
            eps_root: h.eps_root * c3,
            eps: h.eps * c3.sqrt(),
            look: S::at_first(at.t, zero, look),
        }
    }

    #[inline(always)]
    fn update<A: Real>(c: &AdanCoefficients<A>, _p: A, g: A, [m, v, n, g_previous]: [A; 4]) -> (A, [A; 4]) {
        let d = g - g_previous;
        let m = c.beta1 * m + c.one_minus_beta1 * g;
        let v = c.beta2 * v + c.of_difference * d;
        let look = g + c.look * d;
        let n = (c.beta3 * n + c.one_minus_beta3 * (look * look)).capped();
        ((c.fast * m + c.ahead * v).divide_or_zero((n + c.eps_root).sqrt() + c.eps), [m, v, n, g])
    }
}
