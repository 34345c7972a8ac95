//! What a signal must not cut short.

use super::turn::unforked;
use pyo3::exceptions::{PyKeyboardInterrupt, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Signals are numbered from 1 to this on Linux, and to less elsewhere.
const LAST: i32 = 64;

/// Python's own functions of them, compiled: in those of `signal` handlers run.
struct Functions {
    getsignal: Py<PyAny>,
    signal: Py<PyAny>,
    raise_signal: Py<PyAny>,
}

static FUNCTIONS: PyOnceLock<Functions> = PyOnceLock::new();

fn functions(py: Python<'_>) -> PyResult<&Functions> {
    FUNCTIONS.get_or_try_init(py, || {
        let module = py.import("_signal")?;
        let named = |name| module.getattr(name).map(Bound::unbind);
        let (getsignal, signal, raise_signal) = (named("getsignal")?, named("signal")?, named("raise_signal")?);
        Ok(Functions { getsignal, signal, raise_signal })
    })
}

/// Stands for a signal's handler, and takes note.
#[pyclass(frozen, module = "ravine._core")]
#[derive(Debug, Default)]
struct Note(Mutex<BTreeSet<i32>>);

#[pymethods]
impl Note {
    fn __call__(&self, signal: i32, _frame: &Bound<'_, PyAny>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(signal);
    }
}

/// What something of Python's stands on that has to be undone: `with` calls its method `undo` in the end.
///
/// The first instruction of an `__exit__` in Python may be where a signal's handler runs, and raises.
#[pyclass(frozen, subclass, module = "ravine._core")]
#[derive(Debug)]
pub(crate) struct Undone;

#[pymethods]
impl Undone {
    #[new]
    #[pyo3(signature = (*_given, **_named))]
    fn new(_given: &Bound<'_, PyTuple>, _named: Option<&Bound<'_, PyDict>>) -> Self {
        Self
    }

    fn __enter__<'py>(this: &Bound<'py, Self>) -> Bound<'py, Self> {
        this.clone()
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(this: &Bound<'_, Self>, _error: &Bound<'_, PyTuple>) -> PyResult<()> {
        uninterrupted(&this.getattr("undo")?, true).map(drop)
    }
}

/// Looks for the functions while nothing is at stake.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    functions(py).map(drop)
}

/// Calls a function without arguments, and returns what it returns. Python's handlers of signals, which raise
/// `KeyboardInterrupt` for one, run before it or after it; what they raise, then, is raised when it is done. So do forks
/// by other threads.
///
/// No instruction of Python's, where a handler could run, is between the call of this and of the function.
///
/// With `again` the function may be called once more: it is, as long as something else raises `KeyboardInterrupt` in it.
#[pyfunction]
#[pyo3(signature = (action, again = false))]
pub(crate) fn uninterrupted<'py>(action: &Bound<'py, PyAny>, again: bool) -> PyResult<Bound<'py, PyAny>> {
    let py = action.py();
    let Functions { getsignal, signal, raise_signal } = functions(py)?;
    let note = Bound::new(py, Note::default())?;
    let (mut handlers, mut raised) = (Vec::new(), None);
    for number in 1..=LAST {
        let Ok(handler) = getsignal.bind(py).call1((number,)) else { continue };
        if !handler.is_callable() {
            continue;
        }
        // Each such call first runs handlers that wait; 4 is far more often than one does.
        let mut set = signal.bind(py).call1((number, &note));
        for _ in 0..4 {
            set = set.or_else(|error| {
                if error.is_instance_of::<PyValueError>(py) {
                    return Err(error); // another thread than the first, where no handler runs
                }
                raised = Some(error);
                signal.bind(py).call1((number, &note))
            });
        }
        if set.is_ok() {
            handlers.push((number, handler));
        }
    }
    let call = || unforked(|time| py.detach(|| thread::sleep(time)), || action.call0());
    let mut result = call();
    while again && result.as_ref().is_err_and(|error| error.is_instance_of::<PyKeyboardInterrupt>(py)) {
        raised = result.err();
        result = call();
    }
    for (number, handler) in &handlers {
        while let Err(error) = signal.bind(py).call1((*number, handler)) {
            raised = Some(error);
        }
    }
    let came = std::mem::take(&mut *note.get().0.lock().unwrap_or_else(PoisonError::into_inner));
    for number in came {
        if let Err(error) = raise_signal.bind(py).call1((number,)) {
            raised = Some(error);
        }
    }
    match (result, raised) {
        (Ok(_), Some(error)) => Err(error),
        (result, _) => result,
    }
}
