//! Sums of rows that belong together: gradients of a table's rows, each named as often as its row was looked up.
//!
//! A sum starts as its first term and adds the others in the order given, in float64; it is rounded to what the result
//! computes in, and then to what the result holds.

use crate::element::{self, Arithmetic, BLOCK, Dtype, View};
use crate::pool;
use crate::simd::{self, DefaultEnvironment, Kernel};
use std::marker::PhantomData;

/// Which rows make up each sum: rows `order[starts[i]..starts[i + 1]]` make up sum i.
#[derive(Clone, Copy, Debug)]
pub struct Members<'a> {
    /// Numbers of rows.
    pub order: &'a [i64],
    /// Places in `order`, each behind the one before; the last is its length.
    pub starts: &'a [i64],
}

impl Members<'_> {
    /// How many sums there are, if each has a term and all terms are among so many rows.
    pub fn count(&self, rows: usize) -> Option<usize> {
        let ends =
            self.starts.first() == Some(&0) && self.starts.last().copied() == i64::try_from(self.order.len()).ok();
        let rises = self.starts.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = self.order.iter().all(|row| usize::try_from(*row).is_ok_and(|row| row < rows));
        (ends && rises && inside).then(|| self.starts.len() - 1)
    }
}

/// Writes the sums of rows of `values` as the rows of `out`, both with `width` elements a row.
///
/// # Safety
/// The promise of [`View::new`] holds for both views, `out` may be written and overlaps `values` nowhere;
/// `members.count` is some for the rows of `values`, and `out` has as many.
pub unsafe fn sum_rows(values: &View, members: Members<'_>, width: usize, out: &View) {
    let _default = DefaultEnvironment::enter();
    let pieces = width.div_ceil(BLOCK);
    // Rows in a task: to hand one out costs as much as a few of them.
    let (count, at_once) = (members.starts.len() - 1, 32);
    let sum = |row: usize, piece: usize| {
        let column = piece * BLOCK;
        let terms = &members.order[members.starts[row] as usize..members.starts[row + 1] as usize];
        let call = Sum { values, terms, out, row, width, column, n: BLOCK.min(width - column), computed: PhantomData };
        match values.dtype().compute() {
            Dtype::F64 => simd::dispatch(call.with::<f64>()),
            _ => simd::dispatch(call),
        }
    };
    pool::share(count.div_ceil(at_once), values.len(), &|task| {
        for row in task * at_once..count.min((task + 1) * at_once) {
            (0..pieces).for_each(|piece| sum(row, piece));
        }
    });
}

/// Elements `column..column + n` of one sum; `A` is what the terms compute in.
struct Sum<'a, A> {
    values: &'a View,
    terms: &'a [i64],
    out: &'a View,
    row: usize,
    width: usize,
    column: usize,
    n: usize,
    computed: PhantomData<A>,
}

impl<'a> Sum<'a, f32> {
    fn with<A>(self) -> Sum<'a, A> {
        let Self { values, terms, out, row, width, column, n, .. } = self;
        Sum { values, terms, out, row, width, column, n, computed: PhantomData }
    }
}

impl<A: Arithmetic> Kernel for Sum<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { values, terms, out, row, width, column, n, .. } = self;
        let (mut total, mut room) = ([0.0; BLOCK], element::room::<A>(values.plain::<A>().is_some()));
        for (k, term) in terms.iter().enumerate() {
            // SAFETY: the term is a row of `values`, which computes in A, and column + n ≤ width.
            let term = unsafe { values.open(*term as usize * width + column, n, &mut room) };
            for (i, total) in total[..n].iter_mut().enumerate() {
                // SAFETY: i < n elements can be read there.
                let x = unsafe { term.wrapping_add(i).read() }.to_f64();
                *total = if k == 0 { x } else { *total + x };
            }
        }
        let at = row * width + column;
        if out.dtype().compute() == Dtype::F64 {
            // SAFETY: at + n ≤ len, nobody else is at this row; it computes in float64.
            unsafe { out.store(at, n, &total) };
        } else {
            // SAFETY: as above; it computes in float32.
            unsafe { out.store(at, n, &total.map(|x| x as f32)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_that_lead_outside_are_refused() {
        let count = |order: &[i64], starts: &[i64]| Members { order, starts }.count(3);
        assert_eq!(count(&[2, 0, 1], &[0, 1, 3]), Some(2));
        assert_eq!(count(&[], &[0]), Some(0));
        for (order, starts) in [
            (&[3][..], &[0, 1][..]),
            (&[-1], &[0, 1]),
            (&[0], &[0, 2]),
            (&[0], &[0, 0, 1]),
            (&[0, 1], &[1, 2]),
            (&[0, 1], &[0, 1]),
            (&[0], &[0, -1, 1]),
            (&[], &[]),
        ] {
            assert_eq!(count(order, starts), None, "{order:?} {starts:?}");
        }
    }

    #[test]
    fn a_sum_adds_in_the_order_given() {
        // 1 + 2^-53 + 2^-53 is 1, and 2^-53 + 2^-53 + 1 is not.
        let tiny = f64::from_bits((1023 - 53) << 52);
        let mut values = [1.0, tiny, tiny];
        let mut out = [0.0; 2];
        // SAFETY: 3 elements, which nobody else uses.
        let from = unsafe { View::contiguous(values.as_mut_ptr().cast(), Dtype::F64, 3) };
        // SAFETY: 2 elements, as above.
        let to = unsafe { View::contiguous(out.as_mut_ptr().cast(), Dtype::F64, 2) };
        let members = Members { order: &[0, 1, 2, 2, 1, 0], starts: &[0, 3, 6] };
        assert_eq!(members.count(3), Some(2));
        // SAFETY: as above; two sums of rows of one element.
        unsafe { sum_rows(&from, members, 1, &to) };
        assert_eq!(out, [1.0, 1.0 + 2.0 * tiny]);
    }
}
