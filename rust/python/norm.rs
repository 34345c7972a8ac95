//! Batch norm and layer norm: of NumPy's arrays the kernels, of arrays on a device only the checks. Everything is checked
//! before anything is written.

use super::arrays::{self, Array, Place, detach, tuple};
use crate::element::{Dtype, View};
use crate::error::Error;
use crate::norm::arrays::{self as kernels, Saved};
use crate::norm::batch::Layout;
use numpy::PyArray1;
use pyo3::prelude::*;

type Object<'py> = Bound<'py, PyAny>;
type Given<'a, 'py> = Option<&'a Object<'py>>;
type Vector<'py> = Bound<'py, PyArray1<f64>>;

/// y, by the statistics of the batch or by the running ones, `relu`: cut off at 0; returns (μ, 1/√(σ² + ε)) per channel.
#[pyfunction]
#[pyo3(signature = (x, axis, weight, bias, running_mean, running_var, training, momentum, eps, out, relu=false))]
pub(crate) fn batch_norm<'py>(
    py: Python<'py>,
    x: &Object<'py>,
    axis: usize,
    weight: Given<'_, 'py>,
    bias: Given<'_, 'py>,
    running_mean: Given<'_, 'py>,
    running_var: Given<'_, 'py>,
    training: bool,
    momentum: f64,
    eps: f64,
    out: &Object<'py>,
    relu: bool,
) -> PyResult<(Vector<'py>, Vector<'py>)> {
    let vectors = [weight, bias, running_mean, running_var];
    let numbers = [momentum, eps];
    let BatchNorm { x, y, vectors } = BatchNorm::check(Place::Host, x, axis, vectors, training, numbers, out)?;
    let layout = Layout::new(x.shape(), axis);
    let (x, y, vectors) = (x.view(), y.view(), vectors.map(|array| array.map(|array| array.view())));
    let vectors = vectors.each_ref().map(Option::as_ref);
    let run = || {
        // SAFETY: `check` saw that y and in training the running statistics may be written and share nothing.
        unsafe { kernels::batch_norm(layout, &x, &y, vectors, training, relu, numbers) }
    };
    Ok(vectors_of(py, detach(py, layout.elements(), run)))
}

/// The same checks of arrays at any one place, and nothing else.
#[pyfunction]
#[pyo3(signature = (x, axis, weight, bias, running_mean, running_var, training, momentum, eps, out, relu=false))]
pub(crate) fn check_batch_norm<'py>(
    x: &Object<'py>,
    axis: usize,
    weight: Given<'_, 'py>,
    bias: Given<'_, 'py>,
    running_mean: Given<'_, 'py>,
    running_var: Given<'_, 'py>,
    training: bool,
    momentum: f64,
    eps: f64,
    out: &Object<'py>,
    #[expect(unused_variables, reason = "the arguments are those of the function that is checked")] relu: bool,
) -> PyResult<()> {
    let vectors = [weight, bias, running_mean, running_var];
    BatchNorm::check(Place::of(x)?, x, axis, vectors, training, [momentum, eps], out).map(drop)
}

/// dx, dα and dβ into their arrays; with `relu`, as it was forward, `bias` is asked for, too.
#[pyfunction]
#[pyo3(signature = (dy, x, axis, weight, mean, inv_std, training, dx, dweight, dbias, relu=false, bias=None))]
pub(crate) fn batch_norm_backward<'py>(
    py: Python<'py>,
    dy: &Object<'py>,
    x: &Object<'py>,
    axis: usize,
    weight: Given<'_, 'py>,
    mean: &Object<'py>,
    inv_std: &Object<'py>,
    training: bool,
    dx: &Object<'py>,
    dweight: &Object<'py>,
    dbias: &Object<'py>,
    relu: bool,
    bias: Given<'_, 'py>,
) -> PyResult<()> {
    let (affine, written) = ([weight, bias], [dx, dweight, dbias]);
    let arrays = Backward::check_batch(Place::Host, dy, x, axis, affine, [mean, inv_std], written)?;
    let layout = Layout::new(arrays.x.shape(), axis);
    let Views { inputs: [dy, x], affine, saved, written: [dx, dweight, dbias] } = arrays.views();
    let run = || {
        let (inputs, written) = ([&dy, &x], [&dx, &dweight, &dbias]);
        let affine = affine.each_ref().map(Option::as_ref);
        // SAFETY: `Backward::check` saw that what is written may be, and shares nothing.
        unsafe { kernels::batch_norm_backward(layout, inputs, affine, &saved, training, relu, written) }
    };
    detach(py, layout.elements(), run);
    Ok(())
}

/// The same checks of arrays at any one place, and nothing else.
#[pyfunction]
#[pyo3(signature = (dy, x, axis, weight, mean, inv_std, training, dx, dweight, dbias, relu=false, bias=None))]
pub(crate) fn check_batch_norm_backward<'py>(
    dy: &Object<'py>,
    x: &Object<'py>,
    axis: usize,
    weight: Given<'_, 'py>,
    mean: &Object<'py>,
    inv_std: &Object<'py>,
    #[expect(unused_variables, reason = "the arguments are those of the function that is checked")] training: bool,
    dx: &Object<'py>,
    dweight: &Object<'py>,
    dbias: &Object<'py>,
    #[expect(unused_variables, reason = "as above")] relu: bool,
    bias: Given<'_, 'py>,
) -> PyResult<()> {
    let (affine, written) = ([weight, bias], [dx, dweight, dbias]);
    Backward::check_batch(Place::of(x)?, dy, x, axis, affine, [mean, inv_std], written).map(drop)
}

/// y; returns (μ, 1/√(σ² + ε)) per row. The last `axes` axes are normalised over.
#[pyfunction]
pub(crate) fn layer_norm<'py>(
    py: Python<'py>,
    x: &Object<'py>,
    axes: usize,
    weight: Given<'_, 'py>,
    bias: Given<'_, 'py>,
    eps: f64,
    out: &Object<'py>,
) -> PyResult<(Vector<'py>, Vector<'py>)> {
    let LayerNorm { x, y, weight, bias } = LayerNorm::check(Place::Host, x, axes, [weight, bias], eps, out)?;
    let (rows, unit_shape) = rows(&x, axes)?;
    let (shape, elements) = ([rows, unit_shape.iter().product()], x.len());
    let (x, y, affine) = (x.view(), y.view(), [weight, bias].map(|array| array.map(|array| array.view())));
    let affine = affine.each_ref().map(Option::as_ref);
    // SAFETY: `check` saw that y may be written and shares nothing with x.
    let run = || unsafe { kernels::layer_norm(shape, &x, &y, affine, eps) };
    Ok(vectors_of(py, detach(py, elements, run)))
}

/// The same checks of arrays at any one place, and nothing else.
#[pyfunction]
pub(crate) fn check_layer_norm<'py>(
    x: &Object<'py>,
    axes: usize,
    weight: Given<'_, 'py>,
    bias: Given<'_, 'py>,
    eps: f64,
    out: &Object<'py>,
) -> PyResult<()> {
    LayerNorm::check(Place::of(x)?, x, axes, [weight, bias], eps, out).map(drop)
}

/// dx, dα and dβ into their arrays; dα and dβ have one element if all units share them.
#[pyfunction]
pub(crate) fn layer_norm_backward<'py>(
    py: Python<'py>,
    dy: &Object<'py>,
    x: &Object<'py>,
    axes: usize,
    weight: Given<'_, 'py>,
    mean: &Object<'py>,
    inv_std: &Object<'py>,
    dx: &Object<'py>,
    dweight: &Object<'py>,
    dbias: &Object<'py>,
) -> PyResult<()> {
    let arrays = Backward::check_layer(Place::Host, dy, x, axes, weight, [mean, inv_std], [dx, dweight, dbias])?;
    let (rows, unit_shape) = rows(&arrays.x, axes)?;
    let (shape, elements) = ([rows, unit_shape.iter().product()], arrays.x.len());
    let Views { inputs: [dy, x], affine: [weight, _], saved, written: [dx, dweight, dbias] } = arrays.views();
    let run = || {
        let (inputs, written) = ([&dy, &x], [&dx, &dweight, &dbias]);
        // SAFETY: `Backward::check` saw that what is written may be, and shares nothing.
        unsafe { kernels::layer_norm_backward(shape, inputs, weight.as_ref(), saved, written) }
    };
    detach(py, elements, run);
    Ok(())
}

/// The same checks of arrays at any one place, and nothing else.
#[pyfunction]
pub(crate) fn check_layer_norm_backward<'py>(
    dy: &Object<'py>,
    x: &Object<'py>,
    axes: usize,
    weight: Given<'_, 'py>,
    mean: &Object<'py>,
    inv_std: &Object<'py>,
    dx: &Object<'py>,
    dweight: &Object<'py>,
    dbias: &Object<'py>,
) -> PyResult<()> {
    Backward::check_layer(Place::of(x)?, dy, x, axes, weight, [mean, inv_std], [dx, dweight, dbias]).map(drop)
}

/// The arrays of a batch norm, checked.
struct BatchNorm<'a, 'py> {
    x: Array<'a, 'py>,
    y: Array<'a, 'py>,
    /// α, β and the running mean and variance.
    vectors: [Option<Array<'a, 'py>>; 4],
}

impl<'a, 'py> BatchNorm<'a, 'py> {
    fn check(
        place: Place,
        x: &'a Object<'py>,
        axis: usize,
        vectors: [Given<'a, 'py>; 4],
        training: bool,
        [momentum, eps]: [f64; 2],
        out: &'a Object<'py>,
    ) -> PyResult<Self> {
        check_number("eps", eps, eps >= 0.0 && eps.is_finite(), "a finite number ≥ 0")?;
        check_number("momentum", momentum, (0.0..=1.0).contains(&momentum), "a number in [0, 1]")?;
        let x = input(place, "x", x)?;
        let channels = per_channel(&x, axis)?;
        let names = ["weight", "bias", "running_mean", "running_var"];
        let mut checked = [const { None }; 4];
        for ((slot, name), object) in checked.iter_mut().zip(names).zip(vectors) {
            *slot = vector(place, name, object, &x, &[channels], Shared::Never)?;
        }
        let mut others = vec![("x", &x)];
        others.extend(names.into_iter().zip(&checked).filter_map(|(name, array)| Some((name, array.as_ref()?))));
        let y = output(place, "out", out, &x, &others)?;
        match &checked {
            [.., Some(_), Some(_)] => {}
            [.., Some(_), None] => {
                return refuse("running_var: expected an array like running_mean, got None; pass both or neither");
            }
            [.., None, Some(_)] => {
                return refuse("running_mean: expected an array like running_var, got None; pass both or neither");
            }
            _ if training => {}
            _ => {
                return refuse(
                    "running_mean, running_var: expected arrays for training=False, got None; pass those kept in training",
                );
            }
        }
        let count = Layout::new(x.shape(), axis).count();
        if training && count < 2 && channels > 0 {
            return refuse(&format!(
                "x: expected at least 2 elements per channel in training, got {count} (shape {}, axis {axis}): they have \
                 no variance; pass a larger batch, or training=False",
                tuple(x.shape())
            ));
        }
        let written = others.iter().enumerate().filter(|(_, (name, _))| training && name.starts_with("running"));
        for (before, (name, array)) in written {
            array.check_writable(&|| (*name).to_owned())?;
            check_apart(name, array, &others[..before])?;
        }
        Ok(Self { x, y, vectors: checked })
    }
}

/// The arrays of a layer norm, checked.
struct LayerNorm<'a, 'py> {
    x: Array<'a, 'py>,
    y: Array<'a, 'py>,
    weight: Option<Array<'a, 'py>>,
    bias: Option<Array<'a, 'py>>,
}

impl<'a, 'py> LayerNorm<'a, 'py> {
    fn check(
        place: Place,
        x: &'a Object<'py>,
        axes: usize,
        [weight, bias]: [Given<'a, 'py>; 2],
        eps: f64,
        out: &'a Object<'py>,
    ) -> PyResult<Self> {
        check_number("eps", eps, eps >= 0.0 && eps.is_finite(), "a finite number ≥ 0")?;
        let x = input(place, "x", x)?;
        let (_, units) = rows(&x, axes)?;
        let weight = vector(place, "weight", weight, &x, units, Shared::Allowed)?;
        let bias = vector(place, "bias", bias, &x, units, Shared::Allowed)?;
        let y = output(place, "out", out, &x, &[("x", &x)])?;
        Ok(Self { x, y, weight, bias })
    }
}

/// The arrays of a backward, checked.
struct Backward<'a, 'py> {
    dy: Array<'a, 'py>,
    x: Array<'a, 'py>,
    /// α, β
    affine: [Option<Array<'a, 'py>>; 2],
    mean: Array<'a, 'py>,
    inv_std: Array<'a, 'py>,
    dx: Array<'a, 'py>,
    dweight: Array<'a, 'py>,
    dbias: Array<'a, 'py>,
}

impl<'a, 'py> Backward<'a, 'py> {
    fn check_batch(
        place: Place,
        dy: &'a Object<'py>,
        x: &'a Object<'py>,
        axis: usize,
        affine: [Given<'a, 'py>; 2],
        statistics: [&'a Object<'py>; 2],
        written: [&'a Object<'py>; 3],
    ) -> PyResult<Self> {
        let x = input(place, "x", x)?;
        let dy = like(place, "dy", dy, &x)?;
        let channels = per_channel(&x, axis)?;
        Self::check(place, [dy, x], affine, statistics, channels, &[channels], Shared::Never, written)
    }

    fn check_layer(
        place: Place,
        dy: &'a Object<'py>,
        x: &'a Object<'py>,
        axes: usize,
        weight: Given<'a, 'py>,
        statistics: [&'a Object<'py>; 2],
        written: [&'a Object<'py>; 3],
    ) -> PyResult<Self> {
        let x = input(place, "x", x)?;
        let dy = like(place, "dy", dy, &x)?;
        let (rows, units) = rows(&x, axes)?;
        let units = units.to_vec();
        Self::check(place, [dy, x], [weight, None], statistics, rows, &units, Shared::Allowed, written)
    }

    /// What both have in common: n statistics each, and weights of a shape.
    fn check(
        place: Place,
        [dy, x]: [Array<'a, 'py>; 2],
        [weight, bias]: [Given<'a, 'py>; 2],
        [mean, inv_std]: [&'a Object<'py>; 2],
        n: usize,
        shape: &[usize],
        shared: Shared,
        [dx, dweight, dbias]: [&'a Object<'py>; 3],
    ) -> PyResult<Self> {
        let weight = vector(place, "weight", weight, &x, shape, shared)?;
        let bias = vector(place, "saved.bias", bias, &x, shape, shared)?;
        let (mean, inv_std) = (saved(place, "saved.mean", mean, n)?, saved(place, "saved.inv_std", inv_std, n)?);
        let inputs = [("dy", &dy), ("x", &x)];
        let dx = output(place, "out", dx, &x, &inputs)?;
        let small = |name: &str, object: &'a Object<'py>| {
            let array = small(place, name, object, &x, shape, shared)?;
            array.check_writable(&|| name.to_owned())?;
            check_apart(name, &array, &[inputs[0], inputs[1], ("out", &dx)])?;
            Ok::<_, PyErr>(array)
        };
        let (dweight, dbias) = (small("dweight", dweight)?, small("dbias", dbias)?);
        check_apart("dbias", &dbias, &[("dweight", &dweight)])?;
        Ok(Self { dy, x, affine: [weight, bias], mean, inv_std, dx, dweight, dbias })
    }
}

/// A backward's arrays as the kernels take them.
struct Views {
    inputs: [View; 2],
    affine: [Option<View>; 2],
    saved: Saved,
    written: [View; 3],
}

impl Backward<'_, '_> {
    fn views(&self) -> Views {
        let saved = Saved { mean: kernels::load(&self.mean.view()), inv_std: kernels::load(&self.inv_std.view()) };
        Views {
            inputs: [self.dy.view(), self.x.view()],
            affine: self.affine.each_ref().map(|array| array.as_ref().map(Array::view)),
            saved,
            written: [self.dx.view(), self.dweight.view(), self.dbias.view()],
        }
    }
}

fn vectors_of(py: Python<'_>, Saved { mean, inv_std }: Saved) -> (Vector<'_>, Vector<'_>) {
    (PyArray1::from_vec(py, mean), PyArray1::from_vec(py, inv_std))
}

fn check_number(name: &str, got: f64, good: bool, expected: &'static str) -> Result<(), Error> {
    if good { Ok(()) } else { Err(Error::OutOfRange { name: name.to_owned(), got, expected }) }
}

#[cold]
fn refuse<T>(text: &str) -> PyResult<T> {
    Err(Error::Shape(text.to_owned()).into())
}

fn named<'a, 'py>(place: Place, name: &str, object: &'a Object<'py>) -> PyResult<Array<'a, 'py>> {
    arrays::array_at(place, object, &|| name.to_owned())
}

/// An array that is computed with, contiguous, in float32 or float64.
fn input<'a, 'py>(place: Place, name: &str, object: &'a Object<'py>) -> PyResult<Array<'a, 'py>> {
    let array = named(place, name, object)?;
    if array.dtype.compute() != array.dtype {
        let text = format!(
            "{name}: expected float32 or float64, got {}; convert it with {name}.astype(np.float32)",
            array.dtype.name()
        );
        return Err(Error::Dtype(text).into());
    }
    check_contiguous(place, name, &array)?;
    Ok(array)
}

fn check_contiguous(place: Place, name: &str, array: &Array<'_, '_>) -> Result<(), Error> {
    if array.contiguous {
        return Ok(());
    }
    let (library, strides) = (if place == Place::Host { "np" } else { "cupy" }, array.strides());
    Err(Error::Memory(format!(
        "{name}: expected a C-contiguous array, got strides {strides:?}; pass {library}.ascontiguousarray(…)"
    )))
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
fn like<'a, 'py>(place: Place, name: &str, object: &'a Object<'py>, x: &Array<'_, '_>) -> PyResult<Array<'a, 'py>> {
    let array = named(place, name, object)?;
    check_dtype(name, &array, x.dtype)?;
    if array.shape() != x.shape() {
        let (expected, got) = (tuple(x.shape()), tuple(array.shape()));
        return refuse(&format!("{name}: expected shape {expected} like x, got {got}; reshape it"));
    }
    check_contiguous(place, name, &array)?;
    Ok(array)
}

/// As [`like`], to be written: shares no memory with the others.
fn output<'a, 'py>(
    place: Place,
    name: &str,
    object: &'a Object<'py>,
    x: &Array<'_, 'py>,
    others: &[(&str, &Array<'_, 'py>)],
) -> PyResult<Array<'a, 'py>> {
    let array = like(place, name, object, x)?;
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

/// Whether one number may serve all places.
#[derive(Clone, Copy, PartialEq)]
enum Shared {
    Never,
    Allowed,
}

/// A weight or the like, of x's dtype, with a number for each place of `shape`.
fn small<'a, 'py>(
    place: Place,
    name: &str,
    object: &'a Object<'py>,
    x: &Array<'_, '_>,
    shape: &[usize],
    shared: Shared,
) -> PyResult<Array<'a, 'py>> {
    let array = named(place, name, object)?;
    check_dtype(name, &array, x.dtype)?;
    if array.shape() != shape && !(shared == Shared::Allowed && array.len() == 1) {
        let (expected, got) = (tuple(shape), tuple(array.shape()));
        return refuse(&format!("{name}: expected shape {expected}, got {got}; reshape it"));
    }
    Ok(array)
}

/// As [`small`], or nothing.
fn vector<'a, 'py>(
    place: Place,
    name: &str,
    object: Given<'a, 'py>,
    x: &Array<'_, '_>,
    shape: &[usize],
    shared: Shared,
) -> PyResult<Option<Array<'a, 'py>>> {
    object.map(|object| small(place, name, object, x, shape, shared)).transpose()
}

/// The statistics that forward returned.
fn saved<'a, 'py>(place: Place, name: &str, object: &'a Object<'py>, n: usize) -> PyResult<Array<'a, 'py>> {
    let array = named(place, name, object)?;
    if array.dtype != Dtype::F64 || array.shape() != [n] {
        let (dtype, got) = (array.dtype.name(), tuple(array.shape()));
        return refuse(&format!(
            "{name}: expected float64 of shape ({n},) for this x, got {dtype} of shape {got}; pass what forward returned for x"
        ));
    }
    Ok(array)
}
