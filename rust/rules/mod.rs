//! The update rules: one file each, and the registry that everything else finds them through.
//!
//! A rule says which step one element makes. Types, threads, instruction sets, strides, CUDA and C are not its business.

pub mod adabelief;
pub mod adadelta;
pub mod adagrad;
pub mod adam;
pub mod adamax;
pub mod adan;
pub mod ademamix;
pub mod adopt;
pub mod asgd;
pub mod lamb;
pub mod lars;
pub mod lion;
pub mod madgrad;
pub mod nadam;
pub mod novograd;
pub mod radam;
pub mod rmsprop;
pub mod rprop;
pub mod schedule_free;
pub mod sgd;
pub mod sign_sgd;
pub mod yogi;

use crate::element::Dtype;
use crate::real::{MAX_PRODUCTS, Progress, Real, Scalar};
use crate::reduce::Rare;
use crate::step::{self, Gauge, RareGauge, Sweep};
use crate::trace::{self, Trace};
use std::fmt::Debug;

/// What a rule's file needs.
pub(crate) mod prelude {
    pub(crate) use super::{FRACTION, NOT_BELOW_ONE, NOT_NEGATIVE, RATE, Rule, SWITCH, State, WHOLE};
    pub(crate) use crate::real::{Progress, Real, Scalar};
}

/// An update rule with `N` state arrays.
pub trait Rule<const N: usize>: 'static {
    /// The name it is chosen by.
    const NAME: &'static str;
    /// Its state arrays, all zeros before the first step.
    const STATES: [State; N];
    /// What the user sets, in this order.
    type Hyper<S: Scalar>: Hyperparameters<S>;
    /// What an element needs, computed once a step.
    type Coefficients<A: Real>: Fields<A>;
    /// The hyperparameters whose products over all updates correct a bias.
    const PRODUCTS: &'static [&'static str] = &[];

    /// What update number `t` multiplies product number `slot` by, of which `value` is the present number.
    fn factor<S: Scalar>(_slot: usize, value: S, _t: u64) -> S {
        value
    }

    /// The coefficients of update number `at.t` = 1, 2, … of a parameter: in f64, on the host, rounded once.
    fn coefficients<S: Scalar>(h: &Self::Hyper<S>, at: &Progress) -> Self::Coefficients<S>;

    /// The step that one element makes, w ← w − s, and its new states.
    fn update<A: Real>(c: &Self::Coefficients<A>, p: A, g: A, state: [A; N]) -> (A, [A; N]);
}

/// A rule whose coefficients depend on norms of the whole tensor: [`crate::step`] runs it in two passes.
///
/// The first measures, and changes nothing; `update` is the second, and computes again what was measured. That costs
/// less than to store what the first has made and to read it back. Such a rule takes the decay itself: what is measured
/// must be what is stepped by.
pub trait Layerwise<const N: usize>: Rule<N> {
    /// What the second norm is of, in the formula: `"g"`, or `"u"`, which it then defines.
    const MEASURED: &'static str;
    /// All that is kept: the state arrays, then one number of the whole tensor, if the rule keeps one.
    const ALL_STATES: &'static [State] = &Self::STATES;
    /// The hyperparameters that are in the gradients' unit, for rules whose first coefficient is a ratio of the norms:
    /// with those and the gradients in another unit the step is the same, and the ratio another number.
    const OF_GRADIENT: &'static [&'static str] = &[];

    /// What the second norm is of, of one element; by coefficients that know no norms yet.
    fn measured<A: Real>(c: &Self::Coefficients<A>, p: A, g: A, state: [A; N]) -> A;

    /// The number of the whole tensor after update `t`, in f64, on the host.
    fn scalar<S: Scalar>(_h: &Self::Hyper<S>, _t: u64, norms: &Norms<S>) -> S {
        norms.scalar
    }

    /// The coefficients of update number `at.t`: in f64, on the host, rounded once; `norms.scalar` is the new one.
    fn adapted<S: Scalar>(h: &Self::Hyper<S>, at: &Progress, norms: &Norms<S>) -> Self::Coefficients<S>;
}

/// What is known of a whole tensor.
#[derive(Clone, Copy, Debug)]
pub struct Norms<S> {
    /// ‖w‖, of the parameter before the step.
    pub parameter: S,
    /// The norm of what is measured.
    pub measured: S,
    /// The number that the rule keeps; 0 without one.
    pub scalar: S,
}

impl<S: Scalar> Norms<S> {
    /// Before anything is measured: stands where no norm is read.
    pub(crate) fn unknown() -> Self {
        let zero = S::constant(0.0);
        Self { parameter: zero, measured: zero, scalar: zero }
    }

    /// A ratio of the two norms, or 1 where one of them is 0: a tensor of zeros could never leave 0.
    pub(crate) fn one_if_one_is_0(&self, ratio: S) -> S {
        S::select_equal(self.parameter.smaller(self.measured), S::constant(0.0), S::constant(1.0), ratio)
    }
}

/// A struct of numbers that can be built and read by position, made by [`coefficients!`] and [`hyperparameters!`].
pub trait Fields<A>: Copy + Debug {
    /// The fields' names, in order.
    const NAMES: &'static [&'static str];
    /// The struct whose field number i is `f(i)`.
    fn from_fn(f: impl FnMut(usize) -> A) -> Self;
    /// Visits the fields in order.
    fn each(&self, f: impl FnMut(usize, A));
}

/// The hyperparameters of a rule: fields, each with the range of its values.
pub trait Hyperparameters<S>: Fields<S> {
    /// In the order of the fields.
    const RANGES: &'static [Range];
}

/// The values that a hyperparameter may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// 0 ≤ x < ∞: a learning rate, ε, a decay.
    NotNegative,
    /// 0 ≤ x < 1: the weight of the past.
    Fraction,
    /// 1 ≤ x < ∞: a growth.
    NotBelowOne,
    /// 0, 1, 2, … up to 2⁵³: a count.
    Whole,
    /// 0 or 1.
    Switch,
    /// Any: of no rule, but of a caller who checks it in another system's words.
    Finite,
}

pub(crate) const RATE: Range = Range::NotNegative;
pub(crate) const NOT_NEGATIVE: Range = Range::NotNegative;
pub(crate) const FRACTION: Range = Range::Fraction;
pub(crate) const NOT_BELOW_ONE: Range = Range::NotBelowOne;
pub(crate) const WHOLE: Range = Range::Whole;
pub(crate) const SWITCH: Range = Range::Switch;

impl Range {
    /// Whether `x` lies in it; NaN never does.
    pub fn contains(self, x: f64) -> bool {
        match self {
            Self::NotNegative => (0.0..f64::INFINITY).contains(&x),
            Self::Fraction => (0.0..1.0).contains(&x),
            Self::NotBelowOne => (1.0..f64::INFINITY).contains(&x),
            Self::Whole => (0.0..=9_007_199_254_740_992.0).contains(&x) && x.fract() == 0.0,
            Self::Switch => x == 0.0 || x == 1.0,
            Self::Finite => x.is_finite(),
        }
    }

    /// How an error message says it.
    pub fn describe(self) -> &'static str {
        match self {
            Self::NotNegative => "a finite number >= 0",
            Self::Fraction => "a number in [0, 1)",
            Self::NotBelowOne => "a finite number >= 1",
            Self::Whole => "a whole number >= 0",
            Self::Switch => "0 or 1",
            Self::Finite => "a finite number",
        }
    }
}

/// One state array of a rule, and what kind of number it holds: that decides how it may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// The name under which it is saved.
    pub name: &'static str,
    /// What it holds.
    pub moment: Moment,
}

/// What a state array holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Means of gradients: signed.
    First,
    /// Sums of gradients or of steps, or means over thousands: signed, and exact, for a step changes little of them.
    Slow,
    /// Sums or means of squared gradients: never negative, and infinite once |g| > √(largest finite number).
    Second,
    /// Sizes of gradients or of steps: never negative.
    Size,
    /// A copy of the parameter: must be exact.
    Weight,
    /// One number of the whole tensor, in float64: never negative.
    Scalar,
}

/// In how many bytes the states of float32 arithmetic are kept, those that need not be exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// In the type that is computed in.
    #[default]
    Full,
    /// bfloat16.
    Bfloat16,
    /// Eight-bit codes, [`crate::codec`].
    EightBit,
}

impl State {
    /// How it is kept, and its shape, of a parameter of these.
    pub fn layout(self, precision: Precision, dtype: Dtype, shape: &[usize]) -> (Dtype, &[usize]) {
        let kept = match (self.moment, precision) {
            (Moment::Scalar, _) => return (Dtype::F64, &[]),
            (Moment::Weight | Moment::Slow, _) | (_, Precision::Full) => dtype.compute(),
            (_, Precision::Bfloat16) => Dtype::Bf16Random,
            (Moment::First, Precision::EightBit) => Dtype::Signed8,
            (Moment::Second | Moment::Size, Precision::EightBit) => Dtype::Unsigned8,
        };
        (kept, shape)
    }

    pub(crate) const fn first_moment(name: &'static str) -> Self {
        Self { name, moment: Moment::First }
    }
    pub(crate) const fn slow(name: &'static str) -> Self {
        Self { name, moment: Moment::Slow }
    }
    pub(crate) const fn second_moment(name: &'static str) -> Self {
        Self { name, moment: Moment::Second }
    }
    pub(crate) const fn size(name: &'static str) -> Self {
        Self { name, moment: Moment::Size }
    }
    pub(crate) const fn weight(name: &'static str) -> Self {
        Self { name, moment: Moment::Weight }
    }
    pub(crate) const fn scalar(name: &'static str) -> Self {
        Self { name, moment: Moment::Scalar }
    }
}

macro_rules! fields {
    ($(#[$attribute:meta])* $name:ident { $($field:ident),* $(,)? }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug)]
        #[expect(missing_docs, reason = "the fields are the symbols of the formula")]
        pub struct $name<A> { $(pub $field: A),* }

        impl<A: crate::real::Real> crate::rules::Fields<A> for $name<A> {
            const NAMES: &'static [&'static str] = &[$(stringify!($field)),*];

            #[inline(always)]
            fn from_fn(mut f: impl FnMut(usize) -> A) -> Self {
                let mut i = 0..;
                Self { $($field: f(i.next().unwrap_or_default())),* }
            }

            #[inline(always)]
            fn each(&self, mut f: impl FnMut(usize, A)) {
                let mut i = 0..;
                $(f(i.next().unwrap_or_default(), self.$field);)*
            }
        }
    };
}

/// What an element needs: a struct generic over the number type.
macro_rules! coefficients {
    ($name:ident { $($field:ident),* $(,)? }) => {
        $crate::rules::fields! { #[doc = "Computed once a step."] $name { $($field),* } }
    };
}

/// What the user sets: a struct generic over the number type, and the range of each field.
macro_rules! hyperparameters {
    ($name:ident { $($field:ident: $range:expr),* $(,)? }) => {
        $crate::rules::fields! { #[doc = "Set by the user."] $name { $($field),* } }

        impl<S: crate::real::Scalar> crate::rules::Hyperparameters<S> for $name<S> {
            const RANGES: &'static [crate::rules::Range] = &[$($range),*];
        }
    };
}

pub(crate) use {coefficients, fields, hyperparameters};

/// The most coefficients that a rule may have.
pub const MAX_COEFFICIENTS: usize = 11;
/// The most state arrays that a rule may have.
pub const MAX_STATES: usize = 4;

/// The coefficients of one rule at one (group, t), in f64.
pub type CoefficientRow = [f64; MAX_COEFFICIENTS];

/// A rule with its types erased: what the registry holds.
#[derive(Debug)]
pub struct Entry {
    /// The name it is chosen by.
    pub name: &'static str,
    /// The names of its hyperparameters, in order.
    pub hyperparameters: &'static [&'static str],
    /// Their ranges, in the same order.
    pub ranges: &'static [Range],
    /// Its state arrays.
    pub states: &'static [State],
    /// The names of its coefficients, in order.
    pub coefficient_names: &'static [&'static str],
    /// The hyperparameters whose products over all updates correct a bias.
    pub products: &'static [&'static str],
    /// What an update multiplies one of these products by.
    pub(crate) factor: fn(slot: usize, value: f64, t: u64) -> f64,
    /// The coefficients of an update.
    pub coefficients: fn(hyper: &[f64], at: &Progress) -> CoefficientRow,
    /// The loop over float32 arithmetic.
    pub(crate) sweep_f32: Sweep,
    /// The loop over float64 arithmetic.
    pub(crate) sweep_f64: Sweep,
    /// What comes before it, of rules with norms of each tensor.
    pub(crate) layerwise: Option<Measuring>,
}

/// A first pass over each tensor, with its types erased.
#[derive(Debug)]
pub(crate) struct Measuring {
    /// What is measured, in the formula.
    pub(crate) measured: &'static str,
    /// The sums of squares of a block, in float32 arithmetic.
    pub(crate) gauge_f32: Gauge,
    /// The same in float64 arithmetic.
    pub(crate) gauge_f64: Gauge,
    /// What is asked of a block where the squares of float64 have overflowed or underflowed.
    pub(crate) gauge_rare: RareGauge,
    /// The coefficients of an update with the norms, and the new number of the tensor.
    pub(crate) adapted: Adapted,
    /// Whether each hyperparameter is in the gradients' unit, if the ratio of the norms is the first coefficient.
    pub(crate) of_gradient: fn(i: usize) -> bool,
    /// Whether there are such.
    pub(crate) has_unit: bool,
}

type Adapted = fn(hyper: &[f64], at: &Progress, norms: Norms<f64>) -> (CoefficientRow, f64);

impl Entry {
    const fn of<R: Rule<N>, const N: usize>() -> Self {
        assert!(N <= MAX_STATES, "raise MAX_STATES");
        assert!(R::Coefficients::<f64>::NAMES.len() <= MAX_COEFFICIENTS, "raise MAX_COEFFICIENTS");
        assert!(R::PRODUCTS.len() <= MAX_PRODUCTS, "raise MAX_PRODUCTS");
        Self {
            name: R::NAME,
            hyperparameters: R::Hyper::<f64>::NAMES,
            ranges: R::Hyper::<f64>::RANGES,
            states: &R::STATES,
            coefficient_names: R::Coefficients::<f64>::NAMES,
            products: R::PRODUCTS,
            factor: R::factor::<f64>,
            coefficients: coefficient_row::<R, N>,
            sweep_f32: step::sweep::<R, f32, N>,
            sweep_f64: step::sweep::<R, f64, N>,
            layerwise: None,
        }
    }

    const fn of_layerwise<R: Layerwise<N>, const N: usize>() -> Self {
        assert!(R::ALL_STATES.len() <= MAX_STATES, "raise MAX_STATES");
        let measuring = Measuring {
            measured: R::MEASURED,
            gauge_f32: step::gauge::<R, f32, N>,
            gauge_f64: step::gauge::<R, f64, N>,
            gauge_rare: step::gauge_as::<R, f64, Rare, N>,
            adapted: adapted_row::<R, N>,
            of_gradient: |i| R::OF_GRADIENT.contains(&R::Hyper::<f64>::NAMES[i]),
            has_unit: !R::OF_GRADIENT.is_empty(),
        };
        Self { states: R::ALL_STATES, layerwise: Some(measuring), ..Self::of::<R, N>() }
    }

    /// The states that are as large as the parameter; behind them may stand one number.
    pub(crate) fn state_arrays(&self) -> &'static [State] {
        let arrays = self.states.len() - usize::from(self.keeps_a_number());
        &self.states[..arrays]
    }

    /// Whether the last of its states is one number of the whole tensor.
    pub(crate) fn keeps_a_number(&self) -> bool {
        self.states.last().is_some_and(|state| state.moment == Moment::Scalar)
    }

    /// The names of the norms that its coefficients depend on: none of most rules.
    pub fn norms(&self) -> Option<[&'static str; 2]> {
        self.layerwise.as_ref().map(|layerwise| trace::norm_names(layerwise.measured))
    }

    /// The formula with the coefficients as symbols: what CUDA needs.
    pub fn trace(&self) -> Trace {
        (self.traces().of_coefficients)()
    }

    /// The formula with these hyperparameters' symbols, switches set, and the decay in it: what a reader wants. NaN says that
    /// one changes.
    pub fn trace_configured(&self, hyper: &[f64], decay: trace::Decay) -> Trace {
        (self.traces().of_hyperparameters)(hyper, decay)
    }

    fn traces(&self) -> &'static Traces {
        let place = REGISTRY.iter().position(|entry| entry.name == self.name);
        &TRACES[place.expect("every entry is made for the registry")]
    }

    /// Whether decoupled decay is a part of the rule's own step, because a norm, an average or a state depends on it.
    pub fn decays_itself(&self) -> bool {
        self.hyperparameters.contains(&"weight_decay")
    }

    /// Whether it squares gradients, so that a state is infinite for ever after one |g| > √(largest finite number).
    pub fn squares_gradients(&self) -> bool {
        self.states.iter().any(|state| state.moment == Moment::Second)
    }
}

fn coefficient_row<R: Rule<N>, const N: usize>(hyper: &[f64], at: &Progress) -> CoefficientRow {
    let mut row = [0.0; MAX_COEFFICIENTS];
    R::coefficients(&R::Hyper::<f64>::from_fn(|i| hyper[i]), at).each(|i, value| row[i] = value);
    row
}

fn adapted_row<R: Layerwise<N>, const N: usize>(
    hyper: &[f64],
    at: &Progress,
    norms: Norms<f64>,
) -> (CoefficientRow, f64) {
    let hyper = R::Hyper::<f64>::from_fn(|i| hyper[i]);
    let scalar = R::scalar(&hyper, at.t, &norms);
    let mut row = [0.0; MAX_COEFFICIENTS];
    R::adapted(&hyper, at, &Norms { scalar, ..norms }).each(|i, value| row[i] = value);
    (row, scalar)
}

/// A rule as text.
struct Traces {
    of_coefficients: fn() -> Trace,
    of_hyperparameters: fn(&[f64], trace::Decay) -> Trace,
}

macro_rules! entry {
    ($rule:ty, $states:literal) => {
        Entry::of::<$rule, $states>()
    };
    ($rule:ty, $states:literal, layerwise) => {
        Entry::of_layerwise::<$rule, $states>()
    };
}

macro_rules! traces {
    ($rule:ty, $states:literal) => {
        Traces {
            of_coefficients: trace::of_coefficients::<$rule, $states>,
            of_hyperparameters: trace::of_hyperparameters::<$rule, $states>,
        }
    };
    ($rule:ty, $states:literal, layerwise) => {
        Traces {
            of_coefficients: trace::layerwise_of_coefficients::<$rule, $states>,
            of_hyperparameters: trace::layerwise_of_hyperparameters::<$rule, $states>,
        }
    };
}

macro_rules! registry {
    ($($rule:ty: $states:literal $($driver:ident)?),* $(,)?) => {
        /// Every rule, by name. A new rule is its file and one line here.
        pub static REGISTRY: &[Entry] = &[$(entry!($rule, $states $(, $driver)?)),*];

        /// In the same order; apart, so that a library which prints nothing (the C library) has none of it.
        static TRACES: &[Traces] = &[$(traces!($rule, $states $(, $driver)?)),*];
    };
}

registry! {
    sgd::Sgd: 0,
    sgd::Momentum<false>: 1,
    sgd::Momentum<true>: 1,
    sgd::Velocity<false>: 1,
    sgd::Velocity<true>: 1,
    sgd::ChainerNesterov: 1,
    sgd::HeavyBall: 1,
    adagrad::Adagrad: 1,
    adagrad::AdagradMean: 1,
    rmsprop::RmsProp: 1,
    rmsprop::Centered: 2,
    rmsprop::WithMomentum: 2,
    rmsprop::CenteredWithMomentum: 3,
    rmsprop::MomentumBefore: 2,
    adam::Adam: 2,
    adam::Amsgrad: 3,
    lion::Lion: 1,
    sign_sgd::SignSgd: 0,
    sign_sgd::Signum: 1,
    adamax::Adamax: 2,
    adadelta::Adadelta: 2,
    nadam::Nadam: 2,
    radam::Radam: 2,
    rprop::Rprop: 2,
    adabelief::AdaBelief: 2,
    yogi::Yogi: 2,
    ademamix::AdEmaMix: 3,
    adopt::Adopt: 2,
    adan::Adan: 4,
    asgd::Asgd: 1,
    schedule_free::ScheduleFreeSgd: 1,
    schedule_free::ScheduleFreeAdamW: 2,
    lars::Lars: 1 layerwise,
    lamb::Lamb: 2 layerwise,
    novograd::NovoGrad: 1 layerwise,
    madgrad::Madgrad: 3,
}

/// The rule of that name.
pub fn find(name: &str) -> Option<&'static Entry> {
    REGISTRY.iter().find(|entry| entry.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for entry in REGISTRY {
            assert!(std::ptr::eq(find(entry.name).unwrap(), entry));
            assert_eq!(entry.hyperparameters.len(), entry.ranges.len());
            assert_eq!(entry.hyperparameters[0], "lr", "{}: the learning rate comes first", entry.name);
        }
        assert!(find("adamw2").is_none());
    }

    #[test]
    fn a_rule_with_norms_takes_the_decay_itself() {
        for entry in REGISTRY.iter().filter(|entry| entry.layerwise.is_some()) {
            assert!(entry.decays_itself(), "{}: its norms are those of what is stepped by", entry.name);
        }
    }

    #[test]
    fn ranges_refuse_what_is_not_a_number() {
        for range in [Range::NotNegative, Range::Fraction, Range::NotBelowOne, Range::Whole, Range::Switch] {
            assert_eq!(range.contains(0.0), range != Range::NotBelowOne);
            for bad in [f64::NAN, f64::INFINITY, -1e-300] {
                assert!(!range.contains(bad), "{range:?} takes {bad}");
            }
        }
        assert!(Range::Whole.contains(7.0) && !Range::Whole.contains(0.5));
        assert!(Range::Finite.contains(-1e300) && !Range::Finite.contains(f64::NAN));
        assert!(!Range::Fraction.contains(1.0) && Range::NotNegative.contains(1.0) && Range::NotBelowOne.contains(1.0));
    }
}
