//! Schedule-free descent and AdamW: gradients at a point between a fast iterate and its average take the schedule's place.
//!
//! Defazio et al., "The Road Less Scheduled", 2024, equations 3 to 5 and Algorithm 1.
//!
//! The paper's z is the iterate, x its average, and y = (1−β)z + βx, where gradients are taken, is the parameter. One state
//! is enough for both of the others: d = z − x, so that x = y − (1−β)d and z = y + βd. It is 0 before the first step.

use super::prelude::*;
use super::{coefficients, hyperparameters};

hyperparameters! {
    SgdHyper { lr: RATE, momentum: FRACTION, warmup_steps: WHOLE, weight_decay: NOT_NEGATIVE }
}
coefficients! { SgdCoefficients { rate, near, decay, weight, rest } }

/// γₜ and c: what update t counts in the average, γₜ²/Σγᵢ², in closed form for a rate that rises from γ/T to γ in T updates.
fn warm_up<S: Scalar>(lr: S, warmup_steps: S, t: u64) -> (S, S) {
    let (one, two, six) = (S::constant(1.0), S::constant(2.0), S::constant(6.0));
    let count = S::count(t);
    let risen = count.smaller(warmup_steps).named("s");
    let sum = risen * (risen + one) * (two * risen + one) / six + (count - risen) * warmup_steps * warmup_steps;
    let rate = warmup_steps.switch(lr * risen / warmup_steps, lr).named("γₜ");
    (rate, warmup_steps.switch(risen * risen / sum, one / count).named("c"))
}

/// With u the direction:  e = d − γₜu,  w ← w − ((1−β)γₜu − βc·e),  d ← (1−c)e
#[inline(always)]
fn interpolated<A: Real>(near: A, weight: A, rest: A, step: A, d: A) -> (A, A) {
    let e = d - step;
    (near * step - weight * e, rest * e)
}

/// u = g + λw,  e = d − γₜu,  w ← w − ((1−β)γₜu − βc·e),  d ← (1−c)e
#[derive(Debug)]
pub struct ScheduleFreeSgd;

impl Rule<1> for ScheduleFreeSgd {
    const NAME: &'static str = "schedule_free_sgd";
    const STATES: [State; 1] = [State::slow("d")];
    type Hyper<S: Scalar> = SgdHyper<S>;
    type Coefficients<A: Real> = SgdCoefficients<A>;

    fn coefficients<S: Scalar>(h: &SgdHyper<S>, at: &Progress) -> SgdCoefficients<S> {
        let one = S::constant(1.0);
        let (rate, c) = warm_up(h.lr, h.warmup_steps, at.t);
        SgdCoefficients {
            rate,
            near: one - h.momentum,
            decay: rate * h.weight_decay,
            weight: h.momentum * c,
            rest: one - c,
        }
    }

    #[inline(always)]
    fn update<A: Real>(c: &SgdCoefficients<A>, p: A, g: A, [d]: [A; 1]) -> (A, [A; 1]) {
        let step = c.rate * g + c.decay * p;
        let (step, d) = interpolated(c.near, c.weight, c.rest, step, d);
        (step, [d])
    }
}

hyperparameters! {
    AdamHyper {
        lr: RATE, beta1: FRACTION, beta2: FRACTION, eps: NOT_NEGATIVE, warmup_steps: WHOLE,
        weight_decay: NOT_NEGATIVE,
    }
}
coefficients! { AdamCoefficients { rate, near, decay, weight, rest, beta2, one_minus_beta2, eps } }

/// v ← β₂v + (1−β₂)g²,  u = g/(√v̂ + ε) + λw,  e = d − γₜu,  w ← w − ((1−β₁)γₜu − β₁c·e),  d ← (1−c)e
#[derive(Debug)]
pub struct ScheduleFreeAdamW;

impl Rule<2> for ScheduleFreeAdamW {
    const NAME: &'static str = "schedule_free_adamw";
    const STATES: [State; 2] = [State::slow("d"), State::second_moment("v")];
    type Hyper<S: Scalar> = AdamHyper<S>;
    type Coefficients<A: Real> = AdamCoefficients<A>;
    const PRODUCTS: &'static [&'static str] = &["beta2"];

    fn coefficients<S: Scalar>(h: &AdamHyper<S>, at: &Progress) -> AdamCoefficients<S> {
        let one = S::constant(1.0);
        let (rate, c) = warm_up(h.lr, h.warmup_steps, at.t);
        let c2 = one - h.beta2.product(at, 0);
        AdamCoefficients {
            rate: rate * c2.sqrt(),
            near: one - h.beta1,
            decay: rate * h.weight_decay,
            weight: h.beta1 * c,
            rest: one - c,
            beta2: h.beta2,
            one_minus_beta2: one - h.beta2,
            eps: h.eps * c2.sqrt(),
        }
    }

    #[inline(always)]
    fn update<A: Real>(c: &AdamCoefficients<A>, p: A, g: A, [d, v]: [A; 2]) -> (A, [A; 2]) {
        let v = (c.beta2 * v + c.one_minus_beta2 * (g * g)).capped();
        let step = c.rate * g.divide_or_zero(v.sqrt() + c.eps) + c.decay * p;
        let (step, d) = interpolated(c.near, c.weight, c.rest, step, d);
        (step, [d, v])
    }
}
