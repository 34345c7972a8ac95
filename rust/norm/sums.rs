//! Sums over a channel, over a sample, over the rows: the trees of [`crate::reduce`], fed from wherever the elements lie.

use super::memory::{Memory, Passing};
use super::{Terms, mirrored};
use crate::element::Arithmetic;
use crate::pool;
use crate::reduce::{self, LANES, Pairs, ROW_LANES};
use crate::simd::{self, Kernel};
use std::array::from_fn;
use std::cell::Cell;
use std::ops::Range;

// ---------------------------------------------------------------------------------------------------------------------
// Sums over a sequence: one channel of (outer, channels, inner), or one row of (rows, units)

/// Where the elements of a sequence lie: `len` of them, in segments of `inner`, one every `stride`, from `first` on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sequence {
    pub(super) first: usize,
    pub(super) inner: usize,
    pub(super) stride: usize,
    pub(super) len: usize,
}

impl Sequence {
    /// The segments: place of the first element, how many.
    #[inline(always)]
    pub(super) fn segments(self) -> impl Iterator<Item = (usize, usize)> {
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

    pub(super) fn blocks(&self) -> usize {
        self.len.div_ceil(reduce::BLOCK)
    }

    /// How far ahead the same place of the next sequence is, if that fits the cache beside this one; else 0.
    #[inline(always)]
    pub(super) fn next<A>(&self, arrays: usize) -> usize {
        if self.len * arrays * size_of::<A>() <= AHEAD { self.inner } else { 0 }
    }

    /// Whether the lanes are better fed from where the elements lie: few of the segments' rows are shorter than the lanes.
    #[inline(always)]
    pub(super) fn long(&self) -> bool {
        self.inner.is_multiple_of(LANES) || self.inner == self.len || self.inner >= LONG
    }
}

/// Bytes of the next sequence that are asked for while this one is worked on.
const AHEAD: usize = 1 << 19;

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
pub(super) struct Reader<'a, A, const N: usize> {
    inputs: [Memory<'a, A>; N],
    gathered: [Vec<A>; N],
    /// The block that `gathered` holds.
    held: Option<usize>,
}

impl<'a, A: Arithmetic, const N: usize> Reader<'a, A, N> {
    /// A reader for sequences that are laid out like this one.
    pub(super) fn new(inputs: [Memory<'a, A>; N], like: &Sequence) -> Self {
        let size = if like.long() { 0 } else { like.len.min(reduce::BLOCK).next_multiple_of(LANES) };
        Self { inputs, gathered: from_fn(|_| vec![A::ZERO; size]), held: None }
    }

    /// The sums of a whole sequence; `ahead`: so many elements ahead, what comes next is asked for, 0: not.
    #[inline(always)]
    pub(super) fn sums<const K: usize>(
        &mut self,
        sequence: &Sequence,
        terms: impl Terms<A, N, K>,
        ahead: usize,
    ) -> [f64; K] {
        if sequence.len <= reduce::BLOCK {
            return self.block_sums(sequence, 0, terms, ahead);
        }
        let mut pairs = [Pairs::new(); K];
        for block in 0..sequence.blocks() {
            let sums = self.block_sums(sequence, block, terms, ahead);
            for k in 0..K {
                pairs[k].push(sums[k]);
            }
        }
        from_fn(|k| pairs[k].total())
    }

    /// The sums of one block.
    #[inline(always)]
    pub(super) fn block_sums<const K: usize>(
        &mut self,
        sequence: &Sequence,
        block: usize,
        terms: impl Terms<A, N, K>,
        ahead: usize,
    ) -> [f64; K] {
        let mut lanes = [[0.0; LANES]; K];
        if sequence.long() {
            let mut lane = 0;
            for (at, n) in sequence.runs(block) {
                add_run(&mut lanes, lane, self.inputs, at, n, terms, ahead);
                lane = (lane + n) % LANES;
            }
        } else {
            if self.held != Some(block) {
                let mut filled = 0;
                for (at, n) in sequence.runs(block) {
                    for (input, gathered) in self.inputs.iter().zip(&mut self.gathered) {
                        for next in (at..at + n).step_by(LANES) {
                            input.prefetch::<LANES>(next + sequence.inner);
                        }
                        input.copy_to(at, &mut gathered[filled..filled + n]);
                    }
                    filled += n;
                }
                self.held = Some(block);
            }
            let n = reduce::BLOCK.min(sequence.len - block * reduce::BLOCK);
            add_run(&mut lanes, 0, from_fn(|k| Memory::of(&self.gathered[k])), 0, n, terms, 0);
        }
        lanes.map(reduce::fold)
    }

    /// Forgets what it holds: the next sequence is another one.
    #[inline(always)]
    pub(super) fn forget(&mut self) {
        self.held = None;
    }
}

/// Adds the terms of `n` neighbours, the first of which belongs to lane `lane`.
#[inline(always)]
fn add_run<A: Arithmetic, const N: usize, const K: usize>(
    lanes: &mut [[f64; LANES]; K],
    lane: usize,
    inputs: [Memory<'_, A>; N],
    at: usize,
    n: usize,
    terms: impl Terms<A, N, K>,
    ahead: usize,
) {
    let head = if lane == 0 { 0 } else { n.min(LANES - lane) };
    let (start, end) = (at + head, at + n - (n - head) % LANES);
    if head > 0 {
        add_part(lanes, lane..lane + head, inputs, at, terms);
    }
    assert!(inputs.iter().all(|input| input.has(start, end - start)));
    // A copy, which stays in registers: nobody could see it if a row panicked.
    let mut sums = *lanes;
    for at in (start..end).step_by(LANES) {
        if ahead > 0 {
            for input in inputs {
                input.prefetch::<LANES>(at + ahead);
            }
        }
        let x: [[A; LANES]; N] = from_fn(|k| inputs[k].row(at));
        for l in 0..LANES {
            let t = terms.of(from_fn(|k| x[k][l]));
            for k in 0..K {
                sums[k][l] += t[k];
            }
        }
    }
    *lanes = sums;
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
    terms: impl Terms<A, N, K>,
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
    terms: impl Terms<A, N, K>,
) {
    let x: [[A; LANES]; N] = from_fn(|k| inputs[k].row(at));
    for l in 0..LANES {
        let t = terms.of(from_fn(|k| x[k][l]));
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
/// About how many elements one sweep goes over, all rows of one lane, then all of the next: they fit the second cache,
/// and the next sweep's, too, which are asked for meanwhile.
const SWEEP: usize = 1 << 14;
/// Rows of a sweep where they are long.
const LEAST_SWEEP: usize = 8 * ROW_LANES;

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
    /// Whether the lanes are still to be set to 0: these are the block's first rows.
    fresh: bool,
    /// Whether there is more than the caches hold.
    beyond: bool,
}

impl<A, T, const BY_ROW: bool, const N: usize, const K: usize> Kernel for AddRows<'_, A, T, BY_ROW, N, K>
where
    A: Arithmetic,
    T: Terms<A, N, K>,
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Range { mut start, end } = self.rows;
        let rows = (SWEEP / self.channels).next_multiple_of(ROW_LANES).max(LEAST_SWEEP);
        let (ahead, mut fresh) = (if self.beyond { rows * self.channels } else { 0 }, self.fresh);
        while start < end {
            let n = rows.min(end - start);
            let whole = n - n % ROW_LANES;
            if whole > 0 || fresh {
                self.sweep(start, whole / ROW_LANES, self.lanes.clone(), fresh, ahead);
            }
            // The last rows of all may be fewer than the lanes.
            let present = self.lanes.start..self.lanes.end.min((n - whole) * self.channels);
            self.sweep(start + whole, 1, present, false, 0);
            (start, fresh) = (start + n, false);
        }
    }
}

impl<A, T, const BY_ROW: bool, const N: usize, const K: usize> AddRows<'_, A, T, BY_ROW, N, K>
where
    A: Arithmetic,
    T: Terms<A, N, K>,
{
    /// Adds `groups` times eight rows into these lanes, `fresh` ones from 0 on, and asks for what is `ahead`.
    #[inline(always)]
    fn sweep(&self, row: usize, groups: usize, lanes: Range<usize>, fresh: bool, ahead: usize) {
        let mut lane = lanes.start;
        while lane < lanes.end {
            let first = lane;
            // A tile lies in one row where the terms depend on the row.
            let end = if BY_ROW { lanes.end.min((lane / self.channels + 1) * self.channels) } else { lanes.end };
            while end - lane >= TILE {
                self.tile::<TILE>(row, groups, lane, 0, fresh, ahead);
                lane += TILE;
            }
            if lane < end && end - first >= TILE {
                // The last tile reaches back over lanes that are done, and leaves these alone.
                self.tile::<TILE>(row, groups, end - TILE, TILE - (end - lane), fresh, ahead);
                lane = end;
            }
            while end - lane >= 8 {
                self.tile::<8>(row, groups, lane, 0, fresh, ahead);
                lane += 8;
            }
            while lane < end {
                self.tile::<1>(row, groups, lane, 0, fresh, 0);
                lane += 1;
            }
        }
    }

    /// Adds into W lanes, the first `done` of which have these terms already.
    #[inline(always)]
    fn tile<const W: usize>(&self, row: usize, groups: usize, lane: usize, done: usize, fresh: bool, ahead: usize) {
        let width = ROW_LANES * self.channels;
        let mut sums = [[0.0; W]; K];
        if !fresh {
            sums = from_fn(|k| self.sums.row(k * width + lane));
        }
        let of_lanes: [T; W] = if BY_ROW { [self.terms[0]; W] } else { Memory::of(self.terms).row(lane) };
        for group in 0..groups {
            let row = row + group * ROW_LANES;
            let of_row = if BY_ROW { self.terms[row + lane / self.channels] } else { of_lanes[0] };
            if ahead > 0 {
                for input in self.inputs {
                    input.prefetch::<W>(row * self.channels + lane + ahead);
                }
            }
            let x: [[A; W]; N] = from_fn(|k| self.inputs[k].row(row * self.channels + lane));
            for l in 0..W {
                let terms = if BY_ROW { of_row } else { of_lanes[l] };
                let t = terms.of(from_fn(|k| x[k][l]));
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
pub(super) struct RowSums<'a, A, T, const BY_ROW: bool, const N: usize, const K: usize> {
    inputs: [Memory<'a, A>; N],
    channels: usize,
    /// `BY_ROW`: one for every row; else one for every channel, eight times over.
    terms: &'a [T],
    /// Blocks × K × (8·channels), and what else there was room for.
    lanes: Vec<f64>,
    used: usize,
    beyond: bool,
}

thread_local! {
    /// Of the last call: new memory would have to be cleared, by the system or here.
    static ROOM: Cell<Vec<f64>> = const { Cell::new(Vec::new()) };
}
/// No more numbers than this are kept.
const KEPT: usize = 1 << 18;

impl<'a, A, T, const BY_ROW: bool, const N: usize, const K: usize> RowSums<'a, A, T, BY_ROW, N, K>
where
    A: Arithmetic,
    T: Terms<A, N, K>,
{
    pub(super) fn new(inputs: [Memory<'a, A>; N], rows: usize, channels: usize, terms: &'a [T]) -> Self {
        let used = rows.div_ceil(reduce::BLOCK) * K * ROW_LANES * channels;
        let mut lanes = ROOM.take();
        if lanes.len() < used {
            lanes.resize(used, 0.0);
        }
        let beyond = !BY_ROW && Passing::over::<A>(rows * channels).streaming;
        Self { inputs, channels, terms, lanes, used, beyond }
    }

    /// Adds these rows, which are the next ones and a multiple of eight, or the last; `reversed`: the last block first.
    pub(super) fn add(&mut self, rows: Range<usize>, reversed: bool) {
        let Self { inputs, channels, terms, beyond, .. } = *self;
        let width = ROW_LANES * channels;
        if rows.is_empty() || width == 0 {
            return;
        }
        let (first, end) = (rows.start / reduce::BLOCK, rows.end.div_ceil(reduce::BLOCK));
        // Enough tasks for all threads; the cut does not change any sum.
        let parts = (2 * pool::num_threads()).div_ceil(end - first).min(width.div_ceil(LANES));
        let part = width.div_ceil(parts).next_multiple_of(LANES);
        let parts = width.div_ceil(part);
        let lanes = Memory::of_mut(&mut self.lanes[..self.used]);
        let tasks = (end - first) * parts;
        pool::share(tasks, rows.len() * channels, &|task| {
            let task = if reversed && beyond { mirrored(task, tasks) } else { task };
            let (block, lane) = (first + task / parts, task % parts * part);
            let start = block * reduce::BLOCK;
            simd::dispatch(AddRows::<A, T, BY_ROW, N, K> {
                inputs,
                channels,
                rows: rows.start.max(start)..rows.end.min(start + reduce::BLOCK),
                lanes: lane..width.min(lane + part),
                terms,
                sums: lanes.from(block * K * width),
                fresh: rows.start <= start,
                beyond,
            });
        });
    }

    /// The sums of all rows.
    pub(super) fn totals(mut self) -> [Vec<f64>; K] {
        let mut totals: [Vec<f64>; K] = from_fn(|_| vec![0.0; self.channels]);
        if self.used > 0 {
            let (lanes, channels) = (&mut self.lanes[..self.used], self.channels);
            simd::dispatch(FoldRows { lanes, channels, totals: totals.each_mut().map(|totals| &mut totals[..]) });
        }
        if self.lanes.len() <= KEPT {
            ROOM.set(self.lanes);
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
