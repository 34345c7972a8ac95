//! `ravine._core.Engine`: a [`Step`] bound to NumPy arrays.

use super::arrays::{self, Array, Look, Place, tuple};
use super::tree::Tree;
use super::turn::{self, Alone, Hold};
use crate::after::{After, Average, KEPT, Kept, Lookahead};
use crate::element::{BLOCK, Dtype, View, WORDS};
use crate::error::Error;
use crate::overlap::Occupied;
use crate::real::Past;
use crate::rules::{self, Precision, State};
use crate::simd::DefaultEnvironment;
use crate::step::{self, Info, NonFinite, Options, Step};
use numpy::PyArray1;
use pyo3::exceptions::{PyFloatingPointError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use std::cell::Cell;
use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a step reports.
#[pyclass(frozen, get_all, module = "ravine._core")]
#[derive(Debug)]
pub(crate) struct StepInfo {
    step: u64,
    lr: f64,
    grad_norm: Option<f64>,
    skipped: bool,
    nonfinite: Option<Py<PyDict>>,
}

#[pymethods]
impl StepInfo {
    #[new]
    fn new(step: u64, lr: f64, grad_norm: Option<f64>, skipped: bool, nonfinite: Option<Py<PyDict>>) -> Self {
        Self { step, lr, grad_norm, skipped, nonfinite }
    }

    /// What a copy is made of; Python's copy and pickle ask.
    fn __getnewargs__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let nonfinite = self.nonfinite.as_ref().map(|dict| dict.bind(py).copy()).transpose()?;
        (self.step, self.lr, self.grad_norm, self.skipped, nonfinite).into_pyobject(py)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let lr = self.lr.into_pyobject(py)?.repr()?;
        let norm = self.grad_norm.into_pyobject(py)?.repr()?;
        let nonfinite =
            self.nonfinite.as_ref().map_or_else(|| Ok("None".to_owned()), |d| d.bind(py).repr()?.extract())?;
        let skipped = if self.skipped { "True" } else { "False" };
        let step = self.step;
        Ok(format!("StepInfo(step={step}, lr={lr}, grad_norm={norm}, skipped={skipped}, nonfinite={nonfinite})"))
    }
}

type Words<'py> = Bound<'py, PyArray1<u64>>;

/// A parameter as it was bound, to see that it still is.
#[derive(Debug)]
struct Bond {
    /// What the container holds: the array, or that of another library whose memory it shares.
    given: Py<PyAny>,
    array: Py<PyAny>,
    /// Its real and imaginary parts, if it is complex: what dtype, shape and states are of.
    pairs: Option<Py<PyAny>>,
    states: Vec<Py<PyAny>>,
    /// In the order of [`KEPT`].
    kept: Vec<Option<Py<PyAny>>>,
    dtype: Dtype,
    shape: Vec<usize>,
    strides: Vec<isize>,
    len: usize,
    data: usize,
    look: Option<Look>,
    /// Where the last gradient lay that was found to overlap nothing.
    last_gradient: usize,
    /// What its gradients of several micro-batches are added up in, once there are any.
    sum: Option<Py<PyAny>>,
}

impl Bond {
    /// Whether the parameter is what it was, as far as a few loads tell.
    #[inline]
    fn in_place(&self, parameter: &Bound<'_, PyAny>) -> bool {
        self.look.as_ref().and_then(|look| look.again(parameter)) == Some((self.data as *mut u8, true))
    }

    /// The gradient, if it lies where the last one lay and nothing else has changed, either.
    #[inline]
    fn again(&self, place: Place, gradient: &Bound<'_, PyAny>) -> Option<View> {
        let (data, _) = self.look.as_ref()?.again(gradient).filter(|(data, _)| *data as usize == self.last_gradient)?;
        // SAFETY: the same type, dtype, shape and place as a gradient that passed all checks.
        let view = || unsafe { View::contiguous(data, self.dtype, self.len) };
        (!self.may_move(place) || self.in_place(self.given.bind(gradient.py()))).then(view)
    }

    /// The shape and the dtype that the user knows.
    fn outer(&self) -> &[usize] {
        arrays::outer(&self.shape, self.is_complex())
    }

    fn dtype_name(&self) -> &'static str {
        arrays::dtype_name(self.dtype, self.is_complex())
    }

    fn is_complex(&self) -> bool {
        self.pairs.is_some()
    }

    /// The array of real numbers that is stepped.
    fn reals<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.pairs.as_ref().unwrap_or(&self.array).bind(py)
    }

    /// Whether a parameter can be resized under our hands: CuPy's arrays never move; those of other libraries may.
    fn may_move(&self, place: Place) -> bool {
        place == Place::Host || !self.given.is(&self.array)
    }
}

/// Gradients of several micro-batches, added up.
#[derive(Debug, Default)]
struct Sums {
    /// One for each parameter, once there are any.
    views: Vec<View>,
    /// Whether a parameter has had a gradient.
    present: Vec<bool>,
    /// Whether a micro-batch came since the last step.
    given: bool,
    /// The weights of those; 0: there is nothing in the sums.
    weight: f64,
    /// As they were last described to the device.
    described: Vec<u64>,
}

impl Sums {
    /// The gradients at hand were added.
    fn count(&mut self, weight: f64, step: &Step) {
        let _default = DefaultEnvironment::enter();
        self.given = true;
        if weight == 0.0 {
            return;
        }
        self.weight += weight;
        for (present, gradient) in self.present.iter_mut().zip(step.gradients()) {
            *present |= gradient.is_some();
        }
    }

    fn discard(&mut self) {
        (self.given, self.weight) = (false, 0.0);
        self.present.fill(false);
    }
}

/// Dicts of gradients that count their backwards, as a layer's do: a count that was stepped with is not taken again.
#[derive(Debug, Default)]
struct Backwards {
    /// Those of the gradients at hand, with the count and the number of the leaf that comes next.
    taken: Vec<(Py<PyDict>, u64, usize)>,
    /// By the dict's address, which is its own as long as it is held.
    used: HashMap<usize, (Py<PyDict>, u64)>,
}

impl Backwards {
    fn take(&mut self, dict: &Bound<'_, PyDict>, next: usize) {
        let count = dict.getattr(intern!(dict.py(), "backward_count")).ok().and_then(|count| count.extract().ok());
        if let Some(count) = count.filter(|_| !dict.is_empty()) {
            self.taken.push((dict.clone().unbind(), count, next));
        }
    }

    /// The numbers of the first leaves whose gradients were used before.
    fn stale(&self) -> impl Iterator<Item = usize> {
        let used = |(dict, count, next): &(Py<PyDict>, u64, usize)| {
            let before = self.used.get(&(dict.as_ptr() as usize))?;
            // A count of 0: there are no gradients, and that may be said again.
            (*count != 0 && before.1 == *count).then_some(*next)
        };
        self.taken.iter().filter_map(used)
    }

    /// What was taken was used.
    fn spend(&mut self) {
        for (dict, count, _) in self.taken.drain(..) {
            self.used.insert(dict.as_ptr() as usize, (dict, count));
        }
    }
}

/// A rule bound to the arrays of a nesting.
#[pyclass(frozen, module = "ravine._core")]
#[derive(Debug)]
pub(crate) struct Engine {
    bound: Alone<Binding>,
    /// What may be asked during a step, too.
    steps: AtomicU64,
    lr: AtomicU64,
}

#[derive(Debug)]
struct Binding {
    /// Where all of the arrays are.
    place: Place,
    step: Step,
    tree: Tree,
    bonds: Vec<Bond>,
    occupied: Occupied,
    elements: usize,
    /// Whether gradients may be of the dtype that their parameters compute in.
    wide: bool,
    /// The gradients of the step that is running: another thread may empty the container they came in.
    held: Vec<Py<PyAny>>,
    /// Of the gradients that are being taken, and of those taken before.
    backwards: Backwards,
    /// The gradients as they were last described to the device.
    described: Vec<u64>,
    sums: Sums,
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match error {
            Error::Dtype(_) => pyo3::exceptions::PyTypeError::new_err(error.to_string()),
            Error::NoMemory(_) => pyo3::exceptions::PyMemoryError::new_err(error.to_string()),
            Error::NotFinite(_) => PyFloatingPointError::new_err(error.to_string()),
            _ => PyValueError::new_err(error.to_string()),
        }
    }
}

fn options(clip_value: Option<f64>, clip_norm: Option<f64>, clip_eps: f64, nonfinite: &str) -> PyResult<Options> {
    let nonfinite = match nonfinite {
        "propagate" => NonFinite::Propagate,
        "skip" => NonFinite::Skip,
        "raise" => NonFinite::Raise,
        other => {
            let text = format!("nonfinite: expected 'propagate', 'skip' or 'raise', got {other:?}");
            return Err(PyValueError::new_err(text));
        }
    };
    let options = Options { clip_value, clip_norm, clip_eps, nonfinite };
    options.check()?;
    Ok(options)
}

/// What follows the rule: a function of a parameter and the name of what it computes in, to the arrays of [`KEPT`] or
/// None; decay, warm-up, start and distance of an average; distance and α of Lookahead.
type AfterRule<'py> = (Bound<'py, PyAny>, Option<(Option<f64>, bool, u64, NonZeroU64)>, Option<(NonZeroU64, f64)>);

fn after_of(rule: Option<&AfterRule<'_>>) -> After {
    let Some((_, average, lookahead)) = rule else { return After::default() };
    let average = average.map(|(decay, warmup, start, every)| Average { decay, warmup, start, every: every.get() });
    After { average, lookahead: lookahead.map(|(every, alpha)| Lookahead { every: every.get(), alpha }) }
}

#[pymethods]
impl Engine {
    /// Binds the arrays of `params`. `group_of` maps a list of names to the groups' numbers, `new_states` a parameter
    /// to its state arrays; both are called before anything is bound. With `wide`, gradients may be of the dtype that the
    /// parameters compute in. `states` says in how many bytes those are kept, `rounding` how parameters are stored.
    #[new]
    #[pyo3(signature = (
        rule, params, group_of, new_states, clip_value, clip_norm, nonfinite, after = None, clip_eps = 0.0, wide = false,
        states = None, rounding = "nearest"
    ))]
    #[expect(clippy::too_many_arguments, reason = "Python's keywords")]
    fn new(
        rule: &str,
        params: &Bound<'_, PyAny>,
        group_of: &Bound<'_, PyAny>,
        new_states: &Bound<'_, PyAny>,
        clip_value: Option<f64>,
        clip_norm: Option<f64>,
        nonfinite: &str,
        after: Option<AfterRule<'_>>,
        clip_eps: f64,
        wide: bool,
        states: Option<&str>,
        rounding: &str,
    ) -> PyResult<Self> {
        let (precision, at_random) = (precision(states)?, is_stochastic(rounding)?);
        let rule = rules::find(rule).ok_or_else(|| Error::UnknownRule(rule.to_owned()))?;
        let options = options(clip_value, clip_norm, clip_eps, nonfinite)?;
        let (tree, given) = Tree::flatten(params)?;
        let called = |i: usize| {
            let name = &tree.names[i];
            move || parameter_called(name)
        };
        let adopted = given.iter().enumerate().map(|(i, leaf)| arrays::adopt(leaf, &called(i), true));
        let leaves = adopted.collect::<PyResult<Vec<_>>>()?;
        let place = leaves.first().map_or(Ok(Place::Host), Place::of)?;
        let parameter = |i: usize| arrays::pairs_at(place, &leaves[i], &called(i));
        for i in 0..leaves.len() {
            parameter(i)?.check_writable(&called(i))?;
        }
        let whole = (0..leaves.len()).map(|i| parameter(i).map(|array| array.view())).collect::<PyResult<Vec<_>>>()?;
        let mut ranges = Vec::new();
        for (i, view) in whole.iter().enumerate() {
            ranges.extend(view.extent().map(|(low, high)| (low, high, i)));
        }
        arrays::check_apart(&Occupied::new(ranges.clone()), &whole, |i| (called(i)(), &leaves[i]))?;
        let groups: Vec<usize> = group_of.call1((tree.names.clone(),))?.extract()?;
        let mut step = Step::new(rule, options, groups.iter().max().map_or(1, |last| last + 1));
        step.set_after(after_of(after.as_ref()));
        let mut bonds = Vec::with_capacity(leaves.len());
        let mut elements = 0;
        for (i, leaf) in leaves.iter().enumerate() {
            let parameter = parameter(i)?;
            check_precision(precision, &parameter, &called(i))?;
            let pairs = parameter.complex.then(|| arrays::pairs_of(leaf)).transpose()?;
            let leaf = pairs.as_ref().unwrap_or(leaf);
            let (states, views) = states_of(place, leaf, &parameter, rule.states, precision, new_states)?;
            for view in views.iter().flat_map(View::all) {
                ranges.extend(view.extent().map(|(low, high)| (low, high, i)));
            }
            let kept = after.as_ref().map(|after| kept_of(place, leaf, &parameter, after, &called(i))).transpose()?;
            let (kept, kept_views) = kept.unzip();
            let lower = kept_views.as_ref().and_then(|kept: &Kept| kept.remainder.as_ref()).map(View::address);
            for view in kept_views.iter().flat_map(Kept::views).flatten() {
                ranges.extend(view.extent().map(|(low, high)| (low, high, i)));
            }
            elements += parameter.len();
            let mut view = parameter.view();
            if let Some(lower) = lower {
                // SAFETY: `kept_of` has checked that there are as many; the rest as below.
                view = unsafe { view.split(lower) };
            }
            if at_random {
                check_rounding(&parameter, kept_views.as_ref(), &called(i))?;
                view = view.rounded_at_random();
            }
            // SAFETY: the bond keeps the arrays alive, NumPy does not resize arrays that are referred to twice, and
            // `check` looks at every step whether they lie where they lay; they are writable and overlap nothing.
            unsafe { step.bind(view, views, groups[i]) };
            if let Some(kept) = kept_views {
                // SAFETY: as above.
                unsafe { step.keep(kept) };
            }
            bonds.push(Bond {
                dtype: parameter.dtype,
                shape: parameter.shape().to_vec(),
                strides: parameter.strides().to_vec(),
                len: parameter.len(),
                data: parameter.data as usize,
                look: Look::at(place, &parameter)?,
                given: given[i].clone().unbind(),
                array: leaves[i].clone().unbind(),
                pairs: pairs.map(Bound::unbind),
                states: states.into_iter().map(Bound::unbind).collect(),
                kept: kept.into_iter().flatten().map(|array| array.map(Bound::unbind)).collect(),
                last_gradient: 0,
                sum: None,
            });
        }
        let occupied = Occupied::new(ranges);
        let (held, described, sums, backwards) = (Vec::new(), Vec::new(), Sums::default(), Backwards::default());
        let bound = Binding { place, step, tree, bonds, occupied, elements, wide, held, backwards, described, sums };
        Ok(Self { bound: Alone::new(bound), steps: AtomicU64::new(0), lr: AtomicU64::new(0) })
    }

    /// One step, with these values of (group, name) from now on; see `Optimizer.step`. `skip` leaves it out if gradients
    /// are not finite, whatever the options say.
    #[pyo3(name = "step", signature = (grads, values = Vec::new(), grad_scale = None, skip = false))]
    fn step_py<'py>(
        &self,
        py: Python<'py>,
        grads: &Bound<'py, PyAny>,
        values: Vec<(usize, String, f64)>,
        grad_scale: Option<f64>,
        skip: bool,
    ) -> PyResult<StepInfo> {
        let mut bound = self.on_host()?;
        bound.check_nothing_pending()?;
        bound.take(py, grads)?;
        bound.check_some()?;
        self.run(py, &mut bound, values, grad_scale, skip)
    }

    /// One step with the mean of the gradients that were accumulated, which are gone then.
    #[pyo3(signature = (values = Vec::new(), grad_scale = None, skip = false))]
    fn step_accumulated(
        &self,
        py: Python<'_>,
        values: Vec<(usize, String, f64)>,
        grad_scale: Option<f64>,
        skip: bool,
    ) -> PyResult<StepInfo> {
        let mut bound = self.on_host()?;
        if bound.weighs_nothing(py, grad_scale)? {
            return self.leave_out(py, &mut bound, values, skip);
        }
        let scale = bound.take_accumulated(py, grad_scale)?;
        self.run(py, &mut bound, values, Some(scale), skip)
    }

    /// Adds the gradients of a micro-batch, times a weight, to those before; see `Optimizer.accumulate`. `new_sum` maps a
    /// parameter to a list of one new array.
    fn accumulate<'py>(
        &self,
        py: Python<'py>,
        grads: &Bound<'py, PyAny>,
        weight: f64,
        new_sum: &Bound<'py, PyAny>,
    ) -> PyResult<()> {
        let mut bound = self.on_host()?;
        step::check_weight(weight)?;
        bound.take(py, grads)?;
        if weight == 0.0 {
            bound.held.clear();
            bound.count(weight);
            return Ok(());
        }
        bound.make_sums(py, new_sum)?;
        let Binding { step, elements, sums, .. } = &mut *bound;
        let factor = (weight != 1.0).then_some(weight);
        arrays::detach(py, *elements, || {
            // SAFETY: the gradients are those that `take` has just checked; the sums are ours, made to fit.
            unsafe { step.accumulate(&sums.views, factor, sums.weight == 0.0) };
            sums.count(weight, step); // here, so that a fork finds both or none
        });
        bound.held.clear();
        bound.backwards.spend();
        Ok(())
    }

    /// For kernels on a device: checks a micro-batch as `accumulate` does. Returns what the device does not know yet of the
    /// gradients, as `take` does, and whether this is the first; nothing of one that weighs nothing.
    fn take_micro_batch<'py>(
        &self,
        py: Python<'py>,
        grads: &Bound<'py, PyAny>,
        weight: f64,
        new_sum: &Bound<'py, PyAny>,
    ) -> PyResult<(Option<Words<'py>>, Option<Words<'py>>, bool)> {
        let mut bound = self.bound()?;
        step::check_weight(weight)?;
        bound.take(py, grads)?;
        bound.held.clear();
        if weight == 0.0 {
            return Ok((None, None, false));
        }
        bound.make_sums(py, new_sum)?;
        let (addresses, words) = bound.news(py)?;
        Ok((addresses, words, bound.sums.weight == 0.0))
    }

    /// For kernels on a device: the sums' arrays.
    fn sum_tables<'py>(&self, py: Python<'py>) -> PyResult<Words<'py>> {
        let bound = self.bound()?;
        let placed = bound.sums.views.iter().zip(bound.step.blocks()).map(|(view, first)| Some((view, *first)));
        Ok(PyArray1::from_vec(py, described(placed)?))
    }

    /// For kernels on a device: it has added up what `take_micro_batch` checked.
    fn count(&self, weight: f64) -> PyResult<()> {
        self.bound()?.count(weight);
        Ok(())
    }

    /// For kernels on a device: checks that there is something to step with, then sets the values of (group, name). Returns
    /// the sums as gradients if the device does not know them so, and what to divide by.
    #[pyo3(signature = (values = Vec::new(), grad_scale = None))]
    fn take_accumulated<'py>(
        &self,
        py: Python<'py>,
        values: Vec<(usize, String, f64)>,
        grad_scale: Option<f64>,
    ) -> PyResult<(Option<Words<'py>>, f64)> {
        let mut bound = self.bound()?;
        let scale = bound.take_accumulated(py, grad_scale)?;
        let words = described_gradients(&bound.step)?;
        for (group, name, value) in values {
            bound.step.set_hyper(group, &name, value)?;
        }
        let news = (bound.sums.described != words).then(|| PyArray1::from_vec(py, words.clone()));
        bound.sums.described = words;
        Ok((news, scale))
    }

    /// For kernels on a device: whether all micro-batches since the last step weigh nothing. Then the step is left out: the
    /// values of (group, name) are set, and the micro-batches forgotten.
    #[pyo3(signature = (values = Vec::new(), grad_scale = None))]
    fn leave_out_accumulated(
        &self,
        py: Python<'_>,
        values: Vec<(usize, String, f64)>,
        grad_scale: Option<f64>,
    ) -> PyResult<bool> {
        let mut bound = self.bound()?;
        let nothing = bound.weighs_nothing(py, grad_scale)?;
        if nothing {
            self.leave_out(py, &mut bound, values, true)?;
        }
        Ok(nothing)
    }

    /// Forgets the gradients that were accumulated.
    fn discard(&self) -> PyResult<()> {
        self.bound()?.discard();
        Ok(())
    }

    /// The weight of the gradients that were accumulated since the last step; None: there are none.
    #[getter]
    fn accumulated(&self) -> PyResult<Option<f64>> {
        let sums = &self.bound()?.sums;
        Ok(sums.given.then_some(sums.weight))
    }

    /// Their sums, in order; None for those that had no gradient.
    #[getter]
    fn sums<'py>(&self, py: Python<'py>) -> PyResult<Vec<Option<Bound<'py, PyAny>>>> {
        let bound = self.bound()?;
        let there = |i: usize| bound.sums.weight > 0.0 && bound.sums.present[i];
        let sums = bound.bonds.iter().enumerate().map(|(i, bond)| bond.sum.as_ref().filter(|_| there(i)));
        Ok(sums.map(|sum| sum.map(|sum| sum.bind(py).clone())).collect())
    }

    /// For kernels on a device: all tables, once.
    fn tables<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        tables(py, &self.bound()?.step)
    }

    /// For kernels on a device: it does not know what `take` told.
    fn forget(&self) -> PyResult<()> {
        let mut bound = self.bound()?;
        bound.described.clear();
        bound.sums.described.clear();
        Ok(())
    }

    /// For kernels on a device: the values of all groups.
    fn values<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f64>>> {
        Ok(PyArray1::from_vec(py, self.bound()?.step.values()))
    }

    /// For kernels on a device: checks the gradients of a step as `step` does, then sets the values of (group, name).
    /// Returns what the device does not know yet: the gradients' addresses, or all that describes them.
    #[pyo3(signature = (grads, values = Vec::new(), grad_scale = None))]
    fn take<'py>(
        &self,
        py: Python<'py>,
        grads: &Bound<'py, PyAny>,
        values: Vec<(usize, String, f64)>,
        grad_scale: Option<f64>,
    ) -> PyResult<(Option<Words<'py>>, Option<Words<'py>>)> {
        let mut bound = self.bound()?;
        bound.check_nothing_pending()?;
        grad_scale.map_or(Ok(()), |scale| step::check_scale("grad_scale", scale))?;
        bound.take(py, grads)?;
        bound.held.clear();
        bound.check_some()?;
        let news = bound.news(py)?;
        for (group, name, value) in values {
            bound.step.set_hyper(group, &name, value)?;
        }
        Ok(news)
    }

    /// Checks the gradients of a step as `step` does, and takes none of them. `some`: one parameter has a gradient.
    #[pyo3(signature = (grads, some = false))]
    fn check<'py>(&self, py: Python<'py>, grads: &Bound<'py, PyAny>, some: bool) -> PyResult<()> {
        let mut bound = self.bound()?;
        bound.check_nothing_pending()?;
        bound.take(py, grads)?;
        bound.held.clear();
        bound.backwards.taken.clear();
        if some { bound.check_some() } else { Ok(()) }
    }

    /// Refuses gradients that were used by a step before, and that no backward has filled anew.
    fn check_fresh(&self, grads: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut bound = self.bound()?;
        bound.find_backwards(grads)?;
        let stale = bound.check_fresh();
        bound.backwards.taken.clear();
        stale
    }

    /// A step has used these gradients, or those that were last taken.
    #[pyo3(signature = (grads = None))]
    fn spend(&self, grads: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let mut bound = self.bound()?;
        grads.map_or(Ok(()), |grads| bound.find_backwards(grads))?;
        bound.backwards.spend();
        Ok(())
    }

    /// Whether a hyperparameter or common option may have this value.
    fn check_hyper(&self, name: &str, value: f64) -> PyResult<()> {
        Ok(self.bound()?.step.check_hyper(name, value)?)
    }

    /// Lets a hyperparameter of the rule be any finite number: the caller checks it.
    fn widen(&self, name: &str) -> PyResult<()> {
        Ok(self.bound()?.step.widen(name)?)
    }

    /// Sets a hyperparameter or common option of a group.
    fn set_hyper(&self, group: usize, name: &str, value: f64) -> PyResult<()> {
        let mut bound = self.bound()?;
        bound.step.set_hyper(group, name, value)?;
        self.publish(bound.step.steps(), bound.step.hyper(0, "lr")?);
        Ok(())
    }

    /// The value of a hyperparameter or common option of a group.
    fn hyper(&self, group: usize, name: &str) -> PyResult<f64> {
        Ok(self.bound()?.step.hyper(group, name)?)
    }

    /// Steps completed.
    #[getter]
    fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// The learning rate of the first group.
    #[getter]
    fn lr(&self) -> f64 {
        f64::from_bits(self.lr.load(Ordering::Relaxed))
    }

    /// The dotted names of the parameters, in order.
    #[getter]
    fn names(&self) -> PyResult<Vec<String>> {
        Ok(self.bound()?.tree.names.clone())
    }

    /// The names of those that hold complex numbers, in order.
    #[getter]
    fn complex_names(&self) -> PyResult<Vec<String>> {
        let bound = self.bound()?;
        let named = bound.tree.names.iter().zip(&bound.bonds);
        Ok(named.filter(|(_, bond)| bond.is_complex()).map(|(name, _)| name.clone()).collect())
    }

    /// The parameters, in order; complex ones as pairs of reals.
    #[getter]
    fn parameters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.bound()?.bonds.iter().map(|bond| bond.reals(py)))
    }

    /// The parameters, in order, as NumPy or CuPy has them.
    #[getter]
    fn arrays<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.bound()?.bonds.iter().map(|bond| bond.array.bind(py)))
    }

    /// The state arrays of each parameter, in order.
    #[getter]
    fn states<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let bound = self.bound()?;
        let states = bound.bonds.iter().map(|bond| PyTuple::new(py, bond.states.iter().map(|state| state.bind(py))));
        PyList::new(py, states.collect::<PyResult<Vec<_>>>()?)
    }

    /// What is kept for each parameter besides, by name.
    #[getter]
    fn kept<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let bound = self.bound()?;
        let of = |bond: &Bond| {
            let dict = PyDict::new(py);
            for (name, array) in KEPT.iter().zip(&bond.kept) {
                array.as_ref().map_or(Ok(()), |array| dict.set_item(name, array))?;
            }
            Ok(dict)
        };
        bound.bonds.iter().map(of).collect()
    }

    /// How often each parameter was updated.
    #[getter]
    fn updates(&self) -> PyResult<Vec<u64>> {
        Ok(self.bound()?.step.updates().collect())
    }

    /// Of each parameter, the products that are kept: the number in the first updates (below 0: not known), how many those
    /// are, and the product over the others.
    #[getter]
    fn products(&self) -> PyResult<Vec<Vec<(f64, u64, f64)>>> {
        let of_each = |past: Past| (past.base, past.constant, past.rest);
        Ok(self.bound()?.step.products().map(|past| past.into_iter().map(of_each).collect()).collect())
    }

    /// Sets the number of steps completed, how often each parameter was updated, and the products, if they are known.
    #[pyo3(signature = (steps, updates, products = None))]
    fn set_counters(&self, steps: u64, updates: Vec<u64>, products: Option<Vec<Vec<(f64, u64, f64)>>>) -> PyResult<()> {
        let mut bound = self.bound()?;
        bound.step.set_steps(steps);
        bound.step.set_updates(&updates);
        let past = |(base, constant, rest)| Past { base, constant, rest };
        let of_each = |products: Vec<_>| products.into_iter().map(past).collect();
        bound.step.set_products(&products.into_iter().flatten().map(of_each).collect::<Vec<_>>());
        self.publish(steps, bound.step.hyper(0, "lr")?);
        Ok(())
    }
}

impl Engine {
    fn bound(&self) -> PyResult<Hold<'_, Binding>> {
        // A panic in a step leaves numbers half updated, but nothing that could be misread.
        self.bound.get().ok_or_else(turn::taken)
    }

    fn on_host(&self) -> PyResult<Hold<'_, Binding>> {
        let bound = self.bound()?;
        if bound.place != Place::Host {
            return Err(PyValueError::new_err("step: these arrays are on a device, where kernels step"));
        }
        Ok(bound)
    }

    /// The step, once its gradients were taken.
    fn run(
        &self,
        py: Python<'_>,
        bound: &mut Binding,
        values: Vec<(usize, String, f64)>,
        grad_scale: Option<f64>,
        skip: bool,
    ) -> PyResult<StepInfo> {
        grad_scale.map_or(Ok(()), |scale| step::check_scale("grad_scale", scale))?;
        for (group, name, value) in values {
            bound.step.set_hyper(group, &name, value)?;
        }
        let Binding { step, elements, sums, .. } = bound;
        let nonfinite = if skip { NonFinite::Skip } else { step.options().nonfinite };
        let info = arrays::detach(py, *elements, || {
            let info = step.run_scaled(grad_scale, nonfinite)?;
            // Here, so that a fork finds a step with its count, or none.
            sums.discard();
            self.publish(info.step, info.lr);
            Ok::<_, Error>(info)
        });
        bound.held.clear();
        let info = info?;
        let report = bound.report(py, info, nonfinite)?;
        bound.backwards.spend();
        Ok(report)
    }

    /// The step of micro-batches that all weigh nothing.
    fn leave_out(
        &self,
        py: Python<'_>,
        bound: &mut Binding,
        values: Vec<(usize, String, f64)>,
        skip: bool,
    ) -> PyResult<StepInfo> {
        for (group, name, value) in values {
            bound.step.set_hyper(group, &name, value)?;
        }
        let nonfinite = if skip { NonFinite::Skip } else { bound.step.options().nonfinite };
        let info = bound.step.left_out(nonfinite);
        bound.discard();
        self.publish(info.step, info.lr);
        bound.report(py, info, nonfinite)
    }

    fn publish(&self, steps: u64, lr: f64) {
        self.steps.store(steps, Ordering::Relaxed);
        self.lr.store(lr.to_bits(), Ordering::Relaxed);
    }
}

/// By Python's name.
pub(crate) fn precision(states: Option<&str>) -> PyResult<Precision> {
    match states {
        None => Ok(Precision::Full),
        Some("bfloat16") => Ok(Precision::Bfloat16),
        Some("8bit") => Ok(Precision::EightBit),
        Some(other) => {
            let text = format!("states: expected 'bfloat16', '8bit' or None, got '{other}'");
            Err(PyValueError::new_err(text))
        }
    }
}

fn is_stochastic(rounding: &str) -> PyResult<bool> {
    match rounding {
        "nearest" => Ok(false),
        "stochastic" => Ok(true),
        other => Err(PyValueError::new_err(format!("rounding: expected 'nearest' or 'stochastic', got '{other}'"))),
    }
}

/// Refuses to round at random what has an exact copy, or is not bfloat16.
fn check_rounding(parameter: &Array<'_, '_>, kept: Option<&Kept>, called: &dyn Fn() -> String) -> PyResult<()> {
    if kept.is_some_and(|kept| kept.master.is_some() || kept.remainder.is_some()) {
        let text = "rounding: 'stochastic' is for parameters without an exact copy; leave master or rounding out";
        return Err(PyValueError::new_err(text));
    }
    if parameter.dtype != Dtype::Bf16 {
        let (called, dtype) = (called(), parameter.dtype_name());
        let text =
            format!("{called}: rounding='stochastic' is for bfloat16, got {dtype}; give it an optimizer of its own");
        return Err(Error::Dtype(text).into());
    }
    Ok(())
}

fn check_precision(precision: Precision, parameter: &Array<'_, '_>, called: &dyn Fn() -> String) -> PyResult<()> {
    if precision == Precision::Full || parameter.dtype.compute() == Dtype::F32 {
        return Ok(());
    }
    let dtype = parameter.dtype_name();
    let text = format!("{}: states in fewer bytes are of float32 arithmetic, got {dtype}; leave states out", called());
    Err(Error::Dtype(text).into())
}

/// The arrays that keep a state: numbers or codes, and the scales of codes; what follows a name, NumPy's dtype, shape.
pub(crate) fn arrays_of(
    kind: State,
    precision: Precision,
    dtype: Dtype,
    shape: &[usize],
) -> Vec<(&'static str, &'static str, Vec<usize>)> {
    let (kept, of_shape) = kind.layout(precision, dtype, shape);
    let scales = kept.has_scales().then(|| {
        let count = shape.iter().product::<usize>().div_ceil(BLOCK);
        ("_scale", Dtype::F32.name(), vec![count])
    });
    std::iter::once(("", kept.name_of_state(), of_shape.to_vec())).chain(scales).collect()
}

/// New arrays for the states, and views of them: the arrays of one state after those of another.
fn states_of<'py>(
    place: Place,
    leaf: &Bound<'py, PyAny>,
    parameter: &Array<'_, '_>,
    kinds: &[State],
    precision: Precision,
    new_states: &Bound<'py, PyAny>,
) -> PyResult<(Vec<Bound<'py, PyAny>>, Vec<View>)> {
    let states: Vec<Bound<'py, PyAny>> = new_states.call1((leaf, parameter.dtype.compute().name()))?.extract()?;
    let (name, mut views) = (|| "states".to_owned(), Vec::with_capacity(kinds.len()));
    let wrong = || PyValueError::new_err("states: not the arrays that the rule needs");
    let mut given = states.iter();
    let mut next = |dtype: Dtype, shape: &[usize]| {
        let array = arrays::state_at(place, given.next().ok_or_else(wrong)?, &name, dtype)?;
        array.check_writable(&name)?;
        let right = array.contiguous && array.shape() == shape && array.dtype == dtype;
        if right { Ok(array) } else { Err(wrong()) }
    };
    for kind in kinds {
        let (dtype, shape) = kind.layout(precision, parameter.dtype, parameter.shape());
        let array = next(dtype, shape)?;
        if !dtype.has_scales() {
            views.push(array.view());
            continue;
        }
        let len = array.len();
        let scales = next(Dtype::F32, &[len.div_ceil(BLOCK)])?;
        // SAFETY: both were just checked, contiguous; who binds the view keeps the arrays alive.
        views.push(unsafe { View::coded(array.data, dtype, len, scales.data.cast()) });
    }
    if given.next().is_some() { Err(wrong()) } else { Ok((states, views)) }
}

/// The arrays that are kept for a parameter, as they are given, and checked.
fn kept_of<'py>(
    place: Place,
    leaf: &Bound<'py, PyAny>,
    parameter: &Array<'_, '_>,
    (new, average, lookahead): &AfterRule<'py>,
    called: &dyn Fn() -> String,
) -> PyResult<([Option<Bound<'py, PyAny>>; KEPT.len()], Kept)> {
    let compute = parameter.dtype.compute();
    let arrays: [Option<Bound<'py, PyAny>>; KEPT.len()] = new.call1((leaf, compute.name()))?.extract()?;
    let name = || "kept".to_owned();
    let mut right = true;
    let mut view = |object: &Option<Bound<'py, PyAny>>, needed: bool, dtype: Dtype| {
        right &= object.is_some() == needed;
        let Some(object) = object else { return Ok(None) };
        let array = arrays::state_at(place, object, &name, dtype)?;
        array.check_writable(&name)?;
        right &= array.contiguous && array.shape() == parameter.shape() && array.dtype == dtype;
        Ok::<_, PyErr>(Some(array.view()))
    };
    if arrays[3].is_some() && parameter.dtype != Dtype::Bf16 {
        let dtype = parameter.dtype_name();
        let text =
            format!("{}: master='split' is for bfloat16, got {dtype}; give it an optimizer of its own", called());
        return Err(Error::Dtype(text).into());
    }
    let master = view(&arrays[0], arrays[0].is_some() && parameter.dtype.size() == 2, compute)?;
    let (average, slow) =
        (view(&arrays[1], average.is_some(), compute)?, view(&arrays[2], lookahead.is_some(), compute)?);
    let remainder = view(&arrays[3], arrays[3].is_some() && master.is_none(), Dtype::Split)?;
    let rest = view(&arrays[4], average.is_some() && compute == Dtype::F32, compute)?;
    if right {
        Ok((arrays, Kept { master, average, slow, remainder, rest }))
    } else {
        Err(PyValueError::new_err("kept: not the arrays that what follows the rule needs"))
    }
}

impl Step {
    /// Binds one array for update number t, with states that the caller keeps and whose arrays outlive the use of `self`;
    /// so must what is returned.
    pub(crate) fn bind_one(
        &mut self,
        place: Place,
        t: u64,
        parameter: &Bound<'_, PyAny>,
        gradient: &Bound<'_, PyAny>,
        states: &[(String, Bound<'_, PyAny>)],
    ) -> PyResult<Py<PyAny>> {
        let written =
            std::iter::once(("p", parameter)).chain(states.iter().map(|(name, state)| (name.as_str(), state)));
        let written: Vec<_> = written.collect();
        let mut views = Vec::new();
        let bond = arrays::pairs_at(place, parameter, &|| "p".to_owned())?;
        for (i, &(name, object)) in written.iter().enumerate() {
            let called = || name.to_owned();
            let array = arrays::pairs_at(place, object, &called)?;
            array.check_writable(&called)?;
            let kind = i.checked_sub(1).and_then(|i| self.rule().states.get(i));
            let (dtype, shape) =
                kind.map_or((array.dtype, bond.shape()), |kind| kind.layout(Precision::Full, bond.dtype, bond.shape()));
            if array.shape() != shape || array.dtype != dtype {
                return Err(PyValueError::new_err(format!(
                    "{name}: expected {} of shape {}, got {} of shape {}",
                    dtype.name(),
                    tuple(shape),
                    array.dtype.name(),
                    tuple(array.shape())
                )));
            }
            for (other, earlier) in &written[..i] {
                if arrays::shares_memory(object, earlier)? {
                    return Err(PyValueError::new_err(format!("{name} and {other} share memory; pass a copy")));
                }
            }
            views.push(array.view());
        }
        let bond = Bond {
            dtype: bond.dtype,
            shape: bond.shape().to_vec(),
            strides: bond.strides().to_vec(),
            len: bond.len(),
            data: bond.data as usize,
            look: None,
            given: parameter.clone().unbind(),
            array: parameter.clone().unbind(),
            pairs: bond.complex.then(|| parameter.clone().unbind()),
            states: states.iter().map(|(_, state)| state.clone().unbind()).collect(),
            kept: Vec::new(),
            last_gradient: 0,
            sum: None,
        };
        let ranges = views.iter().filter_map(View::extent).map(|(low, high)| (low, high, 0)).collect();
        let (names, called) = (["p".to_owned()], || "g".to_owned());
        let (gradient, alive) =
            checked_gradient(place, &[bond], 0, &|_, _| false, &names, &called, &Occupied::new(ranges), gradient)?;
        let parameter = views.remove(0);
        // SAFETY: the arrays are alive as long as `self` is used, writable, of the same shape, and none overlaps another.
        unsafe { self.bind(parameter, views, 0) };
        self.set_updates(&[t - 1]);
        // SAFETY: checked against all that is written; alive as long as `self` is used, as the caller keeps it.
        unsafe { self.set_gradient(0, gradient) };
        Ok(alive)
    }
}

/// The states of all parameters, in order, as CUDA kernels read them.
fn described_states(step: &Step) -> PyResult<Vec<u64>> {
    described(step.states().map(|state| Some((state, 0))))
}

/// Arrays and their first blocks as CUDA kernels read them; zeros for those that are not there.
pub(crate) fn described<'a>(arrays: impl Iterator<Item = Option<(&'a View, usize)>>) -> PyResult<Vec<u64>> {
    let mut all = Vec::new();
    for array in arrays {
        let words = array.map_or(Some([0; WORDS]), |(view, first_block)| view.words(first_block));
        let too_many = || Error::Memory("an array has more than 8 axes that do not merge; pass x.copy()".to_owned());
        all.extend(words.ok_or_else(too_many)?);
    }
    Ok(all)
}

/// The gradients, as CUDA kernels read them: one that is not there keeps its place among the blocks.
fn described_gradients(step: &Step) -> PyResult<Vec<u64>> {
    let firsts = step.blocks().iter().copied();
    let mut words =
        described(step.gradients().zip(firsts.clone()).map(|(view, first)| view.map(|view| (view, first))))?;
    for ((row, parameter), first) in words.chunks_exact_mut(WORDS).zip(step.parameters()).zip(firsts) {
        row[1] = parameter.len() as u64;
        row[2] = first as u64;
        if row[0] == 0 {
            // No dtype's number: that one comes is then more than a new address.
            row[3] = u64::MAX;
        }
    }
    Ok(words)
}

/// A bound step as CUDA kernels read it.
pub(crate) fn tables<'py>(py: Python<'py>, step: &Step) -> PyResult<Bound<'py, PyDict>> {
    let tables = PyDict::new(py);
    let parameters = described(step.parameters().zip(step.blocks()).map(|(view, first)| Some((view, *first))))?;
    let blocks = step.blocks()[step.parameters().len()];
    tables.set_item("parameters", PyArray1::from_vec(py, parameters))?;
    tables.set_item("gradients", PyArray1::from_vec(py, described_gradients(step)?))?;
    tables.set_item("states", PyArray1::from_vec(py, described_states(step)?))?;
    tables.set_item("kept", PyArray1::from_vec(py, described(step.kept().flatten().map(|view| Some((view?, 0))))?))?;
    tables.set_item("numbers", PyArray1::from_vec(py, described(step.numbers().map(|number| Some((number, 0))))?))?;
    tables.set_item("coefficients", step.rule().coefficient_names.len())?;
    tables.set_item("groups", PyArray1::from_vec(py, step.group_numbers().map(|group| group as u64).collect()))?;
    tables.set_item("values", PyArray1::from_vec(py, step.values()))?;
    tables.set_item("blocks", blocks)?;
    tables.set_item("limits", [Dtype::F64, Dtype::F32].map(|dtype| step.limit(dtype)))?;
    Ok(tables)
}

impl Binding {
    /// Refuses parameters that the caller's container no longer holds.
    fn check_own(&self, py: Python<'_>) -> PyResult<()> {
        let mut replaced = None;
        let intact = self.tree.visit_own(py, |i, leaf| {
            if !leaf.is(&self.bonds[i].given) {
                replaced.get_or_insert(i);
            }
        })?;
        if let Some(i) = replaced {
            let name = &self.tree.names[i];
            return Err(PyValueError::new_err(format!(
                "params['{name}'] is another array than the one given to the optimizer; \
                 assign into it (w[...] = new), or make a new optimizer"
            )));
        }
        if !intact {
            return Err(PyValueError::new_err("params: entries were added or removed; make a new optimizer"));
        }
        Ok(())
    }

    /// Makes room to add up gradients, if there is none yet: all of it, or none.
    fn make_sums(&mut self, py: Python<'_>, new_sum: &Bound<'_, PyAny>) -> PyResult<()> {
        let Self { place, bonds, occupied, sums, .. } = self;
        if sums.views.len() == bonds.len() {
            return Ok(());
        }
        let mut made = Vec::with_capacity(bonds.len());
        for bond in bonds.iter() {
            let called = || "params".to_owned();
            let parameter = bond.reals(py);
            let array = arrays::array_at(*place, parameter, &called)?;
            let kinds = [State::first_moment("sum")];
            let (new, mut views) = states_of(*place, parameter, &array, &kinds, Precision::Full, new_sum)?;
            made.push((new[0].clone().unbind(), views.remove(0)));
        }
        for (i, (bond, (array, view))) in bonds.iter_mut().zip(made).enumerate() {
            if let Some((low, high)) = view.extent() {
                occupied.insert((low, high, i));
            }
            // What lay there before may have been a gradient.
            (bond.sum, bond.last_gradient) = (Some(array), 0);
            sums.views.push(view);
        }
        sums.present = vec![false; bonds.len()];
        Ok(())
    }

    /// One more micro-batch was added up.
    fn count(&mut self, weight: f64) {
        self.sums.count(weight, &self.step);
        if weight != 0.0 {
            self.backwards.spend();
        }
    }

    /// Whether there is nothing to take a mean of, for all micro-batches have a weight of 0; checks what a step would.
    fn weighs_nothing(&self, py: Python<'_>, grad_scale: Option<f64>) -> PyResult<bool> {
        if !self.sums.given {
            return Err(PyValueError::new_err(
                "step: expected gradients, or opt.accumulate(grads) before; none were accumulated since the last step",
            ));
        }
        self.check_own(py)?;
        for (bond, name) in self.bonds.iter().zip(&self.tree.names) {
            check_in_place(self.place, bond, name, bond.given.bind(py))?;
        }
        grad_scale.map_or(Ok(()), |scale| step::check_scale("grad_scale", scale))?;
        Ok(self.sums.weight == 0.0)
    }

    /// Takes the sums as gradients; returns what they come multiplied by.
    fn take_accumulated(&mut self, py: Python<'_>, grad_scale: Option<f64>) -> PyResult<f64> {
        if self.weighs_nothing(py, grad_scale)? {
            return Err(PyValueError::new_err("step: expected a micro-batch of a weight other than 0"));
        }
        check_any(self.sums.present.iter().copied())?;
        let _default = DefaultEnvironment::enter();
        let scale = match grad_scale {
            Some(scale) => scale * self.sums.weight,
            None => self.sums.weight,
        };
        step::check_scale("grad_scale times the weights of the micro-batches", scale)?;
        for (i, (view, present)) in self.sums.views.iter().zip(&self.sums.present).enumerate() {
            // SAFETY: made to fit; kept by the bonds, and apart from all else that the step writes.
            unsafe { self.step.set_gradient(i, present.then(|| view.clone())) };
        }
        Ok(scale)
    }

    fn discard(&mut self) {
        self.sums.discard();
    }

    /// Refuses a step in which no parameter has a gradient.
    fn check_some(&self) -> PyResult<()> {
        check_any(self.step.gradients().map(|gradient| gradient.is_some()))
    }

    /// Refuses what was taken if a step before has used it.
    fn check_fresh(&self) -> PyResult<()> {
        let stale: Vec<String> =
            self.backwards.stale().filter_map(|i| self.tree.names.get(i)).map(|name| gradient_called(name)).collect();
        if stale.is_empty() {
            return Ok(());
        }
        Err(PyValueError::new_err(format!(
            "{}: used by a step of this optimizer before, and no backward has run since; run backward before each step \
             (a plain dict of the same arrays, dict(layer.grads), is taken as it is)",
            stale.join(", ")
        )))
    }

    /// Takes the counts of a nesting's dicts, and nothing else.
    fn find_backwards(&mut self, grads: &Bound<'_, PyAny>) -> PyResult<()> {
        let Self { tree, backwards, .. } = self;
        backwards.taken.clear();
        let next = Cell::new(0);
        tree.visit_with(grads, |i, _| next.set(i + 1), |dict| backwards.take(dict, next.get()))?;
        Ok(())
    }

    fn check_nothing_pending(&self) -> PyResult<()> {
        if !self.sums.given {
            return Ok(());
        }
        Err(PyValueError::new_err(
            "step: accumulated gradients are waiting; call step() without gradients after opt.accumulate(grads), or drop \
             them by opt.discard_accumulated()",
        ))
    }

    /// What the device does not know yet of the gradients: their addresses, or all that describes them.
    fn news<'py>(&mut self, py: Python<'py>) -> PyResult<(Option<Words<'py>>, Option<Words<'py>>)> {
        let words = described_gradients(&self.step)?;
        let old = std::mem::replace(&mut self.described, words);
        let new = &self.described;
        if old == *new {
            return Ok((None, None));
        }
        let same_layout = old.len() == new.len() && (0..new.len()).all(|i| i % WORDS == 0 || old[i] == new[i]);
        if same_layout {
            let addresses = new.iter().step_by(WORDS).copied().collect();
            return Ok((Some(PyArray1::from_vec(py, addresses)), None));
        }
        Ok((None, Some(PyArray1::from_vec(py, new.clone()))))
    }

    /// Checks all gradients and then takes them; nothing is taken if anything is wrong.
    fn take<'py>(&mut self, py: Python<'py>, grads: &Bound<'py, PyAny>) -> PyResult<()> {
        self.check_own(py)?;
        let Self { place, step, tree, bonds, occupied, held, wide, backwards, .. } = self;
        held.clear();
        backwards.taken.clear();
        let next = Cell::new(0);
        let takes = |bond: &Bond, dtype| *wide && dtype == bond.dtype.compute();
        let mut wrong: Vec<PyErr> = Vec::new();
        let take = |i: usize, leaf: Bound<'py, PyAny>| {
            next.set(i + 1);
            if let Some(gradient) = bonds[i].again(*place, &leaf) {
                held.push(leaf.unbind());
                // SAFETY: as below; the gradient of a step before this one, or one that cannot be told from it.
                return unsafe { step.set_gradient(i, Some(gradient)) };
            }
            let name = &tree.names[i];
            let called = || gradient_called(name);
            match checked_gradient(*place, bonds, i, &takes, &tree.names, &called, occupied, &leaf) {
                Ok((gradient, array)) => {
                    // Only what `Look::again` describes completely may be let through by its address alone.
                    let plain = gradient.as_ref().filter(|view| view.is_contiguous() && view.dtype() == bonds[i].dtype);
                    bonds[i].last_gradient = plain.and_then(View::extent).map_or(0, |(low, _)| low);
                    held.push(array);
                    // SAFETY: checked to be as long as the parameter and apart from everything that is written; `held`
                    // keeps it alive until the step is over.
                    unsafe { step.set_gradient(i, gradient) };
                }
                Err(error) => wrong.push(error),
            }
        };
        if !tree.visit_with(grads, take, |dict| backwards.take(dict, next.get()))? {
            wrong.clear();
            let differences = format!("grads: {}", tree.differences(grads)?);
            let (given, leaves) = Tree::flatten(grads)?;
            for (name, leaf) in given.names.iter().zip(&leaves) {
                if let Some(i) = tree.names.iter().position(|own| own == name) {
                    let called = || format!("grads['{name}']");
                    wrong
                        .extend(checked_gradient(*place, bonds, i, &takes, &tree.names, &called, occupied, leaf).err());
                }
            }
            wrong.insert(0, PyValueError::new_err(differences));
        }
        match wrong.len() {
            0 => self.check_fresh(),
            1 => Err(wrong.remove(0)),
            _ => {
                let text = |error: &PyErr| Ok(error.value(py).str()?.to_string_lossy().into_owned());
                let all = wrong.iter().map(text).collect::<PyResult<Vec<String>>>()?;
                Err(PyErr::from_type(wrong[0].get_type(py), (all.join("\n"),)))
            }
        }
    }

    fn report(&self, py: Python<'_>, info: Info, policy: NonFinite) -> PyResult<StepInfo> {
        let Info { step, lr, grad_norm, skipped, nonfinite } = info;
        let nonfinite = nonfinite
            .map(|found| {
                let dict = PyDict::new(py);
                for (i, count, first) in found {
                    let first = if self.bonds[i].is_complex() { first / 2 } else { first };
                    dict.set_item(&self.tree.names[i], (count, first))?;
                }
                Ok::<_, PyErr>(dict)
            })
            .transpose()?;
        if skipped && policy == NonFinite::Raise && nonfinite.as_ref().is_some_and(|found| !found.is_empty()) {
            let found = nonfinite.map_or_else(|| Ok(String::new()), |found| found.repr()?.extract::<String>())?;
            return Err(Error::NotFinite(format!(
                "grads: not finite, or beyond what the states can hold: {found} (name: count, first index in C order); \
                 nothing was changed"
            ))
            .into());
        }
        Ok(StepInfo { step, lr, grad_norm, skipped, nonfinite: nonfinite.map(Bound::unbind) })
    }
}

/// What a gradient is called in errors.
fn gradient_called(name: &str) -> String {
    if name == "params" { "grads".to_owned() } else { format!("grads['{name}']") }
}

/// Refuses a step in which no parameter has a gradient.
fn check_any(mut there: impl ExactSizeIterator<Item = bool>) -> PyResult<()> {
    if there.len() == 0 || there.any(|there| there) {
        return Ok(());
    }
    Err(PyValueError::new_err(
        "grads: expected at least one gradient, got None for every parameter; run backward first",
    ))
}

/// What a parameter is called in errors.
fn parameter_called(name: &str) -> String {
    if name == "params" { name.to_owned() } else { format!("params['{name}']") }
}

/// The view of a gradient that may be used with this parameter, and the array to keep alive as long; None for None.
fn checked_gradient(
    place: Place,
    bonds: &[Bond],
    i: usize,
    takes: &dyn Fn(&Bond, Dtype) -> bool,
    names: &[String],
    called: &dyn Fn() -> String,
    occupied: &Occupied,
    leaf: &Bound<'_, PyAny>,
) -> PyResult<(Option<View>, Py<PyAny>)> {
    let (bond, py) = (&bonds[i], leaf.py());
    if bond.may_move(place) {
        check_in_place(place, bond, &names[i], bond.given.bind(py))?;
    }
    if leaf.is_none() {
        return Ok((None, py.None()));
    }
    let leaf = &match place {
        Place::Host if bond.outer().is_empty() && arrays::is_number(leaf, bond.is_complex()) => {
            arrays::number_as(leaf, bond.array.bind(py), bond.is_complex().then(|| bond.dtype_name()))?
        }
        _ => arrays::adopt(leaf, called, false)?,
    };
    let gradient = arrays::pairs_at(place, leaf, called)?;
    arrays::check_alike(&gradient, bond.is_complex(), bond.dtype, bond.outer(), called)?;
    if gradient.shape() != bond.shape {
        let (expected, got) = (bond.outer(), gradient.outer());
        let mut text =
            format!("{}: expected shape {} like its parameter, got {}", called(), tuple(expected), tuple(got));
        if got.iter().rev().eq(expected.iter()) {
            text += "; transpose it, or pass grads.T";
        } else if gradient.len() == bond.len {
            text += "; reshape it";
        }
        return Err(PyValueError::new_err(text));
    }
    // Half-precision gradients of float32 parameters are widened, exactly; anything else would hide a mistake.
    let widened = bond.dtype == Dtype::F32 && gradient.dtype != Dtype::F64;
    if gradient.dtype != bond.dtype && !widened && !takes(bond, gradient.dtype) {
        let text = format!(
            "{}: expected {} like its parameter, got {}; convert it with g.astype(w.dtype)",
            called(),
            bond.dtype_name(),
            gradient.dtype_name()
        );
        return Err(Error::Dtype(text).into());
    }
    let view = gradient.view();
    if let Some(extent) = view.extent() {
        for owner in occupied.overlapping(extent) {
            let Bond { array, states, kept, sum, .. } = &bonds[owner];
            for array in std::iter::once(array).chain(states).chain(kept.iter().flatten()).chain(sum) {
                if arrays::shares_memory(leaf, array.bind(py))? {
                    let text = format!(
                        "{}: shares memory with parameter '{}' or its states, which the step changes; pass a copy",
                        called(),
                        names[owner]
                    );
                    return Err(PyValueError::new_err(text));
                }
            }
        }
    }
    Ok((Some(view), leaf.clone().unbind()))
}

/// Refuses a parameter that was moved, resized or made read-only behind the optimizer's back.
fn check_in_place(place: Place, bond: &Bond, name: &str, parameter: &Bound<'_, PyAny>) -> PyResult<()> {
    if bond.in_place(parameter) {
        return Ok(());
    }
    let called = || parameter_called(name);
    let parameter = arrays::adopt(parameter, &called, true)?;
    let now = arrays::pairs_at(place, &parameter, &called)?;
    // Without elements there is no place: another library's empty array gives another address at each look.
    let elsewhere = bond.len > 0 && (now.data as usize != bond.data || now.strides() != bond.strides);
    let moved = elsewhere || now.complex != bond.is_complex();
    if moved || now.shape() != bond.shape || now.dtype != bond.dtype || !now.writable {
        return Err(PyValueError::new_err(format!(
            "{}: the array was resized, reshaped, moved or made read-only since the optimizer was made; make a new optimizer",
            called()
        )));
    }
    Ok(())
}
