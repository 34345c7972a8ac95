//! Rprop: a step size for each element, which grows while the gradient keeps its sign and shrinks when it changes.
//!
//! Riedmiller and Braun, "A direct adaptive method for faster backpropagation learning: the RPROP algorithm", 1993; without
//! its backtracking, as in torch.optim: iRprop⁻ of Igel and Hüsken, "Improving the Rprop Learning Algorithm", 2000.

use super::prelude::*;
use super::{coefficients, hyperparameters};

hyperparameters! {
    RpropHyper {
        lr: RATE, eta_minus: FRACTION, eta_plus: NOT_BELOW_ONE, step_min: NOT_NEGATIVE, step_max: NOT_NEGATIVE
    }
}
coefficients! { RpropCoefficients { start, eta_minus, eta_plus, step_min, step_max } }

/// s ← min(max(s·(η₊ if g·g⁻ > 0, η₋ if g·g⁻ < 0, else 1), least), most),  g ← 0 if g·g⁻ < 0,  w ← w − s·sign(g),  g⁻ ← g
///
/// s is γ before the first step: it is stored as 0 and γ is added at t = 1. The product is of the signs, for g·g⁻ can
/// underflow.
#[derive(Debug)]
pub struct Rprop;

impl Rule<2> for Rprop {
    const NAME: &'static str = "rprop";
    const STATES: [State; 2] = [State::first_moment("g_previous"), State::size("size")];
    type Hyper<S: Scalar> = RpropHyper<S>;
    type Coefficients<A: Real> = RpropCoefficients<A>;

    fn coefficients<S: Scalar>(h: &RpropHyper<S>, at: &Progress) -> RpropCoefficients<S> {
        RpropCoefficients {
            start: S::at_first(at.t, h.lr, S::constant(0.0)),
            eta_minus: h.eta_minus,
            eta_plus: h.eta_plus,
            step_min: h.step_min,
            step_max: h.step_max,
        }
    }

    #[inline(always)]
    fn update<A: Real>(c: &RpropCoefficients<A>, _p: A, g: A, [g_previous, size]: [A; 2]) -> (A, [A; 2]) {
        let (zero, one) = (A::constant(0.0), A::constant(1.0));
        let agreement = g.sign() * g_previous.sign();
        let shrunk = A::select_less(agreement, zero, c.eta_minus, one);
        let factor = A::select_less(zero, agreement, c.eta_plus, shrunk);
        let size = ((size + c.start) * factor).larger(c.step_min).smaller(c.step_max);
        let g = A::select_less(agreement, zero, zero, g);
        (size * g.sign(), [g, size])
    }
}
