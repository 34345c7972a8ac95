//! Layer norm: each row by the mean and variance of its own units; the formulas are in [`super`].
//!
//! Ba, Kiros and Hinton, "Layer Normalization", 2016, equations 3 and 4.

use super::memory::{Lines, Passing, map};
use super::sums::{Reader, RowSums, Sequence};
use super::{
    CHUNK, Differentiate, Formula, Memory, Normalize, NormalizedProducts, Square, Value, WeightedProducts, inv_std,
    share_range,
};
use crate::element::Arithmetic;
use crate::reduce::{LANES, ROW_LANES};
use crate::simd::{self, DefaultEnvironment, Kernel};
use std::ops::Range;

/// μ and 1/√(σ² + ε) of each row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// μ
    pub mean: Vec<f64>,
    /// 1/√(σ² + ε)
    pub inv_std: Vec<f64>,
}

fn sequence(row: usize, units: usize) -> Sequence {
    Sequence { first: row * units, inner: units, stride: units, len: units }
}

/// y, and the statistics of x, which has the shape (rows, units); `weight` and `bias` have one number a unit.
///
/// # Safety
/// x and y do not overlap, and y may be written.
///
/// # Panics
/// If anything has too few elements.
pub unsafe fn forward<A: Arithmetic>(
    rows: usize,
    x: Memory<'_, A>,
    y: Memory<'_, A>,
    weight: &[A],
    bias: &[A],
    eps: f64,
) -> Statistics {
    let _default = DefaultEnvironment::enter();
    let units = weight.len();
    let mut statistics = Statistics { mean: vec![0.0; rows], inv_std: vec![0.0; rows] };
    let (mean, inv_std) = (Memory::of_mut(&mut statistics.mean), Memory::of_mut(&mut statistics.inv_std));
    let affine = [Memory::of(weight), Memory::of(bias)];
    share_range(rows, CHUNK / units.max(1), rows * units, &|rows| {
        simd::dispatch(ForwardRows { x, y, affine, units, rows, eps, mean, inv_std });
    });
    statistics
}

struct ForwardRows<'a, A> {
    x: Memory<'a, A>,
    y: Memory<'a, A>,
    affine: [Memory<'a, A>; 2],
    units: usize,
    rows: Range<usize>,
    eps: f64,
    mean: Memory<'a, f64>,
    inv_std: Memory<'a, f64>,
}

impl<A: Arithmetic> Kernel for ForwardRows<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let units = self.units;
        let passing = Passing::over::<A>(self.x.len());
        for row in self.rows {
            let mut reader = Reader::new([self.x], &sequence(0, units));
            let [sum] = reader.sums(&sequence(row, units), Value, 0);
            let mean = sum / units as f64;
            let [sum] = reader.sums(&sequence(row, units), Square { mean }, 0);
            let inv_std = inv_std(sum / units as f64, self.eps);
            let formula = Normalize::<A>::new(mean, inv_std, 1.0, 0.0);
            let (x, y) = (self.x.from(row * units), self.y.from(row * units));
            // SAFETY: y may be written and is not x; this row is this task's alone.
            unsafe { map([x], self.affine, y, units, passing, |x, [weight, bias]| formula.at(x) * weight + bias) };
            // SAFETY: this row is this task's alone.
            unsafe { self.mean.put(row, [mean]) };
            // SAFETY: as above.
            unsafe { self.inv_std.put(row, [inv_std]) };
        }
        passing.finish();
    }
}

/// dα and dβ, one number a unit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gradients {
    /// dα
    pub weight: Vec<f64>,
    /// dβ
    pub bias: Vec<f64>,
}

/// dx, dα and dβ of x's statistics.
///
/// # Safety
/// dx overlaps neither dy nor x, and may be written.
///
/// # Panics
/// If anything has too few elements.
pub unsafe fn backward<A: Arithmetic>(
    rows: usize,
    dy: Memory<'_, A>,
    x: Memory<'_, A>,
    dx: Memory<'_, A>,
    weight: &[A],
    statistics: &Statistics,
) -> Gradients {
    let _default = DefaultEnvironment::enter();
    let units = weight.len();
    // So long that whole rows of lanes can be read at once.
    let lines = Lines::new(weight, units.next_multiple_of(LANES));
    let of_rows = statistics.mean.iter().zip(&statistics.inv_std);
    let terms: Vec<_> = of_rows.map(|(&mean, &inv_std)| NormalizedProducts { mean, inv_std }).collect();
    let mut sums = RowSums::<A, _, true, 2, 2>::new([dy, x], rows, units, &terms);
    // What the rows have left in the cache, the columns find there.
    let several = (CACHED / units.max(1)).next_multiple_of(ROW_LANES).max(ROW_LANES);
    for start in (0..rows).step_by(several) {
        let end = rows.min(start + several);
        share_range(end - start, CHUNK / units.max(1), (end - start) * units, &|part| {
            let rows = start + part.start..start + part.end;
            simd::dispatch(BackwardRows { dy, x, dx, weight: lines.memory(), units, rows, statistics });
        });
        sums.add(start..end, false);
    }
    let [bias, weight] = sums.totals();
    Gradients { weight, bias }
}

/// Elements that are worked on row by row before they are summed column by column.
const CACHED: usize = 1 << 17;

struct BackwardRows<'a, A> {
    dy: Memory<'a, A>,
    x: Memory<'a, A>,
    dx: Memory<'a, A>,
    weight: Memory<'a, A>,
    units: usize,
    rows: Range<usize>,
    statistics: &'a Statistics,
}

impl<A: Arithmetic> Kernel for BackwardRows<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let units = self.units;
        let passing = Passing::over::<A>(self.x.len());
        for row in self.rows {
            let (mean, inv_std) = (self.statistics.mean[row], self.statistics.inv_std[row]);
            let inputs = [self.weight, self.dy.from(row * units), self.x.from(row * units)];
            let sums = Reader::new(inputs, &sequence(0, units)).sums(&sequence(0, units), WeightedProducts { mean }, 0);
            let formula = Differentiate::<A>::new(mean, inv_std, 1.0, sums, units);
            let dx = self.dx.from(row * units);
            // SAFETY: dx may be written and is no input; this row is this task's alone.
            unsafe { map(inputs, [], dx, units, passing, |[weight, dy, x], []| formula.at([weight * dy, x])) };
        }
        passing.finish();
    }
}

/// The sum over the units, for an α or β that all units share; by the tree of a sequence.
pub fn sum(of_units: &[f64]) -> f64 {
    let _default = DefaultEnvironment::enter();
    let mut reader = Reader::new([Memory::of(of_units)], &sequence(0, of_units.len()));
    let [sum] = reader.sums(&sequence(0, of_units.len()), Value, 0);
    sum
}
