//! Batch norm and layer norm over NumPy arrays. Everything is checked before anything is written.

use super::arrays::{self, Array, detach, tuple};
use crate::element::{Arithmetic, BLOCK, Dtype, View};
use crate::error::Error;
use crate::norm::batch::{self, Affine, Layout};
use crate::norm::{self, Memory, layer};
use crate::simd::DefaultEnvironment;
use numpy::{PyArray1, PyUntypedArrayMethods};
use pyo3::prelude::*;

/// Runs the body with `$A` as the type that the dtype names; [`input`] refuses all others.
macro_rules! with_arithmetic {
    ($dtype:expr, $A:ident => $body:expr) => {
        if $dtype == Dtype::F64 {
            type $A = f64;
            $body
        } else {
            type $A = f32;
            $body
        }
    };
}
type Object<'py> = Bound<'py, PyAny>;
type Vector<'py> = Bound<'py, PyArray1<f64>>;

/// y, by the statistics of the batch or by the running ones; returns (μ, 1/√(σ² + ε)) per channel.
#[pyfunction]
pub(crate) fn batch_norm<'py>(
    py: Python<'py>,
    x: &Object<'py>,
    axis: usize,
    weight: Option<&Object<'py>>,
    bias: Option<&Object<'py>>,
    running_mean: Option<&Object<'py>>,
    running_var: Option<&Object<'py>>,
    training: bool,
    momentum: f64,
    eps: f64,
    out: &Object<'py>,
) -> PyResult<(Vector<'py>, Vector<'py>)> {
    let _default = DefaultEnvironment::enter();
    check_number("eps", eps, eps >= 0.0 && eps.is_finite(), "a finite number ≥ 0")?;
    check_number("momentum", momentum, (0.0..=1.0).contains(&momentum), "a number in [0, 1]")?;
    let x = input("x", x)?;
    let channels = per_channel(&x, axis)?;
    let numbers = |name, object: Option<&Object<'py>>, default| vector(name, object, &x, &[channels], default);
    let (scale, shift) = (numbers("weight", weight, 1.0)?, numbers("bias", bias, 0.0)?);
    let (mut mean, mut var) = (numbers("running_mean", running_mean, 0.0)?, numbers("running_var", running_var, 1.0)?);
    let given = [("weight", weight), ("bias", bias), ("running_mean", running_mean), ("running_var", running_var)];
    let small = given.into_iter().filter_map(|(name, object)| Some(named(name, object?).map(|array| (name, array))));
    let small = small.collect::<Result<Vec<_>, Error>>()?;
    let mut others = vec![("x", &x)];
    others.extend(small.iter().map(|(name, array)| (*name, array)));
    let y = output("out", out, &x, &others)?;
    let running = match &small[..] {
        [.., (_, mean), (_, var)] if running_mean.is_some() && running_var.is_some() => Some([mean, var]),
        _ if running_mean.is_some() => {
            return refuse("running_var: expected an array like running_mean, got None; pass both or neither");
        }
        _ if running_var.is_some() => {
            return refuse("running_mean: expected an array like running_var, got None; pass both or neither");
        }
        _ if training => None,
        _ => {
            return refuse(
                "running_mean, running_var: expected arrays for training=False, got None; pass those kept in training",
            );
        }
    };
    let layout = Layout::new(x.shape(), axis);
    let count = layout.count();
    if training && count < 2 && channels > 0 {
        return refuse(&format!(
            "x: expected at least 2 elements per channel in training, got {count} (shape {}, axis {axis}): they have no \
             variance; pass a larger batch, or training=False",
            tuple(x.shape())
        ));
    }
    for (before, (name, array)) in
        small.iter().enumerate().filter(|(_, (name, _))| training && name.starts_with("running"))
    {
        array.check_writable(&|| (*name).to_owned())?;
        check_apart(name, array, &others[..=before])?;
    }
    let affine = Affine { weight: &scale, bias: &shift };
    if !training {
        let inv_std = inv_std(&var, eps);
        let (mean_of, inv_of) = (&mean, &inv_std);
        with_arithmetic!(x.dtype, A => {
            let (x, y) = (memory::<A>(&x), memory::<A>(&y));
            // SAFETY: `output` checked that y may be written and shares nothing with x.
            detach(py, layout.elements(), || unsafe { batch::forward(layout, x, y, affine, mean_of, inv_of) });
        });
        return Ok((PyArray1::from_vec(py, mean), PyArray1::from_vec(py, inv_std)));
    }
    let statistics = with_arithmetic!(x.dtype, A => {
        let (x, y) = (memory::<A>(&x), memory::<A>(&y));
        // SAFETY: as above.
        detach(py, layout.elements(), || unsafe { batch::forward_training(layout, x, y, affine, eps) })
    });
    if let Some(running) = &running {
        let unbiased = count as f64 / (count as f64 - 1.0);
        let tracked = |running: &mut Vec<f64>, batch: &[f64], factor: f64| {
            for (running, batch) in running.iter_mut().zip(batch) {
                *running = batch::track(*running, batch * factor, momentum);
            }
        };
        tracked(&mut mean, &statistics.mean, 1.0);
        tracked(&mut var, &statistics.var, unbiased);
        store(running[0], &mean);
        store(running[1], &var);
    }
    let inv_std = inv_std(&statistics.var, eps);
    Ok((PyArray1::from_vec(py, statistics.mean), PyArray1::from_vec(py, inv_std)))
}

/// dx, dα and dβ into their arrays.
#[pyfunction]
pub(crate) fn batch_norm_backward<'py>(
    py: Python<'py>,
    dy: &Object<'py>,
    x: &Object<'py>,
    axis: usize,
    weight: Option<&Object<'py>>,
    mean: &Object<'py>,
    inv_std: &Object<'py>,
    training: bool,
    dx: &Object<'py>,
    dweight: &Object<'py>,
    dbias: &Object<'py>,
) -> PyResult<()> {
    let _default = DefaultEnvironment::enter();
    let x = input("x", x)?;
    let dy = like("dy", dy, &x)?;
    let channels = per_channel(&x, axis)?;
    let weight = vector("weight", weight, &x, &[channels], 1.0)?;
    let (mean, inv_std) = (saved("saved.mean", mean, channels)?, saved("saved.inv_std", inv_std, channels)?);
    let gradients = Gradients::new(&dy, &x, dx, [dweight, dbias], &[channels], false)?;
    let layout = Layout::new(x.shape(), axis);
    let result = with_arithmetic!(x.dtype, A => {
        let (dy, x, dx) = (memory::<A>(&dy), memory::<A>(&x), memory::<A>(&gradients.dx));
        detach(py, layout.elements(), || {
            // SAFETY: `Gradients::new` checked that dx may be written and shares nothing with dy and x.
            unsafe { batch::backward(layout, dy, x, dx, &weight, &mean, &inv_std, training) }
        })
    });
    store(&gradients.dweight, &result.weight);
    store(&gradients.dbias, &result.bias);
    Ok(())
}

/// y; returns (μ, 1/√(σ² + ε)) per row. The last `axes` axes are normalised over.
#[pyfunction]
pub(crate) fn layer_norm<'py>(
    py: Python<'py>,
    x: &Object<'py>,
    axes: usize,
    weight: Option<&Object<'py>>,
    bias: Option<&Object<'py>>,
    eps: f64,
    out: &Object<'py>,
) -> PyResult<(Vector<'py>, Vector<'py>)> {
    let _default = DefaultEnvironment::enter();
    check_number("eps", eps, eps >= 0.0 && eps.is_finite(), "a finite number ≥ 0")?;
    let x = input("x", x)?;
    let (rows, unit_shape) = rows(&x, axes)?;
    let numbers = |name, object: Option<&Object<'py>>, default| vector_or_scalar(name, object, &x, unit_shape, default);
    let (weight, bias) = (numbers("weight", weight, 1.0)?, numbers("bias", bias, -0.0)?);
    let y = output("out", out, &x, &[("x", &x)])?;
    let statistics = with_arithmetic!(x.dtype, A => {
        let (weight, bias) = (rounded::<A>(&weight), rounded::<A>(&bias));
        let (elements, x, y) = (x.object.len(), memory::<A>(&x), memory::<A>(&y));
        // SAFETY: `output` checked that y may be written and shares nothing with x.
        detach(py, elements, || unsafe { layer::forward(rows, x, y, &weight, &bias, eps) })
    });
    Ok((PyArray1::from_vec(py, statistics.mean), PyArray1::from_vec(py, statistics.inv_std)))
}

/// dx, dα and dβ into their arrays; dα and dβ have one element if all units share them.
#[pyfunction]
pub(crate) fn layer_norm_backward<'py>(
    py: Python<'py>,
    dy: &Object<'py>,
    x: &Object<'py>,
    axes: usize,
    weight: Option<&Object<'py>>,
    mean: &Object<'py>,
    inv_std: &Object<'py>,
    dx: &Object<'py>,
    dweight: &Object<'py>,
    dbias: &Object<'py>,
) -> PyResult<()> {
    let _default = DefaultEnvironment::enter();
    let x = input("x", x)?;
    let dy = like("dy", dy, &x)?;
    let (rows, unit_shape) = rows(&x, axes)?;
    let weight = vector_or_scalar("weight", weight, &x, unit_shape, 1.0)?;
    let (mean, inv_std) = (saved("saved.mean", mean, rows)?, saved("saved.inv_std", inv_std, rows)?);
    let gradients = Gradients::new(&dy, &x, dx, [dweight, dbias], unit_shape, true)?;
    let statistics = layer::Statistics { mean, inv_std };
    let result = with_arithmetic!(x.dtype, A => {
        let weight = rounded::<A>(&weight);
        let (elements, dy, x) = (x.object.len(), memory::<A>(&dy), memory::<A>(&x));
        let dx = memory::<A>(&gradients.dx);
        // SAFETY: `Gradients::new` checked that dx may be written and shares nothing with dy and x.
        detach(py, elements, || unsafe { layer::backward(rows, dy, x, dx, &weight, &statistics) })
    });
    for (array, of_units) in [(&gradients.dweight, &result.weight), (&gradients.dbias, &result.bias)] {
        if array.object.len() == of_units.len() {
            store(array, of_units);
        } else {
            store(array, &[layer::sum(of_units)]);
        }
    }
    Ok(())
}

fn check_number(name: &str, got: f64, good: bool, expected: &'static str) -> Result<(), Error> {
    if good { Ok(()) } else { Err(Error::OutOfRange { name: name.to_owned(), got, expected }) }
}

#[cold]
fn refuse<T>(text: &str) -> PyResult<T> {
    Err(Error::Shape(text.to_owned()).into())
}

fn named<'a, 'py>(name: &str, object: &'a Object<'py>) -> Result<Array<'a, 'py>, Error> {
    arrays::array(object, &|| name.to_owned())
}

/// An array that is computed with, contiguous, in float32 or float64.
fn input<'a, 'py>(name: &str, object: &'a Object<'py>) -> Result<Array<'a, 'py>, Error> {
    let array = named(name, object)?;
    if array.dtype.compute() != array.dtype {
        let text = format!(
            "{name}: expected float32 or float64, got {}; convert it with {name}.astype(np.float32)",
            array.dtype.name()
        );
        return Err(Error::Dtype(text));
    }
    check_contiguous(name, &array)?;
    Ok(array)
}

fn check_contiguous(name: &str, array: &Array<'_, '_>) -> Result<(), Error> {
    if array.contiguous {
        return Ok(());
    }
    let strides = array.object.strides();
    let text = format!("{name}: expected a C-contiguous array, got strides {strides:?}; pass np.ascontiguousarray(…)");
    Err(Error::Memory(text))
}

fn check_dtype(name: &str, array: &Array<'_, '_>, dtype: Dtype) -> Result<(), Error> {
    if array.dtype == dtype {
        return Ok(());
    }
    let (expected, got) = (dtype.name(), array.dtype.name());
    let text = format!("{name}: expected {expected} like x, got {got}; convert it with {name}.astype(np.{expected})");
    Err(Error::Dtype(text))
}

/// A contiguous array of x's dtype and shape.
fn like<'a, 'py>(name: &str, object: &'a Object<'py>, x: &Array<'_, '_>) -> Result<Array<'a, 'py>, Error> {
    let array = named(name, object)?;
    check_dtype(name, &array, x.dtype)?;
    if array.shape() != x.shape() {
        let (expected, got) = (tuple(x.shape()), tuple(array.shape()));
        return Err(Error::Shape(format!("{name}: expected shape {expected} like x, got {got}; reshape it")));
    }
    check_contiguous(name, &array)?;
    Ok(array)
}

/// As [`like`], to be written: shares no memory with the others.
fn output<'a, 'py>(
    name: &str,
    object: &'a Object<'py>,
    x: &Array<'_, 'py>,
    others: &[(&str, &Array<'_, 'py>)],
) -> PyResult<Array<'a, 'py>> {
    let array = like(name, object, x)?;
    array.check_writable(&|| name.to_owned())?;
    check_apart(name, &array, others)?;
    Ok(array)
}

fn check_apart<'py>(name: &str, array: &Array<'_, 'py>, others: &[(&str, &Array<'_, 'py>)]) -> PyResult<()> {
    for (other_name, other) in others {
        let (Some((low, high)), Some((other_low, other_high))) = (array.view().extent(), other.view().extent()) else {
            continue;
        };
        if low < other_high && other_low < high && arrays::shares_memory(array.object, other.object)? {
            let text = format!(
                "{name}: shares memory with {other_name}, which would change while it is read; pass a new array"
            );
            return Err(Error::Memory(text).into());
        }
    }
    Ok(())
}

/// How many channels axis number `axis` counts.
fn per_channel(x: &Array<'_, '_>, axis: usize) -> Result<usize, Error> {
    let Some(channels) = x.shape().get(axis) else {
        let (shape, n) = (tuple(x.shape()), x.shape().len());
        return Err(Error::Shape(format!("axis: expected one of the {n} axes of x, shape {shape}, got {axis}")));
    };
    Ok(*channels)
}

/// How many rows the last `axes` axes make, and their shape.
fn rows<'a>(x: &'a Array<'_, '_>, axes: usize) -> Result<(usize, &'a [usize]), Error> {
    let (shape, n) = (x.shape(), x.shape().len());
    if axes == 0 || axes > n {
        let shape = tuple(shape);
        return Err(Error::Shape(format!("axes: expected 1 to {n}, the axes of x, shape {shape}, got {axes}")));
    }
    let (outer, units) = shape.split_at(n - axes);
    Ok((outer.iter().product(), units))
}

/// The numbers of a weight or the like as float64, one per place of `shape`; `default` if there is none.
fn vector(
    name: &str,
    object: Option<&Object<'_>>,
    x: &Array<'_, '_>,
    shape: &[usize],
    default: f64,
) -> Result<Vec<f64>, Error> {
    let Some(object) = object else { return Ok(vec![default; shape.iter().product()]) };
    let array = named(name, object)?;
    check_dtype(name, &array, x.dtype)?;
    check_shape(name, &array, shape)?;
    Ok(load(&array.view()))
}

/// [`vector`], or one number for all places.
fn vector_or_scalar(
    name: &str,
    object: Option<&Object<'_>>,
    x: &Array<'_, '_>,
    shape: &[usize],
    default: f64,
) -> Result<Vec<f64>, Error> {
    let scalar = object.map(|object| named(name, object)).transpose()?.filter(|array| array.object.len() == 1);
    let Some(scalar) = scalar else { return vector(name, object, x, shape, default) };
    check_dtype(name, &scalar, x.dtype)?;
    Ok(load(&scalar.view()).repeat(shape.iter().product()))
}

fn check_shape(name: &str, array: &Array<'_, '_>, shape: &[usize]) -> Result<(), Error> {
    if array.shape() == shape {
        return Ok(());
    }
    let (expected, got) = (tuple(shape), tuple(array.shape()));
    Err(Error::Shape(format!("{name}: expected shape {expected}, got {got}; reshape it")))
}

/// The statistics that forward returned.
fn saved(name: &str, object: &Object<'_>, n: usize) -> Result<Vec<f64>, Error> {
    let array = named(name, object)?;
    if array.dtype != Dtype::F64 || array.shape() != [n] {
        let (dtype, got) = (array.dtype.name(), tuple(array.shape()));
        let text = format!(
            "{name}: expected float64 of shape ({n},) for this x, got {dtype} of shape {got}; pass what forward returned for x"
        );
        return Err(Error::Shape(text));
    }
    Ok(load(&array.view()))
}

/// The arrays that backward writes.
struct Gradients<'a, 'py> {
    dx: Array<'a, 'py>,
    dweight: Array<'a, 'py>,
    dbias: Array<'a, 'py>,
}

impl<'a, 'py> Gradients<'a, 'py> {
    fn new(
        dy: &Array<'_, 'py>,
        x: &Array<'_, 'py>,
        dx: &'a Object<'py>,
        [dweight, dbias]: [&'a Object<'py>; 2],
        shape: &[usize],
        or_scalar: bool,
    ) -> PyResult<Self> {
        let inputs = [("dy", dy), ("x", x)];
        let dx = output("out", dx, x, &inputs)?;
        let small = |name: &str, object| {
            let array = named(name, object)?;
            check_dtype(name, &array, x.dtype)?;
            if !(or_scalar && array.object.len() == 1) {
                check_shape(name, &array, shape)?;
            }
            array.check_writable(&|| name.to_owned())?;
            check_apart(name, &array, &[inputs[0], inputs[1], ("out", &dx)])?;
            Ok::<_, PyErr>(array)
        };
        let (dweight, dbias) = (small("dweight", dweight)?, small("dbias", dbias)?);
        check_apart("dbias", &dbias, &[("dweight", &dweight)])?;
        Ok(Self { dx, dweight, dbias })
    }
}

/// The elements of a contiguous array, which its object keeps alive as long as `'a`.
fn memory<'a, A: Arithmetic>(array: &Array<'a, '_>) -> Memory<'a, A> {
    debug_assert!(array.dtype == A::DTYPE && array.contiguous);
    // SAFETY: NumPy's own pointer and length, aligned (`arrays::array`) and contiguous (`check_contiguous`).
    unsafe { Memory::new(array.data.cast(), array.object.len()) }
}

fn rounded<A: Arithmetic>(numbers: &[f64]) -> Vec<A> {
    numbers.iter().map(|x| A::constant(*x)).collect()
}

fn inv_std(var: &[f64], eps: f64) -> Vec<f64> {
    var.iter().map(|var| norm::inv_std(*var, eps)).collect()
}

/// All elements as float64.
fn load(view: &View) -> Vec<f64> {
    fn of<A: Arithmetic>(view: &View) -> Vec<f64> {
        let mut numbers = Vec::with_capacity(view.len());
        for at in (0..view.len()).step_by(BLOCK) {
            let n = BLOCK.min(view.len() - at);
            // SAFETY: at + n ≤ len, the dtype computes in A, and the array is alive in the call that made the view.
            numbers.extend(unsafe { view.load::<A>(at, n) }[..n].iter().map(|x| x.to_f64()));
        }
        numbers
    }
    if view.dtype().compute() == Dtype::F64 { of::<f64>(view) } else { of::<f32>(view) }
}

/// Stores the numbers, rounded to the array's dtype.
fn store(array: &Array<'_, '_>, numbers: &[f64]) {
    fn to<A: Arithmetic>(view: &View, numbers: &[f64]) {
        for (chunk, at) in numbers.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
            let mut block = [A::ZERO; BLOCK];
            for (slot, x) in block.iter_mut().zip(chunk) {
                *slot = A::constant(*x);
            }
            // SAFETY: inside, by the assertion below; the caller has checked that the array may be written.
            unsafe { view.store::<A>(at, chunk.len(), &block) };
        }
    }
    let view = array.view();
    assert!(numbers.len() <= view.len());
    if view.dtype().compute() == Dtype::F64 { to::<f64>(&view, numbers) } else { to::<f32>(&view, numbers) }
}
