//! Yogi: Adam whose second moment moves by (1−β₂)g², however far it is from g².
//!
//! Zaheer et al., "Adaptive Methods for Nonconvex Optimization", 2018, Algorithm 2, which corrects no bias.

use super::prelude::*;
use super::{coefficients, hyperparameters};

hyperparameters! {
    YogiHyper {
        lr: RATE, beta1: FRACTION, beta2: FRACTION, eps: NOT_NEGATIVE, initial: NOT_NEGATIVE, bias_correction: SWITCH
    }
}
coefficients! { YogiCoefficients { rate, start, beta1, one_minus_beta1, one_minus_beta2, eps } }

/// m ← β₁m + (1−β₁)g,  v ← v − (1−β₂)·sign(v − g²)·g²,  w ← w − γ·m/(√v + ε), or γ·m̂/(√v̂ + ε)
///
/// m and v are m₀ before the first step: they are stored as 0 and m₀ is added at t = 1.
#[derive(Debug)]
pub struct Yogi;

impl Rule<2> for Yogi {
    const NAME: &'static str = "yogi";
    const STATES: [State; 2] = [State::first_moment("m"), State::second_moment("v")];
    type Hyper<S: Scalar> = YogiHyper<S>;
    type Coefficients<A: Real> = YogiCoefficients<A>;
    const PRODUCTS: &'static [&'static str] = &["beta1", "beta2"];

    fn coefficients<S: Scalar>(h: &YogiHyper<S>, at: &Progress) -> YogiCoefficients<S> {
        let one = S::constant(1.0);
        let c1 = h.bias_correction.switch(one - h.beta1.product(at, 0), one);
        let c2 = h.bias_correction.switch(one - h.beta2.product(at, 1), one);
        YogiCoefficients {
            rate: h.lr * c2.sqrt() / c1,
            start: S::at_first(at.t, h.initial, S::constant(0.0)),
            beta1: h.beta1,
            one_minus_beta1: one - h.beta1,
            one_minus_beta2: one - h.beta2,
            eps: h.eps * c2.sqrt(),
        }
    }

    #[inline(always)]
    fn update<A: Real>(c: &YogiCoefficients<A>, _p: A, g: A, [m, v]: [A; 2]) -> (A, [A; 2]) {
        let (m, v) = (m + c.start, v + c.start);
        let m = c.beta1 * m + c.one_minus_beta1 * g;
        let square = g * g;
        // ∞ − ∞: an infinite v of an older file.
        let v = (v - c.one_minus_beta2 * ((v - square).sign() * square)).or_if_nan(v + square).capped();
        (c.rate * m.divide_or_zero(v.sqrt() + c.eps), [m, v])
    }
}
