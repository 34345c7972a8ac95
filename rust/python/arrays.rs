//! NumPy arrays as checked views. Nothing else in the extension reads an array's memory or header.

use crate::element::{Dtype, View};
use crate::error::Error;
use numpy::npyffi::{NPY_ARRAY_ALIGNED, NPY_ARRAY_C_CONTIGUOUS, NPY_ARRAY_WRITEABLE, PyArrayObject};
use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use std::sync::atomic::{AtomicI32, Ordering};

/// NumPy's type number of ml_dtypes' bfloat16, once one was seen; no type has number −1.
static BFLOAT16: AtomicI32 = AtomicI32::new(-1);

/// An array whose header has been read and whose dtype is one that ravine computes with.
#[derive(Debug)]
pub(crate) struct Array<'a, 'py> {
    pub(crate) object: &'a Bound<'py, PyUntypedArray>,
    pub(crate) data: *mut u8,
    pub(crate) dtype: Dtype,
    pub(crate) contiguous: bool,
    pub(crate) writable: bool,
}

/// The array in `object`, called `name` in errors.
pub(crate) fn array<'a, 'py>(
    object: &'a Bound<'py, PyAny>,
    name: &dyn Fn() -> String,
) -> Result<Array<'a, 'py>, Error> {
    let Ok(object) = object.cast::<PyUntypedArray>() else {
        let kind = object.get_type().name().map_or_else(|_| "something else".to_owned(), |name| name.to_string());
        let kind = if kind == "ndarray" { "an array of another library".to_owned() } else { kind };
        return Err(Error::Dtype(format!("{}: expected a NumPy array, got {kind}; pass np.asarray(…)", name())));
    };
    let kind = object.get_type();
    if !kind.is(object.py().get_type::<PyUntypedArray>()) && kind.name().is_ok_and(|name| name == "MaskedArray") {
        return Err(Error::Dtype(format!(
            "{}: a masked array's mask would be ignored; pass x.data or x.filled(…)",
            name()
        )));
    }
    let descr = object.dtype();
    let dtype = match descr.num() {
        11 => Dtype::F32,
        12 => Dtype::F64,
        23 => Dtype::F16,
        number if number == BFLOAT16.load(Ordering::Relaxed) => Dtype::Bf16,
        number => other_dtype(&descr, number, name)?,
    };
    if descr.is_native_byteorder() == Some(false) {
        return Err(Error::Dtype(format!(
            "{}: expected native byte order, got {descr}; convert it with x.astype(x.dtype.newbyteorder('='))",
            name()
        )));
    }
    let header = object.as_array_ptr();
    // SAFETY: `object` is an ndarray, alive while it is borrowed.
    let flags = unsafe { (*header).fields.flags };
    // SAFETY: as above.
    let data = unsafe { (*header).fields.data };
    if flags & NPY_ARRAY_ALIGNED == 0 {
        return Err(Error::Memory(format!("{}: the array is not aligned for its dtype; pass x.copy()", name())));
    }
    Ok(Array {
        object,
        data: data.cast(),
        dtype,
        contiguous: flags & NPY_ARRAY_C_CONTIGUOUS != 0,
        writable: flags & NPY_ARRAY_WRITEABLE != 0,
    })
}

/// What an array looked like when it was checked: enough to see in a few loads that another one needs no second look.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    kind: usize,
    descr: usize,
    shape: Vec<usize>,
}

impl Look {
    /// None for arrays whose checks cannot be shortened: subclasses, and dtypes that are not NumPy's own.
    pub(crate) fn at(array: &Array<'_, '_>) -> Option<Self> {
        let object = array.object;
        let kind = object.get_type();
        let plain = kind.is(object.py().get_type::<PyUntypedArray>()) && array.dtype != Dtype::Bf16;
        // NumPy's own native dtypes are never freed, so an equal address is an equal dtype.
        let descr = object.dtype().as_ptr() as usize;
        plain.then(|| Self { kind: kind.as_ptr() as usize, descr, shape: array.shape().to_vec() })
    }

    /// The address and flags of `object`'s elements, if it is an array of this very type, dtype and shape that is
    /// contiguous and aligned.
    pub(crate) fn again(&self, object: &Bound<'_, PyAny>) -> Option<(*mut u8, bool)> {
        if object.get_type_ptr() as usize != self.kind {
            return None;
        }
        let header = object.as_ptr().cast::<PyArrayObject>();
        // SAFETY: the type was just compared: an ndarray, alive while it is borrowed.
        let fields = unsafe { &(*header).fields };
        let wanted = NPY_ARRAY_ALIGNED | NPY_ARRAY_C_CONTIGUOUS;
        if fields.descr as usize != self.descr
            || fields.flags & wanted != wanted
            || fields.nd as usize != self.shape.len()
        {
            return None;
        }
        // SAFETY: NumPy keeps `nd` lengths there; for nd = 0 the pointer is not read.
        let same =
            (0..self.shape.len()).all(|i| unsafe { *fields.dimensions.wrapping_add(i) } as usize == self.shape[i]);
        same.then_some((fields.data.cast(), fields.flags & NPY_ARRAY_WRITEABLE != 0))
    }
}

#[cold]
fn other_dtype(descr: &Bound<'_, PyArrayDescr>, number: i32, name: &dyn Fn() -> String) -> Result<Dtype, Error> {
    if number >= 256 && descr.typeobj().name().is_ok_and(|name| name == "bfloat16") {
        BFLOAT16.store(number, Ordering::Relaxed);
        return Ok(Dtype::Bf16);
    }
    Err(Error::Dtype(format!(
        "{}: expected float64, float32, float16 or bfloat16, got {descr}; convert it with x.astype(np.float32)",
        name()
    )))
}

impl Array<'_, '_> {
    pub(crate) fn shape(&self) -> &[usize] {
        self.object.shape()
    }

    /// Its elements as a view.
    pub(crate) fn view(&self) -> View {
        if self.contiguous {
            // SAFETY: NumPy's own flags say aligned and contiguous; who binds the view keeps the array alive.
            return unsafe { View::contiguous(self.data, self.dtype, self.object.len()) };
        }
        // SAFETY: NumPy's own shape and strides, aligned; who binds the view keeps the array alive.
        unsafe { View::new(self.data, self.dtype, self.object.shape(), self.object.strides()) }
    }

    /// Refuses what must not be written: read-only arrays, and arrays in which two elements share memory.
    pub(crate) fn check_writable(&self, name: &dyn Fn() -> String) -> Result<(), Error> {
        if !self.writable {
            return Err(Error::Memory(format!(
                "{}: the array is read-only; pass a writable one (x.copy(), or x.flags.writeable = True)",
                name()
            )));
        }
        if !self.contiguous && self.overlaps_itself() {
            return Err(Error::Memory(format!(
                "{}: elements share memory (a broadcast or sliding view, strides {:?} of shape {:?}); pass x.copy()",
                name(),
                self.object.strides(),
                self.shape()
            )));
        }
        Ok(())
    }

    /// Whether two indices may name the same memory: exact for whatever slicing, transposing and broadcasting make.
    fn overlaps_itself(&self) -> bool {
        let mut axes: Vec<(usize, usize)> =
            self.object.strides().iter().map(|s| s.unsigned_abs()).zip(self.shape().iter().copied()).collect();
        if self.object.is_empty() {
            return false;
        }
        axes.retain(|(_, n)| *n > 1);
        axes.sort_unstable();
        let mut reach = self.dtype.size();
        axes.iter().any(|(stride, n)| {
            let overlaps = *stride < reach;
            reach += stride * (n - 1);
            overlaps
        })
    }
}

/// Memory that the bound arrays occupy, to find out quickly who may overlap whom.
#[derive(Debug, Default)]
pub(crate) struct Occupied {
    /// Lowest and one past the highest address, and whose it is; sorted.
    ranges: Vec<(usize, usize, usize)>,
    /// For each range the highest end so far, so that a search can stop early.
    highest: Vec<usize>,
}

impl Occupied {
    pub(crate) fn new(mut ranges: Vec<(usize, usize, usize)>) -> Self {
        ranges.sort_unstable();
        let mut top = 0;
        let highest = ranges.iter().map(|(_, end, _)| {
            top = top.max(*end);
            top
        });
        Self { highest: highest.collect(), ranges }
    }

    /// Whose ranges have an address in common with `start..end`.
    pub(crate) fn overlapping(&self, (start, end): (usize, usize)) -> impl Iterator<Item = usize> {
        let after = self.ranges.partition_point(|(low, _, _)| *low < end);
        let reachable = (0..after).rev().take_while(move |i| self.highest[*i] > start);
        reachable.filter(move |i| self.ranges[*i].1 > start).map(|i| self.ranges[i].2)
    }

    /// Pairs of neighbours that have an address in common.
    pub(crate) fn pairs(&self) -> Vec<(usize, usize)> {
        let mut pairs = Vec::new();
        for (i, (low, high, owner)) in self.ranges.iter().enumerate() {
            let later = self.ranges[i + 1..].iter().take_while(|(other, _, _)| other < high);
            debug_assert!(low < high);
            pairs.extend(later.map(|(_, _, other)| (*owner.min(other), *owner.max(other))));
        }
        pairs.sort_unstable();
        pairs
    }
}

/// Views of several arrays, by name; of nothing for None. If they are to be written, none may share memory with another.
pub(crate) fn views(arrays: &[(String, Bound<'_, PyAny>)], written: bool) -> PyResult<Vec<View>> {
    let mut views = Vec::with_capacity(arrays.len());
    let mut ranges = Vec::new();
    for (i, (name, object)) in arrays.iter().enumerate() {
        if object.is_none() {
            views.push(View::empty());
            continue;
        }
        let called = || name.clone();
        let array = array(object, &called)?;
        if written {
            array.check_writable(&called)?;
        }
        let view = array.view();
        ranges.extend(view.extent().map(|(low, high)| (low, high, i)));
        views.push(view);
    }
    if written {
        check_apart(&Occupied::new(ranges), |i| (arrays[i].0.clone(), &arrays[i].1))?;
    }
    Ok(views)
}

/// Refuses arrays of which two share memory; `named` gives an array and what to call it.
pub(crate) fn check_apart<'a, 'py: 'a>(
    occupied: &Occupied,
    named: impl Fn(usize) -> (String, &'a Bound<'py, PyAny>),
) -> PyResult<()> {
    for (i, j) in occupied.pairs() {
        let ((name, array), (other, second)) = (named(i), named(j));
        if array.is(second) || shares_memory(array, second)? {
            let text = format!("{name} and {other} share memory, so what is there would change twice; pass it once");
            return Err(Error::Memory(text).into());
        }
    }
    Ok(())
}

/// Whether two arrays whose extents meet really share an element: columns of one matrix do not.
pub(crate) fn shares_memory(a: &Bound<'_, PyAny>, b: &Bound<'_, PyAny>) -> PyResult<bool> {
    a.py().import("numpy")?.call_method1("shares_memory", (a, b))?.extract()
}

/// A shape as Python writes it.
pub(crate) fn tuple(shape: &[usize]) -> String {
    match shape {
        [n] => format!("({n},)"),
        _ => format!("({})", shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// Work on fewer elements than this keeps the interpreter's lock: letting go of it costs as much.
const DETACH_FROM: usize = 1 << 12;

/// Does the work on so many elements, without the interpreter's lock if they are many.
pub(crate) fn detach<T: Send>(py: Python<'_>, elements: usize, work: impl FnOnce() -> T + Send) -> T {
    if elements < DETACH_FROM { work() } else { py.detach(work) }
}
