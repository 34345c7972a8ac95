//! One thread at a time, and what a fork may cut short: nothing.
//!
//! A forked child has one thread, the one that forked. Python calls [`before_fork`] first, which waits until no thread is in
//! [`unforked`] work; so the child has steps that are done, or have not begun. What those threads held is free there.

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// Who holds a turn writes down this number, which a child counts up: what says another is held by nobody here.
static PROCESS: AtomicU32 = AtomicU32::new(1);
const FREE: u32 = 0;

/// Threads that are in unforked work, and those about to fork.
static WORKING: AtomicUsize = AtomicUsize::new(0);
static FORKING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// How many turns this thread has.
    static TAKEN: Cell<usize> = const { Cell::new(0) };
    /// Whether it is in unforked work.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// A lock that one never waits for: free, or another's.
#[pyclass(frozen, module = "ravine._core")]
#[derive(Debug, Default)]
pub(crate) struct Turn(AtomicU32);

impl Turn {
    #[inline]
    fn take(&self) -> bool {
        let (here, holder) = (PROCESS.load(Ordering::Relaxed), self.0.load(Ordering::Relaxed));
        let taken =
            holder != here && self.0.compare_exchange(holder, here, Ordering::Acquire, Ordering::Relaxed).is_ok();
        TAKEN.set(TAKEN.get() + usize::from(taken));
        taken
    }

    #[inline]
    fn free(&self) {
        self.0.store(FREE, Ordering::Release);
        TAKEN.set(TAKEN.get() - 1);
    }
}

#[pymethods]
impl Turn {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// Takes it, and says whether it could; as `threading.Lock`'s, but never waits.
    #[pyo3(signature = (blocking = false))]
    fn acquire(&self, blocking: bool) -> PyResult<bool> {
        if blocking {
            return Err(PyValueError::new_err("blocking: expected False, got True"));
        }
        Ok(self.take())
    }

    /// Gives it back; the thread that took it must.
    fn release(&self) -> PyResult<()> {
        if TAKEN.get() == 0 || self.0.load(Ordering::Relaxed) != PROCESS.load(Ordering::Relaxed) {
            return Err(PyRuntimeError::new_err("release: expected a turn that this thread took"));
        }
        self.free();
        Ok(())
    }

    fn __enter__(&self) -> PyResult<()> {
        if self.take() { Ok(()) } else { Err(taken()) }
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, _error: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.release()
    }
}

/// What it means that a turn is another's.
pub(super) fn taken() -> PyErr {
    PyRuntimeError::new_err("step: another thread is inside a step of this optimizer; give each thread its own")
}

/// A value that one thread at a time gets at.
#[derive(Debug)]
pub(crate) struct Alone<T> {
    turn: Turn,
    value: UnsafeCell<T>,
}

// SAFETY: references to the value are had by whoever has the turn, which is one thread of this process.
unsafe impl<T: Send> Sync for Alone<T> {}

impl<T> Alone<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { turn: Turn::default(), value: UnsafeCell::new(value) }
    }

    /// The value; None if another thread has it, or this one further up.
    #[inline]
    pub(crate) fn get(&self) -> Option<Hold<'_, T>> {
        self.turn.take().then(|| Hold(self, PhantomData))
    }
}

/// The value of an [`Alone`], until dropped by the thread that got it.
#[derive(Debug)]
pub(crate) struct Hold<'a, T>(&'a Alone<T>, PhantomData<*const ()>);

impl<T> Deref for Hold<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this is the one hold, as the turn was taken. Nobody in a forked child has another: there, turns of other
        // threads are free only if the thread that forked had none.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Hold<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Hold<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.0.turn.free();
    }
}

/// Does work that no fork may find half done. `wait` passes some time, without the interpreter's lock.
pub(crate) fn unforked<T>(wait: impl Fn(Duration), work: impl FnOnce() -> T) -> T {
    struct Inside;
    impl Drop for Inside {
        fn drop(&mut self) {
            INSIDE.set(false);
            WORKING.fetch_sub(1, Ordering::SeqCst);
        }
    }
    if INSIDE.get() {
        return work();
    }
    loop {
        WORKING.fetch_add(1, Ordering::SeqCst);
        INSIDE.set(true);
        let inside = Inside;
        if FORKING.load(Ordering::SeqCst) == 0 {
            return work();
        }
        drop(inside);
        wait(Duration::from_micros(50));
    }
}

/// Python calls it before a fork: waits until such work is done, but this thread's own, and lets none begin.
#[pyfunction]
fn before_fork(py: Python<'_>) {
    FORKING.fetch_add(1, Ordering::SeqCst);
    py.detach(|| {
        while WORKING.load(Ordering::SeqCst) > usize::from(INSIDE.get()) {
            thread::sleep(Duration::from_micros(20));
        }
    });
}

#[pyfunction]
fn after_fork_in_parent() {
    FORKING.fetch_sub(1, Ordering::SeqCst);
}

#[pyfunction]
fn after_fork_in_child() {
    FORKING.store(0, Ordering::SeqCst);
    WORKING.store(usize::from(INSIDE.get()), Ordering::SeqCst);
    // Else this thread forked inside a step, which it still is in.
    if TAKEN.get() == 0 {
        PROCESS.fetch_add(1, Ordering::Relaxed);
    }
}

/// Has Python call these, where there is a fork.
pub(crate) fn watch_forks(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let os = py.import("os")?;
    if os.hasattr("register_at_fork")? {
        let calls = PyDict::new(py);
        calls.set_item("before", wrap_pyfunction!(before_fork, module)?)?;
        calls.set_item("after_in_parent", wrap_pyfunction!(after_fork_in_parent, module)?)?;
        calls.set_item("after_in_child", wrap_pyfunction!(after_fork_in_child, module)?)?;
        os.call_method("register_at_fork", (), Some(&calls))?;
    }
    Ok(())
}
