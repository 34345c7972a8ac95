//! NAdam: Adam that looks ahead by one step of a momentum that warms up.
//!
//! Dozat, "Incorporating Nesterov Momentum into Adam", 2016, Algorithm 2 with the momentum schedule of its section on
//! experiments, as in torch.optim.

use super::prelude::*;
use super::{coefficients, hyperparameters};

hyperparameters! {
    NadamHyper {
        lr: RATE, beta1: FRACTION, beta2: FRACTION, eps: NOT_NEGATIVE, momentum_decay: NOT_NEGATIVE,
        constant_momentum: SWITCH,
    }
}
coefficients! { NadamCoefficients { now, ahead, beta1, one_minus_beta1, beta2, one_minus_beta2, eps } }

/// The share of β₁ that μ is in update number `count`: 1 − ½·0.96^(ψt).
fn warmed<S: Scalar>(momentum_decay: S, count: S) -> S {
    S::constant(1.0) - S::constant(0.5) * S::constant(0.96).raised(momentum_decay * count)
}

/// m ← β₁m + (1−β₁)g,  v ← β₂v + (1−β₂)g²,
/// w ← w − γ·((1−μₜ)/(1−∏μ)·g + μₜ₊₁/(1−∏μ·μₜ₊₁)·m)/(√v̂ + ε),  μₜ = β₁(1 − ½·0.96^(ψt)),  ∏μ = μ₁⋯μₜ
///
/// With `constant_momentum` μₜ is β₁ and ∏μ is β₁ᵗ. Systems that warm up keep ∏μ as a product, whatever they do to β₂.
#[derive(Debug)]
pub struct Nadam;

impl Rule<2> for Nadam {
    const NAME: &'static str = "nadam";
    const STATES: [State; 2] = [State::first_moment("m"), State::second_moment("v")];
    type Hyper<S: Scalar> = NadamHyper<S>;
    type Coefficients<A: Real> = NadamCoefficients<A>;
    const PRODUCTS: &'static [&'static str] = &["beta1", "beta2", "momentum_decay"];

    fn factor<S: Scalar>(slot: usize, value: S, t: u64) -> S {
        if slot == 2 { warmed(value, S::count(t)) } else { value }
    }

    fn coefficients<S: Scalar>(h: &NadamHyper<S>, at: &Progress) -> NadamCoefficients<S> {
        let (one, base) = (S::constant(1.0), S::constant(0.96));
        let momentum = |count: S| {
            let warming = h.beta1 * warmed(h.momentum_decay, count);
            h.constant_momentum.switch(h.beta1, warming)
        };
        let (now, next) = (momentum(S::count(at.t)).named("μ"), momentum(S::count(at.t) + one).named("μ₊"));
        let warming = h.beta1.warming_product(base, h.momentum_decay, at, [0, 2]);
        let product = h.constant_momentum.switch(h.beta1.product(at, 0), warming).named("∏μ");
        let c2 = one - h.beta2.product(at, 1);
        let rate = h.lr * c2.sqrt();
        NadamCoefficients {
            now: rate * (one - now) / (one - product),
            ahead: rate * next / (one - product * next),
            beta1: h.beta1,
            one_minus_beta1: one - h.beta1,
            beta2: h.beta2,
            one_minus_beta2: one - h.beta2,
            eps: h.eps * c2.sqrt(),
        }
    }

    #[inline(always)]
    fn update<A: Real>(c: &NadamCoefficients<A>, _p: A, g: A, [m, v]: [A; 2]) -> (A, [A; 2]) {
        let m = c.beta1 * m + c.one_minus_beta1 * g;
        let v = (c.beta2 * v + c.one_minus_beta2 * (g * g)).capped();
        ((c.now * g + c.ahead * m).divide_or_zero(v.sqrt() + c.eps), [m, v])
    }
}
