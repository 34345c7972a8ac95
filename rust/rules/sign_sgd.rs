//! SignSGD and Signum: every element moves by γ, in the direction of its gradient's or its momentum's sign.
//!
//! Bernstein, Wang, Azizzadenesheli and Anandkumar, "signSGD: Compressed Optimisation for Non-Convex Problems", 2018,
//! Algorithms 1 and 2.

use super::prelude::*;
use super::{coefficients, hyperparameters};

hyperparameters! { SignSgdHyper { lr: RATE } }
coefficients! { SignSgdCoefficients { lr } }

/// w ← w − γ·sign(g)
#[derive(Debug)]
pub struct SignSgd;

impl Rule<0> for SignSgd {
    const NAME: &'static str = "sign_sgd";
    const STATES: [State; 0] = [];
    type Hyper<S: Scalar> = SignSgdHyper<S>;
    type Coefficients<A: Real> = SignSgdCoefficients<A>;

    fn coefficients<S: Scalar>(h: &SignSgdHyper<S>, _at: &Progress) -> SignSgdCoefficients<S> {
        SignSgdCoefficients { lr: h.lr }
    }

    #[inline(always)]
    fn update<A: Real>(c: &SignSgdCoefficients<A>, _p: A, g: A, []: [A; 0]) -> (A, [A; 0]) {
        (c.lr * g.sign(), [])
    }
}

hyperparameters! { SignumHyper { lr: RATE, momentum: FRACTION } }
coefficients! { SignumCoefficients { lr, momentum, one_minus_momentum } }

/// m ← μm + (1−μ)g,  w ← w − γ·sign(m)
#[derive(Debug)]
pub struct Signum;

impl Rule<1> for Signum {
    const NAME: &'static str = "signum";
    const STATES: [State; 1] = [State::first_moment("m")];
    type Hyper<S: Scalar> = SignumHyper<S>;
    type Coefficients<A: Real> = SignumCoefficients<A>;

    fn coefficients<S: Scalar>(h: &SignumHyper<S>, _at: &Progress) -> SignumCoefficients<S> {
        SignumCoefficients { lr: h.lr, momentum: h.momentum, one_minus_momentum: S::constant(1.0) - h.momentum }
    }

    #[inline(always)]
    fn update<A: Real>(c: &SignumCoefficients<A>, _p: A, g: A, [m]: [A; 1]) -> (A, [A; 1]) {
        let m = c.momentum * m + c.one_minus_momentum * g;
        (c.lr * m.sign(), [m])
    }
}
