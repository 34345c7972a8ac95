//! Gradient descent and its momentum forms.
//!
//! Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", 1986, eq. 9 (velocity form);
//! Polyak, "Some methods of speeding up the convergence of iteration methods", 1964, eq. 9 (heavy ball);
//! Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013, eq. 3-4 (Nesterov).

use super::prelude::*;
use super::{coefficients, hyperparameters};

hyperparameters! { SgdHyper { lr: RATE } }
coefficients! { SgdCoefficients { lr } }

/// w ← w − γg
#[derive(Debug)]
pub struct Sgd;

impl Rule<0> for Sgd {
    const NAME: &'static str = "sgd";
    const STATES: [State; 0] = [];
    type Hyper<S: Scalar> = SgdHyper<S>;
    type Coefficients<A: Real> = SgdCoefficients<A>;

    fn coefficients<S: Scalar>(h: &SgdHyper<S>, _at: &Progress) -> SgdCoefficients<S> {
        SgdCoefficients { lr: h.lr }
    }

    #[inline(always)]
    fn update<A: Real>(c: &SgdCoefficients<A>, _p: A, g: A, []: [A; 0]) -> (A, [A; 0]) {
        (c.lr * g, [])
    }
}

hyperparameters! {
    MomentumHyper { lr: RATE, momentum: FRACTION, dampening: NOT_NEGATIVE, average: SWITCH, dampen_first: SWITCH }
}
coefficients! { MomentumCoefficients { lr, momentum, gain } }

/// b ← μb + (1−τ)g,  w ← w − γb;  with Nesterov's look-ahead  w ← w − γ(g + μb)
///
/// The first buffer is g, undampened, as in torch, unless `dampen_first`, as in MLX; a moving average (`average`, τ = μ)
/// starts at 0 instead.
#[derive(Debug)]
pub struct Momentum<const NESTEROV: bool>;

fn momentum_coefficients<S: Scalar>(h: &MomentumHyper<S>, t: u64) -> MomentumCoefficients<S> {
    let one = S::constant(1.0);
    let gain = h.dampen_first.switch(one - h.dampening, S::at_first(t, one, one - h.dampening));
    let gain = h.average.switch(one - h.momentum, gain);
    MomentumCoefficients { lr: h.lr, momentum: h.momentum, gain }
}

impl Rule<1> for Momentum<false> {
    const NAME: &'static str = "momentum";
    const STATES: [State; 1] = [State::first_moment("b")];
    type Hyper<S: Scalar> = MomentumHyper<S>;
    type Coefficients<A: Real> = MomentumCoefficients<A>;

    fn coefficients<S: Scalar>(h: &MomentumHyper<S>, at: &Progress) -> MomentumCoefficients<S> {
        momentum_coefficients(h, at.t)
    }

    #[inline(always)]
    fn update<A: Real>(c: &MomentumCoefficients<A>, _p: A, g: A, [b]: [A; 1]) -> (A, [A; 1]) {
        let b = c.momentum * b + c.gain * g;
        (c.lr * b, [b])
    }
}

impl Rule<1> for Momentum<true> {
    const NAME: &'static str = "nesterov";
    const STATES: [State; 1] = [State::first_moment("b")];
    type Hyper<S: Scalar> = VelocityHyper<S>;
    type Coefficients<A: Real> = VelocityCoefficients<A>;

    fn coefficients<S: Scalar>(h: &VelocityHyper<S>, _at: &Progress) -> VelocityCoefficients<S> {
        VelocityCoefficients { lr: h.lr, momentum: h.momentum }
    }

    #[inline(always)]
    fn update<A: Real>(c: &VelocityCoefficients<A>, _p: A, g: A, [b]: [A; 1]) -> (A, [A; 1]) {
        let b = c.momentum * b + g;
        (c.lr * (g + c.momentum * b), [b])
    }
}

hyperparameters! { VelocityHyper { lr: RATE, momentum: FRACTION } }
coefficients! { VelocityCoefficients { lr, momentum } }

/// v ← μv − γg,  w ← w + v;  with Nesterov's look-ahead  w ← w + (μv − γg)
///
/// The learning rate lives inside the buffer: a schedule acts on the newest gradient only.
#[derive(Debug)]
pub struct Velocity<const NESTEROV: bool>;

impl<const NESTEROV: bool> Rule<1> for Velocity<NESTEROV> {
    const NAME: &'static str = if NESTEROV { "velocity_nesterov" } else { "velocity" };
    const STATES: [State; 1] = [State::first_moment("v")];
    type Hyper<S: Scalar> = VelocityHyper<S>;
    type Coefficients<A: Real> = VelocityCoefficients<A>;

    fn coefficients<S: Scalar>(h: &VelocityHyper<S>, _at: &Progress) -> VelocityCoefficients<S> {
        VelocityCoefficients { lr: h.lr, momentum: h.momentum }
    }

    #[inline(always)]
    fn update<A: Real>(c: &VelocityCoefficients<A>, _p: A, g: A, [v]: [A; 1]) -> (A, [A; 1]) {
        let step = c.lr * g;
        let v = c.momentum * v - step;
        (-if NESTEROV { c.momentum * v - step } else { v }, [v])
    }
}

coefficients! { ChainerNesterovCoefficients { lr, momentum, momentum_squared, one_plus_momentum } }

/// v ← μv − γg,  w ← w + μ²v − (1+μ)γg
///
/// Chainer's `NesterovAG`, which takes the new v where the look-ahead of w + v has the old one.
#[derive(Debug)]
pub struct ChainerNesterov;

impl Rule<1> for ChainerNesterov {
    const NAME: &'static str = "velocity_nesterov_chainer";
    const STATES: [State; 1] = [State::first_moment("v")];
    type Hyper<S: Scalar> = VelocityHyper<S>;
    type Coefficients<A: Real> = ChainerNesterovCoefficients<A>;

    fn coefficients<S: Scalar>(h: &VelocityHyper<S>, _at: &Progress) -> ChainerNesterovCoefficients<S> {
        ChainerNesterovCoefficients {
            lr: h.lr,
            momentum: h.momentum,
            momentum_squared: h.momentum * h.momentum,
            one_plus_momentum: S::constant(1.0) + h.momentum,
        }
    }

    #[inline(always)]
    fn update<A: Real>(c: &ChainerNesterovCoefficients<A>, _p: A, g: A, [v]: [A; 1]) -> (A, [A; 1]) {
        let step = c.lr * g;
        let v = c.momentum * v - step;
        (-(c.momentum_squared * v - c.one_plus_momentum * step), [v])
    }
}

/// w ← w − (γg − μ(w − w⁻)),  w⁻ the parameter before the last step
///
/// It stores w⁻ itself, so a change of w from outside counts as motion; at t = 1 there is no motion yet.
#[derive(Debug)]
pub struct HeavyBall;

impl Rule<1> for HeavyBall {
    const NAME: &'static str = "heavy_ball";
    const STATES: [State; 1] = [State::weight("previous")];
    type Hyper<S: Scalar> = VelocityHyper<S>;
    type Coefficients<A: Real> = VelocityCoefficients<A>;

    fn coefficients<S: Scalar>(h: &VelocityHyper<S>, at: &Progress) -> VelocityCoefficients<S> {
        VelocityCoefficients { lr: h.lr, momentum: S::at_first(at.t, S::constant(0.0), h.momentum) }
    }

    #[inline(always)]
    fn update<A: Real>(c: &VelocityCoefficients<A>, p: A, g: A, [previous]: [A; 1]) -> (A, [A; 1]) {
        (c.lr * g - c.momentum * (p - previous), [p])
    }
}
