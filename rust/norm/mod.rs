//! Batch norm ([`batch`]) and layer norm ([`layer`]), forward and backward.
//!
//! All sums are float64 and follow the canonical trees of [`crate::reduce`]. Each formula stands once below, generic over
//! the number type; the coefficients of a formula are computed in float64 and rounded once to the array's type A. With
//! M terms per mean, x̄ for the mean rounded to A, and every operation rounded on its own (nothing is contracted):
//!
//! | what | in | how |
//! |---|---|---|
//! | μ | f64 | (Σ x) / M |
//! | σ² | f64 | (Σ d·d) / M, d = x − μ; always a second pass: never negative, and 0 for a float32 constant |
//! | i | f64 | 1 / √(σ² + ε) |
//! | batch forward | A | y = (x − x̄)·s + b; s = α·i, b = β + (x̄ − μ)·s; with relu: y if y > 0 or NaN, else +0 |
//! | batch backward, with relu | A | dy stands for dy where (x − x̄)·s + b > 0, else +0: y is computed again |
//! | layer forward | A | y = ((x − x̄)·s + b)·α + β; s = i, b = (x̄ − μ)·s |
//! | batch sums | f64 | Σ dy, Σ dy·(x − μ) over the batch |
//! | layer sums | f64 | Σ d, Σ d·(x − μ) over the units, d = α·dy |
//! | dx | A | ((g − c) − (x − x̄)·q)·k; q = ((i·i)·Σ g(x−μ)) / M, c = Σ g / M + (x̄ − μ)·q; batch: g = dy, k = α·i; layer: g = α·dy, k = i |
//! | dx, fixed statistics | A | dy·k; k = α·i |
//! | batch dα, dβ | f64, rounded to A | i·Σ dy(x − μ), Σ dy |
//! | running r | f64, rounded to r's type | (1 − m)·r + m·b; b = μ, or σ²·(M / (M − 1)) |
//! | layer dα, dβ | f64, rounded to A | Σ dy·((x − μ)·i), Σ dy over the rows, by the channels-last tree |
//!
//! The term with x̄ − μ undoes the rounding of the mean: a column of mean 10⁴ and deviation 1 loses nothing to it.

use crate::element::Arithmetic;
use crate::pool;
use crate::real::Real;
use std::ops::Range;

pub mod arrays;
pub mod batch;
pub mod layer;
mod memory;
mod sums;

pub use memory::Memory;

/// Elements that a thread takes at a time where any cut will do.
const CHUNK: usize = 1 << 14;

// ---------------------------------------------------------------------------------------------------------------------
// The formulas

/// A formula of N arrays' elements at one place, with P coefficients of its channel.
pub(crate) trait Formula<A, const N: usize, const P: usize>: Copy + From<[A; P]> + Into<[A; P]> {
    fn at(self, x: [A; N]) -> A;
}

macro_rules! coefficients {
    ($name:ident { $($field:ident),+ }, $count:literal) => {
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct $name<A> { $($field: A),+ }

        impl<A> From<[A; $count]> for $name<A> {
            #[inline(always)]
            fn from([$($field),+]: [A; $count]) -> Self {
                Self { $($field),+ }
            }
        }

        impl<A> From<$name<A>> for [A; $count] {
            #[inline(always)]
            fn from(from: $name<A>) -> Self {
                [$(from.$field),+]
            }
        }
    };
}

coefficients! { Normalize { mean, scale, shift }, 3 }

/// (x − x̄)·s + b
impl<A: Real> Formula<A, 1, 3> for Normalize<A> {
    #[inline(always)]
    fn at(self, [x]: [A; 1]) -> A {
        (x - self.mean) * self.scale + self.shift
    }
}

impl<A: Arithmetic> Normalize<A> {
    #[inline(always)]
    fn new(mean: f64, inv_std: f64, weight: f64, bias: f64) -> Self {
        let rounded = A::constant(mean);
        let scale = weight * inv_std;
        let shift = bias + (rounded.to_f64() - mean) * scale;
        Self { mean: rounded, scale: A::constant(scale), shift: A::constant(shift) }
    }
}

coefficients! { Rectify { mean, scale, shift }, 3 }

/// max((x − x̄)·s + b, 0)
impl<A: Arithmetic> Formula<A, 1, 3> for Rectify<A> {
    #[inline(always)]
    fn at(self, x: [A; 1]) -> A {
        let Self { mean, scale, shift } = self;
        Normalize { mean, scale, shift }.at(x).larger(A::ZERO)
    }
}

impl<A: Arithmetic> Normalize<A> {
    /// dy where y > 0, else 0.
    #[inline(always)]
    fn rectified(self, dy: A, x: A) -> A {
        if self.at([x]) > A::ZERO { dy } else { A::ZERO }
    }
}

coefficients! { Differentiate { mean, centre, slope, scale }, 4 }

/// ((g − c) − (x − x̄)·q)·k
impl<A: Real> Formula<A, 2, 4> for Differentiate<A> {
    #[inline(always)]
    fn at(self, [g, x]: [A; 2]) -> A {
        ((g - self.centre) - (x - self.mean) * self.slope) * self.scale
    }
}

impl<A: Arithmetic> Differentiate<A> {
    #[inline(always)]
    fn new(mean: f64, inv_std: f64, weight: f64, [sum, product]: [f64; 2], count: usize) -> Self {
        let rounded = A::constant(mean);
        let slope = ((inv_std * inv_std) * product) / count as f64;
        let centre = sum / count as f64 + (rounded.to_f64() - mean) * slope;
        Self {
            mean: rounded,
            centre: A::constant(centre),
            slope: A::constant(slope),
            scale: A::constant(weight * inv_std),
        }
    }
}

coefficients! { Scale { scale }, 1 }

/// g·k
impl<A: Real> Formula<A, 2, 1> for Scale<A> {
    #[inline(always)]
    fn at(self, [g, _]: [A; 2]) -> A {
        g * self.scale
    }
}

coefficients! { DifferentiateRectified { mean, centre, slope, scale, factor, shift }, 6 }

/// [`Differentiate`] of what relu leaves of dy
impl<A: Arithmetic> Formula<A, 2, 6> for DifferentiateRectified<A> {
    #[inline(always)]
    fn at(self, [dy, x]: [A; 2]) -> A {
        let Self { mean, centre, slope, scale, factor, shift } = self;
        let g = Normalize { mean, scale: factor, shift }.rectified(dy, x);
        Differentiate { mean, centre, slope, scale }.at([g, x])
    }
}

coefficients! { ScaleRectified { scale, mean, factor, shift }, 4 }

/// [`Scale`] of what relu leaves of dy
impl<A: Arithmetic> Formula<A, 2, 4> for ScaleRectified<A> {
    #[inline(always)]
    fn at(self, [dy, x]: [A; 2]) -> A {
        let Self { scale, mean, factor, shift } = self;
        Scale { scale }.at([Normalize { mean, scale: factor, shift }.rectified(dy, x), x])
    }
}

/// The terms of K sums, of the N arrays' elements at one place.
pub(crate) trait Terms<A, const N: usize, const K: usize>: Copy + Send + Sync {
    fn of(self, x: [A; N]) -> [f64; K];
}

/// x
#[derive(Clone, Copy, Debug)]
pub(crate) struct Value;

impl<A: Arithmetic> Terms<A, 1, 1> for Value {
    #[inline(always)]
    fn of(self, [x]: [A; 1]) -> [f64; 1] {
        [x.to_f64()]
    }
}

/// (x − μ)²
#[derive(Clone, Copy, Debug)]
pub(crate) struct Square {
    mean: f64,
}

impl<A: Arithmetic> Terms<A, 1, 1> for Square {
    #[inline(always)]
    fn of(self, [x]: [A; 1]) -> [f64; 1] {
        let d = x.to_f64() - self.mean;
        [d * d]
    }
}

/// dy, dy·(x − μ)
#[derive(Clone, Copy, Debug)]
pub(crate) struct Products {
    mean: f64,
}

impl<A: Arithmetic> Terms<A, 2, 2> for Products {
    #[inline(always)]
    fn of(self, [dy, x]: [A; 2]) -> [f64; 2] {
        let dy = dy.to_f64();
        [dy, dy * (x.to_f64() - self.mean)]
    }
}

/// [`Products`] of what relu leaves of dy
#[derive(Clone, Copy, Debug)]
pub(crate) struct RectifiedProducts<A> {
    mean: f64,
    normalize: Normalize<A>,
}

impl<A: Arithmetic> Terms<A, 2, 2> for RectifiedProducts<A> {
    #[inline(always)]
    fn of(self, [dy, x]: [A; 2]) -> [f64; 2] {
        Products { mean: self.mean }.of([self.normalize.rectified(dy, x), x])
    }
}

/// α·dy, (α·dy)·(x − μ)
#[derive(Clone, Copy, Debug)]
pub(crate) struct WeightedProducts {
    mean: f64,
}

impl<A: Arithmetic> Terms<A, 3, 2> for WeightedProducts {
    #[inline(always)]
    fn of(self, [weight, dy, x]: [A; 3]) -> [f64; 2] {
        let d = weight.to_f64() * dy.to_f64();
        [d, d * (x.to_f64() - self.mean)]
    }
}

/// dy, dy·((x − μ)·i)
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormalizedProducts {
    mean: f64,
    inv_std: f64,
}

impl<A: Arithmetic> Terms<A, 2, 2> for NormalizedProducts {
    #[inline(always)]
    fn of(self, [dy, x]: [A; 2]) -> [f64; 2] {
        let dy = dy.to_f64();
        [dy, dy * ((x.to_f64() - self.mean) * self.inv_std)]
    }
}

/// 1 / √(σ² + ε)
#[inline(always)]
pub fn inv_std(var: f64, eps: f64) -> f64 {
    1.0 / (var + eps).sqrt()
}

/// Cuts `0..n` into neighbouring parts of about `size`, and calls `task` with each.
fn share_range(n: usize, size: usize, elements: usize, task: &(dyn Fn(Range<usize>) + Sync)) {
    let size = size.max(1);
    pool::share(n.div_ceil(size), elements, &|i| task(i * size..n.min((i + 1) * size)));
}

/// Which of so many tasks to do where number `task` is due, so that each thread goes backwards over its own: in the pass
/// before it went forwards, and what it read last is still in the cache.
fn mirrored(task: usize, tasks: usize) -> usize {
    let threads = pool::num_threads().min(tasks);
    // The pool gives thread k numbers k·tasks/threads to (k + 1)·tasks/threads. Any other cut would be right, too.
    let thread = ((task + 1) * threads - 1) / tasks;
    let (start, end) = (thread * tasks / threads, (thread + 1) * tasks / threads);
    start + end - 1 - task
}

#[cfg(test)]
mod tests {
    use super::batch::{Affine, Layout};
    use super::*;
    use crate::reduce::{self, LANES, ROW_LANES};
    use crate::simd;

    /// The trees' definition, word by word.
    fn naive(terms: &[f64], lanes: usize) -> f64 {
        let sums = terms.chunks(reduce::BLOCK).map(|block| {
            let mut sums = vec![0.0; lanes];
            for (i, term) in block.iter().enumerate() {
                sums[i % lanes] += term;
            }
            while sums.len() > 1 {
                let upper = sums.split_off(sums.len() / 2);
                for (low, high) in sums.iter_mut().zip(upper) {
                    *low += high;
                }
            }
            sums[0]
        });
        reduce::combine(&mut sums.collect::<Vec<_>>())
    }

    fn numbers<A: Real>(n: usize, seed: u32) -> Vec<A> {
        let mut state = seed;
        let mut number = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            A::constant(f64::from(state >> 8) / 4_194_304.0 - 1.5)
        };
        (0..n).map(|_| number()).collect()
    }

    /// For each group of elements that are normalised together, the places of its elements in order; and the lanes.
    fn groups(layout: Layout) -> (Vec<Vec<usize>>, usize) {
        let channels = layout.channels();
        match layout {
            Layout::Inside { outer, inner, .. } => {
                let place = |c, i| (i / inner * channels + c) * inner + i % inner;
                ((0..channels).map(|c| (0..outer * inner).map(|i| place(c, i)).collect()).collect(), LANES)
            }
            Layout::Last { rows, .. } => {
                ((0..channels).map(|c| (0..rows).map(|r| r * channels + c).collect()).collect(), ROW_LANES)
            }
        }
    }

    /// μ, σ², y, dx, Σ dy and Σ dy(x − μ) of one group, from the table in the module's header.
    struct Expected<A> {
        mean: f64,
        var: f64,
        y: Vec<A>,
        dx: Vec<A>,
        sums: [f64; 2],
    }

    fn expected<A: Arithmetic>(x: &[A], dy: &[A], lanes: usize, weight: f64, bias: f64, eps: f64) -> Expected<A> {
        let count = x.len() as f64;
        let sum = |term: &dyn Fn(usize) -> f64| naive(&(0..x.len()).map(term).collect::<Vec<_>>(), lanes);
        let mean = sum(&|i| x[i].to_f64()) / count;
        let var = sum(&|i| (x[i].to_f64() - mean) * (x[i].to_f64() - mean)) / count;
        let inv = 1.0 / (var + eps).sqrt();
        let sums = [sum(&|i| dy[i].to_f64()), sum(&|i| dy[i].to_f64() * (x[i].to_f64() - mean))];
        let rounded = A::constant(mean);
        let lost = rounded.to_f64() - mean;
        let (scale, shift) = (A::constant(weight * inv), A::constant(bias + lost * (weight * inv)));
        let slope = inv * inv * sums[1] / count;
        let centre = A::constant(sums[0] / count + lost * slope);
        let slope = A::constant(slope);
        let y = x.iter().map(|x| (*x - rounded) * scale + shift).collect();
        let dx = x.iter().zip(dy).map(|(x, dy)| ((*dy - centre) - (*x - rounded) * slope) * scale).collect();
        Expected { mean, var, y, dx, sums }
    }

    fn same<A: Arithmetic>(got: &[A], expected: &[A], what: &str) {
        assert_eq!(got.len(), expected.len(), "{what}");
        for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
            assert_eq!(got.to_f64().to_bits(), expected.to_f64().to_bits(), "{what}: element {i}");
        }
    }

    fn check_batch<A: Arithmetic>(layout: Layout) {
        let eps = 1e-5;
        let (n, channels) = (layout.elements(), layout.channels());
        let (mut x, mut dy) = (numbers::<A>(n, 1), numbers::<A>(n, 2));
        let (weight, bias) = (numbers::<f64>(channels, 3), numbers::<f64>(channels, 4));
        let (groups, lanes) = groups(layout);
        let (mut y, mut dx) = (vec![A::ZERO; n], vec![A::ZERO; n]);
        let mut sums = [Vec::new(), Vec::new()];
        let mut statistics = batch::Statistics::default();
        for (c, places) in groups.iter().enumerate() {
            let at = |array: &[A]| places.iter().map(|place| array[*place]).collect::<Vec<_>>();
            let expected = expected(&at(&x), &at(&dy), lanes, weight[c], bias[c], eps);
            for (i, place) in places.iter().enumerate() {
                (y[*place], dx[*place]) = (expected.y[i], expected.dx[i]);
            }
            statistics.mean.push(expected.mean);
            statistics.var.push(expected.var);
            sums[0].push(expected.sums[0]);
            sums[1].push(inv_std(expected.var, eps) * expected.sums[1]);
        }
        let inv: Vec<f64> = statistics.var.iter().map(|var| inv_std(*var, eps)).collect();
        let (x, dy) = (Memory::of_mut(&mut x), Memory::of_mut(&mut dy));
        let affine = Affine { weight: &weight, bias: &bias };
        for level in simd::Level::ALL {
            simd::set_level(level);
            for threads in 1..=4 {
                pool::set_num_threads(threads);
                let what = format!("{layout:?}, {}, {threads} threads, {}", level.name(), A::DTYPE.name());
                let mut out = vec![A::constant(7.0); n];
                let memory = Memory::of_mut(&mut out);
                // SAFETY: three vectors of n elements; `out` is written by nobody else.
                let got = unsafe { batch::forward_training(layout, x, memory, affine, eps, false) };
                same(&got.mean, &statistics.mean, &what);
                same(&got.var, &statistics.var, &what);
                same(&out, &y, &what);
                out.fill(A::constant(7.0));
                let memory = Memory::of_mut(&mut out);
                // SAFETY: as above.
                unsafe { batch::forward(layout, x, memory, affine, &got.mean, &inv, false) };
                same(&out, &y, &what);
                let memory = Memory::of_mut(&mut out);
                // SAFETY: as above.
                let got =
                    unsafe { batch::backward(layout, dy, x, memory, affine, &statistics.mean, &inv, true, false) };
                same(&out, &dx, &what);
                same(&got.bias, &sums[0], &what);
                same(&got.weight, &sums[1], &what);
                let memory = Memory::of_mut(&mut out);
                // SAFETY: as above.
                let got =
                    unsafe { batch::backward(layout, dy, x, memory, affine, &statistics.mean, &inv, false, false) };
                same(&got.weight, &sums[1], &what);
                for (c, places) in groups.iter().enumerate() {
                    let k = A::constant(weight[c] * inv[c]);
                    let expected: Vec<A> = places.iter().map(|place| dy.row::<1>(*place)[0] * k).collect();
                    let got: Vec<A> = places.iter().map(|place| out[*place]).collect();
                    same(&got, &expected, &what);
                }
            }
        }
    }

    #[test]
    fn batch_norm_follows_the_table_at_every_level_and_thread_count() {
        for (outer, channels, inner) in [
            (1, 1, 2),
            (2, 1, 1),
            (3, 2, 5),
            (2, 3, 49),
            (5, 17, 1),
            (4, 5, 64),
            (3, 4, 300),
            (2, 3, 784),
            (7, 3, 1000),
            (3, 2, 4096),
            (33, 2, 300),
            (1, 2, 20_011),
            (90, 20, 49),
        ] {
            check_batch::<f32>(Layout::Inside { outer, channels, inner });
            check_batch::<f64>(Layout::Inside { outer, channels, inner });
        }
        for (rows, channels) in [
            (2, 1),
            (3, 1),
            (8, 3),
            (13, 7),
            (64, 8),
            (65, 64),
            (130, 100),
            (5000, 3),
            (4097, 17),
            (8200, 5),
            (71, 520),
        ] {
            check_batch::<f32>(Layout::Last { rows, channels });
            check_batch::<f64>(Layout::Last { rows, channels });
        }
    }

    fn check_layer<A: Arithmetic>(rows: usize, units: usize) {
        let eps = 1e-5;
        let n = rows * units;
        let (mut x, mut dy) = (numbers::<A>(n, 5), numbers::<A>(n, 6));
        let (weight, bias) = (numbers::<A>(units, 7), numbers::<A>(units, 8));
        let (mut y, mut dx) = (Vec::new(), Vec::new());
        let mut statistics = layer::Statistics::default();
        for (x, dy) in x.chunks(units).zip(dy.chunks(units)) {
            let plain = expected(x, dy, LANES, 1.0, 0.0, eps);
            y.extend(plain.y.iter().zip(&weight).zip(&bias).map(|((y, weight), bias)| *y * *weight + *bias));
            // Where d = α·dy is not exact in A, the sums are of the float64 products.
            let (count, inv) = (units as f64, inv_std(plain.var, eps));
            let d: Vec<f64> = dy.iter().zip(&weight).map(|(dy, weight)| weight.to_f64() * dy.to_f64()).collect();
            let products: Vec<f64> = d.iter().zip(x).map(|(d, x)| d * (x.to_f64() - plain.mean)).collect();
            let rounded = A::constant(plain.mean);
            let slope = inv * inv * naive(&products, LANES) / count;
            let centre = A::constant(naive(&d, LANES) / count + (rounded.to_f64() - plain.mean) * slope);
            let (slope, inv_rounded) = (A::constant(slope), A::constant(inv));
            let formula = |i: usize| ((weight[i] * dy[i] - centre) - (x[i] - rounded) * slope) * inv_rounded;
            dx.extend((0..units).map(formula));
            statistics.mean.push(plain.mean);
            statistics.inv_std.push(inv);
        }
        let column = |term: &dyn Fn(usize, usize) -> f64| {
            let of_unit =
                |unit| naive(&(0..rows).map(|row| term(row, row * units + unit)).collect::<Vec<_>>(), ROW_LANES);
            (0..units).map(of_unit).collect::<Vec<_>>()
        };
        let normalised = |row: usize, at: usize| (x[at].to_f64() - statistics.mean[row]) * statistics.inv_std[row];
        let expected_weight = column(&|row, at| dy[at].to_f64() * normalised(row, at));
        let expected_bias = column(&|_, at| dy[at].to_f64());
        let (x, dy) = (Memory::of_mut(&mut x), Memory::of_mut(&mut dy));
        for level in simd::Level::ALL {
            simd::set_level(level);
            for threads in [1, 2, 4] {
                pool::set_num_threads(threads);
                let what = format!("({rows}, {units}), {}, {threads} threads, {}", level.name(), A::DTYPE.name());
                let mut out = vec![A::constant(7.0); n];
                let memory = Memory::of_mut(&mut out);
                // SAFETY: vectors of n elements; `out` is written by nobody else.
                let got = unsafe { layer::forward(rows, x, memory, &weight, &bias, eps) };
                same(&got.mean, &statistics.mean, &what);
                same(&got.inv_std, &statistics.inv_std, &what);
                same(&out, &y, &what);
                let memory = Memory::of_mut(&mut out);
                // SAFETY: as above.
                let got = unsafe { layer::backward(rows, dy, x, memory, &weight, &statistics) };
                same(&out, &dx, &what);
                same(&got.weight, &expected_weight, &what);
                same(&got.bias, &expected_bias, &what);
            }
        }
    }

    #[test]
    fn layer_norm_follows_the_table_at_every_level_and_thread_count() {
        for (rows, units) in [
            (1, 1),
            (1, 2),
            (3, 7),
            (9, 64),
            (10, 65),
            (17, 100),
            (20, 127),
            (5, 1000),
            (2, 9001),
            (4100, 19),
            (300, 130),
        ] {
            check_layer::<f32>(rows, units);
            check_layer::<f64>(rows, units);
        }
    }

    #[test]
    fn constants_have_variance_zero_and_give_the_bias() {
        // 0.1 is not a binary number: E[x²] − E[x]² would be a little off 0, perhaps below.
        for layout in [Layout::Inside { outer: 7, channels: 3, inner: 11 }, Layout::Last { rows: 77, channels: 3 }] {
            let (mut x, mut y) = (vec![0.1f32; layout.elements()], vec![0f32; layout.elements()]);
            let affine = Affine { weight: &[2.0; 3], bias: &[0.5; 3] };
            // SAFETY: two vectors of as many elements; nobody else uses y.
            let statistics = unsafe {
                batch::forward_training(layout, Memory::of_mut(&mut x), Memory::of_mut(&mut y), affine, 1e-5, false)
            };
            assert_eq!(statistics.mean, [f64::from(0.1f32); 3]);
            assert_eq!(statistics.var, [0.0; 3]);
            assert!(y.iter().all(|y| *y == 0.5), "{y:?}");
        }
    }

    #[test]
    fn empty_arrays_are_nothing_to_do() {
        for layout in [Layout::Inside { outer: 0, channels: 2, inner: 3 }, Layout::Last { rows: 0, channels: 2 }] {
            let affine = Affine { weight: &[1.0; 2], bias: &[0.0; 2] };
            let (mut x, mut y) = ([0f32; 0], [0f32; 0]);
            let (x, y) = (Memory::of_mut(&mut x), Memory::of_mut(&mut y));
            // SAFETY: nothing is read or written.
            unsafe { batch::forward(layout, x, y, affine, &[0.0; 2], &[1.0; 2], false) };
            // SAFETY: as above.
            let got = unsafe { batch::backward(layout, x, x, y, affine, &[0.0; 2], &[1.0; 2], true, false) };
            assert_eq!(got.bias, [0.0; 2]);
        }
        // SAFETY: as above.
        let got = unsafe { layer::forward::<f32>(0, Memory::of(&[]), Memory::of_mut(&mut []), &[1.0], &[0.0], 1e-5) };
        assert!(got.mean.is_empty());
        assert_eq!(layer::sum(&[]), 0.0);
    }

    #[test]
    fn backwards_every_task_runs_once() {
        for threads in 1..=5 {
            pool::set_num_threads(threads);
            for tasks in 1..40 {
                let mut order: Vec<usize> = (0..tasks).map(|task| mirrored(task, tasks)).collect();
                order.sort_unstable();
                assert!(order.iter().enumerate().all(|(i, task)| i == *task), "{tasks} tasks, {threads} threads");
            }
        }
    }
}
