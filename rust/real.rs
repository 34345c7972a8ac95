//! The number types a formula can be written over.
//!
//! [`Real`] is what an elementwise rule may do to an element: `f32` and `f64` on the CPU, [`crate::trace::Expr`] to
//! record the formula. [`Scalar`] adds what a rule may do once a step, on the host, to its hyperparameters.

use std::fmt::Debug;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// A number that an update rule can compute with, element by element.
///
/// There is no `mul_add`: a fused multiply-add rounds once where two operations round twice, so the bits would depend
/// on the instruction set.
pub trait Real:
    Copy
    + Debug
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + 'static
{
    /// The nearest number to `value`.
    fn constant(value: f64) -> Self;
    /// The largest finite number.
    fn largest() -> Self;
    /// √self, correctly rounded.
    fn sqrt(self) -> Self;
    /// |self|.
    fn abs(self) -> Self;
    /// |self| with the sign of `sign`.
    fn copysign(self, sign: Self) -> Self;
    /// `then` where `a < b`, else `otherwise` (also where one is NaN).
    fn select_less(a: Self, b: Self, then: Self, otherwise: Self) -> Self;
    /// `then` where `a == b`, else `otherwise` (also where one is NaN).
    fn select_equal(a: Self, b: Self, then: Self, otherwise: Self) -> Self;

    /// The smaller of the two; NaN if one is NaN (unlike `f32::min`, like `numpy.minimum`).
    #[inline(always)]
    fn smaller(self, other: Self) -> Self {
        Self::select_less(self, other, self, Self::select_equal(self, self, other, self))
    }

    /// The larger of the two; NaN if one is NaN (unlike `f32::max`, like `numpy.maximum`).
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        Self::select_less(other, self, self, Self::select_equal(self, self, other, self))
    }

    /// self, or the largest finite number where it has overflowed: so that a mean of squares decays again, and does not
    /// freeze its element for good.
    #[inline(always)]
    fn capped(self) -> Self {
        Self::select_less(Self::largest(), self, Self::largest(), self)
    }

    /// self / denominator, and 0 where the denominator is 0, whatever the numerator is.
    #[inline(always)]
    fn divide_or_zero(self, denominator: Self) -> Self {
        let zero = Self::constant(0.0);
        Self::select_equal(denominator, zero, zero, self / denominator)
    }

    /// ∛self of a number that is not negative, within one unit in its last place; by what every backend rounds alike.
    #[inline(always)]
    fn cube_root(self) -> Self {
        // 1/4 + 1/16 + … + 1/1024 is 1/3 but for 1/3072: within a factor of 1.3 of the root of any number.
        let mut root = self.sqrt().sqrt();
        let mut y = root;
        for _ in 0..4 {
            root = root.sqrt().sqrt();
            y = y * root;
        }
        // Newton's steps square what is left of the factor, less 1: 0.3, 0.06, 4e-3, 1e-5, 2e-10, nothing.
        for _ in 0..5 {
            y = y - (y - self / (y * y)) * Self::constant(1.0 / 3.0);
        }
        // 0 and ∞ are their own roots, where the steps make NaN.
        Self::select_equal(self, self + self, self, y)
    }

    /// self, or `other` where self is NaN: for ∞ − ∞, where the limit is known.
    #[inline(always)]
    fn or_if_nan(self, other: Self) -> Self {
        Self::select_equal(self, self, self, other)
    }

    /// −1, 0 or 1; NaN for NaN.
    #[inline(always)]
    fn sign(self) -> Self {
        let zero = Self::constant(0.0);
        let one = Self::constant(1.0).copysign(self);
        Self::select_equal(self, zero, zero, Self::select_equal(self, self, one, self))
    }
}

/// The most numbers of a rule whose products over all updates are kept.
pub const MAX_PRODUCTS: usize = 3;

/// The product of a number over all updates of a parameter: a power as long as the number is constant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Past {
    /// The number in the first `constant` updates; below 0 if it is not known: then it is that of the next update.
    pub base: f64,
    /// How many updates it was constant for.
    pub constant: u64,
    /// The product over the updates after those.
    pub rest: f64,
}

impl Past {
    /// After `t` updates with a number that is not known.
    pub(crate) fn unknown(t: u64) -> Self {
        Self { base: -1.0, constant: t, rest: 1.0 }
    }

    /// After update number `t`, in which the number was `value` and the product is multiplied by `factor`.
    pub(crate) fn after(self, t: u64, value: f64, factor: f64) -> Self {
        let same = self.base == value || self.base < 0.0 || self.constant == 0;
        if same && self.constant + 1 == t {
            return Self { base: value, constant: t, rest: 1.0 };
        }
        Self { rest: self.rest * factor, ..self }
    }
}

/// How far a parameter is: what its coefficients depend on besides the hyperparameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// The number of this update, from 1 on.
    pub t: u64,
    /// The products, this update included, in the order of [`Rule::PRODUCTS`](crate::rules::Rule::PRODUCTS).
    pub past: [Past; MAX_PRODUCTS],
    /// Whether the present number counts as that of all updates, as in other systems.
    pub current: bool,
}

impl Progress {
    /// Update number `t`, if no number has changed.
    pub(crate) fn constant(t: u64) -> Self {
        Self { t, past: [Past::unknown(t); MAX_PRODUCTS], current: false }
    }
}

/// A number that hyperparameters are made of: computed in `f64` once a step, never per element.
pub trait Scalar: Real {
    /// The product of product number `slot`, of which self is the present number, over all updates: selfᵗ while it is constant.
    ///
    /// Powers are by repeated squaring: `powf` differs between platforms.
    fn product(self, at: &Progress, slot: usize) -> Self;
    /// self to a power that need not be whole, ≥ 0: by square roots, a bit of the exponent each.
    fn raised(self, exponent: Self) -> Self;
    /// The product over i = 1, …, t of self·(1 − ½·qⁱ), for self < 1 and q = base^decay ≤ 1; `slots` are those of self and
    /// of decay. 0 once it is so small that 1 minus it is 1.
    ///
    /// A loop, for resumed runs to have the bits of unbroken ones, of at most some 2800 turns whatever t is: the product
    /// is at least halved while qⁱ is near 1, and where qⁱ is nothing beside 1 a power of self is left.
    fn warming_product(self, base: Self, decay: Self, at: &Progress, slots: [usize; 2]) -> Self;
    /// The same number, with a name for readers.
    fn named(self, name: &'static str) -> Self;
    /// t as a number.
    fn count(t: u64) -> Self;
    /// `first` at t = 1, else `later`.
    fn at_first(t: u64, first: Self, later: Self) -> Self;
    /// `on` if this switch is not 0, else `off`.
    fn switch(self, on: Self, off: Self) -> Self;
}

macro_rules! impl_real {
    ($float:ident) => {
        impl Real for $float {
            #[inline(always)]
            fn constant(value: f64) -> Self {
                value as Self
            }
            #[inline(always)]
            fn largest() -> Self {
                Self::MAX
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            #[inline(always)]
            fn abs(self) -> Self {
                self.abs()
            }
            #[inline(always)]
            fn copysign(self, sign: Self) -> Self {
                self.copysign(sign)
            }
            #[inline(always)]
            fn select_less(a: Self, b: Self, then: Self, otherwise: Self) -> Self {
                if a < b { then } else { otherwise }
            }
            #[inline(always)]
            fn select_equal(a: Self, b: Self, then: Self, otherwise: Self) -> Self {
                if a == b { then } else { otherwise }
            }
        }
    };
}

impl_real!(f32);
impl_real!(f64);

/// 2⁵³: above it every number is whole.
const MOST: f64 = 9_007_199_254_740_992.0;
/// 2⁻⁵⁴: 1 − this is 1.
const NOTHING: f64 = 1.0 / 18_014_398_509_481_984.0;

/// baseᵗ by repeated squaring, the lowest bit of t first.
fn power(base: f64, t: u64) -> f64 {
    let (mut result, mut square, mut exponent) = (1.0, base, t);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result *= square;
        }
        square *= square;
        exponent >>= 1;
    }
    result
}

/// See [`Scalar::warming_product`].
fn warming_product(beta: f64, q: f64, t: u64) -> f64 {
    let (mut result, mut past) = (1.0, 1.0);
    for i in 0..t {
        past *= q;
        if past < NOTHING {
            return result * power(beta, t - i);
        }
        result *= beta * (1.0 - 0.5 * past);
        if result < NOTHING {
            return 0.0;
        }
    }
    result
}

impl Scalar for f64 {
    fn product(self, at: &Progress, slot: usize) -> Self {
        let Past { base, constant, rest } = at.past[slot];
        if at.current || constant == at.t { power(self, at.t) } else { power(base, constant) * rest }
    }

    fn raised(self, exponent: Self) -> Self {
        let whole = if exponent < MOST { exponent as u64 } else { MOST as u64 };
        let (mut result, mut root) = (power(self, whole), self);
        let mut rest = if exponent < MOST { exponent - whole as Self } else { 0.0 };
        while rest > 0.0 {
            root = root.sqrt();
            rest += rest;
            if rest >= 1.0 {
                result *= root;
                rest -= 1.0;
            }
        }
        result
    }

    fn warming_product(self, base: Self, decay: Self, at: &Progress, slots: [usize; 2]) -> Self {
        let [of_beta, of_decay] = slots.map(|slot| at.past[slot]);
        if of_beta.constant == at.t && of_decay.constant == at.t {
            return warming_product(self, base.raised(decay), at.t);
        }
        let warmed = warming_product(1.0, base.raised(of_decay.base), of_decay.constant) * of_decay.rest;
        power(of_beta.base, of_beta.constant) * of_beta.rest * warmed
    }

    fn named(self, _name: &'static str) -> Self {
        self
    }

    fn count(t: u64) -> Self {
        t as Self
    }

    fn at_first(t: u64, first: Self, later: Self) -> Self {
        if t == 1 { first } else { later }
    }

    fn switch(self, on: Self, off: Self) -> Self {
        if self == 0.0 { off } else { on }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smaller_and_larger_propagate_nan() {
        for (a, b) in [(f32::NAN, 1.0), (1.0, f32::NAN), (f32::NAN, f32::NAN)] {
            assert!(a.smaller(b).is_nan() && a.larger(b).is_nan());
        }
        assert_eq!((1.0f32.smaller(2.0), 1.0f32.larger(2.0)), (1.0, 2.0));
        assert_eq!((2.0f64.smaller(1.0), 2.0f64.larger(1.0)), (1.0, 2.0));
    }

    #[test]
    fn a_zero_denominator_gives_zero_whatever_the_numerator() {
        for numerator in [0.0, 3.0, -3.0, f32::INFINITY, f32::NAN] {
            assert_eq!(numerator.divide_or_zero(0.0).to_bits(), 0);
            assert_eq!(numerator.divide_or_zero(-0.0).to_bits(), 0);
        }
        assert!(1.0f32.divide_or_zero(f32::NAN).is_nan());
        assert_eq!(3.0f32.divide_or_zero(2.0), 1.5);
    }

    #[test]
    fn sign_has_three_values_and_keeps_nan() {
        assert_eq!([-3.0f32, -0.0, 0.0, 2.0].map(Real::sign), [-1.0, 0.0, 0.0, 1.0]);
        assert!(Real::sign(f32::NAN).is_nan());
    }

    #[test]
    fn cube_roots_are_within_a_unit_in_the_last_place() {
        let mut worst = [0.0f64; 2];
        for i in 0..200_000 {
            // All exponents, subnormal ones too.
            let x = f64::from_bits(1 + i * (f64::MAX.to_bits() / 200_000));
            let exact = x.cbrt();
            worst[1] = worst[1].max((Real::cube_root(x) - exact).abs() / (f64::from_bits(exact.to_bits() + 1) - exact));
            let x = f32::from_bits(1 + i as u32 * (f32::MAX.to_bits() / 200_000));
            let (got, exact) = (f64::from(Real::cube_root(x)), f64::from(x).cbrt());
            let near = exact as f32;
            let unit = f64::from(f32::from_bits(near.to_bits() + 1)) - f64::from(near);
            worst[0] = worst[0].max((got - exact).abs() / unit);
        }
        // The library's own root, which f64's is compared with, is within half a unit or more.
        assert!(worst[0] < 1.0 && worst[1] <= 1.5, "{worst:?}");
        assert_eq!([8.0f32, 0.0, f32::INFINITY, 1.0].map(Real::cube_root), [2.0, 0.0, f32::INFINITY, 1.0]);
        assert!(Real::cube_root(f64::NAN).is_nan() && Real::cube_root(f64::MAX).is_finite());
    }

    #[test]
    fn raised_takes_roots_and_powers() {
        assert_eq!(2.0f64.raised(10.0), 1024.0);
        assert_eq!(16.0f64.raised(0.75), 8.0);
        assert_eq!(81.0f64.raised(1.25), 243.0);
        assert_eq!((7.0f64.raised(0.0), 0.0f64.raised(0.5), 1.0f64.raised(1e300)), (1.0, 0.0, 1.0));
        assert_eq!((0.5f64.raised(f64::INFINITY), 2.0f64.raised(1e-300)), (0.0, 1.0));
        for (base, exponent) in [(0.96, 0.004), (0.96, 3.7), (1.000_3, 0.75), (1.5, 0.3)] {
            let (base, exponent): (f64, f64) = (base, exponent);
            assert!((base.raised(exponent) / base.powf(exponent) - 1.0).abs() < 1e-14);
        }
    }

    #[test]
    fn a_warming_product_is_the_product() {
        for (beta, q) in [(0.9, 0.999_84), (0.999_9, 0.985), (0.99, 0.5), (0.5, 0.0), (0.9, 1.0), (0.0, 0.3)] {
            let (mut product, mut past): (f64, f64) = (1.0, 1.0);
            for t in 1..4000 {
                past *= q;
                product *= beta * (1.0 - 0.5 * past);
                let got = warming_product(beta, q, t);
                assert!((got - product).abs() <= 1e-13 * product + 1e-16, "{beta} {q} {t}: {got} {product}");
            }
        }
        assert_eq!(warming_product(0.9, 0.999, u64::MAX), 0.0);
    }

    #[test]
    fn power_is_exact_where_the_result_is_a_number() {
        assert_eq!(power(0.5, 40), 2f64.powi(-40));
        assert_eq!(power(3.0, 20), 3_486_784_401.0);
        assert_eq!(power(0.9, 0), 1.0);
        assert_eq!(power(0.999, u64::MAX), 0.0);
    }

    #[test]
    fn a_product_is_a_power_until_its_number_changes() {
        let mut at = Progress::constant(0);
        let mut next = |beta: f64| {
            let t = at.t + 1;
            at = Progress { t, past: at.past.map(|past| past.after(t, beta, beta)), ..at };
            beta.product(&at, 0)
        };
        assert_eq!([0.9, 0.9, 0.9].map(&mut next), [0.9, 0.9 * 0.9, 0.9 * 0.9 * 0.9]);
        assert_eq!([0.5, 0.5, 0.9].map(&mut next), [0.5, 0.25, 0.225].map(|rest| power(0.9, 3) * rest));
        assert_eq!(0.5.product(&Progress { current: true, ..at }, 0), power(0.5, 6));
        let loaded = Past::unknown(7);
        assert_eq!(loaded.after(8, 0.25, 0.25), Past { base: 0.25, constant: 8, rest: 1.0 });
    }
}
