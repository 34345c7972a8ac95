//! Sums of rows of NumPy's arrays. Arrays on a device are described by `norm_tables`, which checks them too.

use super::arrays::{self, Place, detach};
use crate::error::Error;
use crate::rows::{self, Members};
use numpy::{PyArray1, PyArrayMethods};
use pyo3::prelude::*;

/// Writes as row i of `out` the sum of rows `order[starts[i]..starts[i + 1]]` of `values`.
#[pyfunction]
pub(crate) fn sum_rows<'py>(
    py: Python<'py>,
    values: &Bound<'py, PyAny>,
    order: &Bound<'py, PyArray1<i64>>,
    starts: &Bound<'py, PyArray1<i64>>,
    out: &Bound<'py, PyAny>,
) -> PyResult<()> {
    let (of_values, of_out) = (|| "values".to_owned(), || "out".to_owned());
    let (from, to) = (arrays::array_at(Place::Host, values, &of_values)?, arrays::array_at(Place::Host, out, &of_out)?);
    to.check_writable(&of_out)?;
    // Copies: nobody can change them meanwhile.
    let (order, starts) = (order.to_vec()?, starts.to_vec()?);
    let members = Members { order: &order, starts: &starts };
    let count = from.shape().first().and_then(|rows| members.count(*rows));
    let fits = count.is_some() && count == to.shape().first().copied() && from.shape()[1..] == to.shape()[1..];
    if !fits {
        return Err(Error::Shape("values: its rows do not make up the rows of out".to_owned()).into());
    }
    if arrays::shares_memory(values, out)? {
        return Err(Error::Memory("out: shares memory with values; pass another array".to_owned()).into());
    }
    let (width, from, to) = (from.shape()[1..].iter().product(), from.view(), to.view());
    // SAFETY: both are alive in this call, aligned, of dtypes that are computed with, and apart; `out` may be written;
    // the rows were counted.
    detach(py, from.len(), || unsafe { rows::sum_rows(&from, members, width, &to) });
    Ok(())
}
