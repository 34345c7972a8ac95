//! RMSprop: each gradient divided by a running root mean square of its past values.
//!
//! Hinton, "Neural Networks for Machine Learning", lecture 6e, 2012; centered: Graves, "Generating Sequences With
//! Recurrent Neural Networks", 2013, eq. 38-45.

use super::prelude::*;
use super::{coefficients, hyperparameters};

hyperparameters! {
    RmsPropHyper { lr: RATE, decay: FRACTION, eps: NOT_NEGATIVE, eps_inside: SWITCH, first_square: SWITCH }
}
hyperparameters! {
    MomentumHyper {
        lr: RATE, decay: FRACTION, eps: NOT_NEGATIVE, eps_inside: SWITCH, first_square: SWITCH, momentum: FRACTION,
        lr_inside: SWITCH,
    }
}
hyperparameters! {
    MomentumBeforeHyper {
        lr: RATE, decay: FRACTION, eps: NOT_NEGATIVE, eps_inside: SWITCH, first_square: SWITCH, momentum: FRACTION
    }
}
coefficients! { RmsPropCoefficients { lr, decay, one_minus_decay, eps_inside, eps } }
coefficients! { MomentumCoefficients { lr, decay, one_minus_decay, eps_inside, eps, momentum, inner } }
coefficients! { MomentumBeforeCoefficients { lr, decay, one_minus_decay, eps_inside, eps, momentum } }

/// What the five share: ε stands inside or outside the root, the other place holds 0; at t = 1 the past weighs
/// nothing if `first_square`.
fn mean<S: Scalar>(lr: S, decay: S, eps: S, inside: S, first_square: S, t: u64) -> RmsPropCoefficients<S> {
    let (zero, one) = (S::constant(0.0), S::constant(1.0));
    let decay = first_square.switch(S::at_first(t, zero, decay), decay);
    RmsPropCoefficients {
        lr,
        decay,
        one_minus_decay: one - decay,
        eps_inside: inside.switch(eps, zero),
        eps: inside.switch(zero, eps),
    }
}

/// γ multiplies the buffer, or with `lr_inside` what goes into it: the other place multiplies by 1, which changes no bit.
fn with_momentum<S: Scalar>(h: &MomentumHyper<S>, t: u64) -> MomentumCoefficients<S> {
    let one = S::constant(1.0);
    let RmsPropCoefficients { lr, decay, one_minus_decay, eps_inside, eps } =
        mean(h.lr, h.decay, h.eps, h.eps_inside, h.first_square, t);
    MomentumCoefficients {
        lr: h.lr_inside.switch(one, lr),
        decay,
        one_minus_decay,
        eps_inside,
        eps,
        momentum: h.momentum,
        inner: h.lr_inside.switch(lr, one),
    }
}

/// v − a²: rounding can take it below 0, so it is cut off there. Where a² overflows it is v, lest the step be g/ε.
#[inline(always)]
fn variance<A: Real>(v: A, a: A) -> A {
    let square = a * a;
    A::select_less(A::largest(), square, v, v - square).larger(A::constant(0.0))
}

/// v ← βv + (1−β)g²,  w ← w − γ·g/(√(v + ε) or √v + ε)
#[derive(Debug)]
pub struct RmsProp;

impl Rule<1> for RmsProp {
    const NAME: &'static str = "rmsprop";
    const STATES: [State; 1] = [State::second_moment("v")];
    type Hyper<S: Scalar> = RmsPropHyper<S>;
    type Coefficients<A: Real> = RmsPropCoefficients<A>;

    fn coefficients<S: Scalar>(h: &RmsPropHyper<S>, at: &Progress) -> RmsPropCoefficients<S> {
        mean(h.lr, h.decay, h.eps, h.eps_inside, h.first_square, at.t)
    }

    #[inline(always)]
    fn update<A: Real>(c: &RmsPropCoefficients<A>, _p: A, g: A, [v]: [A; 1]) -> (A, [A; 1]) {
        let v = (c.decay * v + c.one_minus_decay * (g * g)).capped();
        (c.lr * g.divide_or_zero((v + c.eps_inside).sqrt() + c.eps), [v])
    }
}

/// The same with the variance v − a² in place of v, a ← βa + (1−β)g
#[derive(Debug)]
pub struct Centered;

impl Rule<2> for Centered {
    const NAME: &'static str = "rmsprop_centered";
    const STATES: [State; 2] = [State::second_moment("v"), State::first_moment("a")];
    type Hyper<S: Scalar> = RmsPropHyper<S>;
    type Coefficients<A: Real> = RmsPropCoefficients<A>;

    fn coefficients<S: Scalar>(h: &RmsPropHyper<S>, at: &Progress) -> RmsPropCoefficients<S> {
        mean(h.lr, h.decay, h.eps, h.eps_inside, h.first_square, at.t)
    }

    #[inline(always)]
    fn update<A: Real>(c: &RmsPropCoefficients<A>, _p: A, g: A, [v, a]: [A; 2]) -> (A, [A; 2]) {
        let v = (c.decay * v + c.one_minus_decay * (g * g)).capped();
        let a = c.decay * a + c.one_minus_decay * g;
        let variance = variance(v, a);
        (c.lr * g.divide_or_zero((variance + c.eps_inside).sqrt() + c.eps), [v, a])
    }
}

/// RMSprop, then momentum on the normalised gradient:  b ← μb + g/(√v + ε),  w ← w − γb,
/// or with `lr_inside`  b ← μb + γ·g/(√v + ε),  w ← w − b
#[derive(Debug)]
pub struct WithMomentum;

impl Rule<2> for WithMomentum {
    const NAME: &'static str = "rmsprop_momentum";
    const STATES: [State; 2] = [State::second_moment("v"), State::first_moment("b")];
    type Hyper<S: Scalar> = MomentumHyper<S>;
    type Coefficients<A: Real> = MomentumCoefficients<A>;

    fn coefficients<S: Scalar>(h: &MomentumHyper<S>, at: &Progress) -> MomentumCoefficients<S> {
        with_momentum(h, at.t)
    }

    #[inline(always)]
    fn update<A: Real>(c: &MomentumCoefficients<A>, _p: A, g: A, [v, b]: [A; 2]) -> (A, [A; 2]) {
        let v = (c.decay * v + c.one_minus_decay * (g * g)).capped();
        let b = c.momentum * b + c.inner * g.divide_or_zero((v + c.eps_inside).sqrt() + c.eps);
        (c.lr * b, [v, b])
    }
}

/// Centered, then momentum on the normalised gradient
#[derive(Debug)]
pub struct CenteredWithMomentum;

impl Rule<3> for CenteredWithMomentum {
    const NAME: &'static str = "rmsprop_centered_momentum";
    const STATES: [State; 3] = [State::second_moment("v"), State::first_moment("a"), State::first_moment("b")];
    type Hyper<S: Scalar> = MomentumHyper<S>;
    type Coefficients<A: Real> = MomentumCoefficients<A>;

    fn coefficients<S: Scalar>(h: &MomentumHyper<S>, at: &Progress) -> MomentumCoefficients<S> {
        with_momentum(h, at.t)
    }

    #[inline(always)]
    fn update<A: Real>(c: &MomentumCoefficients<A>, _p: A, g: A, [v, a, b]: [A; 3]) -> (A, [A; 3]) {
        let v = (c.decay * v + c.one_minus_decay * (g * g)).capped();
        let a = c.decay * a + c.one_minus_decay * g;
        let variance = variance(v, a);
        let b = c.momentum * b + c.inner * g.divide_or_zero((variance + c.eps_inside).sqrt() + c.eps);
        (c.lr * b, [v, a, b])
    }
}

/// Momentum first, then the root mean square of the raw gradients:  m ← μm + g,  w ← w − γ·m/(√v + ε)
#[derive(Debug)]
pub struct MomentumBefore;

impl Rule<2> for MomentumBefore {
    const NAME: &'static str = "rmsprop_momentum_before";
    const STATES: [State; 2] = [State::second_moment("v"), State::first_moment("m")];
    type Hyper<S: Scalar> = MomentumBeforeHyper<S>;
    type Coefficients<A: Real> = MomentumBeforeCoefficients<A>;

    fn coefficients<S: Scalar>(h: &MomentumBeforeHyper<S>, at: &Progress) -> MomentumBeforeCoefficients<S> {
        let RmsPropCoefficients { lr, decay, one_minus_decay, eps_inside, eps } =
            mean(h.lr, h.decay, h.eps, h.eps_inside, h.first_square, at.t);
        MomentumBeforeCoefficients { lr, decay, one_minus_decay, eps_inside, eps, momentum: h.momentum }
    }

    #[inline(always)]
    fn update<A: Real>(c: &MomentumBeforeCoefficients<A>, _p: A, g: A, [v, m]: [A; 2]) -> (A, [A; 2]) {
        let v = (c.decay * v + c.one_minus_decay * (g * g)).capped();
        let m = c.momentum * m + g;
        (c.lr * m.divide_or_zero((v + c.eps_inside).sqrt() + c.eps), [v, m])
    }
}
