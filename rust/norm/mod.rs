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
//! | batch forward | A | y = (x − x̄)·s + b; s = α·i, b = β + (x̄ − μ)·s |
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
use crate::reduce::{self, LANES, Pairs, ROW_LANES};
use crate::simd::{self, Kernel};
use std::array::from_fn;
use std::marker::PhantomData;
use std::ops::Range;

pub mod batch;
pub mod layer;

/// Fewer elements than this in all are not worth waking another thread.
const PARALLEL_FROM: usize = 1 << 15;
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

/// The terms of K sums, of the N arrays' elements at one place.
pub(crate) trait Terms<const N: usize, const K: usize>: Copy + Send + Sync {
    fn of(self, x: [f64; N]) -> [f64; K];
}

/// x
#[derive(Clone, Copy, Debug)]
pub(crate) struct Value;

impl Terms<1, 1> for Value {
    #[inline(always)]
    fn of(self, x: [f64; 1]) -> [f64; 1] {
        x
    }
}

/// (x − μ)²
#[derive(Clone, Copy, Debug)]
pub(crate) struct Square {
    mean: f64,
}

impl Terms<1, 1> for Square {
    #[inline(always)]
    fn of(self, [x]: [f64; 1]) -> [f64; 1] {
        let d = x - self.mean;
        [d * d]
    }
}

/// dy, dy·(x − μ)
#[derive(Clone, Copy, Debug)]
pub(crate) struct Products {
    mean: f64,
}

impl Terms<2, 2> for Products {
    #[inline(always)]
    fn of(self, [dy, x]: [f64; 2]) -> [f64; 2] {
        [dy, dy * (x - self.mean)]
    }
}

/// α·dy, (α·dy)·(x − μ)
#[derive(Clone, Copy, Debug)]
pub(crate) struct WeightedProducts {
    mean: f64,
}

impl Terms<3, 2> for WeightedProducts {
    #[inline(always)]
    fn of(self, [weight, dy, x]: [f64; 3]) -> [f64; 2] {
        let d = weight * dy;
        [d, d * (x - self.mean)]
    }
}

/// dy, dy·((x − μ)·i)
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormalizedProducts {
    mean: f64,
    inv_std: f64,
}

impl Terms<2, 2> for NormalizedProducts {
    #[inline(always)]
    fn of(self, [dy, x]: [f64; 2]) -> [f64; 2] {
        [dy, dy * ((x - self.mean) * self.inv_std)]
    }
}

/// 1 / √(σ² + ε)
#[inline(always)]
pub fn inv_std(var: f64, eps: f64) -> f64 {
    1.0 / (var + eps).sqrt()
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory

/// Elements that lie one after the other, perhaps in an array of Python's: read and written by value, never borrowed.
#[derive(Debug)]
pub struct Memory<'a, A> {
    data: *mut A,
    len: usize,
    lifetime: PhantomData<&'a [A]>,
}

impl<A> Clone for Memory<'_, A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for Memory<'_, A> {}

// SAFETY: reads are governed by the contract of `Memory::new`, writes are unsafe and name their conditions.
unsafe impl<A: Send> Send for Memory<'_, A> {}
// SAFETY: as above.
unsafe impl<A: Sync> Sync for Memory<'_, A> {}

impl<'a, A: Copy> Memory<'a, A> {
    /// The `len` elements from `data` on.
    ///
    /// # Safety
    /// During `'a` they are live, aligned and initialised, and nobody writes them but through [`Memory`].
    pub unsafe fn new(data: *mut A, len: usize) -> Self {
        Self { data, len, lifetime: PhantomData }
    }

    /// The elements of a slice, to be read.
    pub(crate) fn of(slice: &'a [A]) -> Self {
        Self { data: slice.as_ptr().cast_mut(), len: slice.len(), lifetime: PhantomData }
    }

    /// The elements of a slice, to be read and written.
    pub(crate) fn of_mut(slice: &'a mut [A]) -> Self {
        Self { data: slice.as_mut_ptr(), len: slice.len(), lifetime: PhantomData }
    }

    /// The elements from number `at` on.
    #[inline(always)]
    fn from(self, at: usize) -> Self {
        assert!(at <= self.len);
        // SAFETY: at ≤ len, so the address is inside the array or one past its end.
        Self { data: unsafe { self.data.add(at) }, len: self.len - at, lifetime: PhantomData }
    }

    /// Whether there are elements `at..at + n`.
    #[inline(always)]
    fn has(self, at: usize, n: usize) -> bool {
        n <= self.len && at <= self.len - n
    }

    /// Elements `at..at + W`.
    #[inline(always)]
    fn row<const W: usize>(self, at: usize) -> [A; W] {
        assert!(self.has(at, W));
        // SAFETY: at ≤ len, by the assertion.
        let first = unsafe { self.data.add(at) };
        // SAFETY: W elements from `at` are inside the array, by the assertion; an array is aligned as its elements are.
        unsafe { first.cast::<[A; W]>().read() }
    }

    /// Elements `at..at + to.len()`, into `to`.
    #[inline(always)]
    fn copy_to(self, at: usize, to: &mut [A]) {
        assert!(self.has(at, to.len()));
        // SAFETY: at ≤ len, by the assertion.
        let first = unsafe { self.data.add(at) };
        // SAFETY: the elements are inside the array, by the assertion; `to` is borrowed mutably, so it is elsewhere.
        unsafe { first.copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
    }

    /// Asks the processor to have the elements from number `at` on in its cache soon; of no consequence if there are none.
    #[inline(always)]
    fn prefetch(self, at: usize) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a hint: it reads nothing and may be given any address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.data.wrapping_add(at).cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }

    /// Writes `at..at + W`.
    ///
    /// # Safety
    /// The elements may be written, and no other thread reads or writes them at the same time.
    #[inline(always)]
    unsafe fn put<const W: usize>(self, at: usize, row: [A; W]) {
        assert!(self.has(at, W));
        // SAFETY: at ≤ len, by the assertion.
        let first = unsafe { self.data.add(at) };
        // SAFETY: inside the array, by the assertion; aligned as its elements are; writable by the contract.
        unsafe { first.cast::<[A; W]>().write(row) };
    }

    /// Writes `at + done..at + W`.
    ///
    /// # Safety
    /// As [`Memory::put`].
    #[inline(always)]
    unsafe fn put_from<const W: usize>(self, done: usize, at: usize, row: [A; W]) {
        if done == 0 {
            // SAFETY: the same contract.
            return unsafe { self.put(at, row) };
        }
        for (l, x) in row.into_iter().enumerate().skip(done) {
            // SAFETY: the same contract.
            unsafe { self.put(at + l, [x]) };
        }
    }
}

/// Writes `f` of the inputs' and the coefficients' first `n` elements over the output's.
///
/// # Safety
/// The output may be written, is no input, and no other thread is at those elements.
#[inline(always)]
unsafe fn map<A: Arithmetic, const N: usize, const P: usize>(
    inputs: [Memory<'_, A>; N],
    coefficients: [Memory<'_, A>; P],
    output: Memory<'_, A>,
    n: usize,
    f: impl Fn([A; N], [A; P]) -> A,
) {
    let mut at = 0;
    while n - at >= LANES {
        // SAFETY: the same contract.
        unsafe { map_row::<A, N, P, LANES>(inputs, coefficients, output, at, &f) };
        at += LANES;
    }
    while n - at >= 8 {
        // SAFETY: the same contract.
        unsafe { map_row::<A, N, P, 8>(inputs, coefficients, output, at, &f) };
        at += 8;
    }
    while at < n {
        // SAFETY: the same contract.
        unsafe { map_row::<A, N, P, 1>(inputs, coefficients, output, at, &f) };
        at += 1;
    }
}

/// # Safety
/// As [`map`].
#[inline(always)]
unsafe fn map_row<A: Arithmetic, const N: usize, const P: usize, const W: usize>(
    inputs: [Memory<'_, A>; N],
    coefficients: [Memory<'_, A>; P],
    output: Memory<'_, A>,
    at: usize,
    f: &impl Fn([A; N], [A; P]) -> A,
) {
    let x: [[A; W]; N] = from_fn(|k| inputs[k].row(at));
    let c: [[A; W]; P] = from_fn(|k| coefficients[k].row(at));
    let mut y = [A::ZERO; W];
    for l in 0..W {
        y[l] = f(from_fn(|k| x[k][l]), from_fn(|k| c[k][l]));
    }
    // SAFETY: the same contract.
    unsafe { output.put(at, y) };
}

// ---------------------------------------------------------------------------------------------------------------------
// Sums over a sequence: one channel of (outer, channels, inner), or one row of (rows, units)

/// Where the elements of a sequence lie: `len` of them, in segments of `inner`, one every `stride`, from `first` on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequence {
    first: usize,
    inner: usize,
    stride: usize,
    len: usize,
}

impl Sequence {
    /// The segments: place of the first element, how many.
    #[inline(always)]
    fn segments(self) -> impl Iterator<Item = (usize, usize)> {
        let segments = self.len.checked_div(self.inner).unwrap_or(0);
        (0..segments).map(move |segment| (self.first + segment * self.stride, self.inner))
    }

    /// The block's runs of neighbours.
    #[inline(always)]
    fn runs(self, block: usize) -> Runs {
        let start = block * reduce::BLOCK;
        let left = reduce::BLOCK.min(self.len - start);
        let inner = self.inner.max(1);
        Runs { sequence: self, left, segment: start / inner, skip: start % inner }
    }

    fn blocks(&self) -> usize {
        self.len.div_ceil(reduce::BLOCK)
    }

    /// Whether the lanes are better fed from where the elements lie: few of the segments' rows are shorter than the lanes.
    #[inline(always)]
    fn long(&self) -> bool {
        self.inner.is_multiple_of(LANES) || self.inner == self.len || self.inner >= LONG
    }
}

/// Segments of fewer elements are gathered.
const LONG: usize = 4 * LANES;

/// Place of the first element, how many. An iterator, because a closure with the work in it might not be inlined, and
/// then would be compiled for the lowest instruction set.
struct Runs {
    sequence: Sequence,
    left: usize,
    segment: usize,
    skip: usize,
}

impl Iterator for Runs {
    type Item = (usize, usize);

    #[inline(always)]
    fn next(&mut self) -> Option<(usize, usize)> {
        let Sequence { first, inner, stride, .. } = self.sequence;
        let (n, at) = (self.left.min(inner - self.skip), first + self.segment * stride + self.skip);
        self.left -= n;
        self.segment += 1;
        self.skip = 0;
        (n > 0).then_some((at, n))
    }
}

/// Sums over sequences, of N arrays at a time. Short segments are gathered first, block by block.
struct Reader<'a, A, const N: usize> {
    inputs: [Memory<'a, A>; N],
    gathered: [Vec<A>; N],
    /// The block that `gathered` holds.
    held: Option<usize>,
}

impl<'a, A: Arithmetic, const N: usize> Reader<'a, A, N> {
    /// A reader for sequences that are laid out like this one.
    fn new(inputs: [Memory<'a, A>; N], like: &Sequence) -> Self {
        let size = if like.long() { 0 } else { like.len.min(reduce::BLOCK).next_multiple_of(LANES) };
        Self { inputs, gathered: from_fn(|_| vec![A::ZERO; size]), held: None }
    }

    /// The sums of a whole sequence.
    #[inline(always)]
    fn sums<const K: usize>(&mut self, sequence: &Sequence, terms: impl Terms<N, K>) -> [f64; K] {
        if sequence.len <= reduce::BLOCK {
            return self.block_sums(sequence, 0, terms);
        }
        let mut pairs = [Pairs::new(); K];
        for block in 0..sequence.blocks() {
            let sums = self.block_sums(sequence, block, terms);
            for k in 0..K {
                pairs[k].push(sums[k]);
            }
        }
        from_fn(|k| pairs[k].total())
    }

    /// The sums of one block.
    #[inline(always)]
    fn block_sums<const K: usize>(&mut self, sequence: &Sequence, block: usize, terms: impl Terms<N, K>) -> [f64; K] {
        let mut lanes = [[0.0; LANES]; K];
        if sequence.long() {
            let mut lane = 0;
            for (at, n) in sequence.runs(block) {
                self.prefetch(sequence, at + sequence.stride, n);
                add_run(&mut lanes, lane, self.inputs, at, n, terms);
                lane = (lane + n) % LANES;
            }
        } else {
            if self.held != Some(block) {
                let mut filled = 0;
                for (at, n) in sequence.runs(block) {
                    self.prefetch(sequence, at + 4 * sequence.stride, n);
                    for (input, gathered) in self.inputs.iter().zip(&mut self.gathered) {
                        input.copy_to(at, &mut gathered[filled..filled + n]);
                    }
                    filled += n;
                }
                self.held = Some(block);
            }
            let n = reduce::BLOCK.min(sequence.len - block * reduce::BLOCK);
            add_run(&mut lanes, 0, from_fn(|k| Memory::of(&self.gathered[k])), 0, n, terms);
        }
        lanes.map(reduce::fold)
    }

    /// The processor foresees what comes in a segment, but not where the next one starts.
    #[inline(always)]
    fn prefetch(&self, sequence: &Sequence, at: usize, n: usize) {
        if sequence.inner == sequence.len {
            return;
        }
        for input in self.inputs {
            for at in (at..at + n.min(PREFETCH)).step_by(64 / size_of::<A>()) {
                input.prefetch(at);
            }
        }
    }

    /// Forgets what it holds: the next sequence is another one.
    #[inline(always)]
    fn forget(&mut self) {
        self.held = None;
    }
}

/// How much of the next segment is asked for, in elements.
const PREFETCH: usize = 512;

/// Adds the terms of `n` neighbours, the first of which belongs to lane `lane`.
#[inline(always)]
fn add_run<A: Arithmetic, const N: usize, const K: usize>(
    lanes: &mut [[f64; LANES]; K],
    lane: usize,
    inputs: [Memory<'_, A>; N],
    at: usize,
    n: usize,
    terms: impl Terms<N, K>,
) {
    let head = if lane == 0 { 0 } else { n.min(LANES - lane) };
    let (start, end) = (at + head, at + n - (n - head) % LANES);
    if head > 0 {
        add_part(lanes, lane..lane + head, inputs, at, terms);
    }
    for at in (start..end).step_by(LANES) {
        let x: [[A; LANES]; N] = from_fn(|k| inputs[k].row(at));
        for l in 0..LANES {
            let t = terms.of(from_fn(|k| x[k][l].to_f64()));
            for k in 0..K {
                lanes[k][l] += t[k];
            }
        }
    }
    if end < at + n {
        add_part(lanes, 0..at + n - end, inputs, end, terms);
    }
}

/// Adds the terms of fewer neighbours than there are lanes.
#[inline(always)]
fn add_part<A: Arithmetic, const N: usize, const K: usize>(
    lanes: &mut [[f64; LANES]; K],
    present: Range<usize>,
    inputs: [Memory<'_, A>; N],
    at: usize,
    terms: impl Terms<N, K>,
) {
    let mut copies = [[A::ZERO; LANES]; N];
    if at < present.start || inputs.iter().any(|input| !input.has(at - present.start, LANES)) {
        for (copy, input) in copies.iter_mut().zip(inputs) {
            input.copy_to(at, &mut copy[present.clone()]);
        }
        let copies = from_fn(|k| Memory::of(&copies[k]));
        return add_masked(lanes, present, copies, 0, terms);
    }
    // The neighbours outside are read, too, and not used: faster than a copy of unknown length.
    add_masked(lanes, present.clone(), inputs, at - present.start, terms);
}

#[inline(always)]
fn add_masked<A: Arithmetic, const N: usize, const K: usize>(
    lanes: &mut [[f64; LANES]; K],
    present: Range<usize>,
    inputs: [Memory<'_, A>; N],
    at: usize,
    terms: impl Terms<N, K>,
) {
    let x: [[A; LANES]; N] = from_fn(|k| inputs[k].row(at));
    for l in 0..LANES {
        let t = terms.of(from_fn(|k| x[k][l].to_f64()));
        for k in 0..K {
            // Adding +0 changes no lane: one that starts at +0 is never −0.
            lanes[k][l] += if present.contains(&l) { t[k] } else { 0.0 };
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Sums over the rows of (rows, channels)

/// Lanes that a sweep keeps in registers.
const TILE: usize = 64;
/// How many rows one sweep goes down before it turns to the next columns: they stay in the cache.
const SWEEP: usize = 8 * ROW_LANES;

/// Adds the rows of one block into its lanes.
///
/// Lane l of channel c has number l·channels + c. Eight rows lie in memory just as their lanes are numbered, so they are
/// `8·channels` neighbours that are added to as many lanes, whatever the number of channels is.
struct AddRows<'a, A, T, const BY_ROW: bool, const N: usize, const K: usize> {
    inputs: [Memory<'a, A>; N],
    channels: usize,
    rows: Range<usize>,
    /// Which lanes.
    lanes: Range<usize>,
    /// `BY_ROW`: one for every row of the array; else one for every lane.
    terms: &'a [T],
    /// K × (8·channels) sums.
    sums: Memory<'a, f64>,
}

impl<A, T, const BY_ROW: bool, const N: usize, const K: usize> Kernel for AddRows<'_, A, T, BY_ROW, N, K>
where
    A: Arithmetic,
    T: Terms<N, K>,
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Range { mut start, end } = self.rows;
        while start < end {
            let n = SWEEP.min(end - start);
            let whole = n - n % ROW_LANES;
            if whole > 0 {
                self.sweep(start, whole / ROW_LANES, self.lanes.clone());
            }
            // The last rows of all may be fewer than the lanes.
            let present = self.lanes.start..self.lanes.end.min((n - whole) * self.channels);
            self.sweep(start + whole, 1, present);
            start += n;
        }
    }
}

impl<A, T, const BY_ROW: bool, const N: usize, const K: usize> AddRows<'_, A, T, BY_ROW, N, K>
where
    A: Arithmetic,
    T: Terms<N, K>,
{
    /// Adds `groups` times eight rows into these lanes.
    #[inline(always)]
    fn sweep(&self, row: usize, groups: usize, lanes: Range<usize>) {
        let mut lane = lanes.start;
        while lane < lanes.end {
            let first = lane;
            // A tile lies in one row where the terms depend on the row.
            let end = if BY_ROW { lanes.end.min((lane / self.channels + 1) * self.channels) } else { lanes.end };
            while end - lane >= TILE {
                self.tile::<TILE>(row, groups, lane, 0);
                lane += TILE;
            }
            if lane < end && end - first >= TILE {
                // The last tile reaches back over lanes that are done, and leaves these alone.
                self.tile::<TILE>(row, groups, end - TILE, TILE - (end - lane));
                lane = end;
            }
            while end - lane >= 8 {
                self.tile::<8>(row, groups, lane, 0);
                lane += 8;
            }
            while lane < end {
                self.tile::<1>(row, groups, lane, 0);
                lane += 1;
            }
        }
    }

    /// Adds into W lanes, the first `done` of which have these terms already.
    #[inline(always)]
    fn tile<const W: usize>(&self, row: usize, groups: usize, lane: usize, done: usize) {
        let width = ROW_LANES * self.channels;
        let mut sums: [[f64; W]; K] = from_fn(|k| self.sums.row(k * width + lane));
        let of_lanes: [T; W] = if BY_ROW { [self.terms[0]; W] } else { Memory::of(self.terms).row(lane) };
        for group in 0..groups {
            let row = row + group * ROW_LANES;
            let of_row = if BY_ROW { self.terms[row + lane / self.channels] } else { of_lanes[0] };
            let x: [[A; W]; N] = from_fn(|k| self.inputs[k].row(row * self.channels + lane));
            for l in 0..W {
                let terms = if BY_ROW { of_row } else { of_lanes[l] };
                let t = terms.of(from_fn(|k| x[k][l].to_f64()));
                for k in 0..K {
                    sums[k][l] += t[k];
                }
            }
        }
        for (k, sums) in sums.into_iter().enumerate() {
            // SAFETY: sums of this task alone.
            unsafe { self.sums.put_from(done, k * width + lane, sums) };
        }
    }
}

/// K sums over the rows of (rows, channels), for every channel.
struct RowSums<'a, A, T, const BY_ROW: bool, const N: usize, const K: usize> {
    inputs: [Memory<'a, A>; N],
    channels: usize,
    /// `BY_ROW`: one for every row; else one for every channel, eight times over.
    terms: &'a [T],
    /// Blocks × K × (8·channels).
    lanes: Vec<f64>,
}

impl<'a, A, T, const BY_ROW: bool, const N: usize, const K: usize> RowSums<'a, A, T, BY_ROW, N, K>
where
    A: Arithmetic,
    T: Terms<N, K>,
{
    fn new(inputs: [Memory<'a, A>; N], rows: usize, channels: usize, terms: &'a [T]) -> Self {
        let lanes = vec![0.0; rows.div_ceil(reduce::BLOCK) * K * ROW_LANES * channels];
        Self { inputs, channels, terms, lanes }
    }

    /// Adds these rows, which are the next ones and a multiple of eight, or the last.
    fn add(&mut self, rows: Range<usize>) {
        let Self { inputs, channels, terms, .. } = *self;
        let width = ROW_LANES * channels;
        if rows.is_empty() || width == 0 {
            return;
        }
        let (first, end) = (rows.start / reduce::BLOCK, rows.end.div_ceil(reduce::BLOCK));
        // Enough tasks for all threads; the cut does not change any sum.
        let parts = (2 * pool::num_threads()).div_ceil(end - first).min(width.div_ceil(LANES));
        let part = width.div_ceil(parts).next_multiple_of(LANES);
        let parts = width.div_ceil(part);
        let lanes = Memory::of_mut(&mut self.lanes);
        share((end - first) * parts, rows.len() * channels, &|task| {
            let (block, lane) = (first + task / parts, task % parts * part);
            let start = block * reduce::BLOCK;
            simd::dispatch(AddRows::<A, T, BY_ROW, N, K> {
                inputs,
                channels,
                rows: rows.start.max(start)..rows.end.min(start + reduce::BLOCK),
                lanes: lane..width.min(lane + part),
                terms,
                sums: lanes.from(block * K * width),
            });
        });
    }

    /// The sums of all rows.
    fn totals(mut self) -> [Vec<f64>; K] {
        let mut totals: [Vec<f64>; K] = from_fn(|_| vec![0.0; self.channels]);
        if !self.lanes.is_empty() {
            let (lanes, channels) = (&mut self.lanes[..], self.channels);
            simd::dispatch(FoldRows { lanes, channels, totals: totals.each_mut().map(|totals| &mut totals[..]) });
        }
        totals
    }
}

/// Folds the lanes of all blocks, and combines the blocks.
struct FoldRows<'a, const K: usize> {
    lanes: &'a mut [f64],
    channels: usize,
    totals: [&'a mut [f64]; K],
}

impl<const K: usize> Kernel for FoldRows<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (channels, width) = (self.channels, ROW_LANES * self.channels);
        let blocks = self.lanes.len() / (K * width);
        for lanes in self.lanes.chunks_exact_mut(width) {
            let mut half = width / 2;
            while half >= channels {
                let (low, high) = lanes.split_at_mut(half);
                for (low, high) in low.iter_mut().zip(&*high) {
                    *low += high;
                }
                half /= 2;
            }
        }
        for (k, totals) in self.totals.into_iter().enumerate() {
            let sums = &self.lanes[k * width..];
            if blocks == 1 {
                totals.copy_from_slice(&sums[..channels]);
                continue;
            }
            for (c, total) in totals.iter_mut().enumerate() {
                let mut pairs = Pairs::new();
                (0..blocks).for_each(|block| pairs.push(sums[block * K * width + c]));
                *total = pairs.total();
            }
        }
    }
}

/// Calls `task(i)` for every i < `tasks`, on several threads if `elements` in all are worth it.
fn share(tasks: usize, elements: usize, task: &(dyn Fn(usize) + Sync)) {
    if elements < PARALLEL_FROM { pool::run_alone(tasks, task) } else { pool::run(tasks, task) }
}

/// Cuts `0..n` into neighbouring parts of about `size`, and calls `task` with each.
fn share_range(n: usize, size: usize, elements: usize, task: &(dyn Fn(Range<usize>) + Sync)) {
    let size = size.max(1);
    share(n.div_ceil(size), elements, &|i| task(i * size..n.min((i + 1) * size)));
}

#[cfg(test)]
mod tests {
    use super::batch::{Affine, Layout};
    use super::*;

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
                let got = unsafe { batch::forward_training(layout, x, memory, affine, eps) };
                same(&got.mean, &statistics.mean, &what);
                same(&got.var, &statistics.var, &what);
                same(&out, &y, &what);
                out.fill(A::constant(7.0));
                let memory = Memory::of_mut(&mut out);
                // SAFETY: as above.
                unsafe { batch::forward(layout, x, memory, affine, &got.mean, &inv) };
                same(&out, &y, &what);
                let memory = Memory::of_mut(&mut out);
                // SAFETY: as above.
                let got = unsafe { batch::backward(layout, dy, x, memory, &weight, &statistics.mean, &inv, true) };
                same(&out, &dx, &what);
                same(&got.bias, &sums[0], &what);
                same(&got.weight, &sums[1], &what);
                let memory = Memory::of_mut(&mut out);
                // SAFETY: as above.
                let got = unsafe { batch::backward(layout, dy, x, memory, &weight, &statistics.mean, &inv, false) };
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
                batch::forward_training(layout, Memory::of_mut(&mut x), Memory::of_mut(&mut y), affine, 1e-5)
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
            unsafe { batch::forward(layout, x, y, affine, &[0.0; 2], &[1.0; 2]) };
            // SAFETY: as above.
            let got = unsafe { batch::backward(layout, x, x, y, &[1.0; 2], &[0.0; 2], &[1.0; 2], true) };
            assert_eq!(got.bias, [0.0; 2]);
        }
        // SAFETY: as above.
        let got = unsafe { layer::forward::<f32>(0, Memory::of(&[]), Memory::of_mut(&mut []), &[1.0], &[0.0], 1e-5) };
        assert!(got.mean.is_empty());
        assert_eq!(layer::sum(&[]), 0.0);
    }
}
