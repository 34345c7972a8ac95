//! Arrays as checked views: NumPy's, whose memory is read here, and CuPy's, whose memory only kernels read; other
//! libraries' become one of the two first. Nothing else in the extension reads an array's memory or header.

use super::turn::unforked;
use crate::element::{Dtype, View};
use crate::error::Error;
use crate::overlap::{Occupied, overlaps_itself};
use crate::step::Columns;
use numpy::npyffi::{NPY_ARRAY_ALIGNED, NPY_ARRAY_C_CONTIGUOUS, NPY_ARRAY_WRITEABLE, PyArrayObject};
use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyComplex, PyDict, PyFloat, PyInt};
use std::borrow::Cow;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

/// NumPy's type number of ml_dtypes' bfloat16, once one was seen; no type has number −1.
static BFLOAT16: AtomicI32 = AtomicI32::new(-1);

/// Where an array's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In NumPy's hands.
    Host,
    /// On the GPU of this number, in CuPy's hands.
    Device(i64),
}

impl Place {
    /// Where this array is, if it is CuPy's; else where NumPy's are, and what is no array at all is refused later.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        if object.cast::<PyUntypedArray>().is_ok() || !is_cupy(object)? {
            return Ok(Self::Host);
        }
        let device = object.getattr(intern!(object.py(), "device"))?;
        Ok(Self::Device(device.getattr(intern!(object.py(), "id"))?.extract()?))
    }
}

fn is_cupy(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let kind = object.get_type();
    let (module, name) = (kind.module()?, kind.name()?);
    Ok(name == "ndarray" && module.to_str()?.split('.').next() == Some("cupy"))
}

/// `object`, if it is NumPy's or CuPy's; else an array of theirs over the memory of an array of another library, which
/// is to be written or only read. What is no array comes back as it is, and is refused later.
pub(crate) fn adopt<'py>(
    object: &Bound<'py, PyAny>,
    name: &dyn Fn() -> String,
    written: bool,
) -> PyResult<Bound<'py, PyAny>> {
    static ADOPT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    if object.is_none() || object.cast::<PyUntypedArray>().is_ok() || is_cupy(object)? {
        return Ok(object.clone());
    }
    let adopt = ADOPT.import(object.py(), "ravine.backends.foreign", "adopt")?;
    adopt.call1((object, name(), written))
}

/// A complex array as the step has it, and as states are made like it: a view of its real and imaginary parts, on a last
/// axis of 2.
pub(crate) fn pairs_of<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    static PAIRS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    PAIRS.import(object.py(), "ravine.backends", "as_reals")?.call1((object,))
}

/// Whether it is a Python number that may stand for an array of no axes: it has no dtype of its own, and takes the other
/// operand's, as everywhere in NumPy.
pub(crate) fn is_number(object: &Bound<'_, PyAny>, complex: bool) -> bool {
    let real = object.is_exact_instance_of::<PyFloat>() || object.is_exact_instance_of::<PyInt>();
    real || complex && object.is_exact_instance_of::<PyComplex>()
}

/// A Python number as an array of no axes, in the dtype of an array or of this name.
pub(crate) fn number_as<'py>(
    number: &Bound<'py, PyAny>,
    like: &Bound<'py, PyAny>,
    complex: Option<&str>,
) -> PyResult<Bound<'py, PyAny>> {
    static ARRAY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let array = ARRAY.import(number.py(), "numpy", "array")?;
    if let Some(name) = complex {
        return array.call1((number, name));
    }
    array.call1((number, like.getattr(intern!(like.py(), "dtype"))?))
}

/// An array whose header has been read and whose dtype is one that ravine computes with.
#[derive(Debug)]
pub(crate) struct Array<'a, 'py> {
    pub(crate) object: &'a Bound<'py, PyAny>,
    pub(crate) data: *mut u8,
    /// Of a complex array, its parts'.
    pub(crate) dtype: Dtype,
    /// Whether its last axis, of 2, is the real and the imaginary part of complex numbers.
    pub(crate) complex: bool,
    pub(crate) contiguous: bool,
    pub(crate) writable: bool,
    shape: Cow<'a, [usize]>,
    strides: Cow<'a, [isize]>,
}

/// The NumPy array in `object`, called `name` in errors.
pub(crate) fn array<'a, 'py>(
    object: &'a Bound<'py, PyAny>,
    name: &dyn Fn() -> String,
) -> Result<Array<'a, 'py>, Error> {
    array_of(object, name, &dtype_of)
}

/// NumPy's numbers of complex64 and complex128.
const COMPLEX: [i32; 2] = [14, 15];

/// Gives complex numbers their last axis.
fn in_pairs<'a>(
    dtype: Dtype,
    shape: Cow<'a, [usize]>,
    strides: Cow<'a, [isize]>,
) -> (Cow<'a, [usize]>, Cow<'a, [isize]>) {
    let (mut shape, mut strides) = (shape.into_owned(), strides.into_owned());
    shape.push(2);
    strides.push(dtype.size().cast_signed());
    (Cow::Owned(shape), Cow::Owned(strides))
}

/// How a dtype of NumPy is read; the error names the array.
type Reading<'r> = &'r dyn Fn(&Bound<'_, PyArrayDescr>, &dyn Fn() -> String) -> Result<Dtype, Error>;

fn array_of<'a, 'py>(
    object: &'a Bound<'py, PyAny>,
    name: &dyn Fn() -> String,
    reading: Reading<'_>,
) -> Result<Array<'a, 'py>, Error> {
    let Ok(numpy) = object.cast::<PyUntypedArray>() else { return Err(not_numpy(object, name)) };
    let kind = numpy.get_type();
    if !kind.is(numpy.py().get_type::<PyUntypedArray>()) && kind.name().is_ok_and(|name| name == "MaskedArray") {
        return Err(Error::Dtype(format!(
            "{}: a masked array's mask would be ignored; pass x.data or x.filled(…)",
            name()
        )));
    }
    let descr = numpy.dtype();
    let dtype = reading(&descr, name)?;
    let header = numpy.as_array_ptr();
    // SAFETY: `numpy` is an ndarray, alive while it is borrowed.
    let flags = unsafe { (*header).fields.flags };
    // SAFETY: as above.
    let data = unsafe { (*header).fields.data };
    if flags & NPY_ARRAY_ALIGNED == 0 {
        return Err(unaligned(name));
    }
    let (mut shape, mut strides) = (Cow::Borrowed(numpy.shape()), Cow::Borrowed(numpy.strides()));
    let complex = COMPLEX.contains(&descr.num());
    if complex {
        (shape, strides) = in_pairs(dtype, shape, strides);
    }
    Ok(Array {
        object,
        data: data.cast(),
        dtype,
        complex,
        contiguous: flags & NPY_ARRAY_C_CONTIGUOUS != 0,
        writable: flags & NPY_ARRAY_WRITEABLE != 0,
        shape,
        strides,
    })
}

/// The array in `object`, which must be at that place.
pub(crate) fn array_at<'a, 'py>(
    place: Place,
    object: &'a Bound<'py, PyAny>,
    name: &dyn Fn() -> String,
) -> PyResult<Array<'a, 'py>> {
    array_read(place, object, name, &dtype_of)
}

/// The same, complex numbers as pairs of reals.
pub(crate) fn pairs_at<'a, 'py>(
    place: Place,
    object: &'a Bound<'py, PyAny>,
    name: &dyn Fn() -> String,
) -> PyResult<Array<'a, 'py>> {
    array_read(place, object, name, &dtype_of_pairs)
}

/// The same of a state that is kept so: two bytes or one of NumPy's integers may be its bits.
pub(crate) fn state_at<'a, 'py>(
    place: Place,
    object: &'a Bound<'py, PyAny>,
    name: &dyn Fn() -> String,
    kept: Dtype,
) -> PyResult<Array<'a, 'py>> {
    array_read(place, object, name, &|descr, name| {
        let number = match kept {
            Dtype::Signed8 => 1,
            Dtype::Unsigned8 => 2,
            Dtype::Split => 3,
            Dtype::Bf16 | Dtype::Bf16Random | Dtype::Bf16Parameter => 4,
            Dtype::F64 | Dtype::F32 | Dtype::F16 => return dtype_of(descr, name),
        };
        if descr.num() == number && descr.is_native_byteorder() != Some(false) {
            return Ok(kept);
        }
        Err(Error::Dtype(format!("{}: expected {}, got {descr}", name(), kept.name_of_state())))
    })
}

fn array_read<'a, 'py>(
    place: Place,
    object: &'a Bound<'py, PyAny>,
    name: &dyn Fn() -> String,
    reading: Reading<'_>,
) -> PyResult<Array<'a, 'py>> {
    let Place::Device(gpu) = place else { return Ok(array_of(object, name, reading)?) };
    match Place::of(object)? {
        Place::Device(other) if other == gpu => {}
        Place::Device(other) => {
            return Err(Error::Memory(format!(
                "{}: expected an array on GPU {gpu}, got one on GPU {other}; copy it: with cupy.cuda.Device({gpu}): \
                 cupy.array(x)",
                name()
            ))
            .into());
        }
        Place::Host => {
            let kind = object.get_type().fully_qualified_name()?;
            let cure = if object.cast::<PyUntypedArray>().is_ok() {
                "pass cupy.asarray(x)"
            } else if object.hasattr(intern!(object.py(), "__dlpack__"))? {
                "pass cupy.from_dlpack(x), which also waits for what is pending on its stream"
            } else {
                "pass cupy.asarray(…)"
            };
            return Err(Error::Dtype(format!("{}: expected a CuPy array, got {kind}; {cure}", name())).into());
        }
    }
    let py = object.py();
    let data: usize = object.getattr(intern!(py, "data"))?.getattr(intern!(py, "ptr"))?.extract()?;
    let descr = object.getattr(intern!(py, "dtype"))?.cast_into::<PyArrayDescr>()?;
    let dtype = reading(&descr, name)?;
    let shape: Vec<usize> = object.getattr(intern!(py, "shape"))?.extract()?;
    let strides: Vec<isize> = object.getattr(intern!(py, "strides"))?.extract()?;
    let contiguous = object.getattr(intern!(py, "flags"))?.getattr(intern!(py, "c_contiguous"))?.extract()?;
    let aligned = |address: usize| address.is_multiple_of(dtype.size());
    if !aligned(data) || !strides.iter().all(|stride| aligned(stride.unsigned_abs())) {
        return Err(unaligned(name).into());
    }
    let (mut shape, mut strides) = (Cow::Owned(shape), Cow::Owned(strides));
    let complex = COMPLEX.contains(&descr.num());
    if complex {
        (shape, strides) = in_pairs(dtype, shape, strides);
    }
    Ok(Array { object, data: data as *mut u8, dtype, complex, contiguous, writable: true, shape, strides })
}

#[cold]
fn not_numpy(object: &Bound<'_, PyAny>, name: &dyn Fn() -> String) -> Error {
    if is_cupy(object).unwrap_or(false) {
        return Error::Dtype(format!("{}: expected a NumPy array, got a CuPy array; pass cupy.asnumpy(x)", name()));
    }
    let kind = object
        .get_type()
        .name()
        .map_or_else(|_| "something else".to_owned(), |name| name.to_string_lossy().into_owned());
    let kind = if kind == "ndarray" { "an array of another library".to_owned() } else { kind };
    Error::Dtype(format!("{}: expected a NumPy array, got {kind}; pass np.asarray(…)", name()))
}

#[cold]
fn unaligned(name: &dyn Fn() -> String) -> Error {
    Error::Memory(format!("{}: the array is not aligned for its dtype; pass x.copy()", name()))
}

fn dtype_of(descr: &Bound<'_, PyArrayDescr>, name: &dyn Fn() -> String) -> Result<Dtype, Error> {
    let dtype = match descr.num() {
        11 => Dtype::F32,
        12 => Dtype::F64,
        23 => Dtype::F16,
        number if number == BFLOAT16.load(Ordering::Relaxed) => Dtype::Bf16,
        number => other_dtype(descr, number, name)?,
    };
    check_byte_order(descr, name)?;
    Ok(dtype)
}

/// The dtype of a complex dtype's parts; of others, as above.
fn dtype_of_pairs(descr: &Bound<'_, PyArrayDescr>, name: &dyn Fn() -> String) -> Result<Dtype, Error> {
    let dtype = match descr.num() {
        14 => Dtype::F32,
        15 => Dtype::F64,
        16 => {
            let text = format!("{}: expected complex64 or complex128, got {descr}", name());
            return Err(Error::Dtype(text + "; convert it with x.astype(np.complex128)"));
        }
        _ => return dtype_of(descr, name),
    };
    check_byte_order(descr, name)?;
    Ok(dtype)
}

fn check_byte_order(descr: &Bound<'_, PyArrayDescr>, name: &dyn Fn() -> String) -> Result<(), Error> {
    if descr.is_native_byteorder() == Some(false) {
        return Err(Error::Dtype(format!(
            "{}: expected native byte order, got {descr}; convert it with x.astype(x.dtype.newbyteorder('='))",
            name()
        )));
    }
    Ok(())
}

/// What an array looked like when it was checked: enough to see in a few loads that another one needs no second look.
#[derive(Debug)]
pub(crate) enum Look {
    /// Addresses of the type and the dtype.
    Host { kind: usize, descr: usize, shape: Vec<usize> },
    /// The type's and the dtype's addresses, and CuPy's own tuples.
    Device { kind: usize, descr: Py<PyAny>, gpu: i64, shape: Py<PyAny>, strides: Py<PyAny> },
}

impl Look {
    /// None for arrays whose checks cannot be shortened: strided, subclasses, and dtypes that are not NumPy's own.
    pub(crate) fn at(place: Place, array: &Array<'_, '_>) -> PyResult<Option<Self>> {
        let py = array.object.py();
        let kind = array.object.get_type_ptr() as usize;
        if !array.contiguous || array.dtype == Dtype::Bf16 {
            return Ok(None);
        }
        if let Place::Device(gpu) = place {
            let attribute = |name| Ok::<_, PyErr>(array.object.getattr(name)?.unbind());
            let (shape, strides) = (attribute("shape")?, attribute("strides")?);
            return Ok(Some(Self::Device { kind, descr: attribute("dtype")?, gpu, shape, strides }));
        }
        let Ok(numpy) = array.object.cast::<PyUntypedArray>() else { return Ok(None) };
        let plain = numpy.get_type().is(py.get_type::<PyUntypedArray>());
        // NumPy's own native dtypes are never freed, so an equal address is an equal dtype.
        let descr = numpy.dtype().as_ptr() as usize;
        Ok(plain.then(|| Self::Host { kind, descr, shape: numpy.shape().to_vec() }))
    }

    /// The address and flags of `object`'s elements, if it is an array of this very type, dtype and shape that is
    /// contiguous and aligned.
    pub(crate) fn again(&self, object: &Bound<'_, PyAny>) -> Option<(*mut u8, bool)> {
        match self {
            Self::Host { kind, descr, shape } => Self::again_on_host(*kind, *descr, shape, object),
            Self::Device { kind, descr, gpu, shape, strides } => {
                if object.get_type_ptr() as usize != *kind {
                    return None;
                }
                let py = object.py();
                let same = |name, known: &Py<PyAny>| object.getattr(name).ok()?.eq(known.bind(py)).ok();
                let data = object.getattr(intern!(py, "data")).ok()?;
                let place: i64 = data.getattr(intern!(py, "device_id")).ok()?.extract().ok()?;
                let address: usize = data.getattr(intern!(py, "ptr")).ok()?.extract().ok()?;
                let known = place == *gpu
                    && address.is_multiple_of(size_of::<f64>())
                    && object.getattr(intern!(py, "dtype")).ok()?.is(descr)
                    && same(intern!(py, "shape"), shape)?
                    && same(intern!(py, "strides"), strides)?;
                known.then_some((address as *mut u8, true))
            }
        }
    }

    fn again_on_host(kind: usize, descr: usize, shape: &[usize], object: &Bound<'_, PyAny>) -> Option<(*mut u8, bool)> {
        if object.get_type_ptr() as usize != kind {
            return None;
        }
        let header = object.as_ptr().cast::<PyArrayObject>();
        // SAFETY: the type was just compared: an ndarray, alive while it is borrowed.
        let fields = unsafe { &(*header).fields };
        let wanted = NPY_ARRAY_ALIGNED | NPY_ARRAY_C_CONTIGUOUS;
        if fields.descr as usize != descr || fields.flags & wanted != wanted || fields.nd as usize != shape.len() {
            return None;
        }
        // SAFETY: NumPy keeps `nd` lengths there; for nd = 0 the pointer is not read.
        let same = (0..shape.len()).all(|i| unsafe { *fields.dimensions.wrapping_add(i) } as usize == shape[i]);
        same.then_some((fields.data.cast(), fields.flags & NPY_ARRAY_WRITEABLE != 0))
    }
}

#[cold]
fn other_dtype(descr: &Bound<'_, PyArrayDescr>, number: i32, name: &dyn Fn() -> String) -> Result<Dtype, Error> {
    if number >= 256 && descr.typeobj().name().is_ok_and(|name| name == "bfloat16") {
        BFLOAT16.store(number, Ordering::Relaxed);
        return Ok(Dtype::Bf16);
    }
    let cure = if descr.kind() == b'c' { "pass x.real, x.imag" } else { "convert it with x.astype(np.float32)" };
    Err(Error::Dtype(format!("{}: expected float64, float32, float16 or bfloat16, got {descr}; {cure}", name())))
}

/// What NumPy calls the dtype of such numbers, or of pairs of them.
pub(crate) fn dtype_name(dtype: Dtype, complex: bool) -> &'static str {
    match dtype {
        Dtype::F32 if complex => "complex64",
        Dtype::F64 if complex => "complex128",
        _ => dtype.name(),
    }
}

/// A shape as the user has it: without the axis of the parts.
pub(crate) fn outer(shape: &[usize], complex: bool) -> &[usize] {
    &shape[..shape.len() - usize::from(complex)]
}

impl Array<'_, '_> {
    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub(crate) fn strides(&self) -> &[isize] {
        &self.strides
    }

    /// Its shape as the user has it.
    pub(crate) fn outer(&self) -> &[usize] {
        outer(&self.shape, self.complex)
    }

    /// Its dtype as the user has it.
    pub(crate) fn dtype_name(&self) -> &'static str {
        dtype_name(self.dtype, self.complex)
    }

    /// How many elements it has; of complex ones, twice as many.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its elements as a view.
    pub(crate) fn view(&self) -> View {
        if self.contiguous {
            // SAFETY: the library's own flags say aligned and contiguous; who binds the view keeps the array alive.
            return unsafe { View::contiguous(self.data, self.dtype, self.len()) };
        }
        // SAFETY: the library's own shape and strides, aligned; who binds the view keeps the array alive.
        unsafe { View::new(self.data, self.dtype, &self.shape, &self.strides) }
    }

    /// Refuses what must not be written: read-only arrays, and arrays in which two elements share memory.
    pub(crate) fn check_writable(&self, name: &dyn Fn() -> String) -> Result<(), Error> {
        if !self.writable {
            return Err(Error::Memory(format!(
                "{}: the array is read-only; pass a writable one (x.copy(), or x.flags.writeable = True)",
                name()
            )));
        }
        if !self.contiguous && overlaps_itself(self.dtype.size(), &self.shape, &self.strides) {
            return Err(Error::Memory(format!(
                "{}: elements share memory (a broadcast or sliding view, strides {:?} of shape {:?}); pass x.copy()",
                name(),
                &self.strides[..self.outer().len()],
                self.outer()
            )));
        }
        Ok(())
    }
}

/// Where the first of several arrays is.
pub(crate) fn place_of(arrays: &[(String, Bound<'_, PyAny>)]) -> PyResult<Place> {
    arrays.iter().find(|(_, object)| !object.is_none()).map_or(Ok(Place::Host), |(_, object)| Place::of(object))
}

/// Views of several arrays at one place, by name; of nothing for None. If they are to be written, none may share memory
/// with another.
pub(crate) fn views(place: Place, arrays: &[(String, Bound<'_, PyAny>)], written: bool) -> PyResult<Vec<View>> {
    let mut views = Vec::with_capacity(arrays.len());
    let mut ranges = Vec::new();
    for (i, (name, object)) in arrays.iter().enumerate() {
        if object.is_none() {
            views.push(View::empty());
            continue;
        }
        let called = || name.clone();
        let array = pairs_at(place, object, &called)?;
        if written {
            array.check_writable(&called)?;
        }
        let view = array.view();
        ranges.extend(view.extent().map(|(low, high)| (low, high, i)));
        views.push(view);
    }
    if written {
        check_apart(&Occupied::new(ranges), &views, |i| (arrays[i].0.clone(), &arrays[i].1))?;
    }
    Ok(views)
}

/// The units of arrays of which the others are the gradients, to be written: their elements at each index of an axis,
/// all elements where there is but one axis or none.
pub(crate) struct Units {
    /// Parameters and gradients with the units' axis first, and how many units each has; 0 of nothing.
    pub(crate) whole: Vec<([View; 2], usize)>,
    /// A view of each unit, but of those in `columns`.
    pub(crate) rows: [Vec<View>; 2],
    /// Arrays that are better read as they lie, their last axis being the units'.
    pub(crate) columns: Vec<Columns>,
}

impl Units {
    /// Refuses arrays whose shapes differ, and gradients that share memory with a parameter or a gradient.
    pub(crate) fn new(
        place: Place,
        parameters: &[(String, Bound<'_, PyAny>)],
        gradients: &[(String, Bound<'_, PyAny>)],
        axis: isize,
    ) -> PyResult<Self> {
        let known = views(place, parameters, false)?;
        let ranges = known.iter().enumerate().filter_map(|(i, view)| view.extent().map(|(low, high)| (low, high, i)));
        let occupied = Occupied::new(ranges.collect());
        views(place, gradients, true)?;
        let mut units = Self { whole: Vec::new(), rows: [Vec::new(), Vec::new()], columns: Vec::new() };
        for ((name, parameter), (called, gradient)) in parameters.iter().zip(gradients) {
            let pair = [pairs_at(place, parameter, &|| name.clone())?, pairs_at(place, gradient, &|| called.clone())?];
            check_alike(&pair[1], pair[0].complex, pair[0].dtype, pair[0].outer(), &|| called.clone())?;
            let shape = pair[0].outer();
            if pair[1].outer() != shape {
                let (expected, got) = (tuple(shape), tuple(pair[1].outer()));
                let text = format!("{called}: expected shape {expected} like its parameter, got {got}");
                return Err(Error::Shape(text).into());
            }
            for owner in pair[1].view().extent().into_iter().flat_map(|extent| occupied.overlapping(extent)) {
                let (owner, other) = &parameters[owner];
                if shares_memory(gradient, other)? {
                    return Err(Error::Memory(format!("{called}: shares memory with {owner}; pass a copy")).into());
                }
            }
            let axes = shape.len().cast_signed();
            if axes > 1 && !(-axes..axes).contains(&axis) {
                let (shape, least, most) = (tuple(shape), -axes, axes - 1);
                let text = format!("axis: expected one of {least} to {most} for {name} of shape {shape}, got {axis}");
                return Err(Error::Shape(text).into());
            }
            units.push(pair, if axes > 1 { Some(axis.rem_euclid(axes).cast_unsigned()) } else { None });
        }
        Ok(units)
    }

    fn push(&mut self, pair: [Array<'_, '_>; 2], axis: Option<usize>) {
        let count = if pair[0].len() == 0 { 0 } else { axis.map_or(1, |axis| pair[0].shape[axis]) };
        let whole = pair.each_ref().map(|array| {
            let (mut shape, mut strides) = (array.shape.to_vec(), array.strides.to_vec());
            if let Some(axis) = axis {
                shape[..=axis].rotate_right(1);
                strides[..=axis].rotate_right(1);
            }
            (array.data, array.dtype, shape, strides)
        });
        // The last axis of complex numbers is never one of units.
        let last = axis.is_some_and(|axis| axis + 1 == pair[0].shape.len());
        if last && pair.iter().all(|array| array.contiguous) && count > 0 {
            self.columns.push((pair.each_ref().map(Array::view), count));
        } else {
            self.push_rows(&whole, axis.is_some(), count);
        }
        // SAFETY: the library's own shape and strides in another order, aligned; kept alive as above.
        let whole = whole.map(|(data, dtype, shape, strides)| unsafe { View::new(data, dtype, &shape, &strides) });
        self.whole.push((whole, count));
    }

    fn push_rows(&mut self, whole: &[(*mut u8, Dtype, Vec<usize>, Vec<isize>); 2], several: bool, count: usize) {
        for (units, (data, dtype, shape, strides)) in self.rows.iter_mut().zip(whole) {
            for unit in 0..count {
                let (axes, offset) = if several { (1, unit.cast_signed() * strides[0]) } else { (0, 0) };
                let (rest, steps) = (&shape[axes..], &strides[axes..]);
                // SAFETY: a part of the library's own array, aligned; who uses the view keeps the array alive.
                units.push(unsafe { View::new(data.wrapping_offset(offset), *dtype, rest, steps) });
            }
        }
    }
}

/// Refuses a real gradient of a complex parameter, and the other way round.
pub(crate) fn check_alike(
    gradient: &Array<'_, '_>,
    complex: bool,
    dtype: Dtype,
    shape: &[usize],
    called: &dyn Fn() -> String,
) -> Result<(), Error> {
    if gradient.complex == complex {
        return Ok(());
    }
    let cure = match (complex, gradient.shape.split_last()) {
        (false, _) => "pass its real part, g.real",
        (true, Some((2, outer))) if outer == shape => "pass g[..., 0] + 1j * g[..., 1]",
        (true, _) => "convert it with g.astype(w.dtype)",
    };
    let (expected, got) = (dtype_name(dtype, complex), gradient.dtype_name());
    Err(Error::Dtype(format!("{}: expected {expected} like its parameter, got {got}; {cure}", called())))
}

/// Refuses arrays of which two share memory, by their views; `named` gives an array and what to call it.
pub(crate) fn check_apart<'a, 'py: 'a>(
    occupied: &Occupied,
    views: &[View],
    named: impl Fn(usize) -> (String, &'a Bound<'py, PyAny>),
) -> PyResult<()> {
    for (i, j) in occupied.pairs(views) {
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
    let (numpy, a, b) = (a.py().import("numpy")?, described(a)?, described(b)?);
    numpy.call_method1("shares_memory", (a, b))?.extract()
}

/// For a device's array, a NumPy array of the same addresses, which nobody may read; for others, itself.
fn described<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let (Place::Device(_), py) = (Place::of(object)?, object.py()) else { return Ok(object.clone()) };
    let interface = PyDict::new(py);
    interface.set_item("version", 3)?;
    interface.set_item("shape", object.getattr("shape")?)?;
    interface.set_item("strides", object.getattr("strides")?)?;
    interface.set_item("data", (object.getattr("data")?.getattr("ptr")?, false))?;
    interface.set_item("typestr", format!("|V{}", object.getattr("itemsize")?))?;
    let space = PyDict::new(py);
    space.set_item("__array_interface__", interface)?;
    let carrier = py.import("types")?.getattr("SimpleNamespace")?.call((), Some(&space))?;
    py.import("numpy")?.call_method1("asarray", (carrier,))
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

/// Does the work on so many elements, without the interpreter's lock if they are many; a fork waits for it.
pub(crate) fn detach<T: Send>(py: Python<'_>, elements: usize, work: impl FnOnce() -> T + Send) -> T {
    if elements < DETACH_FROM { work() } else { py.detach(|| unforked(thread::sleep, work)) }
}
