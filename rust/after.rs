//! What follows the rule in the same pass: Lookahead, an average of the parameters, exact copies of half-precision ones.
//!
//! copy → rule → Lookahead → average → copy and store. Each stage is a loop over what the rule has left in the cache, and
//! none of them knows the rule. They see the new parameter as it was computed, before it is rounded for storage.

use crate::element::{Arithmetic, BLOCK, Dtype, GROUP, View, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::simd::{self, Kernel};

/// Which stages follow the rule, for all parameters.
#[derive(Clone, Copy, Debug, Default)]
pub struct After {
    /// An average of the parameters.
    pub average: Option<Average>,
    /// Lookahead.
    pub lookahead: Option<Lookahead>,
}

/// The average a of the parameters after the updates `start + every`, `start + 2·every`, …: a ← a + x, x = c(w − a).
///
/// In float32 that loses every x below half of a's last bit, so what the sum loses is kept and added to the next x:
/// x = c(w − a) + r, then r ← x − (a⁺ − a) for the new a⁺. Where a is infinite or NaN, r is NaN, until a first point
/// starts both anew: r is 0 there.
#[derive(Clone, Copy, Debug)]
pub struct Average {
    /// Weight of the past, in [0, 1); None: all points weigh the same.
    pub decay: Option<f64>,
    /// Whether the n-th point finds at most (1 + n)/(10 + n) as the weight of the past.
    pub warmup: bool,
    /// Updates before the first that may count.
    pub start: u64,
    /// Of those after, each so manieth counts; not 0.
    pub every: u64,
}

impl Average {
    /// c at update t; the first point is the average. None: this update does not count.
    fn weight(&self, t: u64) -> Option<f64> {
        let since = t.checked_sub(self.start)?;
        let (n, rest) = (since / self.every, since % self.every);
        if n == 0 || rest != 0 {
            return None;
        }
        let points = n as f64;
        Some(match self.decay {
            _ if n == 1 => 1.0,
            None => 1.0 / points,
            Some(decay) => 1.0 - if self.warmup { decay.min((1.0 + points) / (10.0 + points)) } else { decay },
        })
    }
}

/// Every so manieth update goes only a part of the way from the parameter as it was after the last such: w ← s + α(w − s).
#[derive(Clone, Copy, Debug)]
pub struct Lookahead {
    /// Updates from one to the next; not 0.
    pub every: u64,
    /// α in (0, 1]; 1 is no Lookahead.
    pub alpha: f64,
}

/// The numbers of update t.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Numbers {
    /// c, if this update counts in the average.
    weight: Option<f64>,
    /// Whether the parameter before this update is where Lookahead will start from.
    begins: bool,
    /// α, if this update goes a part of the way.
    alpha: Option<f64>,
}

impl After {
    pub(crate) fn numbers(&self, t: u64) -> Numbers {
        Numbers {
            weight: self.average.and_then(|average| average.weight(t)),
            begins: self.lookahead.is_some_and(|lookahead| (t - 1).is_multiple_of(lookahead.every)),
            alpha: self
                .lookahead
                .filter(|lookahead| t.is_multiple_of(lookahead.every))
                .map(|lookahead| lookahead.alpha),
        }
    }
}

/// The names of the arrays that are kept, in order.
pub const KEPT: [&str; 5] = ["master", "average", "slow", "remainder", "average_rest"];

/// Arrays that are kept for a parameter, one element after the other; but for the remainder in the type that it computes in.
#[derive(Debug, Default)]
pub struct Kept {
    /// The exact parameter, of which the stored one is the rounding.
    pub master: Option<View>,
    /// The average.
    pub average: Option<View>,
    /// Lookahead's slow weights: the parameter as it was when the last part of the way was gone.
    pub slow: Option<View>,
    /// The lower halves of a split parameter, whose own view reads and writes them.
    pub remainder: Option<View>,
    /// What the average has lost to rounding; none where it is float64.
    pub rest: Option<View>,
}

impl Kept {
    /// In the order of [`KEPT`].
    pub fn views(&self) -> [Option<&View>; KEPT.len()] {
        let Self { master, average, slow, remainder, rest } = self;
        [master, average, slow, remainder, rest].map(Option::as_ref)
    }

    /// Whether anything happens in an update with these numbers.
    pub(crate) fn is_busy(&self, numbers: &Numbers) -> bool {
        self.master.is_some() || numbers.weight.is_some() || numbers.begins || numbers.alpha.is_some()
    }
}

/// What the rounding of elements `at..at + n` has lost comes back at `p`. An element that is not the rounding of its copy
/// was changed from outside, and counts as it is.
///
/// # Safety
/// `n` elements can be read and written at `p`, loaded from the parameter, and nobody else does; the promise of
/// [`View::new`] holds for all views, `at + n` ≤ their length, and they hold `A`.
#[inline(never)]
pub(crate) unsafe fn restore<A: Arithmetic>(kept: Option<&Kept>, dtype: Dtype, p: *mut A, at: usize, n: usize) {
    let Some(master) = kept.and_then(|kept| kept.master.as_ref()).and_then(View::plain::<f32>) else { return };
    // Only half-precision parameters have one, and they compute in f32.
    debug_assert!(A::DTYPE == Dtype::F32 && dtype.size() == 2);
    let (p, master) = (p.cast::<f32>(), master.wrapping_add(at));
    match dtype {
        Dtype::F16 => {
            simd::dispatch(Staged { n, stage: Restore { p, master, rounded: |x| f16_to_f32(f32_to_f16(x)) } });
        }
        _ => simd::dispatch(Staged { n, stage: Restore { p, master, rounded: |x| bf16_to_f32(f32_to_bf16(x)) } }),
    }
}

/// What happens to elements `at..at + n` at `p` before the rule: [`restore`], and Lookahead takes note of them.
///
/// # Safety
/// As [`restore`].
#[inline(never)]
pub(crate) unsafe fn before_rule<A: Arithmetic>(
    kept: Option<&Kept>,
    dtype: Dtype,
    numbers: &Numbers,
    p: *mut A,
    at: usize,
    n: usize,
) {
    let Some(kept) = kept else { return };
    // SAFETY: the same contract.
    unsafe { restore(Some(kept), dtype, p, at, n) };
    if let Some(slow) = kept.slow.as_ref().and_then(View::plain::<A>).filter(|_| numbers.begins) {
        // SAFETY: n elements are in both, which are different arrays.
        unsafe { slow.wrapping_add(at).copy_from_nonoverlapping(p, n) };
    }
}

/// What happens to them after it.
///
/// # Safety
/// As [`before_rule`].
#[inline(never)]
pub(crate) unsafe fn after_rule<A: Arithmetic>(kept: Option<&Kept>, numbers: &Numbers, p: *mut A, at: usize, n: usize) {
    let Some(kept) = kept else { return };
    let here = |view: &Option<View>| view.as_ref().and_then(View::plain::<A>).map(|data| data.wrapping_add(at));
    let one = A::constant(1.0);
    if let (Some(from), Some(weight)) = (here(&kept.slow), numbers.alpha.map(A::constant).filter(|alpha| *alpha != one))
    {
        simd::dispatch(Staged { n, stage: Blend { from, to: p, result: p, weight } });
    }
    if let (Some(average), Some(weight)) = (here(&kept.average), numbers.weight.map(A::constant)) {
        let rest = here(&kept.rest);
        if weight == one {
            // SAFETY: n elements are in both, which are different arrays.
            unsafe { average.copy_from_nonoverlapping(p, n) };
            if let Some(rest) = rest {
                // SAFETY: as above; 0 is all zero bits.
                unsafe { rest.write_bytes(0, n) };
            }
        } else if let Some(rest) = rest {
            simd::dispatch(Staged { n, stage: Mean { average, rest, to: p, weight } });
        } else {
            simd::dispatch(Staged { n, stage: Blend { from: average, to: p, result: average, weight } });
        }
    }
    if let Some(master) = here(&kept.master) {
        // SAFETY: as above.
        unsafe { master.copy_from_nonoverlapping(p, n) };
    }
}

/// What happens to some elements, all of them read before one is written.
trait Stage {
    /// Of `W` from `at` on.
    fn group<const W: usize>(&self, at: usize);
}

/// A stage of `n` elements: in groups, then one by one.
struct Staged<S> {
    n: usize,
    stage: S,
}

impl<S: Stage> Kernel for Staged<S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let whole = self.n - self.n % GROUP;
        // Not `for_each`: its body may be compiled for the lowest instruction set before it is inlined.
        for at in (0..whole).step_by(GROUP) {
            self.stage.group::<GROUP>(at);
        }
        for at in whole..self.n {
            self.stage.group::<1>(at);
        }
    }
}

struct Restore<F> {
    p: *mut f32,
    master: *const f32,
    rounded: F,
}

impl<F: Fn(f32) -> f32> Stage for Restore<F> {
    #[inline(always)]
    fn group<const W: usize>(&self, at: usize) {
        let here = self.p.wrapping_add(at).cast::<[f32; W]>();
        // SAFETY: at + W ≤ n elements can be read, as `before_rule` asks.
        let mut p = unsafe { here.read() };
        // SAFETY: as above.
        let master = unsafe { self.master.wrapping_add(at).cast::<[f32; W]>().read() };
        for (p, master) in p.iter_mut().zip(master) {
            // By their bits: -0 is not 0, and a NaN may be itself.
            *p = if (self.rounded)(master).to_bits() == p.to_bits() { master } else { *p };
        }
        // SAFETY: as above; they may be written.
        unsafe { here.write(p) };
    }
}

/// result ← from + weight·(to − from); the result may be one of the two.
struct Blend<A> {
    from: *const A,
    to: *const A,
    result: *mut A,
    weight: A,
}

impl<A: Arithmetic> Stage for Blend<A> {
    #[inline(always)]
    fn group<const W: usize>(&self, at: usize) {
        // SAFETY: at + W ≤ n elements can be read, as `after_rule` asks.
        let mut result = unsafe { self.from.wrapping_add(at).cast::<[A; W]>().read() };
        // SAFETY: as above.
        let to = unsafe { self.to.wrapping_add(at).cast::<[A; W]>().read() };
        for (from, to) in result.iter_mut().zip(to) {
            *from = *from + self.weight * (to - *from);
        }
        // SAFETY: as above; they may be written.
        unsafe { self.result.wrapping_add(at).cast::<[A; W]>().write(result) };
    }
}

/// The same of an average with what it has lost.
struct Mean<A> {
    average: *mut A,
    rest: *mut A,
    to: *const A,
    weight: A,
}

impl<A: Arithmetic> Stage for Mean<A> {
    #[inline(always)]
    fn group<const W: usize>(&self, at: usize) {
        let here = |pointer: *mut A| pointer.wrapping_add(at).cast::<[A; W]>();
        // SAFETY: at + W ≤ n elements can be read, as `after_rule` asks.
        let mut average = unsafe { here(self.average).read() };
        // SAFETY: as above.
        let mut rest = unsafe { here(self.rest).read() };
        // SAFETY: as above.
        let to = unsafe { self.to.wrapping_add(at).cast::<[A; W]>().read() };
        for i in 0..W {
            let move_by = self.weight * (to[i] - average[i]) + rest[i];
            let new = average[i] + move_by;
            rest[i] = move_by - (new - average[i]);
            average[i] = new;
        }
        // SAFETY: as above; they may be written.
        unsafe { here(self.average).write(average) };
        // SAFETY: as above.
        unsafe { here(self.rest).write(rest) };
    }
}

/// Elements that are worked on at a time where all arrays are plain: so few that they stay in the first-level cache from
/// one stage to the next.
pub(crate) const MOST: usize = 8 * BLOCK;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_point_of_an_equal_mean_weighs_the_same() {
        let swa = Average { decay: None, warmup: false, start: 4, every: 3 };
        let weights: Vec<_> = (0..=13).map(|t| swa.weight(t)).collect();
        let mut expected = vec![None; 14];
        (expected[7], expected[10], expected[13]) = (Some(1.0), Some(0.5), Some(1.0 / 3.0));
        assert_eq!(weights, expected);
    }

    #[test]
    fn the_decay_of_an_average_rises_with_the_points() {
        let ema = |warmup| Average { decay: Some(0.5), warmup, start: 0, every: 1 };
        assert_eq!(ema(false).weight(0), None);
        assert_eq!([1, 2, 3].map(|t| ema(false).weight(t)), [Some(1.0), Some(0.5), Some(0.5)]);
        // 3/12, then 4/13, …, at last 9/18 = 0.5 and no more.
        let expected = [1.0, 1.0 - 3.0 / 12.0, 1.0 - 4.0 / 13.0, 0.5, 0.5].map(Some);
        assert_eq!([1, 2, 3, 8, 9].map(|t| ema(true).weight(t)), expected);
    }

    #[test]
    fn lookahead_begins_where_it_ended() {
        let after = After { lookahead: Some(Lookahead { every: 3, alpha: 0.5 }), ..After::default() };
        let numbers: Vec<_> = (1..=7).map(|t| after.numbers(t)).map(|n| (n.begins, n.alpha.is_some())).collect();
        let (begin, between, end) = ((true, false), (false, false), (false, true));
        assert_eq!(numbers, [begin, between, end, begin, between, end, begin]);
    }
}
