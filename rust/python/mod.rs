//! The extension module `ravine._core`: what the Python facade stands on.

mod arrays;
mod norm;
mod onebit;
mod optimizer;
mod rows;
mod signals;
mod tree;
mod turn;

use self::arrays::{Place, Units};
use crate::element::{Dtype, View};
use crate::error::Error;
use crate::real::Scalar;
use crate::rules::{self, Entry, Moment, Range, State};
use crate::simd::Level;
use crate::step::{NonFinite, Options, Step};
use crate::{pool, reduce, simd, step, trace};
use numpy::PyArray1;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

fn find(rule: &str) -> Result<&'static Entry, Error> {
    rules::find(rule).ok_or_else(|| Error::UnknownRule(rule.to_owned()))
}

fn bind_one(
    place: Place,
    rule: &str,
    hyper: Vec<(String, f64)>,
    t: u64,
    parameter: &Bound<'_, PyAny>,
    gradient: &Bound<'_, PyAny>,
    states: &[(String, Bound<'_, PyAny>)],
) -> PyResult<(Step, Py<PyAny>)> {
    let options = Options { clip_value: None, clip_norm: None, clip_eps: 0.0, nonfinite: NonFinite::Propagate };
    let mut step = Step::new(find(rule)?, options, 1);
    if t == 0 {
        return Err(PyValueError::new_err("step: expected the number of this update, 1 at the first, got 0"));
    }
    let alive = step.bind_one(place, t, parameter, gradient, states)?;
    // After the parameter, whose type limits them.
    for (name, value) in hyper {
        step.set_hyper(0, &name, value)?;
    }
    Ok((step, alive))
}

/// ravine's compiled part.
#[pymodule(gil_used = false)]
mod _core {
    use super::*;

    #[pymodule_export]
    use super::norm::{
        batch_norm, batch_norm_backward, check_batch_norm, check_batch_norm_backward, check_layer_norm,
        check_layer_norm_backward, layer_norm, layer_norm_backward,
    };

    #[pymodule_export]
    use super::onebit::{onebit_decode, onebit_encode, onebit_sizes};

    #[pymodule_export]
    use super::optimizer::{Engine, StepInfo};

    #[pymodule_export]
    use super::rows::sum_rows;

    #[pymodule_export]
    use super::signals::{Undone, uninterrupted};

    #[pymodule_export]
    use super::turn::Turn;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        simd::asked()?;
        pool::asked()?;
        signals::prepare(module.py())?;
        turn::watch_forks(module)?;
        module.add("KEPT", crate::after::KEPT)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }

    /// The rules: name -> {"hyperparameters": {name: range}, "states": {name: moment}, "norms": {name: symbol}}; most
    /// have no norms.
    #[pyfunction]
    fn rules(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
        let registry = PyDict::new(py);
        for entry in crate::rules::REGISTRY {
            let (hyper, states, rule) = (PyDict::new(py), PyDict::new(py), PyDict::new(py));
            for (name, range) in entry.hyperparameters.iter().zip(entry.ranges) {
                let range = match range {
                    Range::NotNegative => "not_negative",
                    Range::Fraction => "fraction",
                    Range::NotBelowOne => "not_below_one",
                    Range::Whole => "whole",
                    Range::Switch => "switch",
                    Range::Finite => "finite",
                };
                hyper.set_item(name, range)?;
            }
            for state in entry.states {
                let moment = match state.moment {
                    Moment::First => "first",
                    Moment::Slow => "slow",
                    Moment::Second => "second",
                    Moment::Size => "size",
                    Moment::Weight => "weight",
                    Moment::Scalar => "scalar",
                };
                states.set_item(state.name, moment)?;
            }
            rule.set_item("hyperparameters", hyper)?;
            rule.set_item("states", states)?;
            let norms = PyDict::new(py);
            for name in entry.norms().into_iter().flatten() {
                norms.set_item(name, trace::symbol(name))?;
            }
            rule.set_item("norms", norms)?;
            let products = PyDict::new(py);
            for name in entry.products {
                products.set_item(name, trace::symbol(name))?;
            }
            rule.set_item("products", products)?;
            registry.set_item(entry.name, rule)?;
        }
        Ok(registry)
    }

    /// The arrays that are a rule's states, of a parameter of this shape that computes in `dtype`: name, dtype, shape.
    #[pyfunction]
    #[pyo3(signature = (rule, shape, dtype, states = None))]
    fn state_arrays(
        rule: &str,
        shape: Vec<usize>,
        dtype: &str,
        states: Option<&str>,
    ) -> PyResult<Vec<(String, &'static str, Vec<usize>)>> {
        let precision = optimizer::precision(states)?;
        let dtype = if dtype == Dtype::F64.name() { Dtype::F64 } else { Dtype::F32 };
        let of = |kind: &State| {
            let (name, arrays) = (kind.name, optimizer::arrays_of(*kind, precision, dtype, &shape));
            arrays.into_iter().map(move |(end, dtype, shape)| (format!("{name}{end}"), dtype, shape))
        };
        Ok(find(rule)?.states.iter().flat_map(of).collect())
    }

    /// The rule's formula for people, with its switches set as in `values`; one assignment a line. `decay`: of the old
    /// parameter, `"scaled"` by the rate or `"unscaled"`; None for none, or another.
    #[pyfunction]
    #[pyo3(signature = (rule, values, decay = None))]
    fn formula(rule: &str, values: Vec<f64>, decay: Option<&str>) -> PyResult<String> {
        let entry = find(rule)?;
        if values.len() != entry.hyperparameters.len() {
            return Err(PyValueError::new_err(format!("values: expected one for each of {:?}", entry.hyperparameters)));
        }
        let decay = match decay {
            None => trace::Decay::Elsewhere,
            Some("scaled") => trace::Decay::Scaled,
            Some("unscaled") => trace::Decay::Unscaled,
            Some(other) => return Err(PyValueError::new_err(format!("decay: expected a form, got {other:?}"))),
        };
        Ok(entry.trace_configured(&values, decay).formula())
    }

    /// base to an exponent ≥ 0 that need not be whole, with the same bits everywhere.
    #[pyfunction]
    fn raised(base: f64, exponent: f64) -> f64 {
        let _default = simd::DefaultEnvironment::enter();
        base.raised(exponent)
    }

    /// How the formula writes a name.
    #[pyfunction]
    fn symbol(name: &str) -> &str {
        trace::symbol(name)
    }

    /// The rule's CUDA text.
    #[pyfunction]
    fn cuda(rule: &str) -> PyResult<String> {
        Ok(find(rule)?.trace().cuda())
    }

    /// One update of one array: what every function of `ravine.functional` calls.
    #[pyfunction]
    fn apply(
        py: Python<'_>,
        rule: &str,
        hyper: Vec<(String, f64)>,
        t: u64,
        parameter: &Bound<'_, PyAny>,
        gradient: &Bound<'_, PyAny>,
        states: Vec<(String, Bound<'_, PyAny>)>,
    ) -> PyResult<()> {
        let (mut step, _alive) = bind_one(Place::Host, rule, hyper, t, parameter, gradient, &states)?;
        let elements = step.parameters().map(View::len).sum();
        arrays::detach(py, elements, || step.run())?;
        Ok(())
    }

    /// The same checks, and what a kernel on a device needs to do it.
    #[pyfunction]
    fn apply_tables<'py>(
        py: Python<'py>,
        rule: &str,
        hyper: Vec<(String, f64)>,
        t: u64,
        parameter: &Bound<'py, PyAny>,
        gradient: &Bound<'py, PyAny>,
        states: Vec<(String, Bound<'py, PyAny>)>,
    ) -> PyResult<Bound<'py, PyDict>> {
        optimizer::tables(py, &bind_one(Place::of(parameter)?, rule, hyper, t, parameter, gradient, &states)?.0)
    }

    /// The Euclidean norm of all elements of all arrays, by the canonical tree; None counts as an array of nothing.
    #[pyfunction]
    fn global_norm(py: Python<'_>, arrays: Vec<(String, Bound<'_, PyAny>)>) -> PyResult<f64> {
        let views = arrays::views(Place::Host, &arrays, false)?;
        // SAFETY: the arrays are alive in this call, aligned and of a dtype that is computed with; they are only read.
        Ok(py.detach(|| unsafe { step::global_norm(&views) }))
    }

    /// The Euclidean norm of each array, by the canonical tree; of None, 0.
    #[pyfunction]
    fn tensor_norms<'py>(
        py: Python<'py>,
        arrays: Vec<(String, Bound<'py, PyAny>)>,
    ) -> PyResult<Bound<'py, PyArray1<f64>>> {
        let views = arrays::views(Place::Host, &arrays, false)?;
        // SAFETY: the arrays are alive in this call, aligned and of a dtype that is computed with; they are only read.
        Ok(PyArray1::from_vec(py, py.detach(|| unsafe { step::tensor_norms(&views) })))
    }

    /// Scales all arrays in place so that their norm is at most `max_norm`; returns the norm before.
    #[pyfunction]
    fn clip_by_global_norm(py: Python<'_>, arrays: Vec<(String, Bound<'_, PyAny>)>, max_norm: f64) -> PyResult<f64> {
        let views = arrays::views(Place::Host, &arrays, true)?;
        // SAFETY: the arrays are alive in this call, aligned, of a dtype that is computed with, writable, and apart.
        Ok(py.detach(|| unsafe { step::clip_by_global_norm(&views, max_norm) }))
    }

    /// The same checks of arrays on a device; they as kernels read them, and how many blocks they have.
    #[pyfunction]
    fn norm_tables<'py>(
        py: Python<'py>,
        arrays: Vec<(String, Bound<'py, PyAny>)>,
        written: bool,
    ) -> PyResult<(Bound<'py, PyArray1<u64>>, usize)> {
        let views = arrays::views(arrays::place_of(&arrays)?, &arrays, written)?;
        let mut blocks = 0;
        let placed = views.iter().map(|view| {
            let first = blocks;
            blocks += view.len().div_ceil(reduce::BLOCK);
            Some((view, first))
        });
        let words = optimizer::described(placed)?;
        Ok((PyArray1::from_vec(py, words), blocks))
    }

    /// Scales each unit of the gradients in place by the norm of the same unit of their parameters.
    #[pyfunction]
    fn adaptive_clip(
        py: Python<'_>,
        params: Vec<(String, Bound<'_, PyAny>)>,
        grads: Vec<(String, Bound<'_, PyAny>)>,
        clipping: f64,
        eps: f64,
        axis: isize,
    ) -> PyResult<()> {
        let Units { rows: [params, grads], columns, .. } = Units::new(Place::Host, &params, &grads, axis)?;
        // SAFETY: the arrays are alive in this call, aligned, of a dtype that is computed with and of the same shapes;
        // gradients are writable and share memory with nothing.
        py.detach(|| unsafe { step::adaptive_clip([&params, &grads], &columns, clipping, eps) });
        Ok(())
    }

    /// The same checks of arrays on a device; parameters and gradients as kernels read them, with the numbers of their first
    /// units; those of their first blocks; how many units and blocks there are.
    #[pyfunction]
    #[expect(clippy::type_complexity, reason = "it is what one kernel takes")]
    fn unit_tables<'py>(
        py: Python<'py>,
        params: Vec<(String, Bound<'py, PyAny>)>,
        grads: Vec<(String, Bound<'py, PyAny>)>,
        axis: isize,
    ) -> PyResult<([Bound<'py, PyArray1<u64>>; 3], usize, usize)> {
        let Units { whole, .. } = Units::new(arrays::place_of(&params)?, &params, &grads, axis)?;
        let (mut units, mut blocks) = (Vec::new(), Vec::new());
        let (mut unit, mut block) = (0, 0);
        for ([view, _], count) in &whole {
            units.push(unit);
            blocks.push(block as u64);
            unit += count;
            block += count * view.len().checked_div(*count).unwrap_or(0).div_ceil(reduce::BLOCK);
        }
        let described =
            |k: usize| optimizer::described(whole.iter().zip(&units).map(|((v, _), unit)| Some((&v[k], *unit))));
        let tables = [described(0)?, described(1)?, blocks].map(|words| PyArray1::from_vec(py, words));
        Ok((tables, unit, block))
    }

    /// The leaves of a nesting of dicts, lists and tuples, with their dotted names.
    #[pyfunction]
    fn flatten<'py>(tree: &Bound<'py, PyAny>) -> PyResult<Vec<(String, Bound<'py, PyAny>)>> {
        let (tree, leaves) = tree::Tree::flatten(tree)?;
        Ok(tree.names.into_iter().zip(leaves).collect())
    }

    /// How many threads a step may use.
    #[pyfunction]
    fn num_threads() -> usize {
        pool::num_threads()
    }

    /// Sets how many threads a step may use.
    #[pyfunction]
    fn set_num_threads(n: usize) -> usize {
        pool::set_num_threads(n)
    }

    /// The instruction set in use.
    #[pyfunction]
    fn simd_level() -> &'static str {
        simd::level().name()
    }

    /// Lowers the instruction set, for tests and doubts; returns the one in use, the best there is below `name`.
    #[pyfunction]
    fn set_simd(name: &str) -> PyResult<&'static str> {
        let level = Level::from_name(name).ok_or_else(|| {
            PyValueError::new_err(format!("name: expected 'baseline', 'avx2' or 'avx512', got {name:?}"))
        })?;
        Ok(simd::set_level(level).name())
    }

    /// Sets flush-to-zero and another rounding mode on this thread, as a careless library would; for tests.
    #[pyfunction]
    fn disturb_environment(on: bool) {
        simd::disturb_environment(on);
    }
}
