//! The canonical summation tree: every sum has one order, so its bits depend on nothing but its terms.
//!
//! Block b = i / 4096 holds terms i in C order. In a block, lane l = i % 64 is a float64 accumulator that starts at +0
//! and adds its terms in rising order; the lanes fold by halves, l += l + 32, + 16, … + 1; the blocks' sums combine by
//! adjacent pairs, level by level, an odd last one moving up. Several tensors combine their sums by the same pairs.
//!
//! Sums over the rows of a (rows, channels) array, channels last, have a tree of their own: block b = row / 4096, lane
//! l = row % 8 per channel, folding + 4, + 2, + 1, blocks by pairs.

use crate::element::{Arithmetic, BLOCK as LOADED, View};
use crate::real::Real;
use crate::simd::{self, Kernel};

/// Terms in a block of the tree.
pub const BLOCK: usize = 4096;
/// Accumulators in a block.
pub const LANES: usize = 64;
/// Accumulators in a block of rows.
pub const ROW_LANES: usize = 8;

/// Folds the lanes of a block by halves.
#[inline(always)]
pub fn fold<const N: usize>(mut lanes: [f64; N]) -> f64 {
    let mut half = N / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Combines sums by adjacent pairs, level by level, an odd last one moving up; 0 of none. Overwrites `sums`.
pub fn combine(sums: &mut [f64]) -> f64 {
    let mut n = sums.len();
    while n > 1 {
        for pair in 0..n / 2 {
            sums[pair] = sums[2 * pair] + sums[2 * pair + 1];
        }
        if n % 2 == 1 {
            sums[n / 2] = sums[n - 1];
        }
        n = n.div_ceil(2);
    }
    sums.first().copied().unwrap_or(0.0)
}

/// [`combine`] for sums that come one after the other: the same additions, nothing stored but one sum a level.
#[derive(Clone, Copy, Debug)]
pub struct Pairs {
    /// Level k holds the sum of 2ᵏ neighbours while bit k of `count` is set.
    levels: [f64; usize::BITS as usize],
    count: usize,
}

impl Pairs {
    /// No sums yet.
    #[inline(always)]
    pub fn new() -> Self {
        Self { levels: [0.0; usize::BITS as usize], count: 0 }
    }

    /// The next sum.
    #[inline(always)]
    pub fn push(&mut self, sum: f64) {
        let (mut sum, mut level) = (sum, 0);
        while self.count >> level & 1 == 1 {
            sum += self.levels[level];
            level += 1;
        }
        self.levels[level] = sum;
        self.count += 1;
    }

    /// The sum of all; 0 of none.
    #[inline(always)]
    pub fn total(&self) -> f64 {
        // An odd last sum moves up until it meets its left neighbour: the lower level is always the right operand.
        let present = |level: &usize| self.count >> level & 1 == 1;
        let sums = (0..self.levels.len()).filter(present).map(|level| self.levels[level]);
        sums.reduce(|right, left| left + right).unwrap_or(0.0)
    }
}

impl Default for Pairs {
    fn default() -> Self {
        Self::new()
    }
}

/// What accumulators do with terms, and what a block's become.
pub trait Sum: Copy {
    /// One term more.
    fn add(self, lane: &mut f64, x: f64);
    /// What a block gives.
    fn fold(self, lanes: [f64; LANES]) -> f64;
}

/// Σ x².
#[derive(Clone, Copy, Debug)]
pub struct Squares;

impl Sum for Squares {
    #[inline(always)]
    fn add(self, lane: &mut f64, x: f64) {
        *lane += x * x;
    }

    #[inline(always)]
    fn fold(self, lanes: [f64; LANES]) -> f64 {
        fold(lanes)
    }
}

/// What is asked where squares have overflowed or underflowed.
#[derive(Clone, Copy, Debug)]
pub enum Rare {
    /// The largest |x|.
    Largest,
    /// Σ (x·2⁻ᵏ)².
    Scaled(i32),
}

impl Sum for Rare {
    #[inline(always)]
    fn add(self, lane: &mut f64, x: f64) {
        match self {
            Self::Largest => *lane = lane.larger(x.abs()),
            Self::Scaled(power) => {
                let x = times_two_to(x, -power);
                *lane += x * x;
            }
        }
    }

    fn fold(self, lanes: [f64; LANES]) -> f64 {
        match self {
            Self::Largest => lanes.into_iter().fold(0.0, Real::larger),
            Self::Scaled(_) => fold(lanes),
        }
    }
}

/// √Σ x² as root·2ᵏ, so that it neither overflows nor underflows; k is 0 unless the squares did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// The root of the sum.
    pub root: f64,
    /// k.
    pub power: i32,
}

impl Norm {
    /// A norm whose square neither overflows nor underflows, or a number that stands for one.
    pub fn plain(root: f64) -> Self {
        Self { root, power: 0 }
    }

    /// The norm of which `total` is the sum of squares, and `rare` tells what is not in it: it is asked only if all
    /// elements may be finite and `total` is not, or if `total` is below 2⁻⁹⁰⁰. Then k is the exponent of the largest |x|.
    pub fn of(total: f64, rare: impl Fn(Rare) -> f64) -> Self {
        if total == f64::INFINITY || total < LEAST {
            let largest = rare(Rare::Largest);
            if largest > 0.0 && largest < f64::INFINITY {
                let power = exponent(largest);
                return Self { root: rare(Rare::Scaled(power)).sqrt(), power };
            }
        }
        Self::plain(total.sqrt())
    }

    /// As a number: infinite if it is larger than all.
    pub fn value(self) -> f64 {
        times_two_to(self.root, self.power)
    }
}

/// 2⁻⁹⁰⁰: sums of squares below it may have lost terms to underflow.
const LEAST: f64 = two_to(-900);

/// 2ᵏ for k from −1074 to 1023.
pub(crate) const fn two_to(power: i32) -> f64 {
    f64::from_bits(if power < -1022 { 1 << (power + 1074) } else { ((power + 1023) as u64) << 52 })
}

/// The exponent of a finite x > 0: that of the largest power of two that is not above it.
pub(crate) fn exponent(x: f64) -> i32 {
    let bits = x.to_bits();
    if x < f64::MIN_POSITIVE { 63 - bits.leading_zeros() as i32 - 1074 } else { (bits >> 52) as i32 - 1023 }
}

/// x·2ᵏ, rounded once.
#[inline(always)]
pub(crate) fn times_two_to(x: f64, power: i32) -> f64 {
    match power {
        1024.. => x * two_to(1023) * two_to((power - 1023).min(1023)),
        -1074..1024 => x * two_to(power),
        // Exact first, as nothing is left of numbers that are not near 1.
        _ => x * two_to(-512) * two_to((power + 512).max(-1074)),
    }
}

/// What is asked about the gradients before a step.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// Each element is multiplied by this before anything else.
    pub unscale: Option<f64>,
    /// Each element is cut off at ± this first; infinity for none.
    pub clip_value: f64,
    /// Elements above this in magnitude count as not finite; None: not asked.
    pub limit: Option<f64>,
    /// Whether the sum of squares is asked.
    pub squares: bool,
}

/// What a block of the tree answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    /// Σ x² of the block, after clipping by value.
    pub squares: f64,
    /// How many elements are beyond the limit, before clipping.
    pub beyond: usize,
}

/// Measures block number `block` of the array.
///
/// # Safety
/// The promise of [`View::new`] holds for `view`, whose dtype computes in `A` and which has that block.
pub unsafe fn measure<A: Arithmetic>(view: &View, block: usize, asked: &Measure) -> Measured {
    simd::dispatch(MeasureBlock::<A> { view, block, asked, arithmetic: std::marker::PhantomData })
}

struct MeasureBlock<'a, A> {
    view: &'a View,
    block: usize,
    asked: &'a Measure,
    arithmetic: std::marker::PhantomData<A>,
}

impl<A: Arithmetic> Kernel for MeasureBlock<'_, A> {
    type Output = Measured;

    #[inline(always)]
    fn run(self) -> Measured {
        let start = self.block * BLOCK;
        let end = self.view.len().min(start + BLOCK);
        let unscale = self.asked.unscale.map(A::constant);
        let mut sums = Sums { unscale, cut: A::constant(self.asked.clip_value), lanes: [0.0; LANES], beyond: 0 };
        let mut at = start;
        if let Some(data) = self.view.plain::<A>() {
            while at + LANES <= end {
                // SAFETY: LANES elements from `at` are inside the array, which is plain.
                sums.add(self.asked, unsafe { data.wrapping_add(at).cast::<[A; LANES]>().read() });
                at += LANES;
            }
            if at < end {
                let mut rest = [A::ZERO; LANES];
                // SAFETY: end − at < LANES elements are there; the row is elsewhere.
                unsafe { data.wrapping_add(at).copy_to_nonoverlapping(rest.as_mut_ptr(), end - at) };
                sums.add(self.asked, rest);
                at = end;
            }
        }
        while at < end {
            let n = LOADED.min(end - at);
            // SAFETY: at + n ≤ len; the rest is the contract of `measure`.
            let x = unsafe { self.view.load::<A>(at, n) };
            // Not `for_each`: it may stay a function of its own, compiled for the lowest instruction set.
            for row in x.as_chunks::<LANES>().0 {
                sums.add(self.asked, *row);
            }
            at += n;
        }
        Measured { squares: fold(sums.lanes), beyond: sums.beyond }
    }
}

struct Sums<A> {
    unscale: Option<A>,
    cut: A,
    lanes: [f64; LANES],
    beyond: usize,
}

impl<A: Arithmetic> Sums<A> {
    /// One row more. Absent elements are 0: never beyond a limit, and 0² = +0 does nothing to a lane that is never −0.
    #[inline(always)]
    fn add(&mut self, asked: &Measure, mut x: [A; LANES]) {
        if let Some(unscale) = self.unscale {
            x = x.map(|x| x * unscale);
        }
        if let Some(limit) = asked.limit {
            let limit = A::constant(limit);
            // Not `> limit`: NaN is beyond it too.
            self.beyond += usize::from(x.map(|x| u8::from(!(x.abs() <= limit))).iter().sum::<u8>());
        }
        if asked.clip_value < f64::INFINITY {
            x = x.map(|x| x.larger(-self.cut).smaller(self.cut));
        }
        if asked.squares {
            for (lane, x) in self.lanes.iter_mut().zip(x) {
                let x = x.to_f64();
                *lane += x * x;
            }
        }
    }
}

/// What is asked where squares have overflowed or underflowed, of block number `block` of the array: its elements are
/// those that [`measure`] squares.
///
/// # Safety
/// As [`measure`].
pub unsafe fn measure_rare<A: Arithmetic>(view: &View, block: usize, asked: &Measure, rare: Rare) -> f64 {
    let (start, unscale) = (block * BLOCK, asked.unscale.map(A::constant));
    let (end, cut) = (view.len().min(start + BLOCK), A::constant(asked.clip_value));
    let mut lanes = [0.0; LANES];
    for at in (start..end).step_by(LOADED) {
        let n = LOADED.min(end - at);
        // SAFETY: at + n ≤ len; the rest is the contract of this function.
        let block = unsafe { view.load::<A>(at, n) };
        for (i, x) in block[..n].iter().enumerate() {
            let x = unscale.map_or(*x, |unscale| *x * unscale);
            let x = if asked.clip_value < f64::INFINITY { x.larger(-cut).smaller(cut) } else { x };
            rare.add(&mut lanes[i % LANES], x.to_f64());
        }
    }
    rare.fold(lanes)
}

/// The index of the first element beyond the limit, once it is multiplied by `unscale`.
///
/// # Safety
/// The promise of [`View::new`] holds for `view`, whose dtype computes in `A`.
pub unsafe fn first_beyond<A: Arithmetic>(view: &View, limit: f64, unscale: Option<f64>) -> Option<usize> {
    let (limit, unscale) = (A::constant(limit), unscale.map(A::constant));
    let beyond = |x: A| !(unscale.map_or(x, |unscale| x * unscale).abs() <= limit);
    (0..view.len()).step_by(LOADED).find_map(|at| {
        let n = LOADED.min(view.len() - at);
        // SAFETY: at + n ≤ len; the rest is the contract of this function.
        let x = unsafe { view.load::<A>(at, n) };
        x[..n].iter().position(|x| beyond(*x)).map(|i| at + i)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::Dtype;

    /// The definition, word by word.
    fn naive(terms: &[f64]) -> f64 {
        let mut sums: Vec<f64> = terms
            .chunks(BLOCK)
            .map(|block| {
                let mut lanes = vec![0.0; LANES];
                for (i, term) in block.iter().enumerate() {
                    lanes[i % LANES] += term;
                }
                while lanes.len() > 1 {
                    let upper = lanes.split_off(lanes.len() / 2);
                    for (low, high) in lanes.iter_mut().zip(upper) {
                        *low += high;
                    }
                }
                lanes[0]
            })
            .collect();
        while sums.len() > 1 {
            sums = sums.chunks(2).map(|pair| pair.iter().copied().reduce(|a, b| a + b).unwrap()).collect();
        }
        sums.first().copied().unwrap_or(0.0)
    }

    fn sum_of_squares(x: &[f32]) -> f64 {
        // SAFETY: `x` outlives the view and is not written.
        let view = unsafe { View::contiguous(x.as_ptr().cast_mut().cast(), Dtype::F32, x.len()) };
        let asked = Measure { unscale: None, clip_value: f64::INFINITY, limit: None, squares: true };
        // SAFETY: as above; the blocks are those of x.
        let mut sums: Vec<f64> =
            (0..x.len().div_ceil(BLOCK)).map(|block| unsafe { measure::<f32>(&view, block, &asked) }.squares).collect();
        combine(&mut sums)
    }

    #[test]
    fn squares_follow_the_tree_at_every_level() {
        let mut state = 1u32;
        let x: Vec<f32> = (0..5 * BLOCK + 77)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f32::from_bits((state >> 9) | 0x3f80_0000) - 1.5
            })
            .collect();
        for level in simd::Level::ALL {
            simd::set_level(level);
            for n in (0..131).chain([BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 5, x.len()]) {
                let terms: Vec<f64> = x[..n].iter().map(|x| f64::from(*x).powi(2)).collect();
                assert_eq!(sum_of_squares(&x[..n]).to_bits(), naive(&terms).to_bits(), "{n} at {}", level.name());
            }
        }
        simd::set_level(simd::Level::Avx512);
    }

    #[test]
    fn pairs_that_come_one_by_one_are_the_same_pairs() {
        for n in 0..200 {
            let mut sums: Vec<f64> = (0..n).map(|i| 1.0 / f64::from(i + 3)).collect();
            let mut pairs = Pairs::new();
            sums.iter().for_each(|sum| pairs.push(*sum));
            assert_eq!(pairs.total().to_bits(), combine(&mut sums).to_bits(), "{n}");
        }
    }

    #[test]
    fn what_is_beyond_is_counted_and_found() {
        let mut x = vec![1.0f32; 300];
        x[140] = f32::NAN;
        x[299] = f32::INFINITY;
        x[200] = 2e19;
        // SAFETY: `x` outlives the view and is not written.
        let view = unsafe { View::contiguous(x.as_mut_ptr().cast(), Dtype::F32, x.len()) };
        let asked = |limit| Measure { unscale: None, clip_value: f64::INFINITY, limit: Some(limit), squares: false };
        // SAFETY: as above.
        assert_eq!(unsafe { measure::<f32>(&view, 0, &asked(f64::from(f32::MAX))) }.beyond, 2);
        // SAFETY: as above.
        assert_eq!(unsafe { measure::<f32>(&view, 0, &asked(1.8e19)) }.beyond, 3);
        // SAFETY: as above.
        assert_eq!(unsafe { first_beyond::<f32>(&view, 1e30, None) }, Some(140));
        // SAFETY: as above.
        assert_eq!(unsafe { first_beyond::<f32>(&view, 1e19, Some(0.25)) }, Some(140));
        x[140] = 0.0;
        // SAFETY: as above.
        let view = unsafe { View::contiguous(x.as_mut_ptr().cast(), Dtype::F32, x.len()) };
        // SAFETY: as above.
        assert_eq!(unsafe { first_beyond::<f32>(&view, 1e19, Some(0.25)) }, Some(299));
        // SAFETY: as above.
        assert_eq!(unsafe { first_beyond::<f32>(&view, 1e19, Some(0.75)) }, Some(200));
    }
}
