//! Batch norm: each channel by its mean and variance over the batch and the pixels; the formulas are in [`super`].
//!
//! Ioffe and Szegedy, "Batch Normalization", 2015, Algorithm 1.

use super::memory::{Lines, Passing, map};
use super::sums::{Reader, RowSums, Sequence};
use super::{
    CHUNK, Differentiate, DifferentiateRectified, Formula, Memory, Normalize, Products, RectifiedProducts, Rectify,
    Scale, ScaleRectified, Square, Terms, Value, inv_std, mirrored, share_range,
};
use crate::element::Arithmetic;
use crate::pool;
use crate::reduce::{self, Pairs, ROW_LANES};
use crate::simd::{self, DefaultEnvironment, Kernel};
use std::array::from_fn;
use std::marker::PhantomData;
use std::ops::Range;

/// Where the channel axis is. It decides which tree the sums follow, so it is declared, never guessed from strides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// (outer, channels, inner): a channel's sequence is outer-major.
    Inside {
        /// Product of the lengths of the axes before the channels'.
        outer: usize,
        /// Channels.
        channels: usize,
        /// Product of the lengths of the axes behind.
        inner: usize,
    },
    /// (rows, channels).
    Last {
        /// Product of the lengths of the other axes.
        rows: usize,
        /// Channels.
        channels: usize,
    },
}

impl Layout {
    /// The layout of a C-order array of this shape whose axis number `axis` counts the channels.
    ///
    /// # Panics
    /// If there is no such axis.
    pub fn new(shape: &[usize], axis: usize) -> Self {
        let outer = shape[..axis].iter().product();
        if axis + 1 == shape.len() {
            return Self::Last { rows: outer, channels: shape[axis] };
        }
        Self::Inside { outer, channels: shape[axis], inner: shape[axis + 1..].iter().product() }
    }

    /// How many channels.
    pub fn channels(self) -> usize {
        match self {
            Self::Inside { channels, .. } | Self::Last { channels, .. } => channels,
        }
    }

    /// Elements per channel.
    pub fn count(self) -> usize {
        match self {
            Self::Inside { outer, inner, .. } => outer * inner,
            Self::Last { rows, .. } => rows,
        }
    }

    /// Elements in all.
    pub fn elements(self) -> usize {
        self.channels() * self.count()
    }

    fn sequence(self, channel: usize) -> Sequence {
        match self {
            Self::Inside { channels, inner, .. } => {
                Sequence { first: channel * inner, inner, stride: channels * inner, len: self.count() }
            }
            Self::Last { rows, channels } => Sequence { first: channel, inner: 1, stride: channels, len: rows },
        }
    }
}

/// μ, the biased σ² and 1/√(σ² + ε) of each channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// μ
    pub mean: Vec<f64>,
    /// σ²
    pub var: Vec<f64>,
    /// 1/√(σ² + ε)
    pub inv_std: Vec<f64>,
}

/// α and β of each channel.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// α
    pub weight: &'a [f64],
    /// β
    pub bias: &'a [f64],
}

/// y and the statistics of x; `relu`: y cut off at 0.
///
/// # Safety
/// x and y do not overlap, and y may be written.
///
/// # Panics
/// If anything has too few elements for the layout.
pub unsafe fn forward_training<A: Arithmetic>(
    layout: Layout,
    x: Memory<'_, A>,
    y: Memory<'_, A>,
    affine: Affine<'_>,
    eps: f64,
    relu: bool,
) -> Statistics {
    let _default = DefaultEnvironment::enter();
    if relu {
        // SAFETY: the same contract.
        unsafe { forward_training_by::<A, Rectify<A>>(layout, x, y, affine, eps) }
    } else {
        // SAFETY: the same contract.
        unsafe { forward_training_by::<A, Normalize<A>>(layout, x, y, affine, eps) }
    }
}

/// # Safety
/// As [`forward_training`].
unsafe fn forward_training_by<A: Arithmetic, F: Formula<A, 1, 3>>(
    layout: Layout,
    x: Memory<'_, A>,
    y: Memory<'_, A>,
    affine: Affine<'_>,
    eps: f64,
) -> Statistics {
    let (channels, count) = (layout.channels(), layout.count() as f64);
    let Some(part) = channels_per_task(layout) else {
        let [sum] = sums(layout, [x], &vec![Value; channels], false);
        let [mean] = each([&sum], |[sum]| [sum / count]);
        let [sum] = sums(layout, [x], &mean.iter().map(|mean| Square { mean: *mean }).collect::<Vec<_>>(), true);
        let [var] = each([&sum], |[sum]| [sum / count]);
        let inv_std = inverted(&var, eps);
        // SAFETY: the same contract.
        unsafe { apply(layout, [x], y, [&mean, &inv_std, affine.weight, affine.bias], forward_formula::<A, F>, false) };
        return Statistics { mean, var, inv_std };
    };
    let zeros = || vec![0.0; channels];
    let mut statistics = Statistics { mean: zeros(), var: zeros(), inv_std: zeros() };
    let Statistics { mean, var, inv_std } = &mut statistics;
    let kept = [mean, var, inv_std].map(|kept| Memory::of_mut(kept));
    share_range(channels, part, layout.elements(), &|channels| {
        let formula = PhantomData::<F>;
        simd::dispatch(ForwardChannels { layout, x, y, channels, affine, eps, kept, formula });
    });
    statistics
}

#[inline(always)]
fn forward_formula<A: Arithmetic, F: Formula<A, 1, 3>>([mean, inv_std, weight, bias]: [f64; 4]) -> F {
    F::from(Normalize::<A>::new(mean, inv_std, weight, bias).into())
}

/// The statistics and y of some channels, all passes over one of them while it is in the cache.
struct ForwardChannels<'a, A, F> {
    layout: Layout,
    x: Memory<'a, A>,
    y: Memory<'a, A>,
    channels: Range<usize>,
    affine: Affine<'a>,
    eps: f64,
    /// μ, σ², 1/√(σ² + ε)
    kept: [Memory<'a, f64>; 3],
    formula: PhantomData<F>,
}

impl<A: Arithmetic, F: Formula<A, 1, 3>> Kernel for ForwardChannels<'_, A, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let count = self.layout.count() as f64;
        let mut reader = Reader::new([self.x], &self.layout.sequence(0));
        let passing = Passing::over::<A>(self.layout.elements());
        let next = passing.beyond(self.layout.sequence(0).next::<A>(1));
        for c in self.channels {
            let sequence = self.layout.sequence(c);
            reader.forget();
            let [sum] = reader.sums(&sequence, Value, 0);
            let mean = sum / count;
            let [sum] = reader.sums(&sequence, Square { mean }, next);
            let var = sum / count;
            let inv_std = inv_std(var, self.eps);
            let formula = forward_formula::<A, F>([mean, inv_std, self.affine.weight[c], self.affine.bias[c]]);
            for (at, n) in sequence.segments() {
                // SAFETY: y may be written and is not x; this channel is this task's alone.
                unsafe { map([self.x.from(at)], [], self.y.from(at), n, passing, |x, []| formula.at(x)) };
            }
            for (kept, number) in self.kept.iter().zip([mean, var, inv_std]) {
                // SAFETY: this channel is this task's alone.
                unsafe { kept.put(c, [number]) };
            }
        }
        passing.finish();
    }
}

/// y by given statistics.
///
/// # Safety
/// As [`forward_training`].
///
/// # Panics
/// If anything has too few elements for the layout.
pub unsafe fn forward<A: Arithmetic>(
    layout: Layout,
    x: Memory<'_, A>,
    y: Memory<'_, A>,
    affine: Affine<'_>,
    mean: &[f64],
    inv_std: &[f64],
    relu: bool,
) {
    let _default = DefaultEnvironment::enter();
    let numbers = [mean, inv_std, affine.weight, affine.bias];
    if relu {
        // SAFETY: the same contract.
        unsafe { apply(layout, [x], y, numbers, forward_formula::<A, Rectify<A>>, false) };
    } else {
        // SAFETY: the same contract.
        unsafe { apply(layout, [x], y, numbers, forward_formula::<A, Normalize<A>>, false) };
    }
}

/// dα and dβ.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gradients {
    /// dα
    pub weight: Vec<f64>,
    /// dβ
    pub bias: Vec<f64>,
}

/// dx, dα and dβ; `training`: the statistics are those of x and change with it; `relu`: as it was forward.
///
/// # Safety
/// dx overlaps neither dy nor x, and may be written.
///
/// # Panics
/// If anything has too few elements for the layout.
pub unsafe fn backward<A: Arithmetic>(
    layout: Layout,
    gradient: Memory<'_, A>,
    x: Memory<'_, A>,
    dx: Memory<'_, A>,
    affine: Affine<'_>,
    mean: &[f64],
    inv_std: &[f64],
    training: bool,
    relu: bool,
) -> Gradients {
    let _default = DefaultEnvironment::enter();
    let (count, inputs) = (layout.count(), [gradient, x]);
    let known = [mean, inv_std, affine.weight, affine.bias];
    let plain = |[mean, ..]: [f64; 4]| Products { mean };
    let rectified = |[mean, inv_std, weight, bias]: [f64; 4]| RectifiedProducts::<A> {
        mean,
        normalize: Normalize::new(mean, inv_std, weight, bias),
    };
    let differentiate = |[mean, inv_std, weight, _, sum, product]: [f64; 6]| {
        Differentiate::<A>::new(mean, inv_std, weight, [sum, product], count)
    };
    let scale = |[_, inv_std, weight, ..]: [f64; 6]| Scale::from([A::constant(weight * inv_std)]);
    let [bias, product] = match (training, relu) {
        // SAFETY: the same contract.
        (true, false) => unsafe { backward_by(layout, inputs, dx, known, plain, differentiate) },
        // SAFETY: the same contract.
        (false, false) => unsafe { backward_by(layout, inputs, dx, known, plain, scale) },
        // SAFETY: the same contract.
        (true, true) => unsafe {
            backward_by(layout, inputs, dx, known, rectified, |numbers: [f64; 6]| {
                let [mean, inv_std, weight, bias, ..] = numbers;
                let [mean, factor, shift] = Normalize::<A>::new(mean, inv_std, weight, bias).into();
                let Differentiate { centre, slope, scale, .. } = differentiate(numbers);
                DifferentiateRectified { mean, centre, slope, scale, factor, shift }
            })
        },
        // SAFETY: the same contract.
        (false, true) => unsafe {
            backward_by(layout, inputs, dx, known, rectified, |numbers: [f64; 6]| {
                let [mean, inv_std, weight, bias, ..] = numbers;
                let [mean, factor, shift] = Normalize::<A>::new(mean, inv_std, weight, bias).into();
                ScaleRectified { scale: scale(numbers).scale, mean, factor, shift }
            })
        },
    };
    let [weight] = each([&product, inv_std], |[product, inv_std]| [inv_std * product]);
    Gradients { weight, bias }
}

/// dx by a formula of μ, 1/√(σ² + ε), α, β and the two sums of terms of these four; returns the sums.
///
/// # Safety
/// As [`backward`].
unsafe fn backward_by<A: Arithmetic, T: Terms<A, 2, 2>, F: Formula<A, 2, P>, const P: usize>(
    layout: Layout,
    inputs: [Memory<'_, A>; 2],
    dx: Memory<'_, A>,
    known: [&[f64]; 4],
    terms: impl Fn([f64; 4]) -> T + Copy + Sync,
    formula: impl Fn([f64; 6]) -> F + Copy + Sync,
) -> [Vec<f64>; 2] {
    let channels = layout.channels();
    let Some(part) = channels_per_task(layout) else {
        let terms: Vec<T> = (0..channels).map(|c| terms(known.map(|known| known[c]))).collect();
        let [first, second] = sums(layout, inputs, &terms, false);
        let [mean, inv_std, weight, bias] = known;
        // SAFETY: the same contract.
        unsafe { apply(layout, inputs, dx, [mean, inv_std, weight, bias, &first, &second], formula, true) };
        return [first, second];
    };
    let mut totals = [vec![0.0; channels], vec![0.0; channels]];
    let slots = totals.each_mut().map(|totals| Memory::of_mut(totals));
    share_range(channels, part, layout.elements(), &|channels| {
        let types = PhantomData;
        simd::dispatch(BackwardChannels { layout, inputs, dx, channels, known, totals: slots, terms, formula, types });
    });
    totals
}

/// The sums and dx of some channels, all passes over one of them while it is in the cache.
struct BackwardChannels<'a, A, T, F, G, H, const P: usize> {
    layout: Layout,
    inputs: [Memory<'a, A>; 2],
    dx: Memory<'a, A>,
    channels: Range<usize>,
    /// μ, 1/√(σ² + ε), α, β
    known: [&'a [f64]; 4],
    totals: [Memory<'a, f64>; 2],
    terms: G,
    formula: H,
    types: PhantomData<([A; P], T, F)>,
}

impl<A, T, F, G, H, const P: usize> Kernel for BackwardChannels<'_, A, T, F, G, H, P>
where
    A: Arithmetic,
    T: Terms<A, 2, 2>,
    F: Formula<A, 2, P>,
    G: Fn([f64; 4]) -> T,
    H: Fn([f64; 6]) -> F,
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let [dy, x] = self.inputs;
        let mut reader = Reader::new(self.inputs, &self.layout.sequence(0));
        let passing = Passing::over::<A>(self.layout.elements());
        let passing = Passing { ahead: passing.beyond(self.layout.sequence(0).next::<A>(2)), ..passing };
        for c in self.channels {
            let sequence = self.layout.sequence(c);
            reader.forget();
            let known @ [mean, inv_std, weight, bias] = self.known.map(|known| known[c]);
            let sums = reader.sums(&sequence, (self.terms)(known), 0);
            let formula = (self.formula)([mean, inv_std, weight, bias, sums[0], sums[1]]);
            for (at, n) in sequence.segments() {
                // SAFETY: dx may be written and is neither input; this channel is this task's alone.
                unsafe { map([dy.from(at), x.from(at)], [], self.dx.from(at), n, passing, |x, []| formula.at(x)) };
            }
            for (totals, sum) in self.totals.iter().zip(sums) {
                // SAFETY: this channel is this task's alone.
                unsafe { totals.put(c, [sum]) };
            }
        }
        passing.finish();
    }
}

/// Where one thread does all passes over a channel: how many channels a task has. None: the threads share each channel.
fn channels_per_task(layout: Layout) -> Option<usize> {
    let Layout::Inside { channels, .. } = layout else { return None };
    let threads = pool::num_threads();
    let few_and_long = threads > 1 && channels < 2 * threads && layout.count() > 2 * reduce::BLOCK;
    (!few_and_long).then(|| channels.div_ceil(8 * threads))
}

/// K sums over each channel, one element of `terms` a channel; `reversed`: what lies last, first.
fn sums<A: Arithmetic, T: Terms<A, N, K>, const N: usize, const K: usize>(
    layout: Layout,
    inputs: [Memory<'_, A>; N],
    terms: &[T],
    reversed: bool,
) -> [Vec<f64>; K] {
    let channels = layout.channels();
    if let Layout::Last { rows, .. } = layout {
        let of_lanes = terms[..channels].repeat(ROW_LANES);
        let mut sums = RowSums::<A, T, false, N, K>::new(inputs, rows, channels, &of_lanes);
        sums.add(0..rows, reversed);
        return sums.totals();
    }
    let blocks = layout.sequence(0).blocks();
    let mut sums = vec![[0.0; K]; channels * blocks];
    let slots = Memory::of_mut(&mut sums);
    share_range(channels * blocks, 4, layout.elements(), &|tasks| {
        simd::dispatch(SumBlocks { layout, inputs, terms, tasks, blocks, slots });
    });
    from_fn(|k| {
        let total = |c: usize| {
            let mut pairs = Pairs::new();
            sums[c * blocks..(c + 1) * blocks].iter().for_each(|sums| pairs.push(sums[k]));
            pairs.total()
        };
        (0..channels).map(total).collect()
    })
}

struct SumBlocks<'a, A, T, const N: usize, const K: usize> {
    layout: Layout,
    inputs: [Memory<'a, A>; N],
    terms: &'a [T],
    /// Number `channel · blocks + block`.
    tasks: Range<usize>,
    blocks: usize,
    slots: Memory<'a, [f64; K]>,
}

impl<A: Arithmetic, T: Terms<A, N, K>, const N: usize, const K: usize> Kernel for SumBlocks<'_, A, T, N, K> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let mut reader = Reader::new(self.inputs, &self.layout.sequence(0));
        for task in self.tasks {
            let (c, block) = (task / self.blocks, task % self.blocks);
            reader.forget();
            let sums = reader.block_sums(&self.layout.sequence(c), block, self.terms[c], 0);
            // SAFETY: this slot is this task's alone.
            unsafe { self.slots.put(task, [sums]) };
        }
    }
}

/// The formula of the channels' numbers for every element; `reversed`: what lies last, first.
///
/// # Safety
/// The output may be written and is no input.
unsafe fn apply<A: Arithmetic, F: Formula<A, N, P>, const N: usize, const M: usize, const P: usize>(
    layout: Layout,
    inputs: [Memory<'_, A>; N],
    output: Memory<'_, A>,
    numbers: [&[f64]; M],
    formula: impl Fn([f64; M]) -> F,
    reversed: bool,
) {
    let (channels, elements) = (layout.channels(), layout.elements());
    if elements == 0 {
        return;
    }
    let passing = Passing::over::<A>(elements);
    let columns = each(numbers.map(|numbers| &numbers[..channels]), |numbers| formula(numbers).into());
    match layout {
        Layout::Inside { inner, .. } => {
            let columns = columns.each_ref().map(|column| &column[..]);
            share_range(elements, CHUNK, elements, &|places| {
                simd::dispatch(ApplyInside {
                    inputs,
                    output,
                    columns,
                    inner,
                    places,
                    passing,
                    formula: PhantomData::<F>,
                });
            });
        }
        Layout::Last { .. } => {
            // Several rows of coefficients, one after the other, where a row is short.
            let times = PERIOD.div_ceil(channels).min(layout.count());
            let period = channels * times;
            let columns = columns.map(|column| Lines::new(&column, period));
            let columns = columns.each_ref().map(Lines::memory);
            let chunk = CHUNK.next_multiple_of(period);
            let tasks = elements.div_ceil(chunk);
            pool::share(tasks, elements, &|task| {
                let start = chunk * if reversed && passing.streaming { mirrored(task, tasks) } else { task };
                let places = start..elements.min(start + chunk);
                simd::dispatch(ApplyLast {
                    inputs,
                    output,
                    columns,
                    period,
                    places,
                    passing,
                    formula: PhantomData::<F>,
                });
            });
        }
    }
}

/// P rows of numbers, a function of M numbers each.
pub(super) fn each<A: Arithmetic, R: Into<[A; P]>, const M: usize, const P: usize>(
    numbers: [&[f64]; M],
    function: impl Fn([f64; M]) -> R,
) -> [Vec<A>; P] {
    let mut rows: [Vec<A>; P] = from_fn(|_| vec![A::ZERO; numbers[0].len()]);
    let to = rows.each_mut().map(|row| Memory::of_mut(row));
    simd::dispatch(Each { n: numbers[0].len(), numbers: numbers.map(Memory::of), to, function, result: PhantomData });
    rows
}

struct Each<'a, A, R, G, const M: usize, const P: usize> {
    n: usize,
    numbers: [Memory<'a, f64>; M],
    to: [Memory<'a, A>; P],
    function: G,
    result: PhantomData<R>,
}

impl<A, R, G, const M: usize, const P: usize> Kernel for Each<'_, A, R, G, M, P>
where
    A: Arithmetic,
    R: Into<[A; P]>,
    G: Fn([f64; M]) -> R,
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let mut at = 0;
        while self.n - at >= 8 {
            self.some::<8>(at);
            at += 8;
        }
        while at < self.n {
            self.some::<1>(at);
            at += 1;
        }
    }
}

impl<A, R, G, const M: usize, const P: usize> Each<'_, A, R, G, M, P>
where
    A: Arithmetic,
    R: Into<[A; P]>,
    G: Fn([f64; M]) -> R,
{
    #[inline(always)]
    fn some<const W: usize>(&self, at: usize) {
        let numbers: [[f64; W]; M] = from_fn(|m| self.numbers[m].row(at));
        let mut rows = [[A::ZERO; W]; P];
        for l in 0..W {
            let results = (self.function)(from_fn(|m| numbers[m][l])).into();
            for p in 0..P {
                rows[p][l] = results[p];
            }
        }
        for (to, row) in self.to.iter().zip(rows) {
            // SAFETY: vectors of `each`'s own.
            unsafe { to.put(at, row) };
        }
    }
}

/// Elements that rows of coefficients are repeated to.
const PERIOD: usize = 512;

struct ApplyInside<'a, A, F, const N: usize, const P: usize> {
    inputs: [Memory<'a, A>; N],
    output: Memory<'a, A>,
    columns: [&'a [A]; P],
    inner: usize,
    places: Range<usize>,
    passing: Passing,
    formula: PhantomData<F>,
}

impl<A: Arithmetic, F: Formula<A, N, P>, const N: usize, const P: usize> Kernel for ApplyInside<'_, A, F, N, P> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Range { mut start, end } = self.places;
        while start < end {
            let (segment, skip) = (start / self.inner, start % self.inner);
            let n = (end - start).min(self.inner - skip);
            let channel = segment % self.columns[0].len();
            let formula = F::from(self.columns.map(|column| column[channel]));
            let inputs = self.inputs.map(|input| input.from(start));
            // SAFETY: the contract of `apply`; these elements are this task's alone.
            unsafe { map(inputs, [], self.output.from(start), n, self.passing, |x, []| formula.at(x)) };
            start += n;
        }
        self.passing.finish();
    }
}

struct ApplyLast<'a, A, F, const N: usize, const P: usize> {
    inputs: [Memory<'a, A>; N],
    output: Memory<'a, A>,
    columns: [Memory<'a, A>; P],
    period: usize,
    places: Range<usize>,
    passing: Passing,
    formula: PhantomData<F>,
}

impl<A: Arithmetic, F: Formula<A, N, P>, const N: usize, const P: usize> Kernel for ApplyLast<'_, A, F, N, P> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Range { mut start, end } = self.places;
        while start < end {
            let n = (end - start).min(self.period);
            let inputs = self.inputs.map(|input| input.from(start));
            // SAFETY: the contract of `apply`; these elements are this task's alone.
            unsafe { map(inputs, self.columns, self.output.from(start), n, self.passing, |x, c| F::from(c).at(x)) };
            start += n;
        }
        self.passing.finish();
    }
}

/// running ← (1 − momentum)·running + momentum·factor·batch
pub fn track(running: &[f64], batch: &[f64], factor: f64, momentum: f64) -> Vec<f64> {
    let [tracked] =
        each([running, batch], |[running, batch]| [(1.0 - momentum) * running + momentum * (batch * factor)]);
    tracked
}

/// 1 / √(σ² + ε)
pub fn inverted(var: &[f64], eps: f64) -> Vec<f64> {
    let [inverted] = each([var], |[var]| [inv_std(var, eps)]);
    inverted
}
