//! A rule as text: the same `update` that runs on floats, run on [`Expr`], records its expression.
//!
//! [`Trace::cuda`] prints it as a struct of CUDA functions, for the kernels in `python/ravine/cuda`. [`Trace::formula`] prints it
//! for people, with the hyperparameters as symbols. The node set is small and total on purpose: anything that can be
//! recorded can be printed in every language.

use crate::real::{Progress, Real, Scalar};
use crate::rules::{Fields, Hyperparameters, Layerwise, Norms, Range, Rule};
use std::cell::{Cell, RefCell};
use std::fmt::Write;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// One number of the formula: an index into this thread's tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Expr(usize);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Node {
    Input(&'static str),
    Constant(f64),
    /// See [`Real::largest`].
    Largest,
    Unary(Unary, Expr),
    Binary(Binary, Expr, Expr),
    Select(Compare, [Expr; 4]),
    /// See [`Scalar::product`]; on the host only.
    Product(Expr, usize),
    /// base^exponent; on the host only.
    Raised(Expr, Expr),
    /// See [`Scalar::warming_product`], with base^decay in the middle; on the host only.
    WarmingProduct([Expr; 3], [usize; 2]),
    /// What readers call the number; on the host only.
    Named(&'static str, Expr),
    /// The count of updates; on the host only.
    Count,
    /// The first at t = 1, then the second; on the host only.
    AtFirst(Expr, Expr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unary {
    Negate,
    Sqrt,
    Abs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Binary {
    Add,
    Subtract,
    Multiply,
    Divide,
    CopySign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compare {
    Less,
    Equal,
}

thread_local! {
    static TAPE: RefCell<Vec<Node>> = const { RefCell::new(Vec::new()) };
    /// Whether terms that a hyperparameter of 0 switches off are left out: for readers only, since 0·x is not always 0.
    static FOLDING: Cell<bool> = const { Cell::new(false) };
}

/// Equal subexpressions share a node: what is computed once is printed once.
#[inline(never)] // or every operator of every rule has a copy
fn record(node: Node) -> Expr {
    TAPE.with_borrow_mut(|tape| {
        Expr(tape.iter().position(|known| *known == node).unwrap_or_else(|| {
            tape.push(node);
            tape.len() - 1
        }))
    })
}

fn constant_of(x: Expr) -> Option<f64> {
    TAPE.with_borrow(|tape| match tape[x.0] {
        Node::Constant(value) => Some(value),
        _ => None,
    })
}

#[inline(never)]
fn binary(op: Binary, a: Expr, b: Expr) -> Expr {
    if !FOLDING.get() {
        return record(Node::Binary(op, a, b));
    }
    match (op, constant_of(a), constant_of(b)) {
        (Binary::Add | Binary::Subtract, _, Some(0.0)) => a,
        (Binary::Add, Some(0.0), _) => b,
        (Binary::Multiply | Binary::Divide, _, Some(1.0)) => a,
        (Binary::Multiply, Some(1.0), _) => b,
        (Binary::Multiply | Binary::Divide, Some(0.0), _) => a,
        (Binary::Multiply, _, Some(0.0)) => b,
        _ => match (op, negated(b)) {
            (Binary::Add, Some(b)) => record(Node::Binary(Binary::Subtract, a, b)),
            (Binary::Subtract, Some(b)) => record(Node::Binary(Binary::Add, a, b)),
            _ => record(Node::Binary(op, a, b)),
        },
    }
}

/// What this is the negative of, if it was written so.
fn negated(x: Expr) -> Option<Expr> {
    TAPE.with_borrow(|tape| match tape[x.0] {
        Node::Unary(Unary::Negate, a) => Some(a),
        _ => None,
    })
}

macro_rules! operator {
    ($trait:ident, $method:ident) => {
        impl $trait for Expr {
            type Output = Self;
            fn $method(self, other: Self) -> Self {
                binary(operator!(@ $trait), self, other)
            }
        }
    };
    (@ Add) => { Binary::Add };
    (@ Sub) => { Binary::Subtract };
    (@ Mul) => { Binary::Multiply };
    (@ Div) => { Binary::Divide };
}

operator!(Add, add);
operator!(Sub, sub);
operator!(Mul, mul);
operator!(Div, div);

impl Neg for Expr {
    type Output = Self;
    fn neg(self) -> Self {
        record(Node::Unary(Unary::Negate, self))
    }
}

impl Real for Expr {
    fn constant(value: f64) -> Self {
        record(Node::Constant(value))
    }
    fn largest() -> Self {
        record(Node::Largest)
    }
    fn sqrt(self) -> Self {
        if constant_of(self) == Some(1.0) { self } else { record(Node::Unary(Unary::Sqrt, self)) }
    }
    fn abs(self) -> Self {
        record(Node::Unary(Unary::Abs, self))
    }
    fn copysign(self, sign: Self) -> Self {
        record(Node::Binary(Binary::CopySign, self, sign))
    }
    fn select_less(a: Self, b: Self, then: Self, otherwise: Self) -> Self {
        record(Node::Select(Compare::Less, [a, b, then, otherwise]))
    }
    fn select_equal(a: Self, b: Self, then: Self, otherwise: Self) -> Self {
        record(Node::Select(Compare::Equal, [a, b, then, otherwise]))
    }
}

impl Scalar for Expr {
    fn product(self, _at: &Progress, slot: usize) -> Self {
        if constant_of(self) == Some(0.0) { self } else { record(Node::Product(self, slot)) }
    }
    fn raised(self, exponent: Self) -> Self {
        record(Node::Raised(self, exponent))
    }
    fn warming_product(self, base: Self, decay: Self, _at: &Progress, slots: [usize; 2]) -> Self {
        let q = base.raised(decay);
        if constant_of(self) == Some(0.0) { self } else { record(Node::WarmingProduct([self, q, base], slots)) }
    }
    fn named(self, name: &'static str) -> Self {
        let plain = TAPE.with_borrow(|tape| matches!(tape[self.0], Node::Input(_) | Node::Constant(_)));
        if plain { self } else { record(Node::Named(name, self)) }
    }
    fn count(_t: u64) -> Self {
        record(Node::Count)
    }
    fn at_first(_t: u64, first: Self, later: Self) -> Self {
        if first == later { first } else { record(Node::AtFirst(first, later)) }
    }
    fn switch(self, on: Self, off: Self) -> Self {
        match constant_of(self) {
            Some(value) => {
                if value == 0.0 {
                    off
                } else {
                    on
                }
            }
            None => Self::select_equal(self, Self::constant(0.0), off, on),
        }
    }
}

/// A recorded rule.
#[derive(Debug)]
pub struct Trace {
    name: &'static str,
    states: Vec<&'static str>,
    coefficients: &'static [&'static str],
    hyperparameters: &'static [&'static str],
    /// How the coefficients come from the hyperparameters and t.
    host: (Vec<Node>, Vec<Expr>),
    /// The hyperparameters whose products are kept, and how what each is multiplied by comes from `value` and t.
    products: &'static [&'static str],
    factors: (Vec<Node>, Vec<Expr>),
    /// The hyperparameters that change from update to update, for readers.
    changing: Vec<&'static str>,
    tape: Vec<Node>,
    /// The step; for readers, the new parameter.
    outcome: Expr,
    new_states: Vec<Expr>,
    layerwise: Option<Measured>,
}

/// What a rule with norms of each tensor has besides.
#[derive(Debug)]
struct Measured {
    /// What is measured, and its expression.
    name: &'static str,
    value: Expr,
    /// The name of the number of the whole tensor, if the rule keeps one.
    kept: Option<&'static str>,
    /// Its new value: on a tape of its own; for readers, on that of the rule.
    scalar: (Vec<Node>, Expr),
    /// The hyperparameters that are in the gradients' unit.
    of_gradient: &'static [&'static str],
}

impl Measured {
    /// The number of the whole tensor and its new value, for readers.
    fn number(&self) -> Option<(&'static str, Expr)> {
        self.kept.map(|name| (name, self.scalar.1))
    }
}

/// The names of ‖w‖ and of the norm of what is measured.
pub(crate) fn norm_names(measured: &str) -> [&'static str; 2] {
    ["norm_w", if measured == "g" { "norm_g" } else { "norm_u" }]
}

fn input(name: &'static str) -> Expr {
    record(Node::Input(name))
}

/// Hyperparameters as inputs.
fn hyper_inputs<R: Rule<N>, const N: usize>() -> R::Hyper<Expr> {
    R::Hyper::<Expr>::from_fn(|i| input(R::Hyper::<Expr>::NAMES[i]))
}

/// Coefficients as inputs.
fn coefficient_inputs<R: Rule<N>, const N: usize>() -> R::Coefficients<Expr> {
    R::Coefficients::from_fn(|i| input(<R::Coefficients<Expr> as Fields<Expr>>::NAMES[i]))
}

/// Hyperparameters as inputs, and the switches among them set.
fn configured<R: Rule<N>, const N: usize>(values: &[f64]) -> R::Hyper<Expr> {
    R::Hyper::<Expr>::from_fn(|i| match <R::Hyper<Expr> as Hyperparameters<Expr>>::RANGES[i] {
        Range::Switch => Expr::constant(values[i]),
        // A momentum or a decay of exactly 0 switches its term off, and the reader wants to see that.
        _ if values[i] == 0.0 && i > 0 => Expr::constant(0.0),
        _ => input(<R::Hyper<Expr> as Fields<Expr>>::NAMES[i]),
    })
}

/// What of a tape is computed on the host: these coefficients.
fn host<R: Rule<N>, const N: usize>(coefficients: &R::Coefficients<Expr>) -> (Vec<Node>, Vec<Expr>) {
    let mut values = Vec::new();
    coefficients.each(|_, value| values.push(value));
    (TAPE.take(), values)
}

fn trace<R: Rule<N>, const N: usize>(
    host: (Vec<Node>, Vec<Expr>),
    coefficients: impl FnOnce() -> R::Coefficients<Expr>,
    outcome: impl FnOnce(Expr, Expr) -> Expr,
    layerwise: impl FnOnce(&R::Coefficients<Expr>, Expr, Expr, [Expr; N]) -> Option<Measured>,
) -> Trace {
    let factors = (0..R::PRODUCTS.len()).map(|slot| R::factor(slot, input("value"), 2)).collect();
    let factors = (TAPE.take(), factors);
    let inputs = R::STATES.map(|state| input(state.name));
    let (p, g) = (input("p"), input("g"));
    let coefficients = coefficients();
    let (step, new_states) = R::update(&coefficients, p, g, inputs);
    let outcome = outcome(p, step);
    let layerwise = layerwise(&coefficients, p, g, inputs);
    Trace {
        name: R::NAME,
        states: R::STATES.iter().map(|state| state.name).collect(),
        coefficients: R::Coefficients::<Expr>::NAMES,
        hyperparameters: R::Hyper::<Expr>::NAMES,
        host,
        products: R::PRODUCTS,
        factors,
        changing: Vec::new(),
        tape: TAPE.take(),
        outcome,
        new_states: new_states.to_vec(),
        layerwise,
    }
}

/// The rule with its coefficients as inputs.
pub(crate) fn of_coefficients<R: Rule<N>, const N: usize>() -> Trace {
    TAPE.with_borrow_mut(Vec::clear);
    let host = host::<R, N>(&R::coefficients(&hyper_inputs::<R, N>(), &Progress::constant(2)));
    trace::<R, N>(host, coefficient_inputs::<R, N>, |_, step| step, |_, _, _, _| None)
}

/// The decoupled decay of the old parameter that is added to the step, for readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decay {
    /// None, or within the rule, or of the new parameter.
    Elsewhere,
    /// γλ·w.
    Scaled,
    /// λ·w.
    Unscaled,
}

impl Decay {
    fn apply(self, p: Expr, step: Expr) -> Expr {
        let part = match self {
            Self::Elsewhere => return p - step,
            Self::Scaled => input("lr") * input("weight_decay"),
            Self::Unscaled => input("weight_decay"),
        };
        p - (part * p + step)
    }
}

/// The rule with its hyperparameters as inputs, and the switches among them set; NaN for those that change.
pub(crate) fn of_hyperparameters<R: Rule<N>, const N: usize>(values: &[f64], decay: Decay) -> Trace {
    TAPE.with_borrow_mut(Vec::clear);
    FOLDING.set(true);
    let coefficients = || R::coefficients(&configured::<R, N>(values), &Progress::constant(2));
    let outcome = |p, step| decay.apply(p, step);
    let trace = trace::<R, N>((Vec::new(), Vec::new()), coefficients, outcome, |_, _, _, _| None);
    FOLDING.set(false);
    Trace { changing: changing::<R, N>(values), ..trace }
}

/// The hyperparameters that are not a number.
fn changing<R: Rule<N>, const N: usize>(values: &[f64]) -> Vec<&'static str> {
    let names = <R::Hyper<Expr> as Fields<Expr>>::NAMES;
    names.iter().zip(values).filter(|(_, value)| value.is_nan()).map(|(name, _)| *name).collect()
}

/// Norms as inputs, and the number of the whole tensor.
fn norm_inputs<R: Layerwise<N>, const N: usize>() -> Norms<Expr> {
    let [parameter, measured] = norm_names(R::MEASURED).map(input);
    let scalar = R::ALL_STATES.get(N).map_or_else(|| Expr::constant(0.0), |state| input(state.name));
    Norms { parameter, measured, scalar }
}

/// As [`of_coefficients`], of a rule with norms of each tensor.
pub(crate) fn layerwise_of_coefficients<R: Layerwise<N>, const N: usize>() -> Trace {
    TAPE.with_borrow_mut(Vec::clear);
    let scalar = R::scalar(&hyper_inputs::<R, N>(), 2, &norm_inputs::<R, N>());
    let of_host = (TAPE.take(), scalar);
    let host = host::<R, N>(&R::adapted(&hyper_inputs::<R, N>(), &Progress::constant(2), &norm_inputs::<R, N>()));
    let measured = |coefficients: &_, p, g, state| Some(measured::<R, N>(coefficients, p, g, state, of_host));
    trace::<R, N>(host, coefficient_inputs::<R, N>, |_, step| step, measured)
}

/// As [`of_hyperparameters`], of a rule with norms of each tensor.
pub(crate) fn layerwise_of_hyperparameters<R: Layerwise<N>, const N: usize>(values: &[f64], decay: Decay) -> Trace {
    TAPE.with_borrow_mut(Vec::clear);
    FOLDING.set(true);
    let scalar = || R::scalar(&configured::<R, N>(values), 2, &norm_inputs::<R, N>());
    let norms = || Norms { scalar: scalar(), ..norm_inputs::<R, N>() };
    let coefficients = || R::adapted(&configured::<R, N>(values), &Progress::constant(2), &norms());
    let outcome = |p, step| decay.apply(p, step);
    let trace = trace::<R, N>((Vec::new(), Vec::new()), coefficients, outcome, |coefficients, p, g, state| {
        Some(measured::<R, N>(coefficients, p, g, state, (Vec::new(), scalar())))
    });
    FOLDING.set(false);
    Trace { changing: changing::<R, N>(values), ..trace }
}

fn measured<R: Layerwise<N>, const N: usize>(
    coefficients: &R::Coefficients<Expr>,
    p: Expr,
    g: Expr,
    state: [Expr; N],
    scalar: (Vec<Node>, Expr),
) -> Measured {
    Measured {
        name: R::MEASURED,
        value: R::measured(coefficients, p, g, state),
        kept: R::ALL_STATES.get(N).map(|state| state.name),
        scalar,
        of_gradient: R::OF_GRADIENT,
    }
}

/// How a reader writes a name: γ for lr.
pub fn symbol(name: &str) -> &str {
    match name {
        "lr" => "γ",
        "beta1" => "β₁",
        "beta2" => "β₂",
        "beta3" => "β₃",
        "rho" => "ρ",
        "alpha" => "α",
        "eta_minus" => "η₋",
        "eta_plus" => "η₊",
        "step_min" => "s_min",
        "step_max" => "s_max",
        "momentum_decay" => "ψ",
        "lambd" => "κ",
        "t0" => "t₀",
        "warmup_steps" => "T",
        "average" => "a",
        "decay" => "β",
        "momentum" => "μ",
        "dampening" => "τ",
        "eps" => "ε",
        "eps_root" => "ε₀",
        "initial" => "v₀",
        "eps1" => "ε₁",
        "eps2" => "ε₂",
        "beta2_decay" => "δ",
        "ns_steps" => "n",
        "ns_a" => "a₁",
        "ns_b" => "a₃",
        "ns_c" => "a₅",
        "weight_decay" => "λ",
        "l2" => "λ₂",
        "trust_coefficient" => "η",
        "norm_w" => "‖w‖",
        "norm_g" => "‖g‖",
        "norm_u" => "‖u‖",
        "p" => "w",
        "v_max" => "v̄",
        "previous" => "w⁻",
        "start" => "x₀",
        "g_sum" => "s",
        "g_previous" => "g⁻",
        "size" => "s",
        other => other,
    }
}

impl Trace {
    /// The rule as CUDA C++: how its coefficients come from the hyperparameters, and what happens to one element.
    ///
    /// One operation a line, in the order of evaluation, so that nothing can be reassociated or contracted by reading.
    pub fn cuda(&self) -> String {
        let Self { name, coefficients, hyperparameters, host: (tape, values), .. } = self;
        let (hyper, fields) = (hyperparameters.join(", "), coefficients.join(", "));
        let rounded = coefficients.iter().map(|name| format!("A(c.{name})")).collect::<Vec<_>>().join(", ");
        let of_host = Printer { tape, number: "double", fields: hyperparameters, object: "h" };
        let computed = values.iter().map(|x| of_host.operand(*x)).collect::<Vec<_>>().join(", ");
        let of_element = Printer { tape: &self.tape, number: "A", fields: coefficients, object: "c" };
        let outputs: Vec<Expr> = self.new_states.iter().copied().chain([self.outcome]).collect();
        let bound: Vec<String> =
            self.states.iter().enumerate().map(|(k, state)| format!("&{state} = s[{k}]")).collect();
        let bound = if bound.is_empty() { String::new() } else { format!("        A {};\n", bound.join(", ")) };
        let assigned: String =
            self.new_states.iter().zip(&self.states).map(|(x, name)| format!("        {name} = x{};\n", x.0)).collect();
        let step = of_element.operand(self.outcome); // before a state that it may be is overwritten
        let (prepared, updated) = (of_host.statements(values, false), of_element.statements(&outputs, true));
        let count = self.states.len();
        let norms = self.norm_arguments().map(|arguments| arguments.map(|name| format!(", const double {name} = 0.0")));
        let norms = norms.map_or_else(String::new, |arguments| arguments.concat());
        let (measured, products) = (self.cuda_of_measured(), self.cuda_of_products());
        format!(
            "struct {name} {{
    static constexpr unsigned STATES = {count};
    struct Hyper {{ double {hyper}; }};
    template <typename A> struct Coefficients {{ A {fields}; }};

{products}    static __device__ Coefficients<double> coefficients(const Hyper &h, const Progress &at{norms}) {{
        const u64 t = at.t;
{prepared}        return {{{computed}}};
    }}

    template <typename A> static __device__ Coefficients<A> rounded(const Coefficients<double> &c) {{
        return {{{rounded}}};
    }}

    // The step, to be subtracted.
    template <typename A>
    static __device__ __forceinline__ A update(const Coefficients<A> &c, const A p, const A g, A *s) {{
{bound}{updated}        const A step = {step};
{assigned}        return step;
    }}
{measured}}};
"
        )
    }

    /// What the host's numbers depend on besides, of a rule with norms of each tensor.
    fn norm_arguments(&self) -> Option<[&'static str; 3]> {
        self.layerwise.as_ref().map(|measured| {
            let [parameter, other] = norm_names(measured.name);
            [parameter, other, measured.kept.unwrap_or("scalar")]
        })
    }

    /// The numbers whose products are kept, as CUDA C++.
    fn cuda_of_products(&self) -> String {
        let (Self { products, .. }, (tape, factors)) = (self, &self.factors);
        let printer = Printer { tape, number: "double", fields: &[], object: "" };
        let choice = |values: Vec<String>| {
            let last = values.last().cloned().unwrap_or_else(|| "0.0".to_owned());
            values.iter().enumerate().rev().skip(1).fold(last, |others, (slot, value)| {
                if *value == others { others } else { format!("k == {slot} ? {value} : {others}") }
            })
        };
        let (count, statements) = (products.len(), printer.statements(factors, false));
        let values = choice(products.iter().map(|name| format!("h.{name}")).collect());
        let factors = choice(factors.iter().map(|factor| printer.operand(*factor)).collect());
        format!(
            "    // How many numbers have products that are kept; number k, and what update t multiplies its product by.
    static constexpr unsigned PRODUCTS = {count};
    static __device__ double value(const Hyper &h, const unsigned k) {{ return {values}; }}
    static __device__ double factor(const unsigned k, const double value, const u64 t) {{
{statements}        return {factors};
    }}

"
        )
    }

    /// What a rule with norms of each tensor has besides, as CUDA C++.
    fn cuda_of_measured(&self) -> String {
        let Some((measured, arguments)) = self.layerwise.as_ref().zip(self.norm_arguments()) else {
            return String::new();
        };
        let (tape, scalar) = &measured.scalar;
        let of_host = Printer { tape, number: "double", fields: self.hyperparameters, object: "h" };
        let of_element = Printer { tape: &self.tape, number: "A", fields: self.coefficients, object: "c" };
        let (prepared, computed) = (of_host.statements(&[*scalar], false), of_host.operand(*scalar));
        let (statements, value) = (of_element.statements(&[measured.value], false), of_element.operand(measured.value));
        let arguments = arguments.map(|name| format!(", const double {name}")).concat();
        let scaled: String = measured
            .of_gradient
            .iter()
            .map(|name| format!("        h.{name} = times_two_to(h.{name}, power);\n"))
            .collect();
        let bound: String =
            self.states.iter().enumerate().map(|(k, state)| format!("        const A {state} = s[{k}];\n")).collect();
        format!(
            "
    // Whether one number of the whole tensor is kept, and what it is after update number t.
    static constexpr bool SCALAR = {};
    static __device__ double scalar(const Hyper &h, const u64 t{arguments}) {{
{prepared}        return {computed};
    }}

    // Whether the first coefficient is a ratio of the norms; and what it is of, with gradients that are multiplied by 2^power.
    static constexpr bool RATIO = {ratio};
    static __device__ Hyper scaled(Hyper h, const int power) {{
{scaled}        return h;
    }}

    // What the second norm is of.
    template <typename A>
    static __device__ __forceinline__ A measured(const Coefficients<A> &c, const A p, const A g, const A *s) {{
{bound}{statements}        return {value};
    }}
",
            measured.kept.is_some(),
            ratio = !measured.of_gradient.is_empty(),
        )
    }

    /// The rule as people write it: one assignment a line, in an order in which they may be carried out.
    pub fn formula(&self) -> String {
        let mut targets: Vec<(&str, Expr)> = self.states.iter().copied().zip(self.new_states.iter().copied()).collect();
        if let Some(measured) = &self.layerwise {
            targets.extend(measured.number());
            targets.extend((!self.is_input(measured.value)).then_some((measured.name, measured.value)));
        }
        targets.push(("p", self.outcome));
        let outputs: Vec<Expr> = targets.iter().map(|(_, value)| *value).collect();
        let mut lines = self.definitions(&outputs);
        let mut done: Vec<(&str, Expr)> = Vec::new();
        while !targets.is_empty() {
            // The next one is an assignment after which nobody needs the old value any more, and whose own terms
            // do not contain a new value that is still to come.
            let next = targets.iter().position(|&(name, value)| {
                targets.iter().all(|&(other, expression)| {
                    other == name
                        || (!self.reads_old(expression, name, &done, value)
                            && (matches!(self.tape[expression.0], Node::Input(_)) || !self.contains(value, expression)))
                })
            });
            if let Some(i) = next {
                let (name, value) = targets.remove(i);
                lines.push(format!("{} ← {}", symbol(name), self.text(value, 0, &done)));
                done.push((name, value));
            } else {
                let names: Vec<_> = targets.iter().map(|(name, _)| symbol(name)).collect();
                let values: Vec<_> = targets.iter().map(|(_, value)| self.text(*value, 0, &done)).collect();
                lines.push(format!("{} ← {}", names.join(", "), values.join(", ")));
                targets.clear();
            }
        }
        lines.join("\n")
    }

    /// What the named numbers are, each before it is used.
    fn definitions(&self, outputs: &[Expr]) -> Vec<String> {
        let used = used(&self.tape, outputs);
        let named = self.tape.iter().zip(used).filter_map(|(node, used)| match node {
            Node::Named(name, value) if used => Some(format!("{name} = {}", self.text(*value, 0, &[]))),
            _ => None,
        });
        named.collect()
    }

    fn contains(&self, expression: Expr, part: Expr) -> bool {
        expression == part || operands(&self.tape[expression.0]).iter().any(|x| self.contains(*x, part))
    }

    /// Whether `expression` reads the old value of the state or parameter `name` otherwise than through its new value.
    fn reads_old(&self, expression: Expr, name: &str, done: &[(&str, Expr)], new: Expr) -> bool {
        if done.iter().any(|(_, value)| *value == expression) || (expression == new && !self.is_input(new)) {
            return false;
        }
        match self.tape[expression.0] {
            Node::Input(input) => input == name,
            ref node => operands(node).iter().any(|x| self.reads_old(*x, name, done, new)),
        }
    }

    /// Whether it is a hyperparameter that is not the same in all updates.
    fn changes(&self, x: Expr) -> bool {
        matches!(self.tape[x.0], Node::Input(name) if self.changing.contains(&name))
    }

    fn is_input(&self, x: Expr) -> bool {
        matches!(self.tape[x.0], Node::Input(_))
    }

    /// `binds`: 0 anywhere, 1 as a term that is subtracted, 2 as a factor, 3 as a divisor, power or operand of a sign.
    fn text(&self, x: Expr, binds: u8, done: &[(&str, Expr)]) -> String {
        if let Some((name, _)) = done.iter().find(|(_, value)| *value == x && !self.is_input(x)) {
            return symbol(name).to_owned();
        }
        if let Node::Select(Compare::Equal, [a, b, then, _]) = self.tape[x.0]
            && a == b
            && a == then
        {
            return self.text(then, binds, done); // a guard against ∞ − ∞, beside the formula
        }
        if let Node::Select(Compare::Less, [limit, .., otherwise]) = self.tape[x.0]
            && self.tape[limit.0] == Node::Largest
        {
            return self.text(otherwise, binds, done); // a guard against overflow, beside the formula
        }
        let sub = |x: Expr, binds: u8| self.text(x, binds, done);
        let (text, strength) = match self.tape[x.0] {
            Node::Input(name) => (symbol(name).to_owned(), 4),
            Node::Constant(value) => (format!("{value}"), 4),
            Node::Count => ("t".to_owned(), 4),
            Node::Largest => ("largest".to_owned(), 4),
            Node::Unary(Unary::Sqrt, a) => {
                (if self.leaf(a) { format!("√{}", sub(a, 3)) } else { format!("√({})", sub(a, 0)) }, 4)
            }
            Node::Unary(Unary::Abs, a) => (format!("|{}|", sub(a, 0)), 4),
            Node::Unary(Unary::Negate, a) => (format!("−{}", sub(a, 2)), 1),
            Node::Product(a, _) if self.changes(a) => (format!("∏{}", sub(a, 3)), 4),
            Node::Product(a, _) => (format!("{}ᵗ", sub(a, 3)), 4),
            Node::Raised(a, b) => (format!("{}^{}", sub(a, 3), sub(b, 4)), 3),
            Node::WarmingProduct([a, q, _], _) => (format!("∏ᵢ₌₁ᵗ {}·(1 − 0.5·({})ⁱ)", sub(a, 2), sub(q, 0)), 1),
            Node::Named(name, _) => (name.to_owned(), 4),
            Node::AtFirst(first, later) => (format!("({} if t = 1 else {})", sub(first, 0), sub(later, 0)), 4),
            Node::Binary(Binary::CopySign, a, b) => (format!("copysign({}, {})", sub(a, 0), sub(b, 0)), 4),
            Node::Binary(Binary::Add, a, b) => (format!("{} + {}", sub(a, 0), sub(b, 0)), 0),
            Node::Binary(Binary::Subtract, a, b) => (format!("{} − {}", sub(a, 0), sub(b, 1)), 0),
            Node::Binary(Binary::Multiply, a, b) if a == b => (format!("{}²", sub(a, 3)), 3),
            Node::Binary(Binary::Multiply, a, b) => (format!("{}·{}", sub(a, 2), sub(b, 2)), 2),
            Node::Binary(Binary::Divide, a, b) => (format!("{}/{}", sub(a, 2), sub(b, 3)), 2),
            Node::Select(compare, [a, b, then, otherwise]) => self.select_text(compare, [a, b, then, otherwise], done),
        };
        if strength < binds { format!("({text})") } else { text }
    }

    fn leaf(&self, x: Expr) -> bool {
        matches!(self.tape[x.0], Node::Input(_) | Node::Constant(_) | Node::Named(..) | Node::Count)
            || self.new_states.contains(&x)
            || self.layerwise.as_ref().is_some_and(|measured| measured.number().is_some_and(|(_, value)| value == x))
    }

    /// The five idioms of [`Real`] by their names; anything else by its condition.
    fn select_text(&self, compare: Compare, [a, b, then, otherwise]: [Expr; 4], done: &[(&str, Expr)]) -> (String, u8) {
        let sub = |x: Expr, binds: u8| self.text(x, binds, done);
        let zero = |x: Expr| self.tape[x.0] == Node::Constant(0.0);
        let propagates = |x: Expr, y: Expr| self.tape[otherwise.0] == Node::Select(Compare::Equal, [x, x, y, x]);
        match compare {
            Compare::Equal if zero(b) && zero(then) => {
                if let Node::Binary(Binary::Divide, _, denominator) = self.tape[otherwise.0]
                    && denominator == a
                {
                    return (sub(otherwise, 0), 2);
                }
                if let Node::Select(Compare::Equal, [x, y, ..]) = self.tape[otherwise.0]
                    && x == a
                    && y == a
                {
                    return (format!("sign({})", sub(a, 0)), 4);
                }
                (format!("({} if {} = 0 else {})", sub(then, 0), sub(a, 0), sub(otherwise, 0)), 4)
            }
            // What is said of 0 and ∞ in a cube root.
            Compare::Equal if then == a && self.tape[b.0] == Node::Binary(Binary::Add, a, a) => {
                (if self.leaf(a) { format!("∛{}", sub(a, 3)) } else { format!("∛({})", sub(a, 0)) }, 4)
            }
            Compare::Less if then == a && propagates(a, b) => (format!("min({}, {})", sub(a, 0), sub(b, 0)), 4),
            Compare::Less if then == b && propagates(b, a) => (format!("max({}, {})", sub(b, 0), sub(a, 0)), 4),
            _ => {
                let sign = if compare == Compare::Less { "<" } else { "=" };
                let text =
                    format!("({} if {} {sign} {} else {})", sub(then, 0), sub(a, 0), sub(b, 0), sub(otherwise, 0));
                (text, 4)
            }
        }
    }
}

/// Nodes of a tape as statements of CUDA C++.
struct Printer<'a> {
    tape: &'a [Node],
    number: &'static str,
    /// Inputs that are fields of `object`.
    fields: &'a [&'static str],
    object: &'static str,
}

impl Printer<'_> {
    /// A constant for each node that `outputs` need; `overwritten`: they replace inputs.
    fn statements(&self, outputs: &[Expr], overwritten: bool) -> String {
        let mut text = String::new();
        let (used, number) = (used(self.tape, outputs), self.number);
        for (i, node) in self.tape.iter().enumerate().filter(|(i, _)| used[*i]) {
            let value = match node {
                // An old value that is a new one too is copied before anything is overwritten.
                Node::Input(_) if overwritten && outputs.iter().any(|x| x.0 == i) => self.operand(Expr(i)),
                Node::Input(_) | Node::Constant(_) | Node::Largest | Node::Named(..) => continue,
                _ => self.operation(node),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "        const {number} x{i} = {value};");
        }
        text
    }

    fn operand(&self, x: Expr) -> String {
        match self.tape[x.0] {
            Node::Input(name) if self.fields.contains(&name) => format!("{}.{name}", self.object),
            Node::Input(name) => name.to_owned(),
            Node::Constant(value) => format!("{}({value:?})", self.number),
            Node::Largest => format!("largest<{}>()", self.number),
            Node::Named(_, value) => self.operand(value),
            _ => format!("x{}", x.0),
        }
    }

    fn operation(&self, node: &Node) -> String {
        let x = |x: Expr| self.operand(x);
        match *node {
            Node::Unary(Unary::Negate, a) => format!("-{}", x(a)),
            Node::Unary(Unary::Sqrt, a) => format!("sqrt({})", x(a)),
            Node::Unary(Unary::Abs, a) => format!("fabs({})", x(a)),
            Node::Binary(Binary::CopySign, a, b) => format!("copysign({}, {})", x(a), x(b)),
            Node::Binary(op, a, b) => format!("{} {} {}", x(a), operator_text(op), x(b)),
            Node::Select(compare, [a, b, then, otherwise]) => {
                let compare = if compare == Compare::Less { "<" } else { "==" };
                format!("{} {compare} {} ? {} : {}", x(a), x(b), x(then), x(otherwise))
            }
            Node::Product(a, slot) => format!("at.product({slot}, {})", x(a)),
            Node::Raised(a, b) => format!("raised({}, {})", x(a), x(b)),
            Node::WarmingProduct([a, q, base], [first, second]) => {
                format!("at.warming_product({first}, {}, {second}, {}, {})", x(a), x(q), x(base))
            }
            Node::Count => format!("{}(t)", self.number),
            Node::AtFirst(first, later) => format!("t == 1 ? {} : {}", x(first), x(later)),
            Node::Input(_) | Node::Constant(_) | Node::Largest | Node::Named(..) => unreachable!("leaves are operands"),
        }
    }
}

/// Which nodes the outputs need.
fn used(tape: &[Node], outputs: &[Expr]) -> Vec<bool> {
    let mut used = vec![false; tape.len()];
    let mut mark: Vec<usize> = outputs.iter().map(|x| x.0).collect();
    while let Some(i) = mark.pop() {
        if !used[i] {
            used[i] = true;
            mark.extend(operands(&tape[i]).iter().map(|x| x.0));
        }
    }
    used
}

fn operator_text(op: Binary) -> &'static str {
    match op {
        Binary::Add => "+",
        Binary::Subtract => "-",
        Binary::Multiply => "*",
        Binary::Divide => "/",
        Binary::CopySign => unreachable!("a function, not an operator"),
    }
}

fn operands(node: &Node) -> Vec<Expr> {
    match *node {
        Node::Input(_) | Node::Constant(_) | Node::Largest | Node::Count => vec![],
        Node::Unary(_, a) | Node::Product(a, _) | Node::Named(_, a) => vec![a],
        Node::Binary(_, a, b) | Node::AtFirst(a, b) | Node::Raised(a, b) => vec![a, b],
        Node::WarmingProduct(three, _) => three.to_vec(),
        Node::Select(_, four) => four.to_vec(),
    }
}
