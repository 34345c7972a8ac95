//! Batch norm: each channel by its mean and variance over the batch and the pixels; the formulas are in [`super`].
//!
//! Ioffe and Szegedy, "Batch Normalization", 2015, Algorithm 1.

use super::memory::map;
use super::sums::{Reader, RowSums, Sequence};
use super::{
    CHUNK, Differentiate, Formula, Memory, Normalize, Products, Scale, Square, Terms, Value, inv_std, share_range,
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

/// μ and the biased σ² of each channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// μ
    pub mean: Vec<f64>,
    /// σ²
    pub var: Vec<f64>,
}

/// α and β of each channel.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// α
    pub weight: &'a [f64],
    /// β
    pub bias: &'a [f64],
}

/// y and the statistics of x.
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
) -> Statistics {
    let _default = DefaultEnvironment::enter();
    let (channels, count) = (layout.channels(), layout.count() as f64);
    let formula =
        |c: usize, mean: f64, var: f64| Normalize::<A>::new(mean, inv_std(var, eps), affine.weight[c], affine.bias[c]);
    let Some(part) = channels_per_task(layout) else {
        let [sum] = sums(layout, [x], &vec![Value; channels]);
        let mean: Vec<f64> = sum.iter().map(|sum| sum / count).collect();
        let [sum] = sums(layout, [x], &mean.iter().map(|mean| Square { mean: *mean }).collect::<Vec<_>>());
        let var: Vec<f64> = sum.iter().map(|sum| sum / count).collect();
        // SAFETY: the same contract.
        unsafe { apply(layout, [x], y, |c| formula(c, mean[c], var[c])) };
        return Statistics { mean, var };
    };
    let mut statistics = Statistics { mean: vec![0.0; channels], var: vec![0.0; channels] };
    let (mean, var) = (Memory::of_mut(&mut statistics.mean), Memory::of_mut(&mut statistics.var));
    share_range(channels, part, layout.elements(), &|channels| {
        simd::dispatch(ForwardChannels { layout, x, y, channels, mean, var, formula });
    });
    statistics
}

/// The statistics and y of some channels, all passes over one of them while it is in the cache.
struct ForwardChannels<'a, A, F> {
    layout: Layout,
    x: Memory<'a, A>,
    y: Memory<'a, A>,
    channels: Range<usize>,
    mean: Memory<'a, f64>,
    var: Memory<'a, f64>,
    formula: F,
}

impl<A: Arithmetic, F: Fn(usize, f64, f64) -> Normalize<A>> Kernel for ForwardChannels<'_, A, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let count = self.layout.count() as f64;
        let mut reader = Reader::new([self.x], &self.layout.sequence(0));
        for c in self.channels {
            let sequence = self.layout.sequence(c);
            reader.forget();
            let [sum] = reader.sums(&sequence, Value);
            let mean = sum / count;
            let [sum] = reader.sums(&sequence, Square { mean });
            let var = sum / count;
            let formula = (self.formula)(c, mean, var);
            for (at, n) in sequence.segments() {
                // SAFETY: y may be written and is not x; this channel is this task's alone.
                unsafe { map([self.x.from(at)], [], self.y.from(at), n, |x, []| formula.at(x)) };
            }
            // SAFETY: this channel is this task's alone.
            unsafe { self.mean.put(c, [mean]) };
            // SAFETY: as above.
            unsafe { self.var.put(c, [var]) };
        }
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
) {
    let _default = DefaultEnvironment::enter();
    let formula = |c: usize| Normalize::<A>::new(mean[c], inv_std[c], affine.weight[c], affine.bias[c]);
    // SAFETY: the same contract.
    unsafe { apply(layout, [x], y, formula) };
}

/// dα and dβ.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gradients {
    /// dα
    pub weight: Vec<f64>,
    /// dβ
    pub bias: Vec<f64>,
}

/// dx, dα and dβ; `training`: the statistics are those of x and change with it.
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
    weight: &[f64],
    mean: &[f64],
    inv_std: &[f64],
    training: bool,
) -> Gradients {
    let _default = DefaultEnvironment::enter();
    let count = layout.count();
    let [bias, product] = if training {
        let formula = |c: usize, sums| Differentiate::<A>::new(mean[c], inv_std[c], weight[c], sums, count);
        // SAFETY: the same contract.
        unsafe { backward_by(layout, [gradient, x], dx, mean, formula) }
    } else {
        let formula = |c: usize, _| Scale::from([A::constant(weight[c] * inv_std[c])]);
        // SAFETY: the same contract.
        unsafe { backward_by(layout, [gradient, x], dx, mean, formula) }
    };
    Gradients { weight: product.iter().zip(inv_std).map(|(product, inv_std)| inv_std * product).collect(), bias }
}

/// dx by a formula of Σ dy and Σ dy·(x − μ); returns these.
///
/// # Safety
/// As [`backward`].
unsafe fn backward_by<A: Arithmetic, F: Formula<A, 2, P>, const P: usize>(
    layout: Layout,
    inputs: [Memory<'_, A>; 2],
    dx: Memory<'_, A>,
    mean: &[f64],
    formula: impl Fn(usize, [f64; 2]) -> F + Copy + Sync,
) -> [Vec<f64>; 2] {
    let channels = layout.channels();
    let Some(part) = channels_per_task(layout) else {
        let terms: Vec<Products> = mean[..channels].iter().map(|mean| Products { mean: *mean }).collect();
        let [bias, product] = sums(layout, inputs, &terms);
        // SAFETY: the same contract.
        unsafe { apply(layout, inputs, dx, |c| formula(c, [bias[c], product[c]])) };
        return [bias, product];
    };
    let mut totals = [vec![0.0; channels], vec![0.0; channels]];
    let slots = totals.each_mut().map(|totals| Memory::of_mut(totals));
    share_range(channels, part, layout.elements(), &|channels| {
        simd::dispatch(BackwardChannels {
            layout,
            inputs,
            dx,
            channels,
            mean,
            totals: slots,
            formula,
            types: PhantomData,
        });
    });
    totals
}

/// The sums and dx of some channels, all passes over one of them while it is in the cache.
struct BackwardChannels<'a, A, F, G, const P: usize> {
    layout: Layout,
    inputs: [Memory<'a, A>; 2],
    dx: Memory<'a, A>,
    channels: Range<usize>,
    mean: &'a [f64],
    totals: [Memory<'a, f64>; 2],
    formula: G,
    types: PhantomData<([A; P], F)>,
}

impl<A, F, G, const P: usize> Kernel for BackwardChannels<'_, A, F, G, P>
where
    A: Arithmetic,
    F: Formula<A, 2, P>,
    G: Fn(usize, [f64; 2]) -> F,
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let [dy, x] = self.inputs;
        let mut reader = Reader::new(self.inputs, &self.layout.sequence(0));
        for c in self.channels {
            let sequence = self.layout.sequence(c);
            reader.forget();
            let sums = reader.sums(&sequence, Products { mean: self.mean[c] });
            let formula = (self.formula)(c, sums);
            for (at, n) in sequence.segments() {
                // SAFETY: dx may be written and is neither input; this channel is this task's alone.
                unsafe { map([dy.from(at), x.from(at)], [], self.dx.from(at), n, |x, []| formula.at(x)) };
            }
            for (totals, sum) in self.totals.iter().zip(sums) {
                // SAFETY: this channel is this task's alone.
                unsafe { totals.put(c, [sum]) };
            }
        }
    }
}

/// Where one thread does all passes over a channel: how many channels a task has. None: the threads share each channel.
fn channels_per_task(layout: Layout) -> Option<usize> {
    let Layout::Inside { channels, .. } = layout else { return None };
    let threads = pool::num_threads();
    let few_and_long = threads > 1 && channels < 2 * threads && layout.count() > 2 * reduce::BLOCK;
    (!few_and_long).then(|| channels.div_ceil(8 * threads))
}

/// K sums over each channel, one element of `terms` a channel.
fn sums<A: Arithmetic, T: Terms<N, K>, const N: usize, const K: usize>(
    layout: Layout,
    inputs: [Memory<'_, A>; N],
    terms: &[T],
) -> [Vec<f64>; K] {
    let channels = layout.channels();
    if let Layout::Last { rows, .. } = layout {
        let of_lanes = terms[..channels].repeat(ROW_LANES);
        let mut sums = RowSums::<A, T, false, N, K>::new(inputs, rows, channels, &of_lanes);
        sums.add(0..rows);
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

impl<A: Arithmetic, T: Terms<N, K>, const N: usize, const K: usize> Kernel for SumBlocks<'_, A, T, N, K> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let mut reader = Reader::new(self.inputs, &self.layout.sequence(0));
        for task in self.tasks {
            let (c, block) = (task / self.blocks, task % self.blocks);
            reader.forget();
            let sums = reader.block_sums(&self.layout.sequence(c), block, self.terms[c]);
            // SAFETY: this slot is this task's alone.
            unsafe { self.slots.put(task, [sums]) };
        }
    }
}

/// The channels' formula for every element.
///
/// # Safety
/// The output may be written and is no input.
unsafe fn apply<A: Arithmetic, F: Formula<A, N, P>, const N: usize, const P: usize>(
    layout: Layout,
    inputs: [Memory<'_, A>; N],
    output: Memory<'_, A>,
    formula: impl Fn(usize) -> F,
) {
    let (channels, elements) = (layout.channels(), layout.elements());
    if elements == 0 {
        return;
    }
    let mut columns: [Vec<A>; P] = from_fn(|_| vec![A::ZERO; channels]);
    simd::dispatch(Fill { columns: columns.each_mut().map(|column| &mut column[..]), formula });
    match layout {
        Layout::Inside { inner, .. } => {
            let columns = columns.each_ref().map(|column| &column[..]);
            share_range(elements, CHUNK, elements, &|places| {
                simd::dispatch(ApplyInside { inputs, output, columns, inner, places, formula: PhantomData::<F> });
            });
        }
        Layout::Last { .. } => {
            // Several rows of coefficients, one after the other, where a row is short.
            let times = PERIOD.div_ceil(channels).min(layout.count());
            let columns = columns.map(|column| if times > 1 { column.repeat(times) } else { column });
            let (columns, period) = (columns.each_ref().map(|column| Memory::of(column)), channels * times);
            share_range(elements, CHUNK.next_multiple_of(period), elements, &|places| {
                simd::dispatch(ApplyLast { inputs, output, columns, period, places, formula: PhantomData::<F> });
            });
        }
    }
}

/// The coefficients of all channels, each kind in a row of its own.
struct Fill<'a, A, G, const P: usize> {
    columns: [&'a mut [A]; P],
    formula: G,
}

impl<A, F, G, const P: usize> Kernel for Fill<'_, A, G, P>
where
    A: Arithmetic,
    F: Into<[A; P]>,
    G: Fn(usize) -> F,
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let mut columns = self.columns;
        for c in 0..columns.first().map_or(0, |column| column.len()) {
            for (column, coefficient) in columns.iter_mut().zip((self.formula)(c).into()) {
                column[c] = coefficient;
            }
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
            unsafe { map(inputs, [], self.output.from(start), n, |x, []| formula.at(x)) };
            start += n;
        }
    }
}

struct ApplyLast<'a, A, F, const N: usize, const P: usize> {
    inputs: [Memory<'a, A>; N],
    output: Memory<'a, A>,
    columns: [Memory<'a, A>; P],
    period: usize,
    places: Range<usize>,
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
            unsafe { map(inputs, self.columns, self.output.from(start), n, |x, c| F::from(c).at(x)) };
            start += n;
        }
    }
}

/// running ← (1 − momentum)·running + momentum·batch
pub fn track(running: f64, batch: f64, momentum: f64) -> f64 {
    (1.0 - momentum) * running + momentum * batch
}
