//! Clipping unit by unit: each row, or column, of a gradient by the norm of the same one of its parameter.
//!
//! Brock, De, Smith and Simonyan, "High-Performance Large-Scale Image Recognition Without Normalization", 2021, equation 3.
//!
//! A unit's sum has the tree of a tensor of its own, however its elements lie.

use super::{Clip, Plan, SQUARES, clip_chunk, measure_block, norm_of_view};
use crate::element::{Arithmetic, Dtype, View};
use crate::pool;
use crate::real::Real;
use crate::reduce::{self, LANES, Norm, Pairs, Rare, Sum};
use crate::simd::{self, DefaultEnvironment, Kernel};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the norms of a gradient are held against.
#[derive(Clone, Copy, Debug)]
struct Limit {
    clipping: f64,
    eps: f64,
}

impl Limit {
    /// What a unit is multiplied by, from the norms of its parameters and of its gradient.
    fn clip(self, parameter: Norm, gradient: Norm) -> Option<Clip> {
        let size = parameter.value();
        let limit = if size < f64::INFINITY || parameter.root.is_nan() {
            Norm::plain(self.clipping * size.larger(self.eps))
        } else {
            Norm { root: self.clipping * parameter.root, ..parameter }
        };
        Clip::new(limit, gradient, 0.0)
    }
}

/// Parameters and their gradients, each an array whose units are the columns: what has one index of the last axis.
pub type Columns = ([View; 2], usize);

/// Scales each unit of the gradients so that its norm is at most `clipping` times its parameter's, of which `eps` is the
/// least. Of `rows`, parameters and gradients, every view is a unit.
///
/// # Safety
/// The promise of [`View::new`] holds for all of them; gradients are as long as their parameters, may be written, and
/// overlap nothing. Arrays of columns are contiguous, and as long as a multiple of their number.
pub unsafe fn adaptive_clip(rows: [&[View]; 2], columns: &[Columns], clipping: f64, eps: f64) {
    let _default = DefaultEnvironment::enter();
    let limit = Limit { clipping, eps };
    // SAFETY: the same contract.
    unsafe { clip_rows(rows, limit) };
    let tiles: Vec<(&Columns, usize)> =
        columns.iter().flat_map(|columns| (0..columns.1).step_by(TILE).map(move |first| (columns, first))).collect();
    let elements = columns.iter().map(|([_, gradient], _)| gradient.len()).sum();
    pool::share(tiles.len(), elements, &|i| {
        let (([parameter, gradient], count), first) = tiles[i];
        let tile = |view| Tile { view, count: *count, first };
        let (of_parameter, of_gradient) = (tile(parameter).norms(), tile(gradient).norms());
        let clips = std::array::from_fn(|k| limit.clip(of_parameter[k], of_gradient[k]));
        tile(gradient).clip(&clips);
    });
}

/// # Safety
/// As [`adaptive_clip`].
unsafe fn clip_rows([parameters, gradients]: [&[View]; 2], limit: Limit) {
    let plan = Plan::of(gradients);
    let blocks = plan.blocks[gradients.len()];
    let [of_parameters, of_gradients]: [Vec<AtomicU64>; 2] =
        std::array::from_fn(|_| (0..blocks).map(|_| AtomicU64::new(0)).collect());
    plan.for_each(&|chunk| {
        for (view, squares) in [(&parameters[chunk.tensor], &of_parameters), (&gradients[chunk.tensor], &of_gradients)]
        {
            for (block, slot) in chunk.blocks().zip(&squares[chunk.block..]) {
                slot.store(measure_block(view, block, &SQUARES).squares.to_bits(), Ordering::Relaxed);
            }
        }
    });
    let norm = |views: &[View], squares: &[AtomicU64], unit| norm_of_view(&views[unit], plan.sum(unit, squares));
    let clips: Vec<Option<Clip>> = (0..gradients.len())
        .map(|unit| limit.clip(norm(parameters, &of_parameters, unit), norm(gradients, &of_gradients, unit)))
        .collect();
    plan.for_each(&|chunk| {
        let (view, Some(clip)) = (&gradients[chunk.tensor], clips[chunk.tensor]) else { return };
        // SAFETY: the contract of this function; chunks do not overlap.
        unsafe { clip_chunk(view, chunk, clip) };
    });
}

/// Columns that are measured side by side, so that memory is read as it lies.
const TILE: usize = 32;

/// Some neighbours among the columns of an array.
#[derive(Clone, Copy)]
struct Tile<'a> {
    view: &'a View,
    /// How many columns the array has.
    count: usize,
    first: usize,
}

impl Tile<'_> {
    /// The sums of squares of the columns; 0 of those that are not there.
    fn squares(self) -> [f64; TILE] {
        match self.view.dtype().compute() {
            Dtype::F64 => simd::dispatch(Squares::<f64>(self, PhantomData)),
            _ => simd::dispatch(Squares::<f32>(self, PhantomData)),
        }
    }

    /// The norms of the columns.
    fn norms(self) -> [Norm; TILE] {
        let squares = self.squares();
        std::array::from_fn(|k| Norm::of(squares[k], |asked| self.ask(k, asked)))
    }

    /// What is asked of a column where its squares have overflowed or underflowed; 0 of one that is not there.
    fn ask(self, column: usize, asked: Rare) -> f64 {
        if column >= self.count - self.first {
            return 0.0;
        }
        let (rows, mut total, mut largest) = (self.rows(), Pairs::new(), 0.0f64);
        for start in (0..rows).step_by(reduce::BLOCK) {
            let mut lanes = [0.0; LANES];
            for row in start..rows.min(start + reduce::BLOCK) {
                asked.add(&mut lanes[row % LANES], self.element(row * self.count + self.first + column));
            }
            let found = asked.fold(lanes);
            total.push(found);
            largest = largest.larger(found);
        }
        if matches!(asked, Rare::Largest) { largest } else { total.total() }
    }

    fn element(self, at: usize) -> f64 {
        let (mut wide, mut narrow) = ([0.0f64], [0.0f32]);
        match self.view.dtype().compute() {
            // SAFETY: it is in the array; the rest is the contract of `adaptive_clip`.
            Dtype::F64 => unsafe { self.view.read(at, &mut wide) },
            // SAFETY: as above.
            _ => unsafe { self.view.read(at, &mut narrow) },
        }
        wide[0] + f64::from(narrow[0])
    }

    /// Clips each column, if it is to be.
    fn clip(self, clips: &[Option<Clip>; TILE]) {
        if clips.iter().all(Option::is_none) {
            return;
        }
        let compute = self.view.dtype().compute();
        let factors = clips.map(|clip| clip.map_or((0, 1.0), |clip| clip.factors(compute, None)));
        let scales = factors.map(|(_, factor)| factor);
        let first = factors.map(|(power, _)| reduce::two_to(-power));
        let first = first.iter().any(|first| *first < 1.0).then_some(&first);
        match compute {
            Dtype::F64 => simd::dispatch(Scale::<f64>(self, first, &scales, PhantomData)),
            _ => simd::dispatch(Scale::<f32>(self, first, &scales, PhantomData)),
        }
    }

    fn rows(self) -> usize {
        self.view.len() / self.count
    }

    /// Where the row's part of the tile begins, and how long it is.
    #[inline(always)]
    fn part(self, row: usize) -> (usize, usize) {
        (row * self.count + self.first, TILE.min(self.count - self.first))
    }
}

struct Squares<'a, A>(Tile<'a>, PhantomData<A>);

impl<A: Arithmetic> Kernel for Squares<'_, A> {
    type Output = [f64; TILE];

    #[inline(always)]
    fn run(self) -> [f64; TILE] {
        let tile = self.0;
        let (rows, mut totals, mut x) = (tile.rows(), [Pairs::new(); TILE], [A::constant(0.0); TILE]);
        for start in (0..rows).step_by(reduce::BLOCK) {
            let mut lanes = [[0.0f64; TILE]; LANES];
            for row in start..rows.min(start + reduce::BLOCK) {
                let (at, n) = tile.part(row);
                // SAFETY: the row's n elements from `at` are in the array; the rest is the contract of `adaptive_clip`.
                unsafe { tile.view.read::<A>(at, &mut x[..n]) };
                for (sum, x) in lanes[row % LANES].iter_mut().zip(x) {
                    let x = x.to_f64();
                    *sum += x * x;
                }
            }
            let mut half = LANES / 2;
            while half > 0 {
                let (low, high) = lanes.split_at_mut(half);
                for (low, high) in low.iter_mut().flatten().zip(high.iter().flatten()) {
                    *low += high;
                }
                half /= 2;
            }
            totals.iter_mut().zip(lanes[0]).for_each(|(total, sum)| total.push(sum));
        }
        totals.map(|total| total.total())
    }
}

/// Multiplies each column by the first factor, if there are such, and by the second.
struct Scale<'a, A>(Tile<'a>, Option<&'a [f64; TILE]>, &'a [f64; TILE], PhantomData<A>);

impl<A: Arithmetic> Kernel for Scale<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (tile, mut x) = (self.0, [A::constant(0.0); TILE]);
        // Nothing but a NaN is changed by 1, and that into a NaN.
        let (first, scales) = (self.1.map(|first| first.map(A::constant)), self.2.map(A::constant));
        for row in 0..tile.rows() {
            let (at, n) = tile.part(row);
            // SAFETY: the row's n elements from `at` are in the array; the rest is the contract of `adaptive_clip`.
            unsafe { tile.view.read::<A>(at, &mut x[..n]) };
            for (x, first) in x.iter_mut().zip(first.iter().flatten()) {
                *x = *x * *first;
            }
            for (x, scale) in x.iter_mut().zip(scales) {
                *x = *x * scale;
            }
            // SAFETY: as above; it may be written, and tiles do not overlap.
            unsafe { tile.view.write::<A>(at, &x[..n]) };
        }
    }
}
