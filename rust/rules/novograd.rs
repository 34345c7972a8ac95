//! `NovoGrad`: gradients over a running norm of their tensor, then momentum.
//!
//! Ginsburg et al., "Stochastic Gradient Methods with Layer-wise Adaptive Moments for Training of Deep Networks", 2019,
//! Algorithm 1.

use super::prelude::*;
use super::{Layerwise, Norms, coefficients, hyperparameters};

hyperparameters! {
    NovoGradHyper { lr: RATE, beta1: FRACTION, beta2: FRACTION, eps: NOT_NEGATIVE, weight_decay: NOT_NEGATIVE }
}
coefficients! { NovoGradCoefficients { lr, beta1, denominator, weight_decay } }

/// v ← β₂v + (1−β₂)‖g‖², first v = ‖g‖²,  m ← β₁m + (g/(√v + ε) + λw),  w ← w − γm;  v is one number of the tensor
#[derive(Debug)]
pub struct NovoGrad;

impl Rule<1> for NovoGrad {
    const NAME: &'static str = "novograd";
    const STATES: [State; 1] = [State::first_moment("m")];
    type Hyper<S: Scalar> = NovoGradHyper<S>;
    type Coefficients<A: Real> = NovoGradCoefficients<A>;

    fn coefficients<S: Scalar>(h: &NovoGradHyper<S>, at: &Progress) -> NovoGradCoefficients<S> {
        Self::adapted(h, at, &Norms::unknown())
    }

    #[inline(always)]
    fn update<A: Real>(c: &NovoGradCoefficients<A>, p: A, g: A, [m]: [A; 1]) -> (A, [A; 1]) {
        let m = c.beta1 * m + (g.divide_or_zero(c.denominator) + c.weight_decay * p);
        (c.lr * m, [m])
    }
}

impl Layerwise<1> for NovoGrad {
    const MEASURED: &'static str = "g";
    const ALL_STATES: &'static [State] = &[Self::STATES[0], State::scalar("v")];

    #[inline(always)]
    fn measured<A: Real>(_c: &NovoGradCoefficients<A>, _p: A, g: A, _state: [A; 1]) -> A {
        g
    }

    fn scalar<S: Scalar>(h: &NovoGradHyper<S>, t: u64, norms: &Norms<S>) -> S {
        let square = norms.measured * norms.measured;
        S::at_first(t, square, h.beta2 * norms.scalar + (S::constant(1.0) - h.beta2) * square).capped()
    }

    fn adapted<S: Scalar>(h: &NovoGradHyper<S>, _at: &Progress, norms: &Norms<S>) -> NovoGradCoefficients<S> {
        NovoGradCoefficients {
            lr: h.lr,
            beta1: h.beta1,
            denominator: norms.scalar.sqrt() + h.eps,
            weight_decay: h.weight_decay,
        }
    }
}
